"""The private parts of asyncpg that this adapter uses: only this module does, and ``known`` checks for them first."""

from __future__ import annotations

import asyncio
import warnings
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import asyncpg
import asyncpg.transaction

try:
    from asyncpg.protocol.protocol import PreparedStatementState
except ImportError:  # `known` returns False then, at the first connection attempt
    PreparedStatementState: Any = None  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
    Siblings: TypeAlias = Mapping[asyncio.AbstractEventLoop, Iterable[Any]]

__all__ = [
    "cancelled",
    "drop",
    "forget_borrower",
    "forget_statements",
    "is_busy",
    "is_cancelling",
    "known",
    "meant_to_be_read_only",
    "refuses_settings",
    "tailored",
    "tls_was_refused",
    "was_reading_settings",
]

_CALLABLE: Final = (
    *("_mark_stmts_as_closed", "_cancel_current_command"),
    *("_drop_local_statement_cache", "_drop_global_statement_cache"),
    *("_drop_local_type_cache", "_drop_global_type_cache"),
)


def known(conn: Any) -> bool:
    """Tell whether this driver's connections still have what the functions below rely on."""
    try:
        return (
            isinstance(conn._pool_release_ctr, int)
            and conn._top_xact is None
            and conn._transport is not None
            and callable(conn._listeners.clear)
            and callable(conn._log_listeners.clear)
            and conn._protocol._is_cancelling() is False
            and callable(conn._protocol._wait_for_cancellation)
            and all(callable(getattr(conn, name)) for name in _CALLABLE)
            and is_busy(conn) is False
        )
    except (AttributeError, TypeError):
        return False


_IN_USE: Final[list[Any]] = []
"""A prepared statement that is in use for ever; one for all connections."""


def is_busy(conn: Any) -> bool:
    """Return whether an operation is under way, without I/O, in some 3 us.

    ``close_statement`` first checks the protocol's state, and then refuses a statement that is in use before it sends
    anything. Which error it raises gives the answer.
    """
    if not _IN_USE:
        statement = PreparedStatementState("", "", conn._protocol, asyncpg.Record, False)
        statement.attach()
        _IN_USE.append(statement)
    look = conn._protocol.close_statement(_IN_USE[0], None)
    try:
        look.send(None)
    except asyncpg.InternalClientError:
        return False
    except asyncpg.InterfaceError:
        return True
    look.close()
    raise TypeError("this release of asyncpg closes statements in another way")


def is_cancelling(conn: Any) -> bool:
    """Return whether a query was cancelled, and the connection has not been used since.

    Such a connection is not broken: the driver asks the server to cancel, and its next operation waits until the
    server has confirmed it.
    """
    return conn._protocol._is_cancelling() is True


async def cancelled(conn: Any) -> None:
    """Wait until the server has confirmed that a query was cancelled. Raises if that closed the connection."""
    await conn._protocol._wait_for_cancellation()
    if conn.is_closed():
        raise asyncpg.InterfaceError("the server did not confirm in time that a query was cancelled")


def forget_borrower(conn: Any, *, transaction: bool, listeners: bool) -> None:
    """Make the borrower's cursors, prepared statements and transactions unusable.

    They raise from now on. Otherwise a generator that is finalised late could commit the next borrower's transaction.
    asyncpg's own pool counts releases for the same reason.

    Args:
        transaction: also forget the transaction object. A ROLLBACK sent as plain SQL leaves it in place, and the next
            ``conn.transaction()`` would be a savepoint in no transaction.
        listeners: also forget listeners. After UNLISTEN the driver would otherwise believe that it still listens, and
            the next ``add_listener`` would send nothing. A warning names them, as in asyncpg's own pool.
    """
    conn._pool_release_ctr += 1
    if transaction:
        conn._top_xact = None
    if listeners and (conn._listeners or conn._log_listeners):
        channels = ", ".join(map(repr, conn._listeners)) or "the server's log messages"
        conn._listeners.clear()
        conn._log_listeners.clear()
        warnings.warn(
            f"a connection came back to the pool with listeners on {channels}: they are removed. Call remove_listener, "
            "or listen on pool.dedicated_connection()",
            asyncpg.InterfaceWarning,
            stacklevel=2,
        )


