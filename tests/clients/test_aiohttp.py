"""The middleware for aiohttp."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from http_loopback import Loopback

from tokenkeeper.clients.aiohttp import keeper_middleware
from tokenkeeper.errors import ReauthenticationRequired

REFUSED = b'{"message": "expired"}'

Work = Callable[[aiohttp.ClientSession], Awaitable[Any]]


def run(keeper: Any, work: Work, *, origins: tuple[str, ...] = (), **options: Any) -> Any:
    """Do some work with a session whose requests carry the member's token."""

    async def main() -> Any:
        middleware = keeper_middleware(keeper, "acme", "ann", origins=origins)
        async with aiohttp.ClientSession(middlewares=[middleware], **options) as session:
            return await work(session)

    return asyncio.run(main())


def getting(url: str, method: str = "GET", **more: Any) -> Work:
    """Make one request; return its status and body."""

    async def work(session: aiohttp.ClientSession) -> tuple[int, bytes]:
        async with session.request(method, url, **more) as response:
            return response.status, await response.read()

    return work


def test_a_valid_token_is_sent_once(async_keeper: Any, api: Loopback) -> None:
    """A call that is not refused is made once, with the token."""
    assert run(async_keeper, getting(api.url + "/first")) == (200, b"welcome")
    assert [asked.headers["authorization"] for asked in api.asked] == ["Bearer token-1"]


@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize("data", [lambda: b"payload", lambda: {"a": "b"}, lambda: io.BytesIO(b"payload")])
def test_a_refusal_is_renewed_and_repeated(async_keeper: Any, api: Loopback, raising: bool, data: Any) -> None:
    """The request is sent once more with new token and same body, also where the session raises for a status."""
    status, _ = run(async_keeper, getting(api.url + "/second", "POST", data=data()), raise_for_status=raising)
    assert status == 200
    assert [asked.headers["authorization"] for asked in api.asked] == ["Bearer token-1", "Bearer token-2"]
    assert api.asked[0].body == api.asked[1].body != b""
    assert async_keeper.seen == [(401, REFUSED, True), (200, None, False)]


@pytest.mark.parametrize("raising", [False, True])
def test_a_second_refusal_is_raised_and_readable(async_keeper: Any, api: Loopback, raising: bool) -> None:
    """The error of the keeper comes out of the call, after two requests, with a response whose body was read."""

    async def work(session: aiohttp.ClientSession) -> None:
        with pytest.raises(ReauthenticationRequired) as caught:
            await session.get(api.url + "/never")
        assert isinstance(caught.value.response, aiohttp.ClientResponse)
        assert await caught.value.response.read() == REFUSED

    run(async_keeper, work, raise_for_status=raising)
    assert len(api.asked) == 2


def test_the_body_is_seen_before_it_is_hidden(async_keeper: Any, api: Loopback) -> None:
    """``raise_for_status`` of the session throws the body away; the keeper has seen it."""

    async def work(session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientResponseError, match="403"):
            await session.get(api.url + "/forbidden")

    run(async_keeper, work, raise_for_status=True)
    assert async_keeper.seen == [(403, b"no", True)]


async def pieces() -> AsyncIterator[bytes]:
    """A body that can be sent once."""
    yield b"one"
    yield b"two"


def test_a_stream_is_not_sent_again(async_keeper: Any, api: Loopback) -> None:
    """A used-up body is no reason to send an empty one: the token is renewed, the refusal passes through."""
    assert run(async_keeper, getting(api.url + "/second", "POST", data=pieces())) == (401, REFUSED)
    assert async_keeper.seen == [(401, REFUSED, False)]
    assert async_keeper.generation == 2
    assert len(api.asked) == 1


def test_a_redirect_at_home_keeps_the_token(async_keeper: Any, api: Loopback) -> None:
    """A refusal behind a redirect within the origin is repeated where it happened."""
    assert run(async_keeper, getting(api.url + "/hop")) == (200, b"welcome")
    assert [asked.path for asked in api.asked] == ["/hop", "/second", "/second"]


@pytest.mark.parametrize("header", ["Authorization", "X-Token"])
def test_a_stranger_is_not_told_and_not_believed(
    async_keeper: Any, api: Loopback, elsewhere: Loopback, header: str
) -> None:
    """Behind a redirect to another origin no token is sent, and a refusal there says nothing of it."""
    async_keeper.header = header
    status, _ = run(async_keeper, getting(api.url + "/away"))
    assert status == 401
    assert [status for status, *_ in async_keeper.seen] == [302]
    assert [header.lower() in asked.headers for asked in elsewhere.asked] == [False]


def test_origins_can_be_named(async_keeper: Any, api: Loopback, elsewhere: Loopback) -> None:
    """Several origins of one provider get the token where the host names them."""
    work = getting(api.url + "/away")
    assert run(async_keeper, work, origins=(api.url + "/", elsewhere.url)) == (200, b"welcome")
    assert run(async_keeper, getting(api.url + "/first"), origins=("https://other.example",)) == (401, REFUSED)


def test_the_wrong_twin_is_told(keeper: Any, api: Loopback) -> None:
    """aiohttp with the sync keeper is a TypeError that names the right one."""
    with pytest.raises(TypeError, match="needs an AsyncTokenKeeper"):
        run(keeper, getting(api.url + "/first"))
    assert api.asked == []
