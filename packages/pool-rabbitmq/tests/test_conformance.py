"""The conformance suite, for channels that share connections, and for connections of one channel each."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import aiormq
import pytest
from aio_pika import Message
from pool_core.testing import ManagerConformance, Probe
from pool_rabbitmq import LeasedChannel, RabbitMQChannelManager
from rabbitmq_broker import rabbitmqctl

from containers.servers import Server

DURABLE: dict[str, Any] = {"durable": True}  # RabbitMQ 4.3 refuses others that are not exclusive


async def ready_messages(conn: LeasedChannel) -> object:
    """How many messages of the queue "stock" wait for a consumer."""
    return (await conn.declare_queue("stock", passive=True)).declaration_result.message_count


async def fetch(conn: LeasedChannel) -> None:
    await (await conn.get_queue("stock")).get()


async def consume(conn: LeasedChannel) -> None:
    async def ignore(message: object) -> None: ...

    await (await conn.get_queue("empty")).consume(ignore)


async def consumers(conn: LeasedChannel) -> object:
    await asyncio.sleep(0.1)
    return (await conn.declare_queue("empty", passive=True)).declaration_result.consumer_count


class Conformance(ManagerConformance[LeasedChannel]):
    """The hooks."""

    __test__ = False
    options: ClassVar[dict[str, Any]] = {}
    probes: Sequence[Probe[LeasedChannel]] = (
        Probe("unacknowledged messages", fetch, ready_messages),
        Probe("consumers", consume, consumers),
    )

    @pytest.fixture(autouse=True)
    def _server(self, broker: Server) -> None:
        self.broker, self.host, self.port = broker, broker.host, broker.port
        self.secrets = (broker.password or "",)
        asyncio.run(self._fill())

    async def _fill(self) -> None:
        manager = RabbitMQChannelManager(self.broker.url)
        conn = await manager.connect()
        for name, count in (("stock", 1), ("empty", 0), ("echo", 0)):
            await (await conn.declare_queue(name, **DURABLE)).purge()
            for _ in range(count):
                await conn.default_exchange.publish(Message(b"one"), name)
        await manager.close(conn)

    def manager(self, host: str, port: int) -> RabbitMQChannelManager:
        return RabbitMQChannelManager(self.broker.url, host=host, port=port, **self.options)

    def bad_credentials(self, host: str, port: int) -> Mapping[str, RabbitMQChannelManager]:
        def bad(**options: Any) -> RabbitMQChannelManager:
            return RabbitMQChannelManager(self.broker.url, host=host, port=port, **options)

        return {
            "a wrong password": bad(password="wrong"),
            "an unknown user": bad(login="nobody"),
            "an unknown virtual host": bad(virtualhost="nowhere"),
            "TLS to a plain port": bad(ssl=True),
        }

    async def use(self, conn: LeasedChannel) -> None:
        queue = await conn.declare_queue("echo", passive=True)
        await conn.default_exchange.publish(Message(b"hello"), "echo")
        message = await queue.get()
        assert message.body == b"hello"
        await message.ack()

    async def slow_request(self, conn: LeasedChannel) -> None:
        messages = (await conn.get_queue("empty")).iterator()
        await messages.consume()
        await messages.__anext__()

    async def leave_unread(self, conn: LeasedChannel) -> None:
        task = asyncio.ensure_future(conn.flow(True))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.sleep(0)

    async def late_error(self, conn: LeasedChannel) -> None:
        await (await conn.get_underlay_channel()).basic_ack(77)

    async def server_kill(self, conn: LeasedChannel) -> None:
        await rabbitmqctl(self.broker, "close_all_connections", "conformance")


@pytest.mark.cancellation
class TestShared(Conformance):
    """The default: channels share a connection."""

    __test__ = True


class TestAlone(Conformance):
    """A connection for each channel, and no confirms, which transactions exclude."""

    __test__ = True
    options: ClassVar[dict[str, Any]] = {"channels_per_connection": 1, "publisher_confirms": False}

    async def begin(self, conn: LeasedChannel) -> None:
        await conn.transaction().select()

    async def in_transaction(self, conn: LeasedChannel) -> bool:
        wire = await conn.get_underlay_channel()
        try:
            await wire.tx_rollback()
        except aiormq.exceptions.ChannelClosed:
            return False
        return True
