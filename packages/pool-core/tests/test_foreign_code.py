# mypy: disable-error-code="attr-defined,misc,no-any-return,arg-type,unused-ignore"
"""Code of other people inside the pool: whatever it raises, and whatever it calls, the pool keeps its promises."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import BrokenConnection, Pool, PoolClosed, PoolError, PoolTimeout
from pool_core.testing import Delay, ScriptedCustomizer, ScriptedManager

from .helpers import books, closed, hold, interruptions, turns
from .helpers import virtual as on_virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

EVENTS = ("Connected", "CheckedOut", "CheckedIn", "Closed", "TimedOut", "ConnectFailed", "ResetFailed", "Leaked")


class CustomBaseError(BaseException):
    """Neither an Exception nor one of Python's own: gevent.Timeout and pytest's outcomes are such."""


class TextlessError(Exception):
    """An exception that has no text while a test runs; pytest must be able to print it afterwards."""

    mute = False

    def __str__(self) -> str:
        if TextlessError.mute:
            raise RuntimeError("no text")
        return "no text"


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on virtual time, and make texts fail meanwhile."""
    runner = on_virtual_time(test)

    def muted(*args: Any, **kwargs: Any) -> None:
        TextlessError.mute = True
        try:
            runner(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit, GeneratorExit) as error:  # these would end pytest
            raise AssertionError(f"{type(error).__name__} left the test") from error
        finally:
            TextlessError.mute = False
            gc.collect()  # what a pool's finalizer says belongs to this test

    functools.update_wrapper(muted, runner)
    vars(muted).pop("__wrapped__")
    muted.__signature__ = inspect.signature(runner)  # type: ignore[attr-defined]
    return muted


class Undecided:
    """A value that is neither true nor false, as an array of numpy."""

    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


# Pools that a failing test leaves behind must not fail the next test.
pytestmark = pytest.mark.filterwarnings("ignore:.*was dropped while open:ResourceWarning")

ERRORS: tuple[type[BaseException], ...] = (
    OSError,
    asyncio.CancelledError,
    GeneratorExit,
    CustomBaseError,
    TextlessError,
)
each_error = pytest.mark.parametrize("kind", ERRORS)
each_exit = pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])


def quiet(_: object) -> None:
    """An error sink or a listener that does nothing."""


class ResetInline(ScriptedManager):
    """A manager whose reset is an ordinary function; it raises ``fault`` once."""

    fault: BaseException | None = None

    def reset(self, conn: Any, /) -> None:
        """Raise the fault, if there is one."""
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault


@contextlib.asynccontextmanager
async def opened(manager: ScriptedManager, **options: Any) -> AsyncIterator[Pool[Any]]:
    """A pool of one; after the block it must still serve, add up, keep deadlines and close in time."""
    loop = asyncio.get_running_loop()
    options = {"max_size": 1, "connection_timeout": 3.0, "close_timeout": 1.0} | options
    pool = Pool(manager, **options)
    await pool.open()
    try:
        yield pool
    except BaseException:
        with contextlib.suppress(BaseException):  # a failing test must not disturb the next one
            await pool.close(0)
        raise
    await asyncio.sleep(5)
    books(pool)
    assert pool.state().in_use == pool.state().opening == pool.state().closing == 0
    async with asyncio.timeout(10), pool.get():  # the place is free again
        start = loop.time()
        with pytest.raises(PoolTimeout):
            for _ in range(options["max_size"]):
                await pool.get(0.5)
        assert loop.time() - start == pytest.approx(0.5)
    start = loop.time()
    async with asyncio.timeout(30):
        await pool.close(1)
    assert loop.time() - start <= 2
    ends = Counter(call.connection for call in manager.log if call.verb == "close")
    assert all(count == 1 for count in ends.values())
    drops = Counter(call.connection for call in manager.log if call.verb == "terminate")
    assert all(count == 1 for count in drops.values())
    assert {conn.id for conn in manager.connections} == {*ends, *drops}
    manager.check()
    books(pool)


# -- has_broken, on every way out and back


