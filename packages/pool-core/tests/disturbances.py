"""A busy pool and what may happen to it, at any turn of the loop: for the tests of one disturbance, and of two."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from pool_core import Pool, PoolDeadlock, PooledConnection, PoolError, PoolTimeout
from pool_core.testing import FakeConnection, ScriptedManager, Steps

from .helpers import books


class Tally:
    """What became of gets, counted outside of the pool.

    ``slack``: by how many seconds a get may end late; 0 on virtual time.
    """

    def __init__(self, pool: Pool[Any], *, slack: float = 0.0) -> None:
        self.pool = pool
        self.slack = slack
        self.ends: Counter[str] = Counter()

    async def get(self, timeout: float | None = None, *, work: Callable[[Any], Any] | None = None) -> None:
        """One get by ``async with``, its work on the connection, and how it ended."""
        start = asyncio.get_running_loop().time()
        served = False
        try:
            async with self.pool.get(timeout) as conn:
                served = True
                self._served(start, timeout)
                await (conn.query(0.1) if work is None else work(conn))
        except BaseException as error:
            if not served:
                self._refused(error, start, timeout)
            if not isinstance(error, (PoolError, ConnectionError, KeyError)):
                raise

    async def lease(self, timeout: float | None = None) -> PooledConnection[Any] | None:
        """One get by ``await``, and how it ended; None if there was no connection."""
        start = asyncio.get_running_loop().time()
        try:
            lease = await self.pool.get(timeout)
        except BaseException as error:
            self._refused(error, start, timeout)
            if not isinstance(error, PoolError):
                raise
            return None
        self._served(start, timeout)
        return lease

    async def try_get(self) -> None:
        """try_get() counts only if it returns a lease."""
        try:
            lease = await self.pool.try_get()
        except PoolError:
            return
        if lease is not None:
            self.ends["served"] += 1
            lease.release()

    def _served(self, start: float, timeout: float | None) -> None:
        self.ends["served"] += 1
        assert self._late(start, timeout) <= self.slack + 1e-9, "served after its deadline"

    def _refused(self, error: BaseException, start: float, timeout: float | None) -> None:
        if isinstance(error, asyncio.CancelledError):
            self.ends["cancelled"] += 1
        elif isinstance(error, PoolTimeout) and not isinstance(error, PoolDeadlock):
            self.ends["timed out"] += 1
            assert abs(self._late(start, timeout)) <= self.slack + 1e-9, "timed out at another time"
        elif isinstance(error, PoolError):
            self.ends["failed"] += 1
            assert self._late(start, timeout) <= self.slack + 1e-9, "failed after its deadline"

    def _late(self, start: float, timeout: float | None) -> float:
        limit = self.pool.config.connection_timeout if timeout is None else timeout
        assert limit is not None
        return asyncio.get_running_loop().time() - start - limit

    def check(self) -> None:
        """At any time: the pool has counted the same, and contradicts itself nowhere."""
        books(self.pool)
        state = self.pool.state()
        totals = state.statistics
        assert totals.gets_direct + totals.gets_waited == self.ends["served"]
        assert totals.gets_timed_out == self.ends["timed out"]
        assert totals.gets_cancelled == self.ends["cancelled"]
        assert totals.gets_failed == self.ends["failed"]
        assert totals.gets_started == self.ends.total() + state.waiting


class Busy:
    """Five tasks at a pool of two, every call of the manager takes turns of the loop, and each connection is tested."""

    def __init__(self) -> None:
        self.manager = ScriptedManager(connect=Steps(2), is_valid=Steps(2), reset=Steps(2), close=Steps(2))
        self.pool: Pool[FakeConnection] = Pool(
            self.manager, max_size=2, min_idle=1, alive_bypass=0, max_lifetime=None, error_sink=lambda _: None
        )
        self.tally = Tally(self.pool)
        self.users: list[asyncio.Task[None]] = []
        self.closings: list[asyncio.Task[None]] = []

    async def user(self) -> None:
        """Two gets, one after the other; the second one's work fails now and then."""

        async def works(conn: FakeConnection) -> None:
            for _ in range(2):
                if conn.state == "terminated":  # close(0) leaves no time to finish
                    assert not self.pool._state.is_open
                    raise ConnectionAbortedError
                await conn.query()
            if conn.id % 3 == 0:
                raise KeyError("the borrower's own")

        for _ in range(2):
            await self.tally.get(work=works)

    async def start(self) -> None:
        """Open the pool and let the users loose."""
        await self.pool.open()
        self.users = [asyncio.create_task(self.user()) for _ in range(5)]

    def over(self) -> bool:
        """Whether the load has ended."""
        return all(user.done() for user in self.users)

    async def turn(self) -> None:
        """One turn of the loop, and a look at the books."""
        await asyncio.sleep(0)
        self.tally.check()

    async def finish(self) -> None:
        """Whatever was done to it: the load ends, the pool comes to rest, and closes without a trace."""
        for _ in range(300):
            await self.turn()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 31
        while not self.over():
            await asyncio.sleep(0.5)
            self.tally.check()
            assert loop.time() < deadline, "somebody hangs"
        for end in await asyncio.gather(*self.users, return_exceptions=True):
            assert end is None or isinstance(end, asyncio.CancelledError), end
        await asyncio.gather(*self.closings)
        self.tally.check()
        if not self.closings:
            await asyncio.sleep(121)  # the reaper has looked more often than connects can fail
            state = self.pool.state()
            assert state.idle >= self.pool.config.min_idle
            assert (state.in_use, state.opening, state.validating, state.resetting, state.closing) == (0,) * 5
            assert state.idle <= self.pool.config.max_size
            await asyncio.gather(*(self.tally.get() for _ in range(4)))
            self.tally.check()
        await self.pool.close()
        self.tally.check()
        assert self.pool.state().idle == 0
        self.manager.check(open=0)


