"""What holds of PoolState whenever no event is being dealt with."""

from __future__ import annotations

from typing import Any

from pool_core._slot import CLOSING, IDLE, LENT, RESETTING, VALIDATING


def check_invariants(state: Any) -> None:
    """Raise AssertionError where the state contradicts itself."""
    _check_places(state)
    _check_links(state)
    _check_counts(state)
    _check_progress(state)


def _check_places(state: Any) -> None:
    fresh, stale, slots = state.idle.fresh, state.idle.stale, state.slots
    lent = [slot for slot in slots if slot.state is LENT]
    for name, place in ((IDLE, fresh), (IDLE, stale), (VALIDATING, state.validating), (RESETTING, state.resetting)):
        assert all(slot.state is name for slot in place), f"a connection is not {name} where it is kept as such"
    assert all(slot.state is CLOSING for slot in state.closing), "not closing"
    assert all(slot.holder is None for slot in slots if slot.state is not LENT), "has a holder, and is not in use"
    places = [*fresh, *stale, *state.validating, *state.resetting, *lent]
    assert len(places) == len(set(places)), "a connection has two owners"
    assert set(places) == set(slots), "a connection is open and nowhere, or somewhere and not open"
    assert state.closing.isdisjoint(slots), "a connection is open and closing"
    assert not state.is_open or state.extensions.keys() <= slots.keys(), "extensions of what is gone"


def _check_links(state: Any) -> None:
    for approval in state.connects:
        waiter = approval.waiter
        assert waiter is None or (waiter.queued and waiter.approval is approval), "a connect for a waiter that left"
    for test in state.validating.values():
        assert test.waiter is None or test.waiter.test is test, "a test for a waiter that left"


def _check_counts(state: Any) -> None:
    queued = [waiter for waiter in state.queue.waiters if waiter.queued]
    assert state.queue.live == len(queued), "the count of waiters is wrong"
    assert state.queue.tries == sum(waiter.idle_only for waiter in queued), "tries miscounted"
    for name, trials in (("tests", state.validating), ("resets", state.resetting)):
        assert trials.late == sum(trial.late for trial in trials.values()), f"the count of late {name} is wrong"
    opened = state.counters.created + state.counters.added
    assert opened == len(state.slots) + sum(state.counters.closed.values()), "the books do not balance"


def _check_progress(state: Any) -> None:
    live, validating = state.queue.live, len(state.validating)
    waits = live > validating if state.idle.fifo else live
    assert not (waits and state.idle.fresh), "somebody waits while a connection is idle and lendable"
    assert not (live > validating and state.idle.stale), "somebody waits while an idle connection could be tested"
    assert state.slow or (state.is_open and not live), "the warm path is open to overtakers"
    if state.slow is False and state.min_idle and state.supply.has_room():
        idle_after_get = state.floor + len(state.idle.stale) + state.supply.coming()
        assert idle_after_get >= state.min_idle, "the warm path undercuts min_idle"
    if state.supply.may_connect(state.tick):
        assert state.supply.lack() <= state.queue.tries, "capacity is free, somebody waits, and nobody makes progress"
