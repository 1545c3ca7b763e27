"""A host's engine is shared: we never take more than half of its connections at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

import tokenkeeper.store.transactions
from tokenkeeper import Keyring, Registration, TemporarilyUnavailable, TokenKeeper
from tokenkeeper.clock import Clock
from tokenkeeper.crypto import generate_key
from tokenkeeper.store.transactions import Store

KEYRING = Keyring.parse(generate_key("1"))


def keeper_on(engine: sqlalchemy.Engine) -> TokenKeeper:
    """A keeper on the host's engine, with its schema."""
    registration = Registration("acme", client_id="app", client_secret="s", provider="generic")
    keeper = TokenKeeper(engine, keys=KEYRING, registrations=[registration])
    keeper.create_schema()
    return keeper


@pytest.mark.parametrize(("size", "ours"), [(1, 1), (2, 1), (4, 2), (5, 2)])
def test_half_of_a_hosts_connections_at_most(tmp_path: Path, size: int, ours: int) -> None:
    """While many of ours want one, the others are free for the host."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'tokens.db'}", pool_size=size, max_overflow=0)
    most, lock = [0], threading.Lock()

    def count(*_: object) -> None:
        with lock:
            most[0] = max(most[0], engine.pool.checkedout())  # type: ignore[attr-defined]

    with keeper_on(engine) as keeper:
        sqlalchemy.event.listen(engine, "checkout", count)
        threads = [
            threading.Thread(target=keeper.save_tokens, args=("acme", f"m{n}", {"access_token": "a"}))
            for n in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(keeper.grants())) == 12
    engine.dispose()
    assert 0 < most[0] <= ours


def test_a_turn_that_does_not_come_is_the_weather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has waited too long hears that it is nobody's turn."""
    monkeypatch.setattr(tokenkeeper.store.transactions, "POOL_PATIENCE", 0.05)
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'tokens.db'}", pool_size=2, max_overflow=0)
    keeper_on(engine).close()
    store = Store(engine, KEYRING, Clock(), shared=True)
    store.now()
    with store._turn, pytest.raises(TemporarilyUnavailable, match="host's connections") as caught:
        store.now()
    assert caught.value.cause == "store"
    store.now()
    engine.dispose()


def test_a_pool_without_a_size_has_no_turns(tmp_path: Path) -> None:
    """NullPool opens as many as are asked for."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'tokens.db'}", poolclass=NullPool)
    with keeper_on(engine) as keeper:
        store = keeper._room.store
        with store._turn, store._turn:
            assert list(keeper.grants()) == []
    engine.dispose()
