"""The questions that every adapter must be able to answer, asked of a manager and its real server."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import inspect
import logging
import os
import select
import signal
import socket
import stat
import sys
import threading
import time
import traceback
import unittest
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures.thread import _threads_queues
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, NoReturn, TypeVar, cast

from pool_core import ConnectionManager, Pool, SupportsReset, SupportsTerminate, SupportsTransient
from pool_core.testing._injector import CancelMode, Injector, acancel_everywhere
from pool_core.testing._proxy import FaultProxy

__all__ = ["Lab", "ManagerConformance", "Probe"]

C = TypeVar("C")
T = TypeVar("T")

_CORE: Final = ("connect", "is_valid", "has_broken", "close")
_OPTIONAL: Final = ("reset", "terminate", "is_transient")
_SYNC: Final = ("has_broken", "terminate", "is_transient")
_ARGUMENTS: Final = {"connect": 0}  # all others take one
_SWEEP: Final[tuple[CancelMode, ...]] = ("single", "success", "level")


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

    def __init__(self, conformance: ManagerConformance[C], proxy: FaultProxy | None) -> None:
        self._conformance = conformance
        self._proxy = proxy
        self.patience = conformance.patience
        self.moment = min(1.0, self.patience)
        self._open_files = functools.partial(_open_files, sockets_only=True, server_port=conformance.port)
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
            _fail(
                f"{verb} did not end after two cancels{' and terminate' if terminated else ''}: a pool has to abandon it,"
                f" with its socket. Do not catch CancelledError in {verb}, do not shield it from cancels"
                + ("" if terminated else ", and add terminate(conn), which drops the socket at once")
            )
        _see(task)
        return terminated

    def terminate(self, manager: ConnectionManager[C], conn: C) -> object:
        """Terminate, if the manager can. False: it can not; otherwise what terminate returned, or True."""
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
                _see(task)
            _fail(f"{complaint} ({self.patience:g} s)")
        if task.cancelled():
            _fail(f"{complaint}: it raised CancelledError though nobody had cancelled it")
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


class ManagerConformance(Generic[C]):
    """Derive from this class, give it the hooks, and every question is asked of your adapter.

    With pytest a class named ``Test...`` is enough; with unittest derive from ``unittest.TestCase`` as well; otherwise
    ``await MyConformance().run_all()``::

        class TestFoo(ManagerConformance[foo.Connection]):
            host, port = "127.0.0.1", 4711

            def manager(self, host, port):
                return FooConnectionManager(host=host, port=port, password="canary")

            async def use(self, conn):
                assert await conn.ask("echo 1") == "1"

    ``host`` and ``port`` say where the real server is; a fixture may set them on the instance. The kit puts a
    :class:`FaultProxy` before it and passes the proxy's address to :meth:`manager`. Each check has a server that works,
    runs in its own loop, and afterwards no connection, task, thread or socket may be left.

    Hooks close what they open themselves. A check whose hook is not given is skipped, and says so. What does not
    fit your server goes into ``skips``, with the reason; checks can not be overridden.

    Attributes:
        host: the server's address.
        port: the server's TCP port.
        network: False for an embedded database, which has no server and no sockets; the checks that need a network are
            skipped then, and ``manager`` gets ``("", 0)``.
        skips: reasons by check, for example ``{"fork": "the driver's library does not survive a fork"}``; printed.
        probes: the session state that a borrower can leave behind, see :class:`Probe`.
        secrets: passwords and the like that the managers of this class have been given; they must not show anywhere.
        patience: seconds that a call to a healthy server may take at most; ``slow_request`` must take longer.
        time_limit: seconds of real time for one check.
    """

    host: str = "127.0.0.1"
    port: int = 0
    network: ClassVar[bool] = True
    skips: ClassVar[Mapping[str, str]] = {}
    probes: Sequence[Probe[C]] = ()
    secrets: Sequence[str] = ()
    patience: float = 5.0
    time_limit: float = 55.0

    # ------------------------------------------------------------------ hooks

    def manager(self, host: str, port: int) -> ConnectionManager[C]:
        """Hook, needed: a new manager for the server at this address. It is called without a running loop, too."""
        raise NotImplementedError(f"{type(self).__name__} must define manager(self, host, port)")

    async def use(self, conn: C) -> None:
        """Hook, needed: one short request whose answer is checked; raise (assert) when it is wrong."""
        raise NotImplementedError(f"{type(self).__name__} must define async use(self, conn)")

    async def slow_request(self, conn: C) -> None:
        """Hook: one request whose answer takes the server longer than ``patience``: ten seconds, say.

        A blocking read of a queue that stays empty, ``SELECT pg_sleep(10)``. It is awaited until the answer has come;
        no check waits that long: each cancels it, or terminates its connection. It must keep only its own connection
        waiting: no lock on a table that :meth:`use` needs, no pause of the whole server. An ``asyncio.sleep`` proves
        nothing, since the driver must be the one that waits.
        """
        raise _NotGivenError("slow_request")

    async def leave_unread(self, conn: C) -> None:
        """Hook: leave part of an answer unread: a cursor half read, a request sent and its reply not fetched."""
        raise _NotGivenError("leave_unread")

    async def late_error(self, conn: C) -> None:
        """Hook: send a request that the driver waits for no answer to, and that the server answers with an error.

        A publish to an exchange that does not exist, a command without a reply that is refused, a request sent past the
        driver's own methods. The connection was used before. The hook waits for no answer: the error arrives later.
        """
        raise _NotGivenError("late_error")

    async def begin(self, conn: C) -> None:
        """Hook: leave a transaction open. Give :meth:`in_transaction` too."""
        raise _NotGivenError("begin")

    async def in_transaction(self, conn: C) -> bool:
        """Hook: whether a transaction is open, asked of the server where it can tell."""
        raise _NotGivenError("in_transaction")

    async def server_kill(self, conn: C) -> None:
        """Hook: let the server drop this connection, by an admin's command on another one."""
        raise _NotGivenError("server_kill")

    def bad_credentials(self, host: str, port: int) -> ConnectionManager[C] | Mapping[str, ConnectionManager[C]]:
        """Hook: a manager that this server will refuse, or several by name (wrong password, unknown database)."""
        raise _NotGivenError("bad_credentials")

    async def dispose(self, manager: ConnectionManager[C]) -> None:
        """Hook: release what the manager itself holds, beside its connections; may come twice. By default nothing."""

    # ----------------------------------------------------------------- checks

    async def check_protocol(self, lab: Lab[C]) -> None:
        """The verbs are there, of the right kind, and making a manager needs no loop and does no I/O."""
        # In a thread there is no running loop.
        try:
            manager = lab.watch(await asyncio.to_thread(self.manager, *lab.address))
        except Exception as error:
            raise AssertionError(
                f"making a manager without a running loop failed: {_short(error)}: a pool is made at import time, so make"
                " locks, futures and clients in connect()"
            ) from error
        if self.network and lab.proxy.accepted:
            _fail("making a manager opened a connection: connect only in connect(), a pool is made without I/O")
        for name in dir(manager):
            close = difflib.get_close_matches(name, (*_CORE, *_OPTIONAL), n=1, cutoff=0.8)
            if close and close[0] != name and not hasattr(manager, close[0]) and not name.startswith("_"):
                _fail(f"{name} looks like a misspelt {close[0]}: rename it, or a pool will never call it")
        for verb in (*_CORE, *_OPTIONAL):
            function = getattr(manager, verb, None)
            if function is None and verb in _OPTIONAL:
                continue
            if not callable(function):
                _fail(
                    f"the manager has no method {verb}: it needs connect(), is_valid(conn), has_broken(conn), close(conn)"
                )
            with contextlib.suppress(ValueError):  # no signature to be had: written in C
                try:
                    inspect.signature(function).bind(*[None] * _ARGUMENTS.get(verb, 1))
                except TypeError as error:
                    _fail(f"{verb} can not be called with {_ARGUMENTS.get(verb, 1)} positional argument(s): {error}")
            if verb in _SYNC and inspect.iscoroutinefunction(function):
                _fail(f"{verb} is an async def: it must be a plain def that returns at once, a pool does not await it")

    async def check_connect_and_use(self, lab: Lab[C]) -> None:
        """A new connection works, counts as valid and unbroken, is wiped and closed without complaint."""
        manager = lab.manager()
        first, second = await lab.connect(manager), await lab.connect(manager)
        if first is None:
            _fail("connect returned None: return the connection")
        if first is second:
            _fail("connect returned the same object twice: every call must open a connection of its own")
        for conn in (first, second):
            await self._use(lab, conn, "a new connection")
            self._expect(manager.has_broken(conn), False, "has_broken of a new connection", "return a bool")
            valid = manager.is_valid(conn)
            if not inspect.isawaitable(valid):
                _fail(f"is_valid returned {valid!r} instead of an awaitable: make it an async def")
            self._expect(
                await lab.within(valid, "is_valid of a new connection did not return in time"),
                True,
                "is_valid of a new connection",
                "return True when the server has answered (a forgotten return is the commonest mistake)",
            )
            await self._reset(lab, manager, conn)
            self._expect(
                manager.has_broken(conn), False, "has_broken after a reset", "a clean connection is not broken"
            )
            await self._use(lab, conn, "a connection that has been reset")
        for conn in (first, second):
            closing = manager.close(conn)
            if not inspect.isawaitable(closing):
                _fail(f"close returned {closing!r} instead of an awaitable: make it an async def")
            await lab.within(closing, "close did not return in time though the server is well")
            lab.forget(conn)
        await lab.released("close returned and the connection is still open: close the socket in close")

    async def check_in_a_pool(self, lab: Lab[C]) -> None:
        """In a pool: ordinary use costs no connection, and the closed pool leaves nothing open."""
        errors: list[BaseException] = []
        pool = Pool(lab.manager(), max_size=2, connection_timeout=4 * self.patience, error_sink=errors.append)

        async def borrow() -> None:
            async with pool.get() as conn:
                await self.use(conn)

        async with pool:
            await asyncio.gather(*[borrow() for _ in range(20)])
            statistics = pool.state().statistics
        if errors:
            _fail(f"the pool reports an error after ordinary use: {_short(errors[0])}")
        if statistics.connections_created > 2:
            reasons = {str(reason): count for reason, count in statistics.connections_closed.items() if count}
            _fail(
                f"20 ordinary borrowings of 2 connections had to open {statistics.connections_created}, closed as {reasons}:"
                " has_broken, is_valid or reset throws good connections away, and the pool saves nothing"
            )
        await lab.released("the pool is closed, and something is still open")

    async def check_small_pieces(self, lab: Lab[C]) -> None:
        """Messages that arrive byte by byte are put together, from the first byte of the handshake on."""
        what = "whose bytes arrive one at a time (one read is not one message)"
        lab.proxy.trickle(delay=0.001, size=1, direction="to_client")
        lab.patience *= 4  # a kilobyte takes more than a second
        manager = lab.manager()
        try:
            conn = await lab.connect(manager, f"connect did not return in time over a connection {what}")
        except Exception as error:
            raise AssertionError(f"connect failed over a connection {what}: {_short(error)}") from error
        for _ in range(5):  # on a busy machine several bytes may meet in one read
            await self._use(lab, conn, f"a connection {what}")
        await lab.drop(manager, conn)

    async def check_connections_are_independent(self, lab: Lab[C]) -> None:
        """A slow request on one connection holds up no other one."""
        manager = lab.manager()
        slow = await lab.connect(manager)
        task = asyncio.ensure_future(self.slow_request(slow))
        try:
            await self._under_way(task)
            complaint = "waits for a slow request on another connection: share no lock between connections"
            other = await lab.connect(manager, f"connect {complaint}")
            await lab.within(self.use(other), f"a request {complaint}")
            await lab.within(manager.is_valid(other), f"is_valid {complaint}")
            await lab.drop(manager, other)
        finally:
            await lab.give_up(task, manager, slow, "slow_request")

    async def check_ends_alone(self, lab: Lab[C]) -> None:
        """The end of one connection leaves the others usable, also where several are leases on one socket."""
        manager = lab.manager()
        ends = ["close", "terminate"] if isinstance(manager, SupportsTerminate) else ["close"]
        for end in ends:
            beside = f"beside a connection whose {end} was called"
            for work in ("a request", "a slow request"):
                ended, other = await lab.connect(manager), await lab.connect(manager)
                slow = asyncio.ensure_future(self.slow_request(other)) if work == "a slow request" else None
                if slow is not None:
                    with contextlib.suppress(_NotGivenError):
                        await self._under_way(slow)
                if end == "close":
                    await lab.drop(manager, ended)
                else:
                    lab.terminate(manager, ended)
                    lab.forget(ended)
                await asyncio.sleep(0.05)
                broken = self._broken(manager, other)  # by terminate it may be: that may drop the socket of all
                if slow is None:
                    if broken and end == "close":
                        _fail(f"has_broken says True {beside}: close must leave the other leases of a socket alone")
                    if not broken:
                        await self._use(lab, other, f"a connection {beside}, which has_broken calls sound,")
                elif slow.done() and not isinstance(_see(slow), _NotGivenError) and (end == "close" or not broken):
                    _fail(
                        f"a slow request {beside} has ended: {_see(slow)!r}; has_broken of its connection is {broken}"
                    )
                if slow is None or not await lab.give_up(slow, manager, other, "slow_request"):
                    await lab.drop(manager, other)
                await lab.released(f"{end} of one connection, and the end of another one, left something open")

    async def check_concurrent_connects(self, lab: Lab[C]) -> None:
        """A cancelled connect does no harm to those that run at the same time."""
        for cancelled in ({0}, {1}, {0, 1}):
            for moment in (0.0, 0.03):
                manager = lab.manager()
                if self.network:
                    lab.proxy.slow_accept(0.06)
                tasks = [asyncio.ensure_future(manager.connect()) for _ in range(3)]
                await asyncio.sleep(moment)
                for number in cancelled:
                    tasks[number].cancel()
                await asyncio.wait(tasks, timeout=lab.patience)
                for number, task in enumerate(tasks):
                    if not task.done():
                        task.cancel()
                        _fail("connect did not return in time: another connect, begun together with it, was cancelled")
                    error = _see(task)
                    if error is None:
                        conn = lab.adopt(manager, task.result())
                        await self._use(lab, conn, "a connection whose connect ran beside a cancelled one")
                        await lab.drop(manager, conn)
                    elif number not in cancelled:
                        _fail(
                            f"connect raised {_short(error)}: another connect, begun together with it, was cancelled. What"
                            " several connects wait for must be a task of the manager's own, which no cancel of one ends"
                        )
                await lab.released(
                    "connects were cancelled, the connections of the others closed, and something is open"
                )

    async def check_evict(self, lab: Lab[C]) -> None:
        """After ``evict()`` a new connection uses no socket that was open before; the one in use goes on working."""
        errors: list[BaseException] = []
        pool = Pool(lab.manager(), max_size=3, connection_timeout=4 * self.patience, error_sink=errors.append)
        async with pool, pool.get() as busy:
            async with pool.get() as idle:
                await self.use(idle)
            await eventually(lambda: not pool.state().resetting, lab.patience, lambda: "reset did not end in time")
            accepted = lab.proxy.accepted
            pool.evict()
            await eventually(
                lambda: not (pool.state().idle or pool.state().closing),
                lab.patience,
                lambda: "close did not end in time",
            )
            async with pool.get() as new:
                await self.use(new)
                if lab.proxy.accepted == accepted:
                    _fail(
                        "a connection made after evict() uses a socket that was open before: after a failover it leads"
                        " to the old server. A shared socket that has lost a connection must take no new one"
                    )
            try:
                await self.use(busy)
            except Exception as error:
                raise AssertionError(
                    f"a connection that was in use during evict() does not work any more: {_short(error)}"
                ) from error
        if errors:
            _fail(f"the pool reports an error after evict(): {_short(errors[0])}")
        await lab.released("the pool is closed after an evict(), and something is still open")

    async def check_max_lifetime(self, lab: Lab[C]) -> None:
        """Replacing connections one by one replaces their sockets: a shared one does not live for ever."""
        manager = lab.manager()
        conn = await lab.connect(manager)
        accepted = lab.proxy.accepted
        for _ in range(5):
            successor = await lab.connect(manager)
            await lab.drop(manager, conn)
            conn = successor
            await self._use(lab, conn, "a connection whose predecessor was closed")
        if lab.proxy.accepted == accepted:
            _fail(
                "five times a connection was opened before the last one was closed, and all of them used one socket: so"
                " max_lifetime never ends it. A shared socket that has lost a connection must take no new one"
            )
        await lab.drop(manager, conn)
        await lab.released("all connections are closed, and something is still open")

    async def check_connect_errors(self, lab: Lab[C]) -> None:
        """A server that is down, or hangs up at once, is an error at once, transient, and leaves nothing behind."""
        manager = lab.manager()
        faults: list[tuple[str, Callable[[], None]]] = [
            ("the port is closed", lab.proxy.refuse),
            ("the server resets new connections", functools.partial(lab.proxy.reset, new=True)),
            ("the server ends new connections", functools.partial(lab.proxy.fin, new=True)),
        ]
        for fault, cause in faults:
            cause()
            error = await self._connect_fails(lab, manager, fault)
            if isinstance(manager, SupportsTransient) and manager.is_transient(error) is not True:
                _fail(
                    f"is_transient({_short(error)}) is not True though {fault}: this heals when the server is back;"
                    " only refusals that need a person (wrong password, unknown database, TLS) are not transient"
                )
            await lab.released(
                f"connect failed since {fault}, and left something open: close the socket on any exception"
            )
            lab.proxy.heal()
            conn = await lab.connect(manager, f"connect does not recover after {fault}")
            await lab.drop(manager, conn)

    async def check_bad_credentials(self, lab: Lab[C]) -> None:
        """Credentials that the server refuses are an error at once, and not transient."""
        bad = self.bad_credentials(*lab.address)
        for name, manager in (bad if isinstance(bad, Mapping) else {"bad credentials": bad}).items():
            lab.watch(manager)
            error = await self._connect_fails(lab, manager, f"of {name}")
            if not isinstance(manager, SupportsTransient):
                _fail(f"{name}: {_short(error)} can not be told from a server that is down: add is_transient(exc)")
            if manager.is_transient(error) is not False:
                _fail(f"{name}: is_transient({_short(error)}) is not False: retrying will not help, users wait in vain")
            await lab.released(f"connect failed because of {name}, and left something open")

    async def check_cancelled_connect(self, lab: Lab[C]) -> None:
        """Connect, cancelled at any of its awaits, leaves no socket behind."""
        manager = lab.manager()

        async def scenario(inject: Injector) -> None:
            outcome = await self._inject(lab, inject, manager.connect(), "connect")
            if not outcome.cancelled and outcome.exception is None:
                await lab.drop(manager, outcome.result)
            await lab.released(
                "connect was cancelled and left something open: close the socket on any exception, CancelledError too"
                " (except BaseException: close at once, raise)"
            )

        await acancel_everywhere(scenario, modes=_SWEEP, must_surface=False)

    async def check_silent_server(self, lab: Lab[C]) -> None:
        """Connect to a server that accepts and never answers ends when it is cancelled, and leaves no socket behind."""
        manager = lab.manager()
        lab.proxy.silence()
        task = asyncio.ensure_future(manager.connect())
        await asyncio.wait({task}, timeout=0.2)
        for _ in range(2):
            task.cancel()
            await asyncio.wait({task}, timeout=0.5)
        if not task.done():
            _fail("connect to a silent server did not end after two cancels: a pool has to abandon it, with its socket")
        if not task.cancelled() and task.exception() is None:
            _fail("connect returned a connection though the server has not said a word: prove it before returning")
        await lab.released("connect to a silent server was cancelled and left something open")

    async def check_cancelled_is_valid(self, lab: Lab[C]) -> None:
        """is_valid, cancelled at any of its awaits, leaves a connection that can be closed."""
        await self._sweep(lab, "is_valid", lambda manager, conn: manager.is_valid(conn))

    async def check_cancelled_reset(self, lab: Lab[C]) -> None:
        """reset, cancelled at any of its awaits, leaves a connection that can be closed."""
        if not isinstance(lab.manager(), SupportsReset):
            raise unittest.SkipTest("the manager has no reset")

        async def reset(manager: ConnectionManager[C], conn: C) -> None:
            await self._reset(lab, manager, conn)

        await self._sweep(lab, "reset", reset)
        for probe in self.probes:
            await self._sweep(lab, "reset", reset, prepare=probe.dirty, modes=("single",))

    async def check_cancelled_close(self, lab: Lab[C]) -> None:
        """Close, cancelled at any of its awaits, releases the socket, if need be by terminate."""
        manager = lab.manager()

        async def scenario(inject: Injector) -> None:
            conn = await lab.connect(manager)
            lab.forget(conn)
            outcome = await self._inject(lab, inject, manager.close(conn), "close")
            if outcome.cancelled or outcome.exception is not None:
                lab.terminate(manager, conn)
            await lab.released(
                "close was cancelled, and "
                + (
                    "terminate did not drop"
                    if isinstance(manager, SupportsTerminate)
                    else "without a terminate it kept"
                )
                + " the socket: add a terminate(conn) that drops it in any state of the connection"
            )

        await acancel_everywhere(scenario, modes=_SWEEP, must_surface=False)

    async def check_has_broken_is_quick(self, lab: Lab[C]) -> None:
        """has_broken answers at once and says nothing to the server, be it frozen."""
        manager = lab.manager()
        conn = await lab.connect(manager)
        await self._use(lab, conn, "a new connection")
        if self.network:
            lab.proxy.freeze()
        answer: object = manager.has_broken(conn)
        if inspect.isawaitable(answer):
            _close_awaitable(answer)
            _fail("has_broken returned an awaitable: make it a plain def; a pool asks it on every release")
        if not isinstance(answer, bool):
            _fail(f"has_broken returned {answer!r}: return True or False")
        each = min(_time(lambda: manager.has_broken(conn)) for _ in range(20))  # the least: the machine may be busy
        if each > 0.001:
            _fail(
                f"has_broken took {each * 1000:.1f} ms: it must look at what the driver knows, without I/O (is_valid asks)"
            )
        if self.network:
            lab.proxy.heal()
            for _ in range(5):  # a driver's own monitor may speak meanwhile, but not each time
                await asyncio.sleep(0.02)
                before = lab.proxy.forwarded
                manager.has_broken(conn)
                await asyncio.sleep(0.02)
                if lab.proxy.forwarded == before:
                    return
            _fail("has_broken sent something to the server: it must do no I/O; is_valid is for that")

    async def check_server_kill(self, lab: Lab[C]) -> None:
        """has_broken is true soon after the server has dropped the connection."""

        async def kill(conn: C) -> None:
            await lab.within(self.server_kill(conn), "the hook server_kill did not return in time")

        await self._server_drops(lab, "the server has dropped the connection", kill)

    async def check_network_drops(self, lab: Lab[C]) -> None:
        """has_broken is true soon after a reset or an end of file, and after an answer that was cut in the middle."""

        async def reset(_conn: C) -> None:
            lab.proxy.reset()

        async def fin(_conn: C) -> None:
            lab.proxy.fin()

        async def cut(conn: C) -> None:
            lab.proxy.cut(1)
            task = asyncio.ensure_future(self.use(conn))
            await asyncio.wait({task}, timeout=lab.patience)
            if not task.done():
                task.cancel()
                _fail("use() did not return in time though its answer was cut off and the connection has ended")
            if not task.cancelled() and task.exception() is None:
                _fail("use() raised nothing though its answer was cut off: the hook must check the answer")
            lab.proxy.heal()

        await self._server_drops(lab, "the connection was reset", reset)
        await self._server_drops(lab, "the server has ended the connection (end of file)", fin)
        await self._server_drops(lab, "the connection was cut in the middle of an answer", cut)

    async def check_interrupted_request(self, lab: Lab[C]) -> None:
        """After an interrupted request the connection is broken, or clean after a reset."""
        for moment in (0.0, 0.02, 0.2):
            manager = lab.manager()
            conn = await lab.connect(manager)
            clean = await self._look(lab, conn)
            task = asyncio.ensure_future(self.slow_request(conn))
            await self._under_way(task, moment)
            task.cancel()
            await asyncio.wait({task}, timeout=lab.patience)
            if await lab.give_up(task, manager, conn, "slow_request"):
                continue
            await self._fit_for_the_next(lab, manager, conn, clean, f"a request cancelled after {moment:g} s")

    async def check_unread_data(self, lab: Lab[C]) -> None:
        """After a borrower left an answer unread the connection is broken, or clean after a reset."""
        manager = lab.manager()
        conn = await lab.connect(manager)
        clean = await self._look(lab, conn)
        await lab.within(self.leave_unread(conn), "the hook leave_unread did not return in time")
        await self._fit_for_the_next(lab, manager, conn, clean, "an answer that was left unread")

    async def check_late_error(self, lab: Lab[C]) -> None:
        """An error that arrives after the connection was returned does not reach the next borrower."""
        manager = lab.manager()
        conn = await lab.connect(manager)
        clean = await self._look(lab, conn)
        await self._use(lab, conn, "a new connection")
        _, before = lab.proxy.forwarded
        await lab.within(self.late_error(conn), "the hook late_error did not return at once")
        await eventually(
            lambda: lab.proxy.forwarded[1] > before or self._broken(manager, conn),
            lab.moment,
            lambda: "the hook late_error proves nothing: the server has sent no error",
        )
        await lab.drop(manager, conn)
        for arrives in ("before the next checkout", "during the next borrower's request"):
            manager = lab.manager()
            conn = await lab.connect(manager)
            await self._use(lab, conn, "a new connection")
            lab.proxy.freeze("to_client")
            await lab.within(self.late_error(conn), "the hook late_error did not return at once")
            late = arrives.startswith("during")
            heal = asyncio.get_running_loop().call_later(0.2 if late else 0.0, lab.proxy.heal)
            try:
                await self._fit_for_the_next(
                    lab, manager, conn, clean, f"an error that arrived {arrives}", pause=0.0 if late else 0.1
                )
            finally:
                heal.cancel()
                lab.proxy.heal()
            await lab.drop(manager, conn)

    async def check_open_transaction(self, lab: Lab[C]) -> None:
        """After a borrower left a transaction open the connection is broken, or clean after a reset."""
        manager = lab.manager()
        conn = await lab.connect(manager)
        clean = await self._look(lab, conn)
        await lab.within(self.begin(conn), "the hook begin did not return in time")
        try:
            began = await lab.within(self.in_transaction(conn), "the hook in_transaction did not return in time")
        except _NotGivenError:
            _fail(
                "begin() is given and in_transaction() is not: without it nobody sees whether the transaction is gone"
            )
        if not began:
            _fail("in_transaction() says False right after begin(): one of the two hooks is wrong")
        if await self._fit_for_the_next(
            lab, manager, conn, clean, "a transaction that was left open"
        ) and await lab.within(self.in_transaction(conn), "the hook in_transaction did not return in time"):
            _fail(
                "the transaction of the last borrower is still open for the next one: roll back in reset, or let"
                " has_broken say True while one is open"
            )

    async def check_session_state(self, lab: Lab[C]) -> None:
        """Every declared kind of session state is wiped, or costs the connection."""
        if not self.probes:
            raise unittest.SkipTest("no probes are given: declare the session state that a borrower can leave behind")
        manager = lab.manager()
        for probe in self.probes:
            await self._only_looks(lab, manager, probe)
            conn = await lab.connect(manager)
            clean = await self._look(lab, conn)
            await lab.within(probe.dirty(conn), f"probe {probe.name!r}: dirty did not return in time")
            if not manager.has_broken(conn):
                seen = await lab.within(probe.look(conn), f"probe {probe.name!r}: look did not return in time")
                if seen == clean[probe.name]:
                    _fail(f"probe {probe.name!r} proves nothing: look sees {seen!r} before and after dirty")
            await self._fit_for_the_next(lab, manager, conn, clean, f"session state ({probe.name})")
            await lab.drop(manager, conn)

    async def check_terminate(self, lab: Lab[C]) -> None:
        """terminate drops the socket at once, though the server is frozen, and wakes up who waits for an answer."""
        manager = lab.manager()
        if not isinstance(manager, SupportsTerminate):
            raise unittest.SkipTest(
                "the manager has no terminate: a pool abandons connections that it can not close in time"
            )
        threads = set(threading.enumerate())
        conn = await lab.connect(manager)
        await self._use(lab, conn, "a new connection")
        if self.network:
            lab.proxy.freeze()
        began = time.perf_counter()
        answer = lab.terminate(manager, conn)
        took = time.perf_counter() - began
        if inspect.isawaitable(answer):
            _close_awaitable(answer)
            _fail(
                "terminate returned an awaitable: make it a plain def that drops the socket at once; nobody awaits it"
            )
        if took > 0.25:
            _fail(f"terminate took {took:.2f} s: it must not wait for anything (transport.abort(), not close())")
        await lab.released("terminate left the socket open: abort the transport, say no goodbye to the server")
        lab.terminate(manager, conn)  # of a connection that is gone already
        if not self.network:
            await eventually(
                lambda: not _new_threads(threads),
                lab.moment,
                lambda: f"terminate left threads: {_names(_new_threads(threads))}",
            )
        if manager.has_broken(conn) is not True:
            _fail("has_broken is not True after terminate: a terminated connection must never be lent")
        if self.network:
            lab.proxy.heal()
            await self._terminate_while_used(lab, manager)

    async def check_close_is_bounded(self, lab: Lab[C]) -> None:
        """Behind a frozen server is_valid, reset and close end when a pool gives them up."""
        manager = lab.manager()
        verbs: list[tuple[str, Callable[[C], Awaitable[object] | None]]] = [("is_valid", manager.is_valid)]
        if isinstance(manager, SupportsReset):
            verbs.append(("reset", manager.reset))
        verbs.append(("close", lambda conn: None))  # closing ends every round
        for verb, call in verbs:
            conn = await lab.connect(manager)
            await self._use(lab, conn, "a new connection")
            lab.proxy.freeze()
            gone = False
            awaitable = call(conn)
            if awaitable is not None:
                task = asyncio.ensure_future(awaitable)
                await asyncio.wait({task}, timeout=0.3)
                if verb == "is_valid" and task.done() and _see(task) is None and task.result() is True:
                    _fail("is_valid said True though the server is frozen: it must make a round trip")
                gone = await lab.give_up(task, manager, conn, verb)
            if not gone:
                await lab.drop(manager, conn, patience=0.3)
            await lab.released(
                f"the server is frozen, {verb} was given up, and the socket is still open: add a terminate(conn) that"
                " drops it without waiting"
            )
            lab.proxy.heal()

    async def check_no_leftovers(self, lab: Lab[C]) -> None:
        """Connections that are closed or terminated leave no task, thread or socket behind."""
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
        manager = lab.manager()
        for round_ in range(6):
            conn = await lab.connect(manager)
            await self._use(lab, conn, "a new connection")
            if round_ % 2 and lab.terminate(manager, conn):
                lab.forget(conn)
            else:
                await lab.drop(manager, conn)
        await lab.released("close and terminate left sockets")
        await self.dispose(manager)
        await eventually(
            lambda: not asyncio.all_tasks() - tasks,
            lab.moment,
            lambda: (
                f"tasks are left after close: {_names(asyncio.all_tasks() - tasks)}: end them in close and terminate"
            ),
        )
        await eventually(
            lambda: not _new_threads(threads),
            lab.moment,
            lambda: f"threads are left after close: {_names(_new_threads(threads))}: end them in close and terminate",
        )

    async def check_program_ends(self, lab: Lab[C]) -> None:
        """A connection that is still open does not keep the program from ending."""
        threads = set(threading.enumerate())
        manager = lab.manager()
        conn = await lab.connect(manager)
        await self._use(lab, conn, "a new connection")
        # Python waits for each thread that is no daemon; those of executors it ends by itself.
        waited_for = {thread for thread in _new_threads(threads) if not thread.daemon and thread not in _threads_queues}
        if waited_for:
            _fail(
                f"a program with an open connection never ends: Python waits for {_names(waited_for)}. "
                "Make its threads daemons, and end them by atexit if they must not be stopped half-way"
            )

    async def check_secrets(self, lab: Lab[C]) -> None:
        """No password shows in repr, str, vars, errors and logs."""
        if not self.secrets:
            raise unittest.SkipTest("no secrets are given: name the passwords that manager() uses")
        texts: list[tuple[str, str]] = []
        with _captured_logs() as logs:
            manager = lab.manager()
            texts.extend(_portraits("the manager", manager))
            conn = await lab.connect(manager)
            await self._use(lab, conn, "a new connection")
            texts.extend(_portraits("the manager after connect", manager))
            await lab.drop(manager, conn)
            managers: dict[str, ConnectionManager[C]] = {"the server is down": manager}
            with contextlib.suppress(_NotGivenError):
                bad = self.bad_credentials(*lab.address)
                managers |= bad if isinstance(bad, Mapping) else {"the credentials are bad": bad}
            for name, failing in managers.items():
                if failing is not manager:
                    lab.watch(failing)
                    texts.extend(_portraits(f"the manager whose credentials are bad ({name})", failing))
                elif self.network:
                    lab.proxy.refuse()
                else:
                    continue
                error = await self._connect_fails(lab, failing, name)
                texts.append((f"the error when {name}", "".join(traceback.format_exception(error)) + repr(error)))
                if self.network:
                    lab.proxy.heal()
        texts.append(("the logs", "\n".join(logs)))
        for where, text in texts:
            for secret in self.secrets:
                if secret in text:
                    shown = text.replace(secret, "<THE SECRET>")
                    at = shown.index("<THE SECRET>")
                    _fail(
                        f"a secret shows in {where}: ...{shown[max(0, at - 80) : at + 80]}...: keep it in a closure or a"
                        " class with a repr of its own, and raise scrubbed errors 'from None'"
                    )

    async def check_two_loops(self, lab: Lab[C]) -> None:
        """One manager serves one event loop after another: a module-level pool under per-test loops."""
        manager = lab.watch(await asyncio.to_thread(self.manager, *lab.address))

        def twice() -> None:
            for number in ("first", "second"):
                try:
                    asyncio.run(self._round_trip(lab, manager))
                except Exception as error:
                    raise AssertionError(
                        f"connect, use and close failed in the {number} event loop: {_short(error)}: make locks, futures"
                        " and clients in connect(), not in __init__"
                    ) from error

        await asyncio.to_thread(twice)

    async def check_fork(self, lab: Lab[C]) -> None:
        """A forked child can connect with the same manager, and does not disturb its parent's connection."""
        if not hasattr(os, "fork"):
            raise unittest.SkipTest("this system has no fork")
        manager = lab.manager()
        conn = await lab.connect(manager)
        await self._use(lab, conn, "a new connection")
        answer = await asyncio.to_thread(_fork, lambda: asyncio.run(self._round_trip(lab, manager)), 3 * lab.patience)
        if answer != "ok":
            _fail(
                f"in a forked child connect, use and close failed: {answer}: keep no sockets or threads in the manager"
            )
        if manager.has_broken(conn):
            _fail("the parent's connection is broken after a forked child used the same manager: share no socket")
        await self._use(lab, conn, "the parent's connection after a fork")
        await lab.drop(manager, conn)

    # ---------------------------------------------------------------- running

    async def run_all(self) -> dict[str, str]:
        """Run every check in the running loop, and print a line for each.

        Returns:
            ``"ok"`` or ``"skipped: reason"``, by check.

        Raises:
            ExceptionGroup: of all failures, when every check has run.
        """
        results: dict[str, str] = {}
        errors: list[Exception] = []
        for name in _CHECKS:
            try:
                await self._run(name)
                results[name] = "ok"
            except unittest.SkipTest as skip:
                results[name] = f"skipped: {skip}"
            except Exception as error:  # noqa: BLE001 (raised below, all together)
                results[name] = f"FAILED: {error}"
                errors.append(error)
            print(f"{name}: {results[name]}")
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(_CHECKS)} checks of {type(self).__name__} failed", errors)
        return results

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what would silence a check."""
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            check = _check_name(name)
            if name.startswith(("check_", "test_")) and check in _CHECKS:
                raise TypeError(
                    f"{cls.__name__}.{name} overrides a check: a check that does not fit goes into"
                    f" skips = {{{check!r}: 'the reason'}}"
                )
            if name in ("run_all", "_run", "_lab"):
                raise TypeError(f"{cls.__name__}.{name} overrides the kit itself: rename it")
            close = difflib.get_close_matches(name, _HOOKS, n=1, cutoff=0.85)
            if close and name not in _PUBLIC and not name.startswith("_") and close[0] not in vars(cls):
                raise TypeError(f"{cls.__name__}.{name} looks like a misspelt hook: {close[0]}")
        for name, reason in cls.skips.items():
            if _check_name(name) not in _CHECKS:
                raise TypeError(f"{cls.__name__}.skips[{name!r}]: no such check; there are {', '.join(_CHECKS)}")
            if not reason:
                raise TypeError(f"{cls.__name__}.skips[{name!r}]: say why")

    async def _run(self, name: str) -> None:
        """One check, with its proxy, its time limit and its look for leftovers."""
        for skipped, reason in self.skips.items():
            if _check_name(skipped) == name:
                print(f"{type(self).__name__}: check {name} skipped: {reason}")
                raise unittest.SkipTest(reason)
        if self.network and not self.port:
            raise TypeError(f"{type(self).__name__}.port is not set: say where the server is, or network = False")
        open_files = functools.partial(_open_files, sockets_only=self.network, server_port=self.port)
        tasks, threads, files = asyncio.all_tasks(), set(threading.enumerate()), open_files()
        async with self._lab() as lab:
            try:
                async with asyncio.timeout(self.time_limit):
                    await getattr(self, f"check_{name}")(lab)
            except _NotGivenError as error:
                reason = f"the hook {error} is not given"
                print(f"{type(self).__name__}: check {name} skipped: {reason}")
                raise unittest.SkipTest(reason) from None
            except TimeoutError as error:
                raise AssertionError(f"the check took longer than {self.time_limit:g} s") from error
        await eventually(
            lambda: not asyncio.all_tasks() - tasks,
            lab.moment,
            lambda: f"tasks are left: {_names(asyncio.all_tasks() - tasks)}",
        )
        await eventually(
            lambda: not _new_threads(threads), lab.moment, lambda: f"threads are left: {_names(_new_threads(threads))}"
        )
        what = "sockets" if self.network else "files"
        await eventually(
            lambda: not open_files() - files,
            lab.moment,
            lambda: f"{len(open_files() - files)} {what} are left open: close them in close and terminate",
        )

    @contextlib.asynccontextmanager
    async def _lab(self) -> AsyncIterator[Lab[C]]:
        proxy = FaultProxy(self.host, self.port) if self.network else None
        lab = Lab(self, proxy)
        try:
            try:
                yield lab
            finally:
                if proxy is not None:
                    proxy.heal()
                await lab.end()
                if proxy is not None and sys.exception() is None:
                    await lab.released("after the check")
        finally:
            if proxy is not None:
                proxy.close()

    # ---------------------------------------------------------------- helpers

    async def _use(self, lab: Lab[C], conn: C, what: str) -> None:
        try:
            await lab.within(self.use(conn), "it did not return in time")
        except Exception as error:
            raise AssertionError(f"use() of {what} failed: {_short(error)}") from error

    async def _reset(self, lab: Lab[C], manager: ConnectionManager[C], conn: C) -> None:
        if isinstance(manager, SupportsReset):
            awaitable = manager.reset(conn)
            if awaitable is not None:
                if not inspect.isawaitable(awaitable):
                    _fail(f"reset returned {awaitable!r}: return None (nothing to wipe) or an awaitable")
                await awaitable

    async def _round_trip(self, lab: Lab[C], manager: ConnectionManager[C]) -> None:
        async with asyncio.timeout(2 * lab.patience):
            conn = await manager.connect()
            await self.use(conn)
            await manager.close(conn)
            await self.dispose(manager)

    async def _look(self, lab: Lab[C], conn: C) -> dict[str, object]:
        return {
            probe.name: await lab.within(probe.look(conn), f"probe {probe.name!r}: look did not return in time")
            for probe in self.probes
        }

    async def _only_looks(self, lab: Lab[C], manager: ConnectionManager[C], probe: Probe[C]) -> None:
        """Fail unless looking leaves a new connection as it is: else the check would see the traces of its own looks."""
        what = f"probe {probe.name!r}: look"
        conn = await lab.connect(manager)
        clean = await self._look(lab, conn)
        for after in ("a look", "a look and a reset"):
            if self._broken(manager, conn):
                _fail(
                    f"{what} costs the connection: has_broken is True after {after}, so nothing about dirty is proved"
                )
            try:
                seen = await lab.within(probe.look(conn), f"{what} did not return in time")
                await lab.within(self._reset(lab, manager, conn), f"reset after {what} did not return in time")
            except Exception as error:
                raise AssertionError(
                    f"{what} fails, or what it leaves behind cannot be reset: {_short(error)}"
                ) from error
            if seen != clean[probe.name]:
                _fail(f"{what} sees {clean[probe.name]!r} on a new connection, and after {after} {seen!r}")
        await lab.drop(manager, conn)

    async def _under_way(self, task: asyncio.Future[Any], seconds: float = 0.05) -> None:
        await asyncio.sleep(seconds)
        if task.done():
            task.result()
            _fail("the hook slow_request returned at once: it must keep the server busy for ten seconds or so")

    async def _fit_for_the_next(
        self,
        lab: Lab[C],
        manager: ConnectionManager[C],
        conn: C,
        clean: dict[str, object],
        after: str,
        pause: float = 0.0,
    ) -> bool:
        """Return it as a pool does, idle for a pause. False: it was thrown away. True: the next borrower finds it clean."""
        if self._broken(manager, conn):
            return False
        task = asyncio.ensure_future(self._reset(lab, manager, conn))
        await asyncio.wait({task}, timeout=lab.patience)
        if not task.done():
            await lab.give_up(task, manager, conn, "reset")
            return False
        if _see(task) is not None or self._broken(manager, conn):
            return False  # whatever reset raises closes the connection
        await asyncio.sleep(pause)
        if self._broken(manager, conn):
            return False
        complaint = (
            f"after {after} has_broken says False, and the next borrower does not find the connection clean: clean it in"
            " reset, or let has_broken say True (what can not be known counts as broken)"
        )
        try:
            await lab.within(self.use(conn), "its first request did not return in time")
        except Exception as error:
            raise AssertionError(f"{complaint}; use() failed: {_short(error)}") from error
        for name, value in (await self._look(lab, conn)).items():
            if value != clean[name]:
                _fail(f"{complaint}; {name}: {value!r} instead of {clean[name]!r}")
        return True

    def _broken(self, manager: ConnectionManager[C], conn: C) -> bool:
        try:
            return manager.has_broken(conn) is not False
        except Exception:  # noqa: BLE001
            return True  # that is how a pool reads it

    async def _server_drops(self, lab: Lab[C], fault: str, drop: Callable[[C], Awaitable[None]]) -> None:
        manager = lab.manager()
        conn = await lab.connect(manager)
        await self._use(lab, conn, "a new connection")
        await drop(conn)
        await eventually(
            lambda: self._broken(manager, conn),
            lab.moment,
            lambda: (
                f"has_broken still says False {lab.moment:g} s after {fault}: ask the transport or the reader (at_eof)"
            ),
        )
        accepted = lab.proxy.accepted if self.network else 0
        task = asyncio.ensure_future(manager.is_valid(conn))
        await asyncio.wait({task}, timeout=lab.patience)
        if not task.done():
            await lab.give_up(task, manager, conn, "is_valid")
            _fail(f"is_valid did not return in time after {fault}")
        if _see(task) is None and task.result() is True:
            again = self.network and lab.proxy.accepted > accepted
            _fail(
                f"is_valid says True after {fault}"
                + (
                    ": it has connected again behind the pool's back; switch the driver's reconnect off"
                    if again
                    else ""
                )
            )
        await lab.drop(manager, conn)
        await lab.released(f"after {fault} close did not release the socket")

    async def _terminate_while_used(self, lab: Lab[C], manager: ConnectionManager[C]) -> None:
        conn = await lab.connect(manager)
        task = asyncio.ensure_future(self.slow_request(conn))
        try:
            await self._under_way(task)
        except _NotGivenError:
            return
        lab.terminate(manager, conn)
        lab.forget(conn)
        await asyncio.wait({task}, timeout=lab.patience)
        if task.done():
            _see(task)
        else:
            task.cancel()
            await asyncio.wait({task}, timeout=1)
            _fail("a request that was waiting for its answer hangs after terminate: the borrower must get an error")

    async def _connect_fails(self, lab: Lab[C], manager: ConnectionManager[C], fault: str) -> Exception:
        task = asyncio.ensure_future(manager.connect())
        await asyncio.wait({task}, timeout=lab.patience)
        if not task.done():
            for _ in range(2):
                task.cancel()
                await asyncio.wait({task}, timeout=0.25)
            _fail(f"connect did not fail in time ({fault}): users would wait for their whole timeout")
        if task.cancelled():
            _fail(f"connect raised CancelledError though nobody had cancelled it ({fault}): raise an Exception")
        error = task.exception()
        if error is None:
            await lab.drop(manager, task.result())
            _fail(f"connect returned a connection ({fault}): prove it with a round trip before returning")
        if not isinstance(error, Exception):
            _fail(f"connect raised {error!r}, which is no Exception ({fault})")
        return error

    async def _inject(self, lab: Lab[C], inject: Injector, call: Awaitable[T], verb: str) -> Any:
        return await lab.within(
            inject(call),
            f"{verb}, cancelled at point {inject.point} (mode {inject.mode!r}), did not end in time: do not catch"
            " CancelledError, do not wait for the server in a finally",
        )

    async def _sweep(
        self,
        lab: Lab[C],
        verb: str,
        call: Callable[[ConnectionManager[C], C], Coroutine[Any, Any, Any]],
        *,
        prepare: Callable[[C], Awaitable[object]] | None = None,
        modes: Sequence[CancelMode] = _SWEEP,
    ) -> None:
        manager = lab.manager()

        async def scenario(inject: Injector) -> None:
            conn = await lab.connect(manager)
            if prepare is not None:
                await prepare(conn)
            await self._inject(lab, inject, call(manager, conn), verb)
            await lab.drop(manager, conn)
            await lab.released(f"{verb} was cancelled, then the connection was closed, and its socket is still open")

        await acancel_everywhere(scenario, modes=modes, must_surface=False)

    @staticmethod
    def _expect(value: object, wanted: bool, what: str, advice: str) -> None:
        if value is not wanted:
            _fail(f"{what} is {value!r} instead of {wanted}: {advice}")


class _NotGivenError(NotImplementedError):
    """A hook that the author has not defined."""


_CHECKS: Final = tuple(name.removeprefix("check_") for name in vars(ManagerConformance) if name.startswith("check_"))
_HOOKS: Final = (
    "manager", "use", "slow_request", "leave_unread", "late_error", "begin", "in_transaction", "server_kill", "bad_credentials",
    "dispose", "host", "port", "network", "skips", "probes", "secrets", "patience",
    "time_limit",
)  # fmt: skip
_PUBLIC: Final = frozenset(dir(ManagerConformance))


def _make_test(name: str) -> Callable[[ManagerConformance[Any]], None]:
    def test(self: ManagerConformance[Any]) -> None:
        try:
            asyncio.run(self._run(name))
        except AssertionError as error:
            *_, (place, _) = traceback.walk_tb(error.__traceback__)
            if place.f_code.co_filename != __file__:
                raise
            # The text says it all: where in the kit it was written helps nobody.
            raise error.with_traceback(None) from error.__cause__

    test.__name__ = f"test_{name}"
    test.__qualname__ = f"ManagerConformance.test_{name}"
    test.__doc__ = getattr(ManagerConformance, f"check_{name}").__doc__
    return test


for _name in _CHECKS:
    setattr(ManagerConformance, f"test_{_name}", _make_test(_name))


def _check_name(name: str) -> str:
    return name.removeprefix("check_").removeprefix("test_")


async def eventually(condition: Callable[[], bool], seconds: float, complaint: Callable[[], str]) -> None:
    """Wait for it, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            _fail(complaint())
        await asyncio.sleep(0.005)


