"""All interleavings of flows that share a grant: no grant is lost or wrongly marked in any, and every flow ends.

A schedule decides, step by step, which process goes on, stops for ever, or how long all of them stand still. ``walk``
visits every state that some schedule reaches (two schedules that lead to the same state go on as one), and counts the
schedules. At every state the world's invariants are checked (see ``world.World``), and at every end the scenario's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from core.world import (
    EXPIRED,
    KEY,
    LIFE,
    REGISTRATION,
    REVOKED,
    ModelStore,
    Present,
    RestoreBackup,
    Row,
    Server,
    Violation,
    World,
    a_process,
    challenge,
    profile,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenkeeper.core.authorization import connect, forget
from tokenkeeper.core.effects import (
    SECOND,
    Adopted,
    Claim,
    Effect,
    Flow,
    Gone,
    LoadGrant,
    MarkGrant,
    MemberTurn,
    Outcome,
    Renewed,
    Reply,
    Seen,
    Sleep,
    StoredGrant,
    Weather,
)
from tokenkeeper.core.recovery import Case, guarded_call
from tokenkeeper.core.renewal import RenewalJob, renew
from tokenkeeper.errors import ReauthenticationRequired, TemporarilyUnavailable, TokenKeeperError
from tokenkeeper.model import AccessToken, GrantStatus, Rotation

ROTATIONS = [Rotation.NONE, Rotation.BY_USE, Rotation.GRACE, Rotation.STRICT]
LONGEST = 400
"""The most steps that a schedule may have: every flow ends."""

Make = Callable[[], Flow[Any]]


# --- the walk --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """What a flow returned or raised."""

    value: object = None
    error: TokenKeeperError | None = None


class Process:
    """One deterministic flow, as the tree of all answers that it was ever given."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._answers: list[tuple[object, ...]] = []
        self._next: dict[tuple[int, object], int] = {}
        self.at: list[Effect[Any] | Ended] = []
        """By place in the tree: what the flow wants next, or how it ended."""
        self._grow(())

    def _grow(self, answers: tuple[object, ...]) -> int:
        flow = self._make()
        wants: Effect[Any] | Ended
        try:
            wants = next(flow)
            for answer in answers:
                wants = flow.send(answer)
        except StopIteration as finished:
            wants = Ended(finished.value)
        except TokenKeeperError as error:
            wants = Ended(error=error)
        self._answers.append(answers)
        self.at.append(wants)
        return len(self.at) - 1

    def send(self, place: int, answer: object) -> int:
        """Where the flow is after *answer*."""
        after = self._next.get((place, answer))
        if after is None:
            after = self._next[place, answer] = self._grow((*self._answers[place], answer))
        return after


@dataclass
class State:
    """A moment of a schedule."""

    world: World
    places: tuple[int, ...]
    looked: tuple[int, ...]
    """By process: how many writes the store had seen when it last looked at the row."""
    stopped: frozenset[int] = frozenset()
    pauses: int = 0
    """How often everything may still stand still."""
    stops: int = 0
    """How many processes may still stop for ever."""

    def key(self) -> Hashable:
        """All that makes a difference to what may follow."""
        return self.world.state(), self.places, self.looked, self.stopped, self.pauses, self.stops


Move = tuple[str, float]


