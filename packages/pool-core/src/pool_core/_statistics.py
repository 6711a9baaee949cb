"""Frozen pictures of the pool: its numbers now, its counters, who holds what, and why connections end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._errors import Phase
    from ._state import PoolState

__all__ = ["CloseReason", "Holder", "State", "Statistics"]


class CloseReason(str, Enum):
    """Why a connection left the pool."""

    BROKEN = "broken"
    INVALID = "invalid"
    LIFETIME = "lifetime"
    IDLE = "idle"
    MAX_USES = "max_uses"
    EVICTED = "evicted"
    RESIZED = "resized"
    DISCARDED = "discarded"
    DETACHED = "detached"
    LEAKED = "leaked"
    RESET_FAILED = "reset_failed"
    REPLACED = "replaced"
    SURPLUS = "surplus"
    POOL_CLOSED = "pool_closed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the pool was made. They reconcile:

    ``connections_created + connections_added`` = connections open now + the sum of ``connections_closed``;
    ``gets_started = gets_direct + gets_waited + gets_timed_out + gets_cancelled + gets_failed`` + gets waiting now.
    ``try_get`` counts only when it lends. ``get_wait_time`` is in seconds, over the gets that waited and were served.
    ``connections_abandoned`` stands beside the sum: closed or given up, but perhaps not off the network.

    ``waits_by_phase`` says what the gets waited for that were served: ``"queue"`` (a return) and ``"connect"``, together
    ``gets_waited``, and ``"validate"``, which ``gets_direct`` includes: an idle connection had to be validated first.
    ``timeouts_by_phase`` says what those waited for that timed out; its sum is ``gets_timed_out``. ``gets_overloaded``
    (PoolOverloaded) and ``gets_deadlocked`` (PoolDeadlock) are parts of ``gets_failed``.
    """

    gets_started: int
    gets_direct: int
    gets_waited: int
    gets_timed_out: int
    gets_cancelled: int
    gets_failed: int
    get_wait_time: float
    connections_created: int
    connections_added: int
    connections_closed: Mapping[CloseReason, int]
    connections_abandoned: int
    connects_failed: int
    hook_errors: int
    waits_by_phase: Mapping[Phase, int]
    timeouts_by_phase: Mapping[Phase, int]
    gets_overloaded: int
    gets_deadlocked: int


@dataclass(frozen=True, slots=True)
class State:
    """The pool's numbers at one moment: each connection is counted in exactly one place."""

    idle: int
    in_use: int
    opening: int
    validating: int
    resetting: int
    closing: int
    waiting: int
    statistics: Statistics

    def __str__(self) -> str:
        names = ("in_use", "idle", "opening", "validating", "resetting", "closing", "waiting")
        counts = [(name.replace("_", " "), getattr(self, name)) for name in names]
        return ", ".join(f"{count} {name}" for name, count in counts if count or name in ("in use", "idle", "waiting"))


@dataclass(frozen=True, slots=True)
class Holder:
    """One connection in use. ``held`` in seconds, accurate to one tick.

    ``task``: the name of the task that took it. ``stack``: where, if ``leak_threshold`` is set or asyncio's debug
    mode is on, else None.
    """

    connection_id: int
    task: str | None
    held: float
    stack: str | None


class Counters:
    """All that ever happened, as numbers. ``gets_started`` and ``gets_direct`` follow from the others."""

    __slots__ = (
        "abandoned",
        "added",
        "closed",
        "connects_failed",
        "created",
        "gets_cancelled",
        "gets_connected",
        "gets_deadlocked",
        "gets_failed",
        "gets_overloaded",
        "gets_timed_out",
        "gets_validated",
        "gets_waited",
        "hook_errors",
        "timeouts",
        "uses_gone",
        "wait_time",
        "waiting",
    )

    def __init__(self) -> None:
        self.waiting = 0  # gets that wait until their task has gone on; a try_get is none
        self.gets_waited = 0
        self.gets_connected = 0  # of gets_waited: by a connection that was new
        self.gets_validated = 0  # by the validation that was begun for them
        self.gets_timed_out = 0
        self.timeouts: dict[Phase, int] = {"queue": 0, "connect": 0, "validate": 0}
        self.gets_cancelled = 0
        self.gets_failed = 0
        self.gets_overloaded = 0
        self.gets_deadlocked = 0
        self.wait_time = 0.0
        self.created = 0
        self.added = 0
        self.closed = dict.fromkeys(CloseReason, 0)
        self.abandoned = 0
        self.connects_failed = 0
        self.hook_errors = 0
        self.uses_gone = 0  # of connections that are gone


def picture(state: PoolState[Any]) -> State:
    """The pool's numbers now. May be called from any thread, as exporters of metrics do."""
    counters = state.counters
    connected = counters.gets_connected  # before gets_waited, which is counted first
    uses_gone, waited, waiting, unserved, uses = _together(state)
    served = uses_gone + uses
    return State(
        idle=len(state.idle),
        in_use=state.in_use(),
        opening=len(state.connects),
        validating=len(state.validating),
        resetting=len(state.resetting),
        closing=len(state.closing),
        waiting=waiting,
        statistics=Statistics(
            gets_started=served + unserved + waiting,
            gets_direct=served - waited,
            gets_waited=waited,
            gets_timed_out=counters.gets_timed_out,
            gets_cancelled=counters.gets_cancelled,
            gets_failed=counters.gets_failed,
            get_wait_time=counters.wait_time,
            connections_created=counters.created,
            connections_added=counters.added,
            connections_closed=dict(counters.closed),
            connections_abandoned=counters.abandoned,
            connects_failed=counters.connects_failed,
            hook_errors=counters.hook_errors,
            waits_by_phase={"queue": waited - connected, "connect": connected, "validate": counters.gets_validated},
            timeouts_by_phase=dict(counters.timeouts),
            gets_overloaded=counters.gets_overloaded,
            gets_deadlocked=counters.gets_deadlocked,
        ),
    )


def _together(state: PoolState[Any]) -> tuple[int, int, int, int, int]:
    """Read the numbers that must agree: again, while another thread changes them, and at some time as they are."""
    for _ in range(20):
        before = _gets(state), len(state.slots)
        uses = sum(slot.uses for slot in tuple(state.slots))
        if (_gets(state), len(state.slots)) == before:
            return (*before[0], uses)
    return (*_gets(state), sum(slot.uses for slot in tuple(state.slots)))


def _gets(state: PoolState[Any]) -> tuple[int, int, int, int]:
    counters = state.counters
    unserved = counters.gets_timed_out + counters.gets_cancelled + counters.gets_failed
    return counters.uses_gone, counters.gets_waited, counters.waiting, unserved
