"""The MySQL or MariaDB of these tests, and what every test does with it."""

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Literal

import pymysql
import pytest
from mysql_dialects import DIALECTS
from pool_mysql import Connection, MySQLConnectionManager

from containers.servers import Server, ServerFactory


class Database:
    """A server, and short ways to ask it."""

    resets_first = False  # whether `connection` resets the new connection once

    def __init__(self, server: Server) -> None:
        self.server = server
        self.dialect = DIALECTS[server.name]
        self.url = server.url
        self.host, self.port = server.host, server.port
        self.user, self.password, self.name = server.user or "", server.password or "", server.database or ""

    def manager(self, **options: Any) -> MySQLConnectionManager:
        """A manager for it; options replace what its URL says."""
        return MySQLConnectionManager(self.url, **options)

    @contextlib.asynccontextmanager
    async def connection(self, **options: Any) -> AsyncIterator[tuple[MySQLConnectionManager, Connection]]:
        """A manager and a connection, which is terminated at the end; reset once if `resets_first` says so."""
        manager = self.manager(**options)
        conn = await manager.connect()
        try:
            if self.resets_first:
                await (manager.reset(conn) or asyncio.sleep(0))
            yield manager, conn
        finally:
            manager.terminate(conn)
            await asyncio.sleep(0)

    @staticmethod
    async def ask(conn: Connection, sql: str) -> Any:
        """The rows of a statement, None where it has none."""
        await conn.query(sql)
        return conn._result.rows

    @staticmethod
    async def in_transaction(conn: Connection) -> bool:
        """Whether a transaction is open: the answer to a ping carries it."""
        await conn.ping(reconnect=False)
        return bool(conn.get_transaction_status())

    def things_are_locked(self) -> bool:
        """Whether a transaction of somebody holds the rows of `things`."""
        try:
            self.admin("SELECT number FROM things FOR UPDATE NOWAIT")
        except pymysql.OperationalError as error:
            if error.args[0] not in {1205, 3572}:  # MariaDB's and MySQL's number for a lock that is not to be had
                raise
            return True
        return False

    @contextlib.asynccontextmanager
    async def front(
        self, answers: Mapping[bytes, bytes | None], *, second: Literal["passes", "is lost", "ends it"] = "passes"
    ) -> AsyncIterator[int]:
        """A server in front of the real one.

        Args:
            answers: commands that begin so are replaced; None: they are not known there.
            second: what happens to a command that is sent before the former one is answered.
        """
        writers: list[asyncio.StreamWriter] = []
        clients: set[asyncio.StreamWriter] = set()

        async def forward(reader: asyncio.StreamReader, to: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    if back in clients and second != "passes" and (early := len(reader._buffer)):  # type: ignore[attr-defined]
                        if second == "ends it":
                            break
                        await reader.readexactly(early)
                    head = await reader.readexactly(4)
                    body = await reader.readexactly(int.from_bytes(head[:3], "little"))
                    sent: bytes | None = body
                    for command, answer in answers.items():
                        if head[3] == 0 and body.startswith(command):
                            sent = answer
                    if sent is None:
                        error = b"\xff\x17\x04#08S01Unknown command"  # 1047
                        back.write(len(error).to_bytes(3, "little") + b"\x01" + error)
                    else:
                        to.write(len(sent).to_bytes(3, "little") + head[3:] + sent)
            to.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            clients.add(writer)
            server_reader, server = await asyncio.open_connection(self.host, self.port)
            writers.extend([writer, server])
            await asyncio.gather(forward(reader, server, writer), forward(server_reader, writer, server))

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
            yield listener.sockets[0].getsockname()[1]
            listener.close()
            for writer in writers:
                writer.close()
            await asyncio.sleep(0.02)

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
        assert "secret" not in "".join(traceback.format_exception(error)).replace("_secrets.py", "")
        return error

    return check


@pytest.fixture(scope="session")
def db(server: ServerFactory, dialect: str) -> Database:
    """The run's shared server, MySQL and then MariaDB, with the table `things(number)`, which has one row."""
    database = Database(server(dialect))
    database.admin("CREATE TABLE IF NOT EXISTS things (number INT) ENGINE=InnoDB")
    database.admin("DELETE FROM things")
    database.admin("INSERT INTO things VALUES (0)")
    database.admin("CREATE DATABASE IF NOT EXISTS other")
    database.admin(f"GRANT ALL ON other.* TO '{database.user}'@'%'")
    return database


@pytest.fixture(scope="module")
def own(server: ServerFactory, dialect: str) -> Iterator[Database]:
    """A server of the module's own, for faults that would disturb others."""
    with server(dialect, fresh=True) as mine:
        yield Database(mine)
