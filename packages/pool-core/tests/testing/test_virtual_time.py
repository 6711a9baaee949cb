"""The virtual-time loop: instant sleeps, no silent hangs, real sockets and threads still usable."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest
from pool_core.testing import LeftoverError, StuckError, VirtualTimeLoop, run, settle


def test_a_sleep_of_half_an_hour_takes_no_real_time_and_exactly_half_an_hour_of_virtual_time() -> None:
    """Lifetimes and reapers are tested at their real settings, without waiting for them."""

    async def main() -> float:
        await asyncio.sleep(1800)
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert run(main) == 1800.0
    assert time.perf_counter() - began < 1


def test_timers_fire_in_order_and_the_clock_lands_exactly_on_each() -> None:
    """A test may compare times with ==: there is no drift by rounding."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        for delay in (0.3, 0.1, 0.7, 0.2):
            loop.call_later(delay, lambda: seen.append(loop.time()))
        await asyncio.sleep(1)
        return seen

    assert run(main) == [0.1, 0.2, 0.3, 0.7]


def test_no_time_passes_while_something_is_ready() -> None:
    """A long computation must not make a timeout fire."""

    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run(main, start=5.0) == 5.0


def test_asyncio_timeouts_see_virtual_time() -> None:
    """The standard tools are the ones programs use."""

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 12)
        return asyncio.get_running_loop().time()

    assert run(main) == 42.0


def test_a_deadlock_is_an_error_that_names_the_waiting_tasks() -> None:
    """The error names the task that hangs and where; without it the whole suite would time out."""

    async def lost() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(lost(), name="the-lost-one")
        await task

    with pytest.raises(StuckError, match=r"the-lost-one: .*lost at .*test_virtual_time\.py:\d+"):
        run(main)


def test_a_deadlock_beside_a_periodic_timer_is_found_by_the_time_limit() -> None:
    """A reaper that ticks for ever must not hide that nobody gets anywhere."""

    async def main() -> None:
        async def tick() -> None:
            while True:
                await asyncio.sleep(30)

        task = asyncio.create_task(tick())
        await asyncio.Event().wait()
        task.cancel()

    with pytest.raises(StuckError, match="still running after 5000 virtual seconds"):
        run(main, time_limit=5000)


def test_a_task_that_is_left_running_is_an_error_that_names_it() -> None:
    """ "No task is left after close" is checked by every test that uses run()."""

    async def main() -> None:
        asyncio.get_running_loop().create_task(asyncio.sleep(3600), name="reaper")
        await asyncio.sleep(0)

    with pytest.raises(LeftoverError, match="a task was left running: reaper: sleep"):
        run(main)
    run(main, strict=False)


def test_a_timer_that_is_left_set_is_an_error_that_names_it() -> None:
    """A closed pool's timer keeps the pool alive, and fires into it."""

    async def main() -> None:
        asyncio.get_running_loop().call_later(30, test_settle_on_another_loop_says_what_it_needs)

    with pytest.raises(LeftoverError, match="a timer was left set, for 30 s: .*test_settle_on_another_loop"):
        run(main)
    run(main, strict=False)


def test_a_task_that_swallows_its_cancel_does_not_hang_the_run() -> None:
    """The suite must not hang on the adapters that it is meant to find."""

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    async def main() -> None:
        asyncio.get_running_loop().create_task(stubborn())
        await asyncio.sleep(0)

    with pytest.raises(LeftoverError, match="stubborn"):
        run(main)


def test_an_exception_that_nobody_retrieved_is_an_error() -> None:
    """Background failures must not pass unseen."""

    async def fail() -> None:
        raise ZeroDivisionError("lost")

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task

    with pytest.raises(LeftoverError, match="ZeroDivisionError: lost"):
        run(main)


def test_a_callback_that_raises_is_an_error() -> None:
    """A raising done callback is a bug that asyncio only logs."""

    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(LeftoverError, match="ZeroDivisionError") as caught:
        run(main)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_programs_own_error_comes_through_unchanged() -> None:
    """What a test asserts must not be hidden by what it left behind."""

    async def main() -> None:
        asyncio.get_running_loop().create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(main)


