"""What OpenTelemetry sees of a pool, read with its SDK's in-memory reader."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pool_core
import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from pool_core import Pool, PoolTimeout, WrongEventLoop
from pool_core._pool import _after_fork_in_child
from pool_core.otel import instrument
from pool_core.testing import NEVER, Delay, ScriptedManager

from .helpers import hold, virtual

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.metrics.export import Metric

PREFIX = "db.client.connection."


class Seen:
    """A provider and what its reader finds."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def metrics(self) -> list[Metric]:
        data = self.reader.get_metrics_data()
        return [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def points(self, name: str, pool: str = "app") -> list[Any]:
        return [
            point
            for metric in self.metrics()
            if metric.name == PREFIX + name
            for point in metric.data.data_points
            if (point.attributes or {})[PREFIX + "pool.name"] == pool
        ]

    def value(self, name: str, pool: str = "app") -> int:
        (point,) = self.points(name, pool)
        return int(point.value)

    def count(self, pool: str = "app") -> dict[str, int]:
        return {point.attributes[PREFIX + "state"]: point.value for point in self.points("count", pool)}


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    yield seen
    seen.provider.shutdown()


def kind(metric: Metric) -> str:
    """The instrument of the conventions that a metric stands for."""
    if type(metric.data).__name__ == "Histogram":
        return "histogram"
    data: Any = metric.data
    if type(data).__name__ == "Gauge":
        return "gauge"
    return "counter" if data.is_monotonic else "updowncounter"


@virtual
async def test_names_units_and_descriptions_are_those_of_the_installed_conventions(seen: Seen) -> None:
    """All of them and no others: dashboards are made by these names."""

    class Recorder:
        def __init__(self) -> None:
            self.made: set[tuple[str, str, str, str]] = set()

        def __getattr__(self, method: str) -> Any:
            instrument_kind = method.removeprefix("create_").replace("_", "")
            return lambda name, unit, description: self.made.add((name, instrument_kind, unit, description))

    conventions = Recorder()
    for name, create in inspect.getmembers(db_metrics, inspect.isfunction):
        if name.startswith("create_db_client_connection_"):
            create(conventions)
    async with Pool(ScriptedManager(), name="app", max_size=1) as pool:
        instrument(pool, meter_provider=seen.provider)
        await hold(pool)
        ours = {(metric.name, kind(metric), metric.unit, metric.description) for metric in seen.metrics()}
    own = {metric for metric in ours if metric[0].startswith("pool_core.")}
    assert len(ours - own) == 9
    assert ours - own == conventions.made


@virtual
async def test_attributes_are_those_of_the_installed_conventions(seen: Seen) -> None:
    """And their values."""
    pool = Pool(ScriptedManager(), name="app")
    instrument(pool, meter_provider=seen.provider)
    states = {state.value for state in db_attributes.DbClientConnectionStateValues}
    assert set(seen.count()) == states
    for metric in seen.metrics():
        if metric.name.startswith("pool_core."):
            continue
        for point in metric.data.data_points:
            names = {db_attributes.DB_CLIENT_CONNECTION_POOL_NAME}
            if metric.name == db_metrics.DB_CLIENT_CONNECTION_COUNT:
                names.add(db_attributes.DB_CLIENT_CONNECTION_STATE)
            assert set(point.attributes or {}) == names


@virtual
async def test_connections_are_read_from_the_pool_in_every_part_of_its_life(seen: Seen) -> None:
    """What is read cannot drift: no count of ours is kept beside the pool's."""
    manager = ScriptedManager(close=Delay(1.0))
    pool = Pool(manager, name="app", max_size=4, min_idle=2)
    instrument(pool, meter_provider=seen.provider)
    assert seen.count() == {"idle": 0, "used": 0}
    async with pool:
        assert (seen.value("max"), seen.value("idle.max"), seen.value("idle.min")) == (4, 4, 2)
        assert seen.count() == {"idle": 2, "used": 0}
        async with pool.get():
            await asyncio.sleep(0.1)
            assert seen.count() == {"idle": 2, "used": 1}
        pool.resize(max_size=3, min_idle=0)
        assert (seen.value("max"), seen.value("idle.min")) == (3, 0)
        pool.evict()
        assert seen.count() == {"idle": 0, "used": 3}  # closing ones still hold their places
        await asyncio.sleep(2)
    assert seen.count() == {"idle": 0, "used": 0}


@virtual
async def test_a_connection_that_is_tested_or_wiped_is_used(seen: Seen) -> None:
    """It cannot be handed out, and it takes capacity: a full pool must look full."""
    manager = ScriptedManager(is_valid=Delay(1.0), reset=Delay(1.0))
    async with Pool(manager, name="app", max_size=1, alive_bypass=0) as pool:
        instrument(pool, meter_provider=seen.provider)
        await hold(pool)
        assert (seen.count(), pool.state().resetting) == ({"idle": 0, "used": 1}, 1)
        await asyncio.sleep(2)
        tested = asyncio.create_task(hold(pool))
        await asyncio.sleep(0.5)
        assert (seen.count(), pool.state().validating) == ({"idle": 0, "used": 1}, 1)
        await tested


@virtual
async def test_waiting_gets_and_timeouts_are_read_too(seen: Seen) -> None:
    """Pending requests go up and down; timeouts only go up."""
    async with Pool(ScriptedManager(), name="app", max_size=1, connection_timeout=2.0) as pool:
        instrument(pool, meter_provider=seen.provider)
        async with pool.get():
            waiters = [asyncio.create_task(hold(pool)) for _ in range(3)]
            await asyncio.sleep(1)
            assert (seen.value("pending_requests"), seen.value("timeouts")) == (3, 0)
            assert {type(error) for error in await asyncio.gather(*waiters, return_exceptions=True)} == {PoolTimeout}
        assert (seen.value("pending_requests"), seen.value("timeouts")) == (0, 3)


@virtual
async def test_create_wait_and_use_time_are_histograms_in_seconds(seen: Seen) -> None:
    """With buckets for seconds: OpenTelemetry's own defaults are made for milliseconds."""
    async with Pool(ScriptedManager(connect=Delay(0.25)), name="app", max_size=1) as pool:
        instrument(pool, meter_provider=seen.provider)
        await asyncio.gather(hold(pool, 0.02), hold(pool, 3.0))
        await hold(pool, 0.0)
    figures = {}
    for name in ("create_time", "wait_time", "use_time"):
        (point,) = seen.points(name)
        assert tuple(point.explicit_bounds) == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
        figures[name] = (point.count, point.min, point.max, round(point.sum, 9))
    assert figures == {
        "create_time": (1, 0.25, 0.25, 0.25),
        "wait_time": (3, 0.0, 0.27, 0.52),
        "use_time": (3, 0.0, 3.0, 3.02),
    }


@virtual
async def test_without_histograms_the_warm_path_stays(seen: Seen) -> None:
    """Reading costs the borrowers nothing."""
    async with Pool(ScriptedManager(), name="app", min_idle=1, max_size=1) as pool:
        instrument(pool, meter_provider=seen.provider, histograms=False)
        async with pool.get():
            assert not pool._state.slow
        assert seen.count() == {"idle": 1, "used": 0}
        assert {kind(metric) for metric in seen.metrics()} == {"counter", "updowncounter", "gauge"}


@virtual
async def test_two_pools_share_the_instruments_and_differ_by_name(seen: Seen) -> None:
    """Instruments cannot be taken off a provider again, and two of one name would be reported as a mistake."""
    async with Pool(ScriptedManager(), name="read", min_idle=1) as read, Pool(ScriptedManager(), name="write") as write:
        instrument(read, meter_provider=seen.provider)
        instrument(write, meter_provider=seen.provider)
        names = [metric.name for metric in seen.metrics()]
        assert len(names) == len(set(names))
        assert (seen.count("read"), seen.count("write")) == ({"idle": 1, "used": 0}, {"idle": 0, "used": 0})


@virtual
async def test_what_instrument_returns_ends_it(seen: Seen) -> None:
    """The warm path is back, the name is free, and a second call cannot hit the successor of that name."""
    async with Pool(ScriptedManager(), name="app", min_idle=1, max_size=1) as pool:
        end = instrument(pool, meter_provider=seen.provider)
        await hold(pool)
        end()
        async with pool.get():
            assert not pool._state.slow
        assert seen.points("count") == []
        assert seen.points("wait_time")[0].count == 1
        successor = Pool(ScriptedManager(), name="app")
        instrument(successor, meter_provider=seen.provider)
        end()
        assert seen.count() == {"idle": 0, "used": 0}


@virtual
async def test_metrics_keep_no_pool_alive(seen: Seen) -> None:
    """A dropped pool ends, is reported no longer, and leaves its name free."""
    end = instrument(Pool(ScriptedManager(), name="app"), meter_provider=seen.provider)
    assert seen.points("count") == []
    again = Pool(ScriptedManager(), name="app")
    instrument(again, meter_provider=seen.provider)
    end()
    assert seen.count() == {"idle": 0, "used": 0}


@virtual
async def test_a_pool_that_cannot_be_listened_to_is_not_reported_either(seen: Seen) -> None:
    """All or nothing: from the wrong thread nothing is left behind."""
    async with Pool(ScriptedManager(), name="app") as pool:
        with pytest.raises(WrongEventLoop):
            await asyncio.to_thread(instrument, pool, meter_provider=seen.provider)
        assert seen.points("count") == []
        instrument(pool, meter_provider=seen.provider)


@virtual
async def test_exporters_read_from_threads_of_their_own(seen: Seen) -> None:
    """As the SDK's periodic reader does, while the pool works."""
    stop = threading.Event()
    errors: list[BaseException] = []
    collected: list[int] = []

    def export() -> None:
        try:
            while not stop.is_set():
                assert min(seen.count().values()) >= 0
                collected.append(1)
        except BaseException as error:
            errors.append(error)

    async with Pool(ScriptedManager(), name="app", max_size=4) as pool:
        instrument(pool, meter_provider=seen.provider)
        exporter = threading.Thread(target=export)
        exporter.start()
        try:
            for _ in range(100):
                await asyncio.gather(*(hold(pool, 0.001) for _ in range(8)))
                pool.evict()
        finally:
            stop.set()
            await asyncio.to_thread(exporter.join)
    assert errors == []
    assert len(collected) > 1


@virtual
async def test_in_the_child_of_a_fork_the_parents_pool_is_left_out(seen: Seen) -> None:
    """The child's exporter goes on with the pools that are the child's."""
    async with Pool(ScriptedManager(), name="app") as pool:
        own = Pool(ScriptedManager(), name="own")
        instrument(pool, meter_provider=seen.provider)
        instrument(own, meter_provider=seen.provider)
        _after_fork_in_child()
        assert seen.points("count") == []
        assert seen.count("own") == {"idle": 0, "used": 0}
        pool._shell.life.forked, pool._shell.life.thread = False, threading.get_ident()


@virtual
async def test_failed_connects_leave_no_create_time(seen: Seen) -> None:
    """Only connections that came into being took a time to be made."""
    manager = ScriptedManager(connect=[OSError("down"), NEVER])
    async with Pool(manager, name="app", error_sink=lambda _: None) as pool:
        instrument(pool, meter_provider=seen.provider)
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=1)
        assert seen.points("create_time") == []
        assert seen.value("timeouts") == 1


@virtual
async def test_without_a_provider_the_global_one_is_meant(seen: Seen) -> None:
    """Also when it is set after the first pool was instrumented."""
    pool = Pool(ScriptedManager(), name="app")
    instrument(pool)
    metrics.set_meter_provider(seen.provider)
    assert seen.count() == {"idle": 0, "used": 0}


def test_nothing_else_of_the_core_knows_of_exporters() -> None:
    """Who does not report metrics needs no package for them, and imports none."""
    source = Path(pool_core.__file__).parent
    for path in source.rglob("*.py"):
        if path.name not in {"otel.py", "prometheus.py", "_metrics.py"}:
            assert not re.search(r"opentelemetry|prometheus|_metrics", path.read_text()), path


def test_without_opentelemetry_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with what to do."""
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    monkeypatch.delitem(sys.modules, "pool_core.otel")
    with pytest.raises(ImportError, match=r'pip install "pool-core\[otel\]"'):
        importlib.import_module("pool_core.otel")
