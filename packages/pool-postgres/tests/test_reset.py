"""Session state of one borrower does not reach the next one; asyncpg.Pool leaks some of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import pytest
from pool_core import CloseReason, Pool
from pool_core.testing import FaultProxy
from pool_postgres import PostgresConnectionManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from containers.servers import Server

# What is left behind, how, and what then shows it.
LEAKS = {
    "role": ("SET ROLE pg_monitor", "SELECT current_user::text"),
    "session authorization": ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user::text"),
    "role under another authorization": (
        "SET SESSION AUTHORIZATION pg_monitor; SET ROLE pg_read_all_stats",
        "SELECT current_user || ' ' || session_user",
    ),
    "search_path": ("SET search_path = nowhere", "SHOW search_path"),
    "setting": ("SET statement_timeout = '33s'", "SHOW statement_timeout"),
    "time zone": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW TimeZone"),
    "isolation": ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SHOW transaction_isolation"),
    "read-only": ("SET default_transaction_read_only = on", "SHOW transaction_read_only"),
    "tenant of row security": ("SELECT set_config('app.tenant', '7', false)", "SELECT coalesce(current_setting('app.tenant', true), '')"),
    "advisory lock": (
        "SELECT pg_advisory_lock(815), pg_advisory_lock_shared(816)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "LISTEN": ("LISTEN leak", "SELECT count(*) FROM pg_listening_channels()"),
    "temporary table": ("CREATE TEMP TABLE leak AS SELECT 1", "SELECT to_regclass('pg_temp.leak')::text"),
    "temporary view": ("CREATE TEMP VIEW leak_view AS SELECT 1", "SELECT to_regclass('pg_temp.leak_view')::text"),
    "temporary function": (
        "CREATE FUNCTION pg_temp.leak() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT to_regproc('pg_temp.leak')::text",
    ),
    "cursor": ("DECLARE leak CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors WHERE name = 'leak'"),
    "open transaction": ("BEGIN; SELECT pg_current_xact_id()", "SELECT pg_current_xact_id_if_assigned()::text"),
}  # fmt: skip


async def released(manager: PostgresConnectionManager, conn: Any) -> None:
    """Do what the pool does with a connection that comes back."""
    assert manager.has_broken(conn) is False
    reset = manager.reset(conn)
    if reset is not None:
        await reset
    assert manager.has_broken(conn) is False


@pytest.fixture(params=["safe", "strict"])
def resetting(request: pytest.FixtureRequest, url: str) -> PostgresConnectionManager:
    """A manager of each mode that resets."""
    return PostgresConnectionManager(url, reset=request.param)


@pytest.mark.parametrize("name", LEAKS)
async def test_session_state_is_reset(resetting: PostgresConnectionManager, name: str) -> None:
    """Another user's role, tenant, settings or locks are a security hole."""
    dirty, look = LEAKS[name]
    conn = await resetting.connect()
    clean = await conn.fetchval(look)
    await conn.execute(dirty)
    assert await conn.fetchval(look) != clean, "the test would prove nothing"
    await released(resetting, conn)
    assert await conn.fetchval(look) == clean
    assert not conn.is_in_transaction()
    await resetting.close(conn)


async def test_lastval_of_another_borrower_is_reset(resetting: PostgresConnectionManager) -> None:
    """lastval() would otherwise return the identity of another user's row."""
    conn = await resetting.connect()
    await conn.execute("CREATE SEQUENCE IF NOT EXISTS counted")
    await conn.fetchval("SELECT nextval('counted')")
    await released(resetting, conn)
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await conn.fetchval("SELECT lastval()")
    await resetting.close(conn)


async def test_everything_at_once_in_a_failed_transaction_is_reset(resetting: PostgresConnectionManager) -> None:
    """One message must do, whatever state the connection is in."""
    conn = await resetting.connect()
    looks = [look for _, look in LEAKS.values()]
    clean = [await conn.fetchval(look) for look in looks]
    for name, (dirty, _) in LEAKS.items():
        if not name.startswith(("role", "session", "open", "read-only")):
            await conn.execute(dirty)
    await conn.execute("SET ROLE pg_monitor; SET default_transaction_read_only = on; BEGIN")
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await conn.execute("nonsense")
    await released(resetting, conn)
    assert [await conn.fetchval(look) for look in looks] == clean
    await resetting.close(conn)


LEAKS_OF_ASYNCPG = {
    **{name: LEAKS[name] for name in LEAKS if name.startswith(("role", "session auth", "temporary"))},
    "sequence": ("CREATE SEQUENCE IF NOT EXISTS counted; SELECT nextval('counted')", "SELECT lastval() IS NOT NULL"),
    "PREPARE": ("PREPARE leak AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE name = 'leak'"),
}


