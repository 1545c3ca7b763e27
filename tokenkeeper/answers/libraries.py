"""How the responses of each HTTP library are read and closed. None of the libraries is imported."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokenkeeper.answers.bodies import (
    BODY_LIMIT,
    AsyncStream,
    Head,
    PutBack,
    SyncStream,
    plain,
    read_again,
    stream_kind,
    take,
)
from tokenkeeper.model import Answer, HeaderPairs

T = TypeVar("T")

Request = tuple[object, object, HeaderPairs]
"""Method, URL and headers of a request, as its library keeps them."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An answer, and what its object still knows of the request."""

    answer: Answer
    method: str | None = None
    url: str | None = field(default=None, repr=False)
    request_headers: HeaderPairs = field(default=(), repr=False)


def header_pairs(headers: Any) -> HeaderPairs:
    """Return header fields as pairs, names in lower case; from a mapping to str or to lists, or from pairs."""
    if headers is None:
        return ()
    items = getattr(headers, "multi_items", None) or getattr(headers, "items", None)
    pairs = []
    for name, value in items() if items else headers:
        values = value if isinstance(value, list | tuple) else (value,)
        pairs += [(as_text(name).lower(), as_text(one)) for one in values]
    return tuple(pairs)


def as_text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def as_bytes(body: object) -> bytes | None:
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    return bytes(body) if isinstance(body, bytes | bytearray | memoryview) else None


def quietly(action: Callable[[Any], T], response: Any) -> T | None:
    """Do *action*; whatever the library raises means that there is nothing to be had."""
    try:
        return action(response)
    except Exception:  # noqa: BLE001 -- any library's error; the user's own read of the object says so too
        return None


def comes_from(value: object, library: str, name: str) -> bool:
    """Say whether an object's class, or a base of it, is the library's class of that name."""
    return any(base.__name__ == name and root(base) == library for base in type(value).__mro__)


def root(cls: type) -> str:
    """Return the name of the top-level module that a class comes from."""
    return str(cls.__module__).partition(".")[0]


class Library:
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
        answer = Answer(status, quietly(self.headers, response) or (), None if body is None else body[:BODY_LIMIT])
        method, url, sent = quietly(self.request, response) or (None, None, ())
        return Exchange(
            answer, None if method is None else as_text(method), None if url is None else as_text(url), sent
        )


class Urllib3(Library):
    """``urllib3.HTTPResponse``, and what requests keeps in ``.raw``."""

    def request(self, response: Any) -> Request:
        return None, response.geturl(), ()

    def cached(self, response: Any) -> bytes | None:
        return as_bytes(getattr(response, "_body", None))

    def body(self, response: Any) -> bytes | None:
        if getattr(response, "_body", None) is not None:
            return self.cached(response)
        if response.closed or response.tell():
            return None
        taken = take(lambda size: response.read(size, decode_content=False), response._fp)
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
            return as_bytes(copy.read(BODY_LIMIT))
        except Exception:  # noqa: BLE001 -- cut off, or not what its header says
            return None

    def close(self, response: Any) -> None:
        response.close()
        response.release_conn()


class Requests(Library):
    def headers(self, response: Any) -> HeaderPairs:
        """Take the fields from urllib3's response, because requests' own dictionary joins repeated ones."""
        return header_pairs(getattr(response.raw, "headers", None)) or header_pairs(response.headers)

    def request(self, response: Any) -> Request:
        request = response.request
        return request.method, request.url or response.url, header_pairs(request.headers)

    def cached(self, response: Any) -> bytes | None:
        return as_bytes(response._content)

    def body(self, response: Any) -> bytes | None:
        if response._content is not False:
            return self.cached(response)
        if response._content_consumed:
            return None
        raw = response.raw
        if comes_from(raw, "urllib3", "HTTPResponse"):
            return Urllib3().body(raw)
        return None if getattr(raw, "closed", False) else as_bytes(response.content)


