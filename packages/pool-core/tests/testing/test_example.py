"""The example of the documentation passes the kit."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_core.testing import ManagerConformance, Probe

_spec = importlib.util.spec_from_file_location(
    "custom_manager", Path(__file__).parents[4] / "examples" / "custom_manager.py"
)
assert _spec is not None
assert _spec.loader is not None
custom_manager: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(custom_manager)


class TestLineManager(ManagerConformance[Any]):
    """Each check is one question to the adapter of 40 lines."""

    secrets = ("swordfish",)
    probes = (Probe("namespace", dirty=lambda conn: conn.ask("USE elsewhere"), look=lambda conn: conn.ask("WHERE")),)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls) -> Iterator[None]:
        with custom_manager.LineServer("swordfish").in_a_thread() as server:
            cls.host, cls.port = server.host, server.port
            yield

    def manager(self, host: str, port: int) -> Any:
        return custom_manager.LineManager(host, port, password="swordfish")

    def bad_credentials(self, host: str, port: int) -> Any:
        return custom_manager.LineManager(host, port, password="herring")

    async def use(self, conn: Any) -> None:
        assert await conn.ask("PING") == "PONG"

    async def slow_request(self, conn: Any) -> None:
        await conn.ask("SLEEP 8")

    async def leave_unread(self, conn: Any) -> None:
        conn.send("PING")

    async def begin(self, conn: Any) -> None:
        await conn.ask("BEGIN")

    async def in_transaction(self, conn: Any) -> bool:
        return await conn.ask("STATUS") == "in transaction"

    async def server_kill(self, conn: Any) -> None:
        admin = await self.manager(self.host, self.port).connect()
        await admin.ask(f"KILL {await conn.ask('ID')}")
        await self.manager(self.host, self.port).close(admin)
