"""OAuth token lifecycle manager: reads what a 401 says, renews once for everyone, loses no grant.

Everything public is importable from here, and loaded when it is first named: importing the package loads no SQLAlchemy
and no HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "tokenkeeper.model": (
        "AccessToken", "Answer", "AuthorizationRequest", "Connection", "Diagnosis", "Grant", "GrantStatus", "Prompt",
        "Provider", "Registration", "Remedy", "Revocation", "Rotation", "Secret", "Surface", "Turn", "Verdict",
    ),
    "tokenkeeper.errors": (
        "AccountBlocked", "AuthorizationFailed", "ConfigurationError", "InvalidInput", "KeyUnavailable",
        "MemberActionRequired", "NotConnected", "ReauthenticationRequired", "RenewalInProgress", "SchemaOutdated",
        "ScopeRequired", "SecretTampered", "TemporarilyUnavailable", "TokenKeeperError",
    ),
    "tokenkeeper.events": (
        "ConfigurationProblem", "Event", "GrantConnected", "GrantEvent", "GrantExpiring", "GrantForgotten", "GrantRevoked",
        "ProviderTrouble", "ReauthenticationNeeded", "TamperingDetected", "TokensRenewed",
    ),
    "tokenkeeper.crypto": ("Keyring",),
    "tokenkeeper.answers": ("register_reader",),
    "tokenkeeper.providers": ("diagnose",),
    "tokenkeeper.keeper": ("AsyncTokenKeeper", "TokenKeeper"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AccessToken",
    "AccountBlocked",
    "Answer",
    "AsyncTokenKeeper",
    "AuthorizationFailed",
    "AuthorizationRequest",
    "ConfigurationError",
    "ConfigurationProblem",
    "Connection",
    "Diagnosis",
    "Event",
    "Grant",
    "GrantConnected",
    "GrantEvent",
    "GrantExpiring",
    "GrantForgotten",
    "GrantRevoked",
    "GrantStatus",
    "InvalidInput",
    "KeyUnavailable",
    "Keyring",
    "MemberActionRequired",
    "NotConnected",
    "Prompt",
    "Provider",
    "ProviderTrouble",
    "ReauthenticationNeeded",
    "ReauthenticationRequired",
    "Registration",
    "Remedy",
    "RenewalInProgress",
    "Revocation",
    "Rotation",
    "SchemaOutdated",
    "ScopeRequired",
    "Secret",
    "SecretTampered",
    "Surface",
    "TamperingDetected",
    "TemporarilyUnavailable",
    "TokenKeeper",
    "TokenKeeperError",
    "TokensRenewed",
    "Turn",
    "Verdict",
    "__version__",
    "diagnose",
    "register_reader",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("tokenkeeper")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from tokenkeeper.answers import register_reader
    from tokenkeeper.crypto import Keyring
    from tokenkeeper.errors import (
        AccountBlocked,
        AuthorizationFailed,
        ConfigurationError,
        InvalidInput,
        KeyUnavailable,
        MemberActionRequired,
        NotConnected,
        ReauthenticationRequired,
        RenewalInProgress,
        SchemaOutdated,
        ScopeRequired,
        SecretTampered,
        TemporarilyUnavailable,
        TokenKeeperError,
    )
    from tokenkeeper.events import (
        ConfigurationProblem,
        Event,
        GrantConnected,
        GrantEvent,
        GrantExpiring,
        GrantForgotten,
        GrantRevoked,
        ProviderTrouble,
        ReauthenticationNeeded,
        TamperingDetected,
        TokensRenewed,
    )
    from tokenkeeper.keeper import AsyncTokenKeeper, TokenKeeper
    from tokenkeeper.model import (
        AccessToken,
        Answer,
        AuthorizationRequest,
        Connection,
        Diagnosis,
        Grant,
        GrantStatus,
        Prompt,
        Provider,
        Registration,
        Remedy,
        Revocation,
        Rotation,
        Secret,
        Surface,
        Turn,
        Verdict,
    )
    from tokenkeeper.providers import diagnose

    __version__: str
