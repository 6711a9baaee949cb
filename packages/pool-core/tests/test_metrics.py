"""What both exporters report of a pool's life, and when ``instrument`` may be called."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING, Any, Literal

import pool_core.otel
import pool_core.prometheus
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pool_core import CloseReason, ConnectError, Pool, PoolDeadlock, PoolOverloaded, PoolTimeout, WrongEventLoop
from pool_core._metrics import HISTOGRAMS, OBSERVED
from pool_core._pool import _after_fork_in_child
from pool_core.testing import NEVER, OK, Delay, FakeConnection, ScriptedManager
from prometheus_client import CollectorRegistry

from .helpers import hold, turns, virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "db.client.connection.pool.name"


class Exporter:
    """One way to export metrics, and what it exports: by name of OpenTelemetry, and by one attribute's value."""

    def __init__(self, kind: Literal["otel", "prometheus"]) -> None:
        self.kind = kind
        self.registry = CollectorRegistry()
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def instrument(self, pool: Any, **options: Any) -> Callable[[], None]:
        """Report the pool."""
        if self.kind == "otel":
            return pool_core.otel.instrument(pool, meter_provider=self.provider, **options)
        return pool_core.prometheus.instrument(pool, registry=self.registry, **options)

    def __call__(self, name: str, pool: str = "app") -> dict[str, float]:
        """All values of one metric of one pool, by the value of its attribute; "" where there is none."""
        if self.kind == "otel":
            return {
                next((str(value) for key, value in point.attributes.items() if key != NAME), ""): point.value
                for point in self._points(name)
                if point.attributes[NAME] == pool
            }
        unit = next(observed.metric.unit for observed in OBSERVED if observed.metric.name == name)
        family = name.replace(".", "_") + ("_seconds" if unit == "s" else "")
        return {
            next((value for key, value in sample.labels.items() if key != NAME.replace(".", "_")), ""): sample.value
            for metric in self.registry.collect()
            if metric.name == family
            for sample in metric.samples
            if sample.labels[NAME.replace(".", "_")] == pool
        }

    def _points(self, name: str) -> Iterator[Any]:
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        yield from metric.data.data_points


@pytest.fixture(params=["otel", "prometheus"])
def export(request: pytest.FixtureRequest) -> Iterator[Exporter]:
    exporter = Exporter(request.param)
    yield exporter
    exporter.provider.shutdown()


# -- what is reported


@virtual
async def test_what_happened_before_instrument_is_in_every_counter(export: Exporter) -> None:
    """A lifespan instruments an open pool, whose first connections are there already."""
    async with Pool(ScriptedManager(), name="app", min_idle=2, max_size=2) as pool:
        async with pool.get() as conn:
            conn.broken = True
        await hold(pool)
        export.instrument(pool)
        assert export("pool_core.connections.opened")[""] == pool.state().statistics.connections_created >= 2
        assert export("pool_core.connections.closed")["broken"] == 1
        assert sum(export("pool_core.gets").values()) == 2


@virtual
async def test_connections_are_reported_by_state(export: Exporter) -> None:
    """The conventions know two states; who looks for the cause of a full pool needs them all."""
    manager = ScriptedManager(connect=[OK, OK, OK, NEVER], reset=NEVER, close=Delay(9.0))
    async with Pool(manager, name="app", max_size=4, error_sink=lambda _: None) as pool:
        export.instrument(pool)
        first, second, third = await pool.get(), await pool.get(), await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await asyncio.sleep(1)
        first.release()
        second.discard()
        assert export("pool_core.connections") == {
            "idle": 0, "in_use": 1, "opening": 1, "validating": 0, "resetting": 1, "closing": 1,
        }  # fmt: skip
        waiter.cancel()
        third.release()


@virtual
async def test_each_reason_of_a_close_is_reported_from_the_first(export: Exporter) -> None:
    """A series that begins with its first event hides that event from rate(); and there are no others."""
    export.instrument(Pool(ScriptedManager(), name="app"))  # is dropped at once
    pool = Pool(ScriptedManager(), name="app")
    export.instrument(pool)
    assert export("pool_core.connections.closed") == {str(reason): 0 for reason in CloseReason}


