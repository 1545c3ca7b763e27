"""A client middleware for aiohttp 3.12 and later."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from tokenkeeper.clients import AsyncKeeper, Member
from tokenkeeper.errors import TokenKeeperError
from tokenkeeper.model import AccessToken, Unshown

if TYPE_CHECKING:
    from aiohttp import ClientRequest, ClientResponse

Handler = Callable[["ClientRequest"], Awaitable["ClientResponse"]]
Middleware = Callable[["ClientRequest", Handler], Awaitable["ClientResponse"]]


def keeper_middleware(
    keeper: AsyncKeeper, registration: str, member: Member, *, origins: Iterable[str] = ()
) -> Middleware:
    """Return a middleware that puts a member's token on requests and deals with refusals as guard does.

    ``ClientSession(middlewares=[keeper_middleware(keeper, "linkedin", "ann")])``, or ``middlewares=`` of one request.
    It sees a refusal's body before ``raise_for_status`` hides it. Raises from the request what guard raises.

    Redirects pass here one by one, so the token goes only to *origins* (``"https://api.example.com"``), else to the
    origin of the first request, as in aiohttp's own digest middleware; other requests pass untouched. A body that is a
    used-up stream is not sent again. Errors that a provider hides in 200s are seen by guard only.
    """
    allowed = list(origins)

    async def middleware(request: ClientRequest, handler: Handler) -> ClientResponse:
        if not allowed:
            allowed.append(str(request.url.origin()))
        if not _among(request.url, allowed):
            return await handler(request)
        attempt = keeper.attempt(registration, member)
        coming: Any = attempt.token()
        if isinstance(coming, AccessToken):
            raise TypeError("aiohttp needs an AsyncTokenKeeper, not a TokenKeeper, which would block its loop")
        token: AccessToken = await coming
        # A response's repr has its headers, which may quote the token: an error's frames must not show them.
        answered = Unshown(await handler(token(request)))
        again = await _refused(attempt, answered, repeatable=not getattr(request.body, "consumed", False))
        if again is not None:
            answered.value.release()
            answered = Unshown(await handler(again(request)))
            await _refused(attempt, answered, repeatable=False)
        response: ClientResponse = answered.value
        return response

    return middleware


def _among(url: Any, origins: Iterable[str]) -> bool:
    """Say whether a URL lies at one of the origins (scheme, host and port)."""
    return any(type(url)(origin).origin() == url.origin() for origin in origins)


async def _refused(attempt: Any, answered: Unshown, *, repeatable: bool) -> AccessToken | None:
    try:
        token: AccessToken | None = await attempt.refused(answered.value, repeatable=repeatable)
    except TokenKeeperError:
        with contextlib.suppress(Exception):
            await answered.value.read()  # gives the connection back, and lets .response of the error be readable
        raise
    return token
