"""The provider's own memory: grants, their tokens, and what becomes of a refresh token that has been used.

No clock and no lock in here: the time is an argument, :class:`~tokenkeeper.testing.FakeProvider` holds the lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tokenkeeper.model import Rotation


@dataclass(slots=True, eq=False)
class GrantRecord:
    """One consent of one member; all tokens that stem from it are its family."""

    number: int
    member: str
    scopes: tuple[str, ...]
    authorized_at: float
    revoked: bool = False
    access_tokens: list[AccessRecord] = field(default_factory=list, repr=False)
    refresh_tokens: list[RefreshRecord] = field(default_factory=list, repr=False)


@dataclass(slots=True, eq=False)
class RefreshRecord:
    """A refresh token. ``redeemed_at``: of its first use; ``retired``: superseded for good."""

    text: str
    grant: GrantRecord
    issued_at: float
    expires_at: float | None
    parent: RefreshRecord | None = None
    redeemed_at: float | None = None
    retired: bool = False
    revoked: bool = False
    forgotten: bool = False
    pair: Pair | None = field(default=None, repr=False)


@dataclass(slots=True, eq=False, kw_only=True)
class CodeRecord:
    """An authorization code; ``grant`` is set once it has been exchanged."""

    text: str
    member: str
    scopes: tuple[str, ...]
    redirect_uri: str
    challenge: str | None
    nonce: str | None
    expires_at: float
    grant: GrantRecord | None = None


@dataclass(slots=True, eq=False)
class AccessRecord:
    """An access token. ``redeemed`` is the refresh token that it was traded for."""

    text: str
    grant: GrantRecord
    issued_at: float
    expires_at: float
    scopes: tuple[str, ...]
    redeemed: RefreshRecord | None = None
    revoked: bool = False
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """What a token response is made of. ``refresh`` is None where none was issued or the old one simply stays."""

    access: AccessRecord
    refresh: RefreshRecord | None


@dataclass(frozen=True, slots=True)
class Redemption:
    """The outcome of presenting a refresh token: a verdict, and the pair where it was accepted."""

    verdict: str
    token: RefreshRecord | None
    pair: Pair | None = None


@dataclass(kw_only=True, repr=False)
class Ledger:
    """Issues numbered tokens and redeems them. Lifetimes are in seconds; the rules are FakeProvider's knobs."""

    rotation: Rotation
    grace_seconds: float
    grace_answer: str
    access_lifetime: float
    refresh_lifetime: float | None
    refresh_tokens: bool
    one_access_token: bool
    reuse_kills: bool
    prefix: str
    grants: list[GrantRecord] = field(default_factory=list)
    access: dict[str, AccessRecord] = field(default_factory=dict)
    refresh: dict[str, RefreshRecord] = field(default_factory=dict)
    codes: dict[str, CodeRecord] = field(default_factory=dict)

    def issue(
        self,
        member: str,
        scopes: tuple[str, ...],
        now: float,
        *,
        lifetime: float | None = None,
        refresh: bool | None = None,
    ) -> Pair:
        """Start a grant and issue its first tokens."""
        grant = GrantRecord(len(self.grants) + 1, member, scopes, now)
        self.grants.append(grant)
        wanted = self.refresh_tokens if refresh is None else refresh
        return Pair(
            self._mint_access(grant, now, lifetime=lifetime), self._mint_refresh(grant, now) if wanted else None
        )

    def issue_code(self, **values: Any) -> CodeRecord:
        """Issue an authorization code; *values* are the record's."""
        code = CodeRecord(text=f"{self.prefix}code-{len(self.codes) + 1}", **values)
        self.codes[code.text] = code
        return code

    def redeem(self, text: str, now: float, scopes: tuple[str, ...] | None = None) -> Redemption:
        """Trade a refresh token for new tokens, as the rotation has it; a reuse may end the whole family."""
        token = self.refresh.get(text)
        verdict = self.refresh_verdict(token, now)
        if token is None or verdict not in {"ok", "replayed"}:
            if verdict == "reused" and token and self.reuse_kills:
                token.grant.revoked = True
            return Redemption(verdict, token)
        if scopes and not set(scopes) <= set(token.grant.scopes):
            return Redemption("scope", token)
        if verdict == "replayed" and self.grace_answer == "same" and token.pair:
            return Redemption(verdict, token, token.pair)
        return Redemption(verdict, token, self._rotate(token, now, scopes))

    def _rotate(self, token: RefreshRecord, now: float, scopes: tuple[str, ...] | None) -> Pair:
        if self.one_access_token:
            for old in token.grant.access_tokens:
                old.revoked = True
        access = self._mint_access(token.grant, now, scopes=scopes, redeemed=token)
        if self.rotation is Rotation.NONE:
            return Pair(access, None)
        if token.parent:
            token.parent.retired = True
        if token.redeemed_at is None:
            token.redeemed_at = now
        token.pair = Pair(access, self._mint_refresh(token.grant, now, parent=token))
        return token.pair

    def refresh_verdict(self, token: RefreshRecord | None, now: float) -> str:
        """What the token endpoint would say of a refresh token, without spending it."""
        if token is None or token.forgotten:
            return "invalid"
        if token.revoked or token.grant.revoked:
            return "revoked"
        if token.expires_at is not None and now >= token.expires_at:
            return "expired"
        if token.redeemed_at is None:
            return "ok"
        forgiven = not token.retired and (
            self.rotation is Rotation.BY_USE
            or (self.rotation is Rotation.GRACE and now < token.redeemed_at + self.grace_seconds)
        )
        return "replayed" if forgiven else "reused"

    def access_verdict(self, token: AccessRecord | None, now: float) -> str:
        """What the API would say of an access token, without using it."""
        if token is None or token.forgotten:
            return "invalid"
        if token.revoked or token.grant.revoked:
            return "revoked"
        return "expired" if now >= token.expires_at else "ok"

    def token(self, text: str) -> AccessRecord | RefreshRecord | None:
        """A token of either kind, by its text."""
        return self.access.get(text) or self.refresh.get(text)

    def inspect(self, text: str, now: float) -> tuple[str, str]:
        """Kind and verdict of a token, without using it; an unknown one counts as an access token."""
        if text in self.refresh:
            return "refresh", self.refresh_verdict(self.refresh[text], now)
        return "access", self.access_verdict(self.access.get(text), now)

    def grant_of(self, text: str) -> GrantRecord | None:
        """The grant that a token or an exchanged code belongs to."""
        token = self.token(text) or self.codes.get(text)
        return token.grant if token else None

    def use(self, token: AccessRecord) -> None:
        """Note a successful use: under by_use it ends the refresh token that the access token was traded for."""
        if self.rotation is Rotation.BY_USE and token.redeemed:
            token.redeemed.retired = True

    def chosen(self, which: str | None) -> Iterator[GrantRecord]:
        """The grants of a member, or all. Raises LookupError for a member without any."""
        grants = [grant for grant in self.grants if which is None or grant.member == which]
        if not grants:
            raise LookupError(
                "no such member or token at the fake provider" if which else "the fake provider has issued nothing"
            )
        yield from grants

    def chosen_access(self, which: str | None) -> list[AccessRecord]:
        """An access token by its text, or all of a member, or all."""
        if which in self.access:
            return [self.access[which]]
        return [token for grant in self.chosen(which) for token in grant.access_tokens]

    def chosen_refresh(self, which: str | None) -> list[RefreshRecord]:
        """A refresh token by its text, or all of a member, or all."""
        if which in self.refresh:
            return [self.refresh[which]]
        return [token for grant in self.chosen(which) for token in grant.refresh_tokens]

    def _mint_access(
        self,
        grant: GrantRecord,
        now: float,
        *,
        lifetime: float | None = None,
        scopes: tuple[str, ...] | None = None,
        redeemed: RefreshRecord | None = None,
    ) -> AccessRecord:
        text = f"{self.prefix}access-{len(self.access) + 1}"
        expires_at = now + (self.access_lifetime if lifetime is None else lifetime)
        token = AccessRecord(text, grant, now, expires_at, scopes or grant.scopes, redeemed)
        self.access[text] = token
        grant.access_tokens.append(token)
        return token

    def _mint_refresh(self, grant: GrantRecord, now: float, parent: RefreshRecord | None = None) -> RefreshRecord:
        text = f"{self.prefix}refresh-{len(self.refresh) + 1}"
        expires_at = None if self.refresh_lifetime is None else now + self.refresh_lifetime
        token = RefreshRecord(text, grant, now, expires_at, parent)
        self.refresh[text] = token
        grant.refresh_tokens.append(token)
        return token
