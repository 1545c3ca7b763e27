"""A keeper of either twin, a provider that quotes what it is shown, a clock, and a lookout for whatever gets out."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lookout import MARK, Lookout

from tokenkeeper import (
    AccessToken,
    AsyncTokenKeeper,
    AuthorizationRequest,
    Connection,
    Event,
    Keyring,
    Registration,
    TokenKeeper,
)
from tokenkeeper.testing import FakeProvider
from tokenkeeper.testing.clock import TestClock
from tokenkeeper.testing.messages import Request, Response, json_response

KEY = f"{MARK} keyring key 32 byte".encode()[:32].ljust(32, b"!")
SECRET = f"{MARK}/client secret+1"
PARAMETER = f"{MARK}-parameter-7"
SESSION = f"{MARK}-session-of-the-browser-1"
OUTWARD = frozenset({"pickle 0", "pickle", "asdict", "astuple", "public attributes", "json of vars"})
"""Ways in which an AuthorizationRequest shows its URL, as it must; its repr does not."""

HEADERS = frozenset({"json", "json of repr", "json of vars"})
"""A dict cannot keep json from its values, which an HTTP library needs."""


class Parrot(FakeProvider):
    """A fake provider that can be told to repeat what it was shown, as some do in their messages."""

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.quotes: dict[str, Callable[[str], Response]] = {}
        """A part of a path, and what is answered there to the credentials that came."""

    def handle(self, request: Request) -> Response:
        """Repeat, where told to; else answer as the provider."""
        for part, answer in self.quotes.items():
            if part in request.url:
                return answer(self._shown(request))
        return super().handle(request)

    @staticmethod
    def _shown(request: Request) -> str:
        """All credentials that came: the header's, and the form's fields by name and raw."""
        header = request.header("authorization") or request.header("x-shop") or ""
        named = ", ".join(f"{name} {value}" for name, value in request.fields.items())
        return f"{header.partition(' ')[2] or header} | {header} | {named} | {request.body.decode('latin-1')}"


class Stage:
    """One situation's world. What is done through :meth:`does` or :meth:`tries` is watched."""

    def __init__(
        self, twin: str, folder: Path, template: Path, lookout: Lookout, printed: Callable[[], Any], **knobs: Any
    ) -> None:
        self.twin = twin
        self.lookout = lookout
        self._printed = printed
        self.vault = folder / "vault"
        """Holds the database and the spill: whatever is in here is looked at."""
        self.vault.mkdir()
        shutil.copy(template, self.vault / "tokens.db")
        self.url = f"sqlite:///{self.vault / 'tokens.db'}"
        self.clock = TestClock()
        self.runner = asyncio.Runner(debug=True)
        self.events: list[Event] = []
        self._keepers: list[Any] = []
        self._stack = contextlib.ExitStack()
        declared = {"deadline_seconds": 9.0, **knobs.pop("declared", {})}
        registration = knobs.pop("registration", {})
        provider = {"prefix": f"{MARK}-", "client_secret": SECRET, "id_tokens": True, **knobs.pop("provider", {})}
        self.provider = Parrot(clock=self.clock, **provider)
        self.base = self._stack.enter_context(self.provider.serve())
        self.registration: Registration = self.provider.registration(
            "acme",
            provider=self.provider.as_provider(**declared),
            **{"token_parameters": {"shop": PARAMETER}, **registration},
        )
        self.keyring = Keyring([("k1", KEY)])
        self.knobs = {"spill_directory": self.vault / "spill", **knobs}
        self.keeper = self.another()

    def another(self, **knobs: Any) -> Any:
        """Another keeper on the same database."""
        kind = TokenKeeper if self.twin == "sync" else AsyncTokenKeeper
        options = {"keys": self.keyring, "registrations": [self.registration], **self.knobs, **knobs}
        keeper = self.clock.install(kind(options.pop("database", self.url), **options))
        keeper.on(Event, self.events.append)
        self._keepers.append(keeper)
        return keeper

    # --- acts ---

    def does(self, result: Any, name: str = "a result") -> Any:
        """The result of a method of either twin, looked at."""
        if inspect.isawaitable(result):
            result = self.runner.run(self._awaited(result))
        if type(result).__module__.startswith("tokenkeeper"):
            self.sees(name, result)
        return result

    async def _awaited(self, result: Any) -> Any:
        return await result

    def tries(self, act: Callable[[], Any], name: str = "an attempt") -> Any:
        """The result of an act, or the error that it raised; either is looked at."""
        try:
            return self.does(act(), name)
        except Exception as error:
            self.lookout.error(name, error)
            return error

    def sees(self, name: str, thing: object) -> None:
        """Look at an object of ours."""
        if isinstance(thing, AuthorizationRequest):
            self.lookout.thing(name, thing, OUTWARD)
        else:
            self.lookout.thing(name, thing)
        if isinstance(thing, AccessToken):
            self.lookout.thing(f"the headers of {name}", thing.headers, HEADERS)
        if isinstance(thing, Connection):
            self.lookout.thing(f"the grant of {name}", thing.grant)

    def connect(self, *members: str, **knobs: Any) -> None:
        """Give members grants, as if they had been there for some minutes."""
        for member in members:
            self.does(self.keeper.save_tokens("acme", member, self.provider.issue(member=member, **knobs)))
        self.clock.advance(120)

    def begin(self, member: str = "ann", **knobs: Any) -> AuthorizationRequest:
        """Begin an authorization in a session."""
        return self.does(self.keeper.begin_authorization("acme", member, **{"session": SESSION, **knobs}))

    def finish(self, callback_url: str, member: str = "ann", session: str | None = SESSION) -> Any:
        """Finish one, or see why not."""
        return self.tries(lambda: self.keeper.finish_authorization(callback_url, member=member, session=session))

    # --- the end ---

    def leaks(self) -> list[str]:
        """Close everything, look at all that is left, and say what was found."""
        look = self.lookout
        for request in self.provider.requests:
            if "client_assertion" in request.fields:
                look.plant("an assertion", request.fields["client_assertion"])
        for event in self.events:
            self.sees("an event", event)
        look.text("the keeper", f"{self.keeper!r} {vars(self.keeper)} {vars(self.keeper._room)}")
        with contextlib.suppress(Exception):
            self._records()
        look.folder(self.vault)  # with the WAL, as long as the database is open
        for keeper in self._keepers:
            self.tries(keeper.close, "close")
        look.folder(self.vault)
        look.logged_errors()
        for name, text in zip(("stdout", "stderr"), self._printed(), strict=True):
            look.text(name, text)
        return look.found

    def _records(self) -> None:
        keeper = self.keeper if self.twin == "sync" else self.keeper.sync
        for event in keeper.events():
            self.lookout.text(f"the event table's {event['kind']}", json.dumps(event, default=str) + repr(event))
        for grant in keeper.grants():
            self.sees("a grant", grant)
            if grant.prompt:
                self.sees("a prompt", grant.prompt)
        for pause in keeper.pauses():
            self.sees("a pause", pause)

    def close(self) -> None:
        """Close what is still open, without a look."""
        self.provider.release_all()
        for keeper in self._keepers:
            with contextlib.suppress(Exception):
                self.does(keeper.close())
        self.runner.close()
        self._stack.close()


def quoting(status: int, style: str, error: str = "invalid_token") -> Callable[[str], Response]:
    """An answer that repeats what it was shown: in JSON, in plain words, in HTML, or in the challenge too."""

    def answer(shown: str) -> Response:
        said = f"The credentials are not known: {shown}"
        match style:
            case "json":
                return json_response(status, {"error": error, "error_description": said, "detail": {"seen": [shown]}})
            case "text":
                return Response(status, (("Content-Type", "text/plain"),), said.encode())
            case "html":
                return Response(status, (("Content-Type", "text/html"),), f"<p>{said}</p>".encode())
            case _:
                quoted = shown.replace('"', "").replace("\n", " ")
                challenge = f'Bearer realm="x", error="{error}", error_description="{quoted}"'
                pairs = (("WWW-Authenticate", challenge), ("X-Debug", quoted), ("X-Token", quoted))
                return Response(status, pairs, json.dumps({"error": error}).encode())

    return answer
