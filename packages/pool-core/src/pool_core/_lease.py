"""What ``get`` returns: the warm path, and everything that a borrower can do with a connection."""

from __future__ import annotations

import sys
import warnings
from asyncio import current_task
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ._errors import PoolError
from ._messages import label
from ._slot import DISCARD, IDLE, LENT, RAISED, Slot
from ._statistics import CloseReason

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable
    from types import TracebackType
    from typing import NoReturn

    from ._gets import GetWaiter
    from ._pool import Pool
    from ._shell import Shell

C = TypeVar("C")

# The slot of a lease that holds no connection: not acquired yet, being acquired, or released. They have a mark, so the
# warm path's check of the mark finds them, too.
_NEW: Slot[Any] = Slot(None, 0, 0.0, 0.0)
_BUSY: Slot[Any] = Slot(None, 0, 0.0, 0.0)
_OVER: Slot[Any] = Slot(None, 0, 0.0, 0.0)
_NEW.mark = _BUSY.mark = _OVER.mark = CloseReason.DETACHED


_TWICE = "this lease was acquired already: call pool.get() again for another connection"


class PooledConnection(Generic[C]):
    """An acquired connection (bb8's name for it), made by ``pool.get()``. There are two forms::

        async with pool.get() as conn: ...

        lease = await pool.get()
        try:
            lease.conn ...
        finally:
            lease.release()

    If an awaited lease is garbage-collected without a release, its connection is closed, with a ResourceWarning.
    """

    __slots__ = ("_pool", "_slot", "_timeout")

    def __init__(self, pool: Pool[C], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._slot: Slot[C] = _NEW

    # The warm path is these two methods. Where the state's flags and its floor allow it, they hand out and take back
    # exactly the connections that PoolState would; a property test compares both.

    async def __aenter__(self) -> C:
        pool = self._pool
        state = pool._state
        if (
            len(state.fresh) > state.floor
            and self._slot is _NEW
            # This thread, and a running task of this loop: so this is the pool's loop, and this is its task.
            and get_ident() == pool._thread
            and (task := current_task(pool._loop)) is not None
        ):
            slot = state.pop()
            conn = slot.conn
            # Bookkeeping first: has_broken is foreign code, and may close the pool.
            slot.holder = task
            slot.state = LENT
            raised: BaseException | None = None
            try:
                if not pool._has_broken(conn):
                    slot.stamp = state.tick
                    slot.uses += 1
                    self._slot = slot
                    return conn
            except BaseException as error:  # noqa: BLE001 - raising means broken, also if bool() of the result raises
                raised = error
            pool._gets.found_broken(slot, raised)
        elif self._slot is not _NEW:
            return self._again()
        # Gets.acquire without its coroutine: in a busy pool a thousand gets wait here.
        gets = pool._gets
        self._slot = _BUSY
        try:
            got: Slot[C] | GetWaiter[C]
            if gets.prepares:
                got = await gets.acquire(self._timeout)
            else:
                got = gets.take_or_queue(self._timeout)
                if not isinstance(got, Slot):
                    try:
                        answer = await got.future
                    except BaseException:
                        gets.cancelled(got)
                        raise
                    got = gets.served(got, answer)
        except BaseException:
            self._slot = _NEW
            raise
        self._slot = got
        return got.conn if not state.observed else self.conn

    def _again(self) -> C:
        """Enter a lease that was acquired by `await`; a lease that a block has acquired cannot be entered again."""
        self._pool._shell.life.check_loop()
        if type(self) is PooledConnection and self._slot is not _OVER:
            raise PoolError(_TWICE)
        return self.conn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slot = self._slot
        pool = self._pool
        state = pool._state
        self._slot = _OVER
        if kind is None and slot.mark is None:
            if not state.slow:
                try:
                    broken = True if pool._has_broken(slot.conn) else False  # noqa: SIM210 - bool() costs a call
                except BaseException as raised:  # noqa: BLE001 - raising means broken
                    pool._shell.calls.broken_by(raised)
                    broken = True
                # The mark again: has_broken may have called evict() or close().
                if broken or slot.mark is not None:
                    pool._shell.pass_on(slot, broken)
                elif pool._reset is None or pool._shell.wipe(slot):
                    slot.holder = None
                    slot.state = IDLE
                    slot.stamp = state.tick
                    state.fresh.append(slot)
                return
            if state.plain:
                pool._shell.pass_on(slot)
                return
        if slot.conn is not None:
            shell, life = pool._shell, pool._shell.life
            if life.forked:
                if kind is None:  # else the error of the child process is more important
                    life.check_fork()
            elif kind is None:
                shell.give_back(slot)
            else:  # perhaps a coroutine is being garbage-collected, in any thread
                how = RAISED | DISCARD if shell.config.discard_on_exception else RAISED
                life.in_loop(partial(shell.give_back_raised, slot, how, error))

    def __await__(self) -> Generator[Any, Any, PooledConnection[C]]:
        return self._acquire().__await__()

    async def _acquire(self) -> PooledConnection[C]:
        if self._slot is not _NEW:
            raise PoolError(_TWICE)
        self._slot = _BUSY
        try:
            slot = await self._pool._gets.acquire(self._timeout)
        except BaseException:
            self._slot = _NEW
            raise
        return self._own(slot)

    def _own(self, slot: Slot[C]) -> PooledConnection[C]:
        """Own an acquired connection without an `async with` that ends it."""
        self._slot = slot
        slot.loose = True
        self.__class__ = _AwaitedConnection  # pyright: ignore[reportAttributeAccessIssue]
        return self

    @property
    def conn(self) -> C:
        """The driver's own connection. Raises PoolError before the lease is acquired and after its release."""
        slot = self._held()
        if self._pool._shell.config.guard:
            from ._guard import Guard  # for those who ask for it

            return cast("C", Guard(self, slot.conn))
        return slot.conn

    @property
    def extensions(self) -> dict[Hashable, Any]:
        """Your own data for this connection, kept when it is returned (r2d2's extensions)."""
        self._pool._shell.life.check_loop()
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
        shell = self._pool._shell
        shell.life.check_loop()
        return shell.now() - self._held().born

    def release(self) -> None:
        """Return the connection. Synchronous; a second release does nothing.

        While an exception is being handled, it makes the connection suspect: it is validated before its next use
        (diesel checks ``panicking()``).
        """
        error = sys.exception()
        self._end(RAISED if error is not None else 0, error)

    def discard(self, *, error: BaseException | None = None) -> None:
        """Return the connection to be closed. After a release it does nothing.

        Args:
            error: Why. A manager with ``judge`` may retire all connections because of it.
        """
        self._end(DISCARD, error)

    def detach(self) -> C:
        """Take the connection out of the pool for good: the caller closes it; ``on_close`` does not run."""
        self._pool._shell.life.check_loop()
        slot = self._held()
        self._slot = _OVER
        self._pool._shell.detach(slot)
        return slot.conn

    def _held(self) -> Slot[C]:
        slot = self._slot
        if slot is _NEW or slot is _BUSY:
            msg = "this lease holds no connection yet: use 'async with pool.get() as conn' or 'await pool.get()'"
            raise PoolError(msg)
        if slot is _OVER:
            msg = "this lease was released already: call pool.get() for another connection"
            raise PoolError(msg)
        return slot

    def _end(self, how: int, error: BaseException | None) -> None:
        """End the lease, in every way except the end of a block."""
        slot = self._slot
        if slot.conn is None:  # not acquired yet, or over
            return
        shell, life = self._pool._shell, self._pool._shell.life
        if life.loop.is_closed():
            life.check_fork()
        else:
            life.check_loop()  # before anything of the connection is touched; the lease keeps it
        self._slot = _OVER
        if life.loop.is_closed():
            shell.reclaim(slot)
            return
        slot.loose = False
        if error is None:
            shell.give_back(slot, how)
        else:
            shell.give_back_raised(slot, how, error)

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse copying and pickling: a connection has one borrower."""
        msg = "a lease cannot be copied or pickled: each borrower gets a connection of its own by pool.get()"
        raise TypeError(msg)

    def __repr__(self) -> str:
        slot = self._slot
        how = "released" if slot is _OVER else "not acquired" if slot.conn is None else f"connection #{slot.id}"
        return f"<PooledConnection of {label(self._pool._shell.config)}: {how}>"


class _AwaitedConnection(PooledConnection[C]):
    """A lease that was awaited: no block ends it, so it may be lost, or mistaken for its connection.

    A class of its own, because a finalizer costs 60 ns per lease and ``__getattr__`` slows the warm path.
    """

    __slots__ = ()

    async def __aexit__(self, *exc: Any) -> None:  # noqa: PYI036 - the base class says what they are
        self._slot.loose = False  # the warm return does not do it
        await super().__aexit__(*exc)

    def __del__(self) -> None:
        # May run in any thread, and when the interpreter exits.
        slot = self._slot
        if slot.conn is not None:
            self._reclaim(slot)

    def _reclaim(self, slot: Slot[C]) -> None:
        shell, life = self._pool._shell, self._pool._shell.life
        if life.forked or slot not in shell.state.slots:
            return
        if not life.loop.is_closed():
            life.loop.call_soon_threadsafe(shell.reclaim, slot)  # first, since the warning may raise
        where = f", taken at:\n{slot.stack}" if slot.stack else " (set leak_threshold to see where it was taken)"
        warnings.warn(
            f"{label(shell.config)}: a lease of connection #{slot.id} was dropped without release{where}",
            ResourceWarning,
            stacklevel=3,
            source=self,
        )

    if not TYPE_CHECKING:  # pragma: no branch - type checkers find the mistake without it

        def __getattr__(self, name: str) -> Any:
            msg = (
                f"this is a lease, not a connection: it has no {name!r}; use lease.conn.{name}, "
                "or 'async with pool.get() as conn'"
            )
            raise AttributeError(msg, name=name, obj=self)


class DedicatedConnection(Generic[C]):
    """A connection that is customized, but neither counted nor pooled. Await it, or use ``async with``."""

    __slots__ = ("_conn", "_gets", "_used")

    def __init__(self, shell: Shell[C]) -> None:
        self._gets = shell.gets
        self._used = False

    def __await__(self) -> Generator[Any, Any, C]:
        return self._connect().__await__()

    async def _connect(self) -> C:
        if self._used:
            msg = "this dedicated connection was opened already: call pool.dedicated_connection() again for another one"
            raise PoolError(msg)
        self._used = True
        return await self._gets.connect_dedicated()

    async def __aenter__(self) -> C:
        self._conn = await self._connect()
        return self._conn

    async def __aexit__(self, *_: object) -> None:
        self._gets.close_dedicated(self._conn)
