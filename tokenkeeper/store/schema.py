"""The schema's revisions: bring a database up to date, and tell whether this code and that database fit.

Each migration writes a row into ``tokenkeeper_schema``: its number, and the oldest code that it serves. A database that
is older than the code, or newer and incompatible, is an error; newer but compatible is a warning, so that a rolling
deploy is no outage.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sqlalchemy import Connection, Engine, func, select, text

from tokenkeeper.errors import SchemaOutdated, TemporarilyUnavailable
from tokenkeeper.store.tables import schema

CODE_REVISION = 1
"""The number of the newest migration that this code knows."""

VERSION_TABLE = "tokenkeeper_alembic_version"
LOCK = 7_302_116_551
LOCK_PATIENCE = 60


@dataclass(frozen=True, slots=True)
class SchemaState:
    """How a database's schema stands to this code; ``state`` is current, outdated, newer, incompatible or missing."""

    revision: int | None
    head: int
    state: str


def state_of(connection: Connection) -> SchemaState:
    """Read a database's schema revision and compare it with the code's."""
    if not connection.dialect.has_table(connection, schema.name):
        return SchemaState(None, CODE_REVISION, "missing")
    revision, serves = connection.execute(
        select(schema.c.revision, schema.c.serves).order_by(schema.c.revision.desc()).limit(1)
    ).first() or (0, 0)
    if revision == CODE_REVISION:
        state = "current"
    elif revision < CODE_REVISION:
        state = "outdated"
    else:
        state = "newer" if serves <= CODE_REVISION else "incompatible"
    return SchemaState(revision, CODE_REVISION, state)


def check(connection: Connection) -> None:
    """Raise SchemaOutdated unless this code can work with the database; warn if the database is newer."""
    found = state_of(connection)
    match found.state:
        case "newer":
            warnings.warn(
                f"The database's schema (revision {found.revision}) is newer than this code ({found.head}); they are "
                "compatible. Update tokenkeeper on this worker.",
                RuntimeWarning,
                stacklevel=2,
            )
        case "incompatible":
            fix = "Update tokenkeeper on this worker; `tokenkeeper db upgrade` was run by newer code."
            raise SchemaOutdated(
                f"The database's schema (revision {found.revision}) no longer serves this code ({found.head}). It is the "
                f"operator's turn. {fix}",
                cause="schema",
                fix=fix,
            )
        case "missing" | "outdated":
            fix = "Run `tokenkeeper db upgrade`, or call keeper.create_schema()."
            was = "has no tokenkeeper tables" if found.revision is None else f"is at revision {found.revision}"
            raise SchemaOutdated(
                f"The database {was}; this code needs revision {found.head}. It is the operator's turn. {fix}",
                cause="schema",
                fix=fix,
            )


def migrations_folder() -> Path:
    """Where the migrations are: inside an installed wheel, or at the top of a checkout."""
    inside = Path(str(files("tokenkeeper"))) / "migrations"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "migrations"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Run the migrations; safe from several processes at once, and no work where there is none."""
    from alembic import command  # noqa: PLC0415 - only those who migrate pay for it
    from alembic.config import Config  # noqa: PLC0415

    with _connected(engine) as connection, _alone(connection):
        if revision == "head" and state_of(connection).state in ("current", "newer"):
            return
        config = Config()
        config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        if revision == "head" or not revision.startswith("-"):
            command.upgrade(config, revision)
        else:
            command.downgrade(config, revision)
        connection.commit()


def _connected(engine: Engine) -> Connection:
    """A connection that sees what the migration before has committed, however the host's engine isolates its own."""
    connection = engine.connect()
    return (
        connection
        if engine.dialect.name == "sqlite"
        else connection.execution_options(isolation_level="READ COMMITTED")
    )


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Hold the one lock that keeps two migrations apart. It is the only lock in tokenkeeper, and no HTTP runs under it."""
    backend = connection.dialect.name
    if backend == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif backend == "postgresql":
        connection.execute(text("SELECT set_config('lock_timeout', :wait, true)"), {"wait": f"{LOCK_PATIENCE * 1000}"})
        # Of the migration's own transaction, not of the session: behind a pooler in transaction mode, the session that
        # unlocks may be another than the one that locked.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    else:
        if not connection.execute(select(func.get_lock(VERSION_TABLE, LOCK_PATIENCE))).scalar():
            raise TemporarilyUnavailable(
                f"Another process has been migrating the database for {LOCK_PATIENCE} s. It is nobody's turn: try again.",
                cause="migrating",
                retry_after=float(LOCK_PATIENCE),
            )
        connection.commit()
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    finally:
        if backend in ("mysql", "mariadb"):
            connection.rollback()
            connection.execute(select(func.release_lock(VERSION_TABLE)))
            connection.commit()
