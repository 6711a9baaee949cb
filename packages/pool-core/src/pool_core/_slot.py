"""The data of the pool's decisions: a slot, an approval, a waiter, a validation or reset in progress.

None of them knows an event loop. What a shell needs in addition is in its own subclass of ``Waiter``.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from ._statistics import CloseReason

C = TypeVar("C")

OPENING, IDLE, VALIDATING, LENT, RESETTING, CLOSING, GONE = (
    "opening",
    "idle",
    "validating",
    "lent",
    "resetting",
    "closing",
    "gone",
)
CHANGES = {
    OPENING: {IDLE, LENT, CLOSING},
    IDLE: {VALIDATING, LENT, CLOSING},
    VALIDATING: {IDLE, LENT, CLOSING},
    LENT: {IDLE, LENT, RESETTING, CLOSING, GONE},
    RESETTING: {IDLE, LENT, CLOSING},
    CLOSING: {GONE},
    GONE: set(),
}
"""Which state of a connection may follow which. ``LENT`` is "in use": from it to ``GONE``, it was detached; to itself, it was handed off.

The tests check every change (a descriptor replaces ``Slot.state``), so the check costs programs nothing.
"""

RAISED, DISCARD, BROKEN, UNUSED = 1, 2, 4, 8
"""How a lease ended: with an exception, to be closed, found broken, never used."""


class Order(Enum):
    """What the state wants the shell to do. The comment names the subject of each."""

    CONNECT = "connect"  # an approval
    TEST = "test"  # a slot: call has_broken, then is_valid
    CHECK = "check"  # a slot: call has_broken only
    SWEEP = "sweep"  # none: call has_broken for all idle connections
    CLOSE = "close"  # a slot
    TERMINATE = "terminate"  # a slot
    STARTED = "started"  # none: min_idle connections are open
    FIND_LEAKS = "find leaks"  # none
    DEADLOCK = "deadlock"  # the waiter that gets PoolDeadlock


class Slot(Generic[C]):
    """One connection's place in the pool, from its opening until it is gone."""

    __slots__ = (
        "born",
        "conn",
        "expires_at",
        "holder",
        "id",
        "kept_at",
        "loose",
        "mark",
        "stack",
        "stamp",
        "state",
        "suspect",
        "terminated",
        "uses",
        "validated",
    )

    def __init__(self, conn: C, ident: int, now: float, expires_at: float) -> None:
        self.conn = conn
        self.id = ident
        self.born = now
        self.expires_at = expires_at
        self.state = OPENING
        self.stamp = now  # idle: when it was used or validated last; in use: since when
        self.kept_at = now  # when keepalive validated it last, which does not count as use
        self.uses = 0
        self.holder: Any = None  # the task that has it, while it is in use
        self.loose = False  # acquired by ``await``: any task may release it
        self.mark: CloseReason | None = None  # it is closed when it is returned; once it is closing: why
        self.suspect = False  # an exception left its borrower's block: it is validated before its next use
        self.stack: str | None = None
        self.terminated = False
        self.validated = False  # it has passed a validation

    def used_at(self) -> float:
        """Return when it was used last, or validated for a waiter."""
        return self.stamp

    def heard_at(self) -> float:
        """Return when the server answered last, as far as is known."""
        return max(self.stamp, self.kept_at)


class Approval(Generic[C]):
    """The right to make one connection attempt: redeemed exactly once, by ``put`` or ``connect_failed`` (bb8's idea)."""

    __slots__ = ("generation", "late", "orphan", "since", "waiter")

    def __init__(self, waiter: Waiter[C] | None, now: float, generation: int) -> None:
        self.waiter = waiter
        self.late = False  # it takes too long during a back-off: another attempt may run beside it
        self.orphan = False  # its waiter timed out or was cancelled: it is no supply for other waiters (pgx #1259)
        self.since = now
        self.generation = generation


class Trial(Generic[C]):
    """A validation or a reset in progress."""

    __slots__ = ("bare", "keeps", "late", "late_at", "since", "waiter")

    def __init__(self, now: float, late_at: float) -> None:
        self.since = now
        self.late_at = late_at
        self.late = False  # it is slower than usual, so it no longer counts as supply
        self.waiter: Waiter[C] | None = None  # whom a validation is for
        self.bare = False  # only has_broken is called
        self.keeps = False  # a validation by keepalive


class Waiter(Generic[C]):
    """A get that waits. The shell's subclass serves it; these attributes belong to the state."""

    __slots__ = ("approval", "deadline", "direct", "idle_only", "patient", "queued", "started", "task", "test")

    def __init__(self, task: Any = None, *, idle_only: bool = False, patient: bool = True) -> None:
        self.task = task
        self.started = 0.0
        self.deadline = inf
        self.queued = False
        self.approval: Approval[C] | None = None
        self.test: Trial[C] | None = None
        self.direct = False  # served by the connection that was validated for it
        self.idle_only = idle_only  # try_get: wants an idle connection or nothing
        self.patient = patient and not idle_only  # it waits with the default timeout

    def offer(self, slot: Slot[C] | None) -> bool:
        """Accept the connection (None: there is none for a try_get). False: this get is gone, try the next one."""
        raise NotImplementedError

    def gone(self) -> bool:
        """Return whether it was cancelled or served already."""
        raise NotImplementedError

    def fail(self, error: BaseException | None) -> None:
        """Fail: no connection will come. None: the pool is closing."""
        raise NotImplementedError