@pytest.mark.parametrize("leak", LEAKS_OF_ASYNCPG)
async def test_asyncpgs_own_pool_leaks_it(url: str, leak: str) -> None:
    """The README's table says so. If asyncpg fixes it, the README must change."""
    dirty, look = LEAKS_OF_ASYNCPG[leak]
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        async with pool.acquire() as conn:
            clean = None if leak == "sequence" else await conn.fetchval(look)
            await conn.execute(dirty)
        async with pool.acquire() as conn:
            assert await conn.fetchval(look) != clean


async def test_what_the_connection_was_made_with_comes_back(url: str) -> None:
    """A reset restores server_settings and the role's own defaults."""
    settings = {"role": "pg_monitor", "statement_timeout": "21s", "search_path": "pg_catalog"}
    manager = PostgresConnectionManager(url, server_settings=settings)
    conn = await manager.connect()
    looks = ["SELECT current_user::text", "SHOW statement_timeout", "SHOW search_path"]
    made = [await conn.fetchval(look) for look in looks]
    assert made == ["pg_monitor", "21s", "pg_catalog"]
    await conn.execute("RESET ROLE; SET statement_timeout = 0; SET search_path = public")
    await released(manager, conn)
    assert [await conn.fetchval(look) for look in looks] == made
    await manager.close(conn)


async def test_a_function_of_the_borrower_is_not_called_by_the_reset(url: str) -> None:
    """A borrower's search_path must not decide what pg_advisory_unlock_all means."""
    manager = PostgresConnectionManager(url)
    conn = await manager.connect()
    await conn.execute("SELECT pg_advisory_lock(817)")
    await conn.execute("CREATE FUNCTION pg_temp.pg_advisory_unlock_all() RETURNS void LANGUAGE sql AS ''")
    await conn.execute("SET search_path = pg_temp, pg_catalog")
    await released(manager, conn)
    assert await conn.fetchval(LEAKS["advisory lock"][1]) == 0
    await manager.close(conn)


@pytest.mark.parametrize("before", ["", "BEGIN", "BEGIN; SELECT 1/0"])
@pytest.mark.parametrize("mode", ["safe", "strict"])
async def test_the_reset_is_one_round_trip(postgres: Server, mode: Any, before: str) -> None:
    """The next borrower may be waiting for it; a far server makes each round trip dear."""
    with FaultProxy(postgres.host, postgres.port) as proxy:
        manager = PostgresConnectionManager(
            host=proxy.host, port=proxy.port, user=postgres.user, password=postgres.password, database=postgres.database,
            ssl=False, reset=mode,
        )  # fmt: skip
        conn: Any = await manager.connect()
        if before:
            with contextlib.suppress(asyncpg.DivisionByZeroError):
                await conn.execute(before)
        # A round trip is a message whose answer the client waits for: with answers held back, only the first is sent.
        before_it = proxy.forwarded[0]
        proxy.freeze("to_client")
        reset = asyncio.ensure_future(manager.reset(conn) or asyncio.sleep(0))
        while proxy.forwarded[0] == before_it:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        first = proxy.forwarded[0]
        proxy.heal()
        await reset
        assert proxy.forwarded[0] == first
        await manager.close(conn)


async def test_the_drivers_prepared_statements_survive_the_safe_reset(url: str) -> None:
    """They belong to no borrower, and preparing anew costs a round trip each."""
    manager = PostgresConnectionManager(url)
    conn = await manager.connect()
    assert await conn.fetchval("SELECT $1::int", 1) == 1
    await released(manager, conn)
    assert await conn.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT $1::int'") == 1
    assert await conn.fetchval("SELECT $1::int", 2) == 2
    await manager.close(conn)


async def test_the_strict_reset_takes_prepared_statements_on_both_sides(url: str) -> None:
    """The driver must not use a statement that the server has forgotten, nor close each by a round trip of its own."""
    manager = PostgresConnectionManager(url, reset="strict")
    conn: Any = await manager.connect()
    for number in range(20):
        assert await conn.fetchval(f"SELECT {number} + $1::int", 1) == number + 1
    await conn.execute("PREPARE mine AS SELECT 1")
    await released(manager, conn)
    assert not conn._stmts_to_close
    assert await conn.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE statement <> $1", "") == 1
    for number in range(20):
        assert await conn.fetchval(f"SELECT {number} + $1::int", 2) == number + 2
    await manager.close(conn)


