"""The catalogue, its loader, how a host's facts are laid over a profile, and ``diagnose`` against recorded answers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import timeit
from collections import Counter
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from scoring import ANSWERS

from tokenkeeper import providers
from tokenkeeper.core.diagnosis import Rules
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Provider, Registration, Rotation, Verdict
from tokenkeeper.providers.vectors import Vector, read_vectors

HERE = Path(__file__).parent
VECTORS = [
    pytest.param(path.stem, vector, id=f"{path.stem}:{vector.line}")
    for path in sorted((HERE / "vectors").glob("*.jsonl"))
    for vector in read_vectors(path)
]
RULE = """
[[rule]]
name = "one"
status = 401
json = { code = "x" }
verdict = "expired"
message = "m"
fix = "f"
source = "s"
"""


@pytest.fixture
def sheet(tmp_path: Path) -> Any:
    """Write a profile and return its path."""

    def write(text: str, name: str = "acme") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


def refused(call: Any, *args: Any, **kwargs: Any) -> ConfigurationError:
    """The error of a call that must be refused; it says what to do."""
    with pytest.raises(ConfigurationError) as caught:
        call(*args, **kwargs)
    assert caught.value.fix
    return caught.value


# ----------------------------------------------------------------------------------------------------------------------
# Recorded answers


@pytest.mark.parametrize(("provider", "vector"), VECTORS)
def test_each_recorded_answer_yields_exactly_its_rule(provider: str, vector: Vector) -> None:
    """A recorded answer of a provider is read by the rule it was recorded for, and by no other."""
    found = providers.diagnose(vector.status, vector.headers, vector.body, provider=provider, surface=vector.surface)
    assert (found.rule.removesuffix(" (body not readable)"), found.verdict) == (vector.rule, vector.verdict)
    assert found.message
    assert found.fix or found.verdict == "ok"
    assert found.rule.endswith("(body not readable)") is (vector.body is None)


def test_all_five_refusals_of_linkedin_in_each_generation_of_bodies() -> None:
    """v1 (errorCode), v2 (serviceErrorCode) and versioned (code): the five causes are told apart in each."""
    seen: Counter[tuple[str, str]] = Counter()
    for vector in read_vectors(HERE / "vectors/linkedin.jsonl"):
        if vector.rule.startswith("linkedin/") and (vector.status, vector.surface) == (401, "api"):
            body = json.loads(vector.body or "")
            generation = "v1" if "errorCode" in body else "versioned" if "code" in body else "v2"
            seen[generation, vector.verdict] += 1
    causes = ("bad_scheme", "empty", "invalid", "expired", "revoked")
    assert [(g, c) for g in ("v1", "v2", "versioned") for c in causes if not seen[g, c]] == []


def test_an_ordinary_refusal_is_read_quickly() -> None:
    """A 401 of LinkedIn takes far less than a millisecond (about 20 µs on a quiet machine; the goal is 50)."""
    row = next(row for row in ANSWERS if row["provider"] == "linkedin" and row["status"] == 401)
    read = timeit.repeat(
        lambda: providers.diagnose(row["status"], row["headers"], row["body"], provider="linkedin"), number=20, repeat=9
    )
    assert statistics.median(read) / 20 < 0.0005


# ----------------------------------------------------------------------------------------------------------------------
# diagnose: what it takes


@pytest.mark.parametrize(
    "headers",
    [
        {"WWW-Authenticate": 'Bearer error="invalid_token"'},
        {"www-authenticate": ["Bearer", 'DPoP error="invalid_token"']},
        [("WWW-Authenticate", "Bearer"), ("Www-Authenticate", 'Bearer error="invalid_token"')],
        {b"WWW-Authenticate": b'Bearer error="invalid_token"'},
        [(b"www-authenticate", b'Bearer error="invalid_token"')],
    ],
)
def test_headers_come_in_many_shapes(headers: Any) -> None:
    """A mapping to a text, bytes or a list, or pairs; names in any case."""
    assert providers.diagnose(401, headers, "").rule == "generic/challenge-invalid"


def test_headers_of_the_standard_library() -> None:
    """http.client's Message is no Mapping, and has a field twice."""
    message = Message()
    message["WWW-Authenticate"] = "Bearer"
    message["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    assert providers.diagnose(401, message, "").rule == "generic/challenge-invalid"  # type: ignore[arg-type]


def test_headers_are_bounded() -> None:
    """So many fields and so much of a value; nothing at all is nothing."""
    pairs = providers.header_pairs([("A", "b" * 100_000)] * 1000)
    assert len(pairs) == providers.HEADERS
    assert len(pairs[0][1]) == providers.HEADER_CHARACTERS
    assert providers.header_pairs(None) == ()
    assert providers.header_pairs({"a": None, "b": 5}) == (("a", ""), ("b", "5"))


@pytest.mark.parametrize(
    "body",
    [
        '{"code":"EXPIRED_ACCESS_TOKEN"}',
        b'{"code":"EXPIRED_ACCESS_TOKEN"}',
        bytearray(b'{"code":"EXPIRED_ACCESS_TOKEN"}'),
    ],
)
def test_bodies_are_text_or_bytes(body: Any) -> None:
    """A body is a str or bytes; a lone surrogate in it is no reason to fail."""
    assert providers.diagnose(401, {}, body, provider="linkedin").verdict == "expired"
    assert providers.diagnose(401, {}, "\ud800", provider="linkedin").verdict == "invalid"


def test_an_unknown_provider_means_the_generic_rules() -> None:
    """A name that the catalogue lacks is read by the generic rules; a status that is no number by none."""
    assert (
        providers.diagnose(401, {}, '{"message":"token expired"}', provider="acme").rule == "generic/expired-in-words"
    )
    assert providers.diagnose("nonsense", {}, "").verdict == "not_token"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Surface"):
        providers.diagnose(401, {}, "", surface="nowhere")


def test_diagnose_with_a_hosts_own_profile(sheet: Any) -> None:
    """A path reads the host's own rules, which come before the generic ones; explain names the file and line."""
    path = sheet(f'title = "Acme"\n{RULE}')
    assert providers.diagnose(401, {}, '{"code":"x"}', provider=path).rule == "acme/one"
    said = providers.explain(401, {}, '{"code":"x"}', provider=str(path))
    assert (said.rule.file, said.rule.line, said.rule.source) == (str(path), 3, "s")
    path.write_text(RULE.replace('"x"', '"yy"'))
    assert providers.diagnose(401, {}, '{"code":"yy"}', provider=path).rule == "acme/one"


def test_importing_the_catalogue_loads_neither_sqlalchemy_nor_an_http_client() -> None:
    """diagnose works where only the standard library is."""
    code = (
        "import sys, tokenkeeper.providers as p; p.diagnose(401, {}, '', provider='linkedin')\n"
        "heavy = {'sqlalchemy', 'httpx', 'httpx2', 'requests', 'authlib', 'cryptography'}\n"
        "print([name for name in sys.modules if name.split('.')[0] in heavy])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------------------------------
# The catalogue and resolve


def test_linkedins_facts() -> None:
    """The facts that renewals and authorizations hang on."""
    profile = providers.load_profile("linkedin")
    assert profile is providers.load_profile("linkedin")
    assert profile.token_endpoint == "https://www.linkedin.com/oauth/v2/accessToken"
    assert (profile.client_authentication, profile.pkce, profile.rotation) == (
        "client_secret_post",
        "none",
        Rotation.NONE,
    )
    assert (profile.revocation, profile.scope_separator) == ("grant", " ")
    assert profile.lifetimes["access_token"] == 60 * 86_400
    assert profile.introspection_endpoint
    assert profile.revocation_endpoint is None


def test_an_unknown_name_is_refused_with_near_names() -> None:
    """A slip of the pen is answered with the name that was meant; otherwise a Provider is wanted."""
    assert "linkedin" in refused(providers.load_profile, "linkdin").fix
    error = refused(providers.resolve, Registration("acme", client_id="c"))
    assert error.registration == "acme"
    assert "Provider('acme'" in error.fix


def test_a_registration_of_the_catalogue() -> None:
    """The provider is the registration's name unless it says otherwise."""
    assert providers.resolve(Registration("linkedin", client_id="c")) is providers.load_profile("linkedin")
    assert providers.resolve(Registration("li-2", provider="linkedin", client_id="c")).name == "linkedin"


def test_a_provider_inherits_facts_but_never_an_endpoint() -> None:
    """A stand-in has LinkedIn's manners and rules, and not one of its URLs."""
    stand_in = Provider("fake", extends="linkedin", token_endpoint="http://127.0.0.1:8000/token")
    profile = providers.resolve(Registration("linkedin", provider=stand_in, client_id="c"))
    assert (profile.name, profile.token_endpoint) == ("fake", "http://127.0.0.1:8000/token")
    assert (profile.client_authentication, profile.pkce, profile.revocation) == ("client_secret_post", "none", "grant")
    assert profile.rules == providers.load_profile("linkedin").rules
    assert "linkedin.com" not in " ".join(
        str(getattr(profile, each))
        for each in (
            "authorization_endpoint", "revocation_endpoint", "introspection_endpoint", "userinfo_endpoint", "issuer",
        )
    )  # fmt: skip


def test_a_provider_without_a_profile_has_the_generic_values() -> None:
    """Nothing said means client_secret_basic, S256, Bearer, unknown rotation, and the generic rules."""
    profile = providers.resolve(
        Registration("acme", provider=Provider("acme", token_endpoint="https://acme.example/t"), client_id="c")
    )
    assert (profile.client_authentication, profile.pkce, profile.scope_separator) == (
        "client_secret_basic",
        "S256",
        " ",
    )
    assert (profile.header, profile.scheme, profile.rotation) == ("Authorization", "Bearer", Rotation.UNKNOWN)
    assert profile.rules == Rules(generic=providers.load_profile("generic").rules.generic)


def test_another_rotation_brings_its_own_timing(sheet: Any) -> None:
    """A host that declares another rotation does not keep the lease that belonged to the old one."""
    path = sheet('rotation = "grace"\ngrace_seconds = 30\nlease_seconds = 33\ndeadline_seconds = 22\n')
    assert providers.load_profile(path).timing.lease == 33
    strict = Provider("acme", extends=path, rotation="strict")
    profile = providers.resolve(Registration("acme", provider=strict, client_id="c"))
    assert (profile.rotation, profile.timing.lease, profile.grace_seconds) == (Rotation.STRICT, 90, None)
    slow = Provider("acme", extends=path, lease_seconds=40, deadline_seconds=30, grace_seconds=60)
    assert providers.resolve(Registration("acme", provider=slow, client_id="c")).timing.deadline == 30


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"client_authentication": "basic"}, "client_authentication"),
        ({"pkce": "plain"}, "pkce"),
        ({"rotation": "sometimes"}, "rotation"),
        ({"revocation": "all"}, "revocation"),
        ({"rotation": "grace"}, "grace_seconds"),
        ({"grace_seconds": -1}, "grace_seconds"),
        ({"lease_seconds": float("nan")}, "lease_seconds"),
        ({"lease_seconds": "40"}, "lease_seconds"),
        ({"lease_seconds": 10, "deadline_seconds": 10}, "deadline_seconds"),
        ({"header": "Authorization: x"}, "header"),
        ({"header": ""}, "header"),
        ({"scheme": "Bearer "}, "scheme"),
        ({"scope_separator": 7}, "scope_separator"),
        ({"token_endpoint": "http://acme.example/token"}, "token_endpoint"),
        ({"token_endpoint": "http://10.0.0.1/token"}, "token_endpoint"),
        ({"token_endpoint": "http://localhost.acme.example/token"}, "token_endpoint"),
        ({"token_endpoint": "ftp://acme.example/token"}, "token_endpoint"),
        ({"token_endpoint": "/token"}, "token_endpoint"),
        ({"token_endpoint": "https://u:p@acme.example/token"}, "token_endpoint"),
        ({"token_endpoint": "https://acme.example/token#x"}, "token_endpoint"),
        ({"token_endpoint": "https://acme.example/to ken"}, "token_endpoint"),
        ({"token_endpoint": "https://acme.example/\r\nHost: x"}, "token_endpoint"),
        ({"token_endpoint": "https://[acme.example/token"}, "token_endpoint"),
        ({"token_endpoint": "https://acme.example:port/token"}, "token_endpoint"),
        ({"token_endpoint": "https://acme.example/{Tenant}/token"}, "token_endpoint"),
        ({"token_endpoint": 5}, "token_endpoint"),
        ({"issuer": "http://acme.example"}, "issuer"),
        ({"revocation_endpoint": "http://acme.example/revoke"}, "revocation_endpoint"),
    ],
)
def test_bad_facts_are_refused_by_name(facts: dict[str, Any], named: str) -> None:
    """A word outside its vocabulary, a figure that is none, an endpoint in the clear: each is refused, naming it."""
    error = refused(providers.resolve, Registration("acme", provider=Provider("acme", **facts), client_id="c"))
    assert named in str(error)
    assert error.registration == "acme"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/t",
        "http://127.8.9.1:80/t",
        "http://[::1]:8000/t",
        "http://localhost:1/t",
        "http://as.localhost/t",
        "https://acme.example/t",
    ],
)
def test_loopback_may_be_in_the_clear(url: str) -> None:
    """On the machine itself http:// will do."""
    profile = providers.resolve(Registration("a", provider=Provider("a", token_endpoint=url), client_id="c"))
    assert profile.token_endpoint == url


