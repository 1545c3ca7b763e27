"""What the API and the token endpoint say: of real tokens, and by script."""

from __future__ import annotations

from typing import Any

import pytest

from tokenkeeper.providers import diagnose
from tokenkeeper.testing import Request
from tokenkeeper.testing.dialects import API_ANSWERS, TOKEN_ANSWERS

STATUS = {
    "scope": 403, "account_blocked": 401, "rate_limited": 429, "infrastructure_protection": 429, "bad_request": 400,
    "not_found": 404, "method_not_allowed": 405, "length_required": 411, "version_missing": 400, "version_retired": 426,
    "server_error": 500, "downstream_token_check": 500, "gateway_timeout": 504, "bad_gateway": 502,
}  # fmt: skip
TOKEN_STATUS = {
    "client": 401, "temporarily_unavailable": 503, "rate_limited": 429, "server_error": 500, "gateway_timeout": 504,
    "bad_gateway": 502, "garbage": 200, "no_token": 200, "array": 200,
}  # fmt: skip


def test_a_valid_token_is_answered(make: Any) -> None:
    """Any path of the API answers with the path and whose token it was; userinfo with the subject."""
    asker = make()
    asker.provider.issue("bob", "openid email")
    assert asker.api("access-1", "/api/things").json() == {
        "path": "/api/things",
        "member": "bob",
        "scopes": ["openid", "email"],
    }
    assert asker.api("access-1", "/userinfo").json()["sub"] == "bob"
    assert asker.provider.api_calls == 2


def test_an_api_path_may_be_called_token(make: Any) -> None:
    """Below /api, /v2 and /rest there is only the API."""
    asker = make()
    asker.provider.issue()
    assert asker.api("access-1", "/api/token").status == 200
    assert asker.provider.token_requests == 0


@pytest.mark.parametrize(
    ("undo", "verdict", "words"),
    [
        (lambda provider: provider.expire("access-1"), "expired", "The access token expired"),
        (lambda provider: provider.revoke("ann"), "revoked", "The access token was revoked"),
        (lambda provider: provider.revoke_access_token("ann"), "revoked", "The access token was revoked"),
        (lambda provider: provider.forget_access_token(), "invalid", "The access token is invalid"),
    ],
)
def test_dead_access_tokens_are_told_apart(make: Any, undo: Any, verdict: str, words: str) -> None:
    """The generic provider says why, in the challenge and in the body."""
    asker = make()
    asker.provider.issue()
    undo(asker.provider)
    answer = asker.api("access-1")
    assert answer.status == 401
    assert answer.json() == {"error": "invalid_token", "error_description": words}
    assert (
        answer.header("www-authenticate") == f'Bearer realm="fake", error="invalid_token", error_description="{words}"'
    )
    assert asker.provider.log[0].verdict == verdict


def test_an_opaque_provider_tells_nothing_apart(make: Any) -> None:
    """Expired, revoked and unknown get the same answer; the log knows."""
    asker = make(opaque=True)
    asker.provider.issue()
    asker.provider.issue()
    asker.provider.expire("access-1")
    asker.provider.revoke_access_token("access-2")
    answers = {asker.api(token).body for token in ("access-1", "access-2", "nonsense")}
    assert len(answers) == 1
    assert [record.verdict for record in asker.provider.log] == ["expired", "revoked", "invalid"]
    asker.provider.revoke()
    assert len({asker.refresh(token).body for token in ("refresh-1", "nonsense")}) == 1


def test_linkedin_may_be_opaque_too(make: Any) -> None:
    """Then it says INVALID_ACCESS_TOKEN of a revoked one."""
    asker = make("linkedin", opaque=True)
    asker.provider.issue()
    asker.provider.revoke()
    assert asker.api("access-1").json()["code"] == "INVALID_ACCESS_TOKEN"


