"""One process of a stampede: many callers of one member, in threads or in tasks, who all start at the parent's word.

Run by ``stampede_crowd.Crowd``: one JSON object a line comes in, one goes out. ``open`` makes a keeper, ``rush`` lets
every caller make one guarded call, ``close`` closes the keeper; the end of the input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import urllib3

from tests.faults.stampede_clock import AheadClock
from tokenkeeper import AccessToken, AsyncTokenKeeper, Keyring, Provider, Registration, TokenKeeper

REGISTRATION = "acme"
MEMBER = "ann"
PATH = "/userinfo"
TIMEOUT = 60.0

Say = Callable[[dict[str, Any]], None]


class Rush:
    """Counts the callers that have begun, says so when all have, and notes what became of each call."""

    def __init__(self, callers: int, say: Say) -> None:
        self.calls: list[dict[str, Any]] = []
        self._left = callers
        self._say = say
        self._lock = threading.Lock()

    @contextmanager
    def call(self) -> Iterator[dict[str, Any]]:
        """One more caller begins; its call's status and generation, or the error, are noted."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._say({"started": True})
        note: dict[str, Any] = {}
        try:
            yield note
        except Exception as error:
            note["error"] = f"{type(error).__name__}: {error}"
        self.calls.append(note)


class Threads:
    """Callers in threads of their own, each with one keep-alive connection."""

    def __init__(self, order: dict[str, Any], clock: AheadClock) -> None:
        self._keeper = TokenKeeper(order["database"], **options(order))
        self._keeper._room.use(clock)
        self._http = urllib3.PoolManager(maxsize=order["callers"], retries=False, timeout=TIMEOUT)
        self._callers = order["callers"]
        url = order["base_url"] + PATH

        @self._keeper.guard(REGISTRATION)
        def call(token: AccessToken, member: str, note: dict[str, Any]) -> urllib3.BaseHTTPResponse:
            note["generation"] = token.generation
            return self._http.request("GET", url, headers=token.headers)

        self._call = call

    def rush(self, say: Say) -> list[dict[str, Any]]:
        """Let every thread make one call, all at once; the threads are made anew, as a server's are."""
        rush, together = Rush(self._callers, say), threading.Barrier(self._callers)

        def work() -> None:
            together.wait(TIMEOUT)
            with rush.call() as note:
                note["status"] = self._call(member=MEMBER, note=note).status

        threads = [threading.Thread(target=work) for _ in range(self._callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return rush.calls

    def close(self) -> None:
        """Close the keeper and all connections."""
        self._keeper.close()
        self._http.clear()


class Tasks:
    """Callers in tasks of one event loop."""

    def __init__(self, order: dict[str, Any], clock: AheadClock) -> None:
        self._keeper = AsyncTokenKeeper(order["database"], **options(order))
        self._keeper._room.use(clock)
        self._callers = order["callers"]
        self._url = order["base_url"] + PATH
        self._runner = asyncio.Runner()
        self._runner.run(self._open())

        @self._keeper.guard(REGISTRATION)
        async def call(token: AccessToken, member: str, note: dict[str, Any]) -> aiohttp.ClientResponse:
            note["generation"] = token.generation
            response = await self._http.get(self._url, headers=token.headers)
            await response.read()
            return response

        self._call = call

    async def _open(self) -> None:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(TIMEOUT)
        )

    def rush(self, say: Say) -> list[dict[str, Any]]:
        """Let every task make one call, all at once."""
        rush = Rush(self._callers, say)

        async def work() -> None:
            with rush.call() as note:
                note["status"] = (await self._call(member=MEMBER, note=note)).status

        async def all_of_them() -> None:
            await asyncio.gather(*(work() for _ in range(self._callers)))

        self._runner.run(all_of_them())
        return rush.calls

    def close(self) -> None:
        """Close the keeper, all connections and the loop."""

        async def closing() -> None:
            await self._http.close()
            await self._keeper.close()

        self._runner.run(closing())
        self._runner.close()


def options(order: dict[str, Any]) -> dict[str, Any]:
    """A keeper's arguments, as the parent's orders have them."""
    registration = Registration(REGISTRATION, **{**order["registration"], "provider": Provider(**order["provider"])})
    return {"keys": Keyring.parse(order["keys"]), "registrations": [registration]}


def main() -> None:
    """Obey the parent until its end of the pipe is closed."""
    clock, callers = AheadClock(), None

    def say(words: dict[str, Any]) -> None:
        print(json.dumps(words), flush=True)

    for line in sys.stdin:
        order = json.loads(line)
        match order["do"]:
            case "open":
                callers = {"threads": Threads, "tasks": Tasks}[order["as"]](order, clock)
                say({"open": True})
            case "rush":
                assert callers is not None
                clock.ahead = order["ahead"]
                say({"calls": callers.rush(say)})
            case "close":
                assert callers is not None
                callers.close()
                callers = None
                clock.ahead = 0.0
                say({"closed": True})


if __name__ == "__main__":
    main()
