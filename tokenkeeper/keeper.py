"""The front door: ``TokenKeeper`` and ``AsyncTokenKeeper``, and the decorator ``guard``.

Both twins are thin: they name what the host wants, and a driver runs the flow for it. The hot path, a valid token in
memory and an answer below 400, enters no flow: one dictionary look-up, one comparison with one deadline, the call, one
look at the status.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CoroutineType, TracebackType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    get_args,
    get_origin,
    overload,
)
from uuid import UUID

from tokenkeeper import answers
from tokenkeeper.core import authorization
from tokenkeeper.core.diagnosis import diagnose
from tokenkeeper.core.effects import Reply
from tokenkeeper.core.recovery import Case, guarded_call, not_connected, recover, renew_now, usable_token
from tokenkeeper.core.token_endpoint import parse_token_response
from tokenkeeper.drivers import AsyncDriver, Call, SyncDriver, close_awaitable, offload, refuse_awaitable
from tokenkeeper.engine_room import EngineRoom
from tokenkeeper.errors import InvalidInput, TokenKeeperError
from tokenkeeper.events import Event
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
    Secret,
    Unshown,
    member_id,
    scope_set,
)
from tokenkeeper.providers import make_answer

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

    from tokenkeeper.core.profile import Profile
    from tokenkeeper.crypto import Keyring
    from tokenkeeper.store.operations import PauseRow
    from tokenkeeper.store.schema import SchemaState

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
E = TypeVar("E", bound=Event)

Member = str | int | UUID
Mapper = Callable[[Any], object]
"""``answer=``: maps an SDK's own result or error to ``(status, headers, body)``, an Answer, or None (no answer)."""

PAGE = 500


class Guard(Protocol):
    """What ``TokenKeeper.guard`` returns: a decorator that takes the token out of the signature."""

    @overload
    def __call__(self, function: Callable[Concatenate[AccessToken, P], R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[S, AccessToken, P], R], /) -> Callable[Concatenate[S, P], R]: ...


class AsyncGuard(Protocol):
    """What ``AsyncTokenKeeper.guard`` returns: a decorator that takes the token out of the signature."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[AccessToken, P], Awaitable[R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, AccessToken, P], Awaitable[R]], /
    ) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]: ...


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
        is used for so long without asking the store). With *audit*, ``TokensRenewed`` is kept in the event table too.
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

    def _case(self, registration: str, member: Member, *, retry: bool = True) -> Case:
        return self._room.case(registration, _member(registration, member), retry=retry)

    def _call(
        self,
        registration: str,
        function: Callable[[AccessToken], Any],
        *,
        arguments: tuple[tuple[object, ...], Mapping[str, object]] = ((), {}),
        mapper: Mapper | None = None,
        repeatable: bool | None = None,
    ) -> Call:
        profile = self._room.profiles[registration]
        return Call(function, arguments, mapper, profile.rules.wants_body, profile.errors_in_200, repeatable)

    def _cached(self, registration: str, member: object) -> AccessToken | None:
        entry = self._room.cache.entries.get((registration, _member(registration, member)))
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
        plan = _Plan(self, registration, member, retry, answer)
        return cast("Guard", functools.partial(_guard_sync, self, plan))

    def recover(
        self, registration: str, member: Member, send: Callable[[AccessToken], T], *, repeatable: bool = True
    ) -> T:
        """Do what ``guard`` does, for one call: ``send(token)`` returns a response or raises its library's HTTP error."""
        call = self._call(registration, send, repeatable=repeatable)
        result: T = _returned(self._run_guarded(self._case(registration, member), call))
        return result

    def attempt(self, registration: str, member: Member) -> Attempt:
        """Begin one exchange whose sending is somebody else's business (an auth object of a client)."""
        return Attempt(self, self._case(registration, member))

    def _run_guarded(
        self, case: Case, call: Call, token: AccessToken | None = None, first: Reply | None = None
    ) -> Reply:
        if first is not None:
            refuse_awaitable(first)
        reply = None if first is None else call.read(first)
        reply = SyncDriver(self._room, call).run(guarded_call(case, token, reply))
        if reply.answer is None and self._room.suspects:
            self._room.call_succeeded(case.key.registration)
        return reply

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
            "member": None if member is None else _member(registration, member),
            "status": None if status is None else str(GrantStatus(status)),
        }
        return (grant.public() for grant in self._room.store.grants(**filters))

    def renew(self, registration: str, member: Member) -> Grant:
        """Renew now, also a grant that is marked as the member's turn. Raises like a guarded call."""
        return SyncDriver(self._room).run(renew_now(self._case(registration, member))).public()

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
        pending = driver.run(authorization.consume(callback, _member(None, member), session))
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

        with _store_errors():
            schema.upgrade(self._room.engine)

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
            member=None if member is None else _member(registration, member),
            newest_first=newest_first,
        )

    def pauses(self) -> list[PauseRow]:
        """The registrations whose renewals are paused, and why."""
        return self._room.store.pauses()

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
        plan = _Plan(self, registration, member, retry, answer)
        return cast("AsyncGuard", functools.partial(_guard_async, self, plan))

    async def recover(
        self, registration: str, member: Member, send: Callable[[AccessToken], Awaitable[T]], *, repeatable: bool = True
    ) -> T:
        """Do what ``guard`` does, for one call: ``await send(token)`` returns a response or raises."""
        call = self._call(registration, send, repeatable=repeatable)
        result: T = _returned(await self._run_guarded(self._case(registration, member), call))
        return result

    def attempt(self, registration: str, member: Member) -> AsyncAttempt:
        """Begin one exchange whose sending is somebody else's business (an auth object of a client)."""
        return AsyncAttempt(self, self._case(registration, member))

    async def _run_guarded(
        self, case: Case, call: Call, token: AccessToken | None = None, first: Reply | None = None
    ) -> Reply:
        reply = None if first is None else await call.aread(first)
        reply = await AsyncDriver(self._room, call).run(guarded_call(case, token, reply))
        if reply.answer is None and self._room.suspects:
            self._room.call_succeeded(case.key.registration)
        return reply

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
        return self._keeper._call(self._case.key.registration, _not_called, repeatable=repeatable)

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


