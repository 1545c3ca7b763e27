"""The API behind the authorization server: any path, for anybody with a valid access token (RFC 6750)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenkeeper.testing.dialects import Dialect
from tokenkeeper.testing.journal import Journal
from tokenkeeper.testing.ledger import AccessRecord, Ledger
from tokenkeeper.testing.messages import Request, Response, json_response


@dataclass(kw_only=True, repr=False)
class ResourceServer:
    """Looks at the Authorization header and answers, or refuses in the provider's own words."""

    ledger: Ledger
    dialect: Dialect
    journal: Journal
    clock: Callable[[], float]
    required_scopes: dict[str, str]

    def answer(self, request: Request, number: int) -> Response:
        """Answer one call; *number* goes into LinkedIn's request id."""
        text, verdict = self._judge(request)
        token = self.ledger.access.get(text)
        if verdict == "ok" and token:
            self.ledger.use(token)
            response = json_response(200, _resource(request, token))
        else:
            response = self.dialect.api(
                verdict,
                path=request.path,
                scope=self.required_scopes.get(request.path, ""),
                now=self.clock(),
                number=number,
            )
        grant = token.grant if token else None
        return self.journal.note(
            response, at=self.clock(), surface="api", kind="access", token=text, verdict=verdict, grant=grant
        )

    def _judge(self, request: Request) -> tuple[str, str]:
        scheme, _, text = (request.header("authorization") or "").strip().partition(" ")
        text = text.strip()
        if not scheme or (scheme.lower() == "bearer" and not text):
            return text, "empty"
        if scheme.lower() != "bearer":
            return text, "bad_scheme"
        token = self.ledger.access.get(text)
        verdict = self.ledger.access_verdict(token, self.clock())
        wanted = set(self.required_scopes.get(request.path, "").split())
        if verdict == "ok" and token and not wanted <= set(token.scopes):
            verdict = "scope"
        return text, verdict


def _resource(request: Request, token: AccessRecord) -> dict[str, Any]:
    member = token.grant.member
    if request.path.endswith("/userinfo"):
        return {"sub": member, "name": member.title(), "email": f"{member}@example.com"}
    return {"path": request.path, "member": member, "scopes": list(token.scopes)}
