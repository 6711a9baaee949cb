"""What is done to each pool over fake connections. Every function measures one round and returns its figure.

A pool's own cost is CPU time of this thread: on a busy machine the clock on the wall measures the neighbours.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contestants import Getter


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


async def hand_off(get: Getter, count: int) -> float:
    """Seconds of CPU for one use, two tasks taking turns at the only connection."""

    async def user() -> None:
        for _ in range(count // 2):
            async with get():
                await asyncio.sleep(0)

    began = thread_time()
    await asyncio.gather(user(), user())
    return (thread_time() - began) / count


@dataclass(frozen=True, slots=True)
class Contention:
    """One round of many tasks on few connections."""

    cost: float  # seconds of CPU an operation
    jain: float  # 1: all tasks got the same number of operations; 1/n: one task got them all
    p99: float  # seconds of waiting


async def contended(get: Getter, operations: int, *, tasks: int = 1000, seconds: float = 1.0) -> Contention:
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


def jain(counts: list[int]) -> float:
    """Jain's index of fairness."""
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
