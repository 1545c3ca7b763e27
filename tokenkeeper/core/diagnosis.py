"""Facts + rules → Diagnosis: what an answer means, whose turn it is and what helps.

The provider's own rules come first, then the generic ones, then the bare status; the first that holds decides. Nothing
that a provider sends makes it raise. ``docs/refusals.md`` tells users how a refusal is read.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from tokenkeeper.core.facts import TEXT_CHARACTERS, Facts
from tokenkeeper.core.redaction import looks_secret, mask_known, masked, safe_text
from tokenkeeper.core.rules import Rule
from tokenkeeper.model import Answer, Diagnosis, Remedy, Secret, Surface, Verdict, scope_set

__all__ = ["Explanation", "NearMiss", "Rule", "Rules", "diagnose", "explain"]

MIDNIGHT = "midnight UTC"
"""A rule's ``retry_after`` for quotas that begin anew at midnight UTC."""
EPOCH = 1e9
"""A wait of so many seconds (30 years) is a time since the epoch."""
LONGEST_WAIT = 366 * 86_400.0
"""The longest ``retry_after`` that is passed on, in seconds; whoever waits has a limit of their own."""
MOST_SCOPES = 64
"""The most missing scopes that are taken from one answer."""
MOST_CLAIMS = 4_096
"""The longest claims request (characters of JSON) that is passed on."""

_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749 section 3.3
_CODE = re.compile(r"[A-Za-z0-9_.:/ -]{1,64}")
_SECONDS = re.compile(r"\s*(\d{1,12})(?:\.(\d{0,6})\d*)?\s*", re.ASCII)
_CODE_MEMBERS = ("error", "code", "error.code", "errorCode", "serviceErrorCode", "error.type")
_QUOTED_MEMBERS = (
    "error_description",
    "message",
    "error.message",
    "detail",
    "errors.message",
    "msg",
    "title",
    "error",
)


_WAIT = "Wait, then try again; nothing is wrong with the grant."
_STATUS_TABLE = (
    (Surface.API, "success", range(200, 300), Verdict.OK, "The call succeeded.", ""),
    (
        Surface.API,
        "401",
        (401,),
        Verdict.INVALID,
        "The call was refused as unauthorized and no known reason was given. {said}",
        "The access token is renewed once; if a new one is refused too, look the answer up at the provider.",
    ),
    (Surface.API, "408", (408,), Verdict.PROVIDER_FAULT, "The provider gave up waiting for the request.", _WAIT),
    (Surface.API, "429", (429,), Verdict.RATE_LIMITED, "The provider limits how often it may be called.", _WAIT),
    (Surface.API, "server-error", range(500, 600), Verdict.PROVIDER_FAULT, "The provider failed.", _WAIT),
    (
        Surface.API,
        "other",
        (),
        Verdict.NOT_TOKEN,
        "The answer says nothing about the token.",
        "Read the answer: it is about the request, not about the token.",
    ),
    (
        Surface.TOKEN,
        "token-429",
        (429,),
        Verdict.RATE_LIMITED,
        "The token endpoint limits how often it may be called.",
        _WAIT,
    ),
    (
        Surface.TOKEN,
        "token-request",
        (401, 404, 405, 406, 410, 411, 413, 414, 415),
        Verdict.CLIENT_CONFIG,
        "The token endpoint refused the request itself, not the grant. {said}",
        "Check the token endpoint's URL, the client id, the client secret and how they are sent.",
    ),
    (
        Surface.TOKEN,
        "token-other",
        (),
        Verdict.PROVIDER_FAULT,
        "The token endpoint gave no token and no reason that could be read. {said}",
        "Wait, then try again; the grant is kept. If it lasts, ask the provider.",
    ),
)
_STATUS_RULES = tuple(
    Rule(f"status/{name}", verdict, message, fix, "RFC 9110 section 15", surface, frozenset(statuses))
    for surface, name, statuses, verdict, message, fix in _STATUS_TABLE
)


