"""Bodies that are read for the diagnosis and put back for the user.

The first part of a body is taken off its stream, and a stream that still has all of it takes the old one's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from tokenkeeper.model import HeaderPairs

BODY_LIMIT = 1 << 20
"""The most of a body, in bytes, that is taken for the diagnosis; the user's object keeps all of it."""


class PutBack(io.RawIOBase):
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


class Taken(NamedTuple):
    """The first part of a body, whether it broke while it was read, and a file that still has all of the body."""

    head: bytes
    broken: bool
    whole: io.BufferedReader


def take(read: Callable[[int], bytes | None], rest: Any) -> Taken:
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
    return Taken(head, broken is not None, io.BufferedReader(PutBack(head, rest, broken)))


def plain(wire: bytes | None, headers: HeaderPairs) -> bytes | None:
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


class Head:
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
    """What :class:`PutBack` is for files, for the streams of httpx and httpx2."""

    def __init__(self, stream: Any, head: list[bytes], rest: Any, broken: Exception | None) -> None:
        self._stream = stream
        self._head = head
        self._rest = rest
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SyncStream(_Stream):
    def __iter__(self) -> Iterator[bytes]:
        yield from self._head
        if self._broken is not None:
            raise self._broken
        yield from self._rest

    def close(self) -> None:
        self._stream.close()


class AsyncStream(_Stream):
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


def stream_kind(kind: Any, stream: object) -> Any:
    """Return *kind* as a class that the library of *stream* takes for a stream of its own."""
    name = "SyncByteStream" if kind is SyncStream else "AsyncByteStream"
    return _joined(kind, next(base for base in type(stream).__mro__ if base.__name__ == name))


@cache
def _joined(kind: Any, base: Any) -> Any:
    return type(kind.__name__, (kind, base), {})


def read_again(body: bytes) -> Any:
    """Return a stream of aiohttp's with all of a body, for a user who reads ``response.content`` and not ``read()``."""
    streams = sys.modules["aiohttp"]
    loop = asyncio.get_running_loop()
    stream = streams.StreamReader(streams.base_protocol.BaseProtocol(loop), len(body), loop=loop)
    stream.feed_data(body)
    stream.feed_eof()
    return stream
