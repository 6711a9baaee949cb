"""MySQL and MariaDB for `pool_core.threads`: PyMySQL's connections, with the settings and tables of the asynchronous manager."""

# pyright: reportAttributeAccessIssue=false
# PyMySQL makes many of its attributes outside of __init__.

from __future__ import annotations

import contextlib
import inspect
import select
import socket
import ssl as tls
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Literal

import pymysql
from pool_core import ReplaceConnection, Verdict, adapters
from pool_core.adapters import boolean, choice
from pymysql.constants import CLIENT, SERVER_STATUS
from pymysql.err import MySQLError

from pool_mysql import _errors
from pool_mysql._session import (
    CONVERTERS,
    STATE,
    SessionStateError,
    State,
    TLSRefusedError,
    check_state,
    settings_statement,
    way_back,
)
from pool_mysql._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connection", "MySQLConnectionManager", "SessionStateError", "TLSRefusedError"]

_COM_QUERY: Final = 0x03
_COM_RESET_CONNECTION: Final = 0x1F
_UNKNOWN_COMMAND: Final = 1047
_UNKNOWN_COLLATION: Final = 1273
_WRONG_XA_STATE: Final = 1399
_SSL_CONNECTION_ERROR: Final = 2026
_RESET: Final = choice("safe", "strict", "none")
_OPEN_TRANSACTION: Final = choice("rollback", "close")
_TEST_TRANSACTION: Final = boolean()
_PARAMETERS: Final = inspect.signature(pymysql.connections.Connection.__init__).parameters.keys()
# What a borrower may set on the connection itself.
_ATTRIBUTES: Final = (
    "autocommit_mode",
    "charset",
    "cursorclass",
    "encoding",
    "init_command",
    "sql_mode",
    "use_unicode",
)


