"""Tokens in memory: a bounded dictionary that the hot path looks into, without a lock.

An entry says until when (monotonic) its token may be used without asking the store: the end of ``cache_seconds`` or the
start of aging, whichever is first. Entries are dropped oldest first when there are too many.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from tokenkeeper.core.effects import SECOND, StoredGrant
from tokenkeeper.model import AccessToken, GrantKey

AGING_SECONDS = 1.0
"""An aging token is looked up again after so many seconds, to see whether its renewal is through."""


DROPPED = 1_000
"""Of so many members it is known when their token was dropped, so that no slower reader brings it back."""


class Entry(NamedTuple):
    """A token and the monotonic time until which it may be used without asking the store."""

    token: AccessToken
    deadline: float


class TokenCache:
    """At most *size* tokens; ``seconds`` bounds how late a revocation elsewhere is seen."""

    def __init__(self, size: int, seconds: float) -> None:
        self._size = size
        self._seconds = seconds
        self._lock = threading.Lock()
        self._dropped: dict[tuple[str, str], float] = {}
        self.entries: dict[tuple[str, str], Entry] = {}
        """By registration and member; read without the lock."""

    def put(self, grant: StoredGrant, token: AccessToken, leeway: float | None) -> None:
        """Remember the token of a grant that was just read."""
        deadline = grant.read_at + self._seconds
        aging_at, left = grant.aging_at(leeway), grant.seconds_left()
        if aging_at is not None and left is not None:
            fresh_for = (aging_at - grant.now) / SECOND
            deadline = min(deadline, grant.read_at + (fresh_for if fresh_for > 0 else min(AGING_SECONDS, left)))
        key = (grant.key.registration, grant.key.member)
        with self._lock:
            if self._dropped.get(key, grant.read_at) > grant.read_at:
                return
            known = self.entries.pop(key, None)
            if known is not None and known.token.grant_id == grant.id and known.token.generation > grant.generation:
                self.entries[key] = known
                return
            if self._size > 0:
                while len(self.entries) >= self._size:
                    self.entries.pop(next(iter(self.entries)))
                self.entries[key] = Entry(token, deadline)

    def drop(self, key: GrantKey, now: float) -> None:
        """Forget a member's token, and whatever was read before *now* (monotonic) by somebody slower."""
        name = (key.registration, key.member)
        with self._lock:
            self.entries.pop(name, None)
            self._dropped.pop(name, None)
            self._dropped[name] = now
            if len(self._dropped) > DROPPED:
                self._dropped.pop(next(iter(self._dropped)))

    def after_fork(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget all tokens."""
        with self._lock:
            self.entries.clear()

    def __len__(self) -> int:
        return len(self.entries)
