"""The grants, the authorizations that were begun, the events and the pauses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = 1
SERVES = 1
"""The oldest code (by the number of its newest migration) that can work with this schema."""

KEY_BYTES = sa.LargeBinary(255).with_variant(mysql.VARBINARY(255), "mysql", "mariadb")
SEALED = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
LONG_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4"), "mysql", "mariadb")


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "tokenkeeper_grant",
        sa.Column("grant_id", sa.String(32), primary_key=True),
        sa.Column("registration", KEY_BYTES, nullable=False),
        sa.Column("member", KEY_BYTES, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("scopes", LONG_TEXT, nullable=False),
        sa.Column("access_token", SEALED, nullable=False),
        sa.Column("refresh_token", SEALED),
        sa.Column("access_expires_at", sa.BigInteger()),
        sa.Column("refresh_expires_at", sa.BigInteger()),
        sa.Column("account", sa.String(64)),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("consented_at", sa.BigInteger(), nullable=False),
        sa.Column("renewed_at", sa.BigInteger()),
        sa.Column("saved_by", sa.String(32)),
        sa.Column("claim_id", sa.String(32)),
        sa.Column("claimed_until", sa.BigInteger()),
        sa.Column("in_flight_since", sa.BigInteger()),
        sa.Column("in_flight_tries", sa.Integer(), nullable=False),
        sa.Column("retry_at", sa.BigInteger()),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("prompt", LONG_TEXT),
        sa.UniqueConstraint("registration", "member", name="tokenkeeper_grant_key"),
        mysql_engine="InnoDB",
    )
    op.create_index("tokenkeeper_grant_due", "tokenkeeper_grant", ["status", "access_expires_at"])
    op.create_table(
        "tokenkeeper_authorization",
        sa.Column("state_digest", sa.String(64), primary_key=True),
        sa.Column("registration", KEY_BYTES, nullable=False),
        sa.Column("member", KEY_BYTES, nullable=False),
        sa.Column("session_digest", sa.String(64)),
        sa.Column("verifier", SEALED),
        sa.Column("redirect_uri", LONG_TEXT, nullable=False),
        sa.Column("return_to", LONG_TEXT, nullable=False),
        sa.Column("scopes", LONG_TEXT, nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("consumed_at", sa.BigInteger()),
        mysql_engine="InnoDB",
    )
    op.create_index("tokenkeeper_authorization_end", "tokenkeeper_authorization", ["expires_at"])
    op.create_table(
        "tokenkeeper_event",
        sa.Column("event_id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("registration", KEY_BYTES, nullable=False),
        sa.Column("member", KEY_BYTES),
        sa.Column("cause", sa.String(255)),
        sa.Column("happened_at", sa.BigInteger(), nullable=False),
        sa.Column("data", LONG_TEXT, nullable=False),
        mysql_engine="InnoDB",
    )
    op.create_index("tokenkeeper_event_time", "tokenkeeper_event", ["happened_at", "event_id"])
    op.create_table(
        "tokenkeeper_pause",
        sa.Column("registration", KEY_BYTES, primary_key=True),
        sa.Column("credentials", sa.String(64), nullable=False),
        sa.Column("cause", sa.String(255), nullable=False),
        sa.Column("fix", LONG_TEXT, nullable=False),
        sa.Column("paused_at", sa.BigInteger(), nullable=False),
        sa.Column("probe_at", sa.BigInteger(), nullable=False),
        mysql_engine="InnoDB",
    )
    schema = op.create_table(
        "tokenkeeper_schema",
        sa.Column("revision", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("serves", sa.Integer(), nullable=False),
        mysql_engine="InnoDB",
    )
    op.bulk_insert(schema, [{"revision": NUMBER, "serves": SERVES}])


def downgrade() -> None:
    """Drop all tables, with every token in them."""
    for table in ("schema", "pause", "event", "authorization", "grant"):
        op.drop_table(f"tokenkeeper_{table}")
