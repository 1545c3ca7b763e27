"""8. How real answers are read: with the catalogue, and with every profile taken away, by the generic rules alone.

No times: ``tests/data/answers.jsonl`` is scored as the tests score it (``tests/scoring.py``). ``python
benchmarks/generic.py`` prints both scores by provider, and with ``--misses`` every answer that is read wrongly.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from harness import Effort, Figure
from scoring import ANSWERS, HARMS, Score, is_sure, score

from tokenkeeper import Diagnosis, diagnose


def run(effort: Effort) -> list[Figure]:
    """Score both ways."""
    del effort  # it takes a tenth of a second
    sure = score(_by_profile, filter(is_sure, ANSWERS))["all"]
    alone = score(_alone, ANSWERS)["all"]
    return [
        _share("catalogue, sure answers: verdict wrong", 1 - sure.verdict, 3, f"of {sure.answers} answers"),
        _share("catalogue, sure answers: remedy wrong", 1 - sure.remedy, 2),
        *_harms("catalogue, sure answers", sure, {"nagged": 0, "burnt": 0, "stuck": 1, "alarmed": 1}),
        _share(
            "generic rules alone, all answers: verdict wrong", 1 - alone.verdict, None, f"of {alone.answers} answers"
        ),
        _share("generic rules alone, all answers: remedy wrong", 1 - alone.remedy, 30),
        *_harms("generic rules alone, all answers", alone, {"nagged": 0, "burnt": 0}),
    ]


def _share(what: str, share: float, goal: float | None, note: str = "") -> Figure:
    return Figure(what, 100 * share, "%", goal, note)


def _harms(whose: str, found: Score, goals: dict[str, float]) -> list[Figure]:
    return [_share(f"{whose}: {harm}", found.share(harm), goals.get(harm), f"{found.harms[harm]}") for harm in HARMS]


def _by_profile(row: dict[str, Any]) -> Diagnosis:
    return diagnose(row["status"], row["headers"], row["body"], provider=row["provider"], surface=row["surface"])


def _alone(row: dict[str, Any]) -> Diagnosis:
    return diagnose(row["status"], row["headers"], row["body"], surface=row["surface"])


def table(misses: bool) -> None:
    """Print both scores by provider, the weakest first."""
    for title, read in (("with the catalogue", _by_profile), ("by the generic rules alone", _alone)):
        for which, rows in (("sure answers", list(filter(is_sure, ANSWERS))), ("all answers", ANSWERS)):
            scores = score(read, rows)
            print(f"\n{which} {title}\n{'':<20}{'answers':>8}{'verdict':>9}{'remedy':>9}", end="")
            print("".join(f"{harm:>9}" for harm in HARMS))
            for name in sorted(scores, key=partial(_rank, scores)):
                found = scores[name]
                print(f"{name:<20}{found.answers:>8}{found.verdict:>9.1%}{found.remedy:>9.1%}", end="")
                print("".join(f"{found.harms[harm]:>9}" for harm in HARMS))
            if misses:
                print(*scores["all"].misses, sep="\n")


def _rank(scores: dict[str, Score], name: str) -> tuple[bool, float, str]:
    return name != "all", scores[name].verdict, name


if __name__ == "__main__":
    table("--misses" in sys.argv)
