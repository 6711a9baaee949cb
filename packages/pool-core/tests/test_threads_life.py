"""The pool for threads: opening, closing, resets, hooks, the owner's methods; on virtual time."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from pool_core.threads import (
    BrokenConnection,
    CheckedIn,
    CheckedOut,
    Closed,
    CloseReason,
    Connected,
    Leaked,
    Pool,
    PoolClosed,
    PoolFull,
    PoolTimeout,
    PoolWarning,
    ReplaceConnection,
    TimedOut,
    Verdict,
)

from .threads_helpers import Conn, Manager, Resetting, Terminating, adds_up
from .threads_scheduler import now, simulated, sleep, spawn, step, wait_until


def raises(error: BaseException) -> Callable[..., None]:
    def play(*_: object) -> None:
        raise error

    return play


# -- opening and closing


@simulated
def test_open_brings_min_idle_up_and_close_closes_all() -> None:
    """bb8's build."""
    manager = Manager()
    pool = Pool(manager, min_idle=2, max_size=5)
    with pytest.raises(PoolClosed, match="'with pool:', or 'pool.open\\(\\)' first"):
        pool.get()
    pool.open()
    pool.open()
    assert pool.state().idle == 2
    leases = [pool.get() for _ in range(3)]
    wait_until(lambda: pool.state().idle == 2)
    for lease in leases:
        lease.release()
    assert pool.state().idle == 5
    pool.close()
    pool.close()
    assert manager.open == 0
    with pytest.raises(PoolClosed, match=r"open it again with 'pool.open\(\)'"):
        pool.get()
    pool.open()
    with pool.get():
        pass
    pool.close()
    adds_up(pool)


@simulated
def test_open_raises_the_drivers_own_error_and_leaves_nothing() -> None:
    """A failed open may be repeated."""

    class Strict(Manager):
        def is_transient(self, exc: Exception) -> bool:
            return False

    manager = Strict(connect=raises(PermissionError("no")))
    pool = Pool(manager, min_idle=1)
    began = now()
    with pytest.raises(PermissionError):
        pool.open()
    assert now() - began < 1
    manager.script.clear()
    pool.open()
    assert pool.state().idle == 1
    pool.close()


@simulated
def test_open_gives_up_after_connection_timeout() -> None:
    """With the last error, or PoolTimeout where connecting hangs."""
    pool = Pool(Manager(connect=raises(ConnectionRefusedError("x"))), min_idle=1, connection_timeout=3)
    began = now()
    with pytest.raises(ConnectionRefusedError):
        pool.open()
    assert 3 <= now() - began < 4.5
    pool = Pool(Manager(connect=lambda: sleep(1000)), min_idle=1, connection_timeout=3)
    with pytest.raises(PoolTimeout):
        pool.open()


@simulated
def test_threads_that_open_at_once_join() -> None:
    """One opening, one set of connections."""
    manager = Manager(connect=lambda: sleep(1))
    pool = Pool(manager, min_idle=2)
    threads = [spawn(pool.open) for _ in range(3)]
    wait_until(lambda: all(thread.dead for thread in threads))
    assert all(thread.error is None for thread in threads)
    assert manager.count("connect") == 2
    pool.close()


@simulated
def test_a_lazy_open_returns_at_once() -> None:
    """build_unchecked."""
    pool = Pool(Manager(connect=lambda: sleep(1)), min_idle=2)
    began = now()
    pool.open(wait=False)
    assert now() == began
    wait_until(lambda: pool.state().idle == 2)
    pool.close()


@simulated
def test_with_pool_may_be_nested_and_the_outermost_closes() -> None:
    """As the asynchronous pool."""
    pool = Pool(Manager())
    with pool:
        with pool, pool.get():
            pass
        with pool.get():
            pass
    with pytest.raises(PoolClosed):
        pool.get()


@simulated
def test_close_fails_waiters_at_once_and_waits_for_borrowers() -> None:
    """In use: waited for, until the time is over."""
    manager = Terminating()
    pool = Pool(manager, max_size=1)
    pool.open()
    lease = pool.get()
    failed: list[BaseException] = []

    def waits() -> None:
        try:
            pool.get()
        except PoolClosed as error:
            failed.append(error)

    waiter = spawn(waits)
    step()
    closer = spawn(pool.close)
    step()
    assert waiter.dead
    assert len(failed) == 1
    sleep(2)
    assert not closer.dead
    lease.release()
    wait_until(lambda: closer.dead, 0.1)
    adds_up(pool)


