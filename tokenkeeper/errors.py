"""The errors, by whose turn it is.

::

    TokenKeeperError
    ├── MemberActionRequired            the member's turn; .prompt
    │   ├── ReauthenticationRequired      sign in and consent again
    │   │   ├── NotConnected                never connected, or forgotten
    │   │   ├── ScopeRequired               consent to more (.prompt.scopes)
    │   │   └── AuthorizationFailed         what came back from the provider does not connect the member
    │   └── AccountBlocked                signing in again does not help: act at the provider
    ├── ConfigurationError              the operator's turn; .fix
    │   ├── InvalidInput                  what the host passed cannot be used (also a ValueError)
    │   ├── KeyUnavailable                a sealed secret's key is not in the keyring
    │   ├── SecretTampered                a sealed secret does not open: it was changed or moved
    │   └── SchemaOutdated                the database's schema and this code do not fit
    └── TemporarilyUnavailable          nobody's turn, the weather; .retry_after
        └── RenewalInProgress             another worker is renewing; its outcome is not known yet

Each says what happened, whose turn it is and what to do. ``.response`` is the user's own object (a response, or the
exception of the user's HTTP library): it is left out of repr, str and pickle, because it may hold the token.
"""

from __future__ import annotations

from typing import Any, TypeVar

from tokenkeeper.model import Diagnosis, Prompt, Turn, Unshown

E = TypeVar("E", bound="TokenKeeperError")


class TokenKeeperError(Exception):
    """Base of all; ``turn`` says whose turn it is."""

    turn: Turn = Turn.NOBODY

    def __init__(
        self,
        message: str,
        *,
        registration: str | None = None,
        member: str | None = None,
        cause: str | None = None,
        diagnosis: Diagnosis | None = None,
        response: object = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.registration = registration
        self.member = member
        self.cause = None if cause is None else str(cause)
        self.diagnosis = diagnosis
        self._response = Unshown(response)
        vars(self).update(more)

    @property
    def response(self) -> Any:
        """The user's own response or exception, or None."""
        return self._response.value

    def __repr__(self) -> str:
        shown = {name: vars(self).get(name) for name in ("registration", "member", "cause")}
        return f"{type(self).__name__}({str(self)!r}, {', '.join(f'{k}={v!r}' for k, v in shown.items() if v is not None)})"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name != "_response"}
        return _rebuild, (type(self), str(self), state)


def _rebuild(kind: type[E], message: str, state: dict[str, Any]) -> E:
    error = kind(message)
    vars(error).update(state)
    return error


class MemberActionRequired(TokenKeeperError):
    """Only the member can help; ``prompt`` says with what."""

    turn = Turn.MEMBER
    prompt: Prompt | None = None


class ReauthenticationRequired(MemberActionRequired):
    """The member must sign in at the provider and consent again."""


class NotConnected(ReauthenticationRequired):
    """The store has no grant of this member: never connected, or forgotten."""


class ScopeRequired(ReauthenticationRequired):
    """The member must consent to more; ``prompt.scopes`` says to what."""


class AuthorizationFailed(ReauthenticationRequired):
    """What came back from the provider does not connect the member; a new attempt may."""


class AccountBlocked(MemberActionRequired):
    """The provider blocks the account: the member must act there; signing in again does not help."""


class ConfigurationError(TokenKeeperError):
    """The operator must change something; ``fix`` says what. No grant is touched."""

    turn = Turn.OPERATOR
    fix: str = ""


class InvalidInput(ConfigurationError, ValueError):
    """What the host passed cannot be used; nothing was stored or sent."""


class KeyUnavailable(ConfigurationError):
    """A sealed secret's key is missing from the keyring, or is another one under the same id."""


class SecretTampered(ConfigurationError):
    """A sealed secret does not open with its key: it was changed, or moved from another place."""


class SchemaOutdated(ConfigurationError):
    """The database's schema and this code do not fit; ``tokenkeeper db upgrade`` is the remedy, or newer code."""


class TemporarilyUnavailable(TokenKeeperError):
    """No usable token could be had just now; ``retry_after`` is in seconds, or None. No grant is touched."""

    retry_after: float | None = None


class RenewalInProgress(TemporarilyUnavailable):
    """Another caller or worker is renewing the grant; its outcome was not known within the caller's patience."""
