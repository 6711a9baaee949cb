"""The methods that the pool calls for PostgreSQL, on psycopg 3."""

from __future__ import annotations

import asyncio
import logging
import socket
import traceback
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

import psycopg
from pool_core import ReplaceConnection, Verdict, adapters
from pool_core.adapters import boolean, choice, dropping_on_failure, number

from pool_psycopg import _driver, _postgres
from pool_psycopg._driver import ACTIVE, IDLE, INERROR, INTRANS, UNKNOWN, Template
from pool_psycopg._settings import PsycopgSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pool_psycopg._driver import Connection

__all__ = ["PsycopgConnectionManager"]

# libpq gives no SQLSTATE for a connection that was not made: only its words say what does not heal by itself. They are
# those of PostgreSQL, libpq and the resolver, in English; others count as transient.
_LASTING_WORDS: Final = (
    *_postgres.LASTING_WORDS,
    "no password supplied",
    "no pg_hba.conf entry",
    "pg_hba.conf rejects",
    "does not exist",
    "permission denied for database",
    "is not permitted to log in",
    "is not currently accepting connections",
    "unrecognized configuration parameter",
    "invalid value for parameter",
    "permission denied to set parameter",
    "server does not support SSL",
    "certificate",
    "invalid port number",
    "invalid connection option",
    "invalid sslmode value",
    *(f"[Errno {getattr(socket, name)}]" for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)),
)
_WROTE: Final = "SELECT pg_catalog.txid_current_if_assigned() IS NOT NULL"

_TURNS: Final = 10
_STANDBYS: Final = ("standby", "read-only", "prefer-standby")

_logger = logging.getLogger("pool_psycopg")


