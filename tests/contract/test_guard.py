"""What guard does with each verdict, for both twins (DESIGN section 2)."""

from __future__ import annotations

import io

import httpx2
import pytest

from tokenkeeper import (
    AccountBlocked,
    ConfigurationError,
    GrantStatus,
    NotConnected,
    ProviderTrouble,
    ReauthenticationNeeded,
    ReauthenticationRequired,
    ScopeRequired,
    TemporarilyUnavailable,
    Turn,
)


def test_a_valid_token_is_used_and_the_response_comes_back(desk):
    """Nothing is refused: one call, no token request."""
    world = desk()
    world.connect()
    assert world.guarded()(member="ann").status_code == 200
    assert (world.provider.api_calls, world.provider.token_requests) == (1, 0)


def test_a_token_in_memory_needs_no_store(desk):
    """The second call finds the token in memory."""
    world = desk()
    world.connect()
    call = world.guarded()
    call(member="ann")
    world.does(world.another().forget("acme", "ann"))
    assert call(member="ann").status_code == 200
    world.clock.advance(61)
    with pytest.raises(NotConnected):
        call(member="ann")


def test_expired_is_renewed_and_repeated(desk, database_url):
    """Expired: our turn, on every database."""
    world = desk(database_url)
    world.connect()
    world.provider.expire("ann")
    assert world.guarded()(member="ann").status_code == 200
    assert (world.provider.api_calls, world.provider.token_requests) == (2, 1)
    assert world.grant().generation == 2
    assert world.told() == ["GrantConnected", "TokensRenewed"]
    assert world.recorded() == ["GrantConnected"]


def test_expired_by_the_clock_is_renewed_before_the_call(desk, database_url):
    """The clock spares the call that would be refused."""
    world = desk(database_url, provider={"access_lifetime": 1800})
    world.connect()
    assert world.guarded()(member="ann").status_code == 200
    assert (world.provider.api_calls, world.provider.token_requests) == (1, 1)


def test_an_aging_token_is_used_while_one_renewal_runs_in_the_background(desk):
    """Aging: all go on with the token they have."""
    world = desk(provider={"access_lifetime": 3700})
    world.connect()
    with world.provider.hold("token") as gate:
        assert world.guarded()(member="ann").status_code == 200
        gate.wait_until_held(1, timeout=10)
        assert world.provider.token_requests <= 1
    token = world.does(world.keeper.renew("acme", "ann"))
    assert token.generation >= 2


def test_expired_without_a_refresh_token_is_the_members(desk):
    """Expired, and nothing to renew with: the member's turn, the grant is marked, no token request."""
    world = desk(provider={"refresh_tokens": False})
    world.connect()
    world.provider.expire("ann")
    with pytest.raises(ReauthenticationRequired) as raised:
        world.guarded()(member="ann")
    assert raised.value.cause == "expired"
    assert raised.value.diagnosis.turn is Turn.MEMBER
    assert raised.value.prompt.cause == "expired"
    assert raised.value.response.status_code == 401
    assert world.grant().status is GrantStatus.NEEDS_REAUTHENTICATION
    assert world.provider.token_requests == 0
    assert world.told() == ["GrantConnected", "ReauthenticationNeeded"]


def test_a_marked_grant_is_not_called_for(desk, database_url):
    """The member's turn: no call, no token request, no second event, the same prompt."""
    world = desk(database_url, provider={"refresh_tokens": False, "access_lifetime": 1800})
    world.connect()
    call = world.guarded()
    for _ in range(3):
        with pytest.raises(ReauthenticationRequired) as raised:
            call(member="ann")
    assert raised.value.prompt == world.grant().prompt
    assert world.provider.api_calls == 0
    assert world.recorded() == ["GrantConnected", "ReauthenticationNeeded"]


def test_invalid_adopts_what_is_newer_in_the_store(desk):
    """Another worker has renewed: its token is used, none is spent."""
    world = desk()
    world.connect()
    call = world.guarded()
    call(member="ann")
    world.does(world.another().renew("acme", "ann"))
    world.provider.forget_access_token("fake-access-1")
    assert call(member="ann").status_code == 200
    assert world.provider.token_requests == 1
    assert world.grant().generation == 2


