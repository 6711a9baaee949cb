"""The recipe for NebulaGraph, on a server of its own or on a double that speaks the client's own bytes."""

import asyncio
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pool_core import CloseReason, Pool
from pool_core.testing import FaultProxy, ManagerConformance, Probe

from containers.servers import Server, ServerFactory

pytest.importorskip("nebula3", reason="NOT INSTALLED: nebula3-python")
_file = Path(__file__).parents[1] / "nebula_sessions.py"
_spec = importlib.util.spec_from_file_location("nebula_sessions", _file)
assert _spec
assert _spec.loader
recipe = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe)
NebulaError, NebulaSessionManager = recipe.NebulaError, recipe.NebulaSessionManager

SECRET = "c@nary/secret"


async def space_of(session: Any) -> str:
    return str((await session.execute("YIELD 7")).space_name())


async def use_other(session: Any) -> None:
    await session.execute("USE other")


class TestNebula(ManagerConformance[Any]):
    """Sessions with a thread each."""

    skips: ClassVar[Mapping[str, str]] = {
        "silent_server": "a thread that connects cannot be interrupted: it ends with connect_timeout",
    }
    probes = (Probe("space", use_other, space_of),)

    @pytest.fixture(autouse=True)
    def _server(self, server: ServerFactory) -> None:
        mine: Server = server("nebula")
        self.host, self.port, self.password = mine.host, mine.port, mine.password
        self.secrets = (SECRET, self.password or "no password")

    def manager(self, host: str, port: int, **options: Any) -> Any:
        return NebulaSessionManager(
            **{"host": host, "port": port, "password": self.password, "space": "pool", **options}
        )

    async def use(self, conn: Any) -> None:
        assert (await conn.execute("YIELD 42")).row_values(0)[0].as_int() == 42

    async def slow_request(self, conn: Any) -> None:
        await conn.execute("YIELD sleep(20)")

    def bad_credentials(self, host: str, port: int) -> Mapping[str, Any]:
        return {
            "wrong password": self.manager(host, port, password=SECRET),
            "unknown user": self.manager(host, port, user="nobody"),
            "unknown space": self.manager(host, port, space="nowhere"),
        }


async def test_without_a_space_in_the_settings_a_session_with_one_is_replaced(server: ServerFactory) -> None:
    """nGQL has no way back to none."""
    mine = server("nebula")
    manager = NebulaSessionManager(host=mine.host, port=mine.port, password=mine.password)
    async with Pool(manager, max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            await use_other(session)
        async with pool.get() as session:
            assert await space_of(session) == ""
        assert pool.state().statistics.connections_closed[CloseReason.REPLACED] == 1


async def test_an_error_of_the_server_is_an_exception_and_keeps_the_session(server: ServerFactory) -> None:
    """The client itself returns it as a result."""
    mine = server("nebula")
    async with Pool(NebulaSessionManager(mine.url), max_size=1, min_idle=1) as pool:
        with pytest.raises(NebulaError, match="SyntaxError"):
            async with pool.get() as session:
                await session.execute("YIELD")
        async with pool.get() as session:
            assert await space_of(session) == "pool"
        assert pool.state().statistics.connections_created == 1


async def test_a_silent_server_ends_the_get_in_time_and_its_thread_at_connect_timeout(server: ServerFactory) -> None:
    """What cannot be interrupted is bounded."""
    mine = server("nebula")
    with FaultProxy(mine.host, mine.port) as proxy:
        proxy.silence()
        manager = NebulaSessionManager(host=proxy.host, port=proxy.port, password="x", connect_timeout=0.5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await manager.connect()
        async with asyncio.timeout(3):
            while proxy.open:
                await asyncio.sleep(0.01)


def test_the_recipe_runs(run: Callable[..., str], server: ServerFactory) -> None:
    """As its reader would start it."""
    assert run("nebula_sessions.py", NEBULA_URL=server("nebula").url).split() == [str(n) for n in range(10)]
