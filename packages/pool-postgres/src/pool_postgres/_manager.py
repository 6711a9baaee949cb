"""The verbs of the pool for PostgreSQL, spoken through asyncpg."""

from __future__ import annotations

import inspect
import math
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import asyncpg

from pool_postgres import _driver, _dsn

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pool_postgres._driver import Connection

__all__ = ["PostgresConnectionManager"]

# What DISCARD ALL does, but for prepared statements and plans: asyncpg keeps its own, and they belong to no borrower.
# One message of several statements is one round trip and one transaction. SET SESSION AUTHORIZATION comes first, since
# the borrower's role may be allowed less; the function is named in full, since search_path may still be the borrower's.
_WIPE: Final = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; "
    "SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
_WIPES: Final = {"safe": _WIPE, "strict": f"{_WIPE}; DISCARD PLANS; DEALLOCATE ALL", "none": ""}
# DISCARD ALL itself is refused in a message of several statements, so it could not follow a ROLLBACK.
_SAVEPOINT: Final = "pool_core_check_in"

_DRIVER_KEYWORDS: Final = frozenset(inspect.signature(asyncpg.connect).parameters) - {"dsn", "loop"}

# SQLSTATE classes that a retry does not heal: not supported, bad value, authorization, no such database, no such
# schema, no such right or object. Class 53 (too many connections) and 57 (starting up) heal.
_LASTING_CLASSES: Final = frozenset({"0A", "22", "28", "3D", "3F", "42"})
_DATABASE_DROPPED: Final = "57P04"
# PgBouncer gives one code to nearly all it has to say; only its words tell what will not pass.
_PGBOUNCER: Final = "08P01"
_LASTING_WORDS: Final = (
    "authentication failed",
    "login rejected",
    "no such database",
    "no such user",
    "SSL required",
    "unsupported startup parameter",
)
_PASSING_TLS_ERRORS: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # cut off, not refused


