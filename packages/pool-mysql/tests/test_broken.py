"""has_broken: each way in which a connection is known to be unusable, on the real server, and what it costs."""

import asyncio
import timeit
from typing import Any

import aiomysql
import pytest
from mysql_dialects import numbers
from pool_core.testing import FaultProxy
from pool_mysql import Connection, MySQLConnectionManager


def is_open(conn: Connection) -> bool:
    """Whether its socket still is."""
    assert conn.stream is not None
    return bool(conn.stream.get_extra_info("socket").fileno() != -1)


async def until_broken(manager: MySQLConnectionManager, conn: Connection, seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while not manager.has_broken(conn):
            await asyncio.sleep(0.002)


def test_a_new_connection_a_used_one_and_one_in_a_transaction_are_not_broken(db: Any) -> None:
    """False alarms cost a connect each."""

    async def main() -> None:
        async with db.connection() as (manager, conn):
            assert manager.has_broken(conn) is False
            await db.ask(conn, "SELECT 1")
            assert manager.has_broken(conn) is False
            await conn.begin()
            assert manager.has_broken(conn) is False
            async with conn.cursor(aiomysql.SSCursor) as cursor:
                await cursor.execute("SELECT 1 UNION SELECT 2")
                assert len(await cursor.fetchall()) == 2
            assert manager.has_broken(conn) is False
            with pytest.raises(aiomysql.ProgrammingError):
                await db.ask(conn, "SELECT nonsense FROM")
            assert manager.has_broken(conn) is False, "an error from the server ends its reply"

    asyncio.run(main())


def test_closed_by_its_borrower(db: Any) -> None:
    """aiomysql's pool forgets its waiters then."""

    async def main() -> None:
        async with db.connection() as (manager, conn):
            conn.close()
            assert manager.has_broken(conn)
            assert manager.has_broken(conn) is True

    asyncio.run(main())


def test_killed_by_an_administrator_while_idle(db: Any) -> None:
    """KILL, a failover, a restart: the socket is at its end."""

    async def main() -> None:
        async with db.connection() as (manager, conn):
            await asyncio.to_thread(db.admin, f"KILL {conn.thread_id()}")
            await until_broken(manager, conn)

    asyncio.run(main())


def test_ended_by_wait_timeout(db: Any) -> None:
    """MySQL's own limit for idle connections: eight hours by default, less with many providers."""

    async def main() -> None:
        async with db.connection(init_command="SET wait_timeout = 1") as (manager, conn):
            assert not manager.has_broken(conn)
            await until_broken(manager, conn)

    asyncio.run(main())


def test_reset_by_the_network(db: Any) -> None:
    """A TCP reset leaves no end of file: only the reader's exception tells."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            async with db.connection(port=proxy.port) as (manager, conn):
                proxy.reset()
                await until_broken(manager, conn)
                assert conn._reader.exception() is not None

    asyncio.run(main())


def test_cancelled_in_the_middle_of_a_query(db: Any) -> None:
    """The answer is still to come; the driver closes."""

    async def main() -> None:
        async with db.connection() as (manager, conn):
            query = asyncio.ensure_future(db.ask(conn, "SELECT SLEEP(20)"))
            await asyncio.sleep(0.02)
            assert manager.has_broken(conn), "another task is still reading from it"
            query.cancel()
            await asyncio.wait({query})
            assert query.cancelled()
            assert manager.has_broken(conn)

    asyncio.run(main())


def test_returned_while_another_task_waits_for_an_answer(db: Any) -> None:
    """The next borrower's answer would go to that task."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            async with db.connection(port=proxy.port) as (manager, conn):
                proxy.freeze()
                task = asyncio.ensure_future(conn.commit())
                await asyncio.sleep(0)
                assert manager.has_broken(conn)
                task.cancel()
                await asyncio.wait({task})

    asyncio.run(main())


@pytest.mark.parametrize("rows", [3, 20_000], ids=["all rows there", "rows still coming"])
def test_a_converter_that_raised_in_the_middle_of_the_rows(db: Any, rows: int) -> None:
    """The next command would get a row for its answer, or the row could even pass for an OK: nothing is in the buffer."""

    def refuse(_value: str) -> None:
        raise ValueError("no such thing")

    async def main() -> None:
        types = aiomysql.connection.FIELD_TYPE
        conv = {**aiomysql.connection.decoders, types.LONGLONG: refuse, types.LONG: refuse}
        async with db.connection() as (manager, conn):
            conn.decoders = conv
            with pytest.raises(ValueError, match="no such thing"):
                await db.ask(conn, numbers(rows))
            assert manager.has_broken(conn)
            conn._reader._buffer.clear()
            assert manager.has_broken(conn), "even while nothing has arrived"

    asyncio.run(main())


def test_an_unbuffered_result_that_was_not_read_to_its_end(db: Any) -> None:
    """The driver would read a million rows to get rid of them: discarding is cheaper, and bounded."""

    async def main() -> None:
        async with db.connection() as (manager, conn):
            cursor = await conn.cursor(aiomysql.SSCursor)
            await cursor.execute(numbers(100_000))
            assert await cursor.fetchone() == (1,)
            assert manager.has_broken(conn)
            conn._reader._buffer.clear()
            assert manager.has_broken(conn), "also when its rows have not arrived yet"

    asyncio.run(main())


def test_further_results_that_were_not_asked_for(db: Any) -> None:
    """A multi-statement or a CALL: the next borrower would get them."""

    async def main() -> None:
        async with db.connection() as (manager, conn):
            await conn.query("SELECT 1; SELECT 2")
            assert manager.has_broken(conn)
            arrived = bytes(conn._reader._buffer)
            conn._reader._buffer.clear()
            assert manager.has_broken(conn), "also when they have not arrived yet"
            conn._reader._buffer.extend(arrived)
            await conn.next_result()
            assert not manager.has_broken(conn)

    asyncio.run(main())


def test_bytes_that_nobody_asked_for(db: Any) -> None:
    """An answer that came after somebody's deadline: it would be the next command's."""

    async def main() -> None:
        async with db.connection() as (manager, conn):
            await conn._execute_command(0x0E, b"")  # COM_PING, and its answer not read
            await until_broken(manager, conn)
            assert conn._reader._buffer

    asyncio.run(main())


def test_an_answer_cut_in_the_middle(db: Any) -> None:
    """Half an answer is none."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            async with db.connection(port=proxy.port) as (manager, conn):
                proxy.cut(20)
                with pytest.raises(aiomysql.OperationalError, match="Lost connection"):
                    await db.ask(conn, numbers(1000))
                assert manager.has_broken(conn)

    asyncio.run(main())


def test_a_dead_connection_is_not_revived_by_the_test(db: Any) -> None:
    """ping() reconnects by default: a new session, of another age, without what on_connect did."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            async with db.connection(port=proxy.port) as (manager, conn):
                await asyncio.to_thread(db.admin, f"KILL {conn.thread_id()}")
                with pytest.raises(aiomysql.MySQLError):
                    await manager.is_valid(conn)
                conn.close()
                with pytest.raises(aiomysql.MySQLError):
                    await manager.is_valid(conn)
                assert proxy.accepted == 1

    asyncio.run(main())


def test_terminate_drops_a_socket_whose_buffer_a_hung_server_does_not_take(db: Any) -> None:
    """The driver's close waits for the buffer to empty; after a cancelled large INSERT it would wait for ever."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            manager = db.manager(port=proxy.port)
            conn = await manager.connect()
            proxy.freeze()
            query = asyncio.ensure_future(db.ask(conn, f"SELECT LENGTH('{'x' * 12_000_000}')"))
            await asyncio.sleep(0.1)
            query.cancel()
            await asyncio.wait({query})
            assert manager.has_broken(conn)
            closing = asyncio.ensure_future(manager.close(conn))
            await asyncio.wait({closing}, timeout=0.1)
            assert not closing.done(), "close must not say that it has closed what is still open"
            assert is_open(conn)
            closing.cancel()
            await asyncio.wait({closing})
            manager.terminate(conn)
            await asyncio.sleep(0)
            assert not is_open(conn)

    asyncio.run(main())


def test_a_closed_connection_is_gone_at_the_server_when_close_returns(db: Any) -> None:
    """Its place counts against max_connections; and closing twice, or after a death, harms nobody."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            manager = db.manager(port=proxy.port)
            conn = await manager.connect()
            await manager.close(conn)
            await manager.close(conn)
            manager.terminate(conn)
            assert not is_open(conn)
            conn = await manager.connect()
            proxy.reset()
            await until_broken(manager, conn)
            await manager.close(conn)
            await asyncio.sleep(0.02)
            assert proxy.open == 0

    asyncio.run(main())


def test_terminate_closes_the_socket_when_the_loop_is_closed(db: Any) -> None:
    """A lease that was forgotten until the end of the program."""
    manager = db.manager()
    conn = asyncio.run(manager.connect())
    assert is_open(conn)
    manager.terminate(conn)
    assert not is_open(conn)
    assert manager.has_broken(conn)


def test_has_broken_costs_less_than_a_microsecond_and_sends_nothing(db: Any) -> None:
    """It is asked twice per get. Measured: 0.13 us on 3.11; the bound allows for slow machines."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            async with db.connection(port=proxy.port) as (manager, conn):
                await db.ask(conn, "SELECT 1")
                before = proxy.forwarded
                best = min(timeit.repeat(lambda: manager.has_broken(conn), number=1000, repeat=20)) / 1000
                assert best < 1e-6
                assert proxy.forwarded == before

    asyncio.run(main())
