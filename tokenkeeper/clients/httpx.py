"""``auth=`` for the clients of httpx and httpx2, sync and async."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

from tokenkeeper.clients import AsyncKeeper, Keeper, Member, at_once, carries
from tokenkeeper.errors import TokenKeeperError
from tokenkeeper.model import AccessToken

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Auth(httpx2.Auth, httpx.Auth):  # type: ignore[misc]
        """What the clients of both libraries take as ``auth=``."""
else:
    _Auth = object


class KeeperAuth(_Auth):
    """A member's token on every request of a client or call; refusals are understood, renewed and repeated as by guard.

    ``httpx2.Client(auth=KeeperAuth(keeper, "linkedin", "ann"))``, likewise httpx; an async client wants an
    ``AsyncTokenKeeper``. Import the library before making one: an auth object must be of the library's own class, and
    neither library is imported here. Raises from the request what guard raises.

    A request whose body is a stream that cannot be sent again is not repeated. After a redirect to another origin the
    libraries send no ``Authorization``; where a provider's profile names another header, leave redirects off. Errors
    that a provider hides in 200s are seen by guard only: an auth object may not read a body that is perhaps a stream.
    """

    requires_request_body = False
    requires_response_body = False

    def __new__(cls, *args: object, **kwargs: object) -> Self:  # noqa: ARG004
        """Make an object of the class that both clients recognise, as far as their libraries are imported."""
        bases = tuple(sys.modules[name].Auth for name in ("httpx2", "httpx") if name in sys.modules)
        if not bases:
            raise TypeError("a KeeperAuth is made for a client of httpx2 or httpx: import the library before")
        return cast("Self", object.__new__(_joined(cast("Any", cls), bases)))

    def __init__(self, keeper: Keeper | AsyncKeeper, registration: str, member: Member) -> None:
        self._keeper: Any = keeper
        self._registration = registration
        self._member = member

    def __repr__(self) -> str:
        return f"<KeeperAuth {self._registration!r} {self._member!r}>"

    def __call__(self, request: Any) -> NoReturn:
        """Refuse the service of a mere function, which could renew nothing."""
        raise TypeError(
            f"this KeeperAuth was made before {type(request).__module__.partition('.')[0]} was imported, so its client "
            "takes it for a function and no refusal would be understood: import the library first"
        )

    def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Do as :meth:`sync_auth_flow`."""
        return self.sync_auth_flow(request)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Send the request; if its refusal can be cured, send it once more."""
        attempt = self._keeper.attempt(self._registration, self._member)
        token: AccessToken | None = at_once(
            attempt.token(), "a sync client needs a TokenKeeper, not an AsyncTokenKeeper"
        )
        for _ in range(2):
            if token is None:
                return
            response = yield token(request)
            if not carries(response.request.headers, token):
                return
            try:
                token = attempt.refused(response, repeatable=_replayable(request))
            except TokenKeeperError:
                with contextlib.suppress(Exception):
                    response.read()  # the client closes it now: let .response of the error be readable
                raise

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Send the request; if its refusal can be cured, send it once more."""
        attempt = self._keeper.attempt(self._registration, self._member)
        coming = attempt.token()
        if isinstance(coming, AccessToken):
            raise TypeError("an async client needs an AsyncTokenKeeper, not a TokenKeeper, which would block its loop")
        token: AccessToken | None = await coming
        for _ in range(2):
            if token is None:
                return
            response = yield token(request)
            if not carries(response.request.headers, token):
                return
            try:
                token = await attempt.refused(response, repeatable=_replayable(request))
            except TokenKeeperError:
                with contextlib.suppress(Exception):
                    await response.aread()
                raise


@functools.cache
def _joined(cls: Any, bases: tuple[Any, ...]) -> Any:
    """Return *cls* as a subclass of the libraries' own base classes too."""
    return type(cls.__name__, (cls, *bases), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def _replayable(request: Any) -> bool:
    """Say whether the request's body can be sent again: bytes, or a form whose files can be rewound (httpx does so)."""
    if hasattr(request, "_content"):
        return True
    fields = getattr(request.stream, "fields", None)
    return fields is not None and all(map(_rewindable, fields))


def _rewindable(part: Any) -> bool:
    file = getattr(part, "file", b"")
    if isinstance(file, str | bytes):
        return True
    try:
        return bool(file.seekable())
    except Exception:  # noqa: BLE001 -- closed, or no such method
        return False
