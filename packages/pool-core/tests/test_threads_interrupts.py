"""KeyboardInterrupt in the main thread, at every place where it can arrive, loses neither a connection nor the lock.

CPython runs signal handlers only after certain instructions: a call, the beginning of a function, a jump back. The injector
raises KeyboardInterrupt at the first, second, third ... of these inside the package, until the operation ends undisturbed.
"""

from __future__ import annotations

import dis
import gc
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
from pool_core.threads import Pool, PoolClosed

from .invariants import check_invariants
from .threads_helpers import Conn, Manager, Resetting, Terminating, adds_up

BEFORE = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD", "INSTRUMENTED_RESUME"}
"""Where the interpreter looks for signals: an interrupt is raised before the instruction that follows one of these."""


class Interrupter:
    """Raises KeyboardInterrupt at the n-th point of what runs within it, in this thread."""

    def __init__(self, point: int) -> None:
        self.point = point
        self.count = 0
        self.where: str | None = None
        self._last: dict[int, str] = {}
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: Any, event: str, arg: Any) -> Any:
        if "pool_core" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: Any, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes = True
        if event != "opcode" or self.where is not None:
            return self._step
        before = self._last.get(id(frame))
        self._last[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        if before in BEFORE:
            self.count += 1
            if self.count == self.point:
                self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                sys.settrace(self._before)
                raise KeyboardInterrupt
        return self._step


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # leases that are dropped, and what a finalizer warns of
        yield
    logging.disable(logging.NOTSET)


def sweep(
    make: Callable[[], Any],
    prepare: Callable[[Pool[Conn]], Any],
    act: Callable[[Pool[Conn], Any], object],
    every: int = 1,
) -> int:
    """Interrupt ``act`` at each point (or every second, third ... of them), and check the pool after each."""
    point = 0
    undisturbed = 0
    while undisturbed < 3:
        point += every
        pool: Pool[Conn] = Pool(make(), max_size=1, connection_timeout=10, detect_deadlock=False, reset_timeout=1)
        pool.open()
        with pool.get():
            pass
        at_rest(pool)
        prepared = prepare(pool)
        interrupter = Interrupter(point)
        began = time.monotonic()
        try:
            with interrupter:
                act(pool, prepared)
        except (KeyboardInterrupt, PoolClosed):
            pass
        if isinstance(prepared, threading.Thread):
            prepared.join()
        elif hasattr(prepared, "release"):
            prepared.release()
        del prepared
        gc.collect()
        undisturbed += interrupter.where is None
        try:
            assert time.monotonic() - began < 5, "a waiter was not woken up"
            check(pool)
        except BaseException as error:
            error.add_note(f"interrupted at point {point}: {interrupter.where}")
            raise
    return point - undisturbed


def at_rest(pool: Pool[Any]) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        state = pool.state()
        if not (state.resetting or state.opening or state.validating or state.closing):
            return
        time.sleep(0.0005)
    raise AssertionError(f"it does not come to rest: {pool}")


def check(pool: Pool[Any]) -> None:
    section = pool._section
    assert not section.lock._is_owned(), "the lock is held for ever"
    was_open = pool._shell.life.stage == "open"
    if was_open:
        for _ in range(2):
            with pool.get(timeout=5):
                pass
        at_rest(pool)
        state = pool.state()
        assert (state.waiting, state.in_use, state.idle) == (0, 0, 1), state
        with section.lock:
            assert section.owner is None
            check_invariants(pool._state)
    adds_up(pool)
    began = time.monotonic()
    pool.close(0.2)
    assert time.monotonic() - began < 1.5
    adds_up(pool)
    # A close that was interrupted leaves no time: without terminate, what it cannot close is counted.
    assert pool.state().statistics.connections_abandoned == 0 or not was_open


def use(pool: Pool[Conn], _: Any) -> None:
    with pool.get():
        pass


@pytest.mark.parametrize("make", [Manager, Resetting, Terminating])
def test_an_uncontended_get_and_return(make: Any) -> None:
    """The warm path, and the reset after it."""
    assert sweep(make, lambda pool: None, use) >= 3


@pytest.mark.parametrize("make", [Manager, Terminating])
def test_a_get_that_waits(make: Any) -> None:
    """From the queueing to the hand-off, and the reset that the waiter runs."""

    def hold(pool: Pool[Conn]) -> threading.Thread:
        lease = pool.get()
        thread = threading.Thread(target=lambda: (time.sleep(0.002), lease.release()))  # type: ignore[func-returns-value]
        thread.start()
        return thread

    assert sweep(make, hold, use) >= 20


@pytest.mark.parametrize("make", [Manager, Resetting])
def test_a_return_while_another_thread_waits(make: Any) -> None:
    """The hand-off in the returning thread."""

    def wait(pool: Pool[Conn]) -> tuple[Any, threading.Thread]:
        lease = pool.get()
        thread = threading.Thread(target=lambda: use(pool, None))
        thread.start()
        while not pool.state().waiting:
            time.sleep(0.0002)
        return lease, thread

    def release(pool: Pool[Conn], prepared: Any) -> None:
        lease, thread = prepared
        try:
            lease.release()
        finally:
            sys.settrace(None)
            lease.release()
            thread.join()

    assert sweep(make, wait, release) >= 10


def test_a_cold_get() -> None:
    """The connect by a worker, the start of a thread."""

    def cold(pool: Pool[Conn]) -> None:
        pool.evict()
        at_rest(pool)

    assert sweep(Manager, cold, use) >= 20


OTHERS: dict[str, Callable[[Pool[Conn], Any], object]] = {
    "evict": lambda pool, _: pool.evict(),
    "resize": lambda pool, _: pool.resize(min_idle=1),
    "state": lambda pool, _: pool.state(),
    "holders": lambda pool, _: pool.holders(),
    "try_get": lambda pool, _: (lease := pool.try_get()) and lease.release(),  # type: ignore[func-returns-value]
    "discard": lambda pool, _: pool.get().discard(),
    "close": lambda pool, _: pool.close(0.2),
}


@pytest.mark.parametrize("act", OTHERS.values(), ids=OTHERS)
def test_the_other_methods(act: Any) -> None:
    """What changes the state, or looks at it: at every third point; all of them under `-m soak`."""
    assert sweep(Manager, lambda pool: None, act, every=3) >= 1


@pytest.mark.soak
@pytest.mark.parametrize("make", [Manager, Resetting, Terminating])
@pytest.mark.parametrize("act", OTHERS.values(), ids=OTHERS)
def test_the_other_methods_at_every_point(act: Any, make: Any) -> None:
    """Complete."""
    assert sweep(make, lambda pool: None, act) >= 1
