"""What the host's other queries notice of fifty renewals at once, on a pool of two connections that they share.

A query that has nothing to do with tokens is made every 20 ms, with and without renewals whose token endpoint takes two
seconds. Compared are the worst waits: for a connection of the pool and the query's answer.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy
from databases import databases
from harness import Effort, Figure

from tokenkeeper import AccessToken, Keyring, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.store.engine import sync_url
from tokenkeeper.testing import FakeProvider

REGISTRATION = "acme"
RENEWALS = 50
CONNECTIONS = 2
LATENCY = 2.0
PAUSE = 0.02
GOAL = 3.0
QUERY = sqlalchemy.text("SELECT 1")
FLOOR = 0.005
"""The least that the worst wait without renewals counts as (seconds): below it a ratio compares noise with noise."""


def run(effort: Effort) -> list[Figure]:
    """Measure each database that answers."""
    rounds = effort.of(5, 1)
    with tempfile.TemporaryDirectory(prefix="tokenkeeper-bench-") as folder, databases(Path(folder)) as found:
        return [_figure(kind, url, rounds) for kind, url in found.items()]


def _figure(kind: str, database: str, rounds: int) -> Figure:
    provider = FakeProvider(rotation="strict")
    engine = sqlalchemy.create_engine(sync_url(database), pool_size=CONNECTIONS, max_overflow=0)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # as a host with threads sets it; the file remembers
    with_renewals, without = [], []
    with provider.serve():
        registrations = [provider.registration(REGISTRATION)]
        with TokenKeeper(engine, keys=Keyring.parse(generate_key("bench")), registrations=registrations) as keeper:
            keeper.create_schema()

            @keeper.guard(REGISTRATION)
            def call(token: AccessToken, member: str) -> None:  # noqa: ARG001 - guard looks for it
                token.reveal()

            with engine.connect() as one, engine.connect() as another:  # a server's pool is open long before
                one.execute(QUERY)
                another.execute(QUERY)
            for number in range(rounds):
                members = [f"{number}-{member}" for member in range(RENEWALS)]
                for member in members:
                    keeper.save_tokens(REGISTRATION, member, provider.issue(member, expires_in=0))
                provider.script("ok", "token", times=RENEWALS, delay=LATENCY)
                before = provider.token_requests
                without.append(_worst_wait(engine, lambda: time.sleep(LATENCY)))
                with_renewals.append(_worst_wait(engine, lambda members=members: _all_at_once(call, members)))
                if provider.token_requests - before != RENEWALS:
                    raise RuntimeError(f"{provider.token_requests - before} token requests for {RENEWALS} renewals")
    engine.dispose()
    ratio = statistics.median(a / max(b, FLOOR) for a, b in zip(with_renewals, without, strict=True))
    what = f"{kind}: worst wait beside {RENEWALS} renewals / without"
    return Figure(what, ratio, "x", GOAL, f"{_ms(with_renewals)} over {_ms(without)} ms; they take {LATENCY:g} s")


def _ms(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.1f}"


def _worst_wait(engine: sqlalchemy.Engine, meanwhile: Callable[[], None]) -> float:
    """The longest that an unrelated query took while something else went on (seconds)."""
    waits: list[float] = []
    over = threading.Event()

    def probe() -> None:
        while not over.wait(PAUSE):
            begun = time.perf_counter()
            with engine.connect() as connection:
                connection.execute(QUERY)
            waits.append(time.perf_counter() - begun)

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        meanwhile()
    finally:
        over.set()
        prober.join()
    return max(waits)


def _all_at_once(call: Callable[..., None], members: list[str]) -> None:
    """A thread a member; all calls begin together."""
    together, done = threading.Barrier(len(members)), []

    def work(member: str) -> None:
        together.wait()
        call(member=member)
        done.append(member)

    threads = [threading.Thread(target=work, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(done) != len(members):
        raise RuntimeError(f"{len(members) - len(done)} of {len(members)} calls failed")
