"""revoke: out of service first, the newest token told to the provider, the row deleted, and an honest word on all of it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tokenkeeper import (
    ConfigurationError,
    GrantRevoked,
    GrantStatus,
    Keyring,
    KeyUnavailable,
    NotConnected,
    ReauthenticationRequired,
    Revocation,
    TemporarilyUnavailable,
    Turn,
)
from tokenkeeper.crypto import generate_key

GENERIC = {"flavor": "generic", "rotation": "strict", "access_lifetime": 86_400}
EXPIRED = {**GENERIC, "access_lifetime": 1800}
SHORT = {"lease_seconds": 3, "deadline_seconds": 2}


def sync_of(world, keeper=None):
    keeper = keeper or world.keeper
    return keeper if world.twin == "sync" else keeper.sync


def revoke(world, keeper=None):
    return world.does((keeper or world.keeper).revoke("acme", "ann"))


def revoke_at_once(world):
    """Revoke with no claim in the way: a test clock goes on when somebody waits."""
    before = world.clock()
    result = revoke(world)
    assert world.clock() == before, "the claim before was not given back"
    return result


def shown(world):
    """What was shown to the revocation endpoint, and what it made of it."""
    return [(each.token, each.kind, each.verdict) for each in world.provider.log if each.surface == "revocation"]


def said(world):
    """The outcomes that the callbacks heard."""
    return [event.outcome for event in world.events if isinstance(event, GrantRevoked)]


def gone(world):
    with pytest.raises(NotConnected):
        world.grant()
    return True


def renewing(world, threads, keeper=None):
    """A renewal that waits for the provider's answer, and its gate."""
    gate = world.provider.hold("token", at="answer", times=1)
    waiting = threads.submit(sync_of(world, keeper).access_token, "acme", "ann")
    gate.wait_until_held(1, timeout=10)
    return waiting, gate


# --- every outcome ---


def test_revoked(desk, database_url):
    """The refresh token is told to the provider, with its hint; the row is deleted; one event, once, with the outcome."""
    world = desk(database_url, provider=GENERIC)
    issued = world.connect()
    call = world.guarded()
    assert call(member="ann").status_code == 200
    result = revoke(world)
    assert isinstance(result, Revocation)
    assert (result.registration, result.member, result.outcome, result.deleted) == ("acme", "ann", "revoked", True)
    assert result.diagnosis is None
    assert result.message
    assert shown(world) == [(issued["refresh_token"], "refresh", "ok")]
    assert world.provider.requests[-1].fields["token_type_hint"] == "refresh_token"
    assert gone(world)
    with pytest.raises(NotConnected):
        call(member="ann")
    assert world.told() == ["GrantConnected", "GrantRevoked"]
    assert world.recorded() == ["GrantConnected", "GrantRevoked"]
    assert said(world) == ["revoked"]
    assert revoke(world).outcome == "not_connected"
    assert (said(world), len(shown(world))) == (["revoked"], 1)


@pytest.mark.parametrize("error", ["invalid_token", "invalid_grant"])
def test_already_dead(desk, error):
    """Google and Slack say so; the end is the same."""
    world = desk(provider=GENERIC)
    world.connect()
    world.provider.refuse_next("revocation", status=400, body={"error": error})
    result = revoke(world)
    assert (result.outcome, result.deleted, said(world)) == ("already_dead", True, ["already_dead"])
    assert gone(world)


@pytest.mark.parametrize("flavor", [GENERIC, {"flavor": "linkedin", "access_lifetime": 86_400}])
def test_unsupported(desk, flavor):
    """No endpoint, or one that knows no such token: deleted here, and it is not called revoked."""
    world = desk(provider=flavor)
    world.connect()
    if flavor is GENERIC:
        world.provider.refuse_next("revocation", status=400, body={"error": "unsupported_token_type"})
    result = revoke(world)
    assert (result.outcome, result.deleted, said(world)) == ("unsupported", True, ["unsupported"])
    assert "live on" in result.message
    assert world.provider.revocations == (1 if flavor is GENERIC else 0)
    assert gone(world)


def test_refused(desk):
    """The provider would not: deleted here, with its words, and it is not called revoked."""
    world = desk(provider=GENERIC)
    world.connect()
    body = {"error": "invalid_request", "error_description": "not today"}
    world.provider.refuse_next("revocation", status=400, body=body)
    result = revoke(world)
    assert (result.outcome, result.deleted, said(world)) == ("refused", True, ["refused"])
    assert result.diagnosis.error_code == "invalid_request"
    assert "live on" in result.message
    assert gone(world)


