"""Threads on virtual time: every lock, gate and thread of ``pool_core.threads`` is a greenlet's, and one scheduler runs them.

``simulate`` runs a scenario once: a timeout fires only when nothing else can go on, so no test depends on speed.
``explore`` runs it again and again, with every choice of who goes on at each lock and gate, and every moment at which a
timeout may fire. States that were seen before are not explored again: without that, two threads with two gets each take
23,000 runs instead of some hundreds.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any
from unittest import mock

import pytest
from pool_core._slot import Slot
from pool_core._state import PoolState
from pool_core.threads import _borrower, _hooks, _lifecycle, _pool, _primitives, _shell

from .invariants import check_invariants

greenlet = pytest.importorskip("greenlet")
getcurrent = greenlet.getcurrent

READS = {"snapshot", "in_use", "wake_at"}
"""The methods of the state that change nothing."""


class Pruned(Exception):
    """This state was explored already."""


class Stuck(AssertionError):
    """No thread can go on."""


class Actor(greenlet.greenlet):  # type: ignore[name-defined, misc, unused-ignore]
    """One thread."""

    def __init__(self, target: Callable[[], object], name: str, number: int, parent: Any) -> None:
        super().__init__(self._run, parent)
        self._target = target
        self.name = name
        self.number = number
        self.error: BaseException | None = None
        self.ready: Callable[[], bool] = lambda: True
        self.until = inf
        self.may_fire = False
        self.background = False
        self.fired = False
        self.stepping = False
        self.steps = 0
        self.own: dict[str, Any] = {}

    def _run(self) -> None:
        try:
            self._target()
        except BaseException as error:
            self.error = error

    def is_alive(self) -> bool:
        return not self.dead

    def join(self, timeout: float | None = None) -> None:
        current().block(lambda: self.dead, inf if timeout is None else current().now + timeout)


class Scheduler:
    """Runs the actors. ``prefix`` says which of the possible ones goes on at each choice; then it is the first."""

    def __init__(self, prefix: list[int] | None = None, seen: set[Any] | None = None) -> None:
        self.now = 100.0
        self.actors: list[Actor] = []
        self.main = getcurrent()
        self.exploring = False
        self.trace: list[tuple[int, int]] = []
        self.prefix = prefix or []
        self.seen = seen
        self.picture: Callable[[], Any] = lambda: None
        self.own: dict[str, Any] = {}  # local data of whoever looks from outside
        self.over = False  # no thread waits for anything any more: those that are left end

    def spawn(self, target: Callable[[], object], name: str = "thread", *, background: bool = False) -> Actor:
        actor = Actor(target, name, len(self.actors) + 1, self.main)
        actor.background = background
        self.actors.append(actor)
        return actor

    def block(self, ready: Callable[[], bool], until: float = inf, *, may_fire: bool = False) -> bool:
        """Let others run until this one is ready. False: the time is over."""
        if self.over:
            raise greenlet.GreenletExit
        me = getcurrent()
        assert me is not self.main, "the scheduler itself cannot block"
        me.ready, me.until, me.may_fire = ready, until, may_fire
        self.main.switch()
        return not me.fired

    def run(self, done: Callable[[], bool]) -> None:
        while not done():
            living = [actor for actor in self.actors if not actor.dead]
            options = [(actor, False) for actor in living if actor.ready()]
            if self.exploring:
                options += [(a, True) for a in living if a.may_fire and a.until < inf and not a.ready()]
            if not options:
                timed = [actor for actor in living if actor.until < inf]
                if not timed:
                    raise Stuck("no thread can go on: " + ", ".join(a.name for a in living if not a.background))
                options = [(min(timed, key=lambda actor: actor.until), True)]
            actor, fire = options[self._choose(len(options))]
            actor.fired = fire
            if fire:
                self.now = max(self.now, actor.until)
            actor.may_fire = False
            actor.until = inf
            actor.steps += 1
            actor.switch()

    def end(self) -> None:
        """End the threads that are left."""
        self.over = True
        for actor in self.actors:
            while not actor.dead:
                actor.throw()

    def _choose(self, count: int) -> int:
        if count == 1 or not self.exploring:
            return 0
        at = len(self.trace)
        if self.seen is not None and at >= len(self.prefix):
            picture = self.picture()
            if picture in self.seen:
                raise Pruned
            self.seen.add(picture)
        choice = self.prefix[at] if at < len(self.prefix) else 0
        self.trace.append((choice, count))
        return choice


_scheduler: Scheduler | None = None


def current() -> Scheduler:
    assert _scheduler is not None
    return _scheduler


def now() -> float:
    return current().now


def spawn(target: Callable[[], object], name: str = "thread") -> Actor:
    """Start a thread of the test's."""
    return current().spawn(target, name)


def sleep(seconds: float) -> None:
    """Let this thread wait, on virtual time."""
    current().block(lambda: False, current().now + seconds)


