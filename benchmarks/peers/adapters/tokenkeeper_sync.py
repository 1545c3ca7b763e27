"""tokenkeeper with requests, after "Install" and "Deploying" of its README."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import requests

from peers.place import Place
from tokenkeeper import AccessToken, TokenKeeper
from tokenkeeper.crypto import generate_key
from tokenkeeper.testing import FakeProvider

TITLE = "tokenkeeper `TokenKeeper`"
PACKAGE = "tokenkeeper"
NAME = "acme"

os.environ.setdefault("TOKENKEEPER_KEYS", generate_key("bench"))  # before the workers: they share it


@cache
def keeper_of(place: Place) -> TokenKeeper:
    """The process's one keeper."""
    registration = FakeProvider(rotation="strict").registration(NAME, place.base_url)
    url = f"sqlite:///{place.folder / 'tokens.db'}"
    return TokenKeeper(url, registrations=[registration], spill_directory=place.folder / f"spill-{os.getpid()}")


@contextmanager
def connect(place: Place, member: str) -> Iterator[Callable[[], int]]:
    """One keeper and one session a process."""
    with requests.Session() as session:

        @keeper_of(place).guard(NAME)
        def call(token: AccessToken, member: str) -> requests.Response:  # noqa: ARG001 - guard looks for it
            return session.get(place.api, auth=token)

        yield lambda: call(member=member).status_code


def seed(place: Place, member: str, token: dict[str, Any]) -> None:
    """Connect the member with tokens that are there already."""
    keeper_of(place).create_schema()
    keeper_of(place).save_tokens(NAME, member, token)


def expire(place: Place, member: str) -> None:
    """Let the row be an hour older."""
    grants = "UPDATE tokenkeeper_grant SET access_expires_at = access_expires_at - 3700000000 WHERE member = ?"
    with keeper_of(place).engine.begin() as connection:
        connection.exec_driver_sql(grants, (member.encode(),))
