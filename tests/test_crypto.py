"""The keyring: what is sealed opens in its own place with its own key, and nowhere else."""

from __future__ import annotations

import base64
import copy
import dataclasses
import pickle
import traceback
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from frames import in_package
from hypothesis import given
from hypothesis import strategies as st

from tokenkeeper import crypto
from tokenkeeper.crypto import Context, Keyring, generate_key, key_id_of
from tokenkeeper.errors import ConfigurationError, InvalidInput, KeyUnavailable, SecretTampered
from tokenkeeper.model import Secret, Turn

OLD = bytes(range(32))
NEW = bytes(range(32, 64))
PLACE = Context("tokenkeeper_grants", "refresh_token", "9f2c", "linkedin", "ann", 7)
TOKEN = Secret("AQV-canary.refresh~token+/=")


def locals_of(error: BaseException) -> str:
    """What a traceback with locals shows of the library's own frames, and of every chained exception."""
    shown, seen = [], [error]
    while seen:
        one = seen.pop()
        seen += [other for other in (one.__cause__, one.__context__) if other is not None]
        frames = traceback.TracebackException.from_exception(one, capture_locals=True).stack
        shown += [str(frame.locals) for frame in frames if in_package(frame.filename)]
        shown.append(repr(one) + str(one) + str(vars(one)))
    return "\n".join(shown)


def test_what_is_sealed_opens_again() -> None:
    """A secret comes back as it was, and its text is not in the sealed bytes."""
    ring = Keyring({"2026-11": NEW})
    blob = ring.seal(TOKEN, PLACE)
    assert ring.open(blob, PLACE) == TOKEN
    assert TOKEN.reveal().encode() not in blob
    assert ring.open(memoryview(blob), PLACE) == TOKEN  # type: ignore[arg-type]  # as some drivers hand out binary columns


@given(st.text(min_size=1))
def test_every_text_survives(text: str) -> None:
    """Any text, beyond ASCII too, comes back unchanged."""
    ring = Keyring({"k": NEW})
    assert ring.open(ring.seal(Secret(text), PLACE), PLACE).reveal() == text


def test_sealed_form() -> None:
    """The bytes are version, length, key id, key check, nonce, ciphertext and tag, as the design has them."""
    blob = Keyring({"2026-11": NEW}).seal(Secret("x" * 10), PLACE)
    assert blob[:2] == b"\x01\x07"
    assert blob[2:9] == b"2026-11"
    assert len(blob) == 2 + 7 + 4 + 12 + 10 + 16
    again = Keyring({"2026-11": NEW}).seal(Secret("x" * 10), PLACE)
    assert again[:13] == blob[:13]
    assert again[13:25] != blob[13:25]


def test_first_key_seals_and_all_open() -> None:
    """After a rotation the new key seals and the old one still opens."""
    blob = Keyring({"old": OLD}).seal(TOKEN, PLACE)
    ring = Keyring([("new", NEW), ("old", OLD)])
    assert ring.open(blob, PLACE) == TOKEN
    assert key_id_of(blob) == "old"
    assert key_id_of(ring.seal(TOKEN, PLACE)) == ring.primary == "new"
    assert ring.key_ids == ("new", "old")


@pytest.mark.parametrize(
    "change",
    [
        {"table": "tokenkeeper_pending"},
        {"column": "access_token"},
        {"grant_id": "9f2d"},
        {"registration": "linkedin2"},
        {"member": "Ann"},
        {"member": "ann "},
        {"generation": 8},
    ],
)
def test_moved_secret_is_tampering(change: dict[str, Any]) -> None:
    """A ciphertext in another table, column, grant, registration, member or generation does not open."""
    ring = Keyring({"k": NEW})
    blob = ring.seal(TOKEN, PLACE)
    with pytest.raises(SecretTampered) as raised:
        ring.open(blob, dataclasses.replace(PLACE, **change))
    assert raised.value.turn is Turn.OPERATOR
    assert raised.value.fix


