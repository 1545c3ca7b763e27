"""What the tests of the command share: a runner in an empty folder, and a fake provider with settings for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tokenkeeper.cli.app import cli
from tokenkeeper.config import load
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider

CANARY = "canary-7d21"
"""Stands before every token and code of the fake provider, and in the client secret: no output may hold it."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TOKENKEEPER_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Callable[..., Result]:
    """Run the command with words, in the empty folder; ``stdin`` is its standard input."""

    def command(*words: str, stdin: str | bytes | None = None, **variables: str) -> Result:
        done = CliRunner().invoke(cli, [*words], input=stdin, env=variables, prog_name="tokenkeeper")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert CANARY not in done.output
        return done

    return command


@dataclass(frozen=True)
class World:
    """A fake provider over HTTP, and settings in the current folder that name it; the schema is there."""

    provider: FakeProvider
    base_url: str
    redirect_uri: str
    folder: Path

    def connect(self, *members: str, registration: str = "fake") -> None:
        """Save a grant of each member, as a callback would have."""
        with load().keeper() as keeper:
            for member in members:
                keeper.save_tokens(registration, member, self.provider.issue(member=member))


@pytest.fixture
def world(folder: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Settings, a key, a database and a provider: what an operator has after the first steps."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        redirect_uri = f"http://127.0.0.1:{probe.getsockname()[1]}/callback"
    provider = FakeProvider(prefix=f"{CANARY}-", client_secret=f"{CANARY}-secret", redirect_uris=[redirect_uri])
    monkeypatch.setenv("FAKE_SECRET", f"{CANARY}-secret")
    (folder / "keys").touch(mode=0o600)
    (folder / "keys").write_text(generate_key("k1"))
    with provider.serve() as base_url:
        (folder / "tokenkeeper.toml").write_text(f"""
            database_url = "sqlite:///tokens.db"
            keys = "file:keys"
            [registrations.fake]
            client_id = "client-1"
            client_secret = "env:FAKE_SECRET"
            redirect_uri = "{redirect_uri}"
            scopes = ["read"]
            [providers.fake]
            authorization_endpoint = "{base_url}/authorize"
            token_endpoint = "{base_url}/token"
            revocation_endpoint = "{base_url}/revoke"
        """)
        assert run("db", "upgrade").exit_code == 0
        yield World(provider, base_url, redirect_uri, folder)
