"""The laboratory's judge reports each invariant that a doctored log violates, and nothing where all went well."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tests.faults.lab_checker import Evidence, Line, judge

FIRST, SECOND, VICTIM = "first", "second", "victim-0"
GRANT = "grant-1"


def killed_while_the_answer_was_on_its_way() -> Evidence:
    """A round under grace: the victim is killed when its request is answered, another worker replays in time."""

    def line(at: float, event: str, worker: str | None = None, **more: object) -> Line:
        return {"at": at, "event": event, "member": "ann", "worker": worker, **more}

    def flight(at: float, worker: str, claim: str, tries: int) -> list[Line]:
        row = {"row_claim": claim, "row_tries": tries}
        return [
            line(at, "claimed", worker, claim=claim, grant=GRANT, generation=1, tries=tries, began=at - 0.01),
            line(at + 0.01, "sending", worker, claim=claim, token="refresh-1", grant=GRANT, generation=1),
            line(at + 0.02, "arrived", worker, token="refresh-1", **row),
        ]

    fresh = [{"access": f"access-{n}", "refresh": f"refresh-{n}"} for n in (2, 3)]
    lines = [
        line(0.0, "issued", access="access-1", refresh="refresh-1", ends=3600.0),
        *(line(0.1, "api", worker, token="access-1", verdict="ok") for worker in (FIRST, SECOND)),
        *(line(0.1, "call", worker, began=0.05, outcome="ok", cause=None) for worker in (FIRST, SECOND)),
        *flight(1.0, VICTIM, "claim-1", 1),
        line(1.03, "expired"),
        line(1.04, "reached", VICTIM, point="answered"),
        line(1.05, "presented", VICTIM, token="refresh-1", verdict="ok", delivered=False, fresh=fresh[0]),
        line(1.1, "exit", VICTIM, status=-9),
        *flight(4.1, FIRST, "claim-2", 2),
        line(4.13, "presented", FIRST, token="refresh-1", verdict="replayed", delivered=True, fresh=fresh[1]),
        line(4.14, "redeemed", FIRST, claim="claim-2", outcome="Answer", status=200, grant=GRANT, generation=1),
        line(4.15, "spilled", FIRST, claim="claim-2", grant=GRANT, generation=2),
        line(4.16, "saving", FIRST, claim="claim-2", grant=GRANT, generation=2),
        line(4.17, "saved", FIRST, claim="claim-2", grant=GRANT, generation=2),
        line(4.2, "loaded", SECOND, grant=GRANT, generation=2, began=4.19),
        *(line(4.3, "api", worker, token="access-3", verdict="ok") for worker in (FIRST, SECOND)),
        *(line(4.3, "call", worker, began=1.1, outcome="ok", cause=None) for worker in (FIRST, SECOND)),
    ]
    row = {
        "status": "active",
        "generation": 2,
        "access": "access-3",
        "refresh": "refresh-3",
        "claim": None,
        "cause": None,
        "refresh_verdict": "ok",
    }
    events = [
        {"id": "a", "kind": "GrantConnected", "generation": 1},
        {"id": "b", "kind": "TokensRenewed", "generation": 2},
    ]
    return Evidence(lines, row, events, "grace", 3.0, "kill", "refused", (FIRST, SECOND))


def of(seen: Evidence, event: str, **like: object) -> Line:
    """The first line of an event."""
    return next(
        line
        for line in seen.lines
        if line["event"] == event and all(line.get(name) == value for name, value in like.items())
    )


def without(seen: Evidence, event: str, **like: object) -> None:
    """Take a line out."""
    seen.lines.remove(of(seen, event, **like))


def late(seen: Evidence, event: str, at: float, **like: object) -> None:
    """Move a line in time."""
    of(seen, event, **like)["at"] = at
    seen.lines.sort(key=lambda line: line["at"])


def again(seen: Evidence, event: str, at: float, changed: dict[str, object], **like: object) -> None:
    """Put a changed copy of a line in."""
    seen.lines.append({**copy.deepcopy(of(seen, event, **like)), "at": at, **changed})
    seen.lines.sort(key=lambda line: line["at"])


def row(seen: Evidence, **changed: object) -> None:
    """Change the row."""
    assert seen.row is not None
    seen.row.update(changed)


def lost(seen: Evidence) -> None:
    """The grant is lost, and everybody was told, with the event."""
    row(seen, status="needs_reauthentication", refresh_verdict="revoked", refresh="refresh-1", generation=1)
    seen.events.append({"id": "c", "kind": "ReauthenticationNeeded", "generation": 1})
    seen.lines[:] = [line for line in seen.lines if line["at"] < 4.13 or line["event"] == "redeemed"]
    of(seen, "redeemed").update(status=400)
    again(seen, "presented", 4.13, {"worker": FIRST, "verdict": "reused", "fresh": None, "delivered": True})
    again(seen, "claimed", 4.2, {"event": "marked", "cause": "lost_answer"}, worker=FIRST)
    for worker in (FIRST, SECOND):
        again(seen, "call", 4.3, {"outcome": "ReauthenticationRequired"}, worker=worker)


def lost_under_strict(seen: Evidence) -> None:
    """The same where it is allowed."""
    lost(seen)
    seen.rotation = "strict"


def lost_although_spilled(seen: Evidence) -> None:
    """Under strict, but the victim had spilled the successor."""
    lost_under_strict(seen)
    again(seen, "sending", 1.06, {"event": "spilled"}, worker=VICTIM)


def nothing_was_taken(seen: Evidence) -> None:
    """Under strict, but the provider had issued no successor."""
    lost_under_strict(seen)
    without(seen, "presented", worker=VICTIM)


def in_doubt_too_early(seen: Evidence) -> None:
    """Under strict and while the old access token works."""
    seen.rotation, seen.trigger = "strict", "aging"


def slept(seen: Evidence) -> None:
    """Stopped instead of killed; it wakes and shows the token again."""
    seen.action = "stop"
    of(seen, "exit")["status"] = 0
    late(seen, "exit", 5.2)
    again(seen, "reached", 4.6, {"event": "woke"})
    again(seen, "presented", 4.7, {"verdict": "reused", "fresh": None}, worker=VICTIM)


def slept_too_short(seen: Evidence) -> None:
    """Stopped for less than the lease."""
    seen.action = "stop"
    of(seen, "exit")["status"] = 0
    again(seen, "reached", 3.0, {"event": "woke"})


DOCTORED: list[tuple[str, Callable[[Evidence], object]]] = [
    ("I1: generation 2 was stored from two", lambda e: again(e, "saved", 4.18, {"claim": "claim-1"})),
    ("I1: first was given a successor", lambda e: without(e, "saved")),
    ("I2: second read generation 1", lambda e: of(e, "loaded").update(generation=1)),
    ("I2: the row is at generation 1", lambda e: row(e, generation=1)),
    ("I3: first used access-3", lambda e: late(e, "saving", 4.31)),
    ("I3: first used access-3", lambda e: without(e, "saving")),
    ("I4: first showed refresh-1 without a look", lambda e: without(e, "sending", worker=FIRST)),
    ("I4: first showed refresh-1 without a claim", lambda e: without(e, "claimed", worker=FIRST)),
    ("I4: first showed refresh-1 without a claim", lambda e: late(e, "claimed", 4.125, worker=FIRST)),
    ("I4: when refresh-1 arrived, the row", lambda e: of(e, "arrived", worker=FIRST).update(row_claim="claim-1")),
    ("I4: when refresh-1 arrived, the row", lambda e: of(e, "arrived").update(row_claim=None, row_tries=0)),
    ("I4: victim-0 showed refresh-1 without a look", lambda e: again(e, "arrived", 1.021, {}, worker=VICTIM)),
    ("I5: refresh-1 was shown 4 times", lambda e: [again(e, "arrived", 1.02 + n / 1e3, {}) for n in (1, 2, 3)]),
    (
        "I6: first marked the grant",
        lambda e: again(e, "claimed", 4.18, {"event": "marked", "cause": "x"}, worker=FIRST),
    ),
    ("I6: the row says needs_re", lambda e: row(e, status="needs_reauthentication")),
    ("I7: the row is gone", lambda e: setattr(e, "row", None)),
    ("I7: a token is gone", lambda e: row(e, refresh="")),
    ("I8: the grant is lost, and no successor was", nothing_was_taken),
    ("I9: generation 2 has 0 events", lambda e: e.events.pop()),
    ("I9: generation 2 has 2 events", lambda e: e.events.append({**e.events[1], "id": "c"})),
    ("I9: one event is there twice", lambda e: e.events.append(e.events[0])),
    (
        "I9: the member was asked",
        lambda e: e.events.append({**e.events[0], "kind": "ReauthenticationNeeded", "id": "c"}),
    ),
    ("I9: it is the member's turn", lambda e: row(e, status="needs_reauthentication")),
    ("criterion: the grant is lost under grace", lost),
    ("criterion: the grant is lost", lambda e: row(e, refresh_verdict="reused")),
    ("although its successor was spilled", lost_although_spilled),
    ("criterion: second was served again 5.17 s", lambda e: late(e, "api", 6.21, worker=SECOND, token="access-3")),
    ("criterion: second was not served again", lambda e: without(e, "api", worker=SECOND, token="access-3")),
    ("criterion: first showed a token in doubt", in_doubt_too_early),
    ("criterion: a call of second failed", lambda e: of(e, "call", worker=SECOND).update(outcome="RenewalInProgress")),
    ("criterion: second made no call", lambda e: late(e, "call", 1.0, worker=SECOND, began=1.1)),
    ("criterion: the sleeper showed refresh-1: reused", slept),
    ("criterion: the sleeper slept for less", slept_too_short),
    ("criterion: the sleeper did not wake", lambda e: setattr(e, "action", "stop")),
    ("round: the point was not reached", lambda e: without(e, "reached")),
    ("round: the victim ended with 0", lambda e: of(e, "exit").update(status=0)),
    ("round: too slow", lambda e: again(e, "issued", 5.0, {"event": "late", "what": "too slow"})),
]


def doctored(change: Callable[[Evidence], object]) -> Evidence:
    """The good round, changed."""
    seen = killed_while_the_answer_was_on_its_way()
    change(seen)
    return Evidence(
        seen.lines, seen.row, seen.events, seen.rotation, seen.lease, seen.action, seen.trigger, seen.survivors
    )


def test_a_good_round_is_called_good() -> None:
    """A round in which the replay came in time has nothing wrong."""
    assert judge(killed_while_the_answer_was_on_its_way()) == []


def test_a_loss_that_nobody_can_prevent_is_called_good() -> None:
    """Under strict, a successor that no worker had is gone, and the member is asked: nothing wrong with that."""
    assert judge(doctored(lost_under_strict)) == []


@pytest.mark.parametrize(
    ("wanted", "change"), DOCTORED, ids=[f"{n}-{text[:24]}" for n, (text, _) in enumerate(DOCTORED)]
)
def test_each_violation_is_reported(wanted: str, change: Callable[[Evidence], object]) -> None:
    """A log in which one thing is wrong is reported with the words for that thing."""
    found = judge(doctored(change))
    assert any(wanted in text for text in found), found
