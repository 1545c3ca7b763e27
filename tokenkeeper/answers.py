"""What the user's function returned or raised → status, headers, body.

No HTTP library is imported here: a response or an error is recognised by the module and name of its class or of a
base of it (requests, httpx, httpx2, aiohttp, urllib3, urllib.request), or by a reader that the host registers.

A body is read only when it is asked for, at most :data:`BODY_LIMIT` bytes of it, and stays readable in the object that
is passed on. A body that cannot be read any more is None, never ``b""``: an empty body says something, None nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Answer, HeaderPairs

BODY_LIMIT = 1 << 20
"""The most of a body, in bytes, that is taken for the diagnosis; the user's object keeps all of it."""
JSON_LIMIT = 1 << 16
"""The largest body, in bytes, that is looked at for an error hidden in a 200."""

Wanted = Callable[[int], bool]
"""Says for a status whether some rule asks for the body."""
Seen = Answer | tuple[int, Any, str | bytes | None] | None
"""What a registered reader returns: an Answer, ``(status, headers, body)``, or None for *not an answer*."""
Reader = Callable[[Any], Seen]
Request = tuple[object, object, HeaderPairs]
"""Method, URL and headers of a request, as its library keeps them."""

T = TypeVar("T")

_CACHE_SIZE = 1024
_NESTING = 3


@dataclass(frozen=True, slots=True)
class Exchange:
    """An answer, and what its object still knows of the request."""

    answer: Answer
    method: str | None = None
    url: str | None = field(default=None, repr=False)
    request_headers: HeaderPairs = field(default=(), repr=False)


def status_of(value: object) -> int | None:
    """Return the HTTP status of a response, or of an error that carries one; None for anything else."""
    kind = type(value)
    try:
        status = _statuses[kind]
    except KeyError:
        status = _remember(kind)
    return None if status is None else status(value)


def read(value: object, wants_body: Wanted) -> Exchange | None:
    """Return what a response or an error says, its body only where *wants_body* says so; None for anything else."""
    status = status_of(value)
    if status is None:
        return None
    library, response = _opened(value)
    return library.exchange(response, status, _quietly(library.body, response) if wants_body(status) else None)


async def aread(value: object, wants_body: Wanted) -> Exchange | None:
    """Return what :func:`read` returns, waiting for the body of an async library."""
    status = status_of(value)
    if status is None:
        return None
    library, response = _opened(value)
    body = None
    if wants_body(status):
        with contextlib.suppress(Exception):  # a body that breaks is no body; the user's own read of it says so too
            body = await library.abody(response)
    return library.exchange(response, status, body)


def already_read_json(value: object) -> bytes | None:
    """Return the body if it was read already, begins as JSON does and has at most 64 KiB; a stream is never touched."""
    if status_of(value) is None:
        return None
    library, response = _opened(value)
    body = _quietly(library.cached, response)
    return body if body and len(body) <= JSON_LIMIT and body.lstrip()[:1] in (b"{", b"[") else None


def close(value: object) -> None:
    """Close the answer that a response is, or that an error carries, before the call is repeated. Never raises."""
    if status_of(value) is not None:
        library, response = _opened(value)
        _quietly(library.close, response)


async def aclose(value: object) -> None:
    """Do what :func:`close` does, waiting for an async library. Never raises."""
    if status_of(value) is not None:
        library, response = _opened(value)
        with contextlib.suppress(Exception):
            await library.aclose(response)


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
    made = _made(mapper(value))
    if isinstance(made, _Unreadable):
        raise made.error("answer= of guard")
    return made


def repeatable(args: Iterable[object], kwargs: Mapping[str, object]) -> bool:
    """Say whether a call with these arguments, made once already, can be made again: none holds a used-up stream."""
    return all(map(_reusable, args)) and all(map(_reusable, kwargs.values()))


def header_pairs(headers: Any) -> HeaderPairs:
    """Return header fields as pairs, names in lower case; from a mapping to str or to lists, or from pairs."""
    if headers is None:
        return ()
    items = getattr(headers, "multi_items", None) or getattr(headers, "items", None)
    pairs = []
    for name, value in items() if items else headers:
        values = value if isinstance(value, list | tuple) else (value,)
        pairs += [(_text(name).lower(), _text(one)) for one in values]
    return tuple(pairs)


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _bytes(body: object) -> bytes | None:
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    return bytes(body) if isinstance(body, bytes | bytearray | memoryview) else None


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
    text = _bytes(body)
    if text is None and body is not None:
        return _Unreadable(f"its body is a {type(body).__name__}")
    pairs = _quietly(header_pairs, headers)
    if pairs is None:
        return _Unreadable(f"its headers are a {type(headers).__name__} that is neither a mapping nor pairs")
    return Answer(int(status), pairs, text if text is None else text[:BODY_LIMIT])


