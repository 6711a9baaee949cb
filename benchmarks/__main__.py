"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from . import workloads
from .contestants import CONTESTANTS, Contestant, Opened
from .measure import Result, interleave


async def warm(opened: Opened, count: int) -> tuple[float, dict[str, float]]:
    return await workloads.warm(opened.get, count), {}


async def hand_off(opened: Opened, count: int) -> tuple[float, dict[str, float]]:
    return await workloads.hand_off(opened.get, count), {}


async def contended(opened: Opened, count: int) -> tuple[float, dict[str, float]]:
    found = await workloads.contended(opened.get, max(20_000, count))
    return found.cost, {"jain": found.jain, "p99": found.p99}


async def run(names: list[str], contestants: list[Contestant], *, quick: bool) -> list[Result]:
    waiting = [one for one in contestants if one.waits]
    results: list[Result] = []
    if "warm" in names:
        results += await interleave("warm", "ns", contestants, 10, 12 if quick else 40, warm, aim=0.01)
    if "contended" in names:
        results += await interleave("contended", "ns", waiting, 10, 3 if quick else 9, contended, aim=0.2)
    if "handoff" in names:
        results += await interleave("handoff", "ns", waiting, 1, 12 if quick else 30, hand_off, aim=0.02)
    return results


def show(results: list[Result]) -> None:
    for workload in dict.fromkeys(result.workload for result in results):
        rows = [result for result in results if result.workload == workload]
        base = next((row for row in rows if row.contestant == ("L0" if workload == "warm" else "L3")), rows[0])
        print(f"\n{workload}, x {base.contestant}: by best, by median; best, median, spread")
        for row in sorted(rows, key=lambda row: row.best if row.values else float("inf")):
            if not row.values:
                print(f"  {row.contestant:<34} NOT MEASURED: {row.note}")
                continue
            extra = "".join(f"  {key} {value:.4g}" for key, value in row.as_dict()["extra"].items())
            print(
                f"  {row.contestant:<34} {row.best / base.best:6.2f} {row.median / base.median:6.2f}   "
                f"{row.best * 1e9:9.0f} ns {row.median * 1e9:9.0f} ns  {row.spread:4.0%}{extra}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("workload", nargs="*", help="warm contended handoff (default: all)")
    parser.add_argument("--only", help="contestants, by name, separated by commas")
    parser.add_argument("--quick", action="store_true")
    args: Any = parser.parse_args()
    chosen = args.only.split(",") if args.only else list(CONTESTANTS)
    contestants = [CONTESTANTS[name.strip()] for name in chosen]
    began = time.monotonic()
    show(asyncio.run(run(args.workload or ["warm", "contended", "handoff"], contestants, quick=args.quick)))
    print(f"\n{time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
