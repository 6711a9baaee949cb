"""The manager: aiomysql's connections for pool-core."""

from __future__ import annotations

import asyncio
import configparser
from collections.abc import Awaitable
from typing import Any, Final, Literal

from pool_core import ReplaceConnection, Verdict, adapters
from pool_core.adapters import boolean, choice

from pool_mysql import _errors
from pool_mysql._internals import Connection, Pipelining, TestConnection
from pool_mysql._settings import Settings

__all__ = ["MySQLConnectionManager"]

_RESET: Final = choice("safe", "strict", "none")
_OPEN_TRANSACTION: Final = choice("rollback", "close")
_TEST_TRANSACTION: Final = boolean()


class MySQLConnectionManager:
    """Opens, validates, resets and closes aiomysql connections, for `pool_core.Pool`.

    A connection is an `aiomysql.Connection`, here of a subclass. The pool's timeouts bound each call.

    Args:
        url: ``mysql://user:password@host:3306/database?charset=utf8mb4``, or ``mariadb://...``. The query may have
            charset, sql_mode, init_command, unix_socket, program_name, auth_plugin, read_default_file,
            read_default_group; as true or false autocommit, use_unicode, local_infile, echo and ssl; and ssl-mode,
            ssl-ca, ssl-cert and ssl-key, which mean what they mean to MySQL's own clients. None: keyword settings only.
        reset: what happens to a returned connection, in the background, before its next use. The README lists what each
            value resets. ``"safe"`` (default): COM_RESET_CONNECTION and the settings, in one round trip. ``"strict"``:
            COM_CHANGE_USER, a new login on the same socket, in three to four; the account and its privileges are those
            of now. ``"none"``: only an open transaction is rolled back.
        open_transaction: what happens to a connection that is returned in a transaction: ``"rollback"`` (default), or
            ``"close"``. With autocommit off (the driver's default), ``"close"`` costs one round trip more, since the
            driver does not know of every transaction.
        test_transaction: for tests. True: each connection begins a transaction that is never committed, and is not
            reset; its ``begin``, ``commit`` and ``rollback`` set a savepoint and go back to it. Default False.
        **settings: keyword arguments of `aiomysql.connect`; they win over the URL. ``user`` and ``password`` may be
            callables, sync or async, which are called for each connection. ``ssl``: an `ssl.SSLContext`, or True for
            Python's default one. A server without TLS is then refused (the driver would go on in plain text). Not
            taken: loop and connect_timeout.

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
        self._settings = Settings(url, settings)
        self._pipelining = Pipelining()
        # What get_transaction_status() must say of a returned connection; None: either is fine.
        self._must_be_in_transaction = True if test_transaction else False if self._close_in_transaction else None

    def update(self, url: str | None = None, **settings: Any) -> None:
        """Change the settings of new connections, for a rotation or a failover; `Pool.evict` retires the present ones.

        Args:
            url: replaces all that the former URL said. None: that stays.
            **settings: keyword arguments of the driver. Each replaces the former one of its name; the others stay.

        Raises:
            TypeError, ValueError: as the constructor; nothing is changed then.
        """
        self._settings = self._settings.updated(url, settings)
        self._pipelining = Pipelining()  # of another server, perhaps

    async def connect(self) -> Connection:
        """Open a connection.

        Raises:
            TLSRefusedError: the server offers no TLS.
            aiomysql.MySQLError: another error of the server or the driver.
            ImportError, TypeError, ValueError: a package is missing; a credential is of no use.
        """
        settings = await self._settings.resolved()
        kind = TestConnection if self._test_transaction else Connection
        try:
            conn = kind(loop=asyncio.get_running_loop(), **settings)
        except configparser.Error as error:  # whose text quotes the file
            raise ValueError(f"read_default_file is not an option file ({type(error).__name__})") from None
        _check_password(conn._password)  # also that of an option file
        await conn.open()
        return conn

    async def is_valid(self, conn: Connection, /) -> bool:
        """Send COM_PING: one round trip. Never reconnects."""
        await conn.ping(reconnect=False)
        return True

    def has_broken(self, conn: Connection, /) -> bool:
        """Tell without I/O whether it is closed, at its end, or has something unread.

        Also broken: a connection in a transaction with ``open_transaction="close"``; one that has lost its test
        transaction (COMMIT, ROLLBACK or DDL was sent as SQL); one that no manager of this class has made.
        """
        # Called twice per get: attributes only, the likeliest first.
        if conn._writer is None:  # closed
            return True
        reader = conn._reader
        if reader._eof or reader._exception is not None or reader._buffer or reader._waiter is not None:
            return True  # ended; reset (after wait_timeout only this tells); unread bytes; another task is reading
        result = conn._result
        if conn.half_read or (result is not None and (result.unbuffered_active or result.has_next)):
            return True  # draining could take for ever
        wanted = self._must_be_in_transaction
        return wanted is not None and conn.get_transaction_status() is not wanted

    def reset(self, conn: Connection, /) -> Awaitable[None] | None:
        """Reset the session (see the class). None: there is nothing to do.

        Raises:
            ReplaceConnection: a prepared XA transaction, a database that was chosen where the settings name none, or an
                open transaction with ``open_transaction="close"``.
            SessionStateError: the server cannot do it.
            aiomysql.MySQLError: an error of the server.
        """
        if self._test_transaction:
            return None
        if self._reset == "safe" and not self._close_in_transaction:
            return conn.reset_session(self._pipelining)
        if self._reset == "none" and conn.get_autocommit() and not conn.get_transaction_status():
            return None
        return self._reset_otherwise(conn)

    async def _reset_otherwise(self, conn: Connection) -> None:
        if self._close_in_transaction and not conn.get_autocommit():
            # The driver learns of a transaction from answers without rows only; that to a ping says it.
            await conn.ping(reconnect=False)
            if conn.get_transaction_status():
                raise ReplaceConnection('the connection was returned in a transaction (open_transaction="close")')
        if self._reset == "none":
            await conn.end_transaction()
        else:
            await conn.reset_session(None if self._reset == "strict" else self._pipelining)

    async def close(self, conn: Connection, /) -> None:
        """Send COM_QUIT and wait until the socket is closed."""
        await conn.quit()

    def terminate(self, conn: Connection, /) -> None:
        """Drop the socket at once, with whatever is still unsent."""
        conn.abort()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell whether connecting may succeed later.

        It will not after: access denied, an unknown database or host name, a wrong setting, TLS that is refused or whose
        certificate does not fit, a login method that the driver lacks, an answer that is not MySQL's.
        """
        return adapters.is_transient(exc, _errors.PERMANENT)

    def judge(self, exc: Exception, conn: Connection, /) -> Verdict:
        """Judge an error that left a block.

        All connections are retired when the server has become read-only or is going down; the connection is closed
        when the server has given it up.
        """
        return adapters.judge(exc, _errors.VERDICTS)

    def __repr__(self) -> str:
        return f"<MySQLConnectionManager {self._settings.place()} reset={self._reset!r}>"


def _check_password(password: str) -> None:
    try:
        password.encode("latin-1")
    except UnicodeEncodeError:  # whose repr quotes the whole password
        raise ValueError(
            "the password has a character outside Latin-1, in which the driver sends it: for a password whose UTF-8 bytes "
            'the server knows, give password.encode().decode("latin-1")'
        ) from None
