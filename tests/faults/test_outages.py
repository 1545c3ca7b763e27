"""Databases that go away: restarted, crashed, cut off, locked, full or rewound at the worst moment of a renewal.

The worst moment is between the provider's answer and the save, when the new tokens exist nowhere else. The provider's
gate holds the answer, the test does something to the database, and lets go. Rotation is strict: a refresh token that is
shown twice costs the grant, so that whatever is forgotten or sent again shows.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import os
import resource
import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
import sqlalchemy
from cutting_proxy import CuttingProxy
from servers import PRIVATE, PrivateServer
from sqlalchemy.pool import NullPool

from tokenkeeper import (
    AccessToken,
    AsyncTokenKeeper,
    ConfigurationError,
    GrantStatus,
    Keyring,
    TemporarilyUnavailable,
    TokenKeeper,
    TokensRenewed,
)
from tokenkeeper.crypto import generate_key
from tokenkeeper.store.tables import grants
from tokenkeeper.testing import FakeProvider

LONG = os.environ.get("TOKENKEEPER_CAMPAIGN") == "long"
ROUNDS = range(10 if LONG else 1)
AWAY = 20.0
SAVED_WITHIN = 2.0
"""Seconds after the database's return within which tokens in hand are stored."""

LEASE = 6.0
DEADLINE = 5.0
"""Short enough for a test to wait until a claim lapses (:meth:`Site.hurry`)."""

PATIENCE = 10.0
CALLERS = 8
WORKER = Path(__file__).with_name("outage_worker.py")


class Site:
    """A strict provider over HTTP, and keepers on a database; the clocks are the real ones."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.spill = folder / "spill"
        self.timing: dict[str, Any] = {"lease_seconds": 60.0, "deadline_seconds": 50.0}
        self.keys = generate_key("k1")
        self.prefix = secrets.token_hex(12) + "-"
        self.provider = FakeProvider(rotation="strict", prefix=self.prefix)
        self.runner = asyncio.Runner()
        self.stack = contextlib.ExitStack()
        self.keepers: list[Any] = []
        self.renewed: list[TokensRenewed] = []
        self.engine = sqlalchemy.create_engine(url, poolclass=NullPool)

    def __enter__(self) -> Self:
        self.stack.enter_context(self.provider.serve())
        self.does(self.keeper().create_schema())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for keeper in self.keepers:
                self.does(keeper.close())
        finally:
            self.runner.close()
            self.engine.dispose()
            self.stack.close()

    def hurry(self) -> None:
        """From now on a worker's claim lapses soon."""
        self.timing = {"lease_seconds": LEASE, "deadline_seconds": DEADLINE}

    def declared(self) -> Any:
        """The provider, with a deadline that a busy machine does not miss while it restarts a server."""
        return self.provider.as_provider(**self.timing)

    def keeper(self, twin: str = "sync", url: str | None = None, **options: Any) -> Any:
        """A new worker."""
        kind = TokenKeeper if twin == "sync" else AsyncTokenKeeper
        options = {"patience": PATIENCE, "spill_directory": self.spill, **options}
        registration = self.provider.registration("acme", provider=self.declared())
        keeper = kind(url or self.url, keys=Keyring.parse(self.keys), registrations=[registration], **options)
        keeper.on(TokensRenewed, self.renewed.append)
        self.keepers.append(keeper)
        return keeper

    def does(self, result: Any) -> Any:
        """The result of a method of either twin."""
        return self.runner.run(_awaited(result)) if inspect.isawaitable(result) else result

    def connect(self, keeper: Any) -> str:
        """Give a new member a grant; their name."""
        member = f"member-{secrets.token_hex(4)}"
        self.does(keeper.save_tokens("acme", member, self.provider.issue(member=member)))
        return member

    def calls(self, keeper: Any, member: str, count: int) -> Callable[[], list[int | Exception]]:
        """Begin so many guarded calls at once; returns what waits for them: the status or the error of each."""
        url = f"{self.provider.base_url}/userinfo"
        if isinstance(keeper, TokenKeeper):
            threads = ThreadPoolExecutor(count)
            client = self.stack.enter_context(httpx2.Client(transport=self.provider.transport()))

            def profile(token: AccessToken, member: str) -> int:
                return client.get(url, auth=token)  # type: ignore[return-value]

            begun = [threads.submit(keeper.guard("acme")(profile), member=member) for _ in range(count)]
            threads.shutdown(wait=False)
            return lambda: [_came_of(call) for call in begun]
        aclient = httpx2.AsyncClient(transport=self.provider.async_transport())

        async def aprofile(token: AccessToken, member: str) -> httpx2.Response:
            return await aclient.get(url, auth=token)

        async def together() -> list[Any]:
            guarded = keeper.guard("acme")(aprofile)
            return await asyncio.gather(*(guarded(member=member) for _ in range(count)), return_exceptions=True)

        outcome: Future[list[Any]] = Future()
        threading.Thread(target=lambda: outcome.set_result(self.runner.run(together())), daemon=True).start()
        return lambda: [getattr(one, "status_code", one) for one in outcome.result(60)]

    def call(self, keeper: Any, member: str) -> int | Exception:
        """Make one guarded call; its status or its error."""
        return self.calls(keeper, member, 1)()[0]

    def row(self, member: str) -> Any:
        """The member's row, read past the keepers; None where the database does not answer."""
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError), self.engine.connect() as connection:
            return connection.execute(grants.select().where(grants.c.member == member.encode())).one()
        return None

    def stored_after(self, member: str, generation: int, since: float, patience: float = 15.0) -> float:
        """Seconds from *since* until the row has the generation."""
        while time.monotonic() < since + patience:
            row = self.row(member)
            if row is not None and row.generation >= generation:
                return max(time.monotonic() - since, 0.0)
            time.sleep(0.01)
        raise AssertionError(f"generation {generation} is not stored after {patience} s: {self.row(member)}")

    def redeemed(self, member: str) -> list[str]:
        """What became of each refresh token that was shown, in order."""
        return [p.verdict for p in self.provider.log if p.surface == "token" and p.member == member]

    def check(self, member: str, generation: int = 2) -> None:
        """One request, one save, one piece of news; and the chain goes on."""
        row = self.row(member)
        assert (row.generation, row.status, row.prompt) == (generation, GrantStatus.ACTIVE, None)
        assert self.redeemed(member) == ["ok"] * (generation - 1), "one token request, and none of a spent token"
        ends = time.monotonic() + 5
        told: list[int] = []
        while len(told) < generation - 1 and time.monotonic() < ends:  # the news comes a moment after the row
            told = [event.generation for event in self.renewed if event.member == member]
            threading.Event().wait(0.01)
        assert told == list(range(2, generation + 1)), "each renewal is told once"
        other = self.keeper()
        assert self.call(other, member) == 200
        assert other.renew("acme", member).generation == generation + 1
        assert self.redeemed(member) == ["ok"] * generation, "the stored refresh token is the living one"
        assert not list(self.spill.glob("*")), "what is stored is not left in the spill folder"


