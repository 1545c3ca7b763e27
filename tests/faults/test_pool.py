"""The host's few connections: nobody holds one while a provider is waited for, and a pooler may stand before them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy

from tests.conftest import LONG, fresh_database, left_out, missing
from tests.faults.pool_bouncer import SERVER_CONNECTIONS, Bouncer, bouncer
from tests.faults.pool_watch import PoolWatch
from tests.faults.stampede_crowd import Crowd, workers
from tokenkeeper import AccessToken, AsyncTokenKeeper, Keyring
from tokenkeeper.crypto import generate_key
from tokenkeeper.store import schema
from tokenkeeper.store.engine import make_engine, sync_url
from tokenkeeper.testing import FakeProvider

REGISTRATION = "acme"
MEMBERS = 50
TWINS = ["threads", "tasks"]
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def host_engine(database: str, size: int) -> Iterator[sqlalchemy.Engine]:
    """An Engine as a host with few connections makes it, and passes it; its driver is as it comes."""
    with disposed(sqlalchemy.create_engine(sync_url(database), pool_size=size, max_overflow=0)) as engine:
        yield engine


@contextmanager
def disposed(engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Engine]:
    """Dispose of an engine afterwards."""
    try:
        yield engine
    finally:
        engine.dispose()


def renew_all(engine: sqlalchemy.Engine, twin: str, members: int, seconds: float) -> None:
    """So many members' tokens have expired, all are called for at once, and the token endpoint takes its time."""
    provider = FakeProvider(rotation="strict")
    provider.script("ok", "token", times=members, delay=seconds)
    names = [f"member-{number}" for number in range(members)]
    with provider.serve():
        registrations = [provider.registration(REGISTRATION)]
        keeper = AsyncTokenKeeper(engine, keys=Keyring.parse(generate_key("pool")), registrations=registrations)
        watch = PoolWatch(engine)
        with keeper.sync as sync:
            sync.create_schema()
            for name in names:
                sync.save_tokens(REGISTRATION, name, provider.issue(name, expires_in=0))
            watch.of(sync, REGISTRATION)
            gate = provider.hold("token")
            with ThreadPoolExecutor(1) as aside:
                calls = aside.submit(in_threads if twin == "threads" else in_tasks, keeper, names)
                gate.wait_until_held(members, 20)
                held_at, checked_out = time.monotonic(), engine.pool.checkedout()
                released_at = time.monotonic()
                gate.release()
                generations = calls.result(60)
    assert checked_out == 0
    assert watch.during(held_at, released_at + seconds) == []
    assert len(watch.requests) == provider.token_requests == members
    assert all(request.end - request.start >= seconds for request in watch.requests)
    assert watch.connections
    assert watch.held_over_http() == []
    assert generations == [2] * members


def in_threads(keeper: AsyncTokenKeeper, members: list[str]) -> list[int]:
    """A thread a member; the generation that each call was made with."""

    @keeper.sync.guard(REGISTRATION)
    def call(token: AccessToken, member: str) -> int:
        return token.generation

    with ThreadPoolExecutor(len(members)) as threads:
        return list(threads.map(lambda member: call(member=member), members))


def in_tasks(keeper: AsyncTokenKeeper, members: list[str]) -> list[int]:
    """A task a member, of the async twin."""

    @keeper.guard(REGISTRATION)
    async def call(token: AccessToken, member: str) -> int:
        return token.generation

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(call(member=member) for member in members))

    return asyncio.run(all_of_them())


@pytest.mark.campaign
@pytest.mark.parametrize("size", [2, 1])
@pytest.mark.parametrize("twin", TWINS)
def test_no_connection_is_held_while_a_provider_is_waited_for(database_url: str, twin: str, size: int) -> None:
    """Fifty renewals at once of two seconds each need no connection meanwhile: a pool of two, or of one, serves them all."""
    with host_engine(database_url, size) as engine:
        renew_all(engine, twin, MEMBERS, 2.0)


