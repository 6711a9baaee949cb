"""The pool for threads under real threads and in real processes: storms, garbage, forks, the end of the program."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from pool_core.threads import CloseReason, Pool, PoolClosed, PoolError, PoolTimeout, PoolWarning

from .threads_helpers import Conn, Manager, Resetting, Terminating, adds_up


def run_threads(*targets: Callable[[], object]) -> None:
    """Run them all, from one barrier, and raise what one of them raised."""
    barrier = threading.Barrier(len(targets))
    errors: list[BaseException] = []

    def run(target: Callable[[], object]) -> None:
        barrier.wait()
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def program(text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own."""
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=50, check=False
    )


MANAGER = """
import sys, threading, time
from pool_core.threads import Pool
class Manager:
    def connect(self): return object()
    def is_valid(self, conn): return True
    def has_broken(self, conn): return False
    def close(self, conn): pass
"""


@pytest.mark.parametrize("make", [Manager, Resetting, Terminating])
def test_64_threads_storm_8_connections(make: Any) -> None:
    """No connection has two users, nothing is lost, the statistics add up."""
    manager = make()
    pool: Pool[Conn] = Pool(manager, max_size=8, alive_bypass=0.01, max_uses=50)
    counts = [0] * 64
    rng = random.Random(7)
    seeds = [rng.random() for _ in counts]

    def work(number: int) -> None:
        own = random.Random(seeds[number])
        for _ in range(30):
            try:
                with pool.get(timeout=None if own.random() < 0.9 else own.random() / 100) as conn, conn:
                    counts[number] += 1
                    conn.broken = own.random() < 0.02
                    if own.random() < 0.05:
                        raise ZeroDivisionError
            except (PoolTimeout, ZeroDivisionError):
                pass
            if own.random() < 0.02:
                pool.evict()
            if own.random() < 0.02:
                pool.resize(max_size=own.randrange(4, 9))

    with pool:
        run_threads(*[lambda n=n: work(n) for n in range(64)])
        pool.resize(max_size=8)
        wait_for(lambda: (s := pool.state()).in_use + s.resetting + s.closing + s.opening + s.validating == 0)
        adds_up(pool)
        assert pool.state().waiting == 0
        assert min(counts) > 0
    adds_up(pool)
    assert manager.open == 0
    assert pool.state().statistics.connections_abandoned == 0


def test_open_close_and_get_storm() -> None:
    """The life cycle under 16 threads."""
    manager = Terminating()
    pool: Pool[Conn] = Pool(manager, max_size=2, min_idle=1, connection_timeout=5)

    def work() -> None:
        own = random.Random(threading.get_ident())
        for _ in range(40):
            try:
                if own.random() < 0.2:
                    pool.open()
                elif own.random() < 0.1:
                    pool.close(0.5)
                else:
                    with pool.get(timeout=1) as conn:
                        assert conn.number
            except (PoolClosed, PoolTimeout):
                pass

    run_threads(*[work] * 16)
    pool.close()
    adds_up(pool)
    assert manager.open == 0


def test_after_close_no_thread_is_left() -> None:
    """Workers and watch end with the pool."""
    before = threading.active_count()
    pool: Pool[Conn] = Pool(Resetting(), max_size=5)
    pool.open()
    run_threads(*[lambda: pool.get().release()] * 10)
    assert threading.active_count() > before
    pool.close()
    wait_for(lambda: threading.active_count() == before)


def test_a_dropped_lease_costs_its_connection_and_warns() -> None:
    """Whatever thread collects it."""
    manager = Terminating()
    with Pool(manager, max_size=1) as pool:
        with pytest.warns(ResourceWarning, match="was dropped without release"):
            pool.get()
        with pool.get(timeout=10) as conn:
            assert conn.number == 2
        assert pool.state().statistics.connections_closed[CloseReason("leaked")] == 1
        adds_up(pool)


def test_a_thread_that_dies_with_its_lease_loses_it() -> None:
    """The lease dies with the thread's frame; a later thread with the same identifier is another one."""
    with Pool(Terminating(), max_size=1, deadlock_after=0.05) as pool:
        kept: list[Any] = []
        thread = threading.Thread(target=lambda: kept.append(pool.get()), name="dead one")
        thread.start()
        thread.join()
        (holder,) = pool.holders()
        assert holder.task == "dead one"
        with pytest.raises(PoolTimeout, match="the thread has ended: lost") as caught:
            run_threads(lambda: pool.get(timeout=0.3))  # perhaps with the same identifier: no deadlock
        assert type(caught.value) is PoolTimeout
        kept[0].release()


def test_a_dropped_pool_closes_its_connections_and_ends_its_threads() -> None:
    """With a warning, by its own thread."""
    before = threading.active_count()
    manager = Terminating()
    pool = Pool(manager, max_size=1)
    pool.open()
    pool.get().release()
    with pytest.warns(ResourceWarning, match="was dropped while open"):
        del pool
        gc.collect()
    wait_for(lambda: threading.active_count() == before and manager.open == 0)


def test_a_use_inside_a_running_event_loop_is_warned_of_once() -> None:
    """A get that waits blocks the loop."""
    pool: Pool[Conn] = Pool(Manager())
    pool.open()

    async def use() -> None:
        with pool.get():
            pass

    with pytest.warns(PoolWarning, match="inside a running event loop"):
        asyncio.run(use())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.evict()
        asyncio.run(use())
    pool.close()


