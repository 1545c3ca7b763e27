"""Named stopping points in the flow of a renewal, put into a worker process from outside the product.

At the armed point the worker writes ``reached`` to the log and does to itself what the round wants, in that very
moment: SIGKILL, SIGSTOP, or cutting its own database connections. What the product did up to then is in the log too.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy
from sqlalchemy import event

from tests.faults.lab_log import Log
from tokenkeeper import drivers, spill, transport
from tokenkeeper.authorization_server import AuthorizationServer
from tokenkeeper.core import effects
from tokenkeeper.core.token_endpoint import NeverSent, Unanswered
from tokenkeeper.store import engine as store_engine
from tokenkeeper.store.transactions import Store

BEFORE_SENDING = (
    "before:LoadGrant",
    "after:LoadGrant",
    "after:LoadPause",
    "claim:executed",  # the UPDATE has run, its transaction is open
    "claim:committed",  # the database has it, the worker does not know yet
    "after:ClaimGrant",
    "after:OpenRefreshToken",
    "after:SecretInUse",
    "check:before",  # connected; the claim is about to be looked at for the last time
)
SENDING = (
    "check:after",  # the last line before the request is written
    "sent:unprocessed",  # the provider has the request, and will not carry it out
    "sent",  # the provider has the request, and carries it out for nobody
    "answered",  # the provider has carried it out, the answer is not on its way yet
)
AFTERWARDS = (
    "after:Redeem",
    "spill:part",  # the spill file is written and has not got its name yet
    "after:SpillTokens",
    "save:executed",
    "save:committed",
    "after:SaveTokens",
    "before:tell",  # the flow has ended, nobody was told
)
POINTS = BEFORE_SENDING + SENDING + AFTERWARDS
AT_PROVIDER = ("sent:unprocessed", "sent", "answered")
"""Points that the provider sees, and at which the parent acts."""


def in_renewal() -> bool:
    """Whether this is one of the keeper's renewal threads."""
    return threading.current_thread().name == "tokenkeeper-renewal"


