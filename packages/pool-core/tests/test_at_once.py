"""Rules that act at once: deadlocks, leaks, forks. Each with a correct program that looks guilty and is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from pool_core import Leaked, Pool, PoolDeadlock, PoolTimeout, WrongEventLoop
from pool_core.testing import Delay, ScriptedManager

from .helpers import books, closed, hold, turns, virtual


async def nested(pool: Pool[Any], pause: float = 0.0, timeout: float | None = None) -> str:
    """Hold one connection and ask for another."""
    async with pool.get():
        await asyncio.sleep(pause)
        async with pool.get(timeout):
            return "both"


@virtual
async def test_nested_gets_by_all_holders_raise_deadlock_after_a_standstill() -> None:
    """aiopg #127, HikariCP #442, asyncpg #5: silent until the timeout elsewhere. The newest waiter gets it."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=3) as pool:
        tasks = [asyncio.create_task(nested(pool, 1 + n / 1000), name=f"user {n}") for n in range(3)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, PoolDeadlock)]
        assert len(errors) == 1
        assert outcomes.count("both") == 2
        assert outcomes[2] is errors[0]
        assert "user 0, user 1, user 2" in str(errors[0])
        assert isinstance(errors[0], PoolTimeout)
        assert loop.time() == pytest.approx(1.002 + 1.0)  # deadlock_after the last one began to wait
        assert pool.state().statistics.gets_failed == 1
        books(pool)


@virtual
async def test_one_task_that_nests_on_a_pool_of_one_is_a_deadlock() -> None:
    """The smallest case."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        with pytest.raises(PoolDeadlock, match="do not get a second connection"):
            await nested(pool)
        await hold(pool)
        with pytest.raises(PoolDeadlock):
            await nested(pool)
        books(pool)


@virtual
async def test_a_deadlock_found_late_is_found_all_the_same() -> None:
    """The holders come to wait one after the other, among many other waiters."""
    loop = asyncio.get_running_loop()
    async with Pool(ScriptedManager(), max_size=2) as pool:
        tasks = [asyncio.create_task(nested(pool, pause)) for pause in (1, 2)]
        await turns()
        others = [asyncio.create_task(hold(pool)) for _ in range(100)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(outcome, PoolDeadlock) for outcome in outcomes) == 1
        assert loop.time() == pytest.approx(2 + 1.0)
        await asyncio.gather(*others)
        books(pool)


@virtual
async def test_without_detection_a_deadlock_ends_at_the_deadline_and_says_how_many_wait() -> None:
    """The text still tells."""
    async with Pool(ScriptedManager(), max_size=1, detect_deadlock=False, connection_timeout=5) as pool:
        with pytest.raises(PoolTimeout, match="holders that wait for another connection themselves: 1") as caught:
            await nested(pool)
        assert not isinstance(caught.value, PoolDeadlock)


@virtual
async def test_a_holder_that_tries_a_second_get_for_a_moment_is_left_alone() -> None:
    """It has a fallback."""
    async with Pool(ScriptedManager(), max_size=1) as pool, pool.get():
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=0.05)
        assert not isinstance(caught.value, PoolDeadlock)


@virtual
async def test_a_lease_got_by_await_may_be_released_by_anybody() -> None:
    """An unknown holder: no deadlock is proven."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        asyncio.get_running_loop().call_later(5, lease.release)
        await hold(pool)
        books(pool)


@virtual
async def test_a_holder_whose_helper_task_waits_is_left_alone() -> None:
    """The holder itself may go on."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        async with pool.get():
            helper = asyncio.create_task(hold(pool))
            await asyncio.sleep(5)
        await helper
        books(pool)


@virtual
async def test_one_holder_that_does_not_wait_is_enough() -> None:
    """It will release."""
    async with Pool(ScriptedManager(), max_size=2) as pool:
        working = asyncio.create_task(hold(pool, 5))
        await turns()
        assert await nested(pool) == "both"
        await working


@virtual
async def test_a_nested_get_on_a_pool_that_can_still_grow_is_left_alone() -> None:
    """Or that closes, tests or resets something."""
    async with Pool(ScriptedManager(connect=Delay(3), reset=Delay(3)), max_size=2) as pool:
        assert await nested(pool) == "both"
        discarded, kept = await pool.get(), await pool.get()
        kept.release()
        task = asyncio.create_task(nested(pool))
        await asyncio.sleep(4)
        discarded.discard()
        assert await task == "both"
        books(pool)


@virtual
async def test_a_cancelled_victim_of_a_deadlock_is_just_cancelled() -> None:
    """The cancel surfaces as CancelledError."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        task = asyncio.create_task(nested(pool))
        while not pool.state().waiting:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        books(pool)


