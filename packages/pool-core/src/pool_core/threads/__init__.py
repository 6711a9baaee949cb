"""The pool for threads: the policy of ``pool_core.Pool``, from the same state machine, with ordinary functions.

Nothing here imports asyncio.
"""

from typing import TYPE_CHECKING, Any

from pool_core._config import PoolConfig, PoolOptions, QueueStrategy
from pool_core._errors import (
    BrokenConnection,
    ConnectError,
    ForkedPool,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolFull,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
    PoolWarning,
    ReplaceConnection,
)
from pool_core._statistics import CloseReason, Holder, State, Statistics

from ._lease import DedicatedConnection, PooledConnection
from ._manager import (
    ConnectionCustomizer,
    ConnectionManager,
    SupportsIsClean,
    SupportsJudge,
    SupportsReset,
    SupportsTerminate,
    SupportsTransient,
    Verdict,
)
from ._pool import Pool

if TYPE_CHECKING:
    from pool_core._events import (
        CheckedIn,
        CheckedOut,
        Closed,
        Connected,
        ConnectFailed,
        Event,
        Leaked,
        ResetFailed,
        TimedOut,
    )

__all__ = [
    "BrokenConnection",
    "CheckedIn",
    "CheckedOut",
    "CloseReason",
    "Closed",
    "ConnectError",
    "ConnectFailed",
    "Connected",
    "ConnectionCustomizer",
    "ConnectionManager",
    "DedicatedConnection",
    "Event",
    "ForkedPool",
    "Holder",
    "Leaked",
    "Pool",
    "PoolClosed",
    "PoolConfig",
    "PoolDeadlock",
    "PoolError",
    "PoolFull",
    "PoolOptions",
    "PoolOverloaded",
    "PoolTimeout",
    "PoolUnavailable",
    "PoolWarning",
    "PooledConnection",
    "QueueStrategy",
    "ReplaceConnection",
    "ResetFailed",
    "State",
    "Statistics",
    "SupportsIsClean",
    "SupportsJudge",
    "SupportsReset",
    "SupportsTerminate",
    "SupportsTransient",
    "TimedOut",
    "Verdict",
]

if not TYPE_CHECKING:  # pragma: no branch - for type checkers a module with __getattr__ has every name

    def __getattr__(name: str) -> Any:
        """Import the classes of the events for those who ask: making them takes 4 ms."""
        if name not in __all__:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from pool_core import _events

        found = globals()[name] = getattr(_events, name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
