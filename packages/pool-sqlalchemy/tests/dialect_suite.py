"""SQLAlchemy's own dialect suite over our pool passes wherever it passes over SQLAlchemy's: `nox -s dialect`.

Not collected by default, since it takes minutes.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

if TYPE_CHECKING:
    from containers.servers import Server, ServerFactory

SUITE = Path(__file__).parent / "suite"
EXPLAINED: dict[str, str] = {}
"""Tests whose outcome differs: a part of the name, and why."""


async def postgres_url(server: Server, driver: str) -> str:
    import asyncpg

    conn = await asyncpg.connect(server.url)
    await conn.execute("DROP DATABASE IF EXISTS suite WITH (FORCE)")
    await conn.execute("CREATE DATABASE suite")
    await conn.close()
    conn = await asyncpg.connect(server.url, database="suite")
    await conn.execute("CREATE SCHEMA test_schema")
    await conn.close()
    return f"postgresql+{driver}://{server.user}:{server.password}@{server.host}:{server.port}/suite"


async def mysql_url(server: Server, driver: str) -> str:
    import aiomysql

    conn = await aiomysql.connect(host=server.host, port=server.port, user="root", password=server.password or "")
    async with conn.cursor() as cursor:
        for name in ("suite", "test_schema"):
            await cursor.execute("SET sql_notes = 0")
            await cursor.execute(f"DROP DATABASE IF EXISTS {name}")
            await cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    conn.close()
    return f"mysql+{driver}://root:{server.password}@{server.host}:{server.port}/suite?charset=utf8mb4"


def outcomes(place: Path, url: str, ours: bool) -> dict[str, str]:
    """Run the suite; the outcome of each test."""
    place.mkdir()
    for file in SUITE.iterdir():
        if file.is_file():
            shutil.copy(file, place)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        "setup.cfg",
        "--rootdir",
        ".",
        "--confcutdir",
        ".",
        "-q",
        "suite.py",
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("POOL_TEST")}
    done = subprocess.run(
        [*command, "--dburi", url, "--maxfail", "3000", "--junitxml", "results.xml"],
        cwd=place,
        env={**environment, "POOL_SUITE": "1" if ours else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (place / "results.xml").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found = {}
    for case in ET.parse(place / "results.xml").iter("testcase"):
        name = re.sub(r"_(postgresql|mysql|mariadb|sqlite)\+\w+", "", f"{case.get('classname')}::{case.get('name')}")
        found[name] = next((child.tag for child in case if child.tag in {"failure", "error", "skipped"}), "passed")
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "database", ["sqlite+aiosqlite", "postgres+asyncpg", "postgres+psycopg_async", "mysql+aiomysql", "mariadb+aiomysql"]
)
def test_the_suite_passes_over_our_pool_wherever_it_passes_over_sqlalchemys(
    database: str, server: ServerFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the dialects promise must hold whichever pool is below them."""
    kind, _, driver = database.partition("+")
    found: list[dict[str, str]] = []
    for ours in (False, True):
        if kind == "sqlite":
            url = f"sqlite+{driver}:///suite.db"
        else:
            make: Any = postgres_url if kind == "postgres" else mysql_url
            url = asyncio.run(make(server(kind), driver))
        found.append(outcomes(tmp_path / str(ours), url, ours))
    theirs, mine = found
    with capsys.disabled():
        print(f"\n{database}: SQLAlchemy's pool {dict(Counter(theirs.values()))}, ours {dict(Counter(mine.values()))}")
    assert "passed" in theirs.values()
    worse = {
        name: (outcome, mine.get(name))
        for name, outcome in theirs.items()
        if mine.get(name) != outcome and not any(part in name for part in EXPLAINED)
    }
    assert worse == {}
