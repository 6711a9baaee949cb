"""A password is rotated while the service works: new connections take the new one, and no request notices.

    DATABASE_URL=postgresql://admin:password@localhost/database python examples/rotate_credentials.py

The administrator's URL is needed to change the password of a role made for this example.
"""

from __future__ import annotations

import asyncio
import os
import secrets

import asyncpg
from pool_core import Pool
from pool_postgres import PostgresConnectionManager

ROLE = "pool_example"


class Vault:
    """Stands for wherever the passwords come from."""

    password = secrets.token_hex(16)

    async def fetch(self) -> str:
        return self.password


async def main(url: str) -> None:
    admin = await asyncpg.connect(url)
    vault = Vault()
    await admin.execute(f"DROP ROLE IF EXISTS {ROLE}")
    await admin.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{vault.password}'")

    # A callable is asked for each connection; manager.update(password=...) does it for one that is text.
    manager = PostgresConnectionManager(url, user=ROLE, password=vault.fetch)
    served: set[int] = set()
    stop = asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            async with pool.get() as conn:
                served.add(await conn.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.01)"))

    async with Pool(manager, max_size=3, min_idle=1) as pool:
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(work())
            await asyncio.sleep(0.3)

            vault.password = secrets.token_hex(16)
            await admin.execute(f"ALTER ROLE {ROLE} PASSWORD '{vault.password}'")
            before, served_before = (
                pool.evict(),
                served.copy(),
            )  # idle ones are closed now, the others when they are returned
            await asyncio.sleep(0.3)
            served.clear()
            await asyncio.sleep(0.3)
            stop.set()
        print(
            f"{before} connections retired, {len(served - served_before)} new ones, {len(served & served_before)} old"
        )
        print(f"failed connects: {pool.state().statistics.connects_failed}")

    await admin.execute(f"DROP ROLE {ROLE}")
    await admin.close()


if __name__ == "__main__":
    asyncio.run(main(os.environ["DATABASE_URL"]))
