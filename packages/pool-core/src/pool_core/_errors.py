"""Every error that the pool raises. They have one base class, and no text contains a secret.

Each survives ``pickle`` and ``copy`` with its attributes: a ProcessPoolExecutor breaks on an error that does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from ._statistics import State

Phase = Literal["queue", "connect", "validate"]

__all__ = [
    "BrokenConnection",
    "ConnectError",
    "ForkedPool",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolFull",
    "PoolOverloaded",
    "PoolTimeout",
    "PoolUnavailable",
    "PoolWarning",
    "ReplaceConnection",
    "WrongEventLoop",
]


class PoolError(Exception):
    """The base class of all errors that the pool itself raises."""


class PoolUnavailable(PoolError):
    """No connection is available now, without a mistake of the program: a web service answers 503.

    The base of PoolTimeout (with PoolDeadlock), PoolOverloaded, ConnectError and PoolClosed.
    """


class PoolTimeout(PoolUnavailable, TimeoutError):
    """No connection was available in time. ``__cause__`` is the last connect error since the last success.

    Attributes:
        phase: what the get was waiting for: ``"queue"``, ``"connect"`` or ``"validate"``.
        waited: seconds since the get began.
        state: the pool's numbers at that moment.
    """

    def __init__(
        self, message: str = "", *, phase: Phase = "queue", waited: float = 0.0, state: State | None = None
    ) -> None:
        super().__init__(message)
        self.phase: Phase = phase
        self.waited = waited
        self.state = cast("State", state)  # None only while it is unpickled


class PoolDeadlock(PoolTimeout):
    """Every connection is held by a task that itself waits for another one: this get could only time out.

    It is a PoolTimeout, raised early, so a program with a fallback for the timeout keeps working.
    """


class PoolClosed(PoolUnavailable):
    """The pool is not open: never opened, closing or closed."""


class PoolOverloaded(PoolUnavailable):
    """More gets are waiting than ``max_waiting`` allows."""


class ConnectError(PoolUnavailable):
    """Connecting failed permanently. ``__cause__`` is the driver's own error."""


class PoolWarning(UserWarning):
    """The pool's configuration probably does not do what was intended."""


class ReplaceConnection(Exception):
    """Raised by a manager's ``reset``: the connection works, but replacing it is cheaper than resetting it.

    The pool closes it with the reason ``replaced``, without a warning, and other connections stay trusted.
    """


class WrongEventLoop(PoolError):
    """The pool belongs to another event loop."""


class ForkedPool(PoolError):
    """The pool was opened before a fork: its sockets belong to the parent process."""


class _Refused(PoolError):
    def __init__(self, message: str = "", connection: Any = None) -> None:
        super().__init__(message)
        self.connection = connection


class BrokenConnection(_Refused):
    """``add`` was given a broken connection, which is the attribute ``connection``."""


class PoolFull(_Refused):
    """``add`` found no free slot; the attribute ``connection`` is the connection."""