@virtual
async def test_waits_and_timeouts_are_reported_by_what_was_waited_for(export: Exporter) -> None:
    """Connecting is slow, or the pool is small, or validations hang: each has another remedy."""
    manager = ScriptedManager(connect=[Delay(0.5), NEVER, NEVER], is_valid=[Delay(0.2), NEVER])
    async with Pool(manager, name="app", max_size=1, alive_bypass=1.0, validation_timeout=9.0) as pool:
        export.instrument(pool)
        await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))  # the first connects, the second waits for the return
        await asyncio.sleep(2)
        await hold(pool)  # validates
        assert export("pool_core.waits") == {"queue": 1, "connect": 1, "validate": 1}
        await asyncio.sleep(2)
        with pytest.raises(PoolTimeout):
            await hold(pool, timeout=1)
        pool.evict()
        await asyncio.sleep(9)
        with pytest.raises(PoolTimeout):
            await hold(pool, timeout=1)
        assert export("pool_core.timeouts") == {"queue": 0, "connect": 1, "validate": 1}
        assert export("db.client.connection.timeouts")[""] == 2
        assert export("pool_core.waited")[""] == pytest.approx(0.5 + 0.6)


@virtual
async def test_gets_are_reported_by_outcome(export: Exporter) -> None:
    """Each get ends in exactly one way; overload and deadlock are told from other failures."""
    manager = ScriptedManager(is_transient=False)
    async with Pool(manager, name="app", max_size=1, max_waiting=1, min_idle=1) as pool:
        export.instrument(pool)
        async with pool.get():
            cancelled = asyncio.create_task(hold(pool))
            await turns()
            with pytest.raises(PoolOverloaded):
                await pool.get()
            cancelled.cancel()
            await turns()
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=0)
            with pytest.raises(PoolDeadlock):
                async with pool.get():
                    raise AssertionError
        await asyncio.gather(hold(pool, 0.1), hold(pool))
        manager.script(connect=OSError("down"))
        pool.evict()
        with pytest.raises(ConnectError):
            await hold(pool)
        statistics = pool.state().statistics
        assert export("pool_core.gets") == {
            "direct": 2, "waited": 1, "timed_out": 1, "cancelled": 1, "overloaded": 1, "deadlocked": 1, "failed": 1,
        }  # fmt: skip
        assert statistics.gets_failed == 3
        assert statistics.gets_started == 8


@virtual
async def test_failures_are_reported(export: Exporter) -> None:
    """Connecting, resets, hooks, and connections that could not be ended."""

    def raises(_: object) -> None:
        raise RuntimeError

    manager = ScriptedManager(connect=[OSError("down"), OK], reset=OSError("gone"))
    async with Pool(manager, name="app", listeners=[raises], error_sink=lambda _: None) as pool:
        export.instrument(pool, histograms=False)
        await hold(pool)
        await turns()
        assert export("pool_core.connect.failures")[""] == 1
        assert export("pool_core.hook.errors")[""] == pool.state().statistics.hook_errors > 3
        assert export("pool_core.connections.closed")["reset_failed"] == 1
        assert export("pool_core.connections.abandoned")[""] == 0
        pool.add(FakeConnection(99))
        assert export("pool_core.connections.added")[""] == 1


@virtual
async def test_the_oldest_wait_and_the_longest_lease_are_reported(export: Exporter) -> None:
    """A queue that moves is no trouble; one whose head stands still is."""
    async with Pool(ScriptedManager(), name="app", max_size=1) as pool:
        export.instrument(pool)
        assert (export("pool_core.oldest_wait")[""], export("pool_core.longest_lease")[""]) == (0, 0)
        async with pool.get():
            await asyncio.sleep(2)
            tasks = [asyncio.create_task(hold(pool)) for _ in range(2)]
            await asyncio.sleep(3)
            assert export("pool_core.oldest_wait")[""] == pytest.approx(3)
            assert export("pool_core.longest_lease")[""] == pytest.approx(5, abs=0.1)
        await asyncio.gather(*tasks)
        assert (export("pool_core.oldest_wait")[""], export("pool_core.longest_lease")[""]) == (0, 0)


@virtual
async def test_the_number_of_series_does_not_grow_with_use(export: Exporter) -> None:
    """Tasks, connections and errors are no labels."""

    def series() -> int:
        return sum(len(export(observed.metric.name)) for observed in OBSERVED)

    async with Pool(ScriptedManager(), name="app", max_size=5) as pool:
        export.instrument(pool)
        before = series()
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(50)))
        pool.evict()
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(50)))
        assert series() == before
        assert before < 60


# -- when instrument is called


