"""Requests to the token endpoint as the RFCs have them, and answers that are checked before they count as tokens."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import traceback
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from frames import in_package
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk, jwt

from tokenkeeper.core.profile import Profile
from tokenkeeper.core.token_endpoint import (
    LONGEST_TOKEN,
    TokenRequest,
    TokenSet,
    authorization_url,
    check_endpoint,
    code_request,
    introspection_request,
    parse_token_response,
    read_introspection,
    read_token_answer,
    refresh_request,
    revocation_request,
)
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Answer, Diagnosis, Registration, Remedy, Secret, Turn, Verdict
from tokenkeeper.providers import load_profile

NOW = 1_800_000_000.0
SECRET = Secret("s3cret% +:/ü")
REFRESH = Secret("canary-refresh-token")


def profile(**facts: Any) -> Profile:
    """A profile with every endpoint."""
    endpoints = {
        "token_endpoint": "https://as.example/token",
        "authorization_endpoint": "https://as.example/authorize",
        "introspection_endpoint": "https://as.example/introspect",
        "revocation_endpoint": "https://as.example/revoke",
    }
    return Profile(name="example", **{**endpoints, **facts})


def registration(**more: Any) -> Registration:
    """A registration whose id needs encoding."""
    return Registration("example", **{"client_id": "id:1 ü", "redirect_uri": "https://app.example/cb", **more})


def refresh(
    reg: Registration | None = None, prof: Profile | None = None, secret: Secret | None = SECRET
) -> TokenRequest:
    """A refresh request."""
    return refresh_request(reg or registration(), prof or profile(), REFRESH, secret=secret, now=NOW, jti="jti-1")


def form(request: TokenRequest) -> list[tuple[str, str]]:
    """What a server reads from the request's body."""
    return parse_qsl(request.body.reveal(), keep_blank_values=True, strict_parsing=True)


def header(request: TokenRequest, name: str) -> str | None:
    """The value of a header that comes at most once."""
    values = [value for key, value in request.headers if key == name]
    assert len(values) <= 1
    return values[0] if values else None


def basic(request: TokenRequest) -> tuple[str, str]:
    """Id and secret as RFC 6749 section 2.3.1 has a server read them."""
    scheme, _, credentials = str(header(request, "authorization")).partition(" ")
    assert scheme == "Basic"
    name, colon, word = base64.b64decode(credentials, validate=True).decode("ascii").partition(":")
    assert colon
    return unquote_plus(name), unquote_plus(word)


# --- requests --------------------------------------------------------------------------------------------------------


def test_refresh_with_basic() -> None:
    """A refresh sends grant type and refresh token only; id and secret are form-encoded before base64."""
    request = refresh()
    assert request.url == "https://as.example/token"
    assert form(request) == [("grant_type", "refresh_token"), ("refresh_token", REFRESH.reveal())]
    assert basic(request) == ("id:1 ü", SECRET.reveal())
    assert header(request, "accept") == "application/json"
    assert header(request, "content-type") == "application/x-www-form-urlencoded"


def test_empty_secret_is_a_secret() -> None:
    """An installed app's empty secret (Reddit) goes into Basic as it is."""
    assert basic(refresh(secret=Secret(""))) == ("id:1 ü", "")


def test_refresh_with_post() -> None:
    """client_secret_post puts id and secret into the form, and sends no Authorization header."""
    request = refresh(prof=profile(client_authentication="client_secret_post"))
    assert form(request)[2:] == [("client_id", "id:1 ü"), ("client_secret", SECRET.reveal())]
    assert header(request, "authorization") is None


def test_refresh_of_a_public_client() -> None:
    """A public client names itself in the form and sends no secret, also when it has one."""
    request = refresh(prof=profile(client_authentication="none"))
    assert form(request)[2:] == [("client_id", "id:1 ü")]
    assert header(request, "authorization") is None


def test_scope_is_not_sent_on_refresh() -> None:
    """The registered scopes stay out of a refresh, where they could only narrow the grant."""
    assert "scope" not in dict(form(refresh(registration(scopes=["a", "b"]))))


def test_token_parameters_are_added() -> None:
    """The host's parameters are added, repeated ones too; the protocol's own are not overwritten."""
    parameters = {"resource": ["https://a.example", "https://b.example"], "audience": "x y&z", "grant_type": "password"}
    assert form(refresh(registration(token_parameters=parameters)))[1:] == [
        ("refresh_token", REFRESH.reveal()),
        ("resource", "https://a.example"),
        ("resource", "https://b.example"),
        ("audience", "x y&z"),
    ]


