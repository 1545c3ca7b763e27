"""How a provider words its answers: a generic one by the RFCs, and LinkedIn in three generations of bodies.

A dialect turns a verdict into a :class:`Response`. The texts of LinkedIn are those of its documentation
(learn.microsoft.com/en-us/linkedin/shared/api-guide/concepts/error-handling) and of answers that users have quoted;
what nobody has quoted is put into the same wrapper and marked *reconstructed*.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Protocol

from tokenkeeper.testing.messages import Pairs, Response, json_response

HTML_502 = (
    b"<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>"
)

API_ANSWERS = (
    "expired", "revoked", "invalid", "empty", "bad_scheme", "scope", "step_up", "account_blocked", "rate_limited",
    "infrastructure_protection", "bad_request", "not_found", "method_not_allowed", "length_required", "version_missing",
    "version_retired", "server_error", "downstream_token_check", "gateway_timeout", "bad_gateway",
)  # fmt: skip
"""What ``FakeProvider.script`` can make the API say; LinkedIn knows no ``step_up``."""

TOKEN_ANSWERS = (
    "expired", "revoked", "invalid", "reused", "interaction_required", "client", "missing_refresh_token", "scope",
    "unauthorized_client", "temporarily_unavailable", "rate_limited", "server_error", "gateway_timeout", "bad_gateway",
    "garbage", "no_token", "array",
)  # fmt: skip
"""What ``FakeProvider.script`` can make the token endpoint say; the last three come with a status of 200."""


class Dialect(Protocol):
    """A provider's way with words."""

    scope_separator: str

    def api(self, verdict: str, *, path: str, scope: str = "", now: float = 0.0, number: int = 0) -> Response:
        """The API's answer to a call whose token got this verdict."""
        ...

    def token(self, verdict: str) -> Response:
        """The token endpoint's refusal."""
        ...

    def headers(self, number: int) -> Pairs:
        """Headers that every answer carries; *number* counts the requests."""
        ...


def oauth_error(status: int, error: str, description: str, headers: Mapping[str, str] | None = None) -> Response:
    """A token endpoint's refusal (RFC 6749 section 5.2)."""
    return json_response(status, {"error": error, "error_description": description}, headers)


def _weather(verdict: str) -> Response | None:
    match verdict:
        case "bad_gateway":
            return Response(502, (("Content-Type", "text/html"),), HTML_502)
        case "garbage":
            return Response(200, (("Content-Type", "text/html"),), b"<html><body>Scheduled maintenance</body></html>")
        case "no_token":
            return json_response(200, {"token_type": "Bearer", "expires_in": 3600})
        case "array":
            return json_response(200, ["ok"])
    return None


class Generic:
    """Answers by RFC 6750 section 3 and RFC 6749 section 5.2. ``opaque``: one sentence for every dead token."""

    scope_separator = " "

    def __init__(self, *, opaque: bool = False) -> None:
        self.opaque = opaque

    def headers(self, number: int) -> Pairs:  # noqa: ARG002
        """None."""
        return ()

    def api(self, verdict: str, *, path: str, scope: str = "", now: float = 0.0, number: int = 0) -> Response:  # noqa: ARG002
        """A challenge, and the same in JSON."""
        weather = _weather(verdict)
        if weather:
            return weather
        if self.opaque and verdict in {"expired", "revoked", "invalid"}:
            return self._challenge(401, "invalid_token", "invalid token provided", "")
        if verdict in _BEARER:
            status, error, description = _BEARER[verdict]
            more = {"scope": f', scope="{scope}"' if scope else "", "step_up": ', acr_values="mfa", max_age="300"'}
            return self._challenge(status, error, description, more.get(verdict, ""))
        if verdict == "empty":
            body = {"error": "unauthorized", "error_description": "no access token provided"}
            return json_response(401, body, {"WWW-Authenticate": 'Bearer realm="fake"'})
        if verdict == "account_blocked":
            return oauth_error(403, "access_denied", "Your account has been locked")
        status, error = _PLAIN[verdict]
        return json_response(status, {"error": error}, {"Retry-After": "60"} if status == 429 else None)

    def token(self, verdict: str) -> Response:
        """An error of RFC 6749 section 5.2."""
        weather = _weather(verdict)
        if weather:
            return weather
        if self.opaque and verdict in _DEAD_GRANT:
            return oauth_error(400, "invalid_grant", "grant request is invalid")
        if verdict in _DEAD_GRANT:
            return oauth_error(400, "invalid_grant", _DEAD_GRANT[verdict])
        return _token_refusal(verdict)

    @staticmethod
    def _challenge(status: int, error: str, description: str, more: str) -> Response:
        text = f'Bearer realm="fake", error="{error}", error_description="{description}"{more}'
        return oauth_error(status, error, description, {"WWW-Authenticate": text})


