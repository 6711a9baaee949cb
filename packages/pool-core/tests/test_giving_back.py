"""Giving back: resets, retirement and its reasons, hooks, min_idle and the clock."""

from __future__ import annotations

import asyncio
import logging
import math

import pytest
from pool_core import CloseReason, Pool, PoolError
from pool_core.testing import NEVER, OK, Delay, ScriptedCustomizer, ScriptedManager, SwallowCancel

from .helpers import books, closed, hold, turns, virtual


def quiet(_: BaseException) -> None:
    """An error sink for tests in which errors are expected."""


@virtual
async def test_reset_runs_after_the_borrower_has_gone_on() -> None:
    """Releasing is bookkeeping: __aexit__ awaits nothing (anyio re-delivers a cancel at every await)."""
    manager = ScriptedManager(reset=Delay(1))
    async with Pool(manager, max_size=1) as pool:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await hold(pool)
        assert loop.time() == start
        assert pool.state().resetting == 1
        async with pool.get():
            assert loop.time() == start + 1
        books(pool)


@virtual
async def test_a_reset_that_has_nothing_to_do_costs_no_task() -> None:
    """None means: straight back."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1) as pool:
        await hold(pool)
        assert pool.state().idle == 1
        assert len(manager.calls("reset")) == 1
        async with pool.get() as conn:
            conn.dirty = True
        assert pool.state().resetting == 1
        await turns()
        assert pool.state().idle == 1
        books(pool)


@virtual
async def test_a_reset_may_give_anything_that_can_be_awaited() -> None:
    """A future, say: it need not be a coroutine."""

    class Manager(ScriptedManager):
        def reset(self, conn: object) -> asyncio.Future[None]:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(1, future.set_result, None)
            return future

    async with Pool(Manager(), max_size=1) as pool:
        await hold(pool)
        assert pool.state().resetting == 1
        await asyncio.sleep(2)
        assert pool.state().idle == 1
        books(pool)


@virtual
async def test_a_manager_without_reset_gets_its_connection_straight_back() -> None:
    """The method is optional."""
    async with Pool(ScriptedManager(without=["reset"]), max_size=1) as pool:
        await hold(pool)
        assert pool.state().idle == 1


@pytest.mark.parametrize(
    ("reset", "end"),
    [
        (RuntimeError("no"), "closed"),
        (Delay(1, RuntimeError("no")), "closed"),
        (NEVER, "terminated"),
        (SwallowCancel(1, NEVER), "terminated"),
        (SwallowCancel(2, OK), "terminated"),
        (SwallowCancel(3, OK), "terminated"),
    ],
    ids=["raises at once", "raises", "never", "swallows one", "swallows two", "swallows three"],
)
@virtual
async def test_a_reset_that_fails_in_any_way_closes_the_connection(reset: object, end: str) -> None:
    """What is left in it is unknown, and the waiter behind gets another one."""
    manager = ScriptedManager(reset=[reset])
    errors: list[BaseException] = []
    async with Pool(manager, max_size=1, reset_timeout=2, error_sink=errors.append) as pool:
        await hold(pool)
        await hold(pool)
        closed(pool, reset_failed=1)
        assert manager.connections[0].state == end
        assert len(errors) == 1
        books(pool)


@virtual
async def test_a_reset_that_raises_before_it_can_be_awaited_closes_the_connection() -> None:
    """A synchronous mistake in an adapter, on the warm path and off it."""

    class Manager(ScriptedManager):
        def reset(self, conn: object) -> None:
            raise KeyError("bug")

    async with Pool(Manager(), max_size=1, error_sink=quiet) as pool:
        await hold(pool)
        lease = await pool.get()
        lease.release()
        closed(pool, reset_failed=2)
        books(pool)


@virtual
async def test_a_connection_that_breaks_during_its_reset_is_closed_as_broken() -> None:
    """has_broken is asked again."""
    manager = ScriptedManager(reset=Delay(1))
    async with Pool(manager, max_size=1) as pool:
        conn = await hold(pool)
        conn.broken = True
        await asyncio.sleep(2)
        closed(pool, broken=1)
        books(pool)


@virtual
async def test_a_connection_that_is_evicted_during_its_reset_or_test_goes_afterwards() -> None:
    """It is marked wherever it is."""
    manager = ScriptedManager(reset=Delay(1), is_valid=Delay(1))
    async with Pool(manager, max_size=1) as pool:
        await hold(pool)
        assert pool.evict() == 1
        await asyncio.sleep(5)
        await hold(pool)
        await asyncio.sleep(5)
        test = asyncio.create_task(hold(pool))
        await turns()
        assert pool.evict() == 1
        await test
        closed(pool, evicted=2)
        books(pool)


@virtual
async def test_a_lifetime_is_exact_for_idle_ones_and_ends_on_return_for_lent_ones() -> None:
    """One timer serves the earliest one. A connection that expires in use is closed on return, without the reaper."""
    async with Pool(ScriptedManager(), max_size=2, max_lifetime=100, lifetime_jitter=0) as pool:
        lease = await pool.get()
        await hold(pool)
        await asyncio.sleep(99)
        assert pool.state().idle == 1
        await asyncio.sleep(1.001)
        assert (pool.state().idle, pool.state().in_use) == (0, 1)
        lease.release()
        closed(pool, lifetime=2)
        books(pool)


@virtual
async def test_lifetimes_are_spread_by_jitter_at_birth() -> None:
    """sqlx #2854: all expire together."""
    async with Pool(ScriptedManager(), max_size=20, max_lifetime=100, lifetime_jitter=0.5) as pool:
        await asyncio.gather(*(hold(pool, 1) for _ in range(20)))
        lifetimes = [slot.expires_at - slot.born for slot in pool._state.slots]
        assert all(50 <= lifetime <= 100 for lifetime in lifetimes)
        assert max(lifetimes) - min(lifetimes) > 5