@given(st.text("abc%+&= ~é\u2028", min_size=1))
def test_any_token_survives_the_form(text: str) -> None:
    """A server reads back exactly the refresh token and the secret that were meant."""
    request = refresh_request(registration(), profile(), Secret(text), secret=Secret(text), now=NOW, jti="")
    assert dict(form(request))["refresh_token"] == text
    assert basic(request)[1] == text


def code(prof: Profile | None = None, verifier: Secret | None = None, reg: Registration | None = None) -> TokenRequest:
    """A code request."""
    return code_request(
        reg or registration(),
        prof or profile(),
        Secret("canary-code"),
        verifier=verifier,
        redirect_uri="https://app.example/cb",
        secret=SECRET,
        now=NOW,
        jti="jti-1",
    )


def test_code_request() -> None:
    """A code is redeemed with its redirect URI and its verifier."""
    request = code(
        verifier=Secret("v" * 43), reg=registration(token_parameters={"redirect_uri": "https://evil.example"})
    )
    assert dict(form(request)) == {
        "grant_type": "authorization_code",
        "code": "canary-code",
        "redirect_uri": "https://app.example/cb",
        "code_verifier": "v" * 43,
    }


def test_code_request_without_pkce() -> None:
    """Without a verifier none is sent: LinkedIn's confidential flow refuses one."""
    assert "code_verifier" not in dict(form(code()))


@pytest.mark.parametrize(
    ("build", "url"),
    [
        (introspection_request, "https://as.example/introspect"),
        (revocation_request, "https://as.example/revoke"),
    ],
)
def test_questions_about_a_token(build: Any, url: str) -> None:
    """Introspection and revocation send the token, its hint where there is one, and the client's authentication."""
    reg = registration(token_parameters={"audience": "not here"})
    request = build(reg, profile(), REFRESH, "refresh_token", secret=SECRET, now=NOW, jti="j")
    assert request.url == url
    assert form(request) == [("token", REFRESH.reveal()), ("token_type_hint", "refresh_token")]
    assert basic(request)[1] == SECRET.reveal()
    assert form(build(reg, profile(), REFRESH, secret=SECRET, now=NOW, jti="j")) == [("token", REFRESH.reveal())]


KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "PS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}


def pem(key: Any) -> str:
    """A private key as PEM."""
    return str(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
    )


def key_type(algorithm: str) -> Any:
    """The type of key of an algorithm."""
    return {"R": "RSA", "P": "RSA", "E": "EC"}[algorithm[0]] if algorithm != "Ed25519" else "OKP"


