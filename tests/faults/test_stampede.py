"""One member, many workers, an expiry: one token request, whoever asks and however many at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LONG, fresh_database
from tests.faults.stampede_crowd import Crowd, Worker, workers

EXPIRIES = 200 if LONG else 20
PROCESSES = 8


@pytest.fixture(scope="module")
def crew() -> Iterator[list[Worker]]:
    """Worker processes, started once for all databases."""
    with workers(PROCESSES) as started:
        yield started


@pytest.mark.campaign
@pytest.mark.parametrize(("kind", "processes", "callers"), [("threads", 8, 64), ("tasks", 4, 200)])
def test_each_expiry_is_one_token_request(
    crew: list[Worker], database_url: str, kind: str, processes: int, callers: int
) -> None:
    """However many see a token expire, by the clock or by its refusal, one presents the refresh token, once, and all go on."""
    crowd = Crowd(crew[:processes], callers=callers, kind=kind, database=database_url)
    with crowd.gathered():
        for number in range(EXPIRIES):
            faults = crowd.expire(known=number % 2 == 0)
            assert not faults, f"expiry {number + 1}: {faults}"
    assert len(crowd.spent) == EXPIRIES


def test_a_small_stampede(tmp_path: Path) -> None:
    """Two processes of eight threads: one token request an expiry, known by the clock and unknown."""
    with workers(2) as few, fresh_database("sqlite", tmp_path) as url:
        crowd = Crowd(few, callers=8, kind="threads", database=url)
        with crowd.gathered():
            for known in (True, False):
                assert not crowd.expire(known=known)
