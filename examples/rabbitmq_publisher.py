"""A web service that publishes to RabbitMQ: what it has accepted is in a durable queue, confirmed by the broker.

    python examples/rabbitmq_publisher.py       # AMQP_URL=amqp://guest:guest@localhost:5672/
    curl -X POST localhost:8080/orders -d "a book"

`examples/rabbitmq_consumer.py` handles the orders.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator

from aio_pika import DeliveryMode, Message
from aiohttp import web
from aiormq.exceptions import AMQPError
from pool_core import Pool, PoolUnavailable
from pool_rabbitmq import LeasedChannel, RabbitMQChannelManager

POOL = web.AppKey("POOL", Pool[LeasedChannel])
QUEUE = os.environ.get("QUEUE", "orders")


async def opened(app: web.Application) -> AsyncIterator[None]:
    async with app[POOL] as pool:
        async with pool.get() as channel:
            await channel.declare_queue(QUEUE, durable=True)
        yield


async def accept(request: web.Request) -> web.Response:
    body = await request.read()  # before the get: a slow client holds no channel
    order = Message(body, message_id=uuid.uuid4().hex, delivery_mode=DeliveryMode.PERSISTENT)
    try:
        async with request.app[POOL].get() as channel, asyncio.timeout(5):  # a broker without memory blocks publishers
            await channel.default_exchange.publish(order, QUEUE)
    except (PoolUnavailable, AMQPError, OSError, TimeoutError) as error:
        # It may be in the queue all the same: the consumer must expect an order twice.
        return web.json_response({"detail": str(error)}, status=503, headers={"Retry-After": "1"})
    return web.json_response({"id": order.message_id}, status=202)


def create_app(pool: Pool[LeasedChannel]) -> web.Application:
    app = web.Application()
    app[POOL] = pool
    app.cleanup_ctx.append(opened)
    app.add_routes([web.post("/orders", accept)])
    return app


def main() -> None:
    url = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/")
    # An order that reaches no queue is an error, too.
    manager = RabbitMQChannelManager(url, name="publisher", on_return_raises=True)
    pool = Pool(manager, name="orders", max_size=10, min_idle=1, connection_timeout=5)
    web.run_app(create_app(pool), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))


if __name__ == "__main__":
    main()
