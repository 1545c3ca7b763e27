"""The weather at the token endpoint: whatever it sends instead of an answer, no grant is lost, and nobody is asked for it."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import left_out
from tests.faults.weather_cases import JUST_AGAIN, MIB, SLOW, answer, bomb, cases, flood, nested
from tests.faults.weather_endpoint import Endpoint, Visit
from tests.faults.weather_stage import MARK, PLAIN, Stage, elsewhere, stage, until
from tests.secrets.lookout import Lookout
from tokenkeeper import (
    ConfigurationError,
    GrantStatus,
    Keyring,
    ReauthenticationRequired,
    TemporarilyUnavailable,
    TokenKeeper,
)
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider
from tokenkeeper.testing.clock import START, TestClock

pytestmark = pytest.mark.campaign

TWINS = ("sync", "async")
ROTATIONS = ("none", "by_use", "grace", "strict")
QUICK = [("sync", "strict", "expired"), ("async", "none", "refused"), ("async", "strict", "aging")]
CAUSES = {"provider_fault", "rate_limited", "unanswered"}


@contextlib.contextmanager
def bad_weather(folder: Path, **knobs) -> Iterator[Stage]:
    """A stage with all cases that end by themselves; at the end no other origin has heard of us."""
    with elsewhere() as others, stage(folder, cases([other.base_url for other in others]), **knobs) as world:
        yield world
        assert [other.log for other in others] == [[], []]


def unlike(found: dict[str, object], wanted: dict[str, object] | object) -> dict[str, object]:
    """What is not as it should be, by case."""
    want = wanted if isinstance(wanted, dict) else dict.fromkeys(found, wanted)
    return {name: (found[name], want[name]) for name in found if found[name] != want[name]}


def failed(world: Stage, results) -> dict[str, TemporarilyUnavailable]:
    """The errors, which are all nobody's turn; where the tokens may be believed a call may have succeeded."""
    errors = {}
    for name, result in results.items():
        if world.cases[name].may_renew and result.error is None:
            continue
        assert isinstance(result.error, TemporarilyUnavailable), f"{name}: {result.error!r} {result.value!r}"
        errors[name] = result.error
    return errors


def statuses(world: Stage) -> dict[str, object]:
    """Each grant's status."""
    return {name: world.sync.grant(name, "ann").status for name in world.cases}


def kinds(*states: str) -> list[object]:
    """The twins and rotations to try with grants in these states; the quick ones, and the rest in the campaign."""
    every = [(twin, rotation, state) for twin in TWINS for rotation in ROTATIONS for state in states]
    return [one if one in QUICK else pytest.param(*one, marks=pytest.mark.campaign) for one in every]


def quiet(world: Stage) -> bool:
    """Whether all grants are active, and nothing but the consents and the provider's trouble was told."""
    assert not unlike(statuses(world), GrantStatus.ACTIVE)
    assert {event["kind"] for event in world.sync.events()} <= {"GrantConnected", "ProviderTrouble"}
    return world.provider.reuses == 0


@pytest.mark.parametrize(("twin", "rotation", "state"), kinds("expired", "refused"))
def test_no_weather_costs_a_grant(tmp_path: Path, twin: str, rotation: str, state: str) -> None:
    """One request, one error that is nobody's turn, silence until the back-off is over; in fair weather all goes on."""
    with bad_weather(tmp_path, twin=twin, rotation=rotation, state=state, raises=True) as world:
        waits = {name: case.waits(rotation) for name, case in world.cases.items()}
        first = failed(world, world.each(world.call))
        renewed = set(world.cases) - set(first)
        assert not unlike(world.requests(), 1)
        for name, error in first.items():
            allowed = {"unanswered", "unreachable"} if world.cases[name].before_reading else CAUSES
            assert error.cause in allowed, f"{name}: {error!r}"
            assert waits[name][0] <= (error.retry_after or 0) <= waits[name][1], f"{name}: {error.retry_after}"
            assert (error.__cause__ is not None) == (state == "refused"), name
        again = failed(world, world.each(world.call, first))
        assert not unlike({name: error.cause for name, error in again.items()}, "backing_off")
        assert not unlike(world.requests(), 1)
        world.clock.advance(110)
        failed(world, world.each(world.call, first))
        assert not unlike(world.requests(), {name: 2 - (name in renewed or waits[name][0] > 110) for name in waits})
        assert quiet(world)
        world.clear_up()
        world.clock.advance(3700)
        after = world.each(world.call)
        assert not unlike({name: result.error or result.value.status_code for name, result in after.items()}, 200)
        assert quiet(world)