@dataclass
class Walk:
    """Processes in a world, and what may happen to them."""

    world: World
    makes: dict[str, Make]
    pause: tuple[float, ...] = ()
    """For how many seconds everything may stand still, between any two steps."""
    pauses: int = 0
    may_stop: tuple[str, ...] = ()
    """Which processes may stop for ever, before any step; one of them a schedule."""
    at_end: Callable[[World, dict[str, Ended | None]], None] = lambda world, ends: None
    states: int = 0
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = list(self.makes)
        self.processes = [Process(make) for make in self.makes.values()]
        self._counts: dict[Hashable, int] = {}

    def start(self) -> State:
        """The first moment."""
        many = len(self.processes)
        return State(self.world.copy(), (0,) * many, (-1,) * many, pauses=self.pauses, stops=bool(self.may_stop))

    def wants(self, state: State, number: int) -> Effect[Any] | Ended | None:
        """What a process wants next; None: it has stopped."""
        return None if number in state.stopped else self.processes[number].at[state.places[number]]

    def moves(self, state: State) -> list[Move]:
        """What may happen next."""
        wants = [self.wants(state, number) for number in range(len(self.processes))]
        going = [number for number, want in enumerate(wants) if isinstance(want, Effect)]
        # Looking again at a row that nobody has written is no step worth telling apart: a waiter waits until there is
        # something new, or until nobody else moves.
        awake = [n for n in going if not isinstance(wants[n], Sleep) or state.looked[n] != state.world.store.changes]
        # Between the last look at a claim and the request's first byte there is nothing that any client could do, so no
        # time passes there.
        sending = any(isinstance(want, Present) for want in wants)
        if sending:
            awake = [n for n in awake if not lasts(wants[n])]
        moves: list[Move] = [("step", number) for number in awake or going]
        if going and state.stops:
            moves += [("stop", n) for n in going if self.names[n] in self.may_stop]
        if going and state.pauses and not sending:
            moves += [("pause", seconds) for seconds in self.pause]
        return moves

    def after(self, state: State, move: Move) -> State:
        """The moment after a move."""
        kind, which = move
        world = state.world.copy()
        if kind == "pause":
            world.now += round(which * SECOND)
            nowhere = (-1,) * len(self.processes)
            return replace(state, world=world, looked=nowhere, pauses=state.pauses - 1)
        number = int(which)
        if kind == "stop":
            return replace(state, world=world, stopped=state.stopped | {number}, stops=state.stops - 1)
        effect = self.wants(state, number)
        assert isinstance(effect, Effect)
        if isinstance(effect, Sleep) and state.looked[number] == world.store.changes:
            sleep_on(world, effect)
        looked = state.looked
        if isinstance(effect, LoadGrant):
            looked = (*looked[:number], world.store.changes, *looked[number + 1 :])
        place = self.processes[number].send(state.places[number], world.perform(self.names[number], effect))
        places = (*state.places[:number], place, *state.places[number + 1 :])
        world.check()
        return replace(state, world=world, places=places, looked=looked)

    def ends(self, state: State) -> dict[str, Ended | None]:
        """How the processes ended; None: it was stopped."""
        found = {name: self.wants(state, number) for number, name in enumerate(self.names)}
        return {name: end if isinstance(end, Ended) else None for name, end in found.items()}

    def told(self, state: State, move: Move) -> str:
        """A move in words."""
        kind, which = move
        if kind == "pause":
            return f"all stand still for {which} s"
        name = self.names[int(which)]
        return f"{name}: {type(self.wants(state, int(which))).__name__ if kind == 'step' else 'stops for ever'}"

    def schedules(self) -> int:
        """Walk all schedules; return how many there are."""
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(20 * LONGEST + limit)
        try:
            return self._from(self.start(), [])
        finally:
            sys.setrecursionlimit(limit)

    def _from(self, state: State, path: list[str]) -> int:
        key = state.key()
        if key in self._counts:
            return self._counts[key]
        self.states += 1
        moves = self.moves(state)
        count = 0 if moves else 1
        try:
            if len(path) > LONGEST:
                raise Violation("this schedule does not end")
            if not moves:
                self.world_at_end(state)
        except Violation as violation:
            raise violation_of(path, violation) from violation
        for move in moves:
            path.append(self.told(state, move))
            try:
                after = self.after(state, move)
            except Violation as violation:
                raise violation_of(path, violation) from violation
            count += self._from(after, path)
            path.pop()
        self._counts[key] = count
        return count

    def world_at_end(self, state: State) -> None:
        """What must hold when nobody moves any more."""
        state.world.check()
        self.at_end(state.world, self.ends(state))

    def run(self, choose: Callable[[int], int]) -> dict[str, Ended | None]:
        """Walk one schedule; *choose* is asked for a number below its argument."""
        state, path = self.start(), []
        while moves := self.moves(state):
            move = moves[choose(len(moves))]
            path.append(self.told(state, move))
            try:
                if len(path) > LONGEST:
                    raise Violation("this schedule does not end")
                state = self.after(state, move)
            except Violation as violation:
                raise violation_of(path, violation) from violation
        try:
            self.world_at_end(state)
        except Violation as violation:
            raise violation_of(path, violation) from violation
        return self.ends(state)


def violation_of(path: list[str], violation: Violation) -> Violation:
    """The violation with the schedule that led to it."""
    return Violation("\n".join([str(violation), *path]))


def lasts(want: Effect[Any] | Ended | None) -> bool:
    """Whether this is a sleep in which a claim could age."""
    return isinstance(want, Sleep) and want.seconds > 0.5


