"""``init`` and ``keys generate``: a newcomer's first two commands; and how the command starts at all."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import Result

import tokenkeeper.cli
from tokenkeeper.cli import app, main
from tokenkeeper.config import load
from tokenkeeper.crypto import Keyring

Run = Callable[..., Result]


def test_init_writes_settings_that_load(run: Run, folder: Path) -> None:
    """The file that init writes can be used as it is, once its secret is there; it names the next steps."""
    done = run("init", "--key")
    assert done.exit_code == 0
    assert "tokenkeeper db upgrade" in done.output
    settings = load(environ={"LINKEDIN_CLIENT_ID": "i", "LINKEDIN_CLIENT_SECRET": "s"})
    registration = settings.registrations["linkedin"].registration(settings.environ)
    assert registration.scopes == ("openid", "profile")
    assert registration.client_secret[0].reveal() == "s"
    keyring = settings.keyring()
    assert keyring is not None
    assert (folder / "tokenkeeper.keys").read_text().split(":")[1].strip() not in done.output
    assert stat.S_IMODE((folder / "tokenkeeper.keys").stat().st_mode) == 0o600


def test_init_for_another_provider_and_file(run: Run, folder: Path) -> None:
    """--provider and --output name another registration and file; without --key, the key is a next step."""
    (folder / "my corp.toml").write_text('title = "Mine"\nsource = "us"\n')
    done = run("init", "--provider", "my corp.toml", "--output", "other.toml", "--json")
    result = json.loads(done.stdout)
    assert result["file"] == "other.toml"
    assert result["key_file"] is None
    assert result["next"][0] == "tokenkeeper keys generate --output tokenkeeper.keys"
    assert not (folder / "tokenkeeper.keys").exists()
    assert load("other.toml", {}).registrations["my-corp"].provider == Path("my corp.toml")
    (_, place) = load("other.toml", {}).registrations["my-corp"].references
    assert place.target == "MY_CORP_CLIENT_SECRET"


def test_init_leaves_an_existing_file_alone(run: Run, folder: Path) -> None:
    """init never overwrites."""
    (folder / "tokenkeeper.toml").write_text("# mine")
    done = run("init")
    assert done.exit_code == 1
    assert "File exists" in done.stderr
    assert (folder / "tokenkeeper.toml").read_text() == "# mine"


def test_init_refuses_a_provider_that_is_no_name(run: Run) -> None:
    """A provider's name becomes a table's name: what would break the file is wrong usage."""
    assert run("init", "--provider", 'x"]').exit_code == 2


@pytest.mark.parametrize(
    ("name", "said"), [("linkedn", "Did you mean linkedin"), ("./gone.toml", "gone.toml: cannot be read")]
)
def test_init_refuses_a_provider_that_is_not_known(run: Run, folder: Path, name: str, said: str) -> None:
    """Settings with a slip in the provider's name would fail at the first command: nothing is written."""
    done = run("init", "--provider", name)
    assert done.exit_code == 1
    assert said in done.stderr
    assert not list(folder.iterdir())


