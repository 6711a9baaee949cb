"""What the exporters of metrics share: OpenTelemetry's names for connection pools, and which pools they read.

The names are those of the semantic conventions for database client connection pools; a test holds them against the
convention's own package.
"""

from __future__ import annotations

import weakref
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from ._errors import ForkedPool
from ._events import CheckedIn, CheckedOut, Connected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._config import PoolConfig
    from ._events import Event
    from ._pool import Pool
    from ._statistics import State

POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"

BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds of the histograms' buckets, in seconds. OpenTelemetry's own default is made for milliseconds."""


class Metric(NamedTuple):
    """One metric of the conventions."""

    name: str
    unit: str
    description: str


COUNT = Metric(
    "db.client.connection.count",
    "{connection}",
    "The number of connections that are currently in state described by the `state` attribute.",
)
TIMEOUTS = Metric(
    "db.client.connection.timeouts",
    "{timeout}",
    "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
)
CREATE_TIME = Metric("db.client.connection.create_time", "s", "The time it took to create a new connection.")
WAIT_TIME = Metric(
    "db.client.connection.wait_time", "s", "The time it took to obtain an open connection from the pool."
)
USE_TIME = Metric(
    "db.client.connection.use_time", "s", "The time between borrowing a connection and returning it to the pool."
)

HISTOGRAMS = (CREATE_TIME, WAIT_TIME, USE_TIME)
GAUGES: tuple[tuple[Metric, Callable[[PoolConfig, State], int]], ...] = (
    (
        Metric("db.client.connection.idle.max", "{connection}", "The maximum number of idle open connections allowed."),
        lambda config, _: config.max_size,
    ),
    (
        Metric("db.client.connection.idle.min", "{connection}", "The minimum number of idle open connections allowed."),
        lambda config, _: config.min_idle,
    ),
    (
        Metric("db.client.connection.max", "{connection}", "The maximum number of open connections allowed."),
        lambda config, _: config.max_size,
    ),
    (
        Metric(
            "db.client.connection.pending_requests",
            "{request}",
            "The number of current pending requests for an open connection.",
        ),
        lambda _, state: state.waiting,
    ),
)


def counts(state: State) -> tuple[tuple[str, int], ...]:
    """Sort the connections into the two states of the conventions.

    Whatever holds a place of ``max_size`` and cannot be lent at once is used: lent, being tested, wiped or closed.
    """
    used = state.in_use + state.validating + state.resetting + state.closing
    return ("idle", state.idle), ("used", max(0, used))  # read by another thread, connections may leave in between


def duration(event: Event) -> tuple[Metric, float] | None:
    """Tell which histogram an event is for, and the seconds."""
    if isinstance(event, CheckedOut):
        return WAIT_TIME, event.waited
    if isinstance(event, CheckedIn):
        return USE_TIME, event.held
    if isinstance(event, Connected) and event.took is not None:
        return CREATE_TIME, event.took
    return None


class Watched:
    """The pools that one exporter reads: weakly held, each under a name of its own. Exporters read in threads."""

    def __init__(self) -> None:
        self._pools: dict[str, weakref.ref[Pool[Any]]] = {}
        self._lock = Lock()

    def add(self, pool: Pool[Any]) -> str:
        """Read this pool too. Returns its name.

        Raises:
            ValueError: another pool of that name is read already, or this one.
        """
        name = pool.config.name
        with self._lock:
            other = self._pools.get(name)
            if other is not None and other() is not None:
                which = "this pool" if other() is pool else "another pool of that name"
                msg = (
                    f"name={name!r}: {which} is instrumented already: give each pool a name of its own (Pool(name=...))"
                )
                raise ValueError(msg)
            self._pools[name] = weakref.ref(pool)
        return name

    def remove(self, name: str, pool: Pool[Any]) -> bool:
        """Read this pool no longer. False: it was not read."""
        with self._lock:
            known = self._pools.get(name)
            if known is None or known() is not pool:
                return False
            del self._pools[name]
            return True

    def __iter__(self) -> Iterator[tuple[str, PoolConfig, State]]:
        """Read each pool: its name, options and numbers."""
        with self._lock:
            pools = list(self._pools.items())
        for name, reference in pools:
            pool = reference()
            if pool is None:
                continue
            try:
                yield name, pool.config, pool.state()
            except ForkedPool:
                continue  # the parent process reads it


def watch(watched: Watched, pool: Pool[Any], listener: Callable[[Event], object] | None) -> Callable[[], None]:
    """Read a pool, and listen to it if there is a listener, until what is returned is called."""
    name = watched.add(pool)
    try:
        end = None if listener is None else pool.add_listener(listener)
    except BaseException:
        watched.remove(name, pool)
        raise
    reference = weakref.ref(pool)

    def unwatch() -> None:
        pool = reference()
        if pool is not None and watched.remove(name, pool) and end is not None:
            end()

    return unwatch
