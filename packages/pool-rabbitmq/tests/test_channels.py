"""What a borrower leaves behind on a channel does not reach the next one, and nothing unacknowledged is lost."""

import asyncio
import gc
from typing import Any

import aio_pika
import pytest
from aio_pika import Message
from aiormq import exceptions as amqp
from pamqp import commands as spec
from pool_core import CloseReason
from pool_core.testing import FaultProxy
from pool_rabbitmq import LeasedChannel, RabbitMQChannelManager
from rabbitmq_broker import pool_of, queue, until, waiting

from containers.servers import Server


async def echo(channel: LeasedChannel, name: str) -> None:
    """Publish and fetch one message."""
    await channel.default_exchange.publish(Message(b"mine"), name)
    message = await (await channel.get_queue(name, ensure=False)).get()
    assert message.body == b"mine"
    await message.ack()


def test_channels_share_a_connection(broker: Server, run: Any) -> None:
    """Ordinary use costs neither a channel nor a connection."""

    async def main() -> None:
        async with pool_of(broker, max_size=5) as pool, queue(pool) as name:

            async def use() -> None:
                async with pool.get() as channel:
                    await channel.default_exchange.publish(Message(b"x"), name)

            await asyncio.gather(*(use() for _ in range(50)))
            assert (pool.lines, pool.created, pool.closed(), pool.errors) == (1, 5, {}, [])

    run(main())


def test_each_channel_may_have_a_connection(broker: Server, run: Any) -> None:
    """channels_per_connection=1; with 2, three channels need two."""

    async def main() -> None:
        for share, lines in ((1, 3), (2, 2)):
            async with pool_of(broker, {"channels_per_connection": share}, max_size=3, min_idle=3) as pool:
                assert pool.lines == lines

    run(main())


def test_messages_that_were_fetched_and_not_acknowledged_go_back(broker: Server, run: Any) -> None:
    """The next borrower finds them ready, on the same channel; what was acknowledged is gone."""

    async def main() -> None:
        async with pool_of(broker, max_size=1) as pool, queue(pool, b"one", b"two", b"three") as name:
            async with pool.get() as channel:
                await (await (await channel.get_queue(name)).get()).ack()
            async with pool.get() as channel:
                assert await waiting(channel, name) == 2
                assert (await (await channel.get_queue(name)).get()).body == b"two"
                assert await waiting(channel, name) == 1
            async with pool.get() as channel:
                assert await waiting(channel, name) == 2
                again = await (await channel.get_queue(name)).get()
                assert (again.body, again.redelivered) == (b"two", True)
            assert (pool.created, pool.errors) == (1, [])

    run(main())


def test_a_consumer_ends_with_its_lease(broker: Server, run: Any) -> None:
    """Its channel is closed, quietly; what it had prefetched is not lost."""

    async def main() -> None:
        async def ignore(message: object) -> None: ...

        async with pool_of(broker, max_size=1) as pool, queue(pool, b"one", b"two") as name:
            async with pool.get() as channel:
                await (await channel.get_queue(name)).consume(ignore)
                await asyncio.sleep(0.05)
                assert await waiting(channel, name) == 0
            async with pool.get() as channel:
                assert await waiting(channel, name) == 2
            assert pool.closed() == {CloseReason.REPLACED: 1}
            assert pool.errors == []

    run(main())


def test_a_consumer_that_is_cancelled_loses_nothing(broker: Server, run: Any) -> None:
    """The usual end of a worker: its task is cancelled in the middle of a message."""

    async def main() -> None:
        async with pool_of(broker, max_size=1) as pool, queue(pool, b"one", b"two", b"three") as name:
            began = asyncio.Event()

            async def work() -> None:
                async with pool.get() as channel, (await channel.get_queue(name)).iterator() as messages:
                    async for message in messages:
                        async with message.process(requeue=True):
                            if message.body == b"two":
                                began.set()
                                await asyncio.sleep(30)

            worker = asyncio.create_task(work())
            await began.wait()
            worker.cancel()
            with pytest.raises(asyncio.CancelledError):
                await worker

            async def two_wait() -> bool:
                async with pool.get() as channel:
                    return await waiting(channel, name) == 2

            await until(two_wait, "both messages are back in the queue")

    run(main())


@pytest.mark.parametrize("cancelled_after", [0, 1, 2, 3, 5, 8])
def test_a_cancelled_publish_confuses_no_confirm(broker: Server, cancelled_after: int, run: Any) -> None:
    """The next borrower's confirm is its own."""

    async def main() -> None:
        async with pool_of(broker, max_size=1) as pool, queue(pool) as name:
            async with pool.get() as channel:
                task = asyncio.ensure_future(channel.default_exchange.publish(Message(b"half"), name))
                for _ in range(cancelled_after):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
            async with pool.get() as channel:
                before = await waiting(channel, name)
                await channel.default_exchange.publish(Message(b"whole"), name)
                assert await waiting(channel, name) == before + 1

    run(main())