WAYS = {
    "warm": {},
    "observed": {"listeners": [quiet]},
    "guarded": {"guard": True},
}
each_way = pytest.mark.parametrize("way", WAYS)
each_verdict = pytest.mark.parametrize("kind", (*ERRORS, Undecided))


def verdict(kind: type[Any]) -> object:
    """What has_broken raises or returns."""
    return kind() if kind is Undecided else kind("has_broken failed")


def in_turn(*outcomes: object) -> Callable[[object], object]:
    """Script these outcomes, then False."""
    left = list(outcomes)
    return lambda _: left.pop(0) if left else False


@each_way
@each_verdict
@virtual
async def test_has_broken_that_raises_once_on_get_costs_the_connection(kind: type[Any], way: str) -> None:
    """Raising means broken, even if the next call says otherwise, and it is counted once."""
    manager = ScriptedManager()
    async with opened(manager, **WAYS[way]) as pool:
        await hold(pool)
        manager.script(has_broken=in_turn(verdict(kind)))
        await hold(pool)
        closed(pool, broken=1)
        assert pool.state().statistics.hook_errors == 1


@each_way
@each_verdict
@virtual
async def test_has_broken_that_raises_once_on_return_costs_the_connection(kind: type[Any], way: str) -> None:
    """The warm way back counted neither, and a CancelledError left the block though nobody had cancelled."""
    manager = ScriptedManager()
    async with opened(manager, **WAYS[way]) as pool:
        async with pool.get():
            manager.script(has_broken=in_turn(verdict(kind)))
        closed(pool, broken=1)
        assert pool.state().statistics.hook_errors == 1


@each_verdict
@virtual
async def test_has_broken_that_raises_on_hand_off_leaves_the_waiter_unhurt(kind: type[Any]) -> None:
    """The waiter gets a new connection."""
    manager = ScriptedManager()
    async with opened(manager) as pool:
        async with pool.get() as conn:
            waiter = asyncio.create_task(hold(pool))
            await turns()
            manager.script(has_broken=in_turn(verdict(kind)))
        assert await waiter is not conn
        closed(pool, broken=1)
        assert pool.state().statistics.hook_errors == 1


@each_verdict
@virtual
async def test_has_broken_that_raises_on_release_frees_the_capacity(kind: type[Any]) -> None:
    """An awaited lease goes back another way than a block."""
    manager = ScriptedManager()
    async with opened(manager) as pool:
        lease = await pool.get()
        manager.script(has_broken=in_turn(verdict(kind)))
        lease.release()
        closed(pool, broken=1)
        assert pool.state().statistics.hook_errors == 1


@each_verdict
@virtual
async def test_has_broken_that_raises_after_an_error_keeps_that_error(kind: type[Any]) -> None:
    """The borrower's own exception is the one to be seen."""
    manager = ScriptedManager()
    async with opened(manager) as pool:
        with pytest.raises(KeyError, match="mine"):
            async with pool.get():
                manager.script(has_broken=in_turn(verdict(kind)))
                raise KeyError("mine")
        closed(pool, broken=1)


@each_verdict
@virtual
async def test_has_broken_that_raises_after_a_reset_costs_the_connection(kind: type[Any]) -> None:
    """The connection is asked once more when its reset has ended."""
    manager = ScriptedManager(reset=Delay(0.1))
    async with opened(manager) as pool:
        async with pool.get():
            pass
        manager.script(has_broken=lambda _: verdict(kind))
        await asyncio.sleep(1)
        waiter = asyncio.create_task(hold(pool))
        await turns(20)
        manager.script(has_broken=False)
        await waiter
        assert pool.state().statistics.hook_errors >= 1


@each_verdict
@virtual
async def test_has_broken_that_raises_in_add_refuses_the_connection(kind: type[Any]) -> None:
    """The caller still owns it, and gets it back with the error."""
    manager = ScriptedManager()
    async with opened(manager) as pool:
        conn = await manager.connect()
        manager.script(has_broken=in_turn(verdict(kind)))
        with pytest.raises(BrokenConnection) as caught:
            pool.add(conn)
        assert caught.value.connection is conn
        await manager.close(conn)


