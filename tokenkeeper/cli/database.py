"""``tokenkeeper db``: the schema's state, and its migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tokenkeeper.cli.session import Group, Session, keeper_options, pass_session

if TYPE_CHECKING:
    from tokenkeeper.keeper import TokenKeeper


@click.group(cls=Group)
def db() -> None:
    """Create and upgrade tokenkeeper's tables."""


@db.command()
@keeper_options
@pass_session
@click.pass_context
def upgrade(ctx: click.Context, session: Session) -> None:
    """Run the migrations that the database has not seen.

    Safe from several processes at once.
    """
    keeper = session.keeper(ctx, keys=None, offline=True)
    keeper.create_schema()
    state = _state(keeper)
    session.out.result(state, [f"the schema is at revision {state['revision']} ({state['state']})"])


@db.command()
@keeper_options
@pass_session
@click.pass_context
def current(ctx: click.Context, session: Session) -> None:
    """Show the database's revision.

    And the newest one known here (head), and how the two stand to one another: current, outdated, newer or missing.
    """
    session.out.result(_state(session.keeper(ctx, keys=None, offline=True)))


def _state(keeper: TokenKeeper) -> dict[str, Any]:
    state = keeper.schema_state()
    return {"revision": state.revision, "head": state.head, "state": state.state}
