"""``make fuzz``: so many hostile inputs to the classifier, the challenge parser and the reader of token answers.

    make fuzz                          10 million, on all processors (FUZZ=200000: so many; FUZZ="5000 --seed 7")
    python tests/fuzz/fuzz_run.py --again fuzz-found-1-23456.json

Nothing may raise or hang (2 ms of the processor a KiB, and a floor), grow by more than 32 MiB, or show what is not
printable. What is found is written to a file that ``--again`` runs, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_inputs import Input, Maker, read_input
from fuzz_judge import Found, Judge

GROWTH_MIB = 32.0
WARM_UP = 3_000
"""Inputs before growth is measured: caches fill, arenas settle."""
SHARE = 500_000
"""The most inputs of one process: making them, too, leaves holes in its memory, which are not the parsers'."""
HANG_SECONDS = 20.0
SHEETS = 50
"""One input in so many is a profile's file."""
THOROUGH = 4
"""One in so many is explained, recorded and read as everything else, too."""
MOST_FOUND = 20


@dataclass(slots=True)
class Outcome:
    """What one process did and found."""

    inputs: int = 0
    kib: float = 0.0
    growth: float = 0.0
    slowest: float = 0.0
    longest: float = 0.0
    peak: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)


def fuzz(
    seed: int, numbers: range, folder: Path | None = None, *, warm_up: int = WARM_UP, report: bool = False
) -> Outcome:
    """Make and judge the inputs of those numbers; write what is found to files of a folder (the current one)."""
    maker, judge, outcome, dice = Maker(), Judge(), Outcome(), random.Random()
    signal.signal(signal.SIGPROF, _hangs)
    base = 0.0
    last = time.monotonic()
    for number in numbers:
        dice.seed(seed << 40 | number)
        given: Input | tuple[str, bytes] = maker.make_sheet(dice) if number % SHEETS == 0 else maker.make(dice)
        thorough = number % THOROUGH == 0
        try:
            _judged(judge, given, thorough)
        except Exception as error:
            outcome.found.append(_write(seed, number, given, error, folder))
            if len(outcome.found) == MOST_FOUND:
                break
        outcome.inputs += 1
        outcome.kinds[given.provider if isinstance(given, Input) else "profile"] += 1
        outcome.kib += given.size / 1024 if isinstance(given, Input) else len(given[1]) / 1024
        if outcome.inputs == warm_up:
            base = _resident_mib()
        if report and time.monotonic() - last > 60:
            last = time.monotonic()
            growth = _resident_mib() - base
            print(f"  {outcome.inputs} inputs, {len(outcome.found)} found, {growth:+.1f} MiB", flush=True)
    outcome.growth = _resident_mib() - base if base else 0.0
    outcome.slowest, outcome.longest, outcome.peak = judge.slowest, judge.longest, judge.peak
    if outcome.growth > GROWTH_MIB:
        outcome.found.append(f"memory grew by {outcome.growth:.0f} MiB (seed {seed}, inputs {numbers})")
    return outcome


def _judged(judge: Judge, given: Input | tuple[str, bytes], thorough: bool) -> None:
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        if isinstance(given, Input):
            judge.answer(given, thorough=thorough)
        else:
            judge.sheet(*given)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _hangs(*_: object) -> None:
    raise Found(f"hangs: more than {HANG_SECONDS:.0f} s of the processor")


def _resident_mib() -> float:
    """The memory that this process holds, without what it has freed and kept; its peak, where the system does not say."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _write(seed: int, number: int, given: Input | tuple[str, bytes], error: Exception, folder: Path | None) -> str:
    """Write a finding to a file and describe it."""
    if not isinstance(given, Input):
        given = Input(given[0], "profile", 0, (), given[1])
    what = "".join(traceback.format_exception_only(error)).strip()
    where = traceback.extract_tb(error.__traceback__)[-1]
    path = (folder or Path.cwd()) / f"fuzz-found-{seed}-{number}.json"
    path.write_text(
        json.dumps({"what": what, "seed": seed, "number": number, **given.written()}, indent=1), encoding="utf-8"
    )
    return (
        f"{ascii(what)[1:-1][:400]}\n    {where.filename}:{where.lineno}; python tests/fuzz/fuzz_run.py --again {path}"
    )


def again(path: Path) -> None:
    """Judge the input of a file. Raises what is wrong with it."""
    given = read_input(json.loads(path.read_text(encoding="utf-8")))
    signal.signal(signal.SIGPROF, _hangs)
    _judged(Judge(), (given.provider, given.body or b"") if given.surface == "profile" else given, thorough=True)


def main(arguments: list[str] | None = None) -> int:
    """Fuzz on several processes, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=int, nargs="?", default=10_000_000, help="how many (10 million)")
    parser.add_argument("--seed", type=int, default=1, help="other inputs: another number")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--again", type=Path, help="judge the input of this file only")
    options = parser.parse_args(arguments)
    if options.again:
        again(options.again)
        print("nothing is wrong with it")
        return 0
    started = time.monotonic()
    shares = max(options.jobs, -(-options.inputs // SHARE))
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        tasks: list[Any] = [
            pool.apply_async(fuzz, (options.seed, range(share, options.inputs, shares)), {"report": True})
            for share in range(shares)
        ]
        outcomes = [task.get() for task in tasks]
    seconds = time.monotonic() - started
    inputs = sum(outcome.inputs for outcome in outcomes)
    kib, kinds = sum(each.kib for each in outcomes), set().union(*(each.kinds for each in outcomes))
    growth, peak = max(each.growth for each in outcomes), max(each.peak for each in outcomes)
    print(
        f"{inputs} inputs ({kib / 1024:.0f} MiB) for {len(kinds)} profiles in {seconds:.0f} s, {inputs / seconds:.0f} a second "
        f"on {options.jobs} processes, seed {options.seed}\n"
        f"longest call {max(each.longest for each in outcomes):.1f} ms; "
        f"slowest {max(each.slowest for each in outcomes):.2f} ms a KiB; "
        f"memory grew by {growth:.1f} MiB, and one call took {peak:.1f} MiB at most"
    )
    found = [each for outcome in outcomes for each in outcome.found]
    print(*found, f"{len(found) or 'nothing'} found", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
