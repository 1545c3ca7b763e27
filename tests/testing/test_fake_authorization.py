"""Sign-in, consent, codes, PKCE, and how a client proves who it is."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import RSAKey, import_key

from tokenkeeper.testing import FakeProvider, Request, Response
from tokenkeeper.testing.browser import walk

CALLBACK = "https://app.example/callback"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


def authorization_url(provider: FakeProvider, **more: str) -> str:
    """Where a client would send a member."""
    values = {
        "response_type": "code",
        "client_id": "client-1",
        "redirect_uri": CALLBACK,
        "scope": "openid profile email",
        "state": "s 1&",
    }
    return f"{provider.as_provider().authorization_endpoint}?{urlencode(values | more)}"


def answer_of(callback_url: str) -> dict[str, str]:
    """The parameters that came back."""
    return {name: values[0] for name, values in parse_qs(urlsplit(callback_url).query).items()}


def exchange(asker: Any, code: str, **more: str) -> Any:
    """Redeem a code."""
    return asker.token(grant_type="authorization_code", code=code, redirect_uri=CALLBACK, **more)


def test_a_member_signs_in_and_consents(make: Any) -> None:
    """The callback brings code, state and issuer, and the code a grant of that member and these scopes."""
    asker = make()
    callback = asker.provider.consent(authorization_url(asker.provider), "bob")
    assert callback.startswith(CALLBACK + "?")
    assert answer_of(callback) == {"code": "code-1", "state": "s 1&", "iss": "https://provider.test"}
    tokens = exchange(asker, "code-1").json()
    assert tokens["scope"] == "openid profile email"
    assert asker.api(tokens["access_token"]).json()["sub"] == "bob"
    assert asker.provider.log[0].kind == "code"


def test_the_pages_are_pages(make: Any) -> None:
    """Sign-in first, then what is asked for; what comes from the URL is escaped."""
    asker = make()
    url = authorization_url(asker.provider, scope="openid <b>", login_hint='"ann"')
    first = asker.provider.handle(Request("GET", url)).body.decode()
    assert "<title>Sign in</title>" in first
    assert 'value="&quot;ann&quot;"' in first
    fields = {"request": url.partition("?")[2], "member": "ann", "step": "sign-in"}
    second = asker.provider.handle(Request.form(url.partition("?")[0], fields)).body.decode()
    assert "Allow access?" in second
    assert "<b>" not in second


def test_a_member_may_tick_fewer_scopes(make: Any) -> None:
    """Only what was ticked and asked for is granted."""
    asker = make()
    asker.provider.consent(authorization_url(asker.provider), scopes=["email", "payments"])
    assert exchange(asker, "code-1").json()["scope"] == "email"


def test_a_provider_that_goes_on_asking_is_left() -> None:
    """The member without a browser does not fill in forms for ever."""
    page = Response(200, body=b'<form><button name="step" value="sign-in">Again</button></form>')
    with pytest.raises(ValueError, match="/authorize goes on asking"):
        walk(lambda _: page, "https://provider.test/authorize", member="ann", approve=True, scopes=None)


@pytest.mark.parametrize(("flavor", "error"), [("generic", "access_denied"), ("linkedin", "user_cancelled_authorize")])
def test_a_member_may_decline(make: Any, flavor: str, error: str) -> None:
    """The client hears it in the provider's words, with its state."""
    asker = make(flavor)
    answer = answer_of(asker.provider.consent(authorization_url(asker.provider), approve=False))
    assert (answer["error"], answer["state"]) == (error, "s 1&")


@pytest.mark.parametrize(
    ("more", "words"),
    [({"client_id": "stranger"}, "client is unknown"), ({"redirect_uri": "https://evil.example/"}, "not registered")],
)
def test_an_unknown_client_or_address_is_sent_nowhere(make: Any, more: dict[str, str], words: str) -> None:
    """The provider shows a page instead (RFC 6749 section 4.1.2.1)."""
    provider = make(redirect_uris=[CALLBACK]).provider
    with pytest.raises(ValueError, match=words):
        provider.consent(authorization_url(provider, **more))


