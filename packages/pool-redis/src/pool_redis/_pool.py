"""Our pool in the shape of redis-py's own, for code that says ``Redis(connection_pool=...)``."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from typing import TYPE_CHECKING, Any, Final, Self, Unpack, cast

from pool_core import ConnectError, Pool, PoolClosed, PoolOptions, PoolOverloaded, PoolTimeout
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, MaxConnectionsError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ._internals import LeasedRedis, TrackedConnection
from ._manager import RedisConnectionManager

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pool_core import PooledConnection
    from redis._parsers import Encoder
    from redis.asyncio.connection import AbstractConnection
    from redis.auth.token import TokenInterface


# redis-py takes any ConnectionPoolInterface and annotates ConnectionPool: checkers should accept our users' clients.
if TYPE_CHECKING:
    from redis.asyncio.connection import ConnectionPool as _Base
else:
    from redis.asyncio.connection import ConnectionPoolInterface as _Base


# What redis-py's pools take in a URL and we take as options of the pool, as numbers of this kind.
_OPTIONS: Final = {"max_connections": ("max_size", int), "timeout": ("connection_timeout", float)}
_FALSE: Final = ("", "0", "f", "false", "n", "no")  # as redis-py reads them


class RedisPool(_Base):
    """A :class:`pool_core.Pool` in the place of redis-py's ``ConnectionPool`` or ``BlockingConnectionPool``::

        pool = RedisPool("redis://localhost", max_size=20)
        client = redis.asyncio.Redis(connection_pool=pool)

    The client's code stays as it is; each command, pipeline or PubSub takes a connection from our pool: in turn, with
    a deadline, tested, counted, and clean of what the last one did to the session.

    As redis-py's pools it needs no opening: it opens itself at its first use, in the running loop, and again after
    ``aclose()``. ``async with pool:`` opens it properly, so that ``min_idle`` connections are up or the error is raised.

    Args:
        manager: a URL, or a :class:`RedisConnectionManager` where more is to be said. In the URL, ``max_connections``,
            ``timeout`` and ``retry_on_timeout`` are understood as by redis-py's pools: ``max_size``,
            ``connection_timeout``, and one retry. Keyword arguments win over them.
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
                "guard=True: a RedisPool hands out redis-py's connections, which it cannot guard; leave it out"
            )
        if isinstance(manager, str):
            manager, found = _taken_apart(manager)
            if found.pop("retry_on_timeout", False):
                retry = copy.deepcopy(retry) or Retry(NoBackoff(), 1)
                retry.update_supported_errors([RedisTimeoutError])
            options = cast("PoolOptions[LeasedRedis]", {**found, **options})
        self._manager = manager
        self.pool: Final[Pool[LeasedRedis]] = Pool(self._manager, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry = retry
        self.connection_kwargs = {**self._manager.public_settings(), "retry": retry}

    def __repr__(self) -> str:
        return f"<RedisPool of {self.pool!r}>"

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> TrackedConnection:
        """Acquire a connection; `release` returns it.

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
        """Return a connection to the pool. A second call does nothing."""
        if not isinstance(connection, TrackedConnection):
            raise TypeError(f"{connection!r} is not a connection of this pool")
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
        """Set the retries of connections that are acquired from now on."""
        self._retry = retry
        self.connection_kwargs["retry"] = retry

    def reset(self) -> None:
        """Retire all connections softly: idle ones now, used ones on their return."""
        self._retire()

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close all connections: idle ones now, used ones at once, too, unless `inuse_connections` is False."""
        if inuse_connections:
            self._retire(_cut_if_lent)
        self._retire()

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """Retire all connections softly: their successors authenticate with the new token."""
        self._retire()

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

    def _retire(self, predicate: Callable[[LeasedRedis], bool] | None = None) -> None:
        # redis-py's pools do nothing where nothing is open; so does ours before its first use and after its last.
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(PoolClosed):
                self.pool.evict(predicate)


def _cut_if_lent(client: LeasedRedis) -> bool:
    if client.tracked.lease is not None:
        client.tracked.drop()
    return True


def _taken_apart(url: str) -> tuple[RedisConnectionManager, dict[str, Any]]:
    """A manager for the URL without what is the pool's, and that. Each error is without a word of the URL."""
    rest, _, query = url.partition("?")
    found: dict[str, Any] = {}
    kept: list[str] = []
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name == "retry_on_timeout":
            found[name] = value.lower() not in _FALSE
        elif name in _OPTIONS:
            ours, kind = _OPTIONS[name]
            try:
                found[ours] = kind(value)
            except ValueError:
                raise ValueError(f"{name} in the URL: expected a number, for the pool's {ours}") from None
        else:
            kept.append(pair)
    return RedisConnectionManager(f"{rest}?{'&'.join(kept)}" if any(kept) else rest), found
