"""What goes in and out of the fake provider: plain values, whatever carries them.

A transport, a socket or a test makes a :class:`Request`; ``FakeProvider.handle`` makes a :class:`Response`. How the
response travels (whole, cut, never) is part of it, so that the provider itself never waits for anything but a gate.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request. ``url`` is absolute; header names are in lower case."""

    method: str
    url: str = field(repr=False)
    headers: Pairs = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)

    @classmethod
    def form(cls, url: str, fields: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Request:
        """A POST of form fields."""
        pairs = (("content-type", "application/x-www-form-urlencoded"), *((headers or {}).items()))
        return cls("POST", url, tuple((name.lower(), value) for name, value in pairs), urlencode(fields).encode())

    @property
    def path(self) -> str:
        """The URL's path."""
        return urlsplit(self.url).path or "/"

    @property
    def origin(self) -> str:
        """Scheme, host and port: the provider's issuer, as this request knows it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def query(self) -> dict[str, str]:
        """The URL's parameters; of a repeated one the last."""
        return dict(parse_qsl(urlsplit(self.url).query, keep_blank_values=True))

    @property
    def fields(self) -> dict[str, str]:
        """The posted form's fields; empty unless the body is a form."""
        if not (self.header("content-type") or "").startswith("application/x-www-form-urlencoded"):
            return {}
        return dict(parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True))

    def header(self, name: str) -> str | None:
        """The first value of a header, or None; *name* in lower case."""
        return next((value for key, value in self.headers if key == name), None)


class Delivery(enum.StrEnum):
    """How an answer travels."""

    WHOLE = enum.auto()
    """As it should."""
    DROP = enum.auto()
    """Not at all: the connection is closed without a byte."""
    CUT = enum.auto()
    """Half of the body, then the connection is closed."""
    HANG = enum.auto()
    """Not at all, and the connection stays open (in process: a read timeout, at once)."""
    DRIP = enum.auto()
    """A byte at a time, ``delay`` seconds apart, so that no read times out (in process: a read timeout, at once)."""
    UNREACHABLE = enum.auto()
    """The request was never sent (in process: a connect error; over HTTP the same as DROP)."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer and how it travels. ``delay`` is in seconds; ``presented``: its records in the log."""

    status: int
    headers: Pairs = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    delivery: Delivery = Delivery.WHOLE
    delay: float = 0.0
    presented: tuple[int, ...] = field(default=(), repr=False)

    def header(self, name: str) -> str | None:
        """The first value of a header, or None; case does not matter."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def json_response(status: int, content: object, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    pairs = (("Content-Type", "application/json"), *((headers or {}).items()))
    return Response(status, pairs, json.dumps(content).encode())


@dataclass(frozen=True, slots=True)
class Presentation:
    """A token (or code) that was shown to the provider, and what the provider made of it.

    ``surface`` is ``api``, ``token``, ``introspection`` or ``revocation``; ``kind`` is ``access``, ``refresh`` or
    ``code``. ``verdict`` is ``ok``, ``replayed`` (spent, and forgiven), ``reused`` (spent, and refused), ``expired``,
    ``revoked``, ``invalid``, ``empty``, ``bad_scheme``, ``scope``, ``client``, or the name of a scripted answer.
    ``delivered`` is False where the answer is known not to have reached the client.
    """

    number: int
    time: float
    surface: str
    kind: str
    token: str
    verdict: str
    delivered: bool
    member: str | None
    status: int

    @property
    def accepted(self) -> bool:
        """Whether the provider took the token."""
        return self.verdict in {"ok", "replayed"}
