"""A web service on Flask: one pool, a connection where a request needs one, 503 where there is none.

flask --app examples/flask_app.py run       # SQLite in memory; else DATABASE_URL=sqlite:///app.db
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request
from pool_core.threads import Pool, PoolUnavailable


def create_app(url: str) -> Flask:
    """Make the application. Under a server that forks, call this in each worker."""
    app = Flask(__name__)
    pool: Pool[Any] = Pool.from_url(url, max_size=10, connection_timeout=2)
    pool.open(wait=False)
    app.extensions["pool"] = pool
    with pool.get() as conn, conn:
        conn.execute("CREATE TABLE IF NOT EXISTS users (name TEXT NOT NULL)")

    @app.post("/users")
    def create() -> tuple[dict[str, str], int]:
        name = request.get_json()["name"]
        with pool.get() as conn, conn:  # sqlite3's own block commits
            conn.execute("INSERT INTO users VALUES (?)", (name,))
        return {"name": name}, 201

    @app.get("/users")
    def users() -> list[str]:
        with pool.get() as conn:
            return [name for (name,) in conn.execute("SELECT name FROM users")]

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"pool": str(pool.state())}

    @app.errorhandler(PoolUnavailable)
    def unavailable(error: PoolUnavailable) -> tuple[dict[str, str], int]:
        return {"error": type(error).__name__}, 503

    return app


if os.environ.get("FLASK_RUN_FROM_CLI"):
    app = create_app(os.environ.get("DATABASE_URL", "sqlite://"))