@pytest.mark.parametrize(("twin", "rotation", "state"), kinds("aging"))
def test_a_token_that_is_still_valid_goes_on_being_served(tmp_path: Path, twin: str, rotation: str, state: str) -> None:
    """No caller hears of the weather; what is in doubt is held where a reuse kills, as long as the old token works."""
    with bad_weather(tmp_path, twin=twin, rotation=rotation, state=state) as world:

        def served() -> None:
            found = world.each(world.call)
            assert not unlike({name: result.error or result.value.status_code for name, result in found.items()}, 200)
            world.until_idle()

        served()
        assert not unlike(world.requests(), 1)
        served()
        assert not unlike(world.requests(), 1)
        world.clock.advance(5)
        served()
        for name, count in world.requests().items():
            case = world.cases[name]
            held = rotation == "strict" and case.in_doubt
            again = 1 if held or case.may_renew or case.waits(rotation)[0] > 5 else 2
            assert count == again or (case.in_doubt is None and count in (1, 2)), f"{name}: {count}"
        assert quiet(world)
        world.clear_up()
        world.clock.advance(3700)
        served()
        assert quiet(world)
        assert {world.sync.grant(name, "ann").generation for name in world.cases} <= {2, 3}


@pytest.mark.parametrize(
    ("twin", "rotation"),
    [
        ("sync", "grace"),
        *(
            pytest.param(t, r, marks=pytest.mark.campaign)
            for t in TWINS
            for r in ROTATIONS
            if (t, r) != ("sync", "grace")
        ),
    ],
)
def test_an_answer_that_was_lost(tmp_path: Path, twin: str, rotation: str) -> None:
    """Carried out, then spoilt: replayed as the rotation allows; where a reuse kills, held while the old token works."""
    state = "aging" if rotation == "strict" else "expired"
    with elsewhere() as others:
        lost = [
            case
            for case in cases([other.base_url for other in others])
            if case.in_doubt and not case.may_renew and (rotation == "grace" or case.wait == JUST_AGAIN)
        ]
        with stage(tmp_path, lost, twin=twin, rotation=rotation, state=state) as world:
            for endpoint in world.endpoints.values():
                endpoint.carrying_out = True
            results = world.each(world.call)
            world.until_idle()
            assert not unlike(world.requests(), 1)
            if rotation != "strict":
                assert len(failed(world, results)) == len(lost)
                world.clear_up()
                world.clock.advance(2)
                for generation in (2, 3):
                    after = world.each(world.call)
                    found = {name: result.error or result.value.status_code for name, result in after.items()}
                    assert not unlike(found, 200)
                    kept = {name: world.sync.grant(name, "ann") for name in world.cases}
                    assert {(grant.status, grant.generation) for grant in kept.values()} == {("active", generation)}
                    world.clock.advance(1900)
                return
            world.clear_up()
            for _ in range(9):
                world.clock.advance(10)
                results = world.each(world.call)
                world.until_idle()
                found = {name: result.error or result.value.status_code for name, result in results.items()}
                assert not unlike(found, 200)
            assert not unlike(world.requests(), 1)
            world.clock.advance(20)
            results = world.each(world.call)
            assert {result.error.cause for result in results.values()} == {"lost_answer"}
            assert not unlike(world.requests(), 2)