def test_invalid_is_renewed_where_nothing_is_newer(desk):
    """Invalid, cause unstated: ours first."""
    world = desk()
    world.connect()
    world.provider.forget_access_token("ann")
    assert world.guarded()(member="ann").status_code == 200
    assert (world.provider.api_calls, world.provider.token_requests) == (2, 1)


def test_revoked_ends_the_grant_where_it_means_the_grant(desk, database_url):
    """LinkedIn's revoked means the grant: one prompt, one event, the ciphertext is kept, no token is spent."""
    world = desk(database_url)
    world.connect()
    world.provider.revoke("ann")
    with pytest.raises(ReauthenticationRequired) as raised:
        world.guarded()(member="ann")
    assert raised.value.cause == "revoked"
    grant = world.grant()
    assert (grant.status, grant.generation, grant.has_refresh_token) == (GrantStatus.NEEDS_REAUTHENTICATION, 1, True)
    assert world.provider.token_requests == 0
    assert world.recorded() == ["GrantConnected", "ReauthenticationNeeded"]
    [event] = [event for event in world.events if isinstance(event, ReauthenticationNeeded)]
    assert (event.registration, event.member, event.cause) == ("acme", "ann", "revoked")


def test_a_young_token_called_revoked_is_tried_once_more(desk):
    """LinkedIn's replicas lag: a few seconds later the same token works, and nobody is told."""
    world = desk()
    world.connect()
    world.clock.advance(-3590)
    world.provider.script("revoked")
    started = world.clock()
    assert world.guarded()(member="ann").status_code == 200
    assert world.clock() - started >= 3
    assert world.told() == ["GrantConnected"]


def test_a_young_token_called_revoked_twice_is_revoked(desk):
    """The second refusal counts."""
    world = desk()
    world.connect()
    world.clock.advance(-3590)
    world.provider.script("revoked", times=2)
    with pytest.raises(ReauthenticationRequired):
        world.guarded()(member="ann")
    assert world.provider.api_calls == 2


def test_a_renewed_token_called_revoked_at_once_condemns_nobody(desk):
    """Expired, renewed, and the new token called revoked within its first minute: the weather, the grant stays."""
    world = desk()
    world.connect()
    world.provider.script("expired")
    world.provider.script("revoked")
    with pytest.raises(TemporarilyUnavailable) as raised:
        world.guarded()(member="ann")
    assert raised.value.retry_after
    assert world.grant().status is GrantStatus.ACTIVE
    assert world.guarded()(member="ann").status_code == 200


def test_revoked_elsewhere_tries_the_refresh_token_once(desk):
    """Where revoked may mean only the access token, the refresh token has a say."""
    world = desk(provider={"flavor": "generic", "access_lifetime": 86_400})
    world.connect()
    world.provider.script("revoked")
    assert world.guarded()(member="ann").status_code == 200
    assert world.provider.token_requests == 1


@pytest.mark.parametrize("name", ["empty", "bad_scheme"])
def test_empty_and_bad_scheme_are_the_operators(desk, name):
    """A configuration error with the fix; the grant is not touched, the member not nagged."""
    world = desk()
    world.connect()
    before = world.grant()
    world.provider.script(name)
    with pytest.raises(ConfigurationError) as raised:
        world.guarded()(member="ann")
    assert raised.value.fix
    assert raised.value.turn is Turn.OPERATOR
    assert raised.value.cause == name
    assert world.grant() == before
    assert world.told() == ["GrantConnected", "ConfigurationProblem"]
    assert (world.provider.api_calls, world.provider.token_requests) == (1, 0)


def test_one_configuration_problem_an_hour(desk):
    """The same problem is told once an hour, not once a call."""
    world = desk()
    world.connect()
    call = world.guarded()
    for _ in range(3):
        world.provider.script("empty")
        with pytest.raises(ConfigurationError):
            call(member="ann")
    world.clock.advance(3601)
    world.provider.script("empty")
    with pytest.raises(ConfigurationError):
        call(member="ann")
    assert world.recorded().count("ConfigurationProblem") == 2


