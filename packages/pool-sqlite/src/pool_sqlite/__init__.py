"""SQLite for pool-core, on aiosqlite."""

from ._manager import SqliteConnectionManager
from ._settings import SqliteOptions

__all__ = ["SqliteConnectionManager", "SqliteOptions"]
