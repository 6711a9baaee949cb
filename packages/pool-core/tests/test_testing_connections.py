"""Testing idle connections: when, how many at once, and what a dead one tells about the others."""

from __future__ import annotations

import asyncio
import contextlib
from math import inf
from typing import Any

import pytest
from pool_core import Pool, PoolTimeout
from pool_core._slot import Slot
from pool_core._supply import Trials
from pool_core.testing import NEVER, OK, Delay, Gate, ScriptedManager, SwallowCancel

from .helpers import books, closed, hold, turns, virtual


async def fill(pool: Pool[Any], count: int) -> None:
    """Open so many connections, and let them rest until they have to be tested."""
    await asyncio.gather(*(hold(pool, 0.01) for _ in range(count)))
    await asyncio.sleep(5)


@virtual
async def test_a_connection_used_just_now_is_not_tested() -> None:
    """HikariCP's aliveBypassWindow: asyncpg #271, #780, the round trips cost."""
    manager = ScriptedManager()
    async with Pool(manager, alive_bypass=0.5) as pool:
        for _ in range(10):
            await hold(pool)
            await asyncio.sleep(0.3)
        assert manager.calls("is_valid") == []
        await asyncio.sleep(0.6)
        await hold(pool)
        assert len(manager.calls("is_valid")) == 1
        await hold(pool)
        assert len(manager.calls("is_valid")) == 1
        books(pool)


@virtual
async def test_alive_bypass_zero_tests_every_time() -> None:
    """A get validates a connection only once."""
    manager = ScriptedManager(is_valid=Delay(0.01))
    async with Pool(manager, max_size=1, alive_bypass=0) as pool:
        await hold(pool)
        assert manager.calls("is_valid") == []  # a new one counts as tested
        for expected in (1, 2, 3):
            await hold(pool)
            assert len(manager.calls("is_valid")) == expected
        await asyncio.gather(*(hold(pool) for _ in range(5)))
        assert len(manager.calls("is_valid")) == 8
        books(pool)


@virtual
async def test_without_test_on_check_out_nothing_is_tested() -> None:
    """However long it rested."""
    manager = ScriptedManager()
    async with Pool(manager, test_on_check_out=False, idle_timeout=None) as pool:
        await fill(pool, 3)
        await asyncio.sleep(1000)
        await hold(pool)
        assert manager.calls("is_valid") == []


@virtual
async def test_a_get_that_only_awaited_its_test_is_direct() -> None:
    """It had a connection all the time."""
    async with Pool(ScriptedManager(is_valid=Delay(0.05))) as pool:
        await fill(pool, 1)
        before = pool.state().statistics
        await hold(pool)
        after = pool.state().statistics
        assert (after.gets_direct - before.gets_direct, after.gets_waited - before.gets_waited) == (1, 0)


@virtual
async def test_an_invalid_connection_is_replaced_and_the_get_succeeds() -> None:
    """bb8: is_valid failing once."""
    manager = ScriptedManager(is_valid=[False])
    async with Pool(manager) as pool:
        await fill(pool, 1)
        await hold(pool)
        closed(pool, invalid=1)
        assert [conn.state for conn in manager.connections] == ["closed", "open"]
        books(pool)


@virtual
async def test_two_invalid_connections_and_a_dead_server_end_in_an_error() -> None:
    """bb8's test: 2 closed invalid."""
    manager = ScriptedManager(is_valid=ConnectionResetError("gone"))
    async with Pool(manager, max_size=2, connection_timeout=1, error_sink=lambda _: None) as pool:
        await fill(pool, 2)
        manager.script(connect=OSError("down"))
        with pytest.raises(PoolTimeout):
            await pool.get()
        closed(pool, invalid=2)
        books(pool)


@pytest.mark.parametrize("answer", [None, 1, "yes"])
@virtual
async def test_anything_but_true_is_invalid_and_a_forgotten_return_is_reported(answer: object) -> None:
    """The commonest mistake of adapter authors."""
    errors: list[BaseException] = []
    async with Pool(ScriptedManager(is_valid=[answer]), error_sink=errors.append) as pool:
        await fill(pool, 1)
        await hold(pool)
        closed(pool, invalid=1)
        assert "return True" in str(errors[0])


