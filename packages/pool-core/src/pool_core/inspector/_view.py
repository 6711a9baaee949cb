"""What the page shows of one pool: a document of plain values, and the samples that its charts need.

A pool that is looked at is not slowed down: what is shown is read when it is asked for, errors come by the same way as
to the log, and once a second a few numbers are kept.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pool_core._hooks import text
from pool_core._look import copied, longest_lease, oldest_wait, waiters
from pool_core._messages import phase_of
from pool_core._slot import LENT
from pool_core._statistics import State, Statistics

if TYPE_CHECKING:
    import asyncio

    from pool_core._shell import Shell
    from pool_core._slot import Slot, Waiter

STEP = 1.0
"""Seconds between two samples."""
SAMPLES = 300
EVENTS = 50
MOST_CONNECTIONS = 1000
"""That many are shown; beyond them only the numbers."""
MOST_WAITERS = 50
BUSY = 1.0
"""Seconds that the first in the queue may wait before the page says that the pool is busy."""

_NUMBERS = re.compile(r"[\d.]+(e[+-]\d+)?")
_OPTIONS = (
    "max_size",
    "min_idle",
    "connection_timeout",
    "max_lifetime",
    "idle_timeout",
    "max_waiting",
    "leak_threshold",
)
_STATES = ("idle", "in_use", "opening", "validating", "resetting", "closing", "waiting")
_CHARTS = ("in_use", "open", "waiting", "oldest_wait", "failures")


class View:
    """One pool, as the page shows it."""

    def __init__(self, shell: Shell[Any]) -> None:
        self.name = shell.config.name
        self._shell = shell  # not the Pool: one that is dropped must be noticed
        self._samples: deque[tuple[float, ...]] = deque(maxlen=SAMPLES)
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        shell.hooks.taps += (self._heard,)
        shell.watchers += (self,)
        if shell.life.is_alive and not shell.life.forked:
            shell.life.in_loop(self.begin)

    def leave(self) -> None:
        """Nobody can look any more. May be called in any thread, so the last timer is left to run out."""
        hooks, shell = self._shell.hooks, self._shell
        hooks.taps = tuple(tap for tap in hooks.taps if tap != self._heard)
        shell.watchers = tuple(watcher for watcher in shell.watchers if watcher is not self)

    # -- history

    def begin(self) -> None:
        """The pool opens."""
        self.end()
        self._failures = self._count_failures()
        self._keep_sample()

    def end(self) -> None:
        """The pool is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _keep_sample(self) -> None:
        shell = self._shell
        if shell.life.forked or self not in shell.watchers:
            return
        failures = self._count_failures()
        now = shell.state.snapshot()
        opened = now.idle + now.in_use + now.validating + now.resetting + now.closing
        waited = oldest_wait(shell.state, shell.now())
        self._samples.append((now.in_use, opened, now.waiting, round(waited, 3), failures - self._failures))
        self._failures = failures
        self._timer = shell.life.loop.call_later(STEP, self._keep_sample)

    def _count_failures(self) -> int:
        """All that went wrong for a borrower or with connecting."""
        counters = self._shell.state.counters
        return counters.connects_failed + counters.gets_timed_out + counters.gets_failed

    def _heard(self, level: int, message: str) -> None:
        if level < logging.INFO:
            return
        line = message.partition("\n")[0]  # a leak brings its stack with it, which is shown beside its connection
        times = 1
        # A hundred connections that break at once are one thing to a person.
        if self._events and _NUMBERS.sub("", line) == _NUMBERS.sub("", str(self._events[-1]["text"])):
            times += self._events.pop()["times"]
        name = logging.getLevelName(level).lower()
        self._events.append({"at": time.time(), "level": name, "text": line, "times": times})

    # -- the document

    def document(self) -> dict[str, Any]:
        """Everything about the pool, as plain values. May be called from any thread.

        Raises:
            ForkedPool: it was opened before a fork.
        """
        shell, life = self._shell, self._shell.life
        life.check_fork()
        state, numbers = shell.state, shell.state.snapshot()
        now = 0.0 if life.stage == "new" else shell.now()
        connections = [self._connection(slot, now) for slot in (*copied(state.slots), *copied(state.closing))]
        queue = waiters(state)
        samples = copied(self._samples)
        document: dict[str, Any] = {
            "name": self.name,
            "manager": type(shell.calls.manager).__name__,
            "stage": life.stage,
            "options": {name: _finite(getattr(shell.config, name)) for name in _OPTIONS},
            "state": {name: getattr(numbers, name) for name in _STATES},
            "statistics": _statistics(numbers.statistics),
            "connecting_fails": self._outage(),
            "oldest_wait": oldest_wait(state, now),
            "longest_lease": longest_lease(state, now),
            "connections": connections[:MOST_CONNECTIONS],
            "waiters": [self._waiter(waiter, now) for waiter in queue[:MOST_WAITERS]],
            "events": list(reversed(copied(self._events))),
            "history": {name: [sample[at] for sample in samples] for at, name in enumerate(_CHARTS)},
        }
        document["verdict"] = dict(zip(("level", "text"), _verdict(document, numbers), strict=True))
        return document

    def _outage(self) -> dict[str, object] | None:
        failures, error = self._shell.outage, self._shell.state.last_error
        if not failures:
            return None
        return {"attempts": failures, "error": "" if error is None else text(error).partition("\n")[0]}

    def _connection(self, slot: Slot[Any], now: float) -> dict[str, object]:
        task = slot.holder
        lent = slot.state == LENT
        return {
            "id": slot.id,
            "state": "in_use" if lent else slot.state,
            "age": max(0.0, now - slot.born),
            "since": max(0.0, now - slot.stamp),
            "uses": slot.uses,
            "task": task.get_name() if lent and task is not None else None,
            "lost": bool(lent and task is not None and task.done()),
            "stack": slot.stack if lent else None,
            "leaves": None if slot.mark is None else slot.mark.value,
        }

    def _waiter(self, waiter: Waiter[Any], now: float) -> dict[str, object]:
        return {
            "task": waiter.task.get_name() if waiter.task is not None else None,
            "waited": max(0.0, now - waiter.started),
            "left": _finite(waiter.deadline - now),
            "for": phase_of(self._shell.state, waiter),
        }


