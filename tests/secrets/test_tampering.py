"""Whoever writes to the database cannot make one member's token another's, nor an old one new (DESIGN section 5).

Every ciphertext is put where it does not belong, bits of every byte of one are flipped, and it is cut, grown and
emptied: that is the operator's turn, told once; no member is asked for anything, and the row stays as it is.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from stage import KEY, Stage

from tokenkeeper import (
    AccessToken,
    GrantStatus,
    Keyring,
    KeyUnavailable,
    SecretTampered,
    TamperingDetected,
    TokenKeeperError,
    Turn,
)

COLUMNS = ("access_token", "refresh_token")
MEMBERS = [("acme", "ann"), ("acme", "Ann"), ("acme", "ann "), ("acme", "bob"), ("beta", "ann")]


@dataclass(frozen=True)
class Sealed:
    """A ciphertext, and where it was written."""

    registration: str
    member: str
    grant_id: str
    generation: int
    column: str
    blob: bytes

    @property
    def key(self) -> tuple[str, str]:
        """Whose it is."""
        return self.registration, self.member


class Vault:
    """A stage whose database somebody else writes to."""

    def __init__(self, world: Stage) -> None:
        self.world = world
        self.stack = contextlib.ExitStack()
        connection = sqlite3.connect(world.vault / "tokens.db", isolation_level=None)
        self.database = self.stack.enter_context(contextlib.closing(connection))
        self.database.execute("PRAGMA synchronous=OFF")

    def sealed(self) -> list[Sealed]:
        """All ciphertexts as they stand."""
        names = "registration, member, grant_id, generation"
        found = self.database.execute(f"SELECT {names}, access_token, refresh_token FROM tokenkeeper_grant").fetchall()
        return [
            Sealed(registration.decode(), member.decode(), grant_id, generation, column, blob)
            for registration, member, grant_id, generation, *blobs in found
            for column, blob in zip(COLUMNS, blobs, strict=True)
            if blob is not None
        ]

    def rows(self) -> list[tuple[Any, ...]]:
        """The grants' rows, each column of them."""
        return self.database.execute("SELECT * FROM tokenkeeper_grant ORDER BY grant_id").fetchall()

    @contextlib.contextmanager
    def changed(self, grant_id: str, /, **columns: Any) -> Iterator[None]:
        """Write into a row behind the keeper's back; see that it stands so afterwards, and put it back."""
        names = ", ".join(columns)
        before = self.database.execute(
            f"SELECT {names} FROM tokenkeeper_grant WHERE grant_id = ?", (grant_id,)
        ).fetchone()
        now = columns.get("grant_id", grant_id)
        setting = ", ".join(f"{name} = ?" for name in columns)
        self.database.execute(
            f"UPDATE tokenkeeper_grant SET {setting} WHERE grant_id = ?", (*columns.values(), grant_id)
        )
        rows = self.rows()
        yield
        assert self.rows() == rows
        self.database.execute(f"UPDATE tokenkeeper_grant SET {setting} WHERE grant_id = ?", (*before, now))

    # --- what a host does ---

    def token(self, registration: str, member: str) -> Any:
        """Ask for an access token."""
        return self.world.does(self.world.keeper.access_token(registration, member))

    def renewed(self, registration: str, member: str) -> Any:
        """Renew."""
        return self.world.does(self.world.keeper.renew(registration, member))

    def called(self, registration: str, member: str) -> Any:
        """Make a guarded call, which must not get so far as to be made."""

        def call(token: AccessToken, member: str) -> httpx2.Response:
            raise AssertionError("called with a token that is not the member's")

        async def acall(token: AccessToken, member: str) -> httpx2.Response:
            return call(token, member)

        function = call if self.world.twin == "sync" else acall
        return self.world.does(self.world.keeper.guard(registration)(function)(member=member))

    def refuses(self, act: Callable[[str, str], Any], key: tuple[str, str], *kinds: type[TokenKeeperError]) -> None:
        """See that an act ends as the operator's turn."""
        with pytest.raises(TokenKeeperError) as raised:
            act(*key)
        assert type(raised.value) in (kinds or (SecretTampered,)), raised.value
        assert raised.value.turn is Turn.OPERATOR
        assert raised.value.fix

    def told(self) -> list[TamperingDetected]:
        """The tampering that callbacks heard of; nobody heard that a member has to do anything."""
        assert {type(event).__name__ for event in self.world.events} <= {
            "GrantConnected",
            "GrantForgotten",
            "TokensRenewed",
            "TamperingDetected",
        }
        return [event for event in self.world.events if isinstance(event, TamperingDetected)]

    def recorded(self) -> list[str]:
        """What the event table says of tampering."""
        keeper = self.world.keeper if self.world.twin == "sync" else self.world.keeper.sync
        return [event["id"] for event in keeper.events(kind="TamperingDetected")]


