"""The demo's scenarios: each brings a refusal about, makes one guarded call, and says what was promised.

A scenario is played on a :class:`Scene`, which notes what came of it; the promise is compared with the stand-in's own
counts, and what a number cannot say is expected in words.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

import httpx2

from tokenkeeper.cli.demo_host import REGISTRATION, SCOPE, Host
from tokenkeeper.core.redaction import safe_text
from tokenkeeper.errors import ConfigurationError, MemberActionRequired, TokenKeeperError
from tokenkeeper.events import ConfigurationProblem, ProviderTrouble, TokensRenewed
from tokenkeeper.model import Grant, GrantStatus, Turn

THREADS = 50
TASKS = 500
BODY = 200
"""Characters of a refusal's body that are shown."""

SUPPORT_ASKS_FOR = {"x-li-uuid", "x-li-fabric", "x-li-request-id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a scenario promises, and what was seen. The first three are None where nothing was refused."""

    status: int | None = None
    verdict: str | None = None
    turn: str | None = None
    outcome: str | None = None
    api_calls: int = 0
    token_requests: int = 0


@dataclass
class Scene:
    """One scenario under way, with a member of its own."""

    host: Host
    member: str
    before: Grant | None = None
    error: TokenKeeperError | None = None
    answer: httpx2.Response | None = None
    facts: Facts = field(default_factory=Facts)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.provider, self.keeper = self.host.provider, self.host.keeper

    def begin(self) -> None:
        """From here on everything counts."""
        self.before = self.grant
        self.host.answers.clear()
        self.host.news.clear()
        self.host.asked.clear()
        self.provider.reset_counters()

    def expect(self, kept: object, promise: str) -> None:
        """Note a promise that was not kept."""
        if not kept:
            self.broken.append(promise)

    def attempt(self) -> tuple[httpx2.Response | None, TokenKeeperError | None]:
        """Call the guarded function: its response, or our error."""
        try:
            return self.host.profile(member=self.member), None
        except TokenKeeperError as error:
            return None, error

    def call(self) -> None:
        """Make the scenario's call and note what came of it."""
        self.answer, self.error = self.attempt()
        match self.error:
            case None:
                self.note(self.came_of([self.answer]))
            case MemberActionRequired():
                self.note("prompted")
            case ConfigurationError():
                self.note("configuration_error")
            case other:
                self.note(type(other).__name__)

    def came_of(self, answers: Sequence[object]) -> str:
        """What became of calls that returned: passed through, or good after a renewal here or elsewhere."""
        if not all(self.good(answer) for answer in answers):
            return "passed_through"
        return "renewed" if self.provider.token_requests else "adopted"

    def good(self, answer: object) -> bool:
        """Whether an answer is the member's own profile."""
        return isinstance(answer, httpx2.Response) and answer.status_code == 200 and answer.json()["sub"] == self.member

    @property
    def grant(self) -> Grant:
        """The member's grant as it stands."""
        return self.keeper.grant(REGISTRATION, self.member)

    @property
    def refusal(self) -> httpx2.Response | None:
        """The first refusal that the guarded function saw."""
        return next((answer for answer in self.host.answers if answer.status_code >= 400), None)

    @property
    def said(self) -> str | None:
        """What the provider said: status and body, in one line."""
        refusal = self.refusal
        return None if refusal is None else f"{refusal.status_code} {safe_text(refusal.text, BODY)}"

    def note(self, outcome: str) -> None:
        """Take down what was seen up to here; the counts are the stand-in's."""
        refusal = self.refusal
        diagnosis = None if refusal is None else self.keeper.diagnose(REGISTRATION, refusal)
        turn = self.error.turn if self.error else diagnosis.turn if diagnosis else None
        self.facts = Facts(
            status=None if refusal is None else refusal.status_code,
            verdict=None if diagnosis is None else str(diagnosis.verdict),
            turn=None if turn is None else str(turn),
            outcome=outcome,
            api_calls=self.provider.api_calls,
            token_requests=self.provider.token_requests,
        )

    def expect_untouched(self) -> None:
        """Neither the grant nor its member is to be bothered by what the weather or the operator did."""
        self.expect(self.grant == self.before, "the grant is not touched")
        self.expect(not self.host.asked, "the member is not asked to sign in")

    def expect_prompt(self, status: GrantStatus, cause: str) -> None:
        """The member is asked once: in the grant's row, by the callback, in the event table and by the error."""
        grant, asked = self.grant, self.host.asked
        kept = list(self.keeper.events(kind="ReauthenticationNeeded", registration=REGISTRATION, member=self.member))
        prompt = self.error.prompt if isinstance(self.error, MemberActionRequired) else None
        self.expect(grant.status is status, f"the grant is {status}")
        self.expect(self.before and grant.id == self.before.id, "the grant's row is kept")
        self.expect(grant.prompt and grant.prompt.cause == cause, f"the row has a prompt: {cause}")
        self.expect([event.cause for event in asked] == [cause], f"the callback hears of it once: {cause}")
        self.expect([event["id"] for event in kept] == [event.id for event in asked], "the event table has the event")
        self.expect(prompt == grant.prompt, "the error carries the prompt")

    def expect_silence(self) -> None:
        """A dead grant is not hammered, and its member not asked twice."""
        calls = self.provider.api_calls
        _, error = self.attempt()
        self.expect(isinstance(error, MemberActionRequired), "a second call says the same")
        self.expect(self.provider.api_calls == calls, "a second call does not reach the provider")
        self.expect(len(self.host.asked) == 1, "the member is asked once")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario: its stable name, what it is about, what it promises, and how it goes."""

    name: str
    title: str
    promise: Facts
    play: Callable[[Scene], str]
    """Plays it; returns what happened, in words."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a scenario. ``crash`` is the type of an error that no scenario expects."""

    scenario: Scenario
    facts: Facts
    said: str | None
    happened: str
    broken: tuple[str, ...]
    crash: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything was as promised."""
        return not self.broken and self.crash is None

    def public(self) -> dict[str, Any]:
        """The scenario as JSON shows it."""
        return {"name": self.scenario.name} | {one.name: getattr(self.facts, one.name) for one in fields(Facts)}


def perform(scenario: Scenario, host: Host) -> Result:
    """Play a scenario and compare what was seen with what was promised. Never raises for what goes wrong in it."""
    scene = Scene(host, member=scenario.name)
    try:
        happened = scenario.play(scene)
    except Exception as error:  # noqa: BLE001 - the other scenarios have their say, too
        return Result(scenario, Facts(), None, "", tuple(scene.broken), type(error).__name__)
    finally:
        host.proxy = None
        host.provider.clear_script()
        host.provider.release_all()
    for one in fields(Facts):
        seen, promised = getattr(scene.facts, one.name), getattr(scenario.promise, one.name)
        scene.expect(seen == promised, f"{one.name.replace('_', ' ')} is {promised}, not {seen}")
    return Result(scenario, scene.facts, scene.said, happened, tuple(scene.broken))


# --- ours ------------------------------------------------------------------------------------------------------------


def expired(scene: Scene) -> str:
    """The everyday case: renew once, repeat the call."""
    scene.host.connect(scene.member)
    scene.provider.expire(scene.member)
    scene.begin()
    scene.call()
    _expect_renewed(scene)
    return "renewed, and the call repeated: 200"


def expired_without_refresh_token(scene: Scene) -> str:
    """LinkedIn gives refresh tokens to approved partners only: then it is the member's turn."""
    scene.host.connect(scene.member, refresh_token=False)
    scene.provider.expire(scene.member)
    scene.begin()
    scene.call()
    scene.expect_prompt(GrantStatus.NEEDS_REAUTHENTICATION, "expired")
    scene.expect_silence()
    return "nothing can renew it: one prompt is open, and nothing more is sent"


def invalid_adopted(scene: Scene) -> str:
    """This keeper has an old token in memory, another worker on the same database a newer one."""
    old = scene.host.connect(scene.member)
    scene.attempt()  # now this keeper has the old token in memory
    scene.host.worker.renew(REGISTRATION, scene.member)
    scene.provider.forget_access_token(old)
    scene.begin()
    scene.call()
    scene.expect(scene.grant == scene.before, "the grant is as the other worker left it")
    scene.expect(not scene.host.asked, "the member is not asked to sign in")
    return "another worker had renewed it meanwhile: its token was taken from the store, and the call repeated: 200"


def invalid_renewed(scene: Scene) -> str:
    """The store has nothing newer: renew once."""
    scene.provider.forget_access_token(scene.host.connect(scene.member))
    scene.begin()
    scene.call()
    _expect_renewed(scene)
    return "nobody had a newer one: renewed, and the call repeated: 200"


def _expect_renewed(scene: Scene) -> None:
    before, after = scene.before, scene.grant
    renewed = [event for event in scene.host.news if isinstance(event, TokensRenewed)]
    scene.expect(before and after.generation == before.generation + 1, "the grant is one generation on")
    scene.expect(after.status is GrantStatus.ACTIVE, "the grant is active")
    scene.expect(len(renewed) == 1, "the host hears of one renewal")
    scene.expect(not scene.host.asked, "the member is not asked to sign in")


# --- the member's ----------------------------------------------------------------------------------------------------


def revoked(scene: Scene) -> str:
    """Stop calling, keep the row, open one prompt, tell the host; and the way back."""
    scene.host.connect(scene.member)
    scene.attempt()
    scene.provider.revoke(scene.member)
    scene.begin()
    scene.call()
    scene.expect_prompt(GrantStatus.NEEDS_REAUTHENTICATION, "revoked")
    scene.expect_silence()
    _come_back(scene)
    return (
        "tried once more after 3 s (replicas lag), then the host's callback heard whose turn it is; the member signed in "
        "and consented; the same function works again: 200"
    )


def _come_back(scene: Scene) -> None:
    """The member comes: the host mints the URL, the member follows it, the provider sends the member back."""
    keeper, member = scene.keeper, scene.member
    prompt = scene.host.asked[0].prompt if scene.host.asked else None
    authorization = keeper.begin_authorization(REGISTRATION, member, return_to="/inbox", prompt=prompt)
    connection = keeper.finish_authorization(scene.provider.follow(authorization.url, member), member=member)
    answer, _ = scene.attempt()
    if scene.good(answer):
        scene.note("reconnected")
    scene.expect(connection.return_to == "/inbox", "the member is sent back to where they were")
    scene.expect(scene.before and connection.grant.id == scene.before.id, "it is the same grant")
    scene.expect(scene.grant.status is GrantStatus.ACTIVE, "the grant is active again")
    scene.expect(scene.grant.prompt is None, "the prompt is closed")


def scope_missing(scene: Scene) -> str:
    """The member ticked less than the host had asked for."""
    scene.host.connect(scene.member, scopes=["openid"])
    scene.begin()
    scene.call()
    scene.expect_prompt(GrantStatus.ACTIVE, "insufficient_scope")
    prompt = scene.grant.prompt
    scene.expect(prompt and prompt.scopes == (SCOPE,), "the prompt names what is missing, and nothing else")
    return f"the member had granted less than was asked for: the prompt names what is missing, {SCOPE!r}"


# --- the operator's --------------------------------------------------------------------------------------------------


def empty(scene: Scene) -> str:
    """No token reaches LinkedIn."""

    def drop(request: httpx2.Request) -> None:
        del request.headers["Authorization"]

    return _misconfigured(scene, drop)


def bad_scheme(scene: Scene) -> str:
    """The token reaches LinkedIn behind a word that it does not know."""

    def misspell(request: httpx2.Request) -> None:
        request.headers["Authorization"] = request.headers["Authorization"].replace("Bearer", "Bearr")

    return _misconfigured(scene, misspell)


def _misconfigured(scene: Scene, proxy: Callable[[httpx2.Request], None]) -> str:
    scene.host.connect(scene.member)
    scene.host.proxy = proxy
    scene.begin()
    scene.call()
    scene.expect_untouched()
    told = [event for event in scene.host.news if isinstance(event, ConfigurationProblem)]
    fix = scene.error.fix if isinstance(scene.error, ConfigurationError) else ""
    scene.expect(fix, "the error says what to do")
    scene.expect([event.fix for event in told] == [fix], "the host hears of it once")
    scene.host.proxy = None
    answer, _ = scene.attempt()
    scene.expect(scene.good(answer), "with that mended the same token works")
    return f"the operator is told what to do, the grant is not touched: {fix}"


# --- nobody's --------------------------------------------------------------------------------------------------------


def rate_limited(scene: Scene) -> str:
    """A quota: nothing to do with the token."""
    _weather(scene, "rate_limited")
    return "the answer is passed through as it came; the grant is not touched"


def server_error(scene: Scene) -> str:
    """A failed token check in a service behind the API: nothing to do with the token either."""
    _weather(scene, "downstream_token_check")
    _expect_incident(scene)
    return "passed through: it says nothing of the token; an incident record for LinkedIn's support is kept"


def gateway_timeout(scene: Scene) -> str:
    """The gateway gave up."""
    _weather(scene, "gateway_timeout")
    _expect_incident(scene)
    return "passed through; the grant is not touched, an incident record is kept"


def _weather(scene: Scene, name: str) -> None:
    scene.host.connect(scene.member)
    scene.provider.script(name, member=scene.member)
    scene.begin()
    scene.call()
    scene.expect_untouched()
    scene.expect(scene.answer is scene.refusal, "the response is the object that the function returned")


def _expect_incident(scene: Scene) -> None:
    heard = [event for event in scene.host.news if isinstance(event, ProviderTrouble)]
    kept = list(scene.keeper.events(kind="ProviderTrouble", registration=REGISTRATION, member=scene.member))
    incident = heard[0].incident if heard else {}
    scene.expect([event["id"] for event in kept] == [event.id for event in heard], "the event table has the event")
    scene.expect(len(heard) == 1, "the host hears of the trouble once")
    scene.expect(
        incident.get("status") == getattr(scene.refusal, "status_code", None)
        and {name.lower() for name, _ in incident.get("response_headers", ())} >= SUPPORT_ASKS_FOR,
        "the incident record has what LinkedIn's support asks for",
    )


# --- everybody at once -----------------------------------------------------------------------------------------------


def stampede_threads(scene: Scene) -> str:
    """All threads have sent the old token before the first refusal comes back: nobody can learn from another's."""
    scene.host.connect(scene.member)
    scene.attempt()
    scene.begin()
    barrier = threading.Barrier(THREADS, action=lambda: scene.provider.expire(scene.member), timeout=30.0)

    def one(_: int) -> object:
        barrier.wait()
        answer, error = scene.attempt()
        return answer or error

    with ThreadPoolExecutor(THREADS) as threads, scene.provider.hold("api", times=THREADS) as gate:
        calls = threads.map(one, range(THREADS))
        gate.wait_until_held(THREADS, timeout=30.0)
        gate.release()
        answers = list(calls)
    return _expect_one_renewal(scene, answers, "all had been refused: one renewal for all, each call repeated: 200")


def stampede_tasks(scene: Scene) -> str:
    """The token's time is up, there and by the keeper's own clock."""
    scene.host.connect(scene.member, known_expired=True)
    scene.begin()
    answers = scene.host.call_in_tasks(scene.member, TASKS)
    return _expect_one_renewal(scene, answers, "its time was up: one renewal before the calls, for all: 200")


def _expect_one_renewal(scene: Scene, answers: Sequence[object], happened: str) -> str:
    good = sum(scene.good(answer) for answer in answers)
    scene.note(scene.came_of(answers))
    scene.expect(good == len(answers), f"all {len(answers)} calls get the member's profile, not {good}")
    scene.expect(scene.before and scene.grant.generation == scene.before.generation + 1, "it is one generation on")
    scene.expect(not scene.host.asked, "the member is not asked to sign in")
    return happened


# --- all of them -----------------------------------------------------------------------------------------------------


def _promise(
    status: int | None, verdict: str | None, turn: Turn | None, outcome: str, api_calls: int, token_requests: int
) -> Facts:
    return Facts(
        status=status,
        verdict=verdict,
        turn=turn and str(turn),
        outcome=outcome,
        api_calls=api_calls,
        token_requests=token_requests,
    )


_US, _MEMBER, _OPERATOR, _NOBODY = Turn.US, Turn.MEMBER, Turn.OPERATOR, Turn.NOBODY

SCENARIOS = (
    Scenario("expired_renewed", "the access token has expired",
             _promise(401, "expired", _US, "renewed", 2, 1), expired),
    Scenario("expired_without_refresh_token", "it has expired, and there is no refresh token",
             _promise(401, "expired", _MEMBER, "prompted", 1, 0), expired_without_refresh_token),
    Scenario("invalid_adopted", "it is invalid, and the store has a newer one",
             _promise(401, "invalid", _US, "adopted", 2, 0), invalid_adopted),
    Scenario("invalid_renewed", "it is invalid, and nobody knows why",
             _promise(401, "invalid", _US, "renewed", 2, 1), invalid_renewed),
    Scenario("revoked_reconnected", "the member has withdrawn consent",
             _promise(401, "revoked", _MEMBER, "reconnected", 3, 1), revoked),
    Scenario("empty", "a proxy drops the Authorization header",
             _promise(401, "empty", _OPERATOR, "configuration_error", 1, 0), empty),
    Scenario("bad_scheme", "somebody cannot spell Bearer",
             _promise(401, "bad_scheme", _OPERATOR, "configuration_error", 1, 0), bad_scheme),
    Scenario("scope_403", "a scope is missing",
             _promise(403, "insufficient_scope", _MEMBER, "prompted", 1, 0), scope_missing),
    Scenario("quota_429", "the day's quota is used up",
             _promise(429, "rate_limited", _NOBODY, "passed_through", 1, 0), rate_limited),
    Scenario("fault_500", "a service behind LinkedIn's API could not check the token",
             _promise(500, "provider_fault", _NOBODY, "passed_through", 1, 0), server_error),
    Scenario("timeout_504", "LinkedIn's gateway ran out of time",
             _promise(504, "provider_fault", _NOBODY, "passed_through", 1, 0), gateway_timeout),
    Scenario(f"stampede_{THREADS}_threads", f"{THREADS} threads at the moment of expiry",
             _promise(401, "expired", _US, "renewed", 2 * THREADS, 1), stampede_threads),
    Scenario(f"stampede_{TASKS}_tasks", f"{TASKS} tasks at the moment of expiry",
             _promise(None, None, None, "renewed", TASKS, 1), stampede_tasks),
)  # fmt: skip
