"""The store's operations on real databases: what one statement decides, races, clocks that jump, pages and news."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, select, update

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
from tokenkeeper.crypto import Keyring
from tokenkeeper.errors import ConfigurationError, KeyUnavailable, SecretTampered, TemporarilyUnavailable
from tokenkeeper.events import (
    ConfigurationProblem,
    Event,
    GrantConnected,
    GrantRevoked,
    ProviderTrouble,
    ReauthenticationNeeded,
    TamperingDetected,
    TokensRenewed,
)
from tokenkeeper.model import GrantKey, GrantStatus, Secret
from tokenkeeper.store import operations, schema, transactions
from tokenkeeper.store.engine import make_engine
from tokenkeeper.store.tables import events, grants, metadata
from tokenkeeper.store.tables import schema as schema_rows
from tokenkeeper.store.transactions import PROBE_SECONDS, PRUNE_SECONDS, Store
from tokenkeeper.store.watch import FREE, SIZE, ClockWatch
from tokenkeeper.testing.clock import TestClock

KEY = GrantKey("example", "ann")
KEYRING = Keyring({"test": b"k" * 32})
LEASE = 40.0


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a database of every kind that there is: for what the SQL decides."""
    yield from engine_on(database_url)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Engine]:
    """An engine on SQLite: for what the Python around the SQL decides."""
    yield from engine_on(f"sqlite:///{tmp_path / 'tokens.db'}")


def engine_on(url: str) -> Iterator[Engine]:
    """An engine on a database with the tables (that migrations build the same is ``test_schema``'s)."""
    made = make_engine(url)
    metadata.create_all(made)
    with made.begin() as connection:
        connection.execute(insert(schema_rows).values(revision=schema.CODE_REVISION, serves=schema.CODE_REVISION))
    yield made
    made.dispose()


@pytest.fixture
def clock() -> TestClock:
    """The database's clock, and everybody's."""
    return TestClock()


@pytest.fixture
def store(engine: Engine, clock: TestClock) -> Store:
    """A store, as one process has it."""
    return Store(engine, KEYRING, clock)


@pytest.fixture
def here(local: Engine, clock: TestClock) -> Store:
    """A store on SQLite."""
    return Store(local, KEYRING, clock)


def tokens(number: int = 1, *, refresh: bool = True, **more: Any) -> TokenSet:
    """A token set."""
    refresh_token = Secret(f"refresh-{number}") if refresh else None
    return TokenSet(
        access_token=Secret(f"access-{number}"), refresh_token=refresh_token, **{"expires_in": 3600.0} | more
    )


def consent(store: Store, key: GrantKey = KEY, number: int = 1, tell: Any = None, **more: Any) -> StoredGrant:
    """A member consents."""
    values: dict[str, Any] = {"account": None, "keep_refresh_token": False, "sent_at": None}
    values |= {"event_id": f"{key.member}-{number}", "scopes": ("read",)}
    values |= {name: more.pop(name) for name in list(more) if name in values}
    effect = SaveConsent(key, tokens(number, **more), **values)
    return store.save_consent(effect, tell or (lambda news: None))


def claim(store: Store, grant: StoredGrant, **more: Any) -> Claim | None:
    """A claim on what was read."""
    return store.claim(ClaimGrant(grant, LEASE, **more), LEASE)


def taken(store: Store, grant: StoredGrant, **more: Any) -> Claim:
    """A claim that is had."""
    found = claim(store, grant, **more)
    assert found is not None
    return found


def row(store: Store, key: GrantKey = KEY) -> StoredGrant:
    """The row as it stands."""
    found = store.load(key)
    assert found is not None
    return found


def save(store: Store, claim: Claim, number: int = 2, tell: Any = None, **more: Any) -> Saved | Overtaken:
    """Save a renewal."""
    sealed = store.seal(claim.grant, tokens(number, **more))
    return store.save_renewal(sealed, 0.0, claim.id, tell or (lambda news: None))


def mark(store: Store, grant: StoredGrant, claim: Claim | None = None, cause: str = "revoked") -> Any:
    """Mark a grant."""
    return store.mark(MarkGrant(grant, cause, claim), lambda news: None)


# --- claims ----------------------------------------------------------------------------------------------------------


def test_a_claim_is_lease_mark_and_proof_in_one(store: Store, clock: TestClock) -> None:
    """One statement: who holds it, until when, since when a presentation is in flight, and the so-manieth."""
    grant = consent(store)
    clock.advance(10)
    held = taken(store, grant)
    found = row(store)
    now = round(clock() * SECOND)
    assert (found.claim_id, found.claimed_until) == (held.id, now + round(LEASE * SECOND))
    assert (found.in_flight_since, found.in_flight_tries) == (now, 1)
    assert held.grant == replace(found, read_at=held.grant.read_at)
    assert not held.in_doubt


def test_a_replay_does_not_move_the_window(store: Store, clock: TestClock) -> None:
    """The mark keeps the time of the first presentation; the second claim is in doubt."""
    grant = consent(store)
    first = taken(store, grant)
    store.release(first, in_doubt=True, retry_after=2.0, failed=True)
    released = row(store)
    assert (released.claim_id, released.in_flight_tries, released.failures) == (None, 1, 1)
    assert released.retry_at == first.grant.now + 2 * SECOND
    assert claim(store, grant) is None
    clock.advance(2.0)
    second = taken(store, grant)
    assert second.in_doubt
    assert second.grant.in_flight_since == first.grant.in_flight_since


@pytest.mark.parametrize("tries", [1, 2])
def test_a_presentation_that_was_none_is_taken_back(store: Store, clock: TestClock, tries: int) -> None:
    """Never sent: the mark goes with the last presentation, and stays while an earlier one is in doubt."""
    grant = consent(store)
    since = None
    for number in range(tries):
        held = taken(store, grant)
        since = since or held.grant.in_flight_since
        if number + 1 < tries:
            store.release(held, in_doubt=True, retry_after=None, failed=False)
            clock.advance(5)
    store.release(held, in_doubt=False, retry_after=None, failed=False)
    found = row(store)
    assert (found.in_flight_tries, found.in_flight_since) == ((0, None) if tries == 1 else (1, since))
    assert (found.failures, found.retry_at) == (0, None)


def test_a_claim_is_of_one_grant(store: Store) -> None:
    """Other members' grants of the same generation are left as they are."""
    ann, bob = consent(store), consent(store, GrantKey("example", "bob"))
    held = taken(store, ann)
    assert held.grant.id == ann.id
    other = row(store, bob.key)
    assert (other.claim_id, other.in_flight_tries) == (None, 0)
    assert taken(store, other).grant.id == bob.id
    assert row(store).claim_id == held.id


