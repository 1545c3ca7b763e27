"""What a trial does, and what comes of each expiry."""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = ((1, 50), (4, 10))
"""Processes, and calls at once in each."""


@dataclass(frozen=True)
class Round:
    """What came of one expiry."""

    processes: int
    calls: int
    token_requests: int
    reuses: int
    lost: bool
    failed: int
    seconds: float
    seconds_without: float
    error: str
