"""What a provider's facts may be: the closed vocabularies, and endpoints that a secret may be sent to."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import date
from typing import Any
from urllib.parse import urlsplit

from tokenkeeper.core.redaction import escape
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Rotation

ENDPOINTS = (
    "token_endpoint",
    "authorization_endpoint",
    "revocation_endpoint",
    "introspection_endpoint",
    "userinfo_endpoint",
    "issuer",
)
"""The facts that are URLs; none of them is ever inherited by a host's own Provider."""

VOCABULARY: Mapping[str, tuple[str, ...]] = {
    "client_authentication": ("client_secret_basic", "client_secret_post", "private_key_jwt", "none"),
    "pkce": ("S256", "none"),
    "rotation": tuple(word.value for word in Rotation),
    "revocation": ("access_token", "grant"),
    "token_request": ("form", "json"),
}
"""The facts that are words of a closed vocabulary."""

COMPLAINT = 2_000
"""The most characters of an error's message."""

LONGEST = 1e12
"""More than any duration in seconds."""

SECONDS = ("grace_seconds", "lease_seconds", "deadline_seconds")
TEXTS = ("name", "title", "source", "scope_separator", "rotation_source")
WORDS = ("header", "scheme", "client_id_parameter", "token_answer")
EMPTY_WORDS = ("scheme", "token_answer")
"""The words that may be left empty."""
DATES = ("checked", "rotation_checked")
FLAGS = ("errors_in_200",)

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_PARAMETER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


def problem(where: str, message: str, fix: str) -> ConfigurationError:
    """Return the error for a fact that cannot be used; *where* names the file and line, or the Provider."""
    said, do = escape(f"{where}: {message}", COMPLAINT), escape(fix, COMPLAINT)
    return ConfigurationError(f"{said}. It is the operator's turn: {do}", cause="provider_profile", fix=do)


def check_facts(facts: Mapping[str, Any], where: str) -> None:
    """Check the facts of a profile or Provider; None passes. Raises ConfigurationError naming the fact."""
    for name, value in facts.items():
        if value is not None:
            check_fact(name, value, where)
    check_together(facts, where)


def check_together(facts: Mapping[str, Any], where: str) -> None:
    """Check the facts that depend on one another. Raises ConfigurationError naming the fact."""
    if facts.get("rotation") == Rotation.GRACE and facts.get("grace_seconds") is None:
        raise problem(where, "rotation is grace, but grace_seconds is missing", "Say how many seconds the grace lasts.")


def check_timing(lease: float, deadline: float, where: str) -> None:
    """Check that a token request ends before its claim lapses. Raises ConfigurationError."""
    if deadline >= lease:
        raise problem(
            where,
            f"deadline_seconds ({deadline:g}) is not below lease_seconds ({lease:g}, unless you say otherwise)",
            "A request must end before its claim does: set both, or a shorter deadline_seconds.",
        )


def check_fact(name: str, value: object, where: str) -> None:
    """Check one fact. Raises ConfigurationError naming it."""
    if name in VOCABULARY and value not in VOCABULARY[name]:
        fix = f"Use one of: {', '.join(VOCABULARY[name])}."
        raise problem(where, f"{name} is {_shown(value)}, which is not a known word", fix)
    if name in ENDPOINTS:
        check_endpoint(value, name, where)
    elif name in SECONDS:
        check_seconds(value, name, where)
    elif name in FLAGS and not isinstance(value, bool):
        raise problem(where, f"{name} is {_shown(value)}", "Use true or false.")
    elif name in TEXTS and not isinstance(value, str):
        raise problem(where, f"{name} is {_shown(value)}", "Use a text.")
    elif name in WORDS and not (
        isinstance(value, str) and (_TOKEN.fullmatch(value) or (name in EMPTY_WORDS and not value))
    ):
        raise problem(
            where, f"{name} is {_shown(value)}", "Use one word of letters, digits and hyphens, as in a header."
        )
    elif name in DATES and value is not False and type(value) is not date:
        raise problem(
            where,
            f"{name} is {_shown(value)}",
            "Use a date like 2026-11-22 (no quotes), or false if nobody has checked.",
        )


def check_seconds(value: object, name: str, where: str) -> None:
    """Check a duration. Raises ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LONGEST:
        raise problem(where, f"{name} is {_shown(value)}", "Use a number of seconds above 0.")


def check_endpoint(url: object, name: str, where: str) -> None:
    """Check that a secret may be sent there: https, or loopback; no user information, no fragment.

    Placeholders as in ``{tenant}`` pass. Raises ConfigurationError.
    """
    fix = f"Use an https:// URL for {name} (http:// only for loopback, as 127.0.0.1)."
    if not isinstance(url, str):
        raise problem(where, f"{name} is {_shown(url)}", fix)
    try:
        parts = urlsplit(_PLACEHOLDER.sub("x", url))
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise problem(where, f"{name} is not a URL", fix) from None
    if parts.scheme not in ("http", "https") or not host or " " in url or not url.isprintable():
        raise problem(where, f"{name} is not an absolute URL: {_shown(url)}", fix)
    if "@" in parts.netloc:
        raise problem(where, f"{name} holds user information", fix)  # not shown: it may be a password
    if "#" in url or ("{" in url and _PLACEHOLDER.sub("", url).count("{")):
        raise problem(where, f"{name} holds a fragment or a stray brace: {_shown(url)}", fix)
    if parts.scheme == "http" and not is_loopback(host):
        raise problem(where, f"{name} is {_shown(url)}: secrets would travel in the clear", fix)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def placeholders(url: str | None) -> list[str]:
    """Return the names of the parameters that a URL wants: ``tenant`` for ``https://…/{tenant}/token``."""
    return _PLACEHOLDER.findall(url or "")


def fill(url: str | None, parameters: Mapping[str, str]) -> str | None:
    """Fill the parameters that are given into a URL; others stay as they are."""
    if url is None:
        return None
    return _PLACEHOLDER.sub(lambda found: parameters.get(found[1], found[0]), url)


def check_parameter(name: str, value: object, where: str) -> None:
    """Check a parameter that becomes part of a URL: a label of a host name or path. Raises ConfigurationError."""
    if not isinstance(value, str) or not _PARAMETER.fullmatch(value) or ".." in value:
        fix = "Use letters, digits, dots, hyphens and underscores: only the part that stands in the URL."
        raise problem(where, f"parameter {name} is {_shown(value)}, which is no part of a host name or path", fix)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"
