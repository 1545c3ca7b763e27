"""The settings of a database that put a rotated refresh token at risk, read from real databases."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy

from tokenkeeper import ConfigurationError, Keyring, Registration, SchemaOutdated, TemporarilyUnavailable, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.store import settings
from tokenkeeper.store.engine import _connect_postgresql, make_engine, store_error


def test_settings_of_our_own_engines_are_sound(database_url: str) -> None:
    """An engine that we make has nothing to warn of, on a database with default settings."""
    engine = make_engine(database_url)
    with engine.connect() as connection:
        assert settings.risks(connection) == []
    engine.dispose()


def test_sqlite_of_the_host_is_warned_of(tmp_path: Path) -> None:
    """An Engine of the host without write-ahead log and with fewer syncs: both are named, with the fix."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'tokens.db'}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous=OFF")
        found = {risk.setting: risk for risk in settings.risks(connection)}
    engine.dispose()
    assert found["journal_mode"].found == "delete"
    assert found["synchronous"].found == "OFF"
    assert "power cut" in str(found["synchronous"])
    assert "synchronous=FULL" in str(found["synchronous"])


def test_network_file_system_is_recognized(tmp_path: Path) -> None:
    """The longest mount point that a file lies under says what it is on."""
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda1 / ext4 rw 0 0\nserver:/x /srv/share nfs4 rw 0 0\nbroken\n")
    assert settings.file_system("/srv/share/app/tokens.db", mounts) == "nfs4"
    assert settings.file_system("/srv/shared/tokens.db", mounts) == "ext4"
    assert settings.file_system("/x", tmp_path / "nowhere") == ""
    assert {"nfs4", "cifs"} <= settings.NETWORK_FILE_SYSTEMS


def test_sqlite_on_a_network_share_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks do not hold there: that is said."""
    monkeypatch.setattr(settings, "file_system", lambda database: "nfs4")
    engine = make_engine(f"sqlite:///{tmp_path / 'tokens.db'}")
    with engine.connect() as connection:
        (risk,) = settings.risks(connection)
    engine.dispose()
    assert "locks do not hold" in str(risk)


WEAKENED = {
    "sqlite": ("PRAGMA synchronous=NORMAL", ["synchronous"]),
    "postgresql": ("SET LOCAL synchronous_commit = off", ["synchronous_commit"]),
    "mysql": ("SET SESSION wait_timeout = 100", []),  # what matters there cannot be set for one session
}


def test_a_connection_that_may_lose_commits_is_warned_of(database_url: str) -> None:
    """A setting that was weakened for a role or a connection is found, and nothing else."""
    engine = make_engine(database_url)
    with engine.connect() as connection:
        weaken, expected = WEAKENED[connection.dialect.name]
        connection.exec_driver_sql(weaken)
        assert [risk.setting for risk in settings.risks(connection)] == expected
    engine.dispose()


class _Stub:
    """A connection to a server with settings of the test's choice."""

    def __init__(self, name: str, rows: Any) -> None:
        self.dialect = SimpleNamespace(name=name)
        self._rows = rows

    def execute(self, _statement: object) -> Any:
        return self

    def one(self) -> Any:
        return self._rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("innodb_flush_log_at_trx_commit", "1"), ("log_bin", "OFF"), ("sync_binlog", "0")], []),
        ([("innodb_flush_log_at_trx_commit", "2")], ["innodb_flush_log_at_trx_commit"]),
        ([("log_bin", "ON"), ("sync_binlog", "0")], ["sync_binlog"]),
        ([("wsrep_on", "ON"), ("read_only", "ON")], ["wsrep_on", "read_only"]),
        ([("innodb_doublewrite", "OFF")], ["innodb_doublewrite"]),
    ],
)
def test_mariadb_settings_at_risk_are_named(rows: list[tuple[str, str]], expected: list[str]) -> None:
    """Each setting that may lose a commit, or let two workers claim, is named."""
    connection: Any = _Stub("mariadb", rows)
    assert [risk.setting for risk in settings.risks(connection)] == expected


def test_a_standby_is_warned_of() -> None:
    """A PostgreSQL server in recovery cannot be written."""
    connection: Any = _Stub("postgresql", ("on", "off", "on", True))
    assert [risk.setting for risk in settings.risks(connection)] == ["fsync", "the server"]


def test_another_database_has_no_settings_that_we_know() -> None:
    """What we do not know is not judged."""
    connection: Any = _Stub("oracle", None)
    assert settings.risks(connection) == []