@virtual
async def test_a_lease_that_was_garbage_collected_is_reclaimed_with_a_warning() -> None:
    """asyncpg, aiomysql and redis-py lose the slot."""
    events: list[object] = []
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, listeners=[events.append]) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await turns()
        with pytest.warns(ResourceWarning, match="dropped without release"):
            del lease
            gc.collect()
        await waiter
        closed(pool, leaked=1)
        assert manager.connections[0].state == "terminated"
        assert any(isinstance(event, Leaked) for event in events)
        books(pool)


@virtual
async def test_the_warning_tells_where_a_lost_lease_was_taken() -> None:
    """With leak_threshold set."""
    async with Pool(ScriptedManager(), leak_threshold=60) as pool:
        lease = await pool.get()
        with pytest.warns(ResourceWarning, match="test_the_warning_tells_where_a_lost_lease_was_taken"):
            del lease
            gc.collect()
        await turns()


def test_a_lease_collected_in_another_thread_is_reclaimed_in_the_pools_own() -> None:
    """__del__ may run anywhere."""

    async def main() -> None:
        async with Pool(ScriptedManager(), max_size=1) as pool:
            box = [await pool.get()]

            def drop() -> None:
                with pytest.warns(ResourceWarning, match="dropped without release"):
                    box.clear()
                    gc.collect()

            thread = threading.Thread(target=drop)
            thread.start()
            thread.join()
            await turns()
            closed(pool, leaked=1)

    asyncio.run(main())


@virtual
async def test_a_lease_dropped_after_its_release_or_after_close_is_no_leak() -> None:
    """The correct program that looks guilty."""
    async with Pool(ScriptedManager()) as pool:
        lease = await pool.get()
        lease.release()
        del lease
        held = await pool.get()
        await pool.close(0)
        del held
        gc.collect()
    closed(pool, pool_closed=1)


@virtual
async def test_a_coroutine_dropped_inside_its_block_gives_back() -> None:
    """GeneratorExit runs __aexit__, which awaits nothing."""
    async with Pool(ScriptedManager()) as pool:

        async def body() -> None:
            async with pool.get():
                await asyncio.Event().wait()

        await hold(pool)
        coro = body()
        coro.send(None)
        assert pool.state().in_use == 1
        coro.close()
        assert pool.state().in_use == 0
        books(pool)


@virtual
async def test_a_block_left_by_a_garbage_collection_in_another_thread_gives_back_in_the_pools_own() -> None:
    """A coroutine whose task was lost is thrown away in whatever thread collects it; the driver must not notice."""
    here = threading.get_ident()
    threads: list[int] = []

    def where(conn: Any) -> bool:
        threads.append(threading.get_ident())
        return bool(conn.broken)

    manager = ScriptedManager(has_broken=where, close=where)
    async with Pool(manager, max_size=1) as pool:
        await hold(pool)

        async def body() -> None:
            async with pool.get():
                await asyncio.Event().wait()

        dropped = [body()]
        dropped[0].send(None)
        beside = pool.dedicated_connection()
        await beside.__aenter__()

        def collect() -> None:
            dropped.clear()
            with contextlib.suppress(StopIteration):
                beside.__aexit__().send(None)

        collector = threading.Thread(target=collect)
        collector.start()
        collector.join()
        assert pool.state().in_use == 1
        await turns()
        assert (pool.state().in_use, pool.state().idle) == (0, 1)
        assert set(threads) == {here}
        assert len(manager.calls("close")) == 1
        books(pool)


@virtual
async def test_a_lease_held_longer_than_leak_threshold_is_reported_once_with_its_stack() -> None:
    """npgsql #473: who holds it?"""
    events: list[object] = []
    errors: list[BaseException] = []
    async with Pool(
        ScriptedManager(), leak_threshold=60, reap_interval=10, listeners=[events.append], error_sink=errors.append
    ) as pool:
        await hold(pool, 59)
        assert not errors
        await hold(pool, 300)
        leaks = [event for event in events if isinstance(event, Leaked)]
        assert len(leaks) == len(errors) == 1
        assert leaks[0].stack is not None
        assert "in hold" in leaks[0].stack
        assert 60 < leaks[0].held <= 71
        assert "longer than leak_threshold=60" in str(errors[0])
        books(pool)


