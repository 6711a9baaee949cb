"""How many machine instructions a get and its return take: `python -m benchmarks.instructions`.

Times on a shared machine differ by tens of percent from run to run; instructions, counted by valgrind's callgrind, do not.
The core of this work tree is compared with that of a named commit, by the same interpreter in the same run. One operation
is the difference between a short and a long run, so what starting Python costs cancels out.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pool_core import Pool  # whose core it is, PYTHONPATH says in the counted process

from .fakes import FakeManager

ROOT = Path(__file__).parent.parent
SOURCE = "packages/pool-core/src"
BASELINE = "7e90e06"
"""The commit to compare with. A change that is slower for a good reason names itself here, and says why."""
LIMIT = 3.0  # percent
SHORT, LONG = 500, 2500


async def warm(count: int) -> None:
    """Get a connection that is idle, and return it."""
    async with Pool(FakeManager(), max_size=10) as pool:
        for _ in range(count):
            async with pool.get():
                pass


async def handoff(count: int) -> None:
    """Two tasks pass one connection to each other."""
    async with Pool(FakeManager(), max_size=1) as pool:

        async def task() -> None:
            for _ in range(count // 2):
                async with pool.get():
                    await asyncio.sleep(0)

        await asyncio.gather(task(), task())


WORKLOADS: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {"warm": warm, "handoff": handoff}


COUNT = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]


def run(source: Path, workload: str, operations: int, *wrapper: str) -> subprocess.CompletedProcess[str]:
    """Run a workload over a core in a process of its own."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{source}{os.pathsep}{ROOT}",
        "PYTHONHASHSEED": "0",
        "PYTHONPYCACHEPREFIX": str(source.with_name("compiled")),
    }
    program = [sys.executable, "-m", "benchmarks.instructions", "--run", workload, str(operations)]
    return subprocess.run([*wrapper, *program], env=env, cwd=ROOT, capture_output=True, text=True, check=False)


def count(source: Path, workload: str, operations: int) -> int:
    """Return the instructions of a whole process."""
    done = run(source, workload, operations, *COUNT)
    refs = re.search(r"I +refs: +([\d,]+)", done.stderr)
    if done.returncode or not refs:
        raise SystemExit(f"{workload} could not be counted: {done.stderr.strip().splitlines()[-1]}")
    return int(refs[1].replace(",", ""))


def each(source: Path, workload: str) -> float:
    """Return the instructions of one operation."""
    run(source, workload, 1)  # else the first one counted would compile the modules
    return (count(source, workload, LONG) - count(source, workload, SHORT)) / (LONG - SHORT)


def core_of(commit: str, place: Path) -> Path:
    """Unpack the core of a commit, or copy that of this work tree for an empty one."""
    if not commit:
        return Path(shutil.copytree(ROOT / SOURCE, place / "now"))
    made = subprocess.run(["git", "archive", commit, SOURCE], cwd=ROOT, capture_output=True, check=False)
    if made.returncode:
        raise SystemExit(f"commit {commit} is not here (a shallow clone?): {made.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(place, filter="data")
    return place / SOURCE


def main() -> int:
    """Compare, and fail beyond the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--baseline", default=BASELINE, metavar="COMMIT", help=f"what to compare with ({BASELINE})")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"percent more that fail ({LIMIT:g})")
    parser.add_argument("--run", nargs=2, metavar=("WORKLOAD", "COUNT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        gc.disable()
        asyncio.run(WORKLOADS[args.run[0]](int(args.run[1])))
        return 0
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind is not installed: apt-get install valgrind")
    slower = False
    print(f"instructions for one get and return, CPython {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as place:
        before, now = core_of(args.baseline, Path(place)), core_of("", Path(place))
        for workload in WORKLOADS:
            old, new = each(before, workload), each(now, workload)
            change = 100 * (new / old - 1)
            slower |= change > args.limit
            print(f"  {workload:8} {old:9,.0f} at {args.baseline}   {new:9,.0f} now   {change:+.1f} %", flush=True)
    if slower:
        print(f"more than {args.limit:g} %: make it cheaper, or name this commit as the BASELINE and say why")
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
