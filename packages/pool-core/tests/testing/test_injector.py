"""The injector finds planted bugs, each mode one that the others miss or find later."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import Any

import pytest
from pool_core.testing import CancelMode, Injector, acancel_everywhere, cancel_everywhere


class Toy:
    """A pool of tokens with direct hand-off; each flag plants one bug."""

    def __init__(self, *, lose_handed: bool = False, lose_queued: bool = False, awaiting_cleanup: bool = False) -> None:
        self.tokens = ["token"]
        self.waiters: deque[asyncio.Future[str]] = deque()
        self.lose_handed = lose_handed
        self.lose_queued = lose_queued
        self.awaiting_cleanup = awaiting_cleanup

    async def get(self) -> str:
        if self.tokens:
            return self.tokens.pop()
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not self.lose_handed:
                self.put(waiter.result())
            raise

    def put(self, token: str) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if self.lose_queued:
                if not waiter.cancelled():  # a dead waiter takes the token with it
                    waiter.set_result(token)
                return
            if not waiter.done():
                waiter.set_result(token)
                return
        self.tokens.append(token)

    async def use(self) -> None:
        token = await self.get()
        try:
            await asyncio.sleep(1)
        finally:
            if self.awaiting_cleanup and sys.exception():
                await asyncio.sleep(0)
            self.put(token)


def scenario(**bugs: bool) -> Any:
    async def run_it(inject: Injector) -> None:
        toy = Toy(**bugs)
        held = await toy.get()

        async def give_back() -> None:
            await asyncio.sleep(5)
            toy.put(held)

        giver = asyncio.create_task(give_back())
        await inject(toy.use())
        await giver
        async with asyncio.timeout(10):
            assert await toy.get() == "token"

    return run_it


def test_a_right_program_passes_every_mode_and_the_points_are_counted() -> None:
    """The count is the proof that something was tried: 0 would prove nothing."""
    # use() suspends twice: in get and in sleep; together with the point before its first step these are 3.
    assert cancel_everywhere(scenario(), modes=["single"]) == 3
    assert cancel_everywhere(scenario(), modes=["success"]) == 3
    assert cancel_everywhere(scenario()) > 15


def test_a_token_lost_in_the_tick_of_hand_off_is_found() -> None:
    """The bug that every home-made pool has had: the future was done, the task was cancelled, nobody put it back."""
    with pytest.raises(TimeoutError) as caught:
        cancel_everywhere(scenario(lose_handed=True), modes=["success"])
    assert caught.value.__notes__ == ["cancelled: point 1, mode 'success'"]
    with pytest.raises(TimeoutError):
        cancel_everywhere(scenario(lose_handed=True), modes=["turn"])
    cancel_everywhere(scenario(lose_handed=True), modes=["single"])


def test_a_token_handed_to_a_waiter_that_is_cancelled_and_has_not_run_yet_is_found() -> None:
    """Between the cancel and the task's next step the waiter looks alive to whoever does not ask its future."""
    with pytest.raises(TimeoutError):
        cancel_everywhere(scenario(lose_queued=True), modes=["turn"])


def test_cleanup_that_awaits_is_found_by_a_second_cancel() -> None:
    """One cancel is survived; the second one arrives in the finally."""
    for mode in ("double", "level"):
        with pytest.raises(TimeoutError):
            cancel_everywhere(scenario(awaiting_cleanup=True), modes=[mode])
    cancel_everywhere(scenario(awaiting_cleanup=True), modes=["single"])


def test_a_level_triggered_cancel_gets_past_a_child_that_swallows_the_first() -> None:
    """anyio cancels in every turn: whoever counts on one cancel only is interrupted where it did not expect it."""

    async def one(inject: Injector) -> None:
        async def stubborn() -> None:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                await asyncio.sleep(10)

        async def parent() -> None:
            await asyncio.create_task(stubborn())

        await inject(parent())
        if inject.hit and inject.point == 1:
            ends.append(asyncio.get_running_loop().time())

    ends: list[float] = []
    cancel_everywhere(one, modes=["level"])
    assert ends == [0.0]
    ends.clear()
    with pytest.raises(AssertionError, match="swallowed"):
        cancel_everywhere(one, modes=["single"])


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with Python 3.12")
def test_an_eager_task_factory_changes_nothing() -> None:
    """Point 0 is still before the first step."""

    async def one(inject: Injector) -> None:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 (3.11)
        await scenario()(inject)

    assert cancel_everywhere(one, modes=["single"]) == 3


