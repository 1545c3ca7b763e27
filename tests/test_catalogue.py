"""The catalogue: what every profile must say, and that each of its rules is shown by an answer that somebody saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenkeeper import providers
from tokenkeeper.model import Surface
from tokenkeeper.providers.review import review
from tokenkeeper.providers.vectors import read_vectors, record

VECTORS = Path(__file__).parent / "vectors"
NAMES = [name for name in providers.names() if name != providers.GENERIC]


@pytest.mark.parametrize("name", NAMES)
def test_a_review_finds_nothing_wrong(name: str) -> None:
    """Title, source, when checked, token endpoint, the rotation's source, parameters, and a vector with origin a rule."""
    path = VECTORS / f"{name}.jsonl"
    found = review(providers.CATALOGUE / f"{name}.toml", read_vectors(path) if path.exists() else ())
    assert [finding for finding in found.findings if finding.level == "fail"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_loads_by_its_name(name: str) -> None:
    """A profile is found by the name of its file, its rules go before the generic ones, and its name can be typed."""
    profile = providers.load_profile(name)
    assert profile.name == name
    assert name.isascii()
    assert name == name.lower()
    assert profile.rules.own
    assert profile.rules.generic


@pytest.mark.parametrize("name", providers.names())
def test_an_answer_without_its_secrets_is_read_alike(name: str) -> None:
    """What ``providers record`` masks and leaves out of a real answer is nothing that a rule needs."""
    profile = providers.load_profile(name)
    path = VECTORS / f"{name}.jsonl"
    vectors = read_vectors(path) if path.exists() else ()
    made = [record(each.answer, profile, surface=Surface(each.surface), origin=each.origin) for each in vectors]
    assert [(one.vector.rule, one.reading) for one in made if one.reading != one.vector.rule] == []


def test_every_generic_rule_has_a_vector_that_says_where_it_is_from() -> None:
    """The generic rules are shown by answers, too, in their own file."""
    vectors = read_vectors(VECTORS / "generic.jsonl")
    shown = {vector.rule for vector in vectors if vector.origin}
    assert [rule.name for rule in providers.load_profile("generic").rules.generic if rule.name not in shown] == []


def test_every_file_of_vectors_has_a_profile() -> None:
    """No vectors are left behind by a profile that was renamed."""
    assert {path.stem for path in VECTORS.glob("*.jsonl")} <= set(providers.names())