_BEARER = {
    "expired": (401, "invalid_token", "The access token expired"),
    "revoked": (401, "invalid_token", "The access token was revoked"),
    "invalid": (401, "invalid_token", "The access token is invalid"),
    "bad_scheme": (400, "invalid_request", "authorization header scheme must be `Bearer`"),
    "scope": (403, "insufficient_scope", "access token missing requested scope"),
    "step_up": (401, "insufficient_user_authentication", "A different authentication level is required"),
}

_PLAIN = {
    "rate_limited": (429, "rate_limited"),
    "infrastructure_protection": (429, "rate_limited"),
    "bad_request": (400, "bad_request"),
    "not_found": (404, "not_found"),
    "method_not_allowed": (405, "method_not_allowed"),
    "length_required": (411, "length_required"),
    "version_missing": (400, "version_missing"),
    "version_retired": (426, "version_retired"),
    "server_error": (500, "server_error"),
    "downstream_token_check": (500, "server_error"),
    "gateway_timeout": (504, "gateway_timeout"),
}

_DEAD_GRANT = {
    "expired": "The refresh token has expired",
    "revoked": "The grant was revoked",
    "reused": "The refresh token has already been used",
    "invalid": "The refresh token is invalid",
}


def _token_refusal(verdict: str) -> Response:
    match verdict:
        case "client":
            return oauth_error(401, "invalid_client", "Client authentication failed")
        case "unauthorized_client":
            return oauth_error(400, "unauthorized_client", "The client may not use this grant type")
        case "missing_refresh_token":
            return oauth_error(400, "invalid_request", 'A required parameter "refresh_token" is missing')
        case "scope":
            return oauth_error(400, "invalid_scope", "refresh token missing requested scope")
        case "interaction_required":
            return oauth_error(400, "interaction_required", "The member must sign in again, with a second factor")
        case "temporarily_unavailable":
            return oauth_error(503, "temporarily_unavailable", "Try again later", {"Retry-After": "5"})
        case "rate_limited":
            return json_response(429, {"error": "rate_limited"}, {"Retry-After": "60"})
        case "gateway_timeout":
            return json_response(504, {"error": "gateway_timeout"})
        case "server_error":
            return oauth_error(500, "server_error", "the authorization server encountered an unexpected condition")
    raise ValueError(f"the token endpoint has no answer called {verdict!r}")