@pytest.mark.parametrize("twin", TWINS)
def test_a_200_that_names_an_error_is_read_as_it_says(tmp_path: Path, twin: str) -> None:
    """Some providers refuse with a 200: the operator's and the member's errors stay theirs; the row and its tokens stay."""
    weather = {error: answer(200, b'{"error": "%s"}' % error.encode()) for error in ("invalid_client", "invalid_grant")}
    with stage(tmp_path, weather, twin=twin, rotation="strict") as world:
        results = world.each(world.call)
        assert isinstance(results["invalid_client"].error, ConfigurationError)
        assert isinstance(results["invalid_grant"].error, ReauthenticationRequired)
        assert world.sync.grant("invalid_client", "ann").status is GrantStatus.ACTIVE
        assert world.sync.grant("invalid_grant", "ann").has_refresh_token
        world.clear_up()
        for name in weather:
            assert world.sync.renew(name, "ann").status is GrantStatus.ACTIVE
        assert world.provider.reuses == 0


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_up_to_an_hour(tmp_path: Path, twin: str, status: int) -> None:
    """Nothing is sent a second before its time, and one request a second after it."""
    wanted = {f"{status}-retry-seconds": 120.0, f"{status}-retry-1e9": 3600.0}
    chosen = [case for case in cases([]) if case.name in wanted]
    with stage(tmp_path, chosen, twin=twin, rotation="strict") as world:
        failed(world, world.each(world.call))
        for name, seconds in wanted.items():
            world.clock.advance(seconds - 1 - (world.clock() - START - 3600))
            assert failed(world, world.each(world.call, [name]))[name].cause == "backing_off"
            assert len(world.visits(name)) == 1
            world.clock.advance(2)
            assert failed(world, world.each(world.call, [name]))[name].cause != "backing_off"
            assert len(world.visits(name)) == 2


# --- time ------------------------------------------------------------------------------------------------------------

SLACK = 0.5
LONG_ONES = [pytest.param(twin, 2.0, marks=pytest.mark.campaign) for twin in TWINS]


@pytest.mark.parametrize(("twin", "seconds"), [("async", 0.8), *LONG_ONES])
def test_the_deadline_holds(tmp_path: Path, twin: str, seconds: float) -> None:
    """A hang or a drip ends at the deadline, for the caller and for the endpoint, and is one request."""
    with stage(tmp_path, SLOW, twin=twin, rotation="strict", deadline=seconds) as world:
        results = world.each(world.call)
        errors = failed(world, results)
        assert not unlike({name: error.cause for name, error in errors.items()}, "unanswered")
        until(lambda: all(visit.left for name in SLOW for visit in world.visits(name)), 5)
        took = {name: (result.seconds, world.visits(name)[0].lasted) for name, result in results.items()}
        assert not {name: two for name, two in took.items() if max(abs(one - seconds) for one in two) > SLACK}
        failed(world, world.each(world.call))
        assert not unlike(world.requests(), 1)
        world.clear_up()
        world.clock.advance(60)
        after = world.each(world.call)
        assert not unlike({name: result.error or result.value.status_code for name, result in after.items()}, 200)
        assert quiet(world)


@pytest.mark.parametrize(("twin", "seconds"), [("sync", 1.0), *LONG_ONES])
def test_a_hanging_token_endpoint_delays_nobody_with_a_valid_token(tmp_path: Path, twin: str, seconds: float) -> None:
    """While the background renewal hangs or drips, calls take their usual time; it ends at the deadline, too."""
    with stage(tmp_path, SLOW, twin=twin, rotation="strict", state="aging", deadline=seconds) as world:
        longest = 0.0
        rounds = 0
        while not all(world.visits(name) for name in SLOW) or rounds < 3:
            found = world.each(world.call)
            assert not unlike({name: result.error or result.value.status_code for name, result in found.items()}, 200)
            longest = max(longest, *(result.seconds for result in found.values()))
            rounds += 1
        assert longest < SLACK
        assert world.keeper._room.view()["renewals"] == len(SLOW), "the renewals ended before the calls did"
        until(lambda: all(visit.left for name in SLOW for visit in world.visits(name)), seconds + 5)
        took = {name: world.visits(name)[0].lasted for name in SLOW}
        assert not {name: one for name, one in took.items() if abs(one - seconds) > SLACK}
        world.until_idle()
        assert not unlike(world.requests(), 1)
        assert quiet(world)


# --- those who wait --------------------------------------------------------------------------------------------------

WAITERS = 20


