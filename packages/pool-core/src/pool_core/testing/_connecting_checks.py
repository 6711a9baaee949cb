"""The checks of connecting, of using, and of leases beside each other."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import inspect
import unittest
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from pool_core import ConnectionManager, Pool, SupportsReset, SupportsTerminate, SupportsTransient
from pool_core.testing._injector import Injector, acancel_everywhere
from pool_core.testing._lab import Lab, NotGivenError, eventually, fail, see, short
from pool_core.testing._questions import SWEEP, Questions

__all__ = ["ConnectingChecks"]

C = TypeVar("C")

_CORE: Final = ("connect", "is_valid", "has_broken", "close")
_OPTIONAL: Final = ("reset", "terminate", "is_transient", "judge", "is_clean")
_SYNC: Final = ("has_broken", "terminate", "is_transient", "judge", "is_clean")
_ARGUMENTS: Final = {"connect": 0, "judge": 2}  # all others take one


class ConnectingChecks(Questions[C]):
    """Checks of connecting: it succeeds, or fails with a clear error, and leaves nothing behind."""

    async def check_protocol(self, lab: Lab[C]) -> None:
        """The manager has all methods, sync and async as required; making it needs no loop and does no I/O."""
        # In a thread there is no running loop.
        try:
            manager = lab.watch(await asyncio.to_thread(self.manager, *lab.address))
        except Exception as error:
            raise AssertionError(
                f"making a manager without a running loop failed: {short(error)}: a pool is made at import time, so make"
                " locks, futures and clients in connect()"
            ) from error
        if self.network and lab.proxy.accepted:
            fail("making a manager opened a connection: connect only in connect(), a pool is made without I/O")
        for name in dir(manager):
            close = difflib.get_close_matches(name, (*_CORE, *_OPTIONAL), n=1, cutoff=0.8)
            if close and close[0] != name and not hasattr(manager, close[0]) and not name.startswith("_"):
                fail(f"{name} looks like a misspelt {close[0]}: rename it, or a pool will never call it")
        for verb in (*_CORE, *_OPTIONAL):
            function = getattr(manager, verb, None)
            if function is None and verb in _OPTIONAL:
                continue
            if not callable(function):
                fail(
                    f"the manager has no method {verb}: it needs connect(), is_valid(conn), has_broken(conn), close(conn)"
                )
            with contextlib.suppress(ValueError):  # no signature to be had: written in C
                try:
                    inspect.signature(function).bind(*[None] * _ARGUMENTS.get(verb, 1))
                except TypeError as error:
                    fail(f"{verb} cannot be called with {_ARGUMENTS.get(verb, 1)} positional argument(s): {error}")
            if verb in _SYNC and inspect.iscoroutinefunction(function):
                fail(f"{verb} is an async def: it must be a plain def that returns at once, a pool does not await it")

    async def check_connect_and_use(self, lab: Lab[C]) -> None:
        """A new connection works, counts as valid and unbroken, and is reset and closed without an error."""
        manager = lab.manager()
        first, second = await lab.connect(manager), await lab.connect(manager)
        if first is None:
            fail("connect returned None: return the connection")
        if first is second:
            fail("connect returned the same object twice: every call must open a connection of its own")
        for conn in (first, second):
            await self._use(lab, conn, "a new connection")
            self._expect(manager.has_broken(conn), False, "has_broken of a new connection", "return a bool")
            valid = manager.is_valid(conn)
            if not inspect.isawaitable(valid):
                fail(f"is_valid returned {valid!r} instead of an awaitable: make it an async def")
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
                fail(f"close returned {closing!r} instead of an awaitable: make it an async def")
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
            fail(f"the pool reports an error after ordinary use: {short(errors[0])}")
        if statistics.connections_created > 2:
            reasons = {str(reason): count for reason, count in statistics.connections_closed.items() if count}
            fail(
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
            raise AssertionError(f"connect failed over a connection {what}: {short(error)}") from error
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
                    with contextlib.suppress(NotGivenError):
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
                        fail(f"has_broken says True {beside}: close must leave the other leases of a socket alone")
                    if not broken:
                        await self._use(lab, other, f"a connection {beside}, which has_broken calls sound,")
                elif slow.done() and not isinstance(see(slow), NotGivenError) and (end == "close" or not broken):
                    fail(f"a slow request {beside} has ended: {see(slow)!r}; has_broken of its connection is {broken}")
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
                        fail("connect did not return in time: another connect, begun together with it, was cancelled")
                    error = see(task)
                    if error is None:
                        conn = lab.adopt(manager, task.result())
                        await self._use(lab, conn, "a connection whose connect ran beside a cancelled one")
                        await lab.drop(manager, conn)
                    elif number not in cancelled:
                        fail(
                            f"connect raised {short(error)}: another connect, begun together with it, was cancelled. What"
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
                    fail(
                        "a connection made after evict() uses a socket that was open before: after a failover it leads"
                        " to the old server. A shared socket that has lost a connection must take no new one"
                    )
            try:
                await self.use(busy)
            except Exception as error:
                raise AssertionError(
                    f"a connection that was in use during evict() does not work any more: {short(error)}"
                ) from error
        if errors:
            fail(f"the pool reports an error after evict(): {short(errors[0])}")
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
            fail(
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
                fail(
                    f"is_transient({short(error)}) is not True though {fault}: this heals when the server is back;"
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
                fail(f"{name}: {short(error)} cannot be told from a server that is down: add is_transient(exc)")
            if manager.is_transient(error) is not False:
                fail(f"{name}: is_transient({short(error)}) is not False: retrying will not help, users wait in vain")
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

        await acancel_everywhere(scenario, modes=SWEEP, must_surface=False)

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
            fail("connect to a silent server did not end after two cancels: a pool has to abandon it, with its socket")
        if not task.cancelled() and task.exception() is None:
            fail("connect returned a connection though the server has not said a word: prove it before returning")
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

        await acancel_everywhere(scenario, modes=SWEEP, must_surface=False)
