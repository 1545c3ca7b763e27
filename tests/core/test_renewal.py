"""The renewal, driven by hand: claim, redeem, save, adopt, and everything that may come between (DESIGN section 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from core.world import KEY, REGISTRATION, START, TOKEN_ANSWERS, Script, a_grant, a_token, profile, token_answer

from tokenkeeper.core.diagnosis import Rules
from tokenkeeper.core.effects import (
    SECOND,
    Adopted,
    Announce,
    Claim,
    ClaimGrant,
    CountContradiction,
    EndPause,
    Gone,
    Introspect,
    LoadGrant,
    LoadPause,
    Marked,
    MarkGrant,
    MemberTurn,
    Misconfigured,
    NewId,
    OpenAccessToken,
    OpenedRefreshToken,
    OpenRefreshToken,
    OperatorTurn,
    Overtaken,
    Pause,
    PauseRegistration,
    Redeem,
    Redeemed,
    ReleaseClaim,
    RememberSecret,
    Renewed,
    RevokeToken,
    Saved,
    SaveTokens,
    SecretInUse,
    Seen,
    Sleep,
    SpillTokens,
    StoredGrant,
    Unsaved,
    Weather,
)
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.renewal import (
    CONTRADICTIONS,
    MAX_BACK_OFF,
    POLL,
    SAVE_RETRY,
    RenewalJob,
    answers,
    back_off,
    held_back,
    renew,
)
from tokenkeeper.core.rules import Rule
from tokenkeeper.core.token_endpoint import CLAIM_LOST, NeverSent, Unanswered
from tokenkeeper.errors import ConfigurationError, KeyUnavailable
from tokenkeeper.events import ConfigurationProblem, ProviderTrouble
from tokenkeeper.model import Answer, GrantStatus, Prompt, Registration, Rotation, Secret, Surface, Verdict

EXPIRED = {"access_expires_at": START - SECOND}
OLD = a_grant(**EXPIRED)
NEWER = a_grant(generation=5, access_expires_at=START + 3600 * SECOND, renewed_at=START)
REFRESH = Secret("refresh-4")
SENT_AT = 12.5
ISSUED = token_answer(200, {"access_token": "access-5", "refresh_token": "refresh-5", "expires_in": 3600})


def job(rotation: Rotation = Rotation.STRICT, grant: StoredGrant = OLD, **more: Any) -> RenewalJob:
    """A renewal of what is stored in *grant*."""
    facts = {name: more.pop(name) for name in ("introspection_endpoint", "grace_seconds", "rules") if name in more}
    used = profile(rotation, **{key: value for key, value in facts.items() if key != "rules"})
    if "rules" in facts:
        used = replace(used, rules=facts["rules"])
    return RenewalJob(KEY, more.pop("registration", REGISTRATION), used, grant.seen, **more)


def claim_of(grant: StoredGrant = OLD, tries: int = 1, since: int = START, **changes: Any) -> Claim:
    """The claim that was taken on *grant*, for the so-manieth presentation."""
    held = replace(
        grant, claim_id="c0ffee00" * 4, claimed_until=START + 90 * SECOND, in_flight_since=since, in_flight_tries=tries
    )
    return Claim("c0ffee00" * 4, replace(held, **changes), 10.0, 90.0)


def claimed(what: RenewalJob, grant: StoredGrant = OLD, claim: Claim | None = None) -> tuple[Script, Claim]:
    """A renewal up to its opened refresh token."""
    claim = claim or claim_of(grant)
    script = Script(renew(what))
    script.step(LoadGrant, grant)
    if not what.forced:
        script.step(LoadPause, None)
    assert script.step(ClaimGrant, claim) == ClaimGrant(grant, what.profile.timing.lease, what.forced)
    if not what.forced:
        script.step(LoadPause, None)
    assert script.step(OpenRefreshToken, OpenedRefreshToken(REFRESH)).claim is claim
    script.step(SecretInUse, 0)
    return script, claim


def redeemed(
    what: RenewalJob, outcome: Any, claim: Claim | None = None, grant: StoredGrant = OLD
) -> tuple[Script, Claim]:
    """A renewal up to the outcome of its token request."""
    script, claim = claimed(what, grant, claim)
    redeem = script.step(Redeem, Redeemed(outcome, SENT_AT))
    assert redeem == Redeem(claim, REFRESH, what.profile.timing.deadline, 0)
    return script, claim


# --- a renewal that works --------------------------------------------------------------------------------------------


def test_a_renewal() -> None:
    """Claim, open, redeem, spill, save; only then is there an outcome."""
    script, claim = redeemed(job(), ISSUED)
    spilled = script.step(SpillTokens)
    saving = script.step(SaveTokens, Saved(NEWER))
    assert spilled.tokens is saving.tokens
    assert (saving.claim, saving.sent_at) == (claim, SENT_AT)
    assert saving.tokens.refresh_token == Secret("refresh-5")
    assert script.end() == Renewed(NEWER)


def test_the_old_refresh_token_stays_where_none_came() -> None:
    """No new refresh token in the answer: the old one is stored again, under the new generation."""
    script, _ = redeemed(job(), token_answer(200, {"access_token": "access-5"}))
    script.step(SpillTokens)
    assert script.step(SaveTokens, Saved(NEWER)).tokens.refresh_token == REFRESH
    script.end()


def test_a_success_ends_the_registrations_pause() -> None:
    """One renewal in a while probes a pause, and its success ends it."""
    script = Script(renew(job()))
    script.step(LoadGrant, OLD)
    script.step(LoadPause, Pause("invalid_client", "fix it", due=True))
    claim = claim_of()
    script.step(ClaimGrant, claim)
    assert script.step(LoadPause, Pause("invalid_client", "fix it", due=True)) == LoadPause(
        KEY.registration, probe=True
    )
    script.step(OpenRefreshToken, OpenedRefreshToken(REFRESH))
    script.step(SecretInUse, 0)
    script.step(Redeem, Redeemed(ISSUED, SENT_AT))
    script.step(SpillTokens)
    script.step(SaveTokens, Saved(NEWER))
    assert script.step(EndPause) == EndPause(KEY.registration)
    assert script.end() == Renewed(NEWER)


def test_the_store_cannot_be_written() -> None:
    """New tokens exist nowhere else: saving goes on, with growing pauses, for as long as it takes."""
    script, _ = redeemed(job(), ISSUED)
    script.step(SpillTokens)
    pauses = []
    for _ in range(7):
        script.step(SaveTokens, Unsaved("down"))
        pauses.append(script.step(Sleep).seconds)
    assert pauses == [0.05, 0.1, 0.2, 0.5, 0.5, 0.5, 0.5]
    script.step(SaveTokens, Saved(NEWER))
    assert script.end() == Renewed(NEWER)


@pytest.mark.parametrize(
    ("then", "outcome"),
    [
        (NEWER, Adopted(NEWER)),
        (None, Gone()),
        (a_grant(id="9" * 32, generation=1), Adopted(a_grant(id="9" * 32, generation=1))),
        (
            a_grant(generation=5, status=GrantStatus.NEEDS_REAUTHENTICATION),
            MemberTurn("refused", None, grant=a_grant(generation=5, status=GrantStatus.NEEDS_REAUTHENTICATION)),
        ),
    ],
)
def test_a_save_that_was_overtaken(then: StoredGrant | None, outcome: Any) -> None:
    """The row has moved on: it is looked at again, and what stands there now decides; a marked one is not served."""
    script, _ = redeemed(job(Rotation.NONE), token_answer(200, {"access_token": "access-5"}))
    script.step(SpillTokens)
    script.step(SaveTokens, Overtaken(then))
    script.step(Sleep)
    script.step(LoadGrant, then)
    assert script.end() == outcome


def test_the_successor_of_a_refresh_token_that_a_consent_kept() -> None:
    """The newer consent goes on with the token that was just redeemed: it gets the successor, and keeps its access token."""
    script, claim = redeemed(job(), ISSUED)
    script.step(SpillTokens)
    consent = a_grant(generation=5, access_expires_at=START + 7200 * SECOND, scopes=("read", "mail"))
    script.step(SaveTokens, Overtaken(consent))
    aimed = replace(claim, grant=consent)
    assert script.step(OpenRefreshToken, OpenedRefreshToken(REFRESH)).claim == aimed
    theirs = a_token(consent, "access-of-the-consent")
    script.step(OpenAccessToken, theirs)
    script.step(SpillTokens)
    latest = a_grant(generation=6)
    saving = script.step(SaveTokens, Saved(latest))
    assert saving.claim == aimed
    assert (saving.tokens.access_token, saving.tokens.refresh_token) == (theirs, Secret("refresh-5"))
    assert (saving.tokens.expires_at, saving.tokens.expires_in) == (START / SECOND + 7200, None)
    assert saving.tokens.scopes is None
    assert script.end() == Renewed(latest)


def test_the_successor_keeps_an_unknown_life_unknown() -> None:
    """The consent did not say how long its access token lives, and the renewal's answer does not either."""
    script, _ = redeemed(job(), ISSUED)
    script.step(SpillTokens)
    consent = a_grant(generation=5, access_expires_at=None)
    script.step(SaveTokens, Overtaken(consent))
    script.step(OpenRefreshToken, OpenedRefreshToken(REFRESH))
    script.step(OpenAccessToken, a_token(consent))
    script.step(SpillTokens)
    saving = script.step(SaveTokens, Overtaken(None))
    assert (saving.tokens.expires_at, saving.tokens.expires_in) == (None, None)


