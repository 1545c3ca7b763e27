"""A keeper of either twin, a clock, a provider, and a token endpoint in bad weather; every case is a registration of its own."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.faults.weather_cases import Case
from tests.faults.weather_endpoint import Act, Elsewhere, Endpoint, Visit
from tokenkeeper import AccessToken, AsyncTokenKeeper, Event, Keyring, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider
from tokenkeeper.testing.clock import TestClock

MARK = "CANARY-4f1e9c-"
"""Stands in every token and client secret (``tests.secrets.lookout`` looks for it)."""

PLAIN = "plain-words-"
"""The same, where a secret is to look like no secret: then only who knows it can mask it."""

BASE = "https://provider.test"
API = f"{BASE}/v2/userinfo"
LIVES = {"expired": 1800.0, "aging": 3700.0, "refused": 86_400.0}
"""What is the matter with the access token an hour after the consent -> its life. ``aging``: 100 s are left."""


@dataclass(frozen=True)
class Result:
    """What became of a call: the status, or the error; and how long it took."""

    seconds: float
    value: Any = None
    error: BaseException | None = None


class Stage:
    """One process: registrations called after the cases, the member ann in each."""

    def __init__(
        self,
        url: str,
        cases: Iterable[Case] | Mapping[str, Act],
        *,
        twin: str = "sync",
        rotation: str = "none",
        state: str = "expired",
        deadline: float = 10.0,
        members: Iterable[str] = ("ann",),
        raises: bool = False,
        mark: str = MARK,
        **knobs: Any,
    ) -> None:
        self.twin, self.state, self.members = twin, state, tuple(members)
        listed = [Case(name, act) for name, act in cases.items()] if isinstance(cases, Mapping) else list(cases)
        self.cases = {case.name: case for case in listed}
        self.clock = TestClock()
        self.provider = FakeProvider(
            clock=self.clock,
            rotation=rotation,
            prefix=mark,
            client_secret=f"{mark}secret",
            access_lifetime=LIVES[state],
            client_authentication="client_secret_post",
        )
        acts = {case.name: case.act for case in listed}
        early = [case.name for case in listed if case.before_reading]
        shared = Endpoint(self.provider, acts)
        self.endpoints = dict.fromkeys(acts, shared) | {
            name: Endpoint(self.provider, acts, at_once=name) for name in early
        }
        self._runner = asyncio.Runner()
        self._stack = ExitStack()
        self._stack.enter_context(self._runner)
        for endpoint in dict.fromkeys(self.endpoints.values()):
            self._stack.enter_context(endpoint)
        overrides = {"lease_seconds": deadline + 2, "deadline_seconds": deadline, "introspection_endpoint": None}
        registrations = [
            self.provider.registration(
                name,
                provider=self.provider.as_provider(BASE, token_endpoint=self.endpoints[name].url(name), **overrides),
            )
            for name in self.cases
        ]
        kind = TokenKeeper if twin == "sync" else AsyncTokenKeeper
        self.keeper: Any = kind(url, keys=Keyring.parse(generate_key("k1")), registrations=registrations, **knobs)
        self.clock.install(self.keeper)
        self.sync: TokenKeeper = self.keeper if twin == "sync" else self.keeper.sync
        self.events: list[Event] = []
        self.keeper.on(Event, self.events.append)
        self.sync.create_schema()
        self.calls = {name: self._guarded(name, raises) for name in self.cases}
        for name in self.cases:
            for member in self.members:
                who = self.who(name, member)
                self.sync.save_tokens(name, member, self.provider.issue(member=who))
        self.clock.advance(3600)
        if state == "refused":
            self.provider.expire()

    @staticmethod
    def who(name: str, member: str) -> str:
        """What the provider calls the member of a case."""
        return f"{member} of {name}"

    def _guarded(self, name: str, raises: bool) -> Callable[..., Any]:
        if self.twin == "sync":
            client = self._stack.enter_context(httpx2.Client(transport=self.provider.transport()))

            @self.keeper.guard(name)
            def call(token: AccessToken, member: str) -> int:
                response = client.get(API, auth=token)
                return response.raise_for_status() if raises else response

            return call
        aclient = httpx2.AsyncClient(transport=self.provider.async_transport())

        @self.keeper.guard(name)
        async def acall(token: AccessToken, member: str) -> int:
            response = await aclient.get(API, auth=token)
            return response.raise_for_status() if raises else response

        return acall

    # --- calls ---

    def each(self, does: Callable[[str], Any], names: Iterable[str] | None = None) -> dict[str, Result]:
        """Do something for every case (or some) at once, as threads or as tasks; what became of each."""
        chosen = list(self.cases if names is None else names)
        return dict(zip(chosen, self.at_once([(lambda name=name: does(name)) for name in chosen]), strict=True))

    def at_once(self, works: list[Callable[[], Any]]) -> list[Result]:
        """Do all of these at once, as threads or as tasks."""
        if self.twin == "sync":
            together = threading.Barrier(len(works))

            def work(one: Callable[[], Any]) -> Result:
                together.wait(30)
                started = time.monotonic()
                try:
                    return Result(value=one(), seconds=time.monotonic() - started)
                except Exception as error:
                    return Result(error=error, seconds=time.monotonic() - started)

            with ThreadPoolExecutor(len(works)) as threads:
                return list(threads.map(work, works))

        async def awork(one: Callable[[], Any]) -> Result:
            started = time.monotonic()
            try:
                return Result(value=await one(), seconds=time.monotonic() - started)
            except Exception as error:
                return Result(error=error, seconds=time.monotonic() - started)

        async def all_of_them() -> list[Result]:
            return await asyncio.gather(*map(awork, works))

        return self._runner.run(all_of_them())

    def call(self, name: str, member: str = "ann") -> Any:
        """A guarded call (of the async twin: to be awaited)."""
        return self.calls[name](member=member)

    def token(self, name: str, member: str = "ann") -> Any:
        """The access token (of the async twin: to be awaited)."""
        return self.keeper.access_token(name, member)

    def does(self, result: Any) -> Any:
        """The result of a method of either twin."""

        async def awaited() -> Any:
            return await result

        return self._runner.run(awaited()) if inspect.isawaitable(result) else result

    # --- what has been ---

    def visits(self, name: str) -> list[Visit]:
        """The token requests of a case."""
        return self.endpoints[name].of(name)

    def requests(self) -> dict[str, int]:
        """How many token requests each case has had in bad weather."""
        return {name: len(self.visits(name)) for name in self.cases}

    def clear_up(self) -> None:
        """From now on the weather is fair."""
        for endpoint in self.endpoints.values():
            endpoint.fair = True

    def until_idle(self, seconds: float = 30.0) -> None:
        """Wait until no renewal is under way."""
        until(lambda: self.keeper._room.view()["renewals"] == 0, seconds)

    def close(self) -> None:
        """Close what was opened."""
        try:
            self.does(self.keeper.close())
        finally:
            self._stack.close()


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something is true. Raises TimeoutError after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)


@contextmanager
def stage(folder: Path, cases: Iterable[Case] | Mapping[str, Act], **knobs: Any) -> Iterator[Stage]:
    """A stage on a SQLite file in a folder."""
    made = Stage(f"sqlite:///{folder / 'tokens.db'}", cases, **knobs)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def elsewhere() -> Iterator[list[Elsewhere]]:
    """Two other origins: another host, and another port."""
    with Elsewhere("127.0.0.2") as host, Elsewhere("127.0.0.1") as port:
        yield [host, port]
