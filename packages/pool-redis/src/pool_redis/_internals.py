"""A connection that knows what its borrower did to it, and the client that is pinned to it.

All that leans on redis-py's inside stands in this module. Every command passes ``pack_command`` and every reply
``read_response``, whichever of client, pipeline, PubSub or Monitor sent it: there the connection counts what is
unanswered, and remembers which session state was touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
from typing import TYPE_CHECKING, Any, Final, Protocol

from pool_core import ReplaceConnection
from redis.asyncio.client import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPoolInterface
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ._marks import LOST, Marks, added

try:
    from redis.himport import HImportRegistry
except ImportError:  # before redis-py 8.1
    HImportRegistry = None  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis._parsers import Encoder
    from redis.asyncio.retry import Retry
    from redis.auth.token import TokenInterface


class Owner(Protocol):
    """Who wants to know what becomes of a connection."""

    def opened(self, connection: TrackedConnection, /) -> None: ...
    def failed(self) -> None: ...


class TrackedConnection(Marks, AbstractConnection):
    """Mixed into one of redis-py's connections by :func:`tracked`.

    Attributes:
        unanswered: commands sent whose replies were not read, so that the next reply may be an older one.
        dirt: flags for the session state that the borrower may have changed.
        blocking: seconds that the unanswered commands may block on the server, beside ``socket_timeout``.
        limit: dirt from this flag on cannot be undone.
        sealed: refuse to reconnect, since a new connection under an old lease would have another age and session.
        spoken: the passwords sent until the connection was sealed: errors must not show them.
        lease: the lease that :class:`pool_redis.RedisPool` keeps with a connection in use.
        owner: the cluster client that this connection to one of its nodes belongs to, and that may reconnect it.
        role: what a Sentinel's server was when it was connected to.
        writes: it was opened for writing: after the answer READONLY it leads to the wrong server.
    """

    lease: Any = None
    owner: Owner | None = None
    role: str = ""
    writes: bool = True
    leftover: Callable[[], bool] | None = None
    _strict_retry: Retry | None = None

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send. Redis-py's own way goes through wait_for: on Python 3.11 that can lose a cancel, and costs a task."""
        timeout, self.socket_timeout = self.socket_timeout, None
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                await super().send_packed_command(command, check_health=check_health)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise RedisTimeoutError(f"Timeout writing to {self._host_error()}") from None
        finally:
            self.socket_timeout = timeout

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,
        *,
        disconnect_on_error: bool = True,
        push_request: bool | None = False,
    ) -> Any:
        """Read one reply. Given a timeout, redis-py says None for "nothing came" too: then it counts as unanswered.

        ``socket_timeout`` counts from the moment when the server is to answer: not while a command blocks.
        """
        if self.blocking and timeout is None and self.socket_timeout is not None:
            usual, self.socket_timeout = self.socket_timeout, added(self.socket_timeout, self.blocking)
        else:
            usual = None
        try:
            reply = await super().read_response(
                disable_decoding, timeout, disconnect_on_error=disconnect_on_error, push_request=push_request
            )
        except ResponseError as error:
            self.answered()
            if self.writes and isinstance(error, ReadOnlyError):
                self.dirt |= LOST
            raise
        finally:
            if usual is not None:
                self.socket_timeout = usual
        if reply is not None or timeout is None:
            self.answered()
        return reply

    async def _connect(self) -> None:
        if self.sealed:
            raise RedisConnectionError(
                f"this leased connection to {self._host_error()} is closed, and a lease never reconnects: "
                "release it and get another one"
            )
        await super()._connect()  # type: ignore[safe-super, no-untyped-call]

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect if need be, and shake hands. Redis-py's every way to a connection leads through here."""
        if self.is_connected:
            return
        # redis-py packs a command before it connects for it: what is noted of it must outlive the handshake.
        dirt = self.dirt
        await super().connect_check_health(check_health, retry_socket_connect)
        if self.owner is not None:
            self._look_around()
            self.dirt = dirt
            self.owner.opened(self)
        elif self.lease is not None:  # redis-py has reconnected for its user: younger than the pool believes
            self.dirt |= LOST

    async def disconnect(self, nowait: bool = False, *details: Any, **more: Any) -> None:
        """Close the socket. With `nowait` redis-py does so after a failure, and at the end of a PubSub."""
        if nowait and self.owner is not None:
            self.owner.failed()
        try:
            await super().disconnect(nowait, *details, **more)
        finally:
            self.forget()

    def seal(self) -> None:
        """Begin to keep watch: the handshake is over."""
        self._look_around()
        self.sealed = True
        self.forget()
        if HImportRegistry is not None:
            self.himport_registry = HImportRegistry()

    def _look_around(self) -> None:
        self.spoken = ()
        if self.redis_connect_func is not None:
            self.limit = 1  # what a handshake of the user's own has set, only that handshake can set again
        # A redis-py that keeps its input elsewhere leaves us blind: then a connection is used once.
        if not isinstance(getattr(self._reader, "_buffer", None), bytearray):
            self._blind = LOST
        self.leftover = getattr(getattr(self._parser, "_reader", None), "has_data", None)  # hiredis

    def lend(self, lease: Any, retry: Retry | None) -> None:
        """Let redis-py use the connection as from its own pool: it may reconnect, and is then closed on return."""
        self.lease, self.sealed = lease, False
        if retry is not None:
            self.retry, self._strict_retry = copy.deepcopy(retry), self.retry

    def take_back(self) -> Any:
        """Undo `lend`, and return the lease; None if the connection is not in use."""
        lease, self.lease, self.sealed = self.lease, None, True
        if self._strict_retry is not None:
            self.retry, self._strict_retry = self._strict_retry, None
        return lease

    async def clean(self) -> None:
        """Take back what the borrower changed, in one round trip. Raises when the server does not agree."""
        if self.dirt >= self.limit:
            raise ReplaceConnection("the last borrower changed this session beyond repair")
        commands = self.undo()
        await self.send_packed_command(self.pack_commands(commands))
        for _ in commands:
            await self.read_response()
        self.dirt = 0

    def drop(self) -> None:
        """Close the socket at once: send nothing, wait for nothing."""
        writer, self._reader, self._writer = self._writer, None, None
        self.forget()
        self._parser.on_disconnect()  # type: ignore[no-untyped-call]
        if writer is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                writer.transport.abort()


