"""No borrower finds what another one left behind, on the server or on the connection object."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pool_core import CloseReason, Pool, ReplaceConnection
from pool_core.testing import FaultProxy
from pool_psycopg import PsycopgConnectionManager, _driver
from psycopg.rows import dict_row, tuple_row
from psycopg_helpers import LEAKS, cut_off, in_transaction, pid, returned, value

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from containers.servers import Server


@pytest.fixture(params=["safe", "strict"])
def resetting(request: pytest.FixtureRequest, url: str) -> PsycopgConnectionManager:
    """A manager of each mode that resets the session."""
    return PsycopgConnectionManager(url, reset=request.param, autocommit=True)


@pytest.mark.parametrize("name", LEAKS)
async def test_session_state_is_reset(resetting: PsycopgConnectionManager, name: str) -> None:
    """Another user's role, tenant, settings or locks are a security hole."""
    dirty, look = LEAKS[name]
    conn: Any = await resetting.connect()
    clean = await value(conn, look)
    await conn.execute(dirty)
    assert await value(conn, look) != clean, "the test would prove nothing"
    await returned(resetting, conn)
    assert await value(conn, look) == clean
    assert not in_transaction(conn)
    await resetting.close(conn)


async def test_lastval_of_another_borrower_is_reset(resetting: PsycopgConnectionManager) -> None:
    """lastval() would otherwise return the identity of another user's row."""
    conn: Any = await resetting.connect()
    await conn.execute("CREATE SEQUENCE IF NOT EXISTS counted; SELECT nextval('counted')")
    await returned(resetting, conn)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        await value(conn, "SELECT lastval()")
    await resetting.close(conn)


async def test_everything_at_once_in_a_failed_transaction_is_reset(resetting: PsycopgConnectionManager) -> None:
    """One message must do, whatever state the connection is in."""
    conn: Any = await resetting.connect()
    looks = [look for _, look in LEAKS.values()]
    clean = [await value(conn, look) for look in looks]
    for name, (dirty, _) in LEAKS.items():
        if not name.startswith(("role", "session", "open", "read-only")):
            await conn.execute(dirty)
    await conn.execute("SET ROLE pg_monitor; SET default_transaction_read_only = on; BEGIN")
    with pytest.raises(psycopg.errors.SyntaxError):
        await conn.execute("nonsense")
    await returned(resetting, conn)
    assert [await value(conn, look) for look in looks] == clean
    await resetting.close(conn)


async def test_what_the_connection_was_made_with_comes_back(url: str) -> None:
    """Startup options and the role's own defaults are no dirt."""
    options = "-c role=pg_monitor -c statement_timeout=21s -c search_path=pg_catalog"
    manager = PsycopgConnectionManager(url, options=options, autocommit=True, row_factory=dict_row)
    conn: Any = await manager.connect()
    looks = ["SELECT current_user::text", "SHOW statement_timeout", "SHOW search_path"]
    await conn.execute("RESET ROLE; SET statement_timeout = 0; SET search_path = public")
    conn.row_factory = tuple_row
    await conn.set_autocommit(False)
    await returned(manager, conn)
    assert [await value(conn, look) for look in looks] == ["pg_monitor", "21s", "pg_catalog"]
    assert conn.row_factory is dict_row
    assert conn.autocommit is True
    await manager.close(conn)


@pytest.mark.parametrize("before", ["", "BEGIN", "BEGIN; SELECT 1/0"])
@pytest.mark.parametrize("mode", ["safe", "strict"])
async def test_the_reset_is_one_round_trip(postgres: Server, mode: Any, before: str) -> None:
    """The next borrower may be waiting for it; a far server makes each round trip dear."""
    with FaultProxy(postgres.host, postgres.port) as proxy:
        manager = PsycopgConnectionManager(
            host=proxy.host, port=proxy.port, user=postgres.user, password=postgres.password, dbname=postgres.database,
            sslmode="disable", gssencmode="disable", reset=mode, autocommit=True,
        )  # fmt: skip
        conn: Any = await manager.connect()
        for _ in range(8):  # so that the driver has a prepared statement
            assert await value(conn, "SELECT %s::int", 1) == 1
        if before:
            try:
                await conn.execute(before)
            except psycopg.errors.DivisionByZero:
                pass
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


PREPARED = (
    "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '_pg3%%' AND statement NOT LIKE '%%pg_prepared%%'"
)


@pytest.mark.parametrize("autocommit", [True, False])
async def test_the_drivers_prepared_statements_survive_a_lease_that_only_read(url: str, autocommit: bool) -> None:
    """DISCARD ALL would drop what psycopg thinks it has; its own rollback() drops them too."""
    manager = PsycopgConnectionManager(url, prepare_threshold=1, autocommit=autocommit)
    conn: Any = await manager.connect()
    for _ in range(3):
        for number in range(3):
            assert await value(conn, "SELECT %s::int", number) == number
        assert await value(conn, PREPARED) == 1
        await returned(manager, conn)
    await manager.close(conn)


