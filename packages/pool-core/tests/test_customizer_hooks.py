"""on_checkout before each borrower, on_reset after each reset; settings that would vanish are warned of."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool, PoolClosed, PoolError, PoolTimeout, PoolWarning
from pool_core.testing import Delay, ScriptedManager

from .helpers import books, closed, hold, turns, virtual

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Hooks:
    """A customizer of the hooks that the test gives."""

    def __init__(self, **hooks: Callable[[Any], Awaitable[None]]) -> None:
        self.__dict__.update(hooks)


class Counts:
    """A hook that counts, and then does what the test says."""

    def __init__(self, act: Callable[[], Any] | None = None) -> None:
        self.seen: list[int] = []
        self.act = act

    async def __call__(self, conn: Any) -> None:
        self.seen.append(conn.id)
        if self.act is not None:
            result = self.act()
            if asyncio.iscoroutine(result):
                await result


def failing(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


@virtual
async def test_on_checkout_runs_before_each_borrower_has_the_connection() -> None:
    """asyncpg's setup: for a block, an awaited lease and try_get, after the validation."""
    hook = Counts()
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, customizer=Hooks(on_checkout=hook)) as pool:
        await hold(pool)
        await hold(pool)
        (await pool.get()).release()
        lease = await pool.try_get()
        assert lease is not None
        lease.release()
        assert hook.seen == [1, 1, 1, 1]
        async with pool.get() as conn:
            assert conn is manager.connections[0]
            waiter = asyncio.create_task(hold(pool))
            await turns()
        await waiter
        assert len(hook.seen) == 6
        books(pool)


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("no")], ids=lambda error: type(error).__name__)
@virtual
async def test_what_on_checkout_raises_reaches_the_borrower(error: Exception) -> None:
    """The connection is closed; the next get has another one."""
    hook = Counts(failing(error))
    async with Pool(ScriptedManager(), max_size=1, customizer=Hooks(on_checkout=hook)) as pool:
        with pytest.raises(type(error)):
            await hold(pool)
        hook.act = None
        await hold(pool)
        closed(pool, discarded=1)
        books(pool)


@virtual
async def test_an_on_checkout_that_raises_cancelled_error_cancels_nobody() -> None:
    """The borrower is told by an error of the pool."""
    hook = Counts(failing(asyncio.CancelledError()))
    async with Pool(ScriptedManager(), max_size=1, customizer=Hooks(on_checkout=hook)) as pool:
        with pytest.raises(PoolError, match="on_checkout was cancelled"):
            await hold(pool)
        closed(pool, discarded=1)
        books(pool)


@virtual
async def test_on_checkout_counts_within_the_time_of_the_get() -> None:
    """One deadline for all of it; get(0) gives the hook the time of a validation."""
    loop = asyncio.get_running_loop()
    hook = Counts(lambda: asyncio.sleep(5))
    options: dict[str, Any] = {"customizer": Hooks(on_checkout=hook), "validation_timeout": 2, "alive_bypass": 100}
    async with Pool(ScriptedManager(connect=Delay(2)), max_size=1, connection_timeout=4, **options) as pool:
        for timeout, least in ((3, 3), (None, 4)):
            start = loop.time()
            with pytest.raises(PoolTimeout):
                await hold(pool, timeout=timeout)
            assert loop.time() - start == pytest.approx(least, abs=0.01)
        hook.act = None
        await hold(pool)
        hook.act = lambda: asyncio.sleep(5)
        start = loop.time()
        with pytest.raises(PoolTimeout):
            await hold(pool, timeout=0)
        assert loop.time() - start == pytest.approx(2, abs=0.01)
        await asyncio.sleep(1)
        assert pool.state().in_use == 0
        books(pool)


@virtual
async def test_without_a_limit_on_checkout_may_take_its_time() -> None:
    """inf means no limit."""
    hook = Counts(lambda: asyncio.sleep(500))
    async with Pool(ScriptedManager(), max_size=1, customizer=Hooks(on_checkout=hook)) as pool:
        await hold(pool, timeout=float("inf"))
        books(pool)


@virtual
async def test_a_get_cancelled_during_on_checkout_loses_no_slot() -> None:
    """Nobody knows what the hook has done, so the connection is closed."""
    hook = Counts(lambda: asyncio.sleep(5))
    async with Pool(ScriptedManager(), max_size=1, customizer=Hooks(on_checkout=hook)) as pool:
        task = asyncio.create_task(hold(pool))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        hook.act = None
        await hold(pool)
        closed(pool, discarded=1)
        books(pool)


