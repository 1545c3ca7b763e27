"""The flows that begin and finish a member's authorization (RFC 6749 section 4.1, RFC 7636, RFC 9207).

``begin`` mints the URL inside the member's own request. ``finish`` takes the callback: the state is used up, once, for
the member (and session) who began, before the code is sent; the path must be the registration's, a present ``iss`` must
be the issuer, and another provider account than before is refused where the provider tells who it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import parse_qsl, urlsplit

from tokenkeeper.core.effects import (
    ConsumePending,
    FetchAccount,
    Flow,
    ForgetGrant,
    LoadGrant,
    Misconfigured,
    NewId,
    PendingAuthorization,
    RandomText,
    RedeemCode,
    Redeemed,
    RememberSecret,
    SaveConsent,
    SavePending,
    SecretInUse,
    StateRefused,
    StoredGrant,
)
from tokenkeeper.core.recovery import Case
from tokenkeeper.core.redaction import safe_text
from tokenkeeper.core.token_endpoint import (
    NeverSent,
    TokenSet,
    Unanswered,
    authorization_url,
    read_token_answer,
    secrets_in_turn,
)
from tokenkeeper.errors import AuthorizationFailed, ConfigurationError, InvalidInput, TemporarilyUnavailable
from tokenkeeper.model import (
    AuthorizationRequest,
    Connection,
    Diagnosis,
    Prompt,
    Remedy,
    Secret,
    scope_set,
    to_datetime,
)

STATE_LIFETIME = 600.0
"""Seconds between the beginning of an authorization and its callback."""

STATE_BYTES = 32
VERIFIER_BYTES = 48
CODE_EXCHANGE_DEADLINE = 30.0
SUBJECT_SCOPE = "openid"

STATE_CAUSES: Mapping[str, str] = {
    "state_unknown": "its state was never issued, or is long over",
    "state_replayed": "its state was used before",
    "state_expired": "its state is older than ten minutes",
    "state_foreign": "its state was issued to another member or session",
}


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the host asks of an authorization."""

    return_to: str = "/"
    scopes: tuple[str, ...] = ()
    session: Secret | None = None
    prompt: Prompt | None = None


def begin(case: Case, asked: Beginning) -> Flow[AuthorizationRequest]:
    """Mint the URL that the member follows now; asks for granted, registered and missing scopes."""
    check_return_to(asked.return_to)
    redirect_uri = case.registration.redirect_uri
    if not redirect_uri:
        fix = f"Give Registration({case.key.registration!r}) a redirect_uri."
        raise ConfigurationError(
            f"{case.key.registration!r} has no redirect_uri, so a member cannot come back from the provider. It is the "
            f"operator's turn. {fix}",
            cause="redirect_uri",
            fix=fix,
            registration=case.key.registration,
            member=case.key.member,
        )
    grant = yield from LoadGrant(case.key)
    prompt = asked.prompt or (grant.prompt if grant else None)
    scopes = scope_set(
        (
            *(grant.scopes if grant else ()),
            *case.registration.scopes,
            *asked.scopes,
            *(prompt.scopes if prompt else ()),
        )
    )
    state = yield from RandomText(STATE_BYTES)
    verifier = None if case.profile.pkce == "none" else (yield from RandomText(VERIFIER_BYTES))
    extra = {}
    if prompt and prompt.acr_values:
        extra["acr_values"] = prompt.acr_values
    if prompt and prompt.claims:
        extra["claims"] = prompt.claims
    url = authorization_url(case.registration, case.profile, state=state, verifier=verifier, scopes=scopes, extra=extra)
    pending = PendingAuthorization(
        state_digest=digest(state),
        key=case.key,
        session_digest=None if asked.session is None else digest(asked.session),
        verifier=verifier,
        redirect_uri=redirect_uri,
        return_to=asked.return_to,
        scopes=scopes,
    )
    ends = yield from SavePending(pending, STATE_LIFETIME)
    expires_at = to_datetime(ends)
    assert expires_at is not None
    return AuthorizationRequest(url.reveal(), expires_at)


def digest(secret: Secret) -> str:
    """The hexadecimal SHA-256 under which a state or a session is stored and found."""
    return hashlib.sha256(secret.reveal().encode("utf-8", "surrogatepass")).hexdigest()


