"""Redis and Valkey for pool_core, on redis-py's asyncio client."""

from ._cluster import LeasedRedisCluster, RedisClusterConnectionManager
from ._connection import LeasedRedis
from ._manager import RedisConnectionManager, WrongServer
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
