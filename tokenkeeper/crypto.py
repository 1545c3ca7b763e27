"""The keyring: seal secrets for the store, and open them again.

AES-256-GCM-SIV (RFC 8452) of ``cryptography``: no nonce bookkeeping, and a nonce that comes twice costs no secret.
A sealed secret is ``0x01 | length | key id | key check | nonce | ciphertext and tag``: the key is named, never tried
for. The associated data is the secret's place: what is moved to another row, column or generation does not open.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from tokenkeeper.errors import ConfigurationError, InvalidInput, KeyUnavailable, SecretTampered
from tokenkeeper.model import Secret

VARIABLE = "TOKENKEEPER_KEYS"
"""The environment variable that holds the keys, as ``id:base64,id:base64``."""

_VERSION = 1
_KEY_BYTES = 32
_CHECK_BYTES = 4
_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_GENERATE = "Make a key with `tokenkeeper keys generate` and put it into TOKENKEEPER_KEYS of every worker."


@dataclass(frozen=True, slots=True)
class Context:
    """Where a sealed secret belongs. It opens nowhere else."""

    table: str
    column: str
    grant_id: str
    registration: str
    member: str
    generation: int

    @property
    def associated_data(self) -> bytes:
        """The place as bytes; each part with its length before it, so that no two places read the same."""
        return (
            f"{len(self.table)}:{self.table}{len(self.column)}:{self.column}{len(self.grant_id)}:{self.grant_id}"
            f"{len(self.registration)}:{self.registration}{len(self.member)}:{self.member}{self.generation}"
        ).encode("utf-8", "surrogatepass")


class _Key:
    """One key, ready for use; its bytes are kept by ``cryptography`` only."""

    __slots__ = ("cipher", "head", "id")

    def __init__(self, key_id: str, key: bytes) -> None:
        self.id = key_id
        self.cipher = AESGCMSIV(key)
        name = key_id.encode("ascii")
        check = hmac.digest(key, b"tokenkeeper key check", hashlib.sha256)[:_CHECK_BYTES]
        self.head = bytes([_VERSION, len(name)]) + name + check


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why there is no keyring. A value, so that no frame with a key in it is in the traceback of the error."""

    kind: type[ConfigurationError]
    message: str
    fix: str = _GENERATE

    def error(self) -> ConfigurationError:
        return self.kind(f"{self.message}. It is the operator's turn: {self.fix}", cause="bad_keys", fix=self.fix)


class Keyring:
    """The keys that seal secrets in the store. The first one seals, all of them open.

    To rotate, add the new key second on every worker, then move it first, then re-seal. *keys* maps ids to 32 bytes
    each, or is a sequence of pairs. Raises ConfigurationError naming a key's id or position, never the key.
    """

    __slots__ = ("_by_head", "_keys")

    _keys: tuple[_Key, ...]
    _by_head: Mapping[bytes, _Key]

    def __init__(self, keys: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> None:
        built = _built(list(keys.items()) if isinstance(keys, Mapping) else keys)
        del keys
        self._take(built)

    @classmethod
    def from_env(cls, variable: str = VARIABLE, environ: Mapping[str, str] | None = None) -> Keyring:
        """Read the keys from an environment variable. Raises KeyUnavailable if it is not set, else as :meth:`parse`."""
        built = _from_text((os.environ if environ is None else environ).get(variable), variable)
        del environ
        ring = cls.__new__(cls)
        ring._take(built)
        return ring

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Read keys as ``id:base64,id:base64`` (standard or URL-safe base64 of 32 bytes). Raises ConfigurationError."""
        built = _from_text(text, "the text of the keys")
        del text
        ring = cls.__new__(cls)
        ring._take(built)
        return ring

    def _take(self, built: tuple[_Key, ...] | _Problem) -> None:
        self._keys = () if isinstance(built, _Problem) else built
        self._by_head = {key.head: key for key in self._keys}
        if isinstance(built, _Problem):
            raise built.error()

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys; the first one seals."""
        return tuple(key.id for key in self._keys)

    @property
    def primary(self) -> str:
        """The id of the key that seals."""
        return self._keys[0].id

    def seal(self, secret: Secret, context: Context) -> bytes:
        """Encrypt a secret for one place in the store. Raises InvalidInput for an empty secret."""
        if not secret.reveal():
            raise InvalidInput(
                "an empty secret is not sealed", cause="empty_secret", fix="Pass a token that is not empty."
            )
        key = self._keys[0]
        nonce = os.urandom(_NONCE_BYTES)
        return (
            key.head
            + nonce
            + key.cipher.encrypt(nonce, secret.reveal().encode("utf-8", "surrogatepass"), context.associated_data)
        )

    def open(self, blob: bytes, context: Context) -> Secret:
        """Decrypt what :meth:`seal` made for the same place.

        Raises KeyUnavailable if its key is not here, or is another one under the same id; SecretTampered if it was
        changed, cut or moved.
        """
        blob = bytes(blob)
        end = 2 + blob[1] + _CHECK_BYTES if len(blob) > 1 else 0
        key = self._by_head.get(blob[:end])
        if key is not None and len(blob) >= end + _NONCE_BYTES + _TAG_BYTES:
            nonce = blob[end : end + _NONCE_BYTES]
            try:
                return Secret(
                    key.cipher.decrypt(nonce, blob[end + _NONCE_BYTES :], context.associated_data).decode(
                        "utf-8", "surrogatepass"
                    )
                )
            except (InvalidTag, UnicodeDecodeError):
                pass
        # Outside the except clause: what a failed decoding leaves in its exception would be the plaintext.
        raise self._refusal(blob)

    def _refusal(self, blob: bytes) -> ConfigurationError:
        """Tell a missing key from a changed secret."""
        name = _named_key(blob)
        if name is None:
            return _tampered("is not in the form that tokenkeeper writes")
        if blob[: 2 + len(name) + _CHECK_BYTES] in self._by_head:
            return _tampered(
                "does not open with its key in this place: it was changed, cut, or moved here from elsewhere"
            )
        shown = ascii(name.decode("latin-1"))
        known = any(key.id.encode("ascii") == name for key in self._keys)
        problem = "is not the key that sealed this secret" if known else "is not in the keyring"
        return KeyUnavailable(
            f"key {shown} {problem} (which has {', '.join(self.key_ids)}). The row was not changed; it is "
            "the operator's turn, not the member's.",
            cause="key_unavailable",
            fix=f"Put key {shown} back into {VARIABLE}, after the first one, on every worker.",
        )

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self.key_ids)}>"

    def __copy__(self) -> Keyring:
        return self

    def __deepcopy__(self, memo: object) -> Keyring:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Keyring is not pickled: each process reads its keys from its own environment")


def generate_key(key_id: str) -> str:
    """Return a new key as ``id:base64``, from the system's randomness. Raises InvalidInput for an unusable id."""
    if not _KEY_ID.fullmatch(key_id):
        raise InvalidInput(
            f"{key_id[:40]!a} cannot be a key id", cause="bad_key_id", fix=f"A key id is {_KEY_ID_FORM}."
        )
    return f"{key_id}:{base64.b64encode(os.urandom(_KEY_BYTES)).decode('ascii')}"


_KEY_ID_FORM = "1 to 32 of A-Z a-z 0-9 . _ - and begins with a letter or digit, such as 2026-11"


def key_id_of(blob: bytes) -> str | None:
    """Return the id of the key that sealed a secret, or None if it is no sealed secret."""
    name = _named_key(bytes(blob))
    return None if name is None else name.decode("latin-1")


def _named_key(blob: bytes) -> bytes | None:
    if len(blob) < 2 or blob[0] != _VERSION or not 1 <= blob[1] <= 32:
        return None
    if len(blob) < 2 + blob[1] + _CHECK_BYTES + _NONCE_BYTES + _TAG_BYTES:
        return None
    return blob[2 : 2 + blob[1]]


def _tampered(what: str) -> SecretTampered:
    return SecretTampered(
        f"a sealed secret {what}. The row was not changed; it is the operator's turn, not the member's.",
        cause="tampered",
        fix="Find out who writes to the database; restore the row from a backup, or have the member connect again.",
    )


def _from_text(text: object, source: str) -> tuple[_Key, ...] | _Problem:
    if not isinstance(text, str | None):
        return _Problem(ConfigurationError, f"{source} is not a text but {type(text).__name__}")
    if text is None or not text.strip():
        return _Problem(KeyUnavailable, f"{source} is not set, so no secret can be sealed or opened")
    entries = []
    for position, entry in enumerate(text.split(","), 1):
        key_id, colon, encoded = entry.strip().partition(":")
        # What stands before the colon is only repeated where it cannot be the key itself.
        if not colon or not _KEY_ID.fullmatch(key_id):
            return _Problem(
                ConfigurationError, f"entry {position} of {source} is not id:base64 (the id is {_KEY_ID_FORM})"
            )
        decoded = _decoded(encoded)
        if decoded is None:
            return _Problem(ConfigurationError, f"key {key_id!r} in {source} is not base64")
        entries.append((key_id, decoded))
    return _built(entries)


def _decoded(encoded: str) -> bytes | None:
    try:
        standard = encoded.strip().rstrip("=").replace("-", "+").replace("_", "/")
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except ValueError:
        return None


def _built(entries: object) -> tuple[_Key, ...] | _Problem:
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        return _Problem(
            ConfigurationError,
            f"a Keyring takes ids and keys, not {type(entries).__name__}",
            "Use Keyring.parse(text) for keys as text, or Keyring.from_env().",
        )
    built: dict[str, _Key] = {}
    for position, entry in enumerate(entries, 1):
        problem = _flaw(position, entry, built)
        if problem is not None:
            return problem
        try:
            built[entry[0]] = _Key(entry[0], bytes(entry[1]))
        except UnsupportedAlgorithm:
            return _Problem(
                ConfigurationError,
                "this build of cryptography has no AES-256-GCM-SIV (it needs OpenSSL 3.2 or newer)",
                "Install cryptography from its wheel: pip install --upgrade --only-binary cryptography cryptography",
            )
    return tuple(built.values()) or _Problem(KeyUnavailable, "there is no key, so no secret can be sealed or opened")


def _flaw(position: int, entry: object, earlier: Mapping[str, _Key]) -> _Problem | None:
    """What is wrong with one pair of id and key; an id is repeated only once it is sure that it is one."""
    match entry:
        case (str(key_id), key) if _KEY_ID.fullmatch(key_id):
            pass
        case _:
            return _Problem(ConfigurationError, f"the id of key {position} cannot be used: a key id is {_KEY_ID_FORM}")
    if key_id in earlier:
        return _Problem(
            ConfigurationError, f"there are two keys with the id {key_id!r}", "Give each key an id of its own."
        )
    if not isinstance(key, bytes | bytearray | memoryview):
        return _Problem(ConfigurationError, f"key {key_id!r} is not bytes but {type(key).__name__}")
    if len(key) != _KEY_BYTES:
        return _Problem(ConfigurationError, f"key {key_id!r} has {len(key)} bytes, not {_KEY_BYTES}")
    if not any(key):
        return _Problem(ConfigurationError, f"key {key_id!r} is all zeros")
    return None
