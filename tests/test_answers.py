"""Answers: what real HTTP libraries return and raise, over real sockets, is read and stays readable."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import MagicMock, Mock

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from http_loopback import Loopback, Reply, serving

from tokenkeeper import answers
from tokenkeeper.answers import BODY_LIMIT, Exchange, recognition
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Answer

BODY = b'{"code": "EXPIRED_ACCESS_TOKEN", "message": "The token used in the request has expired"}'
TWO = (("WWW-Authenticate", 'Bearer realm="a"'), ("WWW-Authenticate", 'DPoP algs="ES256"'), ("X-Id", "7"))
LARGE = b"[" + b'"0123456789abcde",' * 100_000 + b"0]"


@pytest.fixture(scope="module")
def loopback() -> Iterator[Loopback]:
    """A server whose answers cover the framings."""
    with serving() as server:
        server.routes |= {
            "/refused": Reply(401, BODY, TWO),
            "/chunked": Reply(401, BODY, TWO, "chunked"),
            "/close": Reply(401, BODY, TWO, "close"),
            "/cut": Reply(401, BODY, TWO, "cut"),
            "/empty": Reply(401, b"", TWO),
            "/gzip": Reply(401, gzip.compress(BODY), (*TWO, ("Content-Encoding", "gzip"))),
            "/large": Reply(403, LARGE),
            "/large-chunked": Reply(403, LARGE, framing="chunked"),
            "/fine": Reply(200, b'{"ok": false, "error": "token_expired"}'),
            "/moved": Reply(302, b"", (("Location", "/refused"),)),
        }
        yield server


def always(status: int) -> bool:
    """Want every body."""
    return True


def never(status: int) -> bool:
    """Want no body."""
    return False


def the(exchange: Exchange | None) -> Exchange:
    """The exchange, which must be there."""
    assert exchange is not None
    return exchange


# --- one way to call each library, plain and streamed, and to read what came back as a user would ---------------------

Opened = contextlib.AbstractContextManager[tuple[Any, Callable[[], bytes]]]


@contextlib.contextmanager
def by_requests(url: str, method: str = "GET", **more: Any) -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """A requests response."""
    with requests.Session() as session, session.request(method, url, **more) as response:
        yield response, lambda: response.content


def by_requests_streamed(url: str, method: str = "GET") -> Opened:
    """A requests response whose body is still on the wire."""
    return by_requests(url, method, stream=True)


@contextlib.contextmanager
def by_requests_raw(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """A streamed requests response that the user reads by ``.raw``."""
    with requests.Session() as session, session.request(method, url, stream=True) as response:
        yield response, lambda: response.raw.read(decode_content=True)


@contextlib.contextmanager
def by_requests_chunks(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """A streamed requests response that the user reads in pieces."""
    with requests.Session() as session, session.request(method, url, stream=True) as response:
        yield response, lambda: b"".join(response.iter_content(1000))


@contextlib.contextmanager
def by_requests_error(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """What requests raises."""
    with requests.Session() as session, session.request(method, url, stream=True) as response:
        with pytest.raises(requests.HTTPError) as caught:
            response.raise_for_status()
        yield caught.value, lambda: response.content


def httpx_openers(library: Any) -> list[Any]:
    """The ways of httpx and httpx2."""

    @contextlib.contextmanager
    def plain(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
        with library.Client() as client:
            response = client.request(method, url)
            yield response, lambda: response.content

    @contextlib.contextmanager
    def streamed(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
        with library.Client() as client, client.stream(method, url) as response:
            yield response, response.read

    @contextlib.contextmanager
    def pieces(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
        with library.Client() as client, client.stream(method, url) as response:
            yield response, lambda: b"".join(response.iter_bytes(1000))

    @contextlib.contextmanager
    def raised(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
        with library.Client() as client, client.stream(method, url) as response:
            with pytest.raises(library.HTTPStatusError) as caught:
                response.raise_for_status()
            yield caught.value, response.read

    openers = [plain, streamed, pieces, raised]
    for opener in openers:
        opener.__name__ = f"by_{library.__name__}_{opener.__name__}"
    return openers


@contextlib.contextmanager
def by_urllib3(url: str, method: str = "GET", *, preload: bool = True) -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """A urllib3 response."""
    with urllib3.PoolManager() as pool:
        response = pool.request(method, url, preload_content=preload, redirect=False)
        yield response, lambda: response.data
        response.close()


def by_urllib3_streamed(url: str, method: str = "GET") -> Opened:
    """A urllib3 response whose body is still on the wire."""
    return by_urllib3(url, method, preload=False)


@contextlib.contextmanager
def by_urllib3_read(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """A urllib3 response that the user reads bit by bit."""
    with by_urllib3(url, method, preload=False) as (response, _):
        yield response, lambda: b"".join(iter(lambda: response.read(999), b""))


@contextlib.contextmanager
def by_urllib3_stream(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """A urllib3 response that the user streams."""
    with by_urllib3(url, method, preload=False) as (response, _):
        yield response, lambda: b"".join(response.stream(999))


@contextlib.contextmanager
def by_urllib(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """What urllib.request raises."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, method=method))
    with caught.value as error:
        yield error, error.read


