"""``tokenkeeper explain``: what an answer means, by which rule, whose turn it is and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from tokenkeeper import providers
from tokenkeeper.cli import curl
from tokenkeeper.cli.output import clean, statuses, styled, whose
from tokenkeeper.cli.session import Command, Session, interactive, json_option, pass_session
from tokenkeeper.core.diagnosis import Explanation, NearMiss
from tokenkeeper.core.redaction import MASK, looks_secret, masked
from tokenkeeper.core.rules import Rule
from tokenkeeper.errors import InvalidInput
from tokenkeeper.model import Answer, Surface

LONGEST = 4 << 20
"""Bytes that are read; what decides stands at the beginning."""

answer_file = click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), default="-")
surface_option = click.option(
    "--surface",
    type=click.Choice([surface.value for surface in Surface]),
    default=Surface.API.value,
    help="api: an API's answer (default); token: a token endpoint's, to a refresh.",
)


@click.command(cls=Command)
@answer_file
@click.option(
    "--provider",
    default=providers.GENERIC,
    metavar="NAME",
    help="Whose answer it is: a name of `providers list`, or a profile's path.",
)
@surface_option
@json_option
@pass_session
def explain(session: Session, *, file: str, provider: str, surface: str) -> None:
    """Say what an answer of a provider means.

    Reads it as `curl -i` prints it, from FILE or standard input, and says the verdict, whose turn it is, the remedy, by
    which rule (file, line and source), and which rules nearly decided. As in: curl -si -H "Authorization: Bearer ..."
    https://api.linkedin.com/v2/userinfo | tokenkeeper explain --provider linkedin
    """
    profile = providers.load_profile(provider)  # unlike diagnose(), the command refuses a name that is not known
    answer = read_answer(session, file)
    found = providers.explain(
        answer.status, answer.headers, answer.body, provider=provider, surface=surface, now=datetime.now(UTC)
    )
    session.out.result(_data(answer.status, profile.name, surface, found), _lines(answer.status, profile.name, found))


def read_answer(session: Session, file: str) -> Answer:
    """Read what ``curl -i`` printed from a file or standard input. Raises InvalidInput where there is no answer."""
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
    return answer


def _data(status: int, profile: str, surface: str, found: Explanation) -> dict[str, Any]:
    diagnosis, rule = found.diagnosis, found.rule
    return {
        "status": status,
        "provider": profile,
        "surface": surface,
        "verdict": diagnosis.verdict,
        "turn": diagnosis.turn,
        "remedy": diagnosis.remedy,
        "message": masked(diagnosis.message),
        "fix": diagnosis.fix,
        "retry_after": diagnosis.retry_after,
        "scopes": [masked(scope) for scope in diagnosis.scopes],
        "acr_values": diagnosis.acr_values and masked(diagnosis.acr_values),
        "error_code": diagnosis.error_code and masked(diagnosis.error_code),
        "rule": diagnosis.rule,
        "file": rule.file,
        "line": rule.line,
        "source": rule.source,
        "near": [
            {
                "rule": miss.rule.name,
                "failed": [_safe(failed) for failed in miss.failed],
                "file": miss.rule.file,
                "line": miss.rule.line,
            }
            for miss in found.near
        ],
    }


def _lines(status: int, profile: str, found: Explanation) -> Iterator[Text]:
    diagnosis, rule = found.diagnosis, found.rule
    yield Text.assemble("answer   ", (f"{status}", "bold"), f", read by the profile {profile}")
    yield Text.assemble("verdict  ", (diagnosis.verdict, "bold"))
    yield Text.assemble("turn     ", (whose(diagnosis.turn), styled(diagnosis.turn).style))
    yield Text(f"remedy   {diagnosis.remedy}")
    yield Text(f"message  {clean(masked(diagnosis.message))}")
    yield Text(f"fix      {clean(diagnosis.fix)}")
    if diagnosis.retry_after is not None:
        yield Text(f"wait     {diagnosis.retry_after:.0f} seconds")
    if diagnosis.scopes:
        yield Text(f"scopes   {clean(masked(' '.join(diagnosis.scopes)))}")
    yield Text(f"rule     {diagnosis.rule}{f' ({place(rule)})' if rule.file else ''}")
    if profile == providers.GENERIC and not rule.file:
        yield Text(
            "hint     no provider was named and no general rule reads this: --provider NAME (see `providers list`)"
        )
    yield Text(f"source   {clean(rule.source)}")
    for miss in found.near:
        yield Text(f"not      {miss.rule.name}: {_why_not(miss)}", style="dim")


def place(rule: Rule) -> str:
    """Return the file and the line of a rule; a file below the current folder as it would be typed."""
    file = Path(rule.file)
    return f"{file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}:{rule.line}"


def _why_not(miss: NearMiss) -> str:
    """Why a rule did not decide that nearly did."""
    if not miss.failed:
        return "it holds, too, but comes later"
    if miss.failed[0].startswith("status is "):
        return f"all of it holds but the status; it is for {statuses(miss.rule.statuses)}"
    wants = (_safe(failed.replace("said says ", "the answer says ", 1)) for failed in miss.failed)
    return f"it wants: {clean('; '.join(wants))}"


def _safe(condition: str) -> str:
    """A condition as it may be shown: in a profile of somebody's own, too, a token may stand by mistake."""
    return " ".join(MASK if looks_secret(word) else word for word in condition.split(" "))
