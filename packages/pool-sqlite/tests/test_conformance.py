"""The conformance suite for this adapter: on a file, and on a database in memory."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from pool_core.testing import ManagerConformance, Probe
from pool_sqlite import SqliteConnectionManager

SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000000) SELECT max(i) FROM n"

# What a borrower can leave behind, and how the next one would see it.
STATE = {
    "attached databases": ("ATTACH ':memory:' AS other", "SELECT name FROM pragma_database_list WHERE name <> 'temp'"),
    "temporary tables": (
        """CREATE TEMP TABLE mine (x); CREATE TEMP VIEW seen AS SELECT x FROM mine; CREATE INDEX temp.i ON mine (x);
        CREATE TEMP TRIGGER watch AFTER INSERT ON mine BEGIN DELETE FROM mine; END""",
        "SELECT type, name FROM sqlite_temp_master",
    ),
    "temporary virtual tables": (
        "CREATE VIRTUAL TABLE temp.words USING fts5(word)",
        "SELECT name FROM sqlite_temp_master",
    ),
    "foreign_keys": ("PRAGMA foreign_keys = ON", "SELECT * FROM pragma_foreign_keys"),
    "busy_timeout": ("PRAGMA busy_timeout = 77", "SELECT * FROM pragma_busy_timeout"),
    "query_only": ("PRAGMA query_only = ON", "SELECT * FROM pragma_query_only"),
    "cache_size": ("PRAGMA main.cache_size = 50", "SELECT * FROM pragma_cache_size"),
    "synchronous": ("PRAGMA synchronous = OFF", "SELECT * FROM pragma_synchronous"),
    "case_sensitive_like": ("PRAGMA case_sensitive_like = ON", "SELECT 'a' LIKE 'A'"),
}


async def ask(conn: aiosqlite.Connection, sql: str) -> Any:
    """The rows of a statement, plain tuples whatever the factories say."""
    return [tuple(row) for row in await conn.execute_fetchall(sql)]


def statement(dirty: str, look: str) -> tuple[Callable[..., Awaitable[object]], Callable[..., Awaitable[object]]]:
    async def leave(conn: aiosqlite.Connection) -> None:
        await conn.executescript(dirty)

    return leave, lambda conn: ask(conn, look)


async def row_factory(conn: aiosqlite.Connection) -> None:
    conn.row_factory = aiosqlite.Row


async def text_factory(conn: aiosqlite.Connection) -> None:
    conn.text_factory = bytes


async def function(conn: aiosqlite.Connection) -> None:
    await conn.create_function("lower", 1, lambda _: "mine")


async def authorizer(conn: aiosqlite.Connection) -> None:
    # With SQLITE_IGNORE a function gives NULL.
    await conn.set_authorizer(lambda action, *_: sqlite3.SQLITE_IGNORE if action == sqlite3.SQLITE_FUNCTION else 0)


async def seen(conn: aiosqlite.Connection) -> object:
    (row,) = await conn.execute_fetchall("SELECT lower('A'), 'text'")
    return type(row), tuple(row)


class Conformance(ManagerConformance[aiosqlite.Connection]):
    """The hooks."""

    __test__ = False
    network = False
    probes = (
        *(Probe(name, *statement(*sql)) for name, sql in STATE.items()),
        Probe("row_factory", row_factory, seen),
        Probe("text_factory", text_factory, seen),
        Probe("create_function", function, seen),
        Probe("set_authorizer", authorizer, seen),
    )

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        (tmp_path / "garbage").write_text("this is no database" * 100)

    async def use(self, conn: aiosqlite.Connection) -> None:
        await conn.execute("CREATE TABLE IF NOT EXISTS things (id INTEGER PRIMARY KEY AUTOINCREMENT)")
        await conn.execute("INSERT OR REPLACE INTO things VALUES (1)")
        await conn.commit()
        assert await ask(conn, "SELECT id FROM things") == [(1,)]

    async def slow_request(self, conn: aiosqlite.Connection) -> None:
        await conn.execute(SLOW)

    async def leave_unread(self, conn: aiosqlite.Connection) -> None:
        self.cursor = await conn.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
        await self.cursor.fetchone()

    async def begin(self, conn: aiosqlite.Connection) -> None:
        await conn.execute("BEGIN IMMEDIATE")

    async def in_transaction(self, conn: aiosqlite.Connection) -> bool:
        return conn.in_transaction

    def bad_credentials(self, host: str, port: int) -> dict[str, SqliteConnectionManager]:
        return {
            "a folder that is not there": SqliteConnectionManager(self.folder / "nowhere" / "app.db"),
            "a file that is no database": SqliteConnectionManager(self.folder / "garbage"),
            "a folder instead of a file": SqliteConnectionManager(self.folder),
            "a missing file, read only": SqliteConnectionManager(f"sqlite:///{self.folder}/missing.db?mode=ro"),
        }


class TestFile(Conformance):
    __test__ = True
    secrets = ("canary",)

    def manager(self, host: str, port: int) -> SqliteConnectionManager:
        # SQLite's encrypting relatives take a key in the URI; SQLite itself overlooks it.
        return SqliteConnectionManager(f"file:{self.folder}/app.db?key=canary", wal=True)


class TestMemory(Conformance):
    __test__ = True

    def manager(self, host: str, port: int) -> SqliteConnectionManager:
        return SqliteConnectionManager(":memory:")
