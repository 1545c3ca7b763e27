"""The clients with the real keeper and the fake provider, over HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

from tokenkeeper import (
    AsyncTokenKeeper,
    ConfigurationError,
    Keyring,
    NotConnected,
    ReauthenticationRequired,
    ScopeRequired,
    TokenKeeper,
)
from tokenkeeper.clients.aiohttp import keeper_middleware
from tokenkeeper.clients.httpx import KeeperAuth as HttpxAuth
from tokenkeeper.clients.requests import KeeperAuth as RequestsAuth
from tokenkeeper.testing import FakeProvider

Answered = tuple[int, bytes]
Caller = Callable[["World", str], Answered]


class World:
    """A provider on loopback, and both twins of a keeper on one database."""

    def __init__(self, provider: FakeProvider, base_url: str, database: Path) -> None:
        options: dict[str, Any] = {
            "keys": Keyring([("k1", bytes(range(32)))]),
            "registrations": [provider.registration("acme")],
        }
        self.provider = provider
        self.base_url = base_url
        self.keeper = TokenKeeper(f"sqlite:///{database}", **options)
        self.async_keeper = AsyncTokenKeeper(f"sqlite:///{database}", **options)
        self.keeper.create_schema()

    def connect(self, **more: Any) -> None:
        """Give Ann a grant."""
        self.keeper.save_tokens("acme", "ann", self.provider.issue("ann", **more))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The world of one test."""
    provider = FakeProvider(rotation="strict", required_scopes={"/api/mail": "mail"})
    with provider.serve() as base_url:
        world = World(provider, base_url, tmp_path / "tokens.db")
        try:
            yield world
        finally:
            world.keeper.close()
            asyncio.run(world.async_keeper.close())


def by_requests(world: World, path: str) -> Answered:
    """A call with requests."""
    response = requests.get(world.base_url + path, auth=RequestsAuth(world.keeper, "acme", "ann"), timeout=9)
    return response.status_code, response.content


def by_httpx(world: World, path: str) -> Answered:
    """A call with httpx."""
    response = httpx.get(world.base_url + path, auth=HttpxAuth(world.keeper, "acme", "ann"))
    return response.status_code, response.content


def by_httpx2(world: World, path: str) -> Answered:
    """A call with httpx2."""
    response = httpx2.get(world.base_url + path, auth=HttpxAuth(world.keeper, "acme", "ann"))
    return response.status_code, response.content


def by_async_httpx2(world: World, path: str) -> Answered:
    """A call with httpx2's async client."""

    async def main() -> Answered:
        async with httpx2.AsyncClient(auth=HttpxAuth(world.async_keeper, "acme", "ann")) as client:
            response = await client.get(world.base_url + path)
            return response.status_code, response.content

    return asyncio.run(main())


def by_aiohttp(world: World, path: str) -> Answered:
    """A call with aiohttp."""

    async def main() -> Answered:
        middleware = keeper_middleware(world.async_keeper, "acme", "ann")
        async with (
            aiohttp.ClientSession(middlewares=[middleware]) as session,
            session.get(world.base_url + path) as response,
        ):
            return response.status, await response.read()

    return asyncio.run(main())


every_client = pytest.mark.parametrize("call", [by_requests, by_httpx, by_httpx2, by_async_httpx2, by_aiohttp])


@every_client
def test_an_expired_token_is_renewed_and_the_call_repeated(world: World, call: Caller) -> None:
    """The provider refuses the first call, is asked for one new pair, and takes the second."""
    world.connect()
    world.provider.expire()
    status, body = call(world, "/api/me")
    assert (status, b"ann" in body) == (200, True)
    assert (world.provider.api_calls, world.provider.token_requests) == (2, 1)
    assert call(world, "/api/me")[0] == 200
    assert (world.provider.api_calls, world.provider.token_requests) == (3, 1)


@every_client
def test_a_token_that_nothing_renews_is_the_members_turn(world: World, call: Caller) -> None:
    """The prompt is opened, the response is with the error, and the next call is not even sent."""
    world.connect(refresh_token=False)
    world.provider.expire()
    with pytest.raises(ReauthenticationRequired) as caught:
        call(world, "/api/me")
    response: Any = caught.value.response
    assert getattr(response, "status_code", getattr(response, "status", None)) == 401
    calls = world.provider.api_calls
    with pytest.raises(ReauthenticationRequired):
        call(world, "/api/me")
    assert world.provider.api_calls == calls


@every_client
def test_a_missing_scope_is_named(world: World, call: Caller) -> None:
    """A 403 for want of a scope says which, and nothing is renewed."""
    world.connect()
    with pytest.raises((ScopeRequired, ConfigurationError)):
        call(world, "/api/mail")
    assert (world.provider.api_calls, world.provider.token_requests) == (1, 0)


@every_client
@pytest.mark.parametrize("status", [404, 429, 500])
def test_what_is_not_about_the_token_passes(world: World, call: Caller, status: int) -> None:
    """The weather and the caller's own mistakes come back as they are."""
    world.connect()
    world.provider.refuse_next(status=status, body={"message": "later"})
    assert call(world, "/api/me")[0] == status
    assert (world.provider.api_calls, world.provider.token_requests) == (1, 0)


@every_client
def test_nobody_is_connected(world: World, call: Caller) -> None:
    """Without a grant nothing is sent."""
    with pytest.raises(NotConnected):
        call(world, "/api/me")
    assert world.provider.api_calls == 0
