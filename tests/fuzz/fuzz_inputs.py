"""Hostile answers: real ones (``tests/vectors``, ``tests/data``) with something wrong in them, the same for the same number.

An input is made from a seed and its number alone, so that a finding can be made again. What is done to an answer knows its
structure: members get odd types, challenges lose their quotes, texts hold what a terminal would obey, bodies are cut,
doubled, nested deeply or filled up.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tokenkeeper import providers

TESTS = Path(__file__).resolve().parent.parent
CANARY = "Canary-7f3a9c51"
"""A token that was sent: no text that comes out may hold it."""

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Input:
    """One answer, whose rules read it, and on which surface."""

    provider: str
    surface: str
    status: int
    headers: Headers
    body: bytes | None

    @property
    def size(self) -> int:
        """Its size in bytes, about."""
        return len(self.body or b"") + sum(len(name) + len(value) for name, value in self.headers)

    def written(self) -> dict[str, Any]:
        """The input as JSON can hold it."""
        return {
            "provider": self.provider,
            "surface": self.surface,
            "status": self.status,
            "headers": [[_encoded(part.encode("utf-8", "surrogatepass")) for part in pair] for pair in self.headers],
            "body": None if self.body is None else _encoded(self.body),
        }


def read_input(written: dict[str, Any]) -> Input:
    """Return the input that was :meth:`written <Input.written>`."""
    decoded = [
        (base64.b64decode(n).decode("utf-8", "surrogatepass"), base64.b64decode(v).decode("utf-8", "surrogatepass"))
        for n, v in written["headers"]
    ]
    body = None if written["body"] is None else base64.b64decode(written["body"])
    return Input(written["provider"], written["surface"], written["status"], tuple(decoded), body)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


# ----------------------------------------------------------------------------------------------------------------------
# What answers are made of

TOKENS = (
    b'{"access_token":"AQX","token_type":"bearer","expires_in":3600,"refresh_token":"AQR","scope":"openid,email"}',
    b'{"access_token":"a","expires_in":"3599","refresh_token_expires_in":5184000,"id_token":"e30.eyJpc3MiOiJhIiwic3ViIjoiYiJ9.x"}',
    b"access_token=gho_x&scope=repo%2Cuser&token_type=bearer",
    b'{"active":true,"status":"expired","scope":"a b","exp":1}',
    b'{"error":"invalid_grant","error_description":"The refresh token has expired","error_codes":[700082]}',
    b'{"body":{"access_token":"x","expires_in":10800},"status":0,"authed_user":{"access_token":"xoxp"}}',
)
CHALLENGES = (
    'Bearer realm="x", error="invalid_token", error_description="The token expired at 12:00"',
    'DPoP algs="ES256 PS256", error="use_dpop_nonce"',
    'Bearer error="insufficient_user_authentication", acr_values="phr phrh", max_age="5"',
    'Bearer error="insufficient_claims", claims="eyJhY2Nlc3NfdG9rZW4iOnsiYWNycyI6eyJlc3NlbnRpYWwiOnRydWUsInZhbHVlIjoiYzEifX19"',
    'Bearer error="insufficient_scope", scope="a b c"',
    'OAuth "Facebook Platform" "invalid_token" "Error validating access token"',
    'Basic realm="a", Bearer realm="b" error="invalid_token"',
    "Negotiate YII=, NTLM, Bearer",
)
# What a terminal, a log or a page would obey, and what is no character at all.
NASTY = (
    "\x00", "\x1b[31m", "\x1b]0;title\x07", "\r\nX-Forged: yes", "\n", "\t", "\x7f", "\x85", "\x9b31m", "\u202e", "\u2066",
    "\u2069", "\u061c", "\u200b", "\u200d", "\ufeff", "\u2028", "\u2029", "\u00ad", "\u00a0", "\u3000", "\ue000", "\ufffe",
    "\uffff", "\ud800", "\udfff", "\udc80", "\U000e0001", "\U0010ffff", "\u0130", "\u0131", "\u017f", "\u212a", "\ufb05",
    "ß", "é", "漢", "\U0001f600", "<script>", "&amp;", "%00", "%0d%0a", "\\", '"', "'", "`", "$(id)", "{said}", "{0}", "%s", "{",
    "}", "[", "]", ",", "=", ":", ";",
    "|", " ", "  ", ".", "*", "null", "NaN", "eyJhbGciOiJIUzI1NiJ9.e30.x", CANARY, f"Bearer {CANARY}",
    f"access_token={CANARY}", f"token: {CANARY}", "0123456789abcdef0123456789abcdef", "00D000000000001!AQ4AQAbcdefghijklmnop",
)  # fmt: skip
WORDS = (
    "token", "access", "refresh", "expired", "revoked", "invalid", "scope", "or", "missing", "Bearer", "error", "invalid_token",
    "invalid_grant", "insufficient_scope", "interaction_required", "temporarily_unavailable", "rate limit", "client", "is",
)  # fmt: skip
MEMBERS = (
    "error", "code", "message", "error_description", "errors", "detail", "error.code", "errorCode", "serviceErrorCode", "type",
    "scope", "claims", "retry_after", "access_token", "refresh_token", "expires_in", "expires_at", "id_token", "status", "active",
    "token_type", "refresh_token_expires_in", "", "0", "__proto__", "fault", "reason", "error_subcode", "response", "data",
    "body",
)  # fmt: skip
HEADERS = (
    "www-authenticate", "retry-after", "content-type", "location", "x-error", "x-ratelimit-reset", "x-li-uuid", "set-cookie",
    "authorization", "dpop-nonce", "link", "x-request-id", "date", "proxy-authenticate", "x-amzn-errortype", "",
)  # fmt: skip
HEADER_VALUES = (
    "application/x-www-form-urlencoded", "application/json; charset=utf-8", "text/plain", "text/html", "120", "1e9", "-1", "0",
    "99999999999999999999", "1795348800", "Sun, 22 Nov 2026 12:00:00 GMT", "Sun, 99 Nov 99999 12:00:00 +9999", "Thu, 01 Jan 1970",
    "Mon, 31 Feb 0000 24:60:60 -0000", "https://u:p@acme.example/cb?code=abc&state=xyz#access_token=1", "http://[::1", "\xff\xfe",
)  # fmt: skip
CHALLENGE_PIECES = (
    "Bearer ", "DPoP", "error", "error_description", "scope", "claims", "a", "b68==", "=", ' = "', '"', '"', '",', ", ", ",", " ",
    "\\", '\\"', "\t", *WORDS,
)  # fmt: skip
FILLINGS = (
    b"[", b'{"a":', b'{"error":', b"[[],", b'{"":0},', b'"a",', b"0,", b"1e9,", b"{},", b'{"error":"x"},', b'"\\u0000",',
    b'"message":"token expired",', b"a=b&", b"token ", b"\xff", b"\xef\xbb\xbf", b" ", b'\\"', b"9", b"eyJ.", b"<p>",
)  # fmt: skip
STATUSES = (0, -1, 99, 100, 200, 201, 204, 302, 304, 400, 401, 402, 403, 404, 406, 409, 410, 411, 412, 418, 419, 422, 424, 426,
            429, 440, 451, 498, 499, 500, 502, 503, 504, 520, 530, 599, 600, 999, 1000, 10**9, -(10**6))  # fmt: skip
BYTES = (
    b"\x00", b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3(", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x1b[2J",
    b"\r\n", b'"', b"\\", b"\\u0000", b"\\ud800", b"\\u202e", b"\\u001b", b"{", b"}", b"[", b"]", b",", b":", b"&", b"=", b"%",
    b"%ff", b"+", b"<", b" ", b"-", b"1e400", b"NaN", b"-Infinity", b'"error":"invalid_grant",', b'"error":{},', b"9" * 400,
    b"null",
)  # fmt: skip


def _text(dice: random.Random) -> str:
    return "".join(
        dice.choice(NASTY) if dice.random() < 0.5 else f" {dice.choice(WORDS)} " for _ in range(dice.randrange(1, 8))
    )


def _long(dice: random.Random) -> str:
    """A piece many times over: what a pattern that looks back again and again would be slow with."""
    piece = dice.choice(
        (*NASTY, *WORDS, "a", "aA", "a-", "a_", "a1", " ", "token ", "token=", 'token"', "a.", "0", "é", "=", 'x="')
    )
    more = dice.choice(("", dice.choice(NASTY), dice.choice(WORDS)))
    return (
        dice.choice(("", "token ", "Bearer ", "eyJ"))
        + (piece + more) * min(dice.choice((30, 300, 3000, 20_000)), 60_000 // len(piece + more))
        + dice.choice(("", '"', "=", "!", ":"))
    )


def _nested(dice: random.Random) -> Any:
    value: Any = _text(dice)
    name = dice.choice(MEMBERS)
    kind = dice.random()
    for _ in range(dice.choice((3, 12, 40, 600))):
        value = [value] if kind < 0.4 or (kind < 0.6 and dice.random() < 0.5) else {name: value}
    return value


def _claims(dice: random.Random) -> str:
    data = json.dumps({_text(dice): _text(dice)}).encode()
    return dice.choice(
        (data.decode(), base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode().rstrip("="))
    )


ODD: tuple[Callable[[random.Random], Any], ...] = (
    lambda dice: None,
    lambda dice: dice.random() < 0.5,
    lambda dice: dice.choice((0, 1, -1, 401, 65601, 190, 2**31, 2**63, 10**18, -(10**18), 10**400)),
    lambda dice: dice.choice((0.0, -0.0, 1.5, 65601.0, 1e15, 1e300, float("nan"), float("inf"), -float("inf"), 5e-324)),
    lambda dice: dice.choice((10**4000, -(10**4000))),
    lambda dice: "",
    lambda dice: [],
    lambda dice: {},
    lambda dice: [None, "", 0, [], {}],
    _text,
    _text,
    _text,
    _long,
    lambda dice: {dice.choice(MEMBERS): _text(dice)},
    lambda dice: [_text(dice)] * dice.choice((1, 2, 300)),
    _nested,
    lambda dice: {_text(dice): dice.choice(WORDS) for _ in range(dice.choice((1, 5, 300)))},
    _claims,
)


# ----------------------------------------------------------------------------------------------------------------------
# Making one


class Maker:
    """Makes inputs from the recorded answers of all providers."""

    def __init__(self) -> None:
        self.providers = providers.names()
        self.answers = list(_recorded())
        self.sheets = [(name, (providers.CATALOGUE / f"{name}.toml").read_bytes()) for name in self.providers]

    def make(self, dice: random.Random) -> Input:
        """An answer with something wrong in it, seldom none."""
        given = dice.choice(self.answers)
        provider = given.provider if dice.random() < 0.7 else dice.choice(self.providers)
        surface = given.surface if dice.random() < 0.8 else dice.choice(("api", "token"))
        status = given.status if dice.random() < 0.8 else dice.choice(STATUSES)
        headers, body = list(given.headers), given.body
        if dice.random() < 0.15:
            body, surface = dice.choice(TOKENS), "token" if dice.random() < 0.8 else surface
            status = dice.choice((200, 200, 400, status))
        for _ in range(dice.choice((0, 1, 1, 2, 3))):
            _spoil_headers(dice, headers)
        for _ in range(dice.choice((0, 1, 1, 2, 4))):
            body = _spoil_body(dice, body, headers)
        return Input(provider, surface, status, tuple(headers), body)

    def make_sheet(self, dice: random.Random) -> tuple[str, bytes]:
        """A profile's file with something wrong in it."""
        name, data = dice.choice(self.sheets)
        for _ in range(dice.randrange(1, 4)):
            data = _spoil_bytes(dice, data)
        if dice.random() < 0.3:
            lines = data.split(b"\n")
            place = dice.randrange(len(lines))
            key = lines[place].partition(b" = ")[0]
            lines[place] = key + b" = " + _dumped(dice, dice.choice(ODD)(dice))
            data = b"\n".join(lines)
        return name, data


