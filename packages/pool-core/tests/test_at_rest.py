"""Whoever is asked or told, and calls back into the pool or ends the program, finds the books in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool, PoolClosed, PoolError, PoolTimeout, QueueStrategy
from pool_core.testing import NEVER, OK, Delay, ScriptedManager, VirtualTimeLoop

from .helpers import books, hold, interruptions, turns, virtual

if TYPE_CHECKING:
    from collections.abc import Callable


def shut(pool: Pool[Any]) -> None:
    """Close a pool at once, from where nothing can be awaited."""
    closing = pool.close(0)
    with contextlib.suppress(StopIteration):
        closing.send(None)
        closing.close()


class Asks(ScriptedManager):
    """A manager that does something else, once, when it is asked a question."""

    verb = ""
    act: Callable[[], Any] | None = None
    clean = False
    slow_reset = False

    def asked(self, verb: str) -> None:
        if self.act is not None and verb == self.verb:
            act, self.act = self.act, None
            act()

    def has_broken(self, conn: Any, /) -> bool:
        broken = super().has_broken(conn)
        self.asked("has_broken")
        return broken

    def is_clean(self, conn: Any, /) -> bool:
        self.asked("is_clean")
        return self.clean

    def reset(self, conn: Any, /) -> Any:
        self.asked("reset")
        return self._wipe(conn) if conn.dirty or self.slow_reset else None

    async def _wipe(self, conn: Any) -> None:
        await asyncio.sleep(1 if self.slow_reset else 0)
        conn.dirty = False

    async def is_valid(self, conn: Any, /) -> bool:
        self.asked("is_valid")
        return await super().is_valid(conn)


@pytest.mark.parametrize("listeners", [[], [lambda _: None]], ids=["warm", "observed"])
@pytest.mark.parametrize("act", ["close", "evict"])
@pytest.mark.parametrize("dirty", [False, True])
@pytest.mark.parametrize("waiting", [0, 1])
@pytest.mark.parametrize("verb", ["has_broken", "is_clean", "is_clean: yes", "reset"])
@virtual
async def test_a_question_at_the_return_may_close_or_evict(
    verb: str, waiting: int, dirty: bool, act: str, listeners: list[Any]
) -> None:
    """A connection that is gone when the hook returns is neither handed out nor kept."""
    manager = Asks()
    manager.verb, manager.clean = verb.partition(":")[0], verb.endswith("yes")
    pool = Pool(manager, max_size=1, listeners=listeners)
    await pool.open()
    await hold(pool)
    lease = pool.get()
    conn = await lease.__aenter__()
    conn.dirty = dirty
    gets = [asyncio.create_task(hold(pool)) for _ in range(waiting)]
    await turns()
    manager.act = (lambda: shut(pool)) if act == "close" else pool.evict
    await lease.__aexit__(None, None, None)
    await asyncio.gather(*gets, return_exceptions=True)
    await asyncio.sleep(1)
    books(pool)
    assert conn.state != "open"
    reasons = {reason.value for reason, count in pool.state().statistics.connections_closed.items() if count}
    assert reasons == {"pool_closed" if act == "close" else "evicted"}
    await pool.open()
    async with pool.get(1) as other:
        assert other is not conn
    await pool.close()
    assert not manager.faults


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("age", [0, 60])
@virtual
async def test_a_question_at_the_get_may_close(age: float, broken: bool) -> None:
    """The get ends with PoolClosed, or with a connection that close() has terminated: never with a KeyError."""
    manager = Asks()
    manager.verb = "has_broken"
    pool = Pool(manager, max_size=2)
    await pool.open()
    await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))
    await asyncio.sleep(age)
    for listen in (False, True):
        if listen:
            await pool.close()
            await pool.open()
            await hold(pool)
            pool.add_listener(lambda _: None)
        manager.act = lambda: shut(pool)
        for slot in pool._state.slots:
            slot.conn.broken = broken
        with contextlib.suppress(PoolClosed):
            async with pool.get():
                pass
        books(pool)
        assert pool.state().in_use == 0


@pytest.mark.parametrize("verb", ["is_valid", "reset"])
@virtual
async def test_the_question_after_a_validation_or_reset_may_close(verb: str) -> None:
    """has_broken is asked once more when the server has answered."""
    manager = Asks(is_valid=Delay(1))
    manager.slow_reset = verb == "reset"
    pool = Pool(manager, max_size=1)
    await pool.open()
    async with pool.get() as conn:
        conn.dirty = True
    if verb == "is_valid":
        await asyncio.sleep(60)
    getting = asyncio.create_task(hold(pool))
    await asyncio.sleep(0.5)
    manager.verb = "has_broken"
    manager.act = lambda: shut(pool)
    with contextlib.suppress(PoolError):
        await getting
    await asyncio.sleep(2)
    await pool.close()
    books(pool)


@virtual
async def test_a_listener_that_closes_the_pool_at_checked_out_makes_the_get_fail() -> None:
    """No get returns a connection that close() has terminated."""
    pool: Pool[Any]

    def listener(event: Any) -> None:
        if type(event).__name__ == "CheckedOut":
            shut(pool)

    pool = Pool(ScriptedManager(), listeners=[listener])
    await pool.open()
    with pytest.raises(PoolClosed):
        await pool.get()
    books(pool)


@virtual
async def test_a_sink_that_evicts_while_a_return_is_under_way_is_obeyed() -> None:
    """is_clean raises, the sink hears of it, and evicts."""
    manager = Asks()
    manager.verb = "is_clean"

    def fails() -> None:
        raise ValueError("bug")

    pool: Pool[Any] = Pool(manager, max_size=1, error_sink=lambda _: pool.evict())
    async with pool:
        await hold(pool)
        async with pool.get() as conn:
            manager.act = fails
        await turns()
        assert conn.state != "open"
        books(pool)


# -- KeyboardInterrupt and SystemExit


def stops() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("verb", ["has_broken", "is_clean", "reset"])
@pytest.mark.parametrize("age", [0, 60])
@pytest.mark.parametrize("way", ["get", "try_get"])
def test_an_interrupt_in_a_question_loses_no_connection(way: str, age: float, verb: str) -> None:
    """It leaves the pool once, where nothing is half done."""
    manager = Asks()
    manager.verb = verb
    seen = []

    async def main() -> None:
        async with Pool(manager, max_size=1, error_sink=lambda _: None) as pool:
            await hold(pool)
            await asyncio.sleep(age)
            manager.act = stops
            try:
                if way == "get":
                    async with pool.get():
                        pass
                else:
                    lease = await pool.try_get()
                    if lease is not None:
                        lease.release()
            except KeyboardInterrupt:
                seen.append(1)
            await asyncio.sleep(1)
            manager.act = None
            assert pool.state().in_use == pool.state().waiting == 0
            await hold(pool)
            books(pool)

    assert interruptions(main, KeyboardInterrupt, most=10) + len(seen) == 1


def test_an_interrupt_told_while_a_get_queues_leaves_nobody_in_the_queue() -> None:
    """The connection that is found broken is closed, and a listener hears of it."""
    manager = ScriptedManager()
    once = [KeyboardInterrupt()]
    seen = []

    def listener(event: Any) -> None:
        if once and type(event).__name__ == "Closed":
            raise once.pop()

    async def main() -> None:
        async with Pool(manager, max_size=1, listeners=[listener]) as pool:
            for way in (pool.get, pool.try_get):
                await hold(pool)
                await asyncio.sleep(60)
                once[:] = [KeyboardInterrupt()]
                pool._state.idle.stale.extend(pool._state.fresh)
                pool._state.fresh.clear()
                pool._state.idle.stale[0].conn.broken = True
                try:
                    lease = await way()
                    if lease is not None:
                        lease.release()
                except KeyboardInterrupt:
                    seen.append(1)
                await asyncio.sleep(1)
                assert pool.state().waiting == pool.state().in_use == 0
                books(pool)

    assert interruptions(main, KeyboardInterrupt, most=10) + len(seen) == 2


def test_an_interrupt_out_of_an_eager_task_ends_its_call() -> None:
    """The first step of such a task runs within create_task."""

    async def main() -> None:
        manager = ScriptedManager()
        async with Pool(manager, max_size=1, error_sink=lambda _: None) as pool:
            loop = asyncio.get_running_loop()
            create = loop.create_task
            once = [1]

            def eager(coro: Any, **options: Any) -> Any:
                if once and options.get("name") == "pool: connect":
                    once.pop()
                    coro.close()
                    raise KeyboardInterrupt
                return create(coro, **options)

            loop.create_task = eager  # type: ignore[method-assign]
            try:
                await hold(pool)
            finally:
                loop.create_task = create  # type: ignore[method-assign]
            books(pool)

    assert interruptions(main, KeyboardInterrupt, most=10) == 1


class Raises(logging.Filter):
    """A filter of the program's that fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def filter(self, record: logging.LogRecord) -> bool:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()], ids=repr)
