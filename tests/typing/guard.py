"""Never run, only type-checked (``make check``): guard keeps a function's types and takes the token out of it.

Each ``type: ignore`` here is a promise: mypy reports it (warn_unused_ignores) if the wrong use were no longer an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, assert_type

from tokenkeeper import (
    AccessToken,
    AsyncTokenKeeper,
    ConfigurationProblem,
    Grant,
    Keyring,
    Registration,
    TokenKeeper,
    TokensRenewed,
)

registrations = [
    Registration("linkedin", client_id="id", client_secret="secret", scopes=["openid"]),
    Registration("other", provider="linkedin", client_id="id", client_secret=["new", "old"]),
]
keeper = TokenKeeper("sqlite:///tokens.db", keys=Keyring.from_env(), registrations=registrations)
async_keeper = AsyncTokenKeeper("sqlite:///tokens.db", registrations=registrations)


class Response:
    """Stands for a library's response."""


# --- sync ------------------------------------------------------------------------------------------------------------


@keeper.guard("linkedin")
def profile(token: AccessToken, member: str, *, fields: tuple[str, ...] = ()) -> Response:
    return Response()


assert_type(profile("ann"), Response)
assert_type(profile(member="ann", fields=("id",)), Response)
profile()  # type: ignore[call-arg]
profile(1)  # type: ignore[arg-type]
profile("ann", fields="id")  # type: ignore[arg-type]
profile(AccessToken("t"), "ann")  # type: ignore[call-arg, arg-type]
profile(token=AccessToken("t"), member="ann")  # type: ignore[call-arg]
without_token: Callable[[str], Response] = profile


@keeper.guard("linkedin", member="user_id", retry=False)
def posts(token: AccessToken, user_id: int) -> list[str]:
    return []


assert_type(posts(7), list[str])


@keeper.guard("linkedin", member=lambda request: request.member)
def by_callable(token: AccessToken, request: Response) -> None: ...


by_callable(Response())


@keeper.guard("linkedin")  # type: ignore[arg-type]
def no_token(member: str) -> Response:
    return Response()


class Client:
    """A method takes the token second, after self."""

    @keeper.guard("linkedin")
    def profile(self, token: AccessToken, member: str) -> Response:
        return Response()

    @async_keeper.guard("linkedin")
    async def profile_async(self, token: AccessToken, member: str) -> Response:
        return Response()


assert_type(Client().profile("ann"), Response)
Client().profile()  # type: ignore[call-arg]
Client().profile(7)  # type: ignore[arg-type]


# --- async -----------------------------------------------------------------------------------------------------------


@async_keeper.guard("linkedin")
async def fetch(token: AccessToken, member: str, limit: int = 10) -> Response:
    return Response()


async def use() -> None:
    """Awaited results have the function's type."""
    called: Callable[..., Coroutine[Any, Any, Response]] = fetch
    assert_type(await called("ann"), Response)
    assert_type(await fetch("ann", limit=3), Response)
    assert_type(await Client().profile_async("ann"), Response)
    await fetch()  # type: ignore[call-arg]
    await fetch("ann", "3")  # type: ignore[arg-type]
    assert_type(await async_keeper.access_token("linkedin", "ann", minimum_lifetime=60), AccessToken)
    assert_type(await async_keeper.grant("linkedin", "ann"), Grant)
    assert_type(async_keeper.grants("linkedin"), AsyncIterator[Grant])


@async_keeper.guard("linkedin")  # type: ignore[arg-type]
def not_async(token: AccessToken, member: str) -> Response:
    return Response()


# --- the rest of the contract ----------------------------------------------------------------------------------------

assert_type(keeper.access_token("linkedin", "ann"), AccessToken)
assert_type(keeper.grant("linkedin", "ann"), Grant)
assert_type(keeper.grants(), Iterator[Grant])
assert_type(keeper.save_tokens("linkedin", 7, {"access_token": "a", "expires_in": 60}), Grant)


@keeper.on(TokensRenewed)
def renewed(event: TokensRenewed) -> None:
    assert_type(event.generation, int)


@keeper.on(TokensRenewed)  # type: ignore[arg-type]
def wrong_event(event: ConfigurationProblem) -> None: ...
