"""One database in memory for all connections of a manager: what shares it, how it locks, how long it exists."""

import asyncio
import gc
import sqlite3
import weakref

import pytest
from pool_core import Pool
from pool_sqlite import SqliteConnectionManager


@pytest.mark.parametrize(
    "database", [":memory:", "sqlite://", "sqlite:///:memory:", "file:own?mode=memory&cache=shared"]
)
def test_all_connections_share_one_memory_database(database: str) -> None:
    """With sqlite3's own ":memory:" each connection of a pool would have an empty database to itself."""

    async def look() -> None:
        manager = SqliteConnectionManager(database)
        one, two = await manager.connect(), await manager.connect()
        await one.execute("CREATE TABLE things (name TEXT)")
        await one.execute("INSERT INTO things VALUES ('shared')")
        await one.commit()
        assert list(await two.execute_fetchall("SELECT name FROM things")) == [("shared",)]
        await manager.close(one)
        await manager.close(two)

    asyncio.run(look())


def test_two_managers_have_two_memory_databases() -> None:
    """Tests that run at the same time must not share data."""

    async def look() -> None:
        for _ in range(2):
            manager = SqliteConnectionManager(":memory:")
            conn = await manager.connect()
            await conn.execute("CREATE TABLE things (name TEXT)")
            await manager.close(conn)

    asyncio.run(look())


def test_a_memory_database_lives_as_long_as_its_manager() -> None:
    """A pool closes idle connections, also the last one: the data must stay."""

    async def look() -> None:
        manager = SqliteConnectionManager("sqlite://")
        async with Pool(manager, min_idle=1) as pool, pool.get() as conn:
            await conn.execute("CREATE TABLE things (name TEXT)")
        pool = Pool(manager)
        async with pool, pool.get() as conn:
            assert list(await conn.execute_fetchall("SELECT * FROM things")) == []

    asyncio.run(look())


def test_a_memory_database_goes_with_its_manager() -> None:
    """Without the manager the memory is freed, and no open connection is left."""

    async def look() -> weakref.ref[SqliteConnectionManager]:
        manager = SqliteConnectionManager("file:goes?mode=memory&cache=shared")
        conn = await manager.connect()
        await conn.execute("CREATE TABLE things (name TEXT)")
        await manager.close(conn)
        return weakref.ref(manager)

    gone = asyncio.run(look())
    gc.collect()
    assert gone() is None
    raw = sqlite3.connect("file:goes?mode=memory&cache=shared", uri=True)
    assert raw.execute("SELECT * FROM sqlite_master").fetchall() == []
    raw.close()


def test_an_update_of_an_option_keeps_the_memory_database() -> None:
    """Only update() with a new database changes the database."""

    async def look() -> None:
        manager = SqliteConnectionManager(":memory:")
        conn = await manager.connect()
        await conn.execute("CREATE TABLE things (name TEXT)")
        await manager.close(conn)
        manager.update(foreign_keys=True)
        conn = await manager.connect()
        assert list(await conn.execute_fetchall("SELECT * FROM things")) == []
        await manager.close(conn)
        manager.update(":memory:")
        conn = await manager.connect()
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await conn.execute("SELECT * FROM things")
        await manager.close(conn)

    asyncio.run(look())


def test_writers_in_memory_wait_for_each_other() -> None:
    """In a shared cache a writer's neighbours fail with "table is locked" at once, whatever busy_timeout says."""

    async def look() -> None:
        manager = SqliteConnectionManager(":memory:", isolation_level="IMMEDIATE")
        async with Pool(manager, max_size=4, min_idle=4) as pool:
            async with pool.get() as conn:
                await conn.execute("CREATE TABLE things (name TEXT)")

            async def write(number: int) -> None:
                async with pool.get() as conn:
                    await conn.execute("INSERT INTO things VALUES (?)", (number,))
                    await asyncio.sleep(0)
                    await conn.commit()

            await asyncio.gather(*map(write, range(40)))
            async with pool.get() as conn:
                assert list(await conn.execute_fetchall("SELECT count(*) FROM things")) == [(40,)]

    asyncio.run(look())


def test_write_ahead_logging_in_memory_is_refused() -> None:
    """A memory database has no write-ahead log, and an option must not be ignored."""
    with pytest.raises(ValueError, match="wal=True: a memory database"):
        SqliteConnectionManager(":memory:", wal=True)


def test_an_older_sqlite_shares_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 3.36 its memory VFS could not be shared: one database for all it is there, too."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 35, 5))

    async def look() -> None:
        manager = SqliteConnectionManager(":memory:")
        one, two = await manager.connect(), await manager.connect()
        await one.execute("CREATE TABLE things (name TEXT)")
        assert list(await two.execute_fetchall("SELECT * FROM things")) == []
        await manager.close(one)
        await manager.close(two)

    asyncio.run(look())
