"""Systematic failure, SQLite's way: each operation of a renewal fails once, the first, the second, … until none is left.

A run is a guarded call whose token the API refuses, in a worker that has just started: it reads, claims, extends,
redeems, spills and saves. The operations are counted below tokenkeeper (``injection.py``), so a new one is met as soon
as it is there; ``pytest -rP`` shows the list.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from injection import Faults, spoil_database, spoiled

from tokenkeeper import (
    AccessToken,
    AsyncTokenKeeper,
    ConfigurationError,
    GrantStatus,
    Keyring,
    ReauthenticationRequired,
    TemporarilyUnavailable,
    TokenKeeper,
)
from tokenkeeper.crypto import generate_key
from tokenkeeper.spill import Spill
from tokenkeeper.store.tables import grants
from tokenkeeper.testing import FakeProvider
from tokenkeeper.testing.clock import TestClock

DEADLINE = 4.0
LEASE = 6.0
PATIENCE = 0.5
"""So long (real seconds) a call waits for its renewal, which under a lasting fault does not end before the call."""

HANG = DEADLINE + 10.0
LONG = os.environ.get("TOKENKEEPER_CAMPAIGN") == "long"
MOST = 300
"""More operations than a renewal can have: the search ends, whatever happens."""

AMBIGUOUS = frozenset({"http: send's acknowledgement", "http: receive"})
"""After these the provider may have spent the token, and its successor never came: under strict rotation it is lost."""


class BriskClock(TestClock):
    """A test clock whose waits take a twentieth of their time: a worker that retries does not spin."""

    def wait(self, seconds: float, wake: threading.Event) -> None:
        """Let the time pass, and a little of the real one."""
        self.advance(seconds)
        wake.wait(seconds / 20)

    async def sleep(self, seconds: float) -> None:
        """Let the time pass, and a little of the real one."""
        self.advance(seconds)
        await asyncio.sleep(seconds / 20)


class Bench:
    """A provider over HTTP, a database and a spill folder, and workers that are made anew for each run."""

    def __init__(
        self,
        url: str,
        twin: str,
        rotation: str,
        folder: Path,
        runner: asyncio.Runner,
        faults: Faults,
        after_crash: bool,
    ) -> None:
        self.url = url
        self.after_crash = after_crash
        """Whether another worker has died before it could save: its tokens are in the spill folder, its claim lapsed."""
        self.twin = twin
        self.rotation = rotation
        self.spills = folder / "spills"
        self.faults = faults
        self.clock = BriskClock()
        self.keyring = Keyring.parse(generate_key("k1"))
        self.provider = FakeProvider(rotation=rotation, clock=self.clock)
        self.runner = runner
        self.operations: list[str] = []
        """The operations that have failed so far, in their order."""

    def keeper(self, spill: str, patience: float = DEADLINE + 5) -> Any:
        """A new worker with a spill folder, whose database is spoiled."""
        kind = TokenKeeper if self.twin == "sync" else AsyncTokenKeeper
        declared = self.provider.as_provider(lease_seconds=LEASE, deadline_seconds=DEADLINE)
        keeper = kind(
            self.url,
            keys=self.keyring,
            registrations=[self.provider.registration("acme", provider=declared)],
            patience=patience,
            spill_directory=self.spills / spill,
        )
        spoil_database(keeper._room.engine, self.faults)
        return self.clock.install(keeper)

    def does(self, result: Any) -> Any:
        """The result of a method of either twin."""
        return self.runner.run(_awaited(result)) if inspect.isawaitable(result) else result

    def call(self, keeper: Any, member: str) -> int:
        """Make a guarded call; its status."""
        url = f"{self.provider.base_url}/userinfo"
        if self.twin == "sync":
            client = httpx2.Client(transport=self.provider.transport())

            def profile(token: AccessToken, member: str) -> httpx2.Response:
                return client.get(url, auth=token)

            return int(keeper.guard("acme")(profile)(member=member).status_code)
        aclient = httpx2.AsyncClient(transport=self.provider.async_transport())

        async def aprofile(token: AccessToken, member: str) -> httpx2.Response:
            return await aclient.get(url, auth=token)

        return int(self.does(keeper.guard("acme")(aprofile)(member=member)).status_code)

    def settle(self, keeper: Any) -> None:
        """Wait until the worker's renewals have ended."""
        end = time.monotonic() + HANG
        while keeper._room.view()["renewals"] or keeper._room._under_way:
            assert time.monotonic() < end, "a renewal goes on without an end"
            time.sleep(0.005)

    def redeemed(self, member: str) -> int:
        """How often the provider has taken a refresh token of the member."""
        return sum(p.surface == "token" and p.member == member and p.accepted for p in self.provider.log)

    def attempt(self, nth: int, *, lasting: bool) -> str | None:
        """Make a call whose *nth* operation fails, judge it, and say what came of it; None: there are not so many.

        A caller may lose its patience on a slow machine and look at the row while its renewal goes on: then the
        operations come in another order, some may not have been met, and the same is tried again.
        """
        met: list[str] = []
        for again in range(5):
            said = self._once(f"member-{nth}-{again}", nth, lasting=lasting)
            met = self.faults.met
            if self.faults.failed is None and met == self.operations:
                return None
            if self.faults.failed is not None and met[:-1] == self.operations:
                self.operations = met
                return said
        raise AssertionError(f"each time another order of operations: {met} after {self.operations}")

    def _once(self, member: str, nth: int, *, lasting: bool) -> str:
        (self.spills / member).mkdir(parents=True)
        worker, after = self.keeper(member, PATIENCE if lasting else DEADLINE + 5), self.keeper(member)
        try:
            assert worker._room.store  # what opening it starts in the background is not to be counted by chance
            self.settle(worker)
            self.does(after.save_tokens("acme", member, self.provider.issue(member=member)))
            self.clock.advance(60)
            self.provider.expire(member)
            if self.after_crash:
                self._crash(member)
            outcome = self._fail(worker, member, nth, lasting=lasting)
            self.settle(worker)
            self._judge(after, member)
            return f"{self.faults.failed!s:<75} {outcome}{self._afterwards(after, member)}"
        finally:
            self.does(worker.close())
            self.does(after.close())

    def _crash(self, member: str) -> None:
        """A renewal by a worker that dies between spilling and saving: its tokens are spilled, its row is as it was."""
        dead = self.keeper(member)
        caller = threading.Thread(target=self.call, args=(dead, member), daemon=True)
        with pytest.MonkeyPatch.context() as patch, self.provider.hold("token", at="answer", times=1) as gate:
            patch.setattr(Spill, "remove", lambda *_: None)
            caller.start()
            gate.wait_until_held()
            with dead._room.engine.connect() as connection:
                row = connection.execute(grants.select().where(grants.c.member == member.encode())).one()
            gate.release()
            caller.join(HANG)
        with dead._room.engine.begin() as connection:
            connection.execute(grants.update().where(grants.c.grant_id == row.grant_id).values(row._asdict()))
        self.does(dead.close())
        assert row.claim_id is not None
        (spilled,) = (self.spills / member).iterdir()
        assert row.claim_id in spilled.name
        self.clock.advance(LEASE + 1)

    def _fail(self, keeper: Any, member: str, nth: int, *, lasting: bool) -> str:
        started = time.monotonic()
        self.faults.arm(nth, lasting=lasting)
        try:
            status = self.call(keeper, member)
            assert status == 200, f"the call was answered with {status}"
            return "success"
        except (TemporarilyUnavailable, ConfigurationError) as error:
            return f"{type(error).__name__}({error.cause})"
        finally:
            self.faults.end()
            took = time.monotonic() - started
            assert took < HANG, f"operation {nth} ({self.faults.failed}) held the call for {took:.1f} s"

    def _judge(self, keeper: Any, member: str) -> None:
        """Whatever happened: the grant is there, active, and the member is asked for nothing."""
        grant = self.does(keeper.grant("acme", member))
        assert grant.status is GrantStatus.ACTIVE
        assert grant.prompt is None
        assert grant.has_refresh_token
        assert grant.generation - 1 <= self.redeemed(member) <= 1

    def _afterwards(self, keeper: Any, member: str) -> str:
        """Faults gone and a lease over, calls succeed and the rotation goes on, or the successor never came."""
        generation = self.does(keeper.grant("acme", member)).generation
        self.clock.advance(LEASE + 2)
        cause = self._cause_of_loss(keeper, member)
        if cause is not None:
            assert self.rotation == "strict", f"{self.faults.failed}: {cause}"
            assert self.faults.failed in AMBIGUOUS, f"{self.faults.failed}: {cause}"
            assert self.redeemed(member) > generation - 1, f"{self.faults.failed}: condemned, and no successor was lost"
            assert cause == "lost_answer", f"{self.faults.failed}: said to be {cause}"
            return f", then lost ({cause}): its successor was not delivered"
        self.does(keeper.renew("acme", member))
        if self.rotation == "strict":
            assert not [p for p in self.provider.log if p.member == member and p.verdict in ("replayed", "reused")]
        return ""

    def _cause_of_loss(self, keeper: Any, member: str) -> str | None:
        try:
            assert self.call(keeper, member) == 200
        except ReauthenticationRequired as error:
            return error.cause or "unknown"
        return None


