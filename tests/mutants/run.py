"""``make mutants``: break the renewal's path by hand, one line at a time, and see that a test notices each.

A mutant is a text of the source and what stands in its place (``mutants.py``), with the tests that must notice. Each
runs in a copy of the checkout. A mutant that survives, or whose text is no longer there, makes the exit code 1.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.mutants.mutants import MUTANTS, Mutant  # noqa: E402

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "node_modules", "__pycache__", ".*_cache", "dist", ".hypothesis", ".coverage*"
)
LIMIT = 180.0
"""Seconds after which a mutant that hangs its tests counts as noticed: no test hangs otherwise."""

NOWHERE = {
    "TOKENKEEPER_TEST_POSTGRESQL": "postgresql+psycopg://nobody@127.0.0.1:9/none",
    "TOKENKEEPER_TEST_MARIADB": "mysql+pymysql://nobody@127.0.0.1:9/none",
}
"""SQLite is enough to notice: the tests run on it alone, where nothing says otherwise."""


def main(arguments: list[str] | None = None) -> int:
    """Run the mutants and print what became of each."""
    parser = argparse.ArgumentParser(description="hand-made mutants of the renewal's path")
    parser.add_argument("--only", help="those whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if not options.only or options.only in mutant.name]
    wrong = [f"{mutant.name}: its text is not in {mutant.file} exactly once" for mutant in chosen if not there(mutant)]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="tokenkeeper-mutants-") as folder:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(options.jobs):
            shutil.copytree(ROOT, Path(folder) / str(number), ignore=LEFT_OUT)
            trees.put(Path(folder) / str(number))
        tests = sorted({test for mutant in chosen for test in mutant.killers})
        print(f"the tests without any mutant: {len(tests)} selections", flush=True)
        if not passes(Path(folder) / "0", tests):
            print("they fail as they are: mend them first")
            return 1

        def judge(mutant: Mutant) -> tuple[Mutant, bool, float]:
            tree, started = trees.get(), time.monotonic()
            try:
                return mutant, survives(mutant, tree), time.monotonic() - started
            finally:
                trees.put(tree)

        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for mutant, alive, seconds in pool.map(judge, filter(there, chosen)):
                print(f"{'SURVIVES' if alive else 'noticed':>8}  {seconds:5.1f} s  {mutant.name}", flush=True)
                if alive:
                    survivors.append(mutant.name)
    for line in (*wrong, *(f"{name}: no test notices" for name in survivors)):
        print(line)
    print(f"{len(chosen) - len(survivors) - len(wrong)} of {len(chosen)} mutants are noticed")
    return int(bool(wrong or survivors))


def there(mutant: Mutant) -> bool:
    """Whether the mutant's text stands in its file, once."""
    return (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1


def survives(mutant: Mutant, tree: Path) -> bool:
    """Put the mutant into the tree, run its tests, and take it out again."""
    path = tree / mutant.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return passes(tree, mutant.killers)
    finally:
        path.write_text(sound, encoding="utf-8")


def passes(tree: Path, tests: tuple[str, ...] | list[str]) -> bool:
    """Whether the tests pass in a tree."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    environ = {**os.environ, **NOWHERE, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
