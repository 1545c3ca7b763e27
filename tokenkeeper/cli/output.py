"""How the command speaks: tables on a terminal, aligned text in a pipe, JSON where ``--json`` asks for it.

Results go to stdout, what is said beside them to stderr. What came from a provider or a database is shown with its
control characters escaped: it must not move a terminal's cursor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenkeeper.errors import TokenKeeperError
from tokenkeeper.model import Turn

PAGE = 100
"""Rows that are laid out together, so that a long list needs no more memory than a page."""

_STYLES = {
    "ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim",
    Turn.US: "cyan", Turn.MEMBER: "magenta", Turn.OPERATOR: "bold red", Turn.NOBODY: "blue",
}  # fmt: skip
_WHOSE = {
    Turn.US: "tokenkeeper's",
    Turn.MEMBER: "the member's",
    Turn.OPERATOR: "the operator's",
    Turn.NOBODY: "nobody's (it passes by itself)",
}

_FOR_MEMBERS = re.compile(r"(?i);? it is the member's turn\b(?!, not).*", re.DOTALL)
"""What an error says from here on is for a host's developer; the command says it in its own words."""
_SAID_OF_TURN = re.compile(
    r"(?i)(;)? it is (?:the operator's turn(?:, not the member's)?|nobody's turn)(?:, and|[.:;,])?"
    r"(?: try again(?:;|\.|$))?(?: +(\w))?"
)

Row = Mapping[str, Any]


def clean(text: str) -> str:
    """Return *text* with everything that is not printable escaped; line breaks too."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in text)


def shown(value: object) -> str:
    """Return a value as a cell of a table shows it: times in UTC, lists with blanks, nothing as a dash."""
    match value:
        case None | "" | () | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}".rstrip("0").rstrip(".")
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case list() | tuple():
            return " ".join(shown(one) for one in value)
        case _:
            return clean(str(value))


def statuses(found: Iterable[int]) -> str:
    """Return the statuses that a rule is about: a class where it is about all of it, ``any`` where there are none."""
    words, left = [], set(found)
    for hundred in range(100, 600, 100):
        if left.issuperset(whole := range(hundred, hundred + 100)):
            words.append(f"{hundred // 100}xx")
            left.difference_update(whole)
    return " ".join([*map(str, sorted(left)), *words]) or "any"


def lasting(seconds: float) -> str:
    """Return a duration in seconds, and in a larger unit that measures it without a rest."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            count = round(seconds / length)
            return f"{shown(float(seconds))} ({count} {unit}{'s' * (count != 1)})"
    return shown(float(seconds))


def whose(turn: Turn) -> str:
    """Return whose turn it is, as a sentence says it."""
    return _WHOSE[turn]


def as_json(value: object) -> str:
    """Return one line of JSON, in ASCII; times are ISO 8601."""
    return json.dumps(value, default=_json_value)