@pytest.mark.parametrize(
    "kept", [OpenedRefreshToken(Secret("refresh-of-the-consent")), Misconfigured(KeyUnavailable("no key"))]
)
def test_a_consent_with_a_refresh_token_of_its_own_is_left_alone(kept: Any) -> None:
    """A newer consent with another refresh token (or one that cannot be opened): our tokens are nobody's any more."""
    script, _ = redeemed(job(), ISSUED)
    script.step(SpillTokens)
    consent = a_grant(generation=5)
    script.step(SaveTokens, Overtaken(consent))
    script.step(OpenRefreshToken, kept)
    script.step(Sleep)
    script.step(LoadGrant, consent)
    assert script.end() == Adopted(consent)


@pytest.mark.parametrize(
    "row", [a_grant(generation=5, sealed_refresh_token=None), a_grant(generation=3, consented_at=START - 7200 * SECOND)]
)
def test_a_row_that_cannot_have_kept_it(row: StoredGrant) -> None:
    """No refresh token in the newer row, or an older consent (a restored backup): it is looked at again."""
    script, _ = redeemed(job(), ISSUED)
    script.step(SpillTokens)
    script.step(SaveTokens, Overtaken(row))
    script.step(Sleep)


def test_a_row_that_fell_behind_is_healed() -> None:
    """A backup was restored while the answer was on its way: the same consent's newest tokens go over what stands there."""
    script, claim = redeemed(job(), ISSUED)
    script.step(SpillTokens)
    assert script.step(SaveTokens, Overtaken(a_grant(generation=2))).over is None
    saving = script.step(SaveTokens, Overtaken(a_grant(generation=3)))
    assert (saving.claim, saving.over) == (claim, 2)
    assert script.step(SaveTokens, Saved(NEWER)).over == 3, "it moved again meanwhile"
    assert script.end() == Renewed(NEWER)


