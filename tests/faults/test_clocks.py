"""The clock of one worker, or of the database, jumps an hour while workers run: nothing is blocked, nothing shown twice.

libfaketime moves CLOCK_REALTIME of a process while it runs, by a file that it reads at each look; CLOCK_MONOTONIC is left
alone. SQLite takes the time of the process that asks, so there a worker's clock is the database's, for that worker only.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import LONG, kinds_here, left_out
from tests.faults.lab import EVERY, PATIENCE, SURVIVORS, Hook, Laboratory, Plan
from tests.faults.lab_checker import Evidence
from tests.faults.lab_log import first
from tests.servers import PRIVATE
from tokenkeeper.core.renewal import EARLY_REFUSALS

HOUR = 3600
LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)

# A server's time is its own: there a worker's clock matters to little, so the short round leaves it out.
PLACES = [("worker", kind) for kind in (kinds_here() if LONG else ["sqlite"])] + [
    ("database", kind) for kind in PRIVATE
]
JUMPS = [
    ("renewing", HOUR),  # the claim seems to have lapsed
    ("dead", -HOUR),  # the claim seems to hold for an hour
    ("backing_off", -HOUR),  # so does the back-off
]
if LONG:
    JUMPS += [(state, -jump) for state, jump in JUMPS] + [("renewed", HOUR), ("renewed", -HOUR)]

pytestmark = pytest.mark.campaign


class Hands:
    """The hands of one clock: a file that libfaketime reads."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "clock"
        self.move(0)

    def move(self, seconds: int) -> None:
        """Set the clock so many seconds off."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.chmod(0o644)
        fresh.replace(self.file)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process with this clock."""
        return {**preload(), "FAKETIME_TIMESTAMP_FILE": str(self.file)}


