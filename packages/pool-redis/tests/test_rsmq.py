"""The example examples/rsmq.py: a queue that loses nothing and hands nothing to two at once."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pool_core import Pool
from pool_redis import LeasedRedis, RedisConnectionManager

from containers.servers import Server


@pytest.fixture(scope="module")
def rsmq() -> ModuleType:
    """The example, which is in no package."""
    path = Path(__file__).parents[3] / "examples" / "rsmq.py"
    spec = importlib.util.spec_from_file_location("rsmq_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def with_queue(redis: Server, rsmq: ModuleType, run: Any) -> Callable[..., Any]:
    """Run a coroutine function of an empty queue."""

    def start(main: Any, **options: Any) -> None:
        async def body() -> None:
            pool: Pool[LeasedRedis]
            async with Pool(RedisConnectionManager(redis.url), max_size=3, min_idle=1) as pool:
                async with pool.get() as client:
                    await client.delete("rsmq:{test}", "rsmq:{test}:Q")
                await main(rsmq.Queue(pool, "test", **options))

        run(body())

    return start


def test_messages_come_in_order_with_their_bytes(with_queue: Any) -> None:
    """First in, first out; any bytes."""

    async def main(queue: Any) -> None:
        bodies = [b"one", b"\x00\xff", b""]
        ids = [await queue.send(body) for body in bodies]
        assert ids == sorted(set(ids))
        got = [await queue.receive() for _ in bodies]
        assert [message.body for message in got] == bodies
        assert await queue.receive() is None

    with_queue(main)


def test_a_deleted_message_does_not_come_back_and_another_does(with_queue: Any) -> None:
    """At least once: who does not delete in time has not done it."""

    async def main(queue: Any) -> None:
        await queue.send(b"done")
        await queue.send(b"crashed")
        done, crashed = await queue.receive(), await queue.receive()
        assert await queue.delete(done) is True
        assert await queue.delete(done) is False
        assert await queue.receive() is None
        await asyncio.sleep(0.12)
        again = await queue.receive()
        assert (again.id, again.body, again.received) == (crashed.id, b"crashed", 2)
        assert await queue.receive() is None

    with_queue(main, visibility_timeout=0.1)


def test_a_delayed_message_is_not_seen_before_its_time(with_queue: Any) -> None:
    """rsmq's delay."""

    async def main(queue: Any) -> None:
        await queue.send(b"later", delay=0.1)
        assert await queue.receive() is None
        await asyncio.sleep(0.12)
        assert (await queue.receive()).body == b"later"

    with_queue(main)


def test_many_receivers_get_each_message_once(with_queue: Any) -> None:
    """Two receivers with one message would do the work twice."""

    async def main(queue: Any) -> None:
        sent = await asyncio.gather(*(queue.send(str(number).encode()) for number in range(60)))
        received: list[int] = []

        async def worker() -> None:
            while (message := await queue.receive()) is not None:
                received.append(message.id)
                assert await queue.delete(message)

        await asyncio.gather(*(worker() for _ in range(10)))
        assert sorted(received) == sorted(sent)

    with_queue(main)


def test_the_example_runs(redis: Server, rsmq: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """What the documentation shows works."""
    asyncio.run(rsmq.main(redis.url))
    worked_off = capsys.readouterr().out.split()[3::4]
    assert sorted(map(int, worked_off)) == list(range(12))
