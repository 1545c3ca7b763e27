"""No secret gets out: not in a log, a text, a pickle, a traceback's locals, an event, an answer of the command, a file.

Each test drives a part of the library with canaries, through tables in which one line is one situation, and looks
everywhere (``lookout.py``). The self-test at the end shows that what is looked at would be found.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import ssl
import sys
import threading
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from lookout import MARK, PACKAGE, WAYS, Lookout
from sqlalchemy import create_engine, event
from stage import KEY, PARAMETER, SECRET, SESSION, Parrot, Stage, quoting

from tokenkeeper import (
    AccessToken,
    AsyncTokenKeeper,
    ConfigurationError,
    Event,
    InvalidInput,
    Keyring,
    Provider,
    Registration,
    Secret,
    TokenKeeper,
    TokenKeeperError,
)
from tokenkeeper.cli.app import cli
from tokenkeeper.cli.output import Output
from tokenkeeper.clients.aiohttp import keeper_middleware
from tokenkeeper.config import load
from tokenkeeper.store import engine
from tokenkeeper.testing.dialects import API_ANSWERS, TOKEN_ANSWERS

TLS = ssl.create_default_context()
"""Made once: it is slow to make, and nothing here uses it."""

# --- guarded calls: every library, every verdict ---------------------------------------------------------------------


def requests_returned(token: AccessToken, url: str, member: str) -> Any:
    """requests, the response as it is."""
    return requests.get(url, auth=token, timeout=9)


def requests_raised(token: AccessToken, url: str, member: str) -> Any:
    """requests, raising for a status."""
    response = requests.get(url, headers=token.headers, timeout=9)
    response.raise_for_status()
    return response


def httpx_returned(token: AccessToken, url: str, member: str) -> Any:
    """httpx, the response as it is."""
    return httpx.get(url, verify=TLS, auth=token)


def httpx_raised(token: AccessToken, url: str, member: str) -> Any:
    """httpx, raising for a status."""
    return httpx.get(url, verify=TLS, headers=token.headers).raise_for_status()


def httpx2_returned(token: AccessToken, url: str, member: str) -> Any:
    """httpx2, the response as it is."""
    return httpx2.get(url, verify=TLS, auth=token)


def httpx2_raised(token: AccessToken, url: str, member: str) -> Any:
    """httpx2, raising for a status."""
    return httpx2.get(url, verify=TLS, headers=token.headers).raise_for_status()


def urllib3_returned(token: AccessToken, url: str, member: str) -> Any:
    """urllib3, the response as it is."""
    with urllib3.PoolManager() as pool:
        return pool.request("GET", url, headers=token.headers, retries=False)


def urllib_raised(token: AccessToken, url: str, member: str) -> Any:
    """urllib.request, which raises for a status."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=token.headers)) as response:
        return response.read()


async def httpx_async(token: AccessToken, url: str, member: str) -> Any:
    """httpx's async client."""
    async with httpx.AsyncClient(verify=TLS, auth=token) as client:
        return await client.get(url)


async def httpx2_async(token: AccessToken, url: str, member: str) -> Any:
    """httpx2's async client, raising for a status."""
    async with httpx2.AsyncClient(verify=TLS, auth=token) as client:
        return (await client.get(url)).raise_for_status()


async def aiohttp_returned(token: AccessToken, url: str, member: str) -> Any:
    """aiohttp, the response with its body read."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=token.headers) as response:
        await response.read()
        return response


async def aiohttp_raised(token: AccessToken, url: str, member: str) -> Any:
    """aiohttp, raising for a status: the repr of its error has the request's headers."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        async with session.get(url, headers=token.headers) as response:
            return await response.json()


GUARDED = {
    "sync": [
        requests_returned,
        requests_raised,
        httpx_returned,
        httpx_raised,
        httpx2_returned,
        httpx2_raised,
        urllib3_returned,
        urllib_raised,
    ],
    "async": [httpx_async, httpx2_async, aiohttp_returned, aiohttp_raised],
}


def by_requests(world: Stage, url: str, member: str) -> Any:
    """The auth object of requests."""
    from tokenkeeper.clients.requests import KeeperAuth

    return requests.get(url, auth=KeeperAuth(world.keeper, "acme", member), timeout=9)


def by_httpx(world: Stage, url: str, member: str) -> Any:
    """The auth object of httpx."""
    from tokenkeeper.clients.httpx import KeeperAuth

    return httpx.get(url, verify=TLS, auth=KeeperAuth(world.keeper, "acme", member))


def by_httpx2(world: Stage, url: str, member: str) -> Any:
    """The auth object of httpx2."""
    from tokenkeeper.clients.httpx import KeeperAuth

    return httpx2.get(url, verify=TLS, auth=KeeperAuth(world.keeper, "acme", member))


async def by_httpx2_async(world: Stage, url: str, member: str) -> Any:
    """The same, async."""
    from tokenkeeper.clients.httpx import KeeperAuth

    async with httpx2.AsyncClient(verify=TLS, auth=KeeperAuth(world.keeper, "acme", member)) as client:
        return await client.get(url)


async def by_aiohttp(world: Stage, url: str, member: str) -> Any:
    """The middleware of aiohttp."""
    async with aiohttp.ClientSession(middlewares=[keeper_middleware(world.keeper, "acme", member)]) as session:
        async with session.get(url) as response:
            return await response.read()


CLIENTS = {"sync": [by_requests, by_httpx, by_httpx2], "async": [by_httpx2_async, by_aiohttp]}


def calls(
    world: Stage, before: Callable[[str], None] = lambda member: None, *, cached: bool = True, diagnose: bool = True
) -> None:
    """Call the API with every library, each for a member of its own; *before* decides on the member's answers.

    With *cached*, the token is in memory before, so that the call does not enter a flow until it is refused.
    """
    url = f"{world.base}/api/me"
    libraries: list[tuple[str, Callable[[str], Any]]] = []
    for function in GUARDED[world.twin]:
        guarded = world.keeper.guard("acme")(function)
        libraries.append((function.__name__, lambda member, guarded=guarded: guarded(url, member)))
    for client in CLIENTS[world.twin]:
        libraries.append((client.__name__, lambda member, client=client: client(world, url, member)))
    world.connect(*(name for name, _ in libraries))
    for name, call in libraries:
        if cached:
            world.does(world.keeper.access_token("acme", name))
        before(name)
        result = world.tries(lambda call=call, name=name: call(name), name)
        with contextlib.suppress(InvalidInput) if diagnose else contextlib.suppress(BaseException):
            assert diagnose
            world.sees(f"what {name} means", world.keeper.diagnose("acme", result))
        for given_back in (result, getattr(result, "response", None)):
            if world.twin == "sync" and hasattr(given_back, "close"):
                given_back.close()
    world.provider.clear_script()


