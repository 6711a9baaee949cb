"""The example in the documentation passes the conformance suite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from pool_core.testing import ManagerConformance, Probe

from .example import LineManager, LineServer, main


async def _use_elsewhere(conn: Any) -> None:
    await conn.ask("USE elsewhere")


async def _where(conn: Any) -> object:
    return await conn.ask("WHERE")


class TestLineManager(ManagerConformance[Any]):
    """Each check is one question to the adapter of 40 lines."""

    secrets = ("swordfish",)
    probes = (Probe("namespace", dirty=_use_elsewhere, look=_where),)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls) -> Iterator[None]:
        with LineServer("swordfish").in_a_thread() as server:
            cls.host, cls.port = server.host, server.port
            yield

    def manager(self, host: str, port: int) -> Any:
        return LineManager(host, port, password="swordfish")

    def bad_credentials(self, host: str, port: int) -> Any:
        return LineManager(host, port, password="herring")

    async def use(self, conn: Any) -> None:
        assert await conn.ask("PING") == "PONG"

    async def slow_request(self, conn: Any) -> None:
        await conn.ask("SLEEP 8")

    async def leave_unread(self, conn: Any) -> None:
        conn.send("PING")

    async def late_error(self, conn: Any) -> None:
        conn.send("NONSENSE")

    async def begin(self, conn: Any) -> None:
        await conn.ask("BEGIN")

    async def in_transaction(self, conn: Any) -> bool:
        return bool(await conn.ask("STATUS") == "in transaction")

    async def server_kill(self, conn: Any) -> None:
        admin = await self.manager(self.host, self.port).connect()
        await admin.ask(f"KILL {await conn.ask('ID')}")
        await self.manager(self.host, self.port).close(admin)


def test_the_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """The documentation walks through it."""
    asyncio.run(main())
    assert capsys.readouterr().out == "100 answers over 4 connections\n"
