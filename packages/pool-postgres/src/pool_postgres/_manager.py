"""The manager: asyncpg's connections for pool-core."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import asyncpg
from pool_core import ReplaceConnection, Verdict
from pool_core.adapters import boolean, choice, dropping_on_failure, is_transient, judge, number

from pool_postgres import _internals
from pool_postgres._errors import heals
from pool_postgres._postgres import RESETS, SAVEPOINT, VERDICTS
from pool_postgres._settings import PostgresSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pool_postgres._internals import Connection

__all__ = ["PostgresConnectionManager"]

_STANDBYS: Final = ("standby", "read-only", "prefer-standby")


class PostgresConnectionManager:
    """Opens, validates, resets and closes asyncpg connections, for ``pool_core.Pool``.

    A lease yields an ``asyncpg.Connection`` (of a class derived from it, see ``cancel_timeout``).

    Args:
        dsn: ``postgresql://user:password@host:port/database?option=value``, also with several hosts. None: keywords,
            or the driver's defaults (environment, password file, service file). Options that neither the driver nor
            the README's table knows are server settings.
        reset: what is reset between borrowers, in one round trip for which the borrower does not wait.
            ``"safe"``: role, session authorization, settings, search_path, advisory locks, LISTEN, temporary tables,
            cursors, sequence caches. ``"strict"``: also prepared statements and plans, which must then be prepared
            anew. ``"none"``: nothing, for programs that change no session state, and behind PgBouncer in transaction
            mode. Each mode waits for a cancelled query and ends an open transaction. None (default): ``"none"`` with
            ``pgbouncer=true`` in the dsn, else ``"safe"``.
        open_transaction: what happens to a connection that is returned in a transaction. ``"rollback"``: it is rolled
            back. ``"close"``: the connection counts as broken and is closed (diesel's rule).
        test_transaction: for tests. Each connection begins a transaction that is never committed: the next lease sees
            what one lease wrote (with ``max_size=1``), and nothing is left when the pool closes. The code's own
            ``conn.transaction()`` become savepoints, without isolation levels. When a lease leaves the transaction
            failed, it is rolled back to where that lease began. After a COMMIT sent as plain SQL the connection is
            closed.
        cancel_timeout: seconds that the server has to confirm that a query was cancelled (by a cancelled task, or a
            query's ``timeout=``). Then the connection is terminated, so that a hung server does not block code which
            waits for it, such as the rollback at the end of ``async with conn.transaction()``. None: no limit, as in
            asyncpg.
        connect_kwargs: the keywords of ``asyncpg.connect``; they win over the dsn, and None means "not given".
            ``user`` and ``password`` may be callables, sync or async, which are called for each connection.

    Raises:
        TypeError: an unknown keyword, or a wrong type.
        ValueError: a malformed ``dsn`` or option. No message quotes a part of the dsn.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        reset: Literal["safe", "strict", "none"] | None = None,
        open_transaction: Literal["rollback", "close"] = "rollback",
        test_transaction: bool = False,
        cancel_timeout: float | None = 0.8,
        **connect_kwargs: Any,
    ) -> None:
        choice("rollback", "close").check("open_transaction", open_transaction)
        boolean().check("test_transaction", test_transaction)
        if test_transaction and open_transaction == "close":
            raise ValueError("open_transaction='close' cannot hold in a test transaction, which is open: leave it out")
        if cancel_timeout is not None:
            number(above=0).check("cancel_timeout", cancel_timeout)
        self._cancel_timeout = cancel_timeout
        self._close_open_transactions = open_transaction == "close"
        self._test_transaction = test_transaction
        self._driver_is_known = True
        self._connections: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakSet[Connection]]
        self._connections = weakref.WeakKeyDictionary()
        self._use(PostgresSettings(dsn, connect_kwargs))
        if reset is None:
            reset = "none" if self._settings.values.get("pgbouncer") else "safe"
        choice(*RESETS).check("reset", reset)
        self._reset = reset
        self._queries = (RESETS[reset], f"ROLLBACK; {RESETS[reset]}")  # by whether there is a transaction
        if type(self).has_broken is PostgresConnectionManager.has_broken and not (
            test_transaction or self._close_open_transactions
        ):
            # It is called twice a get: this leaves out one of two calls.
            self.has_broken = asyncpg.Connection.is_closed  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.place()} reset={self._reset!r}>"

    def update(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """Connect differently from now on: rotated credentials, another server.

        Present connections stay; ``pool.evict()`` retires them.

        Args:
            dsn: replaces everything that the former one set. None: it stays.
            connect_kwargs: each replaces the former one of the same name; the others stay, and win over the dsn.

        Raises:
            TypeError, ValueError: as when the manager is made. Then nothing is changed.
        """
        self._use(self._settings.updated(dsn, connect_kwargs))

    def _use(self, settings: PostgresSettings) -> None:
        base = settings.values.get("connection_class", asyncpg.Connection)
        self._connection_class = _internals.tailored(
            base, self._cancel_timeout, self._connections, isolated=not self._test_transaction
        )
        self._settings = settings

    async def connect(self) -> Connection:
        """Open a connection. Errors of asyncpg are raised unchanged."""
        kind = self._connection_class
        arguments = await self._settings.resolved()
        conn: Connection = await asyncpg.connect(**{**arguments, "connection_class": kind})
        with dropping_on_failure(conn.terminate):
            self._driver_is_known = _internals.known(conn)
            if self._test_transaction:
                await conn.transaction().start()
                await conn.execute(f"SAVEPOINT {SAVEPOINT}")
        self._connections.setdefault(asyncio.get_running_loop(), weakref.WeakSet()).add(conn)
        return conn

    async def is_valid(self, conn: Connection, /) -> bool:
        """One round trip. It is a plain statement, since a prepared one is two round trips on its first use."""
        status: str = await conn.execute("SELECT 1")
        return status == "SELECT 1"

    def has_broken(self, conn: Connection, /) -> bool:
        """Tell whether the socket is closed, or the transaction in a state that the options do not allow.

        A cancelled query does not count as broken: ``reset`` waits until the server has confirmed the cancel.
        """
        # In this order: after terminate() asyncpg's is_in_transaction() raises.
        return conn.is_closed() or (
            (self._test_transaction or self._close_open_transactions)
            and conn.is_in_transaction() is not self._test_transaction
        )

    async def close(self, conn: Connection, /) -> None:
        """Close the session, and wait until the server has closed its side."""
        await conn.close()

    def terminate(self, conn: Connection, /) -> None:
        """Drop the socket at once."""
        _internals.drop(conn)

    def reset(self, conn: Connection, /) -> Awaitable[None] | None:
        """Reset what ``reset`` names, roll back an open transaction, wait for a cancelled query.

        Returns None only with ``reset="none"``, if there is nothing to do.
        """
        if not self._driver_is_known:
            raise RuntimeError(
                f"asyncpg {asyncpg.__version__} differs from what pool-postgres knows, so that no connection can be reset "
                "for certain and each is closed after use: install a version that pool-postgres allows"
            )
        _internals.forget_borrower(conn, transaction=not self._test_transaction, listeners=self._reset != "none")
        if self._reset == "strict":
            _internals.forget_statements(conn)
        if self._test_transaction:
            return self._check_in(conn)
        if _internals.is_cancelling(conn):
            return self._reset_when_cancelled(conn)
        if query := self._queries[conn.is_in_transaction()]:
            return cast("Awaitable[None]", conn.execute(query))
        if _internals.is_busy(conn):  # in the other modes execute() raises
            raise asyncpg.InterfaceError("a connection came back while a task of its borrower still uses it")
        return None

    async def _reset_when_cancelled(self, conn: Connection) -> None:
        # Only when the server has confirmed the cancel is it known whether the transaction is still open.
        await _internals.cancelled(conn)
        if self._close_open_transactions and conn.is_in_transaction():
            raise ReplaceConnection("a query was cut off within a transaction, and open_transaction='close' was chosen")
        if query := self._queries[conn.is_in_transaction()]:
            await conn.execute(query)

    async def _check_in(self, conn: Connection) -> None:
        """Let the test transaction go on from here, or from where the lease began if the lease left it failed."""
        renew = f"RELEASE SAVEPOINT {SAVEPOINT}; {self._queries[False]}; SAVEPOINT {SAVEPOINT}"
        try:
            await conn.execute(renew)
        except asyncpg.InFailedSQLTransactionError:
            await conn.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}; {renew}")

    def is_transient(self, exc: Exception, /) -> bool:
        """Return, by SQLSTATE or the system's error, whether the same connection attempt may succeed later.

        False for a wrong password, an unknown database, role or host, TLS refused by either side, and settings that
        the driver or the server does not accept.
        """
        return is_transient(exc, heals)

    def judge(self, exc: Exception, conn: Connection, /) -> Verdict:
        """Return, by SQLSTATE, what an error within a block means for connections.

        RETIRE_ALL for 25006, read-only: the primary has become a standby. KEEP for 25006 if the borrower used
        ``conn.transaction(readonly=True)``, or ``target_session_attrs`` names a standby. CLOSE for errors after which
        this session cannot be used or trusted, see the README.
        """
        verdict = judge(exc, VERDICTS)
        if verdict is Verdict.RETIRE_ALL and (
            _internals.meant_to_be_read_only(exc) or self._settings.values.get("target_session_attrs") in _STANDBYS
        ):
            return Verdict.KEEP
        return verdict
