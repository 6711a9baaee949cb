"""SQLAlchemy's sessions over our pool, on each database, with the connections counted at the server."""

from __future__ import annotations

import asyncio
import gc
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import aiomysql
import asyncpg
import pytest
from pool_core import CloseReason, Pool
from pool_mysql import MySQLConnectionManager
from pool_postgres import PostgresConnectionManager
from pool_psycopg import PsycopgConnectionManager
from pool_sqlalchemy import engine_over
from pool_sqlite import SqliteConnectionManager
from pymysql.constants import CLIENT
from sqlalchemy import JSON, Integer, String, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SAWarning
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from containers.servers import ServerFactory


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "sqlalchemy_users"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    profile: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class Database(ABC):
    """One kind of database: how to reach it, and what only its server knows."""

    slow: str
    dirty: str
    trace: str

    def __init__(self, url: str) -> None:
        self.url = url
        self.manager: Any = None

    def pooled(self, **options: Any) -> tuple[AsyncEngine, Pool[Any]]:
        pool = Pool(self.manager, **options)
        return engine_over(pool), pool

    @abstractmethod
    async def connections(self) -> set[int]:
        """What the server says how many connections the pool has."""

    @abstractmethod
    async def kill(self, connection: int) -> None:
        """End one at the server."""


class Postgres(Database):
    slow = "SELECT pg_sleep(30)"
    dirty = "SELECT set_config('app.tenant', 'one', false)"
    trace = "SELECT current_setting('app.tenant', true)"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.manager = PostgresConnectionManager(url, server_settings={"application_name": "sqlalchemy-test"})

    async def ask(self, query: str) -> list[Any]:
        conn = await asyncpg.connect(self.url)
        try:
            return list(await conn.fetch(query))
        finally:
            await conn.close()

    async def connections(self) -> set[int]:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'sqlalchemy-test'"
        return {pid for (pid,) in await self.ask(query)}

    async def kill(self, connection: int) -> None:
        await self.ask(f"SELECT pg_terminate_backend({connection}, 5000)")


class Psycopg(Postgres):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.manager = PsycopgConnectionManager(url, application_name="sqlalchemy-test")


class MariaDB(Database):
    slow = "SELECT SLEEP(2)"  # it sleeps on after its client is gone
    dirty = "SELECT @tenant := 'one'"
    trace = "SELECT @tenant"

    def __init__(self, url: str, server: Any) -> None:
        super().__init__(url.replace(f"{server.user}:{server.password}@", "sqlalchemy:secret@"))
        self.admin: dict[str, Any] = {
            "host": server.host,
            "port": server.port,
            "user": "root",
            "password": server.password,
        }
        self.database = server.database
        self.manager = MySQLConnectionManager(self.url, client_flag=CLIENT.FOUND_ROWS)

    async def ask(self, *queries: str) -> list[Any]:
        conn = await aiomysql.connect(**self.admin)
        try:
            async with conn.cursor() as cursor:
                for query in queries:
                    await cursor.execute(query)
                return list(await cursor.fetchall())
        finally:
            conn.close()

    async def connections(self) -> set[int]:
        return {
            number
            for (number,) in await self.ask("SELECT id FROM information_schema.processlist WHERE user='sqlalchemy'")
        }

    async def kill(self, connection: int) -> None:
        await self.ask(f"KILL {connection}")


class SQLite(Database):
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    dirty = "ATTACH ':memory:' AS tenant_one"
    trace = "SELECT name FROM pragma_database_list WHERE name LIKE 'tenant%'"

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self.path = str(path)
        self.manager = SqliteConnectionManager(self.url)

    async def connections(self) -> set[int]:
        gc.collect()  # a cursor in some traceback keeps the file open
        found = set()
        for number in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{number}") == self.path:
                    found.add(int(number))
            except FileNotFoundError:
                continue
        return found

    async def kill(self, connection: int) -> None:
        raise NotImplementedError("there is no server that could end a connection")


