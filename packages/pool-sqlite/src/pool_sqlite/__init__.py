"""SQLite for pool-core: on aiosqlite, and in ``pool_sqlite.threads`` on sqlite3."""

from typing import TYPE_CHECKING, Any

from ._settings import SqliteOptions

if TYPE_CHECKING:
    from ._manager import SqliteConnectionManager

__all__ = ["SqliteConnectionManager", "SqliteOptions"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import aiosqlite, and with it asyncio, for those who ask: a program of threads does without."""
        if name != "SqliteConnectionManager":
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from ._manager import SqliteConnectionManager

        globals()[name] = SqliteConnectionManager
        return SqliteConnectionManager
