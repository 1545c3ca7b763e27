"""The flows that begin and finish an authorization, driven by hand (DESIGN sections 2 and 5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from core.world import KEY, REGISTRATION, START, TOKEN_ANSWERS, Script, a_grant, profile, token_answer

from tokenkeeper.core.authorization import (
    CODE_EXCHANGE_DEADLINE,
    STATE_CAUSES,
    STATE_LIFETIME,
    Beginning,
    Callback,
    begin,
    check_return_to,
    connect,
    consume,
    digest,
    finish,
    forget,
    read_callback,
)
from tokenkeeper.core.diagnosis import Rules
from tokenkeeper.core.effects import (
    SECOND,
    ConsumePending,
    FetchAccount,
    ForgetGrant,
    LoadGrant,
    Misconfigured,
    NewId,
    PendingAuthorization,
    RandomText,
    RedeemCode,
    Redeemed,
    RememberSecret,
    SaveConsent,
    SavePending,
    SecretInUse,
    StateRefused,
)
from tokenkeeper.core.recovery import Case
from tokenkeeper.core.rules import Rule
from tokenkeeper.core.token_endpoint import NeverSent, TokenSet, Unanswered
from tokenkeeper.errors import AuthorizationFailed, ConfigurationError, InvalidInput, TemporarilyUnavailable
from tokenkeeper.model import Answer, AuthorizationRequest, Connection, Prompt, Registration, Secret, Surface, Verdict

ENDPOINT = "https://provider.example/authorize"
CASE = Case(KEY, REGISTRATION, profile(authorization_endpoint=ENDPOINT))
STATE = Secret("the-state")
VERIFIER = Secret("the-verifier-" + "v" * 40)
CODE = Secret("the-code")
ISSUER = "https://provider.example"


def pending(**changes: Any) -> PendingAuthorization:
    """An authorization that was begun."""
    values: dict[str, Any] = {
        "state_digest": digest(STATE),
        "key": KEY,
        "session_digest": None,
        "verifier": VERIFIER,
        "redirect_uri": "https://app.example/callback",
        "return_to": "/settings",
        "scopes": ("read",),
    }
    return PendingAuthorization(**values | changes)


def begun(case: Case, asked: Beginning, grant: Any = None) -> tuple[dict[str, list[str]], PendingAuthorization]:
    """Begin, and return the parameters of the URL and what was stored."""
    script = Script(begin(case, asked))
    script.step(LoadGrant, grant)
    assert script.step(RandomText, STATE).size == 32
    if case.profile.pkce != "none":
        script.step(RandomText, VERIFIER)
    saved = script.step(SavePending, START + 600 * SECOND)
    assert saved.lifetime == STATE_LIFETIME == 600
    request = script.end()
    assert isinstance(request, AuthorizationRequest)
    assert request.expires_at.timestamp() == START / SECOND + 600
    assert request.url.startswith(ENDPOINT)
    return parse_qs(urlsplit(request.url).query), saved.pending


# --- begin -----------------------------------------------------------------------------------------------------------


def test_begin() -> None:
    """The URL carries the state and the challenge; the store gets the state's digest, and the verifier."""
    asked, saved = begun(CASE, Beginning("/settings"))
    assert asked["state"] == [STATE.reveal()]
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["redirect_uri"] == [REGISTRATION.redirect_uri]
    assert VERIFIER.reveal() not in str(asked)
    assert saved == pending()
    assert STATE.reveal() not in repr(saved)


def test_begin_without_pkce() -> None:
    """A profile that refuses a code_verifier gets none."""
    asked, saved = begun(Case(KEY, REGISTRATION, profile(authorization_endpoint=ENDPOINT, pkce="none")), Beginning())
    assert "code_challenge" not in asked
    assert saved.verifier is None