def sleep_on(world: World, effect: Sleep) -> None:
    """Nobody moves: time goes on to where something changes, which is a claim's or a back-off's end."""
    row = world.row
    ends = [] if row is None else [end for end in (row.claimed_until, row.retry_at) if end is not None]
    later = [end - world.now for end in ends if end >= world.now]
    if later:
        world.now += max(min(later) + 1 - round(effect.seconds * SECOND), 0)


# --- the processes ---------------------------------------------------------------------------------------------------


def case_of(world: World) -> Case:
    """Whose call it is."""
    return Case(KEY, REGISTRATION, world.profile)


def caller(world: World) -> Make:
    """A process that calls the API for the member."""
    case = case_of(world)
    return lambda: a_process(guarded_call(case), case)


def refused_caller(world: World, said: str = EXPIRED) -> Make:
    """A process whose call with the token of now was refused."""
    case, token = case_of(world), token_of(world)
    world.server.refused |= {token.reveal()}
    return lambda: a_process(guarded_call(case, token, Reply("first", answer=challenge(said))), case)


def token_of(world: World) -> AccessToken:
    """The token that is stored now."""
    row = world.row
    assert row is not None
    return AccessToken(row.access_token, grant_id=row.id, generation=row.generation)


def job(world: World, **more: Any) -> RenewalJob:
    """A renewal of what is stored now."""
    row = world.row
    assert row is not None
    return RenewalJob(KEY, REGISTRATION, world.profile, Seen(row.id, row.generation), **more)


def renewal(world: World, **more: Any) -> Make:
    """A process that renews once."""
    case, what = case_of(world), job(world, **more)
    return lambda: a_process(renew(what), case)


def until_settled(world: World, **more: Any) -> Make:
    """A process that renews, and tries again whenever it is told to, until there is an outcome."""
    case, what = case_of(world), job(world, **more)

    def go_on() -> Flow[Outcome]:
        while True:
            outcome = yield from a_process(renew(what), case)
            if not isinstance(outcome, Weather):
                return outcome
            yield from Sleep(outcome.retry_after or 1.0)

    return go_on


def world_of(
    rotation: Rotation,
    *,
    age: float = LIFE + 1,
    store: type[ModelStore] = ModelStore,
    refused: bool = False,
    **more: Any,
) -> World:
    """A world with one grant, its access token *age* seconds old (by default expired)."""
    world = World(profile(rotation, **more), Server(rotation), store())
    world.connect(age=age)
    if refused:
        row = world.row
        assert row is not None
        world.server.killed |= {row.access_token}
        world.server.refused |= {row.access_token}
    return world


# --- two callers -----------------------------------------------------------------------------------------------------


def served_by_one_renewal(world: World, ends: dict[str, Ended | None]) -> None:
    """All callers got through, with one presentation of the refresh token."""
    world.check_end()
    for name, end in ends.items():
        if end is None or end.error is not None:
            raise Violation(f"{name} was not served: {end!r}")
    if len(world.presentations()) != 1:
        raise Violation(f"{len(world.presentations())} presentations of one refresh token")
    row = world.row
    if row is None or (row.generation, row.access_token, row.status) != (2, "access-1.2", GrantStatus.ACTIVE):
        raise Violation(f"the renewed tokens are not what is stored: {row!r}")
    if row.claim_id is not None or row.in_flight_since is not None:
        raise Violation("a claim or a mark was left behind")


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("how", ["expired", "refused", "both"])
def test_two_callers_share_an_expired_grant(rotation: Rotation, how: str) -> None:
    """In every schedule the refresh token is presented once, and both callers get through with the new token."""
    world = world_of(rotation, age=10.0 if how == "refused" else LIFE + 1, refused=how == "refused")
    first = refused_caller(world) if how != "expired" else caller(world)
    second = caller(world) if how != "refused" else refused_caller(world, REVOKED)
    walk = Walk(world, {"one": first, "two": second}, at_end=served_by_one_renewal)
    assert walk.schedules() > 500


# --- a renewal, and something else that happens to its grant ---------------------------------------------------------


def standing(world: World) -> Row:
    """The grant's row, which must be there and active, with nothing in flight and no prompt."""
    row = world.row
    if row is None or row.status is not GrantStatus.ACTIVE or row.prompt is not None:
        raise Violation(f"the grant does not stand: {row!r}")
    if row.claim_id is not None or row.in_flight_since is not None:
        raise Violation("a claim or a mark was left behind")
    return row


