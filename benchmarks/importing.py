"""5. Import time over that of SQLAlchemy and httpx2, each in a fresh interpreter.

``import tokenkeeper`` and its front door load neither; the second figure is with the store and the token endpoint's
client loaded too, as at the first call.
"""

from __future__ import annotations

import subprocess
import sys

from harness import Effort, Figure, Times

WAYS = {
    "both libraries": "import sqlalchemy, httpx2",
    "front door": "import tokenkeeper; tokenkeeper.TokenKeeper",
    "all": "import tokenkeeper; tokenkeeper.TokenKeeper; import tokenkeeper.store.transactions, tokenkeeper.transport",
}
PROGRAM = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def run(effort: Effort) -> list[Figure]:
    """Measure in fresh interpreters."""
    for statement in WAYS.values():
        _seconds(statement)
    rounds = range(effort.of(15, 3))
    times = Times({name: [] for name in WAYS})
    for _ in rounds:
        for name, statement in WAYS.items():
            times.rounds[name].append(_seconds(statement))
    base = f"over {times.median('both libraries') / 1000:.0f} ms"
    return [
        Figure(
            "import tokenkeeper.TokenKeeper / SQLAlchemy and httpx2",
            times.ratio("front door", "both libraries"),
            "x",
            note=f"{times.median('front door') / 1000:.0f} {base}",
        ),
        Figure(
            "with store and transport loaded / SQLAlchemy and httpx2",
            times.ratio("all", "both libraries"),
            "x",
            note=f"{times.median('all') / 1000:.0f} {base}",
        ),
    ]


def _seconds(statement: str) -> float:
    command = [sys.executable, "-c", PROGRAM.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
