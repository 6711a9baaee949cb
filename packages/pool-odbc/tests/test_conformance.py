"""What every adapter has to prove, asked by the conformance suite of pool-core on each database system."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from odbc_systems import CANARY, System, probe, run, sqlite
from pool_core.testing import ManagerConformance

CONNECTING = "a connect that was cancelled while the driver waits ends with the driver's login timeout: see test_faults"


class _Odbc(ManagerConformance[Any]):
    system: System
    skips: ClassVar[Mapping[str, str]] = {"silent_server": CONNECTING}

    @pytest.fixture(autouse=True)
    def _time(self, request: pytest.FixtureRequest) -> None:
        # The greeting of MySQL arrives in some hundred pieces then.
        self.patience = 15.0 if "small_pieces" in request.node.name else 5.0
        if "small_pieces[mysql]" in request.node.name:
            pytest.skip("takes twice the time that it takes on MariaDB, with the same driver")

    def given(self, system: System) -> None:
        self.system = system
        if system.server is not None:
            self.host, self.port = system.server.host, system.server.port
            self.secrets = (CANARY,)
        self.probes = [probe(system, name) for name in system.state]

    def manager(self, host: str, port: int) -> Any:
        return self.system.manager(host, port)

    async def use(self, conn: Any) -> None:
        assert await run(conn, "SELECT 6 * 7") == [(42,)]

    async def slow_request(self, conn: Any) -> None:
        await run(conn, self.system.slow)

    async def leave_unread(self, conn: Any) -> None:
        cursor = await conn.cursor()
        await cursor.execute("SELECT 1 UNION SELECT 2")
        await cursor.fetchone()

    async def begin(self, conn: Any) -> None:
        await run(conn, self.system.begin)

    async def in_transaction(self, conn: Any) -> bool:
        return await asyncio.to_thread(self.system.locked)


@pytest.mark.cancellation
class TestServers(_Odbc):
    """psqlodbc, and MariaDB's driver on MySQL and on MariaDB."""

    @pytest.fixture(autouse=True)
    def _system(self, system: System) -> None:
        self.given(system)

    async def server_kill(self, conn: Any) -> None:
        assert self.system.my_id and self.system.kill
        ((number,),) = await run(conn, self.system.my_id)
        other = await self.system.manager().connect()
        await run(other, self.system.kill.format(number))
        await other.close()

    def bad_credentials(self, host: str, port: int) -> Mapping[str, Any]:
        return {
            "wrong password": self.system.manager(host, port, password=CANARY),
            "unknown user": self.system.manager(host, port, user="nobody", password=CANARY),
            "unknown database": self.system.manager(host, port, database="nowhere"),
        }


class TestSQLite(_Odbc):
    """An embedded database."""

    network = False
    skips: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(autouse=True)
    def _system(self, tmp_path: Path) -> None:
        self.given(sqlite(tmp_path))
