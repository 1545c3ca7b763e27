"""A guarded call and its refusals, driven by hand: for each row of DESIGN's table, who is told what, and what is touched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from core.world import (
    EXPIRED,
    GENERIC,
    INVALID,
    KEY,
    REGISTRATION,
    REVOKED,
    START,
    Script,
    a_grant,
    a_token,
    challenge,
    profile,
)

from tokenkeeper.core.diagnosis import Rules
from tokenkeeper.core.effects import (
    SECOND,
    Adopted,
    Announce,
    CallApi,
    CountRefusal,
    Discard,
    Gone,
    InProgress,
    LoadGrant,
    Marked,
    MarkGrant,
    MemberTurn,
    NewId,
    OpenAccessToken,
    OpenPrompt,
    OperatorTurn,
    Renew,
    Renewed,
    Repeatable,
    Reply,
    Sleep,
    StartRenewal,
    StoredGrant,
    Weather,
)
from tokenkeeper.core.recovery import (
    LAST_CALL,
    REPLICA_LAG,
    Case,
    guarded_call,
    recover,
    renew_now,
    usable_token,
)
from tokenkeeper.core.rules import Rule
from tokenkeeper.errors import (
    AccountBlocked,
    ConfigurationError,
    KeyUnavailable,
    NotConnected,
    ReauthenticationRequired,
    RenewalInProgress,
    ScopeRequired,
    TemporarilyUnavailable,
)
from tokenkeeper.events import ConfigurationProblem, GrantExpiring, ProviderTrouble
from tokenkeeper.model import Answer, Diagnosis, Freshness, GrantStatus, Prompt, Registration, Turn, Verdict

CASE = Case(KEY, REGISTRATION, profile())
LINKEDIN = Case(KEY, REGISTRATION, profile(revocation="grant"))
DAY = 86_400 * SECOND


def reply(answer: Answer | None, **more: Any) -> Reply:
    """What the user's function returned; its value is told from others by its answer."""
    return Reply(("response", answer.status if answer else 200), answer=answer, **more)


def refused(said: str = EXPIRED, status: int = 401) -> Reply:
    """A refusal."""
    return reply(challenge(said, status))


def marked(grant: StoredGrant, cause: str) -> StoredGrant:
    """The grant as the member's turn."""
    prompt = Prompt(KEY.registration, KEY.member, cause, (), None)
    return a_grant(id=grant.id, generation=grant.generation, status=GrantStatus.NEEDS_REAUTHENTICATION, prompt=prompt)


def member_turn(cause: str, **more: Any) -> MemberTurn:
    """A renewal's outcome: the member's turn, and the row says so."""
    return MemberTurn(cause, Prompt(KEY.registration, KEY.member, cause, (), None), **more)


GRANT = a_grant()
NEWER = a_grant(generation=5)
TOKEN = a_token(GRANT)
NEW_TOKEN = a_token(NEWER, "access-5")
OLD = {"renewed_at": START - 600 * SECOND}
YOUNG = {"renewed_at": START - 10 * SECOND}


# --- a token to call with --------------------------------------------------------------------------------------------


def test_a_good_token_is_used() -> None:
    """A fresh grant: its token, and nothing else happens."""
    script = Script(usable_token(CASE))
    script.step(LoadGrant, GRANT)
    script.step(OpenAccessToken, TOKEN)
    assert script.end() is TOKEN


def test_an_aging_token_is_used_while_it_is_renewed() -> None:
    """Aging: a renewal starts in the background, and the call goes on with the token there is."""
    aging = a_grant(access_expires_at=START + 30 * SECOND)
    script = Script(usable_token(CASE))
    script.step(LoadGrant, aging)
    assert script.step(StartRenewal) == StartRenewal(KEY, aging.seen)
    script.step(OpenAccessToken, TOKEN)
    assert script.end() is TOKEN


@pytest.mark.parametrize(
    ("claim", "starts"),
    [
        ({"claim_id": None}, True),
        ({"claim_id": "c" * 32, "claimed_until": START - 1}, True),
        ({"claim_id": "c" * 32, "claimed_until": START}, False),
        ({"claim_id": "c" * 32, "claimed_until": None}, False),
    ],
)
def test_what_a_stopped_worker_presented_is_asked_for_again(claim: dict[str, Any], starts: bool) -> None:
    """Settled in the background, though the token is fresh, because a grace does not wait; a living claim is left alone."""
    script = Script(usable_token(CASE))
    script.step(LoadGrant, a_grant(in_flight_since=START - SECOND, in_flight_tries=1, **claim))
    if starts:
        script.step(StartRenewal)
    script.step(OpenAccessToken, TOKEN)
    assert script.end() is TOKEN


@pytest.mark.parametrize("minimum", [0.0, 4000.0])
def test_an_old_token_is_renewed_first(minimum: float) -> None:
    """Expired, or with less life than asked for: renewed first; the new one is returned whatever its life."""
    grant = a_grant(access_expires_at=START - 1) if not minimum else GRANT
    script = Script(usable_token(CASE, minimum))
    script.step(LoadGrant, grant)
    assert script.step(Renew, Renewed(NEWER)) == Renew(KEY, grant.seen, minimum_lifetime=minimum)
    script.step(OpenAccessToken, NEW_TOKEN)
    assert script.end() is NEW_TOKEN


