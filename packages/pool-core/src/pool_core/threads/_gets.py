"""The gets that the warm path leaves: a connection at once, or a place in the queue, and what they raise.

A connection is handed off under the lock: the lease of the waiter owns it, and the statistics know it, before the waiter
wakes up. So a waiter that leaves (its time is over, or Ctrl-C) and a hand-off cannot miss each other.
"""

from __future__ import annotations

import sys
import warnings
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pool_core import _messages as messages
from pool_core._deadlock import count_blocked_holders
from pool_core._errors import ConnectError, PoolWarning
from pool_core._hooks import text
from pool_core._messages import THREADS, Picture
from pool_core._slot import DISCARD, LENT, RAISED, UNUSED, Slot, Waiter

from . import _primitives
from ._calls import outsider
from ._lease import DedicatedConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._lease import PooledConnection
    from ._shell import Shell
    from ._workers import Call

C = TypeVar("C")

SERVED = "served"
"""The answer to a get whose lease has its connection now."""
NONE_IDLE = "none idle"
"""The answer to a try_get that gets nothing."""


class Refused:
    """The answer to a get that gets no connection. The exceptions are made in the waiter's thread."""

    __slots__ = ("error", "ours")

    def __init__(self, error: BaseException | None, *, ours: bool = False) -> None:
        self.error = error
        self.ours = ours


class GetWaiter(Waiter[C]):
    """A waiting get."""

    __slots__ = ("answer", "busy", "call", "gate", "gets", "lease", "limit")

    def __init__(self, gets: Gets[C], lease: PooledConnection[C], task: Any, limit: float, *, patient: bool) -> None:
        super().__init__(task, patient=patient)
        self.gets = gets
        self.lease = lease
        self.limit = limit
        self.gate = _primitives.Gate()
        self.answer: str | Refused | None = None
        self.busy = False  # it runs a reset, since it would wait for it anyway
        self.call: Call | None = None  # that one

    def offer(self, slot: Slot[C] | None) -> bool:
        # Under the lock, and it leaves the queue only under the lock: so it is still there. No call before the answer stands.
        if slot is None:
            self.answer = NONE_IDLE
        else:
            counters = self.gets.counters
            slot.uses += 1
            slot.loose = True
            if not self.idle_only:
                counters.waiting -= 1
                if not self.direct:
                    counters.gets_waited += 1
                    counters.wait_time += slot.stamp - self.started
            self.lease._slot = slot
            self.answer = SERVED
        self.gate.open()  # first: those that are forgotten are not woken up by a repair
        self.gets.forget(self)
        return True

    def gone(self) -> bool:
        return self.answer is not None

    def fail(self, error: BaseException | None) -> None:
        if not self.idle_only:
            self.gets.counters.gets_failed += 1
        self.refuse(error, ours=False)

    def refuse(self, error: BaseException | None, *, ours: bool = True) -> None:
        """Answer with an error."""
        if not self.idle_only:
            self.gets.counters.waiting -= 1
        self.answer = Refused(error, ours=ours)
        self.gate.open()  # first: those that are forgotten are not woken up by a repair
        self.gets.forget(self)


