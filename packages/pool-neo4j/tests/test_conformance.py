"""What every adapter has to prove, asked by the conformance suite of pool-core."""

import unittest
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pool_core.testing import ManagerConformance, Probe
from pool_neo4j import Neo4jSessionManager

from containers.servers import Server

SECRET = "c@nary/secret"
RECONNECTS = "the driver opens new sockets by itself, and a session is tied to none: test_faults has what holds instead"

HANDSHAKE = (
    "the driver takes the four bytes of Bolt's handshake for wrong ones when they arrive in two pieces: see test_faults"
)


@pytest.mark.cancellation
class TestNeo4j(ManagerConformance[Any]):
    """Sessions of one server."""

    skips: ClassVar[Mapping[str, str]] = {"network_drops": RECONNECTS, "small_pieces": HANDSHAKE}

    @pytest.fixture(autouse=True)
    def _server(self, neo: Server, slow_port: int) -> None:
        self.neo, self.host, self.port = neo, "127.0.0.1", slow_port
        self.secrets = (SECRET, neo.password or "no password")

    def manager(self, host: str, port: int, **options: Any) -> Neo4jSessionManager:
        return Neo4jSessionManager(
            f"bolt://{host}:{port}", **{"user": self.neo.user, "password": self.neo.password, **options}
        )

    async def use(self, conn: Any) -> None:
        result = await conn.run("RETURN 6 * 7 AS answer")
        assert (await result.single())["answer"] == 42

    async def slow_request(self, conn: Any) -> None:
        await (await conn.run("RETURN 'slow'")).consume()

    async def leave_unread(self, conn: Any) -> None:
        result = await conn.run("UNWIND range(1, 5000) AS n RETURN n")
        await result.fetch(1)

    async def begin(self, conn: Any) -> None:
        self.open = await conn.begin_transaction()
        await (await self.open.run("RETURN 1")).consume()

    async def in_transaction(self, conn: Any) -> bool:
        return not self.open.closed()

    def bad_credentials(self, host: str, port: int) -> Mapping[str, Neo4jSessionManager]:
        if self.neo.name == "FalkorDB":
            raise unittest.SkipTest("FalkorDB answers a wrong password with a DatabaseError, and has no databases")
        return {
            "wrong password": self.manager(host, port, password=SECRET),
            "unknown user": self.manager(host, port, user="nobody", password=SECRET),
            "unknown database": self.manager(host, port, database="nowhere"),
        }

    @property
    def probes(self) -> list[Probe[Any]]:  # type: ignore[override]
        async def bookmarks(conn: Any) -> object:
            return (await conn.last_bookmarks()).raw_values

        async def leave(conn: Any) -> None:
            conn._bookmarks = ("a borrower's",)

        return [Probe("bookmarks", leave, bookmarks)]
