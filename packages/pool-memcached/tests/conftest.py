"""What the tests of this package share."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from containers.servers import Server, ServerFactory

T = TypeVar("T")
PASSWORD = "canary-7f3a"


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Run a coroutine in an event loop of its own, bounded."""

    def run(main: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(50):
                return await main

        return asyncio.run(bounded())

    return run


@pytest.fixture
def memcached(server: ServerFactory) -> Server:
    """The run's shared memcached, which asks for no password."""
    return server("memcached")


@pytest.fixture(scope="session")
def guarded(server: ServerFactory) -> Iterator[Server]:
    """A memcached that asks for a password."""
    with server("memcached", fresh=True, password=PASSWORD) as mine:
        yield mine
