"""Writes docs/providers.md from the catalogue: what is known of each provider, where from, and its rules in order.

``python tools/catalogue.py`` (or ``make docs``) writes it; ``make check`` says when it is not current.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tokenkeeper import providers
from tokenkeeper.cli.output import lasting, statuses
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.rules import Rule

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "providers.md"

HEAD = """\
# The providers

What tokenkeeper knows of each provider: written by `python tools/catalogue.py` (or `make docs`) from
`tokenkeeper/providers/*.toml`, where you find the same, and what each rule says and advises. `make check` says when this
page is not current. One more provider: [add it in ten minutes](adding-a-provider.md). The words are explained in
[refusals.md](refusals.md) and the [glossary](glossary.md).

**Rotation** is what becomes of a refresh token that was used: `none` (it stays), `by_use` (it dies when the new one is
first used), `grace` (it works on for a while), `strict` (single use), `unknown` (nobody has said); a renewal
[hangs on it](operating.md). **Bare 401 / 403** says how an answer without any further word is read. **Checked** is the day when
somebody last compared the facts with their source: providers change, so look at it. *Public code, index N* in a source is a
file of a public repository that a search found without its name.

A registration names its provider, and fills the profile's parameters: a tenant, shop or data center. They belong to the
registration, so members of two shops or data centers are members of two registrations (which may share client id and secret).

```python
from tokenkeeper import Registration

Registration("zoho-eu", provider="zoho", client_id="…", parameters={{"dc": "eu"}}, scopes=["ZohoCRM.modules.ALL"])
```

```toml
[registrations.zoho-eu]
provider = "zoho"
client_id = "…"
parameters = {{ dc = "eu" }}
scopes = ["ZohoCRM.modules.ALL"]
```

"""
GENERIC = """\

## After every provider's rules

These rules follow those of every provider, and are all there is for a provider that has no profile. What they leave open is
decided by the bare status: 401 is `invalid`, 403 `not_token`, 429 `rate_limited`, 5xx `provider_fault`.

