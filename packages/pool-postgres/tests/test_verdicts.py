"""What an error within a block means for connections, and a failover that the pool survives by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pool_core import Pool, Verdict
from pool_postgres import PostgresConnectionManager

if TYPE_CHECKING:
    from containers.servers import Server


def sqlstate(code: str) -> asyncpg.PostgresError:
    """The error that the driver raises for this code."""
    return asyncpg.PostgresError.new({"C": code, "M": "message", "S": "ERROR"})


@pytest.mark.parametrize(
    ("codes", "verdict"),
    [
        (("25006",), Verdict.RETIRE_ALL),
        (("57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"), Verdict.CLOSE),
        (("08000", "08006", "08P01", "26000", "42P05", "53200", "XX000"), Verdict.CLOSE),
        (
            ("22012", "23505", "25P02", "28000", "28P01", "40001", "40P01", "42601", "42501", "53100", "57014"),
            Verdict.KEEP,
        ),
        (("55P03", "58030", "XX001", "0A000", "P0001"), Verdict.KEEP),
    ],
)
def test_the_sqlstate_decides(codes: tuple[str, ...], verdict: Verdict) -> None:
    """On a read-only server every write fails; a constraint or a deadlock does not concern the connection."""
    manager: Any = PostgresConnectionManager()
    for code in codes:
        assert manager.judge(sqlstate(code), None) is verdict, code
    wrapped = RuntimeError("the program's own")
    wrapped.__cause__ = sqlstate(codes[0])
    assert manager.judge(wrapped, None) is verdict


@pytest.mark.parametrize(
    "error", [KeyError(), asyncpg.InterfaceError("closed"), ConnectionResetError(), TimeoutError()]
)
def test_other_errors_say_nothing(error: Exception) -> None:
    """They may be about anything; has_broken knows whether the socket is closed."""
    manager: Any = PostgresConnectionManager()
    assert manager.judge(error, None) is Verdict.KEEP


@pytest.mark.parametrize("wanted", ["standby", "read-only", "prefer-standby"])
def test_a_pool_of_standbys_is_not_retired_for_a_write(wanted: str) -> None:
    """There it is a mistake in the program, and every server would answer so."""
    manager: Any = PostgresConnectionManager(target_session_attrs=wanted)
    assert manager.judge(sqlstate("25006"), None) is Verdict.KEEP
    primary: Any = PostgresConnectionManager(target_session_attrs="primary")
    assert primary.judge(sqlstate("25006"), None) is Verdict.RETIRE_ALL


async def test_a_write_in_a_read_only_transaction_retires_nothing(url: str) -> None:
    """The borrower asked for a read-only transaction; the server has not changed."""
    async with Pool(PostgresConnectionManager(url), max_size=2, min_idle=2) as pool:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with pool.get() as conn, conn.transaction(readonly=True):
                await conn.execute("CREATE TABLE never (a int)")
        while pool.state().resetting:
            await asyncio.sleep(0.01)
        assert pool.state().idle == 2
        assert pool.state().statistics.connections_created == 2


async def test_a_forgotten_statement_costs_one_connection(url: str) -> None:
    """A borrower's DEALLOCATE ALL makes asyncpg use names that the server does not know any more."""
    async with Pool(PostgresConnectionManager(url), max_size=1) as pool:
        async with pool.get() as conn:
            await conn.fetchval("SELECT $1::int", 1)
            await conn.execute("DEALLOCATE ALL")
        with pytest.raises(asyncpg.InvalidSQLStatementNameError):
            async with pool.get() as conn:
                await conn.fetchval("SELECT $1::int", 2)
        async with pool.get() as conn:
            assert await conn.fetchval("SELECT $1::int", 3) == 3


@pytest.mark.parametrize("reset", ["safe", "none"])
async def test_a_primary_that_becomes_read_only_under_load_costs_max_size_errors(disturbed: Server, reset: Any) -> None:
    """Behind one address old sessions can no longer write, new ones can. The program does not call evict()."""
    admin = await asyncpg.connect(disturbed.url)
    await admin.execute("CREATE TABLE IF NOT EXISTS written (number int)")
    failed: list[str] = []
    written = [0]
    stopped = False

    async def write(pool: Pool[Any]) -> None:
        while not stopped:
            try:
                async with pool.get() as conn:
                    await conn.execute("INSERT INTO written VALUES ($1)", 1)
                written[0] += 1
            except asyncpg.ReadOnlySQLTransactionError as error:
                failed.append(str(error.sqlstate))

    async def until_written(more: int) -> None:
        goal = written[0] + more
        async with asyncio.timeout(20):
            while written[0] < goal:
                await asyncio.sleep(0.005)

    try:
        async with Pool(PostgresConnectionManager(disturbed.url, reset=reset), max_size=4, min_idle=4) as pool:
            writers = [asyncio.create_task(write(pool)) for _ in range(12)]
            await until_written(100)
            assert not failed
            # The session of an older login takes the server's new default, a newer one its role's.
            await admin.execute(f"ALTER ROLE {disturbed.user} SET default_transaction_read_only = off")
            await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            await admin.execute("SELECT pg_reload_conf()")
            await until_written(200)
            errors = len(failed)
            await until_written(200)
            stopped = True
            await asyncio.gather(*writers)
            assert 1 <= errors <= 4
            assert len(failed) == errors
            assert pool.state().statistics.connections_created >= 8
    finally:
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await admin.execute(f"ALTER ROLE {disturbed.user} RESET default_transaction_read_only")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.execute("DROP TABLE written")
        await admin.close()
