"""The conformance suite for threads, asked of pool_sqlite.threads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pool_core.testing import threads
from pool_sqlite.threads import SqliteConnectionManager


class TestSqlite(threads.ThreadManagerConformance):
    """A file of its own for each question."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name, "a.db")

    def manager(self) -> SqliteConnectionManager:
        return SqliteConnectionManager(self.file)

    def dirty(self, conn: Any) -> None:
        conn.execute("CREATE TEMP TABLE mine (x)")

    def look(self, conn: Any) -> object:
        return conn.execute("SELECT name FROM sqlite_temp_master").fetchall()

    def block(self, conn: Any) -> None:
        conn.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n").fetchall()
