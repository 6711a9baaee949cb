"""Getting a connection: both forms, order, hand-off, timeouts, cancellation."""

from __future__ import annotations

import asyncio
import collections
import math
from collections.abc import Iterator
from typing import Any

import pytest
from pool_core import Pool, PoolClosed, PooledConnection, PoolError, PoolOverloaded, PoolTimeout, WrongEventLoop
from pool_core.testing import NEVER, OK, Delay, FakeConnection, ScriptedManager, Steps, VirtualTimeLoop, run

from .helpers import books, closed, hold, turns, virtual


@virtual
async def test_async_with_lends_the_drivers_own_object() -> None:
    """No proxy: isinstance, attributes and speed are the driver's."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        async with pool.get() as conn:
            assert type(conn) is FakeConnection
            assert pool.state().in_use == 1
        assert pool.state().idle == 1
        books(pool)


@virtual
async def test_await_lends_a_lease_that_anybody_may_release() -> None:
    """bb8's get_owned."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        assert isinstance(lease, PooledConnection)
        assert type(lease.conn) is FakeConnection
        lease.release()
        lease.release()
        assert pool.state().idle == 1
        books(pool)


@virtual
async def test_an_awaited_lease_is_released_by_async_with() -> None:
    """The two forms go together."""
    async with Pool(ScriptedManager()) as pool:
        lease = await pool.get()
        async with lease as conn:
            assert conn is lease.conn
        assert pool.state().in_use == 0


@virtual
async def test_a_lease_says_what_it_is_when_it_is_taken_for_a_connection() -> None:
    """``conn = await pool.get(); conn.fetch()`` is the commonest slip."""
    async with Pool(ScriptedManager()) as pool:
        lease = await pool.get()
        with pytest.raises(AttributeError, match=r"use lease\.conn\.fetch"):
            lease.fetch()  # type: ignore[attr-defined]
        lease.release()


@virtual
async def test_conn_before_acquiring_and_after_release_raises() -> None:
    """A connection used after its release may be somebody else's."""
    async with Pool(ScriptedManager()) as pool:
        lease = pool.get()
        with pytest.raises(PoolError, match="holds no connection yet"):
            _ = lease.conn
        await lease
        lease.release()
        for use in (lambda: lease.conn, lambda: lease.extensions, lease.detach):
            with pytest.raises(PoolError, match="released already"):
                use()
        with pytest.raises(PoolError, match="acquired already"):
            await lease
        with pytest.raises(PoolError, match="released already"):
            async with lease:
                pass
        assert "released" in repr(lease)


@virtual
async def test_a_get_that_is_never_entered_takes_nothing() -> None:
    """``pool.get()`` alone pops nothing: it cannot leak."""
    async with Pool(ScriptedManager(), max_size=1, min_idle=1) as pool:
        assert "not acquired" in repr(pool.get())
        assert pool.state().idle == 1
        assert pool.state().statistics.gets_started == 0


@virtual
async def test_a_get_released_before_it_was_acquired_does_nothing() -> None:
    """``finally: lease.release()`` is right even where the acquiring failed."""
    async with Pool(ScriptedManager()) as pool:
        lease = pool.get()
        lease.release()
        lease.discard()
        async with lease:
            pass
        books(pool)


@virtual
async def test_releasing_inside_the_block_is_enough() -> None:
    """The end of the block must not give back twice."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        async with lease:
            lease.release()
            async with pool.get():
                assert pool.state().in_use == 1
        assert pool.state().idle == 1
        books(pool)


@virtual
async def test_waiters_are_served_in_the_order_in_which_they_came() -> None:
    """FIFO by direct hand-over."""
    served: list[int] = []

    async def user(number: int) -> None:
        async with pool.get():
            served.append(number)
            await asyncio.sleep(1)

    async with Pool(ScriptedManager(), max_size=2) as pool:
        await asyncio.gather(*(user(number) for number in range(10)))
        assert served == list(range(10))
        books(pool)


@virtual
async def test_a_newcomer_never_overtakes_a_waiter() -> None:
    """bb8 #243, sqlx #453: overtaking makes the slowest users wait for ever."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        first = await pool.get()
        waiter = asyncio.create_task(hold(pool, 1))
        await turns()
        first.release()
        # The waiter's task has not run yet, and a newcomer asks in this very moment.
        newcomer = asyncio.create_task(hold(pool))
        await turns()
        assert not newcomer.done()
        assert pool.state().waiting == 1
        await asyncio.gather(waiter, newcomer)
        books(pool)


