"""The news a host is told: ids, causes and times, never tokens.

The row in the event table is the record, written in the transaction of the change. A callback runs after it, in the
process that caused it, once. ``id`` is stable: the same news has the same id, whoever reports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from tokenkeeper.model import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all news have: a stable id, the time (UTC), the registration and, where it is about one, the member."""

    kept: ClassVar[bool] = True
    """Whether the event table keeps it without ``audit=True``."""

    id: str
    at: datetime | None = None
    registration: str
    member: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantEvent(Event):
    """News of one grant."""

    grant_id: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensRenewed(GrantEvent):
    """The grant has new tokens."""

    kept = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantConnected(GrantEvent):
    """The member has consented, or the host has saved tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReauthenticationNeeded(GrantEvent):
    """The member's turn: a prompt was opened. One a (grant, generation, cause)."""

    cause: str
    prompt: Prompt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationProblem(Event):
    """The operator's turn. One a pause of the registration, or one a cause and hour where nothing is paused."""

    cause: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTrouble(Event):
    """The weather: the provider failed. ``incident`` is the redacted record for the provider's support."""

    cause: str
    incident: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantExpiring(GrantEvent):
    """A grant nears an end that no renewal can put off: of its access token (no refresh token), or of its refresh token."""

    what: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TamperingDetected(GrantEvent):
    """A sealed secret did not open: it was changed, or moved from another place."""

    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRevoked(GrantEvent):
    """The grant was revoked at the provider, as far as it could be, and deleted."""

    outcome: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantForgotten(GrantEvent):
    """The grant was deleted here; the provider was not told."""


def stable_id(*parts: object) -> str:
    """Return the id of news that has no other: a digest of what it is about."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:32]
