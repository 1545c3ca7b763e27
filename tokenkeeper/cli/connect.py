"""``tokenkeeper connect``: connect a member from this machine, with the registration's loopback redirect URI.

The callback is received once, by a server that listens on the loopback addresses only (RFC 8252 section 7.3). Neither
code nor state is printed or logged, but for the state in the URL that the member must open.
"""

from __future__ import annotations

import html
import queue
import socket
import threading
import webbrowser
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import click
from rich.text import Text

from tokenkeeper.cli.output import without_fix
from tokenkeeper.cli.session import Command, Session, keeper_options, pass_session
from tokenkeeper.errors import ConfigurationError, TemporarilyUnavailable, TokenKeeperError
from tokenkeeper.model import Connection

if TYPE_CHECKING:
    from tokenkeeper.keeper import TokenKeeper

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:18vh auto;padding:0 1rem}}</style></head>
<body><h1>{title}</h1><p>{text}</p></body></html>
"""
SHORTEST_WAIT, LONGEST_WAIT = 1, 3600
_WAITS_FOR_PAGE = 5.0


@dataclass(slots=True)
class Callback:
    """A callback: its path and query, how it went (None, or why the member is not connected), and its page's end."""

    target: str = field(repr=False)
    outcome: Future[str | None] = field(default_factory=Future)
    answered: threading.Event = field(default_factory=threading.Event)


@click.command(cls=Command)
@click.argument("registration")
@click.argument("member")
@click.option("--no-browser", is_flag=True, help="Only print the URL.")
@click.option("--scope", "scopes", multiple=True, help="Ask for this scope, too; may be repeated.")
@click.option(
    "--timeout", type=click.IntRange(SHORTEST_WAIT, LONGEST_WAIT), default=300, show_default=True, metavar="SECONDS",
    help="How long to wait for the member.",
)  # fmt: skip
@keeper_options
@pass_session
@click.pass_context
def connect(
    ctx: click.Context,
    session: Session,
    *,
    registration: str,
    member: str,
    no_browser: bool,
    scopes: tuple[str, ...],
    timeout: int,
) -> None:
    """Connect a member from this machine.

    Opens the provider's page (or prints its URL), receives the callback and saves the grant of MEMBER at REGISTRATION.
    Works where the registration's redirect_uri is on this machine, as in http://127.0.0.1:8400/callback.
    """
    keeper = session.keeper(ctx)
    known = keeper.registrations.get(registration)
    if known is None:
        names = ", ".join(keeper.registrations) or "there is none"
        raise ConfigurationError(
            f"there is no registration {registration!r}", cause="unknown_registration", fix=f"name one of: {names}"
        )
    address = _loopback(registration, known.redirect_uri)
    with _listening(address) as callbacks:
        request = keeper.begin_authorization(registration, member, scopes=list(scopes) or None)
        if session.json:
            session.out.line({"url": request.url, "expires_at": request.expires_at})
        else:
            session.out.text(Text.assemble("Open this as ", (member, "bold"), ", within ", f"{timeout} seconds:"))
            session.out.text(request.url)
        if not no_browser:
            webbrowser.open(request.url)
        try:
            callback = callbacks.get(timeout=timeout)
        except queue.Empty:
            raise TemporarilyUnavailable(
                f"nobody came back from the provider within {timeout} seconds; nothing was changed",
                registration=registration,
                member=member,
                cause="no_callback",
                fix="run it again and open the URL in time (--timeout)",
            ) from None
        connection = _finish(keeper, callback, f"{address.scheme}://{address.netloc}", member)
    grant = connection.grant
    session.out.result(
        {"connected": asdict(grant)},
        [
            Text.assemble(
                ("connected: ", "green"), f"{member} at {registration}, scopes: {' '.join(grant.scopes) or '-'}"
            )
        ],
    )


def _finish(keeper: TokenKeeper, callback: Callback, origin: str, member: str) -> Connection:
    """Finish the authorization, and let the member's browser show how it went before anything else happens."""
    problem: str | None = "Something failed here; see the terminal."
    try:
        connection = keeper.finish_authorization(f"{origin}{callback.target}", member=member)
        problem = None
    except TokenKeeperError as error:
        problem = f"{without_fix(error)} See the terminal."
        raise
    finally:
        callback.outcome.set_result(problem)
        callback.answered.wait(_WAITS_FOR_PAGE)
    return connection


def _loopback(registration: str, redirect_uri: str | None) -> SplitResult:
    """Return the redirect URI if this machine can listen on it. Raises ConfigurationError saying what to do if not."""
    address = urlsplit(redirect_uri or "")
    host = address.hostname or ""
    if address.scheme != "http" or not (host == "localhost" or _is_loopback(host)):
        raise ConfigurationError(
            f"{registration}'s redirect_uri ({redirect_uri or 'none'}) is not on this machine",
            registration=registration,
            cause="redirect_uri",
            fix="connect the member in your application, or register http://127.0.0.1:8400/callback "
            "at the provider and in the settings",
        )
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _listening(address: SplitResult) -> Iterator[queue.Queue[Callback]]:
    """Listen on the loopback addresses that *address* names; yield the queue in which the first callback arrives."""
    callbacks: queue.Queue[Callback] = queue.Queue()
    first = threading.Lock()

    class Handler(_Handler):
        path_wanted = address.path or "/"
        received = callbacks
        once = first

    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(address.hostname, address.port or 80, type=socket.SOCK_STREAM)
            for family, _, _, _, place in dict.fromkeys(found):
                server = stack.enter_context(_Server(family, place, Handler))
                thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
                thread.start()
                stack.callback(server.shutdown)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {address.hostname}:{address.port or 80}: {error.strerror}",
                cause="port",
                fix="end what listens there, or register another port at the provider and in the settings",
            ) from None
        yield callbacks


class _Server(ThreadingHTTPServer):
    # A browser opens connections in advance; each has a thread, so that none of them holds up the callback.
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, family: int, place: Any, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AddressFamily(family)
        super().__init__(place, handler)

    def server_bind(self) -> None:
        """Bind, without the base's look-up of this machine's name, which may wait for DNS."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the base prints a traceback, and a browser that closes a connection is no error."""


class _Handler(BaseHTTPRequestHandler):
    timeout = 10
    path_wanted: str
    received: queue.Queue[Callback]
    once: threading.Lock

    def do_GET(self) -> None:
        """Take the first callback, and answer when it is known what became of it."""
        path, _, query = self.path.partition("?")
        if path != self.path_wanted or not query:
            self._page(404, "Not here", "tokenkeeper waits for the provider's callback, and this is not it.")
        elif not self.once.acquire(blocking=False):
            self._page(409, "Already received", "The callback came before; see the terminal.")
        else:
            callback = Callback(self.path)
            self.received.put(callback)
            try:
                self._tell(callback.outcome.result())
            finally:
                callback.answered.set()

    def _tell(self, problem: str | None) -> None:
        if problem is None:
            self._page(200, "Connected", "You can close this window.")
        else:
            self._page(400, "Not connected", html.escape(problem))

    def _page(self, status: int, title: str, text: str) -> None:
        body = PAGE.format(title=title, text=text).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Log nothing: the path holds code and state."""
