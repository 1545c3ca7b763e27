"""Requests to the token endpoint and its relatives, and what their answers say. Pure: times and ids are arguments.

The requests are built with Authlib's pure parts. What we do ourselves, because Authlib leaves it to its users:
``client_secret_basic`` form-encodes id and secret first (RFC 6749 section 2.3.1), a parameter may come more than once,
``scope`` is not sent again on a refresh, and an answer is checked before it counts as a token.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import ipaddress
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, quote_plus, urlencode, urlsplit

from authlib.common.urls import add_params_to_qs, add_params_to_uri  # type: ignore[import-untyped]
from authlib.oauth2.auth import ClientAuth  # type: ignore[import-untyped]
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request  # type: ignore[import-untyped]
from authlib.oauth2.rfc7009.parameters import prepare_revoke_token_request  # type: ignore[import-untyped]
from authlib.oauth2.rfc7636 import create_s256_code_challenge  # type: ignore[import-untyped]

from tokenkeeper.core.diagnosis import diagnose
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Answer, Diagnosis, HeaderPairs, Registration, Secret, Surface, Verdict, scope_set

if TYPE_CHECKING:
    from tokenkeeper.core.profile import Profile

LONGEST_TOKEN = 16 * 1024
"""The longest token that is believed, in characters."""

LARGEST_ANSWER = 1024 * 1024
"""The largest answer that is read, in bytes after decoding."""

LARGEST_JSON = 256 * 1024
"""The largest answer whose members are read, in bytes: read, small members take thirty times as much."""

LONGEST_LIFE = 1000 * 365.25 * 86400
"""The longest lifetime that is believed, in seconds (a thousand years)."""

YEAR_10000 = 253_402_300_800
"""The first second (since the epoch) that a datetime cannot hold."""

AUTHENTICATION_METHODS = ("client_secret_basic", "client_secret_post", "none", "private_key_jwt")
"""How a client may authenticate at the token endpoint (OpenID Connect Core section 9)."""

ASSERTION_SECONDS = 120
"""How long a client assertion is valid."""

_ACCESS_TOKEN = re.compile(r"[\x21-\x7e]+")
# RFC 6749 appendix A.17 allows blanks inside a refresh token; it only ever travels form-encoded.
_REFRESH_TOKEN = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_SCOPE = re.compile(r"[\x21-\x7e]+")
_JSON_SPACE = b" \t\r\n\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A POST to the token endpoint or one of its relatives. Headers and body hold secrets and are not shown."""

    url: str
    headers: HeaderPairs = field(repr=False)
    body: Secret = field(repr=False)


CLAIM_LOST = "claim lost"
"""The reason of a NeverSent whose ``before_send`` said no."""


