"""The weather at a token endpoint: what it does instead of an answer, and what that should cost."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from urllib.parse import parse_qs

from tests.faults.weather_endpoint import Act, Visit

MIB = 1024 * 1024
BOMB = 200 * MIB
HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"
JUST_AGAIN = (0.7, 1.3)
"""Seconds of the first back-off."""


GRACE_AGAIN = (0.7, 1.001)
"""The same where what is in doubt is replayed inside the provider's grace, whatever it says of waiting."""


@dataclass(frozen=True)
class Case:
    """One kind of weather. ``wait``: the seconds of the first back-off, from and to."""

    name: str
    act: Act
    in_doubt: bool | None = True
    """Whether nobody can tell if the request was carried out; None: it depends on a race."""
    wait: tuple[float, float] = JUST_AGAIN
    before_reading: bool = False
    may_renew: bool = False
    """Whether the tokens in it may be believed."""

    def waits(self, rotation: str) -> tuple[float, float]:
        """The first back-off under a rotation."""
        return GRACE_AGAIN if rotation == "grace" and self.in_doubt else self.wait


def answer(
    status: int,
    body: bytes | Callable[[Visit], bytes] = b"",
    headers: Mapping[str, str | Callable[[Visit], str]] | None = None,
    *,
    kind: str = "application/json",
) -> Act:
    """A whole answer, with its length; body and headers may depend on the visit."""

    def act(visit: Visit) -> None:
        data = body if isinstance(body, bytes) else body(visit)
        lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {kind}", f"Content-Length: {len(data)}"]
        for name, value in (headers or {}).items():
            lines.append(f"{name}: {value if isinstance(value, str) else value(visit)}")
        visit.send("\r\n".join([*lines, "", ""]).encode("latin-1") + data)

    return act


def unsized(body: bytes, *, framing: str, end: bytes = b"") -> Act:
    """An answer of 200 whose end is missing: *framing* is the header that would say where it is."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{framing}\r\n\r\n".encode()
    return lambda visit: visit.send(head + body + end)


def quoting(visit: Visit) -> bytes:
    """An error page that quotes the whole request, credentials and all."""
    return b"<html><pre>" + visit.raw + b"</pre></html>"


def quoted_error(visit: Visit) -> bytes:
    """An OAuth error that quotes the request's form."""
    assert visit.request is not None
    return json.dumps({"error": "server_error", "error_description": visit.request.body.decode()}).encode()


def said_of(visit: Visit, field: str) -> str:
    """A value of the request's form."""
    assert visit.request is not None
    return parse_qs(visit.request.body.decode())[field][0]


def quoted_bare(visit: Visit) -> bytes:
    """A plain error that quotes refresh token and client secret in its prose, with no name that would give them away."""
    return f"{said_of(visit, 'refresh_token')} is not for {said_of(visit, 'client_secret')}".encode()


def tokens(visit: Visit, **more: object) -> dict[str, object]:
    """Tokens as the provider would give them out, were they not spoilt."""
    return {"access_token": "weather-access", "token_type": "Bearer", "expires_in": 3600, **more}


def duplicated(visit: Visit) -> bytes:
    """A real answer whose every member comes twice, wrong at first (a usual parser believes the last)."""
    assert visit.request is not None
    response = visit.endpoint.provider.handle(visit.request)
    wrong = dict.fromkeys(json.loads(response.body), "wrong")
    return json.dumps(wrong).encode()[:-1] + b", " + response.body.lstrip()[1:]


def nested(depth: int) -> bytes:
    """JSON nested so deep, below an access token."""
    return b'{"access_token": "weather-access", "token_type": "Bearer", "x": ' + b"[" * depth + b"]" * depth + b"}"


