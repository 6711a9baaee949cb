"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import sys
import time
from typing import Any

from . import report, store
from .contestants import CONTESTANTS, Contestant
from .measure import Result, progress
from .servers import SERVER_CONTESTANTS
from .suite import SERVERS, WORKLOADS, run_server

EPILOG = f"""workloads over fake connections: {", ".join(WORKLOADS)}
on real servers: {", ".join(SERVERS)}
the pool for threads, with its own peers: threads (see `python -m benchmarks threads --help`)
Words with a space are quoted. Without any: all of them."""


def parse() -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Our pool, the floors and its peers, side by side, in interleaved rounds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workload", nargs="*", help="what to measure (default: everything)")
    parser.add_argument("--only", metavar="NAMES", help="contestants over fake connections, separated by commas")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="a look in less than a minute")
    length.add_argument("--full", action="store_true", help="figures to quote, in some minutes (default)")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="the event loop (asyncio)")
    parser.add_argument("--write", action="store_true", help="keep the results, renew README.md and the chart")
    parser.add_argument("--render", action="store_true", help="measure nothing: renew README.md from the kept results")
    parser.add_argument("--json", metavar="FILE", help="write the results here too")
    args = parser.parse_args()
    known = {*WORKLOADS, *SERVERS}
    if wrong := [name for name in args.workload if name not in known]:
        parser.error(f"no workload {wrong[0]!r}: choose from {', '.join(sorted(known))}")
    args.contestants = [name.strip() for name in args.only.split(",")] if args.only else list(CONTESTANTS)
    if wrong := [name for name in args.contestants if name not in CONTESTANTS]:
        parser.error(f"no contestant {wrong[0]!r}: choose from {', '.join(CONTESTANTS)}")
    if args.write and (args.quick or args.only or args.workload):
        parser.error("--write keeps a full run of everything: leave out --quick, --only and the workloads")
    return args


def check_peers(contestants: list[Contestant]) -> dict[str, str]:
    """The versions of what is compared. A peer that is not installed stays in the tables and says so."""
    versions = {}
    for one in contestants:
        if one.package:
            try:
                versions[one.package] = importlib.metadata.version(one.package)
            except importlib.metadata.PackageNotFoundError:
                print(f"NOT INSTALLED: {one.package}, for {one.name}", file=sys.stderr)
    return versions


async def measure_fakes(names: list[str], contestants: list[Contestant], *, quick: bool) -> list[Result]:
    results: list[Result] = []
    for name in names:
        began = time.monotonic()
        results += await WORKLOADS[name].run(contestants, quick)
        print(f"measured: {name}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return results


def measure_servers(names: list[str], runner: asyncio.Runner, *, quick: bool) -> tuple[list[Result], list[str]]:
    """Bring the servers up, measure on each that there is, and say which is missing."""
    if not names:
        return [], []
    from containers.servers import Servers

    results: list[Result] = []
    versions: list[str] = []
    servers = Servers()
    try:
        progress("servers start")
        servers.begin(names)
        for name in names:
            try:
                server = servers.get(name)
            except Exception as error:  # noqa: BLE001 (told of in the table)
                for kind in SERVERS[name]:
                    for one in (one for one in SERVER_CONTESTANTS if one.server == kind):
                        results.append(Result(f"{kind}, 100 tasks", one.name, note=f"NO SERVER: {error}"))
                continue
            versions.append(f"{server.name} {server.version}")
            began = time.monotonic()
            results += runner.run(run_server(name, server, quick=quick))
            print(f"measured: {name}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    finally:
        progress("servers stop")
        servers.close()
        progress("")
    return results, versions


def main() -> None:
    if sys.argv[1:2] == ["threads"]:
        from . import threads

        threads.main(sys.argv[2:])
        return
    args = parse()
    if args.render:
        report.renew()
        return
    began = time.monotonic()
    contestants = [CONTESTANTS[name] for name in args.contestants]
    versions = check_peers(contestants)
    names = args.workload or [*WORKLOADS, *SERVERS]
    factory = None
    if args.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        fakes = [name for name in names if name in WORKLOADS]
        results = runner.run(measure_fakes(fakes, contestants, quick=args.quick))
        found, servers = measure_servers([name for name in names if name in SERVERS], runner, quick=args.quick)
    kept = store.pack(
        results + found,
        loop=args.loop,
        quick=args.quick,
        versions={**versions, **({"uvloop": importlib.metadata.version("uvloop")} if factory else {})},
        servers=servers,
        seconds=time.monotonic() - began,
    )
    report.show(kept)
    if args.json:
        store.write(kept, args.json)
    if args.write:
        store.keep(kept)
        report.renew()
    print(f"\n{kept['seconds']} s")


if __name__ == "__main__":
    main()
