"""An answer → the facts that rules ask about: challenges, JSON members, words. Read once, on demand, within bounds.

Whatever was sent, nothing here raises: what cannot be read is absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

from tokenkeeper.core.challenge import Challenge, parse_challenges
from tokenkeeper.model import Answer

BODY_BYTES = 65_536
"""The largest body that is read as JSON or form; of a larger one only the first words are looked at."""
TEXT_CHARACTERS = 4_096
"""The most that is looked at of one text."""
CODE_CHARACTERS = 64
"""The longest code whose words are told apart."""
NODES = 256
"""The most JSON values that are visited in search of words or of a member."""
DEPTH = 12
"""The deepest JSON value that is visited."""

# The members in which servers say what is wrong, compared in lower case without punctuation.
# fmt: off
_TELLING = frozenset((
    "error", "errors", "message", "messages", "msg", "errormessage", "errormsg", "errordescription",
    "detail", "details", "reason", "fault", "faultstring", "code", "errorcode", "errortype",
    "errorsummary", "exceptionmessage", "exceptioncode", "explanation",
    "errorsubtype", "suberror", "err", "errmsg", "errorinfo", "errordetail",
    "errordetails", "errorid", "developermessage", "debugmessage", "displaymessage", "usermessage", "longmessage",
    "statusmessage", "statusdescription", "resultmessage", "resultmsg", "cause",
    "diagnostics", "detailedmessage", "reasons",
))
# Members in which anybody's data may stand, too: they count at the top, and below the others.
_TELLING_HERE = _TELLING | frozenset((
    "title", "name", "description", "summary", "status", "id", "type", "tag", "category", "field", "hint", "exp", "subtype",
))
# fmt: on
_NOTHING: frozenset[str] = frozenset()
_TAG = re.compile(r"<[^>]*>")
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NOT_WORDS = re.compile(r"[^a-z0-9]+")


class _Letters(dict[int, str]):
    """For ``str.translate``: small letters and digits stay, everything else becomes a blank."""

    def __missing__(self, code: int) -> str:
        return " "


_LETTERS = _Letters({code: chr(code) if chr(code).isalnum() else " " for code in range(128)})


def normal(text: str) -> str:
    """Return *text* as words in lower case with one blank around each: ``Token_expired!`` → ``' token expired '``."""
    words = text[:TEXT_CHARACTERS].casefold().translate(_LETTERS).split()
    return f" {' '.join(words)} " if words else " "


def _spoken(text: str) -> str:
    """Return *text* as :func:`normal` words; a code in humps also as the words it is made of (``TokenExpired``)."""
    words = normal(text)
    if " " in text or text.isupper() or text.islower():
        return words
    if (apart := _HUMPS.sub(" ", text[:CODE_CHARACTERS])) == text:
        return words
    return f"{words}|{normal(apart)}"


def plain(value: object) -> str | None:
    """Return a JSON scalar as comparable text (``65601``, ``"65601"`` and ``65601.0`` are one), or None for others."""
    match value:
        case str():
            return value[:TEXT_CHARACTERS].casefold()
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if -(10**18) < value < 10**18 else None
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 10**15 else str(value)
        case _:
            return None


T = TypeVar("T")


class _once(Generic[T]):  # noqa: N801 (it is used like functools.cached_property)
    """A property that is worked out once; functools has one, which takes a lock in Python 3.11: that costs as much again."""

    def __init__(self, work_out: Callable[[Any], T]) -> None:
        self.work_out = work_out
        self.__doc__ = work_out.__doc__
        self.name = work_out.__name__

    def __get__(self, facts: Any, owner: type) -> T:
        value = facts.__dict__[self.name] = self.work_out(facts)
        return value


class Facts:
    """What an answer says, each fact worked out when a rule first asks for it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._values: dict[str, frozenset[str]] = {}
        self._words: dict[str, str] = {}
        self._vocabularies: dict[str, frozenset[str]] = {}

    @_once
    def headers(self) -> dict[str, str]:
        """Header fields by lower-case name; several of one name joined with a comma."""
        joined = dict(self.answer.headers)
        if len(joined) == len(self.answer.headers):  # no field came twice
            return joined
        joined = {}
        for name, value in self.answer.headers:
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
        return joined

    @_once
    def challenges(self) -> tuple[Challenge, ...]:
        """The challenges of all WWW-Authenticate fields."""
        return parse_challenges([value for name, value in self.answer.headers if name == "www-authenticate"])

    @_once
    def parameters(self) -> dict[str, list[str]]:
        """The parameters of all challenges by name, and the schemes as ``scheme``; values in lower case."""
        found: dict[str, list[str]] = {}
        for challenge in self.challenges:
            found.setdefault("scheme", []).append(challenge.scheme)
            for name, value in challenge.parameters.items():
                found.setdefault(name, []).append(value.casefold())
        return found

    def parameter(self, name: str) -> str | None:
        """Return the first challenge parameter of that name, as it was sent."""
        return next((c.parameters[name] for c in self.challenges if name in c.parameters), None)

    @_once
    def text(self) -> str:
        """The beginning of the body as text; what is not UTF-8 is replaced."""
        return (self.answer.body or b"")[: 4 * TEXT_CHARACTERS].decode("utf-8", "replace")

    @_once
    def json(self) -> Any:
        """The body's JSON value (a form body as an object), or None where there is none or it is too large or deep."""
        body = self.answer.body
        if not body or len(body) > BODY_BYTES or body[:1] == b"<":
            return None
        try:
            # Decoded here, not by json: a byte order mark or a broken character must not hide the rest.
            return json.loads(body.decode("utf-8", "replace").removeprefix("\ufeff"))
        except (ValueError, RecursionError):
            pass
        if "form-urlencoded" in self.headers.get("content-type", ""):
            try:
                return dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=NODES))
            except ValueError:
                return None
        return None

    def members(self, path: str) -> list[Any]:
        """Return the JSON values at a path of member names, null left out; arrays on the way are passed through."""
        names = path.split(".")
        if isinstance(self.json, dict) and names[0] not in self.json:  # most paths lead nowhere
            return []
        found: list[Any] = []
        _collect(self.json, names, 0, [NODES], found)
        return found

    def values(self, path: str) -> frozenset[str]:
        """Return the values at a path as comparable text; an object is ``{}``."""
        known = self._values.get(path)
        if known is None:
            members = self.members(path)
            known = frozenset([plain(value) or "{}" for value in members]) if members else _NOTHING
            self._values[path] = known
        return known

    @_once
    def said(self) -> str:
        """All that the answer says in words or codes, :func:`normal`, its pieces parted by ``|``."""
        pieces = [
            challenge.parameters[name]
            for challenge in self.challenges
            for name in ("error", "error_description", "errordescription")
            if name in challenge.parameters
        ]
        if self.json is not None:
            _tell(self.json, "message", 0, [NODES], pieces)
        elif self.is_xml:
            pieces.extend(_TAG.split(self.text)[:NODES])
        elif self.text.lstrip()[:1] not in ("<", "{", "["):  # a page says nothing in words that can be relied on
            pieces.append(self.text)
        return "|".join([_spoken(piece) for piece in pieces])

    @property
    def is_xml(self) -> bool:
        """Whether the body is XML that a program sent (AWS, WebDAV), not a page."""
        begins = self.text[:256].lstrip().casefold()
        page = "html" in begins or "html" in self.headers.get("content-type", "").casefold()
        return (
            begins.startswith("<")
            and not page
            and (begins.startswith("<?xml") or "xml" in self.headers.get("content-type", ""))
        )

    def words(self, place: str) -> str:
        """Return a text as :func:`normal` words: ``said``, ``body``, ``challenge.x``, ``header.x`` or a JSON path."""
        known = self._words.get(place)
        if known is None:
            known = self._words[place] = self._read(place)
        return known

    def vocabulary(self, place: str) -> frozenset[str]:
        """Return the different words of a text."""
        known = self._vocabularies.get(place)
        if known is None:
            text = self.words(place)
            known = self._vocabularies[place] = frozenset(text.split(" ")) if text else _NOTHING
        return known

    def _read(self, place: str) -> str:
        if place == "said":
            return self.said
        if place == "body":
            return normal(self.text)
        where, _, name = place.partition(".")
        if where == "challenge":
            return "|".join([normal(value) for value in self.parameters.get(name, ())])
        if where == "header":
            return normal(self.headers.get(name, ""))
        return "|".join([normal(value) for value in self.members(place) if isinstance(value, str)])


