"""Settings: ``tokenkeeper.toml``, overridden by the environment, and the way from them to a keeper.

The file holds no secret: a secret is a reference, ``env:NAME`` or ``file:PATH`` (relative to the file's folder), and is
read when a keeper is made. ``TOKENKEEPER_CONFIG`` names the file (default: ``tokenkeeper.toml`` in the current
folder), ``TOKENKEEPER_DATABASE_URL`` and ``TOKENKEEPER_KEYS`` outrank what it says. Whatever is wrong in it is a
:class:`~tokenkeeper.ConfigurationError` that names the file, the key and the fix, and never quotes a value.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from dataclasses import replace as with_changes
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import tokenkeeper
from tokenkeeper.crypto import Keyring
from tokenkeeper.errors import ConfigurationError, TokenKeeperError
from tokenkeeper.model import Provider, Registration, Secret

if TYPE_CHECKING:
    from tokenkeeper.keeper import AsyncTokenKeeper, TokenKeeper

K = TypeVar("K")

FILE_NAME = "tokenkeeper.toml"
CONFIG_VARIABLE = "TOKENKEEPER_CONFIG"
DATABASE_VARIABLE = "TOKENKEEPER_DATABASE_URL"
KEYS_VARIABLE = "TOKENKEEPER_KEYS"

_SECRET_NAME = re.compile(r"secret|password|passwd|token|assertion|credential|api_?key", re.IGNORECASE)
_SAFE_TO_SHOW = (ImportError, LookupError, NameError, AttributeError, SyntaxError)
"""What goes wrong while a module is imported, and whose text names things, not values."""


class Environment(Mapping[str, str]):
    """The environment, without a repr that shows all of it: it stands in the locals of our frames."""

    __slots__ = ("_variables",)

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> str:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a secret is: ``env:NAME`` or ``file:PATH``. ``where`` is the place in the file that names it."""

    kind: str
    target: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.target}"

    def read(self, environ: Mapping[str, str]) -> Secret:
        """Return the secret, without the line end of a file. Raises ConfigurationError where there is none."""
        if self.kind == "env":
            if not environ.get(self.target):
                raise _wrong(
                    f"{self.where}: the environment variable {self.target} is not set",
                    fix=f"set {self.target}, or let {self.where} name another place",
                )
            return Secret(environ[self.target])
        try:
            secret = Secret(Path(self.target).read_text(encoding="utf-8").rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise _wrong(
                f"{self.where}: the file {self.target} cannot be read: {reason}",
                fix=f"put the secret into {self.target}, readable for this user only",
            ) from None
        if not secret.reveal():
            raise _wrong(f"{self.where}: the file {self.target} is empty", fix=f"put the secret into {self.target}")
        return secret


@dataclass(frozen=True, slots=True)
class RegistrationSettings:
    """A registration as the file has it: its secrets are references until :meth:`registration` reads them."""

    name: str
    provider: str | Path | Provider
    client_id: str | Reference
    client_secret: tuple[Reference, ...] = ()
    redirect_uri: str | None = None
    scopes: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    authorization_parameters: Mapping[str, str] = field(default_factory=dict)
    token_parameters: Mapping[str, str | Reference] = field(default_factory=dict)
    private_key: Reference | None = None
    key_id: str | None = None
    signing_algorithm: str = "RS256"

    def registration(self, environ: Mapping[str, str]) -> Registration:
        """Return the :class:`~tokenkeeper.Registration`, its secrets read. Raises ConfigurationError."""
        return self._registration(
            client_id=_text_of(self.client_id, environ),
            client_secret=[reference.read(environ) for reference in self.client_secret] or None,
            token_parameters={name: _text_of(value, environ) for name, value in self.token_parameters.items()},
            private_key=None if self.private_key is None else self.private_key.read(environ),
        )

    def offline_registration(self) -> Registration:
        """Return the registration for a keeper that asks the provider nothing: no secret is read."""
        return self._registration(client_id=str(self.client_id))

    def _registration(self, **secrets: Any) -> Registration:
        try:
            return Registration(
                self.name,
                provider=self.provider,
                redirect_uri=self.redirect_uri,
                scopes=self.scopes,
                parameters=self.parameters,
                authorization_parameters=self.authorization_parameters,
                key_id=self.key_id,
                signing_algorithm=self.signing_algorithm,
                **secrets,
            )
        except (TypeError, ValueError) as error:
            problem = str(error)
        # Out here, and with nothing left in it, a traceback of this frame and its context shows no secret.
        secrets.clear()
        raise _wrong(f"the registration {self.name!r}: {problem}", fix=f"change [registrations.{self.name}]")

    @property
    def references(self) -> tuple[Reference, ...]:
        """All places where this registration's secrets are."""
        mixed = (self.client_id, *self.client_secret, *self.token_parameters.values(), self.private_key)
        return tuple(value for value in mixed if isinstance(value, Reference))


@dataclass(frozen=True, slots=True)
class Settings:
    """What the file and the environment say. ``options`` are keyword arguments of :class:`~tokenkeeper.TokenKeeper`."""

    path: Path | None = None
    database_url: str | Reference | None = field(default=None, repr=False)
    keys: tuple[Reference, ...] = ()
    registrations: Mapping[str, RegistrationSettings] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=lambda: Environment(os.environ), repr=False)

    @property
    def source(self) -> str:
        """What to call these settings in a message."""
        return str(self.path) if self.path else "the environment"

    def database(self) -> Secret:
        """Return the database's URL (it may hold a password). Raises ConfigurationError if none is named."""
        if isinstance(self.database_url, Reference):
            return self.database_url.read(self.environ)
        if not self.database_url:
            raise _wrong(
                f"no database is named: neither {FILE_NAME} nor {DATABASE_VARIABLE}",
                fix=f"run `tokenkeeper init`, or set {DATABASE_VARIABLE}, or name your keeper with --app",
            )
        return Secret(self.database_url)

    def keyring(self) -> Keyring | None:
        """Return the keyring, or None where the settings name no keys. Raises ConfigurationError."""
        if not self.keys:
            return None
        return Keyring.parse(",".join(_joined(key.read(self.environ)) for key in self.keys))

    def keeper(self, *, offline: bool = False, **overrides: Any) -> TokenKeeper:
        """Return a keeper; *overrides* are its arguments, outrank the settings, and what they replace is not read.

        An *offline* one will ask no provider for anything, and so no client secret has to be there.
        Raises ConfigurationError for a missing database, secret or key.
        """
        return self._made(tokenkeeper.TokenKeeper, offline=offline, overrides=overrides)

    def async_keeper(self, *, offline: bool = False, **overrides: Any) -> AsyncTokenKeeper:
        """Return the async twin of :meth:`keeper`, from the same settings. Raises ConfigurationError as it does."""
        return self._made(tokenkeeper.AsyncTokenKeeper, offline=offline, overrides=overrides)

    def _made(self, kind: Callable[..., K], *, offline: bool, overrides: Mapping[str, Any]) -> K:
        arguments = {**self.options, **overrides}
        if "keys" not in arguments:
            arguments["keys"] = self.keyring()
        if "registrations" not in arguments:
            arguments["registrations"] = [
                one.offline_registration() if offline else one.registration(self.environ)
                for one in self.registrations.values()
            ]
        return kind(arguments.pop("database", None) or self.database().reveal(), **arguments)


def load(path: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of *path*, else of ``TOKENKEEPER_CONFIG``, else of ``./tokenkeeper.toml`` if it is there.

    Raises ConfigurationError naming the file and the key for what cannot be used, a secret in plain text among it.
    """
    environ = Environment(environ)
    named = path or environ.get(CONFIG_VARIABLE)
    file = Path(named) if named else Path(FILE_NAME)
    try:
        settings = _parse(file, environ) if named or file.exists() else Settings(environ=environ)
    except ConfigurationError as error:
        # The frames below hold the file's text, in which somebody may have left a secret.
        raise error.with_traceback(None) from None
    if environ.get(DATABASE_VARIABLE):
        settings = with_changes(settings, database_url=Reference("env", DATABASE_VARIABLE, "the environment"))
    if environ.get(KEYS_VARIABLE):
        settings = with_changes(settings, keys=(Reference("env", KEYS_VARIABLE, "the environment"),))
    return settings


def keeper_from_app(name: str) -> TokenKeeper:
    """Return the keeper that ``module:attribute`` names (as ``--app``), or the sync twin of an AsyncTokenKeeper.

    Modules are found as ``python -m`` finds them: the current folder comes first. Raises ConfigurationError.
    """
    module_name, colon, attributes = name.partition(":")
    if not (module_name and colon and attributes):
        raise _wrong(
            f"--app {name!r} names no keeper", fix="write --app module:attribute, as in --app app.tokens:keeper"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: object = importlib.import_module(module_name)
    except TokenKeeperError:
        raise
    except Exception as error:  # noqa: BLE001 - the host's module may fail in any way
        text = f": {error}"[:300] if isinstance(error, _SAFE_TO_SHOW) else ""
        raise _wrong(
            f"--app {name}: importing {module_name} failed with {type(error).__name__}{text}",
            fix=f"try `python -c 'import {module_name}'` in this folder",
        ) from None
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise _wrong(f"--app {name}: there is no {attribute!r}", fix=f"name the keeper's place in {module_name}")
        found = getattr(found, attribute)
    if isinstance(found, tokenkeeper.AsyncTokenKeeper):
        return found.sync
    if isinstance(found, tokenkeeper.TokenKeeper):
        return found
    raise _wrong(
        f"--app {name} is a {type(found).__name__}, not a TokenKeeper or an AsyncTokenKeeper",
        fix="name the keeper itself, not its module, class or a function that makes it",
    )


def _joined(keys: Secret) -> str:
    return ",".join(keys.reveal().replace(",", " ").split())


def _wrong(message: str, *, fix: str) -> ConfigurationError:
    return ConfigurationError(message, cause="settings", fix=fix)


def _text_of(value: str | Reference, environ: Mapping[str, str]) -> str:
    return value.read(environ).reveal() if isinstance(value, Reference) else value


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in the file: what a message calls it, and the folder that relative paths start from."""

    file: Path
    key: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}"

    def at(self, name: str) -> _Place:
        return _Place(self.file, f"{self.key}.{name}" if self.key else name)

    def expected(self, what: str) -> ConfigurationError:
        return _wrong(f"{self} must be {what}", fix=f"change {self.key} in {self.file}")


