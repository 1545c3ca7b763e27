"""A small world in memory, for the flows: a store, an authorization server and a resource server that answer effects.

``ModelStore`` means what ``tokenkeeper.store.operations`` means; ``tests/store/test_store_model.py`` compares the two.
``Server`` is authorization and resource server in one, and logs every presentation of a refresh token. ``World``
performs effects on both, checks what must hold at every step, and can be copied and compared, so that schedules can be
walked. Time is the world's own: it moves by Sleep, and where a schedule says so.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Hashable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar

from tokenkeeper.core.diagnosis import Rules
from tokenkeeper.core.effects import (
    SECOND,
    Announce,
    BeginRevocation,
    CallApi,
    Claim,
    ClaimGrant,
    CountRefusal,
    DeleteRevoked,
    Discard,
    Effect,
    EndPause,
    Flow,
    ForgetGrant,
    Introspect,
    LoadGrant,
    LoadPause,
    Marked,
    MarkGrant,
    NewId,
    OpenAccessToken,
    OpenedRefreshToken,
    OpenedToRevoke,
    OpenPrompt,
    OpenRefreshToken,
    OpenToRevoke,
    Overtaken,
    Pause,
    PauseRegistration,
    PendingAuthorization,
    Redeem,
    Redeemed,
    ReleaseClaim,
    RememberSecret,
    Renew,
    Repeatable,
    Reply,
    RevokeToken,
    SaveConsent,
    Saved,
    SaveTokens,
    SecretInUse,
    Sleep,
    SpillTokens,
    StartRenewal,
    StateRefused,
    StoredGrant,
    Unsaved,
    Weather,
)
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.recovery import Case
from tokenkeeper.core.renewal import RenewalJob, renew
from tokenkeeper.core.token_endpoint import CLAIM_LOST, NeverSent, TokenSet
from tokenkeeper.drivers import EXTEND_AFTER
from tokenkeeper.errors import TokenKeeperError
from tokenkeeper.events import stable_id
from tokenkeeper.model import (
    AccessToken,
    Answer,
    GrantKey,
    GrantStatus,
    Prompt,
    Registration,
    Rotation,
    Secret,
    scope_set,
    to_datetime,
)
from tokenkeeper.providers import load_profile

T = TypeVar("T")
E = TypeVar("E", bound=Effect[Any])
X = TypeVar("X", bound=TokenKeeperError)

KEY = GrantKey("example", "ann")
REGISTRATION = Registration(
    "example", client_id="client", client_secret="secret", redirect_uri="https://app.example/callback", scopes=["read"]
)
GENERIC: Rules = load_profile("generic").rules
START = 1_800_000_000 * SECOND
LIFE = 3600.0
"""Seconds that an access token of this world lives."""


class Violation(AssertionError):
    """Something happened that must not."""


def shallow(each: T) -> T:
    """A copy that shares what is in it; ``copy.copy`` takes four times as long."""
    twin = object.__new__(type(each))
    twin.__dict__.update(each.__dict__)
    return twin


def profile(rotation: Rotation = Rotation.STRICT, **more: Any) -> Profile:
    """A provider's profile with the generic rules."""
    if rotation is Rotation.GRACE:
        more.setdefault("grace_seconds", 30.0)
    more.setdefault("token_endpoint", "https://provider.example/token")
    return Profile(name="example", rotation=rotation, rules=GENERIC, **more)


# --- the store -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A grant's row, its tokens in clear text. Times are microseconds since the epoch."""

    id: str
    key: GrantKey
    status: GrantStatus
    generation: int
    scopes: tuple[str, ...]
    access_token: str
    refresh_token: str | None
    access_expires_at: int | None
    refresh_expires_at: int | None
    account: str | None
    created_at: int
    consented_at: int
    renewed_at: int | None = None
    claim_id: str | None = None
    claimed_until: int | None = None
    in_flight_since: int | None = None
    in_flight_tries: int = 0
    retry_at: int | None = None
    failures: int = 0
    prompt: Prompt | None = None
    saved_by: str | None = None


NOTHING_IN_FLIGHT: dict[str, Any] = {
    "claim_id": None,
    "claimed_until": None,
    "in_flight_since": None,
    "in_flight_tries": 0,
    "retry_at": None,
    "failures": 0,
}

SAME = tuple(
    each.name
    for each in fields(StoredGrant)
    if each.name not in {"sealed_access_token", "sealed_refresh_token", "now", "read_at"}
)
"""What a row and a stored grant both have."""


def sealed(row: Row, column: str) -> bytes | None:
    """A text that stands for the ciphertext: bound to row, generation and column."""
    text = getattr(row, column)
    return None if text is None else f"{column}|{row.id}|{row.generation}|{text}".encode()


def opened(grant: StoredGrant, column: str) -> str:
    """Open what :func:`sealed` made, in its own place only."""
    found = grant.sealed_access_token if column == "access_token" else grant.sealed_refresh_token
    head = f"{column}|{grant.id}|{grant.generation}|"
    text = (found or b"").decode()
    if not text.startswith(head):
        raise Violation(f"a sealed {column} is opened in another place than its own")
    return text.removeprefix(head)


class PauseRow(NamedTuple):
    """A registration's pause."""

    credentials: str
    cause: str
    fix: str
    probe_at: int


