"""The fake provider as a transport, in process, for httpx2 or httpx; and a member's walk over HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import anyio
import httpx2

from tokenkeeper.testing.messages import Delivery, Request, Response

if TYPE_CHECKING:
    from tokenkeeper.testing.provider import FakeProvider

THREADS = 1000
"""How many requests of async clients may be under way at once."""


def sync_transport(provider: FakeProvider, library: ModuleType | None = None) -> httpx2.BaseTransport:
    """A transport of *library* (httpx2 unless given) that asks the provider."""
    http: Any = library or httpx2

    class FakeTransport(http.BaseTransport):  # type: ignore[misc]
        """Answers in the caller's thread."""

        def handle_request(self, request: Any) -> Any:
            request.read()
            response = provider.handle(_translated(request))
            _raise_for_delivery(http, request, response)
            time.sleep(response.delay)
            return _answer(http, response)

    return FakeTransport()


def async_transport(provider: FakeProvider, library: ModuleType | None = None) -> httpx2.AsyncBaseTransport:
    """Its twin. A cancelled call is carried out nevertheless, as at a real provider."""
    http: Any = library or httpx2
    limiter: list[anyio.CapacityLimiter] = []

    class AsyncFakeTransport(http.AsyncBaseTransport):  # type: ignore[misc]
        """Answers from a thread, so that a gate holds one request and not the loop."""

        async def handle_async_request(self, request: Any) -> Any:
            await request.aread()
            if not limiter:
                limiter.append(anyio.CapacityLimiter(THREADS))
            response = await anyio.to_thread.run_sync(
                provider.handle, _translated(request), abandon_on_cancel=True, limiter=limiter[0]
            )
            _raise_for_delivery(http, request, response)
            await anyio.sleep(response.delay)
            return _answer(http, response)

    return AsyncFakeTransport()


def _translated(request: Any) -> Request:
    pairs = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in request.headers.raw)
    return Request(request.method, str(request.url), pairs, request.content)


def _answer(http: Any, response: Response) -> Any:
    return http.Response(response.status, headers=list(response.headers), content=response.body)


def _raise_for_delivery(http: Any, request: Any, response: Response) -> None:
    """Raise what the library raises when an answer travels like this; a wait that would time out does so at once."""
    patience = (request.extensions.get("timeout") or {}).get("read")
    too_late = response.delivery is Delivery.WHOLE and patience is not None and response.delay > patience
    match response.delivery:
        case Delivery.UNREACHABLE:
            raise http.ConnectError("the fake provider is scripted to be unreachable", request=request)
        case Delivery.DROP:
            raise http.RemoteProtocolError("Server disconnected without sending a response.", request=request)
        case Delivery.CUT:
            raise http.RemoteProtocolError(
                "peer closed connection without sending complete message body", request=request
            )
        case Delivery.HANG | Delivery.DRIP:
            too_late = True
    if too_late:
        raise http.ReadTimeout("The read operation timed out", request=request)


@contextlib.contextmanager
def http_sender() -> Iterator[Callable[[Request], Response]]:
    """Send requests over HTTP, follow nothing, read no environment."""
    with httpx2.Client(follow_redirects=False, trust_env=False) as client:

        def send(request: Request) -> Response:
            answer = client.request(request.method, request.url, headers=dict(request.headers), content=request.body)
            return Response(answer.status_code, tuple(answer.headers.items()), answer.content)

        yield send
