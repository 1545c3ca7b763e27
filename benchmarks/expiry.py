"""3. Fifty threads at the moment of expiry, with a token endpoint that takes 200 ms.

The baseline is the same threads, released by an event after 200 ms. One token request must be enough for all.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

from harness import Effort, Figure
from house import REGISTRATION, House, house

from tokenkeeper import AccessToken

THREADS = 50
LATENCY = 0.2


def run(effort: Effort) -> list[Figure]:
    """Measure the wall time from the first thread's start to the last one's end."""
    ratios: list[float] = []
    ours: list[float] = []
    theirs: list[float] = []
    requests = 0
    with house() as built:
        _renewed(built, "warm-up")
        rounds = effort.of(15, 5)
        for number in range(rounds):
            theirs.append(_released_by_an_event())
            seconds, sent = _renewed(built, f"member-{number}")
            ours.append(seconds)
            requests += sent
            ratios.append(ours[-1] / theirs[-1])
    note = f"{_ms(ours)} over {_ms(theirs)} ms; {requests / rounds:g} token request each time"
    return [
        Figure(
            f"{THREADS} threads at expiry / released after {LATENCY * 1000:.0f} ms",
            statistics.median(ratios),
            "x",
            1.25,
            note,
        ),
        Figure("token requests at an expiry", requests / rounds, "", 1),
    ]


def _ms(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f}"


def _renewed(built: House, member: str) -> tuple[float, int]:
    built.connect(member, expires_in=0)
    built.provider.script("ok", "token", delay=LATENCY)
    before = built.provider.token_requests

    @built.keeper.guard(REGISTRATION)
    def call(token: AccessToken, member: str) -> None:  # noqa: ARG001 - guard looks for it
        token.reveal()

    seconds = _threads(lambda: call(member=member))
    return seconds, built.provider.token_requests - before


def _released_by_an_event() -> float:
    event = threading.Event()

    def call() -> None:
        if not event.wait(10):
            raise TimeoutError

    timer = threading.Timer(LATENCY, event.set)
    start = time.perf_counter()
    timer.start()
    _threads(call)
    return time.perf_counter() - start


def _threads(call: Callable[[], object]) -> float:
    """Start the threads, and wait for all; the seconds from the first one's start."""
    done: list[bool] = []

    def work() -> None:
        call()
        done.append(True)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if len(done) != THREADS:
        raise RuntimeError(f"{THREADS - len(done)} of {THREADS} calls failed")
    return seconds