@given(
    st.lists(st.text(max_size=3), min_size=5, max_size=5),
    st.lists(st.text(max_size=3), min_size=5, max_size=5),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_two_places_never_read_the_same(a: list[str], b: list[str], i: int, j: int) -> None:
    """The associated data tells any two places apart, however their parts could be joined."""
    left, right = Context(*a, i), Context(*b, j)  # type: ignore[call-arg, arg-type]
    assert (left == right) == (left.associated_data == right.associated_data)


@pytest.mark.parametrize("parts", [(("ab", "c"), ("a", "bc")), (("1:a", ""), ("", "1:a")), (("", "0:"), ("0:", ""))])
def test_joined_parts_are_not_confused(parts: tuple[tuple[str, str], tuple[str, str]]) -> None:
    """Moving a boundary between two parts, or imitating a length, makes another place."""
    one, other = (dataclasses.replace(PLACE, registration=a, member=b).associated_data for a, b in parts)
    assert one != other


def test_digits_are_not_confused() -> None:
    """A length and the digits beside it do not read as another place."""
    one = dataclasses.replace(PLACE, registration="a1", member="xy", generation=12345678901)
    other = dataclasses.replace(PLACE, registration="a", member="xy1234567890", generation=1)
    assert one.associated_data != other.associated_data


def test_every_flipped_bit_is_noticed() -> None:
    """Any single flipped bit is tampering or an unavailable key, and the secret never comes out."""
    ring = Keyring([("2026-11", NEW), ("2026-05", OLD)])
    blob = ring.seal(TOKEN, PLACE)
    for position in range(len(blob) * 8):
        flipped = bytearray(blob)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises((SecretTampered, KeyUnavailable)):
            ring.open(bytes(flipped), PLACE)


def test_every_cut_is_tampering() -> None:
    """A sealed secret that was cut anywhere, or made longer, is refused."""
    ring = Keyring({"2026-11": NEW})
    blob = ring.seal(TOKEN, PLACE)
    for size in range(len(blob)):
        with pytest.raises(SecretTampered):
            ring.open(blob[:size], PLACE)
    with pytest.raises(SecretTampered):
        ring.open(blob + b"\0", PLACE)


@given(st.binary(max_size=120))
def test_garbage_is_refused(blob: bytes) -> None:
    """Whatever bytes stand in the column, opening them raises one of the two errors and nothing else."""
    with pytest.raises((SecretTampered, KeyUnavailable)):
        Keyring({"k": NEW}).open(blob, PLACE)


@pytest.mark.parametrize("head", [b"\x00\x01k", b"\x02\x01k", b"\x01\x00", b"\x01\x21" + b"k" * 33])
def test_unknown_form_is_tampering(head: bytes) -> None:
    """Another version, and a key id of no length or too long, is no form that was ever written."""
    with pytest.raises(SecretTampered, match="form"):
        Keyring({"k": NEW}).open(head + bytes(100), PLACE)


def test_sealed_bytes_that_are_no_text() -> None:
    """What the key did seal but is no text is refused, and its bytes are in no chained exception."""
    ring = Keyring({"k": NEW})
    head, nonce = ring.seal(TOKEN, PLACE)[:7], bytes(12)
    blob = head + nonce + AESGCMSIV(NEW).encrypt(nonce, b"canary\xff", PLACE.associated_data)
    with pytest.raises(SecretTampered) as raised:
        ring.open(blob, PLACE)
    assert raised.value.__context__ is None
    assert "canary" not in locals_of(raised.value)


def test_missing_key_is_named() -> None:
    """A key that is not in the keyring is the operator's turn, and named with the fix."""
    blob = Keyring({"2025-01": OLD}).seal(TOKEN, PLACE)
    with pytest.raises(KeyUnavailable, match="'2025-01' is not in the keyring") as raised:
        Keyring({"2026-11": NEW}).open(blob, PLACE)
    assert "2025-01" in raised.value.fix
    assert "operator" in str(raised.value)


def test_other_key_under_the_same_id() -> None:
    """Another key under the same id is told apart from tampering."""
    blob = Keyring({"2026-11": OLD}).seal(TOKEN, PLACE)
    with pytest.raises(KeyUnavailable, match="not the key that sealed"):
        Keyring({"2026-11": NEW}).open(blob, PLACE)


def test_key_id_from_the_database_is_escaped() -> None:
    """A key id that somebody wrote into the database cannot bring control characters into a message."""
    blob = b"\x01\x04\x1b[2J" + bytes(4 + 12 + 16)
    with pytest.raises(KeyUnavailable) as raised:
        Keyring({"k": NEW}).open(blob, PLACE)
    assert "\x1b" not in str(raised.value) + raised.value.fix
    assert key_id_of(b"") is key_id_of(b"\x02\x01a" + bytes(40)) is None


def test_empty_secret_is_not_sealed() -> None:
    """An empty secret is a mistake of the caller, found before it is stored."""
    with pytest.raises(InvalidInput):
        Keyring({"k": NEW}).seal(Secret(""), PLACE)


AWKWARD = b"\xfb\xff\xbf" * 10 + b"\xff\xff"
"""A key whose base64 has + and / in it."""


def text_of(key: bytes) -> str:
    """A key in standard base64."""
    return base64.b64encode(key).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"a:{text_of(AWKWARD)}",
        f"a:{base64.urlsafe_b64encode(AWKWARD).decode()}",
        f"  a:{text_of(AWKWARD).rstrip('=')}\n",
        f"a:{text_of(AWKWARD)},\n b:{text_of(OLD)}",
    ],
)
def test_text_of_keys_is_read(text: str) -> None:
    """Standard and URL-safe base64, padded or not, with blanks around an entry, are read alike."""
    blob = Keyring({"a": AWKWARD}).seal(TOKEN, PLACE)
    assert Keyring.parse(text).open(blob, PLACE) == TOKEN