class PendingRow(NamedTuple):
    """An authorization that was begun."""

    pending: PendingAuthorization
    expires_at: int
    consumed: bool


class ModelStore:
    """The store's operations in plain Python, each all at once."""

    PROBE_SECONDS = 300.0

    def __init__(self) -> None:
        self.rows: dict[GrantKey, Row] = {}
        self.pauses: dict[str, PauseRow] = {}
        self.pending: dict[str, PendingRow] = {}
        self.events: tuple[tuple[str, str], ...] = ()
        """Kinds and stable ids of the news that is kept, each once."""
        self.committed: frozenset[str] = frozenset()
        """Every access token that was ever stored."""
        self.changes = 0
        """How often a row was written."""

    def copy(self) -> ModelStore:
        """The same, apart."""
        twin = shallow(self)
        twin.rows, twin.pauses, twin.pending = dict(self.rows), dict(self.pauses), dict(self.pending)
        return twin

    def state(self) -> Hashable:
        """All that makes a difference."""
        return tuple(self.rows.values()), tuple(self.pauses.items()), self.events, self.committed, self.changes

    def _put(self, row: Row) -> Row:
        before = self.rows.get(row.key)
        if before is not None and before.id == row.id and row.generation < before.generation:
            raise Violation(f"the stored generation went from {before.generation} to {row.generation}")
        same = before is not None and (before.id, before.generation) == (row.id, row.generation)
        if same and before is not None and before.refresh_token and row.refresh_token is None:
            raise Violation("a refresh token was deleted without new tokens")
        self.rows[row.key] = row
        self.committed |= {row.access_token}
        self.changes += 1
        return row

    def _told(self, kind: str, news_id: str) -> bool:
        news = (kind, news_id)
        if news in self.events:
            return False
        self.events = (*self.events, news)
        return True

    def _asked(self, row: Row, cause: str) -> None:
        self._told("ReauthenticationNeeded", stable_id("ReauthenticationNeeded", row.id, row.generation, cause))

    def row_of(self, grant: StoredGrant) -> Row | None:
        """The row with the grant's id, whatever its generation."""
        row = self.rows.get(grant.key)
        return row if row is not None and row.id == grant.id else None

    @staticmethod
    def stored(row: Row | None, now: int) -> StoredGrant | None:
        """The row as it is read."""
        if row is None:
            return None
        access = sealed(row, "access_token")
        assert access is not None
        return StoredGrant(
            **{name: getattr(row, name) for name in SAME},
            sealed_access_token=access,
            sealed_refresh_token=sealed(row, "refresh_token"),
            now=now,
            read_at=now / SECOND,
        )

    def load(self, key: GrantKey, now: int) -> StoredGrant | None:
        """Read a grant's row."""
        return self.stored(self.rows.get(key), now)

    def claim(
        self,
        grant: StoredGrant,
        claim_id: str,
        lease: float,
        now: int,
        *,
        forced: bool = False,
        revoking: bool = False,
    ) -> Claim | None:
        """Take the claim, if nothing stands in the way. To revoke is no presentation to the token endpoint."""
        row = self.row_of(grant)
        may = self.revocable if revoking else self.claimable
        if row is None or not may(row, grant, now, forced=forced):
            return None
        row = replace(row, claim_id=claim_id, claimed_until=now + round(lease * SECOND))
        if not revoking:
            since = now if row.in_flight_since is None else row.in_flight_since
            row = replace(row, in_flight_since=since, in_flight_tries=row.in_flight_tries + 1)
        row = self._put(row)
        stored = self.stored(row, now)
        assert stored is not None
        return Claim(claim_id, stored, now / SECOND, lease)

    def claimable(self, row: Row, grant: StoredGrant, now: int, *, forced: bool) -> bool:
        """Whether a claim on what was read in *grant* may be taken."""
        if row.generation != grant.generation or row.refresh_token is None or not unclaimed(row, grant):
            return False
        if forced:
            return row.status is not GrantStatus.REVOKING
        return row.status is GrantStatus.ACTIVE and (row.retry_at is None or row.retry_at <= now)

    def revocable(self, row: Row, grant: StoredGrant, now: int, *, forced: bool) -> bool:
        """Whether a claim to revoke what was read in *grant* may be taken."""
        return row.generation == grant.generation and row.status is GrantStatus.REVOKING and unclaimed(row, grant)

    def ours(self, claim: Claim) -> Row | None:
        """The row, if the claim on it is still this one."""
        row = self.row_of(claim.grant)
        held = row is not None and (row.generation, row.claim_id) == (claim.grant.generation, claim.id)
        return row if held else None

    def extend(self, claim: Claim, now: int) -> bool:
        """Start the lease anew, if the claim is still ours."""
        row = self.ours(claim)
        if row is not None:
            self._put(replace(row, claimed_until=now + round(claim.lease * SECOND)))
        return row is not None

    def release(self, claim: Claim, now: int, *, in_doubt: bool, retry_after: float | None, failed: bool) -> None:
        """Give the claim back."""
        row = self.ours(claim)
        if row is None:
            return
        tries = row.in_flight_tries if in_doubt else max(row.in_flight_tries - 1, 0)
        self._put(
            replace(
                row,
                claim_id=None,
                claimed_until=None,
                in_flight_tries=tries,
                in_flight_since=row.in_flight_since if in_doubt or tries else None,
                retry_at=None if retry_after is None else now + round(retry_after * SECOND),
                failures=row.failures + failed,
            )
        )

    def save(
        self, claim: Claim, tokens: TokenSet, elapsed: float, now: int, over: int | None = None
    ) -> Saved | Overtaken:
        """Store a renewal's tokens by compare-and-set on the generation, or on that of a row that fell behind."""
        row = self.row_of(claim.grant)
        if row is None:
            return Overtaken(None, self.was_revoked(claim.grant))
        generation = claim.grant.generation + 1
        fell_behind = (row.generation, row.consented_at) == (over, claim.grant.consented_at)
        if not (self.saveable(row, claim) if over is None else fell_behind):
            stored = self.stored(row, now)
            assert stored is not None
            return Saved(stored) if (row.generation, row.saved_by) == (generation, claim.id) else Overtaken(stored)
        ends = refresh_end(tokens, elapsed, now)
        row = self._put(
            replace(
                row,
                status=row.status if row.status is GrantStatus.REVOKING else GrantStatus.ACTIVE,
                generation=generation,
                access_token=tokens.access_token.reveal(),
                refresh_token=None if tokens.refresh_token is None else tokens.refresh_token.reveal(),
                access_expires_at=access_end(tokens, elapsed, now),
                refresh_expires_at=row.refresh_expires_at if ends is None else ends,
                scopes=row.scopes if tokens.scopes is None else tokens.scopes,
                renewed_at=now,
                saved_by=claim.id,
                prompt=None,
                **NOTHING_IN_FLIGHT,
            )
        )
        stored = self.stored(row, now)
        assert stored is not None
        return Saved(stored)

    def was_revoked(self, grant: StoredGrant) -> bool:
        """Whether the row is gone because the grant was revoked."""
        return ("GrantRevoked", stable_id("GrantRevoked", grant.id)) in self.events

    def saveable(self, row: Row, claim: Claim) -> bool:
        """Whether the row is still at the generation that was redeemed, of the same consent."""
        before = claim.grant
        return (row.generation, row.consented_at) == (before.generation, before.consented_at)

    def mark(self, effect: MarkGrant, now: int) -> Marked | StoredGrant | None:
        """Mark the grant as the member's turn, if that is still true."""
        row = self.row_of(effect.grant)
        if row is None:
            return None
        if not self.markable(row, effect):
            return self.stored(row, now)
        row = self._put(
            replace(row, status=GrantStatus.NEEDS_REAUTHENTICATION, prompt=prompt_of(effect), **NOTHING_IN_FLIGHT)
        )
        self._asked(row, effect.cause)
        stored = self.stored(row, now)
        assert stored is not None
        return Marked(stored)

    def markable(self, row: Row, effect: MarkGrant) -> bool:
        """Whether what the mark says is about this row as it stands."""
        if effect.claim is not None:
            return self.ours(effect.claim) is not None and row.status is not GrantStatus.REVOKING
        in_flight = row.claim_id is not None or row.in_flight_since is not None
        return row.generation == effect.grant.generation and row.status is GrantStatus.ACTIVE and not in_flight

    def open_prompt(self, effect: OpenPrompt) -> Prompt:
        """Open a prompt, if the row is still the one that was read."""
        prompt = prompt_of(effect)
        before = effect.grant.prompt
        if before is not None and replace(prompt, opened_at=before.opened_at) == before:
            return before
        row = self.row_of(effect.grant)
        if row is not None and self.promptable(row, effect):
            self._put(replace(row, prompt=prompt))
            self._asked(row, effect.cause)
        return prompt

    def promptable(self, row: Row, effect: OpenPrompt) -> bool:
        """Whether the row is still the one that was read."""
        return (row.generation, row.status) == (effect.grant.generation, effect.grant.status)

    def consent(self, effect: SaveConsent, grant_id: str, elapsed: float, now: int) -> StoredGrant:
        """Store a consent over whatever the member has."""
        before = self.rows.get(effect.key)
        tokens = effect.tokens
        refresh = None if tokens.refresh_token is None else tokens.refresh_token.reveal()
        keeps = refresh is None and effect.keep_refresh_token and before is not None
        keeps = keeps and before is not None and before.status is not GrantStatus.REVOKING
        refresh_expires_at = refresh_end(tokens, elapsed, now)
        if keeps and before is not None:
            refresh = before.refresh_token
            refresh_expires_at = before.refresh_expires_at if refresh_expires_at is None else refresh_expires_at
        row = self._put(
            Row(
                id=before.id if before else grant_id,
                key=effect.key,
                status=GrantStatus.ACTIVE,
                generation=before.generation + 1 if before else 1,
                scopes=effect.scopes,
                access_token=tokens.access_token.reveal(),
                refresh_token=refresh,
                access_expires_at=access_end(tokens, elapsed, now),
                refresh_expires_at=refresh_expires_at,
                account=effect.account or (before.account if before else None),
                created_at=before.created_at if before else now,
                consented_at=now,
                renewed_at=None,
            )
        )
        self._told("GrantConnected", effect.event_id)
        stored = self.stored(row, now)
        assert stored is not None
        return stored

    def forget(self, grant: StoredGrant) -> bool:
        """Delete a grant's row."""
        gone = self.row_of(grant) is not None
        if gone:
            del self.rows[grant.key]
            self.changes += 1
            self._told("GrantForgotten", stable_id("GrantForgotten", grant.id))
        return gone

    def begin_revocation(self, key: GrantKey, now: int) -> StoredGrant | None:
        """Take a grant out of service, whatever its state."""
        row = self.rows.get(key)
        if row is not None:
            row = self._put(replace(row, status=GrantStatus.REVOKING, prompt=None, retry_at=None))
        return self.stored(row, now)

    def delete_revoked(self, effect: DeleteRevoked) -> bool:
        """Delete a grant that was revoked, with its news, if the claim on it still holds."""
        gone = self.deletable(effect.claim)
        if gone:
            grant = effect.claim.grant
            del self.rows[grant.key]
            self.changes += 1
            self._told("GrantRevoked", stable_id("GrantRevoked", grant.id))
        return gone

    def deletable(self, claim: Claim) -> bool:
        """Whether the row is still the one that was claimed, and nobody has connected it anew."""
        row = self.ours(claim)
        return row is not None and row.status is GrantStatus.REVOKING

    def load_pause(self, registration: str, credentials: str, now: int, *, probe: bool = False) -> Pause | None:
        """Read the pause of these credentials; of those who probe, one in a while may."""
        row = self.pauses.get(registration)
        if row is None or row.credentials != credentials:
            return None
        due = row.probe_at <= now
        if due and probe:
            self.pauses[registration] = row._replace(probe_at=now + round(self.PROBE_SECONDS * SECOND))
        return Pause(row.cause, row.fix, due)

    def pause(self, registration: str, credentials: str, cause: str, fix: str, now: int) -> bool:
        """Pause a registration; say whether that is news."""
        before = self.pauses.get(registration)
        probe_at = now + round(self.PROBE_SECONDS * SECOND)
        if before is not None and before.credentials == credentials:
            self.pauses[registration] = before._replace(probe_at=probe_at)
            return False
        self.pauses[registration] = PauseRow(credentials, cause, fix, probe_at)
        return True

    def end_pause(self, registration: str) -> None:
        """End a registration's pause."""
        self.pauses.pop(registration, None)

    def save_pending(self, pending: PendingAuthorization, lifetime: float, now: int) -> int:
        """Store an authorization that begins, and drop those that ended a day ago."""
        ends = now + round(lifetime * SECOND)
        self.pending[pending.state_digest] = PendingRow(pending, ends, consumed=False)
        for digest, row in list(self.pending.items()):
            if row.expires_at < now - 86_400 * SECOND:
                del self.pending[digest]
        return ends

    def consume_pending(
        self, digest: str, member: str, session: str | None, now: int
    ) -> PendingAuthorization | StateRefused:
        """Use a state up, once, for the member and session who began."""
        row = self.pending.get(digest)
        if row is None:
            return StateRefused("state_unknown")
        if row.pending.key.member != member or row.pending.session_digest not in (None, session):
            return StateRefused("state_foreign")
        if row.consumed:
            return StateRefused("state_replayed")
        if row.expires_at <= now:
            return StateRefused("state_expired")
        self.pending[digest] = row._replace(consumed=True)
        return row.pending


