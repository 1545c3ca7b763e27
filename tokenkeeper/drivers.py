"""The drivers: two short loops around one ``match``, the only code that performs effects.

A driver runs one flow. ``SyncDriver`` performs everything in its own thread; ``AsyncDriver`` awaits the user's call, the
reading of its answer and all waiting, and hands the rest to a ``SyncDriver`` in the engine room's threads. News of
committed changes is told when the flow has ended: outside every claim and transaction, before the caller goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenkeeper import answers
from tokenkeeper.core.effects import (
    Announce,
    BeginRevocation,
    CallApi,
    ClaimGrant,
    ConsumePending,
    CountContradiction,
    CountRefusal,
    DeleteRevoked,
    Discard,
    Effect,
    EndPause,
    FetchAccount,
    Flow,
    ForgetGrant,
    InProgress,
    Introspect,
    LoadGrant,
    LoadPause,
    MarkGrant,
    Misconfigured,
    NewId,
    OpenAccessToken,
    OpenedRefreshToken,
    OpenedToRevoke,
    OpenPrompt,
    OpenRefreshToken,
    OpenToRevoke,
    OperatorTurn,
    Outcome,
    Pause,
    PauseRegistration,
    RandomText,
    Redeem,
    RedeemCode,
    Redeemed,
    ReleaseClaim,
    RememberSecret,
    Renew,
    Repeatable,
    Reply,
    RevokeToken,
    SaveConsent,
    Saved,
    SavePending,
    SaveTokens,
    SecretInUse,
    Sleep,
    SpillTokens,
    StartRenewal,
    StoredGrant,
    Unsaved,
    Weather,
)
from tokenkeeper.core.renewal import RenewalJob, renew
from tokenkeeper.core.renewal import answers as answers_job
from tokenkeeper.engine_room import EngineRoom
from tokenkeeper.errors import ConfigurationError, TemporarilyUnavailable, TokenKeeperError
from tokenkeeper.events import ConfigurationProblem, Event
from tokenkeeper.model import AccessToken, Answer, GrantKey, GrantStatus, Secret, to_datetime

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONSENT_SECONDS = 30.0
"""So long (seconds after the code was sent) a store that is away is waited for with a consent's tokens."""

CONSENT_RETRY = 0.2

AFTER_BACK_OFF = 0.05
"""A replay comes so much (seconds) after the row's ``retry_at``, which the database's clock decides."""

EXTEND_AFTER = 1.0
"""A claim older than this (seconds) is extended before its request is written; if it was lost, nothing is sent."""


@dataclass(frozen=True, slots=True)
class Call:
    """The user's call: the function with everything but the token, and how to read what it answers."""

    function: Callable[[AccessToken], Any]
    arguments: tuple[tuple[object, ...], Mapping[str, object]] = ((), {})
    mapper: Callable[[Any], object] | None = None
    wants_body: Callable[[int], bool] = lambda status: status >= 400
    errors_in_200: bool = False
    repeatable: bool | None = None

    def subject(self, reply: Reply) -> object:
        """What is read as the answer: the value itself, or what the host's ``answer=`` makes of it."""
        if self.mapper is None:
            return reply.value
        try:
            return answers.from_host(reply.value, self.mapper)
        except TokenKeeperError:
            raise
        except Exception as error:
            if not reply.raised:
                raise
            # The host's own error is the more important one: it passes through.
            logger.warning("answer= of guard failed for a %s (%s)", type(reply.value).__name__, type(error).__name__)
            return None

    def judged(self, subject: object) -> bool:
        """Whether the answer is one to look into: a refusal, or a success that may hide an error."""
        if isinstance(subject, Answer):
            return subject.status >= 400 or self.errors_in_200
        status = answers.status_of(subject)
        return status is not None and (status >= 400 or self.errors_in_200)

    def reply(self, unread: Reply, seen: answers.Exchange | Answer | None) -> Reply:
        """The reply as the core knows it."""
        if isinstance(seen, answers.Exchange):
            return Reply(unread.value, unread.raised, seen.answer, seen.method, seen.url, seen.request_headers)
        return Reply(unread.value, unread.raised, seen)

    def hidden(self, subject: object) -> Answer | None:
        """A success whose JSON body was read already, where the provider hides errors in those; a stream is not touched."""
        status = answers.status_of(subject)
        if status is None or status >= 400:
            return None
        body = answers.already_read_json(subject)
        return None if body is None else Answer(status, (("content-type", "application/json"),), body)

    def read(self, unread: Reply) -> Reply:
        """Read what was returned or raised; it comes inside a reply, because its own repr may show the token."""
        subject = self.subject(unread)
        if not self.judged(subject):
            return unread
        seen = subject if isinstance(subject, Answer) else self.hidden(subject) or self._read_refusal(subject)
        return self.reply(unread, seen)

    def _read_refusal(self, subject: object) -> answers.Exchange | None:
        status = answers.status_of(subject)
        return answers.read(subject, self.wants_body) if status is not None and status >= 400 else None

    async def aread(self, unread: Reply) -> Reply:
        """Do as :meth:`read`, waiting for an async library's body."""
        subject = self.subject(unread)
        if not self.judged(subject):
            return unread
        if isinstance(subject, Answer):
            return self.reply(unread, subject)
        hidden = self.hidden(subject)
        status = answers.status_of(subject)
        if hidden is None and status is not None and status >= 400:
            return self.reply(unread, await answers.aread(subject, self.wants_body))
        return self.reply(unread, hidden)

    def can_repeat(self) -> bool:
        """Whether the call can be made again: no argument is a used-up stream."""
        return answers.repeatable(*self.arguments) if self.repeatable is None else self.repeatable