async def _awaited(result: Any) -> Any:
    return await result


@contextmanager
def bench(url: str, twin: str, rotation: str, folder: Path, *, after_crash: bool = False) -> Iterator[Bench]:
    """Set up a bench on an empty database."""
    clock: list[BriskClock] = []

    def pass_a_while() -> None:
        clock[0].advance(1.5)  # so long after the claim that it is extended before the request is written

    with asyncio.Runner() as runner, spoiled(folder, pass_a_while) as faults:
        made = Bench(url, twin, rotation, folder, runner, faults, after_crash)
        clock.append(made.clock)
        with made.provider.serve():
            first = made.keeper("first")
            made.does(first.create_schema())
            made.does(first.close())
            yield made


def fail_each(made: Bench, *, lasting: bool) -> list[str]:
    """Fail one operation after the other until there is none left; print and return what came of each."""
    outcomes: list[str] = []
    while (outcome := made.attempt(len(outcomes) + 1, lasting=lasting)) is not None:
        outcomes.append(outcome)
        print(f"{len(outcomes):>3} {'lasting' if lasting else 'once':<8}{outcome}")
        assert len(outcomes) < MOST, "operations without an end"
    return outcomes


RENEWING = (
    "database: connect",
    "database: UPDATE tokenkeeper_grant SET claim",
    "database: COMMIT ",
    "database: COMMIT's acknowledgement",
    "http: connect",
    "http: send ",
    "http: receive",
    "file: mkdir",
    "file: open",
    "file: write",
    "file: fsync .part",
    "file: replace",
    "file: fsync folder",
    "file: unlink",
)
"""What faults must have met in a renewal: all three layers, from the claim to the removal of the spill file."""

