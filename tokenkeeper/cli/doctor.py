"""``tokenkeeper doctor``: is everything in place? One line a check, with the fix of what is not.

A check that fails does not hide the others: what can be looked at without it is looked at.
"""

from __future__ import annotations

import stat
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from rich.text import Text

from tokenkeeper import config
from tokenkeeper.cli.output import Output, clean, fix_of, shown, styled, without_fix
from tokenkeeper.cli.session import Command, Session, keeper_options, pass_session
from tokenkeeper.crypto import key_id_of
from tokenkeeper.errors import KeyUnavailable, SecretTampered, TokenKeeperError
from tokenkeeper.model import Registration, Rotation, to_datetime
from tokenkeeper.providers import resolve
from tokenkeeper.store import settings as database_settings
from tokenkeeper.store.sealed import context as sealed_context

if TYPE_CHECKING:
    from tokenkeeper.core.effects import StoredGrant
    from tokenkeeper.core.profile import Profile
    from tokenkeeper.keeper import TokenKeeper

LARGE_OFFSET = 5.0
"""Seconds between this machine's clock and the database's that are worth a warning."""
KEY_CHECK = 4
"""Bytes that tell a sealed value's key from another one under the same id; they follow the id (see ``crypto``)."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found: ``ok``, ``warn``, ``fail`` or ``skip``, and what to do about it. No two have one name."""

    name: str
    status: str
    message: str
    fix: str = ""


Checks = Iterator[Check]


@click.command(cls=Command)
@keeper_options
@pass_session
@click.pass_context
def doctor(ctx: click.Context, session: Session) -> None:
    """Check that everything is in place.

    Settings, keys, database, clocks, registrations and their pauses: each line says ok, warn, fail or skip, and what to
    do. Of each key, one sealed value is opened. Exit status 1 if anything failed.
    """
    checks = []
    for check in _checks(ctx, session):
        checks.append(check)
        if not session.json:
            _print(session.out, check)
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    skipped = sum(check.status == "skip" for check in checks)
    summary = f"{len(checks)} checks, {failed} failed, {warned} with a warning" + f", {skipped} skipped" * bool(skipped)
    session.out.result({"ok": not failed, "checks": [asdict(check) for check in checks]}, [summary])
    ctx.exit(1 if failed else 0)


def _print(out: Output, check: Check) -> None:
    out.text(
        Text.assemble(styled(check.status), " " * (5 - len(check.status)), clean(f"{check.name}: {check.message}"))
    )
    if check.fix:
        out.text(f"     -> {clean(check.fix)}")


def _checks(ctx: click.Context, session: Session) -> Checks:
    yield from _guarded("cipher", _cipher)
    settings: config.Settings | None = None
    try:
        if session.app:
            keeper = session.keeper(ctx)
            yield Check("settings", "ok", f"the keeper of {session.app}")
        else:
            settings = session.settings()
            yield Check("settings", "ok", f"read from {settings.source}")
            keeper = yield from _keeper_of(ctx, session, settings)
    except TokenKeeperError as error:
        yield _failed("settings" if settings is None else "database", error)
        return
    database = list(_guarded("database", lambda: _database(keeper)))
    yield from database
    usable = all(check.status != "fail" for check in database)
    keys = list(_guarded("keys", lambda: _keyring(keeper, settings)))
    yield from keys
    with_keys = all(check.status != "fail" for check in keys)
    for one in keeper.registrations.values():
        yield from _guarded(f"registration {one.name}", partial(_registration, keeper, one))
    yield from _guarded("spill_directory", lambda: _spill(keeper))
    for name, check in (("sealed values", _sealed_values), ("clock", _clock), ("pauses", _pauses)):
        if usable and with_keys:
            yield from _guarded(name, partial(check, keeper))
        else:
            yield Check(name, "skip", "needs the database" if not usable else "needs the keys")


def _guarded(name: str, check: Callable[[], Checks]) -> Checks:
    try:
        yield from check()
    except TokenKeeperError as error:
        yield _failed(name, error)
    except Exception as error:  # noqa: BLE001 - a doctor names what fails and goes on; the text may hold a URL's password
        yield Check(name, "fail", f"failed with {type(error).__name__}")


def _failed(name: str, error: TokenKeeperError) -> Check:
    return Check(name, "fail", without_fix(error), fix_of(error))


def _cipher() -> Checks:
    try:
        AESGCMSIV(AESGCMSIV.generate_key(256))
    except UnsupportedAlgorithm:
        yield Check(
            "cipher",
            "fail",
            "this build of cryptography has no AES-GCM-SIV",
            "install cryptography's wheel (pip install --only-binary cryptography cryptography), or use OpenSSL 3.2",
        )
    else:
        yield Check("cipher", "ok", "cryptography has AES-GCM-SIV")


