"""The pytest plugin: docs/testing.md runs as it stands there, the import is light, keepers are closed and given back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import tokenkeeper.testing
from tokenkeeper import (
    AsyncTokenKeeper,
    ConfigurationError,
    Event,
    Keyring,
    NotConnected,
    ReauthenticationRequired,
    TokenKeeper,
)
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider, TestClock, fixtures
from tokenkeeper.testing.bench import Bench

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "testing.md"
BLOCKS = re.findall(r"^```python\n(# (\S+)\n.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
FILES = {name: text for text, name in BLOCKS}
YEAR = 365 * 86_400.0


def test_the_document_runs_as_it_stands_there(tmp_path: Path) -> None:
    """The files of docs/testing.md are a folder of tests that pass, with warnings as errors, and no fixture imported."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    written = sum(len(re.findall(r"^def test_", text, re.MULTILINE)) for text in FILES.values())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "TOKENKEEPER"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", tmp_path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"(\d+) passed", done.stdout) == [str(written)]
    assert written >= 15


def test_every_block_of_the_document_is_a_file_of_its_own() -> None:
    """No example of the document is left out of the run."""
    assert len(BLOCKS) == len(FILES) == DOCUMENT.read_text(encoding="utf-8").count("```python")


def test_the_document_names_every_fixture() -> None:
    """The table has all fixtures, each of them says what it is, and none can collide with one of the host's."""
    found = {name: value for name, value in vars(fixtures).items() if "tokenkeeper_" in name}
    public = {name for name in found if not name.startswith("_")}
    named = set(re.findall(r"`(tokenkeeper_\w+)", DOCUMENT.read_text(encoding="utf-8").partition("\n## ")[0]))
    assert public == named
    assert all(value.__doc__ for value in found.values())


