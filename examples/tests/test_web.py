"""The web services under real HTTP load, and how long a request of FastAPI's holds its connection."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import asyncpg
import httpx
import pytest
import uvicorn
from aiohttp import web
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from pool_core import Pool, PoolClosed
from pool_postgres import PostgresConnectionManager
from pool_sqlite import SqliteConnectionManager

if TYPE_CHECKING:
    from collections.abc import Callable

    from containers.servers import Server, ServerFactory

    Start = Callable[..., subprocess.Popen[str]]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(45):
        while True:
            try:
                await client.get("/notes")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return


async def load(client: httpx.AsyncClient, requests: int, at_once: int) -> list[httpx.Response]:
    """Half of them write, half of them read."""
    gate = asyncio.Semaphore(at_once)

    async def one(number: int) -> httpx.Response:
        async with gate:
            return await (client.post(f"/notes/load-{number}") if number % 2 else client.get("/notes"))

    return await asyncio.gather(*(one(number) for number in range(requests)))


async def backends(server: Server) -> int:
    conn = await asyncpg.connect(server.url)
    try:
        return int(await conn.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'notes'"))
    finally:
        await conn.close()


def browser(port: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=40)
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, limits=limits, trust_env=False)


async def test_fastapi_serves_four_hundred_requests_over_ten_connections(
    start: Start, server: ServerFactory, port: int
) -> None:
    """Forty at once; the server is asked how many connections there are; after SIGTERM there are none."""
    postgres = server("postgres")
    process = start("fastapi_app.py", DATABASE_URL=postgres.url, PORT=str(port))
    async with browser(port) as client:
        await ready(client)
        working = asyncio.create_task(load(client, 400, at_once=40))
        most = 0
        while not working.done():
            most = max(most, await backends(postgres))
            await asyncio.sleep(0.2)
        statuses = [response.status_code for response in await working]
        assert (statuses.count(200), statuses.count(201)) == (200, 200)
        assert 1 <= most <= 10
        assert (await client.get("/notes")).json()[0].startswith("load-")
    process.send_signal(signal.SIGTERM)
    said, _ = await asyncio.to_thread(process.communicate, timeout=15)
    assert "Application shutdown complete" in said
    async with asyncio.timeout(5):
        while await backends(postgres):
            await asyncio.sleep(0.05)


async def test_aiohttp_serves_four_hundred_requests_over_four_connections(
    start: Start, port: int, tmp_path: Path
) -> None:
    """On one SQLite file, where all writers queue up; after SIGTERM it ends well."""
    process = start("aiohttp_app.py", DATABASE_URL=f"sqlite:///{tmp_path}/notes.db", PORT=str(port))
    async with browser(port) as client:
        await ready(client)
        statuses = [response.status_code for response in await load(client, 400, at_once=40)]
        assert (statuses.count(200), statuses.count(201)) == (200, 200)
        assert (await client.get("/notes")).json()[0].startswith("load-")
    process.send_signal(signal.SIGTERM)
    said, _ = await asyncio.to_thread(process.communicate, timeout=15)
    assert process.returncode == 0, said


@asynccontextmanager
async def serving(app: Any, port: int) -> AsyncIterator[None]:
    """Uvicorn in this very loop, so that the pool can be looked at."""
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    task = asyncio.create_task(uvicorn_server.serve())
    try:
        while not uvicorn_server.started:
            await asyncio.sleep(0.01)
        yield
    finally:
        uvicorn_server.should_exit = True
        await task


@pytest.mark.parametrize(("scope", "held"), [("function", 0), ("request", 1)])
async def test_a_slow_client_holds_a_connection_only_with_fastapis_default_scope(
    scope: Literal["function", "request"], held: int, server: ServerFactory, port: int
) -> None:
    """Why the example says scope="function": with the default, a client that does not read keeps its connection."""
    pool = Pool(PostgresConnectionManager(server("postgres").url), max_size=2, min_idle=1)

    async def connection() -> AsyncIterator[Any]:
        async with pool.get() as conn:
            yield conn

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/long")
    async def long(conn: Any = Depends(connection, scope=scope)) -> StreamingResponse:  # noqa: FAST002 - a variable
        number = await conn.fetchval("SELECT 300")
        return StreamingResponse("x" * 100_000 for _ in range(number))

    async with serving(app, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        try:
            writer.write(b"GET /long HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            assert b"200 OK" in await reader.readline()
            async with asyncio.timeout(5):
                while pool.state().in_use != held:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert pool.state().in_use == held
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        async with asyncio.timeout(5):
            while pool.state().in_use:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving_aiohttp(app: web.Application, port: int) -> AsyncIterator[None]:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("name", ["fastapi_app", "litestar_app", "aiohttp_app", "quart_app", "django_app"])
async def test_each_framework_serves_sheds_load_and_ends(
    name: str, request: pytest.FixtureRequest, port: int, tmp_path: Path
) -> None:
    """Write and read; a full pool and a full queue are a 503 that says when to try again; metrics; nothing is left."""
    manager: Any
    if name == "fastapi_app":
        manager = PostgresConnectionManager(request.getfixturevalue("server")("postgres").url)
    else:
        manager = SqliteConnectionManager(f"sqlite:///{tmp_path / 'notes.db'}")
    pool: Pool[Any] = Pool(manager, name="notes", max_size=1, min_idle=1, connection_timeout=0.2, max_waiting=1)
    app = importlib.import_module(f"examples.{name}").create_app(pool)
    async with (serving_aiohttp if name == "aiohttp_app" else serving)(app, port), browser(port) as client:
        assert (await client.post(f"/notes/{name}")).status_code == 201
        assert (await client.get("/notes")).json()[0] == name
        async with pool.get():
            answers = await asyncio.gather(*(client.get("/notes") for _ in range(3)))
        assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(503, "1")] * 3
        assert answers[0].json() == {"detail": "busy: try again"}
        assert (await client.get("/notes")).status_code == 200
        assert (
            'db_client_connection_max{db_client_connection_pool_name="notes"} 1.0'
            in (await client.get("/metrics")).text
        )
    with pytest.raises(PoolClosed):
        await pool.get()
    assert pool.state().statistics.gets_timed_out == 1


async def test_several_workers_have_a_pool_each(server: ServerFactory, port: int) -> None:
    """uvicorn's own process manager: the pool is made in the worker, after the fork or spawn."""
    postgres = server("postgres")
    command = [sys.executable, "-m", "uvicorn", "--factory", "examples.fastapi_app:app", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=os.environ | {"DATABASE_URL": postgres.url}, cwd=ROOT, text=True
    )
    try:
        async with browser(port) as client:
            await ready(client)
            statuses = [response.status_code for response in await load(client, 100, at_once=20)]
            assert (statuses.count(200), statuses.count(201)) == (50, 50)
            assert 2 <= await backends(postgres) <= 20
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 20)
    async with asyncio.timeout(5):
        while await backends(postgres):
            await asyncio.sleep(0.05)
