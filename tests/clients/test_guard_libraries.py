"""guard with functions of every library that is understood, returning and raising, sync and async, over loopback."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3

from tokenkeeper import AccessToken, AsyncTokenKeeper, Keyring, TokenKeeper
from tokenkeeper.testing import FakeProvider


def requests_returned(token: AccessToken, url: str) -> Any:
    """requests, the response as it is."""
    return requests.get(url, auth=token, timeout=9)


def requests_streamed(token: AccessToken, url: str) -> Any:
    """requests, the body still on the wire."""
    return requests.get(url, auth=token, stream=True, timeout=9)


def requests_raised(token: AccessToken, url: str) -> Any:
    """requests, raising for a status."""
    response = requests.get(url, headers=token.headers, timeout=9)
    response.raise_for_status()
    return response.json()


def httpx_returned(token: AccessToken, url: str) -> Any:
    """httpx, the response as it is."""
    return httpx.get(url, auth=token)


def httpx_raised(token: AccessToken, url: str) -> Any:
    """httpx, raising for a status."""
    return httpx.get(url, auth=token).raise_for_status().json()


def httpx2_returned(token: AccessToken, url: str) -> Any:
    """httpx2, the response as it is."""
    return httpx2.get(url, auth=token)


def httpx2_raised(token: AccessToken, url: str) -> Any:
    """httpx2, raising for a status."""
    return httpx2.get(url, headers=token.headers).raise_for_status().json()


def urllib3_returned(token: AccessToken, url: str) -> Any:
    """urllib3, the response as it is."""
    with urllib3.PoolManager() as pool:
        return pool.request("GET", url, headers=token.headers)


def urllib_raised(token: AccessToken, url: str) -> Any:
    """urllib.request, which raises for a status."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=token.headers)) as response:
        return response.read()


async def httpx_async(token: AccessToken, url: str) -> Any:
    """httpx's async client."""
    async with httpx.AsyncClient(auth=token) as client:
        return await client.get(url)


async def httpx2_async(token: AccessToken, url: str) -> Any:
    """httpx2's async client, raising for a status."""
    async with httpx2.AsyncClient(auth=token) as client:
        return (await client.get(url)).raise_for_status().json()


async def aiohttp_returned(token: AccessToken, url: str) -> Any:
    """aiohttp, the response with its body read."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=token.headers) as response:
        await response.read()
        return response


async def aiohttp_raised(token: AccessToken, url: str) -> Any:
    """aiohttp, raising for a status: the body is gone, status and headers decide."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        async with session.get(url, headers=token.headers) as response:
            return await response.json()


SYNC = [
    requests_returned,
    requests_streamed,
    requests_raised,
    httpx_returned,
    httpx_raised,
    httpx2_returned,
    httpx2_raised,
    urllib3_returned,
    urllib_raised,
]
ASYNC = [httpx_async, httpx2_async, aiohttp_returned, aiohttp_raised]
LIBRARY_ERRORS = (
    requests.HTTPError,
    httpx.HTTPStatusError,
    httpx2.HTTPStatusError,
    urllib.error.HTTPError,
    aiohttp.ClientResponseError,
)


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """A provider on loopback."""
    provider = FakeProvider()
    with provider.serve():
        yield provider


def call(provider: FakeProvider, database: Path, function: Any, before: Callable[[], Any]) -> Any:
    """Guard a function, give Ann a grant, let something happen to it, and make the call."""
    options: dict[str, Any] = {
        "keys": Keyring([("k1", bytes(range(32)))]),
        "registrations": [provider.registration("acme")],
    }
    url = f"{provider.base_url}/api/me"
    with TokenKeeper(f"sqlite:///{database}", **options) as keeper:
        keeper.create_schema()
        keeper.save_tokens("acme", "ann", provider.issue("ann"))
        before()
        if function in SYNC:
            guarded = keeper.guard("acme", member=lambda *args, **kwargs: "ann")(function)
            return settled(guarded(url))

    async def main() -> Any:
        async with AsyncTokenKeeper(f"sqlite:///{database}", **options) as async_keeper:
            return await async_keeper.guard("acme", member=lambda *args, **kwargs: "ann")(function)(url)

    return settled(asyncio.run(main()))


def settled(result: Any) -> Any:
    """Give a streamed response's connection back."""
    if isinstance(result, requests.Response):
        with result:
            _ = result.content
    return result


@pytest.mark.parametrize("function", [*SYNC, *ASYNC], ids=lambda function: function.__name__)
def test_an_expired_token_is_renewed(provider: FakeProvider, tmp_path: Path, function: Any) -> None:
    """Whatever library refuses, and however it says so, the token is renewed once and the call made twice."""
    call(provider, tmp_path / "tokens.db", function, provider.expire)
    assert (provider.api_calls, provider.token_requests) == (2, 1)


RAISING = [requests_raised, httpx_raised, httpx2_raised, urllib_raised, httpx2_async, aiohttp_raised]
RETURNING = [function for function in (*SYNC, *ASYNC) if function not in RAISING]


@pytest.mark.parametrize("function", RETURNING, ids=lambda function: function.__name__)
def test_the_weather_is_returned(provider: FakeProvider, tmp_path: Path, function: Any) -> None:
    """A 500 comes back as the library's own response."""
    result = call(provider, tmp_path / "tokens.db", function, lambda: provider.refuse_next(status=500, body="later"))
    assert getattr(result, "status_code", getattr(result, "status", None)) == 500
    assert (provider.api_calls, provider.token_requests) == (1, 0)


@pytest.mark.parametrize("function", RAISING, ids=lambda function: function.__name__)
def test_the_weather_is_raised(provider: FakeProvider, tmp_path: Path, function: Any) -> None:
    """A 500 comes out as the library's own error."""
    with pytest.raises(LIBRARY_ERRORS, match="500") as caught:
        call(provider, tmp_path / "tokens.db", function, lambda: provider.refuse_next(status=500, body="later"))
    assert (provider.api_calls, provider.token_requests) == (1, 0)
    getattr(caught.value, "close", lambda: None)()
