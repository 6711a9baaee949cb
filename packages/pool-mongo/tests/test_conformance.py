"""The conformance suite for all four managers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote_plus

import pytest
from pool_core import ConnectionManager
from pool_core.testing import ManagerConformance, Probe
from pool_mongo import MongoClientManager, MongoSessionManager
from pool_mongo.motor import MotorClientManager, MotorSessionManager

from containers.servers import Server

SECRET = "c@nary/secret"
RECONNECTS = "a client opens new sockets by itself, and a session is tied to none: test_faults has what holds instead"

CLIENTS_SOCKETS = (
    "the driver checks and replaces the sockets of the sessions' client; test_failover has what evicts the client"
)
NO_KILL = "MongoDB has no command by which one client drops another's connection; test_faults kills the whole server"


class _Mongo(ManagerConformance[Any]):
    kind: Any
    skips: ClassVar = {"network_drops": RECONNECTS, "server_kill": NO_KILL}

    @pytest.fixture(autouse=True)
    def _server(self, mongo: Server, locked: Server, request: pytest.FixtureRequest) -> None:
        # Checks with a server that is down wait for it three times; an answer in pieces takes its time on a busy machine.
        self.ping_timeout = 4.5 if "small_pieces" in request.node.name else 1.0
        self.host, self.port = mongo.host, mongo.port
        self.locked = locked
        self.secrets = (SECRET, quote_plus(SECRET))

    def manager(self, host: str, port: int) -> ConnectionManager[Any]:
        manager: ConnectionManager[Any] = self.kind(
            f"mongodb://{host}:{port}/pool?directConnection=true", ping_timeout=self.ping_timeout
        )
        return manager

    def bad_credentials(self, host: str, port: int) -> Mapping[str, ConnectionManager[Any]]:
        there = f"{self.locked.host}:{self.locked.port}/?directConnection=true"
        return {
            "wrong password": self.kind(f"mongodb://pool:{quote_plus(SECRET)}@{there}"),
            "unknown user": self.kind(f"mongodb://nobody:{quote_plus(SECRET)}@{there}"),
        }


class _Sessions(_Mongo):
    skips: ClassVar = {**_Mongo.skips, "evict": CLIENTS_SOCKETS, "max_lifetime": CLIENTS_SOCKETS}

    async def use(self, conn: Any) -> None:
        assert (await conn.client.admin.command("ping", session=conn))["ok"] == 1

    async def slow_request(self, conn: Any) -> None:
        await _wait_for_a_change(conn.client, conn)

    async def begin(self, conn: Any) -> None:
        begun = conn.start_transaction()
        if self.kind is MongoSessionManager:
            await begun
        await conn.client.pool.conformance.insert_one({}, session=conn)

    async def in_transaction(self, conn: Any) -> bool:
        return bool(conn.in_transaction)

    async def leave_unread(self, conn: Any) -> None:
        await _read_one_of_three(conn.client, conn)

    @property
    def probes(self) -> Sequence[Probe[Any]]:  # type: ignore[override]
        return [Probe("transaction", self.begin, self.in_transaction)]


class _Clients(_Mongo):
    async def use(self, conn: Any) -> None:
        assert (await conn.admin.command("ping"))["ok"] == 1

    async def slow_request(self, conn: Any) -> None:
        await _wait_for_a_change(conn)

    async def leave_unread(self, conn: Any) -> None:
        await _read_one_of_three(conn)


async def _wait_for_a_change(client: Any, session: Any = None) -> None:
    hello = await client.admin.command("hello")
    await client.admin.command(
        {"hello": 1, "topologyVersion": hello["topologyVersion"], "maxAwaitTimeMS": 10_000}, session=session
    )


async def _read_one_of_three(client: Any, session: Any = None) -> None:
    things = client.pool.unread
    await things.insert_many([{}, {}, {}], session=session)
    await things.find({}, batch_size=1, session=session).next()


class TestMongoSessionManager(_Sessions):
    """PyMongo's sessions."""

    kind = MongoSessionManager


class TestMotorSessionManager(_Sessions):
    """Motor's sessions."""

    kind = MotorSessionManager


class TestMongoClientManager(_Clients):
    """PyMongo's clients."""

    kind = MongoClientManager


class TestMotorClientManager(_Clients):
    """Motor's clients."""

    kind = MotorClientManager
