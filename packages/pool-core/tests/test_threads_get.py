"""The pool for threads: getting, returning, order, timeouts; on virtual time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pool_core.threads import (
    CloseReason,
    ConnectError,
    Pool,
    PoolClosed,
    PoolDeadlock,
    PooledConnection,
    PoolError,
    PoolOverloaded,
    PoolTimeout,
    QueueStrategy,
)

from .threads_helpers import Conn, Manager, Resetting, Terminating, adds_up
from .threads_scheduler import now, simulated, sleep, spawn, step, wait_until


@simulated
def test_with_gives_the_drivers_own_object() -> None:
    """No proxy: isinstance, attributes and speed are the driver's."""
    with Pool(Manager(), max_size=1) as pool:
        with pool.get() as conn:
            assert type(conn) is Conn
            assert pool.state().in_use == 1
        assert pool.state().idle == 1
        adds_up(pool)
    assert pool.state().statistics.connections_closed[CloseReason("pool_closed")] == 1


@simulated
def test_a_lease_is_released_once_and_by_any_thread() -> None:
    """bb8's get_owned."""
    with Pool(Manager(), max_size=1) as pool:
        lease = pool.get()
        assert isinstance(lease, PooledConnection)
        other = spawn(lease.release)
        wait_until(lambda: other.dead)
        lease.release()
        assert pool.state().idle == 1
        with pytest.raises(PoolError, match="released already"):
            _ = lease.conn
        adds_up(pool)


@simulated
def test_a_lease_taken_for_a_connection_says_what_to_write() -> None:
    """``conn = pool.get(); conn.execute()`` is the commonest slip."""
    with Pool(Manager()) as pool:
        lease = pool.get()
        with pytest.raises(AttributeError, match=r"use lease\.conn\.execute"):
            lease.execute()  # type: ignore[attr-defined]
        lease.release()


@pytest.mark.parametrize("manager", [Manager, Resetting, Terminating])
@simulated
def test_waiters_are_served_in_their_order(manager: Any) -> None:
    """FIFO hand-off: no thread overtakes."""
    served: list[int] = []
    with Pool(manager(), max_size=1) as pool:
        lease = pool.get()

        def use(number: int) -> None:
            with pool.get() as conn, conn:
                served.append(number)
                sleep(0.001)

        for number in range(5):
            spawn(lambda number=number: use(number))  # type: ignore[misc]
            step()
        assert pool.state().waiting == 5
        lease.release()
        wait_until(lambda: len(served) == 5)
        assert served == [0, 1, 2, 3, 4]
        wait_until(lambda: pool.state().in_use == 0)
        adds_up(pool)
        assert pool.state().statistics.gets_waited == 6  # the first one waited for its connection to open


@simulated
def test_a_get_times_out_at_its_time_and_says_what_the_pool_looked_like() -> None:
    """The text is what an operator gets to see."""
    with Pool(Manager(), max_size=1, connection_timeout=3) as pool:
        lease = pool.get()
        began = now()
        with pytest.raises(PoolTimeout, match=r"no connection within 3 s.*1 of 1 in use.*by main") as caught:
            pool.get()
        assert now() - began == pytest.approx(3)
        assert caught.value.phase == "queue"
        assert caught.value.state.waiting == 1
        with pytest.raises(PoolTimeout):
            pool.get(timeout=0)
        with pytest.raises(PoolTimeout):
            pool.get(timeout=0.5)
        assert now() - began == pytest.approx(3.5)
        assert pool.state().statistics.gets_timed_out == 3
        lease.release()
        adds_up(pool)
        with pool.get(timeout=math.inf):
            pass


@simulated
def test_the_holder_of_a_timeout_that_has_ended_is_marked() -> None:
    """A thread that dies with a lease is the commonest leak."""
    with Pool(Manager(), max_size=1) as pool:
        leases: list[Any] = []
        thread = spawn(lambda: leases.append(pool.get()), "worker-7")
        wait_until(lambda: thread.dead)
        thread.own.clear()  # as the thread's local data dies with it
        with pytest.raises(PoolTimeout, match=r"by worker-7 \(the thread has ended: lost\?\)"):
            pool.get(timeout=1)
        assert [holder.task for holder in pool.holders()] == ["worker-7"]
        leases[0].release()


@pytest.mark.parametrize("timeout", [-1, math.nan, "1", True])
def test_bad_timeouts_are_refused(timeout: Any) -> None:
    """Before anything happens."""
    with pytest.raises((ValueError, TypeError), match="timeout="):
        Pool(Manager()).get(timeout)


