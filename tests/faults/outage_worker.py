"""A worker process for the outages: a keeper on real HTTP and a real database, told on its input what to do.

Each line on the input is a member, for whom it makes a guarded call; what came of it is a line of JSON on the output. It
is killed from outside.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any

from tokenkeeper import AccessToken, Answer, Keyring, Provider, Registration, TokenKeeper, TokenKeeperError


def main() -> None:
    """Serve the input until it ends."""
    settings: dict[str, Any] = json.loads(sys.stdin.readline())
    registration = Registration("acme", provider=Provider(**settings["provider"]), **settings["client"])
    keeper = TokenKeeper(
        settings["database"],
        keys=Keyring.parse(settings["keys"]),
        registrations=[registration],
        patience=settings["patience"],
        spill_directory=settings["spill"],
    )

    @keeper.guard("acme")
    def profile(token: AccessToken, member: str) -> Answer:
        request = urllib.request.Request(settings["api"], headers=dict(token.headers))
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return Answer(response.status, (), response.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                headers = tuple((name.lower(), value) for name, value in refusal.headers.items())
                return Answer(refusal.code, headers, refusal.read())

    for line in sys.stdin:
        said: dict[str, Any] = {}
        try:
            said["status"] = profile(member=line.strip()).status
        except TokenKeeperError as error:
            said["error"], said["cause"] = type(error).__name__, error.cause
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