def test_a_token_of_unknown_life_is_good() -> None:
    """Nobody said how long it lives: it satisfies, also where a life is asked for."""
    script = Script(usable_token(CASE, 4000.0))
    script.step(LoadGrant, a_grant(access_expires_at=None))
    script.step(OpenAccessToken, TOKEN)
    assert script.end() is TOKEN


def test_too_short_a_life_without_a_refresh_token_is_no_prompt() -> None:
    """Still valid, and nothing to renew it with: unavailable, never the member's turn."""
    grant = a_grant(sealed_refresh_token=None)
    script = Script(usable_token(CASE, 4000.0))
    script.step(LoadGrant, grant)
    script.step(Renew, MemberTurn("no_refresh_token", None, grant=grant, marked=False))
    assert script.fails(TemporarilyUnavailable).cause == "no_refresh_token"


def test_nobody_is_connected() -> None:
    """No row: the member's turn, to connect."""
    script = Script(usable_token(CASE))
    script.step(LoadGrant, None)
    error = script.fails(NotConnected)
    assert (error.cause, error.turn) == ("not_connected", Turn.MEMBER)
    assert error.prompt is not None
    assert error.prompt.scopes == REGISTRATION.scopes


@pytest.mark.parametrize("prompt", [None, Prompt(KEY.registration, KEY.member, "grant_revoked", (), None)])
def test_a_marked_grant_is_not_called_with(prompt: Prompt | None) -> None:
    """The row waits for its member: nobody calls, and the error carries the row's prompt."""
    script = Script(guarded_call(CASE))
    script.step(LoadGrant, a_grant(status=GrantStatus.NEEDS_REAUTHENTICATION, prompt=prompt))
    error = script.fails(ReauthenticationRequired)
    assert error.prompt is prompt
    assert error.cause == ("grant_revoked" if prompt else "needs_reauthentication")


EXPIRED_FOR_GOOD = a_grant(sealed_refresh_token=None, access_expires_at=START - 1)


def test_expired_without_a_refresh_token_marks_the_grant() -> None:
    """Expired by its clock, and nothing to renew it with: the member's turn, marked."""
    script = Script(usable_token(CASE))
    script.step(LoadGrant, EXPIRED_FOR_GOOD)
    now_marked = marked(EXPIRED_FOR_GOOD, "expired")
    assert script.step(MarkGrant, Marked(now_marked)) == MarkGrant(EXPIRED_FOR_GOOD, "expired")
    error = script.fails(ReauthenticationRequired)
    assert (error.prompt, error.cause) == (now_marked.prompt, "expired")


def test_expired_for_good_while_something_else_happened() -> None:
    """The mark was too late: what the row says now is what the caller hears."""
    for found, kind in [
        (None, NotConnected),
        (marked(EXPIRED_FOR_GOOD, "revoked"), ReauthenticationRequired),
        (NEWER, TemporarilyUnavailable),
    ]:
        script = Script(usable_token(CASE))
        script.step(LoadGrant, EXPIRED_FOR_GOOD)
        script.step(MarkGrant, found)
        script.fails(kind)


@pytest.mark.parametrize(
    ("grant", "what", "told"),
    [
        (a_grant(refresh_expires_at=START + 60 * SECOND), "refresh", True),
        (a_grant(refresh_expires_at=START + 8 * DAY), "refresh", False),
        (a_grant(refresh_expires_at=START + DAY, renewed_at=START), "refresh", False),
        (a_grant(sealed_refresh_token=None, access_expires_at=START + 60 * SECOND), "access", True),
        (a_grant(sealed_refresh_token=None), "access", False),
        (a_grant(sealed_refresh_token=None, access_expires_at=None), "access", False),
        (
            a_grant(sealed_refresh_token=None, renewed_at=START - 100 * DAY, consented_at=START - 100 * DAY,
                    access_expires_at=START + 8 * DAY),
            "access",
            False,
        ),
    ],
)  # fmt: skip
def test_an_end_that_no_renewal_puts_off_is_announced(grant: StoredGrant, what: str, told: bool) -> None:
    """In the last tenth of its life, and a week before at most; a rolling day of a refresh token is no news."""
    script = Script(usable_token(CASE))
    script.step(LoadGrant, grant)
    if told:
        event = script.step(Announce).event
        assert isinstance(event, GrantExpiring)
        assert (event.what, event.grant_id, event.generation) == (what, grant.id, grant.generation)
    script.step(OpenAccessToken, TOKEN)
    script.end()


def test_the_same_end_is_one_piece_of_news() -> None:
    """The announcement of an end has the same id all day long, whoever makes it."""
    ids = set()
    for seconds in (0, 30):
        script = Script(usable_token(CASE))
        script.step(LoadGrant, a_grant(refresh_expires_at=START + 60 * SECOND, now=START + seconds * SECOND))
        ids.add(script.step(Announce).event.id)
    assert len(ids) == 1
    assert LAST_CALL == 7 * 86_400


