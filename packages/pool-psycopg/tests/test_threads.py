"""pool_psycopg.threads on a real server: psycopg's blocking connections in the pool for threads."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from pool_core import ReplaceConnection, Verdict
from pool_core.threads import CloseReason, Pool
from pool_psycopg import _driver
from pool_psycopg.threads import PsycopgConnectionManager
from psycopg.rows import dict_row, tuple_row
from psycopg.types.string import TextLoader
from psycopg_helpers import LEAKS, in_transaction, pid

from containers.servers import Server


def ask(conn: Any, query: str, *args: object) -> Any:
    """The first column of the first row."""
    row = conn.cursor(row_factory=tuple_row).execute(query, args or None).fetchone()
    return None if row is None else row[0]


def admin(url: str, query: str, *args: object) -> None:
    """One statement by a connection of its own."""
    with psycopg.connect(url, autocommit=True) as opened:
        conn: Any = opened
        conn.execute(query, args or None)


def returned(manager: PsycopgConnectionManager, conn: Any) -> None:
    """Do what the pool does with a connection that comes back."""
    assert manager.has_broken(conn) is False
    if not manager.is_clean(conn):
        manager.reset(conn)
    assert manager.has_broken(conn) is False


def pooled(url: str, max_size: int = 1, **options: Any) -> Pool[Any]:
    """A pool."""
    return Pool(PsycopgConnectionManager(url, **options), max_size=max_size)


@contextlib.contextmanager
def connected(manager: PsycopgConnectionManager) -> Iterator[Any]:
    """A connection without a pool."""
    conn = manager.connect()
    try:
        yield conn
    finally:
        manager.close(conn)


@pytest.fixture
def table(url: str) -> Iterator[str]:
    """An empty table."""
    admin(url, "DROP TABLE IF EXISTS threads_t")
    admin(url, "CREATE TABLE threads_t (x int)")
    yield "threads_t"
    admin(url, "DROP TABLE threads_t")


def test_threads_share_connections(url: str) -> None:
    """Each statement's answer is its own."""
    answers: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            with pool.get() as conn:
                answers.append(ask(conn, "SELECT %s::int", number) - number)

    with pooled(url, max_size=4) as pool:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [0] * 160
        assert pool.state().statistics.connections_created <= 4


@pytest.mark.parametrize("mode", ["safe", "strict"])
@pytest.mark.parametrize("name", LEAKS)
def test_session_state_is_reset(url: str, name: str, mode: Any) -> None:
    """Another user's role, tenant, settings or locks are a security hole."""
    dirty, look = LEAKS[name]
    manager = PsycopgConnectionManager(url, reset=mode, autocommit=True)
    with connected(manager) as conn:
        clean = ask(conn, look)
        conn.execute(dirty)
        assert ask(conn, look) != clean, "the test would prove nothing"
        returned(manager, conn)
        assert ask(conn, look) == clean
        assert not in_transaction(conn)


def test_none_keeps_the_session_and_needs_no_reset(url: str) -> None:
    """As behind PgBouncer: a clean connection costs no switch of threads."""
    manager = PsycopgConnectionManager(url + "?pgbouncer=true", autocommit=True)
    with connected(manager) as conn:
        conn.execute("SET app.tenant = '7'")
        conn.row_factory = dict_row
        assert manager.is_clean(conn)
        assert conn.row_factory is tuple_row
        assert ask(conn, "SHOW app.tenant") == "7"
        conn.autocommit = False
        ask(conn, "SELECT 1")
        assert not manager.is_clean(conn)
        manager.reset(conn)
        assert not in_transaction(conn)
        assert conn.autocommit is True


@pytest.mark.parametrize("mode", ["safe", "strict", "none"])
def test_what_a_borrower_set_on_the_connection_object_is_restored(url: str, mode: Any) -> None:
    """psycopg's own pool leaves it."""
    manager = PsycopgConnectionManager(url, reset=mode, row_factory=dict_row)
    with connected(manager) as conn:
        heard: list[object] = []
        conn.autocommit = True
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.read_only = True
        conn.deferrable = True
        conn.row_factory = tuple_row
        conn.prepare_threshold = 0
        conn.add_notice_handler(heard.append)
        conn.adapters.register_loader("int4", TextLoader)
        assert ask(conn, "SELECT 1") == "1"
        returned(manager, conn)
        assert (conn.autocommit, conn.isolation_level, conn.read_only, conn.deferrable) == (False, None, None, None)
        assert (conn.row_factory, conn.prepare_threshold) == (dict_row, 5)
        assert ask(conn, "SELECT 1") == 1
        conn.execute("DO $$ BEGIN RAISE NOTICE 'heard?'; END $$")
        assert not heard


def test_keep_makes_resets_return_to_what_on_connect_has_set(url: str) -> None:
    """A type that was registered for every borrower."""
    manager = PsycopgConnectionManager(url)
    with connected(manager) as conn:
        conn.row_factory = dict_row
        manager.keep(conn)
        conn.row_factory = tuple_row
        returned(manager, conn)
        assert conn.row_factory is dict_row


