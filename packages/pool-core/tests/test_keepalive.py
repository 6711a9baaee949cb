"""keepalive: an idle connection that was silent for so long is validated in the background."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pool_core import Pool, QueueStrategy
from pool_core.testing import NEVER, OK, Delay, ScriptedManager

from .helpers import books, closed, hold, turns, virtual


def validated(manager: ScriptedManager) -> list[tuple[float, int | None]]:
    return [(round(call.time, 1), call.connection) for call in manager.calls("is_valid")]


@virtual
async def test_an_idle_connection_is_validated_each_keepalive() -> None:
    """A load balancer drops what is silent for 240 or 350 s."""
    manager = ScriptedManager()
    async with Pool(manager, min_idle=2, keepalive=100, idle_timeout=None, max_lifetime=None) as pool:
        await asyncio.sleep(350)
        assert sorted(validated(manager)) == sorted((at, n) for at in (100, 200, 300) for n in (1, 2))
        assert pool.state().idle == 2
        books(pool)


@virtual
async def test_use_postpones_keepalive() -> None:
    """Only silence counts."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, keepalive=100, alive_bypass=1000, idle_timeout=None) as pool:
        for _ in range(5):
            await hold(pool)
            await asyncio.sleep(90)
        assert validated(manager) == []
        await asyncio.sleep(20)
        assert len(validated(manager)) == 1


@virtual
async def test_a_connection_in_use_is_left_alone() -> None:
    """Its borrower uses it; after its return it has its full time again."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, keepalive=10) as pool:
        await hold(pool, 35)
        assert validated(manager) == []
        await asyncio.sleep(9)
        assert validated(manager) == []
        await asyncio.sleep(2)
        assert len(validated(manager)) == 1
        books(pool)


@virtual
async def test_what_fails_is_closed_and_replaced_up_to_min_idle() -> None:
    """Before anybody needs it."""
    manager = ScriptedManager(is_valid=[False, OK])
    async with Pool(manager, min_idle=1, keepalive=10, idle_timeout=None) as pool:
        await asyncio.sleep(11)
        closed(pool, invalid=1)
        assert (pool.state().idle, pool.state().statistics.connections_created) == (1, 2)
        books(pool)


@virtual
async def test_at_most_max_connecting_are_validated_at_once() -> None:
    """Keeping many alive must not be a burst of pings."""
    manager = ScriptedManager(is_valid=Delay(1))
    async with Pool(manager, max_size=6, min_idle=6, max_connecting=2, keepalive=10, idle_timeout=None) as pool:
        most = 0
        for _ in range(40):
            await asyncio.sleep(0.25)
            most = max(most, pool.state().validating)
        for _ in range(20):
            await asyncio.sleep(0.25)
            most = max(most, pool.state().validating)
        assert most == 2
        assert sorted(number or 0 for _, number in validated(manager)) == [1, 2, 3, 4, 5, 6]
        books(pool)


@virtual
async def test_keepalive_is_no_use() -> None:
    """idle_timeout closes what nobody uses all the same."""
    async with Pool(ScriptedManager(), max_size=2, keepalive=10, idle_timeout=60, reap_interval=5) as pool:
        await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))
        await asyncio.sleep(70)
        closed(pool, idle=2)


@pytest.mark.parametrize("strategy", QueueStrategy)
@pytest.mark.parametrize("tests", [True, False])
@virtual
async def test_keepalive_leaves_the_order_of_idle_connections(strategy: QueueStrategy, tests: bool) -> None:
    """LIFO keeps few of them hot; FIFO takes the one unused longest."""
    manager = ScriptedManager(is_valid=Delay(0.1))
    options: dict[str, Any] = {"queue_strategy": strategy, "test_on_check_out": tests, "max_connecting": 1}
    async with Pool(manager, max_size=3, keepalive=20, idle_timeout=None, **options) as pool:
        leases = [await pool.get() for _ in range(3)]
        for lease in leases:
            await asyncio.sleep(1)
            lease.release()
        await asyncio.sleep(30)
        assert len(validated(manager)) == 3
        got = [await pool.get() for _ in range(3)]
        order = [lease.conn.id for lease in got]
        assert order == ([3, 2, 1] if strategy is QueueStrategy.LIFO else [1, 2, 3])
        for lease in got:
            lease.release()
        books(pool)


@virtual
async def test_a_get_meanwhile_has_the_connection_that_keepalive_validates() -> None:
    """It was just proven, so it is not validated again."""
    manager = ScriptedManager(is_valid=Delay(1))
    async with Pool(manager, max_size=1, keepalive=10) as pool:
        await hold(pool)
        await asyncio.sleep(10.5)
        await hold(pool)
        assert len(validated(manager)) == 1
        books(pool)


@virtual
async def test_a_keepalive_that_hangs_condemns_what_was_silent_as_long() -> None:
    """A NAT drops them together; what was heard of since is spared."""
    manager = ScriptedManager(is_valid=[OK, NEVER, OK])
    options: dict[str, Any] = {"validation_timeout": 1, "alive_bypass": 1000, "error_sink": lambda _: None}
    async with Pool(manager, max_size=3, max_connecting=1, keepalive=10, idle_timeout=None, **options) as pool:
        leases = [await pool.get() for _ in range(3)]
        for lease in leases:
            lease.release()
            await asyncio.sleep(0.1)
        await asyncio.sleep(12)
        closed(pool, invalid=1)
        books(pool)


@virtual
async def test_closing_during_a_keepalive_ends_it() -> None:
    """And no timer is left."""
    pool = Pool(ScriptedManager(is_valid=NEVER), min_idle=1, keepalive=1, validation_timeout=None)
    await pool.open()
    await asyncio.sleep(2)
    await pool.close(0)
    await turns()
    books(pool)


@virtual
async def test_a_dead_one_is_found_without_a_round_trip() -> None:
    """has_broken knows."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, keepalive=10) as pool:
        conn = await hold(pool)
        conn.broken = True
        await asyncio.sleep(11)
        closed(pool, broken=1)
        assert validated(manager) == []
        await hold(pool)
        await asyncio.sleep(11)
        assert len(validated(manager)) == 1
