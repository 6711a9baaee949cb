"""What is done to each pool over fake connections. Every function measures one round and returns its figure.

A pool's own cost is CPU time of this thread: on a busy machine the clock on the wall measures the neighbours.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from contextlib import AbstractAsyncContextManager

    from .contestants import Getter, Opened


async def fill(get: Getter, size: int) -> None:
    """Let the pool open all its connections."""
    entered = [get() for _ in range(size)]
    for lease in entered:
        await lease.__aenter__()
    for lease in entered:
        await lease.__aexit__(None, None, None)


async def warm(get: Getter, count: int) -> float:
    """Seconds of CPU for one get and release, while connections are idle."""
    for _ in range(20):  # caches, and whatever the pool did not do while it rested
        async with get():
            pass
    began = thread_time()
    for _ in range(count):
        async with get():
            pass
    return (thread_time() - began) / count


async def warm_within(opened: Opened, count: int) -> tuple[float, float]:
    """The same without and with a timeout, by turns, so that their difference is of the same moment."""
    plain = timed = 0.0
    for _ in range(4):
        plain += await warm(opened.get, count // 4)
        timed += await warm(lambda: opened.within(5.0), count // 4)
    return plain / 4, timed / 4


async def hand_off(get: Getter, count: int) -> tuple[float, float]:
    """Seconds of CPU for one use when two tasks want the only connection again and again, and the share of hand-offs.

    Both wait already when it starts, and nobody yields to the loop of his own accord: where each release hands over, the
    tasks take turns. Where a newcomer may overtake, the first one takes it again and again: a share near 0.
    """
    turns = 0
    last: object = None

    async def user(times: int) -> None:
        for _ in range(times):
            async with get():
                pass

    async def watched(me: object) -> None:
        nonlocal turns, last
        for _ in range(20):
            async with get():
                turns += last is not me
                last = me

    await _both(get, watched(1), watched(2))
    cost = await _both(get, user(count // 2), user(count // 2))
    return cost / (count // 2 * 2), turns / 40


async def _both(get: Getter, one: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> float:
    """Let two tasks wait for the connection, give it, and return the CPU time until both are done."""
    loop = asyncio.get_running_loop()
    holder = get()
    await holder.__aenter__()
    tasks = [loop.create_task(one), loop.create_task(other)]
    for _ in range(4):
        await asyncio.sleep(0)
    began = thread_time()
    await holder.__aexit__(None, None, None)
    await asyncio.gather(*tasks)
    return thread_time() - began


@dataclass(frozen=True, slots=True)
class Contention:
    """One round of many tasks on few connections."""

    cost: float  # seconds of CPU an operation
    jain: float  # 1: all tasks got the same number of operations; 1/n: one task got them all
    p99: float  # seconds of waiting


async def contended(get: Getter, operations: int, *, tasks: int = 1000, seconds: float = 4.0) -> Contention:
    """Tasks that get, yield once to the loop and release, again and again, until so many operations or seconds.

    One task in ten measures its waits, so that the clock's own cost stays small. At the end every task that waits is
    served once more, so that who was left out shows in the waits, as a wait for the whole round.
    """
    limit = operations
    tickets = itertools.count()
    counts = [0] * tasks
    waits: list[float] = []

    async def user(number: int) -> None:
        done = 0
        while next(tickets) < limit:
            async with get():
                done += 1
                await asyncio.sleep(0)
        counts[number] = done

    async def timed_user(number: int) -> None:
        done = 0
        while next(tickets) < limit:
            asked = perf_counter()
            async with get():
                waits.append(perf_counter() - asked)
                done += 1
                await asyncio.sleep(0)
        counts[number] = done

    def stop() -> None:
        nonlocal limit
        limit = 0

    loop = asyncio.get_running_loop()
    running = [loop.create_task((timed_user if number % 10 == 0 else user)(number)) for number in range(tasks)]
    timer = loop.call_later(seconds, stop)
    began = thread_time()
    await asyncio.gather(*running)
    cost = (thread_time() - began) / sum(counts)
    timer.cancel()
    return Contention(cost, jain(counts), percentile(waits, 0.99))


class Crowd:
    """Tasks that all wait for a pool's only connection."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.loop = asyncio.get_running_loop()
        self.tasks: list[asyncio.Task[None]] = []
        self.left = 0
        self.gone: asyncio.Future[None] = self.loop.create_future()

    async def gather(self, leases: Iterable[Callable[[], AbstractAsyncContextManager[Any]]]) -> float:
        """Let one task wait for each lease; returns the CPU time that queueing took, tasks included."""
        self.holder = self.opened.get()
        await self.holder.__aenter__()
        began = thread_time()
        self.tasks = [self.loop.create_task(self.wait(lease)) for lease in leases]
        self.left = len(self.tasks)
        for _ in range(4):  # in some pools a get takes a turn or two until it waits
            await asyncio.sleep(0)
        return thread_time() - began

    async def wait(self, lease: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        try:
            async with lease():
                pass
        except (asyncio.CancelledError, Exception):  # noqa: BLE001 (each pool has its own kind of timeout)
            pass
        finally:
            self.left -= 1
            if not self.left:
                self.gone.set_result(None)

    async def leave(self) -> None:
        """Return the connection, and see that the pool still hands it out."""
        await self.holder.__aexit__(None, None, None)
        async with asyncio.timeout(10), self.opened.get():
            pass


async def serve(opened: Opened, waiters: int) -> tuple[float, float]:
    """Seconds of CPU a waiter: to queue, and to be served when the connection comes back."""
    crowd = Crowd(opened)
    queued = await crowd.gather(opened.get for _ in range(waiters))
    began = thread_time()
    await crowd.holder.__aexit__(None, None, None)
    await crowd.gone
    return queued / waiters, (thread_time() - began) / waiters


async def mass_cancel(opened: Opened, waiters: int, *, newest_first: bool) -> float:
    """Seconds of CPU a waiter, from the first cancel until the last task has ended."""
    crowd = Crowd(opened)
    await crowd.gather(opened.get for _ in range(waiters))
    began = thread_time()
    for task in reversed(crowd.tasks) if newest_first else crowd.tasks:
        task.cancel()
    await crowd.gone
    cost = thread_time() - began
    await crowd.leave()
    return cost / waiters


async def mass_time_out(opened: Opened, waiters: int, *, newest_first: bool) -> float:
    """Seconds of CPU a waiter, from queueing to the end of its task: timeouts end within microseconds of each other.

    Oldest first, all have the same timeout; newest first, each has a shorter one than the last.
    """
    loop = asyncio.get_running_loop()
    crowd = Crowd(opened)
    seconds = 0.02 + waiters * 40e-6  # longer than queueing takes
    end = loop.time() + seconds

    def waiter(number: int) -> Callable[[], AbstractAsyncContextManager[Any]]:
        if newest_first:
            return lambda: opened.within(end + (waiters - number) * 1e-6 - loop.time())
        return lambda: opened.within(seconds)

    began = thread_time()
    await crowd.gather(waiter(number) for number in range(waiters))
    await crowd.gone
    cost = thread_time() - began
    await crowd.leave()
    return cost / waiters


def jain(counts: list[int]) -> float:
    """Jain's index of fairness."""
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
