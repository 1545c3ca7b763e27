"""The fake provider: an OAuth authorization server and the API behind it, in one object.

In process::

    provider = FakeProvider()
    client = httpx2.Client(transport=provider.transport())

or over real HTTP on loopback::

    with FakeProvider(flavor="linkedin").serve() as base_url:
        ...

Both go through :meth:`FakeProvider.handle`, one lock, and a clock that the test holds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from tokenkeeper.model import Provider, Registration, Rotation, scope_set
from tokenkeeper.testing import browser
from tokenkeeper.testing.authorization_server import AuthorizationServer, presented
from tokenkeeper.testing.client import ClientCheck
from tokenkeeper.testing.dialects import API_ANSWERS, TOKEN_ANSWERS, Dialect, Generic, LinkedIn
from tokenkeeper.testing.journal import Journal
from tokenkeeper.testing.ledger import Ledger
from tokenkeeper.testing.messages import Delivery, Presentation, Request, Response, json_response
from tokenkeeper.testing.resource_server import ResourceServer
from tokenkeeper.testing.script import Gate, Script, Step

if TYPE_CHECKING:
    import httpx2

BASE_URL = "https://provider.test"
"""Where the provider lives in process: nothing of it resolves."""

SURFACES = {
    "authorize": "authorization",
    "authorization": "authorization",
    "token": "token",
    "accessToken": "token",
    "introspect": "introspection",
    "introspectToken": "introspection",
    "revoke": "revocation",
}
"""The last part of a path → what stands there; everything else is the API. LinkedIn's own paths work too."""

API_PATHS = ("/api/", "/v2/", "/rest/")
"""Below these nothing but the API stands, whatever the last part."""

DAY = 86_400.0


