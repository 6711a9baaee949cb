"""Who is served by which connection and when: order of use, cheap timeouts, standstills, try_get and max_waiting."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool, PoolDeadlock, PoolOverloaded, PoolTimeout, QueueStrategy
from pool_core.testing import NEVER, OK, Delay, ScriptedManager, Steps

from .helpers import books, hold, turns, virtual
from .model import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def quiet(_: object) -> None:
    """A listener that does nothing."""


async def filled(pool: Pool[Any], count: int) -> None:
    """Let the pool open so many connections, and return them all."""
    leases = [await pool.get() for _ in range(count)]
    for lease in leases:
        lease.release()
        await asyncio.sleep(0.01)


# -- FIFO


@pytest.mark.parametrize("listeners", [[], [quiet]], ids=["warm", "observed"])
@pytest.mark.parametrize("pause", [0.05, 0.2, 0.7, 3.0])
@virtual
async def test_fifo_spreads_sequential_gets_over_all_idle_connections(pause: float, listeners: list[Any]) -> None:
    """Two queues of idle ones, tested and untested, gave 250, 249, 1, 0 and 0 uses."""
    async with Pool(ScriptedManager(), max_size=5, queue_strategy=QueueStrategy.FIFO, listeners=listeners) as pool:
        await filled(pool, 5)
        uses: Counter[int] = Counter()
        for _ in range(100):
            uses[(await hold(pool)).id] += 1
            await asyncio.sleep(pause)
        assert sorted(uses.values()) == [20] * 5
        books(pool)


@virtual
async def test_fifo_takes_the_connection_unused_longest_though_it_needs_a_test() -> None:
    """One that was used just now needs none, but it is not its turn."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=3, queue_strategy=QueueStrategy.FIFO, alive_bypass=1) as pool:
        await filled(pool, 3)
        await asyncio.sleep(5)
        order = [(await hold(pool)).id for _ in range(6)]
        assert order == [1, 2, 3, 1, 2, 3]
        assert [call.connection for call in manager.calls("is_valid")] == [1, 2, 3]
        books(pool)


@virtual
async def test_lifo_takes_the_connection_used_last() -> None:
    """The others cool down and can be reaped."""
    async with Pool(ScriptedManager(), max_size=5) as pool:
        await filled(pool, 5)
        assert {(await hold(pool)).id for _ in range(20)} == {5}
        books(pool)


# -- many timeouts at once


async def calls_until_expired(in_use: int, waiting: int) -> int:
    """How many calls of functions it takes to let that many gets time out beside that many leases."""
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    async with Pool(ScriptedManager(), max_size=in_use, max_connecting=50) as pool:
        leases = [await pool.get() for _ in range(in_use)]
        gets = [asyncio.create_task(hold(pool, timeout=0.5)) for _ in range(waiting)]
        await asyncio.sleep(0.4)
        assert pool.state().waiting == waiting
        sys.setprofile(count)
        try:
            await asyncio.sleep(0.2)
        finally:
            sys.setprofile(None)
        ends = await asyncio.gather(*gets, return_exceptions=True)
        assert all(type(end) is PoolTimeout for end in ends)
        assert all(f"{in_use} of {in_use} in use" in str(end) for end in (ends[0], ends[-1]))
        for lease in leases:
            lease.release()
        books(pool)
    return calls


@virtual
async def test_gets_that_expire_together_cost_no_more_with_more_leases() -> None:
    """2,000 gets on 500 leases stopped the loop for 1.4 s: each drew its own picture of all holders."""
    few = await calls_until_expired(in_use=5, waiting=2000)
    many = await calls_until_expired(in_use=500, waiting=2000)
    assert many <= 1.5 * few + 10_000


# -- standstill


async def served_in_time(pool: Pool[Any], seconds: float) -> None:
    """A get is served, and takes so long."""
    start = asyncio.get_running_loop().time()
    async with pool.get():
        assert asyncio.get_running_loop().time() - start == pytest.approx(seconds, abs=0.05)


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.5, 0.9])
@virtual
async def test_a_generator_that_another_task_consumes_is_no_deadlock(seconds: float) -> None:
    """The holder waits for itself, but its block is ended by somebody else: a correct program."""
    async with Pool(ScriptedManager(), max_size=1) as pool:

        async def rows() -> AsyncIterator[int]:
            async with pool.get() as conn:
                yield 1
                await conn.query()

        generator = rows()
        await anext(generator)

        async def consume() -> None:
            await asyncio.sleep(seconds)
            assert [row async for row in generator] == []

        consumer = asyncio.create_task(consume())
        await served_in_time(pool, seconds)
        await consumer
        books(pool)


