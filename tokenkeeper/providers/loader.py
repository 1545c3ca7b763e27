"""A profile's TOML file → facts and rules. Whatever the file says wrongly is refused, naming file and line.

Refused are unknown keys, words outside a vocabulary, rules without a source, and rules that are never reached because
an earlier one holds wherever they do.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tokenkeeper.core.diagnosis import MIDNIGHT
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.rules import Condition, InChallenge, InHeader, InJson, InWords, Rule, wanted
from tokenkeeper.model import Surface, Verdict
from tokenkeeper.providers.checks import check_facts, check_seconds, problem

FILE_BYTES = 1_048_576
"""The largest profile that is read."""

FACTS = frozenset(each.name for each in fields(Profile)) - {"name", "rules"}
"""The keys of a profile's facts: the fields of :class:`~tokenkeeper.core.profile.Profile`."""

_ABOUT = frozenset({"checked", "rule"})
_RULE_TEXTS = ("name", "message", "fix", "source")
_RULE_KEYS = frozenset(
    {*_RULE_TEXTS, "surface", "status", "verdict", "challenge", "header", "json", "words", "retry_after", "scopes"}
)
_LIFETIMES = frozenset({"access_token", "refresh_token", "code"})
_CLASS = re.compile(r"([1-5])xx")
_RULE_HEADING = re.compile(r"^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What one file says: facts as its author wrote them, and compiled rules in order."""

    name: str
    facts: Mapping[str, Any]
    rules: tuple[Rule, ...]


def read_sheet(path: Path) -> Sheet:
    """Read and check a profile's file. Raises ConfigurationError naming file and line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise problem(
            str(path), f"cannot be read ({error.strerror})", "Give the path of a readable TOML file."
        ) from error
    if len(data) > FILE_BYTES:
        raise problem(str(path), "is larger than 1 MiB", "A profile is a short TOML file.")
    return parse_sheet(data, path.stem, str(path))


def parse_sheet(data: bytes, name: str, file: str) -> Sheet:
    """Parse and check a profile. Raises ConfigurationError naming file and line."""
    try:
        text = data.decode("utf-8")
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise problem(file, f"is not TOML: {error}", "Correct the file.") from error
    facts = {key: value for key, value in table.items() if key not in _ABOUT}
    _no_others(facts, FACTS, file)
    check_facts(facts, file)
    _check_lifetimes(facts.get("lifetimes", {}), file)
    tables = table.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise problem(file, "rule is not a list of tables", "Write each rule below a line [[rule]].")
    lines = [text.count("\n", 0, heading.start()) + 1 for heading in _RULE_HEADING.finditer(text)]
    lines = lines if len(lines) == len(tables) else [0] * len(tables)
    rules = tuple(_rule(each, name, file, line) for each, line in zip(tables, lines, strict=True))
    check_order(rules)
    return Sheet(name, facts, rules)


def check_order(rules: Sequence[Rule]) -> None:
    """Check that every rule can be reached and has a name of its own. Raises ConfigurationError naming both rules."""
    for index, later in enumerate(rules):
        for earlier in rules[:index]:
            if earlier.name == later.name:
                fix = "Give each rule a name of its own."
                raise problem(_place(later), f"rule {later.name} has the name of the rule in line {earlier.line}", fix)
            if earlier.covers(later):
                fix = "Move it up, or narrow the earlier rule."
                raise problem(_place(later), f"rule {later.name} is never reached: {earlier.name} comes first", fix)


def _place(rule: Rule) -> str:
    return f"{rule.file}:{rule.line}" if rule.line else rule.file


def _no_others(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise problem(where, f"unknown key {key!r}", f"Known keys: {', '.join(sorted(known))}.")


def _check_lifetimes(table: object, file: str) -> None:
    if not isinstance(table, dict):
        raise problem(file, "lifetimes is not a table", "Write [lifetimes] and below it access_token = 3600.")
    _no_others(table, _LIFETIMES, f"{file}: lifetimes")
    for name, value in table.items():
        check_seconds(value, f"lifetimes.{name}", file)


def _rule(table: dict[str, Any], sheet: str, file: str, line: int) -> Rule:
    where = f"{file}:{line}" if line else file
    _no_others(table, _RULE_KEYS, where)
    for key in _RULE_TEXTS:
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise problem(where, f"the rule has no {key}", "Every rule has a name, a message, a fix and a source.")
    try:
        return Rule(
            f"{sheet}/{table['name']}",
            Verdict(table.get("verdict", "")),
            table["message"].strip(),
            table["fix"].strip(),
            table["source"].strip(),
            surface=Surface(table.get("surface", "api")),
            statuses=_statuses(table.get("status", [])),
            conditions=tuple(_conditions(table)),
            retry_after=_path(table.get("retry_after")),
            scopes=_path(table.get("scopes")),
            file=file,
            line=line,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise problem(
            where, f"rule {table['name']}: {error}", "Correct the rule; docs/refusals.md has the format."
        ) from error


def _path(value: object) -> str | None:
    if value is None or value == MIDNIGHT or (isinstance(value, str) and all(value.split("."))):
        return value
    raise ValueError(f"{value!r} does not name a member of the body")


def _statuses(value: object) -> frozenset[int]:
    """Read ``401``, ``"5xx"`` or a list of such."""
    found: set[int] = set()
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int) and not isinstance(item, bool) and 100 <= item <= 599:
            found.add(item)
        elif isinstance(item, str) and (match := _CLASS.fullmatch(item)):
            found.update(range(int(match[1]) * 100, int(match[1]) * 100 + 100))
        else:
            raise ValueError(f"status {item!r} is neither a number from 100 to 599 nor a class like 4xx")
    return frozenset(found)


def _conditions(table: Mapping[str, Any]) -> Iterable[Condition]:
    """Compile a rule's conditions, the cheap ones first."""
    if "challenge" in table:
        yield InChallenge({_lower(name): wanted(values) for name, values in table["challenge"].items()})
    for name, values in table.get("header", {}).items():
        yield InHeader(_lower(name), wanted(values))
    for path, values in table.get("json", {}).items():
        if not all(path.split(".")):
            raise ValueError(f"{path!r} does not name a member of the body")
        yield InJson(path, wanted(values))
    for place, phrases in table.get("words", {}).items():
        texts = [phrases] if isinstance(phrases, str) else phrases
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"words.{place} is not a list of phrases")
        yield InWords(place, tuple(texts))


def _lower(name: str) -> str:
    if name != name.lower():
        raise ValueError(f"{name} is not in lower case")
    return name
