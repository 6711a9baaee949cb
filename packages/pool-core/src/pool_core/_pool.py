"""The pool that users hold: its public API."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import warnings
import weakref
from asyncio import current_task
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ._check import check_manager
from ._config import PoolConfig, PoolOptions, check_names, check_timeout
from ._errors import BrokenConnection, PoolFull
from ._lease import DedicatedConnection, PooledConnection
from ._messages import label, numbers
from ._shell import Shell

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import NoReturn, Self, Unpack

    from ._events import Event
    from ._manager import ConnectionManager
    from ._statistics import Holder, State

__all__ = ["Pool"]

C = TypeVar("C")

_open_pools: weakref.WeakSet[Shell[Any]] = weakref.WeakSet()


class Pool(Generic[C]):
    """A pool of the connections that a manager makes. It belongs to one event loop and one process.

    Making it validates the options and does no I/O; it needs no running loop. ``async with pool:`` opens and closes
    it. A closed pool may be opened again, also on another loop.

    Args:
        manager: How to connect, test, judge and close: see ``ConnectionManager``.
        options: See ``PoolConfig`` for each one, its default and its unit.

    Raises:
        ValueError, TypeError: an option or the manager is not what it must be; the text says what is allowed.
    """

    __slots__ = ("__weakref__", "_blocks", "_gets", "_has_broken", "_loop", "_reset", "_shell", "_state", "_thread")

    def __init__(self, manager: ConnectionManager[C], /, **options: Unpack[PoolOptions[C]]) -> None:
        check_names(options)
        config = PoolConfig(**options)
        check_manager(manager)
        self._shell = Shell(manager, config)
        # What the warm path needs stands one step away.
        self._state = self._shell.state
        self._gets = self._shell.gets
        self._has_broken = self._shell.calls.has_broken
        self._reset = self._shell.calls.reset
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._blocks: list[tuple[int, int]] = []  # `async with pool:`: the life that each began in, and its task

    @classmethod
    def from_url(cls, url: str, /, **options: Unpack[PoolOptions[Any]]) -> Pool[Any]:
        """Make a pool for a URL, by the installed adapter that claims its scheme.

        Options may stand in the URL's query as ``pool_max_size=20``; those given as arguments win. Everything else of
        the URL reaches the driver byte for byte.

        Raises:
            ValueError: no adapter claims the scheme, or two do; an option's value is not allowed.
            TypeError: an unknown ``pool_*`` key.
            ImportError: the adapter that claims the scheme cannot be imported.
        """
        from ._registry import manager_and_options  # its imports cost more than the pool's own

        manager, found = manager_and_options(url)
        merged = cast("PoolOptions[Any]", {**found, **options})
        return cls(manager, **merged)

    # -- life cycle

    async def open(self, *, wait: bool = True) -> None:
        """Open the pool. On an open pool it does nothing.

        Args:
            wait: True: return when ``min_idle`` connections are up, as bb8's ``build``. False: return at once and
                connect in the background, as ``build_unchecked``.

        Raises:
            Exception: the driver's own, unchanged, if connecting fails: at once if it is not transient, else the last
                one when ``connection_timeout`` is over. A failed open leaves nothing behind and may be repeated.
            PoolTimeout: connects hung until ``connection_timeout``.
            PoolClosed: the pool is closing, or was closed meanwhile.
            WrongEventLoop: it is open on another loop that is not closed.
        """
        shell = self._shell
        loop = asyncio.get_running_loop()
        if not shell.life.is_alive or shell.life.loop.is_closed():
            self._loop = loop
            self._thread = get_ident()
        _open_pools.add(shell)
        shell.calls.warn_of_lost_settings()
        await shell.life.open(wait=wait)

    async def close(self, timeout: float = 10.0) -> None:
        """Close the pool, within ``timeout`` (s) and at most a second more, whatever happens.

        Waiting gets fail at once with PoolClosed. Idle connections are closed. The pool waits for connections in use and
        for resets; after the timeout it terminates them. If close() is cancelled, it terminates the remaining connections
        and re-raises. Before ``open`` and on a closed pool it does nothing.

        Raises:
            ValueError: ``timeout`` is None, negative or NaN.
            WrongEventLoop: the pool is open on another loop that is not closed.
        """
        self._shell.life.check_fork()
        if timeout is None:
            msg = "timeout=None: closing always ends; give a number of seconds, 0 or more"
            raise ValueError(msg)
        check_timeout("timeout", timeout)
        await self._shell.life.close(timeout)

    async def __aenter__(self) -> Self:
        await self.open()
        self._blocks.append((self._shell.life.number, id(asyncio.current_task())))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        number = self._shell.life.number
        if (block := self._ended_block(number, dropped=kind is GeneratorExit)) is not None:
            self._blocks.remove(block)
        # The outermost one closes; one of an earlier life was closed with it.
        if (block is None or block[0] == number) and not any(other[0] == number for other in self._blocks):
            await self.close()

    def _ended_block(self, number: int, *, dropped: bool) -> tuple[int, int] | None:
        """Find the block that ends: of this task, as a rule; one that is dropped as garbage is of an earlier life."""
        task = id(current_task()) if asyncio._get_running_loop() is not None else 0
        earlier = [block for block in self._blocks if block[0] != number] if dropped else []
        mine = [block for block in self._blocks if block[1] == task]
        return next(reversed(earlier or mine or self._blocks), None)

    # -- connections

    def get(self, timeout: float | None = None) -> PooledConnection[C]:
        """Get a connection: ``async with pool.get() as conn``, or ``lease = await pool.get()``.

        Gets are served in the order in which they came. A cancelled one loses nothing.

        Args:
            timeout: Seconds for all of it: queueing, connecting, testing, retries. None: ``connection_timeout``.
                ``math.inf``: no limit. 0: an idle connection that needs no test, or PoolTimeout at once.

        Raises:
            PoolTimeout: none came in time; it says in which phase, what the pool looked like, and the connect error.
            ConnectError: connecting fails in a way that waiting will not heal, and no connection is open at all; or
                any connect failed under ``retry_connection=False``.
            PoolOverloaded: ``max_waiting`` gets are waiting already.
            PoolDeadlock: every connection is held by a task that waits for another one.
            PoolClosed: the pool is not open, or closes meanwhile.
            WrongEventLoop, ForkedPool: the pool belongs to another loop or process.
            ValueError: a negative timeout, or NaN.
        """
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        return PooledConnection(self, timeout)

    async def try_get(self) -> PooledConnection[C] | None:
        """Get an idle connection, tested if it must be, or None: never waits for a return and never connects."""
        slot = await self._gets.try_acquire()
        return None if slot is None else PooledConnection(self, None)._own(slot)

    def dedicated_connection(self) -> DedicatedConnection[C]:
        """Open a connection beside the pool: ``async with`` closes it, ``await`` leaves it to you.

        It is customized, and neither counted nor pooled. Raises the driver's own error unchanged, PoolTimeout when
        ``create_timeout`` is over, PoolClosed if the pool is not open.
        """
        return DedicatedConnection(self._shell)

    def add(self, conn: C) -> None:
        """Put a connection that was opened elsewhere into the pool. ``on_connect`` does not run for it.

        Raises:
            BrokenConnection: has_broken is true. It carries the connection back, as does
            PoolFull: the pool is at max_size.
            PoolClosed: the pool is not open.
        """
        shell = self._shell
        shell.life.check_open()
        if shell.calls.is_broken(conn):
            shell.last_turn()
            msg = f"{label(shell.config)}: the connection to add is broken (has_broken is true): it is yours to close"
            raise BrokenConnection(msg, conn)
        shell.life.check_open()  # has_broken may have closed it
        if any(slot.conn is conn for slot in (*shell.state.slots, *shell.state.closing)):
            msg = f"{label(shell.config)}: the connection to add is in the pool already"
            raise ValueError(msg)
        if not shell.add(conn):
            msg = f"{label(shell.config)} is full (max_size={shell.config.max_size}): the connection to add is yours to close"
            raise PoolFull(msg, conn)

    def resize(self, *, max_size: int | None = None, min_idle: int | None = None) -> None:
        """Change the size. Shrinking closes surplus idle connections now, and those in use on their return.

        Raises:
            ValueError, TypeError: the pair is not allowed; then nothing has changed.
        """
        self._shell.life.check_loop()
        self._shell.resize(self._shell.config.resized(max_size=max_size, min_idle=min_idle))

    def evict(self, predicate: Callable[[C], bool] | None = None) -> int:
        """Retire connections: idle ones close now, those in use on their return; then the pool restores ``min_idle``.

        For a failover or a rotation of credentials (HikariCP #1081). Without a predicate everything goes whose
        connect began before now. With one, each open connection is judged now.

        Returns:
            How many open connections are retired.
        """
        self._shell.life.check_open()
        if inspect.iscoroutinefunction(predicate):
            msg = f"predicate={predicate!r}: must be an ordinary function that returns at once"
            raise TypeError(msg)
        return self._shell.evict(predicate)

    # -- looking

    def add_listener(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Tell one more listener each event from now on, as the option ``listeners`` does from the beginning.

        While anybody listens, each get and return takes a longer way: some microseconds.

        Returns:
            A function that ends it. A second call does nothing.

        Raises:
            TypeError: it is not callable.
        """
        if not callable(listener):
            msg = f"listener={listener!r}: must be callable with one event"
            raise TypeError(msg)
        self._shell.life.check_loop()
        return self._shell.listen(listener)

    @property
    def manager(self) -> ConnectionManager[C]:
        """The manager that the pool was made with."""
        return self._shell.calls.manager

    @property
    def config(self) -> PoolConfig:
        """The options in force; ``resize`` replaces it."""
        self._shell.life.check_fork()
        return self._shell.config

    def state(self) -> State:
        """The pool's numbers now. May be called from any thread, as exporters of metrics do."""
        self._shell.life.check_fork()
        return self._state.snapshot()

    def holders(self) -> list[Holder]:
        """Who holds what, and how long; the longest first. May be called from any thread.

        A holder is named by its task: name tasks with ``asyncio.current_task().set_name("report")``.
        """
        from ._look import holders  # rarely needed

        self._shell.life.check_fork()
        return holders(self._state, self._shell.now()) if self._state.slots else []

    def __repr__(self) -> str:
        shell = self._shell
        life = "forked" if shell.life.forked else shell.life.stage
        return f"<Pool {shell.config.name!r} {life}: {numbers(shell.state)}>"

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to be copied or pickled: two owners would each close the connections of the other."""
        msg = "a Pool cannot be copied or pickled: share the one object, or make another with the same options"
        raise TypeError(msg)

    def __del__(self) -> None:
        shell: Shell[C] | None = getattr(self, "_shell", None)
        if shell is None or shell.life.forked or not shell.life.is_alive:
            return
        stage = shell.life.stage
        shell.life.in_loop(shell.life.bury)  # first: a warning may be an error
        if stage != "closing":
            warnings.warn(
                f"{label(shell.config)} was dropped while open: use 'async with pool:', or 'await pool.close()'",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


def check_pool(thing: object, *, threads_too: bool = False) -> None:
    """Refuse what is no pool. What it is stays untold: it may be a URL with a password."""
    threads = sys.modules.get("pool_core.threads._pool") if threads_too else None  # not imported: no pool of it exists
    if not isinstance(thing, Pool if threads is None else (Pool, threads.Pool)):
        what = f"the class {thing.__name__}" if isinstance(thing, type) else f"an object of type {type(thing).__name__}"
        msg = f"pool: expected a Pool, not {what}"
        raise TypeError(msg)


def _after_fork_in_child() -> None:
    for shell in list(_open_pools):
        shell.life.mark_forked()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
