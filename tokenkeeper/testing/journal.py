"""What has been: counts of requests, and a record of every token that was shown."""

from __future__ import annotations

from dataclasses import replace

from tokenkeeper.testing.ledger import GrantRecord
from tokenkeeper.testing.messages import Presentation, Response


class Journal:
    """Counters by surface, and the log. The provider's lock is held around every call."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._log: dict[int, Presentation] = {}
        self._numbers = 0

    def count(self, what: str) -> None:
        """One more."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def note(
        self,
        response: Response,
        *,
        at: float,
        surface: str,
        kind: str,
        token: str,
        verdict: str,
        grant: GrantRecord | None,
    ) -> Response:
        """Record a presentation; returns its answer, which now knows its record."""
        self._numbers += 1
        self._log[self._numbers] = Presentation(
            number=self._numbers,
            time=at,
            surface=surface,
            kind=kind,
            token=token,
            verdict=verdict,
            delivered=True,
            member=grant.member if grant else None,
            status=response.status,
        )
        return replace(response, presented=(self._numbers,))

    def lost(self, response: Response) -> None:
        """The answer did not reach the client."""
        for number in response.presented:
            if number in self._log:
                self._log[number] = replace(self._log[number], delivered=False)

    def presentations(self) -> list[Presentation]:
        """The log, in order."""
        return list(self._log.values())

    def reset(self) -> None:
        """Start from nothing; numbers go on."""
        self.counts.clear()
        self._log.clear()
