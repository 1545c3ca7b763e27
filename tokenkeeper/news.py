"""Tells the host: callbacks run after the change is committed, outside claim and transaction, once.

One that raises is logged and changes nothing. An ``async def`` callback runs in the event loop that the keeper was last
used in; where there is none any more, in one of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import wait
from typing import Any

from tokenkeeper.events import Event

logger = logging.getLogger(__name__)

ASYNC_CALLBACK_SECONDS = 10.0
"""So long a renewal's waiters are held up by an async callback; it goes on after that."""

Callback = Callable[[Any], Any]


class News:
    """The host's callbacks, by event type."""

    def __init__(self) -> None:
        self._callbacks: list[tuple[type[Event], Callback]] = []
        self._tasks: set[asyncio.Task[object]] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop in which the keeper was last used."""

    def on(self, kind: type[Event], callback: Callback) -> None:
        """Register a callback for a type of event, or for a base of several."""
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            raise TypeError(f"on() takes an event type such as ReauthenticationNeeded, not {kind!r}")
        if not callable(callback):
            raise TypeError(f"on({kind.__name__}) takes a function of one argument, not {callback!r}")
        self._callbacks.append((kind, callback))

    def tell(self, events: Iterable[Event]) -> None:
        """Run the callbacks of these events, in this thread."""
        for event in events:
            for kind, callback in self._callbacks:
                if isinstance(event, kind):
                    self._run(callback, event)

    def _run(self, callback: Callback, event: Event) -> None:
        try:
            result = callback(event)
            if inspect.iscoroutine(result):
                self._run_async(result)
        except Exception:
            logger.exception("the callback %s failed for %s", _name(callback), type(event).__name__)

    def _run_async(self, coroutine: Coroutine[Any, Any, object]) -> None:
        here, loop = _running_loop(), self.loop
        if here is not None:  # a sync call in a loop's own thread, which must not wait for itself
            task = here.create_task(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)  # if it fails, the loop says so
        elif loop is None or not loop.is_running():
            asyncio.run(coroutine)
        else:
            running = asyncio.run_coroutine_threadsafe(coroutine, loop)
            wait([running], ASYNC_CALLBACK_SECONDS)
            if running.done():
                running.result()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _name(callback: Callback) -> str:
    return getattr(callback, "__qualname__", type(callback).__name__)
