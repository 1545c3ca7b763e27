"""2. ``access_token()`` read from SQLite with nothing cached, over SQLAlchemy Core's read by key plus one decryption.

The baseline is what a careful program writes by hand: an engine with the same settings, a prebuilt statement for the
same columns, and AES-GCM-SIV with the same associated data. The two alternate call by call, and the member changes each
time, as in a server: neither runs in a loop that is warm for it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from harness import Effort, Figure, alternate, calls
from house import REGISTRATION, House, house
from sqlalchemy import bindparam, select

from tokenkeeper.store.engine import make_engine
from tokenkeeper.store.tables import database_now, grants

MEMBERS = [f"member-{number}" for number in range(64)]


def run(effort: Effort) -> list[Figure]:
    """Measure the read."""
    with house() as built:
        for member in MEMBERS:
            built.connect(member)
        keeper = built.another_keeper(cache_size=0)
        next_member = cycle(MEMBERS).__next__
        blocks = {
            "keeper": calls(lambda: keeper.access_token(REGISTRATION, next_member())),
            "by hand": calls(_by_hand(built)),
        }
        times = alternate(blocks, rounds=effort.of(6001, 1501), number=1)
        note = f"{times.median('keeper'):.0f} over {times.median('by hand'):.0f} µs"
        return [
            Figure(
                "access_token() from SQLite / Core and a decryption", times.ratio("keeper", "by hand"), "x", 1.5, note
            )
        ]


def _by_hand(built: House) -> Callable[[], str]:
    engine = make_engine(built.url)
    statement = select(grants, database_now().label("now")).where(
        grants.c.registration == bindparam("of"), grants.c.member == bindparam("whose")
    )
    next_member = cycle(MEMBERS).__next__
    cipher: AESGCMSIV = built.keys._keys[0].cipher
    head = len(built.keys._keys[0].head)

    def read() -> str:
        with engine.connect() as connection:
            row = connection.execute(statement, {"of": REGISTRATION.encode(), "whose": next_member().encode()}).one()
        id_, member, sealed = row.grant_id, row.member.decode(), row.access_token
        place = (
            f"17:tokenkeeper_grant12:access_token{len(id_)}:{id_}"
            f"{len(REGISTRATION)}:{REGISTRATION}{len(member)}:{member}{row.generation}"
        )
        return cipher.decrypt(sealed[head : head + 12], sealed[head + 12 :], place.encode()).decode()

    assert read().startswith("x")
    return read