@pytest.mark.parametrize(
    ("answer", "token", "hint"),
    [
        (ISSUED, "refresh-5", "refresh_token"),
        (token_answer(200, {"access_token": "access-5"}), "refresh-4", "refresh_token"),
    ],
)
def test_the_grant_was_revoked_while_its_renewal_was_under_way(answer: Answer, token: str, hint: str) -> None:
    """A late answer to a grant that was revoked and deleted: its tokens are revoked too, once, whatever comes of it."""
    what = job()
    what = replace(what, profile=replace(what.profile, revocation_endpoint="https://provider.example/revoke"))
    script, _ = redeemed(what, answer)
    script.step(SpillTokens)
    script.step(SaveTokens, Overtaken(None, revoked=True))
    script.step(LoadGrant, None)
    script.step(SecretInUse, 0)
    sent = script.step(RevokeToken, Redeemed(Unanswered("timeout"), SENT_AT))
    assert sent == RevokeToken(KEY.registration, Secret(token), hint, what.profile.timing.deadline, 0)
    script.step(Sleep)
    script.step(LoadGrant, None)
    assert script.end() == Gone()


def test_a_late_answer_does_not_revoke_what_was_connected_anew() -> None:
    """Some providers end all that an account has granted to a client when one of its tokens is revoked."""
    what = job()
    what = replace(what, profile=replace(what.profile, revocation_endpoint="https://provider.example/revoke"))
    script, _ = redeemed(what, ISSUED)
    script.step(SpillTokens)
    script.step(SaveTokens, Overtaken(None, revoked=True))
    anew = a_grant(id="9" * 32, generation=1)
    script.step(LoadGrant, anew)
    script.step(Sleep)
    script.step(LoadGrant, anew)
    assert script.end() == Adopted(anew)


@pytest.mark.parametrize("revoked", [False, True])
def test_nobody_is_told_of_tokens_without_a_revocation_or_an_endpoint(revoked: bool) -> None:
    """Forgotten, the tokens are dropped; revoked at a provider that has no revocation endpoint, too."""
    what = job()
    endpoint = None if revoked else "https://provider.example/revoke"
    what = replace(what, profile=replace(what.profile, revocation_endpoint=endpoint))
    script, _ = redeemed(what, ISSUED)
    script.step(SpillTokens)
    script.step(SaveTokens, Overtaken(None, revoked=revoked))
    script.step(Sleep)
    script.step(LoadGrant, None)
    assert script.end() == Gone()


def test_tokens_of_a_grant_that_is_being_revoked_are_not_served() -> None:
    """Stored, so that the newest refresh token can be revoked; but nobody uses them."""
    script, _ = redeemed(job(), ISSUED)
    script.step(SpillTokens)
    revoking = a_grant(generation=5, status=GrantStatus.REVOKING)
    script.step(SaveTokens, Saved(revoking))
    script.step(Sleep)
    script.step(LoadGrant, revoking)
    outcome = script.end()
    assert isinstance(outcome, MemberTurn)
    assert outcome.cause == "revoking"


# --- judged, before anything is sent ---------------------------------------------------------------------------------

PROMPT = Prompt(KEY.registration, KEY.member, "grant_revoked", (), None)
MARKED = a_grant(status=GrantStatus.NEEDS_REAUTHENTICATION, prompt=PROMPT)
LATELY = {"renewed_at": START - 10 * SECOND}
DOUBT = {"in_flight_since": START - SECOND, "in_flight_tries": 1}


@pytest.mark.parametrize(
    ("what", "grant", "outcome"),
    [
        pytest.param(job(), None, Gone(), id="no row"),
        pytest.param(job(), a_grant(status=GrantStatus.REVOKING), "revoking", id="being revoked"),
        pytest.param(job(forced=True), a_grant(status=GrantStatus.REVOKING), "revoking", id="being revoked, forced"),
        pytest.param(job(), MARKED, "grant_revoked", id="marked"),
        pytest.param(job(), replace(MARKED, prompt=None), "refused", id="marked, no prompt"),
        pytest.param(job(refused=True), NEWER, Adopted(NEWER), id="newer"),
        pytest.param(job(forced=True), NEWER, Adopted(NEWER), id="newer, forced"),
        pytest.param(job(), a_grant(), Adopted(a_grant()), id="fresh after all"),
        pytest.param(job(), a_grant(access_expires_at=None), Adopted(a_grant(access_expires_at=None)), id="unknown age"),
        pytest.param(job(), a_grant(sealed_refresh_token=None, **EXPIRED), "no_refresh_token", id="nothing to renew with"),
        pytest.param(job(refused=True), a_grant(**LATELY), "refused_after_renewal", id="renewed a moment ago"),
        pytest.param(job(), a_grant(retry_at=START + 7 * SECOND, **EXPIRED), ("backing_off", 7.0), id="back-off"),
        pytest.param(job(), a_grant(**DOUBT), ("in_doubt", 3000.0), id="strict, in doubt, still good"),
        pytest.param(
            job(Rotation.UNKNOWN), a_grant(**DOUBT | {"in_flight_tries": 2}), ("in_doubt", 3000.0), id="one replay made"
        ),
        pytest.param(
            job(Rotation.GRACE), a_grant(**DOUBT | {"in_flight_tries": 4}), ("in_doubt", 3000.0), id="three replays made"
        ),
        pytest.param(
            job(Rotation.GRACE),
            a_grant(in_flight_since=START - 29 * SECOND, in_flight_tries=1),
            ("in_doubt", 3000.0),
            id="the grace is over",
        ),
    ],
)  # fmt: skip
def test_nothing_is_sent(what: RenewalJob, grant: StoredGrant | None, outcome: Any) -> None:
    """The row says that nothing needs to be, or may be, sent: not even a claim is taken."""
    script = Script(renew(what))
    script.step(LoadGrant, grant)
    found = script.end()
    if isinstance(outcome, str):
        assert isinstance(found, MemberTurn)
        assert found.cause == outcome
        assert found.marked == (outcome not in ("no_refresh_token", "refused_after_renewal"))
    elif isinstance(outcome, tuple):
        assert found == Weather(outcome[0], retry_after=outcome[1])
    else:
        assert found == outcome