class Points:
    """The stopping points of this process: where it is to stop, and what happens there."""

    def __init__(self, log: Log, point: str | None = None, action: str | None = None) -> None:
        self.log = log
        self._armed = point
        self._action = action
        self._here = threading.local()
        self._connections: list[Any] = []
        self._url: sqlalchemy.URL | None = None
        self._next_statement_fails = False

    def at(self, point: str, connection: Any = None) -> None:
        """This is the point of that name; *connection*: the DBAPI connection in the middle of whose work it is."""
        if point != self._armed or not in_renewal():
            return
        if connection is not None and getattr(self._here, "effect", None) is None:
            return  # not a renewal's: others' spilled tokens are stored at the start
        self._armed = None
        self.log.write("reached", point=point, action=self._action)
        match self._action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)  # no line of the product runs after this one
            case "stop":
                # To this very thread: what is sent to the process may be taken by another one, a moment later.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
                self.log.write("woke", point=point)
            case "cut":
                self._cut(connection, committed=point.endswith(":committed"))
            case "hang":
                time.sleep(600)

    # --- cutting the database connections ---

    def _cut(self, connection: Any, *, committed: bool) -> None:
        """Have the server end this process's own connections, and nobody else's."""
        assert self._url is not None
        kind = self._url.get_backend_name()
        if kind == "sqlite":
            self.log.write("cut", connections=len(self._connections))
            if connection is None:
                self._next_statement_fails = True  # there is no connection to cut; closed in use, SQLite crashes
                return
            if not committed:
                connection.rollback()
            raise sqlite3.OperationalError("disk I/O error")
        own = [self._backend_id(one) for one in self._connections]
        engine = sqlalchemy.create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
        with engine.connect() as admin:
            for backend in own:
                self._end(admin, kind, backend)
        self.log.write("cut", backends=own)
        self._connections.clear()
        if committed:
            connection.cursor().execute("SELECT 1")  # the driver's own words for what has happened

    @staticmethod
    def _backend_id(connection: Any) -> int:
        return int(connection.info.backend_pid if hasattr(connection, "info") else connection.thread_id())

    @staticmethod
    def _end(admin: sqlalchemy.Connection, kind: str, backend: int) -> None:
        if kind == "postgresql":
            admin.execute(sqlalchemy.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})
            return
        alive = sqlalchemy.text("SELECT COUNT(*) FROM information_schema.processlist WHERE id = :id")
        try:
            admin.exec_driver_sql(f"KILL CONNECTION {backend}")
        except sqlalchemy.exc.OperationalError:  # gone already
            return
        deadline = time.monotonic() + 5
        while admin.execute(alive, {"id": backend}).scalar() and time.monotonic() < deadline:
            time.sleep(0.005)

    def backends(self) -> list[int]:
        """The server's ids of this process's connections (SQLite: how many)."""
        if self._url is None or self._url.get_backend_name() == "sqlite":
            return []
        return [self._backend_id(one) for one in self._connections]

    def forked(self, log: Log) -> list[int]:
        """Go on in a forked child: forget the parent's connections, as the keeper does, and say which they were."""
        inherited, self.log = self.backends(), log
        self._connections.clear()
        return inherited

    # --- putting them in ---

    def install(self) -> None:
        """Put the points, and the log of what the product does, into this process; before a keeper is made."""
        self._watch_effects()
        self._watch_transport()
        self._watch_spill()
        self._watch_transactions()

    def _watch_effects(self) -> None:
        perform = drivers.SyncDriver.perform
        points = self

        def watched(driver: drivers.SyncDriver, effect: effects.Effect[Any]) -> object:
            if not in_renewal():
                return perform(driver, effect)
            name = type(effect).__name__
            points.at(f"before:{name}")
            began = time.monotonic()
            points._here.effect = effect
            try:
                answer = perform(driver, effect)
            finally:
                points._here.effect = None
            _report(points.log, effect, answer, began)
            points.at(f"after:{name}")
            return answer

        drivers.SyncDriver.perform = watched  # type: ignore[method-assign]
        tell = drivers.SyncDriver.tell

        def telling(driver: drivers.SyncDriver) -> None:
            points.at("before:tell")
            tell(driver)
            if in_renewal():
                points.log.write("settled")

        drivers.SyncDriver.tell = telling  # type: ignore[method-assign]

    def _watch_transport(self) -> None:
        redeem = AuthorizationServer.redeem
        points = self

        def watched(server: Any, token: Any, which: int, deadline: float, confirm: Callable[[], bool]) -> Any:
            claim = points._here.effect.claim

            def confirming() -> bool:
                points.at("check:before")
                about = {"claim": claim.id, "token": token.reveal(), **_about(claim.grant)}
                try:
                    go = confirm()
                except Exception as error:
                    points.log.write("withheld", reason=type(error).__name__, **about)
                    raise
                points.log.write("sending" if go else "withheld", **about)
                points.at("check:after")
                return go

            return redeem(server, token, which, deadline, confirming)

        AuthorizationServer.redeem = watched  # type: ignore[method-assign]

    def _watch_spill(self) -> None:
        write, rename = spill.Spill.write, pathlib.Path.replace
        points = self

        def written(self: spill.Spill, save_id: str, sealed: Any, expires_at: float | None) -> None:
            write(self, save_id, sealed, expires_at)
            points.log.write("spilled", **_sealed(save_id, sealed))

        def renamed(self: pathlib.Path, target: Any) -> pathlib.Path:
            if self.suffix == ".part":
                points.at("spill:part")
            return rename(self, target)

        spill.Spill.write = written  # type: ignore[method-assign]
        pathlib.Path.replace = renamed  # type: ignore[method-assign]

    def _watch_transactions(self) -> None:
        claim, save, make_engine = Store.claim, Store.save_renewal, store_engine.make_engine
        points = self

        def claiming(store: Store, effect: Any, *more: Any, **options: Any) -> Any:
            points._here.transaction = "claim", None
            try:
                return claim(store, effect, *more, **options)
            finally:
                points._here.transaction = None

        def saving(store: Store, sealed: Any, elapsed: float, save_id: str, *more: Any, **options: Any) -> Any:
            about = _sealed(save_id, sealed)
            points._here.transaction = "save", about
            try:
                saved = save(store, sealed, elapsed, save_id, *more, **options)
            finally:
                points._here.transaction = None
            points.log.write("saved" if isinstance(saved, effects.Saved) else "overtaken", **about)
            return saved

        def made(database: Any) -> sqlalchemy.Engine:
            engine = make_engine(database)
            points._url = engine.url
            event.listen(engine, "connect", lambda connection, _record: points._connections.append(connection))
            event.listen(engine, "close", lambda connection, _record: _drop(points._connections, connection))
            event.listen(engine, "after_cursor_execute", executed)
            commit = engine.dialect.do_commit

            def committing(connection: Any) -> None:
                transaction = getattr(points._here, "transaction", None)
                if transaction is not None and getattr(points._here, "broken", None) is not None:
                    error, points._here.broken = points._here.broken, None
                    raise error
                commit(connection)
                if transaction is not None:
                    points.at(f"{transaction[0]}:committed", connection)

            execute = engine.dialect.do_execute

            def executing(*arguments: Any, **options: Any) -> None:
                if points._next_statement_fails:
                    points._next_statement_fails = False
                    raise sqlite3.OperationalError("disk I/O error")
                execute(*arguments, **options)

            engine.dialect.do_commit = committing  # type: ignore[method-assign]
            engine.dialect.do_execute = executing  # type: ignore[method-assign]
            return engine

        def executed(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            transaction = getattr(points._here, "transaction", None)
            if transaction is None or not statement.startswith("UPDATE"):
                return
            name, about = transaction
            if about is not None:
                points.log.write("saving", **about)
            try:
                points.at(f"{name}:executed", connection.connection)
            except sqlite3.OperationalError as error:
                points._here.broken = error  # raised by the commit, where SQLAlchemy expects it

        Store.claim = claiming  # type: ignore[method-assign]
        Store.save_renewal = saving  # type: ignore[method-assign]
        store_engine.make_engine = made


def _drop(connections: list[Any], connection: Any) -> None:
    connections[:] = [one for one in connections if one is not connection]


def name_requests(worker: str) -> None:
    """Have the transport's requests say which worker sends them, so that the provider's log can tell."""
    others = [pair for pair in transport._OUR_HEADERS if pair[0] != "x-worker"]
    transport._OUR_HEADERS = (*others, ("x-worker", worker))  # type: ignore[assignment]


def _sealed(save_id: str, sealed: Any) -> dict[str, Any]:
    """What is known of sealed tokens, which may be another member's than the worker's own: a spill folder is shared."""
    return {"claim": save_id, "member": None, "grant": sealed.grant_id, "generation": sealed.generation}


def _about(grant: effects.StoredGrant) -> dict[str, Any]:
    return {"member": grant.key.member, "grant": grant.id, "generation": grant.generation}


def _report(log: Log, effect: effects.Effect[Any], answer: Any, began: float) -> None:
    """Write what an effect of a renewal came to."""
    match effect:
        case effects.LoadGrant() if answer is not None:
            log.write("loaded", began=began, status=str(answer.status), **_about(answer))
        case effects.ClaimGrant() if answer is not None:
            tries, until = answer.grant.in_flight_tries, answer.grant.claimed_until
            log.write("claimed", claim=answer.id, tries=tries, until=until, began=began, **_about(answer.grant))
        case effects.Redeem(claim):
            outcome = answer.outcome
            kind = type(outcome).__name__
            reason = outcome.reason if isinstance(outcome, NeverSent | Unanswered) else None
            status = getattr(outcome, "status", None)
            log.write("redeemed", claim=claim.id, outcome=kind, reason=reason, status=status, **_about(claim.grant))
        case effects.SaveTokens(claim):
            log.write("save", claim=claim.id, outcome=type(answer).__name__, **_about(claim.grant))
        case effects.ReleaseClaim(claim):
            log.write("released", claim=claim.id, in_doubt=effect.in_doubt, **_about(claim.grant))
        case effects.MarkGrant(grant) if isinstance(answer, effects.Marked):
            log.write("marked", claim=effect.claim and effect.claim.id, cause=effect.cause, **_about(grant))
