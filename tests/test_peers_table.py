"""The README's comparison with other libraries says when and with what it was measured, and leaves none of them out."""

from __future__ import annotations

import ast
import re
import tomllib
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = sorted(ROOT.glob("benchmarks/peers/adapters/[!_]*.py"))


@pytest.fixture(scope="module")
def shown() -> str:
    """What stands between the README's two marks."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^<!-- peers: .*?-->\n(.*?)^<!-- /peers -->$", readme, flags=re.DOTALL | re.MULTILINE)
    assert found, "the README has no peers' table"
    return found[1]


def title(adapter: Path) -> str:
    """What the table calls an adapter's peer."""
    for node in ast.parse(adapter.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["TITLE"]:
            return str(ast.literal_eval(node.value))
    raise AssertionError(f"{adapter.name} has no TITLE")


def test_it_has_a_date(shown: str) -> None:
    """The table begins with the day on which it was measured."""
    assert date.fromisoformat(shown.partition(",")[0]).year >= 2026


def test_it_names_the_pinned_versions(shown: str) -> None:
    """A peer that is pinned anew is measured anew."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = [pin.replace("_", "-").split("==") for pin in project["dependency-groups"]["peers"]]
    assert len(pins) >= 6
    assert [f"{name} {version}" for name, version in pins if f" {name} {version}," not in shown] == []


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.stem)
def test_every_peer_is_in_both_tables(shown: str, adapter: Path) -> None:
    """One process, and several: each peer has a row in both, with its grants counted."""
    rows = [line for line in shown.splitlines() if line.startswith(f"| {title(adapter)} |")]
    assert len(rows) == 2
    assert all(re.search(r"\| \d+ of \d+ \| \d+(\.5)? of (40|50) \| \d+ ms \|", row) for row in rows)
