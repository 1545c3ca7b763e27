"""How the command speaks: cells, pages, JSON, and errors by whose turn it is."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from uuid import UUID

import pytest

from tokenkeeper.cli import output
from tokenkeeper.cli.output import Output, as_json, clean, described, shown
from tokenkeeper.errors import (
    AccountBlocked,
    ConfigurationError,
    NotConnected,
    ReauthenticationRequired,
    RenewalInProgress,
    TemporarilyUnavailable,
    TokenKeeperError,
)
from tokenkeeper.providers import diagnose

MOMENT = datetime(2026, 11, 22, 12, 0, 5, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), ("", "-"), ((), "-"), ([], "-"), (True, "yes"), (False, "no"), (0, "0"), (1.5, "1.5"),
        (40.0, "40"), (9.600000000000001, "9.6"),
        (MOMENT, "2026-11-22T11:00:05Z"), (["a", None, "b"], "a - b"), (("a", MOMENT), "a 2026-11-22T11:00:05Z"),
        ("ann", "ann"), ("änn", "änn"), ("a\nb", "a\\nb"), ("\x1b[2J", "\\x1b[2J"), ("\u202eevil", "\\u202eevil"),
        ("\udc80", "\\udc80"),
    ],
)  # fmt: skip
def test_cells(value: object, text: str) -> None:
    """A cell is one line of printable text; times are UTC."""
    assert shown(value) == text
    assert shown(value).isprintable()


def test_json_is_one_line_of_ascii() -> None:
    """JSON holds times as ISO 8601, and everything that a terminal might obey is escaped."""
    text = as_json({"at": MOMENT, "text": "\x1b[2J\u202eä\n", "id": UUID(int=1), "more": MappingProxyType({"a": 1})})
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == {
        "at": "2026-11-22T12:00:05+01:00",
        "text": "\x1b[2J\u202eä\n",
        "id": str(UUID(int=1)),
        "more": {"a": 1},
    }


@pytest.mark.parametrize("text", ["plain", "[bold]not markup[/bold]", ":smile:"])
def test_text_is_printed_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and colons are text, no markup and no emoji."""
    Output(json=False).rows([{"a": text}], ["a"], nothing="")
    Output(json=False).result({"a": text})
    assert capsys.readouterr().out.count(text) == 2


def test_a_list_is_aligned_and_written_page_by_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list is never held as a whole: when row N is asked for, all but the page of it has been written."""
    monkeypatch.setattr(output, "PAGE", 2)
    written = []

    def rows() -> Iterator[dict[str, object]]:
        for number in range(5):
            written.append(len(capsys.readouterr().out.splitlines()))
            yield {"name": "x" * number, "number": number}

    Output(json=False).rows(rows(), ["name", "number"], nothing="nothing")
    assert written == [0, 0, 3, 0, 2]


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe, a header and aligned columns, without trailing blanks."""
    Output(json=False).rows([{"name": "a", "b": 1}, {"name": "longer", "b": None}], ["name", "b"], nothing="nothing")
    assert capsys.readouterr().out == "name    b\na       1\nlonger  -\n"


def test_an_empty_list_is_said_beside_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is nothing on stdout, and a word on stderr, which --json leaves out."""
    Output(json=False).rows([], ["name"], nothing="no grants")
    assert capsys.readouterr() == ("", "no grants\n")
    Output(json=True).rows([], ["name"], nothing="no grants")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_tables_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a page is a table, and words like ok have their colour; NO_COLOR is respected."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def printed() -> str:
        monkeypatch.setattr(sys, "stdout", Terminal())
        Output(json=False).rows([{"name": "\x1b[2Ja", "is_ok": "ok"}], ["name", "is_ok"], nothing="nothing")
        return sys.stdout.getvalue()  # type: ignore[attr-defined, no-any-return]

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mok" in printed()
    assert "\x1b[2J" not in printed()
    assert "is ok" in printed()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in printed()


@pytest.mark.parametrize(
    ("error", "turn", "fix"),
    [
        (ConfigurationError("wrong", fix="do this"), "operator", "do this"),
        (NotConnected("never", registration="linkedin", member="ann"), "member", "tokenkeeper connect linkedin ann"),
        (ReauthenticationRequired("over"), "member", "tokenkeeper connect REGISTRATION MEMBER"),
        (TemporarilyUnavailable("rain", retry_after=12.3), "nobody", "try again in 12 seconds"),
        (RenewalInProgress("busy"), "nobody", "try again later"),
        (ConfigurationError("refused", diagnosis=diagnose(403, {}, b"")), "operator", diagnose(403, {}, b"").fix),
        (ConfigurationError("wrong"), "operator", ""),
    ],
)
def test_an_error_says_what_whose_turn_and_what_to_do(
    error: TokenKeeperError, turn: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error is what happened, whose turn it is and what to do, on stderr, as text and as JSON."""
    Output(json=False).error(error)
    text = capsys.readouterr()
    assert text.out == ""
    assert f"error: {str(error).removesuffix(fix or ' ')}".rstrip() in text.err
    assert "turn:" in text.err
    assert fix in text.err
    Output(json=True).error(error)
    data = json.loads(capsys.readouterr().err)["error"]
    assert data["message"] == str(error)
    assert data["turn"] == turn
    assert fix in data["fix"]
    assert data["type"] == type(error).__name__


FIX = "Set X (see `y`)."
MEMBERS = "It is the member's turn: send them to begin_authorization('linkedin', 'a@b.c'); the grant's row is kept."


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (ConfigurationError(f"Refused: no. It is the operator's turn: {FIX}", fix=FIX), "Refused: no."),
        (ConfigurationError(f"Refused. It is the operator's turn. {FIX} Nothing was changed.", fix=FIX),
         "Refused. Nothing was changed."),
        (ConfigurationError("Refused. It is the operator's turn.", fix=FIX), "Refused."),
        (ConfigurationError(f"Kept; it is the operator's turn, not the member's. It is the operator's turn: {FIX}", fix=FIX),
         "Kept."),
        (ReauthenticationRequired(f"'ann' must connect again (revoked). It says so. {MEMBERS}"),
         "'ann' must connect again (revoked). It says so."),
        (AccountBlocked("It is closed. It is the member's turn, at the provider."), "It is closed."),
        (TemporarilyUnavailable("None (a). It is nobody's turn, and the grant is kept. Try again in 5 s.", retry_after=5.0),
         "None (a). The grant is kept. Try again in 5 s."),
        (TemporarilyUnavailable("Away. It is nobody's turn: try again; no grant has changed."),
         "Away. No grant has changed."),
        (RenewalInProgress("Busy. It is nobody's turn: try again."), "Busy."),
        (TemporarilyUnavailable("Mute. It is nobody's turn; the code is used up: let the member begin again."),
         "Mute. The code is used up: let the member begin again."),
        (ConfigurationError("as it says", fix="do this"), "as it says"),
    ],
)  # fmt: skip
def test_whose_turn_it_is_is_said_once(error: TokenKeeperError, left: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Turn and fix have lines of their own, so the message repeats neither, and does not end in the middle."""
    Output(json=False).error(error)
    first, turn, *_ = capsys.readouterr().err.splitlines()
    assert first == f"error: {left}"
    assert turn.startswith("turn:  ")


def test_an_errors_response_is_not_described() -> None:
    """The user's response may hold a token: it is not in what is printed."""
    error = NotConnected("never", response="a canary", member="ann", registration="x")
    assert "canary" not in json.dumps(described(error))


def test_clean_keeps_printable_text() -> None:
    """What is printable is not touched."""
    assert clean("Grüße, 世界") == "Grüße, 世界"
