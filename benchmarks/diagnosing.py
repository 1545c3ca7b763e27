"""7. Diagnosis of an ordinary 401, beside json.loads of its body and a bare loop over as many rules.

LinkedIn's answer, read by LinkedIn's rules, by the generic rules alone, and by the rules of the profile that is slowest
with it: there no rule of the provider holds, so all are asked before the generic ones. The bare loop asks every rule that
may decide one question each, and none says yes. Then every 401 that was recorded (``tests/vectors``), each read by its own
provider's rules: the median of them.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Effort, Figure, alternate, calls, no_garbage_collection

from tokenkeeper import Answer
from tokenkeeper.core.diagnosis import Rules, diagnose
from tokenkeeper.model import Surface
from tokenkeeper.providers import load_profile, make_answer, names

GOAL = 50.0
"""The most that it should take at the median, in µs."""

BODY = json.dumps(
    {
        "status": 401,
        "serviceErrorCode": 65602,
        "code": "EXPIRED_ACCESS_TOKEN",
        "message": "The token used in the request has expired",
    }
).encode()
HEADERS = (
    ("cache-control", "no-cache, no-store"),
    ("content-type", "application/json"),
    ("date", "Sun, 22 Nov 2026 12:00:00 GMT"),
    ("vary", "Accept-Encoding"),
    ("x-li-fabric", "prod-lva1"),
    ("x-li-proto", "http/1.1"),
    ("x-li-uuid", "AAYkF0f9pT0uR3Sw6m2xSg=="),
    ("content-length", str(len(BODY))),
)


ANSWER = Answer(401, HEADERS, BODY)


def run(effort: Effort) -> list[Figure]:
    """Measure LinkedIn's rules, the generic ones, and the slowest of the catalogue."""
    rules = {name: load_profile(name).rules for name in names()}
    slowest = max(rules, key=lambda name: _once(rules[name]))
    compared = dict.fromkeys(("linkedin", "generic", slowest))
    many = rules[slowest].candidates(Surface.API, 401, challenged=False)
    blocks = {"json.loads": calls(lambda: json.loads(BODY)), "loop": calls(lambda: _loop(len(many)))}
    for name in compared:
        blocks[name] = calls(lambda ours=rules[name]: diagnose(ANSWER, ours))  # type: ignore[misc]
    times = alternate(blocks, rounds=effort.of(301, 101), number=50)
    figures = [
        Figure(
            f"diagnosis of a 401, {name} rules{' (the slowest)' if name == slowest else ''}",
            times.median(name),
            "µs",
            GOAL,
            f"{times.ratio(name, 'json.loads'):.0f} x json.loads of its body",
        )
        for name in compared
    ]
    taken = [_once(load_profile(name).rules, recorded) for name, recorded in _recorded()]
    longest = f"the longest {max(taken) * 1e6:.0f}"
    figures.append(
        Figure(
            f"the {len(taken)} recorded 401s, each by its provider's rules",
            statistics.median(taken) * 1e6,
            "µs",
            GOAL,
            longest,
        )
    )
    figures.append(Figure("json.loads of its body", times.median("json.loads"), "µs"))
    figures.append(Figure(f"a bare loop over as many rules as {slowest}'s, {len(many)}", times.median("loop"), "µs"))
    return figures


class _Question:
    def __init__(self, values: frozenset[str]) -> None:
        self.values = values

    def holds(self, found: frozenset[str]) -> bool:
        return not self.values.isdisjoint(found)


_QUESTIONS = [_Question(frozenset({f"code-{number}", str(number)})) for number in range(1000)]
_FOUND = frozenset({"expired_access_token", "65602"})


def _loop(many: int) -> bool:
    return any(question.holds(_FOUND) for question in _QUESTIONS[:many])


def _once(rules: Rules, answer: Answer = ANSWER) -> float:
    """About how long a diagnosis takes, in seconds."""
    taken = []
    with no_garbage_collection():
        for _ in range(60):
            start = time.perf_counter()
            diagnose(answer, rules)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _recorded() -> Iterator[tuple[str, Answer]]:
    for path in sorted((Path(__file__).resolve().parent.parent / "tests/vectors").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["surface"] == "api" and row["status"] == 401 and row["body"]:
                yield path.stem, make_answer(401, row["headers"], row["body"])
