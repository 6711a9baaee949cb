"""Every fault that needs no particular database, over scripted fakes on virtual time; after each one the books balance.

What has a topic of its own (connecting, testing, closing, cancelling, leaks, deadlocks, forks) is in that topic's file.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from typing import Any

import pytest
from pool_core import ConnectError, Pool, PoolTimeout
from pool_core.testing import (
    NEVER,
    OK,
    Delay,
    FakeConnection,
    ScriptedCustomizer,
    ScriptedManager,
    Steps,
    run,
)

from .disturbances import DISTURBANCES, Tally, disturbed
from .helpers import books, closed, hold, turns, virtual

VERBS: tuple[str, ...] = ("connect", "is_valid", "reset", "close", "on_connect")
OUTCOMES: tuple[str, ...] = ("ok", "error", "slow", "never")


def quiet(_: BaseException) -> None:
    """An error sink for tests in which errors are expected."""


def outcome(verb: str, what: str) -> Any:
    """The outcome of a call of this method."""
    if what == "error":
        return False if verb == "is_valid" else OSError(f"{verb} failed")
    return {"ok": Steps(1), "slow": Delay(0.3), "never": NEVER}[what]


async def with_every_call_so(outcomes: dict[str, str], *, terminates: bool) -> None:
    """A pool that was well; then its calls end like this; then all is well again."""
    loop = asyncio.get_running_loop()
    hook: list[Any] = [OK]
    manager = ScriptedManager(without=[] if terminates else ["terminate"])
    pool = Pool(
        manager,
        max_size=3,
        min_idle=1,
        alive_bypass=0,
        connection_timeout=3.0,
        create_timeout=1.0,
        validation_timeout=1.0,
        reset_timeout=1.0,
        close_timeout=1.0,
        reap_interval=5.0,
        customizer=ScriptedCustomizer(on_connect=lambda _: hook[0]),
        error_sink=quiet,
    )
    await pool.open()
    tally = Tally(pool)
    await asyncio.gather(*(tally.get() for _ in range(2)))
    manager.script(**{verb: outcome(verb, what) for verb, what in outcomes.items() if verb != "on_connect"})
    hook[0] = outcome("on_connect", outcomes["on_connect"])

    async def fails(conn: FakeConnection) -> None:
        await conn.query()
        raise KeyError("the borrower's own")

    async def breaks(conn: FakeConnection) -> None:
        conn.dead = True
        await conn.query()

    users = [
        asyncio.create_task(tally.get()),
        asyncio.create_task(tally.get(work=fails)),
        asyncio.create_task(tally.get(1.5)),
        asyncio.create_task(tally.get(work=breaks)),
        asyncio.create_task(tally.get(0)),
        asyncio.create_task(tally.get()),
        asyncio.create_task(tally.get(2.5)),
    ]
    loop.call_later(0.4, users[5].cancel)
    users.append(asyncio.create_task(tally.try_get()))
    for moment in range(20):
        await asyncio.sleep(0.2)
        tally.check()
        if moment == 2:
            pool.evict()
            users.append(asyncio.create_task(tally.get()))
            tally.check()
        if moment == 6:
            pool.resize(max_size=1)
            tally.check()
    for end in await asyncio.gather(*users, return_exceptions=True):
        assert end is None or isinstance(end, asyncio.CancelledError)
    assert pool.state().waiting == pool.state().in_use == 0

    # All is well again, and when the connect that hangs has ended (1 s) and the longest back-off (2 s), the pool is, too.
    manager.script(**{verb: OK for verb in VERBS if verb != "on_connect"})
    hook[0] = OK
    pool.resize(max_size=3)
    before = tally.ends["served"]
    await asyncio.gather(*(tally.get(1 + 2 + 1) for _ in range(6)))
    assert tally.ends["served"] == before + 6
    await asyncio.sleep(10)
    state = pool.state()
    assert state.idle == state.idle + state.opening + state.validating + state.resetting + state.closing >= 1
    tally.check()
    start = loop.time()
    await pool.close(2)
    assert loop.time() - start <= 3
    tally.check()
    manager.check(open=0 if terminates else None)


@pytest.mark.parametrize("terminates", [True, False])
@pytest.mark.parametrize("connects", OUTCOMES)
@pytest.mark.parametrize("tests", OUTCOMES)
def test_pools_with_every_outcome_of_every_call_keep_their_promises(
    connects: str, tests: str, *, terminates: bool
) -> None:
    """deadpool's 4^5: nobody hangs past a deadline, the books balance at any time, and the pool recovers."""
    for rest in itertools.product(OUTCOMES, repeat=3):
        outcomes = dict(zip(VERBS, (connects, tests, *rest), strict=True))
        try:
            run(with_every_call_so(outcomes, terminates=terminates))
        except BaseException as error:
            error.add_note(f"with {outcomes}")
            raise


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_busy_pool_is_disturbed_at_any_turn_and_keeps_its_books(name: str) -> None:
    """Whatever its owner, its users or the server do, and in whatever moment of everybody's work."""
    turn = 0
    while run(disturbed((turn, name))):
        turn += 1
    assert turn > 20