@dataclass(frozen=True, slots=True)
class NeverSent:
    """Not a byte of the request left this machine: the refresh token is as good as before."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The request, or a part of it, was sent, and no usable answer came: nobody here knows what the provider did."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """What a token endpoint issued (RFC 6749 section 5.1); None where it said nothing.

    ``expires_in`` and ``refresh_expires_in`` are seconds from the answer, ``expires_at`` is epoch seconds and wins.
    ``account`` is a digest of the provider's issuer and subject, from the id_token if there was one.
    """

    access_token: Secret
    refresh_token: Secret | None = None
    expires_in: float | None = None
    expires_at: float | None = None
    refresh_expires_in: float | None = None
    scopes: tuple[str, ...] | None = None
    token_type: str | None = None
    account: str | None = None


# --- requests --------------------------------------------------------------------------------------------------------


def check_endpoint(url: str | None, what: str, registration: str | None = None) -> str:
    """Return an endpoint's URL. Raises ConfigurationError if it is missing, or not https (loopback may be http).

    RFC 6749 section 3.2: the token endpoint is used over TLS and its URL has no fragment.
    """
    problem = _endpoint_problem(url)
    if url and not problem:
        return url
    raise ConfigurationError(
        f"the {what} {problem}: nothing was sent. It is the operator's turn.",
        registration=registration,
        cause="bad_endpoint",
        fix=f"Set {what.replace(' ', '_')}= in the registration's Provider or profile to the provider's https:// URL.",
    )


def _endpoint_problem(url: str | None) -> str:
    if not url:
        return "is not configured"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if not host or not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        return "is not an absolute URL in ASCII"
    if parts.username is not None or parts.password is not None:
        return "holds a user name or password"
    if parts.fragment:
        return "has a fragment"
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)):
        return ""
    return f"at {host!a} is not https (http is allowed on loopback only)"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refresh_request(
    registration: Registration, profile: Profile, refresh_token: Secret, *, secret: Secret | None, now: float, jti: str
) -> TokenRequest:
    """Build the request that redeems a refresh token (RFC 6749 section 6); no scope is sent, so none is lost.

    *now* is epoch seconds; *now* and *jti* are used by private_key_jwt only. Raises ConfigurationError.
    """
    url = _endpoint(registration, profile.token_endpoint, "token endpoint", secret)
    return _authenticated(
        registration,
        profile,
        url,
        _with_parameters(
            Secret(prepare_token_request("refresh_token", refresh_token=refresh_token.reveal())),
            {**profile.token_parameters, **registration.token_parameters},
        ),
        secret=secret,
        now=now,
        jti=jti,
    )


def code_request(
    registration: Registration,
    profile: Profile,
    code: Secret,
    *,
    verifier: Secret | None,
    redirect_uri: str | None,
    secret: Secret | None,
    now: float,
    jti: str,
) -> TokenRequest:
    """Build the request that redeems an authorization code (RFC 6749 section 4.1.3, RFC 7636 section 4.5).

    *now* is epoch seconds. Raises ConfigurationError.
    """
    url = _endpoint(registration, profile.token_endpoint, "token endpoint", secret)
    return _authenticated(
        registration,
        profile,
        url,
        _with_parameters(
            Secret(
                prepare_token_request(
                    "authorization_code",
                    redirect_uri=redirect_uri,
                    code=code.reveal(),
                    code_verifier=None if verifier is None else verifier.reveal(),
                )
            ),
            {**profile.token_parameters, **registration.token_parameters},
        ),
        secret=secret,
        now=now,
        jti=jti,
    )


def introspection_request(
    registration: Registration,
    profile: Profile,
    token: Secret,
    hint: str | None = None,
    *,
    secret: Secret | None,
    now: float,
    jti: str,
) -> TokenRequest:
    """Build the question what became of a token (RFC 7662 section 2.1).

    *now* is epoch seconds. Raises ConfigurationError.
    """
    url = _endpoint(registration, profile.introspection_endpoint, "introspection endpoint", secret)
    return _authenticated(registration, profile, url, _about(token, hint), secret=secret, now=now, jti=jti)


def revocation_request(
    registration: Registration,
    profile: Profile,
    token: Secret,
    hint: str | None = None,
    *,
    secret: Secret | None,
    now: float,
    jti: str,
) -> TokenRequest:
    """Build the request that revokes a token (RFC 7009 section 2.1).

    *now* is epoch seconds. Raises ConfigurationError.
    """
    url = _endpoint(registration, profile.revocation_endpoint, "revocation endpoint", secret)
    return _authenticated(registration, profile, url, _about(token, hint), secret=secret, now=now, jti=jti)


def secrets_in_turn(registration: Registration, first: int) -> Iterator[tuple[int, bool]]:
    """Yield which of the client's secrets to try, beginning with *first*, and whether it is the last (RFC 6749 2.3.1)."""
    secrets = max(len(registration.client_secret), 1)
    for attempt in range(secrets):
        yield (first + attempt) % secrets, attempt + 1 == secrets


def authorization_url(
    registration: Registration,
    profile: Profile,
    *,
    state: Secret,
    verifier: Secret | None,
    scopes: Iterable[str],
    extra: Mapping[str, str] | None = None,
) -> Secret:
    """Build the URL where the member signs in and consents (RFC 6749 section 4.1.1); a secret, as the state in it is.

    With a *verifier* its S256 challenge is sent (RFC 7636 section 4.3). *extra* wins over the registration's
    ``authorization_parameters``; the protocol's own parameters win over both. Raises ConfigurationError.
    """
    url = _endpoint(registration, profile.authorization_endpoint, "authorization endpoint")
    challenge = {}
    if verifier is not None:
        challenge = {
            "code_challenge": create_s256_code_challenge(verifier.reveal()),
            "code_challenge_method": "S256",
        }
    scope = profile.scope_separator.join(scopes)
    own = {"response_type", "client_id", "redirect_uri", "state", *challenge, *({"scope"} if scope else ())}
    further = {**profile.authorization_parameters, **registration.authorization_parameters, **(extra or {})}
    uri: str = prepare_grant_uri(
        url,
        registration.client_id,
        "code",
        redirect_uri=registration.redirect_uri,
        scope=scope,
        state=state.reveal(),
        **challenge,
    )
    if profile.client_id_parameter != "client_id":
        base, _, query = uri.partition("?")
        uri = f"{base}?{_named(query, profile)}"
    return Secret(add_params_to_uri(uri, [(name, value) for name, value in _pairs(further) if name not in own]))


