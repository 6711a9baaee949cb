"""Our pool in the shape of redis-py's own, for code that says ``Redis(connection_pool=...)``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from pool_core import ConnectError, Pool, PoolClosed, PoolOptions, PoolOverloaded, PoolTimeout
from redis.exceptions import AuthenticationError, MaxConnectionsError
from redis.exceptions import ConnectionError as RedisConnectionError

from ._connection import LeasedRedis, TrackedConnection
from ._manager import RedisConnectionManager

if TYPE_CHECKING:
    from types import TracebackType

    from pool_core import PooledConnection
    from redis._parsers import Encoder
    from redis.asyncio.connection import AbstractConnection
    from redis.asyncio.retry import Retry
    from redis.auth.token import TokenInterface


# redis-py takes any ConnectionPoolInterface and annotates ConnectionPool: checkers should accept our users' clients.
if TYPE_CHECKING:
    from redis.asyncio.connection import ConnectionPool as _Base
else:
    from redis.asyncio.connection import ConnectionPoolInterface as _Base


class RedisPool(_Base):
    """A :class:`pool_core.Pool` in the place of redis-py's ``ConnectionPool`` or ``BlockingConnectionPool``::

        pool = RedisPool("redis://localhost", max_size=20)
        client = redis.asyncio.Redis(connection_pool=pool)

    The client's code stays as it is; each command, pipeline or PubSub takes a connection from our pool: in turn, with
    a deadline, tested, counted, and clean of what the last one did to the session.

    As redis-py's pools it needs no opening: it opens itself at its first use, in the running loop, and again after
    ``aclose()``. ``async with pool:`` opens it properly, so that ``min_idle`` connections are up or the error is raised.

    Args:
        manager: a URL, or a :class:`RedisConnectionManager` where more is to be said.
        retry: redis-py's retry for the commands of its clients, as ``ConnectionPool(retry=...)``; None: no retry. A
            connection that reconnected for a retry is closed on return, since it is not as old as the pool believes.
        options: the options of :class:`pool_core.Pool`, without ``guard``.

    Raises:
        ValueError, TypeError: bad settings or options.

    Errors reach the client's code as redis-py's own, with ours as the cause: `MaxConnectionsError` when no connection
    became free in time, else `ConnectionError` (`AuthenticationError` for credentials).

    Attributes:
        pool: the pool inside, for ``state()``, ``holders()``, ``resize()``, ``evict()``.
        connection_kwargs: what redis-py's clients ask their pool about; nothing secret.
    """

    def __init__(
        self,
        manager: RedisConnectionManager | str,
        /,
        *,
        retry: Retry | None = None,
        **options: Unpack[PoolOptions[LeasedRedis]],
    ) -> None:
        if options.get("guard"):
            raise ValueError(
                "guard=True: a RedisPool lends redis-py's connections, which it cannot guard; leave it out"
            )
        self._manager = RedisConnectionManager(manager) if isinstance(manager, str) else manager
        self.pool: Final[Pool[LeasedRedis]] = Pool(self._manager, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry = retry
        self.connection_kwargs = {**self._manager.public_settings(), "retry": retry}

    def __repr__(self) -> str:
        return f"<RedisPool of {self.pool!r}>"

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> TrackedConnection:
        """Borrow a connection; `release` gives it back.

        Raises:
            redis.MaxConnectionsError: none became free within ``connection_timeout``.
            redis.ConnectionError: connecting failed.
        """
        try:
            if self._loop is not asyncio.get_running_loop():
                await self._open(wait=False)
            try:
                lease = await self.pool.get()
            except PoolClosed:
                await self._open(wait=False)
                lease = await self.pool.get()
        except (PoolTimeout, PoolOverloaded) as error:
            if isinstance(error, PoolTimeout) and error.phase != "queue":
                raise RedisConnectionError(str(error)) from error
            raise MaxConnectionsError(str(error)) from error
        except ConnectError as error:
            kind = AuthenticationError if isinstance(error.__cause__, AuthenticationError) else RedisConnectionError
            raise kind(str(error)) from error
        connection = lease.conn.tracked
        connection.lend(lease, self._retry)
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back. A second time does nothing."""
        if not isinstance(connection, TrackedConnection):
            raise TypeError(f"{connection!r} was not borrowed from this pool")
        lease: PooledConnection[LeasedRedis] | None = connection.take_back()
        if lease is not None:
            lease.release()

    def get_encoder(self) -> Encoder:
        """The encoder that the settings ask for."""
        return self._manager.encoder()

    def get_protocol(self) -> Any:
        """The version of RESP that was asked for, or None for redis-py's default."""
        return self.connection_kwargs.get("protocol")

    def get_connection_count(self) -> list[tuple[int, dict[str, Any]]]:
        """Count idle and used connections, with the attributes by which redis-py's metrics tell them apart."""
        state = self.pool.state()
        name = {"db.client.connection.pool.name": self.pool.config.name}
        return [
            (state.idle, {**name, "db.client.connection.state": "idle"}),
            (state.in_use, {**name, "db.client.connection.state": "used"}),
        ]

    def set_retry(self, retry: Retry) -> None:
        """Let connections that are borrowed from now on retry so."""
        self._retry = retry
        self.connection_kwargs["retry"] = retry

    def reset(self) -> None:
        """Retire all connections softly: idle ones now, used ones on their return."""
        self.pool.evict()

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close all connections: idle ones now, used ones at once, too, unless `inuse_connections` is False."""
        if inuse_connections:
            self.pool.evict(_cut_if_lent)
        self.pool.evict()

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """Retire all connections softly: their successors authenticate with the new token."""
        self.pool.evict()

    async def aclose(self) -> None:
        """Close the pool: what waits fails, what is used is waited for, at most 10 s."""
        await self.pool.close()

    async def __aenter__(self) -> Self:
        await self._open(wait=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _open(self, *, wait: bool) -> None:
        await self.pool.open(wait=wait)
        self._loop = asyncio.get_running_loop()


def _cut_if_lent(client: LeasedRedis) -> bool:
    if client.tracked.lease is not None:
        client.tracked.drop()
    return True
