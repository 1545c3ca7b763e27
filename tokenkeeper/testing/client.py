"""Does the client prove who it is? (RFC 6749 section 2.3, RFC 7523 section 2.2)"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from tokenkeeper.testing.messages import Request

METHODS = frozenset({"client_secret_basic", "client_secret_post", "none", "private_key_jwt"})
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass
class ClientCheck:
    """The one client of the fake provider, and the methods that it may use."""

    client_id: str
    secrets: set[str] = field(repr=False)
    methods: Collection[str]
    public_key: str | dict[str, Any] | None = field(default=None, repr=False)
    seen: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        unknown = set(self.methods) - METHODS
        if unknown:
            raise ValueError(
                f"unknown client authentication {', '.join(sorted(unknown))}; known: {', '.join(sorted(METHODS))}"
            )

    def accepts(self, request: Request, now: float) -> bool:
        """Whether the request comes from the client, by exactly one accepted method."""
        fields = request.fields
        authorization = request.header("authorization")
        used: list[str] = []
        if authorization is not None:
            used.append("client_secret_basic")
        if "client_secret" in fields:
            used.append("client_secret_post")
        if "client_assertion" in fields:
            used.append("private_key_jwt")
        if len(used) > 1 or (used or ["none"])[0] not in self.methods:
            return False
        match used:
            case ["client_secret_basic"]:
                return self._basic(authorization or "")
            case ["client_secret_post"]:
                return fields.get("client_id") == self.client_id and fields["client_secret"] in self.secrets
            case ["private_key_jwt"]:
                return fields.get("client_assertion_type") == ASSERTION and self._assertion(request, now)
        return fields.get("client_id") == self.client_id

    def _basic(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            name, colon, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        # RFC 6749 section 2.3.1: both are form-encoded first, which many clients forget.
        known = unquote_plus(name) == self.client_id and unquote_plus(secret) in self.secrets
        return bool(colon) and scheme.lower() == "basic" and known

    def _assertion(self, request: Request, now: float) -> bool:
        from joserfc import jwt  # noqa: PLC0415 - comes with Authlib; only this method needs it
        from joserfc.errors import JoseError  # noqa: PLC0415
        from joserfc.jwk import import_key  # noqa: PLC0415

        if self.public_key is None:
            return False
        kind = None if isinstance(self.public_key, dict) else _key_type(self.public_key)
        key = import_key(self.public_key, kind) if kind else import_key(self.public_key)  # type: ignore[call-overload]
        try:
            claims = jwt.decode(
                request.fields["client_assertion"], key, algorithms=["RS256", "PS256", "ES256", "Ed25519", "EdDSA"]
            ).claims
        except (JoseError, ValueError):
            return False
        audience = claims.get("aud")
        audiences = [audience] if isinstance(audience, str) else list(audience or ())
        here = {request.origin, request.url.partition("?")[0]}
        fresh = claims.get("jti") is not None and claims["jti"] not in self.seen
        self.seen.add(str(claims.get("jti")))
        issued_by_client = claims.get("iss") == claims.get("sub") == self.client_id
        return issued_by_client and fresh and bool(here & set(audiences)) and float(claims.get("exp", 0)) > now


def _key_type(pem: str) -> str:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    key = load_pem_public_key(pem.encode())
    if isinstance(key, RSAPublicKey):
        return "RSA"
    return "EC" if isinstance(key, EllipticCurvePublicKey) else "OKP"
