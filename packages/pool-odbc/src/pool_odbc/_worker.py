"""One daemon thread for each connection: ODBC calls block, and the calls of one connection come one after the other."""

from __future__ import annotations

import asyncio
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Job", "Worker"]

T = TypeVar("T")


class Job(Generic[T]):
    """One call in the thread. Its outcome goes to the event loop that asked, if that still exists."""

    __slots__ = ("_function", "_outcome", "finished", "future", "owner", "started")

    def __init__(self, function: Callable[[], T], future: asyncio.Future[T], owner: object = None) -> None:
        self._function: Callable[[], T] | None = function
        self._outcome: tuple[Any, BaseException | None] = (None, None)
        self.future = future
        self.owner = owner
        self.started = False
        self.finished = False

    def run(self) -> None:
        """Make the call, unless its caller was cancelled before the thread came to it."""
        # `started` is written before `cancelled` is read, and the loop reads it after the cancel: a cancelled job that
        # looks unstarted to the loop is never begun.
        self.started = True
        function, self._function = self._function, None
        assert function is not None, "bug: a job was run twice"
        if not self.future.cancelled():
            try:
                self._outcome = (function(), None)
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                self._outcome = (None, error)

    def deliver(self) -> None:
        """Tell the caller what came of it. From any thread."""
        outcome, self._outcome = self._outcome, (None, None)
        self._tell(*outcome)

    def fail(self, error: BaseException) -> None:
        """Tell the caller that nothing will come of it. From any thread."""
        self._tell(None, error)

    def _tell(self, result: Any, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            self.future.get_loop().call_soon_threadsafe(self._set, result, error)

    def _set(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Worker:
    """A thread, its queue, and the cancel request for what it does."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job[Any] | _Orphan] = queue.SimpleQueue()
        self._open: set[Job[Any]] = set()
        self._lock = threading.Lock()
        self._canceller: threading.Thread | None = None
        self._ended = False
        self.current: Job[Any] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def in_use(self) -> bool:
        """Whether somebody waits for a call that is queued or under way."""
        return any(not job.future.done() for job in list(self._open))

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    @property
    def ended(self) -> bool:
        """Whether nothing more is taken."""
        return self._ended

    def submit(self, function: Callable[[], T], owner: object = None) -> Job[T]:
        """Queue a call; its outcome comes to the running loop. `owner` is what a cancel request goes to."""
        job = Job(function, asyncio.get_running_loop().create_future(), owner)
        self._open.add(job)
        self._jobs.put(job)
        return job

    def forget(self, function: Callable[[], object]) -> None:
        """Queue a call that nobody waits for. Needs no loop."""
        self._jobs.put(_Orphan(function))

    def cancel(self, job: Job[Any], cancel: Callable[[], object]) -> bool:
        """Call `cancel` in a thread of its own while the job runs. False: the job has ended, or will never begin.

        The worker takes no further job until `cancel` has returned, so that it cannot hit a later one.
        """
        with self._lock:
            if job.finished or not job.started:
                return False
            if self._canceller is None:
                self._canceller = threading.Thread(target=cancel, name=f"{self._thread.name} cancel", daemon=True)
                self._canceller.start()
        return True

    def end(self, last: Callable[[], object], error: BaseException) -> None:
        """Call `last` after the running job, and end the thread. Who waits for a call gets `error` now. Does not wait."""
        if not self._ended:
            self._ended = True
            for job in list(self._open):
                job.fail(error)
            self._jobs.put(_Orphan(last, last=True))

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if isinstance(job, _Orphan):
                job.run()
                if job.last:
                    return
            elif not self._ended:
                self._work(job)
            del job  # what it refers to must not live until the next one comes

    def _work(self, job: Job[Any]) -> None:
        self.current = job
        job.run()
        with self._lock:
            job.finished = True
            canceller, self._canceller = self._canceller, None
        if canceller is not None:
            canceller.join()
        self.current = None
        self._open.discard(job)
        job.deliver()


class _Orphan:
    """A call that nobody waits for."""

    def __init__(self, function: Callable[[], object], *, last: bool = False) -> None:
        self.run = function
        self.last = last
