"""What the flows know of a provider: its facts, and the rules that read its answers.

A profile is data (``tokenkeeper/providers/*.toml``, or a host's own file) with the host's :class:`~tokenkeeper.Provider`
laid over it. Nothing here decides anything but the figures of a renewal, which follow from the rotation (DESIGN
section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from tokenkeeper.core.diagnosis import Rules
from tokenkeeper.model import Rotation

MINIMUM_GRACE = 15.0
"""A shorter grace (seconds) cannot be used: the rotation is then as good as strict."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a renewal may take: a claim's lease and a token request's absolute deadline, in seconds."""

    lease: float
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """What stands in an endpoint as ``{tenant}`` and the like: what to put there, and what is put there otherwise."""

    about: str
    default: str | None = None
    one_of: tuple[str, ...] = ()
    """The values that it may have, if that is known; where a host ends in it, it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A provider's facts and rules. Lifetimes are in seconds; None where nobody has said."""

    name: str
    title: str = ""
    source: str = ""
    checked: date | None = None
    """When the facts were last compared with their source; None: nobody has done so."""
    token_endpoint: str | None = None
    authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    introspection_endpoint: str | None = None
    userinfo_endpoint: str | None = None
    issuer: str | None = None
    client_authentication: str = "client_secret_basic"
    scope_separator: str = " "
    pkce: str = "S256"
    header: str = "Authorization"
    scheme: str = "Bearer"
    token_request: str = "form"
    """How the token endpoint wants its requests: as a ``form`` (RFC 6749), or as ``json``."""
    client_id_parameter: str = "client_id"
    token_answer: str = ""
    """The path to the JSON object that holds the tokens, where they do not stand at the top."""
    rotation: Rotation = Rotation.UNKNOWN
    grace_seconds: float | None = None
    rotation_source: str = ""
    rotation_checked: date | None = None
    revocation: str = "access_token"
    """What *revoked* from the API means: ``grant`` (all is over) or ``access_token`` (try the refresh token once)."""
    lease_seconds: float | None = None
    deadline_seconds: float | None = None
    errors_in_200: bool = False
    """Whether the provider hides errors in 200 answers, so that their JSON bodies must be looked at."""
    notes: tuple[str, ...] = ()
    """What else a developer must know of this provider."""
    lifetimes: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    authorization_parameters: Mapping[str, str] = field(default_factory=dict)
    token_parameters: Mapping[str, str] = field(default_factory=dict)
    """Sent with each request of their kind, unless the registration says otherwise."""
    rules: Rules = field(default_factory=Rules, repr=False)

    @property
    def effective_rotation(self) -> Rotation:
        """The rotation as a renewal must treat it: a grace too short to be used counts as strict."""
        if self.rotation is Rotation.GRACE and (self.grace_seconds or 0) < MINIMUM_GRACE:
            return Rotation.STRICT
        return self.rotation

    @property
    def timing(self) -> Timing:
        """Lease and deadline, from the rotation unless the host's Provider says otherwise (DESIGN section 4)."""
        match self.effective_rotation:
            case Rotation.NONE:
                lease, deadline = 40.0, 30.0
            case Rotation.GRACE:
                lease = min(max((self.grace_seconds or 0) / 2.5, 6.0), 40.0)
                deadline = lease - 2
            case Rotation.STRICT:
                lease, deadline = 90.0, 60.0
            case _:
                lease, deadline = 15.0, 12.0
        lease = self.lease_seconds or lease
        return Timing(lease, self.deadline_seconds or min(deadline, lease * 0.8))
