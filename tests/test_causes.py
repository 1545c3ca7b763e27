"""docs/refusals.md names every cause that a host can branch on; they are looked for in the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import tokenkeeper
from tokenkeeper.model import Remedy, Verdict

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(tokenkeeper.__file__).parent
WORD = re.compile(r"[a-z]+(?:_[a-z]+)*")
NAMING = {
    "Weather", "OperatorTurn", "MemberTurn", "Unsaved", "unavailable", "unprocessed", "ambiguous", "failed", "needs_member",
    "MarkGrant", "OpenPrompt", "refused_again", "reauthentication", "unfinished",
}  # fmt: skip
"""Calls in whose arguments a word is a cause."""
VERDICTS = {
    str(verdict)
    for verdict in Verdict
    if verdict.remedy not in (Remedy.NONE, Remedy.RENEW, Remedy.REPEAT)
}  # fmt: skip
"""Verdicts are causes, too, where their turn is the member's, the operator's or nobody's."""
COLUMNS = {"access_token", "refresh_token"}
"""What TamperingDetected names."""


def words(node: ast.expr) -> set[str]:
    """The words that an expression may be: itself, or what stands behind ``or`` and ``else``."""
    match node:
        case ast.Constant(str(text)) if WORD.fullmatch(text):
            return {text}
        case ast.BoolOp(values=parts):
            return set().union(*map(words, parts))
        case ast.IfExp(body=one, orelse=other):
            return words(one) | words(other)
    return set()


def causes_of(tree: ast.Module) -> set[str]:
    """The causes that a module names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name), args=arguments, keywords=keywords):
                if name in NAMING:
                    found = found.union(*map(words, arguments))
                found = found.union(*(words(keyword.value) for keyword in keywords if keyword.arg == "cause"))
            case ast.Assign(targets=[ast.Name("cause" | "DEADLOCK")], value=value):
                found |= words(value)
            case ast.AnnAssign(target=ast.Name("STATE_CAUSES"), value=ast.Dict(keys=keys)):
                found = found.union(*(words(key) for key in keys if key is not None))
            case ast.arguments(args=parameters, defaults=[*_, default]) if parameters[-1].arg == "cause":
                found |= words(default)
    return found


def in_source() -> set[str]:
    """The causes in the library's source; the command's own, and what is there for tests, no host meets."""
    modules = (path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in {"cli", "testing"})
    return set().union(*(causes_of(ast.parse(path.read_text(encoding="utf-8"))) for path in modules))


def in_table() -> dict[str, str]:
    """The causes in the document, each with whose turn it is."""
    text = (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8")
    section = re.search(r"^## The causes\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    rows: dict[str, str] = {}
    for names, turn in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", section[1], re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in rows, f"{name} stands there twice"
            rows[name] = turn
    return rows


def test_every_cause_is_documented() -> None:
    """A cause in the source is in the table, and no other."""
    wanted = in_source() | VERDICTS | COLUMNS
    assert {"lost_answer", "state_replayed", "refused_after_renewal", "deadlock", "store"} <= wanted, "the search works"
    assert set(in_table()) == wanted


def test_every_cause_has_its_turn() -> None:
    """Whose turn it is stands beside each, and a verdict's is the one that diagnose() says."""
    table = in_table()
    assert set(table.values()) == {"the member", "the operator", "nobody"}
    for verdict in VERDICTS & table.keys():
        turn = str(Verdict(verdict).turn)
        assert table[verdict] == {"member": "the member", "operator": "the operator", "nobody": "nobody"}[turn], verdict
