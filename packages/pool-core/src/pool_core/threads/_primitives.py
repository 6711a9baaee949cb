"""What this pool takes from the machine: a lock, a way to wait, a clock and threads. Tests put others in their place."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from threading import current_thread
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gate", "Section", "current_thread", "monotonic", "read", "start_thread"]

T = TypeVar("T")

LONGEST = 1e6
"""Seconds. A lock cannot wait longer than some centuries, and a few days are the same to whoever waits."""


class Gate:
    """Wakes the one thread that waits. Opened before the wait, it does not block.

    A ``SimpleQueue`` is as fast as a raw lock, and twice as fast on free-threaded builds, where a raw lock spins before it
    sleeps. ``open`` may be called by a finalizer or a signal handler: ``put`` is reentrant.
    """

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()

    def wait(self, seconds: float) -> bool:
        """Wait until it is opened; one opening ends one wait. False: the time is over."""
        try:
            self._queue.get(True, min(max(0.0, seconds), LONGEST) if seconds < LONGEST else None)
        except Empty:
            return False
        return True

    def open(self) -> None:
        """End the wait, or the next one."""
        self._queue.put(None)


class Section:
    """The pool's lock, and the thread that changes the state under it.

    Where ``owner`` is set, a change is under way, or the last one was interrupted in the middle by a KeyboardInterrupt; then
    the next section repairs the state first. The lock knows its thread, for one reason: on Python 3.14 an interrupt can
    arrive between ``with lock`` and its block, and the lock is left held. ``leave`` releases it then.
    """

    __slots__ = ("lock", "owner")

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()
        self.owner: Any = None

    def leave(self) -> None:
        """Release the lock if an interrupt has left it held by this thread."""
        if self.lock._is_owned():
            self.lock.release()


def read(section: Section, look: Callable[[], T]) -> T:
    """Look at something under the lock, and change nothing."""
    try:
        with section.lock:
            return look()
    except BaseException:
        section.leave()
        raise


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread: the interpreter does not wait for one that hangs in a driver.

    Raises:
        RuntimeError: the system has no more threads, or the interpreter is ending.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