def unclaimed(row: Row, grant: StoredGrant) -> bool:
    """Whether there was no claim when *grant* was read, or one that had lapsed, and that is still so."""
    return (row.claim_id, row.claimed_until) == (grant.claim_id, grant.claimed_until) and not grant.claimed


def access_end(tokens: TokenSet, elapsed: float, now: int) -> int | None:
    """When the access token ends: ``expires_at`` wins over ``expires_in``, which counts from the request."""
    if tokens.expires_at is not None:
        return round(tokens.expires_at * SECOND)
    return None if tokens.expires_in is None else now + round((tokens.expires_in - elapsed) * SECOND)


def refresh_end(tokens: TokenSet, elapsed: float, now: int) -> int | None:
    """When the refresh token ends."""
    return None if tokens.refresh_expires_in is None else now + round((tokens.refresh_expires_in - elapsed) * SECOND)


def prompt_of(effect: MarkGrant | OpenPrompt) -> Prompt:
    """The prompt that an effect asks for; what was missing before is still missing."""
    grant = effect.grant
    missing_before = grant.prompt.scopes if grant.prompt else ()
    return Prompt(
        grant.key.registration,
        grant.key.member,
        effect.cause,
        scope_set((*missing_before, *effect.scopes)),
        to_datetime(grant.now),
        effect.acr_values,
        effect.claims,
    )


