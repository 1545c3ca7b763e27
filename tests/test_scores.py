"""What is asked of the catalogue, and of the generic rules alone, against real answers (``benchmarks/generic.py`` prints it)."""

from __future__ import annotations

from typing import Any

import pytest
from scoring import ANSWERS, harm, is_sure, score

from tokenkeeper import providers
from tokenkeeper.model import Diagnosis, Remedy, Surface

SURE = [row for row in ANSWERS if is_sure(row)]


def with_the_catalogue(row: dict[str, Any]) -> Diagnosis:
    """Read an answer with the provider's profile."""
    return providers.diagnose(
        row["status"], row["headers"], row["body"], provider=row["provider"], surface=row["surface"]
    )


def with_generic_rules_alone(row: dict[str, Any]) -> Diagnosis:
    """Read an answer as if its provider had no profile."""
    return providers.diagnose(row["status"], row["headers"], row["body"], surface=row["surface"])


def test_the_catalogue_reads_real_answers() -> None:
    """Of the sure ones 97 % of verdicts and 98 % of remedies; nobody nagged, nothing burnt, hardly anyone stuck."""
    found = score(with_the_catalogue, SURE)["all"]
    assert found.answers > 400
    assert (found.harms["nagged"], found.harms["burnt"]) == (0, 0), found.misses
    assert max(found.share("stuck"), found.share("alarmed")) <= 0.01, found.misses
    assert found.verdict >= 0.97, found.misses
    assert found.remedy >= 0.98, found.misses


def test_linkedins_answers_are_all_read_rightly() -> None:
    """The first provider that this was written for."""
    assert score(with_the_catalogue, SURE)["linkedin"].misses == []


def test_without_any_profile_the_generic_rules_do_no_harm() -> None:
    """Of all answers, the unsure ones too, 70 % of remedies; nobody nagged and nothing burnt."""
    found = score(with_generic_rules_alone, ANSWERS)["all"]
    assert (found.harms["nagged"], found.harms["burnt"]) == (0, 0), found.misses
    assert found.remedy >= 0.70, found.misses


@pytest.mark.parametrize(
    ("right", "remedy", "surface", "done"),
    [
        ("renew", "renew", "api", None),
        ("none", "reauthenticate", "api", "nagged"),
        ("renew", "reauthenticate", "api", "nagged"),
        ("widen_scope", "reauthenticate", "api", None),
        ("none", "renew", "api", "burnt"),
        ("wait", "renew", "api", "burnt"),
        ("reauthenticate", "renew", "api", None),
        ("reauthenticate", "renew", "token", "stuck"),
        ("reauthenticate", "wait", "token", "stuck"),
        ("renew", "none", "api", "stuck"),
        ("reconfigure", "wait", "token", None),
        ("wait", "reconfigure", "token", "alarmed"),
    ],
)
def test_harm(right: str, remedy: str, surface: str, done: str | None) -> None:
    """What each wrong remedy does."""
    assert harm({Remedy(right)}, Remedy(remedy), Surface(surface)) == done
