"""The keeper's own threads.

Daemon threads, started as they are needed: a renewal survives its caller's cancellation and the end of the event loop,
and the interpreter's exit drains (``EngineRoom.close`` at exit) instead of waiting without an end, as the standard
pool's threads would make it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

IDLE_SECONDS = 30.0
"""A thread that has had nothing to do for so long ends."""


class Workers:
    """At most *size* daemon threads that run what is submitted, in order."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._pending = 0

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``function(*args, **kwargs)`` in a thread of its own pool; the future has its outcome.

        Raises RuntimeError if there is no thread and the system has none to give; then the function is not run.
        """
        future: Future[T] = Future()
        with self._lock:
            self._pending += 1
            self._tasks.put((future, lambda: function(*args, **kwargs)))
            start = self._pending > self._idle and self._threads < self._size
            if start:
                self._threads += 1
        if start:
            try:
                threading.Thread(target=self._work, name=f"tokenkeeper-{self._name}", daemon=True).start()
            except RuntimeError:
                with self._lock:
                    self._threads -= 1
                    alone = self._threads == 0
                if alone and future.cancel():
                    raise
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                future, task = self._tasks.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    self._idle -= 1
                    if self._pending == 0:
                        self._threads -= 1
                        return
                continue
            with self._lock:
                self._idle -= 1
                self._pending -= 1
            if future.set_running_or_notify_cancel():
                try:
                    result = task()
                except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del future, task
