"""The life cycle: open, close, reopen, and everything that happens in between."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
import weakref
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from pool_core import CloseReason, ConnectError, ForkedPool, Pool, PoolClosed, PoolDeadlock, PoolTimeout, WrongEventLoop
from pool_core.testing import (
    NEVER,
    OK,
    Delay,
    FakeConnection,
    ScriptedCustomizer,
    ScriptedManager,
    SwallowCancel,
    VirtualTimeLoop,
    run,
)

from .helpers import books, closed, hold, turns, virtual


@virtual
async def test_async_with_opens_min_idle_and_closes_all() -> None:
    """bb8's build; dropping bb8's pool closes all."""
    manager = ScriptedManager(connect=Delay(1))
    async with Pool(manager, max_size=5, min_idle=3) as pool:
        assert pool.state().idle == 3
    assert (manager.open, pool.state().idle) == ([], 0)
    closed(pool, pool_closed=3)
    books(pool)


@virtual
async def test_without_min_idle_open_connects_nothing() -> None:
    """A dead server does not keep the program from starting."""
    manager = ScriptedManager(connect=OSError("down"))
    async with Pool(manager):
        assert manager.calls("connect") == []


@virtual
async def test_open_without_waiting_connects_in_the_background() -> None:
    """bb8's build_unchecked."""
    pool = Pool(ScriptedManager(connect=Delay(1)), min_idle=2)
    await pool.open(wait=False)
    assert pool.state().opening == 2
    await pool.open()  # it is open, and there is nothing to wait for
    assert pool.state().opening == 2
    await asyncio.sleep(2)
    assert pool.state().idle == 2
    await pool.close()


@virtual
async def test_open_raises_the_managers_error_unchanged() -> None:
    """A wrong password fails at start, as the driver says it."""
    error = OSError("password refused")
    manager = ScriptedManager(connect=error, is_transient=False)
    pool = Pool(manager, min_idle=2)
    with pytest.raises(OSError, match="password refused") as caught:
        await pool.open()
    assert caught.value is error
    assert pool.state().opening == 0
    with pytest.raises(PoolClosed):
        await pool.get()
    manager.script(connect=Delay(0))
    async with pool:
        assert pool.state().idle == 2


@virtual
async def test_open_retries_transient_errors_until_connection_timeout() -> None:
    """A server that starts beside the program is waited for; then the last error comes as it is."""
    manager = ScriptedManager(connect=[OSError(str(n)) for n in range(3)])
    async with Pool(manager, min_idle=1, error_sink=lambda _: None):
        assert len(manager.calls("connect")) == 4
    loop = asyncio.get_running_loop()
    start = loop.time()
    with pytest.raises(OSError, match="still down"):
        await Pool(
            ScriptedManager(connect=OSError("still down")),
            min_idle=1,
            connection_timeout=7,
            error_sink=lambda _: None,
        ).open()
    assert loop.time() - start == pytest.approx(7, abs=0.2)


@virtual
async def test_open_without_retry_raises_the_first_error() -> None:
    """retry_connection=False."""
    manager = ScriptedManager(connect=OSError("down"))
    pool = Pool(manager, min_idle=1, retry_connection=False, error_sink=lambda _: None)
    with pytest.raises(OSError, match="down"):
        await pool.open()
    assert len(manager.calls("connect")) == 1


@virtual
async def test_open_behind_a_server_that_never_answers_ends() -> None:
    """Connects hang: PoolTimeout, phase connect."""
    pool = Pool(ScriptedManager(connect=NEVER), min_idle=1, connection_timeout=3)
    with pytest.raises(PoolTimeout) as caught:
        await pool.open()
    assert caught.value.phase == "connect"
    assert pool.state().statistics.gets_timed_out == 0
    books(pool)


@virtual
async def test_open_behind_connects_that_run_into_create_timeout_raises_that() -> None:
    """The last error, as it is."""
    pool = Pool(ScriptedManager(connect=NEVER), min_idle=1, create_timeout=1, error_sink=lambda _: None)
    with pytest.raises(TimeoutError, match="create_timeout=1"):
        await pool.open()


