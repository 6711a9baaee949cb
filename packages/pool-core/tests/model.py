"""A world around PoolState alone: its gets, its connections and its clock, for the walk and for Hypothesis.

Every operation is one that the shell could do now; after each one `check` asserts the invariants and the FIFO oracle.
"""

from __future__ import annotations

import copy
from typing import Any

from pool_core import CloseReason
from pool_core._config import PoolConfig
from pool_core._slot import BROKEN, DISCARD, RAISED, UNUSED, Approval, Order, Slot, Waiter
from pool_core._state import PoolState

from .invariants import check_invariants


class Conn:
    """A connection that can be broken."""

    def __init__(self) -> None:
        self.broken = False


class Get(Waiter[Conn]):
    """A get: it may die of a cancel that the state has not heard of yet."""

    __slots__ = ("answer", "cancelled", "number", "task")

    def __init__(self, number: int, *, idle_only: bool = False) -> None:
        super().__init__(self, idle_only=idle_only)
        self.number = number
        self.cancelled = False
        self.answer: Any = "none yet"

    def offer(self, slot: Slot[Conn] | None) -> bool:
        assert self.answer == "none yet", "a get was answered twice"
        if self.cancelled:
            return False
        self.answer = slot
        return True

    def gone(self) -> bool:
        return self.cancelled

    def fail(self, error: BaseException | None) -> None:
        assert self.answer == "none yet", "a get was answered twice"
        self.answer = "failed"


class Counter:
    """Ids; itertools.count cannot be copied."""

    def __init__(self) -> None:
        self.last = 0

    def __call__(self) -> int:
        self.last += 1
        return self.last