@simulated
def test_broken_connections_are_not_handed_out_and_not_taken_back() -> None:
    """has_broken is asked at both ends."""
    manager = Manager()
    with Pool(manager, max_size=2) as pool:
        with pool.get() as conn:
            conn.broken = True
        wait_until(lambda: conn.state == "closed")
        with pool.get() as conn:
            pass
        conn.broken = True  # while it is idle
        with pool.get() as other:
            assert other is not conn
        closed = pool.state().statistics.connections_closed
        assert closed[CloseReason("broken")] == 2
        adds_up(pool)


@simulated
def test_a_connection_idle_for_long_is_validated_first() -> None:
    """And what fails is replaced within the same get."""
    manager = Manager()
    with Pool(manager, max_size=1, alive_bypass=0.5) as pool:
        with pool.get() as conn:
            pass
        with pool.get():
            pass
        assert manager.count("is_valid") == 0
        sleep(2)
        with pool.get() as same:
            assert same is conn
        assert manager.count("is_valid") == 1
        sleep(2)
        conn.dead = True
        with pool.get() as other:
            assert other is not conn
        assert pool.state().statistics.connections_closed[CloseReason("invalid")] == 1
        adds_up(pool)


@simulated
def test_try_get_never_connects_and_validates_what_is_idle() -> None:
    """r2d2's try_get."""
    manager = Manager()
    with Pool(manager, max_size=2) as pool:
        assert pool.try_get() is None
        with pool.get():
            assert pool.try_get() is None
        lease = pool.try_get()
        assert lease is not None
        lease.release()
        sleep(2)
        lease = pool.try_get()
        assert lease is not None
        assert manager.count("is_valid") == 1
        lease.conn.dead = True
        lease.release()
        sleep(2)
        assert pool.try_get() is None
        assert manager.count("connect") == 1
        adds_up(pool)


@simulated
def test_fifo_spreads_and_lifo_keeps_one_hot() -> None:
    """The queue strategy is about idle connections."""
    for strategy, numbers in ((QueueStrategy.LIFO, [2, 2, 2]), (QueueStrategy.FIFO, [1, 2, 1])):
        with Pool(Manager(), max_size=2, queue_strategy=strategy) as pool:
            first, second = pool.get(), pool.get()
            first.release()
            second.release()
            used = []
            for _ in range(3):
                with pool.get() as conn:
                    used.append(conn.number)
            assert used == numbers


@simulated
def test_a_failed_connect_is_retried_and_its_error_is_the_cause() -> None:
    """The wait names why nothing came."""

    def fail() -> None:
        raise ConnectionRefusedError("nobody there")

    manager = Manager(connect=fail)
    with Pool(manager, max_size=1, connection_timeout=3) as pool:
        with pytest.raises(PoolTimeout, match="nobody there") as caught:
            pool.get()
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert caught.value.phase == "connect"
        assert 2 < manager.count("connect") < 20
        manager.script.clear()
        with pool.get():
            pass
        adds_up(pool)


@simulated
def test_an_error_that_will_not_heal_fails_the_waiters_at_once() -> None:
    """A wrong password is not retried for 30 seconds."""

    class Strict(Manager):
        def is_transient(self, exc: Exception) -> bool:
            return False

    def fail() -> None:
        raise PermissionError("wrong password")

    with Pool(Strict(connect=fail)) as pool:
        began = now()
        with pytest.raises(ConnectError, match="wrong password") as caught:
            pool.get()
        assert now() == began
        assert isinstance(caught.value.__cause__, PermissionError)
        adds_up(pool)


@simulated
def test_a_connect_that_hangs_does_not_outlast_the_get() -> None:
    """The deadline holds whatever the driver does; what is left behind is counted."""
    manager = Manager(connect=lambda: sleep(100))
    with Pool(manager, max_size=1, connection_timeout=3, create_timeout=5) as pool:
        began = now()
        with pytest.raises(PoolTimeout):
            pool.get()
        assert now() - began == pytest.approx(3)
        sleep(4)
        assert pool.state().statistics.connections_abandoned == 1
        manager.script.clear()
        with pool.get(timeout=10):
            pass
        sleep(100)  # the late connection is closed
        assert [conn.state for conn in manager.made].count("open") == 1
        adds_up(pool)


