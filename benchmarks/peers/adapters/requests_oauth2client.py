"""requests_oauth2client, after "As Auth Handler" of guillp.github.io/requests_oauth2client and the reference of
``OAuth2AccessTokenAuth``: an auth handler on a session, with the token from the row.

It has no callback for renewed tokens: each call that finds another one in the handler saves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import requests
from requests_oauth2client import BearerToken, OAuth2AccessTokenAuth, OAuth2Client

from peers.place import CLIENT_ID, CLIENT_SECRET, Place, Rows, expire, seed

__all__ = ["PACKAGE", "TITLE", "connect", "expire", "seed"]

TITLE = "requests_oauth2client `OAuth2AccessTokenAuth`"
PACKAGE = "requests-oauth2client"


@contextmanager
def connect(place: Place, member: str) -> Iterator[Callable[[], int]]:
    """One session a process and member; a call saves what the handler holds, if it is new."""
    rows = Rows(place)
    row = rows.load(member)
    token = BearerToken(
        row["access_token"],
        expires_at=datetime.fromtimestamp(row["expires_at"], UTC),
        refresh_token=row["refresh_token"],
    )
    # testing: the provider is on plain loopback
    client = OAuth2Client(place.token_endpoint, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, testing=True)
    auth = OAuth2AccessTokenAuth(client, token)

    def save(held: BearerToken) -> None:
        if held is not token:
            saved = {"access_token": held.access_token, "refresh_token": held.refresh_token}
            rows.save(member, {**saved, "expires_at": held.expires_at.timestamp()})

    with requests.Session() as session:
        session.auth = auth

        def call() -> int:
            status = session.get(place.api).status_code
            save(auth.token)
            return status

        yield call