@virtual
async def test_twenty_five_thousand_gets_on_three_connections_are_all_served() -> None:
    """bb8's own endurance test."""

    async def user() -> None:
        async with pool.get():
            await asyncio.sleep(0)

    async with Pool(ScriptedManager(), max_size=3) as pool:
        for _ in range(5):
            await asyncio.gather(*(user() for _ in range(5000)))
        assert pool.state().statistics.gets_started == 25_000
        assert pool.state().statistics.connections_created == 3
        books(pool)


@virtual
async def test_five_concurrent_gets_are_served_from_five_connections() -> None:
    """Demand opens connections up to max_size."""
    async with Pool(ScriptedManager(), max_size=5) as pool:
        leases = [await pool.get() for _ in range(5)]
        assert len({lease.conn for lease in leases}) == 5
        for lease in leases:
            lease.release()
        assert pool.state().idle == 5


@virtual
async def test_a_get_beyond_max_size_times_out_and_says_why() -> None:
    """The peers' bare TimeoutError sends their users to the issue tracker."""
    async with Pool(ScriptedManager(), max_size=1, name="orders", connection_timeout=3) as pool:
        async with pool.get():
            await asyncio.sleep(1)
            with pytest.raises(PoolTimeout) as caught:
                await asyncio.create_task(hold(pool), name="late")
            error = caught.value
        assert isinstance(error, TimeoutError)
        assert (error.phase, error.waited, error.state.in_use) == ("queue", 3.0, 1)
        assert error.__cause__ is None
        text = str(error)
        for part in ("pool 'orders'", "within 3 s", "phase queue", "1 of 1 in use", "for 4 s by Task"):
            assert part in text
        assert pool.state().statistics.gets_timed_out == 1
        books(pool)


@virtual
async def test_the_timeout_of_one_get_beats_the_default_and_ends_on_the_second() -> None:
    """A get with its own timeout needs no scan of the queue, and does not disturb the shared timer."""
    loop = asyncio.get_running_loop()
    ends: dict[str, float] = {}

    async def waits(name: str, timeout: float | None) -> None:
        with pytest.raises(PoolTimeout):
            await pool.get(timeout)
        ends[name] = loop.time() - start

    async with Pool(ScriptedManager(), max_size=1, connection_timeout=5) as pool:
        async with pool.get():
            start = loop.time()
            await asyncio.gather(waits("default", None), waits("short", 2), waits("long", 9), waits("default", None))
        assert ends == {"short": 2, "default": 5, "long": 9}
        books(pool)


@virtual
async def test_timeout_zero_lends_what_needs_no_test_and_starts_nothing() -> None:
    """A get that must not wait."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2) as pool:
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=0)
        assert manager.calls("connect") == []
        await hold(pool)
        async with pool.get(timeout=0):
            pass
        await asyncio.sleep(1)
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=0)
        assert manager.calls("is_valid") == []
        books(pool)


@virtual
async def test_an_infinite_timeout_waits_for_ever() -> None:
    """math.inf is no limit, also beside a default."""
    async with Pool(ScriptedManager(), max_size=1, connection_timeout=1) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool, timeout=math.inf))
        await asyncio.sleep(10_000)
        assert not waiter.done()
        lease.release()
        await waiter


@virtual
async def test_a_pool_without_connection_timeout_waits_for_ever() -> None:
    """None means no limit."""
    async with Pool(ScriptedManager(), max_size=1, connection_timeout=None) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await asyncio.sleep(10_000)
        lease.release()
        await waiter


@pytest.mark.parametrize("timeout", [-1, math.nan])
def test_a_negative_or_nan_timeout_is_a_value_error_at_once(timeout: float) -> None:
    """Before any I/O, and it counts nowhere."""
    pool = Pool(ScriptedManager())
    with pytest.raises(ValueError, match="0 or more"):
        pool.get(timeout)
    with pytest.raises(TypeError, match="must be a number"):
        pool.get("2")  # type: ignore[arg-type]
    assert pool.state().statistics.gets_started == 0


@virtual
async def test_a_cancelled_waiter_loses_nothing_and_the_next_one_is_served() -> None:
    """asyncpg #467: the finished connection leaked with the cancelled waiter."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        first, second = asyncio.create_task(hold(pool)), asyncio.create_task(hold(pool))
        await turns()
        first.cancel()
        lease.release()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        assert pool.state().idle == 1
        assert pool.state().statistics.gets_cancelled == 1
        books(pool)