# --- what comes of a renewal -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "kind", "cause"),
    [
        (Weather("backing_off", retry_after=7.0), TemporarilyUnavailable, "backing_off"),
        (OperatorTurn("invalid_client", "said so", "do so"), ConfigurationError, "invalid_client"),
        (OperatorTurn("key", "m", "f", error=KeyUnavailable("x")), KeyUnavailable, "key"),
        (member_turn("grant_revoked"), ReauthenticationRequired, "grant_revoked"),
        (Gone(), NotConnected, "not_connected"),
    ],
)
def test_a_renewal_without_a_token(outcome: Any, kind: Any, cause: str) -> None:
    """Each outcome is the caller's own error, by whose turn it is; nothing more is touched."""
    script = Script(guarded_call(CASE))
    script.step(LoadGrant, a_grant(access_expires_at=START - 1))
    script.step(Renew, outcome)
    error = script.fails(kind)
    assert error.cause == cause
    if isinstance(outcome, OperatorTurn):
        assert error.fix == outcome.fix
    if isinstance(outcome, Weather):
        assert error.retry_after == 7.0
    if isinstance(outcome, MemberTurn):
        assert error.prompt is outcome.prompt


def test_patience_ends_and_the_row_knows_more() -> None:
    """The waiter gave up just as the new token was stored: it uses it."""
    script = Script(usable_token(CASE))
    script.step(LoadGrant, a_grant(access_expires_at=START - 1))
    script.step(Renew, InProgress())
    script.step(LoadGrant, NEWER)
    assert script.step(OpenAccessToken, NEW_TOKEN).grant is NEWER
    assert script.end() is NEW_TOKEN


def test_patience_ends() -> None:
    """The renewal goes on, and this caller is told to try again."""
    old = a_grant(access_expires_at=START - 1)
    script = Script(usable_token(CASE))
    script.step(LoadGrant, old)
    script.step(Renew, InProgress())
    script.step(LoadGrant, old)
    assert script.fails(RenewalInProgress).retry_after == 1.0


def test_patience_ends_and_the_old_token_still_works() -> None:
    """A longer life was asked for, and the old token is still good: it serves."""
    script = Script(usable_token(CASE, 4000.0))
    script.step(LoadGrant, GRANT)
    script.step(Renew, InProgress())
    script.step(LoadGrant, GRANT)
    assert script.step(OpenAccessToken, TOKEN).grant is GRANT
    assert script.end() is TOKEN


def test_patience_ends_and_a_refused_token_does_not_serve() -> None:
    """Good by its clock, and refused: a refusal outranks the clock."""
    script = Script(guarded_call(CASE, TOKEN, refused()))
    script.step(Renew, InProgress())
    script.step(LoadGrant, GRANT)
    script.fails(RenewalInProgress)


def test_the_account_is_blocked_at_the_token_endpoint() -> None:
    """Signing in again does not help: a prompt of its own kind, and the row stays as it is."""
    old = a_grant(access_expires_at=START - 1)
    script = Script(usable_token(CASE))
    script.step(LoadGrant, old)
    script.step(Renew, MemberTurn("account_blocked", None, None, old, marked=False, blocked=True))
    prompt = Prompt(KEY.registration, KEY.member, "account_blocked", (), None)
    assert script.step(OpenPrompt, prompt) == OpenPrompt(old, "account_blocked")
    assert script.fails(AccountBlocked).prompt is prompt


def test_an_outcome_that_is_shared_and_not_marked_opens_a_prompt() -> None:
    """Another caller's refusal decided this renewal: the member is asked, the row is not marked."""
    old = a_grant(access_expires_at=START - 1)
    script = Script(usable_token(CASE))
    script.step(LoadGrant, old)
    script.step(Renew, MemberTurn("refused_after_renewal", None, grant=old, marked=False))
    prompt = Prompt(KEY.registration, KEY.member, "refused_after_renewal", (), None)
    script.step(OpenPrompt, prompt)
    assert script.fails(ReauthenticationRequired).prompt is prompt


def test_renew_now() -> None:
    """What somebody asks for is done whatever clock, mark and back-off say."""
    script = Script(renew_now(CASE))
    assert script.step(Renew, Renewed(NEWER)) == Renew(KEY, None, forced=True)
    assert script.end() is NEWER


def test_renew_now_without_a_refresh_token() -> None:
    """Nothing to renew with: only the member can help, and the row stays as it is."""
    script = Script(renew_now(CASE))
    script.step(Renew, MemberTurn("no_refresh_token", None, grant=GRANT, marked=False))
    assert script.fails(ReauthenticationRequired).cause == "no_refresh_token"


def test_renew_now_and_patience_ends() -> None:
    """What is stored is not what was asked for: the renewal goes on, and the caller is told so."""
    script = Script(renew_now(CASE))
    script.step(Renew, InProgress())
    script.fails(RenewalInProgress)


def test_renew_now_of_nobody() -> None:
    """No grant, nothing to renew."""
    script = Script(renew_now(CASE))
    script.step(Renew, Gone())
    script.fails(NotConnected)


# --- passed through --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, Answer(404, (), b""), Answer(429, (), b""), Answer(400, (), b"{}")])
def test_what_is_not_about_the_token_passes_through(answer: Answer | None) -> None:
    """A success, a 404, a 429, a bad request: the same object, and nothing happens."""
    script = Script(guarded_call(CASE))
    script.step(LoadGrant, GRANT)
    script.step(OpenAccessToken, TOKEN)
    there = reply(answer)
    assert script.step(CallApi, there).token is TOKEN
    assert script.end() is there


