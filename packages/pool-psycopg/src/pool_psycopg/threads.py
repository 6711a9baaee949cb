"""PostgreSQL for ``pool_core.threads``: psycopg's blocking connections, with the rules of the asynchronous manager."""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast

import psycopg
from pool_core.adapters import dropping_on_failure

from pool_psycopg import _driver, _postgres
from pool_psycopg._shared import SharedManager

if TYPE_CHECKING:
    from typing import TypeAlias

    from psycopg.abc import PQGen

    Connection: TypeAlias = psycopg.Connection[Any]

__all__ = ["PsycopgConnectionManager"]


class PsycopgConnectionManager(SharedManager):
    """Opens, validates, resets and closes psycopg's blocking connections, for ``pool_core.threads.Pool``.

    The arguments and their meaning are those of ``pool_psycopg.PsycopgConnectionManager``, with these exceptions: there
    is no ``cancel_timeout``, since a call of a thread cannot be cancelled; callable credentials are ordinary functions;
    and ``connection_class`` is a class derived from ``psycopg.Connection``.

    Raises:
        TypeError: an unknown keyword, or a wrong type.
        ValueError: a malformed ``conninfo`` or option. No message quotes a part of the connection string.
    """

    _kind = psycopg.Connection
    _class: type[Connection]

    def __init__(
        self,
        conninfo: str | None = None,
        *,
        reset: Literal["safe", "strict", "none"] | None = None,
        open_transaction: Literal["rollback", "close"] = "rollback",
        test_transaction: bool = False,
        connection_class: Any = psycopg.Connection,
        **connect_kwargs: Any,
    ) -> None:
        if "cancel_timeout" in connect_kwargs:
            raise TypeError(
                "cancel_timeout is an option of pool_psycopg.PsycopgConnectionManager, whose tasks can be cancelled; a "
                "call of a thread cannot: leave it out"
            )
        super().__init__(
            conninfo,
            connect_kwargs,
            reset=reset,
            open_transaction=open_transaction,
            test_transaction=test_transaction,
            connection_class=connection_class,
        )
        self._class = _tailored(connection_class, test_transaction=test_transaction)

    def connect(self) -> Connection:
        """Open a connection. Whatever psycopg raises is raised unchanged."""
        try:
            conn: Any = self._class.connect("", **self._settings.resolved_at_once())
        except BaseException as error:
            # The driver's frames hold the half-open socket for as long as this traceback is kept.
            traceback.clear_frames(error.__traceback__)
            raise
        with dropping_on_failure(conn.pgconn.finish):
            with suppress(OSError):  # Windows: it is no file
                conn.pool_psycopg_inode = os.fstat(conn.pgconn.socket).st_ino
            self._driver_is_known = _driver.known(conn)
            if self._test_transaction:
                _follow(conn, _driver.exchange(conn, f"BEGIN; SAVEPOINT {_postgres.SAVEPOINT}"))
            self.keep(conn)
        return cast("Connection", conn)

    def is_valid(self, conn: Connection, /) -> bool:
        """Make one round trip, outside of any transaction."""
        (result,) = _follow(conn, _driver.exchange(conn, "SELECT 1"))
        return bool(result.get_value(0, 0) == b"1")

    def is_clean(self, conn: Connection, /) -> bool:
        """Return whether nothing needs the server, which can be with ``reset="none"`` only; then restore the object."""
        return not self._query and self._is_restored(conn, self._checked(conn))

    def reset(self, conn: Connection, /) -> None:
        """Reset what ``reset`` names, roll back an open transaction, restore the connection object.

        Raises:
            ReplaceConnection: an object of the borrower's is still in a transaction block or a pipeline.
            psycopg.Error: an error of the server.
        """
        template = self._checked(conn)
        if conn.lock.locked():  # waiting for it could take for ever
            raise RuntimeError(
                "the connection was returned while a thread or a notifies() loop uses it: end that before"
            )
        _follow(conn, self._cleaned(conn, template))
        if not self._test_transaction:
            for name, value in template.changed(conn):
                getattr(conn, f"set_{name}")(value)
        template.raised = False
        _driver.forget_notifies(conn)

    def close(self, conn: Connection, /) -> None:
        """Close the connection. The server is told, and not waited for."""
        conn.pgconn.finish()

    def terminate(self, conn: Any, /) -> None:
        """End the traffic of the socket at once: a call that is blocked in another thread raises.

        Nothing is closed or freed that the other thread may be using: that is done when nobody has the connection.
        """
        conn.pool_psycopg_dropped = True
        with suppress(psycopg.Error):  # it is closed
            _driver.shut(conn.pgconn.socket, getattr(conn, "pool_psycopg_inode", None))


def _follow(conn: Any, steps: PQGen[Any]) -> Any:
    """Make the steps of a conversation with the server."""
    with conn.lock:
        return conn.wait(steps)


def _tailored(base: Any, *, test_transaction: bool) -> type[Connection]:
    """Derive the connection class that a manager opens from psycopg's or the user's."""

    class Dropped(base):  # type: ignore[misc]
        pool_psycopg_dropped = False
        pool_psycopg_inode: int | None = None

        def __del__(self) -> None:
            if self.pool_psycopg_dropped:
                self.pgconn.finish()  # as terminate() could not; psycopg would warn
            super().__del__()

    class Held(Dropped):
        def commit(self) -> None:
            if self._num_transactions or self._tpc:
                super().commit()  # refuses it
            elif self.pgconn.transaction_status == _driver.INERROR:
                self.rollback()  # as the server does with a COMMIT then
            else:
                _follow(
                    self,
                    _driver.exchange(self, f"RELEASE SAVEPOINT {_postgres.SAVEPOINT}; SAVEPOINT {_postgres.SAVEPOINT}"),
                )

        def rollback(self) -> None:
            if self._num_transactions or self._tpc:
                super().rollback()  # refuses it
            else:
                _follow(self, _driver.exchange(self, f"ROLLBACK TO SAVEPOINT {_postgres.SAVEPOINT}"))
                if _driver.forget_statements(self):
                    _follow(self, _driver.exchange(self, "DEALLOCATE ALL"))

    made = Held if test_transaction else Dropped
    made.__name__, made.__qualname__, made.__module__ = base.__name__, base.__qualname__, base.__module__
    return cast("type[Connection]", made)
