"""``grants``: list, show, refresh, forget and import, against a database and a provider on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from click.testing import Result

from tokenkeeper.cli import grants
from tokenkeeper.config import load

if TYPE_CHECKING:
    from conftest import World

Run = Callable[..., Result]


def objects(text: str) -> list[dict[str, object]]:
    """The JSON objects of a text, one a line."""
    return [json.loads(line) for line in text.splitlines()]


def test_grants_are_listed_and_filtered(run: Run, world: World) -> None:
    """grants list shows all or some grants, as JSON Lines and as text, without their secrets."""
    world.connect("ann", "bob")
    rows = objects(run("grants", "list", "--json").stdout)
    assert sorted(str(row["member"]) for row in rows) == ["ann", "bob"]
    assert {row["status"] for row in rows} == {"active"}
    assert all(row["has_refresh_token"] is True and row["generation"] == 1 for row in rows)
    text = run("grants", "list", "--member", "ann").stdout.splitlines()
    assert text[0].split() == grants.COLUMNS
    assert len(text) == 2
    assert text[1].split()[:3] == ["fake", "ann", "active"]
    assert objects(run("grants", "list", "--json", "--status", "needs_reauthentication").stdout) == []
    assert len(objects(run("grants", "list", "--json", "--registration", "fake").stdout)) == 2
    assert run("grants", "list", "--member", "nobody").stderr == "no grants\n"
    assert run("grants", "list", "--status", "moon").exit_code == 2


def test_a_grant_is_shown(run: Run, world: World) -> None:
    """grants show prints one grant; of one that is not there it says whose turn it is."""
    world.connect("ann")
    data = json.loads(run("grants", "show", "fake", "ann", "--json").stdout)
    assert (data["registration"], data["member"], data["scopes"]) == ("fake", "ann", ["openid", "profile"])
    assert datetime.fromisoformat(data["access_expires_at"]).tzinfo is not None
    assert "generation" in run("grants", "show", "fake", "ann").stdout
    missing = run("grants", "show", "fake", "bob")
    assert missing.exit_code == 1
    assert "turn:  the member's" in missing.stderr
    assert "tokenkeeper connect fake bob" in missing.stderr


def test_what_asks_no_provider_needs_no_client_secret(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is sent, no client secret has to be on the machine; a refresh says which one is missing."""
    world.connect("ann")
    monkeypatch.delenv("FAKE_SECRET")
    for words in (["grants", "list"], ["grants", "show", "fake", "ann"], ["events", "list"], ["keys", "list"]):
        assert run(*words).exit_code == 0
    assert run("grants", "import", stdin='{"member": "bob", "access_token": "t"}').exit_code == 0
    assert run("grants", "forget", "fake", "bob").exit_code == 0
    refused = run("grants", "refresh", "fake", "ann")
    assert refused.exit_code == 1
    assert "FAKE_SECRET is not set" in refused.stderr


def test_a_grant_is_refreshed(run: Run, world: World) -> None:
    """grants refresh renews once, now."""
    world.connect("ann")
    data = json.loads(run("grants", "refresh", "fake", "ann", "--json").stdout)
    assert data["generation"] == 2
    assert world.provider.token_requests == 1


def test_a_refused_refresh_says_whose_turn_it_is(run: Run, world: World) -> None:
    """A revoked grant is the member's turn: exit 1, and the list shows the mark and its cause."""
    world.connect("ann")
    world.provider.revoke()
    done = run("grants", "refresh", "fake", "ann", "--json")
    assert done.exit_code == 1
    error = json.loads(done.stderr)["error"]
    assert (error["turn"], error["member"]) == ("member", "ann")
    (row,) = objects(run("grants", "list", "--json").stdout)
    assert row["status"] == "needs_reauthentication"
    assert isinstance(row["prompt"], dict)
    assert str(row["prompt"]["cause"]) in run("grants", "list").stdout


