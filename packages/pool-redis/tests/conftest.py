"""What the tests of this package share."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import fleet
import pytest
from pool_redis import RedisConnectionManager

from containers.servers import Server, ServerFactory

T = TypeVar("T")
PASSWORD = "canary-7f3a"


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Run a coroutine in a loop of its own, in debug mode off as users have it, bounded."""

    def run(main: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(50):
                return await main

        return asyncio.run(bounded())

    return run


@pytest.fixture
def redis(server: ServerFactory, dialect: str) -> Server:
    """The run's shared Redis, and then Valkey: without a password, as it comes."""
    return server(dialect)


@pytest.fixture(scope="session")
def guarded(server: ServerFactory, dialect: str) -> Iterator[Server]:
    """A server that asks for a password."""
    with server(dialect, fresh=True, password=PASSWORD) as mine:
        yield mine


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def manager(request: pytest.FixtureRequest, redis: Server) -> RedisConnectionManager:
    """A manager for the shared server, once in each version of the protocol."""
    return RedisConnectionManager(redis.url, protocol=request.param)


@pytest.fixture(scope="session")
def cluster(server: ServerFactory, dialect: str) -> Iterator[fleet.Fleet]:
    """Three masters and three replicas."""
    with fleet.cluster(server(dialect)) as mine:
        yield mine


@pytest.fixture(scope="session")
def watched(server: ServerFactory, dialect: str) -> Iterator[tuple[fleet.Fleet, fleet.Fleet]]:
    """A master, two replicas, three sentinels."""
    with fleet.sentinels(server(dialect)) as mine:
        yield mine