@virtual
async def test_a_partly_opened_pool_leaves_nothing_behind() -> None:
    """Two connections were up when the third failed."""
    manager = ScriptedManager(connect=[Delay(0), Delay(0), Delay(1, OSError("no more"))], is_transient=False)
    pool = Pool(manager, min_idle=3, connection_timeout=2, error_sink=lambda _: None)
    with pytest.raises((OSError, PoolTimeout)):
        await pool.open()
    assert manager.open == []
    books(pool)


@virtual
async def test_a_cancelled_open_leaves_nothing_behind_and_may_be_repeated() -> None:
    """Also at once."""
    manager = ScriptedManager(connect=[Delay(0), Delay(9), Delay(0), Delay(0)])
    pool = Pool(manager, min_idle=2)
    task = asyncio.create_task(pool.open())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await pool.open()
    assert pool.state().idle == 2
    await pool.close()
    assert manager.open == []
    books(pool)


@virtual
async def test_opening_twice_joins_the_first() -> None:
    """One set of connects."""
    manager = ScriptedManager(connect=Delay(1))
    pool = Pool(manager, min_idle=2)
    await asyncio.gather(pool.open(), pool.open())
    await pool.open()
    assert len(manager.calls("connect")) == 2
    await pool.close()


@virtual
async def test_the_joiner_of_a_failed_open_gets_the_same_error() -> None:
    """It asked for the same thing."""
    pool = Pool(ScriptedManager(connect=lambda _: Delay(1, OSError("down")), is_transient=False), min_idle=1)
    first, second = await asyncio.gather(pool.open(), pool.open(), return_exceptions=True)
    assert isinstance(first, OSError)
    assert first is second


@virtual
async def test_the_joiner_of_a_cancelled_open_opens_by_itself() -> None:
    """The other's cancel is not its own."""
    pool = Pool(ScriptedManager(connect=Delay(2)), min_idle=1)
    first = asyncio.create_task(pool.open())
    second = asyncio.create_task(pool.open())
    await asyncio.sleep(1)
    first.cancel()
    await second
    assert pool.state().idle == 1
    assert first.cancelled()
    await pool.close()


@virtual
async def test_a_cancelled_joiner_leaves_the_opening_alone() -> None:
    """Likewise."""
    pool = Pool(ScriptedManager(connect=Delay(2)), min_idle=1)
    first = asyncio.create_task(pool.open())
    second = asyncio.create_task(pool.open())
    await asyncio.sleep(1)
    second.cancel()
    await first
    await pool.close()


@virtual
@pytest.mark.parametrize("how", ["resize", "add"])
async def test_open_ends_as_soon_as_enough_connections_are_up_from_wherever(how: str) -> None:
    """It waited for connects that nobody needs any more, and raised their error."""
    manager = ScriptedManager(connect=[OK, Delay(5, OSError("down"))])
    pool = Pool(manager, max_size=3, min_idle=2, error_sink=lambda _: None)
    opening = asyncio.create_task(pool.open())
    await asyncio.sleep(1)
    assert not opening.done()
    if how == "resize":
        pool.resize(min_idle=1)
    else:
        pool.add(FakeConnection(100))
    await turns()
    assert opening.done()
    await opening
    await asyncio.sleep(10)
    books(pool)
    await pool.close()


@virtual
async def test_closing_while_opening_makes_open_raise_pool_closed() -> None:
    """Never a hang."""
    manager = ScriptedManager(connect=Delay(5))
    pool = Pool(manager, min_idle=1)
    opening = asyncio.create_task(pool.open())
    joiner = asyncio.create_task(pool.open())
    await asyncio.sleep(1)
    await pool.close()
    for task in (opening, joiner):
        with pytest.raises(PoolClosed):
            await task
    assert manager.open == []
    books(pool)


@virtual
async def test_opening_while_closing_raises_pool_closed() -> None:
    """It would have to wait for an end that has no date."""
    pool = Pool(ScriptedManager(close=Delay(1)), min_idle=1)
    await pool.open()
    closing = asyncio.create_task(pool.close())
    await turns()
    with pytest.raises(PoolClosed, match="is closing"):
        await pool.open()
    await closing
    await pool.open()
    await pool.close()