@cache
def bomb() -> bytes:
    """200 MiB of blanks in 200 KB of gzip: one compressed MiB, as often as it takes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(b" " * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    check = 0
    for _ in range(BOMB // MIB):
        check = zlib.crc32(b" " * MIB, check)
    trailer = check.to_bytes(4, "little") + (BOMB & 0xFFFFFFFF).to_bytes(4, "little")
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + piece * (BOMB // MIB) + packer.flush(zlib.Z_FINISH) + trailer


def flood(visit: Visit) -> None:
    """200 MiB of blanks, plain, as fast as they are taken."""
    visit.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % BOMB)
    for _ in range(BOMB // MIB):
        visit.send(b" " * MIB)


def hang(visit: Visit) -> None:
    """Say nothing until the client gives up."""
    visit.wait_for_the_end()


def hang_after(head: bytes) -> Act:
    """Begin an answer and say no more."""

    def act(visit: Visit) -> None:
        visit.send(head)
        visit.wait_for_the_end()

    return act


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"access_token": "weather-access", "token_type": "Bearer", "padding": "x" * 4000}).encode()


def drip_body(visit: Visit) -> None:
    """Headers at once, the body byte by byte."""
    visit.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY))
    visit.drip(BODY)


def drip_chunks(visit: Visit) -> None:
    """A body in chunks of one byte."""
    visit.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    visit.drip(b"1\r\n \r\n" * 4000, 0.01)


SLOW = {
    "hang": hang,
    "hang-after-the-headers": hang_after(HEAD + b"Content-Length: 100\r\n\r\n{"),
    "drip-headers": lambda visit: visit.drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 4000),
    "drip-body": drip_body,
    "drip-chunks": drip_chunks,
    "drip-continue": lambda visit: visit.drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 400, 0.005),
}
"""What only the deadline ends."""


def date_in(seconds: float) -> Callable[[Visit], str]:
    """An HTTP date so many seconds ahead."""
    return lambda visit: formatdate(visit.now + seconds, usegmt=True)


RETRY_AFTER: dict[str, tuple[str | Callable[[Visit], str], tuple[float, float]]] = {
    "seconds": ("120", (119.9, 120.1)),
    "date": (date_in(120), (118.9, 121.1)),
    "past": (date_in(-120), JUST_AGAIN),
    "0": ("0", JUST_AGAIN),
    "1e9": ("1000000000", (3599.0, 3600.1)),
    "text": ("when the sun shines", JUST_AGAIN),
}


def cases(elsewhere: list[str]) -> list[Case]:
    """All that ends by itself; *elsewhere*: the origins that redirects point to."""
    found = [
        Case("500", answer(500, b'{"error": "server_error"}')),
        Case("500-that-quotes", answer(500, quoted_error)),
        Case(
            "500-that-quotes-bare",
            answer(500, quoted_bare, {"X-Trace": lambda visit: said_of(visit, "refresh_token")}, kind="text/plain"),
        ),
        Case("502-html", answer(502, HTML, kind="text/html")),
        Case("502-that-quotes", answer(502, quoting, kind="text/html")),
        Case("503", answer(503)),
        Case("429", answer(429), in_doubt=False),
        Case("reset-before", lambda visit: visit.reset(), None, before_reading=True),
        Case("closed-before", lambda visit: visit.socket.close(), None, before_reading=True),
        Case("reset-after", lambda visit: visit.reset()),
        Case("closed-after", lambda visit: None),
        Case("no-http", lambda visit: visit.send(b"SSH-2.0-OpenSSH_9.2\r\n")),
        Case("200-empty", answer(200)),
        Case("204", lambda visit: visit.send(b"HTTP/1.1 204 No Content\r\n\r\n")),
        Case("200-html", answer(200, HTML, kind="text/html")),
        Case("200-html-as-json", answer(200, HTML)),
        Case("200-array", answer(200, b"[]")),
        Case("200-no-token", answer(200, b'{"token_type": "Bearer"}')),
        Case("200-error", answer(200, b'{"error": "server_error"}'), in_doubt=True),
        Case(
            "200-error-and-tokens",
            answer(200, lambda v: json.dumps(tokens(v, error="temporarily_unavailable")).encode()),
        ),
        Case("200-error-unknown", answer(200, b'{"error": "out_of_cheese"}')),
        Case("200-error-object", answer(200, b'{"error": {"code": 17, "message": "backend"}}')),
        Case("cut-length", unsized(BODY[:100], framing="Content-Length: 4000")),
        Case("cut-chunked", unsized(b"%x\r\n" % len(BODY) + BODY[:100], framing="Transfer-Encoding: chunked")),
        Case("cut-between-chunks", unsized(b"64\r\n" + BODY[:100] + b"\r\n", framing="Transfer-Encoding: chunked")),
        Case("cut-json", answer(200, BODY[:100])),
        Case("nested", answer(200, nested(100_000))),
        Case("duplicate-keys", answer(200, duplicated), may_renew=True),
        Case("long-token", answer(200, lambda v: json.dumps(tokens(v, access_token="a" * 1_000_000)).encode())),
        Case(
            "long-refresh-token", answer(200, lambda v: json.dumps(tokens(v, refresh_token="r" * 1_000_000)).encode())
        ),
        Case("line-break", answer(200, lambda v: json.dumps(tokens(v, access_token="a\r\nX-Other: b")).encode())),
        Case("line-break-refresh", answer(200, lambda v: json.dumps(tokens(v, refresh_token="a\nb")).encode())),
        Case("bomb", answer(200, lambda v: bomb(), {"Content-Encoding": "gzip"})),
    ]
    for status in (503, 429):
        for name, (value, wait) in RETRY_AFTER.items():
            act = answer(status, b"{}", {"Retry-After": value})
            found.append(Case(f"{status}-retry-{name}", act, in_doubt=status == 503, wait=wait))
    for status in (301, 302, 303, 307, 308):
        for number, origin in enumerate(elsewhere):
            found.append(Case(f"{status}-to-{number}", answer(status, b"", {"Location": f"{origin}/token"})))
    return found
