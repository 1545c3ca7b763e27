"""Whether a call's arguments can serve once more."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterable, Mapping
from typing import Any

from tokenkeeper.answers.recognition import status_of

_NESTING = 3


def repeatable(args: Iterable[object], kwargs: Mapping[str, object]) -> bool:
    """Say whether a call with these arguments, made once already, can be made again: none holds a used-up stream."""
    return all(map(_reusable, args)) and all(map(_reusable, kwargs.values()))


def _reusable(value: object, depth: int = 0) -> bool:
    """Say whether an argument that a call has had can serve once more."""
    if value is None or isinstance(value, str | bytes | int | float):
        return True
    if isinstance(value, Mapping):
        return depth >= _NESTING or all(_reusable(item, depth + 1) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return depth >= _NESTING or all(_reusable(item, depth + 1) for item in value)
    if inspect.isgenerator(value):
        return inspect.getgeneratorstate(value) == inspect.GEN_CREATED
    if inspect.iscoroutine(value):
        return inspect.getcoroutinestate(value) == inspect.CORO_CREATED
    if not isinstance(value, io.IOBase) and status_of(value) is not None:
        return True  # a response keeps its body
    if callable(getattr(value, "read", None)):
        return _at_its_start(value)
    return not (hasattr(value, "__next__") or hasattr(value, "__anext__"))


def _at_its_start(stream: Any) -> bool:
    """Say whether a stream stands at its start; one that cannot tell is taken as used."""
    if inspect.iscoroutinefunction(stream.read):
        # An upload of Starlette has the real file inside; of other async files the position cannot be asked for here.
        inner = getattr(stream, "file", None)
        return callable(getattr(inner, "tell", None)) and _at_its_start(inner)
    try:
        position = stream.tell() if stream.seekable() else None
    except Exception:  # noqa: BLE001 -- closed, or no such method
        return False
    return position == 0 if isinstance(position, int | None) else True  # a mock tells no position
