"""SIGTERM in the middle of a renewal: no new claims, the one under way finishes or is spilled, and the exit is soon."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.conftest import LONG, kinds_here
from tests.faults.lab import PATIENCE, Hook, Laboratory, Plan, until
from tests.faults.lab_log import first
from tests.faults.lab_worker import REGISTRATION

EXIT_SECONDS = 5.0
"""Seconds after the deadline within which a worker that was told to end has ended."""

ROUNDS = 10 if LONG else 2

pytestmark = [pytest.mark.campaign, pytest.mark.parametrize("kind", kinds_here())]


def drained(lab: Laboratory, number: int, arm: tuple[str, str] | None) -> tuple[float, str, Path]:
    """Send SIGTERM to a worker whose renewal is under way; returns how long it took to end, the member, its spill."""
    member, other, name = f"member-{number}", f"other-{number}", f"victim-{number}"
    spill = lab.folder / f"spill-{number}"
    victim = lab.start(name, spill=spill, leeway=0.0, arm=arm, drain=True)
    try:
        for whose in (member, other):
            lab.issue(whose, 3600.0)
            victim.tell("loop", member=whose, every=0.05)
            assert lab.reader.wait(whose, first("call", worker=name, outcome="ok"), PATIENCE)

        def terminate() -> None:
            victim.signal(signal.SIGTERM)
            lab.log.write("sigterm", member=member)
            lab.provider.expire(other)  # from now on the worker has a reason for another claim
            lab.reader.wait(other, first("api", worker=name, verdict="expired"), 1.0)

        if arm is None:
            lab.provider.hooks[member] = Hook("answered", terminate, delivers=True)
        lab.provider.expire(member)
        if arm is not None:
            assert lab.reader.wait("", first("reached", worker=name), PATIENCE)
            terminate()
        ended = lab.reader.wait("", first("exit", worker=name), 60.0)
        assert ended, f"{name} goes on after SIGTERM"
        assert ended["status"] == 0
        told = first("sigterm")(lab.reader.of(member))
        assert told is not None
        claims = [line for line in lab.reader.of(other) if line["event"] == "claimed" and line["at"] > told["at"]]
        assert not claims, "a claim was made after SIGTERM"
        return ended["at"] - told["at"], member, spill
    finally:
        victim.kill()
        victim.control.close()


@pytest.mark.parametrize("rotation", ["strict"])
def test_a_renewal_under_way_finishes(kind: str, rotation: str, tmp_path: Path) -> None:
    """SIGTERM while the provider answers: the answer is stored, nothing else is claimed, and the worker ends in time."""
    with Laboratory(kind, rotation, tmp_path) as lab:
        for number in range(ROUNDS):
            took, member, spill = drained(lab, number, None)
            assert took < lab.timing.deadline + EXIT_SECONDS
            seen = lab.evidence(Plan("term", "answered", number), member)
            assert not seen.lost
            assert seen.row is not None
            assert seen.row["generation"] == 2
            assert not list(spill.glob("*"))
        assert not lab.leaks()


@pytest.mark.parametrize("rotation", ["strict"])
def test_a_renewal_that_cannot_be_saved_is_spilled(kind: str, rotation: str, tmp_path: Path) -> None:
    """SIGTERM while the save hangs: the worker ends in time, and the tokens are stored from the spill at the next start."""
    with Laboratory(kind, rotation, tmp_path) as lab:
        took, member, spill = drained(lab, 0, ("before:SaveTokens", "hang"))
        assert list(spill.glob("*.sealed"))
        again = lab.start("again", spill=spill, leeway=0.0)
        again.tell("loop", member=member, every=0.05)
        until(lambda: lab.keeper.grant(REGISTRATION, member).generation == 2, "the replay of the spill")
        again.kill()
        again.control.close()
        assert not lab.evidence(Plan("term", "before:SaveTokens", 0), member).lost
        assert not lab.leaks()
        assert took < lab.timing.deadline + EXIT_SECONDS, f"it took {took:.1f} s to end"