def _keeper_of(ctx: click.Context, session: Session, settings: config.Settings) -> Generator[Check, None, TokenKeeper]:
    """Yield what is to be said of the settings; return a keeper with all of them that can be used."""
    yield from _secret_files(settings)
    registrations = []
    for one in settings.registrations.values():
        try:
            registration = one.registration(settings.environ)
            resolve(registration)
            registrations.append(registration)
        except TokenKeeperError as error:
            yield _failed(f"registration {one.name}", error)
    if not settings.registrations:
        file = settings.path or config.FILE_NAME
        fix = f"add a table [registrations.NAME] to {file}" + (
            "" if settings.path else ", which `tokenkeeper init` writes"
        )
        yield Check("registrations", "warn", f"{settings.source} has none", fix)
    try:
        keyring = settings.keyring()
    except TokenKeeperError:
        keyring = None  # The check of the keys says so.
    return session.keeper(ctx, keys=keyring, registrations=registrations)


def _secret_files(settings: config.Settings) -> Checks:
    """Secrets in files are for their owner only."""
    places = [*settings.keys, *(place for one in settings.registrations.values() for place in one.references)]
    if isinstance(settings.database_url, config.Reference):
        places.append(settings.database_url)
    for file in dict.fromkeys(Path(place.target) for place in places if place.kind == "file"):
        if file.exists() and _open_to_others(file):
            yield Check(f"secrets in {file}", "warn", f"others may read {file}", f"chmod 600 {file}")


def _open_to_others(file: Path) -> bool:
    return sys.platform != "win32" and bool(stat.S_IMODE(file.stat().st_mode) & 0o077)


def _keyring(keeper: TokenKeeper, settings: config.Settings | None) -> Checks:
    ring = (settings.keyring() if settings else None) or keeper.keyring
    yield Check("keys", "ok", f"{ring.primary} seals, {len(ring.key_ids)} open")


def _sealed_values(keeper: TokenKeeper) -> Checks:
    """Open one value of each key that has sealed any: two keys under one id differ in what stands before the value."""
    found: dict[bytes, tuple[StoredGrant, str]] = {}
    count: Counter[bytes] = Counter()
    for grant in keeper._room.store.grants(registration=None, member=None, status=None):
        for column, sealed in (
            ("access_token", grant.sealed_access_token),
            ("refresh_token", grant.sealed_refresh_token),
        ):
            if sealed is not None:
                head = sealed[: 2 + len(key_id_of(sealed) or "") + KEY_CHECK]
                found.setdefault(head, (grant, column))
                count[head] += 1
    opened = 0
    for number, (head, (grant, column)) in enumerate(sorted(found.items(), key=lambda one: one[0]), 1):
        check = _opened(keeper, grant, column, count[head], f"sealed values {number}")
        opened += check is None
        if check is not None:
            yield check
    if not found:
        yield Check("sealed values", "ok", "none yet")
    if opened:
        yield Check("sealed values", "ok", f"{sum(count.values())} in all; one of each of {opened} keys was opened")


def _opened(keeper: TokenKeeper, grant: StoredGrant, column: str, amount: int, name: str) -> Check | None:
    """Open one sealed value; None if that went well. What is opened is kept nowhere."""
    sealed = grant.sealed_access_token if column == "access_token" else grant.sealed_refresh_token
    assert sealed is not None
    key_id = clean(key_id_of(sealed) or "?")
    try:
        keeper.keyring.open(sealed, sealed_context(column, grant.id, grant.key, grant.generation))
    except KeyUnavailable:
        if key_id in keeper.keyring.key_ids:
            return Check(
                name,
                "fail",
                f"another key stands under the id {key_id}: {amount} sealed values do not open with it",
                "put the original in its place, and give the other an id of its own",
            )
        return Check(
            name,
            "fail",
            f"{amount} sealed values need the key {key_id}, which is not here",
            f"add {key_id} back to the keys, after the first one",
        )
    except SecretTampered as error:
        where = f"{grant.key.member!r} at {grant.key.registration!r}, {column}"
        return Check(name, "fail", f"{without_fix(error)} It is that of {where}.", error.fix)
    return None


