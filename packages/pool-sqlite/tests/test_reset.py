"""A reset removes what a borrower left behind, and keeps what a customizer set up."""

import asyncio
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiosqlite
import pytest
from pool_core import CloseReason, Pool


def test_an_open_transaction_is_rolled_back(db: Any) -> None:
    """The next borrower must neither see nor commit it, and it must not lock out other connections."""

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
    """Diesel's rule: the connection is closed, and the statistics count it."""

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
    """sqlite3 ends a statement with its cursor: only a cursor that is still referenced does harm."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            cursor = await conn.execute("SELECT 1 UNION SELECT 2")
            await cursor.fetchone()
            del cursor
            assert manager.reset(conn) is None

    asyncio.run(look())


CHANGES: dict[str, Callable[[Any], Awaitable[object]]] = {
    "PRAGMA": lambda conn: conn.execute("PRAGMA foreign_keys = ON"),
    "PRAGMA in a script": lambda conn: conn.executescript("SELECT 1; pragma Main.Cache_Size(50);"),
    "a lock taken by a PRAGMA": lambda conn: conn.executescript(
        "PRAGMA locking_mode = EXCLUSIVE; SELECT * FROM things"
    ),
    "a PRAGMA that nobody knows yet": lambda conn: conn.execute("PRAGMA of_the_future = 1"),
    "journal mode": lambda conn: conn.execute("PRAGMA journal_mode = OFF"),
    "attached database": lambda conn: conn.execute("ATTACH ':memory:' AS other"),
    "temporary table": lambda conn: conn.execute("CREATE TEMP TABLE mine (x)"),
    "temporary table by its schema": lambda conn: conn.execute("CREATE TABLE temp.mine (x)"),
    "temporary view": lambda conn: conn.execute("CREATE TEMP VIEW mine AS SELECT 1"),
    "temporary trigger": lambda conn: conn.execute(
        "CREATE TEMP TRIGGER mine AFTER INSERT ON things BEGIN SELECT 1; END"
    ),
    "temporary virtual table": lambda conn: conn.execute("CREATE VIRTUAL TABLE temp.words USING fts5(word)"),
    "create_function": lambda conn: conn.create_function("lower", 1, lambda _: "mine"),
    "set_authorizer": lambda conn: conn.set_authorizer(lambda *_: sqlite3.SQLITE_OK),
    "set_progress_handler": lambda conn: conn.set_progress_handler(lambda: 0, 1),
    "set_trace_callback": lambda conn: conn.set_trace_callback(lambda _: None),
    "create_aggregate": lambda conn: conn._execute(conn._conn.create_aggregate, "total", 1, Summer),
    "create_window_function": lambda conn: conn._execute(conn._conn.create_window_function, "total", 1, Summer),
    "create_collation": lambda conn: conn._execute(conn._conn.create_collation, "mine", lambda one, other: 0),
    "setlimit": lambda conn: conn._execute(conn._conn.setlimit, sqlite3.SQLITE_LIMIT_SQL_LENGTH, 50),
    "something of its own in the thread": lambda conn: conn._execute(lambda: conn._conn.setlimit(1, 50)),
}


class Summer:
    """An aggregate."""

    def __init__(self) -> None:
        self.sum = 0

    def step(self, value: int) -> None:
        self.sum += value

    inverse = step

    def value(self) -> int:
        return self.sum

    finalize = value


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_session_costs_the_connection(db: Any, caplog: pytest.LogCaptureFixture, change: str) -> None:
    """Each time, without a warning: a new connection costs no more than finding out what to undo."""

    async def look() -> None:
        async with Pool(db.manager(), max_size=1) as pool:
            for number in range(1, 3):
                async with pool.get() as conn:
                    await conn.execute_fetchall("SELECT name FROM things")  # compiled before
                    await CHANGES[change](conn)
                async with pool.get() as conn:
                    assert await db.ask(conn, "SELECT name FROM things") == [("first",)]
                assert pool.state().statistics.connections_closed[CloseReason.REPLACED] == number
            assert pool.state().statistics.connections_created == 3
        assert not caplog.records

    asyncio.run(look())


def test_a_virtual_table_of_the_file_is_no_change(db: Any) -> None:
    """A search index is data."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.execute("CREATE VIRTUAL TABLE words USING fts5(word)")
            await conn.execute("ALTER TABLE things ADD COLUMN size INT")
            await conn.execute("DROP TABLE words")
            assert manager.reset(conn) is None

    asyncio.run(look())


