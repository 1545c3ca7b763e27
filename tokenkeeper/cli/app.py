"""The group ``tokenkeeper`` and its commands."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

import click

from tokenkeeper.cli import connect, database, doctor, events, explain, grants, init, keys, providers
from tokenkeeper.cli.session import Group, Session, json_option, keeper_options, pass_session


def _version() -> str:
    try:
        return version("tokenkeeper")
    except PackageNotFoundError:
        return "unknown (a checkout that is not installed)"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="tokenkeeper")
@keeper_options
def cli() -> None:
    """Keep OAuth tokens alive: look after grants, keys and the database, and read what a 401 says.

    Exit status: 0 done, 1 refused or failed, 2 wrong usage. Secrets are never printed (but for a new key, by `keys
    generate` without --output).
    """


@cli.command()
@json_option
@pass_session
@click.pass_context
def demo(ctx: click.Context, session: Session) -> None:
    """Show each refusal and what becomes of it.

    Runs against a stand-in for LinkedIn on this machine, needs no settings and leaves nothing behind.
    """
    ctx.exit(importlib.import_module("tokenkeeper.cli.demo").run(session.json))


for command in (
    init.init, doctor.doctor, database.db, keys.keys, providers.providers, grants.grants, connect.connect,
    events.events, explain.explain,
):  # fmt: skip
    cli.add_command(command)
