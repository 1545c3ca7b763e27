"""A token endpoint on raw loopback sockets that misbehaves byte by byte, one way a path, until the weather clears.

``/<case>/token`` gets that case's answer while the weather is bad, and the fake provider's own when it is fair. A case
that acts before the request is read has a port of its own, because nobody knows the path yet.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tokenkeeper.testing import FakeProvider
from tokenkeeper.testing.messages import Request, Response

PATIENCE = 30.0
"""The longest (seconds) that a connection is looked after: a client that never hangs up fails a test, it does not hang it."""

Act = Callable[["Visit"], None]


@dataclass(eq=False)
class Visit:
    """One connection: what came, when, and when the client hung up."""

    endpoint: Endpoint
    socket: socket.socket
    opened: float = field(default_factory=time.monotonic)
    case: str = ""
    raw: bytes = b""
    request: Request | None = None
    left: float | None = None

    @property
    def lasted(self) -> float:
        """Seconds from the connection's beginning until the client hung up."""
        assert self.left is not None, f"{self.case}: the client has not hung up"
        return self.left - self.opened

    @property
    def now(self) -> float:
        """The provider's time."""
        return self.endpoint.provider.clock()

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.socket.sendall(data)

    def reset(self) -> None:
        """End the connection with a reset instead of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def wait_for_the_end(self) -> None:
        """Wait until the client hangs up."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(65536):
                pass
        self.left = time.monotonic()

    def drip(self, data: bytes, pause: float = 0.02) -> None:
        """Send byte by byte until the client hangs up."""
        try:
            for byte in data:
                self.send(bytes([byte]))
                if self.endpoint.stopping.wait(pause):
                    return
        except ConnectionError:
            self.left = time.monotonic()


class Endpoint:
    """The server; ``visits`` are all connections that came, in order."""

    def __init__(self, provider: FakeProvider, cases: Mapping[str, Act], *, at_once: str | None = None) -> None:
        self.provider = provider
        self.cases = cases
        self.at_once = at_once
        self.fair = False
        self.carrying_out = False
        """Whether requests are carried out before their answer is spoilt."""
        self.visits: list[Visit] = []
        self.trouble: list[BaseException] = []
        self.stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def url(self, case: str) -> str:
        """The token endpoint that misbehaves in the way of a case."""
        return f"{self.base_url}/{case}/token"

    def of(self, case: str) -> list[Visit]:
        """The connections that were made for a case."""
        return [visit for visit in list(self.visits) if visit.case == case]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for visit in list(self.visits):
            with contextlib.suppress(OSError):
                visit.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        assert not self.trouble, self.trouble

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            visit = Visit(self, connection)
            self.visits.append(visit)
            self._start(self._serve, visit)

    def _serve(self, visit: Visit) -> None:
        with visit.socket:
            try:
                self._answer(visit)
            except OSError:
                visit.left = visit.left or time.monotonic()
            except BaseException as error:
                self.trouble.append(error)

    def _answer(self, visit: Visit) -> None:
        if self.at_once is not None and not self.fair:
            visit.case = self.at_once
            self.cases[self.at_once](visit)
            return
        visit.request = read_request(visit)
        if visit.request is None:
            return
        visit.case = visit.request.path.split("/")[1]
        act = None if self.fair else self.cases.get(visit.case)
        if act is None or self.carrying_out:
            response = self.provider.handle(visit.request)
        if act is None:
            visit.send(written(response))
        else:
            act(visit)


def read_request(visit: Visit) -> Request | None:
    """Read a request off a connection."""
    while b"\r\n\r\n" not in visit.raw:
        piece = visit.socket.recv(65536)
        if not piece:
            return None
        visit.raw += piece
    head, _, body = visit.raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
    length = int(dict(headers).get("content-length", "0"))
    while len(body) < length:
        piece = visit.socket.recv(65536)
        if not piece:
            return None
        visit.raw += piece
        body += piece
    return Request(method, visit.endpoint.base_url + path, headers, body)


def written(response: Response) -> bytes:
    """A response as it goes over the wire."""
    lines = [f"HTTP/1.1 {response.status} Status", *(f"{name}: {value}" for name, value in response.headers)]
    lines.append(f"Content-Length: {len(response.body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + response.body


class Elsewhere:
    """Another origin, which nobody may turn to: its log is every connection with the first that it said."""

    def __init__(self, host: str) -> None:
        self.log: list[bytes] = []
        self._listener = socket.create_server((host, 0))
        name, port = self._listener.getsockname()[:2]
        self.base_url = f"http://{name}:{port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                self.log.append(b"(connected)")
                with contextlib.suppress(OSError):
                    self.log.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
