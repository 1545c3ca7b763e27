"""Starts the authorization servers that nobody here wrote, talks to their controls, and says why one is missing."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import selectors
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import httpx2

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
OIDC_PROVIDER = HERE / "oidc-provider"
TOOLKIT = HERE / "django-oauth-toolkit"
START_SECONDS = 60.0
NODE = 20
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that speak to loopback only: to load the trust store takes a tenth of a second each time."""


@cache
def missing(server: str) -> str | None:
    """Why a server cannot be run here, or None if it can."""
    if server == "django-oauth-toolkit":
        absent = [name for name in ("django", "oauth2_provider") if importlib.util.find_spec(name) is None]
        return f"{' and '.join(absent)} not installed" if absent else None
    node = shutil.which("node")
    if node is None:
        return "there is no node"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    if not version.startswith("v") or int(version[1:].partition(".")[0]) < NODE:
        return f"node is {version or 'broken'}, and {NODE} is the oldest that oidc-provider runs on"
    if not (OIDC_PROVIDER / "node_modules/oidc-provider/package.json").is_file():
        return "its packages are not installed (npm ci in tests/interop/oidc-provider)"
    return None


class Server:
    """A running authorization server: where it is, what its own log says, and its controls."""

    def __init__(self, base: str, process: subprocess.Popen[str], clients: Mapping[str, Mapping[str, Any]]) -> None:
        self.base = base
        self.clients = clients
        self._process = process
        self._mark = 0
        self._http = httpx2.Client(verify=PLAIN, base_url=base, timeout=30)

    def mark(self) -> None:
        """From now on :meth:`log` has only what comes after this."""
        self._mark = 0
        self._mark = len(self.log())

    def log(self, grant_type: str | None = None) -> list[dict[str, Any]]:
        """What came to the token endpoint and its relatives since the mark; of one grant type, or all."""
        entries = self._http.get("/control/log").raise_for_status().json()[self._mark :]
        return [entry for entry in entries if grant_type is None or entry.get("grantType") == grant_type]

    def set(self, **settings: float) -> None:
        """Change the server's settings (seconds)."""
        self._http.post("/control/settings", json=settings).raise_for_status()

    def account(self, sub: str, action: str) -> None:
        """Create or delete an account, or withdraw what it permitted."""
        self._http.post(f"/control/accounts/{sub}/{action}").raise_for_status()

    def stop(self) -> None:
        """End it: its stdin ends, and if that does not help, it does."""
        self._http.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def running(server: str, clients: Mapping[str, Mapping[str, Any]], **settings: Any) -> Iterator[Server]:
    """Start a server, wait for its ready line, and end it afterwards."""
    command = {
        "oidc-provider": ["node", str(OIDC_PROVIDER / "server.mjs")],
        "django-oauth-toolkit": [sys.executable, str(TOOLKIT / "server.py")],
    }[server]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "COVERAGE"))}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=environment,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"clients": list(clients.values()), **settings}) + "\n")
        process.stdin.flush()
        started = None
        try:
            started = Server(_ready(process, Path(errors.name))["base"], process, clients)
            yield started
        finally:
            if started is not None:
                started.stop()
            else:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _ready(process: subprocess.Popen[str], errors: Path) -> dict[str, Any]:
    """The first line of a server's stdout."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(START_SECONDS) else ""
    if not line.startswith("{"):
        raise RuntimeError(f"{process.args!r} did not start: {line}{errors.read_text()[-3000:]}")
    ready: dict[str, Any] = json.loads(line)
    return ready


def poll(question: Callable[[], T], seconds: float = 20.0) -> T:
    """Ask until the answer is true; the answer. Fails after *seconds*."""
    ends = time.monotonic() + seconds
    while not (answer := question()):
        if time.monotonic() > ends:
            raise AssertionError(f"still not true after {seconds} s")
        time.sleep(0.02)
    return answer


def digest(token: str | None) -> str:
    """How a token appears in a server's log."""
    assert token is not None
    return hashlib.sha256(token.encode()).hexdigest()
