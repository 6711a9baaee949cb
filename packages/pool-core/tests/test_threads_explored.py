"""Every schedule of small histories of the pool for threads, over its lock, gates and timeouts."""

from __future__ import annotations

import gc
import logging
import warnings
from typing import Any

import pytest
from pool_core.threads import Pool, PoolClosed, PoolTimeout

from .threads_helpers import Conn, Manager, Resetting, Terminating, adds_up
from .threads_scheduler import Scheduler, current, explore, getcurrent

HISTORIES: dict[str, tuple[Any, int, bool, dict[str, list[str]]]] = {
    # name: manager, max_size, all open at the beginning, what each thread does
    "two threads with one get": (Manager, 1, True, {"a": ["get"], "b": ["get"]}),
    "two threads with two gets": (Manager, 1, True, {"a": ["get", "get"], "b": ["get", "get"]}),
    "three threads on one connection": (Manager, 1, True, {"a": ["get"], "b": ["get"], "c": ["get"]}),
    "three threads on two connections": (Manager, 2, True, {"a": ["get"], "b": ["get"], "c": ["get"]}),
    "a worker connects": (Manager, 1, False, {"a": ["get"], "b": ["get"]}),
    "a worker resets": (Resetting, 1, True, {"a": ["get"], "b": ["get"]}),
    "a waiter resets": (Terminating, 1, True, {"a": ["hold"], "b": ["get"]}),
    "a waiter resets, and another times out": (Terminating, 1, True, {"a": ["hold"], "b": ["brief"]}),
    "a timeout": (Manager, 1, True, {"a": ["hold"], "b": ["brief"]}),
    "a timeout and a waiter": (Manager, 1, True, {"a": ["hold"], "b": ["brief"], "c": ["get"]}),
    "a close": (Manager, 1, True, {"a": ["get"], "b": ["close"]}),
    "evict and try_get": (Manager, 1, True, {"a": ["evict"], "b": ["try"]}),
    "a lost lease": (Manager, 1, True, {"a": ["lose"], "b": ["get"]}),
}
LIMIT = 1500
"""Runs of each history by default; `-m soak` runs all of them to their end."""
COMPLETE = {"two threads with two gets", "three threads on one connection", "three threads on two connections"}
"""Those that must be complete within that."""


def run(history: tuple[Any, int, bool, dict[str, list[str]]], scheduler: Scheduler) -> None:
    make, size, warm, threads = history
    manager = make()
    pool: Pool[Conn] = Pool(manager, max_size=size, idle_timeout=None, max_lifetime=None, close_timeout=None)
    results: dict[str, list[str]] = {name: [] for name in threads}

    def prepare() -> None:
        pool.open()
        leases = [pool.get() for _ in range(size if warm else 0)]
        for lease in leases:
            lease.release()

    opener = scheduler.spawn(prepare, "opener")
    scheduler.run(lambda: opener.dead and pool.state().resetting == 0)
    assert opener.error is None, opener.error
    scheduler.picture = lambda: picture(pool, results)
    scheduler.exploring = True
    actors = [scheduler.spawn(lambda n=name: use(pool, threads[n], results[n]), name) for name in threads]  # type: ignore[misc]
    scheduler.run(lambda: all(actor.dead for actor in actors))
    scheduler.exploring = False
    for actor in actors:
        if actor.error is not None:
            raise actor.error
    closer = scheduler.spawn(lambda: pool.close(1), "closer")
    scheduler.run(lambda: closer.dead and all(actor.dead for actor in scheduler.actors))
    failed = [actor.error for actor in scheduler.actors if actor.error is not None]
    assert not failed, failed
    adds_up(pool)
    state = pool.state()
    # A close whose time is over, of a manager without terminate, leaves what it counts.
    assert manager.open <= state.statistics.connections_abandoned, manager.made
    assert manager.open == 0 or any("close" in acts for acts in threads.values())
    assert state.waiting == 0
    done = [result for one in results.values() for result in one]
    served = state.statistics.gets_direct + state.statistics.gets_waited - (size if warm else 0)
    assert served == sum(result in ("got", "tried", "lost") for result in done)
    assert state.statistics.gets_timed_out == done.count("timeout")


def use(pool: Pool[Conn], acts: list[str], done: list[str]) -> None:
    for act in acts:
        try:
            if act == "close":
                pool.close(1)
                done.append("closed")
            elif act == "evict":
                pool.evict()
            elif act == "try":
                lease = pool.try_get()
                done.append("none" if lease is None else "tried")
                if lease is not None:
                    lease.release()
            elif act == "lose":
                lease = pool.get()
                pool._shell.lost(lease._slot, lease._slot.uses)  # type: ignore[union-attr, arg-type]
                lease._slot = None
                done.append("lost")
            else:
                with pool.get(timeout=1 if act == "brief" else None) as conn, conn:
                    if act == "hold":
                        current().block(lambda: True)
                done.append("got")
        except PoolTimeout:
            done.append("timeout")
        except PoolClosed:
            done.append("refused")


def picture(pool: Pool[Conn], results: dict[str, list[str]]) -> Any:
    """All that decides how a run goes on."""
    scheduler = current()
    shell, state, workers = pool._shell, pool._state, pool._shell.calls.workers
    first = min((slot.id for slot in state.slots), default=0)
    return (
        tuple((a.number, a.steps, a.ready(), a.may_fire) for a in scheduler.actors if not a.dead),
        tuple(tuple(result) for result in results.values()),
        tuple((slot.id - first, slot.state, slot.holder and slot.holder.get_name()) for slot in state.slots),
        len(state.fresh), len(state.stale), len(state.closing), len(state.connects),
        tuple((w.task.get_name(), w.queued, w.busy) for w in state.queue.waiters),  # type: ignore[attr-defined]
        state.counters.waiting, state.counters.gets_waited, state.counters.gets_timed_out, state.generation,
        shell.life.stage, len(shell.calls.under_way), len(shell.inbox),
        len(workers.queue), workers.wanted, len(workers.idle), workers.stopping,
        getattr(getcurrent(), "number", 0),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a schedule that was seen before is left in the middle
        yield
        gc.collect()
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", HISTORIES)
def test_every_schedule_keeps_the_promises(name: str) -> None:
    """No lost connection, no lost waiter, no change of the state without the lock, statistics that add up."""
    limit = LIMIT if name in COMPLETE else 300
    runs, complete = explore(lambda scheduler: run(HISTORIES[name], scheduler), limit=limit)
    assert complete or name not in COMPLETE, runs


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", HISTORIES)
def test_every_schedule_to_the_end(name: str) -> None:
    """Complete."""
    runs, complete = explore(lambda scheduler: run(HISTORIES[name], scheduler), limit=10**6)
    assert complete, runs


@pytest.mark.parametrize("fault", ["without the lock", "answered twice", "forgets a waiter"])
def test_the_explorer_finds_planted_faults(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot fail proves nothing."""
    from pool_core.threads._gets import Gets, GetWaiter
    from pool_core.threads._shell import Shell

    if fault == "without the lock":
        monkeypatch.setattr(Shell, "event", lambda self, act, *args: act(current().now, *args))
    elif fault == "answered twice":
        monkeypatch.setattr(Gets, "_give_up", lambda self, now, waiter: self._describe(now, waiter))
    else:
        monkeypatch.setattr(GetWaiter, "offer", lambda self, slot: True)
    with pytest.raises(BaseException):  # noqa: PT011, B017
        for history in HISTORIES.values():
            explore(lambda scheduler, history=history: run(history, scheduler), limit=300)  # type: ignore[misc]