def _finite(number: Any) -> Any:
    """JSON has no infinity."""
    return None if number in (float("inf"), None) else number


def _statistics(statistics: Statistics) -> dict[str, object]:
    numbers = {each.name: getattr(statistics, each.name) for each in fields(statistics)}
    closed = {reason.value: count for reason, count in statistics.connections_closed.items()}
    return {**numbers, "connections_closed": closed}


def _verdict(document: dict[str, Any], now: State) -> tuple[str, str]:
    """Say in one sentence how the pool is, the worst first: "off", "trouble", "busy" or "well"."""
    stage: str = document["stage"]
    if stage != "open":
        return "off", {"new": "Not opened yet"}.get(stage, stage.capitalize())
    if (outage := document["connecting_fails"]) is not None:
        attempts = outage["attempts"]
        return (
            "trouble",
            f"Connecting fails, {attempts} {'time' if attempts == 1 else 'times'} in a row: {outage['error']}",
        )
    if lost := [each for each in document["connections"] if each["lost"]]:
        return "trouble", f"{_connections(len(lost))} held by a task that has ended: is a release missing?"
    threshold = document["options"]["leak_threshold"]
    held = [each for each in document["connections"] if each["state"] == "in_use"]
    if threshold and (leaked := [each for each in held if each["since"] > threshold]):
        return "trouble", f"{_connections(len(leaked))} held for longer than leak_threshold ({threshold:g} s)"
    use = f"{now.in_use} of {document['options']['max_size']} connections are in use"
    if now.waiting:
        gets = "1 get waits" if now.waiting == 1 else f"{now.waiting} gets wait, the first"
        level = "busy" if document["oldest_wait"] >= BUSY else "well"
        return level, f"{gets} for {document['oldest_wait']:.1f} s; {use}"
    return "well", f"No get waits; {use}"


def _connections(count: int) -> str:
    return "1 connection is" if count == 1 else f"{count} connections are"
