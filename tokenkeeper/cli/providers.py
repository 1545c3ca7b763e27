"""``tokenkeeper providers``: what is known of the providers and where it is from, and tools for who adds one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from tokenkeeper import providers as catalogue
from tokenkeeper.cli.explain import answer_file, read_answer, surface_option
from tokenkeeper.cli.output import clean, lasting, shown, statuses, styled
from tokenkeeper.cli.session import Group, Session, json_option, pass_session
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.rules import Rule
from tokenkeeper.errors import InvalidInput
from tokenkeeper.model import Surface
from tokenkeeper.providers.review import Finding, Review
from tokenkeeper.providers.review import review as review_profile
from tokenkeeper.providers.vectors import SEEN, read_vectors
from tokenkeeper.providers.vectors import record as record_answer

COLUMNS = ["name", "rotation", "client", "rules", "checked", "title"]
TITLE = 46
"""The characters that are listed of a title, so that a line has at most 100."""
NOT_CHECKED = "nobody has checked"
TABLES = ("parameters", "lifetimes", "notes", "authorization_parameters", "token_parameters")
"""The facts that are shown below the others."""


@click.group(cls=Group)
def providers() -> None:
    """See what is known of the providers, and add one."""


@providers.command("list")
@json_option
@pass_session
def list_(session: Session) -> None:
    """List the catalogue.

    A registration names one of these as its provider, or is called so. Checked is when somebody last compared the facts
    with their source. With --json, all facts.
    """
    profiles = map(catalogue.load_profile, catalogue.names())
    rows = ({**_facts(profile), "rules": len(_rules(profile))} for profile in profiles)
    session.out.rows(rows if session.json else map(_short, rows), COLUMNS, nothing="the catalogue is empty")


@providers.command()
@click.argument("name")
@json_option
@pass_session
def show(session: Session, *, name: str) -> None:
    """Show a provider's facts and rules.

    The rules stand in the order in which they are asked. NAME may be the path of a profile.
    """
    profile = catalogue.load_profile(name)
    facts = _facts(profile)
    data = {**facts, "rules": [_rule(rule) for rule in _rules(profile)]}
    session.out.result(data, _lines(facts, _rules(profile)))


@providers.command()
@click.argument("file", type=click.Path())
@click.option(
    "--vectors",
    type=click.Path(),
    metavar="FILE",
    help="Recorded answers, as `providers record` prints them: each must be read by its rule, each rule needs one.",
)
@json_option
@pass_session
@click.pass_context
def check(ctx: click.Context, session: Session, *, file: str, vectors: str | None) -> None:
    """Review a profile of your own.

    Prints the rules in order, then what is wrong (fail) and what is worth a look (warn): facts that nobody has given or
    checked, rules without a recorded answer, answers that another rule reads. A file that cannot be used is refused
    with the line. Exit status 1 if anything failed.
    """
    found = review_profile(Path(file), None if vectors is None else read_vectors(Path(vectors)))
    session.out.result(_review(file, found), _review_lines(file, found, with_vectors=vectors is not None))
    ctx.exit(0 if found.ok else 1)


@providers.command()
@answer_file
@click.option("--provider", required=True, metavar="NAME", help="Whose answer it is: a name, or a profile's path.")
@click.option(
    "--origin", required=True, metavar="URL", help="Where it was seen: the URL that was called, an issue, a page."
)
@click.option(
    "--seen", type=click.Choice(SEEN), default=SEEN[0],
    help="recorded: your own call's (default); quoted: from an issue or a log; documented: the provider's sample; "
    "reconstructed: made from a documented code.",
)  # fmt: skip
@click.option("--rule", metavar="NAME", help="The rule that must read it; without it, the one that does.")
@surface_option
@json_option
@pass_session
def record(
    session: Session, *, file: str, provider: str, origin: str, seen: str, rule: str | None, surface: str
) -> None:
    """Make a vector of an answer.

    Reads it as `curl -i` prints it, from FILE or standard input, and prints one line of JSON for a file of vectors:
    what looks like a token, cookies and e-mail addresses are masked, and only headers that tell something are kept.
    What was masked is said on stderr.
    """
    profile = catalogue.load_profile(provider)
    made = record_answer(
        read_answer(session, file), profile, surface=Surface(surface), origin=origin.strip(), seen=seen
    )
    vector = made.vector
    if rule is not None and rule not in {vector.rule, vector.rule.partition("/")[2]}:
        raise InvalidInput(
            f"the answer is read by {vector.rule} ({vector.verdict}), not by {rule}",
            cause="other_rule",
            fix="`tokenkeeper explain` says why; correct the rule, or move it up",
        )
    if made.reading != vector.rule:
        raise InvalidInput(
            f"the answer is read by {vector.rule}, but without its secrets, and of its headers only those that tell "
            f"something, by {made.reading}",
            cause="vector_changed",
            fix="let the rule look at what is not secret, or write the vector by hand",
        )
    click.echo(vector.as_json())
    session.out.say(f"read by   {vector.rule} ({vector.verdict})")
    session.out.say(f"masked    {clean(', '.join(made.masked)) or 'nothing'}")
    session.out.say(f"left out  {clean(', '.join(made.left_out)) or 'nothing'}")
    session.out.say("Look it through before you share it: names and ids are left as they are.")


def _rules(profile: Profile) -> tuple[Rule, ...]:
    return profile.rules.own or (profile.rules.generic if profile.name == catalogue.GENERIC else ())


def _facts(profile: Profile) -> dict[str, Any]:
    facts = {field.name: getattr(profile, field.name) for field in fields(profile) if field.name != "rules"}
    lease, deadline = round(profile.timing.lease, 3), round(profile.timing.deadline, 3)
    tables = {name: facts.pop(name) for name in TABLES}
    tables["parameters"] = {name: asdict(each) for name, each in profile.parameters.items()}
    return {**facts, "lease_seconds": lease, "deadline_seconds": deadline, **tables}


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the list, as short as its line must be."""
    title = row["title"] if len(row["title"]) <= TITLE else f"{row['title'][: TITLE - 1]}…"
    client = row["client_authentication"].removeprefix("client_secret_")
    return {**row, "title": title, "client": client, "checked": row["checked"] or "no"}


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
        "file": rule.file,
        "line": rule.line,
    }


