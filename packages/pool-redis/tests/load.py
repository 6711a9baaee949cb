"""Load over an outage: many tasks, unique values, and every answer must be its own. And waiting for its end."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pool_core import Pool
from pool_redis import LeasedRedis, RedisConnectionManager

_numbers = itertools.count()


@dataclass
class Outcome:
    """What became of the requests."""

    served: int = 0
    failed: list[BaseException] = field(default_factory=list)
    wrong: list[object] = field(default_factory=list)


async def load(
    pool: Pool[Any], use: Callable[[Any, str], Awaitable[object]], until: asyncio.Event, tasks: int = 8
) -> Outcome:
    """Acquire, send a unique value, compare the answer, until the event is set; each task then succeeds once more."""
    outcome = Outcome()

    async def once() -> None:
        mine = f"value-{next(_numbers)}"
        async with pool.get() as client:
            answer = await use(client, mine)
        if answer not in (mine, mine.encode()):
            outcome.wrong.append((mine, answer))
        outcome.served += 1

    async def worker() -> None:
        while not until.is_set():
            try:
                await once()
            except Exception as error:  # noqa: BLE001
                outcome.failed.append(error)
            await asyncio.sleep(0.005)
        await once()

    await asyncio.gather(*(worker() for _ in range(tasks)))
    return outcome


def balanced(pool: Pool[Any]) -> None:
    """Created + added = open + closed; gets = their outcomes (DESIGN.md, 13)."""
    state = pool.state()
    numbers = state.statistics
    closed = sum(numbers.connections_closed.values())
    open_now = state.idle + state.in_use + state.validating + state.resetting
    assert numbers.connections_created + numbers.connections_added == open_now + closed
    outcomes = numbers.gets_direct + numbers.gets_waited + numbers.gets_timed_out
    assert numbers.gets_started == outcomes + numbers.gets_cancelled + numbers.gets_failed + state.waiting


async def closed_by_server(client: LeasedRedis, manager: RedisConnectionManager) -> None:
    """Wait until the news that the server has closed the connection has arrived."""
    for _ in range(200):
        if manager.has_broken(client):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("two seconds after its end the connection does not count as broken")
