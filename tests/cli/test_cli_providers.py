"""``providers``: the catalogue listed and shown, a profile reviewed for its author, an answer made into a vector."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tokenkeeper import providers
from tokenkeeper.cli.output import lasting, statuses
from tokenkeeper.providers.vectors import read_vectors

Run = Callable[..., Result]

FACTS = """title = "Acme"
source = "https://acme.example/docs"
checked = 2026-11-22
authorization_endpoint = "https://{shop}.acme.example/authorize"
token_endpoint = "https://{shop}.acme.example/token"
rotation = "strict"
rotation_source = "https://acme.example/docs (single use)"
rotation_checked = 2026-11-22
notes = ["At most ten tokens a member."]

[lifetimes]
access_token = 3600

[parameters.shop]
about = "The part before .acme.example."
default = "www"

[authorization_parameters]
access_type = "offline"

[token_parameters]
action = "requesttoken"
"""
RULES = """
[[rule]]
name = "gone"
status = 401
json = { "error.code" = [7, "gone"] }
header = { x-acme-kind = "token" }
verdict = "expired"
message = "m"
fix = "f"
source = "s"

[[rule]]
name = "blocked"
status = 403
words = { "error.message" = ["account * closed"] }
verdict = "account_blocked"
message = "m"
fix = "f"
source = "s"
"""
GONE = b"""HTTP/2 401 \r
date: Sun, 22 Nov 2026 10:00:00 GMT\r
set-cookie: session=s3cret; Path=/\r
x-acme-kind: token\r
www-authenticate: Bearer resource_metadata="https://x.example/y", error="invalid_token", error_description="no eyJhbGciOi.e30"\r
content-type: application/json\r
\r
{\n  "error" : {"code": 7, "message": "Token AQXdSP_W41UPs5ioT_t8HE of ann@acme.example", "access_token":"x1"}\n}"""
HIDDEN = ("s3cret", "eyJ", "AQXdSP", "ann@acme.example", "x1")


@pytest.fixture
def acme(folder: Path) -> Path:
    """A profile of the author's own, in the current folder."""
    path = folder / "acme.toml"
    path.write_text(FACTS + RULES)
    return path


def vector(**changes: Any) -> str:
    """A line of a file of vectors: the first rule's answer, with changes."""
    return json.dumps(
        {
            "rule": "acme/gone",
            "verdict": "expired",
            "surface": "api",
            "status": 401,
            "headers": {"x-acme-kind": "token"},
            "body": '{"error":{"code":7}}',
            "seen": "recorded",
            "origin": "https://api.acme.example/me",
            **changes,
        }
    )


BLOCKED = vector(
    rule="acme/blocked",
    verdict="account_blocked",
    status=403,
    body='{"error":{"message":"Your account was closed"}}',
    seen="quoted",
)


# ----------------------------------------------------------------------------------------------------------------------
# list and show


def test_providers_are_listed(run: Run) -> None:
    """providers list names the whole catalogue, as JSON Lines and as text."""
    rows = [json.loads(line) for line in run("providers", "list", "--json").stdout.splitlines()]
    assert [row["name"] for row in rows] == providers.names()
    text = run("providers", "list").stdout
    assert "LinkedIn" in text
    assert max(map(len, text.splitlines())) <= 100
    assert rows[0]["notes"] == list(providers.load_profile(rows[0]["name"]).notes)


@pytest.mark.parametrize("name", ["linkedin", "generic"])
def test_a_provider_is_shown(run: Run, name: str) -> None:
    """providers show has the facts, and the rules in order, each with its source."""
    profile = providers.load_profile(name)
    data = json.loads(run("providers", "show", name, "--json").stdout)
    rules = profile.rules.own or profile.rules.generic
    assert data["client_authentication"] == profile.client_authentication
    assert data["lease_seconds"] == profile.timing.lease
    assert [rule["rule"] for rule in data["rules"]] == [rule.name for rule in rules]
    assert all(rule["source"] for rule in data["rules"])
    text = run("providers", "show", name).stdout
    assert all(rule.name in text for rule in rules)
    assert "scope separator        a blank" in text


def test_figures_are_shown_as_people_write_them(run: Run) -> None:
    """No figure of any provider shows how a computer rounds, nor a needless point."""
    for name in providers.names():
        for text in (run("providers", "show", name).stdout, run("providers", "show", name, "--json").stdout):
            assert not re.search(r"\d\.\d{4,}", text), name
    assert "lease seconds          40\n" in run("providers", "show", "linkedin").stdout


