"""The contract's tests run for both twins: a desk hides ``await``, so that one body serves the sync and the async keeper."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tokenkeeper import AccessToken, AsyncTokenKeeper, Event, Keyring, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider
from tokenkeeper.testing.clock import TestClock

BASE = "https://provider.test"
API = f"{BASE}/v2/userinfo"


class Desk:
    """A keeper (of either twin), a provider and a clock, in one process and without a network."""

    def __init__(self, twin: str, url: str, **knobs: Any) -> None:
        self.twin = twin
        self.url = url
        self.clock = TestClock()
        self.runner = asyncio.Runner()
        self.keepers: list[Any] = []
        provider = {"flavor": "linkedin", "prefix": "fake-", **knobs.pop("provider", {})}
        registration = {"scopes": ["openid", "profile"], **knobs.pop("registration", {})}
        self.declared = knobs.pop("declared", {})
        self.provider = FakeProvider(clock=self.clock, **provider)
        self.registration = self.provider.registration(
            "acme", base_url=BASE, provider=self.provider.as_provider(BASE, **self.declared), **registration
        )
        self.keyring = Keyring.parse(generate_key("k1"))
        self.events: list[Event] = []
        self.keeper = self.another(**knobs)
        self.does(self.keeper.create_schema())
        self.keeper.on(Event, self.events.append)

    def another(self, **knobs: Any) -> Any:
        """Another keeper (think: another worker) on the same database."""
        kind = TokenKeeper if self.twin == "sync" else AsyncTokenKeeper
        options = {"keys": self.keyring, "registrations": [self.registration], **knobs}
        keeper = self.clock.install(kind(self.url, **options), self.provider.transport())
        self.keepers.append(keeper)
        return keeper

    def does(self, result: Any) -> Any:
        """The result of a method of either twin."""
        if inspect.isawaitable(result):
            return self.runner.run(self._awaited(result))
        return result

    async def _awaited(self, result: Any) -> Any:
        return await result

    def connect(self, member: str = "ann", **knobs: Any) -> dict[str, Any]:
        """Give a member a grant, as if it had been there for an hour (of a life that is longer)."""
        issued = self.provider.issue(member=member, **knobs)
        self.does(self.keeper.save_tokens("acme", member, issued))
        self.clock.advance(3600)
        return issued

    def guarded(self, keeper: Any = None, raises: bool = False, **options: Any) -> Callable[..., Any]:
        """A guarded function that calls the API; its result as the sync caller of it would see it."""
        keeper = keeper or self.keeper
        if self.twin == "sync":
            client = httpx2.Client(transport=self.provider.transport())

            @keeper.guard("acme", **options)
            def call(token: AccessToken, member: str, *arguments: object) -> httpx2.Response:
                response = client.get(API, auth=token)
                return response.raise_for_status() if raises else response

            return call
        aclient = httpx2.AsyncClient(transport=self.provider.async_transport())

        @keeper.guard("acme", **options)
        async def acall(token: AccessToken, member: str, *arguments: object) -> httpx2.Response:
            response = await aclient.get(API, auth=token)
            return response.raise_for_status() if raises else response

        return lambda *args, **kwargs: self.does(acall(*args, **kwargs))

    def grant(self, member: str = "ann") -> Any:
        """The member's grant."""
        return self.does(self.keeper.grant("acme", member))

    def told(self) -> list[str]:
        """The names of the events that callbacks heard."""
        return [type(event).__name__ for event in self.events]

    def recorded(self) -> list[str]:
        """The names of the events in the table."""
        keeper = self.keeper if self.twin == "sync" else self.keeper.sync
        return [event["kind"] for event in keeper.events()]

    def close(self) -> None:
        """Close what was opened."""
        for keeper in self.keepers:
            self.does(keeper.close())
        self.runner.close()


@pytest.fixture(params=["sync", "async"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """Set up desks; they are cleared away after the test."""
    desks: list[Desk] = []

    def set_up(url: str | None = None, **knobs: Any) -> Desk:
        desks.append(Desk(request.param, url or f"sqlite:///{tmp_path / f'tokens-{len(desks)}.db'}", **knobs))
        return desks[-1]

    yield set_up
    for made in desks:
        made.close()
