"""The demo's stage: a scenario is played on a scene, which notes what came of it, and compared with its promise.

The counts are the stand-in's own; what a number cannot say is expected in words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import httpx2

from tokenkeeper.cli.demo_host import REGISTRATION, Host
from tokenkeeper.core.redaction import safe_text
from tokenkeeper.errors import ConfigurationError, MemberActionRequired, TokenKeeperError
from tokenkeeper.model import Grant, GrantStatus

BODY = 200
"""Characters of a refusal's body that are shown."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a scenario promises, and what was seen. The first three are None where nothing was refused."""

    status: int | None = None
    verdict: str | None = None
    turn: str | None = None
    outcome: str | None = None
    api_calls: int = 0
    token_requests: int = 0


@dataclass
class Scene:
    """One scenario under way, with a member of its own."""

    host: Host
    member: str
    before: Grant | None = None
    error: TokenKeeperError | None = None
    answer: httpx2.Response | None = None
    facts: Facts = field(default_factory=Facts)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.provider, self.keeper = self.host.provider, self.host.keeper

    def begin(self) -> None:
        """From here on everything counts."""
        self.before = self.grant
        self.host.answers.clear()
        self.host.news.clear()
        self.host.asked.clear()
        self.provider.reset_counters()

    def expect(self, kept: object, promise: str) -> None:
        """Note a promise that was not kept."""
        if not kept:
            self.broken.append(promise)

    def attempt(self) -> tuple[httpx2.Response | None, TokenKeeperError | None]:
        """Call the guarded function: its response, or our error."""
        try:
            return self.host.profile(member=self.member), None
        except TokenKeeperError as error:
            return None, error

    def call(self) -> None:
        """Make the scenario's call and note what came of it."""
        self.answer, self.error = self.attempt()
        match self.error:
            case None:
                self.note(self.came_of([self.answer]))
            case MemberActionRequired():
                self.note("prompted")
            case ConfigurationError():
                self.note("configuration_error")
            case other:
                self.note(type(other).__name__)

    def came_of(self, answers: Sequence[object]) -> str:
        """What became of calls that returned: passed through, or good after a renewal here or elsewhere."""
        if not all(self.good(answer) for answer in answers):
            return "passed_through"
        return "renewed" if self.provider.token_requests else "adopted"

    def good(self, answer: object) -> bool:
        """Whether an answer is the member's own profile."""
        return isinstance(answer, httpx2.Response) and answer.status_code == 200 and answer.json()["sub"] == self.member

    @property
    def grant(self) -> Grant:
        """The member's grant as it stands."""
        return self.keeper.grant(REGISTRATION, self.member)

    @property
    def refusal(self) -> httpx2.Response | None:
        """The first refusal that the guarded function saw."""
        return next((answer for answer in self.host.answers if answer.status_code >= 400), None)

    @property
    def said(self) -> str | None:
        """What the provider said: status and body, in one line."""
        refusal = self.refusal
        return None if refusal is None else f"{refusal.status_code} {safe_text(refusal.text, BODY)}"

    def note(self, outcome: str) -> None:
        """Take down what was seen up to here; the counts are the stand-in's."""
        refusal = self.refusal
        diagnosis = None if refusal is None else self.keeper.diagnose(REGISTRATION, refusal)
        turn = self.error.turn if self.error else diagnosis.turn if diagnosis else None
        self.facts = Facts(
            status=None if refusal is None else refusal.status_code,
            verdict=None if diagnosis is None else str(diagnosis.verdict),
            turn=None if turn is None else str(turn),
            outcome=outcome,
            api_calls=self.provider.api_calls,
            token_requests=self.provider.token_requests,
        )

    def expect_untouched(self) -> None:
        """Neither the grant nor its member is to be bothered by what the weather or the operator did."""
        self.expect(self.grant == self.before, "the grant is not touched")
        self.expect(not self.host.asked, "the member is not asked to sign in")

    def expect_prompt(self, status: GrantStatus, cause: str) -> None:
        """The member is asked once: in the grant's row, by the callback, in the event table and by the error."""
        grant, asked = self.grant, self.host.asked
        kept = list(self.keeper.events(kind="ReauthenticationNeeded", registration=REGISTRATION, member=self.member))
        prompt = self.error.prompt if isinstance(self.error, MemberActionRequired) else None
        self.expect(grant.status is status, f"the grant is {status}")
        self.expect(self.before and grant.id == self.before.id, "the grant's row is kept")
        self.expect(grant.prompt and grant.prompt.cause == cause, f"the row has a prompt: {cause}")
        self.expect([event.cause for event in asked] == [cause], f"the callback hears of it once: {cause}")
        self.expect([event["id"] for event in kept] == [event.id for event in asked], "the event table has the event")
        self.expect(prompt == grant.prompt, "the error carries the prompt")

    def expect_silence(self) -> None:
        """A dead grant is not hammered, and its member not asked twice."""
        calls = self.provider.api_calls
        _, error = self.attempt()
        self.expect(isinstance(error, MemberActionRequired), "a second call says the same")
        self.expect(self.provider.api_calls == calls, "a second call does not reach the provider")
        self.expect(len(self.host.asked) == 1, "the member is asked once")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario: its stable name, what it is about, what it promises, and how it goes."""

    name: str
    title: str
    promise: Facts
    play: Callable[[Scene], str]
    """Plays it; returns what happened, in words."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a scenario. ``crash`` is the type of an error that no scenario expects."""

    scenario: Scenario
    facts: Facts
    said: str | None
    happened: str
    broken: tuple[str, ...]
    crash: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything was as promised."""
        return not self.broken and self.crash is None

    def public(self) -> dict[str, Any]:
        """The scenario as JSON shows it."""
        return {"name": self.scenario.name} | {one.name: getattr(self.facts, one.name) for one in fields(Facts)}


def perform(scenario: Scenario, host: Host) -> Result:
    """Play a scenario and compare what was seen with what was promised. Never raises for what goes wrong in it."""
    scene = Scene(host, member=scenario.name)
    try:
        happened = scenario.play(scene)
    except Exception as error:  # noqa: BLE001 - the other scenarios have their say, too
        return Result(scenario, Facts(), None, "", tuple(scene.broken), type(error).__name__)
    finally:
        host.proxy = None
        host.provider.clear_script()
        host.provider.release_all()
    for one in fields(Facts):
        seen, promised = getattr(scene.facts, one.name), getattr(scenario.promise, one.name)
        scene.expect(seen == promised, f"{one.name.replace('_', ' ')} is {promised}, not {seen}")
    return Result(scenario, scene.facts, scene.said, happened, tuple(scene.broken))