def test_in_doubt(desk):
    """A renewal's answer was lost before: revoked is the token that there is, and a successor that nobody has may live on."""
    world = desk(provider=EXPIRED)
    issued = world.connect()
    world.provider.script("drop", "token", processed=True)
    with pytest.raises(TemporarilyUnavailable):
        world.does(world.keeper.access_token("acme", "ann"))
    result = revoke(world)
    assert (result.outcome, result.deleted, said(world)) == ("in_doubt", True, ["in_doubt"])
    assert shown(world) == [(issued["refresh_token"], "refresh", "ok")]
    assert "live on" in result.message


def test_not_connected(desk):
    """Nothing to revoke: no request, no event."""
    world = desk(provider=GENERIC)
    result = revoke(world)
    assert (result.outcome, result.deleted, result.message) == ("not_connected", False, result.message)
    assert (world.provider.revocations, world.told()) == (0, [])


def test_reconnected(desk):
    """The member consents while the provider is being told: the old token is revoked, and the new grant stands."""
    world = desk(provider=GENERIC)
    issued = world.connect()
    with ThreadPoolExecutor(1) as threads, world.provider.hold("revocation") as gate:
        revoking = threads.submit(sync_of(world).revoke, "acme", "ann")
        gate.wait_until_held(1, timeout=10)
        world.does(world.keeper.save_tokens("acme", "ann", world.provider.issue(member="ann")))
        gate.release()
        result = revoking.result(10)
    assert (result.outcome, result.deleted, said(world)) == ("reconnected", False, [])
    assert shown(world) == [(issued["refresh_token"], "refresh", "ok")]
    assert world.grant().status is GrantStatus.ACTIVE
    assert world.guarded()(member="ann").status_code == 200


def test_without_a_refresh_token_the_access_token_is_revoked(desk):
    """There is no other token to show; the hint says which it is."""
    world = desk(provider={**GENERIC, "refresh_tokens": False})
    issued = world.connect()
    assert revoke(world).outcome == "revoked"
    assert shown(world) == [(issued["access_token"], "access", "ok")]
    assert world.provider.requests[-1].fields["token_type_hint"] == "access_token"
    assert gone(world)


def test_a_grant_that_waits_for_its_member_is_revoked_too(desk):
    """Marked is not gone: its refresh token is told to the provider."""
    world = desk(provider=EXPIRED, declared={"introspection_endpoint": None})
    issued = world.connect()
    world.provider.script("invalid", "token")
    with pytest.raises(ReauthenticationRequired):
        world.does(world.keeper.access_token("acme", "ann"))
    assert revoke(world).outcome == "revoked"
    assert shown(world) == [(issued["refresh_token"], "refresh", "ok")]


# --- the operator's turn, and the weather ---


def test_a_wrong_client_secret_is_the_operators(desk):
    """Nothing is thrown away: the grant serves nobody, in this process at once, until it can be told; then it is finished."""
    world = desk(provider=GENERIC)
    issued = world.connect()
    call = world.guarded()
    assert call(member="ann").status_code == 200
    world.provider.change_secret("another")
    with pytest.raises(ConfigurationError) as raised:
        revoke(world)
    assert (raised.value.cause, raised.value.turn, raised.value.member) == ("invalid_client", Turn.OPERATOR, "ann")
    assert raised.value.fix
    before = world.provider.api_calls
    for attempt in (lambda: call(member="ann"), lambda: world.does(world.keeper.access_token("acme", "ann"))):
        with pytest.raises(ReauthenticationRequired) as refused:
            attempt()
        assert refused.value.cause == "revoking"
    assert world.provider.api_calls == before, "the token in memory is served no more"
    with pytest.raises(ReauthenticationRequired):
        world.does(world.keeper.renew("acme", "ann"))
    grant = world.grant()
    assert (grant.status, grant.has_refresh_token, grant.generation) == (GrantStatus.REVOKING, True, 1)
    assert (said(world), world.provider.token_requests) == ([], 0)
    world.provider.change_secret("secret-1")
    assert revoke_at_once(world).outcome == "revoked", "twice asked is no reason for a doubt"
    assert shown(world)[-1] == (issued["refresh_token"], "refresh", "ok")
    assert gone(world)


def test_every_client_secret_is_tried_and_the_right_one_remembered(desk):
    """While a new secret is rolled out, the provider may know either."""
    world = desk(provider={**GENERIC, "client_secret": "new"}, registration={"client_secret": ["old", "new"]})
    world.connect()
    world.connect("ben")
    assert revoke(world).outcome == "revoked"
    assert world.provider.revocations == 2
    world.does(world.keeper.revoke("acme", "ben"))
    assert world.provider.revocations == 3