def value_of(ends: dict[str, Ended | None], name: str) -> object:
    """What a process returned; it must not have raised."""
    end = ends[name]
    if end is None or end.error is not None:
        raise Violation(f"{name} did not return: {end!r}")
    return end.value


def one_of(found: object, *kinds: type) -> None:
    """The outcome must be one of these."""
    if not isinstance(found, kinds):
        raise Violation(f"unexpected outcome: {found!r}")


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_renewal_and_a_member_who_revoked(rotation: Rotation) -> None:
    """The member revoked at the provider: one mark, one prompt, one piece of news, whoever finds out first."""
    world = world_of(rotation, age=LIFE - 100, revocation="grant")
    world.server.dead |= {1}

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        row = world.row
        if row is None or row.status is not GrantStatus.NEEDS_REAUTHENTICATION or row.refresh_token is None:
            raise Violation(f"the grant is not marked, or its refresh token is gone: {row!r}")
        news = [kind for kind, _ in world.store.events if kind == "ReauthenticationNeeded"]
        if len(news) != 1:
            raise Violation(f"{len(news)} pieces of news")
        one_of(value_of(ends, "renewal"), MemberTurn)
        caller_end = ends["caller"]
        if caller_end is None or not isinstance(caller_end.error, ReauthenticationRequired):
            raise Violation(f"the caller was not told: {caller_end!r}")
        if len(world.presentations()) > 1:
            raise Violation("a dead refresh token was presented twice")

    walk = Walk(world, {"renewal": renewal(world), "caller": refused_caller(world, REVOKED)}, at_end=at_end)
    assert walk.schedules() > 100


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("means", ["grant", "access_token"])
def test_a_renewal_and_a_refusal_that_it_caused(rotation: Rotation, means: str) -> None:
    """A provider that kills the old access token at each renewal calls it revoked: that refusal marks nobody."""
    world = world_of(rotation, age=LIFE - 100, revocation=means)
    world.server.kills_access = True

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        world.check_end()
        if standing(world).generation != 2 or len(world.presentations()) != 1:
            raise Violation("the refresh token was not presented once")
        value_of(ends, "caller")

    def late(case: Case, token: AccessToken) -> Flow[object]:
        # The call was under way when the renewal killed its token.
        return (yield from guarded_call(case, token))

    case, token = case_of(world), token_of(world)
    makes: dict[str, Make] = {"renewal": renewal(world), "caller": lambda: a_process(late(case, token), case)}
    # Two flows of some ten steps: a waiter only looks at a claim that holds, so there is little to tell apart.
    assert Walk(world, makes, at_end=at_end).schedules() > 10


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_renewal_and_a_revoked_that_is_not_true(rotation: Rotation) -> None:
    """Called revoked while a renewal is in flight: the renewal's outcome comes first. Marked is only what nobody renews."""
    world = world_of(rotation, age=LIFE - 100, revocation="grant")
    world.slandered = True

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        row = world.row
        assert row is not None
        if row.status is GrantStatus.ACTIVE:
            served_by_one_renewal(world, {"caller": ends["caller"]})
        elif world.presentations():
            raise Violation("marked, although a renewal was under way")

    walk = Walk(world, {"renewal": renewal(world), "caller": refused_caller(world, REVOKED)}, at_end=at_end)
    assert walk.schedules() > 100


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_renewal_and_a_member_who_is_forgotten(rotation: Rotation, comes_back: bool) -> None:
    """A renewal never brings a forgotten grant back, and never touches the next one of the same member."""
    world = world_of(rotation)
    case = case_of(world)
    next_tokens = world.server.new_family(world.now)

    def other() -> Flow[object]:
        yield from forget(case)
        if comes_back:
            yield from connect(case, next_tokens, keep_refresh_token=False)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        world.check_end(lossless=False)
        if not comes_back:
            one_of(value_of(ends, "renewal"), Gone, Renewed)
            if world.row is not None:
                raise Violation("a forgotten grant came back")
        else:
            if (standing(world).access_token, standing(world).generation) != ("access-2.1", 1):
                raise Violation(f"the next grant was touched: {world.row!r}")

    walk = Walk(world, {"renewal": renewal(world), "other": lambda: a_process(other(), case)}, at_end=at_end)
    assert walk.schedules() > 10


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize(("who", "kills"), [("renewal", False), ("renewal", True), ("caller", True)])
def test_a_renewal_and_a_new_consent(rotation: Rotation, who: str, kills: bool) -> None:
    """The newest consent wins in every schedule: no renewal's tokens overwrite it, no refusal of the old one marks it."""
    world = world_of(rotation, revocation="grant")
    case = case_of(world)
    tokens = world.server.new_family(world.now)
    if kills:
        world.server.dead |= {1}

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        world.check_end()
        if standing(world).access_token != "access-2.1":
            raise Violation(f"the newest consent is not what is stored: {world.row!r}")
        end = ends[who]
        assert end is not None
        if who == "renewal":
            one_of(end.value, Renewed, Adopted, *([MemberTurn] if kills else []))
        elif end.error is not None:
            # Told between the mark and the consent it was true; told just as the consent came, it is the weather.
            one_of(end.error, ReauthenticationRequired, TemporarilyUnavailable)

    makes: dict[str, Make] = {
        who: renewal(world) if who == "renewal" else refused_caller(world, REVOKED),
        "consent": lambda: a_process(connect(case, tokens, keep_refresh_token=False), case),
    }
    lapse = world.profile.timing.lease + 1
    assert Walk(world, makes, pause=(lapse,), pauses=1, at_end=at_end).schedules() > 20


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_renewal_and_saved_tokens_that_keep_the_refresh_token(rotation: Rotation) -> None:
    """``save_tokens(keep_refresh_token=True)`` keeps a refresh token that is being rotated: its successor is not dropped."""
    world = world_of(rotation)
    case = case_of(world)
    tokens = world.server.another_access_token(1, world.now)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        world.check_end()
        row = standing(world)
        if row.access_token not in ("access-1.2", "access-1.3"):
            raise Violation(f"an old access token is stored: {row!r}")
        renewed = [each for each in world.presentations() if each.successor]
        if world.server.refresh[row.refresh_token or ""].at is not None and rotation in (
            Rotation.STRICT,
            Rotation.GRACE,
        ):
            raise Violation("the refresh token that is stored is a spent one")
        if len(renewed) > 1:
            raise Violation("renewed twice")

    makes: dict[str, Make] = {
        "renewal": renewal(world),
        "save": lambda: a_process(connect(case, tokens, keep_refresh_token=True), case),
    }
    lapse = world.profile.timing.lease + 1
    assert Walk(world, makes, pause=(lapse,), pauses=1, at_end=at_end).schedules() > 100


