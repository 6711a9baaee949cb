"""Every decision of the pool: who gets which connection, and what is opened, tested, wiped and closed.

No I/O, no clock, no randomness, no event loop: time, lifetimes and jitter come in as arguments, and what has to be
done goes out through ``orders``, which the shell carries out. Waiters are opaque: ``offer`` hands one a connection and
answers False if it is gone already. So the whole policy runs, and is checked, without a loop.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from enum import Enum
from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._deadlock import count_blocked_holders, newest_blocked_holder
from ._statistics import CloseReason, State, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from ._config import PoolConfig
    from ._errors import Phase

C = TypeVar("C")

SLOW_FLOOR = 0.1
"""A test or reset younger than this many seconds always counts as supply."""
SLOW_FACTOR = 3.0
"""So does one that has taken less than this many times the last good one of its kind."""
BACKOFF_FIRST = 0.2
BACKOFF_MOST = 2.0
PROBE_PATIENCE = 2.0
"""While backing off one connect at a time probes; an older one no longer counts as that one."""
CLOSED = 1 << 60
"""How many idle ones the warm path must leave when it may take none."""
BEATS = 8
"""Beats of the warm path's clock in the shortest time that it has to tell."""
SWEEP_LEAST = 32
"""Dead waiters are swept when they outnumber the living, but not for fewer than this."""


OPENING, IDLE, VALIDATING, LENT, RESETTING, CLOSING, GONE = (
    "opening",
    "idle",
    "validating",
    "lent",
    "resetting",
    "closing",
    "gone",
)
RAISED, DISCARD, BROKEN, UNUSED = 1, 2, 4, 8
"""How a lease ended: by an exception, to be closed, found broken, never used."""
CHANGES = {
    OPENING: {IDLE, LENT, CLOSING},
    IDLE: {VALIDATING, LENT, CLOSING},
    VALIDATING: {IDLE, LENT, CLOSING},
    LENT: {IDLE, LENT, RESETTING, CLOSING, GONE},
    RESETTING: {IDLE, LENT, CLOSING},
    CLOSING: {GONE},
    GONE: set(),
}
"""Which state of a connection may follow which. From lent to gone: it was detached; to lent: it was handed on.

The tests look at every change (a descriptor in the place of ``Slot.state``), so that it costs no program a thing.
"""


class Order(Enum):
    """What the state asks of the shell."""

    CONNECT = "connect"
    TEST = "test"
    CLOSE = "close"
    TERMINATE = "terminate"
    STARTED = "started"
    FIND_LEAKS = "find leaks"
    DEADLOCK = "deadlock"


class Slot(Generic[C]):
    """One connection's place in the pool, from its birth until it is gone."""

    __slots__ = (
        "born",
        "conn",
        "expires_at",
        "holder",
        "id",
        "kept_at",
        "loose",
        "mark",
        "stack",
        "stamp",
        "state",
        "suspect",
        "terminated",
        "uses",
    )

    def __init__(self, conn: C, ident: int, now: float, expires_at: float) -> None:
        self.conn = conn
        self.id = ident
        self.born = now
        self.expires_at = expires_at
        self.state = OPENING
        self.stamp = now  # idle: last used or tested; lent: since when
        self.kept_at = now  # validated last by keepalive, which is no use
        self.uses = 0
        self.holder: Any = None  # the task that has it, while it is lent
        self.loose = False  # lent by ``await``: anybody may release it
        self.mark: CloseReason | None = None  # it goes on its return; once closed: why
        self.suspect = False  # its borrower gave it back because of an exception: it is tested before its next use
        self.stack: str | None = None
        self.terminated = False

    def used_at(self) -> float:
        """When it was used last, or validated for a waiter."""
        return self.stamp

    def heard_at(self) -> float:
        """When the server answered last, as far as is known."""
        return max(self.stamp, self.kept_at)


class Trial(Generic[C]):
    """A test or a reset under way."""

    __slots__ = ("keeps", "late", "late_at", "since", "waiter")

    def __init__(self, now: float, last: float) -> None:
        self.since = now
        self.late_at = now + max(SLOW_FLOOR, SLOW_FACTOR * last)
        self.late = False  # it is slower than usual: it counts as supply no longer
        self.waiter: Waiter[C] | None = None  # whom a test is for
        self.keeps = False  # a validation by keepalive


class Approval(Generic[C]):
    """The right to open one connection: redeemed exactly once, by ``put`` or ``connect_failed`` (bb8's best idea)."""

    __slots__ = ("generation", "late", "orphan", "since", "waiter")

    def __init__(self, waiter: Waiter[C] | None, now: float, generation: int) -> None:
        self.waiter = waiter
        self.late = False  # a probe that has lost patience: others may probe beside it
        self.orphan = False  # its waiter timed out or was cancelled: it counts for nobody else (pgx #1259)
        self.since = now
        self.generation = generation


class Waiter(Generic[C]):
    """A get that waits. The shell's subclass answers; these marks are the state's own."""

    __slots__ = ("approval", "deadline", "direct", "idle_only", "patient", "queued", "started", "task", "test")

    def __init__(self, task: Any = None, *, idle_only: bool = False, patient: bool = True) -> None:
        self.task = task
        self.started = 0.0
        self.deadline = inf
        self.queued = False
        self.approval: Approval[C] | None = None
        self.test: Trial[C] | None = None
        self.direct = False  # served by its own test
        self.idle_only = idle_only  # try_get: takes an idle one or nothing
        self.patient = patient  # it waits with the default time-out

    def offer(self, slot: Slot[C] | None) -> bool:
        """Take the connection (None: there is none for a try_get), or answer False: already gone, try the next."""
        raise NotImplementedError

    def gone(self) -> bool:
        """Tell whether it was cancelled already, or answered."""
        raise NotImplementedError

    def fail(self, error: BaseException | None) -> None:
        """Give up: no connection will come. None: the pool is closing."""
        raise NotImplementedError