TENANT = (
    'token_endpoint = "https://login.acme.example/{tenant}/token"\nissuer = "https://{region}.acme.example/{tenant}"\n'
)


def test_a_parameter_that_ends_a_host_is_one_of_a_list() -> None:
    """A data center that the member's callback names must not be anybody's host: the client's secret goes there."""
    zoho = Registration("zoho", client_id="c", parameters={"dc": "eu"})
    assert providers.resolve(zoho).token_endpoint == "https://accounts.zoho.eu/oauth/v2/token"
    for other in ("com.evil.example", "evil", "EU", "com."):
        error = refused(providers.resolve, Registration("zoho", client_id="c", parameters={"dc": other}))
        assert "dc" in str(error)


@pytest.mark.parametrize(
    "facts",
    [
        {"deadline_seconds": 60},
        {"rotation": "grace", "grace_seconds": 20, "deadline_seconds": 30},
        {"lease_seconds": 10, "deadline_seconds": 10},
    ],
)
def test_a_token_request_must_end_before_its_claim(sheet: Any, facts: dict[str, Any]) -> None:
    """Also where only one of the two figures is given, and the other follows from the rotation."""
    provider = Provider("acme", token_endpoint="https://acme.example/t", **facts)
    assert "deadline_seconds" in str(refused(providers.resolve, Registration("a", provider=provider, client_id="c")))
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in facts.items())
    assert "deadline_seconds" in str(refused(providers.load_profile, sheet(text)))


