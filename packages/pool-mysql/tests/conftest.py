"""The MariaDB of these tests, and what every test does with it."""

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pymysql
import pytest
from pool_mysql import Connection, MySQLConnectionManager

from containers.servers import Server, ServerFactory


class Database:
    """A server, and short ways to ask it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = server.url
        self.host, self.port = server.host, server.port
        self.user, self.password, self.name = server.user or "", server.password or "", server.database or ""

    def manager(self, **options: Any) -> MySQLConnectionManager:
        """A manager for it; options replace what its URL says."""
        return MySQLConnectionManager(self.url, **options)

    @contextlib.asynccontextmanager
    async def connection(self, **options: Any) -> AsyncIterator[tuple[MySQLConnectionManager, Connection]]:
        """A manager and a connection, which is terminated at the end."""
        manager = self.manager(**options)
        conn = await manager.connect()
        try:
            yield manager, conn
        finally:
            manager.terminate(conn)
            await asyncio.sleep(0)

    @staticmethod
    async def ask(conn: Connection, sql: str) -> Any:
        """The rows of a statement, None where it has none."""
        await conn.query(sql)
        return conn._result.rows

    def admin(self, sql: str, *, user: str = "root") -> Any:
        """The same on a connection of its own, blocking, with all rights."""
        connection = pymysql.connect(
            host=self.host, port=self.port, user=user, password=self.password, database=self.name, autocommit=True
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()

    def connected(self) -> int:
        """How many connections the tests' user has at the server."""
        rows = self.admin(f"SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = '{self.user}'")
        return int(rows[0][0])


@pytest.fixture(scope="session")
def connect_error() -> Callable[[MySQLConnectionManager], Exception]:
    """What a connect raises, within two seconds, showing no password."""

    async def connect(manager: MySQLConnectionManager) -> Exception:
        began = time.perf_counter()
        with pytest.raises(Exception) as caught:
            await manager.connect()
        assert time.perf_counter() - began < 2
        return caught.value

    def check(manager: MySQLConnectionManager) -> Exception:
        error = asyncio.run(connect(manager))
        assert "secret" not in "".join(traceback.format_exception(error))
        return error

    return check


@pytest.fixture(scope="session")
def db(server: ServerFactory) -> Database:
    """The run's shared server, with the table `things(number)`."""
    database = Database(server("mariadb"))
    database.admin("CREATE TABLE IF NOT EXISTS things (number INT) ENGINE=InnoDB")
    database.admin("CREATE DATABASE IF NOT EXISTS other")
    database.admin(f"GRANT ALL ON other.* TO '{database.user}'@'%'")
    return database


@pytest.fixture(scope="module")
def own(server: ServerFactory) -> Iterator[Database]:
    """A server of the module's own, for faults that would disturb others."""
    with server("mariadb", fresh=True) as mine:
        yield Database(mine)
