"""``explain``: what an answer means, by which rule, and which rules nearly decided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tokenkeeper import providers
from tokenkeeper.model import Verdict

Run = Callable[..., Result]
EXPIRED = (
    b"HTTP/2 401 \r\ncontent-type: application/json\r\n\r\n"
    b'{"serviceErrorCode":65602,"message":"The token has expired","status":401}'
)
STEP_UP = b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer error="insufficient_user_authentication"\r\n\r\n'
REUSED = b'HTTP/1.1 400 Bad Request\r\n\r\n{"error":"invalid_grant"}'


def test_explain_says_verdict_turn_rule_and_source(run: Run) -> None:
    """A LinkedIn 401 from standard input is read by LinkedIn's rules, with file, line and source."""
    data = json.loads(run("explain", "--provider", "linkedin", "--json", stdin=EXPIRED).stdout)
    expected = providers.diagnose(401, {}, EXPIRED.partition(b"\r\n\r\n")[2], provider="linkedin")
    assert data["verdict"] == expected.verdict == Verdict.EXPIRED
    assert (data["turn"], data["remedy"], data["status"], data["surface"]) == ("us", "renew", 401, "api")
    assert data["rule"] == expected.rule
    assert data["file"].endswith("linkedin.toml")
    assert data["line"] > 0
    assert data["source"]
    assert (data["message"], data["fix"]) == (expected.message, expected.fix)


def test_explain_in_words(run: Run, folder: Path) -> None:
    """The same as text, from a file: whose turn it is stands in words."""
    (folder / "answer.txt").write_bytes(EXPIRED)
    done = run("explain", "answer.txt", "--provider", "linkedin")
    assert done.exit_code == 0
    assert "verdict  expired" in done.stdout
    assert "turn     tokenkeeper's\n" in done.stdout
    assert "linkedin.toml:" in done.stdout
    assert "source   " in done.stdout


def test_explain_reads_a_token_endpoints_answer(run: Run) -> None:
    """--surface token reads the answer to a refresh."""
    data = json.loads(run("explain", "--surface", "token", "--json", stdin=REUSED).stdout)
    assert data["verdict"] == providers.diagnose(400, {}, b'{"error":"invalid_grant"}', surface="token").verdict
    assert data["turn"] == "member"


def test_explain_is_generic_without_a_provider(run: Run) -> None:
    """The generic rules read headers too; an unknown provider is refused, as by `providers show`."""
    assert json.loads(run("explain", "--json", stdin=STEP_UP).stdout)["verdict"] == "step_up"
    done = run("explain", "--provider", "linkedn", stdin=STEP_UP)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "Did you mean linkedin" in done.stderr
    assert done.stderr == run("providers", "show", "linkedn").stderr


def test_explain_says_what_a_near_miss_wants(run: Run) -> None:
    """Beside the rule that decided stand those that nearly did, with what each wants of the answer."""
    forbidden = EXPIRED.replace(b"401 ", b"403 ", 1)
    text = run("explain", "--provider", "linkedin", stdin=forbidden).stdout
    assert "not      linkedin/number-expired: all of it holds but the status; it is for 401\n" in text
    token = ["explain", "--surface", "token"]
    assert "grant-reused: it wants: the answer says 'already used' or " in run(*token, stdin=REUSED).stdout
    text = run(*token, stdin=b'HTTP/1.1 500 No\r\n\r\n{"error":"invalid_client"}').stdout
    assert "token-client: all of it holds but the status; it is for 2xx 4xx\n" in text
    assert "status is" not in text


OWN = """title = "Own"
source = "us"

[[rule]]
name = "gone"
status = 401
json = { code = "gone", kind = "token" }
verdict = "revoked"
message = "m"
fix = "f"
source = "s"

[[rule]]
name = "lost"
status = 401
json = { code = "lost" }
verdict = "revoked"
message = "m"
fix = "f"
source = "s"

[[rule]]
name = "late"
status = "4xx"
json = { kind = "token" }
verdict = "invalid"
message = "m"
fix = "f"
source = "s"

[[rule]]
name = "later"
json = { kind = ["token", "key"] }
status = 401
verdict = "expired"
message = "m"
fix = "f"
source = "s"
"""


