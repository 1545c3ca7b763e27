"""The front door: ``TokenKeeper`` and ``AsyncTokenKeeper``.

Both twins are thin: they name what the host wants, and a driver runs the flow for it. ``guard.py`` has the decorator.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
    cast,
    overload,
)

from tokenkeeper import answers
from tokenkeeper.core import authorization, revocation
from tokenkeeper.core.diagnosis import diagnose
from tokenkeeper.core.effects import Reply, StoredGrant
from tokenkeeper.core.recovery import Case, not_connected, recover, renew_now, usable_token
from tokenkeeper.core.token_endpoint import parse_token_response
from tokenkeeper.drivers import AsyncDriver, Call, SyncDriver, offload
from tokenkeeper.engine_room import EngineRoom
from tokenkeeper.errors import InvalidInput
from tokenkeeper.events import Event
from tokenkeeper.guard import (
    AsyncGuard,
    Guard,
    Mapper,
    Member,
    Plan,
    arun_guarded,
    call_of,
    case_of,
    checked_member,
    guard_async,
    guard_sync,
    returned,
    run_guarded,
)
from tokenkeeper.model import (
    AccessToken,
    Answer,
    AuthorizationRequest,
    Connection,
    Diagnosis,
    Grant,
    GrantStatus,
    Prompt,
    Registration,
    Revocation,
    Secret,
    Unshown,
    scope_set,
)
from tokenkeeper.providers import make_answer

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

    from tokenkeeper.core.profile import Profile
    from tokenkeeper.crypto import Keyring
    from tokenkeeper.store.operations import PauseRow
    from tokenkeeper.store.schema import SchemaState

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
E = TypeVar("E", bound=Event)

PAGE = 500


class _Keeper:
    """What both twins share: the engine room, and what needs no I/O."""

    _room: EngineRoom

    def __init__(
        self,
        database: str | URL | Engine,
        *,
        keys: Keyring | None = None,
        registrations: Iterable[Registration],
        leeway: float | None = None,
        patience: float = 10.0,
        cache_seconds: float = 60.0,
        cache_size: int = 10_000,
        spill_directory: str | Path | None = None,
        audit: bool = False,
    ) -> None:
        """Declare a keeper; does no I/O and needs no event loop. Raises ConfigurationError.

        *leeway* (seconds before expiry at which renewal starts; default: the smaller of 5 minutes and a tenth of the
        life), *patience* (seconds that a caller waits for somebody else's renewal), *cache_seconds* (a token in memory
        is used for so long without asking the store), *cache_size* (so many tokens at most are kept in memory),
        *spill_directory* (a folder of this host, shared by its workers, where renewed tokens wait, sealed, while the
        database is away). With *audit*, ``TokensRenewed`` is kept in the event table too.
        """
        place = Secret(database) if isinstance(database, str) else database
        del database  # it may hold a password: a traceback of this frame must not show it
        self._room = EngineRoom(
            place,
            keys=keys,
            registrations=registrations,
            leeway=leeway,
            patience=patience,
            cache_seconds=cache_seconds,
            cache_size=cache_size,
            spill_directory=spill_directory,
            audit=audit,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(self._room.registrations)}>"

    @property
    def registrations(self) -> Mapping[str, Registration]:
        """The registrations by name."""
        return dict(self._room.registrations)

    def profile(self, registration: str) -> Profile:
        """The provider's profile as this registration uses it."""
        self._room.registration(registration)
        return self._room.profiles[registration]

    @property
    def keyring(self) -> Keyring:
        """The keyring (without one given: the environment's). Raises KeyUnavailable."""
        return self._room.keyring

    def diagnose(self, registration: str, answer: object) -> Diagnosis:
        """Say what an answer means: a response or raised error of a known library, an Answer, or ``(status, headers, body)``."""
        self._room.registration(registration)
        profile = self._room.profiles[registration]
        seen: Answer | None
        if isinstance(answer, Answer):
            seen = answer
        elif isinstance(answer, tuple) and len(answer) == 3:
            seen = make_answer(*answer)
        else:
            exchange = answers.read(answer, profile.rules.wants_body)
            seen = exchange.answer if exchange else None
        if seen is None:
            fix = "Pass a response, a raised HTTP error, or (status, headers, body)."
            raise InvalidInput(
                f"A {type(answer).__name__} is no answer of a provider. It is the operator's turn. {fix}",
                cause="answer",
                fix=fix,
                registration=registration,
            )
        return diagnose(seen, profile.rules)

    @overload
    def on(self, kind: type[E]) -> Callable[[Callable[[E], Any]], Callable[[E], Any]]: ...
    @overload
    def on(self, kind: type[E], callback: Callable[[E], Any]) -> Callable[[E], Any]: ...

    def on(self, kind: type[E], callback: Callable[[E], Any] | None = None) -> Any:
        """Register a callback for a type of event, as a decorator or a call."""
        if callback is None:
            return functools.partial(self.on, kind)
        self._room.news.on(kind, callback)
        return callback

    def _case(self, registration: str, member: Member) -> Case:
        return case_of(self._room, registration, member)

    def _cached(self, registration: str, member: object) -> AccessToken | None:
        entry = self._room.cache.entries.get((registration, checked_member(registration, member)))
        return entry.token if entry is not None and self._room.monotonic() < entry.deadline else None


