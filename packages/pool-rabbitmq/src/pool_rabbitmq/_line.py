"""One connection to the broker, and the channels that share it.

All that leans on aiormq's inside stands in this module and in ``_channel``. aio_pika's own ``Connection`` is not used:
its channels ask it for nothing but ``transport``, and :class:`Line` is that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any, cast

import aiormq
from aiormq import exceptions as amqp
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from pamqp import commands as spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from yarl import URL

_SILENCE = 3.0  # seconds. A broker answers the protocol's header at once; other servers wait for the rest of a line.
# What OpenSSL says, by version, when the answer to its greeting is not TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG")
# aio_pika 10.2 leaves something on the connection for each channel that it ever had.
_CHANNELS_IN_A_LIFE = 1000


class _Frames:
    """The broker's frames during the login. A refusal is raised as what it is.

    aiormq 7.2 turns the answer 530 to an unknown virtual host into an InvalidFrameError, without its text.
    """

    def __init__(self, receiver: Any) -> None:
        self._receiver = receiver

    async def get_frame(self) -> Any:
        received = await self._receiver.get_frame()
        frame = received[2]
        if isinstance(frame, spec.Connection.Close):
            if frame.reply_code == 403:
                raise amqp.ProbableAuthenticationError(frame.reply_text)
            if frame.reply_code == 530:
                raise amqp.ConnectionNotAllowed(frame.reply_text)
            raise amqp.ConnectionClosed(frame.reply_code, frame.reply_text)
        return received


class _Connection(aiormq.Connection):
    """aiormq's connection with the login of :class:`_Frames`."""

    @staticmethod
    async def _rpc(request: Any, writer: Any, frame_receiver: Any, wait_response: bool = True) -> Any:
        return await aiormq.Connection._rpc(request, writer, cast("Any", _Frames(frame_receiver)), wait_response)


class _Socket(TransportFactory):
    """Opens the socket for aiormq, and keeps it: aiormq cannot drop one at once."""

    writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        place = f"{url.host}:{url.port}"
        try:
            reader, self.writer = await factory.create(url, **kwargs)
        except amqp.AMQPConnectionError as error:
            if isinstance(error.__cause__, socket.gaierror):
                raise amqp.AMQPConnectionError(f"{place}: {error.__cause__.strerror}") from error.__cause__
            if isinstance(error.__cause__, ssl.SSLError) and error.__cause__.reason in _NO_TLS:
                raise amqp.IncompatibleProtocolError(
                    f"the server at {place} does not use TLS there: use its TLS port, or amqp:// in place of amqps://"
                ) from error.__cause__
            raise
        _check_first_byte(reader, place)
        return reader, self.writer


def _check_first_byte(reader: Any, place: str) -> None:
    """See that the first frame is one, and comes at once. aiormq would take an answer in HTTP for a frame of a gigabyte."""
    readexactly = reader.readexactly

    async def checked(size: int) -> bytes:
        del reader.readexactly
        try:
            async with asyncio.timeout(_SILENCE):
                data: bytes = await readexactly(size)
        except TimeoutError:
            # Not a ConnectionError, which aiormq would wrap into another one.
            raise amqp.AMQPError(
                f"the server at {place} took the connection and said nothing for {_SILENCE:g} s: it hangs, or this is not "
                "the port of an AMQP broker"
            ) from None
        if data == b"\x15":
            raise amqp.ProtocolSyntaxError(f"the server at {place} uses TLS: write amqps:// in place of amqp://")
        if data not in (b"\x01", b"A"):  # a method, or the version of the protocol that it would rather speak
            raise amqp.ProtocolSyntaxError(f"the server at {place} does not speak AMQP 0-9-1")
        return data

    reader.readexactly = checked


class Line:
    """A connection, with the number of channels on it. It ends with the last of them.

    Attributes:
        loop: the event loop that it belongs to.
        connecting: the task that connects; raises why it failed.
        users: how many channels use it, those being opened included.
        sealed: takes no more channels.
        condemned: the channels on it are to be replaced as they come back.
    """

    def __init__(
        self, url: Callable[[], Awaitable[URL]], tls: ssl.SSLContext | None, properties: dict[str, Any] | None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.users = self._opened = 0
        self.sealed = self.condemned = False
        self.connection: aiormq.Connection | None = None
        self._socket = _Socket()
        self.connecting = self.loop.create_task(self._log_in(url, tls, properties), name="pool-rabbitmq: connecting")
        # Maybe nobody waits for it any more.
        self.connecting.add_done_callback(lambda task: task.cancelled() or task.exception())

    @property
    def transport(self) -> Line:
        """What a channel of aio_pika asks its connection for: something with ``connection`` and ``ready()``."""
        return self

    async def ready(self) -> None:
        """Wait for the login."""
        await asyncio.shield(self.connecting)

    async def _log_in(self, url: Callable[[], Awaitable[URL]], tls: ssl.SSLContext | None, properties: Any) -> None:
        try:
            connection = _Connection(
                await url(), context=tls, transport_factory=self._socket, client_properties=properties
            )
            self.connection = connection
            await connection.connect()
            await connection.connected.wait()
        except BaseException:
            self.drop()
            raise

    def enter(self) -> None:
        """Count one more channel, before it is opened."""
        self.users += 1
        self._opened += 1
        self.sealed |= self._opened >= _CHANNELS_IN_A_LIFE

    def leave(self) -> None:
        """Count one channel less. Without channels the connection is dropped."""
        self.users -= 1
        if not self.users:
            self.drop()

    @property
    def is_gone(self) -> bool:
        """Whether the connection is lost. One whose login is under way is not."""
        if not self.connecting.done():
            return False
        if self.connecting.cancelled() or self.connecting.exception() is not None:
            return True
        assert self.connection is not None, "bug: logged in without a connection"
        assert self._socket.writer is not None, "bug: logged in without a socket"
        return self._socket.writer.transport.is_closing() or self.connection.is_closed

    @property
    def is_blocked(self) -> bool:
        """Whether the broker reads nothing from it: out of memory or disk space, it blocks those who publish."""
        unblocked = getattr(self.connection, "_Connection__connection_unblocked", None)
        return self.connecting.done() and unblocked is not None and not unblocked.is_set()

    @property
    def is_unusable(self) -> bool:
        """Whether its channels are worth nothing to the next borrower."""
        return self.condemned or self.is_gone or self.is_blocked

    async def close(self) -> None:
        """Say so to the broker, and close the socket."""
        self.sealed = True
        if self.connection is not None and not self.is_gone:
            await self.connection.close()

    def drop(self) -> None:
        """Close the socket at once."""
        self.sealed = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._socket.writer is not None:
                self._socket.writer.transport.abort()
            if not self.connecting.done() and asyncio.current_task() is not self.connecting:
                self.connecting.cancel()
