"""What a test has in store for the next requests: scripted answers, and gates that hold a request until released."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from tokenkeeper.testing.messages import Delivery, Response

HOLD_SECONDS = 30.0
"""The longest that a gate holds a request (real seconds): a forgotten gate fails a test, it does not hang it."""


@dataclass(slots=True, eq=False)
class Step:
    """One scripted answer. ``answer`` None: the real one, in this ``delivery``. ``member`` None: whoever comes."""

    name: str
    surface: str
    times: int
    answer: Callable[[str], Response] | None
    processed: bool
    member: str | None
    delivery: Delivery
    delay: float

    def response(self, path: str, real: Response | None) -> Response:
        """The scripted answer, or the real one as far as it gets."""
        base = self.answer(path) if self.answer else (real or Response(503))
        presented = real.presented if real else ()
        return replace(base, delivery=self.delivery, delay=self.delay, presented=presented)


class Script:
    """The steps that are still to come, in order."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def take(self, surface: str, member: str | None) -> Step | None:
        """The first step for this surface and member, used up by one."""
        for step in self.steps:
            if step.surface == surface and step.member in {None, member}:
                step.times -= 1
                if step.times <= 0:
                    self.steps.remove(step)
                return step
        return None


class Gate:
    """Holds requests at a surface until released; a context manager that releases when left.

    ``at="arrival"`` holds a request before it is looked at, ``at="answer"`` when it has been carried out and only the
    answer is missing. ``times`` is how many requests it holds before it lets the rest pass (None: all).
    """

    def __init__(self, surface: str, *, at: str = "arrival", times: int | None = None) -> None:
        if at not in {"arrival", "answer"}:
            raise ValueError(f"a gate stands at 'arrival' or 'answer', not {at!r}")
        self.surface = surface
        self.at = at
        self._left = times
        self._held = 0
        self._open = False
        self._condition = threading.Condition()

    @property
    def held(self) -> int:
        """How many requests have come to the gate and were held, released ones included."""
        return self._held

    @property
    def released(self) -> bool:
        """Whether it lets everything pass."""
        return self._open

    def wait_until_held(self, count: int = 1, timeout: float = 10.0) -> None:
        """Wait until *count* requests have come to the gate. Raises TimeoutError after *timeout* seconds."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._held >= count, timeout):
                raise TimeoutError(
                    f"{self._held} of {count} requests came to the gate at {self.surface} within {timeout} s"
                )

    def release(self) -> None:
        """Let all requests pass, those that wait and those that come."""
        with self._condition:
            self._open = True
            self._condition.notify_all()

    def hold(self) -> bool:
        """Called by the provider: wait for the release. False where none came within :data:`HOLD_SECONDS`."""
        with self._condition:
            if self._open or self._left == 0:
                return True
            if self._left is not None:
                self._left -= 1
            self._held += 1
            self._condition.notify_all()
            return self._condition.wait_for(lambda: self._open, HOLD_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
