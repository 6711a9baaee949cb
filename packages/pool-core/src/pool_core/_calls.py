"""The one place that calls the manager and the customizer, and the table of their calls under way.

What may be awaited runs in a task of the pool's own, bounded (``Call``). What is asked at once never raises here: an
answer that is no answer is reported, and the cautious one stands for it.
"""

from __future__ import annotations

import asyncio
import warnings
from asyncio import current_task
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._call import Call
from ._errors import PoolWarning
from ._hooks import WARNING
from ._manager import Verdict
from ._messages import label
from ._slot import Slot
from ._statistics import CloseReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from ._manager import ConnectionManager
    from ._shell import Shell

C = TypeVar("C")


class NoConnectionError(TypeError):
    """``connect`` gave something else than a connection: a mistake in the adapter, which waiting does not heal."""


SILENT = (CloseReason.LEAKED, CloseReason.DETACHED)
"""After these on_close does not run."""


class Calls(Generic[C]):
    """Calls the methods of the pool's manager and the hooks of its customizer; knows which calls are under way."""

    def __init__(self, shell: Shell[C], manager: ConnectionManager[C], customizer: Any) -> None:
        self._shell = shell
        self.manager = manager
        # The optional methods are looked up once.
        self.has_broken = manager.has_broken
        self.reset: Callable[[C], Awaitable[None] | None] | None = getattr(manager, "reset", None)
        self._terminate: Callable[[C], None] | None = getattr(manager, "terminate", None)
        self._judge: Callable[[Exception, C], Verdict] | None = getattr(manager, "judge", None)
        self._is_clean: Callable[[C], bool] | None = getattr(manager, "is_clean", None)
        self._is_transient: Callable[[Exception], bool] | None = getattr(manager, "is_transient", None)
        self._on_connect = getattr(customizer, "on_connect", None)
        self.on_checkout = getattr(customizer, "on_checkout", None)
        self.on_reset = getattr(customizer, "on_reset", None)
        self.on_close = getattr(customizer, "on_close", None)
        self.under_way: dict[Any, Call] = {}  # by approval, slot, or a key of its own
        self.cutting_off = False  # within the end of a call that others cancelled: no task may be begun
        self._warned = False

    # -- asked at once

    def is_broken(self, conn: C) -> bool:
        """Ask ``has_broken``. Raising means broken."""
        try:
            return bool(self.has_broken(conn))
        except BaseException as error:  # noqa: BLE001 - whatever an adapter raises
            self.broken_by(error)
            return True

    def broken_by(self, error: BaseException) -> None:
        """``has_broken`` raised."""
        self._shell.hooks.failed(error, "has_broken raised, so the connection counts as broken")

    def verdict(self, error: BaseException | None, conn: C) -> Verdict:
        """Ask ``judge`` what an error means for the connection. Raising means KEEP."""
        if self._judge is None or not isinstance(error, Exception):
            return Verdict.KEEP
        try:
            verdict = self._judge(error, conn)
            if type(verdict) is not Verdict:
                msg = f"judge must return a Verdict, not {type(verdict).__name__}"
                raise TypeError(msg)
        except BaseException as bug:  # noqa: BLE001 - whatever an adapter raises
            self._shell.hooks.failed(bug, "judge raised, so the connection is kept")
            return Verdict.KEEP
        return verdict

    def is_clean(self, conn: C) -> bool:
        """Ask whether there is nothing to reset. Raising means that there is."""
        if self._is_clean is None:
            return False
        try:
            return self._is_clean(conn) is True
        except BaseException as bug:  # noqa: BLE001 - whatever an adapter raises
            self._shell.hooks.failed(bug, "is_clean raised, so the connection is reset")
            return False

    def is_transient(self, error: BaseException) -> bool:
        """Ask whether waiting may heal a connect error. Raising means that it may."""
        if isinstance(error, NoConnectionError):
            return False
        if self._is_transient is None or not isinstance(error, Exception):
            return True
        try:
            return bool(self._is_transient(error))
        except BaseException as bug:  # noqa: BLE001 - whatever an adapter raises
            self._shell.hooks.failed(bug, "is_transient raised, so the connect error counts as transient")
            return True

    def terminate(self, slot: Slot[C]) -> bool:
        """Drop the socket, once. False: the manager has no ``terminate``, or it failed."""
        if not slot.terminated and self._terminate is not None:
            slot.terminated = True
            try:
                self._terminate(slot.conn)
            except BaseException as error:  # noqa: BLE001 - whatever an adapter raises
                self._shell.hooks.failed(error, f"terminate of connection #{slot.id} raised", connection_id=slot.id)
        return slot.terminated

    # -- awaited

    def connect(
        self, key: Any, timeout: float | None, done: Callable[[Any, Call, BaseException | None, Any], None]
    ) -> Call:
        """Open a connection and customize it."""
        return self.start(key, self._connect(), "connect", timeout, done)

    async def _connect(self) -> C:
        loop = self._shell.life.loop
        connecting = self.manager.connect()
        if not hasattr(connecting, "__await__"):
            msg = (
                f"connect must be an async method, not one that returns {type(connecting).__name__}: write 'async def'"
            )
            raise NoConnectionError(msg)
        conn = await connecting
        if conn is None:
            msg = "connect must return a connection, not None: is a 'return' missing?"
            raise NoConnectionError(msg)
        try:
            if self._on_connect is not None and not self.is_broken(conn):
                await self._counted(self._on_connect(conn))
            if self.is_broken(conn):  # from the first, or by what the hook did to it
                msg = "the new connection is broken already: has_broken is true"
                raise ConnectionError(msg)
        except BaseException:
            self.dispose(conn, loop)
            raise
        return conn

    async def validate(self, slot: Slot[C]) -> bool:
        """Ask the server."""
        return await self.manager.is_valid(slot.conn)

    async def prepare(self, conn: C) -> None:
        """Run ``on_checkout``."""
        assert self.on_checkout is not None
        await self._counted(self.on_checkout(conn))

    async def finish_reset(self, wiping: Awaitable[None], conn: C) -> None:
        """Wait for the reset that has begun, and run ``on_reset``."""
        await wiping
        if self.on_reset is not None:
            await self._counted(self.on_reset(conn))

    async def _counted(self, hook: Awaitable[None]) -> None:
        """Run a hook whose error the pool does not swallow."""
        try:
            await hook
        except Exception:
            self._shell.state.counters.hook_errors += 1
            raise

    async def close(self, slot: Slot[C]) -> None:
        """Run ``on_close`` and close, unless it is terminated already."""
        if self.on_close is not None and slot.mark not in SILENT:
            try:
                await self.on_close(slot.conn)
            except BaseException as error:
                if (task := current_task()) is not None and task.cancelling():
                    raise
                self._shell.hooks.failed(error, f"on_close of connection #{slot.id} raised", connection_id=slot.id)
        if not slot.terminated:
            await self.manager.close(slot.conn)

    # -- the table

    def start(
        self,
        key: Any,
        coro: Coroutine[Any, Any, Any],
        verb: str,
        timeout: float | None,
        done: Callable[[Any, Call, BaseException | None, Any], None],
    ) -> Call:
        """Run this in a task of the pool's own; ``done(key, call, error, result)`` is called once, before the turn."""
        shell = self._shell
        slot = key if isinstance(key, Slot) else None

        def finished(call: Call, error: BaseException | None, result: Any) -> None:
            self._ended(call)
            try:
                done(call.key, call, error, result)
            finally:
                shell.turn()
                self.cutting_off = False

        call = self.under_way[key] = Call(
            shell.life.loop,
            shell.alarm,
            coro,
            key=key,
            verb=verb,
            name=f"{shell.config.name}: {verb}" + ("" if slot is None else f" #{slot.id}"),
            context=shell.life.context,
            timeout=timeout,
            done=finished,
            rescue=None if slot is None else self.terminate,
            spill=self.dispose if verb == "connect" else None,
        )
        return call

    def _ended(self, call: Call) -> None:
        if self.under_way.get(call.key) is call:
            del self.under_way[call.key]
        else:
            self.under_way.pop(call, None)
        if call.abandoned:
            self.abandoned(f"a call of {call.verb}")
        if call.cut_off:
            self._shell.state.cut_off()
        self.cutting_off = call.cut_off

    def cut_short(self, slot: Slot[C]) -> None:
        """Nobody waits any more for the test or reset of this one: it ends by itself, or is abandoned."""
        if (call := self.under_way.pop(slot, None)) is not None:
            self.under_way[call] = call
            call.end()

    def dispose(self, conn: C, loop: asyncio.AbstractEventLoop | None = None, *, gently: bool = False) -> None:
        """Get rid of a connection outside the pool: one that came too late (for an earlier loop), or a dedicated one."""
        shell = self._shell
        slot = Slot(conn, 0, 0.0, inf)
        slot.mark = CloseReason.DETACHED  # no on_close
        dead = (shell.life.loop if loop is None else loop).is_closed()
        if (gently and not dead) or not self.terminate(slot):
            if dead:
                self.abandoned("a connection that came too late")
                shell.hooks.tell()  # no turn will come
            else:
                self.start(slot, self.close(slot), "close", shell.config.close_timeout, self._disposed)

    def _disposed(self, slot: Slot[C], call: Call, error: BaseException | None, _: Any) -> None:
        if error is not None:
            self._shell.hooks.report(error, "closing a connection that was not wanted any more failed")
        if error is not None and not self.terminate(slot) and call.ended and not call.abandoned:
            self.abandoned("a connection that was not wanted any more")

    def abandoned(self, what: str) -> None:
        """Nothing more can be done about this one."""
        shell = self._shell
        shell.state.counters.abandoned += 1
        shell.hooks.note(WARNING, "%s was abandoned: it ended neither when cancelled nor by terminate", what)

    # -- telling

    def warn_of_lost_settings(self) -> None:
        """Warn once where on_connect sets what the first reset takes away again."""
        if self._warned or self._on_connect is None or self.on_reset is not None or self.reset is None:
            return
        if getattr(self.manager, "reset_keeps_on_connect", False):
            return
        self._warned = True
        warnings.warn(
            f"{label(self._shell.config)}: the customizer has on_connect, but not on_reset, and "
            f"{type(self.manager).__name__} resets connections: what on_connect sets is gone for the second borrower. "
            "Add on_reset(conn), or give lasting settings to the adapter (such as server_settings or init_command)",
            PoolWarning,
            stacklevel=3,
        )


def connect_error(call: Call, error: BaseException | None, create_timeout: float | None) -> BaseException:
    """Say why a connect failed: its own error, or how it was ended."""
    if call.ended:
        failure: BaseException = TimeoutError(f"connect took longer than create_timeout={create_timeout} s")
    elif error is None or isinstance(error, asyncio.CancelledError):
        failure = ConnectionAbortedError(
            "connect was cancelled from outside of the pool, or raised CancelledError itself"
        )
    else:
        return error
    if not isinstance(error, asyncio.CancelledError):  # what the driver made of the cancel
        failure.__cause__ = error
    return failure
