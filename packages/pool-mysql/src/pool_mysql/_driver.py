"""aiomysql's connection, and the few of its privates that this adapter relies on: all are here or in `has_broken`.

Read in aiomysql 0.3.0 to 0.3.2 and run by the tests. Where a later release moves one, what uses it raises: has_broken
then says broken and a reset fails, so that the connection is closed and never lent on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import aiomysql
from aiomysql.connection import CLIENT, charset_by_name
from aiomysql.utils import _lenenc_int

__all__ = ["Connection", "OpenTransactionError", "SessionStateError", "TLSRefusedError", "TestConnection"]

_COM_CHANGE_USER: Final = 0x11
_COM_RESET_CONNECTION: Final = 0x1F
_UNKNOWN_COMMAND: Final = 1047
_SSL_CONNECTION_ERROR: Final = 2026  # the number that MySQL's own client library has for it
# The server's own error numbers; those of the client's side are 2000-2999.
_CLIENT_ERRORS: Final = range(2000, 3000)

# What a reset must bring back, or has to prove untouched. Roles came with MySQL 8.0 and MariaDB 10.0.5; each server reads
# the comment meant for it, so that no version string has to be understood.
_STATE: Final = (
    "SELECT DATABASE(), @@character_set_client, @@character_set_results, @@collation_connection, @@sql_mode, "
    "@@autocommit /*!80000 , CURRENT_ROLE() */ /*M!100005 , CURRENT_ROLE() */"
)
_ROLE: Final = 6  # its place in that row

# The Python side of a session: what a borrower may set on the connection itself, by methods or by assignment.
_ATTRIBUTES: Final = (
    "_charset", "_echo", "_encoding", "_local_infile", "autocommit_mode", "cursorclass", "decoders", "encoders",
    "init_command", "sql_mode", "use_unicode",
)  # fmt: skip


class TLSRefusedError(aiomysql.OperationalError):  # type: ignore[misc]
    """TLS was demanded (``ssl=...``) and the server does not offer it. No login was sent."""


class SessionStateError(aiomysql.OperationalError):  # type: ignore[misc]
    """Session state that cannot be wiped was left on a connection, which is therefore closed."""


class OpenTransactionError(SessionStateError):
    """A connection came back with an open transaction while ``open_transaction="close"``."""


class Connection(aiomysql.Connection):  # type: ignore[misc]
    """aiomysql's own connection, which refuses plain text where TLS was demanded and knows when a reply is half read."""

    _reader: Any = None  # both, so that __del__ finds them after a failed __init__
    _writer: Any = None
    _result: Any = None
    stream: asyncio.StreamWriter | None = None  # also after the driver has forgotten it: for `abort` and `gone`
    half_read = False  # a reply to a query is being read, or reading one has failed in the middle
    clean: tuple[Any, ...] = ()  # the answer to _STATE when the connection was new
    python_side: Mapping[str, Any] = MappingProxyType({})

    # The driver's own steps, each with what it lacks.

    async def _request_authentication(self) -> None:
        # The driver would go on in plain text, and with some login methods send the password readable.
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise TLSRefusedError(
                _SSL_CONNECTION_ERROR,
                "TLS was demanded by the setting ssl, but the server does not offer it: switch TLS on in the server",
            )
        # asyncio's TLS transport, when cancelled at the end of its handshake, waits up to 30 s for a hung server's
        # farewell, and nobody else holds it then. What can be ended is the TCP connection, by a handle of our own.
        handle = self._writer.transport.get_extra_info("socket").dup() if self._ssl_context else None
        try:
            await super()._request_authentication()
        except BaseException:
            if handle is not None:
                with contextlib.suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)
            raise
        finally:
            self.stream = self._writer or self.stream
            if handle is not None:
                handle.close()

    async def _read_query_result(self, unbuffered: bool = False) -> None:
        # When a converter raises, the rows behind are still on their way and has_broken may find nothing in the buffer
        # yet. One of them could even pass for the answer to the next command: sequence numbers wrap at 256.
        self.half_read = True
        try:
            await super()._read_query_result(unbuffered)
        except aiomysql.MySQLError as error:
            # An error that the server sent ends its reply.
            self.half_read = not error.args or not isinstance(error.args[0], int) or error.args[0] in _CLIENT_ERRORS
            raise
        self.half_read = False

    def close(self) -> None:
        self.stream = self._writer or self.stream
        super().close()

    # What the manager asks.

    async def open(self) -> None:
        """Connect and log in. Whatever ends it early, a cancellation too, leaves no socket."""
        try:
            await self._connect()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop the socket, whatever is unsent: a plain close never ends while a hung server takes nothing more."""
        self.stream = self._writer or self.stream
        self._writer = self._reader = None
        if self.stream is not None:
            transport: Any = self.stream.transport
            try:
                transport.abort()
            except RuntimeError:  # the loop is closed: what the transport puts off to its next turn is done here
                transport = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
                with contextlib.suppress(RuntimeError):
                    transport._call_connection_lost(None)

    async def say_goodbye(self) -> None:
        """Send COM_QUIT, if there is still somebody to hear it, and wait until the socket is closed."""
        with contextlib.suppress(OSError):  # gone already: so be it
            try:
                await self.ensure_closed()
            finally:
                self.close()
            if self.stream is not None:
                await self.stream.wait_closed()

    async def remember_session(self) -> None:
        """Note what the new connection is like: the state that `wipe_session` brings back."""
        self.python_side = {name: getattr(self, name) for name in _ATTRIBUTES}
        self.clean = (await self._ask(_STATE))[0]

    async def wipe_session(self, *, log_in_again: bool) -> None:
        """Make the session what it was when new: by COM_CHANGE_USER, or by COM_RESET_CONNECTION.

        Raises: `SessionStateError` where that is impossible, or the server's error.
        """
        self.__dict__.update(self.python_side)
        if self.get_transaction_status():
            # Both commands roll back, except after XA PREPARE: MariaDB then says OK and leaves a session that can
            # write no more. A ROLLBACK is refused in that state, and the refusal closes the connection.
            await self.rollback()
        if log_in_again:
            await self._change_user()
        else:
            await self._reset_connection()
        database, client, results, collation, *_ = self.clean
        settings = [
            f"character_set_client={self._name(client)}",
            f"character_set_results={self._name(results)}",
            f"collation_connection={self._name(collation)}",
        ]
        if self.sql_mode is not None:
            settings.append(f"sql_mode={self.sql_mode}")
        if self.init_command is not None:  # in the order of the driver's own connect
            await self._ask("SET " + ", ".join(settings))
            await self._ask(self.init_command)
            await self.commit()
            settings = []
        if self.autocommit_mode is not None:
            settings.append(f"autocommit={self.autocommit_mode:d}")
        now = (await self._ask(f"SET {', '.join(settings)}; {_STATE}" if settings else _STATE))[0]
        # COM_RESET_CONNECTION leaves the database and the role as they are.
        if now[0] != database and database is not None:
            await self.select_db(database)
            now = (database, *now[1:])
        if now[_ROLE:] != self.clean[_ROLE:]:
            role = self.clean[_ROLE]
            # MySQL returns a list of quoted roles, or the keyword NONE; MariaDB returns a bare name, or NULL.
            ready = role is not None and ("`" in role or role == "NONE")
            await self._ask(f"SET ROLE {role if ready else self._name(role, nothing='NONE')}")
            now = (*now[:_ROLE], *self.clean[_ROLE:])
        if now != self.clean:
            raise SessionStateError(
                f"the session cannot be made what it was when new, {self.clean}: now it is {now}; with a database in the "
                'settings of the manager, or reset="strict", the current database can be brought back'
            )

    # How.

    async def _reset_connection(self) -> None:
        try:
            await self._execute_command(_COM_RESET_CONNECTION, b"")
            await self._read_ok_packet()
        except aiomysql.MySQLError as error:
            if error.args[:1] != (_UNKNOWN_COMMAND,):
                raise
            raise SessionStateError(
                _UNKNOWN_COMMAND,
                "this server does not know COM_RESET_CONNECTION (MySQL from 5.7.3, MariaDB from 10.2.4): "
                'use reset="strict", which it may know, or reset="none"',
            ) from error

    async def _change_user(self) -> None:
        """Log in again on the same socket, as MySQL's mysql_change_user() does."""
        charset: Any = charset_by_name(self._charset)
        # An unknown login method makes the server ask for the account's own, with a fresh challenge.
        parts = [self._user.encode(self._encoding), b"", (self._db or "").encode(self._encoding)]
        payload = b"\0".join(parts) + b"\0" + struct.pack("<H", charset.id) + b"ask\0"
        texts = [text.encode() for pair in self._connect_attrs.items() for text in pair]
        attributes = b"".join(_lenenc_int(len(text)) + text for text in texts)
        await self._execute_command(_COM_CHANGE_USER, payload + _lenenc_int(len(attributes)) + attributes)
        packet = await self._read_packet()
        if packet.is_auth_switch_request():
            packet.read_uint8()
            await self._process_auth(packet.read_string(), packet)

    async def _ask(self, sql: str) -> Any:
        """Run statements and return the rows of the last one."""
        await self.query(sql)
        while self._result.has_next:
            await self.next_result()
        return self._result.rows

    def _name(self, value: str | None, *, nothing: str = "NULL") -> str:
        return nothing if value is None else str(self.escape(value))


class TestConnection(Connection):
    """A connection inside a transaction that is never committed: ``begin``, ``commit`` and ``rollback`` move a savepoint."""

    async def start(self) -> None:
        """Begin the test transaction."""
        await super().begin()
        await self.begin()

    async def begin(self) -> None:
        # A second BEGIN would commit the first. The savepoint of the same name moves here.
        await self._ask("SAVEPOINT pool_core")

    async def commit(self) -> None:
        await self._ask("SAVEPOINT pool_core")

    async def rollback(self) -> None:
        await self._ask("ROLLBACK TO SAVEPOINT pool_core")