def _quietly(action: Callable[[Any], T], response: Any) -> T | None:
    """Do *action*; whatever the library raises means that there is nothing to be had."""
    try:
        return action(response)
    except Exception:  # noqa: BLE001 -- any library's error; the user's own read of the object says so too
        return None


# --- bodies -----------------------------------------------------------------------------------------------------------


class _PutBack(io.RawIOBase):
    """The first part of a body in front of its rest; what broke while the first part was read breaks again after it."""

    def __init__(self, head: bytes, rest: Any, error: Exception | None) -> None:
        super().__init__()
        self._head = io.BytesIO(head)
        self._rest = rest
        self._error = error
        self._handed_out = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._handed_out

    def readinto(self, buffer: Any) -> int:
        data = self._head.read(len(buffer))
        if not data:
            if self._error is not None:
                raise self._error
            data = b"" if self._rest.closed else self._rest.read(len(buffer)) or b""
        buffer[: len(data)] = data
        self._handed_out += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._rest.close()
        super().close()


class _Taken(NamedTuple):
    """The first part of a body, whether it broke while it was read, and a file that still has all of the body."""

    head: bytes
    broken: bool
    whole: io.BufferedReader


def _take(read: Callable[[int], bytes | None], rest: Any) -> _Taken:
    """Take the first part of a body by *read*; *rest* is the file that then stands behind it."""
    pieces: list[bytes] = []
    size = 0
    broken = None
    while size < BODY_LIMIT:
        try:
            piece = read(BODY_LIMIT - size)
        except Exception as error:  # noqa: BLE001 -- kept, to break again when the user reads
            broken = error
            break
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    head = b"".join(pieces)
    return _Taken(head, broken is not None, io.BufferedReader(_PutBack(head, rest, broken)))


def _plain(wire: bytes | None, headers: HeaderPairs) -> bytes | None:
    """Undo gzip and deflate where the library did not: at most the limit, also of a bomb."""
    encoding = next((value.strip().lower() for name, value in headers if name == "content-encoding"), "")
    if not wire or encoding not in ("gzip", "x-gzip", "deflate"):
        return wire
    for bits in (47, -15):  # gzip or zlib, by its header; some servers send deflate without one
        decoder = zlib.decompressobj(bits)
        with contextlib.suppress(zlib.error):
            text = decoder.decompress(wire, BODY_LIMIT)
            if decoder.eof or bits > 0:
                return text
    return wire  # not what its header says: decoded already


# --- libraries --------------------------------------------------------------------------------------------------------


class _Library:
    """How the responses of one HTTP library are read. Methods may raise: whoever calls them expects it."""

    def headers(self, response: Any) -> HeaderPairs:
        return header_pairs(response.headers)

    def request(self, response: Any) -> Request:  # noqa: ARG002
        """Return method, URL and headers of the request, as far as they are known."""
        return None, None, ()

    def cached(self, response: Any) -> bytes | None:  # noqa: ARG002
        """Return the body if it was read already."""
        return None

    def body(self, response: Any) -> bytes | None:
        """Return the body, or None if it cannot be read any more."""
        return self.cached(response)

    async def abody(self, response: Any) -> bytes | None:
        return self.body(response)

    def close(self, response: Any) -> None:
        response.close()

    async def aclose(self, response: Any) -> None:
        self.close(response)

    def exchange(self, response: Any, status: int, body: bytes | None) -> Exchange:
        """Put together what is known."""
        answer = Answer(status, _quietly(self.headers, response) or (), None if body is None else body[:BODY_LIMIT])
        method, url, sent = _quietly(self.request, response) or (None, None, ())
        return Exchange(answer, None if method is None else _text(method), None if url is None else _text(url), sent)