def _endpoint(registration: Registration, url: str | None, what: str, secret: Secret | None = None) -> str:
    """Check what a request is made of before a token is touched: a later encoding error would carry the token."""
    for name, fine in (
        ("client_id", _is_unicode(registration.client_id)),
        ("client_secret", secret is None or _is_unicode(secret.reveal())),
        ("redirect_uri", _is_unicode(registration.redirect_uri or "")),
        ("token_parameters", all(map(_is_unicode, _flat(registration.token_parameters)))),
        ("authorization_parameters", all(map(_is_unicode, _flat(registration.authorization_parameters)))),
    ):
        if not fine:
            raise ConfigurationError(
                f"{name} of registration {registration.name!r} is not valid Unicode (a lone surrogate): nothing was "
                "sent. It is the operator's turn.",
                registration=registration.name,
                cause="bad_text",
                fix=f"Correct {name}=; a value from the environment must be UTF-8.",
            )
    return check_endpoint(url, what, registration.name)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _flat(parameters: Mapping[str, object]) -> Iterable[str]:
    return (text for pair in _pairs(parameters) for text in pair)


def _about(token: Secret, hint: str | None) -> Secret:
    """The form of RFC 7009 section 2.1, which RFC 7662 section 2.1 shares."""
    return Secret(prepare_revoke_token_request(token.reveal(), hint)[0])


def _with_parameters(form: Secret, parameters: Mapping[str, str]) -> Secret:
    """Add the host's parameters that the form does not hold already."""
    names = {name for name, _ in parse_qsl(form.reveal(), keep_blank_values=True)}
    return Secret(
        add_params_to_qs(form.reveal(), [(name, value) for name, value in _pairs(parameters) if name not in names])
    )


def _pairs(parameters: Mapping[str, object]) -> list[tuple[str, str]]:
    """Flatten parameters; a list or tuple as a value is a parameter that comes more than once (RFC 8707)."""
    return [
        (name, str(value))
        for name, values in parameters.items()
        for value in (values if isinstance(values, list | tuple) else [values])
        if value is not None
    ]


def _authenticated(
    registration: Registration,
    profile: Profile,
    url: str,
    form: Secret,
    *,
    secret: Secret | None,
    now: float,
    jti: str,
) -> TokenRequest:
    """Add the client's authentication (RFC 6749 section 2.3, OpenID Connect Core section 9)."""
    match profile.client_authentication:
        case "none":
            prepared = ClientAuth(registration.client_id, None, "none").prepare("POST", url, {}, form.reveal())
        case "client_secret_basic" if secret is not None:
            prepared = ClientAuth(
                quote_plus(registration.client_id), quote_plus(secret.reveal()), "client_secret_basic"
            ).prepare("POST", url, {}, form.reveal())
        case "client_secret_post" if secret is not None:
            prepared = ClientAuth(registration.client_id, secret.reveal(), "client_secret_post").prepare(
                "POST", url, {}, form.reveal()
            )
        case "private_key_jwt" if registration.private_key is not None:
            assertion = _assertion(registration, registration.private_key, profile.token_endpoint or url, now, jti)
            members = [
                ("client_id", registration.client_id),
                ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
                ("client_assertion", assertion.reveal()),
            ]
            prepared = url, {}, add_params_to_qs(form.reveal(), members)
        case method if method in AUTHENTICATION_METHODS:
            missing = "private key" if method == "private_key_jwt" else "client secret"
            raise ConfigurationError(
                f"registration {registration.name!r} authenticates with {method} and has no {missing}: nothing was "
                "sent. It is the operator's turn.",
                registration=registration.name,
                cause="no_credentials",
                fix=f"Give the Registration its {missing.replace(' ', '_')}=, or its Provider another "
                "client_authentication= ('none' for a public client).",
            )
        case method:
            raise ConfigurationError(
                f"registration {registration.name!r} authenticates with {method!a}, which is not known: nothing was "
                "sent. It is the operator's turn.",
                registration=registration.name,
                cause="bad_client_authentication",
                fix=f"Set client_authentication= to one of {', '.join(AUTHENTICATION_METHODS)}.",
            )

    return _request(profile, *prepared)