@pytest.mark.parametrize("end", ["INSERT INTO prepared VALUES (1)", "SELECT 1/0"])
async def test_after_a_transaction_that_wrote_or_failed_nothing_prepared_is_used_again(url: str, end: str) -> None:
    """It may name a table of that transaction: "cached plan must not change result type"."""
    manager = PsycopgConnectionManager(url, prepare_threshold=0)
    conn: Any = await manager.connect()
    await conn.execute("CREATE TABLE prepared (a int)")
    for _ in range(3):
        await value(conn, "SELECT * FROM prepared WHERE a = %s", 1)
    try:
        await conn.execute(end)
    except psycopg.errors.DivisionByZero:
        pass
    await returned(manager, conn)
    assert await value(conn, PREPARED) == 0
    await conn.execute("CREATE TABLE prepared (a text, b int)")
    await value(conn, "SELECT * FROM prepared WHERE a = %s", "x")
    await manager.close(conn)


async def test_the_strict_reset_drops_prepared_statements_on_both_sides(url: str) -> None:
    """The driver must not use a statement that the server has forgotten."""
    manager = PsycopgConnectionManager(url, reset="strict", prepare_threshold=0, autocommit=True)
    conn: Any = await manager.connect()
    await conn.execute("PREPARE mine AS SELECT 1")
    for _ in range(2):
        assert await value(conn, "SELECT %s::int", 1) == 1
        await returned(manager, conn)
        assert await value(conn, "SELECT count(*) FROM pg_prepared_statements WHERE name IN ('mine', '_pg3_0')") == 0
    await manager.close(conn)


async def test_reset_none_has_nothing_to_do_on_a_quiet_connection(url: str) -> None:
    """None means no task and no round trip; the connection object is restored all the same."""
    manager = PsycopgConnectionManager(url, reset="none", autocommit=True)
    conn: Any = await manager.connect()
    await conn.execute("SET work_mem = '123kB'")
    conn.row_factory = dict_row
    assert manager.reset(conn) is None
    assert conn.row_factory is not dict_row
    assert await value(conn, "SHOW work_mem") == "123kB"
    await conn.set_autocommit(False)
    await returned(manager, conn)
    assert conn.autocommit is True
    await manager.close(conn)


async def test_reset_none_still_rolls_back(url: str) -> None:
    """An open transaction holds locks and shows old data: the next borrower never gets it."""
    manager = PsycopgConnectionManager(url, reset="none")
    conn: Any = await manager.connect()
    await conn.execute("SELECT 1")
    assert in_transaction(conn)
    await returned(manager, conn)
    assert not in_transaction(conn)
    await manager.close(conn)


async def test_with_open_transaction_close_it_is_broken(url: str) -> None:
    """Diesel's rule: a forgotten commit is a bug, and the connection suspect."""
    manager = PsycopgConnectionManager(url, open_transaction="close")
    conn: Any = await manager.connect()
    assert manager.has_broken(conn) is False
    await conn.execute("SELECT 1")
    assert manager.has_broken(conn) is True
    await conn.commit()
    assert manager.has_broken(conn) is False
    await manager.close(conn)


async def test_a_forgotten_commit_is_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """psycopg_pool's block commits, ours does not: rows must not vanish without a word. A read, or an error, is no news."""
    async with Pool(PsycopgConnectionManager(url), max_size=1) as pool:
        async with pool.get() as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS forgotten (a int)")
            await conn.commit()
            await conn.execute("SELECT * FROM forgotten")
        with pytest.raises(LookupError):
            async with pool.get() as conn:
                await conn.execute("INSERT INTO forgotten VALUES (1)")
                raise LookupError
        async with pool.get() as conn:
            assert caplog.records == []
            await conn.execute("INSERT INTO forgotten VALUES (1)")
        async with pool.get() as conn:
            assert await value(conn, "SELECT count(*) FROM forgotten") == 0
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pool_psycopg", logging.WARNING)
    assert "were not committed" in record.getMessage()


async def test_a_transaction_of_a_past_borrower_cannot_commit_the_next_ones(url: str) -> None:
    """A generator that is closed late still holds its transaction block: such a connection is replaced."""
    async with Pool(PsycopgConnectionManager(url, autocommit=True), max_size=1) as pool:

        async def rows(conn: Any) -> AsyncIterator[int]:
            async with conn.transaction():
                yield 1

        async with pool.get() as conn:
            past = pid(conn)
            late = rows(conn)
            assert await anext(late) == 1
        async with pool.get() as conn, conn.transaction():
            assert pid(conn) != past
            await late.aclose()  # type: ignore[attr-defined]
            assert in_transaction(conn)
        assert pool.state().statistics.connections_closed[CloseReason.REPLACED] == 1