@each_verdict
@virtual
async def test_has_broken_that_always_raises_lets_a_get_time_out(kind: type[Any]) -> None:
    """The deadline holds even though no connection will do."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(has_broken=lambda _: verdict(kind))
    async with opened(manager, error_sink=quiet) as pool:
        start = loop.time()
        with contextlib.suppress(PoolTimeout):
            await hold(pool, timeout=2)
        assert loop.time() - start <= 2.1
        manager.script(has_broken=False)


# -- the manager's other methods


@each_error
@virtual
async def test_a_synchronous_reset_that_raises_costs_only_the_connection(kind: type[BaseException]) -> None:
    """The block has done its work: its end raises nothing."""
    manager = ResetInline()
    async with opened(manager) as pool:
        async with pool.get():
            manager.fault = kind("reset failed")
        closed(pool, reset_failed=1)


@each_error
@virtual
async def test_a_synchronous_reset_that_raises_lets_the_waiter_reconnect(kind: type[BaseException]) -> None:
    """A waiter makes the way back another one."""
    manager = ResetInline()
    async with opened(manager) as pool:
        async with pool.get() as conn:
            waiter = asyncio.create_task(hold(pool))
            await turns()
            manager.fault = kind("reset failed")
        assert await waiter is not conn
        closed(pool, reset_failed=1)


@each_error
@virtual
async def test_an_asynchronous_reset_that_raises_costs_only_the_connection(kind: type[BaseException]) -> None:
    """It runs in a task of the pool's own, so a waiter must hear of its end."""
    manager = ScriptedManager()
    async with opened(manager) as pool:
        async with pool.get() as conn:
            waiter = asyncio.create_task(hold(pool))
            await turns()
            manager.script(reset=[kind("reset failed")])
        assert await waiter is not conn
        closed(pool, reset_failed=1)


@each_error
@virtual
async def test_an_is_valid_that_raises_costs_only_the_connection(kind: type[BaseException]) -> None:
    """The get that wanted it receives another one, within its deadline."""
    manager = ScriptedManager(is_valid=[kind("is_valid failed")])
    async with opened(manager, alive_bypass=0) as pool:
        conn = await hold(pool)
        await asyncio.sleep(10)
        assert await hold(pool) is not conn
        closed(pool, invalid=1)


@each_error
@virtual
async def test_an_is_valid_that_always_raises_keeps_a_gets_deadline(kind: type[BaseException]) -> None:
    """With a text that cannot be made, the get outlived its deadline."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager()
    async with opened(manager, alive_bypass=0) as pool:
        await hold(pool)
        await asyncio.sleep(10)
        manager.script(is_valid=lambda _: Delay(0.1, kind("is_valid failed")), connect=lambda _: kind("connect failed"))
        start = loop.time()
        with pytest.raises(PoolTimeout):
            await pool.get(2)
        assert loop.time() - start == pytest.approx(2)
        manager.script(connect=[], is_valid=[])


@each_error
@virtual
async def test_a_close_that_raises_frees_the_capacity(kind: type[BaseException]) -> None:
    """The connection counts as gone, and terminate drops what close has left."""
    manager = ScriptedManager(close=[kind("close failed")])
    async with opened(manager) as pool:
        (await pool.get()).discard()
        await hold(pool, timeout=1)
        closed(pool, discarded=1)
        assert len(manager.calls("terminate")) == 1


@each_error
@virtual
async def test_a_close_that_always_raises_does_not_hold_up_the_pools_close(kind: type[BaseException]) -> None:
    """Idle, in use and being reset: close(1) gets rid of them within 2 s."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(close=lambda _: kind("close failed"))
    pool = Pool(manager, max_size=3)
    await pool.open()
    lease, other = await pool.get(), await pool.get()
    other.release()
    start = loop.time()
    async with asyncio.timeout(30):
        await pool.close(1)
    assert loop.time() - start <= 2
    lease.release()
    manager.check(open=0)
    books(pool)


@each_error
@virtual
async def test_a_terminate_that_raises_frees_the_capacity(kind: type[BaseException]) -> None:
    """Nothing more can be done, so it is counted."""
    manager = ScriptedManager(close=[OSError("close failed")], terminate=[kind("terminate failed")])
    async with opened(manager) as pool:
        (await pool.get()).discard()
        await hold(pool, timeout=1)
        closed(pool, discarded=1)
        assert pool.state().statistics.hook_errors == 1