def test_an_unknown_registration_is_the_operators(run: Run, world: World) -> None:
    """A name that is no registration is an error that lists those there are."""
    done = run("grants", "show", "nope", "ann")
    assert done.exit_code == 1
    assert "fake" in done.stderr
    assert "turn:  the operator's" in done.stderr


def test_a_grant_is_forgotten(run: Run, world: World) -> None:
    """grants forget deletes here and tells nobody; a second time there is nothing to forget."""
    world.connect("ann")
    assert json.loads(run("grants", "forget", "fake", "ann", "--json").stdout)["forgotten"] is True
    again = run("grants", "forget", "fake", "ann")
    assert again.exit_code == 1
    assert "there was no such grant" in again.stdout
    assert world.provider.revocations == 0


@pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("y\n", 0)])
def test_forget_asks_on_a_terminal(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    """On a terminal a person confirms; --yes does without."""
    world.connect("ann")
    monkeypatch.setattr(grants, "interactive", lambda: True)
    done = run("grants", "forget", "fake", "ann", stdin=answer)
    assert done.exit_code == left
    assert "cannot be had back" in done.stderr
    with load().keeper() as keeper:
        assert len(list(keeper.grants())) == left


def test_a_grant_is_revoked(run: Run, world: World) -> None:
    """grants revoke tells the provider, deletes, and says what the provider did; a second time there is nothing to do."""
    world.connect("ann")
    data = json.loads(run("grants", "revoke", "fake", "ann", "--json").stdout)
    assert (data["registration"], data["member"], data["outcome"], data["deleted"]) == ("fake", "ann", "revoked", True)
    assert data["message"]
    assert [each.verdict for each in world.provider.log if each.surface == "revocation"] == ["ok"]
    with load().keeper() as keeper:
        assert list(keeper.grants()) == []
    again = run("grants", "revoke", "fake", "ann")
    assert again.exit_code == 1
    assert again.stdout.startswith("not_connected: ")
    assert world.provider.revocations == 1


def test_a_provider_that_cannot_be_told_yet(run: Run, world: World) -> None:
    """Exit 1, whose turn it is, and the grant stays, out of service; the same command finishes it."""
    world.connect("ann")
    world.provider.script("server_error", "revocation")
    done = run("grants", "revoke", "fake", "ann", "--json")
    assert done.exit_code == 1
    error = json.loads(done.stderr)["error"]
    assert (error["turn"], error["cause"]) == ("nobody", "provider_fault")
    (row,) = objects(run("grants", "list", "--status", "revoking", "--json").stdout)
    assert row["member"] == "ann"
    assert run("grants", "revoke", "fake", "ann").exit_code == 0


@pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("y\n", 0)])
def test_revoke_asks_on_a_terminal(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    """On a terminal a person confirms; declined, nothing is told and nothing is touched."""
    world.connect("ann")
    monkeypatch.setattr(grants, "interactive", lambda: True)
    done = run("grants", "revoke", "fake", "ann", stdin=answer)
    assert done.exit_code == left
    assert "for good?" in done.stderr
    assert world.provider.revocations == 1 - left
    with load().keeper() as keeper:
        assert [str(grant.status) for grant in keeper.grants()] == ["active"] * left


def test_grants_are_imported(run: Run, world: World) -> None:
    """Each line is a grant; one that exists is skipped, unless --replace; numbers and UUIDs are members, too."""
    world.connect("ann")
    lines = [
        {"member": "ann", "access_token": "canary-7d21-a"},
        {
            "member": "bob",
            "access_token": "canary-7d21-b",
            "refresh_token": "canary-7d21-r",
            "expires_at": 4102444800,
            "scope": "read write",
        },
        {"member": 7, "access_token": "canary-7d21-c", "expires_at": "2099-12-31T23:00:00-01:00"},
    ]
    text = "\n\n".join(map(json.dumps, lines)) + "\n"
    done = run("grants", "import", "--json", stdin=text)
    assert json.loads(done.stdout) == {"imported": 2, "replaced": 0, "skipped": 1, "bad": 0, "expired": 0}
    assert done.exit_code == 0
    bob, seven = (json.loads(run("grants", "show", "fake", who, "--json").stdout) for who in ("bob", "7"))
    assert (bob["scopes"], bob["has_refresh_token"]) == (["read", "write"], True)
    assert datetime.fromisoformat(bob["access_expires_at"]) == datetime(2100, 1, 1, tzinfo=UTC)
    assert datetime.fromisoformat(seven["access_expires_at"]) == datetime(2100, 1, 1, tzinfo=UTC)
    assert seven["has_refresh_token"] is False
    (world.folder / "grants.jsonl").write_text(text)
    again = run("grants", "import", "grants.jsonl", "--registration", "fake", "--replace")
    assert again.stdout == "0 imported, 3 replaced, 0 skipped, 0 bad, 0 expired\n"


def test_a_token_endpoints_answer_is_imported_as_it_came(run: Run, world: World) -> None:
    """token_type is passed over; expires_in counts from issued_at, and expires_at wins over both."""
    answer = {"access_token": "canary-7d21-a", "token_type": "Bearer", "expires_in": 3600, "issued_at": 4102441200}
    lines = [{"member": "ann", **answer}, {"member": "bob", **answer, "expires_at": 4102444801}]
    done = run("grants", "import", stdin="\n".join(map(json.dumps, lines)))
    assert (done.exit_code, done.stderr) == (0, "")
    ends = [
        datetime.fromisoformat(json.loads(run("grants", "show", "fake", who, "--json").stdout)["access_expires_at"])
        for who in ("ann", "bob")
    ]
    assert ends == [datetime(2100, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, 0, 0, 1, tzinfo=UTC)]


def test_a_grant_that_is_over_is_imported_with_a_warning(run: Run, world: World) -> None:
    """Expired and without a refresh token: kept, for the member's prompt, and said by its line's number."""
    over = {"member": "ann", "access_token": "canary-7d21-a", "expires_in": 60, "issued_at": 1000}
    lines = [over, {**over, "member": "bob", "refresh_token": "canary-7d21-r"}]
    done = run("grants", "import", "--json", stdin="\n".join(map(json.dumps, lines)))
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"imported": 2, "replaced": 0, "skipped": 0, "bad": 0, "expired": 1}
    (complaint,) = objects(done.stderr)
    assert complaint["line"] == 1
    assert "expired at 1970-01-01T00:17:40Z" in str(complaint["warning"])
    assert "line 1: warning: expired at" in run("grants", "import", "--replace", stdin=json.dumps(over)).stderr


