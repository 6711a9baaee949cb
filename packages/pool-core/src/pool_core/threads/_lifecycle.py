"""From new to open to closed, and again; forks, and the end of the program.

::

    new --open()--> opening --min_idle is up--> open --close()--> closing --nothing is left--> closed --open()--> ...
                       |                                             ^
                       +------- failed, timed out, interrupted ------+

Each opening is an object of its own, so a thread that wakes late cannot end the next one.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
import weakref
from math import inf
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pool_core import _messages as messages
from pool_core._hooks import WARNING
from pool_core._messages import THREADS

from . import _primitives
from ._calls import GRACE
from ._workers import Watch

if TYPE_CHECKING:
    from ._shell import Shell

C = TypeVar("C")

CONNECT_GRACE = 0.5
"""Seconds that closing leaves to connection attempts under way: nothing can end them, and mostly they are nearly there."""
EXIT_TIMEOUT = 0.5
"""Seconds that the end of the program leaves to pools that were not closed."""


class Outcome:
    """How an opening ended: well, with an error of the manager's, interrupted, or because the pool closes."""

    __slots__ = ("error", "how")

    def __init__(
        self, how: Literal["open", "failed", "interrupted", "closed"], error: BaseException | None = None
    ) -> None:
        self.how = how
        self.error = error


class Opening:
    """One open() and all threads that wait for it."""

    __slots__ = ("gates", "outcome", "wanted")

    def __init__(self) -> None:
        self.gates: list[Any] = []
        self.outcome: Outcome | None = None
        self.wanted = False  # another thread opened it too, and did not wait: it does not end with its opener

    def join(self) -> Any:
        """Return a gate that opens when the opening has ended."""
        gate = _primitives.Gate()
        self.gates.append(gate)
        return gate

    def end(self, outcome: Outcome) -> None:
        """Wake up all who wait."""
        self.outcome = outcome
        for gate in self.gates:
            gate.open()