@pytest.mark.parametrize("algorithm", KEYS)
@pytest.mark.parametrize("as_jwk", [False, True], ids=["pem", "jwk"])
def test_private_key_jwt(algorithm: str, as_jwk: bool) -> None:
    """The assertion names client, audience, time and id as they were given, and its signature holds."""
    key = jwk.import_key(pem(KEYS[algorithm]), key_type(algorithm))
    text = json.dumps(key.as_dict(private=True)) if as_jwk else pem(KEYS[algorithm])
    reg = registration(private_key=text, key_id="kid-1", signing_algorithm=algorithm)
    for build in (refresh_request, introspection_request):
        request = build(
            reg, profile(client_authentication="private_key_jwt"), REFRESH, secret=None, now=NOW + 0.9, jti="jti-1"
        )
        sent = dict(form(request))
        assert sent["client_id"] == "id:1 ü"
        assert sent["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        assertion = jwt.decode(sent["client_assertion"], key, algorithms=[algorithm])
        assert assertion.header == {"alg": algorithm, "typ": "JWT", "kid": "kid-1"}
        assert assertion.claims == {
            "iss": "id:1 ü",
            "sub": "id:1 ü",
            "aud": "https://as.example/token",
            "iat": int(NOW),
            "exp": int(NOW) + 120,
            "jti": "jti-1",
        }
        assert header(request, "authorization") is None


def shown(error: BaseException) -> str:
    """What a traceback with locals shows of our own frames, and of every chained exception."""
    texts, seen = [], [error]
    while seen:
        one = seen.pop()
        seen += [other for other in (one.__cause__, one.__context__) if other is not None]
        frames = traceback.TracebackException.from_exception(one, capture_locals=True).stack
        texts += [str(frame.locals) for frame in frames if in_package(frame.filename)]
        texts += [repr(one), str(one), str(vars(one))]
    return "\n".join(texts)


CANARY_PEM = pem(KEYS["RS256"])


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        (CANARY_PEM[:200], "RS256"),
        (CANARY_PEM, "ES256"),
        (CANARY_PEM, "none"),
        (CANARY_PEM, "HS256"),
        ("{not json " + CANARY_PEM, "RS256"),
        ("", "RS256"),
    ],
)
def test_unusable_private_key(text: str, algorithm: str) -> None:
    """A key that cannot sign is the operator's turn, and stays out of message, traceback and chained exceptions."""
    reg = registration(private_key=text, signing_algorithm=algorithm)
    with pytest.raises(ConfigurationError, match="private key") as raised:
        refresh(reg, profile(client_authentication="private_key_jwt"), None)
    assert raised.value.registration == "example"
    assert raised.value.fix
    assert raised.value.__context__ is None
    assert CANARY_PEM[40:80] not in shown(raised.value)
    assert REFRESH.reveal() not in shown(raised.value)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("client_secret_basic", "no client secret"),
        ("client_secret_post", "no client secret"),
        ("private_key_jwt", "no private key"),
        ("tls_client_auth", "'tls_client_auth', which is not known"),
    ],
)
def test_method_without_its_credentials(method: str, says: str) -> None:
    """A method that is unknown, or lacks its secret or key, is named, and nothing is built."""
    with pytest.raises(ConfigurationError, match=says) as raised:
        refresh(prof=profile(client_authentication=method), secret=None)
    assert raised.value.turn is Turn.OPERATOR
    assert raised.value.fix
    assert REFRESH.reveal() not in shown(raised.value)


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"client_id": "a\udcff"}, "client_id"),
        ({"redirect_uri": "https://\udcff"}, "redirect_uri"),
        ({"token_parameters": {"x": "\udcff"}}, "token_parameters"),
        ({"authorization_parameters": {"\udcff": "x"}}, "authorization_parameters"),
    ],
)
def test_text_that_cannot_be_encoded(more: dict[str, Any], name: str) -> None:
    """Bytes of another encoding that came through the environment are named before a token is touched."""
    with pytest.raises(ConfigurationError, match=name) as raised:
        refresh(registration(**more))
    assert REFRESH.reveal() not in shown(raised.value)


def test_secret_that_cannot_be_encoded() -> None:
    """A client secret that is not Unicode is named and not shown."""
    with pytest.raises(ConfigurationError, match="client_secret") as raised:
        refresh(secret=Secret("canary-secret\udcff"))
    assert "canary-secret" not in shown(raised.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (None, "is not configured"),
        ("", "is not configured"),
        ("http://as.example/token", "not https"),
        ("http://localhost.evil.example/token", "not https"),
        ("http://127.0.0.1.evil.example/token", "not https"),
        ("ftp://as.example/token", "not https"),
        ("file:///etc/passwd", "not an absolute URL"),
        ("/token", "not an absolute URL"),
        ("https:///token", "not an absolute URL"),
        ("https://as.example/to ken", "not an absolute URL"),
        ("https://as.example/token\r\nX: y", "not an absolute URL"),
        ("https://ä.example/token", "not an absolute URL"),
        ("https://user:canary@as.example/token", "user name or password"),
        ("https://as.example/token#x", "fragment"),
        ("https://as.example:99999/token", "not a URL"),
        ("https://[::1/token", "not a URL"),
    ],
)
def test_endpoint_that_is_refused(url: str | None, says: str) -> None:
    """An endpoint that is missing, or would carry secrets in the clear, is refused before anything is built."""
    with pytest.raises(ConfigurationError, match=says) as raised:
        refresh(prof=profile(token_endpoint=url))
    assert "token endpoint" in str(raised.value)
    assert "operator" in str(raised.value)
    assert "token_endpoint=" in raised.value.fix
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://as.example/token?tenant=a",
        "http://localhost:8000/token",
        "http://127.0.0.1/token",
        "http://127.9.9.9:1/token",
        "http://[::1]:8000/token",
    ],
)
def test_endpoint_that_is_allowed(url: str) -> None:
    """Https is allowed anywhere, http on loopback."""
    assert check_endpoint(url, "token endpoint") == url


@pytest.mark.parametrize(
    ("build", "name"),
    [(introspection_request, "introspection_endpoint"), (revocation_request, "revocation_endpoint")],
)
def test_missing_endpoint_is_named(build: Any, name: str) -> None:
    """An endpoint that the profile lacks is named in the error and its fix."""
    with pytest.raises(ConfigurationError, match=name.replace("_", " ")) as raised:
        build(registration(), profile(**{name: None}), REFRESH, secret=SECRET, now=NOW, jti="j")
    assert f"{name}=" in raised.value.fix


