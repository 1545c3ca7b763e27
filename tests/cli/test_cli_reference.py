"""docs/cli.md is what ``--help`` says. Write it anew with ``python tests/cli/test_cli_reference.py``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tokenkeeper.cli.app import cli

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "cli.md"

HEAD = """\
# The command `tokenkeeper`

Needs the extra: `pip install 'tokenkeeper[cli]'`. This page is written by `python tests/cli/test_cli_reference.py`
from what `--help` says, and a test holds the two equal.

Every command takes `--json`: results are then a JSON object on stdout, or JSON Lines where the command lists; an error
is `{"error": {"type", "message", "turn", "fix", "cause", "registration", "member"}}` on stderr. Without it, results are
tables on a terminal and aligned text in a pipe; `NO_COLOR` is respected. What is said beside a result goes to stderr.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | refused or failed: the error says what happened, whose turn it is and what to do |
| 2 | wrong usage, or the extra is not installed |

No token, code or client secret is ever printed. `keys generate` without `--output` prints the new key, and `connect`
the URL that the member must open.

Commands that need a keeper take it from `--app module:attribute` (your application's own `TokenKeeper` or
`AsyncTokenKeeper`), or make one from the settings: `--config`, else `TOKENKEEPER_CONFIG`, else `./tokenkeeper.toml`,
where `TOKENKEEPER_DATABASE_URL` and `TOKENKEEPER_KEYS` outrank the file. `tokenkeeper init` writes a commented one.
"""


def commands(command: click.Command, ctx: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """The command and all below it, each with its context."""
    yield command, ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from commands(below, click.Context(below, ctx, name))


def document() -> str:
    """The reference, as Markdown."""
    root = click.Context(cli, info_name="tokenkeeper", **cli.context_settings)
    return HEAD + "".join(section(command, ctx) for command, ctx in commands(cli, root))


def section(command: click.Command, ctx: click.Context) -> str:
    """One command: usage, what it does, arguments and options."""
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    paragraphs = (command.help or "").split("\n\n")
    text = "\n\n".join(re.sub(r"\s+", " ", paragraph).strip() for paragraph in paragraphs)
    records = [record for param in command.get_params(ctx) if (record := param.get_help_record(ctx)) is not None]
    options = "".join(f"| `{option.replace('|', ' or ')}` | {text} |\n" for option, text in records)
    return f"\n## {ctx.command_path}\n\n```\n{usage}\n```\n\n{text}\n\n| option | |\n|---|---|\n{options}"


ALL = {ctx.command_path: command for command, ctx in commands(cli, click.Context(cli, info_name="tokenkeeper"))}


def test_the_reference_is_what_help_says() -> None:
    """docs/cli.md is up to date."""
    assert DOCUMENT.read_text(encoding="utf-8") == document()


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_help(path: str) -> None:
    """Every command and every option says what it is for, and --json is everywhere."""
    command = ALL[path]
    done = CliRunner().invoke(cli, [*path.split()[1:], "--help"])
    assert done.exit_code == 0
    assert command.help
    short = command.get_short_help_str(60)
    assert command is cli or (short.endswith(".") and "..." not in short), "its first sentence is too long"
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert all(option.help for option in options)
    assert isinstance(command, click.Group) or "--json" in done.output


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