def test_time_expires_a_token(make: Any, clock: Any) -> None:
    """At its very end it is over."""
    asker = make(access_lifetime=60)
    asker.provider.issue()
    clock.advance(59.9)
    assert asker.api("access-1").status == 200
    clock.advance(0.1)
    assert asker.api("access-1").status == 401


@pytest.mark.parametrize(
    ("header", "verdict"),
    [(None, "empty"), ("", "empty"), ("Bearer ", "empty"), ("Basic eDp5", "bad_scheme"), ("access-1", "bad_scheme")],
)
@pytest.mark.parametrize("flavor", ["generic", "linkedin"])
def test_headers_without_a_bearer_token(make: Any, flavor: str, header: str | None, verdict: str) -> None:
    """A missing or empty header and a foreign scheme are told apart."""
    asker = make(flavor)
    asker.provider.issue()
    headers = () if header is None else (("authorization", header),)
    answer = asker.provider.handle(Request("GET", asker.provider.base_url + "/v2/me", headers))
    assert answer.status == (400 if (flavor, verdict) == ("generic", "bad_scheme") else 401)
    assert asker.provider.log[0].verdict == verdict


def test_a_path_may_want_a_scope(make: Any) -> None:
    """Without it: 403, and the challenge names it."""
    asker = make(required_scopes={"/api/mail": "email"})
    asker.provider.issue(scopes="openid")
    asker.provider.issue(scopes="openid email")
    assert asker.api("access-1", "/api/mail").status == 403
    assert 'scope="email"' in asker.api("access-1", "/api/mail").header("www-authenticate")
    assert asker.api("access-2", "/api/mail").status == 200
    assert asker.api("access-1", "/api/other").status == 200


@pytest.mark.parametrize(
    ("bodies", "expected"),
    [
        ("versioned", {"status": 401, "serviceErrorCode": 65602, "code": "EXPIRED_ACCESS_TOKEN",
                       "message": "The token used in the request has expired"}),
        ("service", {"serviceErrorCode": 65602, "message": "The token used in the request has expired", "status": 401}),
        ("v1", {"errorCode": 0, "message": "The token used in the request is expired.", "requestId": "FAKE000001",
                "status": 401, "timestamp": 1_800_000_000_000}),
    ],
)  # fmt: skip
def test_linkedin_speaks_in_three_generations(make: Any, bodies: str, expected: dict[str, Any]) -> None:
    """The same refusal in each, and always the headers that LinkedIn's support asks for."""
    asker = make("linkedin", bodies=bodies)
    asker.provider.issue()
    asker.provider.expire()
    answer = asker.api("access-1")
    assert answer.json() == expected
    assert answer.header("x-li-request-id") == "FAKE000001"
    assert answer.header("x-li-uuid")
    assert answer.header("x-li-fabric") == "prod-fake1"
    assert answer.header("www-authenticate") is None


LINKEDIN_CODES = {
    "expired": "EXPIRED_ACCESS_TOKEN", "revoked": "REVOKED_ACCESS_TOKEN", "invalid": "INVALID_ACCESS_TOKEN",
    "empty": "EMPTY_ACCESS_TOKEN", "account_blocked": "RESTRICTED_MEMBER", "scope": "ACCESS_DENIED",
    "rate_limited": "TOO_MANY_REQUESTS", "version_missing": "VERSION_MISSING", "version_retired": "NONEXISTENT_VERSION",
}  # fmt: skip


@pytest.mark.parametrize("name", API_ANSWERS)
@pytest.mark.parametrize("bodies", ["versioned", "service", "v1", "generic"])
def test_every_scripted_answer_of_the_api(make: Any, name: str, bodies: str) -> None:
    """Each comes once, with its status; then the real answer is back."""
    asker = make() if bodies == "generic" else make("linkedin", bodies=bodies)
    asker.provider.issue()
    if name == "step_up" and bodies != "generic":
        with pytest.raises(ValueError, match="no answer called 'step_up'"):
            asker.provider.script(name)
        return
    asker.provider.script(name)
    answer = asker.api("access-1")
    generic = {"bad_scheme": 400, "account_blocked": 403} if bodies == "generic" else {}
    assert answer.status == generic.get(name, STATUS.get(name, 401))
    if name != "bad_gateway":
        assert isinstance(answer.json(), dict)
    if bodies == "versioned" and name in LINKEDIN_CODES:
        assert answer.json()["code"] == LINKEDIN_CODES[name]
    assert asker.provider.log[0].verdict == name
    assert asker.api("access-1").status == 200


