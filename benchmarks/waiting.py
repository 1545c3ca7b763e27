"""How long those wait who meet an expiry, with a token endpoint that takes 200 ms: the slowest of each hundred.

The baseline is the same threads, each released by its process's own event after 200 ms. In one process the waiters are
told; across processes they look at the row. One token request must be enough for all of them, wherever they are.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from databases import databases
from harness import Effort, Figure

from tokenkeeper import AccessToken, Keyring, Provider, Registration, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider

REGISTRATION = "acme"
LATENCY = 0.2
GOAL = 1.5
AHEAD = 0.15
"""A round begins so much (seconds) after its order, so that all processes have it and begin together."""

LIMIT = 30.0


def run(effort: Effort) -> list[Figure]:
    """Measure one process of 64 threads, and four of 16 on each database."""
    rounds = effort.of(15, 4)
    with tempfile.TemporaryDirectory(prefix="tokenkeeper-bench-") as folder, databases(Path(folder)) as found:
        figures = [_figure("64 threads, SQLite", found["SQLite"], 1, 64, rounds)]
        figures += [_figure(f"4 processes x 16, {kind}", url, 4, 16, rounds) for kind, url in found.items()]
    return figures


def _figure(what: str, database: str, processes: int, threads: int, rounds: int) -> Figure:
    provider = FakeProvider(rotation="strict")
    ours, theirs, requests = [], [], 0
    with provider.serve(), _crew(processes) as crew, _host(provider, database) as host:
        _told(crew, {"database": database, "threads": threads, **host.words})
        for number in range(-1, rounds):  # the first one warms up
            member = f"{what}-{number}"
            released = _told(crew, {"do": "event", "at": time.monotonic() + AHEAD})
            host.keeper.save_tokens(REGISTRATION, member, provider.issue(member, expires_in=0))
            provider.script("ok", "token", delay=LATENCY)
            before = provider.token_requests
            renewed = _told(crew, {"do": "call", "at": time.monotonic() + AHEAD, "member": member})
            provider.clear_script()
            if number >= 0:
                ours.append(_slowest(renewed))
                theirs.append(_slowest(released))
                requests += provider.token_requests - before
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    note = f"{_ms(ours)} over {_ms(theirs)} ms; {requests / rounds:g} token request each time"
    return Figure(f"{what}: 99th percentile's wait / event's", ratio, "x", GOAL, note)


def _slowest(waits: list[list[float]]) -> float:
    """The 99th percentile of all threads' waiting times."""
    ordered = sorted(wait for of_one in waits for wait in of_one)
    return ordered[math.ceil(len(ordered) * 0.99) - 1]


def _ms(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f}"


@dataclass(frozen=True, slots=True)
class _Host:
    """The keeper that connects members, and what a worker needs to open its own."""

    keeper: TokenKeeper
    words: dict[str, Any]


@contextmanager
def _host(provider: FakeProvider, database: str) -> Iterator[_Host]:
    keys, registration = generate_key("bench"), provider.registration(REGISTRATION)
    words = {
        "keys": keys,
        "provider": asdict(provider.as_provider()),
        "registration": {
            "client_id": provider.client.client_id,
            "client_secret": sorted(provider.client.secrets),
            "redirect_uri": registration.redirect_uri,
            "scopes": list(registration.scopes),
        },
    }
    with TokenKeeper(database, keys=Keyring.parse(keys), registrations=[registration]) as keeper:
        keeper.create_schema()
        yield _Host(keeper, words)


# --- the crew: processes of this very file ---------------------------------------------------------------------------


@contextmanager
def _crew(processes: int) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, __file__]
    crew = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    try:
        yield crew
    finally:
        for process in crew:
            process.communicate(timeout=LIMIT)


def _told(crew: list[subprocess.Popen[str]], order: dict[str, Any]) -> list[Any]:
    """Give all the same order; what each answers."""
    for process in crew:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
    answers = []
    for process in crew:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("a worker of the benchmark has ended")
        answers.append(json.loads(line))
    return answers


def _work() -> None:
    """A worker: obey the orders that come in until there are no more."""
    opened = json.loads(sys.stdin.readline())
    registration = Registration(REGISTRATION, **{**opened["registration"], "provider": Provider(**opened["provider"])})
    with TokenKeeper(opened["database"], keys=Keyring.parse(opened["keys"]), registrations=[registration]) as keeper:

        @keeper.guard(REGISTRATION)
        def call(token: AccessToken, member: str) -> None:  # noqa: ARG001 - guard looks for it
            token.reveal()

        print(json.dumps("open"), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            wait = partial(call, member=order["member"]) if order["do"] == "call" else _event(order["at"] + LATENCY)
            print(json.dumps(_waits(opened["threads"], order["at"], wait)), flush=True)


def _event(at: float) -> Callable[[], object]:
    """What waits for an event that is set at a moment."""
    event = threading.Event()
    threading.Timer(at - time.monotonic(), event.set).start()
    return partial(event.wait, LIMIT)


def _waits(threads: int, at: float, call: Callable[[], object]) -> list[float]:
    """Let all threads call at the same moment; the seconds from then to each one's end."""
    waits: list[float] = []

    def work() -> None:
        time.sleep(max(at - time.monotonic(), 0))
        call()
        waits.append(time.monotonic() - at)

    started = [threading.Thread(target=work) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if len(waits) != threads:
        raise RuntimeError(f"{threads - len(waits)} of {threads} calls failed")
    return waits


if __name__ == "__main__":
    _work()
