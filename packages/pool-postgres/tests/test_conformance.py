"""The conformance suite for this adapter, behind a fault proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pool_core.testing import ManagerConformance, Probe
from pool_postgres import PostgresConnectionManager

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from containers.servers import Server, ServerFactory

pytestmark = pytest.mark.cancellation


def probe(name: str, dirty: str, look: str) -> Probe[Any]:
    """State that one statement leaves behind and another one sees."""
    do: Callable[[Any], Awaitable[object]] = lambda conn: conn.execute(dirty)
    see: Callable[[Any], Awaitable[object]] = lambda conn: conn.fetchval(look)
    return Probe(name, do, see)


async def last_value(conn: Any) -> object:
    """What lastval() gives, None where this session has counted nothing."""
    try:
        return await conn.fetchval("SELECT lastval()")
    except asyncpg.ObjectNotInPrerequisiteStateError:
        return None


class TestPostgres(ManagerConformance[Any]):
    """The conformance suite."""

    probes = (
        probe("role", "SET ROLE pg_monitor", "SELECT current_user"),
        probe("session authorization", "SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user"),
        probe("search_path", "SET search_path = pg_temp, nowhere", "SHOW search_path"),
        probe("settings", "SET work_mem = '123kB'", "SHOW work_mem"),
        probe("custom settings", "SET app.tenant = '7'", "SELECT coalesce(current_setting('app.tenant', true), '')"),
        probe(
            "advisory locks",
            "SELECT pg_advisory_lock(4711)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
        probe("listening", "LISTEN news", "SELECT count(*) FROM pg_listening_channels()"),
        probe("temporary tables", "CREATE TEMP TABLE leftover (a int)", "SELECT to_regclass('leftover')::text"),
        probe(
            "cursors",
            "DECLARE open CURSOR WITH HOLD FOR SELECT 1",
            "SELECT count(*) FROM pg_cursors WHERE name = 'open'",
        ),
        Probe(
            "sequence caches",
            lambda conn: conn.execute("CREATE SEQUENCE IF NOT EXISTS counted; SELECT nextval('counted')"),
            last_value,
        ),
    )

    @pytest.fixture(autouse=True)
    def _address(self, server: ServerFactory) -> None:
        self.server: Server = server("postgres")
        self.host, self.port, self.secrets = self.server.host, self.server.port, (str(self.server.password), "canary")

    def manager(self, host: str, port: int) -> PostgresConnectionManager:
        return self.login(host, port)

    def login(self, host: str, port: int, **changes: Any) -> PostgresConnectionManager:
        login = {"user": self.server.user, "password": self.server.password, "database": self.server.database}
        return PostgresConnectionManager(host=host, port=port, **{**login, **changes})

    async def use(self, conn: Any) -> None:
        assert await conn.fetchval("SELECT 6 * $1::int", 7) == 42

    async def slow_request(self, conn: Any) -> None:
        await conn.execute("SELECT pg_sleep(10)")

    async def leave_unread(self, conn: Any) -> None:
        await conn.transaction().start()
        cursor = await conn.cursor("SELECT generate_series(1, 1000)")
        await cursor.fetch(10)

    async def late_error(self, conn: Any) -> None:
        query = b"SELECT 1/0\0"  # past the driver, which knows of no request then
        conn._transport.write(b"Q" + (len(query) + 4).to_bytes(4, "big") + query)

    async def begin(self, conn: Any) -> None:
        await conn.transaction().start()

    async def in_transaction(self, conn: Any) -> bool:
        # The server's own word: outside a transaction each statement has another start.
        starts = [await conn.fetchval("SELECT now()") for _ in range(2)]
        return bool(starts[0] == starts[1])

    async def server_kill(self, conn: Any) -> None:
        admin = await asyncpg.connect(self.server.url)
        await admin.execute("SELECT pg_terminate_backend($1)", conn.get_server_pid())
        await admin.close()

    def bad_credentials(self, host: str, port: int) -> dict[str, PostgresConnectionManager]:
        return {
            "wrong password": self.login(host, port, password="canary"),
            "unknown database": self.login(host, port, database="nowhere"),
            "unknown role": self.login(host, port, user="nobody", password="canary"),
            "TLS demanded, not offered": self.login(host, port, ssl="require"),
        }
