"""Checked by mypy --strict and pyright, never run: what the types of a pool on SQLite promise.

A misspelt option must be an error. The ignores prove it: mypy --strict complains of one that nothing needs, and with
the setting below pyright does, too.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

import aiosqlite
from pool_core import ConnectionManager, Pool, PooledConnection, SupportsReset, SupportsTerminate, SupportsTransient
from pool_sqlite import SqliteConnectionManager

manager = SqliteConnectionManager("app.db", wal=True, busy_timeout=500, foreign_keys=True, isolation_level=None)

assert_type(Pool(manager), Pool[aiosqlite.Connection])
assert_type(Pool(SqliteConnectionManager("sqlite://")), Pool[aiosqlite.Connection])
assert_type(Pool(manager, max_size=3, idle_timeout=None), Pool[aiosqlite.Connection])

as_manager: ConnectionManager[aiosqlite.Connection] = manager
can_reset: SupportsReset[aiosqlite.Connection] = manager
can_terminate: SupportsTerminate[aiosqlite.Connection] = manager
can_tell: SupportsTransient = manager


async def leases() -> None:
    async with Pool(manager) as pool:
        assert_type(pool, Pool[aiosqlite.Connection])
        async with pool.get() as conn:
            assert_type(conn, aiosqlite.Connection)
        lease = await pool.get(timeout=2)
        assert_type(lease, PooledConnection[aiosqlite.Connection])
        assert_type(lease.conn, aiosqlite.Connection)
        assert_type(lease.detach(), aiosqlite.Connection)
        maybe = await pool.try_get()
        assert_type(maybe, PooledConnection[aiosqlite.Connection] | None)
        async with pool.dedicated_connection() as dedicated:
            assert_type(dedicated, aiosqlite.Connection)
        pool.add(conn)
        pool.add("no connection")  # type: ignore[arg-type]
        pool.evict(lambda conn: conn.in_transaction)
        lease.fetchone()  # type: ignore[attr-defined]


Pool(manager, max_sise=3)  # type: ignore[call-arg]
Pool(manager, max_size="3")  # type: ignore[arg-type]
Pool("app.db")  # type: ignore[arg-type]
Pool.from_url("sqlite:///app.db", min_idel=1)  # type: ignore[call-arg]
SqliteConnectionManager("app.db", busy_timout=500)  # type: ignore[call-arg]
SqliteConnectionManager("app.db", wal="yes")  # type: ignore[arg-type]
SqliteConnectionManager("app.db", open_transaction="keep")  # type: ignore[arg-type]
SqliteConnectionManager(5)  # type: ignore[arg-type]
manager.update(foreign_key=True)  # type: ignore[call-arg]
