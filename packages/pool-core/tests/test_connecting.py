"""Opening connections: how many, how often, and what failures do to those who wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest
from pool_core import CloseReason, ConnectError, Pool, PoolTimeout
from pool_core.testing import NEVER, OK, Delay, FakeConnection, Gate, Outcome, ScriptedManager, SwallowCancel

from .helpers import books, closed, hold, turns, virtual


def quiet(_: BaseException) -> None:
    """An error sink for tests in which errors are expected."""


@virtual
async def test_a_failed_connect_is_repeated_while_a_get_waits() -> None:
    """bb8: connect failing once is no error."""
    manager = ScriptedManager(connect=[OSError("once")])
    async with Pool(manager, error_sink=quiet) as pool:
        await hold(pool)
        assert len(manager.calls("connect")) == 2
        assert pool.state().statistics.connects_failed == 1
        books(pool)


@virtual
async def test_a_timeout_carries_the_last_connect_error() -> None:
    """bb8 #227, r2d2 #51: the timeout does not show the reason."""
    error = OSError("no route to host")
    async with Pool(ScriptedManager(connect=error), connection_timeout=3, error_sink=quiet) as pool:
        with pytest.raises(PoolTimeout, match="last connect error: OSError: no route to host") as caught:
            await pool.get()
        assert caught.value.__cause__ is error
        assert caught.value.phase == "connect"
        books(pool)


@virtual
async def test_a_connect_error_is_no_cause_once_connecting_works_again() -> None:
    """An error of yesterday explains nothing."""
    async with Pool(ScriptedManager(connect=[OSError("old")]), max_size=1, error_sink=quiet) as pool:
        async with pool.get():
            with pytest.raises(PoolTimeout) as caught:
                await asyncio.create_task(hold(pool, timeout=1))
            assert caught.value.__cause__ is None


@virtual
async def test_connects_back_off_and_only_one_probes_at_a_time() -> None:
    """A restart with a thousand waiters must not end in a herd."""
    manager = ScriptedManager(connect=OSError("down"))
    async with Pool(manager, max_size=10, error_sink=quiet) as pool:
        gets = [asyncio.create_task(hold(pool, timeout=60)) for _ in range(1000)]
        await asyncio.sleep(20)
        attempts = [call.time for call in manager.calls("connect")]
        assert len([time for time in attempts if time > attempts[0]]) < 45
        manager.script(connect=Delay(0.1))
        manager.peak["connect"] = 0
        back = asyncio.get_running_loop().time()
        await gets[0]
        assert asyncio.get_running_loop().time() - back <= 3
        await asyncio.gather(*gets)
        assert manager.peak["connect"] <= 3
        books(pool)


@virtual
async def test_new_gets_wait_for_the_back_off_and_do_not_restart_it() -> None:
    """porsager/postgres #1179."""
    manager = ScriptedManager(connect=OSError("down"))
    async with Pool(manager, max_size=10, error_sink=quiet) as pool:
        for _ in range(100):
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=0.1)
        assert len(manager.calls("connect")) < 40
        books(pool)


@virtual
async def test_a_probe_keeps_its_two_seconds_when_the_pool_wakes_meanwhile() -> None:
    """The timeout of another get is no reason to probe a server that is down with two connects at once."""
    manager = ScriptedManager(connect=[OSError("down"), OSError("down"), NEVER, NEVER])
    async with Pool(manager, max_size=3, error_sink=quiet) as pool:
        waiters = [asyncio.create_task(hold(pool, timeout=limit)) for limit in (1.0, 30.0)]
        await asyncio.sleep(1.5)
        assert isinstance(waiters[0].exception(), PoolTimeout)
        assert manager.running["connect"] == 1
        await asyncio.sleep(2)
        assert manager.running["connect"] == 2
        waiters[1].cancel()


@virtual
async def test_where_connects_hang_a_probe_stops_counting_after_two_seconds() -> None:
    """Otherwise one hung probe would keep everybody for all of create_timeout."""
    manager = ScriptedManager(connect=[OSError("down"), NEVER, OK])
    async with Pool(manager, error_sink=quiet) as pool:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await hold(pool)
        assert 2 <= loop.time() - start <= 3
        books(pool)


