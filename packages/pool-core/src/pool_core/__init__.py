"""A generic asynchronous connection pool, in the line of bb8 and r2d2."""

from typing import TYPE_CHECKING, Any

from ._config import PoolConfig, PoolOptions, QueueStrategy
from ._errors import (
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
    WrongEventLoop,
)
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
from ._statistics import CloseReason, Holder, State, Statistics

if TYPE_CHECKING:
    from ._events import (
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
    from ._lease import DedicatedConnection, PooledConnection
    from ._pool import Pool

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
    "WrongEventLoop",
]

if not TYPE_CHECKING:  # pragma: no branch - for type checkers a module with __getattr__ has every name

    def __getattr__(name: str) -> Any:
        """Import what needs asyncio, and the events, for those who ask: a program of threads does without."""
        if name == "Pool":
            from . import _pool

            found = _pool.Pool
        elif name in ("PooledConnection", "DedicatedConnection"):
            from . import _lease

            found = getattr(_lease, name)
        elif name in __all__:  # an event: all other names are here
            from . import _events

            found = getattr(_events, name)
        else:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