@pytest.mark.parametrize(
    ("what", "grant"),
    [
        pytest.param(job(), OLD, id="expired"),
        pytest.param(job(), a_grant(access_expires_at=START + SECOND), id="aging"),
        pytest.param(job(minimum_lifetime=4000.0), a_grant(), id="too short a life"),
        pytest.param(job(refused=True), a_grant(), id="refused"),
        pytest.param(job(refused=True), a_grant(**LATELY, **EXPIRED), id="refused, and expired by the clock"),
        pytest.param(
            job(refused=True),
            a_grant(consented_at=START - 5 * SECOND, renewed_at=START - 10 * SECOND),
            id="refused, and the member signed in a moment ago",
        ),
        pytest.param(job(refused=True), a_grant(renewed_at=None), id="refused, never renewed"),
        pytest.param(job(refused=True), a_grant(renewed_at=START - 31 * SECOND), id="refused, renewed a while ago"),
        pytest.param(job(forced=True), MARKED, id="forced, marked"),
        pytest.param(job(forced=True), a_grant(retry_at=START + SECOND), id="forced, back-off"),
        pytest.param(job(forced=True), a_grant(**DOUBT | EXPIRED), id="forced, in doubt"),
        pytest.param(job(), a_grant(retry_at=START, **EXPIRED), id="the back-off is over"),
        pytest.param(job(Rotation.NONE), a_grant(**DOUBT), id="in doubt: replayed freely"),
        pytest.param(job(Rotation.BY_USE), a_grant(**DOUBT), id="in doubt, by use"),
        pytest.param(job(Rotation.GRACE), a_grant(**DOUBT), id="in doubt, inside the grace, though still good"),
        pytest.param(job(Rotation.UNKNOWN), a_grant(**DOUBT), id="in doubt, unknown: one replay"),
        pytest.param(job(), a_grant(**DOUBT, **EXPIRED), id="strict, in doubt, dead: nothing left to lose"),
        pytest.param(job(refused=True), a_grant(**DOUBT), id="strict, in doubt, refused"),
        pytest.param(job(), a_grant(access_expires_at=None, **DOUBT), id="strict, in doubt, age unknown"),
        pytest.param(job(), a_grant(generation=5, **EXPIRED), id="newer than what was seen, and expired since"),
    ],
)  # fmt: skip
def test_a_claim_is_taken(what: RenewalJob, grant: StoredGrant) -> None:
    """The row says that the refresh token should be redeemed now."""
    script = Script(renew(what))
    script.step(LoadGrant, grant)
    if not what.forced:
        script.step(LoadPause, None)
    assert script.step(ClaimGrant, None).grant is grant


def test_a_job_without_evidence_is_about_what_is_stored() -> None:
    """``seen`` is None: the first row that is read is what is renewed; what replaces it is adopted."""
    script = Script(renew(replace(job(forced=True), seen=None)))
    script.step(LoadGrant, OLD)
    script.step(ClaimGrant, None)
    script.step(Sleep)
    script.step(LoadGrant, NEWER)
    assert script.end() == Adopted(NEWER)


def test_a_refusal_of_an_older_token_is_no_evidence_against_a_newer_one() -> None:
    """Strict, in doubt: the newer token was never refused, and is expired; so it may be replayed, not because refused."""
    newer = a_grant(generation=5, **DOUBT | EXPIRED)
    script = Script(renew(job(refused=True)))
    script.step(LoadGrant, newer)
    script.step(LoadPause, None)
    script.step(ClaimGrant, None)
    script.step(Sleep)
    good_again = a_grant(generation=6)
    script.step(LoadGrant, good_again)
    assert script.end() == Adopted(good_again)


# --- claims ----------------------------------------------------------------------------------------------------------


def test_a_paused_registration() -> None:
    """While the registration is paused nothing is claimed; the operator's turn."""
    script = Script(renew(job()))
    script.step(LoadGrant, OLD)
    script.step(LoadPause, Pause("invalid_client", "fix it"))
    outcome = script.end()
    assert isinstance(outcome, OperatorTurn)
    assert (outcome.cause, outcome.fix) == ("invalid_client", "fix it")


def test_a_waiter_polls_without_a_claim() -> None:
    """Somebody else's claim visibly holds: the row is looked at, 25 to 100 ms apart, and the claim is not fought for."""
    script = Script(renew(job()))
    held = a_grant(claim_id="ab" * 16, claimed_until=START, **EXPIRED)
    pauses = []
    for _ in range(len(POLL) + 2):
        script.step(LoadGrant, held)
        sleep = script.step(Sleep)
        assert sleep.idle
        pauses.append(sleep.seconds)
    script.step(LoadGrant, NEWER)
    assert script.end() == Adopted(NEWER)
    spread = 0.75 + 0.5 * 0xAB / 0xFF
    assert pauses == pytest.approx([pause * spread for pause in (*POLL, 0.1, 0.1)])
    assert (POLL[0], max(POLL)) == (0.025, 0.1)


def test_asked_for_and_in_doubt_while_the_old_token_works() -> None:
    """Strict: a second try may end the grant, and whoever asks for a renewal does not ask for that."""
    script = Script(renew(job(forced=True)))
    script.step(LoadGrant, a_grant(**DOUBT))
    assert script.end() == Weather("in_doubt", retry_after=3000.0)
    lapsed = a_grant(claim_id="ab" * 16, claimed_until=START - 1, **DOUBT)
    script = Script(renew(job(forced=True)))
    script.step(LoadGrant, lapsed)
    claim = claim_of(lapsed, tries=2)
    script.step(ClaimGrant, claim)
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, failed=False)


