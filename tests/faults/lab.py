"""The fault laboratory: a database, the fake provider over HTTP, workers that go on calling, and one that is harmed.

A :class:`Laboratory` runs many rounds at once, since most of a round is waiting for a lease. A round is one member with
one grant: two workers that the rounds share call the API for it all the time; a third, the victim, is the first to learn
that its token is no good, stops at the round's point, and is killed, stopped or cut off there. When the others are
served again (or the grant is lost), the round's lines are judged by :mod:`tests.faults.lab_checker`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.conftest import fresh_database
from tests.faults.lab_checker import Evidence, judge
from tests.faults.lab_log import Line, Log, Reader, first
from tests.faults.lab_points import AT_PROVIDER
from tests.faults.lab_worker import REGISTRATION, registration
from tokenkeeper import Keyring, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.model import GrantKey
from tokenkeeper.store.tables import metadata
from tokenkeeper.testing import FakeProvider
from tokenkeeper.testing.messages import Delivery, Request, Response

ROOT = Path(__file__).parents[2]
LEASE, DEADLINE = 3.0, 2.0
SLACK = 2.0
"""Seconds after the lease within which the others must be served again."""

EVERY = 0.2
"""Seconds between two calls of a worker for one member."""

SURVIVORS = ("first", "second")
ATTEMPTS = 3
"""How often a round is made whose victim comes too late to its point: others were faster, or the token had ended."""

PATIENCE = 30.0
"""The longest that the laboratory waits for anything that should come at once; the machine may be slow."""


@dataclass
class Hook:
    """What happens when the victim's token request is at the provider."""

    point: str
    action: Callable[[], None]
    delivers: bool = False
    """Whether the answer goes on its way afterwards; else it is lost."""
    used: bool = False


class Witness(FakeProvider):
    """The fake provider, with a line in the log for each token that is shown, and for whom."""

    def __init__(self, log: Log, **knobs: Any) -> None:
        super().__init__(clock=time.monotonic, prefix="canary-", client_secret=secrets.token_hex(16), **knobs)
        self.witness = log
        self.hooks: dict[str, Hook] = {}
        self.refuse_first: dict[str, str] = {}
        """Member -> the worker whose next call is refused although its token is good: it learns first."""
        self.row_of: Callable[[str], dict[str, Any]] = lambda _: {}

    def handle(self, request: Request) -> Response:
        """Answer a request, and write down what was shown."""
        worker = request.header("x-worker")
        if "refresh_token" in request.fields:
            return self._token_request(request, worker, request.fields["refresh_token"])
        grant = self.ledger.grant_of((request.header("authorization") or "").partition(" ")[2])
        if grant is None or self.refuse_first.get(grant.member) != worker:
            response = super().handle(request)
        else:
            del self.refuse_first[grant.member]
            with self._lock:
                self.script("expired", member=grant.member)
                response = super().handle(request)
        self._note("api", response, worker)
        return response

    def _token_request(self, request: Request, worker: str | None, token: str) -> Response:
        grant = self.ledger.grant_of(token)
        member = grant.member if grant else None
        row = {} if member is None else self.row_of(member)
        self.witness.write("arrived", worker=worker, member=member, token=token, **row)
        hook = self.hooks.get(member or "")
        mine = hook is not None and not hook.used
        if hook is not None and mine:
            hook.used = True
            if hook.point != "answered":
                hook.action()
            if hook.point == "sent:unprocessed":
                self.witness.write("dropped", worker=worker, member=member, token=token)
                return Response(503, delivery=Delivery.DROP)
        response = super().handle(request)
        if hook is not None and mine:
            if hook.point == "answered":
                hook.action()
            if not hook.delivers:
                self.lost(response)
        self._note("presented", response, worker, lost=mine and hook is not None and not hook.delivers)
        return response

    def _note(self, event: str, response: Response, worker: str | None, *, lost: bool = False) -> None:
        for number in response.presented:
            shown = self._journal._log[number]
            fresh = None
            if shown.kind == "refresh" and response.status == 200:
                answer = response.json()
                fresh = {"access": answer["access_token"], "refresh": answer.get("refresh_token", shown.token)}
            self.witness.write(
                event,
                worker=worker,
                member=shown.member,
                token=shown.token,
                verdict=shown.verdict,
                delivered=not lost,
                fresh=fresh,
            )


