"""SQLAlchemy's side of a pool of pool-core: a ``sqlalchemy.Pool`` whose connections come from there.

SQLAlchemy keeps a record beside each connection: its adapter with the cache of prepared statements, and ``info``. Here
the record stays in the lease's ``extensions``, so with the connection, as in SQLAlchemy's own pools. The events
``connect``, ``checkout``, ``reset``, ``checkin``, ``invalidate`` and ``detach`` are SQLAlchemy's; the connection itself
is opened, validated, reset and closed by pool-core.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pool_core import PoolClosed, PoolWarning
from sqlalchemy import Pool, event
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import await_only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pool_core
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

    from pool_sqlalchemy._drivers import Driver

__all__ = ["LeasedPool", "Source"]


@dataclass(slots=True)
class Source:
    """Where the connections of an engine come from.

    Attributes:
        pool: the pool.
        driver: what is particular about its connections.
        make: makes such a pool anew, where the engine has made it and opens and closes it; None: it is the user's.
        cargs, cparams: with what SQLAlchemy's dialect would connect; its adapter takes a part of it.
        listeners: how many listeners of ``connect`` are SQLAlchemy's own.
    """

    pool: pool_core.Pool[Any]
    driver: Driver
    make: Callable[[], pool_core.Pool[Any]] | None
    cargs: Sequence[Any]
    cparams: Mapping[str, Any]
    listeners: int = 0


class Record(_ConnectionRecord):
    """SQLAlchemy's record of a connection, with the lease that has it while it is in use."""

    lease: pool_core.PooledConnection[Any] | None = None
    adapted: Any = None  # SQLAlchemy's adapter of the connection
    error: BaseException | None = None  # of the last statement

    def checkin(self, *args: Any, **options: Any) -> None:
        """Return the connection, also where a listener of ``checkin`` fails."""
        try:
            super().checkin(*args, **options)
        finally:
            if self.lease is not None:
                self.lease.discard()
                self.lease = None


