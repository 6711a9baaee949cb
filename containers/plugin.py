"""The pytest side of the real servers: the fixture `server`, their start in the background, the report.

The root conftest.py loads it. With POOL_TEST_RESULTS set to a directory, each run leaves its counts there, so that
several can be added up.
"""

import importlib.util
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from .kinds import KINDS
from .servers import Server, ServerFactory, ServerFailed, Servers
from .sources import Unavailable

SERVERS = pytest.StashKey[Servers]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SERVERS] = Servers()


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
    wanted = [key for key, kind in KINDS.items() if kind.package in packages and importlib.util.find_spec(kind.driver)]
    session.config.stash[SERVERS].begin(wanted)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> ServerFactory:
    """Get a real server: `server("postgres")`; `with server("redis", fresh=True) as mine:` for one's own."""
    servers = request.config.stash[SERVERS]

    def get(kind: str, *, fresh: bool = False, args: Sequence[str] = (), password: str | None = None) -> Server:
        if (args or password) and not fresh:
            raise ValueError("args and password are for a server of one's own: pass fresh=True")
        if kind in KINDS and not importlib.util.find_spec(KINDS[kind].driver):
            _nothing_to_be_had(f"{KINDS[kind].driver} is not installed, so no {kind} server can be asked anything")
        try:
            return servers.fresh(kind, args, password) if fresh else servers.get(kind)
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
        result.write_text(json.dumps({**number, "servers": lines}))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[SERVERS].close()
