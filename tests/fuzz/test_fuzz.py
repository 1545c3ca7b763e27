"""A short run of the fuzzer (``make fuzz`` is the long one), and whether it would notice."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_judge
import fuzz_run
import pytest
from fuzz_inputs import CANARY, Input, Maker, read_input
from fuzz_judge import Found, Judge

from tokenkeeper.core.diagnosis import diagnose
from tokenkeeper.errors import ConfigurationError


def test_hostile_inputs_do_no_harm(tmp_path: Path) -> None:
    """No exception, no hang, no growth, nothing that is not printable; the same inputs in each run."""
    outcome = fuzz_run.fuzz(2026, range(4_000), tmp_path, warm_up=1_500)
    assert outcome.found == []
    assert outcome.inputs == 4_000


@pytest.mark.parametrize(
    "given",
    [
        Input("generic", "api", 401, (("www-authenticate", 'Bearer a="' + '"' * 16_000),), b""),
        Input("generic", "api", 401, (("www-authenticate", "(/" * 8_000),), b""),
        Input("generic", "api", 401, (("www-authenticate", 'a="' + "\\" * 16_000 + '"' * 300),), b""),
        Input("generic", "token", 200, (), b"[" + b'{"":0},' * 149_000 + b"0]"),
        Input("generic", "token", 200, (), b'{"a":[' + b'{"":0},' * 37_000 + b"0]}"),
        Input("slack", "token", 200, (), b'{"authed_user":' * 40_000),
        Input("meta", "api", 400, (), b'{"error":{"message":"' + b"token " * 10_000 + b'expired"}}'),
        Input("generic", "api", 500, (("x-y", "token: " + "a" * 30_000),), b'{"' + b"a_" * 30_000 + b'":"b"}'),
    ],
    ids=[
        "quotes",
        "nothing that fits",
        "backslashes",
        "1 MiB of objects",
        "256 KiB of objects",
        "depth",
        "words",
        "names",
    ],
)
def test_the_worst_that_was_found_or_thought_of(given: Input) -> None:
    """What once took long or much, or might."""
    judge = Judge()
    judge.answer(given, thorough=True)
    assert judge.peak < 16


def test_an_input_is_its_number() -> None:
    """The same number makes the same input, and it can be written down and read again."""
    maker = Maker()
    for number in range(200):
        made = maker.make(random.Random(number))
        assert maker.make(random.Random(number)) == made
        assert read_input(made.written()) == made


def replaced(**changes: Any) -> Callable[..., Any]:
    """A diagnose whose answer has something else in it."""
    return lambda *args, **kwargs: dataclasses.replace(diagnose(*args, **kwargs), **changes)


def busy(seconds: float) -> Callable[..., Any]:
    """A diagnose that is slow; not because it waits."""

    def slow(*args: Any, **kwargs: Any) -> Any:
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass
        return diagnose(*args, **kwargs)

    return slow


def raises(*args: Any, **kwargs: Any) -> Any:
    """A diagnose that raises."""
    raise RecursionError("too deep")


KEPT: list[bytes] = []


def keeps(*args: Any, **kwargs: Any) -> Any:
    """A diagnose that keeps memory."""
    KEPT.append(bytes([len(KEPT) % 256]) * 2**20)
    return diagnose(*args, **kwargs)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (raises, "RecursionError: too deep"),
        (replaced(message="a\x1b[31mb"), "not printable"),
        (replaced(fix="line\nforged"), "not printable"),
        (replaced(error_code="\u202ecba"), "not printable"),
        (replaced(scopes=("ok", "\ud800")), "not printable"),
        (replaced(claims="\x00"), "not printable"),
        (replaced(acr_values=f"a {CANARY}"), "the token that was sent"),
        (replaced(retry_after=float("nan")), "retry_after is nan"),
        (replaced(message="long " * 1000), "a message of 5000 characters"),
        (busy(0.1), " ms for "),
        (busy(10), "hangs: more than 1 s"),
        (keeps, "memory grew by "),
    ],
)
def test_the_fuzzer_notices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: Callable[..., Any], said: str
) -> None:
    """A classifier that raises, hangs, grows or shows what it should not is found, and found again from the file."""
    monkeypatch.setattr(fuzz_judge, "diagnose", broken)
    monkeypatch.setattr(fuzz_run, "HANG_SECONDS", 1.0)
    outcome = fuzz_run.fuzz(1, range(1, 49 if broken is keeps else 2), tmp_path, warm_up=1)
    KEPT.clear()
    assert said in outcome.found[0]
    if broken is not keeps:
        with pytest.raises((Found, RecursionError)):
            fuzz_run.again(tmp_path / "fuzz-found-1-1.json")


def test_a_complaint_about_a_profile_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ConfigurationError that quotes a control character is found, too."""

    def complains(*args: object) -> None:
        raise ConfigurationError("acme.toml: unknown key \x1b", cause="provider_profile", fix="x")

    monkeypatch.setattr(fuzz_judge, "parse_sheet", complains)
    with pytest.raises(Found, match="not printable"):
        Judge().sheet("acme", b"")