def test_an_unknown_provider_is_refused_with_near_names(run: Run) -> None:
    """A slip of the pen is answered with what may have been meant."""
    done = run("providers", "show", "linkdin")
    assert done.exit_code == 1
    assert "linkedin" in done.stderr


def test_a_title_that_is_too_long_is_cut_and_facts_that_nobody_checked_are_said(run: Run, acme: Path) -> None:
    """The list stays within its width; a profile shows its parameters, its notes and what its requests carry."""
    text = run("providers", "show", "acme.toml").stdout
    for line in (
        "checked                2026-11-22",
        "access token lifetime  3600 (1 hour)",
        "parameter shop         The part before .acme.example. (default: www)",
        "authorization sends    access_type=offline",
        "token request sends    action=requesttoken",
        "note                   At most ten tokens a member.",
        "rotation source        https://acme.example/docs (single use)",
        "    source: s",
    ):
        assert f"{line}\n" in text
    acme.write_text(FACTS.replace("checked = 2026-11-22", "checked = false"))
    text = run("providers", "show", "acme.toml").stdout
    assert "\nchecked                nobody has checked\n" in text
    assert "\nrotation checked       nobody has checked\n" in text
    data = json.loads(run("providers", "show", "acme.toml", "--json").stdout)
    assert data["checked"] is None
    assert data["parameters"] == {"shop": {"about": "The part before .acme.example.", "default": "www", "one_of": []}}


def test_statuses_and_durations_as_people_write_them() -> None:
    """A whole class of statuses is its name; a duration has the unit that measures it."""
    assert statuses([401, *range(500, 600), 403]) == "401 403 5xx"
    assert statuses([]) == "any"
    assert [lasting(seconds) for seconds in (90, 120, 3600, 86_400, 1.5)] == [
        "90", "120 (2 minutes)", "3600 (1 hour)", "86400 (1 day)", "1.5",
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# check


def test_a_profile_in_order_has_nothing_to_find(run: Run, acme: Path) -> None:
    """Its rules are shown in order with their lines and vectors, and the exit status is 0."""
    (acme.parent / "acme.jsonl").write_text(f"{vector()}\n\n{BLOCKED}\n")
    done = run("providers", "check", "acme.toml", "--vectors", "acme.jsonl")
    assert done.exit_code == 0
    assert done.stdout == (
        "acme.toml: Acme\n"
        "  line 24   acme/gone     api 401  expired             1 vector\n"
        "  line 34   acme/blocked  api 403  account_blocked     1 vector\n"
        "0 failed, 0 warnings\n"
    )
    data = json.loads(run("providers", "check", "acme.toml", "--vectors", "acme.jsonl", "--json").stdout)
    assert (data["ok"], data["findings"], data["name"]) == (True, [], "acme")
    assert [(rule["rule"], rule["line"], rule["vectors"]) for rule in data["rules"]] == [
        ("acme/gone", 24, 1),
        ("acme/blocked", 34, 1),
    ]


def test_without_vectors_a_check_says_so(run: Run, acme: Path) -> None:
    """A profile may be checked before an answer was recorded: that is a warning."""
    done = run("providers", "check", "acme.toml")
    assert done.exit_code == 0
    assert "warn acme.toml: no vectors were looked at: name their file with --vectors\n" in done.stdout
    assert "vector\n" not in done.stdout
    acme.write_text(FACTS)
    assert "it has no rules: the generic ones read its answers" in run("providers", "check", "acme.toml").stdout


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "Acme"', "", "fail acme.toml: it has no title"),
        ('source = "https://acme.example/docs"', "", "fail acme.toml: it has no source"),
        ("\nchecked = 2026-11-22", "", "fail acme.toml: checked is missing"),
        ("\nchecked = 2026-11-22", "\nchecked = false", "warn acme.toml: nobody has checked these facts"),
        ('rotation_source = "https://acme.example/docs (single use)"', "", "no rotation_source says where"),
        ("rotation_checked = 2026-11-22", "", "fail acme.toml: rotation_checked is missing"),
        (
            "rotation_checked = 2026-11-22",
            "rotation_checked = false",
            "warn acme.toml: nobody has checked the rotation",
        ),
        ('rotation = "strict"', "", "warn acme.toml: rotation is unknown"),
        ('[parameters.shop]\nabout = "The part before .acme.example."\ndefault = "www"\n', "", "put for {shop}"),
        ('[[rule]]\nname = "gone"', '[[rule]]\nname = "lost"', "line 2 is read by"),
    ],
)
def test_what_is_missing_is_said(run: Run, acme: Path, old: str, new: str, said: str) -> None:
    """Each fact that nobody has given or checked is named; what the catalogue would not take is a failure."""
    text = FACTS + RULES
    assert old in text
    acme.write_text(text.replace(old, new))
    (acme.parent / "acme.jsonl").write_text(f"{BLOCKED}\n{vector()}\n")
    done = run("providers", "check", "acme.toml", "--vectors", "acme.jsonl")
    assert said in done.stdout
    assert done.exit_code == ("fail" in said or "no " in said[:3] or "{" in said or "line" in said)