@contextlib.contextmanager
def by_urllib_lines(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """What urllib.request raises, its body read by lines."""
    with by_urllib(url, method) as (error, _):
        yield error, lambda: b"".join(error)


@contextlib.contextmanager
def by_urllib_returned(url: str, method: str = "GET") -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """A refusal that a handler of urllib.request returns instead of raising it."""

    class Lenient(urllib.request.HTTPErrorProcessor):
        def http_response(self, request: Any, response: Any) -> Any:
            return response

    with urllib.request.build_opener(Lenient).open(urllib.request.Request(url, method=method)) as response:
        yield response, response.read


DECODING = [
    by_requests,
    by_requests_streamed,
    by_requests_raw,
    by_requests_chunks,
    by_requests_error,
    *httpx_openers(httpx),
    *httpx_openers(httpx2),
    by_urllib3,
    by_urllib3_streamed,
    by_urllib3_read,
    by_urllib3_stream,
]
WIRE = [by_urllib, by_urllib_lines, by_urllib_returned]
SYNC = [*DECODING, *WIRE]


@pytest.mark.parametrize("opened", SYNC, ids=lambda opened: opened.__name__)
@pytest.mark.parametrize("path", ["/refused", "/chunked", "/close"])
def test_a_refusal_is_read_and_stays_readable(loopback: Loopback, opened: Any, path: str) -> None:
    """Status, body and headers with their repetitions are read twice over, and the user still reads all of the body."""
    with opened(loopback.url + path) as (value, body):
        assert answers.status_of(value) == 401
        for _ in range(2):  # nested guards read one object twice
            exchange = the(answers.read(value, always))
            assert exchange.answer.body == BODY
        assert [v for n, v in exchange.answer.headers if n == "www-authenticate"] == [TWO[0][1], TWO[1][1]]
        assert exchange.answer.header("x-id") == "7"
        assert body() == BODY


@pytest.mark.parametrize("opened", SYNC, ids=lambda opened: opened.__name__)
def test_no_body_is_read_that_nobody_asked_for(loopback: Loopback, opened: Any) -> None:
    """Where no rule wants the body it is None, and the user's object is untouched."""
    with opened(loopback.url + "/refused") as (value, body):
        assert the(answers.read(value, never)).answer.body is None
        assert body() == BODY


@pytest.mark.parametrize("opened", SYNC, ids=lambda opened: opened.__name__)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_empty_body_is_empty(loopback: Loopback, opened: Any, method: str) -> None:
    """A body of no bytes, and the answer to HEAD, are empty, which is not the same as unreadable."""
    path = "/empty" if method == "GET" else "/refused"
    with opened(loopback.url + path, method) as (value, body):
        assert the(answers.read(value, always)).answer.body == b""
        assert body() == b""


@pytest.mark.parametrize("opened", DECODING, ids=lambda opened: opened.__name__)
def test_a_compressed_body_is_decoded(loopback: Loopback, opened: Any) -> None:
    """The diagnosis gets the text, and the user what the library would have given."""
    with opened(loopback.url + "/gzip") as (value, body):
        assert the(answers.read(value, always)).answer.body == BODY
        assert body() == BODY


@pytest.mark.parametrize("opened", WIRE, ids=lambda opened: opened.__name__)
def test_a_compressed_body_that_the_library_leaves_alone_is_decoded_for_the_diagnosis(
    loopback: Loopback, opened: Any
) -> None:
    """urllib.request decodes nothing: its user gets the compressed bytes as ever, the diagnosis the text."""
    with opened(loopback.url + "/gzip") as (value, body):
        assert the(answers.read(value, always)).answer.body == BODY
        assert gzip.decompress(body()) == BODY


@pytest.mark.parametrize("opened", SYNC, ids=lambda opened: opened.__name__)
@pytest.mark.parametrize("path", ["/large", "/large-chunked"])
def test_a_large_body_is_cut_for_the_diagnosis_only(loopback: Loopback, opened: Any, path: str) -> None:
    """The diagnosis sees at most 1 MiB; the user's object has every byte."""
    with opened(loopback.url + path) as (value, body):
        assert the(answers.read(value, always)).answer.body == LARGE[:BODY_LIMIT]
        assert body() == LARGE


@pytest.mark.parametrize("opened", SYNC, ids=lambda opened: opened.__name__)
def test_a_body_that_was_read_by_the_user_is_not_called_empty(loopback: Loopback, opened: Any) -> None:
    """Once the user has used a stream up, the body is what the library kept, or None."""
    with opened(loopback.url + "/refused") as (value, body):
        assert body() == BODY
        assert the(answers.read(value, always)).answer.body in (BODY, None)


def some_bytes_of(value: Any) -> bytes:
    """Read a piece of a stream, as a user would."""
    if isinstance(value, requests.Response):
        return bytes(next(value.iter_content(10)))
    if hasattr(value, "iter_bytes"):
        return bytes(next(value.iter_bytes(10)))
    return bytes(value.read(10))


@pytest.mark.parametrize(
    "opened",
    [
        by_requests_streamed,
        *(o for lib in (httpx, httpx2) for o in httpx_openers(lib)[1:2]),
        by_urllib3_streamed,
        *WIRE,
    ],
    ids=lambda opened: opened.__name__,
)
@pytest.mark.parametrize("path", ["/refused", "/chunked"])
def test_a_body_begun_by_the_user_is_left_alone(loopback: Loopback, opened: Any, path: str) -> None:
    """A part of a body is no body: it counts as unreadable, and what is left stays the user's."""
    with opened(loopback.url + path) as (value, _):
        assert BODY.startswith(some_bytes_of(value))
        assert the(answers.read(value, always)).answer.body is None
    with opened(loopback.url + path) as (value, _):
        assert the(answers.read(value, always)).answer.body == BODY
        assert BODY.startswith(some_bytes_of(value))
        assert the(answers.read(value, always)).answer.body is None


@pytest.mark.parametrize(
    "opened",
    [
        by_requests_streamed,
        *(o for lib in (httpx, httpx2) for o in httpx_openers(lib)[1:2]),
        by_urllib3_streamed,
        *WIRE,
    ],
    ids=lambda opened: opened.__name__,
)
def test_a_closed_stream_has_no_body(loopback: Loopback, opened: Any) -> None:
    """After the user has closed a stream, its body is None, never empty; status and headers are still there."""
    with opened(loopback.url + "/refused") as (value, _):
        value.close()
        answer = the(answers.read(value, always)).answer
        assert answer.status == 401
        assert answer.body is None
        assert answer.header("x-id") == "7"


@pytest.mark.parametrize(
    "opened",
    [by_requests_streamed, *(o for lib in (httpx, httpx2) for o in httpx_openers(lib)[1:2]), by_urllib3_streamed],
    ids=lambda opened: opened.__name__,
)
def test_a_body_that_breaks_is_none_and_breaks_for_the_user_too(loopback: Loopback, opened: Any) -> None:
    """A connection lost inside the body is no empty body, and the user's own read does not pass it off as whole."""
    with opened(loopback.url + "/cut") as (value, body):
        assert the(answers.read(value, always)).answer.body is None
        with pytest.raises(Exception, match=r"(?i)incomplete|peer closed|already been streamed|broken"):
            body()


@pytest.mark.parametrize("opened", [by_urllib, by_urllib_returned], ids=lambda opened: opened.__name__)
def test_a_cut_body_of_urllib_is_none_and_raises_for_the_user(loopback: Loopback, opened: Any) -> None:
    """urllib.request's IncompleteRead reaches the user although the diagnosis has read before."""
    with opened(loopback.url + "/cut") as (value, body):
        assert the(answers.read(value, always)).answer.body is None
        with pytest.raises(Exception, match="IncompleteRead"):
            body()


def test_the_request_is_told_as_far_as_it_is_known(loopback: Loopback) -> None:
    """Method, URL and headers come from the object; a redirect's last request counts."""
    headers = {"Authorization": "Bearer secret-canary", "X-Trace": "9"}
    with requests.get(loopback.url + "/moved", headers=headers, timeout=9) as response:
        exchange = the(answers.read(response, never))
        assert (exchange.method, exchange.url) == ("GET", loopback.url + "/refused")
        assert ("x-trace", "9") in exchange.request_headers
        assert "canary" not in repr(exchange)
    for library in (httpx, httpx2):
        with library.Client(headers=headers) as client:
            exchange = the(answers.read(client.get(loopback.url + "/refused"), never))
        assert (exchange.method, exchange.url) == ("GET", loopback.url + "/refused")
        assert ("authorization", "Bearer secret-canary") in exchange.request_headers
    with by_urllib(loopback.url + "/refused") as (error, _):
        exchange = the(answers.read(error, never))
        assert (exchange.method, exchange.url, exchange.request_headers) == ("GET", loopback.url + "/refused", ())


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_the_wire_of_httpx_stays_readable(loopback: Loopback, library: Any) -> None:
    """A user who passes the raw bytes on, as a proxy does, still has them, and the time that the answer took."""
    with library.Client() as client, client.stream("GET", loopback.url + "/gzip") as response:
        assert the(answers.read(response, always)).answer.body == BODY
        assert gzip.decompress(b"".join(response.iter_raw())) == BODY
        assert response.is_closed
        assert response.elapsed.total_seconds() > 0


def test_the_wire_of_requests_and_urllib3_stays_readable(loopback: Loopback) -> None:
    """The undecoded bytes are still there too."""
    with by_requests_streamed(loopback.url + "/gzip") as (response, _):
        assert the(answers.read(response, always)).answer.body == BODY
        assert gzip.decompress(response.raw.read(decode_content=False)) == BODY
    with by_urllib3_streamed(loopback.url + "/gzip") as (response, _):
        assert the(answers.read(response, always)).answer.body == BODY
        assert gzip.decompress(b"".join(response.stream(10, decode_content=False))) == BODY


def test_a_connection_is_reused_after_its_refusal_was_read(loopback: Loopback) -> None:
    """The pool gets the connection back as if the user had read the body."""
    with urllib3.PoolManager(maxsize=1) as pool:
        for _ in range(3):
            response = pool.request("GET", loopback.url + "/refused", preload_content=False)
            assert the(answers.read(response, always)).answer.body == BODY
            response.release_conn()
        (one,) = (pool.pools.get(key) for key in pool.pools.keys())  # noqa: SIM118 -- not a dict
        assert one is not None
        assert one.num_connections == 1


def answered(**more: Any) -> requests.Response:
    """A requests response of an adapter of the host's own, whose ``raw`` is a file and not urllib3's."""
    response = requests.Response()
    response.status_code = 401
    for name, value in more.items():
        setattr(response, name, value)
    return response


def test_requests_of_other_adapters() -> None:
    """A ``raw`` that is a mere file is read by requests' own means; closed or missing, there is no body."""
    response = answered(raw=io.BytesIO(BODY), headers=requests.structures.CaseInsensitiveDict({"X-Id": "7"}))
    exchange = the(answers.read(response, always))
    assert exchange == Exchange(Answer(401, (("x-id", "7"),), BODY))
    assert response.content == BODY
    closed = io.BytesIO(BODY)
    closed.close()
    for raw in (closed, None):
        assert the(answers.read(answered(raw=raw), always)).answer.body is None


@pytest.mark.parametrize("fp", [io.BytesIO(BODY), None])
def test_urllib_errors_made_by_hand(fp: io.BytesIO | None) -> None:
    """An error with a file of the host's own inside stays readable, also by a method taken before."""
    headers: Any = {"X-Id": "7"}
    error = urllib.error.HTTPError("https://api.example/", 401, "no", headers, fp)
    assert error.readable()
    exchange = the(answers.read(error, always))
    assert exchange.answer.body == (BODY if fp else b"")
    assert (exchange.url, exchange.answer.header("x-id")) == ("https://api.example/", "7")
    for _ in range(2):
        assert the(answers.read(error, always)).answer.body == (BODY if fp else b"")
    assert error.read() == (BODY if fp else b"")
    error.close()
    assert the(answers.read(error, always)).answer.body in (None, b"")


@pytest.mark.parametrize(
    ("encoding", "wire", "expected"),
    [
        ("deflate", zlib.compress(BODY), BODY),
        ("deflate", zlib.compress(BODY)[2:-4], BODY),
        ("x-gzip", gzip.compress(BODY), BODY),
        ("gzip", BODY, BODY),
        ("gzip", gzip.compress(bytes(4 * BODY_LIMIT)), bytes(BODY_LIMIT)),
        ("br", b"whatever", b"whatever"),
    ],
)
def test_encodings_that_urllib_leaves_alone(loopback: Loopback, encoding: str, wire: bytes, expected: bytes) -> None:
    """Deflate with and without its header, a body that is not what its header says, a bomb: never more than 1 MiB."""
    loopback.routes["/encoded"] = Reply(401, wire, (("Content-Encoding", encoding),))
    with by_urllib(loopback.url + "/encoded") as (error, body):
        assert the(answers.read(error, always)).answer.body == expected
        assert body() == wire


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_a_body_that_does_not_decode(loopback: Loopback, encoding: str) -> None:
    """Bytes that are not what their header says raise nothing here, and for the user what the library raises."""
    loopback.routes["/encoded"] = Reply(401, b"\xff\xfe not compressed", (("Content-Encoding", encoding),))
    for opened in (by_requests_streamed, by_urllib3_streamed, *(httpx_openers(lib)[1] for lib in (httpx, httpx2))):
        with opened(loopback.url + "/encoded") as (value, body):
            seen = the(answers.read(value, always)).answer.body
            assert seen in (None, b"\xff\xfe not compressed")
            with contextlib.suppress(
                urllib3.exceptions.DecodeError, requests.RequestException, httpx.DecodingError, httpx2.DecodingError
            ):
                assert body() == seen


# --- aiohttp and the async sides --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/refused", "/chunked", "/close", "/gzip"])
def test_aiohttp_is_read_and_stays_readable(loopback: Loopback, path: str) -> None:
    """aiohttp's response is awaited for its body, and its user reads it again."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session, session.get(loopback.url + path, headers={"X-Trace": "9"}) as r:
            assert answers.status_of(r) == 401
            for _ in range(2):
                exchange = the(await answers.aread(r, always))
                assert exchange.answer.body == BODY
            assert [v for n, v in exchange.answer.headers if n == "www-authenticate"] == [TWO[0][1], TWO[1][1]]
            assert (exchange.method, exchange.url) == ("GET", loopback.url + path)
            assert ("x-trace", "9") in exchange.request_headers
            assert b"".join([piece async for piece in r.content.iter_chunked(10)]) == BODY
            assert await r.read() == BODY

    asyncio.run(main())


def test_aiohttp_empty_large_and_uncompressed_bodies(loopback: Loopback) -> None:
    """Empty is empty, large is cut for the diagnosis only, gzip is undone also where the session leaves it alone."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.head(loopback.url + "/refused") as r:
                assert the(await answers.aread(r, always)).answer.body == b""
            async with session.get(loopback.url + "/empty") as r:
                assert the(await answers.aread(r, always)).answer.body == b""
            async with session.get(loopback.url + "/large-chunked") as r:
                assert the(await answers.aread(r, always)).answer.body == LARGE[:BODY_LIMIT]
                assert await r.read() == LARGE
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.get(loopback.url + "/gzip") as r,
        ):
            assert the(await answers.aread(r, always)).answer.body == BODY
            assert gzip.decompress(await r.read()) == BODY

    asyncio.run(main())


