"""What becomes of a refresh token that has been used, in each rotation profile."""

from __future__ import annotations

from typing import Any

import pytest

from tokenkeeper.testing.ledger import Ledger


def verdicts(asker: Any, kind: str = "refresh") -> list[str]:
    """What the provider said of each token of a kind, in order."""
    return [record.verdict for record in asker.provider.log if record.kind == kind]


def test_without_rotation_the_refresh_token_stays(make: Any) -> None:
    """It can be redeemed again and again, is not named again, and the old access tokens go on working."""
    asker = make(rotation="none")
    asker.provider.issue()
    assert asker.refresh("refresh-1").json() == {
        "access_token": "access-2",
        "token_type": "Bearer",
        "expires_in": 3600,
        "scope": "openid profile",
    }
    assert asker.refresh("refresh-1").json()["access_token"] == "access-3"
    assert [asker.api(f"access-{n}").status for n in (1, 2, 3)] == [200, 200, 200]
    assert asker.provider.reuses == 0


def test_a_refresh_may_name_the_old_refresh_token_again(make: Any, clock: Any) -> None:
    """As LinkedIn it comes back, with what is left of its year."""
    asker = make("linkedin")
    asker.provider.issue()
    clock.advance(1000)
    answer = asker.refresh("refresh-1").json()
    assert (answer["refresh_token"], answer["refresh_token_expires_in"]) == ("refresh-1", 365 * 86_400 - 1000)
    assert answer["expires_in"] == 60 * 86_400


def test_by_use_forgives_until_the_new_access_token_is_used(make: Any) -> None:
    """The old refresh token gives another pair until then, and nothing after; the family lives on."""
    asker = make(rotation="by_use")
    asker.provider.issue()
    assert asker.refresh("refresh-1").json()["refresh_token"] == "refresh-2"
    assert asker.refresh("refresh-1").json()["refresh_token"] == "refresh-3"
    assert asker.api("access-3").status == 200
    assert asker.refresh("refresh-1").status == 400
    assert asker.refresh("refresh-3").status == 200
    assert verdicts(asker) == ["ok", "replayed", "reused", "ok"]


def test_by_use_ends_when_the_new_refresh_token_is_used(make: Any) -> None:
    """Redeeming the successor is a use, too."""
    asker = make(rotation="by_use")
    asker.provider.issue()
    asker.refresh("refresh-1")
    assert asker.refresh("refresh-2").status == 200
    assert asker.refresh("refresh-1").status == 400


def test_an_unsuccessful_call_is_no_use(make: Any) -> None:
    """An expired access token that is refused does not end the old refresh token."""
    asker = make(rotation="by_use")
    asker.provider.issue()
    asker.refresh("refresh-1")
    asker.provider.expire("access-2")
    assert asker.api("access-2").status == 401
    assert asker.refresh("refresh-1").status == 200


@pytest.mark.parametrize(("seconds", "status"), [(29.9, 200), (30.0, 400)])
def test_grace_forgives_for_its_seconds(make: Any, clock: Any, seconds: float, status: int) -> None:
    """A used refresh token gives a fresh pair until the grace, counted from its first use, is over."""
    asker = make(rotation="grace", grace_seconds=30)
    asker.provider.issue()
    asker.refresh("refresh-1")
    clock.advance(seconds)
    assert asker.refresh("refresh-1").status == status
    assert asker.provider.reuses == 1


def test_a_replay_does_not_prolong_the_grace(make: Any, clock: Any) -> None:
    """Twenty seconds and twenty more are too many."""
    asker = make(rotation="grace", grace_seconds=30)
    asker.provider.issue()
    asker.refresh("refresh-1")
    clock.advance(20)
    assert asker.refresh("refresh-1").json()["access_token"] == "access-3"
    clock.advance(20)
    assert asker.refresh("refresh-1").status == 400


def test_grace_is_for_the_token_before_only(make: Any) -> None:
    """Once the successor has been redeemed, its parent is refused within the grace, and the family ends."""
    asker = make(rotation="grace", grace_seconds=30)
    asker.provider.issue()
    asker.refresh("refresh-1")
    asker.refresh("refresh-2")
    assert asker.refresh("refresh-1").status == 400
    assert asker.refresh("refresh-3").status == 400
    assert verdicts(asker) == ["ok", "ok", "reused", "revoked"]


