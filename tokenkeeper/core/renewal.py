"""The renewal: claim, redeem, save, adopt. Many workers, one refresh, no grant lost (DESIGN section 4).

``renew`` runs once a grant at a time in a process (the driver sees to it) and any number of times at once across
processes (the claim sees to it). Its outcome is a value that all who wait share. The order is everything:

1. read the row: whoever is newer is adopted, a back-off or a pause is respected;
2. claim, committed, before anything is sent: lease, in-flight mark and proof that the store is writable in one;
3. open the refresh token and prove that sealing works;
4. redeem, with one last look at the claim just before the request is written;
5. save by compare-and-set; only then does anyone see the new token.

What went wrong is never sent (give the claim back), ambiguous (keep the in-flight mark, replay as the rotation allows),
refused (re-read; mark only what the claim still holds), the operator's (pause the registration) or the weather's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenkeeper.core.effects import (
    SECOND,
    Adopted,
    Announce,
    Claim,
    ClaimGrant,
    CountContradiction,
    EndPause,
    Flow,
    Gone,
    Introspect,
    LoadGrant,
    LoadPause,
    Marked,
    MarkGrant,
    MemberTurn,
    Misconfigured,
    NewId,
    OpenAccessToken,
    OpenedRefreshToken,
    OpenRefreshToken,
    OperatorTurn,
    Outcome,
    Overtaken,
    Pause,
    PauseRegistration,
    Redeem,
    ReleaseClaim,
    RememberSecret,
    Renewed,
    RevokeToken,
    Saved,
    SaveTokens,
    SecretInUse,
    Seen,
    Sleep,
    SpillTokens,
    StoredGrant,
    Weather,
)
from tokenkeeper.core.incident import incident_record
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.token_endpoint import (
    CLAIM_LOST,
    NeverSent,
    TokenSet,
    Unanswered,
    read_token_answer,
    secrets_in_turn,
)
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.events import ConfigurationProblem, ProviderTrouble, stable_id
from tokenkeeper.model import (
    Answer,
    Diagnosis,
    Freshness,
    GrantKey,
    GrantStatus,
    Registration,
    Remedy,
    Rotation,
    Secret,
    Verdict,
    to_datetime,
)

EARLY_REFUSALS = 30.0
"""A generation refused before its own expiry is renewed at most once in so many seconds."""

BLOCKED_SECONDS = 300.0
"""How long a blocked account's refresh token is left alone."""

MAX_BACK_OFF = 3600.0
POLL = (0.025, *(0.05,) * 20, 0.1)
"""Seconds between looks at a row that another worker has claimed; the last one repeats.

Most renewals take less than a second: as long, a token is seen at most 62 ms after it was saved.
"""

SAVE_RETRY = (0.05, 0.1, 0.2, 0.5)
"""Seconds between attempts to save new tokens; the last one repeats."""

TAKEOVER = 1.25
"""Seconds for which a claim that was taken from another worker sends nothing where a reuse may end the grant.

The other may be alive, with the only new tokens, and the database just back: it saves within :data:`SAVE_RETRY`, and then
the claim is found lost by the look before sending.
"""

PERHAPS_THIS_GRANT = frozenset({"invalid_request", "invalid_scope", "invalid_target"})
"""What a token endpoint may have against one grant's request, and not against the client (RFC 6749 section 5.2)."""

CONFIGURATION_NEWS = 3600.0
"""The same configuration problem is told once in so many seconds."""

CONTRADICTIONS = 2
"""So often a refused refresh token may be called active by introspection before the refusal counts."""

GRACE_MARGIN = 2.0
MAX_REPLAYS = 3


@dataclass(frozen=True, slots=True)
class RenewalJob:
    """What is to be renewed and why: the token set ``seen`` is refused, or old by its clock, or renewal is ``forced``."""

    key: GrantKey
    registration: Registration
    profile: Profile
    seen: Seen | None
    refused: bool = False
    forced: bool = False
    minimum_lifetime: float = 0.0
    leeway: float | None = None
    awaited: bool = True
    """Whether anybody waits for the outcome; if not, a claim of another worker is left to that worker."""