def test_requests_show_no_secret() -> None:
    """The repr of a request shows its URL only."""
    assert repr(refresh()) == "TokenRequest(url='https://as.example/token')"


# --- the authorization URL -------------------------------------------------------------------------------------------


def query(url: Secret) -> list[tuple[str, str]]:
    """What the authorization server reads."""
    return parse_qsl(urlsplit(url.reveal()).query, keep_blank_values=True, strict_parsing=True)


def test_authorization_url() -> None:
    """The URL asks for a code with scope, state and the S256 challenge of RFC 7636 appendix B."""
    url = authorization_url(
        registration(),
        profile(authorization_endpoint="https://as.example/authorize?tenant=a"),
        state=Secret("canary-state"),
        verifier=Secret("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
        scopes=["openid", "r_basic profile"],
    )
    assert url.reveal().startswith("https://as.example/authorize?")
    assert query(url) == [
        ("tenant", "a"),
        ("response_type", "code"),
        ("client_id", "id:1 ü"),
        ("redirect_uri", "https://app.example/cb"),
        ("scope", "openid r_basic profile"),
        ("state", "canary-state"),
        ("code_challenge", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"),
        ("code_challenge_method", "S256"),
    ]
    assert "canary" not in repr(url)


def test_authorization_url_parameters() -> None:
    """What this authorization needs wins over the registration's parameters; neither replaces the protocol's own."""
    url = authorization_url(
        registration(authorization_parameters={"prompt": "consent", "acr_values": "low", "state": "fixed"}),
        profile(scope_separator=","),
        state=Secret("canary-state"),
        verifier=None,
        scopes=["a", "b"],
        extra={"acr_values": "high", "client_id": "other"},
    )
    assert dict(query(url)) == {
        "response_type": "code",
        "client_id": "id:1 ü",
        "redirect_uri": "https://app.example/cb",
        "scope": "a,b",
        "state": "canary-state",
        "prompt": "consent",
        "acr_values": "high",
    }


def test_authorization_url_without_scopes() -> None:
    """Without scopes of ours no scope is sent, unless the host's parameters bring one."""
    reg = registration(redirect_uri=None, authorization_parameters={"scope": "x"})
    url = authorization_url(reg, profile(), state=Secret("s"), verifier=None, scopes=())
    assert dict(query(url)) == {"response_type": "code", "client_id": "id:1 ü", "scope": "x", "state": "s"}


# --- token responses -------------------------------------------------------------------------------------------------


def parsed(strict: bool = False, separator: str = " ", **members: object) -> TokenSet | str:
    """A token response with a good access token, parsed."""
    return parse_token_response({"access_token": "at", **members}, strict=strict, scope_separator=separator)


def test_full_response() -> None:
    """All members of RFC 6749 section 5.1 and the common lifetimes of refresh tokens are read."""
    assert parsed(
        refresh_token="rt", expires_in=3600, token_type="Bearer", scope="a b", refresh_token_expires_in=5184000
    ) == TokenSet(
        access_token=Secret("at"),
        refresh_token=Secret("rt"),
        expires_in=3600.0,
        refresh_expires_in=5184000.0,
        scopes=("a", "b"),
        token_type="Bearer",
    )


def test_smallest_response() -> None:
    """Only the access token is required; what was not said is None."""
    assert parsed() == parsed(strict=True) == TokenSet(access_token=Secret("at"))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "is missing"),
        ("", "is empty"),
        (5, "not a text but int"),
        (["canary"], "not a text but list"),
        ("canary\r\nX-Evil: 1", "line break"),
        ("canary\n", "line break"),
        ("canary one", "blank"),
        (" canary", "blank"),
        ("canary\x00", "control character"),
        ("canary\x7f", "control character"),
        ("canaryé", "beyond ASCII"),
        ("canary\udcff", "beyond ASCII"),
        ("canary" * LONGEST_TOKEN, "longer than 16384"),
    ],
)
def test_access_token_that_is_refused(strict: bool, token: object, says: str) -> None:
    """An access token that could not travel in a header is refused in one sentence that does not quote it."""
    problem = parse_token_response({"access_token": token}, strict=strict)
    assert isinstance(problem, str)
    assert problem.startswith("access_token ")
    assert says in problem
    assert "canary" not in problem


def test_access_token_missing() -> None:
    """A response without the member says so."""
    assert parse_token_response({}) == "access_token is missing"


