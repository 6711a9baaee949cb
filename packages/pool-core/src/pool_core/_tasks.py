"""Carries the state's decisions out: connects, tests, resets, closes and timers, each bounded, each the pool's own.

Nothing here decides who gets what; nothing here refers to the ``Pool`` that users hold, so a dropped pool can be
noticed while its tasks still run.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import traceback
import warnings
from asyncio import Future, InvalidStateError, current_task
from heapq import nsmallest
from math import inf
from threading import get_ident
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from ._call import GRACE, Call, Clock, Limit
from ._errors import (
    ConnectError,
    ForkedPool,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolOverloaded,
    PoolTimeout,
    PoolWarning,
    ReplaceConnection,
    WrongEventLoop,
)
from ._hooks import Hooks, logger
from ._hooks import text as _text
from ._manager import Verdict
from ._state import BROKEN, DISCARD, RAISED, UNUSED, Approval, Order, PoolState, Slot, Waiter
from ._statistics import CloseReason, Holder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import ModuleType

    from ._config import PoolConfig
    from ._errors import Phase
    from ._events import Event
    from ._manager import ConnectionManager
    from ._statistics import State

C = TypeVar("C")
T = TypeVar("T")

_SILENT = (CloseReason.LEAKED, CloseReason.DETACHED)
"""After these on_close does not run."""

_next_id = iter(range(1, sys.maxsize)).__next__  # ids are unique in the process, as r2d2's


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
        except InvalidStateError:  # cancelled: that shows before its task runs
            return False
        return True

    def gone(self) -> bool:
        return self.future.done()

    def fail(self, error: BaseException | None) -> None:
        self.end(_Failure(error))

    def end(self, answer: _Failure | _Picture) -> None:
        """Answer with something else than a connection, unless something else came first."""
        if not self.future.done():
            self.future.set_result(answer)


class _Failure:
    """The answer to a get that will get no connection. Exceptions are made by the get itself, fresh for each."""

    __slots__ = ("error", "ours")

    def __init__(self, error: BaseException | None, ours: bool = False) -> None:
        self.error = error
        self.ours = ours


class _Picture:
    """The answer to gets that ended at their deadline: the pool as it was then."""

    __slots__ = ("cause", "phase", "state", "text")

    def __init__(self, phase: Phase, text: str, state: State, cause: BaseException | None) -> None:
        self.phase: Phase = phase
        self.text = text
        self.state = state
        self.cause = cause


class _Opening:
    """One open() and all who wait for it. Who wakes late holds his own, and cannot end the next one."""

    __slots__ = ("ended", "futures", "limit")

    def __init__(self) -> None:
        self.limit: Limit | None = None
        self.futures: list[asyncio.Future[_Outcome]] = []
        self.ended = False


class _Outcome:
    """How an opening ended: well, with an error of the manager's, cancelled, or because the pool closes."""

    __slots__ = ("error", "how")

    def __init__(
        self, how: Literal["open", "failed", "cancelled", "closed"], error: BaseException | None = None
    ) -> None:
        self.how = how
        self.error = error


