"""A worker whose registration may have a wrong secret: one JSON object a line comes in, one goes out.

The first line makes the keeper; each that follows says what time it is and who is to be called for, by how many threads
at once, and may bring a corrected secret; the answer counts what became of the calls.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tokenkeeper import Keyring, Provider, Registration, TokenKeeper, TokenKeeperError
from tokenkeeper.testing.clock import TestClock

REGISTRATION = "acme"


def make(order: dict[str, Any], clock: TestClock) -> TokenKeeper:
    """A keeper as the order says, on the clock."""
    provider = Provider(
        "fake",
        token_endpoint=order["token_endpoint"],
        client_authentication="client_secret_post",
        rotation="strict",
        lease_seconds=12,
        deadline_seconds=10,
    )
    registration = Registration(
        REGISTRATION,
        provider=provider,
        client_id="client-1",
        client_secret=order["secret"],
        redirect_uri="http://127.0.0.1/",
    )
    keeper = TokenKeeper(order["database"], keys=Keyring.parse(order["key"]), registrations=[registration])
    clock.install(keeper)
    return keeper


def main() -> None:
    """Do what comes in, line by line."""
    order = json.loads(sys.stdin.readline())
    clock = TestClock(order["now"])
    keeper = make(order, clock)

    def call(member: str) -> str:
        try:
            return f"generation {keeper.access_token(REGISTRATION, member).generation}"
        except TokenKeeperError as error:
            return f"{type(error).__name__} {error.cause}"

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        clock.advance(asked["now"] - clock())
        if "secret" in asked:
            keeper.close()
            order["secret"] = asked["secret"]
            keeper = make(order, clock)
        members = asked["members"] * asked["times"]
        with ThreadPoolExecutor(len(members)) as threads:
            print(json.dumps(Counter(threads.map(call, members))), flush=True)
    keeper.close()


if __name__ == "__main__":
    main()
