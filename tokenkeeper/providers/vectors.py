"""Vectors: answers of a provider that were recorded, each with the rule that must read it. One JSON object a line.

:func:`read_vectors` reads a file of them, :func:`record` makes one of an answer, without its secrets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenkeeper.core.diagnosis import diagnose
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.redaction import MASK, is_secret_member, looks_secret, masked
from tokenkeeper.core.rules import InHeader, InWords
from tokenkeeper.model import Answer, Diagnosis, HeaderPairs, Surface, Verdict
from tokenkeeper.providers.checks import problem

SEEN = ("recorded", "quoted", "documented", "reconstructed")
"""How an answer is known: by one's own call, from an issue or a log, from the provider's documentation, from its shape."""
BODY_CHARACTERS = 16_384
"""What is recorded of a body; what decides stands at the beginning."""
FILE_BYTES = 16 << 20
"""The largest file of vectors that is read."""

_NEEDED = ("rule", "verdict", "surface", "status", "headers", "body")
_KNOWN = (*_NEEDED, "seen", "origin", "note")
_TELLING = re.compile(r"content-type|www-authenticate|.*(?:error|retry|rate-?limit|quota|throttl|scope|sso|reason).*")
_UNTOLD = frozenset({"access-control-expose-headers", "access-control-allow-headers"})
_EMAIL = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?', re.DOTALL)
_QUOTED_OR_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|[^\s,="]+')


@dataclass(frozen=True, slots=True)
class Vector:
    """A recorded answer, and how it must be read."""

    rule: str
    verdict: str
    surface: str
    status: int
    headers: Mapping[str, Any]
    body: str | None
    seen: str = ""
    origin: str = ""
    note: str = ""
    line: int = 0

    @property
    def answer(self) -> Answer:
        """The answer as it was received."""
        pairs = [
            (name.lower(), each)
            for name, value in self.headers.items()
            for each in (value if isinstance(value, list) else [value])
        ]
        return Answer(self.status, tuple(pairs), None if self.body is None else self.body.encode("utf-8", "replace"))

    def read(self, profile: Profile) -> Diagnosis:
        """Return what *profile* makes of it."""
        return diagnose(self.answer, profile.rules, surface=Surface(self.surface))

    def as_json(self) -> str:
        """Return it as a line of a file of vectors."""
        fields = {name: value for name, value in asdict(self).items() if name in _NEEDED or (name in _KNOWN and value)}
        return json.dumps(fields, ensure_ascii=False)


def read_vectors(path: Path) -> tuple[Vector, ...]:
    """Read a file of vectors. Raises ConfigurationError naming file and line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise problem(str(path), f"cannot be read ({error.strerror})", "Give the path of a JSON Lines file.") from error
    if len(data) > FILE_BYTES:
        raise problem(str(path), "is larger than 16 MiB", "A vector is a short line of JSON.")
    lines = enumerate(data.decode("utf-8", "replace").split("\n"), 1)
    return tuple(_vector(text, f"{path}:{number}", number) for number, text in lines if text.strip())


def _vector(text: str, where: str, line: int) -> Vector:
    fix = (
        f"A vector is an object with {', '.join(_NEEDED)}, seen and origin; `tokenkeeper providers record` prints one."
    )
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise problem(where, "is not JSON", fix) from error
    if not isinstance(table, dict):
        raise problem(where, "is not an object", fix)
    for name in (*_NEEDED, *table):
        if name not in table or name not in _KNOWN:
            raise problem(where, f"{name} is {'missing' if name not in table else 'not known'}", fix)
    for name, wrong in _wrong(table):
        raise problem(where, f"{name} is {wrong}", fix)
    return Vector(**table, line=line)


