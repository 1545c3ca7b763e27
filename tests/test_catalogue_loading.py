"""The catalogue is read quickly, by a reader that agrees with tomllib, and a keeper loads no more of it than it uses."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenkeeper import providers
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.providers import toml

TEXTS = {name: (providers.CATALOGUE / f"{name}.toml").read_text(encoding="utf-8") for name in providers.names()}


def outcome(read: object, text: str) -> object:
    """What a reader makes of a text: its table with the order of its keys, or its complaint."""
    try:
        return repr(read(text))  # type: ignore[operator]
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("name", TEXTS)
def test_profiles_are_written_plainly(name: str) -> None:
    """The quick reader reads all of the catalogue, and sees in it what tomllib sees."""
    assert repr(toml._plain(TEXTS[name])) == repr(tomllib.loads(TEXTS[name]))


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ('a = "x"\nb = 5\nc = true\n', {"a": "x", "b": 5, "c": True}),
        ('a = "\\"x\\\\"', {"a": '"x\\'}),
        ("a = [\n    1,\n    { b = 2 },\n]\n", {"a": [1, {"b": 2}]}),
        ("a = [\n    1\n]", {"a": [1]}),
        ('a = { b = "= x", "c.d" = [1, -2], e-f = { from = 0, to = 9 } }',
         {"a": {"b": "= x", "c.d": [1, -2], "e-f": {"from": 0, "to": 9}}}),
        ("[a]\nb = 1\n[a-b.c]\nd = 1\n[[e]]\n[[e]]\nf = 1", {"a": {"b": 1}, "a-b": {"c": {"d": 1}}, "e": [{}, {"f": 1}]}),
        ("# a = 1\n\n", {}),
        ("a = []\nb = {}", {"a": [], "b": {}}),
    ],
)  # fmt: skip
def test_what_is_plain(text: str, table: object) -> None:
    """Keys and values on a line each, ordinary quotes, arrays on a line or with an item on each."""
    assert toml._plain(text) == tomllib.loads(text) == table


@pytest.mark.parametrize(
    "text",
    [
        "a = 1\na = 2", "[a]\n[a]", "a = 1\n[a]", "a = 1\n[a.b]", "a = {}\n[a.b]", "[a.b]\n[a]\nc = 1", "a = []\n[[a]]",
        "[[a]]\n[a]", "[[a]]\n[a.b]\nc = 1", "[a]\n[[a]]", "a = { b = 1, b = 2 }", "a = { b = 1, }", "a = [1,]", "a = [1 2]",
        "a = [\n1\n2\n]", "a = [\n1,,\n]", "a = [\n1,\n]]", "a = [", "a = [\n", "a = [\n]\n]", "a = null", "a = NaN",
        "a = Infinity", "a = 1.5", "a = 1e5", "a = 01", "a = 0", "a = -0", "a = +1", "a = 1_000", "a = 0x1F", "a = 1 # one",
        'a = "x" # one', 'a = "x', 'a = "x"y"', "a = 'x'", 'a = """x"""', 'a = "\\u0041"', 'a = "\\ud800"', 'a = "\\/"',
        'a = "\\x"', 'a = "\t"', 'a = "\x7f"', "# \x00", "a = 1\r\n", "a=1", " a = 1", "a  = 1", "a =  1", "a = ", "a = 1 ",
        '"a" = 1', '"a b" = 1', "a.b = 1", "ä = 1", "a-b = 1", "1 = 2", " = 1", "a", "[a", "[]", "[a.b.c]", "[[a.b]]",
        "a = 2026-11-22", "a = 2026-13-22", "a = 2026-11-22T10:00:00Z", "a = 10:00:00", "a = [2026-11-22]", "a = b = 1",
        "a = [b = 1]", "a = { = 1 }", 'a = { "b": 1 }', 'a = { "b" c = 1 }', "a = {\nb = 1 }", "a = {b=1}", "a = true1",
        "a = truefalse", "a = 1true", "a = [1, [2, [3]]]", "a = " + "[" * 5000, "a = " + "9" * 5000, "a = { true = 1 }",
        "a = { 1 = 2 }", 'a = ["x""y"]', 'a = "x" "y"', "\ufeffa = 1", "a = [\n    1,\n\n    2,\n]", "a = [\n# one\n1,\n]",
        "a = [\n{ b = 1,\nc = 2 },\n]", "[a]\nb = 1\n[c]\n[a.d]", "[a.b]\n[a.c]\n[a.b]", "a = 1\n[b]\na = 1\n[b.a]",
    ],
)  # fmt: skip
def test_what_is_not_plain_is_read_by_tomllib(text: str) -> None:
    """Whatever else TOML allows or forbids, the outcome is tomllib's."""
    assert outcome(toml.loads, text) == outcome(tomllib.loads, text)


PIECES = st.sampled_from(
    [*'\n\n\n"[]{}=,.#-\\\t', " = ", " ", "a", "b", "ab-c", "1", "0", "true", '"x"', "[[a]]\n", "[b]\n", "[a.b]\n", ", ",
     "a = ", "\na = [\n", "\n]\n", "2026-11-22", "\\u0041", '\\"', "é", "\x7f"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=14).map("".join))
def test_any_text_is_read_as_tomllib_reads_it(text: str) -> None:
    """Scraps of TOML in any order: the same table, or the same complaint."""
    assert outcome(toml.loads, text) == outcome(tomllib.loads, text)


@given(st.sampled_from(sorted(TEXTS)), st.data())
def test_a_profile_with_a_slip_is_read_as_tomllib_reads_it(name: str, data: st.DataObject) -> None:
    """A few characters of a real profile are lost or doubled: the same table, or the same complaint."""
    text = TEXTS[name][:4000]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 3, len(text))))
    slipped = text[:start] + data.draw(PIECES | st.just(text[start:end] * 2)) + text[end:]
    assert outcome(toml.loads, slipped) == outcome(tomllib.loads, slipped)


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
providers.read_sheet = lambda path: (opened.append(path.stem), read(path))[1]
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
