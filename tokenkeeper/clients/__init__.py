"""Auth objects and a middleware for HTTP clients, for hosts that prefer them to the decorator.

Each module belongs to one kind of client and is imported by name: ``tokenkeeper.clients.httpx`` (also for httpx2),
``tokenkeeper.clients.requests``, ``tokenkeeper.clients.aiohttp``. They decide nothing: an :class:`Attempt` of the
keeper runs the flow that guard runs.
"""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID

from tokenkeeper.model import AccessToken

Member = str | int | UUID


class Attempt(Protocol):
    """One call and at most one repetition of it, decided as guard decides."""

    def token(self) -> AccessToken:
        """Return the token to call with."""

    def refused(self, response: object, *, repeatable: bool = True) -> AccessToken | None:
        """Judge an answer: None passes it through, a token asks for the one repetition. Raises as guard does."""


class AsyncAttempt(Protocol):
    """The twin of :class:`Attempt`."""

    async def token(self) -> AccessToken:
        """Return the token to call with."""

    async def refused(self, response: object, *, repeatable: bool = True) -> AccessToken | None:
        """Judge an answer: None passes it through, a token asks for the one repetition. Raises as guard does."""


class Keeper(Protocol):
    """What the clients ask of a ``TokenKeeper``."""

    def attempt(self, registration: str, member: Member) -> Attempt:
        """Begin a call."""


class AsyncKeeper(Protocol):
    """What the clients ask of an ``AsyncTokenKeeper``."""

    def attempt(self, registration: str, member: Member) -> AsyncAttempt:
        """Begin a call."""


def carries(headers: object, token: AccessToken) -> bool:
    """Say whether a request's headers carry the token: a redirect to another origin has it taken away."""
    return any(name in headers for name in token.headers)  # type: ignore[operator]


def at_once(token: Any, problem: str) -> AccessToken:
    """Return a sync attempt's token; raises TypeError with *problem* if the keeper turns out to be the async one."""
    if isinstance(token, AccessToken):
        return token
    token.close()  # a coroutine that nobody will await
    raise TypeError(problem)
