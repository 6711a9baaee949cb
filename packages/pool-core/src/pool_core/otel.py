"""A pool's metrics and traces for OpenTelemetry: ``pip install "pool-core[otel]"``, then ``instrument(pool)``.

Metrics by the semantic conventions for database client connection pools (status: development). What can be read from the
pool is read when it is collected, so that it cannot drift; three histograms are filled by events. ``trace(pool)`` gives a
span to each get that waited.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

try:
    from opentelemetry.metrics import MeterProvider, Observation, get_meter_provider
    from opentelemetry.trace import Status, StatusCode, get_tracer_provider
except ImportError as error:
    _MISSING = 'pool_core.otel needs opentelemetry-api: pip install "pool-core[otel]"'
    raise ImportError(_MISSING) from error

from ._errors import ConnectError, PoolDeadlock, PoolTimeout
from ._gets import Gets
from ._messages import Picture, phase_of
from ._metrics import BUCKETS, HISTOGRAMS, OBSERVED, OUTCOME, PHASE, POOL_NAME, Watched, duration
from ._pool import check_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions
    from opentelemetry.trace import Tracer, TracerProvider

    from ._errors import Phase
    from ._events import Event
    from ._gets import Failure, GetWaiter
    from ._metrics import Observed
    from ._pool import Pool
    from ._slot import Slot

__all__ = ["instrument", "trace"]

C = TypeVar("C")


def instrument(
    pool: Pool[Any], *, meter_provider: MeterProvider | None = None, histograms: bool = True
) -> Callable[[], None]:
    """Report a pool's metrics until it is garbage-collected, or until the returned function is called.

    docs/metrics.md lists the metrics. All but three are read from the pool when they are collected, so that nothing that
    happened before this call is missing; ``create_time``, ``wait_time`` and ``use_time`` are histograms in seconds that
    begin with this call. Each metric has the attribute ``db.client.connection.pool.name``, the pool's option ``name``.

    Call it before or after the pool is opened, and as often as the pool is opened: a second call for the same pool
    replaces the first. A new pool may take the name of a closed one, and its counters go on from there.

    Args:
        pool: The pool. If it is open, call this on its event loop.
        meter_provider: None: the global one; set that up first.
        histograms: False: without the three histograms. Then a get and its return cost nothing more; with them each
            pair costs some ten microseconds.

    Returns:
        A function that ends the reporting. A second call does nothing.

    Raises:
        ValueError: another pool of that name is reported to this provider and is not closed.
        TypeError: it is not a Pool.
        WrongEventLoop: with histograms, the pool is open on another event loop.
    """
    provider = get_meter_provider() if meter_provider is None else meter_provider
    if (exporter := _exporters.get(provider)) is None:
        exporter = _exporters[provider] = _Exporter(provider)
    return exporter.watched.add(pool, exporter.listener if histograms else None)


def trace(pool: Pool[Any], *, tracer_provider: TracerProvider | None = None) -> Callable[[], None]:
    """Give a span to each get that waits for a return, for connecting or for a validation; others have none.

    The span ``pool_core.get`` is a child of the span in which the get was awaited. Its attributes are
    ``db.client.connection.pool.name``, ``pool_core.phase`` (``queue``, ``connect`` or ``validate``: what the get waited
    for) and ``pool_core.outcome`` (``served``, ``timed_out``, ``cancelled``, ``deadlocked`` or ``failed``). A get that
    raises has the status ERROR and ``error.type``. Gets that do not wait cost nothing more.

    Args:
        pool: Open or not. A second call for the same pool replaces the first.
        tracer_provider: None: the global one.

    Returns:
        A function that ends the tracing. A second call does nothing.

    Raises:
        TypeError: it is not a Pool.
    """
    check_pool(pool, threads_too=True)
    provider = get_tracer_provider() if tracer_provider is None else tracer_provider
    gets: Any = pool._gets
    token = object()
    # The class is changed, so that a pool without tracing asks nothing.
    gets.__class__ = _TracedGets
    gets.tracer, gets.token = provider.get_tracer("pool_core"), token

    def end() -> None:
        if gets.token is token:
            gets.__class__ = Gets

    return end


class _TracedGets(Gets[C]):
    """Gets that tell a tracer of their waiting, in the task that waited: so the span has its parent."""

    tracer: Tracer
    token: object  # of the call that began it

    def served(self, waiter: GetWaiter[C], answer: Slot[C] | Failure | Picture) -> Slot[C]:
        """End the waiting of a get that was answered."""
        try:
            slot = super().served(waiter, answer)
        except BaseException as error:
            phase: Phase = "queue"
            if isinstance(error, PoolTimeout):
                phase = error.phase
            elif isinstance(error, ConnectError):
                phase = "connect"
            outcomes: dict[type, str] = {PoolDeadlock: "deadlocked", PoolTimeout: "timed_out"}
            self._span(waiter, phase, outcomes.get(type(error), "failed"), error)
            raise
        phase = "validate" if waiter.direct else "connect" if slot.uses == 1 else "queue"
        self._span(waiter, phase, "served")
        return slot

    def cancelled(self, waiter: GetWaiter[C]) -> None:
        """End the waiting of a get that was cancelled."""
        phase = phase_of(self._state, waiter)
        super().cancelled(waiter)
        if not self._life.loop.is_closed():
            self._span(waiter, phase, "cancelled")

    def _span(self, waiter: GetWaiter[C], phase: Phase, outcome: str, error: BaseException | None = None) -> None:
        """Make a span of what is over. A tracer that raises breaks no get."""
        shell = self._shell
        now = time.time_ns()
        began = now - int((shell.now() - waiter.started) * 1e9)
        attributes = {POOL_NAME: shell.config.name, PHASE: phase, OUTCOME: outcome}
        try:
            if error is not None:
                attributes["error.type"] = type(error).__qualname__
            span = self.tracer.start_span("pool_core.get", attributes=attributes, start_time=began)
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, str(error)))
            span.end(now)
        except BaseException as bug:  # noqa: BLE001 - foreign code
            shell.hooks.failed(bug, "the tracer raised")


class _Exporter:
    """The instruments of one provider: one set for all its pools, since instruments cannot be taken off again."""

    def __init__(self, provider: MeterProvider) -> None:
        self.watched = Watched()
        meter = provider.get_meter("pool_core")
        make = {
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }
        for observed in OBSERVED:
            metric = observed.metric
            make[observed.kind](metric.name, [self._callback(observed)], metric.unit, metric.description)
        self._record = {
            metric: meter.create_histogram(
                metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=BUCKETS
            ).record
            for metric in HISTOGRAMS
        }

    def listener(self, name: str) -> Callable[[Event], None]:
        record = self._record
        attributes = {POOL_NAME: name}

        def listen(event: Event) -> None:
            if (found := duration(event)) is not None:
                metric, seconds = found
                record[metric](seconds, attributes)

        return listen

    def _callback(self, observed: Observed) -> Callable[[CallbackOptions], Iterable[Observation]]:
        by = observed.by

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [
                Observation(value, {POOL_NAME: name} if by is None else {POOL_NAME: name, by: which})
                for name, reading in self.watched
                for which, value in observed.values(reading).items()
            ]

        return observe


_exporters: WeakKeyDictionary[MeterProvider, _Exporter] = WeakKeyDictionary()
