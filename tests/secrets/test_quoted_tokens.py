"""Tokens that a provider quotes and that nobody here knows: they are masked by their looks, wherever an answer is shown.

(The tokens that were sent are known, and masked whatever they look like: test_canaries.py.) All are made up.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from stage import Stage

from tokenkeeper import AccessToken, diagnose
from tokenkeeper.cli.app import cli
from tokenkeeper.testing.messages import Response

TOKENS = {
    "a JWT": "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIyMkI0In0.c2lnbmF0dXJl",
    "QuickBooks": "eyJlbmMiOiJBMTI4Q0JDLUhTMjU2IiwiYWxnIjoiZGlyIn0..xYzAbCd-_w12.Qw_e-rT",
    "Google": "ya29.a0AfH6SMBx-made_up_0123456789abcdef",
    "GitHub": "gho_16C7e42F292c6912E7710c838347Ae178B4a",
    "Slack": "xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx",
    "Meta": "EAABsbCS1iHgBAKZCZCmadeupZA0123456789ZBqZD",
    "Shopify": "shpat_0123456789abcdef0123456789abcdef",
    "Snowflake": "ver:1-hint:1234567890-ETMsDgAAAXI0IS9NABRBRVMvQ0JDL1BLQ1M1UGFkZGluZwEA",
    "Zoho": "1000.0123456789abcdef0123456789abcdef.fedcba9876543210fedcba9876543210",
    "Salesforce": "00Dx0000000BV7z!AR8AQP0jITN80ESEsj5EbaZTFG0RNBaT1cyWk7TrqoDjoNIWQ2ME_sTZzBjfmOE6zMHq6y8PIW4eWze9JksNEkWUl",
    "Microsoft": "EwBAA8l6BAAUO9chh8cJscQLmU+LSWpbnr0vmwwAAQ==",
    "HubSpot": "CJSP5qf1KhICAQEYs-gDIIGOBii1hQIyGQAf3xBKmlwHjX7OIpuIFEavB2-qYAGQsF4",
    "Stripe": "sk_test_made0up1made2up3made4up5",
    "Dropbox": "sl.ABCDEFG0123456789-hijk_lmnop",
}
SAID = [
    "Token expired: {}",  # QuickBooks
    "message=AuthenticationFailed; errorCode=003200; statusCode=401; Token expired: {}",
    "Access token expired: {}",  # Fitbit
    "Access token invalid: {}. Visit https://dev.fitbit.com/docs/oauth2 for more information.",
    "Invalid OAuth access token. [{}]",  # Snowflake
    "Malformed access token {}",  # Meta
    "Invalid refresh token (expired): {}",  # Spring
    "The token '{}' is not valid",
    "token {} has been revoked",
    "Bearer {} is not known",
    "token={}; it has expired",
]
SHORT = {
    "a UUID, as Spring's": "8a5c5f6e-9d0b-4f8a-9a0b-1c2d3e4f5a6b",
    "a short one": "a1B2c3D4e5F6",
    "one in pieces": "abcd-1234-efgh-5678",
}
"""Tokens that look like an id: they are masked where the sentence calls them a token."""
SAID_OF_SHORT = [said for said in SAID if not said.startswith("Invalid OAuth")]
CASES = [
    *((token, said.format(token)) for token in TOKENS.values() for said in SAID),
    *((token, said.format(token)) for token in SHORT.values() for said in SAID_OF_SHORT),
]


def answers(said: str) -> Iterator[tuple[dict[str, str], str]]:
    """The sentence where providers put theirs: in the challenge, in JSON of several shapes, as a code, as plain text."""
    quoted = said.replace('"', "'")
    yield {"www-authenticate": f'Bearer realm="x", error="invalid_token", error_description="{quoted}"'}, ""
    yield {"www-authenticate": f'Bearer error="{quoted}", scope="{quoted}"'}, ""
    yield {}, json.dumps({"message": said})
    yield {}, json.dumps({"errors": [{"errorType": "expired_token", "message": said}], "success": False})
    yield {}, json.dumps({"Fault": {"Error": [{"Message": said, "Detail": said, "code": "3200"}]}})
    yield {}, json.dumps({"error": "invalid_grant", "error_description": said})
    yield {}, json.dumps({"error": said, "code": said})
    yield {}, json.dumps({"error": {"message": said, "type": said}})
    yield {}, said


def shows(text: str, token: str) -> bool:
    """Whether a text shows a token, or twelve characters of it in a row."""
    return any(token[start : start + 12] in text for start in range(max(len(token) - 11, 1)))


@pytest.mark.parametrize("surface", ["api", "token"])
def test_a_diagnosis_quotes_no_token(surface: str) -> None:
    """No field of a diagnosis, nor its repr, shows a token that stands in the answer."""
    shown = []
    for token, said in CASES:
        for headers, body in answers(said):
            for status in (400, 401, 403):
                found = diagnose(status, headers, body, surface=surface)
                if shows(f"{found!r} {found} {json.dumps(dataclasses.asdict(found))}", token):
                    shown.append((said, headers, body, found))
    assert shown == []


@pytest.mark.parametrize("options", [["--provider", "quickbooks"], ["--provider", "fitbit"], []])
def test_explain_quotes_no_token(options: list[str]) -> None:
    """What ``explain`` prints, in words or as JSON, shows no token: not in its near-misses nor in its error code either."""
    run = CliRunner()
    for number, (token, said) in enumerate(CASES):
        headers, body = [*answers(said)][number % 9]
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        surface = ("api", "token")[number // 9 % 2]
        for more in ([], ["--json"]):
            words = ["explain", *options, "--surface", surface, *more]
            done = run.invoke(cli, words, input=f"HTTP/1.1 401 Unauthorized\r\n{head}\r\n{body}")
            assert done.exit_code == 0, done.output
            assert not shows(done.output, token), (said, done.output)


def guarded(world: Stage) -> Callable[[AccessToken, str, str], Any]:
    """A function that calls the API with the standard library."""
    import urllib.request

    def plain(token: AccessToken, url: str, member: str) -> Any:
        return urllib.request.urlopen(urllib.request.Request(url, headers=token.headers), timeout=9)

    async def awaited(token: AccessToken, url: str, member: str) -> Any:
        return plain(token, url, member)

    return plain if world.twin == "sync" else awaited


def test_events_errors_and_logs_quote_no_token(stage: Callable[..., Stage]) -> None:
    """A provider quotes tokens that were never sent, from the API and the token endpoint: no event, error or log has one."""
    world = stage()
    sentences = [
        SAID[0].format(TOKENS["QuickBooks"]),
        SAID[2].format(TOKENS["a JWT"]),
        SAID[4].format(TOKENS["Snowflake"]),
    ]
    for name in ("QuickBooks", "a JWT", "Snowflake"):
        world.lookout.plant(name, TOKENS[name])
    function = world.keeper.guard("acme")(guarded(world))
    for number, said in enumerate(sentences):
        for status, path in (
            (401, "/api/"),
            (403, "/api/"),
            (500, "/api/"),
            (400, "/token"),
            (401, "/token"),
            (503, "/token"),
        ):
            member = f"member-{number}-{status}-{path.strip('/')}"
            world.connect(member)
            body = json.dumps(
                {"error": "invalid_grant" if status == 400 else "x", "error_description": said, "message": said}
            )
            refusal = Response(status, (("Content-Type", "application/json"),), body.encode())
            world.provider.quotes[path] = lambda shown, refusal=refusal: refusal
            world.tries(lambda member=member: function(f"{world.base}/api/me", member), f"a call of {member}")
            world.tries(lambda member=member: world.keeper.renew("acme", member), f"a renewal of {member}")
            world.provider.quotes.clear()
    assert len(world.events) > 3
    assert world.leaks() == []
