"""The revocation: take the grant out of service, tell the provider (RFC 7009), delete, and say honestly what it did.

A renewal may be under way when the member disconnects. So the grant is first marked ``revoking`` (it serves nobody, and
nobody may claim a renewal), then its claim is waited for like any other, because the newest token is the one to revoke.
A renewal that comes later still finds the row gone, and revokes what it brings (``renewal.revoke_too``).

What is the operator's or the weather's leaves the row as it is, ``revoking``: deleting it would throw away the only
means to tell the provider. Calling again goes on where it stopped.
"""

from __future__ import annotations

from tokenkeeper.core.effects import (
    BeginRevocation,
    Claim,
    ClaimGrant,
    DeleteRevoked,
    Flow,
    LoadGrant,
    Misconfigured,
    OpenToRevoke,
    ReleaseClaim,
    RememberSecret,
    RevokeToken,
    SecretInUse,
    Sleep,
    StoredGrant,
)
from tokenkeeper.core.recovery import Case
from tokenkeeper.core.renewal import PERHAPS_THIS_GRANT, poll_pause
from tokenkeeper.core.token_endpoint import NeverSent, Unanswered, read_revocation, secrets_in_turn
from tokenkeeper.errors import ConfigurationError, TemporarilyUnavailable
from tokenkeeper.model import Diagnosis, GrantStatus, Remedy, Revocation

RETRY_AFTER = 60.0
"""Seconds after which a revocation that could not be told is worth another try, where the provider names none."""

MESSAGES = {
    "revoked": "The provider has revoked the grant.",
    "already_dead": "The provider says that the grant was over already.",
    "in_doubt": "The provider has revoked the token it was shown; of an earlier renewal no answer came, so a token that "
    "nobody has may live on until it expires. The member can withdraw the consent at the provider.",
    "unsupported": "The provider was not told: it has no way to revoke that is known here. Its tokens live on there until "
    "they expire; the member can withdraw the consent at the provider.",
    "refused": "The provider would not revoke the token; it may live on there until it expires.",
    "not_connected": "There is no such grant (any more).",
    "reconnected": "The member has connected again meanwhile: that grant stands.",
}


def begin(case: Case) -> Flow[StoredGrant | None]:
    """Take the member's grant out of service: from now on nobody is served."""
    return (yield from BeginRevocation(case.key))


def carry_out(case: Case, grant: StoredGrant | None) -> Flow[Revocation]:
    """Revoke a grant that is out of service at the provider and delete it here.

    Raises ConfigurationError or TemporarilyUnavailable where the provider could not be told yet: the grant then stays,
    out of service.
    """
    told: tuple[str, Diagnosis | None] | None = None
    waited, looks = 0.0, 0
    while grant is not None and grant.status is GrantStatus.REVOKING:
        lease = case.profile.timing.lease
        claim = None
        if not grant.claimed or waited >= lease:
            claim = yield from ClaimGrant(grant, lease, revoking=True)
        if claim is not None:
            told = yield from tell_provider(case, claim)
            if (yield from DeleteRevoked(claim, told[0])):
                return result(case, *told, deleted=True)
        else:
            if waited > 2 * lease:
                raise unfinished(case, "claimed_elsewhere", "another worker holds its claim", None)
            pause = poll_pause(grant, looks)
            yield from Sleep(pause, idle=True)
            waited, looks = waited + pause, looks + 1
        grant = yield from LoadGrant(case.key)
    if grant is not None:
        return result(case, "reconnected", None, deleted=False)
    return result(case, *(told or ("not_connected", None)), deleted=told is not None)


def result(case: Case, outcome: str, diagnosis: Diagnosis | None, *, deleted: bool) -> Revocation:
    """What became of it, in a sentence."""
    key = case.key
    said = f" {diagnosis.message}" if diagnosis else ""
    return Revocation(key.registration, key.member, outcome, MESSAGES[outcome] + said, deleted, diagnosis)


def tell_provider(case: Case, claim: Claim) -> Flow[tuple[str, Diagnosis | None]]:
    """Ask the provider to revoke the newest token, with each client secret in turn while it says ``invalid_client``."""
    if case.profile.revocation_endpoint is None:
        return "unsupported", None
    opened = yield from OpenToRevoke(claim)
    if isinstance(opened, Misconfigured):
        yield from ReleaseClaim(claim, in_doubt=True, failed=False)
        raise opened.error
    name = case.key.registration
    first = yield from SecretInUse(name)
    for which, last in secrets_in_turn(case.registration, first):
        sent = yield from RevokeToken(name, opened.secret, opened.hint, case.profile.timing.deadline, which)
        match sent.outcome:
            case NeverSent(reason) | Unanswered(reason):
                yield from ReleaseClaim(claim, in_doubt=True, failed=False)
                raise unfinished(
                    case, "revocation_unanswered", f"the revocation endpoint did not answer: {reason}", None
                )
            case Misconfigured(error):
                yield from ReleaseClaim(claim, in_doubt=True, failed=False)
                raise error
            case answer:
                read = read_revocation(answer, case.profile, secrets=(opened.secret, *case.registration.client_secret))
        if isinstance(read, str):
            if which != first and read != "unsupported":
                yield from RememberSecret(name, which)
            in_doubt = claim.grant.in_flight_tries > 0  # the renewals' presentations: a claim to revoke is none
            return ("in_doubt" if read == "revoked" and in_doubt else read), None
        if (read.error_code == "invalid_client" or answer.status == 401) and not last:
            continue
        return (yield from refused(case, claim, read))
    raise AssertionError("the last secret's answer was dealt with above")  # pragma: no cover


def refused(case: Case, claim: Claim, diagnosis: Diagnosis) -> Flow[tuple[str, Diagnosis | None]]:
    """The revocation endpoint said no: by whose turn it is."""
    if diagnosis.remedy is Remedy.WAIT:
        yield from ReleaseClaim(claim, in_doubt=True, failed=False)
        raise unfinished(case, str(diagnosis.verdict), "the revocation endpoint is not available just now", diagnosis)
    if diagnosis.remedy is Remedy.RECONFIGURE and diagnosis.error_code not in PERHAPS_THIS_GRANT:
        yield from ReleaseClaim(claim, in_doubt=True, failed=False)
        raise ConfigurationError(
            f"{case.key.registration!r} cannot be told to revoke {case.key.member!r}'s grant: {diagnosis.message} It is the "
            f"operator's turn: {diagnosis.fix} The grant serves nobody meanwhile; call revoke() again then, or forget() "
            "to delete it here only.",
            cause=diagnosis.error_code or str(diagnosis.verdict),
            fix=diagnosis.fix,
            registration=case.key.registration,
            member=case.key.member,
            diagnosis=diagnosis,
        )
    return "refused", diagnosis


def still_revoking(case: Case) -> TemporarilyUnavailable:
    """The caller's patience ended before the revocation did, which goes on."""
    return unfinished(case, "revoking", "it goes on while this process runs", None)


def unfinished(case: Case, cause: str, why: str, diagnosis: Diagnosis | None) -> TemporarilyUnavailable:
    """The provider could not be told yet."""
    key = case.key
    return TemporarilyUnavailable(
        f"{key.member!r}'s grant at {key.registration!r} is not revoked yet ({why}). It is nobody's turn: it serves nobody "
        "meanwhile; call revoke() again later, or forget() to delete it here only.",
        cause=cause,
        retry_after=(diagnosis.retry_after if diagnosis else None) or RETRY_AFTER,
        registration=key.registration,
        member=key.member,
        diagnosis=diagnosis,
    )
