"""What ``get`` returns: the warm way back, and everything that a borrower can do with a connection."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pool_core._errors import PoolError
from pool_core._messages import label
from pool_core._slot import BROKEN, DISCARD, IDLE, RAISED, Slot

from . import _primitives
from ._calls import outsider

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import TracebackType
    from typing import NoReturn

    from ._pool import Pool
    from ._shell import Shell

C = TypeVar("C")


class PooledConnection(Generic[C]):
    """A connection in use (bb8's name for it). Made by ``pool.get()``; used in one of two forms::

        with pool.get() as conn: ...

        lease = pool.get()
        try:
            lease.conn ...
        finally:
            lease.release()

    A lease that is garbage-collected unreleased costs its connection and warns with a ResourceWarning. Any thread may
    release a lease; only one thread at a time should use its connection.
    """

    __slots__ = ("_pool", "_slot")

    _pool: Pool[C]
    _slot: Slot[C] | None

    def __enter__(self) -> C:
        slot = self._slot
        if slot is None or self._pool._guards:
            return self.conn
        slot.loose = False  # this block ends it
        return slot.conn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slot = self._slot
        if slot is None:
            return
        pool = self._pool
        state = pool._state
        if kind is None:
            broken = False
            if not state.slow and slot.mark is None and pool._section.owner is None:
                raised: BaseException | None = None
                try:
                    broken = True if pool._has_broken(slot.conn) else False  # noqa: SIM210 - bool() costs a call
                    clean = (
                        broken
                        or pool._reset is None
                        or (pool._is_clean is not None and pool._is_clean(slot.conn) is True)
                    )
                except BaseException as failed:  # noqa: BLE001 - the long way asks again, and reports it
                    raised, clean = failed, False
                if clean and not broken:
                    fresh, one = state.fresh, (slot,)
                    try:
                        with pool._section.lock:  # no call in this block: no signal handler runs in it
                            # Asked again: other threads were here.
                            if not state.slow and slot.mark is None and self._slot is slot:  # type: ignore[redundant-expr]
                                self._slot = None
                                slot.holder = None
                                slot.state = IDLE
                                slot.stamp = state.tick
                                fresh += one
                    except BaseException:
                        pool._section.leave()
                        raise
                    if self._slot is None:
                        return
                if isinstance(raised, (KeyboardInterrupt, SystemExit)):
                    pool._shell.hooks.interrupt = raised
                raised = None  # it refers to this frame
            pool._shell.give_back(self, slot, BROKEN if broken else 0)
        elif pool._shell.life.forked:
            self._slot = None  # the child's own error goes first
        else:
            how = RAISED | DISCARD if pool._shell.config.discard_on_exception else RAISED
            pool._shell.give_back(self, slot, how, error)

    @property
    def conn(self) -> C:
        """The driver's own connection. Raises PoolError after its release."""
        slot = self._held()
        if self._pool._shell.config.guard:
            from pool_core._guard import Guard  # for those who ask for it

            return cast("C", Guard(cast("Any", self), slot.conn))
        return slot.conn

    @property
    def extensions(self) -> dict[Hashable, Any]:
        """Data of yours that belongs to this connection and stays when it is returned (r2d2's extensions)."""
        self._pool._shell.life.check_fork()
        slot, state = self._held(), self._pool._state
        if slot not in state.slots:  # close() has terminated it under its borrower
            return state.extensions.get(slot, {})
        return state.extensions.setdefault(slot, {})

    @property
    def connection_id(self) -> int:
        """The connection's number in events, logs and ``holders()``: unique in the process."""
        return self._held().id

    @property
    def age(self) -> float:
        """Seconds since the connection joined the pool."""
        return _primitives.monotonic() - self._held().born

    def release(self) -> None:
        """Return the connection. A second release does nothing.

        Called while an exception is being handled, it makes the connection suspect: it is validated before its next use.
        """
        error = sys.exception()
        self._end(RAISED if error is not None else 0, error)

    def discard(self, *, error: BaseException | None = None) -> None:
        """Return the connection to be closed. After a release it does nothing.

        Args:
            error: What is the matter with it. A manager with ``judge`` may retire all connections for it.
        """
        self._end(DISCARD, error)

    def detach(self) -> C:
        """Take the connection out of the pool for good: the caller closes it; ``on_close`` does not run."""
        slot = self._held()
        self._pool._shell.event(self._pool._shell.detach, self)
        return slot.conn

    def _held(self) -> Slot[C]:
        slot = self._slot
        if slot is None:
            msg = "this lease was released already: call pool.get() for another connection"
            raise PoolError(msg)
        return slot

    def _end(self, how: int, error: BaseException | None) -> None:
        slot = self._slot
        if slot is None:
            return
        self._pool._shell.life.check_fork()
        self._pool._shell.give_back(self, slot, how, error)

    def __del__(self) -> None:
        # In any thread, at any moment, also at the end of the interpreter.
        try:
            slot = self._slot
        except AttributeError:  # interrupted in its first moment
            return
        if slot is not None:
            self._lost(slot)

    def _lost(self, slot: Slot[C]) -> None:
        shell = self._pool._shell
        if shell.life.forked or slot not in shell.state.slots:
            return
        shell.lost(slot, slot.uses)  # first: a warning may be an error
        where = f", taken at:\n{slot.stack}" if slot.stack else " (set leak_threshold to see where it was taken)"
        warnings.warn(
            f"{label(shell.config)}: a lease of connection #{slot.id} was dropped without release{where}",
            ResourceWarning,
            stacklevel=3,
            source=self,
        )

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to be copied or pickled: a connection has one borrower."""
        msg = "a lease cannot be copied or pickled: each borrower gets a connection of its own by pool.get()"
        raise TypeError(msg)

    def __repr__(self) -> str:
        slot = self._slot
        how = "released" if slot is None else f"connection #{slot.id}"
        return f"<PooledConnection of {label(self._pool._shell.config)}: {how}>"

    if not TYPE_CHECKING:  # pragma: no branch - type checkers find the mistakes by themselves

        def __getattr__(self, name: str) -> Any:
            if name in ("_slot", "_pool"):  # interrupted in its first moment
                raise AttributeError(name)
            msg = (
                f"this is a lease, not a connection: it has no {name!r}; use lease.conn.{name}, "
                "or 'with pool.get() as conn'"
            )
            raise AttributeError(msg, name=name, obj=self)

        def __await__(self) -> NoReturn:
            self._refuse_async()

        async def __aenter__(self) -> NoReturn:
            self._refuse_async()

        async def __aexit__(self, *_: object) -> None:
            """Never called: ``__aenter__`` raises."""

        def _refuse_async(self) -> NoReturn:
            self.release()
            refuse_async("pool.get()")


def refuse_async(what: str) -> NoReturn:
    """Say which pool a program with ``async with`` or ``await`` wants."""
    msg = (
        f"{what} of pool_core.threads.Pool is for threads: use 'with', without async and await; a program with an event "
        "loop uses pool_core.Pool"
    )
    raise TypeError(msg)


class DedicatedConnection(Generic[C]):
    """A connection beside the pool: customized, but neither counted nor pooled. ``with`` closes it."""

    __slots__ = ("_conn", "_shell")

    def __init__(self, shell: Shell[C], conn: C) -> None:
        self._shell = shell
        self._conn: C | None = conn

    @property
    def conn(self) -> C:
        """The driver's own connection. Raises PoolError after ``close`` or ``detach``."""
        if self._conn is None:
            msg = "this dedicated connection is closed: call pool.dedicated_connection() for another one"
            raise PoolError(msg)
        return self._conn

    def close(self) -> None:
        """Close it, within ``close_timeout``. A second close does nothing."""
        conn, self._conn = self._conn, None
        if conn is None or self._shell.life.forked:
            return
        self._shell.gets.close_dedicated(conn)

    def detach(self) -> C:
        """Return the connection; closing it is up to the caller."""
        conn = self.conn
        self._conn = None
        return conn

    def __enter__(self) -> C:
        return self.conn

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        conn = getattr(self, "_conn", None)
        if conn is None or self._shell.life.forked:
            return
        shell = self._shell
        shell.inbox.append(lambda _: shell.calls.aside(outsider(conn)))
        shell.watch.gate.open()
        warnings.warn(
            f"{label(shell.config)}: a dedicated connection was dropped without close",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )
