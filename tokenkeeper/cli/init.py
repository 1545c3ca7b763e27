"""``tokenkeeper init``: the first settings, and the next steps."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click

from tokenkeeper.cli.keys import KEY_FILE, write_key
from tokenkeeper.cli.session import Command, Session, json_option, pass_session
from tokenkeeper.config import FILE_NAME
from tokenkeeper.core.profile import Profile
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.providers import load_profile

TEMPLATE = """\
# tokenkeeper's settings. No secret stands in this file: a secret is "env:NAME" or "file:PATH" (relative to this
# file's folder). TOKENKEEPER_DATABASE_URL and TOKENKEEPER_KEYS outrank what is said here.
# In your application: from tokenkeeper.config import load; keeper = load().keeper()

# SQLite for one machine (relative to the working directory); for several, a PostgreSQL, MySQL or MariaDB URL.
# A URL with a password is a secret: database_url = "env:DATABASE_URL"
database_url = "sqlite:///tokens.db"

# The keys that seal the tokens, as `tokenkeeper keys generate` makes them: the first seals, all open.
keys = "file:tokenkeeper.keys"

# Where renewed tokens wait, sealed, while the database is away.
# spill_directory = "spill"

# patience = 10.0         # seconds that a caller waits for somebody else's renewal, at most
# cache_seconds = 60.0    # a token in memory is used so long without asking the database
# cache_size = 10000

# One table for each registration of your application at a provider; `tokenkeeper providers list` names those known.
[registrations.{name}]
client_id = "env:{variable}_CLIENT_ID"            # no secret: it may stand here as it is
client_secret = "env:{variable}_CLIENT_SECRET"    # a list while a new one is being rolled out
redirect_uri = "http://127.0.0.1:8400/callback"   # register it there, too; `tokenkeeper connect` listens on it
scopes = [{scopes}]
{provider_line}
{parameters}

# A provider that is not known, or a stand-in for one. Endpoints are never inherited.
# [providers.example]
# extends = "generic"
# authorization_endpoint = "https://login.example/authorize"
# token_endpoint = "https://login.example/token"
# client_authentication = "client_secret_post"
"""


def _parameters(profile: Profile) -> str:
    """The line that fills what stands in braces in the profile's endpoints; commented where all of it has a default."""
    if not profile.parameters:
        return "# no parameters: this provider's endpoints are the same for everybody"
    pairs = ", ".join(f"{name} = {json.dumps(each.default or '')}" for name, each in profile.parameters.items())
    about = " ".join(each.about for each in profile.parameters.values())
    needed = any(each.default is None for each in profile.parameters.values())
    return f"{'' if needed else '# '}parameters = {{ {pairs} }}   # {about}"


@click.command(cls=Command)
@click.option("--output", default=FILE_NAME, metavar="FILE", help=f"Where to write them (default: {FILE_NAME}).")
@click.option(
    "--provider",
    default="linkedin",
    metavar="NAME",
    help="The first registration's provider: a name of `providers list`, or a profile's path (default: linkedin).",
)
@click.option("--key", is_flag=True, help=f"Write a new key to {KEY_FILE} beside them, too, unless the file exists.")
@json_option
@pass_session
def init(session: Session, *, output: str, provider: str, key: bool) -> None:
    """Write a commented tokenkeeper.toml.

    Says the next steps. An existing file is left alone.
    """
    own_file = provider.endswith(".toml")
    if not own_file and not re.fullmatch(r"[A-Za-z0-9_-]+", provider):
        raise click.BadParameter("letters, digits, '-' and '_' only, or the path of a .toml", param_hint="--provider")
    profile = load_profile(provider)  # refuses what is neither in the catalogue nor a profile
    file = Path(output)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(provider).stem) if own_file else provider
    provider_line = f'# provider = "{name}"            # if the registration has another name'
    if own_file:
        provider_line = f"provider = {json.dumps(os.path.relpath(provider, file.parent))}"
    scopes = '"openid", "profile"' if provider == "linkedin" else ""
    variable = "".join(char if char.isalnum() else "_" for char in name).upper()
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(
                TEMPLATE.format(
                    name=name,
                    provider_line=provider_line,
                    variable=variable,
                    scopes=scopes,
                    parameters=_parameters(profile),
                )
            )
    except OSError as error:
        raise ConfigurationError(
            f"{file} was not written: {error.strerror}", cause="settings", fix="name another file with --output"
        ) from None
    key_file = file.parent / KEY_FILE
    written = key and not key_file.exists()
    if written:
        write_key(key_file, None)
    steps = [
        *([] if key_file.exists() else [f"tokenkeeper keys generate --output {key_file}"]),
        f"export {variable}_CLIENT_ID=... {variable}_CLIENT_SECRET=...",
        "tokenkeeper db upgrade",
        "tokenkeeper doctor",
        f"tokenkeeper connect {name} MEMBER",
    ]
    lines = [
        f"{file} is written." + (f" {key_file} holds a new key: keep it out of version control." if written else "")
    ]
    session.out.result(
        {"file": str(file), "key_file": str(key_file) if written else None, "next": steps},
        [*lines, "Next:", *(f"  {number}. {step}" for number, step in enumerate(steps, 1))],
    )
