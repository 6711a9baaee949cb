"""The conformance suite for threads, asked of pool_psycopg.threads."""

from __future__ import annotations

from typing import Any

import pytest
from pool_core.testing import threads
from pool_psycopg.threads import PsycopgConnectionManager

from containers.servers import Server


class _Conformance(threads.ThreadManagerConformance):
    options: dict[str, Any]
    db: Server

    @pytest.fixture(autouse=True)
    def _db(self, postgres: Server) -> None:
        self.db = postgres

    def manager(self) -> PsycopgConnectionManager:
        return PsycopgConnectionManager(self.db.url, **self.options)

    def address(self) -> tuple[str, int]:
        return self.db.host, self.db.port

    def via(self, host: str, port: int) -> PsycopgConnectionManager:
        return PsycopgConnectionManager(self.db.url, host=host, port=port, **self.options)

    def dirty(self, conn: Any) -> None:
        conn.execute("SET app.tenant = '7'")

    def look(self, conn: Any) -> object:
        return conn.execute("SELECT coalesce(current_setting('app.tenant', true), '')").fetchone()

    def block(self, conn: Any) -> None:
        conn.execute("SELECT pg_sleep(30)")


class TestSafe(_Conformance):
    """The default."""

    options: dict[str, Any] = {}


class TestStrictAutocommit(_Conformance):
    """Prepared statements are reset, too."""

    options: dict[str, Any] = {"reset": "strict", "autocommit": True}


del _Conformance