def test_a_log_that_raises_breaks_nothing(error: BaseException) -> None:
    """A connect that swallows its cancels is abandoned, and the log says so, or fails to."""
    from pool_core.testing import SwallowCancel

    fails = Raises(error)
    logger = logging.getLogger("pool_core.pool")

    async def main() -> None:
        manager = ScriptedManager(connect=SwallowCancel(99))
        pool = Pool(manager, max_size=1, create_timeout=1)
        await pool.open()
        with pytest.raises(PoolTimeout):
            await pool.get(5)
        assert pool.state().statistics.connections_abandoned >= 1
        assert pool.state().statistics.hook_errors >= 1
        await pool.close(1)
        books(pool)

    logger.addFilter(fails)
    try:
        interruptions(main, KeyboardInterrupt, most=10)
    finally:
        logger.removeFilter(fails)


# -- warnings that are errors


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_lease_is_reclaimed_though_its_warning_is_an_error() -> None:
    """pytest's filterwarnings = error: the warning is raised in a finalizer, and printed."""

    @virtual
    async def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            async with Pool(ScriptedManager(), max_size=1) as pool:
                lease = await pool.get()
                del lease
                gc.collect()
                await asyncio.sleep(0.1)
                await hold(pool)
                books(pool)

    run()


# -- leases


