"""The store on SQLite against a model in plain Python: whatever happens in whatever order, both say the same.

The model is the one that the flows' schedules run on (``core.world.ModelStore``): what holds there, holds here.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from core.world import ModelStore, Row
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from tokenkeeper.core.effects import (
    SECOND,
    Claim,
    ClaimGrant,
    ConsumePending,
    DeleteRevoked,
    Marked,
    MarkGrant,
    OpenPrompt,
    PendingAuthorization,
    SaveConsent,
    Saved,
    SavePending,
    StateRefused,
    StoredGrant,
)
from tokenkeeper.core.token_endpoint import TokenSet
from tokenkeeper.crypto import Keyring
from tokenkeeper.errors import SecretTampered
from tokenkeeper.events import ConfigurationProblem, Event, TokensRenewed
from tokenkeeper.model import GrantKey, Secret
from tokenkeeper.store import schema
from tokenkeeper.store.engine import make_engine
from tokenkeeper.store.sealed import open_access_token, open_refresh_token
from tokenkeeper.store.transactions import Store
from tokenkeeper.testing.clock import TestClock

MEMBERS = ("ann", "Ann", "ann ", "änn")
KEYS = [GrantKey("example", member) for member in MEMBERS]
KEYRING = Keyring({"test": b"k" * 32})
LEASE = 40.0
KEPT = {"ReauthenticationNeeded", "GrantConnected", "GrantForgotten", "GrantRevoked", "ConfigurationProblem"}


@cache
def empty_database() -> bytes:
    """A migrated database without rows."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        engine = make_engine(f"sqlite:///{path}")
        schema.upgrade(engine)
        engine.dispose()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.close()
        return path.read_bytes()


def fresh_store(clock: TestClock) -> Store:
    """A store on a database of its own, in memory."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    connection = engine.raw_connection()
    driver: Any = connection.driver_connection
    driver.deserialize(empty_database())
    connection.close()
    return Store(engine, KEYRING, clock)


def facts(grant: StoredGrant | None) -> StoredGrant | None:
    """A row without what only a keyring can read, and without the reader's clock."""
    return None if grant is None else replace(grant, sealed_access_token=b"", sealed_refresh_token=b"", read_at=0.0)


causes = st.sampled_from(["revoked", "grant_invalid", "expired", "insufficient_scope"])
lives = st.sampled_from([None, 30.0, 3600.0])


