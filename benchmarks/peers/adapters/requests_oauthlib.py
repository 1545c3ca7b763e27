"""requests-oauthlib, after "(Third, Recommended) Define automatic token refresh and update" of its OAuth 2 workflow
(requests-oauthlib.readthedocs.io/en/latest/oauth2_workflow.html).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from requests_oauthlib import OAuth2Session

from peers.place import CLIENT_ID, CLIENT_SECRET, Place, Rows, expire, seed

__all__ = ["PACKAGE", "TITLE", "connect", "expire", "seed"]

TITLE = "requests-oauthlib `OAuth2Session`"
PACKAGE = "requests-oauthlib"

os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"  # the provider is on plain loopback


@contextmanager
def connect(place: Place, member: str) -> Iterator[Callable[[], int]]:
    """One session a process and member; ``token_updater`` writes the row."""
    rows = Rows(place)

    def token_saver(token: dict[str, Any]) -> None:
        rows.save(member, token)

    token = rows.load(member)
    token["expires_in"] = token["expires_at"] - time.time()  # "initially 3600, need to be updated by you"
    with OAuth2Session(
        CLIENT_ID,
        token=token,
        auto_refresh_url=place.token_endpoint,
        auto_refresh_kwargs={"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET},
        token_updater=token_saver,
    ) as session:
        yield lambda: session.get(place.api).status_code