async def _awaited(result: Any) -> Any:
    return await result


def _came_of(call: Future[Any]) -> int | Exception:
    try:
        return int(call.result(60).status_code)
    except (TemporarilyUnavailable, ConfigurationError) as error:
        return error


@pytest.fixture(scope="module", params=sorted(PRIVATE))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """A database server of this module's own, which the tests leave running."""
    with PRIVATE[request.param](tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def site(server: PrivateServer, tmp_path: Path) -> Iterator[Site]:
    """A site on that server."""
    if not server.running:
        server.start()
    with Site(server.url, tmp_path) as made:
        yield made
        if not server.running:  # the keepers are closed with the database there
            server.start()


# --- what happens to a server ----------------------------------------------------------------------------------------


def restart(server: PrivateServer) -> float:
    """Restart in good order; when it was back (monotonic seconds)."""
    server.stop("fast")
    server.start()
    return time.monotonic()


def crash(server: PrivateServer) -> float:
    """Crash and recover."""
    server.stop("immediate")
    server.start()
    return time.monotonic()


def cut(server: PrivateServer) -> float:
    """End all connections."""
    assert server.kill_connections() > 0
    return time.monotonic()


ACTS: dict[str, Callable[[PrivateServer], float]] = {"restart": restart, "crash": crash, "cut": cut}


# --- between the provider's answer and the save ----------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize("round_", ROUNDS)
@pytest.mark.parametrize("twin", ["sync", "async"])
@pytest.mark.parametrize("act", ACTS)
def test_between_answer_and_save(site: Site, server: PrivateServer, act: str, twin: str, round_: int) -> None:
    """Restarted, crashed or cut off with the answer on its way: stored within 2 s, and every call that waits succeeds."""
    keeper = site.keeper(twin)
    member = site.connect(keeper)
    assert site.call(keeper, member) == 200
    site.provider.expire(member)
    with site.provider.hold("token", at="answer", times=1) as gate:
        outcome = site.calls(keeper, member, CALLERS)
        gate.wait_until_held()
        back = ACTS[act](server)
        gate.release()
        released = time.monotonic()
    took = site.stored_after(member, 2, max(back, released))
    print(f"{act}: stored {took:.2f} s after the return")
    assert took <= SAVED_WITHIN
    assert outcome() == [200] * CALLERS
    site.check(member)


@pytest.mark.campaign
@pytest.mark.parametrize("mode", ["fast", "immediate"] if LONG else ["immediate"])
def test_away_for_20_seconds(site: Site, server: PrivateServer, mode: str) -> None:
    """Away while the answer comes: callers hear that it is the weather, the tokens wait, and are stored within 2 s."""
    keeper, cold = site.keeper(), site.keeper(patience=2.0)
    member = site.connect(keeper)
    assert site.call(keeper, member) == 200
    site.provider.expire(member)
    with site.provider.hold("token", at="answer", times=1) as gate:
        outcome = site.calls(keeper, member, CALLERS)
        gate.wait_until_held()
        server.stop(mode)
        away = time.monotonic()
        gate.release()
    errors = outcome()
    assert all(isinstance(error, TemporarilyUnavailable) for error in errors), errors
    asked = time.monotonic()
    assert isinstance(site.call(cold, member), TemporarilyUnavailable)
    assert time.monotonic() - asked < PATIENCE, "a worker that has nothing in hand does not wait for the database"
    assert len(list(site.spill.glob("*.sealed"))) == 1
    time.sleep(max(away + AWAY - time.monotonic(), 0.0))
    server.start()
    took = site.stored_after(member, 2, time.monotonic())
    print(f"away for {AWAY:.0f} s: stored {took:.2f} s after the return")
    assert took <= SAVED_WITHIN
    assert site.call(keeper, member) == 200
    assert site.call(cold, member) == 200
    site.check(member)


# --- between the claim and the request -------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize("act", ACTS)
def test_between_claim_and_request(
    site: Site, server: PrivateServer, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claimed, and then the database goes: the request goes out on a claim that stands, and the call succeeds."""
    keeper = site.keeper()
    member = site.connect(keeper)
    assert site.call(keeper, member) == 200
    site.provider.expire(member)
    claimed, go = hold(monkeypatch, keeper._room.store, "open_refresh_token")
    outcome = site.calls(keeper, member, CALLERS)
    assert claimed.wait(10)
    assert site.row(member).claim_id is not None
    back = ACTS[act](server)
    go.set()
    assert site.stored_after(member, 2, max(back, time.monotonic())) <= SAVED_WITHIN
    assert outcome() == [200] * CALLERS
    site.check(member)


@pytest.mark.campaign
def test_away_between_claim_and_request(site: Site, server: PrivateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that has aged and cannot be confirmed sends nothing; when the database is back, calls recover in a lease."""
    site.hurry()
    keeper = site.keeper()
    member = site.connect(keeper)
    site.provider.expire(member)
    claimed, go = hold(monkeypatch, keeper._room.store, "open_refresh_token")
    outcome = site.calls(keeper, member, 1)
    assert claimed.wait(10)
    server.stop("immediate")
    time.sleep(1.2)  # older than a claim may be without being looked at again
    go.set()
    assert isinstance(outcome()[0], TemporarilyUnavailable)
    assert site.redeemed(member) == [], "without a claim that stands nothing is sent"
    server.start()
    back = time.monotonic()
    while (came := site.call(keeper, member)) != 200:
        assert time.monotonic() - back < LEASE + 2, f"not recovered within a lease: {came!r}"
        time.sleep(0.1)
    site.check(member)


def hold(patch: pytest.MonkeyPatch, owner: Any, name: str) -> tuple[threading.Event, threading.Event]:
    """Stop the first call of a method; returns the event that it has come, and the one that lets it go on."""
    here, go = threading.Event(), threading.Event()
    plain = getattr(owner, name)

    def held(*args: Any, **kwargs: Any) -> Any:
        if not here.is_set():
            here.set()
            assert go.wait(60)
        return plain(*args, **kwargs)

    patch.setattr(owner, name, held)
    return here, go


# --- inside the save -------------------------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize("act", ACTS)
def test_between_update_and_commit(site: Site, server: PrivateServer, act: str) -> None:
    """The save has written and not committed when its connection dies: it is made again, once."""
    keeper = site.keeper()
    member = site.connect(keeper)
    assert site.call(keeper, member) == 200
    site.provider.expire(member)
    written, go = threading.Event(), threading.Event()

    def after(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE tokenkeeper_grant SET status") and not written.is_set():
            written.set()
            assert go.wait(60)

    sqlalchemy.event.listen(keeper._room.engine, "after_cursor_execute", after)
    outcome = site.calls(keeper, member, CALLERS)
    assert written.wait(10)
    back = ACTS[act](server)
    assert site.row(member).generation == 1, "what was not committed is not there"
    go.set()
    assert site.stored_after(member, 2, max(back, time.monotonic())) <= SAVED_WITHIN
    assert outcome() == [200] * CALLERS
    site.check(member)


@pytest.mark.campaign
@pytest.mark.parametrize("round_", ROUNDS)
def test_save_whose_commit_is_unknown(site: Site, server: PrivateServer, round_: int) -> None:
    """The save is committed and nobody says so: it is found to be stored, and neither made nor told again."""
    with CuttingProxy(server.port) as proxy:
        keeper = site.keeper(url=through(site.url, proxy))
        member = site.connect(keeper)
        assert site.call(keeper, member) == 200
        site.provider.expire(member)
        written: list[int] = []

        def after(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("UPDATE tokenkeeper_grant SET status"):
                written.append(cursor.rowcount)

        sqlalchemy.event.listen(keeper._room.engine, "after_cursor_execute", after)
        with site.provider.hold("token", at="answer", times=1) as gate:
            outcome = site.calls(keeper, member, CALLERS)
            gate.wait_until_held()
            proxy.lose_next_commit()
            gate.release()
        assert outcome() == [200] * CALLERS
        assert proxy.lost.is_set()
        assert written == [1, 0], "saved, asked for again, and found to be there"
        site.check(member)


@pytest.mark.campaign
@pytest.mark.parametrize("round_", ROUNDS)
def test_claim_whose_commit_is_unknown(site: Site, server: PrivateServer, round_: int) -> None:
    """The claim is committed and nobody says so: nothing is sent on it, and calls recover within the lease and 2 s."""
    site.hurry()
    with CuttingProxy(server.port) as proxy:
        keeper = site.keeper(url=through(site.url, proxy))
        member = site.connect(keeper)
        assert site.call(keeper, member) == 200
        site.provider.expire(member)
        proxy.lose_next_commit()
        assert isinstance(site.call(keeper, member), TemporarilyUnavailable)
        lost = time.monotonic()
        assert proxy.lost.is_set()
        assert site.row(member).claim_id is not None, "the claim was committed"
        assert site.redeemed(member) == []
        while (came := site.call(keeper, member)) != 200:
            assert time.monotonic() - lost < LEASE + 2, f"not recovered within a lease: {came!r}"
            time.sleep(0.1)
        assert time.monotonic() - lost < LEASE + 2
        site.check(member)


def through(url: str, proxy: CuttingProxy) -> str:
    """The same database by way of the proxy, where libpq is not to ask for TLS first."""
    changed = sqlalchemy.make_url(url).set(port=proxy.port)
    if changed.get_backend_name() == "postgresql":
        changed = changed.update_query_dict({"sslmode": "disable", "gssencmode": "disable"})
    return changed.render_as_string(hide_password=False)


# --- killed while the database is away -------------------------------------------------------------------------------


class Process:
    """A worker in a process of its own."""

    def __init__(self, site: Site) -> None:
        declared = site.declared()
        registration = site.provider.registration("acme")
        settings = {
            "database": site.url,
            "keys": site.keys,
            "provider": {
                name: getattr(declared, name)
                for name in (
                    "name",
                    "token_endpoint",
                    "authorization_endpoint",
                    "rotation",
                    "lease_seconds",
                    "deadline_seconds",
                )
            },
            "client": {
                "client_id": registration.client_id,
                "client_secret": [secret.reveal() for secret in registration.client_secret],
                "redirect_uri": registration.redirect_uri,
                "scopes": list(registration.scopes),
            },
            "patience": PATIENCE,
            "spill": str(site.spill),
            "api": f"{site.provider.base_url}/userinfo",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._tell(json.dumps(settings))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def begin_call(self, member: str) -> None:
        """Have it make a guarded call."""
        self._tell(member)

    def came_of_call(self) -> dict[str, Any]:
        """What came of the call: its status, or its error and cause."""
        assert self._process.stdout is not None
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait(10)

    def limit_files(self, size: int) -> None:
        """Let no file of it grow beyond so many bytes."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, hard))


@contextmanager
def worker_process(site: Site) -> Iterator[Process]:
    """A worker that is dead at the end."""
    process = Process(site)
    try:
        yield process
    finally:
        process.kill()


def no_secret_in(folder: Path, site: Site) -> None:
    """No token that the provider has issued, and no key or client secret, is readable in any file: plain or in base64."""
    texts = [f"{site.prefix}{kind}-{number}" for kind in ("access", "refresh") for number in range(1, 9)]
    texts += [site.keys.split(":")[-1], *(s.reveal() for s in site.provider.registration("acme").client_secret)]
    needles = [site.prefix.encode()]
    for text in texts:
        plain = text.encode()
        # At each of the three places where a text may begin in base64, without the ends that its neighbours decide.
        needles += [plain, *(base64.b64encode(b"x" * n + plain)[4:-4] for n in range(3)), plain.hex().encode()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, "there is a file to look into"
    for path in files:
        found = [needle for needle in needles if needle in path.read_bytes()]
        assert not found, f"{path.name} holds {found[0]!r}"


def spilled(site: Site) -> None:
    """Wait until the new tokens are in the spill folder."""
    end = time.monotonic() + 10
    while not list(site.spill.glob("*.sealed")):
        assert time.monotonic() < end, "nothing is spilled"
        time.sleep(0.01)


@pytest.mark.campaign
@pytest.mark.parametrize("round_", ROUNDS)
@pytest.mark.parametrize("by", ["the next start", "another worker's claim"])
def test_killed_while_the_database_is_away(site: Site, server: PrivateServer, by: str, round_: int) -> None:
    """A worker that dies with the only copy leaves it, sealed, in the spill: the next start stores it, or a claim."""
    site.hurry()
    neighbour = site.keeper()
    member = site.connect(neighbour)
    assert site.call(neighbour, member) == 200  # it is running: no start of its own will look into the folder
    with worker_process(site) as worker:
        site.provider.expire(member)
        with site.provider.hold("token", at="answer", times=1) as gate:
            worker.begin_call(member)
            gate.wait_until_held()
            server.stop("immediate")
            gate.release()
        spilled(site)
    no_secret_in(site.spill, site)
    server.start()
    back = time.monotonic()
    assert site.row(member).generation == 1
    survivor = site.keeper() if by == "the next start" else neighbour
    if by == "the next start":
        assert site.call(survivor, site.connect(survivor)) == 200  # whoever it works for
        assert site.stored_after(member, 2, back) <= SAVED_WITHIN + 1
    while (came := site.call(survivor, member)) != 200:
        assert time.monotonic() - back < LEASE + 2, f"not recovered within a lease: {came!r}"
        time.sleep(0.1)
    assert site.redeemed(member) == ["ok"]
    site.check(member)


# --- SQLite: locked, full, read-only ---------------------------------------------------------------------------------


@pytest.fixture
def file_site(tmp_path: Path) -> Iterator[Site]:
    """A site on a SQLite file."""
    with Site(f"sqlite:///{tmp_path / 'tokens.db'}", tmp_path) as made:
        yield made


def test_file_locked_for_longer_than_its_timeout(file_site: Site, tmp_path: Path) -> None:
    """Another writer holds the SQLite file when the save comes: the tokens wait for it."""
    keeper = file_site.keeper(url=f"{file_site.url}?timeout=0.2")
    member = file_site.connect(keeper)
    file_site.provider.expire(member)
    with file_site.provider.hold("token", at="answer", times=1) as gate:
        outcome = file_site.calls(keeper, member, CALLERS)
        gate.wait_until_held()
        with contextlib.closing(sqlite3.connect(tmp_path / "tokens.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            gate.release()
            spilled(file_site)
            time.sleep(0.6)
            assert file_site.row(member).generation == 1
            other.execute("COMMIT")
            unlocked = time.monotonic()
    assert file_site.stored_after(member, 2, unlocked) <= SAVED_WITHIN
    assert outcome() == [200] * CALLERS
    file_site.check(member)


@pytest.mark.campaign
@pytest.mark.parametrize("round_", ROUNDS)
@pytest.mark.parametrize("spill", ["room for the spill", "no room at all"])
def test_disk_full_at_save(file_site: Site, tmp_path: Path, spill: str, round_: int) -> None:
    """No file may grow when the save comes: the tokens are held, and stored within 2 s once there is room."""
    member = file_site.connect(file_site.keeper())
    with worker_process(file_site) as worker:
        worker.begin_call(member)
        assert worker.came_of_call() == {"status": 200}
        file_site.provider.expire(member)
        with file_site.provider.hold("token", at="answer", times=1) as gate:
            worker.begin_call(member)
            gate.wait_until_held()
            # The write-ahead log is longer than a spill file: none of it can grow, one of those can be written.
            worker.limit_files(4096 if spill == "room for the spill" else 0)
            gate.release()
        if spill == "room for the spill":
            spilled(file_site)
        time.sleep(1.5)  # the save is tried, again and again
        assert bool(list(file_site.spill.glob("*.sealed"))) == (spill == "room for the spill")
        assert file_site.row(member).generation == 1, "the save could not be made"
        worker.limit_files(resource.RLIM_INFINITY)
        room = time.monotonic()
        assert file_site.stored_after(member, 2, room) <= SAVED_WITHIN
        assert worker.came_of_call() == {"status": 200}
    file_site.renewed.extend(told_elsewhere(file_site, member))
    file_site.check(member)


def told_elsewhere(site: Site, member: str) -> list[TokensRenewed]:
    """What another process has told: news of its renewal, for :meth:`Site.check` to count."""
    row = site.row(member)
    return [
        TokensRenewed(
            id="elsewhere", at=None, registration="acme", member=member, grant_id=row.grant_id, generation=generation
        )
        for generation in range(2, row.generation + 1)
    ]


@pytest.mark.campaign
def test_disk_full_at_claim(file_site: Site) -> None:
    """No file may grow when the claim comes: nothing is sent, and when there is room the call succeeds."""
    member = file_site.connect(file_site.keeper())
    with worker_process(file_site) as worker:
        worker.begin_call(member)
        assert worker.came_of_call() == {"status": 200}
        file_site.provider.expire(member)
        worker.limit_files(0)
        worker.begin_call(member)
        assert worker.came_of_call()["error"] in ("TemporarilyUnavailable", "ConfigurationError")
        assert file_site.redeemed(member) == [], "what cannot be claimed is not sent"
        worker.limit_files(resource.RLIM_INFINITY)
        worker.begin_call(member)
        assert worker.came_of_call() == {"status": 200}
    file_site.renewed.extend(told_elsewhere(file_site, member))
    file_site.check(member)


@pytest.mark.parametrize("moment", ["claim", "save"])
def test_file_read_only(file_site: Site, moment: str) -> None:
    """A read-only file at the claim: nothing is sent. At the save: the tokens are held and stored when it is writable."""
    keeper = file_site.keeper(patience=1.0)
    member = file_site.connect(keeper)
    assert file_site.call(keeper, member) == 200
    file_site.provider.expire(member)
    read_only = threading.Event()

    def begin(connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA query_only = {int(read_only.is_set())}")

    sqlalchemy.event.listen(keeper._room.engine, "begin", begin)
    if moment == "claim":
        read_only.set()
        error = file_site.call(keeper, member)
        assert isinstance(error, ConfigurationError)
        assert error.cause == "database_read_only"
        assert file_site.redeemed(member) == []
        read_only.clear()
        assert file_site.call(keeper, member) == 200
    else:
        with file_site.provider.hold("token", at="answer", times=1) as gate:
            outcome = file_site.calls(keeper, member, CALLERS)
            gate.wait_until_held()
            read_only.set()
            gate.release()
        assert all(isinstance(error, TemporarilyUnavailable) for error in outcome())
        assert file_site.row(member).generation == 1
        read_only.clear()
        assert file_site.stored_after(member, 2, time.monotonic()) <= SAVED_WITHIN
    file_site.check(member)


# --- rewound: a restored backup, a failover that lost the newest commits ---------------------------------------------


def rewinder(site: Site, member: str) -> Callable[[], None]:
    """Take a backup; returns what restores it: the whole file on SQLite, else the member's row."""
    url = sqlalchemy.make_url(site.url)
    if url.get_backend_name() != "sqlite":
        before = site.row(member)._asdict()

        def put_back() -> None:
            with site.engine.begin() as connection:
                connection.execute(grants.update().where(grants.c.grant_id == before["grant_id"]).values(before))

        return put_back
    backup = sqlite3.connect(":memory:", check_same_thread=False)
    site.stack.callback(backup.close)
    with contextlib.closing(sqlite3.connect(str(url.database))) as live:
        live.backup(backup)

    def restore() -> None:
        with contextlib.closing(sqlite3.connect(str(url.database))) as live:
            backup.backup(live)

    return restore


def backed_up(site: Site) -> tuple[Any, str, Callable[[], None]]:
    """A keeper, a member at generation 3 whose token is refused from now on, and what goes back to generation 1."""
    keeper = site.keeper()
    member = site.connect(keeper)
    rewind = rewinder(site, member)
    for _ in range(2):
        site.does(keeper.renew("acme", member))
    # As if that were a while ago: a token that is refused a moment after its renewal is not renewed.
    with site.engine.begin() as connection:
        connection.execute(grants.update().values(renewed_at=grants.c.renewed_at - 60_000_000))
    assert site.call(keeper, member) == 200
    site.provider.expire(member)
    return keeper, member, rewind


def behind_its_claim(site: Site, after: Callable[[Any, str], None]) -> tuple[Any, str, list[int | Exception]]:
    """Rewind a grant by two generations between the provider's answer and the save, do *after*, and let go."""
    keeper, member, rewind = backed_up(site)
    with site.provider.hold("token", at="answer", times=1) as gate:
        outcome = site.calls(keeper, member, CALLERS)
        gate.wait_until_held()
        assert site.row(member).generation == 3
        rewind()
        assert site.row(member).generation == 1
        after(site.keeper(), member)
        gate.release()
    return keeper, member, outcome()


def nothing(_keeper: Any, _member: str) -> None:
    """Nothing else happens."""


def test_rewound_file(file_site: Site) -> None:
    """A SQLite file restored from a backup under a renewal: its tokens are stored over the old row, as generation 4."""
    _, member, came = behind_its_claim(file_site, nothing)
    assert came == [200] * CALLERS
    file_site.check(member, generation=4)


@pytest.mark.campaign
def test_rewound_row(site: Site) -> None:
    """A failover that lost the newest commits under a renewal: its tokens are stored over the old row."""
    _, member, came = behind_its_claim(site, nothing)
    assert came == [200] * CALLERS
    site.check(member, generation=4)


def test_rewound_and_consented_anew(file_site: Site) -> None:
    """A member who has consented anew after the restore keeps that consent: the renewal of the old one is let go."""

    def consent(keeper: Any, member: str) -> None:
        keeper.save_tokens("acme", member, file_site.provider.issue(member=member))

    keeper, member, came = behind_its_claim(file_site, consent)
    assert came == [200] * CALLERS
    old, _ = (consented for consented in file_site.provider.ledger.grants if consented.member == member)
    old.revoked = True  # so that whatever stems from it does not work
    assert file_site.call(keeper, member) == 200
    other = file_site.keeper()
    assert file_site.call(other, member) == 200
    other.renew("acme", member)
    assert set(file_site.redeemed(member)) == {"ok"}


@pytest.mark.campaign
def test_rewound_under_spilled_tokens(file_site: Site, tmp_path: Path) -> None:
    """A worker dies with its tokens in the spill and an old backup is restored: the next start stores them over it."""
    _, member, rewind = backed_up(file_site)
    with worker_process(file_site) as worker, contextlib.ExitStack() as lock:
        with file_site.provider.hold("token", at="answer", times=1) as gate:
            worker.begin_call(member)
            gate.wait_until_held()
            other = lock.enter_context(
                contextlib.closing(sqlite3.connect(tmp_path / "tokens.db", isolation_level=None))
            )
            other.execute("BEGIN IMMEDIATE")
            gate.release()
        spilled(file_site)
        worker.kill()
    rewind()
    assert file_site.row(member).generation == 1
    survivor = file_site.keeper()
    assert file_site.call(survivor, file_site.connect(survivor)) == 200
    assert file_site.stored_after(member, 4, time.monotonic()) <= SAVED_WITHIN
    assert file_site.call(survivor, member) == 200
    file_site.check(member, generation=4)
