"""What these servers answer to what goes wrong, read by the generic rules: whose turn it is, never the member's for the
operator's fault."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest
from interop_desk import Desk, Site

from tokenkeeper import diagnose

pytestmark = pytest.mark.interop

API = {
    "no header": "empty",
    "an empty token": "bad_scheme",
    "no scheme": "bad_scheme",
    "another scheme": "bad_scheme",
    "an unknown token": "invalid",
    "the refresh token": "invalid",
}
TOOLKIT_API = API | {"an empty token": "empty", "no scheme": "empty", "another scheme": "empty"}
"""The toolkit says of each of these that the request has no token, which is so as it sees it."""

TOKEN = {
    "an unknown refresh token": "grant_invalid",
    "no refresh token": "client_config",
    "a wrong secret": "client_config",
    "an unknown client": "client_config",
    "no client": "client_config",
    "more scope": "client_config",
    "json": "client_config",
    "GET": "client_config",
    "another path": "client_config",
}


@pytest.mark.parametrize("twin", ["sync"])
def test_refusals_of_the_api(site: Site, desk: Callable[..., Desk]) -> None:
    """Only what was sent as a token, and is none, is called invalid; what was sent wrongly is the operator's turn."""
    host = desk(site)
    ann = host.newcomer()
    host.connect(ann)
    access_token, refresh_token = host.tokens(ann)
    sent = {
        "no header": None,
        "an empty token": "Bearer",
        "no scheme": access_token,
        "another scheme": f"Token {access_token}",
        "an unknown token": "Bearer nonsense",
        "the refresh token": f"Bearer {refresh_token}",
    }
    toolkit = site.issuer == "/o"
    answers = {
        what: host.http.get(
            "/api/me" if toolkit else site.api, headers={} if value is None else {"Authorization": value}
        )
        for what, value in sent.items()
    }
    assert {what: verdict(answer) for what, answer in answers.items()} == (TOOLKIT_API if toolkit else API)


@pytest.mark.parametrize("twin", ["sync"])
def test_refusals_of_the_token_endpoint(site: Site, desk: Callable[..., Desk]) -> None:
    """Only a refused refresh token is the member's turn."""
    host = desk(site)
    ann = host.newcomer()
    host.connect(ann)
    _, refresh_token = host.tokens(ann)
    url, client = str(site.provider().token_endpoint), site.server.clients["basic"]
    right = {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "client_id": client["client_id"],
        "client_secret": client["client_secret"],
    }

    def post(**changed: str | None) -> httpx2.Response:
        form = {name: value for name, value in (right | changed).items() if value is not None}
        return host.http.post(url, data=form)

    answers = {
        "an unknown refresh token": post(refresh_token="nonsense"),
        "no refresh token": post(refresh_token=None),
        "a wrong secret": post(client_secret="wrong"),
        "an unknown client": post(client_id="nobody"),
        "no client": post(client_id=None, client_secret=None),
        "more scope": post(scope="openid email write"),
        "json": host.http.post(url, json=right),
        "GET": host.http.get(url, params={"grant_type": "refresh_token"}),
        "another path": host.http.post(f"{url.rstrip('/')}s", data=right),
    }
    assert {what: verdict(answer, "token") for what, answer in answers.items()} == TOKEN
    assert post().status_code == 200


def verdict(answer: httpx2.Response, surface: str = "api") -> str:
    """What the generic rules make of an answer."""
    headers = list(answer.headers.multi_items())
    return str(diagnose(answer.status_code, headers, answer.content, surface=surface).verdict)
