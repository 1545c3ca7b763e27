"""What a flow may ask of the outside.

A flow is a generator that yields effects and is sent their answers: ``grant = yield from LoadGrant(key)``. Each effect
is a frozen dataclass that declares the type of its answer. Rules that keep the flows readable:

1. What the core has an opinion on comes back as a value; exceptions of the outside pass by the flow (the driver closes
   it and lets them go), so flows need no ``try``.
2. There is no clock, no randomness and no logging in a flow: time comes with the rows (the database's) or is an effect.
3. A grant is always named together with its generation (:class:`Seen`): evidence, claims and saves concern nothing else.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from tokenkeeper.core.token_endpoint import NeverSent, TokenSet, Unanswered
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.events import Event
from tokenkeeper.model import (
    AccessToken,
    Answer,
    Diagnosis,
    Freshness,
    Grant,
    GrantKey,
    GrantStatus,
    HeaderPairs,
    Prompt,
    Secret,
    to_datetime,
)

A = TypeVar("A")
T = TypeVar("T")

SECOND = 1_000_000
"""The store counts time in microseconds since the epoch; the flows' durations are float seconds."""


class Effect(Generic[A]):
    """Something asked of the outside; ``A`` is the type of the answer."""

    __slots__ = ()

    def __iter__(self) -> Generator[Effect[Any], Any, A]:
        answer: A = yield self
        return answer


Flow: TypeAlias = Generator[Effect[Any], Any, T]


@dataclass(frozen=True, slots=True)
class Seen:
    """The token set that evidence is about: a grant and its generation."""

    grant_id: str
    generation: int


@dataclass(slots=True, kw_only=True, unsafe_hash=True)  # frozen, each read costs 5 % more (benchmarks/store_read.py)
class StoredGrant:
    """A grant's row as it was read; nobody changes it.

    Times are microseconds since the epoch by the database's clock; ``now`` is that clock.
    """

    id: str
    key: GrantKey
    status: GrantStatus
    generation: int
    scopes: tuple[str, ...]
    sealed_access_token: bytes = field(repr=False)
    sealed_refresh_token: bytes | None = field(repr=False)
    access_expires_at: int | None
    refresh_expires_at: int | None
    account: str | None
    created_at: int
    consented_at: int
    renewed_at: int | None
    claim_id: str | None
    claimed_until: int | None
    in_flight_since: int | None
    in_flight_tries: int
    retry_at: int | None
    failures: int
    prompt: Prompt | None
    now: int
    read_at: float = 0.0
    """The reader's monotonic clock (seconds) just before the row was read."""

    @property
    def seen(self) -> Seen:
        """What evidence against this token set names."""
        return Seen(self.id, self.generation)

    def newer_than(self, seen: Seen) -> bool:
        """Whether this is a later token set, or another consent altogether."""
        return self.id != seen.grant_id or self.generation > seen.generation

    @property
    def claimed(self) -> bool:
        """Whether somebody's claim holds, by the database's clock."""
        lapsed = self.claimed_until is not None and self.claimed_until < self.now
        return self.claim_id is not None and not lapsed

    @property
    def abandoned(self) -> bool:
        """Whether a refresh token was presented and nobody waits for its outcome: in doubt, or its claim has lapsed."""
        return self.in_flight_since is not None and not self.claimed

    @property
    def issued_at(self) -> int:
        """When the current tokens were stored."""
        return max(self.consented_at, self.renewed_at or 0)

    def aging_at(self, leeway: float | None = None) -> int | None:
        """When renewal should start: the leeway (seconds) before the end, ± 20 % by grant, so that not all start at once."""
        if self.access_expires_at is None:
            return None
        life = (self.access_expires_at - self.issued_at) / SECOND
        leeway = min(300.0, life * 0.1) if leeway is None else leeway
        spread = 0.8 + 0.4 * int(self.id[:4] or "0", 16) / 0xFFFF
        return self.access_expires_at - round(max(leeway, 0.0) * spread * SECOND)

    def freshness(self, leeway: float | None = None) -> Freshness:
        """Return the access token's age by the database's clock."""
        aging_at = self.aging_at(leeway)
        if aging_at is None or self.access_expires_at is None:
            return Freshness.UNKNOWN
        if self.now >= self.access_expires_at:
            return Freshness.EXPIRED
        return Freshness.AGING if self.now >= aging_at else Freshness.FRESH

    def seconds_left(self) -> float | None:
        """Seconds until the access token expires by the database's clock (negative: since), or None if unknown."""
        return None if self.access_expires_at is None else (self.access_expires_at - self.now) / SECOND

    def public(self) -> Grant:
        """The grant without its secrets, for the host."""
        return Grant(
            id=self.id,
            registration=self.key.registration,
            member=self.key.member,
            status=self.status,
            scopes=self.scopes,
            generation=self.generation,
            access_expires_at=to_datetime(self.access_expires_at),
            refresh_expires_at=to_datetime(self.refresh_expires_at),
            has_refresh_token=self.sealed_refresh_token is not None,
            prompt=self.prompt,
            created_at=to_datetime(self.created_at),  # type: ignore[arg-type]
            renewed_at=to_datetime(self.renewed_at),
        )


