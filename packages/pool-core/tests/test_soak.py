"""Minutes of random load, kills, cancels and owners' whims, on virtual and on real time: the books balance at any time.

Run by ``-m soak`` only. Each test draws its own seed and prints it; POOL_SOAK_SEED repeats one. POOL_SOAK_SECONDS is the
length of each part (50) in real time, POOL_WALK_STATES that of the walk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool, PoolError, QueueStrategy
from pool_core.testing import NEVER, OK, Delay, FakeConnection, ScriptedCustomizer, ScriptedManager, Steps, run

from .disturbances import DISTURBANCES, Tally, disturbed
from .test_state_walk import POOLS, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

SECONDS = float(os.environ.get("POOL_SOAK_SECONDS", "50"))
STATES = int(os.environ.get("POOL_WALK_STATES", "12000"))


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Many thousand abandoned connections, one line each."""
    logger = logging.getLogger("pool_core")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def drawn_seed() -> int:
    """Another one each time, unless one is to be repeated."""
    seed = int(os.environ.get("POOL_SOAK_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"POOL_SOAK_SEED={seed}")
    return seed


class Storm:
    """A pool of random shape, a server that is well and ill in turn, users, and an owner who cannot leave it alone.

    ``pace``: the second of which all times are made.
    """

    def __init__(self, rng: random.Random, *, pace: float, slack: float) -> None:
        self.rng = rng
        self.pace = pace
        self.ill = 0.0  # the share of calls that go wrong
        self.bugs: list[BaseException] = []
        self.users: dict[asyncio.Task[None], None] = {}  # in order, so that a seed repeats the storm
        self.manager = ScriptedManager(without=rng.choice([(), (), ("terminate",), ("reset",)]))
        verbs = [verb for verb in ("connect", "is_valid", "reset", "close") if hasattr(self.manager, verb)]
        self.manager.script(**{verb: self._outcome(verb) for verb in verbs})
        hooks = ScriptedCustomizer(on_connect=self._outcome("on_connect"), on_close=self._outcome("on_close"))
        size = rng.randint(1, 8)
        self.options: dict[str, Any] = {
            "max_size": size,
            "min_idle": rng.randint(0, min(2, size)),
            "alive_bypass": rng.choice([0, 2 * pace]),
            "test_on_check_out": rng.random() < 0.8,
            "max_uses": rng.choice([None, 20]),
            "max_lifetime": rng.choice([None, 100 * pace]),
            "idle_timeout": rng.choice([None, 30 * pace]),
            "reap_interval": 10 * pace,
            "max_waiting": rng.choice([None, 0, 4]),
            "max_connecting": rng.randint(1, 4),
            "queue_strategy": rng.choice(list(QueueStrategy)),
            "retry_connection": rng.random() < 0.7,
            "discard_on_exception": rng.random() < 0.3,
            "leak_threshold": rng.choice([None, 5 * pace]),
            "listeners": rng.choice([[], [], [self._listen]]),
            "customizer": rng.choice([None, hooks]),
        }
        self.pool: Pool[FakeConnection] = Pool(
            self.manager,
            connection_timeout=40 * pace,
            create_timeout=10 * pace,
            validation_timeout=10 * pace,
            reset_timeout=10 * pace,
            close_timeout=10 * pace,
            error_sink=lambda _: None,
            **self.options,
        )
        self.tally = Tally(self.pool, slack=slack)

    def _listen(self, _: object) -> None:
        if self.rng.random() < 0.01:
            raise RuntimeError("a listener's own")

    def _outcome(self, verb: str) -> Any:
        def draw(_: object) -> Any:
            if self.rng.random() >= self.ill:
                return self.rng.choice([OK, Steps(2), Delay(0.2 * self.pace)])
            wrong = False if verb == "is_valid" else OSError(f"{verb} failed")
            late = Delay(12 * self.pace * self.rng.random(), wrong)
            return self.rng.choice([wrong, wrong, late, Delay(self.pace), NEVER])

        return draw

    async def work(self, conn: FakeConnection) -> None:
        """Use a connection, and leave it in whatever condition."""
        if conn.state == "open":  # else close() ran out of time
            await conn.query(self.pace * self.rng.random())
        dice = self.rng.random()
        if dice < 0.1:
            conn.dirty = True
        elif dice < 0.13:
            conn.broken = True
        elif dice < 0.2:
            raise KeyError("the borrower's own")

    async def by_await(self) -> None:
        """The other form, ended in one of the ways there are."""
        lease = await self.tally.lease()
        if lease is None:
            return
        try:
            await self.work(lease.conn)
            dice = self.rng.random()
            if dice < 0.1:
                lease.discard()
            elif dice < 0.2:
                self.throw_away(lease.detach())
        except (ConnectionError, KeyError):
            lease.release()
        finally:
            lease.release()

    async def nested(self) -> None:
        """A second connection while holding one: sometimes a deadlock."""
        await self.tally.get(work=lambda _: self.tally.get(work=self.work))

    def throw_away(self, conn: FakeConnection) -> None:
        """Of no pool any more."""
        if conn.state == "open":
            conn.state = "closed"

    def begin(self) -> None:
        """One more user."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.6:
            coro = self.tally.get(rng.choice([None, None, 0, self.pace * 3 * rng.random()]), work=self.work)
        elif kind < 0.85:
            coro = self.by_await()
        elif kind < 0.9:
            coro = self.nested()
        else:
            coro = self.tally.try_get()
        user = asyncio.create_task(coro)
        self.users[user] = None
        user.add_done_callback(self.ended)

    def ended(self, user: asyncio.Task[None]) -> None:
        """No user sees anything but what the pool promises."""
        del self.users[user]
        if not user.cancelled() and (error := user.exception()) is not None:
            self.bugs.append(error)

    async def act(self) -> None:
        """Whoever's turn it is: the server, the owner, a user, or the clock."""
        rng, pool = self.rng, self.pool
        dice = rng.random()
        if dice < 0.02:
            self.ill = rng.choice([0.0, 0.0, 0.05, 0.3, 1.0])
        elif dice < 0.03:
            self.manager.kill(known=rng.random() < 0.5)
        elif dice < 0.06:
            for user in rng.sample(
                sorted(self.users, key=id), rng.choice([0, min(1, len(self.users)), len(self.users)])
            ):
                user.cancel()
        elif dice < 0.07:
            pool.evict(rng.choice([None, lambda conn: conn.id % 2 == 0]))
        elif dice < 0.08:
            size = rng.randint(1, 8)
            pool.resize(max_size=size, min_idle=rng.randint(0, min(size, 2)))
        elif dice < 0.09:
            self.manager.connections.append(conn := FakeConnection(1_000_000 + len(self.manager.connections)))
            try:
                pool.add(conn)
            except PoolError:
                self.throw_away(conn)
        elif dice < 0.095:
            for _ in range(50):
                self.begin()
        elif dice < 0.5:
            self.begin()
        elif dice < 0.8:
            await asyncio.sleep(0)
        elif dice < 0.99:
            await asyncio.sleep(self.pace * rng.random())
        else:
            await asyncio.sleep(20 * self.pace * rng.random())

    async def rage(self, acts: int) -> None:
        """Open, rage, calm down, serve, close."""
        pool, tally, pace = self.pool, self.tally, self.pace
        await pool.open()
        for _ in range(acts):
            await self.act()
            tally.check()
            if self.bugs:
                raise self.bugs[0]
        self.ill = 0.0
        if self.users:
            await asyncio.wait(self.users, timeout=100 * pace)
        assert not self.users, "somebody hangs"
        await asyncio.sleep(30 * pace)
        state = pool.state()
        assert (state.waiting, state.in_use, state.opening, state.validating, state.resetting) == (0,) * 5
        await tally.get()
        tally.check()
        loop = asyncio.get_running_loop()
        self.ill = self.rng.choice([0.0, 1.0])
        for _ in range(5):
            self.begin()
        await asyncio.sleep(pace * self.rng.random())
        start = loop.time()
        await pool.close(self.rng.choice([0, pace, 10 * pace]))
        assert loop.time() - start <= 10 * pace + 1 + tally.slack
        if self.users:
            await asyncio.wait(self.users)
        tally.check()
        if self.bugs:
            raise self.bugs[0]
        left = [conn for conn in self.manager.connections if conn.state == "open"]
        assert len(left) <= pool.state().statistics.connections_abandoned
        self.manager.check()


def test_storms_on_virtual_time_leave_the_books_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand pools of random shapes through all that can happen to them."""
    seeds = random.Random(drawn_seed())
    end = time.monotonic() + SECONDS
    storms = 0
    while time.monotonic() < end:
        storm_seed = seeds.randrange(1 << 32)
        rng = random.Random(storm_seed)
        monkeypatch.setattr("pool_core._shell._random", rng.random)
        storm = Storm(rng, pace=1.0, slack=0.0)
        try:
            run(storm.rage(1000))
        except BaseException as error:
            error.add_note(f"storm {storm_seed}: {storm.options}")
            raise
        storms += 1
    print(f"{storms} storms")


def test_storms_on_a_real_loop_leave_the_books_balanced() -> None:
    """The same with a clock that runs by itself: ten at once, since most of their time is waiting."""
    seeds = random.Random(drawn_seed())
    end = time.monotonic() + SECONDS

    async def one_after_the_other() -> int:
        storms = 0
        while time.monotonic() < end:
            storm_seed = seeds.randrange(1 << 32)
            storm = Storm(random.Random(storm_seed), pace=0.01, slack=5.0)
            try:
                await storm.rage(1000)
            except BaseException as error:
                error.add_note(f"storm {storm_seed}: {storm.options}")
                raise
            storms += 1
        return storms

    async def main() -> None:
        counts = await asyncio.gather(*(one_after_the_other() for _ in range(10)))
        print(f"{sum(counts)} storms")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_busy_pool_is_disturbed_twice_in_any_moments_and_keeps_its_books() -> None:
    """Races of two: as many pairs of disturbances and of turns as there is time for."""
    rng = random.Random(drawn_seed())
    names = list(DISTURBANCES)
    end = time.monotonic() + SECONDS
    pairs = 0
    while time.monotonic() < end:
        first = rng.randrange(55)
        pair = ((first, rng.choice(names)), (first + rng.randrange(15), rng.choice(names)))
        try:
            run(disturbed(*pair))
        except BaseException as error:
            error.add_note(f"disturbed by {pair}")
            raise
        pairs += 1
    print(f"{pairs} pairs")


@pytest.mark.parametrize("name", POOLS)
def test_every_state_reached_by_a_small_pool_in_many_more_steps_keeps_the_invariants(name: str) -> None:
    """The walk of test_state_walk.py, five times as far."""
    states, complete = walk(STATES, **POOLS[name])
    print(f"{name}: {states} states{', all there are' if complete else ''}")
    assert complete or states == STATES
