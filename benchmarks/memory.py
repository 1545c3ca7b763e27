"""6. Memory a cached grant, and that the cache is bounded: three times its size in members leave no more than its size."""

from __future__ import annotations

import gc
import tracemalloc

from harness import Effort, Figure
from house import REGISTRATION, TOKEN_PADDING, House, house


def run(effort: Effort) -> list[Figure]:
    """Fill two caches, a large one and one of a third of the members."""
    size = effort.of(400, 60)
    with house() as built:
        members = [f"member-{number}" for number in range(3 * size)]
        for member in members:
            built.connect(member)
        large, kept_all = _filled(built, members, 3 * size)
        small, kept_some = _filled(built, members, size)
    note = f"of which the token itself is {len(TOKEN_PADDING) / 1024:.2f}"
    return [
        Figure("memory a cached grant", large / kept_all / 1024, "KiB", 2.0, note),
        Figure(f"grants in a cache of {size} after {3 * size} members", kept_some, "", size),
        Figure("its memory / that of the cache that holds all", small / large, "x", 0.5),
    ]


def _filled(built: House, members: list[str], size: int) -> tuple[int, int]:
    """Bytes that a keeper's cache holds after it served all members, and how many grants."""
    keeper = built.another_keeper(cache_size=size)
    keeper.access_token(REGISTRATION, members[0])  # what is made once: connections, compiled statements
    keeper._room.cache.clear()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for member in members:
            keeper.access_token(REGISTRATION, member)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before, len(keeper._room.cache)
