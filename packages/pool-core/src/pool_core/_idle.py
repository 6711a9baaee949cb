"""The idle connections: which one is acquired or validated next, and which are closed."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

from ._slot import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from ._config import PoolConfig

C = TypeVar("C")


class Idle(Generic[C]):
    """Fresh ones need no validation, stale ones do. Both are changed in place, because the warm path refers to them."""

    __slots__ = ("bypass", "fifo", "fresh", "pop", "pop_stale", "stale")

    def __init__(self) -> None:
        self.fresh: deque[Slot[C]] = deque()  # ordered by their last use
        self.stale: deque[Slot[C]] = deque()

    def configure(self, config: PoolConfig) -> None:
        """Read the options: which end to take from, and after how long a fresh one is stale."""
        self.bypass = config.alive_bypass if config.test_on_check_out else inf
        # The one place where the queue strategy matters.
        self.fifo = config.queue_strategy.value == "fifo"
        self.pop = self.fresh.popleft if self.fifo else self.fresh.pop
        self.pop_stale = self.stale.popleft if self.fifo else self.stale.pop

    def __len__(self) -> int:
        return len(self.fresh) + len(self.stale)

    def all(self) -> list[Slot[C]]:
        """Return them, the stale ones first."""
        return [*self.stale, *self.fresh]

    def unused(self, now: float, seconds: float = 0.0) -> list[Slot[C]]:
        """Return those unused for this long, the one unused longest first."""
        return sorted((slot for slot in self.all() if slot.stamp + seconds <= now), key=Slot.used_at)

    def stale_first(self) -> bool:
        """Return whether the next one in FIFO order, unused longest, needs a validation."""
        stale, fresh = self.stale, self.fresh
        return self.fifo and bool(stale) and (not fresh or stale[0].stamp <= fresh[0].stamp)

    def put_back(self, slot: Slot[C], *, fresh: bool) -> None:
        """Put one back in its place by its last use: it was taken out, and not used."""
        _in_order(self.fresh if fresh else self.stale, [slot])

    def age(self, now: float) -> None:
        """Make those stale that were unused for ``alive_bypass``."""
        fresh = self.fresh
        aged = []
        while fresh and fresh[0].stamp + self.bypass <= now:
            aged.append(fresh.popleft())
        if aged:
            self._make_stale(aged)

    def doubt(self) -> None:
        """Make all of them stale."""
        self._make_stale(self.fresh)
        self.fresh.clear()

    def _make_stale(self, slots: Iterable[Slot[C]]) -> None:
        if self.fifo:  # which needs them ordered by their last use
            _in_order(self.stale, slots)
        else:
            self.stale.extend(slots)

    def remove(self, doomed: Callable[[Slot[C]], bool]) -> list[Slot[C]]:
        """Remove and return the doomed ones."""
        removed: list[Slot[C]] = []
        for idle in (self.stale, self.fresh):
            kept: list[Slot[C]] = []
            for slot in idle:
                (removed if doomed(slot) else kept).append(slot)
            if len(kept) != len(idle):
                idle.clear()
                idle.extend(kept)
        return removed

    def remove_these(self, chosen: Container[Slot[C]]) -> list[Slot[C]]:
        """Remove and return those of these that are idle."""
        return self.remove(chosen.__contains__)


def _in_order(idle: deque[Slot[C]], more: Iterable[Slot[C]]) -> None:
    """Insert these, ordered by their last use."""
    ordered = sorted((*idle, *more), key=Slot.used_at)
    idle.clear()
    idle.extend(ordered)
