"""Bad input, one clear error each: naming what and whose turn, and nothing is lost (DESIGN section 2)."""

from __future__ import annotations

import inspect
import json
import logging
import sqlite3
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import create_engine, event

from tokenkeeper import (
    AccessToken,
    AsyncTokenKeeper,
    ConfigurationError,
    GrantConnected,
    GrantStatus,
    InvalidInput,
    Keyring,
    KeyUnavailable,
    NotConnected,
    Provider,
    Registration,
    SchemaOutdated,
    TokenKeeper,
    TokensRenewed,
    Turn,
)
from tokenkeeper.crypto import generate_key


def rows(world, statement="SELECT * FROM tokenkeeper_grant"):
    engine = create_engine(f"sqlite:///{Path(world.url.removeprefix('sqlite:///'))}")
    try:
        with engine.connect() as connection:
            return connection.exec_driver_sql(statement).all()
    finally:
        engine.dispose()


# --- members and registrations ---


def test_four_members_are_four(desk, database_url):
    """Compared byte for byte: no collation folds or pads them."""
    world = desk(database_url)
    members = ["ann", "Ann", "ann ", "änn", "a\u0308nn", "\uff21\uff2e\uff2e"]
    for number, member in enumerate(members):
        world.does(world.keeper.save_tokens("acme", member, {"access_token": f"token-{number}"}))
    for number, member in enumerate(members):
        assert world.does(world.keeper.access_token("acme", member)).reveal() == f"token-{number}"
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    assert sorted(grant.member for grant in keeper.grants("acme")) == sorted(members)


def test_ints_and_uuids_are_members_too(desk):
    """Made a str."""
    world = desk()
    who = UUID("12345678-1234-5678-1234-567812345678")
    for member in (7, who):
        world.does(world.keeper.save_tokens("acme", member, {"access_token": "t"}))
        assert world.does(world.keeper.grant("acme", str(member))).member == str(member)
    assert world.does(world.keeper.access_token("acme", 7)).reveal() == "t"


@pytest.mark.parametrize(
    "member", ["", "a\nb", "a\x00", "x" * 256, "ä" * 128, "\ud800", None, 1.5, True, b"ann", ["ann"]]
)
def test_a_member_that_cannot_be_one(desk, member):
    """Empty, control characters, too long, not text."""
    world = desk()
    for attempt in (
        lambda: world.keeper.access_token("acme", member),
        lambda: world.keeper.save_tokens("acme", member, {"access_token": "t"}),
        lambda: world.guarded()(member=member),
    ):
        with pytest.raises(InvalidInput) as raised:
            world.does(attempt())
        assert (raised.value.cause, raised.value.turn) == ("member", Turn.OPERATOR)
        assert isinstance(raised.value, ValueError)
    assert rows(world) == []


def test_an_unknown_registration(desk):
    """Named, with those that there are; a TypeError at decoration."""
    world = desk()
    with pytest.raises(InvalidInput, match="'acme'") as raised:
        world.does(world.keeper.access_token("nobody", "ann"))
    assert raised.value.cause == "unknown_registration"
    with pytest.raises(TypeError, match="'acme'"):
        world.keeper.guard("nobody")


def test_an_unknown_member(desk):
    """Not connected: the member's turn."""
    world = desk()
    for attempt in (world.keeper.grant, world.keeper.access_token, world.keeper.renew):
        with pytest.raises(NotConnected) as raised:
            world.does(attempt("acme", "nobody"))
        assert raised.value.turn is Turn.MEMBER
    assert world.does(world.keeper.forget("acme", "nobody")) is False


def test_two_registrations_of_one_name():
    """Refused at construction."""
    registration = Registration("a", provider=Provider("x"), client_id="i")
    with pytest.raises(InvalidInput):
        TokenKeeper("sqlite:///x.db", registrations=[registration, registration])


# --- token responses ---


