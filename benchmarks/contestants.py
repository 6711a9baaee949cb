"""The registry of pools that are measured over fake connections. Adding one takes about ten lines::

    @contestant("somepool", package="somepool")
    async def _somepool(size: int) -> AsyncIterator[Opened]:
        async with load("somepool").Pool(connect=FakeManager().connect, max_size=size) as pool:
            yield Opened(get=pool.acquire, get_within=lambda seconds: pool.acquire(timeout=seconds))

Each is measured by its own `async with`, at its own defaults but for what its docstring says. Where a pool has only a
pair of calls, the thinnest class that makes an `async with` of them stands in (`Pair`): some 0.2 us of 5 and more.
The docstring's first sentence is printed beside the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

from . import fakes
from .fakes import FakeConnection, FakeManager, load
from .floors import L0, L3, Queue

if TYPE_CHECKING:
    from types import TracebackType

Getter = Callable[[], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A pool that is open: how to get from it, and how to get with a timeout in seconds, if it can."""

    get: Getter
    get_within: Callable[[float], AbstractAsyncContextManager[Any]] | None = None

    def within(self, seconds: float) -> AbstractAsyncContextManager[Any]:
        """A get with a deadline: by the pool's own argument, else by `asyncio.timeout` around it."""
        return self.get_within(seconds) if self.get_within else Within(self.get, seconds)


class Within:
    """What a user writes for a deadline when the pool's get takes none."""

    __slots__ = ("lease", "seconds")

    def __init__(self, get: Getter, seconds: float) -> None:
        self.lease = get()
        self.seconds = seconds

    async def __aenter__(self) -> Any:
        async with asyncio.timeout(self.seconds):
            return await self.lease.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.lease.__aexit__(kind, error, trace)


class Pair:
    """An `async with` from two coroutine functions."""

    __slots__ = ("acquire", "conn", "release")

    def __init__(self, acquire: Callable[[], Awaitable[Any]], release: Callable[[Any], Awaitable[Any]]) -> None:
        self.acquire = acquire
        self.release = release

    async def __aenter__(self) -> Any:
        conn = self.conn = await self.acquire()
        return conn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release(self.conn)


@dataclass(frozen=True, slots=True)
class Contestant:
    """`open(size)` opens its pool over fake connections, at most `size` of them."""

    name: str
    kind: Literal["ours", "floor", "peer"]
    package: str | None  # the distribution whose version is quoted; ours and the floors: None
    module: str | None  # what a program imports for it
    open: Callable[[int], AbstractAsyncContextManager[Opened]]
    about: str
    waits: bool  # whether a get waits when all connections are in use


CONTESTANTS: dict[str, Contestant] = {}


def contestant(
    name: str,
    *,
    kind: Literal["ours", "floor", "peer"] = "peer",
    package: str | None = None,
    module: str | None = None,
    waits: bool = True,
) -> Callable[[Callable[[int], AsyncIterator[Opened]]], None]:
    """Register the pool that this asynchronous generator opens and closes."""

    def register(opener: Callable[[int], AsyncIterator[Opened]]) -> None:
        about = " ".join((opener.__doc__ or "").split())
        CONTESTANTS[name] = Contestant(
            name, kind, package, module, contextlib.asynccontextmanager(opener), about, waits
        )

    return register


# --- floors and ours


@contestant("L0", kind="floor", waits=False)
async def _l0(size: int) -> AsyncIterator[Opened]:
    """The floor: a deque behind a slotted `async with`, no feature at all."""
    yield Opened(L0([FakeConnection() for _ in range(size)]).get)


@contestant("L3", kind="floor")
async def _l3(size: int) -> AsyncIterator[Opened]:
    """A correct pool after bb8 in plain style."""
    pool = L3(FakeManager(), size)
    yield Opened(pool.get, pool.get)


@contestant("L0q", kind="floor")
async def _l0q(size: int) -> AsyncIterator[Opened]:
    """L0 with a queue of bare futures: no timeout, and it loses connections when a get is cancelled."""
    yield Opened(Queue([FakeConnection() for _ in range(size)]).get)


@contestant("ours", kind="ours", module="pool_core")
async def _ours(size: int) -> AsyncIterator[Opened]:
    """At its default settings."""
    from pool_core import Pool

    async with Pool(FakeManager(), max_size=size) as pool:
        yield Opened(pool.get, pool.get)


@contestant("ours-lean", kind="ours")
async def _lean(size: int) -> AsyncIterator[Opened]:
    """With lifetime, idle timeout, tests and deadlock detection off."""
    from pool_core import Pool

    options: dict[str, Any] = {"max_lifetime": None, "idle_timeout": None, "test_on_check_out": False}
    async with Pool(FakeManager(), max_size=size, detect_deadlock=False, **options) as pool:
        yield Opened(pool.get, pool.get)


# --- peers


