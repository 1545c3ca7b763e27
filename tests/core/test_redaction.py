"""What may be shown of foreign text, and the incident record made of it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenkeeper.core.incident import incident_record
from tokenkeeper.core.redaction import MASK, looks_secret, redact_body, redact_headers, redact_url, safe_text
from tokenkeeper.model import Answer, Secret

OPAQUE = "AQXdSP_W41UPs5ioT_t8HESyODB4FqbkJ8LrV"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "text",
    [
        f"Access token expired: {JWT}. Visit the docs",
        f"Refresh token invalid: {OPAQUE}.",
        f"Authorization: Bearer {OPAQUE[:12]}",
        f"Refresh token invalid: {OPAQUE[:5]}0123456. Visit the docs",
        f"bearer {OPAQUE[:6]}x",
        f"access_token={OPAQUE[:5]}x&state=1",
        f'{{"refresh_token": "{OPAQUE[:5]}x"}}',
        f"client_secret='{OPAQUE[:5]}x'",
        f"https://x.example/cb?code={OPAQUE[:5]}x&state=y",
        f"Basic {OPAQUE[:9]}",
        f"The token ({OPAQUE[:5]}0123456) is not known",
        f"the access_token '{OPAQUE[:5]}0123456' has expired",
        f"made-up-words-{OPAQUE[:5]}-0123456789-{OPAQUE[5:]}",
        f"00Dx0000000BV7z!{OPAQUE[:5]}_sTZzBjfmOE6zMHq6y8PIW",
        "ya29." + OPAQUE,
        "dGVzdC90b2tlbisvYWJjZGVmZ2hpamtsbW5vcDEyMzQ1Njc4OTA=",
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str) -> None:
    """Tokens that a provider quotes do not come through, in whatever form it quotes them."""
    shown = safe_text(text)
    assert MASK in shown
    assert OPAQUE[:5] not in shown
    assert "eyJ" not in shown
    assert "dGVz" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "The token used in the request has been revoked by the user",
        "Only valid bearer authentication supported",
        'Bearer realm="api", error="invalid_token"',
        "Resource level throttle APPLICATION_AND_MEMBER DAY limit for calls to this resource is reached.",
        "CompactToken validation failed with reason code: 80049228.",
        "https://developers.google.com/identity/sign-in/web/devconsole-project",
        "urn:li:organization:123456",
        "84d8914a-9981-44b1-92ba-00c059f330c9",
        "Not enough permissions to access: userinfo.GET.NO_VERSION",
        "The grant was issued on '2017-11-26T09:16:07.5290000Z'",
        "Empty oauth2 access token",  # LinkedIn
        "Invalid OAuth client credentials",  # Bitbucket
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other",  # Google
        "OAuth 1.0a User Context is forbidden. Supported types are [OAuth 2.0 User Context].",  # X
        "Authorization server requires nonce in DPoP proof",
        "Basic authentication with passwords is deprecated",
        'Invalid authorization value in HTTP header "Authorization": "Bearer".',  # Dropbox
        'Expecting "Bearer YOUR_SECRET_KEY".',
        "https://developer.github.com/changes/2020-02-10-deprecating-auth-through-query-param",
        "https://docs.github.com/v3/#oauth2-token-sent-in-a-header",
        "ErrorInsufficientPermissionsInAccessToken",  # Microsoft
    ],
)
def test_ordinary_sentences_stay(text: str) -> None:
    """What helps a developer is not masked."""
    assert safe_text(text) == text
    assert not looks_secret(text)


def test_known_secrets_are_masked_however_short() -> None:
    """A given secret is masked wherever it stands, also inside a word, also as a Secret; an empty one masks nothing."""
    assert (
        safe_text("a-s3cret-b and t0k", secrets=[Secret("s3cret"), "t0k", "", Secret("")]) == f"a-{MASK}-b and {MASK}"
    )


def test_control_characters_cannot_forge_a_line() -> None:
    """Control, format and surrogate characters are escaped: no second log line, no colours, no reversed text."""
    shown = safe_text("a\r\nb\x1b[31mc\u202ed\u2028e\x00f\ud800g\x85h")
    assert shown == "a\\r\\nb\\x1b[31mc\\u202ed\\u2028e\\x00f\\ud800g\\x85h"
    shown.encode()


def test_text_is_capped() -> None:
    """The limit holds after escaping, and says that something was cut."""
    assert safe_text("x y " * 100, 10) == "x y x y x…"
    assert len(safe_text("\x00" * 100, 20)) == 20
    assert safe_text("abc", 3) == "abc"
    assert safe_text("abc", 0) == "…"


def test_a_token_cut_by_the_cap_is_not_shown_in_part() -> None:
    """A token that crosses the window that is looked at is dropped as a whole."""
    for padding in range(0, 600, 7):
        shown = safe_text("x" * padding + " " + JWT[:4] + "A1" * 2000, 200)
        assert "A1A1" not in shown


def test_redact_headers() -> None:
    """Credentials leave only their scheme; ids that support asks for stay; other values lose what looks secret."""
    shown = redact_headers(
        [
            ("Authorization", f"Bearer {OPAQUE}"),
            ("Proxy-Authorization", "opaque"),
            ("Cookie", "a=b"),
            ("Set-Cookie", "li_at=x; Path=/"),
            ("X-Shopify-Access-Token", "shpat"),
            ("X-Api-Key", "k"),
            ("DPoP", JWT),
            ("x-li-uuid", "AAX1z0b6jQ8Ck1rRk0pWkw+AAX1z0b6jQ8Ck1rRk0pWkw=="),
            ("x-li-request-id", "XVUUTB1XJK0123456789XVUU"),
            ("Location", "https://u:p@x.example/cb?code=abc&page=2#f"),
            ("X-Other", f"see {OPAQUE}\r\nforged: 1"),
        ]
    )
    assert shown == [
        ("Authorization", f"Bearer {MASK}"),
        ("Proxy-Authorization", MASK),
        ("Cookie", MASK),
        ("Set-Cookie", MASK),
        ("X-Shopify-Access-Token", MASK),
        ("X-Api-Key", MASK),
        ("DPoP", MASK),
        ("x-li-uuid", "AAX1z0b6jQ8Ck1rRk0pWkw+AAX1z0b6jQ8Ck1rRk0pWkw=="),
        ("x-li-request-id", "XVUUTB1XJK0123456789XVUU"),
        ("Location", f"https://x.example/cb?code={MASK}&page=2#{MASK}"),
        ("X-Other", f"see {MASK}\\r\\nforged: 1"),
    ]
    assert len(redact_headers([("a", "b")] * 500)) == 100
    assert redact_headers([("x-request-id", "s3cret"), ("x-li-uuid", JWT)], ["s3cret"]) == [
        ("x-request-id", MASK),
        ("x-li-uuid", MASK),
    ]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.linkedin.com/v2/me?fields=id", "https://api.linkedin.com/v2/me?fields=id"),
        (
            "https://api.linkedin.com:8443/v1?oauth2_access_token=a1",
            f"https://api.linkedin.com:8443/v1?oauth2_access_token={MASK}",
        ),
        ("https://ann:pw@[::1]:80/x#access_token=y", f"https://[::1]:80/x#{MASK}"),
        (f"https://x.example/{OPAQUE}/y", f"https://x.example/{MASK}/y"),
        ("https://x.example/?a=1&key=2&code=&state=3", f"https://x.example/?a=1&key={MASK}&code=&state={MASK}"),
        (
            "https://api.linkedin.com/rest/adAccounts/512345678/adCampaigns?q=search",
            "https://api.linkedin.com/rest/adAccounts/512345678/adCampaigns?q=search",
        ),
        ("/relative?client_secret=1", f"/relative?client_secret={MASK}"),
        ("http://[broken", "http://[broken"),
        ("http://x:port/", "http://x:port/"),
        ("", ""),
    ],
)
def test_redact_url(url: str, shown: str) -> None:
    """User information, fragment and secret query values go, the rest stays."""
    assert redact_url(url) == shown


def test_redact_body_keeps_json_json() -> None:
    """Secret members are masked at any depth, others stay; what is not JSON is text; what was not readable is None."""
    body = json.dumps(
        {"access_token": "a", "error": {"token": "b", "message": f"no {JWT}"}, "n": [1, None, {"password": "c"}]}
    )
    assert json.loads(redact_body(body.encode()) or "") == {
        "access_token": MASK,
        "error": {"token": MASK, "message": f"no {MASK}"},
        "n": [1, None, {"password": MASK}],
    }
    assert redact_body(b"<html>s3cret</html>", ["s3cret"]) == f"<html>{MASK}</html>"
    assert redact_body(None) is None
    assert redact_body(b"") == ""
    assert redact_body("text") == "text"
    assert len(redact_body(b"x " * 100_000) or "") == 4096
    assert redact_body(b"[" * 60_000) == "…"
    deep = redact_body(b'{"a":' * 30 + b'"x"' + b"}" * 30) or ""
    assert json.loads(deep)
    assert '"x"' not in deep


def test_the_incident_record_has_what_linkedins_support_asks_for() -> None:
    """Method, URL, request and response headers, status, body and client id: JSON, and without the token."""
    record = incident_record(
        Answer(
            500,
            (("x-li-uuid", "AAX1"), ("x-li-fabric", "prod-lor1"), ("x-li-request-id", "XV")),
            b'{"message":"at-1 x"}',
        ),
        method="GET",
        url="https://api.linkedin.com/v2/me?oauth2_access_token=at-1",
        request_headers=[("Authorization", "Bearer at-1"), ("LinkedIn-Version", "202610")],
        client_id="client-1",
        at=datetime(2026, 11, 22, 12, tzinfo=UTC),
        secrets=[Secret("at-1")],
    )
    assert record == {
        "at": "2026-11-22T12:00:00+00:00",
        "client_id": "client-1",
        "method": "GET",
        "url": f"https://api.linkedin.com/v2/me?oauth2_access_token={MASK}",
        "request_headers": [["Authorization", f"Bearer {MASK}"], ["LinkedIn-Version", "202610"]],
        "status": 500,
        "response_headers": [["x-li-uuid", "AAX1"], ["x-li-fabric", "prod-lor1"], ["x-li-request-id", "XV"]],
        "body": f'{{"message": "{MASK} x"}}',
    }
    assert json.loads(json.dumps(record)) == record


def test_an_incident_of_which_little_is_known() -> None:
    """What is not known is None; an unreadable body is None, not empty."""
    record = incident_record(Answer(504))
    assert (record["status"], record["url"], record["method"], record["body"], record["at"]) == (
        504,
        None,
        None,
        None,
        None,
    )
    assert record["request_headers"] == record["response_headers"] == []


CANARY = "cAnArY-0f-the-Tests-1234567890"
AROUND = st.text(max_size=30)


@settings(max_examples=300, deadline=None)
@given(AROUND, AROUND, st.integers(0, 300))
def test_a_known_secret_never_shows(before: str, after: str, limit: int) -> None:
    """Whatever stands around it, a given secret is in no text, URL, header or body; and nothing raises."""
    text = f"{before}{CANARY}{after}"
    record = incident_record(
        Answer(500, ((text, text), ("location", text)), text.encode("utf-8", "surrogatepass")),
        method=text,
        url=text,
        request_headers=[(text, text)],
        client_id=text,
        secrets=[CANARY],
    )
    shown = json.dumps(record) + safe_text(text, limit, [CANARY]) + redact_url(f"https://x.example/?{text}", [CANARY])
    assert CANARY not in shown
    assert safe_text(text, limit).isprintable()
    assert len(safe_text(text, limit)) <= max(limit, 1)


def test_redaction_is_quick_on_hostile_text() -> None:
    """No pattern is slow on long runs of almost matching text."""
    began = time.perf_counter()
    for text in (
        "a_" * 50_000,
        "token" * 20_000,
        "Bearer " * 20_000,
        "eyJ" * 30_000,
        "access_token=" * 10_000,
        "-" * 100_000,
    ):
        safe_text(text, 4_000)
        redact_body(text)
        redact_url("https://x.example/?" + text)
        redact_headers([("x", text), ("x-request-id", text)])
    assert time.perf_counter() - began < 5