def test_a_redirect_uri_may_have_a_query(make: Any) -> None:
    """The answer is added to it."""
    provider = make().provider
    callback = provider.consent(authorization_url(provider, redirect_uri=CALLBACK + "?a=b"))
    assert answer_of(callback)["a"] == "b"
    assert answer_of(callback)["code"] == "code-1"


def test_only_codes_are_given(make: Any) -> None:
    """Another response type is refused at the callback."""
    provider = make().provider
    answer = answer_of(provider.consent(authorization_url(provider, response_type="token")))
    assert answer["error"] == "unsupported_response_type"


@pytest.mark.parametrize(
    ("pkce", "asked", "sent", "status"),
    [
        ("optional", None, None, 200),
        ("optional", CHALLENGE, VERIFIER, 200),
        ("optional", CHALLENGE, "w" * 43, 400),
        ("optional", CHALLENGE, None, 400),
        ("optional", None, VERIFIER, 400),
        ("required", CHALLENGE, VERIFIER, 200),
        ("refused", None, None, 200),
        ("refused", None, VERIFIER, 400),
        ("refused", CHALLENGE, VERIFIER, 400),
        ("refused", CHALLENGE, None, 400),
    ],
)
def test_pkce(make: Any, pkce: str, asked: str | None, sent: str | None, status: int) -> None:
    """The verifier must match the challenge; neither may come alone; LinkedIn's web flow takes none."""
    asker = make(pkce=pkce)
    more = {"code_challenge": asked, "code_challenge_method": "S256"} if asked else {}
    code = answer_of(asker.provider.consent(authorization_url(asker.provider, **more)))["code"]
    assert exchange(asker, code, **({"code_verifier": sent} if sent else {})).status == status


@pytest.mark.parametrize("more", [{}, {"code_challenge": VERIFIER, "code_challenge_method": "plain"}])
def test_required_pkce_is_asked_for_at_once(make: Any, more: dict[str, str]) -> None:
    """Without a challenge, or with a plain one, the member is sent back."""
    provider = make(pkce="required").provider
    assert answer_of(provider.consent(authorization_url(provider, **more)))["error"] == "invalid_request"


def test_linkedin_refuses_a_verifier(make: Any) -> None:
    """With the sentence that it has for every bad code."""
    asker = make("linkedin")
    code = answer_of(asker.provider.consent(authorization_url(asker.provider)))["code"]
    refused = exchange(asker, code, code_verifier=VERIFIER).json()
    assert refused["error"] == "invalid_request"
    assert "appid/redirect uri/code verifier does not match" in refused["error_description"]
    assert exchange(asker, code).status == 200


def test_a_code_used_twice_ends_its_grant(make: Any) -> None:
    """RFC 6749 section 4.1.2."""
    asker = make()
    asker.provider.consent(authorization_url(asker.provider))
    assert exchange(asker, "code-1").status == 200
    assert exchange(asker, "code-1").json()["error"] == "invalid_grant"
    assert asker.api("access-1").status == 401
    assert [record.verdict for record in asker.provider.log] == ["ok", "reused", "revoked"]


def test_a_code_that_is_late_unknown_or_of_another_address(make: Any, clock: Any) -> None:
    """Each is refused; the log says which."""
    asker = make(code_lifetime=60)
    asker.provider.consent(authorization_url(asker.provider))
    assert asker.token(grant_type="authorization_code", code="code-1", redirect_uri="https://x/").status == 400
    clock.advance(60)
    assert exchange(asker, "code-1").status == 400
    assert exchange(asker, "code-9").status == 400
    assert [record.verdict for record in asker.provider.log] == ["redirect_uri", "expired", "invalid"]


def test_id_tokens_tell_who_it_is(make: Any) -> None:
    """Signed with the client secret, with the nonce of the request, at the exchange and at a refresh."""
    asker = make(id_tokens=True, client_secret="s" * 32)
    asker.provider.consent(authorization_url(asker.provider, nonce="n1"), "bob")
    tokens = exchange(asker, "code-1", client_secret="s" * 32).json()
    claims = jwt.decode(tokens["id_token"], import_key("s" * 32, "oct"), algorithms=["HS256"]).claims
    assert claims == {
        "iss": "https://provider.test", "sub": "bob", "aud": "client-1", "iat": 1_800_000_000, "exp": 1_800_003_600,
        "nonce": "n1",
    }  # fmt: skip
    assert "id_token" in asker.refresh(tokens["refresh_token"], client_secret="s" * 32).json()
    assert "id_token" not in asker.provider.issue(scopes="email")


