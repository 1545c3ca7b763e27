"""The schema: built by migrations, the same as the tables, and safe from several processes at once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, text

from tokenkeeper import TokenKeeper
from tokenkeeper.errors import SchemaOutdated
from tokenkeeper.store import schema
from tokenkeeper.store.engine import ANSWER_SECONDS, make_engine
from tokenkeeper.store.tables import metadata

ROOT = Path(schema.__file__).parents[2]


@pytest.fixture
def engine(database_url):
    """An engine on an empty database."""
    made = make_engine(database_url)
    yield made
    made.dispose()


def test_migrations_build_the_tables(engine):
    """``alembic check`` finds no difference."""
    schema.upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": schema.VERSION_TABLE, "include_name": _ours, "compare_type": True}
        )
        assert compare_metadata(context, metadata) == []
        assert schema.state_of(connection) == schema.SchemaState(schema.CODE_REVISION, schema.CODE_REVISION, "current")
        schema.check(connection)


def _ours(name, kind, parents):
    return kind != "table" or name.startswith("tokenkeeper_")


def test_upgrade_twice_does_nothing(engine):
    """No work where there is none, and the rows stay."""
    schema.upgrade(engine)
    with engine.begin() as connection:
        _insert(connection)
    schema.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tokenkeeper_pause")).scalar() == 1


def _insert(connection: Connection) -> None:
    connection.execute(
        text("INSERT INTO tokenkeeper_pause VALUES (:name, 'c', 'cause', 'fix', 1, 2)"), {"name": b"acme"}
    )


def test_down_and_up_again(engine):
    """Down drops every table of ours, and nothing else."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE hosts_own (id INTEGER)"))
    schema.upgrade(engine)
    with engine.begin() as connection:
        _insert(connection)
    schema.upgrade(engine, "-1")
    tables = set(inspect(engine).get_table_names())
    assert tables == {"hosts_own", schema.VERSION_TABLE}
    with engine.connect() as connection:
        assert schema.state_of(connection).state == "missing"
        with pytest.raises(SchemaOutdated):
            schema.check(connection)
    schema.upgrade(engine)
    assert "tokenkeeper_grant" in inspect(engine).get_table_names()


def _upgrade(url: str) -> None:
    engine = make_engine(url)
    schema.upgrade(engine)
    engine.dispose()


def test_several_processes_at_once(database_url):
    """Every one of them succeeds."""
    import multiprocessing

    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert list(processes.map(_upgrade, [database_url] * 4)) == [None] * 4


def test_several_at_once_on_a_hosts_engine_that_isolates_more(database_url):
    """However the host isolates its own transactions: whoever comes second sees what the first has done."""
    level = "SERIALIZABLE" if database_url.startswith("sqlite") else "REPEATABLE READ"
    engine = create_engine(make_engine(database_url).url, isolation_level=level)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(schema.upgrade, [engine] * 4)) == [None] * 4
    with engine.connect() as connection:
        assert schema.state_of(connection).state == "current"
    engine.dispose()


def test_migrations_wait_as_long_as_a_statement_takes(database_url):
    """A statement of a keeper's own has an end; a new index over a million grants has none that anybody knows."""
    with TokenKeeper(database_url, registrations=[]) as keeper, keeper._room.migrating() as engine:
        arguments = engine.dialect.create_connect_args(engine.url)[1]
        assert engine is not keeper.engine
        assert engine.url == keeper.engine.url
        assert "read_timeout" not in arguments
        with engine.connect() as connection:
            driver = connection.connection.dbapi_connection
            assert getattr(driver, "_read_timeout", None) is None
        with keeper.engine.connect() as connection:
            driver = connection.connection.dbapi_connection
            assert getattr(driver, "_read_timeout", ANSWER_SECONDS) == ANSWER_SECONDS
    host = create_engine(make_engine(database_url).url)
    with TokenKeeper(host, registrations=[]) as keeper, keeper._room.migrating() as engine:
        assert engine is host
    host.dispose()


def test_a_failed_migration_leaves_no_lock(engine, monkeypatch):
    """The next try works."""
    with monkeypatch.context() as broken:
        broken.setattr(schema, "migrations_folder", lambda: Path("/nowhere"))
        with pytest.raises(Exception, match="nowhere"):
            schema.upgrade(engine)
    schema.upgrade(engine)


@pytest.mark.parametrize("command", [["upgrade", "head"], ["upgrade", "head", "--sql"]])
def test_the_stock_alembic_command_works(tmp_path, command):
    """With the ini beside the folder, in a checkout and in site-packages alike."""
    folder = schema.migrations_folder().parent
    ini = folder / "alembic.ini"
    assert ini.is_file()
    url = f"sqlite:///{tmp_path / 'x.db'}"
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(ini), "-x", f"url={url}", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "--sql" in command:
        assert "CREATE TABLE tokenkeeper_grant" in done.stdout
    else:
        made = make_engine(url)
        with made.connect() as connection:
            schema.check(connection)
        made.dispose()


def test_alembic_without_a_url_says_what_to_do():
    """Named, not a traceback."""
    ini = schema.migrations_folder().parent / "alembic.ini"
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(ini), "upgrade", "head"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "-x url=" in done.stderr


def test_a_sqlite_file_is_its_owners(tmp_path):
    """0600, before anything is written; WAL and FULL, so that a committed rotation survives a power cut."""
    path = tmp_path / "x.db"
    engine = make_engine(f"sqlite:///{path}")
    schema.upgrade(engine)
    assert path.stat().st_mode & 0o077 == 0
    with engine.connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "secure_delete")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}
    engine.dispose()
