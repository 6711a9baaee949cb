"""A generic asynchronous connection pool, in the line of bb8 and r2d2."""

from ._manager import ConnectionCustomizer, ConnectionManager, SupportsReset, SupportsTerminate, SupportsTransient

__all__ = ["ConnectionCustomizer", "ConnectionManager", "SupportsReset", "SupportsTerminate", "SupportsTransient"]
