"""The harness: operations take turns on the clock, and medians are compared.

The machine is noisy, so nothing is measured alone: what is compared runs alternately, block by block, and the figure is
the median of the blocks' differences or ratios. Absolute times are of the machine; ratios are what counts.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

Operation = Callable[[], object]
Block = Callable[[int], float]
"""Runs an operation so many times; returns the seconds it took."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured; ``make bench BENCH=--quick`` is a tenth of the whole."""

    quick: bool

    def of(self, whole: int, quick: int) -> int:
        """So many, or so many in a short run."""
        return quick if self.quick else whole


@dataclass(frozen=True, slots=True)
class Figure:
    """One result. ``goal`` is the most that it should be; None: shown for comparison."""

    what: str
    value: float
    unit: str
    """``x`` for a ratio to the baseline of the same run; else µs, ms, KiB or %."""
    goal: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met, at the precision that is shown."""
        return None if self.goal is None else round(self.value, 2) <= self.goal


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds a call of each operation, one entry a round."""

    rounds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """The operation's median, in µs."""
        return statistics.median(self.rounds[name]) * 1e6

    def added(self, name: str, base: str) -> float:
        """What *name* costs more than *base*, in µs: the median of the rounds' differences."""
        return statistics.median(a - b for a, b in zip(self.rounds[name], self.rounds[base], strict=True)) * 1e6

    def ratio(self, name: str, base: str) -> float:
        """How much longer *name* takes than *base*: the median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(self.rounds[name], self.rounds[base], strict=True))


def calls(operation: Operation) -> Block:
    """A block of plain calls."""

    def block(number: int) -> float:
        start = time.perf_counter()
        for _ in repeat(None, number):
            operation()
        return time.perf_counter() - start

    return block


def awaited(operation: Callable[[], Awaitable[object]], run: Callable[..., float]) -> Block:
    """A block of awaited calls inside one event loop; *run* is ``asyncio.Runner().run``."""

    async def block(number: int) -> float:
        start = time.perf_counter()
        for _ in repeat(None, number):
            await operation()
        return time.perf_counter() - start

    return lambda number: run(block(number))


def alternate(blocks: Mapping[str, Block], *, rounds: int, number: int) -> Times:
    """Run blocks of *number* calls alternately; who begins changes from round to round."""
    for block in blocks.values():
        block(max(number, 20))
    taken: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    with no_garbage_collection():
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                taken[name].append(blocks[name](number) / number)
    return Times(taken)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the collector from hitting one of the operations by chance."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
