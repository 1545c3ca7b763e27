"""A guarded call and its refusal: whose turn is it, and what do we do?

``guarded_call`` gets a usable token, makes the call, reads what the answer says, and where it is our turn renews once
and repeats once. Everything else is said, by whose turn it is, in an error, or passed through as the same object:

- ours: expired, invalid                → renew (or adopt what is newer in the store) and repeat;
- the member's: revoked, scope, step-up → one prompt in the grant's row, one event, an error that carries the prompt;
- the operator's: empty, bad scheme     → a configuration error with the fix; the grant is not touched;
- nobody's: 429, 5xx                    → the answer passes through; a 5xx leaves an incident record.

A refusal is evidence only against the generation it was seen on, so the row is read again before anything is concluded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

from tokenkeeper.core.diagnosis import diagnose
from tokenkeeper.core.effects import (
    SECOND,
    Adopted,
    Announce,
    CallApi,
    CountRefusal,
    Discard,
    Flow,
    InProgress,
    LoadGrant,
    Marked,
    MarkGrant,
    MemberTurn,
    NewId,
    OpenAccessToken,
    OpenPrompt,
    OperatorTurn,
    Outcome,
    Renew,
    Renewed,
    Repeatable,
    Reply,
    Seen,
    Sleep,
    StartRenewal,
    StoredGrant,
    Weather,
)
from tokenkeeper.core.incident import incident_record
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.renewal import CONFIGURATION_NEWS, held_back
from tokenkeeper.errors import (
    AccountBlocked,
    ConfigurationError,
    NotConnected,
    ReauthenticationRequired,
    RenewalInProgress,
    ScopeRequired,
    TemporarilyUnavailable,
    TokenKeeperError,
)
from tokenkeeper.events import ConfigurationProblem, GrantExpiring, ProviderTrouble, stable_id
from tokenkeeper.model import (
    AccessToken,
    Diagnosis,
    Freshness,
    GrantKey,
    GrantStatus,
    Prompt,
    Registration,
    Secret,
    Turn,
    Verdict,
    to_datetime,
)

YOUNG = 60.0
"""A token younger than this (seconds) that is called revoked is tried once more: replicas lag."""

REPLICA_LAG = 3.0
"""Seconds to wait before that."""

NEW_CONSENT = 300.0
"""For so many seconds after a new consent a missing scope may still be on its way through the provider."""

PROVIDER_NEWS = 300.0
"""That a provider refuses everybody is told once in so many seconds."""

LAST_CALL = 7 * 86_400.0
"""An end that no renewal can put off is announced at a tenth of the life before it, but at most so many seconds."""


@dataclass(frozen=True, slots=True)
class Case:
    """Whose call it is, at which provider, and how the host wants it."""

    key: GrantKey
    registration: Registration
    profile: Profile
    retry: bool = True
    leeway: float | None = None


def guarded_call(case: Case, token: AccessToken | None = None, reply: Reply | None = None) -> Flow[Reply]:
    """Call the API for the member; renew the token at most once if it is refused, and repeat the call at most once.

    The hot path hands over its *token* and the *reply* when the reply is one to be judged.
    """
    if token is None:
        token = yield from usable_token(case)
    if reply is None:
        reply = yield from CallApi(token)
    again = yield from recover(case, token, reply)
    if again is None or not case.retry or not (yield from Repeatable()):
        return reply
    yield from Discard(reply)
    reply = yield from CallApi(again)
    yield from recover(case, again, reply, first=token)
    return reply


def usable_token(case: Case, minimum_lifetime: float = 0.0) -> Flow[AccessToken]:
    """Return an access token that is good by its clock, renewing it first where that is needed.

    One renewed in this call is returned whatever its life. Raises the errors of ``tokenkeeper.errors``.
    """
    grant = yield from standing_grant(case)
    fresh = grant.freshness(case.leeway)
    left = grant.seconds_left()
    if fresh is Freshness.EXPIRED and grant.sealed_refresh_token is None:
        yield from needs_member(case, grant, "expired")
    elif fresh is Freshness.EXPIRED or (left is not None and left < minimum_lifetime):
        outcome = yield from Renew(case.key, grant.seen, minimum_lifetime=minimum_lifetime)
        grant = yield from settled(case, outcome, grant.seen)
    else:
        yield from look_ahead(case, grant, fresh)
    return (yield from OpenAccessToken(grant))


def renew_now(case: Case) -> Flow[StoredGrant]:
    """Renew whatever the clock, a mark, a back-off or a pause says: somebody asked for it."""
    outcome = yield from Renew(case.key, None, forced=True)
    if isinstance(outcome, MemberTurn) and outcome.cause == "no_refresh_token" and outcome.grant is not None:
        raise reauthentication(case, outcome.grant.prompt, outcome.cause)
    if isinstance(outcome, InProgress):  # what is stored is not what was asked for
        raise error_of(case, outcome, None, None)
    return (yield from settled(case, outcome, Seen("", 0)))


def standing_grant(case: Case, reply: Reply | None = None, diagnosis: Diagnosis | None = None) -> Flow[StoredGrant]:
    """Load the member's grant and see that it stands; raise whose turn it is if it does not."""
    grant = yield from LoadGrant(case.key)
    if grant is None:
        raise not_connected(case, reply, diagnosis) from chained(reply)
    if grant.status is not GrantStatus.ACTIVE:
        cause = grant.prompt.cause if grant.prompt else str(grant.status)
        raise reauthentication(case, grant.prompt, cause, reply, diagnosis) from chained(reply)
    return grant