def test_begin_asks_for_all_scopes() -> None:
    """Granted, registered, asked for and missing: some providers revoke what is not asked for again."""
    prompt = Prompt(KEY.registration, KEY.member, "insufficient_scope", ("mail", "read"), None)
    asked, saved = begun(CASE, Beginning(scopes=("extra",), prompt=prompt), a_grant(scopes=("old",)))
    assert saved.scopes == ("old", "read", "extra", "mail")
    assert asked["scope"] == ["old read extra mail"]


@pytest.mark.parametrize("where", ["asked", "row"])
def test_begin_for_a_prompt(where: str) -> None:
    """A prompt, the one given or the row's own, brings acr_values and claims."""
    prompt = Prompt(KEY.registration, KEY.member, "step_up", (), None, "gold", '{"id_token":{}}')
    grant = a_grant(prompt=prompt if where == "row" else None)
    asked, _ = begun(CASE, Beginning(prompt=prompt if where == "asked" else None), grant)
    assert (asked["acr_values"], asked["claims"]) == (["gold"], ['{"id_token":{}}'])


def test_begin_for_a_prompt_that_asks_for_nothing_special() -> None:
    """A prompt without acr_values and claims adds no parameter."""
    prompt = Prompt(KEY.registration, KEY.member, "revoked", (), None)
    asked, _ = begun(CASE, Beginning(prompt=prompt))
    assert not {"acr_values", "claims"} & set(asked)


def test_begin_in_a_session() -> None:
    """The session is stored as a digest."""
    _, saved = begun(CASE, Beginning(session=Secret("session-1")))
    assert saved.session_digest == digest(Secret("session-1"))


def test_begin_without_a_redirect_uri() -> None:
    """A member could not come back: the operator's turn, before anything is stored."""
    case = Case(KEY, Registration("example", client_id="c"), CASE.profile)
    error = Script(begin(case, Beginning())).fails(ConfigurationError)
    assert error.cause == "redirect_uri"
    assert "redirect_uri" in error.fix


@pytest.mark.parametrize(
    "return_to",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "settings",
        "",
        "/a\r\nSet-Cookie: x",
        "/a\x00",
        "/" + "a" * 2000,
        "/\u2028",
        None,
        7,
    ],
)
def test_return_to_is_a_path_of_the_host(return_to: Any) -> None:
    """Another host, a control character, a backslash: refused before anything is stored, and quoted with care."""
    error = Script(begin(CASE, Beginning(return_to))).fails(InvalidInput)
    assert error.cause == "return_to"
    assert str(error).isprintable()
    assert len(str(error)) < 400


@pytest.mark.parametrize("return_to", ["/", "/settings?tab=1#x", "/ä", "/" + "a" * 1999])
def test_paths_of_the_host(return_to: str) -> None:
    """What a host's own path may look like."""
    check_return_to(return_to)


# --- the callback ----------------------------------------------------------------------------------------------------


def callback(**changes: Any) -> Callback:
    """A good callback."""
    values: dict[str, Any] = {
        "path": "/callback",
        "state": STATE,
        "code": CODE,
        "issuer": None,
        "error": None,
        "description": "",
    }
    return Callback(**values | changes)


def test_a_callback_is_read() -> None:
    """Path, state, code, issuer and error; what is empty is not there."""
    url = "https://app.example/callback?code=the-code&state=the-state&iss=https%3A%2F%2Fp.example"
    assert read_callback(Secret(url)) == callback(issuer="https://p.example")
    assert read_callback(
        Secret("https://app.example?error=access_denied&error_description=No%0Away&state=")
    ) == Callback("/", None, None, None, "access_denied", r"No\nway")
    assert read_callback(Secret("/callback")) == callback(state=None, code=None)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://[broken", "it is not a URL"),
        ("/callback?" + "&".join(f"p{n}=1" for n in range(101)), "it is not a URL"),
        ("/callback?code=a&code=b&state=s", "it has code more than once"),
        ("/callback?iss=a&state=s&state=t&iss=b", "it has iss, state more than once"),
    ],
)
def test_a_callback_that_cannot_be_read(url: str, why: str) -> None:
    """Not a URL, or a parameter twice (RFC 6749 3.1): refused, and nothing is consumed."""
    found = read_callback(Secret(url))
    assert found == why
    error = Script(consume(found, "ann", None)).fails(AuthorizationFailed)
    assert (error.cause, error.prompt, error.registration) == ("callback_malformed", None, None)


