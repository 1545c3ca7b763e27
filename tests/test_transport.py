"""The transport on real loopback sockets: every outcome is a value, in time, and says whether anything was sent."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import gzip
import ipaddress
import logging
import socket
import ssl
import struct
import threading
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from frames import in_package

from tokenkeeper.core.token_endpoint import NeverSent, TokenRequest, Unanswered
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Answer, Secret
from tokenkeeper.transport import Transport

CANARY = "canary-refresh-token"
FORM = f"grant_type=refresh_token&refresh_token={CANARY}"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

Handler = Callable[[socket.socket, "Server"], None]


def request(url: str) -> TokenRequest:
    """A token request with a canary in its form and in its credentials."""
    headers = (("content-type", "application/x-www-form-urlencoded"), ("authorization", f"Basic {CANARY}"))
    return TokenRequest(url, headers, Secret(FORM))


class Server:
    """A loopback server: each connection is handed to the handler, in a thread of its own."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.received: list[bytes] = []
        self.stop = threading.Event()
        self.trouble: list[BaseException] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    @property
    def url(self) -> str:
        """The server's token endpoint."""
        return f"http://127.0.0.1:{self.port}/token"

    def accept(self) -> None:
        """Take connections until the server is closed."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self.serve, args=(connection,))
            self.threads.append(thread)
            thread.start()

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection; the client may go away at any time."""
        with connection:
            connection.settimeout(10)
            try:
                self.handler(connection, self)
            except OSError:
                pass
            except BaseException as error:
                self.trouble.append(error)

    def close(self) -> None:
        """Stop and wait for all threads."""
        self.stop.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)
        assert not self.trouble


@contextlib.contextmanager
def serving(handler: Handler) -> Iterator[Server]:
    """A server for one test."""
    server = Server(handler)
    try:
        yield server
    finally:
        server.close()


def read_request(connection: socket.socket, server: Server) -> bytes:
    """Read one request with its body, and remember it."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            break
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        chunk = connection.recv(65536)
        if not chunk:
            break
        body += chunk
    if data:
        server.received.append(head + b"\r\n\r\n" + body)
    return head


def answering(*parts: bytes) -> Handler:
    """A handler that reads the request and sends these bytes."""

    def handler(connection: socket.socket, server: Server) -> None:
        read_request(connection, server)
        for part in parts:
            connection.sendall(part)

    return handler


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset instead of a FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Hook:
    """A last hook that says yes and remembers what *look* saw when it was asked."""

    def __init__(self, look: Callable[[], object] = lambda: None) -> None:
        self.look = look
        self.seen: list[object] = []

    def __call__(self) -> bool:
        self.seen.append(self.look())
        return True


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """The block takes at most that long."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxies stay out of the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- what is sent, and what comes back -------------------------------------------------------------------------------


def test_request_and_answer() -> None:
    """The request is one POST with our headers; the answer is status, headers in lower case, and body."""
    with serving(
        answering(b"HTTP/1.1 400 Bad\r\nX-Li-UUID: \xe9\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n", b"{}")
    ) as server:
        answer = Transport().send(request(server.url), deadline=5)
    assert answer == Answer(400, (("x-li-uuid", "\xe9"), ("set-cookie", "a=1"), ("set-cookie", "b=2")), b"{}")
    head, _, body = server.received[0].partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"post /token http/1.1"
    assert sorted(lines[1:]) == sorted(
        [
            b"host: 127.0.0.1:%d" % server.port,
            b"content-type: application/x-www-form-urlencoded",
            b"authorization: basic " + CANARY.encode(),
            b"content-length: %d" % len(FORM),
            b"accept-encoding: identity",
            b"connection: close",
            b"user-agent: tokenkeeper",
        ]
    )
    assert body == FORM.encode()