def test_a_lapsed_claim(store: Store, clock: TestClock) -> None:
    """Taken over when the lease is over by the database's clock; the holder before notices at its last look."""
    grant = consent(store)
    first = taken(store, grant)
    clock.advance(LEASE)
    assert claim(store, row(store)) is None
    clock.advance(0.001)
    second = taken(store, row(store))
    assert not store.extend_claim(first)
    assert store.extend_claim(second)
    store.release(first, in_doubt=False, retry_after=None, failed=True)
    assert row(store).claim_id == second.id
    assert not isinstance(mark(store, first.grant, first), Marked)


def test_an_extended_claim_lasts_longer(here: Store, clock: TestClock) -> None:
    """The holder's extension starts the lease anew."""
    grant = consent(here)
    held = taken(here, grant)
    clock.advance(30)
    assert here.extend_claim(held)
    clock.advance(30)
    assert claim(here, row(here)) is None


@pytest.mark.parametrize("forced", [False, True])
def test_what_may_be_claimed(store: Store, clock: TestClock, forced: bool) -> None:
    """Another generation, no refresh token, or being revoked: never. Marked, or backing off: only if forced."""
    grant = consent(store)
    newer = consent(store, number=2)
    assert claim(store, grant, forced=forced) is None
    without = consent(store, GrantKey("example", "bob"), refresh=False)
    assert claim(store, without, forced=forced) is None
    store.release(taken(store, newer), in_doubt=False, retry_after=60.0, failed=True)
    held = claim(store, newer, forced=forced)
    assert (held is not None) == forced
    marked = consent(store, GrantKey("example", "cyd"))
    assert isinstance(mark(store, marked), Marked)
    assert (claim(store, marked, forced=forced) is not None) == forced
    revoking = consent(store, GrantKey("example", "dan"))
    with store.engine.begin() as connection:
        connection.execute(update(grants).where(grants.c.grant_id == revoking.id).values(status="revoking"))
    assert claim(store, revoking, forced=forced) is None


# --- clocks ----------------------------------------------------------------------------------------------------------


class Apart(TestClock):
    """A process's clock that goes its own way from the database's."""

    def __init__(self, database: TestClock) -> None:
        super().__init__(1000.0)
        self._database = database

    def database_now(self) -> Any:
        """The database's clock."""
        return self._database.database_now()


def test_a_claim_that_was_witnessed_for_a_whole_lease_has_lapsed(local: Engine, clock: TestClock) -> None:
    """The database's clock has jumped back: whoever saw the same claim for a whole lease by its own clock takes over."""
    holder, other = Store(local, KEYRING, clock), Store(local, KEYRING, own := Apart(clock))
    grant = consent(holder)
    taken(holder, grant)
    clock.advance(-3600)
    row(other)
    own.advance(LEASE - 0.5)
    assert claim(other, row(other)) is None
    own.advance(0.5)
    assert claim(other, row(other)) is not None


def test_an_extended_claim_is_not_the_one_that_was_witnessed(local: Engine, clock: TestClock) -> None:
    """Seen for a whole lease, and extended meanwhile: its holder is alive, and its request may be under way."""
    holder, other = Store(local, KEYRING, clock), Store(local, KEYRING, clock)
    grant = consent(holder)
    held = taken(holder, grant)
    row(other)
    clock.advance(30)
    assert holder.extend_claim(held)
    clock.advance(15)
    assert claim(other, row(other)) is None
    before = row(other)
    clock.advance(LEASE - 20)
    assert holder.extend_claim(held)
    clock.advance(20)
    assert claim(other, before) is None
    clock.advance(LEASE - 19)
    assert claim(other, row(other)) is not None


def test_a_clock_that_jumped_forward_takes_nothing_over(local: Engine, clock: TestClock) -> None:
    """The database says that the lease is over, and its clock has just jumped: not before it was witnessed."""
    holder, other = Store(local, KEYRING, clock), Store(local, KEYRING, own := Apart(clock))
    grant = consent(holder)
    row(other)
    taken(holder, grant)
    clock.advance(3600)
    own.advance(1)
    assert claim(other, row(other)) is None
    own.advance(LEASE)
    clock.advance(LEASE)
    assert claim(other, row(other)) is not None


def test_a_claim_is_of_its_generation_only(local: Engine, clock: TestClock) -> None:
    """The same claim id under another number is not ours: neither extended, nor given back, nor a reason to mark."""
    store = Store(local, KEYRING, clock)
    held = taken(store, consent(store))
    other = replace(held, grant=replace(held.grant, generation=held.grant.generation + 1))
    assert not store.extend_claim(other)
    store.release(other, in_doubt=False, retry_after=None, failed=True)
    assert row(store).claim_id == held.id
    assert not isinstance(store.mark(MarkGrant(other.grant, "refused", other), lambda event: None), Marked)
    assert store.extend_claim(held)


def test_a_grant_with_a_claim_is_not_marked_without_it(local: Engine, clock: TestClock) -> None:
    """Also where the row knows of no presentation."""
    store = Store(local, KEYRING, clock)
    held = taken(store, consent(store))
    with local.begin() as connection:
        connection.exec_driver_sql("UPDATE tokenkeeper_grant SET in_flight_since = NULL")
    assert not isinstance(store.mark(MarkGrant(held.grant, "revoked"), lambda event: None), Marked)
    assert row(store).status is GrantStatus.ACTIVE


def test_a_claim_with_a_longer_lease_than_ours_holds_for_its_own(local: Engine, clock: TestClock) -> None:
    """A deploy has changed the rotation: those who have the shorter lease still wait for what the claim had left."""
    holder, other = Store(local, KEYRING, clock), Store(local, KEYRING, clock)
    held = holder.claim(ClaimGrant(consent(holder), 90.0), 90.0)
    assert held is not None
    row(other)
    clock.advance(89.0)
    assert other.claim(ClaimGrant(row(other), 15.0), 15.0) is None
    clock.advance(1.5)
    assert other.claim(ClaimGrant(row(other), 15.0), 15.0) is not None


def test_a_claim_that_came_since_our_last_look_has_not_lapsed(local: Engine, clock: TestClock) -> None:
    """Its holder's clock is an hour behind ours (SQLite: a clock a process): younger than our last look, it holds."""
    other = Store(local, KEYRING, own := Apart(clock))
    consent(other)
    row(other)
    holder = Store(local, KEYRING, TestClock(clock() - 3600))
    taken(holder, row(holder))
    assert not row(other).claimed, "by our clock it lapsed long ago"
    assert claim(other, row(other)) is None
    own.advance(LEASE)
    clock.advance(LEASE)
    assert claim(other, row(other)) is not None