def test_a_nonce_for_dpop_passes_through() -> None:
    """The server wants its nonce in a proof that we do not make: no token is at fault."""
    there = refused('DPoP error="use_dpop_nonce"')
    assert Script(guarded_call(CASE, TOKEN, there)).end() is there


def test_a_provider_in_trouble_leaves_an_incident() -> None:
    """A 5xx passes through as the same object, with an incident record for the provider's support."""
    headers = (("x-request-id", "7"),)
    there = Reply("r", answer=Answer(503, headers, b"oops"), method="GET", url="https://api.example/me")
    script = Script(guarded_call(CASE, TOKEN, there))
    script.step(NewId, "an id")
    event = script.step(Announce).event
    assert isinstance(event, ProviderTrouble)
    assert (event.id, event.incident["status"], event.incident["method"]) == ("an id", 503, "GET")
    assert event.incident["client_id"] == REGISTRATION.client_id
    assert script.end() is there


def test_the_refusal_of_another_credential_is_no_evidence() -> None:
    """The request carried another bearer token than ours: it says nothing about ours."""
    there = refused()
    there = Reply(there.value, answer=there.answer, request_headers=(("authorization", "Bearer somebody-else"),))
    assert Script(guarded_call(CASE, TOKEN, there)).end() is there


@pytest.mark.parametrize(
    ("sent", "cause"),
    [("Bearer <AccessToken 1234>", "redacted_token"), ("Basic YTpi", "other_credential")],
)
def test_a_header_that_does_not_hold_the_token_is_the_operators(sent: str, cause: str) -> None:
    """A redacted token, or a netrc entry, in the header: the operator's turn, chained to the user's own exception."""
    mine = RuntimeError("from the user's library")
    there = Reply(mine, True, challenge(EXPIRED), request_headers=(("authorization", sent),))
    error = Script(guarded_call(CASE, TOKEN, there)).fails(ConfigurationError)
    assert error.cause == cause
    assert error.__cause__ is mine
    assert error.response is mine


# --- the operator's --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "verdict"), [("Bearer", "empty"), ('Bearer error="invalid_dpop_proof"', "bad_scheme")]
)
def test_an_operators_mistake_touches_no_grant(said: str, verdict: str) -> None:
    """An empty header, an unknown scheme: one event an hour and a configuration error with the fix."""
    script = Script(guarded_call(CASE, TOKEN, refused(said)))
    announce = script.step(Announce)
    assert isinstance(announce.event, ConfigurationProblem)
    assert (announce.event.cause, announce.every) == (verdict, 3600.0)
    error = script.fails(ConfigurationError)
    assert (error.cause, error.turn) == (verdict, Turn.OPERATOR)
    assert error.fix
    assert error.diagnosis is not None
    assert error.diagnosis.turn is Turn.OPERATOR


# --- expired, invalid ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [EXPIRED, INVALID])
@pytest.mark.parametrize("outcome", [Renewed(NEWER), Adopted(NEWER)])
def test_a_dead_token_is_renewed_and_the_call_repeated(said: str, outcome: Any) -> None:
    """Renewed once, or adopted; the first answer is closed before the repeat; the second is what the user gets."""
    first, second = refused(said), reply(None)
    script = Script(guarded_call(CASE, TOKEN, first))
    assert script.step(Renew, outcome) == Renew(KEY, GRANT.seen, refused=True)
    script.step(OpenAccessToken, NEW_TOKEN)
    script.step(Repeatable, True)
    assert script.step(Discard).reply is first
    assert script.step(CallApi, second).token is NEW_TOKEN
    assert script.end() is second


@pytest.mark.parametrize("retry", [False, True])
def test_what_cannot_be_repeated_passes_through_after_the_renewal(retry: bool) -> None:
    """``retry=False``, or a used-up stream: renewed for the next call, and the original passes through."""
    first = refused()
    script = Script(guarded_call(Case(KEY, REGISTRATION, profile(), retry), TOKEN, first))
    script.step(Renew, Renewed(NEWER))
    script.step(OpenAccessToken, NEW_TOKEN)
    if retry:
        script.step(Repeatable, False)
    assert script.end() is first


def repeated(case: Case, said: str, again: str, status: int = 401) -> Script:
    """A call that was refused, renewed and repeated, and refused again."""
    script = Script(guarded_call(case, TOKEN, refused(said)))
    script.step(Renew, Renewed(NEWER))
    script.step(OpenAccessToken, NEW_TOKEN)
    script.step(Repeatable, True)
    script.step(Discard)
    script.step(CallApi, refused(again, status))
    return script


@pytest.mark.parametrize("again", [EXPIRED, INVALID])
def test_a_renewed_token_that_is_refused_too(again: str) -> None:
    """Never renewed again: a prompt, and the row is not marked."""
    script = repeated(CASE, EXPIRED, again)
    renewed = a_grant(generation=5, **YOUNG)
    script.step(LoadGrant, renewed)
    assert script.step(CountRefusal, False).key == KEY
    prompt = Prompt(KEY.registration, KEY.member, "refused_after_renewal", (), None)
    assert script.step(OpenPrompt, prompt) == OpenPrompt(renewed, "refused_after_renewal")
    error = script.fails(ReauthenticationRequired)
    assert (error.cause, error.prompt) == ("refused_after_renewal", prompt)
    assert error.response == ("response", 401)


