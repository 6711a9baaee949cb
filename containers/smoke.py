"""Try the installed distributions: run by the session `build` in an environment that has nothing but the wheels."""

import asyncio
import importlib.metadata
import importlib.resources

import pool_sqlite
from pool_core import Pool

ADAPTERS = (
    "pool_postgres",
    "pool_redis",
    "pool_mysql",
    "pool_mongo",
    "pool_sqlite",
    "pool_memcached",
    "pool_rabbitmq",
    "pool_neo4j",
    "pool_arangodb",
    "pool_psycopg",
    "pool_sqlalchemy",
)


async def main() -> None:
    for name in ("pool_core", *ADAPTERS):
        assert importlib.resources.files(name).joinpath("py.typed").is_file(), f"{name} is not marked as typed"
    for entry in importlib.metadata.entry_points(group="pool_core.managers"):
        try:
            assert callable(entry.load()), f"{entry} is not callable"
        except ImportError as error:
            if "install the ODBC driver manager" not in str(error):  # this machine may have none
                raise
    async with Pool(pool_sqlite.SqliteConnectionManager(":memory:"), min_idle=1) as pool, pool.get() as connection:
        cursor = await connection.execute("SELECT 6 * 7")
        assert await cursor.fetchone() == (42,)
    names = [f"{name} {importlib.metadata.version(name)}" for name in ("pool_core", *ADAPTERS)]
    print("installed and tried:", ", ".join(names))


asyncio.run(main())
