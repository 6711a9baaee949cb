"""A query that was cut off: the caller is back at once, the connection clean for the next borrower or dropped in time."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pool_core import CloseReason, Pool
from pool_core.testing import Injector, acancel_everywhere
from pool_psycopg import PsycopgConnectionManager
from psycopg_helpers import admin, in_transaction, pid, value, works

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pool_core.testing import FaultProxy

    from containers.servers import Server

pytestmark = pytest.mark.cancellation


async def plain(conn: Any) -> None:
    """A query."""
    await conn.execute("SELECT pg_sleep(30)")


async def in_block(conn: Any) -> None:
    """A query whose cancel is followed by the driver's ROLLBACK."""
    async with conn.transaction():
        await conn.execute("SELECT pg_sleep(30)")


async def in_savepoint(conn: Any) -> None:
    """Two rollbacks."""
    async with conn.transaction(), conn.transaction():
        await conn.execute("SELECT pg_sleep(30)")


async def by_server_cursor(conn: Any) -> None:
    """A cursor on the server."""
    async with conn.transaction(), conn.cursor("slow") as cursor:
        cursor.itersize = 2
        await cursor.execute("SELECT n, pg_sleep(0.03) FROM generate_series(1, 1000) AS n")
        async for _ in cursor:
            pass


async def streaming(conn: Any) -> None:
    """Rows one by one."""
    async for _ in conn.cursor().stream("SELECT n, pg_sleep(0.03) FROM generate_series(1, 1000) AS n"):
        pass


async def copying(conn: Any) -> None:
    """A COPY from the server."""
    async with conn.cursor().copy(
        "COPY (SELECT n, pg_sleep(0.01) FROM generate_series(1, 3000) AS n) TO STDOUT"
    ) as copy:
        async for _ in copy:
            pass


async def in_pipeline(conn: Any) -> None:
    """Several queries whose answers are to come."""
    async with conn.pipeline():
        await conn.execute("SELECT 1")
        await conn.execute("SELECT pg_sleep(30)")


async def notified(conn: Any) -> None:
    """Waiting for a notification."""
    async for _ in conn.notifies():
        pass


BODIES = [plain, in_block, in_savepoint, by_server_cursor, streaming, copying, in_pipeline, notified]


async def cut_off(pool: Pool[Any], body: Callable[[Any], Awaitable[None]], before: Callable[[], object]) -> float:
    """Cancel ``body`` in the middle, after ``before``; the seconds until the caller was back with a CancelledError."""
    working = asyncio.Event()

    async def caller() -> None:
        async with pool.get() as conn:
            working.set()
            await body(conn)

    task = asyncio.create_task(caller())
    await working.wait()
    await asyncio.sleep(0.1)
    await asyncio.to_thread(before)
    assert not task.done()
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.monotonic() - started


