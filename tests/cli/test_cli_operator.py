"""``db``, ``keys list``, ``events list`` and ``doctor``: what an operator looks at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result
from cryptography.exceptions import UnsupportedAlgorithm

from tokenkeeper.cli import doctor
from tokenkeeper.cli.events import KINDS
from tokenkeeper.config import load
from tokenkeeper.crypto import generate_key
from tokenkeeper.errors import TokenKeeperError

if TYPE_CHECKING:
    from conftest import World

Run = Callable[..., Result]

DATABASE = 'database_url = "sqlite:///tokens.db"'
REDIRECT = 'redirect_uri = "http://127.0.0.1'
PLAIN = 'endpoint = "http://'
REGISTRATION = "[registrations.fake]"
PROVIDER = "[providers.fake]"


def objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a text, one a line."""
    return [json.loads(line) for line in text.splitlines()]


# --- db ---


def test_the_schema_is_created_and_shown(run: Run, world: World) -> None:
    """db upgrade needs neither keys nor client secrets, and a second time there is nothing to do."""
    bare = {"TOKENKEEPER_DATABASE_URL": "sqlite:///other.db", "TOKENKEEPER_CONFIG": "bare.toml"}
    (world.folder / "bare.toml").write_text("")
    before = json.loads(run("db", "current", "--json", **bare).stdout)
    assert (before["revision"], before["state"]) == (None, "missing")
    first = json.loads(run("db", "upgrade", "--json", **bare).stdout)
    assert (first["state"], first["revision"]) == ("current", first["head"])
    assert "(current)" in run("db", "upgrade", **bare).stdout
    assert "current" in run("db", "current", **bare).stdout


def test_a_schema_that_is_missing_names_the_command(run: Run, world: World) -> None:
    """Without tables, every command that needs them says to run db upgrade."""
    done = run("grants", "list", TOKENKEEPER_DATABASE_URL="sqlite:///empty.db")
    assert done.exit_code == 1
    assert "tokenkeeper db upgrade" in done.stderr


# --- keys ---


def test_keys_are_listed_with_what_they_seal(run: Run, world: World) -> None:
    """keys list says which key seals and how much each has sealed; a missing one that is needed is listed too."""
    world.connect("ann")
    (row,) = objects(run("keys", "list", "--json").stdout)
    assert row == {"id": "k1", "seals": True, "available": True, "sealed_values": 2}
    (world.folder / "keys").write_text(generate_key("k2"))
    rows = objects(run("keys", "list", "--json").stdout)
    assert rows == [
        {"id": "k2", "seals": True, "available": True, "sealed_values": 0},
        {"id": "k1", "seals": False, "available": False, "sealed_values": 2},
    ]
    assert run("keys", "list").stdout.splitlines()[1].split() == ["k2", "yes", "yes", "0"]


# --- events ---


def test_events_are_listed_newest_last(run: Run, world: World) -> None:
    """events list is in the order of time, filtered by kind, member and registration; --last takes the newest."""
    world.connect("ann", "bob")
    rows = objects(run("events", "list", "--json").stdout)
    assert [(row["kind"], row["member"]) for row in rows] == [("GrantConnected", "ann"), ("GrantConnected", "bob")]
    assert [row["member"] for row in objects(run("events", "list", "--json", "--last", "1").stdout)] == ["bob"]
    assert [row["member"] for row in objects(run("events", "list", "--json", "--member", "ann").stdout)] == ["ann"]
    assert objects(run("events", "list", "--json", "--kind", "TokensRenewed").stdout) == []
    assert len(objects(run("events", "list", "--json", "--registration", "fake").stdout)) == 2
    lines = run("events", "list").stdout.splitlines()
    assert lines[0].split() == ["at", "kind", "registration", "member", "cause"]
    assert len(lines) == 3
    assert run("events", "list", "--kind", "GrantForgotten").stderr == "no events\n"
    assert run("events", "list", "--last", "0").exit_code == 2


def test_events_are_filtered_by_what_there_is(run: Run, world: World) -> None:
    """A kind or registration that does not exist is an error, not an empty list."""
    done = run("events", "list", "--kind", "Foo")
    assert done.exit_code == 2
    assert "ReauthenticationNeeded" in done.stderr
    assert set(KINDS) == {
        "TokensRenewed",
        "GrantConnected",
        "ReauthenticationNeeded",
        "ConfigurationProblem",
        "ProviderTrouble",
        "GrantExpiring",
        "TamperingDetected",
        "GrantRevoked",
        "GrantForgotten",
    }
    for words in (["events", "list"], ["grants", "list"]):
        refused = run(*words, "--registration", "nope")
        assert refused.exit_code == 1
        assert "There is no registration 'nope'" in refused.stderr