@virtual
async def test_the_first_waiter_is_served_soon_after_a_server_that_hung_is_back() -> None:
    """create_timeout + 3 s at most."""
    manager = ScriptedManager(connect=NEVER)
    async with Pool(manager, create_timeout=5, connection_timeout=120, error_sink=quiet) as pool:
        gets = [asyncio.create_task(hold(pool)) for _ in range(20)]
        await asyncio.sleep(31)
        manager.script(connect=OK)
        back = asyncio.get_running_loop().time()
        await asyncio.gather(*gets)
        assert asyncio.get_running_loop().time() - back <= 8
        books(pool)


@virtual
async def test_no_more_connects_than_max_connecting_are_under_way() -> None:
    """A cold start of a hundred gets is no herd either."""
    manager = ScriptedManager(connect=Delay(1))
    async with Pool(manager, max_size=50, max_connecting=4) as pool:
        await asyncio.gather(*(hold(pool, 5) for _ in range(100)))
        assert manager.peak["connect"] == 4
        books(pool)


@virtual
async def test_create_timeout_ends_a_connect_whatever_the_driver_does() -> None:
    """A server that accepts and never answers; a driver that swallows the cancel."""
    manager = ScriptedManager(connect=[NEVER, SwallowCancel(1, NEVER), OK])
    errors: list[BaseException] = []
    async with Pool(manager, create_timeout=1, error_sink=errors.append) as pool:
        await hold(pool)
        assert [str(error) for error in errors] == ["connect took longer than create_timeout=1 s"] * 2
        books(pool)


@virtual
async def test_a_connect_that_ignores_every_cancel_is_abandoned_and_counted() -> None:
    """Its place is free, and what it may still bring forth is terminated."""
    manager = ScriptedManager(connect=[SwallowCancel(3, Delay(5)), OK])
    async with Pool(manager, max_size=1, create_timeout=1, error_sink=quiet) as pool:
        await hold(pool)
        assert pool.state().statistics.connections_abandoned == 1
        await asyncio.sleep(10)
        assert sorted(conn.state for conn in manager.connections) == ["open", "terminated"]
        books(pool)


@virtual
async def test_a_new_connection_that_is_broken_already_is_a_failed_connect() -> None:
    """Never an idle one."""
    errors: list[BaseException] = []
    manager = ScriptedManager(has_broken=[True])
    async with Pool(manager, error_sink=errors.append) as pool:
        await hold(pool)
        assert "broken already" in str(errors[0])
        assert pool.state().statistics.connections_created == 1
        assert manager.connections[0].state == "terminated"
        books(pool)


@virtual
async def test_an_error_that_is_not_transient_fails_all_waiting_gets_at_once() -> None:
    """Nobody waits 30 s for a wrong password."""
    error = PermissionError("password refused")
    manager = ScriptedManager(connect=Delay(1, error), is_transient=False)
    async with Pool(manager, max_size=5, error_sink=quiet) as pool:
        outcomes = await asyncio.gather(*(hold(pool) for _ in range(10)), return_exceptions=True)
        assert all(type(outcome) is ConnectError for outcome in outcomes)
        assert len(set(map(id, outcomes))) == 10
        assert all(outcome.__cause__ is error for outcome in outcomes)
        assert asyncio.get_running_loop().time() == 1
        assert pool.state().statistics.gets_failed == 10
        books(pool)


@virtual
async def test_while_a_connection_is_open_an_error_that_is_not_transient_fails_nobody() -> None:
    """One auth error during a rotation must not fail a healthy pool."""
    manager = ScriptedManager(connect=[OK], is_transient=False)
    errors: list[BaseException] = []
    async with Pool(manager, max_size=5, error_sink=errors.append) as pool:
        lease = await pool.get()
        manager.script(connect=PermissionError("password refused"))
        waiter = asyncio.create_task(hold(pool))
        await asyncio.sleep(3)
        assert not waiter.done()
        assert errors
        lease.release()
        await waiter
        books(pool)


@virtual
async def test_without_retry_a_failed_connect_fails_the_get_at_the_head() -> None:
    """bb8 lets it time out; here each failure answers one get."""
    manager = ScriptedManager(connect=[OSError("one"), OSError("two")])
    async with Pool(manager, max_size=1, retry_connection=False, error_sink=quiet) as pool:
        outcomes = await asyncio.gather(*(hold(pool) for _ in range(4)), return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "ConnectError",
            "ConnectError",
            "FakeConnection",
            "FakeConnection",
        ]
        assert "connecting failed: OSError: one" in str(outcomes[0])
        books(pool)


