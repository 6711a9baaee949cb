"""The connection that a lease yields: a subclass of aiosqlite's, which records running calls and session changes.

Everything that aiosqlite does passes through its ``_execute``. Here one small job class runs each call, so that a
cancelled statement is interrupted or never begun, and a closed loop does not end the thread. SQLite's authorizer, which
sees every statement when it is compiled, notices what changes the session: such a connection is not used again.

Privates of aiosqlite used here, and nowhere else in this package: ``_tx``, ``_thread``, ``_running``, ``_connection``, ``_connect``,
``_execute`` and ``_STOP_RUNNING_SENTINEL``. Should a release move ``_execute``, ``watched`` stays False, and the manager
hands out no connection twice.
"""

from __future__ import annotations

import asyncio
import atexit
import sqlite3
import time
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL  # type: ignore[attr-defined, unused-ignore]

from ._session import SAVEPOINT, Watch, boundary, statements

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WatchedConnection"]

# What aiosqlite runs in the thread for its own methods. Anything else that goes there (set_authorizer, create_function,
# setlimit, a function of the borrower's) may leave something behind.
_HARMLESS_CALLS: Final = frozenset(
    {
        *("_execute_fetchall", "_execute_insert", "_reset", "backup", "close", "commit", "cursor", "dumper", "execute"),
        *("executemany", "executescript", "fetchall", "fetchmany", "fetchone", "rollback"),
    }
)


