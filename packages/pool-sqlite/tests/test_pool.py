"""The adapter under a real pool: what users see of it."""

import asyncio
import contextlib
import gc
import sqlite3
import threading
import time
from typing import Any

import aiosqlite
import pytest
from pool_core import BrokenConnection, CloseReason, ConnectError, Pool
from pool_sqlite import SqliteConnectionManager


def test_tasks_share_a_few_connections(db: Any) -> None:
    """More tasks than connections, and the pool serves all of them."""

    async def look() -> None:
        async with Pool(db.manager(wal=True), max_size=3, min_idle=1) as pool:

            async def work(number: int) -> None:
                async with pool.get() as conn:
                    if number % 10 == 0:
                        await conn.execute("INSERT INTO things VALUES (?)", (str(number),))
                        await conn.commit()
                    assert (await db.ask(conn, "SELECT count(*) FROM things"))[0][0] >= 1

            await asyncio.gather(*map(work, range(100)))
            statistics = pool.state().statistics
            assert statistics.gets_started == statistics.gets_direct + statistics.gets_waited == 100
            assert statistics.connections_created <= 3
            assert sum(statistics.connections_closed.values()) == 0
        assert db.admin("SELECT count(*) FROM things") == [(11,)]

    asyncio.run(look())


def test_a_clean_return_goes_straight_back(db: Any) -> None:
    """No reset task, no round trip: the next get in the same tick finds it idle."""

    async def look() -> None:
        async with Pool(db.manager(), max_size=1, min_idle=1) as pool:
            async with pool.get() as conn:
                await conn.execute("INSERT INTO things VALUES ('x')")
                await conn.commit()
            assert pool.state().idle == 1
            async with pool.get() as conn:
                await conn.execute("INSERT INTO things VALUES ('y')")
            assert pool.state().resetting == 1

    asyncio.run(look())


@pytest.mark.cancellation
def test_the_waiter_behind_a_cancelled_query_gets_a_new_connection(db: Any) -> None:
    """The waiter neither waits for the query nor gets its interrupt."""

    async def look() -> None:
        async with Pool(db.manager(), max_size=1) as pool:

            async def impatient() -> None:
                async with pool.get() as conn:
                    query = await db.under_way(conn)
                    busy.set()
                    async with asyncio.timeout(0.05):
                        await query

            busy = asyncio.Event()
            task = asyncio.create_task(impatient())
            await busy.wait()
            began = time.perf_counter()
            async with pool.get(timeout=5) as conn:
                assert await db.ask(conn, "SELECT name FROM things") == [("first",)]
            assert time.perf_counter() - began < 3
            with pytest.raises(TimeoutError):
                await task
            statistics = pool.state().statistics
            assert statistics.connections_closed[CloseReason.BROKEN] == 1
            assert statistics.connections_created == 2

    asyncio.run(look())


@pytest.mark.cancellation
def test_a_transaction_cut_off_by_a_cancel_leaves_nothing(db: Any) -> None:
    """Half a transfer must not be seen, committed or locked."""

    async def look() -> None:
        async with Pool(db.manager(busy_timeout=1000), max_size=2) as pool:
            inside = asyncio.Event()

            async def transfer() -> None:
                async with pool.get() as conn:
                    await conn.execute("DELETE FROM things")
                    inside.set()
                    await asyncio.sleep(30)

            task = asyncio.create_task(transfer())
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with pool.get() as conn:
                await conn.execute("INSERT INTO things VALUES ('second')")
                await conn.commit()
        assert db.admin("SELECT name FROM things") == [("first",), ("second",)]

    asyncio.run(look())


def test_open_fails_with_the_drivers_error(db: Any, tmp_path: Any) -> None:
    """A wrong path fails when the pool opens, with SQLite's error, not after connection_timeout."""

    async def look() -> None:
        began = time.perf_counter()
        with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
            await Pool(SqliteConnectionManager(tmp_path / "nowhere" / "app.db"), min_idle=1).open()
        pool = Pool(SqliteConnectionManager(tmp_path / "nowhere" / "app.db"), error_sink=lambda _: None)
        async with pool:
            with pytest.raises(ConnectError) as caught:
                await pool.get()
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert time.perf_counter() - began < 5

    asyncio.run(look())


