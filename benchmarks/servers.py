"""Pools on real servers: one short query per get, one task alone, and 100 tasks on 10 connections.

Like is compared with like: a pair that is compared has the same driver, the same reset of returned connections and the
same test (none: each has been used a moment ago). The raw connections are the limit: ten tasks with one each.

The registry is like that of the fake connections; adding a contestant takes about ten lines. The servers are those of
the tests (`containers/`), or those that POOL_TEST_POSTGRES_URL, POOL_TEST_REDIS_URL and POOL_TEST_MARIADB_URL name.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

from .fakes import load as driver
from .measure import PATIENCE, Result, failure, progress, quiet_collector
from .workloads import jain, percentile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from containers.servers import Server

CONNECTIONS = 10
TASKS = 100


@dataclass(frozen=True, slots=True)
class ServerContestant:
    """`open(server)` yields one coroutine function a task may call; a list of ten for raw connections."""

    server: str
    name: str
    like: str | None  # the contestants that may be compared: same driver, reset and test; None: compared with none
    ours: bool
    limit: str | None  # the raw connections that are its limit
    open: Callable[[Server], AbstractAsyncContextManager[Any]]
    about: str


SERVER_CONTESTANTS: list[ServerContestant] = []


def contestant(
    server: str,
    name: str,
    *,
    like: str | None = None,
    ours: bool = False,
    limit: str | None = None,
) -> Callable[[Callable[[Server], AsyncIterator[Any]]], None]:
    """Register what this asynchronous generator opens and closes."""

    def register(opener: Callable[[Server], AsyncIterator[Any]]) -> None:
        about = " ".join((opener.__doc__ or "").split())
        opened = contextlib.asynccontextmanager(opener)
        SERVER_CONTESTANTS.append(ServerContestant(server, name, like, ours, limit, opened, about))

    return register


# --- PostgreSQL, asyncpg


@contestant("postgres", "raw asyncpg")
async def _raw_asyncpg(server: Server) -> AsyncIterator[Any]:
    """Ten connections, each of one task."""
    asyncpg = driver("asyncpg")
    conns = [await asyncpg.connect(server.url) for _ in range(CONNECTIONS)]
    yield [lambda conn=conn: conn.fetchval("SELECT 1") for conn in conns]
    for conn in conns:
        await conn.close()


def _ours_postgres(reset: str) -> Callable[[Server], AsyncIterator[Any]]:
    async def opener(server: Server) -> AsyncIterator[Any]:
        from pool_core import Pool
        from pool_postgres import PostgresConnectionManager

        manager = PostgresConnectionManager(server.url, reset=reset)  # type: ignore[arg-type]
        async with Pool(manager, max_size=CONNECTIONS, min_idle=CONNECTIONS) as pool:

            async def use() -> None:
                async with pool.get() as conn:
                    await conn.fetchval("SELECT 1")

            yield use

    return opener


def _asyncpg_pool(*, reset: bool) -> Callable[[Server], AsyncIterator[Any]]:
    async def opener(server: Server) -> AsyncIterator[Any]:
        asyncpg = driver("asyncpg")
        base = asyncpg.Connection

        class Unreset(base):  # type: ignore[misc, valid-type]
            def get_reset_query(self) -> str:
                return ""

        kind = asyncpg.Connection if reset else Unreset
        async with asyncpg.create_pool(
            server.url, min_size=CONNECTIONS, max_size=CONNECTIONS, connection_class=kind
        ) as pool:

            async def use() -> None:
                async with pool.acquire() as conn:
                    await conn.fetchval("SELECT 1")

            yield use

    return opener


contestant("postgres", "ours (asyncpg), no reset", like="asyncpg, no reset", ours=True, limit="raw asyncpg")(
    _ours_postgres("none")
)
contestant("postgres", "asyncpg.Pool, no reset", like="asyncpg, no reset", limit="raw asyncpg")(
    _asyncpg_pool(reset=False)
)
contestant("postgres", "ours (asyncpg), reset", like="asyncpg, reset", ours=True, limit="raw asyncpg")(
    _ours_postgres("safe")
)
contestant("postgres", "asyncpg.Pool, reset", like="asyncpg, reset", limit="raw asyncpg")(_asyncpg_pool(reset=True))


@contestant("postgres", "SQLAlchemy (asyncpg), no reset", like="asyncpg, no reset", limit="raw asyncpg")
async def _sqlalchemy(server: Server) -> AsyncIterator[Any]:
    """Its pool alone: the query goes to the driver's own connection."""
    url = "postgresql+asyncpg://" + server.url.split("://", 1)[1]
    engine = driver("sqlalchemy.ext.asyncio").create_async_engine(
        url, pool_size=CONNECTIONS, max_overflow=0, pool_reset_on_return=None
    )

    async def use() -> None:
        async with engine.connect() as conn:
            raw = await conn.get_raw_connection()
            await raw.driver_connection.fetchval("SELECT 1")

    try:
        yield use
    finally:
        await engine.dispose()


