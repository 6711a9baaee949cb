"""Every decision of the pool: who gets which connection, and what is opened, tested, wiped and closed.

Theory of operation
===================

``PoolState`` is a machine without I/O, in the manner of h11 and of QUIC's protocol cores. It has three openings:

* **Events go in.** A method for each thing that can happen: a get is queued (``enqueue``), a connect ended (``put``,
  ``connect_failed``), a test ended (``tested``), a lease ended (``give_back``), time has passed (``wake``), and so on.
  Time, verdicts on connections, chance and the names of holders come in as arguments. Nothing of an event loop or of
  threads is here, and no code of anybody else's is called.
* **Work comes out.** What an event decides is appended to ``work`` as pairs of an ``Order`` and its subject. Whoever
  brings an event carries the work out before anything else happens: the shell's one turn (``take_work``).
* **It says when it wants to be woken**: ``wake_at()``, or cheaply, as a bound that is never too late, ``agenda.due``.

Every event method leaves the state at rest: all that could be decided is decided. This is ``_serve``: while somebody
waits for whom nothing is under way, begin what would help (a test of an idle connection, else a connect); then see to
``min_idle``; then say what the warm path may do by itself (``_settle``).

**A connection** is a ``Slot``, in a state by name; ``CHANGES`` (in ``_slot.py``) is the table of what may follow what.
From its birth to its closing it is in ``slots``, and where it is says the same as its state does: idle ones are in
``idle``, those being tested in ``validating``, those being wiped in ``resetting``, those that go in ``closing`` (and
in ``slots`` no longer); the rest of ``slots`` are lent.

**A get that waits** is a ``Waiter`` in the ``queue``. The state answers it by ``offer``, which is False if it was
cancelled in the meantime: then the next one is asked. Connects and tests are linked to the waiter for whom they were
begun, so that each waiter is helped once, and what one that left had begun is not begun again.

**Supply** is what will serve a waiter without a return: connects, tests and resets under way, unless they are late, or
their waiter gave up. A waiter beyond the supply is the lack, and the lack is what connects are begun for.

**The warm path** (``_lease.py``) lends and takes back by itself, without an event, where nothing is to be decided. It
may take from ``fresh`` what exceeds ``floor``, and append to ``fresh`` unless ``slow``. So what would change a decision
sets these first. It has no clock: it stamps with ``tick``, which the agenda's beat moves on.
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
"""How many idle ones the warm path must leave when it may take none."""


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
        self.starting = False  # open() waits for min_idle: failed connects are repeated as if a get waited
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
        self.paused = False  # a connect failed with nobody waiting: min_idle waits for the reaper's next look
        self.last_error: BaseException | None = None
        self.configure(config)

    def configure(self, config: PoolConfig) -> None:
        """Take the options over, at first and when they change."""
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
        """Begin: bring min_idle up. With ``starting`` somebody waits for it."""
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
        """Somebody wants to see every get and return, or nobody any more."""
        self.observed = observed
        self._settle(now)

    def shut(self) -> None:
        """Let the warm path do nothing by itself."""
        self.slow = True  # a clean connection that comes back is not just idle then
        self.plain = False  # at most somebody waits for it
        self.floor = CLOSED  # how many a get must leave idle

    def close(self, now: float) -> None:
        """Begin the end: refuse, fail the waiters at once, close what is idle, terminate what is being tested."""
        self.is_open = self.starting = False
        self.agenda.clear()
        self.queue.fail_all(None)
        self.queue.forget_times()
        for slot in self.idle.remove(lambda _: True):
            self.close_one(slot, CloseReason.POOL_CLOSED)
        for slot in list(self.validating):
            self.validating.end(slot)
            self.close_one(slot, CloseReason.POOL_CLOSED, terminate=True)
        for slot in self.slots:  # lent or being reset: they go when they come back
            slot.mark = slot.mark or CloseReason.POOL_CLOSED
        self._settle(now)

    def terminate_all(self) -> None:
        """End the waiting for lent connections and resets: terminate them."""
        for slot in list(self.slots):
            if slot in self.resetting:
                self.resetting.end(slot)
            self.close_one(slot, CloseReason.POOL_CLOSED, terminate=True)

    def bury(self) -> None:
        """The loop is dead, and the waiters and connects with it: only connections are left, to be terminated."""
        self.queue.abandon()
        self.counters.gets_cancelled += self.counters.waiting
        self.counters.waiting = 0
        self.close(self.tick)
        for approval in list(self.connects):
            self.connects.redeem(approval)
        self.terminate_all()

    # -- getting

    def candidate(self) -> Slot[C] | None:
        """Take out an idle connection that needs no test. Its verdict follows: ``lend``, or ``found_broken``.

        Only while nobody waits: then nothing fresh is idle anyway.
        """
        idle = self.idle
        return idle.pop() if idle.fresh and not idle.stale_first() else None

    def lend(self, slot: Slot[C], holder: Any, now: float) -> bool:
        """Lend the candidate. False: it went away while it was asked for.

        The holder is the shell's business; deadlock detection compares it with the waiters'.
        """
        if slot not in self.slots:
            return False
        slot.state = LENT
        slot.holder = holder
        slot.stamp = now
        self.supply.top_up(now)
        return True

    def found_broken(self, slot: Slot[C], now: float) -> None:
        """This one, which was just taken out to be lent, is broken."""
        if slot in self.slots:
            self._dead(slot, CloseReason.BROKEN, now)
            self._serve(now)

    def enqueue(self, waiter: Waiter[C], now: float) -> bool:
        """Queue a get that found nothing to lend, and start what would help it. False: ``max_waiting`` is reached."""
        queue, agenda = self.queue, self.agenda
        waiter.queued = True
        queue.waiters.append(waiter)
        queue.live += 1
        if not waiter.patient or waiter.deadline < queue.due:
            queue.set_time_limit(waiter)
            agenda.by(waiter.deadline)
        if len(self.slots) >= self.max_size and not (
            self.stale or self.validating or self.connects.failures or self._bounded
        ):  # nothing could help it but a return, as is common in a busy pool
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
        """A waiter timed out or was cancelled. Its connect and its test go on, and their fruit goes to the pool."""
        self.queue.give_up(waiter, now)
        self._serve(now)

    def cut_off(self) -> None:
        """Begin nothing for waiters that are cancelled already, nor for min_idle: the event loop is about to end."""
        self.paused = True
        self.queue.forget_the_gone()

    # -- opening

    def put(self, approval: Approval[C], conn: C, now: float, lifetime: float) -> Slot[C]:
        """Redeem an approval: the connection is open. It goes to the waiter at the head, or idle."""
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
        """Redeem an approval: the connect failed (None: it was called off). ``jitter`` in [0, 1) spreads the retries."""
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
        """Take in a connection opened elsewhere. None: there is no room."""
        if not self.supply.has_room():
            return None
        self.counters.added += 1
        slot = self._admit(conn, now, lifetime)
        self._stock(slot, now, proven=True)
        self._serve(now)
        return slot

    # -- testing

    def begin_test(self, slot: Slot[C], now: float, order: Order = Order.TEST) -> Trial[C]:
        """Have one that was idle tested: for the first waiter without a test, if there is one."""
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
        """End a test. A valid connection goes, without another test, to the waiter at the head.

        ``error`` says what is wrong with one that is not; ``jitter`` in [0, 1) spreads the retries, should it come to that.
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
        """It was looked at, which is no use: if nobody wants it, it keeps its place by time of last use."""
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
        """These of the idle ones are broken."""
        for slot in self.idle.remove_these(set(broken)):
            self.close_one(slot, CloseReason.BROKEN)
        self._serve(self.tick)

    # -- giving back

    def give_back(self, slot: Slot[C], now: float, how: int = 0) -> bool:
        """End a lease. True: the connection stays; wipe it and call ``restock``."""
        if slot not in self.slots:
            return False  # close() has terminated it
        if how & RAISED:
            slot.suspect = True
        if how & BROKEN:
            # Compare with when it was lent: those lent before a sweep tell nothing new by being dead.
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
        """End a lease that ended well, in a plain pool, of a connection without a mark: ``give_back``, the short way."""
        if self.wipes:
            return True
        queue = self.queue
        if not (queue.live and queue.hand(slot, now)):
            self.restock(slot, now)
        return False

    def restock(self, slot: Slot[C], now: float) -> None:
        """A clean connection is back: it goes to the waiter at the head, or idle."""
        if slot.mark is not None or not self.is_open:  # evicted or closed while the manager was asked
            if slot in self.slots and (reason := self._retired(slot, now)) is not None:
                self.close_one(slot, reason)
            self._serve(now)
            return
        self._stock(slot, now)
        if self.idle.stale:
            self._serve(now)  # it may have to be tested first
        elif not self.queue.live:
            self._settle(now)

    def begin_reset(self, slot: Slot[C], now: float) -> None:
        """The connection is being wiped; its borrower has gone on."""
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
        """End a reset. Whatever went wrong closes the connection."""
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
        """The manager's ``reset`` raised before it gave anything to wait for."""
        self.close_one(slot, CloseReason.REPLACED if replaced else CloseReason.RESET_FAILED)
        self._serve(now)

    def detach(self, slot: Slot[C], now: float) -> None:
        """A lent connection leaves the pool for good, open."""
        slot.state = GONE
        slot.holder = None
        self._forget(slot, CloseReason.DETACHED)
        self._serve(now)

    def reclaim(self, slot: Slot[C], now: float) -> None:
        """A lease was garbage-collected: nobody can return its connection, and nobody knows what is going on in it."""
        self.close_one(slot, CloseReason.LEAKED, terminate=True)
        self._serve(now)

    def gone(self, slot: Slot[C], now: float) -> None:
        """A closing connection is closed, terminated or given up: its place is free."""
        slot.state = GONE
        self.closing.remove(slot)
        self._serve(now)

    # -- by the clock

    def take_work(self) -> list[tuple[Order, Any]]:
        """Hand over what is to be done."""
        work, self.work = self.work, []
        return work

    def wake_at(self) -> float:
        """When the state wants to be woken next by ``wake``; inf: never."""
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
        """Change the size: surplus idle ones go now, lent ones on their return."""
        self.configure(config)
        surplus = max(0, len(self.slots) - self.max_size)
        for slot in self.idle.remove_these(set(self.idle.unused(now)[:surplus])):
            self.close_one(slot, CloseReason.RESIZED)
        self.agenda.set_reaper(now)
        self._serve(now)

    def evict(self, chosen: set[Slot[C]] | None, now: float) -> int:
        """Retire these connections, or the whole generation, those on their way included. Returns how many are open."""
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
        """The pool's numbers now."""
        return picture(self)

    def in_use(self) -> int:
        """How many are lent."""
        return len(self.slots) - len(self.idle) - len(self.validating) - len(self.resetting)

    def restore(self, now: float) -> None:
        """Go on after a repair (see ``_repair.py``)."""
        self.queue.pass_on()
        if self.agenda.parked and self.idle.fresh:
            self.agenda.start_clock(now)
        self._serve(now)

    # -- inside

    def _serve(self, now: float) -> None:
        """Start what would help those who wait, and see to min_idle: the end of every event."""
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
        """Why a connection that works must go all the same: the first match counts."""
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
        """Give the connection to the waiter at the head, or make it idle.

        ``proven``: just opened or tested, so it is not tested again before it is lent (or ``alive_bypass=0`` would
        test for ever).
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
        """Have a connection closed, or terminated, that is in no other place any more."""
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
        if reason is not CloseReason.POOL_CLOSED:  # else a borrower may have it still; the next open() forgets them
            self.extensions.pop(slot, None)

    def _dead(self, slot: Slot[C], reason: CloseReason, now: float, *, terminate: bool = False) -> None:
        """Close a dead connection; the first one found dead casts doubt on those unused since.

        One that was last good before the last sweep tells nothing new: no storm of pings, no O(n) for each.
        """
        last_good = slot.stamp
        self.close_one(slot, reason, terminate=terminate)
        if last_good <= self._swept_at:
            return
        self._swept_at = self.tick  # the warm path stamped with it until now; what it stamps from now on is later
        self.idle.doubt()
        if self.idle.stale:
            self.work.append((Order.SWEEP, None))

    def _settle(self, now: float) -> None:
        """Say whether the warm path may lend and take back by itself, and how many it must leave idle."""
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
