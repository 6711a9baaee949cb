"""The pool for threads beside its peers: `python -m benchmarks threads`.

Interleaved rounds in one run; a ratio is the median over the rounds of a contestant's figure to ours in the same round.
Fake connections cost nothing, so what is measured is the pool. Fairness stands beside the rate: where a newcomer overtakes
who waits, a few threads do everything, and the others starve.
"""

from __future__ import annotations

import argparse
import importlib.util
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

SIZE = 8
THREADS = 64
WORK = 0.0001  # seconds that a borrower keeps its connection


class Connection:
    """A connection to nothing, with what peers ask of one."""

    broken = False

    def rollback(self) -> None: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...
    def cursor(self) -> Connection:
        return self


class Manager:
    def connect(self) -> Connection:
        return Connection()

    def is_valid(self, conn: Connection) -> bool:
        return True

    def has_broken(self, conn: Connection) -> bool:
        return conn.broken

    def close(self, conn: Connection) -> None: ...


class Held:
    """A with-block around two functions, for peers without one."""

    __slots__ = ("conn", "get", "put")

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        self.get = get
        self.put = put

    def __enter__(self) -> Any:
        self.conn = self.get()
        return self.conn

    def __exit__(self, *_: object) -> None:
        self.put(self.conn)


def ours(size: int) -> Callable[[], Any]:
    from pool_core.threads import Pool

    pool = Pool(Manager(), max_size=size)
    pool.open()
    leases = [pool.get() for _ in range(size)]
    for lease in leases:
        lease.release()
    return pool.get


def sqlalchemy(size: int) -> Callable[[], Any]:
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(Connection, pool_size=size, max_overflow=0, reset_on_return=None, timeout=30)  # type: ignore[arg-type]
    return lambda: Held(pool.connect, lambda conn: conn.close())


def psycopg(size: int) -> Callable[[], Any]:
    from psycopg.pq import TransactionStatus

    class Status:
        transaction_status = TransactionStatus.IDLE

    class Fake(Connection):
        pgconn = Status()
        _created_at = _expire_at = 0.0
        _pool = None

        @classmethod
        def connect(cls, *_: Any, **__: Any) -> Fake:
            return cls()

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

    module = importlib.import_module("psycopg_pool")
    pool = module.ConnectionPool(connection_class=Fake, min_size=size, max_size=size, open=True)
    pool.wait()
    return pool.connection  # type: ignore[no-any-return]


def dbutils(size: int) -> Callable[[], Any]:
    class Module:
        threadsafety = 1
        OperationalError = InterfaceError = InternalError = Exception
        connect = staticmethod(Connection)

    pool = importlib.import_module("dbutils.pooled_db").PooledDB(
        Module, mincached=0, maxcached=size, maxconnections=size, blocking=True
    )
    return lambda: Held(pool.connection, lambda conn: conn.close())


def redis(size: int) -> Callable[[], Any]:
    import os

    from redis.connection import BlockingConnectionPool

    class Fake(Connection):
        def __init__(self, **_: Any) -> None:
            self.pid = os.getpid()

        def connect(self) -> None: ...
        def can_read(self, timeout: float = 0) -> bool:
            return False

        def should_reconnect(self) -> bool:
            return False

        def re_auth(self) -> None: ...
        def disconnect(self, *_: Any) -> None: ...
        def register_connect_callback(self, *_: Any) -> None: ...

    pool = BlockingConnectionPool(max_connections=size, timeout=30, connection_class=Fake)  # type: ignore[no-untyped-call]
    return lambda: Held(pool.get_connection, pool.release)


def connpool(size: int) -> Callable[[], Any]:
    module = importlib.import_module("connpool")
    pool = module.ConnectionPool.from_callables(
        Connection, close=lambda conn: None, config=module.PoolConfig(max_size=size)
    )
    pool.open()
    return pool.connection  # type: ignore[no-any-return]


def lifoqueue(size: int) -> Callable[[], Any]:
    """The floor: no check, no timeout of a connection, no fairness."""
    idle: queue.LifoQueue[Connection] = queue.LifoQueue()
    for _ in range(size):
        idle.put(Connection())
    return lambda: Held(lambda: idle.get(timeout=30), idle.put)


CONTESTANTS: dict[str, tuple[Callable[[int], Callable[[], Any]], str | None]] = {
    "ours": (ours, None),
    "SQLAlchemy QueuePool": (sqlalchemy, "sqlalchemy"),
    "psycopg_pool": (psycopg, "psycopg_pool"),
    "DBUtils PooledDB": (dbutils, "dbutils"),
    "redis-py Blocking": (redis, "redis"),
    "connpool": (connpool, "connpool"),
    "LifoQueue": (lifoqueue, None),
}
# Uncontended: at least so many times ahead of each.
WARM_GOALS = {
    "SQLAlchemy QueuePool": 3.0,
    "psycopg_pool": 3.0,
    "redis-py Blocking": 3.0,
    "connpool": 3.0,
    "DBUtils PooledDB": 1.5,
    "LifoQueue": 1.0,
}


