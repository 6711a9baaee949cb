"""Redis and Valkey for `pool_core.threads`: redis-py's client on one connection, with the asynchronous manager's rules."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from typing import TYPE_CHECKING, Any, ClassVar, Final

from redis.client import Redis
from redis.connection import (
    AbstractConnection,
    Connection,
    ConnectionPoolInterface,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError, ResponseError

from ._manager import WrongServer, judge, presentable
from ._manager import is_transient as may_pass
from ._marks import LOST, Marks, added
from ._settings import Settings, named

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pool_core import Verdict
    from redis._parsers import Encoder

__all__ = ["LeasedRedis", "RedisConnectionManager", "WrongServer"]


class TrackedConnection(Marks, AbstractConnection):
    """Mixed into one of redis-py's connections by :func:`tracked`."""

    def send_command(self, *args: Any, **options: Any) -> None:
        """Send one command. Redis-py's own way packs it without asking ``pack_command``."""
        packed = self.pack_command(*args)
        self.send_packed_command(packed, check_health=options.get("check_health", True))  # type: ignore[no-untyped-call]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Pack several in one piece; when one of them cannot be packed, none is sent."""
        before = self.unanswered, self.dirt, self.blocking
        try:
            return [b"".join(piece for command in commands for piece in self.pack_command(*command))]
        except BaseException:
            self.unanswered, self.dirt, self.blocking = before
            raise

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read one reply. ``socket_timeout`` does not count while a command blocks on the server."""
        sock: Any = self._sock
        limit = self.socket_timeout
        extended = bool(self.blocking) and limit is not None and sock is not None
        if extended:
            assert limit is not None
            assert sock is not None
            sock.settimeout(added(limit, self.blocking))
        try:
            reply = super().read_response(*args, **options)
        except ResponseError as error:
            self.answered()
            if isinstance(error, ReadOnlyError):
                self.dirt |= LOST
            raise
        finally:
            if extended and sock is self._sock:
                with contextlib.suppress(OSError):
                    sock.settimeout(limit)  # type: ignore[attr-defined, unused-ignore]  # pyright: ignore[reportOptionalMemberAccess]
        self.answered()
        return reply

    def _connect(self) -> Any:
        if self.sealed:
            where = self._host_error()  # type: ignore[no-untyped-call]
            raise RedisConnectionError(
                f"this leased connection to {where} is closed, and a lease never reconnects: "
                "release it and get another one"
            )
        return super()._connect()  # type: ignore[safe-super, no-untyped-call]

    def disconnect(self, *args: Any, **details: Any) -> None:
        """Close the socket."""
        try:
            super().disconnect(*args, **details)  # type: ignore[no-untyped-call]
        finally:
            self.forget()

    def seal(self) -> None:
        """Begin to keep watch: the handshake is over."""
        self.spoken = ()
        if self.redis_connect_func is not None:
            self.limit = 1  # what a handshake of the user's own has set, only that handshake can set again
        self.sealed = True
        self.forget()

    def clean(self) -> None:
        """Take back what the borrower changed, in one round trip. Raises when the server does not agree."""
        if self.dirt >= self.limit:
            raise RedisError("the last borrower changed this session beyond repair")
        commands = self.undo()
        self.send_packed_command(self.pack_commands(commands))  # type: ignore[no-untyped-call]
        for _ in commands:
            self.read_response()
        self.dirt = 0

    def drop(self) -> None:
        """End the TCP connection: a call that another thread is blocked in raises. That thread closes the socket."""
        self.dirt |= LOST
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError, ValueError):
                # For TLS, too: SSLSocket.shutdown() would touch the state that another thread uses.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


@functools.cache
def tracked(connection_class: type[AbstractConnection]) -> type[TrackedConnection]:
    """Give `connection_class` the eyes of :class:`TrackedConnection`."""
    return type(f"Tracked{connection_class.__name__}", (TrackedConnection, connection_class), {})


class ThreadSettings(Settings):
    """The same settings, for redis-py's blocking connections."""

    __slots__ = ()

    kinds: ClassVar[tuple[type, type, type]] = (Connection, SSLConnection, UnixDomainSocketConnection)
    base: ClassVar[type] = AbstractConnection
    tracked: ClassVar[Any] = staticmethod(tracked)


class Pin(ConnectionPoolInterface):
    """What a leased client takes for its pool: it gives out one connection, ever. Threads that share it take turns."""

    def __init__(self, connection: TrackedConnection, encoder: Encoder, options: Mapping[str, Any]) -> None:
        self.connection = connection
        self.connection_kwargs = dict(options)
        self.holds = 0
        self._encoder = encoder
        self._turn = threading.RLock()

    def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> TrackedConnection:
        """Wait for one's turn, and get the connection."""
        if self.connection.subscribed and self.connection._sock is not None:
            raise RedisError(
                "this leased connection listens for a PubSub or Monitor, so it can answer no command: "
                "close that one, or use a second lease"
            )
        self._turn.acquire()
        self.holds += 1
        return self.connection

    def release(self, connection: Any) -> None:
        """End one's turn."""
        if connection is self.connection and self.holds:
            self.holds -= 1
            with contextlib.suppress(RuntimeError):  # another thread's
                self._turn.release()

    def get_encoder(self) -> Encoder:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The connection's encoder."""
        return self._encoder

    def get_protocol(self) -> Any:
        """The version of RESP that was asked for, or None for redis-py's default."""
        return self.connection_kwargs.get("protocol")

    def get_connection_count(self) -> list[tuple[int, dict[str, Any]]]:
        """None is idle, as many as are held are in use."""
        return [(int(not self.holds), {}), (int(bool(self.holds)), {})]

    def reset(self) -> None:
        """Give up the connection; the lease's pool will replace it."""
        self.connection.disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connection; the lease's pool will replace it."""
        self.connection.disconnect()

    def close(self) -> None:
        """Close the connection; the lease's pool will replace it."""
        self.connection.disconnect()

    def set_retry(self, retry: Any) -> None:
        """Refused: a retry needs a reconnect, and a lease never reconnects."""
        raise RedisError(
            "a leased client takes no retry, since it never reconnects: retry around the lease, with a new one"
        )

    def re_auth_callback(self, token: Any) -> None:
        """Close the connection when it comes back, so that its successor authenticates anew."""
        self.connection.spoil()