def test_an_adopted_token_that_is_refused_too() -> None:
    """Nobody has renewed it yet: the member is not asked, the next call renews."""
    script = repeated(CASE, EXPIRED, INVALID)
    script.step(LoadGrant, a_grant(generation=5, **OLD))
    assert script.fails(TemporarilyUnavailable).cause == "overtaken"


def test_a_provider_that_refuses_everybody() -> None:
    """Three members within five minutes: it is the provider; one event, and nobody is prompted."""
    script = repeated(CASE, EXPIRED, INVALID)
    script.step(LoadGrant, a_grant(generation=5, **YOUNG))
    script.step(CountRefusal, True)
    announce = script.step(Announce)
    assert isinstance(announce.event, ProviderTrouble)
    assert (announce.event.cause, announce.every) == ("refuses_everybody", 300.0)
    assert script.fails(TemporarilyUnavailable).cause == "refuses_everybody"


@pytest.mark.parametrize(
    ("found", "kind", "cause"),
    [
        (None, NotConnected, "not_connected"),
        (marked(NEWER, "revoked"), ReauthenticationRequired, "revoked"),
        (a_grant(generation=6, renewed_at=START - SECOND), TemporarilyUnavailable, "overtaken"),
        (a_grant(id="9" * 32, generation=1), TemporarilyUnavailable, "overtaken"),
    ],
)
def test_a_second_refusal_of_what_is_not_stored_any_more(found: StoredGrant | None, kind: Any, cause: str) -> None:
    """Evidence about an older token opens no prompt on what is stored now; the answer goes with the error."""
    script = repeated(CASE, EXPIRED, INVALID)
    script.step(LoadGrant, found)
    error = script.fails(kind)
    assert error.cause == cause
    assert error.response == ("response", 401)


@pytest.mark.parametrize("said", [EXPIRED, INVALID])
@pytest.mark.parametrize("expired", [False, True])
def test_dead_without_a_refresh_token(said: str, expired: bool) -> None:
    """Expired, by the provider's word or the clock: marked. Invalid and the cause unstated: asked, and not marked."""
    grant = a_grant(sealed_refresh_token=None, access_expires_at=START + (-1 if expired else 3000) * SECOND)
    script = Script(guarded_call(CASE, TOKEN, refused(said)))
    script.step(Renew, MemberTurn("no_refresh_token", None, grant=grant, marked=False))
    if said == INVALID and not expired:
        script.step(LoadGrant, grant)
        script.step(CountRefusal, False)
        prompt = Prompt(KEY.registration, KEY.member, "invalid", (), None)
        assert script.step(OpenPrompt, prompt).cause == "invalid"
    else:
        now_marked = marked(grant, "expired")
        prompt = now_marked.prompt
        assert script.step(MarkGrant, Marked(now_marked)) == MarkGrant(grant, "expired")
    error = script.fails(ReauthenticationRequired)
    assert error.prompt is prompt
    assert error.diagnosis is not None
    assert error.diagnosis.turn is Turn.MEMBER


ASKED = Prompt(KEY.registration, KEY.member, "refused_after_renewal", (), None)


def test_refused_within_seconds_of_a_renewal() -> None:
    """A token renewed a moment ago is refused: no second renewal so soon, and nobody is asked; it says when."""
    script = Script(guarded_call(CASE, TOKEN, refused()))
    script.step(Renew, MemberTurn("refused_after_renewal", None, grant=a_grant(**YOUNG), marked=False))
    error = script.fails(TemporarilyUnavailable)
    assert (error.cause, error.retry_after) == ("renewed_lately", 20.0)


def test_refused_within_seconds_of_a_renewal_and_asked_already() -> None:
    """The member was asked when the renewed token was refused: the same prompt, not another answer each time."""
    asked = a_grant(prompt=ASKED, **YOUNG)
    script = Script(guarded_call(CASE, TOKEN, refused()))
    script.step(Renew, MemberTurn("refused_after_renewal", ASKED, grant=asked, marked=False))
    script.step(LoadGrant, asked)
    script.step(CountRefusal, False)
    script.step(OpenPrompt, ASKED)
    assert script.fails(ReauthenticationRequired).cause == "refused_after_renewal"


def test_a_new_consent_just_before_the_prompt() -> None:
    """The member signed in while an old refusal was being weighed: no prompt on the new consent."""
    script = Script(guarded_call(CASE, TOKEN, refused()))
    script.step(Renew, MemberTurn("refused_after_renewal", ASKED, grant=a_grant(prompt=ASKED, **YOUNG), marked=False))
    script.step(LoadGrant, a_grant(generation=5, renewed_at=START - SECOND))
    assert script.fails(TemporarilyUnavailable).cause == "overtaken"


def test_errors_are_chained_to_the_users_own_exception() -> None:
    """Where the library raised, our error comes from its exception, and carries it."""
    mine = RuntimeError("401")
    there = Reply(mine, True, challenge(EXPIRED))
    script = Script(guarded_call(CASE, TOKEN, there))
    script.step(Renew, Weather("unanswered", retry_after=3.0))
    error = script.fails(TemporarilyUnavailable)
    assert error.__cause__ is mine
    assert error.response is mine


