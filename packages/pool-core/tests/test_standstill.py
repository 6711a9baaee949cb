"""A deadlock is told only after a standstill: nothing at all has moved for ``deadlock_after`` seconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool, PoolDeadlock
from pool_core.testing import ScriptedManager

from .helpers import books, hold, virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@virtual
async def test_a_block_that_another_task_ends_in_time_is_no_deadlock() -> None:
    """An async generator may be begun in one task and consumed in another."""
    pool = Pool(ScriptedManager(), max_size=1)

    async def rows() -> AsyncIterator[int]:
        async with pool.get():
            yield 1
            yield 2

    async with pool:
        stream: Any = rows()
        assert await anext(stream) == 1

        async def consume() -> None:
            await asyncio.sleep(0.5)
            await stream.aclose()

        other = asyncio.create_task(consume())
        async with pool.get():
            assert asyncio.get_running_loop().time() == pytest.approx(0.5)
        await other
        books(pool)


@virtual
async def test_a_nested_get_that_gives_up_in_time_is_no_deadlock() -> None:
    """Its task has a fallback, though the pool cannot see it."""
    async with Pool(ScriptedManager(), max_size=1) as pool, pool.get():
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.9):
                await pool.get()
        assert not isinstance(caught.value, PoolDeadlock)
        books(pool)


@virtual
async def test_deadlock_after_sets_the_length_of_the_standstill() -> None:
    """The time counts from the last thing that moved."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=1, deadlock_after=0.25) as pool, pool.get():
        start = loop.time()
        with pytest.raises(PoolDeadlock):
            async with pool.get():
                pass
        assert loop.time() - start == pytest.approx(0.25)
        books(pool)


@virtual
async def test_a_waiter_that_gives_up_restarts_the_standstill() -> None:
    """A task that went on may be the one that ends the block."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=1) as pool, pool.get():
        other = asyncio.create_task(hold(pool, timeout=0.8))
        with pytest.raises(PoolDeadlock):
            async with pool.get():
                pass
        assert loop.time() == pytest.approx(1.8)
        await asyncio.gather(other, return_exceptions=True)
        books(pool)


@virtual
async def test_newcomers_do_not_hide_a_standstill() -> None:
    """In a service requests keep coming; they only wait as well."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=1) as pool:
        newcomers: list[asyncio.Task[Any]] = []

        async def arrive() -> None:
            while True:
                newcomers.append(asyncio.create_task(hold(pool)))
                await asyncio.sleep(0.1)

        async with pool.get():
            arriving = asyncio.create_task(arrive())
            with pytest.raises(PoolDeadlock):
                async with pool.get():
                    pass
            assert loop.time() == pytest.approx(1.0)
            arriving.cancel()
        await asyncio.gather(*newcomers)
        books(pool)
