"""``tokenkeeper grants``: see, renew, forget and import grants. No token is ever shown."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

import click

from tokenkeeper.cli.output import shown
from tokenkeeper.cli.session import Group, Session, interactive, keeper_options, pass_session
from tokenkeeper.core.redaction import looks_secret
from tokenkeeper.errors import InvalidInput, NotConnected
from tokenkeeper.model import Grant, GrantStatus, Secret, Unshown

if TYPE_CHECKING:
    from tokenkeeper.keeper import TokenKeeper

COLUMNS = ["registration", "member", "status", "access_expires_at", "has_refresh_token", "prompt", "renewed_at"]
LONGEST_LINE = 1 << 20
"""Characters of a line to import; a longer one is no grant."""

_FIELDS = {
    "member": (str, int),
    "access_token": (str,),
    "refresh_token": (str, type(None)),
    "expires_at": (str, int, float, type(None)),
    "expires_in": (int, float, type(None)),
    "issued_at": (int, float, type(None)),
    "scope": (str, type(None)),
    "token_type": (str, type(None)),
}
_NAME = re.compile(r"[A-Za-z_]{1,40}")
"""What may be repeated of a line: a field's name, if it looks like one."""
_NO_TIME = 253402300800
"""Seconds since 1970 at the end of the year 9999."""


class BadLine(Exception):
    """A line that cannot be imported; its text says why without quoting it."""


@click.group(cls=Group)
def grants() -> None:
    """Look after the members' grants."""


@grants.command("list")
@click.option("--registration", metavar="NAME", help="Only this registration's.")
@click.option("--member", metavar="ID", help="Only this member's.")
@click.option(
    "--status", type=click.Choice([status.value for status in GrantStatus]), help="Only grants that stand so."
)
@keeper_options
@pass_session
@click.pass_context
def list_(
    ctx: click.Context, session: Session, *, registration: str | None, member: str | None, status: str | None
) -> None:
    """List grants, without their secrets."""
    keeper = session.keeper(ctx, offline=True)
    found = keeper.grants(
        registration=registration, member=member, status=None if status is None else GrantStatus(status)
    )
    rows = (_row(grant, full=session.json) for grant in found)
    session.out.rows(rows, COLUMNS, nothing="no grants")


@grants.command()
@click.argument("registration")
@click.argument("member")
@keeper_options
@pass_session
@click.pass_context
def show(ctx: click.Context, session: Session, *, registration: str, member: str) -> None:
    """Show one grant, without its secrets."""
    session.out.result(_row(session.keeper(ctx, offline=True).grant(registration, member), full=session.json))


@grants.command()
@click.argument("registration")
@click.argument("member")
@keeper_options
@pass_session
@click.pass_context
def refresh(ctx: click.Context, session: Session, *, registration: str, member: str) -> None:
    """Renew a grant's tokens now.

    Also those of a grant that is marked as needing the member.
    """
    session.out.result(_row(session.keeper(ctx).renew(registration, member), full=session.json))


@grants.command()
@click.argument("registration")
@click.argument("member")
@click.option("--yes", is_flag=True, help="Do not ask.")
@keeper_options
@pass_session
@click.pass_context
def forget(ctx: click.Context, session: Session, *, registration: str, member: str, yes: bool) -> None:
    """Delete a grant here.

    The provider is not told: its tokens live on there until they expire. On a terminal it asks first. Exit status 1
    if there was no such grant.
    """
    keeper = session.keeper(ctx, offline=True)
    _be_sure(session, f"Delete the grant of {member!r} at {registration!r}? Its tokens cannot be had back", yes=yes)
    forgotten = keeper.forget(registration, member)
    result = {"registration": registration, "member": member, "forgotten": forgotten}
    session.out.result(result, ["forgotten" if forgotten else "there was no such grant"])
    ctx.exit(0 if forgotten else 1)


@grants.command()
@click.argument("registration")
@click.argument("member")
@click.option("--yes", is_flag=True, help="Do not ask.")
@keeper_options
@pass_session
@click.pass_context
def revoke(ctx: click.Context, session: Session, *, registration: str, member: str, yes: bool) -> None:
    """Revoke a grant at the provider, and delete it here.

    Says what the provider did (RFC 7009). On a terminal it asks first. Exit status 1 if there was no such grant, or if
    the provider could not be told yet: the grant then stays, and serves nobody.
    """
    keeper = session.keeper(ctx)
    _be_sure(session, f"Revoke the grant of {member!r} at {registration!r}, for good?", yes=yes)
    revocation = keeper.revoke(registration, member)
    result = {name: getattr(revocation, name) for name in ("registration", "member", "outcome", "message", "deleted")}
    session.out.result(result, [f"{revocation.outcome}: {revocation.message}"])
    ctx.exit(0 if revocation.deleted else 1)