@virtual
async def test_without_lifetime_and_idle_timeout_connections_stay() -> None:
    """None means never, and no timer runs."""
    async with Pool(ScriptedManager(), max_lifetime=None, idle_timeout=None) as pool:
        await hold(pool)
        await asyncio.sleep(100_000)
        assert pool.state().idle == 1


@virtual
async def test_idle_connections_are_reaped_and_lent_ones_are_not() -> None:
    """bb8: the timeouts close four idle ones, the fifth after its return."""
    async with Pool(ScriptedManager(), max_size=5, idle_timeout=60, reap_interval=10) as pool:
        leases = [await pool.get() for _ in range(5)]
        for lease in leases[1:]:
            lease.release()
        await asyncio.sleep(75)
        assert (pool.state().idle, pool.state().in_use) == (0, 1)
        leases[0].release()
        await asyncio.sleep(75)
        closed(pool, idle=5)
        books(pool)


@virtual
async def test_lifo_lets_the_unused_ones_be_reaped_under_a_low_load() -> None:
    """r2d2: one stays hot, four go."""
    async with Pool(ScriptedManager(), max_size=5, idle_timeout=60, reap_interval=10) as pool:
        await asyncio.gather(*(hold(pool, 1) for _ in range(5)))
        for _ in range(20):
            await asyncio.sleep(5)
            await hold(pool)
        assert pool.state().idle == 1
        closed(pool, idle=4)


@virtual
async def test_idle_timeout_respects_min_idle_and_max_lifetime_does_not() -> None:
    """bb8 #123: the reaper undercut min_idle and churned, though its doc says otherwise."""
    options = {"min_idle": 2, "max_size": 5, "reap_interval": 10.0}
    async with Pool(ScriptedManager(), idle_timeout=60, max_lifetime=None, **options) as pool:  # type: ignore[arg-type]
        await asyncio.gather(*(hold(pool, 1) for _ in range(5)))
        await asyncio.sleep(1000)
        assert pool.state().idle == 2
        closed(pool, idle=3)
    async with Pool(ScriptedManager(), max_lifetime=60, idle_timeout=None, **options) as pool:  # type: ignore[arg-type]
        await asyncio.sleep(100)
        assert pool.state().statistics.connections_created == 4
        closed(pool, lifetime=2)
        books(pool)


@virtual
async def test_min_idle_is_brought_up_behind_every_get() -> None:
    """bb8: 2/2, take 3, idle 2 of 5, return, 5/5."""
    async with Pool(ScriptedManager(), min_idle=2, max_size=5) as pool:
        leases = [await pool.get() for _ in range(3)]
        await turns(20)
        assert (pool.state().idle, pool.state().in_use) == (2, 3)
        for lease in leases:
            lease.release()
        assert pool.state().idle == 5
        books(pool)


