"""memcached for pool_core, on aiomcache's client."""

from ._driver import LeasedMemcached
from ._manager import LoginRefused, MemcachedConnectionManager, WrongServer

__all__ = ["LeasedMemcached", "LoginRefused", "MemcachedConnectionManager", "WrongServer"]