def renew(job: RenewalJob) -> Flow[Outcome]:
    """Replace the tokens that *job* has seen, or adopt those that somebody else has put in their place."""
    patience = 2 * job.profile.timing.lease
    waited = 0.0
    looks = 0
    while True:
        grant = yield from LoadGrant(job.key)
        if grant is None:
            return Gone()
        job = about(job, grant)
        settled = judge(job, grant)
        if settled is not None:
            return settled
        # A claim that visibly holds is looked at, not fought for: a statement that writes is dear to all others.
        free = not grant.claimed or waited >= job.profile.timing.lease
        if free and (claim := (yield from claimed(job, grant))) is not None:
            if isinstance(claim, OperatorTurn):
                return claim
            outcome = yield from redeem(job, claim)
            if outcome is not None:
                return outcome
        if waited > patience or not job.awaited:
            return Weather("claimed_elsewhere", retry_after=POLL[-1])
        pause = poll_pause(grant, looks)
        yield from Sleep(pause, idle=True)
        waited, looks = waited + pause, looks + 1


def poll_pause(grant: StoredGrant, looks: int) -> float:
    """Seconds until the next look at a row that somebody else has claimed, after so many *looks*; ± 25 % by the claim's id."""
    return POLL[min(looks, len(POLL) - 1)] * (0.75 + 0.5 * int((grant.claim_id or grant.id)[:2], 16) / 0xFF)


def about(job: RenewalJob, grant: StoredGrant) -> RenewalJob:
    """Aim the job at what is stored, where what it has seen says nothing about that: nothing yet, or what was there before.

    Newer tokens are adopted (:func:`judge`), unless they have expired by their clock since: then they are renewed like any.
    """
    if job.seen is None:
        return replace(job, seen=grant.seen)
    if grant.newer_than(job.seen) and not job.forced and grant.freshness(job.leeway) is Freshness.EXPIRED:
        return replace(job, seen=grant.seen, refused=False)
    return job


def judge(job: RenewalJob, grant: StoredGrant) -> Outcome | None:
    """Say why nothing needs to be, or may be, sent for *grant*; None: claim it (or wait for the one who has)."""
    assert job.seen is not None
    if grant.status is GrantStatus.REVOKING:
        return MemberTurn("revoking", grant.prompt, grant=grant)
    if grant.status is GrantStatus.NEEDS_REAUTHENTICATION and not job.forced:
        return MemberTurn(grant.prompt.cause if grant.prompt else "refused", grant.prompt, grant=grant)
    if grant.newer_than(job.seen):
        return Adopted(grant)
    fresh = grant.freshness(job.leeway)
    left = grant.seconds_left()
    lives = left is None or left >= job.minimum_lifetime
    settled = grant.in_flight_since is None  # else a rotation may be under way, or lost: that is reason enough
    if not job.refused and not job.forced and settled and lives and fresh in (Freshness.FRESH, Freshness.UNKNOWN):
        return Adopted(grant)
    if grant.sealed_refresh_token is None:
        return MemberTurn("no_refresh_token", grant.prompt, grant=grant, marked=False)
    if job.forced:
        wait = None if grant.claim_id is not None else held(job, grant, grant.in_flight_tries)
        return Weather("in_doubt", retry_after=wait) if wait else None
    if job.refused and fresh is not Freshness.EXPIRED and held_back(grant):
        return MemberTurn("refused_after_renewal", grant.prompt, grant=grant, marked=False)
    if grant.retry_at is not None and grant.retry_at > grant.now:
        return Weather("backing_off", retry_after=(grant.retry_at - grant.now) / SECOND)
    if grant.claim_id is None and (wait := held(job, grant, grant.in_flight_tries)):
        return Weather("in_doubt", retry_after=wait)
    return None


