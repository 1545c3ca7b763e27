"""What the benchmarks stand on: a keeper on a SQLite file in a temporary folder, with the fake provider as its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tokenkeeper import AsyncTokenKeeper, Keyring, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider

REGISTRATION = "acme"
TOKEN_PADDING = "x" * 1000
"""Tokens of the size of an ordinary JWT; LinkedIn's have about 350 characters."""

K = TypeVar("K", TokenKeeper, AsyncTokenKeeper)


class House:
    """A provider, a database, and keepers that share them."""

    def __init__(self, folder: Path) -> None:
        self.provider = FakeProvider(prefix=TOKEN_PADDING)
        self.registration = self.provider.registration(REGISTRATION)
        self.keys = Keyring.parse(generate_key("2026-11"))
        self.url = f"sqlite:///{folder / 'tokens.db'}"
        self._keepers: list[TokenKeeper] = []
        self.keeper = self.another_keeper()
        self.keeper.create_schema()

    def another_keeper(self, **options: Any) -> TokenKeeper:
        """Make one more keeper on the same database."""
        keeper = TokenKeeper(self.url, keys=self.keys, registrations=[self.registration], **options)
        self._keepers.append(keeper)
        return self._at_the_fake(keeper)

    def async_keeper(self, **options: Any) -> AsyncTokenKeeper:
        """Make an async twin."""
        keeper = AsyncTokenKeeper(self.url, keys=self.keys, registrations=[self.registration], **options)
        self._keepers.append(keeper.sync)
        return self._at_the_fake(keeper)

    def _at_the_fake(self, keeper: K) -> K:
        """Send the keeper's token requests to the fake provider, in process."""
        keeper._room.use(keeper._room.clock, self.provider.transport())
        return keeper

    def connect(self, member: str, **issue: Any) -> None:
        """Give a member a grant."""
        self.keeper.save_tokens(REGISTRATION, member, self.provider.issue(member=member, **issue))

    def close(self) -> None:
        """Close all keepers."""
        for keeper in self._keepers:
            keeper.close()


@contextmanager
def house() -> Iterator[House]:
    """A house for one benchmark."""
    with tempfile.TemporaryDirectory(prefix="tokenkeeper-bench-") as folder:
        built = House(Path(folder))
        try:
            yield built
        finally:
            built.close()
