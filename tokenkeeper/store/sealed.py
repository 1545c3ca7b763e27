"""Tokens on their way to the store: sealed for one row, one column, one generation.

Access and refresh token are sealed apart: reading an access token never opens the refresh token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenkeeper.core.effects import StoredGrant
from tokenkeeper.core.token_endpoint import TokenSet
from tokenkeeper.crypto import Context, Keyring
from tokenkeeper.model import GrantKey, Secret

TABLE = "tokenkeeper_grant"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedTokens:
    """A token set that only a keyring can open, for generation ``generation`` of the grant.

    ``expires_at`` is in epoch seconds and wins over ``expires_in`` (seconds since the request was sent).
    ``consented_at`` is of the consent that they go on with (None: not known), for a row that is older than they are.
    """

    grant_id: str
    generation: int
    access_token: bytes = field(repr=False)
    refresh_token: bytes | None = field(repr=False)
    expires_in: float | None
    expires_at: float | None
    refresh_expires_in: float | None
    scopes: tuple[str, ...] | None
    consented_at: int | None = None


def context(column: str, grant_id: str, key: GrantKey, generation: int) -> Context:
    """What a sealed token is bound to."""
    return Context(TABLE, column, grant_id, key.registration, key.member, generation)


def seal_tokens(
    keyring: Keyring,
    grant_id: str,
    key: GrantKey,
    generation: int,
    tokens: TokenSet,
    consented_at: int | None = None,
) -> SealedTokens:
    """Seal *tokens* for the grant's *generation*. Raises ConfigurationError."""

    def sealed(column: str, secret: Secret) -> bytes:
        return keyring.seal(secret, context(column, grant_id, key, generation))

    return SealedTokens(
        grant_id=grant_id,
        generation=generation,
        access_token=sealed("access_token", tokens.access_token),
        refresh_token=None if tokens.refresh_token is None else sealed("refresh_token", tokens.refresh_token),
        expires_in=tokens.expires_in,
        expires_at=tokens.expires_at,
        refresh_expires_in=tokens.refresh_expires_in,
        scopes=tokens.scopes,
        consented_at=consented_at,
    )


def open_access_token(keyring: Keyring, grant: StoredGrant) -> Secret:
    """Open the grant's access token. Raises KeyUnavailable, SecretTampered."""
    return keyring.open(grant.sealed_access_token, context("access_token", grant.id, grant.key, grant.generation))


def open_refresh_token(keyring: Keyring, grant: StoredGrant) -> Secret:
    """Open the grant's refresh token, which it must have. Raises KeyUnavailable, SecretTampered."""
    assert grant.sealed_refresh_token is not None
    return keyring.open(grant.sealed_refresh_token, context("refresh_token", grant.id, grant.key, grant.generation))