@simulated
def test_close_terminates_what_is_in_use_when_its_time_is_over() -> None:
    """It always ends, within a second more."""
    manager = Terminating()
    pool = Pool(manager, max_size=1)
    pool.open()
    lease = pool.get()
    conn = lease.conn
    began = now()
    pool.close(2)
    assert 2 <= now() - began <= 3
    assert conn.state == "terminated"
    lease.release()
    adds_up(pool)


@simulated
def test_close_ends_though_every_method_hangs() -> None:
    """What hangs is abandoned, and counted."""
    manager = Manager()
    pool = Pool(manager, max_size=3)
    pool.open()
    with pool.get():
        pass
    manager.script["close"] = lambda conn: sleep(1000)
    manager.script["connect"] = lambda: sleep(1000)
    lease = pool.get()
    spawn(lambda: _swallow(lambda: pool.get().release()))
    step()
    lease.release()
    began = now()
    pool.close(1)
    assert now() - began <= 2
    assert pool.state().statistics.connections_abandoned >= 1
    adds_up(pool)


def _swallow(act: Callable[[], object]) -> None:
    try:
        act()
    except PoolClosed:
        pass


# -- resets


@pytest.mark.parametrize("kind", [Resetting, Terminating])
@simulated
def test_a_returned_connection_is_reset_before_its_next_borrower(kind: Any) -> None:
    """By a worker while nobody waits: the borrower goes on."""
    manager = kind(reset=lambda conn: sleep(1))
    with Pool(manager, max_size=1) as pool:
        began = now()
        with pool.get() as conn:
            conn.dirty = True
        assert now() == began
        assert pool.state().resetting == 1
        with pool.get() as same:
            assert same is conn
            assert not same.dirty
        assert now() - began == pytest.approx(1)
        adds_up(pool)


@simulated
def test_the_next_waiter_runs_the_reset_itself() -> None:
    """It saves two switches of threads."""
    who: list[str] = []
    manager = Terminating()
    from .threads_scheduler import getcurrent

    with Pool(manager, max_size=1) as pool:
        lease = pool.get()
        manager.script["reset"] = lambda conn: who.append(getcurrent().name)
        waiter = spawn(lambda: pool.get().release(), "the waiter")
        step()
        lease.release()
        wait_until(lambda: waiter.dead)
        assert who[0] == "the waiter"
        wait_until(lambda: pool.state().idle == 1)
        adds_up(pool)


@simulated
def test_a_reset_that_hangs_in_a_waiter_is_ended_by_terminate_at_its_deadline() -> None:
    """The waiter's own timeout holds, if terminate ends the call."""
    with Pool((manager := Terminating()), max_size=1) as pool:
        lease = pool.get()

        def hang(conn: Conn) -> None:
            wait_until(lambda: conn.state == "terminated", 1000)
            raise ConnectionAbortedError

        manager.script["reset"] = hang
        manager.script["connect"] = lambda: sleep(5)
        began = now()
        spawn(lambda: (sleep(0.1), lease.release()))  # type: ignore[func-returns-value]
        with pytest.raises(PoolTimeout):
            pool.get(timeout=2)
        assert now() - began <= 2.2
        manager.script.clear()
        with pool.get():
            pass
        adds_up(pool)


@simulated
def test_a_reset_that_fails_or_hangs_costs_its_connection() -> None:
    """And the next get has a new one."""
    for play, reason in (
        (raises(ValueError("x")), "reset_failed"),
        (raises(ReplaceConnection()), "replaced"),
        (lambda _: sleep(100), "reset_failed"),
    ):
        manager = Resetting()
        with Pool(manager, max_size=1, reset_timeout=2) as pool:
            with pool.get():
                pass
            wait_until(lambda: pool.state().idle == 1)
            manager.script["reset"] = play
            with pool.get() as conn:
                pass
            step()
            manager.script = {}
            with pool.get() as other:
                assert other is not conn
            assert pool.state().statistics.connections_closed[CloseReason(reason)] == 1
            adds_up(pool)


