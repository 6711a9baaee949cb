"""What the exporters of metrics share: the metrics by name, and which pools they read.

Where the semantic conventions for database client connection pools have a name it is theirs; a test holds those against
the convention's own package. All other names begin with ``pool_core.``.
"""

from __future__ import annotations

import weakref
from dataclasses import fields, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ._errors import ForkedPool
from ._events import CheckedIn, CheckedOut, Connected
from ._look import longest_lease, oldest_wait
from ._pool import check_pool
from ._statistics import Statistics, picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._config import PoolConfig
    from ._events import Event
    from ._pool import Pool
    from ._state import PoolState
    from ._statistics import State

POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
PLACE = "pool_core.state"
REASON = "pool_core.reason"
OUTCOME = "pool_core.outcome"
PHASE = "pool_core.phase"

BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds of the histograms' buckets, in seconds. OpenTelemetry's own default is made for milliseconds."""

PLACES = ("idle", "in_use", "opening", "validating", "resetting", "closing")


class Metric(NamedTuple):
    """What a metric is called, and what it counts."""

    name: str
    unit: str
    description: str


class Reading(NamedTuple):
    """One pool at the moment of a collection."""

    config: PoolConfig
    state: State
    oldest_wait: float
    longest_lease: float


class Observed(NamedTuple):
    """A metric that is read from the pool when it is collected, so that it cannot drift.

    ``values`` has one value by each value of the attribute ``by``; with no attribute there is one, by "".
    """

    metric: Metric
    kind: Literal["counter", "updowncounter", "gauge"]
    by: str | None
    values: Callable[[Reading], Mapping[str, float]]


def _one(name: str, unit: str, description: str, kind: Any, read: Callable[[Reading], float]) -> Observed:
    return Observed(Metric(name, unit, description), kind, None, lambda reading: {"": read(reading)})


def _counter(name: str, unit: str, description: str, read: Callable[[Statistics], float]) -> Observed:
    return _one(name, unit, description, "counter", lambda reading: read(reading.state.statistics))


def _counters(
    name: str, unit: str, description: str, by: str, read: Callable[[Statistics], Mapping[Any, float]]
) -> Observed:
    def values(reading: Reading) -> Mapping[str, float]:
        return {str(each): count for each, count in read(reading.state.statistics).items()}

    return Observed(Metric(name, unit, description), "counter", by, values)


def _counts(reading: Reading) -> Mapping[str, float]:
    """Sort the connections into the two states of the conventions.

    Every connection that counts against ``max_size`` and is not idle is used: in use, validating, resetting or closing.
    """
    state = reading.state
    used = state.in_use + state.validating + state.resetting + state.closing
    return {"idle": state.idle, "used": max(0, used)}  # read by another thread, connections may leave in between


def _outcomes(statistics: Statistics) -> Mapping[str, float]:
    refused = statistics.gets_overloaded + statistics.gets_deadlocked
    return {
        "direct": max(0, statistics.gets_direct),
        "waited": statistics.gets_waited,
        "timed_out": statistics.gets_timed_out,
        "cancelled": statistics.gets_cancelled,
        "overloaded": statistics.gets_overloaded,
        "deadlocked": statistics.gets_deadlocked,
        "failed": max(0, statistics.gets_failed - refused),
    }


CREATE_TIME = Metric("db.client.connection.create_time", "s", "The time it took to create a new connection.")
WAIT_TIME = Metric(
    "db.client.connection.wait_time", "s", "The time it took to obtain an open connection from the pool."
)
USE_TIME = Metric(
    "db.client.connection.use_time", "s", "The time between borrowing a connection and returning it to the pool."
)
HISTOGRAMS = (CREATE_TIME, WAIT_TIME, USE_TIME)

OBSERVED = (
    Observed(
        Metric(
            "db.client.connection.count",
            "{connection}",
            "The number of connections that are currently in state described by the `state` attribute.",
        ),
        "updowncounter",
        STATE,
        _counts,
    ),
    _one(
        "db.client.connection.idle.max",
        "{connection}",
        "The maximum number of idle open connections allowed.",
        "updowncounter",
        lambda reading: reading.config.max_size,
    ),
    _one(
        "db.client.connection.idle.min",
        "{connection}",
        "The minimum number of idle open connections allowed.",
        "updowncounter",
        lambda reading: reading.config.min_idle,
    ),
    _one(
        "db.client.connection.max",
        "{connection}",
        "The maximum number of open connections allowed.",
        "updowncounter",
        lambda reading: reading.config.max_size,
    ),
    _one(
        "db.client.connection.pending_requests",
        "{request}",
        "The number of current pending requests for an open connection.",
        "updowncounter",
        lambda reading: reading.state.waiting,
    ),
    _counter(
        "db.client.connection.timeouts",
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        lambda statistics: statistics.gets_timed_out,
    ),
    Observed(
        Metric("pool_core.connections", "{connection}", "Connections now, by state."),
        "updowncounter",
        PLACE,
        lambda reading: {place: max(0, getattr(reading.state, place)) for place in PLACES},
    ),
    _one(
        "pool_core.oldest_wait",
        "s",
        "For how long the first waiter has waited; 0 if there is none.",
        "gauge",
        lambda reading: reading.oldest_wait,
    ),
    _one(
        "pool_core.longest_lease",
        "s",
        "For how long the connection has been in use that has been in use longest; 0 if there is none.",
        "gauge",
        lambda reading: reading.longest_lease,
    ),
    _counters("pool_core.gets", "{get}", "Gets that have ended, by outcome.", OUTCOME, _outcomes),
    _counters(
        "pool_core.waits",
        "{get}",
        "Gets that waited and got a connection, by what they waited for.",
        PHASE,
        lambda statistics: statistics.waits_by_phase,
    ),
    _counters(
        "pool_core.timeouts",
        "{get}",
        "Gets that timed out, by what they waited for.",
        PHASE,
        lambda statistics: statistics.timeouts_by_phase,
    ),
    _counter(
        "pool_core.waited",
        "s",
        "The time that gets waited for a return or for connecting until they got a connection.",
        lambda statistics: statistics.get_wait_time,
    ),
    _counter(
        "pool_core.connections.opened",
        "{connection}",
        "Connections that the pool opened.",
        lambda statistics: statistics.connections_created,
    ),
    _counter(
        "pool_core.connections.added",
        "{connection}",
        "Connections that were opened elsewhere and added.",
        lambda statistics: statistics.connections_added,
    ),
    _counters(
        "pool_core.connections.closed",
        "{connection}",
        "Connections that have left the pool, by reason.",
        REASON,
        lambda statistics: statistics.connections_closed,
    ),
    _counter(
        "pool_core.connections.abandoned",
        "{connection}",
        "Connections whose call could neither be cancelled nor terminated: their sockets may be open.",
        lambda statistics: statistics.connections_abandoned,
    ),
    _counter(
        "pool_core.connect.failures",
        "{attempt}",
        "Connection attempts that failed.",
        lambda statistics: statistics.connects_failed,
    ),
    _counter(
        "pool_core.hook.errors",
        "{error}",
        "Errors raised by hooks, listeners, the error sink, log handlers and the adapter's synchronous methods.",
        lambda statistics: statistics.hook_errors,
    ),
)


def duration(event: Event) -> tuple[Metric, float] | None:
    """Tell which histogram an event is for, and the seconds."""
    if isinstance(event, CheckedOut):
        return WAIT_TIME, event.waited
    if isinstance(event, CheckedIn):
        return USE_TIME, event.held
    if isinstance(event, Connected) and event.took is not None:
        return CREATE_TIME, event.took
    return None


def _plus(one: Statistics, other: Statistics) -> Statistics:
    """Add counters up."""
    added: dict[str, Any] = {}
    for field in fields(Statistics):
        mine, yours = getattr(one, field.name), getattr(other, field.name)
        added[field.name] = {key: mine[key] + yours[key] for key in mine} if isinstance(mine, dict) else mine + yours
    return Statistics(**added)


class _Entry:
    """The pool that has a name, weakly held, and what the earlier pools of that name have counted.

    Entries stay when their pool is gone, so that no counter ever goes backwards. There are as many as names.
    """

    def __init__(self, pool: Pool[Any], before: Statistics | None) -> None:
        state = pool._state  # refers to no pool
        self._before = before
        self.pool = weakref.ref(pool, lambda _: self._gone(state))
        self.end: Callable[[], None] | None = None  # of its listener
        self.token: object = None  # of who reports it; None: nobody does

    def _gone(self, state: PoolState[Any]) -> None:
        self._before = self.plus_before(picture(state).statistics)

    def plus_before(self, statistics: Statistics) -> Statistics:
        """Add what the earlier pools of that name have counted."""
        return statistics if self._before is None else _plus(statistics, self._before)

    def total(self) -> Statistics | None:
        """All that was ever counted under this name."""
        pool = self.pool()
        return self._before if pool is None else self.plus_before(picture(pool._state).statistics)

    def stop(self) -> None:
        """Read it no longer, and listen no longer."""
        self.token = None
        end, self.end = self.end, None
        if end is not None:
            end()


class Watched:
    """The pools that one exporter reads, each under a name of its own. Exporters read in threads."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._lock = Lock()

    def add(self, pool: Pool[Any], listener: Callable[[str], Callable[[Event], object]] | None) -> Callable[[], None]:
        """Read this pool, and listen to it if a listener is made for its name, until what is returned is called."""
        check_pool(pool, threads_too=True)
        name = pool.config.name
        end = None if listener is None else pool.add_listener(listener(name))
        with self._lock:
            entry = self._entries.get(name)
            known = entry.pool() if entry is not None and entry.token else None
            if known is not None and known._shell.life.forked:  # the parent's: in this process all begins anew
                entry = known = None
            if known is not None and known is not pool and known._shell.life.stage != "closed":
                if end is not None:
                    end()
                msg = (
                    f"name={name!r}: another pool of that name is instrumented and not closed: "
                    "give each pool a name of its own (Pool(name=...))"
                )
                raise ValueError(msg)
            if entry is not None:
                entry.stop()
            if entry is None or entry.pool() is not pool:
                entry = self._entries[name] = _Entry(pool, None if entry is None else entry.total())
            token = entry.token = object()
            entry.end = end

        def unwatch() -> None:
            with self._lock:
                if entry.token is token:
                    entry.stop()

        return unwatch

    def __iter__(self) -> Iterator[tuple[str, Reading]]:
        """Read each pool."""
        with self._lock:
            entries = [(name, entry) for name, entry in self._entries.items() if entry.token]
        for name, entry in entries:
            pool = entry.pool()
            if pool is None:
                continue
            try:
                state = pool.state()
            except ForkedPool:
                continue  # the parent process reads it
            state = replace(state, statistics=entry.plus_before(state.statistics))
            waited = leased = 0.0
            if pool._state.slots or pool._state.queue.waiters:
                now = pool._shell.now()
                waited, leased = oldest_wait(pool._state, now), longest_lease(pool._state, now)
            yield name, Reading(pool.config, state, waited, leased)
