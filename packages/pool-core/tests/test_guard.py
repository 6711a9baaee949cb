"""The guard itself: it finds what it is there to find, and is silent on a sound pool."""

from __future__ import annotations

from math import inf

from pool_core import Pool
from pool_core.testing import Delay, ScriptedManager, settle

from .guard import problems
from .helpers import virtual


@virtual
async def test_guard_is_silent_while_every_kind_of_call_runs() -> None:
    manager = ScriptedManager(connect=Delay(1), reset=Delay(1), close=Delay(1))
    pool = Pool(manager, max_size=3, min_idle=1)
    async with pool:
        async with pool.get():
            assert problems(pool._shell) == []
        assert pool.state().resetting == 1
        pool.evict()
        await settle()
        assert problems(pool._shell) == []


@virtual
async def test_guard_finds_an_approval_without_a_call() -> None:
    """So begins a pool that can never be closed."""
    async with Pool(ScriptedManager(connect=Delay(1))) as pool:
        pool._state.supply._approve(None, 0.0)
        found = problems(pool._shell)
        assert found[0] == "work of the state is left over: connect"
        assert found[1] == "1 of 1 connects without a call under way"
        pool._shell.turn()
        assert problems(pool._shell) == []


@virtual
async def test_guard_finds_a_late_alarm() -> None:
    async with Pool(ScriptedManager(), min_idle=1) as pool:
        alarm = pool._shell.alarm
        at, alarm.at = alarm.at, inf
        assert "the alarm rings at inf s" in problems(pool._shell)[0]
        alarm.at = at
        assert problems(pool._shell) == []
