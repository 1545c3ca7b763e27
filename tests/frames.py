"""Which frames of a traceback are the package's own, wherever the checkout lies."""

from __future__ import annotations

import os
from pathlib import Path

import tokenkeeper

PACKAGE = str(Path(tokenkeeper.__file__).parent) + os.sep


def in_package(filename: str) -> bool:
    """Whether a frame's file is one of the installed package's, and not a test's in a folder of the same name."""
    return filename.startswith(PACKAGE)
