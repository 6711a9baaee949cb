"""The shell around the state for threads: events in, work out, under one lock. Nothing here decides who gets what.

Three rules. Foreign code (methods of the manager, hooks, the log) never runs under the lock. What a borrower gets belongs to
its lease before the pool forgets it. Where an interrupt has cut off an event, the next event repairs the state first.

``event`` is the only way to the state, except the two warm paths in ``_lease.py`` and ``_pool.py``, between whose lock and
unlock there is no call, so no signal handler can run there.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pool_core import _messages as messages
from pool_core._errors import PoolError, ReplaceConnection
from pool_core._hooks import INFO
from pool_core._manager import Verdict
from pool_core._messages import THREADS
from pool_core._repair import repair
from pool_core._slot import BROKEN, DISCARD, IDLE, LENT, Approval, Order, Slot
from pool_core._state import PoolState
from pool_core._statistics import CloseReason, Holder

from . import _primitives
from ._borrower import here
from ._calls import GRACE, Calls
from ._gets import Gets, GetWaiter
from ._hooks import ThreadHooks
from ._lifecycle import Lifecycle, Outcome
from ._workers import Call, Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from pool_core._config import PoolConfig
    from pool_core._events import Event

    from ._manager import ConnectionManager

C = TypeVar("C")
T = TypeVar("T")

_next_id = iter(range(1, sys.maxsize)).__next__


class Shell(Generic[C]):
    """Everything in the pool that waits, reads a clock or calls the manager. Nothing in it refers to the ``Pool``."""

    def __init__(self, manager: ConnectionManager[C], config: PoolConfig) -> None:
        self.config = config
        self.section = _primitives.Section()
        self.state: PoolState[C] = PoolState(config, _next_id, wipes=getattr(manager, "reset", None) is not None)
        self.hooks = ThreadHooks(config, messages.label(config), self.state.counters)
        self.life: Lifecycle[C] = Lifecycle(self)
        self.calls: Calls[C] = Calls(self, manager, config.customizer)
        self.gets: Gets[C] = Gets(self)
        self.watch = Watch(config.name, self.look)
        self.stacks = config.leak_threshold is not None
        self.inbox: deque[Callable[[float], None]] = deque()  # from finalizers, which may run at any moment
        self._outage = 0  # failed attempts since the last success
        self._leaks: set[tuple[int, int]] = set()

    def begin(self, now: float) -> None:
        """A new life begins."""
        self._outage = 0
        self._set_observed(now)

    # -- events

    def event(self, act: Callable[..., T], *args: Any) -> T:
        """Tell the state what happened (``act(now, *args)``), and do what it decides: under the lock, all or nothing."""
        section, me = self.section, here()
        if self.is_inside(me):
            msg = (
                f"{messages.label(self.config)} was used by a signal handler or finalizer that interrupted it: "
                "use it where the program is at rest"
            )
            raise PoolError(msg)
        failure: Exception | None = None
        result: T
        try:
            with section.lock:
                if section.owner is not None:  # the last event was interrupted in the middle
                    self._repair(me)
                section.owner = me
                try:
                    result = act(_primitives.monotonic(), *args)
                except Exception as error:  # noqa: BLE001 - one of ours, such as PoolClosed
                    failure = error
                self._turn()
                section.owner = None
            self.after()
        except BaseException:
            section.leave()
            self.watch.gate.open()  # it does what is left undone here
            raise
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # it refers to this frame
        return result  # pyright: ignore[reportReturnType, reportPossiblyUnboundVariable] - or the failure was raised

    def is_inside(self, me: Any) -> bool:
        """Return whether this thread is in an event: a signal handler or a finalizer has interrupted it."""
        return self.section.owner is me and self.section.lock._is_owned()

    def surely(self, act: Callable[..., T], *args: Any) -> T:
        """As ``event``, again and again while it is interrupted: for what must be done after an interrupt."""
        while True:
            try:
                return self.event(act, *args)
            except KeyboardInterrupt:
                continue

    def after(self) -> None:
        """What must wait for the unlock: the start of threads, and words."""
        if self.calls.workers.wanted:
            self.calls.workers.grow()
        if self.hooks.waiting:
            self.hooks.tell()

    def _turn(self) -> None:
        """Carry out what the state decided: the only caller of ``take_work``."""
        state = self.state
        while state.work:
            for order, subject in state.take_work():
                self._carry_out(order, subject)
        if state.is_open:
            if state.agenda.due < self.watch.at:
                self.watch.by(state.agenda.due)
        else:
            self.life.end_if_nothing_is_left()

    def _repair(self, me: Any) -> None:
        now = _primitives.monotonic()
        self.section.owner = me
        waiting = [waiter for waiter in self.gets.waiting if waiter.answer is None]
        repair(self.state, now, waiting, self.calls.running())
        self.gets.repair()
        self.calls.repair()
        self.life.repair(now)
        self.watch.by(now)

    @staticmethod
    def now() -> float:
        """The time by which the state is kept."""
        return _primitives.monotonic()

    def numbers(self) -> str:
        """The pool's numbers in words."""
        if self.life.forked or self.is_inside(here()):
            return messages.numbers(self.state)
        return _primitives.read(self.section, lambda: messages.numbers(self.state))

    def look(self) -> None:
        """The watch looks at what is due."""
        for call in self.event(self._look):
            self.calls.abandon(call)

    def _look(self, now: float) -> list[Call]:
        state, watch = self.state, self.watch
        watch.at = inf  # so that nothing opens its gate meanwhile that is not new
        while self.inbox:
            self.inbox.popleft()(now)
        abandoned = self.calls.overdue(now)
        if state.is_open and state.agenda.due <= now:
            state.wake(now, [])
        if self.life.stage == "closed":
            watch.stopping = True
        watch.at = min(self.calls.next_deadline(), state.agenda.due if state.is_open else inf)
        return abandoned

    def _carry_out(self, order: Order, subject: Any) -> None:
        calls, config = self.calls, self.config
        match order:
            case Order.CONNECT:
                calls.start(subject, "connect", calls.connect, self._connected, config.create_timeout)
            case Order.TEST:
                calls.start(subject, "is_valid", calls.validate, self._tested, config.validation_timeout)
            case Order.CHECK:
                calls.start(subject, "has_broken", calls.check, self._tested, config.validation_timeout)
            case Order.CLOSE | Order.TERMINATE:
                self._close(subject, terminate=order is Order.TERMINATE)
            case Order.STARTED:
                self.life.end_opening(Outcome("open"))
            case Order.FIND_LEAKS:
                self._find_leaks()
            case Order.DEADLOCK:
                self._refuse_deadlocked(subject)
            case _:  # SWEEP: has_broken is foreign code. All idle ones are validated before their next use anyway.
                pass

    # -- work, under the lock

    def _connected(self, now: float, call: Call, error: BaseException | None, conn: Any) -> None:
        state, approval = self.state, call.key
        assert isinstance(approval, Approval)
        if error is None:
            if self._outage and self.config.error_sink is None:
                self.hooks.note(INFO, "connecting works again, after %d failures", self._outage, phase="connect")
            self._outage = 0
            slot = state.put(approval, conn, now, self._lifetime())
            if self.hooks.listeners:
                self.hooks.emit(self.events().Connected(slot.id, now - approval.since))
            return
        if self.life.stage == "closing":
            state.connect_failed(approval, None, now, transient=True, jitter=0.0)
            return
        if call.abandoned:
            error = TimeoutError(f"connect took longer than create_timeout={self.config.create_timeout} s")
        if self.hooks.listeners:
            self.hooks.emit(self.events().ConnectFailed(error))
        self._outage += 1
        if self._outage == 1 or self.config.error_sink is not None:
            self.hooks.report(error, "connecting failed", phase="connect")
        if self.life.stage == "opening" and not (call.transient and self.config.retry_connection):
            self.life.end_opening(Outcome("failed", error))  # first, so that no further attempt begins for it
        state.connect_failed(approval, error, now, transient=call.transient, jitter=_random())

    def _tested(self, now: float, call: Call, error: BaseException | None, result: Any) -> None:
        slot = call.key
        if slot not in self.state.validating:
            return
        valid, broken = (False, False) if error is not None else result
        if call.ended:
            valid = False
            error = TimeoutError(f"is_valid took longer than validation_timeout={self.config.validation_timeout} s")
        if error is not None:
            self.hooks.report(error, f"the test of connection #{slot.id} failed, so it is closed")
        elif not valid:
            error = ConnectionError("a new connection failed its first validation: is_valid returned False")
        self.state.tested(
            slot, now, valid=valid, broken=broken, timed_out=call.ended, error=error, jitter=_random()
        )  # fmt: skip

    def _reset_done(self, now: float, call: Call, error: BaseException | None, broken: Any) -> None:
        slot = call.key
        if slot not in self.state.resetting:
            return
        if call.ended:
            error = TimeoutError(f"reset took longer than reset_timeout={self.config.reset_timeout} s")
        replaced = isinstance(error, ReplaceConnection)
        if error is not None and not replaced:
            if self.hooks.listeners:
                self.hooks.emit(self.events().ResetFailed(slot.id, error))
            self.hooks.report(error, f"reset of connection #{slot.id} failed, so it is closed")
        self.state.reset_done(
            slot, now, ok=error is None, broken=broken is True, timed_out=call.ended, replaced=replaced
        )  # fmt: skip

    def _close(self, slot: Slot[C], *, terminate: bool) -> None:
        assert slot.mark is not None
        calls = self.calls
        now = _primitives.monotonic()
        if self.hooks.listeners:
            self.hooks.emit(self.events().Closed(slot.id, now - slot.born, slot.mark))
        calls.cut_short(slot)
        calls.start(slot, "close", calls.end if terminate else calls.close, self._closed, self.config.close_timeout)
        if self.life.final:
            calls.end_soon(calls.under_way[slot], now + GRACE)

    def _closed(self, now: float, call: Call, error: BaseException | None, ended_well: Any) -> None:
        slot = call.key
        if call.ended and not self.life.final:
            late = TimeoutError(f"close took longer than close_timeout={self.config.close_timeout} s")
            self.hooks.report(late, f"closing connection #{slot.id} failed")
        if ended_well is not True and not call.abandoned and (self.life.final or call.ended):
            self.calls.abandoned(f"connection #{slot.id}")
        if slot in self.state.closing:
            self.state.gone(slot, now)

    def _find_leaks(self) -> None:
        now = _primitives.monotonic()
        threshold = self.config.leak_threshold or inf
        overdue = [s for s in self.state.slots if s.holder is not None and now - s.stamp > threshold]
        told, self._leaks = self._leaks, {(slot.id, slot.uses) for slot in overdue}
        for slot in overdue:
            if (slot.id, slot.uses) in told:  # once for each borrower
                continue
            held = now - slot.stamp
            if self.hooks.listeners:
                self.hooks.emit(self.events().Leaked(slot.id, held, slot.stack))
            leak = f"connection #{slot.id} is held for {held:.3g} s, longer than leak_threshold={threshold:g}"
            self.hooks.report(ResourceWarning(f"{messages.label(self.config)}: {leak}, taken at:\n{slot.stack}"), leak)

    def _refuse_deadlocked(self, victim: GetWaiter[C]) -> None:
        now = _primitives.monotonic()
        self.state.counters.gets_failed += 1
        victim.refuse(messages.deadlocked(self.state, now - victim.started, THREADS))
        self.gets.forget(victim)
        self.state.give_up(victim, now)

    # -- giving back

    def give_back(self, lease: Any, slot: Slot[C], how: int = 0, error: BaseException | None = None) -> None:
        """End a lease: the verdicts first, then the state; the reset and closing go on in other threads."""
        calls = self.calls
        verdict = calls.verdict(error, slot.conn) if error is not None else Verdict.KEEP
        if verdict is Verdict.CLOSE:
            how |= DISCARD
        if not how & (BROKEN | DISCARD) and calls.is_broken(slot.conn):
            how |= BROKEN
        dirty = not how & (BROKEN | DISCARD) and calls.needs_reset(slot.conn)
        uses = slot.uses
        if self.is_inside(here()):
            self.inbox.append(lambda now: self._give_back(now, lease, slot, uses, how, dirty, False))
            self.watch.gate.open()
            return
        try:
            self.event(self._give_back, lease, slot, uses, how, dirty, verdict is Verdict.RETIRE_ALL)
        except BaseException:  # an interrupt, perhaps when all was done
            lease._slot = None
            self.surely(self._give_back, None, slot, uses, how, dirty, False)
            raise
        self.hooks.raise_interrupt()

    def _give_back(
        self, now: float, lease: Any, slot: Slot[C], uses: int, how: int, dirty: bool, retire_all: bool
    ) -> None:
        if lease is not None:
            if lease._slot is not slot:
                return  # another thread was first
            lease._slot = None
        state = self.state
        if slot.state is not LENT or slot.uses != uses:
            return  # close() has terminated it, or the interrupted first try has returned it
        if retire_all and state.is_open:
            state.evict(None, now)
        if self.hooks.listeners:
            self.hooks.emit(self.events().CheckedIn(slot.id, now - slot.stamp))
        slot.loose = False
        if not state.give_back(slot, now, how):
            return
        if not dirty:
            state.restock(slot, now)
            return
        state.begin_reset(slot, now)
        self.calls.start(
            slot, "reset", self.calls.clean, self._reset_done, self.config.reset_timeout, by=self.gets.helper()
        )  # fmt: skip

    def lost(self, slot: Slot[C], uses: int) -> None:
        """A lease was garbage-collected: in any thread, at any moment, perhaps within an event. So nothing is done here."""
        self.inbox.append(lambda now: self._reclaim(now, slot, uses))
        self.watch.gate.open()

    def _reclaim(self, now: float, slot: Slot[C], uses: int) -> None:
        if slot.state is not LENT or slot.uses != uses:
            return
        if self.hooks.listeners:
            self.hooks.emit(self.events().Leaked(slot.id, now - slot.stamp, slot.stack))
        self.state.reclaim(slot, now)

    def detach(self, now: float, lease: Any) -> None:
        """A connection in use leaves the pool for good."""
        slot, lease._slot = lease._slot, None
        if self.hooks.listeners:
            self.hooks.emit(self.events().CheckedIn(slot.id, now - slot.stamp))
        if slot in self.state.slots:
            self.state.detach(slot, now)
            if self.hooks.listeners:
                self.hooks.emit(self.events().Closed(slot.id, now - slot.born, CloseReason.DETACHED))

    # -- by the owner, under the lock

    def add(self, now: float, conn: C) -> bool:
        """Take a connection in. False: no capacity."""
        self.life.check_open()
        if any(slot.conn is conn for slot in (*self.state.slots, *self.state.closing)):
            msg = f"{messages.label(self.config)}: the connection to add is in the pool already"
            raise ValueError(msg)
        slot = self.state.add(conn, now, self._lifetime())
        if slot is not None and self.hooks.listeners:
            self.hooks.emit(self.events().Connected(slot.id))
        return slot is not None

    def add_interrupted(self, now: float, conn: C) -> None:
        """The caller of ``add`` got a KeyboardInterrupt, and keeps the connection."""
        for slot in [*self.state.slots]:
            if slot.conn is conn and slot.state is IDLE and slot.uses == 0:
                self.state.idle.remove_these({slot})
                slot.state = LENT
                self.state.detach(slot, now)

    def resize(self, now: float, max_size: int | None, min_idle: int | None) -> None:
        """Put another size in force."""
        self.config = self.config.resized(max_size=max_size, min_idle=min_idle)
        if self.state.is_open:
            self.state.resize(self.config, now)
        else:
            self.state.configure(self.config)

    def evict(self, now: float, chosen: set[Slot[C]] | None) -> int:
        """Retire all, or these."""
        self.life.check_open()
        count = self.state.evict(chosen, now)
        self.hooks.note(INFO, "evicted: %d open connections are retired", count)
        return count

    def holders(self, now: float) -> list[Holder]:
        """Return the borrowers, and since when."""
        return [
            Holder(slot.id, slot.holder.get_name(), max(0.0, now - slot.stamp), slot.stack)
            for slot in self.state.slots
            if slot.holder is not None
        ]

    def listen(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Tell one more listener from now on, until the returned function is called."""

        def told(event: Event) -> None:  # its own, since one listener may be given twice
            listener(event)

        def change(now: float, *, more: bool) -> None:
            others = tuple(other for other in self.hooks.listeners if other is not told)
            self.hooks.listeners = (*others, told) if more else others
            self._set_observed(now)

        def end() -> None:
            if not self.life.forked:
                self.event(lambda now: change(now, more=False))

        self.event(lambda now: change(now, more=True))
        return end

    def _set_observed(self, now: float) -> None:
        seen = self.hooks.listeners or self.stacks or self.config.guard or self.calls.on_checkout is not None
        self.state.observe(bool(seen), now)

    @staticmethod
    def events() -> ModuleType:
        """The classes of the events; making them takes 4 ms, which pools without listeners save."""
        from pool_core import _events as events

        return events

    def _lifetime(self) -> float:
        """Draw a connection's own lifetime at its birth, so that they do not all expire together (sqlx #2854)."""
        if self.config.max_lifetime is None:
            return inf
        return self.config.max_lifetime * (1 - self.config.lifetime_jitter * _random())


def _random() -> float:
    """In [0, 1). The module ``random`` would cost 3 ms to import."""
    return int.from_bytes(os.urandom(6), "big") / (1 << 48)
