"""No secret gets out: not in a log, a text, a pickle, a traceback's locals, an event, an answer of the command, a file.

Each test drives a part of the library with canaries, through tables in which one line is one situation, and looks
everywhere (``lookout.py``). The self-test at the end shows that what is looked at would be found.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from lookout import MARK, Lookout
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
from tokenkeeper.clients.aiohttp import keeper_middleware
from tokenkeeper.testing.dialects import API_ANSWERS, TOKEN_ANSWERS

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
    return httpx.get(url, auth=token)


def httpx_raised(token: AccessToken, url: str, member: str) -> Any:
    """httpx, raising for a status."""
    return httpx.get(url, headers=token.headers).raise_for_status()


def httpx2_returned(token: AccessToken, url: str, member: str) -> Any:
    """httpx2, the response as it is."""
    return httpx2.get(url, auth=token)


def httpx2_raised(token: AccessToken, url: str, member: str) -> Any:
    """httpx2, raising for a status."""
    return httpx2.get(url, headers=token.headers).raise_for_status()


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
    async with httpx.AsyncClient(auth=token) as client:
        return await client.get(url)


async def httpx2_async(token: AccessToken, url: str, member: str) -> Any:
    """httpx2's async client, raising for a status."""
    async with httpx2.AsyncClient(auth=token) as client:
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

    return httpx.get(url, auth=KeeperAuth(world.keeper, "acme", member))


def by_httpx2(world: Stage, url: str, member: str) -> Any:
    """The auth object of httpx2."""
    from tokenkeeper.clients.httpx import KeeperAuth

    return httpx2.get(url, auth=KeeperAuth(world.keeper, "acme", member))


async def by_httpx2_async(world: Stage, url: str, member: str) -> Any:
    """The same, async."""
    from tokenkeeper.clients.httpx import KeeperAuth

    async with httpx2.AsyncClient(auth=KeeperAuth(world.keeper, "acme", member)) as client:
        return await client.get(url)


async def by_aiohttp(world: Stage, url: str, member: str) -> Any:
    """The middleware of aiohttp."""
    async with aiohttp.ClientSession(middlewares=[keeper_middleware(world.keeper, "acme", member)]) as session:
        async with session.get(url) as response:
            return await response.read()


CLIENTS = {"sync": [by_requests, by_httpx, by_httpx2], "async": [by_httpx2_async, by_aiohttp]}


def calls(world: Stage, before: Callable[[str], None]) -> None:
    """Call the API with every library, each for a member of its own; *before* decides on the member's answers."""
    url = f"{world.base}/api/me"
    libraries: list[tuple[str, Callable[[str], Any]]] = []
    for function in GUARDED[world.twin]:
        guarded = world.keeper.guard("acme")(function)
        libraries.append((function.__name__, lambda member, guarded=guarded: guarded(url, member)))
    for client in CLIENTS[world.twin]:
        libraries.append((client.__name__, lambda member, client=client: client(world, url, member)))
    world.connect(*(name for name, _ in libraries))
    for name, call in libraries:
        before(name)
        result = world.tries(lambda call=call, name=name: call(name), name)
        with contextlib.suppress(Exception):
            world.sees(f"what {name} means", world.keeper.diagnose("acme", result))
        for given_back in (result, getattr(result, "response", None)):
            if world.twin == "sync" and hasattr(given_back, "close"):
                given_back.close()
    world.provider.clear_script()


@pytest.mark.parametrize("verdict", ["ok", *API_ANSWERS, "drop", "cut"])
def test_guarded_calls(stage: Callable[..., Stage], verdict: str) -> None:
    """Whatever the API says, once or twice, to whatever library, returned or raised."""
    for times in (1, 2):
        world = stage() if times == 1 else world
        calls(world, lambda member, times=times: world.provider.script(verdict, member=member, times=times))
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
        calls(world, lambda member: None)
    assert world.leaks() == []


def test_an_api_that_quotes_a_token_in_a_header_of_its_own(stage: Callable[..., Stage]) -> None:
    """A profile whose header has a harmless name, and an API that refuses everybody's new tokens."""
    world = stage(declared={"header": "X-Shop", "scheme": ""})
    world.provider.quotes["/api/"] = quoting(401, "text")
    calls(world, lambda member: None)
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


@pytest.mark.parametrize("prepare", RENEWALS.values(), ids=RENEWALS)
def test_renewals(stage: Callable[..., Stage], prepare: Callable[[Parrot], None]) -> None:
    """Renewals that succeed, and that fail in every way."""
    world = stage(provider={"rotation": "grace"})
    world.connect("ann")
    world.clock.advance(3600)
    prepare(world.provider)
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
        world.provider.quotes["/token"] = quoting(status, "json", "invalid_client" if status == 401 else "invalid_grant")
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
    "an object": changed(lambda url: Secret(url)),  # type: ignore[arg-type, return-value]
    "nothing": changed(lambda url: None),  # type: ignore[arg-type, return-value]
    "unknown member": changed(str, member=""),
    "endpoint drops": lambda world: connected(world, None) if world.provider.script("drop", "token") is None else None,
    "endpoint hangs": lambda world: connected(world) if world.provider.script("hang", "token") is None else None,
    "endpoint fails": lambda world: connected(world) if world.provider.script("server_error", "token") is None else None,
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
    world.tries(lambda: world.begin())
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
    """An ``answer=`` of the host's that raises, or returns nonsense, over an error that quotes the request."""
    world.connect("ann")

    def raising(value: Any) -> Any:
        raise LookupError("no answer here")

    for mapper in (raising, lambda value: 5, lambda value: (401, {}, b""), lambda value: (401, 5, f"{MARK}-body-1")):
        function = aiohttp_raised if world.twin == "async" else _raises_like_aiohttp
        guarded = world.keeper.guard("acme", answer=mapper)(function)
        world.provider.script("expired")
        world.tries(lambda guarded=guarded: guarded(f"{world.base}/api/me", "ann"), "answer=")


class SdkError(Exception):
    """An SDK's error whose repr has the request's headers."""

    def __repr__(self) -> str:
        return f"SdkError({self.headers})"


def _raises_like_aiohttp(token: AccessToken, url: str, member: str) -> Any:
    error = SdkError("401")
    error.headers = dict(token.headers)  # type: ignore[attr-defined]
    raise error


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
    for text in [encoded, f"k1:{encoded}x", f"k1:{encoded},k1:{encoded}", f"k1={encoded}", f":{encoded}", "k1:", KEY, 5]:
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
