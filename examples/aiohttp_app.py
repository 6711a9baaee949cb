"""An aiohttp service on SQLite: the pool is opened and closed by the application's clean-up context.

python examples/aiohttp_app.py              # or DATABASE_URL=sqlite:///notes.db
curl -X POST localhost:8080/notes/hello; curl localhost:8080/notes
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiosqlite
from aiohttp import web
from aiohttp.typedefs import Handler
from pool_core import Pool, PoolTimeout
from pool_sqlite import SqliteConnectionManager

POOL = web.AppKey("POOL", Pool[aiosqlite.Connection])


async def opened(app: web.Application) -> AsyncIterator[None]:
    async with app[POOL] as pool:
        async with pool.get() as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
            await conn.commit()
        yield


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


@web.middleware
async def busy(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except PoolTimeout as error:
        headers = {"Retry-After": "1"}
        return web.json_response({"detail": f"no connection within {error.waited:.1f} s"}, status=503, headers=headers)


def create_app(pool: Pool[aiosqlite.Connection]) -> web.Application:
    app = web.Application(middlewares=[busy])
    app[POOL] = pool
    app.cleanup_ctx.append(opened)
    app.add_routes([web.post("/notes/{text}", write), web.get("/notes", read)])
    return app


def main() -> None:
    manager = SqliteConnectionManager(os.environ.get("DATABASE_URL", "sqlite://"), wal=True)
    pool = Pool(manager, name="notes", max_size=4, min_idle=1, connection_timeout=5)
    web.run_app(create_app(pool), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))


if __name__ == "__main__":
    main()
