"""Database servers of a test's own: it may restart them, crash them, cut their connections, or set their clock.

The shared servers of ``conftest.py`` are everybody's, so nobody may do that to them. Here each test starts its own on a
free loopback port, with the server's durable settings as they are by default, and stops it at the end whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import sqlalchemy
from sqlalchemy.pool import NullPool

from tests.conftest import left_out

Server = TypeVar("Server", bound="PrivateServer")

START_SECONDS = 60.0
STOP_SECONDS = 30.0
PORTS = range(17_000, 31_000)
"""Below what the system gives to outgoing connections: nobody takes the port while the server is away."""

MARIADB_ACCOUNTS = """\
CREATE DATABASE IF NOT EXISTS tokenkeeper;
CREATE USER IF NOT EXISTS 'root'@'127.0.0.1';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
CREATE USER IF NOT EXISTS 'root'@'localhost';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'localhost' WITH GRANT OPTION;
"""
"""What mariadbd runs at each start: the account that the tests use, by whichever name it calls 127.0.0.1."""


class PrivateServer(ABC):
    """A database server that belongs to one test."""

    url: str
    """Names an empty database, and an account that may do everything, over TCP on 127.0.0.1."""

    signals: ClassVar[Mapping[str, int]]
    """Mode of :meth:`stop` -> the signal for it."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None) -> None:
        self.folder = folder
        self.port = free_port()
        self.env = dict(env or {})
        """Put over the environment of the server, not of the tools that prepare its files; read at each start."""
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def create(self) -> None:
        """Make the server's files."""

    @abstractmethod
    def command(self) -> list[str]:
        """The server's command line, in the foreground."""

    @abstractmethod
    def account(self) -> str | None:
        """The system account that it must run as, or None for ours."""

    @abstractmethod
    def kill_connections(self) -> int:
        """End every client connection but the one that does it; say how many there were."""

    @property
    def log(self) -> Path:
        """What the server wrote."""
        return self.folder / "server.log"

    @property
    def pid(self) -> int:
        """The process id of the running server. Raises RuntimeError if it does not run."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, on the same port and files as before, and wait until it answers."""
        if self.running:
            raise RuntimeError("the server runs already")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "TMPDIR": str(self.folder), **self.env},
                start_new_session=True,
                **as_account(self.account()),
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                told = self.log.read_text(errors="replace")[-2000:]
                self.stop("immediate")
                raise RuntimeError(f"the server did not start: {told}")
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether it takes connections."""
        with contextlib.closing(self._engine()) as engine, contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
            with engine.connect():
                return True
        return False

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``fast`` (orderly, connections cut) or ``immediate`` (a crash: the files are recovered at start)."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self.signals[mode])
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: nobody else is in it
            process.wait(STOP_SECONDS)

    def _engine(self) -> _Closing:
        return _Closing(self.url)


class _Closing:
    """An engine without a pool, to be closed."""

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self.connect = self._engine.connect

    def close(self) -> None:
        self._engine.dispose()


class PrivatePostgresql(PrivateServer):
    """PostgreSQL, of the newest version that is installed."""

    signals: ClassVar = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

    def __init__(self, folder: Path, env: Mapping[str, str] | None) -> None:
        super().__init__(folder, env)
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Make the server's files."""
        # Only the making of the files is not synced: the server itself keeps fsync as it is by default.
        run(
            [find("initdb"), "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"],
            self.folder,
            self.account(),
        )

    def command(self) -> list[str]:
        """The server's command line, in the foreground."""
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [find("postgres"), "-D", str(self.folder / "data"), *settings]

    def account(self) -> str | None:
        """PostgreSQL refuses to run as root."""
        return "postgres" if os.getuid() == 0 else None

    def kill_connections(self) -> int:
        """End every client connection but the one that does it; say how many there were."""
        with contextlib.closing(self._engine()) as engine, engine.connect() as connection:
            killed = connection.exec_driver_sql(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            return int(killed.scalar_one())


class PrivateMariadb(PrivateServer):
    """MariaDB, as it is installed."""

    signals: ClassVar = {"fast": signal.SIGTERM, "immediate": signal.SIGKILL}

    def __init__(self, folder: Path, env: Mapping[str, str] | None) -> None:
        super().__init__(folder, env)
        self.url = f"mariadb+pymysql://root@127.0.0.1:{self.port}/tokenkeeper"

    def create(self) -> None:
        """Make the server's files."""
        (self.folder / "accounts.sql").write_text(MARIADB_ACCOUNTS)
        (self.folder / "accounts.sql").chmod(0o644)
        run(
            [
                find("mariadb-install-db"),
                "--no-defaults",
                f"--datadir={self.folder / 'data'}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *(["--user=root"] if os.getuid() == 0 else []),
            ],
            self.folder,
            self.account(),
        )

    def command(self) -> list[str]:
        """The server's command line, in the foreground."""
        return [
            find("mariadbd"),
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--init-file={self.folder / 'accounts.sql'}",
            *(["--user=root"] if os.getuid() == 0 else []),
        ]

    def account(self) -> str | None:
        """It runs as whoever we are."""
        return None

    def kill_connections(self) -> int:
        """End every client connection but the one that does it; say how many there were."""
        killed = 0
        with contextlib.closing(self._engine()) as engine, engine.connect() as connection:
            own = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
            for row in connection.exec_driver_sql("SHOW PROCESSLIST").all():
                if row[0] == own or row[1] in ("system user", "event_scheduler"):
                    continue
                with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):  # it has gone by itself
                    connection.exec_driver_sql(f"KILL {int(row[0])}")
                    killed += 1
        return killed


