"""A stand-in for the keeper that decides simply, and a server that refuses old tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from http_loopback import Asked, Loopback, Reply, serving

from tokenkeeper import answers
from tokenkeeper.errors import ReauthenticationRequired
from tokenkeeper.model import AccessToken

REFUSED = b'{"message": "expired"}'


@dataclass
class SimpleKeeper:
    """Hands out ``token-1``, after a refusal ``token-2``, and so on; a 401 to a repetition is the member's turn."""

    header: str = "Authorization"
    scheme: str = "Bearer"
    generation: int = 1
    seen: list[tuple[int | None, bytes | None, bool]] = field(default_factory=list)
    """Of each answer judged: status, body, and whether the request could be repeated."""

    def token(self) -> AccessToken:
        """The current token."""
        return AccessToken(f"token-{self.generation}", header=self.header, scheme=self.scheme)

    def judge(self, exchange: Any, response: object, tried: int, repeatable: bool) -> AccessToken | None:
        """Renew at the first 401 of a call, raise at the second."""
        self.seen.append((exchange.answer.status, exchange.answer.body, repeatable))
        if exchange.answer.status != 401:
            return None
        if tried:
            raise ReauthenticationRequired("refused again", registration="acme", member="ann", response=response)
        self.generation += 1
        return self.token() if repeatable else None

    def attempt(self, registration: str, member: object) -> SyncAttempt:
        """Begin a call."""
        assert (registration, member) == ("acme", "ann")
        return SyncAttempt(self)


class AsyncSimpleKeeper(SimpleKeeper):
    """The async twin."""

    def attempt(self, registration: str, member: object) -> Any:
        """Begin a call."""
        assert (registration, member) == ("acme", "ann")
        return AsyncAttempt(self)


@dataclass
class SyncAttempt:
    """What the clients use of a keeper."""

    keeper: SimpleKeeper
    tried: int = 0

    def token(self) -> AccessToken:
        """The token to call with."""
        return self.keeper.token()

    def refused(self, response: object, *, repeatable: bool = True) -> AccessToken | None:
        """Judge an answer."""
        token = self.keeper.judge(
            answers.read(response, lambda status: status >= 400), response, self.tried, repeatable
        )
        self.tried += token is not None
        return token


@dataclass
class AsyncAttempt:
    """What the clients use of an async keeper."""

    keeper: SimpleKeeper
    tried: int = 0

    async def token(self) -> AccessToken:
        """The token to call with."""
        return self.keeper.token()

    async def refused(self, response: object, *, repeatable: bool = True) -> AccessToken | None:
        """Judge an answer."""
        exchange = await answers.aread(response, lambda status: status >= 400)
        token = self.keeper.judge(exchange, response, self.tried, repeatable)
        self.tried += token is not None
        return token


@pytest.fixture
def keeper() -> SimpleKeeper:
    """A sync keeper."""
    return SimpleKeeper()


@pytest.fixture
def async_keeper() -> AsyncSimpleKeeper:
    """An async keeper."""
    return AsyncSimpleKeeper()


def takes(*tokens: str) -> Any:
    """An endpoint that takes these tokens, in any header, and refuses others; what it takes, it echoes."""

    def route(asked: Asked) -> Reply:
        carried = asked.headers.get("authorization", "") + asked.headers.get("x-token", "")
        if any(carried.endswith(token) for token in tokens):
            return Reply(200, asked.body or b"welcome")
        return Reply(401, REFUSED, (("WWW-Authenticate", "Bearer"), ("Set-Cookie", "seen=yes; Path=/")))

    return route


@pytest.fixture
def api() -> Iterator[Loopback]:
    """A provider's API."""
    with serving() as server:
        server.routes |= {
            "/first": takes("token-1"),
            "/second": takes("token-2"),
            "/never": takes(),
            "/hop": Reply(302, b"", (("Location", "/second"),)),
            "/forbidden": Reply(403, b"no"),
        }
        yield server


@pytest.fixture
def elsewhere(api: Loopback) -> Iterator[Loopback]:
    """Another origin, to which ``/away`` of the API redirects."""
    with serving() as server:
        server.routes["/landing"] = takes("token-1", "token-2")
        api.routes["/away"] = Reply(302, b"", (("Location", f"{server.url}/landing"),))
        yield server
