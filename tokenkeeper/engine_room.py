"""The one engine room: what drivers need to perform effects, made at first use.

Store and renewals run on sync drivers and one sync transport, in the keeper's own threads. The sync twin uses the
threads for renewals (a caller that is interrupted loses nothing), the async twin for both. Constructing does no I/O and
needs no event loop; after a fork the child starts with none of its parent's connections, threads and waiters.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenkeeper.cache import TokenCache
from tokenkeeper.clock import Clock
from tokenkeeper.core.authorization import CODE_EXCHANGE_DEADLINE
from tokenkeeper.core.effects import Outcome, Saved, Seen
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.recovery import Case
from tokenkeeper.core.renewal import RenewalJob
from tokenkeeper.errors import ConfigurationError, InvalidInput, TemporarilyUnavailable, TokenKeeperError
from tokenkeeper.events import Event, ProviderTrouble
from tokenkeeper.model import GrantKey, Registration, Secret
from tokenkeeper.news import News
from tokenkeeper.providers import resolve
from tokenkeeper.workers import Workers

if TYPE_CHECKING:
    import httpx2
    from sqlalchemy import URL, Engine

    from tokenkeeper.authorization_server import AuthorizationServer
    from tokenkeeper.crypto import Keyring
    from tokenkeeper.spill import Spill
    from tokenkeeper.store.sealed import SealedTokens
    from tokenkeeper.store.transactions import Store
    from tokenkeeper.transport import Transport

logger = logging.getLogger(__name__)

RENEWAL_THREADS = 64
"""Of one registration: a provider that hangs must not hold up the others' renewals."""

KEEPER_THREADS = 16
STORE_THREADS = 4
SUSPICIOUS_MEMBERS = 3
SUSPICION_SECONDS = 300.0
TROUBLE_A_MINUTE = 10
REMEMBERED_NEWS = 10_000
SAID_AGAIN = 60.0

T = TypeVar("T")
Runner = Callable[[RenewalJob], Outcome]


