"""Renewals in one process: exactly one a grant at a time, whoever waits, is cancelled, or runs out of patience."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tokenkeeper import (
    AsyncTokenKeeper,
    ConfigurationError,
    GrantStatus,
    ReauthenticationRequired,
    RenewalInProgress,
    TemporarilyUnavailable,
    TokenKeeper,
    TokensRenewed,
)

THREADS = 50


@pytest.mark.parametrize("rotation", ["none", "strict"])
def test_many_threads_at_expiry_make_one_token_request(desk, rotation):
    """All threads get the new token, and the refresh token is presented once."""
    world = desk(provider={"rotation": rotation})
    world.connect()
    world.provider.expire("ann")
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    call = keeper.guard("acme")(lambda token, member: _get(world, token))
    barrier = threading.Barrier(THREADS)

    def work(_):
        barrier.wait()
        return call(member="ann").status_code

    with ThreadPoolExecutor(THREADS) as threads:
        assert set(threads.map(work, range(THREADS))) == {200}
    assert world.provider.token_requests == 1
    assert world.provider.reuses == 0


def _get(world, token):
    with httpx2.Client(transport=world.provider.transport()) as client:
        return client.get("https://provider.test/v2/userinfo", auth=token)


def test_tasks_of_several_loops_and_threads_make_one_token_request(desk):
    """Any number of loops may share a keeper, beside threads that use its sync twin."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    keeper = world.keeper if world.twin == "async" else _async_twin(world)

    async def tasks():
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(keeper.access_token("acme", "ann")) for _ in range(50)]
        return {task.result().generation for task in running}

    with ThreadPoolExecutor(4) as threads:
        loops = [threads.submit(asyncio.run, tasks()) for _ in range(3)]
        beside = threads.submit(keeper.sync.access_token, "acme", "ann")
        assert [loop.result() for loop in loops] == [{2}, {2}, {2}]
        assert beside.result().generation == 2
    assert world.provider.token_requests == 1


def _async_twin(world):
    twin = AsyncTokenKeeper.__new__(AsyncTokenKeeper)
    twin._room = world.keeper._room
    return twin


def test_a_cancelled_caller_loses_nothing(desk):
    """The renewal goes on in the keeper's thread; the rotated refresh token is stored."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    keeper = world.keeper if world.twin == "async" else _async_twin(world)

    async def cancelled():
        with world.provider.hold("token", at="answer") as gate:
            task = asyncio.create_task(keeper.access_token("acme", "ann"))
            await asyncio.to_thread(gate.wait_until_held, 1, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await keeper.access_token("acme", "ann")

    token = asyncio.run(cancelled())
    assert token.generation == 2
    assert world.provider.token_requests == 1
    assert world.grant().generation == 2


def test_the_end_of_the_loop_loses_nothing(desk):
    """The event loop is closed while the renewal is under way."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    keeper = world.keeper if world.twin == "async" else _async_twin(world)
    gate = world.provider.hold("token", at="answer")

    async def leave():
        task = asyncio.create_task(keeper.access_token("acme", "ann"))
        await asyncio.to_thread(gate.wait_until_held, 1, 10)
        task.cancel()

    asyncio.run(leave())
    renewed = threading.Event()
    world.keeper.on(TokensRenewed, lambda event: renewed.set())
    gate.release()
    assert renewed.wait(10)
    assert world.grant().generation == 2


def test_patience_ends(desk):
    """A caller waits no longer than its patience, and loses nothing."""
    world = desk(patience=0.05, provider={"access_lifetime": 1800})
    world.connect()
    keeper = world.another(patience=0.05)
    gate = world.provider.hold("token", at="answer")
    with pytest.raises(RenewalInProgress) as raised:
        world.does(keeper.access_token("acme", "ann"))
    assert raised.value.retry_after
    renewed = threading.Event()
    keeper.on(TokensRenewed, lambda event: renewed.set())
    gate.release()
    assert renewed.wait(10)
    assert world.grant().generation == 2


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("server_error", "provider_fault"),
        ("rate_limited", "rate_limited"),
        ("unreachable", "unreachable"),
        ("drop", "unanswered"),
    ],
)
def test_the_weather_at_the_token_endpoint_is_shared_and_backed_off(desk, name, cause):
    """One failed renewal is one token request; then a back-off, then it works."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    world.provider.script(name, "token")
    for expected in (cause, "backing_off"):
        with pytest.raises(TemporarilyUnavailable) as raised:
            world.does(world.keeper.access_token("acme", "ann"))
        assert raised.value.cause == expected
        assert raised.value.retry_after > 0
    assert world.provider.token_requests <= 1
    assert world.grant().status is GrantStatus.ACTIVE
    world.clock.advance(raised.value.retry_after + 1)
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2


def test_retry_after_is_honoured(desk):
    """The provider says when."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    world.provider.refuse_next("token", status=429, headers={"Retry-After": "120"}, body="{}")
    with pytest.raises(TemporarilyUnavailable) as raised:
        world.does(world.keeper.access_token("acme", "ann"))
    assert raised.value.retry_after == 120
    world.clock.advance(119)
    with pytest.raises(TemporarilyUnavailable):
        world.does(world.keeper.access_token("acme", "ann"))
    world.clock.advance(2)
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2


