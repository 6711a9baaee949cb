"""A consumer of RabbitMQ: each order is handled at least once, over lost connections and restarts.

    python examples/rabbitmq_consumer.py        # AMQP_URL=amqp://guest:guest@localhost:5672/

Each worker keeps a lease for as long as it consumes. When its connection is lost, the broker gives the orders that were
not acknowledged to another worker, and this one gets a new lease. SIGTERM ends it; an order in progress goes back.
"""

from __future__ import annotations

import asyncio
import os
import signal

from aio_pika.abc import AbstractIncomingMessage
from aiormq.exceptions import AMQPError, ChannelInvalidStateError
from pool_core import Pool, PoolUnavailable
from pool_rabbitmq import LeasedChannel, RabbitMQChannelManager

QUEUE = os.environ.get("QUEUE", "orders")
WORKERS = 3


async def handle(order: AbstractIncomingMessage) -> None:
    await asyncio.sleep(0.01)  # the work
    print(f"handled {order.message_id}")


async def consume(channel: LeasedChannel) -> None:
    """Handle orders until the connection is lost."""
    queue = await channel.declare_queue(QUEUE, durable=True)
    async with queue.iterator() as orders:
        async for order in orders:
            # An order that fails goes back once; the second time it is rejected, to a dead-letter exchange if there is one.
            async with order.process(requeue=True, reject_on_redelivered=True):
                await handle(order)


async def work(pool: Pool[LeasedChannel]) -> None:
    while True:
        try:
            async with pool.get() as channel:
                await consume(channel)
        except (PoolUnavailable, AMQPError, ChannelInvalidStateError, OSError) as error:
            print(f"again after {type(error).__name__}")
        await asyncio.sleep(0.1)


async def main() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/")
    manager = RabbitMQChannelManager(url, name="consumer", prefetch_count=5)
    try:
        async with Pool(manager, name="orders", max_size=WORKERS, min_idle=1) as pool, asyncio.TaskGroup() as group:
            print("working")
            for _ in range(WORKERS):
                group.create_task(work(pool))
    except asyncio.CancelledError:
        print("stopped")


if __name__ == "__main__":
    asyncio.run(main())
