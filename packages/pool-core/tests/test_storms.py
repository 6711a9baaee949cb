"""Random storms on virtual time: everything a program, an owner and a server can do to a pool, in a random order.

Each storm is drawn from one seed and repeats exactly. A storm that fails prints its seed and the command that runs it
again. The guard (guard.py) checks the pool after every callback: some faults show only in a state that no other test
reaches. POOL_STORM_SEEDS is the number of storms (200), POOL_STORM_SEED runs one alone, and POOL_STORM_SOAK is the
number of storms under ``-m soak`` (5,000), which begin at a random seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool, PoolError, QueueStrategy
from pool_core._config import option_names
from pool_core.testing import (
    NEVER,
    OK,
    Delay,
    FakeConnection,
    ScriptedCustomizer,
    ScriptedManager,
    Steps,
    SwallowCancel,
    run,
    settle,
)

from . import guard
from .disturbances import Tally
from .helpers import books

if TYPE_CHECKING:
    from collections.abc import Iterator

SEEDS = int(os.environ.get("POOL_STORM_SEEDS", "200"))
SOAK = int(os.environ.get("POOL_STORM_SOAK", "5000"))
CHOSEN = [int(os.environ["POOL_STORM_SEED"])] if "POOL_STORM_SEED" in os.environ else range(SEEDS)
ACTS = 250


class Storm:
    """One pool with random options, its users, its owner and its server."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.ill = rng.choice([0.0, 0.1, 0.4])  # the share of the manager's calls that go wrong
        self.meddling = rng.choice([0.0, 0.02, 0.1])  # the share of events on which a hook calls the pool
        self.bugs: list[BaseException] = []
        self.users: dict[asyncio.Task[Any], str] = {}  # ordered, so that a seed repeats its storm
        self.parked: list[Any] = []  # leases that any hook may release
        scripts = self._scripts()
        without = () if "reset" in scripts else rng.choice([(), ("reset",)])
        self.manager = ScriptedManager(without=without, **scripts)
        size = rng.randint(1, 4)
        options: dict[str, Any] = {
            "max_size": size,
            "min_idle": rng.choice([0, 0, 1, size]),
            "alive_bypass": rng.choice([0, 0.5, 2]),
            "test_on_check_out": rng.random() < 0.8,
            "max_uses": rng.choice([None, None, 5]),
            "max_lifetime": rng.choice([None, 3, 20]),
            "idle_timeout": rng.choice([None, 1, 5]),
            "reap_interval": rng.choice([0.5, 2, 10]),
            "max_waiting": rng.choice([None, None, 0, 2]),
            "max_connecting": rng.randint(1, 3),
            "queue_strategy": rng.choice(list(QueueStrategy)),
            "retry_connection": rng.random() < 0.8,
            "discard_on_exception": rng.random() < 0.3,
            "leak_threshold": rng.choice([None, None, 1]),
            "connection_timeout": rng.choice([3, 8]),
            "create_timeout": 2,
            "validation_timeout": 1,
            "reset_timeout": 1,
            "close_timeout": 1,
            "deadlock_after": rng.choice([0.5, 1]),
            "listeners": rng.choice([[], [], [self._hook]]),
            "error_sink": self._hook,
            "keepalive": rng.choice([None, None, 0.5, 3.0]),
            "customizer": rng.choice([None, None, self._customizer()]),
        }
        self.options = {name: value for name, value in options.items() if name in option_names()}
        self.pool: Pool[FakeConnection] = Pool(self.manager, **self.options)
        self.tally = Tally(self.pool)

    # -- the server

    def _scripts(self) -> dict[str, Any]:
        scripts: dict[str, Any] = {
            method: self._outcome(OSError(f"{method} failed")) for method in ("connect", "reset", "close")
        }
        scripts["is_valid"] = self._outcome(False)
        scripts["is_transient"] = lambda _: self.rng.random() < 0.8
        if self.rng.random() < 0.5:
            del scripts["reset"]  # then the reset is synchronous for a clean connection
        if self.rng.random() < 0.3:
            scripts["has_broken"] = lambda _: RuntimeError("has_broken failed") if self._goes_wrong(0.1) else OK
        return scripts

    def _customizer(self) -> ScriptedCustomizer:
        return ScriptedCustomizer(
            on_connect=self._outcome(OSError("on_connect failed")), on_close=self._outcome(OSError("on_close failed"))
        )

    def _goes_wrong(self, share: float = 1.0) -> bool:
        return self.rng.random() < self.ill * share

    def _outcome(self, wrong: Any) -> Any:
        def draw(_: object) -> Any:
            rng = self.rng
            if not self._goes_wrong():
                return rng.choice([OK, OK, Steps(2), Delay(0.2)]) if self.ill else OK
            late = Delay(3 * rng.random(), wrong)
            return rng.choice([wrong, wrong, late, Delay(rng.random()), NEVER, SwallowCancel(seconds=3)])

        return draw

    # -- hooks

    def _hook(self, _: object) -> None:
        """Call the pool from a listener or from the error_sink."""
        rng, pool = self.rng, self.pool
        if rng.random() >= self.meddling:
            return
        act = rng.randrange(5)
        if act == 0:
            self._evict()
        elif act == 1:
            self._resize()
        elif act == 2:
            pool.state()
            pool.holders()
        elif act == 3 and self.parked:
            self.parked.pop(rng.randrange(len(self.parked))).release()
        elif act == 4:
            raise RuntimeError("the hook failed")

    # -- users

    async def _work(self, conn: FakeConnection) -> None:
        """Use a connection, and leave it in some condition."""
        if conn.state == "open":  # else close() has terminated it
            await conn.query(self.rng.choice([0, 0.05, 0.5, 2]))
        dice = self.rng.random()
        if dice < 0.2:
            conn.dirty = True
        elif dice < 0.25:
            conn.broken = True
        elif dice < 0.3:
            conn.dead = True
        elif dice < 0.35:
            raise KeyError("the block failed")

    def _timeout(self) -> float | None:
        return self.rng.choice([None, None, None, 0, 0.1, 1.0])

    async def _get(self) -> None:
        await self.tally.get(self._timeout(), work=self._work)

    async def _nested(self) -> None:
        limit = self.rng.choice([None, 0.3, 1.5])
        await self.tally.get(self._timeout(), work=lambda _: self.tally.get(limit, work=self._work))

    async def _awaited(self) -> None:
        lease = await self.tally.lease(self._timeout())
        if lease is None:
            return
        try:
            await self._work(lease.conn)
            if self.rng.random() < 0.3:
                lease.discard()
        except (ConnectionError, KeyError):
            lease.release()
        finally:
            lease.release()

    async def _park(self) -> None:
        """Keep a lease without using it: meanwhile a hook may release it."""
        lease = await self.tally.lease(self._timeout())
        if lease is None:
            return
        self.parked.append(lease)
        try:
            await asyncio.sleep(2 * self.rng.random())
        finally:
            if lease in self.parked:
                self.parked.remove(lease)
            lease.release()

    def begin(self) -> None:
        """Start one more user."""
        user = self.rng.choice([self._get] * 4 + [self._nested, self._awaited, self._park, self.tally.try_get])
        self._start("user", user())

    def _start(self, kind: str, coro: Any) -> None:
        task = asyncio.create_task(coro)
        self.users[task] = kind
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self.users[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.bugs.append(error)

    # -- the owner

    async def _open(self) -> None:
        with contextlib.suppress(PoolError, OSError):  # OSError: what the fake server raises, TimeoutError included
            await self.pool.open(wait=self.rng.random() < 0.7)

    async def _close(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await self.pool.close(timeout)
        took = loop.time() - start
        assert took <= timeout + 1 + 1e-9, f"close({timeout}) took {took:g} s"

    def _evict(self) -> None:
        with contextlib.suppress(PoolError):
            self.pool.evict(self.rng.choice([None, lambda conn: conn.id % 2 == 0]))

    def _resize(self) -> None:
        size = self.rng.randint(1, 4)
        self.pool.resize(max_size=size, min_idle=self.rng.randint(0, size))

    def _add(self) -> None:
        conn = FakeConnection(1_000_000 + len(self.manager.connections))
        self.manager.connections.append(conn)
        try:
            self.pool.add(conn)
        except PoolError:
            conn.state = "closed"

    async def act(self) -> None:
        """Do one thing, drawn at random."""
        rng = self.rng
        dice = rng.random()
        if dice < 0.05:
            self.ill = rng.choice([0.0, 0.1, 0.5, 1.0])
        elif dice < 0.07:
            self.manager.kill(known=rng.random() < 0.5)
        elif dice < 0.12:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            for task in rng.sample(list(self.users), min(len(self.users), rng.choice([1, 1, 100]))):
                task.cancel()
        elif dice < 0.15:
            self._evict()
        elif dice < 0.17:
            self._resize()
        elif dice < 0.19:
            self._add()
        elif dice < 0.21:
            self._start("close", self._close(rng.choice([0, 0.5, 5])))
        elif dice < 0.23 or (not self.pool._state.is_open and dice < 0.5):
            self._start("open", self._open())
        elif dice < 0.6:
            for _ in range(rng.choice([1, 1, 2, 6])):
                self.begin()
        elif dice < 0.75:
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(rng.choice([0.05, 0.3, 1, 3]) * rng.random())

    def check(self) -> None:
        """The pool has counted what the users saw, and no task has failed in a way that the pool does not promise."""
        self.tally.check()
        if self.bugs:
            raise self.bugs[0]

    async def rage(self) -> None:
        """Do random things, come to rest, and close."""
        rng, pool = self.rng, self.pool
        self._start("open", self._open())
        for _ in range(ACTS):
            await self.act()
            self.check()
        for task, kind in list(self.users.items()):
            if kind == "open":
                task.cancel()  # else it might open the pool again after the last close()
        while any(kind == "open" for kind in self.users.values()):
            await asyncio.sleep(0.1)
        if pool._state.is_open and rng.random() < 0.5:
            await self._rest()
        self.ill = rng.choice([0.0, 0.5, 1.0])
        for _ in range(3):
            self.begin()
        await asyncio.sleep(rng.choice([0, 0.1, 1]))
        await self._close(rng.choice([0, 1, 5]))
        if self.users:
            await asyncio.wait(self.users, timeout=60)
        assert not self.users, f"these never end: {list(self.users)}"
        self.check()
        books(pool)
        state = pool.state()
        counts = (state.idle, state.in_use, state.opening, state.validating, state.resetting, state.closing)
        assert (*counts, state.waiting) == (0,) * 7, f"closed, and {state}"
        await asyncio.sleep(10)  # connection attempts that were abandoned end too
        self.manager.check(open=0)

    async def _rest(self) -> None:
        """With a healthy server all users end, and nothing stays under way."""
        self.ill = self.meddling = 0.0
        if self.users:
            await asyncio.wait(list(self.users), timeout=60)
        assert not self.users, f"these hang: {list(self.users)}"
        await asyncio.sleep(30)
        await settle()
        self.check()
        if self.pool._state.is_open:
            state = self.pool.state()
            under_way = (state.waiting, state.in_use, state.opening, state.validating, state.resetting, state.closing)
            assert under_way == (0,) * 6, f"at rest, and {state}"


def weather(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one storm. Failing, it says how to run it again."""
    storm = Storm(seed)
    for name, module in list(sys.modules.items()):
        if name.startswith("pool_core.") and hasattr(module, "_random"):
            monkeypatch.setattr(module, "_random", storm.rng.random)
    command = f"POOL_STORM_SEED={seed} python -m pytest packages/pool-core/tests/test_storms.py"
    try:
        run(storm.rage())
        found = guard.report()
        assert found is None, found
    except BaseException as error:
        found = guard.report()  # what the guard finds comes first: the rest is often its consequence
        note = f"{found or ''}\nstorm {seed}: {storm.options}\nrun it again: {command}"
        error.add_note(note)
        print(note)
        raise


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Thousands of failures would each log a line."""
    logger = logging.getLogger("pool_core")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize("seed", CHOSEN)
def test_a_pool_survives_a_random_storm(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Races between three things that happen at once are found by chance or not at all."""
    weather(seed, monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_pool_survives_thousands_of_random_storms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run other storms each time."""
    first = random.SystemRandom().randrange(1 << 32)
    print(f"storms {first} to {first + SOAK - 1}")
    for seed in range(first, first + SOAK):
        guard.start()
        weather(seed, monkeypatch)
