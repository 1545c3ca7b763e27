"""The store as the drivers use it: one method a store effect, each one short transaction (or one plain read).

Nothing is held between two of them: no row lock, no advisory lock, no connection. The database's exceptions leave here
as tokenkeeper's own, saying whose turn it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import Pool, QueuePool

from tokenkeeper.clock import Clock
from tokenkeeper.core.effects import (
    SECOND,
    Claim,
    ClaimGrant,
    ConsumePending,
    DeleteRevoked,
    Marked,
    MarkGrant,
    OpenPrompt,
    Overtaken,
    Pause,
    PendingAuthorization,
    SaveConsent,
    Saved,
    SavePending,
    StateRefused,
    StoredGrant,
)
from tokenkeeper.core.token_endpoint import TokenSet
from tokenkeeper.crypto import Context, Keyring
from tokenkeeper.errors import SecretTampered, TemporarilyUnavailable, TokenKeeperError
from tokenkeeper.events import (
    Event,
    GrantConnected,
    GrantForgotten,
    GrantRevoked,
    ProviderTrouble,
    ReauthenticationNeeded,
    TamperingDetected,
    TokensRenewed,
    stable_id,
)
from tokenkeeper.model import GrantKey, GrantStatus, Prompt, Secret, scope_set, to_datetime
from tokenkeeper.store import operations, schema, settings
from tokenkeeper.store.engine import DEADLOCK, POOL_PATIENCE, store_error, store_errors
from tokenkeeper.store.sealed import SealedTokens, open_access_token, open_refresh_token, seal_tokens
from tokenkeeper.store.tables import database_now
from tokenkeeper.store.watch import ClockWatch

logger = logging.getLogger(__name__)

PROBE_SECONDS = 300.0
"""While a registration is paused, one renewal in so many seconds tries whether it is over."""

PRUNE_SECONDS = 86_400.0

Tell = Callable[[Event], None]
"""Takes the news of a transaction once it is committed."""

P = ParamSpec("P")
R = TypeVar("R")

REPETITIONS = 5


def repeated(transaction: Callable[P, R]) -> Callable[P, R]:
    """A transaction that the database gave up (a deadlock) was not made at all: make it again, a few times at most."""

    @functools.wraps(transaction)
    def repeating(*args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(REPETITIONS):
            try:
                return transaction(*args, **kwargs)
            except TemporarilyUnavailable as error:
                if error.cause != DEADLOCK:
                    raise
        return transaction(*args, **kwargs)

    return repeating


class _Turns:
    """At most half of a host's connections are ours at once: fifty renewals must not stand before a host's own query."""

    def __init__(self, pool: Pool) -> None:
        size = pool.size() if isinstance(pool, QueuePool) else 0
        self._turns = threading.BoundedSemaphore(max(1, size // 2)) if size else None

    def __enter__(self) -> None:
        if self._turns is not None and not self._turns.acquire(timeout=POOL_PATIENCE):
            raise TemporarilyUnavailable(
                "The token store has waited too long for one of the host's connections. It is nobody's turn: try again; "
                "no grant has changed.",
                cause="store",
                retry_after=1.0,
            )

    def __exit__(self, *_: object) -> None:
        if self._turns is not None:
            self._turns.release()


class Store:
    """Grants, authorizations, events and pauses in one database."""

    def __init__(
        self, engine: Engine, keyring: Keyring, clock: Clock, *, audit: bool = False, shared: bool = False
    ) -> None:
        """*shared*: the engine is the host's, so we never take more than half of its connections at once."""
        self.engine = engine
        self.keyring = keyring
        self._clock = clock
        stand_in = clock.database_now()
        self._now: operations.Now = database_now() if stand_in is None else stand_in
        self._audit = audit
        self._turn = _Turns(engine.pool) if shared else contextlib.nullcontext()
        self._watch = ClockWatch()
        self._checked = False
        self._check_lock = threading.Lock()
        self._pruned_at: float | None = None

    # --- transactions ---

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with store_errors():
            self._check_schema()
            with self._turn, self.engine.connect() as connection:
                yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with store_errors():
            self._check_schema()
            with self._turn, self.engine.begin() as connection:
                yield connection

    def _check_schema(self) -> None:
        if self._checked:
            return
        if not self._check_lock.acquire(timeout=POOL_PATIENCE):  # the one who checks waits for the database
            raise store_error(TimeoutError())
        try:
            if not self._checked:
                with self._turn, self.engine.connect() as connection:
                    schema.check(connection)
                    _warn_of_risks(connection)
                self._checked = True
        finally:
            self._check_lock.release()

    # --- grants ---

    def load(self, key: GrantKey) -> StoredGrant | None:
        """Read a grant's row."""
        read_at = self._clock.monotonic()
        with store_errors():  # _reading, spelled out: this is the read that every cold call waits for
            self._check_schema()
            with self._turn, self.engine.connect() as connection:
                grant = operations.load(connection, key, self._now, read_at)
        if grant is not None:
            self._watch.saw(grant, now := self._clock.monotonic())
            if grant.retry_at is not None and grant.retry_at == self._watch.waited_out(grant.id, now):
                grant = dataclasses.replace(grant, retry_at=None)
        return grant

    def grants(self, **filters: Any) -> Iterator[StoredGrant]:
        """Read grants page by page, in the order of their keys; no connection is held between two pages."""
        after: GrantKey | None = None
        while True:
            with self._reading() as connection:
                page = operations.page_of_grants(connection, self._now, after=after, **filters)
            yield from page
            if not page:
                return
            after = page[-1].key

    def open_access_token(self, grant: StoredGrant, tell: Tell) -> Secret:
        """Open the access token. Raises KeyUnavailable, SecretTampered (with its event)."""
        try:
            return open_access_token(self.keyring, grant)
        except SecretTampered:
            self._tampered(grant, "access_token", tell)
            raise

    def open_refresh_token(self, grant: StoredGrant, tell: Tell) -> Secret:
        """Open the refresh token and prove that sealing works. Raises KeyUnavailable, SecretTampered (with its event)."""
        try:
            token = open_refresh_token(self.keyring, grant)
        except SecretTampered:
            self._tampered(grant, "refresh_token", tell)
            raise
        self.keyring.seal(Secret("proof"), Context("proof", "", grant.id, grant.key.registration, grant.key.member, 0))
        return token

    def _tampered(self, grant: StoredGrant, column: str, tell: Tell) -> None:
        event = TamperingDetected(
            id=stable_id("TamperingDetected", grant.id, grant.generation, column), cause=column, **_about(grant)
        )
        with contextlib.suppress(TokenKeeperError):  # the tampering itself is the more important news
            self.announce(event, tell)

    @repeated
    def claim(self, effect: ClaimGrant, witnessed_lease: float) -> Claim | None:
        """Take the claim; None: somebody or something stood in the way."""
        grant = effect.grant
        taken_at = self._clock.monotonic()
        claim_id = secrets.token_hex(16)
        lapsed = self._watch.lapsed(grant, taken_at, witnessed_lease)
        if grant.claim_id is not None and not lapsed:
            return None
        with self._writing() as connection:
            claimed = operations.claim(
                connection,
                grant,
                claim_id,
                effect.lease,
                self._now,
                forced=effect.forced,
                revoking=effect.revoking,
                lapsed=lapsed,
                waited_out=self._watch.waited_out(grant.id, taken_at),
                read_at=taken_at,
            )
        return None if claimed is None else Claim(claim_id, claimed, taken_at, effect.lease)

    @repeated
    def extend_claim(self, claim: Claim) -> bool:
        """Start the claim's lease anew; False: it was lost."""
        with self._writing() as connection:
            return operations.extend_claim(connection, claim, self._now)

    @repeated
    def release(self, claim: Claim, *, in_doubt: bool, retry_after: float | None, failed: bool) -> None:
        """Give the claim back."""
        with self._writing() as connection:
            retry_at = operations.release(
                connection, claim, self._now, in_doubt=in_doubt, retry_after=retry_after, failed=failed
            )
        if retry_after is not None and retry_at is not None:
            self._watch.backs_off(claim.grant.id, retry_at, self._clock.monotonic() + retry_after)

    def seal(self, grant: StoredGrant, tokens: TokenSet) -> SealedTokens:
        """Seal a renewal's tokens for the grant's next generation."""
        return seal_tokens(self.keyring, grant.id, grant.key, grant.generation + 1, tokens, grant.consented_at)

    @repeated
    def save_renewal(
        self, sealed: SealedTokens, elapsed: float, save_id: str, tell: Tell, over: int | None = None
    ) -> Saved | Overtaken:
        """Store a renewal's tokens by compare-and-set, with their event."""
        read_at = self._clock.monotonic()
        events: list[Event] = []
        revoked = False
        with self._writing() as connection:
            row, saved = operations.save_renewal(connection, sealed, elapsed, save_id, self._now, read_at, over)
            if row is None:
                revoked = operations.recorded(connection, _revoked_id(sealed.grant_id))
            if saved and row is not None:
                event = TokensRenewed(
                    id=stable_id("TokensRenewed", row.id, row.generation), at=to_datetime(row.now), **_about(row)
                )
                events = self._record(connection, event)
        self._tell(events, tell)
        return Saved(row) if saved and row is not None else Overtaken(row, revoked)

    @repeated
    def mark(self, effect: MarkGrant, tell: Tell) -> Marked | StoredGrant | None:
        """Mark the grant as the member's turn, with its prompt and its event."""
        prompt = _prompt(effect)
        events: list[Event] = []
        with self._writing() as connection:
            row, marked = operations.mark(connection, effect.grant, prompt, effect.claim, self._now)
            if marked:
                events = self._record(connection, _reauthentication_needed(effect.grant, prompt))
        self._tell(events, tell)
        return Marked(row) if marked and row is not None else row

    @repeated
    def open_prompt(self, effect: OpenPrompt, tell: Tell) -> Prompt:
        """Open a prompt, one a grant and cause, and leave the grant as it is."""
        before, prompt = effect.grant.prompt, _prompt(effect)
        if before is not None and _same_question(before, prompt):
            return before
        events: list[Event] = []
        with self._writing() as connection:
            if operations.open_prompt(connection, effect.grant, prompt):
                events = self._record(connection, _reauthentication_needed(effect.grant, prompt))
        self._tell(events, tell)
        return prompt

    @repeated
    def forget(self, grant: StoredGrant, tell: Tell) -> bool:
        """Delete a grant, with its event."""
        events: list[Event] = []
        with self._writing() as connection:
            gone = operations.forget(connection, grant.id)
            if gone:
                event = GrantForgotten(
                    id=stable_id("GrantForgotten", grant.id), at=to_datetime(grant.now), **_about(grant)
                )
                events = self._record(connection, event)
        self._tell(events, tell)
        return gone

    @repeated
    def begin_revocation(self, key: GrantKey) -> StoredGrant | None:
        """Take a grant out of service."""
        read_at = self._clock.monotonic()
        with self._writing() as connection:
            return operations.begin_revocation(connection, key, self._now, read_at)

    @repeated
    def delete_revoked(self, effect: DeleteRevoked, tell: Tell) -> bool:
        """Delete a grant that was revoked, with its event, which also tells a late renewal what became of the row."""
        grant = effect.claim.grant
        events: list[Event] = []
        with self._writing() as connection:
            gone = operations.delete_revoked(connection, effect.claim)
            if gone:
                event = GrantRevoked(
                    id=_revoked_id(grant.id), at=to_datetime(grant.now), outcome=effect.outcome, **_about(grant)
                )
                events = self._record(connection, event)
        self._tell(events, tell)
        return gone

    @repeated
    def save_consent(self, effect: SaveConsent, tell: Tell) -> StoredGrant:
        """Store a consent over whatever the member has; the newest consent wins."""
        for _ in range(operations.ATTEMPTS):
            before = self.load(effect.key)
            grant_id = before.id if before else secrets.token_hex(16)
            generation = before.generation + 1 if before else 1
            tokens = effect.tokens
            keeps = tokens.refresh_token is None and effect.keep_refresh_token and before is not None
            # What is being revoked is no refresh token to keep.
            keeps = keeps and before is not None and before.status is not GrantStatus.REVOKING
            if keeps and before is not None and before.sealed_refresh_token is not None:
                tokens = dataclasses.replace(tokens, refresh_token=self.open_refresh_token(before, tell))
            sealed = seal_tokens(self.keyring, grant_id, effect.key, generation, tokens)
            read_at = self._clock.monotonic()
            elapsed = 0.0 if effect.sent_at is None else read_at - effect.sent_at
            with self._writing() as connection:
                if before is None:
                    grant = operations.insert_consent(
                        connection, effect.key, sealed, effect.scopes, effect.account, elapsed, self._now, read_at
                    )
                else:
                    grant = operations.replace_consent(
                        connection,
                        before,
                        sealed,
                        effect.scopes,
                        effect.account or before.account,
                        elapsed,
                        self._now,
                        keep_refresh_expiry=keeps,
                        read_at=read_at,
                    )
                events = [] if grant is None else self._record(connection, _connected(effect.event_id, grant))
            if grant is not None:
                self._tell(events, tell)
                return grant
        raise TemporarilyUnavailable(
            f"So many consents of {effect.key.member!r} were stored at once that this one was not. It is nobody's turn: "
            "try again.",
            cause="contended",
            registration=effect.key.registration,
            member=effect.key.member,
            retry_after=1.0,
        )

    # --- pending authorizations ---

    @repeated
    def save_pending(self, effect: SavePending) -> int:
        """Store an authorization that begins; the answer is its end."""
        pending = effect.pending
        sealed = None
        if pending.verifier is not None:
            sealed = self.keyring.seal(pending.verifier, _verifier_context(pending))
        with self._writing() as connection:
            return operations.save_pending(connection, pending, sealed, effect.lifetime, self._now)

    @repeated
    def consume_pending(self, effect: ConsumePending) -> PendingAuthorization | StateRefused:
        """Use a state up, once."""
        with self._writing() as connection:
            consumed = operations.consume_pending(
                connection, effect.state_digest, effect.member, effect.session_digest, self._now
            )
        if isinstance(consumed, StateRefused):
            return consumed
        if consumed.verifier is None:
            return consumed.pending
        verifier = self.keyring.open(consumed.verifier, _verifier_context(consumed.pending))
        return operations.with_verifier(consumed.pending, verifier)

    # --- pauses ---

    def load_pause(self, registration: str, credentials: str, *, probe: bool = False) -> Pause | None:
        """Read the registration's pause for these credentials; of those who *probe*, one in a while may."""
        with self._reading() as connection:
            found = operations.load_pauses(connection, self._now, registration)
        if not found or found[0].credentials != credentials:
            return None
        row = found[0]
        # Much further ahead than it can be: the database's clock was set back.
        due = row.probe_at <= row.now or row.probe_at > row.now + round(2 * PROBE_SECONDS * SECOND)
        if due and probe:
            with self._writing() as connection:
                due = operations.probe_pause(connection, row, PROBE_SECONDS, self._now)
        return Pause(row.cause, row.fix, due)

    @repeated
    def pause(self, event: Event, credentials: str, cause: str, fix: str, tell: Tell) -> None:
        """Pause a registration; its event is news once a pause."""
        events: list[Event] = []
        with self._writing() as connection:
            if operations.pause(connection, event.registration, credentials, cause, fix, PROBE_SECONDS, self._now):
                events = self._record(connection, event)
        self._tell(events, tell)

    @repeated
    def end_pause(self, registration: str) -> None:
        """End a registration's pause."""
        with self._writing() as connection:
            operations.end_pause(connection, registration)

    def pauses(self) -> list[operations.PauseRow]:
        """Read all pauses."""
        with self._reading() as connection:
            return operations.load_pauses(connection, self._now)

    # --- events ---

    @repeated
    def announce(self, event: Event, tell: Tell, every: float | None = None) -> None:
        """Record news that changes no grant; *every*: seconds after which the same may be told again."""
        with self._writing() as connection:
            now = operations.database_time(connection, self._now) if every or event.at is None else 0
            if every:
                event = dataclasses.replace(event, id=stable_id(event.id, now // round(every * 1_000_000)))
            if event.at is None:
                event = dataclasses.replace(event, at=to_datetime(now))
            if isinstance(event, ProviderTrouble) and event.at is not None:
                event = dataclasses.replace(event, incident={**event.incident, "at": event.at.isoformat()})
            events = self._record(connection, event)
        self._tell(events, tell)

    def events(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Read events page by page."""
        after: tuple[int, str] | None = None
        while True:
            with self._reading() as connection:
                page, after = operations.page_of_events(connection, after=after, **filters)
            yield from page
            if not page:
                return

    def prune_events(self, days: float) -> int:
        """Delete events older than so many days, portion by portion; say how many."""
        pruned = 0
        while portion := self._prune_portion(days):
            pruned += portion
        return pruned

    @repeated
    def _prune_portion(self, days: float) -> int:
        with self._writing() as connection:
            return operations.prune_events(connection, days, self._now)

    def _record(self, connection: Connection, event: Event) -> list[Event]:
        """Write the event into the running transaction; return it if it is news."""
        if not event.kept and not self._audit:
            return [event]
        return [event] if operations.record(connection, event, self._now) else []

    def _tell(self, events: list[Event], tell: Tell) -> None:
        for event in events:
            tell(event)
        now = self._clock.monotonic()
        if events and (self._pruned_at is None or now - self._pruned_at > PRUNE_SECONDS):
            self._pruned_at = now
            with contextlib.suppress(TokenKeeperError):  # what was committed is a success; it is tried again tomorrow
                self.prune_events(operations.EVENT_DAYS)

    # --- the operator's view ---

    def now(self) -> int:
        """Read the database's clock: microseconds since the epoch."""
        with self._reading() as connection:
            return operations.database_time(connection, self._now)

    def sealed_values(self) -> Iterator[tuple[str, bytes, bytes | None]]:
        """Read all sealed tokens, page by page."""
        after: str | None = None
        while True:
            with self._reading() as connection:
                page = operations.sealed_values(connection, after)
            yield from page
            if not page:
                return
            after = page[-1][0]


def _warn_of_risks(connection: Connection) -> None:
    """Settings that may lose a commit are warned of; a database that does not know them is no reason to fail."""
    try:
        for risk in settings.risks(connection):
            logger.warning("the token store's database: %s", risk)
    except SQLAlchemyError as error:
        logger.info("the database's settings cannot be read (%s)", type(error).__name__)


def _about(grant: StoredGrant) -> dict[str, Any]:
    return {
        "registration": grant.key.registration,
        "member": grant.key.member,
        "grant_id": grant.id,
        "generation": grant.generation,
    }


def _prompt(effect: MarkGrant | OpenPrompt) -> Prompt:
    """The prompt that an effect opens; scopes that were missing before are still missing."""
    grant = effect.grant
    missing_before = grant.prompt.scopes if grant.prompt else ()
    return Prompt(
        registration=grant.key.registration,
        member=grant.key.member,
        cause=effect.cause,
        scopes=scope_set((*missing_before, *effect.scopes)),
        opened_at=to_datetime(grant.now),
        acr_values=effect.acr_values,
        claims=effect.claims,
    )


def _same_question(before: Prompt, prompt: Prompt) -> bool:
    return dataclasses.replace(prompt, opened_at=before.opened_at) == before


def _reauthentication_needed(grant: StoredGrant, prompt: Prompt) -> ReauthenticationNeeded:
    return ReauthenticationNeeded(
        id=stable_id("ReauthenticationNeeded", grant.id, grant.generation, prompt.cause),
        at=prompt.opened_at,
        cause=prompt.cause,
        prompt=prompt,
        **_about(grant),
    )


def _revoked_id(grant_id: str) -> str:
    return stable_id("GrantRevoked", grant_id)


def _connected(event_id: str, grant: StoredGrant) -> GrantConnected:
    return GrantConnected(id=event_id, at=to_datetime(grant.now), **_about(grant))


def _verifier_context(pending: PendingAuthorization) -> Context:
    table = "tokenkeeper_authorization"
    return Context(table, "verifier", pending.state_digest, pending.key.registration, pending.key.member, 0)