def test_a_use_from_a_finalizer_that_interrupts_an_event_is_refused() -> None:
    """Waiting there would be for ever. A release is done later instead."""
    with Pool(Manager(), max_size=2) as pool:
        lease = pool.get()
        shell = pool._shell

        def inside(now: float) -> None:
            with pytest.raises(PoolError, match="signal handler or finalizer"):
                pool.get(timeout=1)
            lease.release()

        shell.event(inside)
        wait_for(lambda: pool.state().in_use == 0)
        adds_up(pool)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_child_of_a_fork_may_not_use_an_open_pool() -> None:
    """Its sockets are the parent's; a pool that was not open is free."""
    done = program(
        MANAGER
        + """
import os, warnings
warnings.simplefilter("ignore")
from pool_core.threads import ForkedPool
pool, later = Pool(Manager()), Pool(Manager())
pool.open()
lease = pool.get()
pid = os.fork()
if pid == 0:
    for use in (pool.get, pool.try_get, pool.state, pool.close, pool.open, pool.evict, lease.release, lambda: lease.__exit__(None, None, None)):
        try:
            use()
        except ForkedPool:
            continue
        os._exit(1)
    repr(pool)
    with later, later.get():
        pass
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
lease.release()
with pool.get():
    pass
pool.close()
"""
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "body",
    [
        "",
        "lease = pool.get()",
        "manager.close = lambda conn: time.sleep(1000)\nwith pool.get(): pass",
        "manager.connect = lambda: time.sleep(1000)\nthreading.Thread(target=pool.get, daemon=True).start(); time.sleep(0.1)",
        "manager.is_valid = lambda conn: time.sleep(1000)\nwith pool.get(): pass\ntime.sleep(0.8)\nthreading.Thread(target=pool.get, daemon=True).start(); time.sleep(0.1)",
    ],
    ids=["idle", "a lease is held", "close hangs", "connect hangs", "is_valid hangs"],
)
def test_a_program_that_forgets_to_close_ends_with_a_warning(body: str) -> None:
    """Within two seconds, whatever the driver does."""
    done = program(
        MANAGER
        + """
import atexit
manager = Manager()
pool = Pool(manager)
pool.open()
"""
        + body
        + """
began = time.monotonic()
import _thread
atexit.register(lambda: None)
print("last line", flush=True)
""",
        "-W",
        "always::ResourceWarning",
    )
    assert done.returncode == 0, done.stderr
    assert "last line" in done.stdout
    assert "ResourceWarning" in done.stderr
    assert "was open at the end of the program" in done.stderr or "was dropped" in done.stderr


def test_ctrl_c_ends_a_get_that_waits() -> None:
    """And the pool goes on."""
    done = program(
        MANAGER
        + """
import os, signal
with Pool(Manager(), max_size=1) as pool:
    lease = pool.get()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        pool.get(timeout=40)
    except KeyboardInterrupt:
        print("interrupted")
    assert pool.state().statistics.gets_cancelled == 1
    lease.release()
    with pool.get():
        print("goes on")
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["interrupted", "goes on"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer")
def test_a_storm_of_signals_loses_nothing() -> None:
    """KeyboardInterrupt where the interpreter itself raises it: on 3.14 also between `with lock` and its block."""
    done = program(
        MANAGER
        + """
import signal, warnings, logging
warnings.simplefilter("ignore"); logging.disable(50)
signal.signal(signal.SIGALRM, signal.default_int_handler)
pool = Pool(Manager(), max_size=1, detect_deadlock=False)
pool.open()
hits = 0
stop = False
def other():
    while not stop:
        with pool.get():
            pass
        time.sleep(0.0001)
thread = threading.Thread(target=other); thread.start()
def attempt():
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0)
    for _ in range(2000):  # a signal that arrives in a finalizer is swallowed by the interpreter
        with pool.get():
            pass
end = time.monotonic() + 5
while time.monotonic() < end:
    try:
        attempt()
    except KeyboardInterrupt:
        hits += 1
signal.setitimer(signal.ITIMER_REAL, 0, 0)
stop = True
thread.join()
with pool.get(timeout=5):
    pass
state = pool.state()
s = state.statistics
assert s.gets_started == s.gets_direct + s.gets_waited + s.gets_timed_out + s.gets_cancelled + s.gets_failed + state.waiting, state
assert state.waiting == state.in_use == 0, state
assert s.connections_created == 1 + sum(s.connections_closed.values()), state
pool.close(1)
assert hits > 50, hits
print("hits", hits)
"""
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "hits" in done.stdout


def test_neither_pool_imports_the_other() -> None:
    """A program of threads loads no asyncio, and one with an event loop no threads' shell."""
    done = program(
        "import sys; from pool_core.threads import Pool, ConnectionManager, PooledConnection, Connected;"
        "assert 'asyncio' not in sys.modules, 'asyncio'"
    )
    assert done.returncode == 0, done.stderr
    done = program(
        "import sys; from pool_core import Pool, ConnectionManager, PooledConnection, Connected;"
        "found = [name for name in sys.modules if name.startswith('pool_core.threads')]; assert not found, found"
    )
    assert done.returncode == 0, done.stderr


def test_the_exporters_read_a_pool_for_threads_too() -> None:
    """prometheus and otel ask for the same numbers."""
    from pool_core import prometheus
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    with Pool(Manager(), name="threads") as pool:
        end = prometheus.instrument(pool, registry=registry)  # type: ignore[arg-type]
        with pool.get():
            pass
        text = generate_latest(registry).decode()
        end()
    assert 'state="idle"} 1.0' in text
    assert "wait_time_seconds_count" in text