"""
ENDPOINTS = ("token", "authorization", "revocation", "introspection", "userinfo")
_URL = re.compile(r"(https?://[^\s;,()|]+)")
ODD = {
    "header": ("Authorization", "the token goes into the header `{}`"),
    "scheme": ("Bearer", "its scheme is `{}`"),
    "token_request": ("form", "token requests are sent as {}"),
    "client_id_parameter": ("client_id", "the client id is sent as `{}`"),
    "token_answer": ("", "the tokens stand in the answer's member `{}`"),
}
"""The facts that are named only where they are not what they usually are."""


def main() -> None:
    """Write the page."""
    DOCUMENT.write_text(document(), encoding="utf-8")


def document() -> str:
    """The page."""
    profiles = [providers.load_profile(name) for name in providers.names() if name != providers.GENERIC]
    generic = providers.load_profile(providers.GENERIC).rules.generic
    return (
        HEAD
        + _table(
            (
                "provider", "rotation", "client", "access token", "refresh token", "parameters", "bare 401 / 403",
                "rules", "checked",
            ),
            map(_row, profiles),
        )
        + "".join(map(_section, profiles))
        + GENERIC
        + _rules(generic)
    )  # fmt: skip


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(profile: Profile) -> Iterator[str]:
    yield f"[{profile.name}](#{profile.name})<br>{_text(profile.title)}"
    grace = f" {_duration(profile.grace_seconds)}" if profile.grace_seconds else ""
    urls = _URL.findall(profile.rotation_source)[:1]
    known = " ".join([*(_linked(url, "source") for url in urls), str(profile.rotation_checked or "not checked")])
    yield f"{profile.rotation.value}{grace}" + (f"<br>{known}" if profile.rotation_source else "")
    yield profile.client_authentication.removeprefix("client_secret_")
    for name in ("access_token", "refresh_token"):
        seconds = profile.lifetimes.get(name)
        yield _duration(seconds) if seconds else ""
    yield ", ".join(f"`{name}`" for name in profile.parameters)
    yield " / ".join(f"`{_bare(profile, status)}`" for status in (401, 403))
    yield str(len(profile.rules.own))
    yield str(profile.checked or "no")


def _section(profile: Profile) -> str:
    facts = "".join(f"- {fact}\n" for fact in _facts(profile))
    notes = "".join(f"- {_text(note)}\n" for note in profile.notes)
    return f"\n## {profile.name}\n\n{_text(profile.title)}. {_checked(profile)}\n\n{facts}{notes}\n{_rules(profile.rules.own)}"


def _checked(profile: Profile) -> str:
    source = _sources(profile.source)
    if profile.checked is None:
        return f"Nobody has checked these facts; they are from {source}."
    return f"Compared with {source} on {profile.checked}."


def _facts(profile: Profile) -> Iterator[str]:
    urls = [(name, getattr(profile, f"{name}_endpoint")) for name in ENDPOINTS]
    known = [f"{name} `{url}`" for name, url in [*urls, ("issuer", profile.issuer)] if url]
    if known:
        yield f"Endpoints: {', '.join(known)}."
    for name, parameter in profile.parameters.items():
        default = f" Without it: `{parameter.default}`." if parameter.default else ""
        yield f"Parameter `{name}`: {_text(parameter.about)}{default}"
    separator = "a blank" if profile.scope_separator == " " else f"`{profile.scope_separator}`"
    pkce = "no PKCE" if profile.pkce == "none" else f"PKCE {profile.pkce}"
    yield f"Client: `{profile.client_authentication}`, {pkce}; scopes are parted by {separator}."
    odd = [
        text.format(getattr(profile, name))
        if getattr(profile, name) or name != "scheme"
        else "no scheme before the token"
        for name, (usual, text) in ODD.items()
        if getattr(profile, name) != usual
    ]
    if odd:
        yield f"{'; '.join(odd).capitalize() if odd[0][0].islower() else '; '.join(odd)}."
    for what, sent in (
        ("Authorization requests", profile.authorization_parameters),
        ("Token requests", profile.token_parameters),
    ):
        if sent:
            yield f"{what} carry {', '.join(f'`{name}={value}`' for name, value in sent.items())}."
    if profile.lifetimes:
        yield f"Lifetimes: {', '.join(f'{_words(name)} {_duration(seconds)}' for name, seconds in profile.lifetimes.items())}."
    yield f"Rotation: {_rotation(profile)}"
    over = "all is over" if profile.revocation == "grant" else "the refresh token is tried once"
    yield f"Where the API says *revoked*, {over}. A bare 401 is `{_bare(profile, 401)}`, a bare 403 `{_bare(profile, 403)}`."
    if profile.errors_in_200:
        yield "Errors hide in answers of 200: these are read, too."


def _rotation(profile: Profile) -> str:
    grace = f" for {_duration(profile.grace_seconds)}" if profile.grace_seconds else ""
    if not profile.rotation_source:
        return f"{profile.rotation.value}{grace}."
    when = f"looked at on {profile.rotation_checked}" if profile.rotation_checked else "nobody has checked it"
    return f"{profile.rotation.value}{grace}. Known from {_sources(profile.rotation_source)}; {when}."


def _rules(rules: Iterable[Rule]) -> str:
    rows = (
        (
            f"`{rule.name.partition('/')[2]}`",
            f"{rule.surface.value} {statuses(rule.statuses)}",
            "<br>".join(_code(str(condition)) for condition in rule.conditions),
            f"`{rule.verdict.value}`",
            _sources(rule.source),
        )
        for rule in rules
    )
    return _table(("rule", "for", "asks", "verdict", "source"), rows)


def _bare(profile: Profile, status: int) -> str:
    """What an answer of that status is that says nothing."""
    return providers.diagnose(status, (), "", provider=profile.name).verdict.value


def _duration(seconds: float) -> str:
    """A duration in its largest unit alone."""
    figure, _, words = lasting(seconds).partition(" (")
    return words.rstrip(")") or f"{figure} s"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(text: str) -> str:
    """Text as Markdown shows it: nothing in it is markup, and it may stand in a table; `code` stays."""
    parts = re.split(r"(`[^`]*`|https?://\S+)", " ".join(text.split()))
    return "".join(
        part.replace("|", r"\|") if part[:1] == "`" or _URL.match(part) else re.sub(r"([\\*_<>\[\]|])", r"\\\1", part)
        for part in parts
    )


def _code(text: str) -> str:
    """Text as code that may stand in a table."""
    return f"`{text.replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _sources(text: str) -> str:
    """A source, its URLs as links that show their host."""
    parts = _URL.split(text)
    return "".join(_linked(part) if part.startswith("http") else _text_between(part) for part in parts)


def _text_between(part: str) -> str:
    """Text beside a link, the blanks at its ends kept."""
    if not part.strip():
        return part
    before, after = " " * part[:1].isspace(), " " * part[-1:].isspace()
    return f"{before}{_text(part)}{after}"


def _linked(url: str, text: object = "") -> str:
    """A link; what is no URL stays text."""
    if not url.startswith("http"):
        return _text(str(text or url))
    return f"[{text or urlsplit(url).hostname}]({url})"


if __name__ == "__main__":
    main()
