"""The pool over a RabbitMQ that dies, blocks and cuts: waiters are served, and what was confirmed is not lost."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aio_pika import DeliveryMode, Message
from aiormq.exceptions import AMQPError, ChannelInvalidStateError
from pool_core import CloseReason, Pool, PoolTimeout
from pool_core.testing import FaultProxy
from pool_rabbitmq import RabbitMQChannelManager
from rabbitmq_broker import pool_of, queue, rabbitmqctl, until, waiting

from containers.servers import Server, ServerFactory

LOST = (AMQPError, ConnectionError, ChannelInvalidStateError, RuntimeError, asyncio.TimeoutError)


@pytest.fixture(scope="module")
def own(server: ServerFactory) -> Iterator[Server]:
    """A broker of the module's own, for faults that would disturb others."""
    with server("rabbitmq", fresh=True) as mine:
        yield mine


def test_a_lost_connection_is_seen_by_all_its_channels(own: Server, run: Any) -> None:
    """The broker closes it: no idle channel is handed off, the one in use fails, and its waiter gets another."""

    async def main() -> None:
        async with pool_of(own, max_size=4, min_idle=4) as pool, queue(pool) as name:
            waiters: list[asyncio.Task[None]] = []

            async def use() -> None:
                async with pool.get() as channel:
                    await channel.default_exchange.publish(Message(b"x"), name)

            with contextlib.suppress(*LOST):
                async with pool.get() as one, pool.get(), pool.get(), pool.get():
                    waiters += [asyncio.create_task(use()) for _ in range(8)]
                    await rabbitmqctl(own, "close_all_connections", "fault")
                    await one.flow(True)
            await asyncio.gather(*waiters)
            assert pool.closed()[CloseReason.BROKEN] >= 4
            assert pool.lines == 1

    run(main())


def test_nothing_confirmed_is_lost_when_the_broker_is_killed(own: Server, run: Any) -> None:
    """Publishers go on over a kill and a restart; every confirmed message is in the durable queue afterwards."""

    async def main() -> None:
        manager = RabbitMQChannelManager(own.url)
        setup = await manager.connect()
        await setup.declare_queue("kept", durable=True)
        await manager.close(setup)
        confirmed: set[bytes] = set()
        end = asyncio.Event()

        async def publish(pool: Pool[Any], worker: int) -> None:
            number = 0
            while not end.is_set():
                number += 1
                body = b"%d/%d" % (worker, number)
                with contextlib.suppress(*LOST):
                    async with pool.get(timeout=25) as channel:
                        message = Message(body, delivery_mode=DeliveryMode.PERSISTENT)
                        await channel.default_exchange.publish(message, "kept")
                        confirmed.add(body)
                await asyncio.sleep(0.01)

        async with Pool(manager, max_size=4, error_sink=lambda _: None) as pool:
            workers = [asyncio.create_task(publish(pool, number)) for number in range(8)]
            await asyncio.sleep(0.3)
            before = len(confirmed)
            assert before > 0
            await asyncio.to_thread(own.kill)
            await asyncio.to_thread(own.start)
            back, after = time.monotonic(), len(confirmed)
            while len(confirmed) == after:
                assert time.monotonic() - back < 4, "nobody was served within 4 s of the broker's return"
                await asyncio.sleep(0.01)
            end.set()
            await asyncio.gather(*workers)
            found = set()
            async with pool.get() as channel:
                kept = await channel.get_queue("kept")
                while (message := await kept.get(fail=False, no_ack=True)) is not None:
                    found.add(message.body)
                await channel.queue_delete("kept")
            assert confirmed <= found
            state = pool.state()
            assert (state.in_use, state.waiting) == (0, 0)

    run(main())


def test_a_memory_alarm_blocks_publishers_only(own: Server, run: Any) -> None:
    """Their timeout ends them; whoever only reads gets a channel on another connection; then all goes on."""

    async def main() -> None:
        async with pool_of(own, max_size=3) as pool, queue(pool, b"one") as name:
            await rabbitmqctl(own, "set_vm_memory_high_watermark", "absolute", "1MiB")
            try:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1), pool.get() as channel:
                        while True:
                            await channel.default_exchange.publish(Message(b"x"), name)
                began = time.monotonic()
                async with pool.get() as channel:
                    assert await waiting(channel, name) >= 1
                assert time.monotonic() - began < 1
            finally:
                await rabbitmqctl(own, "set_vm_memory_high_watermark", "0.6")

            async def works() -> bool:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5), pool.get() as channel:
                        await channel.default_exchange.publish(Message(b"y"), name)
                        return True
                return False

            await until(works, "publishing goes on")
            await pool.settled()
            began = time.monotonic()
        assert time.monotonic() - began < 2

    run(main())