class LeasedRedis(Redis):
    """The client that a lease yields: redis-py's own, pinned to one connection. Usable as any other."""

    def __init__(self, pin: Pin) -> None:
        super().__init__(connection_pool=pin)  # type: ignore[arg-type]
        self.pin: Final = pin
        self.tracked: Final = pin.connection

    def set_response_callback(self, command: str, callback: Any) -> None:
        """As redis-py's; the connection is closed on return, since the callback would serve the next borrower, too."""
        self.tracked.spoil()
        super().set_response_callback(command, callback)

    def load_external_module(self, funcname: str, func: Any) -> None:
        """As redis-py's; the connection is closed on return, since the next borrower would see the module, too."""
        self.tracked.spoil()
        super().load_external_module(funcname, func)


class RedisConnectionManager:
    """Opens, validates, resets and closes connections to one Redis (or Valkey) server, for `pool_core.threads.Pool`.

    The lease yields a :class:`redis.Redis` client that is pinned to one real connection and never reconnects by itself.
    The arguments and their errors are those of `pool_redis.RedisConnectionManager`; callable credentials are ordinary
    functions, and ``connection_class`` is one of redis-py's blocking ones.
    """

    def __init__(self, url: str | None = None, /, **options: Any) -> None:
        self._settings = ThreadSettings(url, named(options))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._settings.place()}>"

    def update(self, url: str | None = None, /, **options: Any) -> None:
        """Use other settings for new connections: see `pool_redis.RedisConnectionManager.update`."""
        self._settings = self._settings.updated(url, named(options))

    def connect(self) -> LeasedRedis:
        """Open one connection, shake hands, and see that it answers.

        Raises:
            redis.RedisError: whatever redis-py raises, without secrets; `WrongServer` when something else answers.
        """
        settings = self._settings
        connection: Any = settings._make(settings.resolved_at_once())
        try:
            try:
                connection.connect()
                if not _answers(connection):
                    raise WrongServer(
                        f"what answers at {settings.place()} is not Redis: its answer to PING is not PONG"
                    )
                connection.seal()
                return LeasedRedis(Pin(connection, connection.encoder, settings.public()))
            except BaseException:
                connection.disconnect()
                raise
        except Exception as error:
            failure = presentable(error, connection.spoken, settings.place())
            if failure is error:
                raise
        raise failure  # out here, where the error that shows a secret is not its context

    def is_valid(self, client: LeasedRedis, /) -> bool:
        """PING; never reconnects, as redis-py would."""
        return client.tracked._sock is not None and _answers(client.tracked)

    def has_broken(self, client: LeasedRedis, /) -> bool:
        """Tell without waiting whether anything is known against a connection."""
        connection = client.tracked
        if (
            connection._sock is None
            or connection.unanswered
            or connection.dirt >= connection.limit
            or client.pin.holds
            or connection.should_reconnect()
        ):
            return True
        return bool(connection.can_read(0))  # bytes that nobody asked for, or the end of the connection

    def is_clean(self, client: LeasedRedis, /) -> bool:
        """Return whether the borrower's commands left nothing behind."""
        return not client.tracked.dirt

    def reset(self, client: LeasedRedis, /) -> None:
        """Take back what the borrower's commands did to the session, in one round trip."""
        if client.tracked.dirt:
            client.tracked.clean()

    def close(self, client: LeasedRedis, /) -> None:
        """Close the socket."""
        client.tracked.disconnect()

    def terminate(self, client: LeasedRedis, /) -> None:
        """End the TCP connection at once: a call that is blocked in another thread raises."""
        client.tracked.drop()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell whether connecting may succeed later: see `pool_redis.RedisConnectionManager.is_transient`."""
        return may_pass(exc)

    def judge(self, exc: Exception, client: LeasedRedis, /) -> Verdict:
        """Tell what an error means for connections: a server that has become a replica retires all of them."""
        return judge(exc, client)


def _answers(connection: TrackedConnection) -> bool:
    """Send PING. A server that does not let this user say PING, or has renamed it, answers too."""
    connection.send_command("PING", check_health=False)
    try:
        return connection.read_response() in (b"PONG", "PONG")
    except NoPermissionError:
        return True
    except ResponseError as error:
        if str(error).lower().startswith(("unknown command", "err unknown command")):
            return True
        raise
