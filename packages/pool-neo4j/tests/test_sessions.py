"""Sessions: what the next borrower finds, and how many there are of what."""

import asyncio
from typing import Any

import neo4j
import pytest
from neo4j.exceptions import ClientError, DatabaseUnavailable, Neo4jError, NotALeader, ServiceUnavailable
from pool_core import CloseReason, Pool, Verdict
from pool_core.testing import FaultProxy
from pool_neo4j import Neo4jSessionManager

from containers.servers import Server


def manager(server: Server, **options: Any) -> Neo4jSessionManager:
    return Neo4jSessionManager(
        f"bolt://{server.host}:{server.port}", user=server.user, password=server.password, **options
    )


async def ask(session: Any, query: str = "RETURN 7 AS answer") -> Any:
    result = await session.run(query)
    return (await result.single())[0]


async def test_sessions_share_one_driver_which_ends_with_the_last(neo: Server) -> None:
    """Ten sessions one after the other need one connection."""
    with FaultProxy(neo.host, neo.port) as proxy:
        mine = Neo4jSessionManager(f"bolt://{proxy.host}:{proxy.port}", user=neo.user, password=neo.password)
        async with Pool(mine, max_size=10, min_idle=10) as pool:
            for _ in range(10):
                async with pool.get() as session:
                    assert await ask(session) == 7
            assert proxy.open < 10
        async with asyncio.timeout(3):
            while proxy.open:
                await asyncio.sleep(0.01)