@virtual
async def test_a_waiter_cancelled_in_the_tick_of_the_hand_over_passes_it_on() -> None:
    """The future is done and the task is cancelled before it runs."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        first, second = asyncio.create_task(hold(pool)), asyncio.create_task(hold(pool))
        await turns()
        lease.release()
        first.cancel()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        books(pool)
        assert pool.state().idle == 1


@virtual
async def test_a_get_cancelled_while_connecting_leaves_the_connect_to_the_pool() -> None:
    """pgx #1259: with slow connects and short deadlines there would never be a connection."""
    manager = ScriptedManager(connect=Delay(3))
    async with Pool(manager, max_size=1) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=1)
        assert caught.value.phase == "connect"
        await asyncio.sleep(5)
        assert pool.state().idle == 1
        async with pool.get(timeout=0.1):
            pass
        assert len(manager.calls("connect")) == 1


@virtual
async def test_a_get_whose_own_connect_is_slow_takes_a_connection_that_comes_back() -> None:
    """Only psycopg_pool does, among the peers."""
    manager = ScriptedManager(connect=[Delay(0), Delay(8)])
    async with Pool(manager, max_size=2) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await asyncio.sleep(1)
        lease.release()
        await turns()
        assert waiter.done()
        await asyncio.sleep(9)
        assert pool.state().idle == 2
        books(pool)


@virtual
async def test_a_connect_whose_get_was_served_otherwise_serves_the_next_that_waits() -> None:
    """Supply under way is not opened twice."""
    manager = ScriptedManager(connect=[Delay(0), Delay(8)])
    async with Pool(manager, max_size=5) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool, 5))
        await asyncio.sleep(1)
        lease.release()
        await asyncio.sleep(1)
        second = asyncio.create_task(hold(pool))
        await turns()
        assert pool.state().opening == 1
        await asyncio.gather(waiter, second)
        await asyncio.sleep(9)
        assert len(manager.calls("connect")) == 2
        books(pool)


@virtual
async def test_a_hung_connect_whose_waiter_is_gone_blocks_nobody_else() -> None:
    """Its supply counts for nobody, so the next get opens another connection."""
    manager = ScriptedManager(connect=[NEVER, Delay(0.1)])
    async with Pool(manager, max_size=5) as pool:
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=1)
        async with pool.get(timeout=1):
            assert pool.state().opening == 1
        books(pool)


@virtual
async def test_more_waiters_than_max_waiting_are_refused_at_once() -> None:
    """Load is shed before it costs memory and time."""
    async with Pool(ScriptedManager(), max_size=1, max_waiting=2) as pool:
        lease = await pool.get()
        waiters = [asyncio.create_task(hold(pool)) for _ in range(2)]
        await turns()
        with pytest.raises(PoolOverloaded, match="max_waiting=2"):
            await pool.get()
        assert pool.state().statistics.gets_failed == 1
        lease.release()
        await asyncio.gather(*waiters)
        books(pool)


@virtual
async def test_gets_with_a_connect_or_a_test_of_their_own_are_not_counted_as_waiting() -> None:
    """max_waiting=0 still lets the pool grow and test."""
    async with Pool(ScriptedManager(connect=Delay(1), is_valid=Delay(1)), max_size=2, max_waiting=0) as pool:
        await asyncio.gather(hold(pool), hold(pool))
        await asyncio.sleep(10)
        await asyncio.gather(hold(pool), hold(pool))
        async with pool.get(), pool.get():
            with pytest.raises(PoolOverloaded):
                await pool.get()
        books(pool)


