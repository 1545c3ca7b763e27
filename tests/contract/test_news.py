"""What the host is told, how often, and what the event table keeps (DESIGN section 2)."""

from __future__ import annotations

import httpx2
import pytest

from tokenkeeper import GrantExpiring, Provider, ReauthenticationRequired
from tokenkeeper.errors import ConfigurationError, TemporarilyUnavailable
from tokenkeeper.providers import load_profile
from tokenkeeper.store import operations

DAY = 86_400


def listed(world, **filters):
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    return list(keeper.events(**filters))


def test_an_end_without_a_refresh_token_is_announced_once(desk, database_url):
    """LinkedIn's partners without programmatic refresh: a week before, not a second after."""
    world = desk(database_url, provider={"refresh_tokens": False})
    world.connect()
    call = world.guarded()
    call(member="ann")
    assert "GrantExpiring" not in world.told()
    world.clock.advance(55 * DAY)
    for _ in range(3):
        call(member="ann")
        world.clock.advance(61)
    [event] = [event for event in world.events if isinstance(event, GrantExpiring)]
    assert (event.what, event.member) == ("access", "ann")
    assert event.expires_at == world.grant().access_expires_at
    other = world.another()
    world.does(other.access_token("acme", "ann"))
    assert world.recorded().count("GrantExpiring") == 1


def test_the_end_of_a_refresh_token_is_announced(desk):
    """LinkedIn's year ends, however often the access token is renewed."""
    world = desk(provider={"refresh_lifetime": 61 * DAY})
    world.connect()
    world.clock.advance(55 * DAY)
    world.guarded()(member="ann")
    [event] = [event for event in world.events if isinstance(event, GrantExpiring)]
    assert event.what == "refresh"


def test_a_flood_of_trouble_is_not_a_flood_of_events(desk):
    """Ten a minute; the answers all pass."""
    world = desk()
    world.connect()
    call = world.guarded()
    world.provider.script("server_error", times=30)
    for _ in range(15):
        assert call(member="ann").status_code == 500
    assert world.recorded().count("ProviderTrouble") == 10
    world.clock.advance(61)
    assert call(member="ann").status_code == 500
    assert world.recorded().count("ProviderTrouble") == 11


def test_audit_keeps_renewals(desk):
    """``TokensRenewed`` is in the table only with audit=True; callbacks hear it anyway."""
    world = desk(audit=True)
    world.connect()
    world.does(world.keeper.renew("acme", "ann"))
    assert world.recorded() == ["GrantConnected", "TokensRenewed"]


def test_old_events_are_pruned(desk):
    """After thirty days, by whoever writes the next one."""
    world = desk()
    world.connect()
    world.clock.advance(31 * DAY)
    world.does(world.keeper.forget("acme", "ann"))
    assert world.recorded() == ["GrantForgotten"]


def test_events_are_listed_page_by_page(desk, monkeypatch, database_url):
    """In the order of time, by kind, registration and member, newest first or last."""
    monkeypatch.setattr(operations, "PAGE", 2)
    world = desk(database_url)
    for member in ("ann", "ben", "cid", "dan", "eve"):
        world.connect(member)
    world.does(world.keeper.forget("acme", "eve"))
    members = [event["member"] for event in listed(world)]
    assert members == ["ann", "ben", "cid", "dan", "eve", "eve"]
    assert [event["member"] for event in listed(world, newest_first=True)] == members[::-1]
    assert [event["kind"] for event in listed(world, member="eve")] == ["GrantConnected", "GrantForgotten"]
    assert [event["member"] for event in listed(world, kind="GrantForgotten", registration="acme")] == ["eve"]
    assert listed(world, registration="other") == []


def test_grants_are_listed_page_by_page(desk, monkeypatch, database_url):
    """In the order of their keys, by status and member."""
    monkeypatch.setattr(operations, "PAGE", 2)
    world = desk(database_url)
    for member in ("cid", "ann", "eve", "ben", "dan"):
        world.connect(member)
    world.provider.revoke("ben")
    with pytest.raises(ReauthenticationRequired):
        world.guarded()(member="ben")

    def members(*args, **filters):
        if world.twin == "sync":
            return [grant.member for grant in world.keeper.grants(*args, **filters)]

        async def collect():
            return [grant.member async for grant in world.keeper.grants(*args, **filters)]

        return world.does(collect())

    assert members() == ["ann", "ben", "cid", "dan", "eve"]
    assert members("acme", status="needs_reauthentication") == ["ben"]
    assert members("acme", member="cid") == ["cid"]
    with pytest.raises(ConfigurationError):
        members("nobody")


def test_one_configuration_problem_a_pause(desk):
    """However many members and workers run into it."""
    world = desk(provider={"access_lifetime": 1800})
    for member in ("ann", "ben"):
        world.connect(member)
    world.provider.change_secret("another")
    for keeper in (world.keeper, world.another()):
        for member in ("ann", "ben"):
            with pytest.raises(ConfigurationError):
                world.does(keeper.access_token("acme", member))
    assert world.provider.token_requests == 1
    assert world.recorded().count("ConfigurationProblem") == 1


def test_an_incident_of_the_token_endpoint(desk):
    """Its trouble leaves a record too, without the refresh token."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    world.provider.refuse_next("token", status=500, body="oops fake-refresh-1 secret-1", headers={"x-li-uuid": "u-1"})
    with pytest.raises(TemporarilyUnavailable):
        world.does(world.keeper.access_token("acme", "ann"))
    [event] = listed(world, kind="ProviderTrouble")
    assert event["data"]["incident"]["status"] == 500
    assert "u-1" in str(event)
    assert "fake-refresh" not in str(event)
    assert "secret-1" not in str(event)


PROFILE = """
title = "Hides its errors"
source = "made for this test"
errors_in_200 = true

[[rule]]
name = "expired"
status = 200
json = { error = "token_expired" }
verdict = "expired"
message = "The token has expired."
fix = "Nothing: it is renewed."
source = "made for this test"
"""


def test_errors_hidden_in_a_200_are_found(desk, tmp_path):
    """A profile that says so: a JSON body that was read already is looked at."""
    path = tmp_path / "hidden.toml"
    path.write_text(PROFILE)
    assert load_profile(path).errors_in_200
    world = desk(declared={"extends": path}, provider={"flavor": "generic", "access_lifetime": 86_400})
    world.connect()
    assert isinstance(world.registration.provider, Provider)
    world.provider.refuse_next(
        "api", status=200, headers={"Content-Type": "application/json"}, body='{"ok": false, "error": "token_expired"}'
    )
    assert world.guarded()(member="ann").json()["sub"] == "ann"
    assert world.provider.token_requests == 1
    call = world.guarded()
    assert isinstance(call(member="ann"), httpx2.Response)
