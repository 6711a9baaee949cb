"""The acquired connection: aioodbc's, with a thread of its own, cancelled calls that are stopped, and a way back to the start.

All that aioodbc does passes through its ``_execute``. Privates of aioodbc that are used here, and nowhere else in this
package: ``Connection._execute``, ``Connection._conn``, ``Connection._cursor``, ``Cursor._impl``.
"""

from __future__ import annotations

import asyncio
import atexit
import time
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyodbc
from aioodbc.connection import Connection
from aioodbc.cursor import Cursor
from pool_core import Verdict

from pool_odbc import _socket
from pool_odbc._dialects import DEFAULT, changes_session, dialect_of
from pool_odbc._worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from pool_odbc._dialects import Dialect
    from pool_odbc._worker import Job

__all__ = ["OdbcConnection"]

T = TypeVar("T")

_ENDING: Final = 1.0  # seconds that the end of the program waits for connections that close
_MOST_HUNG: Final = 16  # connections of this process whose thread hangs in a driver although they were given up
_alive: weakref.WeakSet[OdbcConnection] = weakref.WeakSet()


class OdbcConnection(Connection):  # type: ignore[misc, unused-ignore]
    """What ``OdbcConnectionManager.connect`` returns. To its borrower it is aioodbc's connection.

    Attributes:
        dialect: of the database system at the other end.
        terminated: whether it was dropped: no further call is begun.
    """

    def __init__(self, *, cancel_timeout: float | None, probe: str | None, port: int | None) -> None:
        super().__init__(dsn=None)
        self.dialect: Dialect = DEFAULT
        self.terminated = False
        self._cancel_timeout = cancel_timeout
        self._probe = probe
        self._port = port
        self._worker = Worker("pool-odbc")
        self._raw: pyodbc.Connection | None = None  # as the thread sees it; `_conn` as aioodbc does
        self._socket: socket.socket | None = None
        self._restoring: str | None = None
        self._start: dict[str, Any] = {}  # attributes of pyodbc's connection, as they were at first
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._lost = False
        self._used = False  # since the last reset
        self._changed = False  # likewise, in a way that nothing undoes
        # The pool's task that opened or reset the connection last: what it does further is the customizer's.
        self._preparing: asyncio.Task[Any] | None = None
        self._set_up = False  # it has changed the session
        _alive.add(self)

    # --- calls --------------------------------------------------------------------------------------------------------

    async def _execute(  # pyright: ignore[reportIncompatibleMethodOverride] - aioodbc only awaits what it returns
        self, func: Callable[..., T], *args: Any, **kwargs: Any
    ) -> T:
        """Make one call of pyodbc in the thread: all of aioodbc passes here. A cancel stops it by SQLCancel."""
        self._refuse_if_closed()
        may_change = self._may_change(getattr(func, "__name__", ""), args)
        if self._preparing is asyncio.current_task():
            self._set_up = self._set_up or may_change
        else:
            self._used = True
            self._changed = self._changed or may_change
        job = self._worker.submit(partial(func, *args, **kwargs), getattr(func, "__self__", None))
        try:
            return await job.future
        except pyodbc.Error as error:
            self._lost = self._lost or self.dialect.verdict(error) is Verdict.CLOSE
            raise
        except asyncio.CancelledError:
            self._stop(job)
            raise

    def _refuse_if_closed(self) -> None:
        if self.terminated or self._worker.ended:
            raise _closed()

    def _may_change(self, name: str, args: tuple[Any, ...]) -> bool:
        if name == "set_attr":
            return True
        if self._restoring is not None or not name.startswith("execute") or not (args and isinstance(args[0], str)):
            return False
        return changes_session(args[0], can_roll_back=self.dialect.rollback is not None)

    def _stop(self, job: Job[Any]) -> None:
        """Stop a call that nobody waits for any more. If that does not help in time, drop the connection."""
        if isinstance(job.owner, pyodbc.Cursor):
            if self._worker.cancel(job, partial(_cancel, job.owner)) and self._cancel_timeout is not None:
                self._loop.call_later(self._cancel_timeout, self._terminate_if_running, job)
        elif job.started and not job.finished:
            self.terminate()  # nothing stops a commit or a rollback

    def _terminate_if_running(self, job: Job[Any]) -> None:
        if self._worker.current is job:
            self.terminate()

    async def _own(self, function: Callable[[], T]) -> T:
        """Make one call for the manager. A cancel drops the connection."""
        self._refuse_if_closed()
        job = self._worker.submit(function)
        try:
            return await job.future
        except asyncio.CancelledError:
            self.terminate()
            raise

    async def _cursor(self) -> Cursor:
        self._refuse_if_closed()
        cursor: Cursor = await super()._cursor()
        self._cursors.add(cursor)
        # A cursor that is dropped is closed in the thread: here that would wait for the call that runs there.
        weakref.finalize(cursor, self._worker.forget, partial(_close_cursor, cursor._impl)).atexit = False
        return cursor

    async def execute(self, sql: str, *args: Any) -> Cursor:
        """Execute on a new cursor, which is returned."""
        cursor = await self._cursor()
        await cursor.execute(sql, *args)
        return cursor

    # --- the life of a connection -------------------------------------------------------------------------------------

    async def open(self, string: str, options: Mapping[str, Any]) -> None:
        """Connect, and find out what is at the other end.

        Raises:
            pyodbc.Error: as the driver raises it; 08001 while many earlier connections still hang in it.
        """
        hung = sum(conn.terminated and conn._worker.alive for conn in list(_alive))
        if hung >= _MOST_HUNG:
            raise pyodbc.OperationalError(
                "08001",
                f"[08001] [pool-odbc] {hung} earlier connections still hang in the driver, which cannot be interrupted: the "
                "server or the network does not answer",
            )
        self._conn = await self._own(partial(self._open, string, options))
        self._autocommit = self._start["autocommit"]
        self._preparing = asyncio.current_task()

    def _open(self, string: str, options: Mapping[str, Any]) -> pyodbc.Connection:
        before = _socket.known()
        self._raw = raw = pyodbc.connect(string, **options)
        try:
            self.dialect = dialect_of(str(raw.getinfo(pyodbc.SQL_DBMS_NAME)))
            self._ask(raw)
            if self.dialect.network:
                self._socket = _socket.find(before, partial(self._ask, raw), self._port)
            rows: list[Any] = []
            if self.dialect.remember is not None:
                with raw.cursor() as cursor:
                    rows = cursor.execute(self.dialect.remember).fetchall()
                raw.rollback()
            self._restoring = self.dialect.restoring(rows) if self._takes_attributes(raw) else None
            self._start = {name: getattr(raw, name) for name in ("autocommit", "timeout", "maxwrite")}
        except BaseException:
            self._close_raw()
            raise
        return raw

    def _takes_attributes(self, raw: pyodbc.Connection) -> bool:
        """Whether the driver knows the attributes of the dialect. FreeTDS does not know those of Microsoft's."""
        try:
            for name, value in self.dialect.attributes:
                raw.set_attr(name, value)
        except pyodbc.Error:
            return False
        return True

    def _ask(self, raw: pyodbc.Connection) -> None:
        """One round trip, after which no transaction is open."""
        cursor = raw.cursor()
        try:
            cursor.execute(self._probe or self.dialect.probe).fetchall()
        finally:
            cursor.close()
        if not raw.autocommit:
            raw.rollback()

    async def ask(self) -> None:
        """Prove with a round trip that the server answers.

        Raises:
            pyodbc.Error: it does not.
        """
        raw = self._conn
        if raw is None:
            raise _closed()
        await self._own(partial(self._ask, raw))

    @property
    def broken(self) -> bool:
        """Whether it is closed or lost, or somebody is still using it. No I/O."""
        return (
            self._conn is None
            or self.terminated
            or self._lost
            or self._worker.ended
            or self._worker.in_use
            or (self._socket is not None and not _socket.is_established(self._socket))
        )

    @property
    def used(self) -> bool:
        """Whether there may be anything to reset."""
        return self._used or self._is_a_borrower() or self._worker.current is not None

    @property
    def changed(self) -> bool:
        """Whether the session may have been changed in a way that nothing undoes."""
        return self._changed or (self._set_up and self._is_a_borrower())

    def _is_a_borrower(self) -> bool:
        # A task that has opened the connection and still runs is no task of a pool: it uses what it has opened.
        return self._preparing is not None and not self._preparing.done()

    async def reset(self, *, everything: bool) -> None:
        """Wait for a stopped call, close cursors, roll back, and restore the session if `everything`.

        Raises:
            pyodbc.Error: something of it failed. The connection is to be closed.
        """
        await self._own(partial(self._reset, everything=everything))
        self._used = self._changed = self._set_up = False
        self._preparing = asyncio.current_task()

    def _reset(self, *, everything: bool) -> None:
        raw = self._raw
        assert raw is not None
        for cursor in list(self._cursors):
            _close_cursor(cursor._impl)
            cursor._conn = None
        self._cursors.clear()
        raw.rollback()
        raw.clear_output_converters()
        restore = self._restoring if everything else None
        if restore is not None:
            raw.autocommit = True  # after the rollback: ODBC commits what is open
            for number, value in self.dialect.attributes:
                raw.set_attr(number, value)
        rollback = self.dialect.rollback if raw.autocommit else None
        for statement in (rollback, restore):
            if statement is not None:
                self._run(raw, statement)
        for name, former in self._start.items():
            if getattr(raw, name) != former:
                setattr(raw, name, former)

    def _run(self, raw: pyodbc.Connection, sql: str) -> None:
        cursor = raw.cursor()
        try:
            cursor.execute(sql)
            while cursor.nextset():
                pass
        except pyodbc.Error:
            if not (sql == self.dialect.rollback and self.dialect.network is False):
                raise  # SQLite calls it an error when there is no transaction
        finally:
            _close_cursor(cursor)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._conn is None

    async def close(self) -> None:
        """Stop what runs, disconnect, and end the thread."""
        if self._worker.ended:
            return
        if (job := self._worker.current) is not None:
            self._stop(job)
        try:
            await self._own(self._close_raw)
        finally:
            self._end()

    def terminate(self) -> None:
        """Drop the connection now; its thread closes what is left, and ends. Does not wait.

        Where the socket is not known, a thread that waits for a hung server stays until the driver gives up.
        """
        if self.terminated:
            return
        self.terminated = True
        job, sock = self._worker.current, self._socket
        if sock is not None:
            _socket.shut_down(sock)
        elif job is not None and not self.dialect.network and isinstance(job.owner, pyodbc.Cursor):
            self._worker.cancel(job, partial(_cancel, job.owner))
        self._end()

    def _end(self) -> None:
        self._conn = None
        self._worker.end(self._close_raw, _closed())

    def _close_raw(self) -> None:
        for cursor in list(self._cursors):  # with an open one SQLite's driver does not close
            _close_cursor(cursor._impl)
        raw, self._raw = self._raw, None
        if raw is not None:
            with suppress(pyodbc.Error):
                raw.close()
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def join(self, timeout: float) -> None:
        """Wait for the end of its thread."""
        self._worker.join(timeout)

    def __del__(self) -> None:
        """Close in the thread; aioodbc would block the event loop here."""
        with suppress(AttributeError):  # __init__ has failed
            self._end()


def _closed() -> pyodbc.Error:
    return pyodbc.OperationalError("08003", "[08003] [pool-odbc] the connection is closed")


def _cancel(cursor: pyodbc.Cursor) -> None:
    with suppress(pyodbc.Error):
        cursor.cancel()


def _close_cursor(cursor: pyodbc.Cursor) -> None:
    with suppress(pyodbc.Error):  # closed already, or with its connection
        cursor.close()


def _end_all() -> None:
    """The program ends: let each open connection close in its own thread. What hangs is left behind."""
    connections = list(_alive)
    for conn in connections:
        conn._end()
    deadline = time.monotonic() + _ENDING
    for conn in connections:
        conn.join(max(0.0, deadline - time.monotonic()))


atexit.register(_end_all)
