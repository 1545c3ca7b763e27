"""A small HTTP/1.1 server on loopback that answers as a test says, byte for byte, and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An answer. ``framing`` is length, chunked, close (to the end of the connection) or cut (the end is missing)."""

    status: int = 200
    body: bytes = b""
    headers: Pairs = ()
    framing: str = "length"


Script = Callable[[Asked], Reply]


@dataclass
class Loopback:
    """The running server: ``url`` of its root, what was asked, and the answers by path."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    routes: dict[str, Reply | Script] = field(default_factory=dict)

    def reply(self, asked: Asked) -> Reply:
        """The answer to a request; a path that nobody has set is a 404."""
        self.asked.append(asked)
        route = self.routes.get(asked.path, Reply(404))
        return route if isinstance(route, Reply) else route(asked)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    loopback: Loopback

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of some tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.loopback.reply(Asked(self.command, self.path, headers, body))
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        if reply.framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif reply.framing == "close":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(reply.body) + (100 if reply.framing == "cut" else 0)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if reply.framing == "chunked":
            for start in range(0, len(reply.body), 65_536):
                piece = reply.body[start : start + 65_536]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(reply.body)
        if reply.framing in ("close", "cut"):
            self.close_connection = True

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        piece = self.rfile.read(size)
        self.rfile.readline()
        return piece

    do_GET = do_POST = do_HEAD = do_PUT = _answer  # noqa: N815


@contextmanager
def serving() -> Iterator[Loopback]:
    """Run a server for as long as the block lasts."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.loopback = Loopback(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.loopback
        finally:
            server.shutdown()
            thread.join()