def look_ahead(case: Case, grant: StoredGrant, fresh: Freshness) -> Flow[None]:
    """Start a renewal of an aging token in the background, and announce ends that no renewal can put off."""
    what, end = "access", grant.access_expires_at
    if grant.sealed_refresh_token is not None:
        what, end = "refresh", grant.refresh_expires_at
        # What a stopped worker has presented is settled while the provider's grace lasts.
        if fresh is Freshness.AGING or grant.abandoned:
            yield from StartRenewal(case.key, grant.seen)
    if end is not None and end - grant.now < min(LAST_CALL * SECOND, (end - grant.issued_at) / 10):
        yield from Announce(expiring(grant, what, end))


def recover(
    case: Case, token: AccessToken, reply: Reply, *, first: AccessToken | None = None
) -> Flow[AccessToken | None]:
    """Judge a reply: None lets it pass through, a token asks for the one repetition, an error says whose turn it is.

    *first* is the token of the call that this reply repeats; then nothing is renewed again.
    """
    if reply.answer is None:
        return None
    diagnosis = diagnose(reply.answer, case.profile.rules, secrets=(token,))
    if diagnosis.verdict in (Verdict.OK, Verdict.NOT_TOKEN, Verdict.RATE_LIMITED, Verdict.DPOP_NONCE):
        return None
    if diagnosis.verdict is Verdict.PROVIDER_FAULT:
        yield from report_incident(case, token, reply, diagnosis)
        return None
    if not our_token(case, token, reply, diagnosis):
        return None
    match diagnosis.verdict:
        case Verdict.EMPTY | Verdict.BAD_SCHEME | Verdict.CLIENT_CONFIG:
            return (yield from misconfigured(case, reply, diagnosis))
        case Verdict.INSUFFICIENT_SCOPE:
            return (yield from scope_missing(case, token, reply, diagnosis, first))
        case Verdict.EXPIRED | Verdict.INVALID:
            return (yield from token_dead(case, token, reply, diagnosis, first))
        case Verdict.REVOKED:
            return (yield from grant_revoked(case, token, reply, diagnosis, first))
        case _:
            return (yield from member_must_act(case, token, reply, diagnosis, first))


def our_token(case: Case, token: AccessToken, reply: Reply, diagnosis: Diagnosis) -> bool:
    """Whether the refused request carried this token; a refusal of another credential is no evidence against it."""
    name = case.profile.header.lower()
    # A Secret, for it may be another credential: a traceback of this frame must not show it.
    sent = next((Secret(value) for key, value in reply.request_headers if key == name), None)
    if sent is None:
        return diagnosis.verdict in (Verdict.EMPTY, Verdict.BAD_SCHEME) or carried_elsewhere(token, reply)
    if token.reveal() in sent.reveal():
        return True
    if "<AccessToken" in sent.reveal():
        fix = "Use auth=token, headers=token.headers, or token.reveal()."
        raise ConfigurationError(
            f"The request to {case.key.registration!r} carried the token's redacted repr in {case.profile.header}: "
            f"a str() of the AccessToken went into the header. It is the operator's turn. {fix}",
            cause="redacted_token",
            fix=fix,
            **about(case, reply),
        ) from chained(reply)
    if sent.reveal().partition(" ")[0].lower() != case.profile.scheme.lower():
        fix = "Attach the token with auth=token: a netrc entry or the client's own auth overrides a header set by hand."
        raise ConfigurationError(
            f"The request to {case.key.registration!r} carried another credential in {case.profile.header} than the "
            f"token it was given. It is the operator's turn. {fix}",
            cause="other_credential",
            fix=fix,
            **about(case, reply),
        ) from chained(reply)
    return False


