"""The pytest side of the real servers: the fixture `server`, their start in the background, the report.

The root conftest.py loads it. With POOL_TEST_RESULTS set to a directory, each run leaves its counts there, so that
several can be added up.
"""

import json
import os
import platform
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from .kinds import DIALECTS, KINDS
from .servers import CHOICE, Server, ServerFactory, ServerFailed, Servers, chosen, dialects
from .sources import Unavailable

SERVERS = pytest.StashKey[Servers]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SERVERS] = Servers()
    try:
        chosen()
    except ValueError as error:
        raise pytest.UsageError(f"{CHOICE}={os.environ[CHOICE]!r}: {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that need the fixture `dialect` run on each server of their protocol."""
    if "dialect" in metafunc.fixturenames:
        package = next(part for part in metafunc.definition.path.parts if part in DIALECTS)
        metafunc.parametrize("dialect", dialects(package), scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take minutes run only when asked for: `-m soak`."""
    if "soak" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("soak")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what the collected tests will ask for, while the first of them run."""
    if session.config.option.collectonly:
        return
    asking = [item for item in session.items if "server" in getattr(item, "fixturenames", ())]
    packages = {part for item in asking for part in item.path.parts}
    asked = {key for package in packages & DIALECTS.keys() for key in dialects(package)}
    asked |= {key for key in KINDS if KINDS[key].package in packages - DIALECTS.keys()}

    def is_wanted(key: str) -> bool:
        return key in asked and not KINDS[key].driver_is_missing()

    wanted = [key for key in KINDS if is_wanted(key)]
    session.config.stash[SERVERS].begin(wanted)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> ServerFactory:
    """Get a real server: `server("postgres")`; `with server("redis", fresh=True) as mine:` for one's own.

    `server("postgres", version=15)` asks for that version; without it the run's choice counts, else the newest there is.
    """
    servers = request.config.stash[SERVERS]

    def get(
        kind: str,
        *,
        version: str | int | None = None,
        fresh: bool = False,
        args: Sequence[str] = (),
        password: str | None = None,
    ) -> Server:
        if (args or password) and not fresh:
            raise ValueError("args and password are for a server of one's own: pass fresh=True")
        if kind in KINDS and KINDS[kind].driver_is_missing():
            _nothing_to_be_had(f"{KINDS[kind].driver} is not installed, so no {kind} server can be asked anything")
        try:
            return servers.fresh(kind, args, password, version) if fresh else servers.get(kind, version)
        except Unavailable as error:
            reason = str(error)
        except ServerFailed as error:
            pytest.fail(str(error), pytrace=False)
        _nothing_to_be_had(reason)

    return get


def _nothing_to_be_had(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"CI is set, so a test without its server fails: {reason}", pytrace=False)
    pytest.skip(f"NO SERVER: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    known = config.stash[SERVERS].known()
    lines = [f"{server.kind}: {server.name} {server.version} ({server.label})" for server in known]
    lines += config.stash[SERVERS].notes
    if lines:
        terminalreporter.section("servers", sep="-")
        for line in lines:
            terminalreporter.line(line)
    directory = os.environ.get("POOL_TEST_RESULTS")
    if directory and not hasattr(config, "workerinput"):  # pytest-xdist's workers report to who counts
        number = {word: len(terminalreporter.stats.get(word, ())) for word in ("passed", "failed", "error", "skipped")}
        number["failed"] += number.pop("error")
        number["skipped"] += len(terminalreporter.stats.get("xfailed", ()))
        number["failed"] += len(terminalreporter.stats.get("xpassed", ()))
        Path(directory).mkdir(parents=True, exist_ok=True)
        result = Path(directory, f"{uuid.uuid4().hex}.json")
        versions = {server.kind: f"{server.name} {server.version}" for server in known}
        free_threaded = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else " free-threaded"
        python = f"{platform.python_version()}{free_threaded}"
        result.write_text(json.dumps({**number, "servers": lines, "versions": versions, "python": python}))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[SERVERS].close()
