"""Reviews a profile for its author: facts that nobody has given, rules without a vector, vectors that are read otherwise.

``tokenkeeper providers check`` prints a review; a test holds that one of any profile of the catalogue finds nothing wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenkeeper.core.diagnosis import Rules, diagnose, explain
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.rules import Condition, InChallenge, InHeader, InJson, InWords, Rule, Wanted
from tokenkeeper.model import Answer, Diagnosis, Rotation, Surface
from tokenkeeper.providers import load_profile
from tokenkeeper.providers.checks import ENDPOINTS, placeholders
from tokenkeeper.providers.loader import read_sheet
from tokenkeeper.providers.vectors import Vector


@dataclass(frozen=True, slots=True)
class Finding:
    """What a review found: ``fail`` or ``warn``, and where."""

    level: str
    text: str
    rule: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Review:
    """A profile, its rules in order, how many vectors show each, and what was found."""

    profile: Profile
    rules: tuple[Rule, ...]
    vectors: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings are no hindrance."""
        return all(finding.level != "fail" for finding in self.findings)


def review(path: Path, vectors: Sequence[Vector] | None = None) -> Review:
    """Review the profile of a file, with *vectors* also its rules' answers. Raises ConfigurationError (the loader's)."""
    facts = read_sheet(path).facts
    profile = load_profile(path)
    rules = profile.rules.own
    shown = {rule.name: [vector for vector in vectors or () if vector.rule == rule.name] for rule in rules}
    found = list(_of_facts(profile, facts))
    if not rules:
        found.append(Finding("warn", "it has no rules: the generic ones read its answers"))
    elif vectors is None:
        found.append(Finding("warn", "no vectors were looked at: name their file with --vectors"))
    for rule in rules:
        if vectors is not None:
            found.extend(_of_vectors_of(rule, shown[rule.name]))
        found.extend(_of_rule(rule, shown[rule.name], profile))
    lines = {rule.name: rule.line for rule in rules}
    for vector in vectors or ():
        found.extend(Finding("fail", text, vector.rule, lines.get(vector.rule, 0)) for text in _wrong(vector, profile))
    return Review(profile, rules, {name: len(each) for name, each in shown.items()}, tuple(found))


def _of_facts(profile: Profile, facts: Mapping[str, Any]) -> Iterator[Finding]:
    for name, why in (("title", "whose it is"), ("source", "where its facts are from")):
        if not facts.get(name):
            yield Finding("fail", f"it has no {name}: say {why}")
    if "checked" not in facts:
        yield Finding("fail", "checked is missing: the date when you compared the facts with their source, or false")
    elif profile.checked is None:
        yield Finding("warn", "nobody has checked these facts (checked = false)")
    if profile.token_endpoint is None and not profile.notes:
        yield Finding("fail", "it has no token_endpoint, and no note says why")
    wanted = {name for each in ENDPOINTS for name in placeholders(getattr(profile, each))}
    for name in sorted(wanted - profile.parameters.keys()):
        yield Finding("fail", f"nothing says what to put for {{{name}}}: write [parameters.{name}] with about")
    if profile.rotation is Rotation.UNKNOWN:
        yield Finding("warn", "rotation is unknown: a renewal whose answer is lost has one more try")
        return
    if not profile.rotation_source:
        yield Finding("fail", f"rotation is {profile.rotation}, and no rotation_source says where that is known from")
    if "rotation_checked" not in facts:
        yield Finding("fail", "rotation_checked is missing: the date when you looked at its source, or false")
    elif profile.rotation_checked is None:
        yield Finding("warn", "nobody has checked the rotation (rotation_checked = false)")


def _of_vectors_of(rule: Rule, vectors: Sequence[Vector]) -> Iterator[Finding]:
    if not vectors:
        yield Finding("fail", "no vector shows what it is for", rule.name, rule.line)
    elif not any(vector.origin for vector in vectors):
        yield Finding("fail", "none of its vectors has an origin: where was the answer seen?", rule.name, rule.line)


def _wrong(vector: Vector, profile: Profile) -> Iterator[str]:
    """Say how a vector is read otherwise than it says."""
    found = vector.read(profile)
    rule = found.rule.removesuffix(" (body not readable)")
    where = f"the vector in line {vector.line}"
    if rule != vector.rule:
        yield f"{where} is read by {rule} ({found.verdict}), not by {vector.rule}{_why_not(vector, profile)}"
    elif found.verdict != vector.verdict:
        yield f"{where} is {found.verdict}, not {vector.verdict}"