@virtual
async def test_closing_during_on_checkout_fails_the_get() -> None:
    """And ends in time."""
    hook = Counts(lambda: asyncio.sleep(500))
    pool = Pool(ScriptedManager(), max_size=1, customizer=Hooks(on_checkout=hook))
    await pool.open()
    task = asyncio.create_task(hold(pool))
    await asyncio.sleep(1)
    await pool.close(1)
    with pytest.raises(PoolClosed):
        await task
    books(pool)


@virtual
async def test_on_reset_runs_after_each_reset_before_the_next_borrower() -> None:
    """What on_connect has set is gone by then."""
    hook = Counts(lambda: asyncio.sleep(0.1))
    manager = ScriptedManager(reset=Delay(0.1))
    async with Pool(manager, max_size=1, customizer=Hooks(on_reset=hook)) as pool:
        await hold(pool)
        start = asyncio.get_running_loop().time()
        await hold(pool)
        assert asyncio.get_running_loop().time() - start == pytest.approx(0.2)
        assert hook.seen == [1]
        await asyncio.sleep(1)
        assert hook.seen == [1, 1]
        books(pool)


@virtual
async def test_an_on_reset_that_fails_is_a_failed_reset() -> None:
    """Within reset_timeout."""
    for act in (failing(ValueError("no")), lambda: asyncio.sleep(100)):
        options: dict[str, Any] = {"customizer": Hooks(on_reset=Counts(act)), "error_sink": lambda _: None}
        async with Pool(ScriptedManager(reset=Delay(0.01)), max_size=1, reset_timeout=1, **options) as pool:
            await hold(pool)
            await asyncio.sleep(2)
            closed(pool, reset_failed=1)
            books(pool)


class Wipes(ScriptedManager):
    """As most adapters are."""

    reset_keeps_on_connect = False


@virtual
async def test_a_customizer_whose_settings_a_reset_takes_away_is_warned_of_once() -> None:
    """The first borrower had them, the second had not, and no word of it."""
    pool = Pool(Wipes(), name="orders", customizer=Hooks(on_connect=Counts()))
    with pytest.warns(PoolWarning, match="pool 'orders': the customizer has on_connect, but not on_reset") as seen:
        await pool.open()
    assert seen[0].filename == __file__
    await pool.close()
    await pool.open()
    await pool.close()


@virtual
async def test_no_warning_where_settings_last_or_are_set_again() -> None:
    """on_reset, no reset, or a manager that keeps them."""
    both = Hooks(on_connect=Counts(), on_reset=Counts())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for manager, customizer in (
            (Wipes(), both),
            (Wipes(), Hooks(on_close=Counts())),
            (Wipes(without=["reset"]), Hooks(on_connect=Counts())),
            (ScriptedManager(), Hooks(on_connect=Counts())),
        ):
            async with Pool(manager, customizer=customizer):
                pass


def test_a_customizer_without_any_hook_is_refused() -> None:
    """The text names all of them."""
    with pytest.raises(TypeError, match="on_connect, on_checkout, on_reset, on_close"):
        Pool(ScriptedManager(), customizer=object())


@virtual
async def test_a_timeout_that_no_clock_can_add_means_no_limit() -> None:
    """As inf does."""
    async with Pool(ScriptedManager(), max_size=1, idle_timeout=10**400, connection_timeout=1e300) as pool:
        assert pool.config.idle_timeout is None
        await hold(pool, timeout=10**400)
        async with pool.get():
            waiter = asyncio.create_task(hold(pool, timeout=10**400))
            await asyncio.sleep(1000)
            assert not waiter.done()
        await waiter
        with pytest.raises(ValueError, match="reap_interval=.*must be a finite number"):
            Pool(ScriptedManager(), reap_interval=10**400)


def test_a_get_in_on_checkout_dies_quietly_with_its_loop() -> None:
    """What is left of it is thrown away later, when nothing can be awaited any more."""

    def hangs() -> Any:
        return asyncio.sleep(1000)

    pool = Pool(ScriptedManager(), customizer=Hooks(on_checkout=Counts(hangs)))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.open())
    getting = loop.create_task(pool.get()._acquire())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    getting.get_coro().close()

    async def uses() -> None:
        await pool.open()
        await pool.close()

    asyncio.run(uses())
    assert pool.state().in_use == 0