@virtual
async def test_a_thousand_waiters_over_a_restart_make_no_herd_and_are_served_soon_after() -> None:
    """One connect at a time while backing off, never more than max_connecting, the first waiter within 3 s."""
    loop = asyncio.get_running_loop()
    down = [False]
    manager = ScriptedManager(connect=lambda _: Delay(0.05, ConnectionRefusedError("down") if down[0] else OK))
    async with Pool(manager, max_size=20, connection_timeout=120, error_sink=quiet) as pool:
        tally = Tally(pool)
        users = [asyncio.create_task(tally.get(work=lambda conn: conn.query(1))) for _ in range(1000)]
        await asyncio.sleep(2)
        assert pool.state().in_use == 20
        down[0] = True
        manager.kill()
        await asyncio.sleep(1.2)  # all 20 borrowers have seen it, and the first connects have failed
        assert manager.peak["connect"] <= 3
        manager.peak["connect"] = 0
        before = len(manager.calls("connect"))
        await asyncio.sleep(20)
        tally.check()
        assert manager.peak["connect"] == 1
        assert len(manager.calls("connect")) - before <= 40
        assert pool.state().in_use == 0
        down[0] = False
        back, served = loop.time(), tally.ends["served"]
        while tally.ends["served"] == served:
            await asyncio.sleep(0.05)
        assert loop.time() - back <= 3
        await asyncio.gather(*users)
        assert manager.peak["connect"] <= 3
        assert tally.ends == {"served": 1000}
        tally.check()


@virtual
async def test_two_hundred_waiters_live_through_a_restart_with_a_few_connects_a_second() -> None:
    """Most pools fail all of them, or connect 200 times a second."""
    down = [False]
    manager = ScriptedManager(connect=lambda _: ConnectionRefusedError("down") if down[0] else OK)
    async with Pool(manager, max_size=10, error_sink=quiet) as pool:
        tally = Tally(pool)
        await asyncio.gather(*(tally.get() for _ in range(20)))
        down[0] = True
        manager.kill(known=True)
        users = [asyncio.create_task(tally.get()) for _ in range(200)]
        await asyncio.sleep(10)
        attempts = Counter(int(call.time) for call in manager.calls("connect") if call.time > 1)
        assert max(attempts.values()) <= 10
        assert sum(attempts.values()) <= 30
        down[0] = False
        await asyncio.gather(*users)
        assert tally.ends == {"served": 220}
        tally.check()


@virtual
async def test_a_pool_larger_than_the_servers_limit_serves_all_with_what_it_gets() -> None:
    """Some find no place and wait for their turn; whoever times out reads why."""
    manager = ScriptedManager()

    def limited(_: object) -> Steps:
        full = len(manager.open) + manager.running["connect"] > 5
        return Steps(1, OSError("too many connections") if full else OK)

    manager.script(connect=limited)
    async with Pool(manager, max_size=10, error_sink=quiet) as pool:
        tally = Tally(pool)
        await asyncio.gather(*(tally.get(work=lambda conn: conn.query(1)) for _ in range(40)))
        assert tally.ends == {"served": 40}
        assert pool.state().statistics.connections_created == 5
        tally.check()
        holders = [asyncio.create_task(hold(pool, 100)) for _ in range(5)]
        await turns()
        with pytest.raises(PoolTimeout, match="too many connections") as caught:
            await pool.get(timeout=7)
        assert caught.value.waited == pytest.approx(7)
        assert isinstance(caught.value.__cause__, OSError)
        await asyncio.gather(*holders)
        books(pool)