class Connection(pymysql.connections.Connection):  # type: ignore[misc]
    """PyMySQL's connection. It refuses plain text where TLS is demanded."""

    # PyMySQL's own, which its type stubs lack.
    server_capabilities: int
    server_status: int
    _sock: socket.socket | None
    _execute_command: Callable[[int, bytes], None]
    _read_ok_packet: Callable[[], Any]
    _force_close: Callable[[], None]

    _demands_tls = False
    _mode: str | None = None
    _result: Any
    _clean: State = ()
    _settings = ""
    _python_side: dict[str, Any]

    def __init__(self, *, sql_mode: str | None = None, **settings: Any) -> None:
        self._mode = sql_mode
        self._demands_tls = bool(settings.get("ssl"))
        super().__init__(**settings)

    def _request_authentication(self) -> None:
        # The driver may go on in plain text, and with some login methods send the password readable.
        if self._demands_tls and not self.server_capabilities & CLIENT.SSL:
            raise TLSRefusedError(
                _SSL_CONNECTION_ERROR,
                "TLS was demanded by the setting ssl, but the server does not offer it: switch TLS on in the server",
            )
        super()._request_authentication()  # pyright: ignore[reportAttributeAccessIssue]

    # What the manager calls.

    def get_transaction_status(self) -> bool:
        """Return whether the last answer said that a transaction is open (aiomysql's method)."""
        return bool(self.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)

    def remember_session(self) -> None:
        """Note the state of the new connection, and prepare the query that brings it back."""
        if self._mode is not None:
            self.query(f"SET sql_mode={self._mode}")  # as aiomysql sends it: an expression
        self._python_side = {name: getattr(self, name) for name in _ATTRIBUTES if hasattr(self, name)}
        self._python_side |= {name: copy(getattr(self, name)) for name in CONVERTERS}
        self._clean = self._read_state()
        self._settings = settings_statement(self._clean, self._mode, self.autocommit_mode)
        self._result, self._affected_rows = None, 0

    def reset_session(self) -> None:
        """Bring the session back to its state when new: COM_RESET_CONNECTION and the settings."""
        self._restore_python_side()
        if self.get_transaction_status():
            self.end_transaction()
        try:
            self._execute_command(_COM_RESET_CONNECTION, b"")
            self._read_ok_packet()
        except MySQLError as error:
            if error.args[0] != _UNKNOWN_COMMAND:
                raise
            raise SessionStateError(
                _UNKNOWN_COMMAND,
                "this server does not know COM_RESET_CONNECTION (MySQL from 5.7.3, MariaDB from 10.2.4): "
                'use reset="strict", or reset="none"',
            ) from error
        if not self._set():
            for statement in way_back(self._clean):  # PyMySQL sends one at a time
                self._ask(statement)
            if not self._set():
                msg = "the borrower chose a database, and the manager's settings name none to return to"
                raise ReplaceConnection(msg)
            check_state(self._clean, self._read_state())
        if self.init_command is not None:  # as the driver's connect does
            self._ask(self.init_command)
            self.commit()
        self._result, self._affected_rows = None, 0

    def end_transaction(self) -> None:
        """Roll back. Raises ReplaceConnection after XA PREPARE, where the server refuses that."""
        try:
            self.rollback()
        except MySQLError as error:
            if error.args[0] != _WRONG_XA_STATE:
                raise
            raise ReplaceConnection("the connection was returned with a prepared XA transaction") from error

    def abort(self) -> None:
        """End the TCP connection, so that a call that another thread is blocked in ends, too.

        The socket's descriptor is closed by the thread that uses it, or by nobody's: a number that another thread still
        uses must not be given to another file.
        """
        self._closed = True
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                # For TLS, too: SSLSocket.shutdown() would touch the state that another thread uses.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def has_unread(self) -> bool:
        """Return whether the server has said something that nobody asked for, such as the end of the connection."""
        sock = self._sock
        if sock is None or isinstance(sock, tls.SSLSocket):  # whose bytes may be TLS's own
            return sock is None
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))

    # How.

    def _set(self) -> bool:
        """Send the settings. False: the database or the role is another one."""
        try:
            self.query(self._settings)
        except MySQLError as error:
            if error.args[0] != _UNKNOWN_COLLATION:
                raise
            return False
        return True

    def _read_state(self) -> State:
        self.__dict__.update(use_unicode=False, decoders={})
        try:
            self.query(STATE)
            row: State = tuple(self._result.rows[0])
        finally:
            self._restore_python_side()
        return row

    def _restore_python_side(self) -> None:
        self.__dict__.update(self._python_side)
        for name in CONVERTERS:
            self.__dict__[name] = copy(self._python_side[name])

    def _ask(self, sql: str) -> None:
        self.query(sql)
        while self._result.has_next:
            self.next_result()


class TestConnection(Connection):
    """A connection inside a transaction that is never committed: ``begin``, ``commit`` and ``rollback`` move a savepoint."""

    _begun = False

    def remember_session(self) -> None:
        super().remember_session()
        super().begin()
        self._begun = True
        self.begin()

    def begin(self) -> None:
        # A second BEGIN would commit the first. The savepoint of the same name moves here.
        if self._begun:
            self.query("SAVEPOINT pool_core")
        else:
            super().begin()

    def commit(self) -> None:
        if self._begun:
            self.query("SAVEPOINT pool_core")
        else:
            super().commit()

    def rollback(self) -> None:
        self.query("ROLLBACK TO SAVEPOINT pool_core")