def test_no_client_secret_works(desk):
    """All are tried, once each; then it is the operator's turn."""
    world = desk(provider={**GENERIC, "client_secret": "newest"}, registration={"client_secret": ["old", "new"]})
    world.connect()
    with pytest.raises(ConfigurationError):
        revoke(world)
    assert world.provider.revocations == 2
    assert world.grant().status is GrantStatus.REVOKING


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("server_error", "provider_fault"),
        ("rate_limited", "rate_limited"),
        ("unreachable", "revocation_unanswered"),
        ("drop", "revocation_unanswered"),
    ],
)
def test_the_weather_leaves_it_to_be_finished(desk, name, cause):
    """Not told yet: it serves nobody meanwhile, is nobody's turn, and calling again goes on where it stopped."""
    world = desk(provider=GENERIC)
    issued = world.connect()
    world.provider.script(name, "revocation")
    with pytest.raises(TemporarilyUnavailable) as raised:
        revoke(world)
    assert (raised.value.cause, raised.value.turn, raised.value.member) == (cause, Turn.NOBODY, "ann")
    assert world.grant().status is GrantStatus.REVOKING
    with pytest.raises(ReauthenticationRequired):
        world.guarded()(member="ann")
    assert revoke_at_once(world).outcome == "revoked"
    assert shown(world)[-1] == (issued["refresh_token"], "refresh", "ok")
    assert said(world) == ["revoked"]


def test_a_revocation_endpoint_that_hangs(desk):
    """It ends at the deadline like any request, and the claim is given back: calling again need not wait for a lease."""
    world = desk(provider=GENERIC, declared={"lease_seconds": 1, "deadline_seconds": 0.2})
    world.connect()
    world.provider.script("hang", "revocation")
    with pytest.raises(TemporarilyUnavailable) as raised:
        revoke(world)
    assert raised.value.cause == "revocation_unanswered"
    assert revoke_at_once(world).outcome == "revoked"


def test_retry_after_is_passed_on(desk):
    """The provider says when."""
    world = desk(provider=GENERIC)
    world.connect()
    world.provider.refuse_next("revocation", status=429, headers={"Retry-After": "120"}, body="{}")
    with pytest.raises(TemporarilyUnavailable) as raised:
        revoke(world)
    assert raised.value.retry_after == 120


def test_a_bad_proxy_is_the_operators(desk, monkeypatch):
    """The request cannot be made: the claim is given back, and put right it is finished."""
    world = desk(provider=GENERIC)
    world.connect()
    server = type(world.keeper._room.server("acme"))
    with monkeypatch.context() as patched:
        patched.setattr(server, "revoke", _misconfigured)
        with pytest.raises(ConfigurationError) as raised:
            revoke(world)
        assert raised.value.cause == "bad_proxy"
    assert world.grant().status is GrantStatus.REVOKING
    assert revoke_at_once(world).outcome == "revoked"


def _misconfigured(*_):
    raise ConfigurationError("The proxy is none.", cause="bad_proxy", fix="Mend it.")


def test_a_key_that_was_missing(desk):
    """With the key it is finished at once."""
    world = desk(provider=GENERIC)
    world.connect()
    keeper = world.another(keys=Keyring.parse(generate_key("k2")))
    with pytest.raises(KeyUnavailable):
        revoke(world, keeper)
    assert revoke_at_once(world).outcome == "revoked"


def test_a_missing_key(desk):
    """The token to revoke cannot be opened: the operator's turn, the row stays; forget does without the key."""
    world = desk(provider=GENERIC)
    world.connect()
    keeper = world.another(keys=Keyring.parse(generate_key("k2")))
    with pytest.raises(KeyUnavailable):
        revoke(world, keeper)
    assert world.provider.revocations == 0
    assert world.grant().status is GrantStatus.REVOKING
    assert world.does(keeper.forget("acme", "ann")) is True
    assert gone(world)
    assert world.recorded() == ["GrantConnected", "GrantForgotten"]


# --- renewals under way ---


