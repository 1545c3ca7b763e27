"""The spill: new tokens on their way to the store, sealed, one small file each, in case the store is down.

Written and fsynced *before* the save, removed after it, replayed at start and when the store is back; the
compare-and-set makes twice harmless. A file holds no readable secret.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenkeeper.store.sealed import SealedTokens

logger = logging.getLogger(__name__)

SUFFIX = ".sealed"
VERSION = 1


class Spill:
    """A folder for new tokens that are not stored yet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, save_id: str, sealed: SealedTokens, expires_at: float | None) -> None:
        """Write the sealed tokens and fsync. ``expires_at``: their end in epoch seconds. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "version": VERSION,
            **{f.name: getattr(sealed, f.name) for f in dataclasses.fields(sealed)},
            "access_token": base64.b64encode(sealed.access_token).decode(),
            "refresh_token": None if sealed.refresh_token is None else base64.b64encode(sealed.refresh_token).decode(),
            "expires_at": expires_at,
            "expires_in": None,
        }
        path = self._directory / f"{save_id}{SUFFIX}"
        part = path.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self, save_id: str) -> None:
        """Remove the file of tokens that are stored (or nobody's any more)."""
        with contextlib.suppress(OSError):
            (self._directory / f"{save_id}{SUFFIX}").unlink(missing_ok=True)

    def read(self) -> Iterator[tuple[str, SealedTokens]]:
        """Yield what has been spilled: ``(save_id, tokens)``. A file that cannot be read is left and logged."""
        if not self._directory.is_dir():
            return
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            try:
                record = json.loads(path.read_text())
                if record.pop("version") != VERSION:
                    logger.warning("spill file %s is of another version: it is left where it is", path.name)
                    continue
                sealed = SealedTokens(
                    **{
                        **record,
                        "access_token": base64.b64decode(record["access_token"]),
                        "refresh_token": record["refresh_token"] and base64.b64decode(record["refresh_token"]),
                        "scopes": None if record["scopes"] is None else tuple(record["scopes"]),
                    }
                )
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning(
                    "spill file %s cannot be read (%s): it is left where it is", path.name, type(error).__name__
                )
                continue
            yield path.name.removesuffix(SUFFIX), sealed
