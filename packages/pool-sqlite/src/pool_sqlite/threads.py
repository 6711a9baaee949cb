"""SQLite for ``pool_core.threads``: the standard library's sqlite3, with the settings and rules of the asynchronous one."""

from __future__ import annotations

import sqlite3
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, cast

from pool_core import ReplaceConnection, Verdict
from pool_core.adapters import judge

from ._errors import VERDICTS, heals, with_the_file
from ._session import SAVEPOINT, Watch, boundary, statements
from ._settings import SqliteSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._settings import Database, SqliteOptions

__all__ = ["SqliteConnection", "SqliteConnectionManager"]

_HARMLESS: Final = frozenset(
    {
        *("backup", "close", "commit", "cursor", "execute", "executemany", "executescript", "getconfig", "getlimit"),
        *("interrupt", "iterdump", "rollback", "serialize", "set_authorizer"),
    }
)
"""Methods that leave nothing behind that ``is_clean`` does not see. A call of any other one costs the connection."""


class SqliteConnection(sqlite3.Connection):
    """What ``SqliteConnectionManager.connect`` returns: to its borrower it is sqlite3's connection, no more."""

    ended = False
    _watch: Watch
    _test = False
    _refuse_open = False
    _begun = False
    _attributes: tuple[Any, ...]
    _cursors: set[weakref.ref[sqlite3.Cursor]]

    def begin(self, *, test: bool, refuse_open: bool) -> None:
        """Watch the session from now on: it is what every borrower gets."""
        self._test, self._refuse_open = test, refuse_open
        self._watch = Watch(test_transaction=test)
        self._cursors = set()
        if test:
            super().execute("BEGIN")
            super().execute(f"SAVEPOINT {SAVEPOINT}")
        super().set_authorizer(self._watch)
        self.set_up()

    def set_up(self) -> None:
        """Take the session as it is now for what every borrower gets: a customizer may have changed it."""
        self._attributes = self._read_attributes()
        if self._watch.noticed:
            self._watch.noticed = False
            super().set_authorizer(self._watch)  # the customizer's statements are cached, and must be compiled anew

    def _read_attributes(self) -> tuple[Any, ...]:
        return self.row_factory, self.text_factory, self.isolation_level, getattr(self, "autocommit", None)

    # -- what its borrower calls

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        if self._test and not (args or kwargs):
            args = (_TestCursor,)
        cursor = super().cursor(*args, **kwargs)
        with suppress(AttributeError):  # while it is opened
            self._cursors.add(weakref.ref(cursor, self._cursors.discard))
        return cursor

    # sqlite3's own make their cursors without asking `cursor`.

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def executescript(self, *args: Any) -> Any:
        return self.cursor().executescript(*args)

    def set_authorizer(self, authorizer_callback: Callable[..., int] | None) -> None:
        self._watch.noticed = True
        self._watch.borrowers = authorizer_callback
        super().set_authorizer(self._watch)

    def commit(self) -> None:
        if self._test:
            self.in_savepoint("COMMIT", super().execute)
        else:
            super().commit()

    def rollback(self) -> None:
        if self._test:
            self.in_savepoint("ROLLBACK", super().execute)
        else:
            super().rollback()

    def close(self) -> None:
        self.ended = True
        super().close()

    def __del__(self) -> None:
        # Terminated while a thread was inside: whoever lets go of it last closes it.
        if self.ended:
            with suppress(sqlite3.Error):
                super().close()
        elif (base := getattr(sqlite3.Connection, "__del__", None)) is not None:
            base(self)

    # -- what its manager calls

    def in_savepoint(self, word: Literal["BEGIN", "COMMIT", "ROLLBACK"], execute: Callable[..., Any]) -> Any:
        """Let BEGIN, COMMIT and ROLLBACK work on a savepoint: the transaction around it is never ended."""
        if word == "BEGIN" and self._begun:
            msg = "cannot start a transaction within a transaction"
            raise sqlite3.OperationalError(msg)  # as SQLite says it
        self._begun = word == "BEGIN"
        if word == "ROLLBACK":
            return execute(f"ROLLBACK TO {SAVEPOINT}", ())
        execute(f"RELEASE {SAVEPOINT}", ())
        return execute(f"SAVEPOINT {SAVEPOINT}", ())

    def misplaced(self) -> bool:
        """Return whether a transaction is open that must not be, or the test transaction is gone."""
        if self._test:
            return not self.in_transaction or (self._refuse_open and self._begun)
        return self._refuse_open and self.in_transaction

    def put_back(self) -> bool:
        """Put back what needs no I/O. Returns whether that was all."""
        for reference in tuple(self._cursors):  # a half-read one holds a read lock, and in WAL an old snapshot
            if (cursor := reference()) is not None:
                cursor.close()
        self._cursors.clear()
        row_factory, text_factory, isolation_level, autocommit = self._attributes
        if self.row_factory is not row_factory:
            self.row_factory = row_factory
        if self.text_factory is not text_factory:
            self.text_factory = text_factory
        if self._test:
            return not self._begun
        return not (
            self._watch.noticed
            or self.in_transaction
            or self.isolation_level != isolation_level
            or getattr(self, "autocommit", None) != autocommit
        )

    def reset(self) -> None:
        """End the transaction, and put the isolation level back.

        Raises:
            ReplaceConnection: only a new connection undoes what the borrower did.
        """
        self.put_back()
        if self._test:
            if self._begun:
                self.rollback()
            return
        _, _, isolation_level, autocommit = self._attributes
        if self._watch.noticed or getattr(self, "autocommit", None) != autocommit:
            msg = "the borrower changed the session"
            raise ReplaceConnection(msg)
        if self.in_transaction and autocommit is True:
            super().execute("ROLLBACK")  # there sqlite3's rollback() does nothing
        else:
            super().rollback()
        if self.isolation_level != isolation_level:
            self.isolation_level = isolation_level

    def terminate(self) -> None:
        """Interrupt what runs, and compile nothing more. Closing it under a thread that is inside would crash it."""
        self.ended = True
        self._watch.ended = True
        with suppress(sqlite3.Error):
            self.interrupt()


