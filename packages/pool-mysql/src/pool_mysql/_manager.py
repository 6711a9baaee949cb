"""The manager: aiomysql's connections for pool-core."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Awaitable
from typing import Any, Final, Literal, TypeAlias, get_args

import aiomysql

from pool_mysql._driver import Connection, OpenTransactionError, TestConnection
from pool_mysql._settings import Settings

__all__ = ["MySQLConnectionManager"]

Reset: TypeAlias = Literal["safe", "strict", "none"]
OnOpenTransaction: TypeAlias = Literal["rollback", "close"]

# Errors of a connect that the same connect will meet again, by MySQL's and MariaDB's numbers.
_PERMANENT: Final = frozenset(
    {
        1044,  # no access to this database
        1045,  # access denied: user, password
        1049,  # unknown database
        1064,  # syntax, in init_command or sql_mode
        1115,  # unknown character set
        1130,  # this client's host is not allowed
        1142,  # command denied, in init_command
        1143,  # column access denied, in init_command
        1146,  # no such table, in init_command
        1193,  # unknown system variable, in init_command
        1227,  # privilege missing, in init_command
        1231,  # a value that a variable cannot take
        1250,  # this login method is not supported by the client
        1251,  # the same, older
        1273,  # unknown collation
        1275,  # the server wants the old password format
        1305,  # no such function, in init_command
        1524,  # the account's login plugin is not loaded
        1698,  # access denied, no password
        1820,  # the password has to be changed first
        1862,  # the password has expired
        2026,  # TLS demanded and refused
        2054,  # login method not implemented
        2059,  # the driver lacks the account's login plugin
        2061,  # the login plugin failed
        3118,  # account locked (MySQL)
        3159,  # the server demands TLS (MySQL)
        3955,  # account blocked after too many failures (MySQL)
        4151,  # access denied: account is locked (MariaDB)
        4166,  # password expired (MariaDB)
    }
)


class MySQLConnectionManager:
    """Opens, tests, wipes and closes aiomysql connections, for `pool_core.Pool`.

    Every connect is the driver's own (`aiomysql.Connection`, here a subclass of it); the pool's deadlines bound it. A
    connection that was not made by a manager of this class has no known state to go back to: it counts as broken.

    Args:
        url: ``mysql://user:password@host:3306/database?charset=utf8mb4&autocommit=true``, or ``mariadb://...``; with
            %xx where a part has one of ``/ ? # @``. Behind ``?`` may stand the driver's settings charset, sql_mode,
            init_command, unix_socket, program_name, auth_plugin, read_default_file, read_default_group, and, as true
            or false, autocommit, use_unicode, local_infile, echo and ssl. None: keyword settings only.
        reset: what is done to a returned connection, in the background, before it is lent again.
            ``"safe"`` (default): COM_RESET_CONNECTION and the settings again: two round trips.
            ``"strict"``: COM_CHANGE_USER, a new login on the same socket: three to four; the account and its privileges
            are those of now. ``"none"``: only an open transaction is rolled back; all other state is left to the next
            borrower. The README lists what each wipes.
        open_transaction: ``"rollback"`` (default) or ``"close"``: what happens to a connection that comes back with a
            transaction open. With autocommit off (the driver's default), closing costs one round trip more, since then
            the driver does not know of every transaction.
        test_transaction: True: each connection begins a transaction that is never committed, and is not wiped between
            borrowers; its ``begin``, ``commit`` and ``rollback`` set and go back to a savepoint. For tests.
        **settings: the driver's keyword arguments as `aiomysql.connect` takes them; they win over the URL. ``user`` and
            ``password`` may be callables, ordinary or async, called for every connect. ``ssl``: an `ssl.SSLContext`, or
            True for Python's default one; a server without TLS is then refused (the driver would go on in plain text).
            Not taken: loop, connect_timeout.

    Raises:
        ValueError, TypeError: for a bad URL or setting, at once; no text shows the password.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        reset: Reset = "safe",
        open_transaction: OnOpenTransaction = "rollback",
        test_transaction: bool = False,
        **settings: Any,
    ) -> None:
        _one_of("reset", reset, get_args(Reset))
        _one_of("open_transaction", open_transaction, get_args(OnOpenTransaction))
        if not isinstance(test_transaction, bool):
            raise TypeError(f"test_transaction={test_transaction!r}: give True or False")
        self._settings = Settings(url, settings)
        self._reset = reset
        self._close_in_transaction = open_transaction == "close"
        self._test_transaction = test_transaction
        # What get_transaction_status() must say of a returned connection; None: either is fine.
        self._must_be_in_transaction = True if test_transaction else False if self._close_in_transaction else None

    def update(self, url: str | None = None, **settings: Any) -> None:
        """Change the settings for new connections (rotation, failover); `Pool.evict` retires those there are.

        Args:
            url: replaces all that the former URL said. None: it stays.
            **settings: the driver's keyword arguments; each replaces the former one of its name, the others stay.

        Raises:
            ValueError, TypeError: as the constructor; then nothing is changed.
        """
        self._settings = self._settings.updated(url, settings)

    async def connect(self) -> Connection:
        """Open one connection. Raises the driver's errors, and `TLSRefusedError`."""
        settings = self._settings.for_driver()
        for name in ("user", "password"):
            if callable(settings.get(name)):
                settings[name] = await _called(name, settings[name])
        kind = TestConnection if self._test_transaction else Connection
        conn = kind(loop=asyncio.get_running_loop(), **settings)
        _check_password(conn._password)
        await conn.open()
        try:
            await conn.remember_session()
            if isinstance(conn, TestConnection):
                await conn.start()
        except BaseException:
            conn.abort()
            raise
        return conn

    async def is_valid(self, conn: Connection, /) -> bool:
        """Ask the server by COM_PING: one round trip. Never reconnects."""
        await conn.ping(reconnect=False)
        return True

    def has_broken(self, conn: Connection, /) -> bool:
        """Tell whether it is closed, at its end, or has something unread: without I/O, some 300 ns.

        Also broken: a connection in a transaction with ``open_transaction="close"``; one that has lost its test
        transaction (COMMIT, ROLLBACK or DDL was sent as SQL); one that no manager of this class has made.
        """
        # Asked twice per get: attributes only, cheapest and likeliest first, no call that can be spared.
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
        """Wipe what the borrower left (see the class). Raises what makes the connection unfit to be lent again."""
        if self._test_transaction:
            return None
        if self._reset == "none" and conn.get_autocommit() and not conn.get_transaction_status():
            return None
        return self._wipe(conn)

    async def _wipe(self, conn: Connection) -> None:
        if self._close_in_transaction and not conn.get_autocommit():
            # The driver learns of a transaction from answers without rows only; that to a ping says it.
            await conn.ping(reconnect=False)
            if conn.get_transaction_status():
                raise OpenTransactionError(
                    'the connection came back with an open transaction (open_transaction="close")'
                )
        if self._reset == "none":
            await conn.rollback()
        else:
            await conn.wipe_session(log_in_again=self._reset == "strict")

    async def close(self, conn: Connection, /) -> None:
        """Send COM_QUIT and wait until the socket is closed."""
        await conn.say_goodbye()

    def terminate(self, conn: Connection, /) -> None:
        """Drop the socket at once, with whatever is still unsent."""
        conn.abort()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell whether the same connect may succeed later.

        It will not after: access denied, an unknown database, a wrong setting, a TLS refusal or certificate that does not
        fit, a login method that the driver lacks, an answer that is not MySQL's.
        """
        cause = exc.__cause__
        if isinstance(cause, ssl.SSLError):
            return isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)  # the server went away meanwhile
        if isinstance(exc, aiomysql.MySQLError):
            number = exc.args[0] if exc.args else None
            return isinstance(number, int) and number not in _PERMANENT
        # Mistakes in the program, or a package that is missing. What a credential's callable raises may pass.
        return not isinstance(exc, ValueError | TypeError | LookupError | AttributeError | RuntimeError)

    def __repr__(self) -> str:
        return f"<MySQLConnectionManager {self._settings!r} reset={self._reset!r}>"


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, allowed))}")


async def _called(name: str, credential: Any) -> str:
    value = credential()
    if inspect.isawaitable(value):
        value = await value
    if not isinstance(value, str):
        raise TypeError(f"the callable for {name} returned {type(value).__name__}: it has to return a str")
    return value


def _check_password(password: str) -> None:
    try:
        password.encode("latin-1")
    except UnicodeEncodeError:  # whose repr quotes the whole password
        raise ValueError(
            "the password has a character outside Latin-1, in which the driver sends it: for a password whose UTF-8 bytes "
            'the server knows, give password.encode().decode("latin-1")'
        ) from None
