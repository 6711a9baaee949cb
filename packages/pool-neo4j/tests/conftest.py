"""Neo4j, or what stands in for it."""

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.servers import Server, ServerFactory


@pytest.fixture
def neo(server: ServerFactory) -> Server:
    """The run's server."""
    return server("neo4j")


@pytest.fixture(scope="session")
def slow_port(server: ServerFactory) -> Iterator[int]:
    """The port of a relay before the run's server that keeps the answer to ``RETURN 'slow'`` back."""
    mine = server("neo4j")
    program = [sys.executable, str(Path(__file__).parent / "slow_relay.py"), mine.host, str(mine.port)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout
        assert relay.stdin
        yield int(relay.stdout.readline())
        relay.stdin.close()


@pytest.fixture
def original(neo: Server) -> Server:
    """Neo4j itself: the stand-in has neither transactions that roll back, nor databases, users or TLS."""
    if neo.name == "FalkorDB":
        pytest.skip(f"needs neo4j:5, and this is {neo.name}: it does not roll back, and has one user and no TLS")
    return neo


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True
