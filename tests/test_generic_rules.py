"""The generic rules speak of standards and in words that any server may use: nothing of a single provider is in them.

Whatever a generic rule asks for must be on one of the lists below. They are reviewed: a code goes on the list with the
standard that defines it, a word if it is one that servers of any make use. What is a code of one provider belongs in that
provider's profile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import pytest

from tokenkeeper import providers
from tokenkeeper.core.rules import Condition, InChallenge, InHeader, InJson, InWords, Rule, wanted
from tokenkeeper.model import Verdict


def listed(words: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(words.split())


STANDARD_CODES = {
    "invalid_request": "RFC 6749 section 5.2",
    "invalid_client": "RFC 6749 section 5.2",
    "invalid_grant": "RFC 6749 section 5.2",
    "unauthorized_client": "RFC 6749 section 5.2",
    "unsupported_grant_type": "RFC 6749 section 5.2",
    "invalid_scope": "RFC 6749 section 5.2",
    "access_denied": "RFC 6749 section 4.1.2.1",
    "server_error": "RFC 6749 section 4.1.2.1",
    "temporarily_unavailable": "RFC 6749 section 4.1.2.1",
    "invalid_token": "RFC 6750 section 3.1",
    "insufficient_scope": "RFC 6750 section 3.1",
    "unsupported_token_type": "RFC 7009 section 2.2.1",
    "slow_down": "RFC 8628 section 3.5",
    "invalid_target": "RFC 8707 section 2",
    "use_dpop_nonce": "RFC 9449 section 8",
    "invalid_dpop_proof": "RFC 9449 section 5",
    "insufficient_user_authentication": "RFC 9470 section 3",
    "interaction_required": "OpenID Connect Core 1.0 section 3.1.2.6",
    "login_required": "OpenID Connect Core 1.0 section 3.1.2.6",
    "consent_required": "OpenID Connect Core 1.0 section 3.1.2.6",
    "account_selection_required": "OpenID Connect Core 1.0 section 3.1.2.6",
}
SCHEMES = {
    "bearer": "RFC 6750",
    "dpop": "RFC 9449",
    "basic": "RFC 7617",
    "digest": "RFC 7616",
    "negotiate": "RFC 4559",
    "ntlm": "IANA: HTTP authentication schemes have none for it, servers of many makes do",
}
NEARLY_STANDARD = {
    "invalidtoken": "invalid_token without its hyphen, as API gateways of several makes write it",
}
MEMBERS = listed(
    "access_token error error_description error_uri errors message msg detail title code retry_after scope"
)
"""The members of a body: those of the standards (RFC 6749, RFC 9457), and what servers of all makes call a message."""
PARAMETERS = listed("scheme error error_description scope claims acr_values max_age realm algs")
"""The parameters of a challenge (RFC 6750, RFC 9449, RFC 9470, OpenID Connect Core)."""

WORDS = listed(
    """
    2 a absent accept accepted access account action activation active allow allowed already an and anonymous
    antiforgery api app application approval are assertion aud audience audiences auth authenticated authentication
    authorization authorize authorized available bad banned be bearer because been blacklisted blocked by call calls
    captcha card cart certificate challenge change claim claims client code confirmation confirmed connected
    connector consent contain context continuation could credential credentials crypto csrf cursor daily deactivated
    deauthorized decrypted deleted delta denied detected device did disabled does doesn download dpop email empty
    enable enabled endpoint enough enrollment exceeded exchanged exist exp expected expired expiry factor failed
    field find following for format found fresh from full given grant granted has have header id idempotency in
    inactive included incorrect insufficient integration intended interaction invalid invitation invite is jwt key
    lack lacks license lifetime limit limited link locked login loop magic malformed many match may mechanism mfa
    might minute mismatch missing multi must needs next no non nonce not null oauth of offset one only or order out
    outside over padding page pagination parameter parameters password payload payment per permission permissions
    prefix present privileges promo proof provide provided public purchase push query quota rate recaptcha recovery
    redeemed refresh refreshed registration rejected replayed request requests required requires reset restricted
    resume reuse reused revoked room schema scheme scope scopes scroll second secret security segments service
    session set share sign signature signing signup single specified start state step string subscription sufficient
    supplied supported suspended sync t task temporarily terms the this throttled throttling time timed to token
    tokens too two type unauthorized unavailable unexpected unknown unlock unsubscribe unsupported up upload usage
    use used user using valid validate validation value verification verify via volume was webhook were with without
    wrong xsrf you your
    """
) | listed(
    """
    about after again also any anymore as at before between both but cannot contact did do don either else ever first get had
    her his how if into its it last later least less made make makes more most much my neither never new nothing old once other
    our own please previously same send sent should since so sorry still such than that them then there these they those through
    too try until us very we were what when where which while who will within would yet
    """
)
"""The words of the phrases, each looked at: of the language, or of the trade (jwt, dpop, mfa, csrf)."""
GLUED_WORDS = {
    "interactionrequired": "OpenID Connect's error, written as one word",
    "jwtexpired": "JWTExpired: a library's word (jose), whatever server uses it",
    "quotaexceeded": "quotaExceeded and QuotaExceeded: so several providers say it",
    "ratelimited": "RateLimited and ratelimited: so several providers say it",
    "ratelimitexceeded": "rateLimitExceeded: so several providers say it",
    "unauthorizederror": "UnauthorizedError: a library's word (express-jwt), whatever server uses it",
}
"""Words that are none, with the reason why they are no provider's own."""