class Twice(RuleBasedStateMachine):
    """Does everything twice, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = TestClock()
        self.store = fresh_store(self.clock)
        self.model = ModelStore()
        self.told: list[Event] = []
        self.count = 0

    def teardown(self) -> None:
        """Close the database."""
        self.store.engine.dispose()

    @property
    def now(self) -> int:
        """The database's clock."""
        return round(self.clock() * SECOND)

    def number(self) -> int:
        """A number that never comes again."""
        self.count += 1
        return self.count

    @rule(seconds=st.sampled_from([0.300001, 7.10001, 41.70003, 130.00007, 3601.90011]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    @invariant()
    def all_news_is_the_same(self) -> None:
        """Each piece of news is in the table once, and was told once, when it was written."""
        kept = [(each["kind"], each["id"]) for each in self.store.events() if each["kind"] in KEPT]
        assert sorted(kept) == sorted(self.model.events)
        told = [(type(each).__name__, each.id) for each in self.told if type(each).__name__ in KEPT]
        assert sorted(told) == sorted(self.model.events)


class Grants(Twice):
    """Consents, claims, renewals, marks and prompts."""

    rows = Bundle("rows")
    claims = Bundle("claims")

    def tokens(self, *, refresh: bool, life: float | None, scopes: tuple[str, ...] | None = None) -> TokenSet:
        """New tokens."""
        number = self.number()
        return TokenSet(
            access_token=Secret(f"access-{number}"),
            refresh_token=Secret(f"refresh-{number}") if refresh else None,
            expires_in=life,
            refresh_expires_in=None if life is None else life * 10,
            scopes=scopes,
        )

    # --- grants ---

    @rule(
        target=rows,
        key=st.sampled_from([KEYS[0], *KEYS]),
        refresh=st.booleans(),
        keep=st.booleans(),
        life=lives,
        account=st.sampled_from([None, "a" * 64]),
        ago=st.sampled_from([None, 2.5]),
    )
    def save_consent(
        self, key: GrantKey, refresh: bool, keep: bool, life: float | None, account: str | None, ago: float | None
    ) -> StoredGrant:
        """A member consents, or the host saves tokens."""
        effect = SaveConsent(
            key,
            self.tokens(refresh=refresh, life=life),
            ("read", f"s{self.count}"),
            account,
            keep_refresh_token=keep,
            sent_at=None if ago is None else self.clock.monotonic() - ago,
            event_id=f"{self.number():032x}",
        )
        saved = self.store.save_consent(effect, self.told.append)
        elapsed = 0.0 if effect.sent_at is None else self.clock.monotonic() - effect.sent_at
        assert facts(saved) == facts(self.model.consent(effect, saved.id, elapsed, self.now))
        return saved

    @initialize(target=rows)
    def somebody_is_connected(self) -> StoredGrant:
        """A member consents, with all that a provider may give."""
        return self.save_consent(KEYS[0], refresh=True, keep=False, life=30.0, account=None, ago=None)

    @rule(target=rows, key=st.sampled_from([*KEYS[:1] * 4, *KEYS]))
    def load(self, key: GrantKey) -> Any:
        """Read a row; whoever has read it may be late with what comes of it."""
        grant = self.store.load(key)
        assert facts(grant) == facts(self.model.load(key, self.now))
        return multiple() if grant is None else grant

    @rule(target=claims, row=rows, forced=st.booleans(), revoking=st.sampled_from([False, False, True]))
    def claim(self, row: StoredGrant, forced: bool, revoking: bool) -> Any:
        """Claim what was read, now or a while ago; to renew it, or to revoke it."""
        claim = self.store.claim(ClaimGrant(row, LEASE, forced, revoking), witnessed_lease=math.inf)
        claim_id = "" if claim is None else claim.id
        expected = self.model.claim(row, claim_id, LEASE, self.now, forced=forced, revoking=revoking)
        assert (claim is None) == (expected is None)
        if claim is None or expected is None:
            return multiple()
        assert facts(claim.grant) == facts(expected.grant)
        assert (claim.taken_at, claim.lease) == (self.clock.monotonic(), LEASE)
        return claim

    @rule(claim=claims)
    def extend(self, claim: Claim) -> None:
        """The last look of a holder."""
        assert self.store.extend_claim(claim) == self.model.extend(claim, self.now)

    @rule(claim=claims, in_doubt=st.booleans(), retry_after=st.sampled_from([None, 1.5, 900.0]), failed=st.booleans())
    def release(self, claim: Claim, in_doubt: bool, retry_after: float | None, failed: bool) -> None:
        """Give a claim back, if it is still one."""
        more: dict[str, Any] = {"in_doubt": in_doubt, "retry_after": retry_after, "failed": failed}
        self.store.release(claim, **more)
        self.model.release(claim, self.now, **more)

    @rule(target=rows, claim=claims, refresh=st.booleans(), life=lives, scopes=st.sampled_from([None, ("read",), ()]))
    def save_renewal(self, claim: Claim, refresh: bool, life: float | None, scopes: tuple[str, ...] | None) -> Any:
        """Save a renewal's tokens: in time, late, after a mark, twice."""
        tokens = self.tokens(refresh=refresh, life=life, scopes=scopes)
        sealed = self.store.seal(claim.grant, tokens)
        before = len(self.told)
        found = self.store.save_renewal(sealed, 1.25, claim.id, self.told.append)
        expected = self.model.save(claim, tokens, 1.25, self.now)
        assert type(found) is type(expected)
        assert facts(found.grant) == facts(expected.grant)
        assert getattr(found, "revoked", None) == getattr(expected, "revoked", None)
        news = [event for event in self.told[before:] if isinstance(event, TokensRenewed)]
        assert len(news) == isinstance(found, Saved)
        return multiple() if found.grant is None else found.grant

    @rule(target=rows, row=rows, cause=causes)
    def mark(self, row: StoredGrant, cause: str) -> Any:
        """Mark what was read, with no claim."""
        return self._mark(MarkGrant(row, cause))

    @rule(target=rows, claim=claims, cause=causes)
    def mark_with_claim(self, claim: Claim, cause: str) -> Any:
        """Mark what was claimed."""
        return self._mark(MarkGrant(claim.grant, cause, claim, ("mail",), "gold", "{}"))

    def _mark(self, effect: MarkGrant) -> Any:
        found = self.store.mark(effect, self.told.append)
        expected = self.model.mark(effect, self.now)
        assert type(found) is type(expected)
        if isinstance(found, Marked) and isinstance(expected, Marked):
            assert facts(found.grant) == facts(expected.grant)
            return found.grant
        assert not isinstance(found, Marked)
        assert not isinstance(expected, Marked)
        assert facts(found) == facts(expected)
        return multiple() if found is None else found

    @rule(row=rows, cause=causes, scopes=st.sampled_from([(), ("mail",), ("mail", "files")]))
    def open_prompt(self, row: StoredGrant, cause: str, scopes: tuple[str, ...]) -> None:
        """Ask the member for something, and leave the grant as it is."""
        effect = OpenPrompt(row, cause, scopes, acr_values="gold" if scopes else None)
        assert self.store.open_prompt(effect, self.told.append) == self.model.open_prompt(effect)

    @rule(row=rows, often=st.integers(0, 5))
    def forget(self, row: StoredGrant, often: int) -> None:
        """Delete a grant, or find it deleted; not so often that little else happens."""
        if often:
            return
        assert self.store.forget(row, self.told.append) == self.model.forget(row)

    @rule(target=rows, key=st.sampled_from(KEYS), often=st.integers(0, 3))
    def begin_revocation(self, key: GrantKey, often: int) -> Any:
        """Take a grant out of service; not so often that little else happens."""
        if often:
            return multiple()
        grant = self.store.begin_revocation(key)
        assert facts(grant) == facts(self.model.begin_revocation(key, self.now))
        return multiple() if grant is None else grant

    @rule(claim=claims)
    def delete_revoked(self, claim: Claim) -> None:
        """The provider was told: delete what was claimed, if it is still that."""
        effect = DeleteRevoked(claim, "revoked")
        assert self.store.delete_revoked(effect, self.told.append) == self.model.delete_revoked(effect)

    # --- what must hold ---

    @invariant()
    def all_rows_are_the_same(self) -> None:
        """Every row, its tokens, and the order in which all are listed."""
        listed = list(self.store.grants())
        assert [each.key for each in listed] == sorted(self.model.rows, key=lambda key: key.member.encode())
        for grant in listed:
            assert facts(grant) == facts(self.model.load(grant.key, self.now))
            row = self.model.rows[grant.key]
            assert open_access_token(KEYRING, grant).reveal() == row.access_token
            if row.refresh_token is not None:
                assert open_refresh_token(KEYRING, grant).reveal() == row.refresh_token
        for one, other in pairwise(listed):
            self._refused(replace(one, sealed_access_token=other.sealed_access_token))
        for grant in listed[:1]:
            self._refused(replace(grant, generation=grant.generation + 1))
            if grant.sealed_refresh_token is not None:
                self._refused(replace(grant, sealed_access_token=grant.sealed_refresh_token))

    def _refused(self, moved: StoredGrant) -> None:
        """A ciphertext opens in its own row, column and generation only."""
        with pytest.raises(SecretTampered):
            open_access_token(KEYRING, moved)


class PausesAndAuthorizations(Twice):
    """Registrations that pause, and members who come back, or others in their place."""

    states = Bundle("states")

    @rule(credentials=st.sampled_from(["old", "new"]))
    def pause(self, credentials: str) -> None:
        """The client was refused."""
        event = ConfigurationProblem(
            id=f"{self.number():032x}", registration="example", cause="invalid_client", fix="f"
        )
        self.store.pause(event, credentials, "invalid_client", "f", self.told.append)
        if self.model.pause("example", credentials, "invalid_client", "f", self.now):
            self.model.events = (*self.model.events, ("ConfigurationProblem", event.id))

    @rule(credentials=st.sampled_from(["old", "new"]), probe=st.booleans())
    def load_pause(self, credentials: str, probe: bool) -> None:
        """Look whether renewals may go on; one caller in a while may try."""
        found = self.store.load_pause("example", credentials, probe=probe)
        assert found == self.model.load_pause("example", credentials, self.now, probe=probe)

    @rule()
    def end_pause(self) -> None:
        """The client was accepted."""
        self.store.end_pause("example")
        self.model.end_pause("example")

    @rule(
        target=states,
        key=st.sampled_from(KEYS),
        session=st.sampled_from([None, "s" * 64]),
        verifier=st.sampled_from([None, Secret("v" * 64)]),
        lifetime=st.sampled_from([5.0, 600.0]),
    )
    def begin(self, key: GrantKey, session: str | None, verifier: Secret | None, lifetime: float) -> str:
        """A member begins."""
        digest = f"{self.number():064x}"
        pending = PendingAuthorization(
            state_digest=digest,
            key=key,
            session_digest=session,
            verifier=verifier,
            redirect_uri="https://app.example/callback",
            return_to="/",
            scopes=("read", "write"),
        )
        ends = self.store.save_pending(SavePending(pending, lifetime))
        assert ends == self.model.save_pending(pending, lifetime, self.now)
        return digest

    @rule(digest=states, key=st.sampled_from(KEYS), session=st.sampled_from([None, "s" * 64, "t" * 64]))
    def consume(self, digest: str, key: GrantKey, session: str | None) -> None:
        """A callback comes: the right one, another member's, another session's, late, or again."""
        self._consume(digest, key.member, session)

    @rule(digest=consumes(states))
    def consume_rightly(self, digest: str) -> None:
        """The member comes back in the session they began in."""
        row = self.model.pending.get(digest)
        if row is not None:
            self._consume(digest, row.pending.key.member, row.pending.session_digest)

    @rule(session=st.sampled_from([None, "s" * 64]))
    def consume_unknown(self, session: str | None) -> None:
        """A callback whose state was never issued."""
        self._consume("f" * 64, "ann", session)

    def _consume(self, digest: str, member: str, session: str | None) -> None:
        found = self.store.consume_pending(ConsumePending(digest, member, session))
        expected = self.model.consume_pending(digest, member, session, self.now)
        assert found == expected
        assert isinstance(found, StateRefused) or found.key.member == member


def thoroughly(machine: type[Twice], examples: int) -> Any:
    """A test of a machine, in sequences long enough for something to happen."""
    case = machine.TestCase
    case.settings = settings(
        deadline=None,
        max_examples=examples,
        stateful_step_count=40,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    return case


TestGrants = thoroughly(Grants, 50)
TestPausesAndAuthorizations = thoroughly(PausesAndAuthorizations, 25)


class LosesTheGeneration(ModelStore):
    """A model that marks whatever is there."""

    def markable(self, row: Row, effect: MarkGrant) -> bool:
        """Never no."""
        return True


def test_a_revocation_in_both() -> None:
    """Out of service, claimed, deleted, and a late save is told why the row is gone: both say the same."""
    machine = Grants()
    old = machine.somebody_is_connected()
    late = machine.claim(old, forced=False, revoking=False)
    machine.advance(41.70003)
    revoking = machine.begin_revocation(KEYS[0], 0)
    mine = machine.claim(revoking, forced=False, revoking=True)
    assert mine.grant.in_flight_tries == 1, "a claim to revoke is no presentation"
    machine.delete_revoked(mine)
    assert machine.model.rows == {}
    machine.save_renewal(late, refresh=True, life=30.0, scopes=None)
    machine.all_news_is_the_same()
    assert any(kind == "GrantRevoked" for kind, _ in machine.model.events)
    machine.teardown()


def test_a_model_that_differs_is_noticed() -> None:
    """The comparison can fail: a mark that was overtaken by a consent is told apart."""
    machine = Grants()
    machine.model = LosesTheGeneration()
    old = machine.save_consent(KEYS[0], refresh=True, keep=False, life=30.0, account=None, ago=None)
    machine.save_consent(KEYS[0], refresh=True, keep=False, life=30.0, account=None, ago=None)
    with pytest.raises(AssertionError):
        machine.mark(old, "revoked")
    machine.teardown()