# --- the store -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadGrant(Effect["StoredGrant | None"]):
    """Read the grant's row, always from the store."""

    key: GrantKey


@dataclass(frozen=True, slots=True)
class OpenAccessToken(Effect[AccessToken]):
    """Open the sealed access token for use, and remember it in memory."""

    grant: StoredGrant


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to redeem one generation's refresh token; ``taken_at`` is monotonic, from before its statement was sent."""

    id: str
    grant: StoredGrant
    taken_at: float
    lease: float
    probing: bool = False
    """Whether its renewal tries if the registration's pause is over."""

    @property
    def in_doubt(self) -> bool:
        """Whether the refresh token was presented before, with an outcome that nobody knows."""
        return self.grant.in_flight_tries > 1


@dataclass(frozen=True, slots=True)
class ClaimGrant(Effect["Claim | None"]):
    """Take the claim in one statement, committed before anything is sent. None: somebody or something stood in the way."""

    grant: StoredGrant
    lease: float
    forced: bool = False
    revoking: bool = False
    """To revoke the grant, not to renew it: then its status is ``revoking``, and it may have no refresh token."""


@dataclass(frozen=True, slots=True)
class ReleaseClaim(Effect[None]):
    """Give the claim back. ``in_doubt`` keeps the in-flight mark; ``retry_after`` (seconds) holds everybody off."""

    claim: Claim
    in_doubt: bool
    retry_after: float | None = None
    failed: bool = True


@dataclass(frozen=True, slots=True)
class Saved:
    """The new tokens are stored."""

    grant: StoredGrant


@dataclass(frozen=True, slots=True)
class Overtaken:
    """The row has moved on (a newer consent), or is gone: these tokens are nobody's any more.

    ``revoked``: it is gone because the grant was revoked, so the tokens should not live on at the provider either.
    """

    grant: StoredGrant | None
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Unsaved:
    """The store could not be written just now; the tokens are still only in memory (and in the spill file)."""

    reason: str


@dataclass(frozen=True, slots=True)
class SaveTokens(Effect["Saved | Overtaken | Unsaved"]):
    """Store a renewal's tokens by compare-and-set on grant and generation, with its event, in one transaction."""

    claim: Claim
    tokens: TokenSet
    sent_at: float
    over: int | None = None
    """The generation that the row is at, where it has fallen *behind* the claim's: a backup was restored."""


@dataclass(frozen=True, slots=True)
class SpillTokens(Effect[None]):
    """Append the sealed tokens to the spill file and fsync, where there is one, before they are saved."""

    claim: Claim
    tokens: TokenSet
    sent_at: float


@dataclass(frozen=True, slots=True)
class Marked:
    """The grant now waits for its member; ``grant`` is the row with its prompt."""

    grant: StoredGrant


@dataclass(frozen=True, slots=True)
class MarkGrant(Effect["Marked | StoredGrant | None"]):
    """Mark the grant as the member's turn, naming generation and claim (None: only if nothing is in flight).

    The answer is Marked; or the row as it stands, where the mark would have been wrong; or None where it is gone.
    """

    grant: StoredGrant
    cause: str
    claim: Claim | None = None
    scopes: tuple[str, ...] = ()
    acr_values: str | None = None
    claims: str | None = None


@dataclass(frozen=True, slots=True)
class OpenPrompt(Effect[Prompt]):
    """Open a prompt (one a grant and cause) and leave the grant as it is: status, generation and tokens stay."""

    grant: StoredGrant
    cause: str
    scopes: tuple[str, ...] = ()
    acr_values: str | None = None
    claims: str | None = None


@dataclass(frozen=True, slots=True)
class Announce(Effect[None]):
    """Record news that changes no grant; one that the event table has already is not told again.

    ``every``: the same news is told again after so many seconds (None: never).
    """

    event: Event
    every: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """A registration is paused: its own credentials were refused. A new secret, or time, ends it."""

    cause: str
    fix: str
    due: bool = False
    """Whether it is time to try whether it is over; to who asked to probe: whether that one may."""


