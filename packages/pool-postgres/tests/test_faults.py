"""Faults of a PostgreSQL server, and how the pool handles them."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pool_core import CloseReason, ConnectError, Pool, PoolTimeout
from pool_postgres import PostgresConnectionManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pool_core.testing import FaultProxy

    from containers.servers import Server, ServerFactory


async def admin(url: str, query: str, *args: object) -> Any:
    """One statement by a connection of its own."""
    conn = await asyncpg.connect(url)
    try:
        return await conn.fetchval(query, *args) if args else await conn.execute(query)
    finally:
        await conn.close()


async def kill(url: str, *pids: int) -> None:
    """Let the server end these sessions, and wait a moment until the client notices."""
    await admin(url, "SELECT bool_and(pg_terminate_backend(pid, 2000)) FROM unnest($1::int[]) AS pid", pids)
    await asyncio.sleep(0.05)


def pids(leases: list[Any]) -> list[int]:
    """The sessions of these leases."""
    return [lease.conn.get_server_pid() for lease in leases]


@asynccontextmanager
async def leased(pool: Pool[Any], number: int) -> AsyncIterator[list[Any]]:
    """So many connections at once."""
    leases = list(await asyncio.gather(*(pool.get() for _ in range(number))))
    try:
        yield leases
    finally:
        for lease in leases:
            lease.release()


async def works(pool: Pool[Any], timeout: float = 5.0) -> int:
    """Get a connection and use it; its session."""
    async with pool.get(timeout=timeout) as conn:
        assert await conn.fetchval("SELECT 1") == 1
        return int(conn.get_server_pid())


async def settled(pool: Pool[Any]) -> None:
    """Until no reset, test, connect or close is under way."""
    async with asyncio.timeout(5):
        while (state := pool.state()).resetting or state.validating or state.opening or state.closing:
            await asyncio.sleep(0.01)


async def test_sessions_killed_while_idle_are_never_lent(url: str) -> None:
    """psycopg_pool, SQLAlchemy and redis-py hand out dead ones."""
    async with Pool(PostgresConnectionManager(url), max_size=5, min_idle=5) as pool:
        async with leased(pool, 5) as leases:
            victims = pids(leases)
        await settled(pool)
        await kill(url, *victims)
        served = await asyncio.gather(*(works(pool) for _ in range(5)))
        assert not set(served) & set(victims)
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 5


async def test_a_session_killed_while_lent_costs_its_borrower_an_error_and_the_waiter_nothing(url: str) -> None:
    """aiomysql's waiter hangs forever."""
    async with Pool(PostgresConnectionManager(url), max_size=1, min_idle=1) as pool:
        lease = await pool.get()
        (victim,) = pids([lease])
        waiter = asyncio.create_task(works(pool))
        await asyncio.sleep(0.02)
        await kill(url, victim)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
            await lease.conn.fetchval("SELECT 1")
        assert not waiter.done()
        lease.release()
        assert await waiter != victim


async def test_a_session_killed_in_a_query_within_a_transaction_shows_the_servers_error(url: str) -> None:
    """The rollback that cannot be sent must not hide the cause: an administrator's command."""
    async with Pool(PostgresConnectionManager(url), max_size=1, min_idle=1) as pool:
        working: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def borrower() -> None:
            async with pool.get() as conn, conn.transaction():
                working.set_result(conn.get_server_pid())
                await conn.execute("SELECT pg_sleep(30)")

        task = asyncio.create_task(borrower())
        victim = await working
        await asyncio.sleep(0.05)
        await kill(url, victim)
        with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)):
            await task
        assert await works(pool) != victim


@pytest.mark.parametrize("how", ["close", "terminate"])
async def test_a_connection_returned_closed_costs_the_waiter_nothing(url: str, how: str) -> None:
    """aiomysql never wakes its waiters."""
    async with Pool(PostgresConnectionManager(url), max_size=1, min_idle=1) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(works(pool))
        await asyncio.sleep(0.02)
        if how == "close":
            await lease.conn.close()
        else:
            lease.conn.terminate()
        lease.release()
        await waiter


