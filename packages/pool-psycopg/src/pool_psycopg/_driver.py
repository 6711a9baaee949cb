"""What this adapter needs of psycopg beyond its documented interface: all of it is here, and ``known`` probes it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import psycopg
from psycopg import errors, generators, pq
from psycopg.adapt import AdaptersMap

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

    Connection: TypeAlias = psycopg.AsyncConnection[Any]

__all__ = [
    "ACTIVE",
    "IDLE",
    "INERROR",
    "INTRANS",
    "UNKNOWN",
    "Template",
    "drop",
    "exchange",
    "forget_notifies",
    "forget_statements",
    "has_ended",
    "known",
    "left_open",
    "run",
    "shut",
    "tailored",
]

ACTIVE: Final = pq.TransactionStatus.ACTIVE
IDLE: Final = pq.TransactionStatus.IDLE
INERROR: Final = pq.TransactionStatus.INERROR
INTRANS: Final = pq.TransactionStatus.INTRANS
UNKNOWN: Final = pq.TransactionStatus.UNKNOWN

_MOST_READS: Final = 8  # of an idle connection's socket at a time: a flood of notifications must not hold up the loop
_SESSION: Final = ("autocommit", "isolation_level", "read_only", "deferrable")  # set by methods, outside a transaction
_ATTRIBUTES: Final = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")
_READABLE: Final = getattr(select, "POLLIN", 1)


def known(conn: Any) -> bool:
    """Tell whether this driver's connections still have what the functions below rely on."""
    try:
        return (
            conn._num_transactions == 0
            and conn._tpc is None
            and conn._pipeline is None
            and callable(conn._prepared.clear)
            and callable(conn._prepared._to_flush.clear)
            and isinstance(conn._notice_handlers, list)
            and isinstance(conn._notify_handlers, list)
            and hasattr(conn, "_adapters")
            and callable(conn._try_cancel)
        )
    except AttributeError:
        return False


def exchange(conn: Any, query: str) -> PQGen[list[PGresult]]:
    """Run SQL in one message, outside of what the driver does by itself: no BEGIN before it, nothing prepared.

    The steps are the same with and without an event loop: the connection's ``wait`` runs them, under its lock.

    Raises:
        psycopg.Error: the server's error.
    """
    conn.pgconn.send_query(query.encode())
    results: list[PGresult] = yield from generators.execute(conn.pgconn)
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result, encoding=conn.info.encoding)
    return results


async def run(conn: Connection, query: str) -> list[PGresult]:
    """Run ``exchange``."""
    async with conn.lock:
        return await conn.wait(exchange(conn, query))


def has_ended(conn: Any) -> bool:
    """Tell whether the server has ended an idle connection: psycopg looks at the socket only while it waits.

    Nothing is sent. What the server has said by itself, as a notification, is kept for the next borrower to read.
    """
    pgconn = conn.pgconn
    try:
        for _ in range(_MOST_READS):
            if not _is_readable(pgconn.socket):
                return False
            if conn.lock.locked():
                return False  # whoever has the lock waits for these bytes
            pgconn.consume_input()
    except (psycopg.Error, OSError, ValueError):
        return True
    return False


if hasattr(select, "poll"):

    def _is_readable(fileno: int) -> bool:
        poll = select.poll()
        poll.register(fileno, _READABLE)
        return bool(poll.poll(0))

else:  # pragma: no cover - Windows

    def _is_readable(fileno: int) -> bool:
        return bool(select.select([fileno], [], [], 0)[0])


def left_open(conn: Any) -> str | None:
    """Name what an object of the past borrower could still act through, or None.

    A generator that is closed late would otherwise commit or roll back the next borrower's transaction.
    """
    if conn._pipeline is not None or conn.pgconn.pipeline_status != pq.PipelineStatus.OFF:
        return "a pipeline"
    if conn._num_transactions:
        return "a transaction block"
    if conn._tpc is not None:
        return "a two-phase transaction"
    return None


def forget_statements(conn: Any) -> bool:
    """Forget all prepared statements. Returns whether the server has any, which must then be deallocated."""
    found = bool(conn._prepared.clear())
    conn._prepared._to_flush.clear()
    return found


def forget_notifies(conn: Any) -> None:
    """Forget the notifications that no borrower has read yet."""
    if (backlog := getattr(conn, "_notifies_backlog", None)) is not None:  # older ones have none
        backlog.clear()


