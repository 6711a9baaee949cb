"""aiomysql's connection, and the few of its private parts that this adapter relies on: all are here or in `has_broken`.

Read in aiomysql 0.3.0 to 0.3.2 and run by the tests. If a later release moves one, the code that uses it raises:
has_broken then means broken, and a reset fails, so that the pool closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Mapping
from copy import copy
from types import MappingProxyType
from typing import Any, Final

import aiomysql
from aiomysql.connection import CLIENT, charset_by_name
from aiomysql.utils import _lenenc_int
from pool_core import ReplaceConnection
from pool_core.adapters import dropping_on_failure
from pymysql.protocol import OKPacketWrapper

from pool_mysql._session import (
    ATTRIBUTES,
    CONVERTERS,
    STATE,
    SessionStateError,
    TLSRefusedError,
    check_state,
    settings_statement,
    way_back,
)

__all__ = ["Connection", "Pipelining", "SessionStateError", "TLSRefusedError", "TestConnection"]

_COM_QUERY: Final = 0x03
_COM_CHANGE_USER: Final = 0x11
_COM_RESET_CONNECTION: Final = 0x1F
_ACCESS_DENIED: Final = 1045
_UNKNOWN_COMMAND: Final = 1047
_UNKNOWN_COLLATION: Final = 1273
_WRONG_XA_STATE: Final = 1399
_SSL_CONNECTION_ERROR: Final = 2026  # the number that MySQL's own client library has for it
# The server's own error numbers; those of the client's side are 2000-2999.
_CLIENT_ERRORS: Final = range(2000, 3000)


class Pipelining:
    """What is known of a server, or of a proxy before it: whether it takes two commands in one write."""

    __slots__ = ("_failures", "_works")

    def __init__(self) -> None:
        self._failures = 0
        self._works = False

    @property
    def allowed(self) -> bool:
        """Whether it has worked once, or has failed less than three times: failures have other causes, too."""
        return self._works or self._failures < 3

    def worked(self) -> None:
        """Trust it from now on."""
        self._works = True

    def failed(self) -> None:
        """Count a failure."""
        self._failures += 1


class Connection(aiomysql.Connection):  # type: ignore[misc]
    """aiomysql's connection. It refuses plain text where TLS is demanded, and knows when a reply was read in part."""

    _reader: Any = None  # both, so that __del__ finds them after a failed __init__
    _writer: Any = None
    _result: Any = None
    stream: asyncio.StreamWriter | None = None  # also after the driver has forgotten it, for `abort`
    half_read = False  # a reply is being read, or reading one has failed in the middle
    _clean: tuple[bytes | None, ...] = ()  # the answer to STATE when the connection was new
    _python_side: Mapping[str, Any] = MappingProxyType({})
    _settings = b""  # the query that sets what a reset does not bring back, and checks database and role
    _both_packets = b""  # COM_RESET_CONNECTION and that query
    _good_reply = b""  # the replies to a reset after which STATE was seen to be `_clean`; empty before the first
    _good_status = 0  # the server status in them
    _key_is_given = False  # server_public_key is a setting, not what the server sent

    # The driver's own steps, each with what it lacks.

    async def _request_authentication(self) -> None:
        # The driver would go on in plain text, and with some login methods send the password readable.
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise TLSRefusedError(
                _SSL_CONNECTION_ERROR,
                "TLS was demanded by the setting ssl, but the server does not offer it: switch TLS on in the server",
            )
        # When cancelled at the end of its handshake, asyncio's TLS transport waits up to 30 s for the closing message of
        # a hung server, and no other object refers to it. A handle of our own can end the TCP connection.
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

    # What the manager calls.

    async def open(self) -> None:
        """Connect and log in. Nothing stays open if this fails or is cancelled."""
        self._key_is_given = self.server_public_key is not None
        with dropping_on_failure(self.abort):
            try:
                await self._connect()
            except (aiomysql.OperationalError, RuntimeError) as error:
                if (better := self._explained(error)) is None:
                    raise
                raise better from (error.__cause__ or error)
            await self._remember_session()

    def abort(self) -> None:
        """Drop the socket with whatever is unsent: an ordinary close never ends while a hung server reads nothing."""
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

    async def quit(self) -> None:
        """Send COM_QUIT if the connection is still open, and wait until the socket is closed."""
        with contextlib.suppress(OSError):  # closed by the server already
            try:
                await self.ensure_closed()
            finally:
                self.close()
            if self.stream is not None:
                await self.stream.wait_closed()

    async def reset_session(self, pipelining: Pipelining | None) -> None:
        """Bring the session back to its state when new.

        Args:
            pipelining: use COM_RESET_CONNECTION, and where this allows it, one write for the whole reset. None: use
                COM_CHANGE_USER, a new login on the same socket.

        Raises:
            ReplaceConnection: what the borrower did cannot be undone.
            SessionStateError: the server cannot reset sessions, or not to the state when new.
            aiomysql.MySQLError: an error of the server.
        """
        self._restore_python_side()
        if self.get_transaction_status():
            await self.end_transaction()
        if pipelining is None:
            await self._change_user()
            await self._execute_command(_COM_QUERY, self._settings)
            reply = await self._settings_reply()
        elif self._good_reply and pipelining.allowed:
            reply = await self._reset_in_one_write(pipelining)
        else:
            await self._execute_command(_COM_RESET_CONNECTION, b"")
            reply = await self._reset_reply()
            await self._execute_command(_COM_QUERY, self._settings)
            reply += await self._settings_reply()
        status = self.server_status
        if self.init_command is not None:  # as the driver's connect does
            await self._ask(self.init_command)
            await self.commit()
            if self.autocommit_mode is not None:
                await self.autocommit(self.autocommit_mode)
        if reply != self._good_reply:
            await self._check_state()
            self._good_reply, self._good_status = reply, status
        self._result, self._affected_rows = None, 0

    async def end_transaction(self) -> None:
        """Roll back. Raises ReplaceConnection after XA PREPARE, where the server refuses that."""
        # Both ways to reset roll back, except after XA PREPARE: MariaDB then says OK and leaves a session that cannot
        # write any more. It refuses a ROLLBACK in that state.
        try:
            await self.rollback()
        except aiomysql.MySQLError as error:
            if error.args[0] != _WRONG_XA_STATE:
                raise
            raise ReplaceConnection("the connection was returned with a prepared XA transaction") from error

    # How.

    def _explained(self, error: Exception) -> Exception | None:
        """Say what to install or to set, where the driver does not."""
        if isinstance(error, RuntimeError) and "cryptography" in str(error):
            return ImportError(
                f"the login method {self._server_auth_plugin} encrypts the password with RSA on a connection without TLS, "
                "which needs the package cryptography: install cryptography, or set ssl=True"
            )
        number, text = error.args[0] if error.args else None, None
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            number = _SSL_CONNECTION_ERROR
            text = (
                f"the certificate of {self._host} cannot be verified: {error.__cause__.verify_message}; name its authority, "
                "by ssl-ca=FILE in the URL or by ssl=ssl.create_default_context(cafile=FILE)"
            )
        elif number == _ACCESS_DENIED and self._key_is_given:
            text = (
                f"{error.args[1]}; the password was encrypted with server_public_key, which must be this server's key"
            )
        better: Exception | None = None if text is None else aiomysql.OperationalError(number, text)
        return better

    async def _remember_session(self) -> None:
        """Note the state of the new connection, and prepare the query that brings it back."""
        self._python_side = {
            **{name: getattr(self, name) for name in ATTRIBUTES},
            **{name: copy(getattr(self, name)) for name in CONVERTERS},
        }
        self._clean = await self._read_state()
        self._result, self._affected_rows = None, 0
        # The second statement numbers the last packet of the reply with 2: so that the answer to an earlier command, which
        # nobody has read, cannot pass for it.
        settings = settings_statement(self._clean, self.sql_mode, self.autocommit_mode)
        self._settings = f"{settings}; DO 0".encode()
        commands = (bytes([_COM_RESET_CONNECTION]), bytes([_COM_QUERY]) + self._settings)
        self._both_packets = b"".join(len(command).to_bytes(4, "little") + command for command in commands)

    def _restore_python_side(self) -> None:
        self.__dict__.update(self._python_side)
        for name in CONVERTERS:
            self.__dict__[name] = copy(self._python_side[name])

    async def _read_state(self) -> tuple[bytes | None, ...]:
        self.__dict__.update(use_unicode=False, decoders={})
        try:
            rows = await self._ask(STATE)
        finally:
            self._restore_python_side()
        if not rows:
            raise SessionStateError("an answer to an earlier command was on its way")
        row: tuple[bytes | None, ...] = rows[0]
        return row

    async def _reset_in_one_write(self, pipelining: Pipelining) -> bytes:
        """Send both commands of a reset at once, and compare the replies as bytes."""
        self._ensure_alive()
        self._result = None
        self.half_read = True
        try:
            self._writer.write(self._both_packets)
            reply: bytes = await self._read_bytes(len(self._good_reply))
            if reply == self._good_reply:
                self.server_status = self._good_status
            else:  # replies with an error in them are longer: read them one by one
                self._reader._buffer[:0] = reply
                reply = await self._reset_reply() + await self._settings_reply()
        except BaseException:
            pipelining.failed()
            raise
        pipelining.worked()
        self.half_read = False
        return reply

    async def _reset_reply(self) -> bytes:
        try:
            return await self._read_oks()
        except aiomysql.MySQLError as error:
            if error.args[0] != _UNKNOWN_COMMAND:
                raise
            raise SessionStateError(
                _UNKNOWN_COMMAND,
                "this server does not know COM_RESET_CONNECTION (MySQL from 5.7.3, MariaDB from 10.2.4): "
                'use reset="strict", which it may know, or reset="none"',
            ) from error

    async def _settings_reply(self) -> bytes:
        try:
            return await self._read_oks()
        except aiomysql.MySQLError as error:
            if error.args[0] != _UNKNOWN_COLLATION:
                raise
        await self._ask("; ".join(way_back(self._clean)))
        await self._execute_command(_COM_QUERY, self._settings)
        try:
            return await self._read_oks()
        except aiomysql.MySQLError as error:
            if error.args[0] != _UNKNOWN_COLLATION:
                raise
            raise ReplaceConnection(
                "the borrower chose a database, and the manager's settings name none to return to"
            ) from error

    async def _check_state(self) -> None:
        now = await self._read_state()
        check_state(self._clean, now)

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

    async def _read_oks(self) -> bytes:
        """Read the OK packets of one reply, and return them with their headers."""
        self._next_seq_id = 1
        reply = b""
        more = True
        while more:
            packet = await self._read_packet()
            ok = OKPacketWrapper(packet)
            data = packet.get_all_data()
            reply += len(data).to_bytes(3, "little") + bytes([self._next_seq_id - 1]) + data
            self.server_status, more = ok.server_status, ok.has_next
        return reply

    async def _ask(self, sql: str) -> Any:
        """Run statements and return the rows of the last one."""
        await self.query(sql)
        while self._result.has_next:
            await self.next_result()
        return self._result.rows


class TestConnection(Connection):
    """A connection inside a transaction that is never committed: ``begin``, ``commit`` and ``rollback`` move a savepoint."""

    async def open(self) -> None:
        await super().open()
        with dropping_on_failure(self.abort):
            await super().begin()
            await self.begin()

    async def begin(self) -> None:
        # A second BEGIN would commit the first. The savepoint of the same name moves here.
        await self._run("SAVEPOINT pool_core")

    async def commit(self) -> None:
        await self._run("SAVEPOINT pool_core")

    async def rollback(self) -> None:
        await self._run("ROLLBACK TO SAVEPOINT pool_core")

    async def _run(self, sql: str) -> None:
        await self._execute_command(_COM_QUERY, sql)
        await self._read_ok_packet()
