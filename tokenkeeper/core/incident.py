"""The incident record: what a provider's support needs to find a failed call, and nothing secret.

LinkedIn asks for method, URL, request and response headers (``x-li-uuid``, ``x-li-fabric``, ``x-li-request-id``), body
and client id (learn.microsoft.com/en-us/linkedin/shared/api-guide/concepts/error-handling).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tokenkeeper.core.redaction import redact_body, redact_headers, redact_url, safe_text
from tokenkeeper.model import Answer, Secret


def incident_record(
    answer: Answer,
    *,
    method: str | None = None,
    url: str | None = None,
    request_headers: Iterable[tuple[str, str]] = (),
    client_id: str | None = None,
    at: datetime | None = None,
    secrets: Iterable[str | Secret] = (),
) -> dict[str, Any]:
    """Return the record of a failed call as JSON-able values, redacted and capped; None where a fact is not known.

    Headers are lists of ``[name, value]``, so that a field that came twice is there twice. *at* is in UTC.
    """
    secrets = tuple(secrets)
    return {
        "at": at.isoformat() if at is not None else None,
        "client_id": safe_text(client_id, 256, secrets) if client_id is not None else None,
        "method": safe_text(method, 32, secrets) if method is not None else None,
        "url": redact_url(url, secrets) if url is not None else None,
        "request_headers": [list(pair) for pair in redact_headers(request_headers, secrets)],
        "status": answer.status,
        "response_headers": [list(pair) for pair in redact_headers(answer.headers, secrets)],
        "body": redact_body(answer.body, secrets),
    }