class _Urllib3(_Library):
    """``urllib3.HTTPResponse``, and what requests keeps in ``.raw``."""

    def request(self, response: Any) -> Request:
        return None, response.geturl(), ()

    def cached(self, response: Any) -> bytes | None:
        return _bytes(getattr(response, "_body", None))

    def body(self, response: Any) -> bytes | None:
        if getattr(response, "_body", None) is not None:
            return self.cached(response)
        if response.closed or response.tell():
            return None
        taken = _take(lambda size: response.read(size, decode_content=False), response._fp)
        response._fp = taken.whole  # its public methods read from here, whoever asks next, and decode
        response._fp_bytes_read = 0
        response._uncached_read_occurred = False
        if response.length_remaining is not None:
            response.length_remaining += len(taken.head)
        return None if taken.broken else self._decoded(response, taken.head)

    def _decoded(self, response: Any, wire: bytes) -> bytes | None:
        """Decode with urllib3's own decoders (br and zstd, where they are installed) in a response made for it."""
        if not wire or "content-encoding" not in response.headers:
            return wire
        kind = sys.modules["urllib3"].HTTPResponse
        copy = kind(io.BytesIO(wire), headers=response.headers, preload_content=False, enforce_content_length=False)
        try:
            return _bytes(copy.read(BODY_LIMIT))
        except Exception:  # noqa: BLE001 -- cut off, or not what its header says
            return None

    def close(self, response: Any) -> None:
        response.close()
        response.release_conn()


class _Requests(_Library):
    def headers(self, response: Any) -> HeaderPairs:
        """Take the fields from urllib3's response, because requests' own dictionary joins repeated ones."""
        return header_pairs(getattr(response.raw, "headers", None)) or header_pairs(response.headers)

    def request(self, response: Any) -> Request:
        request = response.request
        return request.method, request.url or response.url, header_pairs(request.headers)

    def cached(self, response: Any) -> bytes | None:
        return _bytes(response._content)

    def body(self, response: Any) -> bytes | None:
        if response._content is not False:
            return self.cached(response)
        if response._content_consumed:
            return None
        raw = response.raw
        if _kind(type(raw)).library is _URLLIB3:
            return _URLLIB3.body(raw)
        return None if getattr(raw, "closed", False) else _bytes(response.content)


class _Httpx(_Library):
    """httpx and httpx2."""

    def request(self, response: Any) -> Request:
        request = response.request
        return request.method, request.url, header_pairs(request.headers)

    def cached(self, response: Any) -> bytes | None:
        return _bytes(getattr(response, "_content", None))

    def body(self, response: Any) -> bytes | None:
        if (body := self.cached(response)) is not None or not self._readable(response, "__iter__"):
            return body
        stream, head, broken = response.stream, _Head(), None
        rest = iter(stream)
        try:
            for piece in rest:
                if head.full_with(piece):
                    break
        except Exception as error:  # noqa: BLE001 -- kept, to break again when the user reads
            broken = error
        response.stream = _stream_kind(_SyncStream, stream)(stream, head.pieces, rest, broken)
        return None if broken else self._decoded(response, b"".join(head.pieces))

    async def abody(self, response: Any) -> bytes | None:
        if (body := self.cached(response)) is not None or not self._readable(response, "__aiter__"):
            return self.body(response) if body is None else body
        stream, head, broken = response.stream, _Head(), None
        rest = aiter(stream)
        try:
            async for piece in rest:
                if head.full_with(piece):
                    break
        except Exception as error:  # noqa: BLE001 -- kept, to break again when the user reads
            broken = error
        response.stream = _stream_kind(_AsyncStream, stream)(stream, head.pieces, rest, broken)
        return None if broken else self._decoded(response, b"".join(head.pieces))

    def _readable(self, response: Any, how: str) -> bool:
        return hasattr(response.stream, how) and not (response.is_closed or response.is_stream_consumed)

    def _decoded(self, response: Any, wire: bytes) -> bytes | None:
        """Undo the encoding; br and zstd by the library, which has decoders where they are installed."""
        encoding = response.headers.get("content-encoding")
        if encoding not in ("br", "zstd"):
            return _plain(wire, self.headers(response))
        copy = sys.modules[type(response).__module__.partition(".")[0]].Response
        return _bytes(copy(200, headers={"content-encoding": encoding}, content=wire).content)

    async def aclose(self, response: Any) -> None:
        if hasattr(response.stream, "__aiter__"):
            await response.aclose()
        else:
            response.close()


