"""The manager: aiomysql's connections for pool-core."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, Literal

import aiomysql
from pool_core import ReplaceConnection, Verdict, adapters
from pool_core.adapters import ErrorTable, boolean, choice

from pool_mysql._internals import Connection, Pipelining, TestConnection
from pool_mysql._settings import Settings

__all__ = ["MySQLConnectionManager"]

_RESET: Final = choice("safe", "strict", "none")
_OPEN_TRANSACTION: Final = choice("rollback", "close")
_TEST_TRANSACTION: Final = boolean()


def _number(error: BaseException) -> int | str | None:
    """Return the number of the server's or the driver's error."""
    if not isinstance(error, aiomysql.MySQLError):
        return None
    number = error.args[0] if error.args else None
    return number if isinstance(number, int) else "none"


def _number_in_use(error: BaseException) -> int | str | None:
    """The same, but where the server has one number for several causes, by its words."""
    number = _number(error)
    if number in {1047, 1290}:
        words = str(error).replace("_", "-")
        return f"{number} read-only" if "read-only" in words else f"{number} WSREP" if "WSREP" in words else None
    return number


# The names are those of "MySQL Error Message Reference" (ER_: "Server Error Message Reference", CR_: "Client Error
# Message Reference") and of MariaDB's "Error Codes".
_PERMANENT: Final = ErrorTable[bool](
    (1044, False, "ER_DBACCESS_DENIED_ERROR: no right to use this database"),
    (1045, False, "ER_ACCESS_DENIED_ERROR: wrong user or password"),
    (1049, False, "ER_BAD_DB_ERROR: unknown database"),
    (1064, False, "ER_PARSE_ERROR, in init_command or sql_mode"),
    (1115, False, "ER_UNKNOWN_CHARACTER_SET"),
    (1130, False, "ER_HOST_NOT_PRIVILEGED: this client's host is not allowed"),
    (1142, False, "ER_TABLEACCESS_DENIED_ERROR, in init_command"),
    (1143, False, "ER_COLUMNACCESS_DENIED_ERROR, in init_command"),
    (1146, False, "ER_NO_SUCH_TABLE, in init_command"),
    (1193, False, "ER_UNKNOWN_SYSTEM_VARIABLE, in init_command"),
    (1227, False, "ER_SPECIFIC_ACCESS_DENIED_ERROR, in init_command"),
    (1231, False, "ER_WRONG_VALUE_FOR_VAR, in init_command or sql_mode"),
    (1251, False, "ER_NOT_SUPPORTED_AUTH_MODE: the client does not support the login method"),
    (1273, False, "ER_UNKNOWN_COLLATION"),
    (1275, False, "ER_SERVER_IS_IN_SECURE_AUTH_MODE: an old password format"),
    (1305, False, "ER_SP_DOES_NOT_EXIST, in init_command"),
    (1524, False, "ER_PLUGIN_IS_NOT_LOADED: the account's login method"),
    (1698, False, "ER_ACCESS_DENIED_NO_PASSWORD_ERROR"),
    (1820, False, "ER_MUST_CHANGE_PASSWORD"),
    (1862, False, "ER_MUST_CHANGE_PASSWORD_LOGIN"),
    (2026, False, "CR_SSL_CONNECTION_ERROR: TLS is demanded and not offered"),
    (2054, False, "CR_NOT_IMPLEMENTED: login method"),
    (2059, False, "CR_AUTH_PLUGIN_CANNOT_LOAD: the driver lacks the login method"),
    (2061, False, "CR_AUTH_PLUGIN_ERR: the login method demands TLS"),
    (3118, False, "ER_ACCOUNT_HAS_BEEN_LOCKED (MySQL)"),
    (3159, False, "ER_SECURE_TRANSPORT_REQUIRED (MySQL)"),
    (3955, False, "ER_USER_ACCESS_DENIED_FOR_USER_ACCOUNT_BLOCKED_BY_PASSWORD_LOCK (MySQL)"),
    (4151, False, "ER_ACCOUNT_HAS_BEEN_LOCKED (MariaDB)"),
    (4166, False, "ER_MUST_CHANGE_PASSWORD_LOGIN (MariaDB)"),
    ("none", False, "aiomysql: an answer that is not MySQL's, an unknown login method"),
    (RuntimeError, False, "aiomysql and PyMySQL: what a setting needs is missing"),
    code=_number,
)
# 1792 (ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION) has no row: the program itself began such a transaction. 1045 has none
# either: on an open connection it means a missing right, as for INTO OUTFILE.
_VERDICTS: Final = ErrorTable[Verdict](
    (
        "1290 read-only",
        Verdict.RETIRE_ALL,
        "ER_OPTION_PREVENTS_STATEMENT: --read-only, --super-read-only: a replica now",
    ),
    (1836, Verdict.RETIRE_ALL, "ER_READ_ONLY_MODE: the storage engine is read-only (also Aurora's old primary)"),
    (1053, Verdict.RETIRE_ALL, "ER_SERVER_SHUTDOWN: the server ends all connections"),
    (3032, Verdict.RETIRE_ALL, "ER_SERVER_OFFLINE_MODE (MySQL): the server ends all connections"),
    ("1047 WSREP", Verdict.RETIRE_ALL, "Galera: WSREP has not yet prepared node for application use"),
    ((1152, 1184), Verdict.CLOSE, "ER_ABORTING_CONNECTION, ER_NEW_ABORTING_CONNECTION"),
    (1153, Verdict.CLOSE, "ER_NET_PACKET_TOO_LARGE: the server then closes the connection"),
    (tuple(range(1156, 1162)), Verdict.CLOSE, "ER_NET_PACKETS_OUT_OF_ORDER to ER_NET_WRITE_INTERRUPTED"),
    (1835, Verdict.CLOSE, "ER_MALFORMED_PACKET"),
    (1927, Verdict.CLOSE, "ER_CONNECTION_KILLED (MariaDB)"),
    (3169, Verdict.CLOSE, "ER_SESSION_WAS_KILLED (MySQL)"),
    (4031, Verdict.CLOSE, "ER_CLIENT_INTERACTION_TIMEOUT (MySQL): closed by wait_timeout"),
    ((2006, 2013, 2055), Verdict.CLOSE, "CR_SERVER_GONE_ERROR, CR_SERVER_LOST, CR_SERVER_LOST_EXTENDED"),
    ((2014, 2027), Verdict.CLOSE, "CR_COMMANDS_OUT_OF_SYNC, CR_MALFORMED_PACKET"),
    code=_number_in_use,
)


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
        _check_password(settings.get("password") or "")
        kind = TestConnection if self._test_transaction else Connection
        conn = kind(loop=asyncio.get_running_loop(), **settings)
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
        return adapters.is_transient(exc, _PERMANENT)

    def judge(self, exc: Exception, conn: Connection, /) -> Verdict:
        """Judge an error that left a block.

        All connections are retired when the server has become read-only or is going down; the connection is closed
        when the server has given it up.
        """
        return adapters.judge(exc, _VERDICTS)

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