@pytest.mark.parametrize(
    "response",
    [
        {},
        {"access_token": ""},
        {"access_token": None},
        {"access_token": 5},
        {"access_token": "a\r\nX: y"},
        {"access_token": "a b"},
        {"access_token": "tökén"},
        {"access_token": "x" * 20_000},
        {"access_token": "t", "refresh_token": ""},
        {"access_token": "t", "refresh_token": "r\r\n"},
        {"access_token": "t", "expires_in": -1},
        {"access_token": "t", "expires_in": "soon"},
        {"access_token": "t", "expires_in": 1e18},
        {"access_token": "t", "expires_in": True},
        {"access_token": "t", "expires_in": float("nan")},
        {"access_token": "t", "expires_at": "tomorrow"},
        {"error": "invalid_grant"},
    ],
)
def test_a_token_response_that_cannot_be_stored(desk, response):
    """Named without being quoted; what was stored stays."""
    world = desk()
    world.connect()
    before = rows(world)
    with pytest.raises(InvalidInput) as raised:
        world.does(world.keeper.save_tokens("acme", "ann", response))
    assert (raised.value.cause, raised.value.turn) == ("token_response", Turn.OPERATOR)
    assert rows(world) == before


def test_expires_in_missing_means_unknown(desk):
    """Unknown age: used until it is refused."""
    world = desk()
    world.does(world.keeper.save_tokens("acme", "ann", {"access_token": "t"}))
    world.clock.advance(10**8)
    assert world.grant().access_expires_at is None
    assert world.does(world.keeper.access_token("acme", "ann")).reveal() == "t"


def test_expires_at_wins(desk):
    """Epoch seconds, as requests-oauthlib and Authlib keep them."""
    world = desk()
    at = world.clock() + 50
    world.does(world.keeper.save_tokens("acme", "ann", {"access_token": "t", "expires_in": 9999, "expires_at": at}))
    assert world.grant().access_expires_at.timestamp() == pytest.approx(at)


def test_keep_refresh_token(desk):
    """The stored refresh token stays only when that is asked for."""
    world = desk()
    world.connect()
    world.does(world.keeper.save_tokens("acme", "ann", {"access_token": "t"}, keep_refresh_token=True))
    assert world.grant().has_refresh_token
    assert world.does(world.keeper.renew("acme", "ann")).generation == 3
    world.does(world.keeper.save_tokens("acme", "ann", {"access_token": "t"}))
    assert not world.grant().has_refresh_token


@pytest.mark.parametrize("expires_in", [-5, "soon", 1e18, None, [], "3600"])
def test_a_providers_odd_lifetime_loses_no_tokens(desk, expires_in):
    """A good rotation is never thrown away because of its expires_in."""
    world = desk(provider={"rotation": "strict", "access_lifetime": 1800})
    world.connect()
    world.provider.refuse_next(
        "token",
        status=200,
        headers={"Content-Type": "application/json"},
        body=json.dumps({"access_token": "new", "refresh_token": "newer", "expires_in": expires_in}),
    )
    token = world.does(world.keeper.access_token("acme", "ann"))
    assert token.reveal() == "new"
    assert world.grant().status is GrantStatus.ACTIVE


# --- keys ---