def test_reading_a_pragma_is_no_change(db: Any) -> None:
    """A PRAGMA that only reads, also with an argument, needs no reset."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            for pragma in (
                "foreign_keys",
                "table_info(things)",
                "user_version",
                "user_version = 5",
                "optimize",
                "journal_mode=WAL",
            ):
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


def test_a_borrowers_authorizer_works_beside_ours(db: Any) -> None:
    """aiosqlite's API keeps its meaning, and what it lets through is still noticed."""

    async def look() -> None:
        asked: list[int] = []

        def authorizer(action: int, *_: object) -> int:
            asked.append(action)
            return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_DELETE else sqlite3.SQLITE_OK

        class Customizer:
            async def on_connect(self, conn: aiosqlite.Connection) -> None:
                await conn.set_authorizer(authorizer)

        async with Pool(db.manager(), max_size=1, customizer=Customizer()) as pool:
            for number in range(2):
                async with pool.get() as conn:
                    await conn.execute("PRAGMA foreign_keys = ON")
                    assert sqlite3.SQLITE_PRAGMA in asked
                    with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                        await conn.execute("DELETE FROM things")
                assert pool.state().statistics.connections_created == number + 1

    asyncio.run(look())


def test_write_ahead_logging_switched_on_by_a_borrower_stays(db: Any) -> None:
    """It belongs to the file: switching back would need all other connections closed."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.execute("PRAGMA journal_mode = WAL")
            await manager.reset(conn)
            assert await db.ask(conn, "PRAGMA journal_mode") == [("wal",)]
            assert manager.reset(conn) is None

    asyncio.run(look())


class Customizer:
    """Sets up a bit of everything that a reset would undo as a borrower's."""

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
    """PRAGMA foreign_keys in on_connect is the commonest customizer of all: reset, it would be off unnoticed."""

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
            assert pool.state().statistics.connections_created == 3
            async with pool.get() as conn:
                await conn.execute("INSERT INTO kept VALUES ('secret')")
            async with pool.get() as conn:
                assert await db.ask(conn, "SELECT * FROM kept") == []

    asyncio.run(look())


def test_a_statement_of_the_customizers_is_noticed_when_a_borrower_sends_it(db: Any) -> None:
    """sqlite3 has it compiled already, and the authorizer sees what is compiled only."""

    class Undecided:
        async def on_connect(self, conn: aiosqlite.Connection) -> None:
            await conn.execute("PRAGMA foreign_keys = OFF")
            await conn.execute("PRAGMA foreign_keys = ON")

    async def look() -> None:
        async with Pool(db.manager(), max_size=1, customizer=Undecided()) as pool:
            async with pool.get() as conn:
                await conn.execute("PRAGMA foreign_keys = OFF")
            async with pool.get() as conn:
                assert await db.ask(conn, "PRAGMA foreign_keys") == [(1,)]

    asyncio.run(look())


def test_the_first_borrower_is_told_from_the_customizer(db: Any) -> None:
    """Its changes must not count as set-up, with a customizer that changed nothing, or without one."""

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
            assert pool.state().statistics.connections_created == 2

    asyncio.run(look(Idle()))
    asyncio.run(look(None))


def test_a_customizers_table_that_a_borrower_drops_costs_the_connection(db: Any) -> None:
    """The contents are lost, so only a new connection, set up again, has them."""

    async def look() -> None:
        errors: list[BaseException] = []
        pool = Pool(db.manager(), max_size=1, customizer=Customizer(), error_sink=errors.append)
        async with pool:
            async with pool.get() as conn:
                await conn.execute("DROP TABLE temp.kept")
            async with pool.get() as conn:
                assert ("kept",) in await setting(db, conn)
            assert pool.state().statistics.connections_closed[CloseReason.REPLACED] == 1
        assert not errors

    asyncio.run(look())


def test_an_added_connection_goes_back_to_what_connect_gives(db: Any) -> None:
    """The task that opened it may also be its first borrower: their changes cannot be told apart."""

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
                assert conn.in_transaction is not autocommit

    asyncio.run(look())
