"""The pool over real servers: what aiomysql's own pool fails at, and the faults of servers and networks."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import aiomysql
import pytest
from mysql_dialects import numbers
from pool_core import CloseReason, ConnectError, Pool, PoolTimeout
from pool_core.testing import FaultProxy
from pool_mysql import Connection, MySQLConnectionManager

from containers.servers import ServerFactory

Rows = tuple[tuple[Any, ...], ...]


async def query(pool: Pool[Connection], sql: str = "SELECT CONNECTION_ID()") -> Any:
    """The first value of a statement, run on a connection of the pool."""
    async with pool.get() as conn, conn.cursor() as cursor:
        await cursor.execute(sql)
        row = await cursor.fetchone()
        return row and row[0]


@pytest.fixture(autouse=True)
def no_noise() -> Iterator[None]:
    """Faults are reported to the log: here they are meant."""
    logging.getLogger("pool_core").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("pool_core").setLevel(logging.NOTSET)


# --- aiomysql.Pool's failures


async def leave_closed(conn: Connection) -> None:
    conn.close()


async def leave_in_transaction(conn: Connection) -> None:
    await conn.begin()
    await conn.query("INSERT INTO things VALUES (55)")


async def leave_half_read(conn: Connection) -> None:
    await conn.query(numbers(100_000), unbuffered=True)


async def leave_dead(conn: Connection) -> None:
    with contextlib.suppress(aiomysql.MySQLError):
        await conn.kill(conn.thread_id())


@pytest.mark.cancellation
@pytest.mark.parametrize("leave", [leave_closed, leave_in_transaction, leave_half_read, leave_dead])
@pytest.mark.parametrize("open_transaction", ["rollback", "close"])
def test_a_waiter_behind_a_connection_that_comes_back_bad_is_served(db: Any, leave: Any, open_transaction: str) -> None:
    """aiomysql's release() forgets its waiters for ever."""

    async def main() -> None:
        async with Pool(db.manager(open_transaction=open_transaction), max_size=1, connection_timeout=5) as pool:
            async with pool.get() as conn:
                waiter = asyncio.ensure_future(query(pool, "SELECT COUNT(*) FROM things WHERE number = 55"))
                await asyncio.sleep(0)
                await leave(conn)
            assert await waiter == 0

    asyncio.run(main())


def test_an_idle_connection_is_lent_at_once_while_another_connect_hangs(db: Any) -> None:
    """aiomysql connects under the pool's lock: everybody waits for the server that is silent."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            async with Pool(db.manager(port=proxy.port), max_size=5, min_idle=1) as pool:
                proxy.silence()
                async with pool.get():
                    hanging = asyncio.ensure_future(query(pool))
                    await asyncio.sleep(0.05)
                    assert pool.state().opening >= 1
                began = time.perf_counter()
                await query(pool)
                await hanging
                assert time.perf_counter() - began < 0.5
                await pool.close(timeout=0.5)

    asyncio.run(main())


def test_the_deadline_of_a_get_covers_a_server_that_accepts_and_never_answers(db: Any) -> None:
    """aiomysql's waits for ever."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            proxy.silence()
            pool = Pool(db.manager(port=proxy.port))
            await pool.open(wait=False)
            began = time.perf_counter()
            with pytest.raises(PoolTimeout) as caught:
                async with pool.get(timeout=0.3):
                    pass
            assert time.perf_counter() - began < 1
            assert caught.value.phase == "connect"
            await pool.close(timeout=0.5)
            await asyncio.sleep(0.02)
            assert proxy.open == 0

    asyncio.run(main())


def test_a_get_asks_no_other_idle_connection(db: Any) -> None:
    """aiomysql looks through all free connections at every acquire: 100 idle ones made it 60 times slower."""

    class Counting(MySQLConnectionManager):
        asked = 0

        def has_broken(self, conn: Connection, /) -> bool:
            self.asked += 1
            return super().has_broken(conn)

    async def main() -> None:
        asked = []
        for idle in (1, 20):
            manager = Counting(db.url)
            async with Pool(manager, max_size=20, min_idle=idle) as pool:
                before = manager.asked
                for _ in range(10):
                    await query(pool)
                    while pool.state().resetting:
                        await asyncio.sleep(0)
                asked.append(manager.asked - before)
        assert asked[1] <= asked[0] + 2

    asyncio.run(main())


# --- the session, through the pool


def test_the_next_borrower_gets_the_same_connection_and_nothing_of_the_last_one(db: Any) -> None:
    """Reset runs behind the borrower's back; a sequential user needs no second connection for it."""

    async def main() -> None:
        async with Pool(db.manager(), max_size=5) as pool:
            first = await query(pool)
            for _ in range(5):
                async with pool.get() as conn:
                    assert await db.ask(conn, "SELECT @x, DATABASE(), @@sql_mode LIKE '%ANSI%'") == (
                        (None, db.name, 0),
                    )
                    await db.ask(conn, "SET @x = 1, sql_mode = 'ANSI'")
                    await db.ask(conn, "USE other")
                    await db.ask(conn, "SELECT GET_LOCK('pool', 0)")
            assert await query(pool) == first
            statistics = pool.state().statistics
            assert statistics.connections_created == 1

    asyncio.run(main())


