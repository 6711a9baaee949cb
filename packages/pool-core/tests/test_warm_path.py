"""The warm path takes decisions of its own: they must be those that the state would take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_core import CheckedOut, Event, Pool, PoolError, QueueStrategy
from pool_core.testing import OK, Delay, FakeConnection, ScriptedManager, Steps, run, settle

from .helpers import books, hold, virtual

BEAT = 1 / 16
"""The warm path's clock in the pools below: an eighth of ``alive_bypass``. Binary, so that sums of it are exact."""
TICK = 1 / 2048
"""So short that all waits of a history end well below ``alive_bypass``, but for the long ones."""
WAITS = [0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 9]
LONG = 2.0
"""Seconds, well beyond ``alive_bypass``."""
STEPS_MOST = 50

Step = tuple[str, int, str]

CALM = ["wait", "wait", "dirty", "raise", "cancel", "evict", "resize", "lease", *["get"] * 7, *["leave"] * 9]
KILLS = ["leave broken", "break idle", "break in use", "die"]


def steps(acts: list[str]) -> st.SearchStrategy[list[Step]]:
    """Draw what happens to a pool: an act, a number that says to whom or how much, and what runs before the next act."""
    pause = st.sampled_from(["settle", "settle", "settle", "turn", "nothing"])
    return st.lists(st.tuples(st.sampled_from(acts), st.integers(0, 11), pause), min_size=15, max_size=STEPS_MOST)


