"""A grant ends at a server that nobody here wrote: used twice, withdrawn, its account deleted, or revoked by the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from interop_desk import NAME, Desk, Site
from interop_servers import digest

from tokenkeeper import NotConnected, ReauthenticationNeeded, ReauthenticationRequired

pytestmark = pytest.mark.interop


def test_a_refresh_token_used_before_ends_the_grant(site: Site, desk: Callable[..., Desk]) -> None:
    """A refresh token that somebody has used is refused once: the row is marked, the ciphertext kept, no one asks again."""
    host = desk(site)
    ann = host.newcomer()
    site.server.set(accessTokenLife=1)
    issued = host.obtain(ann)
    assert host.refresh(issued["refresh_token"]).status_code == 200
    host.does(host.keeper.save_tokens(NAME, ann, issued))
    sealed = host.sealed(ann)
    host.outlive(ann)
    site.server.mark()
    check_member_must_sign_in(host, ann)
    assert host.sealed(ann) == sealed
    (refused,) = site.server.log("refresh_token")
    assert (refused["error"], refused["presented"]) == ("invalid_grant", digest(issued["refresh_token"]))
    check_signing_in_helps(host, ann)


def test_a_withdrawn_permission_ends_the_grant(site: Site, desk: Callable[..., Desk], database: str) -> None:
    """A member who withdraws at the server is asked to sign in again at the next call, in spite of an unexpired token."""
    host = desk(site, database)
    ann = host.newcomer()
    host.connect(ann)
    assert host.call(ann).status_code == 200
    sealed = host.sealed(ann)
    site.server.mark()
    site.withdraw(site.server, ann)
    check_member_must_sign_in(host, ann)
    assert host.sealed(ann) == sealed
    assert [entry["error"] for entry in site.server.log("refresh_token")] == ["invalid_grant"]
    check_signing_in_helps(host, ann)


def test_a_deleted_account_ends_the_grant(site: Site, desk: Callable[..., Desk]) -> None:
    """When the account is gone at the server, the next call is the member's turn, and other members go on."""
    host = desk(site, registrations=[site.registration(declared={"introspection_endpoint": None})])
    ann, bob = host.newcomer(), host.newcomer()
    host.connect(ann)
    host.connect(bob)
    site.server.account(ann, "delete")
    check_member_must_sign_in(host, ann)
    assert host.call(bob).status_code == 200
    assert host.does(host.keeper.renew(NAME, bob)).status == "active"


def test_introspection_is_asked_why(site: Site, desk: Callable[..., Desk]) -> None:
    """With an introspection endpoint the server is asked about a refused refresh token, and agrees that it is dead."""
    host = desk(site)
    ann = host.newcomer()
    host.connect(ann)
    _, refresh_token = host.tokens(ann)
    site.withdraw(site.server, ann)
    site.server.mark()
    check_member_must_sign_in(host, ann)
    refused, asked = site.server.log()
    assert (refused["error"], refused["presented"]) == ("invalid_grant", digest(refresh_token))
    assert (asked["path"], asked["status"]) == (site.endpoints["introspection_endpoint"], 200)
    assert asked["presented"] == digest(refresh_token)


def test_the_host_revokes_a_grant(site: Site, desk: Callable[..., Desk], database: str) -> None:
    """``revoke`` presents the newest refresh token (RFC 7009): both tokens are dead at the server, and the row is gone."""
    host = desk(site, database)
    ann = host.newcomer()
    host.connect(ann)
    host.does(host.keeper.renew(NAME, ann))
    access_token, refresh_token = host.tokens(ann)
    site.server.mark()
    revocation = host.does(host.keeper.revoke(NAME, ann))
    assert revocation.outcome == "revoked"
    (told,) = site.server.log()
    assert (told["path"], told["status"]) == (site.endpoints["revocation_endpoint"], 200)
    assert told["presented"] == digest(refresh_token)
    assert host.dead(access_token)
    assert host.refresh(str(refresh_token)).json()["error"] == "invalid_grant"
    with pytest.raises(NotConnected):
        host.call(ann)


def check_member_must_sign_in(host: Desk, member: str) -> None:
    """The next call is the member's turn, marked and told once; the call after it asks the server for nothing."""
    with pytest.raises(ReauthenticationRequired) as caught:
        host.call(member)
    assert caught.value.prompt is not None
    assert host.grant(member).status == "needs_reauthentication"
    told: list[Any] = [event for event in host.events if isinstance(event, ReauthenticationNeeded)]
    assert [event.member for event in told] == [member]
    before = len(host.site.server.log())
    with pytest.raises(ReauthenticationRequired):
        host.call(member)
    assert len(host.site.server.log()) == before


def check_signing_in_helps(host: Desk, member: str) -> None:
    """A new consent brings the grant back."""
    host.site.server.set(accessTokenLife=600)
    assert host.connect(member).status == "active"
    assert host.call(member).status_code == 200
    assert host.does(host.keeper.renew(NAME, member)).status == "active"