class Zygote:
    """Forks workers on demand; all of them die with it."""

    def __init__(self, stderr: Path, env: dict[str, str] | None = None) -> None:
        self._stderr = stderr.open("ab")
        self._env = env or {}
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.lab_worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            env={**os.environ, **self._env},
            stderr=self._stderr,
        )
        theirs.close()
        self._wire = ours
        ours.settimeout(4 * PATIENCE)
        if ours.recv(100) != b"ready":
            raise RuntimeError("the zygote did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wire.close()
        self._process.wait(PATIENCE)
        self._stderr.close()

    def fork(self, settings: dict[str, Any]) -> Process:
        """Start a worker."""
        ours, theirs = socket.socketpair()
        with self._guard:
            socket.send_fds(self._wire, [json.dumps(settings).encode()], [theirs.fileno()])
            pid = int(self._wire.recv(100))
        theirs.close()
        return Process(settings["name"], pid, ours)


@dataclass
class Process:
    """A worker process, as the parent holds it."""

    name: str
    pid: int
    control: socket.socket

    def tell(self, do: str, **more: Any) -> None:
        """Send a command; one to a dead worker is lost."""
        with contextlib.suppress(OSError):
            self.control.sendall(json.dumps({"do": do, **more}).encode() + b"\n")

    def signal(self, number: int) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, and wait until it is dead: its connections are closed then."""
        self.signal(signal.SIGKILL)
        until(lambda: self.state() in ("", "Z"), f"the death of {self.name}")

    def state(self) -> str:
        """The process's state in /proc: ``T`` is stopped, ``Z`` dead, nothing gone."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return ""


def until(ready: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Poll until *ready*. Raises TimeoutError that names what did not come."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


@dataclass(frozen=True)
class Plan:
    """What one round does; its text is how to run it again."""

    action: str
    """``kill``, ``stop`` or ``cut``."""
    point: str
    number: int
    trigger: str = "refused"
    """How the victim learns: its token is ``refused``, or it is ``aging`` and goes on working for a while."""
    spill: str = "own"
    """The victim's spill folder: its ``own`` (then it is started again at once), the others' (``shared``), or ``none``."""

    def __str__(self) -> str:
        return f"{self.action} {self.point} #{self.number} ({self.trigger}, spill {self.spill})"


def plans(action: str, points: Iterable[str], rounds: int) -> list[Plan]:
    """The rounds of a campaign: each point so often, with triggers and spill folders dealt out evenly."""
    return [
        Plan(
            action,
            point,
            number,
            ("refused", "aging")[number % 2],
            ("own", "shared", "none")[(number + place) % 3]
            if point not in ("spill:part", "after:SpillTokens")
            else ("own", "shared")[number // 2 % 2 ^ place % 2],
        )
        for number in range(rounds)
        for place, point in enumerate(points)
    ]


class Laboratory:
    """One database of a kind, one provider of a rotation, two workers, and any number of rounds.

    *url* names a database that is there already; *env* is put over the workers' environment; *clocks*: the two workers'
    files for libfaketime.
    """

    def __init__(
        self,
        kind: str,
        rotation: str,
        folder: Path,
        *,
        lease: float | None = LEASE,
        deadline: float | None = DEADLINE,
        at_once: int = 12,
        url: str | None = None,
        env: Mapping[str, str] | None = None,
        clocks: Mapping[str, Path] | None = None,
    ) -> None:
        self.kind, self.rotation, self.folder = kind, rotation, folder
        self._url = url
        self._env = dict(env or {})
        self._clocks = clocks or {}
        self._shortened = {"lease_seconds": lease, "deadline_seconds": deadline}
        self._at_once = at_once
        self._names = iter(range(10**9))
        self._key = generate_key("lab")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.url = self._url or stack.enter_context(fresh_database(self.kind, self.folder))
            self.path = self.folder / "log.jsonl"
            self.log = Log(self.path)
            stack.callback(self.log.close)
            self.reader = stack.enter_context(Reader(self.path))
            self.provider = Witness(self.log, rotation=self.rotation, grace_seconds=30.0)
            self.base = stack.enter_context(self.provider.serve())
            self._provider = {
                "name": "fake",
                "token_endpoint": f"{self.base}/token",
                "authorization_endpoint": f"{self.base}/authorize",
                "rotation": self.rotation,
                "grace_seconds": 30.0 if self.rotation == "grace" else None,
                **self._shortened,
            }
            self._client = {
                "client_id": self.provider.client.client_id,
                "client_secret": next(iter(self.provider.client.secrets)),
                "redirect_uri": "http://127.0.0.1:8000/callback",
                "scopes": ["profile"],
            }
            self.keeper = stack.enter_context(
                TokenKeeper(
                    self.url,
                    keys=Keyring.parse(self._key),
                    registrations=[registration(self._provider, self._client)],
                    audit=True,
                )
            )
            self.keeper.create_schema()
            self.timing = self.keeper.profile(REGISTRATION).timing
            self.provider.row_of = self._in_flight
            self.zygote = stack.enter_context(Zygote(self.folder / "product.log", self._env))
            self.survivors = [
                self.start(name, spill=self.folder / "shared-spill", leeway=0.0, clock=self._clocks.get(name))
                for name in SURVIVORS
            ]
            for worker in self.survivors:
                worker.tell("beat")
            stack.callback(self._end_survivors)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _end_survivors(self) -> None:
        for worker in self.survivors:
            worker.kill()
            worker.control.close()

    def _in_flight(self, member: str) -> dict[str, Any]:
        """What the row says of a claim at this moment, read by the parent: the log's lines are not the only witness."""
        grant = self.keeper._room.store.load(GrantKey(REGISTRATION, member))
        return {} if grant is None else {"row_claim": grant.claim_id, "row_tries": grant.in_flight_tries}

    def start(
        self,
        name: str,
        *,
        spill: Path | None,
        leeway: float,
        member: str | None = None,
        arm: tuple[str, str] | None = None,
        drain: bool = False,
        idle: bool = False,
        clock: Path | None = None,
        **options: Any,
    ) -> Process:
        """Start a worker."""
        return self.zygote.fork(
            {
                "name": name,
                "member": member,
                "log": str(self.path),
                "api": self.base.removeprefix("http://"),
                "database": self.url,
                "keys": self._key,
                "provider": self._provider,
                "client": self._client,
                "arm": arm or (),
                "drain": drain,
                "idle": idle,
                "clock": None if clock is None else str(clock),
                "options": {
                    "leeway": leeway,
                    "cache_seconds": 1.0,
                    "spill_directory": None if spill is None else str(spill),
                    **options,
                },
            }
        )

    def leaks(self) -> list[str]:
        """Where a token or the client's secret stands readable, and must not (I10): rows, spill files, what was logged."""
        canaries = [b"canary-access-", b"canary-refresh-", self._client["client_secret"].encode()]
        places = {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and path != self.path
        }
        with self.keeper.engine.connect() as connection:
            for table in metadata.sorted_tables:
                rows = connection.execute(table.select()).all()
                places[table.name] = b"\n".join(
                    bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                    for row in rows
                    for value in row
                )
        return [
            f"I10: {name} holds {canary!r}" for name, text in places.items() for canary in canaries if canary in text
        ]

    # --- rounds ---

    def run(self, plans: Iterable[Plan]) -> list[str]:
        """Run rounds, many at once; say what was wrong, each with its joined log."""
        together, alone = [], []
        for plan in plans:
            # Who is stopped inside a transaction holds up every writer of a SQLite file, and so every round.
            jams = self.kind == "sqlite" and plan.action == "stop" and plan.point.endswith(":executed")
            (alone if jams else together).append(plan)
        with ThreadPoolExecutor(self._at_once) as threads:
            found = [*threads.map(self._judged, together), *map(self._judged, alone)]
        return [*(text for text in found if text), *self.leaks()]

    def _judged(self, plan: Plan) -> str | None:
        evidence = self.round(plan)
        wrong = judge(evidence)
        if not wrong:
            return None
        return "\n".join(
            [
                f"{self.kind}, {self.rotation}: {plan}",
                *(f"  WRONG: {text}" for text in wrong),
                f"  again: Laboratory({self.kind!r}, {self.rotation!r}, folder).run([{plan!r}])",
                *(f"    {json.dumps(line)}" for line in evidence.lines),
            ]
        )

    def round(self, plan: Plan) -> Evidence:
        """Run one round and return what is known of it; one whose point was not reached did no harm and is made again."""
        for _ in range(ATTEMPTS - 1):
            evidence = self._round(plan)
            if evidence.first("reached"):
                return evidence
        return self._round(plan)

    def _round(self, plan: Plan) -> Evidence:
        number = next(self._names)
        member = f"member-{number}"
        life = 3600.0 if plan.trigger == "refused" else self.timing.lease + self.timing.deadline + 2.0
        folders = {"own": self.folder / f"spill-{number}", "shared": self.folder / "shared-spill", "none": None}
        spill = folders[plan.spill]
        arm = None if plan.point in AT_PROVIDER else (plan.point, plan.action)
        leeway = 0.0 if plan.trigger == "refused" else life * 2
        victim = self.start(f"victim-{number}", spill=spill, leeway=leeway, member=member, arm=arm)
        spare = None
        if plan.action == "kill" and plan.spill == "own":
            spare = self.start(f"again-{number}", spill=spill, leeway=0.0, member=member, idle=True)
        try:
            for worker in (victim, spare):
                if worker is not None and not self.reader.wait(member, first("started", worker=worker.name), PATIENCE):
                    raise TimeoutError(f"the start of {worker.name}")
            initial = self.issue(member, life)
            for worker in self.survivors:
                worker.tell("loop", member=member, every=EVERY)
            for worker in self.survivors:
                if not self.reader.wait(member, first("call", worker=worker.name, outcome="ok"), PATIENCE):
                    raise TimeoutError(f"a call of {worker.name}")
            self._strike(plan, member, initial, victim)
            self._aftermath(plan, member, victim, spare)
        except TimeoutError as error:
            self.log.write("late", member=member, what=str(error))
        finally:
            for worker in self.survivors:
                worker.tell("rest", member=member)
            self._settle(member)
            for worker in (victim, spare):
                if worker is not None:
                    self._end(worker, member)
        return self.evidence(plan, member)

    def issue(self, member: str, life: float) -> str:
        """Give the member a grant; returns its first access token."""
        tokens = self.provider.issue(member, ["profile"], expires_in=life)
        access = str(tokens["access_token"])
        ends = self.provider.ledger.access[access].expires_at
        self.log.write("issued", member=member, access=access, refresh=tokens["refresh_token"], ends=ends)
        self.keeper.save_tokens(REGISTRATION, member, tokens)
        return access

    def _settle(self, member: str) -> None:
        """Wait until the last calls of the others have ended: their renewals, if any, are part of the round."""
        for worker in self.survivors:
            self.reader.wait(member, first("rests", worker=worker.name), 2 * self.timing.lease + PATIENCE)

    def _strike(self, plan: Plan, member: str, initial: str, victim: Process) -> None:
        """Have the victim learn that its token is no good, and wait until it has come to the point."""
        if plan.trigger == "refused":
            self.provider.refuse_first[member] = victim.name
        if plan.point in AT_PROVIDER:
            self.provider.hooks[member] = Hook(plan.point, lambda: self._act_at_provider(plan, member, victim))
        victim.tell("call", member=member)
        marks = [first("reached"), first("claimed", worker=victim.name), first("settled", worker=victim.name)]
        if not self.reader.wait(member, lambda lines: any(mark(lines) for mark in marks), PATIENCE):
            raise TimeoutError("a claim of the victim's")
        if plan.trigger == "refused":
            self.provider.expire(initial)
            self.log.write("expired", member=member)
        self.reader.wait(member, lambda lines: marks[0](lines) or marks[2](lines), PATIENCE)
        if not self.reader.wait(member, marks[0], 0):
            raise TimeoutError(f"the point {plan.point}")

    def _act_at_provider(self, plan: Plan, member: str, victim: Process) -> None:
        self.log.write("reached", member=member, worker=victim.name, point=plan.point, action=plan.action)
        victim.kill()

    def _aftermath(self, plan: Plan, member: str, victim: Process, spare: Process | None) -> None:
        """Do what comes after the fault, and wait until the others are served again."""
        wait = self.reader.wait
        if plan.action == "kill":
            if not wait(member, first("exit", worker=victim.name), PATIENCE):
                raise TimeoutError("the victim's death")
            if spare is not None:  # what a supervisor does: the next process, with the same spill folder
                spare.tell("loop", member=member, every=EVERY)
        elif plan.action == "stop":
            until(lambda: victim.state() == "T", "the victim's stop")
            time.sleep(self.timing.lease + 0.6)  # longer than the lease is the point of it
            self.log.write("continued", member=member, worker=victim.name)
            victim.signal(signal.SIGCONT)
        wait(member, _over, 2 * (self.timing.lease + self.timing.deadline) + PATIENCE)
        if plan.action != "kill" and not wait(member, first("settled", worker=victim.name), PATIENCE):
            raise TimeoutError("the end of the victim's renewal")
        if plan.action != "kill" and not wait(member, first("call", worker=victim.name), PATIENCE):
            raise TimeoutError("the end of the victim's call")
        if spare is not None:
            spare.tell("rest", member=member)
            wait(member, first("rests", worker=spare.name), 2 * self.timing.lease + PATIENCE)

    def _end(self, worker: Process, member: str) -> None:
        worker.tell("exit")
        self.reader.wait(member, first("exit", worker=worker.name), PATIENCE)
        worker.control.close()

    def evidence(self, plan: Plan, member: str) -> Evidence:
        """Everything that is known of a round."""
        row = self.keeper._room.store.load(GrantKey(REGISTRATION, member))
        store = self.keeper._room.store
        now = self.provider.clock()
        final: Line | None = None
        if row is not None:
            refresh = store.open_refresh_token(row, lambda _: None).reveal()
            access = store.open_access_token(row, lambda _: None).reveal()
            final = {
                "status": str(row.status),
                "generation": row.generation,
                "access": access,
                "refresh": refresh,
                "claim": row.claim_id,
                "cause": row.prompt.cause if row.prompt else None,
                "refresh_verdict": self.provider.ledger.refresh_verdict(self.provider.ledger.refresh.get(refresh), now),
            }
        events = [
            {"id": event["id"], "kind": event["kind"], "generation": event["data"].get("generation")}
            for event in self.keeper.events(registration=REGISTRATION, member=member)
        ]
        return Evidence(
            lines=self.reader.of(member),
            row=final,
            events=events,
            rotation=self.rotation,
            lease=self.timing.lease,
            action=plan.action,
            trigger=plan.trigger,
            survivors=SURVIVORS,
            stalls=[line for line in self.reader.of("") if line["event"] == "stalled"],
        )


def _served_anew(lines: list[Line], worker: str) -> bool:
    """Whether a worker was served with new tokens, after the fault."""
    issued, reached = first("issued")(lines), first("reached")(lines)
    return bool(issued and reached) and any(
        line["event"] == "api"
        and line["worker"] == worker
        and line["verdict"] == "ok"
        and line["token"] != issued["access"]
        and line["at"] > reached["at"]
        for line in lines
    )


def _over(lines: list[Line]) -> bool:
    """Whether the others are all served with new tokens, or the member's turn was told to all."""
    return all(
        _served_anew(lines, worker) or first("call", worker=worker, outcome="ReauthenticationRequired")(lines)
        for worker in SURVIVORS
    )
