"""The growth laws: what one operation costs does not depend on how many connections idle or how many gets wait.

Work is counted, not timed, so that nothing here can flake: the lines and calls that run in the pool's own modules, and
the elements that a call or a comparison in C has to walk over.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool, PoolTimeout, QueueStrategy
from pool_core._slot import Slot, Waiter
from pool_core.testing import FakeManager, run

from .helpers import books

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

FEW, MANY = 10, 10_000
CROWD = 100  # fewer, and what is done once for all weighs more than what is done for each
# Methods that walk over the list or deque they are called on.
WALKS = {"remove", "index", "count", "insert", "copy", "reverse", "sort", "rotate", "extend"}


class Work:
    """Counts what runs in ``pool_core`` while it is on."""

    def __init__(self) -> None:
        self.count = 0

    def profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in ("call", "c_call") or not _is_core(frame):
            return
        self.count += 1
        if event == "c_call" and arg.__name__ in WALKS and isinstance(arg.__self__, list | deque):
            self.count += len(arg.__self__)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            return self.trace if _is_core(frame) else None
        self.count += event == "line"
        return self.trace

    def compared(self, one: object, other: object) -> bool:
        """Stands for the comparison of slots and waiters: a search through a container asks for many."""
        self.count += 1
        return one is other

    @contextmanager
    def counting(self) -> Iterator[None]:
        self.count = 0
        # A debugger, or the measuring of coverage, keeps its own tracing: then lines are not counted.
        traced = sys.gettrace() is None
        gc.disable()  # nothing is finalized in between
        sys.setprofile(self.profile)
        if traced:
            sys.settrace(self.trace)
        try:
            yield
        finally:
            if traced:
                sys.settrace(None)
            sys.setprofile(None)
            gc.enable()


def _is_core(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return module.startswith("pool_core.") and not module.startswith("pool_core.testing")


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    counter = Work()
    for kind in (Slot, Waiter):
        monkeypatch.setattr(kind, "__eq__", lambda one, other: counter.compared(one, other))
    return counter


async def fill(pool: Pool[Any], size: int) -> None:
    leases = [await pool.get() for _ in range(size)]
    for lease in leases:
        lease.release()


async def get_and_release(pool: Pool[Any], work: Work, times: int) -> float:
    """What one get and release costs, in units of work."""
    with work.counting():
        for _ in range(times):
            async with pool.get():
                pass
    return work.count / times


@pytest.mark.parametrize("strategy", QueueStrategy)
@pytest.mark.parametrize("observed", [False, True], ids=["warm", "slow"])
def test_a_get_costs_the_same_however_many_connections_idle(
    work: Work, strategy: QueueStrategy, *, observed: bool
) -> None:
    """aiomysql looks at every idle connection at each get: a large pool must not be a slow one."""

    async def main(size: int) -> float:
        listeners = [lambda _: None] if observed else []
        async with Pool(FakeManager(), max_size=size, queue_strategy=strategy, listeners=listeners) as pool:
            await fill(pool, size)
            return await get_and_release(pool, work, 50)

    assert run(main, MANY) == run(main, FEW)


def test_a_get_of_a_connection_that_must_be_tested_costs_the_same_however_many_idle(work: Work) -> None:
    """After a quiet night all connections are stale: the first gets of the morning must not look at each of them."""

    async def main(size: int) -> float:
        async with Pool(FakeManager(), max_size=size) as pool:
            await fill(pool, size)
            await asyncio.sleep(100)
            async with pool.get():
                pass
            await asyncio.sleep(10)
            return await get_and_release(pool, work, 1)

    assert run(main, MANY) <= run(main, FEW) * 1.1


def test_a_get_allocates_no_more_however_many_connections_idle() -> None:
    """A copy of a list is one call to the profiler, whatever its length; its memory tells."""

    async def main(size: int) -> int:
        async with Pool(FakeManager(), max_size=size) as pool:
            await fill(pool, size)
            async with pool.get():
                pass
            gc.collect()
            tracemalloc.start()
            async with pool.get():
                pass
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return peak

    assert run(main, MANY) <= run(main, FEW) + 2000


async def crowd(pool: Pool[Any], size: int, timeout: Callable[[int], float | None]) -> list[asyncio.Task[None]]:
    """So many gets that wait, in the order of their tasks."""

    async def wait(number: int) -> None:
        async with pool.get(timeout(number)):
            pass

    tasks = [asyncio.create_task(wait(number)) for number in range(size)]
    await asyncio.sleep(0)
    assert pool.state().waiting == size
    return tasks


def per_waiter(
    work: Work,
    size: int,
    act: Callable[[Pool[Any], Any, list[asyncio.Task[None]]], Awaitable[None]],
    timeout: Callable[[int], float | None] = lambda _: None,
) -> float:
    """What one waiter costs from queueing to its end, in units of work, when so many wait for one connection."""

    async def main() -> float:
        async with Pool(FakeManager(), max_size=1) as pool:
            lease = await pool.get()
            with work.counting():
                tasks = await crowd(pool, size, timeout)
                await act(pool, lease, tasks)
                await asyncio.wait(tasks)
            lease.release()
            async with pool.get():
                books(pool)
            assert pool.state().waiting == 0
            return work.count / size

    return run(main)


def test_to_queue_and_be_served_costs_the_same_however_many_wait(work: Work) -> None:
    """A long queue is the worst moment to become slow."""

    async def serve(pool: Pool[Any], lease: Any, tasks: list[asyncio.Task[None]]) -> None:
        lease.release()

    assert per_waiter(work, MANY, serve) <= per_waiter(work, CROWD, serve) * 1.1


@pytest.mark.parametrize("newest_first", [False, True], ids=["oldest first", "newest first"])
def test_a_cancel_costs_the_same_however_many_are_cancelled(work: Work, *, newest_first: bool) -> None:
    """Every pool on asyncio's Queue, Condition or Semaphore searches its waiters at each cancel: n of them take n squared."""

    async def cancel(pool: Pool[Any], lease: Any, tasks: list[asyncio.Task[None]]) -> None:
        for task in reversed(tasks) if newest_first else tasks:
            task.cancel()

    assert per_waiter(work, MANY, cancel) <= per_waiter(work, CROWD, cancel) * 1.1


@pytest.mark.parametrize("step", [None, 1e-5, -1e-5], ids=["the default", "own, oldest first", "own, newest first"])
def test_a_time_out_costs_the_same_however_many_time_out(work: Work, step: float | None) -> None:
    """A server that hangs makes them all time out at once."""

    def timeout(number: int) -> float | None:
        return None if step is None else 5.0 + number * step

    async def expire(pool: Pool[Any], lease: Any, tasks: list[asyncio.Task[None]]) -> None:
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, PoolTimeout) for error in ended)

    assert per_waiter(work, MANY, expire, timeout) <= per_waiter(work, CROWD, expire, timeout) * 1.1