@pytest.mark.parametrize("name", TOKEN_ANSWERS)
@pytest.mark.parametrize("flavor", ["generic", "linkedin"])
def test_every_scripted_answer_of_the_token_endpoint(make: Any, name: str, flavor: str) -> None:
    """Each comes once, with its status, and spends no refresh token."""
    asker = make(flavor, rotation="strict")
    asker.provider.issue()
    asker.provider.script(name, "token")
    assert asker.refresh("refresh-1").status == TOKEN_STATUS.get(name, 400)
    assert asker.refresh("refresh-1").status == 200
    assert asker.provider.reuses == 0
    assert asker.provider.token_requests == 2


VERDICTS = {
    "scope": "insufficient_scope", "infrastructure_protection": "rate_limited", "bad_request": "not_token",
    "not_found": "not_token", "method_not_allowed": "not_token", "length_required": "not_token",
    "version_missing": "client_config", "version_retired": "client_config", "server_error": "provider_fault",
    "downstream_token_check": "provider_fault", "gateway_timeout": "provider_fault", "bad_gateway": "provider_fault",
}  # fmt: skip
TOKEN_VERDICTS = {
    "expired": "grant_expired", "revoked": "grant_revoked", "invalid": "grant_invalid", "reused": "grant_reused",
    "client": "client_config", "missing_refresh_token": "client_config", "scope": "client_config",
    "unauthorized_client": "client_config", "temporarily_unavailable": "provider_fault",
    "server_error": "provider_fault", "gateway_timeout": "provider_fault", "bad_gateway": "provider_fault",
    "garbage": "provider_fault", "no_token": "provider_fault", "array": "provider_fault",
}  # fmt: skip


@pytest.mark.parametrize(("surface", "name"), [("api", n) for n in API_ANSWERS] + [("token", n) for n in TOKEN_ANSWERS])
@pytest.mark.parametrize("bodies", ["versioned", "service", "v1", "generic"])
def test_a_scripted_answer_means_what_it_is_called(make: Any, surface: str, name: str, bodies: str) -> None:
    """Our own diagnosis reads each answer as its name says; LinkedIn's one sentence says only *invalid*."""
    flavor = "generic" if bodies == "generic" else "linkedin"
    asker = make(flavor) if flavor == "generic" else make(flavor, bodies=bodies)
    asker.provider.issue()
    expected = (VERDICTS if surface == "api" else TOKEN_VERDICTS).get(name, name)
    if flavor == "linkedin" and expected in {"grant_expired", "grant_revoked", "grant_reused"}:
        expected = "grant_invalid"
    elif flavor == "linkedin" and name == "step_up":
        name = expected = "invalid"
    elif flavor == "generic" and name.startswith("version_"):
        expected = "not_token"
    asker.provider.script(name, surface)
    answer = asker.api("access-1") if surface == "api" else asker.refresh("refresh-1")
    assert diagnose(answer.status, answer.headers, answer.body, provider=flavor, surface=surface).verdict == expected


def test_linkedin_has_one_sentence_for_a_dead_refresh_token(make: Any) -> None:
    """Expired, revoked and invalid sound the same; only introspection tells them apart."""
    asker = make("linkedin")
    for _ in range(3):
        asker.provider.issue()
    asker.provider.expire_refresh_token("refresh-1")
    asker.post("/revoke", token="refresh-2")
    tokens = ("refresh-1", "refresh-2", "nonsense")
    assert {asker.refresh(token).json()["error_description"] for token in tokens} == {
        "The provided authorization grant or refresh token is invalid, expired or revoked"
    }
    found = [asker.post("/oauth/v2/introspectToken", token=token).json() for token in (*tokens, "refresh-3")]
    assert [answer.get("status") for answer in found] == ["expired", "revoked", None, "active"]
    assert [answer["active"] for answer in found] == [False, False, False, True]


