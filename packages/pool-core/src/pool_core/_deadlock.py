"""Find a standstill: every connection is held by a task that itself waits for another one.

Another task may still end a block (an async generator that is started in one task and consumed in another,
``AsyncExitStack.pop_all``), so a deadlock is reported only after a standstill. The agenda keeps that time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._slot import Slot, Waiter

C = TypeVar("C")


def newest_blocked_holder(slots: Iterable[Slot[C]], waiters: Iterable[Waiter[C]]) -> Waiter[C] | None:
    """Return the newest waiter that holds a connection, if each connection is held by a task that waits here.

    A lease acquired by ``await`` may be released by any task, and a holder without a task by any callback: with one of
    those there is no deadlock. Nor does a waiter with a timeout of its own count: it goes on by itself.
    """
    holding: set[Any] = set()
    for slot in slots:
        if slot.holder is None or slot.loose:
            return None
        holding.add(slot.holder)
    newest = None
    for waiter in waiters:
        if waiter.queued and waiter.patient and waiter.task in holding:
            holding.discard(waiter.task)
            newest = waiter
    return None if holding else newest


def count_blocked_holders(slots: Iterable[Slot[Any]], waiters: Iterable[Waiter[Any]]) -> int:
    """Count the connections in use whose holder itself waits for another one."""
    tasks = {waiter.task for waiter in waiters if waiter.queued}
    return sum(slot.holder in tasks for slot in slots)