@virtual
async def test_is_transient_raising_means_transient_and_is_counted() -> None:
    """A bug in an adapter must not fail gets."""
    manager = ScriptedManager(connect=[OSError("down")], is_transient=KeyError("bug"))
    errors: list[BaseException] = []
    async with Pool(manager, error_sink=errors.append) as pool:
        await hold(pool)
        assert pool.state().statistics.hook_errors == 1
        assert {type(error) for error in errors} == {OSError, KeyError}


@virtual
async def test_a_manager_without_is_transient_is_retried() -> None:
    """The default is True."""
    manager = ScriptedManager(without=["is_transient"], connect=[PermissionError("?")])
    async with Pool(manager, error_sink=quiet) as pool:
        await hold(pool)


@virtual
async def test_the_log_shows_the_first_failure_of_an_outage_and_the_recovery(caplog: pytest.LogCaptureFixture) -> None:
    """Not every retry."""
    caplog.set_level(logging.INFO, "pool_core")
    manager = ScriptedManager(connect=[OSError("down")] * 5)
    async with Pool(manager, name="orders") as pool:
        await hold(pool)
    told = [record.getMessage() for record in caplog.records if getattr(record, "phase", None)]
    assert told == [
        "pool 'orders': connecting failed: OSError: down",
        "pool 'orders': connecting works again, after 5 failures",
    ]


@pytest.mark.parametrize("retries", [True, False])
@virtual
async def test_a_failed_connect_for_min_idle_waits_for_the_reapers_next_look(*, retries: bool) -> None:
    """Nobody waits for it, so nobody is in a hurry; without a back-off it would be tried again at once, for ever."""
    manager = ScriptedManager()
    pool = Pool(
        manager, min_idle=1, max_size=2, reap_interval=30, max_lifetime=10, retry_connection=retries, error_sink=quiet
    )
    async with pool:
        manager.script(connect=OSError("down"))
        await asyncio.sleep(25)
        assert pool.state().idle == 0
        assert len(manager.calls("connect")) == 2
        await asyncio.sleep(10)
        assert len(manager.calls("connect")) == 3
        manager.script(connect=OK)
        await asyncio.sleep(30)
        assert pool.state().idle == 1
        books(pool)


@virtual
async def test_one_sequential_user_never_opens_a_second_connection() -> None:
    """Neither its reset nor its test under way is a reason to connect."""
    manager = ScriptedManager(reset=Delay(0.05), is_valid=Delay(0.05))
    async with Pool(manager, max_size=10, alive_bypass=0.01) as pool:
        for pause in (0, 0.02, 1) * 10:
            await hold(pool)
            await asyncio.sleep(pause)
        assert len(manager.connections) == 1
        books(pool)


@virtual
async def test_a_slow_reset_stops_counting_as_supply() -> None:
    """Slower than 0.1 s, and three times the last good one: then a waiting get may connect."""
    manager = ScriptedManager(reset=NEVER)
    async with Pool(manager, max_size=2, reset_timeout=5, error_sink=quiet) as pool:
        await hold(pool)
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with pool.get():
            assert loop.time() - start == pytest.approx(0.1)
        await asyncio.sleep(20)
        closed(pool, reset_failed=2)
        books(pool)


@virtual
async def test_a_pool_that_was_cut_off_from_outside_recovers() -> None:
    """Somebody cancels all tasks of the loop, the pool's own among them."""
    manager = ScriptedManager(connect=[Delay(5), OK])
    async with Pool(manager, error_sink=quiet) as pool:
        get = asyncio.create_task(hold(pool))
        await asyncio.sleep(1)
        for task in asyncio.all_tasks() - {asyncio.current_task(), get}:
            task.cancel()
        await get
        assert pool.state().statistics.connects_failed == 1
        books(pool)


@virtual
async def test_a_connect_cancelled_before_its_first_step_gives_its_place_back() -> None:
    """Such a task runs no finally: its done callback must."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, error_sink=quiet) as pool:
        get = asyncio.create_task(hold(pool))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), get}:
            task.cancel()
        await get
        await turns()
        assert pool.state().opening == 0
        books(pool)


@virtual
async def test_a_connection_that_on_connect_broke_is_a_failed_connect() -> None:
    """A hook that catches a timeout may leave half a reply unread."""

    class Breaks:
        times = 0

        async def on_connect(self, conn: FakeConnection) -> None:
            self.times += 1
            conn.broken = self.times == 1

    errors: list[BaseException] = []
    async with Pool(ScriptedManager(), customizer=Breaks(), error_sink=errors.append) as pool:
        assert not (await hold(pool)).broken
        assert "broken already" in str(errors[0])
        books(pool)


@virtual
async def test_a_slow_connect_is_not_doubled_while_nothing_fails() -> None:
    """Whatever else wakes the pool meanwhile: only in an outage a probe loses patience."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=3, max_lifetime=10, lifetime_jitter=0) as pool:
        holder = asyncio.create_task(hold(pool, 20))
        await asyncio.sleep(7)
        manager.script(connect=Delay(8))
        await hold(pool)  # a lifetime ended while it waited
        assert len(manager.connections) == 2
        await holder
        books(pool)