def basic(name: str, secret: str) -> str:
    """An Authorization header, encoded by nobody but the caller."""
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


@pytest.mark.parametrize(
    ("accepted", "header", "fields", "status"),
    [
        ("client_secret_basic", basic("client-1", "secret-1"), {}, 200),
        ("client_secret_basic", basic("client-1", "wrong"), {}, 401),
        ("client_secret_basic", "Basic %%%", {}, 401),
        ("client_secret_basic", "Bearer " + base64.b64encode(b"client-1:secret-1").decode(), {}, 401),
        ("client_secret_basic", None, {"client_id": "client-1", "client_secret": "secret-1"}, 401),
        ("client_secret_post", None, {"client_id": "client-1", "client_secret": "secret-1"}, 200),
        ("client_secret_post", None, {"client_id": "client-2", "client_secret": "secret-1"}, 401),
        ("client_secret_post", basic("client-1", "secret-1"), {}, 401),
        ("client_secret_post", None, {"client_id": "client-1"}, 401),
        ("none", None, {"client_id": "client-1"}, 200),
        ("none", None, {"client_id": "client-2"}, 401),
        (
            {"client_secret_post", "client_secret_basic"},
            basic("client-1", "secret-1"),
            {"client_id": "client-1", "client_secret": "secret-1"},
            401,
        ),
    ],
)
def test_client_authentication(
    make: Any, accepted: Any, header: str | None, fields: dict[str, str], status: int
) -> None:
    """Exactly one accepted method, and the right secret; whoever tried with a header gets a challenge."""
    asker = make(client_authentication=accepted)
    asker.provider.issue()
    form = {"grant_type": "refresh_token", "refresh_token": "refresh-1"} | fields
    headers = {"authorization": header} if header else {}
    answer = asker.provider.handle(Request.form(asker.provider.base_url + "/token", form, headers))
    assert answer.status == status
    if status == 401:
        assert answer.json()["error"] == "invalid_client"
        assert (answer.header("www-authenticate") is not None) == bool(header)
        assert asker.provider.log[0].verdict == "client"


def test_basic_credentials_are_form_encoded_first(make: Any) -> None:
    """RFC 6749 section 2.3.1: as certified servers, this one reads a raw percent sign as the start of an escape."""
    odd = "a+b%25:/"
    asker = make(client_authentication="client_secret_basic", client_secret=odd)
    asker.provider.issue()
    form = {"grant_type": "refresh_token", "refresh_token": "refresh-1"}
    answers = [
        asker.provider.handle(Request.form("https://provider.test/token", form, {"Authorization": header})).status
        for header in (basic("client-1", odd), basic("client-1", quote(odd, safe="")))
    ]
    assert answers == [401, 200]


def test_linkedin_takes_the_secret_in_the_form_only(make: Any) -> None:
    """HTTP Basic is answered with invalid_client."""
    asker = make("linkedin")
    form = {"grant_type": "refresh_token", "refresh_token": "refresh-1"}
    header = {"Authorization": basic("client-1", "secret-1")}
    refused = asker.provider.handle(Request.form("https://provider.test/oauth/v2/accessToken", form, header))
    assert refused.json() == {"error": "invalid_client", "error_description": "Client authentication failed"}