class FakeProvider:
    """An authorization server and API for tests. Tokens are numbered: ``access-1``, ``refresh-1``, …; times in seconds.

    ``flavor``: whose words: ``generic`` or ``linkedin`` (its bodies and headers, its refusals, its lifetimes).
    ``bodies``: LinkedIn's generation of error bodies: ``versioned``, ``service`` or ``v1``.
    ``opaque``: expired and revoked access tokens are called *invalid*, as most certified servers do.
    ``rotation``: what becomes of a used refresh token: ``none``, ``by_use``, ``grace`` or ``strict``.
    ``grace_seconds``: how long a used refresh token is forgiven under ``grace``.
    ``grace_answer``: a forgiven one gets a ``fresh`` pair, or the ``same`` pair again.
    ``reuse_revokes``: whether an unforgiven reuse ends the whole family (default: under ``strict`` and ``grace``).
    ``one_access_token``: a refresh revokes the access tokens before it, as GitLab and GitHub do.
    ``access_lifetime``: of access tokens (default an hour; 60 days as LinkedIn).
    ``refresh_lifetime``: of refresh tokens (default without end; a year as LinkedIn).
    ``refresh_tokens``: False: none are issued, and refreshing is refused.
    ``repeat_refresh_token``: without rotation, a refresh's answer names the old refresh token again (LinkedIn: yes).
    ``client_id``, ``client_secret``: the one client; several secrets while a new one is rolled out.
    ``client_authentication``: the accepted method or methods (LinkedIn: only in the form).
    ``client_public_key``: a PEM or JWK, for ``private_key_jwt``.
    ``redirect_uris``: the registered ones; None: any.
    ``pkce``: ``required``, ``optional`` or ``refused`` (default optional; LinkedIn refuses a code_verifier).
    ``id_tokens``: grants with the scope ``openid`` get an ID token (HS256 with the client secret).
    ``code_lifetime``: of authorization codes, which work once.
    ``required_scopes``: a path of the API → the scope that it wants.
    ``clock``: a callable that returns seconds since the epoch.
    ``prefix``: put before every token and code, to plant secrets that a test can look for.

    ``base_url`` is where it is reached just now, ``requests`` are the last thousand that came, ``log`` is every token
    that was shown; ``token_requests``, ``api_calls``, ``introspections``, ``revocations`` and ``reuses`` are counts.
    """

    def __init__(
        self,
        flavor: Literal["generic", "linkedin"] = "generic",
        *,
        bodies: Literal["versioned", "service", "v1"] = "versioned",
        opaque: bool = False,
        rotation: str = "none",
        grace_seconds: float = 30.0,
        grace_answer: Literal["fresh", "same"] = "fresh",
        reuse_revokes: bool | None = None,
        one_access_token: bool = False,
        access_lifetime: float | None = None,
        refresh_lifetime: float | None = None,
        refresh_tokens: bool = True,
        repeat_refresh_token: bool | None = None,
        client_id: str = "client-1",
        client_secret: str | Iterable[str] = "secret-1",
        client_authentication: str | Collection[str] | None = None,
        client_public_key: str | dict[str, Any] | None = None,
        redirect_uris: Collection[str] | None = None,
        pkce: Literal["required", "optional", "refused"] | None = None,
        id_tokens: bool = False,
        code_lifetime: float = 600.0,
        required_scopes: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
        prefix: str = "",
    ) -> None:
        if flavor not in {"generic", "linkedin"}:
            raise ValueError(f"flavor is 'generic' or 'linkedin', not {flavor!r}")
        linkedin = flavor == "linkedin"
        kind = Rotation(rotation)
        if client_authentication is None:
            client_authentication = (
                {"client_secret_post"} if linkedin else {"client_secret_post", "client_secret_basic"}
            )
        self.flavor = flavor
        self.clock = clock
        self.base_url = BASE_URL
        self.requests: deque[Request] = deque(maxlen=1000)
        self.client = ClientCheck(
            client_id,
            {client_secret} if isinstance(client_secret, str) else set(client_secret),
            {client_authentication} if isinstance(client_authentication, str) else set(client_authentication),
            client_public_key,
        )
        self.ledger = Ledger(
            rotation=kind,
            grace_seconds=grace_seconds,
            grace_answer=grace_answer,
            access_lifetime=access_lifetime if access_lifetime is not None else (60 * DAY if linkedin else 3600.0),
            refresh_lifetime=refresh_lifetime if refresh_lifetime is not None else (365 * DAY if linkedin else None),
            refresh_tokens=refresh_tokens,
            one_access_token=one_access_token,
            reuse_kills=kind in {Rotation.STRICT, Rotation.GRACE} if reuse_revokes is None else reuse_revokes,
            prefix=prefix,
        )
        self._dialect: Dialect = LinkedIn(generation=bodies, opaque=opaque) if linkedin else Generic(opaque=opaque)
        self._journal = Journal()
        self._authorization_server = AuthorizationServer(
            ledger=self.ledger,
            client=self.client,
            dialect=self._dialect,
            journal=self._journal,
            clock=self._now,
            redirect_uris=redirect_uris,
            pkce=pkce or ("refused" if linkedin else "optional"),
            id_tokens=id_tokens,
            code_lifetime=code_lifetime,
            repeat_refresh_token=linkedin if repeat_refresh_token is None else repeat_refresh_token,
        )
        self._resource_server = ResourceServer(
            ledger=self.ledger,
            dialect=self._dialect,
            journal=self._journal,
            clock=self._now,
            required_scopes=dict(required_scopes or {}),
        )
        self._script = Script()
        self._gates: list[Gate] = []
        self._arrivals = 0
        self._lock = threading.RLock()

    def _now(self) -> float:
        return self.clock()

    def __repr__(self) -> str:
        return f"<FakeProvider {self.flavor} rotation={self.ledger.rotation} grants={len(self.ledger.grants)}>"

    # --- what the host configures -------------------------------------------------------------------------------

    def as_provider(self, base_url: str | None = None, **overrides: Any) -> Provider:
        """The :class:`~tokenkeeper.Provider` with every endpoint on this stand-in; *overrides* are its arguments."""
        base = (base_url or self.base_url).rstrip("/")
        linkedin = self.flavor == "linkedin"
        token = "/oauth/v2/accessToken" if linkedin else "/token"
        authorization = "/oauth/v2/authorization" if linkedin else "/authorize"
        introspection = "/oauth/v2/introspectToken" if linkedin else "/introspect"
        values: dict[str, Any] = {
            "name": self.flavor if linkedin else "fake",
            "token_endpoint": base + token,
            "authorization_endpoint": base + authorization,
            "introspection_endpoint": base + introspection,
            "userinfo_endpoint": base + ("/v2/userinfo" if linkedin else "/userinfo"),
            "issuer": base,
        }
        ledger = self.ledger
        if linkedin:
            values["extends"] = "linkedin"
            values["rotation"] = None if ledger.rotation is Rotation.NONE else str(ledger.rotation)
        else:
            preferred = ("client_secret_basic", "client_secret_post", "private_key_jwt", "none")
            values |= {
                "revocation_endpoint": base + "/revoke",
                "client_authentication": next(method for method in preferred if method in self.client.methods),
                "rotation": str(ledger.rotation),
                "grace_seconds": ledger.grace_seconds if ledger.rotation is Rotation.GRACE else None,
                "pkce": "none" if self._authorization_server.pkce == "refused" else None,
            }
        return Provider(**(values | overrides))

    def registration(self, name: str | None = None, base_url: str | None = None, **more: Any) -> Registration:
        """A :class:`~tokenkeeper.Registration` of this provider's client; *more* are its arguments."""
        provider = more.pop("provider", None) or self.as_provider(base_url)
        values: dict[str, Any] = {
            "provider": provider,
            "client_id": self.client.client_id,
            "client_secret": sorted(self.client.secrets) if provider.client_authentication != "none" else None,
            "redirect_uri": "http://127.0.0.1:8000/callback",
            "scopes": ["openid", "profile"],
        }
        return Registration(name or provider.name, **(values | more))

    # --- how it is reached --------------------------------------------------------------------------------------

    def transport(self, library: ModuleType | None = None) -> httpx2.BaseTransport:
        """A transport in process for an ``httpx2.Client``; pass ``httpx`` as *library* for one of its clients."""
        from tokenkeeper.testing.transport import sync_transport  # noqa: PLC0415 - needs an HTTP client

        return sync_transport(self, library)

    def async_transport(self, library: ModuleType | None = None) -> httpx2.AsyncBaseTransport:
        """Its twin for an ``httpx2.AsyncClient``; requests run in threads, so that a gate does not hold the loop."""
        from tokenkeeper.testing.transport import async_transport  # noqa: PLC0415 - needs an HTTP client

        return async_transport(self, library)

    @contextlib.contextmanager
    def serve(self, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
        """Serve over HTTP on loopback while the context lasts; yields the base URL. Takes 500 connections at once."""
        from tokenkeeper.testing.server import Server  # noqa: PLC0415 - most tests need none

        before = self.base_url
        with Server(self, host, port) as server:
            self.base_url = server.base_url
            try:
                yield server.base_url
            finally:
                self.base_url = before
                self.release_all()

    def handle(self, request: Request) -> Response:
        """Answer a request; the core of every way to reach the provider. Blocks only at a gate."""
        surface = _surface(request.path)
        with self._lock:
            self._arrivals += 1
            number = self._arrivals
            self.requests.append(request)
            self._journal.count(surface)
            shown = presented(surface, request)
            grant = self.ledger.grant_of(shown[1]) if shown else None
            step = self._script.take(surface, grant.member if grant else None)
        if not self._pass_gates(surface, "arrival"):
            return Response(503, delivery=Delivery.DROP)
        with self._lock:
            response = self._answer(surface, request, step, number)
        if not self._pass_gates(surface, "answer"):
            response = replace(response, delivery=Delivery.DROP)
        if response.delivery is not Delivery.WHOLE:
            self.lost(response)
        return response

    def lost(self, response: Response) -> None:
        """Note in the log that an answer did not reach the client (a transport calls this)."""
        with self._lock:
            self._journal.lost(response)

    def _answer(self, surface: str, request: Request, step: Step | None, number: int) -> Response:
        if step is None:
            response = self._process(surface, request, number)
        elif step.processed:
            response = step.response(request.path, self._process(surface, request, number))
        else:
            response = step.response(request.path, None)
            response = self._authorization_server.note_unread(surface, request, step.name, response)
        own = {name.lower() for name, _ in response.headers}
        more = tuple(pair for pair in self._dialect.headers(number) if pair[0].lower() not in own)
        return replace(response, headers=response.headers + more)

    def _process(self, surface: str, request: Request, number: int) -> Response:
        match surface:
            case "authorization":
                return self._authorization_server.authorize(request)
            case "token":
                return self._authorization_server.token(request)
            case "introspection":
                return self._authorization_server.introspect(request)
            case "revocation":
                return self._authorization_server.revoke(request)
        return self._resource_server.answer(request, number)

    # --- grants by hand -----------------------------------------------------------------------------------------

    def issue(
        self,
        member: str = "ann",
        scopes: Iterable[str] | str = ("openid", "profile"),
        *,
        expires_in: float | None = None,
        refresh_token: bool | None = None,
    ) -> dict[str, Any]:
        """Grant the client access without any page; returns a token response for ``keeper.save_tokens``."""
        with self._lock:
            pair = self.ledger.issue(
                member, scope_set(scopes), self.clock(), lifetime=expires_in, refresh=refresh_token
            )
            return self._authorization_server.token_response(pair, self.base_url)

    def expire(self, which: str | None = None) -> None:
        """End access tokens now: one by its text, all of a member, or all. Raises LookupError for an unknown one."""
        with self._lock:
            for token in self.ledger.chosen_access(which):
                token.expires_at = min(token.expires_at, self.clock())

    def expire_refresh_token(self, which: str | None = None) -> None:
        """End refresh tokens now: one by its text, all of a member, or all. Raises LookupError for an unknown one."""
        with self._lock:
            for token in self.ledger.chosen_refresh(which):
                token.expires_at = self.clock()

    def revoke(self, which: str | None = None) -> None:
        """The member withdraws consent: all tokens of the member's grants (or everybody's) are revoked."""
        with self._lock:
            for grant in self.ledger.chosen(which):
                grant.revoked = True

    def revoke_access_token(self, which: str | None = None) -> None:
        """Revoke access tokens only; their refresh tokens go on working."""
        with self._lock:
            for token in self.ledger.chosen_access(which):
                token.revoked = True

    def forget_access_token(self, which: str | None = None) -> None:
        """Lose access tokens: the API calls them *invalid*, and says no more."""
        with self._lock:
            for token in self.ledger.chosen_access(which):
                token.forgotten = True

    def forget_refresh_token(self, which: str | None = None) -> None:
        """Lose refresh tokens: the token endpoint calls them *invalid*."""
        with self._lock:
            for token in self.ledger.chosen_refresh(which):
                token.forgotten = True

    def change_secret(self, *secrets: str) -> None:
        """From now on the client has these secrets, and no others."""
        with self._lock:
            self.client.secrets = set(secrets)

    # --- what comes next ----------------------------------------------------------------------------------------

    def script(
        self,
        name: str,
        surface: str = "api",
        *,
        times: int = 1,
        member: str | None = None,
        processed: bool = False,
        delay: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Decide the next answers of a surface (``api``, ``token``, ``introspection``, ``revocation``) by name.

        Names: :data:`~tokenkeeper.testing.dialects.API_ANSWERS`, :data:`~tokenkeeper.testing.dialects.TOKEN_ANSWERS`;
        and of any surface ``ok`` (the real answer, after ``delay`` seconds), ``drop`` (the connection is closed without
        an answer), ``hang`` (it stays open without one), ``cut`` (half an answer), ``drip`` (a byte every ``delay``
        seconds), ``unreachable`` (nothing was sent). ``times``: how many requests it meets. ``member``: only requests
        with a token of that member. ``processed``: the request is carried out before its answer is replaced or lost
        (a refresh token is spent). ``headers`` are put over the answer's own.
        """
        delivery = Delivery.WHOLE
        answer: Callable[[str], Response] | None = None
        if name in {"drop", "hang", "cut", "drip", "unreachable", "ok"}:
            delivery = Delivery.WHOLE if name == "ok" else Delivery(name)
            processed = processed or name in {"cut", "drip", "ok"}
        else:
            known = API_ANSWERS if surface == "api" else TOKEN_ANSWERS
            if name not in known:
                raise ValueError(f"the {surface} has no answer called {name!r}; there are: {', '.join(known)}")

            self._in_its_words(surface, name, "/", {})

            def answer(path: str) -> Response:
                return self._in_its_words(surface, name, path, headers or {})

        self._add(Step(name, surface, times, answer, processed, member, delivery, delay))

    def refuse_next(
        self,
        surface: str = "api",
        *,
        status: int,
        body: str | bytes | object = b"",
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        member: str | None = None,
        processed: bool = False,
        delay: float = 0.0,
    ) -> None:
        """Decide the next answers of a surface word by word; a body that is neither str nor bytes becomes JSON."""
        if isinstance(body, str):
            body = body.encode()
        if isinstance(body, bytes):
            response = Response(status, tuple((headers or {}).items()), body)
        else:
            response = json_response(status, body, headers)
        self._add(Step("scripted", surface, times, lambda _: response, processed, member, Delivery.WHOLE, delay))

    def _in_its_words(self, surface: str, name: str, path: str, headers: Mapping[str, str]) -> Response:
        if surface == "api":
            scope = self._resource_server.required_scopes.get(path, "email")
            response = self._dialect.api(name, path=path, scope=scope, now=self.clock(), number=self._arrivals)
        else:
            response = self._dialect.token(name)
        own = {key.lower() for key in headers}
        kept = tuple(pair for pair in response.headers if pair[0].lower() not in own)
        return replace(response, headers=kept + tuple(headers.items()))

    def _add(self, step: Step) -> None:
        if step.surface not in {"api", "token", "introspection", "revocation"}:
            raise ValueError(f"a surface is 'api', 'token', 'introspection' or 'revocation', not {step.surface!r}")
        if step.times < 1:
            raise ValueError("times is at least 1")
        with self._lock:
            self._script.steps.append(step)

    def clear_script(self) -> None:
        """Forget all scripted answers that are still to come."""
        with self._lock:
            self._script.steps.clear()

    def hold(self, surface: str = "token", *, at: str = "arrival", times: int | None = None) -> Gate:
        """Hold the requests of a surface at a :class:`Gate`, before or after they are carried out, until released."""
        gate = Gate(surface, at=at, times=times)
        with self._lock:
            self._gates = [*(old for old in self._gates if not old.released), gate]
        return gate

    def release_all(self) -> None:
        """Release every gate."""
        with self._lock:
            gates, self._gates = self._gates, []
        for gate in gates:
            gate.release()

    def _pass_gates(self, surface: str, at: str) -> bool:
        with self._lock:
            gates = [gate for gate in self._gates if gate.surface == surface and gate.at == at]
        return all(gate.hold() for gate in gates)

    # --- what has been --------------------------------------------------------------------------------------------

    @property
    def log(self) -> list[Presentation]:
        """Every presentation of a token or code so far, in order."""
        with self._lock:
            return self._journal.presentations()

    @property
    def token_requests(self) -> int:
        """Requests that came to the token endpoint, whatever became of them."""
        return self._journal.counts.get("token", 0)

    @property
    def api_calls(self) -> int:
        """Requests that came to the API, whatever became of them."""
        return self._journal.counts.get("api", 0)

    @property
    def introspections(self) -> int:
        """Requests that came to the introspection endpoint."""
        return self._journal.counts.get("introspection", 0)

    @property
    def revocations(self) -> int:
        """Requests that came to the revocation endpoint."""
        return self._journal.counts.get("revocation", 0)

    @property
    def reuses(self) -> int:
        """How often a refresh token was presented that rotation had already replaced, forgiven or not."""
        return self._journal.counts.get("reuses", 0)

    def reset_counters(self) -> None:
        """Start counting, and the log, from nothing; the grants stay."""
        with self._lock:
            self._journal.reset()
            self.requests.clear()

    # --- the member -------------------------------------------------------------------------------------------------

    def consent(
        self, url: str, member: str = "ann", *, approve: bool = True, scopes: Iterable[str] | None = None
    ) -> str:
        """Follow an authorization URL in process through sign-in and consent; returns the callback URL.

        ``approve`` False: the member declines. ``scopes``: the ones that the member ticks (None: all). Raises
        ValueError with the page's words where the provider shows an error instead.
        """
        return browser.walk(self.handle, url, member=member, approve=approve, scopes=scopes)

    def follow(
        self, url: str, member: str = "ann", *, approve: bool = True, scopes: Iterable[str] | None = None
    ) -> str:
        """The same over HTTP, at a served provider."""
        from tokenkeeper.testing.transport import http_sender  # noqa: PLC0415 - needs an HTTP client

        with http_sender() as send:
            return browser.walk(send, url, member=member, approve=approve, scopes=scopes)


def _surface(path: str) -> str:
    return "api" if path.startswith(API_PATHS) else SURFACES.get(path.rstrip("/").rpartition("/")[2], "api")
