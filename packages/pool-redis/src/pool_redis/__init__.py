"""Redis and Valkey for pool_core, on redis-py's asyncio client."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._internals import LeasedRedis
from ._manager import RedisConnectionManager, WrongServer

if TYPE_CHECKING:
    from ._cluster import LeasedRedisCluster, RedisClusterConnectionManager
    from ._pool import RedisPool
    from ._sentinel import MasterAwayError, RedisSentinelConnectionManager

__all__ = [
    "LeasedRedis",
    "LeasedRedisCluster",
    "MasterAwayError",
    "RedisClusterConnectionManager",
    "RedisConnectionManager",
    "RedisPool",
    "RedisSentinelConnectionManager",
    "WrongServer",
]

_PLACES = {
    "LeasedRedisCluster": "_cluster",
    "RedisClusterConnectionManager": "_cluster",
    "RedisPool": "_pool",
    "MasterAwayError": "_sentinel",
    "RedisSentinelConnectionManager": "_sentinel",
}


def __getattr__(name: str) -> Any:
    """Import Cluster, Sentinel and RedisPool when they are first asked for: most programs need none of them."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
