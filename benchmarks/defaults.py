"""Defaults against defaults: what a user gets who replaces a driver's own pool by this one and changes nothing.

    python -m benchmarks.defaults                    # every server that is there
    python -m benchmarks.defaults mysql --tasks 100
    python -m benchmarks.defaults postgres --delay 0.5   # with half a millisecond of network each way

Other than the like-with-like tables this compares pools that do not do the same: ours validates and resets, most others
do not. The row `ours, reset off` shows what the reset costs. `SELECT 1` (or its like) and a read of ten rows, on ten
connections. Interleaved rounds; a ratio is the median over the rounds of both figures of the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from .fakes import load as driver
from .measure import failure, progress, quiet_collector
from .servers import load

SIZE = 10
TEN_ROWS = "SELECT n, 'row' AS text FROM (VALUES (1),(2),(3),(4),(5),(6),(7),(8),(9),(10)) AS t(n)"
TEN_ROWS_MYSQL = " UNION ALL ".join(f"SELECT {number} AS n, 'row' AS text" for number in range(1, 11))
Uses = dict[str, Callable[[], Any]]
Opener = Callable[[str], AbstractAsyncContextManager[Uses]]
CONTESTANTS: dict[str, dict[str, Opener]] = {}


def contestant(server: str, name: str) -> Callable[[Callable[[str], AsyncIterator[Uses]]], Any]:
    """Register a generator that opens a pool on a URL and yields the two reads."""

    def register(opener: Callable[[str], AsyncIterator[Uses]]) -> Any:
        CONTESTANTS.setdefault(server, {})[name] = asynccontextmanager(opener)
        return opener

    return register


def both(read: Callable[[str], Any], ten_rows: str = TEN_ROWS) -> Uses:
    """The two reads, by one function of a statement."""
    return {"SELECT 1": lambda: read("SELECT 1"), "ten rows": lambda: read(ten_rows)}


def ours(manager: str, read: Callable[[Any, str], Any], ten_rows: str, **options: Any) -> Callable[[str], Any]:
    """This pool, over a manager named as in `pool_postgres.PostgresConnectionManager`."""

    async def opener(url: str) -> AsyncIterator[Uses]:
        from pool_core import Pool

        module, _, name = manager.partition(".")
        made = getattr(driver(module), name)(url, **options)
        async with Pool(made, max_size=SIZE, min_idle=SIZE) as pool:

            async def use(statement: str) -> None:
                async with pool.get() as conn:
                    await read(conn, statement)

            yield both(use, ten_rows)

    return opener


# --- PostgreSQL


async def _asyncpg_read(conn: Any, statement: str) -> None:
    await conn.fetch(statement)


async def _psycopg_read(conn: Any, statement: str) -> None:
    await (await conn.execute(statement)).fetchall()


_POSTGRES, _PSYCOPG = "pool_postgres.PostgresConnectionManager", "pool_psycopg.PsycopgConnectionManager"
contestant("postgres", "ours (asyncpg)")(ours(_POSTGRES, _asyncpg_read, TEN_ROWS))
contestant("postgres", "ours (asyncpg), reset off")(ours(_POSTGRES, _asyncpg_read, TEN_ROWS, reset="none"))
contestant("postgres", "ours (psycopg)")(ours(_PSYCOPG, _psycopg_read, TEN_ROWS))


@contestant("postgres", "asyncpg.Pool")
async def _asyncpg_pool(url: str) -> AsyncIterator[Uses]:
    async with driver("asyncpg").create_pool(url, min_size=SIZE, max_size=SIZE) as pool:

        async def use(statement: str) -> None:
            async with pool.acquire() as conn:
                await conn.fetch(statement)

        yield both(use)


@contestant("postgres", "psycopg_pool")
async def _psycopg_pool(url: str) -> AsyncIterator[Uses]:
    pool = driver("psycopg_pool").AsyncConnectionPool(url, min_size=SIZE, max_size=SIZE, open=False)
    async with pool:
        await pool.wait()

        async def use(statement: str) -> None:
            async with pool.connection() as conn:
                await (await conn.execute(statement)).fetchall()

        yield both(use)


def _engine(dialect: str, ten_rows: str, *, over_ours: bool) -> Callable[[str], AsyncIterator[Uses]]:
    async def opener(url: str) -> AsyncIterator[Uses]:
        sqlalchemy = driver("sqlalchemy")
        place = f"{dialect}://{url.split('://', 1)[1]}"
        if over_ours:
            engine = driver("pool_sqlalchemy").create_async_engine(place, max_size=SIZE)
        else:
            engine = driver("sqlalchemy.ext.asyncio").create_async_engine(place, pool_size=SIZE, max_overflow=0)

        async def use(statement: str) -> None:
            async with engine.connect() as conn:
                (await conn.execute(sqlalchemy.text(statement))).all()

        try:
            yield both(use, ten_rows)
        finally:
            await engine.dispose()

    return opener


contestant("postgres", "SQLAlchemy over ours")(_engine("postgresql+asyncpg", TEN_ROWS, over_ours=True))
contestant("postgres", "SQLAlchemy's own pool")(_engine("postgresql+asyncpg", TEN_ROWS, over_ours=False))


# --- MySQL and MariaDB


async def _mysql_read(conn: Any, statement: str) -> None:
    async with conn.cursor() as cursor:
        await cursor.execute(statement)
        await cursor.fetchall()


def _mysql_pool(module: str) -> Callable[[str], AsyncIterator[Uses]]:
    async def opener(url: str) -> AsyncIterator[Uses]:
        parts = urlsplit(url)
        login = {"host": parts.hostname, "port": parts.port, "user": parts.username, "password": parts.password}
        pools = driver(module).create_pool(minsize=SIZE, maxsize=SIZE, db=parts.path.strip("/"), **login)
        async with pools as pool:

            async def use(statement: str) -> None:
                async with pool.acquire() as conn:
                    await _mysql_read(conn, statement)

            yield both(use, TEN_ROWS_MYSQL)

    return opener


_MYSQL = "pool_mysql.MySQLConnectionManager"
for _server in ("mysql", "mariadb"):
    contestant(_server, "ours (aiomysql)")(ours(_MYSQL, _mysql_read, TEN_ROWS_MYSQL))
    contestant(_server, "ours (aiomysql), reset off")(ours(_MYSQL, _mysql_read, TEN_ROWS_MYSQL, reset="none"))
    contestant(_server, "aiomysql.Pool")(_mysql_pool("aiomysql"))
    contestant(_server, "asyncmy.Pool")(_mysql_pool("asyncmy"))


# --- Redis


async def _redis_uses(get: Callable[[Any], Any], client: Any) -> Uses:
    await client.set("one", "1")
    await client.delete("ten")
    await client.rpush("ten", *range(10))
    return {
        "SELECT 1": lambda: get(lambda client: client.get("one")),
        "ten rows": lambda: get(lambda client: client.lrange("ten", 0, -1)),
    }


@contestant("redis", "ours (redis-py)")
async def _ours_redis(url: str) -> AsyncIterator[Uses]:
    from pool_core import Pool

    async with Pool.from_url(url, max_size=SIZE, min_idle=SIZE) as pool:

        async def use(command: Callable[[Any], Any]) -> None:
            async with pool.get() as client:
                await command(client)

        async with pool.get() as client:
            uses = await _redis_uses(use, client)
        yield uses


@contestant("redis", "BlockingConnectionPool")
async def _blocking_pool(url: str) -> AsyncIterator[Uses]:
    redis = driver("redis.asyncio")
    client = redis.Redis.from_pool(redis.BlockingConnectionPool.from_url(url, max_connections=SIZE))

    async def use(command: Callable[[Any], Any]) -> None:
        await command(client)

    try:
        yield await _redis_uses(use, client)
    finally:
        await client.aclose()


# --- MongoDB


def _mongo_uses(use: Callable[[Callable[[Any, Any], Any]], Any]) -> Uses:
    return {
        "SELECT 1": lambda: use(lambda rows, session: rows.find_one({"_id": 1}, session=session)),
        "ten rows": lambda: use(lambda rows, session: rows.find({}, session=session).to_list(10)),
    }


@contestant("mongo", "ours (PyMongo sessions)")
async def _ours_mongo(url: str) -> AsyncIterator[Uses]:
    from pool_core import Pool

    async with Pool.from_url(url, max_size=SIZE, min_idle=SIZE) as pool:

        async def use(command: Callable[[Any, Any], Any]) -> None:
            async with pool.get() as session:
                await command(session.client.bench.rows, session)

        yield _mongo_uses(use)


@contestant("mongo", "AsyncMongoClient alone")
async def _mongo_client(url: str) -> AsyncIterator[Uses]:
    client = driver("pymongo").AsyncMongoClient(url, maxPoolSize=SIZE)
    rows = client.bench.rows
    await rows.delete_many({})
    await rows.insert_many([{"_id": number, "text": "row"} for number in range(10)])

    async def use(command: Callable[[Any, Any], Any]) -> None:
        await command(rows, None)

    try:
        yield _mongo_uses(use)
    finally:
        await client.close()


# --- SQLite


async def _sqlite_read(conn: Any, statement: str) -> None:
    await conn.execute_fetchall(statement)


TEN_ROWS_SQLITE = "WITH t(n) AS (VALUES (1),(2),(3),(4),(5),(6),(7),(8),(9),(10)) SELECT n, 'row' FROM t"
contestant("sqlite", "ours (aiosqlite)")(ours("pool_sqlite.SqliteConnectionManager", _sqlite_read, TEN_ROWS_SQLITE))


@contestant("sqlite", "aiosqlitepool")
async def _aiosqlitepool(url: str) -> AsyncIterator[Uses]:
    aiosqlite = driver("aiosqlite")

    async def connect() -> Any:
        return await aiosqlite.connect(url.removeprefix("sqlite:///"))

    pool = driver("aiosqlitepool").SQLiteConnectionPool(connect, pool_size=SIZE)

    async def use(statement: str) -> None:
        async with pool.connection() as conn:
            await _sqlite_read(conn, statement)

    try:
        yield both(use, TEN_ROWS_SQLITE)
    finally:
        await pool.close()


# --- measuring


def ratio(mine: list[dict[str, float]], first: list[dict[str, float]], figure: str) -> float:
    """Return the median of the ratios within each round."""
    return statistics.median(one[figure] / other[figure] for one, other in zip(mine, first, strict=True))


async def measure(server: str, url: str, tasks: list[int], rounds: int, seconds: float) -> list[str]:
    """Return the table of one server, row by row."""
    rows = [
        "| pool | read | tasks | uses/s | x the first row's rate | p50 ms | p99 ms | x its p99 |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    figures: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    notes: list[str] = []
    async with AsyncExitStack() as stack:
        opened: dict[str, Uses] = {}
        for name, opener in CONTESTANTS[server].items():
            try:
                opened[name] = await asyncio.wait_for(stack.enter_async_context(opener(url)), 30)
                for use in opened[name].values():
                    await asyncio.wait_for(load(use, max(tasks), 0.05), 60)
            except Exception as error:  # noqa: BLE001 (told of in the table)
                opened.pop(name, None)
                notes.append(f"{name}: {failure(error)}")
        with quiet_collector():
            for number in range(rounds):
                for read in ("SELECT 1", "ten rows"):
                    for count in tasks:
                        for name in random.sample(list(opened), len(opened)):
                            progress(f"{server}: round {number + 1} of {rounds}, {read}, {count} tasks: {name}")
                            gc.collect()
                            figures.setdefault((name, read, count), []).append(
                                await load(opened[name][read], count, seconds)
                            )
    progress("")
    base = next(iter(CONTESTANTS[server]))
    for read in ("SELECT 1", "ten rows"):
        for count in tasks:
            for name in CONTESTANTS[server]:
                if (mine := figures.get((name, read, count))) is None:
                    continue
                first = figures.get((base, read, count), mine)

                rate, p50, p99 = (statistics.median(one[figure] for one in mine) for figure in ("rate", "p50", "p99"))
                cells = f"{rate:,.0f} | {ratio(mine, first, 'rate'):.2f} | {p50 * 1000:.1f} | {p99 * 1000:.1f} | {ratio(mine, first, 'p99'):.2f}"
                rows.append(f"| {name} | {read} | {count} | {cells} |")
    return [*rows, *(f"\nLeft out: {note}" for note in notes)]


@contextlib.contextmanager
def delayed(url: str, milliseconds: float) -> Any:
    """Put a slower network before a server."""
    parts = urlsplit(url)
    command = [sys.executable, "-m", "benchmarks.delay", str(parts.hostname), str(parts.port), str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            yield url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}")
        finally:
            process.terminate()


def main() -> None:
    """Measure what was asked for, and print a table for each server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("server", nargs="*", help=f"default: all of {', '.join(CONTESTANTS)}")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 100, 1000], metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="milliseconds of network, each way")
    args = parser.parse_args()
    if wrong := [name for name in args.server if name not in CONTESTANTS]:
        parser.error(f"no server {wrong[0]!r}: choose from {', '.join(CONTESTANTS)}")
    from containers.servers import Servers

    servers = Servers()
    try:
        for kind in args.server or list(CONTESTANTS):
            with contextlib.ExitStack() as stack:
                if kind == "sqlite":
                    url, about = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/bench.db", "SQLite"
                else:
                    server = servers.get(kind)
                    url, about = server.url, f"{server.name} {server.version}"
                    if args.delay:
                        url = stack.enter_context(delayed(url, args.delay))
                        about += f", {args.delay:g} ms of network each way"
                table = asyncio.run(measure(kind, url, args.tasks, args.rounds, args.seconds))
                print(f"\n### {about}\n", *table, sep="\n", flush=True)
    finally:
        servers.close()


if __name__ == "__main__":
    main()
