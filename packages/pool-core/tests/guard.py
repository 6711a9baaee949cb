"""Check every pool after every callback of a virtual-time loop.

The pool's state decides, and its shell acts. The fault this looks for is a decision on which the shell never acts: an
approval without a connection attempt, or an alarm that rings too late. Such a fault can stay invisible for a long time,
so the guard looks between any two callbacks, where nothing may be half done.

The guard is on under Python 3.11 and off elsewhere, since it costs about as much time as the tests themselves.
``POOL_GUARD=on`` or ``POOL_GUARD=off`` overrides that. conftest.py fails the test that caused a finding.
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from math import inf
from typing import Any

from pool_core import Pool
from pool_core._slot import CHANGES, Approval, Slot
from pool_core.testing import VirtualTimeLoop

from .invariants import check_invariants

MODE = os.environ.get("POOL_GUARD") or ("on" if sys.version_info[:2] == (3, 11) else "off")
if MODE not in ("on", "off"):
    raise ValueError(f"POOL_GUARD={MODE!r}: expected 'on' or 'off'")

LARGE = 64
"""The invariants of a pool with more waiters and connections than this are skipped: checking them is O(n)."""

SUBJECTS = ("connects", "validating", "resetting", "closing")
"""Where the state keeps what the shell is working on. Each entry has a call of the manager under way."""


class Watch:
    """One pool under guard."""

    def __init__(self, shell: Any) -> None:
        self.shell = weakref.ref(shell)
        self.seen: Any = None  # the fingerprint at the last check
        self.found: set[str] = set()  # each problem is reported once a pool

    def look(self) -> bool:
        """Check the pool if it has changed. False: the pool is gone."""
        shell = self.shell()
        if shell is None:
            return False
        if isinstance(shell.life.loop, VirtualTimeLoop) and (now := fingerprint(shell)) != self.seen:
            self.seen = now
            for problem in problems(shell):
                if problem not in self.found:
                    self.found.add(problem)
                    findings.append(f"pool {shell.config.name!r} at {shell.now():g} s: {problem}")
        return True


watched: list[Watch] = []
findings: list[str] = []


def problems(shell: Any) -> list[str]:
    """List what is wrong with a pool between two callbacks."""
    life = shell.life
    if life.forked or life.stage == "new" or life.loop.is_closed():
        return []
    state, calls = shell.state, shell.calls.under_way
    found = []
    if state.work:
        found.append(f"work of the state is left over: {', '.join(order.value for order, _ in state.work)}")
    if life.stage == "closed":
        found += [f"a closed pool has {name} left" for name in ("slots", *SUBJECTS) if getattr(state, name)]
        return found
    known: set[Any] = set()
    for name in SUBJECTS:
        subjects = getattr(state, name)
        known.update(subjects)
        if idle := sum(subject not in calls for subject in subjects):
            found.append(f"{idle} of {len(subjects)} {name} without a call under way")
    for key, call in calls.items():
        if call._done is None:
            found.append("a call that has ended is still in the table of calls")
        # A connection that never joined the pool is closed under the id 0.
        if isinstance(key, (Approval, Slot)) and key not in known and getattr(key, "id", None) != 0:
            found.append(f"a call for an object of class {type(key).__name__} that the state does not know")
    found += _late_alarm(shell)
    if len(state.queue.waiters) + len(state.slots) <= LARGE:
        try:
            check_invariants(state)
        except AssertionError as error:
            found.append(f"invariant: {error}")
    return found


def _late_alarm(shell: Any) -> list[str]:
    """Compare the alarm with what it must not miss."""
    state, alarm = shell.state, shell.alarm
    found = []
    deadline = min((next(iter(lane.values())) for lane in alarm._lanes.values() if lane), default=inf)
    if alarm.at > deadline:
        found.append(f"the alarm rings at {alarm.at:g} s, after the deadline of a call at {deadline:g} s")
    if state.is_open and alarm.at > state.wake_at():
        found.append(f"the alarm rings at {alarm.at:g} s, and the state must be woken at {state.wake_at():g} s")
    return found


COUNTED = ("slots", "fresh", *SUBJECTS)
NUMBERS = ("is_open", "tick", "slow", "floor", "min_idle", "max_size")
COUNTERS = ("waiting", "created", "added", "connects_failed", "uses_gone")
GETS = ("gets_waited", "gets_timed_out", "gets_cancelled", "gets_failed")


def fingerprint(shell: Any) -> Any:
    """Sum a pool up in a tuple that differs after each event: checking all of it each time would take too long."""
    state, calls = shell.state, shell.calls.under_way
    queue, connects, agenda = state.queue, state.connects, state.agenda
    return (
        shell.life.stage,
        len(state.work),
        len(calls),
        id(next(reversed(calls.values()))) if calls else 0,
        shell.alarm.at,
        [len(getattr(state, name)) for name in COUNTED],
        [getattr(state, name) for name in NUMBERS],
        [getattr(state.counters, name) for name in (*COUNTERS, *GETS)],
        (len(state.idle.stale), len(queue.waiters), queue.live, queue.due),
        (connects.failures, connects.retry_at, agenda.due, agenda.next_expiry),
    )


class CheckedChanges:
    """A descriptor that replaces ``Slot.state`` and reports each change that is not in the state's table."""

    def __init__(self, inner: Any, changes: dict[str, set[str]]) -> None:
        self.inner = inner
        self.changes = changes

    def __get__(self, slot: Any, owner: Any = None) -> Any:
        return self if slot is None else self.inner.__get__(slot, owner)

    def __set__(self, slot: Any, after: str) -> None:
        try:
            before = self.inner.__get__(slot)
        except AttributeError:  # the connection's first state
            before = None
        if before is not None and after not in self.changes[before]:
            caller = sys._getframe(1)
            where = f"{os.path.basename(caller.f_code.co_filename)}:{caller.f_lineno}"
            findings.append(f"a connection changes from {before} to {after} at {where}")
        self.inner.__set__(slot, after)


def look() -> None:
    """Check every pool made since ``start``."""
    watched[:] = [watch for watch in watched if watch.look()]


def start() -> None:
    """Forget the pools and findings of the test before."""
    watched.clear()
    findings.clear()


def report() -> str | None:
    """Take the findings out, as text; None if there are none."""
    found = [*findings]
    findings.clear()
    if not found:
        return None
    more = f"\n... and {len(found) - 5} more" if len(found) > 5 else ""
    return "the guard found:\n" + "\n".join(found[:5]) + more


def install() -> None:
    """Watch every pool made from now on."""
    slot: Any = Slot
    slot.state = CheckedChanges(slot.state, CHANGES)
    pool: Any = Pool
    handle: Any = asyncio.Handle
    init, run = pool.__init__, handle._run

    def init_watched(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        watched.append(Watch(self._shell))

    def run_and_look(self: Any) -> None:
        try:
            run(self)
        finally:
            if watched and isinstance(self._loop, VirtualTimeLoop):
                look()

    pool.__init__ = init_watched
    handle._run = run_and_look