def _request(profile: Profile, url: str, headers: Mapping[str, str], form: str) -> TokenRequest:
    """Shape the request as the provider wants it: a form (RFC 6749 appendix B) or JSON; some call client_id otherwise."""
    if profile.client_id_parameter != "client_id":
        form = _named(form, profile)
    content_type, body = "application/x-www-form-urlencoded", form
    if profile.token_request == "json":
        content_type, body = "application/json", json.dumps(_members(parse_qsl(form, keep_blank_values=True)))
    fixed = {"accept": "application/json", "content-type": content_type}
    return TokenRequest(
        url, (*fixed.items(), *((name.lower(), value) for name, value in headers.items())), Secret(body)
    )


def _named(form: str, profile: Profile) -> str:
    """Call ``client_id`` what the provider calls it."""
    pairs = parse_qsl(form, keep_blank_values=True)
    return urlencode([(profile.client_id_parameter if name == "client_id" else name, value) for name, value in pairs])


def _members(pairs: Iterable[tuple[str, str]]) -> dict[str, str | list[str]]:
    """A form's fields as the members of a JSON object; a field that comes more than once is an array."""
    members: dict[str, list[str]] = {}
    for name, value in pairs:
        members.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in members.items()}


_KEY_TYPES: Mapping[str, Literal["RSA", "EC", "OKP"]] = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""The type of key that an algorithm's name begins with (RFC 7518 section 3.1, RFC 8037)."""


def _assertion(registration: Registration, key: Secret, audience: str, now: float, jti: str) -> Secret:
    """Sign a client assertion (RFC 7523 section 3), valid for two minutes from *now*. Raises ConfigurationError."""
    # Only this method needs joserfc, which costs as much to import as all the rest.
    from authlib.oauth2.rfc7523 import private_key_jwt_sign  # type: ignore[import-untyped]  # noqa: PLC0415
    from joserfc import jwk  # noqa: PLC0415

    algorithm = registration.signing_algorithm
    key_type = _KEY_TYPES.get(algorithm[:2], "RSA")
    try:
        return Secret(
            private_key_jwt_sign(
                jwk.import_key(
                    json.loads(key.reveal()) if key.reveal().lstrip().startswith("{") else key.reveal(), key_type
                ),
                client_id=registration.client_id,
                token_endpoint=audience,
                alg=algorithm,
                header={"typ": "JWT"} | ({"kid": registration.key_id} if registration.key_id else {}),
                claims={"jti": jti, "iat": int(now), "exp": int(now) + ASSERTION_SECONDS},
            )
        )
    except Exception as error:  # noqa: BLE001 - whatever key and algorithm do to joserfc, it is the operator's turn
        problem = type(error).__name__
    # Outside the except clause: the cause's frames hold the key.
    raise ConfigurationError(
        f"registration {registration.name!r} cannot sign with its private key and {algorithm!a} ({problem}): nothing "
        "was sent. It is the operator's turn.",
        registration=registration.name,
        cause="bad_private_key",
        fix=f"private_key= is a PEM or JWK private key of type {key_type} for signing_algorithm={algorithm!a}.",
    )


# --- answers ---------------------------------------------------------------------------------------------------------


def read_token_answer(
    answer: Answer, profile: Profile, *, now: datetime | None = None, secrets: Iterable[str | Secret] = ()
) -> TokenSet | Diagnosis:
    """Return the tokens of a token endpoint's answer, or what else it means (RFC 6749 sections 5.1 and 5.2).

    Never raises. A 2xx answer without a usable token is the provider's fault, never the member's. *now* (UTC) is
    needed only for a Retry-After that is a date. *secrets* are masked where the provider quotes them.
    """
    members = answer_members(answer)
    problem = None
    if 200 <= answer.status < 300 and not (members and members.get("error")):
        tokens: TokenSet | str = "there is no JSON object in it"
        members = _inner(members, profile.token_answer)
        if members is not None:
            tokens = parse_token_response(members, scope_separator=profile.scope_separator)
        if isinstance(tokens, TokenSet):
            return tokens
        problem = tokens
    diagnosis = diagnose(answer, profile.rules, surface=Surface.TOKEN, now=now, secrets=secrets)
    if diagnosis.verdict is Verdict.OK:  # a rule saw a token in it, and it is none that can be used
        fault = Verdict.PROVIDER_FAULT
        diagnosis = dataclasses.replace(diagnosis, verdict=fault, remedy=fault.remedy, turn=fault.turn)
        problem = problem or "it has an error, too"
    if problem is None or diagnosis.verdict is not Verdict.PROVIDER_FAULT:
        return diagnosis
    message = f"The token endpoint answered {answer.status} without a usable token: {problem}."
    return dataclasses.replace(diagnosis, message=message)


