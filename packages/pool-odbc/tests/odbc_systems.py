"""A real server of each dialect, behind its ODBC driver."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyodbc
from pool_core.testing import Probe
from pool_odbc import OdbcConnectionManager

from containers.servers import Server, ServerFactory

CANARY = "c@nary;} {secret"


@dataclass
class System:
    """One database system: how to reach it, and its words for what the tests do."""

    name: str
    server: Server | None
    options: dict[str, Any]
    slow: str
    begin: str
    try_lock: str
    kill: str | None = None
    my_id: str | None = None
    state: dict[str, tuple[str, str]] = field(default_factory=dict)
    file: Path | None = None

    def raw(self) -> pyodbc.Connection:
        """A connection beside the pool, without it."""
        where = {} if self.server is None else {"server": self.server.host, "port": self.server.port}
        names = {"user": "uid", "password": "pwd"}
        options = {names.get(name, name): value for name, value in {**self.options, **where}.items()}
        return pyodbc.connect(**options, autocommit=True)

    def make_table(self) -> None:
        raw = self.raw()
        raw.execute("DROP TABLE IF EXISTS pool_odbc")
        raw.execute("CREATE TABLE pool_odbc (a INT PRIMARY KEY)")
        raw.execute("INSERT INTO pool_odbc VALUES (1)")
        raw.close()

    def locked(self) -> bool:
        """Whether a transaction of somebody holds the row of the table."""
        raw = self.raw()
        try:
            raw.execute(self.try_lock)
        except pyodbc.Error:
            return True
        finally:
            raw.close()
        return False

    def manager(self, host: str = "", port: int = 0, **options: Any) -> OdbcConnectionManager:
        where = {} if self.server is None else {"host": host or self.server.host, "port": port or self.server.port}
        return OdbcConnectionManager(**{**self.options, **where, **options})


async def run(conn: Any, sql: str) -> list[tuple[Any, ...]]:
    """Execute, and fetch all rows."""
    cursor = await conn.cursor()
    await cursor.execute(sql)
    rows = [tuple(row) for row in await cursor.fetchall()] if cursor.description else []
    await cursor.close()
    return rows


def of_server(server: Server, driver: str, **options: Any) -> dict[str, Any]:
    return {
        "driver": driver,
        "user": server.user,
        "password": server.password,
        "database": server.database,
        "timeout": 3,
        **options,
    }


def postgres(server: ServerFactory) -> System:
    mine = server("postgres")
    system = System(
        "postgres",
        mine,
        of_server(mine, "PostgreSQL Unicode"),
        "SELECT pg_sleep(20)",
        begin="UPDATE pool_odbc SET a = 2",
        try_lock="SELECT a FROM pool_odbc FOR UPDATE NOWAIT",
        kill="SELECT pg_terminate_backend({})",
        my_id="SELECT pg_backend_pid()",
        state={
            "settings": ("SET search_path = pg_catalog", "SHOW search_path"),
            "role": ("SET ROLE pg_monitor", "SELECT current_user"),
            "temporary tables": (
                "CREATE TEMP TABLE mine (a int)",
                "SELECT count(*) FROM pg_class WHERE relname = 'mine' AND relpersistence = 't'",
            ),
            "advisory locks": (
                "SELECT pg_advisory_lock(7)",
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
            ),
        },
    )
    system.make_table()
    return system


def mysql(server: ServerFactory, dialect: str) -> System:
    mine = server(dialect)
    system = System(
        dialect,
        mine,
        of_server(mine, "MariaDB Unicode"),
        "SELECT SLEEP(20)",
        begin="UPDATE pool_odbc SET a = 2",
        try_lock="SELECT a FROM pool_odbc FOR UPDATE NOWAIT",
        kill="KILL {}",
        my_id="SELECT CONNECTION_ID()",
        state={
            "variables": ("SET @x = 1", "SELECT @x"),
            "sql_mode": ("SET sql_mode = 'ANSI_QUOTES'", "SELECT @@sql_mode"),
            "locks": ("SELECT GET_LOCK('pool', 1)", "SELECT IS_USED_LOCK('pool') = CONNECTION_ID()"),
            "database": ("USE information_schema", "SELECT DATABASE()"),
        },
    )
    system.make_table()
    return system


def of_kind(kind: str, server: ServerFactory) -> System:
    """The system of this kind of server."""
    return postgres(server) if kind == "postgres" else mysql(server, kind)


def sqlite(path: Path) -> System:
    system = System(
        "sqlite",
        None,
        {"driver": "SQLite3", "database": str(path / "test.db"), "Timeout": 100},
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        begin="UPDATE pool_odbc SET a = 2",
        try_lock="UPDATE pool_odbc SET a = a",
        state={
            "pragmas": ("PRAGMA cache_size = 77", "PRAGMA cache_size"),
            "temporary tables": ("CREATE TEMP TABLE mine (a int)", "SELECT count(*) FROM temp.sqlite_master"),
        },
        file=path / "test.db",
    )
    system.make_table()
    return system


def probe(system: System, name: str) -> Probe[Any]:
    dirty, look = system.state[name]
    return Probe(name, lambda conn: run(conn, dirty), lambda conn: run(conn, look))