@contestant("asyncpg.Pool", package="asyncpg", module="asyncpg")
async def _asyncpg(size: int) -> AsyncIterator[Opened]:
    """Its reset of a returned connection does nothing here."""
    fake = fakes.asyncpg_connection()

    async def connect(*_: Any, **__: Any) -> Any:
        return fake()

    async with load("asyncpg").create_pool(min_size=size, max_size=size, connect=connect) as pool:
        yield Opened(pool.acquire, lambda seconds: pool.acquire(timeout=seconds))


@contestant("psycopg_pool", package="psycopg-pool", module="psycopg_pool")
async def _psycopg(size: int) -> AsyncIterator[Opened]:
    """Commit and rollback of its connection's own `async with` do nothing here."""
    new = load("psycopg_pool").AsyncConnectionPool
    cls = fakes.psycopg_connection()
    async with new(connection_class=cls, min_size=size, max_size=size, open=False) as pool:
        await pool.wait()
        yield Opened(pool.connection, pool.connection)


@contestant("aiomysql.Pool", package="aiomysql", module="aiomysql")
async def _aiomysql(size: int) -> AsyncIterator[Opened]:
    """Its get takes no timeout."""
    with patch.object(load("aiomysql.pool"), "connect", fakes.mysql_connect):
        async with load("aiomysql").create_pool(minsize=size, maxsize=size) as pool:
            yield Opened(pool.acquire)


@contestant("asyncmy.Pool", package="asyncmy", module="asyncmy")
async def _asyncmy(size: int) -> AsyncIterator[Opened]:
    """Compiled (Cython); a new get overtakes the waiters, so it is not fair; its get takes no timeout."""
    with patch.object(load("asyncmy.pool"), "connect", fakes.mysql_connect):
        async with load("asyncmy").create_pool(minsize=size, maxsize=size) as pool:
            yield Opened(pool.acquire)


@contestant("redis ConnectionPool", package="redis", module="redis.asyncio", waits=False)
async def _redis(size: int) -> AsyncIterator[Opened]:
    """It raises when all connections are in use, so it is in no workload where a get waits."""
    async with load("redis.asyncio").ConnectionPool(fakes.RedisConnection, max_connections=size) as pool:
        yield Opened(lambda: Pair(pool.get_connection, pool.release))


@contestant("redis BlockingConnectionPool", package="redis", module="redis.asyncio")
async def _redis_blocking(size: int) -> AsyncIterator[Opened]:
    """Its timeout is an option of the pool, always on; its get takes none."""
    new = load("redis.asyncio").BlockingConnectionPool
    async with new(size, connection_class=fakes.RedisConnection) as pool:
        yield Opened(lambda: Pair(pool.get_connection, pool.release))


@contestant("SQLAlchemy AsyncAdaptedQueuePool", package="SQLAlchemy", module="sqlalchemy.ext.asyncio")
async def _sqlalchemy(size: int) -> AsyncIterator[Opened]:
    """The pool alone, in its greenlets, as an AsyncEngine calls it; its get takes no timeout."""
    greenlet_spawn = load("sqlalchemy.util").greenlet_spawn
    pool = load("sqlalchemy.pool").AsyncAdaptedQueuePool(fakes.DBAPIConnection, pool_size=size, max_overflow=0)
    try:
        yield Opened(lambda: Pair(lambda: greenlet_spawn(pool.connect), lambda conn: greenlet_spawn(conn.close)))
    finally:
        await greenlet_spawn(pool.dispose)


@contestant("connpool", package="connpool", module="connpool")
async def _connpool(size: int) -> AsyncIterator[Opened]:
    """The generic pool whose options are most like ours; a new get overtakes the waiters, so it is not fair."""
    connpool = load("connpool")
    config = connpool.PoolConfig(max_size=size)
    async with connpool.AsyncConnectionPool.from_callables(FakeConnection, close=fakes.close, config=config) as pool:
        yield Opened(pool.connection, pool.connection)


@contestant("asyncio-connection-pool", package="asyncio-connection-pool", module="asyncio_connection_pool")
async def _asyncio_connection_pool(size: int) -> AsyncIterator[Opened]:
    """Nothing but a size and a test for closed connections; its get takes no timeout."""
    new = load("asyncio_connection_pool").ConnectionPool
    yield Opened(new(strategy=fakes.strategy(), max_size=size).get_connection)


@contestant("generic-connection-pool", package="generic-connection-pool", module="generic_connection_pool.asyncio")
async def _generic_connection_pool(size: int) -> AsyncIterator[Opened]:
    """A pool of pools, by endpoint; one endpoint is used here."""
    new = load("generic_connection_pool.asyncio").ConnectionPool
    pool = new(fakes.endpoint_manager(), max_size=size, total_max_size=size)
    try:
        yield Opened(lambda: pool.connection("here"), lambda seconds: pool.connection("here", seconds))
    finally:
        await pool.close()


@contestant("aiosqlitepool", package="aiosqlitepool", module="aiosqlitepool")
async def _aiosqlitepool(size: int) -> AsyncIterator[Opened]:
    """It tests at every get and rolls back at every return (both do nothing here); its get takes no timeout."""
    async with load("aiosqlitepool").SQLiteConnectionPool(fakes.sqlite_connection, pool_size=size) as pool:
        yield Opened(pool.connection)
