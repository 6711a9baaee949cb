"""What a pool weighs: bytes for an idle connection and for a waiter, and what its import costs."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from typing import TYPE_CHECKING

from . import fakes, workloads
from .measure import Result, bounded, failure, progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .contestants import Contestant

_FEW, _MANY = 100, 600


async def memory(contestants: Sequence[Contestant]) -> list[Result]:
    """Bytes, by tracemalloc, as the difference of two sizes, so that what a pool weighs by itself is not counted.

    The connections themselves are left out. A waiter is counted twice: all that a waiting get allocates, and what is
    left of it when the weight of a bare task is taken off (`net`).
    """
    idle = [await _idle(one) for one in contestants]
    bare = (await _waiting(None, _MANY) - await _waiting(None, _FEW)) / (_MANY - _FEW)
    waiting = [await _waiters(one, bare) for one in contestants if one.waits and one.name != "L0q"]
    progress("")
    return idle + waiting


async def _idle(one: Contestant) -> Result:
    result = Result("memory idle", one.name)
    progress(f"{result.workload}: {one.name}")
    try:
        sizes = []
        for size in (_FEW, _FEW, _MANY):  # what a first time imports and caches is counted in neither
            gc.collect()
            tracemalloc.start()
            async with bounded(one.open(size)) as pool:
                await workloads.fill(pool.get, size)
                await asyncio.sleep(0.01)
                gc.collect()
                sizes.append(_traced())
            tracemalloc.stop()
        result.values.append((sizes[2] - sizes[1]) / (_MANY - _FEW))
    except Exception as error:  # noqa: BLE001 (told of in the table)
        result.note = failure(error)
    finally:
        tracemalloc.stop()
    return result


async def _waiters(one: Contestant, bare: float) -> Result:
    result = Result("memory waiter", one.name)
    progress(f"{result.workload}: {one.name}")
    try:
        await _waiting(one, _FEW)  # as above
        value = (await _waiting(one, _MANY) - await _waiting(one, _FEW)) / (_MANY - _FEW)
        result.values.append(value)
        result.extra["net"] = [value - bare]
    except Exception as error:  # noqa: BLE001 (told of in the table)
        result.note = failure(error)
    finally:
        tracemalloc.stop()
    return result


async def _waiting(one: Contestant | None, count: int) -> int:
    """Bytes that so many tasks hold that wait for a connection; None: that wait for nothing in particular."""
    gc.collect()
    if one is None:
        forever = asyncio.get_running_loop().create_future()

        async def waiter() -> None:
            await forever

        tracemalloc.start()
        tasks = [asyncio.create_task(waiter()) for _ in range(count)]
        await asyncio.sleep(0)
        gc.collect()
        traced = _traced()
        tracemalloc.stop()
        forever.set_result(None)
        await asyncio.gather(*tasks)
        return traced
    async with bounded(one.open(1)) as pool:
        await workloads.fill(pool.get, 1)
        crowd = workloads.Crowd(pool)
        tracemalloc.start()
        await crowd.gather(pool.get for _ in range(count))
        gc.collect()
        traced = _traced()
        tracemalloc.stop()
        await crowd.holder.__aexit__(None, None, None)
        await crowd.gone
    return traced


def _traced() -> int:
    snapshot = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(False, fakes.__file__), tracemalloc.Filter(False, tracemalloc.__file__)]
    )
    return sum(trace.size for trace in snapshot.traces)


_IMPORT = """
import asyncio, json, sys, time
before = len(sys.modules)
began = time.process_time()
import {module}
print(json.dumps([time.process_time() - began, len(sys.modules) - before]))
"""


def imports(contestants: Sequence[Contestant], *, repeat: int) -> list[Result]:
    """Seconds of CPU and modules that the import takes after `import asyncio`, in an interpreter of its own.

    As in an installed program, the byte code is there already: a first import, not counted, puts it aside.
    """
    modules = {one.module: one.name for one in contestants if one.module}
    results = {module: Result("import", module) for module in modules}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        for number in range(repeat + 1):
            for module, result in results.items():
                progress(f"import: {module}, {number} of {repeat}")
                command = [sys.executable, "-c", _IMPORT.format(module=module)]
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
                if done.returncode:
                    result.note = f"DOES NOT WORK HERE: {done.stderr.strip().splitlines()[-1]}"
                elif number:
                    seconds, count = json.loads(done.stdout)
                    result.values.append(seconds)
                    result.extra["modules"] = [count]
    progress("")
    return list(results.values())