async def test_reset_none_has_nothing_to_do_on_a_quiet_connection(url: str) -> None:
    """None means no task and no round trip: the connection becomes idle at once."""
    manager = PostgresConnectionManager(url, reset="none")
    conn = await manager.connect()
    await conn.execute("SET work_mem = '123kB'")
    assert manager.reset(conn) is None
    assert await conn.fetchval("SHOW work_mem") == "123kB"
    await manager.close(conn)


async def test_reset_none_still_rolls_back(url: str) -> None:
    """An open transaction holds locks and shows old data, so it must not reach the next borrower."""
    manager = PostgresConnectionManager(url, reset="none")
    conn = await manager.connect()
    await conn.execute("SET work_mem = '123kB'")
    await conn.transaction().start()
    await released(manager, conn)
    assert not conn.is_in_transaction()
    assert await conn.fetchval("SHOW work_mem") == "123kB"
    await manager.close(conn)


async def test_with_open_transaction_close_it_is_broken(url: str) -> None:
    """Diesel's rule: a missing commit is a bug, and makes the connection suspect."""
    manager = PostgresConnectionManager(url, open_transaction="close")
    conn = await manager.connect()
    assert manager.has_broken(conn) is False
    async with conn.transaction():
        assert manager.has_broken(conn) is True
    assert manager.has_broken(conn) is False
    await conn.execute("BEGIN")
    assert manager.has_broken(conn) is True
    await manager.close(conn)


@pytest.mark.parametrize("mode", ["safe", "strict", "none"])
async def test_a_transaction_ended_by_plain_sql_does_not_confuse_the_next_borrower(url: str, mode: Any) -> None:
    """The driver would think itself in a transaction still, and make the next one a savepoint in none."""
    manager = PostgresConnectionManager(url, reset=mode)
    conn = await manager.connect()
    await conn.transaction().start()
    await conn.execute("ROLLBACK")
    await released(manager, conn) if mode != "none" else manager.reset(conn)
    async with conn.transaction():
        assert await conn.fetchval("SELECT 1") == 1
    await manager.close(conn)


@pytest.mark.parametrize("mode", ["safe", "strict", "none"])
async def test_a_transaction_of_a_past_borrower_cannot_commit_the_next_ones(url: str, mode: Any) -> None:
    """A generator that is closed late still holds its transaction."""
    manager = PostgresConnectionManager(url, reset=mode)
    conn = await manager.connect()

    async def rows() -> AsyncIterator[int]:
        async with conn.transaction():
            yield 1

    late = rows()
    assert await anext(late) == 1
    await released(manager, conn)
    async with conn.transaction():
        await late.aclose()  # type: ignore[attr-defined]
        assert conn.is_in_transaction()
    statement = await conn.prepare("SELECT 1")
    await released(manager, conn) if mode != "none" else manager.reset(conn)
    with pytest.raises(asyncpg.InterfaceError, match="released"):
        await statement.fetchval()
    await manager.close(conn)


async def test_listeners_are_forgotten_so_that_the_next_add_listener_listens(url: str) -> None:
    """The driver sends LISTEN only for a channel that it does not think it listens to."""
    manager = PostgresConnectionManager(url)
    conn = await manager.connect()
    heard: list[str] = []
    await conn.add_listener("news", lambda *_: heard.append("past"))
    conn.add_log_listener(lambda *_: heard.append("log of the past"))
    with pytest.warns(asyncpg.InterfaceWarning, match="listeners on 'news': they are removed. Call remove_listener"):
        await released(manager, conn)
    news = asyncio.Event()

    def hear(*_: object) -> None:
        heard.append("present")
        news.set()

    await conn.add_listener("news", hear)
    await conn.execute("NOTIFY news")
    await conn.execute("DO $$ BEGIN RAISE WARNING 'x'; END $$")
    async with asyncio.timeout(5):
        await news.wait()
    assert heard == ["present"]
    await manager.close(conn)


@pytest.mark.parametrize("mode", ["safe", "strict", "none"])
@pytest.mark.parametrize("prepared", [False, True])
async def test_a_connection_still_used_by_another_task_is_not_handed_on(url: str, mode: Any, prepared: bool) -> None:
    """reset raises, the pool closes it: two owners would read each other's answers."""
    async with Pool(PostgresConnectionManager(url, reset=mode), max_size=1) as pool:
        async with pool.get() as conn:
            if prepared:
                statement = await conn.prepare("SELECT pg_sleep(5)")
                other = asyncio.create_task(statement.fetchval())
            else:
                other = asyncio.create_task(conn.execute("SELECT pg_sleep(5)"))
            await asyncio.sleep(0)
        async with pool.get() as conn:
            assert await conn.fetchval("SELECT 1") == 1
        # It has ended: with an error, as a rule. asyncpg's close() may also give a query that it cuts off None for a result.
        await asyncio.gather(other, return_exceptions=True)
        assert pool.state().statistics.connections_closed[CloseReason.RESET_FAILED] == 1


