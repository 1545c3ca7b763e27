"""``connect``: a member's browser goes through sign-in and consent, and comes back to this machine, once."""

from __future__ import annotations

import json
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from click.testing import Result

from tokenkeeper.cli import connect
from tokenkeeper.config import load

if TYPE_CHECKING:
    from conftest import World

Run = Callable[..., Result]


@dataclass
class Browser:
    """A member's browser: it is opened with the URL, and goes its way in a thread of its own."""

    walk: Callable[[str], list[httpx2.Response]]
    opened: list[str] = field(default_factory=list)
    pages: list[httpx2.Response] = field(default_factory=list)
    _thread: threading.Thread | None = None

    def open(self, url: str) -> bool:
        """What ``webbrowser.open`` does."""
        self.opened.append(url)
        self._thread = threading.Thread(target=lambda: self.pages.extend(self.walk(url)))
        self._thread.start()
        return True

    def join(self) -> None:
        """Wait for the last page."""
        assert self._thread is not None
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], list[httpx2.Response]]], Browser]:
    """Take the place of this machine's browser."""

    def put(walk: Callable[[str], list[httpx2.Response]]) -> Browser:
        new = Browser(walk)
        monkeypatch.setattr(webbrowser, "open", new.open)
        return new

    return put


Put = Callable[[Callable[[str], list[httpx2.Response]]], Browser]


def get(url: str, **options: object) -> httpx2.Response:
    """Fetch a page."""
    return httpx2.get(url, timeout=10, trust_env=False, **options)  # type: ignore[arg-type]


def test_a_member_is_connected(run: Run, world: World, browser: Put) -> None:
    """The URL is shown and opened, the callback is received, the grant is saved, and the browser shows how it went."""
    member = browser(lambda url: [get(world.provider.follow(url, member="ann"))])
    done = run("connect", "fake", "ann")
    member.join()
    assert done.exit_code == 0, done.output
    assert member.opened[0] in done.stdout
    assert "connected: ann at fake, scopes: read" in done.stdout
    (page,) = member.pages
    assert (page.status_code, "Connected" in page.text) == (200, True)
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert json.loads(run("grants", "show", "fake", "ann", "--json").stdout)["status"] == "active"


def test_a_provider_with_a_tenant(run: Run, world: World, browser: Put) -> None:
    """A profile's parameter, its default and what it wants along: from the URL to the renewal, all at one's own tenant."""
    (world.folder / "acme.toml").write_text(f"""
        title = "Acme"
        authorization_endpoint = "{world.base_url}/{{tenant}}/oauth2/{{version}}/authorize"
        token_endpoint = "{world.base_url}/{{tenant}}/oauth2/{{version}}/token"
        client_authentication = "client_secret_post"
        [parameters.tenant]
        about = "The directory's name."
        [parameters.version]
        about = "The API's version."
        default = "v2.0"
        [authorization_parameters]
        access_type = "offline"
    """)
    settings = (world.folder / "tokenkeeper.toml").read_text()
    missing = (
        settings
        + f"""
            [registrations.acme]
            provider = "{world.folder / "acme.toml"}"
            client_id = "client-1"
            client_secret = "env:FAKE_SECRET"
            redirect_uri = "{world.redirect_uri}"
            scopes = ["read"]
        """
    )
    (world.folder / "tokenkeeper.toml").write_text(missing)
    refused = run("connect", "acme", "ann")
    assert (refused.exit_code, "tenant" in refused.stderr, "The directory's name." in refused.stderr) == (1, True, True)
    (world.folder / "tokenkeeper.toml").write_text(f'{missing}    parameters = {{ tenant = "contoso.example" }}\n')
    member = browser(lambda url: [get(world.provider.follow(url, member="ann"))])
    done = run("connect", "acme", "ann")
    member.join()
    assert done.exit_code == 0, done.output
    asked = urlsplit(member.opened[0])
    assert asked.path == "/contoso.example/oauth2/v2.0/authorize"
    assert parse_qs(asked.query)["access_type"] == ["offline"]
    with load().keeper() as keeper:
        assert keeper.renew("acme", "ann").generation == 2
    asked_tokens = [request.path for request in world.provider.requests if request.path.endswith("/token")]
    assert asked_tokens == ["/contoso.example/oauth2/v2.0/token"] * 2


def test_json_has_the_url_first_and_the_grant_last(run: Run, world: World, browser: Put) -> None:
    """With --json a program can open the URL itself; --scope asks for more."""
    member = browser(lambda url: [get(world.provider.follow(url, member="ann"))])
    done = run("connect", "fake", "ann", "--json", "--scope", "write")
    member.join()
    first, last = map(json.loads, done.stdout.splitlines())
    assert first["url"] == member.opened[0]
    assert set(last["connected"]["scopes"]) == {"read", "write"}