@pytest.mark.parametrize("verdict", ["ok", *API_ANSWERS, "drop", "cut"])
def test_guarded_calls(stage: Callable[..., Stage], verdict: str) -> None:
    """Whatever the API says, once or twice, to whatever library, returned or raised."""
    world = stage()
    for times in (1, 2):
        before = functools.partial(world.provider.script, verdict, times=times)
        calls(world, lambda member, before=before: before(member=member), cached=times == 1)
    assert world.leaks() == []


QUOTES = [
    (400, "invalid_request"),
    (401, "invalid_token"),
    (401, "revoked_token"),
    (401, "insufficient_user_authentication"),
    (403, "insufficient_scope"),
    (403, "account_locked"),
    (429, "slow_down"),
    (500, "server_error"),
]
STYLES = ("json", "text", "challenge")


@pytest.mark.parametrize(("status", "error"), QUOTES)
def test_an_api_that_quotes_the_token(stage: Callable[..., Stage], status: int, error: str) -> None:
    """Some providers quote the token in their message, their challenge or a header of their own."""
    world = stage()
    # httpcore logs the headers of whatever it receives: in the user's own calls that is the user's business.
    world.lookout.deaf_to = {"httpcore", "httpcore2"}
    for style in STYLES:
        world.provider.quotes["/api/"] = quoting(status, style, error)
        calls(world, cached=style != "text")
    assert world.leaks() == []


def test_an_api_that_quotes_a_token_in_a_header_of_its_own(stage: Callable[..., Stage]) -> None:
    """A profile whose header has a harmless name, and an API that refuses everybody's new tokens."""
    world = stage(declared={"header": "X-Shop", "scheme": ""})
    world.provider.quotes["/api/"] = quoting(401, "text")
    calls(world)
    assert world.leaks() == []


# --- renewals --------------------------------------------------------------------------------------------------------

RENEWALS: dict[str, Callable[[Parrot], None]] = {
    "renewed": lambda provider: None,
    **{name: lambda provider, name=name: provider.script(name, "token", times=3) for name in TOKEN_ANSWERS},
    **{
        name: lambda provider, name=name: provider.script(name, "token", times=2, delay=0.05)
        for name in ("drop", "hang", "cut", "drip")
    },
    "new secret": lambda provider: provider.change_secret(f"{MARK} another secret"),
    "member revoked": lambda provider: provider.revoke(),
    "a member of its own": lambda provider: provider.quotes.update(
        {"/token": lambda shown: quoting(200, "json")(f"{MARK}-new-access-9")}
    ),
    "tokens one level down": lambda provider: provider.refuse_next(
        "token", status=200, body={"data": {"access_token": f"{MARK}-nested-5"}}, times=3
    ),
    "a token with a line break": lambda provider: provider.refuse_next(
        "token", status=200, body={"access_token": f"{MARK}-odd-5\r\n", "refresh_token": f"{MARK}-odd-6"}, times=3
    ),
    "a refresh token that is none": lambda provider: provider.refuse_next(
        "token", status=200, body={"access_token": f"{MARK}-fine-5", "refresh_token": f"{MARK}-odd-6\n"}, times=3
    ),
    "a list": lambda provider: provider.refuse_next("token", status=200, body=[f"{MARK}-listed-5"], times=3),
    "cut JSON": lambda provider: provider.refuse_next(
        "token", status=200, body=f'{{"access_token": "{MARK}-cut-5", "refresh', times=3
    ),
    "a form": lambda provider: provider.refuse_next(
        "token",
        status=200,
        body=f"access_token={MARK}-form-5&scope=read",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ),
    "a redirect": lambda provider: provider.refuse_next(
        "token", status=307, headers={"Location": f"https://evil.example/?refresh_token={MARK}-moved-5"}, times=3
    ),
    **{
        f"quotes {status} {error} {style}": lambda provider, status=status, error=error, style=style: (
            provider.quotes.update({"/token": quoting(status, style, error)})
        )
        for status, error in [
            (200, "oops"),
            (400, "invalid_grant"),
            (400, "invalid_request"),
            (401, "invalid_client"),
            (403, "access_denied"),
            (429, "slow_down"),
            (500, "server_error"),
        ]
        for style in STYLES
    },
}
"""What the token endpoint does with a refresh token."""


def renewals(world: Stage) -> None:
    """Need a renewal in every way in which one can be needed."""
    world.tries(lambda: world.keeper.access_token("acme", "ann"), "access_token")
    world.tries(lambda: world.keeper.access_token("acme", "ann", minimum_lifetime=10**6), "access_token, minimum")
    guarded = world.keeper.guard("acme")(GUARDED[world.twin][0])
    world.tries(lambda: guarded(f"{world.base}/api/me", "ann"), "a guarded call")
    world.clock.advance(3600)
    world.tries(lambda: world.keeper.renew("acme", "ann"), "renew")


@pytest.mark.parametrize("name", RENEWALS)
def test_renewals(stage: Callable[..., Stage], name: str) -> None:
    """Renewals that succeed, and that fail in every way."""
    endless = name in ("hang", "drip")
    world = stage(provider={"rotation": "grace"}, declared={"deadline_seconds": 0.5} if endless else {})
    world.connect("ann")
    world.clock.advance(3600)
    RENEWALS[name](world.provider)
    renewals(world)
    assert world.leaks() == []


METHODS = ["client_secret_basic", "client_secret_post"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_each_client_authentication(stage: Callable[..., Stage], method: str, status: int) -> None:
    """The client's secret in the header or in the form, and an endpoint that repeats it."""
    world = stage(provider={"client_authentication": method})
    world.connect("ann")
    world.clock.advance(3600)
    if status != 200:
        world.provider.quotes["/token"] = quoting(
            status, "json", "invalid_client" if status == 401 else "invalid_grant"
        )
    renewals(world)
    assert world.leaks() == []


def pem(world_private: ec.EllipticCurvePrivateKey) -> tuple[str, str]:
    """A private key and its public half."""
    private = world_private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = world_private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private.decode(), public.decode()


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "none", "nonsense"])
@pytest.mark.parametrize("status", [None, 400, 500])
def test_a_private_key(stage: Callable[..., Stage], algorithm: str, status: int | None) -> None:
    """A client that signs assertions with a good key, or cannot sign with it; an endpoint that repeats the assertion."""
    private, public = pem(ec.generate_private_key(ec.SECP256R1()))
    world = stage(
        provider={"client_authentication": "private_key_jwt", "client_public_key": public},
        registration={"client_secret": None, "private_key": private, "signing_algorithm": algorithm},
    )
    for line in private.splitlines()[1:-1]:
        world.lookout.plant("the private key", line)
    world.connect("ann")
    world.clock.advance(3600)
    if status is not None:
        world.provider.quotes["/token"] = quoting(status, "json", "invalid_client")
    renewals(world)
    assert world.leaks() == []


