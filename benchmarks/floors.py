"""The floors, written for the purpose: what a pool costs that does nothing, and one that does the least it must.

Ratios to them hold from machine to machine, where nanoseconds do not.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from .fakes import FakeConnection, FakeManager


class L0:
    """No feature at all: a deque behind a slotted `async with`. No pool with this interface can cost less."""

    __slots__ = ("idle",)

    def __init__(self, conns: list[FakeConnection]) -> None:
        self.idle = deque(conns)

    def get(self) -> L0Lease:
        return L0Lease(self)


class L0Lease:
    __slots__ = ("conn", "pool")

    def __init__(self, pool: L0) -> None:
        self.pool = pool

    async def __aenter__(self) -> FakeConnection:
        conn = self.conn = self.pool.idle.pop()
        return conn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.idle.append(self.conn)


class Queue:
    """L0 with waiting: a queue of bare futures, served in order. No timeout, and a cancelled get loses what it got."""

    __slots__ = ("idle", "waiters")

    def __init__(self, conns: list[FakeConnection]) -> None:
        self.idle = deque(conns)
        self.waiters: deque[asyncio.Future[FakeConnection]] = deque()

    def get(self) -> QueueLease:
        return QueueLease(self)


class QueueLease:
    __slots__ = ("conn", "pool")

    def __init__(self, pool: Queue) -> None:
        self.pool = pool

    async def __aenter__(self) -> FakeConnection:
        pool = self.pool
        if pool.idle:
            conn = self.conn = pool.idle.pop()
            return conn
        waiter: asyncio.Future[FakeConnection] = asyncio.get_running_loop().create_future()
        pool.waiters.append(waiter)
        conn = self.conn = await waiter
        return conn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        waiters = self.pool.waiters
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(self.conn)
                return
        self.pool.idle.append(self.conn)


class L3:
    """A correct pool after bb8 in plain style: expiry, broken check, FIFO waiters with a timeout each, counters.

    It has nothing of what our pool adds: no test of what lay idle, no reset, no holders, no deadlines of its own for
    the manager's methods, no events, no deadlock detection, no check of the loop.
    """

    def __init__(
        self,
        manager: FakeManager,
        max_size: int,
        timeout: float = 30.0,
        max_lifetime: float = 1800.0,
        idle_timeout: float = 600.0,
    ) -> None:
        self.manager = manager
        self.max_size = max_size
        self.timeout = timeout
        self.max_lifetime = max_lifetime
        self.idle_timeout = idle_timeout
        self.idle: deque[L3Entry] = deque()
        self.waiters: deque[asyncio.Future[L3Entry | None]] = deque()
        self.size = self.in_use = self.gets = self.waited = self.timed_out = self.closed = 0

    def get(self, timeout: float | None = None) -> L3Lease:
        return L3Lease(self, self.timeout if timeout is None else timeout)

    async def acquire(self, timeout: float) -> L3Entry:
        self.gets += 1
        while self.idle:
            entry = self.idle.pop()
            now = time.monotonic()
            if now < entry.expires_at and now < entry.idle_until and not self.manager.has_broken(entry.conn):
                self.in_use += 1
                return entry
            await self.drop(entry)
        if self.size < self.max_size:
            return await self.connect()
        entry_or_room = await self.wait(timeout)
        return await self.connect() if entry_or_room is None else entry_or_room

    async def connect(self) -> L3Entry:
        self.size += 1
        try:
            entry = L3Entry(await self.manager.connect(), time.monotonic() + self.max_lifetime)
        except BaseException:
            self.size -= 1
            self.hand_over(None)
            raise
        self.in_use += 1
        return entry

    async def wait(self, timeout: float) -> L3Entry | None:
        """A connection, or None: there is room for a new one."""
        self.waited += 1
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[L3Entry | None] = loop.create_future()
        self.waiters.append(waiter)
        timer = loop.call_later(timeout, self.expire, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # handed over in the very turn of the cancel: pass it on
                self.pass_on(waiter.result())
            raise
        finally:
            timer.cancel()

    def expire(self, waiter: asyncio.Future[L3Entry | None]) -> None:
        if not waiter.done():
            self.timed_out += 1
            waiter.set_exception(TimeoutError("no connection in time"))

    def hand_over(self, entry: L3Entry | None) -> bool:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(entry)
                return True
        return False

    def pass_on(self, entry: L3Entry | None) -> None:
        if entry is None:
            self.hand_over(None)
        elif not self.hand_over(entry):
            self.in_use -= 1
            self.idle.append(entry)

    async def release(self, entry: L3Entry) -> None:
        now = time.monotonic()
        if now >= entry.expires_at or self.manager.has_broken(entry.conn):
            self.in_use -= 1
            await self.drop(entry)
        elif not self.waiters or not self.hand_over(entry):
            entry.idle_until = now + self.idle_timeout
            self.in_use -= 1
            self.idle.append(entry)

    async def drop(self, entry: L3Entry) -> None:
        self.size -= 1
        self.closed += 1
        self.hand_over(None)
        await self.manager.close(entry.conn)


class L3Entry:
    def __init__(self, conn: FakeConnection, expires_at: float) -> None:
        self.conn = conn
        self.expires_at = expires_at
        self.idle_until = expires_at


class L3Lease:
    __slots__ = ("entry", "pool", "timeout")

    def __init__(self, pool: L3, timeout: float) -> None:
        self.pool = pool
        self.timeout = timeout

    async def __aenter__(self) -> FakeConnection:
        self.entry = await self.pool.acquire(self.timeout)
        return self.entry.conn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.pool.release(self.entry)
