"""WWW-Authenticate: what the RFC allows, what servers really send, and anything at all."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenkeeper.core.challenge import CHALLENGES, PARAMETERS, Challenge, parse_challenges

READ = [
    pytest.param("Bearer", [("bearer", {})], id="bare"),
    pytest.param('Bearer realm="api"', [("bearer", {"realm": "api"})], id="rfc"),
    pytest.param(
        'Bearer realm="a, b", error="invalid_token"',
        [("bearer", {"realm": "a, b", "error": "invalid_token"})],
        id="comma",
    ),
    pytest.param(
        'Bearer realm="api", DPoP error="invalid_token", algs="ES256"',
        [("bearer", {"realm": "api"}), ("dpop", {"error": "invalid_token", "algs": "ES256"})],
        id="auth0-node: two schemes in one line",
    ),
    pytest.param(
        'Bearer realm="service" error="invalid_token" error_description="The access token is invalid"',
        [
            (
                "bearer",
                {"realm": "service", "error": "invalid_token", "error_description": "The access token is invalid"},
            )
        ],
        id="Kong: no commas",
    ),
    pytest.param(
        'Bearer, error="invalid_token"', [("bearer", {"error": "invalid_token"})], id="comma after the scheme"
    ),
    pytest.param(
        'Bearer realm="x", error=invalid_token"', [("bearer", {"realm": "x", "error": "invalid_token"})], id="Google"
    ),
    pytest.param(
        'Bearer realm="null, error="invalid_token"',
        [("bearer", {"realm": "null", "error": "invalid_token"})],
        id="quote never closed before the next parameter",
    ),
    pytest.param('Bearer error="invalid_token', [("bearer", {"error": "invalid_token"})], id="quote never closed"),
    pytest.param(
        'Bearer error_description="The "exp" claim", error="invalid_token"',
        [("bearer", {"error_description": 'The "exp" claim', "error": "invalid_token"})],
        id="quotes inside a value",
    ),
    pytest.param(r'Bearer realm="a \"b\" \\"', [("bearer", {"realm": 'a "b" \\'})], id="escapes"),
    pytest.param(
        'Bearer error = "x" , scope = "a b"', [("bearer", {"error": "x", "scope": "a b"})], id="blanks around ="
    ),
    pytest.param("Negotiate YIIBhg==, Bearer", [("negotiate", {}), ("bearer", {})], id="token68"),
    pytest.param("Basic dGVzdA==", [("basic", {})], id="token68 alone"),
    pytest.param('OAuth "Facebook Platform" "invalid_token" "text"', [("oauth", {})], id="Meta: no grammar"),
    pytest.param('error="invalid_token"', [("", {"error": "invalid_token"})], id="no scheme"),
    pytest.param('BEARER Error="x", ERROR="y"', [("bearer", {"error": "x"})], id="case, and a name twice"),
    pytest.param(
        "Bearer authorization_uri=https://login.example/a?b=c, error=x",
        [("bearer", {"authorization_uri": "https://login.example/a?b=c", "error": "x"})],
        id="unquoted URI",
    ),
    pytest.param("", [], id="empty"),
    pytest.param(" , ,\t", [], id="nothing but separators"),
]


@pytest.mark.parametrize(("field", "expected"), READ)
def test_reads_what_servers_send(field: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    """Each way to write a challenge that was seen in the wild is read as it was meant."""
    assert [(each.scheme, each.parameters) for each in parse_challenges(field)] == expected


def test_reads_several_lines_in_order() -> None:
    """Several fields are one list of challenges."""
    assert parse_challenges(['Bearer realm="a"', 'DPoP algs="ES256"']) == (
        Challenge("bearer", {"realm": "a"}),
        Challenge("dpop", {"algs": "ES256"}),
    )


def test_is_bounded() -> None:
    """A hostile field is cut: so many challenges, so many parameters, and no time lost on quotes."""
    assert len(parse_challenges("Bearer, " * 1000)) == CHALLENGES
    assert len(parse_challenges(["a=b"] * 1000)) == CHALLENGES
    assert len(parse_challenges("Bearer " + ",".join(f"p{i}=1" for i in range(500)))[0].parameters) == PARAMETERS
    began = time.perf_counter()
    parse_challenges(['Bearer x="' + 'a"b' * 100_000, "\\" * 100_000, 'Bearer x="' + "\\" * 16_000, '"' * 100_000])
    assert time.perf_counter() - began < 2


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from('Bearer=", \\\t\r\n\x00é\ud800xyz:/'), max_size=60) | st.text(max_size=60), max_size=4
    )
)
def test_never_raises(fields: list[str]) -> None:
    """Anything may stand in the field, also control characters and lone surrogates."""
    for challenge in parse_challenges(fields):
        assert challenge.scheme == challenge.scheme.lower()


NAME = st.text(st.sampled_from("abcdefgh_-"), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        NAME, st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=20), max_size=5
    )
)
def test_reads_back_what_is_well_formed(parameters: dict[str, str]) -> None:
    """A well-formed challenge is read as it was written, whatever its values are."""

    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    field = "Bearer " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
    assert parse_challenges(field) == (Challenge("bearer", parameters),)
