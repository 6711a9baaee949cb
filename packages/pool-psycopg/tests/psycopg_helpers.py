"""Short ways to ask a connection, used by several files of tests."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

__all__ = ["admin", "cut_off", "in_transaction", "kill", "pid", "returned", "value", "works"]


async def value(conn: Any, query: str, *args: object) -> Any:
    """The first column of the first row."""
    cursor = conn.cursor(row_factory=tuple_row)
    row = await (await cursor.execute(query, args or None)).fetchone()
    return None if row is None else row[0]


def pid(conn: Any) -> int:
    """The server's process."""
    return int(conn.info.backend_pid)


def in_transaction(conn: Any) -> bool:
    """Whether a transaction is open or has failed."""
    return bool(conn.pgconn.transaction_status != TransactionStatus.IDLE)


async def returned(manager: Any, conn: Any) -> None:
    """Do what the pool does with a connection that comes back."""
    assert manager.has_broken(conn) is False
    reset = manager.reset(conn)
    if reset is not None:
        await reset
    assert manager.has_broken(conn) is False


async def cut_off(conn: Any, query: str = "SELECT pg_sleep(30)") -> None:
    """Cancel a query in the middle."""
    task = asyncio.create_task(conn.execute(query))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def admin(url: str, query: str, *args: object) -> Any:
    """One statement by a connection of its own; its first value."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as opened:
        conn: Any = opened
        cursor = await conn.execute(query, args or None)
        row = await cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


async def kill(url: str, *pids: int) -> None:
    """Let the server end these sessions, and give the news a moment to arrive."""
    await admin(url, "SELECT bool_and(pg_terminate_backend(pid, 2000)) FROM unnest(%s::int[]) AS pid", list(pids))
    await asyncio.sleep(0.05)


async def works(pool: Any, timeout: float = 5.0) -> int:
    """Get a connection and use it; its session."""
    async with pool.get(timeout=timeout) as conn:
        assert await value(conn, "SELECT %s::int + 1", 41) == 42
        return pid(conn)
