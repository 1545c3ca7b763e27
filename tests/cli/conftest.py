"""What the tests of the command share: a runner in an empty folder, and a database with a member's grant in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tokenkeeper.cli.app import cli

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TOKENKEEPER_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run the command with words, in the empty folder; ``stdin`` is its standard input."""

    def command(*words: str, stdin: str | bytes | None = None, **variables: str) -> Result:
        return CliRunner().invoke(cli, [*words], input=stdin, env=variables, prog_name="tokenkeeper")

    return command


def objects(text: str) -> list[Any]:
    """The JSON values of a text, one a line."""
    return [json.loads(line) for line in text.splitlines()]
