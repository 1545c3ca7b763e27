"""``auth=`` for requests."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import urljoin

from requests import PreparedRequest, Response
from requests.auth import AuthBase
from requests.cookies import extract_cookies_to_jar
from requests.sessions import SessionRedirectMixin

from tokenkeeper.clients import Attempt, Keeper, Member, at_once, carries
from tokenkeeper.model import AccessToken


class KeeperAuth(AuthBase):
    """A member's token on requests; refusals are understood, renewed and repeated as by guard.

    ``requests.get(url, auth=KeeperAuth(keeper, "linkedin", "ann"))`` or ``session.auth = …``; it keeps nothing of a
    request, so that threads may share it. Raises from the request what guard raises. A body that is a stream without
    ``seek`` is not sent again. A request that is prepared by hand is good for one send.
    """

    def __init__(self, keeper: Keeper, registration: str, member: Member) -> None:
        self._keeper = keeper
        self._registration = registration
        self._member = member

    def __repr__(self) -> str:
        return f"<KeeperAuth {self._registration!r} {self._member!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeeperAuth):
            return NotImplemented
        return self._keeper is other._keeper and (self._registration, self._member) == (
            other._registration,
            other._member,
        )

    def __hash__(self) -> int:
        return hash((self._registration, self._member))

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Put the token on the request and hook its answer."""
        attempt = self._keeper.attempt(self._registration, self._member)
        token = at_once(attempt.token(), "requests needs a TokenKeeper, not an AsyncTokenKeeper")
        request.hooks.setdefault("response", []).append(_Recovery(attempt, token, request).answered)
        return token(request)


class _Recovery:
    """What becomes of one request: requests calls :meth:`answered` at its answer and at that of every redirect."""

    def __init__(self, attempt: Attempt, token: AccessToken, request: PreparedRequest) -> None:
        self._attempt = attempt
        self._token = token
        self._request = request
        self._position = _position(self._body)
        self._repeated = False

    def answered(self, response: Response, **options: Any) -> Response:
        """Pass the answer on, or that of the repetition."""
        sent_again = self._repeated and response.request is self._request
        if sent_again or not carries(response.request.headers, self._token):
            return response
        self._keep_from_others(response)
        token = self._refused(response, **options)
        if token is None or self._repeated:
            return response
        self._repeated = True
        self._token = token
        again = self._send(response, token, **options)
        self._refused(again, **options)
        return again

    def _refused(self, response: Response, **options: Any) -> AccessToken | None:
        if not options.get("stream"):
            len(response.content)  # requests itself would read it next: so errors hidden in 200s are seen as well
        return self._attempt.refused(response, repeatable=not self._repeated and self._replayable())

    def _keep_from_others(self, response: Response) -> None:
        """Take the token off before a redirect to another origin: requests itself takes only ``Authorization`` off."""
        if response.is_redirect:
            target = urljoin(response.url, response.headers["location"])
            if SessionRedirectMixin().should_strip_auth(response.url, target):  # type: ignore[no-untyped-call]
                for name in self._token.headers:
                    response.request.headers.pop(name, None)
                    self._request.headers.pop(name, None)

    @property
    def _body(self) -> Any:
        return self._request.body

    def _replayable(self) -> bool:
        return self._body is None or isinstance(self._body, str | bytes) or self._position is not None

    def _send(self, response: Response, token: AccessToken, **options: Any) -> Response:
        """Send the request again, as ``requests.auth.HTTPDigestAuth`` does."""
        with contextlib.suppress(Exception):
            len(response.content)
        response.close()
        token(self._request)  # what a redirect of the repetition starts from
        prepared = token(response.request.copy())
        if self._position is not None:
            self._body.seek(self._position)
        jar = prepared._cookies  # type: ignore[attr-defined]
        extract_cookies_to_jar(jar, response.request, response.raw)  # type: ignore[no-untyped-call]
        prepared.headers.pop("Cookie", None)
        prepared.prepare_cookies(jar)
        again: Response = response.connection.send(prepared, **options)
        again.history.append(response)
        again.request = prepared
        self._keep_from_others(again)
        return again


def _position(body: Any) -> int | None:
    """Return where a seekable body stands before it is sent, or None."""
    try:
        return int(body.tell()) if body.seekable() else None
    except Exception:  # noqa: BLE001 -- bytes, a generator, a pipe
        return None
