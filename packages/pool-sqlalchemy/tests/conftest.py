"""What the tests of this package share: a runner for coroutines."""

from __future__ import annotations

import asyncio
import inspect

import pytest

collect_ignore = ["suite"]  # run by dialect_suite.py, in a process of its own


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