# --- authorization server and resource server ------------------------------------------------------------------------


class Issued(NamedTuple):
    """A token, of a family (one consent) and a number within it. ``at``: when it was spent, or ends."""

    family: int
    number: int
    at: int | None = None


class Presentation(NamedTuple):
    """One presentation of a refresh token."""

    token: str
    who: str
    at: int
    verdict: str
    """``issued``, ``refused`` (the grant is dead) or another answer that spends nothing."""
    access_dead: bool
    """Whether the access token of the same generation was of no use any more."""
    successor: str | None = None


EXPIRED = 'Bearer error="invalid_token", error_description="The access token expired"'
REVOKED = 'Bearer error="invalid_token", error_description="The access token was revoked"'
INVALID = 'Bearer error="invalid_token"'


class Server:
    """Issues tokens in families, rotates refresh tokens as its profile says, and answers API calls."""

    def __init__(self, rotation: Rotation, grace: float = 30.0) -> None:
        self.rotation = rotation
        self.grace = grace
        self.refresh: dict[str, Issued] = {}
        self.access: dict[str, Issued] = {}
        self.dead: frozenset[int] = frozenset()
        """Families that were revoked."""
        self.used: frozenset[str] = frozenset()
        """Access tokens that were used since they were issued."""
        self.reused: frozenset[int] = frozenset()
        """Families that died because a spent refresh token was presented."""
        self.killed: frozenset[str] = frozenset()
        """Access tokens that are dead before their time."""
        self.kills_access = False
        """Whether a renewal kills the access token before it (GitLab does)."""
        self.weather: tuple[str, ...] = ()
        """Answers of the token endpoint that come before any honest one; ``lost`` does what it should and answers 502."""
        self.presented: tuple[Presentation, ...] = ()
        self.refused: frozenset[str] = frozenset()
        """Access tokens that the API refused as dead."""
        self.families = 0
        self.narrow = False
        """Whether a revocation ends what was issued up to that token only: what a late renewal brings would live on."""
        self.ended: tuple[tuple[int, int], ...] = ()
        """Family and number of what such a revocation ended."""
        self.revoked: tuple[str, ...] = ()
        """The tokens that the revocation endpoint was shown, as they came."""
        self.revocation_weather = 0
        """How many revocation requests are answered 503 before any is dealt with."""

    def copy(self) -> Server:
        """The same, apart."""
        twin = shallow(self)
        twin.refresh, twin.access = dict(self.refresh), dict(self.access)
        return twin

    def state(self) -> Hashable:
        """All that makes a difference."""
        return (
            tuple(self.refresh.items()),
            tuple(self.access.items()),
            self.dead,
            self.reused,
            self.used,
            self.killed,
            self.weather,
            self.presented,
            self.refused,
            self.ended,
            self.revoked,
            self.revocation_weather,
        )

    def new_family(self, now: int, *, life: float = LIFE, refresh: bool = True) -> TokenSet:
        """A member's consent."""
        self.families += 1
        return self._issue(self.families, now, life, refresh=refresh)

    def another_access_token(self, family: int, now: int) -> TokenSet:
        """A consent that brings no refresh token of its own: the one before goes on."""
        return self._issue(family, now, LIFE, refresh=False)

    def _issue(self, family: int, now: int, life: float, *, refresh: bool = True) -> TokenSet:
        number = sum(1 for each in self.access.values() if each.family == family) + 1
        access, token = f"access-{family}.{number}", f"refresh-{family}.{number}"
        self.access[access] = Issued(family, number, now + round(life * SECOND))
        if refresh:
            self.refresh[token] = Issued(family, number)
        return TokenSet(access_token=Secret(access), refresh_token=Secret(token) if refresh else None, expires_in=life)

    def serves(self, access: str, now: int) -> bool:
        """Whether an access token is good."""
        issued = self.access.get(access)
        alive = issued is not None and issued.at is not None and now < issued.at
        dead = issued is None or issued.family in self.dead or self._ended(issued) or access in self.killed
        return alive and not dead

    def _ended(self, issued: Issued) -> bool:
        """Whether a narrow revocation ended a token."""
        return any(issued.family == family and issued.number <= number for family, number in self.ended)

    def redeemable(self, token: str | None, now: int) -> bool:
        """Whether a refresh token would bring new tokens now."""
        issued = self.refresh.get(token or "")
        if issued is None or issued.family in self.dead or self._ended(issued):
            return False
        if issued.at is None or self.rotation is Rotation.NONE:
            return True
        match self.rotation:
            case Rotation.BY_USE:
                return not self._overtaken(issued)
            case Rotation.GRACE:
                return now < issued.at + self.grace * SECOND
            case _:
                return False

    def _overtaken(self, issued: Issued) -> bool:
        """By use: whether a later token of the family was used."""
        used = [each for name, each in self.access.items() if name in self.used]
        used += [each for each in self.refresh.values() if each.at is not None]
        return any(each.family == issued.family and each.number > issued.number for each in used)

    def redeem(self, token: str, who: str, now: int, access_dead: bool) -> Answer:
        """Answer a presentation of a refresh token."""
        if self.weather:
            said, self.weather = self.weather[0], self.weather[1:]
            if said == "lost":
                later, self.weather = self.weather, ()
                self.redeem(token, who, now, access_dead)
                self.weather = later
            else:
                self._log(token, who, now, said, access_dead)
            return TOKEN_ANSWERS[said]
        if not self.redeemable(token, now):
            issued = self.refresh.get(token)
            if issued is not None and issued.at is not None and self.rotation in (Rotation.STRICT, Rotation.GRACE):
                self.reused |= {issued.family} - self.dead
                self.dead |= {issued.family}
            self._log(token, who, now, "refused", access_dead)
            return TOKEN_ANSWERS["invalid_grant"]
        issued = self.refresh[token]
        rotates = self.rotation is not Rotation.NONE
        tokens = self._issue(issued.family, now, LIFE, refresh=rotates)
        if rotates:
            self.refresh[token] = issued._replace(at=now if issued.at is None else issued.at)
        if self.kills_access:
            self.killed |= {
                name
                for name, each in self.access.items()
                if each.family == issued.family and name != tokens.access_token.reveal()
            }
        self._log(token, who, now, "issued", access_dead, tokens.access_token.reveal())
        members: dict[str, object] = {"access_token": tokens.access_token.reveal(), "expires_in": LIFE}
        if tokens.refresh_token is not None:
            members["refresh_token"] = tokens.refresh_token.reveal()
        return token_answer(200, members)

    def revoke(self, token: str) -> Answer:
        """Answer the revocation of a token: a refresh token takes its family along, or, narrowly, what came before it."""
        if self.revocation_weather:
            self.revocation_weather -= 1
            return TOKEN_ANSWERS["server_error"]
        self.revoked = (*self.revoked, token)
        issued = self.refresh.get(token)
        if issued is None:
            self.killed |= {token}
        elif self.narrow:
            self.ended = (*self.ended, (issued.family, issued.number))
        else:
            self.dead |= {issued.family}
        return Answer(200)

    def living(self, family: int, now: int) -> set[str]:
        """The tokens of a family that are of use to whoever has them."""
        access = {name for name, each in self.access.items() if each.family == family and self.serves(name, now)}
        refresh = {name for name, each in self.refresh.items() if each.family == family and self.redeemable(name, now)}
        return access | refresh

    def _log(
        self, token: str, who: str, now: int, verdict: str, access_dead: bool, successor: str | None = None
    ) -> None:
        self.presented = (*self.presented, Presentation(token, who, now, verdict, access_dead, successor))

    def api(self, access: str, now: int) -> Answer:
        """Answer an API call."""
        self.used |= {access}
        if self.serves(access, now):
            return Answer(200)
        self.refused |= {access}
        issued = self.access.get(access)
        over = issued is not None and issued.at is not None and now >= issued.at
        return challenge(EXPIRED if over else REVOKED)


