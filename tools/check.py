"""Checks what no linter knows: documents whose links and code hold, requirements that fit pyproject.toml, clean files.

Run by ``make check``; prints each finding as ``file: what is wrong`` and exits 1 if there is one.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import catalogue
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FIRST_COMMANDS = ["make demo", "make test"]
REGISTRIES = [
    ".".join(host) for host in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("debian", "org"))
]
TEXT = {".py", ".toml", ".ini", ".md", ".txt", ".sh", ".mako", ".html", ".json", ".jsonl", ""}


def main() -> int:
    """Print the findings; return the exit code."""
    findings = [
        *links(), *first_commands(), *code(), *commands(), *catalogue_page(), *requirements(), *hosts_and_paths(),
    ]  # fmt: skip
    print(*findings, sep="\n", end="\n" if findings else "")
    print(f"documents and requirements: {len(findings) or 'no'} finding{'s' * (len(findings) != 1)}")
    return bool(findings)


def links() -> Iterator[str]:
    """Relative links that lead nowhere, and anchors without a heading."""
    for document in DOCUMENTS:
        prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            there = (document.parent / path).resolve() if path else document
            if not there.exists():
                yield f"{document.name}: {target} leads nowhere"
            elif anchor and anchor not in anchors(there):
                yield f"{document.name}: {target}: no such heading"


def anchors(document: Path) -> set[str]:
    """The anchors that a Markdown renderer makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(document: Path, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def first_commands() -> Iterator[str]:
    """The README's first two commands are those of a newcomer."""
    shown = [
        line.partition("#")[0].strip() for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()
    ]
    if shown[:2] != FIRST_COMMANDS:
        yield f"README.md: the first two commands are {shown[:2]}, not {FIRST_COMMANDS}"


def code() -> Iterator[str]:
    """Python examples that do not parse, or import from tokenkeeper what is not there."""
    for document in DOCUMENTS:
        for block in blocks(document, "python"):
            try:
                tree = ast.parse(block)
            except SyntaxError as error:
                yield f"{document.name}: an example does not parse: {error}"
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tokenkeeper":
                    module = importlib.import_module(node.module or "")
                    yield from (
                        f"{document.name}: {node.module} has no {alias.name}"
                        for alias in node.names
                        if not hasattr(module, alias.name)
                    )


def commands() -> Iterator[str]:
    """Commands of the command line that the README does not name."""
    cli = importlib.import_module("tokenkeeper.cli.app").cli
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    yield from (
        f"README.md: the command {name!r} is not described" for name in cli.commands if f"`{name}" not in readme
    )


def catalogue_page() -> Iterator[str]:
    """The page of the providers, if it is not what the catalogue says."""
    if catalogue.DOCUMENT.read_text(encoding="utf-8") != catalogue.document():
        yield "providers.md: is not what the catalogue says; run `make docs`"


def requirements() -> Iterator[str]:
    """Requirements without hashes, with addresses, or that do not fit what pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups, extras = project["dependency-groups"], project["project"]["optional-dependencies"]
    core = project["project"]["dependencies"]
    asked = {
        "uv": groups["bootstrap"],
        "run": [*core, *extras["cli"], *groups["build"]],
        "dev": [*core, *(line for extra in extras.values() for line in extra), *groups["build"], *groups["dev"]],
        "peers": [*core, *groups["peers"]],
        "interop": groups["interop"],
    }
    for name, lines in asked.items():
        path = ROOT / "requirements" / f"{name}.txt"
        text = path.read_text(encoding="utf-8")
        pins = {
            canonicalize_name(pin): version
            for pin, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, flags=re.MULTILINE)
        }
        if "://" in text:
            yield f"{path.name}: holds an address"
        if len(re.findall(r"^[\w.-]+==.*\\\n    --hash=", text, flags=re.MULTILINE)) != len(pins):
            yield f"{path.name}: a pin without hashes"
        for requirement in map(Requirement, lines):
            version = pins.get(canonicalize_name(requirement.name))
            if version is None or not requirement.specifier.contains(version):
                yield f"{path.name}: {requirement} is not met by {version}; run make requirements"


def hosts_and_paths() -> Iterator[str]:
    """Committed files that name a package registry's host or this checkout's own path."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix in TEXT and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from (f"{name}: names {word}" for word in (*REGISTRIES, f"{ROOT}/") if word in text)


if __name__ == "__main__":
    sys.exit(main())
