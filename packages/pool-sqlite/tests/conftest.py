"""A database file for each test, short ways to ask it, and a look for threads that stayed behind."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from pool_sqlite import SqliteConnectionManager

# Billions of steps: it never ends by itself while a test runs.
SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000000) SELECT max(i) FROM n"


class Database:
    """A file with a table ``things``, and one row in it."""

    slow = SLOW

    def __init__(self, path: Path) -> None:
        self.path = path
        self.admin("CREATE TABLE things (name TEXT)")
        self.admin("INSERT INTO things VALUES ('first')")

    def admin(self, sql: str, *, timeout: float = 0) -> list[Any]:
        """Ask on a connection of its own, blocking, and commit."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=timeout)) as raw, raw:
            return raw.execute(sql).fetchall()

    def manager(self, **options: Any) -> SqliteConnectionManager:
        """A manager for the file."""
        return SqliteConnectionManager(self.path, **options)

    @contextlib.asynccontextmanager
    async def connection(self, **options: Any) -> AsyncIterator[tuple[SqliteConnectionManager, aiosqlite.Connection]]:
        """A manager and a connection, which is terminated at the end."""
        manager = self.manager(**options)
        conn = await manager.connect()
        try:
            yield manager, conn
        finally:
            manager.terminate(conn)

    @staticmethod
    async def ask(conn: aiosqlite.Connection, sql: str) -> list[Any]:
        """The rows of a statement."""
        return list(await conn.execute_fetchall(sql))

    @staticmethod
    async def under_way(conn: aiosqlite.Connection) -> asyncio.Task[Any]:
        """A task whose statement SQLite is busy with by now."""
        began = threading.Event()

        def sign(_: int) -> int:
            began.set()
            return 1

        await conn.create_function("sign_of_life", 1, sign)
        task = asyncio.ensure_future(conn.execute(SLOW.replace("SELECT 1 UNION", "SELECT sign_of_life(1) UNION")))
        await asyncio.to_thread(began.wait, 5)
        return task


@pytest.fixture
def db(tmp_path: Path) -> Database:
    """A database file of this test's own."""
    return Database(tmp_path / "app.db")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Each connection has a thread: whatever a test does, none of them stays."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 2
    while (left := set(threading.enumerate()) - before) and time.monotonic() < end:
        time.sleep(0.002)
    assert not left
