"""What the user's function returned or raised → status, headers, body.

No HTTP library is imported here: a response or an error is recognised by the module and name of its class or of a
base of it (requests, httpx, httpx2, aiohttp, urllib3, urllib.request), or by a reader that the host registers.

A body is read only when it is asked for, at most :data:`BODY_LIMIT` bytes of it, and stays readable in the object that
is passed on. A body that cannot be read any more is None, never ``b""``: an empty body says something, None nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from tokenkeeper.answers.arguments import repeatable
from tokenkeeper.answers.bodies import BODY_LIMIT
from tokenkeeper.answers.libraries import Exchange, header_pairs, quietly
from tokenkeeper.answers.recognition import from_host, opened, register_reader, status_of

__all__ = [
    "BODY_LIMIT",
    "JSON_LIMIT",
    "Exchange",
    "aclose",
    "already_read_json",
    "aread",
    "close",
    "from_host",
    "header_pairs",
    "read",
    "register_reader",
    "repeatable",
    "status_of",
]

JSON_LIMIT = 1 << 16
"""The largest body, in bytes, that is looked at for an error hidden in a 200."""

Wanted = Callable[[int], bool]
"""Says for a status whether some rule asks for the body."""


def read(value: object, wants_body: Wanted) -> Exchange | None:
    """Return what a response or an error says, its body only where *wants_body* says so; None for anything else."""
    status = status_of(value)
    if status is None:
        return None
    library, response = opened(value)
    return library.exchange(response, status, quietly(library.body, response) if wants_body(status) else None)


async def aread(value: object, wants_body: Wanted) -> Exchange | None:
    """Return what :func:`read` returns, waiting for the body of an async library."""
    status = status_of(value)
    if status is None:
        return None
    library, response = opened(value)
    body = None
    if wants_body(status):
        with contextlib.suppress(Exception):  # a body that breaks is no body; the user's own read of it says so too
            body = await library.abody(response)
    return library.exchange(response, status, body)


def already_read_json(value: object) -> bytes | None:
    """Return the body if it was read already, begins as JSON does and has at most 64 KiB; a stream is never touched."""
    if status_of(value) is None:
        return None
    library, response = opened(value)
    body = quietly(library.cached, response)
    return body if body and len(body) <= JSON_LIMIT and body.lstrip()[:1] in (b"{", b"[") else None


def close(value: object) -> None:
    """Close the answer that a response is, or that an error carries, before the call is repeated. Never raises."""
    if status_of(value) is not None:
        library, response = opened(value)
        quietly(library.close, response)


async def aclose(value: object) -> None:
    """Do what :func:`close` does, waiting for an async library. Never raises."""
    if status_of(value) is not None:
        library, response = opened(value)
        with contextlib.suppress(Exception):
            await library.aclose(response)
