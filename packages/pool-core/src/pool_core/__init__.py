"""A generic asynchronous connection pool, in the line of bb8 and r2d2."""

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
    WrongEventLoop,
)
from ._events import (
    Acquired,
    CheckedIn,
    CheckedOut,
    CloseReason,
    ConnectFailed,
    Event,
    Leaked,
    Released,
    ResetFailed,
    TimedOut,
)
from ._lease import DedicatedConnection, PooledConnection
from ._manager import ConnectionCustomizer, ConnectionManager, SupportsReset, SupportsTerminate, SupportsTransient
from ._pool import Pool
from ._statistics import Holder, State, Statistics

__all__ = [
    "Acquired",
    "BrokenConnection",
    "CheckedIn",
    "CheckedOut",
    "CloseReason",
    "ConnectError",
    "ConnectFailed",
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
    "PooledConnection",
    "QueueStrategy",
    "Released",
    "ResetFailed",
    "State",
    "Statistics",
    "SupportsReset",
    "SupportsTerminate",
    "SupportsTransient",
    "TimedOut",
    "WrongEventLoop",
]
