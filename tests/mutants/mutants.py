"""The mutants: each takes one guard of the renewal's path away. Every WHERE term, every check, every order has one."""

from __future__ import annotations

from dataclasses import dataclass

OPERATIONS = "tokenkeeper/store/operations.py"
TRANSACTIONS = "tokenkeeper/store/transactions.py"
WATCH = "tokenkeeper/store/watch.py"
RENEWAL = "tokenkeeper/core/renewal.py"
REVOCATION = "tokenkeeper/core/revocation.py"
DRIVERS = "tokenkeeper/drivers.py"
ROOM = "tokenkeeper/engine_room.py"
TRANSPORT = "tokenkeeper/transport.py"
SPILL = "tokenkeeper/spill.py"
SEALED = "tokenkeeper/store/sealed.py"
PROFILE = "tokenkeeper/core/profile.py"
EFFECTS = "tokenkeeper/core/effects.py"

STORE_TESTS = ("tests/store/test_operations.py", "tests/store/test_store_model.py")
FLOW_TESTS = ("tests/core/test_renewal.py", "tests/core/test_schedules.py")
ROOM_TESTS = ("tests/test_rooms.py", "tests/contract/test_renewing.py", "tests/contract/test_review.py")


@dataclass(frozen=True)
class Mutant:
    """A text of a file that stands there once, what takes its place, and the tests of which one must fail."""

    name: str
    file: str
    old: str
    new: str
    killers: tuple[str, ...]


