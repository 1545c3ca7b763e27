"""Authlib with requests, after "Refresh & Auto Update Token" of docs.authlib.org/en/latest/client/oauth2.html."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from authlib.integrations.requests_client import OAuth2Session

from peers.place import CLIENT_ID, CLIENT_SECRET, Place, Rows, expire, seed

__all__ = ["PACKAGE", "TITLE", "connect", "expire", "seed"]

TITLE = "Authlib `OAuth2Session`"
PACKAGE = "authlib"


@contextmanager
def connect(place: Place, member: str) -> Iterator[Callable[[], int]]:
    """One session a process and member, with the token from the row; ``update_token`` writes the row."""
    rows = Rows(place)

    def update_token(token: dict[str, Any], refresh_token: str | None = None, access_token: str | None = None) -> None:  # noqa: ARG001
        rows.save(member, token)

    with OAuth2Session(
        CLIENT_ID,
        CLIENT_SECRET,
        token=rows.load(member),
        token_endpoint=place.token_endpoint,
        update_token=update_token,
    ) as session:
        yield lambda: session.get(place.api).status_code
