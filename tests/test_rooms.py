"""The small rooms: threads, cache, callbacks, clock watch, spill."""

from __future__ import annotations

import json
import logging
import os
import threading

import pytest

from tokenkeeper.cache import TokenCache
from tokenkeeper.core.effects import StoredGrant
from tokenkeeper.events import ConfigurationProblem, Event
from tokenkeeper.model import AccessToken, GrantKey, GrantStatus
from tokenkeeper.news import News
from tokenkeeper.spill import Spill
from tokenkeeper.store.sealed import SealedTokens
from tokenkeeper.store.watch import ClockWatch
from tokenkeeper.workers import Workers

SECOND = 1_000_000


def grant(**facts):
    """A row with what a test says of it."""
    plain = {
        "id": "a" * 32,
        "key": GrantKey("acme", "ann"),
        "status": GrantStatus.ACTIVE,
        "generation": 1,
        "scopes": (),
        "sealed_access_token": b"",
        "sealed_refresh_token": None,
        "access_expires_at": None,
        "refresh_expires_at": None,
        "account": None,
        "created_at": 0,
        "consented_at": 0,
        "renewed_at": None,
        "claim_id": None,
        "claimed_until": None,
        "in_flight_since": None,
        "in_flight_tries": 0,
        "retry_at": None,
        "failures": 0,
        "prompt": None,
        "now": 0,
        "read_at": 0.0,
    }
    return StoredGrant(**{**plain, **facts})


# --- workers ---


def test_workers_run_in_a_bounded_number_of_threads():
    """Never more than the size, and every task is done."""
    workers, running, most = Workers("test", 3), [], []
    lock, go = threading.Lock(), threading.Event()

    def task(number):
        with lock:
            running.append(number)
            most.append(len(running))
        go.wait(5)
        with lock:
            running.remove(number)
        return number

    futures = [workers.submit(task, number) for number in range(10)]
    go.set()
    assert [future.result(5) for future in futures] == list(range(10))
    assert max(most) <= 3


def test_a_workers_error_belongs_to_whoever_waits():
    """And the thread lives on."""
    workers = Workers("test", 1)
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 // 0).result(5)
    assert workers.submit(lambda: 5).result(5) == 5


def test_a_cancelled_task_is_not_run():
    """Cancelled while it waited for a thread."""
    workers, go, ran = Workers("test", 1), threading.Event(), []
    first = workers.submit(go.wait, 5)
    second = workers.submit(ran.append, 1)
    assert second.cancel()
    go.set()
    first.result(5)
    workers.submit(int).result(5)
    assert ran == []


def test_idle_threads_end(monkeypatch):
    """And new ones are started when there is work again."""
    import tokenkeeper.workers

    monkeypatch.setattr(tokenkeeper.workers, "IDLE_SECONDS", 0.01)
    workers = Workers("idle-test", 2)
    assert workers.submit(threading.current_thread).result(5).name == "tokenkeeper-idle-test"
    for thread in threading.enumerate():
        if thread.name == "tokenkeeper-idle-test":
            thread.join(5)
            assert not thread.is_alive()
    assert workers.submit(int).result(5) == 0


# --- cache ---


def test_the_cache_is_bounded_and_drops_the_oldest():
    """At most its size."""
    cache = TokenCache(3, 60.0)
    for number in range(9):
        cache.put(grant(key=GrantKey("acme", str(number))), AccessToken("t"), None)
    assert len(cache) == 3
    assert {member for _, member in cache.entries} == {"6", "7", "8"}
    cache.clear()
    assert len(cache) == 0


def test_a_cache_of_none():
    """``cache_size=0`` keeps nothing."""
    cache = TokenCache(0, 60.0)
    cache.put(grant(), AccessToken("t"), None)
    assert len(cache) == 0