def test_a_claim_that_has_lapsed_is_tried_at_once() -> None:
    """By the database's clock it is over: the first look is enough to try."""
    script = Script(renew(job()))
    lapsed = a_grant(claim_id="ab" * 16, claimed_until=START - 1, **EXPIRED)
    script.step(LoadGrant, lapsed)
    script.step(LoadPause, None)
    assert script.step(ClaimGrant, None).grant is lapsed


@pytest.mark.parametrize("rotation", list(Rotation))
def test_a_claim_that_was_taken_over_sends_nothing_at_once_where_a_reuse_may_end_the_grant(rotation: Rotation) -> None:
    """Its holder may be alive, with the only new tokens, and the database just back: it saves first."""
    lapsed = a_grant(claim_id="ab" * 16, claimed_until=START - 1, **EXPIRED)
    script = Script(renew(job(rotation, grace_seconds=60)))
    script.step(LoadGrant, lapsed)
    script.step(LoadPause, None)
    claim = claim_of(lapsed)
    script.step(ClaimGrant, claim)
    if rotation in (Rotation.STRICT, Rotation.UNKNOWN):
        assert script.step(Sleep).seconds > max(SAVE_RETRY) + 0.5
    script.step(LoadPause, None)
    script.step(OpenRefreshToken, OpenedRefreshToken(REFRESH))


def test_a_waiter_tries_after_a_lease_and_does_not_wait_for_ever() -> None:
    """A clock may be wrong: after a whole lease of its own waiting the claim is tried. Two leases are the end: the weather."""
    what = job(Rotation.GRACE)
    lease = what.profile.timing.lease
    held = a_grant(claim_id="ab" * 16, claimed_until=START + 9_999 * SECOND, **EXPIRED)
    script = Script(renew(what))
    waited = 0.0
    while waited < lease:
        script.step(LoadGrant, held)
        waited += script.step(Sleep).seconds
    while waited <= 2 * lease:
        script.step(LoadGrant, held)
        script.step(LoadPause, None)
        script.step(ClaimGrant, None)
        waited += script.step(Sleep).seconds
    script.step(LoadGrant, held)
    script.step(LoadPause, None)
    script.step(ClaimGrant, None)
    assert script.end() == Weather("claimed_elsewhere", retry_after=0.1)


def test_a_lapsed_claim_that_turns_out_to_be_in_doubt() -> None:
    """Strict: the claim before was in flight and the access token still works. Given back as it was, and held."""
    lapsed = a_grant(access_expires_at=START + 60 * SECOND, claim_id="ab" * 16, claimed_until=START - 1, **DOUBT)
    script = Script(renew(job(grant=lapsed)))
    script.step(LoadGrant, lapsed)
    script.step(LoadPause, None)
    claim = claim_of(lapsed, tries=2)
    script.step(ClaimGrant, claim)
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, failed=False)
    script.step(Sleep)
    script.step(LoadGrant, replace(lapsed, claim_id=None, claimed_until=None))
    assert script.end() == Weather("in_doubt", retry_after=60.0)


def test_the_claim_is_lost_at_the_last_look() -> None:
    """Nothing was sent: the row is looked at again, and what somebody else made of it is adopted."""
    script, _ = redeemed(job(), NeverSent(CLAIM_LOST))
    script.step(Sleep)
    script.step(LoadGrant, NEWER)
    assert script.end() == Adopted(NEWER)


# --- nothing was sent, or nothing was taken --------------------------------------------------------------------------


def test_the_refresh_token_does_not_open() -> None:
    """The operator's turn, before anything is sent; the claim is given back and the grant is as it was."""
    script = Script(renew(job()))
    script.step(LoadGrant, OLD)
    script.step(LoadPause, None)
    claim = claim_of()
    script.step(ClaimGrant, claim)
    script.step(LoadPause, None)
    error = KeyUnavailable("no key", cause="key_unavailable", fix="add it")
    script.step(OpenRefreshToken, Misconfigured(error))
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, failed=False)
    assert script.end() == OperatorTurn("key_unavailable", "no key", "add it", error=error)


def test_the_request_cannot_be_made() -> None:
    """No endpoint, no secret, a bad proxy: the operator's turn; the claim is given back."""
    error = ConfigurationError("no endpoint")
    script, claim = redeemed(job(), Misconfigured(error))
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, failed=False)
    assert script.end() == OperatorTurn("configuration", "no endpoint", "", error=error)


def test_never_sent() -> None:
    """No connection: the claim is given back, nothing is in doubt, and everybody waits a little."""
    script, claim = redeemed(job(), NeverSent("ConnectError"))
    wait = back_off(claim)
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, retry_after=wait)
    outcome = script.end()
    assert isinstance(outcome, Weather)
    assert (outcome.cause, outcome.retry_after, outcome.follow_up) == ("unreachable", wait, None)


def test_rate_limited() -> None:
    """429: not processed. Retry-After is honoured, up to an hour; without one, the back-off."""
    for answer, expected in [
        (TOKEN_ANSWERS["rate_limited"], 20.0),
        (token_answer(429, {}, retry_after="100000"), MAX_BACK_OFF),
        (token_answer(429, {}), None),
    ]:
        script, claim = redeemed(job(), answer)
        wait = back_off(claim) if expected is None else expected
        assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, retry_after=wait)
        outcome = script.end()
        assert (outcome.cause, outcome.retry_after) == ("rate_limited", wait)


