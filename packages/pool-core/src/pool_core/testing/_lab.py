"""What a check works with: a proxy before the server, helpers that never wait for ever, and the probes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import socket
import stat
import threading
import time
import unittest
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from pool_core import ConnectionManager, SupportsTerminate
from pool_core.testing._proxy import FaultProxy

if TYPE_CHECKING:
    from pool_core.testing._questions import Questions

__all__ = [
    "Lab",
    "NotGivenError",
    "Probe",
    "close_awaitable",
    "eventually",
    "fail",
    "names_of",
    "new_threads",
    "open_files",
    "see",
    "short",
]

C = TypeVar("C")
T = TypeVar("T")


@dataclass(frozen=True)
class Probe(Generic[C]):
    """One kind of session state that a borrower can leave behind, and how the next borrower would see it.

    Example::

        Probe("search path", dirty=lambda conn: conn.execute("SET search_path TO elsewhere"),
              look=lambda conn: conn.fetchval("SHOW search_path"))

    Attributes:
        name: for messages: "role", "temporary tables".
        dirty: ``async def dirty(conn)`` changes the session as a borrower would, and returns when the server has done
            it. It may leave the connection broken: a connection that is closed is clean, too. What it creates on the
            server outside the session (a table, a queue) it removes itself, or creates under the same name each time.
        look: ``async def look(conn) -> object`` reads the state. It is called on new connections, on dirty ones and on
            ones that were reset. It changes nothing, does not break the connection, and returns the same (``==``) on
            each new connection: no ids, no times. What the server raises where there is nothing to see, it catches.
    """

    name: str
    dirty: Callable[[C], Awaitable[object]]
    look: Callable[[C], Awaitable[object]]


class Lab(Generic[C]):
    """What a check works with: a fault proxy before the server, and helpers that never wait for ever.

    Attributes:
        proxy: the proxy; every manager of this check connects through it.
        patience: how many seconds a call may take, see :class:`ManagerConformance`.
        moment: how many seconds may pass until what is closed is gone: one, or ``patience`` if that is less.
    """

    def __init__(self, conformance: Questions[C], proxy: FaultProxy | None) -> None:
        self._conformance = conformance
        self._proxy = proxy
        self.patience = conformance.patience
        self.moment = min(1.0, self.patience)
        self._open_files = functools.partial(open_files, sockets_only=True, server_port=conformance.port)
        self._files = self._open_files() if proxy is not None else set()
        self._managers: list[ConnectionManager[C]] = []
        self._connections: list[tuple[ConnectionManager[C], C]] = []

    @property
    def proxy(self) -> FaultProxy:
        """The proxy; only where ``network`` is True."""
        if self._proxy is None:
            raise unittest.SkipTest("network = False: there is no connection to disturb")
        return self._proxy

    @property
    def address(self) -> tuple[str, int]:
        """Where managers connect to."""
        return ("", 0) if self._proxy is None else (self._proxy.host, self._proxy.port)

    def manager(self) -> ConnectionManager[C]:
        """A new manager, by the author's hook."""
        return self.watch(self._conformance.manager(*self.address))

    def watch(self, manager: ConnectionManager[C]) -> ConnectionManager[C]:
        """Dispose of this manager at the end."""
        self._managers.append(manager)
        return manager

    async def connect(
        self,
        manager: ConnectionManager[C],
        complaint: str = "connect did not return in time though the server is well",
    ) -> C:
        """A connection, which is dropped at the end of the check unless :meth:`drop` or :meth:`forget` was called."""
        return self.adopt(manager, await self.within(manager.connect(), complaint))

    def forget(self, conn: C) -> None:
        """The check itself has closed or terminated it."""
        self._connections = [pair for pair in self._connections if pair[1] is not conn]

    def adopt(self, manager: ConnectionManager[C], conn: C) -> C:
        """Drop this connection at the end of the check, too."""
        self._connections.append((manager, conn))
        return conn

    async def drop(self, manager: ConnectionManager[C], conn: C, *, patience: float | None = None) -> None:
        """Close as a pool does: bounded; terminate, if it fails."""
        self.forget(conn)
        task = asyncio.ensure_future(manager.close(conn))
        await asyncio.wait({task}, timeout=self.patience if patience is None else patience)
        if not task.done():
            if not await self.give_up(task, manager, conn, "close"):
                self.terminate(manager, conn)
        elif task.cancelled() or task.exception() is not None:
            self.terminate(manager, conn)

    async def give_up(self, task: asyncio.Future[Any], manager: ConnectionManager[C], conn: C, verb: str) -> bool:
        """End a call as a pool does at its deadline: cancel, cancel again, terminate. True: it was terminated."""
        for _ in range(2):
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=0.25)
        terminated = False
        if not task.done():
            self.forget(conn)
            terminated = bool(self.terminate(manager, conn))
            await asyncio.wait({task}, timeout=1)
        if not task.done():
            fail(
                f"{verb} did not end after two cancels{' and terminate' if terminated else ''}: a pool has to abandon it,"
                f" with its socket. Do not catch CancelledError in {verb}, do not shield it from cancels"
                + ("" if terminated else ", and add terminate(conn), which drops the socket at once")
            )
        see(task)
        return terminated

    def terminate(self, manager: ConnectionManager[C], conn: C) -> object:
        """Terminate, if the manager can. False: it cannot; otherwise what terminate returned, or True."""
        if not isinstance(manager, SupportsTerminate):
            return False
        try:
            answer = cast(object, manager.terminate(conn))
        except Exception as error:
            raise AssertionError(
                f"terminate raised {error!r}: a pool calls it on a connection in any state, half closed or broken too;"
                " it must drop the socket and raise nothing"
            ) from error
        return True if answer is None else answer

    async def within(self, awaitable: Awaitable[T], complaint: str) -> T:
        """The result, or a failed check when it takes too long."""
        task = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({task}, timeout=self.patience)
        finally:
            late = not task.done()
            if late:
                task.cancel()
        if late:
            await asyncio.wait({task}, timeout=0.25)
            task.cancel()
            await asyncio.wait({task}, timeout=0.25)
            if task.done():
                see(task)
            fail(f"{complaint} ({self.patience:g} s)")
        if task.cancelled():
            fail(f"{complaint}: it raised CancelledError though nobody had cancelled it")
        return task.result()

    def sockets(self) -> int:
        """How many sockets the manager under test holds: as the proxy sees it, or as the operating system does."""
        if self._proxy is None:
            return 0
        # The proxy does not know whether a client has closed what the proxy itself has ended.
        own = self._proxy.filenos()
        mine = [number for number, _ in self._open_files() - self._files if number not in own]
        return max(self._proxy.open, len(mine))

    async def released(self, complaint: str) -> None:
        """Fail unless the manager under test has given up its sockets within a second."""
        await eventually(
            lambda: self.sockets() == 0, self.moment, lambda: f"{complaint}: {self.sockets()} socket(s) are still open"
        )

    async def end(self) -> None:
        """Drop what the check has left."""
        for manager, conn in self._connections[:]:
            with contextlib.suppress(Exception):
                await self.drop(manager, conn)
        for manager in self._managers:
            await self._conformance.dispose(manager)


