"""What only django-oauth-toolkit does: its two kinds of protected views, and how they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from interop_desk import NAME, Desk, Site
from interop_servers import poll

from tokenkeeper import ScopeRequired

pytestmark = pytest.mark.interop


def test_an_expired_token_is_called_so_and_renewed(toolkit: Site, desk: Callable[..., Desk]) -> None:
    """A view that says why (``advertise_metadata``) refuses a token that the keeper thinks good: renewed and repeated."""
    host = desk(toolkit)
    ann = host.newcomer()
    issued = outlived(host, ann)
    refused = host.http.get("/api/me", headers={"Authorization": f"Bearer {issued}"})
    assert (refused.status_code, host.keeper.diagnose(NAME, refused).verdict) == (401, "expired")
    assert host.call(ann, "/api/me").json() == {"name": ann}
    assert [entry["status"] for entry in toolkit.server.log("refresh_token")] == [200]


def test_a_bare_refusal_passes_through(toolkit: Site, desk: Callable[..., Desk]) -> None:
    """The default decorator answers all alike with an empty 403, no evidence against the token: the host sees it as it is."""
    host = desk(toolkit)
    ann = host.newcomer()
    outlived(host, ann)
    assert host.call(ann, "/api/bare").status_code == 403
    assert toolkit.server.log("refresh_token") == []
    assert host.does(host.keeper.renew(NAME, ann)).status == "active"
    assert host.call(ann, "/api/bare").json() == {"name": ann}


def test_a_bare_refusal_is_not_met_where_the_expiry_is_known(toolkit: Site, desk: Callable[..., Desk]) -> None:
    """With the lifetime that the server stated, the token is renewed before such a view is ever shown an old one."""
    host = desk(toolkit)
    ann = host.newcomer()
    toolkit.server.set(accessTokenLife=1)
    host.connect(ann)
    toolkit.server.set(accessTokenLife=600)
    host.outlive(ann)
    assert host.call(ann, "/api/bare").json() == {"name": ann}


def test_a_scope_that_is_missing_is_asked_for(toolkit: Site, desk: Callable[..., Desk]) -> None:
    """A view wants a scope, and does not say which: with the registration's it is found, and the next consent brings it."""
    host = desk(toolkit)
    ann = host.newcomer()
    host.connect(ann)
    wider = host.another(toolkit.registration(scopes=(*toolkit.scopes, "write")))
    with pytest.raises(ScopeRequired) as caught:
        host.call(ann, "/api/write", wider)
    assert caught.value.prompt.scopes == ("write",)
    host.connect(ann, wider)
    assert host.call(ann, "/api/write", wider).json() == {"name": ann}


def outlived(host: Desk, member: str) -> str:
    """Store tokens with a lifetime that is not the real one, and wait for the access token's end; the access token."""
    host.site.server.set(accessTokenLife=1)
    issued = host.obtain(member)
    host.does(host.keeper.save_tokens(NAME, member, issued | {"expires_in": 3600}))
    host.site.server.set(accessTokenLife=600)
    poll(lambda: host.dead(issued["access_token"]))
    return str(issued["access_token"])