@virtual
async def test_close_before_open_and_after_close_does_nothing() -> None:
    """So it may stand in any finally."""
    pool = Pool(ScriptedManager())
    await pool.close()
    async with pool:
        pass
    await pool.close()


@virtual
async def test_closing_twice_joins_and_the_earlier_deadline_wins() -> None:
    """The second caller is in more of a hurry."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager()
    pool = Pool(manager)
    await pool.open()
    lease = await pool.get()
    start = loop.time()
    slow = asyncio.create_task(pool.close(60))
    await asyncio.sleep(1)
    await asyncio.gather(pool.close(2), slow)
    assert loop.time() - start == pytest.approx(3, abs=0.5)
    assert lease.conn.state == "terminated"
    lease.release()
    closed(pool, pool_closed=1)
    books(pool)


@virtual
async def test_close_fails_the_waiters_at_once_and_waits_for_lent_ones() -> None:
    """psycopg_pool's good example."""
    pool = Pool(ScriptedManager(), max_size=1)
    await pool.open()
    lease = await pool.get()
    waiter = asyncio.create_task(hold(pool))
    await turns()
    closing = asyncio.create_task(pool.close(10))
    await turns()
    with pytest.raises(PoolClosed, match="is closing"):
        await waiter
    assert not closing.done()
    lease.release()
    await closing
    assert lease._pool.state().statistics.gets_failed == 1
    closed(pool, pool_closed=1)
    books(pool)


@virtual
async def test_close_waits_for_resets_and_closes() -> None:
    """Graceful as long as there is time."""
    manager = ScriptedManager(reset=Delay(1), close=Delay(1))
    pool = Pool(manager)
    await pool.open()
    await hold(pool)
    assert pool.state().resetting == 1
    await pool.close()
    assert [conn.state for conn in manager.connections] == ["closed"]
    books(pool)


@virtual
async def test_close_cancels_connects_and_tests_and_terminates_their_connections() -> None:
    """Nobody needs them any more."""
    manager = ScriptedManager(connect=[Delay(0), NEVER], is_valid=NEVER)
    pool = Pool(manager, max_size=2)
    await pool.open()
    await hold(pool)
    await asyncio.sleep(5)
    gets = [asyncio.create_task(hold(pool)) for _ in range(2)]
    await turns()
    assert (pool.state().opening, pool.state().validating) == (1, 1)
    loop = asyncio.get_running_loop()
    start = loop.time()
    await pool.close()
    assert loop.time() - start < 0.5
    assert [conn.state for conn in manager.connections if conn.state != "terminated"] == []
    await asyncio.gather(*gets, return_exceptions=True)
    books(pool)


@pytest.mark.parametrize("timeout", [0, 0.5, 5])
@pytest.mark.parametrize("verb", ["close", "reset", "is_valid", "connect", "terminate"])
@pytest.mark.parametrize("outcome", [NEVER, SwallowCancel(9), RuntimeError("no")], ids=["never", "deaf", "error"])
@virtual
async def test_close_always_ends_in_time(timeout: float, verb: str, outcome: object) -> None:
    """asyncpg's and SQLAlchemy's close() never return on a hung server."""
    without = ["terminate"] if verb == "close" else []
    if verb == "terminate":
        outcome = RuntimeError("no")
    pool = Pool(ScriptedManager(without=without), max_size=3, error_sink=lambda _: None)
    await pool.open()
    lease = await pool.get()
    await hold(pool)
    await asyncio.sleep(5)
    lease.conn.dirty = True
    pool._shell.calls.manager.script(**{verb: outcome})  # type: ignore[attr-defined]
    lease.release()
    gets = [asyncio.create_task(hold(pool, 100)) for _ in range(3)]
    await asyncio.sleep(0.1)
    loop = asyncio.get_running_loop()
    start = loop.time()
    await pool.close(timeout)
    assert loop.time() - start <= timeout + 1
    state = pool.state()
    assert (state.idle, state.in_use, state.opening, state.validating, state.resetting, state.closing) == (0,) * 6
    for get in gets:
        get.cancel()
    await asyncio.gather(*gets, return_exceptions=True)
    books(pool)
    while deaf := asyncio.all_tasks() - {asyncio.current_task()}:  # abandoned, and counted
        assert pool.state().statistics.connections_abandoned
        for task in deaf:
            task.cancel()
        await asyncio.sleep(0)