def held_back(grant: StoredGrant) -> float:
    """Seconds for which a refusal renews nothing: these tokens come from a renewal (not a consent) of a moment ago."""
    if grant.renewed_at is None or grant.renewed_at < grant.consented_at:
        return 0.0
    if grant.renewed_at > grant.now:  # the database's clock was set back: nobody knows how long ago it was
        return 0.0
    return max(EARLY_REFUSALS - (grant.now - grant.renewed_at) / SECOND, 0.0)


def held(job: RenewalJob, grant: StoredGrant, tries: int) -> float | None:
    """After *tries* presentations without an answer: seconds to hold the replay, or None if it may be sent.

    Where a reuse kills the family, the old access token is used up first; once it is dead there is nothing left to
    lose by asking again. An outage never condemns a grant: only an answer does.
    """
    if tries == 0 or grant.in_flight_since is None:
        return None
    match job.profile.effective_rotation:
        case Rotation.NONE | Rotation.BY_USE:
            return None
        case Rotation.GRACE if replayable(job, grant, tries):
            return None
        case Rotation.UNKNOWN if tries == 1:
            return None
    left = grant.seconds_left()
    if job.refused or left is None or left <= 0:
        return None
    return left


def replayable(job: RenewalJob, grant: StoredGrant, tries: int) -> bool:
    """Whether a presentation without an answer should be made again now: inside the provider's grace, less a margin.

    That holds for a token that is still good, too: when the grace is over, a lost successor is lost for ever.
    """
    if job.profile.effective_rotation is not Rotation.GRACE or grant.in_flight_since is None:
        return False
    ends = grant.in_flight_since + ((job.profile.grace_seconds or 0) - GRACE_MARGIN) * SECOND
    return 0 < tries <= MAX_REPLAYS and grant.now < ends


def claimed(job: RenewalJob, grant: StoredGrant) -> Flow[Claim | OperatorTurn | None]:
    """Take the claim, unless the registration is paused. None: somebody else has it; look again."""
    if not job.forced:
        pause = yield from LoadPause(job.key.registration)
        if pause is not None and not pause.due:
            return paused(job, pause)
    claim = yield from ClaimGrant(grant, job.profile.timing.lease, job.forced)
    if claim is None:
        return None
    if held(job, claim.grant, claim.grant.in_flight_tries - 1):
        yield from ReleaseClaim(claim, in_doubt=False, failed=False)
        return None
    if grant.claim_id is not None and job.profile.effective_rotation in (Rotation.STRICT, Rotation.UNKNOWN):
        yield from Sleep(TAKEOVER)
    if job.forced:
        return claim
    # Again under the claim: whoever was refused has paused the registration before giving the claim back.
    pause = yield from LoadPause(job.key.registration, probe=True)
    if pause is not None and not pause.due:
        yield from ReleaseClaim(claim, in_doubt=False, failed=False)
        return paused(job, pause)
    return claim if pause is None else replace(claim, probing=True)


def paused(job: RenewalJob, pause: Pause) -> OperatorTurn:
    """The registration's own credentials were refused: nothing is sent."""
    return OperatorTurn(pause.cause, f"renewals of {job.key.registration!r} are paused: {pause.cause}", pause.fix)


