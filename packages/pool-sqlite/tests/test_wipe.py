"""What a borrower leaves behind is gone before the next one, what a customizer set up is not."""

import asyncio
import contextlib
import sqlite3
import sys
from typing import Any

import aiosqlite
import pytest
from pool_core import CloseReason, Pool


def test_an_open_transaction_is_rolled_back(db: Any) -> None:
    """The next borrower must neither see nor commit it, and nobody may be locked out."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.execute("INSERT INTO things VALUES ('half')")
            assert conn.in_transaction
            assert not manager.has_broken(conn)
            await manager.reset(conn)
            assert not conn.in_transaction
            assert manager.reset(conn) is None
            db.admin("INSERT INTO things VALUES ('other')")
            assert await db.ask(conn, "SELECT name FROM things") == [("first",), ("other",)]

    asyncio.run(look())


def test_an_open_transaction_is_broken_where_that_is_asked_for(db: Any) -> None:
    """Diesel's rule, for those who want to hear of it in the statistics."""

    async def look() -> None:
        async with db.connection(open_transaction="close") as (manager, conn):
            assert not manager.has_broken(conn)
            await conn.execute("BEGIN")
            assert manager.has_broken(conn)
            await conn.rollback()
            assert not manager.has_broken(conn)

    asyncio.run(look())


def test_a_half_read_cursor_is_closed(db: Any) -> None:
    """It holds a read lock that blocks writers, or in WAL an old snapshot, in which the next borrower would read."""

    async def look(*, wal: bool) -> None:
        async with db.connection(wal=wal, busy_timeout=0) as (manager, conn):
            for name in "abc":
                await conn.execute("INSERT INTO things VALUES (?)", (name,))
            await conn.commit()
            cursor = await conn.execute("SELECT name FROM things")
            await cursor.fetchone()
            assert not conn.in_transaction  # SQLite's own sign does not show it
            if not wal:
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    db.admin("DELETE FROM things")
            await manager.reset(conn)
            db.admin("DELETE FROM things")
            assert await db.ask(conn, "SELECT name FROM things") == []
            with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
                await cursor.fetchone()
            db.admin("INSERT INTO things VALUES ('first')")

    asyncio.run(look(wal=False))
    asyncio.run(look(wal=True))


def test_a_cursor_that_was_dropped_costs_no_round_trip(db: Any) -> None:
    """sqlite3 ends a statement with its cursor: only one that somebody still holds is a danger."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            cursor = await conn.execute("SELECT 1 UNION SELECT 2")
            await cursor.fetchone()
            del cursor
            assert manager.reset(conn) is None

    asyncio.run(look())


def test_the_same_change_is_wiped_each_time(db: Any) -> None:
    """sqlite3 caches statements, and some PRAGMAs act only when they are compiled: the second wipe would do nothing."""

    async def look() -> None:
        async with db.connection(busy_timeout=1234) as (manager, conn):
            for _ in range(3):
                await conn.execute("PRAGMA busy_timeout = 77")
                await conn.execute("PRAGMA foreign_keys = ON")
                await conn.execute("ATTACH ':memory:' AS other")
                await conn.execute("CREATE TEMP TABLE mine (x)")
                await manager.reset(conn)
                assert await db.ask(conn, "PRAGMA busy_timeout") == [(1234,)]
                assert await db.ask(conn, "PRAGMA foreign_keys") == [(0,)]
                assert [row[1] for row in await db.ask(conn, "PRAGMA database_list")] in (["main"], ["main", "temp"])
                assert await db.ask(conn, "SELECT name FROM sqlite_temp_master") == []
                assert manager.reset(conn) is None

    asyncio.run(look())


def test_reading_a_pragma_is_no_change(db: Any) -> None:
    """Those who only look, also with an argument, cost no wipe."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            for pragma in ("foreign_keys", "table_info(things)", "user_version", "user_version = 5", "optimize"):
                await db.ask(conn, f"PRAGMA {pragma}")
            assert manager.reset(conn) is None

    asyncio.run(look())


def test_a_changed_isolation_level_is_put_back(db: Any) -> None:
    """With None the next borrower's commit() would do nothing, and rollback() neither."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            conn.isolation_level = "EXCLUSIVE"
            await manager.reset(conn)
            assert conn.isolation_level == ""
            assert manager.reset(conn) is None

    asyncio.run(look())


def test_factories_are_put_back_without_a_round_trip(db: Any) -> None:
    """`conn.row_factory = aiosqlite.Row` stands at the beginning of many programs' every query."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            conn.row_factory, conn.text_factory = aiosqlite.Row, bytes
            assert manager.reset(conn) is None
            assert await db.ask(conn, "SELECT name FROM things") == [("first",)]

    asyncio.run(look())


