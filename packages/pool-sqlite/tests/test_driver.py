"""What aiosqlite does, and what this adapter does instead: cancelled calls, closed connections, errors."""

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from pool_sqlite import SqliteConnectionManager


@pytest.mark.cancellation
def test_a_cancelled_query_is_interrupted_and_costs_the_connection(db: Any) -> None:
    """aiosqlite lets it run on: the next call waited for seconds, and an interrupt may strike later statements."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            task = await db.under_way(conn)
            assert manager.has_broken(conn)  # its thread is at work: nobody else can use it
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert manager.has_broken(conn)
            began = time.perf_counter()
            assert await db.ask(conn, "SELECT 1") == [(1,)]  # so the borrower may still clean up
            assert time.perf_counter() - began < 2
            assert manager.has_broken(conn)

    asyncio.run(look())


@pytest.mark.cancellation
def test_a_query_ended_by_a_timeout_costs_the_connection(db: Any) -> None:
    """asyncio.timeout turns the cancel into a TimeoutError: the connection must know of it all the same."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            task = await db.under_way(conn)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await task
            assert manager.has_broken(conn)

    asyncio.run(look())


@pytest.mark.cancellation
def test_a_call_cancelled_in_the_queue_is_never_begun(db: Any) -> None:
    """aiosqlite alone would still run it, such as the insert of a cancelled request. Here it never begins."""

    async def look() -> None:
        async with db.connection(isolation_level=None) as (manager, conn):
            free = threading.Event()
            await conn.create_function("wait", 0, lambda: free.wait(5))
            busy = asyncio.ensure_future(conn.execute_fetchall("SELECT wait()"))
            late = asyncio.ensure_future(conn.execute("INSERT INTO things VALUES ('late')"))
            await asyncio.sleep(0)
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
            free.set()
            assert await busy == [(1,)]
            assert await db.ask(conn, "SELECT name FROM things") == [("first",)]
            assert not manager.has_broken(conn)

    asyncio.run(look())


@pytest.mark.cancellation
def test_a_cancel_in_the_tick_of_success_costs_nothing(db: Any) -> None:
    """The statement has ended, so the connection is clean and stays."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            task = asyncio.ensure_future(conn.execute("SELECT 1"))
            await asyncio.sleep(0)
            ended = threading.Event()
            conn._tx.put_nowait((None, ended.set))  # behind the statement, in the same queue
            ended.wait(5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not manager.has_broken(conn)

    asyncio.run(look())


def test_a_lease_returned_while_a_query_runs_is_broken(db: Any) -> None:
    """A forgotten task must not share a connection with the next borrower."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            task = await db.under_way(conn)
            assert manager.has_broken(conn)
            await conn.interrupt()
            with pytest.raises(sqlite3.OperationalError, match="interrupted"):
                await task
            assert not manager.has_broken(conn)

    asyncio.run(look())


def test_a_closed_connection_is_broken(db: Any) -> None:
    """After close aiosqlite's in_transaction raises ValueError: has_broken must not get that far."""

    async def look() -> None:
        for options in ({}, {"open_transaction": "close"}, {"test_transaction": True}):
            async with db.connection(**options) as (manager, conn):
                assert not manager.has_broken(conn)
                await conn.close()
                assert manager.has_broken(conn)
                with pytest.raises(ValueError, match="no active connection"):
                    _ = conn.in_transaction
                with pytest.raises(ValueError, match="Connection closed"):
                    await manager.is_valid(conn)
                await manager.close(conn)  # once more does no harm

    asyncio.run(look())


def test_terminate_ends_a_running_query_and_the_thread(db: Any) -> None:
    """A lease dropped by the garbage collector, a close that takes too long: nothing may be left running."""

    async def look() -> None:
        threads = threading.active_count()
        async with db.connection() as (manager, conn):
            task = await db.under_way(conn)
            queued = asyncio.ensure_future(conn.execute("INSERT INTO things VALUES ('late')"))
            await asyncio.sleep(0)
            manager.terminate(conn)
            manager.terminate(conn)
            assert manager.has_broken(conn)
            with pytest.raises(sqlite3.OperationalError, match="interrupted"):
                await task
            with pytest.raises(sqlite3.ProgrammingError, match="terminated"):
                await queued
            await manager.close(conn)
        while threading.active_count() > threads + 1:  # to_thread has one, too
            await asyncio.sleep(0.001)
        assert db.admin("SELECT name FROM things") == [("first",)]

    asyncio.run(look())


