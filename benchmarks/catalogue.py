"""9. Loading the whole catalogue: every profile read, checked and compiled, in a fresh interpreter after the imports.

Its baseline is what tomllib alone takes for the same files. A keeper loads only the profiles that its registrations use,
and the generic rules: the last figure.
"""

from __future__ import annotations

import subprocess
import sys

from harness import Effort, Figure, Times

GOAL = 30.0
"""The most that it should take at the median, in ms."""

WAYS = {
    "all": "for name in p.names(): p.load_profile(name)",
    "one": "p.load_profile('linkedin')",
    "tomllib": "for name in p.names(): tomllib.loads((p.CATALOGUE / f'{name}.toml').read_text())",
}
PROGRAM = """
import time, tomllib
import tokenkeeper.providers as p
start = time.perf_counter()
{}
print(time.perf_counter() - start)
"""
COUNT = (
    "import tokenkeeper.providers as p; print(len(p.names()), sum(len(p.load_profile(n).rules.own) for n in p.names()))"
)


def run(effort: Effort) -> list[Figure]:
    """Measure in fresh interpreters."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(effort.of(25, 7)):
        for name, statement in WAYS.items():
            taken[name].append(float(_printed(PROGRAM.format(statement))))
    times = Times(taken)
    profiles, rules = _printed(COUNT).split()
    return [
        Figure(
            "loading the whole catalogue",
            times.median("all") / 1000,
            "ms",
            GOAL,
            f"{profiles} profiles, {rules} rules and the generic ones; {times.ratio('all', 'tomllib'):.2f} x tomllib alone",
        ),
        Figure("loading one profile and the generic rules", times.median("one") / 1000, "ms"),
    ]


def _printed(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
