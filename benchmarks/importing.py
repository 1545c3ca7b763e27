"""5. Import time over that of SQLAlchemy and httpx2, each in a fresh interpreter.

``import tokenkeeper`` and its front door load neither. The second figure is with the store and the token endpoint's
client loaded too, as at the first call; its baseline has httpcore2 besides, which httpx2 loads with the first client.
"""

from __future__ import annotations

import subprocess
import sys

from harness import Effort, Figure, Times

WAYS = {
    "both libraries": "import sqlalchemy, httpx2",
    "in use": "import sqlalchemy, httpx2, httpcore2",
    "front door": "import tokenkeeper; tokenkeeper.TokenKeeper",
    "all": "import tokenkeeper; tokenkeeper.TokenKeeper; import tokenkeeper.store.transactions, tokenkeeper.transport",
}
PROGRAM = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def run(effort: Effort) -> list[Figure]:
    """Measure in fresh interpreters."""
    if not effort.quick:
        for statement in WAYS.values():  # the first time, bytecode may have to be compiled
            _seconds(statement)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(effort.of(15, 2)):
        for name, statement in WAYS.items():
            taken[name].append(_seconds(statement))
    times = Times(taken)
    figures = (
        ("import tokenkeeper.TokenKeeper / SQLAlchemy and httpx2", "front door", "both libraries"),
        ("with store and transport loaded / both, in use", "all", "in use"),
    )
    return [
        Figure(
            what,
            times.ratio(ours, theirs),
            "x",
            note=f"{times.median(ours) / 1000:.0f} over {times.median(theirs) / 1000:.0f} ms",
        )
        for what, ours, theirs in figures
    ]


def _seconds(statement: str) -> float:
    command = [sys.executable, "-c", PROGRAM.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
