"""SQL Server: what can be said without one, and the conformance suite on the official image where it can be had.

It runs with Microsoft's ODBC driver installed and the image pulled, or with POOL_TEST_SQLSERVER_URL=mssql://... .
"""

from collections.abc import Mapping
from typing import Any

import pyodbc
import pytest
from odbc_systems import CANARY, run
from pool_core.testing import ManagerConformance, Probe
from pool_odbc import OdbcConnectionManager
from pool_odbc._connection import OdbcConnection
from pool_odbc._dialects import SQL_SERVER

from containers.servers import Server, ServerFactory

STATE = {
    "language": ("SET LANGUAGE French", "SELECT @@LANGUAGE"),
    "isolation": (
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SELECT transaction_isolation_level FROM sys.dm_exec_sessions WHERE session_id = @@SPID",
    ),
    "temporary tables": ("CREATE TABLE #mine (a int)", "SELECT OBJECT_ID('tempdb..#mine')"),
    "database": ("USE tempdb", "SELECT DB_NAME()"),
    "context": ("SET CONTEXT_INFO 0x7", "SELECT CONTEXT_INFO()"),
}


class Raw:
    """A pyodbc connection that notes what is asked of it."""

    def __init__(self, *, knows_reset: bool = True) -> None:
        self.asked: list[Any] = []
        self._knows_reset = knows_reset
        self.__dict__["autocommit"] = False
        self.timeout = self.maxwrite = 0

    def __setattr__(self, name: str, value: object) -> None:
        if name == "autocommit":
            self.asked.append((name, value))
        self.__dict__[name] = value

    def set_attr(self, name: int, value: int) -> None:
        if not self._knows_reset:
            raise pyodbc.Error("HY092", "[HY092] [FreeTDS][SQL Server]Invalid option (0) (SQLSetConnectAttr)")
        self.asked.append((name, value))

    def rollback(self) -> None:
        self.asked.append("rollback")

    def clear_output_converters(self) -> None:
        pass

    def cursor(self) -> "Raw":
        return self

    def execute(self, sql: str) -> "Raw":
        self.asked.append(sql)
        return self

    def nextset(self) -> bool:
        return False

    def close(self) -> None:
        pass


def connection(raw: Any) -> OdbcConnection:
    conn = OdbcConnection(cancel_timeout=1, probe=None, port=None)
    conn.dialect = SQL_SERVER
    conn._raw = raw
    conn._restoring = SQL_SERVER.restoring(()) if conn._takes_attributes(raw) else None
    conn._start = {"autocommit": False}
    return conn


async def test_a_reset_asks_the_driver_for_sp_reset_connection() -> None:
    """SQL_COPT_SS_RESET_CONNECTION, sent with the next statement, which restores what it leaves: the isolation level."""
    raw = Raw()
    conn = connection(raw)
    raw.asked.clear()
    conn._reset(everything=True)
    assert raw.asked == [
        "rollback",
        ("autocommit", True),
        (1246, 1),
        "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION",
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
        ("autocommit", False),
    ]
    conn.terminate()


async def test_with_a_driver_that_cannot_do_it_statements_are_watched() -> None:
    """FreeTDS: a connection on which the session may have been changed is replaced."""
    conn = connection(Raw(knows_reset=False))
    assert conn._may_change("execute", ("SET LANGUAGE French",))
    assert not conn._may_change("execute", ("SELECT 1",))
    conn.terminate()


@pytest.fixture(scope="session")
def sqlserver(server: ServerFactory) -> Server:
    """The official image."""
    if not any(name.endswith("for SQL Server") for name in pyodbc.drivers()):
        pytest.skip("NOT SEEN ON SQL SERVER: Microsoft's ODBC driver is not installed (msodbcsql18)")
    return server("sqlserver")


def probe_of(name: str) -> Probe[Any]:
    dirty, look = STATE[name]
    return Probe(name, lambda conn: run(conn, dirty), lambda conn: run(conn, look))


class TestSQLServer(ManagerConformance[Any]):
    """Microsoft's driver."""

    skips = {"silent_server": "a connect that waits in the driver ends with its login timeout"}
    probes = [probe_of(name) for name in STATE]

    @pytest.fixture(autouse=True)
    def _server(self, sqlserver: Server) -> None:
        self.server = sqlserver
        self.host, self.port = sqlserver.host, sqlserver.port

    def manager(self, host: str, port: int, **options: Any) -> OdbcConnectionManager:
        known = {"user": self.server.user, "password": self.server.password, "timeout": 3, **options}
        return OdbcConnectionManager(f"mssql://{host}:{port}/master?TrustServerCertificate=yes", **known)

    async def use(self, conn: Any) -> None:
        assert await run(conn, "SELECT 6 * 7") == [(42,)]

    async def slow_request(self, conn: Any) -> None:
        await run(conn, "WAITFOR DELAY '00:00:20'")

    async def leave_unread(self, conn: Any) -> None:
        cursor = await conn.execute("SELECT 1 UNION SELECT 2")
        await cursor.fetchone()

    async def begin(self, conn: Any) -> None:
        await run(conn, "SELECT 1 FROM sys.objects")

    async def in_transaction(self, conn: Any) -> bool:
        return await run(conn, "SELECT @@TRANCOUNT") != [(0,)]

    async def server_kill(self, conn: Any) -> None:
        ((number,),) = await run(conn, "SELECT @@SPID")
        other = await self.manager(self.host, self.port, autocommit=True).connect()
        await run(other, f"KILL {number}")
        await other.close()

    def bad_credentials(self, host: str, port: int) -> Mapping[str, OdbcConnectionManager]:
        return {
            "wrong password": self.manager(host, port, password=CANARY),
            "unknown database": self.manager(host, port, database="nowhere"),
        }
