"""Metrics of a pool for Prometheus: ``pip install "pool-core[prometheus]"``, then ``instrument(pool)``.

The names are those of ``pool_core.otel`` as OpenTelemetry translates them for Prometheus, so that one dashboard serves
both. What can be read from the pool is read at each scrape, so that it cannot drift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

try:
    from prometheus_client import REGISTRY, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    _MISSING = 'pool_core.prometheus needs prometheus-client: pip install "pool-core[prometheus]"'
    raise ImportError(_MISSING) from error

from ._metrics import BUCKETS, COUNT, GAUGES, HISTOGRAMS, POOL_NAME, STATE, TIMEOUTS, Watched, counts, duration, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family

    from ._events import Event
    from ._metrics import Metric
    from ._pool import Pool

__all__ = ["instrument"]


def instrument(
    pool: Pool[Any], *, registry: CollectorRegistry = REGISTRY, histograms: bool = True
) -> Callable[[], None]:
    """Report a pool's metrics until it is garbage-collected, or until the returned function is called.

    ``db_client_connection_`` ``count`` (by ``db_client_connection_state``: idle, used), ``idle_max``, ``idle_min``,
    ``max``, ``pending_requests`` and ``timeouts_total`` are read from ``pool.state()``; ``create_time_seconds``,
    ``wait_time_seconds`` and ``use_time_seconds`` are histograms. Each has the label
    ``db_client_connection_pool_name``, the pool's option ``name``. Used is every connection that holds a place of
    ``max_size`` and cannot be lent at once: lent ones, and those that are being tested, wiped or closed.

    The client library's multiprocess mode leaves out metrics that are read at the scrape, these among them: let each
    process be scraped, or use ``pool_core.otel``.

    Args:
        pool: Open or not yet. Call this where the pool is used: on its event loop, or before it is opened.
        registry: Where the scrape looks.
        histograms: False: without the three histograms. Then gets and returns cost nothing more; with them each pair
            costs some ten microseconds.

    Returns:
        A function that ends the reporting. A second call does nothing.

    Raises:
        ValueError: a pool of that name is reported to this registry already.
    """
    if (collector := _collectors.get(registry)) is None:
        collector = _PoolCollector()
        registry.register(collector)
        _collectors[registry] = collector
    return collector.instrument(pool, histograms=histograms)


def _translated(name: str) -> str:
    return name.replace(".", "_")


_POOL_NAME = _translated(POOL_NAME)
_STATE = _translated(STATE)


class _PoolCollector(Collector):
    """All pools of one registry: one family of each metric, however many pools there are."""

    def __init__(self) -> None:
        self._watched = Watched()
        self._histograms: dict[Metric, Histogram] = {
            metric: Histogram(
                _translated(metric.name),
                metric.description,
                [_POOL_NAME],
                unit="seconds",
                registry=None,
                buckets=BUCKETS,
            )
            for metric in HISTOGRAMS
        }

    def instrument(self, pool: Pool[Any], *, histograms: bool) -> Callable[[], None]:
        return watch(self._watched, pool, self._listener(pool.config.name) if histograms else None)

    def _listener(self, name: str) -> Callable[[Event], None]:
        observe = {metric: histogram.labels(name).observe for metric, histogram in self._histograms.items()}

        def listen(event: Event) -> None:
            if (found := duration(event)) is not None:
                metric, seconds = found
                observe[metric](seconds)

        return listen

    def collect(self) -> Iterator[Family]:
        pools = list(self._watched)
        count = GaugeMetricFamily(_translated(COUNT.name), COUNT.description, labels=[_POOL_NAME, _STATE])
        for name, _config, state in pools:
            for which, number in counts(state):
                count.add_metric([name, which], number)
        yield count
        for metric, read in GAUGES:
            gauge = GaugeMetricFamily(_translated(metric.name), metric.description, labels=[_POOL_NAME])
            for name, config, state in pools:
                gauge.add_metric([name], read(config, state))
            yield gauge
        timeouts = CounterMetricFamily(_translated(TIMEOUTS.name), TIMEOUTS.description, labels=[_POOL_NAME])
        for name, _config, state in pools:
            timeouts.add_metric([name], state.statistics.gets_timed_out)
        yield timeouts
        for histogram in self._histograms.values():
            yield from histogram.collect()


_collectors: WeakKeyDictionary[CollectorRegistry, _PoolCollector] = WeakKeyDictionary()
