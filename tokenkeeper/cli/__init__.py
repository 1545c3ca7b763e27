"""The command ``tokenkeeper``. It needs the extra ``cli`` (Click and Rich); the library does not."""

from __future__ import annotations

import importlib
import sys

EXTRA = "pip install 'tokenkeeper[cli]'"


def main() -> None:
    """Run the command; exit 0 for done, 1 for refused or failed, 2 for wrong usage or a missing extra."""
    try:
        app = importlib.import_module("tokenkeeper.cli.app")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"click", "rich"}:
            raise
        sys.stderr.write(f"tokenkeeper's command needs the extra 'cli' ({error.name} is missing): {EXTRA}\n")
        raise SystemExit(2) from None
    app.cli(prog_name="tokenkeeper")