class _Head:
    """The first pieces of a body that comes in pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._size = 0

    def full_with(self, piece: bytes) -> bool:
        """Take a piece; say whether that is enough."""
        self.pieces.append(piece)
        self._size += len(piece)
        return self._size >= BODY_LIMIT


class _Stream:
    """What :class:`_PutBack` is for files, for the streams of httpx and httpx2."""

    def __init__(self, stream: Any, head: list[bytes], rest: Any, broken: Exception | None) -> None:
        self._stream = stream
        self._head = head
        self._rest = rest
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _SyncStream(_Stream):
    def __iter__(self) -> Iterator[bytes]:
        yield from self._head
        if self._broken is not None:
            raise self._broken
        yield from self._rest

    def close(self) -> None:
        self._stream.close()


class _AsyncStream(_Stream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._head:
            yield piece
        if self._broken is not None:
            raise self._broken
        async for piece in self._rest:
            yield piece

    async def aclose(self) -> None:
        if hasattr(self._rest, "aclose"):
            await self._rest.aclose()
        await self._stream.aclose()


def _stream_kind(kind: Any, stream: object) -> Any:
    """Return *kind* as a class that the library of *stream* takes for a stream of its own."""
    name = "SyncByteStream" if kind is _SyncStream else "AsyncByteStream"
    return _joined(kind, next(base for base in type(stream).__mro__ if base.__name__ == name))


@cache
def _joined(kind: Any, base: Any) -> Any:
    return type(kind.__name__, (kind, base), {})


class _Aiohttp(_Library):
    def request(self, response: Any) -> Request:
        request = response.request_info
        return request.method, request.real_url, header_pairs(request.headers)

    def cached(self, response: Any) -> bytes | None:
        return _plain(_bytes(getattr(response, "_body", None)), self.headers(response))

    async def abody(self, response: Any) -> bytes | None:
        if response._body is None:
            content = response.content
            # Not .closed: a short answer counts as closed as soon as it has arrived, before anybody has read it.
            if content is None or content.exception() is not None or getattr(content, "_cursor", None):
                return None
            body = await response.read()
            if body:
                response.content = _read_again(body)
        return self.cached(response)

    def close(self, response: Any) -> None:
        response.release()


def _read_again(body: bytes) -> Any:
    """Return a stream of aiohttp's with all of a body, for a user who reads ``response.content`` and not ``read()``."""
    streams = sys.modules["aiohttp"]
    loop = asyncio.get_running_loop()
    stream = streams.StreamReader(streams.base_protocol.BaseProtocol(loop), len(body), loop=loop)
    stream.feed_data(body)
    stream.feed_eof()
    return stream


class _HttpClient(_Library):
    """``http.client.HTTPResponse``, which is what ``urllib.request.urlopen`` returns."""

    def request(self, response: Any) -> Request:
        return getattr(response, "_method", None), getattr(response, "url", None), ()

    def body(self, response: Any) -> bytes | None:
        if response.isclosed() or self._begun(response):
            return None
        twin = _twin(response)
        taken = _take(twin.read, twin)
        response.fp = taken.whole
        response.chunked = False  # the twin has joined the chunks; a length stays, and tells the user of a missing end
        cut = twin.length and twin.isclosed()
        return None if taken.broken or cut else _plain(taken.head, self.headers(response))

    def _begun(self, response: Any) -> bool:
        """Say whether somebody has read a part already."""
        if isinstance(getattr(response.fp, "raw", None), _PutBack):
            return bool(response.fp.tell())
        if response.chunked:
            return response.chunk_left is not None
        announced = response.headers.get("content-length", "")
        return (
            response.length is not None
            and response._method != "HEAD"
            and announced.isdecimal()
            and response.length != int(announced)
        )


def _twin(response: Any) -> Any:
    """Return another ``http.client.HTTPResponse`` that reads on where this one stands (io objects cannot be copied)."""
    cls: Any = type(response)
    twin = cls.__new__(cls)
    vars(twin).update(vars(response))
    return twin


class _Urllib(_Library):
    """``urllib.error.HTTPError`` and ``urllib.response.addinfourl``: a wrapper around ``http.client.HTTPResponse``."""

    def request(self, response: Any) -> Request:
        return getattr(response.fp, "_method", None), response.geturl(), ()

    def body(self, response: Any) -> bytes | None:
        inner = response.fp
        if inner is None or inner.closed:
            return None
        if _kind(type(inner)).library is _HTTP_CLIENT:
            return _HTTP_CLIENT.body(inner)
        if inner.tell():
            return None
        taken = _take(inner.read, inner)
        response.fp = response.file = taken.whole
        for name in ("read", "read1", "readinto", "readline", "readlines", "seek", "tell"):
            vars(response).pop(name, None)  # the wrapper keeps the methods of the file it was given
        return None if taken.broken else _plain(taken.head, self.headers(response))


