"""What is in progress, how much of it counts for the waiters, and what else is begun.

Supply is what will serve a waiter without a return: attempts, validations and resets in progress, unless they are late or
their waiter gave up. After a failed attempt the pool backs off: one attempt at a time, after random, growing pauses.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

from ._slot import Approval, Order, Slot, Trial

if TYPE_CHECKING:
    from ._slot import Waiter
    from ._state import PoolState

C = TypeVar("C")

SLOW_FLOOR = 0.1
"""A validation or reset younger than this many seconds always counts as supply."""
SLOW_FACTOR = 3.0
"""So does one that has taken less than this many times the last successful one of its kind."""
BACKOFF_FIRST = 0.2
BACKOFF_MOST = 2.0
PROBE_PATIENCE = 2.0
"""During a back-off one attempt runs at a time; after this many seconds another one may run beside it."""


class Trials(dict[Slot[C], Trial[C]], Generic[C]):
    """All validations, or all resets, in the order of their start."""

    __slots__ = ("last", "late")

    def __init__(self) -> None:
        super().__init__()
        self.last = 0.0  # how long the last successful one took
        self.late = 0  # how many are slower than usual

    def begin(self, slot: Slot[C], now: float) -> Trial[C]:
        """Begin one."""
        trial = self[slot] = Trial(now, now + max(SLOW_FLOOR, SLOW_FACTOR * self.last))
        return trial

    def end(self, slot: Slot[C]) -> Trial[C]:
        """End one, or stop waiting for it."""
        trial = self.pop(slot)
        self.late -= trial.late
        if trial.waiter is not None:
            trial.waiter.test = None
        return trial

    def on_time(self) -> int:
        """Return how many count as supply."""
        return len(self) - self.late

    def late_at(self) -> float:
        """Return when the next one becomes late. Not in the order of their start, because the usual duration changes."""
        if len(self) == self.late:
            return inf
        return min(trial.late_at for trial in self.values() if not trial.late)

    def mark_late(self, now: float) -> None:
        """Mark those that have become late."""
        if len(self) == self.late:
            return
        for trial in self.values():
            if not trial.late and trial.late_at <= now:
                trial.late = True
                self.late += 1


class Connects(dict[Approval[C], None], Generic[C]):
    """The approvals in use, in the order of their making, and the back-off."""

    __slots__ = ("_dud_at", "_duds", "failures", "retry_at")

    _dud_at: float  # when the last connection failed that had never passed a validation
    _duds: int  # how many did so in a row

    def __init__(self) -> None:
        super().__init__()
        self.succeeded()
        self.proved()

    def mint(self, waiter: Waiter[C] | None, now: float, generation: int) -> Approval[C]:
        """Approve one more connection attempt."""
        approval = Approval(waiter, now, generation)
        self[approval] = None
        return approval

    def redeem(self, approval: Approval[C]) -> None:
        """End an approval: its attempt has ended."""
        assert approval in self, "bug: an approval was redeemed twice"
        del self[approval]
        if approval.waiter is not None:
            approval.waiter.approval = None

    def succeeded(self) -> None:
        """End the back-off: the server can be reached."""
        self.failures = 0
        self.retry_at = -inf

    def failed(self, now: float, jitter: float) -> None:
        """Back off. A failure during the back-off belongs to an attempt begun before it, and does not extend it."""
        if now >= self.retry_at:
            self.failures += 1
            self.retry_at = now + jitter * min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(self.failures - 1, 8))

    def dud(self, born: float, now: float, jitter: float) -> bool:
        """Count a connection whose first validation failed. True: the one after it failed, too, so the pool backs off.

        Otherwise each get would open a connection in vain. Those that failed together count as one.
        """
        if born < self._dud_at:
            return False
        self._dud_at = now
        self._duds += 1
        if self._duds == 1:
            return False
        self.failures = self._duds - 2
        self.retry_at = -inf
        self.failed(now, jitter)
        return True

    def proved(self) -> None:
        """Note that a connection has passed a validation."""
        self._duds = 0
        self._dud_at = -inf

    def may_begin(self, now: float) -> bool:
        """Return whether the back-off allows an attempt now."""
        return not self.failures or (now >= self.retry_at and all(approval.late for approval in self))

    def supply(self) -> int:
        """Return how many count as supply for the waiters."""
        return sum(not (approval.orphan or approval.late) for approval in self)

    def retry_due(self, tick: float) -> float:
        """Return when the back-off allows the next attempt, if that is later than ``tick``; else inf."""
        probes = [approval.since + PROBE_PATIENCE for approval in self if not approval.late]
        ready = max(probes, default=self.retry_at)
        return ready if ready > tick else inf

    def mark_late(self, now: float) -> None:
        """Mark attempts that take too long during a back-off."""
        if not self.failures:
            return
        for approval in self:
            if approval.since + PROBE_PATIENCE <= now:
                approval.late = True
                if approval.waiter is not None:
                    approval.waiter.approval = None
                    approval.waiter = None


class Supply(Generic[C]):
    """How much is in progress in one pool, and what else is to be begun."""

    __slots__ = ("_state",)

    def __init__(self, state: PoolState[C]) -> None:
        self._state = state

    def has_room(self) -> bool:
        """Return whether there is a free slot. Closing connections count, because the server still has them."""
        state = self._state
        return len(state.slots) + len(state.connects) + len(state.closing) < state.max_size

    def may_connect(self, now: float) -> bool:
        """Return whether a connection attempt may begin now."""
        state = self._state
        if not (state.is_open and self.has_room()) or len(state.connects) >= state.config.max_connecting:
            return False
        return state.connects.may_begin(now)

    def coming(self) -> int:
        """Return how many in progress no waiter needs: they will be idle soon."""
        state = self._state
        return max(0, len(state.connects) + len(state.validating) + len(state.resetting) - state.queue.live)

    def lack(self) -> int:
        """Return how many more waiters there are than supply."""
        state = self._state
        return state.queue.live - state.validating.on_time() - state.resetting.on_time() - state.connects.supply()

    def is_surplus(self, approval: Approval[C]) -> bool:
        """Return whether the connection that was just opened is needed neither by a waiter nor for ``min_idle``.

        A burst is over: its waiters were served by returns. Of the connections still being opened for them the last
        one stays, so that the pool grows by one with each burst (psycopg_pool does the same) and does not connect in
        vain for ever. A connection whose waiter gave up always stays: without it no get shorter than a connect would
        ever be served (pgx #1259).
        """
        state = self._state
        needed = state.queue.live or approval.orphan or len(state.idle) < max(1, state.min_idle)
        return not needed and len(state.connects) > 0

    def too_many_wait(self) -> bool:
        """Compare with ``max_waiting``. Each one in progress will serve a get; a lone caller is never refused."""
        state = self._state
        assert state.config.max_waiting is not None
        # An attempt may run beside a late validation or reset: both will serve the same get.
        on_time = state.validating.on_time() + state.resetting.on_time()
        under_way = len(state.validating) + len(state.resetting) + len(state.closing)
        coming = max(under_way, on_time + len(state.connects))
        return state.queue.live - max(coming, not state.in_use()) > state.config.max_waiting

    def help(self, now: float) -> None:
        """Begin validations, then connection attempts, for waiters without supply."""
        state = self._state
        idle, queue, validating = state.idle, state.queue, state.validating
        while (idle.stale or idle.fresh) and (
            queue.live > len(validating)  # one validation for each get
            or (self._may_test() and self.lack() > 0)  # for a get whose validation is late
        ):
            if idle.fresh and not idle.stale_first():  # only FIFO leaves one here while a get waits
                state.begin_test(idle.pop(), now, Order.CHECK)
            else:
                state.begin_test(idle.pop_stale(), now)
        if queue.tries:
            queue.turn_away()
        while self.may_connect(now) and self.lack() > 0:
            waiter = queue.first_without_approval()
            if waiter is None:
                break  # the others are try_gets
            waiter.approval = self._approve(waiter, now)

    def _may_test(self) -> bool:
        """At most ``max_connecting`` at once; without a free slot, late ones do not count."""
        state = self._state
        under_way = len(state.validating) if self.has_room() else state.validating.on_time()
        return under_way < state.config.max_connecting

    def top_up(self, now: float) -> None:
        """Connect for ``min_idle``. What is in progress and no waiter needs counts."""
        state = self._state
        if state.paused:
            return
        lack = state.min_idle - len(state.idle) - self.coming()
        while lack > 0 and self.may_connect(now):
            self._approve(None, now)
            lack -= 1

    def _approve(self, waiter: Waiter[C] | None, now: float) -> Approval[C]:
        state = self._state
        approval = state.connects.mint(waiter, now, state.generation)
        state.work.append((Order.CONNECT, approval))
        return approval
