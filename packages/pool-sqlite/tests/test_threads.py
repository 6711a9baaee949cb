"""pool_sqlite.threads: sqlite3 connections in the pool for threads."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_core.threads import CloseReason, Pool
from pool_sqlite.threads import SqliteConnection, SqliteConnectionManager


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool[SqliteConnection]]:
    with Pool(SqliteConnectionManager(tmp_path / "a.db", wal=True), max_size=4) as pool:
        with pool.get() as conn:
            conn.execute("CREATE TABLE t (x)")
        yield pool


def closed(pool: Pool[Any], reason: CloseReason) -> int:
    return pool.state().statistics.connections_closed[reason]


def test_threads_write_through_the_pool(pool: Pool[SqliteConnection]) -> None:
    """Connections move between threads, and nothing is lost."""

    def work() -> None:
        for n in range(20):
            with pool.get() as conn, conn:
                conn.execute("INSERT INTO t VALUES (?)", (n,))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pool.get() as conn:
        assert conn.execute("SELECT count(*) FROM t").fetchall() == [(320,)]


def test_a_url_finds_the_manager_for_threads_and_no_asyncio_is_loaded(tmp_path: Path) -> None:
    """The entry point, in a program of its own."""
    text = f"""
import sys
from pool_core.threads import Pool
with Pool.from_url("sqlite:///{tmp_path}/b.db?wal=true&pool_max_size=2") as pool:
    with pool.get() as conn:
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert pool.config.max_size == 2
assert "asyncio" not in sys.modules and "aiosqlite" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr


def test_an_open_transaction_is_rolled_back(pool: Pool[SqliteConnection]) -> None:
    """A forgotten commit is nobody's."""
    with pool.get() as conn:
        conn.execute("INSERT INTO t VALUES (1)")
        assert conn.in_transaction
    with pool.get() as conn:
        assert not conn.in_transaction
        assert conn.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
    assert pool.state().statistics.connections_created == 1


def test_what_needs_no_io_is_put_back_at_once(pool: Pool[SqliteConnection]) -> None:
    """Factories and half-read cursors; the connection needs no reset."""
    with pool.get() as conn:
        conn.row_factory = sqlite3.Row
        conn.text_factory = bytes
        cursor = conn.execute("SELECT 1 UNION SELECT 2")
        cursor.fetchone()
    assert pool.state().idle == 1
    with pool.get() as same:
        assert same is conn
        assert (same.row_factory, same.text_factory) == (None, str)
        with pytest.raises(sqlite3.ProgrammingError):
            cursor.fetchone()


@pytest.mark.parametrize(
    "change",
    [
        lambda conn: conn.execute("PRAGMA cache_size = 7"),
        lambda conn: conn.execute("ATTACH ':memory:' AS other"),
        lambda conn: conn.execute("CREATE TEMP TABLE mine (x)"),
        lambda conn: conn.create_function("f", 0, lambda: 1),
        lambda conn: conn.create_collation("c", lambda a, b: 0),
        lambda conn: conn.set_progress_handler(lambda: 0, 1000),
        lambda conn: conn.set_authorizer(lambda *_: sqlite3.SQLITE_OK),
        lambda conn: conn.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1000),
    ],
    ids=["pragma", "attach", "temp table", "function", "collation", "progress", "authorizer", "limit"],
)
def test_a_changed_session_costs_the_connection(pool: Pool[SqliteConnection], change: Any) -> None:
    """The next borrower has a new one."""
    with pool.get() as conn:
        change(conn)
    with pool.get() as other:
        assert other is not conn
    assert closed(pool, CloseReason.REPLACED) == 1