class PostgresConnectionManager:
    """Opens, tests, wipes and closes asyncpg connections, for ``pool_core.Pool``.

    The lent object is an ``asyncpg.Connection`` (of a class derived from it, see ``cancel_timeout``).

    Args:
        dsn: ``postgresql://user:password@host:port/database?option=value``, also with several hosts. None: keywords,
            or the driver's defaults (environment, password file, service file).
        reset: what is wiped before the next borrower, in one round trip after the borrower has gone on.
            ``"safe"``: role, session authorization, settings, search_path, advisory locks, LISTEN, temporary tables,
            cursors, sequence caches. ``"strict"``: prepared statements and plans too, at the price of preparing
            anew. ``"none"``: nothing, for programs that change no session state, and behind PgBouncer in transaction
            mode. A cut-off query is always waited for, and an open transaction always ended.
        open_transaction: what becomes of a connection that is returned in a transaction. ``"rollback"``: it is rolled
            back. ``"close"``: the connection counts as broken and is closed (diesel's rule).
        test_transaction: for tests. Each connection begins a transaction that is never committed: what one lease
            writes the next sees (with ``max_size=1``), and nothing is left when the pool closes. The code's own
            ``conn.transaction()`` become savepoints, without isolation levels. When a lease leaves the transaction
            failed, it is rolled back to where that lease began. A COMMIT sent as plain SQL costs the connection.
        cancel_timeout: seconds from a query's being cut off (a cancelled task, a query's ``timeout=``) until the
            server must have confirmed it. Then the connection is dropped, so that code which must wait for it, as the
            rollback at the end of ``async with conn.transaction()``, is not held up by a server that hangs. None: wait
            without end, as asyncpg does.
        connect_kwargs: passed to ``asyncpg.connect`` as they are; ``password`` may be a callable.

    Raises:
        TypeError: an unknown keyword, or a wrong type.
        ValueError: a malformed ``dsn`` or option. No message quotes a part of the dsn.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        reset: Literal["safe", "strict", "none"] = "safe",
        open_transaction: Literal["rollback", "close"] = "rollback",
        test_transaction: bool = False,
        cancel_timeout: float | None = 0.8,
        **connect_kwargs: Any,
    ) -> None:
        _check_choice("reset", reset, tuple(_WIPES))
        _check_choice("open_transaction", open_transaction, ("rollback", "close"))
        if type(test_transaction) is not bool:
            raise TypeError(f"test_transaction={test_transaction!r}: give True or False")
        if test_transaction and open_transaction == "close":
            raise ValueError("open_transaction='close' cannot hold in a test transaction, which is open: leave it out")
        if cancel_timeout is not None:
            if isinstance(cancel_timeout, bool) or not isinstance(cancel_timeout, int | float):
                raise TypeError(f"cancel_timeout={cancel_timeout!r}: give seconds, or None for no limit")
            if not 0 < cancel_timeout < math.inf:
                raise ValueError(f"cancel_timeout={cancel_timeout!r}: give seconds above 0, or None for no limit")
        self._reset = reset
        self._queries = (_WIPES[reset], f"ROLLBACK; {_WIPES[reset]}")  # by whether there is a transaction
        self._close_open_transactions = open_transaction == "close"
        self._test_transaction = test_transaction
        self._cancel_timeout = cancel_timeout
        self._driver_is_known = True
        self._settings = self._check(dsn, connect_kwargs)
        if type(self).has_broken is PostgresConnectionManager.has_broken and not (
            test_transaction or self._close_open_transactions
        ):
            # It is asked twice a get: this leaves out one of two calls.
            self.has_broken = asyncpg.Connection.is_closed  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings!r} reset={self._reset!r}>"

    def update(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """Connect differently from now on: rotated credentials, another server.

        Present connections stay; ``pool.evict()`` retires them.

        Args:
            dsn: replaces the present one; None keeps it.
            connect_kwargs: replace those of the same name; the others stay.

        Raises:
            TypeError, ValueError: as at the making. Then nothing is changed.
        """
        self._settings = self._check(
            self._settings.dsn if dsn is None else dsn, {**self._settings.options, **connect_kwargs}
        )

    async def connect(self) -> Connection:
        """Open a connection. Whatever asyncpg raises is raised unchanged."""
        settings = self._settings
        conn: Connection = await asyncpg.connect(
            settings.dsn, **{**settings.options, "connection_class": settings.connection_class}
        )
        self._driver_is_known = _driver.known(conn)
        if self._test_transaction:
            try:
                await conn.transaction().start()
                await conn.execute(f"SAVEPOINT {_SAVEPOINT}")
            except BaseException:
                conn.terminate()
                raise
        return conn

    async def is_valid(self, conn: Connection, /) -> bool:
        """One round trip. It is a plain statement, since a prepared one is two round trips on its first use."""
        status: str = await conn.execute("SELECT 1")
        return status == "SELECT 1"

    def has_broken(self, conn: Connection, /) -> bool:
        """Tell whether the socket is closed, or the transaction in a state that the options do not allow.

        A cut-off query is no breakage: ``reset`` waits until the server has confirmed it.
        """
        # In this order: after terminate() asyncpg can no longer be asked about the transaction.
        return conn.is_closed() or (
            (self._test_transaction or self._close_open_transactions)
            and conn.is_in_transaction() is not self._test_transaction
        )

    async def close(self, conn: Connection, /) -> None:
        """Say goodbye, and wait until the server has closed its side."""
        await conn.close()

    def terminate(self, conn: Connection, /) -> None:
        """Drop the socket."""
        _driver.drop(conn)

    def reset(self, conn: Connection, /) -> Awaitable[None] | None:
        """Wipe what ``reset`` names, roll back an open transaction, wait for a cut-off query.

        None only with ``reset="none"``, where none of it is needed.
        """
        if not self._driver_is_known:
            raise RuntimeError(
                f"asyncpg {asyncpg.__version__} differs from what pool-postgres knows, so that no connection can be wiped "
                "for certain and each is closed after use: install a version that pool-postgres allows"
            )
        _driver.forget_borrower(conn, transaction=not self._test_transaction, listeners=self._reset != "none")
        if self._reset == "strict":
            _driver.forget_statements(conn)
        if self._test_transaction:
            return self._check_in(conn)
        if _driver.is_cancelling(conn):
            return self._reset_when_cancelled(conn)
        query = self._queries[conn.is_in_transaction()]
        return cast("Awaitable[None]", conn.execute(query)) if query else None

    async def _reset_when_cancelled(self, conn: Connection) -> None:
        # Only when the server has confirmed the cancel is it known whether the transaction is still open.
        await _driver.cancelled(conn)
        if self._close_open_transactions and conn.is_in_transaction():
            raise RuntimeError("a query was cut off within a transaction, and open_transaction='close' was chosen")
        if query := self._queries[conn.is_in_transaction()]:
            await conn.execute(query)

    async def _check_in(self, conn: Connection) -> None:
        """Let the test transaction go on from here, or from where the lease began if the lease left it failed."""
        renew = f"RELEASE SAVEPOINT {_SAVEPOINT}; {self._queries[False]}; SAVEPOINT {_SAVEPOINT}"
        try:
            await conn.execute(renew)
        except asyncpg.InFailedSQLTransactionError:
            await conn.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}; {renew}")

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell by SQLSTATE and by the system's error whether the same connect may succeed later.

        Not so: a wrong password, an unknown database, role or host, TLS refused by either side, settings that the
        driver or the server does not take.
        """
        if isinstance(exc, asyncpg.PostgresError):
            state = exc.sqlstate or ""
            if state == _PGBOUNCER:
                return not any(words in str(exc) for words in _LASTING_WORDS)
            return state[:2] not in _LASTING_CLASSES and state != _DATABASE_DROPPED
        if isinstance(exc, socket.gaierror):
            return exc.errno == socket.EAI_AGAIN
        if isinstance(exc, ssl.SSLError):
            return isinstance(exc, _PASSING_TLS_ERRORS)
        if isinstance(exc, OSError):
            return not (_driver.tls_was_refused(exc) or _driver.was_reading_settings(exc))
        if isinstance(exc, asyncpg.InterfaceError | asyncpg.InternalClientError):
            return not _driver.refuses_settings(exc)
        return not isinstance(exc, TypeError | ValueError | OverflowError)

    def _check(self, dsn: str | None, options: dict[str, Any]) -> _Settings:
        """Check what can be checked without I/O. Raises TypeError, ValueError."""
        dsn = _dsn.readable(dsn)
        _dsn.check(dsn)
        if unknown := options.keys() - _DRIVER_KEYWORDS:
            names = ", ".join(map(repr, sorted(unknown)))
            raise TypeError(
                f"{names}: neither an option of {type(self).__name__} nor a keyword that asyncpg.connect takes"
            )
        password = options.get("password")
        if not (password is None or isinstance(password, str) or callable(password)):
            raise TypeError(f"password is of type {type(password).__name__}: give a string or a callable")
        base = options.get("connection_class", asyncpg.Connection)
        if not (isinstance(base, type) and issubclass(base, asyncpg.Connection)):
            raise TypeError(f"connection_class={base!r}: give a class derived from asyncpg.Connection")
        connection_class = _driver.tailored(base, self._cancel_timeout, isolated=not self._test_transaction)
        return _Settings(dsn, options, connection_class)


class _Settings:
    """How to connect. No repr shows it: a part of it is secret."""

    __slots__ = ("connection_class", "dsn", "options")

    def __init__(self, dsn: str | None, options: dict[str, Any], connection_class: type[Connection]) -> None:
        self.dsn = dsn
        self.options = options
        self.connection_class = connection_class

    def __repr__(self) -> str:
        return _dsn.place(self.dsn, self.options)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")