@virtual
async def test_close_with_timeout_zero_terminates_at_once() -> None:
    """And a borrower's later release is no error."""
    manager = ScriptedManager()
    pool = Pool(manager)
    await pool.open()
    async with pool.get() as conn:
        await pool.close(0)
        assert conn.state == "terminated"
    closed(pool, pool_closed=1)


@virtual
async def test_a_get_whose_connection_was_terminated_in_the_tick_of_the_hand_over_fails() -> None:
    """Otherwise it would return a dead connection, and the statistics of gets would not add up."""
    for tries in (False, True):
        pool = Pool(ScriptedManager(), max_size=1)
        await pool.open()
        if tries:
            await hold(pool)
            await asyncio.sleep(5)
            get: asyncio.Task[object] = asyncio.create_task(pool.try_get())
            while not pool.state().in_use:
                await asyncio.sleep(0)
        else:
            lease = await pool.get()
            get = asyncio.create_task(hold(pool))
            await turns()
            lease.release()
        assert not get.done()
        closing = asyncio.ensure_future(pool.close(0))
        pool._shell.life._begin_close()
        pool._shell.life.finish_close()  # before the get's task goes on
        with pytest.raises(PoolClosed):
            await get
        await closing
        totals = pool.state().statistics
        assert (totals.gets_direct + totals.gets_waited, totals.gets_failed) == (1, 0 if tries else 1)
        books(pool)


@pytest.mark.parametrize("timeout", [None, -1, float("nan")])
@virtual
async def test_close_refuses_an_endless_timeout(timeout: float | None) -> None:
    """close ALWAYS ends."""
    async with Pool(ScriptedManager()) as pool:
        with pytest.raises(ValueError, match="timeout"):
            await pool.close(timeout)  # type: ignore[arg-type]
        async with pool.get():
            pass


@virtual
async def test_a_cancelled_close_terminates_what_is_left_and_re_raises() -> None:
    """Shutdown under asyncio.timeout."""
    manager = ScriptedManager()
    pool = Pool(manager)
    await pool.open()
    lease = await pool.get()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await pool.close(60)
    assert lease.conn.state == "terminated"
    await turns()
    assert manager.open == []
    books(pool)
    await pool.open()
    await pool.close()


@virtual
async def test_a_closed_pool_may_be_opened_again() -> None:
    """Its counters go on."""
    pool = Pool(ScriptedManager(), min_idle=1)
    for _ in range(3):
        async with pool:
            await hold(pool)
    assert pool.state().statistics.connections_created == 3
    books(pool)


def test_a_pool_may_be_opened_on_another_loop_when_the_first_is_closed_properly() -> None:
    """Module-level pools under a test runner's loop for each test."""
    pool = Pool(ScriptedManager(), min_idle=1)

    async def use() -> None:
        async with pool:
            await hold(pool)

    for _ in range(3):
        run(use)


def test_a_pool_left_open_on_a_dead_loop_is_opened_afresh() -> None:
    """The test before this one forgot to close it."""
    manager = ScriptedManager()
    pool = Pool(manager, min_idle=1)
    leases = []

    async def forgets() -> None:
        await pool.open()
        leases.append(await pool.get())

    async def uses() -> None:
        async with pool:
            assert pool.state().in_use == 0
            await hold(pool)

    run(forgets, strict=False)
    run(uses)
    assert [conn.state for conn in manager.connections].count("terminated") >= 1
    leases[0].release()
    books(pool)


