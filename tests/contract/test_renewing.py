"""Renewals in one process: exactly one a grant at a time, whoever waits, is cancelled, or runs out of patience."""

from __future__ import annotations

import asyncio
import json
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
    engine_room,
)
from tokenkeeper.spill import Spill

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


def test_a_spill_folder_that_is_full_for_a_moment_is_tried_again(desk, tmp_path, monkeypatch, caplog):
    """While the database is away and the folder has room again, the tokens do not stay in memory only."""
    spill = tmp_path / "spill"
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800}, spill_directory=spill)
    world.connect()
    room = world.keeper._room
    written, write = threading.Event(), Spill.write
    tries = []

    def full_at_first(self, *args, **kwargs):
        tries.append(args)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        write(self, *args, **kwargs)
        written.set()

    def away(self, *args, **kwargs):
        raise TemporarilyUnavailable("away", cause="store")

    monkeypatch.setattr(Spill, "write", full_at_first)
    with monkeypatch.context() as patched:
        patched.setattr(type(room.store), "save_renewal", away)
        keeper = world.keeper if world.twin == "sync" else world.keeper.sync
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(keeper.access_token, "acme", "ann")
            assert written.wait(10)
            patched.undo()
            monkeypatch.undo()
            assert waiting.result(10).generation == 2
    assert list(spill.glob("*.sealed")) == []
    assert len(tries) == 3, "and then it is there"
    assert caplog.text.count("cannot be spilled") == 1


@pytest.mark.parametrize("record", ["of today", "from before"])
@pytest.mark.parametrize("consent", ["same", "another"])
def test_spilled_tokens_are_newer_than_a_restored_backup(desk, tmp_path, monkeypatch, caplog, record, consent):
    """The row has fallen behind: of the same consent it is healed; where that is not sure, the file stays, and that is said."""
    spill = tmp_path / "spill"
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800}, spill_directory=spill)
    world.connect()
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    room = keeper._room
    with room.engine.begin() as connection:
        backup = connection.exec_driver_sql("SELECT * FROM tokenkeeper_grant").mappings().one()
    assert keeper.renew("acme", "ann").generation == 2
    kept = []
    with monkeypatch.context() as patched:
        patched.setattr(Spill, "remove", lambda self, *names: kept.append("-".join(names)))
        assert keeper.renew("acme", "ann").generation == 3
    [file] = spill.glob("*.sealed")
    assert kept == [file.stem]
    newest = keeper.access_token("acme", "ann").reveal()
    with room.engine.begin() as connection:
        for column, value in backup.items():
            connection.exec_driver_sql(f"UPDATE tokenkeeper_grant SET {column} = ?", (value,))
        if consent == "another":
            connection.exec_driver_sql("UPDATE tokenkeeper_grant SET consented_at = consented_at + 1")
    if record == "from before":
        content = json.loads(file.read_text())
        assert content.pop("consented_at") == backup["consented_at"]
        file.write_text(json.dumps(content))
    assert world.grant().generation == 1
    again = world.another(spill_directory=spill)
    (again if world.twin == "sync" else again.sync)._room.replay_spill()
    healed = (record, consent) == ("of today", "same")
    assert world.does(again.grant("acme", "ann")).generation == (3 if healed else 1)
    assert file.exists() is not healed
    assert ("stays in the spill folder" in caplog.text) is not healed
    if healed:
        assert world.does(again.access_token("acme", "ann")).reveal() == newest
        assert world.does(again.renew("acme", "ann")).generation == 4
    assert world.provider.reuses == 0