# --- connecting ------------------------------------------------------------------------------------------------------


def connected(world: Stage, quote: Callable[[str], Any] | None = None) -> Any:
    """Go through sign-in and consent, and come back."""
    callback = world.provider.consent(world.begin(return_to="/settings").url, member="ann")
    if quote:
        world.provider.quotes["/token"] = quote
    return world.finish(callback)


def twice(world: Stage) -> None:
    """A callback that is replayed."""
    callback = world.provider.consent(world.begin().url, member="ann")
    world.finish(callback)
    world.finish(callback)


def changed(change: Callable[[str], str], **finish: Any) -> Callable[[Stage], None]:
    """A callback that was changed on its way."""

    def act(world: Stage) -> None:
        world.finish(change(world.provider.consent(world.begin().url, member="ann")), **finish)

    return act


CONNECTIONS: dict[str, Callable[[Stage], Any]] = {
    "connected": connected,
    "declined": lambda world: world.finish(world.provider.consent(world.begin().url, member="ann", approve=False)),
    "again, as another account": lambda world: (
        connected(world),
        world.finish(world.provider.consent(world.begin().url, member="bob")),
    ),
    "replayed": twice,
    "another member": changed(str, member="bob"),
    "another session": changed(str, session=f"{SESSION}-of-another"),
    "no session": changed(str, session=None),
    "state gone": changed(lambda url: url.replace("state=", "stat=")),
    "state changed": changed(lambda url: url.replace("state=", "state=x")),
    "code gone": changed(lambda url: url.replace("code=", "cod=")),
    "code twice": changed(lambda url: f"{url}&code={MARK}-second-1"),
    "another path": changed(lambda url: url.replace("/callback", "/elsewhere")),
    "another issuer": changed(lambda url: f"{url}&iss=https://evil.example"),
    "an error that quotes": changed(lambda url: f"{url}&error=access_denied&error_description=no:+{MARK}-quoted-1"),
    "an error that is a secret": changed(lambda url: f"{url}&error={MARK}-quoted-1"),
    "not a URL": changed(lambda url: f"http://[{url}"),
    "a hundred parameters": changed(lambda url: url + "&x=1" * 101),
    "bytes": changed(lambda url: url.encode()),  # type: ignore[arg-type, return-value]
    "an object": changed(Secret),  # type: ignore[arg-type, return-value]
    "nothing": changed(lambda url: None),  # type: ignore[arg-type, return-value]
    "unknown member": changed(str, member=""),
    "endpoint drops": lambda world: connected(world, None) if world.provider.script("drop", "token") is None else None,
    "endpoint hangs": lambda world: connected(world) if world.provider.script("hang", "token") is None else None,
    "endpoint fails": lambda world: (
        connected(world) if world.provider.script("server_error", "token") is None else None
    ),
    "no token in the answer": lambda world: (
        connected(world) if world.provider.script("no_token", "token") is None else None
    ),
    **{
        f"endpoint quotes {status} {error} {style}": lambda world, status=status, error=error, style=style: connected(
            world, quoting(status, style, error)
        )
        for status, error in [(200, "x"), (400, "invalid_grant"), (401, "invalid_client"), (500, "server_error")]
        for style in STYLES
    },
    "begin: a return_to elsewhere": lambda world: world.tries(
        lambda: world.keeper.begin_authorization("acme", "ann", return_to="https://evil.example", session=SESSION)
    ),
    "begin: unknown registration": lambda world: world.tries(
        lambda: world.keeper.begin_authorization("nobody", "ann", session=SESSION)
    ),
    "begin: a member that is none": lambda world: world.tries(
        lambda: world.keeper.begin_authorization("acme", "", session=SESSION)
    ),
    "begin: scopes that are none": lambda world: world.tries(
        lambda: world.keeper.begin_authorization("acme", "ann", scopes=[1], session=SESSION)
    ),
}
"""How members connect, or do not."""


@pytest.mark.parametrize("act", CONNECTIONS.values(), ids=CONNECTIONS)
def test_connecting(stage: Callable[..., Stage], act: Callable[[Stage], Any]) -> None:
    """State, code, verifier and session, in authorizations that end well or badly."""
    world = stage()
    act(world)
    assert world.leaks() == []


# --- saving ----------------------------------------------------------------------------------------------------------

ACCESS, REFRESH = f"{MARK}-saved-access-1", f"{MARK}-saved-refresh-1"
RESPONSES: dict[str, Any] = {
    "good": {"access_token": ACCESS, "refresh_token": REFRESH, "expires_in": 60, "id_token": f"a.{MARK}.c"},
    "access token has a blank": {"access_token": f"{ACCESS} ", "refresh_token": REFRESH},
    "access token has a line break": {"access_token": f"{ACCESS}\r\nX: y", "refresh_token": REFRESH},
    "access token is too long": {"access_token": ACCESS * 1000, "refresh_token": REFRESH},
    "access token is bytes": {"access_token": ACCESS.encode(), "refresh_token": REFRESH},
    "access token is a list": {"access_token": [ACCESS], "refresh_token": REFRESH},
    "access token is missing": {"refresh_token": REFRESH},
    "refresh token is a dict": {"access_token": ACCESS, "refresh_token": {"is": REFRESH}},
    "expires_in is the token": {"access_token": ACCESS, "expires_in": REFRESH},
    "expires_at is the token": {"access_token": ACCESS, "expires_at": REFRESH},
    "scope is a dict": {"access_token": ACCESS, "scope": {REFRESH: 1}},
    "token_type is the token": {"access_token": ACCESS, "token_type": [REFRESH]},
    "an error": {"error": "invalid_grant", "error_description": f"{REFRESH} is dead"},
    "nested": {"data": {"access_token": ACCESS}},
    "a text": json.dumps({"access_token": ACCESS}),
    "bytes": json.dumps({"access_token": ACCESS}).encode(),
    "pairs": [("access_token", ACCESS)],
    "nothing": None,
}
"""Token responses that a host may pass."""


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_saving(stage: Callable[..., Stage], response: Any) -> None:
    """Token responses good and bad, for members and registrations good and bad."""
    world = stage()
    for registration, member in [("acme", "ann"), ("nobody", "ann"), ("acme", ""), ("acme", None)]:
        world.tries(lambda r=registration, m=member: world.keeper.save_tokens(r, m, response), "save_tokens")
        world.tries(lambda r=registration, m=member: world.keeper.save_tokens(r, m, response, keep_refresh_token=True))
    assert world.leaks() == []


# --- what the operator may get wrong, and what a machine may do ------------------------------------------------------


def no_key(world: Stage) -> None:
    """The key is not there."""
    world.connect("ann")
    world.keeper = world.another(keys=Keyring([("k2", KEY[::-1])]))
    world.lookout.plant("the other key", KEY[::-1])
    renewals(world)


