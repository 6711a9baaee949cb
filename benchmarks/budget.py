"""What each semantic costs on the warm path: `python -m benchmarks.budget`.

The real source of `Pool.get` and of the lease's `__aenter__` and `__aexit__` is taken, one semantic is cut out of it,
and the difference is measured, in short interleaved rounds. A cut that no longer fits the source is an error, not a
guess: adapt CUTS then.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import gc
import inspect
import random
import statistics
import sys
import textwrap
from contextlib import AsyncExitStack
from typing import Any

from pool_core import Pool, PooledConnection, _lease, _pool

from . import report, store, workloads
from .fakes import FakeConnection, FakeManager
from .floors import L0

# semantic -> (method, what stands there as ast.unparse writes it, what stands there instead)
Cut = tuple[str, str, str]
CUTS: dict[str, list[Cut]] = {
    "no borrower gets a dead connection (has_broken when it is acquired)": [
        ("__aenter__", "if not pool._has_broken(conn):", "if True:")
    ],
    "a dead connection is not kept (has_broken when it is returned)": [
        ("__aexit__", "True if pool._has_broken(slot.conn) else False", "False")
    ],
    "who holds it: holders(), deadlocks, the right loop (current_task)": [
        ("__aenter__", "((task := current_task(pool._loop)) is not None)", "(task := pool)")
    ],
    "the right thread (get_ident)": [("__aenter__", " and (get_ident() == pool._thread)", "")],
    "a lease is entered once, and over when it is over": [
        ("__aenter__", " and self._slot is _NEW", ""),
        ("__aenter__", "elif self._slot is not _NEW:", "elif False:"),
        ("__aexit__", "self._slot = _OVER", "pass"),
    ],
    "the state by name, for what comes late": [
        ("__aenter__", "slot.state = LENT", "pass"),
        ("__aexit__", "slot.state = IDLE", "pass"),
    ],
    "idle time, tests, hold times (two stamps, no clock)": [
        ("__aenter__", "slot.stamp = state.tick", "pass"),
        ("__aexit__", "slot.stamp = state.tick", "pass"),
    ],
    "max_uses and statistics (a counter)": [("__aenter__", "slot.uses += 1", "pass")],
    "evict, discard, lifetime (two looks at the mark)": [
        ("__aexit__", "kind is None and slot.mark is None", "kind is None"),
        ("__aexit__", "if broken or slot.mark is not None:", "if broken:"),
    ],
    "reset": [("__aexit__", "pool._reset is None or pool._shell.wipe(slot)", "True")],
    "get(timeout=...)": [
        ("get", "if timeout is not None:\n        timeout = check_timeout('timeout', timeout)\n    ", "")
    ],
}


class Drifted(Exception):
    """The source is no longer what a cut expects."""


def variant(*cuts: Cut) -> type[Pool[Any]]:
    """A pool whose warm path lacks something."""
    methods: dict[str, Any] = {}
    for owner, module, name in (
        (PooledConnection, _lease, "__aenter__"),
        (PooledConnection, _lease, "__aexit__"),
        (Pool, _pool, "get"),
    ):
        text = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(getattr(owner, name)))))
        for method, old, new in cuts:
            if method == name:
                if old not in text:
                    raise Drifted(f"{owner.__name__}.{name} has no\n    {old}\nany more; it reads\n{text}")
                text = text.replace(old, new)
        methods[name] = (text, vars(module))

    space: dict[str, Any] = {}
    for name in ("__aenter__", "__aexit__"):
        text, around = methods[name]
        exec(compile("from __future__ import annotations\n" + text, f"<{name}>", "exec"), around, space)
    lease = type("Lease", (PooledConnection,), {"__slots__": (), **space})
    text, around = methods["get"]
    made: dict[str, Any] = {}
    exec(
        compile("from __future__ import annotations\n" + text, "<get>", "exec"),
        {**around, "PooledConnection": lease},
        made,
    )
    return type("Variant", (Pool,), {"__slots__": (), **made})


async def measure(rounds: int) -> tuple[dict[str, float], float, float]:
    """Share of the whole that each semantic costs; the whole, and what is left without all of them, in units of L0."""
    every = [cut for cuts in CUTS.values() for cut in cuts]
    kinds = {"whole": variant(), "bare": variant(*every), **{name: variant(*cuts) for name, cuts in CUTS.items()}}
    async with AsyncExitStack() as stack:
        gets: dict[str, Any] = {"L0": L0([FakeConnection() for _ in range(10)]).get}
        for name, kind in kinds.items():
            pool = await stack.enter_async_context(kind(FakeManager()))
            await workloads.fill(pool.get, 10)
            gets[name] = pool.get
        order = list(gets)
        found: dict[str, list[float]] = {name: [] for name in order}
        gc.collect()
        gc.freeze()
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                found[name].append(await workloads.warm(gets[name], 1000))
        gc.unfreeze()
    shares = {
        name: statistics.median(1 - cut / whole for cut, whole in zip(found[name], found["whole"], strict=True))
        for name in CUTS
    }
    whole, bare = (
        statistics.median(cost / floor for cost, floor in zip(found[name], found["L0"], strict=True))
        for name in ("whole", "bare")
    )
    floor = min(found["L0"])
    print(f"L0 {floor * 1e9:.0f} ns; the pool {whole:.2f} x L0; without all below {bare:.2f} x L0")
    return (
        {name: share * whole * floor * 1e9 for name, share in shares.items()},
        whole * floor * 1e9,
        bare * floor * 1e9,
    )


def markdown(costs: dict[str, float], whole: float, bare: float) -> str:
    lines = ["| semantic | ns |", "|---|--:|"]
    lines += [f"| {name} | {cost:.0f} |" for name, cost in sorted(costs.items(), key=lambda item: -item[1])]
    lines += [
        f"| what is left when all of these are cut | {bare:.0f} |",
        f"| **the whole warm path** | **{whole:.0f}** |",
    ]
    lines.append(
        f"\nCPython {sys.version.split()[0]}, {store.machine()}. Each is the median difference with that one cut out: "
        "they need not add up, since a processor does several at once, and 20 ns more or less say nothing."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budget", description="What each semantic costs on the warm path."
    )
    parser.add_argument("--rounds", type=int, default=400, help="rounds of a thousand gets each (400)")
    parser.add_argument("--check", action="store_true", help="only see whether the cuts fit the source")
    parser.add_argument("--write", action="store_true", help="renew the table in benchmarks/README.md")
    args = parser.parse_args()
    if args.check:
        variant(*[cut for cuts in CUTS.values() for cut in cuts])
        print("all cuts fit")
        return
    text = markdown(*asyncio.run(measure(args.rounds)))
    print(text)
    if args.write:
        report.replace_between("budget", text)


if __name__ == "__main__":
    main()
