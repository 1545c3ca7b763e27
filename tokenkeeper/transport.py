"""Our own way to the token endpoint: one request, one connection, one answer, one deadline.

What a general HTTP client does for its users would do harm here. There are no redirects (a 307 would hand the refresh
token to another host), no cookies shared between members, no netrc, no retries, no connection kept alive that may be
dead already, no decompression without a limit, and no timeout that a slow drip renews. Outcomes are values, because the
frames of an HTTP library's exceptions hold the form with the refresh token.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore2
import httpx2

from tokenkeeper.core.token_endpoint import (
    CLAIM_LOST,
    LARGEST_ANSWER,
    NeverSent,
    TokenRequest,
    Unanswered,
    check_endpoint,
    is_loopback,
)
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Answer

_ours: ContextVar[bool] = ContextVar("tokenkeeper_token_request", default=False)


class _Discretion(logging.Filter):
    """Cuts what httpcore logs of our exchanges down to the step's name: it adds the headers, which may quote a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, cut if it is about an exchange of ours."""
        if _ours.get():
            record.msg, record.args = str(record.msg).partition(" ")[0], ()
        return True


for _name in ("httpcore2.connection", "httpcore2.http11", "httpcore2.proxy"):
    logging.getLogger(_name).addFilter(_Discretion())

CONNECT_SHARE = 0.5
"""The part of the deadline after which a request that is not on its way yet is not sent any more.

A request sent in the last moment is an ambiguous outcome in the making; one that was not sent costs nothing.
"""


