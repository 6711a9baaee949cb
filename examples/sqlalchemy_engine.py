"""SQLAlchemy's async engine and ORM over a pool: fifty sessions at once share five connections.

    python examples/sqlalchemy_engine.py            # SQLite; else DATABASE_URL=postgresql+asyncpg://... or another

Other drivers: postgresql+psycopg://, mysql+aiomysql://, sqlite+aiosqlite://.
"""

from __future__ import annotations

import asyncio
import os

from pool_sqlalchemy import create_async_engine
from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes_of_sqlalchemy"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(100))


async def main(url: str) -> None:
    engine = create_async_engine(url, max_size=5, min_idle=1, connection_timeout=10)  # the last three are the pool's
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.drop_all)
        await conn.run_sync(Base.metadata.create_all)

    async def write(number: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            session.add(Note(text=f"note {number}"))

    await asyncio.gather(*(write(number) for number in range(50)))
    async with AsyncSession(engine) as session:
        notes = (await session.scalars(select(Note))).all()
    print(f"{len(notes)} notes, and the pool: {engine.pool.status()}")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(os.environ.get("DATABASE_URL", "sqlite+aiosqlite://")))