def test_instrument_in_a_lifespan_is_called_again_by_the_second_test_of_a_suite(export: Exporter) -> None:
    """A pool of a module, or a new one of the same name for each test: the counters go on, and none is counted twice."""
    pool = Pool(ScriptedManager(), name="app", min_idle=1)
    for round_ in (1, 2, 3):

        @virtual
        async def test() -> None:
            async with pool:
                export.instrument(pool)
                await hold(pool)

        test()
        assert export("pool_core.gets")["direct"] == round_
        assert export("pool_core.connections.closed")["pool_closed"] == round_


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "collected"])
@virtual
async def test_a_new_pool_takes_the_name_of_a_closed_one_and_no_counter_goes_back(export: Exporter, keep: bool) -> None:
    """The second test of a suite makes the pool anew. A counter that goes back is a mistake for OpenTelemetry."""
    kept = []
    for round_ in (1, 2, 3):
        pool = Pool(ScriptedManager(), name="app", min_idle=1)
        export.instrument(pool)
        async with pool:
            await hold(pool)
        assert export("pool_core.gets")["direct"] == round_
        assert export("pool_core.connections.opened")[""] == round_
        assert export("pool_core.connections.closed")["pool_closed"] == round_
        if keep:
            kept.append(pool)
        del pool
        gc.collect()


@virtual
async def test_before_open_instrument_sees_the_first_connections(export: Exporter) -> None:
    """All of them, also in the histograms."""
    pool = Pool(ScriptedManager(connect=Delay(0.25)), name="app", min_idle=2)
    export.instrument(pool)
    async with pool:
        assert export("pool_core.connections.opened")[""] == 2
        if export.kind == "otel":
            assert next(export._points(HISTOGRAMS[0].name)).count == 2
        else:
            name = {"db_client_connection_pool_name": "app"}
            assert export.registry.get_sample_value("db_client_connection_create_time_seconds_count", name) == 2


@virtual
async def test_a_second_call_for_the_same_pool_replaces_the_first(export: Exporter) -> None:
    """Nothing is reported twice, and the first call's end ends nothing any more."""
    async with Pool(ScriptedManager(), name="app", min_idle=1, max_size=1) as pool:
        first = export.instrument(pool)
        second = export.instrument(pool, histograms=False)
        first()
        async with pool.get():
            assert not pool._state.slow  # nobody listens
        assert export("pool_core.gets")["direct"] == 1
        second()
        second()
        assert export("pool_core.gets") == {}
        export.instrument(pool)
        assert export("pool_core.gets")["direct"] == 1


@virtual
async def test_two_pools_of_one_name_are_refused_while_the_first_is_not_closed(export: Exporter) -> None:
    """Their numbers would overwrite each other. The refused one is left as it was."""
    pool, other = (Pool(ScriptedManager(), name="app", min_idle=1, max_size=1) for _ in range(2))
    export.instrument(pool)
    message = "name='app': another pool of that name is instrumented and not closed: give each pool a name of its own"
    with pytest.raises(ValueError, match=message):
        export.instrument(other)
    async with pool, other:
        with pytest.raises(ValueError, match=message):
            export.instrument(other)
        async with other.get():
            assert not other._state.slow
    export.instrument(other)
    async with other:
        pass
    assert export("pool_core.connections.opened")[""] == 3


@virtual
async def test_in_the_child_of_a_fork_a_pool_may_have_the_name_of_the_parents(export: Exporter) -> None:
    """A web server that forks after the program was loaded: each child counts its own."""
    async with Pool(ScriptedManager(), name="app", min_idle=2) as parents:
        export.instrument(parents)
        _after_fork_in_child()
        child = Pool(ScriptedManager(), name="app", min_idle=1)
        export.instrument(child)
        async with child:
            assert export("pool_core.connections.opened")[""] == 1
        parents._shell.life.forked, parents._shell.life.thread = False, threading.get_ident()


@pytest.mark.parametrize("wrong", [None, 42, "postgresql://u:canary@h/db", Pool, ScriptedManager()])
def test_what_is_no_pool_is_refused(export: Exporter, wrong: Any) -> None:
    """One sentence, and no password of a URL that was given by mistake."""
    with pytest.raises(TypeError, match="pool: expected a Pool, not") as caught:
        export.instrument(wrong)
    assert "canary" not in str(caught.value)


@virtual
async def test_from_another_thread_only_what_needs_no_listener_is_reported(export: Exporter) -> None:
    """All or nothing: a call that raises leaves nothing behind."""
    async with Pool(ScriptedManager(), name="app") as pool:
        with pytest.raises(WrongEventLoop):
            await asyncio.to_thread(export.instrument, pool)
        assert export("pool_core.gets") == {}
        await asyncio.to_thread(export.instrument, pool, histograms=False)
        assert export("pool_core.gets")["direct"] == 0
