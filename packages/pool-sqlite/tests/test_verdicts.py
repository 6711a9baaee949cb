"""What an error within a block means for connections, for example when the file was replaced."""

import asyncio
import sqlite3
from typing import Any

import pytest
from pool_core import CloseReason, Pool, SupportsJudge, Verdict
from pool_sqlite import SqliteConnectionManager


def error(name: str) -> sqlite3.Error:
    """As sqlite3 raises it."""
    made = sqlite3.OperationalError("message")
    made.sqlite_errorname = name
    return made


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (("SQLITE_CORRUPT", "SQLITE_CORRUPT_INDEX", "SQLITE_NOTADB", "SQLITE_READONLY_DBMOVED"), Verdict.RETIRE_ALL),
        (("SQLITE_READONLY", "SQLITE_READONLY_CANTLOCK", "SQLITE_IOERR_READ", "SQLITE_INTERNAL"), Verdict.CLOSE),
        (("SQLITE_BUSY", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_ERROR"), Verdict.KEEP),
    ],
)
def test_the_code_decides(names: tuple[str, ...], verdict: Verdict) -> None:
    """A lock or a constraint does not concern the connection."""
    manager: Any = SqliteConnectionManager("sqlite://")
    assert isinstance(manager, SupportsJudge)
    for name in names:
        assert manager.judge(error(name), None) is verdict, name
    assert manager.judge(sqlite3.OperationalError("without a code"), None) is Verdict.KEEP
    assert manager.judge(KeyError(), None) is Verdict.KEEP


def fails(db: Any, replace: Any) -> int:
    """Replace the file beneath four connections, and count the errors until there are none any more."""

    async def look() -> int:
        failed = 0
        async with Pool(db.manager(), max_size=4, min_idle=4) as pool:
            for _ in range(4):
                leases = [await pool.get() for _ in range(4)]
                for lease in leases:
                    await db.ask(lease.conn, "SELECT name FROM things")
                    lease.release()
            replace()
            for _ in range(20):
                try:
                    async with pool.get() as conn:
                        await conn.execute("INSERT INTO things VALUES ('new')")
                        await conn.commit()
                        assert await db.ask(conn, "SELECT count(*) FROM things") != []
                except sqlite3.DatabaseError:
                    failed += 1
            assert pool.state().statistics.connections_closed[CloseReason.EVICTED] >= 3
        return failed

    return asyncio.run(look())


def test_a_file_that_was_moved_away_and_replaced_costs_one_error(db: Any) -> None:
    """A backup that was put in its place: connections that hold the old file cannot write any more."""

    def replace() -> None:
        copy = db.path.with_name("copy.db")
        copy.write_bytes(db.path.read_bytes())
        copy.replace(db.path)

    assert fails(db, replace) == 1
    assert len(db.admin("SELECT * FROM things")) == 20


def test_a_file_that_was_overwritten_with_no_database_and_mended_costs_few_errors(db: Any) -> None:
    """A connection that has read wrong bytes must not be used when the file is mended."""
    sound = db.path.read_bytes()

    def replace() -> None:
        db.path.write_bytes(b"no database " * (len(sound) // 12) + b"." * (len(sound) % 12))
        with pytest.raises(sqlite3.DatabaseError):
            db.admin("SELECT * FROM things")

    async def look() -> None:
        async with Pool(db.manager(), max_size=2, min_idle=2) as pool:
            replace()
            with pytest.raises(sqlite3.DatabaseError, match="not a database|malformed"):
                async with pool.get() as conn:
                    await db.ask(conn, "SELECT name FROM things")
            assert pool.state().idle == 0
            db.path.write_bytes(sound)
            async with pool.get() as conn:
                assert await db.ask(conn, "SELECT name FROM things") == [("first",)]

    asyncio.run(look())
