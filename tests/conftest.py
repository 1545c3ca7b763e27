"""What all tests share: databases to run on, and a plain word on what was left out."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
import sqlalchemy

SERVERS = {
    "postgresql": ("TOKENKEEPER_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"),
    "mariadb": ("TOKENKEEPER_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1:3306/mysql"),
}
"""Kind of server -> the variable that names another one, and the URL tried without it, which may create databases."""


def server_url(kind: str) -> str:
    """The URL of the server of a kind, whether one answers there or not."""
    variable, url = SERVERS[kind]
    return os.environ.get(variable) or url


IN_CI = bool(os.environ.get("CI"))
LONG = os.environ.get("TOKENKEEPER_CAMPAIGN") == "long"
"""Whether the trials run at full length (``make soak``), or a short round of each (``make faults``)."""

hypothesis.settings.register_profile(
    "tokenkeeper",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=IN_CI,  # the same examples in each run: what is red there is red again
    database=None if IN_CI else hypothesis.settings.default.database,
)
hypothesis.settings.load_profile("tokenkeeper")


@cache
def missing(kind: str) -> str | None:
    """Why a server cannot be used, or None if it can."""
    engine = sqlalchemy.create_engine(server_url(kind), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect():
            return None
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        return str(error).strip().splitlines()[0][:160]
    finally:
        engine.dispose()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``database_url`` runs on SQLite and on every server that answers."""
    if "database_url" in metafunc.fixturenames:
        metafunc.parametrize("database_url", kinds_here(), indirect=True)


def left_out(reason: str) -> NoReturn:
    """Leave a test out, with a plain reason that the run's last lines show; in CI nothing is left out, so it fails."""
    if IN_CI:
        pytest.fail(f"CI must have it: {reason}")
    pytest.skip(reason)


def kinds_here() -> list[str]:
    """SQLite, and every kind of server that answers."""
    return ["sqlite", *(kind for kind in SERVERS if missing(kind) is None)]


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of the test's own, dropped after it."""
    with fresh_database(request.param, tmp_path) as url:
        yield url


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[str]:
    """Make an empty database of a kind (a SQLite file in *folder*), yield its URL, and drop it."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'tokens.db'}"
        return
    server = sqlalchemy.make_url(server_url(kind))
    name = f"tokenkeeper_test_{secrets.token_hex(6)}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}{' WITH (FORCE)' if kind == 'postgresql' else ''}")
        engine.dispose()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers were not there, so that a green run is not read as more than it is."""
    absent = {kind: reason for kind in SERVERS if (reason := missing(kind)) is not None}
    for kind, reason in absent.items():
        terminalreporter.write_line(
            f"left out, no {kind} server (name one with {SERVERS[kind][0]}): {reason}", yellow=True
        )