def _add(busy: Busy) -> None:
    conn = FakeConnection(1000 + len(busy.manager.connections))
    busy.manager.connections.append(conn)
    try:
        busy.pool.add(conn)
    except PoolError:
        busy.manager.terminate(conn)


def _dirty(busy: Busy) -> None:
    for conn in busy.manager.open:
        conn.dirty = True


def _close(timeout: float) -> Callable[[Busy], None]:
    def close(busy: Busy) -> None:
        busy.closings.append(asyncio.create_task(busy.pool.close(timeout)))

    return close


def _unless_closed(act: Callable[[Busy], object]) -> Callable[[Busy], None]:
    def acts(busy: Busy) -> None:
        if busy.pool._state.is_open:
            act(busy)

    return acts


def _try(busy: Busy) -> None:
    busy.users.append(asyncio.create_task(busy.tally.try_get()))


def _listen(busy: Busy) -> None:
    end = busy.pool.add_listener(lambda _: None)
    asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(end))


DISTURBANCES: dict[str, Callable[[Busy], object]] = {
    "evict": _unless_closed(lambda busy: busy.pool.evict()),
    "evict some": _unless_closed(lambda busy: busy.pool.evict(lambda conn: conn.id % 2 == 0)),
    "shrink": _unless_closed(lambda busy: busy.pool.resize(max_size=1, min_idle=1)),
    "grow": _unless_closed(lambda busy: busy.pool.resize(max_size=4, min_idle=3)),
    "add": _unless_closed(_add),
    "connections die": lambda busy: busy.manager.kill(),
    "connections die and drivers know": lambda busy: busy.manager.kill(known=True),
    "connects fail": lambda busy: busy.manager.script(connect=[Steps(1, OSError("down")) for _ in range(3)]),
    "tests fail": lambda busy: busy.manager.script(is_valid=[Steps(1, False) for _ in range(2)]),
    "resets fail": lambda busy: busy.manager.script(reset=[Steps(1, OSError("no")) for _ in range(2)]),
    "closes fail": lambda busy: busy.manager.script(close=[Steps(1, OSError("no")) for _ in range(2)]),
    "one is cancelled": lambda busy: busy.users[1].cancel(),
    "all are cancelled": lambda busy: [user.cancel() for user in busy.users],
    "a try_get": _unless_closed(_try),
    "a listener comes and goes": _unless_closed(_listen),
    "close": _close(5),
    "close at once": _close(0),
}


async def disturbed(*disturbances: tuple[int, str]) -> bool:
    """Disturb the busy pool at these turns. False: the load was over by then."""
    busy = Busy()
    await busy.start()
    begun = True
    at = 0
    for turn, name in disturbances:
        while at < turn:
            await busy.turn()
            at += 1
        begun = not busy.over()
        DISTURBANCES[name](busy)
        busy.tally.check()
    await busy.finish()
    return begun