MUTANTS = (
    # --- the claim's WHERE -------------------------------------------------------------------------------------------
    Mutant(
        "claim: of any grant",
        OPERATIONS,
        '        grants.c.grant_id == bindparam("grant"),\n',
        '        bindparam("grant") == bindparam("grant"),\n',
        STORE_TESTS,
    ),
    Mutant(
        "claim: of any generation",
        OPERATIONS,
        '        grants.c.generation == bindparam("seen"),\n',
        '        bindparam("seen") == bindparam("seen"),\n',
        STORE_TESTS,
    ),
    Mutant("claim: whoever holds it", OPERATIONS, "        free,\n    ]", "    ]", STORE_TESTS),
    Mutant(
        "claim: another one with the same end",
        OPERATIONS,
        '        free = and_(grants.c.claim_id == bindparam("lapsed"), grants.c.claimed_until == bindparam("lapsed_at"))',
        '        free = grants.c.claimed_until == func.coalesce(bindparam("lapsed_at"), bindparam("lapsed"))',
        STORE_TESTS,
    ),
    Mutant(
        "claim: lapsed, though it was extended since",
        OPERATIONS,
        'free = and_(grants.c.claim_id == bindparam("lapsed"), grants.c.claimed_until == bindparam("lapsed_at"))',
        'free = and_(grants.c.claim_id == bindparam("lapsed"), bindparam("lapsed_at") == bindparam("lapsed_at"))',
        STORE_TESTS,
    ),
    Mutant(
        "claim: lapsed whatever the clock says",
        WATCH,
        "        if not grant.claimed and self.steady and now",
        "        if self.steady and now",
        STORE_TESTS,
    ),
    Mutant(
        "claim: a clock that jumped is trusted",
        WATCH,
        "        if not grant.claimed and self.steady and now",
        "        if not grant.claimed and now",
        STORE_TESTS,
    ),
    Mutant(
        "claim: lapsed, though it came since our last look",
        WATCH,
        " and now - look.otherwise_at >= lease:",
        ":",
        STORE_TESTS,
    ),
    Mutant(
        "claim: any claim counts as the one that was watched",
        WATCH,
        "        if look.claim != (grant.claim_id, grant.claimed_until):\n",
        "        if False:\n",
        STORE_TESTS,
    ),
    Mutant(
        "claim: taken over, and the holder's save not waited for",
        "tokenkeeper/core/renewal.py",
        "        yield from Sleep(TAKEOVER)\n",
        "        pass\n",
        ("tests/core/test_renewal.py",),
    ),
    Mutant(
        "claim: a longer lease than ours is cut short",
        WATCH,
        "(max(lease, self.left) if self.left <= LONGEST_LEASE else lease)",
        "lease",
        STORE_TESTS,
    ),
    Mutant(
        "claim: of a marked grant",
        OPERATIONS,
        "        conditions.append(grants.c.status == GrantStatus.ACTIVE.value)\n",
        "",
        STORE_TESTS,
    ),
    Mutant(
        "claim: forced, of a grant that is being revoked",
        OPERATIONS,
        "        conditions.append(grants.c.status != GrantStatus.REVOKING.value)\n",
        "        pass\n",
        (*STORE_TESTS, "tests/contract/test_revoking.py"),
    ),
    Mutant(
        "claim: before the back-off is over",
        OPERATIONS,
        "        conditions.append(or_(grants.c.retry_at.is_(None), grants.c.retry_at <= now, waited_out))\n",
        "",
        STORE_TESTS,
    ),
    Mutant(
        "claim: without a refresh token",
        OPERATIONS,
        "    if not revoking:\n        conditions.append(grants.c.refresh_token.is_not(None))\n",
        "",
        STORE_TESTS,
    ),
    Mutant(
        "claim: to revoke what is in service",
        OPERATIONS,
        "        conditions.append(grants.c.status == GrantStatus.REVOKING.value)\n",
        "        pass\n",
        (*STORE_TESTS, "tests/contract/test_revoking.py", "tests/core/test_schedules.py"),
    ),
    Mutant(
        "claim: no in-flight mark",
        OPERATIONS,
        '        values["in_flight_since"] = func.coalesce(grants.c.in_flight_since, now)\n',
        "",
        STORE_TESTS,
    ),
    Mutant(
        "claim: a replay moves the provider's window",
        OPERATIONS,
        "func.coalesce(grants.c.in_flight_since, now)",
        "now",
        STORE_TESTS,
    ),
    Mutant(
        "claim: presentations are not counted",
        OPERATIONS,
        '        values["in_flight_tries"] = grants.c.in_flight_tries + 1\n',
        "",
        STORE_TESTS,
    ),
    Mutant(
        "claim: the lease is not stored",
        OPERATIONS,
        '        "claimed_until": now + bindparam("lease", type_=MICROSECONDS),\n',
        '        "claimed_until": now + 0 * bindparam("lease", type_=MICROSECONDS),\n',
        STORE_TESTS,
    ),
    # --- ours, extended, released ------------------------------------------------------------------------------------
    Mutant(
        "ours: of any generation",
        OPERATIONS,
        "        grants.c.generation == claim.grant.generation,\n        grants.c.claim_id == claim.id,",
        "        grants.c.claim_id == claim.id,",
        STORE_TESTS,
    ),
    Mutant(
        "ours: whoever holds the claim",
        OPERATIONS,
        "        grants.c.generation == claim.grant.generation,\n        grants.c.claim_id == claim.id,",
        "        grants.c.generation == claim.grant.generation,",
        STORE_TESTS,
    ),
    Mutant(
        "release: in doubt is forgotten",
        OPERATIONS,
        "    if not in_doubt:\n",
        "    if True:\n",
        STORE_TESTS,
    ),
    Mutant(
        "release: what was not sent counts",
        OPERATIONS,
        "    if not in_doubt:\n",
        "    if False:\n",
        STORE_TESTS,
    ),
    Mutant(
        "release: no back-off",
        OPERATIONS,
        '"retry_at": null() if retry_after is None else now + round(retry_after * SECOND),',
        '"retry_at": null(),',
        STORE_TESTS,
    ),
    Mutant(
        "release: failures are not counted",
        OPERATIONS,
        '        values["failures"] = grants.c.failures + 1\n',
        "        pass\n",
        STORE_TESTS,
    ),
    # --- the save's WHERE --------------------------------------------------------------------------------------------
    Mutant(
        "save: over any generation",
        OPERATIONS,
        'grants.c.generation == bindparam("before")]',
        'bindparam("before") == bindparam("before")]',
        STORE_TESTS,
    ),
    Mutant(
        "save: only while the claim holds",
        OPERATIONS,
        'grants.c.generation == bindparam("before")]',
        'grants.c.generation == bindparam("before"), grants.c.claim_id == bindparam("saved_by")]',
        (*STORE_TESTS, "tests/core/test_schedules.py"),
    ),
    Mutant(
        "save: over a newer consent with the same number",
        OPERATIONS,
        '        before.append(grants.c.consented_at == bindparam("consent"))\n',
        "        pass\n",
        (*STORE_TESTS, "tests/core/test_schedules.py"),
    ),
    Mutant(
        "save: a mark outlives it",
        OPERATIONS,
        "(grants.c.status == GrantStatus.REVOKING.value, grants.c.status), else_=GrantStatus.ACTIVE.value",
        "(grants.c.status != GrantStatus.ACTIVE.value, grants.c.status), else_=GrantStatus.ACTIVE.value",
        STORE_TESTS,
    ),
    Mutant(
        "save: brings a grant back that is being revoked",
        OPERATIONS,
        "(grants.c.status == GrantStatus.REVOKING.value, grants.c.status), else_=GrantStatus.ACTIVE.value",
        "(grants.c.status == '', grants.c.status), else_=GrantStatus.ACTIVE.value",
        (*STORE_TESTS, "tests/contract/test_revoking.py"),
    ),
    Mutant(
        "save: the claim and its marks stay",
        OPERATIONS,
        '        "prompt": None,\n        **_NOTHING_IN_FLIGHT,\n    }\n    if "refresh_life"',
        '        "prompt": None,\n    }\n    if "refresh_life"',
        STORE_TESTS,
    ),
    Mutant(
        "save: twice is a loss",
        OPERATIONS,
        "    return row, by == save_id\n",
        "    return row, False\n",
        STORE_TESTS,
    ),
    Mutant(
        "save: lifetimes count from the save, not from the request",
        OPERATIONS,
        "return null() if seconds is None else now + round((seconds - elapsed) * SECOND)",
        "return null() if seconds is None else now + round(seconds * SECOND)",
        STORE_TESTS,
    ),
    # --- marks and deletions -----------------------------------------------------------------------------------------
    Mutant(
        "mark: while a renewal is under way",
        OPERATIONS,
        "            grants.c.status == GrantStatus.ACTIVE.value,\n            grants.c.claim_id.is_(None),\n",
        "            grants.c.status == GrantStatus.ACTIVE.value,\n",
        STORE_TESTS,
    ),
    Mutant(
        "mark: while an outcome is in doubt",
        OPERATIONS,
        "            grants.c.claim_id.is_(None),\n            grants.c.in_flight_since.is_(None),\n",
        "            grants.c.claim_id.is_(None),\n",
        STORE_TESTS,
    ),
    Mutant(
        "mark: of a newer generation",
        OPERATIONS,
        "            grants.c.generation == grant.generation,\n            grants.c.status == GrantStatus.ACTIVE.value,\n",
        "            grants.c.status == GrantStatus.ACTIVE.value,\n",
        STORE_TESTS,
    ),
    Mutant(
        "revoked: a grant that was connected again is deleted",
        OPERATIONS,
        "delete(grants).where(_ours(claim), grants.c.status == GrantStatus.REVOKING.value)",
        "delete(grants).where(grants.c.grant_id == claim.grant.id)",
        ("tests/store/test_operations.py", "tests/contract/test_revoking.py", "tests/core/test_schedules.py"),
    ),
    Mutant(
        "consent: over a row that has moved on",
        OPERATIONS,
        "update(grants).where(grants.c.grant_id == before.id, grants.c.generation == before.generation).values(values)",
        "update(grants).where(grants.c.grant_id == before.id).values(values)",
        STORE_TESTS,
    ),
    # --- the flow: what is judged before a claim ---------------------------------------------------------------------
    Mutant(
        "judge: newer tokens are not adopted",
        RENEWAL,
        "    if grant.newer_than(job.seen):\n        return Adopted(grant)\n",
        "",
        FLOW_TESTS,
    ),
    Mutant(
        "judge: a marked grant is renewed",
        RENEWAL,
        "    if grant.status is GrantStatus.NEEDS_REAUTHENTICATION and not job.forced:\n",
        "    if False:\n",
        FLOW_TESTS,
    ),
    Mutant(
        "judge: the back-off is not respected",
        RENEWAL,
        "    if grant.retry_at is not None and grant.retry_at > grant.now:\n",
        "    if False:\n",
        FLOW_TESTS,
    ),
    Mutant(
        "judge: an early refusal renews every time",
        RENEWAL,
        "    if job.refused and fresh is not Freshness.EXPIRED and held_back(grant):\n",
        "    if False:\n",
        FLOW_TESTS,
    ),
    Mutant(
        "held: a strict token in doubt is replayed at once",
        RENEWAL,
        "    if job.refused or left is None or left <= 0:\n        return None\n    return left\n",
        "    return None\n",
        FLOW_TESTS,
    ),
    Mutant(
        "held: not looked at again under the claim",
        RENEWAL,
        "    if held(job, claim.grant, claim.grant.in_flight_tries - 1):\n",
        "    if False:\n",
        FLOW_TESTS,
    ),
    Mutant(
        "replay: after the grace",
        RENEWAL,
        "    return 0 < tries <= MAX_REPLAYS and grant.now < ends\n",
        "    return 0 < tries <= MAX_REPLAYS\n",
        FLOW_TESTS,
    ),
    Mutant(
        "replay: without end",
        RENEWAL,
        "    return 0 < tries <= MAX_REPLAYS and grant.now < ends\n",
        "    return 0 < tries and grant.now < ends\n",
        FLOW_TESTS,
    ),
    Mutant(
        "waiter: fights for a claim that holds",
        RENEWAL,
        "        free = not grant.claimed or waited >= job.profile.timing.lease\n",
        "        free = True\n",
        FLOW_TESTS,
    ),
    Mutant(
        "waiter: never takes over by its own clock",
        RENEWAL,
        "        free = not grant.claimed or waited >= job.profile.timing.lease\n",
        "        free = not grant.claimed\n",
        FLOW_TESTS,
    ),
    # --- the flow: what comes of a presentation ----------------------------------------------------------------------
    Mutant(
        "save: given up when the store is away",
        RENEWAL,
        "                yield from Sleep(SAVE_RETRY[min(failures, len(SAVE_RETRY) - 1)])\n                failures += 1\n",
        "                return None\n",
        FLOW_TESTS,
    ),
    Mutant(
        "save: before the spill",
        RENEWAL,
        "    yield from SpillTokens(claim, tokens, sent_at)\n    failures, over = 0, None\n",
        "    failures, over = 0, None\n",
        FLOW_TESTS,
    ),
    Mutant(
        "save: no new refresh token drops the old one",
        RENEWAL,
        "    tokens = answered if answered.refresh_token else replace(answered, refresh_token=redeemed)\n",
        "    tokens = answered\n",
        FLOW_TESTS,
    ),
    Mutant(
        "save: a row that fell behind drops the tokens",
        RENEWAL,
        "    return same_consent and grant.generation < before.generation\n",
        "    return False\n",
        FLOW_TESTS,
    ),
    Mutant(
        "save: a newer consent in a rewound row is overwritten",
        RENEWAL,
        "    same_consent = (grant.id, grant.consented_at) == (before.id, before.consented_at)\n",
        "    same_consent = grant.id == before.id\n",
        FLOW_TESTS,
    ),
    Mutant(
        "save: tokens of a revoked grant live on",
        RENEWAL,
        "                yield from revoke_too(job, tokens)\n",
        "",
        (*FLOW_TESTS, "tests/contract/test_revoking.py"),
    ),
    Mutant(
        "ambiguous: forgotten",
        RENEWAL,
        "    yield from ReleaseClaim(claim, in_doubt=True, retry_after=wait)\n",
        "    yield from ReleaseClaim(claim, in_doubt=False, retry_after=wait)\n",
        FLOW_TESTS,
    ),
    Mutant(
        "unprocessed: in doubt",
        RENEWAL,
        "    yield from ReleaseClaim(claim, in_doubt=False, retry_after=wait)\n    again = wait",
        "    yield from ReleaseClaim(claim, in_doubt=True, retry_after=wait)\n    again = wait",
        FLOW_TESTS,
    ),
    Mutant(
        "refused: condemned without naming the claim",
        RENEWAL,
        "MarkGrant(claim.grant, cause, claim, claims=",
        "MarkGrant(claim.grant, cause, None, claims=",
        FLOW_TESTS,
    ),
    Mutant(
        "operator: the registration does not pause",
        RENEWAL,
        "        yield from PauseRegistration(registration, cause, diagnosis.fix)\n",
        "        pass\n",
        FLOW_TESTS,
    ),
    Mutant(
        "operator: a pause is not looked at before a claim",
        RENEWAL,
        "        if pause is not None and not pause.due:\n            return paused(job, pause)\n",
        "",
        FLOW_TESTS,
    ),
    Mutant(
        "operator: a pause is not looked at under the claim",
        RENEWAL,
        "    if pause is not None and not pause.due:\n        yield from ReleaseClaim",
        "    if False:\n        yield from ReleaseClaim",
        FLOW_TESTS,
    ),
    Mutant(
        "operator: the claim is given back before the pause",
        RENEWAL,
        "        yield from PauseRegistration(registration, cause, diagnosis.fix)\n"
        "        yield from ReleaseClaim(claim, in_doubt=False, failed=False)\n",
        "        yield from ReleaseClaim(claim, in_doubt=False, failed=False)\n"
        "        yield from PauseRegistration(registration, cause, diagnosis.fix)\n",
        FLOW_TESTS,
    ),
    Mutant(
        "lost claim: an outcome all the same",
        RENEWAL,
        "            case NeverSent(reason) if reason == CLAIM_LOST:\n                return None\n",
        "",
        FLOW_TESTS,
    ),
    # --- the driver, the room, the transport --------------------------------------------------------------------------
    Mutant(
        "last look: a stale claim is not extended",
        DRIVERS,
        "            return room.store.extend_claim(claim)\n",
        "            return True\n",
        ROOM_TESTS,
    ),
    Mutant(
        "last look: none at all",
        TRANSPORT,
        "        if not go:\n            raise _Withheld(CLAIM_LOST)\n",
        "",
        ("tests/test_transport.py",),
    ),
    Mutant(
        "last look: after the request",
        TRANSPORT,
        'if event == "http11.send_request_headers.started" and',
        'if event == "http11.receive_response_headers.started" and',
        ("tests/test_transport.py",),
    ),
    Mutant(
        "deadline: each read has its own",
        TRANSPORT,
        "        left = (self._end if self.sent else self._send_by) - self._monotonic()\n",
        "        left = self._end - self._send_by\n",
        ("tests/test_transport.py",),
    ),
    Mutant(
        "claim: the spill is not looked into first",
        DRIVERS,
        "                room.replay_spill(effect.grant.id)\n",
        "",
        ROOM_TESTS,
    ),
    Mutant(
        "cache: the old token outlives the save",
        DRIVERS,
        "        room.cache.drop(claim.grant.key, saved.grant.read_at if saved.grant else room.monotonic())\n",
        "",
        ROOM_TESTS,
    ),
    Mutant(
        "one process: two renewals of a grant",
        ROOM,
        "            if running is not None:\n                return running\n",
        "",
        ROOM_TESTS,
    ),
    Mutant(
        "close: new claims are taken",
        DRIVERS,
        "            case ClaimGrant():\n                room.refuse_if_closing()\n",
        "            case ClaimGrant():\n",
        ROOM_TESTS,
    ),
    Mutant(
        "fork: the child has its parent's connections",
        ROOM,
        "            engine.dispose(close=False)\n",
        "            self._engine = engine\n",
        ROOM_TESTS,
    ),
    Mutant(
        "spill: not synced",
        SPILL,
        "            os.fsync(file.fileno())\n",
        "            pass\n",
        ("tests/test_rooms.py", "tests/faults/test_systematic.py"),
    ),
    Mutant(
        "watch: a jump is not noticed",
        WATCH,
        "                    self._jumped_at = grant.read_at\n",
        "                    pass\n",
        ("tests/test_rooms.py",),
    ),
    Mutant(
        "watch: seen once is witnessed",
        WATCH,
        "        return now - self.since >= (max(lease, self.left) if self.left <= LONGEST_LEASE else lease)\n",
        "        return True\n",
        ("tests/test_rooms.py",),
    ),
    Mutant(
        "seal: tokens open under another generation",
        SEALED,
        "return Context(TABLE, column, grant_id, key.registration, key.member, generation)",
        "return Context(TABLE, column, grant_id, key.registration, key.member, 0)",
        ("tests/secrets/test_tampering.py",),
    ),
    Mutant(
        "timing: a grace as long as it likes",
        PROFILE,
        "lease = min(max((self.grace_seconds or 0) / 2.5, 6.0), 40.0)",
        "lease = 40.0",
        ("tests/test_providers.py", "tests/core/test_renewal.py"),
    ),
    Mutant(
        "timing: a short grace is used",
        PROFILE,
        "if self.rotation is Rotation.GRACE and (self.grace_seconds or 0) < MINIMUM_GRACE:",
        "if False:",
        ("tests/test_providers.py", "tests/core/test_renewal.py"),
    ),
    Mutant(
        "watch: a back-off waits for a clock that was set back",
        WATCH,
        "        return retry_at if retry_at is not None and now >= over else None\n",
        "        return None\n",
        STORE_TESTS,
    ),
    Mutant(
        "threads: one registration holds up the others",
        ROOM,
        "            workers = self._renewal_workers.get(name)\n",
        "            workers = next(iter(self._renewal_workers.values()), None)\n",
        ROOM_TESTS,
    ),
    Mutant(
        "save: what a host's engine raises drops the tokens",
        DRIVERS,
        "        except Exception as error:  # whatever a host's engine raises: these tokens are nowhere else\n",
        "        except TokenKeeperError as error:\n",
        ROOM_TESTS,
    ),
    Mutant(
        "spill: removed before a rescue is stored",
        DRIVERS,
        "        if room.spill is not None and (isinstance(saved, Saved) or saved.grant is None):\n",
        "        if room.spill is not None:\n",
        ROOM_TESTS,
    ),
    # --- the revocation ----------------------------------------------------------------------------------------------
    Mutant(
        "revoke: without waiting for the claim",
        REVOCATION,
        "    while grant is not None and grant.status is GrantStatus.REVOKING:\n        lease = case.profile.timing.lease\n",
        "    while grant is not None and grant.status is GrantStatus.REVOKING:\n        lease = 0.0\n",
        ("tests/core/test_schedules.py", "tests/contract/test_revoking.py"),
    ),
    Mutant(
        "revoke: deleted, though the provider could not be told",
        REVOCATION,
        "    if diagnosis.remedy is Remedy.WAIT:\n",
        "    if False:\n",
        ("tests/contract/test_revoking.py",),
    ),
)