def _inner(members: Mapping[str, object] | None, path: str) -> Mapping[str, object] | None:
    """The object that holds the tokens, at a path; the whole answer if the path is empty, or there is a token at the top."""
    if members is None or not path or "access_token" in members:
        return members
    inner: object = members
    for name in path.split("."):
        inner = inner.get(name) if isinstance(inner, dict) else None
    return inner if isinstance(inner, dict) else None


def answer_members(answer: Answer) -> Mapping[str, object] | None:
    """Return the members of an answer's JSON object, or of its form (GitHub's old answers), or None. Never raises."""
    body = answer.body
    if not body or len(body) > LARGEST_JSON:
        return None
    try:
        if body.lstrip(_JSON_SPACE).startswith(b"{"):
            found = json.loads(body)
            return found if isinstance(found, dict) else None
        if _content_type(answer) in {"application/x-www-form-urlencoded", "text/plain"}:
            return dict(parse_qsl(body.decode("ascii"), strict_parsing=True, max_num_fields=100))
    except (ValueError, RecursionError):
        return None
    return None


def _content_type(answer: Answer) -> str:
    return (answer.header("content-type") or "").partition(";")[0].strip().lower()


def parse_token_response(response: object, *, strict: bool = False, scope_separator: str = " ") -> TokenSet | str:
    """Return a token response's members checked, or a sentence that says what is wrong; values are never quoted.

    Never raises. From a provider (not *strict*) a lifetime or scope that cannot be used means that it is not known, so
    that a good token is not thrown away for it; from a host (*strict*) it is a mistake to correct.
    """
    if not isinstance(response, Mapping):
        return f"it is not a mapping but {_kind(response)}"
    try:
        return TokenSet(
            access_token=_token(response, "access_token", _ACCESS_TOKEN),
            refresh_token=_refresh_token(response, strict=strict),
            expires_in=_seconds(response, "expires_in", LONGEST_LIFE, strict=strict),
            expires_at=_moment(response, "expires_at", strict=strict),
            refresh_expires_in=_first(_seconds(response, name, LONGEST_LIFE) for name in _REFRESH_LIFETIMES),
            scopes=_scopes(response, scope_separator, strict=strict),
            token_type=_token_type(response, strict=strict),
            account=_account(response.get("id_token")),
        )
    except _UnusableError as error:
        return str(error)


_REFRESH_LIFETIMES = ("refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in")
"""What LinkedIn and GitHub, Keycloak, and Intuit call the refresh token's lifetime."""


class _UnusableError(Exception):
    """Says what is wrong with a member of a token response."""


def _token(response: Mapping[str, object], name: str, grammar: re.Pattern[str]) -> Secret:
    if response.get(name) is None:
        raise _UnusableError(f"{name} is missing")
    if not isinstance(response[name], str):
        raise _UnusableError(f"{name} is not a text but {_kind(response[name])}")
    if not response[name]:
        raise _UnusableError(f"{name} is empty")
    secret = Secret(str(response[name]))
    if len(secret.reveal()) > LONGEST_TOKEN:
        raise _UnusableError(f"{name} is longer than {LONGEST_TOKEN} characters")
    if not grammar.fullmatch(secret.reveal()):
        raise _UnusableError(f"{name} holds a blank, a line break, a control character or a character beyond ASCII")
    return secret


def _refresh_token(response: Mapping[str, object], *, strict: bool) -> Secret | None:
    value = response.get("refresh_token")
    if value is None or (value == "" and not strict):
        return None
    return _token(response, "refresh_token", _REFRESH_TOKEN)


def _seconds(response: Mapping[str, object], name: str, most: float, *, strict: bool = False) -> float | None:
    """A number of seconds. Not strict: numeric text counts, and what cannot be used (also 0, which some send for
    *never*) is not known."""
    value = response.get(name)
    if value is None:
        return None
    if strict:
        return _strict_seconds(name, value, most)
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds <= most else None