# --- revoked ---------------------------------------------------------------------------------------------------------


def test_revoked_means_the_grant() -> None:
    """Where the profile says so, nothing in flight: marked at once, with the row's prompt on the error."""
    script = Script(guarded_call(LINKEDIN, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, GRANT)
    now_marked = marked(GRANT, "revoked")
    assert script.step(MarkGrant, Marked(now_marked)) == MarkGrant(GRANT, "revoked")
    error = script.fails(ReauthenticationRequired)
    assert (error.cause, error.prompt) == ("revoked", now_marked.prompt)


def test_revoked_elsewhere_is_tried_with_the_refresh_token() -> None:
    """GitLab kills the old access token at each renewal: the refresh token is tried once before anyone is told."""
    script = Script(guarded_call(CASE, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, GRANT)
    assert script.step(Renew, Renewed(NEWER)) == Renew(KEY, GRANT.seen, refused=True)
    script.step(OpenAccessToken, NEW_TOKEN)
    script.step(Repeatable, True)
    script.step(Discard)
    there = reply(None)
    script.step(CallApi, there)
    assert script.end() is there


def test_revoked_and_newer_in_the_store() -> None:
    """The refusal was about an older token: the stored one is used."""
    script = Script(guarded_call(LINKEDIN, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, NEWER)
    assert script.step(OpenAccessToken, NEW_TOKEN).grant is NEWER
    script.step(Repeatable, True)
    script.step(Discard)
    script.step(CallApi, reply(None))
    script.end()


@pytest.mark.parametrize("in_flight", [{"claim_id": "c" * 32}, {"in_flight_since": START, "in_flight_tries": 1}])
def test_revoked_while_a_renewal_is_in_flight(in_flight: dict[str, Any]) -> None:
    """A claim, or a mark in doubt: its outcome comes first, also where revoked means the grant."""
    script = Script(guarded_call(LINKEDIN, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, a_grant(**in_flight))
    assert script.step(Renew, member_turn("grant_revoked")).refused
    assert script.fails(ReauthenticationRequired).cause == "grant_revoked"


def test_revoked_and_the_row_changes_under_the_mark() -> None:
    """A claim came just before the mark: the mark is refused, and everything is looked at again."""
    claimed = a_grant(claim_id="c" * 32)
    script = Script(guarded_call(LINKEDIN, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, GRANT)
    script.step(MarkGrant, claimed)
    script.step(LoadGrant, claimed)
    script.step(Renew, Renewed(NEWER))
    script.step(OpenAccessToken, NEW_TOKEN)
    script.step(Repeatable, False)
    script.end()


@pytest.mark.parametrize(
    ("found", "kind", "cause"),
    [(None, NotConnected, "not_connected"), (marked(GRANT, "expired"), ReauthenticationRequired, "expired")],
)
def test_revoked_and_the_row_is_past_it(found: StoredGrant | None, kind: Any, cause: str) -> None:
    """Forgotten, or marked by somebody before: the row's own state is what the caller hears, with the answer."""
    script = Script(guarded_call(LINKEDIN, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, found)
    error = script.fails(kind)
    assert error.cause == cause
    assert error.response == ("response", 401)


def test_a_young_token_called_revoked_is_tried_again() -> None:
    """Replicas lag: the same token a few seconds later, and the call goes through."""
    young = a_grant(**YOUNG)
    script = Script(guarded_call(LINKEDIN, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, young)
    script.step(Repeatable, True)
    assert script.step(Sleep).seconds == REPLICA_LAG
    script.step(LoadGrant, young)
    script.step(OpenAccessToken, TOKEN)
    script.step(Repeatable, True)
    script.step(Discard)
    there = reply(None)
    script.step(CallApi, there)
    assert script.end() is there


def test_a_young_token_and_a_newer_one_after_the_wait() -> None:
    """Somebody renewed in those seconds: the newer token is what the repeat is made with."""
    script = Script(guarded_call(LINKEDIN, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, a_grant(**YOUNG))
    script.step(Repeatable, True)
    script.step(Sleep)
    script.step(LoadGrant, NEWER)
    assert script.step(OpenAccessToken, NEW_TOKEN).grant is NEWER


def test_a_young_token_and_the_member_left_meanwhile() -> None:
    """Marked in those seconds: nobody calls with it again."""
    script = Script(guarded_call(LINKEDIN, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, a_grant(**YOUNG))
    script.step(Repeatable, True)
    script.step(Sleep)
    script.step(LoadGrant, marked(GRANT, "grant_revoked"))
    assert script.fails(ReauthenticationRequired).cause == "grant_revoked"


@pytest.mark.parametrize("retry", [False, True])
def test_a_young_token_whose_call_cannot_be_repeated(retry: bool) -> None:
    """No second chance without a second call: the original passes through, and nobody is condemned."""
    there = refused(REVOKED)
    script = Script(guarded_call(Case(KEY, REGISTRATION, LINKEDIN.profile, retry), TOKEN, there))
    script.step(LoadGrant, a_grant(**YOUNG))
    if retry:
        script.step(Repeatable, False)
    assert script.end() is there


def test_a_young_token_called_revoked_twice() -> None:
    """Its second chance is used: now it counts, and the grant is marked."""
    young = a_grant(**YOUNG)
    script = Script(guarded_call(LINKEDIN, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, young)
    script.step(Repeatable, True)
    script.step(Sleep)
    script.step(LoadGrant, young)
    script.step(OpenAccessToken, a_token(GRANT))
    script.step(Repeatable, True)
    script.step(Discard)
    script.step(CallApi, refused(REVOKED))
    script.step(LoadGrant, young)
    script.step(MarkGrant, Marked(marked(GRANT, "revoked")))
    assert script.fails(ReauthenticationRequired).cause == "revoked"


def test_a_renewed_token_called_revoked_within_its_first_minute() -> None:
    """No third call, and no mark on so young a word: unavailable for a few seconds."""
    script = repeated(LINKEDIN, EXPIRED, REVOKED)
    script.step(LoadGrant, a_grant(generation=5, **YOUNG))
    error = script.fails(TemporarilyUnavailable)
    assert (error.cause, error.retry_after) == ("revoked_too_soon", REPLICA_LAG)


def test_a_renewed_token_called_revoked_where_that_means_little() -> None:
    """Renewed in this call, and revoked again: never renewed twice; asked, and not marked."""
    script = repeated(CASE, EXPIRED, REVOKED)
    script.step(LoadGrant, NEWER)
    script.step(LoadGrant, NEWER)
    script.step(CountRefusal, False)
    script.step(OpenPrompt, Prompt(KEY.registration, KEY.member, "revoked", (), None))
    assert script.fails(ReauthenticationRequired).cause == "revoked"


@pytest.mark.parametrize("outcome", [Renewed(a_grant(generation=6)), Adopted(a_grant(generation=6))])
def test_a_second_refusal_while_another_renewal_is_in_flight(outcome: Any) -> None:
    """Its outcome is waited for; a call is made at most twice, so the caller is told to come again."""
    script = repeated(LINKEDIN, EXPIRED, REVOKED)
    script.step(LoadGrant, a_grant(generation=5, claim_id="c" * 32, **OLD))
    script.step(Renew, outcome)
    assert script.fails(TemporarilyUnavailable).cause == "overtaken"


def test_a_second_refusal_of_what_was_replaced_meanwhile() -> None:
    """A newer token is stored, and two calls were made: unavailable, try again."""
    script = repeated(LINKEDIN, EXPIRED, REVOKED)
    script.step(LoadGrant, a_grant(generation=6))
    assert script.fails(TemporarilyUnavailable).cause == "overtaken"


def test_revoked_right_after_somebodys_renewal() -> None:
    """The refresh token is not tried within seconds of a renewal: nobody is asked, nothing marked."""
    lately = a_grant(**YOUNG)
    script = Script(guarded_call(CASE, TOKEN, refused(REVOKED)))
    script.step(LoadGrant, lately)
    script.step(Renew, MemberTurn("refused_after_renewal", None, grant=lately, marked=False))
    assert script.fails(TemporarilyUnavailable).cause == "renewed_lately"


# --- scopes, step-up, blocked ----------------------------------------------------------------------------------------

SCOPE = 'Bearer error="insufficient_scope", scope="read mail"'


def test_a_scope_is_missing() -> None:
    """Exactly what is missing is asked for, and the row stays as it is."""
    script = Script(guarded_call(CASE, TOKEN, refused(SCOPE, 403)))
    script.step(LoadGrant, GRANT)
    prompt = Prompt(KEY.registration, KEY.member, "insufficient_scope", ("mail",), None)
    assert script.step(OpenPrompt, prompt) == OpenPrompt(GRANT, "insufficient_scope", ("mail",))
    error = script.fails(ScopeRequired)
    assert error.prompt is prompt
    assert "mail" in str(error)


def test_a_scope_is_missing_that_the_registration_asks_for() -> None:
    """The answer does not say which: what is registered and was not granted is what is missing."""
    registration = Registration("example", client_id="c", scopes=["read", "mail"])
    script = Script(
        guarded_call(Case(KEY, registration, profile()), TOKEN, refused('Bearer error="insufficient_scope"'))
    )
    script.step(LoadGrant, GRANT)
    assert script.step(OpenPrompt, Prompt("example", "ann", "insufficient_scope", ("mail",), None)).scopes == ("mail",)
    script.fails(ScopeRequired)


def test_no_scope_is_missing() -> None:
    """Nothing is missing from what was granted: the operator's turn."""
    script = Script(guarded_call(CASE, TOKEN, refused('Bearer error="insufficient_scope", scope="read"', 403)))
    script.step(LoadGrant, GRANT)
    script.step(Announce)
    assert script.fails(ConfigurationError).cause == "insufficient_scope"


def test_a_scope_on_its_way() -> None:
    """Within five minutes of a new consent the refusal passes through; a first consent is no new one."""
    again = a_grant(created_at=START - DAY, consented_at=START - 200 * SECOND)
    there = refused(SCOPE, 403)
    script = Script(guarded_call(CASE, TOKEN, there))
    script.step(LoadGrant, again)
    assert script.end() is there
    first = a_grant(created_at=START - 200 * SECOND, consented_at=START - 200 * SECOND)
    script = Script(guarded_call(CASE, TOKEN, there))
    script.step(LoadGrant, first)
    script.step(OpenPrompt)


def test_a_scope_missing_from_an_older_token() -> None:
    """The store is newer: that token is tried first."""
    script = Script(guarded_call(CASE, TOKEN, refused(SCOPE, 403)))
    script.step(LoadGrant, NEWER)
    script.step(OpenAccessToken, NEW_TOKEN)
    script.step(Repeatable, True)


STEP_UP = 'Bearer error="insufficient_user_authentication", acr_values="gold"'


def test_step_up() -> None:
    """The member must sign in more strongly: the prompt carries what was asked for, and the row stays as it is."""
    script = Script(guarded_call(CASE, TOKEN, refused(STEP_UP)))
    script.step(LoadGrant, GRANT)
    prompt = Prompt(KEY.registration, KEY.member, "step_up", (), None, "gold")
    assert script.step(OpenPrompt, prompt) == OpenPrompt(GRANT, "step_up", acr_values="gold")
    error = script.fails(ReauthenticationRequired)
    assert (error.cause, error.prompt) == ("step_up", prompt)


def test_step_up_that_was_just_done() -> None:
    """The refusal was about an older token, and the member has signed in since: the new one is used, nobody is asked."""
    script = Script(guarded_call(CASE, TOKEN, refused(STEP_UP)))
    script.step(LoadGrant, NEWER)
    script.step(OpenAccessToken, NEW_TOKEN)
    script.step(Repeatable, True)
    script.step(Discard)
    script.step(CallApi, refused(STEP_UP))
    script.step(LoadGrant, a_grant(generation=6))
    assert script.fails(TemporarilyUnavailable).cause == "overtaken"


BLOCKED = Rules(
    own=(Rule("locked", Verdict.ACCOUNT_BLOCKED, "Locked.", "Unlock it.", "here", statuses=frozenset({403})),)
)


def test_a_blocked_account() -> None:
    """Signing in again does not help: an error of its own, and the row stays as it is."""
    case = Case(KEY, REGISTRATION, profile().__class__(name="example", rules=BLOCKED))
    script = Script(guarded_call(case, TOKEN, reply(Answer(403, (), b""))))
    script.step(LoadGrant, GRANT)
    prompt = Prompt(KEY.registration, KEY.member, "account_blocked", (), None)
    script.step(OpenPrompt, prompt)
    error = script.fails(AccountBlocked)
    assert error.prompt is prompt
    assert "Unlock it." in str(error)


def test_recover_alone_lets_a_success_pass() -> None:
    """Nothing to judge, nothing to do."""
    assert Script(recover(CASE, TOKEN, reply(None))).end() is None


# --- a grant's age ---------------------------------------------------------------------------------------------------


def test_a_grants_age() -> None:
    """Fresh, aging, expired and unknown; the leeway is a tenth of its life, at most five minutes, spread by grant."""
    life = a_grant(renewed_at=START, access_expires_at=START + 10_000 * SECOND)
    assert life.freshness() is Freshness.FRESH
    middle = life.aging_at()
    assert middle is not None
    assert abs((START + 9_700 * SECOND) - middle) <= SECOND  # an id from the middle of all ids: neither early nor late
    ends = [
        a_grant(id=head + "0" * 28, renewed_at=START, access_expires_at=life.access_expires_at)
        for head in ("0000", "ffff")
    ]
    assert [(each.aging_at() or 0) - START for each in ends] == [9_760 * SECOND, 9_640 * SECOND]
    short = a_grant(renewed_at=START, access_expires_at=START + 100 * SECOND)
    assert ((short.aging_at() or 0) - START) // SECOND == 89
    assert a_grant(now=middle, access_expires_at=life.access_expires_at).freshness() is Freshness.AGING
    assert a_grant(now=START + 3000 * SECOND).freshness() is Freshness.EXPIRED
    assert a_grant(access_expires_at=None).freshness() is Freshness.UNKNOWN
    assert a_grant().freshness(leeway=4000.0) is Freshness.AGING
    assert a_grant().freshness(leeway=-5.0) is Freshness.FRESH
    assert a_grant(id="", access_expires_at=START + SECOND).freshness() is Freshness.AGING


def test_newer_is_another_grant_or_a_higher_generation() -> None:
    """What is newer than what was seen."""
    assert NEWER.newer_than(GRANT.seen)
    assert not GRANT.newer_than(GRANT.seen)
    assert not GRANT.newer_than(NEWER.seen)
    assert a_grant(id="9" * 32, generation=1).newer_than(NEWER.seen)


def test_what_is_shown_of_a_grant_holds_no_secret() -> None:
    """The public grant says that there is a refresh token, and nothing of it."""
    public = a_grant().public()
    assert public.has_refresh_token
    assert "sealed" not in repr(public)
    assert "sealed" not in repr(a_grant())
    assert json.dumps({"at": public.created_at.isoformat()})


def test_a_diagnosis_of_the_world_is_the_generic_one() -> None:
    """The world's refusals are read by the rules that ship."""
    found = GENERIC.candidates
    assert found
    from tokenkeeper.core.diagnosis import diagnose

    said: dict[str, Diagnosis] = {text: diagnose(challenge(text), GENERIC) for text in (EXPIRED, REVOKED, INVALID)}
    assert [each.verdict for each in said.values()] == [Verdict.EXPIRED, Verdict.REVOKED, Verdict.INVALID]
