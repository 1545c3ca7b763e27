"""Rules: *an answer like this* → *this verdict*, in a small closed vocabulary of conditions.

A rule holds when its status fits and every one of its conditions holds. Rules are data: they come from the TOML files
of ``tokenkeeper/providers`` (see ``docs/refusals.md`` for the format) and are compiled once, when they are made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from tokenkeeper.core.challenge import Challenge
from tokenkeeper.core.facts import Facts, normal, plain
from tokenkeeper.model import Surface, Verdict

GAP = 80
"""The most characters that ``*`` stands for between two words of a phrase."""

STARS = 2
"""The most ``*`` in a phrase: each one more multiplies what a long text may cost."""
RANGE = 1000
"""The most numbers that a range of values holds."""

_NORMAL = re.compile(r"[a-z0-9]+(?: [a-z0-9]+)*")

Wanted = frozenset[str] | bool
"""The values that fit (compared in lower case), or True for *any*, False for *absent*."""


def wanted(values: object) -> Wanted:
    """Return a condition's values, comparable: texts, numbers, ranges ``{from, to}``; True or False. Raises ValueError."""
    if isinstance(values, bool):
        return values
    texts: list[str | None] = []
    for value in values if isinstance(values, list | tuple) else (values,):
        texts.extend(_numbers(value) if isinstance(value, dict) else (plain(value),))
    known = frozenset(text for text in texts if text)
    if not known or len(known) != len(texts):
        raise ValueError(
            "a text or number, a range { from, to }, a list of different ones, true (present) or false (absent) is needed"
        )
    return known


def _numbers(value: Mapping[str, object]) -> list[str]:
    first, last = value.get("from"), value.get("to")
    if set(value) != {"from", "to"} or type(first) is not int or type(last) is not int or not 0 < last - first < RANGE:
        raise ValueError(f"a range like {{ from = 200, to = 299 }} of at most {RANGE} numbers is needed, not {value!r}")
    return [str(number) for number in range(first, last + 1)]


def _covers(wide: Wanted, narrow: Wanted) -> bool:
    if isinstance(wide, bool) or isinstance(narrow, bool):
        return wide is narrow or (wide is True and narrow is not False)
    return narrow <= wide


def _shown(values: Wanted) -> str:
    if isinstance(values, bool):
        return "is there" if values else "is not there"
    return "is " + " or ".join(sorted(values))


class Condition(Protocol):
    """One thing that a rule asks of an answer."""

    @property
    def reads_body(self) -> bool:
        """Whether the answer's body is needed to tell."""

    @property
    def subject(self) -> str:
        """What is asked about; a condition covers only conditions about the same."""

    def holds(self, facts: Facts) -> bool:
        """Whether the answer is like that."""

    def covers(self, other: Condition) -> bool:
        """Whether this holds wherever *other* holds (so that a later rule with *other* is never reached)."""


@dataclass(frozen=True, slots=True)
class InChallenge:
    """One and the same challenge has this scheme and these parameters; False: no challenge at all has the parameter."""

    parameters: Mapping[str, Wanted]
    reads_body: bool = False

    @property
    def subject(self) -> str:
        """What is asked about."""
        return "challenge"

    @property
    def needs_challenge(self) -> bool:
        """Whether it never holds for an answer without a challenge."""
        return any(values is not False for values in self.parameters.values())

    def holds(self, facts: Facts) -> bool:
        """Whether the answer is like that."""
        parameters = facts.parameters
        for name, values in self.parameters.items():
            if not _any_fits(parameters.get(name), values):
                return False
        return len(self.parameters) == 1 or any(map(self._is, facts.challenges))

    def _is(self, challenge: Challenge) -> bool:
        """Whether one challenge has all that is asked for; what must not be there was looked at in all of them."""
        for name, values in self.parameters.items():
            value = challenge.scheme if name == "scheme" else challenge.parameters.get(name)
            if values is not False and not _any_fits(None if value is None else [value.casefold()], values):
                return False
        return True

    def covers(self, other: Condition) -> bool:
        """Whether this holds wherever *other* holds."""
        return isinstance(other, InChallenge) and all(
            name in other.parameters and _covers(values, other.parameters[name])
            for name, values in self.parameters.items()
        )

    def __str__(self) -> str:
        return "challenge: " + ", ".join(f"{name} {_shown(values)}" for name, values in self.parameters.items())


@dataclass(frozen=True, slots=True)
class InHeader:
    """A header field has one of these values, is there, or is not there."""

    name: str
    values: Wanted
    reads_body: bool = False

    @property
    def subject(self) -> str:
        """What is asked about."""
        return f"header {self.name}"

    def holds(self, facts: Facts) -> bool:
        """Whether the answer is like that."""
        value = facts.headers.get(self.name)
        return _any_fits(None if value is None else [value.casefold()], self.values)

    def covers(self, other: Condition) -> bool:
        """Whether this holds wherever *other* holds."""
        return isinstance(other, InHeader) and self.name == other.name and _covers(self.values, other.values)

    def __str__(self) -> str:
        return f"header {self.name} {_shown(self.values)}"


@dataclass(frozen=True, slots=True)
class InJson:
    """A member of the JSON body has one of these values; a number equals its text, arrays are passed through."""

    path: str
    values: Wanted
    reads_body: bool = True

    @property
    def subject(self) -> str:
        """What is asked about."""
        return f"json {self.path}"

    def holds(self, facts: Facts) -> bool:
        """Whether the answer is like that."""
        found = facts.values(self.path)
        if self.values is False and facts.answer.body is None:  # nobody knows what an unread body does not hold
            return False
        return bool(found) is self.values if isinstance(self.values, bool) else not self.values.isdisjoint(found)

    def covers(self, other: Condition) -> bool:
        """Whether this holds wherever *other* holds."""
        return isinstance(other, InJson) and self.path == other.path and _covers(self.values, other.values)

    def __str__(self) -> str:
        return f"json {self.path} {_shown(self.values)}"


