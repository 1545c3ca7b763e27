"""One worker process of a host: a keeper of its own, and many threads or tasks that call the API at the same moment.

Each line of stdin is an order as JSON, and is answered by one line: ``open`` a keeper, ``warm`` it (take the member's
token into memory), ``go`` (all callers call), ``close``. It ends when stdin does, so never outlives its test.
Usage: interop_worker.py CALLERS
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
from interop_desk import NAME, Site
from interop_servers import PLAIN

from tokenkeeper import AccessToken, AsyncTokenKeeper, Keyring, TokenKeeper


@dataclass(frozen=True)
class Place:
    """Where a server is and whom it knows; all that a Site needs of it here."""

    base: str
    clients: dict[str, dict[str, Any]]


Order = dict[str, Any]


def keeper_of(kind: type[Any], order: Order) -> Any:
    """A keeper as a host declares it."""
    site = Site(Place(**order["place"]), **order["site"])  # type: ignore[arg-type]
    keys = Keyring.parse(order["key"])
    return kind(order["database_url"], keys=keys, registrations=[site.registration()], patience=30.0)


class Threads:
    """A sync keeper, and callers in threads."""

    def __init__(self, order: Order, callers: int) -> None:
        self.callers = callers
        self.keeper = keeper_of(TokenKeeper, order)
        self.threads = ThreadPoolExecutor(callers)
        self.barrier = threading.Barrier(callers)
        self.client = httpx2.Client(verify=PLAIN, timeout=30, limits=httpx2.Limits(max_connections=callers))

        @self.keeper.guard(NAME)
        def call(token: AccessToken, member: str, url: str) -> httpx2.Response:
            return self.client.get(url, auth=token)

        self.call = call

    def warm(self, order: Order) -> int:
        """Take the member's token into memory."""
        return int(self.keeper.access_token(NAME, order["member"]).generation)

    def go(self, order: Order) -> Counter[str]:
        """All call; the outcomes."""
        return Counter(self.threads.map(self._one, [order] * self.callers))

    def _one(self, order: Order) -> str:
        self.barrier.wait()
        try:
            return str(self.call(order["member"], order["url"]).status_code)
        except Exception as error:
            return repr(error)

    def close(self, _: Order) -> None:
        """Close what was opened."""
        self.keeper.close()
        self.client.close()
        self.threads.shutdown()


class Tasks:
    """An async keeper, and callers in tasks of one event loop."""

    def __init__(self, order: Order, callers: int) -> None:
        self.callers = callers
        self.keeper = keeper_of(AsyncTokenKeeper, order)
        self.runner = asyncio.Runner()
        self.client = httpx2.AsyncClient(verify=PLAIN, timeout=30)

        @self.keeper.guard(NAME)
        async def call(token: AccessToken, member: str, url: str) -> httpx2.Response:
            return await self.client.get(url, auth=token)

        self.call = call

    def warm(self, order: Order) -> int:
        """Take the member's token into memory."""
        return int(self.runner.run(self.keeper.access_token(NAME, order["member"])).generation)

    def go(self, order: Order) -> Counter[str]:
        """All call; the outcomes."""
        return self.runner.run(self._all(order))

    async def _all(self, order: Order) -> Counter[str]:
        return Counter(await asyncio.gather(*(self._one(order) for _ in range(self.callers))))

    async def _one(self, order: Order) -> str:
        try:
            return str((await self.call(order["member"], order["url"])).status_code)
        except Exception as error:
            return repr(error)

    def close(self, _: Order) -> None:
        """Close what was opened."""
        self.runner.run(self.keeper.close())
        self.runner.run(self.client.aclose())
        self.runner.close()


def main(callers: int) -> None:
    """Do as the test says, line by line."""
    opened: Any = None
    while order := next_order(sys.stdin.readline()):
        if order["do"] == "open":
            opened = {"sync": Threads, "async": Tasks}[order["twin"]](order, callers)
            say("open")
        else:
            say(getattr(opened, order["do"])(order))


def next_order(line: str) -> Order | None:
    """The order on a line; None at the end."""
    return json.loads(line) if line else None


def say(what: object) -> None:
    """Answer the test."""
    print(json.dumps({"answer": what}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