def redeem(job: RenewalJob, claim: Claim) -> Flow[Outcome | None]:
    """Present the claimed refresh token once and deal with whatever comes of it. None: the claim was lost; look again."""
    opened = yield from OpenRefreshToken(claim)
    if isinstance(opened, Misconfigured):
        return (yield from misconfigured(claim, opened.error))
    first = yield from SecretInUse(job.key.registration)
    for which, last in secrets_in_turn(job.registration, first):
        redeemed = yield from Redeem(claim, opened.secret, job.profile.timing.deadline, which)
        match redeemed.outcome:
            case NeverSent(reason) if reason == CLAIM_LOST:
                return None
            case NeverSent(reason):
                return (yield from unprocessed(job, claim, "unreachable", back_off(claim), weather(reason)))
            case Misconfigured(error):
                return (yield from misconfigured(claim, error))
            case Unanswered(reason):
                return (yield from ambiguous(job, claim, "unanswered", weather(reason)))
            case answer:
                quotable = (opened.secret, *job.registration.client_secret)
                read = read_token_answer(answer, job.profile, now=to_datetime(claim.grant.now), secrets=quotable)
                if isinstance(read, TokenSet):
                    if which != first:
                        yield from RememberSecret(job.key.registration, which)
                    return (yield from save(job, claim, read, opened.secret, redeemed.sent_at))
                if read.error_code == "invalid_client" and not last:
                    continue
                return (yield from refused(job, claim, opened.secret, answer, read))
    raise AssertionError("the last secret's answer was dealt with above")  # pragma: no cover


def misconfigured(claim: Claim, error: ConfigurationError) -> Flow[Outcome]:
    """Nothing was sent, because of the operator: a key, an endpoint, a proxy. Give the claim back."""
    yield from ReleaseClaim(claim, in_doubt=False, failed=False)
    return OperatorTurn(error.cause or "configuration", str(error), error.fix, error=error)


def save(job: RenewalJob, claim: Claim, answered: TokenSet, redeemed: Secret, sent_at: float) -> Flow[Outcome | None]:
    """Store the new tokens, however long it takes: they exist nowhere else. None: the row has moved on; look again."""
    # No new refresh token in the answer: the old one stays (RFC 6749 section 6).
    tokens = answered if answered.refresh_token else replace(answered, refresh_token=redeemed)
    yield from SpillTokens(claim, tokens, sent_at)
    failures, over = 0, None
    while True:
        match (yield from SaveTokens(claim, tokens, sent_at, over)):
            case Saved(grant):
                yield from resume(job, claim)
                return Renewed(grant) if grant.status is GrantStatus.ACTIVE else None
            case Overtaken(StoredGrant() as grant) if rescue := (yield from kept(claim, grant, tokens, redeemed)):
                claim, tokens = rescue
                yield from SpillTokens(claim, tokens, sent_at)
            case Overtaken(StoredGrant() as grant) if fell_behind(claim, grant):
                over = grant.generation
            case Overtaken(None, revoked=True):
                yield from revoke_too(job, tokens)
                return None
            case Overtaken():
                return None
            case _:
                yield from Sleep(SAVE_RETRY[min(failures, len(SAVE_RETRY) - 1)])
                failures += 1


def resume(job: RenewalJob, claim: Claim) -> Flow[None]:
    """The provider has accepted the client: a pause of its registration, which was sent through, is over."""
    if claim.probing or job.forced:
        yield from EndPause(job.key.registration)


def kept(claim: Claim, grant: StoredGrant, tokens: TokenSet, redeemed: Secret) -> Flow[tuple[Claim, TokenSet] | None]:
    """What to save where a newer consent has kept the refresh token that was just redeemed: its successor, and no more."""
    rotated = tokens.refresh_token != redeemed
    if not rotated or not grant.newer_than(claim.grant.seen) or grant.sealed_refresh_token is None:
        return None
    claim = replace(claim, grant=grant)
    opened = yield from OpenRefreshToken(claim)
    if not isinstance(opened, OpenedRefreshToken) or opened.secret != redeemed:
        return None
    access_token = yield from OpenAccessToken(grant)
    ends = None if grant.access_expires_at is None else grant.access_expires_at / SECOND
    return claim, replace(tokens, access_token=access_token, expires_at=ends, expires_in=None, scopes=None)


def fell_behind(claim: Claim, grant: StoredGrant) -> bool:
    """Whether the row is older than the claim on it: a backup was restored, or a failover lost the newest commits."""
    before = claim.grant
    same_consent = (grant.id, grant.consented_at) == (before.id, before.consented_at)
    return same_consent and grant.generation < before.generation