def test_grace_may_answer_with_the_same_pair(make: Any) -> None:
    """As django-oauth-toolkit does: the answer of the first time again."""
    asker = make(rotation="grace", grace_answer="same")
    asker.provider.issue()
    assert asker.refresh("refresh-1").json() == asker.refresh("refresh-1").json()
    assert verdicts(asker) == ["ok", "replayed"]


def test_strict_kills_the_family_of_a_reused_token(make: Any) -> None:
    """Access and refresh tokens of the grant die; another grant of the same member lives."""
    asker = make(rotation="strict")
    asker.provider.issue()
    asker.provider.issue()
    asker.refresh("refresh-1")
    assert asker.api("access-3").status == 200
    assert asker.refresh("refresh-1").status == 400
    assert [asker.api(f"access-{n}").status for n in (1, 2, 3)] == [401, 200, 401]
    assert asker.refresh("refresh-3").status == 400
    assert verdicts(asker) == ["ok", "reused", "revoked"]
    assert asker.provider.reuses == 1


def test_whether_a_reuse_revokes_is_a_knob(make: Any) -> None:
    """A strict server that only refuses the old token leaves the new ones alive."""
    asker = make(rotation="strict", reuse_revokes=False)
    asker.provider.issue()
    asker.refresh("refresh-1")
    assert asker.refresh("refresh-1").status == 400
    assert asker.refresh("refresh-2").status == 200


def test_one_access_token_at_a_time(make: Any) -> None:
    """As GitLab: a refresh revokes the access tokens before it, and the API says so."""
    asker = make(rotation="strict", one_access_token=True)
    asker.provider.issue()
    asker.refresh("refresh-1")
    assert asker.api("access-1").status == 401
    assert verdicts(asker, "access") == ["revoked"]
    assert asker.api("access-2").status == 200


@pytest.mark.parametrize(
    ("undo", "verdict"),
    [
        (lambda provider: provider.expire_refresh_token("ann"), "expired"),
        (lambda provider: provider.revoke("ann"), "revoked"),
        (lambda provider: provider.forget_refresh_token("refresh-1"), "invalid"),
    ],
)
def test_a_dead_refresh_token(make: Any, undo: Any, verdict: str) -> None:
    """Expired, revoked and forgotten are three verdicts in the log, and invalid_grant to the client."""
    asker = make()
    asker.provider.issue()
    undo(asker.provider)
    answer = asker.refresh("refresh-1")
    assert (answer.status, answer.json()["error"]) == (400, "invalid_grant")
    assert verdicts(asker) == [verdict]


def test_a_refresh_token_lives_as_long_as_it_was_given(make: Any, clock: Any) -> None:
    """A rotated one starts anew."""
    asker = make(rotation="strict", refresh_lifetime=100)
    asker.provider.issue()
    clock.advance(99)
    assert asker.refresh("refresh-1").json()["refresh_token_expires_in"] == 100
    clock.advance(100)
    assert asker.refresh("refresh-2").status == 400
    assert verdicts(asker) == ["ok", "expired"]


def test_more_scope_is_refused_and_spends_nothing(make: Any) -> None:
    """A refresh may ask for less than was granted, never for more (RFC 6749 section 6)."""
    asker = make(rotation="strict")
    asker.provider.issue(scopes="openid profile")
    assert asker.refresh("refresh-1", scope="openid email").json()["error"] == "invalid_scope"
    assert asker.refresh("refresh-1", scope="openid").json()["scope"] == "openid"


def test_a_provider_without_refresh_tokens(make: Any) -> None:
    """None is issued, and refreshing is refused as the client's fault; LinkedIn has words of its own."""
    asker = make("linkedin", refresh_tokens=False)
    assert "refresh_token" not in asker.provider.issue()
    refused = asker.refresh("refresh-1").json()
    assert refused == {"error": "access_denied", "error_description": "Refresh token not allowed"}
    asker.provider.issue(refresh_token=True)
    assert isinstance(asker.provider.ledger, Ledger)
    assert list(asker.provider.ledger.refresh) == ["refresh-1"]


def test_secrets_can_be_planted(make: Any) -> None:
    """The prefix stands before every token."""
    issued = make(prefix="CANARY-").provider.issue()
    assert (issued["access_token"], issued["refresh_token"]) == ("CANARY-access-1", "CANARY-refresh-1")
