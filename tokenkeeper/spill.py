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
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenkeeper.store.sealed import SealedTokens

logger = logging.getLogger(__name__)

SUFFIX = ".sealed"
PART = ".part"
"""Of a file that is being written; a worker that was killed then may have left all of it there."""

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
        path = self._directory / f"{sealed.grant_id}-{save_id}{SUFFIX}"
        part = path.with_suffix(PART)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        folder = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def holds(self, grant_id: str, save_id: str) -> bool:
        """Whether the tokens are there, whole."""
        return (self._directory / f"{grant_id}-{save_id}{SUFFIX}").exists()

    def prove(self) -> None:
        """Write a file and remove it again. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(dir=self._directory, prefix="proof-")
        os.close(file)
        Path(name).unlink()

    def remove(self, grant_id: str, save_id: str) -> None:
        """Remove the file of tokens that are stored (or nobody's any more)."""
        with contextlib.suppress(OSError):
            for name in (f"{grant_id}-{save_id}", save_id):  # the second is what they were called once
                for suffix in (SUFFIX, PART):
                    (self._directory / f"{name}{suffix}").unlink(missing_ok=True)

    def read(self, grant_id: str | None = None) -> Iterator[tuple[str, SealedTokens]]:
        """Yield what has been spilled, of a grant or of all: ``(save_id, tokens)``.

        A file whose content cannot be used is left and logged. What a killed worker had written but not put in its
        place is read, too; if it is cut short that is no news. Raises OSError where the folder, or a file of the grant
        that was asked for, cannot be read: the tokens may be in there.
        """
        if not self._directory.is_dir():
            return
        # The parts first: what is put in its place meanwhile is then among the others.
        for path in (path for suffix in (PART, SUFFIX) for path in sorted(self._directory.glob(f"*{suffix}"))):
            named = path.stem.rpartition("-")[0]
            if grant_id is not None and named not in ("", grant_id):
                continue
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
            except OSError as error:
                if grant_id is not None and named == grant_id:
                    raise
                logger.warning("spill file %s cannot be read (%s): it is left where it is", path.name, error.strerror)
                continue
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if path.suffix == SUFFIX:
                    logger.warning(
                        "spill file %s cannot be read (%s): it is left where it is", path.name, type(error).__name__
                    )
                continue
            if grant_id in (None, sealed.grant_id):
                yield path.stem.rpartition("-")[2], sealed