def test_a_test_transaction_lives_as_long_as_the_pool(db: Any) -> None:
    """diesel's own test: max_size 1, visible on the second checkout, gone when the pool closes."""

    async def main() -> None:
        async with Pool(db.manager(test_transaction=True), max_size=1) as pool:
            await query(pool, "INSERT INTO things VALUES (2001)")
            assert await query(pool, "SELECT COUNT(*) FROM things WHERE number = 2001") == 1
        assert db.admin("SELECT COUNT(*) FROM things WHERE number = 2001") == ((0,),)

    asyncio.run(main())


def test_a_pool_is_made_from_a_url_by_its_scheme(db: Any) -> None:
    """Both schemes, with the pool's own options in the query."""

    async def main() -> None:
        for scheme in ("mysql", "mariadb"):
            url = f"{scheme}://{db.url.partition('://')[2]}?autocommit=true&pool_max_size=3&pool_min_idle=1"
            async with Pool.from_url(url) as pool:
                assert pool.config.max_size == 3
                assert await query(pool, "SELECT @@autocommit") == 1

    asyncio.run(main())


# --- faults


def test_connections_killed_while_idle_are_never_lent(db: Any) -> None:
    """No borrower sees an error."""

    async def main() -> None:
        async with Pool(db.manager(), max_size=4, min_idle=4) as pool:
            ids = {
                row[0] for row in db.admin(f"SELECT ID FROM information_schema.PROCESSLIST WHERE USER = '{db.user}'")
            }
            await asyncio.to_thread(lambda: [db.admin(f"KILL {number}") for number in ids])
            assert await query(pool) not in ids
            assert len({await query(pool) for _ in range(4)} & ids) == 0

    asyncio.run(main())


def test_a_connection_killed_while_lent_errs_for_its_borrower_only(db: Any) -> None:
    """The borrower sees the driver's error, the waiter a new connection."""

    async def main() -> None:
        async with Pool(db.manager(), max_size=1) as pool:
            lease = await pool.get()
            waiter = asyncio.ensure_future(query(pool))
            with pytest.raises(aiomysql.OperationalError):
                async with lease as conn:
                    await asyncio.to_thread(db.admin, f"KILL {conn.thread_id()}")
                    await db.ask(conn, "SELECT 1")
            assert isinstance(await waiter, int)

    asyncio.run(main())


def test_connections_that_wait_timeout_has_ended_are_never_lent(db: Any) -> None:
    """The server sends an error and closes: the driver notices neither until it is asked."""

    async def main() -> None:
        async with Pool(db.manager(init_command="SET wait_timeout = 1"), max_size=2, min_idle=2) as pool:
            first = await query(pool)
            await asyncio.sleep(1.3)
            assert await query(pool) != first

    asyncio.run(main())


@pytest.mark.cancellation
def test_a_cancelled_query_on_a_hung_server_returns_at_once_and_so_does_close(own: Any) -> None:
    """asyncpg's never does; then the server goes on and so does the pool."""

    async def main() -> None:
        pool = Pool(
            own.manager(), max_size=2, min_idle=1, create_timeout=0.5, validation_timeout=0.5, close_timeout=0.5
        )
        await pool.open()
        own.server.pause()
        try:
            began = time.perf_counter()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await query(pool, "SELECT SLEEP(10)")
            assert time.perf_counter() - began < 1
            with pytest.raises(PoolTimeout):
                async with pool.get(timeout=0.3):
                    pass
        finally:
            own.server.unpause()
        async with asyncio.timeout(5):
            assert isinstance(await query(pool), int)
        own.server.pause()
        try:
            began = time.perf_counter()
            await pool.close(timeout=0.5)
            assert time.perf_counter() - began < 1.5
        finally:
            own.server.unpause()

    asyncio.run(main())


def test_waiters_are_served_after_a_restart(own: Any) -> None:
    """All of them, soon after the server is back."""

    async def main() -> None:
        async with Pool(own.manager(), max_size=3, min_idle=3) as pool:
            await query(pool)
            await asyncio.to_thread(own.server.kill)
            waiters = [asyncio.ensure_future(query(pool)) for _ in range(30)]
            await asyncio.sleep(0.3)
            assert not any(waiter.done() for waiter in waiters)
            await asyncio.to_thread(own.server.start)
            async with asyncio.timeout(5):
                assert all(isinstance(number, int) for number in await asyncio.gather(*waiters))

    asyncio.run(main())


