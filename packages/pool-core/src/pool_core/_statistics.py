"""Frozen pictures of the pool: its numbers now, its counters, who holds what, and why connections end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """One lent connection. ``held`` in seconds, accurate to one tick.

    ``task``: the name of the task that took it. ``stack``: where, if ``leak_threshold`` is set or asyncio's debug
    mode is on, else None.
    """

    connection_id: int
    task: str | None
    held: float
    stack: str | None