def test_another_4xx_is_told_as_trouble_and_not_in_doubt() -> None:
    """An answer that says nothing we know: an incident, the claim is given back, and the grant is kept."""
    script, _ = redeemed(job(), token_answer(400, {"error": "access_denied"}))
    script.step(NewId, "an id")
    event = script.step(Announce).event
    assert isinstance(event, ProviderTrouble)
    assert event.incident["status"] == 400
    assert script.step(ReleaseClaim).in_doubt is False
    assert script.end().cause == "provider_fault"


@pytest.mark.parametrize("outcome", [NeverSent("ConnectError"), TOKEN_ANSWERS["rate_limited"]])
def test_inside_a_grace_the_keeper_goes_on_asking(outcome: Any) -> None:
    """An earlier presentation is in doubt: a 429 or no connection now is no reason to let the grace run out."""
    claim = claim_of(tries=2, since=START - 2 * SECOND)
    script, claim = redeemed(job(Rotation.GRACE), outcome, claim)
    release = script.step(ReleaseClaim)
    assert release.in_doubt is False
    assert script.end().follow_up == release.retry_after


def test_back_off_grows_and_ends() -> None:
    """1, 2, 4, … up to a quarter of an hour, ± 20 % by the claim."""
    waits = [back_off(claim_of(failures=failures)) for failures in (0, 1, 2, 9, 10, 12, 500)]
    spread = 0.8 + 0.4 * 0xC0FF / 0xFFFF
    assert waits == pytest.approx([each * spread for each in (1, 2, 4, 512, 900, 900, 900)])


# --- ambiguous -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [Rotation.NONE, Rotation.BY_USE, Rotation.STRICT, Rotation.UNKNOWN])
def test_unanswered(rotation: Rotation) -> None:
    """Sent, and no answer: the mark stays, and nobody replays at once."""
    script, claim = redeemed(job(rotation), Unanswered("deadline"))
    wait = back_off(claim)
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=True, retry_after=wait)
    outcome = script.end()
    assert (outcome.cause, outcome.retry_after, outcome.follow_up) == ("unanswered", wait, None)


@pytest.mark.parametrize(("tries", "ago", "follows"), [(1, 0, True), (3, 10, True), (4, 10, False), (2, 28, False)])
def test_inside_a_grace_the_keeper_replays(tries: int, ago: int, follows: bool) -> None:
    """Within a second, three times at most, and not when the grace is nearly over."""
    claim = claim_of(tries=tries, since=START - ago * SECOND, failures=3)
    script, claim = redeemed(job(Rotation.GRACE), TOKEN_ANSWERS["server_error"], claim)
    script.step(NewId, "an id")
    script.step(Announce)
    wait = 1.0 if follows else back_off(claim)
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=True, retry_after=wait)
    assert script.end().follow_up == (1.0 if follows else None)


@pytest.mark.parametrize("answer", [Answer(200, (), b"<html>"), Answer(500, (), b""), token_answer(200, {"a": "b"})])
def test_garbage_and_5xx_are_ambiguous(answer: Answer) -> None:
    """A 200 without a token, or a 5xx: the token may have been spent. An incident, and the mark stays."""
    script, claim = redeemed(job(), answer)
    script.step(NewId, "an id")
    script.step(Announce)
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=True, retry_after=back_off(claim))
    assert script.end().cause == "provider_fault"


def test_a_grace_too_short_counts_as_strict() -> None:
    """Ten seconds of grace cannot be used: held while the access token works."""
    script = Script(renew(job(Rotation.GRACE, grace_seconds=10.0)))
    script.step(LoadGrant, a_grant(**DOUBT))
    assert script.end().cause == "in_doubt"


# --- refused ---------------------------------------------------------------------------------------------------------


def invalid_grant(more: str = "") -> Answer:
    """The refresh token is refused."""
    return token_answer(400, {"error": "invalid_grant", "error_description": more})


@pytest.mark.parametrize(
    ("more", "tries", "cause"),
    [("", 1, "grant_invalid"), ("token was revoked", 1, "grant_revoked"), ("", 2, "lost_answer")],
)
def test_refused_marks_the_grant(more: str, tries: int, cause: str) -> None:
    """A definitive answer: marked by name of grant, generation and claim. In doubt before, it is told as a lost answer."""
    script, claim = redeemed(job(), invalid_grant(more), claim_of(tries=tries))
    assert script.step(MarkGrant, Marked(MARKED)) == MarkGrant(claim.grant, cause, claim)
    outcome = script.end()
    assert isinstance(outcome, MemberTurn)
    assert (outcome.cause, outcome.prompt, outcome.grant, outcome.marked) == (cause, PROMPT, MARKED, True)


def test_refused_ends_a_pause() -> None:
    """The client was accepted, the grant was not: a pause of the registration is over."""
    script, _ = redeemed(job(forced=True), invalid_grant())
    script.step(EndPause)
    script.step(MarkGrant, Marked(MARKED))
    script.end()


def test_a_pause_that_came_with_the_claim_before() -> None:
    """Another worker was refused and paused the registration while we looked: the claim is given back, nothing is sent."""
    script = Script(renew(job()))
    script.step(LoadGrant, OLD)
    script.step(LoadPause, None)
    claim = claim_of()
    script.step(ClaimGrant, claim)
    script.step(LoadPause, Pause("invalid_client", "fix it"))
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, failed=False)
    assert isinstance(script.end(), OperatorTurn)


def test_interaction_required_carries_the_claims() -> None:
    """The member must do something at the provider: what it asked for goes into the prompt."""
    answer = token_answer(400, {"error": "interaction_required", "claims": '{"access_token":{"acr":null}}'})
    script, _ = redeemed(job(), answer)
    mark = script.step(MarkGrant, Marked(MARKED))
    assert mark.cause == "interaction_required"
    assert mark.claims is not None
    assert "acr" in mark.claims