def test_an_import_for_an_unknown_registration_reads_nothing(run: Run, world: World) -> None:
    """A slip in --registration is one error, not one a line."""
    done = run("grants", "import", "--registration", "nope", stdin="nonsense\nnonsense\n")
    assert done.exit_code == 1
    assert "There is no registration 'nope'" in done.stderr
    assert "line 1" not in done.stderr


BAD = [
    ("canary-7d21 {", "not JSON"),
    ("[1]", "not a JSON object"),
    ("[" * 100_000, "not JSON"),
    ('{"member": "x"}', "access_token is missing or of the wrong type"),
    ('{"access_token": "canary-7d21"}', "member is missing or of the wrong type"),
    ('{"member": true, "access_token": "canary-7d21"}', "member is missing or of the wrong type"),
    ('{"member": "x", "access_token": 5}', "access_token is missing or of the wrong type"),
    ('{"member": "x", "access_token": "canary-7d21", "canary-7d21": 1}', "unknown fields: others; known are member"),
    ('{"member": "x", "access_token": "canary-7d21", "expires_at": "canary-7d21"}', "neither seconds since 1970"),
    ('{"member": "x", "access_token": "canary-7d21", "expires_at": "2099-12-31T23:00:00"}', "no time zone"),
    ('{"member": "x", "acces_token": "canary-7d21", "canary-7d21": 1}', "unknown fields: acces_token, others; known"),
    ('{"member": "x", "access_token": "canary-7d21", "expires_in": 60}', "expires_in says nothing without issued_at"),
    ('{"member": "x", "access_token": "canary-7d21", "expires_in": "60"}', "expires_in is missing or of the wrong"),
    ('{"member": "x", "access_token": "canary-7d21", "expires_in": 1e400, "issued_at": 1}', "can be used"),
    ('{"member": "x", "access_token": "canary-7d21", "expires_in": 60, "issued_at": -1}', "can be used"),
    ('{"member": "", "access_token": "canary-7d21"}', "empty"),
    ('{"member": "x", "access_token": ""}', "access"),
    ('{"member": "x", "access_token": "canary-7d21\\r\\nA: b"}', "access"),
    ('{"member": "x", "access_token": "' + "canary-7d21" * 100_000 + '"}', "longer than"),
]