def test_keys_come_from_the_environment() -> None:
    """The keyring is read from TOKENKEEPER_KEYS, or from the variable that is named."""
    environ = {"TOKENKEEPER_KEYS": f"a:{text_of(NEW)},b:{text_of(OLD)}", "OTHER": f"c:{text_of(NEW)}"}
    assert Keyring.from_env(environ=environ).key_ids == ("a", "b")
    assert Keyring.from_env("OTHER", environ).key_ids == ("c",)


def test_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the process's own environment is read, at the time of the call."""
    monkeypatch.setenv("TOKENKEEPER_KEYS", f"now:{text_of(NEW)}")
    assert Keyring.from_env().primary == "now"


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_no_keys_in_the_environment(value: str | None) -> None:
    """A missing or empty variable is named, with the command that makes a key."""
    with pytest.raises(KeyUnavailable, match="TOKENKEEPER_KEYS is not set") as raised:
        Keyring.from_env(environ={} if value is None else {"TOKENKEEPER_KEYS": value})
    assert "tokenkeeper keys generate" in raised.value.fix


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (text_of(AWKWARD), "entry 1 of"),
        (f"good:{text_of(NEW)},", "entry 2 of"),
        (f"good:{text_of(NEW)},{text_of(AWKWARD)}:bad", "entry 2 of"),
        (f":{text_of(AWKWARD)}", "entry 1 of"),
        (f"schlüssel:{text_of(AWKWARD)}", "entry 1 of"),
        (f"{'k' * 33}:{text_of(AWKWARD)}", "entry 1 of"),
        (f"two words:{text_of(AWKWARD)}", "entry 1 of"),
        (f"k:{text_of(AWKWARD)}%", "'k' in the text of the keys is not base64"),
        (f"k:{text_of(AWKWARD)[:-9]}", "'k' has 26 bytes, not 32"),
        (f"k:{text_of(AWKWARD + b'!')}", "'k' has 33 bytes, not 32"),
        ("k:", "'k' has 0 bytes"),
        (f"k:{text_of(AWKWARD)},k:{text_of(OLD)}", "two keys with the id 'k'"),
        (f"k:{text_of(bytes(32))}", "'k' is all zeros"),
    ],
    ids=range(13),
)
def test_bad_text_of_keys(text: str, says: str) -> None:
    """Each mistake is named by the key's id or position, and neither message nor traceback shows the key."""
    with pytest.raises(ConfigurationError) as raised:
        Keyring.parse(text)
    assert says in str(raised.value)
    assert "operator" in str(raised.value)
    assert raised.value.fix
    shown = locals_of(raised.value).replace("=", "")
    for part in (text_of(AWKWARD)[:20], repr(AWKWARD)[2:30]):
        assert part not in shown


