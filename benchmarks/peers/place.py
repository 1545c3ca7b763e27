"""Where a trial takes place: the provider's address, a folder, and the row that the peers keep their tokens in."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLIENT_ID, CLIENT_SECRET = "client-1", "secret-1"
"""The fake provider's one client."""


@dataclass(frozen=True)
class Place:
    """What an adapter needs to know."""

    base_url: str
    folder: Path

    @property
    def token_endpoint(self) -> str:
        """Where tokens are renewed."""
        return f"{self.base_url}/token"

    @property
    def api(self) -> str:
        """What is called."""
        return f"{self.base_url}/api/me"


class Rows:
    """The store that the peers' save callbacks write to: one row a member in SQLite, durable (WAL, synchronous=FULL)."""

    def __init__(self, place: Place) -> None:
        self._path = place.folder / "rows.db"

    def _connect(self) -> contextlib.closing[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        return contextlib.closing(connection)

    def create(self) -> None:
        """Make the table."""
        with self._connect() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS token (member TEXT PRIMARY KEY, token TEXT NOT NULL)")

    def save(self, member: str, token: dict[str, Any]) -> None:
        """Write a member's tokens over what is there."""
        with self._connect() as connection:
            connection.execute("INSERT OR REPLACE INTO token VALUES (?, ?)", (member, json.dumps(token)))

    def load(self, member: str) -> dict[str, Any]:
        """Read a member's tokens."""
        with self._connect() as connection:
            row = connection.execute("SELECT token FROM token WHERE member = ?", (member,)).fetchone()
        token: dict[str, Any] = json.loads(row[0])
        return token


def seed(place: Place, member: str, token: dict[str, Any]) -> None:
    """Store the answer of a token endpoint as a row with ``expires_at``."""
    rows = Rows(place)
    rows.create()
    rows.save(member, {**token, "expires_at": _expires_at(token)})


def expire(place: Place, member: str) -> None:
    """Let the row be an hour older."""
    rows = Rows(place)
    rows.save(member, {**rows.load(member), "expires_at": int(time.time()) - 60})


def _expires_at(token: dict[str, Any]) -> int:
    lifetime = token.get("expires_in") or -60
    return int(time.time()) + lifetime
