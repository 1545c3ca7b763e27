"""Rules and facts: order, bounds, what is carried along, and that nothing a provider sends raises."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenkeeper.core.diagnosis import LONGEST_WAIT, MOST_SCOPES, Rules, diagnose, explain
from tokenkeeper.core.rules import Condition, InChallenge, InHeader, InJson, InWords, Rule, Silent, wanted
from tokenkeeper.model import AccessToken, Answer, Remedy, Secret, Surface, Turn, Verdict
from tokenkeeper.providers import load_profile, make_answer

GENERIC = load_profile("generic").rules
LINKEDIN = load_profile("linkedin").rules
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def rule(name: str, verdict: Verdict, *conditions: Condition, status: int | None = 401, **more: str) -> Rule:
    """A rule of a test."""
    statuses = frozenset() if status is None else frozenset({status})
    return Rule(name, verdict, "message", "fix", "source", statuses=statuses, conditions=conditions, **more)  # type: ignore[arg-type]


def answer(body: object, status: int = 401, **headers: str) -> Answer:
    """An answer with a JSON body; underscores in header names are hyphens."""
    text = body if isinstance(body, str | bytes) or body is None else json.dumps(body)
    return make_answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, text)


def test_own_rules_then_generic_then_status() -> None:
    """The first rule that holds decides: the provider's, then the generic ones, then the bare status."""
    rules = Rules(
        own=(rule("own", Verdict.REVOKED, InJson("code", wanted("x"))),),
        generic=(
            rule("generic", Verdict.EXPIRED, InJson("code", wanted(["x", "y"]))),
            rule("later", Verdict.INVALID, InJson("code", wanted("y"))),
        ),
    )
    assert diagnose(answer({"code": "x"}), rules).rule == "own"
    assert diagnose(answer({"code": "y"}), rules).rule == "generic"
    assert diagnose(answer({"code": "z"}), rules).rule == "status/401"


@pytest.mark.parametrize(
    ("surface", "status", "verdict"),
    [
        (Surface.API, 200, Verdict.OK),
        (Surface.API, 204, Verdict.OK),
        (Surface.API, 302, Verdict.NOT_TOKEN),
        (Surface.API, 401, Verdict.INVALID),
        (Surface.API, 403, Verdict.NOT_TOKEN),
        (Surface.API, 404, Verdict.NOT_TOKEN),
        (Surface.API, 429, Verdict.RATE_LIMITED),
        (Surface.API, 500, Verdict.PROVIDER_FAULT),
        (Surface.API, 503, Verdict.PROVIDER_FAULT),
        (Surface.API, 0, Verdict.NOT_TOKEN),
        (Surface.API, -7, Verdict.NOT_TOKEN),
        (Surface.API, 10**9, Verdict.NOT_TOKEN),
        (Surface.TOKEN, 200, Verdict.PROVIDER_FAULT),
        (Surface.TOKEN, 400, Verdict.PROVIDER_FAULT),
        (Surface.TOKEN, 401, Verdict.CLIENT_CONFIG),
        (Surface.TOKEN, 404, Verdict.CLIENT_CONFIG),
        (Surface.TOKEN, 429, Verdict.RATE_LIMITED),
        (Surface.TOKEN, 502, Verdict.PROVIDER_FAULT),
    ],
)
def test_without_rules_the_status_decides(surface: Surface, status: int, verdict: Verdict) -> None:
    """Where no rule holds, the status is guessed from as far as it goes, and no member is bothered."""
    found = diagnose(Answer(status, (), b""), Rules(), surface=surface)
    assert (found.verdict, found.remedy, found.turn) == (verdict, verdict.remedy, verdict.turn)
    assert found.turn is not Turn.MEMBER


def test_a_bare_403_is_not_the_members_turn() -> None:
    """A 403 without a reason goes to the host as it is: widening the scope might be in vain."""
    assert diagnose(answer("Forbidden", 403), GENERIC).remedy is Remedy.NONE