def test_hooks_are_taken_off(db: Any) -> None:
    """An authorizer would forbid the next borrower's statements, a progress handler would end them."""

    async def look() -> None:
        traced: list[str] = []
        async with db.connection() as (manager, conn):
            await conn.set_trace_callback(traced.append)
            await conn.set_progress_handler(lambda: 1, 1)
            await conn.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                await conn.execute("SELECT 1")
            await manager.reset(conn)
            traced.clear()
            assert await db.ask(conn, "SELECT name FROM things") == [("first",)]
            assert traced == []
            await conn.execute("PRAGMA foreign_keys = ON")  # our own authorizer is on again
            wiping = manager.reset(conn)
            assert wiping is not None
            await wiping

    asyncio.run(look())


def test_a_borrowers_authorizer_works_beside_ours(db: Any) -> None:
    """aiosqlite's API keeps its meaning, and what it lets through is still noticed."""

    async def look() -> None:
        asked: list[int] = []

        def authorizer(action: int, *_: object) -> int:
            asked.append(action)
            return sqlite3.SQLITE_OK

        async with db.connection() as (manager, conn):
            await conn.set_authorizer(authorizer)
            await conn.execute("PRAGMA foreign_keys = ON")
            assert sqlite3.SQLITE_PRAGMA in asked
            await manager.reset(conn)
            assert await db.ask(conn, "PRAGMA foreign_keys") == [(0,)]

    asyncio.run(look())


def test_a_function_costs_the_connection(db: Any) -> None:
    """sqlite3 cannot remove one: the next borrower's lower() would be somebody else's."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.create_function("lower", 1, lambda _: "mine")
            with pytest.raises(sqlite3.ProgrammingError, match="create_function, which cannot be undone.*on_connect"):
                await manager.reset(conn)

    asyncio.run(look())


def test_a_lock_taken_by_a_pragma_is_given_back(db: Any) -> None:
    """locking_mode=EXCLUSIVE keeps the file's lock, beyond the transaction, until the mode is back and it is read."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.execute("PRAGMA locking_mode = EXCLUSIVE")
            await conn.execute("INSERT INTO things VALUES ('second')")
            await conn.commit()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                db.admin("SELECT * FROM things")
            await manager.reset(conn)
            assert len(db.admin("SELECT * FROM things")) == 2

    asyncio.run(look())


def test_write_ahead_logging_switched_on_by_a_borrower_stays(db: Any) -> None:
    """It belongs to the file, which others share: to switch it back would need all of them to be away."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.execute("PRAGMA journal_mode = WAL")
            await manager.reset(conn)
            assert await db.ask(conn, "PRAGMA journal_mode") == [("wal",)]
            assert manager.reset(conn) is None

    asyncio.run(look())


def test_another_journal_mode_is_put_back(db: Any) -> None:
    """Without a journal a crash in the next borrower's transaction would ruin the file."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.execute("PRAGMA journal_mode = OFF")
            await manager.reset(conn)
            assert await db.ask(conn, "PRAGMA journal_mode") == [("delete",)]

    asyncio.run(look())


class Customizer:
    """Sets up a bit of everything that a reset would wipe as a borrower's."""

    async def on_connect(self, conn: aiosqlite.Connection) -> None:
        conn.row_factory = aiosqlite.Row
        conn.isolation_level = "IMMEDIATE"
        await conn.execute("PRAGMA foreign_keys = ON")
        await conn.execute("ATTACH ':memory:' AS extra")
        await conn.execute("CREATE TEMP TABLE kept (x)")
        await conn.create_function("twice", 1, lambda x: 2 * x)
        await conn.commit()


async def setting(db: Any, conn: aiosqlite.Connection) -> list[Any]:
    """What can be seen of it."""
    assert conn.row_factory is aiosqlite.Row
    assert conn.isolation_level == "IMMEDIATE"
    return [
        tuple(row)
        for sql in (
            "SELECT foreign_keys FROM pragma_foreign_keys",
            "SELECT name FROM pragma_database_list WHERE name NOT IN ('main', 'temp')",
            "SELECT name FROM sqlite_temp_master",
            "SELECT twice(21)",
        )
        for row in await db.ask(conn, sql)
    ]


