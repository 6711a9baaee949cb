"""The methods of a manager, for any database system that has an ODBC driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import aioodbc
import pyodbc
from pool_core import ReplaceConnection, Verdict
from pool_core import adapters as base

from pool_odbc._connection import OdbcConnection
from pool_odbc._dialects import passes, state_of
from pool_odbc._settings import Settings, missing

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["OdbcConnectionManager"]

_OWN = base.Options(
    "OdbcConnectionManager",
    {},
    keywords={
        "reset": base.choice("safe", "rollback"),
        "cancel_timeout": base.number(above=0),
        "probe": base.text(),
    },
)


class OdbcConnectionManager:
    """Opens, validates, resets and closes ODBC connections, for ``pool_core.Pool``.

    The connection is aioodbc's (of a class derived from it), with a thread of its own.

    Args:
        url: ``odbc://user:password@host:port/database?driver=NAME&KEYWORD=value``, ``mssql://...`` for SQL Server, or a
            connection string of ODBC, ``DRIVER={...};SERVER=...;UID=...;PWD=...``. None: keywords alone.
        reset: what is restored before the next borrower. ``"safe"``: the session. Where the database system has no
            statement for it (MySQL, SQLite, unknown ones), a connection on which a statement may have changed the
            session is replaced. ``"rollback"``: open transactions and cursors only.
        cancel_timeout: seconds from the cancelling of a query until the driver must have stopped it. Then the
            connection is dropped. None: no limit.
        probe: the query that validates a connection; ``SELECT 1`` if it is not given. Oracle needs
            ``SELECT 1 FROM dual``.
        keywords: ``user``, ``password`` (each may be a callable, also async, which is called for each connection),
            ``host``, ``port``, ``database``, ``driver``, ``dsn``, and any keyword of the driver; ``autocommit`` (default
            False), ``readonly`` and ``timeout`` (seconds for the login; 15 by default) are pyodbc's.

    Raises:
        TypeError, ValueError: settings that are malformed. No message quotes a part of the URL.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        reset: Literal["safe", "rollback"] = "safe",
        cancel_timeout: float | None = 0.8,
        probe: str | None = None,
        **keywords: Any,
    ) -> None:
        _OWN.check({"reset": reset, "cancel_timeout": cancel_timeout, "probe": probe})
        self._reset = reset
        self._cancel_timeout = cancel_timeout
        self._probe = probe
        self._settings = Settings(url, keywords)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.place()}>"

    def update(self, url: str | None = None, **keywords: Any) -> None:
        """Connect differently from now on. Present connections stay; ``pool.evict()`` retires them.

        Args:
            url: replaces all that the former one said; None keeps it.
            keywords: each replaces the former one of its name; the others stay.

        Raises:
            TypeError, ValueError: as when the manager is made. Then nothing is changed.
        """
        self._settings = self._settings.updated(url, keywords)

    async def connect(self) -> aioodbc.Connection:
        """Open a connection in a thread of its own, and prove it by a query.

        Raises:
            DriverMissingError: the ODBC driver is not installed.
            pyodbc.Error: as the driver raises it.
        """
        string, options, password = await self._settings.arguments()
        conn = OdbcConnection(cancel_timeout=self._cancel_timeout, probe=self._probe, port=self._settings.port)
        try:
            with base.dropping_on_failure(conn.terminate):
                await conn.open(string, {"timeout": 15, **options})
        except pyodbc.Error as error:
            failure = self._clear(error, password)
            if failure is error:
                raise
        else:
            return conn
        raise failure

    def _clear(self, error: pyodbc.Error, password: str | None) -> pyodbc.Error:
        """The error in words that help and keep the secret."""
        if state_of(error) in ("IM002", "IM003", "01000") and ("IM002" in str(error) or "open lib" in str(error)):
            values = self._settings.values
            return missing(str(values.get("DRIVER") or values.get("DSN") or values.get("FILEDSN") or ""))
        if "[SQLite]connect failed" in str(error):  # which does not say what could not be opened
            file = self._settings.values.get("DATABASE")
            return type(error)(state_of(error), f"{error.args[1]}: the database file {file!r} cannot be opened")
        if password and any(password in str(part) for part in error.args):
            return type(error)(*(str(part).replace(password, "***") for part in error.args))
        return error

    async def is_valid(self, conn: aioodbc.Connection, /) -> bool:
        """Prove with a query that the server answers."""
        await _ours(conn).ask()
        return True

    def has_broken(self, conn: aioodbc.Connection, /) -> bool:
        """Tell whether it is closed, was dropped by the server, or is still in use by a call that somebody waits for."""
        return not isinstance(conn, OdbcConnection) or conn.broken

    def reset(self, conn: aioodbc.Connection, /) -> Awaitable[None] | None:
        """Close cursors, roll back, restore the session; None where the connection was not used.

        Raises:
            ReplaceConnection: a statement may have changed the session, and nothing restores it.
        """
        ours = _ours(conn)
        if not ours.used:
            return None
        if ours.changed and self._reset == "safe":
            raise ReplaceConnection
        return ours.reset(everything=self._reset == "safe")

    async def close(self, conn: aioodbc.Connection, /) -> None:
        """Disconnect, and end the thread."""
        await conn.close()

    def terminate(self, conn: aioodbc.Connection, /) -> None:
        """Drop the connection. Does not wait."""
        _ours(conn).terminate()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell by SQLSTATE and the database system's own number whether the same connect may succeed later."""
        return base.is_transient(exc, passes)

    def judge(self, exc: Exception, conn: aioodbc.Connection, /) -> Verdict:
        """Tell what an error means for connections: lost, or a server that takes no writes any more."""
        return base.judge(exc, _ours(conn).dialect.verdict)


def _ours(conn: aioodbc.Connection) -> OdbcConnection:
    if not isinstance(conn, OdbcConnection):
        raise TypeError(f"a connection of type {type(conn).__name__} was not opened by OdbcConnectionManager")
    return conn