PRODUCTS = listed(
    """
    facebook instagram threads whatsapp twitter azure entra aad aadsts msal graph jira confluence trello bitbucket youtube gmail
    workspace firebase apigee aws sigv4 alexa intuit okta netsuite marketo dynamics sharepoint teams outlook onedrive kong
    apple icloud oracle sap adobe figma canva asana toggl calendly typeform webflow wix squarespace woocommerce bigcommerce
    steam epic garmin polar oura whoop dexcom plaid wise revolut coinbase binance kraken uber lyft line kakao naver wechat
    weibo baidu vk yandex mailru snapchat pinterest tumblr flickr vimeo soundcloud deezer tidal patreon kickstarter
    """
)
"""Names that no catalogue's file has yet, or that stand in a profile's title only."""


def names() -> frozenset[str]:
    """The names of all providers and products that are known here."""
    return PRODUCTS | {word for name in providers.names() if name != "generic" for word in name.split("-")}


def values(conditions: Iterable[Condition]) -> Iterator[tuple[str, str]]:
    """Every value that conditions ask for, and where; phrases apart."""
    for condition in conditions:
        asked: Mapping[str, object] = {}
        if isinstance(condition, InChallenge):
            asked = {f"challenge {name}": values for name, values in condition.parameters.items()}
        elif isinstance(condition, InHeader):
            asked = {f"header {condition.name}": condition.values}
        elif isinstance(condition, InJson):
            asked = {f"json {condition.path}": condition.values}
        for where, of in asked.items():
            yield from ((where, value) for value in (sorted(of) if isinstance(of, frozenset) else ()))


def codes_of_one_provider() -> dict[str, str]:
    """The values that exactly one profile asks for: a code that no other provider is known to use."""
    asked: dict[str, set[str]] = {}
    for name in providers.names():
        for rule in providers.load_profile(name).rules.own:
            for _, value in values(rule.conditions):
                asked.setdefault(value, set()).add(name)
    return {value: next(iter(who)) for value, who in asked.items() if len(who) == 1}


def complaints(rules: Iterable[Rule]) -> Iterator[str]:
    """Say what in generic rules is not generic."""
    own, known = codes_of_one_provider(), names()
    reviewed = STANDARD_CODES.keys() | NEARLY_STANDARD.keys() | SCHEMES.keys()
    for rule in rules:
        yield from (f"{rule.name} has the name {word}" for word in rule.name.split("/")[-1].split("-") if word in known)
        for where, value in values(rule.conditions):
            if value not in reviewed:
                yield f"{rule.name}: {where}: {value!r} is no code of a standard"
            if value in own and value not in STANDARD_CODES and value not in SCHEMES:
                yield f"{rule.name}: {where}: {value!r} is a code of {own[value]} alone"
        for condition in rule.conditions:
            yield from (f"{rule.name}: {each}" for each in _complaints(condition, known))


