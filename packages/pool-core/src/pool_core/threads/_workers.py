"""The pool's own threads: workers for the slow methods, as many as are needed, and one that watches the time.

A queue of workers with a fixed size would not do: connection attempts that hang would keep all of them, and no connection
could be reset any more.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any

from . import _primitives

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from ._primitives import Section

KEPT = 3
"""Idle workers that stay (r2d2 has three)."""
LINGER = 5.0
"""Seconds after which an idle worker beyond these ends."""


class Call:
    """One call of the manager.

    ``body`` runs in a worker, without the lock. ``done(now, call, error, result)`` runs under the lock, exactly once: when
    the body has ended, or when the call is abandoned.
    """

    __slots__ = (
        "abandoned", "body", "deadline", "done", "ended", "given", "key", "over", "steps", "transient", "verb",
    )  # fmt: skip

    def __init__(
        self,
        key: Any,
        verb: str,
        body: Callable[[Call], Any],
        done: Callable[[float, Call, BaseException | None, Any], None],
        deadline: float,
    ) -> None:
        self.key = key
        self.verb = verb
        self.body = body
        self.done = done
        self.deadline = deadline
        self.steps = 0
        self.given = False  # a thread has it, or will take it
        self.ended = False  # from outside: at its deadline, or because the result is not wanted any more
        self.abandoned = False
        self.over = False  # `done` was called, or will be called by the thread that abandons it
        self.transient = True  # a failed attempt to connect: it may succeed later

    def run(self) -> tuple[BaseException | None, Any]:
        """Run the body. Whatever a driver raises is a result, SystemExit too."""
        try:
            return None, self.body(self)
        except BaseException as error:  # noqa: BLE001
            return error, None


class Worker:
    """One thread, and the call that it runs next."""

    __slots__ = ("call", "gate", "parked", "thread")

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread
        self.call: Call | None = None
        self.gate = _primitives.Gate()
        self.parked = False  # it waits for a call


class Workers:
    """Gives calls to threads. All but ``grow`` and ``wait_for`` runs under the lock."""

    def __init__(self, name: str, section: Section, next_call: Callable[[Worker, Call | None, Any], None]) -> None:
        self._name = name
        self._section = section
        self._next_call = next_call
        self.queue: deque[Call] = deque()
        self.idle: list[Worker] = []
        self.all: dict[Worker, None] = {}
        self.wanted = 0  # threads to start when the lock is released
        self.stopping = False

    def give(self, call: Call) -> None:
        """Have a call run."""
        if self.idle:
            worker = self.idle.pop()
            worker.call = call
            call.given = True
            worker.gate.open()
        else:
            self.queue.append(call)
            call.given = True
            self.wanted += 1

    def grow(self) -> None:
        """Start the threads that are needed. Not under the lock: a start takes 50 us or more.

        Each finds its call by itself, so an interrupt here costs a thread too many, and no call.
        """
        while self.wanted > 0:
            try:
                _primitives.start_thread(self._work, f"{self._name}: worker")
            except RuntimeError:  # no more threads: the next idle worker takes the call, or it times out
                self.wanted = 0
                return
            with self._section.lock:
                self.wanted = max(0, self.wanted - 1)  # two threads may have started one for the same call

    def _work(self) -> None:
        """Run calls until there is nothing to do: the body of a worker's thread."""
        worker = Worker(_primitives.current_thread())
        ended: Call | None = None
        outcome: Any = None
        while True:
            self._next_call(worker, ended, outcome)
            ended, outcome = worker.call, None
            if ended is not None:
                worker.call = None
                outcome = ended.run()
            elif not worker.parked or (
                not worker.gate.wait(inf if len(self.idle) <= KEPT else LINGER) and self._retire(worker)
            ):
                return

    def _retire(self, worker: Worker) -> bool:
        with self._section.lock:
            if worker.call is None and worker in self.idle and len(self.idle) > KEPT:
                self.idle.remove(worker)
                self.all.pop(worker, None)
                return True
        return False

    def next(self, worker: Worker) -> None:
        """Take the next call, or wait for one (``parked``), or end (neither)."""
        if worker.parked and worker in self.idle:
            self.idle.remove(worker)
        worker.parked = False
        self.all[worker] = None
        if worker.call is not None:
            return
        if self.queue:
            worker.call = self.queue.popleft()
        elif self.stopping:
            self.all.pop(worker, None)
        else:
            worker.parked = True
            self.idle.append(worker)

    def repair(self) -> None:
        """Make this right again after an interrupt in the middle of ``give``."""
        self.idle[:] = [worker for worker in self.all if worker.parked and worker.call is None]
        for worker in self.all:
            if worker.parked and worker.call is not None:
                worker.gate.open()
        self.wanted = max(self.wanted, len(self.queue))

    def stop(self) -> None:
        """End the idle workers now, and the others when they have ended their call."""
        self.stopping = True
        for worker in self.idle:
            worker.gate.open()


class Watch:
    """The thread that calls ``look()``, which returns when it wants to be called next."""

    def __init__(self, name: str, look: Callable[[], None]) -> None:
        self._name = name
        self._look = look
        self.gate = _primitives.Gate()
        self.at = -inf  # when it looks next, at the latest
        self.stopping = False
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self.thread = _primitives.start_thread(self._run, f"{self._name}: watch")

    def _run(self) -> None:
        while not self.stopping:
            self._look()
            if self.stopping:
                return
            self.gate.wait(self.at - _primitives.monotonic())

    def by(self, when: float) -> None:
        """Look not later than this."""
        if when < self.at:
            self.at = when
            self.gate.open()

    def stop(self) -> None:
        """End the thread."""
        self.stopping = True
        self.gate.open()