def test_linkedin_separates_scopes_with_commas(make: Any) -> None:
    """In token answers and at introspection, though it wants spaces when asked."""
    asker = make("linkedin")
    assert asker.provider.issue(scopes="openid profile")["scope"] == "openid,profile"
    found = asker.post("/oauth/v2/introspectToken", token="access-1").json()
    assert found == {
        "active": True, "client_id": "client-1", "authorized_at": 1_800_000_000, "created_at": 1_800_000_000,
        "status": "active", "expires_at": 1_800_000_000 + 60 * 86_400, "scope": "openid,profile", "auth_type": "3L",
    }  # fmt: skip


def test_introspection_by_the_rfc(make: Any) -> None:
    """An active token is described, any other is just not active (RFC 7662 section 2.2)."""
    asker = make()
    asker.provider.issue("bob", "openid", expires_in=60)
    assert asker.post("/introspect", token="access-1").json() == {
        "active": True, "scope": "openid", "client_id": "client-1", "sub": "bob", "iat": 1_800_000_000,
        "exp": 1_800_000_060,
    }  # fmt: skip
    assert asker.post("/introspect", token="refresh-1").json()["active"] is True
    asker.provider.revoke("bob")
    assert asker.post("/introspect", token="access-1").json() == {"active": False}
    assert asker.post("/introspect", token="access-1", client_secret="wrong").status == 401
    assert asker.provider.introspections == 4


def test_revocation_by_the_rfc(make: Any) -> None:
    """An access token goes alone, a refresh token takes its family, an unknown one is no error (RFC 7009)."""
    asker = make()
    asker.provider.issue()
    assert asker.post("/revoke", token="access-1").status == 200
    assert asker.api("access-1").status == 401
    assert asker.refresh("refresh-1").status == 200
    assert asker.post("/revoke", token="refresh-1").status == 200
    assert asker.api("access-2").status == 401
    assert asker.post("/revoke", token="nonsense").status == 200
    assert asker.post("/revoke", token="refresh-1", client_secret="wrong").status == 401
    assert asker.provider.revocations == 4


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"grant_type": "refresh_token"}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({}, "invalid_request"),
    ],
)
def test_malformed_token_requests(make: Any, fields: dict[str, str], error: str) -> None:
    """Each is refused in the words of RFC 6749 section 5.2."""
    answer = make().token(**fields)
    assert (answer.status, answer.json()["error"]) == (400, error)


def test_the_token_endpoint_takes_posts_of_forms(make: Any) -> None:
    """A GET is not allowed, and JSON is no form."""
    asker = make()
    url = asker.provider.base_url + "/token"
    assert asker.provider.handle(Request("GET", url)).status == 405
    json = Request("POST", url, (("content-type", "application/json"),), b'{"grant_type":"refresh_token"}')
    assert asker.provider.handle(json).status == 401


def test_an_answer_word_by_word(make: Any) -> None:
    """Status, headers and body are the test's own; a dict becomes JSON, and the next answers are real again."""
    asker = make("linkedin")
    asker.provider.issue()
    asker.provider.refuse_next("api", status=418, headers={"Retry-After": "7"}, body="short and stout", times=2)
    asker.provider.refuse_next("token", status=400, body={"error": "invalid_grant"})
    assert asker.api("access-1").body == b"short and stout"
    assert asker.api("access-1").header("retry-after") == "7"
    assert asker.api("access-1").status == 200
    assert asker.refresh("refresh-1").json() == {"error": "invalid_grant"}


