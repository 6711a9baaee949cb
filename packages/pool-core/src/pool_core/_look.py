"""What operators ask beyond the numbers: how long has somebody waited, who holds what, where is each connection.

Everything here may be called from any thread: exporters and web servers have threads of their own. So containers are
copied before they are looked at, and what another thread changes meanwhile is seen as it was or as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ._slot import LENT
from ._statistics import Holder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._slot import Waiter
    from ._state import PoolState

T = TypeVar("T")


def copied(container: Iterable[T]) -> tuple[T, ...]:
    """Copy a container that another thread may be changing."""
    for _ in range(20):
        try:
            return tuple(container)
        except RuntimeError:  # changed during the iteration: only without the GIL
            continue
    return ()


def waiters(state: PoolState[Any]) -> list[Waiter[Any]]:
    """Those who wait now, in order."""
    return [waiter for waiter in copied(state.queue.waiters) if waiter.queued and not waiter.idle_only]


def oldest_wait(state: PoolState[Any], now: float) -> float:
    """For how many seconds the first waiter has waited; 0: nobody waits."""
    first = waiters(state)[:1]
    return max(0.0, now - first[0].started) if first else 0.0


def longest_lease(state: PoolState[Any], now: float) -> float:
    """For how many seconds the longest lease has lasted; 0: there is none."""
    return max([0.0, *(now - slot.stamp for slot in copied(state.slots) if slot.state == LENT)])


def holders(state: PoolState[Any], now: float) -> list[Holder]:
    """Who holds what, and how long; the longest first."""
    found = [
        Holder(slot.id, task.get_name(), max(0.0, now - slot.stamp), slot.stack)
        for slot in copied(state.slots)
        if (task := slot.holder) is not None
    ]
    return sorted(found, key=lambda holder: -holder.held)
