"""Metrics of a pool for OpenTelemetry: ``pip install "pool-core[otel]"``, then ``instrument(pool)``.

By the semantic conventions for database client connection pools (status: development). What can be read from the pool
is read when it is collected, so that it cannot drift; three histograms are filled by events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

try:
    from opentelemetry.metrics import MeterProvider, Observation, get_meter_provider
except ImportError as error:
    _MISSING = 'pool_core.otel needs opentelemetry-api: pip install "pool-core[otel]"'
    raise ImportError(_MISSING) from error

from ._metrics import BUCKETS, HISTOGRAMS, OBSERVED, POOL_NAME, Watched, duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions

    from ._events import Event
    from ._metrics import Observed
    from ._pool import Pool

__all__ = ["instrument"]


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