def test_keys_without_an_id_are_told_apart(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default id has the day and two random characters: two keys of a day do not get one id."""
    ids = {json.loads(run("keys", "generate", "--json").stdout)["id"] for _ in range(20)}
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\d-[a-z]\d", each) for each in ids)
    assert len(ids) > 1
    drawn = iter("a1a1b2")
    monkeypatch.setattr("tokenkeeper.cli.keys.secrets.choice", lambda letters: next(drawn))
    first, second = (run("keys", "generate", "--output", "keys", "--json").stdout for _ in range(2))
    assert json.loads(first)["id"].endswith("-a1")
    assert json.loads(second)["id"].endswith("-b2"), "an id that the file holds is drawn anew"


def test_a_key_is_printed_for_the_environment(run: Run) -> None:
    """keys generate prints one entry of TOKENKEEPER_KEYS, and nothing else on stdout."""
    done = run("keys", "generate", "2026-11")
    assert done.exit_code == 0
    assert Keyring.parse(done.stdout.strip()).key_ids == ("2026-11",)
    assert "Keep it secret" in done.stderr
    data = json.loads(run("keys", "generate", "--json").stdout)
    assert Keyring.parse(data["entry"]).key_ids == (data["id"],)
    assert data["entry"] == f"{data['id']}:{data['key']}"


def test_keys_are_appended_to_a_file(run: Run, folder: Path) -> None:
    """With --output the key is in the file only; a second one opens, the first goes on sealing."""
    (folder / "keys").write_text("")
    first = run("keys", "generate", "a", "--output", "keys")
    second = run("keys", "generate", "b", "--output", "keys", "--json")
    assert "seals and opens" in first.stdout
    assert json.loads(second.stdout) == {"id": "b", "file": "keys", "seals": False}
    keyring = Keyring.parse(",".join((folder / "keys").read_text().split()))
    assert keyring.key_ids == ("a", "b")
    for line in (folder / "keys").read_text().split():
        assert line.split(":")[1] not in first.output + second.output


def test_a_key_id_is_used_once(run: Run, folder: Path) -> None:
    """Two keys of one id would be a trap: the second is refused, and the file is as it was."""
    run("keys", "generate", "a", "--output", "keys")
    before = (folder / "keys").read_text()
    done = run("keys", "generate", "a", "--output", "keys")
    assert done.exit_code == 1
    assert "holds a key a already" in done.stderr
    assert (folder / "keys").read_text() == before


@pytest.mark.parametrize("words", [["keys", "generate", "ä"], ["keys", "generate", "--output", "no/such/folder"]])
def test_a_key_that_cannot_be_made_is_refused(run: Run, words: list[str]) -> None:
    """A bad id and a file that cannot be written are errors with a fix."""
    done = run(*words)
    assert done.exit_code == 1
    assert "do:" in done.stderr


@pytest.mark.parametrize(
    "words", [["nonsense"], ["grants", "show", "only-one"], ["explain", "--surface", "moon"], ["--app"]]
)
def test_wrong_usage_is_2(run: Run, words: list[str]) -> None:
    """Wrong usage exits with 2, and says how it is used."""
    done = run(*words)
    assert done.exit_code == 2
    assert "Usage:" in done.stderr or "Error:" in done.stderr


def test_app_and_config_exclude_one_another(run: Run) -> None:
    """A keeper of --app is set up already."""
    done = run("db", "current", "--app", "x:y", "--config", "z")
    assert done.exit_code == 2
    assert "--config would have no effect" in done.stderr


def test_common_options_may_stand_anywhere(run: Run) -> None:
    """--json and --config count before and behind the command's name."""
    for words in (
        ["--json", "--config", "none.toml", "db", "current"],
        ["db", "current", "--config", "none.toml", "--json"],
    ):
        done = run(*words)
        assert done.exit_code == 1
        assert json.loads(done.stderr)["error"]["message"] == "there is no none.toml"


@pytest.mark.parametrize("code", [0, 1])
def test_demo_is_run_with_its_exit_status(run: Run, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """demo hands --json on, and exits as the demo says."""
    asked: list[bool] = []

    def demonstrate(json: bool) -> int:
        asked.append(json)
        return code

    module = ModuleType("tokenkeeper.cli.demo")
    monkeypatch.setattr(module, "run", demonstrate, raising=False)
    monkeypatch.setitem(sys.modules, "tokenkeeper.cli.demo", module)
    assert run("demo", "--json").exit_code == code
    assert run("demo").exit_code == code
    assert asked == [True, False]


def test_without_the_extra_its_name_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the extra, one line says what to install; exit 2."""
    monkeypatch.delitem(sys.modules, "tokenkeeper.cli.app")
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "pip install 'tokenkeeper[cli]'" in capsys.readouterr().err


def test_another_missing_module_is_not_blamed_on_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing beside the extra stays the error that it is."""
    monkeypatch.delitem(sys.modules, "tokenkeeper.cli.app")
    monkeypatch.setitem(sys.modules, "tokenkeeper.cli.curl", None)
    monkeypatch.delattr(tokenkeeper.cli, "curl")
    monkeypatch.delitem(sys.modules, "tokenkeeper.cli.explain")
    monkeypatch.delattr(tokenkeeper.cli, "explain")
    with pytest.raises(ImportError, match="curl"):
        main()


def test_a_checkout_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """--version works where nothing is installed."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(app, "version", version)
    assert "not installed" in app._version()


def test_the_module_is_the_command(folder: Path) -> None:
    """``python -m tokenkeeper`` runs, from any folder, and an error ends without a traceback."""
    package = Path(sys.modules["tokenkeeper"].__file__ or "").parent.parent
    environ = {**os.environ, "PYTHONPATH": str(package), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "tokenkeeper"]
    version = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, timeout=60, env=environ, check=True
    )
    assert version.stdout.startswith("tokenkeeper, version ")
    done = subprocess.run(
        [*command, "grants", "list"], capture_output=True, text=True, timeout=60, env=environ, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "tokenkeeper init" in done.stderr
    assert "Traceback" not in done.stderr