def test_full_shows_the_incident_for_the_providers_support(run: Run, world: World) -> None:
    """A provider's failure leaves an incident; --full and --json show it, redacted."""
    world.connect("ann")
    world.provider.script("server_error", "token")
    assert run("grants", "refresh", "fake", "ann").exit_code == 1
    (row,) = objects(run("events", "list", "--json", "--kind", "ProviderTrouble").stdout)
    assert row["data"]["incident"]["status"] >= 500
    text = run("events", "list", "--full", "--kind", "ProviderTrouble").stdout
    assert '"incident": {' in text
    assert str(row["data"]["incident"]["status"]) in text


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_provider_that_quotes_the_token_is_not_quoted(run: Run, world: World, status: int) -> None:
    """Some providers put the token into their message: it is in no error, event or incident (the runner looks)."""
    world.connect("ann")
    said = {"error": "invalid_grant", "error_description": "Token canary-7d21-refresh-1 is bad"}
    world.provider.refuse_next("token", status=status, body=said, headers={"X-Echo": "canary-7d21-refresh-1"})
    assert run("grants", "refresh", "fake", "ann", "--json").exit_code == 1
    assert run("events", "list", "--full").exit_code == 0
    assert run("events", "list", "--json").stdout
    assert run("grants", "list", "--json").exit_code == 0
    assert run("doctor").stdout


# --- doctor ---


def checks(done: Result) -> dict[str, list[tuple[str, str, str]]]:
    """What doctor --json said: name → status, message and fix of each check of that name."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for check in json.loads(done.stdout)["checks"]:
        found.setdefault(check["name"], []).append((check["status"], check["message"], check["fix"]))
    assert all(len(each) == 1 for each in found.values()), "two checks have one name"
    return found


def test_doctor_tries_the_spill_folder(run: Run, world: World) -> None:
    """A folder that cannot be written is found before a renewal needs it."""
    settings = (world.folder / "tokenkeeper.toml").read_text()
    (world.folder / "file").write_text("no folder")
    for folder, status in (("spill", "ok"), ("file/below", "fail")):
        (world.folder / "tokenkeeper.toml").write_text(f'spill_directory = "{world.folder / folder}"\n{settings}')
        assert checks(run("doctor", "--json"))["spill_directory"][0][0] == status
    assert list((world.folder / "spill").iterdir()) == []


def test_doctor_finds_nothing_wrong(run: Run, world: World) -> None:
    """In a sound installation every line is ok, and the exit status is 0."""
    assert checks(run("doctor", "--json"))["sealed values"] == [("ok", "none yet", "")]
    world.connect("ann")
    done = run("doctor", "--json")
    found = checks(done)
    assert {status for each in found.values() for status, _, _ in each} == {"ok"}, found
    assert set(found) >= {"cipher", "settings", "database", "durability", "keys", "sealed values", "clock", "pauses"}
    assert json.loads(done.stdout)["ok"] is True
    assert done.exit_code == 0
    text = run("doctor")
    assert text.exit_code == 0
    assert text.stdout.splitlines()[0].startswith("ok   cipher: ")
    assert text.stdout.splitlines()[-1].endswith("0 failed, 0 with a warning")


def test_doctor_goes_on_after_a_failure(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing secret, a missing key and a missing schema are three findings of one run, each with its fix."""
    monkeypatch.delenv("FAKE_SECRET")
    (world.folder / "keys").unlink()
    done = run("doctor", "--json", TOKENKEEPER_DATABASE_URL="sqlite:///new.db")
    found = checks(done)
    assert done.exit_code == 1
    for name, fix in (
        ("registration fake", "set FAKE_SECRET"),
        ("keys", "put the secret into"),
        ("database", "db upgrade"),
    ):
        ((status, _, said),) = found[name]
        assert status == "fail", name
        assert fix in said
    assert not (world.folder / "new.db").exists()
    assert [found[name] for name in ("sealed values", "clock", "pauses")] == [[("skip", "needs the database", "")]] * 3
    assert "     -> " in run("doctor").stdout


