"""A host of either twin: a keeper, one registration at a server, and its members."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import sqlalchemy
from interop_member import Browser
from interop_servers import PLAIN, Server, poll

from tokenkeeper import AccessToken, AsyncTokenKeeper, Event, Keyring, Provider, Registration, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.model import GrantKey

REDIRECT_URI = "http://127.0.0.1/oauth/callback"
NAME = "acme"
LIFE = 600.0
"""Seconds of an access token that a test does not want to see expire."""


@dataclass(frozen=True)
class Site:
    """What a server's documentation tells a host: its endpoints, and what to ask for."""

    server: Server
    endpoints: dict[str, str]
    api: str
    scopes: tuple[str, ...]
    authorization_parameters: dict[str, str] = field(default_factory=dict)
    issuer: str = ""
    """The path of the issuer."""
    withdraw: Callable[[Server, str], None] = lambda server, account: server.account(account, "withdraw")
    """How a member takes the permission back at the server."""

    def provider(self, **changed: Any) -> Provider:
        """The server as a host declares it."""
        issuer = {"issuer": f"{self.server.base}{self.issuer}"}
        addresses = {name: f"{self.server.base}{path}" for name, path in self.endpoints.items()}
        return Provider("interop", **{"rotation": "strict", **issuer, **addresses, **changed})

    def registration(
        self, client: str = "basic", *, declared: dict[str, Any] | None = None, **changed: Any
    ) -> Registration:
        """The host's registration as one of the server's clients."""
        known = self.server.clients[client]
        method = known.get("token_endpoint_auth_method", "client_secret_basic")
        options: dict[str, Any] = {
            "client_id": known["client_id"],
            "client_secret": known.get("client_secret"),
            "redirect_uri": REDIRECT_URI,
            "scopes": self.scopes,
            "authorization_parameters": self.authorization_parameters,
        }
        provider = self.provider(client_authentication=method, **(declared or {}))
        return Registration(NAME, provider=provider, **options | changed)