def _json_value(value: object) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case Mapping():
            return dict(value)
        case _:
            return str(value)


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's words go."""

    json: bool

    @property
    def _stderr(self) -> Console:
        return Console(stderr=True, highlight=False, soft_wrap=True)

    def result(self, data: Row, lines: Iterable[str | Text] = ()) -> None:
        """Print a result: *data* with ``--json``, else *lines* (without them, the names and values of *data*)."""
        if self.json:
            self.line(data)
            return
        width = max((len(name) for name in data), default=0)
        for line in lines or (f"{name.replace('_', ' '):<{width}}  {shown(value)}" for name, value in data.items()):
            self.text(line)

    def line(self, data: Row) -> None:
        """Print one line of JSON."""
        click.echo(as_json(data))

    def text(self, text: str | Text) -> None:
        """Print one line of text."""
        Console(highlight=False, soft_wrap=True).print(text if isinstance(text, Text) else Text(text))

    def rows(self, rows: Iterable[Row], columns: Sequence[str], *, nothing: str) -> None:
        """Print a list as it comes: JSON Lines, on a terminal a table a page, else aligned text."""
        if self.json:
            for row in rows:
                self.line(row)
            return
        console = Console(highlight=False)
        widths = [len(column) for column in columns]
        first = True
        for page in _pages(rows):
            cells = [[shown(row.get(column)) for column in columns] for row in page]
            if console.is_terminal:
                console.print(_table(columns, cells))
            else:
                widths = [
                    max(width, *map(len, column))
                    for width, column in zip(widths, zip(*cells, strict=True), strict=True)
                ]
                for line in [[*columns], *cells] if first else cells:
                    click.echo("  ".join(map(str.ljust, line, widths)).rstrip())
            first = False
        if first:
            self.say(nothing)

    def say(self, text: str | Text) -> None:
        """Say something beside the result, on stderr; with ``--json`` nothing is said."""
        if not self.json:
            self._stderr.print(text if isinstance(text, Text) else Text(text))

    def complain(self, data: Row, text: str) -> None:
        """Report something wrong with a part of the input, on stderr: *data* with ``--json``, else *text*."""
        if self.json:
            click.echo(as_json(data), err=True)
        else:
            self._stderr.print(Text(text, style="red"))

    def error(self, error: TokenKeeperError) -> None:
        """Print what happened, whose turn it is and what to do, on stderr."""
        data = described(error)
        if self.json:
            click.echo(as_json({"error": data}), err=True)
            return
        console = self._stderr
        console.print(Text.assemble(("error: ", "bold red"), clean(without_fix(error))))
        console.print(Text.assemble("turn:  ", (whose(error.turn), _STYLES[error.turn])))
        if data["fix"]:
            console.print(Text.assemble("do:    ", clean(data["fix"])))


def described(error: TokenKeeperError) -> dict[str, Any]:
    """Return an error as JSON shows it: what happened, whose turn it is, what to do. No response, no token."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "turn": error.turn,
        "fix": fix_of(error),
        "cause": error.cause,
        "registration": error.registration,
        "member": error.member,
    }


def fix_of(error: TokenKeeperError) -> str:
    """Return what to do about an error, from the error itself, its diagnosis or whose turn it is."""
    fix = getattr(error, "fix", "") or (error.diagnosis.fix if error.diagnosis else "")
    if fix:
        return str(fix)
    if error.turn is Turn.MEMBER:
        command = f"tokenkeeper connect {error.registration or 'REGISTRATION'} {error.member or 'MEMBER'}"
        return f"let the member connect again, in your application or with `{command}`"
    if error.turn is Turn.NOBODY:
        wait = getattr(error, "retry_after", None)
        return f"try again in {wait:.0f} seconds" if wait else "try again later"
    return ""


def without_fix(error: TokenKeeperError) -> str:
    """Return what happened, as an error says it, less whose turn it is and the fix: they have lines of their own."""
    fix = fix_of(error)
    text = str(error).replace(fix, "") if fix else str(error)
    text = _FOR_MEMBERS.sub(lambda found: "." if found[0].startswith(";") else "", text)
    for _ in range(2):  # one error may quote another
        text = _SAID_OF_TURN.sub(_less_turn, text)
    return text.strip()


def _less_turn(found: re.Match[str]) -> str:
    """What is left of the words that say whose turn it is: the end of the sentence before, the beginning of the next."""
    return f"{'.' if found[1] else ''} {(found[2] or '').upper()}".rstrip()


def styled(word: str) -> Text:
    """Return a word in its colour: ok, warn, fail, or a turn."""
    return Text(word, style=_STYLES.get(word, ""))


def _pages(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while page := list(islice(iterator, PAGE)):
        yield page


def _table(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> Table:
    table = Table(*(column.replace("_", " ") for column in columns), header_style="bold", box=None, pad_edge=False)
    for line in cells:
        table.add_row(*(styled(cell) for cell in line))
    return table
