"""11. Renewals a second: 200 tasks meet 200 expired grants, with a token endpoint that takes 50 ms, over a bare httpx2 loop.

The loop sends the same 200 token requests to the same endpoint and stores nothing: the least that anybody must do. It is
run twice. With as many requests at once as the keeper has threads for renewals is the fair one: no provider likes 200 at
once from one client, and the keeper will not do it. With all at once shows what that limit costs.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
from databases import databases
from harness import Effort, Figure, no_garbage_collection
from house import REGISTRATION
from peers.place import CLIENT_ID, CLIENT_SECRET
from peers.processes import Remote, provide

from tokenkeeper import AsyncTokenKeeper, Keyring
from tokenkeeper.crypto import generate_key
from tokenkeeper.engine_room import RENEWAL_THREADS
from tokenkeeper.testing import FakeProvider

TASKS = 200
MEMBERS = [f"member-{number}" for number in range(TASKS)]


def run(effort: Effort) -> list[Figure]:
    """Measure in a process of its own: the provider is forked off it, and it must have no threads then."""
    command = [sys.executable, __file__, str(effort.of(7, 2))]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    figures = []
    for kind, taken in json.loads(answer.stdout).items():
        seconds = {name: statistics.median(column) for name, column in taken.items()}
        for name, how in (("bounded", f"{RENEWAL_THREADS} at once"), ("unbounded", "all at once")):
            ratio = statistics.median(a / b for a, b in zip(taken["ours"], taken[name], strict=True))
            note = f"{TASKS / seconds['ours']:.0f} over {TASKS / seconds[name]:.0f} a second"
            figures.append(Figure(f"{TASKS} renewals, {kind} / httpx2, {how}", ratio, "x", note=note))
    return figures


def _measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    with (
        Remote(provide) as provider,
        tempfile.TemporaryDirectory(prefix="tokenkeeper-bench-") as folder,
        asyncio.Runner() as runner,
        databases(Path(folder)) as found,
    ):
        return {kind: runner.run(_on(url, provider, rounds)) for kind, url in found.items()}


async def _on(database: str, provider: Remote, rounds: int) -> dict[str, list[float]]:
    base_url = provider.ask("base_url")
    registration = FakeProvider(rotation="strict").registration(REGISTRATION, base_url)
    taken: dict[str, list[float]] = {"ours": [], "bounded": [], "unbounded": []}
    keys = Keyring.parse(generate_key("bench"))
    async with AsyncTokenKeeper(database, keys=keys, registrations=[registration]) as keeper:
        await keeper.create_schema()
        for member in MEMBERS:
            keeper.sync.save_tokens(REGISTRATION, member, provider.ask("issue", member, True))
        refresh_tokens = [provider.ask("issue", member, True)["refresh_token"] for member in MEMBERS]
        for number in range(-1, rounds):  # the first one warms up
            seconds = {
                "ours": await _renewed(keeper, provider),
                "bounded": await _loop(base_url, provider, refresh_tokens, RENEWAL_THREADS),
                "unbounded": await _loop(base_url, provider, refresh_tokens, TASKS),
            }
            if number >= 0:
                for name, column in taken.items():
                    column.append(seconds[name])
    return taken


async def _renewed(keeper: AsyncTokenKeeper, provider: Remote) -> float:
    """An hour later all members' tasks ask for a token at once; the seconds until all have one."""
    with keeper.sync.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tokenkeeper_grant SET access_expires_at = access_expires_at - 3700000000")
    keeper.sync._room.cache.clear()
    with _all_renewed(provider), no_garbage_collection():
        start = time.perf_counter()
        await asyncio.gather(*(keeper.access_token(REGISTRATION, member) for member in MEMBERS))
        return time.perf_counter() - start


async def _loop(base_url: str, provider: Remote, refresh_tokens: list[str], at_once: int) -> float:
    """The same token requests, so many at once, and nothing else."""
    turn = asyncio.Semaphore(at_once)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=at_once)
    async with httpx2.AsyncClient(limits=limits, timeout=30) as client:

        async def renew(number: int) -> None:
            form = {"grant_type": "refresh_token", "refresh_token": refresh_tokens[number]}
            async with turn:
                answer = await client.post(f"{base_url}/token", data=form, auth=(CLIENT_ID, CLIENT_SECRET))
            refresh_tokens[number] = answer.raise_for_status().json()["refresh_token"]

        with _all_renewed(provider), no_garbage_collection():
            start = time.perf_counter()
            await asyncio.gather(*map(renew, range(TASKS)))
            return time.perf_counter() - start


@contextmanager
def _all_renewed(provider: Remote) -> Iterator[None]:
    """See that each member was renewed meanwhile by one token request, and no token was presented twice."""
    requests, _ = provider.ask("counts")
    yield
    counts: Sequence[int] = provider.ask("counts")
    if list(counts) != [requests + TASKS, 0]:
        raise RuntimeError(f"{counts[0] - requests} token requests and {counts[1]} reuses, not {TASKS} and none")


if __name__ == "__main__":
    json.dump(_measure(int(sys.argv[1])), sys.stdout)
