"""The nouns: what a member, a grant, a token, a verdict and a prompt are.

Stdlib only, no I/O. The words are those of RFC 6749 and of ``docs/glossary.md``. Times are aware UTC datetimes or
None, durations are float seconds. Whatever is secret is a :class:`Secret` or an :class:`AccessToken`: neither shows
its text in a repr, a log, a format string, a pickle or a traceback.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from uuid import UUID

MEMBER_BYTES = 255
"""The longest member id and registration name, in bytes of UTF-8: what the store's key columns hold."""

R = TypeVar("R")


class Secret:
    """A text that must not be shown: compare it, seal it, or say :meth:`reveal`; nothing else lets it out."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text. The caller keeps it out of variables that a traceback could print."""
        return self._text

    @property
    def fingerprint(self) -> str:
        """The first 8 hexadecimal digits of its SHA-256: enough to tell two tokens apart in a log."""
        return hashlib.sha256(self._text.encode("utf-8", "surrogatepass")).hexdigest()[:8]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.fingerprint}>"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(
            self._text.encode("utf-8", "surrogatepass"), other._text.encode("utf-8", "surrogatepass")
        )

    def __hash__(self) -> int:
        return hash(self._text)

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} does not go into a string; use .reveal()")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} is not pickled: pass ids, never tokens, and read the token where it is used"
        )


class Unshown:
    """Keeps an object of the host's or a library's, whose own repr may show a token, out of the reprs around it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<a {type(self.value).__name__}, not shown>"


class AccessToken(Secret):
    """A member's access token, ready for use: ``auth=token`` in requests, httpx and httpx2, or ``headers=token.headers``."""

    __slots__ = ("_header", "_scheme", "expires_at", "generation", "grant_id")

    def __init__(
        self,
        text: str,
        *,
        grant_id: str = "",
        generation: int = 0,
        expires_at: datetime | None = None,
        header: str = "Authorization",
        scheme: str = "Bearer",
    ) -> None:
        super().__init__(text)
        self.grant_id = grant_id
        self.generation = generation
        self.expires_at = expires_at
        self._header = header
        self._scheme = scheme

    @property
    def headers(self) -> dict[str, str]:
        """A new dict with the one header that carries the token; its repr is redacted."""
        return _Redacted({self._header: f"{self._scheme} {self._text}" if self._scheme else self._text})

    def __call__(self, request: R) -> R:
        """Set the header on *request* (anything with ``.headers``) and return it: the shape that ``auth=`` takes."""
        request.headers[self._header] = f"{self._scheme} {self._text}" if self._scheme else self._text  # type: ignore[attr-defined]
        return request

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError(
            "an AccessToken does not go into a string, because a redacted token inside a header would come back as a "
            "puzzling 401: use auth=token, headers=token.headers, or token.reveal()"
        )


class _Redacted(dict[str, str]):
    """A dict of headers or parameters that does not print their values."""

    def __repr__(self) -> str:
        return repr(dict.fromkeys(self, "<redacted>"))

    __str__ = __repr__

    def __copy__(self) -> _Redacted:
        return _Redacted(self)

    def __deepcopy__(self, memo: object) -> _Redacted:
        return _Redacted(self)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("what may hold a secret is not pickled: pass ids, never tokens")


class _Word(enum.StrEnum):
    """A closed vocabulary whose members are their own text."""

    @staticmethod
    def _generate_next_value_(name: str, *_: Any) -> str:
        return name.lower()


class Turn(_Word):
    """Whose turn it is: ours, the member's, the operator's, or nobody's (the weather)."""

    US = enum.auto()
    MEMBER = enum.auto()
    OPERATOR = enum.auto()
    NOBODY = enum.auto()


class Remedy(_Word):
    """What helps."""

    NONE = enum.auto()
    RENEW = enum.auto()
    REPEAT = enum.auto()
    REAUTHENTICATE = enum.auto()
    WIDEN_SCOPE = enum.auto()
    ACT_AT_PROVIDER = enum.auto()
    RECONFIGURE = enum.auto()
    WAIT = enum.auto()


