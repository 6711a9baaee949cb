"""Other people's code may raise anything, at any time, and call back into the pool: the books come first."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from pool_core import (
    BrokenConnection,
    ConnectError,
    Pool,
    PoolClosed,
    PoolDeadlock,
    PoolFull,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from pool_core.testing import NEVER, OK, Delay, FakeConnection, ScriptedManager, SwallowCancel, run

from .helpers import books, closed, hold, turns, virtual


class Mute(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise KeyError("no text")


class Odd(BaseException):
    """Neither an Exception nor a cancel."""


RAISED = [ValueError("bug"), Mute(), Odd("odd"), asyncio.CancelledError(), GeneratorExit()]


def raising(error: BaseException) -> Any:
    def hook(*_: object) -> None:
        raise error

    return hook


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@virtual
async def test_whatever_has_broken_raises_costs_the_connection_and_is_counted(error: BaseException) -> None:
    """At checkout and on return, on the warm path and off it; the block does not see it."""
    for observed in (False, True):
        listeners = [lambda _: None] if observed else []
        manager = ScriptedManager()
        async with Pool(manager, max_size=1, error_sink=lambda _: None, listeners=listeners) as pool:
            await hold(pool)
            async with pool.get():
                manager.script(has_broken=error)
            manager.script(has_broken=OK)
            await turns()
            await hold(pool)
            manager.script(has_broken=[error])
            await hold(pool)
            closed(pool, broken=2)
            assert pool.state().statistics.hook_errors == 2
            books(pool)


@virtual
async def test_an_answer_of_has_broken_without_truth_means_broken() -> None:
    """Some drivers compare arrays."""

    class NoTruth:
        def __bool__(self) -> bool:
            raise TypeError("no truth")

    class Manager(ScriptedManager):
        odd = False

        def has_broken(self, conn: Any, /) -> Any:
            return NoTruth() if self.odd else super().has_broken(conn)

    manager = Manager()
    async with Pool(manager, max_size=1, error_sink=lambda _: None) as pool:
        await hold(pool)
        async with pool.get():
            manager.odd = True
        manager.odd = False
        await hold(pool)
        closed(pool, broken=1)
        books(pool)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@virtual
async def test_whatever_a_listener_or_a_sink_raises_is_counted(error: BaseException) -> None:
    """Nobody who listens can break the pool."""
    manager = ScriptedManager(close=OSError("gone"))
    async with Pool(manager, max_size=1, listeners=[raising(error)], error_sink=raising(error)) as pool:
        await hold(pool)
        pool.evict()
        await turns()
        closed(pool, evicted=1)
        assert pool.state().statistics.hook_errors > 0
        books(pool)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@virtual
async def test_whatever_a_method_of_the_manager_raises_frees_the_slot(error: BaseException) -> None:
    """Also where its text cannot be had."""
    for method in ("connect", "is_valid", "reset", "close"):
        scripts: dict[str, Any] = {method: [error, OK]}
        manager = ScriptedManager(**scripts)
        async with Pool(manager, max_size=1, alive_bypass=0, error_sink=None) as pool:
            for _ in range(3):
                await hold(pool, timeout=5)
                await asyncio.sleep(0.01)
            pool.evict()
            await asyncio.sleep(1)
            state = pool.state()
            assert (state.idle, state.in_use, state.closing) == (0, 0, 0)
            books(pool)


@pytest.mark.parametrize("error", [*RAISED, KeyboardInterrupt(), SystemExit()], ids=lambda error: type(error).__name__)
@virtual
async def test_a_synchronous_reset_that_raises_closes_the_connection(error: BaseException) -> None:
    """KeyboardInterrupt and SystemExit are raised again, when the books are right."""

    class Manager(ScriptedManager):
        def reset(self, conn: Any, /) -> Any:
            raise error

    async with Pool(Manager(), max_size=1, error_sink=lambda _: None) as pool:
        for _ in range(2):
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                with pytest.raises(type(error)):
                    await hold(pool)
            else:
                await hold(pool)
            books(pool)
        closed(pool, reset_failed=2)


@virtual
async def test_a_warm_return_whose_reset_raises_closes_the_connection() -> None:
    """The warm path calls reset by itself."""

    class Manager(ScriptedManager):
        fails = False

        def reset(self, conn: Any, /) -> Any:
            if self.fails:
                raise ValueError("bug")

    manager = Manager()
    errors: list[BaseException] = []
    async with Pool(manager, max_size=1, error_sink=errors.append) as pool:
        await hold(pool)
        assert not pool._state.slow
        manager.fails = True
        await hold(pool)
        closed(pool, reset_failed=1)
        assert len(errors) == 1
        books(pool)


@pytest.mark.parametrize("where", ["listener", "sink", "has_broken"])
@virtual
async def test_ctrl_c_in_a_hook_is_raised_again_when_the_books_are_right(where: str) -> None:
    """The program must end, and what it closes on its way must be there."""

    def listener(event: object) -> None:
        if where == "listener" and type(event).__name__ == "CheckedIn":
            raise KeyboardInterrupt

    stop = raising(KeyboardInterrupt())
    manager = ScriptedManager()
    sink = stop if where == "sink" else lambda _: None
    async with Pool(manager, max_size=1, listeners=[listener], error_sink=sink) as pool:
        lease = pool.get()
        await lease.__aenter__()
        if where != "listener":
            manager.script(has_broken=KeyboardInterrupt() if where == "has_broken" else ValueError("bug"))
        with pytest.raises(KeyboardInterrupt):
            await lease.__aexit__(None, None, None)
        manager.script(has_broken=OK)
        assert pool.state().in_use == 0
        books(pool)


@virtual
async def test_hooks_may_call_back_into_the_pool() -> None:
    """They find it at rest, and what they cause is told in order."""
    told: list[str] = []
    pool: Pool[Any]

    def listener(event: object) -> None:
        told.append(type(event).__name__)
        if type(event).__name__ == "CheckedIn":
            pool.evict()
            pool.resize(max_size=2)
            pool.state()

    manager = ScriptedManager()
    pool = Pool(manager, max_size=3, min_idle=1, listeners=[listener], error_sink=lambda _: pool.evict())
    async with pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(3)))
        manager.script(has_broken=[ValueError("bug"), OK])
        await hold(pool)
        await asyncio.sleep(1)
        assert "Closed" in told
        books(pool)


@virtual
async def test_a_deaf_dedicated_connect_is_abandoned_once() -> None:
    """Its caller has its timeout."""
    manager = ScriptedManager(connect=SwallowCancel(9, OK))
    async with Pool(manager, create_timeout=1) as pool:
        with pytest.raises(PoolTimeout):
            await pool.dedicated_connection()
        assert pool.state().statistics.connections_abandoned == 1
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        for _ in range(10):
            task.cancel()
            await turns(2)


@virtual
async def test_an_open_without_waiting_returns_while_another_one_waits() -> None:
    """As on an open pool."""
    pool = Pool(ScriptedManager(connect=Delay(1)), min_idle=1)
    opening = asyncio.create_task(pool.open())
    await turns()
    start = asyncio.get_running_loop().time()
    await pool.open(wait=False)
    assert asyncio.get_running_loop().time() == start
    await opening
    await pool.close()


@virtual
async def test_cancelled_gets_with_a_timeout_of_their_own_are_forgotten() -> None:
    """A service that cancels must not collect their deadlines."""
    async with Pool(ScriptedManager(), max_size=1) as pool, pool.get():
        for _ in range(100):
            task = asyncio.create_task(hold(pool, timeout=1000))
            await turns(1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        last = asyncio.create_task(hold(pool, timeout=1))
        await asyncio.gather(last, return_exceptions=True)
        assert isinstance(last.exception(), PoolTimeout)
        assert len(pool._state.queue._given) <= 40
        books(pool)


def test_a_block_thrown_away_after_its_loop_terminates_its_connection() -> None:
    """Nothing can be awaited any more."""
    manager = ScriptedManager()
    pool = Pool(manager, max_size=1)
    loop = asyncio.new_event_loop()

    async def block() -> None:
        async with pool.get():
            await asyncio.get_running_loop().create_future()

    async def begin() -> asyncio.Task[None]:
        await pool.open()
        task = asyncio.ensure_future(block())
        await turns()
        return task

    task = loop.run_until_complete(begin())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    coro: Any = task.get_coro()
    coro.close()
    assert [conn.state for conn in manager.connections] == ["terminated"]
    closed(pool, leaked=1)
    run(pool.close)


@virtual
async def test_a_connection_that_is_in_the_pool_cannot_be_added_again() -> None:
    """Two owners would use it at once."""
    async with Pool(ScriptedManager(), max_size=3) as pool:
        conn = FakeConnection(100)
        pool.add(conn)
        with pytest.raises(ValueError, match="in the pool already"):
            pool.add(conn)
        books(pool)


@virtual
async def test_an_async_predicate_of_evict_is_refused() -> None:
    """Its coroutine would be true of every connection."""

    async def predicate(_: object) -> bool:
        return False

    async with Pool(ScriptedManager(), min_idle=1) as pool:
        with pytest.raises(TypeError, match="predicate=.*must be an ordinary function"):
            pool.evict(predicate)  # type: ignore[arg-type]
        assert pool.state().idle == 1


@virtual
async def test_pools_and_leases_refuse_to_be_copied_or_pickled() -> None:
    """A copy's finalizer would close the original."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        for thing in (pool, lease):
            for copier in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied or pickled"):
                    copier(thing)
        lease.release()
        await hold(pool)
        books(pool)


