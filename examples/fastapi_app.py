"""A FastAPI service on PostgreSQL: the pool lives as long as the application, a connection as long as a request needs it.

DATABASE_URL=postgresql://user:password@localhost/database python examples/fastapi_app.py
curl -X POST localhost:8000/notes/hello; curl localhost:8000/notes
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pool_core import Pool, PoolTimeout
from pool_postgres import PostgresConnectionManager


async def connection(request: Request) -> AsyncIterator[asyncpg.Connection]:
    async with request.app.state.pool.get() as conn:
        yield conn


# scope="function": given back before the response goes out. FastAPI's default, "request", keeps it until the client has
# read the last byte, so that a few slow clients hold all connections.
Connection = Annotated[asyncpg.Connection, Depends(connection, scope="function")]


def create_app(pool: Pool[asyncpg.Connection]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with pool:  # a wrong password fails here, before the first request; at the end, requests are waited for
            async with pool.get() as conn:
                await conn.execute("CREATE TABLE IF NOT EXISTS notes (id serial PRIMARY KEY, text text NOT NULL)")
            yield

    app = FastAPI(lifespan=lifespan)
    app.state.pool = pool

    @app.post("/notes/{text}", status_code=201)
    async def write(text: str, conn: Connection) -> int:
        return int(await conn.fetchval("INSERT INTO notes (text) VALUES ($1) RETURNING id", text))

    @app.get("/notes")
    async def read(conn: Connection) -> list[str]:
        return [text for (text,) in await conn.fetch("SELECT text FROM notes ORDER BY id DESC LIMIT 10")]

    @app.exception_handler(PoolTimeout)
    async def busy(_: Request, error: PoolTimeout) -> JSONResponse:
        return JSONResponse({"detail": f"no connection within {error.waited:.1f} s"}, 503, {"Retry-After": "1"})

    return app


def main() -> None:
    manager = PostgresConnectionManager(os.environ["DATABASE_URL"], server_settings={"application_name": "notes"})
    pool = Pool(manager, name="notes", max_size=10, min_idle=1, connection_timeout=5)
    uvicorn.run(create_app(pool), host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
