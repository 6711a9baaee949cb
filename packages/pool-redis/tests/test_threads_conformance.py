"""The conformance suite for threads, asked of pool_redis.threads."""

from __future__ import annotations

from typing import Any

import pytest
from pool_core.testing import threads
from pool_redis.threads import RedisConnectionManager

from containers.servers import Server, ServerFactory


class _Conformance(threads.ThreadManagerConformance):
    dialect: str
    db: Server

    @pytest.fixture(autouse=True)
    def _db(self, server: ServerFactory) -> None:
        self.db = server(self.dialect)

    def manager(self) -> RedisConnectionManager:
        return RedisConnectionManager(self.db.url, socket_timeout=None)

    def address(self) -> tuple[str, int]:
        return self.db.host, self.db.port

    def via(self, host: str, port: int) -> RedisConnectionManager:
        return RedisConnectionManager(self.db.url, host=host, port=port)

    def dirty(self, conn: Any) -> None:
        conn.client_setname("mine")

    def look(self, conn: Any) -> object:
        return conn.client_getname()

    def block(self, conn: Any) -> None:
        conn.blpop(["threads:none"], timeout=30)


class TestRedis(_Conformance):
    dialect = "redis"


class TestValkey(_Conformance):
    dialect = "valkey"


del _Conformance
