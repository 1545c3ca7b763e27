"""What a profile may say, and that a keeper loads no more of the catalogue than it uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tokenkeeper import providers
from tokenkeeper.errors import ConfigurationError


@pytest.mark.parametrize("seconds", ["1" + "0" * 400, "inf", "nan", "-1", "0", "true", "'x'"])
def test_a_lifetime_is_a_number_of_seconds(seconds: str, tmp_path: Path) -> None:
    """Also one that no float can hold is refused (found by fuzzing: it was an OverflowError)."""
    path = tmp_path / "acme.toml"
    path.write_text(f"[lifetimes]\naccess_token = {seconds}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"acme\.toml:1: lifetimes\.access_token is "):
        providers.load_profile(path)


def test_a_complaint_can_be_printed(tmp_path: Path) -> None:
    """What a file says is escaped where it is quoted (found by fuzzing: the name of a rule was not)."""
    path = tmp_path / "acme.toml"
    path.write_text('[[rule]]\nname = "\\u001b[31m\\u2029"\nmessage = "m"\nfix = "f"\nsource = "s"\nverdict = "none"\n')
    with pytest.raises(ConfigurationError) as caught:
        providers.load_profile(path)
    assert r"rule \x1b[31m\u2029: verdict is 'none', which is none of" in str(caught.value)
    assert str(caught.value).isprintable()


KEEPER = """
import sys
from tokenkeeper import NotConnected, Provider, Registration, TokenKeeper
from tokenkeeper.crypto import Keyring, generate_key
from tokenkeeper.providers import loader
import tokenkeeper.providers as providers

opened = []
read = providers.read_sheet
providers.read_sheet = lambda path, **how: (opened.append(path.stem), read(path, **how))[1]
registrations = [
    Registration("linkedin", client_id="c"),
    Registration("li-2", provider="linkedin", client_id="d"),
    Registration("code", provider="github", client_id="e"),
    Registration("stand-in", provider=Provider("fake", extends="github", token_endpoint="http://127.0.0.1/t"), client_id="f"),
]
keeper = TokenKeeper(f"sqlite:///{sys.argv[1]}", keys=Keyring.parse(generate_key("2026-11")), registrations=registrations)
keeper.create_schema()
try:
    keeper.access_token("code", "ann")
except NotConnected:
    pass
keeper.close()
print(*sorted(opened))
"""


def test_a_keeper_loads_only_the_profiles_it_uses(tmp_path: Path) -> None:
    """Those that its registrations name, each once, and the generic rules."""
    command = [sys.executable, "-c", KEEPER, str(tmp_path / "tokens.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["generic", "github", "linkedin"]


def test_importing_loads_no_profile() -> None:
    """A host that imports the package has read no file of the catalogue."""
    code = (
        "import tokenkeeper, tokenkeeper.providers as p\n"
        "print(p._catalogued.cache_info().currsize, p._generic.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0", "0"]
