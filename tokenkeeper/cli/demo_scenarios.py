"""The demo's scenarios: each brings a refusal about, makes one guarded call, and says what was promised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2

from tokenkeeper.cli.demo_host import REGISTRATION, SCOPE
from tokenkeeper.cli.demo_stage import Facts, Scenario, Scene
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.events import ConfigurationProblem, ProviderTrouble, TokensRenewed
from tokenkeeper.model import GrantStatus, Turn

THREADS = 50
TASKS = 500

SUPPORT_ASKS_FOR = {"x-li-uuid", "x-li-fabric", "x-li-request-id"}


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


_US, _MEMBER, _OPERATOR, _NOBODY = Turn.US, Turn.MEMBER, Turn.OPERATOR, Turn.NOBODY

SCENARIOS = (
    Scenario("expired_renewed", "the access token has expired",
             Facts(401, "expired", _US, "renewed", 2, 1), expired),
    Scenario("expired_without_refresh_token", "it has expired, and there is no refresh token",
             Facts(401, "expired", _MEMBER, "prompted", 1, 0), expired_without_refresh_token),
    Scenario("invalid_adopted", "it is invalid, and the store has a newer one",
             Facts(401, "invalid", _US, "adopted", 2, 0), invalid_adopted),
    Scenario("invalid_renewed", "it is invalid, and nobody knows why",
             Facts(401, "invalid", _US, "renewed", 2, 1), invalid_renewed),
    Scenario("revoked_reconnected", "the member has withdrawn consent",
             Facts(401, "revoked", _MEMBER, "reconnected", 3, 1), revoked),
    Scenario("empty", "a proxy drops the Authorization header",
             Facts(401, "empty", _OPERATOR, "configuration_error", 1, 0), empty),
    Scenario("bad_scheme", "somebody cannot spell Bearer",
             Facts(401, "bad_scheme", _OPERATOR, "configuration_error", 1, 0), bad_scheme),
    Scenario("scope_403", "a scope is missing",
             Facts(403, "insufficient_scope", _MEMBER, "prompted", 1, 0), scope_missing),
    Scenario("quota_429", "the day's quota is used up",
             Facts(429, "rate_limited", _NOBODY, "passed_through", 1, 0), rate_limited),
    Scenario("fault_500", "a service behind LinkedIn's API could not check the token",
             Facts(500, "provider_fault", _NOBODY, "passed_through", 1, 0), server_error),
    Scenario("timeout_504", "LinkedIn's gateway ran out of time",
             Facts(504, "provider_fault", _NOBODY, "passed_through", 1, 0), gateway_timeout),
    Scenario(f"stampede_{THREADS}_threads", f"{THREADS} threads at the moment of expiry",
             Facts(401, "expired", _US, "renewed", 2 * THREADS, 1), stampede_threads),
    Scenario(f"stampede_{TASKS}_tasks", f"{TASKS} tasks at the moment of expiry",
             Facts(None, None, None, "renewed", TASKS, 1), stampede_tasks),
)  # fmt: skip