@pytest.mark.parametrize("state", ["prefetch", "transaction", "confirms"])
def test_a_mode_of_a_channel_ends_with_its_lease(broker: Server, state: str, run: Any) -> None:
    """AMQP has no way back from any of them, so the channel is replaced."""

    async def main() -> None:
        async with pool_of(broker, {"publisher_confirms": False}, max_size=1) as pool, queue(pool) as name:
            async with pool.get() as channel:
                if state == "prefetch":
                    await channel.set_qos(1)
                elif state == "transaction":
                    await channel.transaction().select()
                    await channel.default_exchange.publish(Message(b"never committed"), name)
                else:
                    await (await channel.get_underlay_channel()).confirm_delivery()
            async with pool.get() as channel:
                assert await waiting(channel, name) == 0
                await channel.transaction().select()  # refused on a channel with confirms
            assert pool.closed()[CloseReason.REPLACED] >= 1
            assert pool.errors == []

    run(main())


def test_a_prefetch_of_the_manager_stays(broker: Server, run: Any) -> None:
    """prefetch_count belongs to every channel of the pool."""

    async def main() -> None:
        async with pool_of(broker, {"prefetch_count": 1}, max_size=1) as pool, queue(pool, b"one", b"two") as name:
            for _ in range(2):
                async with pool.get() as channel:
                    got: list[object] = []

                    async def keep(message: object, got: list[object] = got) -> None:
                        got.append(message)

                    await (await channel.get_queue(name)).consume(keep)
                    await asyncio.sleep(0.1)
                    assert len(got) == 1

    run(main())


@pytest.mark.parametrize("nowait", [False, True])
def test_an_exclusive_queue_ends_with_its_lease(broker: Server, nowait: bool, run: Any) -> None:
    """It belongs to the connection, so that is replaced, with all channels on it as they come back."""

    async def main() -> None:
        async with pool_of(broker, max_size=3, min_idle=2) as pool:
            async with pool.get() as channel, pool.get() as bystander:
                wire: Any = await channel.get_underlay_channel()
                await wire.queue_declare("mine", exclusive=True, nowait=nowait)
                await bystander.flow(True)  # goes on working
            await pool.settled()

            async def gone() -> bool:
                try:
                    async with pool.get() as channel:
                        await channel.declare_queue("mine", passive=True)
                except amqp.ChannelNotFoundEntity:
                    return True
                except amqp.ChannelLockedResource:
                    return False
                raise AssertionError("the next borrower can use it")

            await until(gone, "the exclusive queue is gone")
            assert pool.lines == 1

    run(main())


def test_a_channel_that_the_broker_closes_costs_its_lease_only(broker: Server, run: Any) -> None:
    """404 for an unknown exchange: the others on the connection go on, and the next get gets a new channel."""

    async def main() -> None:
        async with pool_of(broker, max_size=2) as pool, queue(pool) as name:
            async with pool.get() as bystander:
                with pytest.raises(amqp.ChannelNotFoundEntity):
                    async with pool.get() as channel:
                        exchange = await channel.get_exchange("no such exchange", ensure=False)
                        await exchange.publish(Message(b"x"), "key")
                async with pool.get() as channel:
                    await echo(channel, name)
                await echo(bystander, name)
            assert pool.lines == 1
            assert pool.closed() == {CloseReason.BROKEN: 1}

    run(main())


@pytest.mark.parametrize("mistake", ["ack", "publish"])
def test_a_mistake_that_is_told_late_is_not_told_to_the_next_borrower(broker: Server, mistake: str, run: Any) -> None:
    """406 for an unknown delivery tag, 404 for a publish without confirms: both come after the call has returned."""

    async def main() -> None:
        async with pool_of(broker, {"publisher_confirms": False}, max_size=1) as pool, queue(pool) as name:
            for _ in range(3):
                async with pool.get() as channel:
                    if mistake == "ack":
                        await (await channel.get_underlay_channel()).basic_ack(77)
                    else:
                        exchange = await channel.get_exchange("no such exchange", ensure=False)
                        await exchange.publish(Message(b"x"), "key")
                async with pool.get() as channel:
                    await echo(channel, name)
            assert pool.lines == 1

    run(main())


def test_an_unroutable_message_costs_nothing(broker: Server, run: Any) -> None:
    """It is returned, or raised with on_return_raises; the confirm that follows, maybe later, disturbs nobody."""

    async def main() -> None:
        proxy = FaultProxy(broker.host, broker.port)
        options = {"on_return_raises": True, "host": proxy.host, "port": proxy.port}
        async with pool_of(broker, options, max_size=1) as pool, queue(pool) as name:
            with pytest.raises(aio_pika.exceptions.DeliveryError):
                async with pool.get() as channel:
                    proxy.trickle(delay=0.02, size=30, direction="to_client")
                    await channel.default_exchange.publish(Message(b"x"), "no such queue")
            proxy.heal()
            async with pool.get() as channel:
                await echo(channel, name)
            assert pool.created == 1
        proxy.close()

    run(main())


