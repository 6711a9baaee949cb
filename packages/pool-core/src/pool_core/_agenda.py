"""What is due when, and what happens then: lifetimes, the reaper, keepalive, the warm path's clock, a standstill.

Each time is exact or too early, and ``due`` is never later than any of them. Setting a time lowers ``due`` with one
comparison; the exact next time is computed only when the timer fires.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

from ._deadlock import newest_blocked_holder
from ._slot import Order, Slot
from ._statistics import CloseReason

if TYPE_CHECKING:
    from ._config import PoolConfig
    from ._state import PoolState

C = TypeVar("C")

BEATS = 8
"""How often the warm path's clock advances within the shortest time that it has to measure."""
LOOKS = 64
"""How often keepalive looks at all idle connections within its period, at most."""


class Agenda(Generic[C]):
    """The due times of one pool."""

    __slots__ = (
        "_beaten",
        "_config",
        "_period",
        "_state",
        "beat_at",
        "due",
        "keep_at",
        "next_expiry",
        "parked",
        "reap_at",
        "stuck_at",
    )

    def __init__(self, state: PoolState[C]) -> None:
        self._state = state
        self._beaten = 0.0
        self.clear()

    def clear(self) -> None:
        """Set all times to never."""
        self.due = self.next_expiry = inf
        self.beat_at = self.reap_at = self.keep_at = self.stuck_at = inf
        self.parked = True  # the warm path's clock has stopped

    def configure(self, config: PoolConfig) -> None:
        """Read the options."""
        self._config = config
        bypass = config.alive_bypass if config.test_on_check_out else None
        self._period = max(0.01, min(time for time in (bypass, config.idle_timeout, 8.0) if time) / BEATS)

    def by(self, when: float) -> None:
        """Wake up at this time or earlier."""
        if when < self.due:
            self.due = when

    def next(self) -> float:
        """Return the earliest time of all; inf: never."""
        state = self._state
        return min(
            self.next_expiry,
            self.beat_at,
            self.reap_at,
            self.keep_at,
            self.stuck_at,
            state.queue.next_deadline(),
            state.validating.late_at(),
            state.resetting.late_at(),
            self.retry_due(),
        )

    def wake(self, now: float) -> None:
        """Do what has become due."""
        state = self._state
        if self.next_expiry <= now:
            self._end_lifetimes(now)
        state.connects.mark_late(now)
        state.validating.mark_late(now)
        state.resetting.mark_late(now)
        if self.beat_at <= now:
            self._beat(now)
        if self.reap_at <= now:
            self._reap(now)
        if self.keep_at <= now:
            self._look_for_silence(now)
        if self.stuck_at <= now:
            self._look_for_standstill(now)

    def retry_due(self) -> float:
        """Return when the back-off ends; inf: there is none, or no get waits for its end."""
        state = self._state
        if state.connects.failures and (state.queue.live or state.starting):
            return state.connects.retry_due(state.tick)
        return inf

    # -- what begins

    def joined(self, slot: Slot[C], now: float) -> None:
        """Time the lifetime and the silence of a new connection."""
        if slot.expires_at < self.next_expiry:
            self.next_expiry = slot.expires_at
            self.by(slot.expires_at)
        if self._config.keepalive is not None and self.keep_at == inf:
            self.keep_at = now + self._config.keepalive
            self.by(self.keep_at)

    def kept(self, now: float) -> None:
        """Look again: a validation by keepalive has ended, and others may have waited for that."""
        self.keep_at = now
        self.by(now)

    def set_reaper(self, now: float) -> None:
        """Start the reaper, if the options give it anything to do."""
        config = self._config
        if self.reap_at == inf and (config.idle_timeout is not None or config.min_idle or config.leak_threshold):
            self.reap_at = now + config.reap_interval
            self.by(self.reap_at)

    def start_clock(self, now: float) -> None:
        """Start the warm path's clock: there are fresh connections and traffic."""
        self.parked = False
        self._beaten = now
        self.beat_at = now + self._period
        self.by(self.beat_at)

    def watch(self, now: float) -> None:
        """Look for a standstill later, if only a return can serve the waiters."""
        if self._only_a_return_helps():
            self.stuck_at = now + self._config.deadlock_after
            self.by(self.stuck_at)

    # -- what is done

    def _end_lifetimes(self, now: float) -> None:
        state = self._state
        for slot in state.idle.remove(lambda idle: idle.expires_at <= now):
            state.close_one(slot, CloseReason.LIFETIME)
        self.next_expiry = inf
        for slot in state.slots:
            if slot.expires_at > now:
                self.next_expiry = min(self.next_expiry, slot.expires_at)
            elif slot.mark is None:
                slot.mark = CloseReason.LIFETIME

    def _beat(self, now: float) -> None:
        """Advance the warm path's clock; stop it when there are no fresh connections or no traffic."""
        idle = self._state.idle
        idle.age(now)
        fresh = idle.fresh
        quiet = idle.bypass == inf and (not fresh or fresh[-1].stamp < self._beaten)
        self.parked = not fresh or quiet
        self._beaten = now
        self.beat_at = inf if self.parked else now + self._period

    def _reap(self, now: float) -> None:
        """Close connections idle for too long, down to min_idle (bb8 #123), and let min_idle be filled."""
        state, config = self._state, self._config
        if config.idle_timeout is not None:
            spare = max(0, len(state.idle) - state.min_idle)
            chosen = set(state.idle.unused(now, config.idle_timeout)[:spare])
            for slot in state.idle.remove_these(chosen):
                state.close_one(slot, CloseReason.IDLE)
        state.paused = False
        self.reap_at = now + config.reap_interval
        if config.leak_threshold is not None:
            state.work.append((Order.FIND_LEAKS, None))

    def _look_for_silence(self, now: float) -> None:
        """Validate idle connections that were silent for ``keepalive``, at most ``max_connecting`` at once."""
        state, keepalive = self._state, self._config.keepalive
        assert keepalive is not None
        idle = sorted(state.idle.all(), key=Slot.heard_at)
        due = [slot for slot in idle if slot.heard_at() + keepalive <= now]
        room = self._config.max_connecting - sum(trial.keeps for trial in state.validating.values())
        chosen = set(due[: max(0, room)])
        for slot in state.idle.remove_these(chosen):
            state.begin_test(slot, now).keeps = True
        if not state.slots:
            self.keep_at = inf  # the next connection sets it again
        elif len(due) > len(chosen):
            self.keep_at = inf  # the end of a validation sets it again
        else:
            # Connections that become due one by one are handled together.
            earliest = min((slot.heard_at() for slot in idle if slot not in chosen), default=now) + keepalive
            self.keep_at = max(earliest, now + keepalive / LOOKS)

    def _look_for_standstill(self, now: float) -> None:
        """Fail the newest get of a holder if nothing has happened for ``deadlock_after`` seconds."""
        self.stuck_at = inf
        if not self._only_a_return_helps():
            return
        state, after = self._state, self._config.deadlock_after
        waiters = state.queue.waiters
        moved = max(
            state.queue.left_at, *(slot.stamp for slot in state.slots)
        )  # the last hand-off, or the last waiter that gave up
        if moved + after <= now:
            victim = newest_blocked_holder(state.slots, waiters)
            if victim is None:
                moved = now + 5e-6 * len(waiters)  # a look visits all waiters, so it is rare under load
            elif victim.started + after <= now:
                state.work.append((Order.DEADLOCK, victim))
                moved = now
            else:
                moved = victim.started
        self.stuck_at = moved + after

    def _only_a_return_helps(self) -> bool:
        state = self._state
        return (
            state.queue.live > 0
            and len(state.slots) >= state.max_size
            and not (len(state.idle) or state.validating or state.resetting or state.closing or state.connects)
        )
