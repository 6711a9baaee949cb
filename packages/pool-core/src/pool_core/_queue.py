"""Those who wait, in order, and the links between them and what is begun for them.

Who is served or gives up leaves his connect and his test to others (pgx #1259: a connect does not die with its waiter).
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
"""Dead waiters are swept when they outnumber the living, but not for fewer than this."""


class Queue(Generic[C]):
    """The gets that wait. The head is served first, whatever it was that was begun for it."""

    __slots__ = ("_connects", "_given", "_number", "_tests", "due", "left_at", "live", "tries", "waiters")

    def __init__(self, connects: Connects[C], tests: Trials[C]) -> None:
        self._connects = connects
        self._tests = tests
        self.waiters: deque[Waiter[C]] = deque()
        self.live = 0  # those that are still queued; the rest of the deque is dead
        self.tries = 0  # how many of them are a try_get
        self._given: list[tuple[float, int, Waiter[C]]] = []  # a heap of those with a time-out of their own
        self._number = 0
        self.forget_times()

    def forget_times(self) -> None:
        """Begin anew: nobody waits."""
        self._given.clear()
        self.due = inf  # not later than the first deadline of those with the default time-out
        self.left_at = -inf  # when somebody gave up last

    def set_time_limit(self, waiter: Waiter[C]) -> None:
        """Remember when its time is up: of those with the default time-out, which stand in order, the first one's."""
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
        """When the first one's time is up, or earlier."""
        return min(self.due, self._given[0][0]) if self._given else self.due

    def overdue(self, now: float) -> list[Waiter[C]]:
        """Say who has waited too long. They stay queued until they are dropped."""
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
        """Take one out of the count; the deque forgets the dead when they outnumber the living: O(1), amortised."""
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
        """One goes away. His connect counts for nobody else, and his test goes to who needs it."""
        if waiter.queued:
            self.drop(waiter)
            self.left_at = now
        self.orphan(waiter)

    def hand(self, slot: Slot[C], now: float, tested_for: Waiter[C] | None = None) -> bool:
        """Give the connection to the first one that is still there. The only place where waiters are served."""
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
            self.orphan(waiter)  # cancelled in this tick
        return False

    def _leave_to_others(self, waiter: Waiter[C]) -> None:
        """One was served otherwise: what was begun for it helps the next one."""
        approval, test = waiter.approval, waiter.test
        if approval is not None:
            approval.waiter = waiter.approval = None
        if test is not None:
            test.waiter = waiter.test = None
        self.pass_on()

    def pass_on(self) -> None:
        """Give connects and tests whose waiter was served otherwise to the first ones without."""
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
        """Return the first one for whom no connect is under way."""
        return next((w for w in self.waiters if w.queued and w.approval is None and not w.idle_only), None)

    def orphan(self, waiter: Waiter[C]) -> None:
        """What was begun for this one goes on, for the pool."""
        approval, test = waiter.approval, waiter.test
        if approval is not None:
            approval.waiter = waiter.approval = None
            approval.orphan = True
        if test is not None:
            test.waiter = waiter.test = None

    def turn_away(self) -> None:
        """End each try_get with None that has no idle connection left to hope for."""
        for waiter in list(islice(self.waiters, len(self.waiters) - self.live + self.tries)):  # they stand first
            if waiter.queued and waiter.idle_only and waiter.test is None:
                self.drop(waiter)
                waiter.offer(None)

    def forget_the_gone(self) -> None:
        """Drop those that are cancelled already, though they have not said so yet."""
        for waiter in list(self.waiters):
            if waiter.queued and waiter.gone():
                self.drop(waiter)
                self.orphan(waiter)

    def abandon(self) -> None:
        """Their loop is dead, and they died with it: nobody tells them anything."""
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