def backup_and_renewal(store: type[ModelStore], *, reconnects: bool) -> Walk:
    """A renewal of the third generation, while the database is set back to the first."""
    world = world_of(Rotation.STRICT, store=store)
    backup = world.row
    assert backup is not None
    case = case_of(world)
    first = Process(until_settled(world))
    place, alone = 0, world.copy()
    while isinstance(effect := first.at[place], Effect):
        place = first.send(place, alone.perform("setup", effect))
    alone.now += round((LIFE + 1) * SECOND)
    tokens = alone.server.new_family(alone.now)

    def others() -> Flow[None]:
        yield from RestoreBackup(backup)
        if reconnects:
            yield from connect(case, tokens, keep_refresh_token=False)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        row = world.row
        assert row is not None
        if reconnects:
            # The newest consent stands, though it has the number of what was there before; or what renewed it, perhaps.
            if world.server.access[row.access_token].family != 2:
                raise Violation(f"the newest consent is not what is stored: {row!r}")
            return
        brought = [each for each in world.presentations("refresh-1.2") if each.successor]
        saved_before = row.access_token == backup.access_token
        if brought and not saved_before and (row.access_token, row.generation) != ("access-1.3", 3):
            raise Violation(f"a successor was dropped: {row!r}")
        if row.access_token == "access-1.3" and standing(world).refresh_token != "refresh-1.3":
            raise Violation(f"not healed: {row!r}")
        if saved_before and "access-1.3" in world.dropped:
            raise Violation("the only copy was dropped")

    return Walk(alone, {"renewal": renewal(alone), "backup": others}, at_end=at_end)


@pytest.mark.parametrize("reconnects", [False, True])
def test_a_renewal_and_a_backup_that_is_restored(reconnects: bool) -> None:
    """The row falls behind its claim: what the renewal brought goes over it, unless the member has consented anew."""
    assert backup_and_renewal(ModelStore, reconnects=reconnects).schedules() > 5


# --- holders that stand still, and holders that stop -----------------------------------------------------------------


