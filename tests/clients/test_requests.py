"""KeeperAuth in requests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from http_loopback import Loopback, Reply

from tokenkeeper.clients.requests import KeeperAuth
from tokenkeeper.errors import ReauthenticationRequired

REFUSED = b'{"message": "expired"}'


@pytest.fixture
def session(keeper: Any) -> Iterator[requests.Session]:
    """A session whose requests all carry the member's token."""
    with requests.Session() as session:
        session.auth = KeeperAuth(keeper, "acme", "ann")
        yield session


def test_a_valid_token_is_sent_once(session: requests.Session, api: Loopback) -> None:
    """A call that is not refused is made once, with the token."""
    assert session.get(api.url + "/first").content == b"welcome"
    assert [asked.headers["authorization"] for asked in api.asked] == ["Bearer token-1"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_renewed_and_repeated(session: requests.Session, keeper: Any, api: Loopback, stream: bool) -> None:
    """The request is sent once more with the new token, the same body and the refusal's cookie."""
    response = session.post(api.url + "/second", data=b"payload", stream=stream)
    assert response.content == b"payload"
    assert [asked.headers["authorization"] for asked in api.asked] == ["Bearer token-1", "Bearer token-2"]
    assert api.asked[1].headers["cookie"] == "seen=yes"
    assert keeper.seen == [(401, REFUSED, True), (200, None, False)]
    assert [first.content for first in response.history] == [REFUSED]
    assert response.request.headers["Authorization"] == "Bearer token-2"


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_refusal_is_raised_and_readable(session: requests.Session, api: Loopback, stream: bool) -> None:
    """The error of the keeper comes out of the call, after two requests, with a response that can be read."""
    with pytest.raises(ReauthenticationRequired) as caught:
        session.get(api.url + "/never", stream=stream)
    assert len(api.asked) == 2
    assert isinstance(caught.value.response, requests.Response)
    assert caught.value.response.content == REFUSED


def test_what_is_not_about_the_token_passes(session: requests.Session, api: Loopback) -> None:
    """A 403 that the keeper lets pass is the caller's."""
    response = session.get(api.url + "/forbidden")
    assert (response.status_code, response.content, len(api.asked)) == (403, b"no", 1)


def test_a_redirect_at_home_keeps_the_token(session: requests.Session, keeper: Any, api: Loopback) -> None:
    """A refusal behind a redirect within the origin is repeated where it happened."""
    response = session.get(api.url + "/hop")
    assert response.content == b"welcome"
    assert [asked.path for asked in api.asked] == ["/hop", "/second", "/second"]


def test_a_redirect_after_the_repetition_has_the_new_token(
    session: requests.Session, keeper: Any, api: Loopback
) -> None:
    """Where the repetition is redirected, the next hop carries the new token, and is judged as repeated."""
    api.routes["/gate"] = lambda asked: (
        Reply(302, b"", (("Location", "/second"),))
        if asked.headers["authorization"] == "Bearer token-2"
        else Reply(401, REFUSED)
    )
    assert session.get(api.url + "/gate").content == b"welcome"
    assert [asked.headers["authorization"][-1] for asked in api.asked] == ["1", "2", "2"]
    api.routes["/gate"] = lambda asked: (
        Reply(302, b"", (("Location", "/never"),))
        if asked.headers["authorization"] == "Bearer token-3"
        else Reply(401, REFUSED)
    )
    with pytest.raises(ReauthenticationRequired):
        session.get(api.url + "/gate")


@pytest.mark.parametrize("header", ["Authorization", "X-Token"])
def test_a_stranger_is_not_told_and_not_believed(
    session: requests.Session, keeper: Any, api: Loopback, elsewhere: Loopback, header: str
) -> None:
    """Behind a redirect to another origin no token is sent, whatever its header; a refusal there says nothing of it."""
    keeper.header = header
    response = session.get(api.url + "/away")
    assert response.status_code == 401
    assert [status for status, *_ in keeper.seen] == [302]
    assert [header.lower() in asked.headers for asked in elsewhere.asked] == [False]


def test_a_stranger_behind_the_repetition_is_not_told(
    session: requests.Session, keeper: Any, api: Loopback, elsewhere: Loopback
) -> None:
    """The same where the repeated request is redirected."""
    keeper.header = "X-Token"
    api.routes["/gate"] = lambda asked: (
        Reply(302, b"", (("Location", f"{elsewhere.url}/landing"),))
        if asked.headers["x-token"] == "Bearer token-2"
        else Reply(401, REFUSED)
    )
    assert session.get(api.url + "/gate").status_code == 401
    assert ["x-token" in asked.headers for asked in elsewhere.asked] == [False]


def test_a_file_is_rewound(session: requests.Session, api: Loopback) -> None:
    """A seekable body is sent again from where it began."""
    file = io.BytesIO(b"0123456789")
    file.seek(3)
    assert session.post(api.url + "/second", data=file).content == b"3456789"
    assert [asked.body for asked in api.asked] == [b"3456789", b"3456789"]


def test_a_generator_is_not_sent_again(session: requests.Session, keeper: Any, api: Loopback) -> None:
    """A used-up body is no reason to send an empty one: the token is renewed, the refusal passes through."""
    response = session.post(api.url + "/second", data=iter([b"one", b"two"]))
    assert (response.status_code, response.content) == (401, REFUSED)
    assert keeper.seen == [(401, REFUSED, False)]
    assert keeper.generation == 2
    assert len(api.asked) == 1


def test_a_prepared_request_that_is_sent_again(session: requests.Session, keeper: Any, api: Loopback) -> None:
    """A later send of the same prepared request is not taken for the repetition of a refused one."""
    prepared = session.prepare_request(requests.Request("GET", api.url + "/second"))
    assert session.send(prepared).content == b"welcome"
    api.routes["/second"] = Reply(401, REFUSED)
    assert session.send(prepared).status_code == 401


def test_the_wrong_twin_is_told(async_keeper: Any, api: Loopback) -> None:
    """requests with the async keeper is a TypeError that names the right one."""
    with pytest.raises(TypeError, match="needs a TokenKeeper"):
        requests.get(api.url + "/first", auth=KeeperAuth(async_keeper, "acme", "ann"), timeout=9)


def test_it_is_a_value(keeper: Any, async_keeper: Any) -> None:
    """Two for the same member are equal, as requests' own are, and none shows more than whose it is."""
    one, same = KeeperAuth(keeper, "acme", "ann"), KeeperAuth(keeper, "acme", "ann")
    assert one == same
    assert hash(one) == hash(same)
    assert one not in (KeeperAuth(keeper, "acme", "Ann"), KeeperAuth(async_keeper, "acme", "ann"), "ann")
    assert repr(one) == "<KeeperAuth 'acme' 'ann'>"
