"""WWW-Authenticate fields → challenges, whatever was sent (RFC 9110 section 11.6.1, read leniently).

Servers leave out commas (Kong, AWS), put one after the scheme (django-oauth-toolkit), forget quotes (Google, Apigee),
name two schemes in one line (auth0-node) or follow no grammar at all (Meta). All of it is read as far as it goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FIELD_CHARACTERS = 16_384
"""The most that is read of one field value; a longer one is cut."""
CHALLENGES = 32
"""The most challenges that are read of one answer."""
PARAMETERS = 64
"""The most parameters that are read of one challenge."""

_CHARACTERS = r"!#$%&'*+\-.^_`|~0-9A-Za-z"
_TOKEN = rf"[{_CHARACTERS}]+"
_BETWEEN = re.compile(rf'[^"{_CHARACTERS}]*')  # commas, blanks, and what fits nowhere
_NAME = re.compile(rf"({_TOKEN})[ \t]*=[ \t]*")
_WORD = re.compile(_TOKEN)
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9\-._~+/]+=*[ \t]*(?=,|$)")
_BARE = re.compile(r"[^\s,]*")
_LOOSE = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_NEXT_PARAMETER = re.compile(rf"[\s,]+{_TOKEN}[ \t]*=[ \t]*$")
# After a closing quote: the end, a comma, the next parameter, or a scheme with its parameters or alone.
_CLOSED = re.compile(rf"[ \t\r\n]*(?:$|,|{_TOKEN}[ \t]*(?:=|,|$|[ \t]{_TOKEN}[ \t]*=))")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: scheme and parameter names in lower case; of a parameter named twice, the first value."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(fields: str | Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of one or several WWW-Authenticate field values, in order. Never raises for their content.

    Parameters before any scheme belong to a challenge whose scheme is empty. Text that fits nowhere is passed over.
    """
    found: list[Challenge] = []
    for text in (fields,) if isinstance(fields, str) else fields:
        _parse_field(text[:FIELD_CHARACTERS], found)
    return tuple(found)


def _parse_field(text: str, found: list[Challenge]) -> None:
    parameters: dict[str, str] | None = None
    position, end = 0, len(text)
    while (position := _BETWEEN.match(text, position).end()) < end:  # type: ignore[union-attr]
        if name := _NAME.match(text, position):
            value, position = _value(text, name.end())
            if parameters is None:
                if len(found) == CHALLENGES:
                    return
                parameters = {}
                found.append(Challenge("", parameters))
            if len(parameters) < PARAMETERS:
                parameters.setdefault(name[1].lower(), value)
        elif word := _WORD.match(text, position):
            if len(found) == CHALLENGES:
                return
            parameters = {}
            found.append(Challenge(word[0].lower(), parameters))
            position = word.end()
            if token68 := _TOKEN68.match(text, position):
                position = token68.end()
        else:
            position = _LOOSE.match(text, position).end()  # type: ignore[union-attr]


def _value(text: str, start: int) -> tuple[str, int]:
    """Read a parameter's value: quoted, or bare; an unbalanced quote ends where the next parameter begins."""
    if not text.startswith('"', start):
        bare = _BARE.match(text, start)
        value, end = (bare[0], bare.end()) if bare else ("", start)
        return value.strip('"'), end
    position = start + 1
    while (quote := text.find('"', position)) >= 0:
        if _backslashes(text, start + 1, quote) % 2:
            position = quote + 1
        elif _CLOSED.match(text, quote + 1):
            return _unescape(text[start + 1 : quote]), quote + 1
        elif following := _next_parameter(text, max(start + 1, quote - 64), quote):
            return _unescape(text[start + 1 : following.start()]), following.start()
        else:  # a quote inside the value, as in "The "exp" claim"
            position = quote + 1
    return _unescape(text[start + 1 :].rstrip('"')), len(text)


def _next_parameter(text: str, start: int, end: int) -> re.Match[str] | None:
    """Find the parameter's name that a piece of text ends in."""
    return _NEXT_PARAMETER.search(text, start, end) if text[start:end].rstrip(" \t").endswith("=") else None


def _backslashes(text: str, start: int, end: int) -> int:
    """Count the backslashes that a piece of text ends in."""
    position = end
    while position > start and text[position - 1] == "\\":
        position -= 1
    return end - position


def _unescape(text: str) -> str:
    return _ESCAPE.sub(r"\1", text) if "\\" in text else text