def test_closing_a_pool_of_a_dead_loop_terminates_everything() -> None:
    """From whatever loop."""
    manager = ScriptedManager()
    pool = Pool(manager, min_idle=2)
    run(pool.open, strict=False)
    run(pool.close)
    assert manager.open == []
    closed(pool, pool_closed=2)
    books(pool)


def test_a_release_on_a_closed_loop_terminates_the_connection() -> None:
    """There is no loop left that could close it properly."""
    manager = ScriptedManager()
    pool = Pool(manager)
    leases = []

    async def forgets() -> None:
        await pool.open()
        leases.append(await pool.get())

    run(forgets, strict=False)
    leases[0].release()
    assert manager.connections[0].state == "terminated"
    leases[0].release()
    run(pool.close)
    books(pool)


def test_use_from_another_live_loop_is_refused_before_anything_is_touched() -> None:
    """asyncpg used from another thread's loop crashed the process."""
    manager = ScriptedManager()

    async def main() -> None:
        async with Pool(manager, min_idle=1) as pool:
            lease = await pool.get()
            errors: list[BaseException] = []

            async def elsewhere() -> None:
                for use in (
                    lambda: hold(pool),
                    pool.try_get,
                    pool.open,
                    pool.close,
                    lambda: pool.dedicated_connection().__aenter__(),
                ):
                    try:
                        await use()
                    except WrongEventLoop as error:
                        errors.append(error)
                for act in (lease.release, lease.discard, lease.detach, pool.evict, lambda: pool.resize(max_size=3)):
                    try:
                        act()
                    except WrongEventLoop as error:
                        errors.append(error)
                try:
                    async with lease:
                        pass
                except WrongEventLoop as error:
                    errors.append(error)

            await asyncio.sleep(0.01)  # min_idle is brought up
            before = list(manager.log)
            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            await asyncio.to_thread(thread.join)
            assert len(errors) == 11
            assert manager.log == before
            assert "make one pool for each event loop" in str(errors[0])
            assert pool.state().statistics.gets_started == 1
            lease.release()
            books(pool)

    asyncio.run(main())


def test_release_outside_of_any_loop_is_refused_while_the_loop_lives() -> None:
    """The lease stays held."""
    loop = asyncio.new_event_loop()
    pool = Pool(ScriptedManager())
    loop.run_until_complete(pool.open())

    async def get() -> object:
        return await pool.get()

    lease = loop.run_until_complete(get())
    with pytest.raises(WrongEventLoop, match="outside of any event loop"):
        lease.release()  # type: ignore[attr-defined]
    assert pool.state().in_use == 1
    loop.run_until_complete(pool.close(0))
    loop.close()


def test_a_dropped_open_pool_warns_and_terminates_all() -> None:
    """Timers and tasks do not keep it alive."""
    manager = ScriptedManager()

    async def main() -> None:
        pool = Pool(manager, min_idle=2)
        await pool.open()
        gone = weakref.ref(pool)
        with pytest.warns(ResourceWarning, match="dropped while open"):
            del pool
            gc.collect()
        assert gone() is None
        await turns()

    run(main)
    assert [conn.state for conn in manager.connections] == ["terminated"] * 2


def test_a_pool_dropped_after_its_loop_terminates_all() -> None:
    """At the end of a script that forgot."""
    manager = ScriptedManager()
    pool = Pool(manager, min_idle=2)
    run(pool.open, strict=False)
    with pytest.warns(ResourceWarning, match="dropped while open"):
        del pool
        gc.collect()
    assert [conn.state for conn in manager.connections] == ["terminated"] * 2


def test_a_pool_dropped_in_another_thread_is_ended_in_its_own() -> None:
    """Garbage collection runs anywhere."""
    manager = ScriptedManager()

    async def main() -> None:
        box = [Pool(manager, min_idle=1)]
        await box[0].open()

        def drop() -> None:
            with pytest.warns(ResourceWarning, match="dropped while open"):
                box.clear()
                gc.collect()

        await asyncio.to_thread(drop)
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert [conn.state for conn in manager.connections] == ["terminated"]