def stood_still_after_sending(world: World) -> bool:
    """Whether a refresh token was presented again when its first presentation had brought a token that nobody had stored.

    Where a reuse kills the family, this is the loss that no client can prevent: the sender stood still for longer than
    its lease (or for ever) between the provider's answer and the store.
    """
    before: dict[str, str] = {}
    for each in world.presentations():
        if each.token in before:
            return True
        if each.successor:
            before[each.token] = each.successor
    return False


def settled_well(world: World, ends: dict[str, Ended | None]) -> None:
    """The grant stands with renewed tokens, or the one loss happened that nobody can prevent, and was told."""
    strict = world.profile.rotation is Rotation.STRICT
    lost = strict and stood_still_after_sending(world)
    world.check_end(lossless=not lost)
    row = world.row
    assert row is not None
    if lost:
        if (
            row.status is GrantStatus.NEEDS_REAUTHENTICATION
            and row.prompt is not None
            and row.prompt.cause != "lost_answer"
        ):
            raise Violation(f"the member is not told the truth: {row.prompt}")
        return
    if standing(world).generation < 2:
        raise Violation("the grant was not renewed")
    for name, end in ends.items():
        if end is not None:
            # Who asks once may be told to come again; who goes on asking is served.
            one_of(value_of(ends, name), Renewed, Adopted, *([Weather] if name == "once" else []))


@pytest.mark.parametrize(
    ("rotation", "refused"), [*((rotation, False) for rotation in ROTATIONS), (Rotation.STRICT, True)]
)
def test_a_lapsed_claim_is_taken_over(rotation: Rotation, refused: bool) -> None:
    """A holder that stands still between any two effects, for longer than its lease or not: it notices at the last look."""
    world = world_of(rotation, age=10.0 if refused else LIFE + 1, refused=refused)
    pauses = (2.0, world.profile.timing.lease + 1)
    makes = {name: until_settled(world, refused=refused) for name in ("holder", "other")}
    walk = Walk(world, makes, pause=pauses, pauses=1, at_end=settled_well)
    assert walk.schedules() > 100_000


def test_a_claim_is_taken_over_twice() -> None:
    """Everything stands still twice: a holder whose claim was taken over may take it back."""
    world = world_of(Rotation.STRICT)
    lease = world.profile.timing.lease
    makes = {name: renewal(world) for name in ("holder", "other")}
    walk = Walk(world, makes, pause=(lease + 1,), pauses=2, at_end=settled_well)
    assert walk.schedules() > 100_000


def late_save(store: type[ModelStore], seen: list[str]) -> Walk:
    """A renewal that stands still between the provider's answer and the store, while another one is refused and marks."""
    world = world_of(Rotation.STRICT, store=store)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        settled_well(world, ends)
        if any(kind == "ReauthenticationNeeded" for kind, _ in world.store.events):
            seen.append("marked")
            if standing(world).access_token != "access-1.2":
                raise Violation("the late tokens are not what is stored")

    return Walk(world, {"late": renewal(world), "other": renewal(world)}, pause=(91.0,), pauses=1, at_end=at_end)


def test_a_late_save_wins_over_a_mark() -> None:
    """A late answer holds the only copy: stored after a mark, it makes the grant active and closes the prompt."""
    seen: list[str] = []
    late_save(ModelStore, seen).schedules()
    assert seen


@pytest.mark.parametrize("rotation", [*ROTATIONS, Rotation.UNKNOWN])
@pytest.mark.parametrize("how", ["expired", "refused", "aging", "forced"])
def test_a_renewal_that_stops_at_any_effect(rotation: Rotation, how: str) -> None:
    """Whoever stops wherever, the others settle it: renewed, or, where a strict successor was lost, told as that."""
    age = {"expired": LIFE + 1, "refused": 10.0, "aging": LIFE - 100, "forced": 10.0}[how]
    world = world_of(rotation, age=age, refused=how == "refused")
    if rotation is Rotation.UNKNOWN:
        world.server.rotation = Rotation.GRACE
        world.server.grace = 30.0
    more = {"refused": how == "refused"}
    makes = {
        "stops": renewal(world, forced=how == "forced", **more),
        "other": until_settled(world, **more) if how != "forced" else keeps_calling(world),
    }

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        if how == "forced" and not world.presentations():
            return
        if how != "forced":
            settled_well(world, ends)
            return
        row = world.row
        assert row is not None
        if rotation is Rotation.STRICT:
            return
        world.check_end()
        spent = world.server.refresh[row.refresh_token or ""].at
        if rotation is Rotation.GRACE and spent is not None:
            raise Violation("the grace will end with the successor lost, and nobody has asked for it again")

    walk = Walk(world, makes, may_stop=("stops",), at_end=at_end)
    assert walk.schedules() > 100


