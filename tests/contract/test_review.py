"""What a hostile reader found: each test is a way in which a grant, a call, a notice or a secret was lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from frames import in_package
from sqlalchemy.exc import OperationalError

from tokenkeeper import (
    AsyncTokenKeeper,
    ConfigurationError,
    GrantConnected,
    GrantStatus,
    InvalidInput,
    Keyring,
    NotConnected,
    ReauthenticationNeeded,
    ReauthenticationRequired,
    Registration,
    RenewalInProgress,
    TemporarilyUnavailable,
    TokenKeeper,
)
from tokenkeeper.authorization_server import AuthorizationServer
from tokenkeeper.crypto import generate_key
from tokenkeeper.store import operations, schema
from tokenkeeper.store.transactions import Store


def sync_of(world, keeper=None):
    keeper = keeper or world.keeper
    return keeper if world.twin == "sync" else keeper.sync


def async_of(world):
    if world.twin == "async":
        return world.keeper
    twin = AsyncTokenKeeper.__new__(AsyncTokenKeeper)
    twin._room = world.keeper._room
    return twin


def away(*_args, **_kwargs):
    raise TemporarilyUnavailable("away", cause="store")


# --- patience --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [False, True])
def test_renew_does_not_pass_old_tokens_off_as_new(desk, marked):
    """Patience ends before a renewal that somebody asked for: it is in progress, not done, and not the member's turn."""
    world = desk()
    world.connect()
    if marked:
        world.provider.script("revoked")
        with pytest.raises(ReauthenticationRequired):
            world.guarded()(member="ann")
    keeper = world.another(patience=0.05)
    with world.provider.hold("token", at="answer"), pytest.raises(RenewalInProgress):
        world.does(keeper.renew("acme", "ann"))


def test_when_patience_ends_a_valid_token_is_served(desk):
    """DESIGN 4.8: the old token if it is still valid, though a longer life was asked for."""
    world = desk(provider={"access_lifetime": 5000})
    world.connect()
    keeper = world.another(patience=0.05)
    with world.provider.hold("token", at="answer"):
        assert world.does(keeper.access_token("acme", "ann", minimum_lifetime=2000)).generation == 1


def test_all_who_were_refused_share_one_failed_renewal(desk):
    """Twenty refused calls wait for a renewal that fails: one request, and what came of it is everybody's."""
    world = desk()
    world.connect()
    world.provider.expire("ann")
    world.provider.script("server_error", "token", times=9)
    keeper, together, joined = sync_of(world), threading.Barrier(20), threading.Semaphore(0)
    join = keeper._room.join_renewal

    def joining(*args):
        found = join(*args)
        joined.release()
        return found

    keeper._room.join_renewal = joining

    def call(token):
        together.wait()
        with httpx2.Client(transport=world.provider.transport()) as client:
            return client.get("https://provider.test/v2/userinfo", auth=token)

    def cause():
        with pytest.raises(TemporarilyUnavailable) as raised:
            keeper.recover("acme", "ann", call)
        return raised.value.cause

    with world.provider.hold("token") as gate, ThreadPoolExecutor(20) as threads:
        causes = [threads.submit(cause) for _ in range(20)]
        for _ in causes:
            assert joined.acquire(timeout=10)
        gate.release()
        assert {each.result(10) for each in causes} == {"provider_fault"}
    assert world.provider.token_requests == 1


def test_nobody_polls_for_a_renewal_in_the_background(desk):
    """Another worker is renewing an aging token: it is left to that worker, and whoever needs the outcome waits."""
    world = desk(provider={"access_lifetime": 3700})
    world.connect()
    keeper, other = sync_of(world), sync_of(world, world.another())
    with world.provider.hold("token", at="answer") as gate:
        assert keeper.access_token("acme", "ann").generation == 1
        gate.wait_until_held(1, timeout=10)
        started, joined, join = world.clock(), [], other._room.join_renewal
        other._room.join_renewal = lambda *args: joined.append(join(*args)) or joined[-1]
        assert other.access_token("acme", "ann").generation == 1
        assert joined[0][0].result(10).cause == "claimed_elsewhere"
        assert world.clock() - started < 1
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(other.access_token, "acme", "ann", minimum_lifetime=3000)
            gate.release()
            assert waiting.result(10).generation == 2
    assert world.provider.token_requests == 1


# --- news ------------------------------------------------------------------------------------------------------------