def test_aiohttp_where_the_body_is_gone(loopback: Loopback) -> None:
    """A raised error, a released response, a begun or broken stream have no body; read before, it is still there."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.get(loopback.url + "/refused") as r:
                with pytest.raises(aiohttp.ClientResponseError) as caught:
                    r.raise_for_status()
            exchange = the(await answers.aread(caught.value, always))
            assert exchange.answer.status == 401
            assert exchange.answer.body is None
            assert [v for n, v in exchange.answer.headers if n == "www-authenticate"] == [TWO[0][1], TWO[1][1]]
            assert (exchange.method, exchange.url) == ("GET", loopback.url + "/refused")
            async with session.get(loopback.url + "/large") as r:
                pass
            assert the(await answers.aread(r, always)).answer.body is None
            async with session.get(loopback.url + "/refused") as r:
                await r.content.read(5)
                assert the(await answers.aread(r, always)).answer.body is None
            async with session.get(loopback.url + "/cut") as r:
                assert the(await answers.aread(r, always)).answer.body is None
            async with session.get(loopback.url + "/fine") as r:
                assert answers.already_read_json(r) is None
                await r.read()
            assert answers.already_read_json(r) == b'{"ok": false, "error": "token_expired"}'
            assert the(answers.read(r, always)).answer.body == b'{"ok": false, "error": "token_expired"}'

    asyncio.run(main())


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_async_httpx_is_read_and_stays_readable(loopback: Loopback, library: Any) -> None:
    """A plain, a streamed, a raised, a begun and a closed answer of an AsyncClient."""

    async def main() -> None:
        async with library.AsyncClient() as client:
            plain = await client.get(loopback.url + "/refused")
            assert the(await answers.aread(plain, always)).answer.body == BODY
            async with client.stream("GET", loopback.url + "/chunked") as streamed:
                assert the(await answers.aread(streamed, never)).answer.body is None
                assert the(await answers.aread(streamed, always)).answer.body == BODY
                assert await streamed.aread() == BODY
            async with client.stream("GET", loopback.url + "/gzip") as streamed:
                assert the(await answers.aread(streamed, always)).answer.body == BODY
                assert gzip.decompress(b"".join([piece async for piece in streamed.aiter_raw()])) == BODY
            async with client.stream("GET", loopback.url + "/cut") as streamed:
                assert the(await answers.aread(streamed, always)).answer.body is None
                with pytest.raises(library.RemoteProtocolError, match="peer closed"):
                    await streamed.aread()
            async with client.stream("GET", loopback.url + "/refused") as streamed:
                with pytest.raises(library.HTTPStatusError) as caught:
                    streamed.raise_for_status()
                assert the(await answers.aread(caught.value, always)).answer.body == BODY
            async with client.stream("GET", loopback.url + "/large") as streamed:
                assert the(await answers.aread(streamed, always)).answer.body == LARGE[:BODY_LIMIT]
                assert b"".join([piece async for piece in streamed.aiter_bytes()]) == LARGE
            async with client.stream("GET", loopback.url + "/large") as closed:
                pass
            assert the(await answers.aread(closed, always)).answer.body is None
            async with client.stream("GET", loopback.url + "/large") as held:
                await answers.aclose(held)
                assert held.is_closed
            async with client.stream("GET", loopback.url + "/large") as held:
                assert the(answers.read(held, always)).answer.body is None  # a sync reader cannot wait for it

    asyncio.run(main())


def test_sync_libraries_are_read_in_async_code_too(loopback: Loopback) -> None:
    """What requests or httpx2 gave to a coroutine is read as ever, streamed or not."""
    for opened in (by_requests, by_requests_streamed, *httpx_openers(httpx2)):
        with opened(loopback.url + "/refused") as (value, body):
            assert the(asyncio.run(answers.aread(value, always))).answer.body == BODY
            assert body() == BODY
            asyncio.run(answers.aclose(value))
            assert getattr(value, "response", value).raw.closed if "requests" in opened.__name__ else value is not None


# --- what is no answer ------------------------------------------------------------------------------------------------


def refused_connection() -> list[BaseException]:
    """Transport errors of each library, from a port where nobody listens."""
    url = "http://127.0.0.1:9/"
    errors: list[BaseException] = []
    for call in (
        lambda: requests.get(url, timeout=2),
        lambda: httpx.get(url),
        lambda: httpx2.get(url),
        lambda: urllib3.PoolManager().request("GET", url, retries=False),
        lambda: urllib3.PoolManager().request("GET", url, retries=0),
        lambda: urllib.request.urlopen(url),
    ):
        try:
            call()
        except Exception as error:
            errors.append(error)

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            try:
                await session.get(url)
            except aiohttp.ClientError as error:
                errors.append(error)

    asyncio.run(main())
    return errors


def test_transport_errors_and_strangers_are_no_answers() -> None:
    """An error without an answer, and any other object, has no status and nothing to read or to close."""
    errors = refused_connection()
    assert len(errors) == 7
    request_info: Any = Mock()
    proxy = aiohttp.ClientHttpProxyError(request_info, (), status=401)
    unknown = aiohttp.TooManyRedirects(request_info, ())
    for value in (*errors, proxy, unknown, requests.HTTPError("no response"), None, 7, "401", {}, ValueError("x")):
        assert answers.status_of(value) is None
        assert answers.read(value, always) is None
        assert asyncio.run(answers.aread(value, always)) is None
        assert answers.already_read_json(value) is None
        answers.close(value)
        asyncio.run(answers.aclose(value))


def test_subclasses_are_recognised_and_namesakes_are_not() -> None:
    """A class is known by the module of any of its bases; a class of the user's own of the same name is not."""

    class MyError(requests.HTTPError):
        pass

    class Response:
        status_code = 401

    answered = requests.Response()
    answered.status_code = 418
    assert answers.status_of(MyError("x", response=answered)) == 418
    assert answers.status_of(Response()) is None


