"""The manager: aiosqlite's connections for pool-core."""

from __future__ import annotations

import sqlite3
import weakref
from typing import TYPE_CHECKING, Unpack

from pool_core import ReplaceConnection, Verdict
from pool_core.adapters import dropping_on_failure, judge

from ._errors import VERDICTS, heals, with_the_file
from ._internals import WatchedConnection
from ._settings import SqliteSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import aiosqlite

    from ._settings import Database, SqliteOptions

__all__ = ["SqliteConnectionManager"]


class SqliteConnectionManager:
    """Opens aiosqlite connections to one SQLite database, for ``pool_core.Pool``.

    Args:
        database: A path (str or ``os.PathLike``; made absolute here, so that a later chdir opens no other file),
            ``sqlite:///relative.db``, ``sqlite:////abs/path.db`` (percent-decoded), a SQLite URI ``file:...``, or
            ``:memory:`` or ``sqlite://``: one database in memory, shared by all connections of this manager. It exists
            from the first connection until the manager is garbage-collected, also while no connection is open.
            A URL's query may contain wal, busy_timeout, foreign_keys, timeout, open_transaction and
            test_transaction, and SQLite's own parameters (``mode=ro``); keyword options win over them.
        wal: True switches the file to write-ahead logging, so that readers and one writer do not block each other.
            Default: as the file is.
        busy_timeout: Milliseconds, as in ``PRAGMA busy_timeout``: how long a statement waits for another connection's
            lock. Default: the driver's ``timeout``, 5.0 seconds.
        foreign_keys: Sets ``PRAGMA foreign_keys``. Default: as SQLite was built, which is off as a rule.
        open_transaction: What happens to a connection that is returned in a transaction: ``"rollback"`` (default)
            or ``"close"`` (diesel's rule).
        test_transaction: For tests, with ``max_size=1``: each connection is opened within a transaction that is never
            committed (diesel's ``begin_test_transaction``). Commit and rollback, as methods and in SQL, work on a
            savepoint in it. Default False.
        **options: All other options of ``aiosqlite.connect``, passed on unchanged: timeout, detect_types,
            isolation_level, autocommit (Python 3.12), check_same_thread, factory, cached_statements, uri,
            iter_chunk_size.

    Raises:
        TypeError: an unknown option, or a value of the wrong type.
        ValueError: a value or URL that is not allowed, or two options that contradict each other. The message names
            the option and what is allowed, and quotes no part of the URL.
    """

    reset_keeps_on_connect = True

    def __init__(self, database: Database, **options: Unpack[SqliteOptions]) -> None:
        self._settings = SqliteSettings(database, options)
        self._anchor: weakref.finalize[[], SqliteConnectionManager] | None = None

    def __repr__(self) -> str:
        return f"SqliteConnectionManager({self._settings.place()!r})"

    def update(self, database: Database | None = None, **options: Unpack[SqliteOptions]) -> None:
        """Change settings for connections opened from now on; call ``pool.evict()`` to retire those opened before.

        Options that are not named stay. Without ``database`` the database stays, also one in memory. With a new
        database, a former one in memory exists until the connections to it are closed.

        Raises:
            TypeError, ValueError: as on construction; nothing is changed then.
        """
        self._settings = self._settings.updated(database, options)
        if database is not None and self._anchor is not None:
            self._anchor()
            self._anchor = None

    async def connect(self) -> aiosqlite.Connection:
        """Open the database in a thread of its own and read from it, so that a file that is not a database fails here.

        Raises:
            sqlite3.Error: as SQLite raises it, with the file's name; ``NotSupportedError`` if ``wal`` or
                ``foreign_keys`` is refused.
        """
        settings = self._settings
        values = settings.values
        try:
            if settings.in_memory and self._anchor is None:
                self._anchor = weakref.finalize(self, settings.anchor().close)
            conn = WatchedConnection(
                settings.open,
                values.get("iter_chunk_size", 64),
                test_transaction=values.get("test_transaction", False),
                refuse_open=values.get("open_transaction") == "close",
            )
            with dropping_on_failure(conn.terminate):
                await conn
                await conn.execute_fetchall("PRAGMA schema_version")
        except sqlite3.Error as error:
            raise with_the_file(error, settings.place()) from error
        conn.await_setup()
        return conn

    async def is_valid(self, conn: aiosqlite.Connection, /) -> bool:
        """Send ``SELECT 1`` to the connection's thread."""
        return len(list(await conn.execute_fetchall("SELECT 1"))) == 1

    def has_broken(self, conn: aiosqlite.Connection, /) -> bool:
        """Tell whether it was closed, a call was cancelled while it ran, one is still under way, or it is not ours.

        With ``open_transaction="close"`` also whether a transaction is open; with ``test_transaction`` whether the test
        transaction is gone, which only SQLite itself can bring about (a full disk).
        """
        if (
            not isinstance(conn, WatchedConnection)
            or conn.unfinished != 0
            or conn._connection is None
            or not conn._running
        ):
            return True
        return conn.particular and conn.misplaced()

    def reset(self, conn: aiosqlite.Connection, /) -> Awaitable[None] | None:
        """Undo what a borrower left behind. Returns None, without a call into the thread, if there is nothing to undo.

        Put back: an open transaction, half-read cursors, row_factory, text_factory, isolation_level. What a customizer's
        on_connect set up stays. Within a test transaction: only a BEGIN left open, cursors and the two factories.

        Raises:
            ReplaceConnection: the borrower changed the session in another way: a PRAGMA, ATTACH, a temporary table, a
                function, collation, limit or handler. The pool closes the connection, since opening another one costs
                as much as finding out what there is to undo.
            sqlite3.Error: (from the awaitable) the transaction cannot be ended.
        """
        if not isinstance(conn, WatchedConnection):
            raise sqlite3.NotSupportedError("the connection was not opened by SqliteConnectionManager")
        if not conn.watched:
            raise sqlite3.NotSupportedError(
                "this release of aiosqlite hides what is executed; pool-sqlite needs aiosqlite>=0.22.1,<0.23"
            )
        if conn.is_changed():
            raise ReplaceConnection("the borrower changed the session")
        return conn.reset() if conn.needs_reset() else None

    def keep(self, conn: aiosqlite.Connection, /) -> None:
        """Let ``reset`` go back to the session as it is now, as it does to what a customizer's on_connect has set up."""
        if isinstance(conn, WatchedConnection):
            conn.await_setup()
            conn.set_up()

    async def close(self, conn: aiosqlite.Connection, /) -> None:
        """Close the database and end the thread, after calls that are still queued."""
        await conn.close()

    def terminate(self, conn: aiosqlite.Connection, /) -> None:
        """Interrupt what runs, drop what is queued, let the thread close the database and end. Does not wait.

        SQLite cannot be interrupted while it waits for a lock: then the thread ends when ``busy_timeout`` is over.
        """
        if isinstance(conn, WatchedConnection):
            conn.terminate()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell locked, busy, out of memory or disk space (True) from a file that cannot be opened or is none (False)."""
        return heals(exc)

    def judge(self, exc: Exception, conn: aiosqlite.Connection, /) -> Verdict:
        """Return what an error within a block means for connections.

        RETIRE_ALL: SQLite finds another file, or none, where its own should be (SQLITE_CORRUPT, NOTADB,
        READONLY_DBMOVED). CLOSE: SQLITE_READONLY, IOERR, INTERNAL.
        """
        return judge(exc, VERDICTS)