class Gets(Generic[C]):
    """The ways to a connection of one pool, except the warm one."""

    def __init__(self, shell: Shell[C]) -> None:
        self._shell = shell
        self._state = shell.state
        self.counters = shell.state.counters
        self.waiting: dict[GetWaiter[C], None] = {}  # those without an answer
        self._helping: dict[GetWaiter[C], Call] = {}  # resets that their waiter has not begun: who pops one runs it
        self._helps = shell.calls.may_terminate is not None
        self.prepares = shell.calls.on_checkout is not None
        self._limit = inf if shell.config.connection_timeout is None else shell.config.connection_timeout
        self._blocked = 0
        self._next_count = -inf
        self._warned = False

    # -- getting

    def acquire(self, lease: PooledConnection[C], timeout: float | None, me: Any) -> None:
        """Have the lease own a connection, by the long way round."""
        shell, state = self._shell, self._state
        shell.life.check_fork()
        self.warn_of_loop()
        limit = self._limit if timeout is None else timeout
        waiter: GetWaiter[C] = GetWaiter(self, lease, me, limit, patient=timeout is None)
        began = _primitives.monotonic()
        try:
            while (seen := shell.event(self._begin, waiter)) is None:
                if (slot := lease._slot) is None:
                    self._wait(waiter, began)
                    break
                if not shell.calls.is_broken(slot.conn):
                    break
                shell.event(self._found_broken, lease, slot)
            else:
                raise messages.timed_out(shell.config, seen, 0.0, limit)
        except BaseException as error:
            if isinstance(error, Exception):
                shell.hooks.raise_interrupt()
            else:  # an interrupt, perhaps in the moment of the hand-off
                shell.surely(self._interrupted, waiter, me)
            raise
        if state.observed:
            self._check_out(lease, began, timeout)
        self._let_interrupt(lease)

    def try_acquire(self, lease: PooledConnection[C], me: Any) -> bool:
        """As ``acquire``, with an idle connection or none: it waits only for a validation."""
        shell = self._shell
        shell.life.check_fork()
        waiter: GetWaiter[C] = GetWaiter(self, lease, me, inf, patient=False)
        waiter.idle_only = True
        began = _primitives.monotonic()
        try:
            while shell.event(self._try, waiter):
                slot = lease._slot
                if slot is None:
                    self._wait(waiter, began)
                    break
                if not shell.calls.is_broken(slot.conn):
                    break
                shell.event(self._found_broken, lease, slot)
        except BaseException as error:
            if not isinstance(error, Exception):
                shell.surely(self._interrupted, waiter, me)
            raise
        if lease._slot is None:
            shell.hooks.raise_interrupt()
            return False
        if self._state.observed:
            self._check_out(lease, began, 0)
        self._let_interrupt(lease)
        return True

    def _begin(self, now: float, waiter: GetWaiter[C]) -> Picture | None:
        """Take an idle connection that needs no validation, or queue. A picture: there was no time to wait."""
        state = self._state
        if not state.is_open:
            self.counters.gets_failed += 1
            raise self._shell.life.closed_error()
        if self._take(now, waiter):
            return None
        if waiter.limit == 0:
            self._count_timeout(waiter)
            return self._describe(now, None)
        waiter.started = now
        self.waiting[waiter] = None
        self.counters.waiting += 1
        if not state.enqueue(waiter, now):
            self.forget(waiter)
            self.counters.waiting -= 1
            self.counters.gets_failed += 1
            raise messages.overloaded(state)
        return None

    def _try(self, now: float, waiter: GetWaiter[C]) -> bool:
        """As ``_begin`` for a try_get. False: there is nothing to hope for."""
        state = self._state
        if not state.is_open:
            raise self._shell.life.closed_error()
        if state.queue.live > state.queue.tries:
            return False
        if self._take(now, waiter):
            return True
        if not state.idle.stale:
            return False
        waiter.started = now
        self.waiting[waiter] = None
        state.enqueue(waiter, now)
        return True

    def _take(self, now: float, waiter: GetWaiter[C]) -> bool:
        state = self._state
        if not state.fresh or state.queue.live or (slot := state.candidate()) is None:
            return False
        # All at once, without a call in between, so that no interrupt can tear it.
        slot.uses += 1
        slot.loose = True
        slot.stamp = now
        slot.holder = waiter.task
        slot.state = LENT
        waiter.lease._slot = slot
        state.lend(slot, waiter.task, now)
        return True

    def _found_broken(self, now: float, lease: PooledConnection[C], slot: Slot[C]) -> None:
        if slot.state is LENT and lease._slot is slot:
            slot.uses -= 1
            lease._slot = None
            self._state.found_broken(slot, now)

    def found_broken(self, lease: PooledConnection[C], slot: Slot[C], error: BaseException | None) -> None:
        """The warm path has taken it, and it is broken."""
        if error is not None:
            self._shell.calls.broken_by(error)
        self._shell.event(self._found_broken, lease, slot)
        self._shell.hooks.raise_interrupt()

    def _wait(self, waiter: GetWaiter[C], began: float) -> None:
        """Wait for the answer, and raise what it says."""
        shell = self._shell
        while waiter.answer is None:
            left = waiter.limit - (_primitives.monotonic() - waiter.started)
            if not waiter.gate.wait(left):
                seen = shell.event(self._give_up, waiter)
                if seen is not None:
                    raise messages.timed_out(
                        shell.config, seen, _primitives.monotonic() - began, waiter.limit
                    )  # fmt: skip
            elif self._helping.pop(waiter, None) is not None:
                self._run(waiter)
        if isinstance(waiter.answer, Refused):
            self._refuse(waiter.answer)

    def _run(self, waiter: GetWaiter[C]) -> None:
        """Run the reset that this waiter was given."""
        call = waiter.call
        assert call is not None
        outcome = call.run()
        self._shell.calls.ran(call, outcome)
        waiter.call = None
        waiter.busy = False
        if isinstance(outcome[0], (KeyboardInterrupt, SystemExit)):  # this thread's, not the connection's
            try:
                raise outcome[0]
            finally:
                del outcome  # it refers to this frame

    def helper(self) -> Callable[[Call], None] | None:
        """Return what gives a reset to the first waiter that runs none; None: to a worker.

        That saves two switches of threads. Only with ``terminate``: it alone can end the reset when its time is over.
        """
        if self._helps and self._state.queue.live:
            for waiter in self.waiting:
                if not (waiter.busy or waiter.idle_only) and waiter.answer is None:
                    return lambda call: self._have_run(waiter, call)
        return None

    def _have_run(self, waiter: GetWaiter[C], call: Call) -> None:
        waiter.busy = True
        waiter.call = call
        self._helping[waiter] = call
        call.given = True
        # The waiter's own timeout holds as well.
        call.deadline = min(call.deadline, waiter.started + waiter.limit)
        waiter.gate.open()

    def forget(self, waiter: GetWaiter[C]) -> None:
        """It has its answer, or has gone; a reset that it has not begun goes to a worker."""
        self.waiting.pop(waiter, None)
        if waiter.busy and self._helping.pop(waiter, None) is not None:
            self._pass_call(waiter)

    def _pass_call(self, waiter: GetWaiter[C]) -> None:
        """Have a worker run the reset that this waiter was given."""
        call, waiter.call, waiter.busy = waiter.call, None, False
        if call is not None and not call.over:
            timeout = self._shell.config.reset_timeout
            call.deadline = inf if timeout is None else _primitives.monotonic() + timeout
            self._shell.calls.workers.give(call)
            self._shell.watch.by(call.deadline)

    def repair(self) -> None:
        """Wake up those whose answer stands, but who were not told."""
        for waiter in [waiter for waiter in self.waiting if waiter.answer is not None]:
            waiter.gate.open()
            self.forget(waiter)

    def _give_up(self, now: float, waiter: GetWaiter[C]) -> Picture | None:
        """Its time is over. None: it was answered in this moment."""
        if waiter.answer is not None:
            return None
        seen = self._describe(now, waiter)
        self._count_timeout(waiter)
        self.counters.waiting -= 1
        waiter.answer = NONE_IDLE
        self.forget(waiter)
        self._state.give_up(waiter, now)
        return seen

    def _interrupted(self, now: float, waiter: GetWaiter[C], me: Any) -> None:
        """The get ends with KeyboardInterrupt, or another exception that is no error: it gets nothing."""
        lease, counters = waiter.lease, self.counters
        slot, lease._slot = lease._slot, None
        if waiter.call is not None:
            self._helping.pop(waiter, None)
            self._pass_call(waiter)  # also if it was interrupted in the middle: the next one resets anew
        if waiter.answer is None and waiter in self.waiting:
            self.forget(waiter)
            waiter.answer = NONE_IDLE
            if not waiter.idle_only:
                counters.waiting -= 1
                counters.gets_cancelled += 1
            self._state.give_up(waiter, now)
        elif slot is not None and slot.state is LENT and slot.holder is me:
            slot.uses -= 1
            if not waiter.idle_only:
                counters.gets_cancelled += 1
                if waiter.answer is SERVED and not waiter.direct:
                    counters.gets_waited -= 1
                    counters.wait_time -= slot.stamp - waiter.started
            self._state.give_back(slot, now, UNUSED)

    def return_unused(self, lease: PooledConnection[C], me: Any) -> None:
        """The warm path was interrupted after it had taken a connection."""
        shell = self._shell
        shell.surely(self._interrupted, GetWaiter(self, lease, me, 0.0, patient=True), me)

    # -- what a borrower gets, or not

    def _check_out(self, lease: PooledConnection[C], began: float, timeout: float | None) -> None:
        """Report that a borrower has a connection, and run ``on_checkout``."""
        shell = self._shell
        slot = lease._slot
        assert slot is not None
        if shell.stacks:
            slot.stack = messages.stack()
        if shell.hooks.listeners:
            shell.hooks.emit(shell.events().CheckedOut(slot.id, max(0.0, slot.stamp - began)))
            shell.after()
            if slot.state is not LENT:  # a listener has closed the pool
                raise shell.life.closed_error()
        self._let_interrupt(lease)
        if self.prepares:
            self._prepare(lease, slot, began, timeout)

    def _prepare(self, lease: PooledConnection[C], slot: Slot[C], began: float, timeout: float | None) -> None:
        """Run ``on_checkout`` in a worker, within what is left of the get's time."""
        shell = self._shell
        if timeout == 0:  # no time to wait, but the hook needs some
            began, limit = _primitives.monotonic(), shell.config.validation_timeout or inf
        else:
            limit = self._limit if timeout is None else timeout
        gate = _primitives.Gate()
        outcome: list[BaseException | None] = []

        def start(now: float) -> Call:
            left = None if limit == inf else limit - (now - began)
            return shell.calls.start(slot, "on_checkout", shell.calls.prepare, done, left)

        def done(now: float, call: Call, error: BaseException | None, _: object) -> None:
            outcome.append(error)
            gate.open()

        try:
            call = shell.event(start)
            in_time = gate.wait(limit - (_primitives.monotonic() - began)) and not call.ended
        except BaseException:
            shell.surely(shell._give_back, lease, slot, slot.uses, RAISED | DISCARD, False, False)
            raise
        if in_time and outcome[0] is None:
            return
        shell.give_back(lease, slot, RAISED | DISCARD)
        if in_time and outcome[0] is not None:
            raise outcome[0]
        if not self._state.is_open:
            raise shell.life.closed_error()
        seen = shell.event(self._describe_check_out)
        raise messages.timed_out(shell.config, seen, _primitives.monotonic() - began, limit)

    def _describe_check_out(self, now: float) -> Picture:
        state = self._state
        return Picture("validate", [messages.numbers(state)], state.snapshot(), state.last_error)

    def _let_interrupt(self, lease: PooledConnection[C]) -> None:
        """Raise what a hook has raised, KeyboardInterrupt or SystemExit; the borrower does not get the connection."""
        shell = self._shell
        if shell.hooks.interrupt is not None:
            slot = lease._slot
            if slot is not None:
                shell.event(shell._give_back, lease, slot, slot.uses, UNUSED, False, False)
            shell.hooks.raise_interrupt()

    def _describe(self, now: float, waiter: GetWaiter[C] | None) -> Picture:
        state = self._state
        if now >= self._next_count:
            self._next_count = now + 1e-6 * len(state.queue.waiters)  # a count goes through all waiters
            self._blocked = count_blocked_holders(state.slots, state.queue.waiters)
        return messages.describe(state, messages.phase_of(state, waiter), now, self._blocked, THREADS)

    def _count_timeout(self, waiter: GetWaiter[C]) -> None:
        self.counters.gets_timed_out += 1
        if self._shell.hooks.listeners:
            self._shell.hooks.emit(self._shell.events().TimedOut(waiter.limit))

    def describe_opening(self, now: float) -> Picture:
        """Describe the pool for an ``open()`` whose time is over."""
        return self._describe(now, None)

    def _refuse(self, answer: Refused) -> None:
        shell, error = self._shell, answer.error
        if error is None:
            raise shell.life.closed_error()
        if answer.ours:
            raise error
        config = shell.config
        msg = f"{messages.label(config)}: connecting failed: {text(error)}; {shell.numbers()}"
        raise ConnectError(msg) from error

    # -- beside the pool

    def connect_dedicated(self) -> DedicatedConnection[C]:
        """Open a connection that is the caller's own. The driver's error comes unchanged."""
        shell, life = self._shell, self._shell.life
        limit = shell.config.create_timeout
        gate = _primitives.Gate()
        outcome: list[tuple[BaseException | None, Any]] = []
        began = _primitives.monotonic()

        def start(now: float) -> Call:
            life.check_open()
            return shell.calls.start(gate, "connect", shell.calls.connect, done, limit)

        def done(now: float, call: Call, error: BaseException | None, conn: Any) -> None:
            outcome.append((error, conn))
            gate.open()

        try:
            call = shell.event(start)
            gate.wait(inf)
        except BaseException:
            shell.surely(self._drop_dedicated, gate, outcome)
            raise
        error, conn = outcome[0]
        if error is None:
            return DedicatedConnection(shell, conn)
        if not call.abandoned:
            raise error
        if not self._state.is_open:
            raise life.closed_error()
        seen = shell.event(self._describe_check_out)
        seen.phase = "connect"
        raise messages.timed_out(shell.config, seen, _primitives.monotonic() - began, limit or 0.0)

    def _drop_dedicated(self, now: float, key: Any, outcome: list[tuple[BaseException | None, Any]]) -> None:
        """Its caller was interrupted."""
        call = self._shell.calls.under_way.get(key)
        if call is not None:
            self._shell.calls.end_soon(call, now)
        elif outcome and outcome[0][0] is None:
            self._shell.calls.aside(outsider(outcome[0][1]))

    def close_dedicated(self, conn: C) -> None:
        """Close such a connection, in a worker and within ``close_timeout``."""
        shell = self._shell
        slot = outsider(conn)
        if not shell.life.is_alive:  # the workers have ended
            shell.calls.close_outside(conn)
            return
        gate = _primitives.Gate()

        def done(now: float, call: Call, error: BaseException | None, ended_well: Any) -> None:
            if not call.abandoned and ended_well is not True:
                shell.calls.abandoned("a dedicated connection")
            gate.open()

        shell.event(lambda _: shell.calls.start(slot, "close", shell.calls.close, done, shell.config.close_timeout))
        gate.wait(inf)

    def warn_of_loop(self) -> None:
        """Warn once of a use in a thread whose event loop is running: a get that waits blocks the loop."""
        events = sys.modules.get("asyncio.events")
        if events is None or self._warned or events._get_running_loop() is None:
            return
        self._warned = True
        warnings.warn(
            f"{messages.label(self._shell.config)} is a pool for threads and is used inside a running event loop: a get that "
            "waits blocks the loop. Use pool_core.Pool there, or call from asyncio.to_thread",
            PoolWarning,
            stacklevel=4,
        )
