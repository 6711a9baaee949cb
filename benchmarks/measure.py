"""Rounds, interleaved: each contestant once a round, so that what disturbs the machine disturbs them all alike.

A machine that other people use changes its speed by a factor of two from one second to the next. Therefore rounds are
short and many, and a contestant is compared with the floor of the same round: the ratios stand where seconds do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import statistics
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import thread_time
from typing import TYPE_CHECKING, Any

from . import workloads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from .contestants import Contestant, Opened

PATIENCE = 30.0  # seconds for a pool to open, or to do one measurement, before it is given up


@dataclass(slots=True)
class Result:
    """One contestant's figures in one workload, one a round. Costs are seconds, sizes are bytes."""

    workload: str
    contestant: str
    values: list[float] = field(default_factory=list)
    extra: dict[str, list[float]] = field(default_factory=dict)  # further figures of each round
    note: str = ""  # why there is no figure, or what to know of it

    @property
    def best(self) -> float:
        return min(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half of the rounds lie within this share of the median."""
        if len(self.values) < 4:
            return (max(self.values) - min(self.values)) / self.median
        low, _, high = statistics.quantiles(self.values, n=4)
        return (high - low) / self.median

    def ratio(self, base: Result) -> float:
        """The median, over the rounds, of this cost to the base's in the same round."""
        if len(self.values) == len(base.values):
            return statistics.median(a / b for a, b in zip(self.values, base.values, strict=True))
        return self.median / base.median

    def summary(self, base: Result | None) -> dict[str, Any]:
        """For the result file: not every round."""
        if not self.values:
            return {"workload": self.workload, "contestant": self.contestant, "note": self.note}
        return {
            "workload": self.workload,
            "contestant": self.contestant,
            "base": base.contestant if base and base.values else None,
            "ratio": self.ratio(base) if base and base.values else None,
            "best": self.best,
            "median": self.median,
            "spread": round(self.spread, 3),
            "rounds": len(self.values),
            "extra": {name: statistics.median(values) for name, values in self.extra.items()},
            "note": self.note,
        }


def progress(text: str) -> None:
    """One line on the terminal, written over and over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:110]}", end="", file=sys.stderr, flush=True)


@asynccontextmanager
async def bounded(manager: AbstractAsyncContextManager[Opened]) -> AsyncIterator[Opened]:
    """An open pool, which may neither hang in opening nor in closing."""
    opened = await asyncio.wait_for(manager.__aenter__(), PATIENCE)
    try:
        yield opened
    finally:
        # Some pools wait for ever for what a failed measurement has not returned.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(manager.__aexit__(None, None, None), 2)


@contextlib.contextmanager
def quiet_collector() -> Any:
    """What all the imported drivers hold is not looked at again by every garbage collection of a measurement."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def interleave(
    workload: str,
    contestants: Sequence[Contestant],
    size: int,
    rounds: int,
    once: Callable[[Opened, int], Awaitable[tuple[float, dict[str, float]]]],
    *,
    aim: float,
    least: int = 50,
) -> list[Result]:
    """Open every contestant's pool of so many connections, and measure them in turn, each round in another order.

    Args:
        once: measures so many operations: seconds for one, and further figures.
        aim: seconds that one measurement should take; the number of operations follows from a first trial.
        least: operations in one measurement at least.
    """
    results = {one.name: Result(workload, one.name) for one in contestants}
    async with AsyncExitStack() as stack:
        opened: dict[str, Opened] = {}
        counts: dict[str, int] = {}
        for one in contestants:
            progress(f"{workload}: {one.name} opens")
            try:
                pool = await stack.enter_async_context(bounded(one.open(size)))
                await asyncio.wait_for(workloads.fill(pool.get, size), PATIENCE)
                cost, _ = await asyncio.wait_for(once(pool, 200), PATIENCE)
            except Exception as error:  # noqa: BLE001 (a pool that does not work here is told of, whatever it raised)
                results[one.name].note = failure(error)
            else:
                opened[one.name] = pool
                counts[one.name] = max(least, min(200_000, int(aim / cost)))
        order = list(opened)
        with quiet_collector():
            for number in range(rounds):
                random.shuffle(order)
                progress(f"{workload}: round {number + 1} of {rounds}")
                for name in order:
                    gc.collect()
                    await asyncio.sleep(0)
                    value, extra = await once(opened[name], counts[name])
                    results[name].values.append(value)
                    for key, figure in extra.items():
                        results[name].extra.setdefault(key, []).append(figure)
    progress("")
    return list(results.values())


async def grow(
    workload: str,
    one: Contestant,
    sizes: Sequence[int],
    rounds: int,
    once: Callable[[Opened, int], Awaitable[tuple[float, dict[str, float]]]],
    *,
    connections: Callable[[int], int],
    patience: float,
) -> Result:
    """Measure one contestant at several sizes, interleaved; the figures are `extra["1000"]` and so on.

    Args:
        connections: how large a pool the size wants.
        patience: seconds of CPU; a size that is likely to take longer, by what the size before took, is left out and noted.
    """
    result = Result(workload, one.name)
    async with AsyncExitStack() as stack:
        pools: dict[int, Opened] = {}
        costs: list[float] = []  # seconds of CPU, divided by size, of the trials so far
        for size in sizes:
            progress(f"{workload}: {one.name} at {size:,}")
            # What has grown from one size to the next will do so again.
            growth = max(1.0, costs[-1] / costs[-2]) if len(costs) > 1 else 1.0
            if costs and (likely := costs[-1] * growth * size) > patience:
                result.note = f"stopped before {size:,}: it would take some {likely:.0f} s"
                break
            try:
                pool = await stack.enter_async_context(bounded(one.open(connections(size))))
                began = thread_time()
                await asyncio.wait_for(workloads.fill(pool.get, connections(size)), PATIENCE)
                await asyncio.wait_for(once(pool, size), PATIENCE)
            except Exception as error:  # noqa: BLE001 (as above)
                result.note = f"at {size:,}: {failure(error)}"
                break
            pools[size] = pool
            if size >= 1000:  # a smaller one's time is that of other things
                costs.append((thread_time() - began) / size)
        with quiet_collector():
            for number in range(rounds if pools else 0):
                progress(f"{workload}: {one.name}, round {number + 1} of {rounds}")
                for size, pool in pools.items():
                    gc.collect()
                    value, extra = await once(pool, size)
                    result.extra.setdefault(str(size), []).append(value)
                    for key, figure in extra.items():
                        result.extra.setdefault(f"{size} {key}", []).append(figure)
                result.values.append(result.extra[str(max(pools))][-1])
    progress("")
    return result


def failure(error: BaseException) -> str:
    """Why there is no figure, for the table."""
    return f"DOES NOT WORK HERE: {type(error).__name__}: {error}"