@virtual
async def test_a_get_with_a_test_and_a_connect_of_its_own_makes_room_for_no_other() -> None:
    """Its test is slow, so a connect was begun for it too: it is one get all the same."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2, max_waiting=0) as pool:
        await hold(pool)
        await asyncio.sleep(5)
        manager.script(is_valid=Delay(3), connect=Delay(3))
        first = asyncio.create_task(hold(pool))
        await asyncio.sleep(1)
        state = pool.state()
        assert (state.validating, state.opening) == (1, 1)
        with pytest.raises(PoolOverloaded):
            await pool.get()
        await first
        books(pool)


@virtual
async def test_a_get_on_a_pool_that_is_not_open_says_what_to_do() -> None:
    """Before open and after close; PoolClosed counts as failed."""
    pool = Pool(ScriptedManager())
    with pytest.raises(PoolClosed, match="not open: use 'async with pool:'"):
        await pool.get()
    await pool.open()
    await pool.close()
    with pytest.raises(PoolClosed, match="is closed: open it again"):
        async with pool.get():
            pass
    with pytest.raises(PoolClosed):
        await pool.try_get()
    assert pool.state().statistics.gets_failed == 2
    books(pool)


@virtual
async def test_a_hundred_thousand_waiters_time_out_or_are_cancelled_at_once() -> None:
    """Each costs O(1): the dead are swept when they outnumber the living."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        waiters = [asyncio.create_task(hold(pool)) for _ in range(20_000)]
        await turns(2)
        for waiter in reversed(waiters[10_000:]):
            waiter.cancel()
        await turns(3)
        assert len(pool._state.queue.waiters) <= 30_000
        await asyncio.sleep(31)
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert sum(isinstance(outcome, PoolTimeout) for outcome in outcomes) == 10_000
        assert len(pool._state.queue.waiters) == 0
        lease.release()
        books(pool)
        totals = pool.state().statistics
        assert (totals.gets_timed_out, totals.gets_cancelled) == (10_000, 10_000)


@virtual
async def test_a_broken_connection_is_never_lent() -> None:
    """has_broken is asked at checkout as well as on return."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1) as pool:
        first = await hold(pool)
        first.broken = True
        async with pool.get() as second:
            assert second is not first
        closed(pool, broken=1)
        books(pool)


@virtual
async def test_a_connection_that_breaks_between_its_hand_over_and_the_cancel_of_its_get_goes_to_nobody() -> None:
    """has_broken is asked again before the next waiter has it."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        conn = lease.conn
        waiters = [asyncio.create_task(hold(pool)) for _ in range(2)]
        await turns()
        lease.release()
        waiters[0].cancel()
        conn.broken = True
        assert await waiters[1] is not conn
        closed(pool, broken=1)
        books(pool)


@virtual
async def test_a_connection_broken_while_lent_is_replaced_for_the_waiter_behind() -> None:
    """aiomysql's release of a dead connection wakes nobody."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await turns()
        lease.conn.broken = True
        lease.release()
        assert (await waiter).broken is False
        closed(pool, broken=1)
        books(pool)


@virtual
async def test_five_broken_returns_do_not_starve_ten_tasks() -> None:
    """bb8 #67: starvation after has_broken."""

    async def user(number: int) -> None:
        async with pool.get() as conn:
            await asyncio.sleep(0.1)
            conn.broken = number < 5

    async with Pool(ScriptedManager(), max_size=5, connection_timeout=5) as pool:
        await asyncio.gather(*(user(number) for number in range(10)))
        closed(pool, broken=5)
        books(pool)


