"""A process that renews once in fair weather, then meets a flood, and says how much memory that has cost at its peak.

Run by ``test_weather``: one JSON object on the standard input, one on the standard output.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tokenkeeper import AsyncTokenKeeper, Keyring, Provider, Registration, TokenKeeper, TokenKeeperError


def memory(name: str) -> int:
    """A figure of this process, in bytes (``VmRSS`` now, ``VmHWM`` at its peak).

    Not ``ru_maxrss``, which begins with the peak of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def forget_the_peak() -> None:
    """Let the peak begin anew at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


async def ask(keeper: Any, twin: str, name: str) -> str:
    """Ask for the registration's token; what became of it."""
    try:
        token = keeper.access_token(name, "ann")
        return f"generation {(await token if twin == 'async' else token).generation}"
    except TokenKeeperError as error:
        return f"{type(error).__name__} {error.cause}"


async def main() -> None:
    """Do what the input says."""
    order = json.load(sys.stdin)
    registrations = [
        Registration(
            name,
            provider=Provider("fake", token_endpoint=url, lease_seconds=30, deadline_seconds=25),
            client_id="client-1",
            client_secret="secret-1",
            redirect_uri="http://127.0.0.1/",
        )
        for name, url in order["endpoints"].items()
    ]
    kind = TokenKeeper if order["twin"] == "sync" else AsyncTokenKeeper
    keeper = kind(order["database"], keys=Keyring.parse(order["key"]), registrations=registrations)
    sync = keeper if isinstance(keeper, TokenKeeper) else keeper.sync
    sync.create_schema()
    for name in order["endpoints"]:
        sync.save_tokens(name, "ann", {"access_token": "old", "refresh_token": "refresh", "expires_at": 1})
    first, *floods = order["endpoints"]
    said = {first: await ask(keeper, order["twin"], first)}
    cost = {}
    for name in floods:
        forget_the_peak()
        before = memory("VmRSS")
        said[name] = await ask(keeper, order["twin"], name)
        cost[name] = memory("VmHWM") - before
    sync.close()
    print(json.dumps({"said": said, "cost": cost}))


if __name__ == "__main__":
    asyncio.run(main())
