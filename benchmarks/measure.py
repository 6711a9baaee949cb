"""Rounds, interleaved: each contestant once a round, so that what disturbs the machine disturbs them all alike."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from . import workloads
from .contestants import CONTESTANTS, Contestant, Opened

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable


@dataclass(slots=True)
class Result:
    """One contestant's figures in one workload, over all rounds. Costs are seconds."""

    workload: str
    contestant: str
    unit: str
    values: list[float] = field(default_factory=list)
    extra: dict[str, list[float]] = field(default_factory=dict)  # further figures of each round
    note: str = ""  # why there is none, or what to know of it

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

    def as_dict(self) -> dict[str, Any]:
        figures = {"best": self.best, "median": self.median, "spread": self.spread} if self.values else {}
        extra = {name: statistics.median(values) for name, values in self.extra.items()}
        return {**asdict(self), **figures, "extra": extra}


def progress(text: str) -> None:
    """One line on the terminal, written over and over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:110]}", end="", file=sys.stderr, flush=True)


async def interleave(
    workload: str,
    unit: str,
    contestants: Iterable[Contestant],
    size: int,
    rounds: int,
    once: Callable[[Opened, int], Awaitable[tuple[float, dict[str, float]]]],
    *,
    aim: float,
) -> list[Result]:
    """Open every contestant's pool, and measure them in turn, each round in another order.

    Args:
        once: measures so many operations: seconds for one, and further figures.
        aim: seconds that one measurement should take; the number of operations follows from a first trial.
    """
    results = {one.name: Result(workload, one.name, unit) for one in contestants}
    async with AsyncExitStack() as stack:
        opened: dict[str, Opened] = {}
        counts: dict[str, int] = {}
        for name, result in results.items():
            progress(f"{workload}: {name}")
            try:
                opened[name] = await stack.enter_async_context(CONTESTANTS[name].open(size))
                await workloads.fill(opened[name].get, size)
                cost, _ = await once(opened[name], 200)
                counts[name] = max(200, min(200_000, int(aim / cost)))
            except Exception as error:  # noqa: BLE001 (a pool that does not work here is told of, whatever it raised)
                opened.pop(name, None)
                result.note = f"does not work here: {type(error).__name__}: {error}"
        order = list(opened)
        gc.collect()
        gc.freeze()
        try:
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
        finally:
            gc.unfreeze()
    progress("")
    return list(results.values())