def _database(keeper: TokenKeeper) -> Checks:
    engine = keeper._room.engine
    file = Path(engine.url.database or "") if engine.url.get_backend_name() == "sqlite" else None
    if file is not None and not file.exists():
        # Looking into it would make it, readable for others.
        yield Check("database", "fail", f"there is no {file.absolute()}", "run `tokenkeeper db upgrade`")
        return
    schema = keeper.schema_state()
    match schema.state:
        case "current":
            yield Check("database", "ok", f"reachable, its schema is current ({schema.revision})")
        case "newer":
            yield Check(
                "database",
                "warn",
                f"its schema ({schema.revision}) is newer than this code",
                "deploy the newer code here, too",
            )
        case "incompatible":
            yield Check(
                "database",
                "fail",
                f"its schema ({schema.revision}) no longer serves this code",
                "deploy the newer code here, too",
            )
        case state:
            yield Check("database", "fail", f"reachable, its schema is {state}", "run `tokenkeeper db upgrade`")
    if file is not None and _open_to_others(file):
        yield Check("sqlite file", "warn", f"others may read {file.absolute()}", f"chmod 600 {file.absolute()}")
    with engine.connect() as connection:
        found = database_settings.risks(connection)
    for risk in found:
        yield Check(f"database {risk.setting}", "warn", f"{risk.setting} is {risk.found}: {risk.risk}", risk.fix)
    if not found:
        yield Check("durability", "ok", "the database is set to keep what it has committed")


def _spill(keeper: TokenKeeper) -> Checks:
    """The folder where renewed tokens wait while the database is away."""
    spill = keeper._room.spill
    strict = [name for name in keeper.registrations if keeper.profile(name).effective_rotation is Rotation.STRICT]
    if spill is None:
        if strict:
            yield Check(
                "spill_directory",
                "warn",
                f"none, and {', '.join(strict)} ends a grant whose renewed tokens are lost while the database is away",
                "name a folder of this host, shared by its workers, on a disk that outlives them",
            )
        return
    try:
        spill.prove()
    except OSError as error:
        yield Check(
            "spill_directory",
            "fail",
            f"it cannot be written ({error.strerror})",
            "name a folder that this user may write, or create it",
        )
    else:
        yield Check("spill_directory", "ok", "it can be written")


def _clock(keeper: TokenKeeper) -> Checks:
    offset = keeper.clock_offset()
    if abs(offset) < LARGE_OFFSET:
        yield Check("clock", "ok", f"{offset:+.1f} seconds from the database's")
    else:
        yield Check(
            "clock",
            "warn",
            f"{offset:+.1f} seconds from the database's; a provider may refuse what is signed with such a time",
            "keep both clocks with NTP",
        )


def _registration(keeper: TokenKeeper, registration: Registration) -> Checks:
    name = f"registration {registration.name}"
    profile = keeper.profile(registration.name)
    findings = [*_endpoints(name, profile), *_redirect_uri(name, registration)]
    if profile.client_authentication.startswith("client_secret") and not registration.client_secret:
        findings.append(
            Check(
                f"{name} client_secret",
                "fail",
                f"no client_secret, but {profile.name} wants {profile.client_authentication}",
                'add client_secret = "env:NAME" (client_authentication = "none" for a public client)',
            )
        )
    yield from findings or [Check(name, "ok", f"{profile.name}; its token endpoint is {profile.token_endpoint}")]


def _endpoints(name: str, profile: Profile) -> Checks:
    if not profile.token_endpoint:
        yield Check(
            f"{name} token_endpoint", "fail", f"{profile.name} has no token_endpoint", "name it in the provider's table"
        )
    if not profile.authorization_endpoint:
        yield Check(
            f"{name} authorization_endpoint",
            "warn",
            f"{profile.name} has no authorization_endpoint: members cannot connect",
            "name it in the provider's table",
        )


def _redirect_uri(name: str, registration: Registration) -> Checks:
    uri, name = registration.redirect_uri, f"{name} redirect_uri"
    if not uri:
        yield Check(
            name, "warn", "no redirect_uri: members cannot connect", "add the one that is registered at the provider"
        )
    elif not urlsplit(uri).scheme or urlsplit(uri).fragment:
        yield Check(
            name, "fail", f"redirect_uri {uri} is not absolute, or has a fragment", "correct it (RFC 6749 3.1.2)"
        )
    elif not _secure(uri):
        yield Check(name, "warn", f"redirect_uri {uri} is not https: codes travel in the clear", "use https")


def _secure(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        loopback = False
    return parts.scheme == "https" or (loopback and parts.scheme == "http")


def _pauses(keeper: TokenKeeper) -> Checks:
    pauses = list(keeper.pauses())
    for pause in pauses:
        yield Check(
            f"pause of {pause.registration}",
            "fail",
            f"{pause.registration} is paused since {shown(to_datetime(pause.paused_at))}: {pause.cause}",
            pause.fix,
        )
    if not pauses:
        yield Check("pauses", "ok", "no registration is paused")
