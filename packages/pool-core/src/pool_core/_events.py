"""What listeners are told. Imported when somebody first asks for an event: making the classes takes 4 ms."""

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

    ``took``: the seconds that its connect lasted, with ``on_connect``; None for one that was added.
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
    """A connection was lent. ``waited`` in seconds."""

    connection_id: int
    waited: float


@dataclass(frozen=True, slots=True)
class CheckedIn:
    """A connection came back, before it is looked at. ``held`` in seconds."""

    connection_id: int
    held: float


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A get ended at its deadline. ``timeout`` in seconds."""

    timeout: float


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """One attempt to connect failed."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class ResetFailed:
    """A connection could not be wiped and is closed."""

    connection_id: int
    error: BaseException


@dataclass(frozen=True, slots=True)
class Leaked:
    """A lease is held longer than ``leak_threshold``, or was dropped unreleased. ``stack``: where it was taken."""

    connection_id: int
    held: float
    stack: str | None


Event = Connected | Closed | CheckedOut | CheckedIn | TimedOut | ConnectFailed | ResetFailed | Leaked