@virtual
async def test_max_uses_retires_a_connection_after_so_many_checkouts() -> None:
    """For servers that leak memory by connection."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, max_uses=3) as pool:
        for _ in range(9):
            await hold(pool)
        closed(pool, max_uses=3)
        assert len(manager.connections) == 3
        books(pool)


@virtual
async def test_the_first_matching_reason_counts() -> None:
    """Broken before evicted before discarded before lifetime before max_uses before resized."""
    async with Pool(
        ScriptedManager(), max_size=6, max_uses=2, max_lifetime=100, lifetime_jitter=0, discard_on_exception=True
    ) as pool:
        leases = [await pool.get() for _ in range(6)]
        for lease in leases[:5]:
            lease.release()
        leases[:5] = [await pool.get() for _ in range(5)]
        pool.resize(max_size=1)
        await asyncio.sleep(50)
        leases[0].conn.broken = True
        chosen = {leases[0].conn, leases[1].conn}
        assert pool.evict(chosen.__contains__) == 2
        leases[0].discard()
        leases[1].discard()
        leases[2].discard()
        leases[3].release()
        leases[5].release()
        await asyncio.sleep(51)
        leases[4].release()
        closed(pool, broken=1, evicted=1, discarded=1, max_uses=1, resized=1, lifetime=1)
        books(pool)


@virtual
async def test_an_exception_costs_the_connection_under_discard_on_exception() -> None:
    """diesel's rule, for with-blocks, BaseException included; release() in an except block only makes suspect."""
    async with Pool(ScriptedManager(), discard_on_exception=True) as pool:
        for error in (KeyError(), KeyboardInterrupt()):
            with pytest.raises(type(error)):
                async with pool.get():
                    raise error
        closed(pool, discarded=2)
        lease = await pool.get()
        try:
            raise KeyError
        except KeyError:
            lease.release()
        closed(pool, discarded=2)
        books(pool)


@virtual
async def test_closing_connections_count_until_they_are_closed() -> None:
    """pgx #2425: closing connections pile up past the server's limit."""
    manager = ScriptedManager(close=Delay(2))
    async with Pool(manager, max_size=2) as pool:
        leases = [await pool.get() for _ in range(2)]
        for lease in leases:
            lease.discard()
        assert pool.state().closing == 2
        loop = asyncio.get_running_loop()
        start = loop.time()
        await hold(pool)
        assert loop.time() - start == 2
        assert manager.peak["connect"] <= 2
        books(pool)


@pytest.mark.parametrize("terminates", [True, False])
@virtual
async def test_a_close_that_hangs_is_terminated_or_abandoned_and_its_place_freed(*, terminates: bool) -> None:
    """close_timeout, then cancel, then terminate."""
    manager = ScriptedManager(close=[NEVER], without=[] if terminates else ["terminate"])
    errors: list[BaseException] = []
    async with Pool(manager, max_size=1, close_timeout=3, error_sink=errors.append) as pool:
        (await pool.get()).discard()
        loop = asyncio.get_running_loop()
        start = loop.time()
        await hold(pool)
        assert 3 <= loop.time() - start <= 3.5
        assert manager.connections[0].state == ("terminated" if terminates else "closing")
        assert pool.state().statistics.connections_abandoned == (0 if terminates else 1)
        assert "close_timeout=3" in str(errors[0])
        books(pool)


@virtual
async def test_a_close_that_raises_is_reported_and_terminated() -> None:
    """An error on the way out hurts nobody."""
    errors: list[BaseException] = []
    manager = ScriptedManager(close=[OSError("reset by peer")])
    async with Pool(manager, error_sink=errors.append) as pool:
        (await pool.get()).discard()
        await turns()
        assert manager.connections[0].state == "terminated"
        assert [str(error) for error in errors] == ["reset by peer"]
        books(pool)


@virtual
async def test_a_customizer_runs_once_at_each_end_of_a_connections_life() -> None:
    """r2d2's CustomizeConnection; on_connect once per connection."""
    hooks = ScriptedCustomizer()
    async with Pool(ScriptedManager(), max_size=1, customizer=hooks) as pool:
        for _ in range(5):
            await hold(pool)
        (await pool.get()).discard()
        await hold(pool)
    assert [call.verb for call in hooks.log] == ["on_connect", "on_close", "on_connect", "on_close"]


@virtual
async def test_on_close_runs_on_every_removal_but_for_detached_and_leaked_ones() -> None:
    """Also when the connection had to be terminated."""
    hooks = ScriptedCustomizer()
    manager = ScriptedManager(is_valid=NEVER)
    async with Pool(manager, max_size=1, customizer=hooks, validation_timeout=1, error_sink=quiet) as pool:
        await hold(pool)
        await asyncio.sleep(5)
        await hold(pool)
        assert [call.verb for call in hooks.log].count("on_close") == 1
        detached = (await pool.get()).detach()
        books(pool)
    assert [call.verb for call in hooks.log].count("on_close") == 1
    await manager.close(detached)


