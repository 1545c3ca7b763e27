"""The schema that the migrations build.

Every table's name starts with ``tokenkeeper_``, so that the schema can live inside the host's own database.
Registrations and members are UTF-8 bytes (collations fold case and pad blanks); times are microseconds since the epoch
by the database's clock, in integers (drivers disagree on fractions of a second).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text, UniqueConstraint
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from tokenkeeper.model import MEMBER_BYTES

metadata = MetaData()


class _Sealed(LargeBinary):
    """Bytes; what else somebody has written there (SQLite lets them) is read as its text's, and does not open."""

    def result_processor(self, dialect: Any, coltype: object) -> Any:  # noqa: ARG002 - the base's signature
        """Return what makes bytes of a value."""
        return lambda value: str(value).encode() if isinstance(value, str | int | float) else value


KEY_BYTES = LargeBinary(MEMBER_BYTES).with_variant(mysql.VARBINARY(MEMBER_BYTES), "mysql", "mariadb")
SEALED = _Sealed().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
LONG_TEXT = Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4"), "mysql", "mariadb")
ID = String(32)
DIGEST = String(64)
MICROSECONDS = BigInteger

grants = Table(
    "tokenkeeper_grant",
    metadata,
    Column("grant_id", ID, primary_key=True),
    Column("registration", KEY_BYTES, nullable=False),
    Column("member", KEY_BYTES, nullable=False),
    Column("status", String(32), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("scopes", LONG_TEXT, nullable=False),
    Column("access_token", SEALED, nullable=False),
    Column("refresh_token", SEALED),
    Column("access_expires_at", MICROSECONDS),
    Column("refresh_expires_at", MICROSECONDS),
    Column("account", DIGEST),
    Column("created_at", MICROSECONDS, nullable=False),
    Column("consented_at", MICROSECONDS, nullable=False),
    Column("renewed_at", MICROSECONDS),
    Column("saved_by", ID),
    Column("claim_id", ID),
    Column("claimed_until", MICROSECONDS),
    Column("in_flight_since", MICROSECONDS),
    Column("in_flight_tries", Integer, nullable=False),
    Column("retry_at", MICROSECONDS),
    Column("failures", Integer, nullable=False),
    Column("prompt", LONG_TEXT),
    UniqueConstraint("registration", "member", name="tokenkeeper_grant_key"),
    mysql_engine="InnoDB",
)
Index("tokenkeeper_grant_due", grants.c.status, grants.c.access_expires_at)

authorizations = Table(
    "tokenkeeper_authorization",
    metadata,
    Column("state_digest", DIGEST, primary_key=True),
    Column("registration", KEY_BYTES, nullable=False),
    Column("member", KEY_BYTES, nullable=False),
    Column("session_digest", DIGEST),
    Column("verifier", SEALED),
    Column("redirect_uri", LONG_TEXT, nullable=False),
    Column("return_to", LONG_TEXT, nullable=False),
    Column("scopes", LONG_TEXT, nullable=False),
    Column("expires_at", MICROSECONDS, nullable=False),
    Column("consumed_at", MICROSECONDS),
    mysql_engine="InnoDB",
)
Index("tokenkeeper_authorization_end", authorizations.c.expires_at)

events = Table(
    "tokenkeeper_event",
    metadata,
    Column("event_id", DIGEST, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("registration", KEY_BYTES, nullable=False),
    Column("member", KEY_BYTES),
    Column("cause", String(255)),
    Column("happened_at", MICROSECONDS, nullable=False),
    Column("data", LONG_TEXT, nullable=False),
    mysql_engine="InnoDB",
)
Index("tokenkeeper_event_time", events.c.happened_at, events.c.event_id)

pauses = Table(
    "tokenkeeper_pause",
    metadata,
    Column("registration", KEY_BYTES, primary_key=True),
    Column("credentials", DIGEST, nullable=False),
    Column("cause", String(255), nullable=False),
    Column("fix", LONG_TEXT, nullable=False),
    Column("paused_at", MICROSECONDS, nullable=False),
    Column("probe_at", MICROSECONDS, nullable=False),
    mysql_engine="InnoDB",
)

schema = Table(
    "tokenkeeper_schema",
    metadata,
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("serves", Integer, nullable=False),
    mysql_engine="InnoDB",
)
"""One row a migration: its number, and the number of the oldest code that it serves."""


class database_now(FunctionElement[int]):  # noqa: N801 - reads as SQL
    """The database's clock, in microseconds since the epoch; not the transaction's start."""

    type = BigInteger()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _sqlite_now(_element: database_now, _compiler: Any, **_options: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000.0 + 0.5 AS INTEGER) * 1000"


@compiles(database_now, "postgresql")
def _postgresql_now(_element: database_now, _compiler: Any, **_options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(database_now, "mysql")
@compiles(database_now, "mariadb")
def _mysql_now(_element: database_now, _compiler: Any, **_options: Any) -> str:
    return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))"
