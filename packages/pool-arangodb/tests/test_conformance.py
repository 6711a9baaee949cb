"""What every adapter has to prove, asked by the conformance suite of pool-core."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pool_arangodb import ArangoConnectionManager
from pool_core.testing import ManagerConformance

from containers.servers import Server

SECRET = "c@nary/secret"
STATELESS = "HTTP: the driver opens a new socket for the next request, and a handle is tied to none; see test_handles"


@pytest.mark.cancellation
class TestArangoDB(ManagerConformance[Any]):
    """Handles with an HTTP connection each."""

    skips: ClassVar[Mapping[str, str]] = {"network_drops": STATELESS}

    @pytest.fixture(autouse=True)
    def _server(self, arango: Server) -> None:
        self.arango, self.host, self.port = arango, arango.host, arango.port
        self.secrets = (SECRET,)

    def manager(self, host: str, port: int, **options: Any) -> ArangoConnectionManager:
        known = {"user": self.arango.user, "password": self.arango.password, **options}
        return ArangoConnectionManager(host=host, port=port, **known)

    async def use(self, conn: Any) -> None:
        cursor = await conn.aql.execute("RETURN 42")
        assert [value async for value in cursor] == [42]

    async def slow_request(self, conn: Any) -> None:
        await conn.aql.execute("RETURN SLEEP(20)")

    def bad_credentials(self, host: str, port: int) -> Mapping[str, ArangoConnectionManager]:
        return {
            "wrong password": self.manager(host, port, password=SECRET),
            "unknown user": self.manager(host, port, user="nobody", password=SECRET),
            "unknown database": self.manager(host, port, database="nowhere"),
        }
