"""10. Looking up a grant among a million, over the same among a thousand: an index must make no difference that is felt.

The look-up is the store's own (``load``, by registration and member), of members drawn at random from all rows, so that
pages are touched as widely as in a server. The rows are copies of one grant, written by one statement of SQL. A short run
has 100,000 in place of the million; the figure says which.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from databases import databases
from harness import Effort, Figure, alternate, calls
from house import REGISTRATION

from tokenkeeper import Keyring, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.model import GrantKey
from tokenkeeper.store.tables import grants
from tokenkeeper.testing import FakeProvider

FEW = 1_000
COPIED = ", ".join(column.name for column in grants.columns if column.name not in ("grant_id", "member"))
COPYING = {
    "sqlite": (
        "PRAGMA synchronous=OFF",
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {})",
        "printf('%032x', n), CAST('member-' || n AS BLOB)",
        ("ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"),
    ),
    "postgresql": (
        "ALTER TABLE tokenkeeper_grant SET UNLOGGED",
        "WITH numbers AS (SELECT generate_series(1, {}) AS n)",
        "lpad(to_hex(n), 32, '0'), convert_to('member-' || n, 'UTF8')",
        ("VACUUM ANALYZE tokenkeeper_grant",),
    ),
}
"""By dialect: what comes before, where the numbers come from, the id and member made of each, and what comes after."""


def run(effort: Effort) -> list[Figure]:
    """Measure on SQLite, and on PostgreSQL if it answers."""
    many = effort.of(1_000_000, 100_000)
    figures = []
    for kind in ("SQLite", "PostgreSQL"):
        with ExitStack() as stack:
            look_ups = [_filled(stack, kind, rows) for rows in (FEW, many)]
            if None not in look_ups:
                figures.append(_figure(kind, many, effort, *look_ups))
    return figures


def _figure(
    kind: str, many: int, effort: Effort, few_rows: Callable[[], object], many_rows: Callable[[], object]
) -> Figure:
    blocks = {"few": calls(few_rows), "many": calls(many_rows)}
    times = alternate(blocks, rounds=effort.of(301, 101), number=20)
    note = f"{times.median('many'):.0f} over {times.median('few'):.0f} µs"
    what = f"look-up among {many:,} grants / among {FEW:,}, {kind}"
    return Figure(what, times.ratio("many", "few"), "x", 1.3, note)


def _filled(stack: ExitStack, kind: str, rows: int) -> Callable[[], object] | None:
    """A look-up in a database of so many grants; None: there is no such server."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenkeeper-bench-"))
    url = stack.enter_context(databases(Path(folder))).get(kind)
    if url is None:
        return None
    registration = FakeProvider().registration(REGISTRATION)
    keyring = Keyring.parse(generate_key("bench"))
    keeper = stack.enter_context(TokenKeeper(url, keys=keyring, registrations=[registration]))
    keeper.create_schema()
    tokens = {"access_token": "a" * 100, "refresh_token": "r" * 100, "expires_in": 3600}
    keeper.save_tokens(REGISTRATION, "member-0", tokens)
    _multiply(keeper, rows)
    store, chance = keeper._room.store, random.Random(rows)

    def look_up() -> None:
        assert store.load(GrantKey(REGISTRATION, f"member-{chance.randrange(rows)}")) is not None

    return look_up


def _multiply(keeper: TokenKeeper, rows: int) -> None:
    """Copy the one grant until there are so many, as quickly as the database can."""
    dialect = keeper.engine.dialect.name
    before, numbers, columns, after = COPYING[dialect]
    copy = (
        f"{numbers.format(rows - 1)} INSERT INTO tokenkeeper_grant (grant_id, member, {COPIED}) "
        f"SELECT {columns}, {COPIED} FROM tokenkeeper_grant, numbers"
    )
    with keeper.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in (before, copy, *after):
            connection.exec_driver_sql(statement)
        connection.invalidate()  # its settings were for copying only
