"""The judge of a round: reads its joined log, the row and the events that it left, and says what was wrong.

Pure: no process, database or clock in here, so that doctored logs can try it (``test_lab_checker.py``). The invariants
are I1-I9 of the fault model; ``criterion`` is what a round must show beside them. I10 (no secret where it must not be)
is looked for once a laboratory, in files and rows, and not in a round's lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Line = dict[str, Any]

DEFINITE = ("reused", "revoked", "expired", "invalid")
"""What a token endpoint says of a refresh token that is dead for good."""

UNANSWERED = {"strict": 1, "grace": 3}
"""Rotation -> how many presentations of one generation may stay without an answer."""

SLACK = 2.0
CALLERS_WAIT = 10.0
"""Seconds that a caller waits for a renewal (the keeper's ``patience``); with a longer lease it may end before."""

CLOCKS = 0.05
"""Seconds by which two clocks of one machine, and a time that was rounded, may differ."""


@dataclass
class Evidence:
    """What is known of a round."""

    lines: list[Line]
    row: Line | None
    events: list[Line]
    rotation: str
    lease: float
    action: str
    trigger: str
    survivors: tuple[str, ...]
    stalls: list[Line] = field(default_factory=list)
    """When the survivors' processes were not run by the machine, and for how long."""
    _by_event: dict[str, list[Line]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for line in self.lines:
            self._by_event.setdefault(line["event"], []).append(line)

    def all(self, event: str, **like: Any) -> list[Line]:
        """The lines of an event with these values, in order."""
        return [
            line
            for line in self._by_event.get(event, ())
            if all(line.get(name) == value for name, value in like.items())
        ]

    def first(self, event: str, **like: Any) -> Line | None:
        """The first of them."""
        return next(iter(self.all(event, **like)), None)

    def claim_of(self, shown: Line) -> Line | None:
        """The ``sending`` line that belongs to what arrived at the provider."""
        before = [
            line
            for line in self.all("sending", worker=shown["worker"], token=shown["token"])
            if line["at"] <= shown["at"]
        ]
        return before[-1] if before else None

    def stalled(self, since: float, until: float) -> float:
        """How long the survivors were not run between two times: seconds that the machine owes them."""
        return sum(line["seconds"] for line in self.stalls if since <= line["at"] and line["began"] <= until)

    @property
    def rotations(self) -> list[Line]:
        """The presentations that the provider took, each with its successor."""
        return [line for line in self.all("presented") if line["fresh"] is not None]

    @property
    def lost(self) -> bool:
        """Whether the stored grant is of no more use."""
        return self.row is None or self.row["status"] != "active" or self.row["refresh_verdict"] != "ok"


def judge(evidence: Evidence) -> list[str]:
    """Say everything that was wrong in a round."""
    checks = (
        _one_successor_a_rotation,
        _generations_only_grow,
        _saved_before_used,
        _claimed_before_sent,
        _few_without_an_answer,
        _condemned_only_by_an_answer,
        _nothing_deleted,
        _lost_only_what_nobody_had,
        _an_event_a_change,
        _recovered_in_time,
        _held_while_it_works,
        _others_are_served,
        _the_sleeper_shows_nothing_spent,
        _ended,
    )
    return [text for check in checks for text in check(evidence)]


def _one_successor_a_rotation(seen: Evidence) -> Iterator[str]:
    """I1: of each delivered rotation one successor is stored, and of each generation one."""
    by = Counter((line["grant"], line["generation"]) for line in seen.all("saved"))
    claims = {(line["grant"], line["generation"], line["claim"]) for line in seen.all("saved")}
    for grant, generation in by:
        if len([one for one in claims if one[:2] == (grant, generation)]) > 1:
            yield f"I1: generation {generation} was stored from two claims"
    dead = {line["worker"] for line in seen.all("exit") if line["status"] != 0}
    for line in seen.all("redeemed", outcome="Answer", status=200):
        kept = any(seen.first(event, claim=line["claim"]) for event in ("saved", "overtaken"))
        if line["worker"] not in dead and not kept:
            yield f"I1: {line['worker']} was given a successor for claim {line['claim']} and did not store it"


def _generations_only_grow(seen: Evidence) -> Iterator[str]:
    """I2: nobody reads a generation that is lower than one stored before."""
    stored = seen.all("saved")
    for line in (*seen.all("loaded"), *seen.all("claimed")):
        highest = max((one["generation"] for one in stored if one["at"] < line["began"]), default=0)
        if line["generation"] < highest:
            yield f"I2: {line['worker']} read generation {line['generation']} after {highest} was stored"
    highest = max((one["generation"] for one in stored), default=0)
    if seen.row is not None and seen.row["generation"] < highest:
        yield f"I2: the row is at generation {seen.row['generation']}, {highest} was stored"


def _saved_before_used(seen: Evidence) -> Iterator[str]:
    """I3: no access token is used before the transaction that stores it."""
    for rotation in seen.rotations:
        used = next((line for line in seen.all("api") if line["token"] == rotation["fresh"]["access"]), None)
        if used is None:
            continue
        sending = seen.claim_of(rotation)
        saving = seen.first("saving", claim=sending["claim"]) if sending else None
        if saving is None or saving["at"] > used["at"]:
            yield f"I3: {used['worker']} used {used['token']} before it was stored"


def _claimed_before_sent(seen: Evidence) -> Iterator[str]:
    """I4: no refresh token is shown without a committed claim, by the worker's log and by the row at that moment."""
    used: set[tuple[float, str]] = set()
    for line in seen.all("arrived"):
        sending = seen.claim_of(line)
        if sending is None or (sending["at"], sending["worker"]) in used:
            yield f"I4: {line['worker']} showed {line['token']} without a look at its claim"
            continue
        used.add((sending["at"], sending["worker"]))
        claimed = seen.first("claimed", worker=line["worker"], claim=sending["claim"])
        if claimed is None or claimed["at"] > line["at"]:
            yield f"I4: {line['worker']} showed {line['token']} without a claim"
        if line.get("row_claim") != sending["claim"] or not line.get("row_tries"):
            yield f"I4: when {line['token']} arrived, the row did not hold the claim of {line['worker']}"


def _few_without_an_answer(seen: Evidence) -> Iterator[str]:
    """I5: a generation is not shown again and again without an answer."""
    limit = UNANSWERED.get(seen.rotation)
    if limit is None:
        return
    open_ended: Counter[str] = Counter()
    for line in seen.all("arrived"):
        sending = seen.claim_of(line)
        if sending is None or not seen.first("redeemed", claim=sending["claim"], outcome="Answer"):
            open_ended[line["token"]] += 1
    for token, times in open_ended.items():
        if times > limit:
            yield f"I5: {token} was shown {times} times without an answer"


def _condemned_only_by_an_answer(seen: Evidence) -> Iterator[str]:
    """I6: it becomes the member's turn only after a definite answer about the current generation."""
    definite = [line for line in seen.all("presented") if line["verdict"] in DEFINITE]
    for line in seen.all("marked"):
        sending = seen.first("sending", claim=line["claim"])
        if not any(sending and one["token"] == sending["token"] and one["at"] < line["at"] for one in definite):
            yield f"I6: {line['worker']} marked the grant ({line['cause']}) without a definite answer"
    refused = [line for line in seen.all("api") if line["verdict"] in ("revoked", "invalid")]
    if seen.row is not None and seen.row["status"] != "active" and not definite and not refused:
        yield f"I6: the row says {seen.row['status']}, and nobody was told so"


def _nothing_deleted(seen: Evidence) -> Iterator[str]:
    """I7: a failure deletes no token."""
    if seen.row is None:
        yield "I7: the row is gone"
    elif not seen.row["refresh"] or not seen.row["access"]:
        yield "I7: a token is gone from the row"


def _lost_only_what_nobody_had(seen: Evidence) -> Iterator[str]:
    """I8 and the criterion: a grant is lost only under strict, and only if no worker had spilled or saved the successor."""
    if not seen.lost:
        return
    state = None if seen.row is None else (seen.row["status"], seen.row["refresh_verdict"])
    if seen.rotation != "strict":
        yield f"criterion: the grant is lost under {seen.rotation}: {state}"
        return
    taken = [line for line in seen.rotations if line["verdict"] == "ok"]
    if not taken:
        yield f"I8: the grant is lost, and no successor was: {state}"
    for line in taken:
        sending = seen.claim_of(line)
        for event in ("spilled", "saved"):
            if sending and seen.first(event, claim=sending["claim"]):
                yield f"criterion: the grant is lost ({state}), although its successor was {event}"


def _an_event_a_change(seen: Evidence) -> Iterator[str]:
    """I9: each change of the grant has its event, once."""
    if seen.row is None:
        return
    renewed = Counter(event["generation"] for event in seen.events if event["kind"] == "TokensRenewed")
    for generation in range(2, seen.row["generation"] + 1):
        if renewed[generation] != 1:
            yield f"I9: generation {generation} has {renewed[generation]} events"
    asked = [event for event in seen.events if event["kind"] == "ReauthenticationNeeded"]
    if seen.row["status"] != "active" and not asked:
        yield "I9: it is the member's turn, and there is no event"
    if seen.row["status"] == "active" and asked:
        yield "I9: the member was asked for nothing"
    if max(Counter(event["id"] for event in seen.events).values(), default=1) > 1:
        yield "I9: one event is there twice"


def _refusable_since(seen: Evidence) -> float:
    """Since when the others need new tokens: the fault, or the end of the old ones if that comes later."""
    reached, expired, issued = seen.first("reached"), seen.first("expired"), seen.first("issued")
    assert reached is not None
    assert issued is not None
    return max(float(reached["at"]), float(expired["at"] if expired else issued["ends"]))


def _recovered_in_time(seen: Evidence) -> Iterator[str]:
    """The others are served again, or told that it is the member's turn, within the lease and two seconds."""
    issued = seen.first("issued")
    if seen.first("reached") is None or issued is None:
        return
    since = _refusable_since(seen)
    for worker in seen.survivors:
        limit = since + seen.lease + SLACK
        served = [
            line["at"] for line in seen.all("api", worker=worker, verdict="ok") if line["token"] != issued["access"]
        ]
        told = [line["at"] for line in seen.all("call", worker=worker) if line["outcome"] == "ReauthenticationRequired"]
        first = min((*served, *(told if seen.lost else ())), default=None)
        if first is None:
            yield f"criterion: {worker} was not served again"
        elif first > limit + seen.stalled(since, first):
            yield f"criterion: {worker} was served again {first - since:.2f} s after the fault"


def _held_while_it_works(seen: Evidence) -> Iterator[str]:
    """Under strict, a token in doubt is not shown again while the old access token still works."""
    issued = seen.first("issued")
    if seen.rotation != "strict" or seen.trigger != "aging" or issued is None:
        return
    for line in seen.all("arrived"):
        again = (line.get("row_tries") or 0) > 1
        if again and line["token"] == issued["refresh"] and line["at"] < issued["ends"] - CLOCKS:
            yield f"criterion: {line['worker']} showed a token in doubt {issued['ends'] - line['at']:.2f} s too early"


def _others_are_served(seen: Evidence) -> Iterator[str]:
    """The other workers go on calling, and no call of theirs fails unless the grant is lost."""
    reached = seen.first("reached")
    for worker in seen.survivors:
        calls = seen.all("call", worker=worker)
        failed = [line for line in calls if line["outcome"] != "ok"]
        if seen.lost:
            failed = [line for line in failed if line["outcome"] != "ReauthenticationRequired"]
        if seen.lease > CALLERS_WAIT:
            failed = [line for line in failed if line["outcome"] != "RenewalInProgress"]
        if seen.action != "kill" and seen.first("redeemed", outcome="NeverSent", reason="deadline"):
            # The victim was held up for so long that its request was not sent any more: a back-off, for all.
            failed = [line for line in failed if line["cause"] not in ("backing_off", "unreachable")]
        if failed:
            yield f"criterion: a call of {worker} failed: {failed[0]['outcome']} ({failed[0]['cause']})"
        after = [line for line in calls if reached is not None and line["at"] > reached["at"]]
        if reached is not None and not after:
            yield f"criterion: {worker} made no call after the fault"


def _the_sleeper_shows_nothing_spent(seen: Evidence) -> Iterator[str]:
    """Who was stopped for longer than the lease shows no spent token when it goes on."""
    woke = seen.first("woke")
    if seen.action != "stop":
        return
    if woke is None:
        yield "criterion: the sleeper did not wake"
        return
    reached = seen.first("reached")
    if reached is not None and woke["at"] - reached["at"] <= seen.lease:
        yield "criterion: the sleeper slept for less than the lease"
    for line in seen.all("presented", worker=woke["worker"]):
        if line["at"] > woke["at"] and line["verdict"] != "ok":
            yield f"criterion: the sleeper showed {line['token']}: {line['verdict']}"


def _ended(seen: Evidence) -> Iterator[str]:
    """The round went as it was meant to."""
    for line in seen.all("late"):
        yield f"round: {line['what']}"
    if seen.first("reached") is None:
        yield "round: the point was not reached"
    victim = seen.first("reached")
    ends = seen.all("exit", worker=victim["worker"]) if victim else []
    wanted = -9 if seen.action == "kill" else 0
    if not ends or ends[0]["status"] != wanted:
        yield f"round: the victim ended with {ends[0]['status'] if ends else 'nothing'}"