class EngineRoom:
    """Engine, keyring, transport, threads, cache, callbacks, and the renewals under way in this process."""

    def __init__(
        self,
        database: str | Secret | URL | Engine,
        *,
        keys: Keyring | None,
        registrations: Iterable[Registration],
        leeway: float | None,
        patience: float,
        cache_seconds: float,
        cache_size: int,
        spill_directory: str | Path | None,
        audit: bool,
    ) -> None:
        self.database: str | Secret | URL | Engine = database
        self.keys = keys
        self.leeway = leeway
        self.patience = patience
        self.audit = audit
        self.use(Clock())
        self.news = News()
        self.cache = TokenCache(cache_size, cache_seconds)
        self.registrations: dict[str, Registration] = {}
        self.profiles: dict[str, Profile] = {}
        for registration in registrations:
            if registration.name in self.registrations:
                raise InvalidInput(
                    f"Two registrations are called {registration.name!r}. It is the operator's turn: rename one.",
                    cause="registration",
                    fix="Rename one of them; several registrations may share one provider.",
                )
            self.registrations[registration.name] = registration
            self.profiles[registration.name] = resolve(registration)
        self._spill_directory = None if spill_directory is None else Path(spill_directory)
        self.suspects: dict[str, OrderedDict[str, float]] = {}
        """By registration: the members whose renewed tokens were refused lately, and when (monotonic)."""
        self._prepare()
        _rooms.add(self)

    def use(self, clock: Clock, transport: httpx2.BaseTransport | None = None) -> None:
        """Take time, and the network, from elsewhere; before the first use (``tokenkeeper.testing`` does)."""
        self.clock = clock
        self.monotonic = clock.monotonic
        self.inner_transport = transport

    def _prepare(self) -> None:
        """Everything that a forked child must make anew."""
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._store: Store | None = None
        self._transport: Transport | None = None
        self._servers: dict[str, AuthorizationServer] = {}
        self._running: dict[GrantKey, tuple[Future[Outcome], RenewalJob]] = {}
        self._under_way: set[Future[Any]] = set()
        self._timers: set[threading.Timer] = set()
        self._told: OrderedDict[str, None] = OrderedDict()
        self._contradictions: OrderedDict[Seen, int] = OrderedDict()
        self.late: dict[str, float] = {}
        """By claim: when (monotonic) it was last said that its tokens are not stored."""
        self._troubles: dict[str, list[float]] = {}
        self._renewal_workers: dict[str, Workers] = {}
        self.workers = Workers("keeper", KEEPER_THREADS)
        """For all that is no renewal: consents and revocations that are seen through, the host's callbacks, timers."""
        self.store_workers = Workers("store", STORE_THREADS)
        self.closing = threading.Event()
        self.closed = False

    def after_fork(self) -> None:
        """Start anew in a child process, without closing what belongs to the parent."""
        engine, closed = self._engine, self.closing.is_set()
        self._prepare()
        if closed:
            self.closing.set()
            self.closed = True
        self.cache.after_fork()
        self.news.loop = None
        if engine is not None:
            engine.dispose(close=False)

    # --- what is made at first use ---

    @property
    def store(self) -> Store:
        """The store, opened at first use."""
        store = self._store
        return store if store is not None else self._open_store()

    def _open_store(self) -> Store:
        from tokenkeeper.store.transactions import Store  # noqa: PLC0415 - importing tokenkeeper loads no SQLAlchemy

        with self._lock:
            if self._store is None:
                self.refuse_if_closing()
                self._store = Store(
                    self.engine, self.keyring, self.clock, audit=self.audit, shared=self.engine is self.database
                )
                if self.spill is not None:
                    with contextlib.suppress(TemporarilyUnavailable):  # before a claim it is looked into again
                        self.see_through(self.replay_spill)
            return self._store

    @property
    def engine(self) -> Engine:
        """The host's engine, or one of our own, made at first use."""
        from sqlalchemy import Engine  # noqa: PLC0415

        from tokenkeeper.store.engine import make_engine, refuse_memory  # noqa: PLC0415

        with self._lock:
            if self._engine is None:
                if isinstance(self.database, Engine):
                    if self.database.url.get_backend_name() == "sqlite":
                        refuse_memory(self.database.url)
                    self._engine = self.database
                else:
                    self._engine = make_engine(self.database)
            return self._engine

    @contextlib.contextmanager
    def migrating(self) -> Iterator[Engine]:
        """An engine for the migrations: the host's, or one of its own that waits as long as a statement takes."""
        from tokenkeeper.store.engine import make_engine  # noqa: PLC0415

        if self.engine is self.database:
            yield self.engine
            return
        engine = make_engine(self.engine.url, patient=True)
        try:
            yield engine
        finally:
            engine.dispose()

    @property
    def keyring(self) -> Keyring:
        """The keyring; without one given, the environment's."""
        with self._lock:
            if self.keys is None:
                from tokenkeeper.crypto import Keyring  # noqa: PLC0415

                self.keys = Keyring.from_env()
            return self.keys

    @property
    def spill(self) -> Spill | None:
        """The spill folder, if the host named one."""
        if self._spill_directory is None:
            return None
        from tokenkeeper.spill import Spill  # noqa: PLC0415

        return Spill(self._spill_directory)

    def server(self, registration: str) -> AuthorizationServer:
        """The registration's authorization server."""
        with self._lock:
            server = self._servers.get(registration)
            if server is None:
                from tokenkeeper.authorization_server import AuthorizationServer  # noqa: PLC0415
                from tokenkeeper.transport import Transport  # noqa: PLC0415

                if self._transport is None:
                    self._transport = Transport(self.inner_transport)
                server = AuthorizationServer(
                    self.registrations[registration], self.profiles[registration], self._transport, self.clock
                )
                self._servers[registration] = server
            return server

    def registration(self, name: object) -> Registration:
        """Return a registration by name. Raises InvalidInput that names those there are."""
        found = self.registrations.get(name) if isinstance(name, str) else None
        if found is None:
            known = ", ".join(map(repr, self.registrations)) or "none"
            fix = f"Use one of the keeper's registrations ({known}), or add Registration({name!r}, …)."
            raise InvalidInput(
                f"There is no registration {name!r}. It is the operator's turn. {fix}",
                cause="unknown_registration",
                fix=fix,
                registration=name if isinstance(name, str) else None,
            )
        return found

    def case(self, registration: str, member: str, *, retry: bool = True) -> Case:
        """What the core needs to know of a call."""
        found = self.registration(registration)
        return Case(GrantKey(registration, member), found, self.profiles[registration], retry, self.leeway)

    # --- renewals: in one process one a grant ---

    def join_renewal(self, job: RenewalJob, run: Runner) -> tuple[Future[Outcome], RenewalJob]:
        """Return the future of the grant's renewal in this process, and the job that it was started for: perhaps *job*."""
        with self._lock:
            running = self._running.get(job.key)
            if running is not None:
                return running
            self.refuse_if_closing()
            future: Future[Outcome] = Future()
            future.set_running_or_notify_cancel()  # it is not the caller's: who stops waiting does not cancel it
            self._running[job.key] = future, job
            name = job.key.registration
            workers = self._renewal_workers.get(name)
            if workers is None:
                workers = self._renewal_workers[name] = Workers("renewal", RENEWAL_THREADS)
        try:
            self.submit(workers, self._renew, job, run, future)
        except TemporarilyUnavailable as error:
            self._forget_running(job.key, future)
            future.set_exception(error)
            raise
        return future, job

    def submit(self, workers: Workers, function: Callable[..., T], *args: Any) -> Future[T]:
        """Run *function* in one of the keeper's threads. Raises TemporarilyUnavailable where there is none to be had."""
        try:
            return workers.submit(function, *args)
        except RuntimeError as error:
            raise TemporarilyUnavailable(
                f"The system has no thread to give ({error}). It is nobody's turn: try again; nothing was sent.",
                cause="threads",
                retry_after=1.0,
            ) from error

    def see_through(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Run *function* in a thread of the keeper's to its end, whoever stops waiting; ``close`` waits for it, too."""
        with self._lock:  # else a close in between would not know of it
            self.refuse_if_closing()
            future = self.submit(self.workers, function, *args)
            self._under_way.add(future)
        future.add_done_callback(self._seen_through)
        return future

    def _seen_through(self, future: Future[Any]) -> None:
        with self._lock:
            self._under_way.discard(future)

    def _renew(self, job: RenewalJob, run: Runner, future: Future[Outcome]) -> None:
        try:
            outcome = run(job)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            self._forget_running(job.key, future)
            future.set_exception(error)
        else:
            self._forget_running(job.key, future)
            future.set_result(outcome)

    def _forget_running(self, key: GrantKey, future: Future[Outcome]) -> None:
        with self._lock:
            if self._running.get(key, (None, None))[0] is future:
                del self._running[key]

    def settled(self, key: GrantKey) -> None:
        """The renewal's flow has ended: from now on a new one may start (the host's callbacks run meanwhile)."""
        with self._lock:
            self._running.pop(key, None)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Run *function* in a thread of the keeper's after so many seconds, unless the keeper closes before."""

        def due() -> None:
            with self._lock:
                self._timers.discard(timer)
            if not self.closing.is_set():
                self.submit(self.workers, function)

        timer = threading.Timer(seconds, due)
        timer.daemon = True
        with self._lock:
            if self.closing.is_set():
                return
            self._timers.add(timer)
        try:
            timer.start()
        except RuntimeError as error:
            logger.warning("a renewal cannot be tried again by itself (%s)", error)

    # --- news ---

    def is_news(self, event: Event, every: float | None) -> bool:
        """Whether an event that changes no grant should go to the store: not told a moment ago, and not a flood."""
        now = self.monotonic()
        with self._lock:
            if isinstance(event, ProviderTrouble):
                times = self._troubles.setdefault(event.registration, [])
                times[:] = [at for at in times if now - at < 60]
                if len(times) >= TROUBLE_A_MINUTE:
                    return False
                times.append(now)
                return True
            told = f"{event.id}:{int(now // every)}" if every else event.id
            if told in self._told:
                return False
            self._told[told] = None
            while len(self._told) > REMEMBERED_NEWS:
                self._told.popitem(last=False)
            return True

    def is_late(self, claim_id: str) -> bool:
        """Whether to say that a claim's tokens are not stored yet: at first, and then once a minute."""
        now = self.monotonic()
        if claim_id in self.late and now - self.late[claim_id] < SAID_AGAIN:
            return False
        self.late[claim_id] = now
        return True

    def count_contradiction(self, seen: Seen) -> int:
        """Count that a token set was refused and called active; say how often that was."""
        with self._lock:
            times = self._contradictions[seen] = self._contradictions.get(seen, 0) + 1
            while len(self._contradictions) > REMEMBERED_NEWS:
                self._contradictions.popitem(last=False)
            return times

    def count_refusal(self, key: GrantKey) -> bool:
        """Count a member whose renewed token was refused; True: so many that it must be the provider."""
        now = self.monotonic()
        with self._lock:
            members = self.suspects.setdefault(key.registration, OrderedDict())
            members[key.member] = now
            members.move_to_end(key.member)
            while members and now - next(iter(members.values())) > SUSPICION_SECONDS:
                members.popitem(last=False)
            while len(members) > SUSPICIOUS_MEMBERS:
                members.popitem(last=False)
            return len(members) >= SUSPICIOUS_MEMBERS

    def call_succeeded(self, registration: str) -> None:
        """A call succeeded: the provider does not refuse everybody."""
        with self._lock:
            self.suspects.pop(registration, None)

    # --- spilled tokens ---

    def replay_spill(self, grant_id: str | None = None) -> int:
        """Store what was spilled and not stored; say how many. Twice is harmless.

        With *grant_id*, of one grant, before its refresh token is shown again: then what cannot be stored is raised.
        Otherwise it is left where it is; and so is what is newer than its row, unless both are of the same consent.
        """
        spill, replayed = self.spill, 0
        if spill is None:
            return 0
        try:
            spilled = list(spill.read(grant_id))
        except OSError as error:
            if grant_id is None:
                logger.error("the spill folder cannot be read (%s)", error.strerror)  # noqa: TRY400 - as below
                return 0
            raise _unreadable(error) from error
        for save_id, sealed in spilled:
            events: list[Event] = []
            try:
                settled = self._settle(sealed, save_id, events.append)
            except TokenKeeperError as error:
                if grant_id is not None:
                    raise
                logger.error(  # noqa: TRY400 - a traceback's frames may hold a token
                    "the spilled tokens of grant %s cannot be stored yet (%s)", sealed.grant_id, error.cause
                )
                continue
            if not settled:
                logger.error(
                    "the spilled tokens of grant %s are newer than its row, which is of another consent (a restored "
                    "backup?): the file stays in the spill folder",
                    sealed.grant_id,
                )
                continue
            spill.remove(sealed.grant_id, save_id)
            self.news.tell(events)
            replayed += 1
        if replayed:
            logger.warning("stored the tokens of %d grants from the spill folder", replayed)
        return replayed

    def _settle(self, sealed: SealedTokens, save_id: str, tell: Callable[[Event], None]) -> bool:
        """Store spilled tokens, or find that they are nobody's any more; False: their row has fallen behind them."""
        over: int | None = None
        while True:
            saved = self.store.save_renewal(sealed, 0.0, save_id, tell, over)
            row = saved.grant
            if isinstance(saved, Saved) or row is None or row.generation >= sealed.generation:
                return True
            if row.consented_at != sealed.consented_at:
                return False
            over = row.generation

    # --- the end ---

    def refuse_if_closing(self) -> None:
        """Raise if the keeper is closed: no new claims."""
        if self.closing.is_set():
            fix = "Make a new TokenKeeper, or close this one later."
            raise ConfigurationError(f"The keeper is closed. It is the operator's turn. {fix}", cause="closed", fix=fix)

    def close(self) -> None:
        """Drain: no new claims; renewals under way finish, or their tokens stay in the spill. Safe to call twice."""
        with self._lock:
            self.closing.set()
            timers, self._timers = self._timers, set()
            waiting = [*(future for future, _ in self._running.values()), *self._under_way]
            code_exchange = CODE_EXCHANGE_DEADLINE if self._under_way else 0.0
        for timer in timers:
            timer.cancel()
        longest = max((profile.timing.deadline for profile in self.profiles.values()), default=0.0)
        undone = wait(waiting, max(longest, code_exchange) + 1.0).not_done
        if undone:
            logger.critical("closed while %d renewals or consents were under way", len(undone))
        with self._lock:
            transport, self._transport = self._transport, None
            engine, self._engine = self._engine, None
            self.closed = True
            self._store = None
            self._servers.clear()
        if transport is not None:
            transport.close()
        if engine is not None and engine is not self.database:
            engine.dispose()
        self.cache.clear()

    def view(self) -> Mapping[str, Any]:
        """What is under way, for tests and the curious."""
        with self._lock:
            return {"renewals": len(self._running), "cached": len(self.cache)}


def _unreadable(error: OSError) -> TokenKeeperError:
    """A grant's tokens may be in the spill folder, so its refresh token must not be shown before that is known."""
    said = f"The spill folder cannot be read ({error.strerror}), and the grant's tokens may be in it: nothing was sent."
    if isinstance(error, PermissionError):
        fix = "Give this process the right to read and write the spill folder and its files."
        return ConfigurationError(f"{said} It is the operator's turn. {fix}", cause="spill_permission", fix=fix)
    return TemporarilyUnavailable(f"{said} It is nobody's turn: try again.", cause="spill", retry_after=1.0)


_rooms: weakref.WeakSet[EngineRoom] = weakref.WeakSet()


def _after_fork() -> None:
    for room in list(_rooms):
        room.after_fork()


def _at_exit() -> None:
    for room in list(_rooms):
        room.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
