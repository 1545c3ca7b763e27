"""Looks for secrets where none may be: in texts, objects, errors and their frames, logs and files.

A *canary* is a secret that is planted on purpose. Most carry :data:`MARK`; random ones (states, verifiers, assertions)
are planted when they are known. Each is looked for as it is, in base64 at every alignment, in hexadecimal and in UTF-16.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import json
import logging
import os
import pickle
import pprint
import reprlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rich.pretty

import tokenkeeper
from tokenkeeper import TokenKeeperError

MARK = "CANARY-4f1e9c"
"""Stands in every secret that a test chooses itself."""

PACKAGE = str(Path(tokenkeeper.__file__).parent) + os.sep
STAND_IN = PACKAGE + "testing" + os.sep
"""The fake provider's frames are the provider's: it is their secrets that are looked for."""

MEMBERS = "public attributes"


def _members(thing: object) -> str:
    """The repr of what the attributes without an underscore hold; ``response`` of an error is the user's own object."""
    names = [name for name in dir(thing) if not name.startswith("_") and name not in {"response", "args"}]
    values = {name: getattr(thing, name) for name in names}
    return repr({name: value for name, value in values.items() if not callable(value)})


def _inside(thing: object) -> str:
    """The repr of an object, and of what it is made of."""
    return f"{thing!r} {getattr(thing, '__dict__', None)!r}"


def _shown(local: object) -> str:
    """A local as ``traceback.TracebackException(capture_locals=True)`` shows it; a half-made object has no repr."""
    try:
        return repr(local)
    except Exception as error:
        return repr(error)


WAYS: dict[str, Callable[[Any], str | bytes]] = {
    "str": str,
    "repr": repr,
    "ascii": ascii,
    "format": format,
    "percent": lambda thing: "%s %r" % (thing, thing),  # noqa: UP031 - one of the ways
    "pprint": pprint.pformat,
    "reprlib": reprlib.repr,
    "rich": rich.pretty.pretty_repr,
    "vars": lambda thing: repr(vars(thing)),
    "asdict": lambda thing: repr(dataclasses.asdict(thing)),
    "astuple": lambda thing: repr(dataclasses.astuple(thing)),
    "copy": lambda thing: _inside(copy.copy(thing)),
    "deepcopy": lambda thing: _inside(copy.deepcopy(thing)),
    "pickled and back": lambda thing: _inside(pickle.loads(pickle.dumps(thing))),
    "json": json.dumps,
    "json of repr": lambda thing: json.dumps(thing, default=repr),
    "json of vars": lambda thing: json.dumps(thing, default=vars),
    "pickle 0": lambda thing: pickle.dumps(thing, 0),
    "pickle": pickle.dumps,
    MEMBERS: _members,
}
"""How an object is made a text. A way that raises must not quote either."""


def forms(secret: str | bytes) -> Iterator[bytes]:
    """A secret as it may be written."""
    plain = secret.encode() if isinstance(secret, str) else secret
    yield plain
    yield plain.hex().encode()
    yield plain.decode("latin-1").encode("utf-16-le")
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + plain)
        whole = encoded[-(-shift * 8 // 6) : (shift + len(plain)) * 8 // 6]
        yield whole
        yield whole.replace(b"+", b"-").replace(b"/", b"_")


class Lookout(logging.Handler):
    """Knows the canaries, looks wherever it is pointed, and keeps what it has found. It hears every logger at DEBUG."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.found: list[str] = []
        self.looked = 0
        """How many texts it has looked at."""
        self.frames = 0
        """How many frames of ours it has looked at."""
        self.deaf_to: set[str] = set()
        """Loggers (by the first part of their name) that are the user's business in this test."""
        self._needles: dict[bytes, str] = {}
        self._logged: list[tuple[str, BaseException | None]] = []
        self.plant("the mark", MARK)

    def plant(self, name: str, secret: str | bytes) -> None:
        """Look for this, too."""
        assert len(secret) >= 10, f"{name} is too short to be told from chance"
        self._needles.update((form.lower(), name) for form in forms(secret))

    # --- where it looks ---

    def text(self, medium: str, text: str | bytes) -> None:
        """Look at a text or at bytes."""
        self.looked += 1
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        straw = raw.lower()
        for needle, name in self._needles.items():
            place = straw.find(needle)
            if place >= 0:
                self.found.append(f"{name} in {medium}: …{raw[max(place - 80, 0) : place + 60]!r}…")
                return

    def thing(self, name: str, thing: object, but: frozenset[str] | set[str] = frozenset()) -> None:
        """Look at an object in every way (*but* some) in which it becomes a text."""
        for way, made in WAYS.items():
            if way in but:
                continue
            try:
                text = made(thing)
            except Exception as refused:
                text = f"{refused!r} {refused}"
            self.text(f"{way} of {name} ({type(thing).__name__})", text)

    def error(self, name: str, error: BaseException) -> None:
        """Look at an error, at those that it comes from, and at the locals of our frames that they came through."""
        todo, done = [error], set[int]()
        while todo:
            error = todo.pop()
            if id(error) in done:
                continue
            done.add(id(error))
            self.text(f"message of {name} ({type(error).__name__})", "".join(traceback.format_exception_only(error)))
            if isinstance(error, TokenKeeperError):
                self.thing(name, error)
            for frame, line in traceback.walk_tb(error.__traceback__):
                file = frame.f_code.co_filename
                if file.startswith(PACKAGE) and not file.startswith(STAND_IN):
                    self.frames += 1
                    place = f"{file.removeprefix(PACKAGE)}:{line} {frame.f_code.co_name}"
                    for local, value in frame.f_locals.items():
                        self.text(f"local {local} of {place}, {type(error).__name__} of {name}", _shown(value))
            todo += [other for other in (error.__cause__, error.__context__) if other is not None]
            todo += getattr(error, "exceptions", ())

    def folder(self, folder: Path) -> None:
        """Look at the bytes (and names) of all files in a folder."""
        for path in sorted(folder.rglob("*")):
            self.text(f"name of {path.name}", path.name)
            if path.is_file():
                self.text(f"bytes of {path.name}", path.read_bytes())

    # --- logs ---

    def emit(self, record: logging.LogRecord) -> None:
        """Take down a record: what it holds may have changed by the time that it is looked at."""
        if record.name.partition(".")[0] in self.deaf_to:
            return
        held = {key: value for key, value in vars(record).items() if key != "exc_info"}
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        text = f"{logging.Formatter().format(record)}\n{record.getMessage()}\n{record.args!r}\n{held!r}"
        self._logged.append((f"log {record.name} {record.levelname}", error))
        self.text(self._logged[-1][0], text)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear every logger at DEBUG, also those that a library has turned down."""
        root = logging.getLogger()
        loggers = [
            root,
            *(one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger)),
        ]
        levels = [(one, one.level, one.disabled) for one in loggers]
        for one in loggers:
            one.setLevel(logging.DEBUG)
            one.disabled = False
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)
            for one, level, disabled in levels:
                one.setLevel(level)
                one.disabled = disabled
        self.logged_errors()

    @property
    def heard(self) -> set[str]:
        """The loggers that said something."""
        return {name.split()[1].partition(".")[0] for name, _ in self._logged}

    def logged_errors(self) -> None:
        """Look at the errors that were logged, and the frames that they came through."""
        logged, self._logged = self._logged, [(name, None) for name, _ in self._logged]
        for name, error in logged:
            if error is not None:
                self.error(name, error)
