"""A worker process of the laboratory, and the zygote that forks workers.

The zygote has imported everything and holds no keeper, so that a worker costs a fork. It gets a worker's settings (JSON)
and one end of a socket pair on its own socket, forks, and answers with the pid; when a worker ends it writes ``exit``
with the status to the log. Workers die with the zygote, and the zygote with the test. Run as a module, the number of
the zygote's socket is its only argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pymysql

from tests.faults.lab_log import Log
from tests.faults.lab_points import Points, name_requests
from tokenkeeper import Answer, Keyring, Provider, Registration, TokenKeeper, TokenKeeperError

REGISTRATION = "fake"
PR_SET_PDEATHSIG = 1
BEAT = 0.1
DRIVERS = (psycopg, pymysql)
"""Imported by the zygote, so that no worker has to."""


def registration(provider: dict[str, Any], client: dict[str, Any]) -> Registration:
    """The registration that the parent describes in plain values."""
    return Registration(REGISTRATION, provider=Provider(**provider), **client)


class Worker:
    """One worker: a keeper, the calls that it is told to make, and the log of both."""

    def __init__(self, settings: dict[str, Any], control: socket.socket) -> None:
        self.name: str = settings["name"]
        if settings["clock"]:
            os.environ["FAKETIME_TIMESTAMP_FILE"] = settings["clock"]  # libfaketime reads it from now on
        about = {"member": settings["member"]} if settings.get("member") else {}
        self.log = Log(Path(settings["log"]), worker=self.name, pid=os.getpid(), **about)
        self.points = Points(self.log, *settings.get("arm", ()))
        self.points.install()
        name_requests(self.name)
        self._control = control
        self._settings = settings
        self._stops: dict[str, threading.Event] = {}
        self._here = threading.local()
        self._address: str = settings["api"]
        self.keeper = TokenKeeper(
            settings["database"],
            keys=Keyring.parse(settings["keys"]),
            registrations=[registration(settings["provider"], settings["client"])],
            audit=True,
            **settings.get("options", {}),
        )
        self.call = self.keeper.guard(REGISTRATION)(self._api)

    def _api(self, token: Any, *, member: str) -> Answer:
        connection = getattr(self._here, "connection", None)
        if connection is None:
            connection = self._here.connection = http.client.HTTPConnection(self._address, timeout=20)
        self._here.generation = token.generation
        try:
            connection.request("GET", f"/api/{member}", headers={**token.headers, "x-worker": self.name})
            response = connection.getresponse()
            return Answer(response.status, tuple((k.lower(), v) for k, v in response.getheaders()), response.read())
        except OSError:
            self._here.connection = None
            raise

    def call_once(self, member: str) -> None:
        """Call the API for the member, and write what came of it."""
        began = time.monotonic()
        self._here.generation = None
        outcome, cause = "ok", None
        try:
            answer = self.call(member=member)
            if answer.status != 200:
                outcome, cause = "answer", str(answer.status)
        except TokenKeeperError as error:
            outcome, cause = type(error).__name__, error.cause
        except Exception as error:
            outcome, cause = type(error).__name__, str(error)[:200]
        generation = self._here.generation
        self.log.write("call", member=member, began=began, outcome=outcome, cause=cause, generation=generation)

    def _call_on_and_on(self, member: str, every: float, stop: threading.Event) -> None:
        while not stop.is_set():
            self.call_once(member)
            stop.wait(every)
        self.log.write("rests", member=member)

    def _beat(self) -> None:
        """Write down when this process was not run for a while: the machine's doing, which no grant can help."""
        while True:
            began = time.monotonic()
            time.sleep(BEAT)
            over = time.monotonic() - began - BEAT
            if over > BEAT:
                self.log.write("stalled", member="", began=began, seconds=over)

    def serve(self) -> None:
        """Do what the parent says, until it says exit or goes away."""
        if not self._settings["idle"]:
            with contextlib.suppress(TokenKeeperError):
                self.keeper.grant(REGISTRATION, "nobody")  # connects to the database
        self.log.write("started")
        with self._control.makefile("r") as commands:
            for text in commands:
                command = json.loads(text)
                member = command.get("member")
                match command["do"]:
                    case "call":
                        threading.Thread(target=self.call_once, args=(member,), daemon=True).start()
                    case "loop":
                        stop = self._stops[member] = threading.Event()
                        threading.Thread(
                            target=self._call_on_and_on, args=(member, command["every"], stop), daemon=True
                        ).start()
                    case "rest":
                        if member in self._stops:
                            self._stops[member].set()
                    case "beat":
                        threading.Thread(target=self._beat, daemon=True).start()
                    case "clock":
                        self.log.write("clock", epoch=time.time(), database=self.keeper._room.store.now())
                    case "backends":
                        self.log.write("backends", ids=self.points.backends())
                    case "fork":
                        self._fork(command["children"], command["common"], Path(command["until"]))
                    case "exit":
                        return
        os._exit(1)  # the parent is gone

    def _fork(self, children: dict[str, str], common: str, until: Path) -> None:
        """Fork children that go on with this process's keeper, as gunicorn --preload does.

        Each calls for a member of its own and for the *common* one, until the file *until* is there.
        """
        for name, member in children.items():
            if os.fork():
                continue
            status = 1
            try:
                die_with_parent()
                self.name, self.log = name, Log(self.log.path, worker=name, pid=os.getpid())
                self.log.write("inherited", member=member, ids=self.points.forked(self.log))
                name_requests(name)
                self._here = threading.local()
                stop = threading.Event()
                loops = [
                    threading.Thread(target=self._call_on_and_on, args=(whose, 0.1, stop)) for whose in (member, common)
                ]
                for loop in loops:
                    loop.start()
                deadline = time.monotonic() + 60
                while not until.exists() and time.monotonic() < deadline:
                    time.sleep(0.02)
                stop.set()
                for loop in loops:
                    loop.join()
                self.log.write("backends", member=member, ids=self.points.backends())
                status = 0
            finally:
                os._exit(status)


def _exit_on_sigterm(*_: object) -> NoReturn:
    sys.exit(0)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def zygote(wire: socket.socket) -> tuple[dict[str, Any], socket.socket] | None:
    """Fork workers until the parent is gone; returns in each worker, with its settings and its control socket."""
    members: dict[int, tuple[Log, str, str | None]] = {}

    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                log, name, member = members.pop(pid)
                log.write("exit", worker=name, pid=pid, member=member, status=os.waitstatus_to_exitcode(status))
                log.close()

    signal.signal(signal.SIGCHLD, reap)
    while True:
        text, descriptors, _, _ = socket.recv_fds(wire, 65536, 1)
        if not text:
            return None
        settings = json.loads(text)
        log = Log(Path(settings["log"]))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            die_with_parent()
            wire.close()
            return settings, socket.socket(fileno=descriptors[0])
        members[pid] = log, settings["name"], settings.get("member")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.close(descriptors[0])
        wire.send(str(pid).encode())


def main() -> None:
    """Be the zygote; in a forked child, be a worker."""
    die_with_parent()
    wire = socket.socket(fileno=int(sys.argv[1]))
    wire.send(b"ready")
    born = zygote(wire)
    if born is None:
        return
    settings, control = born
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    worker = Worker(settings, control)
    worker.serve()
    if not settings.get("drain"):
        os._exit(0)  # nothing to see in the end of a worker, unless the round is about it


if __name__ == "__main__":
    main()