def check_return_to(return_to: str) -> None:
    """See that it is a path of the host: no other host, no control character, no backslash (RFC 9700 section 4.11)."""
    safe = (
        isinstance(return_to, str)
        and return_to.startswith("/")
        and not return_to.startswith("//")
        and "\\" not in return_to
        and return_to.isprintable()
        and len(return_to) <= 2000
    )
    if not safe:
        fix = "Pass a path of your own host, such as '/settings', at most 2,000 characters."
        raise InvalidInput(
            f"return_to={safe_text(repr(return_to), 80)} is not a path of the host. It is the operator's turn. {fix}",
            cause="return_to",
            fix=fix,
        )


@dataclass(frozen=True, slots=True)
class Callback:
    """What the provider sent the member back with. The code and the state are secrets."""

    path: str
    state: Secret | None
    code: Secret | None
    issuer: str | None
    error: str | None = field(repr=False)
    description: str


def read_callback(url: Secret) -> Callback | str:
    """Take a callback's URL apart, or say what is wrong with it; a parameter that comes twice is refused (RFC 6749 3.1)."""
    try:
        parts = urlsplit(url.reveal())
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return "it is not a URL"
    values = dict(pairs)
    twice = sorted({name for name, _ in pairs if name in ("state", "code", "iss", "error")} & _repeated(pairs))
    if twice:
        return f"it has {', '.join(twice)} more than once"
    return Callback(
        path=parts.path or "/",
        state=Secret(values["state"]) if values.get("state") else None,
        code=Secret(values["code"]) if values.get("code") else None,
        issuer=values.get("iss"),
        error=values.get("error"),
        description=safe_text(values.get("error_description", ""), 200),
    )


def _repeated(pairs: list[tuple[str, str]]) -> set[str]:
    names = [name for name, _ in pairs]
    return {name for name in names if names.count(name) > 1}


def consume(callback: Callback | str, member: str, session: Secret | None) -> Flow[PendingAuthorization]:
    """Use the callback's state up for this member and session, and return what was begun."""
    if isinstance(callback, str):
        raise failed(None, member, "callback_malformed", callback)
    if callback.state is None:
        raise failed(None, member, "state_missing", "it has no state, so nobody knows who began it")
    session_digest = None if session is None else digest(session)
    pending = yield from ConsumePending(digest(callback.state), member, session_digest)
    if isinstance(pending, StateRefused):
        raise failed(None, member, pending.cause, STATE_CAUSES[pending.cause])
    return pending


def finish(case: Case, callback: Callback, pending: PendingAuthorization) -> Flow[Connection]:
    """Redeem the code of a callback whose state was consumed, check whose account it is, and store the consent."""
    name, member = case.key.registration, case.key.member
    if callback.path != (urlsplit(pending.redirect_uri).path or "/"):
        raise failed(name, member, "redirect_uri_mismatch", "its path is not the registration's redirect_uri")
    if callback.issuer is not None and case.profile.issuer is not None and callback.issuer != case.profile.issuer:
        raise failed(name, member, "issuer_mismatch", "it comes from another authorization server (RFC 9207)")
    if callback.error is not None:
        denied(case, callback)
    if callback.code is None:
        raise failed(name, member, "code_missing", "it has neither a code nor an error")
    tokens, sent_at = yield from redeem_code(case, callback.code, pending)
    account = tokens.account
    scopes = scope_set(tokens.scopes) if tokens.scopes is not None else pending.scopes
    asks = case.profile.userinfo_endpoint and case.profile.issuer and SUBJECT_SCOPE in scopes
    if account is None and asks:
        account = yield from FetchAccount(name, tokens.access_token, CODE_EXCHANGE_DEADLINE)
    before = yield from LoadGrant(case.key)
    if before is not None and before.account and account and before.account != account:
        raise failed(
            name,
            member,
            "other_account",
            "another account signed in than the one that was connected; sign in with that one, or forget() the grant first",
        )
    same = before is not None and (before.account is None or before.account == account)
    grant: StoredGrant = yield from SaveConsent(
        case.key, tokens, scopes, account, keep_refresh_token=same, sent_at=sent_at, event_id=(yield from NewId())
    )
    return Connection(grant.public(), pending.return_to)


def connect(case: Case, tokens: TokenSet, *, keep_refresh_token: bool) -> Flow[StoredGrant]:
    """Store tokens that the host has: always the newest consent."""
    scopes = case.registration.scopes if tokens.scopes is None else tokens.scopes
    event_id = yield from NewId()
    return (
        yield from SaveConsent(
            case.key,
            tokens,
            scopes,
            tokens.account,
            keep_refresh_token=keep_refresh_token,
            sent_at=None,
            event_id=event_id,
        )
    )


