"""The repair of a state that an interrupt has left half changed: each kind of half, and twice is as good as once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pool_core import PoolConfig
from pool_core._repair import repair
from pool_core._slot import CLOSING, IDLE, LENT, RESETTING, VALIDATING, Order, Slot, Waiter
from pool_core._state import PoolState
from pool_core._statistics import CloseReason

from .invariants import check_invariants

Sabotage = Callable[[PoolState[Any], list[Slot[Any]]], None]


class Silent(Waiter[Any]):
    """A waiter that takes what it gets."""

    got: Any = None
    failed = False

    def offer(self, slot: Slot[Any] | None) -> bool:
        self.got = slot
        return True

    def gone(self) -> bool:
        return False

    def fail(self, error: BaseException | None) -> None:
        self.failed = True


def made() -> tuple[PoolState[Any], list[Slot[Any]]]:
    ids = iter(range(1, 100))
    state: PoolState[Any] = PoolState(PoolConfig(max_size=5), lambda: next(ids), wipes=True)
    state.open(0.0, starting=False)
    slots = [state.add(f"connection {n}", 0.0, 1000.0) for n in range(4)]
    state.take_work()
    return state, [slot for slot in slots if slot is not None]


def mended(state: PoolState[Any], waiters: list[Any] | None = None, under_way: Any = ()) -> list[tuple[Order, Any]]:
    repair(state, 1.0, waiters or [], under_way)
    check_invariants(state)
    first = [*state.work]
    repair(state, 1.0, waiters or [], under_way)
    check_invariants(state)
    assert {subject for _, subject in state.work} == {subject for _, subject in first}
    return state.work


def vanish(state: PoolState[Any], slots: list[Slot[Any]]) -> None:
    state.idle.remove_these({slots[0]})


def lost_at_birth(state: PoolState[Any], slots: list[Slot[Any]]) -> None:
    state.idle.remove_these({slots[0]})
    slots[0].state = VALIDATING


def cleared(state: PoolState[Any], slots: list[Slot[Any]]) -> None:
    state.fresh.clear()


@pytest.mark.parametrize("sabotage", [vanish, lost_at_birth, cleared])
def test_an_idle_connection_on_its_way_is_idle_again_and_validated(sabotage: Sabotage) -> None:
    """It was in no place; nobody had used it."""
    state, slots = made()
    sabotage(state, slots)
    mended(state)
    assert slots[0] in state.stale
    assert len(state.slots) == 4


@pytest.mark.parametrize("where", [RESETTING, "in use without a holder"])
def test_a_connection_on_its_way_back_is_terminated(where: str) -> None:
    """It is not known to be clean."""
    state, slots = made()
    state.idle.remove_these({slots[0]})
    slots[0].state = LENT
    if where == RESETTING:
        slots[0].state = RESETTING
    work = mended(state)
    assert (Order.TERMINATE, slots[0]) in work
    assert state.counters.closed[CloseReason.LEAKED] == 1


def test_a_lent_connection_stays_lent() -> None:
    """Its lease has it."""
    state, slots = made()
    slot = state.candidate()
    assert slot is not None
    state.lend(slot, "holder", 0.5)
    assert mended(state) == []
    assert (slot.state, slot.holder) == (LENT, "holder")


def test_a_close_that_was_cut_off_goes_on() -> None:
    """Before and after it left the slots."""
    state, slots = made()
    state.closing.add(slots[0])  # the first step of close_one
    state.idle.remove_these({slots[1]})
    state.close_one(slots[1], CloseReason.IDLE)
    work = mended(state)
    assert {slot for order, slot in work if order is Order.TERMINATE} == {slots[0], slots[1]}
    assert slots[0].state == CLOSING
    assert len(state.slots) == 2
    assert mended(state, under_way={slots[0], slots[1]}) == []


def test_validations_and_resets_without_a_call_are_begun_or_given_up() -> None:
    """Their orders were lost with the turn."""
    state, slots = made()
    for slot in slots[:2]:
        state.idle.remove_these({slot})
    state.begin_test(slots[0], 0.5)
    state.begin_test(slots[1], 0.5, Order.CHECK)
    lent = state.candidate()
    assert lent is not None
    state.lend(lent, "holder", 0.5)
    state.begin_reset(lent, 0.6)
    state.take_work()
    work = mended(state)
    assert (Order.TEST, slots[0]) in work
    assert (Order.CHECK, slots[1]) in work
    assert (Order.TERMINATE, lent) in work


def test_running_calls_are_left_alone() -> None:
    """What has a call ends by itself."""
    state, slots = made()
    state.idle.remove_these({slots[0]})
    state.begin_test(slots[0], 0.5)
    lent = state.candidate()
    assert lent is not None
    state.lend(lent, "holder", 0.5)
    state.begin_reset(lent, 0.6)
    state.take_work()
    assert mended(state, under_way={slots[0], lent}) == []
    assert (slots[0].state, lent.state) == (VALIDATING, RESETTING)


def test_waiters_without_an_answer_stand_in_the_queue_again() -> None:
    """Also the one that the hand-off had taken out."""
    state, _ = made()
    for _ in range(4):
        slot = state.candidate()
        assert slot is not None
        state.lend(slot, "holder", 0.5)
    waiters = [Silent(n) for n in range(3)]
    for waiter in waiters:
        state.enqueue(waiter, 0.6)
    state.queue.waiters.popleft()
    waiters[0].queued = False
    state.queue.live = 7
    state.counters.waiting = 9
    (approval,) = state.connects
    mended(state, waiters, under_way={approval})
    assert [*state.queue.waiters] == waiters
    assert state.queue.live == state.counters.waiting == 3
    assert approval.waiter is waiters[0]


def test_an_approval_without_a_call_is_replaced() -> None:
    """Or a get would wait for a connection attempt that nobody makes."""
    state, _ = made()
    for _ in range(4):
        slot = state.candidate()
        assert slot is not None
        state.lend(slot, "holder", 0.5)
    waiter = Silent(1)
    state.enqueue(waiter, 0.6)
    (lost,) = state.connects
    state.take_work()
    repair(state, 1.0, [waiter], ())
    (approval,) = state.connects
    assert approval is not lost
    assert (Order.CONNECT, approval) in state.work


def test_a_closing_state_keeps_nothing_idle_and_nobody_waiting() -> None:
    """close() was interrupted after its first step."""
    state, slots = made()
    lent = state.candidate()
    assert lent is not None
    state.lend(lent, "holder", 0.5)
    waiter = Silent(1)
    state.is_open = False
    work = mended(state, [waiter])
    assert waiter.failed
    assert len(work) == 3
    assert lent.mark is CloseReason.POOL_CLOSED
    assert lent.state is LENT
    assert IDLE not in {slot.state for slot in state.slots}


def test_a_parked_clock_starts_where_something_is_fresh() -> None:
    """The warm path has no clock of its own."""
    state, _ = made()
    state.agenda.parked = True
    mended(state)
    assert not state.agenda.parked