def challenge(value: str, status: int = 401) -> Answer:
    """A refusal with a WWW-Authenticate header."""
    return Answer(status, (("www-authenticate", value),), b"")


def token_answer(status: int, members: dict[str, object], **headers: str) -> Answer:
    """A token endpoint's answer."""
    more = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(status, (("content-type", "application/json"), *more), json.dumps(members).encode())


TOKEN_ANSWERS = {
    "invalid_grant": token_answer(400, {"error": "invalid_grant"}),
    "invalid_client": token_answer(401, {"error": "invalid_client"}),
    "rate_limited": token_answer(429, {}, retry_after="20"),
    "server_error": token_answer(503, {}),
    "lost": token_answer(502, {}),
}


# --- the world -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LastLook(Effect[bool]):
    """The driver's last hook before a token request is written: does the claim still hold?"""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Present(Effect[Redeemed]):
    """The request arrives at the token endpoint. What happens next to its sender is another step."""

    claim: Claim
    refresh_token: Secret


@dataclass(frozen=True, slots=True)
class RestoreBackup(Effect[None]):
    """The database is as it was when *row* was written: whatever was committed since is gone."""

    row: Row


@dataclass
class World:
    """Performs effects in memory. Whatever it raises is a :class:`Violation`."""

    profile: Profile
    server: Server
    store: ModelStore = field(default_factory=ModelStore)
    now: int = START
    ids: tuple[tuple[str, int], ...] = ()
    dropped: frozenset[str] = frozenset()
    """Access tokens that a save found to be nobody's any more."""
    delivered: frozenset[str] = frozenset()
    """Access tokens of renewals whose sender tried to save them."""
    slandered: bool = False
    """Whether the API calls a grant revoked that is not."""
    unsaved: int = 0
    """How often the store cannot be written when new tokens are saved."""
    holders: frozenset[tuple[str, str]] = frozenset()
    """Who had which tokens in hand (access and refresh token) to save."""

    def copy(self) -> World:
        """The same, apart."""
        twin = shallow(self)
        twin.server, twin.store = self.server.copy(), self.store.copy()
        return twin

    def state(self) -> Hashable:
        """All that makes a difference."""
        return self.now, self.store.state(), self.server.state(), self.dropped, self.holders, self.ids, self.unsaved

    @property
    def row(self) -> Row | None:
        """The one grant's row."""
        return self.store.rows.get(KEY)

    def connect(self, *, life: float = LIFE, refresh: bool = True, age: float = 0.0) -> StoredGrant:
        """The member consents, and *age* seconds pass."""
        tokens = self.server.new_family(self.now, life=life, refresh=refresh)
        grant = self.store.consent(
            SaveConsent(
                KEY, tokens, ("read",), None, keep_refresh_token=False, sent_at=None, event_id=self.new_id("setup")
            ),
            self.new_id("setup"),
            0.0,
            self.now,
        )
        self.now += round(age * SECOND)
        return grant

    def new_id(self, who: str) -> str:
        """A random id that is none: 32 hexadecimal digits that name who asked, and how often."""
        counts = dict(self.ids)
        counts[who] = counts.get(who, 0) + 1
        self.ids = tuple(sorted(counts.items()))
        return f"{counts[who]:04x}{who.encode().hex():0<28}"[:32]

    def perform(self, who: str, effect: Effect[Any]) -> object:
        """Answer an effect of somebody's flow."""
        store, now = self.store, self.now
        match effect:
            case LoadGrant(key):
                return store.load(key, now)
            case OpenAccessToken(grant):
                text = opened(grant, "access_token")
                if text not in store.committed:
                    raise Violation("an access token is used that was never stored")
                if grant.status is not GrantStatus.ACTIVE:
                    raise Violation("a token of a grant that does not stand is used")
                return AccessToken(text, grant_id=grant.id, generation=grant.generation)
            case CallApi(token):
                answer = self.server.api(token.reveal(), now)
                return Reply(token.fingerprint, answer=answer if answer.status >= 400 else None)
            case Discard() | SpillTokens() | RememberSecret():
                pass
            case Repeatable():
                return True
            case CountRefusal():
                return False
            case Sleep(seconds):
                self.now += round(seconds * SECOND)
            case NewId():
                return self.new_id(who)
            case ClaimGrant(grant, lease, forced, revoking):
                return store.claim(grant, self.new_id(who), lease, now, forced=forced, revoking=revoking)
            case ReleaseClaim(claim, in_doubt, retry_after, failed):
                store.release(claim, now, in_doubt=in_doubt, retry_after=retry_after, failed=failed)
            case OpenRefreshToken(claim):
                return OpenedRefreshToken(Secret(opened(claim.grant, "refresh_token")))
            case SecretInUse():
                return 0
            case LastLook(claim):
                return self.last_look(claim)
            case Present(claim, refresh_token):
                return self.present(who, claim, refresh_token)
            case Introspect():
                return None
            case SaveTokens(claim, tokens, sent_at, over):
                return self.save(who, claim, tokens, sent_at, over)
            case MarkGrant():
                return self.mark(effect)
            case OpenPrompt():
                return store.open_prompt(effect)
            case Announce(event, _):
                store.events = (*store.events, (type(event).__name__, event.id))
            case LoadPause(registration, probe):
                return store.load_pause(registration, "credentials", now, probe=probe)
            case PauseRegistration(registration, cause, fix):
                store.pause(registration, "credentials", cause, fix, now)
            case EndPause(registration):
                store.end_pause(registration)
            case SaveConsent():
                elapsed = 0.0 if effect.sent_at is None else now / SECOND - effect.sent_at
                return store.consent(effect, self.new_id(who), elapsed, now)
            case ForgetGrant(grant):
                return store.forget(grant)
            case RestoreBackup(row):
                store.rows[row.key] = row
                store.changes += 1
            case BeginRevocation(key):
                return store.begin_revocation(key, now)
            case OpenToRevoke(claim):
                column = "refresh_token" if claim.grant.sealed_refresh_token else "access_token"
                return OpenedToRevoke(Secret(opened(claim.grant, column)), column)
            case RevokeToken(_, secret):
                return Redeemed(self.server.revoke(secret.reveal()), now / SECOND)
            case DeleteRevoked():
                return store.delete_revoked(effect)
            case _:
                raise Violation(f"nobody here performs {effect!r}")
        return None

    def last_look(self, claim: Claim) -> bool:
        """What the driver does just before the request is written."""
        if self.now / SECOND - claim.taken_at <= EXTEND_AFTER:
            return True
        return self.store.extend(claim, self.now)

    def present(self, who: str, claim: Claim, refresh_token: Secret) -> Redeemed:
        """The request arrives: whatever the row says now, the server answers."""
        token, access = refresh_token.reveal(), opened(claim.grant, "access_token")
        expired = claim.grant.access_expires_at is not None and self.now >= claim.grant.access_expires_at
        dead = expired or access in self.server.refused
        earlier = [each for each in self.server.presented if each.token == token and each.verdict != "invalid_client"]
        row = self.store.row_of(claim.grant)
        before = (claim.grant.generation, claim.grant.consented_at)
        if row is not None and (row.generation, row.consented_at) == before and row.claim_id != claim.id:
            raise Violation("a refresh token is presented by a process whose claim is somebody else's, or nobody's")
        if earlier and self.profile.effective_rotation is Rotation.STRICT and not dead:
            raise Violation("a strict refresh token is presented again while its access token is of use")
        return Redeemed(self.server.redeem(token, who, self.now, dead), self.now / SECOND)

    def save(
        self, who: str, claim: Claim, tokens: TokenSet, sent_at: float, over: int | None = None
    ) -> Saved | Overtaken | Unsaved:
        """Store new tokens, if the store can be written."""
        self.delivered |= {tokens.access_token.reveal()}
        held = (tokens.access_token, tokens.refresh_token)
        self.holders |= {(who, each.reveal()) for each in held if each is not None}
        if self.unsaved:
            self.unsaved -= 1
            return Unsaved("down")
        saved = self.store.save(claim, tokens, self.now / SECOND - sent_at, self.now, over)
        if isinstance(saved, Overtaken):
            self.dropped |= {tokens.access_token.reveal()}
        return saved

    def mark(self, effect: MarkGrant) -> Marked | StoredGrant | None:
        """Mark the grant; nobody else's renewal of it may be under way."""
        before = self.row
        marked = self.store.mark(effect, self.now)
        ours = (None, effect.claim.id if effect.claim else None)
        if isinstance(marked, Marked) and before is not None and before.claim_id not in ours:
            raise Violation("a grant is marked while somebody else's renewal of it is under way")
        return marked

    # --- what must hold ---

    def check(self) -> None:
        """At every step: who is marked is dead at the provider, and a dead token was seen to be refused."""
        row = self.row
        if row is None or row.status is not GrantStatus.NEEDS_REAUTHENTICATION:
            return
        if not self.slandered and self.server.redeemable(row.refresh_token, self.now):
            raise Violation("a grant is marked whose refresh token would still bring new ones")
        refused = {each.token for each in self.server.presented if each.verdict == "refused"}
        if row.refresh_token not in refused and row.access_token not in self.server.refused:
            raise Violation("a grant is marked without a definitive answer about its own tokens")
        if row.prompt is None or not any(kind == "ReauthenticationNeeded" for kind, _ in self.store.events):
            raise Violation("a grant is marked, and nobody was told")

    def check_end(self, *, lossless: bool = True) -> None:
        """At the end: nobody's claim is left, no delivered token is missing, and no living grant is lost."""
        row = self.row
        missing = self.delivered - self.store.committed - self.dropped
        if missing:
            raise Violation(f"delivered and neither stored nor overtaken: {sorted(missing)}")
        if not lossless or row is None or row.refresh_token is None:
            return
        family = self.server.refresh[row.refresh_token].family
        if family in self.server.reused:
            raise Violation("the family died because a spent refresh token was presented")
        if family not in self.server.dead and not self.server.redeemable(row.refresh_token, self.now):
            raise Violation(f"the grant is lost: {row.refresh_token} is spent, and nothing else is stored")

    def presentations(self, token: str | None = None) -> list[Presentation]:
        """The presentations of a refresh token, or of all."""
        return [each for each in self.server.presented if token in (None, each.token)]


