"""``make bench``: what tokenkeeper costs, as ratios to baselines that are measured in the same run.

One module a benchmark; ``docs/benchmarks.md`` says what each measures and shows a dated run. The exit code is 0 whether
or not the goals are met: a busy machine is no fault of the code. ``--strict`` makes a missed goal an exit code of 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence

from harness import Effort, Figure

NAMES = (
    "guarded_call",
    "store_read",
    "expiry",
    "waiting",
    "neighbours",
    "sealing",
    "importing",
    "memory",
    "diagnosing",
    "catalogue",
    "generic",
    "peers",
    "claims",
    "scale",
    "throughput",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks and print their figures."""
    parser = argparse.ArgumentParser(description="tokenkeeper's benchmarks; see docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about two minutes, and coarser")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=NAMES, action="append", help="run this one; may be given more than once")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--markdown", action="store_true", help="with --only peers: print the README's tables")
    options = parser.parse_args(arguments)
    effort = Effort(options.quick)
    if options.markdown:
        if options.only != ["peers"]:
            parser.error("--markdown goes with --only peers")
        print(importlib.import_module("peers").markdown(effort))
        return 0
    started = time.perf_counter()
    if not options.json:
        print(f"{_machine()}{', a short run' if options.quick else ''}\n\n{_line('', 'value', 'goal', '')}")
    results: dict[str, list[Figure]] = {}
    for name in options.only or NAMES:
        results[name] = importlib.import_module(name).run(effort)
        if not options.json:
            print(f"{name.replace('_', ' ')}", *map(_row, results[name]), "", sep="\n", flush=True)
    seconds = time.perf_counter() - started
    goals = [figure.met for figures in results.values() for figure in figures if figure.met is not None]
    if options.json:
        print(
            json.dumps({"machine": _machine(), "quick": options.quick, "seconds": round(seconds, 1), **_data(results)})
        )
    else:
        print(f"{sum(goals)} of {len(goals)} goals met, in {seconds:.0f} s")
    return int(options.strict and not all(goals))


def _machine() -> str:
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs{load}"


def _row(figure: Figure) -> str:
    goal = "" if figure.goal is None else f"≤ {figure.goal:g} {'met' if figure.met else 'MISSED'}"
    return _line(f"  {figure.what}", f"{_number(figure.value)} {figure.unit}".rstrip(), goal, figure.note)


def _line(what: str, value: str, goal: str, note: str) -> str:
    return f"{what:<62}{value:>10}  {goal:<14}{note}".rstrip()


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"


def _data(results: Mapping[str, Sequence[Figure]]) -> dict[str, object]:
    return {
        "figures": [
            {
                "benchmark": name,
                "what": figure.what,
                "value": round(figure.value, 3),
                "unit": figure.unit,
                "goal": figure.goal,
                "met": figure.met,
                "note": figure.note,
            }
            for name, figures in results.items()
            for figure in figures
        ]
    }


if __name__ == "__main__":
    sys.exit(main())