@virtual
async def test_the_caller_of_a_hung_query_comes_back_at_once_when_it_is_cancelled() -> None:
    """asyncpg never, psycopg_pool after 13 s, SQLAlchemy after 5 s; the pool gets rid of the connection by itself."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, close_timeout=2) as pool:
        async with pool.get() as conn:
            manager.script(close=NEVER)  # the server is stopped
            query = asyncio.create_task(conn.query(1000))
            start = loop.time()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await query
        assert loop.time() - start == 1
        assert pool.state().closing == 1
        waiter = asyncio.create_task(hold(pool))
        await asyncio.sleep(3)
        assert conn.state == "terminated"
        assert await waiter is not conn
        closed(pool, broken=1)
        books(pool)
        manager.script(close=OK)


@virtual
async def test_a_connection_interrupted_in_mid_reply_is_lent_to_nobody() -> None:
    """redis-py, 2023: the next user read the reply that was meant for the one before."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2) as pool:
        tally = Tally(pool)
        users = [asyncio.create_task(tally.get(work=lambda conn: conn.query(1))) for _ in range(10)]
        for number, user in enumerate(users):
            await asyncio.sleep(0.3)
            if number % 2:
                user.cancel()
        await asyncio.gather(*users, return_exceptions=True)
        interrupted = [conn for conn in manager.connections if conn.broken]
        assert interrupted
        assert all(conn.state == "closed" for conn in interrupted)
        tally.check()
    manager.check(open=0)


@virtual
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, TimeoutError])
async def test_whatever_ends_the_body_makes_the_connection_suspect(error: type[BaseException]) -> None:
    """What was interrupted is unknown, so is_valid is asked before its next use, fresh as it is."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1) as pool:
        await hold(pool)
        with contextlib.suppress(error):
            async with pool.get():
                raise error
        assert manager.calls("is_valid") == []
        await hold(pool)
        assert len(manager.calls("is_valid")) == 1
        assert len(manager.connections) == 1
        books(pool)


@virtual
async def test_a_body_cut_off_by_asyncio_timeout_makes_the_connection_suspect() -> None:
    """The cancel has turned into a TimeoutError on its way out."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1) as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1), pool.get():
                await asyncio.sleep(5)
        await hold(pool)
        assert len(manager.calls("is_valid")) == 1
        books(pool)


@virtual
async def test_idle_connections_are_lent_at_once_while_others_connect_slowly() -> None:
    """aiomysql connects under the lock, so everybody waits for it."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager()
    async with Pool(manager, max_size=5, min_idle=2) as pool:
        manager.script(connect=Delay(9))
        start = loop.time()
        first, second = await pool.get(), await pool.get()
        assert pool.state().opening > 0
        first.release()
        await hold(pool)
        second.release()
        assert loop.time() == start
        await asyncio.sleep(20)
        books(pool)


@virtual
async def test_what_one_borrower_left_behind_is_wiped_before_the_next() -> None:
    """A role, a schema, a temporary table, an open MULTI: every peer leaks some of it."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2) as pool:

        async def leaves(conn: FakeConnection) -> None:
            assert not conn.dirty
            conn.dirty = True
            await conn.query()

        tally = Tally(pool)
        await asyncio.gather(*(tally.get(work=leaves) for _ in range(20)))
        assert tally.ends == {"served": 20}
        tally.check()