def test_a_profile_without_a_token_endpoint_says_why(run: Run, acme: Path) -> None:
    """Without one nothing can be renewed: a note must say what is to be done instead."""
    facts = re.sub(r"(?m)^(authorization_endpoint|token_endpoint|notes).*\n", "", FACTS).replace(
        '[parameters.shop]\nabout = "The part before .acme.example."\ndefault = "www"\n', ""
    )
    acme.write_text(facts + RULES)
    done = run("providers", "check", "acme.toml")
    assert (done.exit_code, "it has no token_endpoint, and no note says why" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([vector()], "fail acme.toml:34 acme/blocked: no vector shows what it is for"),
        ([vector(origin=""), BLOCKED], "fail acme.toml:24 acme/gone: none of its vectors has an origin"),
        (
            [vector(headers={}), BLOCKED],
            "line 1 is read by status/401 (invalid), not by acme/gone, which asks that header x-acme-kind is token",
        ),
        ([vector(), BLOCKED, vector(verdict="invalid")], "the vector in line 3 is expired, not invalid"),
        (
            [vector(), BLOCKED, vector(rule="generic/expired-in-words")],
            "is read by acme/gone (expired), not by generic/",
        ),
        ([vector(), BLOCKED, vector(rule="acme/never")], "fail acme/never: the vector in line 3 is read by acme/gone"),
        (
            [
                vector(),
                BLOCKED,
                vector(rule="generic/audience", headers={}, body='{"error":{"message":"key expired"}}'),
            ],
            "fail generic/audience: the vector in line 3 is read by",
        ),
    ],
)
def test_vectors_must_be_read_by_their_rules(run: Run, acme: Path, lines: list[str], said: str) -> None:
    """A rule without a vector, a vector without origin, and one that another rule reads are failures."""
    (acme.parent / "acme.jsonl").write_text("\n".join(lines))
    done = run("providers", "check", "acme.toml", "--vectors", "acme.jsonl")
    assert done.exit_code == 1
    assert said in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "acme.jsonl:1: is not JSON"),
        ("[]", "acme.jsonl:1: is not an object"),
        ('{"rule": "a"}', "acme.jsonl:1: verdict is missing"),
        (vector(extra=1), "acme.jsonl:1: extra is not known"),
        (f"{vector()}\n{vector(verdict='dead')}", "acme.jsonl:2: verdict is none of"),
        (vector(surface="web"), "surface is none of"),
        (vector(seen="dreamt"), "seen is none of: recorded, quoted, documented, reconstructed"),
        (vector(status="401"), "status is not a number"),
        (vector(body={}), "body is neither a text nor null"),
        (vector(headers=[]), "headers is not an object"),
        (vector(headers={"a": 1}), "headers is not an object"),
        (vector(origin=1), "origin is not a text"),
    ],
)
def test_vectors_that_cannot_be_read_are_refused_naming_the_line(run: Run, acme: Path, text: str, said: str) -> None:
    """What is wrong with a line of vectors is said with file and line, and what a vector has."""
    (acme.parent / "acme.jsonl").write_text(text)
    done = run("providers", "check", "acme.toml", "--vectors", "acme.jsonl")
    assert done.exit_code == 1
    assert said in done.stderr
    assert "providers record" in done.stderr