@virtual
async def test_every_error_survives_pickle_and_copy_with_its_attributes() -> None:
    """A ProcessPoolExecutor breaks on one that does not."""
    async with Pool(ScriptedManager(connect=NEVER), max_size=1) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(timeout=1)
    errors: list[Any] = [
        caught.value,
        PoolDeadlock("stuck", phase="queue", waited=1.5, state=caught.value.state),
        *(kind("text") for kind in (PoolClosed, PoolOverloaded, ConnectError)),
        *(kind("text", "conn") for kind in (PoolFull, BrokenConnection)),
    ]
    for error in errors:
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
        assert isinstance(error, PoolUnavailable) == (not hasattr(error, "connection"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("min_size", "min_idle"),
        ("maxsize", "max_size"),
        ("timeout", "connection_timeout"),
        ("pool_recycle", "max_lifetime"),
        ("max_sise", "max_size"),
        ("xyzzy", "the options are max_size, min_idle"),
    ],
)
def test_an_option_of_another_pool_is_refused_with_the_right_name(name: str, meant: str) -> None:
    """It must not be a riddle from inside of the pool."""
    with pytest.raises(TypeError, match=f"^{name}: the pool has no such option; .*{meant}"):
        Pool(ScriptedManager(), **{name: 3})  # type: ignore[arg-type]


@virtual
async def test_max_waiting_never_refuses_a_lone_sequential_caller() -> None:
    """Its own connection is only being reset."""
    for seconds in (0.01, 0.5):
        async with Pool(ScriptedManager(reset=Delay(seconds)), max_size=1, max_waiting=0) as pool:
            for _ in range(5):
                await hold(pool)
            books(pool)