def carried_elsewhere(token: AccessToken, reply: Reply) -> bool:
    """Whether a request without our header may have carried the token: its headers are not known, or another of them,
    the URL or a form holds it (RFC 6750 section 2). Else it is another service's refusal, or of a redirect's last host."""
    return (
        not reply.request_headers
        or any(token.reveal() in value for _, value in reply.request_headers)
        or any(key == "content-type" and "form" in value for key, value in reply.request_headers)
        or token.reveal() in unquote(reply.url or "")
    )


# --- ours ------------------------------------------------------------------------------------------------------------


def token_dead(
    case: Case, token: AccessToken, reply: Reply, diagnosis: Diagnosis, first: AccessToken | None
) -> Flow[AccessToken | None]:
    """Expired, or invalid with the cause unstated: adopt what is newer in the store, else renew once."""
    seen = Seen(token.grant_id, token.generation)
    if first is not None:
        yield from refused_again(case, token, reply, diagnosis)
    outcome = yield from Renew(case.key, seen, refused=True)
    match outcome:
        case MemberTurn("no_refresh_token", grant=StoredGrant() as grant):
            if diagnosis.verdict is Verdict.EXPIRED or grant.freshness(case.leeway) is Freshness.EXPIRED:
                yield from needs_member(case, grant, "expired", reply, diagnosis)
            yield from refused_again(case, token, reply, diagnosis, cause="invalid")
        case MemberTurn("refused_after_renewal", grant=StoredGrant() as grant):
            yield from refused_early(case, grant, token, reply, diagnosis)
    grant = yield from settled(case, outcome, seen, reply, diagnosis)
    return (yield from OpenAccessToken(grant))


def refused_early(
    case: Case, grant: StoredGrant, token: AccessToken, reply: Reply, diagnosis: Diagnosis
) -> Flow[NoReturn]:
    """Renewed a moment ago, refused, and too soon to renew again: the weather, unless the member was asked already."""
    if grant.prompt is not None and grant.prompt.cause == "refused_after_renewal":
        yield from refused_again(case, token, reply, diagnosis)
    raise unavailable(case, "renewed_lately", held_back(grant), reply, diagnosis) from chained(reply)


def settled(
    case: Case,
    outcome: Outcome | InProgress,
    seen: Seen,
    reply: Reply | None = None,
    diagnosis: Diagnosis | None = None,
) -> Flow[StoredGrant]:
    """Return the grant that a renewal's outcome leaves for use, or raise this caller's own error for it."""
    if isinstance(outcome, Renewed | Adopted):
        return outcome.grant
    if isinstance(outcome, InProgress):
        # A slow callback of the host may have held up the news: the row knows best.
        grant = yield from standing_grant(case, reply, diagnosis)
        if grant.newer_than(seen) or (reply is None and grant.freshness(case.leeway) is not Freshness.EXPIRED):
            return grant
    if isinstance(outcome, MemberTurn) and outcome.blocked and outcome.grant is not None:
        prompt = yield from OpenPrompt(outcome.grant, "account_blocked")
        raise blocked(case, prompt, reply, outcome.diagnosis or diagnosis) from chained(reply)
    unmarked = isinstance(outcome, MemberTurn) and not outcome.marked and outcome.cause != "no_refresh_token"
    if isinstance(outcome, MemberTurn) and unmarked and outcome.grant is not None:
        prompt = yield from OpenPrompt(outcome.grant, outcome.cause)
        raise reauthentication(case, prompt, outcome.cause, reply, outcome.diagnosis or diagnosis) from chained(reply)
    raise error_of(case, outcome, reply, diagnosis) from chained(reply)


def still_current(case: Case, seen: Seen, reply: Reply, diagnosis: Diagnosis) -> Flow[StoredGrant]:
    """See that the refused token set is still the stored one; a call is made at most twice, so else it is the weather."""
    grant = yield from standing_grant(case, reply, diagnosis)
    if grant.newer_than(seen):
        raise unavailable(case, "overtaken", 0.0, reply, diagnosis) from chained(reply)
    return grant