async def test_a_connection_returned_in_the_middle_of_a_query_is_not_lent_on(url: str) -> None:
    """A forgotten task still waits for its answer on that connection."""
    async with Pool(PostgresConnectionManager(url), max_size=1, min_idle=1) as pool:
        lease = await pool.get()
        (victim,) = pids([lease])
        forgotten = asyncio.create_task(lease.conn.execute("SELECT pg_sleep(30)"))
        await asyncio.sleep(0.05)
        lease.release()
        assert await works(pool) != victim
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await forgotten


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_after_a_restart_the_waiters_are_served_within_three_seconds(disturbed: Server, end: str) -> None:
    """An orderly shutdown and a crash, without a restart of the program."""
    async with Pool(PostgresConnectionManager(disturbed.url), max_size=3, min_idle=2) as pool:
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
    """sqlx #3808: if a timeout hides the refused connection attempt, people look for leaks."""
    async with Pool(PostgresConnectionManager(disturbed.url), max_size=2, min_idle=1) as pool:
        await asyncio.to_thread(disturbed.kill)
        started = time.monotonic()
        with pytest.raises(
            PoolTimeout, match="last connect error: .*(Connect call failed|refused|[Rr]eset|closed|lost)"
        ) as caught:
            await works(pool, timeout=1.0)
        assert 0.9 < time.monotonic() - started < 1.3
        assert isinstance(caught.value.__cause__, (OSError, asyncpg.PostgresError, asyncpg.InterfaceError))
        await asyncio.to_thread(disturbed.start)
        await works(pool, timeout=10)


async def test_a_paused_server_delays_a_get_no_longer_than_its_timeout(disturbed: Server) -> None:
    """Connecting and validating hang; the timeout covers both."""
    pool = Pool(PostgresConnectionManager(disturbed.url), max_size=2, min_idle=1, alive_bypass=0)
    async with pool:
        await asyncio.to_thread(disturbed.pause)
        try:
            started = time.monotonic()
            results = await asyncio.gather(*(works(pool, timeout=0.7) for _ in range(3)), return_exceptions=True)
            assert [type(result) for result in results] == [PoolTimeout] * 3
            assert time.monotonic() - started < 1.2
        finally:
            await asyncio.to_thread(disturbed.unpause)
        await works(pool, timeout=10)


async def test_connections_that_a_firewall_forgot_cost_one_validation_timeout(
    proxied: Callable[..., PostgresConnectionManager], proxy: FaultProxy
) -> None:
    """Connections that were unused as long are terminated with the first one, without a timeout each."""
    manager = proxied()
    pool = Pool(manager, max_size=5, min_idle=5, alive_bypass=0, validation_timeout=0.5)
    async with pool:
        proxy.freeze()  # the present ones hang for good
        task = asyncio.create_task(works(pool, timeout=10))
        await asyncio.sleep(0.3)
        proxy.heal()
        assert await task


async def test_a_server_that_accepts_and_never_answers_is_bounded_by_the_get(
    proxied: Callable[..., PostgresConnectionManager], proxy: FaultProxy
) -> None:
    """asyncpg.Pool's acquire has no timeout for it."""
    async with Pool(proxied(), max_size=2) as pool:
        proxy.silence()
        started = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            await works(pool, timeout=0.5)
        assert time.monotonic() - started < 1.0
        assert caught.value.phase == "connect"


@pytest.mark.parametrize("fault", ["reset", "fin"])
async def test_a_cut_in_the_middle_of_an_answer_reaches_nobody_else(
    proxied: Callable[..., PostgresConnectionManager], proxy: FaultProxy, fault: str
) -> None:
    """A connection with half an answer must be closed."""
    async with Pool(proxied(ssl=False), max_size=1, min_idle=1) as pool:
        await works(pool)
        await settled(pool)
        lease = await pool.get()
        proxy.cut(1000, reset=fault == "reset")
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await lease.conn.fetch("SELECT n FROM generate_series(1, 1000) AS n")
        proxy.heal()
        lease.release()
        await works(pool)


async def test_a_reset_that_hangs_costs_its_connection_and_no_user_waits_for_it(
    proxied: Callable[..., PostgresConnectionManager], proxy: FaultProxy
) -> None:
    """The borrower does not wait; reset_timeout ends the reset."""
    async with Pool(proxied(), max_size=1, min_idle=1, reset_timeout=0.3) as pool:
        lease = await pool.get()
        proxy.freeze()
        started = time.monotonic()
        lease.release()
        assert time.monotonic() - started < 0.1
        await asyncio.sleep(0.6)
        proxy.heal()
        await works(pool)
        assert pool.state().statistics.connections_closed[CloseReason.RESET_FAILED] == 1


