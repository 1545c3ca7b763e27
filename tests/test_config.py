"""Settings: what the file may say, what the environment outranks, and what is refused with a fix."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import pytest

import tokenkeeper
from tokenkeeper.config import Reference, Settings, keeper_from_app, load
from tokenkeeper.crypto import generate_key
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Provider

CANARY = "canary-5f1e0c"

FULL = """
database_url = "sqlite:///tokens.db"
keys = "env:MY_KEYS"
spill_directory = "spill"
leeway = 30
patience = 2.5
cache_seconds = 1
cache_size = 7
audit = true

[registrations.linkedin]
client_id = "id"
client_secret = ["env:NEW_SECRET", "file:old.secret"]
redirect_uri = "http://127.0.0.1:8400/callback"
scopes = "openid profile"

[registrations.shop]
provider = "corp"
client_id = "env:SHOP_ID"
scopes = ["a", "b"]
parameters = { tenant = "t1" }
authorization_parameters = { access_type = "offline" }
token_parameters = { audience = "api", subject_token = "env:SUBJECT" }
private_key = "file:key.pem"
key_id = "k1"
signing_algorithm = "ES256"

[registrations.own]
provider = "profiles/own.toml"
client_id = "id"

[providers.corp]
extends = "linkedin"
token_endpoint = "https://corp.example/token"
rotation = "grace"
grace_seconds = 30

[providers.filed]
extends = "profiles/own.toml"
"""


A = "[registrations.a]\nclient_id = 'x'\n"
"""The beginning of a registration's table."""


def write(folder: Path, text: str) -> Path:
    """Write settings into a folder."""
    file = folder / "tokenkeeper.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_setting_is_read(tmp_path: Path) -> None:
    """What the file says arrives, with paths beside the file and secrets as references."""
    (tmp_path / "old.secret").write_text("old-one\n")
    (tmp_path / "key.pem").write_text("-----BEGIN-----\nabc\n-----END-----\n")
    environ = {"NEW_SECRET": "new-one", "SHOP_ID": "shop-id", "SUBJECT": "subject"}
    settings = load(write(tmp_path, FULL), environ)
    assert settings.database().reveal() == "sqlite:///tokens.db"
    assert settings.options == {
        "spill_directory": tmp_path / "spill", "leeway": 30.0, "patience": 2.5, "cache_seconds": 1.0, "cache_size": 7,
        "audit": True,
    }  # fmt: skip
    linkedin, shop, own = (one.registration(settings.environ) for one in settings.registrations.values())
    assert [secret.reveal() for secret in linkedin.client_secret] == ["new-one", "old-one"]
    assert linkedin.provider == "linkedin"
    assert linkedin.scopes == ("openid", "profile")
    assert shop.client_id == "shop-id"
    assert shop.provider == Provider(
        "corp", extends="linkedin", token_endpoint="https://corp.example/token", rotation="grace", grace_seconds=30.0
    )
    assert shop.token_parameters == {"audience": "api", "subject_token": "subject"}
    assert shop.private_key is not None
    assert shop.private_key.reveal() == "-----BEGIN-----\nabc\n-----END-----"
    assert (shop.key_id, shop.signing_algorithm) == ("k1", "ES256")
    assert own.provider == tmp_path / "profiles/own.toml"
    assert {str(place) for place in settings.registrations["shop"].references} == {
        "env:SHOP_ID", "env:SUBJECT", f"file:{tmp_path / 'key.pem'}",
    }  # fmt: skip


def test_an_extended_profile_of_the_hosts_own_lies_beside_the_file(tmp_path: Path) -> None:
    """A provider that extends a .toml finds it beside the settings."""
    text = FULL.replace('provider = "corp"', 'provider = "filed"')
    (tmp_path / "key.pem").write_text("key")
    settings = load(write(tmp_path, text), {"SHOP_ID": "x", "SUBJECT": "x"})
    provider = settings.registrations["shop"].provider
    assert isinstance(provider, Provider)
    assert provider.extends == tmp_path / "profiles/own.toml"


def test_the_environment_outranks_the_file(tmp_path: Path) -> None:
    """TOKENKEEPER_DATABASE_URL and TOKENKEEPER_KEYS win; TOKENKEEPER_CONFIG names the file."""
    file = write(tmp_path, FULL)
    environ = {
        "TOKENKEEPER_CONFIG": str(file),
        "TOKENKEEPER_DATABASE_URL": f"postgresql://u:{CANARY}@h/d",
        "TOKENKEEPER_KEYS": generate_key("k9"),
        "MY_KEYS": generate_key("k1"),
    }
    settings = load(None, environ)
    assert settings.path == file
    assert settings.database().reveal() == f"postgresql://u:{CANARY}@h/d"
    keyring = settings.keyring()
    assert keyring is not None
    assert keyring.key_ids == ("k9",)
    assert CANARY not in repr(settings)


