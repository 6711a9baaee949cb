"""The option ``test_transaction``: everything works, nothing stays."""

import asyncio
import sqlite3
from typing import Any

import aiosqlite
import pytest
from pool_core import CloseReason, Pool
from pool_sqlite import SqliteConnectionManager


async def names(conn: aiosqlite.Connection) -> list[str]:
    """What is in the table."""
    return [row[0] for row in await conn.execute_fetchall("SELECT name FROM things ORDER BY rowid")]


def test_what_one_lease_writes_the_next_sees_and_the_closed_pool_forgets(db: Any) -> None:
    """Diesel's TestCustomizer: a test's code runs as in production, and the database stays as it was."""

    async def look() -> None:
        async with Pool(db.manager(test_transaction=True), max_size=1) as pool:
            async with pool.get() as conn:
                await conn.execute("INSERT INTO things VALUES ('uncommitted')")
            async with pool.get() as conn:
                assert await names(conn) == ["first", "uncommitted"]
                await conn.execute("INSERT INTO things VALUES ('committed')")
                await conn.commit()
            async with pool.get() as conn:
                assert await names(conn) == ["first", "uncommitted", "committed"]
            assert pool.state().statistics.connections_created == 1
            assert db.admin("SELECT name FROM things") == [("first",)]
        assert db.admin("SELECT name FROM things") == [("first",)]
        db.admin("INSERT INTO things VALUES ('no lock is left')")

    asyncio.run(look())


def test_a_memory_database_is_left_as_it_was(db: Any) -> None:
    """The usual case: a schema made once, and each test in a transaction of its own on it."""

    async def look() -> None:
        manager = SqliteConnectionManager("sqlite://")
        async with Pool(manager) as pool, pool.get() as conn:
            await conn.execute("CREATE TABLE things (name TEXT)")
        manager.update(test_transaction=True)
        for _ in range(2):
            async with Pool(manager, max_size=1) as pool, pool.get() as conn:
                assert await names(conn) == []
                await conn.execute("INSERT INTO things VALUES ('mine')")
                await conn.commit()

    asyncio.run(look())


@pytest.mark.parametrize("way", ["methods", "statements", "cursor", "fetchall", "script"])
@pytest.mark.parametrize("isolation_level", ["", None])
def test_commit_and_rollback_mean_what_they_say(db: Any, way: str, isolation_level: Any) -> None:
    """Code under test commits and rolls back in any way that aiosqlite offers, and the transaction survives it."""

    async def run(conn: aiosqlite.Connection, sql: str) -> None:
        if way == "methods" and sql == "COMMIT":
            await conn.commit()
        elif way == "methods" and sql == "ROLLBACK":
            await conn.rollback()
        elif way == "cursor":
            async with conn.cursor() as cursor:
                await cursor.execute(sql)
        elif way == "fetchall":
            await conn.execute_fetchall(sql)
        else:
            await conn.execute(sql)

    async def look() -> None:
        async with db.connection(test_transaction=True, isolation_level=isolation_level) as (manager, conn):
            for end, name in (("COMMIT", "kept"), ("ROLLBACK", "dropped"), ("COMMIT", "kept too")):
                if way == "script":  # each begins with a commit: so it does in sqlite3
                    await conn.executescript(f"BEGIN; INSERT INTO things VALUES ('{name}'); {end};")
                    continue
                await run(conn, "BEGIN")
                await conn.execute("INSERT INTO things VALUES (?)", (name,))
                await run(conn, end)
            assert await names(conn) == ["first", "kept", "kept too"]
            assert conn.in_transaction
            assert not manager.has_broken(conn)
        assert db.admin("SELECT name FROM things", timeout=5) == [("first",)]

    asyncio.run(look())


@pytest.mark.parametrize(
    "statement",
    ["commit", " COMMIT ;", "-- done\nEND TRANSACTION", "/* so; */ Commit Transaction", "END"],
)
def test_a_commit_is_known_in_any_spelling(db: Any, statement: str) -> None:
    """SQL is written by people."""

    async def look() -> None:
        async with db.connection(test_transaction=True) as (_, conn):
            await conn.execute("BEGIN IMMEDIATE TRANSACTION")
            await conn.execute("INSERT INTO things VALUES ('kept')")
            await conn.execute(statement)
            await conn.rollback()
            assert await names(conn) == ["first", "kept"]

    asyncio.run(look())


def test_savepoints_of_the_code_under_test_work(db: Any) -> None:
    """ROLLBACK TO and RELEASE are no end of a transaction."""

    async def look() -> None:
        async with db.connection(test_transaction=True) as (_, conn):
            await conn.execute("SAVEPOINT inner_one")
            await conn.execute("INSERT INTO things VALUES ('dropped')")
            await conn.execute("ROLLBACK TRANSACTION TO SAVEPOINT inner_one")
            await conn.execute("INSERT INTO things VALUES ('kept')")
            await conn.execute("RELEASE inner_one")
            await conn.commit()
            await conn.rollback()
            assert await names(conn) == ["first", "kept"]

    asyncio.run(look())