@pytest.mark.parametrize("token", ["rt", "r t", '~!"\\', "x" * LONGEST_TOKEN])
def test_refresh_token_that_is_accepted(token: str) -> None:
    """A refresh token may hold any visible ASCII and blanks inside (RFC 6749 appendix A.17)."""
    tokens = parsed(refresh_token=token)
    assert isinstance(tokens, TokenSet)
    assert tokens.refresh_token == Secret(token)


@pytest.mark.parametrize("token", [5, "rt\n", " rt", "rt ", "r\tt", "ü", "x" * (LONGEST_TOKEN + 1), {}])
def test_refresh_token_that_is_refused(token: object) -> None:
    """A refresh token that cannot be meant so is refused."""
    assert str(parsed(refresh_token=token)).startswith("refresh_token ")


def test_no_refresh_token() -> None:
    """Null means none; an empty text means none from a provider and is a mistake from a host."""
    assert parsed(refresh_token=None) == parsed(refresh_token=None, strict=True) == parsed(refresh_token="") == parsed()
    assert parsed(refresh_token="", strict=True) == "refresh_token is empty"


@pytest.mark.parametrize(
    ("value", "lenient", "strict"),
    [
        (3600, 3600.0, 3600.0),
        (3599.5, 3599.5, 3599.5),
        (None, None, None),
        (0, None, 0.0),
        ("3600", 3600.0, "expires_in is not a number of seconds but str"),
        ("soon", None, "expires_in is not a number of seconds but str"),
        (-1, None, "expires_in is negative"),
        (-0.5, None, "expires_in is negative"),
        (1e18, None, "expires_in is too large to be seconds (are these milliseconds?)"),
        (10**400, None, "expires_in is too large to be seconds (are these milliseconds?)"),
        (True, None, "expires_in is not a number of seconds but bool"),
        (float("nan"), None, "expires_in is not a finite number"),
        (float("inf"), None, "expires_in is not a finite number"),
        ("inf", None, "expires_in is not a number of seconds but str"),
        ([3600], None, "expires_in is not a number of seconds but list"),
        ({}, None, "expires_in is not a number of seconds but dict"),
    ],
)
def test_expires_in(value: object, lenient: float | None, strict: float | str | None) -> None:
    """A lifetime that cannot be used is unknown from a provider, whose token counts, and a host's mistake."""
    from_provider = parsed(expires_in=value)
    assert isinstance(from_provider, TokenSet)
    assert from_provider.expires_in == lenient
    from_host = parsed(expires_in=value, strict=True)
    assert (from_host.expires_in if isinstance(from_host, TokenSet) else from_host) == strict


@pytest.mark.parametrize(
    ("value", "strict"),
    [
        (1_800_000_000, 1_800_000_000.0),
        (253_402_300_799, 253_402_300_799.0),
        (253_402_300_800, "expires_at is too large to be seconds (are these milliseconds?)"),
        (1_800_000_000_000, "expires_at is too large to be seconds (are these milliseconds?)"),
        (datetime(2027, 1, 1, tzinfo=UTC), "expires_at is not a number of seconds but datetime"),
        ("2027-01-01T00:00:00", "expires_at is not a number of seconds but str"),
    ],
)
def test_expires_at(value: object, strict: float | str) -> None:
    """A date is epoch seconds that a datetime can hold; a host that means something else is told so."""
    tokens = parsed(expires_at=value, strict=True)
    assert (tokens.expires_at if isinstance(tokens, TokenSet) else tokens) == strict
    assert isinstance(parsed(expires_at=value), TokenSet)


@pytest.mark.parametrize(
    ("members", "seconds"),
    [
        ({"refresh_token_expires_in": 10}, 10.0),
        ({"refresh_expires_in": "20"}, 20.0),
        ({"x_refresh_token_expires_in": 30}, 30.0),
        ({"refresh_expires_in": 0}, None),
        ({"refresh_token_expires_in": None, "refresh_expires_in": 40}, 40.0),
        ({"refresh_token_expires_in": -1}, None),
    ],
)
def test_refresh_lifetime(members: dict[str, Any], seconds: float | None) -> None:
    """The refresh token's lifetime has three names; Keycloak's 0 for *never* is an unknown end, from a host too."""
    for strict in (False, True):
        tokens = parsed(strict=strict, **members)
        assert isinstance(tokens, TokenSet)
        assert tokens.refresh_expires_in == seconds


