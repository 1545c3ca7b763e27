"""A TOML text → the table that ``tomllib`` reads, in a third of the time where it is written plainly.

tomllib walks through a text character by character in Python; the catalogue alone would take it more than 30 ms. But
profiles are written plainly: a key and its value on one line, texts in ordinary quotes, an array on one line or with an
item on each. Such values differ from JSON by little more than ``=``, and json's reader is written in C. At the first
line that is anything else, the whole text goes to tomllib, which also says what is wrong with it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from datetime import date
from typing import Any

_WORD = "[A-Za-z0-9_-]+"
_HEADING = re.compile(rf"\[(?:({_WORD})\.)?({_WORD})\]")
_LIST_HEADING = re.compile(rf"\[\[({_WORD})\]\]")
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_QUOTED = re.compile(r'("[^"\\]*(?:\\["\\][^"\\]*)*")')
# What may stand between texts (which are here line ends): brackets and commas, keys, true, false and whole numbers.
_BETWEEN = re.compile(rf"(?:[\[\]{{}}, \n]|(?:{_WORD})? = |(?:true|false|0|-?[1-9][0-9]*)(?![\w-]))*", re.ASCII)
_KEY = re.compile(rf"({_WORD}) = ")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class _NotPlainError(Exception):
    """The text is one for tomllib."""


def loads(text: str) -> dict[str, Any]:
    """Return the table of a TOML text. Raises ValueError or RecursionError where it is none, as ``tomllib.loads``."""
    try:
        return _plain(text)
    except (_NotPlainError, ValueError, RecursionError):
        return tomllib.loads(text)


def _plain(source: str) -> dict[str, Any]:
    if _CONTROL.search(source):
        raise _NotPlainError
    top: dict[str, Any] = {}
    current = top
    opened: set[str] = set()
    lines = iter(source.split("\n"))
    for line in lines:
        key, equals, value = line.partition(" = ")
        if equals and key.isidentifier() and key.isascii():
            if key in current:
                raise _NotPlainError
            text = value[1:-1]
            if value == f'"{text}"' and '"' not in text and "\\" not in text:  # most lines by far
                current[key] = text
            else:
                current[key] = _items(lines) if value == "[" else _value(value)
        elif heading := _LIST_HEADING.fullmatch(line):
            current = _further(top, heading[1], opened)
        elif heading := _HEADING.fullmatch(line):
            current = _table(top, heading[1], heading[2], opened)
        elif line and line[0] != "#":
            raise _NotPlainError
    return top


def _further(top: dict[str, Any], name: str, opened: set[str]) -> dict[str, Any]:
    """One more table of a list of tables."""
    if name not in top:
        top[name] = []
        opened.add(f"[{name}]")
    elif f"[{name}]" not in opened:
        raise _NotPlainError
    table: dict[str, Any] = {}
    top[name].append(table)
    return table


def _table(top: dict[str, Any], outer: str | None, name: str, opened: set[str]) -> dict[str, Any]:
    """A table, which nothing may have written to before, at the top or in one that headings alone have opened."""
    if outer is not None:
        if outer not in top:
            top[outer] = {}
            opened.add(outer)
        elif outer not in opened:
            raise _NotPlainError
        top = top[outer]
    else:
        opened.add(name)
    if name in top:
        raise _NotPlainError
    table: dict[str, Any] = {}
    top[name] = table
    return table


def _items(lines: Iterator[str]) -> list[Any]:
    """The items of an array, one a line; only the last may lack its comma."""
    items: list[Any] = []
    more = True
    for line in lines:
        if line == "]":
            return items
        if not more:
            raise _NotPlainError
        more = line.endswith(",")
        items.append(_value(line.lstrip(" ").removesuffix(",")))
    raise _NotPlainError


def _value(text: str) -> Any:
    if _NUMBER.fullmatch(text):
        return int(text)
    if _DATE.fullmatch(text):
        return date.fromisoformat(text)
    pieces = _QUOTED.split(text)
    between = "\n".join(pieces[::2])
    if not _BETWEEN.fullmatch(between):
        raise _NotPlainError
    if "=" in between:
        between = _KEY.sub(_quoted, between).replace(" = ", ":")
    pieces[::2] = between.split("\n")
    text = "".join(pieces)
    value, end = _READER.raw_decode(text)
    if end != len(text):
        raise _NotPlainError
    return value


def _quoted(key: re.Match[str]) -> str:
    return f'"{key[1]}":'


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _NotPlainError
    return members


_READER = json.JSONDecoder(object_pairs_hook=_members)