@pytest.mark.parametrize("name", ["rate_limited", "not_found"])
def test_what_is_not_about_the_token_passes_as_the_same_object(desk, name):
    """429 and 404 are the caller's own business."""
    world = desk()
    world.connect()
    world.provider.script(name)
    assert world.guarded()(member="ann").status_code in (404, 429)
    assert world.told() == ["GrantConnected"]


def test_the_same_exception_passes(desk):
    """A raised 429 comes out as the object that was raised."""
    world = desk()
    world.connect()
    world.provider.script("rate_limited")
    with pytest.raises(httpx2.HTTPStatusError) as raised:
        world.guarded(raises=True)(member="ann")
    assert raised.value.response.status_code == 429
    assert raised.value.__cause__ is None


def test_the_users_own_errors_pass(desk):
    """What is no answer of a provider is none of our business."""
    world = desk()
    world.connect()
    boom = ZeroDivisionError("mine")

    if world.twin == "sync":

        @world.keeper.guard("acme")
        def call(token, member):
            raise boom

    else:

        @world.keeper.guard("acme")
        async def call(token, member):
            raise boom

    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as raised:
            world.does(call(member="ann"))
        assert raised.value is boom


@pytest.mark.parametrize("name", ["server_error", "downstream_token_check", "gateway_timeout"])
def test_trouble_of_the_provider_passes_with_an_incident(desk, name):
    """A 5xx leaves an incident record for the provider's support; the grant and the member are left alone."""
    world = desk()
    world.connect()
    world.provider.script(name)
    response = world.guarded()(member="ann")
    assert response.status_code >= 500
    [event] = [event for event in world.events if isinstance(event, ProviderTrouble)]
    incident = event.incident
    assert incident["status"] == response.status_code
    assert incident["method"] == "GET"
    assert incident["url"].startswith("https://provider.test/v2/userinfo")
    assert incident["client_id"] == world.registration.client_id
    assert "x-li-uuid" in {name.lower() for name, *_ in incident["response_headers"]} or "x-li-uuid" in str(incident)
    assert "fake-access" not in str(incident)
    assert world.grant().status is GrantStatus.ACTIVE


def test_missing_scopes_are_named(desk, database_url):
    """403: exactly what is missing, as a prompt in the row; the status stays."""
    world = desk(database_url)
    world.connect(scopes=["openid"])
    world.provider.script("scope")
    with pytest.raises(ScopeRequired) as raised:
        world.guarded()(member="ann")
    assert raised.value.prompt.scopes == ("profile",)
    grant = world.grant()
    assert (grant.status, grant.prompt.scopes) == (GrantStatus.ACTIVE, ("profile",))
    assert world.told() == ["GrantConnected", "ReauthenticationNeeded"]


def test_one_prompt_a_cause(desk):
    """The same missing scope is not told twice."""
    world = desk()
    world.connect(scopes=["openid"])
    call = world.guarded()
    opened = []
    for _ in range(2):
        world.provider.script("scope")
        with pytest.raises(ScopeRequired) as raised:
            call(member="ann")
        opened.append(raised.value.prompt)
    assert opened[0] == opened[1]
    assert world.recorded().count("ReauthenticationNeeded") == 1


def test_no_scope_is_missing_from_what_was_granted(desk):
    """403 with all registered scopes granted: the registration does not ask for what the call needs."""
    world = desk()
    world.connect()
    world.provider.script("scope")
    with pytest.raises(ConfigurationError):
        world.guarded()(member="ann")


def test_just_after_a_new_consent_a_missing_scope_passes_through(desk):
    """LinkedIn needs up to five minutes to act on a wider consent."""
    world = desk()
    world.connect(scopes=["openid"])
    world.does(world.keeper.save_tokens("acme", "ann", world.provider.issue(member="ann")))
    world.clock.advance(60)
    world.provider.script("scope")
    assert world.guarded()(member="ann").status_code == 403


def test_a_blocked_account_is_told_apart(desk):
    """Signing in again does not help: AccountBlocked, the row is unchanged but for the prompt."""
    world = desk()
    world.connect()
    world.provider.script("account_blocked")
    with pytest.raises(AccountBlocked) as raised:
        world.guarded()(member="ann")
    assert raised.value.prompt.cause == "account_blocked"
    assert world.grant().status is GrantStatus.ACTIVE


