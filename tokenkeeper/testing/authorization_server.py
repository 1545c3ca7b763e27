"""The authorization server's endpoints: authorization, token, introspection, revocation.

RFC 6749, 7636 (PKCE), 7662, 7009, 9207, and where LinkedIn differs. The lock is held around every call, by
:class:`~tokenkeeper.testing.FakeProvider`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

from tokenkeeper.model import scope_set
from tokenkeeper.testing import browser
from tokenkeeper.testing.client import ClientCheck
from tokenkeeper.testing.dialects import Dialect, LinkedIn, oauth_error
from tokenkeeper.testing.journal import Journal
from tokenkeeper.testing.ledger import AccessRecord, CodeRecord, Ledger, Pair, RefreshRecord
from tokenkeeper.testing.messages import Request, Response, json_response


@dataclass(kw_only=True, repr=False)
class AuthorizationServer:
    """The endpoints, over one ledger. The knobs are FakeProvider's."""

    ledger: Ledger
    client: ClientCheck
    dialect: Dialect
    journal: Journal
    clock: Callable[[], float]
    redirect_uris: Collection[str] | None
    pkce: str
    id_tokens: bool
    code_lifetime: float
    repeat_refresh_token: bool

    @property
    def linkedin(self) -> bool:
        """Whether it stands for LinkedIn."""
        return isinstance(self.dialect, LinkedIn)

    # --- authorization: sign in, consent, back to the client ---

    def authorize(self, request: Request) -> Response:
        """Show the sign-in page, then the consent page, then send the member back (RFC 6749 section 4.1)."""
        posted = parse_qs(request.body.decode("utf-8", "replace")) if request.method == "POST" else {}
        query = posted["request"][0] if "request" in posted else request.url.partition("?")[2]
        asked = dict(parse_qsl(query, keep_blank_values=True))
        redirect_uri = asked.get("redirect_uri", "")
        if asked.get("client_id") != self.client.client_id:
            return browser.error_page("The client is unknown here.")
        if not redirect_uri or (self.redirect_uris is not None and redirect_uri not in self.redirect_uris):
            return browser.error_page("The redirect URI is not registered for this client.")
        problem = self._authorization_problem(asked)
        if problem:
            return _send_back(request, asked, {"error": problem})
        scopes = scope_set(asked.get("scope"))
        member = posted.get("member", [""])[0].strip()
        step = posted.get("step", [""])[0]
        if not member or not step:
            return browser.sign_in_page(query, asked.get("login_hint", ""))
        if step == "sign-in":
            return browser.consent_page(query, member, scopes, self.client.client_id)
        if step != "allow":
            declined = "user_cancelled_authorize" if self.linkedin else "access_denied"
            return _send_back(request, asked, {"error": declined, "error_description": "The member declined"})
        ticked = scope_set(" ".join(posted.get("grant", [])))
        code = self.ledger.issue_code(
            member=member,
            scopes=tuple(scope for scope in scopes if scope in ticked),
            redirect_uri=redirect_uri,
            challenge=asked.get("code_challenge"),
            nonce=asked.get("nonce"),
            expires_at=self.clock() + self.code_lifetime,
        )
        return _send_back(request, asked, {"code": code.text})

    def _authorization_problem(self, asked: Mapping[str, str]) -> str | None:
        if asked.get("response_type") != "code":
            return "unsupported_response_type"
        if "code_challenge" not in asked:
            return "invalid_request" if self.pkce == "required" else None
        return None if asked.get("code_challenge_method") == "S256" else "invalid_request"

    # --- token ---

    def token(self, request: Request) -> Response:
        """Redeem a code or a refresh token (RFC 6749 sections 4.1.3 and 6)."""
        if request.method != "POST":
            return Response(405, (("Allow", "POST"),))
        fields = request.fields
        if not self.client.accepts(request, self.clock()):
            return self._refuse_client("token", request)
        match fields.get("grant_type"):
            case "refresh_token":
                return self._refresh(request, fields)
            case "authorization_code":
                return self._exchange(request, fields)
            case None:
                return oauth_error(400, "invalid_request", 'A required parameter "grant_type" is missing')
        return oauth_error(400, "unsupported_grant_type", "This grant type is not supported")

    def _refuse_client(self, surface: str, request: Request) -> Response:
        response = self.dialect.token("client")
        if request.header("authorization") is not None:
            response = replace(response, headers=(*response.headers, ("WWW-Authenticate", 'Basic realm="fake"')))
        return self.note_unread(surface, request, "client", response)

    def _refresh(self, request: Request, fields: Mapping[str, str]) -> Response:
        text = fields.get("refresh_token", "")
        if not text:
            return self.dialect.token("missing_refresh_token")
        if not self.ledger.refresh_tokens:
            return self.dialect.token("unauthorized_client")
        token = self.ledger.refresh.get(text)
        if token and token.redeemed_at is not None:
            self.journal.count("reuses")
        redemption = self.ledger.redeem(text, self.clock(), scope_set(fields.get("scope")) or None)
        if redemption.pair:
            response = _uncached(self.token_response(redemption.pair, request.origin, token))
        else:
            response = self.dialect.token(redemption.verdict)
        return self._note(response, "token", "refresh", text, redemption.verdict)

    def _exchange(self, request: Request, fields: Mapping[str, str]) -> Response:
        text = fields.get("code", "")
        code = self.ledger.codes.get(text)
        refusal = self._code_refusal(code, fields)
        if code is None or refusal:
            if code and code.grant and refusal == "reused":
                # RFC 6749 section 4.1.2: a code used twice ends what it brought.
                code.grant.revoked = True
            response = oauth_error(400, "invalid_grant", "The authorization code is invalid, expired or already used")
            if self.linkedin:
                response = oauth_error(400, "invalid_request", LinkedIn.BAD_CODE)
            return self._note(response, "token", "code", text, refusal or "invalid")
        pair = self.ledger.issue(code.member, code.scopes, self.clock())
        code.grant = pair.access.grant
        response = _uncached(self.token_response(pair, request.origin, nonce=code.nonce))
        return self._note(response, "token", "code", text, "ok")

    def _code_refusal(self, code: CodeRecord | None, fields: Mapping[str, str]) -> str | None:
        if code is None:
            return "invalid"
        if code.grant is not None:
            return "reused"
        if self.clock() >= code.expires_at:
            return "expired"
        if fields.get("redirect_uri") != code.redirect_uri:
            return "redirect_uri"
        return None if self._proves_possession(code, fields.get("code_verifier")) else "pkce"

    def _proves_possession(self, code: CodeRecord, verifier: str | None) -> bool:
        if self.pkce == "refused" or code.challenge is None:
            # A verifier without a challenge is a downgrade (RFC 9700 section 4.8.2); LinkedIn refuses either.
            return verifier is None and (code.challenge is None or self.pkce != "refused")
        digest = hashlib.sha256((verifier or "").encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == code.challenge

    def token_response(
        self, pair: Pair, issuer: str, redeemed: RefreshRecord | None = None, nonce: str | None = None
    ) -> dict[str, Any]:
        """RFC 6749 section 5.1, with the members that LinkedIn adds."""
        now = self.clock()
        access = pair.access
        content: dict[str, Any] = {
            "access_token": access.text,
            "token_type": "Bearer",
            "expires_in": round(access.expires_at - now),
            "scope": self.dialect.scope_separator.join(access.scopes),
        }
        refresh = pair.refresh or (redeemed if self.repeat_refresh_token else None)
        if refresh:
            content["refresh_token"] = refresh.text
            if refresh.expires_at is not None:
                content["refresh_token_expires_in"] = round(refresh.expires_at - now)
        if self.id_tokens and "openid" in access.scopes:
            claims = {"iss": issuer, "sub": access.grant.member, "aud": self.client.client_id, "iat": int(now)}
            claims |= {"exp": int(now) + 3600} | ({"nonce": nonce} if nonce else {})
            content["id_token"] = _hs256(claims, min(self.client.secrets, default=""))
        return content

    # --- introspection and revocation ---

    def introspect(self, request: Request) -> Response:
        """RFC 7662; LinkedIn also says *expired* and *revoked*, which nothing else of it does for a refresh token."""
        if not self.client.accepts(request, self.clock()):
            return self._refuse_client("introspection", request)
        text = request.fields.get("token", "")
        kind, verdict = self.ledger.inspect(text, self.clock())
        token = self.ledger.token(text)
        active = verdict in {"ok", "replayed"}
        content: dict[str, Any] = {"active": active}
        if token and self.linkedin and verdict != "invalid":
            content |= self._linkedin_introspection(token, "active" if active else verdict)
        elif token and active:
            content |= {
                "scope": " ".join(token.grant.scopes),
                "client_id": self.client.client_id,
                "sub": token.grant.member,
                "iat": int(token.issued_at),
            }
            content |= {"exp": int(token.expires_at)} if token.expires_at is not None else {}
        return self._note(json_response(200, content), "introspection", kind, text, verdict)

    def _linkedin_introspection(self, token: AccessRecord | RefreshRecord, status: str) -> dict[str, Any]:
        scopes = token.scopes if isinstance(token, AccessRecord) else token.grant.scopes
        return {
            "client_id": self.client.client_id,
            "authorized_at": int(token.grant.authorized_at),
            "created_at": int(token.issued_at),
            "status": status,
            "expires_at": int(token.expires_at) if token.expires_at is not None else None,
            "scope": ",".join(scopes),
            "auth_type": "3L",
        }

    def revoke(self, request: Request) -> Response:
        """RFC 7009: an unknown token is no error; a refresh token takes its family along."""
        if not self.client.accepts(request, self.clock()):
            return self._refuse_client("revocation", request)
        text = request.fields.get("token", "")
        token = self.ledger.token(text)
        if isinstance(token, RefreshRecord):
            token.grant.revoked = True
        elif token:
            token.revoked = True
        kind = "refresh" if isinstance(token, RefreshRecord) else "access"
        return self._note(Response(200), "revocation", kind, text, "ok" if token else "invalid")

    # --- the journal ---

    def _note(self, response: Response, surface: str, kind: str, text: str, verdict: str) -> Response:
        grant = self.ledger.grant_of(text)
        return self.journal.note(
            response, at=self.clock(), surface=surface, kind=kind, token=text, verdict=verdict, grant=grant
        )

    def note_unread(self, surface: str, request: Request, verdict: str, response: Response) -> Response:
        """Record a token that was shown in a request which nobody carried out."""
        shown = presented(surface, request)
        return response if shown is None else self._note(response, surface, *shown, verdict)


def presented(surface: str, request: Request) -> tuple[str, str] | None:
    """Kind and text of the token or code that a request shows."""
    if surface == "api":
        return "access", (request.header("authorization") or "").partition(" ")[2].strip()
    for name, kind in (("refresh_token", "refresh"), ("code", "code"), ("token", "access")):
        if surface != "authorization" and name in request.fields:
            return kind, request.fields[name]
    return None


def _send_back(request: Request, asked: Mapping[str, str], values: dict[str, str]) -> Response:
    """Redirect to the client, with its state and our issuer (RFC 9207)."""
    if "state" in asked:
        values["state"] = asked["state"]
    values["iss"] = request.origin
    target = asked["redirect_uri"]
    location = f"{target}{'&' if '?' in target else '?'}{urlencode(values)}"
    return Response(302, (("Location", location), ("Cache-Control", "no-store")))


def _uncached(content: dict[str, Any]) -> Response:
    return json_response(200, content, {"Cache-Control": "no-store"})


def _hs256(claims: Mapping[str, Any], secret: str) -> str:
    """An ID token signed with the client secret (OpenID Connect Core section 10.1)."""
    parts = [json.dumps({"alg": "HS256", "typ": "JWT"}), json.dumps(claims)]
    signing_input = b".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=") for part in parts)
    signature = hmac.digest(secret.encode(), signing_input, "sha256")
    return (signing_input + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()
