"""The client is refused at a server that nobody here wrote: the operator's turn, and no grant is touched."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
from interop_desk import NAME, Desk, Site

from tokenkeeper import ConfigurationError, ConfigurationProblem

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("client", ["basic", "post"])
def test_a_secret_is_sent_as_the_server_reads_it(site: Site, desk: Callable[..., Desk], client: str) -> None:
    """Blanks, ``% + : /`` and the like in a client's id and secret reach the server, in the header and in the form."""
    host = desk(site, registrations=[site.registration(client)])
    ann = host.newcomer()
    host.connect(ann)
    assert host.does(host.keeper.renew(NAME, ann)).generation == 2
    assert host.call(ann).status_code == 200
    assert [entry["status"] for entry in site.server.log()] == [200, 200]


def test_a_wrong_secret_is_the_operators_turn(site: Site, desk: Callable[..., Desk], database: str) -> None:
    """A wrong secret: ConfigurationError, renewals pause, one event; the grants stay, and the right secret ends it."""
    host = desk(site, database)
    ann, bob = host.newcomer(), host.newcomer()
    site.server.set(accessTokenLife=1)
    before = {member: host.connect(member) for member in (ann, bob)}
    site.server.set(accessTokenLife=600)
    host.outlive(bob)
    site.server.mark()
    worker = host.another(site.registration(client_secret=secrets.token_hex(16)))
    for member in (ann, bob, ann):
        with pytest.raises(ConfigurationError) as caught:
            host.call(member, keeper=worker)
        assert caught.value.fix
    assert [entry["error"] for entry in site.server.log()] == ["invalid_client"]
    assert len([event for event in host.events if isinstance(event, ConfigurationProblem)]) == 1
    assert {member: host.grant(member) for member in (ann, bob)} == before
    mended = host.another()
    for member in (ann, bob):
        assert host.call(member, keeper=mended).status_code == 200
        assert host.grant(member).generation == 2


def test_a_list_of_secrets_carries_over_a_change(site: Site, desk: Callable[..., Desk]) -> None:
    """With the new secret beside the old one, whichever the server takes is found, and remembered."""
    host = desk(site)
    right = site.server.clients["basic"]["client_secret"]
    rolling = host.another(site.registration(client_secret=[secrets.token_hex(16), right]))
    ann = host.newcomer()
    host.connect(ann, keeper=rolling)
    assert [entry["error"] for entry in site.server.log()] == ["invalid_client", None]
    site.server.mark()
    assert host.does(rolling.renew(NAME, ann)).generation == 2
    assert [entry["status"] for entry in site.server.log()] == [200]
    anew = host.another(site.registration(client_secret=[secrets.token_hex(16), right]))
    site.server.mark()
    assert host.does(anew.renew(NAME, ann)).generation == 3
    assert [entry["error"] for entry in site.server.log()] == ["invalid_client", None]


def test_a_wrong_secret_at_sign_in_connects_nobody(site: Site, desk: Callable[..., Desk]) -> None:
    """A wrong secret while a member connects is the operator's turn, too; what was stored before stays."""
    host = desk(site)
    ann = host.newcomer()
    before = host.connect(ann)
    wrong = host.another(site.registration(client_secret=secrets.token_hex(16)))
    with pytest.raises(ConfigurationError):
        host.connect(ann, keeper=wrong)
    assert host.grant(ann) == before
    assert host.call(ann).status_code == 200