# --- guard -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the host wants a function guarded."""

    keeper: _Keeper
    registration: str
    member: str | Callable[..., Member]
    retry: bool
    mapper: Mapper | None

    def __post_init__(self) -> None:
        if self.registration not in self.keeper.registrations:
            known = ", ".join(map(repr, self.keeper.registrations)) or "none"
            raise TypeError(f"guard({self.registration!r}): there is no such registration; the keeper has {known}")


def _guard_sync(keeper: TokenKeeper, plan: _Plan, function: Callable[..., Any]) -> Callable[..., Any]:
    place, member_of = _inspected(plan, function, asynchronous=False)
    room, registration, mapper = keeper._room, plan.registration, plan.mapper
    entries, status_of = room.cache.entries, answers.status_of
    plain = mapper is None and not room.profiles[registration].errors_in_200

    def slow(args: Any, kwargs: Any, token: AccessToken | None = None, first: Reply | None = None) -> Any:
        case, call = _prepared(plan, function, place, member_of(args, kwargs), args, kwargs)
        return _returned(keeper._run_guarded(case, call, token, first))

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        member = member_of(args, kwargs)
        entry = entries.get((registration, member if type(member) is str else _member(registration, member)))
        if entry is None or room.monotonic() >= entry[1]:
            return slow(args, kwargs)
        token = entry[0]
        try:
            result = function(args[0], token, *args[1:], **kwargs) if place else function(token, *args, **kwargs)
        except TokenKeeperError:
            raise
        except Exception as error:
            if mapper is None and status_of(error) is None:
                raise
            first = Reply(error, raised=True)
        else:
            if plain:
                status = status_of(result)
                if status is None or status < 400:
                    if type(result) is CoroutineType:
                        close_awaitable(result)
                        raise TypeError(f"{function.__name__} returned a coroutine: use an AsyncTokenKeeper for it")
                    if room.suspects:
                        room.call_succeeded(registration)
                    return result
            first = Reply(result)  # and no local holds the result itself, whose repr may show the token
            del result
        return slow(args, kwargs, token, first)

    return _without_token(guarded, function, place)


def _guard_async(keeper: AsyncTokenKeeper, plan: _Plan, function: Callable[..., Any]) -> Callable[..., Any]:
    place, member_of = _inspected(plan, function, asynchronous=True)
    room, registration, mapper = keeper._room, plan.registration, plan.mapper
    entries, status_of = room.cache.entries, answers.status_of
    plain = mapper is None and not room.profiles[registration].errors_in_200

    async def slow(args: Any, kwargs: Any, token: AccessToken | None = None, first: Reply | None = None) -> Any:
        case, call = _prepared(plan, function, place, member_of(args, kwargs), args, kwargs)
        return _returned(await keeper._run_guarded(case, call, token, first))

    @functools.wraps(function)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        member = member_of(args, kwargs)
        entry = entries.get((registration, member if type(member) is str else _member(registration, member)))
        if entry is None or room.monotonic() >= entry[1]:
            return await slow(args, kwargs)
        token = entry[0]
        try:
            result = await function(*args[:place], token, *args[place:], **kwargs)
        except TokenKeeperError:
            raise
        except Exception as error:
            if mapper is None and status_of(error) is None:
                raise
            first = Reply(error, raised=True)
        else:
            if plain:
                status = status_of(result)
                if status is None or status < 400:
                    if room.suspects:
                        room.call_succeeded(registration)
                    return result
            first = Reply(result)  # and no local holds the result itself, whose repr may show the token
            del result
        return await slow(args, kwargs, token, first)

    return _without_token(guarded, function, place)