def test_importing_the_plugin_loads_nothing_else() -> None:
    """pytest imports the plugin in every run of everybody: no other module of ours, and none of our dependencies."""
    code = (
        "import sys, pytest, tokenkeeper.testing.fixtures\n"
        "print(*sorted(name for name in sys.modules if name.partition('.')[0] == 'tokenkeeper'))\n"
        "print(*sorted({'sqlalchemy', 'alembic', 'httpx2', 'cryptography', 'authlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    ours, theirs = done.stdout.splitlines()
    assert ours.split() == ["tokenkeeper", "tokenkeeper.testing", "tokenkeeper.testing.fixtures"]
    assert theirs == ""


def test_the_package_is_lazy_and_complete() -> None:
    """Every name that ``tokenkeeper.testing`` lists is there; an unknown one is an AttributeError."""
    assert {name for name in tokenkeeper.testing.__all__ if getattr(tokenkeeper.testing, name, None) is None} == set()
    assert set(tokenkeeper.testing.__all__) <= set(dir(tokenkeeper.testing))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tokenkeeper.testing.no_such_name


def test_a_keeper_with_one_registration(tokenkeeper_keeper: TokenKeeper, tokenkeeper_provider: FakeProvider) -> None:
    """The plain fixture's keeper has its schema and the provider's registration, and knows nobody yet."""
    assert list(tokenkeeper_keeper.registrations) == ["fake"]
    with pytest.raises(NotConnected):
        tokenkeeper_keeper.access_token("fake", "ann")
    grant = tokenkeeper_keeper.save_tokens("fake", "ann", tokenkeeper_provider.issue(member="ann"))
    assert tokenkeeper_keeper.grant("fake", "ann") == grant


def test_two_keepers_of_one_test_share_everything(
    tokenkeeper_make_keeper: Callable[..., TokenKeeper],
    tokenkeeper_async_keeper: AsyncTokenKeeper,
    tokenkeeper_provider: FakeProvider,
    tokenkeeper_clock: TestClock,
) -> None:
    """What one saves the others read; their options are their own; provider, database and keepers have one clock."""
    first = tokenkeeper_make_keeper()
    second = tokenkeeper_make_keeper(registrations=[tokenkeeper_provider.registration("fake", scopes=["other"])])
    first.save_tokens("fake", "ann", tokenkeeper_provider.issue(member="ann", expires_in=60.0))
    assert second.grant("fake", "ann") == tokenkeeper_async_keeper.sync.grant("fake", "ann")
    assert second.registrations["fake"].scopes == ("other",)
    tokenkeeper_clock.advance(61)
    assert second.access_token("fake", "ann").generation == 2
    assert tokenkeeper_provider.log[-1].time == tokenkeeper_clock()
    assert first.clock_offset() == pytest.approx(0.0)


class TestOtherDatabase:
    """A host that tests on its own kind of database overrides one fixture."""

    @pytest.fixture
    def tokenkeeper_database(self, database_url: str) -> str:
        """An empty database, on each server that answers."""
        return database_url

    def test_the_clock_is_the_databases_too(
        self, tokenkeeper_keeper: TokenKeeper, tokenkeeper_provider: FakeProvider, tokenkeeper_clock: TestClock
    ) -> None:
        """The schema is made in the database that the host names, and its times are the test's."""
        grant = tokenkeeper_keeper.save_tokens("fake", "ann", tokenkeeper_provider.issue(member="ann"))
        assert grant.created_at.timestamp() == tokenkeeper_clock()
        tokenkeeper_clock.advance(2 * YEAR)
        assert tokenkeeper_keeper.access_token("fake", "ann").generation == 2


@pytest.fixture
def bench(
    tokenkeeper_clock: TestClock,
    tokenkeeper_provider: FakeProvider,
    tokenkeeper_database: str,
    tokenkeeper_keyring: Keyring,
) -> Bench:
    """A bench that this test ends itself."""
    return Bench(tokenkeeper_clock, tokenkeeper_provider, tokenkeeper_database, tokenkeeper_keyring)


@pytest.mark.parametrize("kind", [TokenKeeper, AsyncTokenKeeper])
def test_keepers_are_closed(bench: Bench, kind: Any) -> None:
    """A keeper of the fixtures is closed after the test, also when its schema cannot be made."""
    with bench.make(kind) as keeper:
        twin = getattr(keeper, "sync", keeper)
        assert list(twin.grants()) == []
    with pytest.raises(ConfigurationError, match="closed"):
        list(twin.grants())
    with pytest.raises(ConfigurationError), bench.make(kind, database="sqlite:////nowhere/at/all.db"):
        pass


@pytest.fixture
def production() -> FakeProvider:
    """The real provider, as it were: on the real clock."""
    return FakeProvider()


@pytest.fixture
def own(tmp_path: Path, production: FakeProvider) -> Iterator[TokenKeeper]:
    """A host's keeper that has been at work on its own database before the test."""
    keeper = TokenKeeper(
        f"sqlite:///{tmp_path / 'own.db'}",
        keys=Keyring.parse(generate_key("own")),
        registrations=[production.registration("fake")],
        spill_directory=tmp_path / "spill",
    )
    with keeper:
        keeper.create_schema()
        keeper.save_tokens("fake", "zoe", production.issue(member="zoe"))
        yield keeper


def test_a_borrowed_keeper_is_given_back(bench: Bench, own: TokenKeeper, production: FakeProvider) -> None:
    """In the test the host's keeper and guards see the test's database, clock and provider; after it the host's own."""
    at_work, in_test = (httpx2.Client(transport=one.transport()) for one in (production, bench.provider))
    always: list[Event] = []
    own.on(Event, always.append)
    heard: list[Event] = []
    client = at_work

    @own.guard("fake")
    def call(token: Any, member: str) -> httpx2.Response:
        return client.get("https://provider.test/api/me", auth=token)

    assert call(member="zoe").status_code == 200
    clock = own._room.clock
    client = in_test
    with bench.borrow(own) as borrowed:
        assert borrowed is own
        assert own._room.spill is None
        with pytest.raises(NotConnected):
            call(member="zoe")
        own.on(Event, heard.append)
        own.save_tokens("fake", "ann", bench.provider.issue(member="ann"))
        bench.clock.advance(2 * 3600)
        assert call(member="ann").status_code == 200
        assert bench.provider.token_requests == 1
    assert len(heard) == len(always) == 2
    client = at_work
    with pytest.raises(NotConnected):
        call(member="ann")
    assert call(member="zoe").status_code == 200
    assert own._room.clock is clock
    own.save_tokens("fake", "eve", production.issue(member="eve"))
    assert len(always) == 3
    assert len(heard) == 2
    assert own._room.spill is not None
    assert production.token_requests == 0


def test_a_borrowed_keeper_is_given_back_after_a_failure(bench: Bench, own: TokenKeeper) -> None:
    """A test that fails, or cannot begin, gives the keeper back as well."""
    elsewhere = Bench(bench.clock, bench.provider, "sqlite:////nowhere/at/all.db", bench.keyring)
    with pytest.raises(ConfigurationError), elsewhere.borrow(own):
        pass
    with pytest.raises(ReauthenticationRequired), bench.borrow(own):
        own.access_token("fake", "zoe")
    assert own.access_token("fake", "zoe").generation == 1


def test_an_async_keeper_can_be_borrowed(
    tokenkeeper_borrow: Callable[[AsyncTokenKeeper], AsyncTokenKeeper], tokenkeeper_provider: FakeProvider
) -> None:
    """The async twin is lent in the same way, without an event loop."""
    keeper = AsyncTokenKeeper("postgresql://nobody@nowhere/app", registrations=[tokenkeeper_provider.registration()])
    assert list(tokenkeeper_borrow(keeper).sync.grants()) == []