def preload() -> dict[str, str]:
    """The environment in which libfaketime is there, and does nothing yet."""
    return {"LD_PRELOAD": str(LIBRARY), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@pytest.fixture
def hands() -> Iterator[Hands]:
    """A clock, in a folder that a database server's account may read; the test is left out where there is no libfaketime."""
    if LIBRARY is None:
        left_out("no clock can be set: Debian's package libfaketime is not installed")
    with tempfile.TemporaryDirectory(prefix="tokenkeeper-clock-") as folder:
        Path(folder).chmod(0o755)
        yield Hands(Path(folder))


@contextlib.contextmanager
def laboratory(place: str, kind: str, folder: Path, hands: Hands) -> Iterator[Laboratory]:
    """A laboratory in which *hands* move the clock of the first worker, or of the database."""
    with contextlib.ExitStack() as stack:
        if place == "worker":
            lab = Laboratory(kind, "strict", folder, env=preload(), clocks={SURVIVORS[0]: hands.file})
        else:
            server = stack.enter_context(PRIVATE[kind](folder, env=hands.env))
            lab = Laboratory(kind, "strict", folder, url=server.url)
        yield stack.enter_context(lab)


def calling(lab: Laboratory, member: str) -> str:
    """Have both workers call for a member; returns its first access token."""
    initial = lab.issue(member, 7200.0)
    for worker in lab.survivors:
        worker.tell("loop", member=member, every=EVERY)
    for worker in lab.survivors:
        assert lab.reader.wait(member, first("call", worker=worker.name, outcome="ok"), PATIENCE)
    return initial


def while_renewing(lab: Laboratory, member: str, initial: str, jump: Callable[[], None]) -> None:
    """The clock jumps while the provider is busy with a renewal."""

    def at_provider() -> None:
        lab.log.write("reached", member=member, point="sent")
        jump()
        time.sleep(1.2)  # the others look at the claim meanwhile, by the new time

    lab.provider.hooks[member] = Hook("sent", at_provider, delivers=True)
    lab.provider.expire(initial)
    lab.log.write("expired", member=member)


def after_a_death(lab: Laboratory, member: str, initial: str, jump: Callable[[], None]) -> None:
    """The clock jumps when a worker has died with the claim."""
    victim = lab.start("victim", spill=None, leeway=0.0, member=member, arm=("after:ClaimGrant", "kill"))
    lab.provider.refuse_first[member] = victim.name
    victim.tell("call", member=member)
    assert lab.reader.wait(member, first("reached"), PATIENCE)
    assert lab.reader.wait(member, first("exit", worker=victim.name), PATIENCE)
    victim.control.close()
    jump()
    lab.provider.expire(initial)
    lab.log.write("expired", member=member)


def while_backing_off(lab: Laboratory, member: str, initial: str, jump: Callable[[], None]) -> None:
    """The clock jumps when the token endpoint has just refused for the weather's sake."""
    lab.provider.script("server_error", surface="token", member=member)
    lab.provider.refuse_first[member] = SURVIVORS[0]
    assert lab.reader.wait(member, first("released"), PATIENCE)
    lab.log.write("reached", member=member, point="backing off")
    jump()
    lab.provider.expire(initial)
    lab.log.write("expired", member=member)


def after_a_renewal(lab: Laboratory, member: str, initial: str, jump: Callable[[], None]) -> None:
    """The clock jumps when the grant was renewed a moment ago, and then the new token is refused."""
    lab.provider.expire(initial)
    renewed = lab.reader.wait(member, first("saved"), PATIENCE)
    assert renewed
    fresh = first("presented")(lab.reader.of(member))["fresh"]["access"]
    assert lab.reader.wait(member, first("api", token=fresh, verdict="ok"), PATIENCE)
    lab.log.write("reached", member=member, point="renewed")
    jump()
    lab.provider.expire(fresh)
    lab.log.write("expired", member=member)


STATES = {
    "renewing": while_renewing,
    "dead": after_a_death,
    "backing_off": while_backing_off,
    "renewed": after_a_renewal,
}


def served_again(lab: Laboratory, member: str, initial: str, limit: float) -> dict[str, float | None]:
    """When each worker was served with new tokens, in seconds after the jump."""
    reached = lab.reader.wait(member, first("expired"), PATIENCE)
    assert reached
    old = {line["token"] for line in lab.reader.of(member) if line["event"] == "api" and line["at"] <= reached["at"]}
    found = {}
    for worker in SURVIVORS:

        def renewed(lines: list[dict[str, object]], worker: str = worker) -> float | None:
            return next(
                (
                    line["at"] - reached["at"]
                    for line in lines
                    if line["event"] == "api"
                    and (line["worker"], line["verdict"]) == (worker, "ok")
                    and line["token"] not in {initial, *old}
                ),
                None,
            )

        found[worker] = lab.reader.wait(member, renewed, limit)
    return found


def twice(seen: Evidence) -> list[str]:
    """Refresh tokens that were shown although they had been taken before."""
    return [f"{line['worker']}: {line['token']}" for line in seen.all("presented") if line["verdict"] == "reused"]


@pytest.mark.parametrize(("state", "jump"), JUMPS)
@pytest.mark.parametrize(("place", "kind"), PLACES)
def test_a_clock_jumps_an_hour(place: str, kind: str, state: str, jump: int, tmp_path: Path, hands: Hands) -> None:
    """A clock that jumps an hour blocks no grant for longer than twice the lease, and no token is shown twice."""
    with laboratory(place, kind, tmp_path, hands) as lab:
        calling(lab, "before")  # the workers have seen the clock when it was right
        initial = calling(lab, "ann")
        STATES[state](lab, "ann", initial, lambda: hands.move(jump))
        # A token that is refused right after a renewal is left alone for half a minute, whatever the clock.
        limit = 2 * lab.timing.lease + (EARLY_REFUSALS if state == "renewed" else 0.0)
        found = served_again(lab, "ann", initial, limit + 15)
        for worker in lab.survivors:
            worker.tell("rest", member="ann")
        seen = lab.evidence(Plan(state, "", 0), "ann")
        story = "\n".join(map(str, seen.lines))
        assert not twice(seen), f"{twice(seen)}\n{story}"
        assert not seen.lost, story
        for worker, seconds in found.items():
            stalled = seen.stalled(0, float("inf"))
            assert seconds is not None, f"{worker} was not served again\n{story}"
            assert seconds < limit + stalled, f"{worker} was blocked for {seconds:.2f} s\n{story}"
        assert [line["verdict"] for line in seen.all("presented") if line["token"] == "canary-refresh-2"].count(
            "ok"
        ) <= 1
        assert lab.reader.wait("before", first("call", outcome="ok"), 0)


@pytest.mark.parametrize(("place", "kind"), PLACES)
def test_the_clock_does_jump(place: str, kind: str, tmp_path: Path, hands: Hands) -> None:
    """What the tests above rely on: the jump is seen by the database, or the worker, and not by CLOCK_MONOTONIC."""
    with laboratory(place, kind, tmp_path, hands) as lab:
        hands.move(HOUR)
        if place == "database":
            assert HOUR - 60 < lab.keeper._room.store.now() / 1e6 - time.time() < HOUR + 60
        else:
            jumped = lab.survivors[0]
            jumped.tell("clock")
            line = lab.reader.wait("", first("clock", worker=jumped.name), PATIENCE)
            assert HOUR - 60 < line["epoch"] - time.time() < HOUR + 60
            assert abs(line["at"] - time.monotonic()) < 60
            off = HOUR if kind == "sqlite" else 0
            assert off - 60 < line["database"] / 1e6 - time.time() < off + 60
