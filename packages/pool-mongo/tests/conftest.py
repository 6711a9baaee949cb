"""The two drivers under one roof, and servers of a test's own."""

import asyncio
import contextlib
import inspect
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from motor.frameworks import asyncio as motor_framework
from motor.motor_asyncio import AsyncIOMotorClient
from pool_mongo import MongoClientManager, MongoSessionManager
from pool_mongo.motor import MotorClientManager, MotorSessionManager
from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from containers.servers import Server, ServerFactory


@dataclass(frozen=True)
class Kind:
    """One driver: its managers, and what it spells differently."""

    name: str
    sessions: Any
    clients: Any
    client_class: Any

    async def begin(self, session: Any) -> None:
        begun = session.start_transaction()
        if inspect.isawaitable(begun):
            await begun

    async def start_session(self, client: Any) -> Any:
        session = client.start_session()
        return await session if inspect.isawaitable(session) else session

    async def close(self, client: Any) -> None:
        closing = client.close()
        if closing is not None:
            await closing

    @contextlib.asynccontextmanager
    async def client(self, url: str, **options: Any) -> AsyncIterator[Any]:
        """A client beside the pool."""
        client = self.client_class(url, **options)
        try:
            yield client
        finally:
            await self.close(client)


PYMONGO = Kind("pymongo", MongoSessionManager, MongoClientManager, AsyncMongoClient)
MOTOR = Kind("motor", MotorSessionManager, MotorClientManager, AsyncIOMotorClient)


@pytest.fixture(params=[PYMONGO, MOTOR], ids=["pymongo", "motor"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each driver in turn."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture(scope="session", autouse=True)
def motor_threads() -> None:
    """Start all threads of motor's executor, which live as long as the process: else tests count them as left over."""
    together = threading.Barrier(motor_framework.max_workers)
    for future in [motor_framework._EXECUTOR.submit(together.wait, 10) for _ in range(motor_framework.max_workers)]:
        future.result(10)


@pytest.fixture
def mongo(server: ServerFactory) -> Server:
    """The run's server, a replica set of one: it has transactions."""
    return server("mongo")


@pytest.fixture(scope="session")
def locked(server: ServerFactory) -> Iterator[Server]:
    """A server with users; it is no replica set."""
    with server("mongo", fresh=True, password="canary/p@ss") as mine:
        yield mine


@pytest.fixture(scope="session")
def _own(server: ServerFactory) -> Iterator[Server]:
    with server("mongo", fresh=True) as mine:
        yield mine


@pytest.fixture
def own(_own: Server) -> Iterator[Server]:
    """A server that the test may kill or pause."""
    yield _own
    _own.start()


class Commands(CommandListener):
    """What a client sends: pass it as ``event_listeners=[commands]``."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.sent.append((event.command_name, dict(event.command)))

    def succeeded(self, event: object) -> None:
        pass

    def failed(self, event: object) -> None:
        pass

    def of(self, name: str) -> list[dict[str, Any]]:
        """The commands of this name, in order."""
        return [command for sent, command in self.sent if sent == name]


@pytest.fixture
def commands() -> Commands:
    """A listener to what a client sends."""
    return Commands()


class Admin:
    """Somebody else at the server."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def fail(self, *names: str, times: int = 1, **data: Any) -> None:
        """Let the next commands of these names fail; see failCommand in MongoDB's documentation."""
        point = {"mode": {"times": times}, "data": {"failCommands": names, **data}}
        await self.command({"configureFailPoint": "failCommand", **point})

    async def command(self, command: dict[str, Any]) -> dict[str, Any]:
        """Run it on a client of its own, which is gone afterwards."""
        return await asyncio.to_thread(self._run, command)

    def _run(self, command: dict[str, Any]) -> dict[str, Any]:
        with MongoClient[dict[str, Any]](self._url) as client:
            return client.admin.command(command)


@pytest.fixture
def admin(mongo: Server) -> Iterator[Admin]:
    """Somebody else at the shared server. The fail points are off again at the end."""
    somebody = Admin(mongo.url)
    yield somebody
    somebody._run({"configureFailPoint": "failCommand", "mode": "off"})


@pytest.fixture(name="sockets")
def sockets_fixture() -> Callable[[], set[tuple[int, Any]]]:
    """The TCP connections that this process has to somewhere, each time it is asked."""
    return sockets


def sockets() -> set[tuple[int, Any]]:
    """The TCP connections that this process has to somewhere: file descriptor and own address."""
    found = set()
    for number in map(int, os.listdir("/dev/fd")):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.getpeername():
                    found.add((number, copy.getsockname()))
        except OSError:  # not connected, or gone meanwhile
            continue
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in a loop of its own. Afterwards no task and no socket of it may be left."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}

    async def run() -> None:
        before = sockets()
        await pyfuncitem.obj(**arguments)
        this = asyncio.current_task()
        await eventually(
            lambda: asyncio.all_tasks() == {this}, lambda: f"tasks are left: {asyncio.all_tasks() - {this}}"
        )
        await eventually(lambda: not sockets() - before, lambda: f"sockets are left: {sockets() - before}")

    asyncio.run(run())
    return True


async def eventually(condition: Callable[[], bool], complaint: Callable[[], str], seconds: float = 3.0) -> None:
    """Fail unless it becomes true within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, complaint()
        await asyncio.sleep(0.01)