def _fail(text: str) -> NoReturn:
    raise AssertionError(text)


def _see(task: asyncio.Future[Any]) -> BaseException | None:
    """What it raised, if it did; asking keeps asyncio from complaining that nobody did."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _short(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) < 200 else text[:200] + "..."


def _names(things: set[Any]) -> str:
    return ", ".join(sorted(str(getattr(thing, "name", None) or thing.get_name()) for thing in things))


def _new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    # The default executor keeps its threads until the loop is closed: those are the loop's, not the adapter's.
    return {thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("asyncio_")}


def _open_files(*, sockets_only: bool, server_port: int) -> set[tuple[int, int]]:
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


def _time(function: Callable[[], object], times: int = 5) -> float:
    began = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - began) / times


def _close_awaitable(awaitable: object) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()


def _portraits(what: str, thing: object) -> Iterator[tuple[str, str]]:
    yield f"repr of {what}", repr(thing)
    yield f"str of {what}", f"{thing}"
    if hasattr(thing, "__dict__"):
        yield f"repr(vars()) of {what}", repr(vars(thing))
    slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
    yield f"the slots of {what}", repr([getattr(thing, name, None) for name in slots])


@contextlib.contextmanager
def _captured_logs() -> Iterator[list[str]]:
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    root, handler = logging.getLogger(), Handler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def _fork(body: Callable[[], None], seconds: float) -> str:
    """Run it in a forked child; "ok", or what went wrong. Called in a thread without a loop."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads: the child uses none of them
        child = os.fork()
    if child == 0:  # pragma: no cover (its coverage is not collected)
        answer = "ok"
        try:
            body()
        except BaseException as error:  # noqa: BLE001 (nothing may get out of the child)
            answer = _short(error)
        finally:
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], seconds)
        if not ready:
            os.kill(child, signal.SIGKILL)
            return f"nothing happened for {seconds:g} s"
        return os.read(reader, 10_000).decode() or "the child died"
    finally:
        os.close(reader)
        os.waitpid(child, 0)
