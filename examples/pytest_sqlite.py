"""The recipe for tests on SQLite: each test in a transaction that is never committed, here of the aiohttp service.

    python -m pytest examples/pytest_sqlite.py

Runs with anyio's own pytest plugin.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pool_core import Pool
from pool_sqlite import SqliteConnectionManager

from examples.aiohttp_app import create_app

Client: TypeAlias = TestClient[web.Request, web.Application]

pytestmark = pytest.mark.anyio

# One database for all tests, as a file with test data would be; each test leaves it as it was.
manager = SqliteConnectionManager("sqlite://", test_transaction=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[Client]:
    # One connection for all that the test does: what one request writes and commits, the next one sees.
    app = create_app(Pool(manager, max_size=1, min_idle=1))
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_a_note_is_read_back(client: Client) -> None:
    assert (await client.post("/notes/first")).status == 201
    assert await (await client.get("/notes")).json() == ["first"]


async def test_the_next_test_finds_nothing_of_it(client: Client) -> None:
    assert await (await client.get("/notes")).json() == []
