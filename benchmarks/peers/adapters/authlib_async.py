"""Authlib with httpx2 and asyncio, after docs.authlib.org/en/latest/client/httpx.html, "Async OAuth 2.0".

One client is shared by all tasks of a process: its lock is what keeps them to one renewal.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from authlib.integrations.httpx_client import AsyncOAuth2Client

from peers.place import CLIENT_ID, CLIENT_SECRET, Place, Rows, expire, seed

__all__ = ["ASYNC", "PACKAGE", "TITLE", "connect", "expire", "seed"]

TITLE = "Authlib `AsyncOAuth2Client`"
PACKAGE = "authlib"
ASYNC = True


@asynccontextmanager
async def connect(place: Place, member: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """One client a process and member, with the token from the row; ``update_token`` writes the row."""
    rows = Rows(place)

    async def update_token(
        token: dict[str, Any],
        refresh_token: str | None = None,  # noqa: ARG001
        access_token: str | None = None,  # noqa: ARG001
    ) -> None:
        rows.save(member, token)

    async with AsyncOAuth2Client(
        CLIENT_ID,
        CLIENT_SECRET,
        token=rows.load(member),
        token_endpoint=place.token_endpoint,
        update_token=update_token,
    ) as client:

        async def call() -> int:
            return (await client.get(place.api)).status_code

        yield call