def _collect(value: Any, path: list[str], depth: int, budget: list[int], found: list[Any]) -> None:
    budget[0] -= 1
    if budget[0] < 0 or value is None or depth > DEPTH:
        return
    if isinstance(value, list):
        for item in value[:NODES]:
            _collect(item, path, depth + 1, budget, found)
    elif not path:
        found.append(value)
    elif isinstance(value, dict) and path[0] in value:
        _collect(value[path[0]], path[1:], depth + 1, budget, found)


def _tell(value: Any, name: str, depth: int, budget: list[int], pieces: list[str], *, here: bool = True) -> None:
    """Collect what is said below a member; *here*: at the top, or in a member that says what is wrong."""
    budget[0] -= 1
    if budget[0] < 0 or depth > DEPTH:
        return
    if isinstance(value, str):
        if name in (_TELLING_HERE if here else _TELLING):
            pieces.append(value)
    elif isinstance(value, list):
        for item in value[:NODES]:
            _tell(item, name, depth + 1, budget, pieces, here=here)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str | list | dict):
                short = key if key in _TELLING else _NOT_WORDS.sub("", key[:64].casefold())
                below = here if isinstance(item, str) else short in _TELLING or (here and short in _TELLING_HERE)
                _tell(item, short, depth + 1, budget, pieces, here=below)