def revoke_too(job: RenewalJob, tokens: TokenSet) -> Flow[None]:
    """The grant was revoked and deleted while this renewal was under way: its tokens should not live on."""
    if job.profile.revocation_endpoint is None or (yield from LoadGrant(job.key)) is not None:
        return  # connected anew: where a revocation ends all that an account has granted, it would end that, too
    token, hint = tokens.access_token, "access_token"
    if tokens.refresh_token is not None:
        token, hint = tokens.refresh_token, "refresh_token"
    which = yield from SecretInUse(job.key.registration)
    yield from RevokeToken(job.key.registration, token, hint, job.profile.timing.deadline, which)


def refused(job: RenewalJob, claim: Claim, token: Secret, answer: Answer, diagnosis: Diagnosis) -> Flow[Outcome | None]:
    """Deal with a token endpoint's refusal, by whose turn it is."""
    match diagnosis.remedy:
        case Remedy.REAUTHENTICATE if diagnosis.verdict not in (Verdict.REVOKED, Verdict.STEP_UP):
            return (yield from ended(job, claim, token, diagnosis))
        case Remedy.ACT_AT_PROVIDER:
            yield from ReleaseClaim(claim, in_doubt=False, retry_after=BLOCKED_SECONDS)
            return MemberTurn("account_blocked", claim.grant.prompt, diagnosis, claim.grant, marked=False, blocked=True)
        case Remedy.RECONFIGURE | Remedy.REPEAT | Remedy.WIDEN_SCOPE:
            return (yield from operator_must_act(job, claim, diagnosis))
    if diagnosis.verdict is Verdict.RATE_LIMITED or 400 <= answer.status < 500:
        if diagnosis.verdict is not Verdict.RATE_LIMITED:
            yield from trouble(job, token, answer, diagnosis)
        wait = min(diagnosis.retry_after or back_off(claim), MAX_BACK_OFF)
        return (yield from unprocessed(job, claim, str(diagnosis.verdict), wait, diagnosis))
    yield from trouble(job, token, answer, diagnosis)
    return (yield from ambiguous(job, claim, str(diagnosis.verdict), diagnosis))


def operator_must_act(job: RenewalJob, claim: Claim, diagnosis: Diagnosis) -> Flow[OperatorTurn]:
    """The client was refused: all its renewals pause. Or only this request was, perhaps: then the others go on."""
    registration = job.key.registration
    cause = diagnosis.error_code or str(diagnosis.verdict)
    if cause in PERHAPS_THIS_GRANT:
        yield from ReleaseClaim(claim, in_doubt=False, retry_after=back_off(claim))
        problem = ConfigurationProblem(
            id=stable_id("ConfigurationProblem", registration, diagnosis.rule),
            registration=registration,
            member=job.key.member,
            cause=cause,
            fix=diagnosis.fix,
        )
        yield from Announce(problem, every=CONFIGURATION_NEWS)
    else:
        yield from PauseRegistration(registration, cause, diagnosis.fix)
        yield from ReleaseClaim(claim, in_doubt=False, failed=False)
    return OperatorTurn(cause, diagnosis.message, diagnosis.fix, diagnosis)


def ended(job: RenewalJob, claim: Claim, token: Secret, diagnosis: Diagnosis) -> Flow[Outcome | None]:
    """The refresh token is dead: mark the grant and keep the ciphertext. None: the row has moved on; look again."""
    yield from resume(job, claim)
    cause = str(diagnosis.verdict)
    if job.profile.introspection_endpoint and diagnosis.verdict is Verdict.GRANT_INVALID:
        match (yield from Introspect(job.key.registration, token, job.profile.timing.deadline)):
            case "active" if (yield from CountContradiction(claim.grant.seen)) <= CONTRADICTIONS:
                # Refused, yet alive: the provider contradicts itself. That is weather, unless it goes on: some look at
                # the token and not at the account when they are asked (oidc-provider), and the refusal is right.
                return (yield from unprocessed(job, claim, "contradiction", back_off(claim), diagnosis))
            case "expired":
                cause = str(Verdict.GRANT_EXPIRED)
            case "revoked":
                cause = str(Verdict.GRANT_REVOKED)
    if claim.in_doubt and cause in (str(Verdict.GRANT_INVALID), str(Verdict.GRANT_REUSED)):
        cause = "lost_answer"
    match (yield from MarkGrant(claim.grant, cause, claim, claims=diagnosis.claims, acr_values=diagnosis.acr_values)):
        case Marked(grant):
            return MemberTurn(cause, grant.prompt, diagnosis, grant)
    return None


