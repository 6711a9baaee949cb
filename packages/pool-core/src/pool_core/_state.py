"""Every decision of the pool: which get receives which connection, and what is opened, validated, reset and closed.

Theory of operation
===================

``PoolState`` is a machine without I/O, in the manner of h11 and of QUIC's protocol cores. It has three openings:

* **Events go in.** There is a method for each event: a get is queued (``enqueue``), a connection attempt ended (``put``,
  ``connect_failed``), a validation ended (``tested``), a lease ended (``give_back``), time has passed (``wake``), and
  so on. Time, verdicts on connections, random numbers and the names of holders are arguments. The state knows neither
  event loops nor threads, and calls no foreign code.
* **Work comes out.** An event appends what it decides to ``work``, as pairs of an ``Order`` and its subject. The shell
  that sent the event carries out the work before the next event: its one turn (``take_work``).
* **It says when to wake it**: ``wake_at()``; or ``agenda.due``, a cheap bound that is never too late.

Every event method leaves the state at rest: all that can be decided is decided. ``_serve`` does this: while there is a
waiter without supply, it begins what would help (the validation of an idle connection, else a connection attempt); then
it fills ``min_idle``; then it sets what the warm path may do by itself (``_settle``).

**A connection** is a ``Slot`` with a named state; ``CHANGES`` (in ``_slot.py``) is the table of allowed changes. Until it
is closed it is in ``slots``. The containers agree with the state: idle ones are in ``idle``, those being validated in
``validating``, those being reset in ``resetting``, closing ones in ``closing`` (and no longer in ``slots``); the other
``slots`` are in use (state ``lent``).

**A get that waits** is a ``Waiter`` in the ``queue``. The state serves it by ``offer``, which returns False if the get was
cancelled in the meantime: then the next one is tried. Attempts and validations are linked to the waiter for whom they
were begun, so that nothing is begun twice for one waiter, and what a waiter that left had begun is used by others.

**Supply** is what will serve a waiter without a return: attempts, validations and resets in progress, unless they are
late or their waiter gave up. Connection attempts are begun for the waiters in excess of the supply.

**The warm path** (``_lease.py``) acquires and returns connections without an event when there is nothing to decide. It may
take from ``fresh`` what exceeds ``floor``, and append to ``fresh`` unless ``slow`` is set. Every change that would need a
decision sets these first. The warm path reads no clock: it stamps with ``tick``, which the agenda's beat advances.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._agenda import Agenda
from ._idle import Idle
from ._queue import Queue
from ._slot import (
    BROKEN,
    CLOSING,
    DISCARD,
    GONE,
    IDLE,
    LENT,
    RAISED,
    RESETTING,
    UNUSED,
    VALIDATING,
    Approval,
    Order,
    Slot,
    Trial,
    Waiter,
)
from ._statistics import CloseReason, Counters, picture
from ._supply import Connects, Supply, Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from ._config import PoolConfig
    from ._statistics import State

C = TypeVar("C")

CLOSED = 1 << 60
"""``floor`` when the warm path may take no idle connection."""


class PoolState(Generic[C]):
    """The pool without its I/O."""

    __slots__ = (
        "_bounded",
        "_detects",
        "_next_id",
        "_swept_at",
        "_tests_always",
        "agenda",
        "closing",
        "config",
        "connects",
        "counters",
        "extensions",
        "floor",
        "fresh",
        "generation",
        "idle",
        "is_open",
        "last_error",
        "max_size",
        "min_idle",
        "observed",
        "paused",
        "plain",
        "pop",
        "queue",
        "resetting",
        "slots",
        "slow",
        "stale",
        "starting",
        "supply",
        "tick",
        "validating",
        "wipes",
        "work",
    )

    def __init__(self, config: PoolConfig, next_id: Callable[[], int], *, wipes: bool = False) -> None:
        self._next_id = next_id
        self.wipes = wipes  # the manager has ``reset``
        self.work: list[tuple[Order, Any]] = []
        self.is_open = False
        self.starting = False  # open() waits for min_idle: failed attempts are repeated as if a get waited
        self.observed = False  # listeners, stacks or the guard: every get and return takes the slow path

        self.slots: dict[Slot[C], None] = {}  # ordered, and half the size of a set
        self.idle: Idle[C] = Idle()
        self.fresh, self.stale = self.idle.fresh, self.idle.stale  # one step nearer for the hot paths
        self.validating: Trials[C] = Trials()
        self.resetting: Trials[C] = Trials()
        self.closing: set[Slot[C]] = set()
        self.connects: Connects[C] = Connects()
        self.extensions: dict[Slot[C], dict[Hashable, Any]] = {}
        self.queue: Queue[C] = Queue(self.connects, self.validating)
        self.supply: Supply[C] = Supply(self)
        self.agenda: Agenda[C] = Agenda(self)
        self.counters = Counters()

        self.tick = 0.0  # the time of the last event
        self.shut()
        self.generation = 0
        self._swept_at = -inf
        self.paused = False  # an attempt failed while no get waited: the reaper fills min_idle later
        self.last_error: BaseException | None = None
        self.configure(config)

    def configure(self, config: PoolConfig) -> None:
        """Read the options, at first and when they change."""
        self.config = config
        self.max_size = config.max_size
        self.min_idle = config.min_idle
        self._detects = config.detect_deadlock
        self._bounded = config.max_waiting is not None
        self._tests_always = config.test_on_check_out and config.alive_bypass == 0
        self.idle.configure(config)
        self.agenda.configure(config)
        self.pop = self.idle.pop

    # -- life cycle

    def open(self, now: float, *, starting: bool) -> None:
        """Begin: fill min_idle. With ``starting`` open() waits for it."""
        self.is_open = True
        self.starting = starting
        self.paused = False
        self.last_error = None
        self._swept_at = -inf
        self.connects.succeeded()
        self.connects.proved()
        self.extensions.clear()
        self.agenda.clear()
        self.agenda.set_reaper(now)
        self._serve(now)

    def observe(self, observed: bool, now: float) -> None:
        """Send every get and return through the slow path, or no longer."""
        self.observed = observed
        self._settle(now)

    def shut(self) -> None:
        """Disable the warm path."""
        self.slow = True  # a returned connection does not simply become idle
        self.plain = False  # a returned connection may be handed off without further questions
        self.floor = CLOSED  # how many idle connections a get must leave

    def close(self, now: float) -> None:
        """Begin to close: refuse gets, fail the waiters, close idle connections, terminate those being validated."""
        self.is_open = self.starting = False
        self.agenda.clear()
        self.queue.fail_all(None)
        self.queue.forget_times()
        for slot in self.idle.remove(lambda _: True):
            self.close_one(slot, CloseReason.POOL_CLOSED)
        for slot in list(self.validating):
            self.validating.end(slot)
            self.close_one(slot, CloseReason.POOL_CLOSED, terminate=True)
        for slot in self.slots:  # in use or being reset: they are closed when they are returned
            slot.mark = slot.mark or CloseReason.POOL_CLOSED
        self._settle(now)

    def terminate_all(self) -> None:
        """Stop waiting for connections in use and resets: terminate them."""
        for slot in list(self.slots):
            if slot in self.resetting:
                self.resetting.end(slot)
            self.close_one(slot, CloseReason.POOL_CLOSED, terminate=True)

    def bury(self) -> None:
        """Terminate all connections: the event loop is closed, so waiters and attempts are gone."""
        self.queue.abandon()
        self.counters.gets_cancelled += self.counters.waiting
        self.counters.waiting = 0
        self.close(self.tick)
        for approval in list(self.connects):
            self.connects.redeem(approval)
        self.terminate_all()

    # -- getting

    def candidate(self) -> Slot[C] | None:
        """Take out an idle connection that needs no validation. ``lend`` or ``found_broken`` follows.

        While gets wait there is none.
        """
        idle = self.idle
        return idle.pop() if idle.fresh and not idle.stale_first() else None

    def lend(self, slot: Slot[C], holder: Any, now: float) -> bool:
        """Give the candidate to a borrower. False: it was closed while has_broken ran.

        The state only compares ``holder`` with the waiters', for deadlock detection.
        """
        if slot not in self.slots:
            return False
        slot.state = LENT
        slot.holder = holder
        slot.stamp = now
        self.supply.top_up(now)
        return True

    def found_broken(self, slot: Slot[C], now: float) -> None:
        """Close the candidate: it is broken."""
        if slot in self.slots:
            self._dead(slot, CloseReason.BROKEN, now)
            self._serve(now)

    def enqueue(self, waiter: Waiter[C], now: float) -> bool:
        """Queue a get that found no connection, and begin what would help it. False: ``max_waiting`` is reached."""
        queue, agenda = self.queue, self.agenda
        waiter.queued = True
        queue.waiters.append(waiter)
        queue.live += 1
        if not waiter.patient or waiter.deadline < queue.due:
            queue.set_time_limit(waiter)
            agenda.by(waiter.deadline)
        if len(self.slots) >= self.max_size and not (
            self.stale or self.validating or self.connects.failures or self._bounded
        ):  # only a return can serve it, the common case in a busy pool
            self.tick = now
            self.slow, self.floor = True, CLOSED
            if agenda.stuck_at == inf and self._detects:
                agenda.watch(now)
            return True
        queue.tries += waiter.idle_only
        queue.pass_on()
        self._serve(now)
        if self._bounded and waiter.approval is None and waiter.test is None and self.supply.too_many_wait():
            queue.drop(waiter)
            return False
        return True

    def give_up(self, waiter: Waiter[C], now: float) -> None:
        """Drop a waiter that timed out or was cancelled. Its attempt and its validation go on, for the pool."""
        self.queue.give_up(waiter, now)
        self._serve(now)

    def cut_off(self) -> None:
        """Begin nothing more for cancelled waiters and min_idle: the event loop is about to end."""
        self.paused = True
        self.queue.forget_the_gone()

    # -- opening

    def put(self, approval: Approval[C], conn: C, now: float, lifetime: float) -> Slot[C]:
        """Redeem an approval: the connection is open. It goes to the first waiter, or idle."""
        self.connects.redeem(approval)
        self.connects.succeeded()
        self.paused = False
        self.last_error = None
        self.counters.created += 1
        slot = self._admit(conn, now, lifetime)
        if not self.is_open:
            self.close_one(slot, CloseReason.POOL_CLOSED, terminate=True)
        elif approval.generation != self.generation:
            self.close_one(slot, CloseReason.EVICTED)
        elif len(self.slots) > self.max_size:
            self.close_one(slot, CloseReason.RESIZED)
        elif self.supply.is_surplus(approval):
            self.close_one(slot, CloseReason.SURPLUS)
        else:
            self._stock(slot, now, proven=True)
        self._serve(now)
        return slot

    def connect_failed(
        self, approval: Approval[C], error: BaseException | None, now: float, *, transient: bool, jitter: float
    ) -> None:
        """Redeem an approval: the attempt failed (None: it was called off). ``jitter`` in [0, 1) spreads the retries."""
        self.connects.redeem(approval)
        if error is not None:
            self.counters.connects_failed += 1
            self.last_error = error
            if not (self.queue.live > self.queue.tries or self.starting):
                self.paused = True
            if not transient and not self.slots:
                self.queue.fail_all(error)
            elif not self.config.retry_connection:
                self.queue.fail_head(error)
            if self.config.retry_connection:
                self.connects.failed(now, jitter)
        self._serve(now)

    def add(self, conn: C, now: float, lifetime: float) -> Slot[C] | None:
        """Add a connection opened elsewhere. None: there is no free slot."""
        if not self.supply.has_room():
            return None
        self.counters.added += 1
        slot = self._admit(conn, now, lifetime)
        self._stock(slot, now, proven=True)
        self._serve(now)
        return slot

    # -- testing

    def begin_test(self, slot: Slot[C], now: float, order: Order = Order.TEST) -> Trial[C]:
        """Validate an idle connection: for the first waiter without a validation, if there is one."""
        slot.state = VALIDATING
        trial = self.validating.begin(slot, now)
        trial.bare = order is Order.CHECK
        self.agenda.by(trial.late_at)
        self.work.append((order, slot))
        self.queue.pass_on()
        return trial

    def tested(
        self,
        slot: Slot[C],
        now: float,
        *,
        valid: bool,
        broken: bool = False,
        timed_out: bool = False,
        terminate: bool = False,
        error: BaseException | None = None,
        jitter: float = 0.0,
    ) -> None:
        """End a validation. A valid connection goes to the first waiter without another one.

        ``error``: why it is not valid. ``jitter`` in [0, 1) spreads the retries, if there are any.
        """
        waiter = self.validating[slot].waiter
        trial = self.validating.end(slot)
        if not valid:
            if not slot.validated and self.connects.dud(slot.born, now, jitter):
                self.last_error = error
                self.paused = not (self.queue.live or self.starting)
            if timed_out and not slot.suspect:
                # A NAT that dropped this one dropped all that were silent for as long.
                silent_since = slot.heard_at()
                for other in self.idle.remove(lambda idle: idle.heard_at() <= silent_since):
                    self.close_one(other, CloseReason.INVALID, terminate=True)
            self._dead(slot, CloseReason.INVALID, now, terminate=timed_out or terminate)
        elif broken:
            self._dead(slot, CloseReason.BROKEN, now)
        elif (reason := self._retired(slot, now)) is not None:
            self.close_one(slot, reason)
        elif trial.bare or trial.keeps:
            self._unused(slot, trial, now, waiter)
        else:
            self._passed(slot, trial, now)
            self._stock(slot, now, proven=True, tested_for=waiter)
        if trial.keeps and self.is_open:
            self.agenda.kept(now)
        self._serve(now)

    def _unused(self, slot: Slot[C], trial: Trial[C], now: float, waiter: Waiter[C] | None) -> None:
        """End a check that does not count as use: if no get waits, the connection keeps its place by its last use."""
        used_at = slot.stamp
        if trial.keeps:
            self._passed(slot, trial, now)
            slot.kept_at = now
        if not (self.queue.live and self.queue.hand(slot, now, waiter)):
            slot.state, slot.holder, slot.stamp = IDLE, None, used_at
            self.idle.put_back(slot, fresh=trial.bare or self.idle.bypass == inf)

    def _passed(self, slot: Slot[C], trial: Trial[C], now: float) -> None:
        self.validating.last = now - trial.since
        slot.suspect = False
        slot.validated = True
        self.connects.proved()

    def sweep(self, broken: Iterable[Slot[C]]) -> None:
        """Close these idle connections: they are broken."""
        for slot in self.idle.remove_these(set(broken)):
            self.close_one(slot, CloseReason.BROKEN)
        self._serve(self.tick)

    # -- giving back

    def give_back(self, slot: Slot[C], now: float, how: int = 0) -> bool:
        """End a lease. True: the connection stays; reset it and call ``restock``."""
        if slot not in self.slots:
            return False  # close() has terminated it
        if how & RAISED:
            slot.suspect = True
        if how & BROKEN:
            # Compared with when it was acquired: those acquired before a sweep say nothing new by being dead.
            self._dead(slot, CloseReason.BROKEN, now)
        elif (reason := self._retired(slot, now, discard=how & DISCARD != 0)) is not None:
            self.close_one(slot, reason)
        elif self.wipes and not how & UNUSED:
            return True
        else:
            self._stock(slot, now, proven=how & UNUSED != 0)
        self._serve(now)
        return False

    def pass_on(self, slot: Slot[C], now: float) -> bool:
        """End a lease without an exception, in a plain pool, of a connection without a mark: a short ``give_back``."""
        if self.wipes:
            return True
        queue = self.queue
        if not (queue.live and queue.hand(slot, now)):
            self.restock(slot, now)
        return False

    def restock(self, slot: Slot[C], now: float) -> None:
        """Give a clean connection to the first waiter, or make it idle."""
        if slot.mark is not None or not self.is_open:  # evicted or closed while the manager was called
            if slot in self.slots and (reason := self._retired(slot, now)) is not None:
                self.close_one(slot, reason)
            self._serve(now)
            return
        self._stock(slot, now)
        if self.idle.stale:
            self._serve(now)  # it may need a validation first
        elif not self.queue.live:
            self._settle(now)

    def begin_reset(self, slot: Slot[C], now: float) -> None:
        """Begin a reset; the borrower does not wait for it."""
        slot.state = RESETTING
        slot.holder = None
        self.agenda.by(self.resetting.begin(slot, now).late_at)
        self._settle(self.tick)

    def reset_done(
        self,
        slot: Slot[C],
        now: float,
        *,
        ok: bool,
        broken: bool = False,
        timed_out: bool = False,
        replaced: bool = False,
    ) -> None:
        """End a reset. If it failed, the connection is closed."""
        trial = self.resetting.end(slot)
        if not ok:
            self.close_one(slot, CloseReason.REPLACED if replaced else CloseReason.RESET_FAILED, terminate=timed_out)
        elif broken:
            self._dead(slot, CloseReason.BROKEN, now)
        elif (reason := self._retired(slot, now)) is not None:
            self.close_one(slot, reason)
        else:
            self.resetting.last = now - trial.since
            self._stock(slot, now)
        self._serve(now)

    def reset_failed(self, slot: Slot[C], now: float, *, replaced: bool = False) -> None:
        """Close the connection: the manager's ``reset`` raised before it returned anything to await."""
        self.close_one(slot, CloseReason.REPLACED if replaced else CloseReason.RESET_FAILED)
        self._serve(now)

    def detach(self, slot: Slot[C], now: float) -> None:
        """Remove a connection in use from the pool for good, open."""
        slot.holder = None
        self._forget(slot, CloseReason.DETACHED)
        slot.state = GONE
        self._serve(now)

    def reclaim(self, slot: Slot[C], now: float) -> None:
        """Terminate the connection of a garbage-collected lease: nothing can return it, and its state is unknown."""
        self.close_one(slot, CloseReason.LEAKED, terminate=True)
        self._serve(now)

    def gone(self, slot: Slot[C], now: float) -> None:
        """Free the slot of a closing connection that is closed, terminated or abandoned."""
        slot.state = GONE
        self.closing.remove(slot)
        self._serve(now)

    # -- by the clock

    def take_work(self) -> list[tuple[Order, Any]]:
        """Return the work, and forget it."""
        work, self.work = self.work, []
        return work

    def wake_at(self) -> float:
        """Return when ``wake`` must be called next; inf: never."""
        return self.agenda.next()

    def wake(self, now: float, late: list[Waiter[C]]) -> None:
        """Do what has become due."""
        for waiter in late:
            self.queue.give_up(waiter, now)
        self.agenda.wake(now)
        self._serve(now)
        self.agenda.due = self.agenda.next()

    # -- by the owner

    def resize(self, config: PoolConfig, now: float) -> None:
        """Change the size: idle connections in excess are closed now, those in use when they are returned."""
        self.configure(config)
        surplus = max(0, len(self.slots) - self.max_size)
        for slot in self.idle.remove_these(set(self.idle.unused(now)[:surplus])):
            self.close_one(slot, CloseReason.RESIZED)
        self.agenda.set_reaper(now)
        self._serve(now)

    def evict(self, chosen: set[Slot[C]] | None, now: float) -> int:
        """Retire these connections, or all, those being opened included. Returns how many are open."""
        if chosen is None:
            self.generation += 1
            chosen = set(self.slots)
        chosen &= self.slots.keys()  # a predicate may have closed some
        for slot in chosen:
            slot.mark = CloseReason.EVICTED
        for slot in self.idle.remove_these(chosen):
            self.close_one(slot, CloseReason.EVICTED)
        self._serve(now)
        return len(chosen)

    # -- looking

    def snapshot(self) -> State:
        """Return the pool's numbers now."""
        return picture(self)

    def in_use(self) -> int:
        """Return how many are in use."""
        return len(self.slots) - len(self.idle) - len(self.validating) - len(self.resetting)

    # -- inside

    def _serve(self, now: float) -> None:
        """Begin what would help the waiters, and fill min_idle: the end of every event."""
        agenda, queue = self.agenda, self.queue
        if queue.live:
            self.supply.help(now)
        if self.min_idle:
            self.supply.top_up(now)
        if self.connects.failures:
            agenda.by(agenda.retry_due())
        if self.starting and len(self.slots) >= self.min_idle:
            self.starting = False
            self.work.append((Order.STARTED, None))
        if agenda.stuck_at == inf and self._detects and queue.live:
            agenda.watch(now)
        self._settle(now)

    def _admit(self, conn: C, now: float, lifetime: float) -> Slot[C]:
        slot = Slot(conn, self._next_id(), now, now + lifetime)
        self.slots[slot] = None
        self.agenda.joined(slot, now)
        return slot

    def _retired(self, slot: Slot[C], now: float, *, discard: bool = False) -> CloseReason | None:
        """Return why a working connection must be closed: the first match counts."""
        if slot.mark is CloseReason.EVICTED:
            return CloseReason.EVICTED
        if discard:
            return CloseReason.DISCARDED
        if not self.is_open:
            return CloseReason.POOL_CLOSED
        if slot.mark is CloseReason.LIFETIME or slot.expires_at <= now:
            return CloseReason.LIFETIME
        if self.config.max_uses is not None and slot.uses >= self.config.max_uses:
            return CloseReason.MAX_USES
        if len(self.slots) > self.max_size:
            return CloseReason.RESIZED
        return None

    def _stock(self, slot: Slot[C], now: float, *, proven: bool = False, tested_for: Waiter[C] | None = None) -> None:
        """Give the connection to the first waiter, or make it idle.

        ``proven``: just opened or validated, so it is not validated again (or ``alive_bypass=0`` would validate for ever).
        """
        idle = self.idle
        slot.stamp = now
        if slot.suspect or (self._tests_always and not proven):
            slot.state = IDLE
            slot.holder = None
            idle.stale.append(slot)
        elif not (self.queue.live and self.queue.hand(slot, now, tested_for)):
            slot.state = IDLE
            slot.holder = None
            (idle.stale if self._tests_always else idle.fresh).append(slot)
            if self.agenda.parked and idle.fresh:
                self.agenda.start_clock(now)

    def close_one(self, slot: Slot[C], reason: CloseReason, *, terminate: bool = False) -> None:
        """Close or terminate a connection that is in no container but ``slots``."""
        self.closing.add(slot)  # first: an interrupted thread must not leave it in no place at all
        slot.state = CLOSING
        slot.holder = None
        slot.mark = reason
        self._forget(slot, reason)
        self.work.append((Order.TERMINATE if terminate else Order.CLOSE, slot))

    def _forget(self, slot: Slot[C], reason: CloseReason) -> None:
        del self.slots[slot]
        self.counters.uses_gone += slot.uses
        self.counters.closed[reason] += 1
        if reason is not CloseReason.POOL_CLOSED:  # else a borrower may still have it; the next open() forgets them
            self.extensions.pop(slot, None)

    def _dead(self, slot: Slot[C], reason: CloseReason, now: float, *, terminate: bool = False) -> None:
        """Close a dead connection; the first one makes those suspect that were not used since.

        One that was last good before the last sweep says nothing new: no burst of pings, no O(n) for each.
        """
        last_good = slot.stamp
        self.close_one(slot, reason, terminate=terminate)
        if last_good <= self._swept_at:
            return
        self._swept_at = self.tick  # the warm path used this stamp until now; its next stamps are later
        self.idle.doubt()
        if self.idle.stale:
            self.work.append((Order.SWEEP, None))

    def _settle(self, now: float) -> None:
        """Set whether the warm path may work by itself, and how many connections it must leave idle."""
        self.tick = now
        self.plain = (
            self.is_open
            and not self.observed
            and not self._tests_always
            and self.config.max_uses is None
            and len(self.slots) <= self.max_size
        )
        self.slow = self.queue.live > 0 or self.agenda.parked or not self.plain
        if self.slow or (self.idle.fifo and self.idle.stale):
            self.floor = CLOSED
        elif self.min_idle and self.supply.has_room():
            self.floor = max(0, self.min_idle - len(self.idle.stale) - self.supply.coming())
        else:
            self.floor = 0
