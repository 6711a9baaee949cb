"""The warm path takes decisions of its own: they must be those that the state would take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_core import Pool, PoolTimeout, QueueStrategy
from pool_core.testing import ScriptedManager, run

from .helpers import books, hold, virtual

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["get", "get", "get", "give", "give", "raise", "break", "kill", "sleep", "evict", "resize"]),
        st.integers(0, 9),
    ),
    max_size=40,
)


async def history(
    steps: list[tuple[str, int]], *, observed: bool, options: dict[str, Any]
) -> tuple[list[Any], Pool[Any]]:
    """Run the same steps; with a listener every get and return takes the slow path."""
    listeners = [lambda _: None] if observed else []
    manager = ScriptedManager()
    seen: list[Any] = []
    pool = Pool(manager, listeners=listeners, max_lifetime=None, error_sink=lambda _: None, **options)
    await pool.open()
    base = 0
    held: list[Any] = []
    for step, number in steps:
        if step == "get":
            lease = pool.get(timeout=0.01)
            try:
                conn = await lease.__aenter__()
            except PoolTimeout:
                seen.append("timeout")
            else:
                held.append((lease, conn))
                seen.append(conn.id - base)
        elif step in ("give", "raise", "break") and held:
            lease, conn = held.pop(number % len(held))
            conn.broken = conn.broken or step == "break"
            await lease.__aexit__(KeyError if step == "raise" else None, None, None)
        elif step == "kill":
            if manager.connections:
                manager.connections[number % len(manager.connections)].broken = True
        elif step == "sleep":
            await asyncio.sleep(number / 8)
        elif step == "evict":
            third = number % 3
            pool.evict(lambda conn: conn.id % 3 == third)  # noqa: B023
        elif step == "resize":
            pool.resize(max_size=max(options["min_idle"], 1 + number % 4))
        await asyncio.sleep(0.001)
        now = pool.state()
        totals = now.statistics
        books(pool)
        seen.append((now.idle, now.in_use, totals.gets_direct, totals.gets_waited, len(manager.calls("is_valid"))))
    for lease, _ in held:
        await lease.__aexit__(None, None, None)
    await pool.close()
    seen.append(dict(pool.state().statistics.connections_closed))
    return seen, pool


@settings(max_examples=200, deadline=None)
@given(
    steps=STEPS,
    max_size=st.integers(1, 4),
    min_idle=st.integers(0, 1),
    fifo=st.booleans(),
    tests=st.booleans(),
)
def test_the_warm_path_equals_the_slow_one(
    steps: list[tuple[str, int]], max_size: int, min_idle: int, *, fifo: bool, tests: bool
) -> None:
    """Whole histories, seen from outside, are the same both ways."""
    options = {
        "max_size": max_size,
        "min_idle": min_idle,
        "queue_strategy": QueueStrategy.FIFO if fifo else QueueStrategy.LIFO,
        "test_on_check_out": tests,
    }
    steps = [step for step in steps if step[0] != "kill"]
    fast, _ = run(lambda: history(steps, observed=False, options=options))
    slow, _ = run(lambda: history(steps, observed=True, options=options))
    # The warm path's clock beats eight times in alive_bypass: a test may come one beat early.
    if not any(step == "sleep" for step, _ in steps):
        assert fast == slow
    else:
        assert [x for x in fast if not isinstance(x, tuple)][-1] == [x for x in slow if not isinstance(x, tuple)][-1]


@virtual
async def test_the_warm_path_is_taken_and_left_when_it_must_be() -> None:
    """The flag follows waiters, closing and rest."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        state = pool._state
        assert state.slow
        await hold(pool)
        assert not state.slow
        async with pool.get():
            assert not state.slow
            waiter = asyncio.create_task(hold(pool))
            await asyncio.sleep(0)
            assert state.slow
        await waiter
        assert not state.slow
        await asyncio.sleep(2)
        assert state.slow  # nothing fresh is left: its clock has stopped
    assert state.slow


@virtual
async def test_the_warm_clock_stops_when_there_is_no_traffic() -> None:
    """An idle program is not woken eight times a second."""
    for options in ({}, {"test_on_check_out": False}):
        async with Pool(ScriptedManager(), max_lifetime=None, idle_timeout=None, **options) as pool:  # type: ignore[arg-type]
            for _ in range(100):
                await hold(pool)
                await asyncio.sleep(0.05)
            await asyncio.sleep(30)
            assert asyncio.get_running_loop().timers() == []  # type: ignore[attr-defined]
            await hold(pool)


@virtual
async def test_hold_times_are_accurate_to_one_beat() -> None:
    """On the warm path nobody reads a clock."""
    async with Pool(ScriptedManager(), max_size=2) as pool:
        await hold(pool)
        for _ in range(50):
            await hold(pool)
            await asyncio.sleep(0.03)
        async with pool.get():
            await asyncio.sleep(3)
            assert abs(pool.holders()[0].held - 3) <= 0.0625


@virtual
@pytest.mark.parametrize("without", [[], ["reset"]])
async def test_a_warm_get_and_return_go_through_nothing_but_the_lease(
    without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The price of the long way is paid only by those who need it."""
    async with Pool(ScriptedManager(without=without), max_size=2) as pool:
        await hold(pool)

        def long_way(*_: object, **__: object) -> None:
            raise AssertionError("the long way was taken")

        for method in ("acquire", "take_or_queue"):
            monkeypatch.setattr(pool._shell.gets, method, long_way)
        for method in ("give_back", "turn"):
            monkeypatch.setattr(pool._shell, method, long_way)
        for _ in range(3):
            async with pool.get() as conn:
                assert conn.state == "open"
        monkeypatch.undo()
        books(pool)


@virtual
async def test_the_warm_path_counts_uses_and_hold_times() -> None:
    """As the long way does."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        await hold(pool)
        await asyncio.sleep(0.3)
        async with pool.get():
            await asyncio.sleep(0.2)
            assert pool.holders()[0].held == pytest.approx(0.2, abs=0.07)
        assert pool.state().statistics.gets_started == 2
        books(pool)
