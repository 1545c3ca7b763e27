"""The demo: run as a newcomer does, and with providers that do not behave, so that its promises can be broken."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenkeeper.cli import demo
from tokenkeeper.cli.demo_host import PATH, SCOPE, Host, open_host, stand_in
from tokenkeeper.cli.demo_scenarios import SCENARIOS
from tokenkeeper.cli.demo_stage import Result, Scenario, perform
from tokenkeeper.testing import FakeProvider

KEYS = ["name", "status", "verdict", "turn", "outcome", "api_calls", "token_requests"]
PROMISED = [
    ("expired_renewed", 401, "expired", "us", "renewed", 2, 1),
    ("expired_without_refresh_token", 401, "expired", "member", "prompted", 1, 0),
    ("invalid_adopted", 401, "invalid", "us", "adopted", 2, 0),
    ("invalid_renewed", 401, "invalid", "us", "renewed", 2, 1),
    ("revoked_reconnected", 401, "revoked", "member", "reconnected", 3, 1),
    ("empty", 401, "empty", "operator", "configuration_error", 1, 0),
    ("bad_scheme", 401, "bad_scheme", "operator", "configuration_error", 1, 0),
    ("scope_403", 403, "insufficient_scope", "member", "prompted", 1, 0),
    ("quota_429", 429, "rate_limited", "nobody", "passed_through", 1, 0),
    ("fault_500", 500, "provider_fault", "nobody", "passed_through", 1, 0),
    ("timeout_504", 504, "provider_fault", "nobody", "passed_through", 1, 0),
    ("stampede_50_threads", 401, "expired", "us", "renewed", 100, 1),
    ("stampede_500_tasks", None, None, None, "renewed", 500, 1),
]
TOKEN = re.compile(r"\b(access|refresh|code)-\d|secret-1")


def scenario(name: str) -> Scenario:
    """A scenario by name."""
    (found,) = [one for one in SCENARIOS if one.name == name]
    return found


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the demo play only some scenarios."""
    return lambda *names: monkeypatch.setattr(demo, "SCENARIOS", [scenario(name) for name in names])


def test_the_demo_as_a_newcomer_runs_it(tmp_path: Path) -> None:
    """All scenarios are as promised, in order, with few open files allowed; nothing else is said or left behind."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOKENKEEPER_")}
    command = f"ulimit -S -n 256 && exec {shlex.quote(sys.executable)} -W error -m tokenkeeper demo --json"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=tmp_path,
        env=clean | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {
        "ok": True,
        "scenarios": [dict(zip(KEYS, promised, strict=True)) for promised in PROMISED],
    }
    assert not TOKEN.search(done.stdout)
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".coverage")] == []


def test_what_a_person_reads(run: Callable[..., Any], only: Callable[..., None]) -> None:
    """Each scenario says what LinkedIn said, whose turn it was and what happened; a closing line says that all is well."""
    only("expired_renewed", "empty", "stampede_50_threads", "stampede_500_tasks")
    done = run("demo", COLUMNS="300")
    assert done.exit_code == 0
    text = done.output
    assert '401 {"status": 401, "serviceErrorCode": 65602, "code": "EXPIRED_ACCESS_TOKEN"' in text
    assert '"message": "Empty oauth2 access token"' in text
    assert re.findall(r"whose turn +(.*?) *\n", text) == ["tokenkeeper's", "the operator's", "tokenkeeper's", "-"]
    assert re.findall(r"outcome +(.*?) *\n", text) == ["renewed", "configuration error", "renewed", "renewed"]
    assert "API calls 500, token requests 1" in text
    assert "200 to every call: nothing was refused" in text
    assert re.search(r"^4 of 4 scenarios as promised, in \d+\.\d s\.$", text, re.MULTILINE)
    assert not TOKEN.search(text)
    assert "\x1b" not in text


def test_a_terminal_shows_colours(run: Callable[..., Any], only: Callable[..., None]) -> None:
    """Where colours are wanted, whose turn it is has one."""
    only("empty")
    done = run("demo", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="")
    assert "\x1b[1;31mthe operator's\x1b[0m" in done.output


def test_a_broken_promise_is_shown(only: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """With a provider that words its refusals otherwise, the demo names what it had promised, and exits with 1."""
    only("expired_renewed", "quota_429")
    assert demo.run(json=True, provider=stand_in(opaque=True)) == 1
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["ok"] is False
    assert [(one["name"], one["verdict"]) for one in said["scenarios"]] == [
        ("expired_renewed", "invalid"),
        ("quota_429", "rate_limited"),
    ]
    assert json.loads(err) == {
        "scenario": "expired_renewed",
        "wrong": ["broken promise: verdict is expired, not invalid"],
    }
    assert demo.run(json=False, provider=stand_in(opaque=True)) == 1
    out, err = capsys.readouterr()
    assert "broken promise: verdict is expired, not invalid" in out
    assert "1 of 2 scenarios as promised" in out
    assert err == ""


def test_a_crash_is_told_without_a_stack_trace(
    only: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scenario that cannot be played is named with the type of its error; the others are played, and the exit is 1."""
    only("expired_renewed", "quota_429")
    provider = stand_in()

    def expire(which: str) -> None:
        raise RuntimeError("what this says may hold anything")

    monkeypatch.setattr(provider, "expire", expire)
    assert demo.run(json=True, provider=provider) == 1
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["scenarios"][0] == dict.fromkeys(KEYS) | {
        "name": "expired_renewed",
        "api_calls": 0,
        "token_requests": 0,
    }
    assert said["scenarios"][1]["outcome"] == "passed_through"
    assert json.loads(err) == {"scenario": "expired_renewed", "wrong": ["crashed: RuntimeError"]}
    assert demo.run(json=False, provider=provider) == 1
    out, err = capsys.readouterr()
    assert "crashed: RuntimeError" in out
    assert "Traceback" not in out + err
    assert "may hold anything" not in out + err


