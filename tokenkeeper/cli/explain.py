"""``tokenkeeper explain``: what an answer means, by which rule, whose turn it is and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
from rich.text import Text

from tokenkeeper import providers
from tokenkeeper.cli import curl
from tokenkeeper.cli.output import clean, styled, whose
from tokenkeeper.cli.session import Command, Session, interactive, json_option, pass_session
from tokenkeeper.core.diagnosis import Explanation, NearMiss
from tokenkeeper.errors import InvalidInput
from tokenkeeper.model import Surface

LONGEST = 4 << 20
"""Bytes that are read; what decides stands at the beginning."""
MOST_STATUSES = 6
"""Statuses that are named of a rule that nearly decided."""


@click.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), default="-")
@click.option(
    "--provider",
    default=providers.GENERIC,
    metavar="NAME",
    help="Whose answer it is: a name of `providers list`, or a profile's path.",
)
@click.option(
    "--surface",
    type=click.Choice([surface.value for surface in Surface]),
    default=Surface.API.value,
    help="api: an API's answer (default); token: a token endpoint's, to a refresh.",
)
@json_option
@pass_session
def explain(session: Session, *, file: str, provider: str, surface: str) -> None:
    """Say what an answer of a provider means.

    Reads it as `curl -i` prints it, from FILE or standard input, and says the verdict, whose turn it is, the remedy,
    and by which rule. As in: curl -si -H "Authorization: Bearer ..." https://api.linkedin.com/v2/userinfo |
    tokenkeeper explain --provider linkedin
    """
    profile = providers.load_profile(provider)  # unlike diagnose(), the command refuses a name that is not known
    if file == "-" and interactive():
        session.out.say("Paste the answer (status line, headers, body), then press Ctrl-D.")
    with click.open_file(file, "rb") as stream:
        answer = curl.parse(stream.read(LONGEST))
    if answer is None:
        raise InvalidInput(
            "there is no HTTP answer in what was read: it does not begin with a line like 'HTTP/1.1 401'",
            cause="no_answer",
            fix="use `curl -si`, which prints the status line and the headers before the body",
        )
    found = providers.explain(
        answer.status, answer.headers, answer.body, provider=provider, surface=surface, now=datetime.now(UTC)
    )
    session.out.result(_data(answer.status, profile.name, surface, found), _lines(answer.status, profile.name, found))


def _data(status: int, profile: str, surface: str, found: Explanation) -> dict[str, Any]:
    diagnosis, rule = found.diagnosis, found.rule
    return {
        "status": status,
        "provider": profile,
        "surface": surface,
        "verdict": diagnosis.verdict,
        "turn": diagnosis.turn,
        "remedy": diagnosis.remedy,
        "message": diagnosis.message,
        "fix": diagnosis.fix,
        "retry_after": diagnosis.retry_after,
        "scopes": diagnosis.scopes,
        "acr_values": diagnosis.acr_values,
        "error_code": diagnosis.error_code,
        "rule": diagnosis.rule,
        "file": rule.file,
        "line": rule.line,
        "source": rule.source,
        "near": [{"rule": miss.rule.name, "failed": miss.failed} for miss in found.near],
    }


def _lines(status: int, profile: str, found: Explanation) -> Iterator[Text]:
    diagnosis, rule = found.diagnosis, found.rule
    yield Text.assemble("answer   ", (f"{status}", "bold"), f", read by the profile {profile}")
    yield Text.assemble("verdict  ", (diagnosis.verdict, "bold"))
    yield Text.assemble("turn     ", (whose(diagnosis.turn), styled(diagnosis.turn).style))
    yield Text(f"remedy   {diagnosis.remedy}")
    yield Text(f"message  {clean(diagnosis.message)}")
    yield Text(f"fix      {clean(diagnosis.fix)}")
    if diagnosis.retry_after is not None:
        yield Text(f"wait     {diagnosis.retry_after:.0f} seconds")
    if diagnosis.scopes:
        yield Text(f"scopes   {clean(' '.join(diagnosis.scopes))}")
    place = f" ({rule.file}:{rule.line})" if rule.file else ""
    yield Text(f"rule     {diagnosis.rule}{place}")
    yield Text(f"source   {rule.source}")
    for miss in found.near:
        wants = _wants(miss)
        yield Text(
            f"not      {miss.rule.name}: {f'it wants {wants}' if wants else 'an earlier rule decided'}",
            style="dim",
        )


def _wants(miss: NearMiss) -> str:
    """What a rule that nearly decided wants of the answer beside what it has."""
    statuses = sorted(miss.rule.statuses)
    shown = " or ".join(map(str, statuses[:MOST_STATUSES])) + " ..." * (len(statuses) > MOST_STATUSES)
    return "; ".join(
        f"status {shown}" if failed.startswith("status is ") else clean(failed.replace(" says ", " to say ", 1))
        for failed in miss.failed
    )
