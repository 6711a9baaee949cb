"""What goes wrong in the life of a PostgreSQL server, and what the pool makes of it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pool_core import CloseReason, ConnectError, Pool, PoolTimeout
from pool_psycopg import PsycopgConnectionManager
from psycopg_helpers import admin, kill, pid, value, works

if TYPE_CHECKING:
    from collections.abc import Callable

    from pool_core.testing import FaultProxy

    from containers.servers import Server, ServerFactory


async def settled(pool: Pool[Any]) -> None:
    """Until no reset, validation, connection attempt or close is under way."""
    async with asyncio.timeout(5):
        while (state := pool.state()).resetting or state.validating or state.opening or state.closing:
            await asyncio.sleep(0.01)


async def test_sessions_killed_while_idle_reach_no_borrower(url: str) -> None:
    """psycopg does not look at an idle socket: psycopg_pool, without check, returns dead connections."""
    async with Pool(PsycopgConnectionManager(url, autocommit=True), max_size=5, min_idle=5) as pool:
        leases = [await pool.get() for _ in range(5)]
        victims = [pid(lease.conn) for lease in leases]
        for lease in leases:
            lease.release()
        await settled(pool)
        await kill(url, *victims)
        served = await asyncio.gather(*(works(pool) for _ in range(5)))
        assert not set(served) & set(victims)
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 5


async def test_a_session_killed_while_in_use_costs_its_borrower_an_error_and_the_waiter_nothing(url: str) -> None:
    """aiomysql's waiter hangs for ever."""
    async with Pool(PsycopgConnectionManager(url), max_size=1, min_idle=1) as pool:
        lease = await pool.get()
        victim = pid(lease.conn)
        waiter = asyncio.create_task(works(pool))
        await asyncio.sleep(0.02)
        await kill(url, victim)
        with pytest.raises(psycopg.OperationalError):
            await value(lease.conn, "SELECT 1")
        assert not waiter.done()
        lease.release()
        assert await waiter != victim


async def test_a_connection_that_a_borrower_has_closed_costs_the_waiter_nothing(url: str) -> None:
    """``async with conn:`` closes it, as psycopg's users know."""
    async with Pool(PsycopgConnectionManager(url), max_size=1, min_idle=1) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(works(pool))
        await asyncio.sleep(0.02)
        async with lease.conn:
            pass
        assert lease.conn.closed
        lease.release()
        await waiter


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_after_a_restart_the_waiters_are_served_within_three_seconds(disturbed: Server, end: str) -> None:
    """An orderly shutdown and a crash; nobody restarts the program."""
    async with Pool(PsycopgConnectionManager(disturbed.url), max_size=3, min_idle=2) as pool:
        await works(pool)
        await asyncio.to_thread(getattr(disturbed, end))
        waiters = [asyncio.create_task(works(pool, timeout=30)) for _ in range(6)]
        await asyncio.sleep(0.5)
        assert not any(waiter.done() for waiter in waiters)
        await asyncio.to_thread(disturbed.start)
        back = time.monotonic()
        await asyncio.gather(*waiters)
        assert time.monotonic() - back < 3.0


async def test_while_the_server_is_down_the_timeout_says_why(disturbed: Server) -> None:
    """sqlx #3808: a timeout that hides the refused connect sends people looking for leaks."""
    async with Pool(PsycopgConnectionManager(disturbed.url), max_size=2, min_idle=1) as pool:
        await asyncio.to_thread(disturbed.kill)
        with pytest.raises(PoolTimeout, match="last connect error: .*(refused|reset|closed)") as caught:
            await works(pool, timeout=1.0)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        await asyncio.to_thread(disturbed.start)
        await works(pool, timeout=10)


async def test_a_paused_server_delays_a_get_no_longer_than_its_timeout(disturbed: Server) -> None:
    """The connection attempt, and the validation of an idle connection, hang; the deadline holds over both."""
    async with Pool(PsycopgConnectionManager(disturbed.url), max_size=2, min_idle=1, alive_bypass=0) as pool:
        await asyncio.to_thread(disturbed.pause)
        try:
            started = time.monotonic()
            results = await asyncio.gather(*(works(pool, timeout=0.7) for _ in range(3)), return_exceptions=True)
            assert [type(result) for result in results] == [PoolTimeout] * 3
            assert time.monotonic() - started < 1.2
        finally:
            await asyncio.to_thread(disturbed.unpause)
        await works(pool, timeout=10)


@pytest.mark.parametrize("fault", ["reset", "fin"])
async def test_a_cut_in_the_middle_of_an_answer_reaches_nobody_else(
    proxied: Callable[..., PsycopgConnectionManager], proxy: FaultProxy, fault: str
) -> None:
    """Half an answer must die with its connection."""
    async with Pool(proxied(sslmode="disable"), max_size=1, min_idle=1) as pool:
        await works(pool)
        await settled(pool)
        lease = await pool.get()
        proxy.cut(1000, reset=fault == "reset")
        with pytest.raises(psycopg.OperationalError):
            await lease.conn.execute("SELECT n FROM generate_series(1, 1000) AS n")
        proxy.heal()
        lease.release()
        await works(pool)


