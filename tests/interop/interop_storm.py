"""Many worker processes, each with many callers, at the moment when a member's token has ended."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from interop_desk import Desk

WORKER = Path(__file__).with_name("interop_worker.py")
PATIENCE = 60.0


class Crowd:
    """Workers, each in a process of its own."""

    def __init__(self, workers: list[subprocess.Popen[str]], callers: int) -> None:
        self.callers = callers * len(workers)
        self._workers = workers
        self._order: dict[str, Any] = {}

    @contextlib.contextmanager
    def of(self, host: Desk, member: str) -> Iterator[Self]:
        """Be a host's workers, on its database, and call for one of its members."""
        site = host.site
        self._order = {"member": member, "url": f"{site.server.base}{site.api}"}
        place = {"base": site.server.base, "clients": site.server.clients}
        known = {
            name: getattr(site, name) for name in ("endpoints", "api", "scopes", "authorization_parameters", "issuer")
        }
        self._tell("open", twin=host.twin, database_url=host.database_url, key=host.key, place=place, site=known)
        yield self
        self._tell("close")

    def warm(self) -> None:
        """Have each worker take the member's token into memory."""
        self._tell("warm")

    def go(self) -> Counter[str]:
        """All call at once; how often each outcome came (a status, or an error)."""
        total: Counter[str] = Counter()
        for answer in self._tell("go"):
            total.update(answer)
        return total

    def _tell(self, what: str, **more: Any) -> list[Any]:
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps({"do": what} | self._order | more) + "\n")
            worker.stdin.flush()
        return [_line(worker) for worker in self._workers]


@contextlib.contextmanager
def crowd(*, processes: int = 4, callers: int = 10) -> Iterator[Crowd]:
    """Start workers; they wait for the word."""
    command = [sys.executable, str(WORKER), str(callers)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    try:
        yield Crowd(workers, callers)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _line(worker: subprocess.Popen[str]) -> Any:
    """What a worker says next."""
    assert worker.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        assert selector.select(PATIENCE), "a worker says nothing"
    line = worker.stdout.readline()
    assert line, "a worker has ended"
    return json.loads(line)["answer"]