@virtual
async def test_the_back_off_doubles_from_a_fifth_of_a_second_to_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the greatest jitter; the smallest one repeats at once."""
    monkeypatch.setattr("pool_core._shell._random", lambda: 1.0)
    manager = ScriptedManager(connect=OSError("down"))
    async with Pool(manager, error_sink=quiet) as pool:
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=9.9)
        times = [call.time for call in manager.calls("connect")]
        pauses = [round(after - before, 6) for before, after in zip(times, times[1:], strict=False)]
        assert pauses == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
        books(pool)


@virtual
async def test_an_abandoned_connect_that_fails_in_the_end_brings_forth_nothing() -> None:
    """There is nothing to get rid of."""
    errors: list[BaseException] = []
    manager = ScriptedManager(connect=[SwallowCancel(3, Delay(5, OSError("late"))), OK])
    async with Pool(manager, max_size=1, create_timeout=1, error_sink=errors.append) as pool:
        await hold(pool)
        await asyncio.sleep(10)
        assert [type(error) for error in errors] == [TimeoutError]
        assert manager.calls("terminate") == []
        assert pool.state().statistics.hook_errors == 0
        books(pool)


@virtual
async def test_an_outage_that_a_pool_was_closed_in_is_not_told_of_in_its_next_life(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And the first failure of the next one is."""
    caplog.set_level(logging.INFO, "pool_core")
    manager = ScriptedManager(connect=OSError("down"))
    pool = Pool(manager, name="orders")
    for _ in range(2):
        async with pool:
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=5)
    manager.script(connect=OK)
    async with pool:
        await hold(pool)
    told = [record.getMessage() for record in caplog.records if getattr(record, "phase", None)]
    assert told == ["pool 'orders': connecting failed: OSError: down"] * 2


class Stubborn(ScriptedManager):
    """Its calls end when the connection is terminated, and by nothing else, as those of a driver in a thread do."""

    def stuck(self, _: object) -> Outcome:
        """For a script."""
        self.gate = Gate()
        return SwallowedUntil(self.gate)

    def terminate(self, conn: FakeConnection, /) -> None:
        """Drop it, and let whatever is stuck go on."""
        conn.state = "terminated"
        self.gate.open(ConnectionResetError("terminated"))


class SwallowedUntil(Outcome):
    """Loses every cancel until the gate opens."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def wait(self) -> None:
        """Wait, whatever is said."""
        waiting = asyncio.ensure_future(self.gate.wait())
        while not waiting.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(waiting)

    @property
    def then(self) -> object:
        """As the gate says."""
        return self.gate.then


@virtual
@pytest.mark.parametrize("verb", ["is_valid", "reset", "close"])
async def test_a_call_that_only_terminate_can_end_is_ended_by_it_and_not_abandoned(verb: str) -> None:
    """The pool terminates the connection after the call's timeout and two cancels."""
    manager = Stubborn()
    async with Pool(
        manager, max_size=1, alive_bypass=0, validation_timeout=1, reset_timeout=1, close_timeout=1, error_sink=quiet
    ) as pool:
        await hold(pool)
        manager.script(**{verb: [manager.stuck(None)]})
        if verb == "close":
            pool.evict()
        await hold(pool)
        await asyncio.sleep(3)
        assert manager.connections[0].state == "terminated"
        assert pool.state().statistics.connections_abandoned == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        books(pool)


# -- mistakes of an adapter's author


@pytest.mark.parametrize("timeout", [None, 5.0])
@virtual
async def test_a_connect_without_return_is_named_at_once(timeout: float | None) -> None:
    """It is the commonest mistake of an adapter's author, and no waiting heals it."""

    class Forgets(ScriptedManager):
        async def connect(self) -> Any:
            await super().connect()

    loop = asyncio.get_running_loop()
    async with Pool(Forgets(), error_sink=quiet) as pool:
        with pytest.raises(ConnectError, match="connect must return a connection, not None: is a 'return' missing"):
            await pool.get(timeout)
        assert loop.time() == pytest.approx(0, abs=0.01)
        books(pool)
    with pytest.raises(TypeError, match="not None"):
        await Pool(Forgets(), min_idle=1, error_sink=quiet).open()


