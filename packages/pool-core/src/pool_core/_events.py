"""The events for listeners. Imported on first use, because creating the classes takes 4 ms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._statistics import CloseReason

__all__ = [
    "CheckedIn",
    "CheckedOut",
    "Closed",
    "ConnectFailed",
    "Connected",
    "Event",
    "Leaked",
    "ResetFailed",
    "TimedOut",
]


@dataclass(frozen=True, slots=True)
class Connected:
    """A new connection joined the pool. Ids are unique in the process and increase.

    ``took``: how long connecting took, in seconds, with ``on_connect``; None if it was added by ``pool.add``.
    """

    connection_id: int
    took: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Closed:
    """The pool decided to close a connection. ``age`` in seconds since it joined."""

    connection_id: int
    age: float
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """A connection was acquired. ``waited`` in seconds."""

    connection_id: int
    waited: float


@dataclass(frozen=True, slots=True)
class CheckedIn:
    """A connection was returned, and not checked yet. ``held`` in seconds."""

    connection_id: int
    held: float


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A get timed out. ``timeout`` in seconds."""

    timeout: float


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """One connection attempt failed."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class ResetFailed:
    """A reset failed, and the connection is closed."""

    connection_id: int
    error: BaseException


@dataclass(frozen=True, slots=True)
class Leaked:
    """A lease is held longer than ``leak_threshold``, or was dropped without release. ``stack``: where it was acquired."""

    connection_id: int
    held: float
    stack: str | None


Event = Connected | Closed | CheckedOut | CheckedIn | TimedOut | ConnectFailed | ResetFailed | Leaked
