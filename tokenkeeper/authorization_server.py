"""The keeper's dealings with authorization servers: token requests, introspection, userinfo.

Builds requests with the core's pure parts and sends them with the keeper's one transport. No URL from an answer, a
challenge or a database row is ever fetched: endpoints come from the registration's profile.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable

from tokenkeeper.clock import Clock
from tokenkeeper.core.effects import PendingAuthorization, Redeemed
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.token_endpoint import (
    TokenRequest,
    account_digest,
    check_endpoint,
    code_request,
    introspection_request,
    read_introspection,
    refresh_request,
    revocation_request,
)
from tokenkeeper.model import Answer, Registration, Secret
from tokenkeeper.transport import Transport


class AuthorizationServer:
    """One registration's authorization server, and which of the client's secrets works."""

    def __init__(self, registration: Registration, profile: Profile, transport: Transport, clock: Clock) -> None:
        self._registration = registration
        self._profile = profile
        self._transport = transport
        self._clock = clock
        self.secret_in_use = 0

    @property
    def credentials(self) -> str:
        """A digest of the client's credentials, to tell whether they were changed since they were refused."""
        parts = [self._registration.client_id, *(s.fingerprint for s in self._registration.client_secret)]
        if self._registration.private_key is not None:
            parts.append(self._registration.private_key.fingerprint)
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    def redeem(self, refresh_token: Secret, which: int, deadline: float, confirm: Callable[[], bool]) -> Redeemed:
        """Present a refresh token; *confirm* has the last word just before the request is written."""
        request = refresh_request(
            self._registration,
            self._profile,
            refresh_token,
            secret=self._secret(which),
            now=self._clock.epoch(),
            jti=secrets.token_hex(16),
        )
        return self._send(request, deadline, confirm)

    def redeem_code(self, pending: PendingAuthorization, code: Secret, which: int, deadline: float) -> Redeemed:
        """Present an authorization code."""
        request = code_request(
            self._registration,
            self._profile,
            code,
            verifier=pending.verifier,
            redirect_uri=pending.redirect_uri,
            secret=self._secret(which),
            now=self._clock.epoch(),
            jti=secrets.token_hex(16),
        )
        return self._send(request, deadline, lambda: True)

    def introspect(self, token: Secret, deadline: float) -> str | None:
        """Ask what became of a refresh token (RFC 7662); None if that cannot be had."""
        if self._profile.introspection_endpoint is None:
            return None
        request = introspection_request(
            self._registration,
            self._profile,
            token,
            "refresh_token",
            secret=self._secret(self.secret_in_use),
            now=self._clock.epoch(),
            jti=secrets.token_hex(16),
        )
        answer = self._transport.send(request, deadline=deadline, before_send=lambda: True)
        return read_introspection(answer) if isinstance(answer, Answer) else None

    def revoke(self, token: Secret, hint: str, which: int, deadline: float) -> Redeemed:
        """Ask the revocation endpoint to end a token (RFC 7009)."""
        request = revocation_request(
            self._registration,
            self._profile,
            token,
            hint,
            secret=self._secret(which),
            now=self._clock.epoch(),
            jti=secrets.token_hex(16),
        )
        return self._send(request, deadline, lambda: True)

    def account(self, token: Secret, deadline: float) -> str | None:
        """Ask the userinfo endpoint whose account it is: a digest over issuer and subject, or None.

        OpenID Connect Core section 5.3; the request may be a POST, as our transport makes it.
        """
        endpoint = check_endpoint(self._profile.userinfo_endpoint, "userinfo_endpoint", self._registration.name)
        headers = ((self._profile.header, f"{self._profile.scheme} {token.reveal()}"), ("Accept", "application/json"))
        answer = self._transport.send(
            TokenRequest(endpoint, headers, Secret("")), deadline=deadline, before_send=lambda: True
        )
        if not isinstance(answer, Answer) or answer.status != 200:
            return None
        try:
            claims = json.loads(answer.body or b"")
            subject = claims.get("sub")
        except (ValueError, AttributeError, RecursionError):
            return None
        if not isinstance(subject, str) or not subject or not self._profile.issuer:
            return None
        return account_digest(self._profile.issuer, subject)

    def _secret(self, which: int) -> Secret | None:
        return self._registration.client_secret[which] if self._registration.client_secret else None

    def _send(self, request: TokenRequest, deadline: float, confirm: Callable[[], bool]) -> Redeemed:
        sent_at = self._clock.monotonic()
        outcome = self._transport.send(request, deadline=deadline, before_send=confirm)
        return Redeemed(outcome, sent_at)
