"""Ordinary answers, which speak of tokens, scopes, clients and accounts, and say nothing against the grant.

``tests/data/innocent.jsonl`` holds coupons, captchas, pagination, other people's accounts, audiences of advertisements, job
applications: what an API says every day. Whoever mends a rule adds the answers that the old one took for a refusal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenkeeper import diagnose
from tokenkeeper.model import Remedy, Surface

INNOCENT: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "data/innocent.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("row", INNOCENT, ids=[f"line {number}" for number in range(1, len(INNOCENT) + 1)])
def test_an_ordinary_answer_bothers_nobody(row: dict[str, Any]) -> None:
    """It is read with a remedy of none, or wait: nothing is renewed, nobody asked, no grant marked."""
    found = diagnose(row["status"], row["headers"], row["body"], surface=Surface(row["surface"]))
    assert found.remedy in {Remedy.NONE, Remedy.WAIT}, (row["body"], found.verdict, found.rule)


def test_there_are_enough_of_them_and_each_once() -> None:
    """At least 120, of both surfaces; none stands there twice."""
    assert len({json.dumps(row, sort_keys=True) for row in INNOCENT}) == len(INNOCENT) >= 120
    assert {row["surface"] for row in INNOCENT} == {"api", "token"}
