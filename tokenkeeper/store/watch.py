"""Watches the database's clock against this process's own, and other workers' claims.

A claim has lapsed when the database's clock says so, unless that clock has jumped; then it has lapsed when this process
has seen the same claim for a whole lease by its own clock. So a clock that jumps costs at most time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from tokenkeeper.core.effects import SECOND, StoredGrant

JUMP = 2.0
"""Seconds by which the database's clock may move against ours within :data:`MEMORY` before it is distrusted."""

MEMORY = 60.0
SIZE = 10_000


class ClockWatch:
    """What this process has seen of the database's clock and of other workers' claims."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset: float | None = None
        self._offset_at = 0.0
        self._jumped_at: float | None = None
        self._claims: OrderedDict[str, tuple[str | None, int | None, float]] = OrderedDict()

    def saw(self, grant: StoredGrant) -> None:
        """Take note of a row that was just read."""
        offset = grant.now / SECOND - grant.read_at
        with self._lock:
            if self._offset is None or abs(offset - self._offset) > JUMP:
                if self._offset is not None:
                    self._jumped_at = grant.read_at
                self._offset, self._offset_at = offset, grant.read_at
            elif grant.read_at - self._offset_at > MEMORY:
                self._offset, self._offset_at = offset, grant.read_at
            if self._jumped_at is not None and grant.read_at - self._jumped_at > MEMORY:
                self._jumped_at = None
            if grant.claim_id is None:
                self._claims.pop(grant.id, None)
            elif self._claims.get(grant.id, (None, None, 0.0))[:2] != (grant.claim_id, grant.claimed_until):
                self._claims[grant.id] = (grant.claim_id, grant.claimed_until, grant.read_at)
                while len(self._claims) > SIZE:
                    self._claims.popitem(last=False)

    @property
    def steady(self) -> bool:
        """Whether the database's clock can be trusted to say that a claim has lapsed."""
        return self._jumped_at is None

    def witnessed(self, grant: StoredGrant, now: float, lease: float) -> str | None:
        """Return the id of the grant's claim if this process has seen it, not extended, for a whole *lease* (seconds)."""
        with self._lock:
            claim_id, until, since = self._claims.get(grant.id, (None, None, now))
        seen = (claim_id, until) == (grant.claim_id, grant.claimed_until) and now - since >= lease
        return claim_id if seen else None