def test_other_parameters_may_come_twice() -> None:
    """Only what decides must be there once."""
    assert isinstance(read_callback(Secret("/callback?state=s&x=1&x=2")), Callback)


def test_no_state() -> None:
    """Nobody knows who began it."""
    assert Script(consume(callback(state=None), "ann", None)).fails(AuthorizationFailed).cause == "state_missing"


@pytest.mark.parametrize("session", [None, Secret("session-1")])
def test_a_state_is_consumed(session: Secret | None) -> None:
    """By digest, for this member and session."""
    script = Script(consume(callback(), "ann", session))
    effect = script.step(ConsumePending, pending())
    assert effect == ConsumePending(digest(STATE), "ann", None if session is None else digest(session))
    assert script.end() == pending()


@pytest.mark.parametrize("cause", list(STATE_CAUSES))
def test_a_state_that_is_refused(cause: str) -> None:
    """Unknown, replayed, expired or foreign: said so, and nothing that was stored has changed."""
    script = Script(consume(callback(), "ann", None))
    script.step(ConsumePending, StateRefused(cause))
    error = script.fails(AuthorizationFailed)
    assert error.cause == cause
    assert STATE_CAUSES[cause] in str(error)


# --- finish ----------------------------------------------------------------------------------------------------------

TOKENS = {"access_token": "access-1", "refresh_token": "refresh-1", "expires_in": 3600}


def redeemed(case: Case = CASE, members: dict[str, object] | None = None) -> Script:
    """A finish up to the answer to its code."""
    script = Script(finish(case, callback(), pending()))
    script.step(SecretInUse, 0)
    effect = script.step(RedeemCode, Redeemed(token_answer(200, dict(members or TOKENS)), 7.0))
    assert effect == RedeemCode(pending(), CODE, CODE_EXCHANGE_DEADLINE, 0)
    return script


def test_finish() -> None:
    """The code is redeemed, and the consent is stored, with the time of the request."""
    script = redeemed()
    script.step(LoadGrant, None)
    script.step(NewId, "an id")
    saved = script.step(SaveConsent, a_grant())
    assert saved.tokens.access_token == Secret("access-1")
    assert (saved.scopes, saved.account, saved.sent_at, saved.event_id) == (("read",), None, 7.0, "an id")
    assert saved.keep_refresh_token is False
    assert script.end() == Connection(a_grant().public(), "/settings")


def test_finish_stores_what_was_granted() -> None:
    """Scopes of the answer win over those that were asked for."""
    script = redeemed(members=TOKENS | {"scope": "read mail"})
    script.step(LoadGrant, None)
    script.step(NewId, "an id")
    assert script.step(SaveConsent, a_grant()).scopes == ("read", "mail")


@pytest.mark.parametrize(
    ("before", "keeps"),
    [(None, False), (a_grant(account=None), True), (a_grant(account="somebody"), False)],
)
def test_the_old_refresh_token_stays_only_for_the_same_account(before: Any, keeps: bool) -> None:
    """No new refresh token: the old one stays if none was ever known, not if the same account is not proved."""
    script = redeemed(members={"access_token": "access-1"})
    script.step(LoadGrant, before)
    script.step(NewId, "an id")
    assert script.step(SaveConsent, a_grant()).keep_refresh_token is keeps


OPENID = Case(
    KEY,
    REGISTRATION,
    profile(authorization_endpoint=ENDPOINT, issuer=ISSUER, userinfo_endpoint="https://provider.example/userinfo"),
)


