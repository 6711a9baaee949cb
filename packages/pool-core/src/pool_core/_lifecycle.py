"""From new to open to closed, and again; and who may use the pool: its own loop, thread and process.

::

    new --open()--> opening --min_idle is up--> open --close()--> closing --nothing is left--> closed --open()--> ...
                       |                                             ^
                       +------- failed, timed out, cancelled --------+

Each opening is an object of its own. Who wakes late holds his, and cannot end the next one.
"""

from __future__ import annotations

import asyncio
import contextvars
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, cast

from . import _messages as messages
from ._call import GRACE, Limit
from ._hooks import INFO

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._shell import Shell

C = TypeVar("C")


class Outcome:
    """How an opening ended: well, with an error of the manager's, cancelled, or because the pool closes."""

    __slots__ = ("error", "how")

    def __init__(
        self, how: Literal["open", "failed", "cancelled", "closed"], error: BaseException | None = None
    ) -> None:
        self.how = how
        self.error = error


class Opening:
    """One open() and all who wait for it."""

    __slots__ = ("began", "ended", "futures", "limit", "wanted")

    def __init__(self, began: float) -> None:
        self.began = began
        self.limit: Limit | None = None
        self.futures: list[asyncio.Future[Outcome]] = []
        self.ended = False
        self.wanted = False  # somebody opened it too, and did not wait: it does not end with its opener

    def end(self, outcome: Outcome) -> None:
        """Wake all tasks that wait."""
        self.ended = True
        if self.limit is not None:
            self.limit.drop()
        for opener in self.futures:
            if not opener.done():
                opener.set_result(outcome)