@simulated
def test_a_clean_connection_is_not_reset() -> None:
    """is_clean does no I/O, so it goes straight back."""

    class Tells(Resetting):
        def is_clean(self, conn: Conn) -> bool:
            return not conn.dirty

    manager = Tells()
    with Pool(manager, max_size=1) as pool:
        with pool.get():
            pass
        assert manager.count("reset") == 0
        with pool.get() as conn:
            conn.dirty = True
        wait_until(lambda: pool.state().idle == 1)
        assert manager.count("reset") == 1


# -- time


@simulated
def test_lifetimes_idle_times_and_min_idle_hold() -> None:
    """The watch does what the event loop's alarm does."""
    manager = Manager()
    with Pool(manager, max_size=5, min_idle=1, idle_timeout=60, max_lifetime=1000, reap_interval=10) as pool:
        leases = [pool.get() for _ in range(5)]
        for lease in leases:
            lease.release()
        sleep(90)
        assert pool.state().idle == 1
        assert pool.state().statistics.connections_closed[CloseReason("idle")] == 4
        sleep(1000)
        closed = pool.state().statistics.connections_closed
        assert closed[CloseReason("lifetime")] == 1
        assert pool.state().idle == 1
        adds_up(pool)


@simulated
def test_keepalive_validates_what_is_silent() -> None:
    """Load balancers drop silent connections."""
    manager = Manager()
    with Pool(manager, max_size=1, keepalive=10, idle_timeout=None) as pool:
        with pool.get():
            pass
        sleep(35)
        assert manager.count("is_valid") == 3
        adds_up(pool)


@simulated
def test_a_validation_that_hangs_is_abandoned_and_the_get_goes_on() -> None:
    """Without terminate its thread is left behind."""
    manager = Manager()
    with Pool(manager, max_size=2, validation_timeout=1, connection_timeout=10) as pool:
        with pool.get():
            pass
        sleep(5)
        manager.script["is_valid"] = lambda conn: sleep(1000)
        began = now()
        with pool.get():
            pass
        assert now() - began < 2
        sleep(3)
        assert pool.state().statistics.connections_abandoned >= 1
        adds_up(pool)


@simulated
def test_a_leak_is_reported_once_with_its_stack(caplog: Any = None) -> None:
    """leak_threshold."""
    events: list[Any] = []
    with Pool(Manager(), leak_threshold=5, reap_interval=1, listeners=[events.append]) as pool:
        lease = pool.get()
        sleep(30)
        leaks = [event for event in events if isinstance(event, Leaked)]
        assert len(leaks) == 1
        assert "test_a_leak_is_reported_once" in leaks[0].stack  # type: ignore[operator]
        lease.release()


# -- events and hooks


@simulated
def test_events_come_in_r2d2s_order() -> None:
    """Connected, checked out, timed out, checked in, closed."""
    events: list[Any] = []
    with Pool(Manager(), max_size=1, listeners=[events.append]) as pool:
        with pool.get() as conn:
            with pytest.raises(PoolTimeout):
                pool.get(timeout=1)
            conn.broken = True
        wait_until(lambda: pool.state().closing == 0)
    kinds = [type(event) for event in events]
    assert kinds == [Connected, CheckedOut, TimedOut, CheckedIn, Closed]
    assert events[3].held == pytest.approx(1)


@simulated
def test_a_listener_may_come_and_go_and_raise() -> None:
    """What it raises is counted, and breaks nothing."""
    seen: list[Any] = []

    def listener(event: Any) -> None:
        seen.append(event)
        raise ValueError

    with Pool(Manager(), error_sink=lambda error: None) as pool:
        end = pool.add_listener(listener)
        with pool.get():
            pass
        count = len(seen)
        assert count == 3
        end()
        end()
        with pool.get():
            pass
        assert len(seen) == count
        assert pool.state().statistics.hook_errors == count
        adds_up(pool)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), GeneratorExit()])
