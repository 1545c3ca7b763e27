"""pgbouncer in transaction mode: each transaction may have another server connection, and two are all there are."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import sqlalchemy

from tests.conftest import server_url
from tests.servers import PrivateServer, find, need

SERVER_CONNECTIONS = 2


class Bouncer(PrivateServer):
    """A pooler of the test's own, in front of the PostgreSQL server that all tests share."""

    signals: ClassVar = {"fast": 2, "immediate": 15}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, None)
        self._server = sqlalchemy.make_url(server_url("postgresql"))
        self.url = self.in_front_of(self._server.render_as_string(hide_password=False))

    def in_front_of(self, database: str) -> str:
        """The URL by which a database of the server is reached through the pooler."""
        url = sqlalchemy.make_url(database).set(host="127.0.0.1", port=self.port)
        return url.render_as_string(hide_password=False)

    def create(self) -> None:
        """Write its settings: any database, by its own name."""
        server = self._server
        password = f" password={server.password}" if server.password else ""
        settings = self.folder / "pgbouncer.ini"
        settings.write_text(
            f"""\
[databases]
* = host={server.host} port={server.port or 5432} user={server.username}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {SERVER_CONNECTIONS}
max_client_conn = 2000
server_round_robin = 1
"""
        )
        settings.chmod(0o644)

    def command(self) -> list[str]:
        """Its command line, in the foreground."""
        return [find("pgbouncer"), str(self.folder / "pgbouncer.ini")]

    def account(self) -> str | None:
        """It refuses to run as root; its Debian package comes with this account."""
        return "postgres" if os.getuid() == 0 else None

    def kill_connections(self) -> int:
        """Nobody does that here."""
        raise NotImplementedError


@contextmanager
def bouncer(folder: Path) -> Iterator[Bouncer]:
    """Start a pooler; its log is kept in *folder*. Where it is not installed, the test is left out (in CI: fails)."""
    need("pgbouncer", "pgbouncer")
    home = Path(tempfile.mkdtemp(prefix="tokenkeeper-pooler-"))
    home.chmod(0o755)
    pooler = Bouncer(home)
    try:
        pooler.create()
        pooler.start()
        yield pooler
    finally:
        pooler.stop()
        if pooler.log.exists():
            shutil.copy(pooler.log, folder / "pgbouncer.log")
        shutil.rmtree(home, ignore_errors=True)
