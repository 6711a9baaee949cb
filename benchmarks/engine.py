"""SQLAlchemy's engine over this pool and over its own, both with the same reset of returned connections.

    python -m benchmarks.engine

100 tasks share 10 connections to PostgreSQL; each session is one SELECT. Over SQLAlchemy's pool the reset runs in its
event "reset", before the session's end; over ours in the background. Rounds alternate, and ratios are of one run.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from time import perf_counter
from typing import Any

from pool_postgres._postgres import RESETS
from pool_sqlalchemy import create_async_engine
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as create_of_sqlalchemy
from sqlalchemy.util import await_only

from containers.servers import Servers

CONNECTIONS, TASKS, ROUNDS, SECONDS = 10, 100, 4, 2.0
QUERY = text("SELECT 1")


def theirs(url: str, *, reset: bool) -> AsyncEngine:
    engine = create_of_sqlalchemy(url, pool_size=CONNECTIONS, max_overflow=0)
    if reset:

        @event.listens_for(engine.sync_engine, "reset")
        def reset_session(adapted: Any, _: Any, state: Any) -> None:
            if state.asyncio_safe:
                await_only(adapted._connection.execute(RESETS["safe"]))

    return engine


async def load(engine: AsyncEngine, seconds: float) -> tuple[float, float]:
    """Sessions a second, and the 99th percentile of one session's time in ms."""
    times: list[float] = []
    end = perf_counter() + seconds

    async def work() -> None:
        while (began := perf_counter()) < end:
            async with AsyncSession(engine) as session:
                await session.execute(QUERY)
            times.append(perf_counter() - began)

    await asyncio.gather(*(work() for _ in range(TASKS)))
    return len(times) / seconds, statistics.quantiles(times, n=100)[98] * 1000


async def main(url: str) -> None:
    engines = {
        "ours, with reset": create_async_engine(url, max_size=CONNECTIONS, min_idle=CONNECTIONS),
        "AsyncAdaptedQueuePool, with reset": theirs(url, reset=True),
        "ours, reset off": create_async_engine(url, max_size=CONNECTIONS, connect_args={"reset": "none"}),
        "AsyncAdaptedQueuePool, as it is": theirs(url, reset=False),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for engine in engines.values():
        await load(engine, 0.5)
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            found[name].append(await load(engine, SECONDS))
    for name, pairs in found.items():
        print(
            f"{name:35} {statistics.median(rate for rate, _ in pairs):7.0f}/s  p99 {statistics.median(p for _, p in pairs):6.1f} ms"
        )
    for mine, other in (list(engines)[:2], list(engines)[2:]):
        rounds = list(zip(found[mine], found[other], strict=True))
        rate = statistics.median(a[0] / b[0] for a, b in rounds)
        late = statistics.median(a[1] / b[1] for a, b in rounds)
        print(f"{mine} / {other}: rate {rate:.2f}, p99 {late:.2f}")
    for engine in engines.values():
        await engine.dispose()


if __name__ == "__main__":
    servers = Servers()
    try:
        asyncio.run(main(servers.get("postgres").url.replace("postgresql", "postgresql+asyncpg")))
    finally:
        servers.close()
    sys.exit()