@virtual
async def test_on_connect_failing_is_a_failed_connect() -> None:
    """It discards and retries; its time counts within create_timeout."""
    hooks = ScriptedCustomizer(on_connect=[OSError("no such role"), NEVER, OK])
    errors: list[BaseException] = []
    manager = ScriptedManager(connect=Delay(1))
    async with Pool(manager, customizer=hooks, create_timeout=2, error_sink=errors.append) as pool:
        await hold(pool)
        assert [str(error) for error in errors] == ["no such role", "connect took longer than create_timeout=2 s"]
        assert [conn.state for conn in manager.connections] == ["terminated", "terminated", "open"]
        assert pool.state().statistics.connections_created == 1
        books(pool)


@virtual
async def test_on_close_failing_is_counted_and_the_connection_is_closed_all_the_same() -> None:
    """No hook can break the pool."""
    hooks = ScriptedCustomizer(on_close=[OSError("no"), NEVER])
    manager = ScriptedManager()
    async with Pool(manager, customizer=hooks, close_timeout=1, error_sink=quiet) as pool:
        for _ in range(2):
            (await pool.get()).discard()
            await asyncio.sleep(3)
        assert [conn.state for conn in manager.connections] == ["closed", "terminated"]
        assert pool.state().statistics.hook_errors == 1
        books(pool)


@virtual
async def test_a_customizer_with_one_hook_is_enough() -> None:
    """Either may be left out."""

    class OnlyRelease:
        released = 0

        async def on_close(self, _: object) -> None:
            self.released += 1

    hooks = OnlyRelease()
    async with Pool(ScriptedManager(), customizer=hooks) as pool:
        await hold(pool)
    assert hooks.released == 1


@virtual
async def test_listeners_and_sinks_that_raise_break_nothing_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Each of them on every call."""
    caplog.set_level(logging.CRITICAL)

    def bad(_: object) -> None:
        raise RuntimeError("bug")

    manager = ScriptedManager(connect=[OSError("down")], reset=[OK, Delay(0, OSError("reset"))])
    async with Pool(manager, listeners=[bad], error_sink=bad, max_size=1) as pool:
        for _ in range(3):
            await hold(pool)
            await asyncio.sleep(1)
        assert pool.state().statistics.hook_errors > 5
        books(pool)


@virtual
async def test_extensions_belong_to_the_connection_and_survive_check_in() -> None:
    """r2d2's extensions: prepared statements, counters, whatever is yours."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        assert lease.extensions == {}
        lease.extensions["key"] = "value"
        lease.release()
        lease = await pool.get()
        assert lease.extensions == {"key": "value"}
        lease.discard()
        lease = await pool.get()
        assert lease.extensions == {}
        assert len(pool._state.extensions) == 1  # what belonged to the other is gone with it
        lease.detach()
        assert not pool._state.extensions


@virtual
async def test_extensions_stay_with_a_borrower_whose_connection_close_has_terminated() -> None:
    """What the borrower does at its end may need them; the pool's next life begins without."""
    pool = Pool(ScriptedManager(), max_size=1)
    await pool.open()
    lease = await pool.get()
    lease.extensions["key"] = "value"
    await pool.close(0)
    assert lease.extensions == {"key": "value"}
    lease.release()
    async with pool:
        assert not pool._state.extensions


@virtual
async def test_detach_takes_the_connection_out_of_the_pool_for_good() -> None:
    """The caller closes it; its place is free at once; on_close does not run."""
    hooks = ScriptedCustomizer()
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, customizer=hooks) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await turns()
        conn = lease.detach()
        assert await waiter is not conn
        assert conn.state == "open"
        with pytest.raises(PoolError, match="released already"):
            lease.detach()
        lease.release()
        closed(pool, detached=1)
        books(pool)
        assert [call.verb for call in hooks.log].count("on_close") == 0
        await manager.close(conn)


@virtual
async def test_a_lease_detached_after_close_terminated_it_is_still_the_callers() -> None:
    """Nothing to take out any more."""
    pool = Pool(ScriptedManager())
    await pool.open()
    lease = await pool.get()
    await pool.close(0)
    assert lease.detach().state == "terminated"
    closed(pool, pool_closed=1)


