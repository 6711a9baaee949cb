"""The one place that calls the manager and the customizer, never under the lock, and the table of calls under way.

Slow methods run in workers. Nothing can end a call that is blocked in a driver, except ``terminate`` of its connection from
another thread; a call that does not end then is abandoned: counted, and its thread left alone.
"""

from __future__ import annotations

import warnings
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pool_core._errors import PoolWarning
from pool_core._hooks import WARNING
from pool_core._manager import Verdict
from pool_core._messages import label
from pool_core._slot import Slot
from pool_core._statistics import CloseReason

from . import _primitives
from ._workers import Call, Worker, Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._manager import ConnectionManager
    from ._shell import Shell

C = TypeVar("C")

GRACE = 0.1
"""Seconds between ``terminate`` and giving a call up."""
SILENT = (CloseReason.LEAKED, CloseReason.DETACHED)
"""After these on_close does not run."""


class NoConnectionError(TypeError):
    """``connect`` returned something else than a connection: a mistake in the adapter, which waiting does not heal."""


class Calls(Generic[C]):
    """The methods of one pool's manager, the hooks of its customizer, and which of them are being called."""

    def __init__(self, shell: Shell[C], manager: ConnectionManager[C], customizer: Any) -> None:
        self._shell = shell
        self.manager = manager
        self.has_broken = manager.has_broken
        self.reset: Callable[[C], None] | None = getattr(manager, "reset", None)
        self.may_terminate: Callable[[C], None] | None = getattr(manager, "terminate", None)
        self._judge: Callable[[Exception, C], Verdict] | None = getattr(manager, "judge", None)
        self.tells_clean: Callable[[C], bool] | None = getattr(manager, "is_clean", None)
        self._is_transient: Callable[[Exception], bool] | None = getattr(manager, "is_transient", None)
        self._on_connect = getattr(customizer, "on_connect", None)
        self.on_checkout = getattr(customizer, "on_checkout", None)
        self.on_reset = getattr(customizer, "on_reset", None)
        self.on_close = getattr(customizer, "on_close", None)
        self.under_way: dict[Any, Call] = {}  # by approval, slot, or a key of its own
        self.workers = Workers(shell.config.name, shell.section, self._next)
        self._warned = False

    # -- asked at once, in the thread that needs the answer

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

    def needs_reset(self, conn: C) -> bool:
        """Return whether a connection must be reset before its next borrower. ``is_clean`` that raises means yes."""
        if self.reset is None:
            return False
        if self.tells_clean is None:
            return True
        try:
            return self.tells_clean(conn) is not True
        except BaseException as bug:  # noqa: BLE001 - whatever an adapter raises
            self._shell.hooks.failed(bug, "is_clean raised, so the connection is reset")
            return True

    def is_transient(self, error: BaseException) -> bool:
        """Ask whether connecting may succeed later. Raising means that it may."""
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
        if not slot.terminated and self.may_terminate is not None:
            slot.terminated = True
            try:
                self.may_terminate(slot.conn)
            except BaseException as error:  # noqa: BLE001 - whatever an adapter raises
                self._shell.hooks.failed(error, f"terminate of connection #{slot.id} raised")
        return slot.terminated

    # -- slow, in a worker

    def connect(self, call: Call) -> C:
        """Open a connection and customize it."""
        try:
            return self._connect()
        except BaseException as error:
            call.transient = self.is_transient(error)
            raise

    def _connect(self) -> C:
        conn = self.manager.connect()
        if hasattr(conn, "__await__"):
            if hasattr(conn, "close"):
                cast("Any", conn).close()
            msg = (
                f"connect must be an ordinary method, and returned a {type(conn).__name__}: "
                "a manager with async methods belongs to pool_core.Pool"
            )
            raise NoConnectionError(msg)
        if conn is None:
            msg = "connect must return a connection, not None: is a 'return' missing?"
            raise NoConnectionError(msg)
        try:
            if self._on_connect is not None and not self.is_broken(conn):
                self._counted(self._on_connect, conn)
            if self.is_broken(conn):  # from the first, or by what the hook did to it
                msg = "the new connection is broken already: has_broken is true"
                raise ConnectionError(msg)
        except BaseException:
            self.close_outside(conn)
            raise
        return conn

    def validate(self, call: Call) -> tuple[Any, bool]:
        """Validate: what is_valid returned, and whether the connection is known to be broken."""
        conn = call.key.conn
        if self.is_broken(conn):
            return True, True
        valid = self.manager.is_valid(conn)
        if not isinstance(valid, bool):
            msg = f"is_valid must return True or False, not {type(valid).__name__}: is a 'return True' missing?"
            raise TypeError(msg)
        return valid, valid and self.is_broken(conn)

    def check(self, call: Call) -> tuple[Any, bool]:
        """Ask has_broken alone."""
        return True, self.is_broken(call.key.conn)

    def clean(self, call: Call) -> bool:
        """Reset. Returns whether the connection is known to be broken afterwards."""
        conn = call.key.conn
        assert self.reset is not None
        self.reset(conn)
        if self.on_reset is not None:
            self._counted(self.on_reset, conn)
        return self.is_broken(conn)

    def prepare(self, call: Call) -> None:
        """Run ``on_checkout``."""
        self._counted(cast("Any", self.on_checkout), call.key.conn)

    def _counted(self, hook: Callable[[C], object], conn: C) -> None:
        """Run a hook whose error the pool does not swallow."""
        try:
            made = hook(conn)
            if hasattr(made, "__await__"):
                cast("Any", made).close()
                msg = f"{getattr(hook, '__name__', 'the hook')} must be an ordinary method, not an async one"
                raise TypeError(msg)
        except Exception:
            self._shell.state.counters.hook_errors += 1
            raise

    def close(self, call: Call) -> bool:
        """Run ``on_close`` and close. False: it failed, and the connection could not be terminated either."""
        slot = call.key
        try:
            self._say_close(slot)
            if not slot.terminated:
                self.manager.close(slot.conn)
        except BaseException as error:  # noqa: BLE001 - whatever a driver raises
            if not self._shell.life.final:
                self._shell.hooks.report(error, f"closing connection #{slot.id} failed")
            return self.terminate(slot)
        return True

    def end(self, call: Call) -> bool:
        """Terminate, or close where that cannot be. False: both failed."""
        slot = call.key
        if self.terminate(slot):
            self._say_close(slot)
            return True
        return not self._shell.life.final and self.close(call)

    def _say_close(self, slot: Slot[C]) -> None:
        if self.on_close is not None and slot.mark not in SILENT:
            try:
                self.on_close(slot.conn)
            except BaseException as error:  # noqa: BLE001 - whatever a hook raises
                self._shell.hooks.failed(error, f"on_close of connection #{slot.id} raised")

    def close_outside(self, conn: C) -> None:
        """Get rid of a connection that never joined the pool, in this thread."""
        slot = outsider(conn)
        if self.terminate(slot):
            return
        try:
            self.manager.close(conn)
        except BaseException as error:  # noqa: BLE001 - whatever a driver raises
            self._shell.hooks.report(error, "closing a connection that is not wanted any more failed")

    # -- the table; all of this runs under the lock

    def start(
        self,
        key: Any,
        verb: str,
        body: Callable[[Call], Any],
        done: Callable[[float, Call, BaseException | None, Any], None],
        timeout: float | None,
        *,
        by: Callable[[Call], None] | None = None,
    ) -> Call:
        """Have ``body`` run by a worker, or by somebody else (``by``)."""
        deadline = inf if timeout is None else _primitives.monotonic() + timeout
        call = Call(key, verb, body, done, deadline)
        self.under_way[key] = call
        (by or self.workers.give)(call)
        self._shell.watch.by(deadline)
        return call

    def aside(self, slot: Slot[C]) -> None:
        """Terminate a connection because a call overstays: in a worker, since ``terminate`` might block as well."""
        self.workers.give(Call(slot, "terminate", lambda _: self.terminate(slot), _nothing, inf))

    def end_soon(self, call: Call, when: float) -> None:
        """Bring its deadline forward."""
        call.deadline = min(call.deadline, when)
        self._shell.watch.by(call.deadline)

    def cut_short(self, slot: Slot[C]) -> None:
        """The result of this connection's call is not wanted any more: it ends by itself, or is abandoned."""
        if (call := self.under_way.pop(slot, None)) is not None:
            self.under_way[call] = call
            self.end_soon(call, _primitives.monotonic())

    def overdue(self, now: float) -> list[Call]:
        """Do the next thing with each call whose time is over. Returns those that are to be abandoned."""
        found = []
        for call in [*self.under_way.values()]:
            if call.deadline > now or call.over:
                continue
            call.ended = True
            call.steps += 1
            slot = call.key if isinstance(call.key, Slot) else None
            if call.steps == 1 and slot is not None and self.may_terminate is not None and not slot.terminated:
                call.deadline = now + GRACE
                self.aside(slot)
            else:
                call.over = call.abandoned = True
                found.append(call)
        return found

    def abandon(self, call: Call) -> None:
        """Go on without it. Not under the lock."""
        error = TimeoutError("it ended neither by itself nor by terminate")
        if call.verb == "connect":
            call.transient = self.is_transient(error)
        self._shell.event(self._finish, call, error, None)

    def next_deadline(self) -> float:
        """When the first one is overdue."""
        return min((call.deadline for call in self.under_way.values() if not call.over), default=inf)

    def ran(self, call: Call, outcome: tuple[BaseException | None, Any]) -> None:
        """Another thread than a worker has run a call. Not under the lock."""
        self._shell.event(self._ended, call, outcome)
        self._spill(call, outcome)

    def _next(self, worker: Worker, call: Call | None, outcome: Any) -> None:
        """A worker has ended a call, or has just begun. It gets the next one."""
        self._shell.event(self._turn, worker, call, outcome)
        if call is not None:
            self._spill(call, outcome)

    def _turn(self, now: float, worker: Worker, call: Call | None, outcome: Any) -> None:
        if call is not None:
            self._ended(now, call, outcome)
        self.workers.next(worker)

    def _ended(self, now: float, call: Call, outcome: tuple[BaseException | None, Any]) -> None:
        if not call.over:
            call.over = True
            self._finish(now, call, *outcome)

    def _finish(self, now: float, call: Call, error: BaseException | None, result: Any) -> None:
        self.under_way.pop(call.key if self.under_way.get(call.key) is call else call, None)
        if call.abandoned:
            self.abandoned(f"a call of {call.verb}")
        call.done(now, call, error, result)

    def _spill(self, call: Call, outcome: tuple[BaseException | None, Any]) -> None:
        """A connection that came after its attempt was abandoned is closed, in this thread."""
        if call.abandoned and call.verb == "connect" and outcome[0] is None:
            self.close_outside(outcome[1])

    def running(self) -> dict[Any, Call]:
        """Forget those whose end an interrupt has cut off, and return the others."""
        for key, call in [*self.under_way.items()]:
            if call.over and not call.abandoned:
                del self.under_way[key]
        return self.under_way

    def repair(self) -> None:
        """Give those calls to a worker that an interrupt has kept from it."""
        self.workers.repair()
        for call in self.under_way.values():
            if not call.given and not call.over:
                self.workers.give(call)

    def abandoned(self, what: str) -> None:
        """Nothing more can be done about this one."""
        shell = self._shell
        shell.state.counters.abandoned += 1
        shell.hooks.note(WARNING, "%s was abandoned: it ended neither by itself nor by terminate", what)

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
            stacklevel=4,
        )


def outsider(conn: C) -> Slot[C]:
    """A slot for a connection beside the pool."""
    slot: Slot[C] = Slot(conn, 0, 0.0, inf)
    slot.mark = CloseReason.DETACHED  # no on_close
    return slot


def _nothing(now: float, call: Call, error: BaseException | None, result: Any) -> None:
    """Nobody waits for it."""
