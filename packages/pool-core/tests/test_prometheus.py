"""What Prometheus sees of a pool, by real scrapes over HTTP."""

from __future__ import annotations

import asyncio
import importlib
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pool_core.otel
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from pool_core import Pool, PoolTimeout
from pool_core.prometheus import instrument
from pool_core.testing import Delay, ScriptedManager
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from .helpers import hold, virtual

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

PREFIX = "db_client_connection_"
POOL = f"{PREFIX}pool_name"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    """All numbers of a scrape, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scraper(Collector):
    """A registry for one test, behind the client library's own HTTP server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        served = CollectorRegistry()
        served.register(self)
        self.server, self.thread = start_http_server(0, "127.0.0.1", served)
        self.url = f"http://127.0.0.1:{self.server.server_port}/metrics"

    def collect(self) -> Iterable[Metric]:
        return self.registry.collect()

    def text(self) -> str:
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    async def scrape(self) -> Samples:
        """In a thread, while the pool's loop goes on."""
        return samples(await asyncio.to_thread(self.text))

    async def value(self, name: str, pool: str = "app", **labels: str) -> float | None:
        labels = {PREFIX + label: value for label, value in labels.items()} | {POOL: pool}
        return (await self.scrape()).get((PREFIX + name, tuple(sorted(labels.items()))))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Scraper]:
    scraper = Scraper()
    yield scraper
    scraper.close()


@pytest.fixture
def scraper(server: Scraper) -> Scraper:
    server.registry = CollectorRegistry(auto_describe=True)
    return server


@virtual
async def test_a_scrape_reads_the_pool_as_it_is(scraper: Scraper) -> None:
    """What is read cannot drift."""
    async with Pool(ScriptedManager(), name="app", max_size=4, min_idle=2) as pool:
        instrument(pool, registry=scraper.registry)
        async with pool.get():
            await asyncio.sleep(0.1)
            now = await scraper.scrape()
        idle, used = ((POOL, "app"), (f"{PREFIX}state", "idle")), ((POOL, "app"), (f"{PREFIX}state", "used"))
        assert (now[f"{PREFIX}count", idle], now[f"{PREFIX}count", used]) == (2, 1)
        for name, value in {"max": 4, "idle_max": 4, "idle_min": 2, "pending_requests": 0, "timeouts_total": 0}.items():
            assert now[f"{PREFIX}{name}", ((POOL, "app"),)] == value, name


@virtual
async def test_waiting_gets_and_timeouts_are_scraped(scraper: Scraper) -> None:
    """The two numbers that alerts stand on."""
    async with Pool(ScriptedManager(), name="app", max_size=1, connection_timeout=2.0) as pool:
        instrument(pool, registry=scraper.registry)
        async with pool.get():
            waiter = asyncio.create_task(hold(pool))
            await asyncio.sleep(1)
            assert await scraper.value("pending_requests") == 1
            with pytest.raises(PoolTimeout):
                await waiter
        assert await scraper.value("timeouts_total") == 1


@virtual
async def test_create_wait_and_use_time_are_histograms(scraper: Scraper) -> None:
    """In seconds, with buckets for seconds."""
    async with Pool(ScriptedManager(connect=Delay(0.25)), name="app", max_size=1) as pool:
        instrument(pool, registry=scraper.registry)
        await asyncio.gather(hold(pool, 0.02), hold(pool, 3.0))
        await hold(pool)
        now = await scraper.scrape()
    label = (POOL, "app")
    expected = {
        "create_time": (1, 0.25, {"0.1": 0, "0.5": 1, "+Inf": 1}),
        "wait_time": (3, 0.52, {"0.001": 1, "0.1": 1, "0.5": 3}),
        "use_time": (3, 3.02, {"0.001": 1, "0.05": 2, "1.0": 2, "5.0": 3}),
    }
    for name, (count, total, buckets) in expected.items():
        name = f"{PREFIX}{name}_seconds"
        assert now[f"{name}_count", (label,)] == count
        assert now[f"{name}_sum", (label,)] == pytest.approx(total)
        for bound, within in buckets.items():
            assert now[f"{name}_bucket", tuple(sorted([label, ("le", bound)]))] == within, (name, bound)


