"""The recipe for tests on PostgreSQL: each test in a transaction that is never committed, here of the FastAPI service.

    DATABASE_URL=postgresql://user:password@localhost/database python -m pytest examples/pytest_postgres.py

Runs with anyio's own pytest plugin, which comes with FastAPI.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import httpx
import pytest
from pool_core import Pool
from pool_postgres import PostgresConnectionManager

from examples.fastapi_app import create_app

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    # One connection for all that the test does: what one request writes, the next one sees.
    pool = Pool(PostgresConnectionManager(os.environ["DATABASE_URL"], test_transaction=True), max_size=1, min_idle=1)
    app = create_app(pool)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def test_a_note_is_read_back(client: httpx.AsyncClient) -> None:
    assert (await client.post("/notes/first")).status_code == 201
    assert (await client.get("/notes")).json()[0] == "first"


async def test_the_next_test_finds_nothing_of_it(client: httpx.AsyncClient) -> None:
    assert "first" not in (await client.get("/notes")).json()