class Verdict(_Word):
    """What an answer says of the token (or, from a token endpoint, of the grant)."""

    OK = enum.auto()
    NOT_TOKEN = enum.auto()
    EXPIRED = enum.auto()
    INVALID = enum.auto()
    DPOP_NONCE = enum.auto()
    REVOKED = enum.auto()
    STEP_UP = enum.auto()
    GRANT_EXPIRED = enum.auto()
    GRANT_REVOKED = enum.auto()
    GRANT_REUSED = enum.auto()
    GRANT_INVALID = enum.auto()
    INTERACTION_REQUIRED = enum.auto()
    INSUFFICIENT_SCOPE = enum.auto()
    ACCOUNT_BLOCKED = enum.auto()
    EMPTY = enum.auto()
    BAD_SCHEME = enum.auto()
    CLIENT_CONFIG = enum.auto()
    RATE_LIMITED = enum.auto()
    PROVIDER_FAULT = enum.auto()

    @property
    def remedy(self) -> Remedy:
        """What helps against it."""
        return _MEANING[self][0]

    @property
    def turn(self) -> Turn:
        """Whose turn it is, before the grant is considered."""
        return _MEANING[self][1]


_MEANING: Mapping[Verdict, tuple[Remedy, Turn]] = {
    Verdict.OK: (Remedy.NONE, Turn.NOBODY),
    Verdict.NOT_TOKEN: (Remedy.NONE, Turn.NOBODY),
    Verdict.EXPIRED: (Remedy.RENEW, Turn.US),
    Verdict.INVALID: (Remedy.RENEW, Turn.US),
    Verdict.DPOP_NONCE: (Remedy.REPEAT, Turn.US),
    Verdict.REVOKED: (Remedy.REAUTHENTICATE, Turn.MEMBER),
    Verdict.STEP_UP: (Remedy.REAUTHENTICATE, Turn.MEMBER),
    Verdict.GRANT_EXPIRED: (Remedy.REAUTHENTICATE, Turn.MEMBER),
    Verdict.GRANT_REVOKED: (Remedy.REAUTHENTICATE, Turn.MEMBER),
    Verdict.GRANT_REUSED: (Remedy.REAUTHENTICATE, Turn.MEMBER),
    Verdict.GRANT_INVALID: (Remedy.REAUTHENTICATE, Turn.MEMBER),
    Verdict.INTERACTION_REQUIRED: (Remedy.REAUTHENTICATE, Turn.MEMBER),
    Verdict.INSUFFICIENT_SCOPE: (Remedy.WIDEN_SCOPE, Turn.MEMBER),
    Verdict.ACCOUNT_BLOCKED: (Remedy.ACT_AT_PROVIDER, Turn.MEMBER),
    Verdict.EMPTY: (Remedy.RECONFIGURE, Turn.OPERATOR),
    Verdict.BAD_SCHEME: (Remedy.RECONFIGURE, Turn.OPERATOR),
    Verdict.CLIENT_CONFIG: (Remedy.RECONFIGURE, Turn.OPERATOR),
    Verdict.RATE_LIMITED: (Remedy.WAIT, Turn.NOBODY),
    Verdict.PROVIDER_FAULT: (Remedy.WAIT, Turn.NOBODY),
}


class Surface(_Word):
    """Where an answer came from: an API call, or the token endpoint (an answer to a refresh)."""

    API = enum.auto()
    TOKEN = enum.auto()


class GrantStatus(_Word):
    """How a grant stands in the store."""

    ACTIVE = enum.auto()
    NEEDS_REAUTHENTICATION = enum.auto()
    REVOKING = enum.auto()


class Freshness(_Word):
    """A grant's age by its clock; a refusal outranks it in both directions."""

    FRESH = enum.auto()
    AGING = enum.auto()
    EXPIRED = enum.auto()
    UNKNOWN = enum.auto()


class Rotation(_Word):
    """What becomes of a refresh token that has been used (DESIGN section 4)."""

    NONE = enum.auto()
    BY_USE = enum.auto()
    GRACE = enum.auto()
    STRICT = enum.auto()
    UNKNOWN = enum.auto()


