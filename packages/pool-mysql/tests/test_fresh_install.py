"""A fresh environment with nothing but ``pool-core[mysql]`` logs in to a server as it comes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGES = Path(__file__).parents[2]
PROGRAM = """
import asyncio, os
from pool_core import Pool

async def main():
    async with Pool.from_url(os.environ["DATABASE_URL"], min_idle=1) as pool:
        async with pool.get() as conn, conn.cursor() as cursor:
            await cursor.execute("SELECT 6 * 7")
            print(*await cursor.fetchone())

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of such an environment."""
    place = tmp_path_factory.mktemp("fresh")
    clean = str(place / "bin" / "python")
    packages = [f"{PACKAGES / 'pool-core'}[mysql]", str(PACKAGES / "pool-mysql")]
    if uv := shutil.which("uv"):
        commands = [[uv, "venv", "-p", sys.executable, str(place)], [uv, "pip", "install", "-p", clean, *packages]]
    else:
        commands = [[sys.executable, "-m", "venv", str(place)], [clean, "-m", "pip", "install", *packages]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return clean


@pytest.mark.timeout(180)
def test_a_fresh_environment_logs_in_to_an_account_that_the_server_does_not_know_yet(db: Any, python: str) -> None:
    """MySQL's default login method, in full and in short, without TLS and where the server has it with TLS."""
    db.admin("DROP USER IF EXISTS fresh@'%'")
    db.admin("CREATE USER fresh@'%' IDENTIFIED BY 'pass word'")
    url = f"mysql://fresh:pass%20word@{db.host}:{db.port}/"
    urls = [url, url]
    if db.dialect.no_tls:  # it offers TLS unless it is told not to
        urls.append(f"{url}?ssl-mode=REQUIRED")
    for url in urls:
        env = {**os.environ, "DATABASE_URL": url}
        done = subprocess.run([python, "-I", "-c", PROGRAM], capture_output=True, text=True, env=env, check=False)
        assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
