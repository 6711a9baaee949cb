"""A cancel at every suspension point: single, double, in the tick of success, and level-triggered as anyio's."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Literal

import pytest
from pool_core import Pool, PoolError
from pool_core.testing import NEVER, OK, Delay, ScriptedCustomizer, ScriptedManager, Steps, cancel_everywhere

from .helpers import books, hold, turns

Mode = Literal["single", "double", "level", "success", "turn"]
OUTCOMES: dict[str, Any] = {"ok": Steps(1), "error": Steps(1, OSError("no")), "slow": Delay(0.3), "never": NEVER}
MODES: tuple[Mode, ...] = ("single", "double", "success", "level", "turn")


def pool_of(manager: ScriptedManager, **options: Any) -> Pool[Any]:
    """A pool whose every call is bounded soon."""
    settings: dict[str, Any] = {
        "max_size": 2,
        "connection_timeout": 3.0,
        "create_timeout": 1.0,
        "validation_timeout": 1.0,
        "reset_timeout": 1.0,
        "close_timeout": 1.0,
        "error_sink": lambda _: None,
    }
    return Pool(manager, **(settings | options))


async def at_peace(pool: Pool[Any], manager: ScriptedManager) -> None:
    """Whatever was cancelled: the pool comes to rest, serves, and closes without a trace."""
    books(pool)
    await asyncio.sleep(10)
    state = pool.state()
    assert (state.opening, state.validating, state.resetting, state.closing, state.waiting) == (0,) * 5
    books(pool)
    for verb in ("connect", "is_valid", "reset", "close"):
        manager.script(**{verb: OK})
    await asyncio.gather(*(hold(pool, 0.01) for _ in range(4)))
    assert pool.state().in_use == 0
    await pool.close()
    books(pool)
    manager.check(open=0)


async def warm(pool: Pool[Any]) -> None:
    """Two idle connections, used just now."""
    await asyncio.gather(hold(pool, 0.01), hold(pool, 0.01))


@pytest.mark.parametrize("verb", ["connect", "is_valid", "reset", "close", "on_connect"])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_get_cancelled_anywhere_loses_nothing(verb: str, outcome: str) -> None:
    """Cold, warm, stale and contended pools, with every outcome of every call of the manager."""

    async def scenario(inject: Any, setting: str) -> None:
        outcomes: dict[str, Any] = {"on_connect": OK}
        manager = ScriptedManager()
        hooks = ScriptedCustomizer(on_connect=lambda _: outcomes["on_connect"])
        pool = pool_of(manager, customizer=hooks)
        await pool.open()
        if setting != "cold":
            await warm(pool)
        if setting == "stale":
            await asyncio.sleep(5)
        if verb == "on_connect":
            outcomes[verb] = OUTCOMES[outcome]
        else:
            manager.script(**{verb: OUTCOMES[outcome]})
        others: list[asyncio.Task[Any]] = []
        if setting == "contended":
            others = [asyncio.create_task(hold(pool, 0.2)) for _ in range(3)]
            await asyncio.sleep(0)
        result = await inject(hold(pool, 0.1))
        others.append(asyncio.create_task(hold(pool)))
        await asyncio.gather(*others, return_exceptions=True)
        if result.cancelled:
            assert result.hit
        outcomes["on_connect"] = OK
        await at_peace(pool, manager)

    points = 0
    for setting in ("cold", "warm", "stale", "contended"):
        points += cancel_everywhere(functools.partial(scenario, setting=setting), modes=MODES)
    assert points > 20


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_open_cancelled_anywhere_leaves_nothing_and_may_be_repeated(outcome: str) -> None:
    """min_idle half up."""

    async def scenario(inject: Any) -> None:
        manager = ScriptedManager(connect=[Steps(2), OUTCOMES[outcome]])
        pool = pool_of(manager, min_idle=2)
        result = await inject(pool.open())
        if result.exception is not None or result.cancelled:
            manager.script(connect=OK)
            await pool.open()
        books(pool)
        await at_peace(pool, manager)

    assert cancel_everywhere(scenario, modes=MODES) > 2


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("verb", ["close", "reset", "is_valid", "connect"])
def test_a_close_cancelled_anywhere_terminates_what_is_left(verb: str, outcome: str) -> None:
    """Connections in use, resetting, validating and idle."""

    async def scenario(inject: Any) -> None:
        manager = ScriptedManager()
        pool = pool_of(manager, max_size=4)
        await pool.open()
        await warm(pool)
        await asyncio.sleep(5)
        lease = await pool.get()
        manager.script(**{verb: OUTCOMES[outcome]})
        users = [asyncio.create_task(hold(pool, 0.1)) for _ in range(4)]
        await turns(3)
        result = await inject(pool.close(2.0))
        for user in users:
            user.cancel()
        await asyncio.gather(*users, return_exceptions=True)
        lease.release()
        if result.cancelled and pool._state.is_open:
            await pool.close(2.0)  # cancelled before its first step
        await asyncio.sleep(5)
        assert result.cancelled or result.exception is None
        state = pool.state()
        assert (state.idle, state.in_use, state.opening, state.validating, state.resetting, state.closing) == (0,) * 6
        books(pool)
        manager.check(open=0)
        manager.script(connect=OK, is_valid=OK, reset=OK, close=OK)
        async with pool:
            await hold(pool)

    assert cancel_everywhere(scenario, modes=MODES) > 1


@pytest.mark.parametrize(
    "operation", ["release", "resize", "evict", "add", "detach", "discard", "try_get", "dedicated"]
)
def test_operations_inside_a_cancelled_task_leave_the_books_balanced(operation: str) -> None:
    """Each between the suspension points of a task that is cancelled anywhere."""

    async def scenario(inject: Any) -> None:
        manager = ScriptedManager(reset=Steps(2), close=Steps(2), is_valid=Steps(2), connect=Steps(2))
        pool = pool_of(manager, max_size=3, min_idle=1, alive_bypass=0)
        await pool.open()
        detached: list[Any] = []

        async def task() -> None:
            lease = await pool.get()
            try:
                await asyncio.sleep(0)
                if operation == "resize":
                    pool.resize(max_size=1)
                elif operation == "evict":
                    pool.evict()
                elif operation == "add":
                    conn = await manager.connect()
                    try:
                        pool.add(conn)
                    except PoolError:
                        manager.terminate(conn)
                elif operation == "detach":
                    detached.append(lease.detach())
                elif operation == "discard":
                    lease.discard()
                elif operation == "try_get":
                    other = await pool.try_get()
                    if other is not None:
                        other.release()
                elif operation == "dedicated":
                    async with pool.dedicated_connection():
                        await asyncio.sleep(0)
            finally:
                lease.release()
            async with pool.get():
                await asyncio.sleep(0)

        users = [asyncio.create_task(hold(pool, 0.05)) for _ in range(3)]
        await inject(task())
        await asyncio.gather(*users)
        for conn in detached:
            manager.terminate(conn)
        if pool.config.max_size == 1:
            pool.resize(max_size=3)
        await at_peace(pool, manager)

    assert cancel_everywhere(scenario, modes=MODES) > 4


def test_a_time_out_and_a_cancel_in_the_same_tick_surface_as_one_of_them() -> None:
    """Nothing is counted twice, nothing hangs."""
    from pool_core.testing import run

    async def main() -> None:
        manager = ScriptedManager()
        async with pool_of(manager, max_size=1) as pool:
            lease = await pool.get()
            loop = asyncio.get_running_loop()
            tasks = [asyncio.create_task(hold(pool, timeout=1)) for _ in range(3)]
            await turns()
            loop.call_at(loop.time() + 1, tasks[0].cancel)
            loop.call_at(loop.time() + 1, lease.release)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(o, (asyncio.CancelledError, TimeoutError)) or o is not None for o in outcomes)
            totals = pool.state().statistics
            assert totals.gets_started == 4
            assert pool.state().waiting == 0
            books(pool)

    run(main)
