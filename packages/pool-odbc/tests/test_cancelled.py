"""A query that is cancelled: its caller is back at once, the server stops, and nobody gets what is left of it."""

import asyncio
import threading
import time
from typing import Any

import pyodbc
import pytest
from odbc_systems import System, run
from pool_core import Pool
from pool_core.testing import FaultProxy

pytestmark = pytest.mark.cancellation


async def eventually(condition: Any, seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_a_cancelled_query_is_stopped_and_the_connection_used_again(any_system: System) -> None:
    """SQLCancel ends it in the server too: the next borrower waits for milliseconds, not for the query."""
    async with Pool(any_system.manager(), max_size=1, min_idle=1) as pool:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with pool.get() as conn:
                began = time.monotonic()
                async with asyncio.timeout(0.2):
                    await run(conn, any_system.slow)
        assert time.monotonic() - began < 1
        async with pool.get(timeout=5) as conn:
            assert await run(conn, "SELECT 7") == [(7,)]
        assert pool.state().statistics.connections_created == 1
        assert time.monotonic() - began < 3


async def test_what_a_cancelled_query_has_begun_is_rolled_back(any_system: System) -> None:
    """Within a block of aioodbc's own, which rolls back on the way out."""
    async with Pool(any_system.manager(), max_size=1) as pool:
        with pytest.raises(TimeoutError):
            async with pool.get() as conn, asyncio.timeout(0.2), conn.cursor() as cursor:
                await cursor.execute(any_system.begin)
                await cursor.execute(any_system.slow)
        async with pool.get(timeout=5) as conn:
            assert await run(conn, "SELECT a FROM pool_odbc") == [(1,)]


async def test_a_call_that_was_cancelled_before_its_thread_came_to_it_is_never_made(any_system: System) -> None:
    """Its caller believes that nothing was done."""
    manager = any_system.manager(autocommit=True)
    conn: Any = await manager.connect()
    blocked = threading.Event()
    conn._worker.forget(blocked.wait)
    task = asyncio.ensure_future(run(conn, "UPDATE pool_odbc SET a = 5"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    blocked.set()
    assert await asyncio.wait_for(run(conn, "SELECT a FROM pool_odbc"), 5) == [(1,)]
    await manager.close(conn)


async def test_a_hung_server_does_not_hold_up_a_cancelled_caller(system: System) -> None:
    """Nor a rollback on the way out of the block: the connection is dropped after cancel_timeout."""
    assert system.server
    with FaultProxy(system.server.host, system.server.port) as proxy:
        pool = Pool(system.manager(proxy.host, proxy.port), max_size=1, error_sink=lambda error: None)
        await pool.open()
        began = time.monotonic()
        with pytest.raises(Exception):  # noqa: B017 - the driver's, of the rollback, or TimeoutError
            async with pool.get() as conn, conn.cursor() as cursor:
                await cursor.execute("SELECT 1")
                proxy.freeze()
                began = time.monotonic()
                async with asyncio.timeout(0.1):
                    await cursor.fetchall()
                    await cursor.execute("SELECT 2")
        assert time.monotonic() - began < 2
        await pool.close(timeout=1)
        assert time.monotonic() - began < 4
        proxy.heal()


async def test_a_late_cancel_request_does_not_hit_the_next_borrower(system: System) -> None:
    """Each cancel is waited for: 25 of them, and no query of anybody else fails."""
    async with Pool(system.manager(), max_size=1, min_idle=1) as pool:
        for number in range(25):
            async with pool.get() as conn:
                task = asyncio.ensure_future(run(conn, system.slow))
                await asyncio.sleep(0.004 * (number % 5))
                task.cancel()
                await asyncio.wait([task])
            async with pool.get(timeout=5) as conn:
                assert await run(conn, f"SELECT {number}") == [(number,)]


async def test_a_connection_that_another_task_still_uses_is_not_passed_on(any_system: System) -> None:
    """The borrower has left the block, and a task of it goes on."""
    async with Pool(any_system.manager(), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            task = asyncio.ensure_future(run(conn, any_system.slow))
            await asyncio.sleep(0.1)
        async with pool.get(timeout=5) as other:
            assert other is not conn
            assert await run(other, "SELECT 7") == [(7,)]
        with pytest.raises(Exception):  # noqa: B017 - the driver's
            await asyncio.wait_for(task, 5)


async def test_a_terminated_connection_refuses_work_in_words(any_system: System) -> None:
    """Not by an AttributeError: aioodbc asks a connection that is None."""
    manager = any_system.manager()
    conn = await manager.connect()
    manager.terminate(conn)
    for call in (conn.cursor, lambda: conn.execute("SELECT 1")):
        with pytest.raises(pyodbc.OperationalError, match="the connection is closed"):
            await call()


async def test_threads_end_with_their_connections(any_system: System) -> None:
    """Those of cancelled queries too."""
    before = set(threading.enumerate())
    async with Pool(any_system.manager(), max_size=2, min_idle=2) as pool, pool.get() as conn:
        task = asyncio.ensure_future(run(conn, any_system.slow))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
    del conn, task

    def left() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("pool-odbc")} - before

    await eventually(lambda: not left())
