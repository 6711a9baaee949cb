"""What the tests of this package share: a runner for coroutines, and short ways to the servers."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from pool_core.testing import FaultProxy
from pool_psycopg import PsycopgConnectionManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from containers.servers import Server, ServerFactory


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in a loop of its own; nothing may reach the loop's exception handler, no task may be left."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    complaints: list[object] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await pyfuncitem.obj(**arguments)
        turns = 20
        while (left := asyncio.all_tasks() - {asyncio.current_task()}) and (turns := turns - 1):
            await asyncio.sleep(0.01)
        assert not left, f"tasks are left: {left}"

    asyncio.run(run())
    assert not complaints, complaints
    return True


@pytest.fixture
def postgres(server: ServerFactory) -> Server:
    """The run's PostgreSQL."""
    return server("postgres")


@pytest.fixture
def url(postgres: Server) -> str:
    """Its URL."""
    return postgres.url


@pytest.fixture(scope="session", autouse=True)
def _all_started(server: ServerFactory) -> None:
    # PgBouncer would otherwise be started in the background, by sockets that the conformance suite takes for leaks.
    server("postgres")
    server("pgbouncer")


@pytest.fixture(scope="session")
def _of_our_own(server: ServerFactory) -> Iterator[Server]:
    with server("postgres", fresh=True) as mine:
        yield mine


@pytest.fixture
def disturbed(_of_our_own: Server) -> Server:
    """A PostgreSQL that no other package uses: to be paused, killed and started. Tests find it well."""
    _of_our_own.heal()
    return _of_our_own


@pytest.fixture
def proxy(postgres: Server) -> Iterator[FaultProxy]:
    """A fault proxy before the run's PostgreSQL."""
    with FaultProxy(postgres.host, postgres.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(postgres: Server, proxy: FaultProxy) -> Callable[..., PsycopgConnectionManager]:
    """Make a manager that connects through the proxy."""

    def make(**options: Any) -> PsycopgConnectionManager:
        login = {"user": postgres.user, "password": postgres.password, "dbname": postgres.database}
        return PsycopgConnectionManager(host=proxy.host, port=proxy.port, **{**login, **options})

    return make