HeaderPairs = tuple[tuple[str, str], ...]
"""Header fields in order, names in lower case; a name may come more than once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider answered. ``body`` is None where it cannot be read any more, ``b""`` where it is empty."""

    status: int
    headers: HeaderPairs = field(default=(), repr=False)
    body: bytes | None = field(default=None, repr=False)

    def header(self, name: str) -> str | None:
        """Return the first value of a header field, or None; *name* in lower case."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What an answer means, by which rule, whose turn it is and what to do; texts are safe to print.

    ``retry_after`` is in seconds. ``scopes``, ``acr_values`` and ``claims`` are what the provider asked for, where it
    said so (RFC 6750 section 3, RFC 9470 section 3, OpenID Connect Core section 5.5).
    """

    verdict: Verdict
    remedy: Remedy
    turn: Turn
    rule: str
    message: str
    fix: str
    retry_after: float | None = None
    scopes: tuple[str, ...] = ()
    acr_values: str | None = None
    claims: str | None = None
    error_code: str | None = None

    def for_turn(self, turn: Turn) -> Diagnosis:
        """The same diagnosis once the grant was considered (expired without a refresh token is the member's)."""
        return dataclasses.replace(self, turn=turn)


@dataclass(frozen=True, slots=True)
class GrantKey:
    """Names a grant: the host's registration and its member."""

    registration: str
    member: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """An open request to the member, a fact of the grant's row: one per grant and cause, closed by success.

    It holds no URL and no state: ``begin_authorization`` mints the URL when the member is there.
    """

    registration: str
    member: str
    cause: str
    scopes: tuple[str, ...]
    opened_at: datetime | None
    acr_values: str | None = None
    claims: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """A member's grant, without its secrets. Times are aware UTC datetimes."""

    id: str
    registration: str
    member: str
    status: GrantStatus
    scopes: tuple[str, ...]
    generation: int
    access_expires_at: datetime | None
    refresh_expires_at: datetime | None
    has_refresh_token: bool
    prompt: Prompt | None
    created_at: datetime
    renewed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Revocation:
    """What became of a grant that was to be revoked; ``message`` says it in a sentence.

    ``outcome``: ``revoked`` (the provider says so; RFC 7009 has it say the same of a token it does not know),
    ``already_dead``, ``in_doubt`` (revoked, but a renewal's answer was lost: tokens that nobody has may live on),
    ``unsupported`` (the provider was not told), ``refused`` (it was told, and would not), ``not_connected`` or
    ``reconnected`` (the member has consented anew meanwhile; that grant stands). ``deleted``: whether the row is gone.
    """

    registration: str
    member: str
    outcome: str
    message: str
    deleted: bool
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """Where to send the member now (RFC 6749 section 4.1.1). The URL works once, until ``expires_at``."""

    url: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Connection:
    """What ``finish_authorization`` returns: the grant, and the host's own path to send the member to."""

    grant: Grant
    return_to: str


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider as the host declares it. None means: from the profile that ``extends`` names, else the generic value.

    Endpoints and issuer are never inherited, so that a stand-in never sends a secret to the real one.
    """

    name: str
    _: KW_ONLY
    extends: str | Path | None = None
    token_endpoint: str | None = None
    authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    introspection_endpoint: str | None = None
    userinfo_endpoint: str | None = None
    issuer: str | None = None
    client_authentication: str | None = None
    scope_separator: str | None = None
    pkce: str | None = None
    header: str | None = None
    scheme: str | None = None
    rotation: str | None = None
    grace_seconds: float | None = None
    revocation: str | None = None
    lease_seconds: float | None = None
    deadline_seconds: float | None = None


def to_datetime(microseconds: int | None) -> datetime | None:
    """Turn the store's microseconds since the epoch into an aware UTC datetime."""
    return None if microseconds is None else datetime.fromtimestamp(microseconds / 1_000_000, UTC)


def member_id(member: str | int | UUID) -> str:
    """Return a member's id as the store keeps it. Raises ValueError or TypeError saying what is wrong with it."""
    if type(member) is str and 0 < len(member) <= MEMBER_BYTES and member.isascii() and member.isprintable():
        return member
    return _checked_member(member)