@each_error
@virtual
async def test_a_terminate_that_always_raises_lets_the_pool_close(kind: type[BaseException]) -> None:
    """close(0) terminates what is in use."""
    loop = asyncio.get_running_loop()
    pool = Pool(ScriptedManager(terminate=lambda _: kind("terminate failed")), max_size=2)
    await pool.open()
    leases = [await pool.get(), await pool.get()]
    async with asyncio.timeout(30):
        await pool.close(0)
    assert loop.time() <= 1
    for lease in leases:
        lease.release()
    assert pool.state().statistics.hook_errors == 2
    books(pool)


@each_error
@virtual
async def test_an_is_transient_that_raises_means_another_attempt(kind: type[BaseException]) -> None:
    """Its error is counted, and the get is served by the next attempt."""
    manager = ScriptedManager(connect=[OSError("down")], is_transient=[kind("is_transient failed")])
    async with opened(manager) as pool:
        await hold(pool)
        assert pool.state().statistics.hook_errors == 1


@virtual
async def test_an_is_transient_without_a_truth_value_means_another_attempt() -> None:
    """The guard must stand around the use of the result, too."""
    manager = ScriptedManager(connect=[OSError("down")], is_transient=[Undecided()])
    async with opened(manager) as pool:
        await hold(pool)
        assert pool.state().statistics.hook_errors == 1


@each_error
@virtual
async def test_a_connect_that_raises_once_is_repeated(kind: type[BaseException]) -> None:
    """Whatever it raises, it is a failed attempt."""
    manager = ScriptedManager(connect=[kind("connect failed")])
    async with opened(manager) as pool:
        await hold(pool)
        assert pool.state().statistics.connects_failed == 1


@each_error
@virtual
async def test_a_connect_that_always_raises_lets_a_get_time_out(kind: type[BaseException]) -> None:
    """The text of somebody else's error stood between the get and its deadline."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(connect=lambda _: kind("connect failed"))
    async with opened(manager) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.get(2)
        assert loop.time() == pytest.approx(2)
        assert isinstance(str(caught.value), str)
        assert caught.value.__cause__ is not None
        manager.script(connect=[])


@each_error
@virtual
async def test_a_connect_that_always_raises_lets_open_fail_and_succeed_later(kind: type[BaseException]) -> None:
    """A failed open leaves nothing behind, not even a pool that is closing."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager(connect=lambda _: kind("connect failed"))
    pool = Pool(manager, min_idle=1, connection_timeout=2)
    with pytest.raises(BaseException):  # noqa: B017
        async with asyncio.timeout(30):
            await pool.open()
    assert loop.time() <= 3
    with pytest.raises(PoolClosed):
        await pool.get()
    manager.script(connect=[])
    await pool.open()
    await hold(pool)
    await pool.close(1)
    manager.check(open=0)
    books(pool)


# -- the customizer, the listeners and the sink


@each_error
@virtual
async def test_an_on_connect_that_raises_is_a_failed_attempt(kind: type[BaseException]) -> None:
    """The connection that was made is closed, and the get is served by the next one."""
    manager = ScriptedManager()
    async with opened(manager, customizer=ScriptedCustomizer(on_connect=[kind("on_connect failed")])) as pool:
        conn = await hold(pool)
        assert conn.id == 2
        assert pool.state().statistics.connects_failed == 1


@each_error
@virtual
async def test_an_on_connect_that_always_raises_lets_a_get_time_out(kind: type[BaseException]) -> None:
    """And no connection stays open behind it."""
    loop = asyncio.get_running_loop()
    manager = ScriptedManager()
    failing = [True]
    customizer = ScriptedCustomizer(on_connect=lambda _: kind("on_connect failed") if failing[0] else None)
    async with opened(manager, customizer=customizer) as pool:
        with pytest.raises(PoolTimeout):
            await pool.get(2)
        assert loop.time() == pytest.approx(2)
        failing[0] = False


