"""A clock that a test moves: it stands for the process's clocks and for the database's."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tokenkeeper.clock import Clock

if TYPE_CHECKING:
    import httpx2
    from sqlalchemy import ColumnElement

    from tokenkeeper.keeper import AsyncTokenKeeper, TokenKeeper

START = 1_800_000_000.0
"""Where a test clock starts: 2027-01-15T08:00:00Z, in seconds since the epoch."""


class TestClock(Clock):
    """Time stands still until :meth:`advance`; whoever waits moves it on, so that no test ever sleeps."""

    __test__ = False  # for pytest, which collects what is called Test…

    def __init__(self, start: float = START) -> None:
        self._lock = threading.Lock()
        self._now = start

    def __call__(self) -> float:
        """The time in seconds since the epoch: what ``FakeProvider(clock=…)`` takes."""
        return self._now

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        return self._now

    epoch = monotonic

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        with self._lock:
            self._now += seconds

    def database_now(self) -> ColumnElement[int]:
        """The SQL expression for the database's clock: this clock, whatever the database is."""
        from sqlalchemy import BigInteger, bindparam  # noqa: PLC0415

        return bindparam(
            "tokenkeeper_now", callable_=lambda: round(self._now * 1_000_000), type_=BigInteger(), unique=False
        )

    def wait(self, seconds: float, wake: threading.Event) -> None:
        """Let the time pass at once."""
        self.advance(seconds)
        wake.wait(0.001)

    async def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.advance(seconds)

    def install(
        self, keeper: TokenKeeper | AsyncTokenKeeper, transport: httpx2.BaseTransport | None = None
    ) -> TokenKeeper | AsyncTokenKeeper | Any:
        """Give a keeper this clock (and, for its token endpoint, a transport), before its first use; return the keeper."""
        keeper._room.use(self, transport)
        return keeper