class MySQLConnectionManager:
    """Opens, validates, resets and closes PyMySQL connections, for `pool_core.threads.Pool`.

    The arguments and their meaning are those of `pool_mysql.MySQLConnectionManager`, with these exceptions:
    ``reset="strict"`` closes a returned connection (PyMySQL cannot log in again on the same socket), ``**settings`` are
    PyMySQL's keyword arguments as far as aiomysql has them too, and callable credentials are ordinary functions.

    Raises:
        TypeError, ValueError: for a bad URL or setting. No text shows the password.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        reset: Literal["safe", "strict", "none"] = "safe",
        open_transaction: Literal["rollback", "close"] = "rollback",
        test_transaction: bool = False,
        **settings: Any,
    ) -> None:
        self._reset = _RESET.check("reset", reset)
        self._close_in_transaction = _OPEN_TRANSACTION.check("open_transaction", open_transaction) == "close"
        self._test_transaction = _TEST_TRANSACTION.check("test_transaction", test_transaction)
        self._settings = _checked(Settings(url, settings))
        self._must_be_in_transaction = True if test_transaction else False if self._close_in_transaction else None

    def update(self, url: str | None = None, **settings: Any) -> None:
        """Change the settings of new connections: see `pool_mysql.MySQLConnectionManager.update`."""
        self._settings = _checked(self._settings.updated(url, settings))

    def connect(self) -> Connection:
        """Open a connection.

        Raises:
            TLSRefusedError: the server offers no TLS.
            pymysql.MySQLError: another error of the server or the driver.
        """
        settings = self._settings.resolved_at_once()
        if "db" in settings:
            settings["database"] = settings.pop("db")
        if settings.get("ssl") is True:
            settings["ssl"] = tls.create_default_context()
        kind = TestConnection if self._test_transaction else Connection
        try:
            conn = kind(**settings)
        except RuntimeError as error:
            if "cryptography" not in str(error):
                raise
            raise ImportError(
                "the login method of this account encrypts the password with RSA on a connection without TLS, which needs "
                "the package cryptography: install cryptography, or set ssl=True"
            ) from error
        try:
            conn.remember_session()
        except BaseException:
            conn._force_close()
            raise
        return conn

    def is_valid(self, conn: Connection, /) -> bool:
        """Send COM_PING: one round trip. Never reconnects."""
        conn.ping(reconnect=False)
        return True

    def has_broken(self, conn: Connection, /) -> bool:
        """Tell without waiting whether it is closed, at its end, or has something unread; or its transaction is wrong."""
        if conn._closed or conn._sock is None:
            return True
        result = conn._result
        if result is not None and (result.unbuffered_active or result.has_next):
            return True
        wanted = self._must_be_in_transaction
        return (wanted is not None and conn.get_transaction_status() is not wanted) or conn.has_unread()

    def is_clean(self, conn: Connection, /) -> bool:
        """With ``reset="none"``: return whether no transaction is open. A test transaction is never reset."""
        if self._test_transaction:
            return True
        return self._reset == "none" and bool(conn.get_autocommit()) and not conn.get_transaction_status()

    def reset(self, conn: Connection, /) -> None:
        """Reset the session (see the class).

        Raises:
            ReplaceConnection: ``reset="strict"``; a prepared XA transaction; a database that was chosen where the
                settings name none; an open transaction with ``open_transaction="close"``.
            SessionStateError: the server cannot do it.
            pymysql.MySQLError: an error of the server.
        """
        if self._close_in_transaction and not conn.get_autocommit():
            # The driver learns of a transaction from answers without rows only; that to a ping says it.
            conn.ping(reconnect=False)
            if conn.get_transaction_status():
                raise ReplaceConnection('the connection was returned in a transaction (open_transaction="close")')
        if self._reset == "strict":
            raise ReplaceConnection('reset="strict"')
        if self._reset == "none":
            conn.end_transaction()
        else:
            conn.reset_session()

    def close(self, conn: Connection, /) -> None:
        """Send COM_QUIT and close the socket."""
        if conn._closed:
            conn._force_close()
        else:
            conn.close()

    def terminate(self, conn: Connection, /) -> None:
        """End the TCP connection at once: a call that is blocked in another thread raises."""
        conn.abort()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell whether connecting may succeed later: see `pool_mysql.MySQLConnectionManager.is_transient`."""
        return adapters.is_transient(exc, _errors.PERMANENT)

    def judge(self, exc: Exception, conn: Connection, /) -> Verdict:
        """Judge an error that left a block: see `pool_mysql.MySQLConnectionManager.judge`."""
        return adapters.judge(exc, _errors.VERDICTS)

    def __repr__(self) -> str:
        return f"<MySQLConnectionManager {self._settings.place()} reset={self._reset!r}>"


def _checked(settings: Settings) -> Settings:
    """Refuse what aiomysql has and PyMySQL has not."""
    for name in settings.values:
        if name != "db" and name not in _PARAMETERS:
            raise TypeError(f"{name} is an option of aiomysql, for pool_mysql.MySQLConnectionManager; leave it out")
    return settings