@pytest.fixture
def vault(stage: Callable[..., Stage]) -> Iterator[Vault]:
    """Some registrations and members, whose tokens are never in memory."""
    world = stage(cache_seconds=0.0)
    # Registrations of one provider: the same tokens would do at all of them.
    others = [world.provider.registration(name, provider=world.provider.as_provider()) for name in ("beta", "gamma")]
    world.keeper = world.another(registrations=[world.registration, *others])
    made = Vault(world)
    with made.stack:
        for registration, member in MEMBERS:
            world.does(world.keeper.save_tokens(registration, member, world.provider.issue(member=member)))
        yield made


def place(seal: Sealed) -> tuple[str, str, str, int, str]:
    """Where a ciphertext belongs."""
    return (seal.registration, seal.member, seal.grant_id, seal.generation, seal.column)


def test_every_ciphertext_in_every_other_place(vault: Vault) -> None:
    """Another member, column, generation, registration or grant: it opens nowhere but where it was written."""
    everything = vault.sealed()
    for _ in range(2):
        vault.renewed("acme", "ann")
        everything += vault.sealed()
    vault.world.does(vault.world.keeper.forget("acme", "bob"))
    vault.world.does(vault.world.keeper.save_tokens("acme", "bob", vault.world.provider.issue(member="bob")))
    everything += vault.sealed()
    everything = list({place(seal): seal for seal in everything}.values())
    targets = vault.sealed()
    assert len(everything) == 2 * (len(MEMBERS) + 2 + 1)
    assert len(targets) == 2 * len(MEMBERS)
    requests = vault.world.provider.token_requests
    pairs = [pair for pair in itertools.product(targets, everything) if place(pair[0]) != place(pair[1])]
    assert len(pairs) == len(targets) * (len(everything) - 1)
    # One twin sees all of them; the other, which runs the same operations, a third.
    for target, other in pairs[:: 1 if vault.world.twin == "sync" else 3]:
        with vault.changed(target.grant_id, **{target.column: other.blob}):
            if target.column == "access_token":
                vault.refuses(vault.token, target.key)
                vault.refuses(vault.called, target.key)
            else:
                vault.refuses(vault.renewed, target.key)
            assert vault.world.does(vault.world.keeper.grant(*target.key)).status is GrantStatus.ACTIVE
    assert vault.world.provider.token_requests == requests
    assert {(event.grant_id, event.cause) for event in vault.told()} == {
        (seal.grant_id, seal.column) for seal in targets
    }
    assert len(vault.told()) == len(vault.recorded()) == len(targets)
    for key in MEMBERS:
        assert vault.token(*key).grant_id == vault.world.does(vault.world.keeper.grant(*key)).id


def test_a_pair_of_another_members_tokens(vault: Vault) -> None:
    """The whole pair is moved: nothing can be done with it, also when the clock says that it has expired."""
    seals = {(seal.key, seal.column): seal for seal in vault.sealed()}
    moved = {column: seals[("acme", "bob"), column].blob for column in COLUMNS}
    ann = seals[("acme", "ann"), "access_token"]
    with vault.changed(ann.grant_id, **moved):
        for act in (vault.token, vault.called, vault.renewed):
            vault.refuses(act, ann.key)
        vault.world.clock.advance(4000)
        for act in (vault.token, vault.called, vault.renewed):
            vault.refuses(act, ann.key)
    assert vault.world.provider.token_requests == 0
    assert sorted(event.cause for event in vault.told()) == ["access_token", "refresh_token"]
    assert vault.token(*ann.key).generation == 2