# --- PostgreSQL, psycopg


@contestant("postgres", "raw psycopg")
async def _raw_psycopg(server: Server) -> AsyncIterator[Any]:
    """Ten connections, each of one task."""
    psycopg = driver("psycopg")
    conns = [await psycopg.AsyncConnection.connect(server.url, autocommit=True) for _ in range(CONNECTIONS)]

    async def use(conn: Any) -> None:
        await (await conn.execute("SELECT 1")).fetchone()

    yield [lambda conn=conn: use(conn) for conn in conns]
    for conn in conns:
        await conn.close()


@contestant("postgres", "ours (psycopg), no reset", like="psycopg, no reset", ours=True, limit="raw psycopg")
async def _ours_psycopg(server: Server) -> AsyncIterator[Any]:
    """pool-psycopg, which restores the connection object and asks the server nothing."""
    from pool_core import Pool
    from pool_psycopg import PsycopgConnectionManager

    manager = PsycopgConnectionManager(server.url, reset="none", autocommit=True)
    async with Pool(manager, max_size=CONNECTIONS, min_idle=CONNECTIONS) as pool:

        async def use() -> None:
            async with pool.get() as conn:
                await (await conn.execute("SELECT 1")).fetchone()

        yield use


@contestant("postgres", "psycopg_pool, no reset", like="psycopg, no reset", limit="raw psycopg")
async def _psycopg_pool(server: Server) -> AsyncIterator[Any]:
    """With autocommit, so that the end of its `async with` sends nothing."""
    async with driver("psycopg_pool").AsyncConnectionPool(
        server.url, min_size=CONNECTIONS, max_size=CONNECTIONS, kwargs={"autocommit": True}, open=False
    ) as pool:
        await pool.wait()

        async def use() -> None:
            async with pool.connection() as conn:
                await (await conn.execute("SELECT 1")).fetchone()

        yield use


# --- Redis


async def _fill_redis(client: Any) -> None:
    await client.set("bench", "x" * 16)


def _raw_redis(command: str) -> Callable[[Server], AsyncIterator[Any]]:
    async def opener(server: Server) -> AsyncIterator[Any]:
        redis = driver("redis.asyncio").Redis
        clients = [redis.from_url(server.url, single_connection_client=True) for _ in range(CONNECTIONS)]
        for client in clients:
            await client.initialize()
        await _fill_redis(clients[0])
        yield [lambda client=client: client.get("bench") if command == "GET" else client.ping() for client in clients]
        for client in clients:
            await client.aclose()

    return opener


def _ours_redis(command: str) -> Callable[[Server], AsyncIterator[Any]]:
    async def opener(server: Server) -> AsyncIterator[Any]:
        from pool_core import Pool
        from pool_redis import RedisConnectionManager

        async with Pool(RedisConnectionManager(server.url), max_size=CONNECTIONS, min_idle=CONNECTIONS) as pool:
            async with pool.get() as client:
                await _fill_redis(client)

            async def get() -> None:
                async with pool.get() as client:
                    await client.get("bench")

            async def ping() -> None:
                async with pool.get() as client:
                    await client.ping()

            yield get if command == "GET" else ping

    return opener


def _redis_pool(command: str, kind: str, size: int) -> Callable[[Server], AsyncIterator[Any]]:
    async def opener(server: Server) -> AsyncIterator[Any]:
        redis = driver("redis.asyncio")
        pool = getattr(redis, kind).from_url(server.url, max_connections=size)
        client = redis.Redis.from_pool(pool)
        try:
            await _fill_redis(client)
            yield (lambda: client.get("bench")) if command == "GET" else client.ping
        finally:
            await client.aclose()

    return opener


