"""A few rounds of the fault laboratory on SQLite: quick enough for every run of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.lab import Laboratory, Plan

PLANS = [
    Plan("kill", "after:ClaimGrant", 0, "refused", "none"),
    Plan("kill", "sent", 0, "refused", "none"),
    Plan("kill", "after:SpillTokens", 0, "refused", "own"),
    Plan("kill", "save:executed", 0, "refused", "shared"),
    Plan("stop", "check:before", 0, "refused", "none"),
    Plan("cut", "save:executed", 0, "refused", "none"),
]


@pytest.mark.parametrize("rotation", ["strict"])
def test_a_few_faults_lose_no_grant(rotation: str, tmp_path: Path) -> None:
    """A worker that is killed, stopped or cut off at six points of a renewal leaves the grant to the others."""
    with Laboratory("sqlite", rotation, tmp_path, lease=2.0, deadline=1.6) as lab:
        wrong = lab.run(PLANS)
    assert not wrong, "\n\n".join(wrong)
