"""A FastAPI service on PostgreSQL: the pool lives as long as the application, a connection as long as a request needs it.

DATABASE_URL=postgresql://user:password@localhost/database python examples/fastapi_app.py
curl -X POST localhost:8000/notes/hello; curl localhost:8000/notes; curl localhost:8000/metrics

Several processes: uvicorn --factory examples.fastapi_app:app --workers 4. Each makes a pool of its own after the fork.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pool_core import Pool, PoolUnavailable
from pool_core.prometheus import instrument
from pool_postgres import PostgresConnectionManager
from prometheus_client import CollectorRegistry, generate_latest

logger = logging.getLogger("notes")


async def connection(request: Request) -> AsyncIterator[asyncpg.Connection]:
    async with request.app.state.pool.get() as conn:
        yield conn


# scope="function": returned before the response goes out. FastAPI's default, "request", keeps it until the client has
# read the last byte, so that a few slow clients hold all connections.
Connection = Annotated[asyncpg.Connection, Depends(connection, scope="function")]


def create_app(pool: Pool[asyncpg.Connection]) -> FastAPI:
    registry = CollectorRegistry()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        stop = instrument(pool, registry=registry)
        async with pool:  # a wrong password fails here, before the first request; at the end, requests are waited for
            async with pool.get() as conn:
                await conn.execute("CREATE TABLE IF NOT EXISTS notes (id serial PRIMARY KEY, text text NOT NULL)")
            yield
        stop()

    app = FastAPI(lifespan=lifespan)
    app.state.pool = pool

    @app.post("/notes/{text}", status_code=201)
    async def write(text: str, conn: Connection) -> int:
        return int(await conn.fetchval("INSERT INTO notes (text) VALUES ($1) RETURNING id", text))

    @app.get("/notes")
    async def read(conn: Connection) -> list[str]:
        return [text for (text,) in await conn.fetch("SELECT text FROM notes ORDER BY id DESC LIMIT 10")]

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(registry))

    # Too many requests, or the database is away: not an error of this program, and worth another try.
    @app.exception_handler(PoolUnavailable)
    async def unavailable(_: Request, error: PoolUnavailable) -> JSONResponse:
        logger.warning("%s", error)
        return JSONResponse({"detail": "busy: try again"}, 503, {"Retry-After": "1"})

    return app


def app() -> FastAPI:
    manager = PostgresConnectionManager(os.environ["DATABASE_URL"], server_settings={"application_name": "notes"})
    return create_app(Pool(manager, name="notes", max_size=10, min_idle=1, connection_timeout=5, max_waiting=200))


def main() -> None:
    uvicorn.run(app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
