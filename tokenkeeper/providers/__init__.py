"""Provider knowledge: the catalogue of TOML files, how a host's own facts are laid over one, and ``diagnose``.

Loads no SQLAlchemy and no HTTP client.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenkeeper.core.diagnosis import Explanation, Rules
from tokenkeeper.core.diagnosis import diagnose as diagnose_answer
from tokenkeeper.core.diagnosis import explain as explain_answer
from tokenkeeper.core.profile import Profile
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Answer, Diagnosis, HeaderPairs, Provider, Registration, Rotation, Surface
from tokenkeeper.providers.checks import (
    ENDPOINTS,
    check_endpoint,
    check_facts,
    check_parameter,
    check_timing,
    fill,
    placeholders,
    problem,
)
from tokenkeeper.providers.loader import Sheet, read_sheet

__all__ = ["diagnose", "explain", "header_pairs", "load_profile", "make_answer", "names", "profile_for", "resolve"]

CATALOGUE = Path(__file__).parent
GENERIC = "generic"
"""The profile whose rules follow those of every other."""

HEADERS = 200
"""The most header fields that are taken from one answer."""
HEADER_CHARACTERS = 32_768
"""The most characters that are taken of one header value."""

Body = str | bytes | bytearray | memoryview | None

_OWN_FACTS = tuple(each.name for each in fields(Provider) if each.name not in {"name", "extends", *ENDPOINTS})


def names() -> list[str]:
    """Return the names of the catalogue's profiles, in order."""
    return sorted(path.stem for path in CATALOGUE.glob("*.toml"))


def load_profile(name_or_path: str | Path, parameters: Mapping[str, str] = MappingProxyType({})) -> Profile:
    """Return a profile of the catalogue, or of the host's own file (a Path, or a text that ends in ``.toml``).

    *parameters* fill placeholders as in ``{tenant}``; those not given stay in the endpoints (:func:`resolve` insists).
    Raises ConfigurationError, for an unknown name with near names in ``.fix``.
    """
    if isinstance(name_or_path, str) and not name_or_path.endswith(".toml"):
        profile = _catalogued(name_or_path)
    else:
        profile = _from_file(Path(name_or_path).absolute())
    return _filled(profile, parameters, f"profile {profile.name}") if parameters else profile


def resolve(registration: Registration) -> Profile:
    """Return the facts and rules that a registration goes by: its profile, or its Provider laid over one.

    Endpoints and issuer are never inherited from the profile that ``extends`` names. Raises ConfigurationError for an
    unknown name, a missing or malformed parameter, an endpoint in the clear, or a word outside its vocabulary.
    """
    provider = registration.provider
    where = f"registration {registration.name!r}"
    try:
        profile = _laid_over(provider) if isinstance(provider, Provider) else load_profile(provider)
        defaults = {name: each.default for name, each in profile.parameters.items() if each.default is not None}
        given = {name: value for name, value in defaults.items() if name in _wanted(profile)}
        profile = _filled(profile, {**given, **registration.parameters}, where)
    except ConfigurationError as error:
        error.registration = registration.name
        raise
    if missing := sorted(_wanted(profile)):
        about = profile.parameters.get(missing[0])
        fix = f"Pass parameters={{{missing[0]!r}: '…'}} to the Registration.{f' {about.about}' if about else ''}"
        raise problem(where, f"the profile {profile.name} needs the parameter {', '.join(missing)}", fix)
    return profile


def diagnose(
    status: int,
    headers: Mapping[str, Any] | Iterable[tuple[str, str]],
    body: str | bytes | None,
    *,
    provider: str | Path = GENERIC,
    surface: str | Surface = Surface.API,
    now: datetime | None = None,
) -> Diagnosis:
    """Return what a provider's answer means, whose turn it is and what helps. Never raises for what a provider sent.

    *headers* map names to a text or a list of texts, or are pairs; *body* is None where it could not be read; for an
    unknown *provider* the generic rules decide; *surface* ``"token"`` is a token endpoint's answer to a refresh. *now*
    (UTC) is needed for a Retry-After that is a date, and for quotas that end at midnight; ``retry_after``: seconds.
    """
    return diagnose_answer(
        make_answer(status, headers, body), profile_for(provider).rules, surface=Surface(surface), now=now
    )


def explain(
    status: int,
    headers: Mapping[str, Any] | Iterable[tuple[str, str]],
    body: str | bytes | None,
    *,
    provider: str | Path = GENERIC,
    surface: str | Surface = Surface.API,
    now: datetime | None = None,
) -> Explanation:
    """Return :func:`diagnose`'s answer with the rule that decided (file, line, source) and those that nearly did."""
    return explain_answer(
        make_answer(status, headers, body), profile_for(provider).rules, surface=Surface(surface), now=now
    )


def profile_for(provider: str | Path) -> Profile:
    """Return the profile of that name, or the generic one where the catalogue has none."""
    named = isinstance(provider, str) and not provider.endswith(".toml")
    return load_profile(GENERIC if named and provider not in _known() else provider)