@virtual
async def test_a_lease_is_acquired_once() -> None:
    """Two tasks that enter one lease would lose a connection, or share one."""
    async with Pool(ScriptedManager(connect=Delay(1)), max_size=2) as pool:
        lease = pool.get()

        async def enter() -> None:
            async with lease:
                await asyncio.sleep(1)

        ends = await asyncio.gather(enter(), enter(), return_exceptions=True)
        assert [type(end) for end in ends].count(PoolError) == 1
        other = pool.get()
        async with other:
            with pytest.raises(PoolError, match="acquired already"):
                async with other:
                    pass
            with pytest.raises(PoolError, match="acquired already"):
                await other
        waiting = pool.get()
        task = asyncio.create_task(waiting.__aenter__())
        books(pool)
        await task
        await waiting.__aexit__(None, None, None)
        books(pool)


@virtual
async def test_a_lease_whose_get_failed_may_be_entered_again() -> None:
    """Nothing has been acquired."""
    manager = ScriptedManager(connect=Delay(1))
    async with Pool(manager, max_size=1) as pool:
        lease = pool.get(0.5)
        for _ in range(2):
            with pytest.raises(PoolTimeout):
                await lease
            manager.script(connect=NEVER)
            with pytest.raises(PoolError, match="no connection yet"):
                _ = lease.conn
            pool.evict()
            await asyncio.sleep(1)
        manager.script(connect=OK)


@virtual
async def test_a_dedicated_connection_is_opened_once() -> None:
    """The second would never be closed."""
    async with Pool(ScriptedManager()) as pool:
        dedicated = pool.dedicated_connection()
        async with dedicated:
            with pytest.raises(PoolError, match="opened already"):
                await dedicated
        await turns()