def test_the_pool_lives_as_long_as_a_lease_of_it() -> None:
    """Its connection would be terminated under the borrower."""

    async def main() -> None:
        manager = ScriptedManager()
        pool = Pool(manager)
        await pool.open()
        lease = await pool.get()
        del pool
        gc.collect()
        assert lease.conn.state == "open"
        await lease._pool.close(0)

    run(main)


@virtual
async def test_pool_tasks_are_named_and_see_the_context_of_open() -> None:
    """A request's context variables must not leak into connections of others."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[tuple[str, str]] = []

    class Customizer:
        async def on_connect(self, _: object) -> None:
            task = asyncio.current_task()
            assert task is not None
            seen.append((request.get(), task.get_name()))

    async with Pool(ScriptedManager(), customizer=Customizer(), name="orders") as pool:
        request.set("a user's")
        await hold(pool)
    assert seen == [("none", "orders: connect")]


@virtual
async def test_nothing_is_left_after_close() -> None:
    """No task, no timer: virtual time itself would complain of them."""
    hooks = ScriptedCustomizer()
    async with Pool(ScriptedManager(), min_idle=2, leak_threshold=5, customizer=hooks) as pool:
        await asyncio.gather(*(hold(pool, 1) for _ in range(30)))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert asyncio.get_running_loop().timers() == []  # type: ignore[attr-defined]


@virtual
async def test_a_failed_open_tells_waiting_gets_too() -> None:
    """Somebody may ask while the pool is still opening."""
    pool = Pool(ScriptedManager(connect=Delay(1, OSError("down")), is_transient=False), min_idle=1)
    opening = asyncio.create_task(pool.open())
    await turns()
    with pytest.raises((ConnectError, PoolClosed)):
        await pool.get()
    with pytest.raises(OSError, match="down"):
        await opening
    books(pool)


@virtual
async def test_a_pool_that_was_closed_in_an_outage_begins_afresh() -> None:
    """Neither its back-off nor its last error goes over into the next life."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(connect=OSError("down"))
    pool = Pool(manager, error_sink=lambda _: None)
    async with pool:
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=20)
    manager.script(connect=OK)
    async with pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=0)
        assert caught.value.__cause__ is None
        start = loop.time()
        await hold(pool)
        assert loop.time() == start
        books(pool)


@pytest.mark.parametrize(
    "end", ["close", "close at once", "dead loop", "dead loop while opening", "dead loop while closing"]
)
def test_a_pool_that_is_opened_again_does_everything_again_also_under_an_earlier_clock(end: str) -> None:
    """Idle ones are tested and expire, dead ones cast doubt, the reaper looks, a deadlock is found, close has its time."""
    manager = ScriptedManager(without=["reset"])
    pool = Pool(manager, max_size=3, min_idle=1, max_lifetime=5000, lifetime_jitter=0, error_sink=lambda _: None)
    loop = asyncio.get_running_loop

    async def live() -> None:
        manager.script(connect=OK, close=OK)
        await pool.open()
        await asyncio.gather(*(hold(pool, 1) for _ in range(3)))
        tests = len(manager.calls("is_valid"))
        await asyncio.sleep(5)
        await hold(pool)
        assert len(manager.calls("is_valid")) == tests + 1
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(3)))
        lease = await pool.get()
        tests = len(manager.calls("is_valid"))
        lease.conn.broken = True
        lease.release()
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(2)))
        assert len(manager.calls("is_valid")) == tests + 2
        await asyncio.sleep(1000)
        assert pool.state().idle == 1
        before = pool.state().statistics.connections_closed[CloseReason.LIFETIME]
        await asyncio.sleep(5000)
        assert pool.state().statistics.connections_closed[CloseReason.LIFETIME] == before + 1
        async with pool.get(), pool.get(), pool.get():
            start = loop().time()
            with pytest.raises(PoolDeadlock):
                await pool.get()
            assert loop().time() - start == pytest.approx(1)
            start = loop().time()
            with pytest.raises(PoolTimeout):
                await asyncio.create_task(hold(pool))
            assert loop().time() - start == 30
        books(pool)
        await die()

    async def die() -> None:
        if end == "close":
            async with pool.get(), pool.get(), pool.get():
                waiter = asyncio.create_task(hold(pool))
                await asyncio.sleep(0)  # a look for a deadlock is due
                start = loop().time()
                await pool.close(3)
                assert loop().time() - start == 3
            with pytest.raises(PoolClosed):
                await waiter
        elif end == "close at once":
            manager.script(close=NEVER)
            async with pool.get(), pool.get(), pool.get():
                get = asyncio.create_task(hold(pool, timeout=60))
                await asyncio.sleep(1)
                start = loop().time()
                await pool.close(0)
                assert loop().time() - start < 1
            with pytest.raises(PoolClosed):
                await get
        elif end == "dead loop while opening":
            await pool.close()
            manager.script(connect=NEVER)
            for _ in range(2):
                asyncio.ensure_future(pool.open())  # noqa: RUF006
            await turns()
        elif end == "dead loop while closing":
            leases.append(await pool.get())
            for _ in range(2):
                asyncio.ensure_future(pool.close())  # noqa: RUF006
            await turns()

    leases: list[object] = []
    for start in (50_000.0, 0.0, 60_000.0):
        run_until_it_is_dead(live(), start)
    run(pool.close)
    leases.clear()
    books(pool)