def test_settle_waits_for_everything_that_needs_no_time_and_lets_none_pass() -> None:
    """Background work is done when settle returns, however many steps it takes."""

    async def main() -> tuple[list[str], float]:
        done: list[str] = []

        async def worker() -> None:
            for _ in range(50):
                await asyncio.sleep(0)
            done.append("worker")
            await asyncio.sleep(1)
            done.append("later")

        task = asyncio.create_task(worker())
        await settle()
        seen = list(done)
        await task
        return seen, asyncio.get_running_loop().time()

    assert run(main) == (["worker"], 1.0)


def test_settle_on_another_loop_says_what_it_needs() -> None:
    """The usual mistake is asyncio.run instead of run."""
    with pytest.raises(TypeError, match=r"settle\(\) needs a VirtualTimeLoop"):
        asyncio.run(settle())


def test_the_clock_stands_still_while_a_job_runs_in_a_thread() -> None:
    """A driver that resolves names or opens files in the executor does not lose to a virtual timeout."""

    def work() -> str:
        time.sleep(0.02)
        return "done"

    async def main() -> tuple[str, float]:
        async with asyncio.timeout(0.001):
            answer = await asyncio.to_thread(work)
        return answer, asyncio.get_running_loop().time()

    assert run(main) == ("done", 0.0)


def test_a_foreign_thread_gets_the_real_time_that_was_asked_for() -> None:
    """Drivers with threads of their own come through call_soon_threadsafe, of which the loop knows nothing."""

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        thread = threading.Timer(0.02, lambda: loop.call_soon_threadsafe(event.set))
        thread.start()
        try:
            async with asyncio.timeout(10):
                await event.wait()
        finally:
            thread.join()
        return loop.time() < 10

    assert run(main, real_wait=5)
    with pytest.raises(TimeoutError):
        run(main)


def test_real_sockets_work_and_beat_no_timeout_they_would_not_have_beaten() -> None:
    """The fault proxy runs on this loop too."""

    async def main() -> tuple[bytes, float]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            answer = await reader.read()
        writer.close()
        server.close()
        return answer, asyncio.get_running_loop().time()

    assert run(main, real_wait=30) == (b"HELLO\n", 0.0)


def test_a_program_stuck_on_a_silent_socket_is_found_too() -> None:
    """With sockets the loop waits a moment of real time, then it complains all the same."""
    here, there = socket.socketpair()
    here.setblocking(False)

    async def main() -> None:
        await asyncio.get_running_loop().sock_recv(here, 1)

    with here, there, pytest.raises(StuckError, match="no timer is set"):
        run(main)


def test_the_timers_that_are_set_can_be_listed() -> None:
    """ "close() leaves no timer" is a line of its own in the invariants."""

    async def main() -> list[list[float]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        late, early = loop.call_at(20, print), loop.call_at(10, print)
        both = [handle.when() for handle in loop.timers()]
        early.cancel()
        one = [handle.when() for handle in loop.timers()]
        late.cancel()
        return [both, one, [handle.when() for handle in loop.timers()]]

    assert run(main) == [[10.0, 20.0], [20.0], []]


def test_arguments_are_passed_on_and_bad_settings_are_refused() -> None:
    """run(f, x) spares a lambda; a nonsense setting is named."""

    async def main(first: int, second: int) -> int:
        return first + second

    assert run(main, 1, 2) == 3
    with pytest.raises(ValueError, match=r"real_wait=-1"):
        VirtualTimeLoop(real_wait=-1)
    with pytest.raises(ValueError, match=r"time_limit=0"):
        VirtualTimeLoop(time_limit=0)


def test_an_async_generator_that_was_left_is_closed_before_the_loop() -> None:
    """Its finally runs on a living loop."""
    closed: list[str] = []

    async def numbers() -> Any:
        try:
            while True:
                yield 1
        finally:
            closed.append("closed")

    async def main() -> None:
        held.append(numbers())
        await anext(held[0])

    held: list[Any] = []
    run(main)
    assert closed == ["closed"]


def test_a_thousand_short_runs_take_well_under_a_second_each_hundred() -> None:
    """Exhaustive sweeps make thousands of runs: a fresh loop must cost next to nothing."""

    async def main() -> None:
        await asyncio.sleep(1)

    began = time.perf_counter()
    for _ in range(1000):
        run(main)
    assert time.perf_counter() - began < 5
