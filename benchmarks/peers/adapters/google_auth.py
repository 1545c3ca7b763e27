"""google-auth, after "Call Google APIs" of developers.google.com/identity/protocols/oauth2/web-server (Python): the
credentials are saved after the call, "in case access token was refreshed"; ``AuthorizedSession`` is the user guide's.

There is no callback: each call that finds another token in the credentials saves it. Retries are mounted on https only:
here they are on http too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import requests
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2.credentials import Credentials

from peers.place import CLIENT_ID, CLIENT_SECRET, Place, Rows, expire, seed

__all__ = ["PACKAGE", "TITLE", "connect", "expire", "seed"]

TITLE = "google-auth `AuthorizedSession`"
PACKAGE = "google-auth"


@contextmanager
def connect(place: Place, member: str) -> Iterator[Callable[[], int]]:
    """One session a process and member; a call saves what the credentials hold, if it is new."""
    rows = Rows(place)
    token = rows.load(member)
    credentials = Credentials(
        token["access_token"],
        refresh_token=token["refresh_token"],
        token_uri=place.token_endpoint,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        expiry=datetime.fromtimestamp(token["expires_at"], UTC).replace(tzinfo=None),
    )
    transport = requests.Session()
    transport.mount("http://", requests.adapters.HTTPAdapter(max_retries=3))

    def save() -> None:
        if credentials.token != token["access_token"]:
            expires_at = credentials.expiry.replace(tzinfo=UTC).timestamp()
            saved = {"access_token": credentials.token, "refresh_token": credentials.refresh_token}
            rows.save(member, {**saved, "expires_at": expires_at})

    with transport, AuthorizedSession(credentials, auth_request=Request(transport)) as session:

        def call() -> int:
            status = session.get(place.api).status_code
            save()
            return status

        yield call