@pytest.mark.parametrize(("before", "kept"), [("account-1", True), ("account-2", None)])
def test_another_account_is_refused(before: str, kept: bool | None) -> None:
    """Where the provider tells who it is: the same account may go on, another one connects nobody."""
    script = redeemed(OPENID, TOKENS | {"scope": "openid read"})
    asked = script.step(FetchAccount, "account-1")
    assert (asked.token, asked.deadline) == (Secret("access-1"), CODE_EXCHANGE_DEADLINE)
    script.step(LoadGrant, a_grant(account=before))
    if kept is None:
        error = script.fails(AuthorizationFailed)
        assert error.cause == "other_account"
        return
    script.step(NewId, "an id")
    saved = script.step(SaveConsent, a_grant())
    assert (saved.account, saved.keep_refresh_token) == ("account-1", True)


def test_nobody_is_asked_who_it_is_without_the_scope() -> None:
    """Without openid in the scopes, the userinfo endpoint would refuse."""
    script = redeemed(OPENID)
    script.step(LoadGrant, None)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"path": "/other"}, "redirect_uri_mismatch"),
        ({"issuer": "https://evil.example"}, "issuer_mismatch"),
        ({"issuer": ISSUER + "/"}, "issuer_mismatch"),
        ({"code": None}, "code_missing"),
        ({"error": "access_denied", "description": "No way"}, "access_denied"),
    ],
)
def test_a_callback_that_connects_nobody(changes: dict[str, Any], cause: str) -> None:
    """Another path, another issuer, no code, or a no: the member may begin again; no code is sent."""
    error = Script(finish(OPENID, callback(**changes), pending())).fails(AuthorizationFailed)
    assert error.cause == cause
    assert error.prompt is not None
    assert error.prompt.cause == cause


def test_the_issuer_is_the_issuer() -> None:
    """A present ``iss`` that is right goes on; one that nobody can compare, too."""
    for case, issuer in [(OPENID, ISSUER), (CASE, "https://anything.example")]:
        script = Script(finish(case, callback(issuer=issuer), pending()))
        script.step(SecretInUse, 0)


def test_a_redirect_uri_without_a_path() -> None:
    """``https://app.example`` comes back as ``/``."""
    script = Script(finish(CASE, callback(path="/"), pending(redirect_uri="https://app.example")))
    script.step(SecretInUse, 0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("server_error", TemporarilyUnavailable),
        ("temporarily_unavailable", TemporarilyUnavailable),
        ("invalid_scope", ConfigurationError),
        ("unauthorized_client", ConfigurationError),
        ("invalid_request", ConfigurationError),
        ("unsupported_response_type", ConfigurationError),
        ("login_required", AuthorizationFailed),
    ],
)
def test_an_error_in_the_callback_is_somebodys_turn(error: str, kind: Any) -> None:
    """RFC 6749 section 4.1.2.1: the weather's, the operator's or the member's."""
    assert Script(finish(CASE, callback(error=error), pending())).fails(kind).cause == error


@pytest.mark.parametrize("outcome", [NeverSent("ConnectError"), Unanswered("deadline")])
def test_no_answer_to_the_code(outcome: Any) -> None:
    """Nobody's turn; the state is used up, so the member begins again."""
    script = Script(finish(CASE, callback(), pending()))
    script.step(SecretInUse, 0)
    script.step(RedeemCode, Redeemed(outcome, 1.0))
    assert script.fails(TemporarilyUnavailable).cause == "unanswered"


def test_the_code_cannot_be_sent() -> None:
    """An endpoint or a secret is missing: the operator's own error."""
    script = Script(finish(CASE, callback(), pending()))
    script.step(SecretInUse, 0)
    script.step(RedeemCode, Redeemed(Misconfigured(ConfigurationError("no endpoint", cause="bad_endpoint")), 1.0))
    assert script.fails(ConfigurationError).cause == "bad_endpoint"


