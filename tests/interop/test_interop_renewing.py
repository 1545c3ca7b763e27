"""A token expires at a server that nobody here wrote, and is renewed: by one caller, and by many workers at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from interop_desk import NAME, Desk, Site
from interop_servers import digest, poll
from interop_storm import Crowd

pytestmark = pytest.mark.interop


def test_an_expired_token_is_renewed(site: Site, desk: Callable[..., Desk], database: str) -> None:
    """When the access token has expired, a call renews it once, and the call's answer is the API's."""
    host = desk(site, database)
    ann = host.newcomer()
    site.server.set(accessTokenLife=1)
    host.connect(ann)
    _, first = host.tokens(ann)
    site.server.set(accessTokenLife=600)
    host.outlive(ann)
    assert host.call(ann).json()["name"].startswith(ann)
    (refresh,) = site.server.log("refresh_token")
    assert (refresh["status"], refresh["presented"]) == (200, digest(first))
    assert host.grant(ann).generation == 2
    assert host.tokens(ann)[1] != first


def test_many_workers_at_expiry_make_one_token_request(
    site: Site, desk: Callable[..., Desk], workers: Crowd, database: str
) -> None:
    """4 processes with 10 callers each, at the moment of expiry: one token request, no failed call, the grant lives on."""
    host, server = desk(site, database), site.server
    ann = host.newcomer()
    with workers.of(host, ann):
        server.set(accessTokenLife=1)
        host.connect(ann)
        _, first = host.tokens(ann)
        server.set(accessTokenLife=600, tokenDelay=0.3)
        host.outlive(ann)
        assert workers.go() == {"200": workers.callers}
    check_lives_on(host, ann, first)


def test_many_workers_refused_at_once_make_one_token_request(
    site: Site, desk: Callable[..., Desk], workers: Crowd, database: str
) -> None:
    """The same where all have the token in memory, think it good, and are refused by the API at once."""
    host, server = desk(site, database), site.server
    ann = host.newcomer()
    with workers.of(host, ann):
        server.set(accessTokenLife=1)
        issued = host.obtain(ann)
        host.does(host.keeper.save_tokens(NAME, ann, issued | {"expires_in": 3600}))
        server.set(accessTokenLife=600, tokenDelay=0.3)
        workers.warm()
        poll(lambda: host.dead(issued["access_token"]))
        assert workers.go() == {"200": workers.callers}
    check_lives_on(host, ann, issued["refresh_token"])


def check_lives_on(host: Desk, member: str, first: str | None) -> None:
    """One refresh was made, with the first refresh token; the grant can be renewed again."""
    (refresh,) = host.site.server.log("refresh_token")
    assert (refresh["status"], refresh["presented"]) == (200, digest(first))
    assert host.does(host.keeper.renew(NAME, member)).status == "active"
    assert host.call(member).status_code == 200
    assert [entry["status"] for entry in host.site.server.log("refresh_token")] == [200, 200]