def test_news_that_cannot_be_stored_fail_no_call(desk, monkeypatch):
    """The store cannot be written: a valid token is still served, and the provider's own answer still passes."""
    world = desk(provider={"refresh_tokens": False})
    world.connect()
    world.clock.advance(55 * 86_400)
    monkeypatch.setattr(Store, "announce", away)
    call = world.guarded()
    assert call(member="ann").status_code == 200
    world.provider.script("server_error")
    assert call(member="ann").status_code == 500
    world.provider.script("empty")
    with pytest.raises(ConfigurationError):
        call(member="ann")


def test_what_was_committed_is_a_success(desk, monkeypatch):
    """Old events cannot be pruned: that is no failure of the consent that was just stored."""
    monkeypatch.setattr(Store, "prune_events", away)
    world = desk()
    world.connect()
    assert world.told() == ["GrantConnected"]


def test_a_cancelled_caller_leaves_no_news_untold(desk, monkeypatch):
    """The member's turn is committed while the caller is cancelled: the host hears of it all the same."""
    world = desk()
    world.connect()
    world.provider.revoke("ann")
    reached, go, heard = threading.Event(), threading.Event(), threading.Event()
    real = Store.mark

    def slow(self, *args):
        reached.set()
        go.wait(10)
        return real(self, *args)

    monkeypatch.setattr(Store, "mark", slow)
    keeper = async_of(world)
    keeper.on(ReauthenticationNeeded, lambda event: heard.set())
    client = httpx2.AsyncClient(transport=world.provider.async_transport())

    @keeper.guard("acme")
    async def call(token, member):
        return await client.get("https://provider.test/v2/userinfo", auth=token)

    async def cancelled():
        task = asyncio.create_task(call(member="ann"))
        await asyncio.to_thread(reached.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    asyncio.run(cancelled())
    assert heard.wait(10)
    assert world.grant().status is GrantStatus.NEEDS_REAUTHENTICATION


def test_callbacks_may_use_the_keeper_however_many_run(desk):
    """Async callbacks that ask the store, as many at once as the store has threads, do not wait for one another."""
    world = desk()
    keeper = async_of(world)
    seen = []

    async def connect_many():
        together = asyncio.Event()

        async def connected(event):
            seen.append(event.member)
            if len(seen) == 4:
                together.set()
            await together.wait()
            await keeper.grant("acme", event.member)

        keeper.on(GrantConnected, connected)
        async with asyncio.timeout(8), asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(keeper.save_tokens("acme", f"m{number}", {"access_token": "t"}))

    asyncio.run(connect_many())
    assert sorted(seen) == ["m0", "m1", "m2", "m3"]


def test_an_async_callback_of_a_sync_keeper_inside_a_loop_is_run(desk):
    """A sync call made in an event loop's thread: its async callback runs in that loop, and nobody waits for it."""
    world = desk()
    keeper, heard = sync_of(world), []

    async def connected(event):
        heard.append(event.member)

    keeper.on(GrantConnected, connected)

    async def in_a_loop():
        keeper.save_tokens("acme", "ann", {"access_token": "t"})
        await asyncio.sleep(0)

    asyncio.run(in_a_loop())
    assert heard == ["ann"]


def test_a_provider_that_refuses_everybody_is_one_event(desk):
    """Five members are refused straight after a renewal: two prompts, one event, the rest is the weather."""
    world = desk()
    members = ["ann", "ben", "cid", "dan", "eve"]
    for member in members:
        world.connect(member)
    call = world.guarded()
    for member in members:
        world.provider.script("invalid", times=2)
        with pytest.raises((ReauthenticationRequired, TemporarilyUnavailable)):
            call(member=member)
    assert world.recorded().count("ProviderTrouble") == 1
    assert world.told().count("ProviderTrouble") == 1


# --- tokens in memory ------------------------------------------------------------------------------------------------


def test_a_slow_reader_does_not_bring_a_forgotten_token_back(desk, monkeypatch):
    """Forgotten between another caller's read and its remembering: the token is not used again."""
    world = desk()
    world.connect()
    real = Store.open_access_token

    def slow(self, *args):
        monkeypatch.setattr(Store, "open_access_token", real)
        world.clock.advance(0.001)
        sync_of(world).forget("acme", "ann")
        return real(self, *args)

    monkeypatch.setattr(Store, "open_access_token", slow)
    world.does(world.keeper.access_token("acme", "ann"))
    with pytest.raises(NotConnected):
        world.does(world.keeper.access_token("acme", "ann"))


def test_a_grant_that_is_gone_is_not_called_for_again(desk):
    """Forgotten by another worker: the first refusal finds that out, and the token in memory goes."""
    world = desk()
    world.connect()
    call = world.guarded()
    call(member="ann")
    world.does(world.another().forget("acme", "ann"))
    world.provider.revoke("ann")
    for _ in range(3):
        with pytest.raises(NotConnected):
            call(member="ann")
    assert world.provider.api_calls == 2


def test_only_a_members_id_finds_a_token_in_memory(desk):
    """An object that merely prints like a member's id is refused, also where that member's token is at hand."""
    world = desk()
    world.connect()
    call = world.guarded()
    call(member="ann")

    class User:
        def __str__(self) -> str:
            return "ann"

    for odd in (User(), None, True):
        with pytest.raises(InvalidInput):
            call(member=odd)
        with pytest.raises(InvalidInput):
            world.does(world.keeper.access_token("acme", odd))


def test_an_answer_mapper_that_knows_no_errors_hides_none(desk):
    """The host's ``answer=`` fails on an error that it does not expect: the host sees its own error, as it was raised."""
    world = desk()
    world.connect()
    keeper, broken = sync_of(world), ConnectionError("away")

    def raising(token, member):
        raise broken

    call = keeper.guard("acme", answer=lambda result: (result.status, {}, None))(raising)
    for _ in range(2):  # without a token in memory, and with one
        with pytest.raises(ConnectionError) as raised:
            call(member="ann")
        assert raised.value is broken


def test_a_hidden_coroutine_is_refused_with_a_token_in_memory_too(desk):
    """The host's ``answer=`` is not asked about a coroutine that nobody will await."""
    world = desk()
    world.connect()
    keeper = sync_of(world)
    keeper.access_token("acme", "ann")

    async def asynchronous(token):
        return token

    call = keeper.guard("acme", answer=lambda value: None)(lambda token, member: asynchronous(token))
    with pytest.raises(TypeError, match="coroutine"):
        call(member="ann")
    with pytest.raises(TypeError, match="staticmethod"):
        keeper.guard("acme")(staticmethod(lambda token, member: None))


# --- threads, loops, the end -----------------------------------------------------------------------------------------


def test_a_consent_under_way_is_drained(desk):
    """The keeper is closed while a code is redeemed: the tokens, which exist nowhere else, are stored first."""
    world = desk()
    begun = world.does(world.keeper.begin_authorization("acme", "ann"))
    callback = world.provider.consent(begun.url, member="ann")
    keeper, other = sync_of(world), sync_of(world, world.another())
    other.pauses()
    gate = world.provider.hold("token", at="answer")
    with ThreadPoolExecutor(2) as threads:
        finishing = threads.submit(keeper.finish_authorization, callback, member="ann")
        gate.wait_until_held(1, timeout=10)
        closing = threads.submit(keeper.close)
        keeper._room.closing.wait(10)
        assert not closing.done()
        gate.release()
        closing.result(10)
        assert finishing.result(10).grant.generation == 1
    assert other.grant("acme", "ann").generation == 1


def test_slow_consents_do_not_hold_up_the_store(desk):
    """Several codes are being redeemed, and the token endpoint is slow: other members are served meanwhile."""
    world = desk()
    world.connect("bob")
    keeper = async_of(world)
    with ThreadPoolExecutor(1) as threads:
        gate = world.provider.hold("token", at="answer")

        async def many():
            callbacks = {}
            for number in range(5):
                begun = await keeper.begin_authorization("acme", f"m{number}")
                callbacks[f"m{number}"] = world.provider.consent(begun.url, member=f"m{number}")
            tasks = [
                asyncio.create_task(keeper.finish_authorization(callback, member=member))
                for member, callback in callbacks.items()
            ]
            try:
                await asyncio.to_thread(gate.wait_until_held, 4, 10)
                async with asyncio.timeout(5):
                    await keeper.grant("acme", "bob")
            finally:
                gate.release()
                await asyncio.gather(*tasks)

        threads.submit(asyncio.run, many()).result(30)


def test_a_thread_that_cannot_be_started_poisons_nothing(desk, monkeypatch):
    """The system has no thread to give: the weather. As soon as it has, the grant is renewed."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    keeper = sync_of(world, world.another())
    keeper.grant("acme", "ann")

    def none(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        for _ in range(2):
            with pytest.raises(TemporarilyUnavailable):
                keeper.access_token("acme", "ann")
    assert keeper.access_token("acme", "ann").generation == 2
    assert world.provider.token_requests == 1


def test_an_aging_token_needs_no_thread(desk, monkeypatch):
    """No thread for the renewal in the background: the valid token is served all the same."""
    world = desk(provider={"access_lifetime": 3700})
    world.connect()
    keeper = sync_of(world, world.another())
    keeper.grant("acme", "ann")

    def none(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert keeper.access_token("acme", "ann").generation == 1


def test_the_end_of_the_loop_is_quiet(desk, caplog):
    """A renewal outlives the loop of the task that asked for it: nothing is called in the closed loop."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    keeper = async_of(world)
    gate = world.provider.hold("token", at="answer")

    async def leave():
        task = asyncio.create_task(keeper.access_token("acme", "ann"))
        await asyncio.to_thread(gate.wait_until_held, 1, 10)
        task.cancel()

    asyncio.run(leave())
    done = threading.Event()
    [(running, _)] = keeper._room._running.values()
    running.add_done_callback(lambda _: done.set())
    gate.release()
    assert done.wait(10)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("concurrent")] == []


