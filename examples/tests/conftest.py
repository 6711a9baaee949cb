"""What the tests of the examples share: a runner for coroutines, and the examples as programs."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in a loop of its own; nothing may reach the loop's exception handler, no task may be left."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    complaints: list[object] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await pyfuncitem.obj(**arguments)
        turns = 50
        while (left := asyncio.all_tasks() - {asyncio.current_task()}) and (turns := turns - 1):
            await asyncio.sleep(0.01)
        assert not left, f"tasks are left: {left}"

    asyncio.run(run())
    assert not complaints, complaints
    return True


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start an example as its reader would, with warnings as errors: `start("quickstart.py", DATABASE_URL=url)`."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *options: str, **environment: str) -> subprocess.Popen[str]:
        outer = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", *options, str(EXAMPLES / name)],
            env=outer | {"PYTHONUNBUFFERED": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start: Any) -> Callable[..., str]:
    """Run an example to its end, which must be a good one; returns what it said."""

    def run(name: str, *options: str, **environment: str) -> str:
        process = start(name, *options, **environment)
        said, _ = process.communicate(timeout=40)
        assert process.returncode == 0, said
        return str(said)

    return run
