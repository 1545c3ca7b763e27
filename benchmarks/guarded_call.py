"""1. A guarded call with a valid token in memory: what guard adds, beside what others spend to attach a token.

Nothing is sent. Everybody decides whether its token is still good and puts the header on the same prepared request;
the bare function does neither.
"""

# ruff: noqa: ARG001 - guarded functions have the parameters that guard looks for

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import requests
from harness import Effort, Figure, alternate, awaited, calls
from house import REGISTRATION, TOKEN_PADDING, house

from tokenkeeper import AccessToken

URL = "https://api.example/v2/userinfo"
NUMBER = 500


def run(effort: Effort) -> list[Figure]:
    """Measure guard, then attaching."""
    with house() as built:
        built.connect("ann")
        return [*_guard(built, effort), *_attaching(built, effort)]


def _guard(built: Any, effort: Effort) -> list[Figure]:
    """The decorated function over the bare one, both returning a response that is there already."""
    response = httpx2.Response(200, request=httpx2.Request("GET", URL))
    token = built.keeper.access_token(REGISTRATION, "ann")

    def bare(token: AccessToken, member: str) -> httpx2.Response:
        return response

    guarded = built.keeper.guard(REGISTRATION)(bare)
    blocks = {"bare": calls(lambda: bare(token, member="ann")), "guarded": calls(lambda: guarded(member="ann"))}
    sync = alternate(blocks, rounds=effort.of(301, 61), number=NUMBER)

    async def abare(token: AccessToken, member: str) -> httpx2.Response:
        return response

    keeper = built.async_keeper()
    aguarded = keeper.guard(REGISTRATION)(abare)
    with asyncio.Runner() as runner:
        runner.run(aguarded(member="ann"))
        blocks = {
            "bare": awaited(lambda: abare(token, member="ann"), runner.run),
            "guarded": awaited(lambda: aguarded(member="ann"), runner.run),
        }
        twin = alternate(blocks, rounds=effort.of(301, 61), number=NUMBER)
    return [
        Figure("guard, added to a bare call", sync.added("guarded", "bare"), "µs", 2.0),
        Figure("guard, added to an awaited bare call", twin.added("guarded", "bare"), "µs", 2.0),
    ]


def _attaching(built: Any, effort: Effort) -> list[Figure]:
    prepared = requests.Request("GET", URL).prepare()
    request = httpx2.Request("GET", URL)
    response = httpx2.Response(200, request=request)

    def bare(member: str) -> httpx2.Response:
        return response

    @built.keeper.guard(REGISTRATION)
    def with_requests(token: AccessToken, member: str) -> httpx2.Response:
        token(prepared)
        return response

    @built.keeper.guard(REGISTRATION)
    def with_httpx2(token: AccessToken, member: str) -> httpx2.Response:
        token(request)
        return response

    ways: dict[str, Callable[[], object]] = {
        "tokenkeeper: guard and auth=token, requests": lambda: with_requests(member="ann"),
        "tokenkeeper: guard and auth=token, httpx2": lambda: with_httpx2(member="ann"),
        "Authlib OAuth2Session, requests": _authlib_requests(prepared),
        "Authlib OAuth2Client, httpx2": _authlib_httpx2(request),
        "google-auth Credentials, requests": _google_auth(prepared),
        "requests_oauth2client OAuth2AccessTokenAuth, requests": _requests_oauth2client(prepared),
    }
    blocks = {"bare": calls(lambda: bare(member="ann")), **{name: calls(way) for name, way in ways.items()}}
    times = alternate(blocks, rounds=effort.of(151, 41), number=NUMBER // 5)
    ours = times.added("tokenkeeper: guard and auth=token, requests", "bare")
    return [
        Figure(name, times.added(name, "bare"), "µs", note=f"{times.added(name, 'bare') / ours:.1f} x ours")
        for name in ways
    ]


# --- the peers, each as its own client does it before a request is sent ------------------------------------------------


def _authlib_token() -> dict[str, object]:
    return {
        "access_token": TOKEN_PADDING,
        "refresh_token": "refresh",
        "token_type": "Bearer",
        "expires_at": time.time() + 3600,
    }


def _authlib_requests(prepared: requests.PreparedRequest) -> Callable[[], object]:
    from authlib.integrations.requests_client import OAuth2Session

    session = OAuth2Session("client", "secret", token=_authlib_token(), token_endpoint="https://provider.example/token")
    attach = session.token_auth
    return lambda: attach(prepared)


def _authlib_httpx2(request: httpx2.Request) -> Callable[[], object]:
    from authlib.integrations.httpx_client import OAuth2Client

    client = OAuth2Client("client", "secret", token=_authlib_token(), token_endpoint="https://provider.example/token")
    attach = client.token_auth

    def go() -> object:
        client.ensure_active_token(client.token)
        return next(attach.sync_auth_flow(request))

    return go


def _google_auth(prepared: requests.PreparedRequest) -> Callable[[], object]:
    from google.oauth2.credentials import Credentials

    credentials = Credentials(
        TOKEN_PADDING,
        refresh_token="refresh",
        token_uri="https://provider.example/token",
        client_id="client",
        client_secret="secret",
        expiry=(datetime.now(UTC) + timedelta(hours=1)).replace(tzinfo=None),
    )
    return lambda: credentials.before_request(None, "GET", URL, prepared.headers)


def _requests_oauth2client(prepared: requests.PreparedRequest) -> Callable[[], object]:
    from requests_oauth2client import BearerToken, OAuth2AccessTokenAuth, OAuth2Client

    client = OAuth2Client(token_endpoint="https://provider.example/token", client_id="client", client_secret="secret")
    attach = OAuth2AccessTokenAuth(client, BearerToken(TOKEN_PADDING, expires_in=3600, refresh_token="refresh"))
    return lambda: attach(prepared)
