"""What every adapter has to prove, checked by the suite of pool-core, for each way to reset a session."""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
from mysql_dialects import Dialect
from pool_core.testing import ManagerConformance, Probe
from pool_mysql import Connection, MySQLConnectionManager

# What a borrower can leave behind, and how the next one would see it.
STATE = {
    "@variables": ("SET @x = 1", "SELECT @x"),
    "sql_mode": ("SET sql_mode = 'ANSI_QUOTES'", "SELECT @@sql_mode"),
    "session variables": (
        "SET time_zone = '+03:00', foreign_key_checks = 0",
        "SELECT @@time_zone, @@foreign_key_checks",
    ),
    "isolation": ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT {isolation}"),
    "read only": ("SET SESSION TRANSACTION READ ONLY", "SELECT {read_only}"),
    "GET_LOCK": ("SELECT GET_LOCK('suite', 1)", "SELECT IS_USED_LOCK('suite') IS NOT NULL"),
    "temporary tables": ("CREATE TEMPORARY TABLE things (mine INT)", "SHOW COLUMNS FROM things"),
    "database": ("USE other", "SELECT DATABASE()"),
    "charset": ("SET NAMES latin1", "SELECT @@character_set_client, @@collation_connection"),
    "autocommit": ("SET autocommit = 1", "SELECT @@autocommit"),
    "last insert id": ("SELECT LAST_INSERT_ID(7)", "SELECT LAST_INSERT_ID()"),
}


async def ask(conn: Connection, sql: str) -> Any:
    await conn.query(sql)
    return conn._result.rows


class Conformance(ManagerConformance[Connection]):
    """The hooks."""

    __test__ = False
    mode: ClassVar[Literal["safe", "strict", "none"]]

    @pytest.fixture(autouse=True)
    def _server(self, db: Any) -> None:
        self.db, self.host, self.port, self.secrets = db, db.host, db.port, (db.password, "canary")
        if self.mode != "none":
            self.probes = tuple(probe(name, db.dialect) for name in STATE)

    def manager(self, host: str, port: int) -> MySQLConnectionManager:
        return self.db.manager(host=host, port=port, reset=self.mode)  # type: ignore[no-any-return]

    async def use(self, conn: Connection) -> None:
        assert await ask(conn, "SELECT 6 * 7") == ((42,),)

    async def slow_request(self, conn: Connection) -> None:
        await ask(conn, "SELECT SLEEP(20)")

    async def leave_unread(self, conn: Connection) -> None:
        await conn.query("SELECT 1 UNION SELECT 2", unbuffered=True)

    async def late_error(self, conn: Connection) -> None:
        query = b"\x03SELECT nonsense FROM"  # past the driver's methods, which would wait for the answer
        conn._writer.write(len(query).to_bytes(4, "little") + query)

    async def begin(self, conn: Connection) -> None:
        await ask(conn, "SELECT * FROM things FOR UPDATE")

    async def in_transaction(self, conn: Connection) -> bool:
        # Not by the answer to a ping: in MySQL the probe SHOW COLUMNS begins a transaction, one without locks.
        return bool(await asyncio.to_thread(self.db.things_are_locked))

    async def server_kill(self, conn: Connection) -> None:
        self.db.admin(f"KILL {conn.thread_id()}")

    def bad_credentials(self, host: str, port: int) -> dict[str, MySQLConnectionManager]:
        return {
            "a wrong password": self.db.manager(host=host, port=port, password="canary"),
            "an unknown user": self.db.manager(host=host, port=port, user="nobody", password="canary"),
            "an unknown database": self.db.manager(host=host, port=port, db="nowhere"),
            "TLS refused": self.db.manager(host=host, port=port, ssl=True),
        }


def probe(name: str, dialect: Dialect) -> Probe[Connection]:
    dirty, look = (sql.format(**vars(dialect)) for sql in STATE[name])
    return Probe(name, lambda conn: ask(conn, dirty), lambda conn: ask(conn, look))


@pytest.mark.cancellation
class TestSafe(Conformance):
    """reset="safe", the default."""

    __test__ = True
    mode = "safe"


class TestStrict(Conformance):
    """reset="strict"."""

    __test__ = True
    mode = "strict"


class TestNone(Conformance):
    """reset="none": still, no transaction is left to the next borrower."""

    __test__ = True
    mode = "none"
    skips: ClassVar[Mapping[str, str]] = {"session_state": 'reset="none" resets no state'}