@virtual
async def test_a_deadline_is_absolute_over_queue_test_connect_and_their_retries() -> None:
    """connpool took 3 s for a timeout of 0.5 s."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager()
    async with Pool(manager, max_size=4, error_sink=quiet, max_connecting=1) as pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(4)))
        await asyncio.sleep(5)
        # Each step takes nearly as long as all may take; three tests in turn, then connects that fail.
        manager.script(is_valid=Delay(0.9, False), connect=Delay(0.4, OSError("down")), close=Delay(0.9))
        start = loop.time()
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=2.5)
        assert loop.time() - start == pytest.approx(2.5)
        assert caught.value.waited == pytest.approx(2.5)
        books(pool)


@virtual
async def test_on_connect_counts_within_create_timeout_and_on_close_within_close_timeout() -> None:
    """One budget for each end of a connection's life."""
    manager = ScriptedManager(connect=Delay(3), close=Delay(3))
    hooks = ScriptedCustomizer(on_connect=Delay(3), on_close=Delay(3))
    errors: list[BaseException] = []
    async with Pool(manager, create_timeout=5, close_timeout=5, customizer=hooks, error_sink=errors.append) as pool:
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=5.05)
        assert "create_timeout=5" in str(errors[0])
        manager.script(connect=OK)
        lease = await pool.get()
        conn = lease.conn
        errors.clear()
        lease.discard()
        await asyncio.sleep(5.5)
        assert "close_timeout=5" in str(errors[0])
        assert conn.state == "terminated"
        assert pool.state().closing == 0
        books(pool)


@virtual
async def test_an_authentication_failure_fails_gets_until_it_is_repaired_and_then_nothing_is_left_of_it() -> None:
    """Nobody has to restart the program after a password was set right."""
    manager = ScriptedManager(connect=PermissionError("wrong password"), is_transient=False)
    async with Pool(manager, error_sink=quiet) as pool:
        for _ in range(3):
            outcomes = await asyncio.gather(*(hold(pool) for _ in range(5)), return_exceptions=True)
            assert all(isinstance(outcome, ConnectError) for outcome in outcomes)
            assert all(isinstance(outcome.__cause__, PermissionError) for outcome in outcomes)
            await asyncio.sleep(1)
        manager.script(connect=OK)
        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(hold(pool) for _ in range(5)))
        assert asyncio.get_running_loop().time() - start <= 2
        books(pool)


@virtual
async def test_the_wall_clock_may_jump_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Monotonic time only: a pool that asked for the time of day would expire everything, or nothing, at each jump."""

    def jumps() -> float:
        raise AssertionError("the time of day was asked for")

    for clock in ("time", "time_ns", "localtime", "gmtime", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, jumps)
    manager = ScriptedManager(is_valid=Delay(0.1), reset=Delay(0.1))
    async with Pool(manager, max_size=2, min_idle=1, max_lifetime=100, idle_timeout=20, leak_threshold=5) as pool:
        await asyncio.gather(*(hold(pool, 1) for _ in range(5)))
        await asyncio.sleep(200)
        with pytest.raises(PoolTimeout):
            async with pool.get(), pool.get():
                await pool.get(timeout=1)
        books(pool)
        totals = pool.state().statistics.connections_closed
        assert sum(totals.values()) == 3


GETS = [10_000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(300)])]


@pytest.mark.parametrize("many", GETS)
@virtual
async def test_a_crowd_of_gets_with_time_outs_of_their_own_ends_together(many: int) -> None:
    """No step of the pool goes through all the others: a hundred thousand would take hours."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        gets = [asyncio.create_task(hold(pool, timeout=2.0)) for _ in range(many)]
        await turns(2)
        assert pool.state().waiting == many
        await asyncio.wait(gets)
        totals = pool.state().statistics
        assert (totals.gets_timed_out, pool.state().waiting, len(pool._state.queue.waiters)) == (many, 0, 0)
        assert all(isinstance(get.exception(), PoolTimeout) for get in gets)
        lease.release()
        books(pool)


@pytest.mark.parametrize("many", GETS)
@virtual
async def test_a_crowd_of_gets_is_cancelled_together(many: int) -> None:
    """As when a server of theirs shuts down; connects and tests are under way."""
    manager = ScriptedManager(connect=Delay(1))
    async with Pool(manager, max_size=10) as pool:
        gets = [asyncio.create_task(hold(pool)) for _ in range(many)]
        await turns(2)
        for get in reversed(gets):
            get.cancel()
        await asyncio.wait(gets)
        totals = pool.state().statistics
        assert (totals.gets_cancelled, pool.state().waiting, len(pool._state.queue.waiters)) == (many, 0, 0)
        await asyncio.sleep(5)
        await hold(pool)
        books(pool)