class Desk:
    """A keeper (of either twin) on a database, and its members."""

    def __init__(self, site: Site, twin: str, database_url: str, **changed: Any) -> None:
        self.site = site
        self.twin = twin
        self.database_url = database_url
        self.key = generate_key("interop")
        self.runner = asyncio.Runner()
        self.keepers: list[Any] = []
        self.events: list[Event] = []
        self.http = httpx2.Client(verify=PLAIN, base_url=site.server.base, timeout=30)
        self.keeper = self.another(**changed)
        self.does(self.keeper.create_schema())

    def another(self, registration: Registration | None = None, **changed: Any) -> Any:
        """Another keeper (think: another worker, or the next deployment) on the same database."""
        kind = TokenKeeper if self.twin == "sync" else AsyncTokenKeeper
        registration = registration or self.site.registration()
        options: dict[str, Any] = {"keys": Keyring.parse(self.key), "registrations": [registration], **changed}
        keeper = kind(self.database_url, **options)
        keeper.on(Event, self.events.append)
        self.keepers.append(keeper)
        return keeper

    def does(self, result: Any) -> Any:
        """The result of a method of either twin."""
        if inspect.isawaitable(result):
            return self.runner.run(_awaited(result))
        return result

    def call(self, member: str, path: str | None = None, keeper: Any = None) -> httpx2.Response:
        """Call the server's API for a member, guarded."""
        return self.guarded(path, keeper)(member)

    def guarded(self, path: str | None = None, keeper: Any = None) -> Callable[[str], httpx2.Response]:
        """A guarded function; its result as the sync caller of it would see it."""
        keeper, url = keeper or self.keeper, f"{self.site.server.base}{path or self.site.api}"
        if self.twin == "sync":

            @keeper.guard(NAME)
            def call(token: AccessToken, member: str) -> httpx2.Response:
                return self.http.get(url, auth=token)

            return call  # type: ignore[no-any-return]

        @keeper.guard(NAME)
        async def acall(token: AccessToken, member: str) -> httpx2.Response:
            async with httpx2.AsyncClient(verify=PLAIN, timeout=30) as client:
                return await client.get(url, auth=token)

        return lambda member: self.does(acall(member))

    def newcomer(self) -> str:
        """A member whom no other test knows, with an account of the same name at the server."""
        member = f"ann-{secrets.token_hex(4)}"
        self.site.server.account(member, "create")
        return member

    def begin(self, member: str, keeper: Any = None, **options: Any) -> str:
        """The URL that sends the member to the server."""
        begun = self.does((keeper or self.keeper).begin_authorization(NAME, member, **options))
        return str(begun.url)

    def finish(self, callback: str, member: str, keeper: Any = None) -> Any:
        """What became of the callback."""
        return self.does((keeper or self.keeper).finish_authorization(callback, member=member))

    def connect(self, member: str, keeper: Any = None, account: str | None = None, **options: Any) -> Any:
        """Send a member through the server's own pages; the grant."""
        with Browser(account or member) as browser:
            callback = browser.authorize(self.begin(member, keeper, **options), REDIRECT_URI)
            connection = self.finish(callback, member, keeper)
        assert connection.return_to == "/"
        return connection.grant

    def grant(self, member: str) -> Any:
        """The member's grant."""
        return self.does(self.keeper.grant(NAME, member))

    def tokens(self, member: str) -> tuple[str, str | None]:
        """The member's access token and refresh token as they are stored now, opened with the keyring."""
        store = self.keeper._room.store
        stored = store.load(GrantKey(NAME, member))
        access_token = store.open_access_token(stored, _nobody)
        if stored.sealed_refresh_token is None:
            return access_token.reveal(), None
        return access_token.reveal(), store.open_refresh_token(stored, _nobody).reveal()

    def sealed(self, member: str) -> tuple[bytes | None, bytes | None]:
        """The two sealed columns of a member's row."""
        keeper = self.keeper if self.twin == "sync" else self.keeper.sync
        with keeper.engine.connect() as connection:
            statement = "SELECT access_token, refresh_token FROM tokenkeeper_grant WHERE member = :member"
            row = connection.execute(sqlalchemy.text(statement), {"member": member.encode()}).one()
        return row[0], row[1]

    def dead(self, token: str) -> bool:
        """Whether the server's API refuses an access token."""
        return self.http.get(self.site.api, headers={"Authorization": f"Bearer {token}"}).status_code != 200

    def outlive(self, member: str) -> None:
        """Wait until the member's access token has expired, by the server's clock and by the keeper's."""
        (token, _), ends = self.tokens(member), self.grant(member).access_expires_at
        poll(lambda: self.dead(token))
        poll(lambda: ends < datetime.now(UTC))

    def refresh(self, refresh_token: str, client: str = "basic") -> httpx2.Response:
        """What a client without tokenkeeper does: present a refresh token."""
        known = self.site.server.clients[client]
        return self.http.post(
            urlsplit(self.site.provider().token_endpoint or "").path,
            data={
                "grant_type": "refresh_token",
                "refresh_token": refresh_token,
                "client_id": known["client_id"],
                "client_secret": known["client_secret"],
            },
        )

    def obtain(self, account: str, client: str = "basic") -> dict[str, Any]:
        """Tokens that a host got without tokenkeeper: the code exchange by hand."""
        known = self.site.server.clients[client]
        verifier = secrets.token_urlsafe(40)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        asked = {
            "response_type": "code",
            "client_id": known["client_id"],
            "redirect_uri": REDIRECT_URI,
            "scope": " ".join(self.site.scopes),
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            **self.site.authorization_parameters,
        }
        provider = self.site.provider()
        with Browser(account) as browser:
            callback = browser.authorize(f"{provider.authorization_endpoint}?{urlencode(asked)}", REDIRECT_URI)
        answer = self.http.post(
            str(provider.token_endpoint),
            data={
                "grant_type": "authorization_code",
                "code": dict(parse_qsl(urlsplit(callback).query))["code"],
                "redirect_uri": REDIRECT_URI,
                "code_verifier": verifier,
                "client_id": known["client_id"],
                "client_secret": known["client_secret"],
            },
        )
        tokens: dict[str, Any] = answer.raise_for_status().json()
        return tokens

    def close(self) -> None:
        """Close what was opened."""
        for keeper in self.keepers:
            self.does(keeper.close())
        self.runner.close()
        self.http.close()


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _nobody(*_: object) -> None:
    """Who is told of tampering: there is none."""
