"""How the provider is reached: as a transport of httpx2 and httpx, and over HTTP on loopback."""

from __future__ import annotations

import asyncio
import http.client
import resource
import socket
import threading
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import httpx2
import pytest

from tokenkeeper.testing import Delivery, FakeProvider, Request, Response

AUTHORIZED = {"Authorization": "Bearer access-1"}
REFRESH = {
    "grant_type": "refresh_token",
    "refresh_token": "refresh-1",
    "client_id": "client-1",
    "client_secret": "secret-1",
}


class Way:
    """A way to reach a provider: a client whose base URL is the provider's."""

    def __init__(self, provider: FakeProvider, client: Any, errors: Any) -> None:
        self.provider = provider
        self.client = client
        self.errors = errors


@pytest.fixture(params=["httpx2", "httpx", "http"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """In process with either library, and over HTTP."""
    provider = FakeProvider(rotation="strict")
    provider.issue()
    library = httpx if request.param == "httpx" else httpx2
    if request.param == "http":
        with provider.serve() as base_url, httpx2.Client(base_url=base_url, timeout=0.5, trust_env=False) as client:
            yield Way(provider, client, httpx2)
    else:
        with library.Client(transport=provider.transport(library), base_url=provider.base_url, timeout=0.5) as client:
            yield Way(provider, client, library)


def test_a_call_and_a_refresh(way: Way) -> None:
    """The same answers whichever way is taken."""
    assert way.client.get("/userinfo", headers=AUTHORIZED).json()["sub"] == "ann"
    answer = way.client.post("/token", data=REFRESH)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["access_token"] == "access-2"
    assert way.client.get("/userinfo").status_code == 401
    assert way.provider.api_calls == 2


def test_the_body_of_a_streamed_request_arrives(way: Way) -> None:
    """Also in chunks, whose length nobody says before."""
    form = urlencode(REFRESH).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = way.client.post("/token", content=iter([form[:10], form[10:]]), headers=headers)
    assert answer.status_code == 200


def test_a_dropped_request_was_not_carried_out(way: Way) -> None:
    """The connection is closed without an answer, and the refresh token is as good as before."""
    way.provider.script("drop", "token")
    with pytest.raises(way.errors.RemoteProtocolError):
        way.client.post("/token", data=REFRESH)
    assert way.client.post("/token", data=REFRESH).status_code == 200
    assert way.provider.reuses == 0


def test_a_dropped_answer_was_carried_out(way: Way) -> None:
    """The refresh token is spent, and the log knows that nobody heard."""
    way.provider.script("drop", "token", processed=True)
    with pytest.raises(way.errors.RemoteProtocolError):
        way.client.post("/token", data=REFRESH)
    assert (way.provider.log[0].verdict, way.provider.log[0].delivered) == ("ok", False)
    assert way.client.post("/token", data=REFRESH).status_code == 400


def test_half_an_answer(way: Way) -> None:
    """Cut in the middle of the body."""
    way.provider.script("cut", "token")
    with pytest.raises(way.errors.RemoteProtocolError):
        way.client.post("/token", data=REFRESH)
    assert (way.provider.log[0].verdict, way.provider.log[0].delivered) == ("ok", False)


@pytest.mark.parametrize("processed", [False, True])
def test_an_answer_that_never_comes(way: Way, processed: bool) -> None:
    """The client's patience ends; the refresh token is spent only if the request was carried out."""
    way.provider.script("hang", "token", processed=processed)
    with pytest.raises(way.errors.ReadTimeout):
        way.client.post("/token", data=REFRESH)
    assert way.client.post("/token", data=REFRESH).status_code == (400 if processed else 200)


def test_an_answer_that_comes_too_late(way: Way) -> None:
    """A delay beyond the client's patience is a read timeout, a small one is waited for."""
    way.provider.script("ok", delay=0.01)
    assert way.client.get("/userinfo", headers=AUTHORIZED).status_code == 200
    way.provider.script("ok", delay=30)
    with pytest.raises(way.errors.ReadTimeout):
        way.client.get("/userinfo", headers=AUTHORIZED)


def test_a_lost_answer_shows_no_token_in_its_traceback() -> None:
    """Not in the locals of the provider's own frames either, though the answer was made."""
    provider = FakeProvider(prefix="CANARY-")
    provider.issue()
    for name in ("drop", "cut", "hang", "unreachable"):
        provider.script(name, "token", processed=True)
        fields = REFRESH | {"refresh_token": "CANARY-refresh-1"}
        with httpx2.Client(transport=provider.transport(), base_url=provider.base_url) as client:
            with pytest.raises(httpx2.TransportError) as caught:
                client.post("/token", data=fields)
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        own = [frame for frame in shown.stack if "/tokenkeeper/testing/" in frame.filename]
        assert own
        assert "CANARY" not in str([frame.locals for frame in own])
    assert "CANARY" not in repr(provider)
    assert provider.log[0].accepted


def test_a_provider_that_cannot_be_reached() -> None:
    """In process it is a connect error: nothing was sent, and the request is logged as not carried out."""
    provider = FakeProvider(rotation="strict")
    provider.issue()
    provider.script("unreachable", "token")
    with httpx2.Client(transport=provider.transport(), base_url=provider.base_url) as client:
        with pytest.raises(httpx2.ConnectError):
            client.post("/token", data=REFRESH)
        assert client.post("/token", data=REFRESH).status_code == 200


def test_a_dripping_answer_in_process_is_a_timeout() -> None:
    """No test waits for it."""
    provider = FakeProvider()
    provider.issue()
    provider.script("drip")
    with httpx2.Client(transport=provider.transport(), base_url=provider.base_url) as client:
        with pytest.raises(httpx2.ReadTimeout):
            client.get("/userinfo", headers=AUTHORIZED)


def test_a_dripping_answer_over_http_outlives_every_read_timeout() -> None:
    """Each byte comes in time, the whole does not: only an absolute deadline helps."""
    provider = FakeProvider()
    provider.issue()
    provider.script("drip", delay=0.01)
    with provider.serve() as base_url, httpx2.Client(timeout=0.2, trust_env=False) as client:
        with client.stream("GET", base_url + "/userinfo", headers=AUTHORIZED) as response:
            pieces = list(response.iter_raw())
    assert len(pieces) > 5
    assert b"".join(pieces).startswith(b'{"sub"')


@pytest.mark.parametrize("library", [httpx2, httpx])
def test_the_async_transport(library: Any) -> None:
    """The same provider for an async client; a held request does not hold the loop, a cancelled one is carried out."""
    provider = FakeProvider(rotation="strict")
    provider.issue()

    async def main() -> None:
        async with library.AsyncClient(
            transport=provider.async_transport(library), base_url=provider.base_url
        ) as client:
            assert (await client.get("/userinfo", headers=AUTHORIZED)).json()["sub"] == "ann"
            done = provider.hold("token", at="answer")
            with provider.hold("token") as gate:
                held = asyncio.create_task(client.post("/token", data=REFRESH))
                await asyncio.to_thread(gate.wait_until_held)
                assert (await client.get("/userinfo", headers=AUTHORIZED)).status_code == 200
                held.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await held
                assert "refresh" not in [record.kind for record in provider.log]
            await asyncio.to_thread(done.wait_until_held)
            done.release()
            provider.script("drop")
            with pytest.raises(library.RemoteProtocolError):
                await client.get("/userinfo", headers=AUTHORIZED)

    asyncio.run(main())
    assert [record.verdict for record in provider.log if record.kind == "refresh"] == ["ok"]


def test_a_gate_holds_and_releases() -> None:
    """At arrival nothing has happened yet, at the answer everything has; a test needs no sleep to know."""
    provider = FakeProvider(rotation="strict")
    provider.issue()
    answers: list[Response] = []
    request = Request.form(provider.base_url + "/token", REFRESH)

    def ask() -> None:
        answers.append(provider.handle(request))

    for at, verdicts in (("arrival", []), ("answer", ["ok"])):
        provider.reset_counters()
        with provider.hold("token", at=at) as gate:
            thread = threading.Thread(target=ask)
            thread.start()
            gate.wait_until_held()
            assert [record.verdict for record in provider.log] == verdicts
            assert (gate.held, gate.released, answers) == (1, False, [])
        thread.join()
        assert gate.released
        answers.clear()
        request = Request.form(provider.base_url + "/token", REFRESH | {"refresh_token": "refresh-2"})


def test_a_gate_may_hold_only_the_first() -> None:
    """The rest pass, and whoever waits for more than come is told."""
    provider = FakeProvider()
    provider.issue()
    request = Request("GET", provider.base_url + "/userinfo", (("authorization", "Bearer access-1"),))
    gate = provider.hold("api", times=1)
    thread = threading.Thread(target=provider.handle, args=(request,))
    thread.start()
    gate.wait_until_held()
    assert provider.handle(request).status == 200
    with pytest.raises(TimeoutError, match="1 of 2 requests"):
        gate.wait_until_held(2, timeout=0.01)
    provider.release_all()
    thread.join()
    assert provider.handle(request).status == 200


@pytest.mark.parametrize("at", ["arrival", "answer"])
def test_a_forgotten_gate_fails_instead_of_hanging(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """After its limit the held request is dropped."""
    monkeypatch.setattr("tokenkeeper.testing.script.HOLD_SECONDS", 0.01)
    provider = FakeProvider()
    provider.issue()
    provider.hold("api", at=at)
    request = Request("GET", provider.base_url + "/userinfo", (("authorization", "Bearer access-1"),))
    assert provider.handle(request).delivery is Delivery.DROP
    assert [record.delivered for record in provider.log] == ([] if at == "arrival" else [False])


def test_a_member_follows_a_link_over_http() -> None:
    """From the authorization URL through both pages to the callback, which need not exist."""
    provider = FakeProvider("linkedin")
    with provider.serve() as base_url:
        values = {"response_type": "code", "client_id": "client-1", "redirect_uri": "http://127.0.0.1:1/callback"}
        callback = provider.follow(f"{base_url}/oauth/v2/authorization?{urlencode(values)}", "bob")
        assert callback.startswith("http://127.0.0.1:1/callback?code=code-1&iss=http%3A%2F%2F127.0.0.1%3A")
        assert provider.as_provider().token_endpoint == base_url + "/oauth/v2/accessToken"
    assert provider.base_url == "https://provider.test"


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of 500 connections are in this process: 1000 open files, which is near some systems' limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_500_connections_at_once() -> None:
    """All are open and waiting at the same moment, and all are answered."""
    provider = FakeProvider()
    provider.issue()
    with provider.serve() as base_url:
        host, _, port = base_url.partition("//")[2].partition(":")
        connections = [socket.create_connection((host, int(port)), timeout=30) for _ in range(500)]
        with provider.hold("api") as gate:
            for connection in connections:
                connection.sendall(b"GET /api HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer access-1\r\n\r\n")
            gate.wait_until_held(500, 30)
        for connection in connections:
            with connection:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert provider.api_calls == 500
    assert all(record.accepted and record.delivered for record in provider.log)


def test_500_tasks() -> None:
    """As many tasks of an async client, over the hundred connections that it keeps."""
    provider = FakeProvider()
    provider.issue()

    async def main(base_url: str) -> set[int]:
        limits = httpx2.Limits(max_connections=100)
        async with httpx2.AsyncClient(limits=limits, timeout=30, trust_env=False) as client:
            answers = await asyncio.gather(*(client.get(base_url + "/api", headers=AUTHORIZED) for _ in range(500)))
            return {answer.status_code for answer in answers}

    with provider.serve() as base_url:
        assert asyncio.run(main(base_url)) == {200}
    assert provider.api_calls == 500


def test_a_connection_is_kept_alive() -> None:
    """Many requests go over one, with any method."""
    provider = FakeProvider()
    provider.issue()
    with provider.serve() as base_url:
        connection = http.client.HTTPConnection(base_url.partition("//")[2], timeout=10)
        connection.connect()
        port = connection.sock.getsockname()[1]
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"):
            connection.request(method, "/api/things", headers=AUTHORIZED)
            answer = connection.getresponse()
            assert (answer.status, bool(answer.read())) == (200, method != "HEAD")
        assert connection.sock.getsockname()[1] == port
        connection.close()


def test_leaving_the_server_ends_what_still_waits() -> None:
    """Idle, hanging and held connections are closed; nothing is left open, no thread runs on."""
    provider = FakeProvider()
    provider.issue()
    provider.script("hang")
    before = set(threading.enumerate())
    with provider.serve() as base_url:
        host, _, port = base_url.partition("//")[2].partition(":")
        gate = provider.hold("token")
        connections = [socket.create_connection((host, int(port)), timeout=10) for _ in range(3)]
        connections[1].sendall(b"GET /api HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer access-1\r\n\r\n")
        connections[2].sendall(b"POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        gate.wait_until_held()
    for connection in connections:
        with connection:
            while connection.recv(4096):
                pass
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: many",
        b"Content-Length: 99999999999",
        b"Transfer-Encoding: chunked\r\n\r\nzz",
        b"Transfer-Encoding: chunked\r\n\r\nfffffffff",
    ],
)
def test_a_malformed_request_is_refused(head: bytes) -> None:
    """With 400, and the connection is closed."""
    with FakeProvider().serve() as base_url:
        host, _, port = base_url.partition("//")[2].partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"POST /token HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
            received = bytearray()
            while piece := connection.recv(4096):
                received += piece
    assert received.startswith(b"HTTP/1.1 400 ")


def test_a_client_that_goes_away_is_noted() -> None:
    """A refresh whose answer nobody waits for is carried out; that it got lost is seen when it is written."""
    provider = FakeProvider(rotation="strict")
    provider.issue()
    form = urlencode(REFRESH).encode()
    head = f"POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: {len(form)}\r\n"
    head += "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    with provider.serve() as base_url:
        host, _, port = base_url.partition("//")[2].partition(":")
        with provider.hold("token") as gate:
            connection = socket.create_connection((host, int(port)), timeout=10)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            connection.sendall(head.encode() + form)
            gate.wait_until_held()
            connection.close()
    assert [(record.verdict, record.delivered) for record in provider.log] == [("ok", False)]