def another_key(world: Stage) -> None:
    """Another key under the same id."""
    world.connect("ann")
    world.keeper = world.another(keys=Keyring([("k1", KEY[::-1])]))
    renewals(world)


def tampered(world: Stage) -> None:
    """A changed row."""
    world.connect("ann")
    with sqlite3.connect(world.vault / "tokens.db") as connection:
        connection.execute("UPDATE tokenkeeper_grant SET access_token = refresh_token, refresh_token = access_token")
    connection.close()
    renewals(world)


def tampered_authorization(world: Stage) -> None:
    """A changed verifier."""
    callback = world.provider.consent(world.begin().url, member="ann")
    with sqlite3.connect(world.vault / "tokens.db") as connection:
        connection.execute("UPDATE tokenkeeper_authorization SET verifier = substr(verifier, 1, length(verifier) - 1)")
    connection.close()
    world.finish(callback)


def full(world: Stage) -> None:
    """A database that takes no more."""
    world.connect("ann")
    engine = world.keeper._room.engine

    @event.listens_for(engine, "checkout")
    def limit(connection: Any, *_: Any) -> None:
        connection.execute("PRAGMA max_page_count=1")

    big = {"access_token": f"{MARK}-{'t' * 16_000}", "refresh_token": f"{MARK}-{'r' * 16_000}"}
    world.tries(lambda: world.keeper.save_tokens("acme", "bob", big))
    connected(world)
    renewals(world)


def read_only(world: Stage) -> None:
    """A database that cannot be written."""
    world.connect("ann")
    engine = create_engine(f"sqlite:///file:{world.vault / 'tokens.db'}?mode=ro&uri=true", echo="debug")
    world.keeper = world.another(database=engine)
    world.tries(lambda: world.keeper.save_tokens("acme", "bob", RESPONSES["good"]))
    world.tries(world.begin)
    renewals(world)
    engine.dispose()


def hosts_engine(world: Stage) -> None:
    """The host's own engine, which logs every parameter and quotes them in its errors."""
    engine = create_engine(world.url, echo="debug")
    world.keeper = world.another(database=engine)
    world.connect("ann")
    connected(world)
    renewals(world)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE tokenkeeper_grant RENAME TO gone")
    world.tries(lambda: world.keeper.save_tokens("acme", "bob", RESPONSES["good"]))
    renewals(world)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO tokenkeeper_grant")
    world.keeper.close() if world.twin == "sync" else world.keeper.sync.close()
    engine.dispose()


def no_schema(world: Stage) -> None:
    """A database without the tables."""
    world.keeper = world.another(database=f"sqlite:///{world.vault / 'empty.db'}")
    world.tries(lambda: world.keeper.save_tokens("acme", "bob", RESPONSES["good"]))
    world.tries(lambda: world.keeper.begin_authorization("acme", "bob", session=SESSION))
    world.finish(f"http://127.0.0.1:8000/callback?code={MARK}-code-1&state={MARK}-state-1")


def store_gone(world: Stage) -> None:
    """The store cannot be written between the answer and the save; the tokens wait in the spill folder."""
    world.connect("ann")
    world.clock.advance(3600)
    gate = world.provider.hold("token", at="answer")
    lock = sqlite3.connect(world.vault / "tokens.db", timeout=0, check_same_thread=False)
    failures = []
    store = world.keeper._room.store
    save = store.save_renewal

    def fail_first(*args: Any) -> Any:
        if len(failures) < 2:
            failures.append(world.lookout.folder(world.vault))
            raise TokenKeeperError("the store is away", cause="store")
        return save(*args)

    store.save_renewal = fail_first
    gate.release()
    world.tries(lambda: world.keeper.access_token("acme", "ann"))
    lock.close()
    assert len(failures) == 2


def spill_is_a_file(world: Stage) -> None:
    """The spill folder cannot be made."""
    (world.vault / "file").write_text("")
    world.keeper = world.another(spill_directory=world.vault / "file" / "spill")
    world.connect("ann")
    world.clock.advance(3600)
    renewals(world)


def spill_replayed(world: Stage) -> None:
    """Tokens are left in the spill folder, and stored by the next process; some files are damaged."""
    world.connect("ann")
    world.clock.advance(3600)
    spill = world.keeper._room.spill
    assert spill is not None
    kept = type(spill).remove
    type(spill).remove = lambda self, save_id: None
    try:
        renewals(world)
    finally:
        type(spill).remove = kept
    world.lookout.folder(world.vault / "spill")
    (world.vault / "spill" / "bad.sealed").write_text("{")
    (world.vault / "spill" / "odd.sealed").write_text('{"version": 1}')
    world.another()._room.store.now()


def callback_raises(world: Stage) -> None:
    """The host's callbacks raise."""

    @world.keeper.on(Event)
    def broken(event: Event) -> None:
        raise RuntimeError(f"the host's own, about {event}")

    world.connect("ann")
    world.provider.revoke()
    world.clock.advance(3600)
    connected(world)
    renewals(world)


def callback_raises_async(world: Stage) -> None:
    """The host's async callbacks raise."""

    @world.keeper.on(Event)
    async def broken(event: Event) -> None:
        raise RuntimeError(f"the host's own, about {event}")

    world.connect("ann")
    world.clock.advance(3600)
    renewals(world)


def closed(world: Stage) -> None:
    """Nothing is begun after the end."""
    world.connect("ann")
    world.clock.advance(3600)
    world.does(world.keeper.close())
    world.tries(lambda: world.keeper.save_tokens("acme", "ann", RESPONSES["good"]))
    world.tries(lambda: world.keeper.begin_authorization("acme", "ann", session=SESSION))
    world.finish(f"http://127.0.0.1:8000/callback?code={MARK}-code-1&state={MARK}-state-1")
    renewals(world)


def closed_with_work(world: Stage) -> None:
    """Closed while a renewal is under way."""
    world.connect("ann")
    world.clock.advance(3600)
    gate = world.provider.hold("token", at="answer")
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(keeper.access_token("acme", "ann"))
        except Exception as error:
            outcome.append(error)
            world.lookout.error("work under way", error)

    thread = threading.Thread(target=work)
    thread.start()
    gate.wait_until_held()
    closing = threading.Thread(target=keeper.close)
    closing.start()
    gate.release()
    thread.join()
    closing.join()
    assert len(outcome) == 1


def impatient(world: Stage) -> None:
    """A caller whose patience ends before the renewal does."""
    world.keeper = world.another(patience=0.01)
    world.connect("ann")
    world.clock.advance(3600)
    with world.provider.hold("token", at="answer") as gate:
        world.tries(lambda: world.keeper.access_token("acme", "ann"))
        gate.wait_until_held()
    renewals(world)


