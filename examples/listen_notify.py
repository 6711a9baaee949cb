"""LISTEN and NOTIFY on PostgreSQL: the listener has a connection beside the pool, and comes back when it breaks.

A connection of the pool is reset between borrowers, and UNLISTEN is a part of that: one that listens for long is no
connection for a pool.

    DATABASE_URL=postgresql://user:password@localhost/database python examples/listen_notify.py
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import asyncpg
from pool_core import Pool
from pool_postgres import PostgresConnectionManager


async def listen(pool: Pool[asyncpg.Connection], channel: str, heard: Callable[[str], None]) -> None:
    """Call `heard` with each message, until cancelled. What is sent while no connection stands is not heard."""

    while True:
        try:
            await listen_on_one_connection(pool, channel, heard)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            print("not listening:", error, flush=True)
        await asyncio.sleep(0.2)


async def listen_on_one_connection(pool: Pool[asyncpg.Connection], channel: str, heard: Callable[[str], None]) -> None:
    """Return when the connection is lost."""
    lost = asyncio.Event()
    # Made like the pool's own connections, by its manager and within its timeouts, but neither counted nor pooled.
    async with pool.dedicated_connection() as conn:
        conn.add_termination_listener(lambda _: lost.set())
        await conn.add_listener(channel, lambda _conn, _pid, _channel, message: heard(str(message)))
        print("listening", flush=True)
        await lost.wait()


async def main(url: str) -> None:
    async with Pool(PostgresConnectionManager(url), max_size=2, min_idle=1) as pool:
        messages: asyncio.Queue[str] = asyncio.Queue()
        listener = asyncio.create_task(listen(pool, "orders", messages.put_nowait))
        try:
            number = 0
            while number < int(os.environ.get("ORDERS", "10")):
                async with pool.get() as conn:
                    await conn.execute("SELECT pg_notify('orders', $1)", str(number))
                try:
                    async with asyncio.timeout(1):
                        print("order", await messages.get(), flush=True)
                    number += 1
                    await asyncio.sleep(0.1)
                except TimeoutError:
                    print("nobody heard it: once more")
        finally:
            listener.cancel()


if __name__ == "__main__":
    asyncio.run(main(os.environ["DATABASE_URL"]))
