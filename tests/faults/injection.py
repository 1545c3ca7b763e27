"""Makes the N-th operation of a keeper fail: a database statement, a step of a token request, a file operation.

The faults are put in at the seams below tokenkeeper (the drivers' connections, httpcore's sockets, the system's files),
so that an operation which is new in tokenkeeper is met without a word here. Every fault is the seam's own exception.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpcore2
import pytest
import sqlalchemy


class Faults:
    """Counts operations, and says which of them fail: the N-th, or the N-th and all of its layer that follow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed = False
        self._nth = 0
        self._lasting = False
        self._layer = ""
        self.met: list[str] = []
        """The operations so far, up to the one that failed."""
        self.failed: str | None = None
        """The operation that failed, if one did."""

    def arm(self, nth: int, *, lasting: bool) -> None:
        """From now on count; the *nth* operation fails, and with *lasting* those of its layer that follow."""
        with self._lock:
            self._nth, self._lasting, self._armed = nth, lasting, True
            self._layer, self.met, self.failed = "", [], None

    def end(self) -> None:
        """Nothing fails any more."""
        with self._lock:
            self._armed = False

    def meets(self, layer: str, what: str) -> bool:
        """Whether this operation is to fail."""
        with self._lock:
            if not self._armed:
                return False
            if self.failed is not None:
                return self._lasting and layer == self._layer
            self.met.append(f"{layer}: {what}")
            if len(self.met) < self._nth:
                return False
            self.failed, self._layer = self.met[-1], layer
            return True


# --- databases -------------------------------------------------------------------------------------------------------


def spoil_database(engine: sqlalchemy.Engine, faults: Faults) -> None:
    """Have the statements, commits and connects of an engine that has not connected yet fail as *faults* says.

    A commit fails in two ways: it is not made, or it is made and its acknowledgement is lost. A server's connection is
    gone after a fault, as it is when a server goes away.
    """
    kind, connect = engine.dialect.name, engine.dialect.connect
    spoil = {"sqlite": _spoil_sqlite, "postgresql": _spoil_psycopg, "mysql": _spoil_pymysql, "mariadb": _spoil_pymysql}

    def connecting(*args: Any, **kwargs: Any) -> Any:
        if faults.meets("database", "connect"):
            raise _driver_error(kind)
        return spoil[kind](connect, faults, *args, **kwargs)

    engine.dialect.connect = connecting  # type: ignore[method-assign]


def _driver_error(kind: str) -> Exception:
    if kind == "sqlite":
        return sqlite3.OperationalError("disk I/O error")
    if kind == "postgresql":
        import psycopg

        return psycopg.OperationalError("server closed the connection unexpectedly")
    import pymysql

    return pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")


def _brief(statement: object) -> str:
    """A statement's beginning, without the values that a driver may have put into it."""
    return re.sub(r"'[^']*'|\b\d+\b", "?", " ".join(str(statement).split()))[:60]


def _spoil_sqlite(connect: Callable[..., Any], faults: Faults, *args: Any, **kwargs: Any) -> Any:
    class Cursor(sqlite3.Cursor):
        def execute(self, statement: str, *parameters: Any) -> Any:
            if faults.meets("database", _brief(statement)):
                raise _driver_error("sqlite")
            return super().execute(statement, *parameters)

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = None) -> Any:
            return super().cursor(factory or Cursor)

        def commit(self) -> None:
            _commit(faults, super().commit, lambda: _driver_error("sqlite"))

        def rollback(self) -> None:
            if faults.meets("database", "ROLLBACK"):
                raise _driver_error("sqlite")
            super().rollback()

    return connect(*args, **{**kwargs, "factory": Connection})


def _commit(faults: Faults, commit: Callable[[], None], lost: Callable[[], Exception]) -> None:
    if faults.meets("database", "COMMIT"):
        raise lost()
    commit()
    if faults.meets("database", "COMMIT's acknowledgement"):
        raise lost()


def _spoil_psycopg(connect: Callable[..., Any], faults: Faults, *args: Any, **kwargs: Any) -> Any:
    connection = connect(*args, **kwargs)
    plain, commit, rollback = connection.cursor_factory, connection.commit, connection.rollback

    def lost() -> Exception:
        connection.close()
        return _driver_error("postgresql")

    class Cursor(plain):  # type: ignore[misc, valid-type]
        def execute(self, query: Any, *parameters: Any, **options: Any) -> Any:
            if faults.meets("database", _brief(query)):
                raise lost()
            return super().execute(query, *parameters, **options)

    def rolling_back() -> None:
        if faults.meets("database", "ROLLBACK"):
            raise lost()
        rollback()

    connection.cursor_factory = Cursor
    connection.commit = lambda: _commit(faults, commit, lost)
    connection.rollback = rolling_back
    return connection


