"""A span for each get that waited, and none for the others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace as api
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pool_core import ConnectError, Pool, PoolClosed, PoolDeadlock, PoolTimeout
from pool_core._gets import Gets
from pool_core.otel import trace
from pool_core.testing import NEVER, Delay, ScriptedManager

from .helpers import books, hold, interruptions, turns, virtual

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "db.client.connection.pool.name"


class Seen:
    """A provider and the spans that it was given."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def spans(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == "pool_core.get"]

    def told(self) -> list[tuple[object, object]]:
        """Phase and outcome of each."""
        return [
            ((span.attributes or {})["pool_core.phase"], (span.attributes or {})["pool_core.outcome"])
            for span in self.spans()
        ]


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    yield seen
    seen.provider.shutdown()


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


@virtual
async def test_a_get_that_waits_has_a_span_with_what_it_waited_for(seen: Seen) -> None:
    """Connecting, a return, a validation."""
    manager = ScriptedManager(connect=Delay(0.5), is_valid=Delay(0.25))
    async with Pool(manager, name="app", max_size=1, alive_bypass=5) as pool:
        trace(pool, tracer_provider=seen.provider)
        await asyncio.gather(hold(pool, 1), hold(pool, 1))
        await asyncio.sleep(9)
        await hold(pool)
    assert seen.told() == [("connect", "served"), ("queue", "served"), ("validate", "served")]
    assert [seconds(span) for span in seen.spans()] == pytest.approx([0.5, 1.5, 0.25], abs=0.01)
    assert [(span.attributes or {})[NAME] for span in seen.spans()] == ["app"] * 3
    assert {span.status.status_code for span in seen.spans()} == {StatusCode.UNSET}


@virtual
async def test_a_warm_get_has_none_and_stays_warm(seen: Seen) -> None:
    """Most gets do not wait; a span for each would say nothing and cost much."""
    async with Pool(ScriptedManager(), name="app", max_size=1, min_idle=1) as pool:
        trace(pool, tracer_provider=seen.provider)
        for _ in range(3):
            async with pool.get():
                assert not pool._state.slow
                assert not pool._state.observed
        with pytest.raises(PoolTimeout):
            async with pool.get():
                await pool.get(timeout=0)
    assert seen.spans() == []


@virtual
async def test_a_span_is_a_child_of_that_in_which_the_get_was_awaited(seen: Seen) -> None:
    """Also where another task's return served it."""
    tracer = seen.provider.get_tracer("program")

    async def work() -> None:
        with tracer.start_as_current_span("request"):
            await hold(pool, 1)

    async with Pool(ScriptedManager(), name="app", max_size=1, min_idle=1) as pool:
        trace(pool, tracer_provider=seen.provider)
        await asyncio.gather(work(), work())
    (span,) = seen.spans()
    parents = [each for each in seen.exporter.get_finished_spans() if each.name == "request"]
    assert span.parent is not None
    assert parents[1].context is not None
    assert span.parent.span_id == parents[1].context.span_id


@virtual
async def test_gets_that_end_without_a_connection_say_how(seen: Seen) -> None:
    """Timed out, cancelled, deadlocked, failed; an error has its type and text."""
    manager = ScriptedManager(is_transient=False)
    pool = Pool(manager, name="app", max_size=1, min_idle=1)
    await pool.open()
    trace(pool, tracer_provider=seen.provider)
    async with pool.get():
        with pytest.raises(PoolTimeout):
            await hold(pool, timeout=2)
        task = asyncio.create_task(hold(pool))
        await turns()
        task.cancel()
        await turns()
        with pytest.raises(PoolDeadlock):
            await hold(pool)
    manager.script(connect=OSError("down"))
    pool.evict()
    with pytest.raises(ConnectError):
        await hold(pool)
    manager.script(connect=NEVER)
    waiter = asyncio.create_task(hold(pool))
    await turns()
    await pool.close()
    with pytest.raises(PoolClosed):
        await waiter
    assert seen.told() == [
        ("queue", "timed_out"),
        ("queue", "cancelled"),
        ("queue", "deadlocked"),
        ("connect", "failed"),
        ("queue", "failed"),
    ]
    errors = {
        (span.attributes or {}).get("error.type"): span.status.description
        for span in seen.spans()
        if span.status.status_code is StatusCode.ERROR
    }
    assert set(errors) == {"PoolTimeout", "PoolDeadlock", "ConnectError", "PoolClosed"}
    assert "no connection within 2 s" in str(errors["PoolTimeout"])


