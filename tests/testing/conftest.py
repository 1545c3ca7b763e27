"""What the tests of the fake provider share: a clock in the hand, and a client to ask with."""

from __future__ import annotations

from typing import Any

import pytest

from tokenkeeper.testing import FakeProvider, Request, Response


class HandClock:
    """Stands still until a test moves it; seconds since the epoch."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now += seconds


class Asker:
    """Asks a provider in process, without any HTTP client."""

    def __init__(self, provider: FakeProvider) -> None:
        self.provider = provider

    def api(self, token: str | None, path: str = "/v2/userinfo") -> Response:
        """Call the API with a token (None: without the header)."""
        headers = () if token is None else (("authorization", f"Bearer {token}"),)
        return self.provider.handle(Request("GET", self.provider.base_url + path, headers))

    def token(self, **fields: str) -> Response:
        """Post to the token endpoint as the client, in the form."""
        known = {"client_id": "client-1", "client_secret": "secret-1"}
        return self.provider.handle(Request.form(self.provider.base_url + "/token", known | fields))

    def refresh(self, token: str, **more: str) -> Response:
        """Redeem a refresh token."""
        return self.token(grant_type="refresh_token", refresh_token=token, **more)

    def post(self, path: str, **fields: str) -> Response:
        """Post to another endpoint as the client, in the form."""
        known = {"client_id": "client-1", "client_secret": "secret-1"}
        return self.provider.handle(Request.form(self.provider.base_url + path, known | fields))


@pytest.fixture
def clock() -> HandClock:
    """A clock that stands still."""
    return HandClock()


@pytest.fixture
def make(clock: HandClock) -> Any:
    """Make a provider on the test's clock, and an asker of it."""

    def build(*flavor: Any, **knobs: Any) -> Asker:
        return Asker(FakeProvider(*flavor, clock=clock, **knobs))

    return build
