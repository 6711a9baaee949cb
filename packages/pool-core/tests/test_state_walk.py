"""Small pools walked breadth first: every state that can be reached in so many steps keeps the invariants."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import pytest
from pool_core import QueueStrategy

from .model import World

DEPTH = int(os.environ.get("POOL_WALK_STATES", "2500"))
"""Distinct states a pool; the soak session walks further."""


def walk(most: int, **options: Any) -> tuple[int, bool]:
    """Visit states breadth first, each checked as it is reached. Returns how many, and whether those were all."""
    first = World(**options)
    seen = {first.fingerprint()}
    queue: deque[tuple[World, list[Any]]] = deque([(first, [])])
    while queue:
        world, path = queue.popleft()
        for op in world.operations():
            if len(seen) >= most:
                return len(seen), False
            twin = world.copy()
            try:
                twin.do(op)
            except AssertionError as error:
                error.add_note(f"after {[*path, op]}")
                raise
            mark = twin.fingerprint()
            if mark not in seen:
                seen.add(mark)
                queue.append((twin, [*path, op]))
    return len(seen), True


POOLS: dict[str, dict[str, Any]] = {
    "one connection": {"max_size": 1, "getters": 2},
    "two connections": {"max_size": 2},
    "without reset": {"max_size": 2, "resets": False},
    "with min_idle": {"max_size": 2, "min_idle": 1, "getters": 2},
    "always tested": {"max_size": 2, "alive_bypass": 0, "getters": 2},
    "never tested": {"max_size": 2, "test_on_check_out": False, "getters": 2},
    "without retry": {"max_size": 2, "retry_connection": False, "getters": 2},
    "one connect at a time": {"max_size": 2, "max_connecting": 1},
    "bounded queue": {"max_size": 1, "max_waiting": 1},
    "kept alive": {"max_size": 2, "keepalive": 1.5, "max_connecting": 1, "getters": 2},
    "first in first out": {"max_size": 2, "queue_strategy": QueueStrategy.FIFO, "getters": 2},
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", POOLS)
def test_every_state_reached_by_a_small_pool_keeps_the_invariants(name: str, record_property: Any) -> None:
    """A race that needs three events in the right order is met here, not in production."""
    states, complete = walk(DEPTH, **POOLS[name])
    record_property("states", states)
    print(f"{name}: {states} states{', all there are' if complete else ''}")
    assert complete or states == DEPTH
