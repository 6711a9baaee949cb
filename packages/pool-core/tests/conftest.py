"""Run every test of the core under the guard (see guard.py), and fail the test that caused a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.hookimpl(trylast=True)
def pytest_sessionstart() -> None:
    """Install the guard: not before, since coverage counts only what is imported after its own start."""
    from . import guard

    if guard.MODE == "on":
        guard.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Fail a test that passed, and add the findings to the report of one that failed."""
    from . import guard

    guard.start()
    try:
        yield
    except BaseException:
        if (found := guard.report()) is not None:
            item.add_report_section("call", "guard", found)
        raise
    if (found := guard.report()) is not None:
        pytest.fail(found, pytrace=False)
