"""ArangoDB, or the double of its protocol."""

import asyncio
import inspect

import pytest

from containers.servers import Server, ServerFactory


@pytest.fixture
def arango(server: ServerFactory) -> Server:
    """The run's server. The report says whether it is the double."""
    return server("arangodb")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True