def test_step_up_brings_what_the_provider_asked_for(desk):
    """RFC 9470: the prompt carries acr_values, and the next authorization asks for them."""
    world = desk(provider={"flavor": "generic"})
    world.connect()
    challenge = 'Bearer error="insufficient_user_authentication", acr_values="urn:strong"'
    world.provider.refuse_next("api", status=401, headers={"WWW-Authenticate": challenge}, body="")
    with pytest.raises(ReauthenticationRequired) as raised:
        world.guarded()(member="ann")
    assert raised.value.prompt.acr_values == "urn:strong"
    assert world.grant().status is GrantStatus.ACTIVE
    begun = world.does(world.keeper.begin_authorization("acme", "ann"))
    assert "acr_values=urn%3Astrong" in begun.url


def test_retry_false_renews_and_passes_the_refusal_through(desk):
    """The next call has the new token."""
    world = desk()
    world.connect()
    world.provider.expire("ann")
    call = world.guarded(retry=False)
    assert call(member="ann").status_code == 401
    assert world.provider.token_requests == 1
    assert call(member="ann").status_code == 200


def test_a_used_up_stream_is_not_sent_again(desk):
    """Renewed, not repeated: half a body would be worse than a refusal."""
    world = desk()
    world.connect()
    world.provider.expire("ann")
    call = world.guarded()
    stream = io.BytesIO(b"payload")
    stream.read(3)
    assert call("ann", stream).status_code == 401
    assert (world.provider.api_calls, world.provider.token_requests) == (1, 1)
    assert call("ann", io.BytesIO(b"payload")).status_code == 200


def test_a_renewed_token_refused_again_is_not_renewed_again(desk):
    """At most two calls, one token request; the member is asked, the row is not marked."""
    world = desk()
    world.connect()
    world.provider.script("invalid", times=2)
    with pytest.raises(ReauthenticationRequired) as raised:
        world.guarded()(member="ann")
    assert raised.value.cause == "refused_after_renewal"
    assert (world.provider.api_calls, world.provider.token_requests) == (2, 1)
    assert world.grant().status is GrantStatus.ACTIVE
    assert world.guarded()(member="ann").status_code == 200


def test_a_token_just_renewed_is_not_renewed_again_when_refused(desk):
    """DESIGN 4.10: refused before its own expiry, at most once in 30 s."""
    world = desk()
    world.connect()
    call = world.guarded()
    world.provider.script("invalid", times=3)
    for _ in range(2):
        with pytest.raises(ReauthenticationRequired):
            call(member="ann")
    assert world.provider.token_requests == 1
    world.clock.advance(31)
    world.provider.script("invalid")
    assert call(member="ann").status_code == 200
    assert world.provider.token_requests == 2


def test_three_members_refused_after_renewal_are_the_providers_fault(desk):
    """The third member is not asked: TemporarilyUnavailable until a call succeeds."""
    world = desk()
    for member in ("ann", "ben", "cid"):
        world.connect(member)
    call = world.guarded()
    world.provider.script("invalid", times=6)
    for member in ("ann", "ben"):
        with pytest.raises(ReauthenticationRequired):
            call(member=member)
    with pytest.raises(TemporarilyUnavailable) as raised:
        call(member="cid")
    assert raised.value.cause == "refuses_everybody"
    assert "ProviderTrouble" in world.told()
    assert call(member="cid").status_code == 200
    world.clock.advance(31)
    world.provider.script("invalid", times=2)
    with pytest.raises(ReauthenticationRequired):
        call(member="ann")


def test_errors_are_chained_to_the_users_own(desk):
    """The HTTP library's error is the cause."""
    world = desk()
    world.connect()
    world.provider.revoke("ann")
    with pytest.raises(ReauthenticationRequired) as raised:
        world.guarded(raises=True)(member="ann")
    assert isinstance(raised.value.__cause__, httpx2.HTTPStatusError)
    assert raised.value.response is raised.value.__cause__


def test_no_grant_is_not_connected(desk):
    """The member's turn, with a prompt that names the registered scopes."""
    world = desk()
    with pytest.raises(NotConnected) as raised:
        world.guarded()(member="bob")
    assert raised.value.prompt.scopes == ("openid", "profile")
    assert raised.value.member == "bob"