class TokenKeeper(_Keeper):
    """Keeps members' grants and their tokens, for sync code."""

    def guard(
        self,
        registration: str,
        *,
        member: str | Callable[..., Member] = "member",
        retry: bool = True,
        answer: Mapper | None = None,
    ) -> Guard:
        """Give a function its member's access token, and recover from a refusal.

        *member* names the parameter with the member's id, or is a callable over the call's arguments. ``retry=False``
        renews, but does not repeat the call. *answer* maps an SDK's own result or error to ``(status, headers, body)``.
        Raises TypeError at decoration for what cannot be guarded; the call raises what ``tokenkeeper.errors`` lists.
        """
        plan = Plan(self._room, registration, member, retry, answer)
        return cast("Guard", functools.partial(guard_sync, plan))

    def recover(
        self, registration: str, member: Member, send: Callable[[AccessToken], T], *, repeatable: bool = True
    ) -> T:
        """Do what ``guard`` does, for one call: ``send(token)`` returns a response or raises its library's HTTP error."""
        case = self._case(registration, member)
        result: T = returned(
            run_guarded(self._room, case, call_of(self._room, registration, send, repeatable=repeatable))
        )
        return result

    def attempt(self, registration: str, member: Member) -> Attempt:
        """Begin one exchange whose sending is somebody else's business (an auth object of a client)."""
        return Attempt(self, self._case(registration, member))

    def access_token(self, registration: str, member: Member, *, minimum_lifetime: float = 0) -> AccessToken:
        """Return a usable access token that lives for *minimum_lifetime* seconds more (or was renewed just now)."""
        cached = self._cached(registration, member) if minimum_lifetime <= 0 else None
        if cached is not None:
            return cached
        return SyncDriver(self._room).run(usable_token(self._case(registration, member), minimum_lifetime))

    def save_tokens(
        self,
        registration: str,
        member: Member,
        token_response: Mapping[str, object],
        *,
        keep_refresh_token: bool = False,
    ) -> Grant:
        """Store a token response (RFC 6749 section 5.1, or ``expires_at`` in epoch seconds) as the newest consent.

        Raises InvalidInput naming what is wrong; nothing is stored then.
        """
        response = Unshown(token_response)
        del token_response  # a traceback of this frame must not show it
        case = self._case(registration, member)
        tokens = parse_token_response(response.value, scope_separator=case.profile.scope_separator, strict=True)
        if isinstance(tokens, str):
            raise _unusable(case, tokens)
        flow = authorization.connect(case, tokens, keep_refresh_token=keep_refresh_token)
        return SyncDriver(self._room).run(flow).public()

    def grant(self, registration: str, member: Member) -> Grant:
        """Return the member's grant, without its secrets. Raises NotConnected."""
        case = self._case(registration, member)
        found = self._room.store.load(case.key)
        if found is None:
            raise not_connected(case)
        return found.public()

    def grants(
        self, registration: str | None = None, *, member: Member | None = None, status: GrantStatus | str | None = None
    ) -> Iterator[Grant]:
        """Iterate over grants in the order of registration and member, read page by page."""
        if registration is not None:
            self._room.registration(registration)
        filters = {
            "registration": registration,
            "member": None if member is None else checked_member(registration, member),
            "status": None if status is None else str(GrantStatus(status)),
        }
        return (grant.public() for grant in self._room.store.grants(**filters))

    def renew(self, registration: str, member: Member) -> Grant:
        """Renew now, also a grant that is marked as the member's turn, or while its registration is paused.

        Not while a renewal's outcome is in doubt and the provider would end the grant for a second try
        (``TemporarilyUnavailable``, cause ``in_doubt``). Raises like a guarded call.
        """
        return SyncDriver(self._room).run(renew_now(self._case(registration, member))).public()

    def revoke(self, registration: str, member: Member) -> Revocation:
        """Revoke the member's grant at the provider (RFC 7009), delete it here, and say what the provider did.

        From the beginning on nobody is served, and it is seen through whoever stops waiting. Raises ConfigurationError
        or TemporarilyUnavailable where the provider could not be told yet: the grant stays, out of service, until
        ``revoke`` or ``forget`` is called again.
        """
        case = self._case(registration, member)
        grant = SyncDriver(self._room).run(revocation.begin(case))
        under_way = self._room.see_through(self._carry_out, case, grant)
        try:
            return under_way.result(self._room.patience)
        except TimeoutError:
            under_way.add_done_callback(_heard)
            raise revocation.still_revoking(case) from None

    def _carry_out(self, case: Case, grant: StoredGrant | None) -> Revocation:
        return SyncDriver(self._room).run(revocation.carry_out(case, grant))

    def forget(self, registration: str, member: Member) -> bool:
        """Delete the member's grant here; the provider is not told. Returns whether there was one."""
        return SyncDriver(self._room).run(authorization.forget(self._case(registration, member)))

    def begin_authorization(
        self,
        registration: str,
        member: Member,
        *,
        return_to: str = "/",
        scopes: Iterable[str] | str | None = None,
        session: str | None = None,
        prompt: Prompt | None = None,
    ) -> AuthorizationRequest:
        """Mint the URL that the member follows now, inside the member's own request.

        Asks for granted, registered and missing scopes. *return_to* is a path of the host. Raises ConfigurationError.
        """
        secret = _secret(session)
        del session  # a traceback of this frame must not show it
        case = self._case(registration, member)
        asked = authorization.Beginning(return_to, scope_set(scopes), secret, prompt)
        return SyncDriver(self._room).run(authorization.begin(case, asked))

    def finish_authorization(self, callback_url: str, *, member: Member, session: str | None = None) -> Connection:
        """Finish what ``begin_authorization`` began, with the URL that the provider sent the member back to.

        *member* (and *session*) must be those who began: the CSRF check. Raises AuthorizationFailed and its kin.
        """
        url, secret = Secret(str(callback_url)), _secret(session)
        del callback_url, session  # code, state and session: a traceback of this frame must not show them
        return self._room.see_through(self._finish, authorization.read_callback(url), member, secret).result()

    def _finish(self, callback: authorization.Callback | str, member: Member, session: Secret | None) -> Connection:
        driver = SyncDriver(self._room)
        pending = driver.run(authorization.consume(callback, checked_member(None, member), session))
        assert isinstance(callback, authorization.Callback)
        case = self._case(pending.key.registration, pending.key.member)
        return driver.run(authorization.finish(case, callback, pending))

    # --- the operator's view ---

    @property
    def engine(self) -> Engine:
        """The store's engine, for a look at the database; writing through it is on nobody's advice."""
        return self._room.engine

    def create_schema(self) -> None:
        """Run the migrations; safe from several processes at once."""
        from tokenkeeper.store import schema  # noqa: PLC0415 - SQLAlchemy is loaded at first use

        with _store_errors(), self._room.migrating() as engine:
            schema.upgrade(engine)

    def schema_state(self) -> SchemaState:
        """Compare the database's schema with this code's."""
        from tokenkeeper.store import schema  # noqa: PLC0415

        with _store_errors(), self._room.engine.connect() as connection:
            return schema.state_of(connection)

    def events(
        self,
        *,
        kind: str | None = None,
        registration: str | None = None,
        member: Member | None = None,
        newest_first: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Iterate over the event table, page by page."""
        return self._room.store.events(
            kind=kind,
            registration=registration,
            member=None if member is None else checked_member(registration, member),
            newest_first=newest_first,
        )

    def pauses(self) -> list[PauseRow]:
        """The registrations whose renewals are paused, and why. A pause of credentials that were changed since is none."""
        room = self._room
        return [
            pause
            for pause in room.store.pauses()
            if pause.registration not in room.registrations
            or pause.credentials == room.server(pause.registration).credentials
        ]

    def key_usage(self) -> dict[str, int]:
        """How many sealed tokens in the store use each key id."""
        from tokenkeeper.crypto import key_id_of  # noqa: PLC0415

        usage: dict[str, int] = {}
        for _, *sealed in self._room.store.sealed_values():
            for blob in sealed:
                if blob is not None:
                    key_id = key_id_of(blob) or "?"
                    usage[key_id] = usage.get(key_id, 0) + 1
        return usage

    def clock_offset(self) -> float:
        """Seconds by which the database's clock is ahead of this machine's."""
        before = self._room.clock.epoch()
        database = self._room.store.now() / 1_000_000
        return database - (before + self._room.clock.epoch()) / 2

    def close(self) -> None:
        """Drain: no new renewals; those under way finish, or their tokens stay in the spill folder."""
        self._room.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTokenKeeper(_Keeper):
    """Keeps members' grants and their tokens, for async code; any number of event loops may share one."""

    @functools.cached_property
    def sync(self) -> TokenKeeper:
        """The sync twin that shares this keeper's engine room."""
        twin = TokenKeeper.__new__(TokenKeeper)
        twin._room = self._room
        return twin

    def guard(
        self,
        registration: str,
        *,
        member: str | Callable[..., Member] = "member",
        retry: bool = True,
        answer: Mapper | None = None,
    ) -> AsyncGuard:
        """Do as ``TokenKeeper.guard``, for ``async def``."""
        plan = Plan(self._room, registration, member, retry, answer)
        return cast("AsyncGuard", functools.partial(guard_async, plan))

    async def recover(
        self, registration: str, member: Member, send: Callable[[AccessToken], Awaitable[T]], *, repeatable: bool = True
    ) -> T:
        """Do what ``guard`` does, for one call: ``await send(token)`` returns a response or raises."""
        case = self._case(registration, member)
        call = call_of(self._room, registration, send, repeatable=repeatable)
        result: T = returned(await arun_guarded(self._room, case, call))
        return result

    def attempt(self, registration: str, member: Member) -> AsyncAttempt:
        """Begin one exchange whose sending is somebody else's business (an auth object of a client)."""
        return AsyncAttempt(self, self._case(registration, member))

    async def access_token(self, registration: str, member: Member, *, minimum_lifetime: float = 0) -> AccessToken:
        """Do as ``TokenKeeper.access_token``."""
        cached = self._cached(registration, member) if minimum_lifetime <= 0 else None
        if cached is not None:
            return cached
        return await AsyncDriver(self._room).run(usable_token(self._case(registration, member), minimum_lifetime))

    async def save_tokens(
        self,
        registration: str,
        member: Member,
        token_response: Mapping[str, object],
        *,
        keep_refresh_token: bool = False,
    ) -> Grant:
        """Do as ``TokenKeeper.save_tokens``."""
        response = Unshown(token_response)
        del token_response  # a traceback of this frame must not show it
        case = self._case(registration, member)
        tokens = parse_token_response(response.value, scope_separator=case.profile.scope_separator, strict=True)
        if isinstance(tokens, str):
            raise _unusable(case, tokens)
        flow = authorization.connect(case, tokens, keep_refresh_token=keep_refresh_token)
        return (await AsyncDriver(self._room).run(flow)).public()

    async def grant(self, registration: str, member: Member) -> Grant:
        """Do as ``TokenKeeper.grant``."""
        return await offload(self._room, self.sync.grant, registration, member)

    async def grants(
        self, registration: str | None = None, *, member: Member | None = None, status: GrantStatus | str | None = None
    ) -> AsyncIterator[Grant]:
        """Do as ``TokenKeeper.grants``."""
        found = self.sync.grants(registration, member=member, status=status)
        while page := await offload(self._room, _next_page, found):
            for grant in page:
                yield grant

    async def renew(self, registration: str, member: Member) -> Grant:
        """Do as ``TokenKeeper.renew``."""
        return (await AsyncDriver(self._room).run(renew_now(self._case(registration, member)))).public()

    async def revoke(self, registration: str, member: Member) -> Revocation:
        """Do as ``TokenKeeper.revoke``."""
        case = self._case(registration, member)
        grant = await AsyncDriver(self._room).run(revocation.begin(case))
        under_way = self._room.see_through(self.sync._carry_out, case, grant)
        waiting = asyncio.wrap_future(under_way)
        try:
            return await asyncio.wait_for(asyncio.shield(waiting), self._room.patience)
        except TimeoutError:
            waiting.add_done_callback(lambda done: None if done.cancelled() else done.exception())
            under_way.add_done_callback(_heard)
            raise revocation.still_revoking(case) from None

    async def forget(self, registration: str, member: Member) -> bool:
        """Do as ``TokenKeeper.forget``."""
        return await AsyncDriver(self._room).run(authorization.forget(self._case(registration, member)))

    async def begin_authorization(
        self,
        registration: str,
        member: Member,
        *,
        return_to: str = "/",
        scopes: Iterable[str] | str | None = None,
        session: str | None = None,
        prompt: Prompt | None = None,
    ) -> AuthorizationRequest:
        """Do as ``TokenKeeper.begin_authorization``."""
        secret = _secret(session)
        del session  # a traceback of this frame must not show it
        case = self._case(registration, member)
        asked = authorization.Beginning(return_to, scope_set(scopes), secret, prompt)
        return await AsyncDriver(self._room).run(authorization.begin(case, asked))

    async def finish_authorization(
        self, callback_url: str, *, member: Member, session: str | None = None
    ) -> Connection:
        """Do as ``TokenKeeper.finish_authorization``."""
        url, secret = Secret(str(callback_url)), _secret(session)
        del callback_url, session  # code, state and session: a traceback of this frame must not show them
        callback = authorization.read_callback(url)
        return await asyncio.wrap_future(self._room.see_through(self.sync._finish, callback, member, secret))

    async def create_schema(self) -> None:
        """Do as ``TokenKeeper.create_schema``."""
        await offload(self._room, self.sync.create_schema)

    async def close(self) -> None:
        """Do as ``TokenKeeper.close``."""
        await offload(self._room, self._room.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


K = TypeVar("K", bound=_Keeper)


class _AnyAttempt(Generic[K]):
    """One exchange: its token, and what becomes of a refusal."""

    def __init__(self, keeper: K, case: Case) -> None:
        self._keeper = keeper
        self._case = case
        self._token: AccessToken | None = None
        self._first: AccessToken | None = None

    def _call(self, *, repeatable: bool) -> Call:
        return call_of(self._keeper._room, self._case.key.registration, _not_called, repeatable=repeatable)

    def _passed(self) -> None:
        if self._keeper._room.suspects:
            self._keeper._room.call_succeeded(self._case.key.registration)

    def _next(self, again: AccessToken | None, *, repeatable: bool) -> AccessToken | None:
        if again is None or not repeatable or self._first is not None:
            return None
        self._first, self._token = self._token, again
        return again


class Attempt(_AnyAttempt[TokenKeeper]):
    """One exchange of a sync client."""

    def token(self) -> AccessToken:
        """Return the token to send."""
        self._token = self._keeper.access_token(self._case.key.registration, self._case.key.member)
        return self._token

    def refused(self, response: object, *, repeatable: bool = True) -> AccessToken | None:
        """Judge a response: None lets it pass, a token asks for the one repetition; raises guard's errors."""
        assert self._token is not None
        call, unread = self._call(repeatable=repeatable), Reply(response)
        del response  # its repr may quote the token
        reply = call.read(unread)
        if reply.answer is None:
            self._passed()
            return None
        flow = recover(self._case, self._token, reply, first=self._first)
        again = SyncDriver(self._keeper._room, call).run(flow)
        return self._next(again, repeatable=repeatable)


class AsyncAttempt(_AnyAttempt[AsyncTokenKeeper]):
    """One exchange of an async client."""

    async def token(self) -> AccessToken:
        """Return the token to send."""
        self._token = await self._keeper.access_token(self._case.key.registration, self._case.key.member)
        return self._token

    async def refused(self, response: object, *, repeatable: bool = True) -> AccessToken | None:
        """Judge a response: None lets it pass, a token asks for the one repetition; raises guard's errors."""
        assert self._token is not None
        call, unread = self._call(repeatable=repeatable), Reply(response)
        del response  # its repr may quote the token
        reply = await call.aread(unread)
        if reply.answer is None:
            self._passed()
            return None
        flow = recover(self._case, self._token, reply, first=self._first)
        again = await AsyncDriver(self._keeper._room, call).run(flow)
        return self._next(again, repeatable=repeatable)


# --- small things ----------------------------------------------------------------------------------------------------


def _not_called(_token: AccessToken) -> object:
    raise AssertionError("an attempt's client sends for itself")


def _secret(session: str | None) -> Secret | None:
    return None if session is None else Secret(str(session))


def _unusable(case: Case, what: str) -> InvalidInput:
    fix = "Pass the token endpoint's answer as it came: access_token, and what there is of refresh_token, expires_in, scope."
    return InvalidInput(
        f"The token response for {case.key.member!r} at {case.key.registration!r} cannot be stored: {what}. It is the "
        f"operator's turn. {fix} Nothing was changed.",
        cause="token_response",
        fix=fix,
        registration=case.key.registration,
        member=case.key.member,
    )


def _heard(future: Future[Revocation]) -> None:
    """Nobody waits any more, so what stood in the way is told to the log; the row stays out of service."""
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.warning(
            "a revocation in the background has not ended (%s)", getattr(error, "cause", type(error).__name__)
        )


def _next_page(grants: Iterator[Grant]) -> list[Grant]:
    return list(itertools.islice(grants, PAGE))


def _store_errors() -> Any:
    from tokenkeeper.store.engine import store_errors  # noqa: PLC0415

    return store_errors()