def test_of_a_body_that_was_not_read_nothing_is_known_to_be_absent() -> None:
    """A condition that a member is absent, or that nothing is said, holds of a body that was read only."""
    for condition in (InJson("error", False), Silent("said"), Silent("body")):
        asked = Rules(own=(rule("asked", Verdict.EMPTY, condition),))
        assert diagnose(Answer(401, (), b""), asked).rule == "asked"
        assert diagnose(Answer(401, (), None), asked).rule.startswith("status/401")


def test_an_unreadable_body_is_not_an_empty_one() -> None:
    """Without a body, status and headers decide, and the diagnosis says so."""
    unread = diagnose(Answer(401, (("www-authenticate", 'Bearer error="invalid_token"'),), None), GENERIC)
    assert (unread.verdict, unread.rule) == (Verdict.INVALID, "generic/challenge-invalid (body not readable)")
    assert diagnose(Answer(401, (), None), LINKEDIN).rule == "status/401 (body not readable)"
    assert diagnose(Answer(401, (), b""), LINKEDIN).rule == "status/401"


@pytest.mark.parametrize(
    ("condition", "body", "holds"),
    [
        (
            InJson("error.details.reason", wanted("EXPIRED")),
            {"error": {"details": [{"x": 1}, {"reason": "expired"}]}},
            True,
        ),
        (InJson("a.b", wanted("x")), {"a": [[{}] * 200, [{}] * 200, {"b": "x"}]}, False),
        (InJson("error.code", wanted(65601)), [{"error": {"code": "65601"}}], True),
        (InJson("code", wanted("65601")), {"code": 65601}, True),
        (InJson("code", wanted(65601)), {"code": 65601.0}, True),
        (InJson("code", wanted(1)), {"code": True}, False),
        (InJson("code", wanted("x")), {"code": {"x": 1}}, False),
        (InJson("code", wanted([7, {"from": 200, "to": 299}])), {"code": 200}, True),
        (InJson("code", wanted([7, {"from": 200, "to": 299}])), {"code": "299"}, True),
        (InJson("code", wanted([7, {"from": 200, "to": 299}])), {"code": 7}, True),
        (InJson("code", wanted([7, {"from": 200, "to": 299}])), {"code": 300}, False),
        (InJson("code", True), {"code": {"x": 1}}, True),
        (InJson("code", True), {"code": None}, False),
        (InJson("code", False), {"code": None}, True),
        (InJson("code", False), {"code": 0}, False),
        (InJson("code", wanted("x")), {"Code": "x"}, False),
        (InWords("message", ("token expired",)), {"message": "Token_Expired!"}, True),
        (InWords("message", ("token expired",)), {"message": "tokens expired"}, False),
        (InWords("message", ("token * expired",)), {"message": "The token (of Ann) has long expired."}, True),
        (InWords("message", ("token * expired",)), {"message": "token expired"}, True),
        (InWords("message", ("token * expired",)), {"message": "token" + " x" * 80 + " expired"}, False),
        (InWords("message", ("token * expired",)), {"message": ["token", "expired"]}, False),
        (InWords("said", ("token expired",)), {"errors": [{"errorType": "token_expired"}]}, True),
        (InWords("said", ("token expired",)), {"error": "TokenExpired"}, True),
        (InWords("said", ("tokenexpired",)), {"error": "TokenExpired"}, True),
        (InWords("said", ("token expired",)), {"error": "TokenExpired or not"}, False),
        (InWords("said", ("= token expired",)), {"message": "Token expired."}, True),
        (InWords("said", ("= token expired",)), {"message": "Coupon token expired."}, False),
        (InWords("said", ("= token expired",)), {"message": "Token expired, as it were"}, False),
        (InWords("message", ("= token expired",)), {"message": "Token expired!"}, True),
        (InWords("said", ("revoked",)), {"message": "No.", "issue": {"title": "It was revoked"}}, False),
        (InWords("said", ("revoked",)), {"message": "No.", "title": "It was revoked"}, True),
        (InWords("said", ("revoked",)), {"data": {"errors": [{"title": "revoked"}]}}, True),
        (InWords("said", ("revoked",)), {"repository": {"owner": {"name": "revoked"}}}, False),
        (InWords("said", ("revoked",)), {"status": {"description": "revoked"}}, True),
        (InWords("said", ("token expired",)), {"post": {"body": "token expired"}}, False),
        (InWords("body", ("token expired",)), {"post": {"text": "token expired"}}, True),
        (InWords("header.x-why", ("token expired",)), {}, True),
        (InWords("challenge.error_description", ("gone",)), {}, True),
        (InHeader("x-why", True), {}, True),
        (InHeader("x-why", wanted("the token expired")), {}, True),
        (InHeader("x-other", True), {}, False),
        (InHeader("x-other", False), {}, True),
        (InChallenge({"scheme": wanted("Bearer"), "error": False}), {}, False),
        (InChallenge({"scheme": wanted("DPoP"), "error": wanted("Other")}), {}, True),
        (InChallenge({"scheme": wanted("bearer"), "error": wanted("other")}), {}, False),
        (InChallenge({"acr_values": False}), {}, True),
    ],
)
def test_conditions(condition: Condition, body: object, holds: bool) -> None:
    """Each condition of the vocabulary holds where it should and nowhere else."""
    asked = answer(
        body,
        x_why="The token expired",
        www_authenticate='Bearer realm="a", DPoP error="other", error_description="It is gone."',
    )
    expected = "asked" if holds else "status/401"
    assert diagnose(asked, Rules(own=(rule("asked", Verdict.EXPIRED, condition),))).rule == expected
    assert str(condition)