def test_an_open_transaction_is_rolled_back_and_named_in_the_log(
    url: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A forgotten commit is nobody's."""
    with pooled(url) as pool, caplog.at_level(logging.WARNING, "pool_psycopg"):
        with pool.get() as conn:
            conn.execute(f"INSERT INTO {table} VALUES (1)")
        with pool.get() as same:
            assert same is conn
            assert ask(same, f"SELECT count(*) FROM {table}") == 0
    (record,) = caplog.records
    assert "were not committed" in record.getMessage()


def test_a_failed_transaction_is_rolled_back(url: str) -> None:
    """On the same connection."""
    with pooled(url) as pool:
        with pytest.raises(psycopg.errors.DivisionByZero), pool.get() as conn:
            conn.execute("SELECT 1/0")
        with pool.get() as same:
            assert same is conn
            assert ask(same, "SELECT 1") == 1


def test_open_transaction_close_replaces(url: str) -> None:
    """Diesel's rule."""
    with pooled(url, open_transaction="close") as pool:
        with pool.get() as conn:
            ask(conn, "SELECT 1")
        with pool.get() as other:
            assert other is not conn
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1


def test_what_a_borrower_can_still_act_through_costs_the_connection(url: str) -> None:
    """A block that ends late would commit the next borrower's transaction; a loop has the connection's lock."""
    manager = PsycopgConnectionManager(url, autocommit=True)
    for what in ("transaction", "pipeline"):
        with connected(manager) as conn, getattr(conn, what)():
            with pytest.raises(ReplaceConnection, match=f"a {what}"):
                manager.reset(conn)
    with connected(manager) as conn:
        conn.execute("LISTEN mine")
        conn.execute("NOTIFY mine")
        loop = conn.notifies(timeout=5)
        next(loop)
        with pytest.raises(RuntimeError, match="end that before"):
            manager.reset(conn)
        loop.close()
        manager.reset(conn)


def test_prepared_statements_survive_a_lease_that_only_read(url: str) -> None:
    """And are dropped with strict."""
    look = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '_pg3%%'"
    modes: list[tuple[Any, bool]] = [("safe", True), ("strict", False)]
    for mode, kept in modes:
        manager = PsycopgConnectionManager(url, reset=mode, prepare_threshold=1)
        with connected(manager) as conn:
            for _ in range(3):
                ask(conn, "SELECT %s::int", 1)
            returned(manager, conn)
            assert (conn.execute(look, prepare=False).fetchone()[0] > 0) is kept
            for _ in range(3):
                assert ask(conn, "SELECT %s::int", 1) == 1


def test_sessions_killed_while_idle_reach_no_borrower(url: str) -> None:
    """psycopg does not look at an idle socket."""
    with pooled(url) as pool:
        with pool.get() as closed, closed:
            pass  # psycopg's own block closes it, which costs nobody else anything
        with pool.get(timeout=10) as conn:
            victim = pid(conn)
        admin(url, "SELECT pg_terminate_backend(%s, 5000)", victim)
        with pool.get(timeout=10) as conn:
            assert pid(conn) != victim
            assert ask(conn, "SELECT 1") == 1


def test_a_server_that_has_become_read_only_retires_all_connections(url: str, table: str) -> None:
    """As after a failover: the old primary still answers."""
    with pooled(url, max_size=2) as pool:
        with pool.get(), pool.get():
            pass
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.get() as conn:
            conn.execute("SET TRANSACTION READ ONLY")
            conn.execute(f"INSERT INTO {table} VALUES (1)")
        with pool.get(timeout=10), pool.get(timeout=10):
            assert pool.state().statistics.connections_created == 4


def test_read_only_that_was_asked_for_retires_none(url: str, table: str) -> None:
    """By the borrower, or by the manager that wants a standby."""
    manager = PsycopgConnectionManager(url)
    with connected(manager) as conn:
        conn.read_only = True
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
            conn.execute(f"INSERT INTO {table} VALUES (1)")
        assert manager.judge(caught.value, conn) is Verdict.KEEP
        conn.rollback()
        conn.read_only = None
        assert manager.judge(caught.value, conn) is Verdict.RETIRE_ALL
        standby = PsycopgConnectionManager(url, target_session_attrs="prefer-standby")
        assert standby.judge(caught.value, conn) is Verdict.KEEP


@pytest.mark.parametrize("query", ["SELECT pg_sleep(30)", "COPY (SELECT pg_sleep(30)) TO STDOUT"])
def test_terminate_ends_a_call_that_is_blocked(url: str, query: str) -> None:
    """close(timeout) does not wait for half a minute; the session on the server ends, too."""
    pool = pooled(url)
    pool.open()
    failed: list[BaseException] = []
    running = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception), pool.get() as conn:
            running.set()
            try:
                if query.startswith("COPY"):
                    with conn.cursor().copy(query) as copy:
                        list(copy)
                else:
                    conn.execute(query)
            except psycopg.OperationalError as error:
                failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(20)
    time.sleep(0.2)
    began = time.monotonic()
    pool.close(0.2)
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - began < 8
    assert failed