def _moment(response: Mapping[str, object], name: str, *, strict: bool) -> float | None:
    """Epoch seconds, or a date and time with its zone (ISO 8601, as Square has it)."""
    value = response.get(name)
    if isinstance(value, str) and "T" in value:
        try:
            moment = datetime.fromisoformat(value[:64])
        except ValueError:
            moment = None
        if moment is not None and moment.tzinfo is not None and 0 < moment.timestamp() < YEAR_10000:
            return moment.timestamp()
    return _seconds(response, name, YEAR_10000 - 1, strict=strict)


def _strict_seconds(name: str, value: object, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _UnusableError(f"{name} is not a number of seconds but {_kind(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _UnusableError(f"{name} is not a finite number")
    if value < 0:
        raise _UnusableError(f"{name} is negative")
    if value > most:
        raise _UnusableError(f"{name} is too large to be seconds (are these milliseconds?)")
    return float(value)


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _scopes(response: Mapping[str, object], separator: str, *, strict: bool) -> tuple[str, ...] | None:
    value = response.get("scope")
    if value is None:
        return None
    texts: Sequence[object] = value if isinstance(value, list | tuple) else [value]
    words = [text for text in texts if isinstance(text, str)]
    if len(words) == len(texts):
        # Some providers (LinkedIn) ask for scopes separated by blanks, and answer with commas.
        scopes = scope_set(scope for text in words for scope in scope_set(text.replace(",", " "), separator))
        if sum(map(len, scopes)) <= LONGEST_TOKEN and all(map(_SCOPE.fullmatch, scopes)):
            return scopes
    if strict:
        raise _UnusableError("scope is not a text of scope names in ASCII")
    return None


def _token_type(response: Mapping[str, object], *, strict: bool) -> str | None:
    value = response.get("token_type")
    if value is None or (isinstance(value, str) and len(value) <= 64 and value.isascii() and value.isprintable()):
        return value
    if strict:
        raise _UnusableError(f"token_type is not a short text but {_kind(value)}")
    return None


def _account(id_token: object) -> str | None:
    """Who the id_token is about, as a digest of issuer and subject, or None.

    Its signature is not checked: it came over TLS straight from the token endpoint (OpenID Connect Core 3.1.3.7).
    """
    if not isinstance(id_token, str) or id_token.count(".") != 2 or len(id_token) > 4 * LONGEST_TOKEN:
        return None
    try:
        payload = id_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return None
    if not isinstance(claims, dict):
        return None
    issuer, subject = claims.get("iss"), claims.get("sub")
    if not (isinstance(issuer, str) and isinstance(subject, str) and issuer and subject):
        return None
    return account_digest(issuer, subject)


def account_digest(issuer: str, subject: str) -> str:
    """Return the digest under which a provider's account is remembered."""
    return hashlib.sha256(f"{len(issuer)}:{issuer}{subject}".encode("utf-8", "surrogatepass")).hexdigest()


def _kind(value: object) -> str:
    return type(value).__name__


ALREADY_DEAD = frozenset({"invalid_token", "invalid_grant", "token_revoked", "token_expired"})
"""What providers say of a token that they were asked to revoke and that is no more (Google, Slack)."""


def read_revocation(answer: Answer, profile: Profile, *, secrets: Iterable[str | Secret] = ()) -> str | Diagnosis:
    """Return what a revocation endpoint's answer means (RFC 7009 section 2.2), or why it is none.

    ``revoked``, ``already_dead`` and ``unsupported`` are outcomes; a Diagnosis says whose turn it is. Never raises.
    """
    members = answer_members(answer) or {}
    error = members.get("error")
    if 200 <= answer.status < 300 and not error:
        return "revoked"
    if error == "unsupported_token_type":
        return "unsupported"
    if answer.status in (200, 400) and isinstance(error, str) and error in ALREADY_DEAD:
        return "already_dead"
    return diagnose(answer, profile.rules, surface=Surface.TOKEN, secrets=secrets)


def read_introspection(answer: Answer) -> Literal["active", "expired", "revoked", "inactive"] | None:
    """Return what an introspection endpoint says of a token, or None if it does not say (RFC 7662 section 2.2).

    LinkedIn's ``status`` member tells expired from revoked. Never raises.
    """
    members = answer_members(answer)
    if not 200 <= answer.status < 300 or members is None:
        return None
    match members.get("status"), members.get("active"):
        case "expired", _:
            return "expired"
        case "revoked", _:
            return "revoked"
        case (_, True) | ("active", None):
            return "active"
        case _, False:
            return "inactive"
        case _:
            return None