@virtual
async def test_a_get_with_a_hook_before_it_has_a_span_too(seen: Seen) -> None:
    """It goes another way through the pool."""

    class Customizer:
        async def on_checkout(self, conn: Any) -> None:
            pass

    async with Pool(ScriptedManager(), name="app", max_size=1, customizer=Customizer()) as pool:
        trace(pool, tracer_provider=seen.provider)
        await asyncio.gather(hold(pool, 1), hold(pool))
    assert seen.told() == [("connect", "served"), ("queue", "served")]


@virtual
async def test_what_trace_returns_ends_it(seen: Seen) -> None:
    """And a first call's end does not end what a second began."""
    async with Pool(ScriptedManager(), name="app", max_size=1) as pool:
        first = trace(pool, tracer_provider=seen.provider)
        second = trace(pool, tracer_provider=Seen().provider)
        first()
        second()
        second()
        assert type(pool._gets) is Gets
        await asyncio.gather(hold(pool, 1), hold(pool))
    assert seen.spans() == []


@virtual
async def test_without_a_provider_the_global_one_is_meant() -> None:
    """Without one of the program's it does nothing."""
    async with Pool(ScriptedManager(), name="app", max_size=1) as pool:
        end = trace(pool)
        await asyncio.gather(hold(pool, 1), hold(pool))
        assert pool.state().statistics.hook_errors == 0
        end()


@pytest.mark.parametrize("wrong", [None, "postgresql://u:canary@h/db", Pool])
def test_what_is_no_pool_is_refused(wrong: Any) -> None:
    """One sentence."""
    with pytest.raises(TypeError, match="pool: expected a Pool, not") as caught:
        trace(wrong)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()], ids=repr)
def test_a_tracer_that_raises_breaks_no_get(error: BaseException) -> None:
    """Every connection comes back, and the error is counted."""

    class Bad(api.NoOpTracer):
        def start_span(self, *args: Any, **options: Any) -> Any:
            raise error

    class Provider(api.NoOpTracerProvider):
        def get_tracer(self, *args: Any, **options: Any) -> Any:
            return Bad()

    async def main() -> None:
        async with Pool(ScriptedManager(), name="app", max_size=1, error_sink=lambda _: None) as pool:
            trace(pool, tracer_provider=Provider())
            for seconds, timeout in ((1.0, None), (0.0, 0.5)):
                await asyncio.gather(hold(pool, 1), hold(pool, seconds, timeout), return_exceptions=True)
            await asyncio.sleep(5)
            assert pool.state().statistics.hook_errors >= 2
            assert pool.state().idle == 1
            books(pool)

    interruptions(main, KeyboardInterrupt)


def test_a_get_that_dies_with_its_loop_has_no_span(seen: Seen) -> None:
    """Nobody is there whose waiting it would be."""
    loop = asyncio.new_event_loop()
    pool = Pool(ScriptedManager(connect=NEVER), name="app", max_size=1)

    async def main() -> Any:
        await pool.open()
        trace(pool, tracer_provider=seen.provider)
        waiting = pool.get().__aenter__()
        task = asyncio.ensure_future(waiting)
        await turns()
        return task

    task = loop.run_until_complete(main())
    task._log_destroy_pending = False
    loop.close()
    coro = task.get_coro()
    del task
    coro.close()
    assert seen.spans() == []
    asyncio.run(pool.close())
