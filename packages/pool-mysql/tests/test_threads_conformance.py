"""The conformance suite for threads, asked of pool_mysql.threads."""

from __future__ import annotations

from typing import Any

import pytest
from pool_core.testing import threads
from pool_mysql.threads import MySQLConnectionManager

from containers.servers import Server, ServerFactory


class _Conformance(threads.ThreadManagerConformance):
    dialect: str
    db: Server

    @pytest.fixture(autouse=True)
    def _db(self, server: ServerFactory) -> None:
        self.db = server(self.dialect)

    def manager(self) -> MySQLConnectionManager:
        return MySQLConnectionManager(self.db.url)

    def address(self) -> tuple[str, int]:
        return self.db.host, self.db.port

    def via(self, host: str, port: int) -> MySQLConnectionManager:
        return MySQLConnectionManager(self.db.url, host=host, port=port)

    def dirty(self, conn: Any) -> None:
        conn.query("SET @mine = 1")

    def look(self, conn: Any) -> object:
        with conn.cursor() as cursor:
            cursor.execute("SELECT @mine")
            return cursor.fetchall()

    def block(self, conn: Any) -> None:
        conn.query("SELECT SLEEP(30)")


class TestMySQL(_Conformance):
    dialect = "mysql"


class TestMariaDB(_Conformance):
    dialect = "mariadb"


del _Conformance