async def test_a_pipeline_that_was_left_open_costs_the_connection(url: str) -> None:
    """Its answers are still to come, and its block can still end."""
    manager: Any = PsycopgConnectionManager(url, autocommit=True)
    conn: Any = await manager.connect()
    block = conn.pipeline()
    await block.__aenter__()
    with pytest.raises(ReplaceConnection, match="within a pipeline"):
        await manager.reset(conn)
    await conn.execute("SELECT 1")
    assert manager.has_broken(conn) is True
    manager.terminate(conn)
    with pytest.raises(psycopg.OperationalError):
        await block.__aexit__(None, None, None)


async def test_a_two_phase_transaction_that_was_left_open_costs_the_connection(url: str) -> None:
    """The driver would refuse the next borrower's commit."""
    manager: Any = PsycopgConnectionManager(url)
    conn: Any = await manager.connect()
    await conn.tpc_begin("left")
    with pytest.raises(ReplaceConnection, match="two-phase"):
        await manager.reset(conn)
    await manager.close(conn)


async def test_a_loop_over_notifications_may_be_left(url: str) -> None:
    """Its generator has the driver's lock until the event loop closes it; that must not cost the connection."""
    async with Pool(PsycopgConnectionManager(url, autocommit=True), max_size=1, reset_timeout=1) as pool:
        async with pool.get() as conn:
            listening = pid(conn)
            await conn.execute("LISTEN news")
            await conn.execute("NOTIFY news, 'one'")
            async for notification in conn.notifies():
                assert notification.payload == "one"
                break
        async with pool.get(timeout=2) as conn:
            assert pid(conn) == listening
            assert await value(conn, "SELECT count(*) FROM pg_listening_channels()") == 0


async def test_a_connection_still_used_by_another_task_is_not_used_on(url: str) -> None:
    """Two owners would read each other's answers (asyncpg says: another operation is in progress)."""
    manager = PsycopgConnectionManager(url, reset="none", autocommit=True)
    async with Pool(manager, max_size=1) as pool:
        async with pool.get() as conn:
            victim = pid(conn)
            stray = asyncio.create_task(conn.execute("SELECT pg_sleep(30)"))
            await asyncio.sleep(0.05)
        async with pool.get(timeout=2) as conn:
            assert pid(conn) != victim
        with pytest.raises(psycopg.OperationalError):
            await stray
        async with pool.get() as conn:
            listening = asyncio.create_task(anext(conn.notifies()))
            await asyncio.sleep(0.05)
            victim = pid(conn)
        async with pool.get(timeout=2) as conn:
            assert pid(conn) != victim
        with pytest.raises(psycopg.OperationalError):
            await listening


async def test_a_copy_that_was_cut_off_costs_nothing_or_the_connection(url: str) -> None:
    """Half a COPY must not reach the next borrower."""
    manager = PsycopgConnectionManager(url, autocommit=True)
    async with Pool(manager, max_size=1) as pool:
        for direction in ("FROM STDIN", "TO STDOUT"):
            async with pool.get() as conn:
                await conn.execute("CREATE TEMP TABLE copied (a int); INSERT INTO copied SELECT generate_series(1, 9)")
                block = conn.cursor().copy(f"COPY copied {direction}")
                await block.__aenter__()
            async with pool.get(timeout=2) as conn:
                assert await value(conn, "SELECT 1") == 1
            del block


async def test_what_on_connect_sets_on_the_connection_is_kept_where_it_says_so(url: str) -> None:
    """register_vector_async and the like cost a query: not once a lease."""
    manager = PsycopgConnectionManager(url, autocommit=True)

    class WithDicts:
        async def on_connect(self, conn: Any) -> None:
            conn.row_factory = dict_row
            manager.keep(conn)

        async def on_reset(self, conn: Any) -> None: ...

    async with Pool(manager, max_size=1, customizer=WithDicts()) as pool:
        for _ in range(2):
            async with pool.get() as conn:
                assert await (await conn.execute("SELECT 1 AS a")).fetchone() == {"a": 1}
                conn.row_factory = tuple_row


async def test_with_an_unknown_driver_connections_are_closed_after_use(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be reset for certain must not reach another borrower."""
    monkeypatch.setattr(_driver, "known", lambda conn: False)
    manager = PsycopgConnectionManager(url)
    conn: Any = await manager.connect()
    with pytest.raises(RuntimeError, match=r"psycopg 3\.\d+.* differs from what pool-psycopg knows"):
        manager.reset(conn)
    await manager.close(conn)


async def test_a_cut_off_query_in_a_transaction_is_rolled_back(url: str) -> None:
    """The driver ends the query; the failed transaction is ended here."""
    manager = PsycopgConnectionManager(url)
    conn: Any = await manager.connect()
    await cut_off(conn)
    assert in_transaction(conn)
    await returned(manager, conn)
    assert not in_transaction(conn)
    await manager.close(conn)