REPLAYING = (
    "file: glob",
    "file: read_text",
    "database: UPDATE tokenkeeper_grant SET status",
    "database: COMMIT's acknowledgement",
    "file: unlink",
)
"""And what they must have met where the tokens of a worker that died are found in the spill."""


def check_coverage(outcomes: list[str], operations: tuple[str, ...]) -> None:
    """The faults met all of these."""
    text = "\n".join(outcomes)
    for operation in operations:
        assert operation in text, f"no fault met {operation!r}"


def test_every_operation_of_a_renewal_may_fail(tmp_path: Path) -> None:
    """Whichever operation fails, the call succeeds or fails for a while, and no grant is lost but by a lost answer."""
    with bench(f"sqlite:///{tmp_path / 'tokens.db'}", "sync", "strict", tmp_path) as made:
        check_coverage(fail_each(made, lasting=False), RENEWING)


@pytest.mark.campaign
@pytest.mark.parametrize("failing", ["once", "lasting"])
def test_every_operation_of_a_replay_may_fail(tmp_path: Path, failing: str) -> None:
    """The same where a worker has died with its tokens in the spill: they are stored, and no spent token is shown."""
    with bench(f"sqlite:///{tmp_path / 'tokens.db'}", "sync", "strict", tmp_path, after_crash=True) as made:
        check_coverage(fail_each(made, lasting=failing == "lasting"), REPLAYING)


TRIALS = [
    ("sync", "strict", "once"),
    ("sync", "strict", "lasting"),
    ("async", "strict", "once"),
    ("async", "grace", "lasting"),
]
if LONG:
    TRIALS = list(itertools.product(("sync", "async"), ("strict", "grace"), ("once", "lasting")))


@pytest.mark.campaign
@pytest.mark.parametrize(("twin", "rotation", "failing"), TRIALS)
def test_every_operation_may_fail_on_every_database(
    database_url: str, twin: str, rotation: str, failing: str, tmp_path: Path
) -> None:
    """The same for both twins on every database; where the provider forgives a replay, nothing is lost at all."""
    with bench(database_url, twin, rotation, tmp_path) as made:
        check_coverage(fail_each(made, lasting=failing == "lasting"), RENEWING)