def keeps_calling(world: World) -> Make:
    """A process that calls now and then, for a minute."""
    case = case_of(world)

    def calls() -> Flow[Reply | None]:
        reply = None
        for _ in range(4):
            reply = yield from guarded_call(case)
            yield from Sleep(13.0)
        return reply

    return lambda: a_process(calls(), case)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_the_store_is_down_when_new_tokens_are_saved(rotation: Rotation) -> None:
    """New tokens that cannot be stored at once are stored later, and nobody presents the old token meanwhile."""
    world = world_of(rotation)
    world.unsaved = 3
    walk = Walk(world, {"one": renewal(world), "two": renewal(world)}, at_end=served_by_one_renewal)
    assert walk.schedules() > 100


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("weather", [("server_error",), ("lost",), ("rate_limited",)])
def test_an_ambiguous_answer_and_another_renewal(rotation: Rotation, weather: tuple[str, ...]) -> None:
    """After a 5xx, a lost answer or a 429 it goes on by the profile, and the grant is kept wherever it can be."""
    world = world_of(rotation)
    world.server.weather = weather
    makes = {"goes on": until_settled(world), "once": renewal(world)}

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        if rotation is Rotation.STRICT and "lost" in weather:
            row = world.row
            told = row and row.prompt and row.prompt.cause
            if told != "lost_answer":
                raise Violation(f"the loss was not told: {row!r}")
            return
        settled_well(world, ends)

    assert Walk(world, makes, at_end=at_end).schedules() > 100


# --- three, at random ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(ROTATIONS),
    st.lists(st.integers(0, 11), max_size=150),
    st.sampled_from(
        [(), ("rate_limited",) * 2, ("server_error",) * 2, ("lost",), ("lost",) * 2, ("server_error", "lost")]
    ),
)
def test_three_renewers_in_random_schedules(rotation: Rotation, choices: list[int], weather: tuple[str, ...]) -> None:
    """Three renewals, of which one may stop and all may stand still: whatever the order, the grant is kept."""
    world = world_of(rotation)
    world.server.weather = weather
    makes = {name: until_settled(world) for name in ("one", "two", "three")}
    lease = world.profile.timing.lease
    pauses = 1 if rotation is Rotation.GRACE else 2  # two leases and a back-off may be longer than the grace
    walk = Walk(world, makes, pause=(2.0, lease + 1), pauses=pauses, may_stop=("one",), at_end=settled_well)
    left = iter(choices)
    walk.run(lambda below: next(left, 0) % below)


# --- the invariants can fail -----------------------------------------------------------------------------------------


class ClaimsWhateverWasRead(ModelStore):
    """Its claim does not look at the generation."""

    def claimable(self, row: Row, grant: StoredGrant, now: int, *, forced: bool) -> bool:
        return super().claimable(row, replace(grant, generation=row.generation), now, forced=forced)


class ClaimsWhoeverHolds(ModelStore):
    """Its claim does not look at the one before."""

    def claimable(self, row: Row, grant: StoredGrant, now: int, *, forced: bool) -> bool:
        free: dict[str, None] = {"claim_id": None, "claimed_until": None}
        return super().claimable(replace(row, **free), replace(grant, **free), now, forced=forced)


class SavesOverAnything(ModelStore):
    """Its save does not compare."""

    def saveable(self, row: Row, claim: Claim) -> bool:
        return True


class SavesOverAnotherConsent(ModelStore):
    """Its save compares the generation, and not the consent."""

    def saveable(self, row: Row, claim: Claim) -> bool:
        return row.generation == claim.grant.generation


class SavesOnlyWithTheClaim(ModelStore):
    """Its save wants the claim, too: a late answer is dropped."""

    def saveable(self, row: Row, claim: Claim) -> bool:
        return self.ours(claim) is not None


class MarksWithoutTheClaim(ModelStore):
    """Its mark names the generation, and not the claim."""

    def markable(self, row: Row, effect: MarkGrant) -> bool:
        return row.generation == effect.grant.generation


class MarksWhateverIsThere(ModelStore):
    """Its mark names the grant, and not the generation."""

    def markable(self, row: Row, effect: MarkGrant) -> bool:
        return row.status is GrantStatus.ACTIVE


