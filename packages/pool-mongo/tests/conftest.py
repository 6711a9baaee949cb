"""The two drivers under one roof, and servers of a test's own."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from containers.servers import Server, ServerFactory
from motor.frameworks import asyncio as motor_framework
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient

from pool_mongo import MongoClientManager, MongoSessionManager
from pool_mongo.motor import MotorClientManager, MotorSessionManager


@dataclass(frozen=True)
class Kind:
    """One driver: its managers, and what it spells differently."""

    name: str
    sessions: Any
    clients: Any
    client_class: Any

    async def begin(self, session: Any) -> None:
        begun = session.start_transaction()
        if inspect.isawaitable(begun):
            await begun

    async def start_session(self, client: Any) -> Any:
        session = client.start_session()
        return await session if inspect.isawaitable(session) else session

    async def close(self, client: Any) -> None:
        closing = client.close()
        if closing is not None:
            await closing


PYMONGO = Kind("pymongo", MongoSessionManager, MongoClientManager, AsyncMongoClient)
MOTOR = Kind("motor", MotorSessionManager, MotorClientManager, AsyncIOMotorClient)


@pytest.fixture(params=[PYMONGO, MOTOR], ids=["pymongo", "motor"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each driver in turn."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture(scope="session", autouse=True)
def motor_threads() -> None:
    """Start all threads of motor's executor, which live as long as the process: else tests count them as left over."""
    together = threading.Barrier(motor_framework.max_workers)
    for future in [motor_framework._EXECUTOR.submit(together.wait, 10) for _ in range(motor_framework.max_workers)]:
        future.result(10)


@pytest.fixture
def mongo(server: ServerFactory) -> Server:
    """The run's server, a replica set of one: it has transactions."""
    return server("mongo")


@pytest.fixture(scope="module")
def locked(server: ServerFactory) -> Iterator[Server]:
    """A server with users; it is no replica set."""
    with server("mongo", fresh=True, password="canary/p@ss") as mine:
        yield mine


@pytest.fixture
def own(server: ServerFactory) -> Iterator[Server]:
    """A server that the test may kill."""
    with server("mongo", fresh=True) as mine:
        yield mine


def hello_that_takes_ten_seconds(hello: dict[str, Any]) -> dict[str, Any]:
    """A command that the server keeps waiting for a change of topology that does not come."""
    return {"hello": 1, "topologyVersion": hello["topologyVersion"], "maxAwaitTimeMS": 10_000}


async def eventually(condition: Any, seconds: float = 2.0) -> bool:
    """Whether it becomes true within so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        if loop.time() > end:
            return False
        await asyncio.sleep(0.01)
    return True