class SyncDriver:
    """Runs one flow in this thread."""

    def __init__(self, room: EngineRoom, call: Call | None = None) -> None:
        self._room = room
        self._call = call
        self.events: deque[Event] = deque()
        """News of committed changes, told when the flow has ended."""

    def run(self, flow: Flow[T]) -> T:
        """Perform the flow's effects until it returns or raises; then tell the news."""
        try:
            return self._drive(flow)
        finally:
            if self.events:
                self.tell()

    def _drive(self, flow: Flow[T]) -> T:
        answer: object = None
        try:
            while True:
                try:
                    effect = flow.send(answer)
                except StopIteration as finished:
                    result: T = finished.value
                    return result
                answer = self.perform(effect)
        finally:
            flow.close()

    def _note(self, event: Event) -> None:
        self.events.append(event)

    def tell(self) -> None:
        """Run the host's callbacks for what was committed since the last time; each event once, whoever else tells."""
        with contextlib.suppress(IndexError):
            while True:
                self._room.news.tell((self.events.popleft(),))

    def perform(self, effect: Effect[Any]) -> object:  # noqa: C901, PLR0912, PLR0915 - one case an effect
        """Do what the flow asks for, and return the answer."""
        room, tell = self._room, self._note
        match effect:
            case LoadGrant(key):
                return self._load(key)
            case OpenAccessToken(grant):
                return self._open(grant)
            case CallApi(token):
                return self._call_api(token)
            case Renew():
                return self._renew(effect)
            case StartRenewal(key, seen):
                start_renewal(room, dataclasses.replace(job_of(room, Renew(key, seen)), awaited=False))
            case Discard(reply):
                answers.close(reply.value)
            case Repeatable():
                return self._call is not None and self._call.can_repeat()
            case Sleep(seconds, idle):
                room.clock.wait(seconds, room.closing)
                if idle:
                    room.refuse_if_closing()
            case ClaimGrant():
                room.refuse_if_closing()
                room.replay_spill(effect.grant.id)
                return room.store.claim(effect, effect.lease)
            case ReleaseClaim(claim, in_doubt, retry_after, failed):
                room.store.release(claim, in_doubt=in_doubt, retry_after=retry_after, failed=failed)
            case OpenRefreshToken(claim):
                try:
                    return OpenedRefreshToken(room.store.open_refresh_token(claim.grant, tell))
                except ConfigurationError as error:
                    return Misconfigured(error)
            case Redeem():
                return self._redeem(effect)
            case SpillTokens():
                self._spill(effect)
            case SaveTokens():
                return self._save(effect)
            case MarkGrant():
                marked = room.store.mark(effect, tell)
                room.cache.drop(effect.grant.key, room.monotonic())
                return marked
            case OpenPrompt():
                return room.store.open_prompt(effect, tell)
            case Announce(event, every):
                if room.is_news(event, every):
                    self._announce(event, every)
            case LoadPause(registration, probe):
                return self._load_pause(registration, probe=probe)
            case PauseRegistration(registration, cause, fix):
                self._pause(registration, cause, fix)
            case EndPause(registration):
                with contextlib.suppress(TokenKeeperError):  # what was renewed is renewed; a probe ends the pause later
                    room.store.end_pause(registration)
            case SecretInUse(registration):
                return room.server(registration).secret_in_use
            case RememberSecret(registration, secret):
                room.server(registration).secret_in_use = secret
            case Introspect(registration, token, deadline):
                try:
                    return room.server(registration).introspect(token, deadline)
                except ConfigurationError as error:
                    logger.warning("%s cannot be asked what became of a refresh token (%s)", registration, error.cause)
                    return None
            case CountRefusal(key):
                return room.count_refusal(key)
            case CountContradiction(seen):
                return room.count_contradiction(seen)
            case NewId():
                return secrets.token_hex(16)
            case RandomText(size):
                return Secret(secrets.token_urlsafe(size))
            case SavePending():
                return room.store.save_pending(effect)
            case ConsumePending():
                return room.store.consume_pending(effect)
            case RedeemCode(pending, code, deadline, secret):
                return room.server(pending.key.registration).redeem_code(pending, code, secret, deadline)
            case FetchAccount(registration, token, deadline):
                return room.server(registration).account(token, deadline)
            case SaveConsent():
                saved = self._save_consent(effect)
                room.cache.drop(effect.key, room.monotonic())
                return saved
            case ForgetGrant(grant):
                gone = room.store.forget(grant, tell)
                room.cache.drop(grant.key, room.monotonic())
                return gone
            case BeginRevocation(key):
                revoking = room.store.begin_revocation(key)
                room.cache.drop(key, room.monotonic())
                return revoking
            case OpenToRevoke(claim):
                try:
                    return self._open_to_revoke(claim.grant)
                except ConfigurationError as error:
                    return Misconfigured(error)
            case RevokeToken(registration, token, hint, deadline, secret):
                try:
                    return room.server(registration).revoke(token, hint, secret, deadline)
                except ConfigurationError as error:
                    return Redeemed(Misconfigured(error), room.monotonic())
            case DeleteRevoked():
                return room.store.delete_revoked(effect, tell)
            case _:
                raise TypeError(f"no driver performs {type(effect).__name__}")
        return None

    def _load(self, key: GrantKey) -> StoredGrant | None:
        grant = self._room.store.load(key)
        if grant is None or grant.status is not GrantStatus.ACTIVE:
            self._room.cache.drop(key, self._room.monotonic())
        return grant

    def _load_pause(self, registration: str, *, probe: bool) -> Pause | None:
        try:
            return self._room.store.load_pause(registration, self._room.server(registration).credentials, probe=probe)
        except TemporarilyUnavailable:
            if not probe:
                raise
            return None  # under the claim: the first look found none, and to fail here would keep the claim

    def _announce(self, event: Event, every: float | None) -> None:
        try:
            self._room.store.announce(event, self._note, every)
        except TokenKeeperError as error:
            # News that changes no grant: a call that is served, or refused with better words, goes on.
            logger.warning("%s of %s is not recorded (%s)", type(event).__name__, event.registration, error.cause)

    def _open(self, grant: StoredGrant) -> AccessToken:
        profile = self._room.profiles[grant.key.registration]
        token = AccessToken(
            self._room.store.open_access_token(grant, self._note).reveal(),
            grant_id=grant.id,
            generation=grant.generation,
            expires_at=to_datetime(grant.access_expires_at),
            header=profile.header,
            scheme=profile.scheme,
        )
        self._room.cache.put(grant, token, self._room.leeway)
        return token

    def _open_to_revoke(self, grant: StoredGrant) -> OpenedToRevoke:
        store = self._room.store
        if grant.sealed_refresh_token is not None:
            return OpenedToRevoke(store.open_refresh_token(grant, self._note), "refresh_token")
        return OpenedToRevoke(store.open_access_token(grant, self._note), "access_token")

    def _call_api(self, token: AccessToken) -> Reply:
        assert self._call is not None
        try:
            unread = Reply(self._call.function(token))
        except TokenKeeperError:
            raise
        except Exception as error:
            reply = self._call.read(Reply(error, raised=True))
            if reply.answer is None:
                raise
        else:
            refuse_awaitable(unread)
            reply = self._call.read(unread)
        return reply

    def _renew(self, effect: Renew) -> Outcome | InProgress:
        end = self._room.patience
        started = self._room.monotonic()
        job = job_of(self._room, effect)
        while True:
            future, theirs = self._room.join_renewal(job, runner(self._room))
            try:
                outcome = future.result(max(end - (self._room.monotonic() - started), 0.001))
            except TimeoutError:
                return InProgress()
            if theirs is job or answers_job(job, outcome, theirs):
                return outcome

    def _redeem(self, effect: Redeem) -> Redeemed:
        room, claim = self._room, effect.claim

        def confirm() -> bool:
            if room.monotonic() - claim.taken_at <= EXTEND_AFTER:
                return True
            return room.store.extend_claim(claim)

        server = room.server(claim.grant.key.registration)
        try:
            return server.redeem(effect.refresh_token, effect.secret, effect.deadline, confirm)
        except ConfigurationError as error:
            return Redeemed(Misconfigured(error), room.monotonic())

    def _spill(self, effect: SpillTokens) -> None:
        spill, claim = self._room.spill, effect.claim
        if spill is None or spill.holds(claim.grant.id, claim.id):
            return
        sealed = self._room.store.seal(effect.claim.grant, effect.tokens)
        elapsed = self._room.monotonic() - effect.sent_at
        ends = sealed.expires_at
        if ends is None and sealed.expires_in is not None:
            ends = self._room.clock.epoch() + sealed.expires_in - elapsed
        try:
            spill.write(claim.id, sealed, ends)
        except OSError as error:
            if claim.id not in self._room.late:
                logger.error(  # noqa: TRY400 - a traceback's frames may hold a token
                    "new tokens cannot be spilled (%s): they are only in memory until they are saved", error.strerror
                )

    def _save(self, effect: SaveTokens) -> object:
        room, claim = self._room, effect.claim
        elapsed = room.monotonic() - effect.sent_at
        try:
            sealed = room.store.seal(claim.grant, effect.tokens)
            saved = room.store.save_renewal(sealed, elapsed, claim.id, self._note, effect.over)
        except Exception as error:  # whatever a host's engine raises: these tokens are nowhere else
            cause = str(getattr(error, "cause", None) or type(error).__name__)
            if room.closing.is_set() and room.spill is not None and room.spill.holds(claim.grant.id, claim.id):
                logger.warning("closing: the renewed tokens of grant %s stay in the spill folder", claim.grant.id)
                raise
            if room.closed:
                logger.critical("closed before the renewed tokens of grant %s were stored", claim.grant.id)
                raise
            if room.is_late(claim.id):
                logger.error("renewed tokens of grant %s are not stored yet (%s)", claim.grant.id, cause)  # noqa: TRY400
            self._spill(SpillTokens(claim, effect.tokens, effect.sent_at))  # the folder may have been full for a moment
            return Unsaved(cause)
        if room.late.pop(claim.id, None) is not None:
            logger.warning("renewed tokens of grant %s are stored now", claim.grant.id)
        room.cache.drop(claim.grant.key, saved.grant.read_at if saved.grant else room.monotonic())
        # Overtaken tokens may be rescued by another save, and until then they are nowhere else; a file that is left is
        # settled before the grant's next claim.
        if room.spill is not None and (isinstance(saved, Saved) or saved.grant is None):
            room.spill.remove(claim.grant.id, claim.id)
        return saved

    def _save_consent(self, effect: SaveConsent) -> StoredGrant:
        """Store a consent. The tokens of a code exist nowhere else, so a store that is away for a moment is waited for."""
        room = self._room
        while True:
            try:
                return room.store.save_consent(effect, self._note)
            except Exception as error:
                cause = error.cause if isinstance(error, TokenKeeperError) else None
                its_turn = isinstance(error, TokenKeeperError) and not isinstance(error, TemporarilyUnavailable)
                its_turn = (
                    its_turn and cause != "database_read_only"
                )  # a failover: the next connection may be another's
                if its_turn or effect.sent_at is None or room.monotonic() - effect.sent_at > CONSENT_SECONDS:
                    raise
            room.clock.wait(CONSENT_RETRY, room.closing)

    def _pause(self, registration: str, cause: str, fix: str) -> None:
        try:
            event = ConfigurationProblem(
                id=secrets.token_hex(16),
                registration=registration,
                cause=cause,
                fix=fix,
                at=to_datetime(self._room.store.now()),
            )
            self._room.store.pause(event, self._room.server(registration).credentials, cause, fix, self._note)
        except TemporarilyUnavailable as error:  # the claim is given back all the same; the next refusal pauses
            logger.error("the pause of %s cannot be stored (%s)", registration, error.cause)  # noqa: TRY400


