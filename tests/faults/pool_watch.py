"""Watches a pool's connections and the token requests of the same threads, and joins the two by time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event

from tokenkeeper import TokenKeeper
from tokenkeeper.core.effects import Redeemed


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when a thread had a connection, or a request under way (monotonic seconds)."""

    thread: int
    start: float
    end: float

    def overlaps(self, other: Span) -> bool:
        """Whether both were at the same time."""
        return self.start < other.end and other.start < self.end


class PoolWatch:
    """What the threads of a process had out of an engine's pool, and which token requests they made, and when."""

    def __init__(self, engine: Engine) -> None:
        self.connections: list[Span] = []
        self.requests: list[Span] = []
        self.most = 0
        self._engine = engine
        self._out: dict[int, tuple[int, float]] = {}
        event.listen(engine, "checkout", self._checkout)
        event.listen(engine, "checkin", self._checkin)

    def _checkout(self, _connection: Any, record: Any, _proxy: Any) -> None:
        self._out[id(record)] = (threading.get_ident(), time.monotonic())
        self.most = max(self.most, len(self._out))

    def _checkin(self, _connection: Any, record: Any) -> None:
        if (out := self._out.pop(id(record), None)) is not None:
            self.connections.append(Span(*out, time.monotonic()))

    def of(self, keeper: TokenKeeper, registration: str) -> None:
        """Note the token requests of a keeper: from the last look at the claim to the answer's last byte."""
        server = keeper._room.server(registration)
        redeem = server.redeem

        def noted(token: Any, which: int, deadline: float, confirm: Callable[[], bool]) -> Redeemed:
            begun: list[float] = []

            def confirmed() -> bool:
                go = confirm()
                begun.append(time.monotonic())
                return go

            answer = redeem(token, which, deadline, confirmed)
            self.requests.append(Span(threading.get_ident(), begun[0], time.monotonic()))
            return answer

        server.redeem = noted  # type: ignore[method-assign]

    def held_over_http(self) -> list[tuple[Span, Span]]:
        """Each connection that a thread had while its token request was under way."""
        return [
            (connection, request)
            for request in self.requests
            for connection in self.connections
            if connection.thread == request.thread and connection.overlaps(request)
        ]

    def during(self, start: float, end: float) -> list[Span]:
        """The connections that anybody had between two moments."""
        window = Span(0, start, end)
        return [connection for connection in self.connections if connection.overlaps(window)]
