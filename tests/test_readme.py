"""The README's examples run as they stand there; only the network and the host's own functions are stand-ins."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest
import requests

import tokenkeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider, TestClock

README = Path(__file__).resolve().parent.parent / "README.md"
EMPTY = b'{"message":"Empty oauth2_access_token","serviceErrorCode":401,"status":401}'
TOKENS = {"access_token": "access-1", "expires_in": 3600}


def example(word: str) -> str:
    """The one Python block of the README that holds a word."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if word in block]
    return str(found)


def run(word: str) -> dict[str, Any]:
    """Run an example and return its names."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(example(word), f"README.md: {word}", "exec", dont_inherit=True), names)
    return names


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An empty folder, a fresh key in the environment, and a module ``app`` for the host's own names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENKEEPER_KEYS", generate_key("2026-11"))
    app = ModuleType("app")
    monkeypatch.setitem(sys.modules, "app", app)
    yield app
    if hasattr(app, "keeper"):
        app.keeper.close()


def answering(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes) -> list[str | None]:
    """Let requests.get answer so; return the headers that the calls carry."""
    seen = []

    def get(url: str, auth: Any, timeout: float) -> requests.Response:
        request = auth(requests.Request("GET", url).prepare())
        seen.append(request.headers.get("Authorization"))
        response = requests.Response()
        response.status_code, response._content, response.request, response.url = status, body, request, url
        return response

    monkeypatch.setattr(requests, "get", get)
    return seen


def test_the_sync_quickstart(host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guarded function of the quickstart carries the member's token and returns the library's own response."""
    names = run("= TokenKeeper(")
    host.keeper = names["keeper"]
    seen = answering(monkeypatch, 200, b"{}")
    with pytest.raises(tokenkeeper.NotConnected):
        names["profile"](member="ann")
    host.keeper.save_tokens("linkedin", "ann", TOKENS)
    assert names["profile"](member="ann").status_code == 200
    assert seen == ["Bearer access-1"]


def test_the_async_quickstart() -> None:
    """The async quickstart works after ``await keeper.create_schema()``, as the text below it says."""
    names = run("= AsyncTokenKeeper(")
    seen = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["authorization"])
        return httpx2.Response(200, json={})

    async def main() -> None:
        keeper = names["keeper"]
        await keeper.create_schema()
        await keeper.save_tokens("linkedin", "ann", TOKENS)
        await names["client"].aclose()
        names["client"] = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
        response = await names["profile"](member="ann")
        await names["client"].aclose()
        await keeper.close()
        assert response.status_code == 200

    asyncio.run(main())
    assert seen == ["Bearer access-1"]


def test_the_events(host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The callbacks of the README are told whose turn it is: here the operator's, by a 401 that no member caused."""
    names = run("= TokenKeeper(")
    host.keeper = names["keeper"]
    paged: list[str] = []
    mailed: list[tuple[str, str]] = []
    host.page_somebody = paged.append
    host.send_mail = lambda member, text: mailed.append((member, text))
    run("keeper.on(")
    host.keeper.save_tokens("linkedin", "ann", TOKENS)
    answering(monkeypatch, 401, EMPTY)
    with pytest.raises(tokenkeeper.ConfigurationError) as caught:
        names["profile"](member="ann")
    assert paged == [f"linkedin: empty. {caught.value.fix}"]
    assert mailed == []


def test_the_clients(host: ModuleType) -> None:
    """The session with the middleware can be made, and the modules that the README names have what it says."""
    host.keeper = tokenkeeper.AsyncTokenKeeper("sqlite:///tokens.db", registrations=[])
    names = run("keeper_middleware(")

    async def main() -> None:
        async with names["session"]("ann"):
            pass

    asyncio.run(main())
    del host.keeper
    from tokenkeeper.clients import httpx, requests

    assert httpx.KeeperAuth.__doc__
    assert requests.KeeperAuth.__doc__


def test_the_fake_provider() -> None:
    """The example for users' own tests issues tokens."""
    assert run("FakeProvider")["tokens"]["refresh_token"]


PROVIDER = "https://provider.test"
HOST = "https://host.test"


def test_the_fastapi_application(host: ModuleType) -> None:
    """The FastAPI block connects, serves, asks again after a revocation, and refuses those who declined or forged."""
    clock = TestClock()
    provider = FakeProvider("linkedin", clock=clock)
    registration = provider.registration("linkedin", PROVIDER, redirect_uri=f"{HOST}/oauth/linkedin/callback")
    keeper = tokenkeeper.AsyncTokenKeeper("sqlite:///tokens.db", registrations=[registration])
    clock.install(keeper, provider.transport())
    outside = httpx2.AsyncClient(transport=provider.async_transport())

    @keeper.guard("linkedin")
    async def profile(token: tokenkeeper.AccessToken, member: str) -> httpx2.Response:
        return await outside.get(f"{PROVIDER}/v2/userinfo", auth=token)

    vars(host).update({"profile": profile, "signed_in_member": lambda: "ann", "keeper": keeper})
    served = run("= FastAPI()")["app"]
    del host.keeper  # closed below

    async def main() -> None:
        await keeper.create_schema()
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(served), base_url=HOST) as browser:

            async def consents(path: str, **answer: bool) -> httpx2.Response:
                """Go where the host sends the member, answer there, and come back."""
                sent = await browser.get(path)
                assert sent.is_redirect
                return await browser.get(provider.consent(sent.headers["location"], **answer))

            async def asked() -> str:
                """Where the host sends a member who must connect (again)."""
                prompt = await browser.get("/me")
                assert prompt.status_code == 303
                return str(prompt.headers["location"])

            assert await asked() == "/connect/linkedin?return_to=/me"
            declined = await consents(await asked(), approve=False)
            assert (declined.status_code, declined.text[:14]) == (400, "Not connected:")
            forged = await browser.get("/oauth/linkedin/callback?code=code-1&state=forged")
            assert forged.status_code == 400
            assert await asked() == "/connect/linkedin?return_to=/me"

            assert (await consents(await asked())).headers["location"] == "/me"
            assert (await browser.get("/me")).status_code == 200
            provider.revoke()
            assert (await consents(await asked())).headers["location"] == "/me"
            assert (await browser.get("/me")).json()["sub"]
        await outside.aclose()
        await keeper.close()

    asyncio.run(main())