async def test_when_the_server_takes_no_more_connections_waiters_are_served_by_returns(server: ServerFactory) -> None:
    """libpq has no SQLSTATE for it: the words "too many clients" must not be taken for a refusal."""
    limits = ["-c", "max_connections=5", "-c", "superuser_reserved_connections=0", "-c", "reserved_connections=0"]
    with server("postgres", fresh=True, args=limits[:4]) as small:
        async with Pool(PsycopgConnectionManager(small.url, autocommit=True), max_size=10, min_idle=1) as pool:

            async def user() -> None:
                async with pool.get(timeout=15) as conn:
                    await conn.execute("SELECT pg_sleep(0.02)")

            await asyncio.gather(*(user() for _ in range(50)))
            assert pool.state().statistics.connects_failed > 0


async def test_a_wrong_password_fails_at_once_and_heals_when_it_is_right(url: str, postgres: Server) -> None:
    """Not after 30 s; and nobody needs to restart when the password is mended."""
    manager = PsycopgConnectionManager(url, password="wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        async with asyncio.timeout(2), Pool(manager, min_idle=1):
            pass
    async with Pool(manager) as pool:
        started = time.monotonic()
        results = await asyncio.gather(*(works(pool) for _ in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [ConnectError] * 5
        assert time.monotonic() - started < 2
        await settled(pool)
        manager.update(password=postgres.password)
        await works(pool)


async def test_after_a_failover_the_first_failed_write_retires_all(url: str) -> None:
    """HikariCP #1081: connections to what has become read-only would live on for max_lifetime."""
    manager = PsycopgConnectionManager(url, autocommit=True, options="-c default_transaction_read_only=on")
    async with Pool(manager, max_size=3, min_idle=3) as pool:
        old = {await works(pool)}
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            async with pool.get() as conn:
                await conn.execute("CREATE TABLE never (a int)")
        manager.update(options="")
        await settled(pool)
        assert await works(pool) not in old
        assert pool.state().statistics.connections_closed[CloseReason.EVICTED] >= 1


async def test_the_password_may_be_a_callable(postgres: Server) -> None:
    """Tokens that expire are fetched for each connection (psycopg #1042)."""
    asked = []

    async def token() -> str:
        asked.append(1)
        return str(postgres.password)

    manager = PsycopgConnectionManager(
        host=postgres.host, port=postgres.port, user=postgres.user, dbname=postgres.database, password=token
    )
    for _ in range(2):
        await manager.close(await manager.connect())
    assert len(asked) == 2


async def test_several_hosts_are_the_drivers(postgres: Server, url: str) -> None:
    """A dead first host must not matter."""
    login, _, address = url.rpartition("@")
    hosts, _, database = address.partition("/")
    manager = PsycopgConnectionManager(f"{login}@127.0.0.1:1,{hosts}/{database}?target_session_attrs=read-write")
    conn: Any = await manager.connect()
    assert await manager.is_valid(conn)
    await manager.close(conn)
    manager = PsycopgConnectionManager(url, target_session_attrs="standby")
    with pytest.raises(psycopg.OperationalError) as caught:
        await manager.connect()
    assert manager.is_transient(caught.value)


async def test_update_holds_for_new_connections_only(url: str) -> None:
    """Rotation: present connections stay until they are evicted."""
    manager = PsycopgConnectionManager(url, application_name="old")
    old = await manager.connect()
    manager.update(application_name="new")
    new = await manager.connect()
    assert [await value(conn, "SHOW application_name") for conn in (old, new)] == ["old", "new"]
    await manager.close(old)
    await manager.close(new)


async def test_a_url_finds_the_adapter(url: str) -> None:
    """What is no option of the pool reaches the driver as it is."""
    address = url.partition("://")[2]
    whole = f"postgresql+psycopg://{address}?application_name=a%20b&pool_max_size=3&pool_min_idle=1"
    async with Pool.from_url(whole) as pool:
        assert pool.config.max_size == 3
        async with pool.get() as conn:
            assert isinstance(conn, psycopg.AsyncConnection)
            assert await value(conn, "SHOW application_name") == "a b"


async def test_a_connection_of_the_users_class_may_be_added(url: str) -> None:
    """isinstance, repr and the user's own methods hold; what was opened elsewhere is reset as well."""

    class Mine(psycopg.AsyncConnection[Any]):
        async def answer(self) -> Any:
            return await value(self, "SELECT 42")

    manager = PsycopgConnectionManager(url, connection_class=Mine, autocommit=True)
    async with Pool(manager, max_size=2) as pool:
        async with pool.get() as conn:
            assert isinstance(conn, Mine)
            assert await conn.answer() == 42
            assert type(conn).__name__ == "Mine"
        pool.add(await psycopg.AsyncConnection.connect(url, autocommit=True))
        lease, other = await pool.get(), await pool.get()
        for one in (lease, other):
            await one.conn.execute("SET work_mem = '123kB'")
            one.release()
        lease, other = await pool.get(), await pool.get()
        assert {await value(one.conn, "SHOW work_mem") for one in (lease, other)} == {"4MB"}
        lease.release()
        other.release()


def test_terminate_works_on_a_closed_loop(url: str) -> None:
    """A pool whose loop is gone still has to free the server's connection slots."""
    loop = asyncio.new_event_loop()
    manager = PsycopgConnectionManager(url)
    conn: Any = loop.run_until_complete(manager.connect())
    victim = pid(conn)
    loop.close()
    manager.terminate(conn)
    assert manager.has_broken(conn) is True

    async def gone() -> bool:
        for _ in range(100):
            if not await admin(url, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", victim):
                return True
            await asyncio.sleep(0.01)
        return False

    assert asyncio.run(gone())
