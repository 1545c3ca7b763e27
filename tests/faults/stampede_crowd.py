"""The parent's side of a stampede: worker processes, an expiry that all of them meet, and a judge of the provider's log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.stampede_clock import AheadClock
from tests.faults.stampede_worker import MEMBER, REGISTRATION
from tokenkeeper import Keyring, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider

ROOT = Path(__file__).resolve().parents[2]
HOUR = 3600.0
PATIENCE = 30.0
"""How long (seconds) the parent waits for the crowd to come to a gate; then the trial is broken, not slow."""


class Worker:
    """One process, and the pipe to it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.stampede_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
        )

    def order(self, **words: Any) -> None:
        """Tell the worker what to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def answer(self, what: str) -> Any:
        """Wait for an answer (or the worker's end)."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {self._process.wait()}; its words are above")
        return json.loads(line)[what]

    def end(self) -> None:
        """Close the pipe: the worker ends by itself; one that does not is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def workers(count: int) -> Iterator[list[Worker]]:
    """So many worker processes, ended afterwards; they can be given one crowd after the other."""
    started = [Worker() for _ in range(count)]
    try:
        yield started
    finally:
        for worker in started:
            worker.end()


class Crowd:
    """Callers of one member in several processes, on one database, against one provider that kills a grant on reuse."""

    def __init__(
        self, crew: list[Worker], *, callers: int, kind: str, database: str, served: str | None = None
    ) -> None:
        self.crew = crew
        self.size = callers * len(crew)
        self.clock = AheadClock()
        self.provider = FakeProvider(rotation="strict", access_lifetime=HOUR, clock=self.clock.epoch)
        self.generation = 1
        self.spent: set[str] = set()
        self._open = {"do": "open", "as": kind, "callers": callers, "database": served or database}
        self._database = database

    @contextmanager
    def gathered(self) -> Iterator[Crowd]:
        """Serve the provider, connect the member, and open every worker's keeper."""
        keys = generate_key("stampede")
        with self.provider.serve() as base_url:
            registration = self.provider.registration(REGISTRATION)
            with TokenKeeper(self._database, keys=Keyring.parse(keys), registrations=[registration]) as keeper:
                keeper.create_schema()
                keeper.save_tokens(REGISTRATION, MEMBER, self.provider.issue(MEMBER))
            words = {
                "client_id": self.provider.client.client_id,
                "client_secret": sorted(self.provider.client.secrets),
                "redirect_uri": registration.redirect_uri,
                "scopes": list(registration.scopes),
            }
            provider = asdict(self.provider.as_provider())
            for worker in self.crew:
                worker.order(**self._open, base_url=base_url, keys=keys, registration=words, provider=provider)
            for worker in self.crew:
                worker.answer("open")
            try:
                yield self
            finally:
                for worker in self.crew:
                    worker.order(do="close")
                for worker in self.crew:
                    worker.answer("closed")

    def expire(self, *, known: bool) -> list[str]:
        """Let the access token expire, and let everybody meet that at once; return what went wrong.

        *known*: by the clock, so that nobody calls before the renewal; else everybody is refused first. The token
        endpoint answers only when all have begun, so that nobody comes late to the new token.
        """
        provider = self.provider
        provider.reset_counters()
        self.clock.ahead += HOUR if known else 40.0  # a renewed token's refusal renews nothing for 30 s
        renewing = provider.hold("token")
        refused = None
        if not known:
            provider.expire(MEMBER)
            refused = provider.hold("api", times=self.size)
        for worker in self.crew:
            worker.order(do="rush", ahead=self.clock.ahead)
        for worker in self.crew:
            worker.answer("started")
        if refused is not None:
            refused.wait_until_held(self.size, PATIENCE)
            refused.release()
        renewing.wait_until_held(1, PATIENCE)
        renewing.release()
        calls = [call for worker in self.crew for call in worker.answer("calls")]
        self.generation += 1
        return self._faults(calls, known=known)

    def _faults(self, calls: list[dict[str, Any]], *, known: bool) -> list[str]:
        """What went wrong, by the provider's log and by the callers."""
        faults, provider = [], self.provider
        shown = [entry for entry in provider.log if entry.kind == "refresh"]
        api = Counter(entry.verdict for entry in provider.log if entry.surface == "api")
        wanted = Counter({"ok": self.size} if known else {"ok": self.size, "expired": self.size})
        if provider.token_requests != 1 or [entry.verdict for entry in shown] != ["ok"]:
            faults.append(f"{provider.token_requests} token requests: {[entry.verdict for entry in shown]}")
        if again := self.spent & {entry.token for entry in shown}:
            faults.append(f"{len(again)} spent refresh tokens presented again")
        self.spent |= {entry.token for entry in shown}
        if api != wanted:
            faults.append(f"API calls {dict(api)} instead of {dict(wanted)}")
        outcomes = Counter(call.get("error") or f"status {call['status']} at {call['generation']}" for call in calls)
        if outcomes != {f"status 200 at {self.generation}": self.size}:
            faults.append(f"calls {dict(outcomes)} instead of {self.size} x 200 at {self.generation}")
        return faults
