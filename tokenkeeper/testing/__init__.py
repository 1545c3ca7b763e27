"""For your own tests: a fake provider, in process or over HTTP on loopback, and a clock that a test moves.

>>> from tokenkeeper.testing import FakeProvider
>>> provider = FakeProvider(rotation="strict")
>>> provider.issue(member="ann")["refresh_token"]
'refresh-1'

Everything is loaded when it is first named: pytest imports this package for :mod:`tokenkeeper.testing.fixtures`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME_OF = {
    "Delivery": "tokenkeeper.testing.messages",
    "FakeProvider": "tokenkeeper.testing.provider",
    "Gate": "tokenkeeper.testing.script",
    "Presentation": "tokenkeeper.testing.messages",
    "Request": "tokenkeeper.testing.messages",
    "Response": "tokenkeeper.testing.messages",
    "TestClock": "tokenkeeper.testing.clock",
}

__all__ = ["Delivery", "FakeProvider", "Gate", "Presentation", "Request", "Response", "TestClock"]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from tokenkeeper.testing.clock import TestClock
    from tokenkeeper.testing.messages import Delivery, Presentation, Request, Response
    from tokenkeeper.testing.provider import FakeProvider
    from tokenkeeper.testing.script import Gate