@pytest.mark.parametrize(
    ("change", "name", "status", "message"),
    [
        (('client_secret = "env:FAKE_SECRET"', ""), "registration fake client_secret", "fail", "no client_secret"),
        (("redirect_uri = ", "# "), "registration fake redirect_uri", "warn", "no redirect_uri"),
        ((REDIRECT, 'redirect_uri = "http://app.example'), "registration fake redirect_uri", "warn", "is not https"),
        (('redirect_uri = "http://', 'redirect_uri = "'), "registration fake redirect_uri", "fail", "not absolute"),
        (("authorization_endpoint = ", "# "), "registration fake authorization_endpoint", "warn", "no authorization_endpoint"),
        (("token_endpoint = ", "# "), "registration fake token_endpoint", "fail", "no token_endpoint"),
        ((f"token_{PLAIN}127.0.0.1", f"token_{PLAIN}plain.example"), "registration fake", "fail", "token_endpoint"),
        ((PROVIDER, f"{PROVIDER}\nextends = 'no-such'"), "registration fake", "fail", "no provider 'no-such'"),
        ((REGISTRATION, f"patience = 'x'\n{REGISTRATION}"), "settings", "fail", "patience must be a number"),
        ((DATABASE, ""), "database", "fail", "no database is named"),
        ((DATABASE, 'database_url = "sqlite://"'), "database", "fail", "in memory"),
        ((DATABASE, 'database_url = "postgresql://127.0.0.1:1/x"'), "database", "fail", "cannot be reached"),
    ],
)  # fmt: skip
def test_doctor_names_what_is_wrong_in_the_settings(
    run: Run, world: World, change: tuple[str, str], name: str, status: str, message: str
) -> None:
    """Each mistake of an operator has its line, and never a traceback."""
    settings = world.folder / "tokenkeeper.toml"
    assert change[0] in settings.read_text()
    settings.write_text(settings.read_text().replace(*change))
    done = run("doctor", "--json")
    found = checks(done)
    assert any(status == each[0] and message in each[1] for each in found.get(name, [])), found
    assert done.exit_code == (status == "fail")


def test_doctor_warns_of_no_registrations(run: Run, world: World) -> None:
    """Settings without a registration can be used, but not for much."""
    (world.folder / "bare.toml").write_text("")
    variables = {"TOKENKEEPER_DATABASE_URL": "sqlite:///tokens.db", "TOKENKEEPER_KEYS": generate_key("k")}
    found = checks(run("doctor", "--json", "--config", "bare.toml", **variables))
    ((status, _, fix),) = found["registrations"]
    assert (status, fix) == ("warn", "add a table [registrations.NAME] to bare.toml")
    (world.folder / "tokenkeeper.toml").unlink()
    ((status, _, fix),) = checks(run("doctor", "--json", **variables))["registrations"]
    assert fix == "add a table [registrations.NAME] to tokenkeeper.toml, which `tokenkeeper init` writes"


def test_doctor_looks_at_files(run: Run, world: World) -> None:
    """A database or a key file that others may read is a warning."""
    (world.folder / "tokens.db").chmod(0o644)
    (world.folder / "keys").chmod(0o640)
    found = checks(run("doctor", "--json"))
    assert found["secrets in keys"] == [("warn", "others may read keys", "chmod 600 keys")]
    ((status, message, _),) = found["sqlite file"]
    assert status == "warn"
    assert "others may read" in message