def test_an_unknown_key_is_the_operators(desk):
    """The key is not in the keyring: no prompt, the row is not changed, the right key opens it again."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    before = rows(world)
    stranger = world.another(keys=Keyring.parse(generate_key("k2")))
    for attempt in (stranger.access_token, stranger.renew):
        with pytest.raises(KeyUnavailable) as raised:
            world.does(attempt("acme", "ann"))
        assert raised.value.turn is Turn.OPERATOR
    [(*_, tries)] = rows(
        world, "SELECT access_token, refresh_token, status, generation, in_flight_tries FROM tokenkeeper_grant"
    )
    assert tries == 0
    assert rows(world)[0][:10] == before[0][:10]
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2


def test_keys_come_from_the_environment(desk, monkeypatch):
    """``keys=None`` reads it at first use."""
    world = desk()
    monkeypatch.delenv("TOKENKEEPER_KEYS", raising=False)
    keeper = world.another(keys=None)
    with pytest.raises(KeyUnavailable) as raised:
        world.does(keeper.grant("acme", "ann"))
    assert "keys generate" in raised.value.fix
    monkeypatch.setenv("TOKENKEEPER_KEYS", generate_key("k9"))
    keeper = world.another(keys=None)
    world.does(keeper.save_tokens("acme", "ann", {"access_token": "t"}))
    assert world.does(keeper.access_token("acme", "ann")).reveal() == "t"


# --- the database ---


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite://", "sqlite:///file::memory:?uri=true&mode=memory"]
)
def test_memory_is_refused(desk, url):
    """Each thread would see its own."""
    world = desk()
    keeper = TokenKeeper(url, keys=world.keyring, registrations=[world.registration])
    with pytest.raises(InvalidInput, match="memory"):
        keeper.create_schema()


def test_an_async_url_names_the_same_database(desk):
    """Opened with the sync driver."""
    world = desk()
    world.connect()
    keeper = AsyncTokenKeeper(
        world.url.replace("sqlite:", "sqlite+aiosqlite:"), keys=world.keyring, registrations=[world.registration]
    )
    assert world.runner.run(keeper.grant("acme", "ann")).member == "ann"
    world.runner.run(keeper.close())


def test_the_hosts_own_engine(desk):
    """Used as it is, and not disposed."""
    world = desk()
    world.connect()
    engine = create_engine(world.url)
    with TokenKeeper(engine, keys=world.keyring, registrations=[world.registration]) as keeper:
        assert keeper.grant("acme", "ann").member == "ann"
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM tokenkeeper_grant").scalar() == 1
    engine.dispose()


def test_a_url_that_is_none():
    """Clear, and without the password."""
    keeper = TokenKeeper("not a url hunter2", keys=None, registrations=[])
    with pytest.raises(InvalidInput) as raised:
        keeper.create_schema()
    assert "hunter2" not in str(raised.value)


def test_a_driver_that_is_not_there():
    """Named, with the extra."""
    keeper = TokenKeeper("oracle+nothing://x/y", keys=None, registrations=[])
    with pytest.raises(ConfigurationError) as raised:
        keeper.create_schema()
    assert raised.value.cause == "driver"


def test_no_schema_names_the_remedy(desk, tmp_path):
    """``tokenkeeper db upgrade``."""
    world = desk()
    keeper = TokenKeeper(f"sqlite:///{tmp_path / 'empty.db'}", keys=world.keyring, registrations=[world.registration])
    with pytest.raises(SchemaOutdated, match="tokenkeeper db upgrade"):
        keeper.access_token("acme", "ann")
    keeper.close()


def test_a_folder_that_is_not_there(desk, tmp_path):
    """The operator's turn."""
    world = desk()
    keeper = TokenKeeper(
        f"sqlite:///{tmp_path / 'no' / 'x.db'}", keys=world.keyring, registrations=[world.registration]
    )
    with pytest.raises(ConfigurationError) as raised:
        keeper.create_schema()
    assert raised.value.cause == "database"


def test_a_file_that_is_no_database(desk, tmp_path):
    """The operator's turn."""
    world = desk()
    (tmp_path / "x.db").write_bytes(b"no database, but long enough to be looked at by SQLite" * 40)
    keeper = TokenKeeper(f"sqlite:///{tmp_path / 'x.db'}", keys=world.keyring, registrations=[world.registration])
    with pytest.raises(ConfigurationError) as raised:
        keeper.access_token("acme", "ann")
    assert raised.value.cause == "database"
    keeper.close()


