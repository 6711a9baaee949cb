"""The pool in one program: open, acquire, wait, time out, look, close.

python examples/quickstart.py               # SQLite in memory; else DATABASE_URL=postgresql://..., mysql://...
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from pool_core import Pool, PoolTimeout


async def main(url: str) -> None:
    # Any adapter that is installed, by the URL's scheme. A wrong password would fail here, with the driver's own error.
    async with Pool.from_url(url, max_size=2, min_idle=1) as pool:
        # A block acquires a connection, the driver's own, and returns it at its end.
        async with pool.get() as conn:
            print("one:", await one(conn))

        # Twenty tasks share two connections: who comes first is served first.
        async def ask() -> int:
            async with pool.get(timeout=5) as conn:
                return await one(conn)

        print("sum of twenty:", sum(await asyncio.gather(*(ask() for _ in range(20)))))

        # Without a block: for a connection whose end is elsewhere.
        lease = await pool.get()
        try:
            print("one:", await one(lease.conn))
            async with pool.get():
                await pool.get(timeout=0.1)
        except PoolTimeout as error:
            print("no connection:", error)
        finally:
            lease.release()

        state = pool.state()
        print(
            f"{state.in_use} in use; {state.statistics.gets_waited} of {state.statistics.gets_started} gets had to wait"
        )


async def one(conn: Any) -> int:
    """SELECT 1, in the dialect of the driver."""
    if hasattr(conn, "fetchval"):  # asyncpg
        return int(await conn.fetchval("SELECT 1"))
    async with conn.cursor() as cursor:  # aiosqlite, aiomysql
        await cursor.execute("SELECT 1")
        (number,) = await cursor.fetchone()
        return int(number)


if __name__ == "__main__":
    asyncio.run(main(os.environ.get("DATABASE_URL", "sqlite://")))
