"""pool_mysql.threads on a real server: PyMySQL's connections in the pool for threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from pool_core.threads import CloseReason, Pool
from pool_mysql.threads import Connection, MySQLConnectionManager

from containers.servers import Server, ServerFactory


@pytest.fixture
def db(server: ServerFactory, dialect: str) -> Server:
    return server(dialect)


@pytest.fixture
def pool(db: Server) -> Iterator[Pool[Connection]]:
    with Pool(MySQLConnectionManager(db.url), max_size=4) as pool:
        yield pool


def ask(conn: Connection, sql: str) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def test_threads_share_connections(pool: Pool[Connection]) -> None:
    """Each statement's answer is its own."""
    answers: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            with pool.get() as conn:
                answers.append(ask(conn, f"SELECT {number}")[0][0] - number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [0] * 160
    assert pool.state().statistics.connections_created <= 4


@pytest.mark.parametrize(
    ("change", "look"),
    [
        ("SET @mine = 1", "SELECT @mine"),
        ("CREATE TEMPORARY TABLE mine (x INT)", "SHOW TABLES LIKE 'mine'"),
        ("SET sql_mode = 'ANSI'", "SELECT @@sql_mode"),
        ("SET autocommit = 1", "SELECT @@autocommit"),
        ("SET NAMES latin1", "SELECT @@character_set_client"),
        ("USE information_schema", "SELECT DATABASE()"),
    ],
)
def test_a_session_is_reset(db: Server, change: str, look: str) -> None:
    """What a borrower leaves behind is gone, on the same connection."""
    with Pool(MySQLConnectionManager(db.url), max_size=1) as pool:
        with pool.get() as conn:
            before = ask(conn, look)
            ask(conn, change)
        with pool.get() as same:
            assert same is conn
            assert ask(same, look) == before
        assert pool.state().statistics.connections_created == 1


def test_an_open_transaction_is_rolled_back(pool: Pool[Connection]) -> None:
    """A forgotten commit is nobody's."""
    with pool.get() as conn:
        ask(conn, "DROP TABLE IF EXISTS threads_t")
        ask(conn, "CREATE TABLE threads_t (x INT)")
    with pool.get() as conn:
        ask(conn, "INSERT INTO threads_t VALUES (1)")
    with pool.get() as conn:
        assert ask(conn, "SELECT * FROM threads_t") == ()
        ask(conn, "DROP TABLE threads_t")


def test_strict_replaces_and_none_keeps(db: Server) -> None:
    """The three kinds of reset."""
    with Pool(MySQLConnectionManager(db.url, reset="strict"), max_size=1) as pool:
        with pool.get() as conn:
            pass
        with pool.get() as other:
            assert other is not conn
        assert pool.state().statistics.connections_closed[CloseReason.REPLACED] == 1
    with Pool(MySQLConnectionManager(db.url, reset="none", autocommit=True), max_size=1) as pool:
        with pool.get() as conn:
            ask(conn, "SET @mine = 1")
        with pool.get() as same:
            assert ask(same, "SELECT @mine") == ((1,),)


def test_a_killed_connection_is_replaced(db: Server) -> None:
    """By the server, while it was idle."""
    with Pool(MySQLConnectionManager(db.url), max_size=2) as pool:
        with pool.get() as conn, pool.get() as killer:
            ask(killer, f"KILL {conn.thread_id()}")
            with pytest.raises(pymysql.err.OperationalError):
                ask(conn, "SELECT 1")
        with pool.get() as conn, pool.get() as other:
            assert ask(conn, "SELECT 1") == ask(other, "SELECT 1") == ((1,),)


def test_terminate_ends_a_call_that_is_blocked(db: Server) -> None:
    """close(timeout) does not wait for SLEEP(30)."""
    pool = Pool(MySQLConnectionManager(db.url))
    pool.open()
    failed: list[BaseException] = []
    running = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception), pool.get() as conn:
            running.set()
            try:
                ask(conn, "SELECT SLEEP(30)")
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    running.wait(20)
    time.sleep(0.2)
    began = time.monotonic()
    pool.close(0.2)
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - began < 8
    assert failed


def test_a_wrong_password_fails_at_once_and_is_not_shown(db: Server) -> None:
    """Not transient."""
    with Pool(MySQLConnectionManager(db.url, password="s3cr3t-wrong")) as pool:
        with pytest.raises(Exception, match="1045") as caught:
            pool.get(timeout=20)
        assert "s3cr3t" not in str(caught.value)
        assert "s3cr3t" not in repr(pool._shell.calls.manager)


def test_a_test_transaction_is_never_committed(db: Server) -> None:
    """Visible to the next borrower, gone with the pool."""
    with Pool(MySQLConnectionManager(db.url)) as plain, plain.get() as conn:
        ask(conn, "DROP TABLE IF EXISTS threads_tt")
        ask(conn, "CREATE TABLE threads_tt (x INT)")
    with Pool(MySQLConnectionManager(db.url, test_transaction=True), max_size=1) as pool:
        with pool.get() as conn:
            ask(conn, "INSERT INTO threads_tt VALUES (1)")
            conn.commit()
            ask(conn, "INSERT INTO threads_tt VALUES (2)")
            conn.rollback()
        with pool.get() as conn:
            assert ask(conn, "SELECT x FROM threads_tt") == ((1,),)
    with Pool(MySQLConnectionManager(db.url)) as plain, plain.get() as conn:
        assert ask(conn, "SELECT x FROM threads_tt") == ()
        ask(conn, "DROP TABLE threads_tt")


def test_options_of_the_other_driver_are_refused(db: Server) -> None:
    """Not silently ignored."""
    with pytest.raises(TypeError, match="echo is an option of aiomysql"):
        MySQLConnectionManager(db.url, echo=True)


def test_callable_credentials_are_ordinary_functions(db: Server) -> None:
    """Asked for each connection."""
    asked: list[int] = []

    def password() -> str:
        asked.append(1)
        return db.password or ""

    async def wrong() -> str:
        return ""

    with Pool(MySQLConnectionManager(db.url, password=password), max_size=1) as pool, pool.get() as conn:
        assert ask(conn, "SELECT 1") == ((1,),)
        assert asked
    with Pool(MySQLConnectionManager(db.url, password=wrong)) as pool:
        with pytest.raises(Exception, match="coroutine function"):
            pool.get(timeout=5)
