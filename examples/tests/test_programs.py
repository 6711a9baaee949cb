"""The examples as their readers run them: programs of their own, with warnings as errors, on real servers."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from containers.servers import Server, ServerFactory

    Run = Callable[..., str]
    Start = Callable[..., subprocess.Popen[str]]

ROOT = Path(__file__).parents[2]


async def ask(server: Server, query: str) -> list[Any]:
    conn = await asyncpg.connect(server.url)
    try:
        return list(await conn.fetch(query))
    finally:
        await conn.close()


def listen_to(process: subprocess.Popen[str], *words: str) -> str:
    """Read what a program says until one of the words is in it; returns that line."""
    assert process.stdout is not None
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if any(word in line for word in words):
                return line
    finally:
        watchdog.cancel()
    raise AssertionError(f"it ended without saying {words}: {''.join(said)}")


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mysql", "mariadb"])
def test_quickstart_runs_on_each_database(kind: str, run: Run, server: ServerFactory) -> None:
    """By its URL alone; without one on SQLite."""
    said = run("quickstart.py", **({} if kind == "sqlite" else {"DATABASE_URL": server(kind).url}))
    assert "sum of twenty: 20" in said
    assert "no connection within 0.1 s" in said
    assert "0 in use" in said


@pytest.mark.parametrize("name", ["sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg", "mysql+aiomysql"])
def test_sqlalchemys_sessions_share_the_pools_connections(name: str, run: Run, server: ServerFactory) -> None:
    """The example of the engine, on each driver."""
    scheme = name.partition("+")[0]
    url = f"{name}://"
    if scheme != "sqlite":
        url = server("postgres" if scheme == "postgresql" else "mysql").url.replace(f"{scheme}://", url, 1)
    said = run("sqlalchemy_engine.py", DATABASE_URL=url)
    assert "50 notes, and the pool: 0 in use" in said


async def test_the_listener_comes_back_when_its_connection_breaks(start: Start, server: ServerFactory) -> None:
    """Every order is heard, though the listener's connection is killed in between; the pool's own are left alone."""
    postgres = server("postgres")
    process = start("listen_notify.py", DATABASE_URL=postgres.url, ORDERS="25")
    listen_to(process, "order 0")
    killed = await ask(postgres, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'LISTEN %'")
    assert len(killed) == 1
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert re.findall(r"order (\d+)", said)[-1] == "24"
    assert said.count("listening\n") == 1  # the second time; the first one was read above


def test_a_rotation_of_credentials_is_not_noticed(run: Run, server: ServerFactory) -> None:
    """Connections with the new password take over, and no connect fails."""
    said = run("rotate_credentials.py", DATABASE_URL=server("postgres").url)
    found = re.search(r"(\d+) connections retired, (\d+) new ones, 0 old", said)
    assert found, said
    assert 1 <= int(found[1]) <= 3
    assert 1 <= int(found[2]) <= 3
    assert "failed connects: 0" in said


async def test_after_a_failover_writes_go_to_the_new_primary(start: Start, server: ServerFactory) -> None:
    """One write meets the old primary, which only reads by now; one retry is all that it takes."""
    with server("postgres", fresh=True) as old, server("postgres", fresh=True) as new:
        await ask(new, "CREATE TABLE IF NOT EXISTS events (number int)")
        hosts = f"{old.host}:{old.port},{new.host}:{new.port}"
        url = f"postgresql://{old.user}:{old.password}@{hosts}/{old.database}?target_session_attrs=read-write"
        process = start("failover.py", DATABASE_URL=url, EVENTS="25")
        listen_to(process, "event 1 is on")
        await ask(old, "ALTER SYSTEM SET default_transaction_read_only = on")
        await ask(old, "SELECT pg_reload_conf()")
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 0, said
        assert said.count("read-only: once more") == 1
        (before,) = await ask(old, "SELECT array_agg(number ORDER BY number) FROM events")
        (after,) = await ask(new, "SELECT array_agg(number ORDER BY number) FROM events")
        assert before[0] + after[0] == list(range(25))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_finishes_what_was_begun(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    """It ends well, within a job's time, and no job is half done."""
    path = tmp_path / "jobs.db"
    process = start("graceful_shutdown.py", DATABASE_URL=f"sqlite:///{path}")
    listen_to(process, "working")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.45)  # in the middle of the second job
    process.send_signal(number)
    said, _ = process.communicate(timeout=5)
    assert process.returncode == 0, said
    found = re.search(r"(\d+) jobs done", said)
    assert found, said
    with sqlite3.connect(path) as conn:
        rows = conn.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
    conn.close()
    assert rows == [("done", int(found[1]))]
    assert int(found[1]) >= 1


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_the_recipes_for_pytest_leave_nothing_behind(kind: str, server: ServerFactory) -> None:
    """Two tests each, the second of which looks for what the first one wrote."""
    environment = {}
    if kind == "postgres":
        environment["DATABASE_URL"] = server(kind).url
        await ask(server(kind), "DROP TABLE IF EXISTS notes")
    recipe = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"examples/pytest_{kind}.py"]
    done = subprocess.run(recipe, cwd=ROOT, env={**_without_url(), **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    if kind == "postgres":
        assert await ask(server(kind), "SELECT to_regclass('notes')") == [(None,)]


def _without_url() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "POOL_TEST_RESULTS"}}
