"""Virtual time: an event loop whose clock jumps to the next timer, so that ``sleep(1800)`` takes no time at all."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["LeftoverError", "StuckError", "VirtualTimeLoop", "run", "settle"]

T = TypeVar("T")

_Events: TypeAlias = list[tuple[selectors.SelectorKey, int]]

# With sockets registered and no timer set, an answer may still come from outside: this long is waited for it.
_PATIENCE_WITH_SOCKETS = 1.0


class StuckError(RuntimeError):
    """Nothing can happen any more (or nothing but timers, for ever): the program under test would hang."""


class LeftoverError(AssertionError):
    """A finished run left tasks or timers behind, or the loop's exception handler was called."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with a clock of its own, for tests that are fast and give the same result every time.

    While anything is ready, the clock stands still. When nothing is, it jumps to the next timer. When there is no
    timer either, the program would hang: :class:`StuckError` names the waiting tasks instead.

    Real input and output still work. Jobs given to ``run_in_executor`` are waited for, and no time passes meanwhile.
    Sockets, and threads that use ``call_soon_threadsafe``, get ``real_wait`` seconds of real time before each jump,
    and a loop with sockets but without timers waits at least one real second before it counts as stuck. With the
    default, 0, the clock does not wait for them: right for fakes, wrong for a real server, whose answers would
    lose every race against a timeout.

    Args:
        start: what ``time()`` says at first, in seconds.
        real_wait: real seconds given to sockets and threads before the clock jumps.
        time_limit: virtual seconds after ``start`` at which the run counts as stuck: a periodic timer keeps a
            deadlocked program "busy" for ever.
    """

    # Known to BaseEventLoop since 3.4; read only, to land exactly on a timer: now + (when - now) may miss it by a bit.
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, *, start: float = 0.0, real_wait: float = 0.0, time_limit: float = 1_000_000.0) -> None:
        super().__init__(_JumpingSelector(self._select))
        self._now = start
        self._start = start
        self._time_limit = time_limit
        self._real_wait = real_wait
        self._jobs = 0
        self.used_executor = False  # whether the default executor exists
        #: Called at the beginning of each turn, if set; True means that it made something ready.
        self.on_turn: Callable[[], bool] | None = None
        self._settling: list[asyncio.Future[None]] = []
        #: What the loop's exception handler was called with, in order.
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _loop, context: self.errors.append(context))
        if not (real_wait >= 0 and time_limit > 0):
            self.close()
            raise ValueError(
                f"real_wait={real_wait!r}, time_limit={time_limit!r}: both are seconds, real_wait from 0, time_limit above 0"
            )

    def time(self) -> float:
        """The virtual time in seconds."""
        return self._now

    def timers(self) -> list[asyncio.TimerHandle]:
        """The timers that are set and not cancelled, the next one first: ``close()`` of a pool must leave none."""
        return sorted(handle for handle in self._scheduled if not handle.cancelled())

    async def settle(self) -> None:
        """Wait until every other task waits for a timer or an event, without letting time pass."""
        waiter: asyncio.Future[None] = self.create_future()
        self._settling.append(waiter)
        await waiter

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """As in asyncio; until the job has ended, the clock stands still."""
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self.used_executor = self.used_executor or executor is None
        self._jobs += 1
        future.add_done_callback(self._job_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """As in asyncio; the clock stands still while its thread ends."""
        self._jobs += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._jobs -= 1

    def _job_done(self, _future: asyncio.Future[Any]) -> None:
        self._jobs -= 1

    def _select(self, selector: _JumpingSelector, timeout: float | None) -> _Events:
        if self.on_turn is not None and self.on_turn():
            timeout = 0
        if timeout is None or timeout > 0:
            return self._idle(selector, timeout)
        return selector.poll(0) if selector.has_sockets else []

    def _idle(self, selector: _JumpingSelector, timeout: float | None) -> _Events:
        """Nothing is ready: wake who waits for that, else give real events their chance, else jump, else complain."""
        if self._settling:
            settling, self._settling = self._settling, []
            for waiter in settling:
                if not waiter.done():
                    waiter.set_result(None)
            return []
        if self._jobs:
            return selector.poll(None)
        patience = self._real_wait
        if timeout is None and selector.has_sockets:
            patience = max(patience, _PATIENCE_WITH_SOCKETS)
        if (patience or selector.has_sockets) and (events := selector.poll(patience)):
            return events
        if timeout is None:
            raise StuckError(
                f"nothing can happen any more: no callback is ready and no timer is set; {self._waiting()}"
            )
        now = self._scheduled[0].when()
        if now > self._start + self._time_limit:
            raise StuckError(f"still running after {self._time_limit:g} virtual seconds; {self._waiting()}")
        self._now = now
        return []

    def _waiting(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        if not tasks:
            return "no task is left, run_until_complete waits for a bare future"
        return "waiting:" + "".join(f"\n  {_describe(task)}" for task in tasks)


class _JumpingSelector(selectors.BaseSelector):
    """A selector that leaves each decision to the loop; the real one is made at the first socket.

    (A loop for fakes never needs it: making and asking an epoll object would cost more than the rest of a short run.)
    """

    def __init__(self, decide: Callable[[_JumpingSelector, float | None], _Events]) -> None:
        self._decide = decide
        self._keys: dict[FileDescriptorLike, selectors.SelectorKey] = {}  # asyncio registers plain numbers
        self._real: selectors.BaseSelector | None = None

    @property
    def has_sockets(self) -> bool:
        """Whether anything beside the loop's own self-pipe is registered."""
        return len(self._keys) > 1

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        if self._keys and self._real is None:
            self._open()
        if self._real is None:
            fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
            key = selectors.SelectorKey(fileobj, fd, events, data)
        else:
            key = self._real.register(fileobj, events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        if self._real is not None:
            self._real.unregister(fileobj)
        return self._keys.pop(fileobj)

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[fileobj] = self._open().modify(fileobj, events, data)
        return key

    def select(self, timeout: float | None = None) -> _Events:
        return self._decide(self, timeout)

    def poll(self, timeout: float | None) -> _Events:
        """Ask the operating system, for up to ``timeout`` real seconds."""
        return self._open().select(timeout)

    def _open(self) -> selectors.BaseSelector:
        if self._real is None:
            self._real = selectors.DefaultSelector()
            for key in self._keys.values():
                self._real.register(key.fileobj, key.events, key.data)
        return self._real

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._keys

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._keys[fileobj]

    def close(self) -> None:
        self._keys.clear()
        if self._real is not None:
            self._real.close()


async def settle() -> None:
    """Wait until every other task waits for a timer or an event; no time passes.

    The reliable form of "a few ``sleep(0)`` and hope": background work that needs no time is done afterwards.

    Raises:
        TypeError: the running loop is not a :class:`VirtualTimeLoop`.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        raise TypeError(f"settle() needs a VirtualTimeLoop, this loop is a {type(loop).__name__}: use testing.run()")
    await loop.settle()


def run(
    main: Coroutine[Any, Any, T] | Callable[..., Coroutine[Any, Any, T]],
    *args: Any,
    start: float = 0.0,
    real_wait: float = 0.0,
    time_limit: float = 1_000_000.0,
    strict: bool = True,
) -> T:
    """Run a coroutine, or ``main(*args)``, on a fresh :class:`VirtualTimeLoop`; return its result.

    Args:
        main: a coroutine, or a function that returns one.
        args: what to call it with.
        start, real_wait, time_limit: see :class:`VirtualTimeLoop`.
        strict: whether tasks and timers that are left at the end, and calls of the loop's exception handler (an
            exception that nobody retrieved, a callback that raised), are errors. Either way tasks are cancelled.

    Raises:
        StuckError: the program cannot go on; it names the tasks that wait.
        LeftoverError: see ``strict``.
    """
    loop = VirtualTimeLoop(start=start, real_wait=real_wait, time_limit=time_limit)
    try:
        try:
            result = loop.run_until_complete(main(*args) if callable(main) else main)
        except BaseException:
            _sweep(loop)
            raise
        timers = loop.timers()
        left = _sweep(loop)
    finally:
        loop.close()
    problems = [f"a task was left running: {task}" for task in left]
    problems += [f"a timer was left set, for {timer.when():g} s: {timer!r}" for timer in timers if not left]
    problems += [f"the loop's exception handler was called: {_explain(context)}" for context in loop.errors]
    if strict and problems:
        error = LeftoverError("\n".join(problems))
        raise error from next((context["exception"] for context in loop.errors if "exception" in context), None)
    return result


def _sweep(loop: VirtualTimeLoop) -> list[str]:
    """End everything that still runs; return what it was."""
    tasks = asyncio.all_tasks(loop)
    left = sorted(_describe(task) for task in tasks)
    errors = list(loop.errors)
    loop.run_until_complete(_end(loop, tasks))
    if left:
        loop.errors[:] = errors  # what tasks say while they are being killed is no finding of its own
    return left


async def _end(loop: VirtualTimeLoop, tasks: set[asyncio.Task[Any]]) -> None:
    for _ in range(5):  # one cancel may be swallowed; a task that swallows five is left to the garbage collector
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=60)
    await loop.shutdown_asyncgens()
    if loop.used_executor:
        await loop.shutdown_default_executor()


def _explain(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"{context.get('message')}" + (f" ({type(error).__name__}: {error})" if error is not None else "")


def _describe(task: asyncio.Task[Any]) -> str:
    stack = task.get_stack(limit=1)
    where = f"{stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else "not started"
    name = getattr(task.get_coro(), "__qualname__", repr(task.get_coro()))
    return f"{task.get_name()}: {name} at {where}"