async def test_when_the_server_takes_no_more_connections_waiters_are_served_by_returns(server: ServerFactory) -> None:
    """asyncpg raises for 11 of 50, psycopg_pool hides the reason."""
    with server(
        "postgres", fresh=True, args=["-c", "max_connections=5", "-c", "superuser_reserved_connections=0"]
    ) as small:
        async with Pool(PostgresConnectionManager(small.url), max_size=10, min_idle=1) as pool:
            held: Counter[int] = Counter()

            async def user() -> None:
                async with pool.get(timeout=15) as conn:
                    held[conn.get_server_pid()] += 1
                    await conn.execute("SELECT pg_sleep(0.02)")

            await asyncio.gather(*(user() for _ in range(50)))
            assert sum(held.values()) == 50
            assert pool.state().statistics.connects_failed > 0
        # Now others take all that the server has.
        others: list[Any] = []
        try:
            with pytest.raises(asyncpg.TooManyConnectionsError):
                while True:
                    others.append(await asyncpg.connect(small.url))
            async with Pool(PostgresConnectionManager(small.url), max_size=2) as pool:
                with pytest.raises(PoolTimeout, match="too many clients") as caught:
                    await works(pool, timeout=0.5)
                assert isinstance(caught.value.__cause__, asyncpg.TooManyConnectionsError)
                waiter = asyncio.create_task(works(pool, timeout=10))
                await asyncio.sleep(0.1)
                await others.pop().close()
                await waiter
        finally:
            for other in others:
                await other.close()


async def test_a_wrong_password_fails_at_once_and_heals_when_it_is_right(url: str, postgres: Server) -> None:
    """The get fails at once, not after 30 s, and a corrected password needs no restart."""
    manager = PostgresConnectionManager(url, password="wrong")
    with pytest.raises(asyncpg.InvalidPasswordError):
        async with asyncio.timeout(2), Pool(manager, min_idle=1):
            pass
    async with Pool(manager) as pool:
        started = time.monotonic()
        results = await asyncio.gather(*(works(pool) for _ in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [ConnectError] * 5
        assert all(isinstance(result.__cause__, asyncpg.InvalidPasswordError) for result in results)  # type: ignore[union-attr]
        assert time.monotonic() - started < 2
        await settled(pool)  # what was begun with the wrong password has failed too
        manager.update(password=postgres.password)
        await works(pool)


async def test_an_authentication_error_beside_a_healthy_connection_fails_nobody(url: str, postgres: Server) -> None:
    """One refused connection attempt in a rotation must not fail the waiters of a pool that works."""
    manager = PostgresConnectionManager(url)
    errors: list[BaseException] = []
    async with Pool(manager, max_size=3, min_idle=1, error_sink=errors.append) as pool:
        lease = await pool.get()
        manager.update(password="wrong")
        waiters = [asyncio.create_task(works(pool, timeout=10)) for _ in range(3)]
        await asyncio.sleep(0.3)
        assert not any(waiter.done() for waiter in waiters)
        assert any(isinstance(error, asyncpg.InvalidPasswordError) for error in errors)
        lease.release()
        await asyncio.gather(*waiters)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"ssl": "require"}, ConnectionError),
        ({"database": "nowhere"}, asyncpg.InvalidCatalogNameError),
        ({"host": "no-such-host.invalid"}, OSError),
        ({"user": "nobody"}, asyncpg.InvalidPasswordError),
    ],
    ids=str,
)
async def test_what_will_not_heal_fails_the_start_and_the_waiters_at_once(
    url: str, options: dict[str, Any], kind: type[Exception]
) -> None:
    """TLS refused, unknown database, host, role: the driver's error from open, ConnectError from get."""
    started = time.monotonic()
    with pytest.raises(kind):
        await Pool(PostgresConnectionManager(url, **options), min_idle=1).open()
    async with Pool(PostgresConnectionManager(url, **options)) as pool:
        with pytest.raises(ConnectError) as caught:
            await works(pool)
    assert isinstance(caught.value.__cause__, kind)
    assert time.monotonic() - started < 2


async def test_after_a_failover_evict_retires_the_old_primary(disturbed: Server, url: str) -> None:
    """HikariCP #1081: connections to what has become read-only would live on for max_lifetime."""
    login, _, address = url.rpartition("@")
    new, _, database = address.partition("/")
    hosts = f"{login}@{disturbed.host}:{disturbed.port},{new}/{database}?target_session_attrs=read-write"
    who = "SELECT system_identifier FROM pg_control_system()"
    old_primary = await admin(disturbed.url, who + " WHERE $1", True)
    async with Pool(PostgresConnectionManager(hosts), max_size=3, min_idle=2) as pool:
        lease = await pool.get()
        assert await lease.conn.fetchval(who) == old_primary
        await admin(disturbed.url, "ALTER SYSTEM SET default_transaction_read_only = on")
        await admin(disturbed.url, "SELECT pg_reload_conf()")
        try:
            async with asyncio.timeout(5):
                while await lease.conn.fetchval("SHOW transaction_read_only") != "on":
                    await asyncio.sleep(0.02)
            await settled(pool)
            assert pool.evict() == 3  # the leased one, and min_idle beside it
            lease.release()
            async with leased(pool, 3) as leases:
                for one in leases:
                    assert await one.conn.fetchval(who) != old_primary
                    assert await one.conn.fetchval("SHOW transaction_read_only") == "off"
        finally:
            await admin(f"{disturbed.url}?default_transaction_read_only=off", "ALTER SYSTEM RESET ALL")
            await admin(disturbed.url, "SELECT pg_reload_conf()")