def test_harmless_statements_cost_nothing(pool: Pool[SqliteConnection]) -> None:
    """Reading PRAGMAs, writing in a transaction that was committed."""
    with pool.get() as conn:
        conn.execute("PRAGMA table_info(t)").fetchall()
        conn.execute("INSERT INTO t VALUES (1)")
        conn.commit()
        conn.executescript("INSERT INTO t VALUES (2); INSERT INTO t VALUES (3);")
    with pool.get() as same:
        assert same is conn
        assert same.execute("SELECT count(*) FROM t").fetchall() == [(3,)]


def test_a_test_transaction_is_never_committed(tmp_path: Path) -> None:
    """diesel's begin_test_transaction: visible to the next borrower, gone when the pool closes."""
    sqlite3.connect(tmp_path / "c.db").execute("CREATE TABLE t (x)").connection.close()
    with Pool(SqliteConnectionManager(tmp_path / "c.db", test_transaction=True), max_size=1) as pool:
        with pool.get() as conn:
            conn.execute("INSERT INTO t VALUES (1)")
            conn.commit()
            conn.cursor().execute("BEGIN")
            conn.execute("INSERT INTO t VALUES (2)")
            conn.execute("ROLLBACK")
        with pool.get() as conn:
            assert conn.execute("SELECT x FROM t").fetchall() == [(1,)]
    check = sqlite3.connect(tmp_path / "c.db")
    assert check.execute("SELECT x FROM t").fetchall() == []
    check.close()


def test_memory_is_shared_by_the_pools_connections() -> None:
    """sqlite:// is one database."""
    with Pool(SqliteConnectionManager(":memory:"), max_size=2) as pool:
        first, second = pool.get(), pool.get()
        first.conn.execute("CREATE TABLE t (x)")
        assert second.conn.execute("SELECT * FROM t").fetchall() == []
        first.release()
        second.release()


def test_close_ends_though_a_statement_runs(pool: Pool[SqliteConnection]) -> None:
    """terminate interrupts it in its thread."""
    failed: list[BaseException] = []
    running = threading.Event()

    def run() -> None:
        with pool.get() as conn:
            running.set()
            try:
                conn.execute(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
                ).fetchall()
            except sqlite3.Error as error:
                failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    running.wait()
    began = time.monotonic()
    pool.close(0.2)
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - began < 8
    assert failed


def test_a_file_that_is_none_fails_at_once_with_its_name(tmp_path: Path) -> None:
    """Not transient: no retries for thirty seconds."""
    (tmp_path / "text.db").write_text("this is no database" * 100)
    with Pool(SqliteConnectionManager(tmp_path / "text.db")) as pool:
        with pytest.raises(Exception, match=r"text\.db"):
            pool.get()


def test_options_that_have_no_meaning_are_refused(tmp_path: Path) -> None:
    """check_same_thread=True would fail at the second thread."""
    with pytest.raises(ValueError, match="check_same_thread=True"):
        SqliteConnectionManager(tmp_path / "a.db", check_same_thread=True)
    with pytest.raises(TypeError, match="iter_chunk_size"):
        SqliteConnectionManager(tmp_path / "a.db", iter_chunk_size=5)
    SqliteConnectionManager(tmp_path / "a.db", check_same_thread=False)


def test_a_factory_of_the_programs_own_is_kept(tmp_path: Path) -> None:
    """isinstance holds."""

    class Mine(sqlite3.Connection):
        def hello(self) -> str:
            return "hello"

    with Pool(SqliteConnectionManager(tmp_path / "a.db", factory=Mine)) as pool, pool.get() as conn:
        assert isinstance(conn, Mine)
        assert conn.hello() == "hello"


def test_update_moves_new_connections(tmp_path: Path) -> None:
    """As the asynchronous manager."""
    manager = SqliteConnectionManager(tmp_path / "a.db")
    with Pool(manager, max_size=1) as pool:
        with pool.get() as conn:
            conn.execute("CREATE TABLE a (x)")
        manager.update(tmp_path / "b.db")
        pool.evict()
        with pool.get() as conn:
            assert conn.execute("SELECT name FROM sqlite_master").fetchall() == []
