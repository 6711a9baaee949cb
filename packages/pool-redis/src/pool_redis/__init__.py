"""Redis and Valkey for pool_core, on redis-py's asyncio client."""

from ._connection import LeasedRedis
from ._manager import RedisConnectionManager, WrongServer
from ._pool import RedisPool

__all__ = ["LeasedRedis", "RedisConnectionManager", "RedisPool", "WrongServer"]
