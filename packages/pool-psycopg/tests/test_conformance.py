"""The questions that every adapter must be able to answer, asked of this one behind a fault proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pool_core.testing import ManagerConformance, Probe
from pool_psycopg import PsycopgConnectionManager
from psycopg.rows import dict_row, tuple_row
from psycopg.types.string import TextLoader
from psycopg_helpers import value

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from containers.servers import Server, ServerFactory

pytestmark = pytest.mark.cancellation


def probe(name: str, dirty: str, look: str) -> Probe[Any]:
    """State that one statement leaves behind and another one sees."""
    do: Callable[[Any], Awaitable[object]] = lambda conn: conn.execute(dirty)
    see: Callable[[Any], Awaitable[object]] = lambda conn: value(conn, look)
    return Probe(name, do, see)


async def last_value(conn: Any) -> object:
    """What lastval() gives, None where this session has counted nothing."""
    try:
        return await value(conn, "SELECT lastval()")
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return None


def attribute(name: str, changed: Any) -> Probe[Any]:
    """What a borrower can set on the connection object."""

    async def dirty(conn: Any) -> None:
        setattr(conn, name, changed)

    async def look(conn: Any) -> object:
        return getattr(conn, name)

    return Probe(name, dirty, look)


async def adapt(conn: Any) -> None:
    conn.adapters.register_loader("int4", TextLoader)


async def seven(conn: Any) -> object:
    return type(await value(conn, "SELECT 7")).__name__


async def set_read_only(conn: Any) -> None:
    await conn.set_autocommit(False)
    await conn.set_read_only(True)
    await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)


async def modes(conn: Any) -> object:
    return conn.autocommit, conn.read_only, conn.isolation_level, conn.deferrable


async def handle(conn: Any) -> None:
    conn.add_notice_handler(print)
    conn.add_notify_handler(print)


async def handlers(conn: Any) -> object:
    return len(conn._notice_handlers), len(conn._notify_handlers)


async def notify(conn: Any) -> None:
    await conn.execute("LISTEN backlog")
    await conn.execute("NOTIFY backlog")
    await conn.execute("SELECT 1")


async def backlog(conn: Any) -> object:
    return len(conn._notifies_backlog)


class TestPsycopg(ManagerConformance[Any]):
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
        attribute("row_factory", dict_row),
        attribute("cursor_factory", psycopg.AsyncClientCursor),
        attribute("prepare_threshold", None),
        attribute("prepared_max", 3),
        Probe("adapters", adapt, seven),
        Probe("transaction modes", set_read_only, modes),
        Probe("handlers", handle, handlers),
        Probe("notifications that nobody read", notify, backlog),
    )

    @pytest.fixture(autouse=True)
    def _address(self, server: ServerFactory) -> None:
        self.server: Server = server("postgres")
        self.host, self.port, self.secrets = self.server.host, self.server.port, (str(self.server.password), "canary")

    def manager(self, host: str, port: int) -> PsycopgConnectionManager:
        return self.login(host, port)

    def login(self, host: str, port: int, **changes: Any) -> PsycopgConnectionManager:
        login = {"user": self.server.user, "password": self.server.password, "dbname": self.server.database}
        return PsycopgConnectionManager(host=host, port=port, **{"autocommit": True, **login, **changes})

    async def use(self, conn: Any) -> None:
        row = await (await conn.cursor(row_factory=tuple_row).execute("SELECT 6 * %s::int", [7])).fetchone()
        assert row == (42,)

    async def slow_request(self, conn: Any) -> None:
        await conn.execute("SELECT pg_sleep(10)")

    async def leave_unread(self, conn: Any) -> None:
        async for _ in conn.cursor().stream("SELECT generate_series(1, 1000)"):
            break

    async def begin(self, conn: Any) -> None:
        await conn.execute("BEGIN")

    async def in_transaction(self, conn: Any) -> bool:
        # The server's own word: outside a transaction each statement has another start.
        starts = [await value(conn, "SELECT now()") for _ in range(2)]
        return bool(starts[0] == starts[1])

    async def server_kill(self, conn: Any) -> None:
        async with await psycopg.AsyncConnection.connect(self.server.url, autocommit=True) as admin:
            await admin.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])

    def bad_credentials(self, host: str, port: int) -> dict[str, PsycopgConnectionManager]:
        return {
            "wrong password": self.login(host, port, password="canary"),
            "unknown database": self.login(host, port, dbname="nowhere"),
            "unknown role": self.login(host, port, user="nobody", password="canary"),
            "TLS demanded, not offered": self.login(host, port, sslmode="require"),
        }