def _complaints(condition: Condition, known: frozenset[str]) -> Iterator[str]:
    if isinstance(condition, InHeader):
        yield f"a header ({condition.name}): no standard has one that says what is wrong"
    if isinstance(condition, InJson) and condition.path not in MEMBERS:
        yield f"json {condition.path!r}: a member that only some servers have"
    if isinstance(condition, InChallenge):
        yield from (
            f"challenge {name!r}: a parameter of no standard" for name in condition.parameters.keys() - PARAMETERS
        )
    if isinstance(condition, InWords):
        if condition.place not in {"said", "body", "challenge.error_description"}:
            yield f"words of {condition.place!r}: a place that only some servers have"
        for phrase in condition.phrases:
            words = phrase.removeprefix("= ").replace("*", " ").split()
            if not re.fullmatch(r"(?:= )?[a-z0-9]+(?: (?:\* )?[a-z0-9]+)*", phrase):
                yield f"the phrase {phrase!r} is not of words in lower case, a blank between them"
            for word in words:
                if word not in WORDS and word not in GLUED_WORDS:
                    yield f"the phrase {phrase!r}: {word!r} is not on the list of words"
                if word in known:
                    yield f"the phrase {phrase!r} names {word}"


def test_the_generic_rules_hold_nothing_of_one_provider() -> None:
    """Codes of standards, words of the language, no name, no member or header that one provider has."""
    assert list(complaints(providers.load_profile("generic").rules.generic)) == []


def test_the_lists_of_codes_hold_no_more_than_is_used() -> None:
    """A code that no rule asks for any more leaves its list; no name is on the list of words."""
    asked = {value for rule in providers.load_profile("generic").rules.generic for _, value in values(rule.conditions)}
    assert (STANDARD_CODES.keys() | SCHEMES.keys() | NEARLY_STANDARD.keys()) - asked == set()
    assert not names() & WORDS


@pytest.mark.parametrize(
    ("condition", "complaint"),
    [
        (InJson("error", wanted("invalid_auth")), "no code of a standard"),
        (InJson("error", wanted(65601)), "no code of a standard"),
        (InJson("code", wanted(190)), "no code of a standard"),
        (InJson("code", wanted("EXPIRED_ACCESS_TOKEN")), "is a code of linkedin alone"),
        (InJson("serviceErrorCode", True), "a member that only some servers have"),
        (InJson("error.error_subcode", False), "a member that only some servers have"),
        (InHeader("x-amzn-errortype", True), "a header (x-amzn-errortype)"),
        (InChallenge({"error": wanted("insufficient_claims")}), "no code of a standard"),
        (InChallenge({"authorization_uri": True}), "a parameter of no standard"),
        (InChallenge({"scheme": wanted("zoho-oauthtoken")}), "no code of a standard"),
        (InWords("said", ("aadsts700082",)), "not on the list of words"),
        (InWords("said", ("error 65604",)), "'65604' is not on the list of words"),
        (InWords("said", ("EXPIRED_ACCESS_TOKEN",)), "not of words in lower case"),
        (InWords("said", ("expired_access_token",)), "not of words in lower case"),
        (InWords("said", ("TokenExpired",)), "not of words in lower case"),
        (InWords("said", ("linkedin token expired",)), "names linkedin"),
        (InWords("said", ("token * of facebook",)), "names facebook"),
        (InWords("said", ("invalidauthenticationtoken",)), "not on the list of words"),
        (InWords("error.message", ("token expired",)), "a place that only some servers have"),
        (InWords("header.x-error", ("token expired",)), "a place that only some servers have"),
    ],
)  # fmt: skip
def test_a_rule_of_one_provider_is_noticed(condition: Condition, complaint: str) -> None:
    """A code, a member, a header, a name or a number of one provider in a generic rule fails the first test."""
    rule = Rule("generic/broken", Verdict.EXPIRED, "m", "f", "s", conditions=(condition,))
    assert complaint in " | ".join(complaints([rule]))


def test_a_rule_named_after_a_provider_is_noticed() -> None:
    """Nor is there a generic rule for a provider by name."""
    rule = Rule("generic/slack-expired", Verdict.EXPIRED, "m", "f", "s")
    assert list(complaints([rule])) == ["generic/slack-expired has the name slack"]
