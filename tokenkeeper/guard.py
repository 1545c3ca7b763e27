"""The decorator ``guard``: see that a function can be guarded, take the token out of its signature, and run its calls.

The hot path, a valid token in memory and an answer below 400, enters no flow: one dictionary look-up, one comparison with
one deadline, the call, one look at the status.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import CoroutineType
from typing import Annotated, Any, Concatenate, ParamSpec, Protocol, TypeVar, get_args, get_origin, overload
from uuid import UUID

from tokenkeeper import answers
from tokenkeeper.core.effects import Reply
from tokenkeeper.core.recovery import Case, guarded_call
from tokenkeeper.drivers import AsyncDriver, Call, SyncDriver, close_awaitable, refuse_awaitable
from tokenkeeper.engine_room import EngineRoom
from tokenkeeper.errors import InvalidInput, TokenKeeperError
from tokenkeeper.model import AccessToken, member_id

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

Member = str | int | UUID
Mapper = Callable[[Any], object]
"""``answer=``: maps an SDK's own result or error to ``(status, headers, body)``, an Answer, or None (no answer)."""


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


# --- a guarded call --------------------------------------------------------------------------------------------------


def case_of(room: EngineRoom, registration: str, member: object, *, retry: bool = True) -> Case:
    """What the core needs to know of a member's call. Raises InvalidInput."""
    return room.case(registration, checked_member(registration, member), retry=retry)


def call_of(
    room: EngineRoom,
    registration: str,
    function: Callable[[AccessToken], Any],
    *,
    arguments: tuple[tuple[object, ...], Mapping[str, object]] = ((), {}),
    mapper: Mapper | None = None,
    repeatable: bool | None = None,
) -> Call:
    """The user's call, and how to read what it answers."""
    profile = room.profiles[registration]
    return Call(function, arguments, mapper, profile.rules.wants_body, profile.errors_in_200, repeatable)


def run_guarded(
    room: EngineRoom, case: Case, call: Call, token: AccessToken | None = None, first: Reply | None = None
) -> Reply:
    """Run a guarded call; the hot path hands over its *token* and the *first* reply."""
    if first is not None:
        refuse_awaitable(first)
    reply = None if first is None else call.read(first)
    reply = SyncDriver(room, call).run(guarded_call(case, token, reply))
    if reply.answer is None and room.suspects:
        room.call_succeeded(case.key.registration)
    return reply


async def arun_guarded(
    room: EngineRoom, case: Case, call: Call, token: AccessToken | None = None, first: Reply | None = None
) -> Reply:
    """Do as :func:`run_guarded`, awaiting the call."""
    reply = None if first is None else await call.aread(first)
    reply = await AsyncDriver(room, call).run(guarded_call(case, token, reply))
    if reply.answer is None and room.suspects:
        room.call_succeeded(case.key.registration)
    return reply


def returned(reply: Reply) -> Any:
    """Pass the user's own object through: return it, or raise it again."""
    if isinstance(reply.value, BaseException) and reply.raised:
        raise reply.value
    return reply.value


def checked_member(registration: str | None, member: object) -> str:
    """Return a member's id as the store keeps it. Raises InvalidInput."""
    try:
        return member_id(member)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        fix = "Pass the member's id as a str, an int or a UUID: not empty, at most 255 bytes of UTF-8, no control characters."
        raise InvalidInput(
            f"{error}. It is the operator's turn. {fix}", cause="member", fix=fix, registration=registration
        ) from None


# --- the decorators --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """How the host wants a function guarded."""

    room: EngineRoom
    registration: str
    member: str | Callable[..., Member]
    retry: bool
    mapper: Mapper | None

    def __post_init__(self) -> None:
        if self.registration not in self.room.registrations:
            known = ", ".join(map(repr, self.room.registrations)) or "none"
            raise TypeError(f"guard({self.registration!r}): there is no such registration; the keeper has {known}")


def guard_sync(plan: Plan, function: Callable[..., Any]) -> Callable[..., Any]:
    """Guard a function as planned. Raises TypeError for one that cannot be guarded."""
    place, member_of = _inspected(plan, function, asynchronous=False)
    room, registration, mapper = plan.room, plan.registration, plan.mapper
    entries, status_of = room.cache.entries, answers.status_of
    plain = mapper is None and not room.profiles[registration].errors_in_200

    def slow(args: Any, kwargs: Any, token: AccessToken | None = None, first: Reply | None = None) -> Any:
        case, call = _prepared(plan, function, place, member_of(args, kwargs), args, kwargs)
        return returned(run_guarded(room, case, call, token, first))

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        member = member_of(args, kwargs)
        entry = entries.get((registration, member if type(member) is str else checked_member(registration, member)))
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


def guard_async(plan: Plan, function: Callable[..., Any]) -> Callable[..., Any]:
    """Do as :func:`guard_sync`, for ``async def``."""
    place, member_of = _inspected(plan, function, asynchronous=True)
    room, registration, mapper = plan.room, plan.registration, plan.mapper
    entries, status_of = room.cache.entries, answers.status_of
    plain = mapper is None and not room.profiles[registration].errors_in_200

    async def slow(args: Any, kwargs: Any, token: AccessToken | None = None, first: Reply | None = None) -> Any:
        case, call = _prepared(plan, function, place, member_of(args, kwargs), args, kwargs)
        return returned(await arun_guarded(room, case, call, token, first))

    @functools.wraps(function)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        member = member_of(args, kwargs)
        entry = entries.get((registration, member if type(member) is str else checked_member(registration, member)))
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
    plan: Plan, function: Callable[..., Any], place: int, member: Any, args: Any, kwargs: Any
) -> tuple[Case, Call]:
    """Return whose call it is, and the call with everything but its token."""
    registration = plan.registration
    case = case_of(plan.room, registration, member, retry=plan.retry)
    call = call_of(
        plan.room,
        registration,
        lambda token: function(*args[:place], token, *args[place:], **kwargs),
        arguments=(args, kwargs),
        mapper=plan.mapper,
    )
    return case, call


def _inspected(
    plan: Plan, function: Callable[..., Any], *, asynchronous: bool
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