@virtual
async def test_try_get_lends_an_idle_connection_and_never_waits_or_connects() -> None:
    """r2d2's try_get; ours is awaited, since it tests."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2) as pool:
        assert await pool.try_get() is None
        assert manager.calls("connect") == []
        await hold(pool)
        lease = await pool.try_get()
        assert lease is not None
        assert await pool.try_get() is None
        lease.release()
        await asyncio.sleep(5)
        lease = await pool.try_get()
        assert lease is not None
        assert len(manager.calls("is_valid")) == 1
        lease.release()
        assert pool.state().statistics.gets_started == 3  # counts only if it returns a lease
        books(pool)


@virtual
async def test_try_get_finds_no_valid_one_and_gives_none() -> None:
    """Tests each idle one at most, and stops there."""
    manager = ScriptedManager(is_valid=False)
    async with Pool(manager, max_size=3) as pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(3)))
        await asyncio.sleep(5)
        assert await pool.try_get() is None
        closed(pool, invalid=3)
        assert len(manager.calls("connect")) == 3
        books(pool)


@virtual
async def test_a_cancelled_try_get_leaves_its_test_to_the_pool() -> None:
    """Nothing is lost, and nothing is counted."""
    async with Pool(ScriptedManager(is_valid=Delay(1)), max_size=1) as pool:
        await hold(pool)
        await asyncio.sleep(5)
        task = asyncio.create_task(pool.try_get())
        await turns()
        task.cancel()
        await asyncio.sleep(2)
        assert task.cancelled()
        assert pool.state().idle == 1
        assert pool.state().statistics.gets_cancelled == 0
        books(pool)


@virtual
async def test_closing_ends_a_try_get_that_is_testing() -> None:
    """Nobody hangs on a closing pool."""
    pool = Pool(ScriptedManager(is_valid=NEVER), max_size=1)
    await pool.open()
    await hold(pool)
    await asyncio.sleep(5)
    task = asyncio.create_task(pool.try_get())
    await turns()
    await pool.close(1)
    with pytest.raises(PoolClosed):
        await task
    books(pool)


@virtual
async def test_ten_thousand_gets_behind_a_slow_try_get_cost_no_more_than_without_it() -> None:
    """A try_get waits at the head: nobody looks for it through the whole queue at each get."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1) as pool:
        await hold(pool)
        await asyncio.sleep(5)
        manager.script(is_valid=Delay(1))
        trying = asyncio.create_task(pool.try_get())
        await turns()
        looked = CountingDeque(pool._state.queue.waiters)
        pool._state.queue.waiters = looked
        gets = [asyncio.create_task(hold(pool)) for _ in range(10_000)]
        await turns(3)
        assert pool.state().waiting == 10_000
        assert looked.seen < 100_000
        lease = await trying
        assert lease is not None
        lease.release()
        await asyncio.gather(*gets)
        books(pool)


async def leased(pool: Pool[FakeConnection]) -> PooledConnection[FakeConnection]:
    """As a coroutine, for a task."""
    return await pool.get()


class CountingDeque(collections.deque[Any]):
    """Counts how many of its items are looked at by iterating."""

    seen = 0

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            self.seen += 1
            yield item


@virtual
async def test_a_try_get_behind_gets_that_gave_up_ends_as_soon_as_nothing_idle_is_left() -> None:
    """Those that were cancelled may still stand before it in the queue."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1) as pool:
        lease = await pool.get()
        gets = [asyncio.create_task(hold(pool)) for _ in range(3)]
        await turns()
        gets[1].cancel()
        gets[2].cancel()
        await turns()
        lease.release()
        await gets[0]
        await asyncio.sleep(5)
        manager.script(is_valid=Delay(1, False))
        assert await pool.try_get() is None
        assert pool.state().waiting == 0
        books(pool)


@virtual
async def test_a_get_that_finds_only_dead_connections_and_gives_up_has_them_replaced_all_the_same() -> None:
    """try_get and timeout=0 wait for nothing, but min_idle is brought up behind them."""
    for tries in (False, True):
        manager = ScriptedManager(close=Delay(1))
        async with Pool(manager, max_size=4, min_idle=2) as pool:
            manager.kill(known=True)
            if tries:
                assert await pool.try_get() is None
            else:
                with pytest.raises(PoolTimeout):
                    await pool.get(timeout=0)
            state = pool.state()
            assert (state.closing, state.opening) == (2, 2)
            await turns()
            assert pool.state().idle == 2
            closed(pool, broken=2)
            books(pool)


@virtual
async def test_a_get_that_was_refused_is_forgotten() -> None:
    """Otherwise the pool could hand a connection to a get that has failed."""
    async with Pool(ScriptedManager(), max_size=1, max_waiting=0) as pool:
        lease = await pool.get()
        with pytest.raises(PoolOverloaded):
            await pool.get()
        lease.release()
        assert (pool.state().idle, pool.state().in_use) == (1, 0)
        await hold(pool)
        books(pool)


@virtual
async def test_max_waiting_counts_a_get_beside_a_test_that_nobody_waits_for_any_more() -> None:
    """The get for which it was begun has gone; the next one takes it over and is let in."""
    manager = ScriptedManager(is_valid=Delay(1))
    async with Pool(manager, max_size=1, max_waiting=0) as pool:
        await hold(pool)
        await asyncio.sleep(5)
        gone = asyncio.create_task(hold(pool))
        await turns()
        gone.cancel()
        await turns()
        heir = asyncio.create_task(hold(pool))
        await turns()
        with pytest.raises(PoolOverloaded):
            await pool.get()
        await heir
        books(pool)


@virtual
async def test_a_get_that_takes_over_the_test_of_a_cancelled_one_waits_for_its_own_test() -> None:
    """So its phase is validate, and served by it, it was served directly."""
    manager = ScriptedManager(is_valid=Delay(1))
    async with Pool(manager, max_size=1) as pool:
        await hold(pool)
        await asyncio.sleep(5)
        gone = asyncio.create_task(hold(pool))
        await turns()
        gone.cancel()
        await turns()
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=0.05)
        assert caught.value.phase == "validate"
        before = pool.state().statistics
        await hold(pool)
        after = pool.state().statistics
        assert (after.gets_direct - before.gets_direct, after.gets_waited) == (1, before.gets_waited)
        assert len(manager.calls("is_valid")) == 1
        books(pool)


@virtual
async def test_a_hung_connect_that_was_passed_on_to_a_get_that_gave_up_counts_for_nobody() -> None:
    """It was begun for one that was served otherwise, and then waited for by one that timed out (pgx #1259)."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(connect=[OK, NEVER])
    async with Pool(manager, max_size=2) as pool:
        lease = await pool.get()
        served = asyncio.create_task(leased(pool))
        await turns()
        lease.release()  # the hung connect's get has a connection
        lease = await served
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=1)  # this one took the connect over, and gave up
        waiter = asyncio.create_task(hold(pool))
        await turns()
        start = loop.time()
        conn = lease.conn
        conn.broken = True
        lease.release()
        assert await waiter is not conn
        assert loop.time() - start < 1
        books(pool)


