"""Random histories of PoolState, far longer than the walk's: invariants and the FIFO oracle after each step."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from pool_core import QueueStrategy

from .model import World


class PoolHistory(RuleBasedStateMachine):
    """One pool of any shape; each step is one of the operations possible now."""

    world: World

    @initialize(
        max_size=st.integers(1, 5),
        min_idle=st.integers(0, 2),
        alive_bypass=st.sampled_from([0, 0.5]),
        test_on_check_out=st.booleans(),
        retry=st.booleans(),
        strategy=st.sampled_from(QueueStrategy),
        max_waiting=st.sampled_from([None, 0, 2]),
        max_uses=st.sampled_from([None, 1, 3]),
        resets=st.booleans(),
    )
    def make(self, *, max_size: int, min_idle: int, retry: bool, strategy: QueueStrategy, **options: Any) -> None:
        self.world = World(
            getters=8,
            adds=3,
            max_size=max_size,
            min_idle=min(min_idle, max_size),
            retry_connection=retry,
            queue_strategy=strategy,
            **options,
        )

    @precondition(lambda self: self.world.operations())
    @rule(pick=st.integers(0, 10_000), close=st.integers(0, 30))
    def step(self, pick: int, close: int) -> None:
        operations = [op for op in self.world.operations() if op[0] != "close" or close == 0]
        if operations:
            self.world.do(operations[pick % len(operations)])

    @rule(how_many=st.integers(1, 5))
    def burst_of_gets(self, how_many: int) -> None:
        for _ in range(how_many):
            if ("get",) in self.world.operations():
                self.world.do(("get",))

    def teardown(self) -> None:
        """Whatever happened: closing ends, and the books balance."""
        if not hasattr(self, "world"):
            return
        world = self.world
        if world.state.is_open:
            world.do(("close",))
        for _ in range(1000):
            left = [
                op for op in world.operations() if op[0] not in ("die", "expire", "evict", "age", "later", "cancel")
            ]
            if not left:
                break
            world.do(left[0])
        now = world.state.snapshot()
        assert (now.idle, now.in_use, now.opening, now.validating, now.resetting, now.closing) == (0,) * 6
        totals = now.statistics
        assert totals.connections_created + totals.connections_added == sum(totals.connections_closed.values())


PoolHistory.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestPoolHistory = PoolHistory.TestCase