@pytest.mark.parametrize(
    "values",
    [
        [], "", [""], ["a", "A"], {"a": 1}, None, [["a"]], {"from": 1}, {"from": 2, "to": 1}, {"from": 1, "to": 5000},
        {"from": "1", "to": "9"}, {"from": 1, "to": 9, "step": 2}, [5, {"from": 1, "to": 9}],
    ],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(values: object) -> None:
    """A condition without a value, with the same twice or with an object, is an error of its author."""
    with pytest.raises(ValueError, match="is needed"):
        wanted(values)


def test_a_phrase_with_many_gaps_is_refused() -> None:
    """Each gap multiplies what a long text may cost."""
    with pytest.raises(ValueError, match="more than 2 stars"):
        InWords("said", ("a * b * c * d",))


@pytest.mark.parametrize("phrase", ["", "*", "token *", "* expired", "!?", "=", "= !", "= a * b"])
def test_phrases_without_words_are_refused(phrase: str) -> None:
    """A phrase must have words, on both sides of a star."""
    with pytest.raises(ValueError, match="no words"):
        InWords("said", (phrase,))


@pytest.mark.parametrize(
    ("earlier", "later", "covers"),
    [
        (rule("a", Verdict.OK), rule("b", Verdict.OK, InJson("x", wanted(1))), True),
        (rule("a", Verdict.OK, status=None), rule("b", Verdict.OK), True),
        (rule("a", Verdict.OK), rule("b", Verdict.OK, status=None), False),
        (rule("a", Verdict.OK), rule("b", Verdict.OK, status=403), False),
        (rule("a", Verdict.OK, InJson("x", True)), rule("b", Verdict.OK, InJson("x", wanted(1))), True),
        (rule("a", Verdict.OK, InJson("x", wanted(1))), rule("b", Verdict.OK, InJson("x", True)), False),
        (rule("a", Verdict.OK, InJson("x", wanted([1, 2]))), rule("b", Verdict.OK, InJson("x", wanted(2))), True),
        (rule("a", Verdict.OK, InJson("x", wanted(1))), rule("b", Verdict.OK, InJson("y", wanted(1))), False),
        (rule("a", Verdict.OK, InHeader("x", True)), rule("b", Verdict.OK, InHeader("x", wanted("v"))), True),
        (rule("a", Verdict.OK, InHeader("x", False)), rule("b", Verdict.OK, InHeader("x", wanted("v"))), False),
        (rule("a", Verdict.OK, InWords("m", ("token",))), rule("b", Verdict.OK, InWords("m", ("a token died",))), True),
        (rule("a", Verdict.OK, InWords("m", ("a b",))), rule("b", Verdict.OK, InWords("m", ("a * b",))), False),
        (rule("a", Verdict.OK, InWords("m", ("a * b",))), rule("b", Verdict.OK, InWords("m", ("a b",))), True),
        (rule("a", Verdict.OK, InWords("m", ("a",))), rule("b", Verdict.OK, InWords("n", ("a",))), False),
        (rule("a", Verdict.OK, InChallenge({"error": wanted("e")})),
         rule("b", Verdict.OK, InChallenge({"scheme": wanted("bearer"), "error": wanted("e")})), True),
        (rule("a", Verdict.OK, InChallenge({"error": wanted("e")})),
         rule("b", Verdict.OK, InJson("error", wanted("e"))), False),
    ],
)  # fmt: skip
def test_covers(earlier: Rule, later: Rule, covers: bool) -> None:
    """A rule covers a later one where it holds whenever the later one would."""
    assert earlier.covers(later) is covers


def test_wants_body_only_where_a_rule_asks() -> None:
    """A body is read for a status that some rule asks for, for 5xx because an incident quotes it, never for a 200."""
    rules = Rules(
        own=(
            rule("h", Verdict.OK, InHeader("x", True), status=409),
            rule("j", Verdict.OK, InJson("x", True), status=418),
        )
    )
    assert [status for status in (200, 302, 401, 404, 409, 418, 429, 500, 599, 600) if rules.wants_body(status)] == [
        418,
        500,
        599,
    ]
    assert not any(LINKEDIN.wants_body(status) for status in (200, 204, 302, 404, 405, 411, 426))
    assert all(LINKEDIN.wants_body(status) for status in (400, 401, 403, 429, 500))
    assert all(GENERIC.wants_body(status) for status in (401, 403))
    assert not Rules().wants_body(401)


def test_errors_in_200_are_looked_for_only_where_the_profile_says_so() -> None:
    """A 200 is a success unless the profile says that the provider hides errors there."""
    hidden = (rule("hidden", Verdict.EXPIRED, InJson("error", wanted("token_expired")), status=200),)
    said = answer({"error": "token_expired"}, 200)
    assert diagnose(said, Rules(own=hidden)).verdict is Verdict.OK
    assert diagnose(said, Rules(own=hidden, errors_in_200=True)).verdict is Verdict.EXPIRED
    assert Rules(own=hidden, errors_in_200=True).wants_body(200)
    assert diagnose(answer({"error": "other"}, 200), Rules(own=hidden, errors_in_200=True)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (" 7 ", 7.0),
        ("999999999999", LONGEST_WAIT),
        ("Sun, 22 Nov 2026 12:01:00 GMT", 60.0),
        ("Sun, 22 Nov 2026 11:59:00 GMT", 0.0),
        ("-5", None),
        ("soon", None),
        ("1e9", None),
        ("", None),
        ("١٢", None),
        ("Sun, 99 Nov 2026 12:01:00 GMT", None),
        ("9" * 5000, None),
    ],
)
def test_retry_after(header: str, seconds: float | None) -> None:
    """Retry-After is seconds or a date against the given time; anything else is no answer."""
    assert diagnose(Answer(429, (("retry-after", header),), b""), Rules(), now=NOON).retry_after == seconds