@dataclass(frozen=True, slots=True)
class LoadPause(Effect["Pause | None"]):
    """Read the registration's pause, for the credentials in use.

    ``probe``: take the one chance in a while to try whether it is over, if it is time.
    """

    registration: str
    probe: bool = False


@dataclass(frozen=True, slots=True)
class PauseRegistration(Effect[None]):
    """Pause all renewals of the registration, for all workers; one event a pause."""

    registration: str
    cause: str
    fix: str


@dataclass(frozen=True, slots=True)
class EndPause(Effect[None]):
    """End the registration's pause: its credentials work. Where the store does not answer, the next probe does it."""

    registration: str


@dataclass(frozen=True, slots=True)
class ForgetGrant(Effect[bool]):
    """Delete the grant's row, at once; the answer says whether it was there."""

    grant: StoredGrant


@dataclass(frozen=True, slots=True)
class BeginRevocation(Effect["StoredGrant | None"]):
    """Take the grant out of service, whatever its state: from now on nobody is served or may claim a renewal."""

    key: GrantKey


@dataclass(frozen=True, slots=True)
class DeleteRevoked(Effect[bool]):
    """Delete the claimed row of a grant that was revoked, with its news; False: the row has moved on."""

    claim: Claim
    outcome: str


# --- the authorization server ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenedRefreshToken:
    """The refresh token, opened; and sealing was proved to work."""

    secret: Secret


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """Something of the operator's stands in the way, and nothing was sent: the grant is as it was."""

    error: ConfigurationError


@dataclass(frozen=True, slots=True)
class OpenRefreshToken(Effect["OpenedRefreshToken | Misconfigured"]):
    """Open the claimed refresh token and prove that sealing works, before anything is sent."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Redeemed:
    """What came of a token request; ``sent_at`` is monotonic, from just before it was sent."""

    outcome: Answer | NeverSent | Unanswered | Misconfigured
    sent_at: float


@dataclass(frozen=True, slots=True)
class Redeem(Effect[Redeemed]):
    """Present the refresh token at the token endpoint, if the claim still holds at the last moment."""

    claim: Claim
    refresh_token: Secret
    deadline: float
    secret: int
    """Which of the registration's client secrets to use."""


@dataclass(frozen=True, slots=True)
class SecretInUse(Effect[int]):
    """Ask which of the registration's client secrets worked last."""

    registration: str


@dataclass(frozen=True, slots=True)
class RememberSecret(Effect[None]):
    """Remember which of the registration's client secrets works."""

    registration: str
    secret: int


@dataclass(frozen=True, slots=True)
class OpenedToRevoke:
    """The token that ends the grant: the refresh token, or the access token where there is no other."""

    secret: Secret
    hint: str


@dataclass(frozen=True, slots=True)
class OpenToRevoke(Effect["OpenedToRevoke | Misconfigured"]):
    """Open the claimed grant's newest token that can be revoked."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class RevokeToken(Effect[Redeemed]):
    """Ask the revocation endpoint to end a token (RFC 7009 section 2.1)."""

    registration: str
    token: Secret
    hint: str
    deadline: float
    secret: int
    """Which of the registration's client secrets to use."""


@dataclass(frozen=True, slots=True)
class Introspect(Effect["str | None"]):
    """Ask the introspection endpoint (RFC 7662) what became of a refresh token; None: it did not say."""

    registration: str
    token: Secret
    deadline: float


# --- renewals, the call, and waiting ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renewed:
    """New tokens were stored by this renewal."""

    grant: StoredGrant


@dataclass(frozen=True, slots=True)
class Adopted:
    """The store holds tokens that serve: newer ones, or the same, still good."""

    grant: StoredGrant


@dataclass(frozen=True, slots=True)
class MemberTurn:
    """Only the member can help. ``marked`` tells whether the row says so too."""

    cause: str
    prompt: Prompt | None
    diagnosis: Diagnosis | None = None
    grant: StoredGrant | None = None
    marked: bool = True
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class OperatorTurn:
    """Only the operator can help; the grant is as it was."""

    cause: str
    message: str
    fix: str
    diagnosis: Diagnosis | None = None
    error: ConfigurationError | None = None


@dataclass(frozen=True, slots=True)
class Weather:
    """Nobody's turn; the grant is as it was. ``follow_up``: seconds after which the keeper replays by itself."""

    cause: str
    retry_after: float | None = None
    diagnosis: Diagnosis | None = None
    follow_up: float | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no such grant (any more)."""


@dataclass(frozen=True, slots=True)
class InProgress:
    """The caller's patience ended before the renewal did."""


