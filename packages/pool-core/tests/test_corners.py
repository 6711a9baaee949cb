"""What happens seldom: two things in one tick, and ends that come from outside."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from pool_core import ForkedPool, Pool, PoolClosed, PoolOverloaded, PoolTimeout
from pool_core._pool import _after_fork_in_child
from pool_core._slot import UNUSED
from pool_core.testing import NEVER, OK, Delay, ScriptedManager, SwallowCancel, run

from .helpers import books, closed, hold, turns, virtual


def quiet(_: BaseException) -> None:
    """An error sink for tests in which errors are expected."""


@virtual
async def test_closing_in_the_tick_of_a_waiters_cancel_hurts_nobody() -> None:
    """Its future is done already."""
    pool = Pool(ScriptedManager(), max_size=1)
    await pool.open()
    lease = await pool.get()
    waiter = asyncio.create_task(hold(pool))
    await turns()
    waiter.cancel()
    closing = asyncio.create_task(pool.close(0))
    pool._state.close(0.0)
    await asyncio.gather(waiter, closing, return_exceptions=True)
    assert waiter.cancelled()
    lease.release()
    books(pool)


@virtual
async def test_a_hand_over_to_a_waiter_that_is_cancelled_while_the_pool_closes_at_once() -> None:
    """The connection was terminated before the get could pass it on."""
    pool = Pool(ScriptedManager(), max_size=1)
    await pool.open()
    lease = await pool.get()
    waiter = asyncio.create_task(hold(pool))
    await turns()
    lease.release()
    waiter.cancel()
    await pool.close(0)
    with pytest.raises(asyncio.CancelledError):
        await waiter
    closed(pool, pool_closed=1)
    books(pool)


@virtual
async def test_a_connection_handed_over_and_evicted_in_one_tick_goes_when_its_get_is_cancelled() -> None:
    """put_back asks whether it may stay."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await turns()
        lease.release()
        pool.evict()
        waiter.cancel()
        await turns()
        closed(pool, evicted=1)
        books(pool)


