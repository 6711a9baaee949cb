"""The waiters in order, and the links between them and the attempts and validations begun for them.

A waiter that is served or gives up leaves its attempt and validation to others (pgx #1259: a connection attempt does not
end with its waiter).
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

from ._slot import LENT

if TYPE_CHECKING:
    from ._slot import Slot, Waiter
    from ._supply import Connects, Trials

C = TypeVar("C")

SWEEP_LEAST = 32
"""Waiters that left are removed when they outnumber the others by more than this."""


class Queue(Generic[C]):
    """The gets that wait. The head is served first, whatever was begun for it."""

    __slots__ = ("_connects", "_given", "_number", "_tests", "due", "left_at", "live", "tries", "waiters")

    def __init__(self, connects: Connects[C], tests: Trials[C]) -> None:
        self._connects = connects
        self._tests = tests
        self.waiters: deque[Waiter[C]] = deque()
        self.live = 0  # how many are still queued; the others in the deque have left
        self.tries = 0  # how many of them are a try_get
        self._given: list[tuple[float, int, Waiter[C]]] = []  # a heap of those with a timeout of their own
        self._number = 0
        self.forget_times()

    def forget_times(self) -> None:
        """Start again: no get waits."""
        self._given.clear()
        self.due = inf  # at most the first deadline of those with the default timeout
        self.left_at = -inf  # when a waiter gave up last

    def set_time_limit(self, waiter: Waiter[C]) -> None:
        """Remember its deadline. Those with the default timeout are in order, so the first one's is enough."""
        if waiter.patient:
            self.due = waiter.deadline
        elif waiter.deadline != inf:
            given = self._given
            self._number += 1
            heappush(given, (waiter.deadline, self._number, waiter))
            if len(given) > 2 * self.live + SWEEP_LEAST:
                given[:] = [entry for entry in given if entry[2].queued]
                heapify(given)

    def next_deadline(self) -> float:
        """Return the earliest deadline, or an earlier time."""
        return min(self.due, self._given[0][0]) if self._given else self.due

    def overdue(self, now: float) -> list[Waiter[C]]:
        """Return the waiters whose deadline has passed. They stay queued until they are dropped."""
        late: list[Waiter[C]] = []
        if self.due <= now:
            self.due = inf
            for waiter in self.waiters:
                if waiter.queued and waiter.patient:
                    if waiter.deadline > now:
                        self.due = waiter.deadline
                        break
                    late.append(waiter)
        given = self._given
        while given and given[0][0] <= now:
            waiter = heappop(given)[2]
            if waiter.queued:
                late.append(waiter)
        return late

    def drop(self, waiter: Waiter[C]) -> None:
        """Remove one from the count. The deque removes those that left when they are the majority: amortised O(1)."""
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

    def give_up(self, waiter: Waiter[C], now: float) -> None:
        """Drop one that gave up. Its attempt is no supply for others; its validation is."""
        if waiter.queued:
            self.drop(waiter)
            self.left_at = now
        self.orphan(waiter)

    def hand(self, slot: Slot[C], now: float, tested_for: Waiter[C] | None = None) -> bool:
        """Hand the connection off to the first waiter that is still there. The only place where waiters are served."""
        waiters = self.waiters
        while waiters:
            waiter = waiters.popleft()
            if not waiter.queued:
                continue
            waiter.queued = False
            self.live -= 1
            if waiter.idle_only:
                self.tries -= 1
            waiter.direct = waiter is tested_for
            slot.holder = waiter.task
            slot.state = LENT
            slot.stamp = now
            if waiter.offer(slot):
                if waiter.approval is not None or waiter.test is not None:
                    self._leave_to_others(waiter)
                return True
            self.orphan(waiter)  # cancelled in this turn of the loop
        return False

    def _leave_to_others(self, waiter: Waiter[C]) -> None:
        """Give what was begun for one that was served otherwise to the next one."""
        approval, test = waiter.approval, waiter.test
        if approval is not None:
            approval.waiter = waiter.approval = None
        if test is not None:
            test.waiter = waiter.test = None
        self.pass_on()

    def pass_on(self) -> None:
        """Link attempts and validations whose waiter was served otherwise to the first waiters without one."""
        for approval in self._connects:
            if approval.waiter is None and not (approval.orphan or approval.late):
                waiter = self.first_without_approval()
                if waiter is None:
                    break
                approval.waiter, waiter.approval = waiter, approval
        for test in self._tests.values():
            if test.waiter is None:
                waiter = next((w for w in self.waiters if w.queued and w.test is None), None)
                if waiter is None:
                    break
                test.waiter, waiter.test = waiter, test

    def first_without_approval(self) -> Waiter[C] | None:
        """Return the first waiter without a connection attempt."""
        return next((w for w in self.waiters if w.queued and w.approval is None and not w.idle_only), None)

    def orphan(self, waiter: Waiter[C]) -> None:
        """Unlink what was begun for this one: it goes on, for the pool."""
        approval, test = waiter.approval, waiter.test
        if approval is not None:
            approval.waiter = waiter.approval = None
            approval.orphan = True
        if test is not None:
            test.waiter = waiter.test = None

    def turn_away(self) -> None:
        """End each try_get with None that no idle connection can serve."""
        for waiter in list(islice(self.waiters, len(self.waiters) - self.live + self.tries)):  # they are first
            if waiter.queued and waiter.idle_only and waiter.test is None:
                self.drop(waiter)
                waiter.offer(None)

    def forget_the_gone(self) -> None:
        """Drop those that are cancelled already but have not run since."""
        for waiter in list(self.waiters):
            if waiter.queued and waiter.gone():
                self.drop(waiter)
                self.orphan(waiter)

    def abandon(self) -> None:
        """Forget them: their event loop is closed."""
        for waiter in self.waiters:
            waiter.queued = False

    def fail_head(self, error: BaseException) -> None:
        """Fail the first one."""
        for waiter in self.waiters:
            if waiter.queued and not waiter.idle_only:
                self.drop(waiter)
                self.orphan(waiter)
                waiter.fail(error)
                return

    def fail_all(self, error: BaseException | None) -> None:
        """Fail all of them; None: the pool is closing."""
        waiters = [waiter for waiter in self.waiters if waiter.queued]
        self.waiters.clear()
        self.live = self.tries = 0
        for waiter in waiters:
            waiter.queued = False
            self.orphan(waiter)
            waiter.fail(error)