class Transport:
    """Sends requests to token endpoints. Constructing does no I/O; threads may share it, and so may a forked child.

    *inner* takes the network's place in tests (an ``httpx2.MockTransport``, or an application in process).
    *monotonic* is the clock that the deadline is measured with, in seconds.
    """

    def __init__(
        self, inner: httpx2.BaseTransport | None = None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner = inner
        self._monotonic = monotonic
        self._ssl_context: ssl.SSLContext | None = None

    def send(
        self, request: TokenRequest, *, deadline: float, before_send: Callable[[], bool] = lambda: True
    ) -> Answer | NeverSent | Unanswered:
        """Send a request and return its answer, or what is known of its fate. *deadline*: seconds from now for it all.

        *before_send* is called once, when the connection stands and nothing of the request was written yet; if it says
        no, or fails, nothing is sent. A redirect comes back as the answer that it is. Raises ConfigurationError for a
        URL that is not https (loopback may be http) and for a proxy that cannot be used.
        """
        check_endpoint(request.url, "endpoint")
        exchange = _Exchange(self._monotonic, deadline, before_send)
        interruption: BaseException | None = None
        quiet = _ours.set(True)
        try:
            return self._exchange(request, exchange)
        except ConfigurationError as error:
            interruption = error
        except Exception as error:  # noqa: BLE001 - whatever happened on the way is an outcome
            return exchange.outcome(error)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C goes on below
            interruption = error
        finally:
            _ours.reset(quiet)
        # Outside the except clauses, without the frames that hold the form: a traceback may be printed with its locals.
        interruption.__context__ = None
        raise interruption.with_traceback(None)

    def close(self) -> None:
        """Let go of what was opened."""
        if self._inner is not None:
            self._inner.close()

    def _exchange(self, request: TokenRequest, exchange: _Exchange) -> Answer:
        inner = self._inner
        if inner is None:
            # Loading the trust store takes a while, which a deadline on plain loopback has not got.
            secure = urlsplit(request.url).scheme == "https"
            inner = _Wire(exchange, self._verification() if secure else None, _proxy_for(request.url))
        else:
            exchange.confirm()
        response = inner.handle_request(
            httpx2.Request(
                "POST",
                request.url,
                headers=[*request.headers, *_OUR_HEADERS],
                content=request.body.reveal().encode("ascii"),
                extensions={"trace": exchange.trace, "timeout": exchange.timeouts()},
            )
        )
        try:
            headers = [
                (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers.raw
            ]
            return Answer(response.status_code, tuple(headers), b"".join(exchange.bounded(response.iter_bytes())))
        finally:
            response.close()

    def _verification(self) -> ssl.SSLContext:
        """The system's trust store, loaded once (or twice by two threads that come first, which is harmless)."""
        if self._ssl_context is None:
            try:
                self._ssl_context = httpcore2.default_ssl_context()
            except OSError as error:
                raise ConfigurationError(
                    f"the trust store that TLS needs cannot be loaded ({error.strerror}): nothing was sent. It is the "
                    "operator's turn.",
                    cause="bad_trust_store",
                    fix="Correct or unset SSL_CERT_FILE and SSL_CERT_DIR, or install the system's CA certificates.",
                ) from None
        return self._ssl_context


_OUR_HEADERS = (("accept-encoding", "identity"), ("connection", "close"), ("user-agent", "tokenkeeper"))


class _Withheld(Exception):
    """Nothing is sent, for a reason of ours."""


class _TooLarge(Exception):
    """The answer is larger than what is read."""


class _Exchange:
    """One request's deadline, and how far it got."""

    def __init__(self, monotonic: Callable[[], float], deadline: float, before_send: Callable[[], bool]) -> None:
        self._monotonic = monotonic
        self._before_send = before_send
        started = monotonic()
        self._send_by = started + deadline * CONNECT_SHARE
        self._end = started + deadline
        self.sent = False

    def remaining(self) -> float:
        """Seconds left for this step; raises when there are none, because a timeout of 0 would mean something else."""
        left = (self._end if self.sent else self._send_by) - self._monotonic()
        if left <= 0:
            raise httpcore2.TimeoutException
        return left

    def timeouts(self) -> dict[str, float]:
        """What an inner transport that knows timeouts is told; our own network asks :meth:`remaining` at each step."""
        return dict.fromkeys(("connect", "read", "write", "pool"), self.remaining())

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """httpcore's hook. A CONNECT to a proxy is not the request yet."""
        if event == "http11.send_request_headers.started" and info["request"].method != b"CONNECT":
            self.confirm()

    def confirm(self) -> None:
        """The last moment before the request is written: whoever holds the claim may stop it now."""
        self.remaining()
        try:
            go = self._before_send()
        except Exception as error:  # noqa: BLE001 - a claim that cannot be confirmed is no claim
            raise _Withheld(f"the claim could not be confirmed ({type(error).__name__})") from None
        if not go:
            raise _Withheld(CLAIM_LOST)
        self.remaining()
        self.sent = True

    def bounded(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The answer's body, decoded, up to the limit and the deadline."""
        size = 0
        for chunk in chunks:
            size += len(chunk)
            if size > LARGEST_ANSWER:
                raise _TooLarge
            self.remaining()
            yield chunk

    def outcome(self, error: Exception) -> NeverSent | Unanswered:
        """What became of the request, without a word that the provider said or that was sent to it."""
        if isinstance(error, _Withheld):
            return NeverSent(str(error))
        if isinstance(error, _TooLarge):
            return Unanswered(f"answer too large (more than {LARGEST_ANSWER} bytes)")
        never_sent = not self.sent or isinstance(error, _BEFORE_SENDING)
        timed_out = isinstance(error, httpcore2.TimeoutException | httpx2.TimeoutException)
        reason = "deadline" if timed_out else type(error).__name__
        if never_sent and not timed_out:
            reason = f"{reason}: {_local_words(error)}"
        return NeverSent(reason) if never_sent else Unanswered(reason)


_BEFORE_SENDING = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
"""What an inner transport raises only before it has written anything."""


def _local_words(error: Exception) -> str:
    """What the operating system or OpenSSL said of a failed connection; a proxy's words are capped and escaped."""
    return ascii(str(error)[:200])[1:-1]


def _proxy_for(url: str) -> httpcore2.Proxy | None:
    """The environment's proxy for an https URL (``HTTPS_PROXY`` or ``ALL_PROXY``, but for ``NO_PROXY``)."""
    parts = urlsplit(url)
    if parts.scheme != "https" or is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    found = proxies.get("https") or proxies.get("all")
    if not found:
        return None
    try:
        proxy = httpx2.Proxy(found if "://" in found else f"http://{found}")
        if proxy.url.scheme in {"http", "https"} and proxy.url.host:
            return httpcore2.Proxy(
                httpcore2.URL(
                    scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=proxy.url.raw_path
                ),
                auth=proxy.raw_auth,
            )
    except (ValueError, httpx2.InvalidURL):
        pass
    del found
    raise ConfigurationError(
        "the proxy that the environment names for https cannot be used: nothing was sent. It is the operator's turn.",
        cause="bad_proxy",
        fix="Set HTTPS_PROXY to an http:// or https:// proxy, or exempt the provider's host with NO_PROXY.",
    )


# --- the network, with one deadline ----------------------------------------------------------------------------------


class _Wire(httpx2.BaseTransport):
    """One request over one connection of its own."""

    def __init__(self, exchange: _Exchange, ssl_context: ssl.SSLContext | None, proxy: httpcore2.Proxy | None) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=ssl_context,
            proxy=proxy,
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=_Network(exchange),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._pool.handle_request(
            httpcore2.Request(
                request.method,
                httpcore2.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.read(),
                extensions=request.extensions,
            )
        )
        return httpx2.Response(response.status, headers=response.headers, stream=_Body(response, self._pool))


class _Body(httpx2.SyncByteStream):
    """An answer's body; closing it closes the connection."""

    def __init__(self, response: httpcore2.Response, pool: httpcore2.ConnectionPool) -> None:
        self._response = response
        self._pool = pool

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_stream()

    def close(self) -> None:
        self._response.close()
        self._pool.close()


class _Network(httpcore2.NetworkBackend):
    """Connects within the exchange's deadline, which is shared fairly among a host's addresses."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline counts
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved: {error}") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        while True:
            share = self._exchange.remaining() / len(addresses)
            try:
                stream = self._sockets.connect_tcp(addresses.pop(0), port, share, local_address, socket_options)
                return _Stream(stream, self._exchange)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not addresses:
                    raise


class _Stream(httpcore2.NetworkStream):
    """A connection whose every step has only what is left of the exchange's deadline."""

    def __init__(self, stream: httpcore2.NetworkStream, exchange: _Exchange) -> None:
        self._stream = stream
        self._exchange = exchange

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, self._exchange.remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, self._exchange.remaining())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        try:
            return _Stream(
                self._stream.start_tls(ssl_context, server_hostname, self._exchange.remaining()), self._exchange
            )
        except BaseException:
            self.close()  # nobody else knows this connection yet
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