class _AiohttpRaised(_Aiohttp):
    """``aiohttp.ClientResponseError``: status and headers; the response itself is gone."""

    def cached(self, response: Any) -> bytes | None:  # noqa: ARG002
        return None

    async def abody(self, response: Any) -> bytes | None:  # noqa: ARG002
        return None

    def close(self, response: Any) -> None:
        """Do nothing: aiohttp released the response before it raised."""


class _Host(_Library):
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


# --- recognition ------------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """How objects of one class are read: ``status`` is None for those that are no answer, ``inside`` opens an error."""

    status: Callable[[Any], int | None] | None
    library: _Library
    inside: Callable[[Any], Any] | None = None


def _status_inside(error: Any) -> int | None:
    """Return the status of the response that an error carries; requests allows errors without one."""
    return None if error.response is None else error.response.status_code


_URLLIB3 = _Urllib3()
_REQUESTS = _Requests()
_HTTPX = _Httpx()
_HTTP_CLIENT = _HttpClient()
_NOTHING = _Kind(None, _Library())
_HTTPX_RESPONSE = _Kind(attrgetter("status_code"), _HTTPX)
_HTTPX_ERROR = _Kind(_status_inside, _HTTPX, attrgetter("response"))
_KNOWN: Mapping[tuple[str, str], _Kind] = {
    ("requests", "Response"): _Kind(attrgetter("status_code"), _REQUESTS),
    ("requests", "HTTPError"): _Kind(_status_inside, _REQUESTS, attrgetter("response")),
    ("httpx", "Response"): _HTTPX_RESPONSE,
    ("httpx", "HTTPStatusError"): _HTTPX_ERROR,
    ("httpx2", "Response"): _HTTPX_RESPONSE,
    ("httpx2", "HTTPStatusError"): _HTTPX_ERROR,
    ("aiohttp", "ClientResponse"): _Kind(attrgetter("status"), _Aiohttp()),
    ("aiohttp", "ClientHttpProxyError"): _NOTHING,  # the proxy's refusal says nothing of the token
    ("aiohttp", "ClientResponseError"): _Kind(lambda error: error.status or None, _AiohttpRaised()),
    ("urllib3", "HTTPResponse"): _Kind(attrgetter("status"), _URLLIB3),
    ("urllib", "HTTPError"): _Kind(attrgetter("code"), _Urllib()),
    ("urllib", "addinfourl"): _Kind(attrgetter("code"), _Urllib()),
    ("http", "HTTPResponse"): _Kind(attrgetter("status"), _HTTP_CLIENT),
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
        kind = _KNOWN.get((str(base.__module__).partition(".")[0], base.__name__))
        if kind is not None:
            return kind
    return _NOTHING


def _inside(module: object, what: type | str) -> bool:
    return isinstance(what, str) and (module == what or str(module).startswith(f"{what}."))


def _opened(value: object) -> tuple[_Library, Any]:
    """Return how *value* is read, and the response that it is or carries."""
    kind = _kind(type(value))
    return kind.library, value if kind.inside is None else kind.inside(value)


# --- arguments --------------------------------------------------------------------------------------------------------


def _reusable(value: object, depth: int = 0) -> bool:
    """Say whether an argument that a call has had can serve once more."""
    if value is None or isinstance(value, str | bytes | int | float):
        return True
    if isinstance(value, Mapping):
        return depth >= _NESTING or all(_reusable(item, depth + 1) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return depth >= _NESTING or all(_reusable(item, depth + 1) for item in value)
    if inspect.isgenerator(value):
        return inspect.getgeneratorstate(value) == inspect.GEN_CREATED
    if inspect.iscoroutine(value):
        return inspect.getcoroutinestate(value) == inspect.CORO_CREATED
    if not isinstance(value, io.IOBase) and status_of(value) is not None:
        return True  # a response keeps its body
    if callable(getattr(value, "read", None)):
        return _at_its_start(value)
    return not (hasattr(value, "__next__") or hasattr(value, "__anext__"))


def _at_its_start(stream: Any) -> bool:
    """Say whether a stream stands at its start; one that cannot tell is taken as used."""
    if inspect.iscoroutinefunction(stream.read):
        # An upload of Starlette has the real file inside; of other async files the position cannot be asked for here.
        inner = getattr(stream, "file", None)
        return callable(getattr(inner, "tell", None)) and _at_its_start(inner)
    try:
        position = stream.tell() if stream.seekable() else None
    except Exception:  # noqa: BLE001 -- closed, or no such method
        return False
    return position == 0 if isinstance(position, int | None) else True  # a mock tells no position