@virtual
async def test_a_connection_tested_for_a_get_that_is_cancelled_in_the_tick_of_its_hand_over_is_not_tested_again() -> (
    None
):
    """alive_bypass=0 tests before each use, and it was not used."""
    manager = ScriptedManager(is_valid=Steps(1))
    async with Pool(manager, max_size=1, alive_bypass=0) as pool:
        await hold(pool)
        first, second = (asyncio.create_task(hold(pool)) for _ in range(2))
        while not pool.state().in_use:
            await asyncio.sleep(0)
        first.cancel()
        await second
        assert first.cancelled()
        assert len(manager.calls("is_valid")) == 1
        books(pool)


@virtual
async def test_whoever_waits_behind_a_hand_over_that_came_to_nothing_is_helped_at_once() -> None:
    """The connection was evicted meanwhile, and closing it takes long: the pool opens another one beside it."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(connect=[OK, OSError("down"), OK], close=Delay(5))
    async with Pool(manager, max_size=2, error_sink=lambda _: None) as pool:
        lease = await pool.get()
        first, second = (asyncio.create_task(hold(pool)) for _ in range(2))
        await turns()
        start = loop.time()
        pool.evict()
        first.cancel()
        lease.release()
        await second
        assert loop.time() - start < 1
        books(pool)


@virtual
async def test_waiting_for_a_back_off_that_does_not_matter_any_more_keeps_nobody_busy() -> None:
    """The pool was filled from elsewhere during an outage: there is nothing to do when its back-off ends."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(connect=OSError("down"))
    async with Pool(manager, max_size=1, error_sink=lambda _: None) as pool:
        waiter = asyncio.create_task(hold(pool, 5))
        await asyncio.sleep(1)
        pool.add(FakeConnection(100))
        await turns()
        second = asyncio.create_task(hold(pool))
        await turns()
        start = loop.time()
        await asyncio.gather(waiter, second)  # a clock that is busy would never move on
        assert loop.time() - start == pytest.approx(5)
        books(pool)


@virtual
async def test_a_get_takes_over_a_test_also_behind_one_that_was_cancelled() -> None:
    """The dead one still stands in the queue between the living."""
    manager = ScriptedManager(is_valid=Delay(1))
    async with Pool(manager, max_size=2) as pool:
        await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))
        await asyncio.sleep(5)
        first, second = (asyncio.create_task(hold(pool)) for _ in range(2))
        await turns()
        second.cancel()
        await turns()
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=0.05)
        assert caught.value.phase == "validate"
        await first
        books(pool)