@pytest.mark.parametrize(
    ("then", "outcome"),
    [(None, Gone()), (NEWER, Adopted(NEWER)), (a_grant(id="9" * 32), Adopted(a_grant(id="9" * 32)))],
)
def test_refused_and_the_row_has_moved_on(then: StoredGrant | None, outcome: Any) -> None:
    """The mark would have been wrong: the row is looked at again."""
    script, _ = redeemed(job(), invalid_grant())
    script.step(MarkGrant, then)
    script.step(Sleep)
    script.step(LoadGrant, then)
    assert script.end() == outcome


def test_refused_while_somebody_else_has_taken_over() -> None:
    """The claim is another's by now: the other one's outcome is waited for."""
    taken = a_grant(claim_id="ab" * 16, claimed_until=START + 5 * SECOND, **EXPIRED)
    script, _ = redeemed(job(), invalid_grant())
    script.step(MarkGrant, taken)
    script.step(Sleep)
    script.step(LoadGrant, taken)
    script.step(Sleep)
    script.step(LoadGrant, NEWER)
    assert script.end() == Adopted(NEWER)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("expired", "grant_expired"),
        ("revoked", "grant_revoked"),
        ("inactive", "grant_invalid"),
        (None, "grant_invalid"),
    ],
)
def test_introspection_tells_why(said: str | None, cause: str) -> None:
    """One sentence for expired, revoked and invalid: the introspection endpoint tells them apart."""
    script, _ = redeemed(job(introspection_endpoint="https://provider.example/introspect"), invalid_grant())
    assert script.step(Introspect, said).token == REFRESH
    assert script.step(MarkGrant, Marked(MARKED)).cause == cause
    script.end()


def test_refused_and_yet_active_is_the_weather() -> None:
    """The provider contradicts itself: nobody is marked."""
    script, claim = redeemed(job(introspection_endpoint="https://provider.example/introspect"), invalid_grant())
    script.step(Introspect, "active")
    assert script.step(CountContradiction, 1).seen == OLD.seen
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, retry_after=back_off(claim))
    assert script.end().cause == "contradiction"


def test_refused_and_active_again_and_again_is_the_members_turn() -> None:
    """Introspection may know nothing of the account: when the refusal goes on, it counts."""
    script, _ = redeemed(job(introspection_endpoint="https://provider.example/introspect"), invalid_grant())
    script.step(Introspect, "active")
    script.step(CountContradiction, CONTRADICTIONS + 1)
    assert script.step(MarkGrant, Marked(MARKED)).cause == "grant_invalid"
    assert isinstance(script.end(), MemberTurn)


def test_renewed_in_the_future_holds_nothing_back() -> None:
    """The database's clock was set back since: a refusal may renew, rather than wait for the clock to catch up."""
    assert held_back(a_grant(renewed_at=START - 10 * SECOND)) == 20.0
    assert held_back(a_grant(renewed_at=START + 3590 * SECOND)) == 0.0


def test_what_says_revoked_is_not_introspected() -> None:
    """The answer says it all: no second question."""
    what = job(introspection_endpoint="https://provider.example/introspect")
    script, _ = redeemed(what, invalid_grant("token was revoked"))
    script.step(MarkGrant, Marked(MARKED))


def own(verdict: Verdict, status: int = 400) -> Rules:
    """Rules that read every token answer of a status as one verdict."""
    return Rules(own=(Rule("own", verdict, "Said so.", "Do so.", "here", Surface.TOKEN, frozenset({status})),))


def test_a_blocked_account() -> None:
    """Signing in again does not help: left alone for five minutes, and not marked."""
    script, claim = redeemed(job(rules=own(Verdict.ACCOUNT_BLOCKED)), token_answer(400, {}))
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, retry_after=300.0)
    outcome = script.end()
    assert isinstance(outcome, MemberTurn)
    assert (outcome.blocked, outcome.marked, outcome.cause) == (True, False, "account_blocked")


@pytest.mark.parametrize("verdict", [Verdict.REVOKED, Verdict.STEP_UP])
def test_words_of_another_surface_condemn_nobody(verdict: Verdict) -> None:
    """What a rule takes for an API's word is no definitive answer of a token endpoint."""
    script, claim = redeemed(job(rules=own(verdict)), token_answer(400, {}))
    script.step(NewId, "an id")
    script.step(Announce)
    assert script.step(ReleaseClaim).claim is claim
    assert isinstance(script.end(), Weather)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (TOKEN_ANSWERS["invalid_client"], "invalid_client"),
        (token_answer(400, {"error": "unauthorized_client"}), "unauthorized_client"),
        (token_answer(404, {}), "client_config"),
    ],
)
def test_the_clients_fault_pauses_the_registration(answer: Answer, cause: str) -> None:
    """The operator's turn: no grant is touched, the claim is given back, all workers pause."""
    script, claim = redeemed(job(), answer)
    pause = script.step(PauseRegistration)
    assert (pause.registration, pause.cause) == (KEY.registration, cause)
    assert pause.fix
    # Only then: who takes the claim next must see the pause.
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, failed=False)
    outcome = script.end()
    assert isinstance(outcome, OperatorTurn)
    assert outcome.cause == cause


@pytest.mark.parametrize("error", ["invalid_request", "invalid_scope"])
def test_what_may_be_this_grants_alone_pauses_nobody_else(error: str) -> None:
    """The operator's turn, perhaps for this grant only: this one backs off, the registration goes on."""
    script, claim = redeemed(job(), token_answer(400, {"error": error}))
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=False, retry_after=back_off(claim))
    announce = script.step(Announce)
    assert isinstance(announce.event, ConfigurationProblem)
    assert (announce.event.cause, announce.every) == (error, 3600.0)
    assert isinstance(script.end(), OperatorTurn)


TWO = Registration("example", client_id="client", client_secret=["old", "new"], scopes=["read"])