def test_a_secret_is_rolled_over(make: Any) -> None:
    """Two are good for a while, then only the new one."""
    asker = make(client_secret=["secret-1", "secret-2"])
    asker.provider.issue()
    assert asker.refresh("refresh-1").status == 200
    assert asker.refresh("refresh-1", client_secret="secret-2").status == 200
    asker.provider.change_secret("secret-2")
    assert asker.refresh("refresh-1").status == 401


ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def assertion(key: Any, algorithm: str, **more: Any) -> str:
    """A client assertion (RFC 7523 section 3)."""
    claims = {
        "iss": "client-1", "sub": "client-1", "aud": "https://provider.test/token", "exp": 1_800_000_060, "jti": "1",
    }  # fmt: skip
    return jwt.encode({"alg": algorithm}, claims | more, key, algorithms=[algorithm])


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        (rsa.generate_private_key(65537, 2048), "RS256"),
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
    ],
)
def test_private_key_jwt(make: Any, private: Any, algorithm: str) -> None:
    """A fresh assertion by the client's key, for this endpoint, works once."""
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    asker = make(client_authentication="private_key_jwt", client_public_key=public)
    asker.provider.issue()
    kind = {"RS256": "RSA", "ES256": "EC", "Ed25519": "OKP"}[algorithm]
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    key = import_key(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), kind)

    def ask(token: str) -> int:
        form = {"grant_type": "refresh_token", "refresh_token": "refresh-1", "client_assertion": token}
        form["client_assertion_type"] = ASSERTION
        return asker.provider.handle(Request.form("https://provider.test/token", form)).status

    good = assertion(key, algorithm, aud=["https://provider.test"])
    assert ask(good) == 200
    assert ask(good) == 401
    bad = [{"aud": "https://elsewhere"}, {"exp": 1_800_000_000}, {"iss": "x"}, {"sub": "x"}, {"jti": None}]
    assert [ask(assertion(key, algorithm, jti=str(n)) if not b else assertion(key, algorithm, **({"jti": str(n)} | b)))
            for n, b in enumerate([{}, *bad], start=2)] == [200, 401, 401, 401, 401, 401]  # fmt: skip
    assert ask("nonsense") == 401
    assert ask(assertion(import_key("k" * 32, "oct"), "HS256", jti="9")) == 401


def test_private_key_jwt_takes_a_jwk_and_needs_a_key(make: Any) -> None:
    """A JWK does as well as a PEM; without a key nobody is let in."""
    key = RSAKey.generate_key(2048)
    jwk = json.loads(json.dumps(key.as_dict(private=False)))
    form = {"grant_type": "refresh_token", "refresh_token": "refresh-1", "client_assertion_type": ASSERTION}
    statuses = []
    for known in (jwk, None):
        asker = make(client_authentication="private_key_jwt", client_public_key=known)
        asker.provider.issue()
        more = {"client_assertion": assertion(key, "RS256")}
        statuses.append(asker.provider.handle(Request.form("https://provider.test/token", form | more)).status)
    assert statuses == [200, 401]


def test_as_provider_puts_every_endpoint_on_the_stand_in(make: Any) -> None:
    """Generic: as its knobs say. LinkedIn: its own paths, the profile of the catalogue, no revocation endpoint."""
    generic = make(rotation="grace", grace_seconds=20, pkce="refused", client_authentication="none").provider
    declared = generic.as_provider("http://127.0.0.1:9")
    assert (declared.name, declared.extends, declared.rotation, declared.grace_seconds) == ("fake", None, "grace", 20)
    assert (declared.pkce, declared.client_authentication) == ("none", "none")
    assert declared.token_endpoint == "http://127.0.0.1:9/token"
    assert declared.revocation_endpoint == "http://127.0.0.1:9/revoke"
    linkedin = make("linkedin").provider.as_provider(revocation="access_token")
    assert (linkedin.name, linkedin.extends, linkedin.rotation) == ("linkedin", "linkedin", None)
    assert linkedin.token_endpoint == "https://provider.test/oauth/v2/accessToken"
    assert linkedin.revocation_endpoint is None
    assert linkedin.revocation == "access_token"


def test_registration_is_of_the_providers_client(make: Any) -> None:
    """Name, scopes and the rest are the host's to change."""
    registration = make("linkedin").provider.registration("work", scopes=["openid"], redirect_uri=CALLBACK)
    assert (registration.name, registration.client_id, registration.scopes) == ("work", "client-1", ("openid",))
    assert registration.client_secret[0].reveal() == "secret-1"
    assert registration.provider.extends == "linkedin"
    assert make(client_authentication="none").provider.registration().client_secret == ()
