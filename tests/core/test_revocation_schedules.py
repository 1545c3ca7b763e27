"""All interleavings of a revocation with what else may happen to its grant: nothing that anybody has lives on, and it ends.

The walk is the one of ``test_schedules.py``. The provider is the meanest that there is: where refresh tokens rotate, a
revocation ends what was issued up to that token, and no more, so that a late renewal's successor would live on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from core.test_schedules import (
    ROTATIONS,
    Ended,
    Make,
    Walk,
    case_of,
    keeps_calling,
    one_of,
    renewal,
    standing,
    until_settled,
    value_of,
    world_of,
)
from core.world import LIFE, ModelStore, Row, Violation, World, a_process
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenkeeper.core.authorization import connect, forget
from tokenkeeper.core.effects import Claim, Flow, Gone, MemberTurn, Renewed, Sleep, StoredGrant
from tokenkeeper.core.revocation import begin, carry_out
from tokenkeeper.errors import NotConnected, ReauthenticationRequired, TemporarilyUnavailable
from tokenkeeper.model import GrantStatus, Revocation, Rotation

ENDPOINT = "https://provider.example/revoke"


def revocable(rotation: Rotation, *, age: float = LIFE + 1, store: type[ModelStore] = ModelStore) -> World:
    """A world with one grant, at a provider that can be told to revoke."""
    world = world_of(rotation, age=age, store=store, revocation_endpoint=ENDPOINT)
    world.server.narrow = rotation is not Rotation.NONE  # without rotation there is nothing but the one token
    return world


def revoker(world: World) -> Make:
    """A process that revokes, and calls again while it is told to."""
    case = case_of(world)

    def go_on() -> Flow[Revocation]:
        while True:
            try:
                return (yield from carry_out(case, (yield from begin(case))))
            except TemporarilyUnavailable:
                yield Sleep(1.0)

    return lambda: a_process(go_on(), case)


def forgetter(world: World) -> Make:
    """A process that forgets the grant."""
    case = case_of(world)
    return lambda: a_process(forget(case), case)


def consenter(world: World, *, keep: bool = False) -> Make:
    """A process that stores a consent: a new one, or an access token that goes on with the stored refresh token."""
    case = case_of(world)
    tokens = world.server.another_access_token(1, world.now) if keep else world.server.new_family(world.now)
    return lambda: a_process(connect(case, tokens, keep_refresh_token=keep), case)


def lapse(world: World) -> float:
    """Longer than any claim lasts."""
    return world.profile.timing.lease + 1


def revocation(ends: dict[str, Ended | None], name: str = "revoke") -> Revocation | None:
    """What a revocation said; None: its process stopped."""
    if ends[name] is None:
        return None
    found = value_of(ends, name)
    assert isinstance(found, Revocation)
    return found


def nothing_lives_on(world: World, ends: dict[str, Ended | None], outcome: str) -> None:
    """Of the first family: told ``revoked``, nothing; told that it is in doubt, nothing that a living process had."""
    living = world.server.living(1, world.now)
    if outcome == "revoked" and living:
        raise Violation(f"called revoked, and {sorted(living)} live on")
    had = {token for who, token in world.holders if ends[who] is not None}
    if living & had:
        raise Violation(f"{sorted(living & had)} live on, and somebody had them in hand")


def revoked_and_gone(world: World, ends: dict[str, Ended | None]) -> None:
    """After a revocation that nobody came between: told, gone, told once; or its process stopped, and nobody is served."""
    world.check_end(lossless=False)
    said = revocation(ends)
    row = world.row
    if said is None:
        if row is not None and row.status is GrantStatus.NEEDS_REAUTHENTICATION:
            raise Violation("a grant that is being revoked was marked")
        return
    if said.outcome not in ("revoked", "in_doubt") or not said.deleted or row is not None:
        raise Violation(f"not revoked: {said!r}, {row!r}")
    if said.outcome == "in_doubt" and not {who for who, _ in world.ids} - {"setup", "revoke"}:
        raise Violation("in doubt, and nobody ever claimed a renewal")
    news = [kind for kind, _ in world.store.events if kind == "GrantRevoked"]
    if len(news) != 1:
        raise Violation(f"{len(news)} pieces of news")
    nothing_lives_on(world, ends, said.outcome)


# --- a renewal and a revocation --------------------------------------------------------------------------------------


def renewal_and_revocation(rotation: Rotation, store: type[ModelStore] = ModelStore, stops: str = "") -> Walk:
    """A renewal that may be late, or stop, while the grant is revoked."""
    world = revocable(rotation, store=store)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        revoked_and_gone(world, ends)
        if ends["renewal"] is not None and ends["revoke"] is not None:
            found = value_of(ends, "renewal")
            one_of(found, Renewed, MemberTurn, Gone)
            if isinstance(found, MemberTurn) and found.cause != "revoking":
                raise Violation(f"the renewal was told something else: {found!r}")

    makes: dict[str, Make] = {"renewal": until_settled(world), "revoke": revoker(world)}
    may_stop = (stops,) if stops else ()
    return Walk(world, makes, pause=(lapse(world),), pauses=1, may_stop=may_stop, at_end=at_end)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("stops", ["", "renewal", "revoke"])
def test_a_renewal_and_a_revocation(rotation: Rotation, stops: str) -> None:
    """Whoever is late, stands still or stops for ever: what is called revoked is dead, and what was brought late, too."""
    assert renewal_and_revocation(rotation, stops=stops).schedules() > 100


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_caller_and_a_revocation(rotation: Rotation) -> None:
    """Whoever calls now and then is served before, refused after, and never served by a row that is being revoked."""
    world = revocable(rotation, age=LIFE - 100)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        revoked_and_gone(world, ends)
        end = ends["caller"]
        if end is None or (end.error is not None and not isinstance(end.error, ReauthenticationRequired)):
            raise Violation(f"the caller was not told: {end!r}")
        if end.error is None or isinstance(end.error, NotConnected):
            return
        if end.error.cause not in ("revoking", "revoked"):
            raise Violation(f"the caller was told {end.error.cause}")

    makes: dict[str, Make] = {"caller": keeps_calling(world), "revoke": revoker(world)}
    assert Walk(world, makes, at_end=at_end).schedules() > 100


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_renewal_and_a_revocation_endpoint_that_is_away(rotation: Rotation) -> None:
    """Not told at first: the claim is given back, calling again finishes, and nothing hangs."""
    world = revocable(rotation)
    world.server.revocation_weather = 2
    makes: dict[str, Make] = {"renewal": renewal(world), "revoke": revoker(world)}
    assert Walk(world, makes, at_end=revoked_and_gone).schedules() > 100


# --- a revocation and something else ---------------------------------------------------------------------------------


def two_revocations(store: type[ModelStore] = ModelStore, stops: bool = False) -> Walk:
    """Two processes that revoke the same grant."""
    world = revocable(Rotation.STRICT, store=store)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        said = [each for name in ends if (each := revocation(ends, name)) is not None]
        if world.row is not None or not said:
            raise Violation(f"not revoked: {world.row!r}")
        if any(each.outcome not in ("revoked", "not_connected") for each in said):
            raise Violation(f"said {said!r}")
        if not stops and len(world.server.revoked) != 1:
            raise Violation(f"{len(world.server.revoked)} revocation requests")
        if not stops and sorted(each.outcome for each in said) != ["not_connected", "revoked"]:
            raise Violation(f"said {said!r}")
        nothing_lives_on(world, ends, "revoked")

    makes = {"one": revoker(world), "two": revoker(world)}
    more: dict[str, Any] = {"pause": (lapse(world),), "pauses": 1, "may_stop": ("one",)} if stops else {}
    return Walk(world, makes, at_end=at_end, **more)


@pytest.mark.parametrize("stops", [False, True])
def test_two_revocations(stops: bool) -> None:
    """One tells the provider, once, and the other finds nothing left; whoever stops, the other one finishes."""
    assert two_revocations(stops=stops).schedules() > 100


@pytest.mark.parametrize("stops", ["forget", "revoke"])
def test_a_revocation_and_a_member_who_is_forgotten(stops: str) -> None:
    """The row is gone, whoever was first; revoked is said only where the provider was told."""
    world = revocable(Rotation.STRICT)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        if world.row is not None and None not in ends.values():
            raise Violation("the row is still there")
        said = revocation(ends)
        if said is None:
            return
        if (said.outcome, said.deleted) not in (("revoked", True), ("not_connected", False)):
            raise Violation(f"said {said!r}")
        if (said.outcome == "revoked") != bool(world.server.revoked):
            raise Violation(f"said {said!r}, and the provider was shown {world.server.revoked}")
        if said.outcome == "revoked":
            nothing_lives_on(world, ends, "revoked")

    makes: dict[str, Make] = {"forget": forgetter(world), "revoke": revoker(world)}
    walk = Walk(world, makes, pause=(lapse(world),), pauses=1, may_stop=(stops,), at_end=at_end)
    assert walk.schedules() > 100


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("stops", ["", "forget", "renewal"])
def test_a_renewal_and_a_member_who_is_forgotten_late(rotation: Rotation, stops: str) -> None:
    """Late or stopped anywhere: no renewal brings a forgotten grant back, and the provider is not told."""
    world = revocable(rotation)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        world.check_end(lossless=False)
        if ends["forget"] is not None and world.row is not None:
            raise Violation("a forgotten grant came back")
        if world.server.revoked:
            raise Violation("forgotten is not revoked")

    makes: dict[str, Make] = {"renewal": until_settled(world), "forget": forgetter(world)}
    may_stop = (stops,) if stops else ()
    walk = Walk(world, makes, pause=(lapse(world),), pauses=1, may_stop=may_stop, at_end=at_end)
    assert walk.schedules() > 50


def revocation_and_consent(store: type[ModelStore] = ModelStore, stops: str = "") -> Walk:
    """A member who connects again while the grant is revoked."""
    world = revocable(Rotation.STRICT, store=store)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        said, row = revocation(ends), world.row
        if ends["consent"] is None or said is None:
            return
        if said.outcome == "reconnected":
            if standing(world).access_token != "access-2.1":
                raise Violation(f"the newest consent is not what is stored: {row!r}")
            if not world.server.serves("access-2.1", world.now) or "refresh-2.1" in world.server.revoked:
                raise Violation("the newest consent was revoked")
        elif said.outcome == "revoked":
            # After it the member connected anew, or before it: then it is that consent that was revoked.
            if row is None and world.server.living(2, world.now):
                raise Violation("the newest consent's row is gone, and its tokens live on")
            if row is not None and (standing(world).access_token, row.generation) != ("access-2.1", 1):
                raise Violation(f"not the new grant: {row!r}")
        else:
            raise Violation(f"said {said!r}")

    makes: dict[str, Make] = {"revoke": revoker(world), "consent": consenter(world)}
    may_stop = (stops,) if stops else ()
    return Walk(world, makes, pause=(lapse(world),), pauses=1, may_stop=may_stop, at_end=at_end)


@pytest.mark.parametrize("stops", ["", "consent", "revoke"])
def test_a_revocation_and_a_member_who_connects_again(stops: str) -> None:
    """A consent that came after the revocation began stands, row and tokens; one that came before is what is revoked."""
    assert revocation_and_consent(stops=stops).schedules() > 100


def test_a_revocation_and_saved_tokens_that_keep_the_refresh_token() -> None:
    """What is being revoked is no refresh token to keep: whoever reconnects meanwhile has none, and ``reconnected`` is said."""
    world = revocable(Rotation.STRICT)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        said = revocation(ends)
        assert said is not None
        one_of(ends["save"], Ended)
        if said.outcome == "reconnected":
            if standing(world).refresh_token is not None:
                raise Violation(f"a refresh token was kept that may be dead: {world.row!r}")
        elif said.outcome != "revoked":
            raise Violation(f"said {said!r}")

    makes: dict[str, Make] = {"revoke": revoker(world), "save": consenter(world, keep=True)}
    assert Walk(world, makes, pause=(lapse(world),), pauses=1, at_end=at_end).schedules() > 50


# --- a renewal and saved tokens, with a process that stops -----------------------------------------------------------


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("stops", ["renewal", "save"])
def test_a_renewal_and_saved_tokens(rotation: Rotation, keep: bool, stops: str) -> None:
    """Saved tokens are the newest consent, wherever a process stops; what a living renewal brought for it is kept."""
    world = revocable(rotation)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        world.check_end(lossless=stops != "renewal")
        row = world.row
        assert row is not None
        if row.status is not GrantStatus.ACTIVE:
            if ends["renewal"] is not None:
                raise Violation(f"the grant does not stand: {row!r}")
            return
        if ends["save"] is not None and not keep and row.access_token != "access-2.1":
            raise Violation(f"the newest consent is not what is stored: {row!r}")
        if ends["renewal"] is not None and not world.server.redeemable(row.refresh_token, world.now):
            raise Violation(f"a successor was dropped: {row!r}")

    makes: dict[str, Make] = {"renewal": renewal(world), "save": consenter(world, keep=keep)}
    walk = Walk(world, makes, pause=(lapse(world),), pauses=1, may_stop=(stops,), at_end=at_end)
    assert walk.schedules() > 50


# --- three, at random ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(ROTATIONS), st.lists(st.integers(0, 11), max_size=150))
def test_a_renewal_a_revocation_and_a_consent(rotation: Rotation, choices: list[int]) -> None:
    """Whatever the order: a reconnected member's grant stands, and of the old one nothing lives that somebody has."""
    world = revocable(rotation)

    def at_end(world: World, ends: dict[str, Ended | None]) -> None:
        world.check_end(lossless=False)
        said, row = revocation(ends), world.row
        assert said is not None
        if row is not None:
            if (standing(world).access_token, said.outcome) not in (
                ("access-2.1", "reconnected"),
                ("access-2.1", "revoked"),
                ("access-2.1", "in_doubt"),
            ):
                raise Violation(f"said {said!r}, and there is {row!r}")
            if not world.server.serves("access-2.1", world.now):
                raise Violation("the newest consent was revoked")
        elif world.server.living(2, world.now):
            raise Violation("the newest consent's row is gone, and its tokens live on")

    makes: dict[str, Make] = {
        "renewal": until_settled(world),
        "revoke": revoker(world),
        "consent": consenter(world),
    }
    left = iter(choices)
    walk = Walk(world, makes, pause=(lapse(world),), pauses=1, at_end=at_end)
    walk.run(lambda below: next(left, 0) % below)