class Lifecycle(Generic[C]):
    """The life of one pool."""

    def __init__(self, shell: Shell[C]) -> None:
        self._shell = shell
        self.stage: Literal["new", "opening", "open", "closing", "closed"] = "new"
        self.number = 0  # of openings
        self.forked = False
        self.thread = 0
        self.loop: asyncio.AbstractEventLoop = cast("asyncio.AbstractEventLoop", None)  # until it is opened
        self.context = contextvars.Context()
        self.final = False  # closing, and out of time
        self._aborted = False  # closing, because open() failed or was cancelled
        self._opening: Opening | None = None
        self._closers: list[asyncio.Future[None]] = []
        self._limit: Limit | None = None  # of closing
        self._close_at = inf
        self._closing_since = 0.0

    # -- gates

    @property
    def is_alive(self) -> bool:
        """Tell whether it was opened and is not closed yet."""
        return self.stage not in ("new", "closed")

    def check_fork(self) -> None:
        """Raise ForkedPool in a child process: its parent owns the sockets."""
        if self.forked:
            raise messages.forked(self._shell.config)

    def check_loop(self) -> None:
        """Raise WrongEventLoop outside the pool's loop (or ForkedPool), before anything is touched."""
        self.check_fork()
        if not self.is_alive:
            return
        running = asyncio._get_running_loop()  # None outside of any, where the public function raises
        if running is not self.loop:
            raise messages.wrong_loop(self._shell.config, self.loop, running)

    def check_open(self) -> None:
        """Raise PoolClosed unless connections can be had (or WrongEventLoop, or ForkedPool)."""
        self.check_loop()
        if not self._shell.state.is_open:
            raise self.closed_error()

    def closed_error(self) -> BaseException:
        """Say in which way the pool is not open."""
        return messages.closed(self._shell.config, self.stage)

    def in_loop(self, act: Callable[[], None]) -> None:
        """Do it now in the pool's own thread, else have its loop do it: garbage is collected in any thread."""
        if self.thread == get_ident() or self.loop.is_closed():
            act()
        else:
            self.loop.call_soon_threadsafe(act)

    def mark_forked(self) -> None:
        """In the child of a fork: if the pool is open, it is the parent's."""
        self.forked = self.is_alive
        self._shell.state.shut()
        self.thread = 0

    # -- opening

    async def open(self, *, wait: bool) -> None:
        """Open, or join an opening that is under way. Of a cancelled one the joiner opens by itself."""
        while True:
            self.check_fork()
            loop = asyncio.get_running_loop()
            if self.is_alive and self.loop.is_closed():
                self.bury()
            self.check_loop()
            if self.stage == "open":
                return
            if self.stage == "closing":
                if not self._aborted:
                    raise self.closed_error()
                await self.close(0)  # what is left of an opening that failed or was cancelled
                continue
            if self.stage == "opening":
                assert self._opening is not None
                if not wait:
                    self._opening.wanted = True
                    return
                joined: asyncio.Future[Outcome] = loop.create_future()
                self._opening.futures.append(joined)
                outcome = await joined
                if outcome.how == "cancelled" or (outcome.how == "open" and not self._shell.state.is_open):
                    continue
                if outcome.error is not None:
                    raise outcome.error
                return
            await self._open(loop, wait=wait)
            return

    async def _open(self, loop: asyncio.AbstractEventLoop, *, wait: bool) -> None:
        shell = self._shell
        self.number += 1
        self.loop = loop
        self.thread = get_ident()
        # The pool's tasks see the context of open(), not that of whoever happened to be first to wait.
        self.context = contextvars.copy_context()
        self.final = self._aborted = False
        now = loop.time()
        shell.begin(now)
        self.stage = "opening" if wait else "open"
        opening = self._opening = Opening(now)
        if not wait:
            opening.ended = True
            shell.hooks.note(INFO, "open; its connections follow")
            shell.event(shell.state.open, now, starting=False)
            return
        opened: asyncio.Future[Outcome] = loop.create_future()
        opening.futures.append(opened)
        if (limit := shell.config.connection_timeout) is not None:
            opening.limit = Limit(lambda: self._open_timed_out(limit))
            shell.alarm.add(opening.limit, now, limit)
        shell.event(shell.state.open, now, starting=True)
        try:
            outcome = await opened
        except BaseException as cancelled:
            if not loop.is_closed() and self._opening is opening and self.stage in ("opening", "open"):
                if opening.wanted:
                    self.end_opening(Outcome("open"))
                    raise
                self.end_opening(Outcome("cancelled", cancelled))
                if self.stage == "open":
                    self._aborted = True
                    self._begin_close()
                self.finish_close()
            raise
        if outcome.error is not None:
            if outcome.how == "failed" and self._opening is opening:
                await self.close(1.0)  # a failed open leaves nothing behind, and its caller has waited long enough
            raise outcome.error

    def _open_timed_out(self, limit: float) -> None:
        shell = self._shell
        error = shell.state.last_error
        if error is None:
            error = messages.timed_out(shell.config, shell.gets.describe(None), limit, limit)
        self.end_opening(Outcome("failed", error))

    def end_opening(self, outcome: Outcome) -> None:
        """Wake all tasks that wait for open(). After a failure gets fail until the opener has cleaned up."""
        self._shell.state.starting = False
        if self.stage == "opening":
            self.stage = "open"
        if (opening := self._opening) is not None and not opening.ended:
            opening.end(outcome)
            if outcome.how == "open":
                took = self.loop.time() - opening.began
                numbers = messages.numbers(self._shell.state)
                self._shell.hooks.note(INFO, "open after %.3g s: %s", took, numbers, seconds=took)
            if outcome.how in ("failed", "cancelled"):  # a failed open leaves nothing behind
                self._aborted = True
                self._begin_close()

    # -- closing

    async def close(self, timeout: float) -> None:
        """Close, or join a closing that is under way; the earlier deadline holds."""
        if not self.is_alive:
            return
        if self.loop.is_closed():
            self.bury()
            return
        self.check_loop()
        loop = self.loop
        if self.stage != "closing":
            self._begin_close()
            if self.end_if_nothing_is_left():
                return
        deadline = loop.time() + timeout
        if not self.final and deadline < self._close_at:
            self._close_at = deadline
            self._limit_close(timeout, self.finish_close)
            self._shell.turn()
        closer: asyncio.Future[None] = loop.create_future()
        self._closers.append(closer)
        try:
            await closer
        except BaseException:
            if not loop.is_closed():
                self.finish_close()
            raise

    def _begin_close(self) -> None:
        shell = self._shell
        self.stage = "closing"
        self._close_at = inf
        self.end_opening(Outcome("closed", self.closed_error()))
        now = self._closing_since = self.loop.time()
        shell.hooks.note(INFO, "closing: %s", messages.numbers(shell.state))
        shell.state.close(now)
        for approval in shell.state.connects:
            call = shell.calls.under_way.get(approval)
            if call is None:  # it has just failed
                continue
            if self._aborted or approval.since >= now:
                call.end()
            else:  # it may be nearly there, and drivers complain of a connect that is cut in its first steps
                call.end_within(GRACE)
        shell.turn()

    def finish_close(self) -> None:
        """Terminate connections in use, cancel calls under way, abandon calls that do not end: the timeout is over."""
        if self.stage != "closing" or self.final:
            return
        shell = self._shell
        self.final = True
        shell.event(shell.state.terminate_all)
        for call in list(shell.calls.under_way.values()):
            call.end()
        if not self.end_if_nothing_is_left():
            self._limit_close(3 * GRACE, self._abandon_all)
        shell.turn()

    def _limit_close(self, seconds: float, act: Callable[[], None]) -> None:
        if self._limit is not None:
            self._limit.drop()
        self._limit = Limit(act)
        self._shell.alarm.add(self._limit, self.loop.time(), seconds)

    def _abandon_all(self) -> None:
        for call in list(self._shell.calls.under_way.values()):
            call.abandon()

    def end_if_nothing_is_left(self) -> bool:
        """Tell whether the closing is over, and end it if nothing is left."""
        state = self._shell.state
        if self.stage == "closing" and not (
            state.slots or state.closing or state.connects or self._shell.calls.under_way
        ):
            self._end_closing()
        return self.stage == "closed"

    def _end_closing(self) -> None:
        self.stage = "closed"
        took = self.loop.time() - self._closing_since
        self._shell.hooks.note(INFO, "closed after %.3g s", took, seconds=took)
        for watcher in self._shell.watchers:
            watcher.end()
        if self._limit is not None:
            self._limit.drop()
            self._limit = None
        closers, self._closers = self._closers, []
        for closer in closers:
            if not closer.done():
                closer.set_result(None)

    def bury(self) -> None:
        """End at once, without awaiting anything: the loop is closed, or nobody holds the pool any more."""
        if not self.is_alive:
            return
        if not self.loop.is_closed():
            if self.stage != "closing":
                self._begin_close()
            self.finish_close()
            return
        shell = self._shell
        self.stage = "closing"
        self.final = True
        shell.calls.under_way.clear()  # their tasks, and those of the waiters, died with the loop
        shell.state.bury()
        shell.turn()
        self._limit = None
        self._opening = None
        self._closers.clear()
        self.stage = "closed"
