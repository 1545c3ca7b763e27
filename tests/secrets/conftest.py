"""A stage for each situation: its leaks are looked for in every medium."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lookout import Lookout
from stage import Stage

from tokenkeeper import Keyring, TokenKeeper
from tokenkeeper.core import authorization


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A code is exchanged quickly, or not at all."""
    monkeypatch.setattr(authorization, "CODE_EXCHANGE_DEADLINE", 3.0)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the schema and nothing in it, to copy."""
    path = tmp_path_factory.mktemp("template") / "tokens.db"
    with TokenKeeper(f"sqlite:///{path}", keys=Keyring([("k1", bytes(range(32)))]), registrations=[]) as keeper:
        keeper.create_schema()
    return path


@pytest.fixture(params=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> str:
    """Which keeper."""
    return str(request.param)


@pytest.fixture
def stage(
    twin: str,
    tmp_path: Path,
    template: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Stage]]:
    """Set up a stage; every logger is heard, and every state and verifier that is made is a canary."""
    lookout = Lookout()
    random_text = secrets.token_urlsafe

    def planted(size: int) -> str:
        text = random_text(size)
        lookout.plant("a state" if size == authorization.STATE_BYTES else "a verifier", text)
        return text

    monkeypatch.setattr(secrets, "token_urlsafe", planted)
    stages: list[Stage] = []

    def set_up(**knobs: Any) -> Stage:
        stages.append(Stage(twin, tmp_path, template, lookout, capfd.readouterr, **knobs))
        return stages[-1]

    with lookout.listening():
        yield set_up
        for one in stages:
            one.close()
