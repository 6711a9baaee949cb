"""An aiohttp service on SQLite: the pool is opened and closed by the application's clean-up context.

python examples/aiohttp_app.py              # or DATABASE_URL=sqlite:///notes.db
curl -X POST localhost:8080/notes/hello; curl localhost:8080/notes; curl localhost:8080/metrics
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiosqlite
from aiohttp import web
from aiohttp.typedefs import Handler
from pool_core import Pool, PoolUnavailable
from pool_core.prometheus import instrument
from pool_sqlite import SqliteConnectionManager
from prometheus_client import CollectorRegistry, generate_latest

POOL = web.AppKey("POOL", Pool[aiosqlite.Connection])
REGISTRY = web.AppKey("REGISTRY", CollectorRegistry)


async def opened(app: web.Application) -> AsyncIterator[None]:
    stop = instrument(app[POOL], registry=app[REGISTRY])
    async with app[POOL] as pool:
        async with pool.get() as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
            await conn.commit()
        yield
    stop()


async def write(request: web.Request) -> web.Response:
    async with request.app[POOL].get() as conn:
        cursor = await conn.execute("INSERT INTO notes (text) VALUES (?)", (request.match_info["text"],))
        await conn.commit()
    # Here the connection is back: however slowly the client reads, it holds none.
    return web.json_response(cursor.lastrowid, status=201)


async def read(request: web.Request) -> web.Response:
    async with request.app[POOL].get() as conn:
        rows = await conn.execute_fetchall("SELECT text FROM notes ORDER BY id DESC LIMIT 10")
    return web.json_response([text for (text,) in rows])


async def metrics(request: web.Request) -> web.Response:
    return web.Response(text=generate_latest(request.app[REGISTRY]).decode())


@web.middleware
async def unavailable(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except PoolUnavailable:
        return web.json_response({"detail": "busy: try again"}, status=503, headers={"Retry-After": "1"})


def create_app(pool: Pool[aiosqlite.Connection]) -> web.Application:
    app = web.Application(middlewares=[unavailable])
    app[POOL], app[REGISTRY] = pool, CollectorRegistry()
    app.cleanup_ctx.append(opened)
    app.add_routes([web.post("/notes/{text}", write), web.get("/notes", read), web.get("/metrics", metrics)])
    return app


def main() -> None:
    manager = SqliteConnectionManager(os.environ.get("DATABASE_URL", "sqlite://"), wal=True)
    pool = Pool(manager, name="notes", max_size=4, min_idle=1, connection_timeout=5)
    web.run_app(create_app(pool), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))


if __name__ == "__main__":
    main()