Outcome: TypeAlias = Renewed | Adopted | MemberTurn | OperatorTurn | Weather | Gone
"""What came of a renewal: a value that all who wait share."""


@dataclass(frozen=True, slots=True)
class Renew(Effect["Outcome | InProgress"]):
    """Join the grant's renewal in this process, or start it, and wait for its outcome as long as patience lasts.

    ``seen`` is the token set that is not good enough (None: whichever is stored); ``refused``: the provider refused it;
    ``forced``: renew whatever the clock, a mark or a back-off says; ``minimum_lifetime``: seconds it must still live.
    """

    key: GrantKey
    seen: Seen | None
    refused: bool = False
    forced: bool = False
    minimum_lifetime: float = 0.0


@dataclass(frozen=True, slots=True)
class StartRenewal(Effect[None]):
    """Start the grant's renewal in the background, if none is under way; nobody waits for it."""

    key: GrantKey
    seen: Seen


@dataclass(frozen=True, slots=True)
class Reply:
    """What the user's function returned or raised, and what could be read of the answer in it.

    ``answer`` is None where there is nothing to judge: a success, or something that is no answer of a provider.
    """

    value: object = field(repr=False)
    raised: bool = False
    answer: Answer | None = None
    method: str | None = None
    url: str | None = field(default=None, repr=False)
    request_headers: HeaderPairs = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class CallApi(Effect[Reply]):
    """Call the user's function with the token, and read what it answered."""

    token: AccessToken


@dataclass(frozen=True, slots=True)
class Discard(Effect[None]):
    """Close an answer that will not be passed on."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Repeatable(Effect[bool]):
    """Ask whether the call can be made again: no argument is a used-up stream."""


@dataclass(frozen=True, slots=True)
class CountRefusal(Effect[bool]):
    """Count a member whose renewed token was refused; True: so many of the registration that it must be the provider."""

    key: GrantKey


@dataclass(frozen=True, slots=True)
class Sleep(Effect[None]):
    """Wait for that many seconds, or until the keeper closes.

    ``idle``: nothing is in hand. Then a keeper that closes does not go on, and the flow ends with an error.
    """

    seconds: float
    idle: bool = False


@dataclass(frozen=True, slots=True)
class CountContradiction(Effect[int]):
    """Count how often a token set was refused while introspection called it active."""

    seen: Seen


@dataclass(frozen=True, slots=True)
class NewId(Effect[str]):
    """A fresh random id: 32 hexadecimal digits."""


# --- authorizations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RandomText(Effect[Secret]):
    """A fresh random text of that many bytes of entropy, in the URL-safe alphabet."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAuthorization:
    """A member's authorization that was begun. The state is kept as a digest, the verifier sealed."""

    state_digest: str
    key: GrantKey
    session_digest: str | None
    verifier: Secret | None
    redirect_uri: str
    return_to: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SavePending(Effect[int]):
    """Store an authorization that begins; the answer is its end (microseconds since the epoch)."""

    pending: PendingAuthorization
    lifetime: float


@dataclass(frozen=True, slots=True)
class StateRefused:
    """The state is not this member's to use: ``cause`` is unknown, replayed, expired or foreign."""

    cause: str


@dataclass(frozen=True, slots=True)
class ConsumePending(Effect["PendingAuthorization | StateRefused"]):
    """Use the state up, once, for the member (and session) who began."""

    state_digest: str
    member: str
    session_digest: str | None


@dataclass(frozen=True, slots=True)
class RedeemCode(Effect[Redeemed]):
    """Present an authorization code at the token endpoint; its state was used up before."""

    pending: PendingAuthorization
    code: Secret
    deadline: float
    secret: int


@dataclass(frozen=True, slots=True)
class FetchAccount(Effect["str | None"]):
    """Ask the userinfo endpoint whose account it is; a digest, or None where it did not say."""

    registration: str
    token: Secret
    deadline: float


@dataclass(frozen=True, slots=True)
class SaveConsent(Effect["StoredGrant"]):
    """Store a consent's tokens: generation + 1, claim, mark and prompt cleared.

    Where there is no new refresh token, ``keep_refresh_token`` keeps the stored one. ``sent_at`` is monotonic: since
    when the tokens' lifetimes count (None: since now). ``event_id`` is the id of the news.
    """

    key: GrantKey
    tokens: TokenSet
    scopes: tuple[str, ...]
    account: str | None
    keep_refresh_token: bool
    sent_at: float | None
    event_id: str
