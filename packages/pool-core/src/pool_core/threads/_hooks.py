"""Calls of listeners, the error sink and the log, from several threads: in order, by one thread at a time.

Never under the pool's lock. A thread that finds another one at it leaves what it has to that one.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from pool_core._hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from pool_core._config import PoolConfig
    from pool_core._statistics import Counters


class _Own(threading.local):
    """Each thread's own: what a hook raised in it."""

    interrupt: BaseException | None = None


class ThreadHooks(Hooks):
    """What is to be reported, and to whom."""

    __slots__ = ("_own", "_queue", "_turn")

    def __init__(self, config: PoolConfig, label: str, counters: Counters) -> None:
        self._own = _Own()
        super().__init__(config, label, counters)
        self._queue: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._words = self._queue  # type: ignore[assignment]
        self._turn = threading.Lock()

    @property
    def interrupt(self) -> BaseException | None:
        """A KeyboardInterrupt or SystemExit that a hook raised in this thread: it is raised where nothing is half done."""
        return self._own.interrupt

    @interrupt.setter
    def interrupt(self, error: BaseException | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._own.interrupt = error

    @property
    def waiting(self) -> bool:
        """Return whether there is something to report."""
        return bool(self._queue)

    def tell(self) -> None:
        """Report all of it, unless another thread is at it, which then reports this too."""
        while self._queue and self._turn.acquire(blocking=False):
            try:
                while self._queue:
                    say, what = self._queue.popleft()
                    say(*what)
            finally:
                self._turn.release()