def test_doctor_looks_at_the_settings_of_a_hosts_own_engine(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Engine that the host made may lose the last commit, or make readers wait: both are said."""
    (world.folder / "engine_app.py").write_text(
        "import sqlalchemy\n"
        "from tokenkeeper import TokenKeeper\n"
        "from tokenkeeper.config import load\n"
        "engine = sqlalchemy.create_engine('sqlite:///tokens.db')\n"
        "@sqlalchemy.event.listens_for(engine, 'connect')\n"
        "def prepare(connection, record):\n"
        "    connection.execute('PRAGMA journal_mode=DELETE')\n"
        "    connection.execute('PRAGMA synchronous=NORMAL')\n"
        "keeper = TokenKeeper(engine, keys=load().keyring(), registrations=[])\n"
    )
    monkeypatch.syspath_prepend(str(world.folder))
    found = checks(run("doctor", "--json", "--app", "engine_app:keeper"))
    (journal,), (synchronous,) = found["database journal_mode"], found["database synchronous"]
    assert [journal[0], synchronous[0]] == ["warn", "warn"]
    assert "journal_mode is delete" in journal[1]
    assert "synchronous is NORMAL" in synchronous[1]


def test_doctor_misses_a_key(run: Run, world: World) -> None:
    """Sealed values whose key is gone are a failure, before a member meets it."""
    world.connect("ann")
    (world.folder / "keys").write_text(generate_key("k2"))
    found = checks(run("doctor", "--json"))
    ((status, message, fix),) = found["sealed values 1"]
    assert (status, message) == ("fail", "2 sealed values need the key k1, which is not here")
    assert "add k1 back" in fix
    assert found["keys"][0][0] == "ok"


def test_doctor_finds_another_key_under_the_same_id(run: Run, world: World) -> None:
    """A key that was replaced by another of the same id opens nothing: said before a member meets it."""
    world.connect("ann")
    (world.folder / "keys").write_text(generate_key("k1"))
    done = run("doctor", "--json")
    ((status, message, fix),) = checks(done)["sealed values 1"]
    assert done.exit_code == 1
    assert (status, message) == ("fail", "another key stands under the id k1: 2 sealed values do not open with it")
    assert fix.startswith("put the original in its place")
    world.connect("bob")
    found = checks(run("doctor", "--json"))
    assert found["sealed values"] == [("ok", "4 in all; one of each of 1 keys was opened", "")]
    assert sum(name.startswith("sealed values ") for name in found) == 1, "those that the new key sealed do open"


def test_doctor_opens_a_value_that_was_changed(run: Run, world: World) -> None:
    """A sealed value that does not open with its own key names its row, and the way out."""
    world.connect("ann")
    with load().keeper() as keeper, keeper.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tokenkeeper_grant SET access_token = refresh_token")
    ((status, message, fix),) = checks(run("doctor", "--json"))["sealed values 1"]
    assert status == "fail"
    assert message.endswith("It is that of 'ann' at 'fake', access_token.")
    assert "restore the row" in fix


def test_doctor_without_keys_fails_the_keys_only(run: Run, world: World) -> None:
    """One missing key is one failure; what cannot be looked at without it is skipped, and says why."""
    world.connect("ann")
    (world.folder / "keys").unlink()
    done = run("doctor", "--json")
    found = checks(done)
    assert [name for name, ((status, _, _),) in found.items() if status == "fail"] == ["keys"]
    skipped = {name: message for name, ((status, message, _),) in found.items() if status == "skip"}
    assert skipped == dict.fromkeys(["sealed values", "clock", "pauses"], "needs the keys")
    assert run("doctor").stdout.endswith("1 failed, 0 with a warning, 3 skipped\n")


def test_doctor_shows_an_open_pause(run: Run, world: World) -> None:
    """A registration that is paused is a failure, with the reason."""
    world.connect("ann")
    world.provider.change_secret("another")
    assert run("grants", "refresh", "fake", "ann").exit_code == 1
    ((status, message, fix),) = checks(run("doctor", "--json"))["pause of fake"]
    assert status == "fail"
    assert message.startswith("fake is paused since 20")
    assert fix


def test_doctor_warns_of_a_clock(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that are far apart are a warning."""
    with load().keeper() as keeper:
        monkeypatch.setattr(type(keeper), "clock_offset", lambda self: -42.0)
    ((status, message, fix),) = checks(run("doctor", "--json"))["clock"]
    assert status == "warn"
    assert message.startswith("-42.0 seconds")
    assert "NTP" in fix


def test_doctor_knows_a_build_without_the_cipher(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cryptography without AES-GCM-SIV is said, and how to get one."""

    class Missing:
        @staticmethod
        def generate_key(bits: int) -> bytes:
            raise UnsupportedAlgorithm("no")

    monkeypatch.setattr(doctor, "AESGCMSIV", Missing)
    ((status, _, fix),) = checks(run("doctor", "--json"))["cipher"]
    assert status == "fail"
    assert "wheel" in fix


@pytest.mark.parametrize(("state", "status"), [("newer", "warn"), ("outdated", "fail"), ("incompatible", "fail")])
def test_doctor_compares_the_schema(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, state: str, status: str
) -> None:
    """Newer but compatible is a warning; what does not fit is a failure with the command or the deploy to make."""

    class State:
        revision, head = 7, 8

    State.state = state  # type: ignore[attr-defined]
    with load().keeper() as keeper:
        monkeypatch.setattr(type(keeper), "schema_state", lambda self: State)
    assert checks(run("doctor", "--json"))["database"][0][0] == status


def test_a_check_that_breaks_is_one_line() -> None:
    """An unforeseen error in a check is that check's failure, without its text, which may hold a URL's password."""

    def broken() -> Iterator[doctor.Check]:
        yield doctor.Check("x", "ok", "so far")
        raise OSError("canary")

    def refused() -> Iterator[doctor.Check]:
        raise TokenKeeperError("as it says")
        yield

    assert [check.message for check in doctor._guarded("x", broken)] == ["so far", "failed with OSError"]
    assert [check.message for check in doctor._guarded("x", refused)] == ["as it says"]


def test_doctor_looks_at_the_apps_own_keeper(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """--app names the keeper to look at: also an async one, through its sync twin."""
    (world.folder / "doctored_app.py").write_text(
        "from tokenkeeper import AsyncTokenKeeper, Keyring, Registration\n"
        "from tokenkeeper.config import load\n"
        "settings = load()\n"
        "keeper = settings.keeper()\n"
        "twin = AsyncTokenKeeper('sqlite:///tokens.db', keys=settings.keyring(), registrations=[])\n"
    )
    monkeypatch.syspath_prepend(str(world.folder))
    for name in ("keeper", "twin"):
        found = checks(run("doctor", "--json", "--app", f"doctored_app:{name}"))
        assert found["settings"] == [("ok", f"the keeper of doctored_app:{name}", "")]
        assert found["database"][0][0] == "ok"