def _wrong(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The members of a vector that are not what they must be."""
    for name, words in (("verdict", [*Verdict]), ("surface", [*Surface]), ("seen", SEEN)):
        if name in table and table[name] not in words:
            yield name, f"none of: {', '.join(words)}"
    if type(table["status"]) is not int or not 100 <= table["status"] <= 599:
        yield "status", "not a number from 100 to 599"
    if table["body"] is not None and not isinstance(table["body"], str):
        yield "body", "neither a text nor null"
    values = table["headers"].values() if isinstance(table["headers"], dict) else [None]
    if not all(isinstance(each, str) for value in values for each in (value if isinstance(value, list) else [value])):
        yield "headers", "not an object of texts (or lists of texts)"
    for name in ("rule", "origin", "note"):
        if not isinstance(table.get(name, ""), str):
            yield name, "not a text"


# ----------------------------------------------------------------------------------------------------------------------
# Recording


@dataclass(frozen=True, slots=True)
class Recording:
    """A vector that was made of an answer, and what was done to the answer."""

    vector: Vector
    reading: str
    """The rule that reads what is left of the answer; it should be the vector's."""
    masked: tuple[str, ...]
    """Where a secret or an address stood."""
    left_out: tuple[str, ...]
    """The header fields that were left out."""


def record(answer: Answer, profile: Profile, *, surface: Surface, origin: str, seen: str = "recorded") -> Recording:
    """Make a vector of *answer*: without what looks like a secret, and without the headers that tell nothing."""
    headers, masked_headers, left_out = _headers(answer.headers, _asked_about(profile))
    body, masked_body = _body(answer.body)
    original = diagnose(answer, profile.rules, surface=surface)
    kept = {name: values[0] if len(values) == 1 else values for name, values in headers.items()}
    rule = original.rule.removesuffix(" (body not readable)")
    vector = Vector(rule, original.verdict.value, surface.value, answer.status, kept, body, seen, origin)
    found = vector.read(profile)
    reading = vector.rule if (found.rule, found.verdict) == (original.rule, original.verdict) else found.rule
    return Recording(vector, reading, (*masked_headers, *masked_body), left_out)


def _asked_about(profile: Profile) -> set[str]:
    """The header fields that the profile's rules look at."""
    names = set()
    for rule in (*profile.rules.own, *profile.rules.generic):
        if rule.retry_after and rule.retry_after.startswith("header."):
            names.add(rule.retry_after.removeprefix("header."))
        for condition in rule.conditions:
            if isinstance(condition, InHeader):
                names.add(condition.name)
            elif isinstance(condition, InWords) and condition.place.startswith("header."):
                names.add(condition.place.removeprefix("header."))
    return names


def _headers(pairs: HeaderPairs, asked: set[str]) -> tuple[dict[str, list[str]], list[str], tuple[str, ...]]:
    kept: dict[str, list[str]] = {}
    changed, left_out = [], []
    for name, value in pairs:
        if name not in asked and (name in _UNTOLD or not _TELLING.fullmatch(name)):
            left_out.append(name)
            continue
        safe = _challenge(value) if name == "www-authenticate" else _hidden(value)
        kept.setdefault(name, []).append(safe)
        if safe != value:
            changed.append(f"header {name}")
    return kept, changed, tuple(dict.fromkeys(left_out))


def _challenge(value: str) -> str:
    """Mask a challenge's parameters one by one: a scheme and a parameter's name side by side are no credential."""

    def safe(found: re.Match[str]) -> str:
        if found[1] is not None:
            return f'"{_hidden(found[1])}"'
        return MASK if looks_secret(found[0]) else found[0]

    return _QUOTED_OR_WORD.sub(safe, value)


def _body(data: bytes | None) -> tuple[str | None, list[str]]:
    """Return the body as it may be shown, its own line ends and blanks kept, and where something was masked."""
    if data is None:
        return None, []
    text = data.decode("utf-8", "replace")
    changed = []
    if not _is_json(text):
        safe = _hidden(text)
        return safe[:BODY_CHARACTERS], ["the body"] * (safe != text)
    member = ""

    def string(found: re.Match[str]) -> str:
        nonlocal member
        try:
            said = str(json.loads(found[0].removesuffix(found[2] or "")))
        except ValueError:
            said = found[1]
        safe = _hidden(said)
        if found[2]:
            member = safe
        elif said and is_secret_member(member):
            safe = MASK
        if safe == said:
            return found[0]
        changed.append(f"the body's {member}" if member else "the body")
        return json.dumps(safe, ensure_ascii=False) + (found[2] or "")

    shown = _STRING.sub(string, text)
    if len(shown) > BODY_CHARACTERS:  # cut only now: half a string would not be recognized
        shown = shown[: shown.rfind('"', 0, BODY_CHARACTERS) + 1]
        changed.append(f"what follows in the body after {len(shown)} characters")
    return shown, list(dict.fromkeys(changed))


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _hidden(text: str) -> str:
    return _EMAIL.sub("<email>", masked(text))