class Httpx(Library):
    """httpx and httpx2."""

    def request(self, response: Any) -> Request:
        request = response.request
        return request.method, request.url, header_pairs(request.headers)

    def cached(self, response: Any) -> bytes | None:
        return as_bytes(getattr(response, "_content", None))

    def body(self, response: Any) -> bytes | None:
        if (body := self.cached(response)) is not None or not self._readable(response, "__iter__"):
            return body
        stream, head, broken = response.stream, Head(), None
        rest = iter(stream)
        try:
            for piece in rest:
                if head.full_with(piece):
                    break
        except Exception as error:  # noqa: BLE001 -- kept, to break again when the user reads
            broken = error
        response.stream = stream_kind(SyncStream, stream)(stream, head.pieces, rest, broken)
        return None if broken else self._decoded(response, b"".join(head.pieces))

    async def abody(self, response: Any) -> bytes | None:
        if (body := self.cached(response)) is not None or not self._readable(response, "__aiter__"):
            return self.body(response) if body is None else body
        stream, head, broken = response.stream, Head(), None
        rest = aiter(stream)
        try:
            async for piece in rest:
                if head.full_with(piece):
                    break
        except Exception as error:  # noqa: BLE001 -- kept, to break again when the user reads
            broken = error
        response.stream = stream_kind(AsyncStream, stream)(stream, head.pieces, rest, broken)
        return None if broken else self._decoded(response, b"".join(head.pieces))

    def _readable(self, response: Any, how: str) -> bool:
        return hasattr(response.stream, how) and not (response.is_closed or response.is_stream_consumed)

    def _decoded(self, response: Any, wire: bytes) -> bytes | None:
        """Undo the encoding; br and zstd by the library, which has decoders where they are installed."""
        encoding = response.headers.get("content-encoding")
        if encoding not in ("br", "zstd"):
            return plain(wire, self.headers(response))
        copy = sys.modules[root(type(response))].Response
        return as_bytes(copy(200, headers={"content-encoding": encoding}, content=wire).content)

    async def aclose(self, response: Any) -> None:
        if hasattr(response.stream, "__aiter__"):
            await response.aclose()
        else:
            response.close()


class Aiohttp(Library):
    def request(self, response: Any) -> Request:
        request = response.request_info
        return request.method, request.real_url, header_pairs(request.headers)

    def cached(self, response: Any) -> bytes | None:
        return plain(as_bytes(getattr(response, "_body", None)), self.headers(response))

    async def abody(self, response: Any) -> bytes | None:
        if response._body is None:
            content = response.content
            # Not .closed: a short answer counts as closed as soon as it has arrived, before anybody has read it.
            if content is None or content.exception() is not None or getattr(content, "_cursor", None):
                return None
            body = await response.read()
            if body:
                response.content = read_again(body)
        return self.cached(response)

    def close(self, response: Any) -> None:
        response.release()


class HttpClient(Library):
    """``http.client.HTTPResponse``, which is what ``urllib.request.urlopen`` returns."""

    def request(self, response: Any) -> Request:
        return getattr(response, "_method", None), getattr(response, "url", None), ()

    def body(self, response: Any) -> bytes | None:
        if response.isclosed() or self._begun(response):
            return None
        twin = _twin(response)
        taken = take(twin.read, twin)
        response.fp = taken.whole
        response.chunked = False  # the twin has joined the chunks; a length stays, and tells the user of a missing end
        cut = twin.length and twin.isclosed()
        return None if taken.broken or cut else plain(taken.head, self.headers(response))

    def _begun(self, response: Any) -> bool:
        """Say whether somebody has read a part already."""
        if isinstance(getattr(response.fp, "raw", None), PutBack):
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


class Urllib(Library):
    """``urllib.error.HTTPError`` and ``urllib.response.addinfourl``: a wrapper around ``http.client.HTTPResponse``."""

    def request(self, response: Any) -> Request:
        return getattr(response.fp, "_method", None), response.geturl(), ()

    def body(self, response: Any) -> bytes | None:
        inner = response.fp
        if inner is None or inner.closed:
            return None
        if comes_from(inner, "http", "HTTPResponse"):
            return HttpClient().body(inner)
        if inner.tell():
            return None
        taken = take(inner.read, inner)
        response.fp = response.file = taken.whole
        for name in ("read", "read1", "readinto", "readline", "readlines", "seek", "tell"):
            vars(response).pop(name, None)  # the wrapper keeps the methods of the file it was given
        return None if taken.broken else plain(taken.head, self.headers(response))


class AiohttpRaised(Aiohttp):
    """``aiohttp.ClientResponseError``: status and headers; the response itself is gone."""

    def cached(self, response: Any) -> bytes | None:  # noqa: ARG002
        return None

    async def abody(self, response: Any) -> bytes | None:  # noqa: ARG002
        return None

    def close(self, response: Any) -> None:
        """Do nothing: aiohttp released the response before it raised."""