@dataclass(frozen=True, slots=True)
class Rules:
    """The ordered rules of a profile, and the generic ones that follow them. ``Rules()`` holds none."""

    own: tuple[Rule, ...] = ()
    generic: tuple[Rule, ...] = ()
    errors_in_200: bool = False
    """Whether the provider hides errors in answers of 200, so that rules are asked about those, too."""
    _found: dict[tuple[Surface, int, bool], tuple[Rule, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def candidates(self, surface: Surface, status: int, challenged: bool = True) -> tuple[Rule, ...]:
        """Return the rules, in order, that may decide about an answer with that status; the last always holds.

        Not *challenged* leaves out those that ask for a challenge.
        """
        key = (surface, status if 0 <= status < 1000 else 0, challenged)
        found = self._found.get(key)
        if found is None:  # worked out once: the same few statuses come again and again
            asked = surface is Surface.TOKEN or self.errors_in_200 or not 200 <= status < 300
            rules = (*self.own, *self.generic, *_STATUS_RULES) if asked else _STATUS_RULES
            found = self._found[key] = tuple(
                rule
                for rule in rules
                if rule.surface is surface and rule.fits(key[1]) and (challenged or not rule.needs_challenge)
            )
        return found

    def wants_body(self, status: int) -> bool:
        """Whether an API answer's body is worth reading: a rule asks for it, or an incident record quotes it (5xx)."""
        return 500 <= status < 600 or any(
            condition.reads_body for rule in self.candidates(Surface.API, status) for condition in rule.conditions
        )


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A rule that did not decide, and what of it did not hold; nothing, if an earlier rule merely came first."""

    rule: Rule
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A diagnosis with the rule that made it (with file, line and source) and those that nearly did."""

    diagnosis: Diagnosis
    rule: Rule
    near: tuple[NearMiss, ...]


def diagnose(
    answer: Answer,
    rules: Rules,
    *,
    surface: Surface = Surface.API,
    now: datetime | None = None,
    secrets: Iterable[str | Secret] = (),
) -> Diagnosis:
    """Return what *answer* means by *rules*. Never raises for what a provider sent.

    *now* (UTC) is needed only for a Retry-After that is a date, and for quotas that end at midnight. *secrets* (the
    tokens that were sent) are masked wherever the provider quotes them.
    """
    facts = Facts(answer)
    return _conclude(_decide(facts, rules, surface), facts, now, secrets)


def explain(
    answer: Answer, rules: Rules, *, surface: Surface = Surface.API, now: datetime | None = None, most: int = 5
) -> Explanation:
    """Return :func:`diagnose`'s answer with the deciding rule, and at most *most* rules that nearly decided.

    The most telling come first: those of whose conditions one holds (and would not hold of any answer), of these the
    provider's own, then those of which more holds. Of an own rule it is enough that the status fits.
    """
    facts, nothing = Facts(answer), Facts(Answer(answer.status, (), b""))
    decisive = _decide(facts, rules, surface)
    near: list[tuple[tuple[bool, bool, int, int, int], NearMiss]] = []
    for index, rule in enumerate((*rules.own, *rules.generic)):
        if rule is decisive or rule.surface is not surface:
            continue
        failed = [str(condition) for condition in rule.conditions if not condition.holds(facts)]
        held = sum(condition.holds(facts) and not condition.holds(nothing) for condition in rule.conditions)
        if not rule.fits(answer.status):
            failed.insert(0, "status is " + " or ".join(map(str, sorted(rule.statuses)[:8])))
        foreign = index >= len(rules.own)
        if len(failed) <= 1 and (held or (not foreign and answer.status in rule.statuses)):
            near.append(((not held, foreign, len(failed), -held, index), NearMiss(rule, tuple(failed))))
    near.sort(key=lambda each: each[0])
    return Explanation(_conclude(decisive, facts, now), decisive, tuple(miss for _, miss in near[:most]))


def _decide(facts: Facts, rules: Rules, surface: Surface) -> Rule:
    for rule in rules.candidates(surface, facts.answer.status, bool(facts.challenges)):
        for condition in rule.conditions:  # the loop that diagnosis spends its time in
            if not condition.holds(facts):
                break
        else:
            return rule
    raise AssertionError("the last candidate has no conditions")


def _conclude(rule: Rule, facts: Facts, now: datetime | None, secrets: Iterable[str | Secret] = ()) -> Diagnosis:
    known = tuple(secrets)
    verdict = rule.verdict
    name, message = rule.name, rule.message
    if facts.answer.body is None and verdict is not Verdict.OK:
        name += " (body not readable)"
    if "{said}" in message:
        message = message.replace("{said}", _quote(facts, known)).strip()
    wanting = verdict in (Verdict.INSUFFICIENT_SCOPE, Verdict.STEP_UP)
    step_up = verdict in (Verdict.STEP_UP, Verdict.INTERACTION_REQUIRED)
    return Diagnosis(
        verdict,
        verdict.remedy,
        verdict.turn,
        name,
        message,
        rule.fix,
        retry_after=_retry_after(rule, facts, now) if verdict.remedy is Remedy.WAIT else None,
        scopes=tuple(scope for scope in _scopes(rule, facts) if _clean(scope, known)) if wanting else (),
        acr_values=_clean(_acr_values(facts), known) if step_up else None,
        claims=_clean(_claims(facts), known) if step_up else None,
        error_code=None if verdict is Verdict.OK else _clean(_error_code(facts), known),
    )


def _clean(text: str | None, secrets: tuple[str | Secret, ...]) -> str | None:
    """Return *text*, or None where a known secret stands in it."""
    return text if text is None or mask_known(text, secrets) == text else None


def _quote(facts: Facts, secrets: tuple[str | Secret, ...]) -> str:
    """Return what the provider says in words, in quotes and safe to print, or nothing."""
    text = facts.parameter("error_description")
    if not text:
        texts = (value for path in _QUOTED_MEMBERS for value in facts.members(path) if isinstance(value, str) and value)
        text = next(texts, None)
    return f'It says: "{safe_text(text, 160, secrets)}".' if text else ""


def _error_code(facts: Facts) -> str | None:
    """Return the first machine-readable code that the answer names, if it is one: short, and nothing like a token."""
    challenged = facts.parameter("error")
    if challenged and _is_code(challenged):
        return challenged
    for path in _CODE_MEMBERS:
        for code in facts.members(path):
            text = str(code) if isinstance(code, str) or (type(code) is int and abs(code) < 10**18) else ""
            if text and _is_code(text):
                return text
    return None


def _is_code(text: str) -> bool:
    """Whether a text is a code and no token, nor a sentence that quotes one."""
    if not _CODE.fullmatch(text) or looks_secret(text):
        return False
    return text.isidentifier() or text.isdigit() or masked(text) == text


def _scopes(rule: Rule, facts: Facts) -> tuple[str, ...]:
    """Return the scopes that the provider asks for: the rule's member, the challenge's, or the body's ``scope``."""
    found: list[str] = []
    if rule.scopes is None and (asked := facts.parameter("scope")):
        found.append(asked)
    else:
        found.extend(value for value in facts.members(rule.scopes or "scope") if isinstance(value, str))
    scopes = scope_set(" ".join(found)[:TEXT_CHARACTERS].replace(",", " "))
    return tuple(scope for scope in scopes if _SCOPE.fullmatch(scope))[:MOST_SCOPES]


def _acr_values(facts: Facts) -> str | None:
    asked = scope_set((facts.parameter("acr_values") or "")[:TEXT_CHARACTERS])
    return " ".join(value for value in asked if _SCOPE.fullmatch(value))[:512] or None


def _claims(facts: Facts) -> str | None:
    """Return the claims request of an answer as JSON (OpenID Connect Core section 5.5); some send it in base64.

    An API names it in its challenge, a token endpoint in the body of its refusal (Microsoft's ``interaction_required``).
    """
    for said in (facts.parameter("claims"), *facts.members("claims")):
        asked = said[:MOST_CLAIMS] if isinstance(said, str) else ""
        for text in (asked, _from_base64(asked)):
            try:
                if isinstance(value := json.loads(text), dict):
                    return json.dumps(value, separators=(",", ":"))
            except (ValueError, RecursionError):
                continue
    return None


def _from_base64(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(
            text.replace("+", "-").replace("/", "_").rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
        )
    except ValueError:
        return b""


def _retry_after(rule: Rule, facts: Facts, now: datetime | None) -> float | None:
    """Return how long to wait in seconds: the header (RFC 9110 section 10.2.3), else what the rule knows, else None."""
    if now is not None:
        now = now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC)
    header = (facts.headers.get("retry-after") or "")[:64]
    wait = _seconds(header)
    if wait is None and header and now is not None:
        wait = _until(header, now)
    if wait is None and rule.retry_after == MIDNIGHT:
        return None if now is None else _to_midnight(now)
    if wait is None and rule.retry_after:
        found = (_wait(value, now) for value in _said_to_wait(rule.retry_after, facts))
        wait = next((value for value in found if value is not None), None)
    return None if wait is None else min(wait, LONGEST_WAIT)


def _said_to_wait(place: str, facts: Facts) -> Iterable[str]:
    where, _, name = place.partition(".")
    if where == "header":
        return (facts.headers.get(name, ""),)
    return (str(value) for value in facts.members(place) if type(value) in (int, float, str))


def _wait(text: str, now: datetime | None) -> float | None:
    """Read seconds, or seconds since the epoch: then those that are left, if the time is known."""
    seconds = _seconds(text)
    if seconds is None or seconds < EPOCH:
        return seconds
    return None if now is None else max(seconds - now.timestamp(), 0.0)


def _to_midnight(now: datetime) -> float:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return (midnight - now).total_seconds()


def _seconds(text: str) -> float | None:
    match = _SECONDS.fullmatch(text[:64])
    return float(match[0]) if match else None


def _until(text: str, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return max((moment - now).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