def test_classes_without_end_do_not_fill_memory() -> None:
    """The memory of recognised classes is bounded."""
    for number in range(3000):
        answers.status_of(type(f"Made{number}", (), {})())
    assert len(recognition._kinds) <= 1024
    assert len(recognition._statuses) <= 1024


# --- closing ----------------------------------------------------------------------------------------------------------


def test_the_first_answer_is_closed(loopback: Loopback) -> None:
    """Streams are closed, also through the error that carries them; closing twice does no harm."""
    with by_requests_streamed(loopback.url + "/large") as (response, _):
        for _ in range(2):
            answers.close(response)
        assert response.raw.closed
    with by_requests_error(loopback.url + "/refused") as (error, _):
        answers.close(error)
        assert error.response.raw.closed
    for library in (httpx, httpx2):
        with httpx_openers(library)[3](loopback.url + "/large") as (error, _):
            answers.close(error)
            assert error.response.is_closed
    with by_urllib3_streamed(loopback.url + "/large") as (response, _):
        answers.close(response)
        assert response.closed
    with by_urllib(loopback.url + "/large") as (error, _):
        answers.read(error, always)
        answers.close(error)
        assert error.fp.closed


def test_aiohttp_is_released(loopback: Loopback) -> None:
    """The connection goes back, and the error of a response that is gone needs nothing."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            response = await session.get(loopback.url + "/large")
            await answers.aclose(response)
            assert response.connection is None
            with pytest.raises(aiohttp.ClientResponseError) as caught:
                await session.get(loopback.url + "/refused", raise_for_status=True)
            await answers.aclose(caught.value)
            answers.close(caught.value)

    asyncio.run(main())


# --- errors hidden in 200s --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [by_requests, by_urllib3, *(httpx_openers(lib)[0] for lib in (httpx, httpx2))])
def test_json_that_was_read_is_shown(loopback: Loopback, opened: Any) -> None:
    """A body that the library has read is looked at, if it is JSON."""
    with opened(loopback.url + "/fine") as (value, body):
        assert answers.already_read_json(value) == body()
    with opened(loopback.url + "/large") as (value, _):
        assert answers.already_read_json(value) is None
    with opened(loopback.url + "/empty") as (value, _):
        assert answers.already_read_json(value) is None


@pytest.mark.parametrize(
    "opened",
    [
        by_requests_streamed,
        by_urllib3_streamed,
        *(httpx_openers(lib)[1] for lib in (httpx, httpx2)),
        lambda url: contextlib.nullcontext((response := urllib.request.urlopen(url), response.read)),
    ],
)
def test_a_stream_is_not_touched_for_hidden_errors(loopback: Loopback, opened: Any) -> None:
    """A body still on the wire stays there."""
    with opened(loopback.url + "/fine") as (value, body):
        assert answers.already_read_json(value) is None
        assert body() == b'{"ok": false, "error": "token_expired"}'


def test_a_page_is_not_json() -> None:
    """A body that does not begin as JSON is not handed on."""
    assert answers.already_read_json(httpx2.Response(200, text="<html>")) is None
    assert answers.already_read_json(httpx2.Response(200, text='  [{"error": 1}]')) == b'  [{"error": 1}]'


# --- the host's own readers -------------------------------------------------------------------------------------------


@pytest.fixture
def readers() -> Iterator[None]:
    """Forget the readers that a test registers."""
    before = list(recognition._registered)
    yield
    recognition._registered[:] = before
    recognition._kinds.clear()
    recognition._statuses.clear()


class SdkError(Exception):
    """An SDK's own error."""

    def __init__(self, status: int) -> None:
        super().__init__("refused")
        self.status = status


