"""The store's operations: plain functions on a SQLAlchemy Connection, each part of one short transaction.

Rules: a writing transaction begins with its UPDATE or INSERT (a read first is an instant SQLITE_BUSY); every
compare-and-set names grant_id and generation; time is the database's (``now`` is the SQL expression for it, so that a
test clock can stand for it); the event is written in the transaction of the change.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError

from tokenkeeper.core.effects import SECOND, Claim, PendingAuthorization, StateRefused, StoredGrant
from tokenkeeper.events import Event
from tokenkeeper.model import GrantKey, GrantStatus, Prompt, Secret, to_datetime
from tokenkeeper.store.sealed import SealedTokens
from tokenkeeper.store.tables import MICROSECONDS, authorizations, events, grants, pauses

Now = ColumnElement[int]

PAGE = 500
PORTION = 500
EVENT_DAYS = 30
PENDING_KEPT = 86_400 * SECOND
"""A used or expired state is kept for a day, so that a replay can be told from a stranger."""

ATTEMPTS = 20
"""How often a consent is tried again when another one wins the compare-and-set."""


# --- reading ---------------------------------------------------------------------------------------------------------

_STATUSES = {status.value: status for status in GrantStatus}


@lru_cache(maxsize=8)
def _by_key(now: Now) -> Select[Any]:
    return select(grants, now.label("now")).where(
        grants.c.registration == bindparam("key_registration"), grants.c.member == bindparam("key_member")
    )


@lru_cache(maxsize=8)
def _by_id(now: Now) -> Select[Any]:
    return select(grants, now.label("now")).where(grants.c.grant_id == bindparam("key_grant"))


def load(connection: Connection, key: GrantKey, now: Now, read_at: float = 0.0) -> StoredGrant | None:
    """Read a grant's row and the database's clock with it."""
    row = connection.execute(
        _by_key(now), {"key_registration": key.registration.encode(), "key_member": key.member.encode()}
    ).first()
    return None if row is None else _stored(row, read_at, key)


def load_by_id(connection: Connection, grant_id: str, now: Now, read_at: float = 0.0) -> StoredGrant | None:
    """Read a grant's row by its id."""
    row = connection.execute(_by_id(now), {"key_grant": grant_id}).first()
    return None if row is None else _stored(row, read_at)


def _stored(row: Sequence[Any], read_at: float, key: GrantKey | None = None) -> StoredGrant:
    (
        grant_id,
        registration,
        member,
        status,
        generation,
        scopes,
        access_token,
        refresh_token,
        access_expires_at,
        refresh_expires_at,
        account,
        created_at,
        consented_at,
        renewed_at,
        _,
        claim_id,
        claimed_until,
        in_flight_since,
        in_flight_tries,
        retry_at,
        failures,
        prompt,
        now,
    ) = row
    key = key or GrantKey(bytes(registration).decode(), bytes(member).decode())
    return StoredGrant(
        id=grant_id,
        key=key,
        status=_STATUSES[status],
        generation=generation,
        scopes=_scopes(scopes),
        sealed_access_token=bytes(access_token),
        sealed_refresh_token=None if refresh_token is None else bytes(refresh_token),
        access_expires_at=access_expires_at,
        refresh_expires_at=refresh_expires_at,
        account=account,
        created_at=created_at,
        consented_at=consented_at,
        renewed_at=renewed_at,
        claim_id=claim_id,
        claimed_until=claimed_until,
        in_flight_since=in_flight_since,
        in_flight_tries=in_flight_tries,
        retry_at=retry_at,
        failures=failures,
        prompt=None if prompt is None else _prompt(key, json.loads(prompt)),
        now=now,
        read_at=read_at,
    )


