"""Watches the database's clock against this process's own, other workers' claims, and back-offs.

A claim has lapsed when the database's clock says so, unless that clock has jumped; then it has lapsed when this process
has seen the same claim for a whole lease by its own clock. That is judged of the row as it was read, and the claim is
taken only if the row still says the same: the clock may jump in between. A back-off is over when either clock says so.
So a clock that jumps costs at most time.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

from tokenkeeper.core.effects import SECOND, StoredGrant

JUMP = 2.0
"""Seconds by which the database's clock may move against ours within :data:`MEMORY` before it is distrusted."""

MEMORY = 60.0
"""For how long (seconds) a jump of the database's clock is remembered, and a measure of its offset kept."""
LONGEST_LEASE = 120.0
"""A claim that has more than this left (seconds) was not taken by the clock as it is now: no lease is so long."""
SIZE = 10_000
"""The most claims, and back-offs, that are remembered."""
FREE = 1_000
"""The most rows that nobody had claimed whose last look is remembered."""


class _Look(NamedTuple):
    """What was seen of a grant's claim: since when it is as it is, what it then had left by the database's clock (seconds),
    and when it was last read to be otherwise."""

    claim: tuple[str | None, int | None]
    since: float
    left: float
    otherwise_at: float
    read_at: float

    def over(self, now: float, lease: float) -> bool:
        """Whether it was seen as it is for a whole *lease*, or for what it had left at the first look, if that was more.

        More than any lease has left: the database's clock was set back meanwhile.
        """
        return now - self.since >= (max(lease, self.left) if self.left <= LONGEST_LEASE else lease)


_NEVER = _Look(("", None), math.inf, 0.0, -math.inf, -math.inf)


class ClockWatch:
    """What this process has seen of the database's clock and of other workers' claims."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset: tuple[float, float] | None = None
        """Between which seconds the database's clock was ahead of ours: it was read at some moment of a look."""
        self._offset_at = 0.0
        self._jumped_at: float | None = None
        self._back_offs: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._claims: OrderedDict[str, _Look] = OrderedDict()
        self._free: OrderedDict[str, float] = OrderedDict()
        """When a row was last read that nobody had claimed; the newest of them do."""

    def saw(self, grant: StoredGrant, until: float) -> None:
        """Take note of a row that was read between its ``read_at`` and *until* (monotonic): a look may wait for a connection."""
        offset = grant.now / SECOND - until, grant.now / SECOND - grant.read_at
        with self._lock:
            known = self._offset
            if known is None or offset[0] > known[1] + JUMP or offset[1] < known[0] - JUMP:
                if known is not None:
                    self._jumped_at = grant.read_at
                self._offset, self._offset_at = offset, grant.read_at
            elif grant.read_at - self._offset_at > MEMORY or offset[1] - offset[0] < known[1] - known[0]:
                self._offset, self._offset_at = offset, grant.read_at
            if self._jumped_at is not None and grant.read_at - self._jumped_at > MEMORY:
                self._jumped_at = None
            self._saw_back_off(grant, until)
            self._saw_claim(grant, until)

    def _saw_claim(self, grant: StoredGrant, until: float) -> None:
        if grant.claim_id is None:
            self._claims.pop(grant.id, None)
            self._free[grant.id] = grant.read_at
            _bound(self._free, grant.id, FREE)
            return
        before = self._claims.get(grant.id)
        if before is not None and before.claim == (grant.claim_id, grant.claimed_until):
            self._claims[grant.id] = before._replace(read_at=grant.read_at)
        else:
            otherwise_at = self._free.pop(grant.id, -math.inf) if before is None else before.read_at
            left = 0.0 if grant.claimed_until is None else (grant.claimed_until - grant.now) / SECOND
            self._claims[grant.id] = _Look(
                (grant.claim_id, grant.claimed_until), until, left, otherwise_at, grant.read_at
            )
        _bound(self._claims, grant.id, SIZE)

    def backs_off(self, grant_id: str, retry_at: int, over: float) -> None:
        """Take note of a back-off that this process has just written: *over* at that moment of our own clock."""
        with self._lock:
            self._back_offs[grant_id] = (retry_at, over)
            _bound(self._back_offs, grant_id, SIZE)

    def _saw_back_off(self, grant: StoredGrant, until: float) -> None:
        if grant.retry_at is None or grant.retry_at <= grant.now:
            self._back_offs.pop(grant.id, None)
        elif self._back_offs.get(grant.id, (None, 0.0))[0] != grant.retry_at:
            self._back_offs[grant.id] = (grant.retry_at, until + (grant.retry_at - grant.now) / SECOND)
            _bound(self._back_offs, grant.id, SIZE)

    def waited_out(self, grant_id: str, now: float) -> int | None:
        """Return the grant's ``retry_at`` if it is over by our own clock, whatever the database's says by now."""
        with self._lock:
            retry_at, over = self._back_offs.get(grant_id, (None, 0.0))
        return retry_at if retry_at is not None and now >= over else None

    @property
    def steady(self) -> bool:
        """Whether the database's clock can be trusted to say that a claim has lapsed."""
        return self._jumped_at is None

    def lapsed(self, grant: StoredGrant, now: float, lease: float) -> bool:
        """Whether the claim that was read has lapsed: by the database's clock, or seen, not extended, for a *lease* (seconds)."""
        if grant.claim_id is None:
            return False
        with self._lock:
            look = self._claims.get(grant.id, _NEVER)
        if look.claim != (grant.claim_id, grant.claimed_until):
            return not grant.claimed and self.steady
        # Taken since we looked last, and that is less than a lease ago: whatever the clocks say, it holds.
        if not grant.claimed and self.steady and now - look.otherwise_at >= lease:
            return True
        return look.over(now, lease)


def _bound(known: OrderedDict[str, Any], grant_id: str, size: int) -> None:
    """Forget the one that was not looked at for longest."""
    known.move_to_end(grant_id)
    while len(known) > size:
        known.popitem(last=False)