FORK = """
    import asyncio, gc, os, sys
    from pool_core import ForkedPool, Pool
    from pool_core.testing import ScriptedManager

    never_opened = Pool(ScriptedManager())

    async def in_child(pool, lease, manager, leaving, raising):
        before = list(manager.log)
        try:
            await leaving.__aexit__(None, None, None)
        except ForkedPool:
            pass
        else:
            raise AssertionError("a block was left in silence")
        assert await raising.__aexit__(KeyError, KeyError(), None) is None
        refused = []
        for use in (pool.get().__aenter__, pool.try_get, pool.open, pool.close,
                    pool.dedicated_connection().__aenter__, lease.__aenter__):
            try:
                await use()
            except ForkedPool:
                refused.append(use)
        for act in (lease.release, lease.discard, lease.detach, pool.evict, pool.state, pool.holders,
                    lambda: pool.resize(max_size=1), lambda: pool.add(None), lambda: pool.config):
            try:
                act()
            except ForkedPool as error:
                refused.append(act)
                assert "process" in str(error)
        assert len(refused) == 15, refused
        assert manager.log == before
        assert "forked" in repr(pool)

    async def main():
        manager = ScriptedManager()
        pool = Pool(manager, min_idle=1)
        await pool.open()
        lease = await pool.get()
        leaving, raising = pool.get(), pool.get()
        await leaving.__aenter__()
        await raising.__aenter__()
        async with pool.get():
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    asyncio._set_running_loop(None)
                    asyncio.run(in_child(pool, lease, manager, leaving, raising))
                    async def fresh():
                        async with never_opened, never_opened.get():
                            pass
                    asyncio.run(fresh())
                    del pool, lease
                    gc.collect()
                    code = 0
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            _, status = os.waitpid(pid, 0)
            assert status == 0
        await leaving.__aexit__(None, None, None)
        await raising.__aexit__(None, None, None)
        lease.release()
        await pool.close()
        assert manager.open == []

    asyncio.run(main())
    print("both sides well")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_a_fork_the_child_refuses_and_touches_nothing() -> None:
    """aiomysql, asyncmy and redis gave the parent wrong answers; a pool never opened is the child's to use."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(FORK)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "both sides well", done.stderr


@virtual
async def test_a_holder_that_has_given_up_its_second_get_does_not_wait_any_more() -> None:
    """Dead waiters may still stand in the queue; they prove no deadlock, and no text counts them."""
    async with Pool(ScriptedManager(), max_size=2, connection_timeout=20) as pool:

        async def waits() -> None:
            async with pool.get():
                await asyncio.sleep(1)
                await hold(pool)

        async def gives_up() -> None:
            async with pool.get():
                await asyncio.sleep(2)
                second = asyncio.ensure_future(pool.get().__aenter__())
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1):
                        await hold(pool)
                with pytest.raises(PoolTimeout, match="connection themselves: 1;|connection themselves: 1$"):
                    await pool.get(timeout=0)
                await asyncio.sleep(5)
                second.cancel()

        await asyncio.gather(waits(), gives_up())
        books(pool)


@virtual
async def test_after_a_deadlock_was_told_its_victim_does_not_wait_any_more() -> None:
    """It still holds its first connection, and works on."""
    async with Pool(ScriptedManager(), max_size=1) as pool, pool.get():
        with pytest.raises(PoolDeadlock):
            await pool.get()
        assert pool._state.queue.live == 0
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=0)
        assert "themselves" not in str(caught.value)
        books(pool)


@virtual
async def test_holders_that_are_no_tasks_prove_no_deadlock() -> None:
    """Some programs drive coroutines by hand, from callbacks: who could say what they wait for?"""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        await hold(pool)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        first, second = pool.get(), pool.get()

        def by_hand() -> None:
            with contextlib.suppress(StopIteration):
                first.__aenter__().send(None)
            waiting.append(second.__aenter__())
            waiting[0].send(None)
            loop.call_later(5, done.set_result, None)

        waiting: list[Any] = []
        loop.call_soon(by_hand)
        await done
        assert pool.state().waiting == 1
        first.release()
        with contextlib.suppress(StopIteration):
            waiting[0].send(None)
        second.release()
        books(pool)


@virtual
async def test_the_pools_loop_in_another_thread_is_still_another_loop() -> None:
    """Also in the moment when a task of the pool's own is running."""

    async def uses() -> str:
        try:
            async with pool.get():
                return "lent"
        except WrongEventLoop:
            return "refused"

    def thread() -> None:
        with contextlib.suppress(StopIteration):
            uses_by_hand = uses()
            uses_by_hand.send(None)
        answers.append(asyncio.run(uses()))
        try:
            uses().send(None)
        except StopIteration as end:
            answers.append(end.value)

    answers: list[str] = []
    async with Pool(ScriptedManager(), max_size=2) as pool:
        await hold(pool)
        other = threading.Thread(target=thread)
        other.start()
        other.join()  # this task is the loop's current one meanwhile
        assert answers == ["refused", "refused"]
        books(pool)


@virtual
async def test_a_connection_that_was_once_lent_by_await_has_a_known_holder_when_it_is_lent_by_a_block() -> None:
    """However it came back, and whether its way back was warm."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        for back in ("release", "block"):
            lease = await pool.get()
            if back == "release":
                lease.release()
            else:
                async with lease:
                    pass
            loop = asyncio.get_running_loop()
            start = loop.time()
            with pytest.raises(PoolDeadlock):
                await nested(pool)
            assert loop.time() - start == pytest.approx(1)
        await hold(pool)
        async with await pool.get():  # a warm one by await, which anybody may release
            with pytest.raises(PoolTimeout) as caught:
                await pool.get()
            assert not isinstance(caught.value, PoolDeadlock)
        books(pool)