# --- flows as processes ----------------------------------------------------------------------------------------------


def a_process(flow: Flow[Any], case: Case) -> Generator[Effect[Any], Any, Any]:
    """Run a flow as a process of its own would: its renewals are flows, its token requests two steps."""
    answer: object = None
    while True:
        try:
            effect = flow.send(answer)
        except StopIteration as finished:
            return finished.value
        match effect:
            case Renew():
                answer = yield from renewing(case, job_of(case, effect))
            case StartRenewal(key, seen):
                yield from renewing(case, job_of(case, Renew(key, seen)))
                answer = None
            case Redeem(claim, refresh_token):
                if (yield LastLook(claim)):
                    answer = yield Present(claim, refresh_token)
                else:
                    answer = Redeemed(NeverSent(CLAIM_LOST), 0.0)
            case _:
                answer = yield effect


def renewing(case: Case, job: RenewalJob) -> Generator[Effect[Any], Any, Any]:
    """Renew as a process does; inside a grace it replays by itself (``drivers.runner``)."""
    outcome = yield from a_process(renew(job), case)
    if isinstance(outcome, Weather) and outcome.follow_up is not None:
        yield Sleep(outcome.follow_up)
        yield from renewing(case, replace(job, refused=False, forced=False))
    return outcome


def job_of(case: Case, effect: Renew) -> RenewalJob:
    """The renewal that an effect asks for."""
    return RenewalJob(
        case.key,
        case.registration,
        case.profile,
        effect.seen,
        effect.refused,
        effect.forced,
        effect.minimum_lifetime,
        case.leeway,
    )


