"""An opening or a closing that ends late must not touch the next one; errors of other pools are not this pool's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pool_core
import pytest
from pool_core import (
    ConnectError,
    ForkedPool,
    Pool,
    PoolClosed,
    PoolDeadlock,
    PoolOverloaded,
    PoolTimeout,
    WrongEventLoop,
)
from pool_core.testing import NEVER, OK, Delay, ScriptedManager, SwallowCancel

from .helpers import books, hold, turns, virtual

if TYPE_CHECKING:
    from collections.abc import Iterator


def quiet(_: BaseException) -> None:
    """An error sink for tests in which errors are expected."""


async def well(pool: Pool[Any], manager: ScriptedManager) -> None:
    """The pool stays open, serves, and closes in time."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(60)
    async with asyncio.timeout(5):
        await hold(pool)
    books(pool)
    start = loop.time()
    await pool.close(1)
    assert loop.time() - start <= 2
    assert pool.state().opening == pool.state().closing == 0
    manager.check(open=0)


# -- continuations that wake late


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("pause", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("connect", [OSError("down"), NEVER, Delay(5)], ids=repr)
@virtual
async def test_an_open_after_a_cancelled_one_and_a_close_succeeds(connect: Any, pause: int, wait: bool) -> None:
    """The cancelled opener woke during the next opening and cancelled that."""
    manager = ScriptedManager(connect=connect)
    pool = Pool(manager, min_idle=1, error_sink=quiet)
    opener = asyncio.create_task(pool.open())
    await asyncio.sleep(0.3)
    opener.cancel()
    await turns(pause)
    await pool.close()
    manager.script(connect=[])
    await pool.open(wait=wait)
    await turns(10)
    assert opener.cancelled()
    assert pool.state().idle == 1
    await well(pool, manager)


@pytest.mark.parametrize("pause", range(6))
@virtual
async def test_an_open_after_a_failed_one_and_a_close_succeeds(pause: int) -> None:
    """The failed opener has a close of its own to make, and it must be that of its own opening."""
    manager = ScriptedManager(connect=[Delay(0.3, OSError("wrong password"))], is_transient=False)
    pool = Pool(manager, min_idle=1, error_sink=quiet)
    opener = asyncio.create_task(pool.open())
    await asyncio.sleep(0.3)
    await turns(pause)
    await pool.close()
    await pool.open()
    await turns(10)
    with pytest.raises((OSError, PoolClosed)):
        await opener
    await well(pool, manager)


@pytest.mark.parametrize("pause", range(6))
@virtual
async def test_an_open_after_an_open_that_timed_out_succeeds(pause: int) -> None:
    """Its time limit belongs to the opening, not to the pool."""
    manager = ScriptedManager(connect=NEVER)
    pool = Pool(manager, min_idle=1, connection_timeout=2, error_sink=quiet)
    opener = asyncio.create_task(pool.open())
    await asyncio.sleep(2)
    await turns(pause)
    manager.script(connect=[])
    await pool.close()
    await pool.open()
    with pytest.raises((PoolTimeout, PoolClosed, OSError, TimeoutError)):
        await opener
    await well(pool, manager)


@virtual
async def test_the_time_limit_of_an_opening_ends_with_it() -> None:
    """A timer of the first opening must not end the second."""
    manager = ScriptedManager(connect=NEVER)
    pool = Pool(manager, min_idle=1, connection_timeout=3, error_sink=quiet)
    opener = asyncio.create_task(pool.open())
    await asyncio.sleep(2)
    await pool.close(0)
    manager.script(connect=[Delay(2)])
    start = asyncio.get_running_loop().time()
    await pool.open()
    assert asyncio.get_running_loop().time() - start == pytest.approx(2)
    with pytest.raises(PoolClosed):
        await opener
    await well(pool, manager)


@pytest.mark.parametrize("pause", range(4))
@pytest.mark.parametrize("victim", range(3))
@virtual
async def test_a_cancelled_opener_does_not_cancel_the_others(victim: int, pause: int) -> None:
    """Several tasks open the same pool; only one of them is cancelled."""
    manager = ScriptedManager(connect=Delay(1))
    pool = Pool(manager, min_idle=1)
    openers = [asyncio.create_task(pool.open()) for _ in range(3)]
    await asyncio.sleep(0.5)
    openers[victim].cancel()
    await turns(pause)
    openers.append(asyncio.create_task(pool.open()))
    ends = await asyncio.gather(*openers, return_exceptions=True)
    assert [isinstance(end, asyncio.CancelledError) for end in ends] == [number == victim for number in range(4)]
    assert [end for number, end in enumerate(ends) if number != victim] == [None] * 3
    await well(pool, manager)


@pytest.mark.parametrize("pause", range(4))
@virtual
async def test_all_openers_cancelled_then_closed_then_opened_again(pause: int) -> None:
    """Each of them wakes late."""
    manager = ScriptedManager(connect=OSError("down"))
    pool = Pool(manager, min_idle=1, error_sink=quiet)
    openers = [asyncio.create_task(pool.open()) for _ in range(3)]
    await asyncio.sleep(0.3)
    for opener in openers:
        opener.cancel()
    await turns(pause)
    manager.script(connect=[])
    await pool.close()
    await pool.open()
    await asyncio.gather(*openers, return_exceptions=True)
    assert all(opener.cancelled() for opener in openers)
    await well(pool, manager)


@pytest.mark.parametrize("pause", range(4))
@pytest.mark.parametrize("wait", [True, False])
@virtual
async def test_a_cancelled_close_does_not_close_the_pool_opened_after_it(wait: bool, pause: int) -> None:
    """Its continuation terminates what is left of its own closing, and nothing else."""
    manager = ScriptedManager(close=Delay(3))
    pool = Pool(manager, min_idle=2)
    await pool.open()
    closer = asyncio.create_task(pool.close())
    await asyncio.sleep(0.3)
    closer.cancel()
    await turns(pause)
    await pool.close(0)
    manager.script(close=[])
    await pool.open(wait=wait)
    await turns(10)
    assert closer.cancelled()
    assert pool.state().idle == 2
    await well(pool, manager)


@pytest.mark.parametrize("pause", range(4))
@virtual
async def test_a_cancelled_connect_that_ends_late_stays_out_of_the_next_opening(pause: int) -> None:
    """Its connection belongs to a pool that is no more, and is dropped."""
    manager = ScriptedManager(connect=[Delay(1)])
    pool = Pool(manager, min_idle=1)
    opener = asyncio.create_task(pool.open())
    await asyncio.sleep(1)
    await turns(pause)
    await pool.close(0)
    await pool.open()
    await asyncio.gather(opener, return_exceptions=True)
    assert pool.state().idle == 1
    assert pool.state().opening == 0
    await well(pool, manager)


# -- errors of other pools


OTHERS = {
    "PoolClosed": PoolClosed("pool 'inner' is closed"),
    "PoolOverloaded": PoolOverloaded("pool 'inner'"),
    "ConnectError": ConnectError("pool 'inner'"),
    "WrongEventLoop": WrongEventLoop("pool 'inner'"),
    "ForkedPool": ForkedPool("pool 'inner'"),
    "PoolTimeout": PoolTimeout("pool 'inner'", phase="queue", waited=77.0, state=Pool(ScriptedManager()).state()),
    "PoolDeadlock": PoolDeadlock("pool 'inner'", phase="queue", waited=77.0, state=Pool(ScriptedManager()).state()),
}
each_other = pytest.mark.parametrize("name", OTHERS)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


@each_other
@virtual
async def test_an_open_that_fails_by_another_pools_error_leaves_no_open_pool(name: str) -> None:
    """A PoolClosed of the inner pool was taken for one's own, and the outer pool stayed open."""
    manager = ScriptedManager(connect=OTHERS[name], is_transient=False)
    pool = Pool(manager, min_idle=1, error_sink=quiet)
    with pytest.raises(Exception) as caught:  # noqa: B017
        await pool.open()
    assert OTHERS[name] in chain(caught.value)
    await asyncio.sleep(5)
    with pytest.raises(PoolClosed, match="pool 'pool'"):
        await pool.get()
    manager.script(connect=[])
    await pool.open()
    await well(pool, manager)


@each_other
@virtual
async def test_an_open_that_keeps_failing_by_another_pools_error_ends_in_time(name: str) -> None:
    """Transient or not, connection_timeout is the limit, and the joiner hears the same."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(connect=OTHERS[name])
    pool = Pool(manager, min_idle=1, connection_timeout=2, error_sink=quiet)
    ends = await asyncio.gather(pool.open(), pool.open(), return_exceptions=True)
    assert loop.time() <= 3
    assert all(OTHERS[name] in chain(end) for end in ends)
    with pytest.raises(PoolClosed, match="pool 'pool'"):
        await pool.get()
    manager.script(connect=[])
    await pool.open()
    await well(pool, manager)


@each_other
@virtual
async def test_another_pools_error_is_but_the_cause_of_a_gets_timeout(name: str) -> None:
    """Else the caller believes that this pool is closed, full or standing still."""
    manager = ScriptedManager(connect=OTHERS[name])
    async with Pool(manager, error_sink=quiet) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(2)
        assert type(caught.value) is PoolTimeout
        assert caught.value is not OTHERS[name]
        assert caught.value.waited == pytest.approx(2)
        assert OTHERS[name] in chain(caught.value)
        books(pool)


@pytest.mark.parametrize("options", [{"retry_connection": False}, {}], ids=["no retry", "not transient"])
@each_other
@virtual
async def test_another_pools_error_is_but_the_cause_of_a_connect_error(name: str, options: dict[str, Any]) -> None:
    """The same where connecting is given up at once."""
    manager = ScriptedManager(connect=OTHERS[name], is_transient=False)
    async with Pool(manager, error_sink=quiet, **options) as pool:
        with pytest.raises(ConnectError) as caught:
            await pool.get(5)
        assert caught.value is not OTHERS[name]
        assert "pool 'pool'" in str(caught.value)
        assert OTHERS[name] in chain(caught.value.__cause__)
        books(pool)


# -- close after a cancelled close


@pytest.mark.parametrize("close_timeout", [5.0, 60.0, None])
@pytest.mark.parametrize("close", [NEVER, Delay(4)], ids=repr)
@pytest.mark.parametrize("lent", [True, False])
@virtual
async def test_a_close_0_after_a_cancelled_close_ends_within_1_s(
    lent: bool, close: Any, close_timeout: float | None
) -> None:
    """It took 5.1 s, or 60 s and more without close_timeout."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(close=close)
    pool = Pool(manager, max_size=3, min_idle=2, close_timeout=close_timeout, error_sink=quiet)
    await pool.open()
    lease = await pool.get() if lent else None
    closer = asyncio.create_task(pool.close(30))
    await asyncio.sleep(0.2)
    closer.cancel()
    await asyncio.wait({closer})
    start = loop.time()
    await pool.close(0)
    assert loop.time() - start <= 1.0
    with pytest.raises(PoolClosed):
        await pool.get()
    if lease is not None:
        lease.release()
    manager.check(open=0)
    books(pool)


@pytest.mark.parametrize("close_timeout", [5.0, None])
@pytest.mark.parametrize("close", [NEVER, Delay(4)], ids=repr)
@pytest.mark.parametrize("without", [[], ["terminate"]], ids=["terminate", "no terminate"])
@virtual
async def test_a_close_0_gives_up_what_a_cancelled_close_left_behind(
    without: list[str], close: Any, close_timeout: float | None
) -> None:
    """The second close took the timer of the first for its own, so a late connection was waited for without limit."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(without=without)
    pool = Pool(manager, max_size=2, close_timeout=close_timeout, error_sink=quiet)
    await pool.open()
    lease = await pool.get()
    manager.script(connect=SwallowCancel(1, OK), close=close)
    getting = asyncio.create_task(hold(pool))
    await turns()
    closer = asyncio.create_task(pool.close(30))
    await turns(1)
    closer.cancel()
    await turns(1)
    start = loop.time()
    async with asyncio.timeout(100):
        await pool.close(0)
    assert loop.time() - start <= 1.0
    lease.release()
    await asyncio.gather(closer, getting, return_exceptions=True)
    books(pool)


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.5])
@virtual
async def test_closing_at_once_while_another_close_waits_ends_within_1_s(gap: float) -> None:
    """The shorter time limit holds for both of them."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(close=NEVER)
    pool = Pool(manager, min_idle=2, close_timeout=None)
    await pool.open()
    closer = asyncio.create_task(pool.close(30))
    await asyncio.sleep(gap)
    start = loop.time()
    await pool.close(0)
    assert loop.time() - start <= 1.0
    with contextlib.suppress(asyncio.CancelledError):
        await closer
    assert loop.time() - start <= 1.0
    manager.check(open=0)
    books(pool)


# -- a loop that ends before its pool


PROGRAM = """
import asyncio
import contextlib
from pool_core import Pool, PoolClosed
from pool_core.testing import Delay, ScriptedManager

KIND = {kind!r}
manager = ScriptedManager()
pool = Pool(manager, max_size=2, alive_bypass=0, min_idle=1 if KIND == "connect in the background" else 0)


async def use():
    manager.script(connect=[], reset=[], close=[], is_valid=[])
    await pool.open(wait=False)
    async with pool.get():
        if KIND == "reset":
            manager.script(reset=Delay(5))
        if KIND == "close":
            manager.script(close=Delay(5))
    if KIND == "close":
        pool.evict()
    if KIND == "validation":
        manager.script(is_valid=Delay(5))
        await asyncio.sleep(0.05)
        getting = asyncio.ensure_future(use_one())
    if KIND == "connect":
        manager.script(connect=Delay(5))
        getting = [asyncio.ensure_future(use_one()) for _ in range(3)]
    if KIND == "connect in the background":
        manager.script(connect=Delay(5))
        pool.evict()
    await asyncio.sleep(0.01)


async def use_one():
    with contextlib.suppress(PoolClosed):
        async with pool.get():
            await asyncio.sleep(5)


async def finish():
    await use()
    await pool.close(0.1)


asyncio.run(use())
asyncio.run(use())
asyncio.run(finish())
print("done")
"""


IN_FLIGHT = ["reset", "connect", "connect in the background", "validation", "close"]


@pytest.mark.parametrize("kind", ["nothing", *IN_FLIGHT])
def test_a_pool_left_open_over_two_loops_prints_nothing(kind: str) -> None:
    """Its cancelled tasks began new ones in the dying loop, and asyncio wrote of destroyed tasks and closed loops."""
    source = os.path.dirname(os.path.dirname(pool_core.__file__))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", PROGRAM.format(kind=kind)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": source},
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "done\n"
    assert done.returncode == 0