class AsyncDriver:
    """Runs one flow in the running event loop; only the user's call, the reading of its answer and waiting are async."""

    def __init__(self, room: EngineRoom, call: Call | None = None) -> None:
        self._room = room
        self._call = call
        self._sync = SyncDriver(room, call)

    async def run(self, flow: Flow[T]) -> T:
        """Perform the flow's effects until it returns or raises; then tell the news."""
        self._room.news.loop = asyncio.get_running_loop()
        try:
            return await self._drive(flow)
        finally:
            if self._sync.events:
                await self._tell()

    async def _tell(self) -> None:
        """Run the host's callbacks, in a thread that no store operation waits for; whoever is cancelled meanwhile."""
        try:
            told = self._room.workers.submit(self._sync.tell)
        except RuntimeError:  # no thread to be had
            self._sync.tell()
        else:
            await asyncio.shield(asyncio.wrap_future(told))

    async def _drive(self, flow: Flow[T]) -> T:
        answer: object = None
        with closing(flow):
            while True:
                try:
                    effect = flow.send(answer)
                except StopIteration as finished:
                    result: T = finished.value
                    return result
                answer = await self._perform(effect)

    async def _perform(self, effect: Effect[Any]) -> object:
        match effect:
            case CallApi(token):
                return await self._call_api(token)
            case Renew():
                return await self._renew(effect)
            case Discard(reply):
                await answers.aclose(reply.value)
                return None
            case Sleep(seconds):
                await self._room.clock.sleep(seconds)
                return None
            case Repeatable() | CountRefusal() | NewId() | OpenAccessToken():
                return self._sync.perform(effect)
        future = self._room.submit(self._room.store_workers, self._sync.perform, effect)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._tell_alone)  # what is being committed is told, though nobody waits for it
            raise

    def _tell_alone(self, _: Future[object]) -> None:
        if self._sync.events:
            self._room.workers.submit(self._sync.tell)

    async def _call_api(self, token: AccessToken) -> Reply:
        assert self._call is not None
        try:
            unread = Reply(await self._call.function(token))
        except TokenKeeperError:
            raise
        except Exception as error:
            reply = await self._call.aread(Reply(error, raised=True))
            if reply.answer is None:
                raise
        else:
            reply = await self._call.aread(unread)
        return reply

    async def _renew(self, effect: Renew) -> Outcome | InProgress:
        job = job_of(self._room, effect)
        end = asyncio.get_running_loop().time() + self._room.patience
        while True:
            future, theirs = self._room.join_renewal(job, runner(self._room))
            left = end - asyncio.get_running_loop().time()
            try:
                outcome = await asyncio.wait_for(asyncio.wrap_future(future), max(left, 0.001))
            except TimeoutError:
                return InProgress()
            if theirs is job or answers_job(job, outcome, theirs):
                return outcome