def test_a_claim_of_before_our_time_has_lapsed_by_the_databases_clock(local: Engine, clock: TestClock) -> None:
    """A process that has just started knows of no earlier look: it takes over at once what a dead one has left."""
    holder = Store(local, KEYRING, clock)
    taken(holder, consent(holder))
    clock.advance(LEASE + 1)
    other = Store(local, KEYRING, Apart(clock))
    assert claim(other, row(other)) is not None


def test_a_back_off_is_over_when_either_clock_says_so(local: Engine, clock: TestClock) -> None:
    """The database's clock is set back an hour while a grant backs off for ten seconds: it waits for no hour."""
    holder, other = Store(local, KEYRING, clock), Store(local, KEYRING, own := Apart(clock))
    holder.release(taken(holder, consent(holder)), in_doubt=False, retry_after=10.0, failed=True)
    assert row(other).retry_at is not None
    clock.advance(-3600)
    own.advance(9.5)
    assert row(other).retry_at is not None
    assert claim(other, row(other)) is None
    own.advance(0.5)
    assert row(other).retry_at is None, "waited out by our own clock"
    held = claim(other, row(other))
    assert held is not None
    other.release(held, in_doubt=False, retry_after=10.0, failed=True)
    assert row(other).retry_at is not None, "another back-off is another wait"
    assert claim(other, row(other)) is None


def test_a_back_off_of_our_own_is_known_before_it_is_seen(local: Engine, clock: TestClock) -> None:
    """The database's clock is set back right after we have written it: we know how long it was meant to be."""
    store = Store(local, KEYRING, own := Apart(clock))
    store.release(taken(store, consent(store)), in_doubt=False, retry_after=10.0, failed=True)
    clock.advance(-3600)
    own.advance(5)
    assert row(store).retry_at is not None
    assert claim(store, row(store)) is None
    own.advance(5)
    assert claim(store, row(store)) is not None


def test_anothers_back_off_is_no_end_of_our_own(local: Engine, clock: TestClock) -> None:
    """We wrote a short one and never looked; then another worker was told to wait an hour: that is waited for."""
    store, other = Store(local, KEYRING, clock), Store(local, KEYRING, clock)
    store.release(taken(store, consent(store)), in_doubt=False, retry_after=1.0, failed=True)
    clock.advance(5)
    other.release(taken(other, row(other)), in_doubt=False, retry_after=3600.0, failed=True)
    assert row(store).retry_at is not None
    assert claim(store, row(store)) is None
    clock.advance(3600)
    assert claim(store, row(store)) is not None


def test_another_claim_with_the_same_end_was_not_witnessed(local: Engine, clock: TestClock) -> None:
    """Two claims may end in the same microsecond: only the one that was seen for a whole lease has lapsed."""
    store = Store(local, KEYRING, clock)
    held = taken(store, consent(store)).grant
    with local.begin() as connection:
        now = store._now
        unlike = replace(held, claim_id="a" * 32)
        assert operations.claim(connection, unlike, "b" * 32, LEASE, now, lapsed=True) is None
        assert operations.claim(connection, held, "b" * 32, LEASE, now, lapsed=True)


def test_a_claim_taken_since_the_look_stands_even_if_the_clock_jumps_meanwhile(local: Engine, clock: TestClock) -> None:
    """Two look at a free grant, one claims it; then the database's clock jumps an hour, and the other comes to claim."""
    holder, other = Store(local, KEYRING, clock), Store(local, KEYRING, Apart(clock))
    looked = row(other) if consent(holder) else None
    assert looked is not None
    held = taken(holder, row(holder))
    clock.advance(3600)
    assert claim(other, looked) is None
    assert row(other).claim_id == held.id


def test_a_claim_that_held_at_the_look_stands_even_if_the_clock_jumps_meanwhile(
    local: Engine, clock: TestClock
) -> None:
    """What was seen to hold is not taken by a clock that nobody has looked at since."""
    holder, other = Store(local, KEYRING, clock), Store(local, KEYRING, own := Apart(clock))
    held = taken(holder, consent(holder))
    looked = row(other)
    clock.advance(3600)
    assert claim(other, looked) is None
    assert claim(other, row(other)) is None, "the jump is noticed"
    own.advance(LEASE)
    assert row(other).claim_id == held.id
    assert claim(other, row(other)) is not None, "seen for a whole lease by our own clock"