def test_nothing_is_carried_from_one_request_to_the_next() -> None:
    """Each request has a connection of its own, and the cookies of one member's answer reach no other's request."""
    with serving(answering(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: session=ann\r\n\r\n"))) as server:
        transport = Transport()
        for _ in range(3):
            assert isinstance(transport.send(request(server.url), deadline=5), Answer)
        assert len(server.received) == 3
        assert len(server.threads) == 4  # one accepts, each of the others served one connection
        assert not any(b"ookie" in received for received in server.received)


def test_netrc_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A netrc entry for the host changes no header."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login x password y\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(answering(OK)) as server:
        Transport().send(request(server.url), deadline=5)
    assert b"authorization: Basic " + CANARY.encode() in server.received[0].replace(b"Authorization", b"authorization")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    """A redirect comes back as it is, and the other host gets nothing."""
    with serving(answering(OK)) as other:
        location = b"HTTP/1.1 %d Go\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, other.url.encode())
        with serving(answering(location)) as server:
            answer = Transport().send(request(server.url), deadline=5)
        assert isinstance(answer, Answer)
        assert (answer.status, answer.header("location"), answer.body) == (status, other.url, b"")
        assert other.received == []


def test_threads_share_a_transport() -> None:
    """Many threads may send at once through one transport."""
    with serving(answering(OK)) as server:
        transport = Transport()
        outcomes: list[object] = []
        threads = [
            threading.Thread(target=lambda: outcomes.append(transport.send(request(server.url), deadline=10)))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [type(outcome) for outcome in outcomes] == [Answer] * 12
        transport.close()


def test_informational_answers_are_skipped() -> None:
    """A 103 before the answer is not the answer."""
    with serving(answering(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)) as server:
        assert Transport().send(request(server.url), deadline=5) == Answer(
            200, (("content-type", "application/json"), ("content-length", "2")), b"{}"
        )


def test_chunked_and_compressed() -> None:
    """A chunked answer is joined, and one that is compressed against our wish is decoded."""
    packed = gzip.compress(b'{"a": 1}')
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (packed[:5], packed[5:])]
    with serving(answering(head, *chunks, b"0\r\n\r\n")) as server:
        answer = Transport().send(request(server.url), deadline=5)
    assert isinstance(answer, Answer)
    assert answer.body == b'{"a": 1}'


# --- never sent ------------------------------------------------------------------------------------------------------


def test_closed_port() -> None:
    """A port where nobody listens: nothing was sent, and the claim was not asked about."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    hook = Hook()
    outcome = Transport().send(request(f"http://127.0.0.1:{port}/token"), deadline=5, before_send=hook)
    assert isinstance(outcome, NeverSent)
    assert "refused" in outcome.reason
    assert hook.seen == []


def test_host_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without an address: nothing was sent."""

    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    outcome = Transport().send(request("https://as.example/token"), deadline=5)
    assert outcome == NeverSent("ConnectError: as.example cannot be resolved: [Errno -2] Name or service not known")


def test_second_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a host's addresses the next one is tried where one refuses, within the one deadline."""
    with serving(answering(OK)) as server:
        real_addresses = socket.getaddrinfo

        def addresses(host: str, port: int, *args: int, **kinds: int) -> list[object]:
            hosts = ["127.0.0.9", "127.0.0.1"] if host == "localhost" else [host]
            return [entry for one in hosts for entry in real_addresses(one, port, *args, **kinds)]

        monkeypatch.setattr(socket, "getaddrinfo", addresses)
        real = httpcore2.SyncBackend.connect_tcp
        tried: list[str] = []

        def connect(self: Any, host: str, *args: Any) -> object:
            tried.append(host)
            return real(self, host, *args)

        monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect)
        url = server.url.replace("127.0.0.1", "localhost")
        assert isinstance(Transport().send(request(url), deadline=5), Answer)
        assert tried == ["127.0.0.9", "127.0.0.1"]


def test_claim_lost() -> None:
    """When the last hook says no, the connection stands but not a byte is written."""
    connected = threading.Event()

    def handler(connection: socket.socket, server: Server) -> None:
        connected.set()
        read_request(connection, server)

    with serving(handler) as server:
        outcome = Transport().send(request(server.url), deadline=10, before_send=lambda: not connected.wait(4))
    assert connected.is_set()
    assert outcome == NeverSent("claim lost")
    assert server.received == []


def test_claim_that_cannot_be_confirmed() -> None:
    """A hook that fails, as when the database is down, counts as no; its words stay out of the outcome."""

    def fails() -> bool:
        raise RuntimeError(CANARY)

    with serving(answering(OK)) as server:
        outcome = Transport().send(request(server.url), deadline=5, before_send=fails)
    assert outcome == NeverSent("the claim could not be confirmed (RuntimeError)")
    assert server.received == []


def test_hook_is_asked_once_when_the_connection_stands() -> None:
    """The hook is called once, after the connection was accepted and before the server reads anything."""
    connected = threading.Event()

    def handler(connection: socket.socket, server: Server) -> None:
        connected.set()
        answering(OK)(connection, server)

    with serving(handler) as server:
        hook = Hook(lambda: (connected.wait(5), list(server.received)))
        assert isinstance(Transport().send(request(server.url), deadline=10, before_send=hook), Answer)
    assert hook.seen == [(True, [])]


def test_late_claim_is_not_used() -> None:
    """When the hook itself took the time that was left, nothing is sent: a late request is an ambiguous one."""
    clock = [0.0]

    def hook() -> bool:
        clock[0] = 5.1  # more than half of the deadline is gone
        return True

    with serving(answering(OK)) as server:
        outcome = Transport(monotonic=lambda: clock[0]).send(request(server.url), deadline=10, before_send=hook)
    assert outcome == NeverSent("deadline")
    assert server.received == []


# --- sent, and no answer ---------------------------------------------------------------------------------------------


def hang(connection: socket.socket, server: Server) -> None:
    """Read the request and say nothing."""
    read_request(connection, server)
    server.stop.wait(10)


def silence(connection: socket.socket, server: Server) -> None:
    """Read nothing and say nothing."""
    server.stop.wait(10)


def drip_head(connection: socket.socket, server: Server) -> None:
    """One byte of a header at a time."""
    read_request(connection, server)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not server.stop.wait(0.02):
        connection.sendall(b"x")


def drip_body(connection: socket.socket, server: Server) -> None:
    """One byte of the body at a time."""
    read_request(connection, server)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not server.stop.wait(0.02):
        connection.sendall(b"x")


def drip_informational(connection: socket.socket, server: Server) -> None:
    """One informational answer after the other."""
    read_request(connection, server)
    while not server.stop.wait(0.02):
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")


@pytest.mark.parametrize("handler", [hang, drip_head, drip_body, drip_informational])
def test_deadline_is_absolute(handler: Handler) -> None:
    """A server that hangs, or drips so that no single read times out, is left at the deadline."""
    with serving(handler) as server, at_most(2):
        assert Transport().send(request(server.url), deadline=0.5) == Unanswered("deadline")
    assert len(server.received) == 1


def reset_at_once(connection: socket.socket, server: Server) -> None:
    """Reset the connection after a part of the request."""
    connection.recv(10)
    reset(connection)


def reset_after_request(connection: socket.socket, server: Server) -> None:
    """Reset the connection instead of answering."""
    read_request(connection, server)
    reset(connection)


def reset_in_body(connection: socket.socket, server: Server) -> None:
    """Reset the connection in the middle of the answer."""
    read_request(connection, server)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    reset(connection)


@pytest.mark.parametrize(
    "handler",
    [
        reset_at_once,
        reset_after_request,
        reset_in_body,
        answering(),
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
        answering(b"garbage canary\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000),
        answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n\r\ncanary"),
        answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip,gzip,gzip,gzip,gzip,gzip\r\nContent-Length: 1\r\n\r\nx"),
    ],
    ids=range(10),
)
def test_broken_answer(handler: Handler) -> None:
    """Whatever breaks once something was sent leaves the outcome unknown; no word of the provider's is repeated."""
    with serving(handler) as server, at_most(5):
        outcome = Transport().send(request(server.url), deadline=5)
    assert isinstance(outcome, Unanswered)
    assert outcome.reason.isidentifier()


def test_closed_before_anything_was_read() -> None:
    """A server that resets without reading may have had the request all the same: the outcome is unknown."""
    gone = threading.Event()

    def handler(connection: socket.socket, server: Server) -> None:
        connected.wait(5)
        reset(connection)
        gone.set()

    connected = threading.Event()
    with serving(handler) as server:

        def hook() -> bool:
            connected.set()
            return gone.wait(5)

        outcome = Transport().send(request(server.url), deadline=12, before_send=hook)
    assert isinstance(outcome, Unanswered)


def body_of(size: int) -> Handler:
    """A handler that answers with that many bytes."""
    return answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, *[b"x" * 65536] * (size // 65536))


def test_largest_answer() -> None:
    """An answer of exactly the limit is read; whatever is larger is not, and was sent for all we know."""
    with serving(body_of(1024 * 1024)) as server:
        answer = Transport().send(request(server.url), deadline=10)
        assert isinstance(answer, Answer)
        assert answer.body is not None
        assert len(answer.body) == 1024 * 1024
    with serving(body_of(1024 * 1024 + 65536)) as server:
        outcome = Transport().send(request(server.url), deadline=10)
    assert outcome == Unanswered("answer too large (more than 1048576 bytes)")


def test_decompression_bomb() -> None:
    """200 MB that were packed into 200 KB are not unpacked beyond the limit."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = b"".join([*[packer.compress(bytes(1_000_000)) for _ in range(200)], packer.flush()])
    assert len(bomb) < 1_000_000
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    with serving(answering(head, bomb)) as server, at_most(5):
        tracemalloc.start()
        try:
            outcome = Transport().send(request(server.url), deadline=10)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert outcome == Unanswered("answer too large (more than 1048576 bytes)")
    assert peak < 16_000_000


# --- in process ------------------------------------------------------------------------------------------------------


def test_in_process() -> None:
    """An inner transport takes the network's place, with the same headers and hook."""
    seen: list[httpx2.Request] = []

    def handler(one: httpx2.Request) -> httpx2.Response:
        seen.append(one)
        return httpx2.Response(200, headers={"X-A": "b"}, content=b"{}")

    transport = Transport(httpx2.MockTransport(handler))
    answer = transport.send(request("https://as.example/token"), deadline=5)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.header("x-a"), answer.body) == (200, "b", b"{}")
    assert seen[0].content == FORM.encode()
    assert seen[0].headers["accept-encoding"] == "identity"
    assert transport.send(request("https://as.example/token"), deadline=5, before_send=lambda: False) == NeverSent(
        "claim lost"
    )
    assert len(seen) == 1
    transport.close()


def test_in_process_failures() -> None:
    """An inner transport's connect errors mean never sent; its other errors come after sending."""

    def outcome(error: Exception) -> object:
        def handler(_: httpx2.Request) -> httpx2.Response:
            raise error

        return Transport(httpx2.MockTransport(handler)).send(request("https://as.example/token"), deadline=5)

    assert outcome(httpx2.ConnectError("no")) == NeverSent("ConnectError: no")
    assert outcome(httpx2.ConnectTimeout("no")) == NeverSent("deadline")
    assert outcome(httpx2.ReadTimeout(CANARY)) == Unanswered("deadline")
    assert outcome(httpx2.ReadError(CANARY)) == Unanswered("ReadError")
    assert outcome(RuntimeError(CANARY)) == Unanswered("RuntimeError")


def test_deadline_by_the_given_clock() -> None:
    """The deadline is measured with the clock that was given: an answer that came in too late is no answer."""
    clock = [0.0]

    def handler(_: httpx2.Request) -> httpx2.Response:
        clock[0] = 10.5
        return httpx2.Response(200, content=b"{}")

    transport = Transport(httpx2.MockTransport(handler), monotonic=lambda: clock[0])
    assert transport.send(request("https://as.example/token"), deadline=10) == Unanswered("deadline")
    assert transport.send(request("https://as.example/token"), deadline=0) == NeverSent("deadline")


# --- TLS and proxies -------------------------------------------------------------------------------------------------


class Certificate:
    """A self-signed certificate of a host."""

    def __init__(self, folder: Path, host: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        now = dt.datetime.now(dt.UTC)
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.path = folder / f"{host}.pem"
        self.key_path = folder / f"{host}.key"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def serve(self, handler: Handler) -> Handler:
        """The handler behind TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key_path)

        def secured(connection: socket.socket, server: Server) -> None:
            with context.wrap_socket(connection, server_side=True) as inner:
                handler(inner, server)

        return secured


def test_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Https works with a certificate that the trust store knows; the context is made once, at the first request."""
    certificate = Certificate(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    made: list[ssl.SSLContext] = []
    real = httpcore2.default_ssl_context

    def make() -> ssl.SSLContext:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(httpcore2, "default_ssl_context", make)
    transport = Transport()
    assert made == []
    with serving(certificate.serve(answering(OK))) as server:
        for _ in range(2):
            assert isinstance(transport.send(request(server.url.replace("http:", "https:")), deadline=5), Answer)
    assert len(made) == 1
    assert made[0].verify_mode is ssl.CERT_REQUIRED
    assert made[0].check_hostname


@pytest.mark.parametrize(("host", "trusted"), [("127.0.0.1", False), ("other.example", True)])
def test_certificate_that_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, trusted: bool
) -> None:
    """A certificate nobody vouches for, or of another host, ends it before anything is sent."""
    certificate = Certificate(tmp_path, host)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    hook = Hook()
    with serving(certificate.serve(answering(OK))) as server:
        outcome = Transport().send(request(server.url.replace("http:", "https:")), deadline=5, before_send=hook)
    assert isinstance(outcome, NeverSent)
    assert "certificate verify failed" in outcome.reason
    assert hook.seen == []
    assert server.received == []


def test_handshake_that_hangs() -> None:
    """A server that never answers the handshake costs half of the deadline at most, and nothing is sent."""
    with serving(silence) as server, at_most(2):
        outcome = Transport().send(request(server.url.replace("http:", "https:")), deadline=0.6)
    assert outcome == NeverSent("deadline")


def test_no_time_left_for_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that took all the time is closed before the handshake, and nothing was sent."""
    clock = [0.0]
    real = httpcore2.SyncBackend.connect_tcp

    def slow(self: Any, *args: Any) -> object:
        stream = real(self, *args)
        clock[0] = 6.0
        return stream

    heard: list[bytes] = []
    closed = threading.Event()

    def handler(connection: socket.socket, server: Server) -> None:
        heard.append(connection.recv(100))
        closed.set()

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", slow)
    with serving(handler) as server:
        transport = Transport(monotonic=lambda: clock[0])
        outcome = transport.send(request(server.url.replace("http:", "https:")), deadline=10)
        assert closed.wait(5)
    assert heard == [b""]
    assert outcome == NeverSent("deadline")


def test_trust_store_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A trust store that is not there is the operator's turn, and named."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigurationError, match="trust store") as raised:
        Transport().send(request("https://as.example/token"), deadline=5)
    assert "SSL_CERT_FILE" in raised.value.fix
    assert_not_shown(raised.value)


def proxying(handler: Handler, status: bytes = b"200 OK") -> Handler:
    """A proxy that answers CONNECT itself and then is the host."""

    def proxy(connection: socket.socket, server: Server) -> None:
        read_request(connection, server)
        connection.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n")
        if status.startswith(b"200"):
            handler(connection, server)

    return proxy


def test_proxy_for_https(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment's proxy is used for https, by CONNECT, and the hook is asked for the request, not for CONNECT."""
    certificate = Certificate(tmp_path, "as.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    with serving(proxying(certificate.serve(answering(OK)))) as server:
        hook = Hook(lambda: len(server.received))
        monkeypatch.setenv("HTTPS_PROXY", f"user:pass%21@127.0.0.1:{server.port}")
        answer = Transport().send(request("https://as.example/token"), deadline=5, before_send=hook)
    assert isinstance(answer, Answer)
    assert hook.seen == [1]  # the CONNECT was there already
    connect, sent = server.received
    assert connect.startswith(b"CONNECT as.example:443 ")
    assert b"proxy-authorization: basic dxnlcjpwyxnzIQ==".lower() in connect.lower()
    assert CANARY.encode() not in connect
    assert sent.endswith(FORM.encode())
    assert b"roxy-" not in sent


def test_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses to connect: nothing was sent, and its words are escaped."""
    with serving(proxying(answering(OK), b"407 \xff" + b"x" * 400)) as server:
        monkeypatch.setenv("all_proxy", f"http://127.0.0.1:{server.port}")
        outcome = Transport().send(request("https://as.example/token"), deadline=5)
    assert isinstance(outcome, NeverSent)
    assert outcome.reason.startswith("ProxyError: 407")
    assert outcome.reason.isprintable()
    assert len(outcome.reason) < 250
    assert not any(CANARY.encode() in received for received in server.received)


def test_proxy_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not answer the CONNECT costs half of the deadline, and nothing was sent."""
    with serving(hang) as server, at_most(2):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
        assert Transport().send(request("https://as.example/token"), deadline=0.6) == NeverSent("deadline")


def test_proxy_is_not_for_loopback_nor_exempted_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback and the hosts of NO_PROXY are reached directly."""
    with serving(answering(OK)) as proxy, serving(answering(OK)) as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
        assert isinstance(Transport().send(request(server.url), deadline=5), Answer)
        assert isinstance(Transport().send(request(server.url.replace("http:", "https:")), deadline=0.4), NeverSent)
        monkeypatch.setenv("no_proxy", "nowhere.invalid")
        outcome = Transport().send(request(f"https://nowhere.invalid:{proxy.port}/token"), deadline=5)
        assert isinstance(outcome, NeverSent)
        assert "cannot be resolved" in outcome.reason
        assert proxy.received == []


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://:x@:y", "ftp://canary:canary@h", "http://"])
def test_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """A proxy of another kind is the operator's turn; its URL, which may hold a password, is not repeated."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="proxy") as raised:
        Transport().send(request("https://as.example/token"), deadline=5)
    assert "HTTPS_PROXY" in raised.value.fix
    assert_not_shown(raised.value)


# --- nothing is shown ------------------------------------------------------------------------------------------------


def assert_not_shown(error: BaseException) -> None:
    """No frame of ours in the traceback, and no chained exception, shows a canary; no library's frame is left."""
    seen: list[BaseException] = [error]
    while seen:
        one = seen.pop()
        seen += [other for other in (one.__cause__, one.__context__) if other is not None]
        frames = traceback.TracebackException.from_exception(one, capture_locals=True).stack
        assert not any("site-packages/http" in frame.filename for frame in frames)
        ours = [str(frame.locals) for frame in frames if in_package(frame.filename)]
        assert "canary" not in "".join([*ours, repr(one), str(one), str(vars(one))])


@pytest.mark.parametrize("url", ["http://as.example/token", "ftp://127.0.0.1/", "https://user@as.example/", "", "x"])
def test_url_that_is_refused(url: str) -> None:
    """Http beyond loopback and other bad URLs are configuration errors, before any connection."""
    with pytest.raises(ConfigurationError, match="operator") as raised:
        Transport().send(request(url), deadline=5, before_send=lambda: pytest.fail("asked"))
    assert_not_shown(raised.value)


def test_interruption_goes_on_without_the_form() -> None:
    """Ctrl-C passes through, and its traceback does not lead into frames that hold the form."""

    def interrupt() -> bool:
        raise KeyboardInterrupt

    with serving(answering(OK)) as server, pytest.raises(KeyboardInterrupt) as raised:
        Transport().send(request(server.url), deadline=5, before_send=interrupt)
    assert server.received == []
    assert_not_shown(raised.value)


def test_outcomes_hold_nothing() -> None:
    """A failed request leaves no exception, request or response behind, in the value or in memory."""
    with serving(reset_after_request) as server:
        outcome = Transport().send(request(server.url), deadline=5)
    gc.collect()
    assert [type(part) for part in gc.get_referents(outcome) if not isinstance(part, type)] == [str]
    kept = [one for one in gc.get_objects() if isinstance(one, httpx2.Request | httpcore2.Request)]
    assert not [one for one in kept if one.url.port == server.port]


def test_logs_hold_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """No library logs the form or the credentials, at DEBUG, whether the request succeeds or fails."""
    caplog.set_level(logging.DEBUG)
    for handler in (answering(OK), reset_after_request, hang):
        with serving(handler) as server:
            Transport().send(request(server.url), deadline=0.5)
    assert any(record.name.startswith("httpcore2") for record in caplog.records)
    assert "canary" not in caplog.text
