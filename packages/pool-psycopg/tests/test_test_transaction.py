"""``test_transaction=True``: the program under test works in a transaction that is never committed."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pool_core import CloseReason, Pool
from pool_psycopg import PsycopgConnectionManager
from psycopg_helpers import admin, value

if TYPE_CHECKING:
    from collections.abc import Iterator

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(autouse=True)
def table(url: str) -> Iterator[None]:
    """A table that every test finds empty, and must leave empty."""
    asyncio.run(admin(url, "CREATE TABLE IF NOT EXISTS people (name text UNIQUE)"))
    yield
    assert asyncio.run(admin(url, "SELECT count(*) FROM people")) == 0


def pool_for_tests(url: str, **options: Any) -> Pool[Any]:
    """As in the recipe."""
    return Pool(PsycopgConnectionManager(url, test_transaction=True, **options), max_size=1)


async def names(pool: Pool[Any]) -> list[str]:
    """Who is in the table."""
    async with pool.get() as conn:
        return [name for (name,) in await (await conn.execute("SELECT name FROM people ORDER BY name")).fetchall()]


@pytest.mark.parametrize("mode", ["safe", "strict", "none"])
@pytest.mark.parametrize("autocommit", [True, False])
async def test_what_one_lease_commits_the_next_sees_and_the_close_undoes(url: str, autocommit: bool, mode: Any) -> None:
    """Diesel's own test of its TestCustomizer."""
    async with pool_for_tests(url, reset=mode, autocommit=autocommit) as pool:
        for name in ("ada", "bob"):
            async with pool.get() as conn:
                await conn.execute("INSERT INTO people VALUES (%s)", [name])
                await conn.commit()
        assert await names(pool) == ["ada", "bob"]
        assert pool.state().statistics.connections_created == 1
    async with pool_for_tests(url) as pool:
        assert await names(pool) == []


async def test_what_was_not_committed_is_gone_as_in_production(url: str) -> None:
    """A test must fail where the program forgets its commit."""
    async with pool_for_tests(url) as pool:
        async with pool.get() as conn:
            await conn.execute("INSERT INTO people VALUES ('ada')")
            await conn.commit()
            await conn.execute("INSERT INTO people VALUES ('bob')")
            await conn.rollback()
            await conn.execute("INSERT INTO people VALUES ('eve')")
        assert await names(pool) == ["ada"]


async def test_the_code_under_test_may_use_transaction_blocks(url: str) -> None:
    """They are savepoints, and nest; psycopg's own rules for them hold."""
    async with pool_for_tests(url, autocommit=True) as pool:
        async with pool.get() as conn:
            async with conn.transaction():
                await conn.execute("INSERT INTO people VALUES ('ada')")
                with pytest.raises(LookupError):
                    async with conn.transaction():
                        await conn.execute("INSERT INTO people VALUES ('bob')")
                        raise LookupError
                with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
                    await conn.commit()
            with pytest.raises(LookupError):
                async with conn.transaction():
                    await conn.execute("INSERT INTO people VALUES ('eve')")
                    raise LookupError
        assert await names(pool) == ["ada"]


async def test_session_state_is_reset_between_leases_as_in_production(url: str) -> None:
    """Code that relies on a leaked setting must fail in its tests."""
    async with pool_for_tests(url, autocommit=True) as pool:
        async with pool.get() as conn:
            await conn.execute("SET work_mem = '123kB'; CREATE TEMP TABLE scratch (a int); SET ROLE pg_monitor")
        async with pool.get() as conn:
            assert await value(conn, "SHOW work_mem") != "123kB"
            assert await value(conn, "SELECT to_regclass('scratch')") is None
            assert await value(conn, "SELECT current_user") != "pg_monitor"


@pytest.mark.parametrize("autocommit", [True, False])
async def test_an_error_outside_a_block_undoes_what_was_not_committed_and_no_more(url: str, autocommit: bool) -> None:
    """A test of an error path must not lose the data that it prepared, nor the connection."""
    async with pool_for_tests(url, autocommit=autocommit) as pool:
        async with pool.get() as conn:
            await conn.execute("INSERT INTO people VALUES ('ada')")
            await conn.commit()
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with pool.get() as conn:
                await conn.execute("INSERT INTO people VALUES ('bob')")
                await conn.execute("INSERT INTO people VALUES ('ada')")
        assert await names(pool) == ["ada"]
        async with pool.get() as conn:
            with pytest.raises(psycopg.errors.UniqueViolation):
                await conn.execute("INSERT INTO people VALUES ('ada')")
            await conn.commit()  # a failed transaction is rolled back by it
            await conn.execute("INSERT INTO people VALUES ('eve')")
            await conn.commit()
        assert await names(pool) == ["ada", "eve"]
        assert pool.state().statistics.connections_created == 1


async def test_a_cancelled_query_leaves_the_test_transaction_usable(url: str) -> None:
    """The cancel fails the transaction on the server; the data of earlier leases stays."""
    async with pool_for_tests(url, autocommit=True) as pool:
        async with pool.get() as conn:
            await conn.execute("INSERT INTO people VALUES ('ada')")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), pool.get() as conn:
                await conn.execute("SELECT pg_sleep(30)")
        assert await names(pool) == ["ada"]
        assert pool.state().statistics.connections_created == 1


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"])
async def test_a_test_transaction_that_was_ended_by_plain_sql_costs_the_connection(url: str, end: str) -> None:
    """It would no longer hold what comes after it."""
    async with pool_for_tests(url) as pool:
        async with pool.get() as conn:
            await conn.execute(end)
        assert await names(pool) == []
        closed = pool.state().statistics.connections_closed
        assert closed[CloseReason.BROKEN] + closed[CloseReason.RESET_FAILED] == 1


def test_the_recipe_of_the_readme_works(url: str, tmp_path: Path) -> None:
    """Run as it stands there, by pytest, with a second test that finds nothing of the first."""
    (recipe,) = re.findall(r"<!-- recipe -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "test_recipe.py").write_text(recipe)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "--rootdir",
        str(tmp_path),
    ]
    result = subprocess.run(
        [*command, "test_recipe.py"],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert re.search(r"^2 passed in", result.stdout, re.MULTILINE), result.stdout + result.stderr
