"""Time from outside: the process's clocks, and the SQL expression for the database's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement


class Clock:
    """The real clocks. ``tokenkeeper.testing`` has one that a test moves, which also stands for the database's."""

    monotonic: Callable[[], float] = staticmethod(time.monotonic)
    """Seconds that only go forward; the start is arbitrary."""

    epoch: Callable[[], float] = staticmethod(time.time)
    """Seconds since the epoch (UTC), as a client assertion's times want them."""

    def database_now(self) -> ColumnElement[int] | None:
        """The SQL expression that stands for the database's clock, in microseconds since the epoch; None: its own."""
        return None

    def wait(self, seconds: float, wake: threading.Event) -> None:
        """Wait for that many seconds, or until *wake* is set (then only a moment, so that no loop spins)."""
        if wake.wait(seconds):
            time.sleep(min(seconds, 0.5))

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds in the running event loop."""
        await asyncio.sleep(seconds)