def _recorded() -> Iterator[Input]:
    known = set(providers.names())
    for path in (*sorted((TESTS / "vectors").glob("*.jsonl")), TESTS / "data/answers.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            provider = row.get("provider") or path.stem
            body = row["body"]
            yield Input(
                provider if provider in known else "generic",
                row["surface"],
                row["status"],
                providers.header_pairs(row["headers"]),
                None if body is None else body.encode("utf-8", "surrogatepass"),
            )


def _spoil_headers(dice: random.Random, headers: list[tuple[str, str]]) -> None:
    kind = dice.randrange(6)
    if kind == 0 and headers:
        place = dice.randrange(len(headers))
        headers[place] = (headers[place][0], _spoil_text(dice, headers[place][1]))
    elif kind == 1 and headers:
        headers.append(dice.choice(headers))
    elif kind <= 3:
        headers.append(("www-authenticate", _challenge(dice)))
    else:
        value = dice.choice(HEADER_VALUES) if dice.random() < 0.7 else _text(dice)
        headers.append((dice.choice(HEADERS) if dice.random() < 0.9 else _text(dice), value))


def _challenge(dice: random.Random) -> str:
    kind = dice.random()
    if kind < 0.5:
        return _spoil_text(dice, dice.choice(CHALLENGES))
    if kind < 0.6:
        return _long(dice)
    pieces = []
    for _ in range(dice.randrange(1, 12)):
        pieces.append(_text(dice) if dice.random() < 0.1 else dice.choice(CHALLENGE_PIECES))
    return "".join(pieces) * dice.choice((1, 1, 1, 2, 40, 400))


def _spoil_text(dice: random.Random, text: str) -> str:
    start = dice.randrange(len(text) + 1)
    end = min(start + dice.choice((0, 0, 1, 2, 20)), len(text))
    middle = dice.choice(
        ("", text[start:end] * 2, text[start:end] * 200, dice.choice(NASTY), dice.choice(NASTY), _text(dice), '"', ",")
    )
    return text[:start] + middle + text[end:]


def _spoil_body(dice: random.Random, body: bytes | None, headers: list[tuple[str, str]]) -> bytes | None:
    kind = dice.random()
    if kind < 0.03:
        return None
    if kind < 0.3:
        return _spoil_bytes(dice, body or b"")
    if kind < 0.35:
        headers.append(("content-type", "application/x-www-form-urlencoded"))
        return _form(dice)
    if kind < 0.38:
        return _filled(dice)
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return _spoil_bytes(dice, body or b"")
    return _dumped(dice, _spoil_value(dice, value))


def _spoil_bytes(dice: random.Random, data: bytes) -> bytes:
    start = dice.randrange(len(data) + 1)
    end = min(start + dice.choice((0, 0, 1, 3, 50)), len(data))
    middle = dice.choice(
        (
            b"",
            data[start:end] * 2,
            dice.choice(BYTES),
            dice.choice(BYTES),
            dice.choice(BYTES) * 3,
            bytes([dice.randrange(256)]),
        )
    )
    return (
        data[:start] + middle + data[end:]
        if dice.random() < 0.9
        else dice.choice((data[:start], data[start:], data + data, middle + data))
    )


def _form(dice: random.Random) -> bytes:
    pairs = [
        (dice.choice(MEMBERS), _text(dice) if dice.random() < 0.6 else dice.choice(WORDS))
        for _ in range(dice.choice((1, 3, 5, 300)))
    ]
    if dice.random() < 0.5:
        return urlencode(pairs, errors="surrogatepass").encode()
    return "&".join(f"{name}={quote(value, safe=' &=%', errors='replace')}" for name, value in pairs).encode(
        "utf-8", "replace"
    )


def _filled(dice: random.Random) -> bytes:
    """A body of many small things, up to the largest that is read."""
    piece = dice.choice(FILLINGS)
    most = dice.choice((500, 5_000, 65_000, 65_600)) if dice.random() < 0.95 else dice.choice((262_000, 1_048_000))
    whole = piece * (most // len(piece))
    begin, end = dice.choice(
        ((b"", b""), (b"[", b"0]"), (b'{"errors":[', b"0]}"), (b'{"message":"', b'"}'), (b"{", b'"a":1}'), (b'"', b'"'))
    )
    return begin + whole + end


def _spoil_value(dice: random.Random, value: Any) -> Any:
    """Put something odd somewhere into a JSON value."""
    place: Any = value
    while True:
        keys: Sequence[Any] = (
            list(place) if isinstance(place, dict) else range(len(place)) if isinstance(place, list) else ()
        )
        if not keys:
            return dice.choice(ODD)(dice)
        key = dice.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and dice.random() < 0.7:
            place = place[key]
            continue
        break
    kind = dice.random()
    if kind < 0.35:
        place[key] = dice.choice(ODD)(dice)
    elif kind < 0.55 and isinstance(place[key], str):
        place[key] = _spoil_text(dice, place[key])
    elif kind < 0.65:
        place[key] = dice.choice(([place[key]], {dice.choice(MEMBERS): place[key]}, str(place[key]), [place[key]] * 3))
    elif kind < 0.9 and isinstance(place, dict):
        place[dice.choice(MEMBERS) if dice.random() < 0.9 else _text(dice)] = dice.choice(ODD)(dice)
    elif isinstance(place, dict):
        place[dice.choice(MEMBERS)] = place.pop(key)
    else:
        place.append(dice.choice(ODD)(dice))
    return value


def _dumped(dice: random.Random, value: Any) -> bytes:
    try:
        text = json.dumps(
            value, ensure_ascii=dice.random() < 0.5, separators=dice.choice(((",", ":"), (", ", ": "), (",\n ", " : ")))
        )
    except RecursionError:
        return b'{"error":' * 5000 + b"1" + b"}" * 5000
    if dice.random() < 0.1:
        text = text.replace("{", '{"error":"invalid_grant",', 1)
    if dice.random() < 0.02:
        text = text.replace("1", "1" * 5000, 1)  # more digits than Python reads
    data = text.encode("utf-8", "surrogatepass")
    return (b"\xef\xbb\xbf" + data) if dice.random() < 0.05 else data
