"""How well answers are read: verdict, remedy, and the harm that a wrong remedy does. Tests and benchmarks share it.

``tests/data/answers.jsonl`` holds real answers of providers. A line's ``verdict`` is what its answer shows, ``alt`` lists
verdicts that the same evidence supports as well; a line that is not ``sure``, or ``ambiguous``, counts only where all
answers do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenkeeper.model import Diagnosis, Remedy, Surface, Verdict

ANSWERS = [
    json.loads(line) for line in (Path(__file__).parent / "data/answers.jsonl").read_text(encoding="utf-8").splitlines()
]

HARMS = {
    "nagged": "the member would be prompted, though no reading of the answer makes it the member's turn",
    "burnt": "a refresh token would be spent, though nothing is wrong with the access token",
    "stuck": "only the member, or a renewal, can help, yet the keeper would wait, do nothing or go on renewing",
    "alarmed": "the operator would be called, though no reading makes it an error of configuration",
}

_MEMBER = {Remedy.REAUTHENTICATE, Remedy.WIDEN_SCOPE, Remedy.ACT_AT_PROVIDER}


def harm(right: set[Remedy], remedy: Remedy, surface: Surface) -> str | None:
    """Name the harm of doing *remedy* where any of *right* would have been right."""
    if remedy in right:
        return None
    if remedy in _MEMBER:
        return None if right & _MEMBER else "nagged"
    if remedy is Remedy.RENEW:
        if surface is Surface.TOKEN and right <= _MEMBER:
            return "stuck"
        return None if right & (_MEMBER | {Remedy.RENEW}) else "burnt"
    if remedy is Remedy.RECONFIGURE:
        return "alarmed"
    return "stuck" if right <= _MEMBER | {Remedy.RENEW} else None


@dataclass(slots=True)
class Score:
    """How many answers were read, how many rightly, and the harm that the others would do."""

    answers: int = 0
    verdicts: int = 0
    remedies: int = 0
    harms: Counter[str] = field(default_factory=Counter)
    misses: list[str] = field(default_factory=list)
    """What was wanted and what was read, one line an answer."""

    @property
    def verdict(self) -> float:
        """The share of answers whose verdict is right."""
        return self.verdicts / max(self.answers, 1)

    @property
    def remedy(self) -> float:
        """The share of answers whose remedy is right."""
        return self.remedies / max(self.answers, 1)

    def share(self, harm: str) -> float:
        """The share of answers that do that harm."""
        return self.harms[harm] / max(self.answers, 1)

    def add(self, row: dict[str, Any], found: Diagnosis) -> None:
        """Count one answer."""
        verdicts = {Verdict(word) for word in (row["verdict"], *row.get("alt", ()))}
        remedies = {verdict.remedy for verdict in verdicts}
        done = harm(remedies, found.remedy, Surface(row["surface"]))
        self.answers += 1
        self.verdicts += found.verdict in verdicts
        self.remedies += found.remedy in remedies
        if done:
            self.harms[done] += 1
        if found.verdict not in verdicts:
            wanted = " or ".join(sorted(verdict.value for verdict in verdicts))
            self.misses.append(
                f"{row['provider']} {row['surface']} {row['status']}: {found.verdict.value} ({found.rule}), not {wanted}"
                f"{f' [{done}]' if done else ''}: {str(row['body'])[:160]!r}"
            )


def is_sure(row: dict[str, Any]) -> bool:
    """Whether the answer shows what it means."""
    return row.get("sure") is not False and not row.get("ambiguous")


def score(read: Callable[[dict[str, Any]], Diagnosis], rows: Iterable[dict[str, Any]]) -> dict[str, Score]:
    """Read every answer; return the scores by provider, and that of all of them as ``all``."""
    scores = {"all": Score()}
    for row in rows:
        found = read(row)
        scores["all"].add(row, found)
        scores.setdefault(row["provider"], Score()).add(row, found)
    return scores