@pytest.mark.parametrize("method", ["connect", "is_valid", "reset", "close", "has_broken"])
@simulated
def test_whatever_a_method_raises_the_pool_goes_on(method: str, error: BaseException) -> None:
    """Hooks raise anything; no place is lost."""
    manager = Resetting()
    logging.disable(logging.CRITICAL)
    try:
        pool = Pool(manager, max_size=1, connection_timeout=5, alive_bypass=0)
        pool.open()
        with pool.get():
            pass
        wait_until(lambda: pool.state().resetting == 0)
        manager.script[method] = raises(error)
        for _ in range(3):
            try:
                with pool.get(timeout=1) as conn:
                    conn.broken = method == "close"
            except (PoolTimeout, SystemExit):
                pass
        manager.script.clear()
        with pool.get():
            pass
        adds_up(pool)
        pool.close()
        adds_up(pool)
    finally:
        logging.disable(logging.NOTSET)


@simulated
def test_a_customizer_prepares_connections() -> None:
    """All four hooks, as ordinary methods."""
    called: list[str] = []

    class Customizer:
        def on_connect(self, conn: Conn) -> None:
            called.append("connect")

        def on_checkout(self, conn: Conn) -> None:
            called.append("checkout")

        def on_reset(self, conn: Conn) -> None:
            called.append("reset")

        def on_close(self, conn: Conn) -> None:
            called.append("close")

    with Pool(Resetting(), customizer=Customizer()) as pool:
        with pool.get():
            pass
        wait_until(lambda: pool.state().idle == 1)
    assert called == ["connect", "checkout", "reset", "close"]


@simulated
def test_on_checkout_that_raises_or_hangs_ends_the_get() -> None:
    """Within the get's timeout; the connection is closed."""

    class Customizer:
        play: Callable[[], object] = staticmethod(raises(ValueError("not today")))

        def on_checkout(self, conn: Conn) -> None:
            self.play()

    customizer = Customizer()
    with Pool(Manager(), max_size=1, customizer=customizer) as pool:
        with pytest.raises(ValueError, match="not today"):
            pool.get()
        customizer.play = lambda: sleep(100)
        began = now()
        with pytest.raises(PoolTimeout) as caught:
            pool.get(timeout=2)
        assert now() - began <= 2.2
        assert caught.value.phase == "validate"
        customizer.play = lambda: None
        with pool.get():
            pass
        assert pool.state().statistics.connections_closed[CloseReason("discarded")] == 2
        adds_up(pool)


def test_a_customizer_with_async_hooks_is_refused() -> None:
    """It belongs to the other pool."""

    class Customizer:
        async def on_connect(self, conn: Any) -> None: ...

    with pytest.raises(TypeError, match="on_connect is a coroutine function"):
        Pool(Manager(), customizer=Customizer())


@simulated
def test_settings_that_the_reset_takes_away_are_warned_of() -> None:
    """As in the asynchronous pool."""

    class Customizer:
        def on_connect(self, conn: Conn) -> None: ...

    pool = Pool(Resetting(), customizer=Customizer())
    with pytest.warns(PoolWarning, match="what on_connect sets is gone"):
        pool.open()
    pool.close()


@simulated
def test_the_managers_verdict_is_asked_for() -> None:
    """CLOSE costs the connection, RETIRE_ALL all of them."""

    class Judges(Manager):
        verdict = Verdict.KEEP

        def judge(self, exc: Exception, conn: Conn) -> Verdict:
            return self.verdict

    manager = Judges()
    with Pool(manager, max_size=3) as pool:
        leases = [pool.get() for _ in range(3)]
        for lease in leases:
            lease.release()
        for verdict, left in ((Verdict.KEEP, 3), (Verdict.CLOSE, 2), (Verdict.RETIRE_ALL, 0)):
            manager.verdict = verdict
            with pytest.raises(OSError), pool.get():
                raise OSError
            wait_until(lambda: pool.state().closing == 0)
            assert pool.state().idle == left
        adds_up(pool)


# -- by the owner


