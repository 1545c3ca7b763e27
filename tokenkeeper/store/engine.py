"""The store's own engine: sync drivers, a small pool, and the settings that make a commit durable.

Pragmas and listeners go only on engines made here; an Engine that the host passes is used as it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event, make_url
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
POOL_OVERFLOW = 0
"""What overflows is closed when it comes back, and a burst would open it anew: up to 30 ms of CPU each with pymysql."""

POOL_PATIENCE = 10.0
BUSY_SECONDS = 5.0
CONNECT_SECONDS = 5
ANSWER_SECONDS = 15
"""A server that has vanished without a word is given up after so long; the system's own patience is many minutes."""

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


CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": BUSY_SECONDS, "check_same_thread": False},
    # A server-side prepared statement does not survive a pooler in transaction mode, where each transaction may have
    # another server connection. Nothing of the session is set either.
    "psycopg": {
        "prepare_threshold": None,
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": ANSWER_SECONDS * 1000,
        "keepalives_idle": 5,
        "keepalives_interval": 5,
        "keepalives_count": 2,
    },
    "pymysql": {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": ANSWER_SECONDS,
        "write_timeout": ANSWER_SECONDS,
        "init_command": f"SET SESSION innodb_lock_wait_timeout = {BUSY_SECONDS:.0f}",
    },
}
"""By driver; what the URL says itself wins."""


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


def make_engine(database: str | Secret | URL, *, patient: bool = False) -> Engine:
    """Make the store's engine; connects to nothing yet. Raises ConfigurationError.

    *patient*: for the migrations, whose statements may take as long as they like.
    """
    url = sync_url(database)
    options: dict[str, Any] = {
        "pool_size": POOL_SIZE,
        "max_overflow": POOL_OVERFLOW,
        "pool_timeout": POOL_PATIENCE,
        "hide_parameters": True,
    }
    backend = url.get_backend_name()
    if backend != "sqlite":
        options["pool_pre_ping"] = True
        options["isolation_level"] = "READ COMMITTED"
    driver = "sqlite" if backend == "sqlite" else url.drivername.partition("+")[2]
    arguments = CONNECT_ARGUMENTS.get(driver, {})
    options["connect_args"] = {
        name: value
        for name, value in arguments.items()
        if name not in url.query and not (patient and name in ("read_timeout", "write_timeout"))
    }
    try:
        engine = create_engine(url, **options)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        extra = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}.get(backend)
        fix = "Use SQLite, PostgreSQL, MariaDB or MySQL."
        if extra:
            fix = f"Install tokenkeeper with the extra {extra!r}, and write the URL as {backend}://… without a driver."
        raise ConfigurationError(
            f"The driver for {url.drivername!r} is not installed. It is the operator's turn: {fix}",
            cause="driver",
            fix=fix,
        ) from error
    if backend == "sqlite":
        event.listen(engine, "do_connect", lambda *_: harden_file(url))
        event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "handle_error", _leave_the_read_only)
    if driver == "psycopg" and not patient and "options" not in url.query:
        event.listen(engine, "do_connect", _connect_postgresql)
    return engine


READ_ONLY = ("25006", 1290, 1792, 1836)
"""What PostgreSQL, and MariaDB and MySQL, call a server (or transaction) that takes no writes: SQLSTATE and numbers."""


def _leave_the_read_only(context: ExceptionContext) -> None:
    """Drop the pool's connections to a server that was demoted: new ones go to its successor."""
    if _codes(context.original_exception) & set(READ_ONLY):
        context.is_disconnect = True


LIMITS = f"-c lock_timeout={BUSY_SECONDS:.0f}s -c statement_timeout={ANSWER_SECONDS}s"
"""No statement of ours waits for a lock, or at all, without an end."""


TAKES_NO_OPTIONS = ("startup parameter", "command-line options")
"""What pgbouncer and the proxy of Amazon RDS say."""


def _connect_postgresql(dialect: Any, _record: Any, arguments: Any, parameters: Any) -> Any:
    """Connect with limits; a pooler that takes no ``options`` is asked again without."""
    limits = {"options": f"{os.environ.get('PGOPTIONS', '')} {LIMITS}".strip()}
    while True:
        try:
            return dialect.connect(*arguments, **parameters, **limits)
        except dialect.dbapi.OperationalError as error:
            if not limits or not any(words in str(error) for words in TAKES_NO_OPTIONS):
                del arguments, parameters  # a traceback of this frame must not show the password
                raise
        limits = {}


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


NO_WAY_IN = (
    "password authentication failed",
    "no pg_hba.conf entry",
    "access denied for user",
    "unknown database",
    "no password supplied",
    "pg_hba.conf rejects",
    "is not permitted to log in",
)
"""What servers say at the door, where there is no code; of a database and a role see below."""

NOT_LET_IN = frozenset({"28000", "28P01", "3D000", 1044, 1045, 1049, 1698})
NO_RIGHT = frozenset({"42501", 1142, 1143, 1227})
NO_TABLE = frozenset({"42P01", 1146})


_NO_RELATION = re.compile(r'relation "[^"]*" does not exist')
_NOT_THERE = re.compile(r'(?:database|role) "[^"]*" does not exist')


def store_error(error: Exception) -> TokenKeeperError:
    """Say what a database's exception means: whose turn, and what to do."""
    if isinstance(error, PermissionError):
        fix = "Give this process the right to read and write the database's file and its folder."
        return ConfigurationError(
            f"The database cannot be opened ({error.strerror}). It is the operator's turn. {fix}",
            cause="database",
            fix=fix,
        )
    text = str(getattr(error, "orig", None) or error).lower()
    codes = _codes(getattr(error, "orig", None))
    if codes & NO_TABLE or "no such table" in text or _NO_RELATION.search(text):
        fix = "Run `tokenkeeper db upgrade`, or call keeper.create_schema()."
        return SchemaOutdated(
            f"The database has no tokenkeeper tables (or old ones). It is the operator's turn. {fix}",
            cause="schema",
            fix=fix,
        )
    if codes & NO_RIGHT:
        fix = "Grant the role SELECT, INSERT, UPDATE and DELETE on tokenkeeper's tables (docs/operating.md)."
        return ConfigurationError(
            f"The database's role may not do this. It is the operator's turn. {fix}", cause="database", fix=fix
        )
    if codes & NOT_LET_IN or any(words in text for words in NO_WAY_IN) or _NOT_THERE.search(text):
        fix = "Check the host, the name of the database, the user and the password in the database's URL."
        return ConfigurationError(
            f"The database lets nobody in with this URL. It is the operator's turn. {fix}", cause="database", fix=fix
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
    return bool(_codes(error) & {"40001", "40P01", 1020, 1213})


def _codes(error: Any) -> set[str | int]:
    """The codes that a driver's exception has: a SQLSTATE, or a MariaDB's or MySQL's number."""
    number = (getattr(error, "args", None) or (None,))[0]
    found = (getattr(error, "sqlstate", None), getattr(error, "pgcode", None), number)
    return {code for code in found if (isinstance(code, str) and len(code) == 5) or type(code) is int}


class store_errors:  # noqa: N801 - reads as a function
    """Let the database's exceptions leave as tokenkeeper's own. Not a generator: it stands in the way of every read."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise what the error means."""
        if isinstance(error, SQLAlchemyError | OSError):
            raise store_error(error) from error


def harden_file(url: URL) -> None:
    """Make a new SQLite file readable by its owner only (0600), before anything is written into it."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database.startswith("file:"):
        return
    path = Path(url.database)
    if not path.exists() and path.parent.is_dir():
        path.touch(mode=0o600)