def test_a_frozen_connection_is_replaced(broker: Server, run: Any) -> None:
    """The validation runs into its timeout; the get goes on with another connection within its own."""

    async def main() -> None:
        proxy = FaultProxy(broker.host, broker.port)
        manager = RabbitMQChannelManager(broker.url, host=proxy.host, port=proxy.port)
        options: dict[str, Any] = {"validation_timeout": 0.3, "alive_bypass": 0, "error_sink": lambda _: None}
        async with Pool(manager, max_size=3, min_idle=3, close_timeout=0.3, **options) as pool:
            proxy.freeze()
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=1)
            proxy.reset()
            proxy.heal()
            async with pool.get(timeout=5) as channel:
                assert (await channel.flow(True)).active
            began = time.monotonic()
            proxy.freeze()
        assert time.monotonic() - began < 12
        proxy.close()

    run(main())


def test_a_cut_connection_wakes_everybody_on_it(broker: Server, run: Any) -> None:
    """A consumer, a publisher and a waiter over one socket that is reset."""

    async def main() -> None:
        proxy = FaultProxy(broker.host, broker.port)
        async with pool_of(broker, {"host": proxy.host, "port": proxy.port}, max_size=2) as pool, queue(pool) as name:

            async def consume() -> None:
                async with pool.get() as channel, (await channel.get_queue(name)).iterator() as messages:
                    async for _ in messages:
                        raise AssertionError("there is no message")
                    raise ConnectionResetError("the iterator has ended")

            async def wait_for_confirms() -> None:
                async with pool.get() as channel:
                    while True:
                        await channel.default_exchange.publish(Message(b"x"), "no such queue", mandatory=False)

            async def wait_for_a_channel() -> None:
                async with pool.get() as channel:
                    await channel.flow(True)

            tasks = [asyncio.create_task(consume()), asyncio.create_task(wait_for_confirms())]
            await asyncio.sleep(0.1)
            third = asyncio.create_task(wait_for_a_channel())
            await asyncio.sleep(0)
            proxy.reset()
            for error in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5):
                assert isinstance(error, LOST), repr(error)
            await asyncio.wait_for(third, 5)
        proxy.close()

    run(main())


@pytest.mark.cancellation
def test_a_cancelled_request_comes_back_though_the_broker_reads_nothing(broker: Server, run: Any) -> None:
    """aiormq sends a last frame for a cancelled request, and would wait for room in its queue for ever."""

    async def main() -> None:
        proxy = FaultProxy(broker.host, broker.port)
        options = {"host": proxy.host, "port": proxy.port}
        async with pool_of(broker, options, max_size=30, min_idle=30, close_timeout=0.3) as pool:
            publishers: list[asyncio.Task[None]] = []

            async def publish() -> None:
                async with pool.get() as channel:
                    await channel.default_exchange.publish(Message(bytes(1_000_000)), "no such queue")

            async with pool.get() as channel:
                proxy.freeze("to_server")
                publishers += [asyncio.create_task(publish()) for _ in range(29)]
                # Until their frames fill the socket's buffer and then aiormq's queue.
                queue_: Any = channel.line.connection and channel.line.connection.write_queue
                async with asyncio.timeout(5):
                    while not queue_.full():
                        await asyncio.sleep(0.01)
                began = time.monotonic()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await channel.flow(True)
                assert time.monotonic() - began < 1
            for task in publishers:
                task.cancel()
            await asyncio.wait_for(asyncio.gather(*publishers, return_exceptions=True), 1)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        proxy.close()

    run(main())


@pytest.mark.cancellation
def test_a_cancelled_consumer_comes_back_though_the_broker_hangs(broker: Server, run: Any) -> None:
    """aio_pika ends its iterator with a request, and would wait for the answer for ever."""

    async def main() -> None:
        proxy = FaultProxy(broker.host, broker.port)
        options = {"host": proxy.host, "port": proxy.port}
        async with pool_of(broker, options, max_size=1, close_timeout=0.3) as pool, queue(pool) as name:

            async def consume() -> None:
                async with pool.get() as channel, (await channel.get_queue(name)).iterator() as messages:
                    async for _ in messages:
                        raise AssertionError("there is no message")

            consumer = asyncio.create_task(consume())
            await asyncio.sleep(0.1)
            proxy.freeze()
            consumer.cancel()
            began = time.monotonic()
            await asyncio.wait({consumer}, timeout=10)
            assert consumer.cancelled()
            assert time.monotonic() - began < 2
            proxy.reset()
            proxy.heal()
        proxy.close()

    run(main())