def _wrong_words(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """Every weather turns into a revocation."""
    script = host.provider.script
    monkeypatch.setattr(host.provider, "script", lambda name, **more: script("revoked", times=2, **more))


def _no_ids(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """The answers lack the headers that support asks for."""
    monkeypatch.setattr(host.provider._dialect, "headers", lambda number: ())


def _nobody_listens(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """The host's callbacks are never run."""
    monkeypatch.setattr(host.keeper._room.news, "tell", lambda events: None)


def _no_renewals(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """The token endpoint is down."""
    host.provider.script("gateway_timeout", surface="token", times=1000)


def _two_requests(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """The first client secret is no longer good: the renewal takes a second request."""
    host.provider.change_secret("two")


def _everything_granted(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """The member grants all, whatever is asked."""
    issue = host.provider.issue
    monkeypatch.setattr(host.provider, "issue", lambda member, **more: issue(member))


def _always_empty(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """The header is dropped for ever."""
    host.provider.script("empty", times=1000)


def _stranger(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """Somebody else's profile comes back."""
    host.provider.refuse_next(status=200, body={"sub": "somebody else"}, times=1000)


@pytest.mark.parametrize(
    ("name", "misbehave", "promise"),
    [
        ("quota_429", _wrong_words, "the member is not asked to sign in"),
        ("timeout_504", _wrong_words, "the grant is not touched"),
        ("fault_500", _no_ids, "the incident record has what LinkedIn's support asks for"),
        ("fault_500", _nobody_listens, "the host hears of the trouble once"),
        ("empty", _nobody_listens, "the host hears of it once"),
        ("expired_renewed", _nobody_listens, "the host hears of one renewal"),
        ("expired_renewed", _no_renewals, "outcome is renewed, not TemporarilyUnavailable"),
        ("expired_without_refresh_token", _nobody_listens, "the callback hears of it once: expired"),
        ("expired_without_refresh_token", _everything_granted, "outcome is prompted, not renewed"),
        ("stampede_50_threads", _no_renewals, "all 50 calls get the member's profile, not 0"),
        ("stampede_50_threads", _two_requests, "token requests is 1, not 2"),
        ("scope_403", _everything_granted, "the row has a prompt: insufficient_scope"),
        ("bad_scheme", _always_empty, "with that mended the same token works"),
        ("revoked_reconnected", _stranger, "outcome is reconnected, not passed_through"),
    ],
)
def test_each_promise_can_be_broken(
    name: str, misbehave: Callable[[pytest.MonkeyPatch, Host], None], promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every check of the scenarios sees what it is there for."""
    assert promise in _played(name, misbehave, monkeypatch).broken


def _played(
    name: str, misbehave: Callable[[pytest.MonkeyPatch, Host], None], monkeypatch: pytest.MonkeyPatch
) -> Result:
    monkeypatch.setattr("tokenkeeper.core.recovery.REPLICA_LAG", 0.0)
    with open_host(stand_in(client_secret=["one", "two"])) as host:
        misbehave(monkeypatch, host)
        return perform(scenario(name), host)


def test_a_provider_may_be_injected() -> None:
    """The stand-in is LinkedIn as far as anybody can tell, and takes the fake provider's knobs."""
    provider = stand_in(id_tokens=False)
    assert isinstance(provider, FakeProvider)
    assert provider.flavor == "linkedin"
    with open_host(provider) as host:
        host.connect("ann")
        assert host.profile(member="ann").json()["sub"] == "ann"
        assert provider.requests[-1].path == PATH
        assert SCOPE in host.keeper.grant("linkedin", "ann").scopes
