"""``tokenkeeper demo``: every refusal that LinkedIn documents, on real sockets, and what becomes of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.text import Text

from tokenkeeper.cli.demo_host import open_host
from tokenkeeper.cli.demo_scenarios import SCENARIOS
from tokenkeeper.cli.demo_stage import Result, perform
from tokenkeeper.cli.output import Output, clean, styled, whose
from tokenkeeper.model import Turn

if TYPE_CHECKING:
    from tokenkeeper.testing import FakeProvider

_OUTCOMES = {
    "renewed": "green", "adopted": "green", "reconnected": "green", "prompted": "magenta",
    "configuration_error": "bold red", "passed_through": "blue",
}  # fmt: skip


def run(json: bool, provider: FakeProvider | None = None) -> int:
    """Play all scenarios, show each as it ends; return 0 if all was as promised, else 1.

    *provider* replaces the stand-in for LinkedIn.
    """
    out = Output(json)
    started = time.monotonic()
    results = []
    with open_host(provider) as host:
        for number, scenario in enumerate(SCENARIOS, 1):
            result = perform(scenario, host)
            results.append(result)
            _show(out, number, result)
    ok = all(result.ok for result in results)
    kept = sum(result.ok for result in results)
    closing = f"{kept} of {len(results)} scenarios as promised, in {time.monotonic() - started:.1f} s."
    data = {"ok": ok, "scenarios": [result.public() for result in results]}
    out.result(data, [Text(closing, style="bold green" if ok else "bold red")])
    return 0 if ok else 1


def _show(out: Output, number: int, result: Result) -> None:
    wrong = [*(f"broken promise: {promise}" for promise in result.broken)]
    if result.crash:
        wrong.append(f"crashed: {result.crash}")
    if out.json:
        if wrong:
            out.complain({"scenario": result.scenario.name, "wrong": wrong}, "")
        return
    facts = result.facts
    out.text(Text.assemble((f"{number:2}  ", "dim"), (result.scenario.title, "bold"), f"  {result.scenario.name}"))
    if not result.crash:
        outcome = facts.outcome or "-"
        out.text(
            _line(
                "LinkedIn said", Text(clean(result.said) if result.said else "200 to every call: nothing was refused")
            )
        )
        out.text(_line("whose turn", _whose(facts.turn)))
        out.text(_line("outcome", Text(outcome.replace("_", " "), style=_OUTCOMES.get(outcome, "bold red"))))
        out.text(_line("what happened", Text(clean(result.happened))))
        out.text(_line("", Text(f"API calls {facts.api_calls}, token requests {facts.token_requests}", style="dim")))
    for line in wrong:
        out.text(_line("", Text(clean(line), style="bold red")))
    out.text("")


def _line(label: str, text: Text) -> Text:
    return Text.assemble((f"    {label:<15}", "dim"), text)


def _whose(turn: str | None) -> Text:
    if turn is None:
        return Text("-")
    return Text(whose(Turn(turn)), style=styled(turn).style)