def warm(get: Callable[[], Any], count: int) -> float:
    """CPU seconds of one uncontended get and return."""
    began = time.thread_time()
    for _ in range(count):
        with get():
            pass
    return (time.thread_time() - began) / count


class Load:
    """What the threads of one round did."""

    def __init__(self, get: Callable[[], Any], seconds: float) -> None:
        counts = [0] * THREADS
        waits: list[list[float]] = [[] for _ in counts]
        barrier = threading.Barrier(THREADS + 1)
        over = threading.Event()

        def work(number: int) -> None:
            mine = waits[number]
            barrier.wait()
            while not over.is_set():
                began = time.perf_counter()
                with get():
                    mine.append(time.perf_counter() - began)
                    time.sleep(WORK)
                counts[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        barrier.wait()
        began = time.perf_counter()
        time.sleep(seconds)
        over.set()
        elapsed = time.perf_counter() - began
        for thread in threads:
            thread.join()
        every = sorted(wait for one in waits for wait in one)
        total = sum(counts)
        self.rate = total / elapsed
        self.jain = total**2 / (THREADS * sum(count**2 for count in counts)) if total else 0.0
        self.p99 = every[int(len(every) * 0.99)] * 1000 if every else 0.0
        self.longest = every[-1] * 1000 if every else 0.0


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks threads", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a look in less than a minute")
    parser.add_argument("--only", metavar="NAMES", help="contestants, separated by commas; ours is always there")
    args = parser.parse_args(arguments)
    chosen = list(CONTESTANTS) if not args.only else ["ours", *(n.strip() for n in args.only.split(",") if n != "ours")]
    for name in chosen:
        package = CONTESTANTS[name][1]
        if package is not None and importlib.util.find_spec(package) is None:
            print(f"NOT INSTALLED: {package}, for {name}", file=sys.stderr)
    chosen = [n for n in chosen if (p := CONTESTANTS[n][1]) is None or importlib.util.find_spec(p) is not None]
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {sys.version.split()[0]}, {'with the GIL' if gil else 'free-threaded'}")
    show_warm(chosen, rounds=9 if args.quick else 31)
    show_load(chosen, rounds=3 if args.quick else 9, seconds=0.5 if args.quick else 1.5)


def show_warm(chosen: list[str], rounds: int) -> None:
    gets = {name: CONTESTANTS[name][0](SIZE) for name in chosen}
    costs: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name, get in gets.items():
            costs[name].append(warm(get, 2000))
    print("\nuncontended get and return, CPU of the thread")
    for name in chosen:
        ratio = statistics.median(other / mine for mine, other in zip(costs["ours"], costs[name], strict=True))
        goal = WARM_GOALS.get(name)
        judged = "" if goal is None else f"   goal {goal:g} x: {'met' if ratio >= goal else 'MISSED'}"
        print(f"  {name:22s} {statistics.median(costs[name]) * 1e6:7.2f} us   {ratio:5.2f} x ours{judged}")


def show_load(chosen: list[str], rounds: int, seconds: float) -> None:
    gets = {name: CONTESTANTS[name][0](SIZE) for name in chosen}
    loads: dict[str, list[Load]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name, get in gets.items():
            loads[name].append(Load(get, seconds))
    print(f"\n{THREADS} threads on {SIZE} connections, {WORK * 1000:g} ms of work each")
    for name in chosen:
        mine, own = loads["ours"], loads[name]
        rate = statistics.median(a.rate / b.rate for a, b in zip(mine, own, strict=True))
        p99 = statistics.median(a.p99 / b.p99 for a, b in zip(mine, own, strict=True))
        print(
            f"  {name:22s} {statistics.median(x.rate for x in own):8.0f} /s   Jain {statistics.median(x.jain for x in own):.3f}   "
            f"p99 {statistics.median(x.p99 for x in own):8.2f} ms   longest {statistics.median(x.longest for x in own):8.1f} ms   "
            f"ours: rate {rate:5.2f} x, p99 {p99:6.2f} x"
        )
    print("goals: Jain at least 0.99; the best fair pool's rate; p99 at most 1.1 x psycopg_pool's")


if __name__ == "__main__":
    main(sys.argv[1:])
    # Peers leave threads behind.
    sys.stdout.flush()
    import os

    os._exit(0)
