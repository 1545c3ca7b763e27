"""An empty database of each kind that answers: SQLite always; PostgreSQL and MariaDB where the tests find theirs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import environ
from pathlib import Path

import sqlalchemy

SERVERS = {
    "PostgreSQL": ("TOKENKEEPER_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"),
    "MariaDB": ("TOKENKEEPER_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1:3306/mysql"),
}
"""Kind of server -> the variable that names another one, and the URL tried without it (as in ``tests/conftest.py``)."""


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the URL of an empty database by its kind; all are dropped afterwards."""
    with ExitStack() as stack:
        found = {"SQLite": f"sqlite:///{folder / 'bench.db'}"}
        for kind, (variable, url) in SERVERS.items():
            try:
                found[kind] = stack.enter_context(_fresh(sqlalchemy.make_url(environ.get(variable) or url)))
            except (sqlalchemy.exc.SQLAlchemyError, ImportError):
                continue  # no such server here: its lines are missing from the table
        yield found


@contextmanager
def _fresh(server: sqlalchemy.URL) -> Iterator[str]:
    name = f"tokenkeeper_bench_{secrets.token_hex(6)}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            force = " WITH (FORCE)" if engine.dialect.name == "postgresql" else ""
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")
        engine.dispose()
