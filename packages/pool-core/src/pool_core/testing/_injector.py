"""Cancellation, delivered at every place where it can arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, get_args

from pool_core.testing._clock import run

__all__ = ["CancelMode", "Injection", "Injector", "acancel_everywhere", "cancel_everywhere"]

T = TypeVar("T")

CancelMode: TypeAlias = Literal["single", "double", "level", "success"]

_MODES: Final[tuple[CancelMode, ...]] = get_args(CancelMode)


class Injection(Generic[T]):
    """How the coroutine under test ended.

    Attributes:
        task: the task that ran it; done.
        hit: whether a cancel was delivered: not when the coroutine ended before the chosen point.
    """

    def __init__(self, task: asyncio.Task[T], *, hit: bool) -> None:
        self.task = task
        self.hit = hit

    @property
    def cancelled(self) -> bool:
        """Whether it ended with CancelledError."""
        return self.task.cancelled()

    @property
    def exception(self) -> BaseException | None:
        """What else it raised, if it did."""
        return None if self.task.cancelled() else self.task.exception()

    @property
    def result(self) -> T:
        """What it returned; raises what it raised."""
        return self.task.result()


class Injector:
    """Runs one coroutine in a task of its own and cancels it at one point.

    A scenario calls it once: ``outcome = await inject(pool.get(timeout=5))``. What stands before that call prepares,
    what stands after it checks.

    Point 0 is before the task's first step: nothing of it has run, and no ``finally`` will. Point k is its k-th
    suspension, where it gives control back to the loop.

    Attributes:
        point: which one.
        mode: how the cancel arrives, see :func:`cancel_everywhere`.
        hit: whether the coroutine got as far as the point.
    """

    def __init__(self, point: int, mode: CancelMode = "single", *, must_surface: bool = True) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode={mode!r}: allowed are {', '.join(_MODES)}")
        self.point = point
        self.mode = mode
        self.hit = False
        self._must_surface = must_surface
        self._used = False

    async def __call__(self, awaitable: Awaitable[T]) -> Injection[T]:
        """Run it to its end and say how it ended.

        Raises:
            AssertionError: it was cancelled and did not end with CancelledError (unless ``must_surface=False``).
            RuntimeError: called twice in one run of a scenario.
        """
        if self._used:
            raise RuntimeError("inject() was called twice: a scenario has one coroutine under test")
        self._used = True
        coroutine = awaitable if isinstance(awaitable, Coroutine) else _await(awaitable)
        probe: _Probe[T] = _Probe(coroutine, self)
        task: asyncio.Task[T] = asyncio.get_running_loop().create_task(probe, name="under-test")
        probe.task = task
        if self.point == 0:
            self._cancel(task)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()  # only if the scenario itself is torn down
        outcome = Injection(task, hit=self.hit)
        if self.hit and self._must_surface and not task.cancelled():
            error = task.exception()
            ended = f"raised {error!r}" if error is not None else f"returned {task.result()!r}"
            raise AssertionError(f"the cancel was swallowed: the coroutine {ended}") from error
        return outcome

    def _suspended(self, task: asyncio.Task[Any], number: int, awaited: object) -> None:
        """The coroutine is about to give control back for the number-th time (from 1)."""
        loop = task.get_loop()
        if self.mode == "success" and number == self.point and isinstance(awaited, asyncio.Future):
            # Registered before the task's own wake-up, so it runs first: the future is done, the task does not know.
            awaited.add_done_callback(lambda _future: self._cancel(task))
        elif (
            number == self.point
            or (self.mode == "double" and self.hit and number == self._again)
            or (self.mode == "level" and self.hit)
        ):
            loop.call_soon(self._cancel, task)
        if self.mode == "double" and number == self.point:
            self._again = number + 1

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if task.cancel():
            self.hit = True

    _again = 1  # after point 0 the first suspension is the next step