@virtual
async def test_an_idle_connection_found_broken_when_its_turn_to_be_tested_comes_is_not_tested() -> None:
    """has_broken knows already."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2) as pool:
        conn = await hold(pool)
        await asyncio.sleep(5)
        conn.broken = True
        assert await hold(pool) is not conn
        assert manager.calls("is_valid") == []
        closed(pool, broken=1)
        books(pool)


@virtual
async def test_a_connection_that_breaks_during_its_test_is_not_lent() -> None:
    """The answer came, and then the socket went."""
    manager = ScriptedManager(is_valid=Delay(0.05, True))
    async with Pool(manager, max_size=1) as pool:
        conn = await hold(pool)
        await asyncio.sleep(5)
        get = asyncio.create_task(hold(pool))
        await turns()
        conn.broken = True
        assert await get is not conn
        closed(pool, broken=1)
        books(pool)


@virtual
async def test_no_limit_on_the_managers_calls_means_no_timer() -> None:
    """None means never, for each of them."""
    manager = ScriptedManager(connect=Delay(100), is_valid=Delay(100), reset=Delay(100), close=Delay(100))
    pool = Pool(
        manager,
        create_timeout=None,
        validation_timeout=None,
        reset_timeout=None,
        close_timeout=None,
        connection_timeout=None,
        max_size=1,
    )
    async with pool:
        await hold(pool)
        await hold(pool)
        await asyncio.sleep(200)
        await hold(pool)
        lease = await pool.get()
        lease.discard()
        await hold(pool)
        await asyncio.sleep(200)
        await pool.close(1000)
        manager.check(open=0)
        books(pool)


@virtual
async def test_open_without_a_limit_waits_for_the_server() -> None:
    """connection_timeout=None."""
    manager = ScriptedManager(connect=[OSError("down")] * 50)
    async with Pool(manager, min_idle=1, connection_timeout=None, close_timeout=None, error_sink=quiet) as pool:
        assert pool.state().idle == 1
    failing = Pool(ScriptedManager(connect=OSError("no"), is_transient=False), min_idle=1, close_timeout=None)
    with pytest.raises(OSError, match="no"):
        await failing.open()


@virtual
async def test_a_forked_pool_refuses_everything_and_its_leases_say_nothing() -> None:
    """As in the child of a fork, where these lines run otherwise."""
    manager = ScriptedManager()
    pool = Pool(manager, min_idle=1)
    await pool.open()
    lease = await pool.get()
    block, other = pool.get(), pool.get()
    await block.__aenter__()
    await other.__aenter__()
    _after_fork_in_child()
    uses: list[Any] = [pool.get().__aenter__, pool.try_get, pool.open, pool.close]
    for use in uses:
        with pytest.raises(ForkedPool, match="open before a fork"):
            await use()
    for act in (lease.release, pool.state, pool.holders, pool.evict, lambda: pool.config):
        with pytest.raises(ForkedPool):
            act()
    lost, lost_conn = lease, lease.conn
    del lost, lease
    gc.collect()
    pool._shell.gets.close_dedicated(lost_conn)
    with pytest.raises(ForkedPool):
        await block.__aexit__(None, None, None)
    await other.__aexit__(KeyError, KeyError(), None)
    pool._shell.life.forked, pool._shell.life.thread = False, threading.get_ident()
    await pool.close(0)


def test_a_lease_dropped_after_its_loop_is_closed_warns_and_waits_for_the_pools_end() -> None:
    """There is no loop that could reclaim it."""
    pool = Pool(ScriptedManager())
    leases = []

    async def forgets() -> None:
        await pool.open()
        leases.append(await pool.get())

    run(forgets, strict=False)
    with pytest.warns(ResourceWarning, match="dropped without release"):
        leases.clear()
        gc.collect()
    run(pool.close)
    closed(pool, pool_closed=1)
    books(pool)


def test_a_pool_dropped_while_it_closes_does_not_warn() -> None:
    """It was on its way already."""

    async def main() -> None:
        manager = ScriptedManager(close=Delay(1))
        pool = Pool(manager, min_idle=1)
        await pool.open()
        pool._shell.life._begin_close()
        del pool
        gc.collect()
        await asyncio.sleep(5)
        manager.check(open=0)

    run(main)


def test_waiters_that_died_with_their_loop_do_not_disturb_the_next_one() -> None:
    """Their futures belong to nobody."""
    manager = ScriptedManager(connect=[OK, NEVER])
    pool = Pool(manager, max_size=2)

    async def forgets() -> None:
        await pool.open()
        await pool.get()
        for _ in range(3):
            asyncio.ensure_future(pool.get().__aenter__())  # noqa: RUF006
        await turns()

    async def uses() -> None:
        manager.script(connect=OK)
        async with pool:
            assert pool.state().waiting == 0
            await hold(pool)
        books(pool)

    with pytest.warns(ResourceWarning, match="dropped without release"):
        run(forgets, strict=False)
        gc.collect()
    run(uses)


def test_without_terminate_what_a_dead_loop_left_is_abandoned_and_counted() -> None:
    """There is nobody who could close it."""
    pool = Pool(ScriptedManager(without=["terminate"]), min_idle=2)
    run(pool.open, strict=False)
    run(pool.close)
    assert pool.state().statistics.connections_abandoned == 2
    books(pool)


@virtual
async def test_without_terminate_a_connect_that_came_too_late_is_closed() -> None:
    """Bounded too, and counted when it will not close."""
    manager = ScriptedManager(without=["terminate"], connect=[SwallowCancel(1, OK), OK], close=[OSError("no")])
    async with Pool(manager, create_timeout=1, max_size=2, error_sink=quiet) as pool:
        await hold(pool)
        manager.script(connect=[SwallowCancel(1, OK), OK], close=[NEVER])
        (await pool.get()).discard()
        await asyncio.sleep(10)
        await asyncio.gather(hold(pool, 2), hold(pool, 2))
        await asyncio.sleep(10)
        assert pool.state().statistics.connections_abandoned >= 1
        books(pool)


@virtual
async def test_closing_with_no_time_left_abandons_what_cannot_be_terminated() -> None:
    """And says so."""
    pool = Pool(ScriptedManager(without=["terminate"]), max_size=2)
    await pool.open()
    lease = await pool.get()
    await pool.close(0)
    assert pool.state().statistics.connections_abandoned == 1
    lease.release()
    books(pool)


@virtual
async def test_a_dedicated_connect_cancelled_in_the_tick_of_its_success_leaves_nothing() -> None:
    """Somebody must get rid of it."""
    manager = ScriptedManager()
    async with Pool(manager) as pool:
        for steps in range(8):
            task = asyncio.ensure_future(pool.dedicated_connection().__aenter__())
            await turns(steps)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled():
                manager.terminate(task.result())
            await turns()
        assert manager.open == []
        manager.script(connect=SwallowCancel(1, OK))
        task = asyncio.ensure_future(pool.dedicated_connection().__aenter__())
        await turns()
        task.cancel()
        await asyncio.sleep(1)
        assert manager.open == []


@virtual
async def test_a_cancelled_dedicated_connect_that_fails_afterwards_is_silent() -> None:
    """Nobody asks for it any more."""
    manager = ScriptedManager(connect=SwallowCancel(1, OSError("late")))
    async with Pool(manager) as pool:
        task = asyncio.ensure_future(pool.dedicated_connection().__aenter__())
        await turns()
        task.cancel()
        await asyncio.sleep(1)
        assert task.cancelled()


@virtual
async def test_a_leak_is_reported_without_listeners_too() -> None:
    """The sink is enough."""
    errors: list[BaseException] = []
    async with Pool(ScriptedManager(), leak_threshold=5, reap_interval=5, error_sink=errors.append) as pool:
        await hold(pool, 30)
        assert len(errors) == 1


@virtual
async def test_a_second_close_with_a_later_deadline_changes_nothing() -> None:
    """The earlier one holds."""
    loop = asyncio.get_running_loop()
    pool = Pool(ScriptedManager())
    await pool.open()
    lease = await pool.get()
    await asyncio.gather(pool.close(1), pool.close(60))
    assert loop.time() < 2
    lease.release()


@virtual
async def test_an_opener_that_is_cancelled_with_a_joiner_that_is_cancelled_too() -> None:
    """Nobody is told twice."""
    pool = Pool(ScriptedManager(connect=Delay(5)), min_idle=1)
    tasks = [asyncio.create_task(pool.open()) for _ in range(3)]
    await turns()
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    await asyncio.sleep(1)
    with pytest.raises(PoolClosed):
        await pool.get()
    await pool.open()
    await pool.close()


@virtual
async def test_a_try_get_beside_waiting_gets_neither_overtakes_nor_connects() -> None:
    """Its waiter is of another kind."""
    manager = ScriptedManager(is_valid=[Delay(1), Delay(2, False)])
    async with Pool(manager, max_size=2) as pool:
        await asyncio.gather(hold(pool, 0.01), hold(pool, 0.01))
        await asyncio.sleep(5)
        trying = asyncio.create_task(pool.try_get())
        await turns()
        getting = [asyncio.create_task(hold(pool, 1)) for _ in range(2)]
        lease = await trying
        assert lease is not None
        lease.release()
        await asyncio.gather(*getting)
        books(pool)


@virtual
async def test_without_retry_a_try_get_is_not_the_head_that_fails() -> None:
    """It has nothing to do with connecting."""
    manager = ScriptedManager(is_valid=[Delay(3)])
    async with Pool(manager, max_size=2, retry_connection=False, error_sink=quiet) as pool:
        await hold(pool)
        await asyncio.sleep(5)
        manager.script(connect=Delay(0.5, OSError("down")))
        trying = asyncio.create_task(pool.try_get())
        await turns()
        with pytest.raises((Exception,), match="down"):
            await pool.get()
        lease = await trying
        assert lease is not None
        lease.release()
        books(pool)


@virtual
async def test_a_failure_of_a_connect_begun_before_the_back_off_does_not_stretch_it() -> None:
    """Three fail together: one step."""
    manager = ScriptedManager(connect=[Delay(0.01, OSError("a")), Delay(0.01, OSError("b")), Delay(0.01, OSError("c"))])
    async with Pool(manager, max_size=3, error_sink=quiet) as pool:
        await asyncio.gather(*(hold(pool) for _ in range(3)))
        assert asyncio.get_running_loop().time() <= 0.5
        books(pool)


@virtual
async def test_a_time_out_while_nothing_is_lent_and_nothing_fails_is_short() -> None:
    """No holders, no error: just the numbers."""
    async with Pool(ScriptedManager(connect=Delay(5))) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(1)
        assert "held longest" not in str(caught.value)
        assert "1 opening" in str(caught.value)


def test_a_waiter_answers_only_in_the_shell() -> None:
    """The state's own class is a shape."""
    from pool_core._slot import Slot, Waiter

    waiter: Waiter[object] = Waiter()
    with pytest.raises(NotImplementedError):
        waiter.offer(Slot(object(), 1, 0.0, 0.0))
    with pytest.raises(NotImplementedError):
        waiter.fail(None)
    with pytest.raises(NotImplementedError):
        waiter.gone()