async def test_a_transaction_that_was_left_open_is_closed(neo: Server) -> None:
    """And its object is of no use any more."""
    async with Pool(manager(neo), max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            transaction = await session.begin_transaction()
            await transaction.run("RETURN 1")
        async with pool.get() as session:
            assert transaction.closed()
            assert await ask(session) == 7
        assert pool.state().statistics.connections_created == 1


async def test_what_a_transaction_left_open_has_written_is_rolled_back(original: Server) -> None:
    """The stand-in commits at once."""
    async with Pool(manager(original), max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            await (await session.run("MATCH (n:Mine) DETACH DELETE n")).consume()
            transaction = await session.begin_transaction()
            await (await transaction.run("CREATE (:Mine)")).consume()
        async with pool.get() as session:
            assert await ask(session, "MATCH (n:Mine) RETURN count(n)") == 0


async def test_a_result_that_was_not_read_is_discarded(neo: Server) -> None:
    """The next borrower gets the answer to its own question."""
    async with Pool(manager(neo, fetch_size=10), max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            result = await session.run("UNWIND range(1, 500) AS n RETURN n")
            await result.fetch(3)
        async with pool.get() as session:
            assert await ask(session) == 7
        assert pool.state().statistics.connections_created == 1


async def test_a_session_that_was_closed_or_cancelled_is_replaced_or_usable(neo: Server) -> None:
    """Both are the driver's public methods."""
    async with Pool(manager(neo), max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            await session.close()
        async with pool.get() as session:
            assert await ask(session) == 7
            session.cancel()
        async with pool.get() as session:
            assert await ask(session) == 7
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1


async def test_bookmarks_are_not_the_next_borrowers(neo: Server) -> None:
    """Else it would wait for the writes of somebody else; a bookmark manager shares them on purpose."""
    shared = neo4j.AsyncGraphDatabase.bookmark_manager()
    async with Pool(manager(neo), max_size=1) as pool, Pool(manager(neo, bookmark_manager=shared)) as chained:
        session: Any
        async with pool.get() as session:
            await session._update_bookmark("a borrower's")
            assert (await session.last_bookmarks()).raw_values == {"a borrower's"}
        async with pool.get() as session:
            assert not (await session.last_bookmarks()).raw_values
        async with chained.get() as session:
            await session._get_bookmarks()
            await session._update_bookmark("for all")
        async with chained.get() as session:
            assert session._bookmark_manager is shared
            assert "for all" in await shared.get_bookmarks()


async def test_managed_transactions_work(neo: Server) -> None:
    """execute_read and execute_write retry by themselves: that is the driver's."""

    async def work(transaction: Any) -> Any:
        return (await (await transaction.run("RETURN 7")).single())[0]

    async with Pool(manager(neo)) as pool, pool.get() as session:
        assert await session.execute_read(work) == 7
        assert await session.execute_write(work) == 7


async def test_database_impersonation_and_access_mode_are_of_each_session(neo: Server) -> None:
    """Also after a reset."""
    mine = manager(neo, database="falkordb" if neo.name == "FalkorDB" else "neo4j", access_mode="READ")
    async with Pool(mine, max_size=1) as pool:
        for _ in range(2):
            async with pool.get() as session:
                assert await ask(session) == 7
                assert session._config.database == mine._settings.values["database"]
                assert session._config.default_access_mode == "READ"
    options = Neo4jSessionManager("neo4j://h/db?impersonated_user=ada")._settings.of_sessions()
    assert options == {"database": "db", "impersonated_user": "ada"}


async def test_a_bolt_server_that_takes_no_writes_any_more_retires_all(neo: Server) -> None:
    """New sessions get a new driver, which asks DNS again. Of a cluster the driver finds the new leader by itself."""
    error = Neo4jError._hydrate_neo4j(code="Neo.ClientError.Cluster.NotALeader", message="no")
    assert isinstance(error, NotALeader)
    async with Pool(manager(neo), max_size=2, min_idle=2) as pool:
        async with pool.get() as session:
            former = session._pool
        with pytest.raises(NotALeader):
            async with pool.get():
                raise error
        async with pool.get() as session:
            assert session._pool is not former
            assert await ask(session) == 7


@pytest.mark.parametrize(
    ("url", "code", "verdict"),
    [
        ("bolt://h", "Neo.ClientError.Cluster.NotALeader", Verdict.RETIRE_ALL),
        ("bolt://h", "Neo.ClientError.General.ForbiddenOnReadOnlyDatabase", Verdict.RETIRE_ALL),
        ("bolt://h", "Neo.ClientError.Security.Unauthorized", Verdict.RETIRE_ALL),
        ("bolt://h", "Neo.ClientError.Security.CredentialsExpired", Verdict.RETIRE_ALL),
        ("bolt://h", "Neo.ClientError.Security.TokenExpired", Verdict.RETIRE_ALL),
        ("bolt://h", "Neo.ClientError.Security.Forbidden", Verdict.KEEP),
        ("bolt://h", "Neo.TransientError.Database.DatabaseUnavailable", Verdict.KEEP),
        ("bolt://h", "Neo.ClientError.Statement.SyntaxError", Verdict.KEEP),
        ("neo4j://h", "Neo.ClientError.Cluster.NotALeader", Verdict.KEEP),
        ("neo4j://h", "Neo.ClientError.Security.Unauthorized", Verdict.RETIRE_ALL),
    ],
)
async def test_verdicts(url: str, code: str, verdict: Verdict) -> None:
    """By Neo4j's code."""
    mine = Neo4jSessionManager(url)
    shared = mine._join()
    session = shared.driver.session()
    mine._shared[id(session)] = shared
    assert mine.judge(Neo4jError._hydrate_neo4j(code=code, message="text"), session) is verdict
    mine.terminate(session)


@pytest.mark.parametrize(
    ("code", "transient"),
    [
        ("Neo.ClientError.Security.Unauthorized", False),
        ("Neo.ClientError.Security.AuthenticationRateLimit", False),
        ("Neo.ClientError.Security.AuthorizationExpired", True),
        ("Neo.ClientError.Database.DatabaseNotFound", False),
        ("Neo.TransientError.Database.DatabaseUnavailable", True),
        ("Neo.TransientError.General.MemoryPoolOutOfMemoryError", True),
    ],
)
def test_transience(code: str, transient: bool) -> None:
    """A refusal needs a person; a database that starts does not."""
    error = Neo4jError._hydrate_neo4j(code=code, message="text")
    assert Neo4jSessionManager("bolt://h").is_transient(error) is transient
    assert isinstance(error, ClientError | DatabaseUnavailable | Neo4jError)


@pytest.mark.cancellation
async def test_a_cancelled_query_costs_its_tcp_connection_and_not_the_session(neo: Server, slow_port: int) -> None:
    """The caller is back at once; the next borrower gets its own answer."""
    mine = Neo4jSessionManager(f"bolt://127.0.0.1:{slow_port}", user=neo.user, password=neo.password)
    async with Pool(mine, max_size=1, min_idle=1) as pool:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            began = loop.time()
            with pytest.raises(TimeoutError):
                async with pool.get() as session, asyncio.timeout(0.1):
                    await ask(session, "RETURN 'slow'")
            assert loop.time() - began < 1
            async with pool.get(timeout=5) as session:
                assert await ask(session) == 7


@pytest.mark.cancellation
async def test_a_terminated_session_drops_its_socket_without_a_task(neo: Server) -> None:
    """A pool calls terminate in a callback of the loop, where the driver's own lock cannot be taken."""
    with FaultProxy(neo.host, neo.port) as proxy:
        mine = Neo4jSessionManager(f"bolt://{proxy.host}:{proxy.port}", user=neo.user, password=neo.password)
        first, second = await mine.connect(), await mine.connect()
        await first.begin_transaction()
        asyncio.get_running_loop().call_soon(mine.terminate, first)
        await asyncio.sleep(0.1)
        assert await ask(second) == 7
        asyncio.get_running_loop().call_soon(mine.terminate, second)
        async with asyncio.timeout(3):
            while proxy.open:
                await asyncio.sleep(0.01)


def test_errors_of_the_driver_are_its_own() -> None:
    """ServiceUnavailable is transient, unless a certificate or a name is behind it."""
    assert Neo4jSessionManager("bolt://h").is_transient(ServiceUnavailable("down"))


async def test_a_session_that_another_task_still_uses_is_not_passed_on(neo: Server, slow_port: int) -> None:
    """The borrower has left the block, and a task of it goes on."""
    mine = Neo4jSessionManager(f"bolt://127.0.0.1:{slow_port}", user=neo.user, password=neo.password)
    async with Pool(mine, max_size=1, min_idle=1, error_sink=lambda error: None) as pool:
        async with pool.get() as session:
            task = asyncio.ensure_future(ask(session, "RETURN 'slow'"))
            await asyncio.sleep(0.1)
        async with pool.get(timeout=5) as other:
            assert other is not session
            assert await ask(other) == 7
        task.cancel()
        await asyncio.wait([task])