def test_a_terminated_connection_leaves_no_socket_and_no_warning(url: str) -> None:
    """terminate() frees nothing that a thread may be using; the socket goes with the connection."""
    manager = PsycopgConnectionManager(url)
    conn = manager.connect()
    fileno, inode = conn.pgconn.socket, os.fstat(conn.pgconn.socket).st_ino
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager.terminate(conn)
        assert os.fstat(fileno).st_ino == inode
        assert manager.has_broken(conn)
        del conn
        gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fileno)


def test_terminate_does_not_touch_another_socket_of_the_same_number() -> None:
    """The driver may close its socket meanwhile, and the number be given to somebody else's."""
    one, other = socket.socketpair()
    with one, other:
        inode = os.fstat(one.fileno()).st_ino
        _driver.shut(one.fileno(), inode + 1)
        one.sendall(b"still open")
        assert other.recv(20) == b"still open"
        _driver.shut(one.fileno(), inode)
        assert other.recv(20) == b""


def test_nothing_stays_open_after_a_failed_connect(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither refused by the server nor failed after that."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'failed connects'"
    manager = PsycopgConnectionManager(url, application_name="failed connects")
    before = len(os.listdir("/proc/self/fd"))
    kept: list[BaseException] = []
    wrong: list[dict[str, Any]] = [{"password": "wrong"}, {"dbname": "none"}, {"port": 1}]
    for options in wrong:
        with pytest.raises(psycopg.OperationalError) as caught:
            PsycopgConnectionManager(url, **options).connect()
        kept.append(caught.value)
    monkeypatch.setattr(manager, "keep", fail)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        manager.connect()
    kept.append(interrupted.value)
    assert len(os.listdir("/proc/self/fd")) == before
    with connected(PsycopgConnectionManager(url)) as conn:
        deadline = time.monotonic() + 5
        while ask(conn, mine) and time.monotonic() < deadline:
            time.sleep(0.02)
            conn.rollback()
        assert ask(conn, mine) == 0


def test_a_wrong_password_fails_at_once_and_is_not_shown(url: str) -> None:
    """Not transient; an unreachable server is."""
    manager = PsycopgConnectionManager(url, password="s3cr3t-wrong")
    with Pool(manager) as pool:
        began = time.monotonic()
        with pytest.raises(Exception, match="password authentication failed") as caught:
            pool.get(timeout=20)
        assert time.monotonic() - began < 10
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cr3t" not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
    assert "s3cr3t" not in repr(manager)
    with pytest.raises(psycopg.OperationalError) as refused:
        PsycopgConnectionManager(url, port=1).connect()
    assert manager.is_transient(refused.value)


def test_a_malformed_url_is_refused_without_being_shown() -> None:
    """Nor is a part of it."""
    with pytest.raises(ValueError, match="cannot be read") as caught:
        PsycopgConnectionManager("postgresql://me:s3cr/et@host/db")
    assert "s3cr" not in str(caught.value)


def test_callable_credentials_are_ordinary_functions(postgres: Server) -> None:
    """Asked for each connection."""
    asked: list[int] = []

    def password() -> str:
        asked.append(1)
        return postgres.password or ""

    async def wrong() -> str:
        return ""

    manager = PsycopgConnectionManager(postgres.url, password=password)
    for count in (1, 2):
        with connected(manager) as conn:
            assert ask(conn, "SELECT 1") == 1
            assert len(asked) == count
    with pytest.raises(TypeError, match="coroutine function"):
        PsycopgConnectionManager(postgres.url, password=wrong).connect()
    manager.update(password="s3cr3t-wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        manager.connect()


def test_a_url_finds_the_manager_for_threads(url: str) -> None:
    """The entry point."""
    url = url.replace("postgresql://", "postgresql+psycopg://") + "?pool_max_size=2"
    with Pool.from_url(url) as pool, pool.get() as conn:
        assert isinstance(conn, psycopg.Connection)
        assert pool.config.max_size == 2


def test_options_of_tasks_are_refused(url: str) -> None:
    """Not silently ignored."""
    with pytest.raises(TypeError, match="cancel_timeout is an option of pool_psycopg.PsycopgConnectionManager"):
        PsycopgConnectionManager(url, cancel_timeout=1)
    with pytest.raises(TypeError, match="derived from psycopg.Connection"):
        PsycopgConnectionManager(url, connection_class=psycopg.AsyncConnection)


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_test_transaction_is_never_committed(url: str, table: str, autocommit: bool) -> None:
    """Visible to the next borrower, gone with the pool."""
    count = f"SELECT count(*) FROM {table}"
    with pooled(url, test_transaction=True, autocommit=autocommit) as pool:
        with pool.get() as conn:
            conn.execute(f"INSERT INTO {table} VALUES (1)")
            conn.commit()
            conn.execute(f"INSERT INTO {table} VALUES (2)")
            conn.rollback()
            with conn.transaction():
                conn.execute(f"INSERT INTO {table} VALUES (3)")
        with pool.get() as same:
            assert same is conn
            assert ask(same, count) == (2 if autocommit else 1)
    with connected(PsycopgConnectionManager(url)) as conn:
        assert ask(conn, count) == 0
