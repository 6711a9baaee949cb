"""What an error within a block means for connections, and a failover that the pool survives by itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiomysql
import pytest
from pool_core import CloseReason, Pool, Verdict
from pool_mysql import MySQLConnectionManager

from containers.servers import Server, ServerFactory

READ_ONLY = "The MySQL server is running with the {} option so it cannot execute this statement"


def judged(*args: Any) -> Verdict:
    manager: Any = MySQLConnectionManager()
    return Verdict(manager.judge(aiomysql.OperationalError(*args), None))


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ((1053, 1836, 3032), Verdict.RETIRE_ALL),
        ((1152, 1153, 1156, 1158, 1161, 1184, 1835, 1927, 2006, 2013, 2014, 2027, 2055, 3169), Verdict.CLOSE),
        ((1045, 1047, 1062, 1064, 1142, 1205, 1213, 1290, 1317, 1792, 1969, 3024, 4031), Verdict.KEEP),
    ],
)
def test_the_number_decides(numbers: tuple[int, ...], verdict: Verdict) -> None:
    """A read-only server serves no writer; a constraint or a deadlock says nothing about the connection."""
    for number in numbers:
        assert judged(number, "message") is verdict, number


def test_where_a_number_has_several_causes_its_words_decide() -> None:
    """1290 is also what --secure-file-priv says; 1047 is Galera's too; MariaDB has 4031 for triggers."""
    for option in ("--read-only", "--super-read-only", "--read_only"):
        assert judged(1290, READ_ONLY.format(option)) is Verdict.RETIRE_ALL
    assert judged(1290, READ_ONLY.format("--secure-file-priv")) is Verdict.KEEP
    assert judged(1047, "WSREP has not yet prepared node for application use") is Verdict.RETIRE_ALL
    assert judged(4031, "The client was disconnected by the server because of inactivity.") is Verdict.CLOSE


def test_an_error_that_the_program_wrapped_is_judged_by_its_cause() -> None:
    """Programs raise their own errors from the driver's."""
    manager: Any = MySQLConnectionManager()
    wrapped = RuntimeError("the program's own")
    wrapped.__cause__ = aiomysql.OperationalError(1836, "Running in read-only mode")
    assert manager.judge(wrapped, None) is Verdict.RETIRE_ALL
    for other in (KeyError(), TimeoutError(), aiomysql.InterfaceError("closed"), aiomysql.MySQLError()):
        assert manager.judge(other, None) is Verdict.KEEP


def test_a_write_in_a_read_only_transaction_retires_nothing(db: Any) -> None:
    """The borrower asked for it; the server is what it was."""

    async def main() -> None:
        async with Pool(db.manager(), max_size=2, min_idle=2) as pool:
            with pytest.raises(aiomysql.MySQLError, match="READ ONLY transaction"):
                async with pool.get() as conn:
                    await db.ask(conn, "START TRANSACTION READ ONLY")
                    await db.ask(conn, "INSERT INTO things VALUES (3)")
            while pool.state().resetting:
                await asyncio.sleep(0)
            assert pool.state().statistics.connections_created == 2
            assert pool.state().idle == 2

    asyncio.run(main())


def test_a_packet_that_is_too_large_costs_the_connection_at_once(db: Any) -> None:
    """The server sends its error and closes; the end of the connection arrives a little later."""
    limit = int(db.admin("SELECT @@max_allowed_packet")[0][0])

    async def main() -> None:
        async with Pool(db.manager(), max_size=1) as pool:
            with pytest.raises(aiomysql.MySQLError):
                async with pool.get() as conn:
                    await db.ask(conn, f"SELECT LENGTH('{'x' * limit}')")
            async with pool.get() as conn:
                assert await db.ask(conn, "SELECT 1") == ((1,),)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def address(targets: list[Server]) -> AsyncIterator[int]:
    """One port, behind which new connections reach the last of these servers."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, to = await asyncio.open_connection(targets[-1].host, targets[-1].port)
        await asyncio.gather(pump(reader, to), pump(back, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


@pytest.mark.parametrize("reset", ["safe", "none"])
def test_a_primary_that_becomes_read_only_under_load_costs_at_most_max_size_errors(
    own: Any, server: ServerFactory, dialect: str, reset: Any
) -> None:
    """Behind one address: old sessions cannot write any more, new ones can. Nobody calls evict()."""
    failed: list[int] = []
    written = [0]
    stopped = False

    async def write(pool: Pool[Any]) -> None:
        while not stopped:
            try:
                async with pool.get() as conn:
                    await own.ask(conn, "INSERT INTO written VALUES (1)")
                written[0] += 1
            except aiomysql.MySQLError as error:
                failed.append(error.args[0])

    async def until_written(more: int) -> None:
        goal = written[0] + more
        async with asyncio.timeout(30):
            while written[0] < goal:
                await asyncio.sleep(0.005)

    async def main(standby: Server) -> None:
        nonlocal stopped
        targets = [own.server]
        async with address(targets) as port:
            manager = own.manager(port=port, reset=reset, autocommit=True)
            async with Pool(manager, max_size=4, min_idle=4) as pool:
                writers = [asyncio.create_task(write(pool)) for _ in range(12)]
                await until_written(50)
                assert not failed
                targets.append(standby)
                await asyncio.to_thread(own.admin, f"SET GLOBAL {own.dialect.demotion} = 1")
                await until_written(100)
                errors = len(failed)
                await until_written(100)
                stopped = True
                await asyncio.gather(*writers)
                assert 1 <= errors <= 4
                assert failed == [1290] * errors
                assert pool.state().statistics.connections_closed[CloseReason.EVICTED] == 4

    with server(dialect, fresh=True) as standby:
        replica = type(own)(standby)
        for database in (own, replica):
            database.admin("DROP TABLE IF EXISTS written")
            database.admin("CREATE TABLE written (number INT) ENGINE=InnoDB")
        try:
            asyncio.run(main(standby))
        finally:
            own.admin("SET GLOBAL read_only = 0")
