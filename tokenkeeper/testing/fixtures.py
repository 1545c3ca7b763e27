"""Pytest fixtures for your own tests; pytest finds them by itself. docs/testing.md shows them at work.

Importing this module, which pytest does in every run, loads nothing else of tokenkeeper: each fixture does, when a test
asks for it. All fixtures of one test share a clock, a provider, a database and a key.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tokenkeeper.crypto import Keyring
    from tokenkeeper.keeper import AsyncTokenKeeper, TokenKeeper
    from tokenkeeper.testing.bench import Bench, K
    from tokenkeeper.testing.clock import TestClock
    from tokenkeeper.testing.provider import FakeProvider


@pytest.fixture
def tokenkeeper_clock() -> TestClock:
    """The test's clock, also the database's and the provider's: it stands still until ``advance(seconds)``."""
    from tokenkeeper.testing.clock import TestClock  # noqa: PLC0415

    return TestClock()


@pytest.fixture
def tokenkeeper_provider_options() -> dict[str, Any]:
    """Arguments of the fake provider; override it to have another one: a flavor, a rotation, your client's id."""
    return {}


@pytest.fixture
def tokenkeeper_provider(
    tokenkeeper_clock: TestClock, tokenkeeper_provider_options: dict[str, Any]
) -> Iterator[FakeProvider]:
    """A fake provider on the test's clock."""
    from tokenkeeper.testing.provider import FakeProvider  # noqa: PLC0415

    provider = FakeProvider(**({"clock": tokenkeeper_clock} | tokenkeeper_provider_options))
    yield provider
    provider.release_all()


@pytest.fixture(scope="session")
def _tokenkeeper_empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema and nothing in it: copying it is quicker than migrating for each test."""
    from tokenkeeper.keeper import TokenKeeper  # noqa: PLC0415

    path = tmp_path_factory.mktemp("tokenkeeper") / "empty.db"
    with TokenKeeper(f"sqlite:///{path}", registrations=[]) as keeper:
        keeper.create_schema()
    return path


@pytest.fixture
def tokenkeeper_database(tmp_path: Path, _tokenkeeper_empty_database: Path) -> str:
    """The URL of a SQLite database of the test's own; override it to test on another one."""
    return f"sqlite:///{shutil.copyfile(_tokenkeeper_empty_database, tmp_path / 'tokenkeeper.db')}"


@pytest.fixture
def tokenkeeper_keyring() -> Keyring:
    """A keyring with a fresh key."""
    from tokenkeeper.crypto import Keyring, generate_key  # noqa: PLC0415

    return Keyring.parse(generate_key("test"))


@pytest.fixture
def _tokenkeeper_bench(
    tokenkeeper_clock: TestClock,
    tokenkeeper_provider: FakeProvider,
    tokenkeeper_database: str,
    tokenkeeper_keyring: Keyring,
) -> Bench:
    """What the keepers of one test share."""
    from tokenkeeper.testing.bench import Bench  # noqa: PLC0415

    return Bench(tokenkeeper_clock, tokenkeeper_provider, tokenkeeper_database, tokenkeeper_keyring)


@pytest.fixture
def tokenkeeper_make_keeper(_tokenkeeper_bench: Bench) -> Iterator[Callable[..., TokenKeeper]]:
    """``make(**options)``: a ``TokenKeeper`` with these arguments, by default of one registration at the provider.

    The schema is there. It is closed after the test. Several share the database, as workers do.
    """
    from tokenkeeper.keeper import TokenKeeper  # noqa: PLC0415

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_tokenkeeper_bench.make(TokenKeeper, **options))


@pytest.fixture
def tokenkeeper_make_async_keeper(_tokenkeeper_bench: Bench) -> Iterator[Callable[..., AsyncTokenKeeper]]:
    """``make(**options)``: an ``AsyncTokenKeeper``, else as ``tokenkeeper_make_keeper``; needs no event loop."""
    from tokenkeeper.keeper import AsyncTokenKeeper  # noqa: PLC0415

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_tokenkeeper_bench.make(AsyncTokenKeeper, **options))


@pytest.fixture
def tokenkeeper_keeper(tokenkeeper_make_keeper: Callable[..., TokenKeeper]) -> TokenKeeper:
    """A ``TokenKeeper`` with one registration: ``"fake"``, or ``"linkedin"`` where the provider is LinkedIn."""
    return tokenkeeper_make_keeper()


@pytest.fixture
def tokenkeeper_async_keeper(tokenkeeper_make_async_keeper: Callable[..., AsyncTokenKeeper]) -> AsyncTokenKeeper:
    """An ``AsyncTokenKeeper`` with one registration."""
    return tokenkeeper_make_async_keeper()


@pytest.fixture
def tokenkeeper_borrow(_tokenkeeper_bench: Bench) -> Iterator[Callable[[K], K]]:
    """``borrow(keeper)``: your own keeper on the test's clock, provider, database and key; given back after the test."""
    with ExitStack() as stack:

        def borrow(keeper: K) -> K:
            return stack.enter_context(_tokenkeeper_bench.borrow(keeper))

        yield borrow
