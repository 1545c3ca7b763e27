"""A TCP proxy between a worker and its database that can lose the acknowledgement of a commit.

The database commits, the worker sees its connection die and cannot know: the commit is *unknown*.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from types import TracebackType
from typing import Self

COMMIT = re.compile(rb"COMMIT(?!TED)")
"""How both servers are told, in plain text: libpq's query message, and MariaDB's COM_QUERY."""


class CuttingProxy:
    """Listens on a loopback port and passes everything on, until it is told to lose a commit's acknowledgement."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._armed = threading.Event()
        self._open: list[socket.socket] = []
        self.lost = threading.Event()
        """Set when a commit was passed on and its acknowledgement was swallowed."""

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def lose_next_commit(self) -> None:
        """Of the next COMMIT that comes, swallow the answer, and cut the connection."""
        self.lost.clear()
        self._armed.set()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                try:
                    server = socket.create_connection(self._to, timeout=10)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                self._open.append(server)
                losing = threading.Event()
                for target in (self._to_server, self._to_client):
                    threading.Thread(target=target, args=(client, server, losing), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._armed.is_set() and COMMIT.search(data):
                    self._armed.clear()
                    losing.set()
                server.sendall(data)
        _cut(server)

    def _to_client(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if losing.is_set():  # the database has answered, so it has committed
                    self.lost.set()
                    break
                client.sendall(data)
        _cut(client)
        _cut(server)

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _cut(self._listener)
        self._listener.close()
        for connection in self._open:
            _cut(connection)
            connection.close()


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
