"""A profile's TOML file → facts and rules. Whatever the file says wrongly is refused, naming file and line.

Refused are unknown keys, words outside a vocabulary, rules without a source, and rules that are never reached because
an earlier one holds wherever they do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import tomli

from tokenkeeper.core.diagnosis import MIDNIGHT
from tokenkeeper.core.profile import Parameter, Profile
from tokenkeeper.core.redaction import is_secret_member
from tokenkeeper.core.rules import Condition, InChallenge, InHeader, InJson, InWords, Rule, Silent, wanted
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Rotation, Surface, Verdict
from tokenkeeper.providers.checks import (
    DATES,
    ENDPOINTS,
    check_fact,
    check_parameter,
    check_seconds,
    check_together,
    placeholders,
    problem,
)

RULES = 500
"""The most rules of a profile."""
FILE_BYTES = 1_048_576
"""The largest profile that is read."""

FACTS = frozenset(each.name for each in fields(Profile)) - {"name", "rules"}
"""The keys of a profile's facts: the fields of :class:`~tokenkeeper.core.profile.Profile`."""

_RULE_TEXTS = ("name", "message", "fix", "source")
_RULE_KEYS = frozenset(
    {*_RULE_TEXTS, "surface", "status", "verdict", "challenge", "header", "json", "words", "retry_after", "scopes"}
)
_TOP_KEYS = FACTS | {"rule"}
_FACTS_ONLY = FACTS - _RULE_KEYS
TOKEN_VERDICTS = frozenset(
    {
        Verdict.GRANT_EXPIRED,
        Verdict.GRANT_REVOKED,
        Verdict.GRANT_REUSED,
        Verdict.GRANT_INVALID,
        Verdict.INTERACTION_REQUIRED,
    }
)
"""What only a token endpoint can say, of a refresh token."""

VERDICTS = {verdict.value: verdict for verdict in Verdict}
SURFACES = {surface.value: surface for surface in Surface}
W = TypeVar("W", Verdict, Surface)
_LIFETIMES = frozenset({"access_token", "refresh_token", "code"})
_PARAMETER_KEYS = frozenset({"about", "default", "one_of"})
_OPEN_HOST = re.compile(r"https?://[^/{]+[^/]*\{(\w+)\}(?:[:/?]|$)")
_CLASS = re.compile(r"([1-5])xx")
_RULE_HEADING = re.compile(r"\[\[[ \t]*rule[ \t]*\]\]")


@dataclass(frozen=True, slots=True)
class Sheet:
    """What one file says: facts by the names of a Profile's fields, and compiled rules in order."""

    name: str
    facts: Mapping[str, Any]
    rules: tuple[Rule, ...]


def read_sheet(path: Path, *, ordered: bool = False) -> Sheet:
    """Read and check a profile's file. Raises ConfigurationError naming file and line.

    *ordered*: that each rule can be reached was checked before (the catalogue's tests do), and is not checked again.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise problem(
            str(path), f"cannot be read ({error.strerror})", "Give the path of a readable TOML file."
        ) from error
    if len(data) > FILE_BYTES:
        raise problem(str(path), "is larger than 1 MiB", "A profile is a short TOML file.")
    return parse_sheet(data, path.stem, str(path), ordered=ordered)


def parse_sheet(data: bytes, name: str, file: str, *, ordered: bool = False) -> Sheet:
    """Parse and check a profile. Raises ConfigurationError naming file and line."""
    try:
        text = data.decode("utf-8")
        table = tomli.loads(text)
    except (ValueError, RecursionError) as error:
        raise problem(file, f"is not TOML: {error}", "Correct the file.") from error
    facts = _facts(table, text, file)
    tables = table.get("rule", [])
    if isinstance(tables, list) and len(tables) > RULES:
        raise problem(file, f"has more than {RULES} rules", "Several codes with one meaning go in one rule.")
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise problem(file, "rule is not a list of tables", "Write each rule below a line [[rule]].")
    rules = tuple([_rule(each, name, file, line) for each, line in zip(tables, _lines(text, len(tables)), strict=True)])
    if not ordered:
        check_order(rules)
    if not facts.get("errors_in_200"):
        _check_successes(rules)
    return Sheet(name, facts, rules)


def _lines(text: str, rules: int) -> list[int]:
    """Return the line of each rule's heading; 0 where it cannot be told."""
    lines, line, position = [], 1, 0
    for heading in _RULE_HEADING.finditer(text):
        line += text.count("\n", position, heading.start())
        position = heading.start()
        if not text[text.rfind("\n", 0, position) + 1 : position].strip():
            lines.append(line)
    return lines if len(lines) == rules else [0] * rules


