"""The pool over a memcached that dies, hangs and cuts: waiters are served, and nobody gets another one's answer."""

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pool_core import CloseReason, Pool
from pool_core.testing import FaultProxy, acancel_everywhere
from pool_core.testing import Injector as Inject
from pool_memcached import LeasedMemcached, MemcachedConnectionManager

from containers.servers import Server, ServerFactory

_numbers = itertools.count()


@pytest.fixture(scope="module")
def own(server: ServerFactory) -> Iterator[Server]:
    """A server of the module's own, for faults that would disturb others."""
    with server("memcached", fresh=True) as mine:
        yield mine


async def echo(pool: Pool[LeasedMemcached]) -> None:
    """One lease; the value must be its own."""
    mine = b"%d" % next(_numbers)
    async with pool.get() as client:
        await client.set(b"echo" + mine, mine)
        assert await client.get(b"echo" + mine) == mine


def quiet(manager: MemcachedConnectionManager, **options: Any) -> Pool[LeasedMemcached]:
    """A pool that reports its outages to nobody."""
    return Pool(manager, error_sink=lambda _: None, **options)


def test_many_tasks_share_few_connections(memcached: Server, run: Any) -> None:
    """Ordinary use opens no connection beyond the limit, and closes none."""

    async def main() -> None:
        async with Pool(MemcachedConnectionManager(memcached.url), max_size=4) as pool:
            await asyncio.gather(*(echo(pool) for _ in range(400)))
            assert pool.state().statistics.connections_created == 4

    run(main())


def test_waiters_are_served_when_the_server_is_back(own: Server, run: Any) -> None:
    """Killed and started again: no idle connection is handed off, and two hundred waiters are served."""

    async def main() -> None:
        async with quiet(MemcachedConnectionManager(own.url), max_size=5, min_idle=5) as pool:
            await asyncio.to_thread(own.kill)
            waiters = [asyncio.create_task(echo(pool)) for _ in range(200)]
            await asyncio.sleep(0.2)
            await asyncio.to_thread(own.start)
            back = time.monotonic()
            done, _ = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            assert time.monotonic() - back < 3
            await asyncio.gather(*waiters)
            assert done
            assert pool.state().statistics.connections_closed[CloseReason.BROKEN] >= 5

    run(main())


def test_a_server_killed_under_a_borrower_costs_its_lease(own: Server, run: Any) -> None:
    """The borrower sees ConnectionResetError; its waiter does not."""

    async def main() -> None:
        async with quiet(MemcachedConnectionManager(own.url), max_size=1) as pool:
            waiters: list[asyncio.Task[None]] = []
            with pytest.raises(ConnectionResetError):
                async with pool.get() as client:
                    await client.set(b"key", b"value")
                    waiters.append(asyncio.create_task(echo(pool)))
                    await asyncio.to_thread(own.kill)
                    await client.get(b"key")
            await asyncio.to_thread(own.start)
            await asyncio.gather(*waiters)

    run(main())


def test_a_server_that_hangs_holds_nobody_for_longer_than_a_timeout(own: Server, run: Any) -> None:
    """A cancelled command comes back at once, and closing the pool ends."""

    async def main() -> None:
        async with quiet(MemcachedConnectionManager(own.url), max_size=2, min_idle=2, close_timeout=0.3) as pool:
            await asyncio.to_thread(own.pause)
            try:
                began = time.monotonic()
                with pytest.raises(TimeoutError):
                    async with pool.get() as client, asyncio.timeout(0.3):
                        await client.get(b"key")
                await pool.close(timeout=1)
                assert time.monotonic() - began < 2
            finally:
                await asyncio.to_thread(own.unpause)

    run(main())


@pytest.mark.parametrize("fault", ["reset", "fin", "cut", "trickle"])
def test_a_fault_on_the_way_gives_nobody_a_wrong_value(memcached: Server, fault: str, run: Any) -> None:
    """Under load: each borrower gets its own value or an error, and afterwards all is well."""

    async def main() -> None:
        proxy = FaultProxy(memcached.host, memcached.port)
        manager = MemcachedConnectionManager(host=proxy.host, port=proxy.port)
        async with quiet(manager, max_size=3) as pool:
            work = [asyncio.create_task(echo(pool)) for _ in range(60)]
            await asyncio.sleep(0.01)
            if fault == "trickle":
                proxy.trickle(delay=0.0, size=1)
            elif fault == "cut":
                proxy.cut(3)
            else:
                getattr(proxy, fault)()
            await asyncio.sleep(0.05)
            proxy.heal()
            for outcome in await asyncio.gather(*work, return_exceptions=True):
                assert outcome is None or isinstance(outcome, OSError), repr(outcome)
            await echo(pool)
        proxy.close()

    run(main())


@pytest.mark.cancellation
def test_a_cancelled_borrower_hands_no_answer_on(memcached: Server, run: Any) -> None:
    """Cancelled at each await of a get, a set and their lease."""

    async def main() -> None:
        manager = MemcachedConnectionManager(memcached.url)

        async def scenario(inject: Inject) -> None:
            async with quiet(manager, max_size=1) as pool:
                await inject(echo(pool))
                await echo(pool)

        await acancel_everywhere(scenario)

    run(main())


def test_no_password_reaches_the_log(guarded: Server, caplog: pytest.LogCaptureFixture, run: Any) -> None:
    """Neither from the pool nor from asyncio, whatever fails."""
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        manager = MemcachedConnectionManager(host=guarded.host, port=guarded.port, user="pool", password="canary-wrong")
        async with Pool(manager) as pool:
            with pytest.raises(Exception, match="refused"):
                await pool.get()

    run(main())
    assert "canary" not in caplog.text