class Lifecycle(Generic[C]):
    """The life of one pool."""

    def __init__(self, shell: Shell[C]) -> None:
        self._shell = shell
        self.stage: Literal["new", "opening", "open", "closing", "closed"] = "new"
        self.number = 0  # of openings
        self.forked = False
        self.final = False  # closing, and out of time
        self._aborted = False  # closing, because open() failed or was interrupted
        self._opening: Opening | None = None
        self._closers: list[Any] = []

    @property
    def is_alive(self) -> bool:
        """Return whether it was opened and is not closed yet."""
        return self.stage not in ("new", "closed")

    def check_fork(self) -> None:
        """Raise ForkedPool in a child process: the parent owns the sockets."""
        if self.forked:
            raise messages.forked(self._shell.config)

    def check_open(self) -> None:
        """Raise PoolClosed unless connections can be had (or ForkedPool)."""
        self.check_fork()
        if not self._shell.state.is_open:
            raise self.closed_error()

    def closed_error(self) -> BaseException:
        """Say in which way the pool is not open."""
        return messages.closed(self._shell.config, self.stage, THREADS)

    # -- opening

    def open(self, *, wait: bool) -> None:
        """Open, or join an opening that is under way."""
        shell = self._shell
        while True:
            self.check_fork()
            watch = Watch(shell.config.name, shell.look)
            opening = shell.event(self._begin_open, wait, watch)
            if opening is None:
                return
            if isinstance(opening, str):  # what is left of an opening that failed or was interrupted
                self.close(0)
                continue
            mine = shell.watch is watch
            gate = opening.gates[0] if mine else shell.event(lambda _, opening=opening: self._join(opening))
            try:
                if mine:
                    watch.start()
                if not wait:
                    return
                outcome = self._wait_open(opening, gate, mine=mine)
            except BaseException as error:
                if mine:
                    shell.surely(self._interrupted, opening, Outcome("interrupted", error))
                    self.close(0.2)
                raise
            if outcome.how == "interrupted" or (outcome.how == "open" and not shell.state.is_open):
                continue
            if outcome.error is not None:
                if mine and outcome.how == "failed":
                    self.close(1.0)  # a failed open leaves nothing behind, and its caller has waited long enough
                raise outcome.error
            return

    def _begin_open(self, now: float, wait: bool, watch: Watch) -> Opening | str | None:
        """Begin an opening, or find the one to join. A text: the last one is still being cleaned up."""
        shell = self._shell
        if self.stage == "open":
            return None
        if self.stage == "closing":
            if self._aborted:
                return "aborted"
            raise self.closed_error()
        if self.stage == "opening":
            assert self._opening is not None
            if not wait:
                self._opening.wanted = True
                return None
            return self._opening
        self.number += 1
        self.final = self._aborted = False
        shell.watch = watch
        shell.calls.workers.stopping = False
        shell.begin(now)
        opening = self._opening = Opening()
        opening.join()
        self.stage = "opening" if wait else "open"
        if not wait:
            opening.outcome = Outcome("open")
        _alive.add(shell)
        shell.state.open(now, starting=wait)
        return opening

    def _join(self, opening: Opening) -> Any:
        gate = opening.join()
        if opening.outcome is not None:
            gate.open()
        return gate

    def _wait_open(self, opening: Opening, gate: Any, *, mine: bool) -> Outcome:
        shell = self._shell
        limit = shell.config.connection_timeout
        if not gate.wait(inf if limit is None or not mine else limit):
            assert limit is not None
            seen = shell.event(shell.gets.describe_opening)
            error = shell.state.last_error or messages.timed_out(shell.config, seen, limit, limit)
            shell.event(self._end_opening_of, opening, Outcome("failed", error))
        assert opening.outcome is not None
        return opening.outcome

    def _interrupted(self, now: float, opening: Opening, outcome: Outcome) -> None:
        """The opener got a KeyboardInterrupt, or could not start its thread."""
        if self._opening is not opening or self.stage not in ("opening", "open"):
            return
        if opening.wanted:
            self.end_opening(Outcome("open"))
            return
        self.end_opening(outcome)
        if self.stage == "open":
            self._aborted = True
            self.begin_close(now)

    def _end_opening_of(self, now: float, opening: Opening, outcome: Outcome) -> None:
        if opening.outcome is None:
            self.end_opening(outcome)

    def end_opening(self, outcome: Outcome) -> None:
        """Wake up all who wait for open(). Under the lock."""
        shell = self._shell
        shell.state.starting = False
        if self.stage == "opening":
            self.stage = "open"
        opening = self._opening
        if opening is not None and opening.outcome is None:
            opening.end(outcome)
            if outcome.how in ("failed", "interrupted"):
                self._aborted = True
                self.begin_close(_primitives.monotonic())

    def repair(self, now: float) -> None:
        """Go on with what an interrupt has cut off."""
        if self.stage == "opening" and not self._shell.state.starting:
            self.end_opening(Outcome("open"))
        if self.stage == "closing" and self._shell.state.is_open:
            self.begin_close(now)
        if self.stage == "closing" and self.final:
            self._finish(now)

    # -- closing

    def close(self, timeout: float) -> None:
        """Close, or join a closing that is under way; the earlier deadline holds."""
        self.check_fork()
        shell = self._shell
        began = _primitives.monotonic()
        gate = shell.event(self._begin_or_join_close)
        if gate is None:
            return
        try:
            if not gate.wait(timeout - (_primitives.monotonic() - began)):
                shell.event(self._finish)
                gate.wait(8 * GRACE)
        except BaseException:
            shell.surely(self._finish)
            raise
        self._end_threads()

    def _begin_or_join_close(self, now: float) -> Any:
        if not self.is_alive:
            return None
        if self.stage != "closing":
            self.begin_close(now)
        gate = _primitives.Gate()
        self._closers.append(gate)
        return gate

    def begin_close(self, now: float) -> None:
        """Refuse new gets, fail those that wait, close what is idle. Under the lock."""
        shell = self._shell
        self.stage = "closing"
        self.end_opening(Outcome("closed", self.closed_error()))
        shell.state.close(now)
        for approval in shell.state.connects:
            call = shell.calls.under_way.get(approval)
            if call is not None:  # else it has just failed
                shell.calls.end_soon(call, now + (GRACE if self._aborted else CONNECT_GRACE))

    def _finish(self, now: float) -> None:
        """Out of time: terminate what is in use, cut short what is under way, abandon what will not end."""
        shell = self._shell
        if self.stage != "closing":
            return
        self.final = True
        shell.state.terminate_all()
        for call in shell.calls.under_way.values():
            shell.calls.end_soon(call, now + GRACE)

    def bury(self, now: float) -> None:
        """The pool was garbage-collected while it was open. Under the lock of the watch."""
        if self.is_alive:
            if self.stage != "closing":
                self.begin_close(now)
            self._finish(now)

    def end_if_nothing_is_left(self) -> None:
        """End the closing if nothing is left. Under the lock."""
        shell = self._shell
        state = shell.state
        if self.stage != "closing" or state.slots or state.closing or state.connects or shell.calls.under_way:
            return
        self.stage = "closed"
        closers, self._closers = self._closers, []
        for gate in closers:
            gate.open()
        shell.calls.workers.stop()
        shell.watch.stop()
        _alive.discard(shell)

    def _end_threads(self) -> None:
        """Wait for the pool's threads, except those that were abandoned within a call."""
        shell = self._shell
        me = threading.current_thread()
        deadline = _primitives.monotonic() + 0.5
        workers = _primitives.read(shell.section, lambda: [w for w in shell.calls.workers.all if w.parked])
        for thread in (*(worker.thread for worker in workers), shell.watch.thread):
            if thread is not None and thread is not me:
                thread.join(max(0.0, deadline - _primitives.monotonic()))

    # -- forks

    def mark_forked(self) -> None:
        """In the child of a fork: an open pool is the parent's."""
        shell = self._shell
        self.forked = self.is_alive
        shell.section.lock = _Forked(self) if self.forked else _primitives.Section().lock
        shell.section.owner = None
        shell.state.shut()


class _Forked:
    """Stands for the lock in the child of a fork: the real one may be held by a thread that is not there."""

    def __init__(self, life: Lifecycle[Any]) -> None:
        self._life = life

    def __enter__(self) -> None:
        self._life.check_fork()

    def __exit__(self, *_: object) -> None:
        """Nothing was entered."""

    def _is_owned(self) -> bool:
        return False


_alive: weakref.WeakSet[Shell[Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for shell in list(_alive):
        shell.life.mark_forked()


def _at_exit() -> None:
    """Close what the program has left open. Its threads are daemons: they could not close anything later."""
    left = [shell for shell in list(_alive) if not shell.life.forked]
    for shell in left:
        try:
            shell.life.close(EXIT_TIMEOUT / len(left))
        except Exception as error:  # noqa: BLE001 - the other pools must be closed too
            shell.hooks.note(WARNING, "closing at the end of the program failed: %s", type(error).__name__)
            shell.hooks.tell()
    for shell in left:
        warnings.warn(
            f"{messages.label(shell.config)} was open at the end of the program: use 'with pool:', or 'pool.close()'",
            ResourceWarning,
            stacklevel=1,
        )


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
