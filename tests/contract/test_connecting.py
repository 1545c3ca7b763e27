"""Begin and finish: the member's way back, and everything that must not come through it (DESIGN sections 2 and 5)."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from tokenkeeper import (
    AuthorizationFailed,
    ConfigurationError,
    GrantStatus,
    InvalidInput,
    Prompt,
    ReauthenticationRequired,
    TemporarilyUnavailable,
    Turn,
)

GENERIC = {"flavor": "generic", "pkce": "required"}


def begin(world, member="ann", **options):
    return world.does(world.keeper.begin_authorization("acme", member, **options))


def finish(world, callback, member="ann", **options):
    return world.does(world.keeper.finish_authorization(callback, member=member, **options))


def test_a_member_connects(desk, database_url):
    """From the URL through sign-in and consent to a working grant, and to the host's own path."""
    world = desk(database_url)
    begun = begin(world, return_to="/settings?tab=1")
    assert 0 < (begun.expires_at.timestamp() - world.clock()) <= 600
    connection = finish(world, world.provider.consent(begun.url, member="ann"))
    assert connection.return_to == "/settings?tab=1"
    assert connection.grant.scopes == ("openid", "profile")
    assert connection.grant.has_refresh_token
    assert world.guarded()(member="ann").status_code == 200
    assert world.told() == ["GrantConnected"]


def test_pkce_is_used_unless_the_profile_says_none(desk):
    """S256 for everybody; LinkedIn's confidential web flow refuses a verifier."""
    world = desk(provider=GENERIC)
    begun = begin(world)
    query = parse_qs(urlsplit(begun.url).query)
    assert query["code_challenge_method"] == ["S256"]
    assert len(query["code_challenge"][0]) == 43
    assert finish(world, world.provider.consent(begun.url, member="ann")).grant.generation == 1
    linkedin = desk()
    assert "code_challenge" not in begin(linkedin).url


def test_a_prompt_is_closed_by_success(desk):
    """Revoked, prompted, connected again: the same grant, a newer generation, no prompt."""
    world = desk()
    world.connect()
    world.provider.revoke("ann")
    with pytest.raises(ReauthenticationRequired):
        world.guarded()(member="ann")
    connection = finish(world, world.provider.consent(begin(world).url, member="ann"))
    assert (connection.grant.status, connection.grant.generation, connection.grant.prompt) == (
        GrantStatus.ACTIVE,
        2,
        None,
    )
    assert world.guarded()(member="ann").status_code == 200


def test_granted_registered_and_missing_scopes_are_asked_for(desk):
    """Some providers revoke what is not asked for again."""
    world = desk()
    world.connect(scopes=["openid", "w_member_social"])
    prompt = Prompt("acme", "ann", "insufficient_scope", ("r_ads",), None)
    begun = begin(world, scopes=["email"], prompt=prompt)
    asked = set(parse_qs(urlsplit(begun.url).query)["scope"][0].split())
    assert asked == {"openid", "profile", "w_member_social", "email", "r_ads"}


def test_the_stored_prompt_is_used_when_none_is_passed(desk):
    """The member comes in a later request: the row knows what is missing."""
    world = desk()
    world.connect(scopes=["openid"])
    world.provider.script("scope")
    with pytest.raises(ReauthenticationRequired):
        world.guarded()(member="ann")
    assert "profile" in parse_qs(urlsplit(begin(world).url).query)["scope"][0]


@pytest.mark.parametrize(
    "where",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\evil",
        "evil",
        "",
        "/a\nb",
        "javascript:alert(1)",
        "/" + "x" * 3000,
        None,
    ],
)
def test_return_to_is_a_path_of_the_host(desk, where):
    """No open redirect; nothing is stored."""
    world = desk()
    with pytest.raises(InvalidInput) as raised:
        begin(world, return_to=where)
    assert raised.value.cause == "return_to"
    assert raised.value.turn is Turn.OPERATOR


def test_a_state_works_once(desk, database_url):
    """Replayed: refused, and the grant stays as it is."""
    world = desk(database_url)
    callback = world.provider.consent(begin(world).url, member="ann")
    finish(world, callback)
    before = world.grant()
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, callback)
    assert raised.value.cause == "state_replayed"
    assert raised.value.turn is Turn.MEMBER
    assert world.grant() == before


def test_a_state_is_consumed_before_the_code_is_sent(desk):
    """Even if the exchange fails, the state is used up."""
    world = desk()
    callback = world.provider.consent(begin(world).url, member="ann")
    world.provider.script("server_error", "token")
    with pytest.raises(TemporarilyUnavailable):
        finish(world, callback)
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, callback)
    assert raised.value.cause == "state_replayed"


def test_an_old_state_has_expired(desk, database_url):
    """Ten minutes."""
    world = desk(database_url)
    callback = world.provider.consent(begin(world).url, member="ann")
    world.clock.advance(601)
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, callback)
    assert raised.value.cause == "state_expired"