class NotGivenError(NotImplementedError):
    """A hook that the author has not defined."""


async def eventually(condition: Callable[[], bool], seconds: float, complaint: Callable[[], str]) -> None:
    """Wait for it, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            fail(complaint())
        await asyncio.sleep(0.005)


def fail(text: str) -> NoReturn:
    raise AssertionError(text)


def see(task: asyncio.Future[Any]) -> BaseException | None:
    """What it raised, if it did; asking keeps asyncio from complaining that nobody did."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def short(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) < 200 else text[:200] + "..."


def names_of(things: set[Any]) -> str:
    return ", ".join(sorted(str(getattr(thing, "name", None) or thing.get_name()) for thing in things))


def new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    # The default executor keeps its threads until the loop is closed: those are the loop's, not the adapter's.
    return {thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("asyncio_")}


def open_files(*, sockets_only: bool, server_port: int) -> set[tuple[int, int]]:
    """The open file descriptors, as far as the system tells; without those of a server in this process."""
    found: set[tuple[int, int]] = set()
    try:
        numbers = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:  # Windows
        return found
    for number in numbers:
        with contextlib.suppress(OSError):  # the one that listdir itself had open
            status = os.fstat(number)
            if not sockets_only or (stat.S_ISSOCK(status.st_mode) and _local_port(number) != server_port):
                found.add((number, status.st_ino))
    return found


def _local_port(number: int) -> int | None:
    with socket.socket(fileno=os.dup(number)) as sock:
        name = sock.getsockname()
        return name[1] if isinstance(name, tuple) else None


def close_awaitable(awaitable: object) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()
