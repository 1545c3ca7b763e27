"""For your own tests: a fake provider, in process or over HTTP on loopback.

>>> from tokenkeeper.testing import FakeProvider
>>> provider = FakeProvider(rotation="strict")
>>> provider.issue(member="ann")["refresh_token"]
'refresh-1'
"""

from __future__ import annotations

from tokenkeeper.testing.messages import Delivery, Presentation, Request, Response
from tokenkeeper.testing.provider import FakeProvider
from tokenkeeper.testing.script import Gate

__all__ = ["Delivery", "FakeProvider", "Gate", "Presentation", "Request", "Response"]