def test_a_loop_closed_over_waiters_and_connects_leaves_a_pool_that_opens_afresh() -> None:
    """No task of theirs ever runs again."""
    manager = ScriptedManager(connect=[OK, NEVER])
    pool = Pool(manager, max_size=2)
    loop = asyncio.new_event_loop()
    tasks: list[Any] = []

    async def forgets() -> None:
        await pool.open()
        lease = await pool.get()
        tasks.extend(asyncio.ensure_future(pool.get().__aenter__()) for _ in range(3))
        await turns()
        tasks.append(lease)

    loop.run_until_complete(forgets())
    loop.close()

    async def uses() -> None:
        manager.script(connect=OK)
        async with pool:
            assert pool.state().waiting == 0
            await hold(pool)

    run(uses)
    books(pool)
    for task in tasks[:3]:
        task._log_destroy_pending = False
    loop._ready.clear()  # type: ignore[attr-defined]


def test_gets_that_died_with_their_loop_count_as_cancelled_once() -> None:
    """Whether their coroutines are thrown away before the pool opens again, after it, or never."""
    for when in ("before", "after", "never"):
        manager = ScriptedManager(connect=NEVER)
        pool = Pool(manager, max_size=1)
        loop = asyncio.new_event_loop()

        async def forgets(pool: Pool[Any]) -> list[Any]:
            await pool.open()
            gets = [pool.get().__aenter__() for _ in range(3)]
            for get in gets:
                get.send(None)
            return gets

        gets = loop.run_until_complete(forgets(pool))
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        assert pool.state().waiting == 3
        manager.script(connect=OK)

        async def uses(pool: Pool[Any], gets: list[Any], when: str) -> None:
            if when == "before":
                gets.clear()
            async with pool:
                assert pool.state().waiting == 0
                if when == "after":
                    gets.clear()
                await hold(pool)
                state = pool.state()
                assert (state.waiting, state.statistics.gets_cancelled, state.statistics.gets_started) == (0, 3, 4)
                books(pool)

        run(uses, pool, gets, when)
        loop._ready.clear()  # type: ignore[attr-defined]