def run_until_it_is_dead(main: Coroutine[None, None, None], start: float) -> None:
    """As a program that ends without a last word: nothing is cancelled."""
    loop = VirtualTimeLoop(start=start)
    loop.run_until_complete(main)
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


@virtual
async def test_the_block_that_ends_after_close_began_closes_its_connection() -> None:
    """The warm path is shut with the pool."""
    pool = Pool(ScriptedManager(), max_size=2)
    await pool.open()
    await hold(pool)
    async with pool.get() as conn:
        closing = asyncio.create_task(pool.close(5))
        await asyncio.sleep(1)
    await turns()
    assert closing.done()
    assert conn.state == "closed"
    assert asyncio.get_running_loop().time() == 1
    await closing


@virtual
async def test_closes_that_are_cancelled_again_and_again_do_not_put_off_the_end() -> None:
    """Out of time is out of time, however often it is said."""
    loop = asyncio.get_running_loop()
    pool = Pool(ScriptedManager(without=["terminate"], close=SwallowCancel(9, seconds=5)), min_idle=1)
    await pool.open()
    start = loop.time()
    for _ in range(4):
        closing = asyncio.create_task(pool.close(0))
        await asyncio.sleep(0.1)
        closing.cancel()
    await pool.close(0)
    assert loop.time() - start < 1
    await asyncio.sleep(6)


@virtual
@pytest.mark.parametrize("verb", ["connect", "is_valid", "reset", "close"])
async def test_what_ends_when_it_is_cancelled_is_not_abandoned_by_a_close_that_runs_out_of_time(verb: str) -> None:
    """Abandoned is what neither a cancel nor terminate can end."""
    manager = ScriptedManager()
    pool = Pool(manager, max_size=2)
    await pool.open()
    await hold(pool)
    await asyncio.sleep(5)
    manager.script(**{verb: NEVER})
    if verb == "close":
        pool.evict()
    elif verb == "reset":
        await hold(pool)
    gets = [asyncio.create_task(hold(pool)) for _ in range(2)]
    await asyncio.sleep(1)
    await pool.close(0.2)
    await asyncio.gather(*gets, return_exceptions=True)
    assert pool.state().statistics.connections_abandoned == 0
    manager.check(open=0)
    books(pool)


@virtual
async def test_all_joiners_of_a_cancelled_open_share_one_opening() -> None:
    """The first of them opens, the others join it."""
    manager = ScriptedManager(connect=Delay(2))
    pool = Pool(manager, min_idle=1)
    tasks = [asyncio.create_task(pool.open()) for _ in range(4)]
    await asyncio.sleep(1)
    tasks[0].cancel()
    await asyncio.gather(*tasks[1:])
    assert len(manager.calls("connect")) == 2
    assert pool.state().idle == 1
    await pool.close()
    manager.check(open=0)


