"""``tokenkeeper keys``: make a key, and see which keys are in use."""

from __future__ import annotations

import os
import secrets
import string
from datetime import UTC, datetime
from pathlib import Path

import click

from tokenkeeper.cli.session import Group, Session, json_option, keeper_options, pass_session
from tokenkeeper.config import KEYS_VARIABLE
from tokenkeeper.crypto import generate_key
from tokenkeeper.errors import ConfigurationError

KEY_FILE = "tokenkeeper.keys"


@click.group(cls=Group)
def keys() -> None:
    """Make and look after the keys that seal the tokens."""


@keys.command()
@click.argument("key_id", metavar="[ID]", required=False)
@click.option("--output", metavar="FILE", help="Append it to this file (mode 0600) instead of printing it.")
@json_option
@pass_session
def generate(session: Session, *, key_id: str | None, output: str | None) -> None:
    """Make a new key. ID is at most 32 letters, digits, '.', '_' or '-'; without it, the day and two random
    characters, as in 2026-11-22-k7.

    Rotation: add the new key second on every worker, then move it first. The first key seals, all open.
    """
    if output is None:
        entry = generate_key(key_id or default_id())
        name, _, key = entry.partition(":")
        session.out.say(f"Keep it secret. Put it into {KEYS_VARIABLE}, or into a file that only your workers can read.")
        session.out.result({"id": name, "key": key, "entry": entry}, [entry])
        return
    name, first = write_key(Path(output), key_id)
    role = "it seals and opens" if first else "it opens; move it first on every worker's list, then it seals"
    session.out.result({"id": name, "file": output, "seals": first}, [f"Key {name} is in {output}: {role}."])


@keys.command("list")
@keeper_options
@pass_session
@click.pass_context
def list_(ctx: click.Context, session: Session) -> None:
    """List the keys and what they seal.

    Which key seals, and how many sealed values in the database each of them opens. A key that the database needs and
    the settings lack is listed as not available.
    """
    keeper = session.keeper(ctx, offline=True)
    ids = keeper.keyring.key_ids
    usage = keeper.key_usage()
    session.out.rows(
        (
            {
                "id": name,
                "seals": name == keeper.keyring.primary,
                "available": name in ids,
                "sealed_values": usage.get(name, 0),
            }
            for name in [*ids, *sorted(usage.keys() - set(ids))]
        ),
        ["id", "seals", "available", "sealed_values"],
        nothing="no keys",
    )


def default_id() -> str:
    """Return the id of a key that is given none: the day, and two random characters, so that two keys are told apart."""
    letter, digit = secrets.choice(string.ascii_lowercase), secrets.choice(string.digits)
    return f"{datetime.now(UTC):%Y-%m-%d}-{letter}{digit}"


def write_key(file: Path, key_id: str | None) -> tuple[str, bool]:
    """Append a new key to *file*, which only its owner may read; return its id and whether it is the first (it seals).

    Raises ConfigurationError if the file cannot be written or holds a key of that id.
    """
    try:
        with open(file, "a+", encoding="utf-8", opener=_private) as stream:
            stream.seek(0)
            ids = [entry.partition(":")[0] for entry in stream.read().replace(",", " ").split()]
            name = key_id or next(drawn for drawn in iter(default_id, "") if drawn not in ids)
            if name not in ids:
                stream.write("\n" * bool(ids) + f"{generate_key(name)}\n")
                return name, not ids
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be written: {error.strerror}", cause="settings", fix="name another file with --output"
        ) from None
    raise ConfigurationError(f"{file} holds a key {name} already", cause="settings", fix="give the new key another ID")


def _private(path: str, flags: int) -> int:
    """Open a file so that a new one is its owner's only, from its first moment."""
    return os.open(path, flags, 0o600)
