"""aiomcache's client over one connection, which keeps each answer with its question.

All that leans on aiomcache's inside stands in this module. aiomcache 0.8.2 returns a connection to its own pool when a
command was cancelled, so the next command reads the former one's answer; after the end of the connection it reads
empty lines for ever, without giving the event loop a turn. A command of aiomcache writes once, and then reads lines
and values: here each of these goes through :class:`Link`, which knows whether an answer is still to come.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import aiomcache
from aiomcache.pool import Connection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    GetFlagHandler = Callable[[bytes, int], Awaitable[Any]]
    SetFlagHandler = Callable[[Any], Awaitable[tuple[bytes, int]]]

# More lines follow after VALUE and STAT, and maybe after an error in the command itself: memcached takes the data of a
# "set" that it could not read for the next command, and answers that too.
_NOT_THE_END: Final = (b"VALUE ", b"STAT ", b"ERROR", b"CLIENT_ERROR")
_NOT_A_NUMBER: Final = b"CLIENT_ERROR cannot increment or decrement non-numeric value"


class Link:
    """One connection: aiomcache's reader, its writer, and the pool that it takes them from.

    Several tasks may use one client: their commands take turns.

    Attributes:
        in_step: False from the moment a command is sent until the last line of its answer has been read.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.in_step = True
        self._reader, self._writer = reader, writer
        self._turn = asyncio.Lock()
        self._pair = Connection(cast("Any", self), cast("Any", self))

    @classmethod
    async def open(
        cls, host: str, port: int, path: str | None, tls: ssl.SSLContext | None = None, name: str | None = None
    ) -> Link:
        """Open a connection; nothing is sent, except for TLS. `name` is the server's, in its certificate."""
        if path is not None:
            return cls(*await asyncio.open_unix_connection(path, ssl=tls, server_hostname=name))
        try:
            return cls(*await asyncio.open_connection(host, port, ssl=tls, server_hostname=name))
        except socket.gaierror as error:  # which does not say whose address is missing
            raise socket.gaierror(error.errno, f"{host}: {error.strerror}") from None

    # What a command of aiomcache asks of its reader and its writer.

    def write(self, data: bytes) -> None:
        self.in_step = False
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    async def readline(self) -> bytes:
        line = await self._reader.readline()
        if not line.endswith(b"\r\n"):
            self._lost()
        self.in_step = not line.startswith(_NOT_THE_END) or line.startswith(_NOT_A_NUMBER)
        return line

    async def readexactly(self, size: int) -> bytes:
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            self._lost()

    def set_exception(self, exc: Exception) -> None:
        """Ignore it: aiomcache closes a connection after any error, also after "NOT_FOUND"."""

    # What its client asks of its pool.

    async def acquire(self) -> Connection:
        await self._turn.acquire()
        if self.is_closed:
            self._turn.release()
            self._lost()
        return self._pair

    def release(self, conn: object) -> None:
        if not self.in_step:  # cancelled, or aiomcache did not read the answer to its end
            self.abort()
        self._turn.release()

    async def clear(self) -> None:
        await self.close()

    # What the manager asks.

    @property
    def is_closed(self) -> bool:
        """Whether either side has closed the connection."""
        return self._writer.is_closing() or self._reader.at_eof() or self._reader.exception() is not None

    @property
    def is_unusable(self) -> bool:
        """Whether the connection is closed, busy, or has bytes that no command asked for."""
        return self.is_closed or self._turn.locked() or not self.in_step or bool(self._reader._buffer)  # type: ignore[attr-defined]

    async def ask(self, command: bytes) -> bytes:
        """Send a command while connecting, and return the first line of its answer, or what came of it."""
        self._writer.write(command)
        return await self._reader.readline()

    async def close(self) -> None:
        """Close the socket, for TLS after the handshake that ends it."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Close the socket at once."""
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self._writer.transport.abort()

    def _lost(self) -> NoReturn:
        self.abort()
        raise ConnectionResetError("the connection to memcached is closed: get another one from the pool")


class LeasedMemcached(aiomcache.FlagClient[Any]):
    """The client that a lease yields: aiomcache's own, over one connection.

    Each method raises ConnectionResetError once the connection is closed; a lease never reconnects.
    """

    def __init__(
        self,
        link: Link,
        get_flag_handler: GetFlagHandler | None = None,
        set_flag_handler: SetFlagHandler | None = None,
    ) -> None:
        # Not aiomcache's own __init__, which makes a pool.
        self.link = link
        self._pool = cast("Any", link)
        self._get_flag_handler = get_flag_handler
        self._set_flag_handler = set_flag_handler
