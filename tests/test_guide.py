"""docs/adding-a-provider.md can be followed to the end: its files are written, its commands run, what they print compared.

``python tests/test_guide.py`` puts what the commands print now into the guide.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tokenkeeper.crypto import generate_key

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "adding-a-provider.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


class Reader:
    """Somebody who follows the guide in an empty folder. The network alone is a stand-in: ``curl`` prints what it shows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        commands = folder / ".commands"
        commands.mkdir()
        self._curl = commands / "answer"
        self._command(commands / "tokenkeeper", f'exec {shlex.quote(sys.executable)} -m tokenkeeper "$@"')
        self._command(commands / "curl", f"exec cat {shlex.quote(str(self._curl))}")
        own = {name: value for name, value in os.environ.items() if not name.startswith("TOKENKEEPER_")}
        self.environment = {
            **own,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "TOKEN": "t",
            "TOKENKEEPER_KEYS": generate_key("2026-11"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(GUIDE.parent.parent), os.environ.get("PYTHONPATH", "")])),
        }

    @staticmethod
    def _command(path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def follow(self, guide: str) -> str:
        """Return the guide with what its commands print here."""
        return BLOCK.sub(lambda block: f"```{block[1]}\n{self._do(block[1], block[2])}```\n", guide)

    def _do(self, kind: str, text: str) -> str:
        match kind:
            case "console":
                return "".join(self._run(command, shown) for command, shown in self._commands(text))
            case "toml":
                self._write(text)
            case "python":
                self._python(text)
        return text

    @staticmethod
    def _commands(text: str) -> list[tuple[str, str]]:
        """The commands of a block (with a here-document, if there is one), and what is shown below each."""
        found = []
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\nEND\n" if "<<'END'" in part else "\n")
            found.append((command + "\nEND" * ("<<'END'" in part), shown))
        return found

    def _run(self, command: str, shown: str) -> str:
        self._curl.write_bytes(shown.removesuffix("\n").replace("\n", "\r\n").encode())
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False,
        )  # fmt: skip
        printed = done.stdout.decode().replace("\r\n", "\n")
        return f"$ {command}\n{printed}" + "\n" * bool(printed and not printed.endswith("\n"))

    def _write(self, text: str) -> None:
        """The first line names the file; "at the end" adds to it."""
        first = text.partition("\n")[0].removeprefix("# ")
        name, _, where = first.partition(", ")
        with (self.folder / name).open("a" if where else "w", encoding="utf-8") as file:
            file.write(text.partition("\n")[2] if where else text)

    def _python(self, text: str) -> None:
        """The comments of a line that prints are what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", text],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", text, re.MULTILINE)


def test_the_guide_can_be_followed_to_the_end(tmp_path: Path) -> None:
    """Each command prints what the guide shows, and each file is as it says; the tokens in it are made up and masked."""
    text = GUIDE.read_text(encoding="utf-8")
    assert Reader(tmp_path).follow(text) == text
    vectors = (tmp_path / "acme.jsonl").read_text()
    assert vectors.count("\n") == 2
    assert "acme_live" not in vectors
    assert "ann@" not in vectors
    assert "0 failed, 0 warnings" in text


def test_the_guides_links_and_verdicts_are_there() -> None:
    """The guide leads on to the format and to the verdicts, and those who look for it find it."""
    root = GUIDE.parent
    assert "adding-a-provider.md" in (root / "refusals.md").read_text(encoding="utf-8")
    assert "docs/adding-a-provider.md" in (root.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["console", "toml", "python"])
def test_the_guide_has_all_kinds_of_blocks(kind: str) -> None:
    """The reader above is given something to do: no kind of block is overlooked by a change of its markup."""
    kinds = [block[1] for block in BLOCK.finditer(GUIDE.read_text(encoding="utf-8"))]
    assert kinds.count(kind) >= 1
    assert set(kinds) <= {"console", "toml", "python", "sh"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GUIDE.write_text(Reader(Path(folder)).follow(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