def test_a_script_runs_statement_by_statement(db: Any) -> None:
    """sqlite3's own executescript begins with a COMMIT, which would end the test transaction."""

    async def look() -> None:
        async with db.connection(test_transaction=True) as (_, conn):
            await conn.execute("INSERT INTO things VALUES ('before')")
            cursor = await conn.executescript(
                """
                CREATE TABLE others (text TEXT DEFAULT 'a;b'); -- with; semicolons
                CREATE TRIGGER copy AFTER INSERT ON things BEGIN
                    INSERT INTO others VALUES (new.name);
                    INSERT INTO others VALUES (';');
                END;
                BEGIN;
                INSERT INTO things VALUES ('in');
                COMMIT;
                INSERT INTO things VALUES ('after')
                """
            )
            assert isinstance(cursor, aiosqlite.Cursor)
            await conn.rollback()
            assert await names(conn) == ["first", "before", "in"]
            assert await db.ask(conn, "SELECT text FROM others") == [("in",), (";",)]
            async with conn.cursor() as again:
                await again.executescript("INSERT INTO things VALUES ('x'); DELETE FROM things;")
            assert await names(conn) == []
            with pytest.raises(sqlite3.OperationalError, match="syntax error"):
                await conn.executescript("DELETE FROM things; SELEKT")

    asyncio.run(look())


def test_a_begin_left_open_is_rolled_back(db: Any) -> None:
    """As in production: what was begun and not ended must not reach the next borrower."""

    async def look() -> None:
        async with Pool(db.manager(test_transaction=True), max_size=1) as pool:
            async with pool.get() as conn:
                await conn.execute("INSERT INTO things VALUES ('kept')")
                await conn.execute("BEGIN")
                await conn.execute("INSERT INTO things VALUES ('half')")
            async with pool.get() as conn:
                assert await names(conn) == ["first", "kept"]
            assert pool.state().statistics.connections_created == 1

    asyncio.run(look())


def test_a_begin_left_open_is_broken_where_that_is_asked_for(db: Any) -> None:
    """Diesel's rule within its own test transaction."""

    async def look() -> None:
        async with db.connection(test_transaction=True, open_transaction="close") as (manager, conn):
            await conn.execute("INSERT INTO things VALUES ('x')")
            assert not manager.has_broken(conn)
            await conn.execute("BEGIN")
            assert manager.has_broken(conn)

    asyncio.run(look())


def test_a_second_begin_is_an_error(db: Any) -> None:
    """As in SQLite itself: a test must not pass where production fails."""

    async def look() -> None:
        async with db.connection(test_transaction=True) as (_, conn):
            await conn.execute("BEGIN")
            with pytest.raises(sqlite3.OperationalError, match="cannot start a transaction within a transaction"):
                await conn.execute("BEGIN")

    asyncio.run(look())


def test_nothing_else_can_end_the_transaction(db: Any) -> None:
    """A commit by way of sqlite3 itself is refused by SQLite's authorizer: an error, rather than data that stays."""

    async def look() -> None:
        async with db.connection(test_transaction=True) as (manager, conn):
            await conn.execute("INSERT INTO things VALUES ('x')")
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                await conn._execute(lambda: conn._conn.execute("COMMIT"))
            assert not manager.has_broken(conn)
        assert db.admin("SELECT name FROM things", timeout=5) == [("first",)]

    asyncio.run(look())


def test_a_test_transaction_that_sqlite_ended_is_broken(db: Any) -> None:
    """A conflict resolved by ROLLBACK ends the whole transaction: what follows would be written for good."""

    async def look() -> None:
        async with Pool(db.manager(test_transaction=True), max_size=1) as pool:
            with pytest.raises(sqlite3.IntegrityError):
                async with pool.get() as conn:
                    await conn.execute("CREATE TABLE single (x UNIQUE ON CONFLICT ROLLBACK)")
                    await conn.execute("INSERT INTO single VALUES (1)")
                    await conn.execute("INSERT INTO single VALUES (1)")
            assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1

    asyncio.run(look())


def test_factories_and_cursors_are_put_back_here_too(db: Any) -> None:
    """The rest of the session stays: most PRAGMAs do nothing within a transaction anyway."""

    async def look() -> None:
        async with db.connection(test_transaction=True) as (manager, conn):
            conn.row_factory = aiosqlite.Row
            cursor = await conn.execute("SELECT 1 UNION SELECT 2")
            await cursor.fetchone()
            await manager.reset(conn)
            with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                await cursor.fetchone()
            assert await db.ask(conn, "SELECT 1") == [(1,)]
            assert manager.reset(conn) is None

    asyncio.run(look())
