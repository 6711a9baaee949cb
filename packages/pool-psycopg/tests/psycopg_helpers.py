"""Short ways to ask a connection, used by several files of tests."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

__all__ = ["LEAKS", "admin", "cut_off", "in_transaction", "kill", "pid", "returned", "value", "works"]


# What is left behind, how, and what then shows it.
LEAKS = {
    "role": ("SET ROLE pg_monitor", "SELECT current_user::text"),
    "session authorization": ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user::text"),
    "role under another authorization": (
        "SET SESSION AUTHORIZATION pg_monitor; SET ROLE pg_read_all_stats",
        "SELECT current_user || ' ' || session_user",
    ),
    "search_path": ("SET search_path = nowhere", "SHOW search_path"),
    "setting": ("SET statement_timeout = '33s'", "SHOW statement_timeout"),
    "time zone": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW TimeZone"),
    "isolation": ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SHOW transaction_isolation"),
    "read-only": ("SET default_transaction_read_only = on", "SHOW transaction_read_only"),
    "tenant of row security": ("SELECT set_config('app.tenant', '7', false)", "SELECT coalesce(current_setting('app.tenant', true), '')"),
    "advisory lock": (
        "SELECT pg_advisory_lock(815), pg_advisory_lock_shared(816)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "LISTEN": ("LISTEN leak", "SELECT count(*) FROM pg_listening_channels()"),
    "temporary table": ("CREATE TEMP TABLE leak AS SELECT 1", "SELECT to_regclass('pg_temp.leak')::text"),
    "temporary view": ("CREATE TEMP VIEW leak_view AS SELECT 1", "SELECT to_regclass('pg_temp.leak_view')::text"),
    "temporary function": (
        "CREATE FUNCTION pg_temp.leak() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT to_regproc('pg_temp.leak')::text",
    ),
    "cursor": ("DECLARE leak CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors WHERE name = 'leak'"),
    "open transaction": ("BEGIN; SELECT pg_current_xact_id()", "SELECT pg_current_xact_id_if_assigned()::text"),
}  # fmt: skip


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
