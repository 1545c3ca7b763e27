"""The revocation, driven by hand: what it waits for, what it shows, and what it leaves behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from core.world import KEY, REGISTRATION, START, Script, a_grant, profile, token_answer

from tokenkeeper.core.effects import (
    SECOND,
    BeginRevocation,
    Claim,
    ClaimGrant,
    DeleteRevoked,
    Flow,
    LoadGrant,
    OpenedToRevoke,
    OpenToRevoke,
    Redeemed,
    ReleaseClaim,
    RevokeToken,
    SecretInUse,
    Sleep,
    StoredGrant,
)
from tokenkeeper.core.recovery import Case
from tokenkeeper.core.revocation import begin, carry_out
from tokenkeeper.core.token_endpoint import NeverSent
from tokenkeeper.errors import TemporarilyUnavailable
from tokenkeeper.model import Answer, GrantStatus, Revocation, Secret

CASE = Case(KEY, REGISTRATION, profile(revocation_endpoint="https://provider.example/revoke"))
LEASE = CASE.profile.timing.lease
REVOKING = a_grant(status=GrantStatus.REVOKING)
HELD = replace(REVOKING, claim_id="ab" * 16, claimed_until=START + 9_999 * SECOND)
REFRESH = OpenedToRevoke(Secret("refresh-4"), "refresh_token")


def claim_of(grant: StoredGrant = REVOKING) -> Claim:
    """The claim to revoke what was read."""
    return Claim("c0ffee00" * 4, replace(grant, claim_id="c0ffee00" * 4), 10.0, LEASE)


def told(script: Script, claim: Claim, answer: Any) -> RevokeToken:
    """The steps from the claim to the provider's answer."""
    assert script.step(OpenToRevoke, REFRESH).claim is claim
    script.step(SecretInUse, 0)
    return script.step(RevokeToken, Redeemed(answer, 12.5))


def revoke() -> Flow[Revocation]:
    """A revocation from its beginning."""
    return (yield from carry_out(CASE, (yield from begin(CASE))))


def test_a_revocation() -> None:
    """Out of service, claimed, told, deleted with the outcome; only then is it said."""
    script, claim = Script(revoke()), claim_of()
    assert script.step(BeginRevocation, REVOKING).key == KEY
    assert script.step(ClaimGrant, claim) == ClaimGrant(REVOKING, LEASE, revoking=True)
    sent = told(script, claim, Answer(200))
    assert sent == RevokeToken(KEY.registration, Secret("refresh-4"), "refresh_token", CASE.profile.timing.deadline, 0)
    assert script.step(DeleteRevoked, True) == DeleteRevoked(claim, "revoked")
    result = script.end()
    assert (result.outcome, result.deleted) == ("revoked", True)


def test_a_claim_that_holds_is_looked_at_and_not_fought_for() -> None:
    """Nothing is in hand meanwhile, so a keeper that closes ends it; a claim that has lapsed is tried at once."""
    script = Script(revoke())
    script.step(BeginRevocation, HELD)
    for _ in range(5):
        assert script.step(Sleep).idle
        script.step(LoadGrant, HELD)
    assert script.step(Sleep).idle
    script.step(LoadGrant, replace(HELD, claimed_until=START - 1))
    assert script.step(ClaimGrant, None).revoking


def test_a_revocation_does_not_wait_for_ever() -> None:
    """A clock may be wrong: after a lease of its own waiting the claim is tried. Two leases are the end: call again."""
    script = Script(revoke())
    script.step(BeginRevocation, HELD)
    waited = 0.0
    while waited <= 2 * LEASE:
        if waited >= LEASE:
            script.step(ClaimGrant, None)
        waited += script.step(Sleep).seconds
        script.step(LoadGrant, HELD)
    script.step(ClaimGrant, None)
    assert script.fails(TemporarilyUnavailable).cause == "claimed_elsewhere"


def test_newer_tokens_are_told_too() -> None:
    """A renewal was stored between the answer and the deletion: its tokens are the newest, and what was told goes on."""
    script, claim = Script(revoke()), claim_of()
    script.step(BeginRevocation, REVOKING)
    script.step(ClaimGrant, claim)
    told(script, claim, Answer(200))
    script.step(DeleteRevoked, False)
    newer = replace(REVOKING, generation=5)
    script.step(LoadGrant, newer)
    again = claim_of(newer)
    assert script.step(ClaimGrant, again).grant is newer
    told(script, again, Answer(200))
    assert script.step(DeleteRevoked, True).claim is again
    assert script.end().outcome == "revoked"


def test_what_is_in_doubt_is_not_called_revoked() -> None:
    """A presentation that nobody knows the outcome of: said with the deletion, and to the caller."""
    doubtful = replace(REVOKING, in_flight_tries=1, in_flight_since=START)
    script, claim = Script(revoke()), claim_of(doubtful)
    script.step(BeginRevocation, doubtful)
    script.step(ClaimGrant, claim)
    told(script, claim, Answer(200))
    assert script.step(DeleteRevoked, True).outcome == "in_doubt"
    assert script.end().outcome == "in_doubt"


@pytest.mark.parametrize("answer", [NeverSent("refused"), token_answer(503, {})])
def test_weather_gives_the_claim_back_as_it_was(answer: object) -> None:
    """The in-flight mark of an earlier renewal stays, and nothing is held off."""
    script, claim = Script(revoke()), claim_of()
    script.step(BeginRevocation, REVOKING)
    script.step(ClaimGrant, claim)
    told(script, claim, answer)
    assert script.step(ReleaseClaim) == ReleaseClaim(claim, in_doubt=True, failed=False)
    script.fails(TemporarilyUnavailable)
