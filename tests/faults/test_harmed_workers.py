"""One worker is killed, stopped or cut off at each stopping point of a renewal, while others go on calling."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import LONG, kinds_here
from tests.faults.lab import Laboratory, Plan, plans
from tests.faults.lab_points import AT_PROVIDER, BEFORE_SENDING, POINTS

ROUNDS = 20 if LONG else 2
ROTATIONS = ("none", "by_use", "grace", "strict") if LONG else ("grace", "strict")

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.parametrize("rotation", ROTATIONS),
    pytest.mark.parametrize("kind", kinds_here()),
]


def test_a_killed_worker_loses_no_grant(kind: str, rotation: str, tmp_path: Path) -> None:
    """SIGKILL at any point loses a grant only under strict, and only if nobody had spilled or saved the successor."""
    with Laboratory(kind, rotation, tmp_path) as lab:
        wrong = lab.run(plans("kill", POINTS, ROUNDS))
    assert not wrong, "\n\n".join(wrong)


def test_a_sleeper_shows_no_spent_token(kind: str, rotation: str, tmp_path: Path) -> None:
    """A worker that is stopped for longer than the lease, at any point before sending, shows no spent token afterwards."""
    with Laboratory(kind, rotation, tmp_path) as lab:
        wrong = lab.run(plans("stop", BEFORE_SENDING, ROUNDS))
    assert not wrong, "\n\n".join(wrong)


def test_a_worker_without_its_database_loses_no_grant(kind: str, rotation: str, tmp_path: Path) -> None:
    """A worker whose database connections are cut at any point of its own doing loses no grant."""
    with Laboratory(kind, rotation, tmp_path) as lab:
        wrong = lab.run(plans("cut", [point for point in POINTS if point not in AT_PROVIDER], ROUNDS))
    assert not wrong, "\n\n".join(wrong)


if LONG:

    def test_at_the_real_figures(kind: str, rotation: str, tmp_path: Path) -> None:
        """With the lease and the deadline that the rotation itself gives, the same holds."""
        points = ("after:ClaimGrant", "check:after", "sent", "answered", "after:SpillTokens", "save:executed")
        sleeper = Plan("stop", "check:before", 0, "refused", "none")
        with Laboratory(kind, rotation, tmp_path, lease=None, deadline=None) as lab:
            wrong = lab.run([*plans("kill", points, 2), sleeper])
        assert not wrong, "\n\n".join(wrong)