def test_the_newest_refresh_token_is_revoked(desk, database_url):
    """A renewal is under way: it is waited for and stored, its caller is not served, and its successor is revoked."""
    world = desk(database_url, provider=EXPIRED, patience=20.0)
    issued = world.connect()
    with ThreadPoolExecutor(2) as threads:
        waiting, gate = renewing(world, threads)
        revoking = threads.submit(sync_of(world).revoke, "acme", "ann")
        until(lambda: world.grant().status is GrantStatus.REVOKING)
        assert world.provider.revocations == 0
        gate.release()
        assert revoking.result(20).outcome == "revoked"
        with pytest.raises(ReauthenticationRequired) as raised:
            waiting.result(20)
    assert raised.value.cause in ("revoking", "not_connected")
    [(token, kind, verdict)] = shown(world)
    assert token != issued["refresh_token"], "the successor"
    assert (kind, verdict) == ("refresh", "ok")
    assert (world.provider.token_requests, world.provider.reuses) == (1, 0)
    assert gone(world)


def until(condition):
    """Look until it is so, ten seconds at most."""
    ends = threading.Event()
    for _ in range(2000):
        if condition():
            return
        ends.wait(0.005)
    raise AssertionError("it did not come to that")


def test_patience_ends_and_the_revocation_goes_on(desk):
    """Nobody waits any more: the weather; when the renewal under way has ended, the grant is revoked all the same."""
    world = desk(provider=EXPIRED)
    world.connect()
    keeper = world.another(patience=0.05)
    finished = threading.Event()
    keeper.on(GrantRevoked, lambda event: finished.set())
    with ThreadPoolExecutor(1) as threads:
        waiting, gate = renewing(world, threads)
        with pytest.raises(TemporarilyUnavailable) as raised:
            revoke(world, keeper)
        assert (raised.value.cause, raised.value.turn) == ("revoking", Turn.NOBODY)
        assert not finished.is_set()
        gate.release()
        assert finished.wait(10)
        with pytest.raises(ReauthenticationRequired):
            waiting.result(10)
    assert gone(world)
    assert len(shown(world)) == 1


def test_a_late_answer_to_a_renewal_is_revoked_too(desk, database_url):
    """The holder stood still for longer than its lease, the grant was revoked and deleted: what it brings is revoked, too."""
    world = desk(database_url, provider={**EXPIRED, "rotation": "none"}, declared=SHORT, patience=20.0)
    issued = world.connect()
    holder = world.another()
    with ThreadPoolExecutor(1) as threads:
        waiting, gate = renewing(world, threads, holder)
        assert revoke(world).outcome == "in_doubt"
        assert gone(world)
        gate.release()
        with pytest.raises(NotConnected):
            waiting.result(20)
    assert gone(world)
    assert [token for token, _, _ in shown(world)] == [issued["refresh_token"]] * 2
    assert world.recorded() == ["GrantConnected", "GrantRevoked"]


def test_forget_during_a_renewal_drops_its_tokens(desk):
    """Forgotten is not revoked: the provider is not told."""
    world = desk(provider=EXPIRED)
    world.connect()
    with ThreadPoolExecutor(1) as threads:
        waiting, gate = renewing(world, threads)
        assert world.does(world.keeper.forget("acme", "ann")) is True
        gate.release()
        with pytest.raises(NotConnected):
            waiting.result(10)
    assert gone(world)
    assert world.provider.revocations == 0


def test_forget_while_the_provider_is_being_told(desk):
    """The row is gone, and what the provider did is said all the same."""
    world = desk(provider=GENERIC)
    world.connect()
    with ThreadPoolExecutor(1) as threads, world.provider.hold("revocation") as gate:
        revoking = threads.submit(sync_of(world).revoke, "acme", "ann")
        gate.wait_until_held(1, timeout=10)
        assert world.does(world.keeper.forget("acme", "ann")) is True
        gate.release()
        result = revoking.result(10)
    assert (result.outcome, result.deleted) == ("revoked", True)
    assert gone(world)


# --- at once, and at the end ---


def test_two_revocations_at_once_are_one_request(desk):
    """In two processes: one tells the provider, the other finds nothing left to do."""
    world = desk(provider=GENERIC, patience=20.0)
    world.connect()
    other = world.another(patience=20.0)
    with ThreadPoolExecutor(2) as threads, world.provider.hold("revocation", at="answer") as gate:
        first = threads.submit(sync_of(world).revoke, "acme", "ann")
        gate.wait_until_held(1, timeout=10)
        before = world.clock()
        second = threads.submit(sync_of(world, other).revoke, "acme", "ann")
        until(lambda: world.clock() > before)  # it waits, and a test clock goes on when somebody waits
        gate.release()
        assert first.result(20).outcome == "revoked"
        assert second.result(20).outcome == "not_connected"
    assert world.provider.revocations == 1
    assert said(world) == ["revoked"]


