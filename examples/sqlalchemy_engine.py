"""SQLAlchemy's async engine and ORM over a pool of ours: on PostgreSQL, MySQL or MariaDB, and SQLite.

SQLAlchemy keeps no connections itself (NullPool): each session borrows one of the pool's, and gives it back at its end.
``engine_over`` is all there is to copy.

    python examples/sqlalchemy_engine.py            # SQLite in memory; else DATABASE_URL=postgresql://... or mysql://...
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any, Self

from pool_core import ConnectionManager, Pool, PooledConnection
from sqlalchemy import NullPool, event, select
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.util import greenlet_spawn


def engine_over(dialect: str, manager: ConnectionManager[Any], **options: Any) -> tuple[AsyncEngine, Pool[Any]]:
    """Make an engine, and the pool that feeds it, which the caller opens and closes.

    ``dialect``: ``postgresql+asyncpg://``, ``mysql+aiomysql://`` or ``sqlite+aiosqlite://``: where to connect, and all
    else of a connection, is the manager's.
    """

    async def borrow() -> Lent:
        lease = await pool.get()
        return LentByAiomysql(lease) if hasattr(lease.conn, "ensure_closed") else Lent(lease)

    engine = create_async_engine(dialect, async_creator=borrow, poolclass=NullPool)
    # A session that was cancelled, or whose connection failed, invalidates it, and then closes it politely.
    event.listen(engine.sync_engine, "invalidate", lambda conn, *_: conn.driver_connection.terminate())
    pool: Pool[Any] = Pool(manager, customizer=SetUp(engine.dialect), **options)
    return engine, pool


class Lent:
    """What SQLAlchemy takes for the driver's connection: to close it gives it back, to terminate it throws it away."""

    def __init__(self, lease: PooledConnection[Any]) -> None:
        self._lease = lease
        self._conn = lease.conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    def close(self, **_: Any) -> Self:
        self._lease.release()
        return self

    def terminate(self) -> Self:
        self._lease.discard()
        return self

    stop = terminate  # aiosqlite's name for it

    def set_type_codec(self, *_: Any, **__: Any) -> Self:
        return self  # at each checkout; SetUp has done it once

    create_function = set_type_codec

    def __await__(self) -> Iterator[None]:
        return iter(())  # some of the methods above are awaited, of some drivers


class LentByAiomysql(Lent):
    """aiomysql's polite way is ``ensure_closed``; its ``close`` drops the socket."""

    ensure_closed = Lent.close
    close = Lent.terminate  # type: ignore[assignment]


class SetUp:
    """What SQLAlchemy does to each new connection (JSON on PostgreSQL, REGEXP on SQLite), once in a connection's life."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect: Any = dialect

    async def on_connect(self, conn: Any) -> None:
        async def connected() -> Any:
            return conn

        if (set_up := self._dialect.on_connect()) is not None:
            await greenlet_spawn(lambda: set_up(self._dialect.connect(async_creator_fn=connected)))

    async def on_reset(self, conn: Any) -> None:
        """Codecs and functions outlive the adapters' resets: there is nothing to restore."""


# --- in use


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


async def main(url: str) -> None:
    """Fifty sessions at once share five connections."""
    engine, pool = engine_over(*dialect_and_manager(url), max_size=5, min_idle=1)
    async with pool:
        async with engine.begin() as conn:
            await conn.run_sync(Base.metadata.drop_all)
            await conn.run_sync(Base.metadata.create_all)

        async def write(number: int) -> None:
            async with AsyncSession(engine) as session, session.begin():
                session.add(Note(text=f"note {number}"))

        await asyncio.gather(*(write(number) for number in range(50)))
        async with AsyncSession(engine) as session:
            notes = (await session.scalars(select(Note))).all()
        print(f"{len(notes)} notes by {pool.state().statistics.connections_created} connections")


def dialect_and_manager(url: str) -> tuple[str, ConnectionManager[Any]]:
    """Only the adapter that is used needs to be installed."""
    if url.startswith("postgresql"):
        from pool_postgres import PostgresConnectionManager

        return "postgresql+asyncpg://", PostgresConnectionManager(url)
    if url.startswith("mysql"):
        from pool_mysql import MySQLConnectionManager
        from pymysql.constants import CLIENT

        # SQLAlchemy's own connections have this flag: the ORM counts the rows that an UPDATE matched, changed or not.
        return "mysql+aiomysql://", MySQLConnectionManager(url, client_flag=CLIENT.FOUND_ROWS)
    from pool_sqlite import SqliteConnectionManager

    return "sqlite+aiosqlite://", SqliteConnectionManager(url)


if __name__ == "__main__":
    asyncio.run(main(os.environ.get("DATABASE_URL", "sqlite://")))