def test_retry_after_needs_a_time_for_a_date_and_a_reason_to_wait() -> None:
    """Without a time a date says nothing; a refusal that waiting does not cure carries no wait."""
    date = (("retry-after", "Sun, 22 Nov 2026 12:01:00 GMT"),)
    assert diagnose(Answer(503, date, b""), Rules()).retry_after is None
    assert diagnose(Answer(503, date, b""), Rules(), now=NOON.replace(tzinfo=None)).retry_after == 60
    assert diagnose(Answer(401, (("retry-after", "5"),), b""), Rules(), now=NOON).retry_after is None


def test_linkedins_day_quota_ends_at_midnight_utc() -> None:
    """Without Retry-After the day's quota is back at midnight UTC, in whatever zone the time is given."""
    quota = {"serviceErrorCode": 101, "message": "Resource level throttle APPLICATION DAY limit", "status": 429}
    assert diagnose(answer(quota, 429), LINKEDIN, now=NOON).retry_after == 12 * 3600
    east = datetime(2026, 11, 23, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert diagnose(answer(quota, 429), LINKEDIN, now=east).retry_after == 3600
    assert diagnose(answer(quota, 429), LINKEDIN).retry_after is None
    assert diagnose(answer(quota, 429, retry_after="9"), LINKEDIN, now=NOON).retry_after == 9
    assert diagnose(answer({"message": "Too many requests"}, 429), LINKEDIN, now=NOON).retry_after is None


def test_a_rule_may_name_the_member_that_says_how_long_to_wait() -> None:
    """Some providers say the wait in the body, as a number or a text."""
    assert diagnose(answer({"retry_after": 2009.867}, 429), GENERIC).retry_after == pytest.approx(2009.867)
    assert diagnose(answer({"retry_after": "3"}, 429), GENERIC).retry_after == 3
    assert diagnose(answer({"retry_after": "later"}, 429), GENERIC).retry_after is None


def test_a_rule_may_name_the_header_that_says_how_long_to_wait() -> None:
    """Seconds, or (as most quotas say it) seconds since the epoch: then what is left of them, if the time is known."""
    rules = Rules(own=(rule("own", Verdict.RATE_LIMITED, retry_after="header.x-ratelimit-reset"),))
    assert diagnose(answer({}, 401, x_ratelimit_reset="30"), rules).retry_after == 30
    reset = str(int(NOON.timestamp()) + 90)
    assert diagnose(answer({}, 401, x_ratelimit_reset=reset), rules, now=NOON).retry_after == 90
    assert diagnose(answer({}, 401, x_ratelimit_reset=reset), rules).retry_after is None
    assert diagnose(answer({}, 401, x_ratelimit_reset="1000000001"), rules, now=NOON).retry_after == 0
    assert diagnose(answer({}, 401, x_ratelimit_reset="soon"), rules, now=NOON).retry_after is None
    assert diagnose(answer({}, 401), rules, now=NOON).retry_after is None
    assert diagnose(answer({}, 401, x_ratelimit_reset="30", retry_after="5"), rules, now=NOON).retry_after == 5


def test_missing_scopes_come_from_the_challenge_the_rule_or_the_body() -> None:
    """Whoever says which scope is missing is heard: the challenge, the member that the rule names, or ``scope``."""
    challenge = 'Bearer error="insufficient_scope", scope="api:write  openid api:write"'
    assert diagnose(answer({}, 403, www_authenticate=challenge), GENERIC).scopes == ("api:write", "openid")
    assert diagnose(answer({"error": "insufficient_scope", "scope": "api"}, 403), GENERIC).scopes == ("api",)
    named = Rules(own=(rule("own", Verdict.INSUFFICIENT_SCOPE, InJson("needed", True), scopes="needed"),))
    assert diagnose(answer({"needed": "chat:write,users:read"}), named).scopes == ("chat:write", "users:read")


def test_hostile_scopes_are_dropped() -> None:
    """Only characters that RFC 6749 allows, and not too many."""
    many = " ".join(f"s{i}" for i in range(500))
    challenge = f'Bearer error="insufficient_scope", scope="{many}"'
    assert len(diagnose(answer({}, 403, www_authenticate=challenge), GENERIC).scopes) == MOST_SCOPES
    assert diagnose(answer({"error": "insufficient_scope", "scope": 'a\x1b[31m "b" é'}, 403), GENERIC).scopes == ()


def test_step_up_carries_what_was_asked_for() -> None:
    """acr_values of RFC 9470, and a claims request as JSON, whether it came so or in base64."""
    asked = 'Bearer error="insufficient_user_authentication", acr_values="myACR other", scope="openid"'
    found = diagnose(answer("", www_authenticate=asked), GENERIC)
    assert (found.verdict, found.acr_values, found.scopes) == (Verdict.STEP_UP, "myACR other", ("openid",))
    claims = '{"access_token":{"acrs":{"essential":true}}}'
    for text in (base64.b64encode(claims.encode()).decode(), claims.replace('"', '\\"')):
        said = diagnose(answer("", www_authenticate=f'Bearer error="x", claims="{text}"'), GENERIC)
        assert (said.verdict, said.claims) == (Verdict.STEP_UP, claims)
    for text in ("not json", base64.b64encode(b"[1]").decode(), "=", "é", "[" * 4000):
        assert diagnose(answer("", www_authenticate=f'Bearer claims="{text}"'), GENERIC).claims is None


def test_error_code_is_a_code_or_nothing() -> None:
    """The machine-readable code is passed on if it looks like one, not if it looks like a token."""
    assert diagnose(answer({"error": "invalid_token"}), GENERIC).error_code == "invalid_token"
    assert diagnose(answer({"serviceErrorCode": 65601}), LINKEDIN).error_code == "65601"
    assert diagnose(answer({"error": {"code": 401}}), GENERIC).error_code == "401"
    assert diagnose(answer({"error": "eyJhbGciOiJIUzI1NiJ9.e30.x"}), GENERIC).error_code is None
    assert diagnose(answer({"error": "AQXdSP9W41UPs5ioT1t8HESyODB4FqbkJ8LrV"}), GENERIC).error_code is None
    assert diagnose(answer({"error": "a\nb"}), GENERIC).error_code is None


def test_what_the_provider_says_is_quoted_safely() -> None:
    """The message quotes the provider: on one line, capped, without tokens, also those that only the caller knows."""
    body = {
        "error": "invalid_token",
        "error_description": "Bad\x1b[31m\ntoken eyJhbGciOiJIUzI1NiJ9.e30.x or s3cret " + "x " * 500,
    }
    token = AccessToken("s3cret")
    found = diagnose(answer(body), GENERIC, secrets=[token])
    assert found.message.startswith("The token was refused")
    assert found.message.isprintable()
    assert "\\x1b[31m\\n" in found.message
    assert "eyJ" not in found.message
    assert "s3cret" not in found.message
    assert len(found.message) < 300


def test_known_secrets_are_in_no_field() -> None:
    """Whatever field a provider puts the token in, the diagnosis does not carry it on."""
    secrets = [Secret("canary-1"), "canary-2", ""]
    challenge = (
        'Bearer error="canary-1", claims="{\\"a\\":\\"canary-2\\"}", acr_values="x canary-1", scope="a canary-2"'
    )
    found = diagnose(answer({"message": "canary-2 failed"}, www_authenticate=challenge), GENERIC, secrets=secrets)
    assert found.verdict is Verdict.STEP_UP
    assert found.scopes == ("a",)
    assert "canary" not in repr(found)


def test_explain_names_the_rule_and_the_near_misses() -> None:
    """The rule with file, line and source; others of which a single thing was missing, or that came too late."""
    said = explain(answer({"serviceErrorCode": 65601, "code": "EXPIRED_ACCESS_TOKEN"}), LINKEDIN)
    assert said.rule.name == said.diagnosis.rule == "linkedin/code-expired"
    assert said.rule.file.endswith("linkedin.toml")
    assert said.rule.line > 0
    assert said.rule.source.startswith("https://")
    assert {miss.rule.name: miss.failed for miss in said.near}["linkedin/number-revoked"] == ()
    elsewhere = explain(answer({"serviceErrorCode": 65601}, 400), LINKEDIN)
    assert ("linkedin/number-revoked", ("status is 401",)) in [(miss.rule.name, miss.failed) for miss in elsewhere.near]
    assert explain(Answer(200, (), b"{}"), LINKEDIN).rule.name == "status/success"


@pytest.mark.parametrize(
    ("body", "content_type", "rule"),
    [
        (
            "<?xml version='1.0'?><Error><Code>ExpiredToken</Code><Message>x</Message></Error>",
            "",
            "access-token-expired",
        ),
        ("<Error><Message>The access token expired</Message></Error>", "application/xml", "access-token-expired"),
        ("<Error><Message>The access token expired</Message></Error>", "", "status/other"),
        ("<!DOCTYPE html><p>The access token expired</p>", "application/xml", "status/other"),
        ("<?xml version='1.0'?><html><p>The access token expired</p></html>", "application/xhtml+xml", "status/other"),
        ("<?xml version='1.0'?><" + "a" * 90_000, "", "status/other"),
    ],
)
def test_xml_says_something_and_a_page_does_not(body: str, content_type: str, rule: str) -> None:
    """What a program sent is read between its tags; a page is a proxy's, whatever it calls itself."""
    assert diagnose(answer(body, 403, content_type=content_type), GENERIC).rule.removeprefix("generic/") == rule


def test_a_form_body_is_read_where_it_says_so() -> None:
    """Some token endpoints answer in a form."""
    form = answer("error=invalid_grant&error_description=gone", 400, content_type="application/x-www-form-urlencoded")
    assert diagnose(form, GENERIC, surface=Surface.TOKEN).verdict is Verdict.GRANT_INVALID
    huge = answer("error=login_required&" + "a=b&" * 1000, 400, content_type="application/x-www-form-urlencoded")
    assert diagnose(huge, GENERIC, surface=Surface.TOKEN).verdict is Verdict.PROVIDER_FAULT


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"code":' + b"9" * 60_000 + b"}",
        b'{"code":1e999}',
        b'{"code":NaN}',
        b"\xff\xfe\x00",
        b'\xef\xbb\xbf{"error":"invalid_token"}',
        b'"\\ud800"',
        b'{"error":{"error":{"error":["x"]}}}',
        b"null",
        b"0",
        b"[]",
        b"{}",
        b'{"error":"' + b"token " * 200_000 + b'expired"}',
        json.dumps({"errors": [{"message": "token"}] * 9000}).encode(),
        json.dumps({f"k{i}": "token" for i in range(5000)}).encode(),
    ],
    ids=lambda body: body[:12].decode("latin-1") + str(len(body)),
)
def test_bodies_that_break_parsers_do_not(body: bytes) -> None:
    """Deep, huge, broken and odd bodies are read as far as they go, quickly."""
    began = time.perf_counter()
    for rules in (GENERIC, LINKEDIN):
        for surface in Surface:
            assert isinstance(diagnose(Answer(401, (), body), rules, surface=surface).verdict, Verdict)
            explain(Answer(400, (), body), rules, surface=surface)
    assert time.perf_counter() - began < 3


