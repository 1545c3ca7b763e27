"""One peer's trial, in a process of its own: ``python -m peers.trial ADAPTER ROUNDS`` prints what came of it as JSON.

A round is two bursts of the same calls through clients made anew: once with a token that is good (the baseline of the
wall time), once with one that is known to have expired. Then an hour goes by, and what is stored must renew once more.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from peers.place import Place
from peers.processes import Burst, Remote, provide, work
from peers.rounds import SHAPES, Round

HEAD_START = 0.05
"""Seconds before a burst begins, for all threads to be there."""


def run(adapter: ModuleType, rounds: int) -> list[Round]:
    """Run all shapes; the first round of each warms up, and is not counted."""
    results = []
    with tempfile.TemporaryDirectory(prefix="tokenkeeper-peers-") as folder, ExitStack() as stack:
        provider = stack.enter_context(Remote(provide))
        place = Place(provider.ask("base_url"), Path(folder))
        workers = [stack.enter_context(Remote(work, adapter, place)) for _ in range(max(SHAPES)[0])]
        for processes, calls in SHAPES:
            for number in range(rounds + 1):
                member = f"member-{processes}-{number}"
                result = _round(provider, workers[:processes], calls, member)
                if number:
                    results.append(result)
    return results


def _round(provider: Remote, workers: list[Remote], calls: int, member: str) -> Round:
    without, baseline = _burst(provider, workers, calls, f"{member}-good", expired=False)
    if baseline:
        raise RuntimeError(f"calls with a good token failed: {baseline[0]}")
    seconds, errors = _burst(provider, workers, calls, member, expired=True)
    token_requests, reuses = provider.ask("counts")
    return Round(
        processes=len(workers),
        calls=calls,
        token_requests=token_requests,
        reuses=reuses,
        lost=not _renews(provider, workers[0], member),
        failed=len(errors),
        seconds=seconds,
        seconds_without=without,
        error=max(errors, key=errors.count, default=""),
    )


def _burst(
    provider: Remote, workers: list[Remote], calls: int, member: str, *, expired: bool
) -> tuple[float, list[str]]:
    """Make all calls at once; the seconds to the last one's end, and what the failed ones said."""
    workers[0].ask("seed", member, provider.ask("issue", member, expired))
    for worker in workers:
        worker.tell("connect", member)
    for worker in workers:
        worker.answer()
    at = time.monotonic() + HEAD_START
    for worker in workers:
        worker.tell("burst", calls, at)
    bursts: list[Burst] = [worker.answer() for worker in workers]
    return max(burst.ended for burst in bursts) - at, [error for burst in bursts for error in burst.errors]


def _renews(provider: Remote, worker: Remote, member: str) -> bool:
    """Whether what is stored renews once more, through a client made anew."""
    provider.ask("expire", member)
    worker.ask("expire", member)
    worker.ask("connect", member)
    burst: Burst = worker.ask("burst", 1, 0.0)
    return not burst.errors


if __name__ == "__main__":
    peer = importlib.import_module(f"peers.adapters.{sys.argv[1]}")
    results = [asdict(result) for result in run(peer, int(sys.argv[2]))]
    json.dump({"title": peer.TITLE, "package": peer.PACKAGE, "rounds": results}, sys.stdout)