def test_bad_lines_are_named_by_number_and_the_others_imported(run: Run, world: World) -> None:
    """A bad line is reported by its number and never quoted; the rest is imported; exit 1."""
    text = "".join(f"{line}\n" for line, _ in BAD) + '{"member": "last", "access_token": "t"}'
    done = run("grants", "import", "--json", stdin=text)
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"imported": 1, "replaced": 0, "skipped": 0, "bad": len(BAD), "expired": 0}
    complaints = objects(done.stderr)
    assert [complaint["line"] for complaint in complaints] == list(range(1, len(BAD) + 1))
    for complaint, (_, message) in zip(complaints, BAD, strict=True):
        assert message in str(complaint["error"])
    words = run("grants", "import", stdin="nonsense\n")
    assert words.stderr == "line 1: not JSON\n"


def test_bytes_that_are_no_text_are_a_bad_line(run: Run, world: World) -> None:
    """A file in another encoding is reported line by line, not a crash."""
    done = run("grants", "import", stdin=b'{"member": "\xff", "access_token": "t"}\n\xfe\n')
    assert done.exit_code == 1
    assert done.stdout == "0 imported, 0 replaced, 0 skipped, 2 bad, 0 expired\n"


def test_import_needs_to_know_where(run: Run, world: World) -> None:
    """With several registrations, --registration says which; without it that is wrong usage."""
    with (world.folder / "tokenkeeper.toml").open("a") as settings:
        settings.write('\n[registrations.other]\nprovider = "linkedin"\nclient_id = "x"\n')
    done = run("grants", "import", stdin="")
    assert done.exit_code == 2
    assert "fake, other" in done.stderr


def test_a_broken_database_stops_an_import(run: Run, world: World) -> None:
    """What is not a line's fault ends the import at once, as an error with a fix."""
    (world.folder / "tokens.db").write_bytes(b"no database" * 1000)
    done = run("grants", "import", stdin='{"member": "x", "access_token": "t"}\n')
    assert done.exit_code == 1
    assert "line 1" not in done.stderr
    assert "do:" in done.stderr


def test_a_long_list_is_not_held(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grants are read in pages while they are written: the keeper's own iterator is passed on, not collected."""
    world.connect("ann", "bob", "cid")
    keeper = load().keeper()
    seen: list[int] = []
    real = type(keeper).grants

    def counted(self: object, **filters: object) -> object:
        for number, grant in enumerate(real(self, **filters)):  # type: ignore[arg-type]
            seen.append(number)
            yield grant

    monkeypatch.setattr(type(keeper), "grants", counted)
    written: list[int] = []
    monkeypatch.setattr("tokenkeeper.cli.output.Output.line", lambda self, data: written.append(len(seen)))
    run("grants", "list", "--json")
    assert written == [1, 2, 3]
    keeper.close()