@pytest.mark.parametrize(
    "change",
    [{"member": b"eve"}, {"registration": b"gamma"}, {"generation": 7}, {"grant_id": "0" * 32}],
    ids=str,
)
def test_a_row_that_is_given_another_name(vault: Vault, change: dict[str, Any]) -> None:
    """The ciphertexts stay where they are, and the row is called otherwise."""
    ann = vault.sealed()[0]
    key = tuple(
        change.get(name, old.encode()).decode() for name, old in zip(("registration", "member"), ann.key, strict=True)
    )
    with vault.changed(ann.grant_id, **change):
        for act in (vault.token, vault.called, vault.renewed):
            vault.refuses(act, key)  # type: ignore[arg-type]
    assert len(vault.told()) == 2


def test_tampering_is_told_once(vault: Vault) -> None:
    """However many callers and keepers come upon it; a later generation's is news again."""
    ann, _, bob, *_ = (seal for seal in vault.sealed() if seal.column == "access_token")
    with vault.changed(ann.grant_id, access_token=bob.blob):
        for _ in range(3):
            vault.refuses(vault.token, ann.key)
        vault.world.keeper = vault.world.another()
        for _ in range(3):
            vault.refuses(vault.called, ann.key)
    [event] = vault.told()
    assert vault.recorded() == [event.id]
    assert (event.registration, event.member, event.grant_id, event.cause) == (*ann.key, ann.grant_id, "access_token")
    vault.renewed(*ann.key)
    with vault.changed(ann.grant_id, access_token=bob.blob):
        vault.refuses(vault.token, ann.key)
    assert [event.generation for event in vault.told()] == [1, 2]


def test_a_renewal_replaces_a_changed_access_token(vault: Vault) -> None:
    """The refresh token opens, so it is the member's: what the provider gives for it is as well."""
    ann, _, bob, *_ = (seal for seal in vault.sealed() if seal.column == "access_token")
    with pytest.raises(AssertionError), vault.changed(ann.grant_id, access_token=bob.blob):
        vault.refuses(vault.token, ann.key)
        assert vault.renewed(*ann.key).generation == 2
    assert vault.token(*ann.key).generation == 2


def short(vault: Vault) -> tuple[Sealed, Sealed]:
    """The ciphertexts of a member whose tokens have one letter."""
    world = vault.world
    world.does(world.keeper.save_tokens("acme", "eve", {"access_token": "a", "refresh_token": "r"}))
    access, refresh = (seal for seal in vault.sealed() if seal.member == "eve")
    assert len(access.blob) == len(refresh.blob) == 2 + len("k1") + 4 + 12 + 1 + 16
    return access, refresh


def flips(blob: bytes) -> Iterator[bytes]:
    """The blob with each of its bits flipped."""
    for bit in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("which", [0, 1], ids=COLUMNS)
def test_flipped_bits_of_every_byte(vault: Vault, which: int) -> None:
    """Tampering, or a key that is not there; never a token, and never another error."""
    seal = short(vault)[which]
    act = (vault.token, vault.renewed)[which]
    # test_crypto flips every bit; here one twin sees some of every byte, the other, which runs the same operations, fewer.
    for changed in itertools.islice(flips(seal.blob), 0, None, 3 if vault.world.twin == "sync" else 7):
        with vault.changed(seal.grant_id, **{seal.column: changed}):
            vault.refuses(act, seal.key, SecretTampered, KeyUnavailable)
    assert vault.world.provider.token_requests == 0
    assert len(vault.told()) == 1