def test_a_refusal_is_shown_on_both_sides(run: Run, world: World, browser: Put) -> None:
    """A member who says no is not connected: exit 1, and the page says so; code and state are printed nowhere."""
    member = browser(lambda url: [get(world.provider.follow(url, member="ann", approve=False))])
    done = run("connect", "fake", "ann", "--json")
    member.join()
    assert done.exit_code == 1
    assert json.loads(done.stderr)["error"]["turn"] == "member"
    (page,) = member.pages
    assert (page.status_code, "Not connected" in page.text) == (400, True)
    assert "access_denied" in page.text
    assert "begin_authorization" not in page.text
    (state,) = parse_qs(urlsplit(member.opened[0]).query)["state"]
    assert done.output.count(state) == 1
    assert state not in page.text


def test_only_the_callback_counts_and_only_once(run: Run, world: World, browser: Put) -> None:
    """Other paths are not the callback; a second callback is turned away; a foreign state connects nobody."""
    origin = world.redirect_uri.removesuffix("/callback")
    held = world.provider.hold("token")

    def walk(url: str) -> list[httpx2.Response]:
        first = [get(f"{origin}/favicon.ico"), get(f"{origin}/callback"), get(f"{origin}/callbacks?code=x&state=y")]
        callback = world.provider.follow(url, member="ann")
        pages: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: pages.append(get(callback)))
        thread.start()
        held.wait_until_held()
        second = get(f"{callback}&again=1")
        held.release()
        thread.join(10)
        return [*first, second, *pages]

    member = browser(walk)
    done = run("connect", "fake", "ann")
    member.join()
    assert done.exit_code == 0, done.output
    assert [page.status_code for page in member.pages] == [404, 404, 404, 409, 200]


def test_a_foreign_state_connects_nobody(run: Run, world: World, browser: Put) -> None:
    """A callback that somebody else made up ends the attempt, and its text is escaped on the page."""
    member = browser(lambda url: [get(f"{world.redirect_uri}?code=canary-7d21&state=canary-7d21")])
    done = run("connect", "fake", "ann")
    member.join()
    assert done.exit_code == 1
    assert member.pages[0].status_code == 400
    assert world.provider.token_requests == 0


def test_a_member_who_does_not_come(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit nothing has changed, and the address is free again; --no-browser opens nothing."""

    def never(url: str) -> bool:
        raise AssertionError(url)

    monkeypatch.setattr(webbrowser, "open", never)
    done = run("connect", "fake", "ann", "--no-browser", "--timeout", "1")
    assert done.exit_code == 1
    assert "nobody came back" in done.stderr
    assert "do:    run it again and open the URL in time (--timeout)" in done.stderr
    assert "/authorize?" in done.stdout
    with listening(world.redirect_uri):
        pass


@contextmanager
def listening(uri: str) -> Iterator[None]:
    """Somebody else listens at the address."""
    with socket.create_server(("127.0.0.1", urlsplit(uri).port or 0)):
        yield


def test_a_taken_address_is_said_before_anything_is_begun(run: Run, world: World) -> None:
    """If the callback cannot be received, no URL is minted."""
    with listening(world.redirect_uri):
        done = run("connect", "fake", "ann")
    assert done.exit_code == 1
    assert "cannot listen on 127.0.0.1" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "uri", ["https://app.example/callback", "http://app.example/callback", "https://127.0.0.1/x", ""]
)
def test_a_redirect_uri_elsewhere_says_what_to_do(run: Run, world: World, uri: str) -> None:
    """What is not on this machine cannot be received here: the fix names both ways out."""
    settings = world.folder / "tokenkeeper.toml"
    line = f'redirect_uri = "{world.redirect_uri}"'
    settings.write_text(settings.read_text().replace(line, f'redirect_uri = "{uri}"' if uri else ""))
    done = run("connect", "fake", "ann")
    assert done.exit_code == 1
    assert "is not on this machine" in done.stderr
    assert "in your application" in done.stderr


def test_an_unknown_registration_is_named(run: Run, world: World) -> None:
    """connect names the registrations there are."""
    done = run("connect", "nope", "ann")
    assert done.exit_code == 1
    assert "fake" in done.stderr


def test_localhost_is_heard_on_every_loopback_address() -> None:
    """A redirect URI with localhost is served on what localhost means here, and idle connections hold nobody up."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = urlsplit(f"http://localhost:{port}/cb")
    with connect._listening(address) as callbacks, socket.create_connection(("127.0.0.1", port)):
        answers: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: answers.append(get(f"http://127.0.0.1:{port}/cb?code=1")))
        thread.start()
        callback = callbacks.get(timeout=10)
        assert callback.target == "/cb?code=1"
        assert "code" not in repr(callback)
        callback.outcome.set_result("<b>no</b>")
        assert callback.answered.wait(10)
        thread.join(10)
        assert "&lt;b&gt;no&lt;/b&gt;" in answers[0].text