@pytest.mark.parametrize(
    ("value", "separator", "scopes"),
    [
        ("a b", " ", ("a", "b")),
        ("a,b", ",", ("a", "b")),
        ("a,b c", ",", ("a", "b", "c")),
        ("b a b", " ", ("b", "a")),
        (["a", "b c"], " ", ("a", "b", "c")),
        ("", " ", ()),
        ([], " ", ()),
        (None, " ", None),
        (5, " ", None),
        (["a", 5], " ", None),
        ("a\x00b", " ", None),
        ("é", " ", None),
        ("x" * (LONGEST_TOKEN + 1), " ", None),
    ],
)
def test_scope(value: object, separator: str, scopes: tuple[str, ...] | None) -> None:
    """Scopes are read with the provider's separator; what cannot be a scope means: not said."""
    tokens = parsed(separator=separator, scope=value)
    assert isinstance(tokens, TokenSet)
    assert tokens.scopes == scopes
    if value is not None and scopes is None:
        assert parsed(strict=True, scope=value) == "scope is not a text of scope names in ASCII"


@pytest.mark.parametrize("value", [5, "x" * 65, "Bea\nrer", "ü"])
def test_token_type(value: object) -> None:
    """A token type that is no short text is ignored from a provider and a host's mistake."""
    tokens = parsed(token_type=value)
    assert isinstance(tokens, TokenSet)
    assert tokens.token_type is None
    assert str(parsed(strict=True, token_type=value)).startswith("token_type ")


def id_token(payload: object) -> str:
    """An unsigned id_token."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return f"e30.{base64.urlsafe_b64encode(raw).decode().rstrip('=')}.sig"


def account(token: object) -> str | None:
    """The account of a response with this id_token."""
    tokens = parsed(id_token=token)
    assert isinstance(tokens, TokenSet)
    return tokens.account


def test_account() -> None:
    """The account is a digest of issuer and subject: the same for both the same, and it shows neither."""
    ann = account(id_token({"iss": "https://as.example", "sub": "canary-ann", "nonce": "1"}))
    assert ann is not None
    assert len(ann) == 64
    assert "canary" not in ann
    assert ann == account(id_token({"sub": "canary-ann", "iss": "https://as.example"}))
    assert ann != account(id_token({"iss": "https://as.example", "sub": "canary-bob"}))
    assert ann != account(id_token({"iss": "https://as.examplec", "sub": "anary-ann"}))


@pytest.mark.parametrize(
    "token",
    [
        None,
        5,
        "",
        "a.b",
        "a.b.c.d",
        "a.ü.c",
        "a.!.c",
        id_token(b"\xff\xfe"),
        id_token(b"not json"),
        id_token(b"[" * 40_000),
        id_token([]),
        id_token({}),
        id_token({"iss": "x"}),
        id_token({"iss": "x", "sub": ""}),
        id_token({"iss": "x", "sub": 5}),
        "a." + "A" * 100_000 + ".c",
    ],
    ids=range(16),
)
def test_account_that_nobody_can_tell(token: object) -> None:
    """A malformed id_token says nothing about the account, and costs no token."""
    assert account(token) is None


def test_tokens_are_not_shown() -> None:
    """The repr of a token set shows fingerprints."""
    tokens = parse_token_response({"access_token": "canary-a", "refresh_token": "canary-r", "id_token": id_token({})})
    assert "canary" not in repr(tokens)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = st.sampled_from(
    [
        "access_token", "refresh_token", "expires_in", "expires_at", "refresh_expires_in", "refresh_token_expires_in",
        "scope", "token_type", "id_token", "error",
    ]
)  # fmt: skip


@given(st.dictionaries(MEMBERS, JSON), st.booleans())
def test_parsing_never_raises(response: dict[str, object], strict: bool) -> None:
    """Whatever JSON a provider or a host brings, the answer is a token set or a sentence."""
    assert isinstance(parse_token_response(response, strict=strict), TokenSet | str)


# --- answers ---------------------------------------------------------------------------------------------------------


def read(status: int, body: object, content_type: str = "application/json") -> TokenSet | Diagnosis:
    """A token endpoint's answer, read."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return read_token_answer(Answer(status, (("content-type", content_type),), raw), profile())