@grants.command("import")
@click.argument("file", type=click.File(encoding="utf-8", errors="surrogateescape"), default="-")
@click.option("--registration", metavar="NAME", help="Where the grants belong; needed where there are several.")
@click.option("--replace", is_flag=True, help="Replace grants that exist, instead of skipping them.")
@keeper_options
@pass_session
@click.pass_context
def import_(ctx: click.Context, session: Session, *, file: IO[str], registration: str | None, replace: bool) -> None:
    """Import grants from JSON Lines.

    FILE (default: standard input) has one JSON object a line, with the members member, access_token, and where known
    refresh_token, expires_at (seconds since 1970, or ISO 8601) and scope. A token endpoint's answer may stand there as
    it came: token_type is passed over, and expires_in counts from issued_at (seconds since 1970), which must be there,
    too. Lines that cannot be used are reported by their number, and the others imported; exit status 1 if there was
    one. A grant that has expired and has no refresh token is imported with a warning.
    """
    keeper = session.keeper(ctx, offline=True)
    name = registration or _only_registration(ctx, keeper)
    keeper.profile(name)  # an unknown name is refused before anything is read
    count: Counter[str] = Counter(imported=0, replaced=0, skipped=0, bad=0, expired=0)
    for number, line in enumerate(_lines(file), 1):
        if not line.reveal().strip():
            continue
        try:
            what, grant = _import_line(keeper, name, line, replace=replace)
            count[what] += 1
            if grant is not None and _is_over(grant):
                count["expired"] += 1
                warning = (
                    f"expired at {shown(grant.access_expires_at)}, without a refresh token: the member must connect"
                )
                session.out.complain({"line": number, "warning": warning}, f"line {number}: warning: {warning}")
        except (BadLine, InvalidInput) as error:
            count["bad"] += 1
            session.out.complain({"line": number, "error": str(error)}, f"line {number}: {error}")
    session.out.result(count, [", ".join(f"{amount} {what}" for what, amount in count.items())])
    ctx.exit(1 if count["bad"] else 0)


def _be_sure(session: Session, question: str, *, yes: bool) -> None:
    """Ask on a terminal; what a script says is meant."""
    if not yes and not session.json and interactive():
        click.confirm(question, abort=True, err=True)


def _row(grant: Grant, *, full: bool) -> dict[str, Any]:
    if full:
        return asdict(grant)
    return {**{name: getattr(grant, name) for name in Grant.__slots__}, "prompt": grant.prompt and grant.prompt.cause}


def _only_registration(ctx: click.Context, keeper: TokenKeeper) -> str:
    names = list(keeper.registrations)
    if len(names) != 1:
        raise click.UsageError(f"Say which with --registration: {', '.join(names) or 'there is none'}.", ctx)
    return names[0]


def _lines(file: IO[str]) -> Iterator[Secret]:
    """Yield the lines; of one that is too long, one character more than is allowed, and the rest is passed over."""
    while line := file.readline(LONGEST_LINE + 1):
        yield Secret(line)
        while len(line) > LONGEST_LINE and not line.endswith("\n"):
            line = file.readline(LONGEST_LINE + 1)


def _import_line(keeper: TokenKeeper, registration: str, line: Secret, *, replace: bool) -> tuple[str, Grant | None]:
    fields = Unshown(_fields(line.reveal()))
    member = fields.value.pop("member")
    exists = _exists(keeper, registration, member)
    if exists and not replace:
        return "skipped", None
    return "replaced" if exists else "imported", keeper.save_tokens(registration, member, fields.value)


def _is_over(grant: Grant) -> bool:
    end = grant.access_expires_at
    return not grant.has_refresh_token and end is not None and end <= datetime.now(UTC)


def _exists(keeper: TokenKeeper, registration: str, member: str | int) -> bool:
    try:
        keeper.grant(registration, member)
    except NotConnected:
        return False
    return True


def _fields(line: str) -> dict[str, Any]:
    """Return what a line says. Raises BadLine, whose text quotes nothing of it."""
    if len(line) > LONGEST_LINE:
        raise BadLine(f"longer than {LONGEST_LINE} characters")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise BadLine("not JSON") from None
    if not isinstance(fields, Mapping):
        raise BadLine("not a JSON object")
    if unknown := fields.keys() - _FIELDS.keys():
        names = sorted(name for name in unknown if _NAME.fullmatch(name) and not looks_secret(name))[:5]
        more = ["others"] if len(names) < len(unknown) else []
        raise BadLine(f"unknown fields: {', '.join(names + more)}; known are {', '.join(_FIELDS)}")
    for name, kinds in _FIELDS.items():
        value = fields.get(name)
        if (name not in fields and type(None) not in kinds) or isinstance(value, bool) or not isinstance(value, kinds):
            raise BadLine(f"{name} is missing or of the wrong type")
    moment = _expiry(fields)
    known = ("member", "access_token", "refresh_token", "scope")
    usable = {name: fields[name] for name in known if fields.get(name) is not None}
    return usable if moment is None else {**usable, "expires_at": moment}


def _expiry(fields: Mapping[str, Any]) -> float | None:
    """Return when the access token ends, in seconds since 1970. ``expires_at`` wins, as in ``save_tokens``."""
    if fields.get("expires_at") is not None:
        return _epoch(fields["expires_at"])
    seconds, issued_at = fields.get("expires_in"), fields.get("issued_at")
    if seconds is None:
        return None
    if issued_at is None:
        raise BadLine("expires_in says nothing without issued_at (seconds since 1970): add it, or expires_at instead")
    if not (0 <= seconds < _NO_TIME and 0 <= issued_at < _NO_TIME):
        raise BadLine("expires_in or issued_at is no number of seconds that can be used")
    return float(issued_at + seconds)


def _epoch(expires_at: str | float) -> float:
    """Return seconds since 1970. Raises BadLine for a text that is no time in ISO 8601, or has no zone."""
    if not isinstance(expires_at, str):
        return expires_at
    try:
        moment = datetime.fromisoformat(expires_at)
    except ValueError:
        raise BadLine("expires_at is neither seconds since 1970 nor ISO 8601") from None
    if moment.tzinfo is None:
        raise BadLine("expires_at has no time zone: end it with Z for UTC")
    return moment.astimezone(UTC).timestamp()