async def test_the_look_for_operations_leaves_no_trace(url: str) -> None:
    """It begins one and ends it before anything is sent."""
    manager = PostgresConnectionManager(url, reset="none")
    conn: Any = await manager.connect()
    for _ in range(100):
        assert manager.reset(conn) is None
    sent = conn._protocol.queries_count
    assert await conn.fetchval("SELECT $1::int", 3) == 3
    assert conn._protocol.queries_count == sent + 1
    await manager.close(conn)


@pytest.mark.parametrize("mode", ["safe", "none"])
async def test_a_changed_table_costs_one_error_not_one_per_connection(url: str, mode: Any) -> None:
    """asyncpg drops the statement caches of all connections of its pool; so does this adapter."""
    async with Pool(PostgresConnectionManager(url, reset=mode), max_size=4) as pool:
        async with contextlib.AsyncExitStack() as stack:
            conns = [await stack.enter_async_context(pool.get()) for _ in range(4)]
            await conns[0].execute("DROP TABLE IF EXISTS changing; CREATE TABLE changing (a int)")
            for conn in conns:
                await conn.fetch("SELECT * FROM changing")
            await conns[0].execute("ALTER TABLE changing ADD COLUMN b int")
        failed = 0
        async with contextlib.AsyncExitStack() as stack:
            conns = [await stack.enter_async_context(pool.get()) for _ in range(4)]
            for conn in conns:
                with contextlib.suppress(asyncpg.InvalidCachedStatementError):
                    async with conn.transaction():
                        failed += 1
                        await conn.fetch("SELECT * FROM changing")
                        failed -= 1
            await conns[0].execute("DROP TABLE changing")
        assert failed == 1


async def test_a_changed_type_is_dropped_from_every_connection_of_the_loop(url: str) -> None:
    """reload_schema_state() of one connection is meant for all; another thread's caches are not touched."""
    manager = PostgresConnectionManager(url)
    cached, dropped = threading.Event(), threading.Event()

    async def elsewhere() -> int:
        conn: Any = await manager.connect()
        await conn.fetchval("SELECT $1::int", 1)
        cached.set()
        await asyncio.to_thread(dropped.wait, 5)
        left = len(conn._stmt_cache._entries)
        await manager.close(conn)
        return left

    other = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(elsewhere())))
    conns = [cast("Any", await manager.connect()) for _ in range(2)]
    for conn in conns:
        await conn.fetchval("SELECT $1::int", 1)
        assert len(conn._stmt_cache._entries) == 1
    await asyncio.to_thread(cached.wait, 5)
    await conns[0].reload_schema_state()
    dropped.set()
    assert await other == 1
    for conn in conns:
        assert not conn._stmt_cache._entries
        await manager.close(conn)


async def test_a_query_cut_off_in_a_transaction_is_replaced_without_a_warning(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With open_transaction="close" that is the normal course of things."""
    async with Pool(PostgresConnectionManager(url, open_transaction="close"), max_size=1) as pool:
        with pytest.raises(TimeoutError):
            async with pool.get() as conn:
                await conn.execute("BEGIN")
                await conn.execute("SELECT pg_sleep(5)", timeout=0.05)
        async with pool.get() as conn:
            assert await conn.fetchval("SELECT 1") == 1
    assert not caplog.records


async def test_the_reset_fails_rather_than_leave_something(url: str) -> None:
    """A statement timeout of the borrower's that cuts the reset off costs the connection, and nothing worse."""
    manager = PostgresConnectionManager(url)
    conn = await manager.connect()
    await conn.execute("CREATE TEMP TABLE many (a int); SET statement_timeout = '1ms'; SET ROLE pg_monitor")
    try:
        await released(manager, conn)
    except asyncpg.QueryCanceledError:
        assert await conn.fetchval("SELECT 1") == 1  # it is the pool that closes it
    else:
        assert await conn.fetchval("SELECT current_user") != "pg_monitor"
    await manager.close(conn)


async def test_no_exception_handler_is_called_for_an_open_transaction(url: str) -> None:
    """The driver's own reset() reports it to the loop (this file's runner would fail)."""
    manager = PostgresConnectionManager(url)
    conn = await manager.connect()
    await conn.transaction().start()
    await released(manager, conn)
    await manager.close(conn)