@virtual
async def test_a_slow_test_of_one_connection_blocks_no_other_get() -> None:
    """r2d2's is_valid of one connection blocks no other get."""
    gate = Gate()
    manager = ScriptedManager(is_valid=[gate])
    async with Pool(manager, max_size=5) as pool:
        await fill(pool, 2)
        first = asyncio.create_task(hold(pool))
        await turns()
        await asyncio.wait_for(hold(pool), 0.01)
        gate.open()
        await first
        books(pool)


@virtual
async def test_validation_timeout_ends_a_test_whatever_the_driver_does() -> None:
    """Idle connections that a NAT dropped cost nearly every peer 5-9 s each."""
    errors: list[BaseException] = []
    manager = ScriptedManager(is_valid=[SwallowCancel(1, OK)])
    async with Pool(manager, max_size=1, validation_timeout=1, error_sink=errors.append) as pool:
        await fill(pool, 1)
        await hold(pool)
        assert "validation_timeout=1" in str(errors[0])
        assert manager.connections[0].state == "terminated"
        closed(pool, invalid=1)
        books(pool)


@virtual
async def test_a_test_that_hangs_gives_way_to_the_next_idle_one_and_then_to_a_connect() -> None:
    """At most max_connecting tests at once; nobody waits for all of validation_timeout."""
    manager = ScriptedManager(is_valid=NEVER)
    async with Pool(manager, max_size=10, max_connecting=3, error_sink=lambda _: None) as pool:
        await fill(pool, 5)
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with pool.get():
            assert loop.time() - start == pytest.approx(0.3)
            assert manager.peak["is_valid"] == 3
        await asyncio.sleep(10)
        books(pool)


@virtual
async def test_a_test_that_times_out_takes_all_that_were_silent_as_long_with_it() -> None:
    """A NAT drops them together."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=5, validation_timeout=1, error_sink=lambda _: None) as pool:
        await fill(pool, 5)
        manager.script(is_valid=NEVER)
        loop = asyncio.get_running_loop()
        start = loop.time()
        await hold(pool)
        assert loop.time() - start == pytest.approx(
            1
        )  # the pool is full: the get waits for the first validation timeout
        await asyncio.sleep(2)
        assert [conn.state for conn in manager.connections].count("terminated") == 5
        closed(pool, invalid=5)
        books(pool)


@virtual
async def test_connections_used_since_are_spared_when_a_test_times_out() -> None:
    """Not guilty: the network was fine after the silent one's last use."""
    gate = Gate()
    manager = ScriptedManager()
    async with Pool(manager, max_size=2, validation_timeout=1, alive_bypass=10, error_sink=lambda _: None) as pool:
        leases = [await pool.get() for _ in range(2)]
        leases[0].release()
        await asyncio.sleep(20)
        leases[1].release()
        manager.script(is_valid=[gate])
        spared = await pool.get()
        silent = asyncio.create_task(hold(pool, timeout=30))
        await turns()
        assert pool.state().validating == 1
        spared.release()
        await silent
        await asyncio.sleep(3)
        assert [conn.state for conn in manager.connections] == ["terminated", "open"]


@virtual
async def test_a_suspect_whose_own_test_hangs_does_not_condemn_the_others() -> None:
    """It hangs because of what was cancelled in it, not because of a NAT."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=3, validation_timeout=1, error_sink=lambda _: None) as pool:
        leases = [await pool.get() for _ in range(3)]
        leases[0].release()
        leases[1].release()
        with pytest.raises(KeyError):
            async with leases[2]:
                raise KeyError
        manager.script(is_valid=[NEVER])
        await asyncio.gather(*(hold(pool) for _ in range(3)))
        await asyncio.sleep(3)
        closed(pool, invalid=1)
        books(pool)


@virtual
async def test_the_first_dead_one_makes_the_unused_ones_suspect_without_a_storm() -> None:
    """psycopg #370: users find dead connections one by one. Here the pool checks all, and validates before use."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=5, alive_bypass=100) as pool:
        await fill(pool, 5)
        pool._state.fresh[-1].conn.broken = True
        pool._state.fresh[1].conn.broken = True
        await hold(pool)
        closed(pool, broken=2)
        assert len(manager.calls("is_valid")) == 1
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(3)))
        assert len(manager.calls("is_valid")) == 3
        books(pool)


