"""The methods that the pool calls for PostgreSQL, on psycopg 3."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any, Final, Literal

import psycopg
from pool_core.adapters import dropping_on_failure, number

from pool_psycopg import _driver, _postgres
from pool_psycopg._shared import SharedManager

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pool_psycopg._driver import Connection, Template

__all__ = ["PsycopgConnectionManager"]

_TURNS: Final = 10


class PsycopgConnectionManager(SharedManager):
    """Opens, validates, resets and closes psycopg's connections, for ``pool_core.Pool``.

    The pool's connections are ``psycopg.AsyncConnection`` objects (of a class derived from it, see ``cancel_timeout``).

    Args:
        conninfo: ``postgresql://user:password@host:port/database?option=value``, or ``host=... dbname=...``, also with
            several hosts. None: keywords, or libpq's defaults (environment, password file, service file).
        reset: what is reset before the next borrower, in one round trip after the borrower has gone on.
            ``"safe"``: role, session authorization, settings, search_path, advisory locks, LISTEN, temporary tables,
            cursors, sequence caches. ``"strict"``: prepared statements and plans too. ``"none"``: nothing of these, for
            programs that change no session state, and behind PgBouncer in transaction mode. An open transaction is
            always ended, and what a borrower can set on the connection object always restored: autocommit, factories,
            adapters, handlers, the prepare threshold. None (default): ``"none"`` with ``pgbouncer=true`` in the URL,
            else ``"safe"``.
        open_transaction: what becomes of a connection that is returned in a transaction. ``"rollback"``: it is rolled
            back. ``"close"``: the connection counts as broken and is closed (diesel's rule).
        test_transaction: for tests. Each connection begins a transaction that is never committed: what one lease
            writes the next sees (with ``max_size=1``), and nothing is left when the pool closes. ``commit`` and
            ``rollback`` of the code under test end at a savepoint, and ``conn.transaction()`` becomes one.
        cancel_timeout: seconds from a query's being cut off (a cancelled task) until the server must have ended it.
            Then the connection is dropped, and the caller goes on. None: as psycopg does, up to 10 s.
        connection_class: a class derived from ``psycopg.AsyncConnection``.
        connect_kwargs: passed to ``psycopg.AsyncConnection.connect`` as they are, so libpq's parameters, ``autocommit``,
            ``row_factory`` and the like. ``user`` and ``password`` may be callables, also async; they are called for
            each connection.

    Raises:
        TypeError: an unknown keyword, or a wrong type.
        ValueError: a malformed ``conninfo`` or option. No message quotes a part of the connection string.
    """

    _kind = psycopg.AsyncConnection
    _class: type[Connection]

    def __init__(
        self,
        conninfo: str | None = None,
        *,
        reset: Literal["safe", "strict", "none"] | None = None,
        open_transaction: Literal["rollback", "close"] = "rollback",
        test_transaction: bool = False,
        cancel_timeout: float | None = 0.8,
        connection_class: Any = psycopg.AsyncConnection,
        **connect_kwargs: Any,
    ) -> None:
        if cancel_timeout is not None:
            number(above=0).check("cancel_timeout", cancel_timeout)
        super().__init__(
            conninfo,
            connect_kwargs,
            reset=reset,
            open_transaction=open_transaction,
            test_transaction=test_transaction,
            connection_class=connection_class,
        )
        self._class = _driver.tailored(
            connection_class, cancel_timeout, _postgres.SAVEPOINT if test_transaction else None
        )

    async def connect(self) -> Connection:
        """Open a connection. Whatever psycopg raises is raised unchanged."""
        try:
            conn: Connection = await self._class.connect("", **await self._settings.resolved())
        except BaseException as error:
            # The driver's frames hold the half-open socket for as long as this traceback is kept.
            traceback.clear_frames(error.__traceback__)
            raise
        with dropping_on_failure(lambda: _driver.drop(conn)):
            self._driver_is_known = _driver.known(conn)
            if self._test_transaction:
                await _driver.run(conn, f"BEGIN; SAVEPOINT {_postgres.SAVEPOINT}")
            self.keep(conn)
        return conn

    async def is_valid(self, conn: Connection, /) -> bool:
        """Make one round trip, outside of any transaction."""
        (result,) = await _driver.run(conn, "SELECT 1")
        return result.get_value(0, 0) == b"1"

    async def close(self, conn: Connection, /) -> None:
        """Close the connection. The server is told, and not waited for."""
        _driver.drop(conn)

    def terminate(self, conn: Connection, /) -> None:
        """Drop the socket."""
        _driver.drop(conn)

    def reset(self, conn: Connection, /) -> Awaitable[None] | None:
        """Reset what ``reset`` names, roll back an open transaction, restore the connection object.

        None only with ``reset="none"``, where nothing needs the server.

        Raises:
            ReplaceConnection: an object of the borrower's is still in a transaction block or a pipeline.
        """
        template = self._checked(conn)
        return None if self._is_restored(conn, template) else self._reset_on_server(conn, template)

    async def _reset_on_server(self, conn: Connection, template: Template) -> None:
        await _unlocked(conn)
        async with conn.lock:
            await conn.wait(self._cleaned(conn, template))
        if not self._test_transaction:
            for name, value in template.changed(conn):
                await getattr(conn, f"set_{name}")(value)
        template.raised = False
        _driver.forget_notifies(conn)


async def _unlocked(conn: Connection) -> None:
    """Wait for a ``notifies()`` loop that the borrower has left: the event loop closes its generator soon."""
    for _ in range(_TURNS):
        if not conn.lock.locked():
            return
        await asyncio.sleep(0)
    raise RuntimeError("the connection was returned while a task uses it: end the task before, or leave its loop")