def refused_again(
    case: Case, token: AccessToken, reply: Reply, diagnosis: Diagnosis, cause: str = "refused_after_renewal"
) -> Flow[NoReturn]:
    """A token that cannot or must not be renewed again was refused: the member's turn, or, of three members, the provider's."""
    grant = yield from still_current(case, Seen(token.grant_id, token.generation), reply, diagnosis)
    if cause == "refused_after_renewal" and grant.sealed_refresh_token is not None and not held_back(grant):
        # Adopted, not renewed: nobody has tried yet whether a renewal helps. The next call does.
        raise unavailable(case, "overtaken", 0.0, reply, diagnosis) from chained(reply)
    if (yield from CountRefusal(case.key)):
        yield from report_incident(case, token, reply, diagnosis, cause="refuses_everybody", every=PROVIDER_NEWS)
        raise unavailable(case, "refuses_everybody", None, reply, diagnosis) from chained(reply)
    prompt = yield from OpenPrompt(grant, cause)
    raise reauthentication(case, prompt, cause, reply, diagnosis) from chained(reply)


# --- the member's ----------------------------------------------------------------------------------------------------


def grant_revoked(
    case: Case, token: AccessToken, reply: Reply, diagnosis: Diagnosis, first: AccessToken | None
) -> Flow[AccessToken | None]:
    """Called revoked: a young token gets a second chance, a claim in flight its say; then the grant is marked."""
    seen = Seen(token.grant_id, token.generation)
    tried_before = first is not None and (first.grant_id, first.generation) == (token.grant_id, token.generation)
    waited = False
    while True:
        grant = yield from standing_grant(case, reply, diagnosis)
        if grant.newer_than(seen):
            if first is not None:
                raise unavailable(case, "overtaken", 0.0, reply, diagnosis) from chained(reply)
            return (yield from OpenAccessToken(grant))
        if waited:
            return (yield from OpenAccessToken(grant))
        final = case.profile.revocation == "grant" or grant.sealed_refresh_token is None
        if final and grant.now - grant.issued_at < YOUNG * SECOND and not tried_before:
            if first is not None:
                raise unavailable(case, "revoked_too_soon", REPLICA_LAG, reply, diagnosis) from chained(reply)
            if not case.retry or not (yield from Repeatable()):
                return None
            yield from Sleep(REPLICA_LAG)
            waited = True
            continue
        in_flight = grant.claim_id is not None or grant.in_flight_since is not None
        if in_flight or not final:
            if first is not None and not in_flight:
                yield from refused_again(case, token, reply, diagnosis, cause="revoked")
            outcome = yield from Renew(case.key, seen, refused=True)
            if isinstance(outcome, MemberTurn) and outcome.cause == "refused_after_renewal":
                yield from refused_early(case, grant, token, reply, diagnosis)
            grant = yield from settled(case, outcome, seen, reply, diagnosis)
            if first is not None:
                raise unavailable(case, "overtaken", 0.0, reply, diagnosis) from chained(reply)
            return (yield from OpenAccessToken(grant))
        match (yield from MarkGrant(grant, "revoked")):
            case Marked(marked):
                raise reauthentication(case, marked.prompt, "revoked", reply, diagnosis) from chained(reply)


def needs_member(
    case: Case, grant: StoredGrant, cause: str, reply: Reply | None = None, diagnosis: Diagnosis | None = None
) -> Flow[NoReturn]:
    """Mark a grant that nothing but the member can bring back, unless the row has moved on meanwhile."""
    match (yield from MarkGrant(grant, cause)):
        case Marked(marked):
            raise reauthentication(case, marked.prompt, cause, reply, diagnosis) from chained(reply)
        case None:
            raise not_connected(case, reply, diagnosis) from chained(reply)
        case moved if moved.status is not GrantStatus.ACTIVE:
            raise reauthentication(case, moved.prompt, cause, reply, diagnosis) from chained(reply)
    raise unavailable(case, "overtaken", 0.0, reply, diagnosis) from chained(reply)