@lru_cache(maxsize=1024)
def _scopes(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def _prompt(key: GrantKey, data: Mapping[str, Any]) -> Prompt:
    return Prompt(
        registration=key.registration,
        member=key.member,
        cause=data["cause"],
        scopes=tuple(data.get("scopes", ())),
        opened_at=to_datetime(data.get("opened_at")),
        acr_values=data.get("acr_values"),
        claims=data.get("claims"),
    )


def page_of_grants(
    connection: Connection,
    now: Now,
    *,
    registration: str | None = None,
    member: str | None = None,
    status: str | None = None,
    after: GrantKey | None = None,
) -> list[StoredGrant]:
    """Read the next page of grants in the order of their keys."""
    statement = select(grants, now.label("now")).order_by(grants.c.registration, grants.c.member).limit(PAGE)
    if registration is not None:
        statement = statement.where(grants.c.registration == registration.encode())
    if member is not None:
        statement = statement.where(grants.c.member == member.encode())
    if status is not None:
        statement = statement.where(grants.c.status == status)
    if after is not None:
        statement = statement.where(
            tuple_(grants.c.registration, grants.c.member)
            > tuple_(literal(after.registration.encode()), literal(after.member.encode()))
        )
    return [_stored(row, 0.0) for row in connection.execute(statement)]


def sealed_values(connection: Connection, after: str | None) -> list[tuple[str, bytes, bytes | None]]:
    """Read the next page of sealed tokens, in the order of the grants' ids: ``(grant_id, access, refresh)``."""
    statement = select(grants.c.grant_id, grants.c.access_token, grants.c.refresh_token).order_by(grants.c.grant_id)
    if after is not None:
        statement = statement.where(grants.c.grant_id > after)
    return [
        (grant_id, bytes(access), None if refresh is None else bytes(refresh))
        for grant_id, access, refresh in connection.execute(statement.limit(PAGE))
    ]


def database_time(connection: Connection, now: Now) -> int:
    """Read the database's clock: microseconds since the epoch."""
    value: int = connection.execute(select(now)).scalar_one()
    return value


# --- claims and renewals ---------------------------------------------------------------------------------------------
# What each renewal sends is built once: to build a statement takes longer than to run it.


@lru_cache(maxsize=64)
def _claiming(now: Now, forced: bool, revoking: bool, lapsed: bool) -> Update:
    # The claim that was read, and no other: one taken since, or extended, is looked at anew, since between the look and
    # this statement the database's clock may have jumped.
    if lapsed:
        free = and_(grants.c.claim_id == bindparam("lapsed"), grants.c.claimed_until == bindparam("lapsed_at"))
    else:
        free = grants.c.claim_id.is_(None)
    conditions: list[ColumnElement[bool]] = [
        grants.c.grant_id == bindparam("grant"),
        grants.c.generation == bindparam("seen"),
        free,
    ]
    if not revoking:
        conditions.append(grants.c.refresh_token.is_not(None))
    if revoking:
        conditions.append(grants.c.status == GrantStatus.REVOKING.value)
    elif forced:
        conditions.append(grants.c.status != GrantStatus.REVOKING.value)
    else:
        conditions.append(grants.c.status == GrantStatus.ACTIVE.value)
        waited_out = grants.c.retry_at == bindparam("waited_out", type_=MICROSECONDS)
        conditions.append(or_(grants.c.retry_at.is_(None), grants.c.retry_at <= now, waited_out))
    values: dict[str, Any] = {
        "claim_id": bindparam("claim"),
        "claimed_until": now + bindparam("lease", type_=MICROSECONDS),
    }
    if not revoking:
        values["in_flight_since"] = func.coalesce(grants.c.in_flight_since, now)
        values["in_flight_tries"] = grants.c.in_flight_tries + 1
    return update(grants).where(*conditions).values(values)


def claim(
    connection: Connection,
    grant: StoredGrant,
    claim_id: str,
    lease: float,
    now: Now,
    *,
    forced: bool = False,
    revoking: bool = False,
    lapsed: bool = False,
    waited_out: int | None = None,
    read_at: float = 0.0,
) -> StoredGrant | None:
    """Take the claim on the grant's generation, or return None.

    A claim that was read on the *grant* stands in the way, unless it has *lapsed*: the caller knows. ``in_flight_since``
    keeps the first presentation: a replay never moves the provider's window. A claim to revoke is one on a grant that is
    ``revoking``, whatever tokens it has; it is no presentation to the token endpoint, and leaves what is known of those.
    *waited_out* is the ``retry_at`` that this process has waited for by its own clock.
    """
    values: dict[str, Any] = {
        "grant": grant.id,
        "seen": grant.generation,
        "claim": claim_id,
        "lease": round(lease * SECOND),
    }
    if not revoking and not forced:
        values["waited_out"] = waited_out
    if lapsed:
        values |= {"lapsed": grant.claim_id, "lapsed_at": grant.claimed_until}
    taken = connection.execute(_claiming(now, forced, revoking, lapsed), values)
    return load_by_id(connection, grant.id, now, read_at) if taken.rowcount else None


def extend_claim(connection: Connection, claim: Claim, now: Now) -> bool:
    """Start the claim's lease anew, if it is still ours."""
    return bool(
        connection.execute(
            update(grants).where(_ours(claim)).values(claimed_until=now + round(claim.lease * SECOND))
        ).rowcount
    )


def _ours(claim: Claim) -> ColumnElement[bool]:
    return and_(
        grants.c.grant_id == claim.grant.id,
        grants.c.generation == claim.grant.generation,
        grants.c.claim_id == claim.id,
    )


def release(
    connection: Connection, claim: Claim, now: Now, *, in_doubt: bool, retry_after: float | None, failed: bool
) -> int | None:
    """Give the claim back, and return the ``retry_at`` that was written.

    Unless the outcome is in doubt, the presentation is taken back too.
    """
    tries = grants.c.in_flight_tries
    values: dict[str, Any] = {
        "claim_id": None,
        "claimed_until": None,
        "retry_at": null() if retry_after is None else now + round(retry_after * SECOND),
    }
    if not in_doubt:
        # MariaDB assigns from left to right: the time must be decided before the count changes.
        values = {"in_flight_since": case((tries > 1, grants.c.in_flight_since), else_=null()), **values}
        values["in_flight_tries"] = case((tries > 0, tries - 1), else_=0)
    if failed:
        values["failures"] = grants.c.failures + 1
    released = connection.execute(
        update(grants).where(_ours(claim)).ordered_values(*((grants.c[k], v) for k, v in values.items()))
    ).rowcount
    if not released or retry_after is None:
        return None
    retry_at: int | None = connection.execute(
        select(grants.c.retry_at).where(grants.c.grant_id == claim.grant.id)
    ).scalar()
    return retry_at


def save_renewal(
    connection: Connection,
    sealed: SealedTokens,
    elapsed: float,
    save_id: str,
    now: Now,
    read_at: float = 0.0,
    over: int | None = None,
) -> tuple[StoredGrant | None, bool]:
    """Store a renewal's tokens if the grant is still at the generation before them; say whether they are stored.

    Success needs no claim: a late answer holds the only copy, so it wins over a mark and sets the grant active again.
    Saving the same tokens twice is harmless (*save_id* tells them). *over*: the generation of a row that has fallen
    behind (a restored backup); the tokens keep their number, so that no cache takes old ones for them.
    """
    ends, refresh_ends = sealed.expires_at, sealed.refresh_expires_in
    life = None if sealed.expires_in is None else sealed.expires_in - elapsed
    values: dict[str, Any] = {
        "grant": sealed.grant_id,
        "before": sealed.generation - 1 if over is None else over,
        "generation": sealed.generation,
        "access_token": sealed.access_token,
        "refresh_token": sealed.refresh_token,
        "saved_by": save_id,
    }
    if ends is not None:
        values["access_expires_at"] = round(ends * SECOND)
    elif life is not None:
        values["life"] = round(life * SECOND)
    if refresh_ends is not None:
        values["refresh_life"] = round((refresh_ends - elapsed) * SECOND)
    if sealed.scopes is not None:
        values["scopes"] = json.dumps(sealed.scopes)
    if sealed.consented_at is not None:
        values["consent"] = sealed.consented_at
    saved = connection.execute(_saving(now, frozenset(values)), values).rowcount
    row = load_by_id(connection, sealed.grant_id, now, read_at)
    if saved or row is None or row.generation != sealed.generation:
        return row, bool(saved)
    by = connection.execute(select(grants.c.saved_by).where(grants.c.grant_id == sealed.grant_id)).scalar()
    return row, by == save_id


@lru_cache(maxsize=64)
def _saving(now: Now, given: frozenset[str]) -> Update:
    """The statement that stores a renewal, for the values that there are; columns of the same names are among them."""
    values: dict[str, Any] = {
        "status": case(
            (grants.c.status == GrantStatus.REVOKING.value, grants.c.status), else_=GrantStatus.ACTIVE.value
        ),
        "access_expires_at": now + bindparam("life", type_=MICROSECONDS) if "life" in given else null(),
        "renewed_at": now,
        "prompt": None,
        **_NOTHING_IN_FLIGHT,
    }
    if "refresh_life" in given:
        values["refresh_expires_at"] = now + bindparam("refresh_life", type_=MICROSECONDS)
    values |= {column.name: bindparam(column.name) for column in grants.c if column.name in given}
    before = [grants.c.grant_id == bindparam("grant"), grants.c.generation == bindparam("before")]
    if "consent" in given:
        # After a restored backup a number comes again: a newer consent may have the one that these tokens go on from.
        before.append(grants.c.consented_at == bindparam("consent"))
    return update(grants).where(*before).values(values)


_NOTHING_IN_FLIGHT: Mapping[str, Any] = {
    "claim_id": None,
    "claimed_until": None,
    "in_flight_since": None,
    "in_flight_tries": 0,
    "retry_at": None,
    "failures": 0,
}


def _end(at: float | None, seconds: float | None, elapsed: float, now: Now) -> Any:
    if at is not None:
        return round(at * SECOND)
    return null() if seconds is None else now + round((seconds - elapsed) * SECOND)


def mark(
    connection: Connection, grant: StoredGrant, prompt: Prompt, claim: Claim | None, now: Now, read_at: float = 0.0
) -> tuple[StoredGrant | None, bool]:
    """Mark the grant as the member's turn; return the row, and whether it was marked.

    With a claim it must still be ours; without one, nothing may be in flight for the generation.
    """
    condition = (
        _ours(claim)
        if claim is not None
        else and_(
            grants.c.grant_id == grant.id,
            grants.c.generation == grant.generation,
            grants.c.status == GrantStatus.ACTIVE.value,
            grants.c.claim_id.is_(None),
            grants.c.in_flight_since.is_(None),
        )
    )
    marked = connection.execute(
        update(grants)
        .where(condition, grants.c.status != GrantStatus.REVOKING.value)
        .values(
            status=GrantStatus.NEEDS_REAUTHENTICATION.value,
            prompt=_prompt_json(prompt, grant.now),
            **_NOTHING_IN_FLIGHT,
        )
    ).rowcount
    return load_by_id(connection, grant.id, now, read_at), bool(marked)


def open_prompt(connection: Connection, grant: StoredGrant, prompt: Prompt) -> bool:
    """Put the prompt into the grant's row, unless the row has moved on."""
    return bool(
        connection.execute(
            update(grants)
            .where(
                grants.c.grant_id == grant.id,
                grants.c.generation == grant.generation,
                grants.c.status == grant.status.value,
            )
            .values(prompt=_prompt_json(prompt, grant.now))
        ).rowcount
    )


def _prompt_json(prompt: Prompt, opened_at: int) -> str:
    return json.dumps(
        {
            "cause": prompt.cause,
            "scopes": prompt.scopes,
            "acr_values": prompt.acr_values,
            "claims": prompt.claims,
            "opened_at": opened_at,
        }
    )


# --- consents --------------------------------------------------------------------------------------------------------


def insert_consent(
    connection: Connection,
    key: GrantKey,
    sealed: SealedTokens,
    scopes: tuple[str, ...],
    account: str | None,
    elapsed: float,
    now: Now,
    read_at: float = 0.0,
) -> StoredGrant | None:
    """Store a new grant; None if the member has one already."""
    try:
        connection.execute(
            insert(grants).values(
                grant_id=sealed.grant_id,
                registration=key.registration.encode(),
                member=key.member.encode(),
                status=GrantStatus.ACTIVE.value,
                generation=sealed.generation,
                scopes=json.dumps(scopes),
                access_token=sealed.access_token,
                refresh_token=sealed.refresh_token,
                access_expires_at=_end(sealed.expires_at, sealed.expires_in, elapsed, now),
                refresh_expires_at=_end(None, sealed.refresh_expires_in, elapsed, now),
                account=account,
                created_at=now,
                consented_at=now,
                in_flight_tries=0,
                failures=0,
            )
        )
    except IntegrityError:
        return None
    # The two clock readings of one statement may differ on some databases; a first consent is one moment.
    connection.execute(
        update(grants).where(grants.c.grant_id == sealed.grant_id).values(consented_at=grants.c.created_at)
    )
    return load_by_id(connection, sealed.grant_id, now, read_at)


def replace_consent(
    connection: Connection,
    before: StoredGrant,
    sealed: SealedTokens,
    scopes: tuple[str, ...],
    account: str | None,
    elapsed: float,
    now: Now,
    *,
    keep_refresh_expiry: bool,
    read_at: float = 0.0,
) -> StoredGrant | None:
    """Store a member's newer consent over the row as it was read; None if the row has moved on meanwhile."""
    values: dict[str, Any] = {
        "status": GrantStatus.ACTIVE.value,
        "generation": sealed.generation,
        "scopes": json.dumps(scopes),
        "access_token": sealed.access_token,
        "refresh_token": sealed.refresh_token,
        "access_expires_at": _end(sealed.expires_at, sealed.expires_in, elapsed, now),
        "account": account,
        "consented_at": now,
        "renewed_at": None,
        "saved_by": None,
        "prompt": None,
        **_NOTHING_IN_FLIGHT,
    }
    if not keep_refresh_expiry or sealed.refresh_expires_in is not None:
        values["refresh_expires_at"] = _end(None, sealed.refresh_expires_in, elapsed, now)
    done = connection.execute(
        update(grants).where(grants.c.grant_id == before.id, grants.c.generation == before.generation).values(values)
    ).rowcount
    return load_by_id(connection, before.id, now, read_at) if done else None


def forget(connection: Connection, grant_id: str) -> bool:
    """Delete a grant; say whether it was there."""
    return bool(connection.execute(delete(grants).where(grants.c.grant_id == grant_id)).rowcount)


def begin_revocation(connection: Connection, key: GrantKey, now: Now, read_at: float = 0.0) -> StoredGrant | None:
    """Take a grant out of service, whatever its state; its row, or None if there is none."""
    connection.execute(
        update(grants)
        .where(grants.c.registration == key.registration.encode(), grants.c.member == key.member.encode())
        .values(status=GrantStatus.REVOKING.value, prompt=None, retry_at=None)
    )
    return load(connection, key, now, read_at)


def delete_revoked(connection: Connection, claim: Claim) -> bool:
    """Delete a grant that was revoked, if the claim on it still holds and nobody has connected it anew."""
    return bool(
        connection.execute(delete(grants).where(_ours(claim), grants.c.status == GrantStatus.REVOKING.value)).rowcount
    )


def recorded(connection: Connection, event_id: str) -> bool:
    """Whether the event table has an event."""
    return connection.execute(select(events.c.event_id).where(events.c.event_id == event_id)).first() is not None


# --- pending authorizations ------------------------------------------------------------------------------------------


def save_pending(
    connection: Connection, pending: PendingAuthorization, sealed_verifier: bytes | None, lifetime: float, now: Now
) -> int:
    """Store an authorization that begins, drop old ones, and return its end."""
    connection.execute(
        insert(authorizations).values(
            state_digest=pending.state_digest,
            registration=pending.key.registration.encode(),
            member=pending.key.member.encode(),
            session_digest=pending.session_digest,
            verifier=sealed_verifier,
            redirect_uri=pending.redirect_uri,
            return_to=pending.return_to,
            scopes=json.dumps(pending.scopes),
            expires_at=now + round(lifetime * SECOND),
        )
    )
    connection.execute(delete(authorizations).where(authorizations.c.expires_at < now - PENDING_KEPT))
    end: int = connection.execute(
        select(authorizations.c.expires_at).where(authorizations.c.state_digest == pending.state_digest)
    ).scalar_one()
    return end


@dataclass(frozen=True, slots=True)
class SealedPending:
    """A consumed authorization whose verifier is still sealed."""

    pending: PendingAuthorization
    verifier: bytes | None


def consume_pending(
    connection: Connection, state_digest: str, member: str, session_digest: str | None, now: Now
) -> SealedPending | StateRefused:
    """Use a state up, once, if it is this member's and session's; else say why not, and leave it as it is."""
    same_session = (
        authorizations.c.session_digest.is_(None)
        if session_digest is None
        else or_(authorizations.c.session_digest.is_(None), authorizations.c.session_digest == session_digest)
    )
    consumed = connection.execute(
        update(authorizations)
        .where(
            authorizations.c.state_digest == state_digest,
            authorizations.c.member == member.encode(),
            same_session,
            authorizations.c.consumed_at.is_(None),
            authorizations.c.expires_at > now,
        )
        .values(consumed_at=now)
    ).rowcount
    row = connection.execute(
        select(authorizations, now.label("now")).where(authorizations.c.state_digest == state_digest)
    ).first()
    if row is None:
        return StateRefused("state_unknown")
    if consumed:
        key = GrantKey(bytes(row.registration).decode(), bytes(row.member).decode())
        pending = PendingAuthorization(
            state_digest=state_digest,
            key=key,
            session_digest=row.session_digest,
            verifier=None,
            redirect_uri=row.redirect_uri,
            return_to=row.return_to,
            scopes=tuple(json.loads(row.scopes)),
        )
        return SealedPending(pending, None if row.verifier is None else bytes(row.verifier))
    if bytes(row.member) != member.encode() or row.session_digest not in (None, session_digest):
        return StateRefused("state_foreign")
    return StateRefused("state_replayed" if row.consumed_at is not None else "state_expired")


def with_verifier(pending: PendingAuthorization, verifier: Secret | None) -> PendingAuthorization:
    """The same, with its verifier opened."""
    return dataclasses.replace(pending, verifier=verifier)


# --- pauses ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PauseRow:
    """A registration's pause as it is stored; times are microseconds since the epoch."""

    registration: str
    credentials: str
    cause: str
    fix: str
    paused_at: int
    probe_at: int
    now: int


def load_pauses(connection: Connection, now: Now, registration: str | None = None) -> list[PauseRow]:
    """Read the pauses, of all registrations or of one."""
    found = (
        connection.execute(select(pauses, now.label("now")))
        if registration is None
        else connection.execute(_pause_of(now), {"key": registration.encode()})
    )
    return [
        PauseRow(
            bytes(row.registration).decode(), row.credentials, row.cause, row.fix, row.paused_at, row.probe_at, row.now
        )
        for row in found
    ]


@lru_cache(maxsize=8)
def _pause_of(now: Now) -> Select[Any]:
    return select(pauses, now.label("now")).where(pauses.c.registration == bindparam("key"))


def probe_pause(connection: Connection, pause: PauseRow, seconds: float, now: Now) -> bool:
    """Take the one chance in *seconds* to try whether the pause is over."""
    return bool(
        connection.execute(
            update(pauses)
            .where(pauses.c.registration == pause.registration.encode(), pauses.c.probe_at == pause.probe_at)
            .values(probe_at=now + round(seconds * SECOND))
        ).rowcount
    )


def pause(
    connection: Connection, registration: str, credentials: str, cause: str, fix: str, seconds: float, now: Now
) -> bool:
    """Pause a registration for these credentials; True if this is news."""
    key = registration.encode()
    again = connection.execute(
        update(pauses)
        .where(pauses.c.registration == key, pauses.c.credentials == credentials)
        .values(probe_at=now + round(seconds * SECOND))
    ).rowcount
    if again:
        return False
    values = {
        "credentials": credentials,
        "cause": cause,
        "fix": fix,
        "paused_at": now,
        "probe_at": now + round(seconds * SECOND),
    }
    # Other credentials only: a worker that was refused in the same moment may have paused them just now.
    others = update(pauses).where(pauses.c.registration == key, pauses.c.credentials != credentials)
    if connection.execute(others.values(values)).rowcount:
        return True
    try:
        with connection.begin_nested():
            connection.execute(insert(pauses).values(registration=key, **values))
    except IntegrityError:
        return False
    return True


def end_pause(connection: Connection, registration: str) -> None:
    """End a registration's pause."""
    connection.execute(delete(pauses).where(pauses.c.registration == registration.encode()))


# --- events ----------------------------------------------------------------------------------------------------------


def record(connection: Connection, event: Event, now: Now) -> bool:
    """Write an event; False if the table has it already."""
    try:
        with connection.begin_nested():
            connection.execute(
                insert(events).values(
                    event_id=event.id,
                    kind=type(event).__name__,
                    registration=event.registration.encode(),
                    member=None if event.member is None else event.member.encode(),
                    cause=getattr(event, "cause", None),
                    happened_at=now,
                    data=json.dumps(event_data(event)),
                )
            )
    except IntegrityError:
        return False
    return True


def event_data(event: Event) -> dict[str, Any]:
    """What an event says beside its id, kind, time, registration, member and cause; fit for JSON."""
    told = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    for name in ("id", "at", "registration", "member", "cause"):
        told.pop(name, None)
    return {name: _plain(value) for name, value in told.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def page_of_events(
    connection: Connection,
    *,
    kind: str | None = None,
    registration: str | None = None,
    member: str | None = None,
    newest_first: bool = False,
    after: tuple[int, str] | None = None,
) -> tuple[list[dict[str, Any]], tuple[int, str] | None]:
    """Read the next page of events in the order of time, and the place after which the one after it begins."""
    order = (events.c.happened_at, events.c.event_id)
    statement = select(events).limit(PAGE).order_by(*(column.desc() if newest_first else column for column in order))
    if kind is not None:
        statement = statement.where(events.c.kind == kind)
    if registration is not None:
        statement = statement.where(events.c.registration == registration.encode())
    if member is not None:
        statement = statement.where(events.c.member == member.encode())
    if after is not None:
        last = tuple_(literal(after[0]), literal(after[1]))
        statement = statement.where(tuple_(*order) < last if newest_first else tuple_(*order) > last)
    rows = connection.execute(statement).all()
    return [_event_dict(row) for row in rows], (rows[-1].happened_at, rows[-1].event_id) if rows else None


def _event_dict(row: Row[Any]) -> dict[str, Any]:
    at = to_datetime(row.happened_at)
    return {
        "id": row.event_id,
        "kind": row.kind,
        "at": at.isoformat() if at else None,
        "registration": bytes(row.registration).decode(),
        "member": None if row.member is None else bytes(row.member).decode(),
        "cause": row.cause,
        "data": json.loads(row.data),
    }


def prune_events(connection: Connection, days: float, now: Now) -> int:
    """Delete events older than so many days, a portion of them (a statement has an end); return how many."""
    old = select(events.c.event_id).where(events.c.happened_at < now - round(days * 86_400 * SECOND)).limit(PORTION)
    ids = connection.execute(old).scalars().all()
    return connection.execute(delete(events).where(events.c.event_id.in_(ids))).rowcount if ids else 0