def test_a_valid_token_is_served_while_its_renewal_fails(desk):
    """Aging, and the token endpoint is down: the weather's business alone."""
    world = desk(provider={"access_lifetime": 3700})
    world.connect()
    world.provider.script("server_error", "token", times=99)
    call = world.guarded()
    for _ in range(3):
        assert call(member="ann").status_code == 200
        world.clock.advance(2)
    assert world.grant().status is GrantStatus.ACTIVE


def test_an_outage_never_condemns_a_strict_grant(desk):
    """However often nobody answers: only an answer decides."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    for _ in range(6):
        world.provider.script("server_error", "token")
        with pytest.raises(TemporarilyUnavailable):
            world.does(world.keeper.access_token("acme", "ann"))
        world.clock.advance(3700)
    assert world.grant().status is GrantStatus.ACTIVE
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2


def test_a_dead_refresh_token_is_the_members(desk):
    """Refused by the token endpoint: marked, one prompt, the ciphertext kept."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    world.provider.forget_refresh_token("ann")
    with pytest.raises(ReauthenticationRequired) as raised:
        world.does(world.keeper.access_token("acme", "ann"))
    assert raised.value.cause.startswith("grant_")
    grant = world.grant()
    assert (grant.status, grant.has_refresh_token) == (GrantStatus.NEEDS_REAUTHENTICATION, True)
    assert world.recorded() == ["GrantConnected", "ReauthenticationNeeded"]


@pytest.mark.parametrize(
    ("happened", "cause"), [("revoke", "grant_revoked"), ("expire_refresh_token", "grant_expired")]
)
def test_introspection_tells_linkedins_one_sentence_apart(desk, happened, cause):
    """One sentence for expired, revoked and invalid; where introspection is configured, it says which."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    getattr(world.provider, happened)("ann")
    with pytest.raises(ReauthenticationRequired) as raised:
        world.does(world.keeper.access_token("acme", "ann"))
    assert raised.value.cause == cause
    assert world.provider.introspections == 1


def test_wrong_client_credentials_pause_the_registration(desk):
    """invalid_client is the operator's: no grant is touched, one event a pause, a new secret ends it."""
    world = desk(provider={"access_lifetime": 1800})
    for member in ("ann", "ben"):
        world.connect(member)
    world.provider.change_secret("another")
    for member in ("ann", "ben", "ann"):
        with pytest.raises(ConfigurationError) as raised:
            world.does(world.keeper.access_token("acme", member))
        assert raised.value.fix
    assert world.provider.token_requests == 1
    assert world.grant().status is GrantStatus.ACTIVE
    assert world.recorded().count("ConfigurationProblem") == 1
    world.registration = world.provider.registration(
        "acme", base_url="https://provider.test", client_secret=["secret-1", "another"]
    )
    keeper = world.another()
    assert world.does(keeper.access_token("acme", "ann")).generation == 2
    assert world.does(keeper.access_token("acme", "ben")).generation == 2


def test_a_pause_is_probed_now_and_then(desk):
    """If the provider was wrong, or was put right, the same secret works again after a while."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    world.provider.change_secret("another")
    with pytest.raises(ConfigurationError):
        world.does(world.keeper.access_token("acme", "ann"))
    world.provider.change_secret("secret-1")
    with pytest.raises(ConfigurationError):
        world.does(world.keeper.access_token("acme", "ann"))
    world.clock.advance(301)
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    assert keeper.pauses() == []


def test_the_second_secret_is_tried_and_remembered(desk):
    """A list of secrets while a new one is being rolled out: tried in order, the one that worked first next time."""
    world = desk(
        provider={"access_lifetime": 1800, "client_secret": "new"}, registration={"client_secret": ["old", "new"]}
    )
    world.connect()
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2
    assert world.provider.token_requests == 2
    world.clock.advance(3600)
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 3
    assert world.provider.token_requests == 3


def test_minimum_lifetime(desk):
    """A token that must live longer is renewed; one renewed in this call is returned whatever its life."""
    world = desk(provider={"access_lifetime": 5000})
    world.connect()
    assert world.does(world.keeper.access_token("acme", "ann", minimum_lifetime=1000)).generation == 1
    assert world.does(world.keeper.access_token("acme", "ann", minimum_lifetime=2000)).generation == 2
    assert world.does(world.keeper.access_token("acme", "ann", minimum_lifetime=99_999)).generation == 3


def test_minimum_lifetime_without_a_refresh_token_is_no_prompt(desk):
    """Still valid, but not for long enough: the weather, never the member's turn."""
    world = desk(provider={"access_lifetime": 5000, "refresh_tokens": False})
    world.connect()
    with pytest.raises(TemporarilyUnavailable):
        world.does(world.keeper.access_token("acme", "ann", minimum_lifetime=2000))
    assert world.grant().status is GrantStatus.ACTIVE
    assert world.told() == ["GrantConnected"]