def _noticed(name: str) -> Callable[..., Any]:
    def method(self: SqliteConnection, *args: Any, **kwargs: Any) -> Any:
        self._watch.noticed = True
        return getattr(super(SqliteConnection, self), name)(*args, **kwargs)

    method.__name__ = name
    return method


for _name in dir(sqlite3.Connection):
    # All methods that this Python has, so that those of the next one are noticed too.
    _found = getattr(sqlite3.Connection, _name)
    if not (_name.startswith("_") or _name in _HARMLESS or isinstance(_found, type)) and callable(_found):
        setattr(SqliteConnection, _name, _noticed(_name))


class _TestCursor(sqlite3.Cursor):
    """A cursor within a test transaction."""

    connection: SqliteConnection  # pyright: ignore[reportIncompatibleMethodOverride]

    def execute(self, sql: str, *args: Any) -> Any:
        if (word := boundary(sql)) is not None:
            self.connection.in_savepoint(word, super().execute)
            return self
        return super().execute(sql, *args)

    def executescript(self, sql_script: str) -> Any:
        self.connection.in_savepoint("COMMIT", super().execute)  # sqlite3's own begins with a COMMIT
        for statement in statements(sql_script):
            self.execute(statement)
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Any:
        return super().executemany(sql, parameters)


class SqliteConnectionManager:
    """Opens sqlite3 connections to one SQLite database, for ``pool_core.threads.Pool``.

    The arguments, their meaning and their errors are those of ``pool_sqlite.SqliteConnectionManager``, with two
    exceptions: connections move between threads, so ``check_same_thread=True`` is refused, and ``iter_chunk_size`` is
    aiosqlite's.
    """

    reset_keeps_on_connect = True

    def __init__(self, database: Database, **options: Unpack[SqliteOptions]) -> None:
        self._settings = SqliteSettings(database, _checked(options))
        self._anchor: weakref.finalize[[], SqliteConnectionManager] | None = None
        self._anchoring = threading.Lock()

    def __repr__(self) -> str:
        return f"SqliteConnectionManager({self._settings.place()!r})"

    def update(self, database: Database | None = None, **options: Unpack[SqliteOptions]) -> None:
        """Change settings for connections opened from now on; call ``pool.evict()`` to retire those opened before.

        Options that are not named stay as they are. Without ``database`` it is the same one, in memory too.

        Raises:
            TypeError, ValueError: as on construction; nothing is changed then.
        """
        self._settings = self._settings.updated(database, _checked(options))
        if database is not None and self._anchor is not None:
            self._anchor()
            self._anchor = None

    def connect(self) -> SqliteConnection:
        """Open the database and read from it, so that a file that is none is found out here.

        Raises:
            sqlite3.Error: as SQLite raises it, with the file's name; ``NotSupportedError`` if ``wal`` or
                ``foreign_keys`` is refused.
        """
        settings = self._settings
        values = settings.values
        factory = values.get("factory", sqlite3.Connection)
        try:
            with self._anchoring:
                if settings.in_memory and self._anchor is None:
                    self._anchor = weakref.finalize(self, settings.anchor().close)
            conn = cast("SqliteConnection", settings.open(check_same_thread=False, factory=_watched(factory)))
            try:
                conn.execute("PRAGMA schema_version").fetchall()
                conn.begin(
                    test=values.get("test_transaction", False), refuse_open=values.get("open_transaction") == "close"
                )
            except BaseException:
                conn.close()
                raise
        except sqlite3.Error as error:
            raise with_the_file(error, settings.place()) from error
        return conn

    def is_valid(self, conn: sqlite3.Connection, /) -> bool:
        """Check that SQLite answers: ``SELECT 1``."""
        return len(conn.execute("SELECT 1").fetchall()) == 1

    def has_broken(self, conn: sqlite3.Connection, /) -> bool:
        """Return whether it was closed or is not ours.

        With ``open_transaction="close"`` also whether a transaction is open; with ``test_transaction`` whether the test
        transaction is gone.
        """
        return not isinstance(conn, SqliteConnection) or conn.ended or conn.misplaced()

    def is_clean(self, conn: sqlite3.Connection, /) -> bool:
        """Close cursors, put the factories back, and return whether nothing else is left to reset."""
        return isinstance(conn, SqliteConnection) and conn.put_back()

    def reset(self, conn: sqlite3.Connection, /) -> None:
        """Put back what a borrower left behind: see ``pool_sqlite.SqliteConnectionManager.reset``.

        Raises:
            ReplaceConnection: the borrower changed the session: a PRAGMA, ATTACH, a temporary table, a function,
                collation, limit or handler. The pool closes the connection, since opening another one costs as much as
                finding out what there is to undo.
            sqlite3.Error: the transaction cannot be ended.
        """
        if not isinstance(conn, SqliteConnection):
            raise sqlite3.NotSupportedError("the connection was not opened by SqliteConnectionManager")
        conn.reset()

    def close(self, conn: sqlite3.Connection, /) -> None:
        """Close the database."""
        conn.close()

    def terminate(self, conn: sqlite3.Connection, /) -> None:
        """Interrupt what runs and refuse further statements; the thread that lets go of it last closes it.

        SQLite cannot be interrupted while it waits for a lock: then a call ends when ``busy_timeout`` is over.
        """
        if isinstance(conn, SqliteConnection):
            conn.terminate()
        else:
            conn.interrupt()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell locked, busy, out of memory or disk space (True) from a file that cannot be opened or is none (False)."""
        return heals(exc)

    def judge(self, exc: Exception, conn: sqlite3.Connection, /) -> Verdict:
        """Return what an error within a block means for connections, as the asynchronous manager."""
        return judge(exc, VERDICTS)


_classes: dict[type[sqlite3.Connection], type[SqliteConnection]] = {sqlite3.Connection: SqliteConnection}


def _watched(factory: type[sqlite3.Connection]) -> type[SqliteConnection]:
    """Make the watched class of a factory of the program's own."""
    if factory not in _classes:
        _classes[factory] = type(f"Watched{factory.__name__}", (SqliteConnection, factory), {})
    return _classes[factory]


def _checked(options: SqliteOptions) -> SqliteOptions:
    """Refuse what has no meaning here."""
    if options.get("check_same_thread"):
        raise ValueError("check_same_thread=True: connections of a pool move between threads; leave it out")
    if "iter_chunk_size" in options:
        raise TypeError(
            "iter_chunk_size is an option of aiosqlite, for pool_sqlite.SqliteConnectionManager; leave it out"
        )
    return options