@virtual
async def test_a_get_that_is_refused_does_not_keep_what_is_due_from_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """It came first after something had blocked the loop, and found that the back-off of others was over."""
    monkeypatch.setattr("pool_core._shell._random", lambda: 0.9)
    manager = ScriptedManager(connect=[OSError("down"), NEVER])
    pool = Pool(manager, max_size=2, max_waiting=0, error_sink=quiet)
    await pool.open()
    waiter = asyncio.create_task(hold(pool))
    await turns()
    monkeypatch.setattr(asyncio.get_running_loop(), "_now", 1.0)
    with pytest.raises(PoolOverloaded):
        await pool.get()
    assert pool.state().opening == len(pool._shell.calls.under_way) == 1
    await pool.close(1)
    with pytest.raises(PoolClosed):
        await waiter
    books(pool)


def test_a_connect_that_outlives_its_loop_is_abandoned_without_terminate() -> None:
    """Counted, and no more."""
    manager = ScriptedManager(without=["terminate"])
    pool = Pool(manager)
    run(lambda: hold_open(pool), strict=False)
    pool._shell.calls.dispose(manager.connections[0])
    assert pool.state().statistics.connections_abandoned == 1
    run(pool.close)


async def hold_open(pool: Pool[Any]) -> None:
    """Open the pool with one connection, and forget it."""
    await pool.open()
    await hold(pool)


@virtual
async def test_a_deaf_connect_and_a_deaf_close_do_not_keep_a_pool_from_closing() -> None:
    """What comes while there is no time left is cut off like the rest."""
    manager = ScriptedManager(without=["terminate"], connect=SwallowCancel(1, OK), close=SwallowCancel(9))
    pool = Pool(manager, create_timeout=None, close_timeout=None, error_sink=quiet)
    await pool.open()
    get = asyncio.create_task(hold(pool))
    await turns()
    loop = asyncio.get_running_loop()
    start = loop.time()
    await pool.close(0)
    assert loop.time() - start <= 1
    assert pool.state().statistics.connections_abandoned >= 1
    await asyncio.gather(get, return_exceptions=True)
    while left := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in left:
            task.cancel()
        await asyncio.sleep(0)


@virtual
async def test_a_lease_lost_in_the_tick_of_the_close_is_no_leak() -> None:
    """It was terminated already."""
    pool = Pool(ScriptedManager())
    await pool.open()
    lease = await pool.get()
    slot = lease._slot
    await pool.close(0)
    pool._shell.reclaim(slot)
    pool._state.give_back(slot, 0.0, UNUSED)
    lease.release()
    closed(pool, pool_closed=1)