@pytest.fixture(params=["postgres", "psycopg", "mariadb", "sqlite"])
def database(request: pytest.FixtureRequest, server: ServerFactory, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return SQLite(tmp_path / "test.db")
    if request.param in {"postgres", "psycopg"}:
        return {"postgres": Postgres, "psycopg": Psycopg}[request.param](server("postgres").url)
    found = server(request.param)
    database = MariaDB(found.url, found)
    asyncio.run(
        database.ask(
            "CREATE OR REPLACE USER sqlalchemy@'%' IDENTIFIED BY 'secret'",
            f"GRANT ALL ON {database.database}.* TO sqlalchemy@'%'",
        )
    )
    return database


async def fresh_tables(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.drop_all)
        await conn.run_sync(Base.metadata.create_all)


async def names(engine: AsyncEngine) -> set[str]:
    async with AsyncSession(engine) as session:
        return set(await session.scalars(select(User.name)))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def settles(database: Database, connections: int) -> None:
    """A server may take a moment to notice that a client is gone."""
    async with asyncio.timeout(10):
        while len(await database.connections()) != connections:
            await asyncio.sleep(0.05)


async def test_many_orm_sessions_share_the_few_connections_of_the_pool(database: Database) -> None:
    """Whatever sessions there are, the server never sees more than max_size; and closing the pool closes all."""
    engine, pool = database.pooled(max_size=3, min_idle=1)
    most = 0
    async with pool:
        await fresh_tables(engine)

        async def write(number: int) -> None:
            nonlocal most
            async with AsyncSession(engine) as session, session.begin():
                session.add(User(name=f"user {number}", profile={"number": number}))
                await session.flush()
                if number % 10 == 0:
                    most = max(most, len(await database.connections()))

        await asyncio.gather(*(write(number) for number in range(40)))
        assert await names(engine) == {f"user {number}" for number in range(40)}
        assert 1 <= most <= 3
        state = pool.state()
        assert len(await database.connections()) == state.idle + state.resetting <= 3
        assert state.in_use == 0
        assert state.statistics.connections_created <= 3
    await settles(database, connections=0)


async def test_what_sqlalchemy_sets_up_is_set_up_once_in_a_connections_life(database: Database) -> None:
    """JSON comes back as objects at the first and the last checkout, and no connection is thrown away between them."""
    engine, pool = database.pooled(max_size=1, min_idle=1)
    async with pool:
        await fresh_tables(engine)
        for number in range(3):
            async with AsyncSession(engine) as session, session.begin():
                session.add(User(name=f"user {number}", profile={"number": number}))
        async with AsyncSession(engine) as session:
            profiles = list(await session.scalars(select(User.profile).order_by(User.id)))
            # REGEXP is SQLAlchemy's own on SQLite, and its ~ on PostgreSQL.
            found = list(await session.scalars(select(User.name).where(User.name.regexp_match("r 1$"))))
        assert profiles == [{"number": 0}, {"number": 1}, {"number": 2}]
        assert found == ["user 1"]
        assert pool.state().statistics.connections_created == 1
        assert sum(pool.state().statistics.connections_closed.values()) == 0


async def test_a_session_that_failed_leaves_nothing_to_the_next_one(database: Database) -> None:
    """Neither rows nor a failed transaction; the error is SQLAlchemy's own."""
    engine, pool = database.pooled(max_size=1, min_idle=1)
    async with pool:
        await fresh_tables(engine)
        with pytest.raises(IntegrityError):
            async with AsyncSession(engine) as session, session.begin():
                session.add_all([User(name="ada"), User(name="ada")])
        async with AsyncSession(engine) as session:  # neither committed nor rolled back
            session.add(User(name="grace"))
            await session.flush()
        assert await names(engine) == set()
        assert pool.state().statistics.connections_created == 1


async def test_session_state_does_not_reach_the_next_session(database: Database) -> None:
    """SQLAlchemy rolls back; the pool resets the rest."""
    engine, pool = database.pooled(max_size=1, min_idle=1)
    async with pool:
        async with engine.connect() as conn:
            await conn.execution_options(isolation_level="AUTOCOMMIT")
            await conn.execute(text(database.dirty))
            assert (await conn.execute(text(database.trace))).scalar()
        async with engine.connect() as conn:
            assert not (await conn.execute(text(database.trace))).scalar()
        # On SQLite another connection is as cheap as putting an attached database back.
        assert pool.state().statistics.connections_created == (2 if database.url.startswith("sqlite") else 1)


async def test_an_update_counts_the_rows_that_it_matched(database: Database) -> None:
    """On MySQL that takes a flag; without it the ORM takes an unchanged row for one that somebody else deleted."""
    engine, pool = database.pooled(max_size=1, min_idle=1)
    async with pool:
        await fresh_tables(engine)
        async with AsyncSession(engine) as session, session.begin():
            session.add(User(id=1, name="ada"))
        async with AsyncSession(engine) as session, session.begin():
            result: Any = await session.execute(update(User).where(User.id == 1).values(name="ada"))
            assert result.rowcount == 1


async def test_a_cancelled_session_costs_its_connection_and_nothing_else(database: Database) -> None:
    """SQLAlchemy invalidates it; the next session gets a new one, and the server sees one at a time."""
    engine, pool = database.pooled(max_size=1, min_idle=1)
    async with pool:

        async def wait() -> None:
            async with AsyncSession(engine) as session:
                await session.execute(text(database.slow))

        task = asyncio.create_task(wait())
        await until(lambda: pool.state().in_use == 1)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        async with asyncio.timeout(10), AsyncSession(engine) as session:
            assert (await session.execute(text("SELECT 1"))).scalar() == 1
        assert sum(pool.state().statistics.connections_closed.values()) == 1
        await settles(database, connections=1)


@pytest.mark.parametrize("database", ["postgres", "psycopg", "mariadb"], indirect=True)
async def test_after_a_killed_connection_the_next_session_works(database: Database) -> None:
    """The first error is the application's; the pool forgets the dead one."""
    engine, pool = database.pooled(max_size=1, min_idle=1)
    async with pool:
        (victim,) = await database.connections()
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT 1"))
            await database.kill(victim)
            with pytest.raises(DBAPIError) as caught:
                await session.execute(text("SELECT 1"))
            assert caught.value.connection_invalidated
        async with AsyncSession(engine) as session:
            assert (await session.execute(text("SELECT 1"))).scalar() == 1
        assert await database.connections() not in ({victim}, set())


async def test_an_invalidated_session_throws_its_connection_away(database: Database) -> None:
    """`session.invalidate()` says that it must not be used again: it is not given back."""
    engine, pool = database.pooled(max_size=1, min_idle=1)
    async with pool:
        before = await database.connections()
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT 1"))
            await session.invalidate()
        await until(lambda: pool.state().statistics.connections_closed[CloseReason.DISCARDED] == 1)
        async with AsyncSession(engine) as session:
            assert (await session.execute(text("SELECT 1"))).scalar() == 1
        assert len(before) == 1
        await settles(database, connections=1)


async def test_a_session_that_is_lost_gives_its_place_back(database: Database) -> None:
    """SQLAlchemy warns, and terminates what the garbage collector finds; the next get is served."""
    engine, pool = database.pooled(max_size=1, min_idle=1)
    async with pool:
        session = AsyncSession(engine)
        await session.execute(text("SELECT 1"))
        with pytest.warns(SAWarning, match="garbage collector"):
            del session
            gc.collect()
        async with AsyncSession(engine) as other:
            assert (await other.execute(text("SELECT 1"))).scalar() == 1
        await settles(database, connections=1)


async def test_streamed_rows_come_over_a_connection_of_the_pool(database: Database) -> None:
    """A server-side cursor that is left half-read does no harm to the next session."""
    engine, pool = database.pooled(max_size=1, min_idle=1)
    async with pool:
        await fresh_tables(engine)
        async with AsyncSession(engine) as session, session.begin():
            session.add_all(User(name=f"user {number}") for number in range(100))
        async with engine.connect() as conn, conn.stream(select(User.id)) as result:
            assert await result.fetchone()
        assert len(await names(engine)) == 100
        assert pool.state().in_use == 0