def test_terminate_rolls_back(db: Any) -> None:
    """A terminated connection loses its transaction, and no lock stays behind."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.execute("INSERT INTO things VALUES ('lost')")
            manager.terminate(conn)
        db.admin("INSERT INTO things VALUES ('next')", timeout=5)
        assert db.admin("SELECT name FROM things") == [("first",), ("next",)]

    asyncio.run(look())


def test_a_loop_that_is_closed_kills_no_thread(db: Any) -> None:
    """aiosqlite's thread reports to the closed loop, ends with a traceback, and leaves the database open."""

    async def begin() -> Any:
        conn = await manager.connect()
        task = await db.under_way(conn)
        asyncio.get_running_loop().call_later(0, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        conn._tx.put_nowait((None, lambda: time.sleep(0.02)))
        asyncio.ensure_future(conn.execute("SELECT 1")).add_done_callback(lambda done: done.cancelled())
        await asyncio.sleep(0)
        return conn

    manager = db.manager()
    conn = asyncio.run(begin())
    manager.terminate(conn)  # threads that died of an exception, or stayed, fail this test


@pytest.mark.cancellation
def test_a_cancelled_connect_leaves_nothing_open(db: Any) -> None:
    """aiosqlite drops the connection that the thread still opens; from 3.13 on that is a ResourceWarning, too."""
    reached, go, closed = threading.Event(), threading.Event(), threading.Event()

    class Slow(sqlite3.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            reached.set()
            go.wait(5)
            super().__init__(*args, **kwargs)

        def close(self) -> None:
            super().close()
            closed.set()

    async def look() -> None:
        task = asyncio.ensure_future(db.manager(factory=Slow).connect())
        await asyncio.to_thread(reached.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    asyncio.run(look())
    assert closed.wait(5)


def test_a_clean_lease_makes_no_call(db: Any) -> None:
    """has_broken and reset of a clean connection do not go to the thread at all."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.execute("INSERT INTO things VALUES ('second')")
            await conn.commit()
            assert await db.ask(conn, "SELECT count(*) FROM things") == [(2,)]
            async with conn.execute("SELECT name FROM things") as cursor:
                assert [row async for row in cursor] == [("first",), ("second",)]
            cursor = await conn.execute("SELECT name FROM things")
            assert len(list(await cursor.fetchall())) == 2
            assert not manager.has_broken(conn)
            assert manager.reset(conn) is None
            assert conn._tx.qsize() == 0

    asyncio.run(look())


def test_a_connection_of_somebody_elses_is_broken(db: Any) -> None:
    """Pool.add of a plain aiosqlite connection: its session state is not known, so it is not handed out."""

    async def look() -> None:
        manager = db.manager()
        async with aiosqlite.connect(db.path) as conn:
            assert manager.has_broken(conn)
            with pytest.raises(sqlite3.NotSupportedError, match="not opened by"):
                await manager.reset(conn)
            manager.terminate(conn)

    asyncio.run(look())


def test_a_release_of_the_driver_that_hides_its_calls_uses_no_connection_twice(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If calls are hidden, the pool closes each connection instead of handing it out again."""

    async def unseen(self: Any, fn: Any, *args: Any) -> Any:
        return fn(*args)

    async def look() -> None:
        manager = db.manager(check_same_thread=False)
        with monkeypatch.context() as patch:
            patch.setattr("pool_sqlite._internals.WatchedConnection._execute", unseen)
            conn = await manager.connect()
        with pytest.raises(sqlite3.NotSupportedError, match="release of aiosqlite"):
            manager.reset(conn)
        manager.terminate(conn)

    asyncio.run(look())


def connect_error(manager: SqliteConnectionManager) -> Exception:
    """What connecting raises."""

    async def attempt() -> Exception:
        try:
            conn = await manager.connect()
        except Exception as error:  # noqa: BLE001
            return error
        manager.terminate(conn)
        pytest.fail("it connected")

    return asyncio.run(attempt())


def test_a_locked_database_is_transient(db: Any) -> None:
    """Another connection's transaction ends, so a retry may succeed."""
    with contextlib.closing(sqlite3.connect(db.path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        error = connect_error(db.manager(busy_timeout=0))
    assert isinstance(error, sqlite3.OperationalError)
    assert "locked" in str(error)
    assert db.manager().is_transient(error)
    assert db.manager().is_transient(sqlite3.OperationalError("database table is locked"))  # without a code


def test_what_cannot_be_opened_is_not_transient(db: Any, tmp_path: Path) -> None:
    """A missing folder, or a file that is not a database, does not change: open() must fail at once."""
    (tmp_path / "garbage").write_bytes(b"no database" * 1000)
    for database, text in (
        (tmp_path / "nowhere" / "app.db", "unable to open database file"),
        (tmp_path, "unable to open database file"),
        (tmp_path / "garbage", "file is not a database"),
        (f"sqlite:///{tmp_path}/missing.db?mode=ro", "unable to open database file"),
    ):
        manager = SqliteConnectionManager(database)
        error = connect_error(manager)
        assert isinstance(error, sqlite3.DatabaseError)
        assert text in str(error)
        assert str(database if isinstance(database, Path) else tmp_path / "missing.db") in str(error)
        assert not manager.is_transient(error)
    assert not (tmp_path / "missing.db").exists()


def test_other_errors_are_judged_by_what_they_are(db: Any) -> None:
    """A hook's own network error may be transient; a wrong argument is not."""
    manager = db.manager()
    assert manager.is_transient(TimeoutError())
    assert manager.is_transient(ConnectionResetError())
    assert not manager.is_transient(TypeError())
    assert not manager.is_transient(sqlite3.OperationalError("no such table: x"))


def test_wal_that_the_database_refuses_is_an_error(db: Any, tmp_path: Path) -> None:
    """Without the error, readers would block the writer although wal=True was given."""
    error = connect_error(SqliteConnectionManager(f"file:{tmp_path}/app.db?vfs=unix-none", wal=True))
    assert isinstance(error, sqlite3.NotSupportedError)
    assert "wal=True" in str(error)


def test_foreign_keys_that_sqlite_was_built_without_are_an_error(db: Any) -> None:
    """SQLite itself ignores the PRAGMA without an error, and would check no constraint."""

    class Without(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return super().execute("SELECT 0" if "foreign_keys" in sql else sql, *args)

    error = connect_error(db.manager(foreign_keys=True, factory=Without))
    assert isinstance(error, sqlite3.NotSupportedError)
    assert "foreign_keys=True" in str(error)
    assert not db.manager().is_transient(error)


def test_is_valid_makes_a_round_trip(db: Any) -> None:
    """is_valid returns exactly True, also under a row factory of the borrower."""

    async def look() -> None:
        async with db.connection() as (manager, conn):
            assert await manager.is_valid(conn) is True
            conn.row_factory = aiosqlite.Row
            assert await manager.is_valid(conn) is True

    asyncio.run(look())


def test_a_connection_that_is_dropped_unclosed_warns_and_ends(db: Any) -> None:
    """Only the garbage collector notices it: the thread must end anyway."""

    async def drop() -> None:
        conn = await db.manager().connect()
        with pytest.warns(ResourceWarning, match="was deleted before being closed"):
            del conn

    asyncio.run(drop())


def test_the_driver_logs_no_more_than_before(db: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Normal use logs nothing new."""
    caplog.set_level(logging.INFO)

    async def look() -> None:
        async with db.connection() as (manager, conn):
            await conn.execute("SELECT 1")
            await manager.close(conn)

    asyncio.run(look())
    assert caplog.records == []


def test_connections_that_switch_a_new_file_to_wal_at_once_all_open(tmp_path: Path) -> None:
    """SQLite answers "database is locked" to one of two that switch, in about one of ten files, without waiting."""

    async def main() -> None:
        for number in range(60):
            manager = SqliteConnectionManager(tmp_path / f"{number}.db", wal=True)
            for conn in await asyncio.gather(*(manager.connect() for _ in range(4))):
                await manager.close(conn)

    asyncio.run(main())


def test_a_switch_to_wal_that_cannot_be_is_refused_at_once(db: Any) -> None:
    """Only a lock goes away after a while."""
    began = time.monotonic()
    error = connect_error(SqliteConnectionManager(f"file:{db.path}?mode=ro", wal=True))
    assert "readonly" in str(error)
    assert time.monotonic() - began < 2


def test_the_switch_to_wal_gives_up_when_the_busy_timeout_is_over(db: Any) -> None:
    with contextlib.closing(sqlite3.connect(db.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        error = connect_error(db.manager(wal=True, busy_timeout=200))
        assert "locked" in str(error)
        assert 0.15 < time.monotonic() - began < 2