@each_error
@virtual
async def test_an_on_close_that_raises_does_not_prevent_the_close(kind: type[BaseException]) -> None:
    """It is counted, and the manager closes the connection all the same."""
    manager = ScriptedManager()
    async with opened(manager, customizer=ScriptedCustomizer(on_close=[kind("on_close failed")])) as pool:
        (await pool.get()).discard()
        await hold(pool, timeout=1)
        assert manager.connections[0].state in ("closed", "terminated")
        closed(pool, discarded=1)
        assert pool.state().statistics.hook_errors == 1


async def make_all_events(pool: Pool[Any], manager: ResetInline) -> None:
    """Let a pool of one with leak_threshold=2 and reap_interval=1 emit every kind of event."""
    manager.script(connect=[OSError("down")])
    await hold(pool, 4)
    manager.fault = OSError("reset failed")
    await hold(pool)
    async with pool.get():
        with pytest.raises(PoolTimeout):
            await pool.get(0.5)


@pytest.mark.parametrize("event", EVENTS)
@each_error
@virtual
async def test_a_listener_that_raises_is_counted_and_breaks_nothing(kind: type[BaseException], event: str) -> None:
    """Each event is emitted at another place."""
    manager = ResetInline()
    heard: Counter[str] = Counter()

    def listener(happened: object) -> None:
        name = type(happened).__name__
        heard[name] += 1
        if name == event:
            raise kind("listener failed")

    options: dict[str, Any] = {"listeners": [listener, quiet], "leak_threshold": 2.0, "reap_interval": 1.0}
    async with opened(manager, **options) as pool:
        async with asyncio.timeout(20):
            await make_all_events(pool, manager)
        assert set(EVENTS) <= set(heard) | {"Closed"}
        await asyncio.sleep(3)
        assert pool.state().statistics.hook_errors == heard[event] > 0


@each_error
@virtual
async def test_an_error_sink_that_raises_is_counted_and_breaks_nothing(kind: type[BaseException]) -> None:
    """Each report comes from another place."""
    manager = ResetInline(close=[OSError("close failed")], is_valid=[OSError("is_valid failed")])
    told = []

    def sink(error: BaseException) -> None:
        told.append(error)
        raise kind("sink failed")

    async with opened(manager, error_sink=sink, leak_threshold=2.0, reap_interval=1.0, alive_bypass=0) as pool:
        async with asyncio.timeout(20):
            await make_all_events(pool, manager)
            await asyncio.sleep(1)
            manager.script(has_broken=in_turn(OSError("has_broken failed")))
            await hold(pool)
        await asyncio.sleep(3)
        assert len(told) >= 5
        assert pool.state().statistics.hook_errors >= len(told)


# -- KeyboardInterrupt and SystemExit are raised again, when the pool's work is done


@each_exit
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["get", "return"])
@virtual
async def test_an_exit_from_has_broken_is_raised_after_the_bookkeeping(
    kind: type[BaseException], way: str, when: str
) -> None:
    """Ctrl-C may arrive there; the program that catches it goes on with a whole pool."""
    manager = ScriptedManager()
    async with opened(manager, **WAYS[way]) as pool:
        await hold(pool)
        if when == "get":
            manager.script(has_broken=in_turn(kind()))
        with pytest.raises(kind):
            async with pool.get():
                manager.script(has_broken=in_turn(kind()))
        books(pool)
        assert pool.state().in_use == 0
        closed(pool, broken=1)


@each_exit
@virtual
async def test_an_exit_from_a_synchronous_reset_is_raised_after_the_bookkeeping(kind: type[BaseException]) -> None:
    """The connection is of unknown state, so it goes."""
    manager = ResetInline()
    async with opened(manager) as pool:
        with pytest.raises(kind):
            async with pool.get():
                manager.fault = kind()
        books(pool)
        assert pool.state().in_use == 0
        closed(pool, reset_failed=1)