def _lines(facts: dict[str, Any], rules: tuple[Rule, ...]) -> Iterator[str]:
    yield from (f"{name:<22} {clean(value)}" for name, value in _fact_lines(facts))
    for rule in rules:
        yield f"{rule.verdict:<20} {rule.name}  ({rule.surface} {statuses(rule.statuses)})"
        for condition in rule.conditions:
            yield f"    {clean(str(condition))}"
        yield f"    source: {clean(rule.source)}"


def _fact_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts as names and texts: those of a table, a line each."""
    for name, value in facts.items():
        if name in {"checked", "rotation_checked"} and value is None:
            yield name.replace("_", " "), NOT_CHECKED
        elif name not in TABLES:
            yield name.replace("_", " "), "a blank" if value == " " else shown(value)
    for name, seconds in facts["lifetimes"].items():
        yield f"{name} lifetime".replace("_", " "), lasting(seconds)
    for name, each in facts["parameters"].items():
        yield f"parameter {name}", each["about"] + (f" (default: {each['default']})" if each["default"] else "")
    for table in ("authorization_parameters", "token_parameters"):
        if facts[table]:
            what = "authorization sends" if table == "authorization_parameters" else "token request sends"
            yield what, " ".join(f"{name}={value}" for name, value in facts[table].items())
    yield from (("note", note) for note in facts["notes"])


def _review(file: str, found: Review) -> dict[str, Any]:
    return {
        "ok": found.ok,
        "file": file,
        "name": found.profile.name,
        "title": found.profile.title,
        "rules": [
            {"line": rule.line, **_rule(rule), "vectors": found.vectors.get(rule.name, 0)} for rule in found.rules
        ],
        "findings": [asdict(finding) for finding in found.findings],
    }


def _review_lines(file: str, found: Review, *, with_vectors: bool) -> Iterator[str | Text]:
    yield f"{clean(file)}: {clean(found.profile.title) or 'no title'}"
    about = [f"{rule.surface} {statuses(rule.statuses)}" for rule in found.rules]
    name, status = max((len(rule.name) for rule in found.rules), default=0), max(map(len, about), default=0)
    for rule, asked in zip(found.rules, about, strict=True):
        vectors = found.vectors[rule.name]
        seen = f"  {vectors} vector{'s' * (vectors != 1)}" if with_vectors else ""
        yield f"  line {rule.line:<4} {rule.name:<{name}}  {asked:<{status}}  {rule.verdict:<18}{seen}".rstrip()
    for finding in found.findings:
        yield Text.assemble(styled(finding.level), f" {_where(file, finding)}: {clean(finding.text)}")
    failed = sum(finding.level == "fail" for finding in found.findings)
    warned = len(found.findings) - failed
    yield f"{failed} failed, {warned} warning{'s' * (warned != 1)}"


def _where(file: str, finding: Finding) -> str:
    if not finding.rule:
        return clean(file)
    return f"{clean(file)}:{finding.line} {finding.rule}" if finding.line else finding.rule