def test_an_older_schema_is_an_error_and_a_newer_compatible_one_a_warning(desk):
    """A rolling deploy is no outage; an old schema names the command."""
    world = desk()
    world.connect()

    def revision(number, serves):
        with sqlite3.connect(world.url.removeprefix("sqlite:///")) as connection:
            connection.execute("DELETE FROM tokenkeeper_schema")
            connection.execute("INSERT INTO tokenkeeper_schema VALUES (?, ?)", (number, serves))
        connection.close()

    revision(0, 0)
    with pytest.raises(SchemaOutdated, match="tokenkeeper db upgrade"):
        world.does(world.another().access_token("acme", "ann"))
    revision(2, 1)
    with pytest.warns(RuntimeWarning, match="newer than this code"):
        assert world.does(world.another().access_token("acme", "ann"))
    revision(3, 2)
    with pytest.raises(SchemaOutdated, match="Update tokenkeeper"):
        world.does(world.another().access_token("acme", "ann"))
    revision(1, 1)


def test_a_read_only_database_sends_nothing(desk):
    """No claim, no request: the grant is kept, and the operator is told."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    world.does(world.keeper.close())
    file = world.url.removeprefix("sqlite:///")
    keeper = world.another()
    keeper._room.database = create_engine(f"sqlite:///file:{file}?mode=ro&uri=true")
    with pytest.raises(ConfigurationError) as raised:
        world.does(keeper.access_token("acme", "ann"))
    assert raised.value.cause == "database_read_only"
    assert world.provider.token_requests == 0
    keeper._room.database.dispose()


def test_a_full_database_sends_nothing(desk):
    """The claim cannot be written: nothing is sent, nothing is lost, and space brings it back."""
    world = desk(provider={"access_lifetime": 1800})
    world.connect()
    engine = world.keeper._room.engine
    pages = []

    @event.listens_for(engine, "connect")
    @event.listens_for(engine, "checkout")
    def limit(connection, *_):
        if pages:
            connection.execute(f"PRAGMA max_page_count={pages[0]}")

    with sqlite3.connect(world.url.removeprefix("sqlite:///")) as connection:
        pages.append(connection.execute("PRAGMA page_count").fetchone()[0])
    connection.close()
    big = {"access_token": "t" * 16_000, "refresh_token": "r" * 16_000}
    with pytest.raises(ConfigurationError) as raised:
        world.does(world.keeper.save_tokens("acme", "ann", big))
    assert raised.value.cause == "database_full"
    pages[0] = 1_000_000
    assert world.does(world.keeper.access_token("acme", "ann")).generation == 2


# --- endpoints ---


def test_an_http_token_endpoint_off_loopback():
    """Refused at construction; loopback is allowed."""
    with pytest.raises(ConfigurationError, match="http"):
        TokenKeeper(
            "sqlite:///x.db",
            registrations=[
                Registration("a", provider=Provider("x", token_endpoint="http://auth.example/token"), client_id="i")
            ],
        )
    TokenKeeper(
        "sqlite:///x.db",
        registrations=[
            Registration("a", provider=Provider("x", token_endpoint="http://127.0.0.1:1/token"), client_id="i")
        ],
    )


# --- callbacks ---


def test_a_callback_that_raises_is_logged_and_changes_nothing(desk, caplog):
    """The change is committed before anybody is told."""
    world = desk()
    heard = []

    @world.keeper.on(GrantConnected)
    def broken(event):
        raise RuntimeError("the host's own")

    world.keeper.on(GrantConnected, heard.append)
    with caplog.at_level(logging.ERROR):
        world.connect()
    assert len(heard) == 1
    assert "broken" in caplog.text
    assert world.guarded()(member="ann").status_code == 200


def test_an_async_callback_is_awaited(desk):
    """In the loop that uses the keeper, or in one of its own."""
    world = desk()
    heard = []

    @world.keeper.on(TokensRenewed)
    async def renewed(event):
        heard.append(event.generation)

    world.connect()
    world.provider.expire("ann")
    assert world.guarded()(member="ann").status_code == 200
    assert heard == [2]


def test_a_callback_may_use_the_keeper(desk):
    """Outside claim and transaction: the new token is there for it."""
    world = desk()
    seen = []
    keeper = world.keeper if world.twin == "sync" else world.keeper.sync
    world.keeper.on(TokensRenewed, lambda event: seen.append(keeper.access_token("acme", event.member).generation))
    world.connect()
    world.provider.expire("ann")
    assert world.guarded()(member="ann").status_code == 200
    assert seen == [2]


@pytest.mark.parametrize("kind", [str, object, "TokensRenewed", None])
def test_on_takes_event_types(desk, kind):
    """Anything else is a TypeError."""
    with pytest.raises(TypeError):
        desk().keeper.on(kind, print)


# --- decoration ---


def test_what_cannot_be_guarded(desk):
    """A TypeError at decoration, saying what to do."""
    world = desk()
    sync, other = world.keeper, world.another()
    guard = sync.guard("acme")

    def plain(token, member): ...
    async def asynchronous(token, member): ...
    def generator(token, member):
        yield

    async def async_generator(token, member):
        yield

    def no_token(member): ...
    def late_token(a, b, token): ...
    def no_member(token): ...
    def keyword_token(*, token, member): ...

    wrong = asynchronous if world.twin == "sync" else plain
    for function in (wrong, generator, async_generator, 5):
        with pytest.raises(TypeError):
            guard(function)
    if world.twin == "sync":
        for function in (no_token, late_token, no_member, keyword_token):
            with pytest.raises(TypeError):
                guard(function)
        with pytest.raises(TypeError, match="coroutine"):
            world.connect()
            call = guard(lambda token, member: asynchronous(token, member))  # noqa: PLW0108 - it hides the coroutine
            call(member="ann")
        with pytest.raises(TypeError, match="coroutine"):
            call(member="ann")
    assert other is not sync


def test_the_signature_has_no_token(desk):
    """What FastAPI and pytest read."""
    world = desk()

    if world.twin == "sync":

        @world.keeper.guard("acme", member="who")
        def call(token: AccessToken, who: str, *, page: int = 1) -> str:
            """The docstring stays."""
            return who

    else:

        @world.keeper.guard("acme", member="who")
        async def call(token: AccessToken, who: str, *, page: int = 1) -> str:
            """The docstring stays."""
            return who

    assert list(inspect.signature(call).parameters) == ["who", "page"]
    assert set(call.__annotations__) == {"who", "page", "return"}
    assert call.__doc__ == "The docstring stays."
    world.connect()
    assert world.does(call("ann")) == "ann"
    assert world.does(call(who="ann", page=2)) == "ann"
    with pytest.raises(TypeError, match="who"):
        world.does(call())


def test_methods_and_member_callables(desk):
    """The token comes second after self; the member may be computed from the call."""
    world = desk()
    world.connect()

    class Api:
        if world.twin == "sync":

            @world.keeper.guard("acme", member=lambda self, user: user["id"])
            def me(self, token, user):
                return token.generation

        else:

            @world.keeper.guard("acme", member=lambda self, user: user["id"])
            async def me(self, token, user):
                return token.generation

    for _ in range(2):
        assert world.does(Api().me({"id": "ann"})) == 1


# --- diagnose ---


def test_diagnose_takes_what_there_is(desk):
    """A response, an Answer, or a triple; anything else is named."""
    world = desk()
    body = '{"status":401,"serviceErrorCode":65602,"code":"EXPIRED_ACCESS_TOKEN","message":"It has expired"}'
    assert world.keeper.diagnose("acme", (401, {}, body)).verdict == "expired"
    assert world.keeper.diagnose("acme", httpx2.Response(401, text=body)).verdict == "expired"
    with pytest.raises(InvalidInput):
        world.keeper.diagnose("acme", object())