def test_a_script_may_be_about_one_member(make: Any) -> None:
    """Others are not touched, and it waits for its member."""
    asker = make()
    asker.provider.issue("ann")
    asker.provider.issue("bob")
    asker.provider.script("revoked", member="bob")
    assert [asker.api(token).status for token in ("access-1", "access-2", "access-2")] == [200, 401, 200]


def test_an_answer_may_be_replaced_after_the_work_is_done(make: Any) -> None:
    """The refresh token is spent, and the client sees a 502."""
    asker = make(rotation="strict")
    asker.provider.issue()
    asker.provider.script("bad_gateway", "token", processed=True, headers={"content-type": "text/plain"})
    answer = asker.refresh("refresh-1")
    assert (answer.status, answer.header("content-type")) == (502, "text/plain")
    assert asker.refresh("refresh-1").status == 400
    assert asker.provider.reuses == 1


def test_scripts_can_be_cleared(make: Any) -> None:
    """What was still to come does not come."""
    asker = make()
    asker.provider.issue()
    asker.provider.script("revoked", times=5)
    asker.provider.clear_script()
    assert asker.api("access-1").status == 200


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.script("nonsense"), "api has no answer called 'nonsense'"),
        (lambda p: p.script("garbage"), "api has no answer called 'garbage'"),
        (lambda p: p.script("expired", "somewhere"), "surface is"),
        (lambda p: p.refuse_next("authorization", status=400), "surface is"),
        (lambda p: p.script("expired", times=0), "at least 1"),
        (lambda p: p.hold(at="somewhere"), "'arrival' or 'answer'"),
    ],
)
def test_a_wrong_script_is_refused_where_it_is_written(make: Any, call: Any, words: str) -> None:
    """Not at the request that it would have met."""
    with pytest.raises(ValueError, match=words):
        call(make().provider)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"flavor": "myspace"}, "generic"),
        ({"flavor": "linkedin", "bodies": "v9"}, "versioned"),
        ({"rotation": "sometimes"}, "Rotation"),
        ({"client_authentication": "password"}, "known:"),
    ],
)
def test_a_wrong_knob_is_refused(make: Any, knobs: dict[str, Any], words: str) -> None:
    """With what it may be."""
    with pytest.raises(ValueError, match=words):
        make(**knobs)


def test_an_unknown_member_or_token_is_an_error(make: Any) -> None:
    """A test that revokes nobody is a mistake."""
    provider = make().provider
    with pytest.raises(LookupError, match="has issued nothing"):
        provider.expire()
    provider.issue("ann")
    with pytest.raises(LookupError, match="no such member or token"):
        provider.revoke("bob")


def test_the_log_knows_every_presentation(make: Any) -> None:
    """Time, surface, kind, token, verdict, member, status; counters can start anew, numbers of tokens go on."""
    asker = make()
    asker.provider.issue("bob")
    asker.api("access-1")
    asker.refresh("refresh-1")
    asker.provider.script("drop", "token")
    asker.refresh("refresh-1")
    shown = [(r.surface, r.kind, r.token, r.verdict, r.member, r.status, r.delivered) for r in asker.provider.log]
    assert shown == [
        ("api", "access", "access-1", "ok", "bob", 200, True),
        ("token", "refresh", "refresh-1", "ok", "bob", 200, True),
        ("token", "refresh", "refresh-1", "drop", "bob", 503, False),
    ]
    assert [record.accepted for record in asker.provider.log] == [True, True, False]
    assert {record.time for record in asker.provider.log} == {1_800_000_000.0}
    assert asker.provider.requests[-1].fields["refresh_token"] == "refresh-1"
    assert (asker.provider.api_calls, asker.provider.token_requests) == (1, 2)
    asker.provider.reset_counters()
    assert (asker.provider.api_calls, asker.provider.token_requests, asker.provider.log) == (0, 0, [])
    assert asker.provider.issue()["access_token"] == "access-3"
