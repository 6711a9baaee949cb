"""After a failover the pool still holds connections to the old primary, which now only reads: one retry is all it takes.

The adapter's judge knows the error and retires all connections. All servers stand in the URL, and the driver looks for the one that writes:

    DATABASE_URL='postgresql://user:password@one:5432,two:5432/database?target_session_attrs=read-write' \
        python examples/failover.py
"""

from __future__ import annotations

import asyncio
import os

import asyncpg
from pool_core import Pool
from pool_postgres import PostgresConnectionManager


async def write(pool: Pool[asyncpg.Connection], number: int) -> int:
    """Write a row, to whichever server is the primary; returns that server's port."""
    for attempt in range(2):
        try:
            async with pool.get() as conn:
                await conn.execute("INSERT INTO events VALUES ($1)", number)
                return int(await conn.fetchval("SELECT inet_server_port()"))
        except asyncpg.ReadOnlySQLTransactionError:
            if attempt:
                raise
            print("read-only: once more, on a new connection", flush=True)
    raise AssertionError("bug: the second attempt returns or raises")


async def main(url: str) -> None:
    async with Pool(PostgresConnectionManager(url), max_size=3, min_idle=1) as pool:
        async with pool.get() as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS events (number int)")
        for number in range(int(os.environ.get("EVENTS", "20"))):
            print(f"event {number} is on port {await write(pool, number)}", flush=True)
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(os.environ["DATABASE_URL"]))