def test_a_closed_keeper_stays_closed_in_a_forked_child(desk):
    """A fork is no way to open a keeper again."""
    world = desk()
    keeper = sync_of(world, world.another())
    keeper.close()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            keeper.grant("acme", "ann")
        except BaseException as error:
            os.write(writing, str(getattr(error, "cause", error)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"closed"
    os.close(reading)
    os.close(writing)


EXIT = """
    import threading
    from tokenkeeper import Keyring, TokenKeeper
    from tokenkeeper.crypto import generate_key
    from tokenkeeper.testing import FakeProvider, TestClock

    clock = TestClock()
    provider = FakeProvider(flavor="linkedin", clock=clock, rotation="strict", access_lifetime=1800)
    base = "https://provider.test"
    keeper = TokenKeeper({url!r}, keys=Keyring.parse({key!r}), registrations=[
        provider.registration("acme", base_url=base, provider=provider.as_provider(base), scopes=["openid"])])
    clock.install(keeper, provider.transport())
    keeper.create_schema()
    keeper.save_tokens("acme", "ann", provider.issue(member="ann"))
    clock.advance(3600)
    callback = provider.consent(keeper.begin_authorization("acme", "bob").url, member="bob")
    gate = provider.hold("token", at="answer")
    threading.Thread(target=keeper.access_token, args=("acme", "ann"), daemon=True).start()
    threading.Thread(target=keeper.finish_authorization, args=(callback,), kwargs=dict(member="bob"), daemon=True).start()
    gate.wait_until_held(2)
    threading.Thread(target=lambda: (keeper._room.closing.wait(), gate.release()), daemon=True).start()
"""


def test_the_interpreters_exit_drains(desk):
    """The program ends while a refresh token and a code are being redeemed: both answers are stored first."""
    world = desk()
    url = world.url.replace("tokens-", "exit-")
    key = generate_key("k1")
    script = textwrap.dedent(EXIT).format(url=url, key=key)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    with TokenKeeper(url, keys=Keyring.parse(key), registrations=[world.registration]) as keeper:
        assert keeper.grant("acme", "ann").generation == 2
        assert keeper.grant("acme", "bob").generation == 1


# --- grants ----------------------------------------------------------------------------------------------------------


def test_spilled_tokens_are_stored_before_the_refresh_token_is_shown_again(desk, tmp_path, monkeypatch):
    """A worker dies between spill and save: the next one to claim looks into the spill, and nothing is used twice."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800}, spill_directory=tmp_path / "spill")
    world.connect()
    other = sync_of(world, world.another(spill_directory=tmp_path / "spill"))
    other.grant("acme", "ann")

    def dies(*_args, **_kwargs):
        raise SystemExit("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "save_renewal", dies)
        with pytest.raises(SystemExit):
            world.does(world.keeper.access_token("acme", "ann"))
    assert world.provider.token_requests == 1
    world.clock.advance(1000)
    assert other.access_token("acme", "ann").generation == 2
    assert (world.provider.token_requests, world.provider.reuses) == (1, 0)


def test_one_members_odd_refresh_token_pauses_nobody_else(desk):
    """What the token endpoint has against this request alone: the operator's, and the other members go on."""
    world = desk(provider={"access_lifetime": 1800})
    for member in ("ann", "ben"):
        world.connect(member)
    for error in ("invalid_scope", "invalid_request"):
        world.provider.refuse_next("token", status=400, body={"error": error})
        with pytest.raises(ConfigurationError):
            world.does(world.keeper.access_token("acme", "ann"))
        world.clock.advance(5)
    before = world.provider.token_requests
    assert world.does(world.keeper.access_token("acme", "ben")).generation == 2
    assert world.provider.token_requests == before + 1
    assert world.grant("ann").status is GrantStatus.ACTIVE
    assert world.recorded().count("ConfigurationProblem") >= 1


def test_introspection_that_cannot_be_asked_holds_up_no_verdict(desk, monkeypatch):
    """Introspection is the operator's trouble just now: the dead refresh token is the member's turn all the same."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()

    def misconfigured(*_args):
        raise ConfigurationError("no trust store", cause="bad_trust_store", fix="…")

    monkeypatch.setattr(AuthorizationServer, "introspect", misconfigured)
    world.provider.forget_refresh_token("ann")
    with pytest.raises(ReauthenticationRequired) as raised:
        world.does(world.keeper.access_token("acme", "ann"))
    assert raised.value.cause == "grant_invalid"


def test_a_consent_survives_a_busy_store(desk, monkeypatch):
    """The code is used up and the store is away for a moment: the tokens are kept until they are stored."""
    world = desk()
    begun = world.does(world.keeper.begin_authorization("acme", "ann"))
    callback = world.provider.consent(begun.url, member="ann")
    real, failures = Store.save_consent, []

    def failing(self, *args):
        if len(failures) < 3:
            failures.append(1)
            away()
        return real(self, *args)

    monkeypatch.setattr(Store, "save_consent", failing)
    assert world.does(world.keeper.finish_authorization(callback, member="ann")).grant.generation == 1


def test_two_migrations_keep_apart_and_none_waits_for_ever(database_url, monkeypatch):
    """Another process holds the one lock: whoever comes waits for a while, touches nothing, and says so."""
    monkeypatch.setattr(schema, "LOCK_PATIENCE", 1)
    monkeypatch.setattr("tokenkeeper.store.engine.BUSY_SECONDS", 0.05)
    registration = Registration("linkedin", client_id="c", client_secret="s")
    with TokenKeeper(database_url, keys=Keyring.parse(generate_key("k1")), registrations=[registration]) as keeper:
        with keeper.engine.connect() as other, schema._alone(other):
            with pytest.raises(TemporarilyUnavailable):
                keeper.create_schema()
            assert schema.state_of(other).state == "missing"
        keeper.create_schema()
        assert list(keeper.grants()) == []


@pytest.mark.parametrize("kind", ["deadlock", "serialization"])
def test_a_transaction_that_the_database_gave_up_is_made_again(desk, monkeypatch, kind):
    """MariaDB's deadlocks and PostgreSQL's failed serializations are nobody's weather: the claim is taken."""

    class GivenUp(Exception):
        sqlstate = "40001" if kind == "serialization" else None

    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    real, failures = operations.claim, []

    def failing(*args, **kwargs):
        if len(failures) < 2:
            failures.append(1)
            raise OperationalError("UPDATE", {}, GivenUp(1213 if kind == "deadlock" else "could not serialize"))
        return real(*args, **kwargs)

    monkeypatch.setattr(operations, "claim", failing)
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2
    assert len(failures) == 2


@pytest.mark.parametrize(
    ("request_of", "renewed"),
    [
        ({"headers": {"X-Api-Key": "k"}}, False),
        ({"params": True}, True),
        ({"data": True}, True),
        ({"headers": True}, True),
    ],
)
def test_a_refusal_of_a_request_without_the_token_is_no_evidence(desk, request_of, renewed):
    """The function calls another service as well, and that one refuses: no token is spent, and nobody is asked."""
    world = desk()
    world.connect()
    client = httpx2.Client(transport=world.provider.transport())

    def call(token):
        carried = {name: {"access_token": token.reveal()} if it is True else it for name, it in request_of.items()}
        return client.request("POST" if "data" in carried else "GET", "https://provider.test/v2/userinfo", **carried)

    world.provider.script("invalid", times=2)
    if renewed:
        with pytest.raises(ReauthenticationRequired):
            sync_of(world).recover("acme", "ann", call)
    else:
        assert sync_of(world).recover("acme", "ann", call).status_code == 401
    assert world.provider.token_requests == renewed
    assert ("ReauthenticationNeeded" in world.told()) is renewed


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_another_credential_is_in_no_local_of_ours(desk):
    """The request carried somebody else's credential: the error says so, and no frame of ours shows it."""
    world = desk()
    world.connect()
    keeper = sync_of(world)
    client = httpx2.Client(transport=world.provider.transport())

    @keeper.guard("acme")
    def call(token, member):
        return client.get("https://provider.test/v2/userinfo", headers={"Authorization": "Basic canary-credential"})

    world.provider.script("invalid")
    with pytest.raises(ConfigurationError) as raised:
        call(member="ann")
    assert raised.value.cause == "other_credential"
    trace, shown = raised.value.__traceback__, []
    while trace is not None:
        if in_package(trace.tb_frame.f_code.co_filename):
            shown.extend(map(repr, trace.tb_frame.f_locals.values()))
        trace = trace.tb_next
    assert shown
    assert "canary-credential" not in "".join(shown)
