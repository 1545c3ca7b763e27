"""A database's settings that put a rotated refresh token at risk: read once, at a keeper's first use.

A claim and a save are only worth something if a commit is one. What is found is a warning, not a refusal: the tokens are
as safe as the database is set to keep them, and the operator should know.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text

LOSES_COMMITS = "a crash of the server can undo a commit, and with it a refresh token that was just rotated"
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs"})
SYNCHRONOUS_FULL = 2


@dataclass(frozen=True, slots=True)
class Risk:
    """A setting as it was found, what is at risk with it, and what to do."""

    setting: str
    found: str
    risk: str
    fix: str

    def __str__(self) -> str:
        return f"{self.setting} is {self.found}: {self.risk}. {self.fix}"


def risks(connection: Connection) -> list[Risk]:
    """Read the settings that matter, for SQLite, PostgreSQL, MariaDB and MySQL."""
    match connection.dialect.name:
        case "sqlite":
            return _sqlite(connection)
        case "postgresql":
            return _postgresql(connection)
        case "mysql" | "mariadb":
            return _mysql(connection)
    return []


def _sqlite(connection: Connection) -> list[Risk]:
    """What an Engine of the host may be set to: one of ours has both pragmas as they should be."""
    journal = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())
    synchronous = int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())
    found = []
    if journal != "wal":
        found.append(
            Risk(
                "journal_mode",
                journal,
                "readers and writers wait for one another",
                "Let tokenkeeper open the database by its URL, or run PRAGMA journal_mode=WAL.",
            )
        )
    if synchronous < SYNCHRONOUS_FULL:
        found.append(
            Risk(
                "synchronous",
                ("OFF", "NORMAL")[synchronous],
                "a power cut can undo a commit, and with it a refresh token that was just rotated",
                "Let tokenkeeper open the database by its URL, or run PRAGMA synchronous=FULL on each connection.",
            )
        )
    system = file_system(connection.engine.url.database or "")
    if system in NETWORK_FILE_SYSTEMS:
        found.append(
            Risk(
                "the file system",
                system,
                "SQLite's locks do not hold on a network share, so two workers may spend the same refresh token",
                "Put the file on a disk of this machine, or use PostgreSQL or MariaDB.",
            )
        )
    return found


def file_system(database: str, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that a file is on, where the system tells (Linux), or an empty text."""
    try:
        lines = [line.split() for line in mounts.read_text(errors="replace").splitlines()]
        place = Path(database).absolute()
    except OSError:
        return ""
    fitting = [(Path(fields[1]), fields[2]) for fields in lines if len(fields) > 2 and place.is_relative_to(fields[1])]
    return max(fitting, key=lambda mount: len(mount[0].parts), default=(place, ""))[1]


_POSTGRESQL = text(
    "SELECT current_setting('synchronous_commit', true), current_setting('fsync', true),"
    " current_setting('full_page_writes', true),"
    " pg_is_in_recovery()"
)


def _postgresql(connection: Connection) -> list[Risk]:
    synchronous_commit, fsync, full_page_writes, standby = connection.execute(_POSTGRESQL).one()
    found = [
        Risk(name, "off", LOSES_COMMITS, fix)
        for name, value, fix in (
            (
                "synchronous_commit",
                synchronous_commit,
                "ALTER ROLE … SET synchronous_commit = on for tokenkeeper's role.",
            ),
            ("fsync", fsync, "Set fsync = on in postgresql.conf."),
            ("full_page_writes", full_page_writes, "Set full_page_writes = on in postgresql.conf."),
        )
        if value == "off"
    ]
    if standby:
        found.append(
            Risk("the server", "a standby", "it cannot be written, so nothing can be renewed", "Name the primary.")
        )
    return found


_MYSQL = text(
    "SHOW VARIABLES WHERE Variable_name IN"
    " ('innodb_flush_log_at_trx_commit', 'innodb_doublewrite', 'log_bin', 'sync_binlog', 'read_only', 'wsrep_on')"
)


def _mysql(connection: Connection) -> list[Risk]:
    settings = {name: str(value).upper() for name, value in connection.execute(_MYSQL)}
    found = []
    if (flush := settings.get("innodb_flush_log_at_trx_commit", "1")) != "1":
        found.append(
            Risk("innodb_flush_log_at_trx_commit", flush, LOSES_COMMITS, "Set innodb_flush_log_at_trx_commit = 1.")
        )
    if settings.get("innodb_doublewrite") == "OFF":
        found.append(Risk("innodb_doublewrite", "OFF", LOSES_COMMITS, "Set innodb_doublewrite = ON."))
    # MariaDB's default for sync_binlog is 0: with a binary log, a promoted replica may lack the newest commits.
    if settings.get("log_bin") == "ON" and settings.get("sync_binlog") == "0":
        found.append(
            Risk(
                "sync_binlog",
                "0",
                "after a crash a replica may lack a commit, and with it a refresh token that was just rotated",
                "Set sync_binlog = 1.",
            )
        )
    if settings.get("wsrep_on") == "ON":
        found.append(
            Risk(
                "wsrep_on",
                "ON",
                "two nodes of a Galera cluster can both accept a claim, so the same refresh token may be spent twice",
                "Let all workers write to one node.",
            )
        )
    if settings.get("read_only") == "ON":
        found.append(
            Risk("read_only", "ON", "it cannot be written, so nothing can be renewed", "Name the primary server.")
        )
    return found
