"""What a test's keepers share, and a host's own keeper lent to a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tokenkeeper.keeper import AsyncTokenKeeper, TokenKeeper
from tokenkeeper.testing.clock import TestClock
from tokenkeeper.testing.provider import FakeProvider

if TYPE_CHECKING:
    import httpx2

    from tokenkeeper.clock import Clock
    from tokenkeeper.crypto import Keyring
    from tokenkeeper.engine_room import EngineRoom

K = TypeVar("K", bound=TokenKeeper | AsyncTokenKeeper)


@dataclass(frozen=True)
class Bench:
    """A clock, a provider, a database and a key."""

    clock: TestClock
    provider: FakeProvider
    database: str
    keyring: Keyring

    @contextmanager
    def make(self, kind: type[K], **options: Any) -> Iterator[K]:
        """Make a keeper with the schema in its database; *options* are its arguments. Closed with the context."""
        settings: dict[str, Any] = {
            "database": self.database,
            "keys": self.keyring,
            "registrations": [self.provider.registration()],
        }
        keeper = kind(**(settings | options))
        self.clock.install(keeper, self.provider.transport())
        try:
            _create_schema(keeper)
            yield keeper
        finally:
            keeper._room.close()

    @contextmanager
    def borrow(self, keeper: K) -> Iterator[K]:
        """Put a host's own keeper on this bench, and give it back as it was: guards at module level stand on it.

        Its registrations stay; the provider in process stands for their real endpoints. Callbacks that a test registers
        go with the test; the host's own are kept.
        """
        room = keeper._room
        own = room.database, room.keys, room._spill_directory, room.news._callbacks
        clock, transport = room.clock, room.inner_transport
        room.close()
        room.database, room.keys, room._spill_directory = self.database, self.keyring, None
        room.news._callbacks = list(room.news._callbacks)
        _move(room, self.clock, self.provider.transport())
        try:
            _create_schema(keeper)
            yield keeper
        finally:
            room.close()
            room.database, room.keys, room._spill_directory, room.news._callbacks = own
            _move(room, clock, transport)


def _move(room: EngineRoom, clock: Clock, transport: httpx2.BaseTransport | None) -> None:
    room.use(clock, transport)
    room.suspects.clear()
    room._prepare()


def _create_schema(keeper: TokenKeeper | AsyncTokenKeeper) -> None:
    (keeper.sync if isinstance(keeper, AsyncTokenKeeper) else keeper).create_schema()