@simulated
def test_add_resize_evict_and_dedicated_connection() -> None:
    """The owner's methods."""
    manager = Manager()
    with Pool(manager, max_size=2) as pool:
        mine = manager.connect()
        pool.add(mine)
        with pytest.raises(ValueError, match="in the pool already"):
            pool.add(mine)
        with pool.get() as conn:
            assert conn is mine
        broken = manager.connect()
        broken.broken = True
        with pytest.raises(BrokenConnection) as refused:
            pool.add(broken)
        assert refused.value.connection is broken
        pool.add(manager.connect())
        with pytest.raises(PoolFull):
            pool.add(manager.connect())
        pool.resize(max_size=1)
        assert pool.state().idle == 1
        with pytest.raises(ValueError, match="min_idle"):
            pool.resize(min_idle=2)
        pool.resize(max_size=3, min_idle=2)
        wait_until(lambda: pool.state().idle == 2)
        assert pool.evict(lambda conn: conn is mine) <= 1
        wait_until(lambda: pool.state().idle == 2)
        assert pool.evict() == 2
        wait_until(lambda: pool.state().idle == 2)
        with pool.dedicated_connection() as conn:
            assert pool.state().in_use == 0
        assert conn.state == "closed"
        adds_up(pool)


@simulated
def test_a_dedicated_connection_raises_the_drivers_error_or_times_out() -> None:
    """Unchanged."""
    manager = Manager(connect=raises(PermissionError("no")))
    with Pool(manager, create_timeout=2) as pool:
        with pytest.raises(PermissionError):
            pool.dedicated_connection()
        manager.script["connect"] = lambda: sleep(100)
        with pytest.raises(PoolTimeout):
            pool.dedicated_connection()
    with pytest.raises(PoolClosed):
        pool.dedicated_connection()


# -- bad input


def test_a_manager_of_the_other_pool_is_refused() -> None:
    """It says which pool it belongs to, in both directions."""

    class Async(Manager):
        async def connect(self) -> Conn:  # type: ignore[override]
            return Conn(1)

    with pytest.raises(TypeError, match=r"belongs to pool_core\.Pool"):
        Pool(Async())  # type: ignore[misc]
    with pytest.raises(TypeError, match="has no method"):
        Pool(object())  # type: ignore[arg-type]


@simulated
def test_a_connect_that_returns_an_awaitable_or_nothing_is_an_error_at_once() -> None:
    """The commonest mistakes of an adapter's author."""

    async def connection() -> Conn:
        return Conn(1)

    class Wrong(Manager):
        result: Any = None

        def connect(self) -> Any:
            return connection() if self.result == "awaitable" else self.result

    manager = Wrong()
    with Pool(manager, connection_timeout=5) as pool:
        with pytest.raises(Exception, match="is a 'return' missing"):
            pool.get()
        manager.result = "awaitable"
        with pytest.raises(Exception, match=r"belongs to pool_core\.Pool"):
            pool.get()


@simulated
def test_async_with_and_await_are_refused_with_advice() -> None:
    """A TypeError that names the pool for event loops; nothing is lost."""

    async def enter(thing: Any) -> None:
        async with thing:
            pass

    async def wait(thing: Any) -> None:
        await thing

    with Pool(Manager(), max_size=1) as pool:
        for make in (lambda: pool, pool.get):
            for use in (enter, wait):
                with pytest.raises(TypeError, match=r"pool_core\.Pool"):
                    use(make()).send(None)
        assert pool.state().in_use == 0


@simulated
def test_neither_pool_nor_lease_can_be_copied() -> None:
    """Two owners would close each other's connections."""
    with Pool(Manager()) as pool:
        lease = pool.get()
        for thing in (pool, lease):
            for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied or pickled"):
                    attempt(thing)
        lease.release()


def test_misspelt_options_are_refused() -> None:
    """As in the asynchronous pool."""
    with pytest.raises(TypeError, match="min_size: the pool has no such option; use min_idle"):
        Pool(Manager(), min_size=3)  # type: ignore[call-arg]


def test_from_url_names_what_is_missing() -> None:
    """A scheme that nobody claims for threads."""
    with pytest.raises(ValueError, match="claims the scheme 'nonsense' for threads"):
        Pool.from_url("nonsense://host")


@simulated
def test_the_guard_refuses_use_after_release() -> None:
    """guard=True, as in the asynchronous pool."""
    with Pool(Manager(), guard=True) as pool:
        with pool.get() as conn:
            assert conn.number == 1
        with pytest.raises(Exception, match="was released"):
            _ = conn.number