def test_a_swallowed_cancel_is_found_unless_that_is_allowed() -> None:
    """Every cancel surfaces as CancelledError."""

    async def swallows(inject: Injector) -> None:
        async def stubborn() -> str:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                return "as if nothing had happened"
            return "done"

        await inject(stubborn())

    with pytest.raises(AssertionError, match="the cancel was swallowed: the coroutine returned 'as if nothing"):
        cancel_everywhere(swallows)
    assert cancel_everywhere(swallows, must_surface=False) > 5

    async def translates(inject: Injector) -> None:
        async def wrong() -> None:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                raise OSError("lost") from None

        outcome = await inject(wrong())
        assert outcome.cancelled or outcome.exception is None or str(outcome.exception) == "lost"

    with pytest.raises(AssertionError, match=r"the cancel was swallowed: the coroutine raised OSError\('lost'\)"):
        cancel_everywhere(translates)
    assert cancel_everywhere(translates, must_surface=False) > 5


def test_point_zero_is_before_the_first_step() -> None:
    """No line of the coroutine has run, no finally will: what was promised before must be taken back elsewhere."""
    began: list[int] = []

    async def one(inject: Injector) -> None:
        async def body() -> None:
            began.append(inject.point)
            await asyncio.sleep(0)

        outcome = await inject(body())
        assert outcome.hit == outcome.cancelled

    assert cancel_everywhere(one, modes=["single"]) == 2
    assert began == [1, 2]


def test_a_task_that_is_left_behind_by_a_cancel_fails_the_run() -> None:
    """Leftovers are looked for after every point, not only after the last."""

    async def leaky(inject: Injector) -> None:
        async def body() -> None:
            child = asyncio.create_task(asyncio.sleep(3600))
            await asyncio.sleep(1)
            child.cancel()
            await asyncio.wait({child})

        await inject(body())

    with pytest.raises(AssertionError, match="a task was left running") as caught:
        cancel_everywhere(leaky)
    assert "cancelled: point 1, mode 'single'" in caught.value.__notes__


@pytest.mark.parametrize("mode", ["single", "double", "level", "success", "turn"])
def test_the_result_is_there_when_the_point_was_not_reached(mode: CancelMode) -> None:
    """The last run of each sweep is the undisturbed one."""
    results: list[object] = []

    async def one(inject: Injector) -> None:
        async def body() -> str:
            await asyncio.sleep(0)
            return "done"

        outcome = await inject(body())
        if not outcome.hit:
            results.append(outcome.result)

    cancel_everywhere(one, modes=[mode])
    assert results == ["done"]


def test_any_awaitable_can_be_under_test() -> None:
    """pool.get() is an object that can be awaited, not a coroutine."""

    async def one(inject: Injector) -> None:
        future = asyncio.get_running_loop().create_future()

        def finish() -> None:
            if not future.done():
                future.set_result(7)

        timer = asyncio.get_running_loop().call_later(1, finish)
        outcome = await inject(future)
        timer.cancel()
        assert outcome.cancelled or outcome.result == 7

    assert cancel_everywhere(one) > 5


def test_a_scenario_that_never_ends_or_never_injects_is_named() -> None:
    """A sweep that cannot end, and one that tries nothing, are mistakes of the test."""

    async def endless(inject: Injector) -> None:
        async def body() -> None:
            while True:
                await asyncio.sleep(1)

        await inject(body())

    async def forgetful(inject: Injector) -> None:
        await asyncio.sleep(0)

    async def twice(inject: Injector) -> None:
        await inject(asyncio.sleep(0))
        await inject(asyncio.sleep(0))

    with pytest.raises(AssertionError, match="still not at its end after 50 points"):
        cancel_everywhere(endless, max_points=50)
    with pytest.raises(AssertionError, match="did not call its injector"):
        cancel_everywhere(forgetful)
    with pytest.raises(RuntimeError, match="inject\\(\\) was called twice"):
        cancel_everywhere(twice)
    with pytest.raises(ValueError, match="mode='sideways': allowed are single, double, level, success, turn"):
        cancel_everywhere(forgetful, modes=["sideways"])  # type: ignore[list-item]


def test_a_sweep_runs_on_a_real_loop_too() -> None:
    """Adapters are swept against real servers."""

    async def main() -> int:
        async def one(inject: Injector) -> None:
            toy = Toy()
            held = await toy.get()
            asyncio.get_running_loop().call_later(0.002, toy.put, held)
            outcome = await inject(toy.get())
            if not outcome.cancelled:
                toy.put(outcome.result)
            async with asyncio.timeout(1):
                assert await toy.get() == "token"

        return await acancel_everywhere(one)

    assert asyncio.run(main()) == 8

    async def turns() -> None:
        async def one(inject: Injector) -> None:
            await inject(asyncio.sleep(0))

        await acancel_everywhere(one, modes=["turn"])

    with pytest.raises(TypeError, match='mode "turn" needs a VirtualTimeLoop'):
        asyncio.run(turns())
