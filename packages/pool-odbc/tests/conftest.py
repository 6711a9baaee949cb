"""Each database system in turn, and coroutine tests."""

import asyncio
import inspect
from pathlib import Path

import pytest
from odbc_systems import System, of_kind, sqlite

from containers.servers import ServerFactory, dialects


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of `any_system` run on each server, and on SQLite."""
    if "any_system" in metafunc.fixturenames:
        metafunc.parametrize("any_system", [*dialects("pool-odbc"), "sqlite"], indirect=True)


@pytest.fixture
def system(dialect: str, server: ServerFactory) -> System:
    """Each server in turn."""
    return of_kind(dialect, server)


@pytest.fixture
def any_system(request: pytest.FixtureRequest, server: ServerFactory, tmp_path: Path) -> System:
    """Each server in turn, and SQLite."""
    return sqlite(tmp_path) if request.param == "sqlite" else of_kind(request.param, server)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True