@pytest.mark.usefixtures("readers")
def test_a_registered_reader_by_class() -> None:
    """A class and its subclasses are read by the host's reader, from when it is registered."""

    class Special(SdkError):
        pass

    assert answers.status_of(Special(401)) is None
    answers.register_reader(SdkError, lambda e: (e.status, {"WWW-Authenticate": ["Bearer", "DPoP"]}, "gone"))
    exchange = the(answers.read(Special(401), never))
    assert exchange.answer == Answer(401, (("www-authenticate", "Bearer"), ("www-authenticate", "DPoP")), b"gone")
    assert answers.status_of(Special(401)) == 401
    answers.close(Special(401))
    asyncio.run(answers.aclose(Special(401)))


@pytest.mark.usefixtures("readers")
def test_a_registered_reader_by_module() -> None:
    """A module's name stands for its classes and its submodules', not for a namesake; the latest reader wins."""
    inside = type("Response", (), {"__module__": "sdk.http"})()
    beside = type("Response", (), {"__module__": "sdkish"})()
    answers.register_reader("sdk", lambda value: None)
    assert answers.status_of(inside) is None
    answers.register_reader("sdk", lambda value: Answer(403))
    assert answers.status_of(inside) == 403
    assert answers.status_of(beside) is None


@pytest.mark.usefixtures("readers")
def test_a_registered_reader_is_closed_by_its_own_means() -> None:
    """``close`` of the host's own object is called, and awaited where it is a coroutine."""
    closed = []

    class Mine:
        def close(self) -> None:
            closed.append("sync")

    class Theirs:
        async def close(self) -> None:
            closed.append("async")

    answers.register_reader(Mine, lambda value: Answer(401))
    answers.register_reader(Theirs, lambda value: Answer(401))
    answers.close(Mine())
    asyncio.run(answers.aclose(Mine()))
    asyncio.run(answers.aclose(Theirs()))
    assert closed == ["sync", "sync", "async"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, None),
        (Answer(401, (), b"x"), Answer(401, (), b"x")),
        ((401, None, None), Answer(401)),
        ((401, {"A": "1"}, "ü"), Answer(401, (("a", "1"),), "ü".encode())),
        ((401, [(b"A", b"1")], bytearray(b"x")), Answer(401, (("a", "1"),), b"x")),
        ((500, {}, b"x" * (BODY_LIMIT + 1)), Answer(500, (), b"x" * BODY_LIMIT)),
    ],
)
def test_guards_answer_callable(said: object, expected: Answer | None) -> None:
    """What the host's callable returns becomes an Answer that the same functions read."""
    seen = answers.from_host(object(), lambda value: said)
    assert seen == expected
    if expected is not None:
        assert the(answers.read(seen, never)).answer == expected


