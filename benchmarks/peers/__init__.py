"""8. The same expiry for tokenkeeper and its peers: who asks how often for one token, and is the grant there afterwards?

Each peer is wired as its documentation shows it (``peers/adapters``), in processes of its own, against the same fake
provider over HTTP in a process of its own: it rotates strictly (a refresh token presented twice ends the grant), and its
token endpoint takes 50 ms. All threads (or tasks) call at once, with a token that is known to have expired.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from harness import Effort, Figure

from peers.rounds import SHAPES, Round

ADAPTERS = (
    "tokenkeeper_sync",
    "tokenkeeper_async",
    "authlib_requests",
    "authlib_httpx2",
    "authlib_async",
    "requests_oauthlib",
    "google_auth",
    "requests_oauth2client",
    "httpx_auth",
)
LONGEST = 120.0
"""Seconds for one peer's trial."""


@dataclass(frozen=True)
class Outcome:
    """What came of a peer's rounds in one shape: medians, and how many grants were lost."""

    title: str
    package: str
    rounds: Sequence[Round]

    @property
    def shape(self) -> str:
        """Processes and calls at once in each."""
        return f"{self.rounds[0].processes} x {self.rounds[0].calls}"

    def median(self, name: str) -> float:
        """The median of the rounds' figure."""
        return statistics.median(getattr(each, name) for each in self.rounds)

    @property
    def lost(self) -> str:
        """Grants lost, of those that there were."""
        return f"{sum(each.lost for each in self.rounds)} of {len(self.rounds)}"

    @property
    def failed(self) -> str:
        """Calls that failed, of those that were made."""
        return f"{self.median('failed'):g} of {self.rounds[0].processes * self.rounds[0].calls}"

    @property
    def ratio(self) -> float:
        """The wall time over that of the same calls with a good token."""
        return statistics.median(each.seconds / each.seconds_without for each in self.rounds)


def run(effort: Effort) -> list[Figure]:
    """Measure all peers; the figure is the wall time's ratio, what counts is behind it."""
    outcomes = list(measure(effort))
    return [*_goals(outcomes), *map(_figure, sorted(outcomes, key=lambda outcome: outcome.shape))]


def measure(effort: Effort) -> Iterator[Outcome]:
    """Run the trials one after the other."""
    for name in ADAPTERS:
        command = [sys.executable, "-m", "peers.trial", name, str(effort.of(5, 2))]
        answer = subprocess.run(
            command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, check=True, timeout=LONGEST
        )
        trial = json.loads(answer.stdout)
        rounds = [Round(**each) for each in trial["rounds"]]
        for processes, _ in SHAPES:
            yield Outcome(trial["title"], trial["package"], [each for each in rounds if each.processes == processes])


def _goals(outcomes: Sequence[Outcome]) -> list[Figure]:
    ours = [each for outcome in outcomes if outcome.package == "tokenkeeper" for each in outcome.rounds]
    note = f"the worst of {len(ours)} expiries"
    return [
        Figure("tokenkeeper: token requests", max(each.token_requests for each in ours), "", 1, note),
        Figure("tokenkeeper: grants lost", sum(each.lost for each in ours), "", 0, f"of {len(ours)}"),
        Figure("tokenkeeper: failed calls", max(each.failed for each in ours), "", 0, note),
    ]


def _figure(outcome: Outcome) -> Figure:
    note = (
        f"token requests {outcome.median('token_requests'):g}, reuses {outcome.median('reuses'):g}, "
        f"grants lost {outcome.lost}, failed calls {outcome.failed}, {outcome.median('seconds') * 1000:.0f} ms"
    )
    return Figure(f"{outcome.shape} {outcome.title.replace('`', '')}", outcome.ratio, "x", note=note)


def markdown(effort: Effort) -> str:
    """Measure, and write the README's tables."""
    outcomes = list(measure(effort))
    packages = dict.fromkeys(outcome.package for outcome in outcomes)
    versions = ", ".join(f"{name} {version(name)}" for name in [*packages, "requests", "httpx2", "httpx"])
    rounds = len(outcomes[0].rounds)
    head = (
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {platform.system()} {platform.machine()}; "
        f"{rounds} expiries each. Versions: {versions}."
    )
    return "\n\n".join([head, *(_table(processes, calls, outcomes) for processes, calls in SHAPES)])


def _table(processes: int, calls: int, outcomes: Sequence[Outcome]) -> str:
    title = (
        "1 process, 50 threads or tasks" if processes == 1 else f"{processes} processes, {calls} threads or tasks each"
    )
    head = f"| {title} | token requests | reuses | grants lost | failed calls | wall time | over no expiry |"
    rows = [_row(outcome) for outcome in outcomes if outcome.rounds[0].processes == processes]
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def _row(outcome: Outcome) -> str:
    return (
        f"| {outcome.title} | {outcome.median('token_requests'):g} | {outcome.median('reuses'):g} "
        f"| {outcome.lost} | {outcome.failed} | {outcome.median('seconds') * 1000:.0f} ms | {outcome.ratio:.1f} x |"
    )