def _prepared(
    plan: _Plan, function: Callable[..., Any], place: int, member: Any, args: Any, kwargs: Any
) -> tuple[Case, Call]:
    """Return whose call it is, and the call with everything but its token."""
    keeper, registration = plan.keeper, plan.registration
    case = keeper._case(registration, member, retry=plan.retry)
    call = keeper._call(
        registration,
        lambda token: function(*args[:place], token, *args[place:], **kwargs),
        arguments=(args, kwargs),
        mapper=plan.mapper,
    )
    return case, call


def _inspected(
    plan: _Plan, function: Callable[..., Any], *, asynchronous: bool
) -> tuple[int, Callable[[tuple[Any, ...], Mapping[str, Any]], Any]]:
    """See that a function can be guarded; return the token's position, and what finds the member in a call."""
    if not callable(function) or isinstance(function, staticmethod):
        raise TypeError(
            f"guard() decorates a function, not a {type(function).__name__}; put it under @staticmethod or @classmethod"
        )
    name = getattr(function, "__name__", type(function).__name__)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is a generator: its call is over before it has called anything; guard what it calls")
    if is_async and not asynchronous:
        raise TypeError(f"{name} is async def: guard it with an AsyncTokenKeeper")
    if not is_async and asynchronous:
        raise TypeError(f"{name} is not async def: guard it with a TokenKeeper")
    parameters = list(inspect.signature(function).parameters.values())
    place = _token_place(name, parameters)
    rest = parameters[:place] + parameters[place + 1 :]
    if callable(plan.member):
        mapper = plan.member
        return place, lambda args, kwargs: mapper(*args, **kwargs)
    return place, _member_finder(name, plan.member, rest)


def _token_place(name: str, parameters: list[inspect.Parameter]) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    for place, parameter in enumerate(parameters[:2]):
        after_self = place == 0 or parameters[0].name in ("self", "cls")
        if (
            parameter.kind in positional
            and after_self
            and (_is_token(parameter.annotation) or parameter.name == "token")
        ):
            return place
    raise TypeError(
        f"{name} has no place for the token: give it a first parameter (or second, after self) annotated AccessToken, or "
        "named token"
    )


def _is_token(annotation: object) -> bool:
    if isinstance(annotation, str):
        return annotation.rpartition(".")[2].strip("\"' ") == "AccessToken"
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return isinstance(annotation, type) and issubclass(annotation, AccessToken)


def _member_finder(
    name: str, member: str, parameters: list[inspect.Parameter]
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Any]:
    """Return what finds the member's id among a call's arguments (without the token)."""
    by_name = {parameter.name: parameter for parameter in parameters}
    found = by_name.get(member)
    keywords = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    if found is None and not keywords:
        raise TypeError(f"{name} has no parameter {member!r}: name the one with the member's id, guard(…, member='…')")
    positional = found is not None and found.kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    place = parameters.index(found) if found is not None and positional else None
    default = inspect.Parameter.empty if found is None else found.default

    def find(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if member in kwargs:
            return kwargs[member]
        if place is not None and len(args) > place:
            return args[place]
        if default is inspect.Parameter.empty:
            raise TypeError(f"{name}() was called without {member!r}, so nobody knows whose token it needs")
        return default

    return find


def _without_token(guarded: Callable[..., Any], function: Callable[..., Any], place: int) -> Callable[..., Any]:
    """Take the token out of what FastAPI, pytest and readers see."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    token = parameters.pop(place)
    guarded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    guarded.__annotations__ = {k: v for k, v in getattr(function, "__annotations__", {}).items() if k != token.name}
    return guarded


# --- small things ----------------------------------------------------------------------------------------------------


def _not_called(_token: AccessToken) -> object:
    raise AssertionError("an attempt's client sends for itself")


def _returned(reply: Reply) -> Any:
    """Pass the user's own object through: return it, or raise it again."""
    if isinstance(reply.value, BaseException) and reply.raised:
        raise reply.value
    return reply.value


def _member(registration: str | None, member: object) -> str:
    try:
        return member_id(member)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        fix = "Pass the member's id as a str, an int or a UUID: not empty, at most 255 bytes of UTF-8, no control characters."
        raise InvalidInput(
            f"{error}. It is the operator's turn. {fix}", cause="member", fix=fix, registration=registration
        ) from None


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


def _next_page(grants: Iterator[Grant]) -> list[Grant]:
    return list(itertools.islice(grants, PAGE))


def _store_errors() -> Any:
    from tokenkeeper.store.engine import store_errors  # noqa: PLC0415

    return store_errors()
