"""The shell around the state: events in, work out, one turn. Nothing here decides who gets what.

Whatever happens is brought to the state as an event; after each event comes the turn, which carries out what the state
has decided and sees that it will be woken. Beside it stand the calls of the manager (``_calls``), the gets (``_gets``)
and the life of the pool (``_lifecycle``). Nothing refers to the ``Pool`` that users hold, so a dropped pool can be
noticed while its tasks still run.
"""

from __future__ import annotations

import os
import sys
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from . import _messages as messages
from ._call import Call, Clock
from ._calls import SILENT, Calls, connect_error
from ._errors import ReplaceConnection
from ._gets import Failure, Gets, GetWaiter
from ._hooks import DEBUG, INFO, WARNING, Hooks, text
from ._lifecycle import Lifecycle, Outcome
from ._manager import Verdict
from ._slot import BROKEN, DISCARD, Approval, Order, Slot
from ._state import PoolState
from ._statistics import CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from ._config import PoolConfig
    from ._events import Event
    from ._manager import ConnectionManager

C = TypeVar("C")
T = TypeVar("T")

_LEVELS = {
    CloseReason.BROKEN: INFO,
    CloseReason.INVALID: INFO,
    CloseReason.DISCARDED: INFO,
    CloseReason.RESET_FAILED: INFO,
    CloseReason.LEAKED: WARNING,
}
"""The log's level for connections that go before their time; for the others it is DEBUG."""

_next_id = iter(range(1, sys.maxsize)).__next__  # ids are unique in the process, as r2d2's


class Watcher(Protocol):
    """Something of ours that looks at a pool while it is open."""

    def begin(self) -> None:
        """The pool opens, on its loop."""

    def end(self) -> None:
        """The pool is closed."""


