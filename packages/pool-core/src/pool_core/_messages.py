"""What errors and logs say: the pool's numbers, its holders, its loops. Nothing here changes anything."""

from __future__ import annotations

import sys
import traceback
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Words(NamedTuple):
    """What differs in the texts of the two pools."""

    holder: str  # what holds a connection
    block: str
    opening: str


TASKS = Words("task", "async with pool:", "await pool.open()")
THREADS = Words("thread", "with pool:", "pool.open()")


class Picture:
    """The pool as it was when a get's time was up. One serves all gets whose time was up in the same look."""

    __slots__ = ("_parts", "_text", "cause", "phase", "state")

    def __init__(self, phase: Phase, parts: list[str], state: State, cause: BaseException | None) -> None:
        self.phase: Phase = phase
        self._parts = parts
        self._text: str | None = None
        self.state = state
        self.cause = cause

    @property
    def text(self) -> str:
        """All of it in words. Made when it is needed: the text of the cause is somebody else's code."""
        if self._text is None:
            cause = [] if self.cause is None else [f"last connect error: {text(self.cause)}"]
            self._text = "; ".join(self._parts + cause)
        return self._text


def label(config: PoolConfig) -> str:
    """How errors and logs name the pool."""
    return f"pool {config.name!r}"


def numbers(state: PoolState[Any]) -> str:
    """Describe how many connections there are in each state, and how many gets wait."""
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


def describe(state: PoolState[Any], phase: Phase, now: float, blocked: int, words: Words = TASKS) -> Picture:
    """Say what a get whose time is up should know: the numbers, the holders, the last connect error."""
    parts = [numbers(state)]
    held = [slot for slot in state.slots if slot.holder is not None]
    if held:
        parts.append(
            "held longest: " + ", ".join(_held(slot, now, words) for slot in nsmallest(3, held, key=Slot.used_at))
        )
    if blocked:
        parts.append(f"holders that wait for another connection themselves: {blocked}")
    cause = state.last_error if state.connects or state.supply.has_room() else None  # else it was long ago
    return Picture(phase, parts, picture(state), cause)


def _held(slot: Slot[Any], now: float, words: Words) -> str:
    """Say who holds a connection, and whether that task or thread has ended without returning it."""
    lost = f" (the {words.holder} has ended: lost?)" if slot.holder.done() else ""
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


def deadlocked(state: PoolState[Any], waited: float, words: Words = TASKS) -> PoolDeadlock:
    """Make the error of a get that nothing could end."""
    names = sorted({slot.holder.get_name() for slot in state.slots})
    return PoolDeadlock(
        f"{label(state.config)}: deadlock: each of its {len(state.slots)} connections is held by a {words.holder} that "
        f"waits for another one ({', '.join(names)}): do not get a second connection while holding one, or raise max_size; "
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


def closed(config: PoolConfig, stage: str, words: Words = TASKS) -> PoolClosed:
    """Say in which way the pool is not open, and what to do."""
    how = {
        "new": f"is not open: use '{words.block}', or '{words.opening}' first",
        "closed": f"is closed: open it again with '{words.opening}'",
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