class Template:
    """The Python side of a connection: what of it a borrower may change, as it was."""

    __slots__ = ("_adapters", "_attributes", "_handlers", "_session", "raised")

    def __init__(self, conn: Any) -> None:
        self.raised = False  # an error has left the block of the present borrower
        self._session = {name: getattr(conn, name) for name in _SESSION}
        self._attributes = {name: getattr(conn, name) for name in _ATTRIBUTES}
        self._handlers = (tuple(conn._notice_handlers), tuple(conn._notify_handlers))
        self._adapters = AdaptersMap(conn.adapters)

    def changed(self, conn: Any) -> list[tuple[str, Any]]:
        """Return what ``restore_now`` cannot restore: what to set back, and to what, when no transaction is open."""
        return [(name, value) for name, value in self._session.items() if getattr(conn, name) != value]

    def restore_now(self, conn: Any) -> None:
        """Restore all that needs no lock of the connection."""
        for name, value in self._attributes.items():
            setattr(conn, name, value)
        conn._notice_handlers[:], conn._notify_handlers[:] = self._handlers
        conn._adapters = AdaptersMap(self._adapters)  # copies nothing until somebody registers


def drop(conn: Any) -> None:
    """Drop the socket, on a closed loop too."""
    pgconn = conn.pgconn
    with suppress(psycopg.Error, OSError, ValueError, RuntimeError):
        fileno = pgconn.socket
        loop = asyncio.get_running_loop()
        if loop.remove_reader(fileno) | loop.remove_writer(fileno):
            # A task waits for this socket, and looks at it again within 0.1 s by the driver's own timer. Were it closed
            # now, the task could by then be looking at a new socket of the same number.
            conn.pool_psycopg_dropped = True
            shut(fileno)
            return
    pgconn.finish()


def shut(fileno: int, inode: int | None = None) -> None:
    """End the traffic of a socket, so that whoever waits for it finds its end; it is the driver that closes it.

    Args:
        fileno: its number.
        inode: what tells this socket from another one that has got the same number since; None: no thread can have
            closed it.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(fileno)) as sock:
        if inode is None or os.fstat(sock.fileno()).st_ino == inode:
            sock.shutdown(socket.SHUT_RDWR)


def tailored(base: Any, cancel_timeout: float | None, savepoint: str | None) -> type[Connection]:
    """Derive the connection class that a manager opens from psycopg's or the user's.

    Args:
        base: the class to derive from.
        cancel_timeout: seconds until a query that was cut off must have ended; None: the driver's way, up to 10 s.
        savepoint: for a test transaction: what commit and rollback move or return to, instead of ending the transaction.
    """

    class Bounded(base):  # type: ignore[misc]
        pool_psycopg_dropped = False
        _cut_off: asyncio.TimerHandle | None = None

        async def wait(self, *args: Any, **options: Any) -> Any:
            try:
                return await super().wait(*args, **options)
            finally:
                if self._cut_off is not None:
                    self._cut_off.cancel()
                    self._cut_off = None

        async def _try_cancel(self, *, timeout: float = 5.0) -> None:
            # The driver calls it when a query is cut off, and then waits for the query's end.
            if cancel_timeout is not None:
                self._cut_off = asyncio.get_running_loop().call_later(cancel_timeout, shut, self.pgconn.socket)
                timeout = min(timeout, cancel_timeout)
            try:
                await super()._try_cancel(timeout=timeout)
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)  # they hold the socket of the request to cancel
                raise

    class Held(Bounded):
        async def commit(self) -> None:
            if self._num_transactions or self._tpc:
                await super().commit()  # refuses it
            elif self.pgconn.transaction_status == INERROR:
                await self.rollback()  # as the server does with a COMMIT then
            else:
                await run(self, f"RELEASE SAVEPOINT {savepoint}; SAVEPOINT {savepoint}")

        async def rollback(self) -> None:
            if self._num_transactions or self._tpc:
                await super().rollback()  # refuses it
            else:
                await run(self, f"ROLLBACK TO SAVEPOINT {savepoint}")
                if forget_statements(self):
                    await run(self, "DEALLOCATE ALL")

    made = Held if savepoint else Bounded
    made.__name__, made.__qualname__, made.__module__ = base.__name__, base.__qualname__, base.__module__
    return cast("type[Connection]", made)