def test_max_connections_of_the_server_is_lived_with_and_named_in_the_timeout(
    server: ServerFactory, dialect: str
) -> None:
    """A pool larger than the server allows: gets take turns; when nothing comes back the reason is in the error."""

    async def main() -> None:
        with server(dialect, fresh=True, args=["--max-connections=10"]) as mine:
            async with Pool(MySQLConnectionManager(mine.url), max_size=20, connection_timeout=5) as pool:
                async with contextlib.AsyncExitStack() as held:
                    with pytest.raises(PoolTimeout, match="Too many connections"):
                        for _ in range(20):
                            await held.enter_async_context(pool.get(timeout=0.6))
                assert len(await asyncio.gather(*(query(pool) for _ in range(40)))) == 40

    asyncio.run(main())


def test_access_denied_fails_the_gets_at_once_and_heals_by_itself(own: Any) -> None:
    """A password changed at the server before it was changed here."""

    async def main() -> None:
        pool = Pool(own.manager(), max_size=2)
        own.admin(f"ALTER USER '{own.user}'@'%' IDENTIFIED BY 'other'")
        try:
            with pytest.raises(aiomysql.OperationalError, match="Access denied"):
                await Pool(own.manager(), min_idle=1).open()
            await pool.open()
            began = time.perf_counter()
            with pytest.raises(ConnectError, match="Access denied") as caught:
                await query(pool)
            assert time.perf_counter() - began < 1
            assert isinstance(caught.value.__cause__, aiomysql.OperationalError)
        finally:
            own.admin(f"ALTER USER '{own.user}'@'%' IDENTIFIED BY '{own.password}'")
        async with asyncio.timeout(5):
            while True:
                with contextlib.suppress(ConnectError):
                    assert isinstance(await query(pool), int)
                    break
        await pool.close()

    asyncio.run(main())


def test_a_rotation_is_update_and_evict(own: Any) -> None:
    """The old generation goes, the new one logs in with the new password; nobody sees an error."""

    async def main() -> None:
        manager = own.manager()
        async with Pool(manager, max_size=2, min_idle=2) as pool:
            old = await query(pool)
            own.admin(f"ALTER USER '{own.user}'@'%' IDENTIFIED BY 'rotated'")
            try:
                manager.update(password="rotated")
                assert pool.evict() >= 2
                assert await query(pool) != old
            finally:
                own.admin(f"ALTER USER '{own.user}'@'%' IDENTIFIED BY '{own.password}'")

    asyncio.run(main())


def test_a_server_that_cannot_reset_costs_connections_and_serves_everybody(db: Any) -> None:
    """A reset that fails closes the connection; the next borrower gets another one."""

    async def main() -> None:
        async with db.front({b"\x1f": None}) as port, Pool(db.manager(port=port), max_size=1) as pool:
            first = await query(pool)
            assert await query(pool) != first
            assert pool.state().statistics.connections_closed[CloseReason.RESET_FAILED] >= 1

    asyncio.run(main())


def test_a_connection_that_is_replaced_for_a_normal_reason_is_not_in_the_log(
    db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The program asked for it, by open_transaction="close" or by a USE that cannot be undone."""

    async def main() -> None:
        async with Pool(db.manager(open_transaction="close"), max_size=1) as pool:
            first = await query(pool)
            await query(pool, "SELECT * FROM things FOR UPDATE")
            assert await query(pool) != first
            closed = pool.state().statistics.connections_closed
            assert closed[CloseReason.REPLACED] >= 1
            assert closed[CloseReason.RESET_FAILED] == 0
        nowhere = MySQLConnectionManager(host=db.host, port=db.port, user=db.user, password=db.password)
        async with Pool(nowhere, max_size=1) as pool:
            await query(pool, "USE other")
            assert await query(pool, "SELECT DATABASE()") is None
            assert pool.state().statistics.connections_closed[CloseReason.REPLACED] == 1

    logging.getLogger("pool_core").setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG, logger="pool_core"):
        asyncio.run(main())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_password_shows_nowhere(db: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A canary for a password, through refusals, timeouts, reprs, events and logs."""
    canary = "c4n4ry"
    seen: list[str] = []

    async def main() -> None:
        manager = db.manager(password=canary)
        pool = Pool(manager, max_size=1, listeners=[lambda event: seen.append(repr(event))])
        await pool.open()
        for timeout in (0.01, 1.0):
            with pytest.raises((PoolTimeout, ConnectError)) as caught:
                async with pool.get(timeout=timeout):
                    pass
            seen.extend([repr(caught.value), str(caught.value), repr(caught.value.__cause__), repr(vars(caught.value))])
        seen.extend([repr(pool), repr(pool.state()), repr(pool.config), repr(pool.holders()), repr(vars(manager))])
        await pool.close()

    logging.getLogger("pool_core").setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert any("Access denied" in text for text in seen)
    assert caplog.text
    for text in [*seen, caplog.text]:
        assert canary not in text