def test_an_argument_outranks_the_environment(tmp_path: Path) -> None:
    """load(path) is not led elsewhere by TOKENKEEPER_CONFIG."""
    file = write(tmp_path, FULL)
    assert load(file, {"TOKENKEEPER_CONFIG": "elsewhere.toml"}).path == file


def test_no_file_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file there are settings without registrations, and the database is asked for when it is needed."""
    monkeypatch.chdir(tmp_path)
    settings = load(environ={})
    assert settings == Settings(environ=settings.environ)
    assert settings.keyring() is None
    with pytest.raises(ConfigurationError, match="no database is named") as caught:
        settings.database()
    assert "tokenkeeper init" in caught.value.fix


def test_the_file_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./tokenkeeper.toml is the default."""
    write(tmp_path, 'database_url = "sqlite:///here.db"')
    monkeypatch.chdir(tmp_path)
    assert load(environ={}).database().reveal() == "sqlite:///here.db"


def test_keys_may_stand_in_several_places_and_lines(tmp_path: Path) -> None:
    """A list of references, and a file with a key a line, make one keyring; the first key seals."""
    (tmp_path / "keys").write_text(f"{generate_key('b')}\n\n{generate_key('c')}\n")
    settings = load(write(tmp_path, 'keys = ["env:A", "file:keys"]'), {"A": generate_key("a")})
    keyring = settings.keyring()
    assert keyring is not None
    assert keyring.key_ids == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("databse_url = 'x'", "databse_url is not a setting", "did you mean database_url?"),
        ("zzz = 1", "zzz is not a setting", "database_url, keys"),
        (f"{A}scope = 'x'", "registrations.a.scope is not a setting", "scopes"),
        ("[providers.a]\ntoken_url = 'x'", "providers.a.token_url is not a setting", "token_endpoint"),
        ("[registrations.a]\nclient_secret = 'env:X'", "registrations.a has no client_id", "add client_id"),
        (f"{A}client_secret = '{CANARY}'", "registrations.a.client_secret is a secret in plain", "env:A_CLIENT_SECRET"),
        (f"{A}client_secret = ['env:X', '{CANARY}']", "plain text", "file:PATH"),
        (f"{A}private_key = '{CANARY}'", "registrations.a.private_key is a secret in plain text", "env:A_PRIVATE_KEY"),
        (f"{A}token_parameters = {{ password = '{CANARY}' }}", "token_parameters.password is a secret", "env:"),
        (f"keys = 'k:{CANARY}'", "keys is a secret in plain text", "env:KEYS"),
        (f"database_url = 'postgresql://u:{CANARY}@h/d'", "database_url holds a password", "TOKENKEEPER_DATABASE_URL"),
        (f"database_url = 'mysql://h/d?password={CANARY}'", "database_url holds a password", "env:DATABASE_URL"),
        ("database_url = 'postgresql://[h/d'", "database_url must be a database URL", "change database_url"),
        ("database_url = ''", "database_url must be a text", "change database_url"),
        ("patience = 'long'", "patience must be a number", "change patience"),
        ("patience = -1", "patience must be a number", "change patience"),
        ("patience = true", "patience must be a number", "change patience"),
        ("patience = inf", "patience must be a number", "change patience"),
        ("cache_size = 1.5", "cache_size must be a whole number", "change cache_size"),
        ("audit = 1", "audit must be true or false", "change audit"),
        ("spill_directory = 1", "spill_directory must be a text", "change spill_directory"),
        ("registrations = 1", "registrations must be a table", "change registrations"),
        ("[registrations]\na = 1", "registrations.a must be a table", "change registrations.a"),
        (f"{A}scopes = [1]", "registrations.a.scopes must be a list of texts", "change"),
        (f"{A}parameters = {{ t = 1 }}", "registrations.a.parameters.t must be a text", "change"),
        ("x = = 1", "is not TOML", "correct"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_its_fix(tmp_path: Path, text: str, message: str, fix: str) -> None:
    """A wrong setting is refused, naming file, key and fix, and quoting no value; nor do the frames hold it."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load(file, {})
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert fix in caught.value.fix
    ours = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours.stack[:] = [frame for frame in ours.stack if frame.filename != __file__]
    assert CANARY not in "".join(ours.format())


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    """A file that is named must be there, be a file, and be UTF-8."""
    with pytest.raises(ConfigurationError, match=r"there is no .*nowhere\.toml"):
        load(tmp_path / "nowhere.toml", {})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path, {})
    (tmp_path / "latin.toml").write_bytes(b'database_url = "\xff"')
    with pytest.raises(ConfigurationError, match="it is not UTF-8"):
        load(tmp_path / "latin.toml", {})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Reference("env", "NOT_SET", "x.toml: keys"), "x.toml: keys: the environment variable NOT_SET is not set"),
        (Reference("env", "EMPTY", "x.toml: keys"), "EMPTY is not set"),
        (Reference("file", "no/such/file", "x.toml: keys"), "no/such/file cannot be read: No such file"),
    ],
)
def test_a_secret_that_is_not_there_is_named(reference: Reference, message: str) -> None:
    """A reference that leads nowhere names its place and what it wanted."""
    with pytest.raises(ConfigurationError, match=message):
        reference.read({"EMPTY": ""})


def test_an_empty_or_binary_secret_file_is_refused(tmp_path: Path) -> None:
    """A file with nothing, or nothing readable, in it is no secret."""
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is empty"):
        Reference("file", str(tmp_path / "empty"), "x").read({})
    with pytest.raises(ConfigurationError, match="it is not UTF-8"):
        Reference("file", str(tmp_path / "binary"), "x").read({})


def test_an_unusable_registration_names_its_table(tmp_path: Path) -> None:
    """What Registration itself refuses is the operator's, with the table's name."""
    text = f"[registrations.{'a' * 300}]\nclient_id = 'x'\ntoken_parameters = {{ x = 'env:X' }}"
    settings = load(write(tmp_path, text), {"X": CANARY})
    with pytest.raises(ConfigurationError, match="255 are the most") as caught:
        settings.registrations["a" * 300].registration(settings.environ)
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert CANARY not in "".join(frames.format())


def test_the_environment_is_not_shown_by_settings() -> None:
    """The environment holds secrets of others: no repr of ours prints it."""
    settings = load(environ={"SOMEBODYS_SECRET": CANARY})
    assert CANARY not in repr(settings) + repr(settings.environ)
    assert dict(settings.environ) == {"SOMEBODYS_SECRET": CANARY}
    assert len(settings.environ) == 1


@pytest.mark.parametrize("name", ["module", ":keeper", "module:", ""])
def test_app_needs_module_and_attribute(name: str) -> None:
    """--app without both parts says how it is written."""
    with pytest.raises(ConfigurationError, match="names no keeper") as caught:
        keeper_from_app(name)
    assert "module:attribute" in caught.value.fix


@pytest.mark.parametrize(
    ("code", "attribute", "message"),
    [
        ("import no_such_module_of_ours", "keeper", "failed with ModuleNotFoundError: No module named"),
        (f"raise RuntimeError('{CANARY}')", "keeper", "failed with RuntimeError"),
        ("import os; os.environ['NOT_SET_HERE']", "keeper", "failed with KeyError: 'NOT_SET_HERE'"),
        ("keeper = 1", "keeeper", "there is no 'keeeper'"),
        ("keeper = 1", "keeper", "is a int, not a TokenKeeper"),
        ("from tokenkeeper.errors import InvalidInput\nraise InvalidInput('as it says')", "keeper", "^as it says$"),
    ],
)  # fmt: skip
def test_an_app_that_is_no_keeper_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, attribute: str, message: str
) -> None:
    """What is wrong with --app is said, without the text of errors that may hold a value."""
    (tmp_path / "app_under_test.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "app_under_test", raising=False)
    with pytest.raises(ConfigurationError, match=message) as caught:
        keeper_from_app(f"app_under_test:{attribute}")
    assert CANARY not in str(caught.value)


def test_the_async_twin_comes_from_the_same_settings(tmp_path: Path) -> None:
    """async_keeper() gives what keeper() gives, for async code; overrides and offline work alike."""
    text = """
        database_url = "sqlite:///tokens.db"
        keys = "env:KEYS"
        patience = 3
        [registrations.linkedin]
        client_id = "x"
        client_secret = "env:SECRET"
    """
    settings = load(write(tmp_path, text), {"KEYS": generate_key("k1"), "SECRET": CANARY})
    keeper = settings.async_keeper()
    assert isinstance(keeper, tokenkeeper.AsyncTokenKeeper)
    assert list(keeper.registrations) == ["linkedin"]
    assert keeper.keyring.key_ids == ("k1",)
    assert keeper.registrations["linkedin"].client_secret[0].reveal() == CANARY
    assert settings.async_keeper(registrations=[]).registrations == {}
    bare = load(write(tmp_path, text), {"KEYS": generate_key("k1")})
    assert list(bare.async_keeper(offline=True).registrations) == ["linkedin"]
    with pytest.raises(ConfigurationError, match="SECRET is not set"):
        bare.async_keeper()
