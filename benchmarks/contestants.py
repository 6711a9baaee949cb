"""The registry of pools that are measured over fake connections. Adding one takes about ten lines::

    @contestant("somepool", package="somepool")
    async def _somepool(size: int) -> AsyncIterator[Opened]:
        import somepool

        async with somepool.Pool(connect=FakeManager().connect, max_size=size) as pool:
            yield Opened(get=pool.acquire, get_within=lambda seconds: pool.acquire(timeout=seconds))

Each has the pool's own `async with` measured, by its own defaults, but for what is said in its docstring. Where a pool
has no `async with`, the thinnest class that gives it one stands in (`Pair`): 0.2 us of 5 to 20.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal

from .fakes import FakeManager
from .floors import L0, L3

Getter = Callable[[], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A pool that is open: how to get from it, and how to get with a time-out in seconds, if it can."""

    get: Getter
    get_within: Callable[[float], AbstractAsyncContextManager[Any]] | None = None


@dataclass(frozen=True, slots=True)
class Contestant:
    """`open(size)` opens its pool over fake connections, at most `size` of them."""

    name: str
    kind: Literal["ours", "floor", "peer"]
    package: str | None
    open: Callable[[int], AbstractAsyncContextManager[Opened]]
    about: str
    waits: bool  # whether a get waits when all connections are lent


CONTESTANTS: dict[str, Contestant] = {}


def contestant(
    name: str, *, kind: Literal["ours", "floor", "peer"] = "peer", package: str | None = None, waits: bool = True
) -> Callable[[Callable[[int], AsyncIterator[Opened]]], None]:
    """Register the pool that this asynchronous generator opens and closes."""

    def register(opener: Callable[[int], AsyncIterator[Opened]]) -> None:
        about = " ".join((opener.__doc__ or "").split())
        CONTESTANTS[name] = Contestant(name, kind, package, contextlib.asynccontextmanager(opener), about, waits)

    return register


# --- floors and ours


@contestant("L0", kind="floor", waits=False)
async def _l0(size: int) -> AsyncIterator[Opened]:
    """The floor: a deque behind a slotted `async with`, no feature at all."""
    manager = FakeManager()
    yield Opened(L0([await manager.connect() for _ in range(size)]).get)


@contestant("L3", kind="floor")
async def _l3(size: int) -> AsyncIterator[Opened]:
    """A correct pool after bb8 in plain style."""
    pool = L3(FakeManager(), size)
    yield Opened(pool.get, pool.get)


@contestant("ours", kind="ours", package="pool-core")
async def _ours(size: int) -> AsyncIterator[Opened]:
    """At its default settings."""
    from pool_core import Pool

    async with Pool(FakeManager(), max_size=size) as pool:
        yield Opened(pool.get, pool.get)


@contestant("ours-lean", kind="ours", package="pool-core")
async def _lean(size: int) -> AsyncIterator[Opened]:
    """With lifetime, idle time-out, tests and deadlock detection off."""
    from pool_core import Pool

    options: dict[str, Any] = {"max_lifetime": None, "idle_timeout": None, "test_on_check_out": False}
    async with Pool(FakeManager(), max_size=size, detect_deadlock=False, **options) as pool:
        yield Opened(pool.get, pool.get)
