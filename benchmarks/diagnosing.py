"""7. Diagnosis of an ordinary 401, beside json.loads of its body: what a refusal costs before anything is sent."""

from __future__ import annotations

import json

from harness import Effort, Figure, alternate, calls

from tokenkeeper import Answer
from tokenkeeper.core.diagnosis import diagnose
from tokenkeeper.providers import load_profile

BODY = json.dumps(
    {
        "status": 401,
        "serviceErrorCode": 65602,
        "code": "EXPIRED_ACCESS_TOKEN",
        "message": "The token used in the request has expired",
    }
).encode()
HEADERS = (
    ("cache-control", "no-cache, no-store"),
    ("content-type", "application/json"),
    ("date", "Sun, 22 Nov 2026 12:00:00 GMT"),
    ("vary", "Accept-Encoding"),
    ("x-li-fabric", "prod-lva1"),
    ("x-li-proto", "http/1.1"),
    ("x-li-uuid", "AAYkF0f9pT0uR3Sw6m2xSg=="),
    ("content-length", str(len(BODY))),
)


def run(effort: Effort) -> list[Figure]:
    """Measure LinkedIn's rules and the generic ones."""
    answer = Answer(401, HEADERS, BODY)
    rules = {name: load_profile(name).rules for name in ("linkedin", "generic")}
    blocks = {
        "json.loads": calls(lambda: json.loads(BODY)),
        "linkedin": calls(lambda: diagnose(answer, rules["linkedin"])),
        "generic": calls(lambda: diagnose(answer, rules["generic"])),
    }
    times = alternate(blocks, rounds=effort.of(301, 101), number=50)
    return [
        Figure(
            f"diagnosis of a 401, {name} rules",
            times.median(name),
            "µs",
            note=f"{times.ratio(name, 'json.loads'):.0f} x json.loads of its body",
        )
        for name in rules
    ]
