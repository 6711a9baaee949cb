"""What the managers for tasks and for threads have in common: psycopg's two kinds of connection differ in waiting only."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakKeyDictionary

import psycopg
from pool_core import ReplaceConnection, Verdict, adapters
from pool_core.adapters import boolean, choice

from pool_psycopg import _driver, _postgres
from pool_psycopg._driver import ACTIVE, IDLE, INERROR, INTRANS, UNKNOWN, Template
from pool_psycopg._settings import PsycopgSettings

if TYPE_CHECKING:
    from psycopg.abc import PQGen

__all__ = ["SharedManager"]

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

_STANDBYS: Final = ("standby", "read-only", "prefer-standby")

_logger = logging.getLogger("pool_psycopg")


class SharedManager:
    """The options, and all methods that do not wait for the server."""

    _kind: ClassVar[type]
    _class: type[Any]

    def __init__(
        self,
        conninfo: str | None,
        connect_kwargs: dict[str, Any],
        *,
        reset: str | None,
        open_transaction: str,
        test_transaction: bool,
        connection_class: Any,
    ) -> None:
        choice("rollback", "close").check("open_transaction", open_transaction)
        boolean().check("test_transaction", test_transaction)
        if test_transaction and open_transaction == "close":
            raise ValueError("open_transaction='close' cannot hold in a test transaction, which is open: leave it out")
        if not (isinstance(connection_class, type) and issubclass(connection_class, self._kind)):
            raise TypeError(
                f"connection_class={connection_class!r}: expected a class derived from psycopg.{self._kind.__name__}"
            )
        self._close_open_transactions = open_transaction == "close"
        self._test_transaction = test_transaction
        self._driver_is_known = True
        self._templates: WeakKeyDictionary[Any, Template] = WeakKeyDictionary()
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

    def keep(self, conn: Any, /) -> None:
        """Let ``reset`` restore what the connection object has now: adapters, factories, handlers, autocommit.

        For an ``on_connect`` that registers types or sets factories, at its end. What it sets on the server by SQL is
        reset all the same.
        """
        self._templates[conn] = Template(conn)

    def has_broken(self, conn: Any, /) -> bool:
        """Tell whether the socket is closed, somebody still works on it, or the options do not allow its transaction."""
        status = conn.pgconn.transaction_status
        if status in (ACTIVE, UNKNOWN) or getattr(conn, "pool_psycopg_dropped", False):
            return True
        if (status != IDLE) is not self._test_transaction and (self._close_open_transactions or self._test_transaction):
            return True
        return _driver.has_ended(conn)

    def _checked(self, conn: Any) -> Template:
        """Return what a reset restores, unless the connection cannot be reset for certain."""
        if not self._driver_is_known:
            raise RuntimeError(
                f"psycopg {psycopg.__version__} differs from what pool-psycopg knows, so that no connection can be reset "
                "for certain and each is closed after use: install a version that pool-psycopg allows"
            )
        if what := _driver.left_open(conn):
            raise ReplaceConnection(f"the connection was returned within {what}")
        if (template := self._templates.get(conn)) is None:  # opened elsewhere, and added to the pool
            template = self._templates[conn] = Template(conn)
        return template

    def _is_restored(self, conn: Any, template: Template) -> bool:
        """Restore the connection, if it needs nothing of the server."""
        if self._query or conn.pgconn.transaction_status != IDLE or conn.lock.locked() or template.changed(conn):
            return False
        template.restore_now(conn)
        return True

    def _cleaned(self, conn: Any, template: Template) -> PQGen[None]:
        """Reset the session on the server, step by step."""
        template.restore_now(conn)  # first: what the server says meanwhile is not for the past borrower's handlers
        if self._test_transaction:
            yield from self._check_in(conn)
        else:
            yield from self._end_and_reset(conn, raised=template.raised)

    def _end_and_reset(self, conn: Any, *, raised: bool) -> PQGen[None]:
        status = conn.pgconn.transaction_status
        query = self._query
        if status == INTRANS:
            query = f"{_WROTE}; ROLLBACK; {query}" if query else "ROLLBACK"
        elif status == INERROR:
            # As psycopg does on a rollback: what was prepared may name what is gone.
            query = f"ROLLBACK; {'DEALLOCATE ALL; ' if _driver.forget_statements(conn) else ''}{query}"
        if self._reset == "strict":
            _driver.forget_statements(conn)
        results = (yield from _driver.exchange(conn, query)) if query else []
        if status != INTRANS:
            return
        wrote = results[0].get_value(0, 0) == b"t" if self._query else None
        # A transaction that only read has changed nothing: the driver keeps its prepared statements.
        if wrote is not False and _driver.forget_statements(conn):
            yield from _driver.exchange(conn, "DEALLOCATE ALL")
        if wrote and not raised:
            _logger.warning(
                "a connection was returned with changes that were not committed, and they were rolled back: call "
                "commit(), use a block of conn.transaction(), or connect with autocommit=True"
            )

    def _check_in(self, conn: Any) -> PQGen[None]:
        """Let the test transaction go on from here, or from where the work began that the lease did not finish."""
        renew = f"RELEASE SAVEPOINT {_postgres.SAVEPOINT}; {self._query}; SAVEPOINT {_postgres.SAVEPOINT}"
        if self._reset == "strict":
            _driver.forget_statements(conn)
        if not conn.autocommit or conn.pgconn.transaction_status == INERROR:
            dropped = "; DEALLOCATE ALL" if _driver.forget_statements(conn) else ""
            renew = f"ROLLBACK TO SAVEPOINT {_postgres.SAVEPOINT}{dropped}; {renew}"
        yield from _driver.exchange(conn, renew)

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell by SQLSTATE, by libpq's words and by the system's error whether the same attempt may succeed later.

        Not so: a wrong password, an unknown database, role or host, TLS refused by either side, settings that the
        driver or the server does not take.
        """
        return adapters.is_transient(exc, _heals)

    def judge(self, exc: Exception, conn: Any, /) -> Verdict:
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
