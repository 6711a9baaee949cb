"""What SQLite's errors mean, for both pools."""

from __future__ import annotations

import sqlite3
from typing import Final

from pool_core import Verdict
from pool_core.adapters import ErrorTable, is_transient

__all__ = ["VERDICTS", "heals", "with_the_file"]

_CODES: Final = "https://www.sqlite.org/rescode.html"


def _code(exc: BaseException) -> str | None:
    return getattr(exc, "sqlite_errorname", None) if isinstance(exc, sqlite3.Error) else None


_HEALS: Final = ErrorTable(
    (("SQLITE_BUSY*", "SQLITE_LOCKED*", "SQLITE_PROTOCOL*"), True, f"{_CODES}: another connection holds a lock"),
    (
        ("SQLITE_INTERRUPT*", "SQLITE_NOMEM*", "SQLITE_FULL*"),
        True,
        f"{_CODES}: interrupted, out of memory or disk space",
    ),
    (sqlite3.Error, False, f"{_CODES}: a file that cannot be opened, or is not a database"),
    code=_code,
)
VERDICTS: Final = ErrorTable(
    # A file that was replaced or overwritten beneath the connections: new ones see the new file. Where the file really is
    # corrupt, a new connection costs less than a millisecond.
    (("SQLITE_CORRUPT*", "SQLITE_NOTADB*", "SQLITE_READONLY_DBMOVED"), Verdict.RETIRE_ALL, f"{_CODES}: not this file"),
    # A connection to a file that may not be written stays so for its life, even when the file may be written again.
    (
        ("SQLITE_READONLY*", "SQLITE_IOERR*", "SQLITE_INTERNAL*"),
        Verdict.CLOSE,
        f"{_CODES}: what it has read may be wrong",
    ),
    code=_code,
)


def heals(exc: Exception) -> bool:
    """Return whether the same attempt to connect may succeed later."""
    if isinstance(exc, sqlite3.Error) and _code(exc) is None:  # sqlite3's own words
        return "is locked" in str(exc)
    return is_transient(exc, _HEALS)


def with_the_file(error: sqlite3.Error, place: str) -> sqlite3.Error:
    """Make the same error with the name of the file, which SQLite never names."""
    named = type(error)(f"{error}: {place!r}")
    for name in ("sqlite_errorcode", "sqlite_errorname"):
        if hasattr(error, name):
            setattr(named, name, getattr(error, name))
    return named