class _Job:
    """One call in the connection's thread, whose outcome goes to the caller's loop, if that still exists.

    The job drops its references as soon as it can: the thread keeps its last job while it waits for the next one, and
    a cursor stays half-read for as long as there is a reference to it.
    """

    __slots__ = ("_function", "_future", "_outcome", "_owner", "finished", "started")

    def __init__(self, owner: WatchedConnection, function: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self._owner: WatchedConnection | None = owner
        self._function: Callable[[], Any] | None = function
        self._future: asyncio.Future[Any] | None = future
        self._outcome: tuple[bool, Any] | None = None
        self.started = False
        self.finished = False

    def __call__(self) -> None:
        # `started` is set before `cancelled` is read, and the loop reads it after the cancel: so a cancelled job that
        # looks unstarted to the loop never begins. aiosqlite itself would still run it.
        self.started = True
        future = self._future
        assert future is not None
        try:
            if not future.cancelled():
                self._outcome = (True, self._run())
        except BaseException as error:  # noqa: BLE001 - it is raised in the task that waits for this job
            self._outcome = (False, error)
        self._owner = self._function = None
        self.finished = True
        # A closed loop has no waiting task. In aiosqlite this RuntimeError ends the thread with the database open.
        try:
            future.get_loop().call_soon_threadsafe(self._deliver)
        except RuntimeError:
            self._future = self._outcome = None

    def _run(self) -> Any:
        assert self._owner is not None
        assert self._function is not None
        if self._owner.terminated:
            msg = "the connection was terminated"
            raise sqlite3.ProgrammingError(msg)
        return self._function()

    def _deliver(self) -> None:
        future, outcome = self._future, self._outcome
        self._future = self._outcome = None
        if future is None or future.done() or outcome is None:
            return
        succeeded, result = outcome
        if succeeded:
            future.set_result(result)
        else:
            future.set_exception(result)


def _set_up(reference: weakref.ref[WatchedConnection], _task: asyncio.Task[Any]) -> None:
    if (connection := reference()) is not None:
        connection.set_up()


class WatchedConnection(aiosqlite.Connection):
    """What ``SqliteConnectionManager.connect`` returns. Borrowers use it as aiosqlite's connection.

    Attributes:
        unfinished: Calls under way; one more, for good, after a call was cancelled that the thread had begun.
        terminated: No further call begins.
        watched: This class sees what is executed.
        begun: In a test transaction: the borrower sent BEGIN, and neither COMMIT nor ROLLBACK since.
        particular: `misplaced` decides whether the state of the transaction makes the connection broken.
    """

    def __init__(
        self,
        opener: Callable[[], sqlite3.Connection],
        iter_chunk_size: int,
        *,
        test_transaction: bool,
        refuse_open: bool,
    ) -> None:
        super().__init__(opener, iter_chunk_size)
        self._thread.daemon = True  # otherwise the interpreter waits for it forever: see `_end_all`
        _alive.add(self)
        self._raw: sqlite3.Connection | None = None
        self._test = test_transaction
        self._refuse_open = refuse_open
        self.particular = test_transaction or refuse_open
        self.unfinished = 0
        self.terminated = False
        self.watched = False
        self._watch = Watch(test_transaction=test_transaction)
        self.begun = False
        self._cursors: set[weakref.ref[sqlite3.Cursor]] = set()  # a WeakSet's len() costs more than all of needs_reset
        # What to go back to: as opened, or as a customizer has set it up (see `await_setup`).
        self._attributes: tuple[Any, ...] = ()
        self._autocommit: Any = None
        self._opening_task: asyncio.Task[Any] | None = None
        self._on_setup = partial(_set_up, weakref.ref(self))
        self._compile_anew = False

    # --- calls into the thread ----------------------------------------------------------------------------------------

    async def _connect(self) -> WatchedConnection:
        """Open the database. If this fails or is cancelled, the thread closes what it opened, and ends."""
        future = asyncio.get_running_loop().create_future()
        self._tx.put_nowait((None, _Job(self, self._open, future)))
        try:
            self._connection = await future
        except BaseException:
            self.terminate()
            raise
        return self

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run one call in the thread: all of aiosqlite passes here."""
        if not self._running or self._connection is None:
            msg = "Connection closed"
            raise ValueError(msg)
        self.watched = True
        if self._opening_task is not None and asyncio.current_task() is not self._opening_task:
            self._no_setup()
        name = getattr(fn, "__name__", "")
        future = asyncio.get_running_loop().create_future()
        job = _Job(self, partial(self._call, name, fn, args, kwargs), future)
        self.unfinished += 1
        self._tx.put_nowait((None, job))
        try:
            result = await future
        except BaseException:
            if job.started and not job.finished:
                # The caller is gone, but SQLite still runs the call: stop it, and do not use this connection again.
                # Later statements may fail with "interrupted" for as long as another one is half-read.
                with suppress(sqlite3.Error):
                    self._connection.interrupt()
                raise
            self.unfinished -= 1
            raise
        self.unfinished -= 1
        self._follow(name, fn, result)
        return result

    def _call(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._compile_anew:
            # The customizer's statements may be in sqlite3's cache, and the authorizer sees only what is compiled.
            self._compile_anew = False
            assert self._raw is not None
            self._raw.set_authorizer(self._watch)
        if name not in _HARMLESS_CALLS:
            self._watch.noticed = True
            if name == "set_authorizer":
                self._watch.borrowers = args[0]
                return fn(self._watch)
        if self._test:
            return self._within_test(name, fn, args, kwargs)
        return fn(*args, **kwargs)

    def _follow(self, name: str, fn: Callable[..., Any], result: object) -> None:
        """Remember the cursors that may be half-read: such a one holds a read lock, and in WAL an old snapshot."""
        cursor = result if isinstance(result, sqlite3.Cursor) else getattr(fn, "__self__", None)
        if not isinstance(cursor, sqlite3.Cursor):
            return
        done = name in ("fetchall", "close") or (name in ("fetchone", "fetchmany") and not result)
        if done or cursor.description is None:
            self._cursors.discard(weakref.ref(cursor))
        else:
            self._cursors.add(weakref.ref(cursor, self._cursors.discard))

    # --- the end ------------------------------------------------------------------------------------------------------

    def stop(self) -> asyncio.Future[None] | None:
        """Close the database and end the thread, after queued calls. Returns a future if a loop is running."""
        self._running = False
        self._no_setup()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._tx.put_nowait((None, self._finish))
            return None
        future: asyncio.Future[None] = loop.create_future()
        self._tx.put_nowait((None, partial(self._finish, future)))
        return future

    def _finish(self, future: asyncio.Future[None] | None = None) -> object:
        if self._raw is not None:
            with suppress(sqlite3.Error):
                self._raw.close()
        if future is not None:
            with suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(_ended, future)
        return _STOP_RUNNING_SENTINEL

    def terminate(self) -> None:
        """Interrupt what runs, begin nothing more, close the database in its own thread. Does not wait."""
        self.terminated = True
        self._connection = None
        if self._raw is not None:
            with suppress(sqlite3.Error):  # closed already
                self._raw.interrupt()
        if self._running:
            self.stop()

    # --- the session --------------------------------------------------------------------------------------------------

    def await_setup(self) -> None:
        """Treat what the opening task changes, until it ends, as set-up: in a pool that is on_connect.

        So a customizer's PRAGMAs and functions do not count as a borrower's. If the opening task still runs when the
        connection is first returned or used by another task, its changes do not count as set-up.
        """
        self._opening_task = asyncio.current_task()
        if self._opening_task is not None:
            self._opening_task.add_done_callback(self._on_setup)

    def set_up(self) -> None:
        """Record the present session as the one that every borrower gets."""
        if self._opening_task is not None and self._connection is not None:
            self._opening_task = None
            self._attributes = self._read_attributes()
            self._compile_anew, self._watch.noticed = self._watch.noticed, False

    def _no_setup(self) -> None:
        if self._opening_task is not None:
            self._opening_task.remove_done_callback(self._on_setup)
            self._opening_task = None

    def misplaced(self) -> bool:
        """Return whether a transaction is open that must not be, or the test transaction has ended."""
        raw = self._connection
        assert raw is not None
        if self._test:
            return not raw.in_transaction or (self._refuse_open and self.begun)
        return self._refuse_open and raw.in_transaction

    def is_changed(self) -> bool:
        """Restore the factories at once, and return whether the borrower made a change that needs a new connection."""
        raw = self._connection
        assert raw is not None
        self._no_setup()
        row_factory, text_factory, _ = self._attributes
        if raw.row_factory is not row_factory:
            raw.row_factory = row_factory
        if raw.text_factory is not text_factory:
            raw.text_factory = text_factory
        return self._watch.noticed and not self._test

    def needs_reset(self) -> bool:
        """Tell whether something is left that the thread can put back."""
        raw = self._connection
        assert raw is not None
        if self._test:
            return self.begun or bool(self._cursors)
        return raw.in_transaction or bool(self._cursors) or raw.isolation_level != self._attributes[2]

    async def reset(self) -> None:
        """End the transaction, close half-read cursors, put the isolation level back.

        Raises:
            sqlite3.Error: it cannot be done; the connection is to be closed.
        """
        await self._execute(self._reset)

    def _read_attributes(self) -> tuple[Any, ...]:
        raw = self._raw
        assert raw is not None
        return raw.row_factory, raw.text_factory, raw.isolation_level

    def _open(self) -> sqlite3.Connection:
        raw: sqlite3.Connection = self._connector()
        self._raw = raw
        if self._test:
            raw.execute("BEGIN")
            raw.execute(f"SAVEPOINT {SAVEPOINT}")
        raw.set_authorizer(self._watch)
        self._attributes = self._read_attributes()
        self._autocommit = getattr(raw, "autocommit", None)
        return raw

    def _reset(self) -> None:
        raw: Any = self._raw  # `autocommit` is unknown before 3.12
        for reference in list(self._cursors):
            if (cursor := reference()) is not None:
                cursor.close()
        self._cursors.clear()
        if self._test:
            if self.begun:
                self._in_savepoint("ROLLBACK", raw.execute)
            return
        if raw.in_transaction and self._autocommit is True:
            raw.execute("ROLLBACK")  # there sqlite3's rollback() does nothing
        else:
            raw.rollback()
        if raw.isolation_level != self._attributes[2]:
            raw.isolation_level = self._attributes[2]

    # --- the test transaction -----------------------------------------------------------------------------------------

    def _within_test(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let BEGIN, COMMIT and ROLLBACK work on a savepoint: the transaction around it is never ended."""
        raw = self._raw
        assert raw is not None
        if name in ("commit", "rollback"):
            self._in_savepoint("COMMIT" if name == "commit" else "ROLLBACK", raw.execute)
            return None
        if name == "executescript":  # sqlite3's own begins with a COMMIT
            self._in_savepoint("COMMIT", raw.execute)
            target = fn.__self__  # type: ignore[attr-defined]
            cursor = target if isinstance(target, sqlite3.Cursor) else raw.cursor()
            for statement in statements(args[0]):
                if (word := boundary(statement)) is not None:
                    self._in_savepoint(word, cursor.execute)
                else:
                    cursor.execute(statement)
            return cursor
        if args and (word := boundary(args[0])) is not None:
            return self._in_savepoint(word, fn)
        return fn(*args, **kwargs)

    def _in_savepoint(self, word: Literal["BEGIN", "COMMIT", "ROLLBACK"], execute: Callable[..., Any]) -> Any:
        if word == "BEGIN" and self.begun:
            msg = "cannot start a transaction within a transaction"
            raise sqlite3.OperationalError(msg)  # as SQLite says it
        self.begun = word == "BEGIN"
        if word == "ROLLBACK":
            return execute(f"ROLLBACK TO {SAVEPOINT}", ())
        execute(f"RELEASE {SAVEPOINT}", ())
        return execute(f"SAVEPOINT {SAVEPOINT}", ())


def _ended(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_alive: weakref.WeakSet[WatchedConnection] = weakref.WeakSet()

ENDING = 0.5
"""Seconds that the end of the program grants all connections together to close their databases."""


def _end_all() -> None:
    """The program ends: close what is still open, each in its own thread.

    Without it a thread could be stopped in the middle of a call. One that waits for a lock cannot be interrupted, and is
    left behind: SQLite rolls back what it had not committed when the file is opened next.
    """
    connections = [conn for conn in _alive if conn._thread.is_alive()]
    for conn in connections:
        conn.terminate()
    deadline = time.monotonic() + ENDING
    for conn in connections:
        conn._thread.join(max(0.0, deadline - time.monotonic()))


atexit.register(_end_all)