def check_order(rules: Sequence[Rule]) -> None:
    """Check that every rule can be reached and has a name of its own. Raises ConfigurationError naming both rules."""
    named: dict[str, Rule] = {}
    for rule in rules:
        earlier = named.setdefault(rule.name, rule)
        if earlier is not rule:
            fix = "Give each rule a name of its own."
            raise problem(_place(rule), f"rule {rule.name} has the name of the rule in line {earlier.line}", fix)
    subjects = [frozenset([rule.surface, *[condition.subject for condition in rule.conditions]]) for rule in rules]
    for index, rule in enumerate(rules):
        for earlier, asked in zip(rules[:index], subjects, strict=False):
            if asked <= subjects[index] and earlier.covers(rule):
                fix = "Move it up, or narrow the earlier rule."
                raise problem(_place(rule), f"rule {rule.name} is never reached: {earlier.name} comes first", fix)


def _check_successes(rules: Sequence[Rule]) -> None:
    for rule in rules:
        if rule.surface is Surface.API and rule.statuses and max(rule.statuses) < 300 and min(rule.statuses) >= 200:
            fix = "Write errors_in_200 = true above the rules, if the provider hides errors in successes."
            raise problem(_place(rule), f"rule {rule.name} is never reached: successes are not looked into", fix)


def _place(rule: Rule) -> str:
    return f"{rule.file}:{rule.line}" if rule.line else rule.file


def _no_others(table: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    if not table.keys() <= known:
        key = next(key for key in table if key not in known)
        near = difflib.get_close_matches(key, known, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise problem(where, f"unknown key {key!r}", f"{meant}Known keys: {', '.join(sorted(known))}.")


def _facts(table: Mapping[str, Any], text: str, file: str) -> dict[str, Any]:
    """Check the facts one by one, each with its line, and turn them into a Profile's."""
    facts: dict[str, Any] = {}
    for key, value in table.items():
        if key == "rule":
            continue
        try:
            facts[key] = _fact(key, value, file)
        except ConfigurationError:
            facts[key] = _fact(key, value, _line_of(key, text, file))  # refused again, with the line this time
    check_together(facts, file)
    if "rotation" in facts:
        facts["rotation"] = Rotation(facts["rotation"])
    for each in ENDPOINTS:
        ending = _OPEN_HOST.match(facts.get(each) or "")
        if ending and not facts.get("parameters", {}).get(ending[1], Parameter(about="")).one_of:
            fix = f"List the values that {{{ending[1]}}} may have: [parameters.{ending[1]}], one_of = [...]."
            raise problem(_line_of(each, text, file), f"{each} has a host that a parameter ends: anybody's", fix)
    wanted_parameters = {name for each in ENDPOINTS for name in placeholders(facts.get(each))}
    for name in facts.get("parameters", {}):
        if name not in wanted_parameters:
            where = _line_of(f"parameters.{name}", text, file)
            raise problem(where, f"no endpoint has {{{name}}}", "Name what stands in braces in the endpoints.")
    return facts


def _fact(key: str, value: Any, where: str) -> Any:
    if key not in FACTS:
        _no_others({key: value}, _TOP_KEYS, where)
    if reader := _TABLE_READERS.get(key):
        if not isinstance(value, dict):
            raise problem(where, f"{key} is not a table", f"Write [{key}] and what belongs to it below.")
        return reader(value, where)
    if key == "notes":
        if not isinstance(value, list) or not all(isinstance(note, str) and note.strip() for note in value):
            raise problem(where, "notes is not a list of texts", 'Write notes = ["…"].')
        return tuple(value)
    check_fact(key, value, where)
    return None if key in DATES and value is False else value


def _line_of(key: str, text: str, file: str) -> str:
    """Name the file and the line where a key or a table begins."""
    name = rf'"?{re.escape(key)}"?'
    found = re.search(rf"^[ \t]*(?:\[[ \t]*{name}[ \t]*(?:\.|\])|{name}[ \t]*[.=])", text, re.MULTILINE)
    return f"{file}:{text.count(chr(10), 0, found.start()) + 1}" if found else file


def _lifetimes(table: Mapping[str, Any], where: str) -> Mapping[str, float]:
    _no_others(table, _LIFETIMES, f"{where}: lifetimes")
    for name, value in table.items():
        check_seconds(value, f"lifetimes.{name}", where)
    return table


def _parameters(table: Mapping[str, Any], where: str) -> Mapping[str, Parameter]:
    found = {}
    for name, each in table.items():
        if not isinstance(each, dict) or not isinstance(each.get("about"), str) or not each["about"].strip():
            raise problem(
                where, f"parameter {name} does not say what it is", f'Write [parameters.{name}], about = "…".'
            )
        _no_others(each, _PARAMETER_KEYS, f"{where}: parameter {name}")
        values = each.get("one_of", [])
        if not isinstance(values, list):
            raise problem(where, f"parameter {name}: one_of is not a list", 'Write one_of = ["com", "eu"].')
        for value in (*values, *([each["default"]] if "default" in each else [])):
            check_parameter(name, value, where)
        found[name] = Parameter(about=each["about"], default=each.get("default"), one_of=tuple(values))
    return found


def _texts(table: Mapping[str, Any], where: str) -> Mapping[str, str]:
    for name, value in table.items():
        if not isinstance(value, str):
            raise problem(where, f"{name} is not a text", "Parameters of a request are texts.")
        if is_secret_member(name):
            raise problem(where, f"{name} is a secret, which has no place in a profile", "Give it to the Registration.")
    return table


_TABLE_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Mapping[str, Any]]] = {
    "lifetimes": _lifetimes,
    "parameters": _parameters,
    "authorization_parameters": _texts,
    "token_parameters": _texts,
}