async def offload(room: EngineRoom, function: Callable[..., T], *args: Any) -> T:
    """Run *function* in the engine room's store threads; what was begun there ends there, whoever is cancelled."""
    return await asyncio.wrap_future(room.submit(room.store_workers, function, *args))


def job_of(room: EngineRoom, effect: Renew) -> RenewalJob:
    """The renewal that an effect asks for."""
    name = effect.key.registration
    return RenewalJob(
        effect.key,
        room.registrations[name],
        room.profiles[name],
        effect.seen,
        effect.refused,
        effect.forced,
        effect.minimum_lifetime,
        room.leeway,
    )


def start_renewal(room: EngineRoom, job: RenewalJob) -> None:
    """Start a renewal that nobody waits for; what it finds is in the store."""
    try:
        future, _ = room.join_renewal(job, runner(room))
    except TokenKeeperError as error:  # closing, or no thread: the token that there is is served all the same
        logger.warning("a background renewal was not started (%s)", error.cause)
    else:
        future.add_done_callback(_note_failure)


def _note_failure(future: Future[Outcome]) -> None:
    error = future.exception()
    if error is not None:
        logger.warning("a background renewal failed: %s", type(error).__name__)


def runner(room: EngineRoom) -> Callable[[RenewalJob], Outcome]:
    """Return what runs a renewal in an engine room's thread."""

    def run(job: RenewalJob) -> Outcome:
        driver = SyncDriver(room)
        try:
            outcome = driver._drive(renew(job))
        except ConfigurationError as error:
            outcome = OperatorTurn(error.cause or "configuration", str(error), error.fix, error=error)
        except TemporarilyUnavailable as error:
            outcome = Weather(error.cause or "store", error.retry_after)
        finally:
            room.settled(job.key)
            driver.tell()
        if isinstance(outcome, Weather) and outcome.follow_up is not None:
            again = dataclasses.replace(job, forced=False)
            room.later(outcome.follow_up + AFTER_BACK_OFF, lambda: start_renewal(room, again))
        return outcome

    return run


def refuse_awaitable(reply: Reply) -> None:
    """See that a guarded function of the sync twin did not return a hidden coroutine. Raises TypeError."""
    if inspect.isawaitable(reply.value):
        close_awaitable(reply.value)
        raise TypeError("a guarded function of a TokenKeeper returned a coroutine: use an AsyncTokenKeeper for it")


def close_awaitable(value: Awaitable[Any]) -> None:
    """Close a coroutine that nobody will await, so that it does not warn."""
    close = getattr(value, "close", None)
    if close is not None:
        close()