def test_parameters_fill_endpoints(sheet: Any) -> None:
    """Tenant, shop and region come from the registration; without them the profile can be looked at, not used."""
    path = sheet(TENANT)
    registration = Registration(
        "acme", provider=path, client_id="c", parameters={"tenant": "ann.example", "region": "eu-1"}
    )
    profile = providers.resolve(registration)
    assert profile.token_endpoint == "https://login.acme.example/ann.example/token"
    assert profile.issuer == "https://eu-1.acme.example/ann.example"
    assert "{tenant}" in (providers.load_profile(path).token_endpoint or "")
    assert providers.load_profile(path, {"tenant": "t", "region": "r"}).issuer == "https://r.acme.example/t"


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({}, "region, tenant"),
        ({"tenant": "a"}, "region"),
        ({"tenant": "a", "region": "b", "shop": "c"}, "shop"),
        ({"tenant": "a/b", "region": "b"}, "tenant"),
        ({"tenant": "a?b", "region": "b"}, "tenant"),
        ({"tenant": "a", "region": "evil.example/x"}, "region"),
        ({"tenant": "a", "region": "evil.example@"}, "region"),
        ({"tenant": "a", "region": ".."}, "region"),
        ({"tenant": "a..b", "region": "b"}, "tenant"),
        ({"tenant": "", "region": "b"}, "tenant"),
        ({"tenant": "a\n", "region": "b"}, "tenant"),
        ({"tenant": 5, "region": "b"}, "tenant"),
    ],
)
def test_missing_and_malformed_parameters_are_refused(sheet: Any, parameters: dict[str, Any], named: str) -> None:
    """A parameter becomes part of a URL that a secret is sent to: only a plain label will do, and none may lack."""
    registration = Registration("acme", provider=sheet(TENANT), client_id="c", parameters=parameters)
    assert named in str(refused(providers.resolve, registration))


