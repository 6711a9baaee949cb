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
import math
from typing import TYPE_CHECKING, Any, Final, Protocol

from pool_core import ReplaceConnection
from redis.asyncio.client import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPoolInterface
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

try:
    from redis.himport import HImportRegistry
except ImportError:  # before redis-py 8.1
    HImportRegistry = None  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from redis._parsers import Encoder
    from redis.asyncio.retry import Retry
    from redis.auth.token import TokenInterface

# Session state that one more round trip takes back ...
_WATCH, _MULTI, _SELECT, _NAME, _TRACKING, _NO_EVICT, _NO_TOUCH, _READONLY = (1 << bit for bit in range(8))
# ... and what costs the connection: all bits from here on.
_SUBSCRIBED: Final = 1 << 8
_LOST: Final = 1 << 9
CLEANABLE: Final = _SUBSCRIBED

_KEPT = (0, 0)
# What a command does to the session: (bits set, bits cleared). EXEC and DISCARD end a transaction even when they fail.
_MARKS: Final[Mapping[str, tuple[int, int]]] = {
    "WATCH": (_WATCH, 0),
    "UNWATCH": (0, _WATCH),
    "MULTI": (_MULTI, 0),
    "EXEC": (0, _MULTI | _WATCH),
    "DISCARD": (0, _MULTI | _WATCH),
    "SELECT": (_SELECT, 0),
    "READONLY": (_READONLY, 0),
    "READWRITE": (0, _READONLY),
    "ASKING": (_READONLY, 0),  # it holds for one command: READWRITE is one
    **dict.fromkeys(["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR"], (_SUBSCRIBED, 0)),
    **dict.fromkeys(["AUTH", "HELLO", "RESET", "QUIT", "SYNC", "PSYNC", "REPLCONF", "HIMPORT"], (_LOST, 0)),
}
# CLIENT keeps more state with every release: a subcommand that is not known here costs the connection.
_CLIENT_MARKS: Final[Mapping[str, tuple[int, int]]] = {
    "SETNAME": (_NAME, 0),
    "TRACKING": (_TRACKING, 0),
    "CACHING": (_TRACKING, 0),
    "NO-EVICT": (_NO_EVICT, 0),
    "NO-TOUCH": (_NO_TOUCH, 0),
    **dict.fromkeys(
        ["GETNAME", "GETREDIR", "HELP", "ID", "INFO", "KILL", "LIST", "PAUSE", "TRACKINGINFO", "UNBLOCK", "UNPAUSE"],
        _KEPT,
    ),
}


# Where a command that may block says for how long: the index of that argument, and how many of it make a second.
_LAST, _FIRST = -1, 1
_BLOCKING: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(["BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BZPOPMIN", "BZPOPMAX"], (_LAST, 1)),
    **dict.fromkeys(["BLMPOP", "BZMPOP"], (_FIRST, 1)),
    **dict.fromkeys(["WAIT", "WAITAOF"], (_LAST, 1000)),
    **dict.fromkeys(["XREAD", "XREADGROUP"], (0, 1000)),  # after the word BLOCK
}


class Owner(Protocol):
    """Who wants to know what becomes of a connection."""

    def opened(self, connection: TrackedConnection, /) -> None: ...
    def failed(self) -> None: ...