class LeasedPool(Pool):
    """A pool of SQLAlchemy's kind that gets its connections from a pool of pool-core's."""

    _dialect: Any
    _source: Source
    _loop: asyncio.AbstractEventLoop  # in which the last connection was checked out

    def __init__(self, creator: Any, **options: Any) -> None:
        super().__init__(cast("Any", self._adapt), **options)
        self._records: dict[Any, Record] = {}  # by SQLAlchemy's adapter, while in use
        self._process = os.getpid()
        self._opened = self._checked = False

    def attach(self, source: Source) -> None:
        """Say where the connections come from."""
        source.listeners = len(list(self.dispatch.connect))
        self._source = source
        # It drops all prepared statements at the server, also those that SQLAlchemy keeps.
        source.driver.strict = getattr(source.pool.manager, "_reset", None) == "strict"
        event.listen(self, "reset", self._on_reset)

    # -- checking out and in

    def _do_get(self) -> ConnectionPoolEntry:
        while True:
            lease = self._acquire()
            try:
                record = lease.extensions.get(self)
                if record is None:
                    return self._new_record(lease)
                record.lease = lease
                self._records[record.adapted] = record
                if not record._is_hard_or_soft_invalidated():
                    self._source.driver.checked_out(lease.conn)
                    self._set_isolation_level(record.adapted)
                    return cast("Record", record)
            except BaseException:
                lease.discard()
                raise
            lease.discard()  # connection.invalidate(soft=True): the next one

    def _acquire(self) -> pool_core.PooledConnection[Any]:
        source = self._source
        if source.make is not None and not self._opened:
            await_only(source.pool.open())
            self._opened = True
        self._loop = asyncio.get_running_loop()
        lease = source.pool.get()
        # As a block, so that the pool knows which task holds the connection and can tell a deadlock.
        await_only(lease.__aenter__())
        return lease

    def _new_record(self, lease: pool_core.PooledConnection[Any]) -> Record:
        record = Record(self, connect=False)
        record.lease = lease
        record.get_connection()
        if (keep := getattr(self._source.pool.manager, "keep", None)) is not None:
            keep(lease.conn)  # the listeners of "connect" have set it up: resets return to this
        return record

    def _adapt(self, record: Record) -> DBAPIConnection:
        """Make SQLAlchemy's adapter for the connection of a record; called by SQLAlchemy before "connect"."""
        if self._dialect.dispatch.do_connect:
            raise TypeError(
                "the event do_connect is not dispatched, since it is the pool's manager that connects: give it user and "
                "password as callables, by connect_args={'password': get_token}"
            )
        if record.lease is None:  # a listener of "checkout" has raised DisconnectionError
            record.lease = self._acquire()
        lease, source = record.lease, self._source
        if not self._checked:
            self._check(lease.conn)

        async def connected(*_: Any, **__: Any) -> Any:
            return lease.conn

        source.driver.checked_out(lease.conn)
        adapted: DBAPIConnection = self._dialect.connect(
            *source.cargs, **{**source.cparams, "async_creator_fn": connected}
        )
        record.adapted = adapted
        self._records[adapted] = record
        lease.extensions[self] = record
        return adapted

    def _set_isolation_level(self, adapted: Any) -> None:
        # create_engine(isolation_level=...): SQLAlchemy sets it once, and the pool has reset the session since.
        if (level := self._dialect._on_connect_isolation_level) is not None:
            self._dialect._assert_and_set_isolation_level(adapted, level)

    def _do_return_conn(self, record: Any) -> None:
        lease, record.lease = record.lease, None
        if lease is None:  # invalidated or lost, and so discarded
            return
        self._records.pop(record.adapted, None)
        if record.dbapi_connection is None:
            lease.detach()
            return
        self._source.driver.checked_in(lease.conn, record.adapted)
        error, record.error = record.error, None
        if error is None:
            lease.release()
            return
        trace = error.__traceback__
        try:
            raise error  # release() looks at what is being handled, and lets the manager judge it
        except BaseException:  # noqa: BLE001
            lease.release()
        finally:
            error.__traceback__ = trace

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        record = self._records.pop(connection, None)
        if record is None:  # detached: it is SQLAlchemy's
            super()._close_connection(connection, terminate=terminate)
            return
        lease, record.lease = record.lease, None
        if lease is not None:
            lease.discard()  # the pool closes it, within close_timeout, whatever becomes of this task

    def _on_reset(self, _: Any, record: Any, state: Any) -> None:
        if state.asyncio_safe:
            return
        # The garbage collector has found a session that was not closed, perhaps in another thread. SQLAlchemy warns, and
        # would close the connection where it cannot be closed.
        lease, record.lease = record.lease, None

        def drop() -> None:
            self._records.pop(record.adapted, None)
            lease.discard()

        try:
            self._loop.call_soon_threadsafe(drop)
        except RuntimeError:  # the loop is closed
            drop()

    def failed(self, context: Any) -> None:
        """Remember the error of a statement, for the manager to judge when the connection comes back."""
        if context.connection is not None and not context.connection.invalidated:
            record = getattr(context.connection.connection, "_connection_record", None)
            if record is not None:
                record.error = context.original_exception

    # -- SQLAlchemy's other methods

    def recreate(self) -> Pool:
        """Return this pool: ``dispose`` leaves it usable. In a forked process return a new one."""
        if os.getpid() == self._process:
            return self
        source = self._source
        again = LeasedPool(
            None,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            dialect=self._dialect,
            _dispatch=self.dispatch,
        )
        pool = source.pool if source.make is None else source.make()
        again._source = Source(pool, source.driver, source.make, source.cargs, source.cparams, source.listeners)
        return again

    def dispose(self) -> None:
        """Close the pool if it is the engine's and no connection is in use; else retire its connections."""
        source = self._source
        if source.make is not None and not source.pool.state().in_use:
            self._opened = False
            await_only(source.pool.close())
        else:
            with suppress(PoolClosed):
                source.pool.evict()

    def status(self) -> str:
        """Return the pool's numbers as text."""
        return str(self._source.pool.state())

    def size(self) -> int:
        """Return ``max_size``."""
        return self._source.pool.config.max_size

    def checkedin(self) -> int:
        """Return how many connections are idle."""
        return self._source.pool.state().idle

    def checkedout(self) -> int:
        """Return how many connections are in use."""
        return self._source.pool.state().in_use

    def _check(self, conn: Any) -> None:
        source = self._source
        if source.make is None:
            source.driver.check(conn)
        self._checked = True
        manager = source.pool.manager
        own = len(list(self.dispatch.connect)) - source.listeners
        if own > 0 and hasattr(manager, "reset") and not getattr(manager, "reset_keeps_on_connect", False):
            warnings.warn(
                "a listener of the engine's event 'connect' is called once for each connection, and the pool resets the "
                "session after each use: what the listener sets by SQL is gone for the second session. Give lasting "
                "settings to connect_args (such as server_settings, options or init_command), or listen to 'checkout'",
                PoolWarning,
                stacklevel=2,
            )
