"""The real clocks, and all of them ahead by the same amount: time passes, and an hour passes at once when a test says so."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import BigInteger, bindparam

from tokenkeeper.clock import Clock
from tokenkeeper.store.tables import database_now


class AheadClock(Clock):
    """This process's clocks and the database's own, each ``ahead`` seconds ahead of what they show."""

    ahead = 0.0

    def monotonic(self) -> float:  # type: ignore[override]
        """Seconds that only go forward."""
        return time.monotonic() + self.ahead

    def epoch(self) -> float:  # type: ignore[override]
        """Seconds since the epoch: what ``FakeProvider(clock=…)`` takes, too."""
        return time.time() + self.ahead

    def database_now(self) -> Any:
        """The database's clock in SQL, so many seconds ahead."""
        ahead = bindparam("ahead", callable_=lambda: round(self.ahead * 1_000_000), type_=BigInteger(), unique=False)
        return database_now() + ahead