def test_guards_answer_callable_may_hand_out_the_response_inside() -> None:
    """An SDK's error often holds the response of a known library: it is returned as it is, and read as ever."""
    inside = httpx2.Response(401, text="gone")
    seen = answers.from_host(SdkError(401), lambda error: inside)
    assert seen is inside


@pytest.mark.parametrize(
    "said", [401, "401", (401, {}), ("401", {}, b""), (401, 7, b""), (401, {}, 7), (True, {}, b"")]
)
def test_guards_answer_callable_that_says_something_else(said: object) -> None:
    """Anything else is the operator's: the error says what came back and what should."""
    with pytest.raises(ConfigurationError, match=r"answer= of guard does not say what was answered") as caught:
        answers.from_host(object(), lambda value: said)
    assert "status: int" in caught.value.fix


# --- arguments that cannot serve twice --------------------------------------------------------------------------------


def numbers() -> Iterator[int]:
    """A generator."""
    yield 1
    yield 2


async def anumbers() -> AsyncIterator[int]:
    """An async generator."""
    yield 1


def begun() -> Iterator[int]:
    """A generator of which one value was taken."""
    generator = numbers()
    next(generator)
    return generator


def file_at(position: int) -> io.BytesIO:
    """A file that stands somewhere."""
    file = io.BytesIO(b"0123456789")
    file.seek(position)
    return file