for _command in ("GET", "PING"):
    _kind = f"redis {_command}"
    contestant(_kind, "raw redis-py")(_raw_redis(_command))
    contestant(_kind, "ours (redis-py)", like="redis-py", ours=True, limit="raw redis-py")(_ours_redis(_command))
    contestant(_kind, "BlockingConnectionPool", like="redis-py", limit="raw redis-py")(
        _redis_pool(_command, "BlockingConnectionPool", CONNECTIONS)
    )
    # With ten it raises when an eleventh task comes, so it has as many as there are tasks.
    contestant(_kind, "ConnectionPool of 100", limit="raw redis-py")(_redis_pool(_command, "ConnectionPool", TASKS))


# --- MariaDB


def _mysql(server: Server) -> dict[str, Any]:
    return {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "password": server.password,
        "db": server.database,
        "autocommit": True,
    }


async def _select(conn: Any) -> None:
    async with conn.cursor() as cursor:
        await cursor.execute("SELECT 1")
        await cursor.fetchone()


@contestant("mariadb", "raw aiomysql")
async def _raw_aiomysql(server: Server) -> AsyncIterator[Any]:
    """Ten connections, each of one task."""
    aiomysql = driver("aiomysql")
    conns = [await aiomysql.connect(**_mysql(server)) for _ in range(CONNECTIONS)]
    yield [lambda conn=conn: _select(conn) for conn in conns]
    for conn in conns:
        await conn.ensure_closed()


def _ours_mysql(reset: str) -> Callable[[Server], AsyncIterator[Any]]:
    async def opener(server: Server) -> AsyncIterator[Any]:
        from pool_core import Pool
        from pool_mysql import MySQLConnectionManager

        manager = MySQLConnectionManager(reset=reset, **_mysql(server))  # type: ignore[arg-type]
        async with Pool(manager, max_size=CONNECTIONS, min_idle=CONNECTIONS) as pool:

            async def use() -> None:
                async with pool.get() as conn:
                    await _select(conn)

            yield use

    return opener


def _mysql_pool(module: str) -> Callable[[Server], AsyncIterator[Any]]:
    async def opener(server: Server) -> AsyncIterator[Any]:
        async with driver(module).create_pool(minsize=CONNECTIONS, maxsize=CONNECTIONS, **_mysql(server)) as pool:

            async def use() -> None:
                async with pool.acquire() as conn:
                    await _select(conn)

            yield use

    return opener


contestant("mariadb", "ours (aiomysql), no reset", like="aiomysql, no reset", ours=True, limit="raw aiomysql")(
    _ours_mysql("none")
)
contestant("mariadb", "aiomysql.Pool (never resets)", like="aiomysql, no reset", limit="raw aiomysql")(
    _mysql_pool("aiomysql")
)
contestant("mariadb", "ours (aiomysql), reset", ours=True, limit="raw aiomysql")(_ours_mysql("safe"))


@contestant("mariadb", "raw asyncmy")
async def _raw_asyncmy(server: Server) -> AsyncIterator[Any]:
    """Ten connections, each of one task."""
    asyncmy = driver("asyncmy")
    conns = [await asyncmy.connect(**_mysql(server)) for _ in range(CONNECTIONS)]
    yield [lambda conn=conn: _select(conn) for conn in conns]
    for conn in conns:
        await conn.ensure_closed()


@contestant("mariadb", "ours (asyncmy), no reset", like="asyncmy, no reset", ours=True, limit="raw asyncmy")
async def _ours_asyncmy(server: Server) -> AsyncIterator[Any]:
    """The four methods for asyncmy, for this comparison only."""
    from pool_core import Pool

    asyncmy = driver("asyncmy")

    class Manager:
        async def connect(self) -> Any:
            return await asyncmy.connect(**_mysql(server))

        async def is_valid(self, conn: Any, /) -> bool:
            await conn.ping(reconnect=False)
            return True

        def has_broken(self, conn: Any, /) -> bool:
            return not conn.connected

        async def close(self, conn: Any, /) -> None:
            await conn.ensure_closed()

    async with Pool(Manager(), max_size=CONNECTIONS, min_idle=CONNECTIONS) as pool:

        async def use() -> None:
            async with pool.get() as conn:
                await _select(conn)

        yield use