WORDS = st.sampled_from(
    [
        "token",
        "expired",
        "revoked",
        "invalid",
        "access",
        "refresh",
        "Bearer",
        "scope",
        "DPoP",
        "error",
        "code",
        "\ud800",
        "\x00",
    ]
)
TEXT = st.lists(WORDS, max_size=6).map(" ".join) | st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "code", "message", "errors", "scope", "retry_after"]) | TEXT, inner, max_size=4
        )
    ),
    max_leaves=12,
)
BODY = st.none() | st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())
HEADERS = st.lists(
    st.tuples(st.sampled_from(["www-authenticate", "retry-after", "content-type", "location"]), TEXT), max_size=3
).map(tuple)
STATUS = st.sampled_from([0, 200, 302, 400, 401, 403, 422, 429, 500, 503]) | st.integers(-(10**6), 10**6)


@settings(max_examples=300, deadline=None)
@given(STATUS, HEADERS, BODY, st.sampled_from([GENERIC, LINKEDIN, Rules()]), st.sampled_from(Surface))
def test_never_raises(
    status: int, headers: tuple[tuple[str, str], ...], body: bytes | None, rules: Rules, surface: Surface
) -> None:
    """Whatever is sent, there is a diagnosis with a printable message, and it agrees with its explanation."""
    sent = Answer(status, headers, body)
    found = diagnose(sent, rules, surface=surface, now=NOON)
    assert found.message.isprintable()
    assert found.retry_after is None or found.retry_after >= 0
    assert explain(sent, rules, surface=surface, now=NOON).diagnosis == found