def test_old_events_go_portion_by_portion(local: Engine, clock: TestClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement has an end, so no one statement deletes them all."""
    monkeypatch.setattr(operations, "PORTION", 3)
    store = Store(local, KEYRING, clock)
    for number in range(7):
        store.announce(ConfigurationProblem(id=f"n{number}", registration="example", cause="c"), lambda event: None)
    clock.advance(10)
    assert store.prune_events(5 / 86_400) == 7
    assert list(store.events()) == []


def test_a_probe_is_due_when_the_clock_was_set_back(local: Engine, clock: TestClock) -> None:
    """Further ahead than a probe can be: it is tried, and not an hour later."""
    store = Store(local, KEYRING, clock)
    news = ConfigurationProblem(id="n", registration="example", cause="c", fix="f")
    store.pause(news, "credentials", "c", "f", lambda event: None)
    assert store.load_pause("example", "credentials") == Pause("c", "f", due=False)
    clock.advance(-3600)
    assert store.load_pause("example", "credentials", probe=True) == Pause("c", "f", due=True)
    assert store.load_pause("example", "credentials", probe=True) == Pause("c", "f", due=False)


def seen(now: float, read_at: float, claim_id: str | None = None, until: int | None = None) -> StoredGrant:
    """A row as a watch sees it."""
    return StoredGrant(
        id="g", key=KEY, status=GrantStatus.ACTIVE, generation=1, scopes=(), sealed_access_token=b"", account=None,
        sealed_refresh_token=None, access_expires_at=None, refresh_expires_at=None, created_at=0, consented_at=0,
        renewed_at=None, claim_id=claim_id, claimed_until=until, in_flight_since=None, in_flight_tries=0,
        retry_at=None, failures=0, prompt=None, now=round(now * SECOND), read_at=read_at,
    )  # fmt: skip


def test_a_watch_trusts_a_steady_clock() -> None:
    """Less than two seconds a minute is drift; more is a jump, which is forgotten after a minute."""
    watch = ClockWatch()
    assert watch.steady
    for minute in range(1, 6):
        watch.saw(seen(1000 + minute * 61.5, minute * 61.0), minute * 61.0)
        assert watch.steady
    watch.saw(seen(2000, 310.0), 310.0)
    assert not watch.steady
    watch.saw(seen(2061, 371.0), 371.0)
    assert watch.steady


def test_a_watch_remembers_claims() -> None:
    """Since when it has seen one claim, as it is; another one, or none, begins anew. Its memory is bounded."""
    watch = ClockWatch()
    held = seen(0, 0.0, "c", 9)
    assert not watch.lapsed(held, 100.0, 0.0)
    watch.saw(held, 0.0)
    assert not watch.lapsed(held, 39.9, LEASE)
    assert watch.lapsed(held, 40.0, LEASE)
    assert not watch.lapsed(seen(0, 0.0, "c", 10), 40.0, LEASE)
    assert not watch.lapsed(seen(0, 0.0, "d", 9), 40.0, LEASE)
    watch.saw(seen(30, 30.0, "c", 9), 30.0)
    assert watch.lapsed(held, 40.0, LEASE)
    watch.saw(seen(41, 41.0), 41.0)
    assert not watch.lapsed(seen(0, 0.0), 500.0, LEASE)
    for number in range(SIZE + 5):
        watch.saw(replace(held, id=str(number)), 0.0)
        watch.saw(replace(held, id="kept"), 0.0)
        watch.backs_off(str(number), 1, 0.0)
    assert watch.lapsed(replace(held, id="kept"), 100.0, LEASE), "what is looked at again and again is not forgotten"
    assert watch.waited_out("0", 1.0) is None
    assert watch.waited_out(str(SIZE + 4), 1.0) == 1
    assert not watch.lapsed(replace(held, id="0"), 100.0, LEASE)
    assert watch.lapsed(replace(held, id="6"), 100.0, LEASE)


def test_a_watch_remembers_the_newest_looks_at_free_rows() -> None:
    """A claim that came since is younger than that look; of what was looked at long ago nothing is remembered."""
    watch = ClockWatch()
    free = seen(0, 0.0)
    for number in range(FREE + 1):
        watch.saw(replace(free, id=str(number)), 0.0)
    lapsed = seen(1.0, 1.0, "c", 1)
    for name, known in (("0", False), ("1", True), (str(FREE), True)):
        watch.saw(claimed := replace(lapsed, id=name), 1.0)
        assert watch.lapsed(claimed, 2.0, LEASE) is not known


def test_the_databases_own_clock(engine: Engine) -> None:
    """It counts microseconds since the epoch, as this machine does, and goes on within a process's life."""
    real = Store(engine, KEYRING, Clock())
    first = real.now()
    assert abs(first / SECOND - time.time()) < 60
    grant = consent(real)
    assert grant.created_at == grant.consented_at
    assert first - SECOND <= grant.created_at <= real.now()
    assert abs((grant.access_expires_at or 0) - grant.created_at - 3600 * SECOND) < SECOND


# --- saves and marks -------------------------------------------------------------------------------------------------


def test_a_save_clears_everything_in_flight(store: Store, clock: TestClock) -> None:
    """The next generation, active, no claim, no mark, no back-off, no prompt; the times are the database's."""
    held = taken(store, consent(store))
    clock.advance(3)
    saved = save(store, held, scopes=("read", "mail"), refresh_expires_in=86_400.0)
    assert isinstance(saved, Saved)
    found = row(store)
    now = round(clock() * SECOND)
    assert replace(saved.grant, read_at=0.0) == replace(found, read_at=0.0)
    assert (found.generation, found.status, found.scopes, found.renewed_at) == (
        2,
        GrantStatus.ACTIVE,
        ("read", "mail"),
        now,
    )
    assert (found.claim_id, found.claimed_until, found.in_flight_since, found.in_flight_tries) == (None, None, None, 0)
    assert (found.access_expires_at, found.refresh_expires_at) == (now + 3600 * SECOND, now + 86_400 * SECOND)


def test_a_lifetime_counts_from_the_request(here: Store, clock: TestClock) -> None:
    """What was said to live an hour lives an hour since it was asked for; ``expires_at`` wins."""
    held = taken(here, consent(here))
    here.save_renewal(here.seal(held.grant, tokens(2)), 7.5, held.id, lambda news: None)
    assert row(here).access_expires_at == round((clock() + 3592.5) * SECOND)
    held = taken(here, row(here))
    sealed = here.seal(held.grant, tokens(3, expires_at=1_900_000_000.5))
    here.save_renewal(sealed, 7.5, held.id, lambda news: None)
    assert row(here).access_expires_at == 1_900_000_000_500_000


def test_a_late_save_wins_over_a_mark_and_a_claim(store: Store, clock: TestClock) -> None:
    """It holds the only copy: active again, prompt closed, whoever held the claim by now."""
    grant = consent(store)
    late = taken(store, grant)
    clock.advance(LEASE + 1)
    other = taken(store, row(store))
    assert isinstance(mark(store, other.grant, other), Marked)
    assert row(store).prompt is not None
    assert isinstance(save(store, late), Saved)
    assert (row(store).status, row(store).prompt) == (GrantStatus.ACTIVE, None)


def test_a_save_after_a_new_consent_or_a_deletion_is_nobodys(store: Store) -> None:
    """The newest consent wins, and what is gone stays gone."""
    held = taken(store, consent(store))
    newer = consent(store, number=5)
    overtaken = save(store, held)
    assert isinstance(overtaken, Overtaken)
    assert overtaken.grant is not None
    assert overtaken.grant.generation == newer.generation == 2
    assert store.forget(newer, lambda news: None)
    assert save(store, held) == Overtaken(None)
    assert store.load(KEY) is None


def test_the_same_save_twice_is_harmless(store: Store) -> None:
    """A commit whose answer was lost is settled by saving again; another's save is told apart."""
    grant = consent(store)
    held = taken(store, grant)
    assert isinstance(save(store, held), Saved)
    again = save(store, held)
    assert isinstance(again, Saved)
    assert row(store).generation == 2
    assert isinstance(save(store, replace(held, id="f" * 32)), Overtaken)


def test_a_save_keeps_a_grant_that_is_being_revoked(here: Store) -> None:
    """Its tokens are stored, so that the newest can be revoked; it is not served."""
    held = taken(here, consent(here))
    with here.engine.begin() as connection:
        connection.execute(update(grants).values(status="revoking"))
    saved = save(here, held)
    assert isinstance(saved, Saved)
    assert saved.grant.status is GrantStatus.REVOKING


def test_a_grant_is_taken_out_of_service(store: Store, clock: TestClock) -> None:
    """Whatever its state: revoking, no prompt, no back-off; what is in flight stays known, and its claim holds."""
    assert store.begin_revocation(KEY) is None
    grant = consent(store)
    assert isinstance(mark(store, grant), Marked)
    held = taken(store, row(store), forced=True)
    store.release(held, in_doubt=True, retry_after=900.0, failed=True)
    other = taken(store, row(store), forced=True)
    found = store.begin_revocation(KEY)
    assert found is not None
    assert (found.status, found.prompt, found.retry_at) == (GrantStatus.REVOKING, None, None)
    assert (found.claim_id, found.in_flight_tries, found.generation) == (other.id, 2, 1)
    assert replace(found, read_at=0.0) == replace(row(store), read_at=0.0)
    for forced in (False, True):
        assert claim(store, found, forced=forced) is None
    assert claim(store, found, revoking=True) is None, "the claim before it holds"
    clock.advance(LEASE + 1)
    assert claim(store, found, forced=True) is None, "nobody renews it any more"
    mine = taken(store, found, revoking=True)
    assert (mine.grant.in_flight_tries, mine.grant.in_flight_since) == (2, found.in_flight_since), "no presentation"


def test_only_what_is_being_revoked_is_claimed_to_revoke_and_deleted(store: Store) -> None:
    """A grant that stands is neither; one that was connected anew meanwhile is no longer."""
    grant = consent(store)
    assert claim(store, grant, revoking=True) is None
    held = taken(store, grant)
    delete = DeleteRevoked(held, "revoked")
    assert store.delete_revoked(delete, lambda news: None) is False, "a claim to renew deletes nothing"
    store.release(held, in_doubt=False, retry_after=None, failed=False)
    revoking = store.begin_revocation(KEY)
    assert revoking is not None
    mine = taken(store, revoking, revoking=True)
    assert store.delete_revoked(DeleteRevoked(replace(mine, id="f" * 32), "revoked"), lambda news: None) is False
    consent(store, number=7)
    assert store.delete_revoked(DeleteRevoked(mine, "revoked"), lambda news: None) is False
    assert (row(store).status, row(store).generation) == (GrantStatus.ACTIVE, 2)


def test_a_grant_without_a_refresh_token_is_claimed_to_revoke(here: Store) -> None:
    """Its access token is what can be revoked."""
    consent(here, refresh=False)
    revoking = here.begin_revocation(KEY)
    assert revoking is not None
    assert claim(here, revoking) is None
    assert taken(here, revoking, revoking=True).grant.sealed_refresh_token is None


def test_a_deletion_is_news_and_a_late_save_is_told(store: Store) -> None:
    """One event with the outcome; what a renewal brings later is told why the row is gone, which forgetting does not."""
    late = taken(store, consent(store))
    store.release(late, in_doubt=True, retry_after=None, failed=True)
    revoking = store.begin_revocation(KEY)
    assert revoking is not None
    mine = taken(store, revoking, revoking=True)
    told: list[Event] = []
    assert store.delete_revoked(DeleteRevoked(mine, "in_doubt"), told.append) is True
    assert store.delete_revoked(DeleteRevoked(mine, "in_doubt"), told.append) is False
    [event] = told
    assert isinstance(event, GrantRevoked)
    assert (event.member, event.grant_id, event.outcome) == (KEY.member, revoking.id, "in_doubt")
    [recorded] = [each for each in store.events() if each["kind"] == "GrantRevoked"]
    assert recorded["data"]["outcome"] == "in_doubt"
    assert save(store, late) == Overtaken(None, revoked=True)
    again = taken(store, consent(store, number=8))
    assert save(store, late) == Overtaken(None, revoked=True), "the next grant is another"
    assert store.forget(again.grant, lambda news: None)
    assert save(store, again) == Overtaken(None, revoked=False)


def test_a_number_that_came_again_is_another_consent(store: Store, clock: TestClock) -> None:
    """A backup was restored and the member connected anew: the same generation, and what was under way is nobody's."""
    consent(store)
    held = taken(store, row(store))
    assert isinstance(save(store, held), Saved)
    held = taken(store, row(store))
    clock.advance(1)
    with store.engine.begin() as connection:
        connection.execute(update(grants).values(generation=1, claim_id=None))
    newest = consent(store, number=7)
    assert newest.generation == held.grant.generation == 2
    for over in (None, 2):
        sealed = store.seal(held.grant, tokens(3))
        assert isinstance(store.save_renewal(sealed, 0.0, held.id, lambda news: None, over), Overtaken)
    assert store.open_access_token(row(store), lambda news: None) == tokens(7).access_token


def test_a_row_that_fell_behind_is_healed(store: Store) -> None:
    """A backup was restored: said so, the tokens go over the generation that stands there, and keep their own number."""
    held = taken(store, consent(store))
    assert isinstance(save(store, held), Saved)
    held = taken(store, row(store))
    with store.engine.begin() as connection:
        connection.execute(update(grants).values(generation=1, claim_id=None))
    overtaken = save(store, held, number=3)
    assert isinstance(overtaken, Overtaken)
    assert overtaken.grant is not None
    assert overtaken.grant.generation == 1
    sealed = store.seal(held.grant, tokens(3))
    assert isinstance(store.save_renewal(sealed, 0.0, held.id, lambda news: None, over=0), Overtaken)
    assert isinstance(store.save_renewal(sealed, 0.0, held.id, lambda news: None, over=1), Saved)
    assert row(store).generation == 3
    assert store.open_access_token(row(store), lambda news: None) == tokens(3).access_token


def test_a_grant_that_is_being_revoked_is_not_marked(here: Store) -> None:
    """Its end is decided already: a refusal of the refresh token, by whoever holds the claim, opens no prompt."""
    held = taken(here, consent(here))
    with here.engine.begin() as connection:
        connection.execute(update(grants).values(status="revoking"))
    assert not isinstance(mark(here, held.grant, held), Marked)
    assert (row(here).status, row(here).prompt) == (GrantStatus.REVOKING, None)


def test_a_mark_without_a_claim_waits_for_what_is_in_flight(store: Store) -> None:
    """A claim, or a presentation in doubt: its outcome comes first; the row says why not."""
    grant = consent(store)
    held = taken(store, grant)
    refused = mark(store, grant)
    assert isinstance(refused, StoredGrant)
    assert refused.claim_id == held.id
    store.release(held, in_doubt=True, retry_after=None, failed=True)
    assert not isinstance(mark(store, grant), Marked)
    held = taken(store, grant)
    assert isinstance(mark(store, held.grant, held), Marked)
    found = row(store)
    assert (found.status, found.claim_id, found.in_flight_tries) == (GrantStatus.NEEDS_REAUTHENTICATION, None, 0)
    assert found.sealed_refresh_token is not None


def test_a_mark_names_the_generation(store: Store) -> None:
    """Evidence about an older generation marks nobody; a deleted grant neither."""
    old = consent(store)
    new = consent(store, number=2)
    assert not isinstance(mark(store, old), Marked)
    assert row(store).status is GrantStatus.ACTIVE
    store.forget(new, lambda news: None)
    assert mark(store, old) is None


def test_a_prompt_is_a_fact_of_the_row(store: Store, clock: TestClock) -> None:
    """One a grant and cause: the same question again is the same prompt, with one piece of news."""
    told: list[Event] = []
    grant = consent(store)
    first = store.open_prompt(OpenPrompt(grant, "insufficient_scope", ("mail",)), told.append)
    clock.advance(60)
    again = store.open_prompt(OpenPrompt(row(store), "insufficient_scope", ("mail",)), told.append)
    assert again == first == row(store).prompt
    assert [type(each) for each in told] == [ReauthenticationNeeded]
    wider = store.open_prompt(OpenPrompt(row(store), "insufficient_scope", ("files",)), told.append)
    assert wider.scopes == ("mail", "files")
    assert row(store).generation == 1
    assert row(store).status is GrantStatus.ACTIVE


def test_a_prompt_does_not_overwrite_what_came_between(here: Store) -> None:
    """Read while active, and marked or renewed since: the row keeps what it says now."""
    grant = consent(here)
    mark(here, grant, cause="revoked")
    here.open_prompt(OpenPrompt(grant, "insufficient_scope", ("mail",)), lambda news: None)
    prompt = row(here).prompt
    assert prompt is not None
    assert prompt.cause == "revoked"
    newer = consent(here, number=2)
    here.open_prompt(OpenPrompt(grant, "insufficient_scope", ("mail",)), lambda news: None)
    assert row(here).prompt is None
    assert row(here).generation == newer.generation


# --- consents --------------------------------------------------------------------------------------------------------


def test_a_new_consent_clears_claim_mark_and_prompt(store: Store, clock: TestClock) -> None:
    """Whatever was in flight or in doubt is over; created once, consented again."""
    grant = consent(store)
    held = taken(store, grant)
    mark(store, held.grant, held)
    clock.advance(100)
    newer = consent(store, number=2, scopes=("read", "mail"), account="a" * 64)
    found = row(store)
    assert (found.id, found.generation, found.status) == (grant.id, 2, GrantStatus.ACTIVE)
    assert (found.prompt, found.claim_id, found.in_flight_since, found.failures) == (None, None, None, 0)
    assert (found.created_at, found.consented_at) == (grant.created_at, newer.now)
    assert (found.scopes, found.account) == (("read", "mail"), "a" * 64)
    assert consent(store, number=3).account == "a" * 64


@pytest.mark.parametrize("keep", [False, True])
def test_a_consent_without_a_refresh_token(here: Store, keep: bool) -> None:
    """The old one is sealed anew for the new generation, with its end; or it is gone."""
    consent(here, refresh_expires_in=86_400.0)
    end = row(here).refresh_expires_at
    again = consent(here, number=2, refresh=False, keep_refresh_token=keep)
    if keep:
        assert here.open_refresh_token(again, lambda news: None) == Secret("refresh-1")
        assert again.refresh_expires_at == end
    else:
        assert again.sealed_refresh_token is None
        assert again.refresh_expires_at is None


def test_keeping_nothing(here: Store) -> None:
    """No refresh token was ever there: there is none now."""
    consent(here, refresh=False)
    assert consent(here, number=2, refresh=False, keep_refresh_token=True).sealed_refresh_token is None


def test_four_members_are_four(store: Store) -> None:
    """'ann', 'Ann', 'ann ' and 'änn' are compared byte for byte."""
    members = ["ann", "Ann", "ann ", "änn"]
    for number, member in enumerate(members, 1):
        consent(store, GrantKey("example", member), number)
    for number, member in enumerate(members, 1):
        found = row(store, GrantKey("example", member))
        assert store.open_access_token(found, lambda news: None) == Secret(f"access-{number}")
    assert len({row(store, GrantKey("example", member)).id for member in members}) == 4


def moving_under(store: Store, monkeypatch: pytest.MonkeyPatch, moves: int) -> list[StoredGrant]:
    """Let another process's consent come between read and write, so many times."""
    done: list[StoredGrant] = []
    load = store.load

    def moved(key: GrantKey) -> StoredGrant | None:
        found = load(key)
        if len(done) < moves:
            done.append(consent(other, key, 100 + len(done)))
        return found

    other = Store(store.engine, KEYRING, store._clock)
    monkeypatch.setattr(store, "load", moved)
    return done


def test_two_first_consents_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read that there is no grant: the later one is the newest consent, over the other."""
    moving_under(store, monkeypatch, 1)
    saved = consent(store)
    assert saved.generation == 2
    assert store.open_access_token(saved, lambda news: None) == Secret("access-1")


def test_two_consents_at_once(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read the same generation: the later one wins, and both are told."""
    consent(here, number=7)
    moving_under(here, monkeypatch, 1)
    saved = consent(here)
    assert saved.generation == 3
    assert len(list(here.events(kind="GrantConnected"))) == 3


def test_a_consent_that_never_gets_through(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else wins every time: nobody's turn, and what is stored is the other's."""
    done = moving_under(here, monkeypatch, 1000)
    with pytest.raises(TemporarilyUnavailable) as caught:
        consent(here)
    assert caught.value.cause == "contended"
    assert len(done) == operations.ATTEMPTS


# --- races -----------------------------------------------------------------------------------------------------------


def at_once(work: Callable[[], Any], many: int = 6) -> list[Any]:
    """What so many threads get that begin in the same moment."""
    ready = Barrier(many)

    def run() -> Any:
        ready.wait()
        return work()

    with ThreadPoolExecutor(many) as pool:
        return [each.result() for each in [pool.submit(run) for _ in range(many)]]


def test_one_of_many_gets_the_claim(store: Store) -> None:
    """Real threads, real connections: one claim, however many ask in the same moment."""
    for number in range(1, 9):
        grant = consent(store, number=number)
        won = [each for each in at_once(lambda grant=grant: claim(store, grant)) if each is not None]
        assert len(won) == 1
        assert row(store).claim_id == won[0].id
        assert row(store).in_flight_tries == 1


def test_one_of_many_consumes_a_state(store: Store) -> None:
    """A state works once, however many callbacks come in the same moment."""
    for number in range(1, 5):
        pending = begun(f"{number:064x}")
        store.save_pending(SavePending(pending, 600.0))
        found = at_once(
            lambda pending=pending: store.consume_pending(ConsumePending(pending.state_digest, "ann", None))
        )
        assert sorted(isinstance(each, StateRefused) for each in found) == [False] + [True] * 5
        assert {each.cause for each in found if isinstance(each, StateRefused)} == {"state_replayed"}


def test_many_consents_at_once(store: Store) -> None:
    """All are stored, one after the other: the generation counts them."""
    at_once(lambda: consent(store, event_id=f"{time.perf_counter_ns()}"))
    assert row(store).generation == 6


def test_one_of_many_pauses(store: Store) -> None:
    """A pause is one piece of news, however many workers are refused in the same moment; one of them may probe."""
    told: list[Event] = []

    def pause() -> None:
        news = ConfigurationProblem(id=f"{time.perf_counter_ns()}", registration="example", cause="c", fix="f")
        store.pause(news, "credentials", "c", "f", told.append)

    at_once(pause)
    assert len(told) == 1
    store._clock.advance(PROBE_SECONDS)  # type: ignore[attr-defined]
    assert store.load_pause("example", "credentials").due, "a look takes nothing"
    found = at_once(lambda: store.load_pause("example", "credentials", probe=True))
    assert sorted(each.due for each in found) == [False] * 5 + [True]


# --- pauses ----------------------------------------------------------------------------------------------------------


def test_a_pause_is_about_the_credentials(store: Store, clock: TestClock) -> None:
    """New credentials are not paused; refused, too, they pause anew, which is news; the old ones are as good as new."""
    told: list[Event] = []

    def pause(credentials: str, number: int) -> None:
        news = ConfigurationProblem(id=f"news-{number}", registration="example", cause="c", fix="f")
        store.pause(news, credentials, f"cause-{number}", "f", told.append)

    assert store.load_pause("example", "old") is None
    pause("old", 1)
    pause("old", 2)
    assert store.load_pause("example", "old") == Pause("cause-1", "f", due=False)
    assert store.load_pause("example", "new") is None
    pause("new", 3)
    assert store.load_pause("example", "old") is None
    assert store.load_pause("example", "new") == Pause("cause-3", "f", due=False)
    assert [each.id for each in told] == ["news-1", "news-3"]
    clock.advance(PROBE_SECONDS)
    assert store.load_pause("example", "new", probe=True) == Pause("cause-3", "f", due=True)
    assert store.load_pause("example", "new") == Pause("cause-3", "f", due=False)
    assert [each.registration for each in store.pauses()] == ["example"]
    store.end_pause("example")
    assert store.pauses() == []
    assert store.load_pause("example", "new") is None


# --- authorizations --------------------------------------------------------------------------------------------------


def begun(digest: str, **more: Any) -> PendingAuthorization:
    """An authorization that begins."""
    values: dict[str, Any] = {"key": KEY, "session_digest": None, "verifier": Secret("v" * 64)}
    values |= {"redirect_uri": "https://app.example/cb", "return_to": "/", "scopes": ("read",)}
    return PendingAuthorization(state_digest=digest, **values | more)


def test_an_authorization_comes_back_as_it_was(store: Store, clock: TestClock) -> None:
    """With its verifier, which is sealed in between; a day after its end it is forgotten."""
    pending = begun("a" * 64, session_digest="s" * 64)
    assert store.save_pending(SavePending(pending, 600.0)) == round((clock() + 600) * SECOND)
    assert store.consume_pending(ConsumePending("a" * 64, "ann", "t" * 64)) == StateRefused("state_foreign")
    assert store.consume_pending(ConsumePending("a" * 64, "Ann", "s" * 64)) == StateRefused("state_foreign")
    assert store.consume_pending(ConsumePending("a" * 64, "ann", "s" * 64)) == pending
    assert store.consume_pending(ConsumePending("a" * 64, "ann", "s" * 64)) == StateRefused("state_replayed")
    clock.advance(600 + 86_401)
    store.save_pending(SavePending(begun("b" * 64, verifier=None), 600.0))
    assert store.consume_pending(ConsumePending("a" * 64, "ann", "s" * 64)) == StateRefused("state_unknown")
    clock.advance(600)
    assert store.consume_pending(ConsumePending("b" * 64, "ann", None)) == StateRefused("state_expired")


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_a_moved_ciphertext_is_told_once(here: Store) -> None:
    """Another row's token does not open: tampering, one piece of news, and the row is as it was."""
    told: list[Event] = []
    grant, other = consent(here), consent(here, GrantKey("example", "bob"))
    for _ in range(2):
        moved = replace(grant, sealed_access_token=other.sealed_access_token)
        with pytest.raises(SecretTampered):
            here.open_access_token(moved, told.append)
        moved = replace(grant, sealed_refresh_token=other.sealed_refresh_token)
        with pytest.raises(SecretTampered):
            here.open_refresh_token(moved, told.append)
    assert sorted(each.cause for each in told if isinstance(each, TamperingDetected)) == [
        "access_token",
        "refresh_token",
    ]
    assert len(told) == 2
    assert row(here) == replace(grant, read_at=row(here).read_at)


def test_a_missing_key_is_no_tampering(local: Engine, clock: TestClock) -> None:
    """The operator's turn: no news of tampering, and nothing changes."""
    grant = consent(Store(local, KEYRING, clock))
    told: list[Event] = []
    with pytest.raises(KeyUnavailable):
        Store(local, Keyring({"other": b"o" * 32}), clock).open_refresh_token(grant, told.append)
    assert told == []


# --- pages and news --------------------------------------------------------------------------------------------------


def test_grants_are_read_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of their keys, each once, whatever the page; and by registration, member or status."""
    keys = [GrantKey(registration, f"m{number}") for registration in ("a", "b") for number in range(5)]
    for key in reversed(keys):
        consent(store, key, event_id=f"{key.registration}{key.member}")
    marked = mark(store, row(store, keys[3]))
    for size in (1, 3, 5, 500):
        monkeypatch.setattr(operations, "PAGE", size)
        assert [each.key for each in store.grants()] == keys
        assert [each.key for each in store.grants(registration="b")] == keys[5:]
        assert [each.key for each in store.grants(member="m2")] == [keys[2], keys[7]]
        assert [each.id for each in store.grants(status="needs_reauthentication")] == [marked.grant.id]
        sealed = list(store.sealed_values())
        assert [each[0] for each in sealed] == sorted(each.id for each in store.grants())
        assert all(access and refresh for _, access, refresh in sealed)


def test_news_is_read_in_pages(store: Store, clock: TestClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of time, or the newest first; by kind, registration and member."""
    for number in range(5):
        consent(store, GrantKey("example", f"m{number % 2}"), number, event_id=f"news-{number}")
        clock.advance(1 if number % 2 else 0)
    store.forget(row(store, GrantKey("example", "m1")), lambda news: None)
    connected = [f"news-{number}" for number in range(5)]
    for size in (1, 2, 500):
        monkeypatch.setattr(operations, "PAGE", size)
        assert [each["id"] for each in store.events(kind="GrantConnected")] == connected
        assert [each["id"] for each in store.events(kind="GrantConnected", newest_first=True)] == connected[::-1]
        assert [each["id"] for each in store.events(member="m1")][:2] == ["news-1", "news-3"]
        assert len(list(store.events(registration="example"))) == 6
        assert list(store.events(registration="other")) == []
    first = next(store.events())
    assert (first["kind"], first["member"], first["data"]["generation"]) == ("GrantConnected", "m0", 1)


def test_news_is_pruned(here: Store, clock: TestClock) -> None:
    """After thirty days, by itself, about once a day; or when the operator says so."""
    consent(here)
    clock.advance((operations.EVENT_DAYS + 1) * PRUNE_SECONDS)
    assert len(list(here.events())) == 1
    consent(here, number=2)
    assert [each["id"] for each in here.events()] == ["ann-2"]
    clock.advance(10)
    assert here.prune_events(5 / PRUNE_SECONDS) == 1
    assert list(here.events()) == []


@pytest.mark.parametrize("audit", [False, True])
def test_renewals_are_kept_only_with_audit(local: Engine, clock: TestClock, audit: bool) -> None:
    """They are told either way; the same save twice is told again only where nobody keeps a record."""
    store = Store(local, KEYRING, clock, audit=audit)
    told: list[Event] = []
    held = taken(store, consent(store))
    for _ in range(2):
        save(store, held, tell=told.append)
    assert {type(each) for each in told} == {TokensRenewed}
    assert len({each.id for each in told}) == 1
    assert len(told) == (1 if audit else 2)
    assert len(list(store.events(kind="TokensRenewed"))) == audit


def test_the_news_is_written_with_the_change(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """No news, no change: both are one transaction, and nobody is told of what was not committed."""
    grant = consent(here)

    def fails(*args: object) -> bool:
        raise RuntimeError("the power fails")

    monkeypatch.setattr(operations, "record", fails)
    told: list[Event] = []
    for change in (
        lambda: here.mark(MarkGrant(grant, "revoked"), told.append),
        lambda: here.open_prompt(OpenPrompt(grant, "step_up"), told.append),
        lambda: here.forget(grant, told.append),
        lambda: consent(here, number=2, tell=told.append),
    ):
        with pytest.raises(RuntimeError):
            change()
    assert told == []
    assert row(here) == replace(grant, read_at=row(here).read_at)


def test_the_same_news_is_told_once(here: Store, clock: TestClock) -> None:
    """By its id: never again, or again after a while; the time is the database's where the news has none."""
    told: list[Event] = []
    trouble = ProviderTrouble(id="incident", registration="example", cause="c", incident={"status": 503})
    for _ in range(2):
        here.announce(trouble, told.append)
    assert [each.id for each in told] == ["incident"]
    assert told[0].at is not None
    assert told[0].at.timestamp() == clock()
    told.clear()
    problem = ConfigurationProblem(id="problem", registration="example", cause="c", fix="f")
    for wait in (0, 10, 3600):
        clock.advance(wait)
        here.announce(problem, told.append, every=3600.0)
    assert len(told) == 2
    kept = next(here.events(kind="ProviderTrouble"))
    assert kept["data"] == {"incident": {"status": 503, "at": kept["at"]}}


def test_what_an_event_says_is_fit_for_json(here: Store) -> None:
    """A prompt, times and tuples in an event are read back as plain values."""
    told: list[Event] = []
    grant = consent(here, tell=told.append)
    assert isinstance(told[0], GrantConnected)
    here.open_prompt(OpenPrompt(grant, "insufficient_scope", ("mail",)), told.append)
    kept = next(here.events(kind="ReauthenticationNeeded"))
    assert kept["cause"] == "insufficient_scope"
    assert kept["data"]["prompt"]["scopes"] == ["mail"]
    assert kept["data"]["prompt"]["opened_at"].startswith("2027-01-15T08:00:00")


# --- how it is done --------------------------------------------------------------------------------------------------


def test_a_writing_transaction_begins_with_its_write(here: Store) -> None:
    """A read first would be an instant SQLITE_BUSY where somebody else writes (a deferred transaction cannot wait)."""
    first: list[str] = []
    begun_now = [False]

    def begins(connection: Any) -> None:
        begun_now[0] = True

    def runs(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if begun_now[0]:
            first.append(statement.split(maxsplit=1)[0].upper())
        begun_now[0] = False

    grant = consent(here)
    event.listen(here.engine, "begin", begins)
    event.listen(here.engine, "before_cursor_execute", runs)
    writes: list[Callable[[], Any]] = [
        lambda: claim(here, grant),
        lambda: here.extend_claim(held),
        lambda: here.release(held, in_doubt=True, retry_after=None, failed=True),
        lambda: save(here, held),
        lambda: mark(here, grant),
        lambda: here.save_pending(SavePending(begun("a" * 64), 60.0)),
        lambda: here.consume_pending(ConsumePending("a" * 64, "ann", None)),
        lambda: here.end_pause("example"),
        lambda: here.forget(grant, lambda news: None),
    ]
    held = Claim("f" * 32, grant, 0.0, LEASE)
    for write in writes:
        first.clear()
        write()
        assert first[0] in ("UPDATE", "INSERT", "DELETE"), first
    event.remove(here.engine, "begin", begins)
    event.remove(here.engine, "before_cursor_execute", runs)


def test_what_is_stored_of_a_token_is_sealed(here: Store) -> None:
    """No token stands in any row; registration and member are bytes."""
    consent(here, tell=None)
    with here.engine.connect() as connection:
        found = connection.execute(select(grants)).one()
        news = connection.execute(select(events)).one()
    assert b"access-1" not in bytes(found.access_token)
    assert b"refresh-1" not in bytes(found.refresh_token)
    assert bytes(found.member) == b"ann"
    assert "access-1" not in str(news)


# --- a server that was demoted ---------------------------------------------------------------------------------------

TAKES_NO_WRITES = {
    "sqlite": "PRAGMA query_only = 1",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}


def test_connections_to_a_server_that_was_demoted_are_left(engine: Engine, store: Store) -> None:
    """After a switchover the pooled connections take no writes; the next ones are new, and go to the successor."""
    grant = consent(store)
    with engine.connect() as connection:
        connection.exec_driver_sql(TAKES_NO_WRITES[engine.dialect.name])
        connection.commit()
    with pytest.raises(ConfigurationError) as refused:
        claim(store, grant)
    assert refused.value.cause == "database_read_only"
    if engine.dialect.name == "sqlite":  # a file has no successor: the operator's turn, until it can be written
        with pytest.raises(ConfigurationError):
            claim(store, grant)
    else:
        assert claim(store, grant) is not None


def test_callers_do_not_queue_without_an_end_before_the_first_look_at_the_database(
    local: Engine, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first caller's connection hangs: the others are told that the store is away, and do not wait in its line."""
    monkeypatch.setattr(transactions, "POOL_PATIENCE", 0.05)
    store = Store(local, KEYRING, clock)
    with store._check_lock, pytest.raises(TemporarilyUnavailable) as away:
        store.load(KEY)
    assert away.value.cause == "store"
    assert store.load(KEY) is None