def test_tokens_stay_spilled_until_their_row_is_healed(desk, tmp_path, monkeypatch):
    """The row falls behind during the request, and the store is away again when it is to be healed: the file is there."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800}, spill_directory=tmp_path)
    world.connect()
    world.does(world.keeper.renew("acme", "ann"))
    store = type(world.keeper._room.store)
    save, seen = store.save_renewal, []

    def rewound(self, sealed, elapsed, save_id, tell, over=None):
        seen.append((over, len(list(tmp_path.glob("*.sealed")))))
        if len(seen) == 1:
            with self.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE tokenkeeper_grant SET generation = 1, claim_id = NULL")
        if len(seen) == 2:
            raise TemporarilyUnavailable("away", cause="store")
        return save(self, sealed, elapsed, save_id, tell, over)

    monkeypatch.setattr(store, "save_renewal", rewound)
    assert world.does(world.keeper.renew("acme", "ann")).generation == 3
    assert seen == [(None, 1), (1, 1), (1, 1)]
    assert list(tmp_path.glob("*.sealed")) == []


@pytest.mark.parametrize(("number", "kind"), [(5, TemporarilyUnavailable), (13, ConfigurationError)])
def test_a_spill_folder_that_cannot_be_read_holds_the_renewal(desk, tmp_path, monkeypatch, number, kind):
    """The successor may be in there: nothing is sent, and whose turn it is is said. At start it is only logged."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800}, spill_directory=tmp_path)
    world.connect()
    with monkeypatch.context() as patched:

        def unreadable(self, grant_id=None):
            raise OSError(number, "not today")

        patched.setattr(Spill, "read", unreadable)
        with pytest.raises(kind, match="spill"):
            world.does(world.keeper.renew("acme", "ann"))
        keeper = world.keeper if world.twin == "sync" else world.keeper.sync
        assert keeper._room.replay_spill() == 0
    assert world.provider.token_requests == 0
    assert world.does(world.keeper.renew("acme", "ann")).generation == 2


@pytest.mark.parametrize("raised", [ConnectionError("no token for the database"), RuntimeError("the vault is sealed")])
def test_renewed_tokens_outlast_whatever_the_engine_raises(desk, monkeypatch, raised):
    """A host's engine may fetch its password from somewhere: what fails there is tried again, and no token is dropped."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    store = world.keeper._room.store
    save, failures = store.save_renewal, []

    def once(*args, **kwargs):
        if not failures:
            failures.append(True)
            raise raised
        return save(*args, **kwargs)

    monkeypatch.setattr(store, "save_renewal", once)
    assert world.does(world.keeper.renew("acme", "ann")).generation == 2
    assert failures
    assert (world.provider.token_requests, world.provider.reuses) == (1, 0)


def test_an_engine_that_cannot_connect_is_the_weather(desk, monkeypatch):
    """Not SQLAlchemy's exception but the system's own: it leaves as ours, and says whose turn it is."""
    world = desk()
    world.connect()
    engine = world.keeper._room.engine
    for error, kind in (
        (ConnectionError("refused"), TemporarilyUnavailable),
        (PermissionError(13, "no"), ConfigurationError),
    ):

        def broken(error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(engine, "connect", broken)
            with pytest.raises(kind):
                world.grant()


def test_one_provider_that_hangs_holds_up_no_other(desk, monkeypatch):
    """Each registration has renewal threads of its own, and so have revocations and callbacks."""
    monkeypatch.setattr(engine_room, "RENEWAL_THREADS", 1)
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    world.connect("ben")
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    room = keeper._room
    busy = threading.Event()
    with ThreadPoolExecutor(1) as threads, world.provider.hold("token", at="arrival", times=1) as gate:
        waiting = threads.submit(keeper.access_token, "acme", "ann")
        gate.wait_until_held(1, timeout=10)
        room.registrations["second"], room.profiles["second"] = world.registration, room.profiles["acme"]
        keeper.save_tokens("second", "ben", world.provider.issue(member="ben"))
        assert keeper.renew("second", "ben").generation == 2
        assert room.see_through(lambda: busy.set() or True).result(10)
        assert not waiting.done()
    assert waiting.result(10).generation == 2
    assert busy.is_set()


def test_close_leaves_spilled_tokens_where_they_are(desk, tmp_path, monkeypatch, caplog):
    """The database is away and the tokens are on the disk: nothing is waited for, and the next start stores them."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800}, spill_directory=tmp_path)
    world.connect()
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    store = type(keeper._room.store)
    save, away = store.save_renewal, threading.Event()

    def never(self, *args, **kwargs):
        away.set()
        raise TemporarilyUnavailable("away", cause="store")

    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as threads:
        patched.setattr(store, "save_renewal", never)
        waiting = threads.submit(keeper.renew, "acme", "ann")
        assert away.wait(10)
        world.does(world.keeper.close())
        with pytest.raises(TemporarilyUnavailable):
            waiting.result(10)
    assert len(list(tmp_path.glob("*.sealed"))) == 1
    assert "stay in the spill folder" in caplog.text
    assert "closed while" not in caplog.text
    assert store.save_renewal is save
    again = world.another(spill_directory=tmp_path)
    twin = again if world.twin == "sync" else again.sync
    twin._room.replay_spill()
    assert world.does(again.access_token("acme", "ann")).generation == 2
    assert world.provider.token_requests == 1


