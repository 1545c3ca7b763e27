"""Members connect through a server's own sign-in and consent pages, or do not."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from interop_desk import NAME, REDIRECT_URI, Desk, Site
from interop_member import Browser

from tokenkeeper import AuthorizationFailed, NotConnected

pytestmark = pytest.mark.interop


def test_a_member_connects_and_the_api_is_called(site: Site, desk: Callable[..., Desk], database: str) -> None:
    """Code with PKCE through the server's own pages: a grant with the scopes asked for, whose token the API takes."""
    host = desk(site, database)
    ann = host.newcomer()
    with Browser(ann) as browser:
        callback = browser.authorize(host.begin(ann), REDIRECT_URI)
    assert browser.seen == ["sign in", "consent"]
    assert query(callback)["iss"] == site.provider().issuer
    grant = host.finish(callback, ann).grant
    assert (grant.generation, grant.has_refresh_token, set(grant.scopes)) == (1, True, set(site.scopes))
    assert host.call(ann).json()["name"].startswith(ann)
    (redeemed,) = site.server.log()
    assert (redeemed["grantType"], redeemed["status"]) == ("authorization_code", 200)


def test_a_refused_consent_connects_nobody(site: Site, desk: Callable[..., Desk]) -> None:
    """A member who presses Cancel comes back with access_denied: AuthorizationFailed, and no request is made for it."""
    host = desk(site)
    ann = host.newcomer()
    with Browser(ann) as browser:
        callback = browser.authorize(host.begin(ann), REDIRECT_URI, approve=False)
    with pytest.raises(AuthorizationFailed) as caught:
        host.finish(callback, ann)
    assert caught.value.cause == "access_denied"
    check_not_connected(host, ann)


def test_a_callback_is_taken_once_and_from_its_own_member(site: Site, desk: Callable[..., Desk]) -> None:
    """Neither another member's browser nor a second time gets anything for a callback; the code is sent once."""
    host = desk(site)
    ann, bob = host.newcomer(), host.newcomer()
    with Browser(ann) as browser:
        first = browser.authorize(host.begin(ann), REDIRECT_URI)
        second = browser.authorize(host.begin(ann), REDIRECT_URI)
    with pytest.raises(AuthorizationFailed) as caught:
        host.finish(first, bob)
    assert caught.value.cause == "state_foreign"
    check_not_connected(host, bob)
    host.finish(second, ann)
    with pytest.raises(AuthorizationFailed) as caught:
        host.finish(second, ann)
    assert caught.value.cause == "state_replayed"
    assert len(site.server.log()) == 1


def test_a_callback_from_another_issuer_is_refused(site: Site, desk: Callable[..., Desk]) -> None:
    """A callback whose ``iss`` is not the server's (a mix-up) is refused before the code is sent anywhere."""
    host = desk(site)
    ann = host.newcomer()
    with Browser(ann) as browser:
        callback = browser.authorize(host.begin(ann), REDIRECT_URI)
    with pytest.raises(AuthorizationFailed) as caught:
        host.finish(changed(callback, iss="https://elsewhere.example"), ann)
    assert caught.value.cause == "issuer_mismatch"
    check_not_connected(host, ann)


def test_a_code_of_another_authorization_is_refused_by_pkce(site: Site, desk: Callable[..., Desk]) -> None:
    """A code slipped into another callback does not fit that one's verifier: the server refuses it."""
    host = desk(site)
    ann, eve = host.newcomer(), host.newcomer()
    with Browser(ann) as browser:
        stolen = browser.authorize(host.begin(ann), REDIRECT_URI)
    with Browser(eve) as browser:
        callback = browser.authorize(host.begin(eve), REDIRECT_URI)
    with pytest.raises(AuthorizationFailed) as caught:
        host.finish(changed(callback, code=query(stolen)["code"]), eve)
    assert caught.value.cause == "code_refused"
    assert [(entry["status"], entry["error"]) for entry in site.server.log()] == [(400, "invalid_grant")]
    with pytest.raises(NotConnected):
        host.grant(eve)


def test_another_account_than_before_is_refused(site: Site, desk: Callable[..., Desk]) -> None:
    """A member who signs in with another account of the server than the connected one keeps the old grant."""
    host = desk(site)
    ann, bob = host.newcomer(), host.newcomer()
    before = host.connect(ann)
    with pytest.raises(AuthorizationFailed) as caught:
        host.connect(ann, account=bob)
    assert caught.value.cause == "other_account"
    assert host.grant(ann) == before
    assert host.call(ann).json()["name"].startswith(ann)


def test_a_new_consent_replaces_the_tokens(site: Site, desk: Callable[..., Desk]) -> None:
    """A member who connects again gets a new generation of the same grant, with tokens that work."""
    host = desk(site)
    ann = host.newcomer()
    before, tokens = host.connect(ann), host.tokens(ann)
    after = host.connect(ann)
    assert (after.id, after.generation) == (before.id, before.generation + 1)
    assert not set(tokens) & set(host.tokens(ann))
    assert host.call(ann).status_code == 200
    assert host.does(host.keeper.renew(NAME, ann)).status == "active"


def query(url: str) -> dict[str, str]:
    """The parameters of a URL."""
    return dict(parse_qsl(urlsplit(url).query))


def changed(url: str, **parameters: str) -> str:
    """The URL with other parameters."""
    return urlsplit(url)._replace(query=urlencode(query(url) | parameters)).geturl()


def check_not_connected(host: Desk, member: str) -> None:
    """Nothing was stored, and the server was asked for nothing."""
    with pytest.raises(NotConnected):
        host.grant(member)
    assert host.site.server.log() == []