def test_renew_renews_now_also_a_marked_grant(desk):
    """Somebody asked for it: a mark that was wrong is put right."""
    world = desk()
    world.connect()
    world.provider.script("revoked")
    with pytest.raises(ReauthenticationRequired):
        world.guarded()(member="ann")
    assert world.grant().status is GrantStatus.NEEDS_REAUTHENTICATION
    grant = world.does(world.keeper.renew("acme", "ann"))
    assert (grant.status, grant.generation, grant.prompt) == (GrantStatus.ACTIVE, 2, None)


def test_forget_during_a_renewal_drops_the_tokens(desk):
    """The row is gone: the new tokens are nobody's, and the caller hears that nobody is connected."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    gate = world.provider.hold("token", at="answer")
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(keeper.access_token, "acme", "ann")
        gate.wait_until_held(1, timeout=10)
        assert world.does(world.keeper.forget("acme", "ann")) is True
        gate.release()
        with pytest.raises(ReauthenticationRequired) as raised:
            waiting.result(10)
    assert raised.value.cause == "not_connected"
    assert world.does(world.keeper.forget("acme", "ann")) is False


def test_a_new_consent_during_a_renewal_wins(desk):
    """The member has consented again meanwhile: the late answer is dropped, the newer consent is used."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    gate = world.provider.hold("token", at="answer")
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(keeper.access_token, "acme", "ann")
        gate.wait_until_held(1, timeout=10)
        world.does(world.keeper.save_tokens("acme", "ann", {"access_token": "fake-newer", "expires_in": 3600}))
        gate.release()
        assert waiting.result(10).reveal() == "fake-newer"
    assert world.grant().generation == 2


def test_close_drains(desk):
    """A renewal under way is finished and stored before close returns; after it nothing new begins."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    gate = world.provider.hold("token", at="answer")
    keeper = world.another()
    sync = keeper if world.twin == "sync" else keeper.sync
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(sync.access_token, "acme", "ann")
        gate.wait_until_held(1, timeout=10)
        closing = threads.submit(sync.close)
        gate.release()
        closing.result(10)
        assert world.grant().generation == 2
        waiting.exception(10)
    with pytest.raises(ConfigurationError) as raised:
        world.does(keeper.access_token("acme", "ann"))
    assert raised.value.cause == "closed"


def test_a_forked_child_starts_anew(desk):
    """The child of a fork makes its own connections and threads, and renews for itself."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    assert world.does(world.keeper.grant("acme", "ann")).generation == 1
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(keeper.access_token("acme", "ann").generation).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"2"
    os.close(reading)
    os.close(writing)
    assert world.grant().generation == 2


def test_a_save_that_fails_is_tried_until_it_succeeds(desk, monkeypatch):
    """The database is away between the provider's answer and the save: the tokens are kept and stored."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    store = world.keeper._room.store
    real, failures = type(store).save_renewal, []

    def failing(self, *args, **kwargs):
        if len(failures) < 3:
            failures.append(1)
            raise TemporarilyUnavailable("away", cause="store")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(store), "save_renewal", failing)
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2
    assert len(failures) == 3
    assert world.provider.token_requests == 1


def test_spilled_tokens_are_stored_at_the_next_start(desk, tmp_path, monkeypatch):
    """The process ends before it could save: the sealed file is replayed, once, and holds no readable token."""
    spill = tmp_path / "spill"
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800}, spill_directory=spill)
    world.connect()
    room = world.keeper._room
    store = room.store
    kept = threading.Event()

    def away(self, *args, **kwargs):
        kept.set()
        raise TemporarilyUnavailable("away", cause="store")

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "save_renewal", away)
        keeper = world.keeper if world.twin == "sync" else world.keeper.sync
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(keeper.access_token, "acme", "ann")
            assert kept.wait(10)
            [file] = spill.glob("*.sealed")
            content = file.read_bytes()
            assert b"fake-" not in content
            patched.undo()
            assert waiting.result(10).generation == 2
    assert list(spill.glob("*.sealed")) == []
    file.write_bytes(content)
    again = world.another(spill_directory=spill)
    (again if world.twin == "sync" else again.sync)._room.replay_spill()
    assert list(spill.glob("*.sealed")) == []
    assert world.grant().generation == 2


def test_two_keepers_are_two_processes(desk):
    """The claim, not the process, keeps it to one token request."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    keepers = [world.another() for _ in range(4)]
    sync = [keeper if world.twin == "sync" else keeper.sync for keeper in keepers]
    with ThreadPoolExecutor(8) as threads:
        tokens = list(threads.map(lambda keeper: keeper.access_token("acme", "ann"), sync * 2))
    assert {token.generation for token in tokens} == {2}
    assert world.provider.token_requests == 1
    assert world.provider.reuses == 0


def test_sync_keeper_is_a_context_manager(tmp_path, desk):
    """Leaving the block closes."""
    world = desk()
    if world.twin == "sync":
        with world.another() as keeper:
            assert isinstance(keeper, TokenKeeper)
        assert keeper._room.closing.is_set()
    else:

        async def use():
            async with world.another() as keeper:
                return keeper

        assert world.does(use())._room.closing.is_set()