def _checked_member(member: object) -> str:
    if isinstance(member, bool) or not isinstance(member, str | int | UUID):
        raise TypeError(f"a member is a str, an int or a UUID, not {type(member).__name__}")
    return checked_name(str(member), "member")


def checked_name(text: str, what: str) -> str:
    """Return *text* if it can be a key of the store: not empty, no control characters, at most 255 UTF-8 bytes."""
    if not text:
        raise ValueError(f"the {what} is empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the {what} is not valid Unicode (a lone surrogate)") from None
    if size > MEMBER_BYTES:
        raise ValueError(f"the {what} has {size} bytes of UTF-8; {MEMBER_BYTES} are the most")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text):
        raise ValueError(f"the {what} holds control characters: {text!r}")
    return text


def scope_set(scopes: Iterable[str] | str | None, separator: str = " ") -> tuple[str, ...]:
    """Return scopes in the order given, each once (RFC 6749 section 3.3); a str is split at the separator, and at blanks."""
    if scopes is None:
        return ()
    if isinstance(scopes, str):
        scopes = scopes.replace(separator, " ").split() if separator else scopes.split()
    return tuple(dict.fromkeys(scope for scope in scopes if scope))


@dataclass(frozen=True, slots=True, init=False)
class Registration:
    """The host's registration as an OAuth client at a provider (RFC 6749 section 2).

    ``provider`` is a catalogue name (default: ``name``), the path of a profile, or a :class:`Provider`; ``parameters``
    fill the profile's tenant, shop or region. A list of secrets is tried in order on ``invalid_client``.
    """

    name: str
    provider: str | Path | Provider
    client_id: str
    client_secret: tuple[Secret, ...] = field(repr=False)
    redirect_uri: str | None
    scopes: tuple[str, ...]
    parameters: Mapping[str, str]
    authorization_parameters: Mapping[str, str]
    token_parameters: Mapping[str, str] = field(repr=False)
    private_key: Secret | None = field(repr=False)
    key_id: str | None
    signing_algorithm: str

    def __init__(
        self,
        name: str,
        *,
        provider: str | Path | Provider | None = None,
        client_id: str,
        client_secret: str | Secret | Sequence[str | Secret] | None = None,
        redirect_uri: str | None = None,
        scopes: Iterable[str] | str = (),
        parameters: Mapping[str, str] | None = None,
        authorization_parameters: Mapping[str, str] | None = None,
        token_parameters: Mapping[str, str] | None = None,
        private_key: str | Secret | None = None,
        key_id: str | None = None,
        signing_algorithm: str = "RS256",
    ) -> None:
        secrets, key = _secrets(client_secret), _secrets(private_key)
        sent = _Redacted(token_parameters or {}) if isinstance(token_parameters, Mapping | None) else None
        del client_secret, private_key, token_parameters  # a traceback of this frame must not show them
        if secrets is None or key is None:
            raise TypeError(f"Registration({name!r}): a secret is a str (a client_secret also a list of them)")
        if sent is None:
            raise TypeError(f"Registration({name!r}): token_parameters is a mapping")
        values: dict[str, object] = {
            "name": checked_name(name, "registration's name"),
            "provider": name if provider is None else provider,
            "client_id": client_id,
            "client_secret": secrets,
            "redirect_uri": redirect_uri,
            "scopes": scope_set(scopes),
            "parameters": dict(parameters or {}),
            "authorization_parameters": dict(authorization_parameters or {}),
            "token_parameters": sent,
            "private_key": key[0] if key else None,
            "key_id": key_id,
            "signing_algorithm": signing_algorithm,
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)


def _secrets(given: object) -> tuple[Secret, ...] | None:
    """Return secrets as they are kept. None, instead of an error whose frames would show them: they are no texts."""
    several = given if isinstance(given, list | tuple) else () if given is None else (given,)
    kept = tuple(Secret(one) if isinstance(one, str) else one for one in several)
    return kept if all(isinstance(one, Secret) for one in kept) else None
