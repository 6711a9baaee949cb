"""The hooks that an author gives, and what several checks do with them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Final, Generic, TypeVar

from pool_core import ConnectionManager, SupportsReset
from pool_core.testing._injector import CancelMode, Injector, acancel_everywhere
from pool_core.testing._lab import Lab, NotGivenError, Probe, eventually, fail, see, short

__all__ = ["SWEEP", "Questions"]

C = TypeVar("C")
T = TypeVar("T")

SWEEP: Final[tuple[CancelMode, ...]] = ("single", "success", "level")


class Questions(Generic[C]):
    """The base of all checks; the hooks are documented for users of :class:`ManagerConformance`."""

    host: str = "127.0.0.1"
    port: int = 0
    network: ClassVar[bool] = True
    skips: ClassVar[Mapping[str, str]] = {}
    probes: Sequence[Probe[C]] = ()
    secrets: Sequence[str] = ()
    patience: float = 5.0
    time_limit: float = 55.0

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
        raise NotGivenError("slow_request")

    async def leave_unread(self, conn: C) -> None:
        """Hook: leave part of an answer unread: a cursor half read, a request sent and its reply not fetched."""
        raise NotGivenError("leave_unread")

    async def late_error(self, conn: C) -> None:
        """Hook: send a request that the driver waits for no answer to, and that the server answers with an error.

        A publish to an exchange that does not exist, a command without a reply that is refused, a request sent past the
        driver's own methods. The connection was used before. The hook waits for no answer: the error arrives later.
        """
        raise NotGivenError("late_error")

    async def begin(self, conn: C) -> None:
        """Hook: leave a transaction open. Give :meth:`in_transaction` too."""
        raise NotGivenError("begin")

    async def in_transaction(self, conn: C) -> bool:
        """Hook: whether a transaction is open, asked of the server where it can tell."""
        raise NotGivenError("in_transaction")

    async def server_kill(self, conn: C) -> None:
        """Hook: let the server drop this connection, by an admin's command on another one."""
        raise NotGivenError("server_kill")

    def bad_credentials(self, host: str, port: int) -> ConnectionManager[C] | Mapping[str, ConnectionManager[C]]:
        """Hook: a manager that this server will refuse, or several by name (wrong password, unknown database)."""
        raise NotGivenError("bad_credentials")

    async def dispose(self, manager: ConnectionManager[C]) -> None:
        """Hook: release what the manager itself holds, beside its connections; may come twice. By default nothing."""

    async def _use(self, lab: Lab[C], conn: C, what: str) -> None:
        try:
            await lab.within(self.use(conn), "it did not return in time")
        except Exception as error:
            raise AssertionError(f"use() of {what} failed: {short(error)}") from error

    async def _reset(self, lab: Lab[C], manager: ConnectionManager[C], conn: C) -> None:
        if isinstance(manager, SupportsReset):
            awaitable = manager.reset(conn)
            if awaitable is not None:
                if not inspect.isawaitable(awaitable):
                    fail(f"reset returned {awaitable!r}: return None (nothing to reset) or an awaitable")
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
                fail(f"{what} costs the connection: has_broken is True after {after}, so nothing about dirty is proved")
            try:
                seen = await lab.within(probe.look(conn), f"{what} did not return in time")
                await lab.within(self._reset(lab, manager, conn), f"reset after {what} did not return in time")
            except Exception as error:
                raise AssertionError(
                    f"{what} fails, or what it leaves behind cannot be reset: {short(error)}"
                ) from error
            if seen != clean[probe.name]:
                fail(f"{what} sees {clean[probe.name]!r} on a new connection, and after {after} {seen!r}")
        await lab.drop(manager, conn)

    async def _under_way(self, task: asyncio.Future[Any], seconds: float = 0.05) -> None:
        await asyncio.sleep(seconds)
        if task.done():
            task.result()
            fail("the hook slow_request returned at once: it must keep the server busy for ten seconds or so")

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
        if see(task) is not None or self._broken(manager, conn):
            return False  # whatever reset raises closes the connection
        await asyncio.sleep(pause)
        if self._broken(manager, conn):
            return False
        complaint = (
            f"after {after} has_broken says False, and the next borrower does not find the connection clean: clean it in"
            " reset, or let has_broken say True (what cannot be known counts as broken)"
        )
        try:
            await lab.within(self.use(conn), "its first request did not return in time")
        except Exception as error:
            raise AssertionError(f"{complaint}; use() failed: {short(error)}") from error
        for name, value in (await self._look(lab, conn)).items():
            if value != clean[name]:
                fail(f"{complaint}; {name}: {value!r} instead of {clean[name]!r}")
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
            fail(f"is_valid did not return in time after {fault}")
        if see(task) is None and task.result() is True:
            again = self.network and lab.proxy.accepted > accepted
            fail(
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
        except NotGivenError:
            return
        lab.terminate(manager, conn)
        lab.forget(conn)
        await asyncio.wait({task}, timeout=lab.patience)
        if task.done():
            see(task)
        else:
            task.cancel()
            await asyncio.wait({task}, timeout=1)
            fail("a request that was waiting for its answer hangs after terminate: the borrower must get an error")

    async def _connect_fails(self, lab: Lab[C], manager: ConnectionManager[C], fault: str) -> Exception:
        task = asyncio.ensure_future(manager.connect())
        await asyncio.wait({task}, timeout=lab.patience)
        if not task.done():
            for _ in range(2):
                task.cancel()
                await asyncio.wait({task}, timeout=0.25)
            fail(f"connect did not fail in time ({fault}): users would wait for their whole timeout")
        if task.cancelled():
            fail(f"connect raised CancelledError though nobody had cancelled it ({fault}): raise an Exception")
        error = task.exception()
        if error is None:
            await lab.drop(manager, task.result())
            fail(f"connect returned a connection ({fault}): prove it with a round trip before returning")
        if not isinstance(error, Exception):
            fail(f"connect raised {error!r}, which is no Exception ({fault})")
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
        modes: Sequence[CancelMode] = SWEEP,
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
            fail(f"{what} is {value!r} instead of {wanted}: {advice}")
