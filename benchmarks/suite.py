"""Which workloads there are, on whom, and how long: `full` for figures that are quoted, `quick` for a look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import footprint, servers, workloads
from .measure import Result, grow, interleave

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .contestants import Contestant, Opened

Figures = tuple[float, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Workload:
    """One table of the report."""

    name: str
    title: str
    base: str | None  # ratios are to this contestant's figure
    run: Callable[[Sequence[Contestant], bool], Awaitable[list[Result]]]


async def _warm(ones: Sequence[Contestant], quick: bool) -> list[Result]:
    async def once(pool: Opened, count: int) -> Figures:
        return await workloads.warm(pool.get, count), {}

    return await interleave("warm", ones, 10, 30 if quick else 150, once, aim=0.003)


async def _timeout(ones: Sequence[Contestant], quick: bool) -> list[Result]:
    async def once(pool: Opened, count: int) -> Figures:
        plain, timed = await workloads.warm_within(pool, count)
        return timed, {"costs": timed - plain}

    return await interleave("timeout", ones, 10, 10 if quick else 50, once, aim=0.006)


async def _contended(ones: Sequence[Contestant], quick: bool) -> list[Result]:
    async def once(pool: Opened, count: int) -> Figures:
        found = await workloads.contended(pool.get, max(10_000 if quick else 20_000, count))
        return found.cost, {"jain": found.jain, "p99": found.p99}

    waiting = [one for one in ones if one.waits]
    return await interleave("contended", waiting, 10, 2 if quick else 5, once, aim=0.05 if quick else 0.3)


async def _hand_off(ones: Sequence[Contestant], quick: bool) -> list[Result]:
    async def once(pool: Opened, count: int) -> Figures:
        cost, turns = await workloads.hand_off(pool.get, count)
        return cost, {"turns": turns}

    waiting = [one for one in ones if one.waits]
    return await interleave("handoff", waiting, 1, 10 if quick else 60, once, aim=0.006)


async def _idle_growth(ones: Sequence[Contestant], quick: bool) -> list[Result]:
    async def once(pool: Opened, _: int) -> Figures:
        return await workloads.warm(pool.get, 500), {}

    sizes = [10, 1000] if quick else [10, 100, 1000, 10_000]
    return [
        await grow(
            "idle growth",
            one,
            sizes,
            2 if quick else 5,
            once,
            connections=lambda size: size,
            patience=2 if quick else 4,
        )
        for one in _of_interest(ones, quick)
    ]


def _of_interest(ones: Sequence[Contestant], quick: bool) -> Sequence[Contestant]:
    """A quick look has no time for how the peers grow."""
    return [one for one in ones if one.kind != "peer"] if quick else ones


def _waiters(name: str, act: Callable[[Opened, int], Awaitable[Figures]]) -> Any:
    async def once(pool: Opened, waiters: int) -> Figures:
        # Few waiters are over in no time: often enough for a figure, and the middle one of them.
        several = sorted([await act(pool, waiters) for _ in range(max(1, min(5, 1000 // waiters)))], key=lambda f: f[0])
        return several[len(several) // 2]

    async def run(ones: Sequence[Contestant], quick: bool) -> list[Result]:
        results = []
        for one in _of_interest(ones, quick):
            if not one.waits:
                continue
            sizes = [10, 1000] if quick else [10, 1000, 10_000]
            if not quick and one.name in ("ours", "L0q"):  # the others show their law by then
                sizes.append(100_000)
            patience = 2 if quick or one.kind == "peer" else 15
            rounds = 1 if quick or one.kind == "peer" else 2
            results.append(await grow(name, one, sizes, rounds, once, connections=lambda _: 1, patience=patience))
        return results

    return run


async def _serve(pool: Opened, waiters: int) -> Figures:
    queued, served = await workloads.serve(pool, waiters)
    return queued + served, {"queue": queued, "serve": served}


def _cancel(*, newest_first: bool) -> Callable[[Opened, int], Awaitable[Figures]]:
    async def act(pool: Opened, waiters: int) -> Figures:
        return await workloads.mass_cancel(pool, waiters, newest_first=newest_first), {}

    return act


def _time_out(*, newest_first: bool) -> Callable[[Opened, int], Awaitable[Figures]]:
    async def act(pool: Opened, waiters: int) -> Figures:
        return await workloads.mass_time_out(pool, waiters, newest_first=newest_first), {}

    return act


async def _memory(ones: Sequence[Contestant], quick: bool) -> list[Result]:
    return await footprint.memory(_of_interest(ones, quick))


async def _import(ones: Sequence[Contestant], quick: bool) -> list[Result]:
    return footprint.imports(_of_interest(ones, quick), repeat=1 if quick else 5)


WORKLOADS = {
    one.name: one
    for one in (
        Workload("warm", "get + release, connections idle (10)", "L0", _warm),
        Workload("contended", "1000 tasks on 10 connections", "L3", _contended),
        Workload("handoff", "hand-off: 2 tasks want 1 connection", "L3", _hand_off),
        Workload("timeout", "get + release with a timeout", "L3", _timeout),
        Workload("idle growth", "get + release, by idle connections", None, _idle_growth),
        Workload("waiters", "queue and be served, by waiters", None, _waiters("waiters", _serve)),
        Workload(
            "cancel oldest",
            "cancelled at once, oldest first",
            None,
            _waiters("cancel oldest", _cancel(newest_first=False)),
        ),
        Workload(
            "cancel newest",
            "cancelled at once, newest first",
            None,
            _waiters("cancel newest", _cancel(newest_first=True)),
        ),
        Workload(
            "timeout oldest",
            "timed out at once, oldest first",
            None,
            _waiters("timeout oldest", _time_out(newest_first=False)),
        ),
        Workload(
            "timeout newest",
            "timed out at once, newest first",
            None,
            _waiters("timeout newest", _time_out(newest_first=True)),
        ),
        Workload("memory", "bytes an idle connection, and a waiter", None, _memory),
        Workload("import", "on top of asyncio", None, _import),
    )
}
SERVERS = {"postgres": ["postgres"], "redis": ["redis GET", "redis PING"], "mariadb": ["mariadb"]}


async def run_server(kind: str, server: Any, *, quick: bool) -> list[Result]:
    """All workloads on one server."""
    results: list[Result] = []
    for name in SERVERS[kind]:
        if quick and name == "redis PING":
            continue
        results += await servers.measure(name, server, rounds=2 if quick else 9, seconds=0.1 if quick else 0.5)
    return results