class World:
    """PoolState with everything that may happen to it."""

    def __init__(self, *, getters: int = 3, resets: bool = True, adds: int = 1, **options: Any) -> None:
        self.now = 100.0
        self.getters = getters
        self.resets = resets
        self.adds = adds
        self.config = PoolConfig(**options)
        self.state: PoolState[Conn] = PoolState(self.config, Counter(), wipes=resets)
        self.gets: list[Get] = []  # those that wait or hold
        self.made = 0
        self.state.open(self.now, starting=False)
        self.carry_out()

    def copy(self) -> World:
        twin = copy.deepcopy(self)
        twin.state.configure(twin.state.config)  # the copied state must pop from its own deques
        return twin

    # -- what the shell does

    def carry_out(self) -> None:
        """Orders are kept as facts of the state: a connect is an approval, a test is in `validating`."""
        state = self.state
        self.minted = 0
        while state.work:
            for order, subject in state.take_work():
                if order is Order.CONNECT:
                    assert subject in state.connects
                    self.minted += 1
                elif order in (Order.TEST, Order.CHECK):
                    assert subject in state.validating
                    if subject.conn.broken or order is Order.CHECK:
                        state.tested(subject, self.now, valid=True, broken=subject.conn.broken)
                elif order is Order.SWEEP:
                    state.sweep([slot for slot in state.idle.all() if slot.conn.broken])
                elif order in (Order.CLOSE, Order.TERMINATE):
                    assert subject in state.closing

    def take(self, get: Get) -> Slot[Conn] | None:
        """Hand out an idle connection that needs no validation, as the shell does."""
        if self.state.queue.live:
            return None
        while (slot := self.state.candidate()) is not None:
            if not slot.conn.broken:
                self.state.lend(slot, get, self.now)
                get.answer = slot
                return slot
            self.state.found_broken(slot, self.now)
        return None

    def give_back(self, slot: Slot[Conn], how: int) -> bool:
        """End a lease with the manager's verdict, as the shell does."""
        how |= BROKEN if slot.conn.broken else 0
        if not how and slot.mark is None and self.state.plain:
            return self.state.pass_on(slot, self.now)
        return self.state.give_back(slot, self.now, how)

    def operations(self) -> list[tuple[Any, ...]]:
        """Everything that may happen now."""
        state = self.state
        ops: list[tuple[Any, ...]] = []
        if state.is_open and len(self.gets) < self.getters:
            ops += [("get",), ("try_get",)]
        for index, get in enumerate(self.gets):
            if get.queued:
                ops.append(("give_up", index))
                if not get.cancelled:
                    ops.append(("cancel", index))
            elif isinstance(get.answer, Slot):
                ops += [("release", index, how) for how in ("clean", "broken", "raised", "discard")]
                ops += [("put_back", index), ("detach", index), ("leak", index)]
            else:
                ops.append(("go_on", index))
        for index in range(len(state.connects)):
            ops += [("connect", index, how) for how in ("ok", "transient", "fatal", "off")]
        for index in range(len(state.validating)):
            ops += [("test", index, how) for how in ("ok", "invalid", "timeout", "dead")]
        for index in range(len(state.resetting)):
            ops += [("reset", index, how) for how in ("ok", "failed", "timeout", "dead")]
        if any(get.cancelled for get in self.gets):
            ops.append(("cut_off",))
        if state.closing:
            ops.append(("gone",))
        ops += [("die", index) for index in range(len(state.idle))]
        if state.fresh:
            ops.append(("age",))
        if state.slots:
            ops += [("expire",), ("evict",)]
        if state.queue.live or state.connects.failures:
            ops.append(("later",))
        if state.is_open:
            ops.append(("close",))
            ops.append(("resize", 1 if state.max_size > 1 else 2))
            ops.append(("reap",))
            if self.adds:
                ops.append(("add",))
        elif state.slots:
            ops.append(("terminate_all",))
        return ops

    def do(self, op: tuple[Any, ...]) -> None:
        served = self._waiting()
        getattr(self, "do_" + op[0])(*op[1:])
        self.carry_out()
        self._check_fifo(served)
        self.check()

    def do_get(self) -> None:
        self.made += 1
        get = Get(self.made)
        nobody = not any(g.queued for g in self.gets)
        slot = self.take(get)
        if slot is not None:
            assert nobody, "a newcomer overtook a waiter"
            slot.uses += 1
        elif not self.state.enqueue(get, self.now):
            return
        self.gets.append(get)

    def do_try_get(self) -> None:
        self.made += 1
        get = Get(self.made, idle_only=True)
        if self.take(get) is not None:
            self.gets.append(get)
        elif self.state.idle.stale and self.state.queue.live == self.state.queue.tries:
            self.state.enqueue(get, self.now)
            self.gets.append(get)

    def do_cancel(self, index: int) -> None:
        self.gets[index].cancelled = True

    def do_give_up(self, index: int) -> None:
        self.state.give_up(self.gets.pop(index), self.now)

    def do_go_on(self, index: int) -> None:
        get = self.gets.pop(index)
        if get.cancelled:
            self.state.give_up(get, self.now)

    def do_release(self, index: int, how: str) -> None:
        slot = self.gets.pop(index).answer
        slot.conn.broken = slot.conn.broken or how == "broken"
        if slot not in self.state.slots:
            return  # terminated by close()
        flags = {"raised": RAISED, "discard": DISCARD}.get(how, 0)
        if self.give_back(slot, flags):
            self.state.begin_reset(slot, self.now)

    def do_put_back(self, index: int) -> None:
        self.give_back(self.gets.pop(index).answer, UNUSED)

    def do_detach(self, index: int) -> None:
        slot = self.gets.pop(index).answer
        if slot in self.state.slots:
            self.state.detach(slot, self.now)

    def do_leak(self, index: int) -> None:
        slot = self.gets.pop(index).answer
        if slot in self.state.slots:
            self.state.reclaim(slot, self.now)

    def do_connect(self, index: int, how: str) -> None:
        approval: Approval[Conn] = list(self.state.connects)[index]
        if how == "ok":
            self.state.put(approval, Conn(), self.now, 1000.0)
        else:
            error = None if how == "off" else OSError(how)
            self.state.connect_failed(approval, error, self.now, transient=how != "fatal", jitter=0.5)

    def do_test(self, index: int, how: str) -> None:
        slot = list(self.state.validating)[index]
        slot.conn.broken = slot.conn.broken or how == "dead"
        self.state.tested(
            slot,
            self.now,
            valid=how in ("ok", "dead"),
            broken=slot.conn.broken,
            timed_out=how == "timeout",
        )

    def do_reset(self, index: int, how: str) -> None:
        slot = list(self.state.resetting)[index]
        slot.conn.broken = slot.conn.broken or how == "dead"
        self.state.reset_done(
            slot,
            self.now,
            ok=how in ("ok", "dead"),
            broken=slot.conn.broken,
            timed_out=how == "timeout",
        )

    def do_cut_off(self) -> None:
        self.state.cut_off()
        self.state.agenda.reap_at = self.now
        self.wake(0.0)

    def do_gone(self) -> None:
        self.state.gone(min(self.state.closing, key=lambda slot: slot.id), self.now)

    def do_die(self, index: int) -> None:
        [*self.state.fresh, *self.state.idle.stale][index].conn.broken = True

    def do_age(self) -> None:
        self.wake(1.0)

    def do_expire(self) -> None:
        """The oldest connection's lifetime is over."""
        slot = min(self.state.slots, key=lambda slot: (slot.expires_at, slot.id))
        slot.expires_at = self.state.agenda.next_expiry = self.now
        self.wake(0.0)

    def do_later(self) -> None:
        """Enough time for tests and resets to be slow, and for a back-off to end; as the alarm would fire."""
        self.wake(2.5)

    def wake(self, seconds: float) -> None:
        """Let time pass, and ring the alarm as the shell would."""
        self.now += seconds
        self.state.wake(self.now, self.state.queue.overdue(self.now))

    def do_evict(self) -> None:
        self.state.evict(None, self.now)

    def do_resize(self, max_size: int) -> None:
        self.config = self.config.resized(max_size=max_size, min_idle=min(self.config.min_idle, max_size))
        self.state.resize(self.config, self.now)

    def do_reap(self) -> None:
        self.state.agenda.reap_at = self.now
        self.wake(0.0)

    def do_add(self) -> None:
        self.adds -= 1
        self.state.add(Conn(), self.now, 1000.0)

    def do_close(self) -> None:
        self.state.close(self.now)

    def do_terminate_all(self) -> None:
        self.state.terminate_all()

    # -- what must hold

    def _waiting(self) -> list[Get]:
        return [get for get in self.gets if get.queued and not get.cancelled]

    def _check_fifo(self, before: list[Get]) -> None:
        """Among those that waited and still would, the ones served are the first ones."""
        served = [get for get in before if not get.queued and isinstance(get.answer, Slot)]
        waiting = [get for get in before if get.queued]
        for get in served:
            assert all(get.number < other.number for other in waiting if not other.idle_only), "not in order"

    def check(self) -> None:
        state = self.state
        check_invariants(state)
        assert not state.is_open or state.agenda.due <= state.wake_at(), "the alarm would come too late"
        now = state.snapshot()
        total = now.idle + now.in_use + now.opening + now.validating + now.resetting + now.closing
        # Not at any time: after a shrink the surplus drains.
        assert not self.minted or total <= state.max_size, f"opened: {total} connections for max_size={state.max_size}"
        assert len(state.connects) <= self.config.max_connecting
        holding = [get.answer for get in self.gets if isinstance(get.answer, Slot)]
        assert len(holding) == len(set(holding)), "two gets hold one connection"
        for get in self.gets:
            if isinstance(get.answer, Slot) and get.answer in state.slots:
                assert get.answer.holder is get, "a connection in use has another holder"
            assert not (get.queued and not state.is_open), "a get waits for a closed pool"
        for slot in state.slots:
            assert slot.mark is None or slot.mark in (
                CloseReason.EVICTED,
                CloseReason.LIFETIME,
                CloseReason.POOL_CLOSED,
            )
        if not state.is_open:
            assert not (len(state.idle) or state.validating), "a closed pool keeps idle connections"

    def fingerprint(self) -> tuple[Any, ...]:
        """The state without ids and absolute times: two worlds alike behave alike."""
        state = self.state
        order = {get: index for index, get in enumerate(self.gets)}

        def who(waiter: Any) -> int:
            return order.get(waiter, -1)

        def slot_print(slot: Slot[Conn]) -> tuple[Any, ...]:
            trial = state.validating.get(slot) or state.resetting.get(slot)
            return (
                slot.conn.broken,
                slot.suspect,
                trial is not None and trial.late,
                trial is not None and trial.keeps,
                self.config.keepalive is not None and slot.heard_at() + self.config.keepalive <= self.now,
                slot.mark,
                slot.expires_at <= self.now,
                slot.stamp <= state._swept_at,
                slot.validated or slot.born < state.connects._dud_at,
                who(trial.waiter if trial is not None else None),
                who(slot.holder),
                slot.uses > 0,
            )

        return (
            tuple(map(slot_print, state.fresh)),
            tuple(map(slot_print, state.idle.stale)),
            tuple(map(slot_print, state.validating)),
            tuple(map(slot_print, state.resetting)),
            tuple(sorted(map(slot_print, set(state.slots) - set(state.idle.all())), key=repr)),
            len(state.closing),
            tuple((who(a.waiter), a.orphan, a.generation == state.generation, a.late) for a in state.connects),
            tuple((g.queued, g.cancelled, g.idle_only, str(type(g.answer))) for g in self.gets),
            (
                state.is_open,
                state.slow,
                state.floor,
                state.paused,
                min(state.connects.failures, 1),
                self.now < state.connects.retry_at,
            ),
            (state.max_size, state.min_idle, self.adds, state.last_error is None, min(state.connects._duds, 3)),
        )
