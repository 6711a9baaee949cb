"""Connections that do nothing, at once: what is measured over them is the pool alone.

Each is made in the way that its pool allows, and answers only what its pool asks of a healthy connection. All of them
are made in this file: the memory benchmark leaves out what was allocated here.
"""

from __future__ import annotations

import importlib
from typing import Any


def load(module: str) -> Any:
    """Import a peer. Not by a statement, so that type checkers do not ask for all of them to be installed."""
    return importlib.import_module(module)


class FakeConnection:
    """For the generic pools and the floors."""

    __slots__ = ("__weakref__", "broken")

    def __init__(self) -> None:
        self.broken = False


class FakeManager:
    """The four methods of our pool (and of L3), each as short as it can be."""

    async def connect(self) -> FakeConnection:
        return FakeConnection()

    async def is_valid(self, conn: FakeConnection, /) -> bool:
        return True

    def has_broken(self, conn: FakeConnection, /) -> bool:
        return conn.broken

    async def close(self, conn: FakeConnection, /) -> None:
        conn.broken = True


async def close(conn: FakeConnection) -> None:
    conn.broken = True


def asyncpg_connection() -> type[Any]:
    """A subclass, since asyncpg's pool takes no other."""
    base = load("asyncpg").Connection

    class Protocol:
        queries_count = 0

        def _is_cancelling(self) -> bool:
            return False

    class Connection(base):  # type: ignore[misc, valid-type]
        _pool_holder: Any

        def __init__(self) -> None:
            self._protocol = Protocol()
            self._proxy = None
            self._pool_release_ctr = 0
            self._listeners: dict[str, Any] = {}
            self._log_listeners: set[Any] = set()
            self._closed = False

        def __del__(self) -> None:
            pass

        def is_closed(self) -> bool:
            return self._closed

        def _check_open(self) -> None:
            pass

        async def reset(self, *, timeout: float | None = None) -> None:
            pass

        async def close(self, *, timeout: float | None = None) -> None:
            self.terminate()

        def terminate(self) -> None:
            self._closed = True
            self._pool_holder()._release_on_close()

    return Connection


def psycopg_connection() -> type[Any]:
    """What psycopg_pool asks of a connection: that it is idle, and its `async with`."""

    class PGconn:
        transaction_status = load("psycopg.pq").TransactionStatus.IDLE

    class Connection:
        pgconn = PGconn()
        _created_at = 0.0
        _expire_at = 0.0
        _pool: Any = None

        @classmethod
        async def connect(cls, _: str, **__: Any) -> Any:
            return cls()

        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def close(self) -> None:
            pass

    return Connection


class MySQLReader:
    """aiomysql looks at each idle connection's stream."""

    eof_received = False

    def at_eof(self) -> bool:
        return False

    def exception(self) -> None:
        return None


class MySQLConnection:
    """For aiomysql and for asyncmy, which has grown out of it."""

    _reader = MySQLReader()
    _stream_broken = False
    last_usage = float("inf")
    connected = True
    closed = False

    def get_transaction_status(self) -> bool:
        return False

    async def ensure_closed(self) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True
        self.connected = False


async def mysql_connect(**_: Any) -> MySQLConnection:
    return MySQLConnection()


class RedisConnection:
    """Redis-py's pools make it from a class; it is connected from the start and has nothing to read."""

    def __init__(self, **_: Any) -> None:
        pass

    async def connect(self) -> None:
        pass

    async def can_read(self) -> bool:
        return False

    def should_reconnect(self) -> bool:
        return False

    async def re_auth(self) -> None:
        pass

    async def disconnect(self) -> None:
        pass


class DBAPIConnection:
    """SQLAlchemy rolls back what is returned."""

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


def strategy() -> Any:
    """asyncio-connection-pool's three methods."""
    base = load("asyncio_connection_pool").ConnectionStrategy

    class Strategy(base):  # type: ignore[misc, valid-type]
        async def make_connection(self) -> FakeConnection:
            return FakeConnection()

        def connection_is_closed(self, conn: FakeConnection) -> bool:
            return conn.broken

        async def close_connection(self, conn: FakeConnection) -> None:
            conn.broken = True

    return Strategy()


def endpoint_manager() -> Any:
    """generic-connection-pool's two methods."""
    base = load("generic_connection_pool.asyncio").BaseConnectionManager

    class Manager(base):  # type: ignore[misc, valid-type]
        async def create(self, endpoint: str) -> FakeConnection:
            return FakeConnection()

        async def dispose(self, endpoint: str, conn: FakeConnection) -> None:
            conn.broken = True

    return Manager()


class SQLiteConnection:
    """aiosqlitepool asks for a row before each get, and rolls back after it."""

    async def execute(self, *_: Any) -> None:
        pass

    async def rollback(self) -> None:
        pass

    async def close(self) -> None:
        pass


async def sqlite_connection() -> Any:
    return SQLiteConnection()