def scope_missing(
    case: Case, token: AccessToken, reply: Reply, diagnosis: Diagnosis, first: AccessToken | None
) -> Flow[AccessToken | None]:
    """Say exactly which scopes are missing; just after a new consent they may still be on their way."""
    grant = yield from standing_grant(case, reply, diagnosis)
    if grant.newer_than(Seen(token.grant_id, token.generation)) and first is None:
        return (yield from OpenAccessToken(grant))
    if grant.consented_at > grant.created_at and grant.now - grant.consented_at < NEW_CONSENT * SECOND:
        return None
    wanted = diagnosis.scopes or case.registration.scopes
    missing = tuple(scope for scope in wanted if scope not in grant.scopes)
    if not missing:
        yield from misconfigured(case, reply, diagnosis)
    prompt = yield from OpenPrompt(grant, "insufficient_scope", missing)
    raise ScopeRequired(
        f"{case.key.registration!r} refused {case.key.member!r}'s call: the member has not consented to "
        f"{', '.join(missing)}. It is the member's turn: send them to begin_authorization(); it asks for the missing scopes.",
        cause="insufficient_scope",
        prompt=prompt,
        **about(case, reply, diagnosis),
    ) from chained(reply)


def member_must_act(
    case: Case, token: AccessToken, reply: Reply, diagnosis: Diagnosis, first: AccessToken | None
) -> Flow[AccessToken]:
    """Step-up, or a blocked account: the row stays as it is, with a prompt that says what is asked for."""
    grant = yield from standing_grant(case, reply, diagnosis)
    if grant.newer_than(Seen(token.grant_id, token.generation)):
        # The member may have just done what is asked for.
        if first is not None:
            raise unavailable(case, "overtaken", 0.0, reply, diagnosis) from chained(reply)
        return (yield from OpenAccessToken(grant))
    cause = str(diagnosis.verdict)
    prompt = yield from OpenPrompt(grant, cause, diagnosis.scopes, diagnosis.acr_values, diagnosis.claims)
    if diagnosis.verdict is Verdict.ACCOUNT_BLOCKED:
        raise blocked(case, prompt, reply, diagnosis) from chained(reply)
    raise reauthentication(case, prompt, cause, reply, diagnosis) from chained(reply)


# --- the operator's, and nobody's ------------------------------------------------------------------------------------


def misconfigured(case: Case, reply: Reply, diagnosis: Diagnosis) -> Flow[NoReturn]:
    """The operator's turn: the grant is not touched."""
    registration = case.key.registration
    event = ConfigurationProblem(
        id=stable_id("ConfigurationProblem", registration, diagnosis.rule),
        registration=registration,
        member=case.key.member,
        cause=str(diagnosis.verdict),
        fix=diagnosis.fix,
    )
    yield from Announce(event, every=CONFIGURATION_NEWS)
    raise ConfigurationError(
        f"{registration!r} refused the call: {diagnosis.message} It is the operator's turn: {diagnosis.fix}",
        cause=str(diagnosis.verdict),
        fix=diagnosis.fix,
        **about(case, reply, diagnosis.for_turn(Turn.OPERATOR)),
    ) from chained(reply)


def report_incident(
    case: Case,
    token: AccessToken,
    reply: Reply,
    diagnosis: Diagnosis,
    cause: str | None = None,
    every: float | None = None,
) -> Flow[None]:
    """Record an incident for the provider's support, on an event; with *every*, the same once in so many seconds."""
    assert reply.answer is not None
    incident = incident_record(
        reply.answer,
        method=reply.method,
        url=reply.url,
        request_headers=reply.request_headers,
        client_id=case.registration.client_id,
        secrets=(token,),
    )
    cause = cause or diagnosis.rule
    yield from Announce(
        ProviderTrouble(
            id=stable_id("ProviderTrouble", case.key.registration, cause) if every else (yield from NewId()),
            registration=case.key.registration,
            member=case.key.member,
            cause=cause,
            incident=incident,
        ),
        every,
    )