@virtual
async def test_a_lease_that_another_task_releases_is_no_deadlock() -> None:
    """AsyncExitStack.pop_all and a lease handed to a worker are the same kind."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        asyncio.get_running_loop().call_later(0.9, lease.release)
        await served_in_time(pool, 0.9)
        books(pool)


@virtual
async def test_a_nested_get_that_can_never_be_served_is_a_deadlock_after_1_s() -> None:
    """Not at once, since nobody can prove it, and not only at its deadline."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=1) as pool:
        async with pool.get():
            start = loop.time()
            with pytest.raises(PoolDeadlock):
                await pool.get()
            assert loop.time() - start == pytest.approx(1.0, abs=0.3)
        await hold(pool)
        books(pool)


@virtual
async def test_two_tasks_that_wait_for_each_other_are_a_deadlock_after_1_s() -> None:
    """One of them fails, and the other goes on."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=2) as pool:

        async def nested() -> float:
            async with pool.get():
                await turns()
                async with pool.get():
                    return loop.time()

        start = loop.time()
        ends = await asyncio.gather(nested(), nested(), return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == ["PoolDeadlock", "float"]
        assert loop.time() - start == pytest.approx(1.0, abs=0.3)
        books(pool)


@virtual
async def test_a_standstill_is_counted_from_the_last_move() -> None:
    """As long as one holder works, the others may hope."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=2) as pool:

        async def nested(work: float) -> float:
            async with pool.get():
                await asyncio.sleep(work)
                async with pool.get():
                    return loop.time()

        ends = await asyncio.gather(nested(0.01), nested(0.8), return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == ["PoolDeadlock", "float"]
        assert loop.time() == pytest.approx(1.8, abs=0.3)
        books(pool)


@virtual
async def test_a_nested_get_under_asyncio_timeout_ends_with_its_timeout_error() -> None:
    """The program has a plan of its own for this, and it comes first."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=1) as pool:
        async with pool.get():
            start = loop.time()
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.5):
                    await pool.get()
            assert type(caught.value) is TimeoutError
            assert loop.time() - start == pytest.approx(0.5)
        books(pool)


@virtual
async def test_a_nested_get_with_a_short_timeout_ends_with_pool_timeout() -> None:
    """Its deadline comes before the second is over."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=1) as pool:
        async with pool.get():
            start = loop.time()
            with pytest.raises(PoolTimeout) as caught:
                await pool.get(0.5)
            assert not isinstance(caught.value, PoolDeadlock)
            assert loop.time() - start == pytest.approx(0.5)
        books(pool)


# -- try_get


@pytest.mark.parametrize("test", [Steps(1), Steps(5), Delay(0.2)], ids=repr)
@pytest.mark.parametrize("count", [1, 3, 5])
@virtual
async def test_try_gets_at_once_each_get_one_of_the_idle_connections(count: int, test: Any) -> None:
    """Three on five idle untested ones got a lease, None and None."""
    async with Pool(ScriptedManager(is_valid=test), max_size=5) as pool:
        await filled(pool, 5)
        await asyncio.sleep(60)
        leases = await asyncio.gather(*(pool.try_get() for _ in range(count)))
        assert all(lease is not None for lease in leases)
        assert len({lease.conn.id for lease in leases if lease is not None}) == count
        for lease in leases:
            if lease is not None:
                lease.release()
        books(pool)


@virtual
async def test_more_try_gets_than_idle_connections_get_what_there_is() -> None:
    """The rest get None and do not wait."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(is_valid=Delay(0.2)), max_size=8) as pool:
        await filled(pool, 3)
        await asyncio.sleep(60)
        start = loop.time()
        leases = await asyncio.gather(*(pool.try_get() for _ in range(5)))
        assert loop.time() - start <= 0.5
        assert sum(lease is not None for lease in leases) == 3
        for lease in leases:
            if lease is not None:
                lease.release()
        books(pool)


# -- max_waiting


@pytest.mark.parametrize("reset", [Steps(0), Steps(1), Steps(3), Delay(0.1), Delay(1)], ids=repr)
@pytest.mark.parametrize("max_size", [1, 2])
@virtual
async def test_a_lone_sequential_caller_is_never_refused_by_max_waiting(max_size: int, reset: Any) -> None:
    """Its connection is still being reset, and a reset is supply as a connection attempt is."""
    async with Pool(ScriptedManager(reset=reset), max_size=max_size, max_waiting=0) as pool:
        for number in range(50):
            await hold(pool)
            await turns(number % 4)
        books(pool)


@pytest.mark.parametrize("idle", [0.0, 60.0])
@virtual
async def test_a_validation_or_connection_under_way_is_supply_for_max_waiting(idle: float) -> None:
    """Whoever comes second waits for what is on its way to nobody else."""
    manager = ScriptedManager(connect=Delay(0.2), is_valid=Delay(0.2))
    async with Pool(manager, max_size=2, max_waiting=0) as pool:
        await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))
        await asyncio.sleep(idle)
        await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))
        books(pool)


@virtual
async def test_a_get_without_any_supply_is_refused_by_max_waiting() -> None:
    """The limit still is one."""
    async with Pool(ScriptedManager(), max_size=1, max_waiting=0) as pool:
        async with pool.get():
            with pytest.raises(PoolOverloaded):
                await pool.get(5)
        books(pool)


@virtual
async def test_a_get_with_a_connect_of_its_own_is_not_refused_beside_a_slow_try_get() -> None:
    """The try_get waits for its validation alone, so the connect serves nobody else."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2, max_waiting=0) as pool:
        await hold(pool)
        await asyncio.sleep(60)
        manager.script(is_valid=Delay(5))
        trying = asyncio.create_task(pool.try_get())
        await asyncio.sleep(1)
        await hold(pool)
        lease = await trying
        assert lease is not None
        lease.release()
        books(pool)


# -- FIFO while somebody waits


@virtual
async def test_fifo_hands_a_fresh_connection_to_the_first_waiter() -> None:
    """It waits for the validation of an older one; the second get must not overtake it."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2, queue_strategy=QueueStrategy.FIFO) as pool:
        for breaks in (False, True):
            await asyncio.gather(hold(pool, 0.01), hold(pool, 0.01))
            await asyncio.sleep(5)
            await hold(pool)  # now one is fresh, and the other is older
            manager.script(is_valid=Delay(1))
            served: list[int] = []

            async def get(number: int, served: list[int] = served) -> None:
                async with pool.get():
                    served.append(number)
                    await asyncio.sleep(0.1)

            first = asyncio.create_task(get(1))
            await turns()
            if breaks:
                pool._state.fresh[0].conn.broken = True
            second = asyncio.create_task(get(2))
            await asyncio.gather(first, second)
            assert served == [1, 2]
            manager.script(is_valid=OK)
            books(pool)


def test_fifo_keeps_a_fresh_connection_when_its_waiter_is_cancelled() -> None:
    """The waiter is cancelled in the tick in which the one validated for it is retired."""
    world = World(max_size=2, queue_strategy=QueueStrategy.FIFO, resets=False)
    opening: list[tuple[Any, ...]] = [("get",), ("connect", 0, "ok")] * 2 + [("release", 0, "clean")] * 2
    for step in opening:
        world.do(step)
    waiting: list[tuple[Any, ...]] = [("age",), ("get",), ("test", 0, "ok"), ("release", 0, "clean")]
    for step in [*waiting, ("get",), ("cancel", 0)]:
        world.do(step)
    assert (len(world.state.fresh), len(world.state.validating)) == (1, 1)
    next(iter(world.state.validating)).expires_at = world.now  # valid, but too old
    world.do(("test", 0, "ok"))
    assert world.state.snapshot().idle == 1
    world.do(("give_up", 0))


@virtual
async def test_a_pool_whose_tasks_are_all_cancelled_forgets_waiters_that_are_gone() -> None:
    """asyncio.run does so when it ends: nothing may be begun for them."""
    manager = ScriptedManager(connect=[NEVER, OK])
    async with Pool(manager, max_size=1, min_idle=0) as pool:
        gets = [asyncio.create_task(hold(pool)) for _ in range(3)]
        await asyncio.sleep(1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.gather(*gets, return_exceptions=True)
        assert len(manager.calls("connect")) == 1
        books(pool)


@virtual
async def test_a_validation_or_reset_that_others_cancel_terminates_its_connection() -> None:
    """Closing it would begin a task in a loop that may be about to end."""
    for method in ("is_valid", "reset"):
        scripts: Any = {method: [NEVER, OK]}
        manager = ScriptedManager(**scripts)
        async with Pool(manager, max_size=1, alive_bypass=0, error_sink=quiet) as pool:
            get = asyncio.create_task(hold(pool))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(hold(pool))
            await asyncio.sleep(0.1)
            for task in asyncio.all_tasks() - {asyncio.current_task(), get, second}:
                task.cancel()
            await asyncio.gather(get, second)
            assert manager.connections[0].state == "terminated"
            books(pool)


@virtual
async def test_gets_behind_a_slow_try_get_time_out_in_time() -> None:
    """A try_get has no time limit, and must not stand for those who have one."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, connection_timeout=3, validation_timeout=20) as pool:
        await hold(pool)
        await asyncio.sleep(60)
        manager.script(is_valid=Delay(15))
        trying = asyncio.create_task(pool.try_get())
        await turns()
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def late() -> float:
            with pytest.raises(PoolTimeout):
                await pool.get()
            return loop.time() - start

        gets = [asyncio.create_task(late())]
        await asyncio.sleep(1)
        gets.append(asyncio.create_task(late()))
        assert await asyncio.gather(*gets) == pytest.approx([3, 4])
        lease = await trying
        assert lease is not None
        lease.release()
        books(pool)


# -- FIFO over idle ones of both kinds


async def _three_idle(pool: Pool[Any]) -> list[int]:
    """Three idle connections, the one unused longest first; return their numbers."""
    leases = [await pool.get() for _ in range(3)]
    for lease in leases:
        lease.release()
        await asyncio.sleep(1)
    return [slot.id for slot in [*pool._state.idle.stale, *pool._state.fresh]]


@virtual
async def test_fifo_lends_an_older_fresh_connection_before_a_suspect_one() -> None:
    """The suspect one was used later, so its validation can wait."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=3, queue_strategy=QueueStrategy.FIFO, alive_bypass=60) as pool:
        await _three_idle(pool)
        with pytest.raises(KeyError):
            async with pool.get():
                raise KeyError  # the oldest one is the newest now, and suspect
        oldest = pool._state.fresh[0].id
        lease = await pool.get()
        assert lease.connection_id == oldest
        assert not manager.calls("is_valid")
        lease.release()
        books(pool)


@virtual
async def test_fifo_validates_the_oldest_though_another_suspect_one_is_newer_than_a_fresh_one() -> None:
    """Stale, fresh, stale by time of last use: the first is next."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=3, queue_strategy=QueueStrategy.FIFO, alive_bypass=60) as pool:
        order = await _three_idle(pool)
        for raises in (True, False, True):
            with pytest.raises(KeyError):
                async with pool.get():
                    await asyncio.sleep(1)
                    if raises:
                        raise KeyError
                raise KeyError
        assert (len(pool._state.idle.stale), len(pool._state.fresh)) == (2, 1)
        lease = await pool.get()
        assert lease.connection_id == order[0]
        assert len(manager.calls("is_valid")) == 1
        lease.release()
        books(pool)


# -- the end of asyncio.run


async def _cancel_everybody() -> None:
    """As asyncio.run does when its main task has ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await turns()


@virtual
async def test_a_validation_that_others_cancel_begins_no_task() -> None:
    """The loop is about to end, and a close begun now would be destroyed pending."""
    manager = ScriptedManager(without=["terminate"])
    pool = Pool(manager, max_size=1)
    await pool.open()
    await hold(pool)
    await asyncio.sleep(60)
    manager.script(is_valid=NEVER)
    getting = asyncio.ensure_future(hold(pool))
    await turns()
    await _cancel_everybody()
    assert getting.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert pool.state().statistics.connections_abandoned == 1
    await pool.close()
    books(pool)


@virtual
async def test_a_connect_that_others_cancel_is_not_begun_again_for_a_get_that_is_cancelled_too() -> None:
    """Which of the two wakes first is chance."""
    manager = ScriptedManager(connect=NEVER)
    pool = Pool(manager, max_size=1, error_sink=lambda _: None)
    await pool.open()
    gets = [asyncio.ensure_future(hold(pool)) for _ in range(3)]
    await turns()
    assert not any(get.done() for get in gets)
    next(task for task in asyncio.all_tasks() if task.get_name() == "pool: connect").cancel()
    await asyncio.sleep(0)  # it has ended, and the pool hears of it in the next turn of the loop
    await _cancel_everybody()
    assert len(manager.calls("connect")) == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await pool.close()
    books(pool)