def test_a_pool_whose_loop_goes_on_in_another_thread_goes_on_with_it() -> None:
    """A loop belongs to one thread at a time; the pool belongs to the loop."""
    loop = VirtualTimeLoop()
    pool = Pool(ScriptedManager(), max_size=1)

    async def uses() -> None:
        await asyncio.gather(*(hold(pool, 1) for _ in range(3)))
        with pytest.raises(KeyError):
            async with pool.get():
                raise KeyError
        await hold(pool)
        books(pool)

    loop.run_until_complete(pool.open())
    loop.run_until_complete(uses())
    other = threading.Thread(target=loop.run_until_complete, args=[uses()])
    other.start()
    other.join()
    assert pool.state().statistics.gets_started == 10
    loop.run_until_complete(pool.close())
    loop.close()


def test_a_pool_dropped_in_another_thread_after_its_loop_terminates_all() -> None:
    """There is no loop any more that could be asked to do it."""
    manager = ScriptedManager()
    pools = [Pool(manager, min_idle=1)]
    run(pools[0].open, strict=False)
    warned: list[Warning | str] = []

    def drops() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pools.clear()
            gc.collect()
        warned.extend(warning.message for warning in caught)

    other = threading.Thread(target=drops)
    other.start()
    other.join()
    assert any("dropped while open" in str(message) for message in warned)
    assert [conn.state for conn in manager.connections] == ["terminated"]


def test_a_forked_pool_of_a_dead_loop_is_not_buried_by_the_child() -> None:
    """Terminating would write to the sockets of the parent."""
    manager = ScriptedManager()
    pool = Pool(manager, min_idle=1)
    run(pool.open, strict=False)
    pool._shell.life.mark_forked()
    for use in (pool.open, pool.close):
        with pytest.raises(ForkedPool):
            run(use)
    assert manager.calls("terminate") == []
    pool._shell.life.forked = False
    run(pool.close)


@pytest.mark.parametrize("what", ["open", "close", "get", "try_get", "dedicated_connection"])
def test_what_died_with_its_loop_does_not_touch_the_pools_next_life_when_it_is_thrown_away(what: str) -> None:
    """Its coroutine is garbage, and its ``except`` and ``finally`` run whenever that is collected."""
    manager = ScriptedManager()
    pool = Pool(manager, max_size=1, min_idle=1)
    left: list[Any] = []

    async def dies() -> None:
        if what == "open":
            manager.script(connect=NEVER)
            coro: Any = pool.open()
        else:
            await pool.open()
            if what == "try_get":
                await asyncio.sleep(5)
                manager.script(is_valid=NEVER)
                coro = pool.try_get()
            elif what == "dedicated_connection":
                manager.script(connect=NEVER)
                coro = pool.dedicated_connection().__aenter__()
            else:
                left.append(await pool.get())
                coro = pool.close() if what == "close" else pool.get().__aenter__()
        left.append(coro)
        coro.send(None)
        await turns()

    async def lives() -> None:
        manager.script(connect=OK, is_valid=OK)
        await pool.open()
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await asyncio.sleep(1)
        if what != "close":
            left[-1].close()
        assert pool.state().waiting == pool.state().in_use == 1
        lease.release()
        await waiter
        async with pool.get() as conn:
            closing = asyncio.create_task(pool.close(10))
            await asyncio.sleep(1)
            left[-1].close()
            await asyncio.sleep(1)
            assert conn.state == "open"
        await closing

    run_until_it_is_dead(dies(), 0)
    run(lives)
    books(pool)


@virtual
async def test_opening_connects_no_more_than_max_connecting_at_a_time() -> None:
    """A hundred programs that start together must not stampede the server."""
    manager = ScriptedManager(connect=Delay(1))
    async with Pool(manager, max_size=10, min_idle=8, max_connecting=3) as pool:
        assert manager.peak["connect"] == 3
        assert asyncio.get_running_loop().time() == 3
        assert pool.state().idle == 8
        books(pool)