def forget_statements(conn: Any) -> None:
    """Forget all prepared statements, of which the server no longer knows any."""
    conn._mark_stmts_as_closed()


def drop(conn: Any) -> None:
    """Drop the socket, on a closed loop too."""
    transport = conn._transport
    try:
        conn.terminate()
    except RuntimeError:
        # asyncio's transport puts its last step off to the loop, which is closed; uvloop has closed the socket with it.
        sock = getattr(transport.get_extra_info("socket"), "_sock", None)
        if sock is not None:
            sock.close()


def tls_was_refused(exc: OSError) -> bool:
    """Return whether the settings demand TLS and the server lacks it: only the driver's message shows this."""
    return type(exc) is ConnectionError and "rejected SSL upgrade" in str(exc)


def was_reading_settings(exc: OSError) -> bool:
    """Return whether a file that the settings name, such as a certificate, could not be read."""
    return any(frame.f_code.co_name == "_parse_connect_arguments" for frame, _ in walk_tb(exc.__traceback__))


def refuses_settings(exc: asyncpg.InterfaceError | asyncpg.InternalClientError) -> bool:
    """Return whether the error is about configuration or authentication, not about a lost connection."""
    if isinstance(exc, asyncpg.InterfaceError):
        return "closed" not in str(exc)
    return "performing authentication" in str(exc)


_DriverTransaction: Any = asyncpg.transaction.Transaction


def meant_to_be_read_only(exc: BaseException) -> bool:
    """Return whether the borrower's own ``transaction(readonly=True)`` caused this error."""
    return getattr(exc, _READ_ONLY, False)


_READ_ONLY: Final = "_pool_postgres_read_only"


class _Transaction(_DriverTransaction):  # type: ignore[misc]
    """A transaction whose end does not hide why it ended."""

    __slots__ = ()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        if self._readonly and isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            setattr(error, _READ_ONLY, True)
        try:
            await super().__aexit__(kind, error, trace)
        except Exception:
            # Where the connection is gone there is nothing left to roll back. What the body raised, a CancelledError
            # above all, goes on as it is.
            if error is None or not connection.is_closed():
                raise


def tailored(base: Any, cancel_timeout: float | None, siblings: Siblings, *, isolated: bool) -> type[Connection]:
    """Derive the class of a manager's connections from asyncpg's or the user's.

    Args:
        base: the class to derive from.
        cancel_timeout: seconds until a cut-off query must be confirmed; None: the driver's way, without end.
        siblings: the manager's connections, by their loops. When asyncpg finds that a table or type was changed, it drops
            the caches of all connections of its own pool; here, of those of the same loop.
        isolated: False: leave out a transaction's isolation level, since a savepoint has none.
    """

    class Tailored(base):  # type: ignore[misc]
        __slots__ = ()

        if base.transaction is asyncpg.Connection.transaction:  # a user's own goes before ours

            def transaction(
                self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
            ) -> _Transaction:
                self._check_open()
                return _Transaction(self, isolation if isolated else None, readonly, deferrable)

        def _drop_global_statement_cache(self) -> None:
            for conn in list(siblings.get(self._loop, ())):
                conn._drop_local_statement_cache()

        def _drop_global_type_cache(self) -> None:
            for conn in list(siblings.get(self._loop, ())):
                conn._drop_local_type_cache()

        def _cancel_current_command(self, *waiters: asyncio.Future[None] | None) -> None:
            super()._cancel_current_command(*waiters)
            if cancel_timeout is None:
                return
            pending = [waiter for waiter in waiters if waiter is not None]
            timer = asyncio.get_running_loop().call_later(cancel_timeout, self.terminate)

            def confirmed(_: asyncio.Future[None]) -> None:
                if all(waiter.done() for waiter in pending):
                    timer.cancel()

            for waiter in pending:
                waiter.add_done_callback(confirmed)

    Tailored.__name__, Tailored.__qualname__, Tailored.__module__ = base.__name__, base.__qualname__, base.__module__
    return cast("type[Connection]", Tailored)