@simulated
def test_connects_that_hang_do_not_starve_resets() -> None:
    """Three fixed workers would all hang in connect."""
    manager = Resetting()
    with Pool(manager, max_size=10, create_timeout=60) as pool:
        lease = pool.get()
        manager.script["connect"] = lambda: sleep(50)
        for _ in range(6):
            spawn(lambda: _quiet(pool))
        step()
        assert pool.state().opening == 3
        lease.release()
        wait_until(lambda: manager.count("reset") == 1, 0.1)
        sleep(60)
        pool.close(0)


def _quiet(pool: Pool[Any]) -> None:
    try:
        with pool.get(timeout=30):
            pass
    except (PoolTimeout, PoolClosed):
        pass


@simulated
def test_max_waiting_refuses_the_one_too_many() -> None:
    """Load shedding."""
    with Pool(Manager(), max_size=1, max_waiting=1) as pool:
        lease = pool.get()
        waiting = spawn(lambda: _quiet(pool))
        step()
        with pytest.raises(PoolOverloaded, match="max_waiting=1"):
            pool.get()
        lease.release()
        wait_until(lambda: waiting.dead)
        adds_up(pool)


@simulated
def test_threads_that_hold_and_wait_get_a_deadlock_error() -> None:
    """After a standstill of deadlock_after; the newest get of a holder ends."""
    results: list[str] = []
    with Pool(Manager(), max_size=2, deadlock_after=1) as pool:

        def nested() -> None:
            with pool.get():
                sleep(0.1)
                try:
                    with pool.get():
                        results.append("got a second one")
                except PoolDeadlock as error:
                    results.append(str(error))

        began = now()
        threads = [spawn(nested, "first"), spawn(nested, "second")]
        wait_until(lambda: all(thread.dead for thread in threads))
        assert now() - began < 3
        assert "got a second one" in results
        assert any("held by a thread that waits for another one (first, second)" in text for text in results)
        adds_up(pool)


@simulated
def test_a_lease_that_any_thread_may_release_is_no_deadlock() -> None:
    """Only a block ends in its own thread."""
    with Pool(Manager(), max_size=1, connection_timeout=5) as pool:
        lease = pool.get()
        with pytest.raises(PoolTimeout) as caught:
            pool.get()
        assert type(caught.value) is PoolTimeout
        lease.release()


@simulated
def test_a_block_that_raised_makes_its_connection_suspect() -> None:
    """It is validated before its next use; with discard_on_exception it is closed."""
    manager = Manager()
    with Pool(manager, max_size=1) as pool:
        with pytest.raises(ZeroDivisionError), pool.get():
            raise ZeroDivisionError
        with pool.get():
            pass
        assert manager.count("is_valid") == 1
    with Pool(Manager(), max_size=1, discard_on_exception=True) as pool:
        with pytest.raises(ZeroDivisionError), pool.get():
            raise ZeroDivisionError
        assert pool.state().statistics.connections_closed[CloseReason("discarded")] == 1


@simulated
def test_release_while_an_exception_is_handled_makes_it_suspect_too() -> None:
    """diesel asks panicking()."""
    manager = Manager()
    with Pool(manager, max_size=1) as pool:
        lease = pool.get()
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            lease.release()
        with pool.get():
            pass
        assert manager.count("is_valid") == 1


@simulated
def test_discard_detach_and_extensions() -> None:
    """What a borrower can do with its connection."""
    manager = Manager()
    with Pool(manager, max_size=1) as pool:
        with pool.get() as conn:
            pass
        lease = pool.get()
        lease.extensions["note"] = 1
        number = lease.connection_id
        lease.release()
        lease = pool.get()
        assert (lease.extensions, lease.connection_id) == ({"note": 1}, number)
        assert lease.age >= 0
        lease.discard()
        wait_until(lambda: conn.state == "closed")
        lease = pool.get()
        mine = lease.detach()
        assert pool.state().statistics.connections_closed[CloseReason("detached")] == 1
        adds_up(pool)
    assert mine.state == "open"


@simulated
def test_64_threads_share_4_connections_fairly() -> None:
    """Each gets as many as the others, and no connection has two users."""
    counts = [0] * 64
    with Pool(Resetting(), max_size=4) as pool:

        def work(number: int) -> None:
            for _ in range(10):
                with pool.get() as conn, conn:
                    counts[number] += 1
                    sleep(0.001)

        threads = [spawn(lambda n=n: work(n)) for n in range(64)]  # type: ignore[misc]
        wait_until(lambda: all(thread.dead for thread in threads))
        assert counts == [10] * 64
        wait_until(lambda: pool.state().resetting == 0)
        adds_up(pool)
