"""Foreign text → text that may be printed, logged and kept: capped, escaped, with whatever looks like a secret masked.

Some providers quote the token in their message. Masking here errs on the side of too much.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from tokenkeeper.model import Secret

MASK = "<redacted>"
DEPTH = 12
"""The deepest JSON value that is kept."""
ITEMS = 200
"""The most members or items that are kept of one JSON value."""

_BETWEEN = " \t\r\n\"',;<>"
_NAMES = (
    r"access[_-]?token|refresh[_-]?token|id[_-]?token|token|client[_-]?secret|secret|password|passwd|api[_-]?key|apikey|"
    r"code[_-]?verifier|client[_-]?assertion|assertion|device[_-]?code|authorization|session[_-]?id|sessionid|signature|"
    r"appsecret[_-]?proof|private[_-]?key|cookie|auth[_-]?key|credential|jwt"
)
# After "OAuth" or "Bearer" a word of the language is no credential: "OAuth client", "DPoP proof", "OAuth 2.0".
_WORD = r"(?-i:[a-z]{1,16}|[A-Z][a-z]{1,15}|[A-Z_]{1,20}|\d(?:\.\d)?a?)(?=[.,;:!?)\]]*(?:[\s\"'`<>]|$))"
_SCHEME = re.compile(
    r"\b(bearer|basic|dpop|oauth2?|zoho-oauthtoken)(\s+)"
    rf"(?!(?:realm|error|scope|algs|auth|token|type|scheme|only|header|is)\w*\b|access token\b|{_WORD})"
    r"[^\s\"',;<>]+",
    re.IGNORECASE,
)
_NAMED = re.compile(
    rf"\b((?:\w*[_-])?(?:{_NAMES}))([\"']?\s*=\s*[\"']?|[\"']\s*:\s*[\"'])"
    r"(?!(?:bearer|basic|dpop|null|none|undefined)[\"'])([^\s\"'&;,<>]+)",
    re.IGNORECASE,
)
_QUERY_CODE = re.compile(r"([?&](?:code|state|key|sig)=)[^\s\"'&;,<>]+", re.IGNORECASE)
# "Refresh token invalid: 0123456789abcdef", as some say it; then "access token (0123456789abcdef)".
_TOKEN = r"\b(?:(?:access|refresh|id|session)[_-]?)?token\b"
_QUOTED_TOKEN = re.compile(
    rf"({_TOKEN}[^:;,<>]{{0,40}}:\s{{0,4}})(?=[\w.~+/=-]{{0,63}}\d)[\w.~+/=-]{{8,}}", re.IGNORECASE
)
_NEXT_TO_TOKEN = re.compile(
    rf"({_TOKEN}[\s'\"`\[(<>]{{1,4}})(?=[\w.~+/=-]{{0,63}}\d)(?=[\w.~+/=-]{{0,63}}[a-z])[\w.~+/=-]{{10,}}",
    re.IGNORECASE,
)
_SESSION_ID = re.compile(r"\b00D\w{12,15}![\w.]{16,}")  # Salesforce
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_=-]*)*")
_LONG = re.compile(r"[A-Za-z0-9_+/-]{20}")
_RUN = re.compile(r"[A-Za-z0-9_-]{20,}")
_NAME = re.compile(r"[a-z]*(?:[A-Z][a-z]+)+")
_PIECE = re.compile(r"[a-z]{1,16}\d?|\d{1,9}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{32,}={0,2}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SECRET_MEMBER = re.compile(rf"(?:.*[_.-])?(?:{_NAMES}|state|code[_-]?challenge)", re.IGNORECASE)
_PROTECTED_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "dpop", "dpop-nonce"})
_SECRET_HEADER = re.compile(r"token|secret|api-?key|password|credential|session|signature", re.IGNORECASE)
_TELLING_HEADER = re.compile(
    r".*(?:request-?id|trace-?id|correlation-?id|uuid|fabric|-ray|x-li-.*|date|etag|user-agent|content-.*|retry-after|"
    r"server|via|accept.*|host|linkedin-version|x-restli-.*)",
    re.IGNORECASE,
)


def looks_secret(text: str) -> bool:
    """Whether a single word looks like a token: long, with digits among letters, or a JWT."""
    return len(text) >= 10 and (any(_dense(run[0]) for run in _RUN.finditer(text)) or _JWT.search(text) is not None)


def safe_text(text: object, limit: int = 200, secrets: Iterable[str | Secret] = ()) -> str:
    """Return *text* on one line of at most *limit* characters, safe to print, log and keep.

    The given *secrets* are masked wherever they stand, then what looks like one: a JWT, ``Bearer x``,
    ``access_token=x``, long words with digits in them. Control characters are escaped.
    """
    return escape(_masked(str(text), limit, secrets), limit)


def masked(text: str, secrets: Iterable[str | Secret] = ()) -> str:
    """Return *text* with what looks like a secret masked, otherwise as it is: neither capped nor escaped."""
    return _masked(text, len(text), secrets)


def is_secret_member(name: str) -> bool:
    """Whether a JSON member or a parameter of that name holds a secret."""
    return _SECRET_MEMBER.fullmatch(name) is not None


def escape(text: str, limit: int) -> str:
    """Return *text* capped, with control, format and surrogate characters as escapes (no line can be forged)."""
    escaped = text[: limit + 1]
    if not escaped.isprintable():
        escaped = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in escaped
        )
    return escaped if len(escaped) <= limit else escaped[: max(limit - 1, 0)] + "…"


def mask_known(text: str, secrets: Iterable[str | Secret]) -> str:
    """Return *text* with every one of the given secrets masked."""
    for secret in secrets:
        # Not bound to a name, which a traceback could print; an empty one must not match between any two characters.
        text = text.replace((secret.reveal() if isinstance(secret, Secret) else secret) or MASK, MASK)
    return text


def _masked(text: str, limit: int, secrets: Iterable[str | Secret]) -> str:
    text = mask_known(text, secrets)
    window = 2 * limit + 64
    if len(text) > window:  # what is cut in the middle might be half a token: it goes as a whole
        text = text[: max(text.rfind(mark, 0, window) for mark in _BETWEEN) + 1] + "…"
    # Most texts are a short sentence: what cannot be in it is not looked for.
    folded = text.casefold()
    if "eyj" in folded:
        text = _JWT.sub(MASK, text)
    if "bearer" in folded or "bas" in folded or "dpop" in folded or "oauth" in folded:  # I has doubles outside ASCII
        text = _SCHEME.sub(rf"\1\2{MASK}", text)
    if "=" in text or (":" in text and ('"' in text or "'" in text)):
        text = _NAMED.sub(rf"\1\2{MASK}", text)
    if "token" in folded:
        if ":" in text:
            text = _QUOTED_TOKEN.sub(rf"\1{MASK}", text)
        text = _NEXT_TO_TOKEN.sub(rf"\1{MASK}", text)
    if "00D" in text:
        text = _SESSION_ID.sub(MASK, text)
    if "=" in text:
        text = _QUERY_CODE.sub(rf"\1{MASK}", text)
    if _LONG.search(text):
        text = _BASE64.sub(lambda run: MASK if _very_dense(run[0]) else run[0], text)
        text = _RUN.sub(lambda run: MASK if _dense(run[0]) else run[0], text)
    return text


def _dense(run: str) -> bool:
    """Whether a run of 20 or more characters mixes letters and digits, or both cases where no word is that long."""
    mixed = any(map(str.isdigit, run)) and any(map(str.isalpha, run))
    if not mixed and (len(run) < 40 or run in (run.lower(), run.upper())):
        return False
    return not (_UUID.fullmatch(run) or _NAME.fullmatch(run) or _is_slug(run))


def _is_slug(run: str) -> bool:
    """Whether it is words and numbers with hyphens between them, as in the path of a page."""
    pieces = re.split("[-_]", run)
    words = [piece for piece in pieces if len(piece) > 1 and piece.isalpha()]
    return len(words) >= 3 and sum(map(len, words)) * 2 > len(run) and all(map(_PIECE.fullmatch, filter(None, pieces)))


def _very_dense(run: str) -> bool:
    """Whether a run of 32 or more is base64 with + or padding; with / alone it is rather a path."""
    return ("+" in run or run.endswith("=")) and any(map(str.isdigit, run)) and run != run.lower()


def redact_headers(
    headers: Iterable[tuple[str, str]], secrets: Iterable[str | Secret] = (), *, most: int = 100
) -> list[tuple[str, str]]:
    """Return header fields that may be shown: of credentials the scheme only, ids and dates as they are."""
    secrets = tuple(secrets)
    shown = []
    for name, value in list(headers)[:most]:
        lower = name.lower()
        if lower in _PROTECTED_HEADERS or _SECRET_HEADER.search(lower):
            scheme, _, rest = value.partition(" ")
            kept = f"{safe_text(scheme, 32, secrets)} {MASK}" if rest and lower.endswith("authorization") else MASK
        elif lower in {"location", "referer", "content-location", "link"}:
            kept = redact_url(value, secrets)
        elif _TELLING_HEADER.fullmatch(lower):
            kept = escape(_without(value, secrets), 256)
        else:
            kept = safe_text(value, 512, secrets)
        shown.append((safe_text(name, 128, secrets), kept))
    return shown


def _without(text: str, secrets: Iterable[str | Secret]) -> str:
    """Mask known secrets, JWTs and named credentials only: for fields whose long ids support needs."""
    return _NAMED.sub(rf"\1\2{MASK}", _SCHEME.sub(rf"\1\2{MASK}", _JWT.sub(MASK, mask_known(text, secrets)[:4096])))


def redact_url(url: str, secrets: Iterable[str | Secret] = (), limit: int = 1_000) -> str:
    """Return a URL that may be shown: no user information, no fragment, query values masked where they look secret."""
    try:
        parts = urlsplit(url[:8_192])
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return safe_text(url, limit, secrets)
    pairs = []
    for pair in parts.query.split("&") if parts.query else ():
        name, equals, value = pair.partition("=")
        secret = _SECRET_MEMBER.fullmatch(name) or name.lower() in {"code", "key", "sig"}
        pairs.append(f"{name}{equals}{MASK}" if secret and value else pair)
    query = f"?{'&'.join(pairs)}" if pairs else ""
    fragment = f"#{MASK}" if parts.fragment else ""
    prefix = f"{parts.scheme}://{host}{port}" if parts.netloc else ""
    return safe_text(f"{prefix}{parts.path}{query}{fragment}", limit, secrets)


def redact_body(body: bytes | str | None, secrets: Iterable[str | Secret] = (), limit: int = 4_096) -> str | None:
    """Return a body that may be shown, or None for one that was not readable; short JSON stays JSON."""
    if body is None:
        return None
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    secrets = tuple(secrets)
    if len(text) <= 65_536 and text.lstrip()[:1] in ("{", "["):
        try:
            return escape(json.dumps(_redacted(json.loads(text), secrets, 0), ensure_ascii=False), limit)
        except (ValueError, RecursionError):
            pass
    return safe_text(text, limit, secrets)


def _redacted(value: Any, secrets: tuple[str | Secret, ...], depth: int) -> Any:
    if depth > DEPTH:
        return "…"
    if isinstance(value, dict):
        return {
            safe_text(name, 128, secrets): MASK
            if _SECRET_MEMBER.fullmatch(name) and isinstance(item, str) and item
            else _redacted(item, secrets, depth + 1)
            for name, item in list(value.items())[:ITEMS]
        }
    if isinstance(value, list):
        return [_redacted(item, secrets, depth + 1) for item in value[:ITEMS]]
    return safe_text(value, 1_000, secrets) if isinstance(value, str) else value