def test_what_a_customizer_sets_up_outlives_every_borrower(db: Any) -> None:
    """PRAGMA foreign_keys in on_connect is the commonest customizer of all: wiped, it would be off unnoticed."""

    async def look() -> None:
        wanted = [(1,), ("extra",), ("kept",), (42,)]
        async with Pool(db.manager(), max_size=1, customizer=Customizer()) as pool:
            async with pool.get() as conn:  # changes before any statement, to be told from the customizer's own
                conn.row_factory = None
                conn.isolation_level = "DEFERRED"
            async with pool.get() as conn:
                assert await setting(db, conn) == wanted
            for _ in range(2):
                async with pool.get() as conn:
                    await conn.execute("PRAGMA foreign_keys = OFF")
                    await conn.execute("ATTACH ':memory:' AS mine")
                    await conn.execute("CREATE TEMP TABLE mine (x)")
                    await conn.create_function("twice", 1, lambda x: x)
                    conn.row_factory = None
                async with pool.get() as conn:
                    assert await setting(db, conn) == wanted
            assert pool.state().statistics.connections_created == 1

    asyncio.run(look())


def test_the_first_borrower_is_told_from_the_customizer(db: Any) -> None:
    """Its changes must not be taken for a set-up, with a customizer that did nothing to the session, or without one."""

    class Idle:
        async def on_connect(self, conn: aiosqlite.Connection) -> None:
            await conn.execute("SELECT 1")

    async def look(customizer: object) -> None:
        async with Pool(db.manager(), max_size=1, customizer=customizer) as pool:
            async with pool.get() as conn:
                conn.row_factory = aiosqlite.Row
                await conn.execute("PRAGMA foreign_keys = ON")
            async with pool.get() as conn:
                assert conn.row_factory is None
                assert await db.ask(conn, "PRAGMA foreign_keys") == [(0,)]
            assert pool.state().statistics.connections_created == 1

    asyncio.run(look(Idle()))
    asyncio.run(look(None))


def test_a_customizers_table_that_a_borrower_drops_costs_the_connection(db: Any) -> None:
    """Its contents are gone for good: a new connection, set up again, is the only cure."""

    async def look() -> None:
        errors: list[BaseException] = []
        pool = Pool(db.manager(), max_size=1, customizer=Customizer(), error_sink=errors.append)
        async with pool:
            async with pool.get() as conn:
                await conn.execute("DROP TABLE temp.kept")
            async with pool.get() as conn:
                assert ("kept",) in await setting(db, conn)
            assert pool.state().statistics.connections_closed[CloseReason.RESET_FAILED] == 1
        assert [str(error) for error in errors] == [
            "the borrower's changes cannot be undone, the connection is closed: temporary"
        ]

    asyncio.run(look())


def test_an_added_connection_goes_back_to_what_connect_gives(db: Any) -> None:
    """Who opened it by hand may be its first borrower, too: nobody could tell the one's changes from the other's."""

    async def look() -> None:
        manager = db.manager()
        async with Pool(manager, max_size=1) as pool:
            conn = await manager.connect()
            pool.add(conn)
            async with pool.get() as conn:
                await conn.execute("PRAGMA foreign_keys = ON")
            async with pool.get() as conn:
                assert await db.ask(conn, "PRAGMA foreign_keys") == [(0,)]

    asyncio.run(look())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has autocommit from Python 3.12 on")
@pytest.mark.parametrize("autocommit", [True, False])
def test_python_312s_autocommit_is_understood(db: Any, autocommit: bool) -> None:
    """With True sqlite3's rollback() does nothing, with False a transaction is always open and stops PRAGMAs."""

    async def look() -> None:
        async with db.connection(autocommit=autocommit, wal=True, foreign_keys=True) as (manager, conn):
            assert await db.ask(conn, "PRAGMA foreign_keys") == [(1,)]
            for _ in range(2):
                if autocommit:
                    await conn.execute("BEGIN")
                await conn.execute("INSERT INTO things VALUES ('half')")
                await manager.reset(conn)
                assert await db.ask(conn, "SELECT name FROM things") == [("first",)]
                await conn.rollback()
                with contextlib.suppress(sqlite3.OperationalError):
                    await conn.execute("COMMIT")
                await conn.execute("PRAGMA foreign_keys = OFF")
                await manager.reset(conn)
                assert await db.ask(conn, "PRAGMA foreign_keys") == [(1,)]
                assert conn.in_transaction is not autocommit

    asyncio.run(look())