contestant("mariadb", "asyncmy.Pool (never resets)", like="asyncmy, no reset", limit="raw asyncmy")(
    _mysql_pool("asyncmy")
)


# --- measuring


async def load(opened: Any, tasks: int, seconds: float) -> dict[str, float]:
    """Let so many tasks use it for so many seconds: rate, CPU of this thread a use, p99 of a use, Jain's index."""
    uses = opened if isinstance(opened, list) else [opened]
    if isinstance(opened, list):
        tasks = min(tasks, len(uses))
    counts = [0] * tasks
    times: list[float] = []
    running = True

    async def user(number: int) -> None:
        use, done = uses[number % len(uses)], 0
        while running:
            began = perf_counter()
            await use()
            times.append(perf_counter() - began)
            done += 1
        counts[number] = done

    def stop() -> None:
        nonlocal running
        running = False

    loop = asyncio.get_running_loop()
    users = [loop.create_task(user(number)) for number in range(tasks)]
    loop.call_later(seconds, stop)
    wall, cpu = perf_counter(), thread_time()
    await asyncio.gather(*users)
    wall, cpu = perf_counter() - wall, thread_time() - cpu
    return {
        "rate": sum(counts) / wall,
        "cpu": cpu / sum(counts),
        "p50": percentile(times, 0.5),
        "p99": percentile(times, 0.99),
        "jain": jain(counts),
    }


async def measure(kind: str, server: Server, *, rounds: int, seconds: float) -> list[Result]:
    """All contestants of one server, interleaved, alone and crowded. A value is seconds a use, by the clock on the wall."""
    ones = [one for one in SERVER_CONTESTANTS if one.server == kind]
    likes = list(dict.fromkeys(one.like or one.name for one in ones))
    results: dict[tuple[str, int], Result] = {}
    async with AsyncExitStack() as stack:
        opened: dict[str, Any] = {}
        for one in ones:
            progress(f"{kind}: {one.name} opens")
            for tasks in (1, TASKS):
                results[one.name, tasks] = Result(f"{kind}, {tasks} task{'s' * (tasks > 1)}", one.name)
            try:
                manager = one.open(server)
                opened[one.name] = await asyncio.wait_for(manager.__aenter__(), PATIENCE)
                stack.push_async_callback(_leave, manager)
                await asyncio.wait_for(load(opened[one.name], TASKS, 0.05), PATIENCE)
            except Exception as error:  # noqa: BLE001 (told of in the table)
                opened.pop(one.name, None)
                for tasks in (1, TASKS):
                    results[one.name, tasks].note = failure(error)
        # Those that are compared come one after the other: nothing much changes in between.
        groups = [[one.name for one in ones if one.name in opened and (one.like or one.name) == like] for like in likes]
        with quiet_collector():
            for tasks in (1, TASKS):
                for number in range(rounds):
                    random.shuffle(groups)
                    for name in (name for group in groups for name in random.sample(group, len(group))):
                        progress(f"{kind}, {tasks} at once, round {number + 1} of {rounds}: {name}")
                        gc.collect()
                        figures = await load(opened[name], tasks, seconds if tasks > 1 else seconds * 0.4)
                        result = results[name, tasks]
                        result.values.append(1 / figures["rate"])
                        for key, figure in figures.items():
                            result.extra.setdefault(key, []).append(figure)
    progress("")
    for peer in ones:
        for mine in ones:
            if mine.ours and not peer.ours and mine.like and mine.like == peer.like:
                for tasks in (1, TASKS):
                    _compare(results[peer.name, tasks], results[mine.name, tasks])
    return list(results.values())


def _compare(peer: Result, mine: Result) -> None:
    """Note how ours did in the same round."""
    for figure in ("rate", "p99", "cpu"):
        if peer.values and mine.values:
            pairs = zip(mine.extra[figure], peer.extra[figure], strict=True)
            peer.extra[f"ours, x its {figure}"] = [ours / its for ours, its in pairs]


async def _leave(manager: AbstractAsyncContextManager[Any]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(manager.__aexit__(None, None, None), 5)
