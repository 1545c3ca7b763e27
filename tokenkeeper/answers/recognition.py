"""Which library, or which reader of the host's, an object belongs to; nothing is imported to find out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from tokenkeeper.answers.bodies import BODY_LIMIT
from tokenkeeper.answers.libraries import (
    Aiohttp,
    AiohttpRaised,
    Exchange,
    HttpClient,
    Httpx,
    Library,
    Requests,
    Urllib,
    Urllib3,
    as_bytes,
    header_pairs,
    quietly,
    root,
)
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Answer, Unshown

Seen = Answer | tuple[int, Any, str | bytes | None] | None
"""What a registered reader returns: an Answer, ``(status, headers, body)``, or None for *not an answer*."""
Reader = Callable[[Any], Seen]

_CACHE_SIZE = 1024


def status_of(value: object) -> int | None:
    """Return the HTTP status of a response, or of an error that carries one; None for anything else."""
    kind = type(value)
    try:
        status = _statuses[kind]
    except KeyError:
        status = _remember(kind)
    return None if status is None else status(value)


def register_reader(kind: type | str, reader: Reader) -> None:
    """Recognise objects of a class, or of classes in a module (``"niquests"``: also its submodules), by *reader*.

    *reader* returns an :class:`~tokenkeeper.model.Answer`, ``(status, headers, body)``, or None where the object is no
    answer; it is asked more than once, so it must not use the object up. The latest registration wins, also over the
    libraries known here.
    """
    _registered.insert(0, (kind, reader))
    _kinds.clear()
    _statuses.clear()


def from_host(value: object, mapper: Callable[[Any], object]) -> object:
    """Return what guard's ``answer=`` makes of a result or an error: an object that the functions here know, or None.

    Raises ConfigurationError if *mapper* returns something else than ``(status, headers, body)``, an Answer, a known
    response or error, or None.
    """
    held = Unshown(value)
    del value  # its repr may show the token: a traceback of this frame must not have it
    made = _made(mapper(held.value))
    if isinstance(made, _Unreadable):
        raise made.error("answer= of guard")
    return made


class _Unreadable(NamedTuple):
    """What is wrong with what a host's function returned; a text, so that the error's frames hold no body or header."""

    problem: str

    def error(self, whose: str) -> ConfigurationError:
        """Return the operator's error."""
        return ConfigurationError(
            f"{whose} does not say what was answered: {self.problem}",
            cause="unreadable_answer",
            fix="return (status: int, headers: mapping or pairs, body: str, bytes or None), or None for no answer",
        )


def _made(seen: object) -> object:
    """Return what a host's function returned if it is understood, as an Answer where it is a tuple."""
    if seen is None or status_of(seen) is not None:
        return seen
    if not isinstance(seen, tuple) or len(seen) != 3:
        return _Unreadable(f"it returned a {type(seen).__name__}")
    status, headers, body = seen
    if not isinstance(status, int) or isinstance(status, bool):
        return _Unreadable(f"its status is a {type(status).__name__}")
    text = as_bytes(body)
    if text is None and body is not None:
        return _Unreadable(f"its body is a {type(body).__name__}")
    pairs = quietly(header_pairs, headers)
    if pairs is None:
        return _Unreadable(f"its headers are a {type(headers).__name__} that is neither a mapping nor pairs")
    return Answer(int(status), pairs, text if text is None else text[:BODY_LIMIT])


class _Host(Library):
    """Answers themselves, and what a registered reader says."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def answer(self, value: object) -> Answer | None:
        made = self._reader(value) if isinstance(value, Answer) else _made(self._reader(value))
        if isinstance(made, _Unreadable):
            raise made.error("a registered reader")
        return made if isinstance(made, Answer) else None

    def status(self, value: object) -> int | None:
        answer = self.answer(value)
        return None if answer is None else answer.status

    def cached(self, response: Any) -> bytes | None:
        answer = self.answer(response)
        return None if answer is None else answer.body

    def exchange(self, response: Any, status: int, body: bytes | None) -> Exchange:  # noqa: ARG002
        return Exchange(self.answer(response) or Answer(status))

    async def aclose(self, response: Any) -> None:
        done = response.close()
        if inspect.isawaitable(done):
            await done


class _Kind(NamedTuple):
    """How objects of one class are read: ``status`` is None for those that are no answer, ``inside`` opens an error."""

    status: Callable[[Any], int | None] | None
    library: Library
    inside: Callable[[Any], Any] | None = None


def _status_inside(error: Any) -> int | None:
    """Return the status of the response that an error carries; requests allows errors without one."""
    return None if error.response is None else error.response.status_code


_NOTHING = _Kind(None, Library())
_HTTPX_RESPONSE = _Kind(attrgetter("status_code"), Httpx())
_HTTPX_ERROR = _Kind(_status_inside, Httpx(), attrgetter("response"))
_KNOWN: Mapping[tuple[str, str], _Kind] = {
    ("requests", "Response"): _Kind(attrgetter("status_code"), Requests()),
    ("requests", "HTTPError"): _Kind(_status_inside, Requests(), attrgetter("response")),
    ("httpx", "Response"): _HTTPX_RESPONSE,
    ("httpx", "HTTPStatusError"): _HTTPX_ERROR,
    ("httpx2", "Response"): _HTTPX_RESPONSE,
    ("httpx2", "HTTPStatusError"): _HTTPX_ERROR,
    ("aiohttp", "ClientResponse"): _Kind(attrgetter("status"), Aiohttp()),
    ("aiohttp", "ClientHttpProxyError"): _NOTHING,  # the proxy's refusal says nothing of the token
    ("aiohttp", "ClientResponseError"): _Kind(lambda error: error.status or None, AiohttpRaised()),
    ("urllib3", "HTTPResponse"): _Kind(attrgetter("status"), Urllib3()),
    ("urllib", "HTTPError"): _Kind(attrgetter("code"), Urllib()),
    ("urllib", "addinfourl"): _Kind(attrgetter("code"), Urllib()),
    ("http", "HTTPResponse"): _Kind(attrgetter("status"), HttpClient()),
    ("tokenkeeper", "Answer"): _Kind(attrgetter("status"), _Host(lambda answer: answer)),
}

_registered: list[tuple[type | str, Reader]] = []
_kinds: dict[type, _Kind] = {}
_statuses: dict[type, Callable[[Any], int | None] | None] = {}


def _kind(cls: type) -> _Kind:
    """Return how objects of *cls* are read."""
    kind = _kinds.get(cls)
    return _recognised(cls) if kind is None else kind


def _remember(cls: type) -> Callable[[Any], int | None] | None:
    """Work out how objects of *cls* are read, and keep it; bounded, because a program may make classes without end."""
    if len(_kinds) >= _CACHE_SIZE:
        _kinds.clear()
        _statuses.clear()
    kind = _kinds[cls] = _recognised(cls)
    _statuses[cls] = kind.status
    return kind.status


def _recognised(cls: type) -> _Kind:
    bases = cls.__mro__
    for what, reader in _registered:
        if any(base is what or _inside(base.__module__, what) for base in bases):
            host = _Host(reader)
            return _Kind(host.status, host)
    for base in bases:
        kind = _KNOWN.get((root(base), base.__name__))
        if kind is not None:
            return kind
    return _NOTHING


def _inside(module: object, what: type | str) -> bool:
    return isinstance(what, str) and (module == what or str(module).startswith(f"{what}."))


def opened(value: object) -> tuple[Library, Any]:
    """Return how *value* is read, and the response that it is or carries."""
    kind = _kind(type(value))
    return kind.library, value if kind.inside is None else kind.inside(value)