def test_explain_shows_the_most_telling_near_misses_first(run: Run, folder: Path) -> None:
    """Own rules before generic ones; a rule that holds but comes later first, one of which only the status fits last."""
    (folder / "own.toml").write_text(OWN)
    answer = b'HTTP/1.1 401 No\r\n\r\n{"kind":"token","code":"other"}'
    done = run("explain", "--provider", "own.toml", stdin=answer)
    near = [line for line in done.stdout.splitlines() if line.startswith("not ")]
    assert "rule     own/late (own.toml:22)" in done.stdout
    assert near[:2] == [
        "not      own/later: it holds, too, but comes later",
        "not      own/gone: it wants: json code is gone",
    ]
    assert near[-1] == "not      own/lost: it wants: json code is lost"
    data = json.loads(run("explain", "--provider", "own.toml", "--json", stdin=answer).stdout)
    assert [(miss["line"], miss["failed"]) for miss in data["near"][:2]] == [(31, []), (4, ["json code is gone"])]


def test_explain_reads_a_profile_of_the_hosts_own(run: Run, folder: Path) -> None:
    """--provider may be the path of a profile; one that is not there is an error."""
    rule = 'name = "gone"\nstatus = 418\nverdict = "revoked"\nmessage = "m"\nfix = "f"\nsource = "s"\n'
    (folder / "own.toml").write_text(f'title = "Own"\nsource = "us"\n[[rule]]\n{rule}')
    data = json.loads(run("explain", "--provider", "own.toml", "--json", stdin=b"HTTP/2 418\n\n").stdout)
    assert (data["verdict"], data["rule"], data["line"]) == ("revoked", "own/gone", 3)
    assert run("explain", "--provider", "gone.toml", stdin=STEP_UP).exit_code == 1


def test_explain_shows_what_to_wait_and_the_scopes(run: Run) -> None:
    """A wait and the scopes that are missing are shown in words."""
    wait = run("explain", stdin=b"HTTP/1.1 429 Too Many\r\nRetry-After: 30\r\n\r\n")
    assert "wait     30 seconds" in wait.stdout
    challenge = b'HTTP/1.1 403 No\r\nWWW-Authenticate: Bearer error="insufficient_scope", scope="a b"\r\n\r\n'
    assert "scopes   a b" in run("explain", stdin=challenge).stdout


def test_explain_on_a_terminal_says_what_to_paste(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who starts explain without input is told what it waits for."""
    monkeypatch.setattr("tokenkeeper.cli.explain.interactive", lambda: True)
    assert "Paste the answer" in run("explain", stdin=STEP_UP).stderr


@pytest.mark.parametrize("text", [b"", b'{"message": "no headers"}'])
def test_explain_needs_the_status_line(run: Run, text: bytes) -> None:
    """What has no status line is refused, with the way to get one."""
    done = run("explain", stdin=text)
    assert done.exit_code == 1
    assert "curl -si" in done.stderr


def test_explain_shows_no_token_of_a_profile(run: Run, folder: Path) -> None:
    """A profile into which somebody copied a whole answer: its token is not in what a near-miss wants."""
    token = "AQXdSP_W41UPs5ioT_t8HESyODB4FqbkJ8LrV"
    (folder / "own.toml").write_text(OWN.replace('code = "gone"', f'code = ["gone", "{token}"]'))
    answer = b'HTTP/1.1 401 No\r\n\r\n{"kind":"token","code":"other"}'
    text = run("explain", "--provider", "own.toml", stdin=answer).stdout
    assert "not      own/gone: it wants: json code is <redacted> or gone" in text
    assert token.lower() not in (text + run("explain", "--provider", "own.toml", "--json", stdin=answer).stdout).lower()