async def test_a_rotated_password_reaches_new_connections(url: str, postgres: Server) -> None:
    """update() and evict() need no restart, and no get fails."""
    await admin(url, "DROP ROLE IF EXISTS rotating; CREATE ROLE rotating LOGIN PASSWORD 'first'")
    manager = PostgresConnectionManager(url, user="rotating", password="first")
    async with Pool(manager, max_size=2, min_idle=2) as pool:
        before = await works(pool)
        await admin(url, "ALTER ROLE rotating PASSWORD 'second'")
        manager.update(password="second")
        assert pool.evict() == 2
        assert await works(pool) != before
    await admin(url, "DROP ROLE rotating")


async def test_a_thousand_waiters_over_a_crash_are_all_served(disturbed: Server) -> None:
    """Most other pools fail all waiters, or connect hundreds of times a second."""
    connects = 0

    class Counting(PostgresConnectionManager):
        async def connect(self) -> Any:
            nonlocal connects
            connects += 1
            return await super().connect()

    async with Pool(Counting(disturbed.url), max_size=10, min_idle=10, connection_timeout=40) as pool:
        served, lost = 0, 0

        async def user() -> None:
            nonlocal served, lost
            async with pool.get() as conn:
                served += 1
                try:
                    await conn.execute("SELECT pg_sleep(0.002)")
                except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
                    lost += 1  # InternalClientError: the driver has read the server's last words, but not yet the end

        users = [asyncio.create_task(user()) for _ in range(1000)]
        while served < 100:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(disturbed.kill)
        down = time.monotonic()
        await asyncio.sleep(1)
        connects_before = connects
        await asyncio.sleep(1)
        assert connects - connects_before <= 15, "connects in one second of outage"
        assert sum(not task.done() for task in users) > 500, "the test would prove nothing"
        await asyncio.to_thread(disturbed.start)
        assert time.monotonic() - down < 35
        await asyncio.gather(*users)
        assert served == 1000
        assert lost <= 10, "only those who held one of the ten connections"


async def test_no_text_shows_the_password_whatever_happens(
    url: str, postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The test searches every repr, log line and error for a canary, after success, refusal, timeouts and a kill."""
    canary = "c4n4ry/p@ss:w0rd?#%"
    caplog.set_level(logging.DEBUG)
    await admin(url, f"DROP ROLE IF EXISTS bird; CREATE ROLE bird LOGIN PASSWORD '{canary}'")
    escaped = "c4n4ry%2Fp%40ss%3Aw0rd%3F%23%25"
    dsn = f"postgresql://bird:{escaped}@{postgres.host}:{postgres.port}/pool"
    texts: list[str] = []
    events: list[object] = []
    manager = PostgresConnectionManager(dsn)
    asyncio.get_running_loop().set_debug(True)
    async with Pool(manager, max_size=1, min_idle=1, listeners=[events.append], leak_threshold=0.001) as pool:
        lease = await pool.get()
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=0.05)
        texts += [*traceback.format_exception(caught.value), repr(pool), repr(pool.holders()), repr(pool.config)]
        await kill(url, lease.conn.get_server_pid())
        with pytest.raises(Exception, match="closed|terminat|connection") as failed:
            await lease.conn.fetchval("SELECT 1")
        texts += traceback.format_exception(failed.value)
        lease.release()
        await works(pool)
        await admin(url, "ALTER ROLE bird PASSWORD 'another'")
        pool.evict()
        with pytest.raises(ConnectError) as refused:
            await works(pool)
        texts += traceback.format_exception(refused.value)
        texts += [repr(pool.state()), repr(vars(manager)), repr(manager), repr(events)]
    asyncio.get_running_loop().set_debug(False)
    await admin(url, "DROP ROLE bird")
    for text in [*texts, caplog.text]:
        for secret in (canary, escaped, "c4n4ry"):
            assert secret not in text
