"""The examples run as they stand there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tokenkeeper.testing import FakeProvider
from tokenkeeper.testing.clock import TestClock

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_the_web_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example's member connects, does not notice that the token expired, and is asked again after a revocation."""
    specification = importlib.util.spec_from_file_location("web_backend", EXAMPLES / "web_backend.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    clock = TestClock()
    provider = FakeProvider(flavor="linkedin", clock=clock)
    with provider.serve():
        backend = module.Backend(provider, f"sqlite:///{tmp_path / 'tokens.db'}", "http://127.0.0.1:8000")
        with clock.install(backend.keeper):

            def visit(path: str, query: str = "") -> tuple[str, str]:
                status, headers, body = backend.page(path, query)
                return status[:3], dict(headers).get("Location", body)

            status, url = visit("/me")
            assert status == "303"
            callback = provider.consent(url, member="ann")
            assert visit("/callback", callback.partition("?")[2]) == ("303", "/me")
            assert visit("/me")[0] == "200"
            assert visit("/expire") == ("303", "/me")
            assert visit("/me")[0] == "200"
            assert provider.token_requests == 2
            assert visit("/revoke") == ("303", "/me")
            status, url = visit("/me")
            assert status == "303"
            assert url.startswith(provider.base_url)
            assert visit("/nowhere")[0] == "404"
    assert "mail to ann" in capsys.readouterr().out