@virtual
async def test_names_types_labels_and_numbers_are_those_that_opentelemetry_exports(scraper: Scraper) -> None:
    """One dashboard serves both: the same pool through OpenTelemetry's own exporter for Prometheus."""
    theirs: Any = PrometheusMetricReader(disable_target_info=True)
    provider = MeterProvider([theirs], Resource({}), shutdown_on_exit=False)

    def families(text: str) -> dict[str, tuple[str, str]]:
        return {
            family.name: (family.type, family.documentation)
            for family in text_string_to_metric_families(text)
            if family.name.startswith((PREFIX, "pool_core_")) and not family.name.endswith("_created")
        }

    def numbers(text: str) -> Samples:
        return {
            (name, tuple(label for label in labels if not label[0].startswith("otel_scope"))): value
            for (name, labels), value in samples(text).items()
            if name.startswith((PREFIX, "pool_core_")) and not name.endswith("_created")
        }

    try:
        async with Pool(ScriptedManager(connect=Delay(0.25)), name="app", max_size=2) as pool:
            instrument(pool, registry=scraper.registry)
            pool_core.otel.instrument(pool, meter_provider=provider)
            await asyncio.gather(*(hold(pool, 0.5) for _ in range(5)))
            ours = await asyncio.to_thread(scraper.text)
            exported = generate_latest(REGISTRY).decode()
    finally:
        provider.shutdown()
    assert len(families(ours)) == 9 + 13
    assert families(ours) == families(exported)
    assert numbers(ours) == numbers(exported)


@virtual
async def test_two_pools_of_one_registry_differ_by_name(scraper: Scraper) -> None:
    """One family of each metric, whatever the number of pools."""
    read, write = Pool(ScriptedManager(), name="read"), Pool(ScriptedManager(), name="write", max_size=3)
    instrument(read, registry=scraper.registry)
    instrument(write, registry=scraper.registry)
    assert (await scraper.value("max", "read"), await scraper.value("max", "write")) == (10, 3)
    text = await asyncio.to_thread(scraper.text)
    assert text.count(f"# TYPE {PREFIX}max gauge") == 1


@virtual
async def test_what_instrument_returns_ends_it(scraper: Scraper) -> None:
    """The warm path is back, and the name is free again."""
    async with Pool(ScriptedManager(), name="app", min_idle=1, max_size=1) as pool:
        end = instrument(pool, registry=scraper.registry)
        await hold(pool)
        end()
        end()
        async with pool.get():
            assert not pool._state.slow
        assert await scraper.value("max") is None
        instrument(pool, registry=scraper.registry)
        assert await scraper.value("max") == 1


@virtual
async def test_without_histograms_the_warm_path_stays(scraper: Scraper) -> None:
    """Reading costs the borrowers nothing."""
    async with Pool(ScriptedManager(), name="app", min_idle=1, max_size=1) as pool:
        instrument(pool, registry=scraper.registry, histograms=False)
        async with pool.get():
            assert not pool._state.slow
        assert await scraper.value("count", state="idle") == 1
        assert await scraper.value("wait_time_seconds_count") is None


@virtual
async def test_a_dropped_pool_is_reported_no_longer(scraper: Scraper) -> None:
    """Metrics keep no pool alive."""
    instrument(Pool(ScriptedManager(), name="app"), registry=scraper.registry)
    assert await scraper.value("max") is None


@virtual
async def test_without_a_registry_the_global_one_is_meant() -> None:
    """As everywhere in the client library; a second pool there registers nothing twice."""
    pools = [Pool(ScriptedManager(), name=name) for name in ("app", "other")]
    ends = [instrument(pool, histograms=False) for pool in pools]
    assert [REGISTRY.get_sample_value(f"{PREFIX}max", {POOL: name}) for name in ("app", "other")] == [10, 10]
    for end in ends:
        end()


def test_without_the_client_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with what to do."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "pool_core.prometheus")
    with pytest.raises(ImportError, match=r'pip install "pool-core\[prometheus\]"'):
        importlib.import_module("pool_core.prometheus")
