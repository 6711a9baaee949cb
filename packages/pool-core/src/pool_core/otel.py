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

from ._metrics import BUCKETS, COUNT, GAUGES, HISTOGRAMS, POOL_NAME, STATE, TIMEOUTS, Watched, counts, duration, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions

    from ._config import PoolConfig
    from ._events import Event
    from ._pool import Pool
    from ._statistics import State

__all__ = ["instrument"]


def instrument(
    pool: Pool[Any], *, meter_provider: MeterProvider | None = None, histograms: bool = True
) -> Callable[[], None]:
    """Report a pool's metrics until it is garbage-collected, or until the returned function is called.

    ``db.client.connection.`` ``count`` (by state: idle, used), ``idle.max``, ``idle.min``, ``max``,
    ``pending_requests`` and ``timeouts`` are read from ``pool.state()``; ``create_time``, ``wait_time`` and ``use_time``
    are histograms in seconds. Each has the attribute ``db.client.connection.pool.name``, the pool's option ``name``.
    Used is every connection that holds a place of ``max_size`` and cannot be lent at once: lent ones, and those that
    are being tested, wiped or closed.

    Args:
        pool: Open or not yet. Call this where the pool is used: on its event loop, or before it is opened.
        meter_provider: None: the global one; set that up first.
        histograms: False: without the three histograms. Then gets and returns cost nothing more; with them each pair
            costs some ten microseconds.

    Returns:
        A function that ends the reporting. A second call does nothing.

    Raises:
        ValueError: a pool of that name is reported to this provider already.
    """
    provider = get_meter_provider() if meter_provider is None else meter_provider
    if (exporter := _exporters.get(provider)) is None:
        exporter = _exporters[provider] = _Exporter(provider)
    return watch(exporter.watched, pool, exporter.listener(pool.config.name) if histograms else None)


class _Exporter:
    """The instruments of one provider: one set for all its pools, since instruments cannot be taken off again."""

    def __init__(self, provider: MeterProvider) -> None:
        self.watched = Watched()
        meter = provider.get_meter("pool_core")
        meter.create_observable_up_down_counter(COUNT.name, [self._counts], COUNT.unit, COUNT.description)
        for metric, read in GAUGES:
            meter.create_observable_up_down_counter(
                metric.name, [self._callback(read)], metric.unit, metric.description
            )
        timeouts = self._callback(lambda _, state: state.statistics.gets_timed_out)
        meter.create_observable_counter(TIMEOUTS.name, [timeouts], TIMEOUTS.unit, TIMEOUTS.description)
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

    def _callback(self, read: Callable[[PoolConfig, State], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(read(config, state), {POOL_NAME: name}) for name, config, state in self.watched]

        return observe

    def _counts(self, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, {POOL_NAME: name, STATE: which})
            for name, _config, state in self.watched
            for which, count in counts(state)
        ]


_exporters: WeakKeyDictionary[MeterProvider, _Exporter] = WeakKeyDictionary()
