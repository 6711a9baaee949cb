"""Through PgBouncer in transaction mode, where a session lasts no longer than a transaction."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import ConnectError, Pool
from pool_psycopg import PsycopgConnectionManager
from psycopg_helpers import admin, cut_off, in_transaction, value, works

if TYPE_CHECKING:
    from containers.servers import Server, ServerFactory


@pytest.fixture
def bouncer(server: ServerFactory) -> Server:
    """The run's PgBouncer."""
    return server("pgbouncer")


def manager_for(bouncer: Server, **options: Any) -> PsycopgConnectionManager:
    """As the README says."""
    return PsycopgConnectionManager(bouncer.url, **{"prepare_threshold": None, "reset": "none", **options})


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("mode", ["none", "safe"])
async def test_many_users_share_few_sessions(bouncer: Server, mode: Any, autocommit: bool) -> None:
    """The safe reset is one message, so one transaction: it does no harm there, only nothing useful."""
    async with Pool(manager_for(bouncer, reset=mode, autocommit=autocommit), max_size=10, min_idle=1) as pool:

        async def user(number: int) -> None:
            async with pool.get() as conn:
                assert await value(conn, "SELECT %s::int", number) == number

        await asyncio.gather(*(user(number) for number in range(100)))


async def test_an_open_transaction_is_rolled_back(bouncer: Server) -> None:
    """It would hold one of PgBouncer's few sessions."""
    async with Pool(manager_for(bouncer), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            await conn.execute("SELECT 1")
        async with pool.get() as conn:
            assert not in_transaction(conn)


async def test_a_cancelled_query_gives_its_session_back(bouncer: Server) -> None:
    """PgBouncer forwards the cancel; the connection stays in use."""
    async with Pool(manager_for(bouncer), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            await cut_off(conn)
        async with pool.get(timeout=5) as again:
            assert again is conn
            assert await value(again, "SELECT %s::int", 1) == 1


async def test_test_transaction_holds(bouncer: Server) -> None:
    """A transaction keeps its session."""
    async with Pool(manager_for(bouncer, test_transaction=True, autocommit=True), max_size=1) as pool:
        async with pool.get() as conn:
            await conn.execute("CREATE TABLE through_the_bouncer (a int)")
        async with pool.get() as conn:
            assert await value(conn, "SELECT count(*) FROM through_the_bouncer") == 0
    assert await admin(bouncer.url, "SELECT to_regclass('through_the_bouncer')") is None


async def test_waiters_are_served_after_a_restart(server: ServerFactory) -> None:
    """PgBouncer is restarted for an upgrade, the server behind it goes on."""
    with server("pgbouncer", fresh=True) as mine:
        async with Pool(manager_for(mine), max_size=3, min_idle=2) as pool:
            await works(pool)
            await asyncio.to_thread(mine.kill)
            waiters = [asyncio.create_task(works(pool, timeout=30)) for _ in range(10)]
            await asyncio.sleep(0.3)
            assert not any(waiter.done() for waiter in waiters)
            await asyncio.to_thread(mine.start)
            back = time.monotonic()
            await asyncio.gather(*waiters)
            assert time.monotonic() - back < 3.0


@pytest.mark.parametrize(
    "options", [{"password": "wrong"}, {"user": "nobody"}, {"dbname": "nowhere"}, {"sslmode": "require"}], ids=str
)
async def test_what_will_not_heal_is_told_at_once(bouncer: Server, options: dict[str, Any]) -> None:
    """libpq gives no SQLSTATE: PgBouncer's words are read."""
    async with Pool(manager_for(bouncer, **options)) as pool:
        started = time.monotonic()
        with pytest.raises(ConnectError):
            await works(pool)
        assert time.monotonic() - started < 2
