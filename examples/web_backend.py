"""A web backend whose members connect an account, in one page of code and without a web framework.

    python examples/web_backend.py        then open http://127.0.0.1:8000/me

The provider is a stand-in on this machine, so you can sign in as anybody and withdraw the consent again. See what
becomes of `/me` after `/expire` (nobody notices) and after `/revoke` (the member is sent to sign in again).
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from wsgiref.simple_server import make_server

from tokenkeeper import AccessToken, Keyring, MemberActionRequired, ReauthenticationNeeded, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider

Page = tuple[str, list[tuple[str, str]], str]


class Backend:
    """The host: your application, with a keeper. ``member`` stands for your own sign-in: who is using this browser."""

    def __init__(self, provider: FakeProvider, database: str, url: str, member: str = "ann") -> None:
        self.url, self.provider, self.member = url, provider, member
        self.keeper = TokenKeeper(
            database,
            keys=Keyring.parse(generate_key("example")),
            registrations=[provider.registration("linkedin", redirect_uri=f"{url}/callback")],
        )
        self.keeper.create_schema()
        self.keeper.on(ReauthenticationNeeded, lambda event: print(f"mail to {event.member}: please connect again"))
        self.profile = self.keeper.guard("linkedin")(self.fetch_profile)

    def fetch_profile(self, token: AccessToken, member: str) -> Any:
        """Call the API. No word about 401 here."""
        request = urllib.request.Request(f"{self.provider.base_url}/v2/userinfo", headers=token.headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def page(self, path: str, query: str) -> Page:
        """Answer a request of a member's browser."""
        match path:
            case "/me":
                try:
                    return (
                        "200 OK",
                        [("Content-Type", "application/json")],
                        json.dumps(self.profile(member=self.member)),
                    )
                except MemberActionRequired:
                    return redirect(self.keeper.begin_authorization("linkedin", self.member, return_to="/me").url)
            case "/callback":
                connection = self.keeper.finish_authorization(f"{self.url}{path}?{query}", member=self.member)
                return redirect(connection.return_to)
            case "/expire":
                self.provider.expire()
                return redirect("/me")
            case "/revoke":
                self.provider.revoke()
                return redirect("/me")
        return "404 Not Found", [], ""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Be a WSGI application."""
        status, headers, body = self.page(environ["PATH_INFO"], environ["QUERY_STRING"])
        start_response(status, headers)
        return [body.encode()]


def redirect(url: str) -> Page:
    """Send the member's browser elsewhere."""
    return "303 See Other", [("Location", url)], ""


def main() -> None:
    """Serve the backend and its provider until Ctrl-C."""
    provider = FakeProvider(flavor="linkedin")
    with TemporaryDirectory() as folder, provider.serve():
        backend = Backend(provider, f"sqlite:///{Path(folder) / 'tokens.db'}", "http://127.0.0.1:8000")
        with backend.keeper, make_server("127.0.0.1", 8000, backend) as server:
            print(f"open {backend.url}/me")
            server.serve_forever()


if __name__ == "__main__":
    main()