@virtual
async def test_extensions_of_a_terminated_connection_do_not_reach_the_next_life() -> None:
    """close() terminated it under its borrower, and the pool is open again."""
    pool = Pool(ScriptedManager(), max_size=1)
    await pool.open()
    lease = await pool.get()
    await pool.close(0)
    await pool.open()
    lease.extensions["mine"] = 1
    books(pool)
    lease.release()
    await pool.close()


@virtual
async def test_a_guarded_connection_is_as_true_as_its_own() -> None:
    """``if conn:`` of a connection without __bool__."""
    async with Pool(ScriptedManager(), guard=True) as pool:
        async with pool.get() as conn:
            assert bool(conn) is True


# -- others


@virtual
async def test_hung_validations_do_not_stand_between_a_get_and_a_healthy_connection() -> None:
    """Three of six idle ones are silently dead, and the pool is full."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=6, max_connecting=3, validation_timeout=30, error_sink=lambda _: None) as pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(6)))
        await asyncio.sleep(60)
        manager.script(is_valid=[NEVER, NEVER, NEVER, OK, OK, OK])
        for _ in range(3):
            with contextlib.suppress(PoolTimeout):
                await hold_within(pool, 0.05)
        await hold_within(pool, 2)
        books(pool)


async def hold_within(pool: Pool[Any], seconds: float) -> None:
    async with pool.get(seconds):
        pass


@virtual
async def test_under_fifo_a_hung_validation_does_not_stand_before_a_fresh_connection() -> None:
    """The oldest one hangs; the other was used just now."""
    manager = ScriptedManager()
    options: dict[str, Any] = {"queue_strategy": QueueStrategy.FIFO, "max_size": 2, "validation_timeout": 20}
    async with Pool(manager, error_sink=lambda _: None, **options) as pool:
        await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))
        await asyncio.sleep(60)
        await hold(pool)
        manager.script(is_valid=NEVER)
        await hold_within(pool, 3)
        books(pool)


@virtual
async def test_a_refused_connect_without_retry_is_not_repeated_at_once_for_a_try_get() -> None:
    """The try_get waits for a validation, and no connect is begun for it."""
    manager = ScriptedManager()
    options: dict[str, Any] = {"retry_connection": False, "min_idle": 2, "max_size": 5, "error_sink": lambda _: None}
    async with Pool(manager, **options) as pool:
        await asyncio.sleep(60)
        manager.script(is_valid=Delay(2), connect=OSError("down"))
        trying = asyncio.create_task(pool.try_get())
        await turns()
        pool.evict(lambda _: True)
        await trying
        assert len(manager.calls("connect")) < 20
        manager.script(connect=OK)
        books(pool)


@virtual
async def test_an_error_of_long_ago_is_not_the_cause_of_a_time_out_in_a_full_pool() -> None:
    """The get queued; nothing was to be connected."""
    manager = ScriptedManager(connect=[OK, OSError("long ago")])
    async with Pool(manager, max_size=2, error_sink=lambda _: None) as pool:
        lease = await pool.get()
        with pytest.raises(PoolTimeout):
            await pool.get(0.001)
        pool.resize(max_size=1)
        await asyncio.sleep(3600)
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(1)
        assert (caught.value.phase, caught.value.__cause__) == ("queue", None)
        lease.release()


@virtual
async def test_an_error_of_on_checkout_after_its_get_was_cancelled_reaches_the_sink() -> None:
    """Nobody else hears of it."""
    errors: list[BaseException] = []

    class Hooks:
        async def on_checkout(self, conn: Any) -> None:
            try:
                await asyncio.sleep(5)
            finally:
                raise KeyError("in the clean-up")

    async with Pool(ScriptedManager(), customizer=Hooks(), error_sink=errors.append) as pool:
        getting = asyncio.create_task(hold(pool))
        await asyncio.sleep(1)
        getting.cancel()
        await asyncio.gather(getting, return_exceptions=True)
        await asyncio.sleep(1)
        assert any(isinstance(error, KeyError) for error in errors)
        assert pool.state().statistics.hook_errors >= 1


@virtual
async def test_what_a_driver_makes_of_a_cancel_is_the_cause_of_the_time_out() -> None:
    """It may say where it was stuck."""

    class Stuck(ScriptedManager):
        async def connect(self) -> Any:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                raise OSError("stuck in the TLS handshake") from None

    errors: list[BaseException] = []
    async with Pool(Stuck(), create_timeout=1, error_sink=errors.append) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(2)
        cause = caught.value.__cause__
        assert isinstance(cause, TimeoutError)
        assert str(cause.__cause__) == "stuck in the TLS handshake"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_in_the_child_of_a_fork_the_inherited_timer_does_nothing() -> None:
    """Prefork servers go on with the loop that they inherit."""
    manager = ScriptedManager()

    async def main() -> None:
        async with Pool(manager, min_idle=1, idle_timeout=1, reap_interval=1) as pool:
            await hold(pool)
            pool._shell.life.mark_forked()
            before = len(manager.log)
            await asyncio.sleep(60)
            assert len(manager.log) == before
            pool._shell.life.forked = False

    loop = VirtualTimeLoop()
    loop.run_until_complete(main())
    loop.close()


# -- blocks and lives


@virtual
async def test_a_block_ends_only_the_life_that_it_began() -> None:
    """Somebody closed the pool under a block, and somebody else has opened it again."""
    pool = Pool(ScriptedManager())
    go_on = asyncio.Event()

    async def first() -> None:
        async with pool:
            await go_on.wait()

    async def second() -> None:
        async with pool:
            go_on.set()
            await asyncio.sleep(1)
            await hold(pool)

    one = asyncio.create_task(first())
    await turns()
    await pool.close()
    await asyncio.gather(one, second())
    assert "closed" in repr(pool)
    books(pool)


def test_a_block_of_a_dead_loop_that_is_thrown_away_ends_nothing() -> None:
    """Its coroutine is collected while the pool is open on another loop."""
    pool = Pool(ScriptedManager())

    async def stays() -> None:
        async with pool:
            await asyncio.sleep(1000)

    loop = asyncio.new_event_loop()
    task = loop.create_task(stays())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()

    async def uses() -> None:
        async with pool:
            task.get_coro().close()
            await hold(pool)

    asyncio.run(uses())
    assert "closed" in repr(pool)


@virtual
async def test_a_block_may_be_ended_by_another_task() -> None:
    """AsyncExitStack.pop_all, an async fixture."""
    pool = Pool(ScriptedManager())
    await asyncio.create_task(pool.__aenter__())
    await hold(pool)
    await asyncio.create_task(pool.__aexit__(None, None, None))
    assert "closed" in repr(pool)
    await pool.__aexit__(None, None, None)  # once too often: nothing to end


@virtual
async def test_a_pool_that_somebody_else_opened_too_outlives_its_cancelled_opener() -> None:
    """open(wait=False) had returned well."""
    pool = Pool(ScriptedManager(connect=Delay(5)), min_idle=1)
    opening = asyncio.create_task(pool.open())
    await turns()
    await pool.open(wait=False)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await hold(pool)
    await pool.close()
    books(pool)


def test_a_dirty_block_that_ends_after_its_loop_is_closed_terminates_its_connection() -> None:
    """It swallowed the GeneratorExit; nothing can be awaited any more."""
    manager = ScriptedManager()
    pool = Pool(manager, max_size=1)

    async def ends() -> None:
        with contextlib.suppress(GeneratorExit):
            async with pool.get() as conn:
                conn.dirty = True
                try:
                    await asyncio.sleep(1000)
                except GeneratorExit:
                    pass

    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.open())
    task = loop.create_task(ends())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    with contextlib.suppress(RuntimeError):
        task.get_coro().close()

    async def uses() -> None:
        async with pool:
            await hold(pool)

    asyncio.run(uses())
    assert manager.connections[0].state == "terminated"