def test_a_parameter_that_nobody_wants_is_refused() -> None:
    """A profile without placeholders takes no parameters."""
    assert "tenant" in str(
        refused(providers.resolve, Registration("linkedin", client_id="c", parameters={"tenant": "x"}))
    )


# ----------------------------------------------------------------------------------------------------------------------
# The loader refuses what it does not understand


@pytest.mark.parametrize(
    ("text", "line", "named"),
    [
        ("titel = 'x'", None, "titel"),
        ("not toml", None, "TOML"),
        ("\ud800", None, "TOML"),
        ("a = " + "[" * 5000, None, "TOML"),
        ("name = 'x'", None, "name"),
        ("rules = 1", None, "rules"),
        ("rule = 5", None, "rule"),
        ("lifetimes = 5", None, "lifetimes"),
        ("[lifetimes]\nacces_token = 5", None, "acces_token"),
        ("[lifetimes]\naccess_token = 'long'", None, "lifetimes.access_token"),
        ("errors_in_200 = 1", None, "errors_in_200"),
        ("pkce = 'plain'", None, "pkce"),
        ("token_endpoint = 'http://acme.example'", None, "token_endpoint"),
        ("rotation = 'grace'", None, "grace_seconds"),
        (RULE + "extra = 1", 2, "extra"),
        (RULE.replace('source = "s"', ""), 2, "source"),
        (RULE.replace('source = "s"', 'source = " "'), 2, "source"),
        (RULE.replace('fix = "f"', ""), 2, "fix"),
        (RULE.replace('name = "one"', ""), 2, "name"),
        (RULE.replace("expired", "exspired"), 2, "exspired"),
        (RULE.replace('verdict = "expired"', ""), 2, "one"),
        (RULE + 'surface = "web"', 2, "web"),
        (RULE.replace("401", "4010"), 2, "4010"),
        (RULE.replace("401", "true"), 2, "True"),
        (RULE.replace("401", '"40x"'), 2, "40x"),
        (RULE.replace('"x"', "[]"), 2, "needed"),
        (RULE.replace("code =", '"a..b" ='), 2, "a..b"),
        (RULE.replace("json = {", "header = { X-Big = true,"), 2, "X-Big"),
        (RULE.replace("json = {", "challenge = 5 #"), 2, "one"),
        (RULE.replace("json = {", "words = { said = [],"), 2, "words.said"),
        (RULE.replace("json = {", "words = { said = ['*'],"), 2, "no words"),
        (RULE.replace("json = {", "words = { said = [5],"), 2, "words.said"),
        (RULE + "retry_after = 5", 2, "5"),
        (RULE * 501, None, "more than 500 rules"),
        ("[token_parameters]\nclient_secret = 'x'", 1, "client_secret is a secret"),
        ('token_endpoint = "https://a.{dc}/t"\n[parameters.dc]\nabout = "x"', 1, "one_of"),
        ('token_endpoint = "https://a.{dc}:8/t"', 1, "one_of"),
        ('token_endpoint = "https://{dc}/t"\n[parameters.dc]\nabout = "x"\none_of = "com"', 2, "one_of is not a list"),
        (RULE.replace("expired", "grant_expired"), 2, 'surface = "token"'),
        (RULE.replace("401", "200"), 2, "errors_in_200 = true"),
        (RULE.replace("code =", "err.no ="), 2, '"err.no"'),
        (RULE.replace("json = {", "words = 'x' #"), 2, "words is not a table"),
        (RULE + 'pkce = "none"', 2, "before the first [[rule]]"),
        (RULE + 'sorce = "x"', 2, "Did you mean source?"),
        ("checked = '2026-11-22'", 1, "no quotes"),
        (RULE + RULE, 11, "name of the rule in line 2"),
        (RULE + RULE.replace('"one"', '"two"'), 11, "two is never reached: acme/one"),
        (RULE.replace('json = { code = "x" }', "") + RULE.replace('"one"', '"two"'), 11, "never reached"),
    ],
)
def test_the_loader_refuses_naming_file_and_line(sheet: Any, text: str, line: int | None, named: str) -> None:
    """Unknown keys and words, rules without a source, rules that are never reached: file, line and what is wrong."""
    path = sheet("")
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    error = refused(providers.load_profile, path)
    assert str(error).startswith(f"{path}:{line}: " if line else f"{path}:")
    assert named in str(error)
    assert error.cause == "provider_profile"


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """A missing file, a folder and a huge file are no profiles."""
    assert "no.toml" in str(refused(providers.load_profile, tmp_path / "no.toml"))
    assert "no.toml" in str(refused(providers.diagnose, 401, {}, "", provider=str(tmp_path / "no.toml")))
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml" in str(refused(providers.load_profile, tmp_path / "folder.toml"))
    (tmp_path / "huge.toml").write_bytes(b"#" * 2_000_000)
    assert "1 MiB" in str(refused(providers.load_profile, tmp_path / "huge.toml"))


