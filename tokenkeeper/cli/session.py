"""What the commands share: the options ``--json``, ``--config`` and ``--app``, the keeper, and the end of an error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tokenkeeper.cli.output import Output
from tokenkeeper.config import CONFIG_VARIABLE, FILE_NAME, Settings, keeper_from_app, load
from tokenkeeper.errors import TokenKeeperError

if TYPE_CHECKING:
    from tokenkeeper.keeper import TokenKeeper

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Session:
    """One run of the command: what the common options said, wherever they stood."""

    json: bool = False
    config: str | None = None
    app: str | None = None

    @property
    def out(self) -> Output:
        """Where this run's words go."""
        return Output(self.json)

    def settings(self) -> Settings:
        """Return the settings. Raises ConfigurationError."""
        return load(self.config)

    def keeper(self, ctx: click.Context, **overrides: Any) -> TokenKeeper:
        """Return the keeper of ``--app``, or one of the settings with *overrides*, closed when the command ends."""
        if self.app:
            if self.config:
                raise click.UsageError(
                    "--app names a keeper that is set up already: --config would have no effect.", ctx
                )
            return keeper_from_app(self.app)
        return ctx.with_resource(self.settings().keeper(**overrides))


pass_session = click.make_pass_decorator(Session, ensure=True)


class Command(click.Command):
    """A command whose TokenKeeperErrors end as what happened, whose turn it is and what to do, and exit 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TokenKeeperError as error:
            ctx.ensure_object(Session).out.error(error)
            ctx.exit(1)


class Group(click.Group):
    """A group of such commands, in the order in which they were added."""

    command_class = Command
    group_class = type

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the base's signature
        """Return the commands in the order of the manual."""
        return list(self.commands)


def interactive() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty()


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value:
        setattr(ctx.ensure_object(Session), str(param.name), value)


def json_option(function: F) -> F:
    """Add ``--json``."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="Print JSON: an object, or a line of it a row.",
    )(function)


def keeper_options(function: F) -> F:
    """Add ``--json``, ``--config`` and ``--app``."""
    from_file = click.option(
        "--config", metavar="FILE", expose_value=False, callback=_remember,
        help=f"The settings (default: ${CONFIG_VARIABLE}, or ./{FILE_NAME}).",
    )  # fmt: skip
    from_app = click.option(
        "--app", metavar="MODULE:ATTRIBUTE", expose_value=False, callback=_remember,
        help="Use your application's own keeper instead of the settings.",
    )  # fmt: skip
    return json_option(from_file(from_app(function)))
