"""The nouns of the pool's decisions: a connection's place, the right to connect, a get that waits, a test or reset.

They know nothing of a loop. What a shell needs beside them stands in its own subclass of ``Waiter``.
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
"""Which state of a connection may follow which. From lent to gone: it was detached; to lent: it was handed on.

The tests look at every change (a descriptor in the place of ``Slot.state``), so that it costs no program a thing.
"""

RAISED, DISCARD, BROKEN, UNUSED = 1, 2, 4, 8
"""How a lease ended: by an exception, to be closed, found broken, never used."""


class Order(Enum):
    """What the state asks of the shell. Beside each stands its subject."""

    CONNECT = "connect"  # an approval
    TEST = "test"  # a slot: first has_broken, then is_valid
    CHECK = "check"  # a slot: has_broken alone
    SWEEP = "sweep"  # none: ask has_broken of all idle ones
    CLOSE = "close"  # a slot
    TERMINATE = "terminate"  # a slot
    STARTED = "started"  # none: min_idle is up
    FIND_LEAKS = "find leaks"  # none
    DEADLOCK = "deadlock"  # the waiter that is to be refused


class Slot(Generic[C]):
    """One connection's place in the pool, from its birth until it is gone."""

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
        self.stamp = now  # idle: last used or tested; lent: since when
        self.kept_at = now  # validated last by keepalive, which is no use
        self.uses = 0
        self.holder: Any = None  # the task that has it, while it is lent
        self.loose = False  # lent by ``await``: anybody may release it
        self.mark: CloseReason | None = None  # it goes on its return; once closed: why
        self.suspect = False  # its borrower gave it back because of an exception: it is tested before its next use
        self.stack: str | None = None
        self.terminated = False
        self.validated = False  # it has passed a test

    def used_at(self) -> float:
        """When it was used last, or validated for a waiter."""
        return self.stamp

    def heard_at(self) -> float:
        """When the server answered last, as far as is known."""
        return max(self.stamp, self.kept_at)


class Approval(Generic[C]):
    """The right to open one connection: redeemed exactly once, by ``put`` or ``connect_failed`` (bb8's best idea)."""

    __slots__ = ("generation", "late", "orphan", "since", "waiter")

    def __init__(self, waiter: Waiter[C] | None, now: float, generation: int) -> None:
        self.waiter = waiter
        self.late = False  # a probe that has lost patience: others may probe beside it
        self.orphan = False  # its waiter timed out or was cancelled: it counts for nobody else (pgx #1259)
        self.since = now
        self.generation = generation


class Trial(Generic[C]):
    """A test or a reset under way."""

    __slots__ = ("bare", "keeps", "late", "late_at", "since", "waiter")

    def __init__(self, now: float, late_at: float) -> None:
        self.since = now
        self.late_at = late_at
        self.late = False  # it is slower than usual: it counts as supply no longer
        self.waiter: Waiter[C] | None = None  # whom a test is for
        self.bare = False  # has_broken alone is asked
        self.keeps = False  # a validation by keepalive


class Waiter(Generic[C]):
    """A get that waits. The shell's subclass answers; these marks are the state's own."""

    __slots__ = ("approval", "deadline", "direct", "idle_only", "patient", "queued", "started", "task", "test")

    def __init__(self, task: Any = None, *, idle_only: bool = False, patient: bool = True) -> None:
        self.task = task
        self.started = 0.0
        self.deadline = inf
        self.queued = False
        self.approval: Approval[C] | None = None
        self.test: Trial[C] | None = None
        self.direct = False  # served by its own test
        self.idle_only = idle_only  # try_get: takes an idle one or nothing
        self.patient = patient and not idle_only  # it waits with the default time-out

    def offer(self, slot: Slot[C] | None) -> bool:
        """Take the connection (None: there is none for a try_get), or answer False: already gone, try the next."""
        raise NotImplementedError

    def gone(self) -> bool:
        """Tell whether it was cancelled already, or answered."""
        raise NotImplementedError

    def fail(self, error: BaseException | None) -> None:
        """Give up: no connection will come. None: the pool is closing."""
        raise NotImplementedError
