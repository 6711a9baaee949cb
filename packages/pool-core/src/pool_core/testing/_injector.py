"""Cancellation, delivered at every place where it can arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, get_args

from pool_core.testing._clock import VirtualTimeLoop, run

__all__ = ["CancelMode", "Injection", "Injector", "Scenario", "acancel_everywhere", "cancel_everywhere"]

T = TypeVar("T")

CancelMode: TypeAlias = Literal["single", "double", "level", "success", "turn"]

_MODES: Final[tuple[CancelMode, ...]] = get_args(CancelMode)
# anyio delivers in every turn. Not here: on virtual time a task that swallows them all would never see the clock move.
_LEVEL_TURNS: Final = 3
_REAL_TIME_MODES: Final[tuple[CancelMode, ...]] = ("single", "double", "level", "success")


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
        self._suspensions = 0

    def finish(self) -> bool:
        """After a run: whether a cancel was delivered.

        Raises:
            AssertionError: the scenario did not call the injector.
        """
        if not self._used:
            raise AssertionError("the scenario did not call its injector: await inject(coroutine) once")
        return self.hit

    async def __call__(self, awaitable: Awaitable[T]) -> Injection[T]:
        """Run it to its end and say how it ended.

        Raises:
            AssertionError: it was cancelled and did not end with CancelledError (unless ``must_surface=False``).
            RuntimeError: called twice in one run of a scenario.
        """
        if self._used:
            if isinstance(awaitable, Coroutine):
                awaitable.close()
            raise RuntimeError("inject() was called twice: a scenario has one coroutine under test")
        self._used = True
        coroutine = awaitable if isinstance(awaitable, Coroutine) else _await(awaitable)
        probe: _Probe[T] = _Probe(coroutine, self)
        loop = asyncio.get_running_loop()
        # Not create_task: an eager task factory would run it before anybody watches.
        task: asyncio.Task[T] = asyncio.Task(probe, loop=loop, name="under-test")
        probe.task = task
        if self.mode == "turn":
            self._count_turns(loop, task)
        elif self.point == 0:
            self._cancel(task)
        try:
            await asyncio.wait({task})
        finally:
            if isinstance(loop, VirtualTimeLoop):
                loop.on_turn = None
            task.cancel()  # does something only if the scenario itself is torn down
        if self.hit and self._must_surface and not task.cancelled():
            error = task.exception()
            ended = f"raised {error!r}" if error is not None else f"returned {task.result()!r}"
            raise AssertionError(f"the cancel was swallowed: the coroutine {ended}") from error
        return Injection(task, hit=self.hit)

    def _count_turns(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        if not isinstance(loop, VirtualTimeLoop):
            raise TypeError('mode "turn" needs a VirtualTimeLoop: use cancel_everywhere, or one of the other modes')
        turn = 0

        def on_turn() -> bool:
            nonlocal turn
            turn += 1
            due = turn == self.point + 1
            if due:
                self._cancel(task)
            return due

        loop.on_turn = on_turn

    def _suspended(self, task: asyncio.Task[Any], number: int, awaited: object) -> None:
        """The coroutine is about to give control back for the number-th time (from 1)."""
        self._suspensions = number
        if self.mode == "success" and number == self.point and isinstance(awaited, asyncio.Future):
            # Registered before the task's own wake-up, so it runs first: the future is done, the task does not know.
            awaited.add_done_callback(lambda _future: self._cancel(task))
        elif self.mode == "level" and number >= self.point:
            task.get_loop().call_soon(self._cancel_again, task, number, _LEVEL_TURNS)
        elif self.mode != "turn" and (number == self.point or (self.mode == "double" and number == self.point + 1)):
            task.get_loop().call_soon(self._cancel, task)

    def _cancel_again(self, task: asyncio.Task[Any], number: int, turns: int) -> None:
        """Deliver it in this turn and the next ones, as long as the task stays where it is."""
        if self._suspensions == number and not task.done():
            self._cancel(task)
            if turns:
                task.get_loop().call_soon(self._cancel_again, task, number, turns - 1)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        self.hit = task.cancel() or self.hit


class _Probe(Coroutine[Any, Any, T]):
    """A coroutine that reports its suspensions; no frame of its own, so point 0 really finds an unstarted coroutine."""

    task: asyncio.Task[T]

    def __init__(self, coroutine: Coroutine[Any, Any, T], injector: Injector) -> None:
        self._coroutine = coroutine
        self._injector = injector
        self._suspensions = 0

    def send(self, value: Any, /) -> Any:
        return self._report(self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._report(self._coroutine.throw(*error))

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, T]:  # pragma: no cover (a task drives it by send and throw)
        return self._coroutine.__await__()

    def _report(self, awaited: Any) -> Any:
        self._suspensions += 1
        self._injector._suspended(self.task, self._suspensions, awaited)
        return awaited


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


Scenario: TypeAlias = Callable[[Injector], Coroutine[Any, Any, object]]


def cancel_everywhere(
    scenario: Scenario,
    *,
    modes: Sequence[CancelMode] = _MODES,
    must_surface: bool = True,
    max_points: int = 2000,
    real_wait: float = 0.0,
) -> int:
    """Run a scenario again and again, with a cancel at point 0, 1, 2, ..., until it ends before the point is reached.

    Each run has a fresh :class:`VirtualTimeLoop` and is strict: a task that is left, a stuck program, an exception that
    nobody retrieved fail it, as does any assertion of the scenario. Failures get a note with the point and the mode.

    The modes, all tried by default:

    - ``"single"``: at the k-th suspension, as soon as the task waits;
    - ``"double"``: then once more at its next suspension, if there is one: in its cleanup;
    - ``"level"``: then at every further suspension, and in the next turns if it stays where it is (it waits for a task
      that swallows cancels), as anyio does until a cancelled scope is left;
    - ``"success"``: in the tick of success: what the task waits for at its k-th suspension is done, and the task has
      not been woken up yet;
    - ``"turn"``: at the beginning of the k-th turn of the loop, whatever the task is waiting for: so also just before,
      in the middle of and just after what other tasks do to it.

    Args:
        scenario: an async function that gets the :class:`Injector` and calls it once. It must be repeatable: everything
            it uses is made anew in each run.
        modes: which of the modes.
        must_surface: whether a cancelled coroutine must end with CancelledError.
        max_points: a scenario that has not ended before this point never will.
        real_wait: see :class:`VirtualTimeLoop`.

    Returns:
        How many cancels were tried, over all modes.

    Raises:
        AssertionError: an assertion of the scenario failed, a cancel was swallowed, the scenario did not use its
            injector, or ``max_points`` was reached.
    """
    tried = 0
    for mode in modes:
        for point in range(max_points):
            injector = Injector(point, mode, must_surface=must_surface)
            try:
                run(scenario, injector, real_wait=real_wait)
            except Exception as error:
                error.add_note(_note(injector))
                raise
            if not injector.finish():
                break
            tried += 1
        else:
            raise AssertionError(f"mode {mode!r}: still not at its end after {max_points} points")
    return tried


async def acancel_everywhere(
    scenario: Scenario,
    *,
    modes: Sequence[CancelMode] = _REAL_TIME_MODES,
    must_surface: bool = True,
    max_points: int = 2000,
) -> int:
    """As :func:`cancel_everywhere`, on the running loop and in real time: for real drivers and servers.

    Mode ``"turn"`` is not available here: turns of a real loop do not repeat. The scenario looks for leftovers itself.
    """
    tried = 0
    for mode in modes:
        for point in range(max_points):
            injector = Injector(point, mode, must_surface=must_surface)
            try:
                await scenario(injector)
            except Exception as error:
                error.add_note(_note(injector))
                raise
            if not injector.finish():
                break
            tried += 1
        else:
            raise AssertionError(f"mode {mode!r}: still not at its end after {max_points} points")
    return tried


def _note(injector: Injector) -> str:
    what = "cancelled" if injector.hit else "not cancelled yet"
    return f"{what}: point {injector.point}, mode {injector.mode!r}"
