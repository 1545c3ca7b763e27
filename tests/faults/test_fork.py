"""Fork after start, as gunicorn --preload does it: the children share nothing of the parent's but the settings."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.conftest import kinds_here
from tests.faults.lab import PATIENCE, Hook, Laboratory, Plan, Process
from tests.faults.lab_log import first

CHILDREN = {f"child-{number}": f"own-{number}" for number in range(3)}
COMMON = "common"
UNDER_WAY = "under-way"

pytestmark = [pytest.mark.campaign, pytest.mark.parametrize("kind", kinds_here())]


def test_children_of_a_used_keeper_renew_each_for_itself(kind: str, tmp_path: Path) -> None:
    """A keeper that was used, and is in the middle of a renewal, is forked: no connection is shared, each renewal is one."""
    with Laboratory(kind, "strict", tmp_path) as lab:
        parent = lab.start("parent", spill=None, leeway=0.0)
        try:
            _forked(lab, parent, tmp_path / "stop")
        finally:
            parent.kill()
            parent.control.close()


def _forked(lab: Laboratory, parent: Process, stop: Path) -> None:
    wait = lab.reader.wait
    for member in (*CHILDREN.values(), COMMON, UNDER_WAY):
        lab.issue(member, 3600.0)
    for member in (COMMON, UNDER_WAY):
        parent.tell("loop", member=member, every=0.1)
        assert wait(member, first("call", worker="parent", outcome="ok"), PATIENCE)

    forked = threading.Event()
    lab.provider.hooks[UNDER_WAY] = Hook("answered", lambda: forked.wait(lab.timing.deadline * 0.8), delivers=True)
    lab.provider.expire(UNDER_WAY)
    assert wait(UNDER_WAY, first("arrived", worker="parent"), PATIENCE)
    parent.tell("fork", children=CHILDREN, common=COMMON, until=str(stop))
    inherited = {}
    for name, member in CHILDREN.items():
        inherited[name] = wait(member, first("inherited", worker=name), PATIENCE)
        assert inherited[name], f"{name} was not forked"
    forked.set()
    for name, member in CHILDREN.items():
        assert wait(member, first("call", worker=name, outcome="ok"), PATIENCE)
    for member in (COMMON, *CHILDREN.values()):
        lab.provider.expire(member)
    workers = {COMMON: ["parent", *CHILDREN], UNDER_WAY: ["parent"]} | {own: [name] for name, own in CHILDREN.items()}
    for member, whose in workers.items():
        for worker in whose:
            served = [f"call of {worker} for {member} after the renewal"]
            served_again = lambda lines, worker=worker: [  # noqa: E731
                line
                for line in lines
                if line["event"] == "call" and line["worker"] == worker and (line["generation"] or 0) >= 2
            ]
            assert wait(member, served_again, PATIENCE), served
    stop.touch()
    backends = {}
    for name, member in CHILDREN.items():
        backends[name] = wait(member, first("backends", worker=name), PATIENCE)
        assert backends[name], f"{name} did not end"
    for member in workers:
        parent.tell("call", member=member)
    parent.tell("backends")
    backends["parent"] = wait("", first("backends", worker="parent"), PATIENCE)
    for member, whose in workers.items():
        seen = lab.evidence(Plan("fork", "", 0), member)
        failed = [line for line in seen.all("call") if line["outcome"] != "ok"]
        assert not failed, failed[0]
        assert {line["worker"] for line in seen.all("presented")} <= {*whose, "parent"}
        assert not seen.lost
        assert [line["verdict"] for line in seen.all("presented")] == ["ok"] * (seen.row["generation"] - 1)
    assert len(lab.evidence(Plan("fork", "", 0), COMMON).all("presented")) == 1
    if lab.kind != "sqlite":
        ids = [backend for line in backends.values() for backend in line["ids"]]
        assert all(line["ids"] for line in backends.values())
        assert len(ids) == len(set(ids)), "a connection is shared"
        mine = {backend for line in inherited.values() for backend in line["ids"]}
        used = {backend for name, line in backends.items() if name != "parent" for backend in line["ids"]}
        assert mine, "the parent had no connection to inherit"
        assert not mine & used, "a child goes on with a connection of its parent's"
