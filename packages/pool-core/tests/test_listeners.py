"""Listeners that come and go while the pool runs, and numbers that other threads may read: what metrics stand on."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest
from pool_core import CheckedIn, CheckedOut, Closed, Connected, Event, Pool, WrongEventLoop
from pool_core._pool import _after_fork_in_child
from pool_core.testing import Delay, ScriptedCustomizer, ScriptedManager

from .helpers import virtual

if TYPE_CHECKING:
    from pool_core._slot import Slot


def kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


@virtual
async def test_a_listener_that_comes_to_a_warm_pool_hears_of_every_get_and_return() -> None:
    """The warm path tells nobody anything, so it must be left at once."""
    events: list[Event] = []
    async with Pool(ScriptedManager(), max_size=1, min_idle=1) as pool:
        async with pool.get():  # by the warm path
            pool.add_listener(events.append)
        async with pool.get():
            await asyncio.sleep(1.5)
    assert kinds(events) == [CheckedIn, CheckedOut, CheckedIn, Closed]
    assert cast("CheckedIn", events[2]).held == 1.5


@virtual
async def test_when_the_last_listener_is_gone_the_warm_path_is_back() -> None:
    """Nobody listening costs one truth test, also afterwards."""
    events: list[Event] = []
    async with Pool(ScriptedManager(), max_size=1, min_idle=1) as pool:
        ends = [pool.add_listener(events.append), pool.add_listener(events.append)]
        ends[0]()
        ends[0]()  # does nothing: the other one, though the same function, stays
        async with pool.get():
            assert pool._state.slow
        assert kinds(events) == [CheckedOut, CheckedIn]
        ends[1]()
        async with pool.get():
            assert not pool._state.slow
    assert len(events) == 2


@virtual
async def test_a_manager_without_reset_gets_its_connections_back_by_every_way() -> None:
    """By the warm path, by the way to somebody who waits, and by the longer way while somebody listens."""
    events: list[Event] = []
    async with Pool(ScriptedManager(without=["reset"]), max_size=1) as pool:

        async def use() -> None:
            async with pool.get():
                await asyncio.sleep(1)

        await use()
        await asyncio.gather(use(), use())
        pool.add_listener(events.append)
        await use()
        assert (pool.state().idle, pool.state().statistics.connections_created) == (1, 1)
    assert kinds(events) == [CheckedOut, CheckedIn, Closed]


@virtual
async def test_a_listener_may_come_before_the_pool_is_opened_and_stays_when_it_is_opened_again() -> None:
    """A program is put together first, and started later."""
    events: list[Event] = []
    pool = Pool(ScriptedManager(), min_idle=1)
    end = pool.add_listener(events.append)
    for _ in range(2):
        async with pool:
            pass
    assert kinds(events) == [Connected, Closed] * 2
    end()
    async with pool:
        pass
    assert len(events) == 4


@virtual
async def test_a_new_connection_says_how_long_its_connect_took_with_its_hook() -> None:
    """One that was added did not connect here."""
    events: list[Event] = []
    manager = ScriptedManager(connect=Delay(2.0))
    customizer: Any = ScriptedCustomizer(on_connect=Delay(0.5))
    async with Pool(manager, listeners=[events.append], customizer=customizer) as pool:
        async with pool.get():
            pass
        pool.add(await manager.connect())
    assert [event.took for event in events if isinstance(event, Connected)] == [2.5, None]


@virtual
async def test_what_is_no_function_is_refused() -> None:
    """At the place of the mistake, not at the next event."""
    pool = Pool(ScriptedManager())
    with pytest.raises(TypeError, match=r"listener=\[\]: must be callable with one event"):
        pool.add_listener(cast("Any", []))


@virtual
async def test_listeners_are_added_on_the_pools_loop() -> None:
    """As everything that changes a pool."""
    async with Pool(ScriptedManager()) as pool:
        with pytest.raises(WrongEventLoop):
            await asyncio.to_thread(pool.add_listener, print)


@virtual
async def test_a_listener_that_ends_in_the_child_of_a_fork_opens_no_way_to_the_parents_connections() -> None:
    """Exporters are shut down at the exit of each process."""
    pool = Pool(ScriptedManager(), min_idle=1)
    await pool.open()
    end = pool.add_listener(lambda _: None)
    _after_fork_in_child()
    end()
    assert pool._state.slow
    pool._shell.life.forked, pool._shell.life.thread = False, threading.get_ident()
    await pool.close()


@virtual
async def test_a_connection_that_comes_while_another_thread_reads_the_numbers_disturbs_nothing() -> None:
    """Exporters of metrics read from threads of their own; a dict that grows under a loop over it raises."""
    async with Pool(ScriptedManager(), min_idle=2) as pool:

        class Growing:
            """Stands there as a connection does, and lets another one in while it is looked at."""

            @property
            def uses(self) -> int:
                pool._state.slots[newcomer] = None
                return 0

        growing, newcomer = cast("Slot[Any]", Growing()), cast("Slot[Any]", Growing())
        pool._state.slots[growing] = None
        assert pool.state().statistics.gets_started == 0
        del pool._state.slots[growing], pool._state.slots[newcomer]
