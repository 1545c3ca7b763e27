"""9. Claim and save, the two durable commits of every renewal, over the bare driver making the same two statements.

What the store sends is recorded, and the bare driver sends it again, word by word, on a connection with the same settings
(SQLite: WAL, ``synchronous=FULL``; servers: READ COMMITTED), each in a transaction of its own. What the store does
besides is in its time: sealing two tokens, a connection from the pool that is known to live, reading the row that was
written, SQLAlchemy.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy
from databases import databases
from harness import Block, Effort, Figure, alternate
from house import REGISTRATION, TOKEN_PADDING

from tokenkeeper import Keyring, Secret, TokenKeeper
from tokenkeeper.core.effects import ClaimGrant, Saved, StoredGrant
from tokenkeeper.core.token_endpoint import TokenSet
from tokenkeeper.crypto import generate_key
from tokenkeeper.model import GrantKey
from tokenkeeper.store.engine import make_engine
from tokenkeeper.store.transactions import Store
from tokenkeeper.testing import FakeProvider

NUMBER = 20
"""Renewals in a block."""

LEASE = 90.0


def run(effort: Effort) -> list[Figure]:
    """Measure on each database that answers."""
    with tempfile.TemporaryDirectory(prefix="tokenkeeper-bench-") as folder, databases(Path(folder)) as found:
        return [_figure(kind, url, effort) for kind, url in found.items()]


def _figure(kind: str, url: str, effort: Effort) -> Figure:
    registration = FakeProvider(prefix=TOKEN_PADDING).registration(REGISTRATION)
    with TokenKeeper(url, keys=Keyring.parse(generate_key("bench")), registrations=[registration]) as keeper:
        keeper.create_schema()
        for member in ("ours", "bare"):
            keeper.save_tokens(REGISTRATION, member, {"access_token": "a", "refresh_token": "r", "expires_in": 0})
        store = keeper._room.store
        row = keeper.grant(REGISTRATION, "bare").id
        bare = _Bare(url, row, _sent(keeper.engine, lambda: _renewals(store, "bare", NUMBER)))
        blocks: dict[str, Block] = {"ours": lambda number: _renewals(store, "ours", number), "bare": bare.block}
        try:
            times = alternate(blocks, rounds=effort.of(41, 9), number=NUMBER)
        finally:
            bare.close()
    ours, theirs = (1e6 / times.median(name) for name in ("ours", "bare"))
    note = f"{ours:.0f} a second, the bare driver {theirs:.0f}"
    return Figure(f"claim and save, {kind} / the bare driver", times.ratio("ours", "bare"), "x", note=note)


def _renewals(store: Store, member: str, number: int) -> float:
    """Claim and save so many times; the seconds."""
    grant = store.load(GrantKey(REGISTRATION, member))
    assert grant is not None
    start = time.perf_counter()
    for _ in range(number):
        grant = _renewal(store, grant)
    return time.perf_counter() - start


def _renewal(store: Store, grant: StoredGrant) -> StoredGrant:
    claim = store.claim(ClaimGrant(grant, LEASE), LEASE)
    assert claim is not None
    tokens = TokenSet(
        access_token=Secret(TOKEN_PADDING + "a"),
        refresh_token=Secret(TOKEN_PADDING + "r"),
        expires_in=0.0,
    )
    saved = store.save_renewal(store.seal(claim.grant, tokens), 0.05, secrets.token_hex(16), lambda _: None)
    assert isinstance(saved, Saved)
    return saved.grant


def _sent(engine: sqlalchemy.Engine, run: Callable[[], object]) -> list[tuple[str, Any]]:
    """The updates that are sent meanwhile: one claims, one saves, and so on."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("UPDATE"):
            sent.append((statement, parameters))

    sqlalchemy.event.listen(engine, "before_cursor_execute", note)
    try:
        run()
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", note)
    assert len(sent) == 2 * NUMBER
    return sent


class _Bare:
    """The bare driver, with the settings of the store's own engine."""

    def __init__(self, url: str, row: str, sent: list[tuple[str, Any]]) -> None:
        self._row = row
        self._engine = make_engine(url)
        self._connection = self._engine.raw_connection()
        self._driver: Any = self._connection.driver_connection
        self._sent = sent

    def block(self, number: int) -> float:
        """Send the recorded updates again, each committed; the row is what it was before them."""
        self._rewind()
        driver, cursor = self._driver, self._driver.cursor()
        hit = 0
        start = time.perf_counter()
        for statement, parameters in islice(self._sent, 2 * number):
            cursor.execute(statement, parameters)
            driver.commit()
            hit += cursor.rowcount
        seconds = time.perf_counter() - start
        assert hit == 2 * number
        return seconds

    def _rewind(self) -> None:
        self._driver.cursor().execute(f"UPDATE tokenkeeper_grant SET generation = 1 WHERE grant_id = '{self._row}'")
        self._driver.commit()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        self._engine.dispose()