def options(**more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw the options of a pool whose warm path is open; the clock of each beats once a ``BEAT``."""
    return st.fixed_dictionaries(
        {
            "max_size": st.integers(1, 5),
            "min_idle": st.sampled_from([0, 0, 1, 2]),
            "queue_strategy": st.sampled_from(QueueStrategy),
            "max_waiting": st.sampled_from([None, None, 1]),
            "discard_on_exception": st.booleans(),
            **more,
        }
    )


CHECKED = st.sampled_from(
    [
        *[{"alive_bypass": 8 * BEAT}] * 4,
        *[{"alive_bypass": 8 * BEAT, "idle_timeout": 12 * BEAT}] * 2,
        *[{"test_on_check_out": False, "idle_timeout": 8 * BEAT}] * 4,
        {"alive_bypass": 0},
    ]
)
"""How connections are validated; ``alive_bypass=0`` has no warm path."""


def raises(conn: FakeConnection) -> object:
    """Script has_broken so that it raises where it would be true: the same to the pool."""
    return RuntimeError("the driver is at its end") if conn.broken else OK


MANAGERS = st.fixed_dictionaries(
    {
        "connect": st.sampled_from([OK, Steps(2), Delay(BEAT)]),
        "is_valid": st.sampled_from([None, Steps(2), Delay(BEAT)]),
        # Without a script `reset` returns None for a clean connection, and a coroutine for a dirty one.
        "reset": st.sampled_from(["missing", None, None, Steps(2), Delay(BEAT)]),
        "has_broken": st.sampled_from([None, None, raises]),
        "close": st.sampled_from([OK, Steps(3)]),
    }
)


class History:
    """One pool, its borrowers, and everything that is visible from outside, step by step.

    ``unit``: how many seconds a wait of 1 lasts. With a listener, every get and every return takes the slow path.
    """

    def __init__(self, options: dict[str, Any], scripts: dict[str, Any], *, unit: float, observed: bool) -> None:
        given = {method: script for method, script in scripts.items() if script not in (None, "missing")}
        without = [method for method, script in scripts.items() if script == "missing"]
        self.manager = ScriptedManager(without=without, **given)
        self.options = {"max_lifetime": None, **options}
        self.options["min_idle"] = min(options["min_idle"], options["max_size"])
        self.observed = observed
        self.unit = unit
        self.running: dict[int, asyncio.Task[None]] = {}
        self.holding: dict[int, tuple[FakeConnection, asyncio.Future[str]]] = {}
        self.seen: list[Any] = []  # since the last step
        self.logged = 0
        self.events: list[Event] = []
        self.steps: list[list[Any]] = []

    async def run(self, steps: list[Step]) -> list[list[Any]]:
        """Do the steps, end all that is left, and close the pool."""
        listeners = [self.events.append] if self.observed else []
        loop = asyncio.get_running_loop()
        self.pool: Pool[FakeConnection] = Pool(
            self.manager, listeners=listeners, error_sink=lambda _: None, lifetime_jitter=0, **self.options
        )
        async with self.pool:
            for number, step in enumerate(steps):
                if self.unit == TICK:  # two returns at one instant have no order
                    await asyncio.sleep(TICK)
                await self.act(number, *step)
                self.look(number, *step)
            for task in [*self.running.values()]:
                task.cancel()
            await settle()
        self.look("closed", loop.time())
        if self.observed:  # none of its gets and returns took the warm path
            served = self.pool.state().statistics
            assert sum(type(event) is CheckedOut for event in self.events) == served.gets_direct + served.gets_waited
        self.manager.check(open=0)
        return self.steps

    async def act(self, number: int, act: str, pick: int, pause: str) -> None:
        """One step, and what runs before the next one."""
        if act == "wait":
            await asyncio.sleep(WAITS[pick] * self.unit if pick < len(WAITS) else LONG)
            pause = "settle"  # whatever is due now happens first: what the clock of the warm path does, for one
        elif act in ("get", "lease"):
            timeout = [0, 3 * BEAT, None][min(pick % 4, 2)]
            borrower = self.borrower(number, timeout, awaited=act == "lease")
            self.running[number] = asyncio.create_task(borrower, name=str(number))
        elif act == "cancel" and self.running:
            [*self.running.values()][pick % len(self.running)].cancel()
        elif act == "evict":
            self.pool.evict(None if pick == 0 else lambda conn: conn.id % 3 == pick % 3)
        elif act == "resize":
            size = 1 + pick % 4
            self.pool.resize(max_size=size, min_idle=min(self.options["min_idle"], size))
        elif act == "break idle":
            in_use = [conn for conn, _ in self.holding.values()]
            for conn in [conn for conn in self.manager.open if conn not in in_use][: 1 + pick % 3]:
                conn.broken = True
        elif act == "die" and self.manager.open:  # its driver has not noticed yet
            self.manager.open[pick % len(self.manager.open)].dead = True
        elif self.holding and act in ("leave", "raise", "dirty", "leave broken", "break in use"):
            conn, left = [*self.holding.values()][pick % len(self.holding)]
            if act in ("leave broken", "break in use"):
                conn.broken = True
            if act != "break in use" and not left.done():
                left.set_result(act)
        await {"settle": settle, "turn": lambda: asyncio.sleep(0), "nothing": _nothing}[pause]()

    async def borrower(self, number: int, timeout: float | None, *, awaited: bool) -> None:
        """Get a connection, and leave its block when and how a step says."""
        try:
            lease = self.pool.get(timeout)
            async with await lease if awaited else lease as conn:
                self.seen.append(("has", number, conn.id))
                left = asyncio.get_running_loop().create_future()
                self.holding[number] = (conn, left)
                try:
                    how = await left
                finally:
                    del self.holding[number]
                conn.dirty = conn.dirty or how == "dirty"
                if how == "raise":
                    raise KeyError(number)
        except (PoolError, KeyError, asyncio.CancelledError) as error:
            self.seen.append((type(error).__name__, number))
        else:
            self.seen.append(("left", number))
        finally:
            del self.running[number]

    def look(self, *step: Any) -> None:
        """Note what has changed: who got which connection, each call of the manager and its time, each counter."""
        books(self.pool)
        log = self.manager.log[self.logged :]
        self.logged = len(self.manager.log)
        seen, self.seen = self.seen, []
        # Between two beats the warm path knows the time of a hand-off to one beat only.
        holders = sorted((holder.task, holder.held if self.unit == BEAT else None) for holder in self.pool.holders())
        self.steps.append([step, seen, log, holders, self.pool.state()])


async def _nothing() -> None:
    pass


def both_ways(steps: list[Step], options: dict[str, Any], scripts: dict[str, Any], unit: float) -> None:
    """Whatever is seen of one pool, step by step, is seen of the other one."""
    fast, slow = (
        run(lambda: History(options, scripts, unit=unit, observed=observed).run(steps))  # noqa: B023
        for observed in (False, True)
    )
    for warm, cold in zip(fast, slow, strict=True):
        assert warm == cold


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    steps=steps(CALM + KILLS + ["wait"] * 2),
    options=options(max_lifetime=st.sampled_from([None, None, 40 * BEAT]), max_uses=st.sampled_from([*[None] * 8, 3])),
    checked=CHECKED,
    scripts=MANAGERS,
)
def test_on_its_beats_the_warm_path_equals_the_slow_one(
    steps: list[Step], options: dict[str, Any], checked: dict[str, Any], scripts: dict[str, Any]
) -> None:
    """All time passes in whole beats, at which the warm path's clock is right: so nothing may differ at all."""
    both_ways(steps, {**options, **checked, "reap_interval": 16 * BEAT}, scripts, BEAT)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(steps=steps(CALM), options=options(), scripts=MANAGERS)
def test_between_its_beats_the_warm_path_equals_the_slow_one(
    steps: list[Step], options: dict[str, Any], scripts: dict[str, Any]
) -> None:
    """Where the clock is late by less than a beat, no decision depends on it.

    Waits end well below ``alive_bypass``, all together, or well beyond it. No connection dies: two that die within one
    beat may count as one event, or as two.
    """
    both_ways(steps, {**options, "alive_bypass": 8 * BEAT}, scripts, TICK)


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