@virtual
async def test_a_try_get_never_connects_however_slow_its_test_is() -> None:
    """Not even where a get would."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=5) as pool:
        await hold(pool)
        await asyncio.sleep(5)
        manager.script(is_valid=Delay(3))
        lease = await pool.try_get()
        assert lease is not None
        lease.release()
        assert len(manager.calls("connect")) == 1
        books(pool)


@virtual
async def test_what_is_on_its_way_counts_towards_min_idle_unless_somebody_waits_for_it() -> None:
    """A resetting connection will soon be idle; one that is opened for a get will not."""
    manager = ScriptedManager(connect=Delay(1))
    async with Pool(manager, max_size=4, min_idle=1) as pool:
        lease = await pool.get()
        await asyncio.sleep(2)
        assert (pool.state().idle, pool.state().in_use) == (1, 1)
        manager.script(reset=Delay(0.05))
        lease.release()
        lease = await pool.get()
        assert (pool.state().resetting, pool.state().opening) == (1, 0)
        await asyncio.sleep(1)
        assert len(manager.connections) == 2
        lease.release()
        await asyncio.sleep(1)
        pool.evict()
        get = asyncio.create_task(hold(pool))
        await turns()
        assert pool.state().opening == 2
        await get
        books(pool)


@virtual
async def test_a_warm_get_that_may_not_wait_closes_the_dead_connection_that_it_found() -> None:
    """At once, not when somebody else comes by."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2) as pool:
        async with pool.get() as conn:
            pass
        conn.broken = True
        with pytest.raises(PoolTimeout):
            async with pool.get(timeout=0):
                pass
        await turns()
        assert conn.state == "closed"
        closed(pool, broken=1)
        books(pool)


@virtual
async def test_a_second_release_does_nothing_wherever_it_is_called() -> None:
    """``finally: lease.release()`` may run in a thread, or when no loop runs any more."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        lease.release()
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                lease.release()
                lease.discard()
            except BaseException as error:
                errors.append(error)

        await asyncio.to_thread(elsewhere)
        assert errors == []
        assert pool.state().idle == 1
        books(pool)


@virtual
async def test_the_phase_of_a_time_out_tells_where_to_look() -> None:
    """At the borrowers, at the server, or at the network."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, error_sink=lambda _: None) as pool:
        lease = await pool.get()
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=1)
        assert caught.value.phase == "queue"
        assert "phase queue" in str(caught.value)
        assert caught.value.state.waiting == 1
        lease.discard()
        await turns()
        manager.script(connect=OSError("down"))
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=1)
        assert caught.value.phase == "connect"  # a back-off is on
        books(pool)


@virtual
async def test_a_connection_for_waiters_that_have_all_gone_in_this_tick_is_idle() -> None:
    """Their futures are done before their tasks run."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        waiters = [asyncio.create_task(hold(pool)) for _ in range(3)]
        await turns()
        for waiter in waiters:
            waiter.cancel()
        lease.release()
        assert (pool.state().idle, pool.state().in_use) == (1, 0)
        await asyncio.gather(*waiters, return_exceptions=True)
        assert pool.state().statistics.gets_cancelled == 3
        async with pool.get(timeout=0):
            pass
        books(pool)


def test_what_is_refused_for_a_mistake_of_the_program_counts_nowhere() -> None:
    """Statistics are about the pool, not about its users' bugs."""
    pool = Pool(ScriptedManager(), max_size=1)
    loop = VirtualTimeLoop()
    loop.run_until_complete(pool.open())

    async def elsewhere() -> None:
        with pytest.raises(WrongEventLoop):
            await pool.get()
        with pytest.raises(WrongEventLoop):
            await pool.try_get()
        with pytest.raises(ValueError, match="timeout"):
            pool.get(timeout=-1)

    run(elsewhere)
    totals = pool.state().statistics
    assert (totals.gets_started, totals.gets_failed) == (0, 0)
    loop.run_until_complete(pool.close())
    loop.close()


@virtual
async def test_a_connection_found_broken_at_the_get_is_no_error_of_anybody() -> None:
    """has_broken said so, and raised nothing."""
    errors: list[BaseException] = []
    async with Pool(ScriptedManager(), error_sink=errors.append) as pool:
        await hold(pool)
        slot = pool._state.fresh[0]
        slot.conn.broken = True
        await hold(pool)
        await turns()
        assert errors == []
        assert slot.state == "gone"
        assert pool.state().statistics.hook_errors == 0
        books(pool)