@virtual
async def test_a_goodbye_beside_the_pool_that_hangs_is_terminated_or_abandoned() -> None:
    """Dedicated connections are closed under the same deadline."""
    for without, count in (([], 0), (["terminate"], 1)):
        manager = ScriptedManager(close=NEVER, without=without)
        async with Pool(manager, close_timeout=1, error_sink=quiet) as pool:
            async with pool.dedicated_connection():
                pass
            await asyncio.sleep(3)
            assert pool.state().statistics.connections_abandoned == count


@virtual
async def test_a_pool_that_resets_a_suspect_connection_tests_it_before_its_next_use() -> None:
    """A reset does not show that the connection is alive."""
    manager = ScriptedManager(reset=Delay(0.01))
    async with Pool(manager, max_size=1) as pool:
        with pytest.raises(KeyError):
            async with pool.get():
                raise KeyError
        await hold(pool)
        assert len(manager.calls("is_valid")) == 1
        books(pool)


@virtual
async def test_has_broken_raising_on_the_warm_way_back_costs_the_connection() -> None:
    """Asked again by the slow path, which counts and reports it."""
    errors: list[BaseException] = []
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, error_sink=errors.append) as pool:
        await hold(pool)
        async with pool.get():
            assert not pool._state.slow
            manager.script(has_broken=KeyError("bug"))
        manager.script(has_broken=OK)
        closed(pool, broken=1)
        assert len(errors) == 1
        books(pool)


@virtual
async def test_the_reaper_spares_what_is_not_lent_and_what_it_has_reported() -> None:
    """leak_threshold reports only connections in use, and each lease once."""
    errors: list[BaseException] = []
    async with Pool(
        ScriptedManager(), max_size=2, leak_threshold=5, reap_interval=2, idle_timeout=None, error_sink=errors.append
    ) as pool:
        await hold(pool)
        await asyncio.sleep(20)
        await hold(pool, 20)
        assert len(errors) == 1


@virtual
async def test_a_connect_without_a_limit_still_ends_with_the_pool() -> None:
    """create_timeout=None is no leave to keep the program from ending."""
    manager = ScriptedManager(connect=NEVER)
    pool = Pool(manager, create_timeout=None)
    await pool.open()
    get = asyncio.create_task(hold(pool))
    await asyncio.sleep(1)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await pool.close(5)
    assert loop.time() - started < 0.5
    with pytest.raises(PoolClosed):
        await get
    books(pool)


@virtual
async def test_a_connect_that_is_nearly_there_when_the_pool_closes_is_not_cut() -> None:
    """Drivers log an error if connecting is cancelled in its first steps. The connection is terminated afterwards."""
    manager = ScriptedManager(connect=Delay(1.05))
    pool = Pool(manager)
    await pool.open()
    get = asyncio.create_task(hold(pool))
    await asyncio.sleep(1)
    await pool.close(5)
    assert [conn.state for conn in manager.connections] == ["terminated"]
    closed(pool, pool_closed=1)
    await asyncio.gather(get, return_exceptions=True)
    books(pool)


@virtual
async def test_a_pool_that_is_not_open_has_nothing_to_bury() -> None:
    """The order may come from another thread, and late."""
    pool = Pool(ScriptedManager(), min_idle=1)
    pool._shell.life.bury()
    async with pool:
        assert pool.state().idle == 1
    pool._shell.life.bury()
    closed(pool, pool_closed=1)


@virtual
async def test_a_get_may_be_driven_by_hand_from_a_callback_of_the_loop() -> None:
    """There is a right loop then, but no task."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        await hold(pool)
        lease = pool.get()
        steps = lease.__aenter__()

        def by_hand() -> None:
            with pytest.raises(StopIteration):
                steps.send(None)

        asyncio.get_running_loop().call_soon(by_hand)
        await turns()
        assert pool.state().in_use == 1
        await lease.__aexit__(None, None, None)
        books(pool)


@virtual
async def test_listeners_hear_of_a_try_get_that_lends() -> None:
    """As of any other checkout."""
    events: list[object] = []
    async with Pool(ScriptedManager(), max_size=1, listeners=[events.append]) as pool:
        await hold(pool)
        lease = await pool.try_get()
        assert lease is not None
        lease.release()
    assert [type(event).__name__ for event in events].count("CheckedOut") == 2
