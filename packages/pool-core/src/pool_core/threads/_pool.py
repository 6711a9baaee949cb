"""The pool for threads that users hold: its public API, and the warm path of ``get``."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pool_core._check import check_manager
from pool_core._config import HOOKS, PoolConfig, PoolOptions, check_names, check_timeout
from pool_core._errors import BrokenConnection, PoolFull
from pool_core._messages import label
from pool_core._slot import LENT

from ._borrower import here, local
from ._lease import DedicatedConnection, PooledConnection, refuse_async
from ._primitives import read
from ._shell import Shell

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import NoReturn, Self, Unpack

    from pool_core._events import Event
    from pool_core._statistics import Holder, State

    from ._manager import ConnectionManager

__all__ = ["Pool"]

C = TypeVar("C")


class Pool(Generic[C]):
    """A pool of the connections that a manager makes, for threads. It belongs to one process.

    Making it validates the options and does no I/O. ``with pool:`` opens and closes it. A closed pool may be opened again.
    Any thread may use it.

    Args:
        manager: How to connect, validate, judge and close: see ``ConnectionManager`` of this package.
        options: See ``PoolConfig`` for each one, its default and its unit.

    Raises:
        ValueError, TypeError: an option or the manager is not what it must be; the text says what is allowed.
    """

    __slots__ = (
        "__weakref__", "_blocks", "_end",
        "_guards", "_has_broken", "_is_clean", "_reset", "_section", "_shell", "_state",
    )  # fmt: skip

    def __init__(self, manager: ConnectionManager[C], /, **options: Unpack[PoolOptions[C]]) -> None:
        check_names(options)
        config = PoolConfig(**options)
        check_manager(manager, for_threads=True)
        for hook in HOOKS:
            if inspect.iscoroutinefunction(getattr(config.customizer, hook, None)):
                msg = f"customizer: {hook} is a coroutine function: in pool_core.threads it must be an ordinary method"
                raise TypeError(msg)
        self._shell = Shell(manager, config)
        # What the warm path needs stands one step away.
        self._state = self._shell.state
        self._section = self._shell.section
        self._has_broken = self._shell.calls.has_broken
        self._reset = self._shell.calls.reset
        self._is_clean = self._shell.calls.tells_clean
        self._end = 0 if config.queue_strategy.value == "fifo" else -1
        self._guards = config.guard
        self._blocks: list[int] = []  # `with pool:`: the life that each began in

    @classmethod
    def from_url(cls, url: str, /, **options: Unpack[PoolOptions[Any]]) -> Pool[Any]:
        """Make a pool for a URL, by the installed adapter that claims its scheme for threads.

        Options may stand in the URL's query as ``pool_max_size=20``; those given as arguments win.

        Raises:
            ValueError: no adapter claims the scheme, or two do; an option's value is not allowed.
            TypeError: an unknown ``pool_*`` key.
            ImportError: the adapter that claims the scheme cannot be imported.
        """
        from pool_core._registry import THREADS_GROUP, manager_and_options  # its imports cost more than the pool's own

        manager, found = manager_and_options(url, THREADS_GROUP)
        merged = cast("PoolOptions[Any]", {**found, **options})
        return cls(cast("Any", manager), **merged)

    # -- life cycle

    def open(self, *, wait: bool = True) -> None:
        """Open the pool. On an open pool it does nothing.

        Args:
            wait: True: return when ``min_idle`` connections are up, as bb8's ``build``. False: return at once and
                connect in the background, as ``build_unchecked``.

        Raises:
            Exception: the driver's own, unchanged, if connecting fails: at once if it is not transient, else the last
                one when ``connection_timeout`` is over. A failed open leaves nothing behind and may be repeated.
            PoolTimeout: connecting hung until ``connection_timeout``.
            PoolClosed: the pool is closing, or was closed meanwhile.
            ForkedPool: the pool was open before a fork.
        """
        shell = self._shell
        shell.gets.warn_of_loop()
        shell.calls.warn_of_lost_settings()
        shell.life.open(wait=wait)

    def close(self, timeout: float = 10.0) -> None:
        """Close the pool, within ``timeout`` (s) and at most a second more, whatever happens.

        Waiting gets fail at once with PoolClosed, idle connections are closed. The pool waits for connections in use and
        for resets, and terminates them when the time is over. Before ``open`` and on a closed pool it does nothing.

        Raises:
            ValueError: ``timeout`` is None, negative or NaN.
        """
        self._shell.life.check_fork()
        if timeout is None:
            msg = "timeout=None: closing always ends; give a number of seconds, 0 or more"
            raise ValueError(msg)
        self._shell.life.close(check_timeout("timeout", timeout))

    def __enter__(self) -> Self:
        self.open()
        self._blocks.append(self._shell.life.number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._blocks:
            self._blocks.remove(block := self._blocks[-1])
            if block in self._blocks:  # an outer block, perhaps of another thread, goes on
                return
        if self._shell.life.forked and kind is not None:
            return  # the child's own error goes first
        self.close()

    # -- connections

    def get(self, timeout: float | None = None) -> PooledConnection[C]:
        """Get a connection: ``with pool.get() as conn``, or ``lease = pool.get()``.

        Gets are served in the order in which they came.

        Args:
            timeout: Seconds for all of it: waiting, connecting, validation, retries. None: ``connection_timeout``.
                ``math.inf``: no limit. 0: an idle connection that needs no validation, or PoolTimeout at once.

        Raises:
            PoolTimeout: none came in time; it says in which phase, what the pool looked like, and the connect error.
            ConnectError: connecting fails in a way that waiting will not heal, and no connection is open at all; or
                any attempt failed under ``retry_connection=False``.
            PoolOverloaded: ``max_waiting`` gets are waiting already.
            PoolDeadlock: every connection is held by a thread that waits for another one.
            PoolClosed: the pool is not open, or closes meanwhile.
            ForkedPool: the pool belongs to the parent process.
            ValueError: a negative timeout, or NaN.
        """
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        try:
            me = local.me
        except AttributeError:
            me = here()
        lease: PooledConnection[C] = PooledConnection()
        lease._pool = self
        lease._slot = None
        state, section = self._state, self._section
        fresh, end = state.fresh, self._end
        try:
            if len(fresh) > state.floor and section.owner is None:
                try:
                    with section.lock:  # no call in this block: no signal handler runs in it
                        fresh[state.floor]  # another thread may have been first: IndexError
                        slot = fresh[end]
                        slot.holder = me
                        slot.state = LENT
                        slot.loose = True
                        slot.stamp = state.tick
                        slot.uses += 1
                        lease._slot = slot
                        del fresh[end]
                except IndexError:
                    pass
                else:
                    raised: BaseException | None = None
                    try:
                        if not self._has_broken(slot.conn):
                            return lease
                    except KeyboardInterrupt:  # this thread's, not the connection's
                        raise
                    except BaseException as error:  # noqa: BLE001 - raising means broken, also where its answer has no truth
                        raised = error
                    try:
                        self._shell.gets.found_broken(lease, slot, raised)
                    finally:
                        raised = None  # it refers to this frame
            self._shell.gets.acquire(lease, timeout, me)
        except BaseException:
            if section.owner is not me:  # else it was called from within an event, which goes on
                section.leave()
            if lease._slot is not None:
                self._shell.gets.return_unused(lease, me)
            raise
        return lease

    def try_get(self) -> PooledConnection[C] | None:
        """Get an idle connection, validated if it must be, or None: never waits for a return and never connects.

        Raises:
            PoolClosed, ForkedPool: as ``get``.
        """
        lease: PooledConnection[C] = PooledConnection()
        lease._pool = self
        lease._slot = None
        return lease if self._shell.gets.try_acquire(lease, here()) else None

    def dedicated_connection(self) -> DedicatedConnection[C]:
        """Open a connection beside the pool: ``with`` closes it.

        It is customized, and neither counted nor pooled. Raises the driver's own error unchanged, PoolTimeout when
        ``create_timeout`` is over, PoolClosed if the pool is not open.
        """
        return self._shell.gets.connect_dedicated()

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
            shell.after()
            shell.hooks.raise_interrupt()
            msg = f"{label(shell.config)}: the connection to add is broken (has_broken is true): it is yours to close"
            raise BrokenConnection(msg, conn)
        try:
            added = shell.event(shell.add, conn)
        except BaseException as error:
            if not isinstance(error, Exception):
                shell.surely(shell.add_interrupted, conn)
            raise
        if not added:
            msg = f"{label(shell.config)} is full (max_size={shell.config.max_size}): the connection to add is yours to close"
            raise PoolFull(msg, conn)

    def resize(self, *, max_size: int | None = None, min_idle: int | None = None) -> None:
        """Change the size. Shrinking closes surplus idle connections now, and those in use on their return.

        Raises:
            ValueError, TypeError: the pair is not allowed; then nothing has changed.
        """
        self._shell.life.check_fork()
        self._shell.event(self._shell.resize, max_size, min_idle)

    def evict(self, predicate: Callable[[C], bool] | None = None) -> int:
        """Retire connections softly: idle ones now, those in use on their return; then ``min_idle`` is brought up again.

        Without a predicate everything goes whose connecting began before now. With one, each open connection is judged
        now, in this thread, without the pool's lock.

        Returns:
            How many open connections are retired.
        """
        shell = self._shell
        shell.life.check_open()
        if inspect.iscoroutinefunction(predicate):
            msg = f"predicate={predicate!r}: must be an ordinary function that returns at once"
            raise TypeError(msg)
        if predicate is None:
            return shell.event(shell.evict, None)
        slots = shell.event(lambda _: list(shell.state.slots))
        # Judged before anything changes: a predicate that raises leaves the pool as it was.
        return shell.event(shell.evict, {slot for slot in slots if predicate(slot.conn)})

    # -- looking

    def add_listener(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Tell one more listener each event from now on, as the option ``listeners`` does from the beginning.

        A listener is called by the thread that caused the event, or by another one that reports at that moment; never by
        two at once. While anybody listens, each get and return takes a longer way.

        Returns:
            A function that ends it. A second call does nothing.

        Raises:
            TypeError: it is not callable, or a coroutine function.
        """
        if inspect.iscoroutinefunction(cast("object", listener)) or not callable(listener):
            msg = f"listener={listener!r}: must be an ordinary function of one event"
            raise TypeError(msg)
        self._shell.life.check_fork()
        return self._shell.listen(listener)

    @property
    def config(self) -> PoolConfig:
        """The options in force; ``resize`` replaces it."""
        self._shell.life.check_fork()
        return self._shell.config

    def state(self) -> State:
        """The pool's numbers now."""
        self._shell.life.check_fork()
        if self._shell.is_inside(here()):
            return self._state.snapshot()
        return read(self._section, self._state.snapshot)

    def holders(self) -> list[Holder]:
        """Return who holds what, and how long; the longest first. ``task`` is the thread's name."""
        self._shell.life.check_fork()
        return sorted(self._shell.event(self._shell.holders), key=lambda holder: -holder.held)

    def __repr__(self) -> str:
        shell = self._shell
        life = "forked" if shell.life.forked else shell.life.stage
        return f"<Pool {shell.config.name!r} {life}: {shell.numbers()}>"

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to be copied or pickled: two owners would each close the connections of the other."""
        msg = "a Pool cannot be copied or pickled: share the one object, or make another with the same options"
        raise TypeError(msg)

    def __del__(self) -> None:
        # In any thread, at any moment: the pool's own thread does what there is to do.
        shell: Shell[C] | None = getattr(self, "_shell", None)
        if shell is None or shell.life.forked or not shell.life.is_alive:
            return
        stage = shell.life.stage
        shell.inbox.append(shell.life.bury)  # first: a warning may be an error
        shell.watch.gate.open()
        if stage != "closing":
            warnings.warn(
                f"{label(shell.config)} was dropped while open: use 'with pool:', or 'pool.close()'",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    if not TYPE_CHECKING:  # pragma: no branch - type checkers find the mistakes by themselves

        async def __aenter__(self) -> NoReturn:
            refuse_async("A pool")

        async def __aexit__(self, *_: object) -> None:
            """Never called: ``__aenter__`` raises."""

        def __await__(self) -> NoReturn:
            refuse_async("A pool")