class PsycopgConnectionManager:
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
        choice("rollback", "close").check("open_transaction", open_transaction)
        boolean().check("test_transaction", test_transaction)
        if test_transaction and open_transaction == "close":
            raise ValueError("open_transaction='close' cannot hold in a test transaction, which is open: leave it out")
        if cancel_timeout is not None:
            number(above=0).check("cancel_timeout", cancel_timeout)
        if not (isinstance(connection_class, type) and issubclass(connection_class, psycopg.AsyncConnection)):
            raise TypeError(
                f"connection_class={connection_class!r}: expected a class derived from psycopg.AsyncConnection"
            )
        self._close_open_transactions = open_transaction == "close"
        self._test_transaction = test_transaction
        self._class = _driver.tailored(
            connection_class, cancel_timeout, _postgres.SAVEPOINT if test_transaction else None
        )
        self._driver_is_known = True
        self._templates: WeakKeyDictionary[Connection, Template] = WeakKeyDictionary()
        self._settings = PsycopgSettings(conninfo, connect_kwargs)
        if reset is None:
            reset = "none" if "pgbouncer" in self._settings.values else "safe"
        choice(*_postgres.RESETS).check("reset", reset)
        self._reset = reset
        self._query = _postgres.RESETS[reset]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.place()} reset={self._reset!r}>"

    def update(self, conninfo: str | None = None, **connect_kwargs: Any) -> None:
        """Connect differently from now on: rotated credentials, another server.

        Present connections stay; ``pool.evict()`` retires them.

        Args:
            conninfo: replaces the present one; None keeps it.
            connect_kwargs: replace those of the same name; the others stay.

        Raises:
            TypeError, ValueError: as for a new manager. Then nothing is changed.
        """
        self._settings = self._settings.updated(conninfo, connect_kwargs)

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

    def keep(self, conn: Connection, /) -> None:
        """Let ``reset`` restore what the connection object has now: adapters, factories, handlers, autocommit.

        For an ``on_connect`` that registers types or sets factories, at its end. What it sets on the server by SQL is
        reset all the same.
        """
        self._templates[conn] = Template(conn)

    async def is_valid(self, conn: Connection, /) -> bool:
        """Make one round trip, outside of any transaction."""
        (result,) = await _driver.run(conn, "SELECT 1")
        return result.get_value(0, 0) == b"1"

    def has_broken(self, conn: Connection, /) -> bool:
        """Tell whether the socket is closed, a task still works on it, or the options do not allow its transaction."""
        status = conn.pgconn.transaction_status
        if status in (ACTIVE, UNKNOWN) or getattr(conn, "pool_psycopg_dropped", False):
            return True
        if (status != IDLE) is not self._test_transaction and (self._close_open_transactions or self._test_transaction):
            return True
        return _driver.has_ended(conn)

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
        if not self._driver_is_known:
            raise RuntimeError(
                f"psycopg {psycopg.__version__} differs from what pool-psycopg knows, so that no connection can be reset "
                "for certain and each is closed after use: install a version that pool-psycopg allows"
            )
        if what := _driver.left_open(conn):
            raise ReplaceConnection(f"the connection was returned within {what}")
        if (template := self._templates.get(conn)) is None:  # opened elsewhere, and added to the pool
            template = self._templates[conn] = Template(conn)
        if (
            not self._query
            and conn.pgconn.transaction_status == IDLE
            and not conn.lock.locked()
            and template.fits(conn)
        ):
            template.restore_now(conn)
            return None
        return self._reset_on_server(conn, template)

    async def _reset_on_server(self, conn: Connection, template: Template) -> None:
        await _unlocked(conn)
        template.restore_now(conn)  # first: what the server says meanwhile is not for the past borrower's handlers
        if self._test_transaction:
            await self._check_in(conn)
        else:
            await self._end_and_reset(conn, raised=template.raised)
            await template.restore(conn)
        template.raised = False
        _driver.forget_notifies(conn)

    async def _end_and_reset(self, conn: Connection, *, raised: bool) -> None:
        status = conn.pgconn.transaction_status
        query = self._query
        if status == INTRANS:
            query = f"{_WROTE}; ROLLBACK; {query}" if query else "ROLLBACK"
        elif status == INERROR:
            # As psycopg does on a rollback: what was prepared may name what is gone.
            query = f"ROLLBACK; {'DEALLOCATE ALL; ' if _driver.forget_statements(conn) else ''}{query}"
        if self._reset == "strict":
            _driver.forget_statements(conn)
        results = await _driver.run(conn, query) if query else []
        if status != INTRANS:
            return
        wrote = results[0].get_value(0, 0) == b"t" if self._query else None
        # A transaction that only read has changed nothing: the driver keeps its prepared statements.
        if wrote is not False and _driver.forget_statements(conn):
            await _driver.run(conn, "DEALLOCATE ALL")
        if wrote and not raised:
            _logger.warning(
                "a connection was returned with changes that were not committed, and they were rolled back: call "
                "commit(), use 'async with conn.transaction()', or connect with autocommit=True"
            )

    async def _check_in(self, conn: Connection) -> None:
        """Let the test transaction go on from here, or from where the work began that the lease did not finish."""
        renew = f"RELEASE SAVEPOINT {_postgres.SAVEPOINT}; {self._query}; SAVEPOINT {_postgres.SAVEPOINT}"
        if self._reset == "strict":
            _driver.forget_statements(conn)
        if not conn.autocommit or conn.pgconn.transaction_status == INERROR:
            dropped = "; DEALLOCATE ALL" if _driver.forget_statements(conn) else ""
            renew = f"ROLLBACK TO SAVEPOINT {_postgres.SAVEPOINT}{dropped}; {renew}"
        await _driver.run(conn, renew)

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell by SQLSTATE, by libpq's words and by the system's error whether the same attempt may succeed later.

        Not so: a wrong password, an unknown database, role or host, TLS refused by either side, settings that the
        driver or the server does not take.
        """
        return adapters.is_transient(exc, _heals)

    def judge(self, exc: Exception, conn: Connection, /) -> Verdict:
        """Return by SQLSTATE what an error within a block means for connections.

        RETIRE_ALL for 25006, read-only: the primary has become a standby. Not so where the borrower has set
        ``read_only`` on the connection, or the manager asks for a standby (``target_session_attrs``). CLOSE for errors
        after which this session cannot be used or trusted.
        """
        if (template := self._templates.get(conn)) is not None:
            template.raised = True
        verdict = adapters.judge(exc, _postgres.VERDICTS)
        if verdict is Verdict.RETIRE_ALL and (
            getattr(conn, "read_only", None) or self._settings.values.get("target_session_attrs") in _STANDBYS
        ):
            return Verdict.KEEP
        return verdict


async def _unlocked(conn: Connection) -> None:
    """Wait for a ``notifies()`` loop that the borrower has left: the event loop closes its generator soon."""
    for _ in range(_TURNS):
        if not conn.lock.locked():
            return
        await asyncio.sleep(0)
    raise RuntimeError("the connection was returned while a task uses it: end the task before, or leave its loop")


def _heals(error: BaseException) -> bool | None:
    """Tell whether an error of psycopg's may pass; None: it is none of psycopg's."""
    if not isinstance(error, psycopg.Error):
        return None
    if (answer := _postgres.heals(error)) is not None:
        return answer
    if isinstance(error, psycopg.ProgrammingError | psycopg.NotSupportedError | psycopg.InterfaceError):
        return False
    # With several hosts there is a line for each: one that may come back is enough.
    attempts = [line for line in str(error).splitlines() if line.startswith("- ")] or [str(error)]
    return not all(any(words in attempt for words in _LASTING_WORDS) for attempt in attempts)
