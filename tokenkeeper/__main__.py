"""``python -m tokenkeeper`` is the command ``tokenkeeper``."""

from __future__ import annotations

from tokenkeeper.cli import main

if __name__ == "__main__":
    main()