LIMITED = Rules(own=(Rule("own", Verdict.INSUFFICIENT_SCOPE, "m", "f", "s", Surface.TOKEN, frozenset({418})),))


@pytest.mark.parametrize(
    ("answer", "kind", "cause"),
    [
        (token_answer(400, {"error": "invalid_grant"}), AuthorizationFailed, "code_refused"),
        (token_answer(400, {"error": "unauthorized_client"}), ConfigurationError, "unauthorized_client"),
        (token_answer(404, {}), ConfigurationError, "client_config"),
        (TOKEN_ANSWERS["rate_limited"], TemporarilyUnavailable, "rate_limited"),
        (TOKEN_ANSWERS["server_error"], TemporarilyUnavailable, "provider_fault"),
        (Answer(200, (), b"<html>"), TemporarilyUnavailable, "provider_fault"),
        (token_answer(418, {}), AuthorizationFailed, "code_refused"),
    ],
)
def test_the_code_is_refused(answer: Answer, kind: Any, cause: str) -> None:
    """By whose turn it is; nothing is stored."""
    case = replace(CASE, profile=replace(CASE.profile, rules=Rules(LIMITED.own, CASE.profile.rules.generic)))
    script = Script(finish(case, callback(), pending()))
    script.step(SecretInUse, 0)
    script.step(RedeemCode, Redeemed(answer, 1.0))
    error = script.fails(kind)
    assert error.cause == cause
    assert error.diagnosis is not None
    if cause == "rate_limited":
        assert error.retry_after == 20.0


TWO = Case(
    KEY,
    Registration("example", client_id="c", client_secret=["old", "new"], redirect_uri="https://app.example/callback"),
    CASE.profile,
)


def test_a_list_of_secrets_is_tried_for_a_code() -> None:
    """``invalid_client``: the next secret; the one that worked is remembered."""
    script = Script(finish(TWO, callback(), pending()))
    script.step(SecretInUse, 1)
    assert script.step(RedeemCode, Redeemed(TOKEN_ANSWERS["invalid_client"], 1.0)).secret == 1
    assert script.step(RedeemCode, Redeemed(token_answer(200, dict(TOKENS)), 2.0)).secret == 0
    assert script.step(RememberSecret) == RememberSecret("example", 0)
    script.step(LoadGrant, None)


def test_no_secret_works_for_a_code() -> None:
    """All were tried: the operator's turn."""
    script = Script(finish(TWO, callback(), pending()))
    script.step(SecretInUse, 0)
    for _ in range(2):
        script.step(RedeemCode, Redeemed(TOKEN_ANSWERS["invalid_client"], 1.0))
    assert script.fails(ConfigurationError).cause == "invalid_client"


# --- tokens that the host has, and the end ---------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "stored"), [(None, ("read",)), ((), ()), (("mail",), ("mail",))])
@pytest.mark.parametrize("keep", [False, True])
def test_connect(said: tuple[str, ...] | None, stored: tuple[str, ...], keep: bool) -> None:
    """The host's tokens are the newest consent; without a word on scopes, those of the registration."""
    tokens = TokenSet(access_token=Secret("access"), scopes=said, account="account-1")
    script = Script(connect(CASE, tokens, keep_refresh_token=keep))
    script.step(NewId, "an id")
    grant = a_grant()
    expected = SaveConsent(KEY, tokens, stored, "account-1", keep_refresh_token=keep, sent_at=None, event_id="an id")
    assert script.step(SaveConsent, grant) == expected
    assert script.end() is grant


def test_forget() -> None:
    """What is there is deleted; what is not there is no error."""
    script = Script(forget(CASE))
    script.step(LoadGrant, a_grant())
    assert script.step(ForgetGrant, True).grant == a_grant()
    assert script.end() is True
    script = Script(forget(CASE))
    script.step(LoadGrant, None)
    assert script.end() is False
