"""``tokenkeeper providers``: what is known of the providers, and where it is from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import click

from tokenkeeper import providers as catalogue
from tokenkeeper.cli.output import clean, shown
from tokenkeeper.cli.session import Group, Session, json_option, pass_session
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.rules import Rule

COLUMNS = ["name", "rotation", "client_authentication", "rules", "title"]


@click.group(cls=Group)
def providers() -> None:
    """See what is known of the providers."""


@providers.command("list")
@json_option
@pass_session
def list_(session: Session) -> None:
    """List the catalogue.

    A registration names one of these as its provider, or is called so.
    """
    profiles = map(catalogue.load_profile, catalogue.names())
    rows = ({**_facts(profile), "rules": len(profile.rules.own)} for profile in profiles)
    session.out.rows(rows, COLUMNS, nothing="the catalogue is empty")


@providers.command()
@click.argument("name")
@json_option
@pass_session
def show(session: Session, *, name: str) -> None:
    """Show a provider's facts and rules.

    The rules stand in the order in which they are asked. NAME may be the path of a profile.
    """
    profile = catalogue.load_profile(name)
    rules = profile.rules.own or profile.rules.generic
    facts = _facts(profile)
    session.out.result({**facts, "rules": [_rule(rule) for rule in rules]}, _lines(facts, rules))


def _facts(profile: Profile) -> dict[str, Any]:
    facts = {field.name: getattr(profile, field.name) for field in fields(profile) if field.name != "rules"}
    lease, deadline = round(profile.timing.lease, 3), round(profile.timing.deadline, 3)
    return {**facts, "lease_seconds": lease, "deadline_seconds": deadline}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "rule": rule.name,
        "surface": rule.surface,
        "statuses": sorted(rule.statuses),
        "conditions": [str(condition) for condition in rule.conditions],
        "verdict": rule.verdict,
        "message": rule.message,
        "fix": rule.fix,
        "source": rule.source,
    }


def _lines(facts: dict[str, Any], rules: tuple[Rule, ...]) -> Iterator[str]:
    lifetimes = facts.pop("lifetimes")
    for name, value in {**facts, **{f"{what} lifetime": seconds for what, seconds in lifetimes.items()}}.items():
        yield f"{name.replace('_', ' '):<23}{shown(value) if value != ' ' else 'a blank'}"
    for rule in rules:
        statuses = " ".join(map(str, sorted(rule.statuses)[:6])) + (" ..." if len(rule.statuses) > 6 else "")
        yield f"{rule.verdict:<20} {rule.name}  ({rule.surface} {statuses or 'any status'})"
        for condition in rule.conditions:
            yield f"    {clean(str(condition))}"