def test_files_that_cannot_be_read_are_refused(run: Run, acme: Path) -> None:
    """No such profile, no such vectors, far too many vectors: an error, not a traceback."""
    assert "gone.toml: cannot be read" in run("providers", "check", "gone.toml").stderr
    done = run("providers", "check", "acme.toml", "--vectors", "gone.jsonl")
    assert (done.exit_code, "gone.jsonl: cannot be read" in done.stderr) == (1, True)
    with (acme.parent / "huge.jsonl").open("wb") as file:
        file.truncate(17 << 20)
    assert "larger than 16 MiB" in run("providers", "check", "acme.toml", "--vectors", "huge.jsonl").stderr


def test_a_profile_that_cannot_be_used_is_refused_with_its_line(run: Run, acme: Path) -> None:
    """The loader's own refusals come as everywhere: file, line, what is wrong and what to do."""
    acme.write_text(FACTS + RULES.replace('verdict = "expired"', 'verdict = "exspired"'))
    done = run("providers", "check", "acme.toml")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: acme.toml:24: rule gone: verdict is 'exspired', which is none of ok,")
    assert "docs/refusals.md" in done.stderr


def rule(name: str, **keys: str) -> str:
    """A rule of its own, whose texts do not matter."""
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f'\n[[rule]]\nname = "{name}"\n{lines}message = "m"\nfix = "f"\nsource = "s"\n'


def test_rules_that_the_generic_ones_make_needless_are_pointed_out(run: Run, acme: Path) -> None:
    """A rule without which the generic ones decide alike is worth a look; so is one that its own answer never reaches."""
    acme.write_text(
        FACTS
        + rule("words", words='{ said = ["token expired"] }', status="401", verdict='"expired"')
        + rule("shadowed", json='{ message = "the token expired" }', status="401", verdict='"revoked"')
        + rule("challenge", challenge='{ scheme = "acme", error = "gone" }', status="401", verdict='"revoked"')
        + rule("text", words='{ body = ["<h1>gone"], "header.x-a" = ["gone"] }', status="403", verdict='"revoked"')
        + rule("there", json='{ "a.b" = true, c = false }', header="{ x-b = true, x-c = false }", verdict='"revoked"')
        + rule("odd", json='{ a = "1", "a.b" = "2" }', verdict='"revoked"')
    )
    text = run("providers", "check", "acme.toml").stdout
    assert "acme/words: without it generic/expired-in-words decides alike" in text
    assert "acme/shadowed: an answer that has just what it asks for is read by acme/words, which comes first" in text
    assert text.count("warn acme.toml:") == 3  # with the one that no vectors were looked at
    line = vector(rule="acme/words", headers={}, body='{"message":"token expired"}')
    (acme.parent / "acme.jsonl").write_text(line)
    text = run("providers", "check", "acme.toml", "--vectors", "acme.jsonl").stdout
    assert "acme/words: without it generic/expired-in-words decides alike" in text


# ----------------------------------------------------------------------------------------------------------------------
# record

RECORD = ("providers", "record", "--provider", "acme.toml", "--origin", "https://api.acme.example/me")


def test_an_answer_becomes_a_vector_without_its_secrets(run: Run, acme: Path) -> None:
    """Tokens, cookies and addresses are masked, headers that tell nothing left out, and the body keeps its shape."""
    done = run(*RECORD, "--rule", "gone", stdin=GONE)
    assert done.exit_code == 0
    assert [word for word in HIDDEN if word in done.stdout + done.stderr] == []
    (acme.parent / "acme.jsonl").write_text(done.stdout)
    (made,) = read_vectors(acme.parent / "acme.jsonl")
    assert (made.rule, made.verdict, made.surface, made.status) == ("acme/gone", "expired", "api", 401)
    assert (made.seen, made.origin) == ("recorded", "https://api.acme.example/me")
    assert made.headers == {
        "x-acme-kind": "token",
        "www-authenticate": 'Bearer resource_metadata="https://x.example/y", error="invalid_token", '
        'error_description="no <redacted>"',
        "content-type": "application/json",
    }
    assert made.body == (
        '{\n  "error" : {"code": 7, "message": "Token <redacted> of <email>", "access_token":"<redacted>"}\n}'
    )
    assert "masked    header www-authenticate, the body's message, the body's access_token\n" in done.stderr
    assert "left out  date, set-cookie\n" in done.stderr
    quiet = run(*RECORD, "--json", stdin=GONE)
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")