def test_a_late_save_is_told_once_a_minute(desk, monkeypatch, caplog):
    """Not once a try; and once more when it has worked."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    store = world.keeper._room.store
    save, tries = store.save_renewal, []

    def late(*args, **kwargs):
        tries.append(world.clock())
        if tries[-1] - tries[0] < 90:
            raise TemporarilyUnavailable("away", cause="store")
        return save(*args, **kwargs)

    monkeypatch.setattr(store, "save_renewal", late)
    assert world.does(world.keeper.renew("acme", "ann")).generation == 2
    said = [record.getMessage() for record in caplog.records if "renewed tokens" in record.getMessage()]
    assert len(tries) > 50
    assert ["not stored yet" in each for each in said] == [True, True, False]
    assert "are stored now" in said[-1]


def test_a_stale_claim_sends_nothing(desk, monkeypatch):
    """The process stood still for longer than its lease: another has renewed, and the last look before sending sees it."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    other = world.another()
    store = world.keeper._room.store
    open_refresh_token = store.open_refresh_token
    stood_still = []

    def slowly(grant, tell):
        token = open_refresh_token(grant, tell)
        if not stood_still:
            stood_still.append(True)
            world.clock.advance(3600)
            keeper = other if world.twin == "sync" else other.sync
            assert keeper.renew("acme", "ann").generation == 2
        return token

    monkeypatch.setattr(store, "open_refresh_token", slowly)
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2
    assert stood_still
    assert (world.provider.token_requests, world.provider.reuses) == (1, 0)


def test_what_was_renewed_is_served_at_once(desk):
    """Renewed by hand while the old token is in memory: the old one is not served any more."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 86_400})
    world.connect()
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 1
    world.does(world.keeper.renew("acme", "ann"))
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2


def test_a_keeper_that_closes_takes_no_claim(desk, monkeypatch):
    """It began to close while a renewal looked at the row: nothing is claimed and nothing sent."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    room = world.keeper._room
    load_pause = room.store.load_pause

    def closing(*args, **kwargs):
        room.closing.set()
        return load_pause(*args, **kwargs)

    monkeypatch.setattr(room.store, "load_pause", closing)
    with pytest.raises(ConfigurationError, match="closed"):
        world.does(world.keeper.access_token("acme", "ann"))
    assert world.provider.token_requests == 0


def test_a_forked_child_has_none_of_its_parents_connections(desk, monkeypatch):
    """They are left to the parent: not closed by the child, and not used."""
    world = desk()
    world.connect()
    room = world.keeper._room
    engine, store = room.engine, room.store
    disposed = []
    monkeypatch.setattr(engine, "dispose", lambda close=True: disposed.append(close))
    room.after_fork()
    assert disposed == [False]
    assert room.engine is not engine
    assert room.store is not store
    monkeypatch.undo()
    engine.dispose()


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
