"""httpx_auth, after "Authorization Code Grant" and "Managing token cache" of github.com/Colin-b/httpx_auth: an auth object on
a shared client, and the ``JsonTokenFileCache`` for its tokens.

Without a token in its cache it opens a browser and listens on all interfaces for a minute, one caller after the other.
Here the same wait, cut to 10 ms, ends in the same exception, without browser or socket.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from httpx_auth import JsonTokenFileCache, OAuth2, OAuth2AuthorizationCode
from httpx_auth._errors import TimeoutOccurred
from httpx_auth._oauth2 import authentication_responses_server

from peers.place import CLIENT_ID, CLIENT_SECRET, Place

TITLE = "httpx_auth `OAuth2AuthorizationCode`"
PACKAGE = "httpx-auth"
SIGN_IN_SECONDS = 0.01


def _nobody_signs_in(details: Any) -> tuple[str, str]:
    time.sleep(SIGN_IN_SECONDS)  # not by its option ``timeout``: that is the token request's, too
    raise TimeoutOccurred(details.reception_timeout)


authentication_responses_server.request_new_grant = _nobody_signs_in


@contextmanager
def connect(place: Place, member: str) -> Iterator[Callable[[], int]]:
    """One client a process; the cache is a file a member."""
    OAuth2.token_cache = JsonTokenFileCache(_file(place, member))
    with httpx.Client() as client:
        auth = _auth(place)
        yield lambda: client.get(place.api, auth=auth).status_code


def seed(place: Place, member: str, token: dict[str, Any]) -> None:
    """Write the cache file as the library does."""
    ends = time.time() + (token.get("expires_in") or -60)
    row = (token["access_token"], ends, token["refresh_token"])
    _file(place, member).write_text(json.dumps({_auth(place).state: row}))


def expire(place: Place, member: str) -> None:
    """Let what is in the cache file be an hour older."""
    tokens = json.loads(_file(place, member).read_text() or "{}")
    older = {key: (access, time.time() - 60, refresh) for key, (access, _, refresh) in tokens.items()}
    _file(place, member).write_text(json.dumps(older))


def _auth(place: Place) -> OAuth2AuthorizationCode:
    return OAuth2AuthorizationCode(
        f"{place.base_url}/authorize",
        place.token_endpoint,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
    )


def _file(place: Place, member: str) -> Path:
    return place.folder / f"{member}.json"