@each_exit
@pytest.mark.parametrize("event", [event for event in EVENTS if event != "Leaked"])
def test_an_exit_from_a_listener_is_raised_after_the_bookkeeping(kind: type[BaseException], event: str) -> None:
    """Out of the loop or out of the call that made the event; the pool is whole in either case."""
    manager = ResetInline()
    once = [kind()]
    caught = []

    def listener(happened: object) -> None:
        if once and type(happened).__name__ == event:
            raise once.pop()

    async def main() -> None:
        async with opened(manager, listeners=[listener], error_sink=quiet) as pool:
            try:
                manager.script(connect=[OSError("down")])
                manager.fault = OSError("reset failed")
                await hold(pool)
                async with pool.get():
                    with pytest.raises(PoolTimeout):
                        await pool.get(0.5)
            except kind as error:
                caught.append(error)
            books(pool)
            (await pool.get()).discard()

    assert interruptions(main, kind) + len(caught) == 1
    assert not once


@each_exit
@pytest.mark.parametrize("hook", ["is_transient", "terminate", "error_sink"])
def test_an_exit_from_a_hook_in_the_background_leaves_a_whole_pool(kind: type[BaseException], hook: str) -> None:
    """No caller is there: the exception leaves the loop, and who runs the loop again finds a working pool."""
    manager = ScriptedManager(connect=[OSError("down")], close=[OSError("close failed")])
    once = [kind()]

    def fail(_: object) -> None:
        if once:
            raise once.pop()

    async def main() -> None:
        if hook != "error_sink":
            manager.script(**{hook: [once.pop()]})
        async with opened(manager, error_sink=fail) as pool:
            with contextlib.suppress(kind):
                (await hold_lease(pool)).discard()
            books(pool)
            await hold(pool)

    assert interruptions(main, kind) <= 1


async def hold_lease(pool: Pool[Any]) -> Any:
    """Await a lease."""
    return await pool.get()


# -- hooks that call back into the pool


class Meddler:
    """Does one thing to the pool from inside a hook, and never inside itself."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.pool: Pool[Any] | None = None
        self.spare: list[Any] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.count = 0
        self.refused: list[BaseException] = []
        self._busy = False

    def __call__(self, _: object = None) -> None:
        pool = self.pool
        if pool is None or self._busy or self.count >= 30:
            return
        self._busy = True
        self.count += 1
        try:
            getattr(self, self.what)(pool)
        except PoolError as error:  # the pool is closing
            self.refused.append(error)
        finally:
            self._busy = False

    def evict(self, pool: Pool[Any]) -> None:
        pool.evict()

    def evict_some(self, pool: Pool[Any]) -> None:
        pool.evict(lambda conn: conn.id % 2 == 0)

    def resize(self, pool: Pool[Any]) -> None:
        pool.resize(max_size=2 if self.count % 2 else 3)

    def try_get(self, pool: Pool[Any]) -> None:
        async def borrow() -> None:
            lease = await pool.try_get()
            if lease is not None:
                await asyncio.sleep(0)
                lease.release()

        self.tasks.append(asyncio.ensure_future(borrow()))

    def close(self, pool: Pool[Any]) -> None:
        self.tasks.append(asyncio.ensure_future(pool.close(1)))

    def release(self, _: Pool[Any]) -> None:
        if self.spare:
            self.spare.pop().release()


HOOKS = ("has_broken", "has_broken raises", "reset", "is_transient", "terminate", "on_connect", "on_close", "listener")
MEDDLING = ("evict", "evict_some", "resize", "try_get", "close", "release")


class MeddledReset(ScriptedManager):
    """A manager whose reset meddles."""

    meddle: Callable[[object], None] = staticmethod(quiet)

    def reset(self, conn: Any, /) -> None:
        """There is nothing to reset."""
        self.meddle(conn)


@pytest.mark.parametrize("what", MEDDLING)
@pytest.mark.parametrize("hook", (*HOOKS, "error_sink"))
@virtual
async def test_a_hook_may_call_back_into_the_pool(hook: str, what: str) -> None:
    """The pool's lists may change while the hook runs, so the pool must not be in the middle of one."""
    loop = asyncio.get_running_loop()
    meddler = Meddler(what)

    def outcome(name: str, result: Callable[[Any], object]) -> Callable[[Any], object]:
        def meddled(conn: Any) -> object:
            if hook.split()[0] == name:
                meddler(conn)
                if hook == "has_broken raises" and meddler.count % 3 == 1:
                    raise OSError("has_broken failed")
            return result(conn)

        return meddled

    manager = MeddledReset()
    if hook == "reset":
        manager.meddle = meddler  # type: ignore[method-assign]
    pool: Pool[Any] = Pool(
        manager,
        max_size=3,
        connection_timeout=5,
        alive_bypass=1,
        idle_timeout=20,
        reap_interval=5,
        customizer=ScriptedCustomizer(
            on_connect=outcome("on_connect", lambda _: None), on_close=outcome("on_close", lambda _: None)
        ),
        listeners=[meddler] if hook == "listener" else [],
        error_sink=meddler if hook == "error_sink" else quiet,
    )
    await pool.open()
    await asyncio.gather(*(hold(pool, 0.1) for _ in range(3)))
    meddler.spare = [await pool.get()]
    meddler.pool = pool
    failures = iter([OSError("down")] * 3)
    manager.script(
        has_broken=outcome("has_broken", lambda conn: conn.broken),
        is_transient=outcome("is_transient", lambda _: True),
        terminate=outcome("terminate", lambda conn: setattr(conn, "state", "terminated")),
        connect=lambda _: next(failures, Delay(0.01)),
        close=lambda conn: OSError("close failed") if conn.id % 2 else Delay(0.01),
        is_valid=lambda conn: Delay(0.01, conn.id % 4 != 1),
    )

    async def use(number: int) -> None:
        with contextlib.suppress(PoolClosed):
            async with pool.get() as conn:
                await asyncio.sleep(0.05 * (number % 3))
                conn.broken = number % 4 == 0

    async with asyncio.timeout(100):
        for start in range(0, 30, 6):
            await asyncio.gather(*(use(start + number) for number in range(6)))
            books(pool)
            await asyncio.sleep(3)
            books(pool)
    meddler.pool = None
    for lease in meddler.spare:
        lease.release()
    await asyncio.gather(*meddler.tasks)
    assert meddler.count > 0
    if what != "close":
        pool.resize(max_size=3)
        await asyncio.gather(*(hold(pool) for _ in range(6)))
        assert not meddler.refused
    books(pool)
    start_of_close = loop.time()
    await pool.close(1)
    assert loop.time() - start_of_close <= 2
    books(pool)
    assert pool.state().in_use == pool.state().idle == 0


