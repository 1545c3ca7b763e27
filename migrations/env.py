"""Alembic's way in: on the keeper's own connection, or on one from ``-x url=…``."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import Connection

from tokenkeeper.store.engine import make_engine, sync_url
from tokenkeeper.store.schema import VERSION_TABLE
from tokenkeeper.store.tables import metadata


def ours(name: str | None, kind: str, _parents: Any) -> bool:
    """Leave the host's own tables alone."""
    return kind != "table" or (name or "").startswith("tokenkeeper_")


def options() -> dict[str, Any]:
    """What every configuration of the context says."""
    return {"target_metadata": metadata, "version_table": VERSION_TABLE, "include_name": ours, "render_as_batch": True}


def run(connection: Connection) -> None:
    """Run the migrations on a connection."""
    context.configure(connection=connection, **options())
    with context.begin_transaction():
        context.run_migrations()


def url() -> str:
    """Return the URL that the command line names."""
    found = context.get_x_argument(as_dictionary=True).get("url")
    if not found:
        raise SystemExit("Name the database: alembic -x url=sqlite:///tokens.db upgrade head")
    return found


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
elif context.is_offline_mode():
    context.configure(url=sync_url(url()).render_as_string(hide_password=False), literal_binds=True, **options())
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = make_engine(url(), patient=True)
    with engine.connect() as own:
        run(own)
        own.commit()
    engine.dispose()