@virtual
async def test_connections_that_work_survive_the_look_after_a_dead_one() -> None:
    """The correct program that looks guilty: it closed one connection itself."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=4, alive_bypass=100) as pool:
        await fill(pool, 4)
        async with pool.get() as conn:
            conn.broken = True
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(3)))
        closed(pool, broken=1)
        assert len(manager.calls("is_valid")) == 3
        books(pool)


@virtual
async def test_the_look_at_the_others_happens_once_for_connections_that_died_together() -> None:
    """Ten connections in use die with the server: only the first return starts a check of the others."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=20) as pool:
        await asyncio.gather(*(hold(pool, 0.01) for _ in range(20)))
        leases = [await pool.get() for _ in range(10)]
        for lease in leases:
            lease.conn.broken = True
        before = len(manager.calls("has_broken"))
        for lease in leases:
            lease.release()
        assert len(manager.calls("has_broken")) - before <= 10 + 10
        books(pool)


@virtual
async def test_an_idle_connection_is_validated_by_its_own_age() -> None:
    """The one used last may be acquired at once, the older one may not."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2, alive_bypass=1.0) as pool:
        await fill(pool, 2)
        async with pool.get():
            await hold(pool)
        before = len(manager.calls("is_valid"))
        await asyncio.sleep(0.8)
        await hold(pool)
        await asyncio.sleep(0.8)
        await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))
        assert len(manager.calls("is_valid")) == before + 1
        books(pool)


@virtual
async def test_a_second_restart_within_the_same_second_casts_doubt_again() -> None:
    """The warm path stamps with the time of the last event, and that was the first look."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=4, alive_bypass=100) as pool:
        await fill(pool, 4)
        for idle in (4, 3):
            await asyncio.sleep(0.01)
            async with contextlib.AsyncExitStack() as leases:
                conns = [await leases.enter_async_context(pool.get()) for _ in range(idle)]
                conns[0].broken = True
            tests = len(manager.calls("is_valid"))
            await asyncio.gather(*(hold(pool) for _ in range(idle - 1)))
            assert len(manager.calls("is_valid")) == tests + idle - 1
        books(pool)


@virtual
async def test_an_exception_that_leaves_the_body_makes_the_connection_suspect() -> None:
    """asyncio.timeout turns a cancel into TimeoutError: what was interrupted is unknown. Tested before its next use."""
    manager = ScriptedManager()
    async with Pool(manager, test_on_check_out=False) as pool:
        for error in (KeyError(), asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()):
            with pytest.raises(type(error)):
                async with pool.get():
                    raise error
            tests = len(manager.calls("is_valid"))
            await hold(pool)
            assert len(manager.calls("is_valid")) == tests + 1
        assert len(manager.connections) == 1
        books(pool)


@virtual
async def test_release_while_an_exception_is_handled_makes_the_connection_suspect() -> None:
    """diesel's panicking()."""
    manager = ScriptedManager()
    async with Pool(manager) as pool:
        lease = await pool.get()
        try:
            raise KeyError  # noqa: TRY301
        except KeyError:
            lease.release()
        await hold(pool)
        assert len(manager.calls("is_valid")) == 1
        lease = await pool.get()
        lease.release()
        await hold(pool)
        assert len(manager.calls("is_valid")) == 1


@virtual
async def test_a_waiter_behind_a_suspect_connection_waits_for_its_test() -> None:
    """A waiter does not make the pool skip the validation."""
    manager = ScriptedManager(is_valid=[Delay(1, False)])
    async with Pool(manager, max_size=1) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await turns()
        with pytest.raises(KeyError):
            async with lease:
                raise KeyError
        conn = await waiter
        assert conn.id == 2
        closed(pool, invalid=1)
        books(pool)


@virtual
async def test_a_get_whose_connection_failed_its_test_keeps_its_place_at_the_head() -> None:
    """It came first."""
    served: list[str] = []
    manager = ScriptedManager(is_valid=[Delay(0.05, False)], connect=[OK, Delay(1)])

    async def user(name: str) -> None:
        async with pool.get():
            served.append(name)

    async with Pool(manager, max_size=1) as pool:
        await fill(pool, 1)
        first = asyncio.create_task(user("first"))
        await turns()
        second = asyncio.create_task(user("second"))
        await asyncio.gather(first, second)
        assert served == ["first", "second"]
        books(pool)


@virtual
async def test_a_timeout_during_its_own_test_says_validate() -> None:
    """The phase tells where to look."""
    manager = ScriptedManager(is_valid=NEVER)
    async with Pool(manager, max_size=1, error_sink=lambda _: None) as pool:
        await fill(pool, 1)
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=1)
        assert caught.value.phase == "validate"
        await asyncio.sleep(10)
        books(pool)