def _rule(table: dict[str, Any], sheet: str, file: str, line: int) -> Rule:
    where = f"{file}:{line}" if line else file
    for key in table.keys() & _FACTS_ONLY:
        raise problem(where, f"unknown key {key!r} in a rule", "Facts stand before the first [[rule]].")
    _no_others(table, _RULE_KEYS, where)
    for key in _RULE_TEXTS:
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise problem(where, f"the rule has no {key}", "Every rule has a name, a message, a fix and a source.")
    try:
        verdict = _word(VERDICTS, table.get("verdict"), "verdict")
        surface = _word(SURFACES, table.get("surface", "api"), "surface")
        _check_surface(verdict, surface)
        return Rule(
            f"{sheet}/{table['name']}",
            verdict,
            table["message"].strip(),
            table["fix"].strip(),
            table["source"].strip(),
            surface=surface,
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


def _check_surface(verdict: Verdict, surface: Surface) -> None:
    if verdict in TOKEN_VERDICTS and surface is not Surface.TOKEN:
        raise ValueError(f'verdict {verdict} is about a refresh token: it belongs to surface = "token"')


def _word(words: Mapping[str, W], value: object, what: str) -> W:
    found = words.get(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{what} is {value!r}, which is none of {', '.join(words)}")
    return found


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
    for name in ("challenge", "header", "json", "words"):
        if not isinstance(table.get(name, {}), dict):
            raise TypeError(f'{name} is not a table: write {name} = {{ place = "…" }}')
    if "challenge" in table:
        yield InChallenge({_lower(name): wanted(values) for name, values in table["challenge"].items()})
    for name, values in table.get("header", {}).items():
        yield InHeader(_lower(name), wanted(values))
    for path, values in table.get("json", {}).items():
        if not all(path.split(".")):
            raise ValueError(f"{path!r} does not name a member of the body")
        if isinstance(values, dict) and "from" not in values:
            inner = next(iter(values), "")
            raise ValueError(f'json.{path} is a table: write a path with a dot in quotes, {{ "{path}.{inner}" = … }}')
        yield InJson(path, wanted(values))
    for place, phrases in table.get("words", {}).items():
        if phrases is False:
            yield Silent(place)
            continue
        texts = [phrases] if isinstance(phrases, str) else phrases
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"words.{place} is not a list of phrases")
        yield InWords(place, tuple(texts))


def _lower(name: str) -> str:
    if name != name.lower():
        raise ValueError(f"{name} is not in lower case")
    return name