# --- the invariants can fail -----------------------------------------------------------------------------------------


class ForgetsThatItWasRevoked(ModelStore):
    """A late save is not told that the grant was revoked."""

    def was_revoked(self, grant: StoredGrant) -> bool:
        return False


class RevokesInSpiteOfAClaim(ModelStore):
    """A claim to revoke does not look at the one before."""

    def revocable(self, row: Row, grant: StoredGrant, now: int, *, forced: bool) -> bool:
        free: dict[str, None] = {"claim_id": None, "claimed_until": None}
        return super().revocable(replace(row, **free), replace(grant, **free), now, forced=forced)


class DeletesWhateverIsThere(ModelStore):
    """Its deletion looks neither at the claim nor at the status."""

    def deletable(self, claim: Claim) -> bool:
        return self.row_of(claim.grant) is not None


@pytest.mark.parametrize(
    ("broken", "scenario"),
    [
        (ForgetsThatItWasRevoked, lambda store: renewal_and_revocation(Rotation.STRICT, store)),
        (RevokesInSpiteOfAClaim, two_revocations),
        (RevokesInSpiteOfAClaim, lambda store: renewal_and_revocation(Rotation.STRICT, store)),
        (DeletesWhateverIsThere, lambda store: renewal_and_revocation(Rotation.STRICT, store)),
        (DeletesWhateverIsThere, revocation_and_consent),
    ],
)
def test_a_broken_store_is_noticed(broken: type[ModelStore], scenario: Callable[[type[ModelStore]], Walk]) -> None:
    """The scenario that holds with the right store has a schedule that fails with a broken one."""
    assert scenario(ModelStore).schedules() > 0
    with pytest.raises(Violation):
        scenario(broken).schedules()