def test_a_list_of_secrets_is_tried_in_order() -> None:
    """``invalid_client``: the next secret, under the same claim; the one that worked is remembered."""
    script, claim = claimed(job(registration=TWO))
    assert script.step(Redeem, Redeemed(TOKEN_ANSWERS["invalid_client"], 1.0)).secret == 0
    assert script.step(Redeem, Redeemed(ISSUED, SENT_AT)).secret == 1
    assert script.step(RememberSecret) == RememberSecret(KEY.registration, 1)
    script.step(SpillTokens)
    assert script.step(SaveTokens, Saved(NEWER)).claim is claim
    script.end()


def test_no_secret_works() -> None:
    """All were tried, beginning with the one in use: the operator's turn."""
    script = Script(renew(job(registration=TWO)))
    script.step(LoadGrant, OLD)
    script.step(LoadPause, None)
    script.step(ClaimGrant, claim_of())
    script.step(LoadPause, None)
    script.step(OpenRefreshToken, OpenedRefreshToken(REFRESH))
    script.step(SecretInUse, 1)
    assert script.step(Redeem, Redeemed(TOKEN_ANSWERS["invalid_client"], 1.0)).secret == 1
    assert script.step(Redeem, Redeemed(TOKEN_ANSWERS["invalid_client"], 1.0)).secret == 0
    script.step(PauseRegistration)
    script.step(ReleaseClaim)
    assert isinstance(script.end(), OperatorTurn)


# --- one outcome for all who wait ------------------------------------------------------------------------------------

MEMBERS = MemberTurn("grant_revoked", PROMPT, grant=MARKED)
ASKED = MemberTurn("refused_after_renewal", None, grant=a_grant(), marked=False)
SEEN_NOW = a_grant()


@pytest.mark.parametrize(
    ("what", "outcome", "answered"),
    [
        (job(), Renewed(NEWER), True),
        (job(forced=True), Renewed(NEWER), True),
        (job(refused=True), Adopted(NEWER), True),
        (job(refused=True, grant=SEEN_NOW), Adopted(SEEN_NOW), False),
        (job(forced=True, grant=SEEN_NOW), Adopted(SEEN_NOW), False),
        (job(grant=SEEN_NOW), Adopted(SEEN_NOW), True),
        (job(grant=SEEN_NOW, minimum_lifetime=4000.0), Adopted(SEEN_NOW), False),
        (job(grant=SEEN_NOW, minimum_lifetime=4000.0), Adopted(a_grant(access_expires_at=None)), True),
        (replace(job(), seen=None), Adopted(NEWER), True),
        (job(refused=True), MEMBERS, True),
        (job(forced=True), MEMBERS, False),
        (job(refused=True), Gone(), True),
        (job(), Weather("unanswered"), True),
        (job(refused=True), Weather("unanswered"), False),
        (job(forced=True), OperatorTurn("c", "m", "f"), False),
        (job(), ASKED, True),
        (job(refused=True), ASKED, False),
    ],
)
def test_whom_an_outcome_answers(what: RenewalJob, outcome: Any, answered: bool) -> None:
    """An outcome is shared by all whose question it answers; the others ask for their own renewal."""
    assert answers(what, outcome) is answered


def test_whom_the_same_question_answers() -> None:
    """Refused alike: one failure for all who wait. A background job that did not wait for a claim answers nobody who does."""
    refused = job(refused=True)
    assert answers(refused, Weather("unanswered"), refused)
    assert not answers(refused, Weather("unanswered"), job())
    background = replace(job(), awaited=False)
    assert not answers(job(), Weather("claimed_elsewhere"), background)
    assert answers(job(), Weather("claimed_elsewhere"), job())
    assert answers(job(), Weather("unanswered"), background)


# --- figures of the profile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "lease", "deadline", "effective"),
    [
        ({"rotation": Rotation.NONE}, 40.0, 30.0, Rotation.NONE),
        ({"rotation": Rotation.BY_USE}, 15.0, 12.0, Rotation.BY_USE),
        ({"rotation": Rotation.UNKNOWN}, 15.0, 12.0, Rotation.UNKNOWN),
        ({"rotation": Rotation.STRICT}, 90.0, 60.0, Rotation.STRICT),
        ({"rotation": Rotation.GRACE, "grace_seconds": 30.0}, 12.0, 9.6, Rotation.GRACE),
        ({"rotation": Rotation.GRACE, "grace_seconds": 15.0}, 6.0, 4.0, Rotation.GRACE),
        ({"rotation": Rotation.GRACE, "grace_seconds": 1800.0}, 40.0, 32.0, Rotation.GRACE),
        ({"rotation": Rotation.GRACE, "grace_seconds": 14.9}, 90.0, 60.0, Rotation.STRICT),
        ({"rotation": Rotation.GRACE}, 90.0, 60.0, Rotation.STRICT),
        ({"rotation": Rotation.STRICT, "lease_seconds": 20.0}, 20.0, 16.0, Rotation.STRICT),
        ({"rotation": Rotation.STRICT, "deadline_seconds": 5.0}, 90.0, 5.0, Rotation.STRICT),
    ],
)
def test_lease_and_deadline(facts: dict[str, Any], lease: float, deadline: float, effective: Rotation) -> None:
    """Lease and deadline follow from the rotation, the deadline below the lease; the host's word comes first."""
    found = Profile(name="example", **facts)
    assert (found.timing.lease, found.effective_rotation) == (lease, effective)
    assert found.timing.deadline == pytest.approx(deadline)
    assert found.timing.deadline < found.timing.lease


def test_seen_names_both() -> None:
    """Evidence names the grant and its generation."""
    assert OLD.seen == Seen(OLD.id, 4)
    assert not claim_of().in_doubt
    assert claim_of(tries=2).in_doubt
