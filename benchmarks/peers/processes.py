"""The processes of a trial: the provider, and the workers that call through one adapter. Each obeys over a pipe.

They are forked from a process that has done nothing but import, so that a worker's start costs no import of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import ModuleType, TracebackType
from typing import Any, Self

from peers.place import Place
from tokenkeeper.testing import FakeProvider

LATENCY = 0.05
"""Seconds that the token endpoint takes to answer; what it decides, it decides at once."""

LONGEST = 30.0
"""No answer within so many seconds: something hangs, and the trial is given up."""

_fork = multiprocessing.get_context("fork")


@dataclass
class Burst:
    """What a worker saw: calls that failed (what they said), and when its last call ended."""

    errors: list[str] = field(default_factory=list)
    ended: float = 0.0


class Remote:
    """A process that does what it is asked."""

    def __init__(self, main: Callable[..., None], *args: Any) -> None:
        self._pipe, theirs = _fork.Pipe()
        self._process = _fork.Process(target=main, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, name: str, *args: Any) -> None:
        """Ask for something; :meth:`answer` has what it comes to."""
        self._pipe.send((name, args))

    def answer(self) -> Any:
        """The answer to what was asked."""
        if not self._pipe.poll(LONGEST):
            raise TimeoutError(f"no answer within {LONGEST:g} s")
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def ask(self, name: str, *args: Any) -> Any:
        """Ask, and wait for the answer."""
        self.tell(name, *args)
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def obey(pipe: Connection, servant: object) -> None:
    """Call the servant's methods until there is nothing more to do."""
    parent = os.getppid()
    while True:
        while not pipe.poll(5):
            if os.getppid() != parent:  # it was killed; its end of the pipe is open in its other children
                return
        order = pipe.recv()
        if order is None:
            return
        name, args = order
        try:
            answer = getattr(servant, name)(*args)
        except Exception as error:  # noqa: BLE001 - it belongs to who asked
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pipe.send(answer)


class ProviderServant:
    """The provider's side: grants by hand, and counts."""

    def __init__(self, base_url: str, provider: FakeProvider) -> None:
        self._base_url = base_url
        self._provider = provider

    def base_url(self) -> str:
        """Where the provider listens."""
        return self._base_url

    def issue(self, member: str, expired: bool) -> dict[str, Any]:
        """A grant whose access token is good for an hour, or good no more."""
        self._provider.reset_counters()
        return self._provider.issue(member, expires_in=0 if expired else 3600)

    def expire(self, member: str) -> None:
        """The hour is over."""
        self._provider.expire(member)

    def counts(self) -> tuple[int, int]:
        """Token requests, and refresh tokens presented a second time, since the last grant."""
        return self._provider.token_requests, self._provider.reuses


def provide(pipe: Connection) -> None:
    """Be the provider."""
    provider = FakeProvider(rotation="strict")
    provider.script("ok", "token", times=1_000_000, delay=LATENCY)
    with provider.serve() as base_url:
        obey(pipe, ProviderServant(base_url, provider))


class WorkerServant:
    """A process of the web backend: makes its client from the store, and then all calls at once."""

    def __init__(self, adapter: ModuleType, place: Place) -> None:
        self._adapter = adapter
        self._place = place

    def seed(self, member: str, token: dict[str, Any]) -> None:
        """Put a member's tokens into the store."""
        self._adapter.seed(self._place, member, token)

    def expire(self, member: str) -> None:
        """Let the stored tokens be an hour older."""
        self._adapter.expire(self._place, member)


class SyncServant(WorkerServant):
    """With threads."""

    def __init__(self, adapter: ModuleType, place: Place) -> None:
        super().__init__(adapter, place)
        self._open = ExitStack()

    def connect(self, member: str) -> None:
        """Make the client."""
        self._open.close()
        self._call = self._open.enter_context(self._adapter.connect(self._place, member))

    def burst(self, number: int, at: float) -> Burst:
        """Call *number* times, all beginning at a time of the monotonic clock."""
        burst = Burst()

        def work() -> None:
            time.sleep(max(at - time.monotonic(), 0))
            try:
                status = self._call()
            except Exception as error:  # noqa: BLE001 - counted
                burst.errors.append(_words(error))
            else:
                burst.errors.extend(_refused(status))

        threads = [threading.Thread(target=work) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        burst.ended = time.monotonic()
        return burst


class AsyncServant(WorkerServant):
    """With tasks."""

    def __init__(self, adapter: ModuleType, place: Place) -> None:
        super().__init__(adapter, place)
        self._runner = asyncio.Runner()
        self._open = AsyncExitStack()
        self._call: Callable[[], Awaitable[int]]

    def connect(self, member: str) -> None:
        """Make the client."""

        async def connect() -> None:
            await self._open.aclose()
            self._call = await self._open.enter_async_context(self._adapter.connect(self._place, member))

        self._runner.run(connect())

    def burst(self, number: int, at: float) -> Burst:
        """Call *number* times, all beginning at a time of the monotonic clock."""
        burst = Burst()

        async def work() -> None:
            await asyncio.sleep(max(at - time.monotonic(), 0))
            try:
                status = await self._call()
            except Exception as error:  # noqa: BLE001 - counted
                burst.errors.append(_words(error))
            else:
                burst.errors.extend(_refused(status))

        async def all_at_once() -> None:
            await asyncio.gather(*(work() for _ in range(number)))

        self._runner.run(all_at_once())
        burst.ended = time.monotonic()
        return burst


def work(pipe: Connection, adapter: ModuleType, place: Place) -> None:
    """Be a worker."""
    obey(pipe, (AsyncServant if getattr(adapter, "ASYNC", False) else SyncServant)(adapter, place))


def _words(error: Exception) -> str:
    return f"{type(error).__module__.partition('.')[0]}.{type(error).__name__}: {error}"[:120]


def _refused(status: int) -> list[str]:
    return [] if status == 200 else [f"HTTP {status}"]