@pytest.mark.parametrize(
    "keys",
    [
        {},
        [],
        "k:" + text_of(AWKWARD),
        None,
        {"k": AWKWARD[:31]},
        {"k": text_of(AWKWARD)},
        {"": AWKWARD},
        {5: AWKWARD},
        {"k": bytes(32)},
        {"ключ": AWKWARD},
        [("k", AWKWARD), ("k", AWKWARD)],
        [("k", AWKWARD, 1)],
        [AWKWARD],
        [None],
    ],
    ids=range(14),
)
def test_bad_keys(keys: object) -> None:
    """What cannot be a keyring is a configuration error, without the key in its traceback."""
    with pytest.raises(ConfigurationError) as raised:
        Keyring(keys)  # type: ignore[arg-type]
    shown = locals_of(raised.value)
    assert text_of(AWKWARD)[:20] not in shown
    assert repr(AWKWARD)[2:30] not in shown


def test_failed_environment_is_not_shown() -> None:
    """A bad variable leaves no environment in the traceback's locals."""
    with pytest.raises(ConfigurationError) as raised:
        Keyring.from_env(environ={"TOKENKEEPER_KEYS": "k:short", "PASSWORD": "canary-password"})
    assert "canary-password" not in locals_of(raised.value)


def test_refused_opening_shows_no_secret() -> None:
    """A tampered secret's error holds no plaintext and no key, also not in chained exceptions."""
    ring = Keyring({"k": AWKWARD})
    blob = ring.seal(TOKEN, PLACE)
    with pytest.raises(SecretTampered) as raised:
        ring.open(blob, dataclasses.replace(PLACE, member="bob"))
    assert raised.value.__context__ is None
    assert TOKEN.reveal() not in locals_of(raised.value)
    assert repr(AWKWARD)[2:30] not in locals_of(raised.value)


def test_generated_key() -> None:
    """A generated key is read back, is new each time, and its id is checked."""
    one, two = generate_key("2026-11"), generate_key("2026-11")
    assert one != two
    assert Keyring.parse(one).primary == "2026-11"
    for bad in ("", "ä", "a,b", "a:b", "k" * 33, "-x", "two words"):
        with pytest.raises(InvalidInput):
            generate_key(bad)


def test_keyring_shows_ids_only() -> None:
    """The repr names the keys; a pickle is refused; a copy is the keyring itself."""
    ring = Keyring([("new", NEW), ("old", OLD)])
    assert repr(ring) == str(ring) == "<Keyring new, old>"
    with pytest.raises(TypeError, match="environment"):
        pickle.dumps(ring)
    assert copy.copy(ring) is copy.deepcopy(ring) is ring


def test_build_without_gcm_siv(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cryptography without AES-GCM-SIV is a configuration error that says how to get it."""

    class Missing:
        def __init__(self, key: bytes) -> None:
            raise UnsupportedAlgorithm("AES-GCM-SIV is not supported by this version of OpenSSL")

    monkeypatch.setattr(crypto, "AESGCMSIV", Missing)
    with pytest.raises(ConfigurationError, match="OpenSSL") as raised:
        Keyring({"k": AWKWARD})
    assert "pip install" in raised.value.fix
    assert repr(AWKWARD)[2:30] not in locals_of(raised.value)