def test_close_waits_for_a_revocation(desk):
    """What the provider is being told is finished before close returns."""
    world = desk(provider=GENERIC)
    world.connect()
    keeper = world.another()
    with ThreadPoolExecutor(2) as threads, world.provider.hold("revocation", at="answer") as gate:
        revoking = threads.submit(sync_of(world, keeper).revoke, "acme", "ann")
        gate.wait_until_held(1, timeout=10)
        closing = threads.submit(sync_of(world, keeper).close)
        assert sync_of(world, keeper)._room.closing.wait(10)
        gate.release()
        assert revoking.result(10).outcome == "revoked"
        closing.result(10)
    assert gone(world)


def test_close_ends_a_revocation_that_waits(desk):
    """Nothing is in hand while another worker's claim is waited for: closing ends it, and the row stays out of service."""
    world = desk(provider=EXPIRED)
    world.connect()
    keeper = world.another()
    with ThreadPoolExecutor(2) as threads:
        waiting, gate = renewing(world, threads)
        revoking = threads.submit(sync_of(world, keeper).revoke, "acme", "ann")
        until(lambda: world.grant().status is GrantStatus.REVOKING)
        sync_of(world, keeper).close()
        with pytest.raises(ConfigurationError) as raised:
            revoking.result(10)
        assert raised.value.cause == "closed"
        gate.release()
        with pytest.raises(ReauthenticationRequired) as refused:
            waiting.result(10)
        assert refused.value.cause == "revoking"
    assert world.provider.revocations == 0
    assert revoke(world).outcome == "revoked"


@pytest.mark.parametrize("desk", ["async"], indirect=True)
def test_a_cancelled_caller_does_not_stop_it(desk):
    """Whoever stops waiting: it is seen through."""
    world = desk(provider=GENERIC)
    world.connect()
    finished = threading.Event()
    world.keeper.on(GrantRevoked, lambda event: finished.set())

    async def cancelled():
        with world.provider.hold("revocation") as gate:
            task = asyncio.create_task(world.keeper.revoke("acme", "ann"))
            await asyncio.to_thread(gate.wait_until_held, 1, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    world.does(cancelled())
    assert finished.wait(10)
    assert gone(world)


def test_no_secret_is_in_what_is_told(desk, caplog):
    """Neither outcomes nor errors nor events nor the log show a token, though the provider's words do."""
    world = desk(provider=GENERIC)
    issued = world.connect()
    token = issued["refresh_token"]
    texts = []
    for status, body in (
        (503, {"error": "temporarily_unavailable", "error_description": f"busy with {token}"}),
        (401, {"error": "invalid_client", "error_description": f"secret-1 may not revoke {token}"}),
        (400, {"error": "invalid_request", "error_description": f"no {token} here"}),
    ):
        world.provider.refuse_next("revocation", status=status, body=body)
        try:
            texts.append(repr(revoke(world)))
        except (TemporarilyUnavailable, ConfigurationError) as error:
            texts += [str(error), repr(error), repr(error.diagnosis)]
    assert len(texts) == 7
    texts += [repr(world.events), repr(list(sync_of(world).events())), caplog.text]
    assert not [text for text in texts if "fake-" in text or "secret-1" in text]


# --- the operator's, though no code says so ---


@pytest.mark.parametrize(
    "answer", [(401, ""), (401, "<html>gateway</html>"), (404, "<html>not here</html>"), (405, "")]
)
def test_an_endpoint_that_does_not_take_the_request_leaves_the_row(desk, answer):
    """A wrong URL, a gateway, another client authentication: the provider has not been told, so nothing is deleted."""
    world = desk(provider=GENERIC)
    world.connect()
    status, body = answer
    world.provider.refuse_next("revocation", status=status, body=body)
    with pytest.raises((ConfigurationError, TemporarilyUnavailable)):
        revoke(world)
    assert world.grant().status is GrantStatus.REVOKING
    assert "GrantRevoked" not in world.told()


def test_what_was_revoked_is_no_refresh_token_to_keep(desk):
    """A consent over a grant that is being revoked brings its own refresh token, or there is none."""
    world = desk(provider=GENERIC)
    world.connect()
    world.provider.refuse_next("revocation", status=503, body="")
    with pytest.raises(TemporarilyUnavailable):
        revoke(world)
    grant = world.does(world.keeper.save_tokens("acme", "ann", {"access_token": "fake-x"}, keep_refresh_token=True))
    assert grant.status is GrantStatus.ACTIVE
    assert not grant.has_refresh_token
