"""A cancelled query ends at once; its connection is clean for the next borrower, or terminated after a limit."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pool_core import Pool
from pool_core.testing import Injector, acancel_everywhere
from pool_postgres import PostgresConnectionManager, _internals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pool_core.testing import FaultProxy

    from containers.servers import Server

pytestmark = pytest.mark.cancellation


async def plain(conn: Any) -> None:
    """A query."""
    await conn.execute("SELECT pg_sleep(30)")


async def prepared(conn: Any) -> None:
    """A query with arguments."""
    await conn.fetchval("SELECT pg_sleep($1::float)", 30)


async def in_transaction(conn: Any) -> None:
    """A query whose cancel is followed by the driver's ROLLBACK."""
    async with conn.transaction():
        await conn.execute("SELECT pg_sleep(30)")


async def in_savepoint(conn: Any) -> None:
    """Two rollbacks."""
    async with conn.transaction(), conn.transaction():
        await conn.execute("SELECT pg_sleep(30)")


async def in_raw_transaction(conn: Any) -> None:
    """A query without a rollback after it."""
    await conn.execute("BEGIN; SELECT pg_sleep(30)")


async def by_cursor(conn: Any) -> None:
    """A query that sends rows as it goes."""
    async with conn.transaction():
        async for _ in conn.cursor("SELECT n, pg_sleep(0.03) FROM generate_series(1, 1000) AS n", prefetch=2):
            pass


async def copying(conn: Any) -> None:
    """A COPY into a file."""

    async def nowhere(_: bytes) -> None:
        pass

    await conn.copy_from_query("SELECT n, pg_sleep(0.01) FROM generate_series(1, 3000) AS n", output=nowhere)


BODIES = [plain, prepared, in_transaction, in_savepoint, in_raw_transaction, by_cursor, copying]


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


async def server_is_quiet(url: str) -> bool:
    """Whether no query is still at work."""
    admin = await asyncpg.connect(url)
    try:
        for _ in range(100):
            busy = await admin.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND query LIKE '%pg_sleep%' AND pid <> $1",
                admin.get_server_pid(),
            )
            if not busy:
                return True
            await asyncio.sleep(0.02)
    finally:
        await admin.close()
    return False