def test_open_waits_for_a_lock_to_go(db: Any) -> None:
    """A locked database is transient: the pool retries while another process runs a migration."""

    async def look() -> None:
        with contextlib.closing(sqlite3.connect(db.path, check_same_thread=False)) as other:
            other.execute("BEGIN EXCLUSIVE")
            asyncio.get_running_loop().call_later(0.1, other.rollback)
            pool = Pool(db.manager(busy_timeout=0), min_idle=1, error_sink=lambda _: None)
            async with pool, pool.get() as conn:
                assert await db.ask(conn, "SELECT name FROM things") == [("first",)]
            assert pool.state().statistics.connects_failed >= 1

    asyncio.run(look())


def test_a_lease_dropped_by_the_garbage_collector_frees_its_thread(db: Any) -> None:
    """The query may still run, and no code will return the connection."""

    async def look() -> None:
        async with Pool(db.manager(), max_size=1) as pool:
            leases = [await pool.get()]
            task = asyncio.ensure_future(leases[0].conn.execute(db.slow))
            await asyncio.sleep(0.02)

            async def forget() -> None:
                leases.clear()
                gc.collect()
                await asyncio.sleep(0.05)

            with pytest.warns(ResourceWarning):
                await forget()
            with pytest.raises((sqlite3.Error, ValueError)):
                await task
            async with pool.get(timeout=5) as conn:
                assert await db.ask(conn, "SELECT 1") == [(1,)]
            assert pool.state().statistics.connections_closed[CloseReason.LEAKED] == 1

    asyncio.run(look())


def test_close_ends_though_a_query_runs(db: Any) -> None:
    """close() ends within its timeout, also if a borrower's query runs, and every thread ends."""

    async def look() -> None:
        pool = Pool(db.manager(), max_size=1)
        await pool.open()
        lease = await pool.get()
        task = asyncio.ensure_future(lease.conn.execute(db.slow))
        await asyncio.sleep(0.02)
        began = time.perf_counter()
        await pool.close(timeout=0.1)
        assert time.perf_counter() - began < 2
        with pytest.raises(sqlite3.Error):
            await task
        lease.release()

    asyncio.run(look())


def test_only_connections_of_the_manager_can_be_added(db: Any) -> None:
    """The pool refuses a plain aiosqlite connection, and does not close it."""

    async def look() -> None:
        manager = db.manager()
        async with Pool(manager, max_size=1) as pool, aiosqlite.connect(db.path) as plain:
            with pytest.raises(BrokenConnection) as caught:
                pool.add(plain)
            assert caught.value.connection is plain
            pool.add(await manager.connect())
            assert pool.state().idle == 1

    asyncio.run(look())


def test_diesels_rule_shows_in_the_statistics(db: Any) -> None:
    """With open_transaction="close": a transaction released open costs the connection."""

    async def look() -> None:
        async with Pool(db.manager(open_transaction="close"), max_size=1) as pool:
            async with pool.get() as conn:
                await conn.execute("INSERT INTO things VALUES ('half')")
            async with pool.get() as conn:
                assert await db.ask(conn, "SELECT name FROM things") == [("first",)]
            assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1

    asyncio.run(look())


def test_from_url_finds_this_adapter(db: Any) -> None:
    """`pip install pool-sqlite` registers the entry point."""

    async def look() -> None:
        url = f"sqlite:///{db.path}?wal=true&pool_max_size=2"
        async with Pool.from_url(url, min_idle=1) as pool, pool.get() as conn:
            assert pool.config.max_size == 2
            assert list(await conn.execute_fetchall("PRAGMA journal_mode")) == [("wal",)]

    asyncio.run(look())


def test_no_thread_is_left_after_close(db: Any) -> None:
    """Each connection has one thread, which ends with it."""

    async def look() -> None:
        before = threading.active_count()
        async with Pool(db.manager(), max_size=3, min_idle=3) as pool:
            assert threading.active_count() == before + 3
            assert pool.state().idle == 3
        for _ in range(1000):
            if threading.active_count() == before:
                break
            await asyncio.sleep(0.001)
        assert threading.active_count() == before

    asyncio.run(look())