GOOD = {"access_token": "at", "expires_in": 60}


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (200, GOOD, "application/json"),
        (201, GOOD, "application/json;charset=UTF-8"),
        (200, GOOD, "text/html"),
        (200, b"\xef\xbb\xbf \n" + json.dumps(GOOD).encode(), "application/json"),
        (200, b'{"access_token": "old", "access_token": "at", "expires_in": 60}', "application/json"),
        (200, {**GOOD, "error": None}, "application/json"),
        (200, {**GOOD, "error": ""}, "application/json"),
        (200, b"access_token=at&expires_in=60", "application/x-www-form-urlencoded; charset=utf-8"),
        (200, b"access_token=at&expires_in=60", "text/plain"),
    ],
)
def test_answer_with_tokens(status: int, body: object, content_type: str) -> None:
    """A success is a 2xx with a good access token, in JSON or in a form as GitHub once sent it."""
    assert read(status, body, content_type) == TokenSet(access_token=Secret("at"), expires_in=60.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>maintenance</html>",
        b"{",
        b"[]",
        b'"at"',
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"access_token": "at", "expires_in": ' + b"9" * 5000 + b"}",
        b'{"access_token": "at", "x": "' + b"x" * 1_100_000 + b'"}',
        {},
        {"access_token": ""},
        {"access_token": None},
        {"access_token": "a b"},
        {"access_token": "at", "refresh_token": 5},
        None,
    ],
    ids=range(17),
)
def test_success_without_a_token_is_the_providers_fault(body: object) -> None:
    """A 200 that brings no usable token is nobody's turn: the grant stays as it was."""
    diagnosis = read(200, body)
    assert isinstance(diagnosis, Diagnosis)
    assert (diagnosis.verdict, diagnosis.turn, diagnosis.remedy) == (Verdict.PROVIDER_FAULT, Turn.NOBODY, Remedy.WAIT)
    assert diagnosis.message.startswith("The token endpoint answered 200 without a usable token: ")
    assert diagnosis.fix


@pytest.mark.parametrize("body", [b"&&&", b"access_token", b"\xff=1", b"access_token=at" + b"&a=1" * 200])
def test_form_that_is_none(body: bytes) -> None:
    """A form that cannot be read is no token."""
    diagnosis = read(200, body, "application/x-www-form-urlencoded")
    assert isinstance(diagnosis, Diagnosis)
    assert diagnosis.verdict is Verdict.PROVIDER_FAULT


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_no_token(status: int) -> None:
    """A redirect with a token in its body is not a success, and never the member's turn."""
    diagnosis = read(status, GOOD)
    assert isinstance(diagnosis, Diagnosis)
    assert diagnosis.turn is not Turn.MEMBER


def test_refusals_go_to_the_rules() -> None:
    """An error, with status 400 or hidden in a 200 beside a token, is what the rules say of it."""
    seen = []
    for status in (400, 200):
        diagnosis = read(status, {**GOOD, "error": "invalid_grant"})
        assert isinstance(diagnosis, Diagnosis)
        seen.append(diagnosis.verdict)
    assert Verdict.OK not in seen