def step() -> None:
    """Let the others go on until they wait."""
    me = getcurrent()

    def others_wait() -> bool:
        return not any(a is not me and not a.dead and not a.stepping and a.ready() for a in current().actors)

    me.stepping = True
    current().block(others_wait)
    me.stepping = False


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that other threads do."""
    assert current().block(condition, current().now + seconds), "it did not happen"


class SimLock:
    """Also checks, whenever it is released, that the state is in order."""

    held: Any = None
    check: Callable[[], None] | None = None

    def __enter__(self) -> None:
        me = getcurrent()
        if current().over:
            self.held = me
            return
        assert self.held is not me, "a thread takes the lock that it has"
        if me is not current().main and (current().exploring or self.held is not None):
            current().block(lambda: self.held is None)
        assert self.held is None
        self.held = me

    def __exit__(self, *_: object) -> None:
        if self.check is not None and not current().over:
            self.check()
        self.held = None

    def _is_owned(self) -> bool:
        return self.held is getcurrent()

    def release(self) -> None:
        self.held = None


class SimSection:
    def __init__(self) -> None:
        self.lock = SimLock()
        self.owner: Any = None
        sections.append(self)

    def leave(self) -> None:
        if self.lock._is_owned():
            self.lock.release()


sections: list[SimSection] = []


class SimGate:
    def __init__(self) -> None:
        self.opened = 0

    def wait(self, seconds: float) -> bool:
        if not self.opened:
            # Exploring, the time of a get may be over at any moment; other times are over when nothing else can go on.
            brief = seconds < 2 and not getcurrent().background
            current().block(lambda: self.opened > 0, inf if seconds == inf else current().now + seconds, may_fire=brief)
            if not self.opened:
                return False
        self.opened -= 1
        return True

    def open(self) -> None:
        self.opened += 1


def sim_start_thread(target: Callable[[], None], name: str) -> Actor:
    return current().spawn(target, name, background=True)


class SimLocal:
    """Stands for ``threading.local``."""

    def __getattr__(self, name: str) -> Any:
        own = getattr(getcurrent(), "own", current().own)
        if name not in own:
            raise AttributeError(name)
        return own[name]

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(getcurrent(), "own", current().own)[name] = value


class SimOwn(SimLocal):
    """Stands for what a hook has raised in each thread."""

    def __getattr__(self, name: str) -> Any:
        return getattr(getcurrent(), "own", current().own).get(name)


def _guarded(method: Any) -> Any:
    """A method of the state that may be called under the lock only."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        lock = next(s.lock for s in sections if getattr(s, "state", None) is self)
        assert lock.held is getcurrent() or current().over, f"PoolState.{method.__name__} was called without the lock"
        return method(self, *args, **kwargs)

    return guarded


class GuardedState:
    """Stands for ``Slot.state``: it may be changed under a lock only."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __get__(self, slot: Any, owner: Any = None) -> Any:
        return self if slot is None else self.inner.__get__(slot, owner)

    def __set__(self, slot: Any, value: str) -> None:
        assert slot.id == 0 or any(s.lock._is_owned() for s in sections), (
            "a connection's state changes without the lock"
        )
        self.inner.__set__(slot, value)


@contextmanager
def simulation(scheduler: Scheduler) -> Iterator[None]:
    """Put the scheduler's things in the place of the machine's."""
    global _scheduler
    threads = types.SimpleNamespace(current_thread=getcurrent, local=SimLocal)
    init = _shell.Shell.__init__

    def watched_init(self: Any, *args: Any) -> None:
        init(self, *args)
        section = self.section
        section.state = self.state

        def check() -> None:
            if section.owner is None and not self.state.work:
                check_invariants(self.state)

        section.lock.check = check

    mutators = {
        name: _guarded(method)
        for name, method in vars(PoolState).items()
        if isinstance(method, types.FunctionType)
        and not name.startswith("_")
        and name not in {*READS, "configure", "shut"}
    }
    local = SimLocal()
    before, _scheduler = _scheduler, scheduler
    with (
        mock.patch.multiple(
            _primitives,
            Gate=SimGate,
            Section=SimSection,
            monotonic=now,
            start_thread=sim_start_thread,
            current_thread=getcurrent,
        ),
        mock.patch.object(_borrower, "local", local),
        mock.patch.object(_pool, "local", local),
        mock.patch.object(_borrower, "threading", threads),
        mock.patch.object(_hooks, "_Own", SimOwn),
        mock.patch.object(_lifecycle, "threading", threads),
        mock.patch.object(_lifecycle, "_alive", weakref.WeakSet()),
        mock.patch.object(_shell.Shell, "__init__", watched_init),
        mock.patch.multiple(PoolState, **mutators),
        mock.patch.object(Slot, "state", GuardedState(vars(Slot)["state"])),
    ):
        try:
            yield
        finally:
            scheduler.end()
            sections.clear()
            _scheduler = before


def simulate(scenario: Callable[[], object]) -> None:
    """Run a scenario as one thread on virtual time, to its end and to the end of all threads that it started."""
    scheduler = Scheduler()
    with simulation(scheduler):
        main = scheduler.spawn(scenario, "main")
        scheduler.run(lambda: main.dead)
        if main.error is not None:
            raise main.error
        if (failed := next((actor for actor in scheduler.actors if actor.error is not None), None)) is not None:
            raise failed.error  # type: ignore[misc]
        left = [actor.name for actor in scheduler.actors if not actor.dead and not actor.background]
        assert not left, f"threads are left: {left}"


def simulated(scenario: Callable[..., object]) -> Callable[..., None]:
    """Make a test that runs on virtual time."""

    @functools.wraps(scenario)
    def test(*args: Any, **kwargs: Any) -> None:
        simulate(lambda: scenario(*args, **kwargs))

    return test


def explore(once: Callable[[Scheduler], object], *, limit: int) -> tuple[int, bool]:
    """Run ``once`` with every schedule. Returns how many runs it took, and whether they were all."""
    seen: set[Any] = set()
    prefix: list[int] = []
    for run in range(1, limit + 1):
        scheduler = Scheduler(prefix, seen)
        try:
            with simulation(scheduler):
                once(scheduler)
        except Pruned:
            pass
        except BaseException as error:
            error.add_note(f"run {run}, choices {[choice for choice, _ in scheduler.trace]}")
            raise
        trace = scheduler.trace
        while trace and trace[-1][0] + 1 >= trace[-1][1]:
            trace.pop()
        if not trace:
            return run, True
        prefix = [choice for choice, _ in trace[:-1]] + [trace[-1][0] + 1]
    return limit, False