def test_a_channel_that_the_broker_closes_is_broken_from_the_first_moment(broker: Server, run: Any) -> None:
    """aiormq needs several turns of the event loop to close its side; a waiter must not get the channel meanwhile."""

    async def main() -> None:
        manager = RabbitMQChannelManager(broker.url)
        channel = await manager.connect()
        wire: Any = await channel.get_underlay_channel()
        assert manager.has_broken(channel) is False
        wire.frames.put_nowait((0, spec.Channel.Close(reply_code=406, reply_text="late", class_id=0, method_id=0)))
        turns = 0
        while not channel.is_closed:
            assert manager.has_broken(channel) is True
            await asyncio.sleep(0)
            turns += 1
        assert manager.has_broken(channel) is True
        assert turns > 2
        manager.terminate(channel)

    run(main())


def test_callbacks_end_with_their_lease(broker: Server, run: Any) -> None:
    """The next borrower's returned message is not told to the former one."""

    async def main() -> None:
        told: list[object] = []

        async def tell(*message: object) -> None:
            told.append(message)

        async with pool_of(broker, max_size=1) as pool:
            async with pool.get() as channel:
                channel.return_callbacks.add(tell)
                channel.close_callbacks.add(tell)
            async with pool.get() as channel:
                await channel.default_exchange.publish(Message(b"x"), "no such queue")
                await asyncio.sleep(0.05)
            assert pool.created == 1
        assert told == []

    run(main())


def test_a_channel_does_not_reopen(broker: Server, run: Any) -> None:
    """A borrower that closes its channel gets another one from the pool."""

    async def main() -> None:
        async with pool_of(broker, max_size=1) as pool, queue(pool) as name:
            async with pool.get() as channel:
                await channel.close()
                with pytest.raises(RuntimeError, match="get another one"):
                    await channel.reopen()
            async with pool.get() as channel:
                await echo(channel, name)

    run(main())


def test_a_detached_channel_ends_its_connection(broker: Server, run: Any) -> None:
    """It belongs to the program now, which closes it as any other."""

    async def main() -> None:
        async with pool_of(broker, max_size=2) as pool:
            own, other = (await pool.get()).detach(), (await pool.get()).detach()
            line = own.line
            await own.close()
            assert own.is_closed
            await other.flow(True)
            assert (line.users, line.is_gone) == (1, False)
            await other.close()
            await other.close()
            assert other.is_closed
            assert (line.users, line.is_gone) == (0, True)

    run(main())


def test_evict_leads_to_another_connection(broker: Server, run: Any) -> None:
    """After a failover a new channel on the old connection would be no help."""

    async def main() -> None:
        async with pool_of(broker, max_size=3, min_idle=2) as pool:
            async with pool.get() as channel:
                old = channel.line
                pool.evict()
                await channel.flow(True)  # one in use works until its return
            await pool.settled()
            async with pool.get() as channel:
                assert channel.line is not old
            assert old.is_gone

    run(main())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lost_lease_gives_its_messages_back(broker: Server, run: Any) -> None:
    """The garbage collector finds the lease; others use the connection, which stays until they are done."""

    async def main() -> None:
        async with pool_of(broker, max_size=2) as pool, queue(pool, b"one") as name:
            async with pool.get() as bystander:
                lease = await pool.get()
                assert (await (await lease.conn.get_queue(name)).get()).body == b"one"
                del lease
                gc.collect()

                async def back() -> bool:
                    return await waiting(bystander, name) == 1

                await until(back, "the message is back in its queue")
            await pool.settled()

    run(main())


def test_terminating_a_channel_leaves_the_others_alone(broker: Server, run: Any) -> None:
    """Who waits on it gets an error; who uses another channel of the connection does not notice."""

    async def main() -> None:
        async with pool_of(broker, max_size=2) as pool, queue(pool) as name:
            async with pool.get() as bystander:
                lease = await pool.get()
                messages = (await lease.conn.get_queue(name)).iterator()
                await messages.consume()
                waiting_for_one = asyncio.ensure_future(messages.__anext__())
                await asyncio.sleep(0.02)
                pool.manager.terminate(lease.conn)
                with pytest.raises((StopAsyncIteration, ConnectionError, amqp.AMQPError, RuntimeError)):
                    await asyncio.wait_for(waiting_for_one, 2)
                await echo(bystander, name)
                lease.release()
            await pool.settled()
            async with pool.get() as channel:
                await echo(channel, name)

    run(main())