def _spoil_pymysql(connect: Callable[..., Any], faults: Faults, *args: Any, **kwargs: Any) -> Any:
    connection = connect(*args, **kwargs)
    send, commit = connection._execute_command, connection.commit

    def lost() -> Exception:
        connection._force_close()
        return _driver_error("mysql")

    def sending(command: int, sql: Any) -> Any:
        text = (
            _brief(sql.decode(errors="replace") if isinstance(sql, bytes | bytearray) else sql) or f"command {command}"
        )
        if text != "COMMIT" and faults.meets("database", text):
            raise lost()
        return send(command, sql)

    connection._execute_command = sending
    connection.commit = lambda: _commit(faults, commit, lost)
    return connection


# --- token requests --------------------------------------------------------------------------------------------------


def spoil_network(patch: pytest.MonkeyPatch, faults: Faults, before_connect: Callable[[], None]) -> None:
    """Have the steps of requests over httpcore's sockets fail: connect, send (nothing, or everything sent), receive."""

    class Stream(httpcore2.NetworkStream):
        """A connection that is dead after its first fault: a broken pipe does not mend."""

        def __init__(self, inner: httpcore2.NetworkStream) -> None:
            self._inner = inner
            self._dead = False

        def _check(self, what: str, error: Exception) -> None:
            if self._dead or faults.meets("http", what):
                self._dead = True
                self._inner.close()
                raise error

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            self._check("receive", httpcore2.ReadError("[Errno 104] Connection reset by peer"))
            return self._inner.read(max_bytes, timeout)

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            if not buffer:
                return  # nothing is written, so nothing can fail
            error = httpcore2.WriteError("[Errno 32] Broken pipe")
            self._check("send", error)
            self._inner.write(buffer, timeout)
            self._check("send's acknowledgement", error)

        def close(self) -> None:
            self._inner.close()

        def get_extra_info(self, info: str) -> Any:
            return self._inner.get_extra_info(info)

    class Sockets(httpcore2.SyncBackend):
        def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
            before_connect()
            if faults.meets("http", "connect"):
                raise httpcore2.ConnectError("[Errno 111] Connection refused")
            return Stream(super().connect_tcp(*args, **kwargs))

    patch.setattr(httpcore2, "SyncBackend", Sockets)


# --- files -----------------------------------------------------------------------------------------------------------


def spoil_files(patch: pytest.MonkeyPatch, faults: Faults, folder: Path) -> None:
    """Have the operations on the files below *folder* fail: no space left where something is written, else an I/O error."""

    def inside(path: object) -> bool:
        return str(path).startswith(str(folder))

    def check(what: str, number: int = errno.EIO) -> None:
        if faults.meets("file", what):
            raise OSError(number, os.strerror(number))

    def of(descriptor: int) -> str:
        with contextlib.suppress(OSError):
            return str(Path(f"/proc/self/fd/{descriptor}").readlink())
        return ""

    def wrap(owner: Any, name: str, what: Callable[[Any], str], which: Callable[[Any], object], number: int) -> None:
        plain = getattr(owner, name)

        def checked(first: Any, *args: Any, **kwargs: Any) -> Any:
            if inside(which(first)):
                check(what(first), number)
            return plain(first, *args, **kwargs)

        patch.setattr(owner, name, checked)

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            check("write", errno.ENOSPC)
            return super().write(data)

    plain_fdopen = os.fdopen

    def fdopen(descriptor: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" not in mode or not inside(of(descriptor)):
            return plain_fdopen(descriptor, mode, *args, **kwargs)
        buffered = io.BufferedWriter(Raw(descriptor, "w"))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    patch.setattr(os, "fdopen", fdopen)
    wrap(os, "open", lambda path: f"open {Path(path).suffix or 'folder'}", lambda path: path, errno.ENOSPC)
    wrap(os, "fsync", lambda fd: f"fsync {Path(of(fd)).suffix or 'folder'}", of, errno.EIO)
    for name, number in {
        "mkdir": errno.ENOSPC,
        "replace": errno.ENOSPC,
        "unlink": errno.EIO,
        "glob": errno.EIO,
        "read_text": errno.EIO,
        "read_bytes": errno.EIO,
    }.items():
        wrap(Path, name, lambda path, name=name: name, lambda path: path, number)  # type: ignore[misc]


@contextlib.contextmanager
def spoiled(folder: Path, before_connect: Callable[[], None] = lambda: None) -> Iterator[Faults]:
    """Have network and files below *folder* spoiled while the context lasts; engines are spoiled one by one."""
    faults = Faults()
    with pytest.MonkeyPatch.context() as patch:
        spoil_network(patch, faults, before_connect)
        spoil_files(patch, faults, folder)
        try:
            yield faults
        finally:
            faults.end()