class ExtendsALostClaim(ModelStore):
    """Its extension does not look whose claim it is."""

    def extend(self, claim: Claim, now: int) -> bool:
        return True


class ForgetsTheMark(ModelStore):
    """Its claim leaves no mark."""

    def _put(self, row: Row) -> Row:
        return super()._put(replace(row, in_flight_since=None, in_flight_tries=0))


def two_callers(store: type[ModelStore]) -> Walk:
    """The scenario of two callers."""
    world = world_of(Rotation.STRICT, store=store)
    return Walk(world, {"one": caller(world), "two": caller(world)}, at_end=served_by_one_renewal)


def take_over(store: type[ModelStore]) -> Walk:
    """The scenario of a lapsed claim."""
    world = world_of(Rotation.STRICT, store=store)
    makes = {name: until_settled(world) for name in ("holder", "other")}
    return Walk(world, makes, pause=(91.0,), pauses=1, at_end=settled_well)


def revoked_take_over(store: type[ModelStore]) -> Walk:
    """The scenario of a lapsed claim whose holder was refused."""
    world = world_of(Rotation.STRICT, store=store)
    world.server.dead |= {1}
    makes = {name: renewal(world) for name in ("holder", "other")}
    return Walk(world, makes, pause=(91.0,), pauses=1, at_end=lambda world, ends: world.check_end())


def revoked_and_consent(store: type[ModelStore]) -> Walk:
    """The scenario of a member who comes back while an old refusal is being dealt with."""
    world = world_of(Rotation.STRICT, store=store, revocation="grant")
    case, tokens = case_of(world), world.server.new_family(world.now)
    world.server.dead |= {1}

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        if standing(world).access_token != "access-2.1":
            raise Violation("the newest consent is not what is stored")

    makes: dict[str, Make] = {
        "caller": refused_caller(world, REVOKED),
        "consent": lambda: a_process(connect(case, tokens, keep_refresh_token=False), case),
    }
    return Walk(world, makes, at_end=at_end)


def renewal_and_consent(store: type[ModelStore]) -> Walk:
    """The scenario of a consent during a renewal."""
    world = world_of(Rotation.STRICT, store=store)
    case, tokens = case_of(world), world.server.new_family(world.now)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        if standing(world).access_token != "access-2.1":
            raise Violation("the newest consent is not what is stored")

    makes: dict[str, Make] = {
        "renewal": renewal(world),
        "consent": lambda: a_process(connect(case, tokens, keep_refresh_token=False), case),
    }
    return Walk(world, makes, at_end=at_end)


def refusal_during_renewal(store: type[ModelStore]) -> Walk:
    """The scenario of a refusal *revoked* that a renewal in flight has caused."""
    world = world_of(Rotation.STRICT, store=store, age=LIFE - 100, revocation="grant")
    world.server.kills_access = True
    case, token = case_of(world), token_of(world)
    makes: dict[str, Make] = {
        "renewal": renewal(world),
        "caller": lambda: a_process(guarded_call(case, token), case),
    }
    return Walk(world, makes, at_end=served_by_one_renewal)


def stopped_while_aging(store: type[ModelStore]) -> Walk:
    """The scenario of a renewal that stops while the access token still works."""
    world = world_of(Rotation.STRICT, store=store, age=LIFE - 100)
    makes = {"stops": renewal(world), "other": until_settled(world)}
    return Walk(world, makes, may_stop=("stops",), at_end=settled_well)


@pytest.mark.parametrize(
    ("broken", "scenario"),
    [
        (ClaimsWhateverWasRead, two_callers),
        (ClaimsWhoeverHolds, two_callers),
        (SavesOverAnything, renewal_and_consent),
        (SavesOverAnotherConsent, lambda store: backup_and_renewal(store, reconnects=True)),
        (SavesOnlyWithTheClaim, lambda store: late_save(store, [])),
        (MarksWithoutTheClaim, revoked_take_over),
        (MarksWhateverIsThere, revoked_and_consent),
        (ExtendsALostClaim, take_over),
        (ForgetsTheMark, stopped_while_aging),
    ],
)
def test_a_broken_store_is_noticed(broken: type[ModelStore], scenario: Callable[[type[ModelStore]], Walk]) -> None:
    """The scenario that holds with the right store has a schedule that fails with a broken one."""
    assert scenario(ModelStore).schedules() > 0
    with pytest.raises(Violation):
        scenario(broken).schedules()
