"""A program's process ends in every case: aiosqlite's threads must not keep it alive, and files stay intact."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SOON = 2.0
"""Seconds from the end of the program's own work to the end of its process; the machine of a CI may be busy."""

BEGIN = """
    import asyncio, gc, os, signal, sys, threading, time
    from pool_core import Pool

    PATH = sys.argv[1]
    kept = []

    async def opened():
        pool = Pool.from_url(f"sqlite:///{PATH}", max_size=3, connection_timeout=2)
        await pool.open()
        kept.append(pool)
        async with pool.get() as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS t (x)")
            await conn.execute("INSERT INTO t VALUES ('committed')")
            await conn.commit()
        return pool

    def last():
        print(f"ends at {time.time()}", flush=True)
"""

WAYS = {
    "the pool is never closed": """
        async def main():
            pool = await opened()
            last()
        asyncio.run(main())
    """,
    "an exception leaves the program": """
        async def main():
            pool = await opened()
            async with pool.get() as conn:
                last()
                await conn.execute("bad sql")
        asyncio.run(main())
    """,
    "sys.exit inside a block": """
        async def main():
            pool = await opened()
            async with pool.get() as conn:
                last()
                sys.exit(3)
        asyncio.run(main())
    """,
    "Ctrl-C while a statement runs": """
        async def main():
            pool = await opened()
            async with pool.get() as conn:
                threading.Timer(0.3, lambda: (last(), os.kill(os.getpid(), signal.SIGINT))).start()
                await conn.execute(
                    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT sum(x) FROM c"
                )
        asyncio.run(main())
    """,
    "leases are out, one with an open transaction": """
        async def main():
            pool = await opened()
            kept.append(await pool.get())
            lease = await pool.get()
            kept.append(lease)
            await lease.conn.execute("INSERT INTO t VALUES ('not committed')")
            last()
        asyncio.run(main())
    """,
    "a dedicated connection is open": """
        async def main():
            pool = await opened()
            kept.append(await pool.dedicated_connection())
            await pool.close()
            last()
        asyncio.run(main())
    """,
    "a connection was detached": """
        async def main():
            pool = await opened()
            kept.append((await pool.get()).detach())
            await pool.close()
            last()
        asyncio.run(main())
    """,
    "a statement waits for another connection's lock": """
        async def main():
            pool = await opened()
            first, second = await pool.get(), await pool.get()
            kept.extend([first, second])
            await first.conn.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(second.conn.execute("BEGIN IMMEDIATE"))
            await asyncio.sleep(0.2)
            last()
        asyncio.run(main())
    """,
    "the loop is closed by hand under an open pool": """
        loop = asyncio.new_event_loop()
        kept.append(loop.run_until_complete(opened()))
        loop.close()
        last()
    """,
    "a thread of the program's own ran the loop": """
        async def main():
            await opened()
        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        thread.join()
        last()
    """,
    "pytest fails a test that holds a connection": """
        import pytest
        file = os.path.join(os.path.dirname(PATH), "test_it.py")
        lines = [
            "import asyncio",
            "from pool_core import Pool",
            "async def main():",
            f"    pool = Pool.from_url('sqlite:///{PATH}')",
            "    await pool.open()",
            "    async with pool.get() as conn:",
            "        await conn.execute('bad sql')",
            "def test_fails():",
            "    asyncio.run(main())",
        ]
        with open(file, "w") as out:
            out.write(chr(10).join(lines))
        asyncio.run(opened())
        assert pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", os.path.dirname(PATH), file]) == 1
        last()
    """,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_program_ends(way: str, tmp_path: Path) -> None:
    """In most of these cases the interpreter used to wait forever for the connection's thread."""
    database = tmp_path / "a.db"
    code = textwrap.dedent(BEGIN) + textwrap.dedent(WAYS[way])
    # The test that fails inside is none of this run's: it must not be counted in its report.
    env = {name: value for name, value in os.environ.items() if name != "POOL_TEST_RESULTS"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(database)], capture_output=True, text=True, timeout=60, check=False, env=env
    )
    assert "ends at" in done.stdout, done.stderr
    assert time.time() - float(done.stdout.rsplit("ends at ", 1)[1].split()[0]) < SOON
    with sqlite3.connect(database) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert set(conn.execute("SELECT x FROM t")) == {("committed",)}
    conn.close()
