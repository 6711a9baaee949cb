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
        if name in __all__:  # an event: all other names are here
            from . import _events

            return getattr(_events, name)
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