def make_answer(status: int, headers: Mapping[str, Any] | Iterable[tuple[str, str]] | None, body: Body) -> Answer:
    """Return an Answer from what HTTP libraries have: names in lower case, values as text. Never raises for content."""
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    elif isinstance(body, bytearray | memoryview):
        body = bytes(body)
    try:
        number = int(status)
    except (TypeError, ValueError, OverflowError):
        number = 0
    return Answer(number, header_pairs(headers), body)


def header_pairs(headers: Mapping[str, Any] | Iterable[tuple[str, str]] | None) -> HeaderPairs:
    """Return header fields as pairs in order, from a mapping (to a text, bytes, or several) or from pairs."""
    items: Iterable[Any] = () if headers is None else headers.items() if hasattr(headers, "items") else headers
    pairs: list[tuple[str, str]] = []
    for item in items:
        name, values = item
        lower = _text(name).strip().lower()
        for value in values if isinstance(values, list | tuple) else (values,):
            if len(pairs) == HEADERS:
                return tuple(pairs)
            pairs.append((lower, _text(value)[:HEADER_CHARACTERS]))
    return tuple(pairs)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return value.decode("latin-1") if isinstance(value, bytes | bytearray) else "" if value is None else str(value)


@cache
def _generic() -> Sheet:
    return read_sheet(CATALOGUE / f"{GENERIC}.toml", ordered=True)


@cache
def _known() -> tuple[str, ...]:
    return tuple(names())


@lru_cache(maxsize=256)
def _catalogued(name: str) -> Profile:
    known = _known()
    if name not in known:
        near = _near(name, known)
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        fix = (
            f"{meant}Pass provider=Provider({name!r}, token_endpoint=…) or the path of a profile for one that is not in "
            "the catalogue; `tokenkeeper providers list` shows those that are."
        )
        raise ConfigurationError(
            f"the catalogue has no provider {name!r}. It is the operator's turn: {fix}",
            cause="unknown_provider",
            fix=fix,
        )
    return _profile(_generic() if name == GENERIC else read_sheet(CATALOGUE / f"{name}.toml", ordered=True), name)


def _near(name: str, known: Iterable[str]) -> list[str]:
    """Names like *name*, and those of profiles whose title has it: ``facebook`` is in Meta's."""
    titles = {each: (CATALOGUE / f"{each}.toml").read_text("utf-8").partition("\n")[0].casefold() for each in known}
    titled = [each for each, title in titles.items() if len(name) > 2 and name.casefold() in title]
    return titled or difflib.get_close_matches(name, titles, n=3, cutoff=0.6)


def _from_file(path: Path) -> Profile:
    try:
        stat = path.stat()
    except OSError as error:
        raise problem(
            str(path), f"cannot be read ({error.strerror})", "Give the path of a readable TOML file."
        ) from error
    return _cached_file(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _cached_file(path: Path, changed: int, size: int) -> Profile:  # noqa: ARG001 (they are part of the key)
    return _profile(read_sheet(path), str(path))


def _profile(sheet: Sheet, where: str) -> Profile:
    own = () if sheet.name == GENERIC else sheet.rules
    rules = Rules(own, _generic().rules, sheet.facts.get("errors_in_200", False))
    profile = Profile(name=sheet.name, rules=rules, **sheet.facts)
    check_timing(profile.timing.lease, profile.timing.deadline, where)
    return profile


def _laid_over(provider: Provider) -> Profile:
    """Lay a host's facts over the profile that it extends; of that, no endpoint and no issuer is left."""
    where = f"Provider {provider.name!r}"
    base = load_profile(GENERIC if provider.extends is None else provider.extends)
    facts = {name: value for name in _OWN_FACTS if (value := getattr(provider, name)) is not None}
    endpoints = {name: getattr(provider, name) for name in ENDPOINTS}
    check_facts({**facts, **endpoints}, where)
    if "rotation" in facts:
        facts["rotation"] = Rotation(facts["rotation"])
        for figure in ("grace_seconds", "lease_seconds", "deadline_seconds"):  # they belonged to the other rotation
            facts.setdefault(figure, None)
    laid_over = replace(base, name=provider.name, **facts, **endpoints)
    check_timing(laid_over.timing.lease, laid_over.timing.deadline, where)
    return laid_over


def _wanted(profile: Profile) -> set[str]:
    """The names of the parameters that the endpoints want."""
    return {name for each in ENDPOINTS for name in placeholders(getattr(profile, each))}


def _filled(profile: Profile, parameters: Mapping[str, str], where: str) -> Profile:
    known = _wanted(profile)
    for name, value in parameters.items():
        if name not in known:
            fix = f"Its parameters are: {', '.join(sorted(known))}." if known else "Leave parameters out."
            raise problem(where, f"the profile {profile.name} has no parameter {name!r}", fix)
        check_parameter(name, value, where)
        described = profile.parameters.get(name)
        if described and described.one_of and value not in described.one_of:
            raise problem(where, f"parameter {name} is {value!r}", f"Use one of: {', '.join(described.one_of)}.")
    if not known:
        return profile
    filled: dict[str, Any] = {each: fill(getattr(profile, each), parameters) for each in ENDPOINTS}
    for each, url in filled.items():
        if url is not None:
            check_endpoint(url, each, where)
    return replace(profile, **filled)