class TrackedConnection(AbstractConnection):
    """Mixed into one of redis-py's connections by :func:`tracked`.

    Attributes:
        unanswered: commands sent whose replies were not read, so that the next reply may be an older one.
        dirt: bits of the session state that the borrower may have changed.
        blocking: seconds that the unanswered commands may block on the server, beside ``socket_timeout``.
        limit: dirt from here on cannot be taken back.
        sealed: refuse to reconnect, since a new connection under an old lease would have another age and session.
        spoken: the passwords sent until the connection was sealed: errors must not show them.
        lease: room for what :class:`pool_redis.RedisPool` keeps with a connection that it has lent.
        owner: the cluster client that this connection to one of its nodes belongs to, and that may reconnect it.
        role: what a Sentinel's server was when it was connected to.
        writes: it was opened for writing: after the answer READONLY it leads to the wrong server.
    """

    unanswered: int = 0
    dirt: int = 0
    blocking: float = 0.0
    limit: int = CLEANABLE
    sealed: bool = False
    spoken: tuple[str, ...] = ()
    lease: Any = None
    owner: Owner | None = None
    role: str = ""
    writes: bool = True
    leftover: Callable[[], bool] | None = None
    _blind: int = 0
    _strict_retry: Retry | None = None

    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack one command, and note what it does to the session."""
        packed = super().pack_command(*args)
        self.unanswered += 1
        self.dirt |= self._blind
        words = _text(args[0]).upper().split(None, 2)  # "CLIENT SETNAME" and "SELECT 1" come in one piece, too
        name = words[0] if words else ""
        mark = _MARKS.get(name)
        if mark is None:
            if name == "CLIENT":
                mark = _CLIENT_MARKS.get(_second(words, args), (_LOST, 0))
            elif name == "SCRIPT" and _second(words, args) == "DEBUG":
                mark = (_LOST, 0)
            else:
                if name in _BLOCKING and not self.dirt & _MULTI:  # within MULTI nothing blocks
                    self.blocking += _seconds_blocked(name, args)
                return packed
        elif not self.sealed and (name == "AUTH" or (name == "HELLO" and len(args) > 2)):
            self.spoken += (_text(args[-1]),)
        self.dirt = (self.dirt | mark[0]) & ~mark[1]
        return packed

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Pack several; when one of them cannot be packed, none is sent."""
        before = self.unanswered, self.dirt, self.blocking
        try:
            return super().pack_commands(commands)
        except BaseException:
            self.unanswered, self.dirt, self.blocking = before
            raise

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
            usual, self.socket_timeout = self.socket_timeout, _sum(self.socket_timeout, self.blocking)
        else:
            usual = None
        try:
            reply = await super().read_response(
                disable_decoding, timeout, disconnect_on_error=disconnect_on_error, push_request=push_request
            )
        except ResponseError as error:
            self._answered()
            if self.writes and isinstance(error, ReadOnlyError):
                self.dirt |= _LOST
            raise
        finally:
            if usual is not None:
                self.socket_timeout = usual
        if reply is not None or timeout is None:
            self._answered()
        return reply

    def _answered(self) -> None:
        self.unanswered -= 1
        if not self.unanswered:
            self.blocking = 0.0

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
            self.dirt |= _LOST

    async def disconnect(self, nowait: bool = False, *details: Any, **more: Any) -> None:
        """Close the socket. With `nowait` redis-py does so after a failure, and at the end of a PubSub."""
        if nowait and self.owner is not None:
            self.owner.failed()
        try:
            await super().disconnect(nowait, *details, **more)
        finally:
            self._forget()

    def _forget(self) -> None:
        self.unanswered, self.dirt, self.blocking = 0, 0, 0.0

    @property
    def subscribed(self) -> bool:
        """Whether messages may come in between."""
        return bool(self.dirt & _SUBSCRIBED)

    def spoil(self) -> None:
        """Make sure that it is closed when it comes back."""
        self.dirt |= _LOST

    def seal(self) -> None:
        """Begin to keep watch: the handshake is over."""
        self._look_around()
        self.sealed = True
        self._forget()
        if HImportRegistry is not None:
            self.himport_registry = HImportRegistry()

    def _look_around(self) -> None:
        self.spoken = ()
        if self.redis_connect_func is not None:
            self.limit = 1  # what a handshake of the user's own has set, only that handshake can set again
        # A redis-py that keeps its input elsewhere leaves us blind: then a connection is used once.
        if not isinstance(getattr(self._reader, "_buffer", None), bytearray):
            self._blind = _LOST
        self.leftover = getattr(getattr(self._parser, "_reader", None), "has_data", None)  # hiredis

    def lend(self, lease: Any, retry: Retry | None) -> None:
        """Let redis-py use it as one of its own pool's: it may reconnect, and then is closed on return."""
        self.lease, self.sealed = lease, False
        if retry is not None:
            self.retry, self._strict_retry = copy.deepcopy(retry), self.retry

    def take_back(self) -> Any:
        """End what `lend` began, and return the lease; None when it is not lent."""
        lease, self.lease, self.sealed = self.lease, None, True
        if self._strict_retry is not None:
            self.retry, self._strict_retry = self._strict_retry, None
        return lease

    def undo(self) -> list[tuple[Any, ...]]:
        """Commands that bring the session back to where the handshake left it."""
        dirt = self.dirt
        commands: list[tuple[Any, ...]] = []
        if dirt & _MULTI:
            commands.append(("DISCARD",))  # first, since until then everything is only queued; it unwatches, too
        elif dirt & _WATCH:
            commands.append(("UNWATCH",))
        if dirt & _TRACKING:
            commands.append(("CLIENT", "TRACKING", "OFF"))
        if dirt & _SELECT:
            commands.append(("SELECT", self.db or 0))
        if dirt & _NAME:
            commands.append(("CLIENT", "SETNAME", self.client_name or ""))
        if dirt & _NO_EVICT:
            commands.append(("CLIENT", "NO-EVICT", "OFF"))
        if dirt & _NO_TOUCH:
            commands.append(("CLIENT", "NO-TOUCH", "OFF"))
        if dirt & _READONLY:
            commands.append(("READWRITE",))
        return commands

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
        """Close the socket at once: no goodbye, no waiting."""
        writer, self._reader, self._writer = self._writer, None, None
        self._forget()
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


def _text(word: object) -> str:
    return word if isinstance(word, str) else bytes(word).decode("latin-1") if isinstance(word, bytes) else str(word)


def _second(words: list[str], args: tuple[Any, ...]) -> str:
    return words[1] if len(words) > 1 else _text(args[1]).upper() if len(args) > 1 else ""


def _sum(timeout: float, blocking: float) -> float | None:
    return None if blocking == math.inf else timeout + blocking


def _seconds_blocked(name: str, args: tuple[Any, ...]) -> float:
    """How long the server may wait before it answers; inf: for ever. What cannot be read the server refuses at once."""
    words = [*_text(args[0]).split(), *map(_text, args[1:])]
    place, per_second = _BLOCKING[name]
    try:
        if not place:
            words = [
                word.upper() for word in words[4 if name == "XREADGROUP" else 1 :]
            ]  # GROUP, its name, the consumer
            place = words.index("BLOCK", 0, words.index("STREAMS")) + 1
        seconds = float(words[place]) / per_second
    except (ValueError, IndexError):
        return 0.0
    return seconds if seconds > 0 else math.inf if seconds == 0 else 0.0