def expiring(grant: StoredGrant, what: str, at: int) -> GrantExpiring:
    """The news that a grant nears an end; once an end, to the day."""
    return GrantExpiring(
        id=stable_id("GrantExpiring", grant.id, what, at // (86_400 * SECOND)),
        registration=grant.key.registration,
        member=grant.key.member,
        grant_id=grant.id,
        generation=grant.generation,
        what=what,
        expires_at=to_datetime(at),
    )


# --- the errors ------------------------------------------------------------------------------------------------------


def about(case: Case, reply: Reply | None = None, diagnosis: Diagnosis | None = None) -> dict[str, Any]:
    """What every error says of itself."""
    return {
        "registration": case.key.registration,
        "member": case.key.member,
        "diagnosis": diagnosis,
        "response": reply.value if reply else None,
    }


def chained(reply: Reply | None) -> BaseException | None:
    """The user's own exception, to chain to."""
    return reply.value if reply and reply.raised and isinstance(reply.value, BaseException) else None


def sentence(text: str) -> str:
    """The text with a full stop."""
    return text if text.endswith(".") else f"{text}."


def not_connected(case: Case, reply: Reply | None = None, diagnosis: Diagnosis | None = None) -> NotConnected:
    """No such grant: never connected, or forgotten."""
    key = case.key
    return NotConnected(
        f"{key.member!r} is not connected to {key.registration!r}. It is the member's turn: send them to "
        f"begin_authorization({key.registration!r}, {key.member!r}).",
        cause="not_connected",
        prompt=Prompt(key.registration, key.member, "not_connected", case.registration.scopes, None),
        **about(case, reply, diagnosis and diagnosis.for_turn(Turn.MEMBER)),
    )


def reauthentication(
    case: Case, prompt: Prompt | None, cause: str, reply: Reply | None = None, diagnosis: Diagnosis | None = None
) -> ReauthenticationRequired:
    """The member must sign in and consent again."""
    key = case.key
    said = f" {diagnosis.message}" if diagnosis else ""
    if cause == "revoking":
        return ReauthenticationRequired(
            f"{key.member!r} is being disconnected from {key.registration!r}: the grant serves nobody until revoke() or "
            "forget() has ended. It is the member's turn only if they want to connect again.",
            cause=cause,
            prompt=prompt,
            **about(case, reply, diagnosis and diagnosis.for_turn(Turn.MEMBER)),
        )
    return ReauthenticationRequired(
        f"{key.member!r} must connect to {key.registration!r} again ({cause}).{said} It is the member's turn: send them "
        f"to begin_authorization({key.registration!r}, {key.member!r}); the grant's row is kept.",
        cause=cause,
        prompt=prompt,
        **about(case, reply, diagnosis and diagnosis.for_turn(Turn.MEMBER)),
    )


def blocked(case: Case, prompt: Prompt, reply: Reply | None, diagnosis: Diagnosis | None) -> AccountBlocked:
    """Signing in again does not help."""
    said = f" {diagnosis.message} {diagnosis.fix}" if diagnosis else ""
    return AccountBlocked(
        f"{case.key.registration!r} blocks {case.key.member!r}'s account.{said} It is the member's turn, at the provider.",
        cause="account_blocked",
        prompt=prompt,
        **about(case, reply, diagnosis),
    )


def unavailable(
    case: Case, cause: str, retry_after: float | None, reply: Reply | None = None, diagnosis: Diagnosis | None = None
) -> TemporarilyUnavailable:
    """The weather: nobody's turn."""
    said = f" {diagnosis.message}" if diagnosis else ""
    later = "" if retry_after is None else f" Try again in {max(retry_after, 1):.0f} s."
    return TemporarilyUnavailable(
        f"No usable token of {case.key.member!r} at {case.key.registration!r} just now ({cause}).{said} It is nobody's "
        f"turn, and the grant is kept.{later}",
        cause=cause,
        retry_after=retry_after,
        **about(case, reply, diagnosis and diagnosis.for_turn(Turn.NOBODY)),
    )


def error_of(
    case: Case, outcome: Outcome | InProgress, reply: Reply | None, diagnosis: Diagnosis | None
) -> TokenKeeperError:
    """Return this caller's own error for a renewal's outcome that leaves no token."""
    match outcome:
        case MemberTurn("no_refresh_token", prompt):
            return unavailable(case, "no_refresh_token", None, reply, outcome.diagnosis or diagnosis)
        case MemberTurn(cause, prompt):
            return reauthentication(case, prompt, cause, reply, outcome.diagnosis or diagnosis)
        case OperatorTurn(cause, message, fix):
            kind = type(outcome.error) if outcome.error else ConfigurationError
            return kind(
                f"The tokens of {case.key.registration!r} cannot be renewed: {sentence(message)} It is the operator's "
                f"turn: {fix}",
                cause=cause,
                fix=fix,
                **about(case, reply, outcome.diagnosis or diagnosis),
            )
        case Weather(cause, retry_after):
            return unavailable(case, cause, retry_after, reply, outcome.diagnosis or diagnosis)
        case InProgress():
            return RenewalInProgress(
                f"The tokens of {case.key.member!r} at {case.key.registration!r} are being renewed, and the outcome was not "
                "known within the keeper's patience. It is nobody's turn: try again.",
                cause="renewal_in_progress",
                retry_after=1.0,
                **about(case, reply, diagnosis),
            )
        case _:
            return not_connected(case, reply, diagnosis)
