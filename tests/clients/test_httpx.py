"""KeeperAuth in httpx and httpx2, sync and async."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import httpx2
import pytest
from http_loopback import Loopback

from tokenkeeper.clients.httpx import KeeperAuth
from tokenkeeper.errors import ReauthenticationRequired
from tokenkeeper.model import AccessToken

LIBRARIES = [httpx, httpx2]
REFUSED = b'{"message": "expired"}'


def auth(keeper: Any) -> KeeperAuth:
    """The auth object under test."""
    return KeeperAuth(keeper, "acme", "ann")


def call(library: Any, keeper: Any, method: str, url: str, **more: Any) -> Any:
    """Make a request with a client-wide auth object."""
    with library.Client(auth=auth(keeper)) as client:
        return client.request(method, url, **more)


def acall(library: Any, keeper: Any, method: str, url: str, **more: Any) -> Any:
    """Make a request with an async client."""

    async def main() -> Any:
        async with library.AsyncClient(auth=auth(keeper)) as client:
            return await client.request(method, url, **more)

    return asyncio.run(main())


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, keeper: Any, async_keeper: Any) -> tuple[Any, Any]:
    """A way to call, and the keeper that belongs to it."""
    return (call, keeper) if request.param == "sync" else (acall, async_keeper)


@pytest.mark.parametrize("library", LIBRARIES)
def test_it_is_what_each_library_calls_an_auth(library: Any, keeper: Any) -> None:
    """One class serves both libraries: neither takes it for a mere function."""
    assert isinstance(auth(keeper), library.Auth)
    assert isinstance(auth(keeper), KeeperAuth)
    assert repr(auth(keeper)) == "<KeeperAuth 'acme' 'ann'>"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_valid_token_is_sent_once(library: Any, client: Any, api: Loopback) -> None:
    """A call that is not refused is made once, with the token."""
    send, keeper = client
    assert send(library, keeper, "GET", api.url + "/first").content == b"welcome"
    assert [asked.headers["authorization"] for asked in api.asked] == ["Bearer token-1"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_refusal_is_renewed_and_repeated(library: Any, client: Any, api: Loopback) -> None:
    """The refused request is sent once more with new token and same body; the first answer is in the history."""
    send, keeper = client
    response = send(library, keeper, "POST", api.url + "/second", content=b"payload")
    assert response.content == b"payload"
    assert [asked.headers["authorization"] for asked in api.asked] == ["Bearer token-1", "Bearer token-2"]
    assert keeper.seen == [(401, REFUSED, True), (200, None, True)]
    assert [first.content for first in response.history] == [REFUSED]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_second_refusal_is_raised_and_readable(library: Any, client: Any, api: Loopback) -> None:
    """The error of the keeper comes out of the call, after two requests, with a response that can be read."""
    send, keeper = client
    with pytest.raises(ReauthenticationRequired) as caught:
        send(library, keeper, "GET", api.url + "/never")
    assert len(api.asked) == 2
    assert isinstance(caught.value.response, library.Response)
    assert caught.value.response.content == REFUSED


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_not_about_the_token_passes(library: Any, client: Any, api: Loopback) -> None:
    """A 403 that the keeper lets pass is the caller's."""
    send, keeper = client
    response = send(library, keeper, "GET", api.url + "/forbidden")
    assert (response.status_code, response.content, len(api.asked)) == (403, b"no", 1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_redirect_at_home_keeps_the_token(library: Any, client: Any, api: Loopback) -> None:
    """A refusal behind a redirect within the origin is repeated from the start."""
    send, keeper = client
    response = send(library, keeper, "GET", api.url + "/hop", follow_redirects=True)
    assert response.content == b"welcome"
    assert [asked.path for asked in api.asked] == ["/hop", "/second", "/hop", "/second"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_stranger_is_not_told_and_not_believed(library: Any, client: Any, api: Loopback, elsewhere: Loopback) -> None:
    """Behind a redirect to another origin no token is sent, and a refusal there says nothing of it."""
    send, keeper = client
    response = send(library, keeper, "GET", api.url + "/away", follow_redirects=True)
    assert response.status_code == 401
    assert keeper.seen == []
    assert ["authorization" in asked.headers for asked in elsewhere.asked] == [False]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_form_with_a_file_is_sent_again(library: Any, client: Any, api: Loopback) -> None:
    """A multipart form is replayed when its files can be rewound."""
    send, keeper = client
    response = send(library, keeper, "POST", api.url + "/second", files={"f": io.BytesIO(b"contents")}, data={"a": "b"})
    assert response.status_code == 200
    assert b"contents" in api.asked[1].body
    assert api.asked[0].body == api.asked[1].body


class Pipe(io.RawIOBase):
    """A file that cannot be rewound."""

    def __init__(self) -> None:
        self._left = [b"contents"]

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._left.pop() if self._left else b""


def pieces() -> Iterator[bytes]:
    """A body that can be sent once."""
    yield b"one"
    yield b"two"


async def apieces() -> AsyncIterator[bytes]:
    """The async twin."""
    yield b"one"
    yield b"two"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_stream_is_not_sent_again(library: Any, keeper: Any, async_keeper: Any, api: Loopback) -> None:
    """A used-up body is no reason to send an empty one: the token is renewed, the refusal passes through."""
    for send, own, more in (
        (call, keeper, {"content": pieces()}),
        (call, keeper, {"content": io.BytesIO(b"onetwo")}),
        (call, keeper, {"files": {"f": Pipe()}}),
        (acall, async_keeper, {"content": apieces()}),
    ):
        own.generation = 1
        del api.asked[:], own.seen[:]
        response = send(library, own, "POST", api.url + "/second", **more)
        assert (response.status_code, response.content) == (401, REFUSED)
        assert own.seen == [(401, REFUSED, False)]
        assert own.generation == 2
        assert len(api.asked) == 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_streamed_answer(library: Any, keeper: Any, async_keeper: Any, api: Loopback) -> None:
    """``client.stream`` works: the refusal is dealt with, the good answer is still on the wire."""
    with library.Client(auth=auth(keeper)) as client, client.stream("GET", api.url + "/second") as response:
        assert not response.is_closed
        assert response.read() == b"welcome"

    async def main() -> None:
        async with (
            library.AsyncClient(auth=auth(async_keeper)) as client,
            client.stream("GET", api.url + "/second") as response,
        ):
            assert await response.aread() == b"welcome"

    asyncio.run(main())


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_wrong_twin_is_told(library: Any, keeper: Any, async_keeper: Any, api: Loopback) -> None:
    """A sync client with the async keeper, and the other way round, is a TypeError that names the right one."""
    with pytest.raises(TypeError, match="needs a TokenKeeper"):
        call(library, async_keeper, "GET", api.url + "/first")
    with pytest.raises(TypeError, match="needs an AsyncTokenKeeper"):
        acall(library, keeper, "GET", api.url + "/first")
    assert api.asked == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_auth_flow_of_the_base_class_works_too(library: Any, keeper: Any) -> None:
    """Code that drives ``auth_flow`` by hand gets the same requests."""
    flow = auth(keeper).auth_flow(library.Request("GET", "https://api.example/"))
    assert next(flow).headers["authorization"] == "Bearer token-1"
    flow.close()


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_imports_no_client() -> None:
    """Neither library is loaded by ours."""
    code = "import sys, tokenkeeper.clients.httpx; print({'httpx', 'httpx2'} & set(sys.modules))"
    assert run(code) == "set()"


def test_made_too_early() -> None:
    """Without any library it cannot be made; made before one, it says so when that one takes it for a function."""
    make = "from tokenkeeper.clients.httpx import KeeperAuth\ntry: auth = KeeperAuth(None, 'acme', 'ann')\n"
    assert "import the library before" in run(make + "except TypeError as error: print(error)")
    code = "import httpx2\n" + make + "finally: pass\nimport httpx\ntry: httpx.get('http://127.0.0.1:9/', auth=auth)\n"
    assert "made before httpx was imported" in run(code + "except TypeError as error: print(error)")


def test_tokens_of_other_headers(keeper: Any, api: Loopback) -> None:
    """A profile's own header without a scheme is what is sent and looked for."""
    keeper.header, keeper.scheme = "X-Token", ""
    assert call(httpx2, keeper, "GET", api.url + "/second").content == b"welcome"
    assert [asked.headers["x-token"] for asked in api.asked] == ["token-1", "token-2"]
    assert isinstance(keeper.token(), AccessToken)