@pytest.mark.parametrize("twin", TWINS)
def test_a_pool_of_one_serves_many_renewals(tmp_path: Path, twin: str) -> None:
    """Twelve renewals at once go through a pool of one connection, which is free while they wait for the provider."""
    with fresh_database("sqlite", tmp_path) as url, host_engine(url, 1) as engine:
        renew_all(engine, twin, 12, 0.1)


@pytest.fixture
def pooler(tmp_path: Path) -> Iterator[Bouncer]:
    """A pooler in transaction mode, in front of PostgreSQL; where that is missing the test is left out (in CI: fails)."""
    if (why := missing("postgresql")) is not None:
        left_out(f"no postgresql server to put a pooler in front of: {why}")
    with bouncer(tmp_path) as started:
        yield started


@pytest.fixture
def pooled_url(pooler: Bouncer, tmp_path: Path) -> Iterator[str]:
    """An empty database behind the pooler."""
    with fresh_database("postgresql", tmp_path) as url:
        yield pooler.in_front_of(url)


@pytest.mark.campaign
def test_migrations_run_through_a_pooler(pooled_url: str) -> None:
    """Several processes bring the schema up to date at once, though each transaction may have another server connection.

    No lock is left with a server connection that the pooler keeps: the next migration would wait for it.
    """
    with disposed(make_engine(pooled_url)) as engine:
        assert len(server_sessions(engine)) == SERVER_CONNECTIONS
        migrate = [
            subprocess.Popen([sys.executable, "-c", MIGRATE, pooled_url], cwd=ROOT, stderr=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        assert [(process.communicate(timeout=90)[1], process.returncode) for process in migrate] == [("", 0)] * 4
        with engine.connect() as connection:
            held = connection.execute(
                sqlalchemy.text(
                    "SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database"
                    " WHERE locktype = 'advisory' AND datname = current_database()"
                )
            )
            assert held.scalar() == 0
            assert schema.state_of(connection).state == "current"


def server_sessions(engine: sqlalchemy.Engine) -> set[int]:
    """The server's sessions that eight transactions of one client connection come to, when the pooler has several open.

    The same statement more than five times is what psycopg would prepare on the server."""
    session = sqlalchemy.text("SELECT pg_backend_pid()")
    with engine.connect() as one, engine.connect() as another:
        one.execute(session)
        another.execute(session)
    with engine.connect() as connection:
        found = set()
        for _ in range(8):
            found.add(connection.execute(session).scalar_one())
            connection.commit()
        return found


MIGRATE = "import sys; from tokenkeeper import TokenKeeper; TokenKeeper(sys.argv[1], registrations=[]).create_schema()"


@pytest.mark.campaign
@pytest.mark.parametrize(("twin", "processes", "callers"), [("threads", 4, 16), ("tasks", 2, 40)])
def test_a_stampede_behind_a_pooler(pooled_url: str, twin: str, processes: int, callers: int) -> None:
    """Many workers share two server connections, and each expiry is one token request."""
    with workers(processes) as crew, Crowd(crew, callers=callers, kind=twin, database=pooled_url).gathered() as crowd:
        for number in range(40 if LONG else 10):
            assert not crowd.expire(known=number % 2 == 0)


@pytest.mark.campaign
@pytest.mark.parametrize("twin", TWINS)
def test_many_renewals_behind_a_pooler(pooled_url: str, twin: str) -> None:
    """Fifty renewals at once by one worker, on an Engine of the host's."""
    with host_engine(pooled_url, 2) as engine:
        renew_all(engine, twin, MEMBERS, 2.0)


@pytest.mark.campaign
def test_the_contract_holds_behind_a_pooler(pooler: Bouncer) -> None:
    """The tests of contract and store that run on PostgreSQL pass through the pooler as well."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-k",
            "postgresql and not without_an_end",  # the pooler takes no limits for a session: it is asked again without
            "-p",
            "no:cacheprovider",
            "tests/contract",
            "tests/store",
        ],
        cwd=ROOT,
        env={**os.environ, "TOKENKEEPER_TEST_POSTGRESQL": pooler.url},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