class LinkedIn:
    """LinkedIn's answers. ``generation``: ``versioned`` (``code``), ``service`` (``serviceErrorCode``) or ``v1``."""

    scope_separator = ","

    ONE_SENTENCE = "The provided authorization grant or refresh token is invalid, expired or revoked"
    BAD_CODE = (
        "Unable to retrieve access token: appid/redirect uri/code verifier does not match authorization code. "
        "Or authorization code expired. Or external member binding exists"
    )

    def __init__(self, *, generation: str = "versioned", opaque: bool = False) -> None:
        if generation not in {"versioned", "service", "v1"}:
            raise ValueError(f"bodies is 'versioned', 'service' or 'v1', not {generation!r}")
        self.generation = generation
        self.opaque = opaque

    def headers(self, number: int) -> Pairs:
        """The three that LinkedIn's support asks for."""
        uuid = base64.b64encode(f"fake-answer-{number:04}".encode()).decode()
        return (
            ("x-li-uuid", uuid),
            ("x-li-fabric", "prod-fake1"),
            ("x-li-request-id", f"FAKE{number:06}"),
        )

    def api(self, verdict: str, *, path: str, scope: str = "", now: float = 0.0, number: int = 0) -> Response:  # noqa: ARG002
        """LinkedIn's JSON; it sends no challenge."""
        weather = _weather(verdict)
        if weather:
            return weather
        if self.opaque and verdict in {"expired", "revoked"}:
            verdict = "invalid"
        if verdict not in _LINKEDIN:
            raise ValueError(f"LinkedIn's API has no answer called {verdict!r}")
        status, number_code, code, message, old_message = _LINKEDIN[verdict]
        resource = path.strip("/").rpartition("/")[2] or "me"
        message = message.format(resource=resource)
        if verdict in _GATEWAY:
            # Not a service but the gateway answers: the same three members in every generation.
            body: dict[str, object] = {"status": status, "code": code, "message": message}
            return json_response(status, body, {"X-RestLi-Gateway-Error": "true"})
        match self.generation:
            case "v1":
                body = {
                    "errorCode": 0,
                    "message": old_message or message,
                    "requestId": f"FAKE{number:06}",
                    "status": status,
                    "timestamp": int(now * 1000),
                }
            case "service":
                body = {"serviceErrorCode": number_code, "message": message, "status": status}
            case _:
                body = {"status": status, "serviceErrorCode": number_code, "code": code, "message": message}
        return json_response(status, body)

    def token(self, verdict: str) -> Response:
        """One sentence for every dead refresh token: only introspection tells them apart."""
        weather = _weather(verdict)
        if weather:
            return weather
        if verdict in _DEAD_GRANT:
            return oauth_error(400, "invalid_grant", self.ONE_SENTENCE)
        if verdict == "unauthorized_client":
            return oauth_error(400, "access_denied", "Refresh token not allowed")
        return _token_refusal(verdict)


_GATEWAY = {"version_missing", "version_retired", "infrastructure_protection", "gateway_timeout"}

_LINKEDIN: dict[str, tuple[int, int, str, str, str]] = {
    # verdict: status, serviceErrorCode, code, message, message of the v1 API where it differs; (r): reconstructed
    "expired": (401, 65602, "EXPIRED_ACCESS_TOKEN", "The token used in the request has expired",
                "The token used in the request is expired."),
    "revoked": (401, 65601, "REVOKED_ACCESS_TOKEN", "The token used in the request has been revoked by the user", ""),
    "invalid": (401, 65600, "INVALID_ACCESS_TOKEN", "Invalid access token", "Unable to verify access token"),
    "empty": (401, 65604, "EMPTY_ACCESS_TOKEN", "Empty oauth2 access token", ""),
    "bad_scheme": (401, 401, "UNAUTHORIZED", "Unknown authentication schema", ""),  # (r): only the text is known
    "account_blocked": (401, 65608, "RESTRICTED_MEMBER", "Member is restricted", ""),
    "scope": (403, 100, "ACCESS_DENIED", "Not enough permissions to access: {resource}.GET.NO_VERSION", ""),
    "rate_limited": (429, 101, "TOO_MANY_REQUESTS",
                     "Resource level throttle APPLICATION_AND_MEMBER DAY limit for calls to this resource is reached.",
                     "Throttle limit for calls to this resource is reached."),
    "infrastructure_protection": (429, 0, "TOO_MANY_REQUESTS", "Too many requests", ""),  # (r)
    "bad_request": (400, 100, "MISSING_FIELD", "MISSING_FIELD", ""),
    "not_found": (404, 0, "RESOURCE_NOT_FOUND", "No virtual resource found", ""),
    "method_not_allowed": (405, 0, "METHOD_NOT_ALLOWED", "Method not allowed", ""),  # (r)
    "length_required": (411, 0, "LENGTH_REQUIRED", "Length Required", ""),  # (r)
    "version_missing": (400, 0, "VERSION_MISSING",
                        "A version must be present. Please specify a version by adding the LinkedIn-Version header.",
                        ""),
    "version_retired": (426, 0, "NONEXISTENT_VERSION", "Requested version 20230101 is not active", ""),
    "server_error": (500, 0, "INTERNAL_SERVER_ERROR", "Internal Server Error", "Internal API server error"),
    "downstream_token_check": (500, 0, "INTERNAL_SERVER_ERROR", "Unable to verify access token", ""),  # (r)
    "gateway_timeout": (504, 0, "GATEWAY_TIMEOUT", "Gateway Timeout", ""),  # (r)
}  # fmt: skip
