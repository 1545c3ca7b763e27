"""The laboratory's one log: JSON lines that every process appends to, and the parent's view of them.

A line is one ``write`` on a descriptor opened with O_APPEND: it is whole, in order, and survives the writer's SIGKILL.
``at`` is CLOCK_MONOTONIC, which all processes of a machine share and which libfaketime leaves alone.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Line = dict[str, Any]


class Log:
    """Appends lines."""

    def __init__(self, path: Path, **always: Any) -> None:
        self.path = path
        self._always = always
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, **more: Any) -> None:
        """Append one line."""
        line = {"at": time.monotonic(), "event": event, **self._always, **more}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Reader:
    """Follows a log while processes write it: a thread that sorts the lines by member and wakes whoever waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, list[Line]] = {}
        self._members: dict[str, str] = {}
        """Grant -> its member: what touches only sealed tokens knows no more than the grant."""
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._path.touch()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        with self._path.open("rb") as file:
            rest = b""
            while True:
                last_look = self._stop.is_set()
                fresh = file.read()
                if fresh:
                    *whole, rest = (rest + fresh).split(b"\n")
                    with self._changed:
                        for text in whole:
                            self._sort(json.loads(text))
                        self._changed.notify_all()
                elif last_look:
                    return
                else:
                    self._stop.wait(0.01)

    def _sort(self, line: Line) -> None:
        grant, member = line.get("grant"), line.get("member")
        if member is None:
            member = line["member"] = self._members.get(grant or "", "")
        elif grant is not None:
            self._members[grant] = member
        self._lines.setdefault(member, []).append(line)

    def of(self, member: str) -> list[Line]:
        """All lines about a member so far, in the order of their times."""
        with self._changed:
            return sorted(self._lines.get(member, ()), key=lambda line: line["at"])

    def wait(self, member: str, found: Callable[[list[Line]], Any], seconds: float) -> Any:
        """Wait until *found* says something true about the member's lines, and return that; else its last word."""
        with self._changed:
            self._changed.wait_for(lambda: found(self._lines.get(member, [])), seconds)
            return found(self._lines.get(member, []))


def first(event: str, **like: Any) -> Callable[[list[Line]], Line | None]:
    """What looks for the first line of an event with these values."""

    def look(lines: list[Line]) -> Line | None:
        return next(
            (
                line
                for line in lines
                if line["event"] == event and all(line.get(name) == value for name, value in like.items())
            ),
            None,
        )

    return look