class PoolTasks(Generic[C]):
    """The shell around the state: everything in the pool that awaits, reads a clock or calls the manager."""

    def __init__(self, manager: ConnectionManager[C], config: PoolConfig) -> None:
        self.manager = manager
        self.config = config
        # The optional verbs are looked up once.
        self.has_broken = manager.has_broken
        self.reset: Callable[[C], Awaitable[None] | None] | None = getattr(manager, "reset", None)
        self._terminate_verb: Callable[[C], None] | None = getattr(manager, "terminate", None)
        self._judge: Callable[[Exception, C], Verdict] | None = getattr(manager, "judge", None)
        self._is_clean: Callable[[C], bool] | None = getattr(manager, "is_clean", None)
        self._transient_verb: Callable[[Exception], bool] | None = getattr(manager, "is_transient", None)
        self._on_connect = getattr(config.customizer, "on_connect", None)
        self.on_checkout = getattr(config.customizer, "on_checkout", None)
        self._on_reset = getattr(config.customizer, "on_reset", None)
        self._on_close = getattr(config.customizer, "on_close", None)
        self.hooks = Hooks(config, f"pool {config.name!r}")
        self.state: PoolState[C] = PoolState(config, self.has_broken, self.broken_by, _next_id)
        self.state.wipes = self.reset is not None
        self.is_broken = self.state.is_broken
        self.state.hook_errors = lambda: self.hooks.raised
        self.life: Literal["new", "opening", "open", "closing", "closed"] = "new"
        self.forked = False
        self.thread = 0
        self.loop: asyncio.AbstractEventLoop = cast("asyncio.AbstractEventLoop", None)  # until it is opened
        self._context = contextvars.Context()
        self._stacks = False
        self._calls: dict[Any, Call] = {}  # under way, by approval, slot, or a key of its own
        self._opening: _Opening | None = None
        self._closers: list[asyncio.Future[None]] = []
        self._limit: Limit | None = None  # of closing
        self._close_at = inf
        self._final = False  # closing, and out of time
        self._warned = False
        self._cut_off = False  # within the end of a call that others cancelled: no task may be begun
        self._aborted = False  # closing, because open() failed or was cancelled
        self._alarm = Clock(self.loop, self._wake, self._context)
        self._blocked = 0  # holders that waited themselves when that was last counted
        self._next_count = -inf
        self._outage = 0  # failed connects since the last success
        self._leaks: set[tuple[int, int]] = set()  # by connection and use, those that were told at the last look

    # -- gates

    @property
    def label(self) -> str:
        """How errors and logs name the pool."""
        return f"pool {self.config.name!r}"

    def check_fork(self) -> None:
        """Raise ForkedPool in a child process: its parent owns the sockets."""
        if self.forked:
            msg = (
                f"{self.label} was open before a fork, and its connections belong to the parent process: "
                "make a pool of its own in each process"
            )
            raise ForkedPool(msg)

    def check_loop(self) -> None:
        """Raise WrongEventLoop outside the pool's loop (or ForkedPool), before anything is touched."""
        self.check_fork()
        if self.life in ("new", "closed"):
            return
        running = asyncio._get_running_loop()  # None outside of any, where the public function raises
        if running is not self.loop:
            where = "outside of any event loop" if running is None else f"in {_loop_text(running)}"
            msg = f"{self.label} belongs to {_loop_text(self.loop)} and was used {where}: make one pool for each event loop"
            raise WrongEventLoop(msg)

    def in_loop(self, act: Callable[[], None]) -> None:
        """Do it now in the pool's own thread, else have its loop do it: garbage is collected in any thread."""
        if self.thread == get_ident() or self.loop.is_closed():
            act()
        else:
            self.loop.call_soon_threadsafe(act)

    def check_open(self) -> None:
        """Raise PoolClosed unless connections can be had (or WrongEventLoop, or ForkedPool)."""
        self.check_loop()
        if not self.state.is_open:
            raise self.closed_error()

    def closed_error(self) -> PoolClosed:
        """Say in which way the pool is not open, and what to do."""
        how = {
            "new": "is not open: use 'async with pool:', or 'await pool.open()' first",
            "closed": "is closed: open it again with 'await pool.open()'",
        }
        return PoolClosed(f"{self.label} {how.get(self.life, 'is closing')}")

    # -- life cycle

    async def open(self, *, wait: bool) -> None:
        """Open, or join an opening that is under way. Of a cancelled one the joiner opens by itself."""
        while True:
            self.check_fork()
            loop = asyncio.get_running_loop()
            if self.life not in ("new", "closed") and self.loop.is_closed():
                self.bury()
            self.check_loop()
            if self.life == "open":
                return
            if self.life == "closing":
                if not self._aborted:
                    raise self.closed_error()
                await self.close(0)  # what is left of an opening that failed or was cancelled
                continue
            if self.life == "opening":
                if not wait:
                    return
                assert self._opening is not None
                joined: asyncio.Future[_Outcome] = loop.create_future()
                self._opening.futures.append(joined)
                outcome = await joined
                if outcome.how == "cancelled" or (outcome.how == "open" and not self.state.is_open):
                    continue
                if outcome.error is not None:
                    raise outcome.error
                return
            await self._open(loop, wait=wait)
            return

    async def _open(self, loop: asyncio.AbstractEventLoop, *, wait: bool) -> None:
        self.loop = loop
        self.thread = get_ident()
        # The pool's tasks see the context of open(), not that of whoever happened to be first to wait.
        self._context = contextvars.copy_context()
        self._final = self._aborted = False
        self._outage = 0
        self._next_count = -inf
        self._alarm = Clock(loop, self._wake, self._context)
        self._stacks = self.config.leak_threshold is not None or loop.get_debug()
        now = loop.time()
        self._set_observed(now)
        self.life = "opening" if wait else "open"
        opening = self._opening = _Opening()
        if not wait:
            opening.ended = True
            self._event(self.state.open, now, starting=False)
            return
        opened: asyncio.Future[_Outcome] = loop.create_future()
        opening.futures.append(opened)
        if (limit := self.config.connection_timeout) is not None:
            opening.limit = Limit(lambda: self._open_timed_out(limit))
            self._alarm.add(opening.limit, now, limit)
        self._event(self.state.open, now, starting=True)
        try:
            outcome = await opened
        except BaseException as cancelled:
            if not loop.is_closed() and self._opening is opening and self.life in ("opening", "open"):
                self._end_opening(_Outcome("cancelled", cancelled))
                if self.life == "open":
                    self._aborted = True
                    self._begin_close()
                self.finish_close()
            raise
        if outcome.error is not None:
            if outcome.how == "failed" and self._opening is opening:
                await self.close(1.0)  # a failed open leaves nothing behind, and its caller has waited long enough
            raise outcome.error

    def _open_timed_out(self, limit: float) -> None:
        error = self.state.last_error
        if error is None:
            error = self._timed_out(self._picture(None), limit, limit, counted=False)
        self._end_opening(_Outcome("failed", error))

    def _end_opening(self, outcome: _Outcome) -> None:
        """Tell all who wait for open(). Failed, the pool stays closed for gets until the opener has cleaned up."""
        self.state.started()
        if self.life == "opening":
            self.life = "open"
        if (opening := self._opening) is not None and not opening.ended:
            opening.ended = True
            if opening.limit is not None:
                opening.limit.drop()
            for opener in opening.futures:
                if not opener.done():
                    opener.set_result(outcome)
            if outcome.how in ("failed", "cancelled"):  # a failed open leaves nothing behind
                self._aborted = True
                self._begin_close()

    async def close(self, timeout: float) -> None:
        """Close, or join a closing that is under way; the earlier deadline holds."""
        if self.life in ("new", "closed"):
            return
        if self.loop.is_closed():
            self.bury()
            return
        self.check_loop()
        loop = self.loop
        if self.life != "closing":
            self._begin_close()
            if self._is_closed():
                return
        deadline = loop.time() + timeout
        if not self._final and deadline < self._close_at:
            self._close_at = deadline
            self._limit_close(timeout, self.finish_close)
            self._turn()
        closer: asyncio.Future[None] = loop.create_future()
        self._closers.append(closer)
        try:
            await closer
        except BaseException:
            if not loop.is_closed():
                self.finish_close()
            raise

    def _begin_close(self) -> None:
        self.life = "closing"
        self._close_at = inf
        self._end_opening(_Outcome("closed", self.closed_error()))
        now = self._now()
        self.state.close(now)
        for approval in self.state.approvals:
            call = self._calls.get(approval)
            if call is None:  # it has just failed
                continue
            if self._aborted or approval.since >= now:
                call.end()
            else:  # it may be nearly there, and drivers complain of a connect that is cut in its first steps
                call.end_within(GRACE)
        self._turn()

    def finish_close(self) -> None:
        """Out of time: terminate what is lent, cut short what is under way, abandon what will not end."""
        if self.life != "closing" or self._final:
            return
        self._final = True
        self._event(self.state.terminate_all)
        for call in list(self._calls.values()):
            call.end()
        if not self._is_closed():
            self._limit_close(3 * GRACE, self._abandon_all)
            self._turn()

    def _limit_close(self, seconds: float, act: Callable[[], None]) -> None:
        if self._limit is not None:
            self._limit.drop()
        self._limit = Limit(act)
        self._alarm.add(self._limit, self._now(), seconds)

    def _abandon_all(self) -> None:
        for call in list(self._calls.values()):
            call.abandon()

    def _is_closed(self) -> bool:
        """Tell whether the closing is over, and end it if nothing is left."""
        state = self.state
        if self.life == "closing" and not (state.slots or state.closing or state.approvals or self._calls):
            self._end_closing()
        return self.life == "closed"

    def _end_closing(self) -> None:
        self.life = "closed"
        if self._limit is not None:
            self._limit.drop()
            self._limit = None
        closers, self._closers = self._closers, []
        for closer in closers:
            if not closer.done():
                closer.set_result(None)

    def bury(self) -> None:
        """End at once, without awaiting anything: the loop is closed, or nobody holds the pool any more."""
        if self.life in ("new", "closed"):
            return
        if not self.loop.is_closed():
            if self.life != "closing":
                self._begin_close()
            self.finish_close()
            return
        self.life = "closing"
        self._final = True
        self._calls.clear()  # their tasks, and those of the waiters, died with the loop
        self.state.bury()
        self._carry_out_late()
        self._limit = None
        self._opening = None
        self._closers.clear()
        self.life = "closed"

    # -- get

    async def acquire(self, timeout: float | None) -> Slot[C]:
        """Lend a connection by the long way round."""
        began = self.loop.time() if self.on_checkout is not None and self.state.is_open else 0.0
        got = self.take_or_queue(timeout)
        if not isinstance(got, Slot):
            try:
                answer = await got.future
            except BaseException:
                self.cancelled(got)
                raise
            got = self.served(got, answer)
        if self.on_checkout is not None:
            await self.check_out(got, began, timeout)
        return got

    # Between taking a connection and owning it there is no await but the waiter's own, whose `except` passes the
    # connection on.

    def take_or_queue(self, timeout: float | None) -> Slot[C] | GetWaiter[C]:
        """Begin a get that the warm path leaves: a connection at once, or a waiter that stands in the queue."""
        state = self.state
        loop = self.loop
        if not state.is_open or get_ident() != self.thread or (task := current_task(loop)) is None:
            task = self._check_get()
        now = loop.time()
        if state.fresh and not state.live:  # with FIFO there may be both
            slot = self._take(task, now)
            if slot is not None:
                slot.uses += 1
                if state.observed:
                    self._observe(slot, 0.0)
                return slot
        limit = self.config.connection_timeout if timeout is None else timeout
        if limit is None:
            limit = inf
        if limit == 0:
            raise self._timed_out(self._picture(None), 0.0, 0.0)
        waiter: GetWaiter[C] = GetWaiter(Future(loop=loop), task, now, limit, timeout is None)
        accepted = state.enqueue(waiter, now)
        if state.work or state.due < self._alarm.at or not state.plain:
            self._turn()  # even if it was not accepted: it may have been time to do something for others
        if not accepted:
            raise self._overloaded()
        state.waiting += 1
        return waiter

    def cancelled(self, waiter: GetWaiter[C]) -> None:
        """A get was cancelled while it waited, perhaps in the tick of the hand-off."""
        if not waiter.future.get_loop().is_closed():  # what a dead loop leaves behind bury() counts
            self.state.waiting -= 1
            self.state.gets_cancelled += 1
            self._left(waiter)

    def served(self, waiter: GetWaiter[C], answer: Slot[C] | _Failure | _Picture) -> Slot[C]:
        """End the waiting of a get that was answered: its connection, or what it raises."""
        state = self.state
        state.waiting -= 1
        if type(answer) is Slot:
            if answer.holder is not None or answer in state.slots:
                waited = answer.stamp - waiter.started
                if not waiter.direct:
                    state.gets_waited += 1
                    state.wait_time += waited
                answer.uses += 1
                if state.observed:
                    self._observe(answer, waited)
                return answer
            answer = _Failure(None)  # close() terminated it in the tick of the hand-off
        if isinstance(answer, _Picture):
            raise self._timed_out(answer, self.loop.time() - waiter.started, waiter.limit)
        state.gets_failed += 1
        raise self._refusal(cast("_Failure", answer))

    def found_broken(self, slot: Slot[C], error: BaseException | None = None) -> None:
        """The warm path took it out to lend it, and it is broken."""
        if error is not None:
            self.hooks.failed(error, "has_broken raised, so the connection counts as broken")
        self._event(self.state.found_broken, slot, self.loop.time())

    def _check_get(self) -> asyncio.Task[Any] | None:
        """Say why a get cannot be, or that it is right all the same: some loops run callbacks that await by hand."""
        try:
            self.check_open()
        except PoolClosed:
            self.state.gets_failed += 1
            raise
        return current_task(self.loop)

    def _overloaded(self) -> PoolOverloaded:
        self.state.gets_failed += 1
        return PoolOverloaded(
            f"{self.label}: {self.numbers()}, and max_waiting={self.config.max_waiting}: try again later, or raise "
            "max_waiting or max_size"
        )

    async def try_acquire(self) -> Slot[C] | None:
        """Lend an idle connection, tested if it must be, or None: never queues for a return, never connects."""
        self.check_open()
        now = self.loop.time()
        task = current_task(self.loop)
        slot = self._take(task, now)
        # Behind other try_gets there is nothing to overtake: each has a test of its own.
        if slot is None and self.state.stale and self.state.live == self.state.tries:
            waiter: GetWaiter[C] = GetWaiter(self.loop.create_future(), task, now, inf, idle_only=True)
            self._event(self.state.enqueue, waiter, now)
            try:
                answer = await waiter.future
            except BaseException:
                self._left(waiter)
                raise
            if isinstance(answer, Slot) and answer not in self.state.slots:
                answer = _Failure(None)
            if isinstance(answer, _Failure):
                raise self._refusal(answer)
            slot = cast("Slot[C] | None", answer)
        if slot is not None:
            slot.uses += 1
            if self.state.observed:
                self._observe(slot, slot.stamp - now)
            if self.on_checkout is not None:
                await self.check_out(slot, now, 0)
        return slot

    def _take(self, task: Any, now: float) -> Slot[C] | None:
        slot = self.state.take(now)
        if slot is not None:
            slot.holder = task
            slot.stamp = now
        self._turn()
        return slot

    def _observe(self, slot: Slot[C], waited: float) -> None:
        """Tell who wants to know that a connection was lent."""
        if self._stacks:
            slot.stack = _stack()
        if self.hooks.listeners:
            self.hooks.emit(_events().CheckedOut(slot.id, waited))
            try:
                self.hooks.tell()
            except BaseException:  # KeyboardInterrupt or SystemExit: the borrower never had it
                self._event(self.state.give_back, slot, self._now(), UNUSED)
                raise

    async def check_out(self, slot: Slot[C], began: float, timeout: float | None) -> None:
        """Run ``on_checkout`` in a task of the pool's own, within what is left of the get's time.

        A connection is closed if its hook raised or overstayed, or its get was cancelled meanwhile.
        """
        loop = self.loop
        if timeout == 0:  # no time to wait, but the hook needs some
            began, timeout = loop.time(), self.config.validation_timeout
        elif timeout is None:
            timeout = self.config.connection_timeout
        limit = None if timeout is None or timeout == inf else timeout
        left = None if limit is None else max(0.0, began + limit - loop.time())
        ready: asyncio.Future[None] = loop.create_future()
        outcome: list[BaseException | None] = []

        def done(_: object, call: Call, error: BaseException | None, __: Any) -> None:
            outcome.append(error)
            if not ready.done():
                ready.set_result(None)

        call = self._start(ready, self._prepare(slot.conn), "on_checkout", left, done)
        try:
            await ready
        except BaseException:
            if not loop.is_closed():
                call.end()
                self.give_back(slot, RAISED | DISCARD)
            raise
        error = outcome[0]
        if error is None and not call.ended:
            return
        self.give_back(slot, RAISED | DISCARD)
        if not self.state.is_open and call.ended:
            raise self.closed_error()
        if call.ended:
            picture = _Picture("validate", self.numbers(), self.state.snapshot(), self.state.last_error)
            raise self._timed_out(picture, loop.time() - began, limit or 0.0, counted=False)
        if isinstance(error, asyncio.CancelledError):  # nobody cancelled this get: the hook raised it
            msg = f"{self.label}: on_checkout was cancelled"
            raise PoolError(msg) from error
        assert error is not None
        raise error

    async def _prepare(self, conn: C) -> None:
        assert self.on_checkout is not None
        await self.on_checkout(conn)

    def _left(self, waiter: GetWaiter[C]) -> None:
        """A get went away. What it was given in this very tick goes on to the next."""
        future = waiter.future
        now = self._now()
        if future.done() and not future.cancelled() and isinstance(slot := future.result(), Slot):
            self.state.give_back(slot, now, UNUSED)
        else:
            self.state.give_up(waiter, now)
        if self.state.work or self.state.due < self._alarm.at or not self.state.is_open or self.hooks._words:
            self._turn()

    def _refusal(self, failure: _Failure) -> PoolError:
        error = failure.error
        if error is None:
            return self.closed_error()
        if failure.ours:
            return cast("PoolError", error)
        refusal = ConnectError(f"{self.label}: connecting failed: {_text(error)}; {self.numbers()}")
        refusal.__cause__ = error
        return refusal

    def _picture(self, waiter: GetWaiter[C] | None) -> _Picture:
        state = self.state
        parts = [self.numbers()]
        held = [slot for slot in state.slots if slot.holder is not None]
        if held:
            now = self._now()
            parts.append("held longest: " + ", ".join(_held(slot, now) for slot in nsmallest(3, held, key=_since)))
        if blocked := self._blocked_holders():
            parts.append(f"holders that wait for another connection themselves: {blocked}")
        if state.last_error is not None:
            parts.append(f"last connect error: {_text(state.last_error)}")
        return _Picture(state.phase(waiter), "; ".join(parts), state.snapshot(), state.last_error)

    def _timed_out(self, picture: _Picture, waited: float, limit: float, *, counted: bool = True) -> PoolTimeout:
        if counted:
            self.state.gets_timed_out += 1
            if self.hooks.listeners:
                self.hooks.emit(_events().TimedOut(limit))
                self.hooks.tell()
        error = PoolTimeout(
            f"{self.label}: no connection within {limit:g} s (phase {picture.phase}, waited {waited:.3g} s): "
            f"{picture.text}",
            phase=picture.phase,
            waited=waited,
            state=picture.state,
        )
        error.__cause__ = picture.cause
        return error

    def _blocked_holders(self) -> int:
        now = self.loop.time()
        if now >= self._next_count:
            # A count goes through all waiters: it must stay rare where each of a hundred thousand ends with a picture.
            self._next_count = now + 1e-6 * len(self.state.waiters)
            self._blocked = self.state.blocked_holders()
        return self._blocked

    def numbers(self) -> str:
        now = self.state.snapshot()
        counts = [f"{now.in_use} of {self.config.max_size} in use", f"{now.idle} idle"]
        passing = ((what, getattr(now, what)) for what in ("opening", "validating", "resetting", "closing"))
        counts += [f"{count} {what}" for what, count in passing if count]
        return ", ".join([*counts, f"{now.waiting} waiting"])

    def holders(self) -> list[Holder]:
        """Who holds what, and how long."""
        now = self._now() if self.state.slots else 0.0
        return [
            Holder(slot.id, slot.holder.get_name(), max(0.0, now - slot.stamp), slot.stack)
            for slot in self.state.slots
            if slot.holder is not None
        ]

    # -- give back

    def give_back(self, slot: Slot[C], how: int = 0, error: BaseException | None = None) -> None:
        """End a lease: bookkeeping now; the wiping and closing go on in tasks of the pool's own."""
        state = self.state
        if how and self.loop.is_closed():  # a block that was thrown away after its loop
            self.reclaim(slot)
            return
        now = self.loop.time()
        if not state.plain:
            if slot not in state.slots:
                return  # close() has terminated it
            if self.hooks.listeners:
                self.hooks.emit(_events().CheckedIn(slot.id, now - slot.stamp))
        if error is not None:
            how |= BROKEN
            self.broken_by(error)
        if state.give_back(slot, now, how) and self._wipe(slot, now):
            state.restock(slot, now)
        # A plain pool has no listeners, and what is reported comes with work.
        if state.work or state.due < self._alarm.at or not state.plain:
            self._turn()

    def give_back_raised(self, slot: Slot[C], how: int, error: BaseException | None) -> None:
        """End a lease in which something was raised: the manager may judge what it means."""
        verdict = None
        if self._judge is not None and isinstance(error, Exception) and slot in self.state.slots:
            try:
                verdict = self._judge(error, slot.conn)
                if type(verdict) is not Verdict:
                    msg = f"judge must return a Verdict, not {type(verdict).__name__}"
                    raise TypeError(msg)
            except BaseException as bug:  # noqa: BLE001 - whatever an adapter raises
                verdict = None
                self.hooks.failed(bug, "judge raised, so the connection is kept")
        if verdict is Verdict.RETIRE_ALL and self.state.is_open:
            self._event(self.state.evict, None, self._now())
        elif verdict is Verdict.CLOSE:
            how |= DISCARD
        self.give_back(slot, how)
        self.hooks.tell()

    def wipe(self, slot: Slot[C]) -> bool:
        """Wipe what the borrower left behind. True: there is nothing to wipe; else the connection comes back later."""
        clean = self._wipe(slot, self.loop.time())
        if self.hooks._words or (not clean and (self.state.work or self.state.due < self._alarm.at)):
            self._turn()
        return clean

    def _wipe(self, slot: Slot[C], now: float) -> bool:
        assert self.reset is not None
        if self._is_clean is not None and self._answers_clean(slot.conn):
            return True
        try:
            wiping = self.reset(slot.conn)
        except BaseException as error:  # noqa: BLE001 - whatever an adapter raises
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                self.hooks.interrupt = error
            replaced = self._reset_failed(slot, error)
            self.state.reset_failed(slot, now, replaced=replaced)
            return False
        if wiping is None:
            return True
        self.state.begin_reset(slot, now)
        if self._on_reset is not None:
            coro = self._reset_one(wiping, slot.conn)
        else:
            coro = wiping if isinstance(wiping, CoroutineType) else _await(wiping)
        self._start(slot, coro, "reset", self.config.reset_timeout, self._reset_done)
        return False

    def reclaim(self, slot: Slot[C], stack: str | None = None) -> None:
        """A lease was garbage-collected, or came back after its loop: terminate what it held."""
        state = self.state
        if slot in state.slots:
            if self.hooks.listeners:
                self.hooks.emit(_events().Leaked(slot.id, self._now() - slot.stamp, stack))
            state.reclaim(slot, self._now())
        self._turn()

    def detach(self, slot: Slot[C]) -> None:
        """A lent connection leaves the pool for good."""
        now = self._now()
        if self.hooks.listeners:
            self.hooks.emit(_events().CheckedIn(slot.id, now - slot.stamp))
        if slot in self.state.slots:
            self.state.detach(slot, now)
            if self.hooks.listeners:
                self.hooks.emit(_events().Closed(slot.id, now - slot.born, CloseReason.DETACHED))
        self._turn()

    def _reset_done(self, slot: Slot[C], call: Call, error: BaseException | None, _: Any) -> None:
        if slot not in self.state.resetting:
            return
        if call.ended and not call.abandoned:
            error = TimeoutError(f"reset took longer than reset_timeout={self.config.reset_timeout} s")
        replaced = error is not None and self._reset_failed(slot, error)
        self.state.reset_done(
            slot, self._now(), ok=error is None, timed_out=call.ended or call.cut_off, replaced=replaced
        )

    async def _reset_one(self, wiping: Awaitable[None], conn: C) -> None:
        assert self._on_reset is not None
        await wiping
        await self._on_reset(conn)

    def warn_of_lost_settings(self) -> None:
        """Warn once where on_connect sets what the first reset takes away again."""
        if self._warned or self._on_connect is None or self._on_reset is not None or self.reset is None:
            return
        if getattr(self.manager, "reset_keeps_on_connect", False):
            return
        self._warned = True
        warnings.warn(
            f"{self.label}: the customizer has on_connect, but not on_reset, and {type(self.manager).__name__} resets "
            "connections: what on_connect sets is gone for the second borrower. Add on_reset(conn), or give lasting "
            "settings to the adapter (such as server_settings or init_command)",
            PoolWarning,
            stacklevel=3,
        )

    def _reset_failed(self, slot: Slot[C], error: BaseException) -> bool:
        """Report it. True: the manager asked for another connection, which is no failure."""
        if isinstance(error, ReplaceConnection):
            return True
        if self.hooks.listeners:
            self.hooks.emit(_events().ResetFailed(slot.id, error))
        if not self._cut_off:
            self.hooks.report(error, f"reset of connection #{slot.id} failed, so it is closed")
        return False

    def _answers_clean(self, conn: C) -> bool:
        assert self._is_clean is not None
        try:
            return self._is_clean(conn) is True
        except BaseException as bug:  # noqa: BLE001 - whatever an adapter raises
            self.hooks.failed(bug, "is_clean raised, so the connection is reset")
            return False

    # -- the turn

    def _event(self, event: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Tell the state what happened, and do what it decides."""
        try:
            return event(*args, **kwargs)
        finally:
            self._turn()

    def _turn(self) -> None:
        """Carry out what the state decided, and see that it will be woken: the end of every event."""
        state = self.state
        if self.loop.is_closed():
            self._carry_out_late()
            self.hooks.tell()
            return
        while state.work:
            for order, subject in state.take_work():
                self._carry_out(order, subject)
        if state.is_open:
            if state.due < self._alarm.at:
                self._alarm.set(state.due)
        else:
            self._is_closed()
            if (when := self._alarm.next()) != self._alarm.at:
                self._alarm.set(when)
        self.hooks.tell()

    def _wake(self, now: float) -> None:
        """The alarm rings."""
        for what in self._alarm.pop(now):
            what.overdue(now)
        if (when := self._alarm.next()) < self._alarm.at:
            self._alarm.set(when)
        state = self.state
        if state.due <= now:
            late = cast("list[GetWaiter[C]]", state.overdue(now))
            pictures: dict[str, _Picture] = {}  # one for all of a kind: a hundred thousand may end at once
            for waiter in late:
                phase = state.phase(waiter)
                if phase not in pictures:
                    pictures[phase] = self._picture(waiter)
                waiter.end(pictures[phase])
            state.wake(now, cast("list[Waiter[C]]", late))
        self._turn()

    def _carry_out(self, order: Order, subject: Any) -> None:
        if order is Order.CONNECT:
            self._start(subject, self._open_one(), "connect", self.config.create_timeout, self._connected)
            return
        if order is Order.STARTED:
            self._end_opening(_Outcome("open"))
            return
        if order is Order.FIND_LEAKS:
            self._find_leaks()
            return
        if order is Order.DEADLOCK:
            self._refuse_deadlocked(subject)
            return
        slot: Slot[C] = subject
        if order is Order.TEST:
            self._start(slot, self._test_one(slot), "is_valid", self.config.validation_timeout, self._tested)
            return
        assert slot.mark is not None
        if self.hooks.listeners:
            self.hooks.emit(_events().Closed(slot.id, self._now() - slot.born, slot.mark))
        if (under_way := self._calls.pop(slot, None)) is not None:
            # A test or reset that nobody waits for any more: it ends by itself, or is abandoned.
            self._calls[under_way] = under_way
            under_way.end()
        if order is Order.TERMINATE:
            terminated = self._terminate(slot)
            if self._final or self._cut_off or (terminated and (self._on_close is None or slot.mark in _SILENT)):
                if not terminated:
                    self._abandoned(f"connection #{slot.id}")
                self.state.gone(slot, self._now())
                return
        self._start(slot, self._goodbye(slot), "close", self.config.close_timeout, self._closed)

    def _start(
        self,
        key: Any,
        coro: Coroutine[Any, Any, Any],
        verb: str,
        timeout: float | None,
        done: Callable[[Any, Call, BaseException | None, Any], None],
    ) -> Call:
        """Call one verb of the manager in a task of the pool's own."""
        slot = key if isinstance(key, Slot) else None
        call = Call(
            self.loop,
            self._alarm,
            coro,
            key=key,
            verb=verb,
            name=f"{self.config.name}: {verb}" + ("" if slot is None else f" #{slot.id}"),
            context=self._context,
            timeout=timeout,
            done=self._finished(done),
            rescue=None if slot is None else self._terminate,
            spill=self._dispose if verb == "connect" else None,
        )
        self._calls[key] = call
        return call

    def _finished(
        self, done: Callable[[Any, Call, BaseException | None, Any], None]
    ) -> Callable[[Call, BaseException | None, Any], None]:
        def finished(call: Call, error: BaseException | None, result: Any) -> None:
            if self._calls.get(call.key) is call:
                del self._calls[call.key]
            else:
                self._calls.pop(call, None)
            if call.abandoned:
                self._abandoned(f"a call of {call.verb}")
            if call.cut_off:
                self.state.cut_off()
            self._cut_off = call.cut_off
            try:
                done(call.key, call, error, result)
            finally:
                self._turn()
                self._cut_off = False

        return finished

    async def _open_one(self) -> C:
        conn = await self.manager.connect()
        try:
            if self._on_connect is not None and not self.is_broken(conn):
                await self._on_connect(conn)
            if self.is_broken(conn):  # from the first, or by what the hook did to it
                msg = "the new connection is broken already: has_broken is true"
                raise ConnectionError(msg)
        except BaseException:
            self._dispose(conn)
            raise
        return conn

    def _connected(self, approval: Approval[C], call: Call, error: BaseException | None, conn: C) -> None:
        state = self.state
        now = self._now()
        if error is None and not call.ended:
            if self._outage and self.config.error_sink is None:
                logger.warning("%s: connecting works again, after %d failures", self.label, self._outage)
            self._outage = 0
            slot = state.put(approval, conn, now, self._lifetime())
            if self.hooks.listeners:
                self.hooks.emit(_events().Connected(slot.id, now - approval.since))
            return
        if error is None:
            self._dispose(conn)
        if self.life == "closing":
            state.connect_failed(approval, None, now, transient=True, jitter=0.0)
            return
        error = self._connect_error(call, error)
        if self.hooks.listeners:
            self.hooks.emit(_events().ConnectFailed(error))
        self._outage += 1
        if (self._outage == 1 or self.config.error_sink is not None) and not call.cut_off:
            self.hooks.report(error, "connecting failed")
        transient = self._transient(error)
        if self.life == "opening" and not (transient and self.config.retry_connection):
            self._end_opening(_Outcome("failed", error))  # first, so that no further connect is begun for it
        state.connect_failed(approval, error, now, transient=transient, jitter=_random())

    # -- by the owner

    def add(self, conn: C) -> bool:
        """Take a connection in. False: no room."""
        slot = self._event(self.state.add, conn, self._now(), self._lifetime())
        if slot is not None and self.hooks.listeners:
            self.hooks.emit(_events().Connected(slot.id))
            self.hooks.tell()
        return slot is not None

    def resize(self, config: PoolConfig) -> None:
        """Put another size in force."""
        self.config = config
        if self.state.is_open:
            self._event(self.state.resize, config, self._now())
        else:
            self.state.configure(config)

    def evict(self, predicate: Callable[[C], bool] | None) -> int:
        """Retire the generation, or those that the predicate picks."""
        slots = self.state.slots
        # Judged before anything changes: a predicate that raises leaves the pool as it was.
        chosen = None if predicate is None else {slot for slot in list(slots) if predicate(slot.conn)}
        return self._event(self.state.evict, chosen, self._now())

    def mark_forked(self) -> None:
        """In the child of a fork: if the pool is open, it is the parent's."""
        self.forked = self.life not in ("new", "closed")
        self.state.shut()
        self.thread = 0

    # -- beside the pool

    async def connect_dedicated(self) -> C:
        """Open a connection that is the caller's own. The driver's error comes unchanged."""
        self.check_open()
        loop = self.loop
        started = loop.time()
        opened: asyncio.Future[C] = loop.create_future()

        def done(_: object, call: Call, error: BaseException | None, conn: C) -> None:
            if opened.done() or (call.ended and error is None):
                if error is None:
                    self._dispose(conn)
            elif error is None:
                opened.set_result(conn)
                return
            if opened.done():
                return
            if call.ended and self.life == "closing":
                opened.set_exception(self.closed_error())
            elif call.ended:
                picture = _Picture("connect", self.numbers(), self.state.snapshot(), self.state.last_error)
                limit = self.config.create_timeout or 0.0
                opened.set_exception(self._timed_out(picture, loop.time() - started, limit, counted=False))
            else:
                opened.set_exception(self._connect_error(call, error))

        call = self._start(opened, self._open_one(), "connect", self.config.create_timeout, done)
        try:
            return await opened
        except BaseException:
            if opened.done() and not opened.cancelled() and opened.exception() is None:
                self._dispose(opened.result())  # cancelled in the tick of its success
            elif not (loop.is_closed() or call.task.done()):
                call.end()
            raise

    def close_dedicated(self, conn: C) -> None:
        """Close such a connection, in a task of the pool's own."""
        if not self.forked:
            self.in_loop(lambda: self._dispose(conn, gently=True))

    def _connect_error(self, call: Call, error: BaseException | None) -> BaseException:
        if call.ended:
            return TimeoutError(f"connect took longer than create_timeout={self.config.create_timeout} s")
        if error is None or isinstance(error, asyncio.CancelledError):
            return ConnectionAbortedError("the connect was cancelled from outside of the pool")
        return error

    def _transient(self, error: BaseException) -> bool:
        if self._transient_verb is None or not isinstance(error, Exception):
            return True
        try:
            return bool(self._transient_verb(error))
        except BaseException as bug:  # noqa: BLE001 - whatever an adapter raises
            self.hooks.failed(bug, "is_transient raised, so the connect error counts as transient")
            return True

    async def _test_one(self, slot: Slot[C]) -> bool:
        return await self.manager.is_valid(slot.conn)

    def _tested(self, slot: Slot[C], call: Call, error: BaseException | None, result: Any) -> None:
        if slot not in self.state.validating:
            return
        if call.ended and not call.abandoned:
            error = TimeoutError(f"is_valid took longer than validation_timeout={self.config.validation_timeout} s")
        elif error is None and not isinstance(result, bool):
            error = TypeError(f"is_valid must return True or False, not {result!r}: is a 'return True' missing?")
        if error is not None and not call.cut_off:
            self.hooks.report(error, f"the test of connection #{slot.id} failed, so it is closed")
        valid = error is None and result is True
        self.state.tested(slot, self._now(), valid=valid, timed_out=call.ended, terminate=call.cut_off)

    async def _goodbye(self, slot: Slot[C]) -> None:
        if self._on_close is not None and slot.mark not in _SILENT:
            try:
                await self._on_close(slot.conn)
            except BaseException as error:
                if (task := current_task()) is not None and task.cancelling():
                    raise
                self.hooks.failed(error, f"on_close of connection #{slot.id} raised")
        if not slot.terminated:
            await self.manager.close(slot.conn)

    def _closed(self, slot: Slot[C], call: Call, error: BaseException | None, _: Any) -> None:
        if call.ended:
            error = TimeoutError(f"close took longer than close_timeout={self.config.close_timeout} s")
        if error is not None:
            if not (self._final or call.cut_off):
                self.hooks.report(error, f"closing connection #{slot.id} failed")
            if not self._terminate(slot) and (call.ended or call.cut_off) and not call.abandoned:
                self._abandoned(f"connection #{slot.id}")
        self.state.gone(slot, self._now())

    def _terminate(self, slot: Slot[C]) -> bool:
        """Drop the socket, once. False: the manager has no ``terminate``, or it failed."""
        if not slot.terminated and self._terminate_verb is not None:
            slot.terminated = True
            try:
                self._terminate_verb(slot.conn)
            except BaseException as error:  # noqa: BLE001 - whatever an adapter raises
                self.hooks.failed(error, f"terminate of connection #{slot.id} raised")
        return slot.terminated

    def _dispose(self, conn: C, *, gently: bool = False) -> None:
        """Get rid of a connection outside the pool: one that came too late, or a dedicated one."""
        slot = Slot(conn, 0, 0.0, inf)
        slot.mark = CloseReason.DETACHED  # no on_close
        dead = self.loop.is_closed()
        if (gently and not dead) or not self._terminate(slot):
            if dead:
                self._abandoned("a connection that came too late")
            else:
                self._start(slot, self._goodbye(slot), "close", self.config.close_timeout, self._disposed)

    def _disposed(self, slot: Slot[C], call: Call, error: BaseException | None, _: Any) -> None:
        if error is not None:
            self.hooks.report(error, "closing a connection that was not wanted any more failed")
        if error is not None and not self._terminate(slot) and call.ended and not call.abandoned:
            self._abandoned("a connection that was not wanted any more")

    def _abandoned(self, what: str) -> None:
        self.state.abandoned += 1
        logger.warning("%s: %s was abandoned: it ended neither when cancelled nor by terminate", self.label, what)

    def _carry_out_late(self) -> None:
        """The loop is closed: nothing can be awaited any more."""
        self.state.work.clear()
        for slot in list(self.state.closing):
            self._drop(slot)
        self.state.work.clear()

    def _drop(self, slot: Slot[C]) -> None:
        if not self._terminate(slot):
            self._abandoned(f"connection #{slot.id}")
        self.state.gone(slot, self.state.tick)

    # -- by the clock

    def _find_leaks(self) -> None:
        now = self.loop.time()
        threshold = self.config.leak_threshold or inf  # no leak_threshold, no such work
        overdue = [s for s in self.state.slots if s.holder is not None and now - s.stamp > threshold]
        told, self._leaks = self._leaks, {(slot.id, slot.uses) for slot in overdue}
        for slot in overdue:
            if (slot.id, slot.uses) in told:  # once for each loan
                continue
            held = now - slot.stamp
            if self.hooks.listeners:
                self.hooks.emit(_events().Leaked(slot.id, held, slot.stack))
            leak = f"connection #{slot.id} is held for {held:.3g} s, longer than leak_threshold={threshold:g}"
            self.hooks.report(ResourceWarning(f"{self.label}: {leak}, taken at:\n{slot.stack}"), leak)

    def _refuse_deadlocked(self, victim: GetWaiter[C]) -> None:
        state = self.state
        names = sorted({slot.holder.get_name() for slot in state.slots})
        waited = self.loop.time() - victim.started
        error = PoolDeadlock(
            f"{self.label}: deadlock: each of its {len(state.slots)} connections is held by a task that waits for "
            f"another one ({', '.join(names)}): do not get a second connection while holding one, or raise max_size; "
            f"{self.numbers()}",
            phase="queue",
            waited=waited,
            state=state.snapshot(),
        )
        victim.end(_Failure(error, ours=True))
        state.refuse(cast("Waiter[C]", victim), self.loop.time())

    # -- telling

    def broken_by(self, error: BaseException) -> None:
        """``has_broken`` raised."""
        self.hooks.failed(error, "has_broken raised, so the connection counts as broken")

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
        if not self.forked:  # then the warm path stays shut
            seen = bool(self.hooks.listeners) or self._stacks or self.config.guard or self.on_checkout is not None
            self.state.observe(seen, now)

    def _now(self) -> float:
        return self.loop.time()

    def _lifetime(self) -> float:
        """Draw a connection's own lifetime at its birth, so that they do not all expire together (sqlx #2854)."""
        if self.config.max_lifetime is None:
            return inf
        return self.config.max_lifetime * (1 - self.config.lifetime_jitter * _random())


def _events() -> ModuleType:
    """The classes of the events; making them takes 4 ms, which pools that nobody listens to save."""
    from . import _events as events

    return events


def _loop_text(loop: asyncio.AbstractEventLoop) -> str:
    """Name a loop so that it is told from another of its kind."""
    return f"{type(loop).__name__} {id(loop):#x}"


def _stack() -> str:
    """Where the user's code is."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("pool_core."):
        frame = frame.f_back
    return "".join(traceback.format_stack(frame))


def _random() -> float:
    """In [0, 1). The module ``random`` would cost 3 ms to import."""
    return int.from_bytes(os.urandom(6), "big") / (1 << 48)


def _since(slot: Slot[Any]) -> float:
    return slot.stamp


def _held(slot: Slot[Any], now: float) -> str:
    """Say who holds a connection, and whether that task has ended without returning it."""
    lost = " (the task has ended: lost?)" if slot.holder.done() else ""
    return f"#{slot.id} for {max(0.0, now - slot.stamp):.3g} s by {slot.holder.get_name()}{lost}"


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