@pytest.mark.parametrize("mode", ["safe", "none"])
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("body", [plain, in_block, in_savepoint, by_server_cursor, notified])
async def test_on_a_healthy_server_the_connection_is_used_again(
    url: str, body: Callable[[Any], Awaitable[None]], autocommit: bool, mode: Any
) -> None:
    """A cancel must cost neither a connection nor a query that runs on, and the next borrower finds it clean."""
    async with Pool(PsycopgConnectionManager(url, reset=mode, autocommit=autocommit), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            before = pid(conn)
        assert await cut_off(pool, body, lambda: None) < 0.7
        async with pool.get(timeout=2) as conn:
            assert pid(conn) == before
            assert not in_transaction(conn)
            assert await value(conn, "SELECT %s::int + 1", 41) == 42
    assert (
        await admin(url, "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND query LIKE 'SELECT pg_sl%%'")
        == 0
    )


@pytest.mark.parametrize("body", [streaming, copying, in_pipeline])
async def test_what_cannot_be_ended_cleanly_costs_the_connection(
    url: str, body: Callable[[Any], Awaitable[None]]
) -> None:
    """Answers that are still to come must not reach the next borrower."""
    async with Pool(PsycopgConnectionManager(url, autocommit=True), max_size=1, min_idle=1) as pool:
        assert await cut_off(pool, body, lambda: None) < 0.7
        await works(pool)
        state = pool.state()
        assert state.in_use == 0
        assert state.statistics.connections_closed[CloseReason.RESET_FAILED] == 0


@pytest.mark.parametrize("body", BODIES)
async def test_on_a_hung_network_the_caller_is_back_within_a_second(
    proxied: Callable[..., PsycopgConnectionManager], proxy: FaultProxy, body: Callable[[Any], Awaitable[None]]
) -> None:
    """psycopg waits up to 10 s for the cancel and for the query's end."""
    async with Pool(proxied(autocommit=True), max_size=1, min_idle=1) as pool:
        assert await cut_off(pool, body, proxy.freeze) < 1.2
        started = time.monotonic()
        while pool.state().resetting or pool.state().in_use:
            await asyncio.sleep(0.02)
            assert time.monotonic() - started < 6, "the connection is not given up"
        proxy.heal()
        await works(pool)


@pytest.mark.parametrize("body", [plain, in_block])
async def test_on_a_paused_server_the_caller_is_back_within_a_second_and_the_pool_closes_in_time(
    disturbed: Server, body: Callable[[Any], Awaitable[None]]
) -> None:
    """The fault as it happens: the process hangs, its sockets stay."""
    pool = Pool(PsycopgConnectionManager(disturbed.url, autocommit=True), max_size=3, min_idle=3)
    await pool.open()
    try:
        assert await cut_off(pool, body, disturbed.pause) < 1.2
        started = time.monotonic()
        await pool.close(timeout=1.0)
        assert time.monotonic() - started < 2.0
    finally:
        await asyncio.to_thread(disturbed.unpause)


async def test_cancel_timeout_can_be_switched_off(
    proxied: Callable[..., PsycopgConnectionManager], proxy: FaultProxy
) -> None:
    """None is the driver's own way, for who would rather wait than lose a connection."""
    manager = proxied(cancel_timeout=None)
    conn: Any = await manager.connect()
    task = asyncio.create_task(plain(conn))
    await asyncio.sleep(0.05)
    proxy.freeze()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=1.2)
    assert not done
    proxy.heal()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert manager.has_broken(conn) is False
    await manager.close(conn)


async def test_a_query_that_ended_in_time_leaves_no_timer_behind(url: str) -> None:
    """A timer that fires later would drop a healthy connection."""
    manager = PsycopgConnectionManager(url, cancel_timeout=0.3)
    conn: Any = await manager.connect()
    task = asyncio.create_task(plain(conn))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.4)
    assert manager.has_broken(conn) is False
    await manager.close(conn)


async def test_a_cancelled_connect_keeps_no_socket_while_its_exception_is_kept(
    proxied: Callable[..., PsycopgConnectionManager], proxy: FaultProxy
) -> None:
    """The frames of a traceback hold libpq's half-open connection: logs and debuggers keep tracebacks for long."""
    proxy.silence()
    task = asyncio.create_task(proxied().connect())
    await asyncio.sleep(0.1)
    assert proxy.open == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as kept:
        await task
    await asyncio.sleep(0.1)
    assert proxy.open == 0
    assert kept.value.__traceback__ is not None


async def test_terminate_wakes_whoever_waits_and_touches_no_other_socket(url: str) -> None:
    """The number of a closed socket is used again at once: a reader of the old one must not be found there."""
    manager = PsycopgConnectionManager(url, autocommit=True)
    conn: Any = await manager.connect()
    waiting = asyncio.create_task(conn.execute("SELECT pg_sleep(30)"))
    await asyncio.sleep(0.05)
    manager.terminate(conn)
    assert manager.has_broken(conn) is True
    others = [await manager.connect() for _ in range(3)]
    with pytest.raises(psycopg.OperationalError):
        await waiting
    for other in others:
        assert await value(other, "SELECT 1") == 1
        await manager.close(other)
    assert conn.closed


async def test_wherever_a_borrower_is_cancelled_no_answer_goes_to_another_one(url: str) -> None:
    """redis-py 2023: another user's data. Each cancel point of get, two queries and release, on the real server."""
    number = 0

    async def scenario(inject: Injector) -> None:
        async with Pool(PsycopgConnectionManager(url, autocommit=True), max_size=1, min_idle=1) as pool:

            async def borrower(given: int) -> None:
                async with pool.get() as conn, conn.transaction():
                    assert await value(conn, "SELECT %s::int", given) == given
                    await conn.execute("SET LOCAL work_mem = '123kB'")

            nonlocal number
            number += 10
            await inject(borrower(number))
            async with pool.get(timeout=3) as conn:
                assert await value(conn, "SELECT %s::int", number + 1) == number + 1
                assert await value(conn, "SHOW work_mem") != "123kB"
                assert not in_transaction(conn)
            assert pool.state().in_use == 0

    assert await acancel_everywhere(scenario) > 5