@virtual
async def test_holders_tell_who_has_what_and_how_long() -> None:
    """npgsql #473, HikariCP #808: who holds it?"""
    async with Pool(ScriptedManager(), leak_threshold=10_000) as pool:
        task = asyncio.create_task(hold(pool, 100), name="slow report")
        await asyncio.sleep(10)
        lease = await pool.get()
        await asyncio.sleep(5)
        first, second = pool.holders()
        assert (first.task, round(first.held)) == ("slow report", 15)
        assert round(second.held) == 5
        assert first.stack is not None
        assert "in hold" in first.stack
        lease.release()
        await task


@virtual
async def test_stacks_are_kept_only_when_asked_for() -> None:
    """They cost more than the get."""
    async with Pool(ScriptedManager()) as pool, pool.get():
        assert pool.holders()[0].stack is None


def test_infinity_is_no_limit_for_an_option_either() -> None:
    """As for get()."""
    assert Pool(ScriptedManager(), max_lifetime=math.inf).config.max_lifetime is None
    assert CloseReason.BROKEN.value == str(CloseReason.BROKEN)


@virtual
async def test_each_of_many_idle_connections_goes_exactly_when_its_own_lifetime_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One timer at the earliest, set again for the next one."""
    loop = asyncio.get_running_loop()
    draws = iter([0.3, 0.9, 0.0, 0.6, 0.1])
    monkeypatch.setattr("pool_core._shell._random", lambda: next(draws))
    manager = ScriptedManager()
    async with Pool(manager, max_size=5, max_lifetime=100, lifetime_jitter=0.5, idle_timeout=None) as pool:
        await asyncio.gather(*(hold(pool, 1) for _ in range(5)))
        for time, left in ((54.9, 5), (55.1, 4), (69.9, 4), (70.1, 3), (84.9, 3), (85.1, 2), (94.9, 2), (95.1, 1)):
            await asyncio.sleep(time - loop.time())
            assert pool.state().idle == left, time
        await asyncio.sleep(99.9 - loop.time())
        assert pool.state().idle == 1
        await asyncio.sleep(0.2)
        closed(pool, lifetime=5)
        books(pool)


@virtual
async def test_a_connection_that_expires_or_is_evicted_inside_a_block_goes_at_its_end() -> None:
    """The warm path back looks at the mark."""
    for reason in ("lifetime", "evicted"):
        async with Pool(ScriptedManager(), max_size=2, max_lifetime=100, lifetime_jitter=0) as pool:
            await hold(pool)
            async with pool.get():
                if reason == "lifetime":
                    await asyncio.sleep(101)
                else:
                    pool.evict()
            closed(pool, **{reason: 1})
            books(pool)


@virtual
async def test_a_lent_connection_that_is_evicted_and_then_expires_was_evicted() -> None:
    """The first matching reason counts, in whatever order they came."""
    async with Pool(ScriptedManager(), max_size=1, max_lifetime=10, lifetime_jitter=0) as pool:
        async with pool.get():
            pool.evict()
            await asyncio.sleep(11)
        closed(pool, evicted=1)
        books(pool)


@virtual
async def test_the_reaper_spares_all_where_fewer_are_idle_than_min_idle() -> None:
    """The others are in use; idle_timeout closes only idle connections above min_idle."""
    async with Pool(ScriptedManager(), max_size=5, min_idle=4, idle_timeout=10, reap_interval=5) as pool:
        await asyncio.sleep(1)
        lent = [asyncio.create_task(hold(pool, 60)) for _ in range(3)]
        await asyncio.sleep(40)
        assert pool.state().idle == 2
        closed(pool)
        await asyncio.gather(*lent)
        await asyncio.sleep(40)
        closed(pool, idle=1)
        books(pool)


@virtual
async def test_min_idle_is_brought_up_beside_slow_goodbyes() -> None:
    """As far as max_size allows: whoever comes next does not wait for a close and a connect in turn."""
    for how in ("evicted", "broken", "detached"):
        manager = ScriptedManager(close=Delay(5))
        size = 2 if how == "detached" else 10
        async with Pool(manager, max_size=size, min_idle=size if how == "detached" else 2) as pool:
            lease = await pool.get()
            await turns()
            if how == "evicted":
                pool.evict()
            elif how == "broken":
                manager.kill(known=True)
                lease.release()  # the sweep finds the idle ones
            else:
                lease.detach()
            await turns()
            assert pool.state().idle == 2, how
            lease.release()
            books(pool)


@virtual
async def test_stacks_are_kept_in_debug_mode() -> None:
    """Whoever debugs wants to know where."""
    asyncio.get_running_loop().set_debug(True)
    async with Pool(ScriptedManager()) as pool:
        for _ in range(2):  # the warm path leaves none
            async with pool.get():
                assert "test_giving_back.py" in str(pool.holders()[0].stack)