_Reader = Callable[[Any, _Place], Any]


def _text(value: Any, place: _Place) -> str:
    if not isinstance(value, str) or not value:
        raise place.expected("a text")
    return value


def _texts(value: Any, place: _Place) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise place.expected("a list of texts")
    return tuple(value)


def _number(value: Any, place: _Place) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise place.expected("a number, 0 or more")
    return float(value)


def _flag(value: Any, place: _Place) -> bool:
    if not isinstance(value, bool):
        raise place.expected("true or false")
    return value


def _count(value: Any, place: _Place) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise place.expected("a whole number, 0 or more")
    return value


def _folder(value: Any, place: _Place) -> Path:
    return place.file.parent / _text(value, place)


def _text_table(value: Any, place: _Place) -> dict[str, str]:
    return {name: _text(one, place.at(name)) for name, one in _table(value, place).items()}


def _table(value: Any, place: _Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.expected("a table")
    return value


def _reference(value: str, place: _Place) -> Reference | None:
    kind, colon, target = value.partition(":")
    if not colon or kind not in {"env", "file"} or not target:
        return None
    return Reference(kind, target if kind == "env" else str(place.file.parent / target), str(place))


def _text_or_reference(value: Any, place: _Place) -> str | Reference:
    text = _text(value, place)
    return _reference(text, place) or text


def _secret(value: Any, place: _Place) -> Reference:
    reference = _reference(_text(value, place), place)
    if reference is None:
        name = place.key.rpartition(".")[2]
        variable = re.sub(r"\W+", "_", place.key.removeprefix("registrations.")).upper()
        raise _wrong(
            f"{place} is a secret in plain text",
            fix=f'write {name} = "env:{variable}" or "file:PATH", and change the secret if others could read the file',
        )
    return reference


def _secrets(value: Any, place: _Place) -> tuple[Reference, ...]:
    return tuple(_secret(one, place) for one in (value if isinstance(value, list) else [value]))


def _token_parameters(value: Any, place: _Place) -> dict[str, str | Reference]:
    read = {True: _secret, False: _text_or_reference}
    return {
        name: read[bool(_SECRET_NAME.search(name))](one, place.at(name)) for name, one in _table(value, place).items()
    }


def _database_url(value: Any, place: _Place) -> str | Reference:
    url = _text_or_reference(value, place)
    if isinstance(url, str):
        try:
            split = urlsplit(url)
            with_password = bool(split.password) or any(_SECRET_NAME.search(name) for name in parse_qs(split.query))
        except ValueError:
            raise place.expected("a database URL, as sqlite:///tokens.db or postgresql://host/name") from None
        if with_password:
            raise _wrong(
                f"{place} holds a password in plain text",
                fix=f'write database_url = "env:DATABASE_URL" (or "file:PATH") there, or set {DATABASE_VARIABLE}',
            )
    return url


def _profile_path(text: str, place: _Place) -> str | Path:
    """A catalogue name stays a str; what ends in .toml is a profile of the host's own, beside the settings."""
    return place.file.parent / text if text.endswith(".toml") else text


def _extends(value: Any, place: _Place) -> str | Path:
    return _profile_path(_text(value, place), place)


_OPTIONS: Mapping[str, _Reader] = {
    "audit": _flag,
    "spill_directory": _folder,
    "leeway": _number,
    "patience": _number,
    "cache_seconds": _number,
    "cache_size": _count,
}
_TOP: Mapping[str, _Reader] = {
    "database_url": _database_url,
    "keys": _secrets,
    **_OPTIONS,
    "registrations": _table,
    "providers": _table,
}
_REGISTRATION: Mapping[str, _Reader] = {
    "provider": _text,
    "client_id": _text_or_reference,
    "client_secret": _secrets,
    "redirect_uri": _text,
    "scopes": _texts,
    "parameters": _text_table,
    "authorization_parameters": _text_table,
    "token_parameters": _token_parameters,
    "private_key": _secret,
    "key_id": _text,
    "signing_algorithm": _text,
}
_NUMBERS = frozenset({"grace_seconds", "lease_seconds", "deadline_seconds"})
_PROVIDER: Mapping[str, _Reader] = {
    one.name: _extends if one.name == "extends" else _number if one.name in _NUMBERS else _text
    for one in fields(Provider)
    if one.name != "name"
}


def _section(table: Mapping[str, Any], place: _Place, readers: Mapping[str, _Reader]) -> dict[str, Any]:
    unknown = next((name for name in table if name not in readers), None)
    if unknown is not None:
        close = difflib.get_close_matches(unknown, readers, n=1)
        raise _wrong(
            f"{place.at(unknown)} is not a setting",
            fix=f"did you mean {close[0]}?" if close else f"settings there are: {', '.join(readers)}",
        )
    return {name: readers[name](value, place.at(name)) for name, value in table.items()}


def _parse(file: Path, environ: Mapping[str, str]) -> Settings:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _wrong(
            f"there is no {file}", fix=f"run `tokenkeeper init`, or correct --config or {CONFIG_VARIABLE}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise _wrong(f"{file} cannot be read: {reason}", fix=f"correct {file} or its mode") from None
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _wrong(f"{file} is not TOML: {error}", fix=f"correct {file} there") from None
    top = _section(content, _Place(file, ""), _TOP)
    providers = {
        name: Provider(name, **_section(_table(table, place), place, _PROVIDER))
        for name, table in top.get("providers", {}).items()
        for place in [_Place(file, f"providers.{name}")]
    }
    return Settings(
        path=file,
        database_url=top.get("database_url"),
        keys=top.get("keys", ()),
        registrations={
            name: _registration(name, table, _Place(file, f"registrations.{name}"), providers)
            for name, table in top.get("registrations", {}).items()
        },
        options={name: top[name] for name in _OPTIONS if name in top},
        environ=environ,
    )


def _registration(name: str, table: Any, place: _Place, providers: Mapping[str, Provider]) -> RegistrationSettings:
    values = _section(_table(table, place), place, _REGISTRATION)
    if "client_id" not in values:
        raise _wrong(f"{place} has no client_id", fix=f"add client_id to [registrations.{name}] in {place.file}")
    provider: str = values.pop("provider", name)
    return RegistrationSettings(name, provider=providers.get(provider) or _profile_path(provider, place), **values)