def test_nested_guards_do_not_judge_each_others_answers(desk):
    """A refusal that carried another member's token is no evidence against ours."""
    world = desk()
    world.connect("ann")
    world.connect("ben")
    inner = world.guarded(retry=False)
    world.provider.expire("ben")

    if world.twin == "sync":

        @world.keeper.guard("acme")
        def outer(token, member):
            return inner(member="ben")

        result = outer(member="ann")
    else:
        client = httpx2.AsyncClient(transport=world.provider.async_transport())

        @world.keeper.guard("acme", retry=False)
        async def nested(token, member):
            return await client.get("https://provider.test/v2/userinfo", auth=token)

        @world.keeper.guard("acme")
        async def outer(token, member):
            return await nested(member="ben")

        result = world.does(outer(member="ann"))
    assert result.status_code == 401
    assert world.grant("ann").generation == 1
    assert world.grant("ben").generation == 2


def test_a_redacted_token_in_a_header_is_the_operators(desk):
    """str(token) in a header would be a puzzling 401."""
    world = desk()
    world.connect()
    client = httpx2.Client(transport=world.provider.transport())

    def fetch(token):
        return client.get("https://provider.test/v2/userinfo", headers={"Authorization": "Bearer " + str(token)})

    if world.twin == "sync":

        @world.keeper.guard("acme")
        def call(token, member):
            return fetch(token)

    else:

        @world.keeper.guard("acme")
        async def call(token, member):
            return fetch(token)

    with pytest.raises(ConfigurationError) as raised:
        world.does(call(member="ann"))
    assert raised.value.cause == "redacted_token"


def test_another_credential_in_the_header_is_the_operators(desk):
    """A netrc entry that overrides the header is found out."""
    world = desk()
    world.connect()
    client = httpx2.Client(transport=world.provider.transport())

    def fetch(token):
        return client.get("https://provider.test/v2/userinfo", auth=("netrc", "password"))

    if world.twin == "sync":

        @world.keeper.guard("acme")
        def call(token, member):
            return fetch(token)

    else:

        @world.keeper.guard("acme")
        async def call(token, member):
            return fetch(token)

    with pytest.raises(ConfigurationError) as raised:
        world.does(call(member="ann"))
    assert raised.value.cause in ("other_credential", "bad_scheme")
    assert world.grant().generation == 1


def test_an_sdks_own_result_is_read_through_answer(desk):
    """``answer=`` maps whatever a function returns or raises."""
    world = desk()
    world.connect()
    world.provider.expire("ann")
    client = httpx2.Client(transport=world.provider.transport())

    class SdkError(Exception):
        def __init__(self, response):
            super().__init__("sdk")
            self.seen = (response.status_code, dict(response.headers), response.content)

    def fetch(token):
        response = client.get("https://provider.test/v2/userinfo", auth=token)
        if response.status_code >= 400:
            raise SdkError(response)
        return response.json()

    def mapper(value):
        return getattr(value, "seen", None)

    if world.twin == "sync":

        @world.keeper.guard("acme", answer=mapper)
        def call(token, member):
            return fetch(token)

    else:

        @world.keeper.guard("acme", answer=mapper)
        async def call(token, member):
            return fetch(token)

    assert world.does(call(member="ann"))["sub"] == "ann"
    assert world.does(call(member="ann"))["sub"] == "ann"
    world.provider.script("rate_limited")
    with pytest.raises(SdkError):
        world.does(call(member="ann"))
    assert world.provider.token_requests == 1


def test_a_good_token_that_expires_again_at_once_asks_nobody(desk):
    """Renewed a moment ago, refused again: too soon for another renewal, which is the weather, not the member's turn."""
    world = desk()
    world.connect()
    call = world.guarded()
    world.provider.expire("ann")
    assert call(member="ann").status_code == 200
    world.provider.expire("ann")
    with pytest.raises(TemporarilyUnavailable) as raised:
        call(member="ann")
    assert raised.value.cause == "renewed_lately"
    assert 0 < raised.value.retry_after <= 30
    world.clock.advance(raised.value.retry_after + 1)
    assert call(member="ann").status_code == 200
    assert "ReauthenticationNeeded" not in world.told()