def _why_not(vector: Vector, profile: Profile) -> str:
    """What the rule that should have read an answer wants of it."""
    near = explain(vector.answer, profile.rules, surface=Surface(vector.surface), most=1_000).near
    miss = next((miss for miss in near if miss.rule.name == vector.rule), None)
    if miss is None:
        return ""
    return f", which asks that {'; '.join(miss.failed)}" if miss.failed else ", which comes later"


def _of_rule(rule: Rule, vectors: Sequence[Vector], profile: Profile) -> Iterator[Finding]:
    """Say where the generic rules would do without this one; for a rule without vectors, an answer is made up."""
    rules = profile.rules
    others = replace(rules, own=tuple(other for other in rules.own if other is not rule))
    answers = [vector.answer for vector in vectors if vector.read(profile).rule.startswith(rule.name)]
    if not vectors:
        made = _made_for(rule)
        answers = [] if made is None else [made]
        for answer in answers:
            first = diagnose(answer, rules, surface=rule.surface).rule
            if first != rule.name:
                text = f"an answer that has just what it asks for is read by {first}, which comes first"
                yield Finding("warn", text, rule.name, rule.line)
                return
    said = [_alike(answer, rule.surface, rules, others) for answer in answers]
    if said and all(said):
        text = f"without it {said[0]} decides alike: it is worth its place if its fix says more"
        yield Finding("warn", text, rule.name, rule.line)


def _alike(answer: Answer, surface: Surface, rules: Rules, others: Rules) -> str | None:
    """The generic rule of *others* that says the same of an answer as *rules*, if one does."""

    def told(found: Diagnosis) -> tuple[object, ...]:
        return found.verdict, found.retry_after, found.scopes

    found, other = (diagnose(answer, each, surface=surface) for each in (rules, others))
    own = any(rule.name == other.rule for rule in rules.own)
    return other.rule if told(found) == told(other) and not own else None


# ----------------------------------------------------------------------------------------------------------------------
# An answer that has what a rule asks for, and nothing else


def _made_for(rule: Rule) -> Answer | None:
    """Make an answer from a rule's conditions; None where they are too odd for that."""
    parts = _Parts()
    for condition in rule.conditions:
        if not parts.take(condition):
            return None
    answer = Answer(min(rule.statuses, default=400), parts.headers(), parts.body())
    only = Rules((rule,), (), errors_in_200=True)
    return answer if diagnose(answer, only, surface=rule.surface).rule == rule.name else None


class _Parts:
    """The parts of an answer, put together condition by condition."""

    def __init__(self) -> None:
        self._challenge: dict[str, str] = {}
        self._headers: dict[str, str] = {}
        self._json: dict[str, Any] = {}
        self._text = ""

    def take(self, condition: Condition) -> bool:
        """Add what a condition asks for; False where that cannot be done."""
        match condition:
            case InChallenge():
                self._challenge |= {name: _one(values) for name, values in condition.parameters.items() if values}
            case InHeader():
                self._headers |= {condition.name: _one(condition.values)} if condition.values else {}
            case InJson():
                return not condition.values or self._put(condition.path, _one(condition.values))
            case InWords():
                return self._say(condition.place, condition.phrases[0].replace("*", "it"))
            case _:
                return False
        return True

    def _say(self, place: str, text: str) -> bool:
        where, _, name = place.partition(".")
        if where in {"challenge", "header"} and name:
            (self._challenge if where == "challenge" else self._headers)[name] = text
            return True
        if place == "body":
            self._text = text
        return self._put("message" if place in {"said", "body"} else place, text)

    def _put(self, path: str, value: str) -> bool:
        *way, last = path.split(".")
        table = self._json
        for name in way:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                return False
        return bool(table.setdefault(last, value) == value)

    def headers(self) -> tuple[tuple[str, str], ...]:
        """The header fields."""
        parameters = ", ".join(f'{name}="{value}"' for name, value in self._challenge.items() if name != "scheme")
        challenge = f"{self._challenge.get('scheme', 'bearer')} {parameters}".strip()
        return (*self._headers.items(), *([("www-authenticate", challenge)] if self._challenge else []))

    def body(self) -> bytes:
        """The body."""
        return json.dumps(self._json).encode() if self._json else self._text.encode()


def _one(values: Wanted) -> str:
    """One of the values that fit."""
    return "x" if isinstance(values, bool) else min(values)
