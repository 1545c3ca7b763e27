"""The store's own engine: sync drivers, a small pool, and the settings that make a commit durable.

Pragmas and listeners go only on engines made here; an Engine that the host passes is used as it is.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from tokenkeeper.errors import (
    ConfigurationError,
    InvalidInput,
    SchemaOutdated,
    TemporarilyUnavailable,
    TokenKeeperError,
)
from tokenkeeper.model import Secret

POOL_SIZE = 4
POOL_OVERFLOW = 4
POOL_PATIENCE = 10.0
BUSY_SECONDS = 5.0

DEADLOCK = "deadlock"
"""The cause of a TemporarilyUnavailable after which the same transaction may be begun again at once."""

SYNC_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+asyncpg": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mysql+asyncmy": "mysql+pymysql",
    "mysql+aiomysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "mariadb+asyncmy": "mariadb+pymysql",
    "mariadb+aiomysql": "mariadb+pymysql",
}
"""An async URL names the same database; it is opened with the sync driver, in the keeper's own threads."""


def sync_url(database: str | Secret | URL) -> URL:
    """Return the URL with the sync driver. Raises InvalidInput without quoting a password."""
    try:
        url = make_url(database.reveal() if isinstance(database, Secret) else database)
    except (ArgumentError, ValueError):
        fix = "Pass one such as 'sqlite:///tokens.db' or 'postgresql://user@host/name'."
        raise InvalidInput(
            f"The database is not a URL that SQLAlchemy knows. It is the operator's turn. {fix}",
            cause="database",
            fix=fix,
        ) from None
    url = url.set(drivername=SYNC_DRIVERS.get(url.drivername, url.drivername))
    if url.get_backend_name() == "sqlite":
        refuse_memory(url)
    return url


def refuse_memory(url: URL) -> None:
    """Refuse a SQLite database in memory: each thread would see its own."""
    name = url.database or ""
    if name in ("", ":memory:") or "mode=memory" in str(url.render_as_string(hide_password=True)):
        fix = "Use a file, such as 'sqlite:///tokens.db' (in a temporary folder for a test)."
        raise InvalidInput(
            "A SQLite database in memory cannot keep tokens: each thread would see its own. It is the operator's turn. "
            f"{fix}",
            cause="database",
            fix=fix,
        )


def make_engine(database: str | Secret | URL) -> Engine:
    """Make the store's engine; connects to nothing yet. Raises ConfigurationError."""
    url = sync_url(database)
    options: dict[str, Any] = {
        "pool_size": POOL_SIZE,
        "max_overflow": POOL_OVERFLOW,
        "pool_timeout": POOL_PATIENCE,
        "hide_parameters": True,
    }
    backend = url.get_backend_name()
    if backend == "sqlite":
        options["connect_args"] = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    else:
        options["pool_pre_ping"] = True
        options["isolation_level"] = "READ COMMITTED"
    try:
        engine = create_engine(url, **options)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        extra = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}.get(backend)
        fix = f"pip install 'tokenkeeper[{extra}]'." if extra else "Use SQLite, PostgreSQL, MariaDB or MySQL."
        raise ConfigurationError(
            f"The driver for {url.drivername!r} is not installed. It is the operator's turn: {fix}",
            cause="driver",
            fix=fix,
        ) from error
    if backend == "sqlite":
        event.listen(engine, "do_connect", lambda *_: harden_file(url))
        event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    try:
        mode = cursor.execute("PRAGMA journal_mode").fetchone()[0]
        if mode != "wal":
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA secure_delete=ON")
    finally:
        cursor.close()


def store_error(error: Exception) -> TokenKeeperError:
    """Say what a database's exception means: whose turn, and what to do."""
    text = str(getattr(error, "orig", None) or error).lower()
    if "no such table" in text or "doesn't exist" in text or ("relation" in text and "does not exist" in text):
        fix = "Run `tokenkeeper db upgrade`, or call keeper.create_schema()."
        return SchemaOutdated(
            f"The database has no tokenkeeper tables (or old ones). It is the operator's turn. {fix}",
            cause="schema",
            fix=fix,
        )
    if "unable to open database file" in text:
        fix = "See that the folder of the SQLite file exists and that this process may write in it."
        return ConfigurationError(
            f"The SQLite file cannot be opened. It is the operator's turn. {fix}", cause="database", fix=fix
        )
    if "readonly" in text or "read-only" in text or "read only" in text:
        fix = "Give this process the right to write: the file, its folder, or the database's role; not a read replica."
        return ConfigurationError(
            f"The database is read-only, so no renewal can be claimed and nothing was sent. It is the operator's turn. {fix}",
            cause="database_read_only",
            fix=fix,
        )
    if "is full" in text or "no space" in text:
        fix = "Free some space; nothing was sent, and no grant has changed."
        return ConfigurationError(
            f"The database is full. It is the operator's turn. {fix}", cause="database_full", fix=fix
        )
    if isinstance(error, DBAPIError) and ("not a database" in text or "malformed" in text):
        fix = "Restore the SQLite file from a backup, or name another file."
        return ConfigurationError(
            f"The file is not a (sound) SQLite database. It is the operator's turn. {fix}", cause="database", fix=fix
        )
    if _given_up(getattr(error, "orig", None)):
        return TemporarilyUnavailable(
            "The database gave a transaction up for another's sake. It is nobody's turn: try again; no grant has changed.",
            cause=DEADLOCK,
            retry_after=0.0,
        )
    return TemporarilyUnavailable(
        f"The token store cannot be reached ({type(error).__name__}). It is nobody's turn: try again; no grant has changed.",
        cause="store",
        retry_after=1.0,
    )


def _given_up(error: Any) -> bool:
    """Whether the database rolled a transaction back because of another one: a deadlock, or a failed serialization."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    number = (getattr(error, "args", None) or (None,))[0]
    return state in ("40001", "40P01") or (isinstance(number, int) and number in (1020, 1213))


class store_errors:  # noqa: N801 - reads as a function
    """Let the database's exceptions leave as tokenkeeper's own. Not a generator: it stands in the way of every read."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise what the error means."""
        if isinstance(error, SQLAlchemyError):
            raise store_error(error) from error


def harden_file(url: URL) -> None:
    """Make a new SQLite file readable by its owner only (0600), before anything is written into it."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database.startswith("file:"):
        return
    path = Path(url.database)
    if not path.exists() and path.parent.is_dir():
        path.touch(mode=0o600)