@dataclass(frozen=True, slots=True)
class InWords:
    """A text holds one of these phrases: whole words, case and punctuation aside.

    ``*`` stands for a few words; a phrase that begins with ``=`` is the whole text.
    """

    place: str
    phrases: tuple[str, ...]
    reads_body: bool = field(init=False)
    _by_word: Mapping[str, list[tuple[str, ...]]] = field(init=False, repr=False, compare=False)
    """The phrases by the longest word of each: a text without that word does not hold them."""
    _longest_words: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_word: dict[str, list[tuple[str, ...]]] = {}
        for phrase in self.phrases:
            parts = _parts_of(phrase)
            by_word.setdefault(max(" ".join(parts).split(), key=len), []).append(parts)
        object.__setattr__(self, "reads_body", not self.place.startswith(("challenge.", "header.")))
        object.__setattr__(self, "_by_word", by_word)
        object.__setattr__(self, "_longest_words", frozenset(by_word))

    @property
    def subject(self) -> str:
        """What is asked about."""
        return f"words {self.place}"

    def holds(self, facts: Facts) -> bool:
        """Whether the answer is like that."""
        words = facts.vocabulary(self.place)
        if self._longest_words.isdisjoint(words):
            return False
        return self._says(self._longest_words & words, f"|{facts.words(self.place)}|")

    def _says(self, words: Iterable[str], text: str) -> bool:
        for word in words:
            for parts in self._by_word[word]:
                if parts[0] in text and (len(parts) == 1 or (parts[-1] in text and _pattern(parts).search(text))):
                    return True
        return False

    def covers(self, other: Condition) -> bool:
        """Whether this holds wherever *other* holds."""
        if not isinstance(other, InWords) or self.place != other.place:
            return False
        texts = [f"|{'something'.join(parts)}|" for phrases in other._by_word.values() for parts in phrases]
        return all(self._says(self._longest_words.intersection(text.split()), text) for text in texts)

    def __str__(self) -> str:
        return f"{self.place} says " + " or ".join(repr(phrase) for phrase in self.phrases)


@dataclass(frozen=True, slots=True)
class Silent:
    """A text was read and says nothing: there is not a word in it."""

    place: str
    reads_body: bool = True

    @property
    def subject(self) -> str:
        """What is asked about."""
        return f"words {self.place}"

    def holds(self, facts: Facts) -> bool:
        """Whether the answer is like that."""
        return facts.answer.body is not None and not facts.words(self.place).strip(" |")

    def covers(self, other: Condition) -> bool:
        """Whether this holds wherever *other* holds."""
        return self == other

    def __str__(self) -> str:
        return f"{self.place} says nothing"


def _parts_of(phrase: str) -> tuple[str, ...]:
    """Return what stands around the stars of a phrase, as :func:`normal` words. Raises ValueError."""
    if _NORMAL.fullmatch(phrase):
        return (f" {phrase} ",)
    if phrase.count("*") > STARS:
        raise ValueError(f"the phrase {phrase!r} has more than {STARS} stars")
    if phrase.startswith("="):
        whole = normal(phrase)
        if "*" in phrase or not whole.strip():
            raise ValueError(f"the phrase {phrase!r} has no words, or a star: after = stands the whole text")
        return (f"|{whole}|",)
    parts = tuple([normal(part) for part in phrase.split("*")])
    if " " in parts or "" in parts:
        raise ValueError(f"the phrase {phrase!r} has no words, or none on one side of its *")
    return parts


@lru_cache(maxsize=4096)
def _pattern(parts: tuple[str, ...]) -> re.Pattern[str]:
    """Compile a phrase with gaps; most never are, because an answer has neither its first nor its last words."""
    gap = rf"(?:[^|]{{0,{GAP}}} )?"
    return re.compile(parts[0] + gap + gap.join(part[1:] for part in parts[1:]))


def _any_fits(found: list[str] | None, values: Wanted) -> bool:
    if isinstance(values, bool):
        return bool(found) is values
    return found is not None and not values.isdisjoint(found)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it asks, what it concludes, what helps, and where that is known from.

    ``statuses`` empty: any status. ``retry_after`` names a JSON member or ``header.name`` with seconds (or seconds since
    the epoch), or is ``midnight UTC``; ``scopes`` names a JSON member with the missing scopes (otherwise the challenge
    says). ``file`` and ``line`` say where it stands.
    """

    name: str
    verdict: Verdict
    message: str
    fix: str
    source: str
    surface: Surface = Surface.API
    statuses: frozenset[int] = frozenset()
    conditions: tuple[Condition, ...] = ()
    retry_after: str | None = None
    scopes: str | None = None
    file: str = ""
    line: int = 0

    @property
    def needs_challenge(self) -> bool:
        """Whether it never holds for an answer without a challenge."""
        return any(isinstance(condition, InChallenge) and condition.needs_challenge for condition in self.conditions)

    def fits(self, status: int) -> bool:
        """Whether the rule is about that status."""
        return not self.statuses or status in self.statuses

    def covers(self, other: Rule) -> bool:
        """Whether this rule holds wherever *other* holds, so that *other*, coming later, is never reached."""
        if self.surface is not other.surface:
            return False
        if self.statuses and not (other.statuses and other.statuses <= self.statuses):
            return False
        return all(any(mine.covers(theirs) for theirs in other.conditions) for mine in self.conditions)