def test_a_database_that_does_not_know_a_setting_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a warning at most: whatever the look at the settings comes to, the store works."""

    def unknown(connection: sqlalchemy.Connection) -> list[settings.Risk]:
        connection.exec_driver_sql("SHOW nothing")
        raise AssertionError("not reached")

    monkeypatch.setattr(settings, "risks", unknown)
    keys = Keyring.parse(generate_key("1"))
    registration = Registration("linkedin", client_id="app", client_secret="s")
    with TokenKeeper(f"sqlite:///{tmp_path / 'tokens.db'}", keys=keys, registrations=[registration]) as keeper:
        keeper.create_schema()
        assert keeper.save_tokens("linkedin", "ann", {"access_token": "a"}).generation == 1


@pytest.mark.parametrize("url", ["foodb://x/y", "foodb+bar://x/y"])
def test_a_database_that_nobody_knows_is_the_operators_turn(url: str) -> None:
    """As our own error, with the fix."""
    with pytest.raises(ConfigurationError, match="driver"):
        make_engine(url)


SHOWN = {
    "sqlite": ("PRAGMA busy_timeout", 5000),
    "postgresql": ("SELECT current_setting('lock_timeout') || ' ' || current_setting('statement_timeout')", "5s 15s"),
    "mysql": ("SELECT @@innodb_lock_wait_timeout", 5),
}


def test_no_statement_waits_without_an_end(database_url: str) -> None:
    """Neither for a lock, nor (where the server can be told) at all; migrations may take as long as they like."""
    engine, patient = make_engine(database_url), make_engine(database_url, patient=True)
    statement, expected = SHOWN[engine.dialect.name]
    with engine.connect() as connection:
        assert connection.exec_driver_sql(statement).scalar() == expected
    if engine.dialect.name == "postgresql":
        with patient.connect() as connection:
            assert connection.exec_driver_sql(statement).scalar() == "0 0"
    engine.dispose()
    patient.dispose()


def test_a_pooler_that_takes_no_options_is_asked_again_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """pgbouncer refuses what it does not know at the start of a connection; another refusal is passed on."""

    class Refused(Exception):
        """The driver's OperationalError."""

    asked: list[dict[str, Any]] = []

    def connect(**parameters: Any) -> str:
        asked.append(parameters)
        if "options" in parameters:
            raise Refused(said)
        return "connected"

    dialect = SimpleNamespace(connect=connect, dbapi=SimpleNamespace(OperationalError=Refused))
    said = "FATAL: unsupported startup parameter: options"
    assert _connect_postgresql(dialect, None, (), {"host": "h"}) == "connected"
    assert [sorted(each) for each in asked] == [["host", "options"], ["host"]]
    said = "Feature not supported: RDS Proxy currently doesn't support command-line options."
    assert _connect_postgresql(dialect, None, (), {"host": "h"}) == "connected"
    said = "FATAL: no such database"
    monkeypatch.setenv("PGOPTIONS", "-c search_path=tokens")
    with pytest.raises(Refused):
        _connect_postgresql(dialect, None, (), {"host": "h"})
    assert asked[-1]["options"].startswith("-c search_path=tokens -c lock_timeout=")


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  database "tokens" does not exist',
        'FATAL:  password authentication failed for user "app"',
        'FATAL:  role "app" does not exist',
        "(1049, \"Unknown database 'tokens'\")",
        "(1045, \"Access denied for user 'app'@'localhost'\")",
        'FATAL:  pg_hba.conf rejects connection for host "10.0.0.7", user "app", database "tokens", no encryption',
        'FATAL:  database "relation_x" does not exist',
    ],
)
def test_a_url_that_lets_nobody_in_is_the_operators(said: str) -> None:
    """No second try helps; a table that is missing is another matter."""
    error = store_error(sqlalchemy.exc.OperationalError("SELECT 1", None, Exception(said)))
    assert isinstance(error, ConfigurationError)
    assert error.cause == "database"
    missing = store_error(sqlalchemy.exc.ProgrammingError("", None, Exception('relation "x" does not exist')))
    assert missing.cause == "schema"


class Coded(Exception):
    """A driver's exception with a code, in whatever language the server speaks."""

    def __init__(self, *args: Any, sqlstate: str | None = None) -> None:
        super().__init__(*args)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "kind", "cause"),
    [
        (Coded("keine Berechtigung", sqlstate="42501"), ConfigurationError, "database"),
        (Coded("Passwort falsch", sqlstate="28P01"), ConfigurationError, "database"),
        (Coded("gibt es nicht", sqlstate="3D000"), ConfigurationError, "database"),
        (Coded("Relation fehlt", sqlstate="42P01"), SchemaOutdated, "schema"),
        (Coded(1142, "command denied"), ConfigurationError, "database"),
        (Coded(1146, "gibt es nicht"), SchemaOutdated, "schema"),
        (Coded(1049, "unbekannt"), ConfigurationError, "database"),
        (Coded(1213, "deadlock"), TemporarilyUnavailable, "deadlock"),
        (Coded(2006, "server has gone away"), TemporarilyUnavailable, "store"),
        (Coded('could not translate host name "db" to address: Try again'), TemporarilyUnavailable, "store"),
    ],
)
def test_a_code_says_more_than_words(error: Exception, kind: type[Exception], cause: str) -> None:
    """Servers speak many languages, and have codes; a name that does not resolve just now is nobody's turn."""
    said = store_error(sqlalchemy.exc.OperationalError("SELECT 1", None, error))
    assert type(said) is kind
    assert said.cause == cause


def test_a_keeper_warns_once_at_its_first_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The warning is in the log, once a keeper, and says what is at risk."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'tokens.db'}")
    keys = Keyring.parse(generate_key("1"))
    registration = Registration("linkedin", client_id="app", client_secret="s")
    with TokenKeeper(engine, keys=keys, registrations=[registration]) as keeper, caplog.at_level(logging.WARNING):
        keeper.create_schema()
        for member in ("ann", "ben"):
            keeper.save_tokens("linkedin", member, {"access_token": "a"})
    engine.dispose()
    said = [record.getMessage() for record in caplog.records if "the token store's database" in record.getMessage()]
    assert len(said) == 1
    assert "journal_mode is delete" in said[0]
