"""A Litestar service on SQLite: the pool in the application's lifespan, a connection as a dependency.

python examples/litestar_app.py             # or DATABASE_URL=sqlite:///notes.db
curl -X POST localhost:8000/notes/hello; curl localhost:8000/notes; curl localhost:8000/metrics
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
import uvicorn
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath
from pool_core import Pool, PoolUnavailable
from pool_core.prometheus import instrument
from pool_sqlite import SqliteConnectionManager
from prometheus_client import CollectorRegistry, generate_latest


@post("/notes/{text:str}")
async def write(text: FromPath[str], conn: NamedDependency[aiosqlite.Connection]) -> int:
    cursor = await conn.execute("INSERT INTO notes (text) VALUES (?)", (text,))
    await conn.commit()
    return cursor.lastrowid or 0


@get("/notes")
async def read(conn: NamedDependency[aiosqlite.Connection]) -> list[str]:
    return [text for (text,) in await conn.execute_fetchall("SELECT text FROM notes ORDER BY id DESC LIMIT 10")]


def unavailable(_: Request[Any, Any, Any], error: PoolUnavailable) -> Response[dict[str, str]]:
    return Response({"detail": "busy: try again"}, status_code=503, headers={"Retry-After": "1"})


def create_app(pool: Pool[aiosqlite.Connection]) -> Litestar:
    registry = CollectorRegistry()

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        stop = instrument(pool, registry=registry)
        async with pool:
            async with pool.get() as conn:
                await conn.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
                await conn.commit()
            yield
        stop()

    # Litestar ends it when the handler has returned, before the response goes out.
    async def connection() -> AsyncGenerator[aiosqlite.Connection, None]:
        async with pool.get() as conn:
            yield conn

    @get("/metrics", media_type=MediaType.TEXT)
    async def metrics() -> str:
        return generate_latest(registry).decode()

    return Litestar(
        [write, read, metrics],
        lifespan=[lifespan],
        dependencies={"conn": Provide(connection)},
        exception_handlers={PoolUnavailable: unavailable},
    )


def main() -> None:
    manager = SqliteConnectionManager(os.environ.get("DATABASE_URL", "sqlite://"), wal=True)
    pool = Pool(manager, name="notes", max_size=4, min_idle=1, connection_timeout=5)
    uvicorn.run(create_app(pool), host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
