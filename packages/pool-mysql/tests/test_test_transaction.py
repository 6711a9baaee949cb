"""test_transaction=True: a transaction that is never committed, for tests of programs."""

import asyncio
from typing import Any

import pytest
from pool_mysql import Connection


async def numbers(db: Any, conn: Connection) -> list[int]:
    return sorted(row[0] for row in await db.ask(conn, "SELECT number FROM things WHERE number > 1000"))


@pytest.mark.parametrize("autocommit", [True, False])
def test_what_one_borrower_wrote_the_next_one_sees_and_nobody_else(db: Any, autocommit: bool) -> None:
    """diesel's TestCustomizer: fixtures written once, gone with the connection."""

    async def main() -> None:
        async with db.connection(test_transaction=True, autocommit=autocommit) as (manager, conn):
            await db.ask(conn, "INSERT INTO things VALUES (1001)")
            assert not manager.has_broken(conn)
            assert manager.reset(conn) is None
            assert await numbers(db, conn) == [1001]
            async with db.connection() as (_, other):
                assert await numbers(db, other) == []
            await manager.close(conn)
        async with db.connection() as (_, other):
            assert await numbers(db, other) == []

    asyncio.run(main())


def test_commit_and_rollback_of_the_program_under_test_move_a_savepoint(db: Any) -> None:
    """Programs commit; with the driver's own commit the data would stay for ever."""

    async def main() -> None:
        async with db.connection(test_transaction=True) as (manager, conn):
            await conn.begin()
            await db.ask(conn, "INSERT INTO things VALUES (1001)")
            await conn.commit()
            await db.ask(conn, "INSERT INTO things VALUES (1002)")
            await conn.rollback()
            assert await numbers(db, conn) == [1001]
            await conn.begin()
            await db.ask(conn, "INSERT INTO things VALUES (1003)")
            await conn.rollback()
            assert await numbers(db, conn) == [1001]
            assert not manager.has_broken(conn)
            await manager.close(conn)
        async with db.connection() as (_, other):
            assert await numbers(db, other) == []

    asyncio.run(main())


@pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK", "BEGIN; COMMIT", "DROP TABLE IF EXISTS scrap"])
def test_a_connection_that_has_lost_its_test_transaction_is_broken(db: Any, sql: str) -> None:
    """Sent as SQL they end it, and what comes next would be written for real."""

    async def main() -> None:
        async with db.connection(test_transaction=True, autocommit=True) as (manager, conn):
            await conn.query(sql)
            while conn._result.has_next:
                await conn.next_result()
            assert manager.has_broken(conn)

    asyncio.run(main())


def test_turning_autocommit_on_ends_it_too(db: Any) -> None:
    """The server commits at that moment."""

    async def main() -> None:
        async with db.connection(test_transaction=True) as (manager, conn):
            await conn.autocommit(True)
            assert manager.has_broken(conn)

    asyncio.run(main())
