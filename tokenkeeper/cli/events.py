"""``tokenkeeper events``: what happened, as the event table recorded it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any

import click

from tokenkeeper import events as news
from tokenkeeper.cli.output import Output, clean, shown
from tokenkeeper.cli.session import Group, Session, keeper_options, pass_session

KINDS = sorted(
    name
    for name, kind in vars(news).items()
    if isinstance(kind, type) and issubclass(kind, news.Event) and kind not in (news.Event, news.GrantEvent)
)
COLUMNS = ["at", "kind", "registration", "member", "cause"]


@click.group(cls=Group)
def events() -> None:
    """Read the record of what happened."""


@events.command("list")
@click.option("--kind", type=click.Choice(KINDS), help="Only such events.")
@click.option("--registration", metavar="NAME", help="Only this registration's.")
@click.option("--member", metavar="ID", help="Only this member's.")
@click.option("--last", type=click.IntRange(1, 100_000), metavar="N", help="Only the newest N.")
@click.option(
    "--full", is_flag=True, help="Show all of each event, with the incident record for the provider's support."
)
@keeper_options
@pass_session
@click.pass_context
def list_(
    ctx: click.Context,
    session: Session,
    *,
    kind: str | None,
    registration: str | None,
    member: str | None,
    last: int | None,
    full: bool,
) -> None:
    """List events, the newest last.

    --json and --full show the incidents to hand to a provider's support.
    """
    keeper = session.keeper(ctx, offline=True)
    if registration is not None:
        keeper.profile(registration)  # refuses a name that is no registration
    found = keeper.events(kind=kind, registration=registration, member=member, newest_first=last is not None)
    rows: Iterable[Mapping[str, Any]] = found if last is None else reversed(list(islice(found, last)))
    if full and not session.json:
        _in_full(session.out, rows)
    else:
        session.out.rows(rows if session.json else map(_with_time, rows), COLUMNS, nothing="no events")


def _with_time(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "at": datetime.fromisoformat(row["at"])}


def _in_full(out: Output, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in map(_with_time, rows):
        out.text("  ".join(shown(row.get(column)) for column in COLUMNS))
        for line in _indented({name: value for name, value in row.items() if name not in COLUMNS and value}):
            out.text(f"    {line}")


def _indented(more: Mapping[str, Any]) -> Iterator[str]:
    text = json.dumps(more, default=str, indent=2, ensure_ascii=False)
    return (clean(line) for line in text.splitlines())