def forget(case: Case) -> Flow[bool]:
    """Delete the member's grant here; the provider is not told."""
    grant = yield from LoadGrant(case.key)
    return grant is not None and (yield from ForgetGrant(grant))


def redeem_code(case: Case, code: Secret, pending: PendingAuthorization) -> Flow[tuple[TokenSet, float]]:
    """Send the code, with each client secret in turn while the provider says ``invalid_client``."""
    name, member = case.key.registration, case.key.member
    first = yield from SecretInUse(name)
    diagnosis: Diagnosis | None = None
    for which, _ in secrets_in_turn(case.registration, first):
        redeemed: Redeemed = yield from RedeemCode(pending, code, CODE_EXCHANGE_DEADLINE, which)
        match redeemed.outcome:
            case NeverSent(reason) | Unanswered(reason):
                raise TemporarilyUnavailable(
                    f"The token endpoint of {name!r} did not answer ({reason}), so {member!r} is not connected yet. It is "
                    "nobody's turn; the code is used up: let the member begin again.",
                    cause="unanswered",
                    registration=name,
                    member=member,
                )
            case Misconfigured(error):
                raise error
            case answer:
                read = read_token_answer(answer, case.profile, secrets=(code, *case.registration.client_secret))
        if isinstance(read, TokenSet):
            if which != first:
                yield from RememberSecret(name, which)
            return read, redeemed.sent_at
        diagnosis = read
        if read.error_code != "invalid_client":
            break
    assert diagnosis is not None
    refuse_code(case, diagnosis)


def refuse_code(case: Case, diagnosis: Diagnosis) -> NoReturn:
    """Say whose turn it is when the token endpoint refused the code."""
    name, member = case.key.registration, case.key.member
    if diagnosis.remedy is Remedy.RECONFIGURE:
        raise ConfigurationError(
            f"{name!r} refused the code: {diagnosis.message} It is the operator's turn: {diagnosis.fix}",
            cause=diagnosis.error_code or str(diagnosis.verdict),
            fix=diagnosis.fix,
            registration=name,
            member=member,
            diagnosis=diagnosis,
        )
    if diagnosis.remedy is Remedy.WAIT:
        raise TemporarilyUnavailable(
            f"{name!r} could not redeem the code: {diagnosis.message} It is nobody's turn: let the member begin again later.",
            cause=str(diagnosis.verdict),
            retry_after=diagnosis.retry_after,
            registration=name,
            member=member,
            diagnosis=diagnosis,
        )
    raise failed(name, member, "code_refused", f"the provider refused its code: {diagnosis.message}", diagnosis)


def denied(case: Case, callback: Callback) -> NoReturn:
    """The provider sent the member back with an error (RFC 6749 section 4.1.2.1)."""
    name, member = case.key.registration, case.key.member
    error = safe_text(callback.error or "", 60)
    said = f"{error}: {callback.description}" if callback.description else error
    if callback.error in ("server_error", "temporarily_unavailable"):
        raise TemporarilyUnavailable(
            f"{name!r} could not authorize {member!r} ({said}). It is nobody's turn: let the member begin again later.",
            cause=error,
            registration=name,
            member=member,
        )
    if callback.error in ("invalid_scope", "unauthorized_client", "invalid_request", "unsupported_response_type"):
        fix = f"Check the scopes, the redirect_uri and the app's rights of Registration({name!r}) at the provider."
        raise ConfigurationError(
            f"{name!r} refused the authorization request ({said}). It is the operator's turn. {fix}",
            cause=error,
            fix=fix,
            registration=name,
            member=member,
        )
    raise failed(name, member, error, f"the provider says {said}")


def failed(
    registration: str | None, member: str, cause: str, why: str, diagnosis: Diagnosis | None = None
) -> AuthorizationFailed:
    """What came back does not connect the member; what was stored before stays."""
    prompt = Prompt(registration, member, cause, (), None) if registration else None
    return AuthorizationFailed(
        f"The callback does not connect {member!r}: {why}. It is the member's turn: let them begin again with "
        "begin_authorization(); nothing that was stored has changed.",
        cause=cause,
        registration=registration,
        member=member,
        prompt=prompt,
        diagnosis=diagnosis,
    )