class Pipe(io.RawIOBase):
    """A file that cannot be rewound."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


class Upload:
    """What Starlette's UploadFile is like."""

    def __init__(self, position: int) -> None:
        self.file = file_at(position)

    async def read(self) -> bytes:
        return self.file.read()


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        b"bytes",
        7,
        [1, 2],
        {"a": ["b"]},
        {1, 2},
        range(3),
        numbers(),
        file_at(0),
        {"file": ("name", file_at(0))},
        Upload(0),
        httpx2.Response(200),
        requests.Response(),
        requests.Session(),
        httpx2.Client(),
        Mock(),
        MagicMock(),
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arguments_that_serve_twice(value: object) -> None:
    """Values, containers, clients, responses, unused generators and files at their start do not stop a repetition."""
    assert answers.repeatable((value,), {})
    assert answers.repeatable((), {"x": [value]})


@pytest.mark.parametrize(
    "value",
    [
        begun(),
        iter([1]),
        map(str, [1]),
        anumbers().__aiter__(),
        file_at(3),
        Pipe(),
        [file_at(10)],
        {"file": ("name", file_at(10))},
        Upload(4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arguments_that_do_not(value: object) -> None:
    """Begun generators, iterators, read files and pipes stop it, also inside a list, tuple or dict."""
    assert not answers.repeatable((value,), {})
    assert not answers.repeatable((), {"x": (value,)})


def test_files_that_were_used_by_the_call() -> None:
    """A closed file, and a temporary file that was read, cannot be sent again; rewound, it can."""
    closed = file_at(0)
    closed.close()
    assert not answers.repeatable((closed,), {})
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
        assert not answers.repeatable((file,), {})
        file.seek(0)
        assert answers.repeatable((file,), {})


def test_a_coroutine_that_was_awaited() -> None:
    """A coroutine serves once."""

    async def work() -> None:
        """Do nothing."""

    unused, used = work(), work()
    assert answers.repeatable((unused,), {})
    unused.close()
    asyncio.run(used)
    assert not answers.repeatable((used,), {})
