"""tokenkeeper with httpx2 and asyncio, after "Install" and "Deploying" of its README."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache

import httpx2

from peers.adapters.tokenkeeper_sync import NAME, PACKAGE, expire, seed
from peers.place import Place
from tokenkeeper import AccessToken, AsyncTokenKeeper
from tokenkeeper.testing import FakeProvider

__all__ = ["ASYNC", "PACKAGE", "TITLE", "connect", "expire", "seed"]

TITLE = "tokenkeeper `AsyncTokenKeeper`"
ASYNC = True


@cache
def async_keeper_of(place: Place) -> AsyncTokenKeeper:
    """The process's one keeper for calls."""
    registration = FakeProvider(rotation="strict").registration(NAME, place.base_url)
    url = f"sqlite:///{place.folder / 'tokens.db'}"
    return AsyncTokenKeeper(url, registrations=[registration], spill_directory=place.folder / f"spill-{os.getpid()}")


@asynccontextmanager
async def connect(place: Place, member: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """One keeper and one client a process."""
    async with httpx2.AsyncClient() as client:

        @async_keeper_of(place).guard(NAME)
        async def call(token: AccessToken, member: str) -> httpx2.Response:  # noqa: ARG001 - guard looks for it
            return await client.get(place.api, auth=token)

        async def status() -> int:
            return (await call(member=member)).status_code

        yield status
