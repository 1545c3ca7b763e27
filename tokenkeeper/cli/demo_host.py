"""The demo's application: a small backend whose members have connected LinkedIn, and the stand-in that it calls.

Real sockets on loopback, a SQLite file and a fresh key in a temporary folder; nothing is left behind.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tokenkeeper.crypto import Keyring, generate_key
from tokenkeeper.events import Event, ReauthenticationNeeded
from tokenkeeper.keeper import AsyncTokenKeeper, TokenKeeper
from tokenkeeper.model import AccessToken, Registration
from tokenkeeper.testing import FakeProvider

REGISTRATION = "linkedin"
PATH = "/v2/userinfo"
SCOPE = "profile"
"""What the stand-in wants at that path."""

CONNECTIONS = 100
OPEN_FILES = 1024
"""Client and server live in this process: two descriptors a connection."""

PATIENT = httpx2.Timeout(30.0)
"""A slow machine with 500 calls in the queue is not what the demo is about (seconds)."""


class Host:
    """A web backend in small: one keeper, one more for the worker beside it, one guarded function."""

    def __init__(self, provider: FakeProvider, base_url: str, folder: Path, stack: ExitStack) -> None:
        self.provider = provider
        self.answers: list[httpx2.Response] = []
        """What came back from LinkedIn, refusals included."""
        self.news: list[Event] = []
        self.asked: list[ReauthenticationNeeded] = []
        """Whose turn it is, as the host's callback heard it."""
        self.proxy: Callable[[httpx2.Request], None] | None = None
        """What stands between us and LinkedIn, and may spoil a request."""
        self._base_url = base_url
        self._settings: dict[str, Any] = {
            "database": f"sqlite:///{folder / 'tokens.db'}",
            "keys": Keyring.parse(generate_key("demo")),
            "registrations": [self._registration()],
        }
        self.keeper = stack.enter_context(TokenKeeper(**self._settings))
        self.worker = stack.enter_context(TokenKeeper(**self._settings))
        self.keeper.create_schema()
        self.keeper.on(Event, self.news.append)
        self.keeper.on(ReauthenticationNeeded, self.asked.append)
        client = stack.enter_context(httpx2.Client(event_hooks={"request": [self._pass_proxy]}, **self._client()))

        @self.keeper.guard(REGISTRATION)
        def profile(token: AccessToken, member: str) -> httpx2.Response:  # noqa: ARG001 - guard reads it
            answer = client.get(PATH, auth=token)
            self.answers.append(answer)
            return answer

        self.profile = profile

    def _registration(self) -> Registration:
        return self.provider.registration(REGISTRATION, self._base_url, scopes=["openid", SCOPE])

    def _client(self) -> dict[str, Any]:
        # An empty TLS context: nothing here leaves loopback, and loading the certificates takes its time.
        return {
            "base_url": self._base_url,
            "trust_env": False,
            "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            "timeout": PATIENT,
            "limits": httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        }

    def _pass_proxy(self, request: httpx2.Request) -> None:
        if self.proxy is not None:
            self.proxy(request)

    def connect(self, member: str, *, known_expired: bool = False, **issue: Any) -> str:
        """Let the member grant access, as a callback would; *issue* are the stand-in's. Returns the access token.

        With *known_expired* the token is past its time, there and by the keeper's clock.
        """
        tokens = self.provider.issue(member, **issue)
        if known_expired:
            self.provider.expire(member)
            tokens["expires_at"] = self.provider.clock() - 1
        self.keeper.save_tokens(REGISTRATION, member, tokens)
        return str(tokens["access_token"])

    def call_in_tasks(self, member: str, count: int) -> list[httpx2.Response | BaseException]:
        """Make *count* calls at the same moment in tasks, by the async twin over the same database."""
        return asyncio.run(self._call_in_tasks(member, count))

    async def _call_in_tasks(self, member: str, count: int) -> list[httpx2.Response | BaseException]:
        barrier = asyncio.Barrier(count)
        async with AsyncTokenKeeper(**self._settings) as keeper, httpx2.AsyncClient(**self._client()) as client:

            @keeper.guard(REGISTRATION)
            async def profile(token: AccessToken, member: str) -> httpx2.Response:  # noqa: ARG001 - guard reads it
                answer = await client.get(PATH, auth=token)
                self.answers.append(answer)
                return answer

            async def one() -> httpx2.Response:
                await barrier.wait()
                return await profile(member=member)

            return await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)


def stand_in(**knobs: Any) -> FakeProvider:
    """A stand-in for LinkedIn; *knobs* are its arguments."""
    defaults: dict[str, Any] = {"required_scopes": {PATH: SCOPE}, "id_tokens": True}
    return FakeProvider("linkedin", **(defaults | knobs))


@contextmanager
def open_host(provider: FakeProvider | None = None) -> Iterator[Host]:
    """Start the stand-in and the backend in a temporary folder; everything ends with the context."""
    _allow_open_files()
    provider = provider or stand_in()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenkeeper-demo-")))
        base_url = stack.enter_context(provider.serve())
        yield Host(provider, base_url, folder, stack)


def _allow_open_files() -> None:
    """Raise the soft limit of open files where it is too low (macOS begins with 256)."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