@pytest.mark.parametrize(
    ("callback", "cause"),
    [
        ("http://127.0.0.1:8000/callback?code=x", "state_missing"),
        ("http://127.0.0.1:8000/callback?code=x&state=never-issued", "state_unknown"),
        ("http://127.0.0.1:8000/callback?code=x&state=a&state=b", "callback_malformed"),
        ("http://[broken", "callback_malformed"),
        ("", "state_missing"),
    ],
)
def test_a_callback_without_a_good_state_connects_nobody(desk, callback, cause):
    """Missing, unknown, doubled, malformed."""
    world = desk()
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, callback)
    assert raised.value.cause == cause


def test_another_member_or_session_cannot_finish(desk):
    """The CSRF check; and a stranger's try does not use up the member's state."""
    world = desk()
    callback = world.provider.consent(begin(world, session="s-1").url, member="ann")
    for who, session in (("ben", "s-1"), ("ann", "s-2"), ("ann", None)):
        with pytest.raises(AuthorizationFailed) as raised:
            finish(world, callback, member=who, session=session)
        assert raised.value.cause == "state_foreign"
    assert finish(world, callback, session="s-1").grant.member == "ann"


def test_the_callbacks_path_is_the_registrations(desk):
    """Another path is another redirect URI."""
    world = desk()
    callback = world.provider.consent(begin(world).url, member="ann")
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, callback.replace("/callback?", "/elsewhere?"))
    assert raised.value.cause == "redirect_uri_mismatch"


def test_a_present_issuer_is_the_issuer(desk):
    """RFC 9207: the mix-up attack."""
    world = desk(provider={"flavor": "generic"})
    callback = world.provider.consent(begin(world).url, member="ann")
    assert "iss=" in callback
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, callback.replace("provider.test", "evil.test"))
    assert raised.value.cause == "issuer_mismatch"


def test_the_member_may_decline(desk):
    """access_denied: the member's turn, what was stored stays."""
    world = desk()
    world.connect()
    callback = world.provider.consent(begin(world).url, member="ann", approve=False)
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, callback)
    assert "denied" in raised.value.cause or "cancelled" in raised.value.cause
    assert world.grant().status is GrantStatus.ACTIVE


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("server_error", TemporarilyUnavailable),
        ("temporarily_unavailable", TemporarilyUnavailable),
        ("invalid_scope", ConfigurationError),
        ("unauthorized_client", ConfigurationError),
        ("something<script>", AuthorizationFailed),
    ],
)
def test_the_providers_error_says_whose_turn_it_is(desk, error, kind):
    """RFC 6749 section 4.1.2.1; the provider's text is escaped."""
    world = desk()
    state = parse_qs(urlsplit(begin(world).url).query)["state"][0]
    redirect = world.registration.redirect_uri
    with pytest.raises(kind) as raised:
        finish(world, f"{redirect}?state={state}&error={error}&error_description=x%0d%0ay")
    assert "\r" not in str(raised.value)


def test_neither_code_nor_error(desk):
    """A callback that says nothing."""
    world = desk()
    state = parse_qs(urlsplit(begin(world).url).query)["state"][0]
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, f"{world.registration.redirect_uri}?state={state}")
    assert raised.value.cause == "code_missing"


def test_another_account_is_refused(desk):
    """Somebody else signed in at the provider: the grant stays the first one's."""
    world = desk(provider={"flavor": "generic"})
    finish(world, world.provider.consent(begin(world).url, member="ann"))
    before = world.grant()
    callback = world.provider.consent(begin(world).url, member="somebody-else")
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, callback)
    assert raised.value.cause == "other_account"
    assert world.grant() == before
    again = finish(world, world.provider.consent(begin(world).url, member="ann"))
    assert again.grant.generation == 2


def test_a_consent_without_a_refresh_token_keeps_the_old_one_of_the_same_account(desk):
    """Google sends one only the first time."""
    world = desk(provider={"flavor": "generic", "access_lifetime": 1800})
    finish(world, world.provider.consent(begin(world).url, member="ann"))
    world.provider.refresh_tokens = False
    connection = finish(world, world.provider.consent(begin(world).url, member="ann"))
    assert connection.grant.generation == 2
    assert connection.grant.has_refresh_token


def test_a_refused_code_is_the_members(desk):
    """Used or expired codes: begin again."""
    world = desk()
    state = parse_qs(urlsplit(begin(world).url).query)["state"][0]
    with pytest.raises(AuthorizationFailed) as raised:
        finish(world, f"{world.registration.redirect_uri}?state={state}&code=never-issued")
    assert raised.value.cause == "code_refused"
    assert "never-issued" not in str(raised.value)


def test_wrong_client_credentials_at_the_code_are_the_operators(desk):
    """The member has done nothing wrong."""
    world = desk(registration={"client_secret": "wrong"})
    with pytest.raises(ConfigurationError) as raised:
        finish(world, world.provider.consent(begin(world).url, member="ann"))
    assert raised.value.fix


def test_the_second_secret_redeems_the_code(desk):
    """While a new secret is being rolled out."""
    world = desk(registration={"client_secret": ["old", "secret-1"]})
    assert finish(world, world.provider.consent(begin(world).url, member="ann")).grant.generation == 1


def test_a_registration_without_redirect_uri_cannot_begin(desk):
    """The operator's turn, naming it."""
    world = desk(registration={"redirect_uri": None})
    with pytest.raises(ConfigurationError) as raised:
        begin(world)
    assert raised.value.cause == "redirect_uri"