def test_a_slower_reader_does_not_bring_an_older_generation_back():
    """Two threads read; the one with the older row is late."""
    cache = TokenCache(3, 60.0)
    new = AccessToken("new", grant_id="a" * 32, generation=2)
    cache.put(grant(generation=2), new, None)
    cache.put(grant(generation=1), AccessToken("old", grant_id="a" * 32, generation=1), None)
    assert cache.entries["acme", "ann"].token is new


@pytest.mark.parametrize(
    ("life", "age", "expected"),
    [
        (None, 0, 60.0),
        (10_000, 0, 60.0),
        (100, 0, pytest.approx(100 - 10 * 1.06667, abs=3)),
        (100, 95, 1.0),
        (100, 99.5, 0.5),
    ],
)
def test_an_entrys_deadline(life, age, expected):
    """The end of the cache time, or the start of aging; an aging token is looked up again soon."""
    cache = TokenCache(3, 60.0 if life != 100 or age else 1000.0)
    row = grant(access_expires_at=None if life is None else life * SECOND, now=round(age * SECOND), read_at=1000.0)
    cache.put(row, AccessToken("t"), None)
    assert cache.entries["acme", "ann"].deadline - 1000.0 == expected


# --- news ---


def test_callbacks_hear_their_type_and_its_bases(caplog):
    """Once each, in order; a failing one does not keep the others from hearing."""
    news, heard = News(), []
    news.on(Event, lambda event: heard.append("event"))
    news.on(ConfigurationProblem, lambda event: 1 // 0)
    news.on(ConfigurationProblem, lambda event: heard.append("problem"))
    with caplog.at_level(logging.ERROR):
        news.tell([ConfigurationProblem(id="1", registration="acme", cause="x")])
    assert heard == ["event", "problem"]
    assert "lambda" in caplog.text


def test_on_wants_a_function():
    """Anything else is a TypeError."""
    with pytest.raises(TypeError):
        News().on(Event, 5)


def test_an_async_callback_without_a_loop_gets_one_of_its_own():
    """The host's loop is gone; the news is not."""
    news, heard = News(), []

    async def callback(event):
        heard.append(event.id)

    news.on(Event, callback)
    news.tell([ConfigurationProblem(id="1", registration="acme", cause="x")])
    assert heard == ["1"]


# --- clock watch ---


def test_a_clock_that_jumps_is_not_trusted_for_a_minute():
    """The database's clock against ours."""
    watch = ClockWatch()
    watch.saw(grant(now=0, read_at=0.0), 0.0)
    watch.saw(grant(now=10 * SECOND, read_at=10.0), 10.0)
    assert watch.steady
    watch.saw(grant(now=3611 * SECOND, read_at=11.0), 11.0)
    assert not watch.steady
    watch.saw(grant(now=3660 * SECOND, read_at=60.0), 60.0)
    assert not watch.steady
    watch.saw(grant(now=3672 * SECOND, read_at=72.0), 72.0)
    assert watch.steady
    watch.saw(grant(now=(3672 + 3601) * SECOND, read_at=3672.0 - 3600 + 3601), 3672.0 - 3600 + 3601)
    assert watch.steady


def test_a_look_that_waited_for_a_connection_is_no_jump():
    """The clock was read at some moment of the look: only what no moment explains is a jump."""
    watch = ClockWatch()
    watch.saw(grant(now=0, read_at=0.0), 0.01)
    watch.saw(grant(now=19 * SECOND, read_at=10.0), 19.0)
    assert watch.steady
    watch.saw(grant(now=20 * SECOND, read_at=20.0), 20.01)
    assert watch.steady
    watch.saw(grant(now=40 * SECOND, read_at=21.0), 30.0)
    assert not watch.steady


def test_a_claim_is_witnessed_after_a_whole_lease_of_our_own():
    """The same claim, seen by our own clock."""
    watch = ClockWatch()
    row = grant(claim_id="c1", read_at=0.0)
    watch.saw(row, 0.0)
    assert not watch.lapsed(row, 14.0, 15.0)
    assert watch.lapsed(row, 15.0, 15.0)
    other = grant(claim_id="c2", read_at=16.0, now=16 * SECOND)
    watch.saw(other, 16.0)
    assert not watch.lapsed(other, 20.0, 15.0)
    watch.saw(grant(read_at=21.0, now=21 * SECOND), 21.0)
    assert not watch.lapsed(other, 99.0, 15.0)


def test_the_watch_forgets_what_is_too_much(monkeypatch):
    """Bounded memory."""
    import tokenkeeper.store.watch

    monkeypatch.setattr(tokenkeeper.store.watch, "SIZE", 2)
    watch = ClockWatch()
    for number in range(5):
        watch.saw(grant(id=f"{number:032}", claim_id="c"), 0.0)
    assert len(watch._claims) == 2


# --- spill ---


def sealed(**facts):
    """Sealed tokens with what a test says of them."""
    plain = {
        "grant_id": "g",
        "generation": 2,
        "access_token": b"\x01sealed",
        "refresh_token": b"\x01too",
        "expires_in": 60.0,
        "expires_at": None,
        "refresh_expires_in": None,
        "scopes": ("a", "b"),
        "consented_at": 1_700_000_000_000_000,
    }
    return SealedTokens(**{**plain, **facts})


def test_what_is_spilled_is_read_back(tmp_path):
    """With its absolute end, and only for its owner."""
    spill = Spill(tmp_path / "spill")
    assert list(spill.read()) == []
    spill.write("s1", sealed(), 1234.5)
    spill.write("s2", sealed(refresh_token=None, scopes=None), None)
    assert list(spill.read()) == [
        ("s1", sealed(expires_in=None, expires_at=1234.5)),
        ("s2", sealed(refresh_token=None, scopes=None, expires_in=None)),
    ]
    [file, _] = sorted((tmp_path / "spill").glob("*"))
    assert file.stat().st_mode & 0o077 == 0
    spill.remove("g", "s1")
    spill.remove("g", "never")
    assert [save_id for save_id, _ in spill.read()] == ["s2"]


def test_a_spill_file_from_before_names_no_consent(tmp_path):
    """It is read all the same; whether its row has fallen behind it cannot be told."""
    spill = Spill(tmp_path)
    spill.write("s1", sealed(), 1234.5)
    record = json.loads((tmp_path / "g-s1.sealed").read_text())
    del record["consented_at"]
    (tmp_path / "g-s1.sealed").write_text(json.dumps(record))
    assert list(spill.read()) == [("s1", sealed(expires_in=None, expires_at=1234.5, consented_at=None))]


def test_what_a_killed_worker_had_written_is_read(tmp_path, caplog):
    """Whole, though not in its place yet; cut short it is no news. Both go when their tokens are stored."""
    spill = Spill(tmp_path)
    spill.write("s1", sealed(), 1234.5)
    whole = (tmp_path / "g-s1.sealed").rename(tmp_path / "g-s1.part")
    (tmp_path / "g-s2.part").write_text(whole.read_text()[:40])
    with caplog.at_level(logging.WARNING):
        assert [save_id for save_id, _ in spill.read()] == ["s1"]
    assert caplog.text == ""
    spill.remove("g", "s1")
    assert not whole.exists()


def test_a_full_disk_leaves_no_half_a_file(tmp_path, monkeypatch):
    """The error goes on, and the folder is as it was."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Spill(tmp_path).write("s1", sealed(), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"version": 2}', '{"version": 1}', '{"version": 1, "access_token": 5}']
)
def test_a_spill_file_that_cannot_be_read_is_left(tmp_path, content, caplog):
    """Logged, not lost."""
    (tmp_path / "x.sealed").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert list(Spill(tmp_path).read()) == []
    assert "x.sealed" in caplog.text
    assert (tmp_path / "x.sealed").exists()
