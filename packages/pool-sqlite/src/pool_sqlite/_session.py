"""What both pools know of a SQLite session: what changes it, and how a test transaction reads SQL. No aiosqlite here."""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SAVEPOINT", "Watch", "boundary", "statements"]

_WRITES: Final = frozenset({sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE})
# PRAGMAs that take an argument and change nothing, or the file, which is no session's. All others are noted: a list of
# those that change the session would not be complete for the next SQLite.
_HARMLESS_PRAGMAS: Final = frozenset(
    {
        *("application_id", "foreign_key_check", "foreign_key_list", "incremental_vacuum", "index_info", "index_list"),
        *("index_xinfo", "integrity_check", "optimize", "quick_check", "table_info", "table_list", "table_xinfo"),
        *("user_version", "wal_checkpoint"),
    }
)
SAVEPOINT: Final = "pool_sqlite_test"
_BOUNDARY = re.compile(
    r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*(?P<word>BEGIN|COMMIT|END|ROLLBACK)\b(?!\s+(?:TRANSACTION\s+)?TO\b)",
    re.IGNORECASE | re.DOTALL,
)


class Watch:
    """SQLite's authorizer, called while a statement is prepared. It refers to no connection, so makes no cycle."""

    __slots__ = ("_test", "borrowers", "ended", "noticed")

    def __init__(self, *, test_transaction: bool) -> None:
        self._test = test_transaction
        self.noticed = False
        self.ended = False  # no further statement is compiled
        self.borrowers: Callable[..., int] | None = None

    def __call__(self, action: int, first: Any, second: Any, database: Any, source: Any) -> int:
        if self.ended:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_PRAGMA:
            if second is not None and not self._is_harmless(first.lower(), second):
                self.noticed = True
        elif action in _WRITES:
            if database == "temp":  # its schema is a table, too
                self.noticed = True
        elif action in {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}:
            self.noticed = True
        elif self._test and action == sqlite3.SQLITE_TRANSACTION:
            return sqlite3.SQLITE_DENY  # nothing may end the test transaction
        if self.borrowers is not None:
            return self.borrowers(action, first, second, database, source)
        return sqlite3.SQLITE_OK

    @staticmethod
    def _is_harmless(pragma: str, argument: str) -> bool:
        # Write-ahead logging belongs to the file; other journal modes belong to the session.
        return pragma in _HARMLESS_PRAGMAS or (pragma == "journal_mode" and argument.lower() == "wal")


def boundary(statement: object) -> Literal["BEGIN", "COMMIT", "ROLLBACK"] | None:
    if not isinstance(statement, str) or (match := _BOUNDARY.match(statement)) is None:
        return None
    word = match["word"].upper()
    if word == "BEGIN":
        return "BEGIN"
    return "ROLLBACK" if word == "ROLLBACK" else "COMMIT"


def statements(script: str) -> Iterator[str]:
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip("; \t\r\n"):
        yield statement.removesuffix(";")  # the last one may do without, or be wrong: SQLite will say so
