"""What errors and logs say: the pool's numbers, its holders, its loops. Nothing here changes anything."""

from __future__ import annotations

import sys
import traceback
from heapq import nsmallest
from typing import TYPE_CHECKING, Any

from ._errors import ForkedPool, PoolClosed, PoolDeadlock, PoolOverloaded, PoolTimeout, WrongEventLoop
from ._hooks import text
from ._slot import Slot
from ._statistics import picture

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from ._config import PoolConfig
    from ._errors import Phase
    from ._slot import Waiter
    from ._state import PoolState
    from ._statistics import State


class Picture:
    """The pool as it was when a get's time was up. One serves all gets whose time was up in the same look."""

    __slots__ = ("cause", "phase", "state", "text")

    def __init__(self, phase: Phase, text: str, state: State, cause: BaseException | None) -> None:
        self.phase: Phase = phase
        self.text = text
        self.state = state
        self.cause = cause


def label(config: PoolConfig) -> str:
    """How errors and logs name the pool."""
    return f"pool {config.name!r}"


def numbers(state: PoolState[Any]) -> str:
    """Count the connections and who waits, in words."""
    now = picture(state)
    counts = [f"{now.in_use} of {state.config.max_size} in use", f"{now.idle} idle"]
    passing = ((what, getattr(now, what)) for what in ("opening", "validating", "resetting", "closing"))
    counts += [f"{count} {what}" for what, count in passing if count]
    return ", ".join([*counts, f"{now.waiting} waiting"])


def phase_of(state: PoolState[Any], waiter: Waiter[Any] | None) -> Phase:
    """What a get is waiting for: its own test, a connect or a back-off, or its turn."""
    if waiter is not None and waiter.test is not None:
        return "validate"
    backs_off = state.connects.failures and state.supply.has_room()
    return "connect" if state.connects or backs_off else "queue"


def describe(state: PoolState[Any], phase: Phase, now: float, blocked: int) -> Picture:
    """Say what a get whose time is up should know: the numbers, the holders, the last connect error."""
    parts = [numbers(state)]
    held = [slot for slot in state.slots if slot.holder is not None]
    if held:
        parts.append("held longest: " + ", ".join(_held(slot, now) for slot in nsmallest(3, held, key=Slot.used_at)))
    if blocked:
        parts.append(f"holders that wait for another connection themselves: {blocked}")
    cause = state.last_error if state.connects or state.supply.has_room() else None  # else it was long ago
    if cause is not None:
        parts.append(f"last connect error: {text(cause)}")
    return Picture(phase, "; ".join(parts), picture(state), cause)


def _held(slot: Slot[Any], now: float) -> str:
    """Say who holds a connection, and whether that task has ended without returning it."""
    lost = " (the task has ended: lost?)" if slot.holder.done() else ""
    return f"#{slot.id} for {max(0.0, now - slot.stamp):.3g} s by {slot.holder.get_name()}{lost}"


def timed_out(config: PoolConfig, seen: Picture, waited: float, limit: float) -> PoolTimeout:
    """Make the error of a get whose time is up."""
    error = PoolTimeout(
        f"{label(config)}: no connection within {limit:g} s (phase {seen.phase}, waited {waited:.3g} s): {seen.text}",
        phase=seen.phase,
        waited=waited,
        state=seen.state,
    )
    error.__cause__ = seen.cause
    return error


def deadlocked(state: PoolState[Any], waited: float) -> PoolDeadlock:
    """Make the error of a get that nothing could end."""
    names = sorted({slot.holder.get_name() for slot in state.slots})
    return PoolDeadlock(
        f"{label(state.config)}: deadlock: each of its {len(state.slots)} connections is held by a task that waits for "
        f"another one ({', '.join(names)}): do not get a second connection while holding one, or raise max_size; "
        f"{numbers(state)}",
        phase="queue",
        waited=waited,
        state=picture(state),
    )


def overloaded(state: PoolState[Any]) -> PoolOverloaded:
    """Make the error of a get beyond ``max_waiting``."""
    return PoolOverloaded(
        f"{label(state.config)}: {numbers(state)}, and max_waiting={state.config.max_waiting}: try again later, or raise "
        "max_waiting or max_size"
    )


def closed(config: PoolConfig, stage: str) -> PoolClosed:
    """Say in which way the pool is not open, and what to do."""
    how = {
        "new": "is not open: use 'async with pool:', or 'await pool.open()' first",
        "closed": "is closed: open it again with 'await pool.open()'",
    }
    return PoolClosed(f"{label(config)} {how.get(stage, 'is closing')}")


def forked(config: PoolConfig) -> ForkedPool:
    """Refuse a use in a child process."""
    return ForkedPool(
        f"{label(config)} was open before a fork, and its connections belong to the parent process: "
        "make a pool of its own in each process"
    )


def wrong_loop(config: PoolConfig, own: AbstractEventLoop, running: AbstractEventLoop | None) -> WrongEventLoop:
    """Refuse a use elsewhere than in the pool's loop."""
    where = "outside of any event loop" if running is None else f"in {_loop(running)}"
    return WrongEventLoop(
        f"{label(config)} belongs to {_loop(own)} and was used {where}: make one pool for each event loop"
    )


def _loop(loop: AbstractEventLoop) -> str:
    """Name a loop so that it is told from another of its kind."""
    return f"{type(loop).__name__} {id(loop):#x}"


def stack() -> str:
    """Where the user's code is."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("pool_core."):
        frame = frame.f_back
    return "".join(traceback.format_stack(frame))
