"""Pools at work for somebody to look at, behind a real web server, on a loop whose clock runs faster than the wall's.

So the five minutes that the page shows pass in seconds. Everything else is as in production: uvicorn, a mount, a browser.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from pool_core import Pool, PooledConnection, PoolUnavailable
from pool_core.inspector import inspector
from pool_core.testing import FakeConnection, FakeManager

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator

TASKS = ("checkout", "search", "report", "GET /orders", "GET /orders/{id}", "POST /orders", "mailer", "export")


class FastSelector(selectors.DefaultSelector):
    """Waits a fraction of what it is told."""

    speed = 1.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait."""
        return super().select(None if timeout is None else timeout / self.speed)


class FastLoop(asyncio.SelectorEventLoop):
    """A loop whose clock runs faster by a factor."""

    def __init__(self, speed: float) -> None:
        selector = FastSelector()
        selector.speed = speed
        self.speed = speed
        super().__init__(selector)

    def time(self) -> float:
        """Return the loop's time."""
        return super().time() * self.speed


class DemoConnectionManager(FakeManager):
    """A database that can go away."""

    def __init__(self) -> None:
        super().__init__()
        self.up = True
        self.connecting = 0.03

    async def connect(self) -> FakeConnection:
        """Connect, if it is up."""
        await asyncio.sleep(self.connecting)
        if not self.up:
            raise ConnectionRefusedError(111, "Connect call failed ('10.0.0.7', 5432)")
        return await super().connect()

    def has_broken(self, conn: FakeConnection, /) -> bool:
        """Tell whether it went away."""
        return not self.up or super().has_broken(conn)


class Stage:
    """One pool, the tasks that use it, and the web server that shows it."""

    leaked: PooledConnection[FakeConnection]

    def __init__(
        self, *, speed: float = 20.0, allow: Collection[str] = (), prefix: str = "/pools", **options: Any
    ) -> None:
        self.manager = DemoConnectionManager()
        self.options = options
        self.prefix = prefix
        self._allow = allow
        self._speed = speed
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{prefix}"

    @contextmanager
    def running(self) -> Iterator[Stage]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        assert self._ready.wait(20), "the web server did not start"
        try:
            yield self
        finally:
            self.do(self._stop)
            thread.join(20)

    def do(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """Run something on the pool's loop."""
        return asyncio.run_coroutine_threadsafe(_awaited(act), self._loop).result(30)

    def _run(self) -> None:
        self._loop = FastLoop(self._speed)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        options: dict[str, Any] = {"name": "orders", "max_size": 10, "min_idle": 2, **self.options}
        self.pool = Pool(self.manager, **options)
        page = inspector(self.pool, allow=self._allow)

        async def mounted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["path"].startswith(self.prefix):
                scope = {**scope, "root_path": self.prefix}
            await page(scope, receive, send)

        config = uvicorn.Config(mounted, port=self.port, log_level="error", timeout_keep_alive=10_000, lifespan="off")
        self._server = uvicorn.Server(config)
        async with self.pool:
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started:
                await asyncio.sleep(0.1)
            self._ready.set()
            await serving
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stop(self) -> None:
        self._server.should_exit = True

    async def load(self, workers: int, *, hold: float = 0.6, rest: float = 2.0) -> None:
        """Let so many tasks work, each with short queries and rests."""
        chance = random.Random(7)

        async def work(name: str) -> None:
            while True:
                await asyncio.sleep(chance.expovariate(1 / rest))
                with suppress(PoolUnavailable):
                    async with self.pool.get():
                        await asyncio.sleep(chance.expovariate(1 / hold))

        for number in range(workers):
            name = TASKS[number % len(TASKS)]
            self._tasks.add(asyncio.create_task(work(name), name=name))

    async def rest(self, seconds: float) -> None:
        """Let the pool's time go on."""
        await asyncio.sleep(seconds)

    async def leak(self, name: str) -> None:
        """A task that ends without returning its connection."""

        async def forgetful() -> None:
            self.leaked = await self.pool.get()

        await asyncio.create_task(forgetful(), name=name)


async def _awaited(act: Callable[[], Awaitable[Any]]) -> Any:
    return await act()