# --- flows by hand ---------------------------------------------------------------------------------------------------


class Script:
    """Drives a flow by hand: each step says which effect is expected, and what the answer to it is."""

    def __init__(self, flow: Flow[Any]) -> None:
        self._flow = flow
        self._answer: object = None

    def step(self, kind: type[E], answer: object = None) -> E:
        """The flow wants an effect of this kind now; it gets the answer at the next step. Returns the effect."""
        effect = self._flow.send(self._answer)
        assert type(effect) is kind, f"expected {kind.__name__}, and the flow wants {effect!r}"
        self._answer = answer
        return effect

    def end(self) -> Any:
        """The flow returns now. Returns what it returned."""
        try:
            effect = self._flow.send(self._answer)
        except StopIteration as finished:
            return finished.value
        raise AssertionError(f"the script has ended, and the flow wants {effect!r}")

    def fails(self, kind: type[X]) -> X:
        """The flow raises now. Returns the error, which is of exactly this kind."""
        try:
            effect = self._flow.send(self._answer)
        except kind as error:
            if type(error) is kind:
                return error
            raise
        raise AssertionError(f"the script has ended, and the flow wants {effect!r}")


def a_grant(**changes: Any) -> StoredGrant:
    """A grant that was renewed ten minutes ago, connected an hour ago, and is good for fifty minutes."""
    values: dict[str, Any] = {
        "id": "8000" + "0" * 28,
        "key": KEY,
        "status": GrantStatus.ACTIVE,
        "generation": 4,
        "scopes": ("read",),
        "sealed_access_token": b"sealed access",
        "sealed_refresh_token": b"sealed refresh",
        "access_expires_at": START + 3000 * SECOND,
        "refresh_expires_at": None,
        "account": None,
        "created_at": START - 3600 * SECOND,
        "consented_at": START - 3600 * SECOND,
        "renewed_at": START - 600 * SECOND,
        "claim_id": None,
        "claimed_until": None,
        "in_flight_since": None,
        "in_flight_tries": 0,
        "retry_at": None,
        "failures": 0,
        "prompt": None,
        "now": START,
    }
    return StoredGrant(**values | changes)


def a_token(grant: StoredGrant, text: str = "access-4") -> AccessToken:
    """The grant's access token, opened."""
    return AccessToken(text, grant_id=grant.id, generation=grant.generation)
