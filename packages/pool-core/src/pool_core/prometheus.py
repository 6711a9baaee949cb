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

from ._metrics import BUCKETS, HISTOGRAMS, OBSERVED, POOL_NAME, Watched, duration

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

    docs/metrics.md lists the metrics. All but three are read from the pool at the scrape, so that nothing that happened
    before this call is missing; ``create_time_seconds``, ``wait_time_seconds`` and ``use_time_seconds`` are histograms
    that begin with this call. Each metric has the label ``db_client_connection_pool_name``, the pool's option ``name``.

    Call it before or after the pool is opened, and as often as the pool is opened: a second call for the same pool
    replaces the first. A new pool may take the name of a closed one, and its counters go on from there.

    The client library's multiprocess mode leaves out metrics that are read at the scrape, these among them: let each
    process be scraped, or use ``pool_core.otel``.

    Args:
        pool: The pool. If it is open, call this on its event loop.
        registry: Where the scrape looks.
        histograms: False: without the three histograms. Then a get and its return cost nothing more; with them each
            pair costs some ten microseconds.

    Returns:
        A function that ends the reporting. A second call does nothing.

    Raises:
        ValueError: another pool of that name is reported to this registry and is not closed.
        TypeError: it is not a Pool.
        WrongEventLoop: with histograms, the pool is open on another event loop.
    """
    if (collector := _collectors.get(registry)) is None:
        collector = _PoolCollector()
        registry.register(collector)
        _collectors[registry] = collector
    return collector.instrument(pool, histograms=histograms)


def _translated(name: str) -> str:
    return name.replace(".", "_")


_POOL_NAME = _translated(POOL_NAME)


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
        return self._watched.add(pool, self._listener if histograms else None)

    def _listener(self, name: str) -> Callable[[Event], None]:
        observe = {metric: histogram.labels(name).observe for metric, histogram in self._histograms.items()}

        def listen(event: Event) -> None:
            if (found := duration(event)) is not None:
                metric, seconds = found
                observe[metric](seconds)

        return listen

    def collect(self) -> Iterator[Family]:
        pools = list(self._watched)
        for metric, kind, by, values in OBSERVED:
            labels = [_POOL_NAME] if by is None else [_POOL_NAME, _translated(by)]
            name = _translated(metric.name) + ("_seconds" if metric.unit == "s" else "")
            make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            family = make(name, metric.description, labels=labels)
            for pool, reading in pools:
                for which, value in values(reading).items():
                    family.add_metric([pool] if by is None else [pool, which], value)
            yield family
        for histogram in self._histograms.values():
            yield from histogram.collect()


_collectors: WeakKeyDictionary[CollectorRegistry, _PoolCollector] = WeakKeyDictionary()