def no_way_there(world: Stage) -> None:
    """A token endpoint that cannot be reached, has no name, speaks no TLS, or stands behind a proxy with a password."""
    world.connect("ann")
    world.clock.advance(3600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTPS_PROXY", f"http://me:{MARK}-proxy@127.0.0.1:1")
        for endpoint in (
            "http://127.0.0.1:1/token",
            world.base.replace("http:", "https:") + "/token",
            "https://nowhere.invalid/token",
        ):
            provider = world.provider.as_provider(token_endpoint=endpoint)
            registration = world.provider.registration("acme", provider=provider, token_parameters={"shop": PARAMETER})
            world.keeper = world.another(registrations=[registration])
            renewals(world)
            connected(world)
        patch.setenv("HTTPS_PROXY", f"{MARK}://me:password@proxy")
        world.clock.advance(4000)
        renewals(world)
        connected(world)


def wrong_scheme(world: Stage) -> None:
    """A call that carries another credential than the token, as a netrc entry makes requests do."""
    world.connect("ann")
    other = base64.b64encode(f"me:{MARK}-netrc-password".encode()).decode()
    for scheme, credential in [("Basic", other), ("Bearer", f"{MARK}-another-token"), ("<AccessToken", f"{MARK}-x>")]:
        world.provider.refuse_next(status=401, body={"error": "invalid_token"})
        if world.twin == "sync":

            @world.keeper.guard("acme")
            def call(token: AccessToken, member: str, header: str) -> Any:
                return httpx2.get(f"{world.base}/api/me", headers={"Authorization": header})

        else:

            @world.keeper.guard("acme")
            async def call(token: AccessToken, member: str, header: str) -> Any:
                async with httpx2.AsyncClient() as client:
                    return await client.get(f"{world.base}/api/me", headers={"Authorization": header})

        # The header is an argument of the user's own call, which stands in the frames: hidden, to see all else.
        world.tries(lambda call=call, text=f"{scheme} {credential}": call("ann", _Hidden(text)), "another credential")


class _Hidden(str):
    """A text whose repr is the user's business."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


def mapper_raises(world: Stage) -> None:
    """An ``answer=`` of the host's that raises, or returns nonsense, of something whose repr has the token."""
    world.connect("ann")

    def raising(value: Any) -> Any:
        raise LookupError("no answer here")

    def mappers() -> list[Callable[[Any], Any]]:
        return [raising, lambda value: 5, lambda value: (401, {}, b""), lambda value: (401, 5, f"{MARK}-body-1")]

    for returned, cached, mapper in itertools.product((True, False), (True, False), mappers()):

        def call(token: AccessToken, member: str, returned: bool = returned) -> Any:
            answer = SdkError("401")
            answer.headers = dict(token.headers)
            if returned:
                return answer
            raise answer

        async def acall(token: AccessToken, member: str, call: Any = call) -> Any:
            return call(token, member)

        world.keeper = world.another()
        if cached:
            world.does(world.keeper.access_token("acme", "ann"))
        guarded = world.keeper.guard("acme", answer=mapper)(call if world.twin == "sync" else acall)
        world.tries(lambda guarded=guarded: guarded("ann"), "answer=")


class SdkError(Exception):
    """An SDK's error (or result) whose repr has the request's headers."""

    headers: dict[str, str]

    def __repr__(self) -> str:
        return f"SdkError({self.headers})"


def bad_registrations(world: Stage) -> None:
    """Registrations, providers and keepers that cannot be made."""
    good: dict[str, Any] = {"provider": Provider("x"), "client_id": "i"}
    for arguments in [
        {"name": "", "client_secret": SECRET},
        {"name": "a\n", "client_secret": [SECRET], "private_key": SECRET},
        {"name": "a", "client_secret": SECRET.encode()},
        {"name": "a", "client_secret": [SECRET.encode()]},
        {"name": "a", "client_secret": {SECRET: 1}, "scopes": 5},
        {"name": "a", "client_secret": SECRET, "scopes": 5},
        {"name": "a", "client_secret": SECRET, "parameters": 5, "token_parameters": {"x": PARAMETER}},
        {"name": "a", "token_parameters": [PARAMETER]},
        {"name": "a", "private_key": SECRET.encode()},
    ]:
        world.tries(lambda arguments=arguments: Registration(**{**good, **arguments}), "Registration")
    for provider in [
        Provider("x", token_endpoint="http://auth.example/token"),
        Provider("x", extends="nobody"),
        Provider("x", rotation="sometimes"),
    ]:
        registration = Registration("a", **{**good, "provider": provider, "client_secret": SECRET})
        world.tries(
            lambda registration=registration: TokenKeeper(
                f"postgresql://me:{MARK}-database@127.0.0.1:1/x", keys=world.keyring, registrations=[registration]
            ),
            "TokenKeeper",
        )


def bad_database(world: Stage) -> None:
    """A database's URL holds a password."""
    password = f"{MARK}-database"
    for url in (
        f"postgresql://me:{password}@127.0.0.1:1/x",
        f"mysql+pymysql://me:{password}@127.0.0.1:1/x",
        f"oracle+nothing://me:{password}@x/y",
        f"not a url {password}",
        f"sqlite:///:memory:?{password}",
        f"postgresql://me:{password}@127.0.0.1:port/x",
    ):
        for kind in (TokenKeeper, AsyncTokenKeeper):
            keeper = kind(url, keys=world.keyring, registrations=[world.registration])
            world.sees("a keeper", keeper)
            world.tries(lambda keeper=keeper: keeper.grant("acme", "ann"), "grant")
            world.tries(lambda keeper=keeper: keeper.create_schema(), "create_schema")
            world.tries(lambda keeper=keeper: keeper.save_tokens("acme", "ann", RESPONSES["good"]), "save_tokens")
            world.does(keeper.close())


def bad_keyrings(world: Stage) -> None:
    """Keys that cannot be used."""
    encoded = base64.b64encode(KEY).decode()
    for keys in [
        [("k1", KEY), ("k1", KEY)],
        [("k1", KEY[:-1])],
        [("k1", encoded)],
        [(KEY, "k1")],
        [(encoded, KEY)],
        {"k 1": KEY},
        {"k1": 5, "k2": KEY},
        encoded,
        KEY,
        [KEY],
        [5],
        None,
    ]:
        world.tries(lambda keys=keys: Keyring(keys), "Keyring")
    for text in [
        encoded,
        f"k1:{encoded}x",
        f"k1:{encoded},k1:{encoded}",
        f"k1={encoded}",
        f":{encoded}",
        "k1:",
        KEY,
        5,
    ]:
        world.tries(lambda text=text: Keyring.parse(text), "Keyring.parse")
        world.tries(lambda text=text: Keyring.from_env("KEYS", {"KEYS": text}), "Keyring.from_env")


def deleted(world: Stage) -> None:
    """Grants that are forgotten, replaced, renewed."""
    world.connect("ann", "bob", "cid")
    world.clock.advance(3600)
    renewals(world)
    for member in ("ann", "bob", "ann"):
        world.tries(lambda member=member: world.keeper.forget("acme", member))
        world.lookout.folder(world.vault)


def expiring(world: Stage) -> None:
    """Tokens that near their end, aging ones that are renewed in the background, and members without refresh tokens."""
    world.connect("ann", expires_in=1000)
    world.connect("bob", refresh_token=False, expires_in=1000)
    for _ in range(3):
        world.clock.advance(280)
        for member in ("ann", "bob"):
            world.tries(lambda member=member: world.keeper.access_token("acme", member))


def cancelled(world: Stage) -> None:
    """A caller that is cancelled while it waits for a renewal (async), or the same without the cancelling (sync)."""
    world.connect("ann")
    world.clock.advance(3600)
    if world.twin == "sync":
        return renewals(world)

    async def cancel() -> None:
        task = asyncio.create_task(world.keeper.access_token("acme", "ann"))
        await asyncio.to_thread(gate.wait_until_held)
        task.cancel("enough")
        try:
            await task
        except asyncio.CancelledError as error:
            world.lookout.error("a cancelled caller", error)

    with world.provider.hold("token", at="answer") as gate:
        world.runner.run(cancel())
    return renewals(world)


def slow_in_debug(world: Stage) -> None:
    """asyncio's debug mode logs slow callbacks with what they were called with."""
    world.connect("ann")
    if world.twin == "async":
        world.runner.get_loop().slow_callback_duration = 0.0
    connected(world)
    world.clock.advance(3600)
    renewals(world)


SITUATIONS: list[Callable[[Stage], None]] = [
    no_key,
    another_key,
    tampered,
    tampered_authorization,
    full,
    read_only,
    hosts_engine,
    no_schema,
    store_gone,
    spill_is_a_file,
    spill_replayed,
    callback_raises,
    callback_raises_async,
    closed,
    closed_with_work,
    impatient,
    no_way_there,
    wrong_scheme,
    mapper_raises,
    bad_registrations,
    bad_database,
    bad_keyrings,
    deleted,
    expiring,
    cancelled,
    slow_in_debug,
]
"""Everything else."""


@pytest.mark.parametrize("act", SITUATIONS, ids=lambda act: act.__name__)
def test_situations(stage: Callable[..., Stage], act: Callable[[Stage], None]) -> None:
    """What the operator gets wrong, what a machine does, and what a host's own code does."""
    world = stage()
    act(world)
    assert world.leaks() == []


# --- tokens that look like words -------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["text", "challenge"])
@pytest.mark.parametrize("surface", ["/api/", "/token"])
@pytest.mark.parametrize("status", [400, 401, 500])
def test_tokens_that_look_like_words(stage: Callable[..., Stage], surface: str, status: int, style: str) -> None:
    """A short token looks like any word: it is masked because it is known, not because of its looks."""
    world = stage(provider={"prefix": "kitty-"}, declared={"header": "X-Shop", "scheme": ""})
    world.lookout.plant("an access token", "kitty-access-")
    world.lookout.plant("a refresh token", "kitty-refresh-")
    world.lookout.deaf_to = {"httpcore", "httpcore2"} if surface == "/api/" else set()
    world.provider.quotes[surface] = quoting(status, style, "invalid_grant" if surface == "/token" else "invalid_token")
    if surface == "/api/":
        calls(world, diagnose=False)
    world.connect("ann")
    world.clock.advance(3600)
    renewals(world)
    assert world.leaks() == []


# --- the command -----------------------------------------------------------------------------------------------------

GOOD = [{"member": "bob", "access_token": ACCESS, "refresh_token": REFRESH, "expires_at": 4e9}]
BAD: list[Any] = [
    {"member": "cid", "access_token": f"{ACCESS} "},
    {"member": "cid", "access_token": [ACCESS]},
    {"member": "", "access_token": ACCESS},
    {"member": "cid", "access_token": ACCESS, "client_secret": SECRET},
    {"member": "cid", "access_token": ACCESS, "expires_at": ACCESS},
    {"member": "cid", "access_token": ACCESS, "expires_at": -1},
    {"member": [ACCESS], "access_token": ACCESS},
    [ACCESS],
    ACCESS,
]


def lines(*rows: Any) -> str:
    """JSON Lines, and one that is none."""
    return "\n".join([*map(json.dumps, rows), f"{{'access_token': '{ACCESS}'}}"])


def printed_by_curl(status: int, body: str) -> str:
    """An answer that quotes a token, as ``curl -i`` prints it."""
    return (
        f"HTTP/1.1 {status} No\r\nContent-Type: text/plain\r\nSet-Cookie: id={MARK}-cookie-1\r\n"
        f'WWW-Authenticate: Bearer error="invalid_token", error_description="{ACCESS} is unknown"\r\n\r\n{body}'
    )


COMMANDS: dict[str, tuple[list[str], str]] = {
    "doctor": (["doctor"], ""),
    "keys list": (["keys", "list"], ""),
    "providers list": (["providers", "list"], ""),
    "grants import, good": (["grants", "import"], lines(*GOOD)),
    "grants import, again": (["grants", "import"], lines(*GOOD)),
    "grants import, to replace": (["grants", "import", "--replace"], lines(*GOOD)),
    "grants import, bad": (["grants", "import"], lines(*BAD)),
    "grants import, too long": (["grants", "import"], ACCESS * 60_000),
    "grants import, no text": (["grants", "import"], f"\x00\udcff{ACCESS}"),
    "grants import, elsewhere": (["grants", "import", "--registration", "nobody"], lines(*GOOD)),
    "grants list": (["grants", "list"], ""),
    "grants show": (["grants", "show", "fake", "ann"], ""),
    "grants show, a stranger": (["grants", "show", "fake", "nobody"], ""),
    "grants refresh": (["grants", "refresh", "fake", "ann"], ""),
    "grants refresh, refused": (["grants", "refresh", "fake", "bob"], ""),
    "grants list, marked": (["grants", "list", "--status", "needs_reauthentication"], ""),
    **{
        f"explain {status} {surface}": (
            ["explain", "--surface", surface],
            printed_by_curl(status, f'{{"error": "invalid_grant", "error_description": "no token {REFRESH}"}}'),
        )
        for status in (200, 400, 401, 403, 500)
        for surface in ("api", "token")
    },
    "explain, no answer": (["explain"], ACCESS),
    "explain, plain": (["explain"], printed_by_curl(401, f"Token {ACCESS} expired")),
    "explain, of a stranger": (["explain", "--provider", "nobody"], printed_by_curl(401, f"Bearer {ACCESS}")),
    "connect": (["connect", "fake", "ann", "--timeout", "20"], ""),
    "connect, a stranger": (["connect", "nobody", "ann"], ""),
    "events list": (["events", "list"], ""),
    "events list, in full": (["events", "list", "--full"], ""),
    "grants forget": (["grants", "forget", "fake", "ann", "--yes"], ""),
    "no such option": (["grants", "list", "--token", ACCESS[:4]], ""),
}
"""What an operator may do, in this order: the words, and what stands on standard input."""

HARD: list[str] = [
    "nothing",
    "no secret",
    "no key",
    "another key",
    "no database",
    "a locked database",
    "the provider quotes",
]
"""What may be wrong meanwhile."""


class Hall:
    """A folder with settings, a provider over HTTP, and a lookout over whatever the command prints and logs."""

    def __init__(
        self, folder: Path, template: Path, monkeypatch: pytest.MonkeyPatch, base: str, provider: Parrot
    ) -> None:
        self.lookout = Lookout()
        self.vault = folder / "vault"
        self.vault.mkdir()
        shutil.copy(template, self.vault / "tokens.db")
        monkeypatch.chdir(folder)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            redirect_uri = f"http://127.0.0.1:{probe.getsockname()[1]}/callback"
        monkeypatch.setenv("FAKE_SECRET", SECRET)
        monkeypatch.setenv("FAKE_KEYS", f"k1:{base64.b64encode(KEY).decode()}")
        monkeypatch.setattr(webbrowser, "open", self._browse)
        said, seen = Output.error, self.lookout.error

        def error_said(output: Output, error: TokenKeeperError) -> None:
            seen("the command", error)
            said(output, error)

        monkeypatch.setattr(Output, "error", error_said)
        self.provider = provider
        self.browsers: list[threading.Thread] = []
        (folder / "tokenkeeper.toml").write_text(f"""
            database_url = "sqlite:///vault/tokens.db"
            keys = "env:FAKE_KEYS"
            spill_directory = "vault/spill"
            [registrations.fake]
            client_id = "client-1"
            client_secret = "env:FAKE_SECRET"
            redirect_uri = "{redirect_uri}"
            scopes = ["read"]
            [providers.fake]
            authorization_endpoint = "{base}/authorize"
            token_endpoint = "{base}/token"
        """)

    def _browse(self, url: str) -> None:
        """Go through sign-in and consent, and come back; quietly."""
        self.lookout.plant("a state", parse_qs(urlsplit(url).query)["state"][0])

        def walk() -> None:
            with (
                contextlib.suppress(urllib.error.HTTPError),
                urllib.request.urlopen(self.provider.consent(url, member="ann"), timeout=20) as page,
            ):
                self.lookout.text("the page", page.read())

        self.browsers.append(threading.Thread(target=walk))
        self.browsers[-1].start()

    def runs(self, words: list[str], stdin: str) -> None:
        """Run the command, and look at what comes of it; the URL that the member must open is passed over."""
        done = CliRunner().invoke(cli, words, input=stdin.encode("utf-8", "surrogatepass"), prog_name="tokenkeeper")
        for name, text in [("stdout", done.stdout), ("stderr", done.stderr)]:
            seen = re.sub(r"http://127[^\s\"]*/authorize\?[^\s\"]*", "<url>", text.replace("\n", ""))
            self.lookout.text(f"{name} of {' '.join(words[:2])}", seen)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            self.lookout.found.append(f"{' '.join(words[:2])} ended with {done.exception!r}")
        if done.exception is not None:
            self.lookout.error(" ".join(words[:2]), done.exception)
        for browser in self.browsers:
            browser.join()


@pytest.mark.parametrize("json_too", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("wrong", HARD)
def test_the_command(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, json_too: bool
) -> None:
    """Nothing that the command prints or logs has a secret, whatever is wrong."""
    provider = Parrot(prefix=f"{MARK}-", client_secret=SECRET)
    with provider.serve() as base:
        hall = Hall(tmp_path, template, monkeypatch, base, provider)
        with hall.lookout.listening():
            with load().keeper() as keeper:
                keeper.save_tokens("fake", "ann", provider.issue(member="ann"))
            locked = contextlib.closing(sqlite3.connect(hall.vault / "tokens.db", isolation_level=None))
            with locked as lock:
                match wrong:
                    case "no secret":
                        monkeypatch.delenv("FAKE_SECRET")
                    case "no key":
                        monkeypatch.setenv("FAKE_KEYS", base64.b64encode(KEY).decode())
                    case "another key":
                        monkeypatch.setenv("FAKE_KEYS", f"k1:{base64.b64encode(KEY[::-1]).decode()}")
                    case "no database":
                        (hall.vault / "tokens.db").write_bytes(b"no database" * 500)
                    case "a locked database":
                        monkeypatch.setattr(engine, "BUSY_SECONDS", 0.01)
                        lock.execute("BEGIN EXCLUSIVE")
                    case "the provider quotes":
                        provider.quotes["/token"] = quoting(400, "json", "invalid_grant")
                for words, stdin in COMMANDS.values():
                    hall.runs([*words, *(["--json"] if json_too else [])], stdin)
            hall.lookout.folder(hall.vault)
    assert hall.lookout.found == []


# --- the file of the database ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["forget", "renew", "save_tokens"])
def test_what_is_deleted_leaves_no_bytes(stage: Callable[..., Stage], end: str) -> None:
    """SQLite's secure_delete: when the database is closed, not even the sealed bytes of old tokens are in its file."""
    world = stage()
    world.connect("ann", "bob")
    path = world.vault / "tokens.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        [sealed] = connection.execute(
            "SELECT access_token, refresh_token FROM tokenkeeper_grant WHERE member = ?", (b"ann",)
        ).fetchall()
    if end == "save_tokens":
        world.does(world.keeper.save_tokens("acme", "ann", RESPONSES["good"]))
    else:
        world.does(getattr(world.keeper, end)("acme", "ann"))
    world.does(world.keeper.close())
    assert sorted(file.name for file in world.vault.iterdir() if file.is_file()) == ["tokens.db"]
    for blob in sealed:
        assert blob not in path.read_bytes()
    assert world.leaks() == []


# --- an endpoint with a password -------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["https://me:{}@auth.example/token", "https://me:{}@auth.example:port/token"])
def test_an_endpoint_with_a_password_is_not_quoted(url: str) -> None:
    """It is refused, and the message does not repeat it."""
    with pytest.raises(ConfigurationError) as raised:
        TokenKeeper(
            "sqlite:///x.db",
            registrations=[Registration("a", provider=Provider("x", token_endpoint=url.format(MARK)), client_id="i")],
        )
    assert MARK not in str(raised.value)
    assert MARK not in raised.value.fix


# --- the lookout itself ----------------------------------------------------------------------------------------------


def leaky(where: str = "leaky.py") -> Callable[..., Any]:
    """A function that stands in a file of ours, and raises while it holds a secret."""
    code = "def leak(secret, error=ValueError('oops'), cause=None):\n    kept = [secret]\n    raise error from cause\n"
    namespace: dict[str, Any] = {}
    exec(compile(code, f"{PACKAGE}{where}", "exec"), namespace)
    return namespace["leak"]


def raised(act: Callable[[], Any]) -> BaseException:
    """The error that an act raises."""
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def logged_error(look: Lookout) -> None:
    """Log an error that came through a frame with a secret."""
    logger = logging.getLogger("tokenkeeper.leaky")
    try:
        leaky()(MARK)
    except ValueError:
        logger.exception("failed")
    look.logged_errors()


@dataclasses.dataclass
class Leaky:
    """An object that shows a secret in one way or another."""

    secret: str = dataclasses.field(default=MARK, repr=False)


class Reprs:
    """An object that shows a secret in its repr."""

    def __repr__(self) -> str:
        return f"<{MARK}>"


PLANTED: dict[str, Callable[[Lookout], Any]] = {
    "text": lambda look: look.text("x", f"a {MARK} b"),
    "bytes": lambda look: look.text("x", f"a {MARK} b".encode()),
    "in other letters": lambda look: look.text("x", MARK.lower()),
    "hexadecimal": lambda look: look.text("x", f"x-{MARK}".encode().hex()),
    "UTF-16": lambda look: look.text("x", f"x {MARK}".encode("utf-16-le")),
    **{
        f"base64 after {shift}": lambda look, shift=shift: look.text(
            "x", base64.b64encode(b"x" * shift + MARK.encode())
        )
        for shift in range(4)
    },
    "url-safe base64": lambda look: look.text("x", base64.urlsafe_b64encode(f"é?{MARK}?é".encode())),
    "something random": lambda look: look.plant("it", "ab" * 8) or look.text("x", "a cab" + "ab" * 8),
    "repr": lambda look: look.thing("x", Reprs()),
    "an attribute": lambda look: look.thing("x", Leaky(), set(WAYS) - {"public attributes"}),
    "asdict": lambda look: look.thing("x", Leaky(), set(WAYS) - {"asdict"}),
    "vars": lambda look: look.thing("x", Leaky(), set(WAYS) - {"vars"}),
    "copy": lambda look: look.thing("x", Leaky(), set(WAYS) - {"copy"}),
    "pickle": lambda look: look.thing("x", Leaky(), set(WAYS) - {"pickle"}),
    "json": lambda look: look.thing("x", {"a": MARK}, set(WAYS) - {"json"}),
    "our error's message": lambda look: look.error("x", TokenKeeperError(f"no {MARK}")),
    "our error's attribute": lambda look: look.error("x", TokenKeeperError("no", cause=MARK)),
    "another error's message": lambda look: look.error("x", ValueError(MARK)),
    "a local": lambda look: look.error("x", raised(lambda: leaky()(MARK))),
    "a local of the clients": lambda look: look.error("x", raised(lambda: leaky("clients/x.py")(MARK))),
    "a local under the cause": lambda look: look.error(
        "x", raised(lambda: leaky()(1, TypeError("other"), raised(lambda: leaky()(MARK))))
    ),
    "a log": lambda look: logging.getLogger("sqlalchemy.pool").debug("got %s", MARK),
    "a log's extra": lambda look: logging.getLogger("any").debug("got", extra={"more": {"it": MARK}}),
    "a log of a library turned down": lambda look: logging.getLogger("sqlalchemy").debug(MARK),
    "a logged error's frames": logged_error,
}
"""A canary in each medium."""


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_a_planted_canary_is_found(plant: Callable[[Lookout], Any]) -> None:
    """So that the tests above can fail."""
    lookout = Lookout()
    with lookout.listening():
        plant(lookout)
    assert lookout.found


def in_a_file(name: str) -> Callable[[Stage], None]:
    """Write a canary into a file of the vault."""
    return lambda world: (world.vault / name).write_bytes(b"\0" * 5000 + MARK.encode()) and None


def in_the_wal(world: Stage) -> None:
    """Write a canary into the database, so that it is in its WAL first."""
    with contextlib.closing(sqlite3.connect(world.vault / "tokens.db")) as connection:
        connection.execute("UPDATE tokenkeeper_grant SET account = ?", (MARK,))
        connection.commit()
        assert MARK.encode() in (world.vault / "tokens.db-wal").read_bytes()
        world.lookout.folder(world.vault)


def in_an_event(world: Stage) -> None:
    """Write a canary into the event table."""
    with contextlib.closing(sqlite3.connect(world.vault / "tokens.db")) as connection:
        connection.execute(
            "UPDATE tokenkeeper_event SET data = replace(data, '}', ', \"more\": \"' || ? || '\"}')", (MARK,)
        )
        connection.commit()


IN_THE_WORLD: dict[str, tuple[str, Callable[[Stage], Any]]] = {
    "stdout": ("stdout", lambda world: print(MARK)),
    "stderr": ("stderr", lambda world: print(MARK, file=sys.stderr)),
    "the file descriptor": ("stderr", lambda world: os.write(2, MARK.encode())),
    "a result": ("a result", lambda world: world.does(TokenKeeperError(MARK))),
    "the database": ("bytes of tokens.db", in_the_wal),
    "the WAL": ("bytes of tokens.db-wal", in_the_wal),
    "a spill file": ("bytes of x.sealed", in_a_file("x.sealed")),
    "a journal": ("bytes of tokens.db-journal", in_a_file("tokens.db-journal")),
    "the event table": ("the event table's", in_an_event),
    "an event": ("an event", lambda world: world.events.append(dataclasses.replace(world.events[0], member=MARK))),
}
"""A medium of a stage, what it is called, and how a canary gets there."""


@pytest.mark.parametrize(("medium", "plant"), IN_THE_WORLD.values(), ids=IN_THE_WORLD)
def test_a_canary_planted_in_a_stage_is_found(
    stage: Callable[..., Stage], medium: str, plant: Callable[[Stage], Any]
) -> None:
    """So that the tests above can fail."""
    world = stage()
    world.connect("ann")
    plant(world)
    assert any(medium in leak for leak in world.leaks())


def test_the_lookout_looks(stage: Callable[..., Stage]) -> None:
    """In an ordinary run it hears every library's logger, walks our frames, and looks at much."""
    world = stage()
    world.connect("ann")
    world.clock.advance(3600)
    world.provider.script("server_error", "token")
    renewals(world)
    requests_returned(AccessToken("x"), f"{world.base}/api/me", "ann").close()
    httpx2_returned(AccessToken("x"), f"{world.base}/api/me", "ann").close()
    assert world.leaks() == []
    assert {"sqlalchemy", "httpcore2", "httpx2", "urllib3", "asyncio"} - world.lookout.heard <= (
        {"asyncio"} if world.twin == "sync" else set()
    )
    assert world.lookout.frames > 10
    assert world.lookout.looked > 500
