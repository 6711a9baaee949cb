"""The gets: a connection at once, or a place in the queue, and what they raise.

Between taking a connection and owning it there is no await but the waiter's own, whose ``except`` passes the connection
on.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, InvalidStateError, current_task
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from . import _messages as messages
from ._calls import connect_error
from ._deadlock import count_blocked_holders
from ._errors import ConnectError, PoolClosed, PoolDeadlock, PoolError, PoolTimeout
from ._hooks import DEBUG, text
from ._slot import DISCARD, RAISED, UNUSED, Slot, Waiter

if TYPE_CHECKING:
    from ._call import Call
    from ._errors import Phase
    from ._messages import Picture
    from ._shell import Shell

C = TypeVar("C")


class GetWaiter(Waiter[C]):
    """A waiting get: one bare future, by which the connection is handed over directly."""

    __slots__ = ("future", "limit")

    def __init__(
        self,
        future: asyncio.Future[Any],
        task: Any,
        started: float,
        limit: float,
        patient: bool = True,
        idle_only: bool = False,
    ) -> None:
        # All in one: a busy pool makes many of them.
        self.task = task
        self.deadline = started + limit
        self.queued = False
        self.approval = None
        self.test = None
        self.direct = False
        self.idle_only = idle_only
        self.patient = patient
        self.future = future
        self.started = started
        self.limit = limit

    def offer(self, slot: Slot[C] | None) -> bool:
        try:
            self.future.set_result(slot)
        except (InvalidStateError, RuntimeError):  # cancelled: that shows before its task runs; or its loop is closed
            return False
        return True

    def gone(self) -> bool:
        return self.future.done()

    def fail(self, error: BaseException | None) -> None:
        self.end(Failure(error))

    def end(self, answer: Failure | Picture) -> None:
        """Answer with something else than a connection, unless something else came first."""
        if not self.future.done():
            self.future.set_result(answer)


class Failure:
    """The answer to a get that will get no connection. Exceptions are made by the get itself, fresh for each."""

    __slots__ = ("error", "ours")

    def __init__(self, error: BaseException | None, ours: bool = False) -> None:
        self.error = error
        self.ours = ours


class Gets(Generic[C]):
    """The ways to a connection of one pool, except the warm one."""

    def __init__(self, shell: Shell[C]) -> None:
        self._shell = shell
        self._state = shell.state
        self._life = shell.life
        self._counters = shell.state.counters
        self.prepares = (
            shell.calls.on_checkout is not None
        )  # each get runs a hook before its borrower has the connection
        self._limit = inf if shell.config.connection_timeout is None else shell.config.connection_timeout
        self._blocked = 0  # holders that waited themselves when that was last counted
        self._next_count = -inf

    async def acquire(self, timeout: float | None) -> Slot[C]:
        """Acquire a connection when the fast path cannot: queue, connect or validate."""
        began = self._shell.now() if self.prepares and self._state.is_open else 0.0
        got = self.take_or_queue(timeout)
        if not isinstance(got, Slot):
            try:
                answer = await got.future
            except BaseException:
                self.cancelled(got)
                raise
            got = self.served(got, answer)
        if self.prepares:
            await self._check_out(got, began, timeout)
        return got

    def take_or_queue(self, timeout: float | None) -> Slot[C] | GetWaiter[C]:
        """Begin a get that the warm path leaves: a connection at once, or a waiter that stands in the queue."""
        shell, state, life = self._shell, self._state, self._life
        loop = life.loop
        if not state.is_open or get_ident() != life.thread or (task := current_task(loop)) is None:
            task = self._check_get()
        now = loop.time()
        if state.fresh and not state.queue.live:  # with FIFO there may be both
            slot = self._take(task, now)
            if slot is not None:
                slot.uses += 1
                if state.observed:
                    self._observe(slot, 0.0)
                return slot
        limit = self._limit if timeout is None else timeout
        if limit == 0:
            raise self._timed_out(self.describe(None), 0.0, 0.0)
        waiter: GetWaiter[C] = GetWaiter(Future(loop=loop), task, now, limit, timeout is None)
        accepted = state.enqueue(waiter, now)
        if state.work or state.agenda.due < shell.alarm.at or not state.plain:
            shell.turn()  # even if it was not accepted: it may have been time to do something for others
            if shell.hooks.interrupt is not None:
                state.give_up(waiter, now)
                shell.last_turn()
        if not accepted:
            self._counters.gets_failed += 1
            self._counters.gets_overloaded += 1
            raise messages.overloaded(state)
        self._counters.waiting += 1
        return waiter

    def cancelled(self, waiter: GetWaiter[C]) -> None:
        """A get was cancelled while it waited, perhaps in the tick of the hand-off."""
        if not waiter.future.get_loop().is_closed():  # what a dead loop leaves behind bury() counts
            self._counters.waiting -= 1
            self._counters.gets_cancelled += 1
            self._left(waiter)

    def served(self, waiter: GetWaiter[C], answer: Slot[C] | Failure | Picture) -> Slot[C]:
        """End the waiting of a get that was answered: its connection, or what it raises."""
        counters = self._counters
        counters.waiting -= 1
        if type(answer) is Slot:
            if answer.holder is not None or answer in self._state.slots:
                waited = answer.stamp - waiter.started
                answer.uses += 1  # first: another thread that looks in between must not see more waited than served
                if not waiter.direct:
                    counters.gets_waited += 1
                    counters.wait_time += waited
                    if answer.uses == 1:
                        counters.gets_connected += 1
                else:
                    counters.gets_validated += 1
                if self._state.observed:
                    self._observe(answer, waited)
                return answer
            answer = Failure(None)  # close() terminated it in the tick of the hand-off
        if isinstance(answer, messages.Picture):
            raise self._timed_out(answer, self._shell.now() - waiter.started, waiter.limit)
        counters.gets_failed += 1
        failure = cast("Failure", answer)
        if isinstance(failure.error, PoolDeadlock):
            counters.gets_deadlocked += 1
        raise self._refusal(failure)

    def found_broken(self, slot: Slot[C], error: BaseException | None = None) -> None:
        """Record that the connection which the fast path took from the idle ones is broken."""
        shell = self._shell
        if error is not None:
            shell.calls.broken_by(error)
        shell.event(self._state.found_broken, slot, shell.now())
        self._let_interrupt(None)

    async def try_acquire(self) -> Slot[C] | None:
        """Acquire an idle connection, validated if needed, or return None: never queues for a return, never connects."""
        shell, state = self._shell, self._state
        self._life.check_open()
        loop = self._life.loop
        now = loop.time()
        task = current_task(loop)
        # With FIFO somebody may wait beside a fresh one.
        slot = self._take(task, now) if state.queue.live == state.queue.tries else None
        # Behind other try_gets there is nothing to overtake: each has a test of its own.
        if slot is None and state.idle.stale and state.queue.live == state.queue.tries:
            waiter: GetWaiter[C] = GetWaiter(loop.create_future(), task, now, inf, patient=False, idle_only=True)
            shell.event(state.enqueue, waiter, now)
            if shell.hooks.interrupt is not None:
                self._left(waiter)
                shell.last_turn()
            try:
                answer = await waiter.future
            except BaseException:
                self._left(waiter)
                raise
            if isinstance(answer, Slot) and answer not in state.slots:
                answer = Failure(None)
            if isinstance(answer, Failure):
                raise self._refusal(answer)
            slot = cast("Slot[C] | None", answer)
        if slot is not None:
            slot.uses += 1
            if state.observed:
                self._observe(slot, slot.stamp - now)
            if self.prepares:
                await self._check_out(slot, now, 0)
        return slot

    def _take(self, task: Any, now: float) -> Slot[C] | None:
        shell, state = self._shell, self._state
        while (slot := state.candidate()) is not None:
            if shell.calls.is_broken(slot.conn):
                state.found_broken(slot, now)
            elif state.lend(slot, task, now):
                break
        shell.turn()
        self._let_interrupt(slot)
        if slot is None:
            self._life.check_open()  # what was asked may have closed the pool
        return slot

    def _check_get(self) -> asyncio.Task[Any] | None:
        """Say why a get cannot be, or that it is right all the same: some loops run callbacks that await by hand."""
        try:
            self._life.check_open()
        except PoolClosed:
            self._counters.gets_failed += 1
            raise
        return current_task(self._life.loop)

    def _observe(self, slot: Slot[C], waited: float) -> None:
        """Report to listeners, the log and the stacks that a connection was acquired."""
        shell = self._shell
        if shell.stacks:
            slot.stack = messages.stack()
        if shell.logs_gets:
            message = "connection #%d acquired by %s, waited %.3g s"
            name = slot.holder.get_name() if slot.holder is not None else "no task"
            shell.hooks.note(DEBUG, message, slot.id, name, waited, connection_id=slot.id, seconds=waited)
        if shell.hooks.listeners:
            shell.hooks.emit(shell.events().CheckedOut(slot.id, waited))
        if shell.hooks.waiting:
            shell.hooks.tell()
            if slot not in self._state.slots:  # a listener has closed the pool
                raise self._life.closed_error()
            self._let_interrupt(slot)

    def _let_interrupt(self, slot: Slot[C] | None) -> None:
        """Raise what a hook has raised, KeyboardInterrupt or SystemExit: the borrower never had the connection."""
        shell = self._shell
        if shell.hooks.interrupt is not None:
            if slot is not None:
                shell.event(shell.returned, slot, shell.now(), UNUSED)
            shell.hooks.raise_interrupt()

    async def _check_out(self, slot: Slot[C], began: float, timeout: float | None) -> None:
        """Run ``on_checkout`` in a task of the pool's own, within what is left of the get's time.

        A connection is closed if its hook raised or overstayed, or its get was cancelled meanwhile.
        """
        shell, loop = self._shell, self._life.loop
        if timeout == 0:  # no time to wait, but the hook needs some
            began, timeout = loop.time(), shell.config.validation_timeout
        elif timeout is None:
            timeout = shell.config.connection_timeout
        limit = None if timeout is None or timeout == inf else timeout
        left = None if limit is None else max(0.0, began + limit - loop.time())
        ready: asyncio.Future[None] = loop.create_future()
        outcome: list[BaseException | None] = []

        def done(_: object, call: Call, error: BaseException | None, __: Any) -> None:
            outcome.append(error)
            if not ready.done():
                ready.set_result(None)
            elif error is not None and not isinstance(error, asyncio.CancelledError):  # its get has gone
                shell.hooks.report(error, f"on_checkout of connection #{slot.id} failed", connection_id=slot.id)

        call = shell.calls.start(ready, shell.calls.prepare(slot.conn), "on_checkout", left, done)
        try:
            await ready
        except BaseException:
            if not loop.is_closed():
                call.end()
                shell.give_back(slot, RAISED | DISCARD)
            raise
        error = outcome[0]
        if error is None and not call.ended:
            return
        shell.give_back(slot, RAISED | DISCARD)
        if not self._state.is_open and call.ended:
            raise self._life.closed_error()
        if call.ended:
            raise self._late(loop.time() - began, limit or 0.0, "validate")
        if isinstance(error, asyncio.CancelledError):  # nobody cancelled this get: the hook raised it
            msg = f"{messages.label(shell.config)}: on_checkout was cancelled"
            raise PoolError(msg) from error
        assert error is not None
        raise error

    def _left(self, waiter: GetWaiter[C]) -> None:
        """A get went away. What it was given in this very tick goes on to the next."""
        shell, state = self._shell, self._state
        future = waiter.future
        now = shell.now()
        if future.done() and not future.cancelled() and isinstance(slot := future.result(), Slot):
            shell.returned(slot, now, UNUSED)
        else:
            state.give_up(waiter, now)
        if state.work or state.agenda.due < shell.alarm.at or not state.is_open or shell.hooks.waiting:
            shell.turn()

    # -- what they raise

    def describe(self, waiter: GetWaiter[C] | None) -> Picture:
        """Take a picture of the pool for a get whose time is up."""
        now = self._shell.now()
        return messages.describe(self._state, messages.phase_of(self._state, waiter), now, self._blocked_holders(now))

    def _blocked_holders(self, now: float) -> int:
        if now >= self._next_count:
            # A count goes through all waiters: it must stay rare where each of a hundred thousand ends with a picture.
            self._next_count = now + 1e-6 * len(self._state.queue.waiters)
            self._blocked = count_blocked_holders(self._state.slots, self._state.queue.waiters)
        return self._blocked

    def _timed_out(self, seen: Picture, waited: float, limit: float) -> PoolTimeout:
        shell = self._shell
        self._counters.gets_timed_out += 1
        self._counters.timeouts[seen.phase] += 1
        if shell.logs_gets:
            message = "a get timed out after %.3g s (phase %s)"
            shell.hooks.note(DEBUG, message, waited, seen.phase, phase=seen.phase, seconds=waited)
        if shell.hooks.listeners:
            shell.hooks.emit(shell.events().TimedOut(limit))
        if shell.hooks.waiting:
            shell.turn()
        return messages.timed_out(shell.config, seen, waited, limit)

    def _late(self, waited: float, limit: float, phase: Phase) -> PoolTimeout:
        """Make the error of a call beside the queue that took too long."""
        state = self._state
        seen = messages.Picture(phase, [messages.numbers(state)], state.snapshot(), state.last_error)
        return messages.timed_out(self._shell.config, seen, waited, limit)

    def _refusal(self, failure: Failure) -> BaseException:
        error = failure.error
        if error is None:
            return self._life.closed_error()
        if failure.ours:
            return error
        config = self._shell.config
        refusal = ConnectError(
            f"{messages.label(config)}: connecting failed: {text(error)}; {messages.numbers(self._state)}"
        )
        refusal.__cause__ = error
        return refusal

    # -- beside the pool

    async def connect_dedicated(self) -> C:
        """Open a connection that is the caller's own. The driver's error comes unchanged."""
        life, shell = self._life, self._shell
        life.check_open()
        loop = life.loop
        started = loop.time()
        opened: asyncio.Future[C] = loop.create_future()
        create_timeout = shell.config.create_timeout

        def done(_: object, call: Call, error: BaseException | None, conn: C) -> None:
            if opened.done() or (call.ended and error is None):
                if error is None:
                    shell.calls.dispose(conn)
            elif error is None:
                opened.set_result(conn)
                return
            if opened.done():
                return
            if call.ended and life.stage == "closing":
                opened.set_exception(life.closed_error())
            elif call.ended:
                opened.set_exception(self._late(loop.time() - started, create_timeout or 0.0, "connect"))
            else:
                opened.set_exception(connect_error(call, error, create_timeout))

        call = shell.calls.connect(opened, create_timeout, done)
        try:
            return await opened
        except BaseException:
            if opened.done() and not opened.cancelled() and opened.exception() is None:
                shell.calls.dispose(opened.result())  # cancelled in the tick of its success
            elif not (loop.is_closed() or call.task.done()):
                call.end()
            raise

    def close_dedicated(self, conn: C) -> None:
        """Close such a connection, in a task of the pool's own."""
        if not self._life.forked:
            self._life.in_loop(lambda: self._shell.calls.dispose(conn, gently=True))
