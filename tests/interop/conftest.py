"""The servers, started once a run, and desks of either twin; where a server cannot run, the run says so."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from interop_desk import LIFE, REDIRECT_URI, Desk, Site
from interop_member import Browser
from interop_servers import Server, missing, running
from interop_storm import Crowd, crowd
from joserfc.jwk import RSAKey

from tests.conftest import fresh_database, kinds_here, left_out
from tokenkeeper import Keyring, TokenKeeper
from tokenkeeper.crypto import generate_key

SERVERS = ("oidc-provider", "django-oauth-toolkit")


def needed(server: str) -> None:
    """Skip the test with the reason why its server is missing; in CI that is a failure."""
    if reason := missing(server):
        left_out(f"no {server}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which servers were not there, so that a green run is not read as more than it is."""
    if config.option.markexpr == "interop":
        for server in SERVERS:
            if reason := missing(server):
                terminalreporter.write_line(f"left out, {server}: {reason}", yellow=True)


@pytest.fixture(scope="session")
def private_key() -> str:
    """A client's private key, as PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.fixture(scope="session")
def oidc_provider(private_key: str) -> Iterator[Site]:
    """A running oidc-provider with its clients."""
    needed("oidc-provider")
    common = {"redirect_uris": [REDIRECT_URI], "grant_types": ["authorization_code", "refresh_token"]}
    public = RSAKey.import_key(private_key).as_dict(private=False, kid="interop-1")
    clients: dict[str, dict[str, Any]] = {
        "basic": {"client_id": "tk:basic%", "client_secret": special()},
        "post": {
            "client_id": "tk-post",
            "client_secret": special(),
            "token_endpoint_auth_method": "client_secret_post",
        },
        "jwt": {"client_id": "tk-jwt", "token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [public]}},
        "expired": {"client_id": "tk-expired", "client_secret": special()},
    }
    clients = {name: common | client for name, client in clients.items()}
    with running("oidc-provider", clients, accessTokenLife=LIFE, refreshTokenLife=86400) as server:
        yield Site(
            server,
            endpoints={
                "authorization_endpoint": "/auth",
                "token_endpoint": "/token",
                "revocation_endpoint": "/token/revocation",
                "introspection_endpoint": "/token/introspection",
                "userinfo_endpoint": "/me",
            },
            api="/me",
            scopes=("openid", "offline_access", "profile"),
            authorization_parameters={"prompt": "consent"},
        )


@pytest.fixture(scope="session")
def toolkit() -> Iterator[Site]:
    """A running django-oauth-toolkit with its clients."""
    needed("django-oauth-toolkit")
    clients = {
        "basic": {"client_id": "tk:basic%", "client_secret": special(), "redirect_uris": [REDIRECT_URI]},
        "post": {
            "client_id": "tk-post",
            "client_secret": special(),
            "redirect_uris": [REDIRECT_URI],
            "token_endpoint_auth_method": "client_secret_post",
        },
    }
    with running("django-oauth-toolkit", clients, accessTokenLife=LIFE) as server:
        yield Site(
            server,
            endpoints={
                "authorization_endpoint": "/o/authorize/",
                "token_endpoint": "/o/token/",
                "revocation_endpoint": "/o/revoke_token/",
                "introspection_endpoint": "/o/introspect/",
                "userinfo_endpoint": "/o/userinfo/",
            },
            api="/o/userinfo/",
            scopes=("openid", "profile", "read"),
            issuer="/o",
            withdraw=withdraw_at_toolkit,
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``site`` runs at each server; with ``database``, at the strict server on every kind that answers."""
    if {"site", "database"} <= set(metafunc.fixturenames):
        pairs = [("oidc-provider", kind) for kind in kinds_here()] + [("django-oauth-toolkit", "sqlite")]
        metafunc.parametrize(("site", "database"), pairs, indirect=True)
    elif "site" in metafunc.fixturenames:
        metafunc.parametrize("site", SERVERS, indirect=True)


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Site:
    """A running server."""
    found: Site = request.getfixturevalue({"oidc-provider": "oidc_provider"}.get(request.param, "toolkit"))
    return found


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of the test's own, dropped after it."""
    with fresh_database(request.param, tmp_path) as url:
        yield url


def withdraw_at_toolkit(server: Server, account: str) -> None:
    """The toolkit has pages for it: the list of what the member has authorized, with a link to revoke each."""
    with Browser(account) as browser:
        page = browser.open(f"{server.base}/o/authorized_tokens/")
        browser.press(f"{server.base}{page.links['revoke']}", "Delete")
        assert "revoke" not in browser.open(f"{server.base}/o/authorized_tokens/").links


def special() -> str:
    """A client secret with the characters that form-encoding is about (RFC 6749 section 2.3.1)."""
    return f"50% + 7:/?&=#{secrets.token_hex(16)}"


@pytest.fixture(params=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> str:
    """Each test runs for both keepers."""
    return str(request.param)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema: to copy it is quicker than to run the migrations for each test."""
    path = tmp_path_factory.mktemp("template") / "tokens.db"
    with TokenKeeper(f"sqlite:///{path}", keys=Keyring.parse(generate_key("k1")), registrations=[]) as keeper:
        keeper.create_schema()
    return path


@pytest.fixture
def desk(twin: str, template: Path, tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """Set up desks (on SQLite, unless told otherwise); they are cleared away after the test."""
    desks: list[Desk] = []

    def set_up(site: Site, database_url: str | None = None, **options: Any) -> Desk:
        site.server.set(accessTokenLife=LIFE, tokenDelay=0)
        site.server.mark()
        if database_url is None:
            database_url = f"sqlite:///{shutil.copy(template, tmp_path / f'tokens-{len(desks)}.db')}"
        desks.append(Desk(site, twin, database_url, **options))
        return desks[-1]

    yield set_up
    for made in desks:
        made.close()


@pytest.fixture(scope="session")
def workers() -> Iterator[Crowd]:
    """Workers for a host: 4 processes with 10 callers each."""
    with crowd() as started:
        yield started