@pytest.mark.parametrize("which", [0, 1], ids=COLUMNS)
def test_every_length(vault: Vault, which: int) -> None:
    """Cut anywhere, also to nothing, or grown at either end."""
    seal = short(vault)[which]
    act = (vault.token, vault.renewed)[which]
    for changed in [
        *(seal.blob[:end] for end in range(len(seal.blob))),
        *(seal.blob[start:] for start in range(1, len(seal.blob))),
        *(seal.blob + bytes([more]) for more in (0, 1, 255)),
        *(bytes([more]) + seal.blob for more in (0, 1, 255)),
        seal.blob * 2,
        b"\0" * len(seal.blob),
        "a text",
        10**12,
        0.5,
        b"\x01" * 40,
        b"\x01\xff" + seal.blob,
        b"\x01\x00" + seal.blob,
    ]:
        with vault.changed(seal.grant_id, **{seal.column: changed}):
            vault.refuses(act, seal.key, SecretTampered, KeyUnavailable)
    assert vault.world.provider.token_requests == 0


@pytest.mark.parametrize("which", [0, 1], ids=COLUMNS)
def test_a_key_that_is_gone_is_no_tampering(vault: Vault, which: int) -> None:
    """No event, and nothing is changed: the right key opens everything again."""
    ann = vault.sealed()[which]
    act = (vault.token, vault.renewed)[which]
    for keys in ([("k2", KEY)], [("k1", KEY[::-1])], [("k2", KEY), ("k1", KEY[::-1])]):
        rows = vault.rows()
        vault.world.keeper = vault.world.another(keys=Keyring(keys))
        vault.refuses(act, ann.key, KeyUnavailable)
        assert vault.rows() == rows
    assert vault.told() == []
    vault.world.keeper = vault.world.another(keys=Keyring([("k2", KEY[::-1]), ("k1", KEY)]))
    assert act(*ann.key).generation in (1, 2)


# --- pending authorizations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["ann", "bob"])
def test_a_verifier_of_another_state(vault: Vault, other: str) -> None:
    """A verifier belongs to its state and member: the code is not sent, and what was stored stays."""
    world, rows = vault.world, vault.rows()
    mine, others = world.begin("ann"), world.begin(other)
    callback = world.provider.consent(mine.url, member="ann")
    verifiers = dict(vault.database.execute("SELECT state_digest, verifier FROM tokenkeeper_authorization").fetchall())
    for digest, verifier in zip(verifiers, reversed(verifiers.values()), strict=True):
        vault.database.execute(
            "UPDATE tokenkeeper_authorization SET verifier = ? WHERE state_digest = ?", (verifier, digest)
        )
    for url, member in [(callback, "ann"), (world.provider.consent(others.url, member=other), other)]:
        error = world.finish(url, member)
        assert (type(error), error.turn) == (SecretTampered, Turn.OPERATOR)
    assert world.provider.token_requests == 0
    assert vault.rows() == rows
    assert vault.told() == []
    assert world.finish(world.provider.consent(world.begin("ann").url, member="ann")).grant.generation == 2


def test_a_pending_authorization_of_another_member(vault: Vault) -> None:
    """Whoever renames its member in the database does not connect that member to somebody else's account."""
    world = vault.world
    callback = world.provider.consent(world.begin("eve").url, member="eve")
    vault.database.execute("UPDATE tokenkeeper_authorization SET member = ?", (b"ann",))
    rows = vault.rows()
    assert type(world.finish(callback, "ann")) is SecretTampered
    assert world.provider.token_requests == 0
    assert vault.rows() == rows


def test_flipped_bits_of_a_verifier(vault: Vault) -> None:
    """Tampering, or a key that is not there; the state is used up, and the next one works."""
    world = vault.world
    blob: bytes | None = None
    bit = 0
    while blob is None or bit < len(blob) * 8:
        callback = world.provider.consent(world.begin("ann").url, member="ann")
        [(blob, digest)] = vault.database.execute(
            "SELECT verifier, state_digest FROM tokenkeeper_authorization WHERE consumed_at IS NULL"
        ).fetchall()
        changed = next(itertools.islice(flips(blob), bit, None))
        vault.database.execute(
            "UPDATE tokenkeeper_authorization SET verifier = ? WHERE state_digest = ?", (changed, digest)
        )
        error = world.finish(callback)
        assert type(error) in (SecretTampered, KeyUnavailable), error
        bit += 13
    assert world.provider.token_requests == 0
    assert world.finish(world.provider.consent(world.begin("ann").url, member="ann")).grant.generation == 2
