"""What the tests do to a RabbitMQ beside using it."""

import asyncio
import contextlib
import itertools
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

from aio_pika import DeliveryMode, Message
from pool_core import CloseReason, Pool
from pool_rabbitmq import LeasedChannel, RabbitMQChannelManager

from containers.servers import Server

_numbers = itertools.count()


async def rabbitmqctl(broker: Server, *words: str) -> str:
    """Run RabbitMQ's own command in its container; in a process, since the conformance suite counts our sockets."""
    command = ["docker", "exec", broker._site.id, "rabbitmqctl", "--quiet", *words]  # type: ignore[attr-defined]
    # Not asyncio's processes: on a busy machine one of them outlives its event loop, and complains.
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    return done.stdout


class Channels(Pool[LeasedChannel]):
    """A pool that remembers what was reported to it."""

    broker: Server
    errors: list[BaseException]

    @property
    def manager(self) -> RabbitMQChannelManager:
        return cast("RabbitMQChannelManager", super().manager)

    @property
    def created(self) -> int:
        return self.state().statistics.connections_created

    def closed(self) -> dict[CloseReason, int]:
        """How many channels were closed, by reason."""
        return {why: count for why, count in self.state().statistics.connections_closed.items() if count}

    @property
    def lines(self) -> int:
        """How many connections its channels use."""
        return sum(not line.is_gone for line in self.manager._lines)

    async def settled(self) -> None:
        """Wait until nothing is being opened, reset or closed."""
        async with asyncio.timeout(10):
            while (state := self.state()).resetting or state.closing or state.opening:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def pool_of(broker: Server, options: dict[str, Any] | None = None, **pool: Any) -> AsyncIterator[Channels]:
    """An open pool of this broker's channels, and its manager's connections."""
    manager = RabbitMQChannelManager(broker.url, **(options or {}))
    errors: list[BaseException] = []
    async with Channels(manager, error_sink=errors.append, **pool) as opened:
        opened.errors, opened.broker = errors, broker
        yield opened


@contextlib.asynccontextmanager
async def queue(pool: Channels, *bodies: bytes) -> AsyncIterator[str]:
    """A queue with these messages, made and deleted over a connection of its own. Its name is new."""
    name = f"test-{next(_numbers)}"
    manager = RabbitMQChannelManager(pool.broker.url)
    own = await manager.connect()
    await own.declare_queue(name, durable=True)
    for body in bodies:
        await own.default_exchange.publish(Message(body, delivery_mode=DeliveryMode.PERSISTENT), name)
    try:
        yield name
    finally:
        if manager.has_broken(own):
            manager.terminate(own)
            own = await manager.connect()
        await own.queue_delete(name)
        await manager.close(own)


async def waiting(channel: LeasedChannel, name: str) -> int:
    """How many messages are ready in a queue."""
    return int((await channel.declare_queue(name, passive=True)).declaration_result.message_count or 0)


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 10.0) -> None:
    """Wait for it; the broker's own books are a moment late."""
    end = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)
