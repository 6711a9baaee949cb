"""Through PgBouncer in transaction mode, where a session lasts no longer than a transaction."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pool_core import ConnectError, Pool, PoolTimeout
from pool_postgres import PostgresConnectionManager

if TYPE_CHECKING:
    from containers.servers import Server, ServerFactory


@pytest.fixture
def bouncer(server: ServerFactory) -> Server:
    """The run's PgBouncer."""
    return server("pgbouncer")


def manager_for(bouncer: Server, **options: Any) -> PostgresConnectionManager:
    """As the README says."""
    return PostgresConnectionManager(bouncer.url, **{"statement_cache_size": 0, "reset": "none", **options})


async def works(pool: Pool[Any], timeout: float = 5.0) -> None:
    """Get a connection and use it, with arguments."""
    async with pool.get(timeout=timeout) as conn:
        assert await conn.fetchval("SELECT $1::int + 1", 41) == 42


@pytest.mark.parametrize("mode", ["none", "safe"])
async def test_many_users_share_few_sessions(bouncer: Server, mode: Any) -> None:
    """The safe reset is one message, so one transaction: it does no harm there, only nothing useful."""
    async with Pool(manager_for(bouncer, reset=mode), max_size=10, min_idle=1) as pool:

        async def user(number: int) -> None:
            async with pool.get() as conn, conn.transaction():
                assert await conn.fetchval("SELECT $1::int", number) == number

        await asyncio.gather(*(user(number) for number in range(100)))


async def test_an_open_transaction_is_rolled_back(bouncer: Server) -> None:
    """An open transaction would hold one of PgBouncer's few sessions."""
    async with Pool(manager_for(bouncer), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            await conn.transaction().start()
        async with pool.get() as conn:
            assert not conn.is_in_transaction()


async def test_a_cancelled_query_gives_its_session_back(bouncer: Server) -> None:
    """PgBouncer forwards the cancel; the connection stays in use."""
    async with Pool(manager_for(bouncer), max_size=1, min_idle=1) as pool:
        lease = await pool.get()
        conn = lease.conn
        task = asyncio.create_task(conn.execute("SELECT pg_sleep(30)"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        lease.release()
        async with pool.get(timeout=5) as again:
            assert again is conn
            assert await again.fetchval("SELECT $1::int", 1) == 1


async def test_test_transaction_holds(bouncer: Server) -> None:
    """A transaction keeps its session."""
    table = "CREATE TABLE through_the_bouncer (a int)"
    async with Pool(manager_for(bouncer, test_transaction=True), max_size=1) as pool:
        async with pool.get() as conn:
            await conn.execute(table)
        async with pool.get() as conn:
            assert await conn.fetchval("SELECT count(*) FROM through_the_bouncer") == 0
    async with Pool(manager_for(bouncer), max_size=1) as pool, pool.get() as conn:
        assert await conn.fetchval("SELECT to_regclass('through_the_bouncer')") is None


async def test_waiters_are_served_after_a_restart(server: ServerFactory) -> None:
    """PgBouncer is restarted for an upgrade, the server behind it goes on."""
    with server("pgbouncer", fresh=True) as mine:
        async with Pool(manager_for(mine), max_size=3, min_idle=2) as pool:
            await works(pool)
            await asyncio.to_thread(mine.kill)
            with pytest.raises(PoolTimeout):
                await works(pool, timeout=0.3)
            waiters = [asyncio.create_task(works(pool, timeout=30)) for _ in range(10)]
            await asyncio.to_thread(mine.start)
            back = time.monotonic()
            await asyncio.gather(*waiters)
            assert time.monotonic() - back < 3.0


@pytest.mark.parametrize(
    "options", [{"password": "wrong"}, {"user": "nobody"}, {"database": "nowhere"}, {"ssl": "require"}], ids=str
)
async def test_what_will_not_heal_is_told_at_once(bouncer: Server, options: dict[str, Any]) -> None:
    """PgBouncer has one code for transient and lasting errors, so the message decides."""
    async with Pool(manager_for(bouncer, **options)) as pool:
        started = time.monotonic()
        with pytest.raises(ConnectError):
            await works(pool)
        assert time.monotonic() - started < 2


async def test_what_passes_is_transient(bouncer: Server) -> None:
    """The same code, with another message."""
    manager = manager_for(bouncer)
    for words in ("pgbouncer cannot connect to server", "no more connections allowed (max_client_conn)"):
        assert manager.is_transient(asyncpg.PostgresError.new({"C": "08P01", "M": words, "S": "FATAL"})) is True