@pytest.mark.parametrize(
    ("body", "kept", "said"),
    [
        (b"", "", "nothing"),
        (b"access_token=abc&error=x\n", "access_token=<redacted>&error=x\n", "the body"),
        (b"<html>\n<p>No</p>", "<html>\n<p>No</p>", "nothing"),
        (b"{'token': 'AQXdSP_W41UPs5ioT_t8HE'}", "{'token': '<redacted>'}", "the body"),
        (b'["AQXdSP_W41UPs5ioT_t8HE", "\\u00e9"]', '["<redacted>", "\\u00e9"]', "the body"),
        (b'{"AQXdSP_W41UPs5ioT_t8HE": "x", "token": ""}', '{"<redacted>": "x", "token": ""}', "the body's <redacted>"),
        (b"\xff", "\ufffd", "nothing"),
        (b"[" * 30_000, "[" * 16_384, "nothing"),
    ],
)
def test_bodies_of_any_kind_are_recorded(run: Run, acme: Path, body: bytes, kept: str, said: str) -> None:
    """Forms, pages, JSON that is none: what looks like a secret is masked, the rest stays as it is."""
    done = run(*RECORD, stdin=b"HTTP/1.1 418 No\r\n\r\n" + body)
    made = json.loads(done.stdout)
    assert (made["body"], made["rule"]) == (kept.rstrip() and kept, "status/other")
    assert f"masked    {said}\n" in done.stderr


def test_a_long_body_is_cut_where_no_token_is_cut(run: Run, acme: Path) -> None:
    """Of a long body the beginning is kept; the text that the cut goes through is left out as a whole."""
    body = json.dumps({"error": {"code": "gone"}, "more": ["a b " * 20] * 300, "token": "x"})
    done = run(*RECORD, stdin=b"HTTP/1.1 418 No\r\n\r\n" + body.encode())
    made = json.loads(done.stdout)["body"]
    assert body.startswith(made)
    assert made.endswith('"')
    assert 16_000 < len(made) <= 16_384
    assert "what follows in the body after" in done.stderr


def test_headers_that_a_rule_asks_about_are_kept(run: Run, acme: Path) -> None:
    """Beside the headers that tell something anywhere, those that this profile's rules look at; several are a list."""
    acme.write_text(
        FACTS
        + rule("a", words='{ "header.x-kind" = ["gone"] }', verdict='"rate_limited"', retry_after='"header.x-when"')
        + rule("b", header="{ x-other = true }", verdict='"revoked"')
    )
    answer = b"HTTP/1.1 418 No\r\nX-Kind: gone\r\nX-When: 5\r\nX-Kind: lost\r\nServer: s\r\nRetry-After: 5\r\n\r\n"
    made = json.loads(run(*RECORD, stdin=answer).stdout)
    assert made["headers"] == {"x-kind": ["gone", "lost"], "x-when": "5", "retry-after": "5"}
    (acme.parent / "acme.jsonl").write_text(json.dumps(made) + "\n" + vector(rule="acme/b", verdict="revoked",
        headers={"x-other": "1"}))  # fmt: skip
    assert run("providers", "check", "acme.toml", "--vectors", "acme.jsonl").exit_code == 0


def test_a_word_of_a_challenge_that_is_a_token_is_masked(run: Run, acme: Path) -> None:
    """A challenge that is not in quotes keeps its names, and no token."""
    answer = b"HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer error=invalid_token, x=AQXdSP_W41UPs5ioT_t8HE\r\n\r\n"
    made = json.loads(run(*RECORD, stdin=answer).stdout)
    assert made["headers"] == {"www-authenticate": "Bearer error=invalid_token, x=<redacted>"}


def test_a_recording_that_another_rule_reads_is_refused(run: Run, acme: Path) -> None:
    """The rule that the author meant, and the rule that reads the answer without its secrets: both must be right."""
    done = run(*RECORD, "--rule", "acme/blocked", stdin=GONE)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the answer is read by acme/gone (expired), not by acme/blocked" in done.stderr
    acme.write_text(FACTS + rule("a", json='{ token = "abc" }', verdict='"revoked"'))
    done = run(*RECORD, stdin=b'HTTP/1.1 418 No\r\n\r\n{"token":"abc"}')
    assert (done.exit_code, done.stdout) == (1, "")
    assert "is read by acme/a, but without its secrets" in done.stderr
    assert "no HTTP answer" in run(*RECORD, stdin=b"").stderr
