"""What the next borrower finds."""

from typing import Any

import pytest
from odbc_systems import System, run
from pool_core import CloseReason, Pool
from pool_odbc._dialects import changes_session


async def test_a_transaction_that_was_left_open_is_rolled_back(any_system: System) -> None:
    """Also one that was begun by a statement while autocommit is on, where drivers do not see it."""
    for autocommit, begin in ((False, ()), (True, ("BEGIN",))):
        async with Pool(any_system.manager(autocommit=autocommit), max_size=1, min_idle=1) as pool:
            async with pool.get() as conn:
                for statement in (*begin, any_system.begin):
                    await run(conn, statement)
                assert any_system.locked()
            async with pool.get() as conn:
                assert not any_system.locked()
                assert await run(conn, "SELECT a FROM pool_odbc") == [(1,)]
            assert pool.state().statistics.connections_created == 1


async def test_attributes_of_the_connection_are_restored(any_system: System) -> None:
    """A borrower who has switched autocommit on must not make the next one commit."""
    async with Pool(any_system.manager(), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            await run(conn, "SELECT 1")
            conn.autocommit = True
        async with pool.get() as conn:
            assert conn.autocommit is False
        assert pool.state().statistics.connections_created == 1


async def test_ordinary_statements_cost_no_connection(any_system: System) -> None:
    """Where nothing restores a session, only a statement that may have changed it replaces the connection."""
    async with Pool(any_system.manager(), max_size=1, min_idle=1) as pool:
        for statement in ("SELECT a FROM pool_odbc", "UPDATE pool_odbc SET a = 3", "DELETE FROM pool_odbc"):
            async with pool.get() as conn:
                await run(conn, statement)
        assert pool.state().statistics.connections_created == 1


async def test_a_changed_session_is_replaced_quietly_where_nothing_restores_it(any_system: System) -> None:
    """PostgreSQL restores it by SQL."""
    async with Pool(
        any_system.manager(), max_size=1, min_idle=1, error_sink=lambda error: pytest.fail(str(error))
    ) as pool:
        name = next(iter(any_system.state))
        async with pool.get() as conn:
            await run(conn, any_system.state[name][0])
        async with pool.get() as conn:
            await run(conn, "SELECT 1")
        closed = pool.state().statistics.connections_closed[CloseReason.REPLACED]
        assert closed == (0 if any_system.name == "postgres" else 1)


async def test_reset_rollback_leaves_the_session_and_keeps_the_connection(any_system: System) -> None:
    """For programs that change no session."""
    async with Pool(any_system.manager(reset="rollback"), max_size=1, min_idle=1) as pool:
        name = next(iter(any_system.state))
        dirty, look = any_system.state[name]
        async with pool.get() as conn:
            before = await run(conn, look)
            await run(conn, dirty)
            await conn.commit()
        async with pool.get() as conn:
            assert await run(conn, look) != before
        assert pool.state().statistics.connections_created == 1


async def test_what_a_customizer_sets_is_no_change_by_a_borrower(any_system: System) -> None:
    """Else each connection would be replaced after its first use."""
    name = next(iter(any_system.state))
    dirty = any_system.state[name][0]

    class Customizer:
        async def on_connect(self, conn: Any) -> None:
            await run(conn, dirty)
            await conn.commit()

        async def on_reset(self, conn: Any) -> None:
            if any_system.name == "postgres":
                await run(conn, dirty)
                await conn.commit()

    async with Pool(any_system.manager(), max_size=1, min_idle=1, customizer=Customizer()) as pool:
        for _ in range(3):
            async with pool.get() as conn:
                await run(conn, "SELECT 1")
        assert pool.state().statistics.connections_created == 1


async def test_cursors_that_were_left_open_are_closed(any_system: System) -> None:
    """A half-read result must not be the next borrower's."""
    async with Pool(any_system.manager(), max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            cursor = await conn.execute("SELECT 1 UNION SELECT 2")
            await cursor.fetchone()
        async with pool.get() as conn:
            assert await run(conn, "SELECT 3") == [(3,)]
            with pytest.raises(Exception, match="closed"):
                await cursor.fetchone()


async def test_a_driver_that_set_its_own_session_keeps_it(any_system: System) -> None:
    """RESET ALL would undo psqlodbc's DateStyle and client_encoding."""
    if any_system.name != "postgres":
        pytest.skip("only psqlodbc sets something for itself")
    names = ("DateStyle", "client_encoding", "extra_float_digits", "application_name")
    manager = any_system.manager(ConnSettings="SET lock_timeout = 777")
    async with Pool(manager, max_size=1, min_idle=1) as pool:
        async with pool.get() as conn:
            before = [await run(conn, f"SHOW {name}") for name in (*names, "lock_timeout")]
            await run(conn, "SET lock_timeout = 5")
            await conn.commit()
        async with pool.get() as conn:
            assert [await run(conn, f"SHOW {name}") for name in (*names, "lock_timeout")] == before
            assert before[-1] == [("777ms",)]


@pytest.mark.parametrize(
    ("sql", "changes"),
    [
        ("SELECT 1", False),
        ("  (SELECT 1) UNION (SELECT 2)", False),
        ("select * from a where b = 'SET @x'", False),
        ("UPDATE t SET a = 1", False),
        ("INSERT INTO t VALUES ('a@b;c')", False),
        ("CREATE TABLE t (a INT)", False),
        ("/* note */ SELECT 1 -- SET", False),
        ("BEGIN", False),
        ("SELECT @x, @@sql_mode", False),
        ("PRAGMA foreign_keys", False),
        ("SELECT @x := 1", True),
        ("SELECT a INTO @x FROM t", True),
        ("PRAGMA foreign_keys(1)", True),
        ("SELECT GET_LOCK('a', 1)", True),
        ("SET NAMES latin1", True),
        ("SELECT 1; SET @a = 1", True),
        ("CREATE TEMPORARY TABLE t (a INT)", True),
        ("CREATE TABLE #t (a INT)", True),
        ("USE other", True),
        ("CALL something()", True),
        ("{call something}", True),
        ("LOCK TABLES t READ", True),
        ("PRAGMA foreign_keys = 1", True),
        ("ATTACH 'x' AS y", True),
        ("ALTER SESSION SET NLS_DATE_FORMAT = 'x'", True),
        ("PREPARE s FROM 'SELECT 1'", True),
    ],
)
def test_statements_that_may_change_a_session(sql: str, changes: bool) -> None:
    """In doubt they do: that costs a connection, and the other mistake costs somebody's data."""
    assert changes_session(sql) is changes


def test_where_begin_cannot_be_undone_it_changes_the_session() -> None:
    """Of an unknown system it is not known how a transaction begun by a statement ends."""
    assert changes_session("BEGIN", can_roll_back=False)
    assert not changes_session("SELECT 1", can_roll_back=False)
