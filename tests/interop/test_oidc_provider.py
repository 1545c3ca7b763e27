"""What only oidc-provider does: certified, rotates refresh tokens, and kills the whole grant when one is used twice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from interop_desk import NAME, Desk, Site
from interop_servers import poll

from tokenkeeper import ConfigurationError, ReauthenticationRequired, ScopeRequired, TemporarilyUnavailable

pytestmark = pytest.mark.interop


def test_two_refreshes_at_once_kill_the_grant(oidc_provider: Site, desk: Callable[..., Desk]) -> None:
    """What a client without tokenkeeper does here: one refresh wins, and its new tokens are dead already."""
    host = desk(oidc_provider)
    ann = host.newcomer()
    host.connect(ann)
    _, refresh_token = host.tokens(ann)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(host.refresh, [refresh_token] * 2))
    assert sorted(answer.status_code for answer in answers) == [200, 400]
    winner = next(answer.json() for answer in answers if answer.status_code == 200)
    assert host.dead(winner["access_token"])
    assert host.refresh(winner["refresh_token"]).json()["error"] == "invalid_grant"


def test_private_key_jwt(oidc_provider: Site, desk: Callable[..., Desk], private_key: str) -> None:
    """A client with a key in place of a secret (RFC 7523) connects and renews."""
    keyed = oidc_provider.registration("jwt", private_key=private_key, key_id="interop-1")
    host = desk(oidc_provider, registrations=[keyed])
    ann = host.newcomer()
    host.connect(ann)
    assert host.does(host.keeper.renew(NAME, ann)).generation == 2
    assert host.call(ann).status_code == 200
    assert [entry["client"] for entry in oidc_provider.server.log()] == ["tk-jwt", "tk-jwt"]


def test_an_expired_secret_is_the_operators_turn(oidc_provider: Site, desk: Callable[..., Desk]) -> None:
    """A client secret that expires between consent and renewal pauses the registration; the grant is as before."""
    host = desk(oidc_provider, registrations=[oidc_provider.registration("expired")])
    ann = host.newcomer()
    before = host.connect(ann)
    oidc_provider.server.set(secretExpired=1)
    try:
        for _ in range(2):
            with pytest.raises(ConfigurationError) as caught:
                host.does(host.keeper.renew(NAME, ann))
            assert caught.value.diagnosis.error_code == "invalid_client"
        assert host.grant(ann) == before
        assert host.call(ann).status_code == 200
    finally:
        oidc_provider.server.set(secretExpired=0)


def test_a_scope_that_is_missing_is_asked_for(oidc_provider: Site, desk: Callable[..., Desk]) -> None:
    """The API wants a scope that the member did not consent to: ScopeRequired names it, and the next consent brings it."""
    host = desk(oidc_provider)
    ann = host.newcomer()
    host.connect(ann)
    with pytest.raises(ScopeRequired) as caught:
        host.call(ann, "/me?scope=openid email")
    assert caught.value.prompt.scopes == ("email",)
    assert host.call(ann).status_code == 200
    assert set(host.connect(ann).scopes) == {*oidc_provider.scopes, "email"}
    assert host.call(ann, "/me?scope=openid email").json()["email"]


def test_a_deleted_account_whose_token_is_introspected_as_active(
    oidc_provider: Site, desk: Callable[..., Desk]
) -> None:
    """The server refuses a deleted account's refresh token, yet calls it active: before long it is the member's turn."""
    host = desk(oidc_provider)
    ann = host.newcomer()
    host.connect(ann)
    oidc_provider.server.account(ann, "delete")

    def asked() -> bool:
        try:
            host.call(ann)
        except TemporarilyUnavailable:
            return False
        except ReauthenticationRequired:
            return True
        raise AssertionError("a deleted account's call succeeded")

    poll(asked, 8)
    assert host.grant(ann).status == "needs_reauthentication"