@virtual
async def test_a_connect_that_is_not_async_is_named_at_once() -> None:
    """Its connection cannot be awaited."""

    class Plain(ScriptedManager):
        def connect(self) -> Any:
            return FakeConnection(1)

    async with Pool(Plain(), error_sink=quiet) as pool:
        with pytest.raises(ConnectError, match="connect must be an async method, not one that returns FakeConnection"):
            await pool.get()


# -- connections that never validate


@virtual
async def test_new_connections_that_never_validate_are_braked_like_failing_connects() -> None:
    """Otherwise each get would open a connection, without a delay. The timeout names the reason."""
    manager = ScriptedManager(is_valid=False)
    async with Pool(manager, max_size=1, alive_bypass=0, connection_timeout=2, error_sink=quiet) as pool:
        loop = asyncio.get_running_loop()
        start = loop.time()
        while loop.time() < start + 60:
            with contextlib.suppress(PoolTimeout):
                await hold(pool)
        assert len(manager.calls("connect")) <= 60 * 2 + 10
        with pytest.raises(PoolTimeout, match="failed its first validation"):
            await pool.get(0.01)
        manager.script(is_valid=OK)
        await asyncio.sleep(10)
        for _ in range(5):
            await hold(pool)
        books(pool)


@virtual
async def test_an_outage_that_fails_all_connections_at_once_brakes_nothing() -> None:
    """Their successors are as good as ever, and wait for nothing."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=10, error_sink=quiet) as pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(10)))
        await asyncio.sleep(60)
        manager.script(is_valid=[False] * 10)
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.gather(*(hold(pool) for _ in range(10)))
        assert loop.time() == pytest.approx(start, abs=0.01)
        books(pool)


@virtual
async def test_a_connect_that_others_cancel_says_so() -> None:
    """Somebody cancels all tasks of the loop, and the pool's among them."""
    manager = ScriptedManager(connect=NEVER)
    async with Pool(manager, retry_connection=False, error_sink=quiet) as pool:
        getting = asyncio.create_task(pool.get()._acquire())
        await turns()
        next(task for task in asyncio.all_tasks() if task.get_name() == "pool: connect").cancel()
        with pytest.raises(
            ConnectError, match="cancelled from outside of the pool, or raised CancelledError"
        ) as caught:
            await getting
        assert isinstance(caught.value.__cause__, ConnectionAbortedError)
        books(pool)


async def burst(pool: Pool[FakeConnection], gets: int) -> None:
    """More gets than connections, each for a moment."""
    await asyncio.gather(*(hold(pool, 0.002) for _ in range(gets)))


@virtual
async def test_after_a_burst_one_of_the_unneeded_new_connections_stays() -> None:
    """HikariCP's and psycopg_pool's spike test: returns served everybody before the connects were done."""
    manager = ScriptedManager(connect=Delay(0.05))
    async with Pool(manager, min_idle=5, max_size=10) as pool:
        await burst(pool, 51)
        await asyncio.sleep(1)
        assert pool.state().idle == 6
        assert pool.state().statistics.connections_closed[CloseReason.SURPLUS] == 2
        await burst(pool, 51)
        await asyncio.sleep(1)
        assert pool.state().idle == 7
        books(pool)


@virtual
async def test_a_connection_whose_waiter_timed_out_always_stays() -> None:
    """pgx #1259: without it no get with a timeout shorter than a connect would ever be served."""
    async with Pool(ScriptedManager(connect=Delay(1)), max_size=3) as pool:
        for result in await asyncio.gather(*(hold(pool, timeout=0.5) for _ in range(3)), return_exceptions=True):
            assert isinstance(result, PoolTimeout)
        await asyncio.sleep(1)
        assert pool.state().idle == 3


@virtual
async def test_an_unneeded_new_connection_stays_while_all_others_are_in_use() -> None:
    """The next get will want it."""
    manager = ScriptedManager(connect=[OK, OK, Delay(0.05)])
    async with Pool(manager, max_size=4) as pool:
        former = [await pool.get(), await pool.get()]
        waiting = [asyncio.create_task(hold(pool, 1)) for _ in range(2)]
        await turns(2)
        for lease in former:
            lease.release()
        await asyncio.sleep(0.5)
        assert (pool.state().in_use, pool.state().idle) == (2, 2)
        await asyncio.gather(*waiting)