def unprocessed(job: RenewalJob, claim: Claim, cause: str, wait: float, diagnosis: Diagnosis) -> Flow[Outcome]:
    """Not sent, or not taken: the refresh token is as it was. One that was in doubt before still is."""
    yield from ReleaseClaim(claim, in_doubt=False, retry_after=wait)
    again = wait if replayable(job, claim.grant, claim.grant.in_flight_tries - 1) else None
    return Weather(cause, retry_after=wait, diagnosis=diagnosis, follow_up=again)


def ambiguous(job: RenewalJob, claim: Claim, cause: str, diagnosis: Diagnosis) -> Flow[Outcome]:
    """Sent, and nobody knows what became of it: keep the in-flight mark; inside a grace the keeper replays by itself."""
    wait = min(diagnosis.retry_after or back_off(claim), MAX_BACK_OFF)
    again = None
    if replayable(job, claim.grant, claim.grant.in_flight_tries):
        again = wait = min(wait, 1.0)
    yield from ReleaseClaim(claim, in_doubt=True, retry_after=wait)
    return Weather(cause, retry_after=wait, diagnosis=diagnosis, follow_up=again)


def back_off(claim: Claim) -> float:
    """Seconds until the next try: 1, 2, 4, … up to 15 minutes, ± 20 % by the claim's random id."""
    spread = 0.8 + 0.4 * int(claim.id[:4], 16) / 0xFFFF
    return float(min(2.0 ** min(claim.grant.failures, 12), 900.0) * spread)


def weather(reason: str) -> Diagnosis:
    """A diagnosis for a token request that had no answer."""
    verdict = Verdict.PROVIDER_FAULT
    return Diagnosis(
        verdict,
        verdict.remedy,
        verdict.turn,
        rule="transport",
        message=f"The token endpoint did not answer: {reason}.",
        fix="Nothing is lost: the grant is kept and the renewal is tried again.",
    )


def trouble(job: RenewalJob, token: Secret, answer: Answer, diagnosis: Diagnosis) -> Flow[None]:
    """Record an incident for the provider's support."""
    incident = incident_record(
        answer,
        method="POST",
        url=job.profile.token_endpoint,
        client_id=job.registration.client_id,
        secrets=(token, *job.registration.client_secret),
    )
    yield from Announce(
        ProviderTrouble(
            id=(yield from NewId()),
            registration=job.key.registration,
            member=job.key.member,
            cause=diagnosis.rule,
            incident=incident,
        )
    )


def answers(job: RenewalJob, outcome: Outcome, theirs: RenewalJob | None = None) -> bool:
    """Whether the outcome of somebody else's renewal (*theirs*) in this process answers *job*; else it asks for its own."""
    match outcome:
        case Renewed():
            return True
        case Adopted(grant):
            newer = job.seen is not None and grant.newer_than(job.seen)
            left = grant.seconds_left()
            return newer or not (job.refused or job.forced or (left is not None and left < job.minimum_lifetime))
        case MemberTurn(marked=True) | Gone():
            return not job.forced
        case Weather("claimed_elsewhere") if theirs is not None and not theirs.awaited:
            return False
        case _:
            same = theirs is not None and (theirs.seen, theirs.refused, theirs.forced) == (
                job.seen,
                job.refused,
                job.forced,
            )
            return same or not (job.refused or job.forced)