def test_the_docs_example_is_a_profile_and_their_tables_name_every_verdict(sheet: Any) -> None:
    """What docs/refusals.md shows can be used as it stands, and no verdict is left unexplained."""
    text = (HERE.parent / "docs/refusals.md").read_text()
    path = sheet(text.partition("```toml\n")[2].partition("```")[0])
    registration = Registration("acme", provider=path, client_id="c", parameters={"region": "eu"})
    assert providers.resolve(registration).token_endpoint == "https://eu.acme.example/token"
    assert providers.diagnose(503, {}, '{"error":{"code":"4011"}}', provider=path).rule == "acme/expired"
    assert [verdict for verdict in Verdict if f"| `{verdict}` |" not in text] == []


def test_every_fact_and_condition_of_the_format(sheet: Any) -> None:
    """One file with everything that the format knows, as docs/refusals.md describes it."""
    path = sheet(
        """
title = "Acme"
source = "https://acme.example/docs"
checked = 2026-11-22
token_endpoint = "https://acme.example/token"
client_authentication = "private_key_jwt"
pkce = "S256"
scope_separator = ","
header = "X-Acme-Token"
scheme = ""
rotation = "grace"
grace_seconds = 30
revocation = "access_token"
errors_in_200 = true

[lifetimes]
access_token = 3600

[[rule]]
name = "all"
surface = "api"
status = [200, "4xx"]
challenge = { scheme = ["bearer", "acme"], error = "gone" }
header = { x-acme = true }
json = { "error.code" = [7, "8"], data = false }
words = { "error.message" = "token * gone", said = ["gone"] }
verdict = "insufficient_scope"
scopes = "error.needed"
retry_after = "error.wait"
message = "m"
fix = "f"
source = "s"
"""
    )
    profile = providers.load_profile(path)
    assert (profile.header, profile.scheme, profile.scope_separator) == ("X-Acme-Token", "", ",")
    assert profile.rotation is Rotation.GRACE
    assert profile.rules.errors_in_200
    headers = {"WWW-Authenticate": "Acme error=gone", "X-Acme": "1"}
    body = {"error": {"code": 8, "message": "The token is gone", "needed": ["a", "b"]}}
    found = providers.diagnose(200, headers, json.dumps(body), provider=path)
    assert (found.rule, found.scopes) == ("acme/all", ("a", "b"))