@pytest.mark.parametrize("mode", ["safe", "none"])
@pytest.mark.parametrize("body", BODIES)
async def test_on_a_healthy_server_the_connection_is_used_again(
    url: str, body: Callable[[Any], Awaitable[None]], mode: Any
) -> None:
    """A cancel closes no connection and leaves no query running; the next borrower gets a clean connection."""
    async with Pool(PostgresConnectionManager(url, reset=mode), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            pid = conn.get_server_pid()
        assert await cut_off(pool, body, lambda: None) < 0.5
        async with pool.get(timeout=2) as conn:
            assert conn.get_server_pid() == pid
            assert not conn.is_in_transaction()
            assert await conn.fetchval("SELECT $1::int + 1", 41) == 42
            async with conn.transaction():
                assert await conn.fetchval("SELECT 1") == 1
    assert await server_is_quiet(url)


async def test_a_cut_off_query_is_no_breakage(url: str) -> None:
    """The driver still handles the cancel; reset waits for it."""
    manager = PostgresConnectionManager(url)
    conn = await manager.connect()
    task = asyncio.create_task(plain(conn))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _internals.is_cancelling(conn)
    assert manager.has_broken(conn) is False
    reset = manager.reset(conn)
    assert reset is not None
    await reset
    assert not _internals.is_cancelling(conn)
    assert manager.has_broken(conn) is False
    assert await manager.is_valid(conn) is True
    await manager.close(conn)


async def test_a_query_that_ran_into_its_timeout_is_no_breakage_either(url: str) -> None:
    """The same, by asyncpg's own ``timeout=``."""
    async with Pool(PostgresConnectionManager(url), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            pid = conn.get_server_pid()
            with pytest.raises(TimeoutError):
                await conn.execute("SELECT pg_sleep(30)", timeout=0.05)
        async with pool.get(timeout=2) as conn:
            assert conn.get_server_pid() == pid
            assert await conn.fetchval("SELECT 1") == 1


async def test_with_open_transaction_close_a_transaction_that_was_cut_off_costs_the_connection(url: str) -> None:
    """Whether it is open is known only when the cancel is confirmed; diesel's rule holds then too."""
    async with Pool(PostgresConnectionManager(url, open_transaction="close"), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            pid = conn.get_server_pid()
        await cut_off(pool, plain, lambda: None)
        async with pool.get(timeout=2) as conn:
            assert conn.get_server_pid() == pid
        await cut_off(pool, in_raw_transaction, lambda: None)
        async with pool.get(timeout=2) as conn:
            assert conn.get_server_pid() != pid


@pytest.mark.parametrize("body", BODIES)
async def test_on_a_hung_network_the_caller_is_back_within_a_second(
    proxied: Callable[..., PostgresConnectionManager], proxy: FaultProxy, body: Callable[[Any], Awaitable[None]]
) -> None:
    """asyncpg waits forever: for its pool's reset, and for the rollback of ``async with conn.transaction()``."""
    async with Pool(proxied(), max_size=1, min_idle=1) as pool:
        assert await cut_off(pool, body, proxy.freeze) < 1.0
        started = time.monotonic()
        while pool.state().resetting or pool.state().in_use:
            await asyncio.sleep(0.02)
            assert time.monotonic() - started < 1.5, "the connection is not given up"
        proxy.heal()
        async with pool.get(timeout=5) as conn:
            assert await conn.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("body", [plain, in_transaction])
async def test_on_a_paused_server_the_caller_is_back_within_a_second_and_the_pool_closes_in_time(
    disturbed: Server, body: Callable[[Any], Awaitable[None]]
) -> None:
    """The fault as it happens: the process hangs, its sockets stay."""
    pool = Pool(PostgresConnectionManager(disturbed.url), max_size=3, min_idle=3)
    await pool.open()
    try:
        assert await cut_off(pool, body, disturbed.pause) < 1.0
        started = time.monotonic()
        await pool.close(timeout=1.0)
        assert time.monotonic() - started < 2.0
    finally:
        await asyncio.to_thread(disturbed.unpause)


async def test_on_a_hung_network_the_error_of_the_body_is_the_one_that_surfaces(
    proxied: Callable[..., PostgresConnectionManager], proxy: FaultProxy
) -> None:
    """``asyncio.timeout`` and the query's own ``timeout=`` must end in TimeoutError, not in "connection is closed"."""
    async with Pool(proxied(), max_size=2, min_idle=2) as pool:

        async def by_asyncio() -> None:
            async with asyncio.timeout(0.2), pool.get() as conn:
                await in_transaction(conn)

        async def by_asyncpg() -> None:
            async with pool.get() as conn, conn.transaction():
                await conn.execute("SELECT pg_sleep(30)", timeout=0.2)

        callers = [asyncio.create_task(body()) for body in (by_asyncio, by_asyncpg)]
        await asyncio.sleep(0.1)
        proxy.freeze()
        started = time.monotonic()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(result) for result in results] == [TimeoutError, TimeoutError]
        assert time.monotonic() - started < 1.2
        proxy.heal()


async def test_an_error_of_a_transaction_on_a_living_connection_is_not_hidden(url: str) -> None:
    """The body's error replaces the driver's only if the connection is gone."""
    manager = PostgresConnectionManager(url)
    conn: Any = await manager.connect()
    transaction = conn.transaction()
    with pytest.raises(asyncpg.InterfaceError, match="cannot rollback"):
        async with transaction:
            transaction._managed = False
            await transaction.rollback()
            raise LookupError
    with pytest.raises(asyncpg.PostgresError):
        async with conn.transaction():
            await conn.execute("CREATE TEMP TABLE checked (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            await conn.execute("INSERT INTO checked VALUES (1), (1)")
    await manager.close(conn)


async def test_cancel_timeout_can_be_switched_off(
    proxied: Callable[..., PostgresConnectionManager], proxy: FaultProxy
) -> None:
    """None keeps the driver's own behaviour: it waits instead of closing the connection."""
    manager = proxied(cancel_timeout=None)
    conn = await manager.connect()
    task = asyncio.create_task(in_transaction(conn))
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


async def test_a_confirmed_cancel_leaves_no_timer_behind(url: str) -> None:
    """A timer that fires later would terminate a healthy connection."""
    manager = PostgresConnectionManager(url, cancel_timeout=0.3)
    conn = await manager.connect()
    task = asyncio.create_task(plain(conn))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    assert await conn.fetchval("SELECT 1") == 1
    await asyncio.sleep(0.4)
    assert manager.has_broken(conn) is False
    await manager.close(conn)


async def test_the_caller_may_use_the_connection_again_after_a_cancel(url: str) -> None:
    """Code that catches a TimeoutError and continues with the same connection needs it to work."""
    async with Pool(PostgresConnectionManager(url), min_idle=1) as pool, pool.get() as conn:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await prepared(conn)
        assert await conn.fetchval("SELECT $1::int", 7) == 7


async def test_wherever_a_borrower_is_cancelled_no_answer_goes_to_another_one(url: str) -> None:
    """redis-py 2023: another user's data. Each cancel point of get, two queries and release, on the real server."""
    number = 0

    @asynccontextmanager
    async def opened() -> AsyncIterator[Pool[Any]]:
        async with Pool(PostgresConnectionManager(url), max_size=1, min_idle=1) as pool:
            yield pool

    async def scenario(inject: Injector) -> None:
        async with opened() as pool:

            async def borrower(value: int) -> None:
                async with pool.get() as conn, conn.transaction():
                    assert await conn.fetchval("SELECT $1::int", value) == value
                    assert await conn.execute("SET LOCAL work_mem = '123kB'") == "SET"

            nonlocal number
            number += 10
            await inject(borrower(number))
            async with pool.get(timeout=3) as conn:
                assert await conn.fetchval("SELECT $1::int", number + 1) == number + 1
                assert await conn.fetchval("SHOW work_mem") != "123kB"
                assert not conn.is_in_transaction()
            state = pool.state()
            assert state.in_use == 0

    assert await acancel_everywhere(scenario) > 10
