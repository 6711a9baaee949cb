"""What the core's tests share: async tests on virtual time, and the books of a pool."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any

from pool_core.testing import VirtualTimeLoop, run

from .invariants import check_invariants

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pool_core import Pool


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on virtual time: nothing sleeps, and leftover tasks or timers are errors."""

    @functools.wraps(test)
    def runner(*args: Any, **kwargs: Any) -> None:
        run(lambda: test(*args, **kwargs))

    del runner.__wrapped__

    runner.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return runner


def books(pool: Pool[Any]) -> None:
    """Every get and every connection is accounted for, and the state contradicts itself nowhere."""
    check_invariants(pool._state)
    now = pool.state()
    totals = now.statistics
    opened = now.idle + now.in_use + now.validating + now.resetting
    assert totals.connections_created + totals.connections_added == opened + sum(totals.connections_closed.values())
    assert totals.gets_direct >= 0
    assert now.in_use >= 0


def closed(pool: Pool[Any], **expected: int) -> None:
    """The connections closed are these, by reason, and no others."""
    actual = {str(reason): count for reason, count in pool.state().statistics.connections_closed.items() if count}
    assert actual == expected


async def hold(pool: Pool[Any], seconds: float = 0.0, timeout: float | None = None) -> Any:
    """Get a connection, keep it for a while, and return it."""
    async with pool.get(timeout) as conn:
        await asyncio.sleep(seconds)
        return conn


async def turns(count: int = 5) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


def interruptions(main: Callable[[], Coroutine[Any, Any, None]], kind: type[BaseException], *, most: int = 20) -> int:
    """Run ``main`` to its end, however often the loop is left by an exception of this kind; return how often."""
    loop = VirtualTimeLoop()
    count = 0
    try:
        task = loop.create_task(main())
        while not task.done():
            try:
                loop.run_until_complete(task)
            except kind:
                count += 1
                assert count < most
        try:
            task.result()
        except kind as error:
            raise AssertionError(f"{kind.__name__} ended the test's own task") from error
    finally:
        loop.close()
    return count
