"""The pool on loops with a real clock: asyncio's own and uvloop's, whose timers differ in small things."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool, PoolDeadlock, PoolTimeout
from pool_core.testing import NEVER, Delay, ScriptedManager

from .helpers import books, closed, hold

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPS: list[Any] = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if sys.platform != "win32":
    import uvloop

    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_busy_pool_keeps_its_books_on_a_real_loop(new_loop: Callable[[], Any], *, debug: bool) -> None:
    """Timeouts, cancels, lifetimes and resets are all due within milliseconds."""

    async def user(pool: Pool[Any]) -> None:
        for _ in range(10):
            try:
                async with pool.get(timeout=random.choice([None, 0.02])):
                    await asyncio.sleep(random.random() * 0.005)
            except PoolTimeout:
                pass

    async def main() -> None:
        manager = ScriptedManager(connect=Delay(0.005), reset=Delay(0.001), is_valid=Delay(0.001))
        options = {"min_idle": 1, "alive_bypass": 0.02, "max_lifetime": 0.1, "close_timeout": 1}
        async with Pool(manager, max_size=5, **options) as pool:  # type: ignore[arg-type]
            users = [asyncio.create_task(user(pool)) for _ in range(30)]
            await asyncio.sleep(0.05)
            for task in users[:10]:
                task.cancel()
            await asyncio.gather(*users, return_exceptions=True)
            await asyncio.sleep(0.15)
            books(pool)
            assert pool.state().statistics.connections_closed
        manager.check(open=0)
        books(pool)

    with asyncio.Runner(loop_factory=new_loop, debug=debug) as runner:
        runner.run(main())


@pytest.mark.parametrize("new_loop", LOOPS)
def test_deadlines_and_deadlocks_on_a_real_loop(new_loop: Callable[[], Any]) -> None:
    """Each ends when it should, and closing leaves nothing."""

    async def main() -> None:
        pool = Pool(ScriptedManager(close=NEVER), max_size=1, close_timeout=0.1, error_sink=lambda _: None)
        loop = asyncio.get_running_loop()
        async with pool:
            with pytest.raises(PoolDeadlock):
                async with pool.get(), pool.get():
                    pass
            async with pool.get():
                started = loop.time()
                with pytest.raises(PoolTimeout):
                    await pool.get(timeout=0.05)
                assert 0.04 < loop.time() - started < 1
            await hold(pool)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        closed(pool, pool_closed=1)
        books(pool)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
