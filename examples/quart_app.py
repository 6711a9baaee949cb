"""A Quart service on SQLite: the pool is open while the application serves.

python examples/quart_app.py                # or DATABASE_URL=sqlite:///notes.db
curl -X POST localhost:8000/notes/hello; curl localhost:8000/notes; curl localhost:8000/metrics
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator

import aiosqlite
import uvicorn
from pool_core import Pool, PoolUnavailable
from pool_core.prometheus import instrument
from pool_sqlite import SqliteConnectionManager
from prometheus_client import CollectorRegistry, generate_latest
from quart import Quart, Response, jsonify


def create_app(pool: Pool[aiosqlite.Connection]) -> Quart:
    app = Quart("notes")
    registry = CollectorRegistry()

    @app.while_serving
    async def opened() -> AsyncGenerator[None, None]:
        stop = instrument(pool, registry=registry)
        async with pool:
            async with pool.get() as conn:
                await conn.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
                await conn.commit()
            yield
        stop()

    @app.post("/notes/<text>")
    async def write(text: str) -> tuple[Response, int]:
        async with pool.get() as conn:
            cursor = await conn.execute("INSERT INTO notes (text) VALUES (?)", (text,))
            await conn.commit()
        return jsonify(cursor.lastrowid), 201

    @app.get("/notes")
    async def read() -> Response:
        async with pool.get(timeout=2) as conn:  # a shorter time than connection_timeout, for this route
            rows = await conn.execute_fetchall("SELECT text FROM notes ORDER BY id DESC LIMIT 10")
        return jsonify([text for (text,) in rows])

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), mimetype="text/plain")

    @app.errorhandler(PoolUnavailable)
    async def unavailable(_: Exception) -> tuple[Response, int, dict[str, str]]:
        return jsonify(detail="busy: try again"), 503, {"Retry-After": "1"}

    return app


def main() -> None:
    manager = SqliteConnectionManager(os.environ.get("DATABASE_URL", "sqlite://"), wal=True)
    pool = Pool(manager, name="notes", max_size=4, min_idle=1, connection_timeout=5)
    uvicorn.run(create_app(pool), host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
