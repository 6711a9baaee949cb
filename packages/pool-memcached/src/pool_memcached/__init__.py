"""memcached for pool_core, on aiomcache's client."""

from ._driver import LeasedMemcached
from ._manager import LoginRefusedError, MemcachedConnectionManager, WrongServerError

__all__ = ["LeasedMemcached", "LoginRefusedError", "MemcachedConnectionManager", "WrongServerError"]
