"""The fake provider over HTTP on loopback: a thread a connection, HTTP/1.1 keep-alive, and a clean end.

A thread that waits at a gate or hangs on purpose must end with the server: all of them wait on one event, and their
sockets are shut down, before the server is left.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from tokenkeeper.testing.messages import Delivery, Request, Response

if TYPE_CHECKING:
    from tokenkeeper.testing.provider import FakeProvider

MAX_BODY = 16 * 1024 * 1024


class Server(socketserver.TCPServer):
    """Serves a provider from a background thread while its context lasts."""

    allow_reuse_address = True
    request_queue_size = 2048

    def __init__(self, provider: FakeProvider, host: str = "127.0.0.1", port: int = 0) -> None:
        self.provider = provider
        self.stopping = threading.Event()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._guard = threading.Lock()
        super().__init__((host, port), _Handler)
        self._acceptor = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def base_url(self) -> str:
        """Where it listens."""
        host, port = cast("tuple[str, int]", self.server_address[:2])
        return f"http://{host}:{port}"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.stopping.set()
        self.provider.release_all()
        self.shutdown()
        self._acceptor.join()
        with self._guard:
            connections = dict(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join(timeout=5)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread of its own."""
        thread = threading.Thread(target=self._serve_connection, args=(request, client_address), daemon=True)
        with self._guard:
            self._open[request] = thread
        thread.start()

    def _serve_connection(self, connection: socket.socket, client_address: Any) -> None:
        try:
            # A client that goes away in the middle is part of the tests.
            with contextlib.suppress(ConnectionError, TimeoutError):
                self.finish_request(connection, client_address)
        finally:
            with self._guard:
                self._open.pop(connection, None)
            self.shutdown_request(connection)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests off one connection and writes the provider's answers."""

    protocol_version = "HTTP/1.1"
    server_version = "FakeProvider"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def _serve(self) -> None:
        try:
            body = self._read_body()
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            self.close_connection = True
            return
        headers = tuple((name.lower(), value) for name, value in self.headers.items())
        url = f"http://{self.headers.get('host') or self.server.base_url.partition('//')[2]}{self.path}"
        response = self.server.provider.handle(Request(self.command, url, headers, body))
        try:
            self._deliver(response)
        except OSError:
            self.server.provider.lost(response)
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve  # noqa: N815

    def _read_body(self) -> bytes:
        if "chunked" in (self.headers.get("transfer-encoding") or "").lower():
            return self._read_chunks()
        length = int(self.headers.get("content-length") or 0)
        if not 0 <= length <= MAX_BODY:
            raise ValueError("body too large")
        return self.rfile.read(length)

    def _read_chunks(self) -> bytes:
        chunks = bytearray()
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            if not 0 < size <= MAX_BODY - len(chunks):
                raise ValueError("body too large")
            chunks += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(chunks)

    def _deliver(self, response: Response) -> None:
        match response.delivery:
            case Delivery.DROP | Delivery.UNREACHABLE:
                self.close_connection = True
                return
            case Delivery.HANG:
                self.server.stopping.wait(3600)
                self.close_connection = True
                return
        if response.delay and response.delivery is Delivery.WHOLE and self.server.stopping.wait(response.delay):
            raise ConnectionAbortedError("the fake provider is closing")
        self.send_response(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else response.body
        match response.delivery:
            case Delivery.CUT:
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            case Delivery.DRIP:
                self._drip(body, response.delay)
            case _:
                self.wfile.write(body)
        self.wfile.flush()

    def _drip(self, body: bytes, pause: float) -> None:
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.stopping.wait(pause or 0.05):
                break
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Say nothing: the provider keeps its own log."""