@virtual
async def test_the_test_of_a_cancelled_get_goes_on_and_its_fruit_goes_to_the_pool() -> None:
    """Tests belong to the pool."""
    manager = ScriptedManager(is_valid=Delay(1))
    async with Pool(manager, max_size=1) as pool:
        await fill(pool, 1)
        first = asyncio.create_task(hold(pool))
        await turns()
        first.cancel()
        await asyncio.sleep(0.5)
        await asyncio.wait_for(hold(pool), 0.6)
        assert len(manager.calls("is_valid")) == 1
        books(pool)


@virtual
async def test_has_broken_raising_means_broken_and_is_counted() -> None:
    """A bug in an adapter costs a connection, not a get."""
    errors: list[BaseException] = []
    manager = ScriptedManager()
    async with Pool(manager, error_sink=errors.append) as pool:
        for _ in range(2):
            lease = await pool.get()
            manager.script(has_broken=[KeyError("bug")])
            lease.release()
        async with pool.get():
            manager.script(has_broken=[KeyError("warm"), KeyError("asked again")])
        assert pool.state().statistics.hook_errors == 3
        closed(pool, broken=3)
        await hold(pool)
        manager.script(has_broken=[KeyError("warm"), KeyError("asked again")])
        await hold(pool)
        closed(pool, broken=4)
        books(pool)


@virtual
async def test_lifo_keeps_one_connection_hot_and_fifo_spreads_the_load() -> None:
    """LIFO lets four of five be reaped (r2d2); FIFO is bb8's default."""
    from pool_core import QueueStrategy

    for strategy, used in ((QueueStrategy.LIFO, 1), (QueueStrategy.FIFO, 5)):
        async with Pool(ScriptedManager(), max_size=5, queue_strategy=strategy) as pool:
            await asyncio.gather(*(hold(pool, 0.1) for _ in range(5)))
            seen = {(await hold(pool)).id for _ in range(10)}
            assert len(seen) == used
            await asyncio.sleep(2)
            assert len({(await hold(pool)).id for _ in range(3)}) in (1, 3)
            books(pool)


@virtual
async def test_without_test_on_check_out_alive_bypass_zero_tests_nothing() -> None:
    """The first option says whether, the second only how often."""
    manager = ScriptedManager(is_valid=False)
    async with Pool(manager, max_size=1, test_on_check_out=False, alive_bypass=0) as pool:
        for _ in range(3):
            await hold(pool)
            await asyncio.sleep(10)
        assert manager.calls("is_valid") == []
        books(pool)


@virtual
async def test_a_test_that_answers_no_condemns_nobody_else() -> None:
    """Only one that gets no answer is a sign of a NAT: the others are asked themselves."""
    manager = ScriptedManager(is_valid=[False])
    async with Pool(manager, max_size=3) as pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(3)))
        await asyncio.sleep(5)
        await hold(pool)
        closed(pool, invalid=1)
        assert pool.state().idle == 2
        assert len(manager.calls("is_valid")) == 2
        books(pool)


@virtual
@pytest.mark.parametrize("verb", ["is_valid", "reset"])
async def test_a_test_or_reset_that_is_always_slow_is_no_reason_to_connect(verb: str) -> None:
    """What is usual is learned from the last good one: three times that long is waited for."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2, alive_bypass=0) as pool:
        for usual in (0.09, 0.2, 0.5, 1.2):
            manager.script(**{verb: Delay(usual)})
            for _ in range(3):
                await hold(pool)
            await asyncio.sleep(5)
        assert len(manager.connections) == 1
        manager.script(**{verb: Delay(4)})
        for _ in range(2):
            await hold(pool)
        assert len(manager.connections) == 2
        await asyncio.sleep(10)
        books(pool)


def test_a_validation_begun_later_may_be_late_earlier() -> None:
    """What is usual has become shorter since the first one began."""
    trials: Trials[object] = Trials()
    trials.last = 1.0
    slow = trials.begin(Slot(object(), 1, 0.0, 0.0), now=0.0)
    trials.last = 0.01
    quick = trials.begin(Slot(object(), 2, 0.0, 0.0), now=0.5)
    assert trials.late_at() == quick.late_at == 0.6
    trials.mark_late(0.6)
    assert (slow.late, quick.late, trials.on_time()) == (False, True, 1)
    assert trials.late_at() == slow.late_at == 3.0
    trials.mark_late(3.0)
    assert (trials.on_time(), trials.late_at()) == (0, inf)