@contextlib.contextmanager
def private_postgresql(folder: Path, *, env: Mapping[str, str] | None = None) -> Iterator[PrivatePostgresql]:
    """Start a PostgreSQL server of the test's own, with *env* over its environment; its log is kept in *folder*."""
    need("postgresql", "initdb", "postgres")
    with _started(PrivatePostgresql, folder, env) as server:
        yield server


@contextlib.contextmanager
def private_mariadb(folder: Path, *, env: Mapping[str, str] | None = None) -> Iterator[PrivateMariadb]:
    """Start a MariaDB server of the test's own, with *env* over its environment; its log is kept in *folder*."""
    need("mariadb", "mariadb-install-db", "mariadbd")
    with _started(PrivateMariadb, folder, env) as server:
        yield server


PRIVATE = {"postgresql": private_postgresql, "mariadb": private_mariadb}
"""Kind of server -> the context manager that starts one."""


@contextlib.contextmanager
def _started(kind: type[Server], folder: Path, env: Mapping[str, str] | None) -> Iterator[Server]:
    # Not in the test's folder: pytest keeps that from other accounts, and PostgreSQL does not run as root.
    home = Path(tempfile.mkdtemp(prefix="tokenkeeper-server-"))
    server = kind(home, env)
    if (account := server.account()) is not None:
        shutil.chown(home, account, account)
    try:
        server.create()
        server.start()
        yield server
    finally:
        try:
            server.stop("immediate")
        finally:
            with contextlib.suppress(OSError):
                shutil.copy(server.log, folder / f"{kind.__name__}-{server.port}.log")
            shutil.rmtree(home, ignore_errors=True)


def need(kind: str, *programs: str) -> None:
    """Leave the test out, with a plain reason, where a program is not installed; in CI that is a failure."""
    absent = [program for program in programs if locate(program) is None]
    if absent:
        left_out(f"a {kind} server of the test's own cannot be started: no {' and no '.join(absent)} installed")


def locate(program: str) -> str | None:
    """Where a server's program is, or None."""
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name.split(".")[0]))
    folders = [str(path) for path in reversed(newest)]
    return shutil.which(program, path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin"]))


def find(program: str) -> str:
    """Where a server's program is. Raises FileNotFoundError."""
    found = locate(program)
    if found is None:
        raise FileNotFoundError(program)
    return found


def run(command: list[str], folder: Path, account: str | None) -> None:
    """Run a tool to its end. Raises RuntimeError with its words."""
    done = subprocess.run(
        command,
        cwd=folder,
        # A MariaDB server that starts removes what others have in its temporary folder.
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **as_account(account),
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {(done.stdout + done.stderr)[-2000:]}")


def as_account(account: str | None) -> dict[str, Any]:
    """What makes ``subprocess`` run something as another account."""
    return {} if account is None else {"user": account, "group": account, "extra_groups": []}


def free_port() -> int:
    """A loopback port that nobody listens at."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port on 127.0.0.1")