@functools.cache
def tracked(connection_class: type[AbstractConnection]) -> type[TrackedConnection]:
    """Give `connection_class` the eyes of :class:`TrackedConnection`."""
    if issubclass(connection_class, TrackedConnection):
        return connection_class
    return type(f"Tracked{connection_class.__name__}", (TrackedConnection, connection_class), {})


class Turns:
    """A lock among tasks, which one task may take again while it holds it: ``async with``, or take and give up.

    Attributes:
        holds: how often it is taken now.
    """

    def __init__(self) -> None:
        self.holds = 0
        self._holder: asyncio.Task[Any] | None = None
        self._turn = asyncio.Lock()

    async def take(self) -> None:
        """Wait for one's turn."""
        task = asyncio.current_task()
        if not self.holds or self._holder is not task:
            await self._turn.acquire()
            self._holder = task
        self.holds += 1

    def give_up(self) -> None:
        """End one's turn; any task may do it for the one that took it."""
        self.holds -= 1
        if not self.holds:
            self._holder = None
            self._turn.release()

    async def __aenter__(self) -> None:
        await self.take()

    async def __aexit__(self, *_: object) -> None:
        self.give_up()


class Pin(Turns, ConnectionPoolInterface):
    """What a leased client takes for its pool: it gives out one connection, ever.

    Several tasks may use the client: their requests take turns. One task may use it while it holds it (commands
    between WATCH and MULTI of its pipeline). While a PubSub or Monitor listens, everybody else is refused, since a
    reply could not be told from a message.
    """

    def __init__(self, connection: TrackedConnection, encoder: Encoder, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.connection = connection
        self.connection_kwargs = dict(options)
        self._encoder = encoder

    def __repr__(self) -> str:
        return f"<the one connection {self.connection!r}>"

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> TrackedConnection:
        """Wait for one's turn, and get the connection."""
        if self.connection.subscribed and self.connection.is_connected:
            raise RedisError(
                "this leased connection listens for a PubSub or Monitor, so it can answer no command: "
                "close that one, or use a second lease"
            )
        await self.take()
        return self.connection

    async def release(self, connection: AbstractConnection) -> None:
        """End one's turn. Redis-py may call it in another task than the one that got the connection."""
        if connection is self.connection and self.holds:
            self.give_up()

    def get_encoder(self) -> Encoder:
        """The connection's encoder."""
        return self._encoder

    def get_protocol(self) -> Any:
        """The version of RESP that was asked for, or None for redis-py's default."""
        return self.connection_kwargs.get("protocol")

    def get_connection_count(self) -> list[tuple[int, dict[str, Any]]]:
        """None is idle, as many as are held are in use."""
        return [(int(not self.holds), {}), (int(bool(self.holds)), {})]

    @property
    def himport_registry(self) -> Any:
        """Declared fieldsets would be seen by the next borrower: who asks for them uses up the connection."""
        self.connection.spoil()
        return getattr(self.connection, "himport_registry", None)

    def reset(self) -> None:
        """Give up the connection; the lease's pool will replace it."""
        self.connection.drop()

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connection; the lease's pool will replace it."""
        await self.connection.disconnect()

    async def aclose(self) -> None:
        """Close the connection; the lease's pool will replace it."""
        await self.connection.disconnect()

    def set_retry(self, retry: Retry) -> None:
        """Refused: a retry needs a reconnect, and a lease never reconnects."""
        raise RedisError(
            "a leased client takes no retry, since it never reconnects: retry around the lease, with a new one"
        )

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """Close the connection when it comes back, so that its successor authenticates anew."""
        self.connection.spoil()


class LeasedRedis(Redis):
    """The client that a lease yields: redis-py's own, pinned to one connection. Usable as any other."""

    connection_pool: Pin  # type: ignore[assignment]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tracked: Final = self.connection_pool.connection

    def set_response_callback(self, command: str, callback: Any) -> None:
        """As redis-py's; the connection is closed on return, since the callback would serve the next borrower, too."""
        self.tracked.spoil()
        super().set_response_callback(command, callback)

    def load_external_module(self, funcname: str, func: Any) -> None:
        """As redis-py's; the connection is closed on return, since the next borrower would see the module, too."""
        self.tracked.spoil()
        super().load_external_module(funcname, func)  # type: ignore[no-untyped-call]


def is_broken(client: LeasedRedis, /) -> bool:
    """Tell at once whether anything is known against a connection: closed, out of step, held on to, changed for good.

    Asked twice in the life of each lease: attributes, and no call that can be avoided.
    """
    connection = client.tracked
    reader = connection._reader
    if (  # noqa: SIM103 - as it stands no bool has to be made
        reader is None
        or connection.unanswered
        or connection.dirt >= connection.limit
        or client.connection_pool.holds
        or reader._buffer  # type: ignore[attr-defined]
        or reader.at_eof()
        or reader.exception() is not None  # all that shows after a reset by the peer
        or connection._should_reconnect
        or (connection.leftover is not None and connection.leftover())
    ):
        return True
    return False


def is_out_of_step(connection: TrackedConnection) -> bool:
    """Tell whether a node's connection is dead, or has more to say than was asked. A closed one connects again."""
    reader = connection._reader
    return reader is not None and bool(
        connection.unanswered
        or reader._buffer  # type: ignore[attr-defined]
        or reader.at_eof()
        or reader.exception() is not None
        or (connection.leftover is not None and connection.leftover())
    )