@given(st.integers(100, 599), st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_reading_never_raises(status: int, body: bytes) -> None:
    """Whatever a token endpoint sends, reading it gives tokens or a diagnosis."""
    for content_type in ("application/json", "application/x-www-form-urlencoded"):
        answer = Answer(status, (("content-type", content_type),), body)
        assert isinstance(read_token_answer(answer, profile()), TokenSet | Diagnosis)
        read_introspection(answer)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, {"active": True}, "active"),
        (200, {"active": True, "status": "active"}, "active"),
        (200, {"status": "active"}, "active"),
        (200, {"active": False}, "inactive"),
        (200, {"active": False, "status": "expired"}, "expired"),
        (200, {"active": False, "status": "revoked"}, "revoked"),
        (200, {"active": False, "status": "odd"}, "inactive"),
        (200, {"active": "yes"}, None),
        (200, {"active": 1}, None),
        (200, {}, None),
        (200, b"oops", None),
        (200, None, None),
        (401, {"active": True}, None),
        (500, {"active": False}, None),
    ],
)
def test_introspection(status: int, body: object, says: str | None) -> None:
    """Introspection says active or not, and on LinkedIn expired or revoked; anything else says nothing."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    assert read_introspection(Answer(status, (), raw)) == says


def test_import_is_light() -> None:
    """Importing the module loads no HTTP client, no SQLAlchemy and, before a key signs, no joserfc."""
    program = (
        "import sys, tokenkeeper.core.token_endpoint\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:])))"
    )
    heavy = ["httpx", "httpx2", "httpcore2", "requests", "aiohttp", "sqlalchemy", "joserfc", "cryptography"]
    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what some providers want otherwise -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post", "none"])
def test_a_provider_may_want_json(method: str) -> None:
    """The same fields as members of an object; what comes more than once is an array; the secret stays where it belongs."""
    request = refresh(
        registration(token_parameters={"resource": ["a", "b"], "audience": "x"}),
        profile(token_request="json", client_authentication=method),
    )
    assert header(request, "content-type") == "application/json"
    expected: dict[str, object] = {"grant_type": "refresh_token", "refresh_token": REFRESH.reveal()}
    expected |= {"resource": ["a", "b"], "audience": "x"}
    if method != "client_secret_basic":
        expected["client_id"] = "id:1 ü"
    if method == "client_secret_post":
        expected["client_secret"] = SECRET.reveal()
    assert json.loads(request.body.reveal()) == expected
    assert REFRESH.reveal() not in repr(request)


def test_a_provider_may_call_the_client_id_otherwise() -> None:
    """TikTok: client_key, at the token endpoint and in the URL where the member signs in."""
    odd = profile(client_id_parameter="client_key", client_authentication="client_secret_post", scope_separator=",")
    assert dict(form(refresh(prof=odd))) == {
        "grant_type": "refresh_token",
        "refresh_token": REFRESH.reveal(),
        "client_key": "id:1 ü",
        "client_secret": SECRET.reveal(),
    }
    url = authorization_url(registration(), odd, state=Secret("s"), verifier=None, scopes=("a", "b")).reveal()
    asked = dict(parse_qsl(urlsplit(url).query))
    assert (asked["client_key"], asked["scope"], asked["state"]) == ("id:1 ü", "a,b", "s")
    assert "client_id" not in asked


def test_what_a_profile_sends_along_the_registration_may_say_otherwise() -> None:
    """Parameters of the profile come with each request; the registration's win, and None leaves one out."""
    odd = profile(
        token_parameters={"action": "requesttoken", "audience": "a"},
        authorization_parameters={"access_type": "offline", "prompt": "consent"},
    )
    mine = registration(
        token_parameters={"audience": "b"}, authorization_parameters={"prompt": None, "hd": "acme.example"}
    )
    sent = dict(form(refresh(mine, odd)))
    assert (sent["action"], sent["audience"]) == ("requesttoken", "b")
    code = code_request(mine, odd, Secret("c"), verifier=None, redirect_uri=None, secret=SECRET, now=NOW, jti="j")
    assert dict(form(code))["action"] == "requesttoken"
    url = authorization_url(mine, odd, state=Secret("s"), verifier=None, scopes=()).reveal()
    asked = dict(parse_qsl(urlsplit(url).query))
    assert (asked["access_type"], asked["hd"]) == ("offline", "acme.example")
    assert "prompt" not in asked


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"status": 0, "body": {"access_token": "a", "refresh_token": "r", "expires_in": 10800}}, "a"),
        ({"status": 0, "body": {"userid": "7"}}, Verdict.PROVIDER_FAULT),
        ({"status": 0, "body": []}, Verdict.PROVIDER_FAULT),
        ({"status": 0, "access_token": "a", "refresh_token": "r", "expires_in": 10800}, "a"),
        ({"error": "invalid_grant", "body": {"access_token": "a"}}, Verdict.GRANT_INVALID),
    ],
)
def test_tokens_may_stand_deeper(body: dict[str, Any], outcome: str | Verdict) -> None:
    """Withings puts them below ``body``; where they are not there, nobody's grant is condemned for it."""
    nested = profile(token_answer="body", rules=load_profile("generic").rules)
    found = read_token_answer(Answer(200, (), json.dumps(body).encode()), nested)
    if isinstance(found, TokenSet):
        assert found.access_token.reveal() == outcome
        assert (found.expires_in, found.refresh_token) == (10800, Secret("r"))
    else:
        assert found.verdict is outcome


@pytest.mark.parametrize("strict", [False, True])
def test_the_end_of_a_token_may_be_a_date(strict: bool) -> None:
    """Square says expires_at as ISO 8601, and no expires_in; a date without a zone, or far off, says no moment."""
    found = parse_token_response({"access_token": "a", "expires_at": "2027-01-15T08:00:00Z"}, strict=strict)
    assert isinstance(found, TokenSet)
    assert found.expires_at == NOW
    far = ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00")
    for text in ("2027-01-15T08:00:00", "Tomorrow", "2027-01-15", "T", *far):
        odd = parse_token_response({"access_token": "a", "expires_at": text}, strict=strict)
        if strict:
            assert odd == "expires_at is not a number of seconds but str"
        else:
            assert isinstance(odd, TokenSet)
            assert odd.expires_at is None
