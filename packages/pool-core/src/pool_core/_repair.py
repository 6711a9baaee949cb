"""Make the state right again after an event that was interrupted in the middle.

Only the pool for threads needs this: a KeyboardInterrupt can arrive in its main thread between any two steps of an event.
The asynchronous pool lets no interrupt into an event. What is where is then the truth, and all that follows from it is made
anew: names, links, counts, orders. Running it twice does no harm, so it may be interrupted too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ._slot import CLOSING, IDLE, LENT, OPENING, RESETTING, VALIDATING, Order
from ._statistics import CloseReason

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from ._slot import Slot, Waiter
    from ._state import PoolState

C = TypeVar("C")


def repair(state: PoolState[C], now: float, waiters: Iterable[Waiter[C]], under_way: Container[Any]) -> None:
    """Repair the state.

    Args:
        state: What was interrupted.
        now: The time.
        waiters: Those that wait and have no answer, in the order in which they came.
        under_way: The approvals and slots that have a call of the manager.
    """
    state.work.clear()
    _repair_places(state)
    _repair_queue(state, waiters)
    _repair_work(state, under_way)
    counters = state.counters
    counters.waiting = state.queue.live - state.queue.tries
    # A connection is counted right after it has left its place.
    missing = counters.created + counters.added - len(state.slots) - sum(counters.closed.values())
    counters.closed[CloseReason.LEAKED] += missing
    state.agenda.due = now
    state.queue.pass_on()
    if state.agenda.parked and state.idle.fresh:
        state.agenda.start_clock(now)
    state._serve(now)


def _repair_places(state: PoolState[C]) -> None:
    """Have each connection in exactly one place.

    One in use stays so: its lease has it, or the thread that was interrupted while it returned it does so once more.
    """
    idle = state.idle
    for slot in [*state.slots]:
        if slot in state.closing:
            del state.slots[slot]  # `close_one` had begun: counted as missing
            idle.remove_these({slot})
            _put(slot, CLOSING)
            slot.mark = slot.mark or CloseReason.LEAKED
            state.counters.uses_gone += slot.uses
        elif slot in state.validating:
            _put(slot, VALIDATING)
        elif slot in state.resetting:
            _put(slot, RESETTING)
        elif slot in idle.fresh or slot in idle.stale:
            _put(slot, IDLE)
        elif slot.state is LENT and slot.holder is not None:
            pass
        elif slot.state in (IDLE, OPENING, VALIDATING):
            _put(slot, IDLE)  # on its way from one place to another: sound, and to be validated
            idle.stale.append(slot)
        else:  # on its way back from a borrower: not known to be clean
            state.close_one(slot, CloseReason.LEAKED, terminate=True)
    for slot in state.closing:
        _put(slot, CLOSING)
    if not state.is_open:
        for slot in idle.remove(lambda _: True):
            state.close_one(slot, CloseReason.POOL_CLOSED)
        for slot in state.slots:
            slot.mark = slot.mark or CloseReason.POOL_CLOSED


def _put(slot: Slot[C], state: str) -> None:
    """Say where it is."""
    slot.holder = None
    if slot.state != state:
        slot.state = state


def _repair_queue(state: PoolState[C], waiters: Iterable[Waiter[C]]) -> None:
    """Have those and only those in the queue that wait, without links."""
    queue = state.queue
    waiting = [*waiters]
    queue.waiters.clear()
    queue.waiters.extend(waiting)
    queue.live = len(waiting)
    queue.tries = sum(waiter.idle_only for waiter in waiting)
    for waiter in waiting:
        waiter.queued = True
        waiter.approval = waiter.test = None
    for approval in state.connects:
        approval.waiter = None
    for trials in (state.validating, state.resetting):
        trials.late = sum(trial.late for trial in trials.values())
        for trial in trials.values():
            trial.waiter = None
    if not state.is_open:
        queue.fail_all(None)


def _repair_work(state: PoolState[C], under_way: Container[Any]) -> None:
    """Order again what was ordered, and has no call."""
    if state.is_open:
        for approval in [*state.connects]:
            if approval not in under_way:
                state.connects.redeem(approval)  # the end of the repair begins another, if one is still needed
        for slot, trial in state.validating.items():
            if slot not in under_way:
                state.work.append((Order.CHECK if trial.bare else Order.TEST, slot))
    for slot in [*state.resetting]:
        if slot not in under_way:
            state.resetting.end(slot)
            state.close_one(slot, CloseReason.LEAKED, terminate=True)
    ordered = {slot for order, slot in state.work if order in (Order.CLOSE, Order.TERMINATE)}
    for slot in state.closing:
        if slot not in under_way and slot not in ordered:
            state.work.append((Order.TERMINATE, slot))