@pytest.mark.parametrize("state", ["expired", "refused"])
@pytest.mark.parametrize("twin", TWINS)
def test_all_who_wait_share_one_failure(tmp_path: Path, twin: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty wait for one request: each gets an error of its own, chained to its own refusal, and then nothing is sent."""
    all_wait, lock, joined = threading.Event(), threading.Lock(), [0]

    def act(visit: Visit) -> None:
        assert all_wait.wait(20)
        answer(503)(visit)

    with stage(tmp_path, {"slow": act}, twin=twin, rotation="strict", state=state, raises=True, patience=25.0) as world:
        room = world.keeper._room
        join = room.join_renewal

        def joining(job, run):
            future = join(job, run)
            with lock:
                joined[0] += 1
                if joined[0] == WAITERS:
                    all_wait.set()
            return future

        monkeypatch.setattr(room, "join_renewal", joining)
        results = world.at_once([lambda: world.call("slow")] * WAITERS)
        errors = [result.error for result in results]
        assert [type(error) for error in errors] == [TemporarilyUnavailable] * WAITERS
        assert {(error.cause, error.retry_after) for error in errors} == {("provider_fault", errors[0].retry_after)}
        assert len({id(error) for error in errors}) == WAITERS
        assert len({id(error.__traceback__) for error in errors}) == WAITERS
        if state == "refused":
            assert len({id(error.__cause__) for error in errors}) == WAITERS
            assert all(error.response is error.__cause__ for error in errors)
            assert {error.__cause__.response.status_code for error in errors} == {401}
        assert len(world.visits("slow")) == 1
        again = [result.error for result in world.at_once([lambda: world.call("slow")] * WAITERS)]
        assert {error.cause for error in again} == {"backing_off"}
        assert len(world.visits("slow")) == 1
        world.clear_up()
        world.clock.advance(60)
        assert world.does(world.call("slow")).status_code == 200
        assert quiet(world)


# --- secrets ---------------------------------------------------------------------------------------------------------


def telling(name: str) -> bool:
    """Whether a case quotes the request, or fails while it holds tokens."""
    return "quotes" in name or name.startswith(("30", "long", "line", "cut", "duplicate", "reset", "no-http"))


@pytest.mark.parametrize(
    ("twin", "state", "chosen", "mark"),
    [
        ("sync", "refused", "telling", PLAIN),
        pytest.param("async", "expired", "telling", MARK, marks=pytest.mark.campaign),
        pytest.param("sync", "expired", "all", MARK, marks=pytest.mark.campaign),
        pytest.param("async", "refused", "all", PLAIN, marks=pytest.mark.campaign),
        pytest.param("sync", "aging", "all", PLAIN, marks=pytest.mark.campaign),
    ],
)
def test_no_secret_is_told(tmp_path: Path, twin: str, state: str, chosen: str, mark: str) -> None:
    """Whatever comes back, no token and no client secret stands in an error, its frames, a log, an event or a file."""
    lookout = Lookout()
    lookout.plant("the plain mark", PLAIN)
    with elsewhere() as others, lookout.listening():
        every = cases([other.base_url for other in others])
        some = [case for case in every if chosen == "all" or telling(case.name)]
        with stage(tmp_path, some, twin=twin, rotation="strict", state=state, raises=True, mark=mark) as world:
            results = world.each(world.call)
            world.until_idle()
            assert not unlike(world.requests(), 1)
            for visit in world.visits("502-that-quotes"):
                lookout.plant("the form", visit.request.body)
                assert mark.encode() in visit.request.body
            errors = {name: result.error for name, result in results.items() if result.error is not None}
            assert (len(errors) >= len(some) - 1) == (state != "aging")
            for name, error in errors.items():
                lookout.error(name, error)
            for event in world.events:
                lookout.thing(type(event).__name__, event)
            recorded = list(world.sync.events())
            assert any(event["kind"] == "ProviderTrouble" for event in recorded)
            lookout.text("event table", repr(recorded))
        lookout.folder(tmp_path)
        assert [other.log for other in others] == [[], []]
    assert lookout.heard
    assert not lookout.found


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin", TWINS)
def test_a_flood_costs_little_memory(tmp_path: Path, twin: str) -> None:
    """200 MiB, packed into 200 KB or not, cost a process less than 32 MiB at its peak, and no grant."""
    if not Path("/proc/self/clear_refs").exists():
        left_out("a process's peak of memory is read from Linux's /proc")
    assert len(bomb()) < 220_000
    floods = {
        "bomb": answer(200, lambda visit: bomb(), {"Content-Encoding": "gzip"}),
        "flood": flood,
        "headers": lambda visit: visit.send(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 50 * MIB),
        "nested": answer(200, nested(400_000)),
        "long-token": answer(200, lambda visit: b'{"access_token": "' + b"a" * 1_000_000 + b'"}'),
    }
    with Endpoint(FakeProvider(prefix=MARK), {"first": answer(503), **floods}) as endpoint:
        order = {
            "twin": twin,
            "key": generate_key("k1"),
            "database": f"sqlite:///{tmp_path / 'tokens.db'}",
            "endpoints": {name: endpoint.url(name) for name in ("first", *floods)},
        }
        script = Path(__file__).with_name("weather_child.py")
        child = subprocess.run(
            [sys.executable, str(script)],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        told = json.loads(child.stdout)
    assert set(told["said"]) == {"first", *floods}
    assert {said.split()[0] for said in told["said"].values()} == {"TemporarilyUnavailable"}, told
    assert max(told["cost"].values()) < 32 * MIB, told


# --- a provider that refuses everybody -------------------------------------------------------------------------------

MEMBERS = ("ann", "ben", "cid", "dan", "eve")
FAIR = {"acme": answer(503)}


def presented(world: Stage, member: str) -> list[float]:
    """When a member's refresh token was presented."""
    who = world.who("acme", member)
    return [shown.time for shown in world.provider.log if shown.surface == "token" and shown.member == who]


@pytest.mark.parametrize("word", ["invalid", pytest.param("expired", marks=pytest.mark.campaign)])
@pytest.mark.parametrize(
    ("twin", "rounds"),
    [("sync", 30), *(pytest.param(twin, 200, marks=pytest.mark.campaign) for twin in TWINS)],
)
def test_a_provider_that_refuses_every_call(tmp_path: Path, twin: str, rounds: int, word: str) -> None:
    """Five members call for two minutes: a renewal in 30 s each, two are asked before it is clear that it is the provider."""
    with stage(tmp_path, FAIR, twin=twin, rotation="strict", state="refused", members=MEMBERS) as world:
        world.clear_up()
        world.provider.script(word, times=10**6)
        said: dict[str, set[str]] = {}
        known = None
        for number in range(rounds):
            for member in MEMBERS:
                [result] = world.at_once([lambda member=member: world.call("acme", member)])
                said.setdefault(type(result.error).__name__, set()).add(member)
                if result.error.cause == "refuses_everybody":
                    known = number if known is None else known
                elif known is not None and number > known:
                    assert result.error.cause == "renewed_lately", f"{member}: {result.error!r}"
            world.clock.advance(120 / rounds)
        assert known == 0
        assert set(said) <= {"ReauthenticationRequired", "TemporarilyUnavailable"}
        assert len(said["ReauthenticationRequired"]) <= 2, said
        for member in MEMBERS:
            times = presented(world, member)
            assert 1 <= len(times) <= 5
            assert all(later - earlier >= 30 for earlier, later in itertools.pairwise(times)), times
        assert {grant.status for grant in world.sync.grants("acme")} == {GrantStatus.ACTIVE}
        told = [(event["kind"], event["cause"]) for event in world.sync.events()]
        assert told.count(("ProviderTrouble", "refuses_everybody")) == 1
        assert sum(kind == "ReauthenticationNeeded" for kind, _ in told) <= 2
        world.provider.clear_script()
        world.clock.advance(31)
        for member in MEMBERS:
            assert world.does(world.call("acme", member)).status_code == 200
        assert world.provider.reuses == 0
        # A call has succeeded: what is refused now is the member's again.
        world.provider.script(word, times=2)
        world.clock.advance(31)
        [result] = world.at_once([lambda: world.call("acme", "eve")])
        assert isinstance(result.error, ReauthenticationRequired)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        pytest.param(b"<html>401 Unauthorized</html>", marks=pytest.mark.campaign),
        pytest.param(b'{"message": "Unauthorized"}', marks=pytest.mark.campaign),
    ],
    ids=["empty", "html", "json"],
)
@pytest.mark.parametrize("twin", TWINS)
def test_a_provider_that_answers_401_to_everything(tmp_path: Path, twin: str, body: bytes) -> None:
    """The token endpoint refuses, too: it reads as the client's credentials, so it is one pause, and no member is asked."""
    weather = {"acme": answer(401, body)}
    with stage(tmp_path, weather, twin=twin, rotation="strict", state="refused", members=MEMBERS) as world:
        world.provider.script("invalid", times=10**6)
        for _ in range(10):
            for member in MEMBERS:
                [result] = world.at_once([lambda member=member: world.call("acme", member)])
                assert isinstance(result.error, ConfigurationError), repr(result.error)
            world.clock.advance(12)
        assert len(world.visits("acme")) == 1
        assert {(grant.status, grant.prompt) for grant in world.sync.grants("acme")} == {(GrantStatus.ACTIVE, None)}
        assert [event["kind"] for event in world.sync.events()].count("ConfigurationProblem") == 1
        world.provider.clear_script()
        world.clear_up()
        world.clock.advance(301)
        for member in MEMBERS:
            assert world.does(world.call("acme", member)).status_code == 200
        assert world.provider.reuses == 0