@pytest.mark.parametrize("what", ["evict", "evict_some", "resize", "release"])
@virtual
async def test_a_sink_may_call_back_while_idle_connections_are_judged(what: str) -> None:
    """RuntimeError, deque mutated during iteration: has_broken raised in the middle of a loop over the idle ones."""
    meddler = Meddler(what)
    manager = ScriptedManager()
    async with opened(manager, max_size=6, alive_bypass=1, error_sink=meddler) as pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(6)))
        meddler.spare = [await pool.get()]
        await asyncio.sleep(5)
        meddler.pool = pool
        seen: Counter[int] = Counter()

        def judge(conn: Any) -> object:
            seen[conn.id] += 1
            return OSError("has_broken failed") if seen[conn.id] > 1 or conn.id % 2 == 0 else False

        manager.script(has_broken=judge, is_valid=[False])
        await asyncio.wait({asyncio.ensure_future(hold(pool, timeout=1))})
        manager.script(has_broken=lambda _: False)
        meddler.pool = None
        for lease in meddler.spare:
            lease.release()
        assert meddler.count > 0
        books(pool)
        pool.resize(max_size=1)
        await asyncio.sleep(1)


@on_virtual_time
async def test_has_broken_may_close_the_pool_before_a_validation() -> None:
    """The get that waits for it ends with PoolClosed, and is_valid is not called."""

    class Closes(ScriptedManager):
        armed = False

        def has_broken(self, conn: Any) -> bool:
            if self.armed:
                self.armed = False
                with contextlib.suppress(StopIteration):
                    pool.close(0).send(None)  # here and now: nothing is left to wait for
            return super().has_broken(conn)

    manager = Closes()
    pool = Pool(manager)
    await pool.open()
    await hold(pool)
    await asyncio.sleep(60)
    manager.armed = True
    with pytest.raises(PoolClosed):
        await pool.get()
    await pool.close()
    assert not manager.calls("is_valid")
    books(pool)