class PoolState(Generic[C]):
    """The pool without its I/O. Every method ends with all that could be decided decided, and ``orders`` filled."""

    __slots__ = (
        "_beaten",
        "_bounded",
        "_bypass",
        "_detects",
        "_fifo",
        "_given",
        "_last_reset",
        "_last_test",
        "_late_resets",
        "_late_tests",
        "_left_at",
        "_next_id",
        "_number",
        "_paused",
        "_period",
        "_pop_stale",
        "_queue_at",
        "_swept_at",
        "_tests_always",
        "_uses_gone",
        "abandoned",
        "added",
        "approvals",
        "beat_at",
        "closed",
        "closing",
        "config",
        "connects_failed",
        "created",
        "due",
        "extensions",
        "failed",
        "failures",
        "floor",
        "fresh",
        "generation",
        "gets_cancelled",
        "gets_failed",
        "gets_timed_out",
        "gets_waited",
        "has_broken",
        "hook_errors",
        "is_open",
        "keep_at",
        "last_error",
        "live",
        "max_size",
        "min_idle",
        "next_expiry",
        "observed",
        "parked",
        "plain",
        "pop",
        "reap_at",
        "resetting",
        "retry_at",
        "slots",
        "slow",
        "stale",
        "starting",
        "stuck_at",
        "tick",
        "tries",
        "validating",
        "wait_time",
        "waiters",
        "waiting",
        "wipes",
        "work",
    )

    def __init__(
        self,
        config: PoolConfig,
        is_broken: Callable[[C], bool],
        failed: Callable[[BaseException], None],
        next_id: Callable[[], int],
    ) -> None:
        self.has_broken = is_broken
        self.failed = failed  # told of what has_broken raises
        self.wipes = False
        self._next_id = next_id
        self.work: list[tuple[Order, Any]] = []
        # Each time of its own is exact or too early; `due` is not later than any of them.
        self.due = inf
        self.beat_at = self.reap_at = self.stuck_at = self._queue_at = inf
        self.keep_at = inf  # when keepalive looks next
        self._given: list[tuple[float, int, Waiter[C]]] = []  # a heap of the gets with a time-out of their own
        self._number = 0
        self._left_at = -inf  # when a waiter gave up last
        self.is_open = False
        self.starting = False  # open() waits for min_idle: failed connects are repeated as if a get waited
        self.observed = False  # listeners, stacks or the guard: every get and return takes the slow path

        # Every open connection is in `slots` and in exactly one of: fresh, stale, validating, resetting, or lent.
        self.slots: dict[Slot[C], None] = {}  # ordered, and half the size of a set
        self.fresh: deque[Slot[C]] = deque()  # lendable as they are, by time of their last use
        self.stale: deque[Slot[C]] = deque()  # idle, to be tested before lending
        self.validating: dict[Slot[C], Trial[C]] = {}
        self.resetting: dict[Slot[C], Trial[C]] = {}
        self.closing: set[Slot[C]] = set()
        self.approvals: dict[Approval[C], None] = {}
        self.extensions: dict[Slot[C], dict[Hashable, Any]] = {}

        self.waiters: deque[Waiter[C]] = deque()
        self.live = 0  # waiters that are still queued; the rest of the deque is dead
        self.tries = 0  # how many of them are a try_get
        self.waiting = 0  # gets that wait until their task has gone on; a try_get is none

        self.shut()
        self.tick = 0.0
        self.parked = True
        self._beaten = 0.0
        self.next_expiry = inf
        self.generation = 0
        self._late_tests = 0
        self._late_resets = 0
        self._last_test = 0.0
        self._last_reset = 0.0
        self._swept_at = -inf
        self.failures = 0
        self.retry_at = -inf
        self._paused = False  # a connect failed with nobody waiting: min_idle waits for the reaper's next look
        self.last_error: BaseException | None = None

        self.gets_waited = 0
        self.gets_timed_out = 0
        self.gets_cancelled = 0
        self.gets_failed = 0
        self.wait_time = 0.0
        self.created = 0
        self.added = 0
        self.closed = dict.fromkeys(CloseReason, 0)
        self.abandoned = 0
        self.connects_failed = 0
        self.hook_errors: Callable[[], int] = int
        self._uses_gone = 0
        self.configure(config)

    def is_broken(self, conn: C) -> bool:
        """Ask the manager. Raising means broken."""
        try:
            return bool(self.has_broken(conn))
        except BaseException as error:  # noqa: BLE001 - whatever an adapter raises
            self.failed(error)
            return True

    def configure(self, config: PoolConfig) -> None:
        """Take the options over, at first and when they change."""
        self.config = config
        self.max_size = config.max_size
        self.min_idle = config.min_idle
        self._detects = config.detect_deadlock
        self._bounded = config.max_waiting is not None
        bypass = config.alive_bypass if config.test_on_check_out else None
        self._period = max(0.01, min(time for time in (bypass, config.idle_timeout, 8.0) if time) / BEATS)
        self._tests_always = config.test_on_check_out and config.alive_bypass == 0
        self._bypass = config.alive_bypass if config.test_on_check_out else inf
        # The one place where the queue strategy matters: from which end of the idle ones to take.
        fifo = self._fifo = config.queue_strategy.value == "fifo"
        self.pop = self.fresh.popleft if fifo else self.fresh.pop
        self._pop_stale = self.stale.popleft if fifo else self.stale.pop

    # -- life cycle

    def open(self, now: float, *, starting: bool) -> None:
        """Begin: bring min_idle up. With ``starting`` somebody waits for it."""
        self.is_open = True
        self.starting = starting
        self.failures = 0
        self.retry_at = -inf
        self._paused = False
        self._swept_at = -inf
        self.next_expiry = inf
        self.last_error = None
        self.extensions.clear()
        self.parked = True
        self.due = self.beat_at = self.reap_at = self.stuck_at = self._queue_at = inf
        self._given.clear()
        self._left_at = -inf
        self.keep_at = inf
        self._set_reaper(now)
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

    def started(self) -> None:
        """Nobody waits for min_idle any more."""
        self.starting = False

    def close(self, now: float) -> None:
        """Begin the end: refuse, fail the waiters at once, close what is idle, terminate what is being tested."""
        self.is_open = self.starting = False
        self.due = self.beat_at = self.reap_at = self.stuck_at = self._queue_at = self.keep_at = inf
        self._given.clear()
        self._fail_all(None)
        for slot in [*self.fresh, *self.stale]:
            self._close(slot, CloseReason.POOL_CLOSED)
        self.fresh.clear()
        self.stale.clear()
        for slot in list(self.validating):
            self._end_test(slot)
            self._close(slot, CloseReason.POOL_CLOSED, terminate=True)
        self._settle(now)

    def terminate_all(self) -> None:
        """End the waiting for lent connections and resets: terminate them."""
        for slot in list(self.slots):
            if slot in self.resetting:
                self._end_reset(slot)
            self._close(slot, CloseReason.POOL_CLOSED, terminate=True)

    def bury(self) -> None:
        """The loop is dead, and the waiters and connects with it: only connections are left, to be terminated."""
        for waiter in self.waiters:
            waiter.queued = False  # so that nobody tells them
        self.gets_cancelled += self.waiting
        self.waiting = 0
        self.close(self.tick)
        for approval in list(self.approvals):
            self._redeem(approval)
        self.terminate_all()

    # -- getting

    def take(self, now: float) -> Slot[C] | None:
        """Lend an idle connection that needs no test. Only while nobody waits (then nothing fresh is idle anyway)."""
        while self.fresh and not self._stale_first():
            slot = self.pop()
            if not self.is_broken(slot.conn):
                slot.state = LENT
                self._top_up(now)
                return slot
            self.found_broken(slot, now)
        return None

    def found_broken(self, slot: Slot[C], now: float) -> None:
        """This one, which was just taken out to be lent, is broken."""
        self._dead(slot, CloseReason.BROKEN, now)
        self._serve(now)

    def enqueue(self, waiter: Waiter[C], now: float) -> bool:
        """Queue a get that found nothing to lend, and start what would help it. False: ``max_waiting`` is reached."""
        waiter.queued = True
        self.waiters.append(waiter)
        self.live += 1
        if not waiter.patient or waiter.deadline < self._queue_at:
            self._limit(waiter)
        if len(self.slots) >= self.max_size and not (
            self.stale or self.validating or self.failures or self._bounded
        ):  # nothing could help it but a return, as is common in a busy pool
            self.tick = now
            self.slow, self.floor = True, CLOSED
            if self.stuck_at == inf and self._detects:
                self._watch(now)
            return True
        self.tries += waiter.idle_only
        self._pass_on()
        self._serve(now)
        if self.config.max_waiting is not None and waiter.approval is None and waiter.test is None:
            # What is under way will serve a get each; and who asks alone is never one too many.
            under_way = len(self.validating) + len(self.resetting)
            # A connect may have been begun beside a test or reset that is late: both will serve the same get.
            on_time = under_way - self._late_tests - self._late_resets
            coming = max(under_way + len(self.closing), on_time + len(self.approvals))
            if self.live - max(coming, not self._in_use()) > self.config.max_waiting:
                self._drop(waiter)
                return False
        return True

    def _in_use(self) -> int:
        idle = len(self.fresh) + len(self.stale)
        return len(self.slots) - idle - len(self.validating) - len(self.resetting)

    def give_up(self, waiter: Waiter[C], now: float) -> None:
        """A waiter timed out or was cancelled. Its connect and its test go on, and their fruit goes to the pool."""
        if waiter.queued:
            self._drop(waiter)
            self._left_at = now
        self._orphan(waiter)
        self._serve(now)

    def refuse(self, waiter: Waiter[C], now: float) -> None:
        """The waiting of one for whom nothing is under way was ended."""
        self._drop(waiter)
        self._left_at = now

    def phase(self, waiter: Waiter[C] | None) -> Phase:
        """What a get is waiting for: its own test, a connect or a back-off, or its turn."""
        if waiter is not None and waiter.test is not None:
            return "validate"
        return "connect" if self.approvals or self.failures else "queue"

    def might_deadlock(self) -> bool:
        """Tell cheaply whether nothing but a return could help those who wait."""
        return (
            self.live > 0
            and len(self.slots) >= self.max_size
            and not (self.fresh or self.stale or self.validating or self.resetting or self.closing or self.approvals)
        )

    def blocked_holders(self) -> int:
        """Count the lent connections whose holder itself waits for another one."""
        return count_blocked_holders(self.slots, self.waiters)

    # -- opening

    def put(self, approval: Approval[C], conn: C, now: float, lifetime: float) -> Slot[C]:
        """Redeem an approval: the connection is open. It goes to the waiter at the head, or idle."""
        self._redeem(approval)
        self.failures = 0
        self.retry_at = -inf
        self._paused = False
        self.last_error = None
        self.created += 1
        slot = self._admit(conn, now, lifetime)
        if not self.is_open:
            self._close(slot, CloseReason.POOL_CLOSED, terminate=True)
        elif approval.generation != self.generation:
            self._close(slot, CloseReason.EVICTED)
        elif len(self.slots) > self.max_size:
            self._close(slot, CloseReason.RESIZED)
        else:
            self._stock(slot, now, proven=True)
        self._serve(now)
        return slot

    def connect_failed(
        self, approval: Approval[C], error: BaseException | None, now: float, *, transient: bool, jitter: float
    ) -> None:
        """Redeem an approval: the connect failed (None: it was called off). ``jitter`` in [0, 1) spreads the retries."""
        self._redeem(approval)
        if error is not None:
            self.connects_failed += 1
            self.last_error = error
            if not (self.live or self.starting):
                self._paused = True
            if not transient and not self.slots:
                self._fail_all(error)
            elif not self.config.retry_connection:
                self._fail_head(error)
            if self.config.retry_connection and now >= self.retry_at:
                # A failure during the back-off came from a connect begun before it: it does not stretch it.
                self.failures += 1
                self.retry_at = now + jitter * min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(self.failures - 1, 8))
        self._serve(now)

    def add(self, conn: C, now: float, lifetime: float) -> Slot[C] | None:
        """Take in a connection opened elsewhere. None: there is no room."""
        if len(self.slots) + len(self.approvals) + len(self.closing) >= self.max_size:
            return None
        self.added += 1
        slot = self._admit(conn, now, lifetime)
        self._stock(slot, now, proven=True)
        self._serve(now)
        return slot

    # -- testing

    def tested(
        self, slot: Slot[C], now: float, *, valid: bool, timed_out: bool = False, terminate: bool = False
    ) -> None:
        """End a test. A valid connection goes, without another test, to the waiter at the head."""
        trial = self.validating[slot]
        waiter = trial.waiter
        self._end_test(slot)
        if not valid:
            if timed_out and not slot.suspect:
                # A NAT that dropped this one dropped all that were silent for as long.
                silent_since = slot.heard_at()
                for other in self._remove_idle(lambda idle: idle.heard_at() <= silent_since):
                    self._close(other, CloseReason.INVALID, terminate=True)
            self._dead(slot, CloseReason.INVALID, now, terminate=timed_out or terminate)
        elif self.is_broken(slot.conn):
            self._dead(slot, CloseReason.BROKEN, now)
        elif (reason := self._retired(slot, now)) is not None:
            self._close(slot, reason)
        else:
            self._last_test = now - trial.since
            slot.suspect = False
            if trial.keeps and not self.live:
                self._keep(slot, now)
            else:
                self._stock(slot, now, proven=True, tested_for=waiter)
        if trial.keeps and self.is_open:
            self.keep_at = now  # others may have waited for its end
            self.due = min(self.due, now)
        self._serve(now)

    # -- giving back

    def give_back(self, slot: Slot[C], now: float, how: int = 0) -> bool:
        """End a lease. True: the connection stays; wipe it and call ``restock``."""
        if how or slot.mark is not None or not self.plain:
            if slot not in self.slots:
                return False  # close() has terminated it
            if how & RAISED:
                slot.suspect = True
            if how & BROKEN or self.is_broken(slot.conn):
                # Compare with when it was lent: those lent before a sweep tell nothing new by being dead.
                self._dead(slot, CloseReason.BROKEN, now)
            elif (reason := self._retired(slot, now, discard=how & DISCARD != 0)) is not None:
                self._close(slot, reason)
            elif self.wipes and not how & UNUSED:
                return True
            else:
                self._stock(slot, now, proven=how & UNUSED != 0)
            self._serve(now)
            return False
        try:
            broken = True if self.has_broken(slot.conn) else False  # noqa: SIM210 - its answer may have no truth value
        except BaseException as error:  # noqa: BLE001 - raising means broken
            self.failed(error)
            broken = True
        if broken:
            self._dead(slot, CloseReason.BROKEN, now)
            self._serve(now)
            return False
        if self.wipes:
            return True
        slot.stamp = now
        if not (self.live and self._hand(slot, now)):
            self.restock(slot, now)
        return False

    def restock(self, slot: Slot[C], now: float) -> None:
        """A clean connection is back: it goes to the waiter at the head, or idle."""
        self._stock(slot, now)
        if self.stale:
            self._serve(now)  # it may have to be tested first
        elif not self.live:
            self._settle(now)

    def begin_reset(self, slot: Slot[C], now: float) -> None:
        """The connection is being wiped; its borrower has gone on."""
        slot.state = RESETTING
        slot.holder = None
        trial = self.resetting[slot] = Trial(now, self._last_reset)
        self.due = min(self.due, trial.late_at)
        self._settle(self.tick)

    def reset_done(
        self, slot: Slot[C], now: float, *, ok: bool, timed_out: bool = False, replaced: bool = False
    ) -> None:
        """End a reset. Whatever went wrong closes the connection."""
        trial = self.resetting[slot]
        self._end_reset(slot)
        if not ok:
            self._close(slot, CloseReason.REPLACED if replaced else CloseReason.RESET_FAILED, terminate=timed_out)
        elif self.is_broken(slot.conn):
            self._dead(slot, CloseReason.BROKEN, now)
        elif (reason := self._retired(slot, now)) is not None:
            self._close(slot, reason)
        else:
            self._last_reset = now - trial.since
            self._stock(slot, now)
        self._serve(now)

    def reset_failed(self, slot: Slot[C], now: float, *, replaced: bool = False) -> None:
        """The manager's ``reset`` raised before it gave anything to wait for."""
        self._close(slot, CloseReason.REPLACED if replaced else CloseReason.RESET_FAILED)
        self._serve(now)

    def detach(self, slot: Slot[C], now: float) -> None:
        """A lent connection leaves the pool for good, open."""
        slot.state = GONE
        slot.holder = None
        del self.slots[slot]
        self.extensions.pop(slot, None)
        self.closed[CloseReason.DETACHED] += 1
        self._uses_gone += slot.uses
        self._serve(now)

    def reclaim(self, slot: Slot[C], now: float) -> None:
        """A lease was garbage-collected: nobody can return its connection, and nobody knows what is going on in it."""
        self._close(slot, CloseReason.LEAKED, terminate=True)
        self._serve(now)

    def gone(self, slot: Slot[C], now: float) -> None:
        """A closing connection is closed, terminated or given up: its place is free."""
        slot.state = GONE
        slot.holder = None
        self.closing.remove(slot)
        self._serve(now)

    # -- by the clock

    def take_work(self) -> list[tuple[Order, Any]]:
        """Hand over what is to be done."""
        work, self.work = self.work, []
        return work

    def wake_at(self) -> float:
        """When the state wants to be woken next by ``wake``; inf: never."""
        when = min(self.next_expiry, self.beat_at, self.reap_at, self.stuck_at, self._queue_at, self.keep_at)
        if self._given:
            when = min(when, self._given[0][0])
        if self.failures and (self.live or self.starting):
            when = min(when, self._retry_due())
        if len(self.validating) > self._late_tests:
            when = min(when, _late_at(self.validating))
        if len(self.resetting) > self._late_resets:
            when = min(when, _late_at(self.resetting))
        return when

    def overdue(self, now: float) -> list[Waiter[C]]:
        """Say who has waited too long; ``wake`` is told of them."""
        late: list[Waiter[C]] = []
        if self._queue_at <= now:
            self._queue_at = inf
            for waiter in self.waiters:
                if waiter.queued and waiter.patient:
                    if waiter.deadline > now:
                        self._queue_at = waiter.deadline
                        break
                    late.append(waiter)
        given = self._given
        while given and given[0][0] <= now:
            waiter = heappop(given)[2]
            if waiter.queued:
                late.append(waiter)
        return late

    def wake(self, now: float, late: list[Waiter[C]]) -> None:
        """Do what has become due."""
        for waiter in late:
            self._drop(waiter)
            self._orphan(waiter)
        if late:
            self._left_at = now
        self._look(now)
        if self.beat_at <= now:
            self._beat(now)
        if self.reap_at <= now:
            self._reap(now)
        if self.keep_at <= now:
            self._look_for_silence(now)
        if self.stuck_at <= now:
            self._look_for_standstill(now)
        self._serve(now)
        self.due = self.wake_at()

    def _limit(self, waiter: Waiter[C]) -> None:
        """Remember when its time is up. The default time-out's queue stands in the order of the deadlines."""
        deadline = waiter.deadline
        if waiter.patient:
            self._queue_at = deadline
        elif deadline != inf:
            given = self._given
            self._number += 1
            heappush(given, (deadline, self._number, waiter))
            if len(given) > 2 * self.live + SWEEP_LEAST:
                given[:] = [entry for entry in given if entry[2].queued]
                heapify(given)
        self.due = min(self.due, deadline)

    def _retry_due(self) -> float:
        probes = [approval.since + PROBE_PATIENCE for approval in self.approvals if not approval.late]
        ready = max(probes, default=self.retry_at)
        return ready if ready > self.tick else inf  # else something other than time is missing

    def _set_reaper(self, now: float) -> None:
        """It runs only where it has something to look at."""
        config = self.config
        if self.reap_at == inf and (config.idle_timeout is not None or config.min_idle or config.leak_threshold):
            self.reap_at = now + config.reap_interval
            self.due = min(self.due, self.reap_at)

    def _watch(self, now: float) -> None:
        if self.might_deadlock():
            self.stuck_at = now + self.config.deadlock_after
            self.due = min(self.due, self.stuck_at)

    def _look_for_standstill(self, now: float) -> None:
        """Refuse the newest get of a holder where nothing has moved for ``deadlock_after``."""
        self.stuck_at = inf
        if not self.might_deadlock():
            return
        after = self.config.deadlock_after
        moved = max(self._left_at, *(slot.stamp for slot in self.slots))  # the last hand-off, or who gave up
        if moved + after <= now:
            victim = newest_blocked_holder(self.slots, self.waiters)
            if victim is None:
                moved = now + 5e-6 * len(self.waiters)  # a look goes through all waiters: under load it stays rare
            elif victim.started + after <= now:
                self.work.append((Order.DEADLOCK, victim))
                moved = now
            else:
                moved = victim.started
        self.stuck_at = moved + after

    def _look_for_silence(self, now: float) -> None:
        """Validate idle connections that were silent for ``keepalive``, at most ``max_connecting`` at once."""
        keepalive = self.config.keepalive
        assert keepalive is not None
        idle = sorted((*self.stale, *self.fresh), key=Slot.heard_at)
        due = [slot for slot in idle if slot.heard_at() + keepalive <= now]
        room = self.config.max_connecting - sum(trial.keeps for trial in self.validating.values())
        chosen = set(due[: max(0, room)])
        for slot in self._remove_idle(chosen.__contains__):
            self._begin_test(slot, now, keeps=True)
        if not self.slots:
            self.keep_at = inf  # the next connection sets it again
        elif len(due) > len(chosen):
            self.keep_at = inf  # the end of a validation sets it again
        else:
            # A look goes through all idle ones, so that many who fall due one by one are looked at together.
            earliest = min((slot.heard_at() for slot in idle if slot not in chosen), default=now) + keepalive
            self.keep_at = max(earliest, now + keepalive / 64)

    def _keep(self, slot: Slot[C], now: float) -> None:
        """Put a connection that keepalive has validated back to its place among the idle ones."""
        slot.kept_at = now
        slot.state = IDLE
        insort(self.fresh if self._bypass == inf else self.stale, slot, key=Slot.used_at)

    def _start_clock(self, now: float) -> None:
        """Something fresh and traffic are there to time."""
        self.parked = False
        self._beaten = now
        self.beat_at = now + self._period
        self.due = min(self.due, self.beat_at)

    def _beat(self, now: float) -> None:
        """Move the warm path's clock on; where nothing fresh and no traffic is left to time, it stops."""
        fresh = self.fresh
        if fresh and fresh[0].stamp + self._bypass <= now:
            aged = []
            while fresh and fresh[0].stamp + self._bypass <= now:
                aged.append(fresh.popleft())
            self._make_stale(aged)
        quiet = self._bypass == inf and (not fresh or fresh[-1].stamp < self._beaten)
        self.parked = not fresh or quiet
        self._beaten = now
        self.beat_at = inf if self.parked else now + self._period

    def _look(self, now: float) -> None:
        """Expired lifetimes, overdue tests and resets, the end of a back-off."""
        if self.next_expiry <= now:
            for slot in self._remove_idle(lambda idle: idle.expires_at <= now):
                self._close(slot, CloseReason.LIFETIME)
            self.next_expiry = inf
            for slot in self.slots:
                if slot.expires_at > now:
                    self.next_expiry = min(self.next_expiry, slot.expires_at)
                elif slot.mark is None:
                    slot.mark = CloseReason.LIFETIME
        if self.failures:
            for approval in self.approvals:
                if approval.since + PROBE_PATIENCE <= now:
                    approval.late = True
                    if approval.waiter is not None:
                        approval.waiter.approval = None
                        approval.waiter = None
        if len(self.validating) > self._late_tests:
            self._late_tests += _mark_late(self.validating, now)
        if len(self.resetting) > self._late_resets:
            self._late_resets += _mark_late(self.resetting, now)

    def _reap(self, now: float) -> None:
        """Close what is idle for too long, down to min_idle (bb8 #123), and bring min_idle up."""
        timeout = self.config.idle_timeout
        if timeout is not None:
            spare = len(self.fresh) + len(self.stale) - self.min_idle
            due = sorted((s for s in (*self.stale, *self.fresh) if s.stamp + timeout <= now), key=lambda s: s.stamp)
            chosen = set(due[: max(0, spare)])
            for slot in self._remove_idle(chosen.__contains__):
                self._close(slot, CloseReason.IDLE)
        self._paused = False
        self.reap_at = now + self.config.reap_interval
        if self.config.leak_threshold is not None:
            self.work.append((Order.FIND_LEAKS, None))

    # -- by the owner

    def resize(self, config: PoolConfig, now: float) -> None:
        """Change the size: surplus idle ones go now, lent ones on their return."""
        self.configure(config)
        surplus = len(self.slots) - self.max_size
        if surplus > 0:
            chosen = set(sorted((*self.stale, *self.fresh), key=lambda s: s.stamp)[:surplus])
            for slot in self._remove_idle(chosen.__contains__):
                self._close(slot, CloseReason.RESIZED)
        self._set_reaper(now)
        self._serve(now)

    def evict(self, chosen: set[Slot[C]] | None, now: float) -> int:
        """Retire these connections, or the whole generation, those on their way included. Returns how many are open."""
        if chosen is None:
            self.generation += 1
            chosen = set(self.slots)
        for slot in chosen:
            slot.mark = CloseReason.EVICTED
        for slot in self._remove_idle(chosen.__contains__):
            self._close(slot, CloseReason.EVICTED)
        self._serve(now)
        return len(chosen)

    # -- pictures

    def snapshot(self) -> State:
        """The pool's numbers now."""
        idle = len(self.fresh) + len(self.stale)
        validating, resetting = len(self.validating), len(self.resetting)
        # A copy, since metrics are read from other threads.
        served = self._uses_gone + sum(slot.uses for slot in tuple(self.slots))
        ended = served + self.gets_timed_out + self.gets_cancelled + self.gets_failed
        return State(
            idle=idle,
            in_use=self._in_use(),
            opening=len(self.approvals),
            validating=validating,
            resetting=resetting,
            closing=len(self.closing),
            waiting=self.waiting,
            statistics=Statistics(
                gets_started=ended + self.waiting,
                gets_direct=served - self.gets_waited,
                gets_waited=self.gets_waited,
                gets_timed_out=self.gets_timed_out,
                gets_cancelled=self.gets_cancelled,
                gets_failed=self.gets_failed,
                get_wait_time=self.wait_time,
                connections_created=self.created,
                connections_added=self.added,
                connections_closed=dict(self.closed),
                connections_abandoned=self.abandoned,
                connects_failed=self.connects_failed,
                hook_errors=self.hook_errors(),
            ),
        )

    def check_invariants(self) -> None:
        """Raise AssertionError where the state contradicts itself (for tests)."""
        lent = [slot for slot in self.slots if slot.state is LENT]
        for name, place in (
            (IDLE, self.fresh),
            (IDLE, self.stale),
            (VALIDATING, self.validating),
            (RESETTING, self.resetting),
        ):
            assert all(slot.state is name for slot in place), f"a connection is not {name} where it is kept as such"
        assert all(slot.state is CLOSING for slot in self.closing), "not closing"
        assert all(slot.holder is None for slot in self.slots if slot.state is not LENT), "held, and not lent"
        places = [*self.fresh, *self.stale, *self.validating, *self.resetting, *lent]
        assert len(places) == len(set(places)), "a connection has two owners"
        assert set(places) == set(self.slots), "a connection is open and nowhere, or somewhere and not open"
        assert self.closing.isdisjoint(self.slots), "a connection is open and closing"
        assert self.live == sum(waiter.queued for waiter in self.waiters), "the count of waiters is wrong"
        assert self._late_tests == sum(test.late for test in self.validating.values()), (
            "the count of late tests is wrong"
        )
        assert self._late_resets == sum(reset.late for reset in self.resetting.values()), (
            "the count of late resets is wrong"
        )
        waits = self.live > len(self.validating) if self._fifo else self.live
        assert not (waits and self.fresh), "somebody waits while a connection is idle and lendable"
        testing = self.live > len(self.validating)
        assert self.tries == sum(waiter.idle_only for waiter in self.waiters if waiter.queued), "tries miscounted"
        assert not (testing and self.stale), "somebody waits while an idle connection could be tested"
        for approval in self.approvals:
            waiter = approval.waiter
            assert waiter is None or (waiter.queued and waiter.approval is approval), "a connect for a waiter that left"
        for test in self.validating.values():
            assert test.waiter is None or test.waiter.test is test, "a test for a waiter that left"
        assert not self.is_open or self.extensions.keys() <= self.slots.keys(), "extensions of what is gone"
        opened = self.created + self.added
        assert opened == len(self.slots) + sum(self.closed.values()), "the books do not balance"
        assert self.slow or (self.is_open and not self.live), "the warm path is open to overtakers"
        if self.slow is False and self.min_idle and self._room():
            idle_after_get = self.floor + len(self.stale) + self._coming()
            assert idle_after_get >= self.min_idle, "the warm path undercuts min_idle"
        if self._may_connect(self.tick):
            assert self._lack() <= self.tries, "capacity is free, somebody waits, and nobody makes progress"

    # -- inside

    def _room(self) -> bool:
        return len(self.slots) + len(self.approvals) + len(self.closing) < self.max_size

    def _may_connect(self, now: float) -> bool:
        if not (self.is_open and self._room()) or len(self.approvals) >= self.config.max_connecting:
            return False
        if self.failures:
            return now >= self.retry_at and all(approval.late for approval in self.approvals)
        return True

    def _coming(self) -> int:
        """What is under way and nobody waits for: it will be idle soon."""
        return max(0, len(self.approvals) + len(self.validating) + len(self.resetting) - self.live)

    def _lack(self) -> int:
        """How many more wait than have supply under way: connects with a future, tests and resets that are not slow."""
        supply = len(self.validating) - self._late_tests + len(self.resetting) - self._late_resets
        for approval in self.approvals:
            supply += not (approval.orphan or approval.late)
        return self.live - supply

    def _serve(self, now: float) -> None:
        """Start what would help those who wait (nothing fresh is idle then), and see to min_idle."""
        if self.live:
            self._help(now)
        if self.min_idle:
            self._top_up(now)
        if self.failures and (self.live or self.starting) and (ready := self._retry_due()) < self.due:
            self.due = ready
        if self.starting and len(self.slots) >= self.min_idle:
            self.starting = False
            self.work.append((Order.STARTED, None))
        if self.stuck_at == inf and self._detects and self.live:
            self._watch(now)
        self._settle(now)

    def _help(self, now: float) -> None:
        """Start tests, then connects, for those who wait without supply."""
        while (self.stale or self.fresh) and self.live > len(self.validating):
            if self.fresh and not self._stale_first():  # FIFO alone leaves it here while somebody waits
                self._hand_fresh(now)
            else:
                self._test(now)  # a get of its own test each
        while self.stale and len(self.validating) < self.config.max_connecting and self._lack() > 0:
            self._test(now)  # for a get whose test is slow
        if self.tries:
            self._turn_away()
        while self._may_connect(now) and self._lack() > 0:
            waiter = self._first_without_approval()
            if waiter is None:
                break  # the rest are try_gets
            waiter.approval = self._mint(waiter, now)

    def _stale_first(self) -> bool:
        """Tell whether FIFO's next one, unused longest, has to be tested before."""
        return self._fifo and bool(self.stale) and (not self.fresh or self.stale[0].stamp <= self.fresh[0].stamp)

    def _hand_fresh(self, now: float) -> None:
        slot = self.pop()
        last_used = slot.stamp
        if self.is_broken(slot.conn):
            self._dead(slot, CloseReason.BROKEN, now)
        elif not self._hand(slot, now):  # all of them were cancelled in this tick
            slot.state, slot.holder, slot.stamp = IDLE, None, last_used
            self.fresh.appendleft(slot)

    def _make_stale(self, slots: Iterable[Slot[C]]) -> None:
        """Have these tested before their next use. For FIFO they stand by time of last use."""
        self.stale.extend(slots)
        if self._fifo:
            ordered = sorted(self.stale, key=lambda slot: slot.stamp)
            self.stale.clear()
            self.stale.extend(ordered)

    def _turn_away(self) -> None:
        """End each try_get with None that has no idle connection left to hope for."""
        for waiter in list(islice(self.waiters, len(self.waiters) - self.live + self.tries)):  # they stand first
            if waiter.queued and waiter.idle_only and waiter.test is None:
                self._drop(waiter)
                waiter.offer(None)

    def _top_up(self, now: float) -> None:
        if self._paused:
            return
        lack = self.min_idle - len(self.fresh) - len(self.stale) - self._coming()
        while lack > 0 and self._may_connect(now):
            self._mint(None, now)
            lack -= 1

    def _mint(self, waiter: Waiter[C] | None, now: float) -> Approval[C]:
        approval = Approval(waiter, now, self.generation)
        self.approvals[approval] = None
        self.work.append((Order.CONNECT, approval))
        return approval

    def _redeem(self, approval: Approval[C]) -> None:
        assert approval in self.approvals, "bug: an approval was redeemed twice"
        del self.approvals[approval]
        if approval.waiter is not None:
            approval.waiter.approval = None

    def _pass_on(self) -> None:
        """Give connects and tests whose waiter was served otherwise to the first waiters without one."""
        for approval in self.approvals:
            if approval.waiter is None and not (approval.orphan or approval.late):
                waiter = self._first_without_approval()
                if waiter is None:
                    break
                approval.waiter, waiter.approval = waiter, approval
        for test in self.validating.values():
            if test.waiter is None:
                waiter = next((w for w in self.waiters if w.queued and w.test is None), None)
                if waiter is None:
                    break
                test.waiter, waiter.test = waiter, test

    def cut_off(self) -> None:
        """Begin nothing for waiters that are cancelled already, nor for min_idle: the event loop is about to end."""
        self._paused = True
        for waiter in list(self.waiters):
            if waiter.queued and waiter.gone():
                self._drop(waiter)
                self._orphan(waiter)

    def _orphan(self, waiter: Waiter[C]) -> None:
        approval, test = waiter.approval, waiter.test
        if approval is not None:
            approval.waiter = waiter.approval = None
            approval.orphan = True
        if test is not None:
            test.waiter = waiter.test = None

    def _first_without_approval(self) -> Waiter[C] | None:
        return next((w for w in self.waiters if w.queued and w.approval is None and not w.idle_only), None)

    def _drop(self, waiter: Waiter[C]) -> None:
        """Take a waiter out of the count; the deque forgets the dead when they outnumber the living: O(1), amortised."""
        waiter.queued = False
        self.live -= 1
        self.tries -= waiter.idle_only
        waiters = self.waiters
        while waiters and not waiters[0].queued:
            waiters.popleft()
        if len(waiters) > 2 * self.live + SWEEP_LEAST:
            living = [other for other in waiters if other.queued]
            waiters.clear()
            waiters.extend(living)

    def _hand(self, slot: Slot[C], now: float, tested_for: Waiter[C] | None = None) -> bool:
        """Give the connection to the first waiter that is still there. The only place where waiters are served."""
        waiters = self.waiters
        while waiters:
            waiter = waiters.popleft()
            if not waiter.queued:
                continue
            waiter.queued = False
            self.live -= 1
            self.tries -= waiter.idle_only
            waiter.direct = waiter is tested_for
            slot.holder = waiter.task
            slot.state = LENT
            slot.stamp = now
            if waiter.offer(slot):
                approval, test = waiter.approval, waiter.test
                if approval is not None:
                    approval.waiter = waiter.approval = None
                if test is not None:
                    test.waiter = waiter.test = None
                if approval is not None or test is not None:
                    self._pass_on()
                return True
            self._orphan(waiter)  # cancelled in this tick
        return False

    def _fail_head(self, error: BaseException) -> None:
        for waiter in self.waiters:
            if waiter.queued and not waiter.idle_only:
                self._drop(waiter)
                self._orphan(waiter)
                waiter.fail(error)
                return

    def _fail_all(self, error: BaseException | None) -> None:
        waiters = [waiter for waiter in self.waiters if waiter.queued]
        self.waiters.clear()
        self.live = self.tries = 0
        for waiter in waiters:
            waiter.queued = False
            self._orphan(waiter)
            waiter.fail(error)

    def _admit(self, conn: C, now: float, lifetime: float) -> Slot[C]:
        slot = Slot(conn, self._next_id(), now, now + lifetime)
        self.slots[slot] = None
        if slot.expires_at < self.next_expiry:
            self.next_expiry = slot.expires_at
            self.due = min(self.due, slot.expires_at)
        if self.config.keepalive is not None and self.keep_at == inf:
            self.keep_at = now + self.config.keepalive
            self.due = min(self.due, self.keep_at)
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
        slot.stamp = now
        if slot.suspect or (self._tests_always and not proven):
            slot.state = IDLE
            slot.holder = None
            self.stale.append(slot)
        elif not (self.live and self._hand(slot, now, tested_for)):
            slot.state = IDLE
            slot.holder = None
            (self.stale if self._tests_always else self.fresh).append(slot)
            if self.parked and self.fresh:
                self._start_clock(now)

    def _close(self, slot: Slot[C], reason: CloseReason, *, terminate: bool = False) -> None:
        slot.state = CLOSING
        slot.holder = None
        slot.mark = reason
        del self.slots[slot]
        if reason is not CloseReason.POOL_CLOSED:  # else a borrower may have it still; the next open() forgets them
            self.extensions.pop(slot, None)
        self.closing.add(slot)
        self.closed[reason] += 1
        self._uses_gone += slot.uses
        self.work.append((Order.TERMINATE if terminate else Order.CLOSE, slot))

    def _dead(self, slot: Slot[C], reason: CloseReason, now: float, *, terminate: bool = False) -> None:
        """Close a dead connection; the first one found dead casts doubt on those unused since.

        One that was last good before the last sweep tells nothing new: no storm of pings, no O(n) for each.
        """
        last_good = slot.stamp
        self._close(slot, reason, terminate=terminate)
        if last_good <= self._swept_at:
            return
        self._swept_at = now
        for other in self._remove_idle(lambda idle: self.is_broken(idle.conn)):
            self._close(other, CloseReason.BROKEN)
        self._make_stale(self.fresh)
        self.fresh.clear()

    def _remove_idle(self, doomed: Callable[[Slot[C]], bool]) -> list[Slot[C]]:
        """Take the doomed ones out of the idle ones. In place: the warm path holds on to the deque."""
        removed: list[Slot[C]] = []
        for idle in (self.stale, self.fresh):
            kept: list[Slot[C]] = []
            for slot in tuple(idle):
                (removed if doomed(slot) else kept).append(slot)
            if len(kept) != len(idle):
                idle.clear()
                idle.extend(kept)
        return removed

    def _test(self, now: float) -> None:
        """Have the next idle one tested, for the first waiter without a test."""
        self._begin_test(self._pop_stale(), now)

    def _begin_test(self, slot: Slot[C], now: float, *, keeps: bool = False) -> None:
        if self.is_broken(slot.conn):
            self._dead(slot, CloseReason.BROKEN, now)
            return
        slot.state = VALIDATING
        slot.holder = None
        trial = self.validating[slot] = Trial(now, self._last_test)
        trial.keeps = keeps
        self.due = min(self.due, trial.late_at)
        self.work.append((Order.TEST, slot))
        self._pass_on()

    def _end_test(self, slot: Slot[C]) -> None:
        trial = self.validating.pop(slot)
        self._late_tests -= trial.late
        if trial.waiter is not None:
            trial.waiter.test = None

    def _end_reset(self, slot: Slot[C]) -> None:
        self._late_resets -= self.resetting.pop(slot).late

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
        self.slow = self.live > 0 or self.parked or not self.plain
        if self.slow or (self._fifo and self.stale):
            self.floor = CLOSED
        elif self.min_idle and self._room():
            self.floor = max(0, self.min_idle - len(self.stale) - self._coming())
        else:
            self.floor = 0


def _late_at(trials: dict[Slot[Any], Trial[Any]]) -> float:
    """When the next one becomes late: they are judged in the order of their start."""
    return next(trial.late_at for trial in trials.values() if not trial.late)


def _mark_late(trials: dict[Slot[Any], Trial[Any]], now: float) -> int:
    marked = 0
    for trial in trials.values():
        if trial.late:
            continue
        if trial.late_at > now:
            break
        trial.late = True
        marked += 1
    return marked