# --- a pause ---------------------------------------------------------------------------------------------------------


class Colleague:
    """A worker process (``weather_worker``)."""

    def __init__(self, order: dict[str, object]) -> None:
        script = Path(__file__).with_name("weather_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tell(order)

    def tell(self, order: dict[str, object]) -> None:
        """Say what to do."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def hears(self) -> dict[str, int]:
        """What became of it."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the worker has died"
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.stdout.close()


@pytest.mark.parametrize("together", [False, True], ids=["one-first", "all-at-once"])
def test_a_pause_is_as_quiet_for_three_workers_as_for_one(database_url: str, together: bool) -> None:
    """A wrong secret: one request in five minutes, one event; a corrected secret in one worker ends it for that worker."""
    clock = TestClock()
    provider = FakeProvider(
        clock=clock, rotation="strict", access_lifetime=1800, client_authentication="client_secret_post"
    )
    key = generate_key("k1")
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(provider.serve())
        registration = provider.registration("acme", client_secret="wrong-secret")
        keeper = TokenKeeper(database_url, keys=Keyring.parse(key), registrations=[registration])
        clock.install(keeper)
        stack.enter_context(keeper)
        keeper.create_schema()
        for member in MEMBERS:
            keeper.save_tokens("acme", member, provider.issue(member=member))
        clock.advance(3600)
        order = {"database": database_url, "key": key, "token_endpoint": f"{base}/token", "now": clock()}
        workers = [Colleague({**order, "secret": "wrong-secret"}) for _ in range(3)]
        for worker in workers:
            stack.callback(worker.close)
            assert worker.hears() == {"ready": True}

        def all_call(some: list[Colleague], times: int = 2, **more: object) -> Counter[str]:
            for worker in some:
                worker.tell({"now": clock(), "members": MEMBERS, "times": times, **more})
            return sum((Counter(worker.hears()) for worker in some), Counter())

        def problems() -> int:
            return [event["kind"] for event in keeper.events()].count("ConfigurationProblem")

        all_call(workers if together else workers[:1], times=1)
        begun = provider.token_requests
        assert 1 <= begun <= len(MEMBERS)
        assert problems() == 1
        for probe in range(3):
            clock.advance(1)
            assert all_call(workers) == {"ConfigurationError invalid_client": 3 * 2 * len(MEMBERS)}
            assert provider.token_requests == begun + probe
            clock.advance(250)
            all_call(workers)
            assert provider.token_requests == begun + probe
            clock.advance(80)  # a worker that waits for a claim lets its own clock run ahead by some seconds
            assert all_call(workers) == {"ConfigurationError invalid_client": 3 * 2 * len(MEMBERS)}
            assert provider.token_requests == begun + probe + 1
            assert problems() == 1
        asked = provider.token_requests
        corrected, *others = workers
        renewed = all_call([corrected], secret="secret-1")
        assert renewed == {"generation 2": 2 * len(MEMBERS)}
        assert provider.token_requests == asked + len(MEMBERS)
        assert all_call(others) == {"generation 2": 4 * len(MEMBERS)}
        assert provider.token_requests == asked + len(MEMBERS)
        clock.advance(1801)
        all_call(others)
        all_call([corrected])
        assert all_call(workers) == {"generation 3": 6 * len(MEMBERS)}
        assert provider.token_requests <= asked + 2 * len(MEMBERS) + 1
        assert problems() == 1
        assert {(grant.status, grant.prompt) for grant in keeper.grants("acme")} == {(GrantStatus.ACTIVE, None)}
