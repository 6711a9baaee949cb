"""One call of the manager with a timeout, and the one timer of a pool.

The timer is only moved to an earlier time. When it fires too early, it sets itself again. So an event costs one
comparison, and a busy pool sets no timer at all.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Coroutine

GRACE = 0.1
"""Seconds between the steps that end a call after its timeout: cancel, cancel again, terminate, abandon."""


class Clock:
    """The one timer of a pool, and the deadlines of its calls.

    There is one queue of deadlines for each timeout: adding and removing cost O(1) and leave nothing behind.
    """

    __slots__ = ("_context", "_fire", "_handle", "_lanes", "_loop", "at")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fire: Callable[[float], None], context: contextvars.Context
    ) -> None:
        self._loop = loop
        self._fire = fire
        self._context = context
        self._handle: asyncio.TimerHandle | None = None
        self._lanes: dict[float, dict[Any, float]] = {}
        self.at = inf  # kept beside the handle: uvloop's have no when() if they are due at once

    def set(self, when: float) -> None:
        """Fire at this time; inf: never."""
        if self._handle is not None:
            self._handle.cancel()
        self.at = when
        self._handle = None if when == inf else self._loop.call_at(when, self._ring, context=self._context)

    def _ring(self) -> None:
        # asyncio may fire a timer early, by the resolution of its clock.
        now = max(self._loop.time(), self.at)
        self._handle = None
        self.at = inf
        self._fire(now)

    def add(self, what: Any, now: float, seconds: float) -> None:
        """Call ``what.overdue(now)`` after this many seconds, unless it is removed."""
        lane = self._lanes.get(seconds)
        if lane is None:
            lane = self._lanes[seconds] = {}
        what.lane = lane
        when = lane[what] = now + seconds
        if when < self.at:
            self.set(when)

    def pop(self, now: float) -> list[Any]:
        """Remove and return what is due."""
        found = []
        for lane in self._lanes.values():
            while lane:
                first = next(iter(lane))
                if lane[first] > now:
                    break
                del lane[first]
                found.append(first)
        return found

    def next(self) -> float:
        """Return the earliest deadline."""
        empty = [seconds for seconds, lane in self._lanes.items() if not lane]
        for seconds in empty:
            del self._lanes[seconds]
        return min((lane[next(iter(lane))] for lane in self._lanes.values()), default=inf)


class Limit:
    """A deadline without a call."""

    __slots__ = ("_act", "lane")

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self.lane: dict[Any, float] = {}

    def overdue(self, now: float) -> None:
        """Time is up."""
        self._act()

    def drop(self) -> None:
        """Remove the deadline."""
        self.lane.pop(self, None)


class Call:
    """One call of a manager's method in a task of the pool, which ends at its timeout whatever the driver does.

    One cancel is not enough on 3.11: ``wait_for`` in a driver can lose it (cpython #86296).
    ``done(key, call, error, result)`` is called exactly once: when the task ends, or when it is abandoned. A result that
    an abandoned task still returns goes to ``spill``.
    """

    __slots__ = (
        "_clock", "_done", "_loop", "_rescue", "_spill", "_steps", "abandoned", "cut_off", "ended", "key", "lane", "task", "verb",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        coro: Coroutine[Any, Any, Any],
        *,
        key: Any,
        verb: str,
        name: str,
        context: contextvars.Context,
        timeout: float | None,
        done: Callable[[Call, BaseException | None, Any], None],
        rescue: Callable[[Any], object] | None = None,
        spill: Callable[[Any], None] | None = None,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self.key = key
        self.verb = verb
        self._done: Callable[[Call, BaseException | None, Any], None] | None = done
        self._rescue = rescue
        self._spill = spill
        self._steps = 0
        self.ended = False  # from outside: at its deadline, or because the pool closes
        self.abandoned = False
        self.cut_off = False  # cancelled by others, as asyncio.run does with all tasks when it ends
        self.lane: dict[Any, float] = {}
        if timeout is not None:
            clock.add(self, loop.time(), timeout)
        try:
            self.task: asyncio.Future[Any] = loop.create_task(coro, name=name, context=context.copy())
        except (KeyboardInterrupt, SystemExit) as error:  # from the first step of an eager task
            self.task = loop.create_future()
            self.task.set_exception(error)
            loop.call_soon(_raise, error)
        # A task that is cancelled before its first step runs no `finally`; a done callback is always called.
        self.task.add_done_callback(self._finished, context=context)

    def overdue(self, now: float) -> None:
        """Its time is up."""
        self.end()

    def end(self) -> None:
        """End the call, at its timeout or when its result is not needed: cancel, cancel again, terminate, abandon."""
        self.ended = True
        self._steps += 1
        if self._steps <= 2:
            self.task.cancel()
        elif self._steps == 3 and self._rescue is not None:
            self._rescue(self.key)
        else:
            self.abandon()
            return
        self.end_within(GRACE)

    def end_within(self, seconds: float) -> None:
        """Move its deadline to this many seconds from now."""
        self.lane.pop(self, None)
        self._clock.add(self, self._loop.time(), seconds)

    def abandon(self) -> None:
        """Stop waiting for it."""
        self.task.cancel()
        self.ended = self.abandoned = True
        self._finish(TimeoutError("it did not end when it was cancelled"), None)

    def _finished(self, task: asyncio.Future[Any]) -> None:
        # A method may raise CancelledError by itself: only a cancelled task counts as cancelled.
        self.cut_off = task.cancelled() and not self.ended and isinstance(task, asyncio.Task) and task.cancelling() > 0
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        result = None if error is not None else task.result()
        if self._done is None and error is None and self._spill is not None:
            self._spill(result)
        self._finish(error, result)

    def _finish(self, error: BaseException | None, result: Any) -> None:
        self.lane.pop(self, None)
        if (done := self._done) is not None:
            self._done = self._rescue = None
            done(self, error, result)


def _raise(error: BaseException) -> None:
    raise error