class Shell(Generic[C]):
    """Everything in the pool that awaits, reads a clock or calls the manager."""

    def __init__(self, manager: ConnectionManager[C], config: PoolConfig) -> None:
        self.config = config
        self.state: PoolState[C] = PoolState(config, _next_id, wipes=getattr(manager, "reset", None) is not None)
        self.hooks = Hooks(config, messages.label(config), self.state.counters)
        self.life: Lifecycle[C] = Lifecycle(self)
        self.calls: Calls[C] = Calls(self, manager, config.customizer)
        self.gets: Gets[C] = Gets(self)
        self.alarm = Clock(self.life.loop, self._wake, self.life.context)
        self.logs_gets = False  # the log takes each get and return
        self.stacks = False  # where a lease was taken is written down
        self._interrupting = False  # a callback is on its way that raises what a hook raised
        self.outage = 0  # failed connects since the last success
        self.watchers: tuple[Watcher, ...] = ()
        self._leaks: set[tuple[int, int]] = set()  # by connection and use, those that were told at the last look

    def begin(self, now: float) -> None:
        """A new life begins, on the loop that the life cycle knows."""
        life = self.life
        self.outage = 0
        self._interrupting = False
        self.alarm = Clock(life.loop, self._wake, life.context)
        self.logs_gets = self.hooks.logs_gets()
        self.stacks = self.config.leak_threshold is not None or life.loop.get_debug()
        self._set_observed(now)
        for watcher in self.watchers:
            watcher.begin()

    # -- the turn

    def event(self, event: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Tell the state what happened, and do what it decides."""
        try:
            return event(*args, **kwargs)
        finally:
            self.turn()

    def turn(self) -> None:
        """Carry out what the state decided, and see that it will be woken: the end of every event."""
        state, alarm = self.state, self.alarm
        if self.life.loop.is_closed():
            self._carry_out_late()
            self.hooks.tell()
            self.hooks.raise_interrupt()
            return
        while state.work:
            for order, subject in state.take_work():
                self._carry_out(order, subject)
        if state.is_open:
            if state.agenda.due < alarm.at:
                alarm.set(state.agenda.due)
        else:
            self.life.end_if_nothing_is_left()
            if (when := alarm.next()) != alarm.at:
                alarm.set(when)
        if self.hooks.waiting:
            self.hooks.tell()
        if self.hooks.interrupt is not None and not self._interrupting:
            self._interrupting = True
            self.life.loop.call_soon(self._interrupt)

    def last_turn(self) -> None:
        """The turn at the end of a call of the user's, in which nothing is half done: an interrupt may leave it."""
        self.turn()
        self.hooks.raise_interrupt()

    def _interrupt(self) -> None:
        self._interrupting = False
        self.hooks.raise_interrupt()

    def _wake(self, now: float) -> None:
        """The alarm rings."""
        if self.life.forked:  # in the child of a fork, on the loop that it inherited: all is the parent's
            return
        if (logs_gets := self.hooks.logs_gets()) is not self.logs_gets:  # the log's level has changed
            self.logs_gets = logs_gets
            self._set_observed(now)
        for what in self.alarm.pop(now):
            what.overdue(now)
        if (when := self.alarm.next()) < self.alarm.at:
            self.alarm.set(when)
        state = self.state
        if state.agenda.due <= now:
            late = state.queue.overdue(now)
            pictures: dict[str, messages.Picture] = {}  # one for all of a kind: a hundred thousand may end at once
            for waiter in cast("list[GetWaiter[C]]", late):
                phase = messages.phase_of(state, waiter)
                if phase not in pictures:
                    pictures[phase] = self.gets.describe(waiter)
                waiter.end(pictures[phase])
            state.wake(now, late)
        self.turn()

    def _carry_out(self, order: Order, subject: Any) -> None:
        match order:
            case Order.CONNECT:
                self.calls.connect(subject, self.config.create_timeout, self._connected)
            case Order.TEST | Order.CHECK:
                self._test(subject, bare=order is Order.CHECK)
            case Order.SWEEP:
                self.state.sweep([slot for slot in self.state.idle.all() if self.calls.is_broken(slot.conn)])
            case Order.CLOSE | Order.TERMINATE:
                self._close(subject, terminate=order is Order.TERMINATE)
            case Order.STARTED:
                self.life.end_opening(Outcome("open"))
            case Order.FIND_LEAKS:
                self._find_leaks()
            case _:  # DEADLOCK
                self._refuse_deadlocked(subject)

    def _carry_out_late(self) -> None:
        """The loop is closed: nothing can be awaited any more."""
        state = self.state
        state.work.clear()
        for slot in list(state.closing):
            if not self.calls.terminate(slot):
                self.calls.abandoned(f"connection #{slot.id}")
            state.gone(slot, state.tick)
        state.work.clear()

    # -- work

    def _connected(self, approval: Approval[C], call: Call, error: BaseException | None, conn: C) -> None:
        state = self.state
        now = self.now()
        if error is None and not call.ended:
            if self.outage:
                self.hooks.note(INFO, "connecting works again, after %d failures", self.outage, phase="connect")
            self.outage = 0
            slot = state.put(approval, conn, now, self._lifetime())
            took = now - approval.since
            self.hooks.note(
                DEBUG, "connection #%d opened in %.3g s", slot.id, took, connection_id=slot.id, seconds=took
            )
            if self.hooks.listeners:
                self.hooks.emit(self.events().Connected(slot.id, took))
            return
        if error is None:
            self.calls.dispose(conn)
        if self.life.stage == "closing":
            state.connect_failed(approval, None, now, transient=True, jitter=0.0)
            return
        error = connect_error(call, error, self.config.create_timeout)
        if self.hooks.listeners:
            self.hooks.emit(self.events().ConnectFailed(error))
        self.outage += 1
        if (self.outage == 1 or self.config.error_sink is not None) and not call.cut_off:
            self.hooks.report(error, "connecting failed", phase="connect")
        else:
            self.hooks.note(DEBUG, "a connection attempt failed: %s", text(error), phase="connect")
        transient = self.calls.is_transient(error)
        if self.life.stage == "opening" and not (transient and self.config.retry_connection):
            self.life.end_opening(Outcome("failed", error))  # first, so that no further connect is begun for it
        state.connect_failed(approval, error, now, transient=transient, jitter=_random())

    def _test(self, slot: Slot[C], *, bare: bool) -> None:
        broken = self.calls.is_broken(slot.conn)
        if slot not in self.state.validating:
            return  # has_broken called back into the pool, and closed it
        if broken or bare:
            self.state.tested(slot, self.now(), valid=True, broken=broken)
        else:
            self.calls.start(slot, self.calls.validate(slot), "is_valid", self.config.validation_timeout, self._tested)

    def _tested(self, slot: Slot[C], call: Call, error: BaseException | None, result: Any) -> None:
        if slot not in self.state.validating:
            return
        if call.ended and not call.abandoned:
            error = TimeoutError(f"is_valid took longer than validation_timeout={self.config.validation_timeout} s")
        elif error is None and not isinstance(result, bool):
            error = TypeError(
                f"is_valid must return True or False, not {type(result).__name__}: is a 'return True' missing?"
            )
        if error is not None and not call.cut_off:
            self.hooks.report(
                error,
                f"the test of connection #{slot.id} failed, so it is closed",
                connection_id=slot.id,
                phase="validate",
            )
        valid = error is None and result is True
        broken = valid and self.calls.is_broken(slot.conn)
        if slot not in self.state.validating:
            return  # it was asked, and closed the pool
        if error is None and not valid:
            error = ConnectionError("a new connection failed its first validation: is_valid returned False")
        self.state.tested(
            slot,
            self.now(),
            valid=valid,
            broken=broken,
            timed_out=call.ended,
            terminate=call.cut_off,
            error=error,
            jitter=_random(),
        )

    def _reset_done(self, slot: Slot[C], call: Call, error: BaseException | None, _: Any) -> None:
        if slot not in self.state.resetting:
            return
        if call.ended and not call.abandoned:
            error = TimeoutError(f"reset took longer than reset_timeout={self.config.reset_timeout} s")
        replaced = error is not None and self._reset_failed(slot, error)
        broken = error is None and self.calls.is_broken(slot.conn)
        if slot not in self.state.resetting:
            return  # it was asked, and closed the pool
        self.state.reset_done(
            slot,
            self.now(),
            ok=error is None,
            broken=broken,
            timed_out=call.ended or call.cut_off,
            replaced=replaced,
        )

    def _reset_failed(self, slot: Slot[C], error: BaseException) -> bool:
        """Report it. True: the manager asked for another connection, which is no failure."""
        if isinstance(error, ReplaceConnection):
            return True
        if self.hooks.listeners:
            self.hooks.emit(self.events().ResetFailed(slot.id, error))
        if not self.calls.cutting_off:
            self.hooks.report(error, f"reset of connection #{slot.id} failed, so it is closed", connection_id=slot.id)
        return False

    def _close(self, slot: Slot[C], *, terminate: bool) -> None:
        assert slot.mark is not None
        calls = self.calls
        if self.hooks.listeners:
            self.hooks.emit(self.events().Closed(slot.id, self.now() - slot.born, slot.mark))
        self._note_close(slot, slot.mark)
        calls.cut_short(slot)
        if terminate:
            terminated = calls.terminate(slot)
            if self.life.final or calls.cutting_off or (terminated and (calls.on_close is None or slot.mark in SILENT)):
                if not terminated:
                    calls.abandoned(f"connection #{slot.id}")
                self.state.gone(slot, self.now())
                return
        calls.start(slot, calls.close(slot), "close", self.config.close_timeout, self._closed)

    def _note_close(self, slot: Slot[C], reason: CloseReason) -> None:
        age = self.now() - slot.born
        level = _LEVELS.get(reason, DEBUG)
        self.hooks.note(
            level,
            "connection #%d leaves the pool after %.3g s: %s",
            slot.id,
            age,
            reason.value.replace("_", " "),
            connection_id=slot.id,
            reason=reason.value,
            seconds=age,
        )

    def _closed(self, slot: Slot[C], call: Call, error: BaseException | None, _: Any) -> None:
        if call.ended:
            error = TimeoutError(f"close took longer than close_timeout={self.config.close_timeout} s")
        if error is not None:
            if not (self.life.final or call.cut_off):
                self.hooks.report(error, f"closing connection #{slot.id} failed", connection_id=slot.id)
            if not self.calls.terminate(slot) and (call.ended or call.cut_off) and not call.abandoned:
                self.calls.abandoned(f"connection #{slot.id}")
        self.state.gone(slot, self.now())

    def _find_leaks(self) -> None:
        now = self.now()
        threshold = self.config.leak_threshold or inf  # no leak_threshold, no such work
        overdue = [s for s in self.state.slots if s.holder is not None and now - s.stamp > threshold]
        told, self._leaks = self._leaks, {(slot.id, slot.uses) for slot in overdue}
        for slot in overdue:
            if (slot.id, slot.uses) in told:  # once for each lease
                continue
            held = now - slot.stamp
            if self.hooks.listeners:
                self.hooks.emit(self.events().Leaked(slot.id, held, slot.stack))
            leak = f"connection #{slot.id} is held for {held:.3g} s, longer than leak_threshold={threshold:g}"
            where = f"{leak}, taken at:\n{slot.stack}"
            if self.config.error_sink is None:
                self.hooks.note(WARNING, "%s", where, connection_id=slot.id, seconds=held)
            else:
                self.hooks.report(ResourceWarning(f"{messages.label(self.config)}: {where}"), leak)

    def _refuse_deadlocked(self, victim: GetWaiter[C]) -> None:
        now = self.now()
        error = messages.deadlocked(self.state, now - victim.started)
        self.hooks.note(WARNING, "a get was refused with PoolDeadlock: %s", error, phase="queue", seconds=error.waited)
        victim.end(Failure(error, ours=True))
        self.state.give_up(victim, now)

    # -- giving back

    def returned(self, slot: Slot[C], now: float, how: int) -> bool:
        """Check whether the connection is broken, and end its lease in the state. True: it must be reset."""
        if not how & BROKEN and slot in self.state.slots and self.calls.is_broken(slot.conn):
            how |= BROKEN
        return self.state.give_back(slot, now, how)

    def pass_on(self, slot: Slot[C], broken: bool | None = None) -> None:
        """End a lease that ended well, in a plain pool: mostly, somebody waits for its connection. None: not asked yet."""
        state = self.state
        now = self.life.loop.time()
        if broken is None:
            try:
                broken = True if self.calls.has_broken(slot.conn) else False  # noqa: SIM210 - bool() costs a call
            except BaseException as error:  # noqa: BLE001 - raising means broken
                self.calls.broken_by(error)
                broken = True
        if broken or slot.mark is not None or not state.plain:  # has_broken may have called back into the pool
            to_wipe = state.give_back(slot, now, BROKEN if broken else 0)
        else:
            to_wipe = state.pass_on(slot, now)
        if to_wipe and self._wipe(slot, now):
            state.restock(slot, now)
        if state.work or state.agenda.due < self.alarm.at or not state.plain or self.hooks._words:
            self.last_turn()

    def give_back(self, slot: Slot[C], how: int = 0) -> None:
        """End a lease: bookkeeping now; resetting and closing run in tasks of the pool."""
        state = self.state
        if how and self.life.loop.is_closed():  # a block that was thrown away after its loop
            self.reclaim(slot)
            return
        if slot not in state.slots:
            return  # close() has terminated it
        now = self.now()
        if self.hooks.listeners:
            self.hooks.emit(self.events().CheckedIn(slot.id, now - slot.stamp))
        self._note_return(slot, now)
        if self.returned(slot, now, how) and self._wipe(slot, now):
            state.restock(slot, now)
        self.last_turn()

    def _note_return(self, slot: Slot[C], now: float) -> None:
        if self.logs_gets:
            held = now - slot.stamp
            self.hooks.note(
                DEBUG, "connection #%d returned after %.3g s", slot.id, held, connection_id=slot.id, seconds=held
            )

    def give_back_raised(self, slot: Slot[C], how: int, error: BaseException | None) -> None:
        """End a lease in which something was raised: the manager may judge what it means."""
        verdict = self.calls.verdict(error, slot.conn) if slot in self.state.slots else Verdict.KEEP
        # The error of a connection that is already retired does not concern those that replace it.
        if verdict is Verdict.RETIRE_ALL and self.state.is_open and slot.mark is not CloseReason.EVICTED:
            self.hooks.note(INFO, "all connections are retired: judge answered RETIRE_ALL to %s", type(error).__name__)
            self.event(self.state.evict, None, self.now())
        elif verdict is Verdict.CLOSE:
            how |= DISCARD
        self.give_back(slot, how)

    def wipe(self, slot: Slot[C]) -> bool:
        """Reset the connection. True: done, and the caller makes it idle; otherwise the pool takes care of it."""
        state = self.state
        now = self.now()
        clean = self._wipe(slot, now)
        if self.hooks.waiting:
            self.turn()
        # Looked at after what was asked, and after those who were told: both may have called back into the pool.
        if clean and (slot.mark is not None or state.slow or self.hooks.interrupt is not None):
            clean = False
            state.restock(slot, now)
        if not clean:
            self.last_turn()
        return clean

    def _wipe(self, slot: Slot[C], now: float) -> bool:
        """True: there is nothing to reset, or it is done. Otherwise the connection becomes idle later, or is gone."""
        calls, state = self.calls, self.state
        assert calls.reset is not None
        if self.life.loop.is_closed():  # a block that ended after its loop: nothing can be awaited any more
            state.reclaim(slot, now)
            return False
        if calls.is_clean(slot.conn):
            return True
        failure = wiping = None
        try:
            wiping = calls.reset(slot.conn)
        except BaseException as error:  # noqa: BLE001 - whatever an adapter raises
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                self.hooks.interrupt = error
            failure = error
        if slot not in state.slots:  # it was asked, and closed the pool
            if isinstance(wiping, CoroutineType):
                wiping.close()
            return False
        if failure is not None:
            replaced = self._reset_failed(slot, failure)
            state.reset_failed(slot, now, replaced=replaced)
            return False
        if wiping is None:
            return True
        state.begin_reset(slot, now)
        plain = calls.on_reset is None and isinstance(wiping, CoroutineType)
        coro = cast("CoroutineType[Any, Any, None]", wiping) if plain else calls.finish_reset(wiping, slot.conn)
        calls.start(slot, coro, "reset", self.config.reset_timeout, self._reset_done)
        return False

    def reclaim(self, slot: Slot[C], stack: str | None = None) -> None:
        """A lease was garbage-collected, or came back after its loop: terminate what it held."""
        state = self.state
        if slot in state.slots:
            if self.hooks.listeners:
                self.hooks.emit(self.events().Leaked(slot.id, self.now() - slot.stamp, stack))
            state.reclaim(slot, self.now())
        self.turn()

    def detach(self, slot: Slot[C]) -> None:
        """Take a connection in use out of the pool for good."""
        now = self.now()
        if self.hooks.listeners:
            self.hooks.emit(self.events().CheckedIn(slot.id, now - slot.stamp))
        self._note_return(slot, now)
        if slot in self.state.slots:
            self._note_close(slot, CloseReason.DETACHED)
            self.state.detach(slot, now)
            if self.hooks.listeners:
                self.hooks.emit(self.events().Closed(slot.id, now - slot.born, CloseReason.DETACHED))
        self.last_turn()

    # -- by the owner

    def add(self, conn: C) -> bool:
        """Take a connection in. False: no room."""
        slot = self.event(self.state.add, conn, self.now(), self._lifetime())
        if slot is not None:
            self.hooks.note(DEBUG, "connection #%d was added", slot.id, connection_id=slot.id)
            if self.hooks.listeners:
                self.hooks.emit(self.events().Connected(slot.id))
        self.last_turn()
        return slot is not None

    def resize(self, config: PoolConfig) -> None:
        """Put another size in force."""
        sizes = (self.config.max_size, config.max_size, self.config.min_idle, config.min_idle)
        self.hooks.note(INFO, "resized: max_size %d -> %d, min_idle %d -> %d", *sizes)
        self.config = config
        if self.state.is_open:
            self.event(self.state.resize, config, self.now())
        else:
            self.state.configure(config)

    def evict(self, predicate: Callable[[C], bool] | None) -> int:
        """Retire the generation, or those that the predicate picks."""
        slots = self.state.slots
        # Judged before anything changes: a predicate that raises leaves the pool as it was.
        chosen = None if predicate is None else {slot for slot in list(slots) if predicate(slot.conn)}
        self.hooks.note(INFO, "evicted: %d open connections are retired", len(slots if chosen is None else chosen))
        return self.event(self.state.evict, chosen, self.now())

    def listen(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Tell one more listener from now on, until what is returned is called."""

        def told(event: Event) -> None:  # its own, since one listener may be given twice
            listener(event)

        def end() -> None:
            self.hooks.listeners = tuple(other for other in self.hooks.listeners if other is not told)
            self._set_observed(self.state.tick)

        self.hooks.listeners = (*self.hooks.listeners, told)
        self._set_observed(self.state.tick)
        return end

    def _set_observed(self, now: float) -> None:
        if not self.life.forked:  # then the warm path stays shut
            seen = (
                self.hooks.listeners
                or self.stacks
                or self.logs_gets
                or self.config.guard
                or self.calls.on_checkout is not None
            )
            self.state.observe(bool(seen), now)

    @staticmethod
    def events() -> ModuleType:
        """The classes of the events; making them takes 4 ms, which pools that nobody listens to save."""
        from . import _events as events

        return events

    def now(self) -> float:
        """The loop's time."""
        return self.life.loop.time()

    def _lifetime(self) -> float:
        """Draw a connection's own lifetime at its birth, so that they do not all expire together (sqlx #2854)."""
        if self.config.max_lifetime is None:
            return inf
        return self.config.max_lifetime * (1 - self.config.lifetime_jitter * _random())


def _random() -> float:
    """In [0, 1). The module ``random`` would cost 3 ms to import."""
    return int.from_bytes(os.urandom(6), "big") / (1 << 48)
