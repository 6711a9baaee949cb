"""SIGTERM ends a worker gracefully: what was begun is finished, nothing new is begun, and the pool is closed in time.

python examples/graceful_shutdown.py &      # SQLite in memory; else DATABASE_URL=sqlite:///jobs.db
kill $!
"""

from __future__ import annotations

import asyncio
import os
import signal

import aiosqlite
from pool_core import Pool
from pool_sqlite import SqliteConnectionManager

GRACE = 8.0
"""Seconds for the end: less than the ten after which an orchestrator sends SIGKILL."""


async def do_jobs(pool: Pool[aiosqlite.Connection], stop: asyncio.Event) -> int:
    done = 0
    while not stop.is_set():
        async with pool.get() as conn:
            await conn.execute("INSERT INTO jobs (state) VALUES ('begun')")
            await asyncio.sleep(0.3)  # the work
            await conn.execute("UPDATE jobs SET state = 'done' WHERE state = 'begun'")
            await conn.commit()
        done += 1
    return done


async def main(url: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    pool = Pool(SqliteConnectionManager(url), max_size=4, min_idle=1)
    await pool.open()
    async with pool.get() as conn:
        await conn.execute("CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, state TEXT)")
        await conn.commit()

    worker = asyncio.create_task(do_jobs(pool, stop))
    print("working", flush=True)
    await stop.wait()
    print("stopping", flush=True)

    # Waits for connections in use, refuses new gets, and terminates what is left after the timeout: it always ends.
    await pool.close(timeout=GRACE)
    print(f"{await worker} jobs done")


if __name__ == "__main__":
    asyncio.run(main(os.environ.get("DATABASE_URL", "sqlite://")))
