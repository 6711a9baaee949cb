"""Diesel's page on r2d2 as a program: threads create users through a pool.

python examples/threads_users.py            # SQLite in memory, or DATABASE_URL

DATABASE_URL=postgresql+psycopg://user:password@host/database needs pool-psycopg.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from pool_core.threads import Pool

MAX_USERS = 20


def create_user(pool: Pool[Any], name: str, mark: str) -> None:
    """Insert one user, on a connection of its own."""
    with pool.get() as conn:
        cursor = conn.cursor()
        cursor.execute(f"INSERT INTO threads_users (name) VALUES ({mark})", (name,))
        cursor.close()
        conn.commit()


def main(url: str) -> None:
    mark = "?" if url.startswith("sqlite") else "%s"
    with Pool.from_url(url, max_size=4, min_idle=1) as pool:
        with pool.get() as conn:
            cursor = conn.cursor()
            cursor.execute("DROP TABLE IF EXISTS threads_users")
            cursor.execute("CREATE TABLE threads_users (name TEXT NOT NULL)")
            cursor.close()
            conn.commit()
        threads = [
            threading.Thread(target=create_user, args=(pool, f"user {number}", mark)) for number in range(MAX_USERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pool.get() as conn:
            cursor = conn.cursor()
            cursor.execute("SELECT count(*), count(DISTINCT name) FROM threads_users")
            print("users:", *cursor.fetchone())
            cursor.execute("DROP TABLE threads_users")
            cursor.close()
            conn.commit()
        print("connections:", pool.state().statistics.connections_created <= 4)


if __name__ == "__main__":
    main(os.environ.get("DATABASE_URL", "sqlite://"))
