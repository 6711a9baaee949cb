"""What the tests of this package share."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from containers.servers import Server, ServerFactory

T = TypeVar("T")


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Run a coroutine in an event loop of its own, bounded. No task may be left; aiormq's need some turns to end."""

    def run(main: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(50):
                result = await main
            turns = 100
            while (left := asyncio.all_tasks() - {asyncio.current_task()}) and (turns := turns - 1):
                await asyncio.sleep(0.01)
            assert not left, f"tasks are left: {left}"
            return result

        return asyncio.run(bounded())

    return run


@pytest.fixture
def broker(server: ServerFactory) -> Server:
    """The run's shared RabbitMQ."""
    return server("rabbitmq")
